"""Batches cut from arrays in memory, without a call for every row.

A DataLoader indexes its dataset row by row and stacks the rows again, which costs more
than a small network's step. Here the rows of an epoch are gathered in permuted blocks
of some batches, and a batch is a slice of a block. Blocks rather than one permuted
copy of everything: a memory-mapped or sparse matrix is then never held whole.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from scipy import sparse
from sklearn.utils import gen_batches
from skorch.dataset import Dataset
from torch import Tensor
from torch.utils.data import Subset

# Gathered at a time: enough batches to make the call's cost vanish, but of wide rows
# only what stays near the cache.
BLOCK_BATCHES = 32
BLOCK_BYTES = 4 << 20

Target = Tensor | tuple[Tensor, Tensor]
Order = npt.NDArray[np.intp] | Tensor | None


class InMemoryDataset(Dataset):
    """A skorch dataset of rows, labels and sample weights.

    Parameters
    ----------
    X : ndarray, sparse matrix or Tensor of shape (n, ...)
        Rows. Anything else that skorch's dataset takes is served by a DataLoader.
    y : ndarray or Tensor of shape (n,), default=None
        Class codes.
    sample_weight : ndarray of shape (n,), default=None
        Weight of each row, for the loss.
    length : int, default=None
        Number of rows, where `X` can't tell.
    groups : ndarray of shape (n,), default=None
        Codes of what rows belong together, for those who hold rows out.

    Examples
    --------
    >>> import numpy as np
    >>> from sksoftrank.training import InMemoryDataset
    >>> dataset = InMemoryDataset(np.zeros((3, 2)), np.array([0, 1, 1]))
    >>> len(dataset), dataset.in_memory
    (3, True)
    """

    def __init__(
        self,
        X: Any,
        y: Any = None,
        sample_weight: npt.NDArray[Any] | None = None,
        length: int | None = None,
        groups: npt.NDArray[Any] | None = None,
    ) -> None:
        super().__init__(X, y, length=length)
        self.sample_weight = sample_weight
        self.groups = groups

    @property
    def in_memory(self) -> bool:
        """Whether batches can be cut from the arrays directly."""
        X, y = self.X, self.y
        return (sparse.issparse(X) or isinstance(X, np.ndarray | Tensor)) and (
            y is None or isinstance(y, np.ndarray | Tensor)
        )

    def __getitem__(self, i: Any) -> Any:
        X, y = super().__getitem__(i)
        if self.sample_weight is None:
            return X, y
        return X, (y, self.sample_weight[i])


def as_tensor(X: npt.NDArray[Any], *, double: bool = False) -> Tensor:
    """Return numbers, bytes included, in single precision unless `double` is set.

    Without a copy where it can be: torch takes neither read-only memory nor negative
    strides.
    """
    if _is_number(X.dtype) and not (double and X.dtype == np.float64):
        X = X.astype(np.float32, copy=False)
    X = np.ascontiguousarray(X)
    return torch.from_numpy(X if X.flags.writeable else X.copy())


def _is_number(dtype: np.dtype[Any]) -> bool:
    return dtype.kind == "f" or dtype == np.uint8


def as_single(tensor: Tensor) -> Tensor:
    """Return numbers, bytes included, in single precision; codes as they are."""
    is_number = tensor.is_floating_point() or tensor.dtype == torch.uint8
    return tensor.float() if is_number else tensor


def _as_codes(y: Any) -> Any:
    """Return labels in the type that torch's loss takes, if they are integers."""
    if isinstance(y, Tensor):
        is_real = y.is_floating_point() or y.is_complex()
        return y if is_real else y.long()
    return y.astype(np.int64, copy=False) if y.dtype.kind in "biu" else y


