"""What arrays, labels and numbers must be, in errors that name the parameter.

numpy reads more than it should: what a mask hides, dates as numbers, a missing label as
one more class. And where it can't read, it doesn't say what.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from numbers import Integral, Real
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
FloatArray = npt.NDArray[np.float64]


# In scikit-learn's word of arrays that differ in length, which is of neither alone.
LENGTHS = "inconsistent numbers of samples"
# And of a frame's columns.
NAMES = "[Ff]eature names"


@contextmanager
def naming(value: Any, *names: str, expected: str) -> Iterator[None]:
    """Name the parameter, the first of `names`, in errors that name none of them."""
    try:
        yield
    except (TypeError, ValueError, OverflowError, RuntimeError) as error:
        if re.search(rf"\b({'|'.join(names)})\b", str(error)):
            raise
        kind = TypeError if isinstance(error, TypeError) else ValueError
        raise kind(
            f"{names[0]} must be {expected}, got {describe(value)}: {error}"
        ) from error


def describe(value: Any) -> str:
    """Return what a value is, in few words however long it is."""
    shape = getattr(value, "shape", None)
    if shape is not None:
        return f"{type(value).__name__} of shape {tuple(shape)}"
    text = repr(value)
    return text if len(text) <= 60 else f"{type(value).__name__} {text[:50]}..."


# -- Arrays ----------------------------------------------------------------------------


def check_readable(name: str, value: Any) -> None:
    """Refuse what numpy would read something else from than it holds."""
    if isinstance(value, np.ma.MaskedArray) and np.ma.is_masked(value):
        raise ValueError(
            f"{name} must not have masked values, whose mask nothing here heeds, got "
            f"{np.count_nonzero(value.mask)}. Fill them, or drop their rows."
        )
    dtypes = [value.dtype] if hasattr(value, "dtype") else ()
    # Of a frame; a lazy one has no shape yet.
    if not dtypes and hasattr(value, "shape") and hasattr(value, "dtypes"):
        dtypes = value.dtypes
    kinds = {getattr(dtype, "kind", "") for dtype in dtypes}
    if kinds & {"M", "m"}:
        raise ValueError(
            f"{name} must hold numbers, got dates or times ({describe(value)}). Turn "
            "them into numbers, such as days since the first."
        )


def as_numbers(name: str, value: Any) -> FloatArray:
    """Return finite float64 numbers, of a tensor on any device too."""
    if hasattr(value, "detach"):
        value = value.detach().cpu().double().numpy()
    check_readable(name, value)
    with naming(value, name, expected="an array of numbers"):
        array = np.asarray(value)
        if array.dtype.kind == "c":
            raise ValueError("they are complex. Take their real parts or magnitudes.")
        numbers: FloatArray = array.astype(np.float64, copy=False)
    wrong = np.count_nonzero(~np.isfinite(numbers))
    if wrong:
        raise ValueError(
            f"{name} must be finite, got {wrong} values that are NaN or infinite. Find "
            "where they come from, or drop those rows."
        )
    return numbers


def as_matrix(name: str, value: Any) -> FloatArray:
    """Return a finite (n, d) float64 array."""
    matrix = as_numbers(name, value)
    if matrix.ndim != 2 or 0 in matrix.shape:
        raise ValueError(
            f"{name} must be a matrix with at least one row and one column, got shape "
            f"{matrix.shape}. Reshape a single row with {name}.reshape(1, -1)."
        )
    return matrix


# -- Labels ----------------------------------------------------------------------------


def read_labels(name: str, y: Any) -> Array:
    """Return labels that can be told apart and sorted, in the dtype they came in."""
    if isinstance(y, np.ma.MaskedArray):
        check_readable(name, y)
    # pandas' own dtypes: as floats, large numbers would run into one.
    numpy_dtype = getattr(getattr(y, "dtype", None), "numpy_dtype", None)
    if numpy_dtype is not None and hasattr(y, "isna"):
        if y.isna().any():
            raise _missing(name, int(y.isna().sum()))
        y = y.to_numpy(dtype=numpy_dtype)
    with naming(y, name, expected="an array of labels"):
        labels = np.asarray(y)
    if labels.dtype.kind == "T":  # numpy's own text, which scikit-learn doesn't take.
        labels = labels.astype(object)
    if labels.dtype.kind == "c":
        raise ValueError(
            f"{name} must hold text or real numbers, got complex ones. Complex data "
            "not supported: name the classes."
        )
    is_list = isinstance(y, list | tuple) and labels.dtype.kind == "U"
    if labels.dtype.kind in "Mmf":
        n_missing = int(np.count_nonzero(np.isnan(labels)))
    elif labels.dtype.kind == "O" or is_list:
        values = np.asarray(y, dtype=object).ravel().tolist()
        n_missing = sum(map(_is_missing, values))
        if not n_missing:
            _check_types(name, values)
    else:
        n_missing = 0
    if n_missing:
        raise _missing(name, n_missing)
    return labels


def as_labels(name: str, y: Any, n_rows: int | None = None) -> Array:
    """Return one label a row, of so many rows; a column is taken for a vector."""
    labels = read_labels(name, y)
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels.ravel()
    if labels.ndim != 1 or n_rows not in (None, len(labels)):
        rows = "row" if n_rows is None else f"of the {n_rows} rows"
        raise ValueError(
            f"{name} must hold a label for each {rows}, in a 1d array, got shape "
            f"{labels.shape}. Pass as many labels as there are rows."
        )
    return labels


def _is_missing(value: Any) -> bool:
    if value is None or type(value).__name__ in ("NAType", "NaTType"):
        return True
    return isinstance(value, float | np.generic) and bool(value != value)


def _missing(name: str, count: int) -> ValueError:
    return ValueError(
        f"{name} must hold a label for each row, got {count} that are missing (NaN or "
        "None). Drop those rows, or name what is missing."
    )


def _check_types(name: str, values: list[Any]) -> None:
    """Refuse objects of types that don't compare, and what numpy makes text of."""
    try:
        sorted(set(values))
    except TypeError as error:
        types = sorted({type(value).__name__ for value in values})
        raise ValueError(
            f"{name} must hold labels of one type that can be sorted, got {types}. "
            f"Convert them, e.g. with np.array({name}, dtype=str)."
        ) from error


