"""Rows that come in chunks, anew at each pass: data larger than memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import IterableDataset, get_worker_info

from sksoftrank.training._batches import BLOCK_BATCHES, Target, as_tensor

Array = npt.NDArray[Any]
Codes = npt.NDArray[np.int64]
# A chunk's rows, with labels where the source has any.
Chunk = tuple[Any, Array | None]


class StreamDataset(IterableDataset[Any]):
    """Chunks of rows, class codes and weights, as a dataset that a net can train on.

    Parameters
    ----------
    open_chunks : callable
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
        open_chunks: Callable[[], Iterator[tuple[Array, Codes]]],
        n_rows: int,
        class_weight: npt.NDArray[np.float64] | None = None,
    ) -> None:
        self.open_chunks = open_chunks
        self.n_rows = n_rows
        self.class_weight = class_weight

    def chunks(self) -> Iterator[tuple[Array, Codes]]:
        """Yield the pairs of a pass.

        Yields
        ------
        tuple of ndarray of shape (n, ...) and ndarray of shape (n,)
            Rows and their codes.

        Raises
        ------
        ValueError
            If it ends with more or fewer rows than announced.
        """
        n_seen = 0
        for X, codes in self.open_chunks():
            n_seen += len(codes)
            if n_seen > self.n_rows:
                break  # It may never end.
            yield X, codes
        if n_seen != self.n_rows:
            more = " or more" if n_seen > self.n_rows else ""
            raise ValueError(
                f"X must yield the same rows at each pass, got {n_seen} rows{more} "
                f"where a pass before gave {self.n_rows}. Its __iter__ must start anew "
                "at each call, as a generator that is used up can't."
            )

    def __iter__(self) -> Iterator[Any]:
        """Yield pairs of a row and its code, or of a row and (code, weight)."""
        worker = get_worker_info()
        # Each of a DataLoader's workers reads all, and hands on its share.
        place, step = (0, 1) if worker is None else (worker.id, worker.num_workers)
        index = 0
        for X, codes in self.chunks():
            for x, code in zip(X, codes, strict=True):
                if index % step == place:
                    if self.class_weight is None:
                        yield x, code
                    else:
                        yield x, (code, self.class_weight[code])
                index += 1


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
        # A batch leaves as soon as the least last one is left behind it.
        n_before = (self.dataset.n_rows - self.min_batch_size) // self.batch_size
        return max(n_before, 0) + 1

    def _permutation(self, n: int) -> npt.NDArray[np.intp]:
        if self.random_state is None:
            return torch.randperm(n).numpy()
        return self.random_state.permutation(n)

    def _blocks(self) -> Iterator[tuple[Array, Codes]]:
        """Yield rows in the order of the pass."""
        chunks = ((_shorten(X), codes) for X, codes in self.dataset.chunks())
        return self._mix(chunks) if self.shuffle else chunks

    def _mix(
        self, chunks: Iterator[tuple[Array, Codes]]
    ) -> Iterator[tuple[Array, Codes]]:
        """Yield rows in random order from a buffer that they pass through.

        Rows that don't fit into it change places with as many, drawn from both. What
        fits whole comes in the order that it would come in from memory.
        """
        capacity = min(BLOCK_BATCHES * self.batch_size, self.dataset.n_rows)
        buffer: Array | None = None
        kept = np.empty(capacity, np.int64)
        n_kept = 0
        for X, codes in chunks:
            if buffer is None:
                buffer = np.empty((capacity, *X.shape[1:]), X.dtype)
            elif buffer.dtype != X.dtype:  # Bytes, and then numbers.
                buffer = buffer.astype(np.float32, copy=False)
            n_fitting = min(capacity - n_kept, len(codes))
            buffer[n_kept : n_kept + n_fitting] = X[:n_fitting]
            kept[n_kept : n_kept + n_fitting] = codes[:n_fitting]
            n_kept += n_fitting
            X, codes = X[n_fitting:], codes[n_fitting:]
            if len(codes) == 0:
                continue
            order = self._permutation(capacity + len(codes))
            leaving, staying = order[: len(codes)], order[len(codes) :]
            is_kept = leaving < capacity
            places, others = leaving[is_kept], leaving[~is_kept] - capacity
            X_out = np.empty((len(codes), *X.shape[1:]), buffer.dtype)
            codes_out = np.empty_like(codes)
            X_out[is_kept], X_out[~is_kept] = buffer[places], X[others]
            codes_out[is_kept], codes_out[~is_kept] = kept[places], codes[others]
            coming = staying[staying >= capacity] - capacity
            buffer[places], kept[places] = X[coming], codes[coming]
            yield X_out, codes_out
        if buffer is not None:
            order = self._permutation(n_kept)
            # A batch at a time: the buffer is not held twice.
            for start in range(0, n_kept, self.batch_size):
                rows = order[start : start + self.batch_size]
                yield buffer[rows], kept[rows]

    def _batch(self, X: Array, codes: Codes) -> tuple[Tensor, Target]:
        x, y = as_tensor(X).to(self.device), as_tensor(codes).to(self.device)
        if self.dataset.class_weight is None:
            return x, y
        weight = self.dataset.class_weight[codes]
        return x, (y, as_tensor(weight).to(self.device))

    def __iter__(self) -> Iterator[tuple[Tensor, Target]]:
        X: Array | None = None
        codes: Codes = np.empty(0, np.int64)
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
            # Fewer than a batch and the least last one.
            yield self._batch(X, codes)


def _shorten(X: Array) -> Array:
    """Return rows as what is trained on, or as bytes, which take less memory yet."""
    return X if X.dtype == np.uint8 else X.astype(np.float32, copy=False)


def sample_stream(
    chunks: Iterator[tuple[Array, Codes]],
    n_rows: int,
    random_state: int,
) -> tuple[Array, Codes]:
    """Return at most `n_rows` rows and codes, each row as likely as any other.

    The rows with the least of random keys: their number need not be known beforehand.
    """
    rng = np.random.default_rng(random_state)
    kept: tuple[Any, ...] | None = None
    for X, codes in chunks:
        parts: tuple[Any, ...] = (X, codes, rng.random(len(codes)))
        if kept is not None:
            if len(kept[2]) == n_rows:
                # Few of a long stream's rows stay, and only they are worth a copy.
                near = parts[2] < kept[2].max()
                if not near.any():
                    continue
                parts = tuple(part[near] for part in parts)
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
