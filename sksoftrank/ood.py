"""Out of distribution: how well rows are told apart, and what accuracy is left there.

Scores of detectors are higher for rows that look more in-distribution, as in
scikit-learn's outlier detectors.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import stats
from sklearn.exceptions import NotFittedError
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score, get_scorer, roc_auc_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils import _safe_indexing, check_array, check_random_state
from sklearn.utils.validation import (
    _num_samples,
    check_consistent_length,
    check_is_fitted,
    column_or_1d,
)

__all__ = [
    "aupr_in",
    "aupr_out",
    "auroc",
    "detection_report",
    "expected_calibration_error",
    "fpr_at_tpr",
    "linear_probe_score",
    "make_ood_scorer",
    "ood_report",
    "threshold_at_tpr",
]

Array = npt.NDArray[Any]
FloatArray = npt.NDArray[np.float64]
Record = dict[str, Any]
Scorer = Callable[..., float]

# What a record of `ood_report` measures, and the range of each.
_RANGES = {
    "accuracy": (0.0, 1.0),
    "balanced_accuracy": (0.0, 1.0),
    "log_loss": (0.0, np.inf),
    "expected_calibration_error": (0.0, 1.0),
    "accuracy_gap": (-1.0, 1.0),
}


# -- Detection -----------------------------------------------------------------------


def _as_scores(name: str, scores: Any) -> FloatArray:
    """Return scores as a finite float64 vector of at least one."""
    values = np.asarray(scores, dtype=np.float64)
    if values.ndim != 1 or values.size == 0:
        raise ValueError(
            f"{name} must be a vector with the score of at least one row, got shape "
            f"{values.shape}. Pass the output of score_samples."
        )
    n_bad = np.count_nonzero(~np.isfinite(values))
    if n_bad:
        raise ValueError(
            f"{name} must be finite, got {n_bad} values that are NaN or infinite. Find "
            "out where they come from: dropped, they would flatter the detector."
        )
    return values


def _labelled(scores_id: Any, scores_ood: Any) -> tuple[Array, FloatArray]:
    """Return True for in-distribution rows, and all scores."""
    first = _as_scores("scores_id", scores_id)
    second = _as_scores("scores_ood", scores_ood)
    is_id = np.arange(len(first) + len(second)) < len(first)
    return is_id, np.concatenate([first, second])


def auroc(scores_id: npt.ArrayLike, scores_ood: npt.ArrayLike) -> float:
    """Area under the ROC curve, in-distribution rows being the positive class.

    The probability that an in-distribution row scores higher than one out of
    distribution, where a tie counts half.

    Parameters
    ----------
    scores_id : array-like of shape (n_id,)
        Scores of in-distribution rows; higher means more in-distribution.
    scores_ood : array-like of shape (n_ood,)
        Scores of rows out of distribution.

    Returns
    -------
    float
        In [0, 1]; 1 separates all rows, 0.5 is chance.

    Raises
    ------
    ValueError
        If there are no scores, or one is NaN or infinite.

    References
    ----------
    Hendrycks and Gimpel (2017), "A baseline for detecting misclassified and
    out-of-distribution examples in neural networks", ICLR, section 2.

    Examples
    --------
    >>> from sksoftrank.ood import auroc
    >>> auroc([3.0, 2.0], [1.0, 2.0])
    0.875
    """
    return float(roc_auc_score(*_labelled(scores_id, scores_ood)))


def threshold_at_tpr(scores_id: npt.ArrayLike, tpr: float = 0.95) -> float:
    """Return the highest threshold that accepts at least `tpr` of the rows.

    A row is accepted if its score is at least the threshold.

    Parameters
    ----------
    scores_id : array-like of shape (n_id,)
        Scores of in-distribution rows; higher means more in-distribution.
    tpr : float, default=0.95
        In (0, 1]. Share of the rows to accept.

    Returns
    -------
    float
        One of the scores.

    Raises
    ------
    ValueError
        If there are no scores, one is NaN or infinite, or `tpr` is out of range.

    Examples
    --------
    >>> from sksoftrank.ood import threshold_at_tpr
    >>> threshold_at_tpr([1.0, 2.0, 3.0, 4.0], tpr=0.75)
    2.0
    """
    if not isinstance(tpr, Real) or not 0.0 < tpr <= 1.0:
        raise ValueError(
            f"tpr must be in (0, 1], got {tpr!r}. Use 0.95 to accept 95 % of the rows."
        )
    scores = _as_scores("scores_id", scores_id)
    n = len(scores)
    # The slack absorbs the rounding of the product: 0.9 * 10 is to be nine rows.
    n_accepted = max(1, int(np.ceil(n * (float(tpr) - 1e-12))))
    return float(np.partition(scores, n - n_accepted)[n - n_accepted])


def fpr_at_tpr(
    scores_id: npt.ArrayLike, scores_ood: npt.ArrayLike, tpr: float = 0.95
) -> float:
    """Share of rows out of distribution that are accepted with `tpr` of the others.

    Of all thresholds that accept at least `tpr` of the in-distribution rows (the
    positive class), the highest; for 0.95 known as FPR95.

    Parameters
    ----------
    scores_id : array-like of shape (n_id,)
        Scores of in-distribution rows; higher means more in-distribution.
    scores_ood : array-like of shape (n_ood,)
        Scores of rows out of distribution.
    tpr : float, default=0.95
        In (0, 1]. True positive rate: share of in-distribution rows to accept.

    Returns
    -------
    float
        In [0, 1]; lower is better. 1 for constant scores, which reject nothing.

    Raises
    ------
    ValueError
        If there are no scores, one is NaN or infinite, or `tpr` is out of range.

    References
    ----------
    Liang, Li and Srikant (2018), "Enhancing the reliability of out-of-distribution
    image detection in neural networks", ICLR, section 4.3.

    Examples
    --------
    >>> from sksoftrank.ood import fpr_at_tpr
    >>> fpr_at_tpr([1.0, 2.0, 3.0, 4.0], [0.0, 1.5, 2.5, 3.5], tpr=0.75)
    0.5
    """
    threshold = threshold_at_tpr(scores_id, tpr)
    return float(np.mean(_as_scores("scores_ood", scores_ood) >= threshold))


def aupr_in(scores_id: npt.ArrayLike, scores_ood: npt.ArrayLike) -> float:
    """Average precision, in-distribution rows being the positive class.

    Parameters
    ----------
    scores_id : array-like of shape (n_id,)
        Scores of in-distribution rows; higher means more in-distribution.
    scores_ood : array-like of shape (n_ood,)
        Scores of rows out of distribution.

    Returns
    -------
    float
        In (0, 1]; 1 separates all rows, chance is ``n_id / (n_id + n_ood)``: compare
        it only between sets of the same sizes.

    Raises
    ------
    ValueError
        If there are no scores, or one is NaN or infinite.

    References
    ----------
    Hendrycks and Gimpel (2017), "A baseline for detecting misclassified and
    out-of-distribution examples in neural networks", ICLR, section 2.

    Examples
    --------
    >>> from sksoftrank.ood import aupr_in
    >>> aupr_in([3.0, 2.0], [1.0, 0.0])
    1.0
    """
    return float(average_precision_score(*_labelled(scores_id, scores_ood)))


def aupr_out(scores_id: npt.ArrayLike, scores_ood: npt.ArrayLike) -> float:
    """Average precision, rows out of distribution being the positive class.

    Parameters
    ----------
    scores_id : array-like of shape (n_id,)
        Scores of in-distribution rows; higher means more in-distribution.
    scores_ood : array-like of shape (n_ood,)
        Scores of rows out of distribution.

    Returns
    -------
    float
        In (0, 1]; 1 separates all rows, chance is ``n_ood / (n_id + n_ood)``: compare
        it only between sets of the same sizes.

    Raises
    ------
    ValueError
        If there are no scores, or one is NaN or infinite.

    References
    ----------
    Hendrycks and Gimpel (2017), "A baseline for detecting misclassified and
    out-of-distribution examples in neural networks", ICLR, section 2.

    Examples
    --------
    >>> from sksoftrank.ood import aupr_out
    >>> aupr_out([1.0, 1.0, 1.0], [1.0])
    0.25
    """
    is_id, scores = _labelled(scores_id, scores_ood)
    return float(average_precision_score(~is_id, -scores))


def detection_report(
    scores_id: npt.ArrayLike, scores_ood: npt.ArrayLike, *, tpr: float = 0.95
) -> dict[str, float]:
    """Give all measures of detection.

    Parameters
    ----------
    scores_id : array-like of shape (n_id,)
        Scores of in-distribution rows; higher means more in-distribution.
    scores_ood : array-like of shape (n_ood,)
        Scores of rows out of distribution.
    tpr : float, default=0.95
        In (0, 1]. True positive rate of `fpr_at_tpr`.

    Returns
    -------
    dict
        ``auroc``, ``fpr_at_tpr``, ``aupr_in`` and ``aupr_out``.

    Raises
    ------
    ValueError
        If there are no scores, one is NaN or infinite, or `tpr` is out of range.

    Examples
    --------
    >>> from sksoftrank.ood import detection_report
    >>> detection_report([3.0, 2.0], [1.0, 0.0])
    {'auroc': 1.0, 'fpr_at_tpr': 0.0, 'aupr_in': 1.0, 'aupr_out': 1.0}
    """
    return {
        "auroc": auroc(scores_id, scores_ood),
        "fpr_at_tpr": fpr_at_tpr(scores_id, scores_ood, tpr),
        "aupr_in": aupr_in(scores_id, scores_ood),
        "aupr_out": aupr_out(scores_id, scores_ood),
    }


# -- Calibration ---------------------------------------------------------------------


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
    _check_positive_int("n_bins", n_bins, "Use 15 for the usual number.")
    P = _as_proba(proba)
    y = column_or_1d(y_true)
    check_consistent_length(y, P)
    columns = np.unique(y) if classes is None else np.asarray(classes)
    if columns.shape != (P.shape[1],):
        raise ValueError(
            f"proba must have a column for each class, got {P.shape[1]} columns and "
            f"the classes {columns.tolist()}. Pass classes=estimator.classes_."
        )
    excess, bins = _excess_confidence(_encode("y_true", y, columns), P, n_bins)
    return _calibration_error(excess, bins, n_bins, np.ones(len(y)))


def _check_positive_int(name: str, value: Any, fix: str) -> None:
    if not isinstance(value, Integral) or isinstance(value, bool) or value < 1:
        raise ValueError(f"{name} must be a positive int, got {value!r}. {fix}")


def _as_proba(proba: Any) -> FloatArray:
    """Return probabilities (n, n_classes) in double precision, checked."""
    P: FloatArray = check_array(
        proba, ensure_2d=False, dtype=np.float64, input_name="proba"
    )
    if P.ndim == 1:
        P = np.column_stack([1.0 - P, P])
    # The slack is for probabilities in half precision, or printed and read again.
    if P.min() < 0.0 or np.abs(P.sum(axis=1) - 1.0).max() > 1e-3:
        raise ValueError(
            "proba must be non-negative and sum to 1 in each row, got values from "
            f"{P.min():g} to {P.max():g} and sums from {P.sum(axis=1).min():g} to "
            f"{P.sum(axis=1).max():g}. Pass the output of predict_proba, not logits."
        )
    return P


def _encode(name: str, y: Array, classes: Array) -> npt.NDArray[np.intp]:
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


def _excess_confidence(
    codes: npt.NDArray[np.intp], P: FloatArray, n_bins: int
) -> tuple[FloatArray, npt.NDArray[np.intp]]:
    """Return each row's confidence less whether it is right, and its bin."""
    top = P.argmax(axis=1)
    confidence = P[np.arange(len(P)), top]
    edges = np.linspace(0.0, 1.0, n_bins + 1)[1:-1]
    return confidence - (top == codes), np.searchsorted(edges, confidence, side="left")


