"""Tables from files: each value under the name that the file gives it, or an error."""

from __future__ import annotations

import codecs
import csv
import io
import re
import warnings
from itertools import islice
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np

from sksoftrank._checks import check_path

SEPARATORS = ",;\t|"
TEXT_ENDINGS = (".csv", ".tsv")
# What pandas decompresses by the name alone, ".tar" also below another: ".tar.gz".
_COMPRESSIONS = {".bz2", ".gz", ".tar", ".xz", ".zip", ".zst"}
# Ample for the header and some rows, by which the separator is told.
_HEAD_BYTES = 1 << 16
_HEAD_ROWS = 5
# UTF-32's begins like UTF-16's.
_MARKS = {
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
# What pandas takes for a missing value, of which a label may be any but the first.
_MISSING = [
    "", "#N/A", "#N/A N/A", "#NA", "-1.#IND", "-1.#QNAN", "-NaN", "-nan", "1.#IND",
    "1.#QNAN", "<NA>", "N/A", "NA", "NULL", "NaN", "None", "n/a", "nan", "null",
]  # fmt: skip
# What pandas calls the columns of an index without names.
_NAMELESS = re.compile(r"Unnamed: \d+(\.\d+)?|__index_level_\d+__")


def read_table(
    path: str | PathLike[str],
    target: str | None = None,
    domain: str | None = None,
    *,
    caller: str = "load_table",
) -> tuple[Any, list[str]]:
    """Read a table, and return it with notes on what was assumed or left out.

    Parameters
    ----------
    path : str or path-like
        A file whose name ends in ``.csv`` or ``.tsv``, perhaps before that of a
        compression, or in ``.parquet``.
    target, domain : str, default=None
        Columns that must be there. What is written in them is text or a number and
        not a missing value, "NA" and "None" too: only an empty cell is one.
    caller : str, default="load_table"
        Who asks for pandas and pyarrow.

    Returns
    -------
    frame : pandas DataFrame
        The columns under their names, which are text without spaces around it. Levels
        of a pandas index that have a name are columns, too.
    notes : list of str
        One line each, without an end.
    """
    path = Path(check_path("path", path))
    if not path.is_file():
        raise FileNotFoundError(
            f"path must be a file, got {str(path)!r}, which is not."
        )
    try:
        import pandas as pd  # noqa: F401
    except ImportError as error:
        raise ImportError(
            f"{caller} needs pandas: pip install 'sksoftrank[table]'."
        ) from error
    ending = _unpacked(path).suffix.lower()
    try:
        if path.suffix.lower() == ".parquet":
            frame, notes = _read_parquet(path)
        elif ending in TEXT_ENDINGS:
            frame, notes = _read_text(
                path, "\t" if ending == ".tsv" else None, target, domain
            )
        else:
            raise TableError(
                f"path must end in .csv, .tsv or .parquet, got {path.name!r}. Convert "
                "the file."
            )
    except ImportError as error:
        if path.suffix.lower() != ".parquet":
            raise
        raise ImportError(
            f"{caller} needs pyarrow for {path.name}: pip install 'sksoftrank[table]'."
        ) from error
    except (MemoryError, TableError):
        raise
    except Exception as error:  # Each decompressor has errors of its own.
        raise TableError(f"{path.name} can't be read: {error}") from error
    frame, left_out = _without_row_labels(frame, path)
    for role, column in (("target", target), ("domain", domain)):
        if column is not None and column not in frame.columns:
            raise TableError(
                f"{role} must be a column of {path.name}, got {column!r}. It has: "
                f"{shorten(frame.columns)}."
            )
    return _with_numbers(frame), notes + left_out


class TableError(ValueError):
    """A message that is complete."""


def stem(path: str | PathLike[str]) -> str:
    """Return a file's name without the endings that say what it is."""
    unpacked = _unpacked(Path(path))
    is_table = unpacked.suffix.lower() in (*TEXT_ENDINGS, ".parquet")
    return unpacked.stem if is_table else unpacked.name


def shorten(names: Any, most: int = 8) -> str:
    """Return the first names as text, and the number of the others."""
    names = list(names)
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(map(str, names[:most])) + more


def _unpacked(path: Path) -> Path:
    while path.suffix.lower() in _COMPRESSIONS:
        path = path.with_suffix("")
    return path


# -- Parquet ---------------------------------------------------------------------------


def _read_parquet(path: Path) -> tuple[Any, list[str]]:
    import pandas as pd
    from pyarrow import parquet  # type: ignore[import-untyped]

    _check_names(parquet.read_schema(path).names, path)
    frame = pd.read_parquet(path, engine="pyarrow")
    named = [name for name in frame.index.names if name is not None]
    names = [str(name).strip() for name in (*named, *frame.columns)]
    _check_names(names, path)
    notes = []
    if len(named) < frame.index.nlevels and not isinstance(frame.index, pd.RangeIndex):
        notes.append("left out as labels of rows: an index without a name")
    if named:
        frame = frame.reset_index(named)
    frame = frame.reset_index(drop=True)
    frame.columns = pd.Index(names)
    return frame, notes


# -- Text ------------------------------------------------------------------------------


def _read_text(
    path: Path, separator: str | None, target: str | None, domain: str | None
) -> tuple[Any, list[str]]:
    head = _head(path)
    encoding = next(
        (name for mark, name in _MARKS.items() if head.startswith(mark)), None
    )
    if encoding is None and b"\0" in head:
        raise ValueError("it holds zero bytes, so it is no text. Check what it is.")
    if separator is None:
        separator = _separator(head.decode(encoding or "utf-8", "ignore"))
    notes = []
    if separator not in (",", "\t"):
        notes.append(f"columns separated by {separator!r}")
    try:
        frame = _parse(path, separator, encoding or "utf-8", target, domain)
    except UnicodeDecodeError:
        if encoding is not None:
            raise
        encoding = "latin-1"  # Which takes any byte.
        frame = _parse(path, separator, encoding, target, domain)
        notes.append(
            "read as latin-1: it is not UTF-8. Save it as UTF-8 if letters are wrong"
        )
    if encoding in ("utf-16", "utf-32"):
        notes.append(f"read as {encoding.upper()}, by its first bytes")
    if separator == ";":  # Its reason, where decimals have commas.
        commas = _read_decimal_commas(frame, {target, domain})
        if commas:
            notes.append(f"decimal commas in: {shorten(commas)}")
    return frame, notes


def _open(path: Path, mode: str, **options: Any) -> Any:
    """Open a file as pandas does, decompressed."""
    from pandas.io.common import get_handle  # type: ignore[import-not-found]

    return get_handle(path, mode, compression="infer", **options)


def _head(path: Path) -> bytes:
    with _open(path, "rb", is_text=False) as opened:
        head: bytes = opened.handle.read(_HEAD_BYTES)
    return head


def _separator(head: str) -> str:
    """Return what cuts the first lines into as many fields each, and the most.

    As csv.Sniffer would, but for quoted cells that hold separators: they mislead it.
    """

    def n_fields(separator: str) -> tuple[bool, int, int]:
        lines = io.StringIO(head, newline=None)
        rows = csv.reader(lines, delimiter=separator, skipinitialspace=True)
        counts = [len(row) for row in islice(filter(None, rows), _HEAD_ROWS)]
        least, most = min(counts, default=0), max(counts, default=0)
        return least == most > 1, least, sum(counts)

    return max(SEPARATORS, key=n_fields)


def _parse(
    path: Path, separator: str, encoding: str, target: str | None, domain: str | None
) -> Any:
    import pandas as pd

    options: dict[str, Any] = {
        "sep": separator,
        "encoding": encoding,
        "skipinitialspace": True,
        "keep_default_na": False,
    }
    header = pd.read_csv(path, header=None, nrows=1, dtype=str, **options)
    written = header.iloc[0].str.strip().tolist()
    _check_names([name for name in written if name], path)
    names = [name or f"Unnamed: {i}" for i, name in enumerate(written)]
    # A separator at the end of the line begins no column.
    n_fields = len(names) - (len(names) > 1 and not written[-1])
    with warnings.catch_warnings(record=True) as surplus:
        warnings.simplefilter("always", pd.errors.ParserWarning)
        try:
            frame = pd.read_csv(
                path,
                header=0,
                names=names,
                index_col=False,
                low_memory=False,  # Else one column may be of several types.
                na_values={
                    name: [""] if name in (target, domain) else _MISSING
                    for name in names
                },
                **options,
            )
        except pd.errors.ParserError:
            _check_fields(path, separator, encoding, n_fields)
            raise
    # pandas drops surplus fields, and takes what a row lacks for missing values.
    if surplus or frame.iloc[:, n_fields - 1].isna().any():
        _check_fields(path, separator, encoding, n_fields)
    return frame


def _check_fields(path: Path, separator: str, encoding: str, n_fields: int) -> None:
    """Refuse a row that has fewer or more fields than the header has names."""
    with _open(path, "r", encoding=encoding) as opened:
        rows = csv.reader(opened.handle, delimiter=separator, skipinitialspace=True)
        for row in rows:
            if len(row) <= 1 and not "".join(row).strip():
                continue  # A blank line.
            n_found = len(row) - (len(row) == n_fields + 1 and not row[-1])
            if n_found != n_fields:
                raise TableError(
                    f"{path.name} must have as many fields in a row as its header has "
                    f"names, {n_fields}, but line {rows.line_num} has {n_found}, cut "
                    f"at {separator!r}. Name every column in the first line, and mend "
                    "rows that are too short or too long."
                )


def _read_decimal_commas(frame: Any, labels: set[str | None]) -> list[str]:
    """Turn columns of numbers with a decimal comma into numbers; return their names."""
    import pandas as pd

    found = []
    for name in frame.columns.difference(list(labels - {None}), sort=False):
        column = frame[name]
        if column.dtype.kind == "O":
            text = column.astype("str").str.replace(",", ".", regex=False)
            numbers = pd.to_numeric(text, errors="coerce")
            if numbers.notna().equals(column.notna()) and numbers.notna().any():
                frame[name] = numbers
                found.append(name)
    return found


# -- Columns ---------------------------------------------------------------------------


def _check_names(names: list[Any], path: Path) -> None:
    twice = sorted({str(name) for name in names if names.count(name) > 1})
    if twice:
        raise TableError(
            f"{path.name} must name each column once, but several are named "
            f"{shorten(map(repr, twice))}. Rename all but one."
        )


def _without_row_labels(frame: Any, path: Path) -> tuple[Any, list[str]]:
    """Leave out first columns without a name: what pandas writes its index to."""
    labels: list[str] = []
    empty: list[str] = []
    for place, name in enumerate(frame.columns):
        column = frame[name]
        if not _NAMELESS.fullmatch(name):
            continue
        if not column.notna().any():
            empty.append(name)
        elif name.startswith("__index") or (
            place == len(labels) and not column.duplicated().any()
        ):
            labels.append(name)
        else:
            raise TableError(
                f"{path.name} must name each column, but column {place + 1} has no "
                "name. Name it in the first line, or drop it."
            )
    if labels:
        note = f"left out as labels of rows, without a name: {shorten(labels)}"
        return frame.drop(columns=labels + empty), [note]
    return frame.drop(columns=empty), []


def _with_numbers(frame: Any) -> Any:
    """Turn decimals, which pandas leaves as objects, into floats."""
    from pandas.api.types import infer_dtype

    decimals = [
        name
        for name, dtype in frame.dtypes.items()
        if dtype.kind == "O" and infer_dtype(frame[name], skipna=True) == "decimal"
    ]
    return frame.astype(dict.fromkeys(decimals, np.float64))
