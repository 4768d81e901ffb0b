"""Where rows that don't fit into memory come from: torch datasets, Arrow datasets."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

Array = npt.NDArray[Any]
# Rows read at a time.
CHUNK_ROWS = 1024


def is_arrow(X: Any) -> bool:
    """Return whether `X` is a table or dataset of Arrow, read by its record batches."""
    return hasattr(X, "to_batches") and hasattr(X, "schema")


def is_stream(X: Any) -> bool:
    """Return whether `X` yields its rows in passes, rather than being an array."""
    return isinstance(X, torch.utils.data.Dataset) or is_arrow(X)


def open_stream(
    X: Any, target: Any = None, columns: list[str] | None = None
) -> Callable[[], Iterator[tuple[Array, Array | None]]]:
    """Return what starts a pass over chunks of rows and labels.

    Parameters
    ----------
    X : torch Dataset or Arrow dataset
        A torch dataset yields pairs of a row and its label, or rows alone.
    target : str, default=None
        The Arrow column that holds the labels; None where there are none.
    columns : list of str, default=None
        The Arrow columns that are the features; None takes all but the target.
    """
    if is_arrow(X):
        names = list(X.schema.names)
        asked_for = [*(columns or []), *([] if target is None else [target])]
        missing = [name for name in asked_for if name not in names]
        if missing:
            raise ValueError(
                f"X must have the columns {missing}, got {names}. Select or rename "
                "columns, or pass the label's name as y."
            )
        if columns is None:
            columns = [name for name in names if name != target]
        return lambda: _arrow_chunks(X, target, columns)
    if target is not None:
        raise ValueError(
            "y must be None where X is a Dataset, which yields pairs (row, label), "
            f"got {type(target).__name__}. Put the labels into the Dataset."
        )
    return lambda: _dataset_chunks(X)


def _arrow_chunks(
    X: Any, target: str | None, columns: list[str]
) -> Iterator[tuple[Array, Array | None]]:
    wanted = [*columns, *([] if target is None else [target])]
    # A dataset reads what is asked for; a table has all at hand.
    options = {} if hasattr(X, "num_columns") else {"columns": wanted}
    for batch in X.to_batches(**options):
        if batch.num_rows == 0:
            continue
        values = []
        for name in columns:
            column = batch.column(name).to_numpy(zero_copy_only=False)
            if column.dtype.kind not in "biuf":
                raise ValueError(
                    f"X must hold numeric columns, got {name!r} of type "
                    f"{batch.schema.field(name).type}. Encode or drop it."
                )
            values.append(column)
        rows = np.column_stack(values)
        if rows.dtype != np.float64:
            rows = rows.astype(np.float32, copy=False)
        labels = None
        if target is not None:
            labels = batch.column(target).to_numpy(zero_copy_only=False)
        yield rows, labels


def _dataset_chunks(X: Any) -> Iterator[tuple[Array, Array | None]]:
    rows: Iterator[Any] = (
        iter(X)
        if isinstance(X, torch.utils.data.IterableDataset)
        else (X[i] for i in range(len(X)))
    )
    while chunk := list(islice(rows, CHUNK_ROWS)):
        if isinstance(chunk[0], tuple | list):
            features, labels = zip(*((row[0], row[1]) for row in chunk), strict=True)
            yield _stack(features), np.array([_scalar(label) for label in labels])
        else:
            yield _stack(chunk), None


def _stack(rows: Any) -> Array:
    arrays = [np.asarray(row) for row in rows]
    shapes = {array.shape for array in arrays}
    if len(shapes) > 1:
        raise ValueError(
            f"X must yield rows of one shape, got {sorted(shapes)[:3]}. Pad or crop "
            "them."
        )
    return np.stack(arrays)


def _scalar(label: Any) -> Any:
    return label.item() if isinstance(label, torch.Tensor) else label
