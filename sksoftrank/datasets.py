"""Loaders of data with a shift, each returning a scikit-learn `Bunch`."""

from __future__ import annotations

from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from sklearn.utils import Bunch

from sksoftrank import shifts

__all__ = ["load_digits_shift", "load_table", "synthetic_shifts"]

Array = npt.NDArray[Any]

# What pandas decompresses by the name alone, ".tar" also below another: ".tar.gz".
_COMPRESSIONS = {".bz2", ".gz", ".tar", ".xz", ".zip", ".zst"}


def load_digits_shift(
    severity: int = 3, *, test_size: float = 0.25, random_state: int = 0
) -> Bunch:
    """Load scikit-learn's digits with a test set shifted in eight ways.

    Parameters
    ----------
    severity : int, default=3
        From 1 to 5, of each shift.
    test_size : float, default=0.25
        Share of the 1,797 images held out for testing.
    random_state : int, default=0
        Seeds the split and the shifts.

    Returns
    -------
    Bunch
        ``X_train``, ``y_train``, ``X_test``, ``y_test``: images (n, 64) with values in
        [0, 1] and digits; ``X_shifted``: a dictionary from the shift's name to the
        shifted ``X_test``; ``image_shape``.

    Examples
    --------
    >>> from sksoftrank.datasets import load_digits_shift
    >>> digits = load_digits_shift(severity=2)
    >>> digits.X_train.shape, digits.X_shifted["Blur"].shape
    ((1347, 64), (450, 64))
    """
    data, target = load_digits(return_X_y=True)
    X_train, X_test, y_train, y_test = train_test_split(
        data / 16.0,
        target,
        test_size=test_size,
        stratify=target,
        random_state=random_state,
    )
    transformers = [
        *synthetic_shifts(severity, random_state),
        *(
            image_shift(severity, image_shape=(8, 8))
            for image_shift in (
                shifts.Blur,
                shifts.Contrast,
                shifts.Brightness,
                shifts.Pixelate,
            )
        ),
    ]
    return Bunch(
        X_train=X_train,
        y_train=y_train,
        X_test=X_test,
        y_test=y_test,
        X_shifted={
            type(shift).__name__: shift.fit(X_train).transform(X_test)
            for shift in transformers
        },
        image_shape=(1, 8, 8),
    )


def synthetic_shifts(severity: int = 3, random_state: int = 0) -> list[Any]:
    """Return the shifts that any table can suffer, unfitted.

    Parameters
    ----------
    severity : int, default=3
        From 1 to 5.
    random_state : int, default=0
        Seeds each shift.

    Returns
    -------
    list of transformer
        Gaussian noise, feature dropout, gain drift and offset drift.

    Examples
    --------
    >>> from sksoftrank.datasets import synthetic_shifts
    >>> len(synthetic_shifts())
    4
    """
    return [
        shift(severity, random_state=random_state)
        for shift in (
            shifts.GaussianNoise,
            shifts.FeatureDropout,
            shifts.GainDrift,
            shifts.OffsetDrift,
        )
    ]


def load_table(
    path: str | PathLike[str], target: str, domain: str | None = None
) -> Bunch:
    r"""Load a table of numbers from a CSV or Parquet file.

    Parameters
    ----------
    path : str or path-like
        A file whose name ends in ``.csv``, ``.csv`` and a compression that pandas
        knows (as in ``.csv.gz``), or ``.parquet``.
    target : str
        Column of the labels.
    domain : str, default=None
        Column that says where or when a row comes from; not a feature.

    Returns
    -------
    Bunch
        ``data`` (n, d) in float64, ``target`` (n,), ``domain`` (n,) or None,
        ``feature_names``.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If a column is missing, a feature is not a number, a value is missing, the
        name ends in anything else, or the file is not what its name says.
    ImportError
        If pandas, or what it needs for this kind of file, is not installed.

    Examples
    --------
    >>> import tempfile
    >>> from pathlib import Path
    >>> from sksoftrank.datasets import load_table
    >>> path = Path(tempfile.mkdtemp()) / "table.csv"
    >>> _ = path.write_text("a,b,label,site\n1,2,x,north\n3,4,y,south\n")
    >>> table = load_table(path, target="label", domain="site")
    >>> table.data, table.target.tolist(), table.feature_names
    (array([[1., 2.],
           [3., 4.]]), ['x', 'y'], ['a', 'b'])
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(
            f"path must be a file, got {str(path)!r}, which is not."
        )
    frame = _read(path)
    for role, column in (("target", target), ("domain", domain)):
        if column is not None and column not in frame.columns:
            raise ValueError(
                f"{role} must be a column of {path.name}, got {column!r}. It has: "
                f"{_shorten(map(str, frame.columns))}."
            )
    features = frame.drop(columns=[c for c in (target, domain) if c is not None])
    if features.shape[1] == 0 or len(features) == 0:
        raise ValueError(
            f"{path.name} must have rows and at least one feature column, got "
            f"{len(features)} rows and {features.shape[1]} features."
        )
    kinds = {name: dtype.kind for name, dtype in features.dtypes.items()}
    text = [str(name) for name, kind in kinds.items() if kind not in "biuf"]
    if text:
        raise ValueError(
            f"features must be numbers, but {path.name} has others in: "
            f"{_shorten(text)}. Encode those columns (e.g. pandas.get_dummies) or drop "
            "them."
        )
    used = frame[[c for c in (target, domain) if c is not None]]
    for column, missing in (*features.isna().sum().items(), *used.isna().sum().items()):
        if missing:
            raise ValueError(
                f"column {column!r} of {path.name} must be complete, but {missing} "
                "values are missing. Fill them or drop those rows."
            )
    return Bunch(
        data=features.to_numpy(dtype=np.float64),
        target=frame[target].to_numpy(),
        domain=None if domain is None else frame[domain].to_numpy(),
        feature_names=[str(name) for name in features.columns],
    )


def _read(path: Path) -> Any:
    try:
        import pandas as pd
    except ImportError as error:
        raise ImportError(
            "load_table needs pandas: pip install 'sksoftrank[table]'."
        ) from error
    unpacked = path
    while unpacked.suffix in _COMPRESSIONS:
        unpacked = unpacked.with_suffix("")
    try:
        if unpacked.suffix == ".csv":
            return pd.read_csv(path)
        if path.suffix == ".parquet":
            return pd.read_parquet(path)
    except (ImportError, MemoryError):
        raise
    except Exception as error:  # Each decompressor has errors of its own.
        raise ValueError(f"{path.name} can't be read: {error}") from error
    raise ValueError(
        f"path must end in .csv or .parquet, got {path.name!r}. Convert the file."
    )


def _shorten(names: Any, most: int = 8) -> str:
    names = list(names)
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
