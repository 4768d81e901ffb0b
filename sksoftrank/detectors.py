"""Detection of rows that are out of distribution, around any fitted classifier."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from functools import cached_property
from numbers import Integral, Real
from typing import Any, ClassVar, Self

import numpy as np
import numpy.typing as npt
import torch
from scipy import linalg
from scipy.spatial.distance import cdist
from scipy.special import logsumexp
from sklearn.base import (
    BaseEstimator,
    MetaEstimatorMixin,
    OutlierMixin,
    _fit_context,
    clone,
    is_classifier,
)
from sklearn.covariance import EmpiricalCovariance
from sklearn.exceptions import NotFittedError
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model._base import LinearClassifierMixin
from sklearn.model_selection._search import BaseSearchCV
from sklearn.neighbors import NearestNeighbors
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import StandardScaler, normalize
from sklearn.utils import Tags, check_array, get_tags
from sklearn.utils._param_validation import HasMethods, Interval, StrOptions
from sklearn.utils.validation import (
    check_consistent_length,
    check_is_fitted,
    column_or_1d,
)

from sksoftrank.estimators import BaseSoftRankClassifier, SoftRankEnsembleClassifier
from sksoftrank.ood import threshold_at_tpr

__all__ = ["OODDetector"]

FloatArray = npt.NDArray[np.float64]
Codes = npt.NDArray[np.intp]
Head = tuple[FloatArray, FloatArray]  # (d, c) and (c,): logits = z @ W + b

# Parts that the rows of `fit` are cut into for a threshold that holds for new ones.
_FOLDS = 5
_EPS = float(np.finfo(np.float64).eps)


# -- What a classifier makes of rows -------------------------------------------------


class _Rows:
    """Features and logits of rows, each computed once, when a method first asks."""

    def __init__(
        self, classifier: Any, X: Any, method: str, head: Head | None = None
    ) -> None:
        self.last, self.X = _unwrap(classifier, X)
        self.method = method
        self.known_head = head

    @cached_property
    def features(self) -> FloatArray:
        """Penultimate representation (n, d)."""
        if hasattr(self.last, "embed"):
            Z = self.last.embed(self.X)
        elif hasattr(self.last, "transform"):
            Z = self.last.transform(self.X)
        elif isinstance(self.last, LinearClassifierMixin):
            Z = self.X  # What its one layer sees.
        else:
            raise ValueError(
                f"method={self.method!r} needs features, but "
                f"{type(self.last).__name__} has no embed and no transform, and is not "
                "linear. Use a method that needs none, such as 'energy' or 'msp', or a "
                "classifier that has one."
            )
        dtype = getattr(Z, "dtype", None)
        self.eps = float(np.finfo(dtype).eps) if dtype == np.float32 else _EPS
        features: FloatArray = check_array(
            Z, dtype=np.float64, input_name="the classifier's features"
        )
        return features

    def take(self, index: Codes) -> _Rows:
        """Return some of the rows, as far as they are computed."""
        part = copy.copy(self)
        for name in ("features", "logits"):
            if name in vars(self):
                vars(part)[name] = vars(self)[name][index]
        return part

    @property
    def rounding(self) -> float:
        """Deviation below which a direction of the features is rounding."""
        return self.eps * float(np.sqrt(np.mean(np.sum(self.features**2, axis=1))))

    @cached_property
    def scores(self) -> FloatArray:
        """What the decision function says, as one column a class (n, c)."""
        n_classes = len(self.last.classes_)
        scores: FloatArray = check_array(
            self.last.decision_function(self.X),
            ensure_2d=False,
            dtype=np.float64,
            input_name="the classifier's decision_function",
        )
        if scores.ndim == 1:
            # The softmax of the halves is the logistic function of the difference, and
            # no class is favoured: with (0, d) one class would have no energy.
            scores = np.column_stack([-scores / 2, scores / 2])
        if scores.shape[1] != n_classes:
            raise ValueError(
                "the classifier's decision_function must have one column for each of "
                f"its {n_classes} classes, got {scores.shape[1]}. Set "
                "decision_function_shape='ovr' where it has one."
            )
        return scores

    @cached_property
    def logits(self) -> FloatArray:
        """Logits before any division by a temperature (n, c)."""
        if _is_ours(self.last):
            # From the features: one pass of the network gives both, and of two classes
            # both logits, where decision_function has but their difference.
            W, b = self.head
            return self.features @ W + b
        if not hasattr(self.last, "decision_function"):
            raise ValueError(
                f"method={self.method!r} needs logits, but {type(self.last).__name__} "
                "has no decision_function. Use 'msp' or 'entropy', which need "
                "probabilities only, or a classifier that has one."
            )
        return self.scores * float(getattr(self.last, "temperature_", 1.0))

    @cached_property
    def log_proba(self) -> FloatArray:
        """Logarithms of the probabilities that the classifier reports (n, c)."""
        if isinstance(self.last, BaseSoftRankClassifier):
            return _log_softmax(self.logits / self.last.temperature_)
        if hasattr(self.last, "decision_function"):
            return _log_softmax(self.scores)
        proba = np.asarray(self.last.predict_proba(self.X), dtype=np.float64)
        return np.log(np.maximum(proba, np.finfo(np.float64).tiny))

    @property
    def head(self) -> Head:
        """The affine map from features to logits."""
        if self.known_head is None:
            self.known_head = self._find_head()
        return self.known_head

    def _find_head(self) -> Head:
        last, width = self.last, self.features.shape[1]
        if isinstance(last, BaseSoftRankClassifier):
            return _affine(last._head(), width)
        if isinstance(last, SoftRankEnsembleClassifier):
            # The members' mean logit, of their features side by side.
            heads = [
                _affine(member._head(), member.module_.embedding_width)
                for member in last.estimators_
            ]
            weights, offsets = zip(*heads, strict=True)
            return np.vstack(weights) / len(heads), np.mean(offsets, axis=0)
        if not hasattr(last, "embed") and not hasattr(last, "transform"):
            W, b = last.coef_.T, last.intercept_
            if W.shape[1] == 1:
                W, b = np.hstack([-W / 2, W / 2]), np.concatenate([-b / 2, b / 2])
            return W.astype(np.float64), b.astype(np.float64)
        ones = np.ones((len(self.features), 1))
        solution = linalg.lstsq(np.hstack([self.features, ones]), self.logits)[0]
        return solution[:-1], solution[-1]


def _unwrap(classifier: Any, X: Any) -> tuple[Any, Any]:
    """Return the classifier within pipelines and searches, and the rows it sees."""
    while True:
        if isinstance(classifier, FrozenEstimator):
            classifier = classifier.estimator
        elif isinstance(classifier, BaseSearchCV):
            classifier = classifier.best_estimator_
        elif isinstance(classifier, Pipeline):
            if len(classifier) > 1:
                X = classifier[:-1].transform(X)
            classifier = classifier[-1]
        else:
            return classifier, X


def _is_ours(classifier: Any) -> bool:
    return isinstance(classifier, BaseSoftRankClassifier | SoftRankEnsembleClassifier)


def _log_softmax(scores: FloatArray) -> FloatArray:
    """Return log-probabilities, exact also of those that round to one.

    scipy's take the largest term into the sum, in which the others then vanish.
    """
    rows, top = np.arange(len(scores)), scores.argmax(axis=1)
    shifted = scores - scores[rows, top][:, None]
    others = np.exp(shifted)
    others[rows, top] = 0.0
    return shifted - np.log1p(others.sum(axis=1))[:, None]


def _affine(head: Any, width: int) -> Head:
    """Return the weights (d, c) and offset (c,) of a torch module that is affine."""
    points = torch.vstack([torch.zeros(1, width), torch.eye(width)]).double()
    with torch.inference_mode():
        out = head(points).numpy()
    return out[1:] - out[0], out[0]


# -- Methods -------------------------------------------------------------------------


class _Method(ABC):
    """A score of rows; higher is more in-distribution."""

    name: ClassVar[str]
    uses_labels: ClassVar[bool] = False
    # Whether rows look better than new ones to statistics that they were part of.
    is_optimistic: ClassVar[bool] = False

    def fit(  # noqa: B027 - methods on logits need nothing
        self, rows: _Rows, codes: Codes | None, options: OODDetector
    ) -> None:
        """Compute what the score needs from in-distribution rows."""

    @abstractmethod
    def score(self, rows: _Rows) -> FloatArray:
        """Return the score of each row (n,)."""

    def score_as_new(
        self, rows: _Rows, codes: Codes | None, options: OODDetector
    ) -> FloatArray:
        """Return scores that the rows of `fit` might have if they were new."""
        scores = self.score(rows)
        n = len(scores)
        if not self.is_optimistic or n <= 2 * _FOLDS:
            return scores
        # Each part by the statistics of the others. Shuffled: rows may come by class.
        order = np.random.default_rng(0).permutation(n)
        for part in np.array_split(order, _FOLDS):
            others = np.setdiff1d(order, part)
            method = type(self)()
            method.fit(
                rows.take(others), None if codes is None else codes[others], options
            )
            scores[part] = method.score(rows.take(part))
        return scores


class _MSP(_Method):
    name = "msp"

    def score(self, rows: _Rows) -> FloatArray:
        return rows.log_proba.max(axis=1)


class _MaxLogit(_Method):
    name = "max_logit"

    def score(self, rows: _Rows) -> FloatArray:
        return rows.logits.max(axis=1)


class _Energy(_Method):
    name = "energy"

    def score(self, rows: _Rows) -> FloatArray:
        return logsumexp(rows.logits, axis=1)


class _Entropy(_Method):
    name = "entropy"

    def score(self, rows: _Rows) -> FloatArray:
        return (np.exp(rows.log_proba) * rows.log_proba).sum(axis=1)


class _ReAct(_Method):
    name = "react"

    def fit(self, rows: _Rows, codes: Codes | None, options: OODDetector) -> None:
        self.clip = float(np.quantile(rows.features, options.clip_quantile))
        self.head = rows.head

    def score(self, rows: _Rows) -> FloatArray:
        W, b = self.head
        return logsumexp(np.minimum(rows.features, self.clip) @ W + b, axis=1)


class _KNN(_Method):
    name = "knn"

    def fit(self, rows: _Rows, codes: Codes | None, options: OODDetector) -> None:
        n = len(rows.features)
        if options.n_neighbors >= n:
            raise ValueError(
                f"n_neighbors must be less than the n_samples = {n} rows given to fit, "
                f"got {options.n_neighbors}. Lower it, or pass more rows."
            )
        self.neighbors = NearestNeighbors(n_neighbors=options.n_neighbors)
        self.neighbors.fit(normalize(rows.features))

    def score(self, rows: _Rows) -> FloatArray:
        return -self.neighbors.kneighbors(normalize(rows.features))[0][:, -1]

    def score_as_new(
        self, rows: _Rows, codes: Codes | None, options: OODDetector
    ) -> FloatArray:
        # No row is its own neighbour, as none of the new ones will be.
        return -self.neighbors.kneighbors()[0][:, -1]


class _Mahalanobis(_Method):
    name = "mahalanobis"
    uses_labels = True
    is_optimistic = True

    def fit(self, rows: _Rows, codes: Codes | None, options: OODDetector) -> None:
        assert codes is not None
        # From a row, so that means are rounded at the scale of the spread and not of
        # the offset: of equal rows nothing is left.
        self.start = rows.features[0]
        Z = rows.features - self.start
        # Classes that no row belongs to have no mean.
        present, groups = np.unique(codes, return_inverse=True)
        means = np.array([Z[groups == i].mean(axis=0) for i in range(len(present))])
        self.whiten = _whitening(
            Z - means[groups],
            rows.rounding,
            f"method={self.name!r} needs rows that differ within their classes",
        )
        self.centers = means @ self.whiten

    def score(self, rows: _Rows) -> FloatArray:
        whitened = (rows.features - self.start) @ self.whiten
        return -cdist(whitened, self.centers, "sqeuclidean").min(axis=1)


class _RelativeMahalanobis(_Mahalanobis):
    name = "relative_mahalanobis"

    def fit(self, rows: _Rows, codes: Codes | None, options: OODDetector) -> None:
        super().fit(rows, codes, options)
        self.mean = self.start + (rows.features - self.start).mean(axis=0)
        self.background = _whitening(
            rows.features - self.mean,
            rows.rounding,
            f"method={self.name!r} needs rows that differ",
        )

    def score(self, rows: _Rows) -> FloatArray:
        whitened = (rows.features - self.mean) @ self.background
        return super().score(rows) + (whitened**2).sum(axis=1)


class _Residual(_Method):
    name = "residual"
    is_optimistic = True

    def fit(self, rows: _Rows, codes: Codes | None, options: OODDetector) -> None:
        W, b = rows.head
        # The point of the features' row space that the head maps to zero logits.
        self.origin = -linalg.pinv(W.T) @ b
        Z = rows.features - self.origin
        variances, directions = _spectrum(
            Z,
            rows.rounding,
            f"method={self.name!r} needs features away from the point of no logits",
        )
        size = self._size(variances, Z.shape[1], options.n_components)
        self.null_space = directions[:, size:]

    @staticmethod
    def _size(variances: FloatArray, width: int, n_components: Any) -> int:
        rank = len(variances)
        if isinstance(n_components, Integral):
            if int(n_components) >= rank:
                raise ValueError(
                    f"n_components must be less than the rank {rank} of the features "
                    f"(n_features = {width}), got {n_components}: nothing would remain "
                    "outside the principal space. Lower it, or use 'auto'."
                )
            return int(n_components)
        if n_components == "auto":
            # As in the code of the paper.
            size = 1000 if width >= 2048 else 512 if width >= 768 else width // 2
        else:
            size = _size_of_share(variances, n_components)
        return min(size, rank - 1)

    def residual(self, rows: _Rows) -> FloatArray:
        return linalg.norm((rows.features - self.origin) @ self.null_space, axis=1)

    def score(self, rows: _Rows) -> FloatArray:
        return -self.residual(rows)


class _ViM(_Residual):
    name = "vim"

    def fit(self, rows: _Rows, codes: Codes | None, options: OODDetector) -> None:
        super().fit(rows, codes, options)
        mean = float(rows.logits.max(axis=1).mean())
        if mean <= 0.0:
            raise ValueError(
                "method='vim' needs maximum logits with a positive mean, to scale the "
                f"virtual logit by, got {mean:.3g}. Use 'residual' instead."
            )
        self.alpha = mean / float(self.residual(rows).mean())

    def score(self, rows: _Rows) -> FloatArray:
        # log(1 / ViM - 1), which orders as the paper's probability and never saturates.
        return logsumexp(rows.logits, axis=1) - self.alpha * self.residual(rows)


class _NECO(_Method):
    name = "neco"

    def fit(self, rows: _Rows, codes: Codes | None, options: OODDetector) -> None:
        # As in the code of the paper: its equation has neither scaling nor logit.
        self.start = rows.features[0]  # Constant columns are then zero, unrounded.
        self.scaler = StandardScaler().fit(rows.features - self.start)
        variances, directions = _spectrum(
            self.scaler.transform(rows.features - self.start),
            0.0,
            f"method={self.name!r} needs rows that differ",
        )
        n_components: Any = options.n_components
        width = rows.features.shape[1]
        if n_components == "auto":
            # Collapsed, the classes' means lie on a simplex of as many directions.
            n_components = min(max(rows.logits.shape[1] - 1, 1), width)
        elif not isinstance(n_components, Integral):
            n_components = _size_of_share(variances, n_components)
        elif n_components > width:
            raise ValueError(
                f"n_components must be at most the {width} columns of the features, "
                f"got {n_components}. Lower it, or use 'auto'."
            )
        self.components = directions[:, :n_components]

    def score(self, rows: _Rows) -> FloatArray:
        Z = self.scaler.transform(rows.features - self.start)
        norm = linalg.norm(Z, axis=1)
        # A row at the very mean has no direction, and none to speak for it.
        share = linalg.norm(Z @ self.components, axis=1) / np.where(norm > 0, norm, 1.0)
        return share * rows.logits.max(axis=1)


def _spectrum(
    deviations: FloatArray, rounding: float, need: str
) -> tuple[FloatArray, FloatArray]:
    """Return the variances that are no rounding, and all directions (d, d) as columns.

    Around zero, by decreasing variance. Rounding leaves a trace of directions that the
    rows do not have: that of the covariance, and that of the rows before an offset was
    taken away.
    """
    n, d = deviations.shape
    variances = np.zeros(0)
    if n > 1:
        model = EmpiricalCovariance(store_precision=False, assume_centered=True)
        values, directions = linalg.eigh(model.fit(deviations).covariance_)
        values, directions = values[::-1], directions[:, ::-1]
        variances = values[values > _EPS * max(n, d) * values[0] + rounding**2]
    if not len(variances):
        raise ValueError(
            f"{need}, got n_samples = {n} of {d} columns that do not. Pass more rows, "
            "or use a method on logits, such as 'energy'."
        )
    return variances, directions


def _whitening(deviations: FloatArray, rounding: float, need: str) -> FloatArray:
    """Return the map (d, r) to coordinates of unit variance.

    As a pseudo-inverse of the covariance, it leaves out directions without variance.
    """
    variances, directions = _spectrum(deviations, rounding, need)
    return directions[:, : len(variances)] / np.sqrt(variances)


def _size_of_share(variances: FloatArray, share: float) -> int:
    cumulative = np.cumsum(variances)
    return int(np.searchsorted(cumulative, share * cumulative[-1])) + 1


_METHODS: dict[str, type[_Method]] = {
    method.name: method
    for method in (
        _MSP,
        _MaxLogit,
        _Energy,
        _Entropy,
        _KNN,
        _Mahalanobis,
        _RelativeMahalanobis,
        _Residual,
        _ViM,
        _NECO,
        _ReAct,
    )
}


# -- The estimator -------------------------------------------------------------------


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
        than there are classes for "neco". For "vim" and "residual" one direction of the
        features' own is always left outside.
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

    Without `y` the classifier's predictions stand for the labels. The threshold is for
    new rows. Those that a covariance, a principal space or a neighbourhood came from
    lie closer to it: for "knn" each is scored by the others, and for the Mahalanobis
    distances, "residual" and "vim" each fifth of the rows by the other four. Fewer of
    the rows in `fit` than `contamination` then fall below if given again.

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
        "method": [StrOptions(set(_METHODS))],
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
        method = _METHODS[self.method]()
        rows = _Rows(classifier, X, self.method)
        codes = self._codes(classifier, X, y) if method.uses_labels else None
        method.fit(rows, codes, self)
        scores = method.score_as_new(rows, codes, self)
        self.estimator_ = classifier
        self.offset_ = threshold_at_tpr(scores, 1.0 - self.contamination)
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
        labels = np.asarray(classifier.predict(X)) if y is None else column_or_1d(y)
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
        rows = _Rows(self.estimator_, X, self._method.name, self._head)
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
