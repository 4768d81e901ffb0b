"""From matrices and labels to what a net trains on: rows, codes and weights."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from numbers import Real
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import sparse
from sklearn.model_selection import (
    GroupShuffleSplit,
    ShuffleSplit,
    StratifiedShuffleSplit,
)
from sklearn.utils import (
    check_random_state,
    compute_class_weight,
)
from sklearn.utils.multiclass import check_classification_targets
from torch.utils.data import Subset

from sksoftrank._checks import as_labels, read_labels
from sksoftrank._sklearn import check_weights
from sksoftrank.estimators._input import check_range
from sksoftrank.estimators._sources import is_arrow
from sksoftrank.training import InMemoryDataset, StreamDataset
from sksoftrank.training._stream import sample_stream

Array = npt.NDArray[Any]
Codes = npt.NDArray[np.int64]
FloatArray = npt.NDArray[np.float64]
Rows = InMemoryDataset | Subset[Any]
ClassWeight = dict[Any, float] | str | None
# Of so few rows, or of no more than a batch, equal ones are merged: a weight is then
# repetition to the last bit, and not only over many steps.
MERGED_ROWS = 64
# More is infinite, an int's digits notwithstanding.
LARGEST = float(np.finfo(np.float64).max)
# Rows that the basis of the embedding is computed from, at most: ample for the leading
# directions among a few hundred, and a fit of any size pays little for it.
BASIS_ROWS = 4096


def encode(
    y: Array,
    classes: Array,
    remedy: str = "Name all classes in the first call of partial_fit.",
) -> Codes:
    """Return the codes of `y` among the sorted `classes`."""
    unknown = ~np.isin(y, classes)
    if unknown.any():
        raise ValueError(
            f"y must hold only the classes {classes.tolist()}, got "
            f"{np.unique(y[unknown]).tolist()} too. {remedy}"
        )
    return np.searchsorted(classes, y).astype(np.int64, copy=False)


def check_classes(classes: Array, before: Array | None) -> None:
    """Refuse one class, and others than those `before` of a fit to go on from."""
    if len(classes) < 2:
        raise ValueError(
            "y must hold at least two classes, got one class, "
            f"{classes.tolist()[0]!r}. Add rows of another."
        )
    if before is not None and not np.array_equal(classes, before):
        raise ValueError(
            "warm_start=True needs the classes of the previous fit, "
            f"{before.tolist()}, got {classes.tolist()}. Set "
            "warm_start=False to start anew."
        )


def check_class_weight(class_weight: ClassWeight) -> None:
    """Refuse weights of classes that are none."""
    if not isinstance(class_weight, dict):
        return
    for label, weight in class_weight.items():
        if not (isinstance(weight, Real) and 0 <= weight <= LARGEST):
            raise ValueError(
                "class_weight must hold non-negative, finite numbers, got "
                f"{weight!r} for {label!r}. Use 0 to leave a class out."
            )


def count_rows(dataset: Rows | StreamDataset) -> int:
    """Return how many rows a pass over a dataset gives."""
    return dataset.n_rows if isinstance(dataset, StreamDataset) else len(dataset)


def check_batches(
    dataset: Rows | StreamDataset, batch_size: int, min_batch_size: int
) -> None:
    """Refuse batches that a module can't train on."""
    n_rows = count_rows(dataset)
    if min(batch_size, n_rows) < min_batch_size:
        raise ValueError(
            f"batch_size={batch_size} and {n_rows} rows of X (to train on, "
            "different, and of positive weight) must both be at least "
            f"{min_batch_size} for a module with batch normalization. "
            "Raise them, or use another normalization."
        )


def _all_weightless(class_weight: ClassWeight) -> ValueError:
    return ValueError(
        "class_weight must leave some row a positive weight, got "
        f"{class_weight!r}. Raise the weight of a class in y."
    )


def check_stream_settings(
    X: Any, target: Any, sample_weight: Any, early_stopping: bool, groups: Any = None
) -> None:
    """Refuse what takes rows held in memory."""
    if groups is not None:
        raise ValueError(
            "groups must be None where X is a Dataset, whose rows can't be held out, "
            f"got {type(groups).__name__}. Use arrays."
        )
    if sample_weight is not None:
        raise ValueError(
            "sample_weight must be None where X is a Dataset, got "
            f"{type(sample_weight).__name__}. Use class_weight, or arrays."
        )
    if early_stopping:
        raise ValueError(
            "early_stopping must be False where X is a Dataset, whose rows can't "
            "be held out, got True. Set max_epochs, or use arrays."
        )
    if is_arrow(X) and target is None:
        raise ValueError(
            "y must be the name of the labels' column where X is an Arrow dataset, "
            f"got None. Name one of {X.schema.names}, or pass a Table and an array."
        )


# -- Rows in memory --------------------------------------------------------------------


