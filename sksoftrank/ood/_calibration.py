"""How far a classifier's confidence is from its accuracy."""

from __future__ import annotations

import math
from numbers import Integral
from typing import Any

import numpy as np
import numpy.typing as npt

from sksoftrank._checks import as_labels, as_matrix, as_numbers, read_labels

Array = npt.NDArray[Any]
FloatArray = npt.NDArray[np.float64]


def expected_calibration_error(
    y_true: npt.ArrayLike,
    proba: npt.ArrayLike,
    n_bins: int = 15,
    *,
    classes: npt.ArrayLike | None = None,
) -> float:
    """Mean distance between a classifier's confidence and its accuracy.

    Rows are put into bins of equal width by the probability of the most probable class,
    their confidence: ``sum(n_b / n * abs(accuracy_b - confidence_b))``.

    Parameters
    ----------
    y_true : array-like of shape (n,)
        Labels.
    proba : array-like of shape (n, n_classes) or (n,)
        Probabilities from `predict_proba`. A vector holds those of the second of two
        classes.
    n_bins : int, default=15
        Bins ``((b - 1) / n_bins, b / n_bins]``. More of them see finer errors, but with
        few rows in each chance adds to the result.
    classes : array-like of shape (n_classes,), default=None
        Labels of the columns, ``classes_`` of the classifier; None takes those in
        `y_true`, sorted, which must then be all.

    Returns
    -------
    float
        In [0, 1]; lower is better calibrated. Biased upwards on few rows.

    Raises
    ------
    ValueError
        If `proba` does not hold a distribution over the classes for each label, or
        `n_bins` is not a positive int.

    References
    ----------
    Guo et al. (2017), "On calibration of modern neural networks", ICML, equation 3.

    Examples
    --------
    >>> from sksoftrank.ood import expected_calibration_error
    >>> expected_calibration_error([0, 1, 1, 1], [[0.25, 0.75]] * 4)
    0.0
    >>> expected_calibration_error([0, 0, 1, 1], [[0.25, 0.75]] * 4)
    0.25
    """
    check_positive_int("n_bins", n_bins, "Use 15 for the usual number.")
    P = as_proba(proba)
    y = as_labels("y_true", y_true, len(P))
    columns = np.unique(y) if classes is None else read_labels("classes", classes)
    if columns.shape != (P.shape[1],):
        raise ValueError(
            f"proba must have a column for each class, got {P.shape[1]} columns and "
            f"the classes {columns.tolist()}. Pass classes=estimator.classes_."
        )
    excess, bins = excess_confidence(encode("y_true", y, columns), P, n_bins)
    return float(calibration_error(excess, bins, n_bins))


def check_positive_int(name: str, value: Any, fix: str) -> None:
    if not isinstance(value, Integral) or isinstance(value, bool) or value < 1:
        raise ValueError(f"{name} must be a positive int, got {value!r}. {fix}")


def as_proba(proba: Any) -> FloatArray:
    """Return probabilities (n, n_classes) in double precision, checked."""
    P = as_numbers("proba", proba)
    if P.ndim == 1:
        P = np.column_stack([1.0 - P, P])
    P = as_matrix("proba", P)
    # The slack is for probabilities in half precision, or printed and read again.
    if P.min() < 0.0 or np.abs(P.sum(axis=1) - 1.0).max() > 1e-3:
        raise ValueError(
            "proba must be non-negative and sum to 1 in each row, got values from "
            f"{P.min():g} to {P.max():g} and sums from {P.sum(axis=1).min():g} to "
            f"{P.sum(axis=1).max():g}. Pass the output of predict_proba, not logits."
        )
    return P


def encode(name: str, y: Array, classes: Array) -> npt.NDArray[np.intp]:
    """Return the column of each label; `classes` need not be sorted."""
    unknown = ~np.isin(y, classes)
    if unknown.any():
        raise ValueError(
            f"{name} must hold only the classes {classes.tolist()}, got "
            f"{np.unique(y[unknown]).tolist()} too. Drop those rows: no classifier can "
            "be right on a class it was not trained on."
        )
    order = np.argsort(classes)
    return order[np.searchsorted(classes, y, sorter=order)]


def excess_confidence(
    codes: npt.NDArray[np.intp], P: FloatArray, n_bins: int
) -> tuple[FloatArray, npt.NDArray[np.intp]]:
    """Return each row's confidence less whether it is right, and its bin."""
    top = P.argmax(axis=1)
    confidence = P[np.arange(len(P)), top]
    edges = np.linspace(0.0, 1.0, n_bins + 1)[1:-1]
    return confidence - (top == codes), np.searchsorted(edges, confidence, side="left")


def calibration_error(
    excess: FloatArray, bins: npt.NDArray[np.intp], n_bins: int
) -> FloatArray:
    """Return the error of each set of rows (..., n)."""
    # n_b * (confidence_b - accuracy_b) is a sum over the bin: no bin is divided by.
    sums = sums_by_group(bins, excess, n_bins)
    return np.asarray(np.abs(sums).sum(axis=-1) / excess.shape[-1])


def sums_by_group(
    groups: npt.NDArray[np.intp], values: FloatArray, n_groups: int
) -> FloatArray:
    """Return the sums (..., n_groups) of values (..., n) along the last axis."""
    *sets, n = groups.shape
    offsets = n_groups * np.arange(math.prod(sets))[:, None]
    places = (groups.reshape(-1, n) + offsets).ravel()
    sums = np.bincount(places, values.ravel(), n_groups * len(offsets))
    return sums.reshape(*sets, n_groups).astype(np.float64, copy=False)
