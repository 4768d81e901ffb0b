"""How well scores tell rows that are out of distribution apart."""

from __future__ import annotations

from numbers import Real
from typing import Any

import numpy as np
import numpy.typing as npt
from sklearn.metrics import average_precision_score, roc_auc_score

from sksoftrank._checks import as_numbers

Array = npt.NDArray[Any]
FloatArray = npt.NDArray[np.float64]


def _as_scores(name: str, scores: Any) -> FloatArray:
    """Return scores as a finite float64 vector of at least one."""
    values = as_numbers(name, scores)
    if values.ndim != 1 or values.size == 0:
        raise ValueError(
            f"{name} must be a vector with the score of at least one row, got shape "
            f"{values.shape}. Pass the output of score_samples."
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
