"""Distribution shifts with severities from 1 to 5, as scikit-learn transformers.

`fit` reads the scale of the data (standard deviations, range), `transform` returns a
shifted copy. Of a frame the columns of numbers are shifted; the others, such as
categories, come back as they are. Shifts of images are in `sksoftrank.corruptions`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from numbers import Integral
from typing import Any

import narwhals.stable.v2 as nw
import numpy as np
import numpy.typing as npt
from sklearn.base import BaseEstimator, OneToOneFeatureMixin, TransformerMixin
from sklearn.utils import check_array, check_random_state
from sklearn.utils.validation import check_is_fitted, validate_data

from sksoftrank._sklearn import Interval, _fit_context, read_rows

__all__ = ["FeatureDropout", "GainDrift", "GaussianNoise", "OffsetDrift"]

Array = npt.NDArray[Any]


def shift_name(shift: Any) -> str:
    """Return what a shift is called: its kind if it has one, else its class."""
    return str(getattr(shift, "kind", type(shift).__name__))


def put_columns(X: Any, values: Any, names: Sequence[Any] | None = None) -> Any:
    """Return an array's columns as those called `names`, or all, in a copy of a frame.

    Of floats they keep the dtype. What is a frame, or comes from none, stays as it is.
    """
    is_frame = nw.dependencies.is_into_dataframe
    if not is_frame(X) or is_frame(values):
        return values
    frame = nw.from_native(X)
    schema = frame.schema
    return frame.with_columns(
        *(
            nw.new_series(
                name,
                np.ascontiguousarray(column),
                schema[name] if schema[name].is_float() else None,
                backend=frame.implementation,
            )
            for name, column in zip(names or frame.columns, values.T, strict=True)
        )
    ).to_native()


class _Shift(OneToOneFeatureMixin, TransformerMixin, BaseEstimator, ABC):
    """Base of the shifts: reads the scale at fit, shifts at transform."""

    _parameter_constraints: dict[str, list[Any]] = {  # noqa: RUF012
        "severity": [Interval(Integral, 1, 5, closed="both")],
        "random_state": ["random_state"],
    }
    # Strength of the shift at severities 1 to 5.
    _LEVELS: tuple[float, ...]

    def __init__(
        self,
        severity: int = 3,
        *,
        random_state: int | np.random.RandomState | None = None,
    ) -> None:
        self.severity = severity
        self.random_state = random_state

    @_fit_context(prefer_skip_nested_validation=True)
    def fit(self, X: npt.ArrayLike, y: Any = None) -> _Shift:
        """Read the scale of the data.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Rows as they are without the shift.
        y : None
            Ignored.

        Returns
        -------
        transformer
            Itself.
        """
        rows = self._read(X, reset=True)
        with np.errstate(over="ignore", invalid="ignore"):
            scale = rows.std(axis=0, dtype=np.float64)
        if not np.isfinite(scale).all():
            raise ValueError(
                "X must hold numbers whose squares are finite, got some up to "
                f"{np.abs(rows).max():.3g}. Scale its columns."
            )
        self.scale_ = scale
        self._learn(rows)
        return self

    def transform(self, X: npt.ArrayLike) -> Any:
        """Return a shifted copy of `X`.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Rows to shift.

        Returns
        -------
        ndarray or frame of shape (n_samples, n_features)
            In the dtype of `X`, whole numbers as float64; where `X` is a frame, one of
            its kind, whose other columns are those of `X`.
        """
        check_is_fitted(self)
        rows = self._read(X, reset=False)
        # Fresh entropy rather than numpy's global generator.
        rng = check_random_state(
            np.random.RandomState() if self.random_state is None else self.random_state
        )
        level = self._LEVELS[self.severity - 1]
        shifted = self._shift(rows.astype(np.float64), level, rng)
        return put_columns(X, shifted.astype(rows.dtype, copy=False), self._numeric)

    def _read(self, X: Any, *, reset: bool) -> Array:
        """Return the numbers of rows; at `reset` take note of which columns they are.

        None stands for all columns.
        """
        is_frame = nw.dependencies.is_into_dataframe(X)
        if reset:
            schema = nw.from_native(X).schema if is_frame else {}
            numeric = [name for name, dtype in schema.items() if dtype.is_numeric()]
            if schema and not numeric:
                raise ValueError(
                    "X must have a column of numbers to shift, got the dtypes "
                    f"{dict(schema)}. Convert one, or leave this shift out."
                )
            self._numeric = None if len(numeric) == len(schema) else numeric
        dtype = [np.float64, np.float32]
        if self._numeric is None:
            rows: Array = read_rows(self, X, reset=reset, dtype=dtype)
            return rows
        if not is_frame:
            raise ValueError(
                f"X must be a frame with the columns {self._numeric}, as in fit, got "
                f"{type(X).__name__}. Pass what fit saw."
            )
        validate_data(self, X, reset=reset, skip_check_array=True)
        numbers = nw.from_native(X).select(nw.col(*self._numeric)).to_native()
        return check_array(numbers, dtype=dtype, estimator=self, input_name="X")

    def _learn(self, X: Array) -> None:
        """Read what else the shift needs of the data."""

    @abstractmethod
    def _shift(self, X: Array, level: float, rng: np.random.RandomState) -> Array:
        """Return the shifted rows; `X` is a float64 copy."""


class GaussianNoise(_Shift):
    """Add noise to every value, in units of its column's standard deviation.

    Parameters
    ----------
    severity : int, default=3
        From 1 to 5: noise of 0.1, 0.25, 0.5, 0.75 and 1 standard deviations.
    random_state : int, RandomState instance or None, default=None
        Seeds the noise.

    Attributes
    ----------
    scale_ : ndarray of shape (n_numeric,)
        Standard deviation of each column of numbers.
    n_features_in_ : int
        Columns seen during fit.
    feature_names_in_ : ndarray of shape (n_features_in_,)
        Names of the columns, where `X` had any.

    Examples
    --------
    >>> import numpy as np
    >>> from sksoftrank.shifts import GaussianNoise
    >>> X = np.arange(6.0).reshape(3, 2)
    >>> GaussianNoise(severity=1, random_state=0).fit_transform(X).shape
    (3, 2)
    """

    _LEVELS = (0.1, 0.25, 0.5, 0.75, 1.0)

    def _shift(self, X: Array, level: float, rng: np.random.RandomState) -> Array:
        return X + level * self.scale_ * rng.standard_normal(X.shape)


class FeatureDropout(_Shift):
    """Set columns to their training mean, the same ones for every row.

    Parameters
    ----------
    severity : int, default=3
        From 1 to 5: 5, 10, 20, 35 and 50 % of the columns, at least one.
    random_state : int, RandomState instance or None, default=None
        Seeds the choice of columns.

    Attributes
    ----------
    scale_ : ndarray of shape (n_numeric,)
        Standard deviation of each column of numbers.
    mean_ : ndarray of shape (n_numeric,)
        Mean of each column of numbers.
    n_features_in_ : int
        Columns seen during fit.
    feature_names_in_ : ndarray of shape (n_features_in_,)
        Names of the columns, where `X` had any.

    Examples
    --------
    >>> import numpy as np
    >>> from sksoftrank.shifts import FeatureDropout
    >>> X = np.array([[0.0, 0.0], [2.0, 2.0]])
    >>> FeatureDropout(severity=1, random_state=0).fit_transform(X)
    array([[0., 1.],
           [2., 1.]])
    """

    _LEVELS = (0.05, 0.1, 0.2, 0.35, 0.5)

    def _learn(self, X: Array) -> None:
        self.mean_ = X.mean(axis=0, dtype=np.float64)

    def _shift(self, X: Array, level: float, rng: np.random.RandomState) -> Array:
        n_dropped = max(1, round(level * X.shape[1]))
        columns = rng.permutation(X.shape[1])[:n_dropped]
        X[:, columns] = self.mean_[columns]
        return X


class GainDrift(_Shift):
    """Multiply each column by a factor of its own, as a sensor that ages.

    Parameters
    ----------
    severity : int, default=3
        From 1 to 5: the factors' logarithms have a standard deviation of 0.05, 0.1,
        0.2, 0.35 and 0.5.
    random_state : int, RandomState instance or None, default=None
        Seeds the factors.

    Attributes
    ----------
    scale_ : ndarray of shape (n_numeric,)
        Standard deviation of each column of numbers.
    n_features_in_ : int
        Columns seen during fit.
    feature_names_in_ : ndarray of shape (n_features_in_,)
        Names of the columns, where `X` had any.

    Examples
    --------
    >>> import numpy as np
    >>> from sksoftrank.shifts import GainDrift
    >>> X = np.ones((2, 1))
    >>> GainDrift(severity=3, random_state=0).fit_transform(X).round(2)
    array([[1.42],
           [1.42]])
    """

    _LEVELS = (0.05, 0.1, 0.2, 0.35, 0.5)

    def _shift(self, X: Array, level: float, rng: np.random.RandomState) -> Array:
        return X * np.exp(level * rng.standard_normal(X.shape[1]))


class OffsetDrift(_Shift):
    """Add to each column an offset of its own, as a sensor whose zero moves.

    Parameters
    ----------
    severity : int, default=3
        From 1 to 5: offsets of 0.1, 0.25, 0.5, 0.75 and 1 standard deviations of the
        column, times a normal variable.
    random_state : int, RandomState instance or None, default=None
        Seeds the offsets.

    Attributes
    ----------
    scale_ : ndarray of shape (n_numeric,)
        Standard deviation of each column of numbers.
    n_features_in_ : int
        Columns seen during fit.
    feature_names_in_ : ndarray of shape (n_features_in_,)
        Names of the columns, where `X` had any.

    Examples
    --------
    >>> import numpy as np
    >>> from sksoftrank.shifts import OffsetDrift
    >>> X = np.array([[0.0], [2.0]])
    >>> OffsetDrift(severity=3, random_state=0).fit_transform(X).round(2)
    array([[0.88],
           [2.88]])
    """

    _LEVELS = (0.1, 0.25, 0.5, 0.75, 1.0)

    def _shift(self, X: Array, level: float, rng: np.random.RandomState) -> Array:
        return X + level * self.scale_ * rng.standard_normal(X.shape[1])
