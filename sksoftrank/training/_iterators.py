"""The batches of a dataset, by what the dataset is."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Subset, default_collate

from sksoftrank.training._batches import (
    InMemoryBatches,
    InMemoryDataset,
    as_single,
)
from sksoftrank.training._stream import StreamBatches, StreamDataset


def make_batches(
    dataset: Any,
    batch_size: int = 128,
    *,
    shuffle: bool = False,
    random_state: np.random.Generator | int | None = None,
    min_batch_size: int = 1,
    device: str | torch.device | None = "cpu",
    **loader_params: Any,
) -> InMemoryBatches | StreamBatches | DataLoader[Any]:
    """Return batches from memory or from a stream, a DataLoader for anything else.

    Parameters
    ----------
    dataset : Dataset
        An `InMemoryDataset`, a `Subset` of one, a `StreamDataset`, or any torch
        dataset.
    batch_size : int, default=128
        Rows in a batch.
    shuffle : bool, default=False
        Whether each pass has an order of its own.
    random_state : numpy Generator, int or None, default=None
        Where the order comes from; None draws from torch's global generator.
    min_batch_size : int, default=1
        A smaller last batch joins the one before; not of a DataLoader.
    device : str, torch.device or None, default="cpu"
        Where batches go; those of a DataLoader stay. None asks for a DataLoader, which
        a library that places them itself, such as Accelerate, can split.
    **loader_params : dict
        Anything else asks for a :class:`torch.utils.data.DataLoader`, and is handed
        to it.

    Returns
    -------
    InMemoryBatches, StreamBatches or DataLoader
        Iterable over pairs.

    Examples
    --------
    >>> import numpy as np
    >>> from sksoftrank.training import InMemoryDataset, make_batches
    >>> dataset = InMemoryDataset(np.zeros((5, 2)), np.arange(5))
    >>> type(make_batches(dataset, batch_size=2)).__name__
    'InMemoryBatches'
    >>> type(make_batches(dataset, batch_size=2, drop_last=True)).__name__
    'DataLoader'
    """
    if device is None or loader_params:
        return _make_loader(dataset, batch_size, shuffle, random_state, loader_params)
    if isinstance(dataset, StreamDataset):
        return StreamBatches(
            dataset,
            batch_size,
            shuffle=shuffle,
            random_state=random_state,
            min_batch_size=min_batch_size,
            device=device,
        )
    source = dataset.dataset if isinstance(dataset, Subset) else dataset
    if isinstance(source, InMemoryDataset) and source.in_memory:
        return InMemoryBatches(
            dataset,
            batch_size,
            shuffle=shuffle,
            random_state=random_state,
            min_batch_size=min_batch_size,
            device=device,
        )
    return _make_loader(dataset, batch_size, shuffle, random_state, loader_params)


def _make_loader(
    dataset: Any,
    batch_size: int,
    shuffle: bool,
    random_state: np.random.Generator | int | None,
    loader_params: dict[str, Any],
) -> DataLoader[Any]:
    if shuffle and random_state is not None and "generator" not in loader_params:
        seed = np.random.default_rng(random_state).integers(2**31)
        loader_params["generator"] = torch.Generator().manual_seed(int(seed))
    if isinstance(dataset, torch.utils.data.IterableDataset):
        shuffle = False
    source = dataset.dataset if isinstance(dataset, Subset) else dataset
    if isinstance(source, InMemoryDataset | StreamDataset):
        loader_params.setdefault("collate_fn", collate_numbers)
    return DataLoader(dataset, batch_size, shuffle=shuffle, **loader_params)


def collate_numbers(pairs: list[Any]) -> Any:
    """Stack pairs as torch does, with numbers in single precision, as from memory."""
    return _shorten(default_collate(pairs))


def _shorten(batch: Any) -> Any:
    if isinstance(batch, torch.Tensor):
        return as_single(batch)
    if isinstance(batch, dict):
        return {name: _shorten(part) for name, part in batch.items()}
    return [_shorten(part) for part in batch] if isinstance(batch, list) else batch