def _calibration_error(
    excess: FloatArray, bins: npt.NDArray[np.intp], n_bins: int, weight: FloatArray
) -> float:
    # n_b * (confidence_b - accuracy_b) is a sum over the bin: no bin is divided by.
    sums = np.bincount(bins, weight * excess, n_bins)
    return float(np.abs(sums).sum() / weight.sum())


# -- Scoring searches ----------------------------------------------------------------


class _OODScorer:
    """A scorer that brings its rows: picklable, and usable wherever scorers are."""

    def __init__(
        self, parts: list[tuple[Any, Any]], scorer: Scorer, aggregate: str, name: str
    ) -> None:
        self._parts = parts
        self._scorer = scorer
        self._aggregate = aggregate
        self._name = name

    def __call__(
        self, estimator: Any, X: Any = None, y: Any = None, sample_weight: Any = None
    ) -> float:
        scores = [float(self._scorer(estimator, *part)) for part in self._parts]
        return float(min(scores) if self._aggregate == "worst" else np.mean(scores))

    def _accept_sample_weight(self) -> bool:
        # Weights given to a search's fit belong to the rows that are ignored. A scorer
        # that says no makes scikit-learn warn of wrong statistics.
        return True

    def __repr__(self) -> str:
        return (
            f"make_ood_scorer(scoring={self._name}, n_domains={len(self._parts)}, "
            f"aggregate={self._aggregate!r})"
        )


