"""Scores of how much a row looks in-distribution; higher is more."""

from __future__ import annotations

from abc import ABC, abstractmethod
from numbers import Integral
from typing import Any, ClassVar, Protocol

import numpy as np
from scipy import linalg
from scipy.spatial.distance import cdist
from scipy.special import logsumexp
from sklearn.neighbors import NearestNeighbors
from sklearn.preprocessing import StandardScaler, normalize

from sksoftrank.detectors._rows import Codes, FloatArray, Rows
from sksoftrank.rank import EPS, principal_axes, size_of_share

# Parts that the rows of `fit` are cut into for a threshold that holds for new ones.
_FOLDS = 5


class Options(Protocol):
    """What a detector says of its methods."""

    n_neighbors: int
    n_components: str | float
    clip_quantile: float


class Method(ABC):
    """A score of rows; higher is more in-distribution."""

    name: ClassVar[str]
    uses_labels: ClassVar[bool] = False
    # Whether rows look better than new ones to statistics that they were part of.
    is_optimistic: ClassVar[bool] = False

    def fit(  # noqa: B027 - methods on logits need nothing
        self, rows: Rows, codes: Codes | None, options: Options
    ) -> None:
        """Compute what the score needs from in-distribution rows."""

    @abstractmethod
    def score(self, rows: Rows) -> FloatArray:
        """Return the score of each row (n,)."""

    def score_as_new(
        self, rows: Rows, codes: Codes | None, options: Options
    ) -> FloatArray:
        """Return scores that the rows of `fit` might have if they were new."""
        scores = self.score(rows)
        n = len(scores)
        if not self.is_optimistic:
            return scores
        # Each part by the statistics of the others. Shuffled: rows may come by class.
        order = np.random.default_rng(0).permutation(n)
        for part in np.array_split(order, _n_parts(n)):
            others = np.setdiff1d(order, part)
            method = type(self)()
            try:
                method.fit(
                    rows.take(others), None if codes is None else codes[others], options
                )
            except ValueError as error:
                raise ValueError(
                    f"The threshold for new rows takes {len(others)} of the n_samples "
                    f"= {n} rows given to fit, to score the others by, and of these: "
                    f"{error}"
                ) from error
            scores[part] = method.score(rows.take(part))
        return scores


