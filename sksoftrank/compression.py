"""Projection of a representation on its leading directions, and how many to keep."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from numbers import Integral, Real
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from sklearn.base import (
    BaseEstimator,
    ClassNamePrefixFeaturesOutMixin,
    TransformerMixin,
)
from sklearn.utils import Tags, column_or_1d
from sklearn.utils.extmath import svd_flip
from sklearn.utils.validation import check_consistent_length, check_is_fitted
from torch import Tensor

from sksoftrank._checks import check_readable
from sksoftrank._sklearn import (
    Interval,
    StrOptions,
    _fit_context,
    check_weights,
    read_rows,
)
from sksoftrank.rank import principal_axes, size_of_share
from sksoftrank.theory import argmaxable_among

__all__ = ["RankCompressor"]

FloatArray = npt.NDArray[np.float64]
Head = Callable[[Tensor], Tensor]

# Share of the variance that "auto" keeps where no head says what matters.
AUTO_SHARE = 0.99
# New rows have smaller margins than rows trained on, so that these hardly show what a
# size costs: many rows that lose a little of their margin tell more than the few that
# lose all of it. Both from benchmarks/promise.py.
MARGIN_LOSS = 0.2
ROWS_PER_ERROR = 8
# Of 1,000 classes each takes some 10 ms, at several sizes. More classes that no row of
# the fit is given are those of a network that has learned little.
MOST_PROGRAMMES = 100
# Coordinates computed at a time in the search for a sufficient size.
_COORDINATES = 32


class RankCompressor(ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseEstimator):
    """Project rows on the leading principal directions of a representation.

    A principal component analysis that takes sample weights and can choose its size by
    what a classifier's head makes of the reconstruction.

    Parameters
    ----------
    n_components : "auto", int, float or None, default="auto"
        Directions to keep. "auto" keeps the fewest whose reconstruction, passed
        through the `head` handed to `fit`, is expected to keep accuracy on new rows
        within `tol` of the full representation, and can reach every class that the
        rows hold; without a head, those that hold 99 % of the variance. An int keeps
        that many, a float in (0, 1) the fewest that hold that share of the variance,
        None all.
    tol : float, default=0.005
        In [0, 1). Accuracy that "auto" may lose on new rows, as a share of them. The
        loss is taken for that on the rows of `fit`, or for an eighth of the loss where
        a row counts as right only while it keeps four fifths of its margin (the lead
        of its class's score over the next), whichever is more.

    Attributes
    ----------
    components_ : ndarray of shape (n_components_, n_features_in_)
        Orthonormal directions, by decreasing variance.
    mean_ : ndarray of shape (n_features_in_,)
        Weighted mean of the rows.
    n_components_ : int
        Directions kept, at least one.
    singular_values_ : ndarray of shape (n_features_in_,)
        All singular values of the centred rows, each row multiplied by the square
        root of its weight; descending.
    explained_variance_ratio_ : ndarray of shape (n_components_,)
        Share of the variance along each direction kept; zeros if there is none.
    n_features_in_ : int
        Columns seen during fit.
    feature_names_in_ : ndarray of shape (n_features_in_,)
        Names of the columns, where `X` had any.

    Raises
    ------
    ValueError
        At fit, if `n_components` exceeds the number of columns, or a head comes
        without `y`, or with a `y` that isn't a column of its output.

    Warns
    -----
    UserWarning
        At fit, if an int or a float keeps so few directions that the head can give a
        class of the rows to no embedding at all.

    See Also
    --------
    sklearn.decomposition.PCA : Without weights, and without the head-aware size.

    Notes
    -----
    The loss that "auto" expects is an estimate: for networks on tables, the one on new
    rows stayed within `tol` in more than nine cases of ten (``benchmarks/promise.py``).
    It is a share of the weight of the rows, so that rows repeated, or weights scaled,
    change nothing, and has no bound for chance: of some ten rows "auto" can keep too
    little. The rows trained on serve well; of others, take a thousand.

    Examples
    --------
    >>> import numpy as np
    >>> from sksoftrank import RankCompressor
    >>> X = np.random.RandomState(0).randn(100, 2) @ [[3.0, 0.0, 1.0], [0.0, 2.0, 1.0]]
    >>> compressor = RankCompressor().fit(X)
    >>> compressor.n_components_
    2
    >>> bool(np.allclose(compressor.inverse_transform(compressor.transform(X)), X))
    True
    """

    _parameter_constraints = {  # noqa: RUF012
        "n_components": [
            StrOptions({"auto"}),
            Interval(Integral, 1, None, closed="left"),
            Interval(Real, 0, 1, closed="neither"),
            None,
        ],
        "tol": [Interval(Real, 0, 1, closed="left")],
    }

    def __init__(
        self,
        n_components: str | float | None = "auto",
        *,
        tol: float = 0.005,
    ) -> None:
        self.n_components = n_components
        self.tol = tol

    @_fit_context(prefer_skip_nested_validation=True)
    def fit(
        self,
        X: npt.ArrayLike,
        y: npt.ArrayLike | None = None,
        sample_weight: npt.ArrayLike | None = None,
        *,
        head: Head | None = None,
    ) -> RankCompressor:
        """Find the directions of `X` and choose how many to keep.

        Parameters
        ----------
        X : array-like of shape (n, d)
            The representation, one row a sample.
        y : array-like of shape (n,), default=None
            Column of the head's output that is right for each row, counted from zero;
            needed with `head` only.
        sample_weight : array-like of shape (n,), default=None
            Non-negative weights; a weight of two is the row twice.
        head : callable, default=None
            Affine map from float64 tensors (m, d) of the representation to scores of
            the classes (m, c), for ``n_components="auto"`` and for the warning.

        Returns
        -------
        RankCompressor
            Itself.
        """
        Z = read_rows(self, X, dtype=[np.float64, np.float32])
        weight = check_weights(sample_weight, Z)
        self._check_size(Z.shape[1])
        check_consistent_length(Z, y)
        codes = None if head is None else _check_codes(y, head, Z[:1])

        # In double precision: small directions are differences of large sums. In torch,
        # because between two training steps a second library's threads, waking up
        # next to torch's, would cost more than the work.
        z, w = _tensor(Z, np.float64), _tensor(weight, np.float64)
        magnitude = float((w @ z.square()).sum().sqrt())
        if not magnitude < math.inf:
            raise ValueError(
                "X and sample_weight must have finite squares and sums, got numbers "
                f"up to {float(z.abs().max()):.3g} and weights up to "
                f"{float(w.max()):.3g}. Divide them by a number."
            )
        # From the heaviest row, so that the mean is rounded at the scale of the spread
        # and not of the offset: of equal rows nothing is left, however many they are.
        origin = z[w.argmax()]
        centered = z - origin
        shift = w @ centered / w.sum()
        centered -= shift
        mean = origin + shift
        weighted = centered if sample_weight is None else centered * w.sqrt()[:, None]
        rounding = float(np.finfo(Z.dtype).eps) * magnitude
        s, axes = principal_axes(weighted, rounding, torch.linalg)
        _, directions = svd_flip(None, axes, u_based_decision=False)

        if head is None or codes is None:
            size = self._size_from_spectrum(s)
        else:
            seen = _Seen(centered, mean, torch.from_numpy(directions), head)
            if self.n_components == "auto":
                size = _sufficient_size(seen, codes, w / w.sum(), self.tol)
            else:
                size = self._size_from_spectrum(s)
            is_auto = self.n_components == "auto"
            present = codes[w > 0].unique().numpy()
            least, lost = seen.least_size(present, size, in_doubt_all=is_auto)
            if self.n_components == "auto" and least > size:
                size = _sufficient_size(seen, codes, w / w.sum(), self.tol, least)
            elif least > size:
                warnings.warn(
                    f"n_components={self.n_components!r} must keep enough directions "
                    f"for every class of the rows, but with {size} the head can give "
                    f"no embedding the classes at positions {lost} of its output. Keep "
                    f"at least {least}, or use 'auto'.",
                    UserWarning,
                    stacklevel=2,
                )
        self.mean_ = mean.numpy().astype(Z.dtype)
        # A copy: a slice would keep all of the basis alive.
        self.components_ = directions[:size].astype(Z.dtype, order="C")
        self.singular_values_ = s
        total = (s**2).sum()
        self.explained_variance_ratio_ = s[:size] ** 2 / (total if total > 0 else 1.0)
        self.n_components_ = size
        return self

    def _check_size(self, n_features: int) -> None:
        size = self.n_components
        if isinstance(size, Integral) and size > n_features:
            raise ValueError(
                f"n_components must be at most the {n_features} columns of the "
                f"representation, got {size}. Lower it, or use 'auto'."
            )

    def _size_from_spectrum(self, s: FloatArray) -> int:
        if self.n_components is None:
            return len(s)
        if isinstance(self.n_components, Integral):
            return int(self.n_components)
        share = AUTO_SHARE if self.n_components == "auto" else float(self.n_components)
        return size_of_share(s**2, share)

    def transform(self, X: npt.ArrayLike) -> npt.NDArray[Any]:
        """Return the coordinates of `X` along the directions kept.

        Parameters
        ----------
        X : array-like of shape (n, d)
            The representation.

        Returns
        -------
        ndarray of shape (n, n_components_)
            In the dtype of `X`.
        """
        check_is_fitted(self)
        Z = read_rows(self, X, dtype=[np.float64, np.float32], reset=False)
        components = self.components_.astype(Z.dtype, copy=False)
        return (Z - self.mean_.astype(Z.dtype, copy=False)) @ components.T

    def inverse_transform(self, X: npt.ArrayLike) -> npt.NDArray[Any]:
        """Return the rows in the representation's space that `X` stands for.

        Parameters
        ----------
        X : array-like of shape (n, n_components_)
            Coordinates from `transform`.

        Returns
        -------
        ndarray of shape (n, d)
            The reconstruction, in the dtype of `X`.
        """
        check_is_fitted(self)
        X = np.asarray(X)
        if X.ndim != 2 or X.shape[1] != self.n_components_:
            raise ValueError(
                f"X must have the {self.n_components_} columns that transform returns, "
                f"got shape {X.shape}. Pass its output."
            )
        dtype = X.dtype if X.dtype == np.float32 else np.float64
        return X.astype(dtype, copy=False) @ self.components_.astype(
            dtype, copy=False
        ) + self.mean_.astype(dtype, copy=False)

    @property
    def _n_features_out(self) -> int:
        return self.n_components_

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.transformer_tags.preserves_dtype = ["float64", "float32"]
        return tags


def _tensor(values: npt.NDArray[Any], dtype: npt.DTypeLike) -> Tensor:
    """Return a tensor of its own memory: torch takes no read-only or reversed array."""
    return torch.from_numpy(np.array(values, dtype=dtype, order="C"))


def _check_codes(y: npt.ArrayLike | None, head: Head, row: npt.NDArray[Any]) -> Tensor:
    """Return the right column of the head's output for each row, by its number."""
    if y is None:
        raise ValueError(
            "y must hold the right class of each row when head is given, got None. "
            "Pass y, or leave head out."
        )
    check_readable("y", y)
    labels = column_or_1d(y)
    n_columns = head(_tensor(row, np.float64)).shape[1]
    known = np.zeros(len(labels), dtype=bool)
    if labels.dtype.kind in "biufO":
        known = np.isin(labels, np.arange(n_columns))
    if not known.all():
        raise ValueError(
            "y must hold the right column of the head's output for each row, from 0 to "
            f"{n_columns - 1}, got {labels[~known].tolist()[0]!r}. Encode the labels "
            "in the order of those columns, e.g. with LabelEncoder, or leave head out."
        )
    return _tensor(labels, np.int64)


class _Seen:
    """Rows, the directions, and what the head makes of each direction."""

    def __init__(
        self, centered: Tensor, mean: Tensor, directions: Tensor, head: Head
    ) -> None:
        self.centered, self.directions = centered, directions
        with torch.no_grad():
            self.origin = head(mean[None])
            # (d, c): what each direction adds, since the head is affine.
            self.effects = head(directions + mean) - self.origin

    def unseen_classes(
        self, classes: npt.NDArray[np.int64], size: int
    ) -> npt.NDArray[np.int64]:
        """Return those classes that the head gives to no row of the fit."""
        effects = self.effects[:size]
        logits = self.centered @ (self.directions[:size].T @ effects) + self.origin
        return np.setdiff1d(classes, logits.argmax(dim=1).unique().numpy())

    def lost_classes(
        self, classes: npt.NDArray[np.int64], size: int
    ) -> npt.NDArray[np.int64]:
        """Return those classes that the head gives to no row of so many coordinates."""
        effects = self.effects[:size]
        # A class that some row of the fit is given needs no linear programme.
        classes = self.unseen_classes(classes, size)
        reached = argmaxable_among(classes, effects.T.numpy(), self.origin[0].numpy())
        return classes[~reached]

    def least_size(
        self, classes: npt.NDArray[np.int64], size: int, *, in_doubt_all: bool = False
    ) -> tuple[int, list[int]]:
        """Return the least size from `size` on that loses no class, and those lost.

        Of the classes that all directions can reach: the others were lost before. At
        will all directions are kept where it would take many linear programmes to say.
        """
        high = len(self.directions)
        if size >= high:
            return size, []
        if in_doubt_all and len(self.unseen_classes(classes, size)) > MOST_PROGRAMMES:
            return high, []
        lost = self.lost_classes(classes, size)
        if len(lost):
            lost = np.setdiff1d(lost, self.lost_classes(lost, high))
        if not len(lost):
            return size, []
        low = size + 1
        while low < high:  # What few directions reach more do, too.
            middle = (low + high) // 2
            if len(self.lost_classes(lost, middle)):
                low = middle + 1
            else:
                high = middle
        return low, lost.tolist()


def _sufficient_size(
    seen: _Seen, codes: Tensor, weight: Tensor, tol: float, least: int = 1
) -> int:
    """Return the fewest directions that lose at most `tol` of the head's accuracy.

    From `least` on.

    The head is affine, so that each direction adds a rank-one term to the logits: all
    sizes up to the answer cost one pass, where reconstructing each would cost as many.
    """
    directions, effects, rows = seen.directions, seen.effects, seen.centered.T
    offset = seen.origin.T.expand(-1, rows.shape[1])
    right = codes[None]
    full = offset + (effects.T @ directions) @ rows
    handicap, loss = expected_loss(full, right, weight)
    # (c, n): reductions over the classes go along the rows.
    logits = offset.scatter_add(0, right, -handicap)
    for start in range(0, len(directions), _COORDINATES):
        coordinates = directions[start : start + _COORDINATES] @ rows
        for size, coordinate in enumerate(coordinates, start=start + 1):
            logits.addr_(effects[size - 1], coordinate)
            # The slack absorbs the rounding of the weighted means.
            if size >= least and loss(logits) <= tol + 1e-12:
                return size
    return len(directions)


def expected_loss(
    full: Tensor, right: Tensor, weight: Tensor
) -> tuple[Tensor, Callable[[Tensor], float]]:
    """Return what tells how much accuracy a reduced network loses on new rows.

    Parameters
    ----------
    full : Tensor of shape (n_classes, n)
        Logits of the whole network.
    right : Tensor of shape (1, n)
        The class of each row.
    weight : Tensor of shape (n,)
        Of the rows, of sum 1.

    Returns
    -------
    handicap : Tensor of shape (1, n)
        To be subtracted from the logits of each row's class.
    loss : callable
        From the logits of the reduced network (n_classes, n), less the handicap, to the
        loss of accuracy to be expected.
    """
    own = full.gather(0, right)[0]
    margin = own - full.scatter(0, right, -torch.inf).amax(dim=0)
    before = weight @ (margin < 0).to(weight.dtype)
    # Lowered by what a right row may not lose, its class must still be the best.
    handicap = (1 - MARGIN_LOSS) * margin.clamp(0, torch.finfo(margin.dtype).max)
    # All but a trace of it given back, its class must be the best: of a right row that
    # keeps no margin, rounding would decide.
    relief = (1 - 1e-9) * handicap

    def loss(logits: Tensor) -> float:
        own, best = logits.gather(0, right)[0], logits.amax(dim=0)
        wrong = torch.stack([best > own + relief, best > own]).to(weight.dtype)
        on_rows, of_margins = (wrong @ weight - before).tolist()
        return max(on_rows, of_margins / ROWS_PER_ERROR)

    return handicap[None], loss