def from_arrays(
    X: Any,
    labels: Array,
    classes: Array | None,
    *,
    sample_weight: npt.ArrayLike | None,
    class_weight: ClassWeight,
    batch_size: int,
    groups: npt.ArrayLike | None = None,
) -> tuple[InMemoryDataset, Array]:
    """Return the rows that have a weight as a dataset, and the classes.

    `classes` are all that will come; None takes those of the labels. Of few rows,
    equal ones of a group are merged; where all weights are equal, there are none.
    """
    if classes is None:
        classes, codes = np.unique(labels, return_inverse=True)
        codes = codes.astype(np.int64, copy=False)
    else:
        codes = encode(labels, classes)
    if groups is not None:
        groups = as_labels("groups", groups, X.shape[0])
        groups = np.unique(groups, return_inverse=True)[1]
    n_merged = max(batch_size, MERGED_ROWS)
    if X.shape[0] > n_merged and sample_weight is class_weight is None:
        return InMemoryDataset(X, codes, groups=groups), classes
    weight = check_weights(sample_weight, X)
    if class_weight is not None:
        by_class = compute_class_weight(
            class_weight, classes=classes, y=classes[codes], sample_weight=weight
        )
        weight = weight * by_class[codes]
        if not weight.any():
            raise _all_weightless(class_weight)
    kept = weight > 0
    if not kept.all():
        X, codes, weight = X[kept], codes[kept], weight[kept]
        groups = None if groups is None else groups[kept]
    if X.shape[0] <= n_merged:
        X, codes, weight, groups = merge_duplicates(X, codes, weight, groups)
    if (weight == weight[0]).all():
        return InMemoryDataset(X, codes, groups=groups), classes
    weight = weight / weight.max()  # Sums of the largest would overflow.
    weight = weight / weight.mean()
    return InMemoryDataset(X, codes, weight, groups=groups), classes


def merge_duplicates(
    X: Any,
    codes: Codes,
    weight: npt.NDArray[np.float64],
    groups: Codes | None,
) -> tuple[Any, Codes, npt.NDArray[np.float64], Codes | None]:
    """Return each distinct row, with its code and group, once with its summed weight.

    In an order that depends on the rows alone. A weight of two and the row twice, in
    any place, then lead to the same sums in the same order: the same fit.
    """
    if sparse.issparse(X):
        X = X.copy()
        X.sum_duplicates()  # In order, too.
        X.eliminate_zeros()
        bounds = list(zip(X.indptr[:-1], X.indptr[1:], strict=True))
        rows = [X.indices[a:b].tobytes() + X.data[a:b].tobytes() for a, b in bounds]
    else:
        rows = [row.tobytes() for row in X + 0]  # No zero is negative.
    own = np.zeros_like(codes) if groups is None else groups
    equal: dict[tuple[int, int, bytes], list[int]] = {}
    for index, key in enumerate(zip(codes.tolist(), own.tolist(), rows, strict=True)):
        equal.setdefault(key, []).append(index)
    members = [equal[key] for key in sorted(equal)]
    first = np.array([places[0] for places in members])
    weight = np.array([weight[places].sum() for places in members])
    return X[first], codes[first], weight, None if groups is None else groups[first]


def split_validation(
    dataset: InMemoryDataset, fraction: float, seed: int
) -> tuple[Rows, Rows]:
    """Return the rows to train on and those to validate on, without a copy.

    Whole groups, where the dataset has any: that fraction of their number. Otherwise
    stratified where every class can be on both sides. The weights have mean one on
    each.
    """
    n_rows, groups = len(dataset), dataset.groups
    n_units = n_rows if groups is None else len(np.unique(groups))
    n_valid = math.ceil(fraction * n_units)
    if not 0 < n_valid < n_units:
        units = "rows" if groups is None else "groups of rows"
        raise ValueError(
            f"validation_fraction={fraction} must leave {units} both to train on and "
            f"to validate on, got {n_valid} of {n_units} {units} (different, and of "
            "positive weight) to validate on. Change it, or set early_stopping=False."
        )
    splitter: Any
    if groups is not None:
        splitter = GroupShuffleSplit
    else:
        counts = np.bincount(dataset.y)
        counts = counts[counts > 0]
        can_stratify = counts.min() >= 2 and len(counts) <= min(
            n_valid, n_rows - n_valid
        )
        splitter = StratifiedShuffleSplit if can_stratify else ShuffleSplit
    train, valid = next(
        splitter(1, test_size=fraction, random_state=seed).split(
            np.zeros(n_rows), dataset.y, groups
        )
    )
    return _part(dataset, train), _part(dataset, valid)