def _n_others(rows: Rows) -> int:
    """Return how many rows, at the least, statistics for the threshold come from."""
    n = len(rows.features)
    return n if rows.whole is not None else n - -(-n // _n_parts(n))


def _n_parts(n: int) -> int:
    """Return into how many parts rows are cut; few rows are left out one by one."""
    return _FOLDS if n > 2 * _FOLDS else n


class _MSP(Method):
    name = "msp"

    def score(self, rows: Rows) -> FloatArray:
        return rows.log_proba.max(axis=1)


class _MaxLogit(Method):
    name = "max_logit"

    def score(self, rows: Rows) -> FloatArray:
        return rows.logits.max(axis=1)


class _Energy(Method):
    name = "energy"

    def score(self, rows: Rows) -> FloatArray:
        return logsumexp(rows.logits, axis=1)


class _Entropy(Method):
    name = "entropy"

    def score(self, rows: Rows) -> FloatArray:
        return (np.exp(rows.log_proba) * rows.log_proba).sum(axis=1)


class _ReAct(Method):
    name = "react"

    def fit(self, rows: Rows, codes: Codes | None, options: Options) -> None:
        self.clip = float(np.quantile(rows.features, options.clip_quantile))
        self.head = rows.head

    def score(self, rows: Rows) -> FloatArray:
        W, b = self.head
        return logsumexp(np.minimum(rows.features, self.clip) @ W + b, axis=1)


class _KNN(Method):
    name = "knn"

    def fit(self, rows: Rows, codes: Codes | None, options: Options) -> None:
        n = len(rows.features)
        if options.n_neighbors >= n:
            raise ValueError(
                f"n_neighbors must be less than the n_samples = {n} rows given to fit, "
                f"got {options.n_neighbors}. Lower it, or pass more rows."
            )
        self.neighbors = NearestNeighbors(n_neighbors=options.n_neighbors)
        self.neighbors.fit(normalize(rows.features))
        self.eps = rows.eps

    def score(self, rows: Rows) -> FloatArray:
        return self._score(rows, normalize(rows.features))

    def _score(self, rows: Rows, queries: FloatArray | None) -> FloatArray:
        distances = self.neighbors.kneighbors(queries)[0][:, -1]
        # Of equal rows it is rounding: the root of it, where found from squares.
        least = 8 * max(np.sqrt(EPS), self.eps, rows.eps)
        return -np.where(distances > least, distances, 0.0)

    def score_as_new(
        self, rows: Rows, codes: Codes | None, options: Options
    ) -> FloatArray:
        # No row is its own neighbour, as none of the new ones will be.
        return self._score(rows, None)


class _Mahalanobis(Method):
    name = "mahalanobis"
    uses_labels = True
    is_optimistic = True

    def fit(self, rows: Rows, codes: Codes | None, options: Options) -> None:
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

    def score(self, rows: Rows) -> FloatArray:
        whitened = (rows.features - self.start) @ self.whiten
        return -cdist(whitened, self.centers, "sqeuclidean").min(axis=1)


class _RelativeMahalanobis(_Mahalanobis):
    name = "relative_mahalanobis"

    def fit(self, rows: Rows, codes: Codes | None, options: Options) -> None:
        super().fit(rows, codes, options)
        self.mean = self.start + (rows.features - self.start).mean(axis=0)
        self.background = _whitening(
            rows.features - self.mean,
            rows.rounding,
            f"method={self.name!r} needs rows that differ",
        )

    def score(self, rows: Rows) -> FloatArray:
        whitened = (rows.features - self.mean) @ self.background
        return super().score(rows) + (whitened**2).sum(axis=1)


class _Residual(Method):
    name = "residual"
    is_optimistic = True

    def fit(self, rows: Rows, codes: Codes | None, options: Options) -> None:
        W, b = rows.head
        # The point of the features' row space that the head maps to zero logits.
        self.origin = -linalg.pinv(W.T) @ b
        Z = rows.features - self.origin
        variances, directions = _spectrum(
            Z,
            rows.rounding,
            f"method={self.name!r} needs features away from the point of no logits",
        )
        rank, width = len(variances), Z.shape[1]
        size: Any = options.n_components
        if size == "auto":
            # As in the code of the paper.
            size = 1000 if width >= 2048 else 512 if width >= 768 else width // 2
        elif not isinstance(size, Integral):
            size = size_of_share(variances, size)
        elif int(size) >= rank:
            raise ValueError(
                f"n_components must be less than the rank {rank} of the features "
                f"(n_samples = {len(Z)}, n_features = {width}), got {size}: nothing "
                "would remain outside the principal space. Lower it, or use 'auto'."
            )
        elif int(size) >= (n_others := _n_others(rows)):
            raise ValueError(
                f"n_components must be less than {n_others}, got {size}: of the "
                f"n_samples = {len(Z)} rows given to fit, so many set the threshold at "
                "a time, by scoring the others. Lower it, or use 'auto'."
            )
        # As many for the parts that set the threshold: with fewer rows left outside,
        # "vim" would scale by another length.
        self.null_space = directions[:, min(size, rank - 1, _n_others(rows) - 1) :]

    def residual(self, rows: Rows) -> FloatArray:
        return linalg.norm((rows.features - self.origin) @ self.null_space, axis=1)

    def score(self, rows: Rows) -> FloatArray:
        return -self.residual(rows)


class _ViM(_Residual):
    name = "vim"

    def fit(self, rows: Rows, codes: Codes | None, options: Options) -> None:
        super().fit(rows, codes, options)
        mean = float(rows.logits.max(axis=1).mean())
        if mean <= 0.0:
            raise ValueError(
                "method='vim' needs maximum logits with a positive mean, to scale the "
                f"virtual logit by, got {mean:.3g}. Use 'residual' instead."
            )
        self.alpha = mean / float(self.residual(rows).mean())

    def score(self, rows: Rows) -> FloatArray:
        # log(1 / ViM - 1), which orders as the paper's probability and never saturates.
        return logsumexp(rows.logits, axis=1) - self.alpha * self.residual(rows)


class _NECO(Method):
    name = "neco"

    def fit(self, rows: Rows, codes: Codes | None, options: Options) -> None:
        # As in the code of the paper: its equation has neither scaling nor logit.
        self.start = rows.features[0]  # Constant columns are then zero, unrounded.
        self.scaler = (
            StandardScaler()
            .set_output(transform="default")
            .fit(rows.features - self.start)
        )
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
            n_components = size_of_share(variances, n_components)
        elif n_components > width:
            raise ValueError(
                f"n_components must be at most the {width} columns of the features, "
                f"got {n_components}. Lower it, or use 'auto'."
            )
        self.components = directions[:, :n_components]

    def score(self, rows: Rows) -> FloatArray:
        Z = self.scaler.transform(rows.features - self.start)
        norm = linalg.norm(Z, axis=1)
        # A row at the very mean has no direction, and none to speak for it.
        share = linalg.norm(Z @ self.components, axis=1) / np.where(norm > 0, norm, 1.0)
        return share * rows.logits.max(axis=1)


def _spectrum(
    deviations: FloatArray, rounding: float, need: str
) -> tuple[FloatArray, FloatArray]:
    """Return the variances that are no rounding, and all directions (d, d) as columns.

    Around zero, by decreasing variance.
    """
    n, d = deviations.shape
    s, axes = principal_axes(deviations, np.sqrt(n) * rounding)
    variances = s[s > 0] ** 2 / n
    if n < 2 or not len(variances):
        raise ValueError(
            f"{need}, got n_samples = {n} of {d} columns that do not. Pass more rows, "
            "or use a method on logits, such as 'energy'."
        )
    return variances, axes.T


def _whitening(deviations: FloatArray, rounding: float, need: str) -> FloatArray:
    """Return the map (d, r) to coordinates of unit variance.

    As a pseudo-inverse of the covariance, it leaves out directions without variance.
    """
    variances, directions = _spectrum(deviations, rounding, need)
    return directions[:, : len(variances)] / np.sqrt(variances)


METHODS: dict[str, type[Method]] = {
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
