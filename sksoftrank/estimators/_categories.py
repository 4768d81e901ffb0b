"""Columns of categories: which they are, and what a network takes in for them."""

from __future__ import annotations

import sys
from collections.abc import Hashable
from typing import Any, Self

import narwhals.stable.v2 as nw
import numpy as np
import numpy.typing as npt
from scipy import sparse
from sklearn.preprocessing import OneHotEncoder, OrdinalEncoder
from sklearn.utils import _safe_indexing

from sksoftrank._sklearn import _num_features, is_scalar_nan

Array = npt.NDArray[Any]
_CATEGORICAL = (nw.Boolean, nw.Categorical, nw.Enum, nw.String)
# Rows of one-hot columns that are wider are kept sparse: they are nearly all zeros.
_DENSE_COLUMNS = 512


class CategoryEncoder:
    """Puts the columns of categories first, as codes from zero.

    Code 0 is "the rest": categories that fit saw in one row alone, and those that it
    did not see. By Good and Turing's argument what was never seen looks like what was
    seen once. A missing value that fit saw has a code of its own, the last.

    Parameters
    ----------
    is_categorical : ndarray of shape (n_features,)
        Which columns hold categories.
    handle_unknown : {"infrequent_if_exist", "error"}
        Whether there is a rest; without it an unseen category is an error.
    """

    def __init__(
        self, is_categorical: npt.NDArray[np.bool_], handle_unknown: str
    ) -> None:
        self.is_categorical = is_categorical
        self.handle_unknown = handle_unknown
        self._categorical = np.flatnonzero(is_categorical)
        self._numeric = np.flatnonzero(~is_categorical)

    @classmethod
    def find(cls, X: Any, features: Any, handle_unknown: str) -> Self | None:
        """Return an encoder for the columns that `features` means; None for none."""
        if features is None:
            return None
        if isinstance(features, str):
            if not nw.dependencies.is_into_dataframe(X):
                return None
            columns = nw.from_native(X).iter_columns()
            is_categorical = np.array([_holds_categories(c) for c in columns])
        else:
            is_categorical = cls._mask(X, features, getattr(X, "columns", None))
        return cls(is_categorical, handle_unknown) if is_categorical.any() else None

    @staticmethod
    def _mask(X: Any, features: Any, columns: Any) -> npt.NDArray[np.bool_]:
        n_features = _num_features(X)
        chosen = np.asarray(features)
        if chosen.dtype.kind == "b" and chosen.shape == (n_features,):
            return chosen
        mask = np.zeros(n_features, dtype=bool)
        if chosen.dtype.kind in "OU" and columns is not None:
            places = {name: place for place, name in enumerate(columns)}
            if all(name in places for name in chosen.tolist()):
                mask[[places[name] for name in chosen.tolist()]] = True
                return mask
        elif chosen.size == 0:
            return mask
        elif (
            chosen.dtype.kind in "iu"
            and chosen.ndim == 1
            and chosen.min() >= 0
            and chosen.max() < n_features
        ):
            mask[chosen] = True
            return mask
        raise ValueError(
            "categorical_features must be 'from_dtype', None, or indices, names or a "
            f"mask of the {n_features} columns of X, got {features!r}. Names need a "
            "frame."
        )

    @property
    def key(self) -> Hashable:
        """What encoders that encode alike agree in."""
        return self.is_categorical.tobytes(), self.handle_unknown

    @property
    def n_columns(self) -> int:
        """Number of columns that `transform` returns."""
        return len(self.is_categorical)

    def _columns(self, X: Any, indices: npt.NDArray[np.intp]) -> Array:
        if sparse.issparse(X):
            raise ValueError(
                "X must be dense where columns hold categories, got a sparse "
                f"{type(X).__name__}. Use X.toarray(), or categorical_features=None."
            )
        if isinstance(X, list | tuple):
            X = np.asarray(X, dtype=object)
        part = _safe_indexing(X, indices, axis=1)
        values: Array = part.to_numpy() if hasattr(part, "to_numpy") else part
        return np.asarray(values)

    def _names(self, X: Any, columns: npt.ArrayLike) -> list[Any]:
        names = list(getattr(X, "columns", range(len(self.is_categorical))))
        return [names[column] for column in np.atleast_1d(columns)]

    def fit(self, X: Any) -> Self:
        """Learn the categories of each column."""
        encoder = OrdinalEncoder(
            handle_unknown="use_encoded_value",
            unknown_value=-1,
            encoded_missing_value=-2,
            min_frequency=1 if self.handle_unknown == "error" else 2,
        ).set_output(transform="default")
        try:
            encoder.fit(_as_categories(self._columns(X, self._categorical)))
        except TypeError as error:  # They can't be sorted.
            raise ValueError(
                "X must hold either text or numbers in a column of categories, got "
                f"both: {error}. Turn the column into text."
            ) from error
        self._encoder = encoder
        rare = [() if c is None else c for c in encoder.infrequent_categories_]
        known = encoder.categories_
        self._has_rest = np.array([len(c) > 0 for c in rare])
        has_missing = np.array([is_scalar_nan(c[-1]) for c in known], dtype=int)
        n_known = np.array([len(c) for c in known]) - [len(c) for c in rare]
        self._n_frequent = n_known - has_missing
        self.cardinalities = tuple((1 + n_known).tolist())
        return self

    def transform(self, X: Any) -> Any:
        """Return what stands for the categories, then the numbers."""
        codes = self._encode(self._codes(X))
        numbers = self._numbers(X)
        if sparse.issparse(codes):
            return sparse.hstack([codes, numbers], format="csr")
        return np.hstack([codes, numbers])

    def _encode(self, codes: npt.NDArray[np.float64]) -> Any:
        return codes

    def _codes(self, X: Any) -> npt.NDArray[np.float64]:
        values = _as_categories(self._columns(X, self._categorical))
        codes = self._encoder.transform(values)
        is_unknown = codes == -1
        if self.handle_unknown == "error" and is_unknown.any():
            row, place = np.argwhere(is_unknown)[0]
            (name,) = self._names(X, self._categorical[place])
            known = self._encoder.categories_[place].tolist()
            raise ValueError(
                f"X must hold only categories seen in fit, got {values[row, place]!r} "
                f"in column {name!r}, not among {known[:10]}. Map it to one of them, "
                "or to a missing value if fit saw one, or set "
                "handle_unknown='infrequent_if_exist'."
            )
        # The encoder's codes are those of the frequent ones, then that of the rest.
        n = self._n_frequent
        return np.select(
            [codes == -2, is_unknown | (codes == n)], [n + 1.0, 0.0], codes + 1
        )

    def _check_dtypes(self, X: Any) -> None:
        if not nw.dependencies.is_into_dataframe(X):
            return
        # By their types: what polars makes an array of are numbers.
        dtypes = nw.from_native(X).schema.dtypes()
        temporal = [k for k in self._numeric if dtypes[k].is_temporal()]
        if temporal:
            raise TypeError(f"times and dates in {self._names(X, temporal)}")

    def _numbers(self, X: Any) -> npt.NDArray[np.float64]:
        values = self._columns(X, self._numeric)
        try:
            self._check_dtypes(X)
            if values.dtype.kind == "c":
                raise TypeError("complex numbers")
            if values.dtype == object:
                values = _as_categories(values)
            numbers = values.astype(np.float64)
        except (TypeError, ValueError) as error:
            raise ValueError(
                "X must hold numbers in the columns that are not categorical, got "
                f"something else: {error}. Name its column in categorical_features, "
                "encode it, or drop it."
            ) from error
        is_missing = np.isnan(numbers).any(axis=0)
        if is_missing.any():
            raise ValueError(
                "X must hold no missing values in columns of numbers, got NaN in "
                f"{self._names(X, self._numeric[is_missing])}. Impute them before, "
                "e.g. by SimpleImputer in a ColumnTransformer, whose "
                "set_output(transform='pandas') keeps the categories."
            )
        return numbers


