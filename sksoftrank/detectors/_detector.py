"""The estimator around a method."""

from __future__ import annotations

from numbers import Integral, Real
from typing import Any, Self

import numpy as np
import numpy.typing as npt
from sklearn.base import (
    BaseEstimator,
    MetaEstimatorMixin,
    OutlierMixin,
    clone,
    is_classifier,
)
from sklearn.exceptions import NotFittedError
from sklearn.frozen import FrozenEstimator
from sklearn.utils import Tags, get_tags
from sklearn.utils.validation import (
    check_consistent_length,
    check_is_fitted,
)

from sksoftrank._checks import as_labels
from sksoftrank._sklearn import HasMethods, Interval, StrOptions, _fit_context
from sksoftrank.detectors._methods import METHODS
from sksoftrank.detectors._rows import Codes, FloatArray, Rows
from sksoftrank.ood import threshold_at_tpr

# Scores closer than so many units in the last place are the same but for rounding.
_TIE = 1e3


class OODDetector(MetaEstimatorMixin, OutlierMixin, BaseEstimator):
    """Tell rows that are out of distribution by what a classifier makes of them.

    A fitted classifier is used as it is and never trained. `fit` takes in-distribution
    rows to calibrate the score and its threshold on. Best are rows that the classifier
    was not trained on, since it is surer of those it was; and for methods on features,
    several times as many as the features have columns.

    Parameters
    ----------
    estimator : classifier
        The package's own, or another with `decision_function`; also at the end of a
        pipeline or in a search. Methods on features need `embed`, `transform` or a
        linear model, whose features are its input. An unfitted one is cloned, and
        trained on the rows given to `fit`. :func:`sklearn.base.clone` takes training
        away: a :class:`sklearn.frozen.FrozenEstimator` keeps it.
    method : str, default="energy"
        One of the table below.
    contamination : float, default=0.05
        In (0, 0.5]. Share of in-distribution rows that may fall below the threshold: at
        least ``1 - contamination``, the true positive rate, are to be accepted.
    n_neighbors : int, default=10
        The k of "knn". Fewer than the rows of a class given to `fit`, or the k-th
        neighbour is of another; the paper takes 50 of 5,000.
    n_components : "auto", int or float, default="auto"
        Directions of the principal space for "vim", "residual" and "neco": so many, or
        in (0, 1) the fewest that hold this share of the variance. "auto" takes half of
        the columns (512 from 768 on, 1000 from 2048) for "vim" and "residual", one less
        than there are classes for "neco". For "vim" and "residual" fewer than the rank
        of the features, and than four fifths of the rows given to `fit`, if over ten.
    clip_quantile : float, default=0.9
        In (0, 1). Quantile of all features that "react" clips them at.

    Attributes
    ----------
    estimator_ : classifier
        The fitted classifier: `estimator` itself, if that was fitted.
    offset_ : float
        The threshold: rows that score less are outliers.
    n_features_in_ : int
        Columns that the classifier was fitted on, where it says so.
    feature_names_in_ : ndarray of shape (n_features_in_,)
        Names of the columns, where the classifier knows them.

    Raises
    ------
    ValueError
        At fit, if the classifier lacks what the method needs, the rows are too few or
        too alike, or `y` holds a class that the classifier does not know.

    See Also
    --------
    sksoftrank.ood.detection_report : Measures of detection from two sets of scores.
    sklearn.neighbors.LocalOutlierFactor : Detects outliers without a classifier.

    Notes
    -----
    With raw logits ``l`` (n, c), temperature ``T``, ``p = softmax(l / T)`` and features
    ``z`` (n, d), and the score higher for rows that look more in-distribution:

    ====================== ======== ================================================
    method                 sees     score
    ====================== ======== ================================================
    "msp"                  p        ``log(max(p))`` [1]_
    "entropy"              p        ``sum(p * log(p))`` [2]_
    "max_logit"            l        ``max(l)`` [3]_
    "energy"               l        ``log(sum(exp(l)))`` [4]_, equation 4
    "react"                z, head  energy of the head's logits of
                                    ``min(z, clip)`` [5]_, equations 1 and 2
    "knn"                  z        minus the distance of ``z / norm(z)`` to its
                                    k-th nearest neighbour of the rows in `fit` [6]_
    "mahalanobis"          z, y     ``-min(M)`` of the squared distances to the
                                    classes' means, with one covariance of all
                                    classes [7]_, equations 1 and 2
    "relative_mahalanobis" z, y     ``M0 - min(M)``, ``M0`` with the mean and
                                    covariance of all rows [8]_
    "residual"             z, head  ``-norm(r)``, ``r`` the part of ``z - o``
                                    outside the principal space [9]_
    "vim"                  z, l     ``energy - alpha * norm(r)`` [9]_,
                                    equations 4 to 7
    "neco"                 z, l     ``norm(P z) / norm(z) * max(l)``, z standardised
                                    and P on the principal space [10]_, equation 6
    ====================== ======== ================================================

    Which one to take depends on the question. Which rows a network gets wrong under a
    shift, its logits tell best: over eleven natural shifts no method beat "energy" by
    more than its interval. That rows are from elsewhere, right or wrong, features tell
    far better: "mahalanobis", "residual" and "vim" (an area of 0.84 under the curve
    against 0.64, ``benchmarks/shift_detection.py``).

    For the package's classifiers ``l`` are the network's logits, ``T`` is
    ``temperature_``, and ``z`` comes from `embed`. An ensemble's ``p`` are its mean
    probabilities, its ``l`` the mean logits of the members. For others ``l`` is
    `decision_function` and ``T`` is 1; where two classes share one column ``d``, ``l``
    is ``(-d / 2, d / 2)``, whose softmax is that of a logistic regression. Without
    `decision_function`, "msp" and "entropy" take `predict_proba`. ``z`` is then
    `embed`, else `transform`, else a linear model's input; the head is the linear
    model's, else the least squares of ``l`` on ``z``.

    Departures from the papers. "msp" is the logarithm, so that rows keep their order
    where the probability rounds to one; "vim" likewise the logarithm of the odds
    against its virtual class. ``energy`` has the temperature 1 whatever the network's.
    "mahalanobis" uses the last features alone, without perturbing the input, and leaves
    out directions in which no row of `fit` deviates; "residual" and "vim" look there.
    "neco" standardises and multiplies by the logit, as the authors' code does.

    Without `y` the classifier's predictions stand for the labels.

    The threshold lies halfway between the lowest score that it accepts of the rows in
    `fit` and the highest that it rejects; scores that only rounding keeps from being
    equal are accepted together. It is for new rows. Those that a covariance, a
    principal space or a neighbourhood came from lie closer to it: for "knn" each is
    scored by the others, and for the Mahalanobis distances, "residual" and "vim" each
    fifth of the rows by the other four. Fewer of the rows in `fit` than `contamination`
    then fall below if given again.

    References
    ----------
    .. [1] Hendrycks and Gimpel (2017), "A baseline for detecting misclassified and
       out-of-distribution examples in neural networks", ICLR, section 2.
    .. [2] Malinin and Gales (2018), "Predictive uncertainty estimation via prior
       networks", NeurIPS, section 3.
    .. [3] Hendrycks et al. (2022), "Scaling out-of-distribution detection for
       real-world settings", ICML, section 3.
    .. [4] Liu et al. (2020), "Energy-based out-of-distribution detection", NeurIPS.
    .. [5] Sun, Guo and Li (2021), "ReAct: out-of-distribution detection with rectified
       activations", NeurIPS.
    .. [6] Sun et al. (2022), "Out-of-distribution detection with deep nearest
       neighbors", ICML, section 3.
    .. [7] Lee et al. (2018), "A simple unified framework for detecting
       out-of-distribution samples and adversarial attacks", NeurIPS.
    .. [8] Ren et al. (2021), "A simple fix to Mahalanobis distance for improving
       near-OOD detection", arXiv:2106.09022, section 2.
    .. [9] Wang et al. (2022), "ViM: out-of-distribution with virtual-logit matching",
       CVPR.
    .. [10] Ammar et al. (2024), "NECO: neural collapse based out-of-distribution
       detection", ICLR.

    Examples
    --------
    >>> import numpy as np
    >>> from sklearn.datasets import load_iris
    >>> from sksoftrank import OODDetector, SoftRankMLPClassifier
    >>> X, y = load_iris(return_X_y=True)
    >>> clf = SoftRankMLPClassifier(32, max_epochs=20, random_state=0).fit(X, y)
    >>> detector = OODDetector(clf, method="mahalanobis").fit(X, y)
    >>> bool((detector.predict(X) == 1).mean() >= 0.95)
    True
    >>> detector.predict([[60.0, -30.0, 10.0, 50.0]])
    array([-1])
    """

    _parameter_constraints: dict[str, list[Any]] = {  # noqa: RUF012
        "estimator": [HasMethods(["fit", "predict"])],
        "method": [StrOptions(set(METHODS))],
        "contamination": [Interval(Real, 0, 0.5, closed="right")],
        "n_neighbors": [Interval(Integral, 1, None, closed="left")],
        "n_components": [
            StrOptions({"auto"}),
            Interval(Integral, 1, None, closed="left"),
            Interval(Real, 0, 1, closed="neither"),
        ],
        "clip_quantile": [Interval(Real, 0, 1, closed="neither")],
    }

    def __init__(
        self,
        estimator: Any,
        method: str = "energy",
        *,
        contamination: float = 0.05,
        n_neighbors: int = 10,
        n_components: str | float = "auto",
        clip_quantile: float = 0.9,
    ) -> None:
        self.estimator = estimator
        self.method = method
        self.contamination = contamination
        self.n_neighbors = n_neighbors
        self.n_components = n_components
        self.clip_quantile = clip_quantile

    # The estimator may be fitted by itself, and keeps what it was checked for.
    @_fit_context(prefer_skip_nested_validation=False)
    def fit(self, X: Any, y: npt.ArrayLike | None = None) -> Self:
        """Calibrate the score and its threshold on in-distribution rows.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            In-distribution rows, as the classifier takes them.
        y : array-like of shape (n_samples,), default=None
            Their labels, for the methods that use them and for a classifier that is not
            fitted; None takes the classifier's predictions.

        Returns
        -------
        Self
            The fitted detector.
        """
        classifier = self._fitted_classifier(X, y)
        method = METHODS[self.method]()
        rows = Rows.seen_by(classifier, X, self.method)
        codes = self._codes(classifier, X, y) if method.uses_labels else None
        # What vanishes, such as the probability of a class, is zero.
        with np.errstate(under="ignore"):
            method.fit(rows, codes, self)
            scores = method.score_as_new(rows, codes, self)
        self.estimator_ = classifier
        self.offset_ = _offset(scores, 1.0 - self.contamination, rows.eps)
        self._method, self._head = method, rows.known_head
        for name in ("n_features_in_", "feature_names_in_"):
            if hasattr(classifier, name):
                setattr(self, name, getattr(classifier, name))
            elif hasattr(self, name):
                delattr(self, name)
        return self

    def _fitted_classifier(self, X: Any, y: Any) -> Any:
        if not is_classifier(self.estimator):
            raise ValueError(
                f"estimator must be a classifier, got {self.estimator!r}. Pass a "
                "fitted one."
            )
        try:
            check_is_fitted(self.estimator)
        except NotFittedError:
            if isinstance(self.estimator, FrozenEstimator):
                raise
            if y is None and get_tags(self.estimator).target_tags.required:
                raise ValueError(
                    f"estimator must be fitted where y is None, got the unfitted "
                    f"{type(self.estimator).__name__}. Fit it before, or pass y to "
                    "train a clone of it."
                ) from None
            return clone(self.estimator).fit(X, y)
        return self.estimator

    @staticmethod
    def _codes(classifier: Any, X: Any, y: Any) -> Codes:
        labels = as_labels("y", classifier.predict(X) if y is None else y)
        check_consistent_length(X, labels)
        classes = np.asarray(classifier.classes_)
        unknown = ~np.isin(labels, classes)
        if unknown.any():
            raise ValueError(
                f"y must hold only the classifier's classes {classes.tolist()}, got "
                f"{np.unique(labels[unknown]).tolist()} too. Drop those rows: they are "
                "out of distribution."
            )
        return np.unique(labels, return_inverse=True)[1]

    def score_samples(self, X: Any) -> FloatArray:
        """Return how much rows look in-distribution.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Rows.

        Returns
        -------
        ndarray of shape (n_samples,)
            Score of the method; higher is more in-distribution.
        """
        check_is_fitted(self)
        rows = Rows.seen_by(self.estimator_, X, self._method.name, self._head)
        with np.errstate(under="ignore"):
            return self._method.score(rows)

    def decision_function(self, X: Any) -> FloatArray:
        """Return the score less the threshold.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Rows.

        Returns
        -------
        ndarray of shape (n_samples,)
            Negative for outliers.
        """
        return self.score_samples(X) - self.offset_

    def predict(self, X: Any) -> npt.NDArray[np.int64]:
        """Return whether rows are in distribution.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Rows.

        Returns
        -------
        ndarray of shape (n_samples,)
            1 for inliers, -1 for outliers.
        """
        return np.where(self.decision_function(X) >= 0, 1, -1)

    def fit_predict(
        self, X: Any, y: npt.ArrayLike | None = None
    ) -> npt.NDArray[np.int64]:
        """Calibrate on rows, and return which of them are inliers.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            In-distribution rows.
        y : array-like of shape (n_samples,), default=None
            As for `fit`.

        Returns
        -------
        ndarray of shape (n_samples,)
            1 for inliers, -1 for outliers.
        """
        return self.fit(X, y).predict(X)

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.input_tags = get_tags(self.estimator).input_tags
        return tags


def _offset(scores: FloatArray, share: float, eps: float) -> float:
    """Return a threshold that accepts at least `share`, clear of every score.

    On a score it would leave that row to the last bit, which differs between a row
    alone and among others, and between machines.
    """
    lowest = threshold_at_tpr(scores, share)
    margin = _TIE * eps * abs(lowest)
    is_accepted = scores >= lowest - margin
    lowest = float(scores[is_accepted].min())
    if is_accepted.all():
        return max(lowest - margin, -float(np.finfo(np.float64).max))
    highest = float(scores[~is_accepted].max())
    # Halves first: the sum may be out of range. Between neighbours there is no number.
    middle = highest / 2 + lowest / 2
    return middle if middle > highest else lowest