def make_ood_scorer(
    X_ood: Any,
    y_ood: npt.ArrayLike,
    *,
    domains: npt.ArrayLike | None = None,
    scoring: str | Scorer = "accuracy",
    aggregate: str = "mean",
) -> Scorer:
    """Make a scorer that scores on labelled shifted rows instead of the fold's.

    For the `scoring` of :class:`sklearn.model_selection.GridSearchCV`,
    :func:`sklearn.model_selection.cross_val_score` and the like: a search then chooses
    what is best under the shift. Report on other domains than these.

    Parameters
    ----------
    X_ood : array-like of shape (n, n_features)
        Rows under the shift, as the estimator takes them.
    y_ood : array-like of shape (n,)
        Their labels.
    domains : array-like of shape (n,), default=None
        Which domain each row comes from, such as a month or a site. Each is scored by
        itself. None takes all rows for one.
    scoring : str or callable, default="accuracy"
        A name from :func:`sklearn.metrics.get_scorer_names`, or a callable
        ``(estimator, X, y) -> float``; higher is better.
    aggregate : {"mean", "worst"}, default="mean"
        Mean over the domains, each counting the same, or the lowest of them.

    Returns
    -------
    callable
        ``scorer(estimator, X, y) -> float``, which ignores `X` and `y`, and can be
        pickled if `scoring` can.

    Raises
    ------
    ValueError
        If there are no rows, lengths differ, a name is unknown, or the worst of no
        domains is asked for.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from sklearn.linear_model import LogisticRegression
    >>> from sklearn.model_selection import GridSearchCV
    >>> from sksoftrank.ood import make_ood_scorer
    >>> X, y = load_iris(return_X_y=True)
    >>> scorer = make_ood_scorer(
    ...     1.1 * X, y, domains=[0, 1, 2] * 50, aggregate="worst"
    ... )
    >>> search = GridSearchCV(
    ...     LogisticRegression(max_iter=1000), {"C": [0.01, 1.0]}, scoring=scorer
    ... )
    >>> search.fit(X, y).best_params_
    {'C': 1.0}
    """
    if aggregate not in ("mean", "worst"):
        raise ValueError(
            f"aggregate must be 'mean' or 'worst', got {aggregate!r}. Use 'worst' for "
            "the lowest score over the domains."
        )
    if aggregate == "worst" and domains is None:
        raise ValueError(
            "domains must say which domain each row comes from for aggregate='worst', "
            "got None. Pass domains, or use aggregate='mean'."
        )
    check_consistent_length(X_ood, y_ood, domains)
    if _num_samples(X_ood) == 0:
        raise ValueError("X_ood must have at least one row, got none. Pass some.")
    if hasattr(X_ood, "tocsr"):
        X_ood = X_ood.tocsr()  # Other sparse formats can't be indexed.
    parts = [(X_ood, y_ood)]
    if domains is not None:
        names = column_or_1d(domains)
        rows = [np.flatnonzero(names == name) for name in np.unique(names)]
        parts = [(_safe_indexing(X_ood, i), _safe_indexing(y_ood, i)) for i in rows]
    scorer = get_scorer(scoring) if isinstance(scoring, str) else scoring
    if not callable(scorer):
        raise ValueError(
            "scoring must be the name of a metric or a callable (estimator, X, y) -> "
            f"float, got {scoring!r}. Use 'accuracy'."
        )
    return _OODScorer(parts, scorer, aggregate, repr(scoring))


