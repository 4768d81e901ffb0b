"""Batches cut from arrays in memory, without a call for every row.

A DataLoader indexes its dataset row by row and stacks the rows again, which costs more
than a small network's step. Here the rows of an epoch are gathered in permuted blocks
of a few megabytes, and a batch is a slice of a block. Blocks rather than one permuted
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
from torch.utils.data import DataLoader, Subset

# Rows gathered at a time: enough to make the call's cost vanish, little enough to
# stay near the cache.
BLOCK_BYTES = 4 << 20

Target = Tensor | tuple[Tensor, Tensor]


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
    """

    def __init__(
        self,
        X: Any,
        y: Any = None,
        sample_weight: npt.NDArray[Any] | None = None,
        length: int | None = None,
    ) -> None:
        super().__init__(X, y, length=length)
        self.sample_weight = sample_weight

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
    """Return an array as a tensor, in single precision unless `double` says otherwise.

    Without a copy where it can be: torch takes neither read-only memory nor negative
    strides.
    """
    if X.dtype == np.float64 and not double:
        X = X.astype(np.float32)
    X = np.ascontiguousarray(X)
    return torch.from_numpy(X if X.flags.writeable else X.copy())


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
        Where the batches go. Elsewhere than on the CPU, dense rows are moved there
        once and stay.
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
        if self.device.type != "cpu" and not sparse.issparse(X):
            tensor = X if isinstance(X, Tensor) else as_tensor(np.asarray(X))
            self._X = tensor.to(self.device)
        # A placeholder where there is no target: skorch unpacks pairs.
        self._y = np.zeros(len(dataset), np.int64) if y is None else y
        self._weight = None if weight is None else np.asarray(weight, np.float32)
        row_bytes = 4 * int(np.prod(X.shape[1:]))
        rows = max(BLOCK_BYTES // max(row_bytes, 1), 1)
        self._batches_per_block = max(rows // batch_size, 1)

    def __len__(self) -> int:
        return len(self._slices())

    def _slices(self) -> list[slice]:
        return list(
            gen_batches(
                self.n_rows,
                self.batch_size,
                min_batch_size=min(self.min_batch_size, self.n_rows),
            )
        )

    def _order(self) -> npt.NDArray[np.intp] | None:
        if not self.shuffle:
            return self.indices
        if self.random_state is None:
            order = torch.randperm(self.n_rows).numpy()
        else:
            order = self.random_state.permutation(self.n_rows)
        return order if self.indices is None else self.indices[order]

    def _gather(self, values: Any, rows: Any) -> Tensor:
        if isinstance(values, Tensor):
            index = rows if isinstance(rows, slice) else torch.from_numpy(rows)
            tensor = values[index]
            return tensor.float() if tensor.dtype == torch.float64 else tensor
        if sparse.issparse(values):
            return as_tensor(values[rows].toarray())
        return as_tensor(np.asarray(values[rows]))

    def __iter__(self) -> Iterator[tuple[Tensor, Target]]:
        order = self._order()
        slices = self._slices()
        for first in range(0, len(slices), self._batches_per_block):
            members = slices[first : first + self._batches_per_block]
            block = slice(members[0].start, members[-1].stop)
            rows = block if order is None else order[block]
            sizes = [member.stop - member.start for member in members]
            x = self._gather(self._X, rows).to(self.device).split(sizes)
            y = self._gather(self._y, rows).to(self.device).split(sizes)
            if self._weight is None:
                yield from zip(x, y, strict=True)
            else:
                w = self._gather(self._weight, rows).to(self.device).split(sizes)
                yield from zip(x, zip(y, w, strict=True), strict=True)


def make_batches(
    dataset: Any,
    batch_size: int = 128,
    *,
    shuffle: bool = False,
    random_state: np.random.Generator | int | None = None,
    min_batch_size: int = 1,
    device: str | torch.device = "cpu",
    **loader_params: Any,
) -> InMemoryBatches | DataLoader[Any]:
    """Return batches from memory where that can be, a DataLoader elsewhere.

    Parameters
    ----------
    dataset : Dataset
        An `InMemoryDataset`, a `Subset` of one, or any torch dataset.
    batch_size : int, default=128
        Rows in a batch.
    shuffle : bool, default=False
        Whether each pass has an order of its own.
    random_state : numpy Generator, int or None, default=None
        Where the order comes from; None draws from torch's global generator.
    min_batch_size : int, default=1
        A smaller last batch joins the one before; in memory only.
    device : str or torch.device, default="cpu"
        Where batches from memory go.
    **loader_params : dict
        Anything else asks for a :class:`torch.utils.data.DataLoader`, and is handed
        to it.

    Returns
    -------
    InMemoryBatches or DataLoader
        Iterable over pairs.
    """
    source = dataset.dataset if isinstance(dataset, Subset) else dataset
    if isinstance(source, InMemoryDataset) and source.in_memory and not loader_params:
        return InMemoryBatches(
            dataset,
            batch_size,
            shuffle=shuffle,
            random_state=random_state,
            min_batch_size=min_batch_size,
            device=device,
        )
    if shuffle and random_state is not None and "generator" not in loader_params:
        seed = np.random.default_rng(random_state).integers(2**31)
        loader_params["generator"] = torch.Generator().manual_seed(int(seed))
    if isinstance(dataset, torch.utils.data.IterableDataset):
        shuffle = False
    return DataLoader(dataset, batch_size, shuffle=shuffle, **loader_params)