def split_folds(
    dataset: InMemoryDataset, n_folds: int, seed: int
) -> list[tuple[Rows, Rows]]:
    """Return for each fold the rows to train on and those held out.

    Each class is spread evenly over the folds, however few rows it has; of groups each
    is in one fold, and there are no more folds than groups.
    """
    rng = np.random.default_rng(seed)
    if dataset.groups is None:
        order = rng.permutation(len(dataset))
        order = order[np.argsort(dataset.y[order], kind="stable")]
        fold = np.empty_like(order)
        fold[order] = np.arange(len(order)) % n_folds
    else:
        names, groups = np.unique(dataset.groups, return_inverse=True)
        n_folds = min(n_folds, len(names))
        fold = (rng.permutation(len(names)) % n_folds)[groups]
    rows = [
        (np.flatnonzero(fold != k), np.flatnonzero(fold == k)) for k in range(n_folds)
    ]
    return [(_part(dataset, train), _part(dataset, valid)) for train, valid in rows]


def _part(dataset: InMemoryDataset, rows: npt.NDArray[np.intp]) -> Rows:
    weight = dataset.sample_weight
    if weight is not None:
        weight = weight / weight[rows].mean()
    whole: Any = InMemoryDataset(dataset.X, dataset.y, weight)
    return Subset(whole, rows)  # type: ignore[arg-type]


# -- Rows in passes --------------------------------------------------------------------


def from_stream(
    passes: Callable[[], Iterator[tuple[Array, Any]]],
    classes: Array | None,
    class_weight: ClassWeight,
) -> tuple[StreamDataset, Array]:
    """Return a stream as a dataset, and its classes, after a pass that checks it.

    `classes` are all that will come; None takes those of the pass.
    """
    counts: dict[Any, int] = {}
    for rows, labels in passes():
        check_range(rows)
        values, numbers = _count_labels(labels)
        for label, number in zip(values, numbers.tolist(), strict=True):
            counts[label] = counts.get(label, 0) + number
    if not counts:
        raise ValueError(
            "X must yield at least one row, got none. Check where it reads from."
        )
    n_rows = sum(counts.values())
    try:
        seen = np.array(sorted(counts))
    except TypeError as error:
        raise ValueError(
            "X must yield labels of one type, got "
            f"{sorted({type(label).__name__ for label in counts})}. Convert them."
        ) from error
    known = seen if classes is None else classes
    codes, by_class = encode(seen, known), None
    if class_weight is not None:
        weights = np.array([float(counts[label]) for label in sorted(counts)])
        by_class = compute_class_weight(
            class_weight, classes=known, y=seen, sample_weight=weights
        )
        total = by_class[codes] @ weights
        if total == 0:
            raise _all_weightless(class_weight)
        by_class = by_class * n_rows / total
    dataset = StreamDataset(
        lambda: ((rows, encode(np.asarray(y), known)) for rows, y in passes()),
        n_rows,
        by_class,
    )
    return dataset, known


def _count_labels(labels: Any) -> tuple[Array, npt.NDArray[np.intp]]:
    """Return the distinct labels of a stream's chunk and how often each comes."""
    labels = np.asarray(labels)
    if labels.ndim != 1:
        raise ValueError(
            "X must yield one label with each row, got labels of shape "
            f"{labels.shape[1:]}. Name the class."
        )
    labels = read_labels("y", labels)
    values, numbers = np.unique(labels, return_counts=True)
    # Twice each: it takes few rows of many classes for a regression's, and a chunk is
    # few rows.
    check_classification_targets(np.repeat(values, 2))
    return values, numbers


# -- What a fit draws ------------------------------------------------------------------


def draw_seeds(
    random_state: int | np.random.RandomState | None, n_seeds: int
) -> list[int]:
    """Return seeds, so that no global generator is used."""
    if random_state is None:
        random_state = np.random.RandomState()  # Fresh entropy, not numpy's global one.
    rng = check_random_state(random_state)
    return rng.randint(np.iinfo(np.int32).max, size=n_seeds).tolist()


def sample_rows(
    dataset: Rows | StreamDataset, seed: int, n_rows: int | None = None
) -> tuple[Any, Codes, FloatArray | None]:
    """Return at most `n_rows` rows, else `BASIS_ROWS`, with codes and weights.

    Of all that it is a part of: rows held out tell more of new rows than as many that
    were trained on.
    """
    n_rows = BASIS_ROWS if n_rows is None else n_rows
    if isinstance(dataset, StreamDataset):
        X, codes = sample_stream(dataset.chunks(), n_rows, seed)
        by_class = dataset.class_weight
        return X, codes, None if by_class is None else by_class[codes]
    source: Any = dataset.dataset if isinstance(dataset, Subset) else dataset
    X, codes, weight = source.X, source.y, source.sample_weight
    if X.shape[0] > n_rows:
        rng = np.random.default_rng(seed)
        rows = np.sort(rng.choice(X.shape[0], n_rows, replace=False))
        X, codes = X[rows], codes[rows]
        weight = None if weight is None else weight[rows]
    return X, codes, weight
