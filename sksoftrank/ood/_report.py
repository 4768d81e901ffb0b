"""What is left of a classifier's accuracy under shifts, with intervals."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import stats
from sklearn.exceptions import NotFittedError
from sklearn.utils import check_random_state
from sklearn.utils.validation import (
    check_is_fitted,
)

from sksoftrank._checks import as_labels, naming
from sksoftrank._sklearn import _num_samples, _validate_params
from sksoftrank.ood._calibration import (
    as_proba,
    calibration_error,
    check_positive_int,
    encode,
    excess_confidence,
    sums_by_group,
)
from sksoftrank.shifts import put_columns, shift_name

FloatArray = npt.NDArray[np.float64]
Record = dict[str, Any]

# What a record of `ood_report` measures, and the range of each.
_RANGES = {
    "accuracy": (0.0, 1.0),
    "balanced_accuracy": (0.0, 1.0),
    "log_loss": (0.0, np.inf),
    "expected_calibration_error": (0.0, 1.0),
    "accuracy_gap": (-1.0, 1.0),
}


# Resamples at a time, which are in memory together.
_BATCH = 10


@dataclass
class _Outcome:
    """What a classifier made of some rows: one entry a row."""

    codes: npt.NDArray[np.intp]  # Column of the right class.
    is_right: FloatArray
    loss: FloatArray | None  # -log of the right class's probability.
    excess: FloatArray | None  # Confidence less whether it is right.
    bins: npt.NDArray[np.intp] | None
    n_classes: int
    n_bins: int

    def measure(self, rows: npt.NDArray[np.intp]) -> dict[str, FloatArray]:
        """Return what can be measured, less the gap, of sets of rows (..., n)."""
        codes, is_right = self.codes[rows], self.is_right[rows]
        support = sums_by_group(codes, np.ones(rows.shape), self.n_classes)
        right = sums_by_group(codes, is_right, self.n_classes)
        recalls = (right / np.maximum(support, 1)).sum(axis=-1)
        values = {
            "accuracy": is_right.mean(axis=-1),
            "balanced_accuracy": recalls / (support > 0).sum(axis=-1),
        }
        if self.loss is not None and self.excess is not None and self.bins is not None:
            values["log_loss"] = self.loss[rows].mean(axis=-1)
            values["expected_calibration_error"] = calibration_error(
                self.excess[rows], self.bins[rows], self.n_bins
            )
        return values


def ood_report(
    estimator: Any,
    X_id: Any,
    y_id: npt.ArrayLike,
    shifted: Mapping[str, Any] | Iterable[Any],
    *,
    severities: Sequence[int] = (1, 2, 3, 4, 5),
    n_bins: int = 15,
    n_resamples: int = 200,
    confidence_level: float = 0.95,
    random_state: int | np.random.RandomState | None = 0,
) -> list[Record]:
    """Measure a fitted classifier in distribution and under each shift.

    Parameters
    ----------
    estimator : classifier
        Fitted. Without `predict_proba`, log-loss and calibration error are NaN.
    X_id : array-like of shape (n, n_features)
        In-distribution rows that it was not trained on.
    y_id : array-like of shape (n,)
        Their labels.
    shifted : dict, or iterable of transformers
        A dictionary from a name to the rows of a domain, as a tuple ``(X, y)``, or to a
        transformer from `sksoftrank.shifts` or `sksoftrank.corruptions`; or
        transformers alone, named by their kind or class. Transformers are applied to
        `X_id` at each severity: as they are fitted, or fitted on `X_id`.
    severities : sequence of int, default=(1, 2, 3, 4, 5)
        Severities of the transformers, whose own is not used.
    n_bins : int, default=15
        Bins of the calibration error.
    n_resamples : int, default=200
        Bootstrap resamples of the rows, at least 2.
    confidence_level : float, default=0.95
        In (0, 1). Of the intervals.
    random_state : int, RandomState instance or None, default=0
        Seeds the bootstrap, and those shifts that have no seed of their own.

    Returns
    -------
    list of dict
        A record for the in-distribution rows, then one for each domain or severity of a
        shift: ``domain``, ``severity`` (0 in distribution, None for a domain),
        ``n_samples``, and the measures ``accuracy``, ``balanced_accuracy`` (mean recall
        of the classes among the labels), ``log_loss`` (natural logarithm),
        ``expected_calibration_error``, and ``accuracy_gap``: accuracy in distribution
        less the accuracy here. With each measure ``<measure>_low`` and
        ``<measure>_high``.

    Raises
    ------
    ValueError
        If a domain holds labels that the estimator does not know, or less than two
        rows, or a parameter is out of range.

    Notes
    -----
    The interval of the accuracy is Wilson's. The others are normal, with the
    bootstrap's standard error, cut off at the range of the measure: percentiles of a
    resampled calibration error lie above it, since a resample is noisier. For the gap
    under a transformer both accuracies are resampled together, row by row. Intervals
    know the noise of the rows, and not that of training: fit several seeds for that.

    References
    ----------
    Wilson (1927), "Probable inference, the law of succession, and statistical
    inference", JASA 22.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from sklearn.linear_model import LogisticRegression
    >>> from sksoftrank.ood import ood_report
    >>> from sksoftrank.shifts import GaussianNoise
    >>> X, y = load_iris(return_X_y=True)
    >>> clf = LogisticRegression(max_iter=1000).fit(X[::2], y[::2])
    >>> records = ood_report(clf, X[1::2], y[1::2], [GaussianNoise()], severities=[5])
    >>> [(record["domain"], record["severity"]) for record in records]
    [('in-distribution', 0), ('GaussianNoise', 5)]
    >>> records[0]["accuracy"] > records[1]["accuracy"]
    True
    """
    check_positive_int("n_bins", n_bins, "Use 15 for the usual number.")
    if not isinstance(n_resamples, Integral) or n_resamples < 2:
        raise ValueError(
            f"n_resamples must be an int of at least 2, got {n_resamples!r}. Use 200."
        )
    if not isinstance(confidence_level, Real) or not 0.0 < confidence_level < 1.0:
        raise ValueError(
            f"confidence_level must be in (0, 1), got {confidence_level!r}. Use 0.95 "
            "for 95 % intervals."
        )
    if not hasattr(estimator, "classes_"):
        raise ValueError(
            "estimator must be a fitted classifier, got "
            f"{estimator!r}. Pass one, after fit."
        )
    with naming(random_state, "random_state", expected="an int, a RandomState or None"):
        rng = check_random_state(random_state)
    seed, shift_seed = rng.randint(np.iinfo(np.int32).max, size=2).tolist()
    baseline = _outcome(estimator, X_id, y_id, n_bins, "y_id")

    def record(name: str, severity: int | None, outcome: _Outcome) -> Record:
        n = len(outcome.codes)

        def measure(own: Any, rows: Any) -> dict[str, FloatArray]:
            values = outcome.measure(rows)
            gap = baseline.is_right[own].mean(axis=-1) - values["accuracy"]
            return values | {"accuracy_gap": gap}

        samples = np.arange(len(baseline.codes)), np.arange(n)
        values = measure(*samples)
        errors = stats.bootstrap(
            samples,
            lambda *rows, axis: np.stack([*measure(*rows).values()]),
            n_resamples=n_resamples,
            batch=_BATCH,
            vectorized=True,
            paired=severity is not None,  # Of a shift: the same rows.
            method="percentile",
            rng=seed,
        ).standard_error
        half_widths = stats.norm.ppf((1 + confidence_level) / 2) * errors
        widths = dict(zip(values, half_widths, strict=True))
        entry: Record = {"domain": name, "severity": severity, "n_samples": n}
        for key, (low, high) in _RANGES.items():
            value, half_width = values.get(key, np.nan), widths.get(key, np.nan)
            bounds = (value - half_width, value + half_width)
            if key == "accuracy":
                n_right = int(outcome.is_right.sum())
                bounds = stats.binomtest(n_right, n).proportion_ci(
                    confidence_level, method="wilson"
                )
            entry[key] = float(value)
            entry[f"{key}_low"] = float(np.maximum(bounds[0], low))
            entry[f"{key}_high"] = float(np.minimum(bounds[1], high))
        return entry

    records = [record("in-distribution", 0, baseline)]
    for name, source in _name_sources(shifted).items():
        if hasattr(source, "transform"):
            for severity in severities:
                X = _shift_rows(source, severity, X_id, shift_seed)
                outcome = _outcome(estimator, X, y_id, n_bins, "y_id")
                records.append(record(name, severity, outcome))
        else:
            outcome = _outcome(estimator, *source, n_bins, f"y of {name!r}")
            records.append(record(name, None, outcome))
    return records


def _name_sources(shifted: Mapping[str, Any] | Iterable[Any]) -> dict[str, Any]:
    """Return domains (X, y) and shifts by name."""
    if isinstance(shifted, Mapping):
        sources = dict(shifted)
    else:
        shifts = list(shifted)
        sources = {shift_name(shift): shift for shift in shifts}
        if len(sources) < len(shifts):
            raise ValueError(
                "shifted must give each shift a name, got several of one among "
                f"{[shift_name(shift) for shift in shifts]}. Pass a dictionary from "
                "names to shifts."
            )
    for name, source in sources.items():
        if hasattr(source, "transform"):
            if "severity" not in source.get_params():
                raise ValueError(
                    f"shifted must hold transformers with a severity, got {source!r} "
                    f"for {name!r}. Apply it yourself, and pass (X, y)."
                )
        elif not isinstance(source, tuple | list) or len(source) != 2:
            raise ValueError(
                "shifted must hold a pair (X, y) or a transformer from "
                f"sksoftrank.shifts for each name, got {type(source).__name__} for "
                f"{name!r}. Pass a dictionary such as {{'march': (X, y)}}."
            )
    return sources


def _shift_rows(shift: Any, severity: int, X: Any, seed: int) -> Any:
    own = copy.deepcopy(shift).set_params(severity=severity)
    if own.get_params().get("random_state", seed) is None:
        own.set_params(random_state=seed)
    # Rows of the kind that came, whatever output is set for all transformers.
    own.set_output(transform="default")
    try:
        # Its scale may be that of other rows, such as the training rows.
        check_is_fitted(own)
    except NotFittedError:
        own.fit(X)
    _validate_params(own)  # Nothing else checks the severity of a fitted one.
    # The estimator may know the columns by name.
    return put_columns(X, own.transform(X))


def _outcome(estimator: Any, X: Any, y: Any, n_bins: int, name: str) -> _Outcome:
    labels = as_labels(name, y, _num_samples(X))
    n = len(labels)
    if n < 2:
        raise ValueError(
            f"{name} must hold at least two labels, as an interval needs, got {n}. "
            "Leave it out, or join it with others."
        )
    classes = np.asarray(estimator.classes_)
    codes = encode(name, labels, classes)
    is_right = (np.asarray(estimator.predict(X)) == labels).astype(np.float64)
    loss, excess, bins = None, None, None
    if hasattr(estimator, "predict_proba"):
        proba = np.asarray(estimator.predict_proba(X))
        P = as_proba(proba)
        # As scikit-learn's log_loss: zero is a probability too small for its type.
        eps = np.finfo(proba.dtype).eps if proba.dtype.kind == "f" else 1e-16
        loss = -np.log(np.clip(P[np.arange(n), codes], eps, 1.0 - eps))
        excess, bins = excess_confidence(codes, P, n_bins)
    return _Outcome(codes, is_right, loss, excess, bins, len(classes), n_bins)
