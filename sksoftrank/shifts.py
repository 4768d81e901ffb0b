"""Distribution shifts with severities from 1 to 5, as scikit-learn transformers.

`fit` reads the scale of the data (standard deviations, range), `transform` returns a
shifted copy. A sensor's shifts work on any table; the image shifts need `image_shape`,
and rows that are flattened images. Of a frame the columns of numbers are shifted; the
others, such as categories, come back as they are.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from numbers import Integral
from typing import Any

import narwhals.stable.v2 as nw
import numpy as np
import numpy.typing as npt
from scipy import ndimage
from sklearn.base import (
    BaseEstimator,
    OneToOneFeatureMixin,
    TransformerMixin,
    _fit_context,
)
from sklearn.utils import check_array, check_random_state
from sklearn.utils._param_validation import Interval
from sklearn.utils.validation import check_is_fitted, validate_data

__all__ = [
    "Blur",
    "Brightness",
    "Contrast",
    "FeatureDropout",
    "GainDrift",
    "GaussianNoise",
    "OffsetDrift",
    "Pixelate",
]

Array = npt.NDArray[Any]


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

    severity: int

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
        self.scale_ = rows.std(axis=0, dtype=np.float64)
        self.min_, self.max_ = float(rows.min()), float(rows.max())
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
        rng = self._rng()
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
            rows: Array = validate_data(self, X, reset=reset, dtype=dtype)
            return rows
        if not is_frame:
            raise ValueError(
                f"X must be a frame with the columns {self._numeric}, as in fit, got "
                f"{type(X).__name__}. Pass what fit saw."
            )
        validate_data(self, X, reset=reset, skip_check_array=True)
        numbers = nw.from_native(X).select(nw.col(*self._numeric)).to_native()
        return check_array(numbers, dtype=dtype, estimator=self, input_name="X")

    def _rng(self) -> np.random.RandomState:
        seed = getattr(self, "random_state", None)
        # Fresh entropy rather than numpy's global generator.
        rng: np.random.RandomState = check_random_state(
            np.random.RandomState() if seed is None else seed
        )
        return rng

    def _learn(self, X: Array) -> None:
        """Read what else the shift needs of the data, and check it."""

    @abstractmethod
    def _shift(self, X: Array, level: float, rng: np.random.RandomState) -> Array:
        """Return the shifted rows; `X` is a float64 copy."""


class _RandomShift(_Shift):
    def __init__(
        self,
        severity: int = 3,
        *,
        random_state: int | np.random.RandomState | None = None,
    ) -> None:
        self.severity = severity
        self.random_state = random_state


class GaussianNoise(_RandomShift):
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
    min_ : float
        Smallest value of all.
    max_ : float
        Largest value of all.
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


class FeatureDropout(_RandomShift):
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
    min_ : float
        Smallest value of all.
    max_ : float
        Largest value of all.
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


class GainDrift(_RandomShift):
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
    min_ : float
        Smallest value of all.
    max_ : float
        Largest value of all.
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


class OffsetDrift(_RandomShift):
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
    min_ : float
        Smallest value of all.
    max_ : float
        Largest value of all.
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


class _ImageShift(_Shift):
    _parameter_constraints: dict[str, list[Any]] = {  # noqa: RUF012
        "severity": _Shift._parameter_constraints["severity"],
        "image_shape": ["array-like", None],
    }

    def __init__(
        self, severity: int = 3, *, image_shape: Sequence[int] | None = None
    ) -> None:
        self.severity = severity
        self.image_shape = image_shape

    def _learn(self, X: Array) -> None:
        sizes, n_values = self.image_shape, X.shape[1]
        if sizes is None:
            return
        if (
            len(sizes) not in (2, 3)
            or not all(isinstance(size, Integral) and size > 0 for size in sizes)
            or math.prod(map(int, sizes)) != n_values
        ):
            raise ValueError(
                "image_shape must be (channels, height, width) or (height, width), "
                f"positive integers with the {n_values} columns of X as their product,"
                f" got {sizes!r}. Pass the shape of one image."
            )

    def _shape(self) -> tuple[int, ...]:
        if self.image_shape is None:  # One channel, one row of pixels.
            return (1, 1, len(self.scale_))
        shape = tuple(int(size) for size in self.image_shape)
        return (1, *shape) if len(shape) == 2 else shape

    def _shift(self, X: Array, level: float, rng: np.random.RandomState) -> Array:
        images = X.reshape(-1, *self._shape())
        shifted = self._shift_images(images, level)
        # What a camera could have recorded.
        return np.clip(shifted, self.min_, self.max_).reshape(X.shape)

    @abstractmethod
    def _shift_images(self, images: Array, level: float) -> Array:
        """Return the shifted images (n, channels, height, width)."""


class Blur(_ImageShift):
    """Blur images with a Gaussian kernel.

    Parameters
    ----------
    severity : int, default=3
        From 1 to 5: a standard deviation of 2, 4, 6, 9 and 12 % of the image's longer
        side.
    image_shape : tuple of int, default=None
        (height, width) or (channels, height, width) of an image; None takes the row for
        a signal of one channel.

    Attributes
    ----------
    scale_ : ndarray of shape (n_numeric,)
        Standard deviation of each column of numbers.
    min_ : float
        Smallest value of all.
    max_ : float
        Largest value of all.
    n_features_in_ : int
        Columns seen during fit.
    feature_names_in_ : ndarray of shape (n_features_in_,)
        Names of the columns, where `X` had any.

    Examples
    --------
    >>> import numpy as np
    >>> from sksoftrank.shifts import Blur
    >>> X = np.eye(1, 64)
    >>> bool(Blur(image_shape=(8, 8)).fit_transform(X).max() < 1)
    True
    """

    _LEVELS = (0.02, 0.04, 0.06, 0.09, 0.12)

    def _shift_images(self, images: Array, level: float) -> Array:
        sigma = level * max(images.shape[2:])
        return ndimage.gaussian_filter(images, sigma, mode="nearest", axes=(2, 3))


class Contrast(_ImageShift):
    """Shrink the differences within each image around its mean.

    Parameters
    ----------
    severity : int, default=3
        From 1 to 5: 75, 60, 45, 30 and 20 % of the contrast remain.
    image_shape : tuple of int, default=None
        (height, width) or (channels, height, width) of an image; None takes the row for
        a signal of one channel.

    Attributes
    ----------
    scale_ : ndarray of shape (n_numeric,)
        Standard deviation of each column of numbers.
    min_ : float
        Smallest value of all.
    max_ : float
        Largest value of all.
    n_features_in_ : int
        Columns seen during fit.
    feature_names_in_ : ndarray of shape (n_features_in_,)
        Names of the columns, where `X` had any.

    Examples
    --------
    >>> import numpy as np
    >>> from sksoftrank.shifts import Contrast
    >>> Contrast(severity=1).fit_transform(np.array([[0.0, 4.0]]))
    array([[0.5, 3.5]])
    """

    _LEVELS = (0.75, 0.6, 0.45, 0.3, 0.2)

    def _shift_images(self, images: Array, level: float) -> Array:
        mean = images.mean(axis=(1, 2, 3), keepdims=True)
        return mean + level * (images - mean)


class Brightness(_ImageShift):
    """Add to every pixel a share of the training data's range.

    Parameters
    ----------
    severity : int, default=3
        From 1 to 5: 10, 20, 30, 40 and 50 % of the range.
    image_shape : tuple of int, default=None
        (height, width) or (channels, height, width) of an image; None takes the row for
        a signal of one channel.

    Attributes
    ----------
    scale_ : ndarray of shape (n_numeric,)
        Standard deviation of each column of numbers.
    min_ : float
        Smallest value of all.
    max_ : float
        Largest value of all.
    n_features_in_ : int
        Columns seen during fit.
    feature_names_in_ : ndarray of shape (n_features_in_,)
        Names of the columns, where `X` had any.

    Examples
    --------
    >>> import numpy as np
    >>> from sksoftrank.shifts import Brightness
    >>> Brightness(severity=1).fit_transform(np.array([[0.0, 1.0]]))
    array([[0.1, 1. ]])
    """

    _LEVELS = (0.1, 0.2, 0.3, 0.4, 0.5)

    def _shift_images(self, images: Array, level: float) -> Array:
        return images + level * (self.max_ - self.min_)


class Pixelate(_ImageShift):
    """Replace blocks of pixels by their mean.

    Parameters
    ----------
    severity : int, default=3
        From 1 to 5: blocks as large as if the image had 80, 65, 50, 40 and 25 % of its
        height and width.
    image_shape : tuple of int, default=None
        (height, width) or (channels, height, width) of an image; None takes the row for
        a signal of one channel.

    Attributes
    ----------
    scale_ : ndarray of shape (n_numeric,)
        Standard deviation of each column of numbers.
    min_ : float
        Smallest value of all.
    max_ : float
        Largest value of all.
    n_features_in_ : int
        Columns seen during fit.
    feature_names_in_ : ndarray of shape (n_features_in_,)
        Names of the columns, where `X` had any.

    Examples
    --------
    >>> import numpy as np
    >>> from sksoftrank.shifts import Pixelate
    >>> X = np.arange(16.0).reshape(1, 16)
    >>> Pixelate(severity=3, image_shape=(4, 4)).fit_transform(X).reshape(4, 4)
    array([[ 2.5,  2.5,  4.5,  4.5],
           [ 2.5,  2.5,  4.5,  4.5],
           [10.5, 10.5, 12.5, 12.5],
           [10.5, 10.5, 12.5, 12.5]])
    """

    _LEVELS = (0.8, 0.65, 0.5, 0.4, 0.25)

    def _shift_images(self, images: Array, level: float) -> Array:
        for axis in (2, 3):
            size = images.shape[axis]
            n_blocks = max(1, round(level * size))
            block = np.arange(size) * n_blocks // size
            starts = np.searchsorted(block, np.arange(n_blocks))
            widths = np.diff([*starts, size])
            sums = np.add.reduceat(images, starts, axis=axis)
            shape = [1] * images.ndim
            shape[axis] = n_blocks
            images = np.take(sums / widths.reshape(shape), block, axis=axis)
        return images
