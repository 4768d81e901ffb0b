"""Columns of categories: which they are, and their codes."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import numpy.typing as npt
from sklearn.preprocessing import OrdinalEncoder
from sklearn.utils import _safe_indexing
from sklearn.utils._missing import is_pandas_na
from sklearn.utils.validation import _num_features

Array = npt.NDArray[Any]
# What pandas, polars and Arrow in pandas call the dtypes of categories.
_CATEGORICAL_DTYPE = re.compile(
    r"(category|categorical|enum|dictionary|object|str|(large_)?string|utf8|bool(ean)?)"
    r"\b",
    re.IGNORECASE,
)


class CategoryEncoder:
    """Puts the columns of categories first, as codes from zero.

    Parameters
    ----------
    is_categorical : ndarray of shape (n_features,)
        Which columns hold categories.
    """

    def __init__(self, is_categorical: npt.NDArray[np.bool_]) -> None:
        self.is_categorical = is_categorical
        self._categorical = np.flatnonzero(is_categorical)
        self._numeric = np.flatnonzero(~is_categorical)

    @classmethod
    def find(cls, X: Any, features: Any) -> CategoryEncoder | None:
        """Return an encoder for the columns that `features` means; None for none."""
        columns = getattr(X, "columns", None)
        if features is None:
            return None
        if isinstance(features, str):
            if columns is None:
                return None
            is_categorical = np.array(
                [_CATEGORICAL_DTYPE.match(str(dtype)) is not None for dtype in X.dtypes]
            )
        else:
            is_categorical = cls._mask(X, features, columns)
        return cls(is_categorical) if is_categorical.any() else None

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

    def _columns(self, X: Any, indices: npt.NDArray[np.intp]) -> Array:
        if isinstance(X, list | tuple):
            X = np.asarray(X, dtype=object)
        part = _safe_indexing(X, indices, axis=1)
        values: Array = part.to_numpy() if hasattr(part, "to_numpy") else part
        return np.asarray(values)

    def fit(self, X: Any) -> CategoryEncoder:
        """Learn the categories of each column."""
        encoder = OrdinalEncoder(
            handle_unknown="use_encoded_value",
            unknown_value=-1,
            encoded_missing_value=-2,
        )
        try:
            encoder.fit(_as_categories(self._columns(X, self._categorical)))
        except TypeError as error:  # They can't be sorted.
            raise ValueError(
                "X must hold either text or numbers in a column of categories, got "
                f"both: {error}. Turn the column into text."
            ) from error
        self._encoder = encoder
        self.cardinalities = tuple(len(c) + 1 for c in self._encoder.categories_)
        return self

    def transform(self, X: Any) -> npt.NDArray[np.float64]:
        """Return codes and numbers (n, n_features); a missing value has code 0."""
        values = _as_categories(self._columns(X, self._categorical))
        codes = self._encoder.transform(values)
        unknown = codes == -1
        if unknown.any():
            row, place = np.argwhere(unknown)[0]
            column = self._categorical[place]
            name = getattr(X, "columns", range(len(self.is_categorical)))[column]
            known = self._encoder.categories_[place].tolist()
            raise ValueError(
                f"X must hold only categories seen in fit, got {values[row, place]!r} "
                f"in column {name!r}, not among {known[:10]}. Map it to one of them, "
                "or to a missing value if fit saw one."
            )
        codes = np.where(codes == -2, 0, codes + 1)
        numbers = self._columns(X, self._numeric)
        try:
            if numbers.dtype == object:
                numbers = _as_categories(numbers)
            numbers = numbers.astype(np.float64)
        except (TypeError, ValueError) as error:
            raise ValueError(
                "X must hold numbers in the columns that are not categorical, got "
                f"something else: {error}. Name its column in categorical_features, "
                "encode it, or drop it."
            ) from error
        return np.hstack([codes, numbers])


def _as_categories(values: Array) -> Array:
    """Return values that can be sorted, with one kind of missing value."""
    values = values.astype(object)
    missing = np.array(
        [
            [v is None or is_pandas_na(v) or v != v for v in row]
            for row in values.tolist()
        ],
        dtype=bool,
    ).reshape(values.shape)
    values[missing] = np.nan
    return values