# -- Reports -------------------------------------------------------------------------


@dataclass
class _Outcome:
    """What a classifier made of some rows: one entry a row."""

    codes: npt.NDArray[np.intp]  # Column of the right class.
    is_right: FloatArray
    loss: FloatArray | None  # -log of the right class's probability.
    excess: FloatArray | None  # Confidence less whether it is right.
    bins: npt.NDArray[np.intp] | None
    n_bins: int

    def measure(self, weight: FloatArray) -> list[float]:
        """Return the measures, in the order of _RANGES and less the gap."""
        total = weight.sum()
        support = np.bincount(self.codes, weight)
        right = np.bincount(self.codes, weight * self.is_right)
        seen = support > 0
        values = [
            float(weight @ self.is_right / total),
            float(np.mean(right[seen] / support[seen])),
        ]
        if self.loss is None or self.excess is None or self.bins is None:
            return [*values, np.nan, np.nan]
        error = _calibration_error(self.excess, self.bins, self.n_bins, weight)
        return [*values, float(weight @ self.loss / total), error]

    def resample(self, n_resamples: int, seed: int) -> FloatArray:
        """Return the measures of resampled rows (n_resamples, 4).

        The same seed draws the same rows, so that two outcomes of the same rows are
        compared row by row.
        """
        n = len(self.codes)
        rng = np.random.RandomState(seed)
        weights = (
            np.bincount(rng.randint(n, size=n), minlength=n).astype(np.float64)
            for _ in range(n_resamples)
        )
        return np.array([self.measure(weight) for weight in weights])


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
        transformer from `sksoftrank.shifts`; or transformers alone, named by their
        class. Transformers are applied to `X_id` at each severity: as they are fitted,
        or fitted on `X_id`.
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
        If a domain holds labels that the estimator does not know, or a parameter is out
        of range.

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
    _check_positive_int("n_bins", n_bins, "Use 15 for the usual number.")
    if not isinstance(n_resamples, Integral) or n_resamples < 2:
        raise ValueError(
            f"n_resamples must be an int of at least 2, got {n_resamples!r}. Use 200."
        )
    if not 0.0 < confidence_level < 1.0:
        raise ValueError(
            f"confidence_level must be in (0, 1), got {confidence_level!r}. Use 0.95 "
            "for 95 % intervals."
        )
    rng = check_random_state(random_state)
    # The seed of the in-distribution rows, which shifts of the same rows share.
    own, shift_seed = rng.randint(np.iinfo(np.int32).max, size=2).tolist()
    baseline = _outcome(estimator, X_id, y_id, n_bins, "y_id")
    baseline_draws = baseline.resample(n_resamples, own)

    def record(
        name: str, severity: int | None, outcome: _Outcome, draws: FloatArray
    ) -> Record:
        n = len(outcome.codes)
        ones = np.ones(n)
        values = outcome.measure(ones)
        values.append(float(baseline.is_right.mean()) - values[0])
        gaps = baseline_draws[:, 0] - draws[:, 0]
        errors = np.std(np.column_stack([draws, gaps]), axis=0, ddof=1)
        half_widths = stats.norm.ppf((1 + confidence_level) / 2) * errors
        entry: Record = {"domain": name, "severity": severity, "n_samples": n}
        for (measure, (low, high)), value, half_width in zip(
            _RANGES.items(), values, half_widths.tolist(), strict=True
        ):
            bounds = (value - half_width, value + half_width)
            if measure == "accuracy":
                n_right = int(outcome.is_right.sum())
                bounds = stats.binomtest(n_right, n).proportion_ci(
                    confidence_level, method="wilson"
                )
            entry[measure] = value
            entry[f"{measure}_low"] = float(np.maximum(bounds[0], low))
            entry[f"{measure}_high"] = float(np.minimum(bounds[1], high))
        return entry

    records = [record("in-distribution", 0, baseline, baseline_draws)]
    for name, source in _name_sources(shifted).items():
        if hasattr(source, "transform"):
            for severity in severities:
                X = _shift_rows(source, severity, X_id, shift_seed)
                outcome = _outcome(estimator, X, y_id, n_bins, "y_id")
                draws = outcome.resample(n_resamples, own)
                records.append(record(name, severity, outcome, draws))
        else:
            outcome = _outcome(estimator, *source, n_bins, f"y of {name!r}")
            seed = int(rng.randint(np.iinfo(np.int32).max))
            draws = outcome.resample(n_resamples, seed)
            records.append(record(name, None, outcome, draws))
    return records