class OneHotCategories(CategoryEncoder):
    """Puts the columns of categories first, as a column of zeros and ones for each.

    The rest has a column only where fit saw any: an unseen category is then that, and
    is all zeros elsewhere.
    """

    def fit(self, X: Any) -> Self:
        """Learn the categories of each column."""
        super().fit(X)
        codes = [
            np.arange(0 if has_rest else 1, n)
            for n, has_rest in zip(self.cardinalities, self._has_rest, strict=True)
        ]
        self._n_ones = sum(map(len, codes))
        one_hot = OneHotEncoder(
            categories=codes,
            handle_unknown="ignore",
            sparse_output=self.n_columns > _DENSE_COLUMNS,
        ).set_output(transform="default")
        self._one_hot = one_hot.fit(np.zeros((1, len(codes))))
        return self

    @property
    def n_columns(self) -> int:
        """Number of columns that `transform` returns."""
        return self._n_ones + len(self._numeric)

    def _encode(self, codes: npt.NDArray[np.float64]) -> Any:
        return self._one_hot.transform(codes)


def _holds_categories(column: nw.Series[Any]) -> bool:
    """Return whether a column of a frame is of text, categories or truth values."""
    if column.dtype == nw.Object:  # Of any things: numbers, dates, text with gaps.
        return any(isinstance(value, str | bool) for value in column.to_list())
    return column.dtype in _CATEGORICAL


def _as_categories(values: Array) -> Array:
    """Return values that can be sorted, with one kind of missing value."""
    values = values.astype(object)
    # Where no pandas has been imported, no value is its NA, which has no truth.
    NA = getattr(sys.modules.get("pandas"), "NA", None)
    missing = [v is None or v is NA or v != v for v in values.ravel().tolist()]
    values[np.array(missing, dtype=bool).reshape(values.shape)] = np.nan
    return values
