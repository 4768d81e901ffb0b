"""Short texts that tell values apart, the same in every process."""

from __future__ import annotations

import re
import reprlib
import sys
from typing import Any

import joblib
import numpy as np
from scipy import sparse


def digest(data: Any) -> str:
    """Return shape and hash of data; equal for equal data in any process."""
    shape = getattr(data, "shape", None)
    kind = f"{shape[0]} rows, shape {tuple(shape)}, " if shape else ""
    return f"{kind}{joblib.hash(_hashable(data))[:16]}"


def _hashable(data: Any) -> Any:
    """Return lists, flat arrays and texts: what joblib hashes by value alone.

    Of an array it hashes the strides, too, and of an object what else refers to it.
    """
    if sparse.issparse(data):
        data = data.tocsr()
        return _hashable([data.shape, data.data, data.indices, data.indptr])
    if hasattr(data, "columns"):  # A frame: a column's type is its own.
        return [[str(name), _hashable(data[name])] for name in data.columns]
    if isinstance(data, dict):
        data = sorted(data.items())
    if isinstance(data, list | tuple):
        return [_hashable(item) for item in data]
    if hasattr(data, "__array__"):
        array = np.asarray(data)
        flat = np.ascontiguousarray(array).ravel()
        is_text = flat.dtype.hasobject
        return [str(array.shape), [*map(stable_repr, flat)] if is_text else flat]
    return stable_repr(data)


class _StableRepr(reprlib.Repr):
    """`repr` of all there is, with sets and dictionaries in order."""

    def __init__(self) -> None:
        super().__init__()
        for name in vars(self):
            if name.startswith("max"):
                setattr(self, name, sys.maxsize)

    def repr_set(self, x: Any, level: int) -> str:
        # Items that can't be compared, too, such as a text and None.
        items = sorted(self.repr1(item, level - 1) for item in x)
        return f"{type(x).__name__}({{{', '.join(items)}}})"

    repr_frozenset = repr_set


def stable_repr(value: Any) -> str:
    """Return a representation without addresses, the same in every process."""
    return re.sub(r" at 0x[0-9a-fA-F]+", "", _StableRepr().repr(value))


def shorten(text: str | None) -> str:
    """Return a text as an error shows it; None stands for one that is not there."""
    if text is None:
        return "nothing"
    return text if len(text) <= 120 else f"{text[:117]}..."
