"""Where rows that don't fit into memory come from: torch datasets, Arrow datasets."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import chain, islice
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

Array = npt.NDArray[Any]
# Read at a time, at most: of wide rows, such as images, fewer.
CHUNK_ROWS = 1024
CHUNK_BYTES = 32 << 20


def is_arrow(X: Any) -> bool:
    """Return whether `X` is a table or dataset of Arrow, read by its record batches."""
    return hasattr(X, "to_batches") and hasattr(X, "schema")


def is_stream(X: Any, y: Any = None) -> bool:
    """Return whether `X` yields its rows in passes, rather than being an array.

    An Arrow table is in memory, and taken for a stream but where labels lie beside it.
    """
    if is_arrow(X):
        return not _is_table(X) or y is None or isinstance(y, str)
    return isinstance(X, torch.utils.data.Dataset)


def as_frame(X: Any, columns: list[str] | None = None, *, numeric: bool = True) -> Any:
    """Return an Arrow table as a frame of pandas, which scikit-learn knows.

    Anything else is returned as it is. `columns` are taken by name; None takes all.
    """
    if not (is_arrow(X) and _is_table(X)):
        return X
    _check_names(X, columns or [])
    names = list(X.schema.names) if columns is None else columns
    X = X.select(names)
    for place, name in enumerate(names):
        X = X.set_column(place, name, _readable(X.column(place), name, numeric))
    # Else a column that pandas has written as its index would be one again.
    return X.to_pandas(ignore_metadata=True)


def count_rows(X: Any) -> int | None:
    """Return the rows of a pass where that is known without one, else None."""
    if is_arrow(X):
        return X.num_rows if _is_table(X) else X.count_rows()
    is_iterable = isinstance(X, torch.utils.data.IterableDataset)
    return len(X) if not is_iterable and hasattr(X, "__len__") else None


def open_stream(
    X: Any,
    target: Any = None,
    columns: list[str] | None = None,
    *,
    numeric: bool = True,
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
    numeric : bool, default=True
        Whether Arrow columns of anything but numbers are refused.
    """
    if is_arrow(X):
        if target is not None and not isinstance(target, str):
            raise ValueError(
                "y must be the name of the labels' column where X is an Arrow dataset, "
                f"got {type(target).__name__}. Append the labels to X as a column, or "
                "pass X as a Table in memory."
            )
        names = list(X.schema.names)
        _check_names(X, [*(columns or []), *([] if target is None else [target])])
        if columns is None:
            columns = [name for name in names if name != target]
        if not columns:
            raise ValueError(
                f"X must have a column beside the labels, got {names}. Add features."
            )
        return lambda: _of_one_shape(_arrow_chunks(X, target, columns, numeric))
    if target is not None:
        raise ValueError(
            "y must be None where X is a Dataset, which yields pairs (row, label), "
            f"got {type(target).__name__}. Put the labels into the Dataset."
        )
    return lambda: _of_one_shape(_dataset_chunks(X))


def _check_names(X: Any, asked_for: list[str]) -> None:
    names = list(X.schema.names)
    missing = [name for name in asked_for if name not in names]
    if missing:
        raise ValueError(
            f"X must have the columns {missing}, got {names}. Select or rename "
            "columns, or pass the label's name as y."
        )
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(
            f"X must name each column once, but several are named {twice}. Rename all "
            "but one."
        )


def _readable(column: Any, name: str, numeric: bool) -> Any:
    """Return an Arrow column as one whose numbers numpy knows.

    Anything but numbers is refused; without `numeric` categories are let through.
    """
    from pyarrow import types  # type: ignore[import-untyped]

    kind = column.type
    if types.is_decimal(kind):
        return column.cast("double")
    is_category = (
        types.is_dictionary(kind)
        or types.is_boolean(kind)
        or types.is_string(kind)
        or types.is_large_string(kind)
        or types.is_string_view(kind)
    )
    if is_category and not numeric:
        return column
    if types.is_dictionary(kind):
        return _readable(column.cast(kind.value_type), name, numeric)
    if types.is_boolean(kind):
        return column.cast("float")  # Which can lack a value.
    if not (types.is_integer(kind) or types.is_floating(kind)):
        raise ValueError(
            f"X must hold numeric columns, got {name!r} of type {kind}. Encode or drop "
            "it, or pass a Table in memory with an array y, whose text is categories."
        )
    return column


def _is_table(X: Any) -> bool:
    """Return whether an Arrow source has all at hand, rather than reading it."""
    return hasattr(X, "num_rows")


def _of_one_shape(
    chunks: Iterator[tuple[Array, Array | None]],
) -> Iterator[tuple[Array, Array | None]]:
    shape: tuple[int, ...] | None = None
    for rows, labels in chunks:
        shape = rows.shape[1:] if shape is None else shape
        if rows.shape[1:] != shape:
            raise _ragged({shape, rows.shape[1:]})
        yield rows, labels


def _ragged(shapes: set[tuple[int, ...]]) -> ValueError:
    return ValueError(
        f"X must yield rows of one shape, got {sorted(shapes)[:3]}. Pad or crop them."
    )


def _arrow_chunks(
    X: Any, target: str | None, columns: list[str], numeric: bool
) -> Iterator[tuple[Array, Array | None]]:
    wanted = [*columns, *([] if target is None else [target])]
    options = (
        {"max_chunksize": CHUNK_ROWS}
        if _is_table(X)
        else {"columns": wanted, "batch_size": CHUNK_ROWS}
    )
    for batch in X.to_batches(**options):
        if batch.num_rows == 0:
            continue
        rows = np.column_stack(
            [
                _readable(batch.column(name), name, numeric).to_numpy(
                    zero_copy_only=False
                )
                for name in columns
            ]
        )
        if rows.dtype.kind in "biuf":
            # As much precision as whole numbers need.
            rows = rows.astype(np.result_type(rows, np.float32), copy=False)
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
    for first in rows:
        # The first row tells how many may be held.
        row_bytes = max(_split(first)[0].nbytes, 1)
        n_rows = min(max(CHUNK_BYTES // row_bytes, 1), CHUNK_ROWS)
        rows = chain([first], rows)
        break
    else:
        return
    while items := list(islice(rows, n_rows)):
        pairs = [_split(item) for item in items]
        features, labels = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
        shapes = {row.shape for row in features}
        if len(shapes) > 1:
            raise _ragged(shapes)
        n_labels = sum(label is not None for label in labels)
        if 0 < n_labels < len(labels):
            raise ValueError(
                f"X must yield a label with each row, got {n_labels} with "
                f"{len(labels)} rows. Drop the rows without one."
            )
        yield np.stack(features), np.array(labels) if n_labels else None


def _split(item: Any) -> tuple[Array, Any]:
    """Return an item of a Dataset as a row and its label, None where it has none."""
    row, label = item, None
    if isinstance(item, tuple | list):
        if len(item) not in (1, 2):
            raise ValueError(
                "X must yield rows, or pairs (row, label), got a sequence of "
                f"{len(item)}. Wrap the Dataset, or make a row an array."
            )
        row, label = (*item, None)[:2]
    if isinstance(label, torch.Tensor):
        label = label.item() if label.numel() == 1 else label.numpy(force=True)
    if isinstance(row, torch.Tensor):
        row = row.numpy(force=True)
    return np.asarray(row), label
