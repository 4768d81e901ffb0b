"""Columns of a table as numbers: what each holds, and how a network is given it."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from sklearn.compose import ColumnTransformer
from sklearn.impute import SimpleImputer
from sklearn.preprocessing import OneHotEncoder

from sksoftrank._tables import shorten

Array = npt.NDArray[Any]
# Of a column of text: the most frequent, and one that the others share.
MAX_CATEGORIES = 20
# The first that fits all of a column is taken.
DATE_FORMATS = ("ISO8601", "%d.%m.%Y", "%m/%d/%Y", "%d/%m/%Y")


def sort_features(frame: Any) -> tuple[Any, list[str]]:
    """Return columns of floats and of text, and notes on what became of the others.

    Each cell is read by itself, so nothing is learned from rows that are to be tested
    on. Columns that tell rows apart rather than describe them are left out.
    """
    kept: dict[str, Any] = {}
    left_out, dates = [], []
    for name, column in frame.items():
        moments = as_dates(column)
        if not column.notna().any():
            left_out.append(f"{name} (is empty)")
        elif moments is not None:
            kept[name] = _days(moments)
            dates.append(name)
        elif column.dtype.kind in "biuf":
            numbers = column.to_numpy(np.float64, na_value=np.nan)
            if column.dtype.kind in "iu" and _counts_rows(numbers):
                left_out.append(f"{name} (counts the rows)")
            else:
                kept[name] = numbers
        elif column.dtype.kind != "O" or any(map(_is_nested, column)):
            left_out.append(f"{name} (holds neither numbers, dates nor text)")
        else:
            text = column.astype(object)
            text = text.map(str, na_action="ignore").where(column.notna(), np.nan)
            if text.nunique() == text.count():
                left_out.append(f"{name} (has another text in each row)")
            else:
                kept[name] = text.astype(object)
    features = type(frame)(kept, index=frame.index)
    numbers, texts = _kinds(features)
    notes = []
    for note, names in (
        ("left out", left_out),
        ("dates as a number of days", dates),
        (
            f"text as a column for each category, at most {MAX_CATEGORIES}, the rare "
            "ones in one",
            texts,
        ),
        (
            "missing numbers filled with the training rows' median, and marked where "
            "those lack some",
            _gaps(features[numbers]),
        ),
        ("missing text as a category", _gaps(features[texts])),
    ):
        if names:
            notes.append(f"{note}: {shorten(names, 20)}")
    return features, notes


def fit_encoder(train: Any) -> tuple[ColumnTransformer, list[str]]:
    """Return what makes numbers of such columns, fitted, and notes on what it can't.

    Parameters
    ----------
    train : pandas DataFrame
        The rows to train on, as from `sort_features`: no others play a part.
    """
    empty = [name for name in train.columns if not train[name].notna().any()]
    notes = []
    if empty:
        notes.append(
            f"left out, as the training rows have no values: {shorten(empty, 20)}"
        )
    if len(empty) == train.shape[1]:
        raise ValueError(
            "features must have values in the rows that are trained on, got none in "
            f"{shorten(empty)}. Train on other rows, or add features."
        )
    numbers, texts = _kinds(train.drop(columns=empty))
    encoder = ColumnTransformer(
        [
            ("numbers", SimpleImputer(strategy="median", add_indicator=True), numbers),
            (
                "texts",
                OneHotEncoder(
                    handle_unknown="infrequent_if_exist",
                    max_categories=MAX_CATEGORIES,
                    sparse_output=False,
                ),
                texts,
            ),
        ]
    )
    return encoder.fit(train), notes


def order_domains(column: Any) -> tuple[npt.NDArray[np.intp], list[str]]:
    """Return the number of each row's domain, and the domains' names in their order.

    That of ordered categories, of time, of numbers, or of the alphabet.
    """
    import pandas as pd

    if column.dtype.kind == "f":  # Whole numbers, where others were missing.
        column = pd.to_numeric(column, downcast="integer")
    text = column.astype(object).map(str).to_numpy()
    moments = as_dates(column)
    if getattr(column.dtype, "ordered", False):
        values = column.cat.codes
    elif moments is not None:
        values = moments
    elif column.dtype.kind in "biuf":
        values = column
    else:
        numbers = pd.to_numeric(pd.Series(text), errors="coerce")
        values = numbers if numbers.notna().all() else text
    codes, _ = pd.factorize(values, sort=True)
    _, first = np.unique(codes, return_index=True)
    return codes, [text[row].removesuffix(" 00:00:00") for row in first]


def as_dates(column: Any) -> Any:
    """Return a column of dates, or of text that all reads as dates, in UTC; or None."""
    import pandas as pd
    from pandas.api.types import infer_dtype

    if column.dtype.kind == "M":
        return pd.to_datetime(column, utc=True)
    if column.dtype.kind != "O":
        return None
    column = column.astype(object)
    present = column.dropna()
    kind = infer_dtype(present)
    if kind in ("date", "datetime"):
        return pd.to_datetime(column, utc=True)
    # A year alone is a number, for all that can be told.
    if kind != "string" or present.empty or present.iloc[0].isdigit():
        return None
    for written in DATE_FORMATS:
        try:
            return pd.to_datetime(column, format=written, utc=True)
        except ValueError:
            continue
    return None


def _kinds(features: Any) -> tuple[list[str], list[str]]:
    """Return the names of the columns of floats and of those of text."""
    is_number = {name: dtype.kind == "f" for name, dtype in features.dtypes.items()}
    return (
        [name for name in is_number if is_number[name]],
        [name for name in is_number if not is_number[name]],
    )


def _gaps(features: Any) -> list[str]:
    """Return the names of columns that lack values, and how many."""
    counts = features.isna().sum()
    return [
        f"{name} ({count} of {len(features)})"
        for name, count in counts.items()
        if count
    ]


def _days(moments: Any) -> Array:
    """Return the number of days since 1970."""
    import pandas as pd

    epoch = pd.Timestamp(0, tz="UTC")
    return ((moments - epoch) / pd.Timedelta(days=1)).to_numpy(np.float64)


def _counts_rows(numbers: Array) -> bool:
    """Return whether a column counts 0, 1, 2, ... or 1, 2, 3, ..."""
    return numbers[0] in (0, 1) and np.array_equal(
        numbers, np.arange(len(numbers)) + numbers[0]
    )


def _is_nested(value: Any) -> bool:
    return isinstance(value, bytes | dict | list | tuple | np.ndarray)