class InMemoryBatches:
    """Iterate over batches ``(x, y)``, or ``(x, (y, sample_weight))``, of a dataset.

    Parameters
    ----------
    dataset : InMemoryDataset or Subset of one
        Where the rows come from.
    batch_size : int, default=128
        Rows in a batch; the last one has what is left.
    shuffle : bool, default=False
        Whether each pass has an order of its own.
    random_state : numpy Generator, int or None, default=None
        Where the order comes from; None draws from torch's global generator.
    min_batch_size : int, default=1
        A smaller last batch joins the one before.
    device : str or torch.device, default="cpu"
        Where the batches go. Elsewhere than on the CPU, dense rows, their labels and
        weights are moved there once and stay.

    Examples
    --------
    >>> import numpy as np
    >>> from sksoftrank.training import InMemoryBatches, InMemoryDataset
    >>> dataset = InMemoryDataset(np.zeros((5, 2)), np.arange(5))
    >>> [y.tolist() for x, y in InMemoryBatches(dataset, batch_size=2)]
    [[0, 1], [2, 3], [4]]
    """

    def __init__(
        self,
        dataset: InMemoryDataset | Subset[Any],
        batch_size: int = 128,
        *,
        shuffle: bool = False,
        random_state: np.random.Generator | int | None = None,
        min_batch_size: int = 1,
        device: str | torch.device = "cpu",
    ) -> None:
        self.indices: npt.NDArray[np.intp] | None = None
        if isinstance(dataset, Subset):
            self.indices = np.asarray(dataset.indices)
            dataset = dataset.dataset  # type: ignore[assignment]
        assert isinstance(dataset, InMemoryDataset)
        self.dataset = dataset
        self.batch_size = batch_size
        self.shuffle = shuffle
        self.random_state = (
            None if random_state is None else np.random.default_rng(random_state)
        )
        self.min_batch_size = min_batch_size
        self.device = torch.device(device)

        self.n_rows = len(dataset) if self.indices is None else len(self.indices)
        X, y, weight = dataset.X, dataset.y, dataset.sample_weight
        self._X = X.tocsr() if sparse.issparse(X) else X
        self._stays = self.device.type != "cpu" and not sparse.issparse(X)
        self._is_loaded = False
        # A placeholder where there is no target: skorch unpacks pairs.
        self._y = np.zeros(len(dataset), np.int64) if y is None else _as_codes(y)
        self._weight: Any = None
        if weight is not None:
            self._weight = np.asarray(weight, np.float32)
        row_bytes = 4 * int(np.prod(X.shape[1:]))
        fitting = BLOCK_BYTES // max(row_bytes * batch_size, 1)
        self.batches_per_block = min(max(fitting, 1), BLOCK_BATCHES)

    @property
    def is_weighted(self) -> bool:
        """Whether the rows have weights."""
        return self._weight is not None

    def load(
        self, loaded: dict[tuple[int, str], tuple[Any, Tensor]] | None = None
    ) -> None:
        """Move to the device what stays there, as the first batch would otherwise.

        Parameters
        ----------
        loaded : dict, default=None
            What was made of which array. Batches that are given the same one share it.
            It should not outlive a training: an array may be changed in place later.
        """
        if self._is_loaded or not self._stays:
            return
        loaded = {} if loaded is None else loaded

        def move(source: Any) -> Tensor:
            key = id(source), str(self.device)
            if key not in loaded:
                tensor = source if isinstance(source, Tensor) else as_tensor(source)
                tensor = as_single(tensor)
                # The source besides, lest its id becomes another's.
                loaded[key] = source, tensor.to(self.device)
            return loaded[key][1]

        self._X, self._y = move(self._X), move(self._y)
        if self._weight is not None:
            self._weight = move(self._weight)
        self._is_loaded = True

    def __len__(self) -> int:
        return len(self.batch_sizes(self.n_rows))

    def batch_sizes(self, n_rows: int) -> list[int]:
        """Return the sizes of the batches that `n_rows` rows make."""
        parts = gen_batches(
            n_rows, self.batch_size, min_batch_size=min(self.min_batch_size, n_rows)
        )
        return [part.stop - part.start for part in parts]

    def block(self, start: int) -> slice:
        """Return the rows of the block of batches that begins at row `start`.

        Parameters
        ----------
        start : int
            A multiple of the rows of `batches_per_block` batches.

        Returns
        -------
        slice
            Empty where the block before took the last rows along.
        """
        least = min(self.min_batch_size, self.n_rows)
        end = start + self.batches_per_block * self.batch_size
        if start > 0 and self.n_rows - start < least:
            return slice(start, start)
        return slice(start, self.n_rows if self.n_rows - end < least else end)

    def order(self) -> Order:
        """Return the rows in the order of a pass; None for all, as they lie."""
        order = self.indices
        if self.shuffle:
            if self.random_state is None:
                order = torch.randperm(self.n_rows).numpy()
            else:
                order = self.random_state.permutation(self.n_rows)
            if self.indices is not None:
                order = self.indices[order]
        if order is None or not self._stays:
            return order
        # It travels once a pass, not once a block.
        return as_tensor(order).to(self.device)

    def gather(
        self, order: Order, places: slice
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Return rows, labels and weights at `places` of `order`, on the device."""
        self.load()
        rows = places if order is None else order[places]
        weight = None if self._weight is None else self._take(self._weight, rows)
        return self._take(self._X, rows), self._take(self._y, rows), weight

    def _take(self, values: Any, rows: Any) -> Tensor:
        if sparse.issparse(values):
            tensor = as_tensor(values[rows].toarray())
        elif isinstance(rows, slice):
            values = values[rows]
            tensor = values if isinstance(values, Tensor) else as_tensor(values)
        elif isinstance(values, Tensor):
            index = rows if isinstance(rows, Tensor) else torch.from_numpy(rows)
            tensor = torch.index_select(values, 0, index.to(values.device))
        else:  # Several times as fast as an index in brackets.
            tensor = as_tensor(np.asarray(values).take(rows, axis=0))
        return as_single(tensor).to(self.device)

    def __iter__(self) -> Iterator[tuple[Tensor, Target]]:
        order = self.order()
        for start in range(0, self.n_rows, self.batches_per_block * self.batch_size):
            rows = self.block(start)
            if rows.start == rows.stop:
                return
            sizes = self.batch_sizes(rows.stop - rows.start)
            x, y, w = self.gather(order, rows)
            pairs = zip(x.split(sizes), y.split(sizes), strict=True)
            if w is None:
                yield from pairs
            else:
                for (x_batch, y_batch), w_batch in zip(
                    pairs, w.split(sizes), strict=True
                ):
                    yield x_batch, (y_batch, w_batch)
