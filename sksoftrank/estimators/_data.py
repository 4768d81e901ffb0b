"""From what a user passes to what a net trains on: rows, codes and weights."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import sparse
from sklearn.model_selection import train_test_split

Array = npt.NDArray[Any]


def encode(y: Array, classes: Array) -> npt.NDArray[np.int64]:
    """Return the codes of `y` among the sorted `classes`."""
    unknown = ~np.isin(y, classes)
    if unknown.any():
        raise ValueError(
            f"y must hold only the classes {classes.tolist()}, got "
            f"{np.unique(y[unknown]).tolist()} too. Name all classes in the first call "
            "of partial_fit."
        )
    return np.searchsorted(classes, y).astype(np.int64, copy=False)


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
