"""Rows that come in chunks, anew at each pass: data larger than memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import IterableDataset

from sksoftrank.training._batches import BLOCK_BATCHES, Target, as_tensor

Array = npt.NDArray[Any]
# A chunk's rows, with labels where the source has any.
Chunk = tuple[Any, Array | None]


class StreamDataset(IterableDataset[Any]):
    """Chunks of rows, class codes and weights, as a dataset that a net can train on.

    Parameters
    ----------
    chunks : callable
        Returns an iterator over pairs of rows (n, ...) and codes (n,), from the start.
    n_rows : int
        Rows of a pass.
    class_weight : ndarray of shape (n_classes,), default=None
        Weight of each class in the loss.

    Examples
    --------
    >>> import numpy as np
    >>> from sksoftrank.training import StreamDataset, make_batches
    >>> pairs = [(np.zeros((3, 2)), np.array([0, 1, 1]))] * 2
    >>> dataset = StreamDataset(lambda: iter(pairs), n_rows=6)
    >>> [len(x) for x, y in make_batches(dataset, batch_size=4)]
    [4, 2]
    """

    def __init__(
        self,
        chunks: Callable[[], Iterator[tuple[Array, npt.NDArray[np.int64]]]],
        n_rows: int,
        class_weight: npt.NDArray[np.float64] | None = None,
    ) -> None:
        self.chunks = chunks
        self.n_rows = n_rows
        self.class_weight = class_weight

    def __iter__(self) -> Iterator[Any]:
        """Yield pairs of a row and its code, or of a row and (code, weight)."""
        for X, codes in self.chunks():
            for x, code in zip(X, codes, strict=True):
                if self.class_weight is None:
                    yield x, code
                else:
                    yield x, (code, self.class_weight[code])


class StreamBatches:
    """Iterate over batches of a stream, shuffled within what a buffer holds.

    Parameters
    ----------
    dataset : StreamDataset
        Where the rows come from.
    batch_size : int, default=128
        Rows in a batch; the last one has what is left.
    shuffle : bool, default=False
        Whether rows leave a buffer of some batches in random order. A stream sorted
        by class stays sorted but for that.
    random_state : numpy Generator, int or None, default=None
        Where the order comes from; None draws from torch's global generator.
    min_batch_size : int, default=1
        A smaller last batch joins the one before.
    device : str or torch.device, default="cpu"
        Where the batches go.

    Raises
    ------
    ValueError
        If a pass ends with more or fewer rows than the dataset announces.

    Examples
    --------
    >>> import numpy as np
    >>> from sksoftrank.training import StreamBatches, StreamDataset
    >>> pairs = [(np.zeros((3, 2)), np.array([0, 1, 1]))] * 2
    >>> dataset = StreamDataset(lambda: iter(pairs), n_rows=6)
    >>> [y.tolist() for x, y in StreamBatches(dataset, batch_size=4)]
    [[0, 1, 1, 0], [1, 1]]
    """

    def __init__(
        self,
        dataset: StreamDataset,
        batch_size: int = 128,
        *,
        shuffle: bool = False,
        random_state: np.random.Generator | int | None = None,
        min_batch_size: int = 1,
        device: str | torch.device = "cpu",
    ) -> None:
        self.dataset = dataset
        self.batch_size = batch_size
        self.shuffle = shuffle
        self.random_state = (
            None if random_state is None else np.random.default_rng(random_state)
        )
        self.min_batch_size = min_batch_size
        self.device = torch.device(device)

    def __len__(self) -> int:
        n_full, rest = divmod(self.dataset.n_rows, self.batch_size)
        is_apart = rest >= self.min_batch_size or (rest > 0 and n_full == 0)
        return n_full + int(is_apart)

    def _permutation(self, n: int) -> npt.NDArray[np.intp]:
        if self.random_state is None:
            return torch.randperm(n).numpy()
        return self.random_state.permutation(n)

    def _blocks(self) -> Iterator[tuple[Array, npt.NDArray[np.int64]]]:
        """Yield rows in the order of the pass; a buffer stays behind for mixing."""
        capacity = BLOCK_BATCHES * self.batch_size if self.shuffle else 0
        X: Array | None = None
        codes: npt.NDArray[np.int64] = np.empty(0, np.int64)
        n_seen = 0
        for X_new, codes_new in self.dataset.chunks():
            n_seen += len(codes_new)
            if X is not None:
                X_new = np.concatenate([X, X_new])
                codes_new = np.concatenate([codes, codes_new])
            X, codes = X_new, codes_new
            surplus = len(codes) - capacity
            if surplus > 0:
                if self.shuffle:
                    order = self._permutation(len(codes))
                    X, codes = X[order], codes[order]
                yield X[:surplus], codes[:surplus]
                X, codes = X[surplus:], codes[surplus:]
        if n_seen != self.dataset.n_rows:
            raise ValueError(
                f"X must yield the same rows at each pass, got {n_seen} rows where a "
                f"pass before gave {self.dataset.n_rows}. Its __iter__ must start "
                "anew at each call, as a generator that is used up can't."
            )
        if X is not None and len(codes):
            if self.shuffle:
                order = self._permutation(len(codes))
                X, codes = X[order], codes[order]
            yield X, codes

    def _batch(self, X: Array, codes: npt.NDArray[np.int64]) -> tuple[Tensor, Target]:
        x, y = as_tensor(X).to(self.device), as_tensor(codes).to(self.device)
        if self.dataset.class_weight is None:
            return x, y
        weight = self.dataset.class_weight[codes]
        return x, (y, as_tensor(weight).to(self.device))

    def __iter__(self) -> Iterator[tuple[Tensor, Target]]:
        X: Array | None = None
        codes: npt.NDArray[np.int64] = np.empty(0, np.int64)
        for X_new, codes_new in self._blocks():
            if X is not None and len(X):
                X_new = np.concatenate([X, X_new])
                codes_new = np.concatenate([codes, codes_new])
            X, codes = X_new, codes_new
            # What may turn out to be too small a last batch waits for its neighbour.
            while len(X) >= self.batch_size + self.min_batch_size:
                size = self.batch_size
                yield self._batch(X[:size], codes[:size])
                X, codes = X[size:], codes[size:]
        if X is not None and len(X):
            cut = self.batch_size
            if 0 < len(X) - cut < self.min_batch_size:
                cut = len(X)
            yield self._batch(X[:cut], codes[:cut])
            if len(X) > cut:
                yield self._batch(X[cut:], codes[cut:])


def sample_stream(
    chunks: Iterator[tuple[Array, npt.NDArray[np.int64]]],
    n_rows: int,
    random_state: int,
) -> tuple[Array, npt.NDArray[np.int64]]:
    """Return at most `n_rows` rows and codes, each row as likely as any other.

    The rows with the least of random keys: their number need not be known beforehand.
    """
    rng = np.random.default_rng(random_state)
    kept: tuple[Any, ...] | None = None
    for X, codes in chunks:
        parts: tuple[Any, ...] = (X, codes, rng.random(len(codes)))
        if kept is not None:
            parts = tuple(
                np.concatenate(pair) for pair in zip(kept, parts, strict=True)
            )
        keys = parts[2]
        if len(keys) > n_rows:
            least = np.sort(np.argpartition(keys, n_rows - 1)[:n_rows])
            parts = tuple(part[least] for part in parts)
        kept = parts
    assert kept is not None
    return kept[0], kept[1]
