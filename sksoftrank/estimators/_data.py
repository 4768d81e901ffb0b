"""From what a user passes to what a net trains on: rows, codes and weights."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import sparse
from sklearn.model_selection import train_test_split
from sklearn.utils import check_random_state
from torch.utils.data import Subset

from sksoftrank.training import InMemoryDataset, StreamDataset
from sksoftrank.training._stream import sample_stream

Array = npt.NDArray[Any]
FloatArray = npt.NDArray[np.float64]
Rows = InMemoryDataset | Subset[Any]
# Rows that the basis of the embedding is computed from, at most: ample for the leading
# directions among a few hundred, and a fit of any size pays little for it.
BASIS_ROWS = 4096


def encode(
    y: Array,
    classes: Array,
    remedy: str = "Name all classes in the first call of partial_fit.",
) -> npt.NDArray[np.int64]:
    """Return the codes of `y` among the sorted `classes`."""
    unknown = ~np.isin(y, classes)
    if unknown.any():
        raise ValueError(
            f"y must hold only the classes {classes.tolist()}, got "
            f"{np.unique(y[unknown]).tolist()} too. {remedy}"
        )
    return np.searchsorted(classes, y).astype(np.int64, copy=False)


def check_range(X: Any) -> None:
    """Refuse numbers that training, in single precision, would take for infinite."""
    values = X.data if sparse.issparse(X) else X
    if values.dtype != np.float64 or not values.size:
        return
    most = float(np.finfo(np.float32).max)
    for value in (values.max(), values.min()):
        if abs(value) > most:
            raise ValueError(
                f"X must hold numbers between -{most:.2g} and {most:.2g}, as training "
                f"is in single precision, got {value:.3g}. Scale its columns, e.g. "
                "with StandardScaler."
            )


def merge_duplicates(
    X: Any, codes: npt.NDArray[np.int64], weight: npt.NDArray[np.float64]
) -> tuple[Any, npt.NDArray[np.int64], npt.NDArray[np.float64]]:
    """Return each distinct pair of row and code once, with its summed weight.

    In an order that depends on the rows alone. A weight of two and the row twice, in
    any place, then lead to the same sums in the same order: the same fit.
    """
    if sparse.issparse(X):
        X = X.sorted_indices()
        bounds = list(zip(X.indptr[:-1], X.indptr[1:], strict=True))
        rows = [X.indices[a:b].tobytes() + X.data[a:b].tobytes() for a, b in bounds]
    else:
        rows = [row.tobytes() for row in X]
    groups: dict[tuple[int, bytes], list[int]] = {}
    for index, key in enumerate(zip(codes.tolist(), rows, strict=True)):
        groups.setdefault(key, []).append(index)
    members = [groups[key] for key in sorted(groups)]
    first = np.array([group[0] for group in members])
    return X[first], codes[first], np.array([weight[group].sum() for group in members])


def split_validation(
    codes: npt.NDArray[np.int64], fraction: float, seed: int
) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]:
    """Return the rows to train on and those to validate on.

    Stratified where every class can be on both sides.
    """
    counts = np.bincount(codes)
    counts = counts[counts > 0]
    n_valid = int(np.ceil(fraction * len(codes)))
    if not 0 < n_valid < len(codes):
        raise ValueError(
            f"validation_fraction={fraction} must leave rows both to train on and to "
            f"validate on, got {n_valid} of {len(codes)} rows (different, and of "
            "positive weight) to validate on. Change it, or set early_stopping=False."
        )
    can_stratify = counts.min() >= 2 and len(counts) <= min(
        n_valid, len(codes) - n_valid
    )
    train, valid = train_test_split(
        np.arange(len(codes)),
        test_size=fraction,
        random_state=seed,
        stratify=codes if can_stratify else None,
    )
    return train, valid


def draw_seeds(
    random_state: int | np.random.RandomState | None, n_seeds: int
) -> list[int]:
    """Return seeds, so that no global generator is used."""
    if random_state is None:
        random_state = np.random.RandomState()  # Fresh entropy, not numpy's global one.
    rng = check_random_state(random_state)
    return rng.randint(np.iinfo(np.int32).max, size=n_seeds).tolist()


def make_dataset(
    X: Any,
    codes: npt.NDArray[np.int64],
    weight: FloatArray | None,
    rows: npt.NDArray[np.intp] | None = None,
) -> Rows:
    """Return all rows as a dataset, or a part of them without a copy.

    The weights have mean one over the rows of the dataset.
    """
    if weight is not None:
        weight = weight / (weight if rows is None else weight[rows]).mean()
    dataset = InMemoryDataset(X, codes, weight)
    return dataset if rows is None else Subset(dataset, rows)  # type: ignore[arg-type]


def sample_rows(
    dataset: Rows | StreamDataset, seed: int
) -> tuple[Any, npt.NDArray[np.int64], FloatArray | None]:
    """Return at most `BASIS_ROWS` rows, codes and weights of a dataset.

    Of all that it is a part of: rows held out tell more of new rows than as many that
    were trained on.
    """
    if isinstance(dataset, StreamDataset):
        X, codes = sample_stream(dataset.chunks(), BASIS_ROWS, seed)
        by_class = dataset.class_weight
        return X, codes, None if by_class is None else by_class[codes]
    source: Any = dataset.dataset if isinstance(dataset, Subset) else dataset
    X, codes, weight = source.X, source.y, source.sample_weight
    if X.shape[0] > BASIS_ROWS:
        rng = np.random.default_rng(seed)
        rows = np.sort(rng.choice(X.shape[0], BASIS_ROWS, replace=False))
        X, codes = X[rows], codes[rows]
        weight = None if weight is None else weight[rows]
    return X, codes, weight