def as_tuple(value: Any) -> tuple[Any, ...]:
    """Return a sequence as a tuple; what has no axis, and is none, as its one item."""
    return (value,) if getattr(value, "ndim", 1) == 0 else tuple(value)


def check_path(name: str, path: Any) -> str:
    """Return a path as text; a number would be taken for a file that is open."""
    with naming(path, name, expected="a str or a PathLike"):
        text = os.fspath(path)
        if not isinstance(text, str) or "\0" in text:
            raise ValueError("it is no text that names a file.")
    return text


# -- Numbers ---------------------------------------------------------------------------


def check_real(name: str, value: Any, low: float, high: float, fix: str) -> float:
    """Return a number between two others, both excluded."""
    if not isinstance(value, Real) or not low < float(value) < high:
        raise ValueError(
            f"{name} must be a number in ({low:g}, {high:g}), got {value!r}. {fix}"
        )
    return float(value)


def check_not_negative(name: str, value: Any) -> float:
    """Return a number that is zero or positive."""
    if not isinstance(value, Real) or not 0.0 <= float(value) < math.inf:
        raise ValueError(
            f"{name} must be a number in [0, inf), got {value!r}. Use 0.0 for none."
        )
    return float(value)


def check_int(name: str, value: Any, low: int, high: float, fix: str) -> int:
    """Return an integer from one number to another."""
    if not isinstance(value, Integral) or not low <= int(value) <= high:
        upper = "" if high == math.inf else f" and at most {high}"
        raise ValueError(
            f"{name} must be an int of at least {low}{upper}, got {value!r}. {fix}"
        )
    return int(value)