def _name_sources(shifted: Mapping[str, Any] | Iterable[Any]) -> dict[str, Any]:
    """Return domains (X, y) and shifts by name."""
    if isinstance(shifted, Mapping):
        sources = dict(shifted)
    else:
        shifts = list(shifted)
        sources = {type(shift).__name__: shift for shift in shifts}
        if len(sources) < len(shifts):
            raise ValueError(
                "shifted must give each shift a name, got several of one class among "
                f"{[type(shift).__name__ for shift in shifts]}. Pass a dictionary from "
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
    if hasattr(X, "iloc"):  # The estimator may know the columns by name.
        own.set_output(transform="pandas")
    try:
        # Its scale may be that of other rows, such as the training rows.
        check_is_fitted(own)
    except NotFittedError:
        own.fit(X)
    own._validate_params()  # Nothing else checks the severity of a fitted one.
    return own.transform(X)


def _outcome(estimator: Any, X: Any, y: Any, n_bins: int, name: str) -> _Outcome:
    labels = column_or_1d(y)
    check_consistent_length(X, labels)
    classes = np.asarray(estimator.classes_)
    codes = _encode(name, labels, classes)
    is_right = (np.asarray(estimator.predict(X)) == labels).astype(np.float64)
    if not hasattr(estimator, "predict_proba"):
        return _Outcome(codes, is_right, None, None, None, n_bins)
    proba = np.asarray(estimator.predict_proba(X))
    P = _as_proba(proba)
    # As scikit-learn's log_loss: a probability of zero is one too small for its type.
    eps = np.finfo(proba.dtype).eps if proba.dtype.kind == "f" else 1e-16
    loss = -np.log(np.clip(P[np.arange(len(P)), codes], eps, 1.0 - eps))
    excess, bins = _excess_confidence(codes, P, n_bins)
    return _Outcome(codes, is_right, loss, excess, bins, n_bins)


def linear_probe_score(
    Z_train: npt.ArrayLike,
    y_train: npt.ArrayLike,
    Z_test: npt.ArrayLike,
    y_test: npt.ArrayLike,
    *,
    C: float = 1.0,
    max_iter: int = 1000,
) -> float:
    """Accuracy of a logistic regression on an embedding.

    How well classes can be told apart linearly in a representation that was learnt
    without them: embed rows of new classes, and probe. Columns are standardised first,
    by the training rows.

    Parameters
    ----------
    Z_train : array-like of shape (n_train, d)
        Embedding of the rows to train the probe on.
    y_train : array-like of shape (n_train,)
        Their labels.
    Z_test : array-like of shape (n_test, d)
        Embedding of the rows to score.
    y_test : array-like of shape (n_test,)
        Their labels, all of them classes of `y_train`.
    C : float, default=1.0
        Inverse strength of the regularisation, positive.
    max_iter : int, default=1000
        Most iterations of the solver.

    Returns
    -------
    float
        In [0, 1]; higher means that the representation transfers better.

    Raises
    ------
    ValueError
        If `y_test` holds a class that `y_train` does not, or `y_train` only one.

    References
    ----------
    Alain and Bengio (2016), "Understanding intermediate layers using linear classifier
    probes", arXiv:1610.01644.

    Examples
    --------
    >>> import numpy as np
    >>> from sksoftrank.ood import linear_probe_score
    >>> Z = np.array([[0.0, 1.0], [1.0, 0.0], [0.2, 0.9], [0.8, 0.1]])
    >>> linear_probe_score(Z[:2], ["a", "b"], Z[2:], ["a", "b"])
    1.0
    """
    probe = make_pipeline(StandardScaler(), LogisticRegression(C=C, max_iter=max_iter))
    probe.fit(Z_train, column_or_1d(y_train))
    labels = column_or_1d(y_test)
    _encode("y_test", labels, probe.classes_)
    return float(probe.score(Z_test, labels))
