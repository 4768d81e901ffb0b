"""Loaders of data with a shift, each returning a scikit-learn `Bunch`."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Sequence
from numbers import Integral
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from sklearn.utils import Bunch, check_random_state

from sksoftrank import shifts
from sksoftrank._checks import check_path
from sksoftrank._sampling import stratified_order
from sksoftrank._tables import read_table, shorten
from sksoftrank.corruptions import Corruption

__all__ = [
    "load_cifar10",
    "load_digits_shift",
    "load_flights",
    "load_gas_drift",
    "load_portal_rodents",
    "load_table",
    "load_watch",
    "synthetic_shifts",
]

Array = npt.NDArray[Any]

CIFAR10_NAMES = (
    "airplane",
    "automobile",
    "bird",
    "cat",
    "deer",
    "dog",
    "frog",
    "horse",
    "ship",
    "truck",
)
CIFAR10_SHAPE = (3, 32, 32)
# The order of the labels 1 to 6 in the UCI repository.
GAS_NAMES = ("ethanol", "ethylene", "ammonia", "acetaldehyde", "acetone", "toluene")
GAS_FEATURES = tuple(f"f{i:03d}" for i in range(1, 129))
RODENT_FEATURES = (
    *("month", "plot_id", "plot_type", "sex", "hindfoot_length", "weight"),
)
FLIGHT_FEATURES = (
    *("weekday", "sched_dep", "sched_arr", "dep_delay", "arr_delay", "air_time"),
    *("distance", "flight", "origin", "dest"),
)


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
    >>> digits.X_train.shape, digits.X_shifted["contrast"].shape
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
    kinds = ("defocus_blur", "contrast", "brightness", "pixelate")
    transformers = [
        *synthetic_shifts(severity, random_state),
        *(Corruption(kind, severity) for kind in kinds),
    ]
    return Bunch(
        X_train=X_train,
        y_train=y_train,
        X_test=X_test,
        y_test=y_test,
        X_shifted={
            shifts.shift_name(shift): shift.fit(X_train).transform(X_test)
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
    r"""Load a table of numbers from a CSV, TSV or Parquet file.

    Parameters
    ----------
    path : str or path-like
        A file whose name ends in ``.csv``, in ``.tsv``, in one of them and a
        compression that pandas knows (as in ``.csv.gz``), or in ``.parquet``. Text is
        separated by tabs in a ``.tsv``, else by commas, semicolons, tabs or ``|``,
        which the first lines tell. It is UTF-8, what its byte order mark says, or else
        taken for latin-1. Where semicolons separate, numbers may have decimal commas.
    target : str
        Column of the labels.
    domain : str, default=None
        Column that says where or when a row comes from; not a feature.

    Returns
    -------
    Bunch
        ``data`` (n, d) in float64, ``target`` (n,), ``domain`` (n,) or None,
        ``feature_names``. An index that pandas wrote into the file is a column where it
        has a name, and left out where it has none.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If a column is missing, has no name or that of another, a row has not as many
        fields as the header, a feature is not a number, a value is missing, the name
        ends in anything else, or the file is not what its name says. Labels and domains
        such as "NA" or "None" are not missing, only empty cells are.
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
    path = Path(check_path("path", path))
    if target is None:
        raise ValueError(
            "target must be the name of a column, got None. Pass that of the labels."
        )
    frame, _ = read_table(path, target, domain)
    features = frame.drop(columns=[c for c in (target, domain) if c is not None])
    if features.shape[1] == 0 or len(features) == 0:
        raise ValueError(
            f"{path.name} must have rows and at least one feature column, got "
            f"{len(features)} rows and {features.shape[1]} features."
        )
    text = [name for name, dtype in features.dtypes.items() if dtype.kind not in "biuf"]
    if text:
        raise ValueError(
            f"features must be numbers, but {path.name} has others in: "
            f"{shorten(text)}. Encode those columns (e.g. pandas.get_dummies) or drop "
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
        feature_names=list(features.columns),
    )


def load_cifar10(
    folder: str | PathLike[str],
    *,
    n_train: int | None = None,
    n_test: int | None = None,
    random_state: int | np.random.RandomState | None = 0,
) -> Bunch:
    """Load CIFAR-10 from two Parquet files, all of it or a stratified part.

    Parameters
    ----------
    folder : str or path-like
        Where ``cifar10_train.parquet`` and ``cifar10_test.parquet`` are. Their
        columns: ``image``, the bytes of a JPEG or PNG file, alone or under ``bytes``
        in a struct, and ``label``, from 0 to 9.
    n_train : int, default=None
        Number of training images, with the share of each class kept; only those are
        decoded. None takes all.
    n_test : int, default=None
        Number of test images, likewise.
    random_state : int, RandomState instance or None, default=0
        Seeds the choice of images. With the same int a larger part holds a smaller
        one, and neither number changes the other part.

    Returns
    -------
    Bunch
        ``X_train`` (n_train, 3, 32, 32), ``X_test`` (n_test, 3, 32, 32) in float32
        with values in [0, 1]; ``y_train`` (n_train,), ``y_test`` (n_test,) in int64;
        ``target_names``, ten names; ``image_shape``. Images come in the order of the
        files, which may be that of the classes: shuffle before cutting folds.

    Raises
    ------
    FileNotFoundError
        If a file is not in the folder.
    ValueError
        If a file, a column or an image is not as above, or a number is not that of a
        stratified part: from the number of classes to that of images.
    ImportError
        If pandas, pyarrow or Pillow is not installed.

    References
    ----------
    A. Krizhevsky, "Learning Multiple Layers of Features from Tiny Images", 2009.

    Examples
    --------
    >>> import io, tempfile
    >>> from pathlib import Path
    >>> import pandas as pd
    >>> from PIL import Image
    >>> from sksoftrank.datasets import load_cifar10
    >>> file = io.BytesIO()
    >>> Image.new("RGB", (32, 32), "white").save(file, format="jpeg")
    >>> frame = pd.DataFrame({"image": [file.getvalue()] * 20, "label": [0, 1] * 10})
    >>> folder = Path(tempfile.mkdtemp())
    >>> for part in ("train", "test"):
    ...     frame.to_parquet(folder / f"cifar10_{part}.parquet")
    >>> cifar = load_cifar10(folder, n_train=4)
    >>> cifar.X_train.shape, cifar.X_test.shape, sorted(cifar.y_train.tolist())
    ((4, 3, 32, 32), (20, 3, 32, 32), [0, 0, 1, 1])
    """
    parts: dict[str, Any] = {}
    for part, n in (("train", n_train), ("test", n_test)):
        path = _file_in(folder, f"cifar10_{part}.parquet")
        frame, _ = read_table(path, caller="load_cifar10")
        _need_columns(frame, ("image", "label"), path)
        y = frame["label"].to_numpy()
        _need_codes("label", y, 9, path)
        # A generator for each part: whatever n_train is, the test images stay.
        rng = check_random_state(
            np.random.RandomState() if random_state is None else random_state
        )
        rows = _stratified(y, n, f"n_{part}", rng)
        parts[f"X_{part}"] = _decode(frame["image"].to_numpy()[rows], rows, path)
        parts[f"y_{part}"] = y[rows].astype(np.int64)
    return Bunch(**parts, target_names=list(CIFAR10_NAMES), image_shape=CIFAR10_SHAPE)


def load_gas_drift(path: str | PathLike[str]) -> Bunch:
    """Load the drift of a gas sensor array: six gases over months, a real shift.

    Parameters
    ----------
    path : str or path-like
        ``gas_drift.parquet``, or the folder it is in. Its columns: ``f001`` to
        ``f128``, ``gas`` from 0 to 5, and ``batch``, the later the more recent.

    Returns
    -------
    Bunch
        ``X`` (n, 128) in float32, not scaled: the columns differ by five orders of
        magnitude; ``y`` (n,) and ``domains`` (n,), gas and batch in int64;
        ``feature_names``, ``target_names``.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If the file or a column is not as above, or a value is missing.
    ImportError
        If pandas or pyarrow is not installed.

    References
    ----------
    A. Vergara et al., "Chemical gas sensor drift compensation using classifier
    ensembles", Sensors and Actuators B 166, 2012.

    Examples
    --------
    >>> import tempfile
    >>> from pathlib import Path
    >>> import pandas as pd
    >>> from sksoftrank.datasets import load_gas_drift
    >>> frame = pd.DataFrame(1.0, range(4), [f"f{i:03d}" for i in range(1, 129)])
    >>> path = Path(tempfile.mkdtemp()) / "gas_drift.parquet"
    >>> frame.assign(gas=[0, 1, 0, 1], batch=[2, 2, 3, 3]).to_parquet(path)
    >>> gas = load_gas_drift(path)
    >>> gas.X.shape, gas.y.tolist(), gas.domains.tolist()
    ((4, 128), [0, 1, 0, 1], [2, 2, 3, 3])
    """
    path = _file(path, "gas_drift.parquet")
    table = load_table(path, "gas", domain="batch")
    if table.feature_names != list(GAS_FEATURES):
        raise ValueError(
            f"{path.name} must have the features f001 to f128, got "
            f"{shorten(table.feature_names)}. Check that it is the gas sensor data."
        )
    _need_codes("gas", table.target, 5, path)
    _need_codes("batch", table.domain, 10, path)
    return Bunch(
        X=table.data.astype(np.float32),
        y=table.target.astype(np.int64),
        domains=table.domain.astype(np.int64),
        feature_names=table.feature_names,
        target_names=list(GAS_NAMES),
    )


def load_portal_rodents(path: str | PathLike[str]) -> Bunch:
    """Load rodents caught in a desert over decades: which species, a real shift.

    Over the years species come and go, and the plants that they live on change.

    Parameters
    ----------
    path : str or path-like
        ``portal_rodents.parquet``, or the folder it is in. Its columns: ``month``,
        ``plot_id``, ``plot_type``, ``sex``, ``hindfoot_length``, ``weight``,
        ``species_id`` and ``year``.

    Returns
    -------
    Bunch
        ``X``, a frame of n rows and the first six of these; ``plot_id``, ``plot_type``
        and ``sex`` are categories, of which ``sex`` may be missing. ``y`` (n,), the
        species, and ``domains`` (n,), the year, in int64; ``feature_names``,
        ``target_names``.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If a column is missing or holds anything else, or a value is missing.
    ImportError
        If pandas or pyarrow is not installed.

    References
    ----------
    S. K. M. Ernest et al., "The Portal Project: a long-term study of a Chihuahuan
    desert ecosystem", bioRxiv 332783, 2018.

    Examples
    --------
    >>> import tempfile
    >>> from pathlib import Path
    >>> import pandas as pd
    >>> from sksoftrank.datasets import load_portal_rodents
    >>> frame = pd.DataFrame(
    ...     {
    ...         **{"month": [1, 2], "plot_id": [3, 4], "plot_type": ["a", "b"]},
    ...         **{"sex": ["F", None], "hindfoot_length": [35.0, 20.0]},
    ...         **{"weight": [40.0, 7.0], "species_id": ["DM", "PF"]},
    ...         "year": [1977, 1978],
    ...     }
    ... )
    >>> path = Path(tempfile.mkdtemp()) / "portal_rodents.parquet"
    >>> frame.to_parquet(path)
    >>> rodents = load_portal_rodents(path)
    >>> rodents.X.shape, rodents.y.tolist(), rodents.domains.tolist()
    ((2, 6), [0, 1], [1977, 1978])
    """
    return _load_frame(
        path,
        "portal_rodents.parquet",
        RODENT_FEATURES,
        target="species_id",
        domain="year",
        # Numbers of plots have no order.
        categories=("plot_id", "plot_type", "sex"),
        may_miss=("sex",),
        caller="load_portal_rodents",
    )


def load_flights(
    path: str | PathLike[str], months: Sequence[int] | None = None
) -> Bunch:
    """Load flights from New York over a year: which carrier, a real shift.

    Timetables, numbers of flights and the weather change with the months.

    Parameters
    ----------
    path : str or path-like
        ``flights.parquet``, or the folder it is in. Its columns: ``weekday``,
        ``sched_dep``, ``sched_arr``, ``dep_delay``, ``arr_delay``, ``air_time``,
        ``distance``, ``flight`` (the number), ``origin``, ``dest``, ``carrier`` and
        ``month``.
    months : sequence of int, default=None
        Those to load, of the file's. None loads all.

    Returns
    -------
    Bunch
        ``X``, a frame of n rows and the first ten of these, of which ``origin`` and
        ``dest`` are categories; ``y`` (n,), the carrier, and ``domains`` (n,), the
        month, in int64; ``feature_names``; ``target_names``, of all months' carriers.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If a column is missing or holds anything else, a value is missing, or no row
        is of one of the months.
    ImportError
        If pandas or pyarrow is not installed.

    References
    ----------
    H. Wickham, "nycflights13: Flights that Departed NYC in 2013", R package; data of
    the Bureau of Transportation Statistics.

    Examples
    --------
    >>> import tempfile
    >>> from pathlib import Path
    >>> import pandas as pd
    >>> from sksoftrank.datasets import FLIGHT_FEATURES, load_flights
    >>> frame = pd.DataFrame(1, index=range(3), columns=FLIGHT_FEATURES)
    >>> frame = frame.assign(origin="JFK", dest=["BOS", "LAX", "BOS"])
    >>> path = Path(tempfile.mkdtemp()) / "flights.parquet"
    >>> frame.assign(carrier=["B6", "AA", "B6"], month=[1, 1, 2]).to_parquet(path)
    >>> flights = load_flights(path, months=[1])
    >>> flights.X.shape, flights.y.tolist(), flights.target_names
    ((2, 10), [1, 0], ['AA', 'B6'])
    """
    flights = _load_frame(
        path,
        "flights.parquet",
        FLIGHT_FEATURES,
        target="carrier",
        domain="month",
        categories=("origin", "dest"),
        caller="load_flights",
    )
    if months is not None:
        known = np.unique(flights.domains).tolist()
        if len(months) == 0 or not set(months) <= set(known):
            raise ValueError(
                f"months must be some of those in the file, {shorten(known)}, got "
                f"{months!r}. Leave out others, or pass None for all."
            )
        chosen = np.isin(flights.domains, months)
        flights.X = flights.X[chosen].reset_index(drop=True)
        flights.y, flights.domains = flights.y[chosen], flights.domains[chosen]
    return flights


def load_watch(path: str | PathLike[str]) -> Bunch:
    """Load a watch's motions in seven exercises of the shoulder, a real shift.

    Each person moves in their own way, and the other arm mirrors the motion.

    Parameters
    ----------
    path : str or path-like
        ``watch.npz``, or the folder it is in. Its arrays: ``X`` (n, 6, 100), ``y``,
        ``subject`` and ``side`` (n,), ``channels`` (6,), ``classes`` (7,).

    Returns
    -------
    Bunch
        ``X`` (n, 600) in float32, the six channels one after the other, each 100 steps
        of time: as they are, for summaries of them are the user's to choose; ``y``
        (n,), the exercise, ``subject`` (n,), who did it, and ``side`` (n,), 0 or 1 for
        the arm, in int64; ``feature_names``, ``target_names``, ``series_shape``,
        which ``X.reshape(-1, *series_shape)`` has.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If an array is missing or has another shape, or a value is not finite.

    References
    ----------
    D. M. Burns et al., "Shoulder physiotherapy exercise recognition: machine learning
    the inertial signals from a smartwatch", Physiological Measurement 39, 2018.

    Examples
    --------
    >>> import tempfile
    >>> from pathlib import Path
    >>> import numpy as np
    >>> from sksoftrank.datasets import load_watch
    >>> path = Path(tempfile.mkdtemp()) / "watch.npz"
    >>> np.savez(
    ...     path,
    ...     X=np.ones((2, 6, 100), np.float32),
    ...     y=[0, 1],
    ...     subject=[1, 2],
    ...     side=["0.0", "1.0"],
    ...     channels=["ax", "ay", "az", "wx", "wy", "wz"],
    ...     classes=["ABD", "ER", "FEL", "IR", "PEN", "ROW", "TRAP"],
    ... )
    >>> watch = load_watch(path)
    >>> watch.X.shape, watch.subject.tolist(), watch.side.tolist()
    ((2, 600), [1, 2], [0, 1])
    """
    path = _file(path, "watch.npz")
    broken = (EOFError, OSError, TypeError, ValueError, zipfile.BadZipFile)
    try:
        with path.open("rb") as file:
            parts = dict(np.load(file, allow_pickle=False))
    except broken as error:
        raise ValueError(
            f"{path.name} must be an archive of arrays, but can't be read: {error}. "
            "Check that it is the whole file."
        ) from error
    names = ("X", "y", "subject", "side", "channels", "classes")
    missing = [name for name in names if name not in parts]
    if missing:
        raise ValueError(
            f"{path.name} must hold the arrays {', '.join(names)}, but "
            f"{', '.join(missing)} is missing. It has: {shorten(list(parts))}."
        )
    X, n_channels = parts["X"], len(parts["channels"])
    lengths = {name: len(parts[name]) for name in ("y", "subject", "side")}
    if X.ndim != 3 or X.shape[1] != n_channels or {*lengths.values()} != {len(X)}:
        raise ValueError(
            f"X in {path.name} must have a row for each of y, subject and side, of "
            f"{n_channels} channels and as many steps, got the shape {X.shape} beside "
            f"{lengths}. Check that it is the watch data."
        )
    if not np.isfinite(X).all():
        raise ValueError(
            f"X in {path.name} must be finite, got NaN or infinity. Fill or drop them."
        )
    y = np.asarray(parts["y"])
    _need_codes("y", y, len(parts["classes"]) - 1, path)
    return Bunch(
        X=X.reshape(len(X), -1).astype(np.float32),
        y=y.astype(np.int64),
        subject=parts["subject"].astype(np.int64),
        side=parts["side"].astype(np.float64).astype(np.int64),
        feature_names=[
            f"{channel}_{step:02d}"
            for channel in parts["channels"].tolist()
            for step in range(X.shape[2])
        ],
        target_names=parts["classes"].tolist(),
        series_shape=X.shape[1:],
    )


def _load_frame(
    path: str | PathLike[str],
    name: str,
    features: tuple[str, ...],
    *,
    target: str,
    domain: str,
    categories: tuple[str, ...],
    may_miss: tuple[str, ...] = (),
    caller: str,
) -> Bunch:
    """Return a table of numbers and categories as a frame, classes as codes."""
    path = _file(path, name)
    frame, _ = read_table(path, target, domain, caller=caller)
    _need_columns(frame, (*features, target, domain), path)
    for column in (*features, target, domain):
        n_missing = int(frame[column].isna().sum())
        if n_missing and column not in may_miss:
            raise ValueError(
                f"column {column!r} of {path.name} must be complete, but {n_missing} "
                "values are missing. Fill them or drop those rows."
            )
    for column in (*features, domain):
        if column not in categories and frame[column].dtype.kind not in "iuf":
            raise ValueError(
                f"column {column!r} of {path.name} must hold numbers, got "
                f"{shorten(frame[column].unique())}. Check that it is the right file."
            )
    X = frame[list(features)].astype(dict.fromkeys(categories, "category"))
    classes, y = np.unique(frame[target].astype(str).to_numpy(), return_inverse=True)
    return Bunch(
        X=X,
        y=y.astype(np.int64),
        domains=frame[domain].to_numpy(dtype=np.int64),
        feature_names=list(features),
        target_names=classes.tolist(),
    )


def _file(path: str | PathLike[str], name: str) -> Path:
    """Return the path of a file that is given itself, or by the folder it is in."""
    path = Path(check_path("path", path))
    if path.is_dir():
        return _file_in(path, name)
    if not path.is_file():
        raise FileNotFoundError(
            f"path must be a file, got {str(path)!r}, which does not exist. Pass "
            f"{name} or the folder it is in."
        )
    return path


def _file_in(folder: str | PathLike[str], name: str) -> Path:
    path = Path(check_path("folder", folder)) / name
    if not path.is_file():
        raise FileNotFoundError(
            f"folder must hold {name}, got {str(folder)!r}, which does not. Pass the "
            "folder where the data are."
        )
    return path


def _need_columns(frame: Any, names: tuple[str, ...], path: Path) -> None:
    missing = [name for name in names if name not in frame.columns]
    if missing:
        raise ValueError(
            f"{path.name} must have the columns {', '.join(names)}, but "
            f"{', '.join(missing)} is missing. It has: "
            f"{shorten(frame.columns)}."
        )


def _need_codes(name: str, codes: Array, most: int, path: Path) -> None:
    if (
        codes.dtype.kind not in "iu"
        or len(codes) == 0
        or codes.min() < 0
        or codes.max() > most
    ):
        raise ValueError(
            f"{name} in {path.name} must hold integers from 0 to {most}, got "
            f"{shorten(sorted(set(map(str, codes.tolist()))))}. Check the file, or "
            "number them so."
        )


def _stratified(
    y: Array, n: int | None, name: str, rng: np.random.RandomState
) -> Array:
    """Return the ascending places of `n` rows, each class with its share."""
    if n is None:
        return np.arange(len(y))
    n_classes = len(np.unique(y))
    if (
        not isinstance(n, Integral)
        or isinstance(n, bool)
        or not n_classes <= n <= len(y)
    ):
        raise ValueError(
            f"{name} must be an integer from {n_classes}, the number of classes, to "
            f"{len(y)}, that of images, got {n!r}. Pass such a number, or None for all."
        )
    return np.sort(stratified_order(y, rng)[: int(n)])


def _decode(files: Array, rows: Array, path: Path) -> Array:
    """Return images (n, 3, 32, 32) in [0, 1] from the bytes of image files."""
    try:
        from PIL import Image
    except ImportError as error:
        raise ImportError(
            "load_cifar10 needs Pillow: pip install 'sksoftrank[image,table]'."
        ) from error
    pixels = np.empty((len(files), 32, 32, 3), dtype=np.uint8)
    for i, file in enumerate(files):
        content: Any = file.get("bytes") if isinstance(file, dict) else file
        try:
            with Image.open(io.BytesIO(content)) as image:
                decoded = np.asarray(image.convert("RGB"))
        except (OSError, TypeError, ValueError) as error:
            raise ValueError(
                f"image in {path.name} must hold the bytes of image files, but row "
                f"{rows[i]} can't be decoded: {error}"
            ) from error
        if decoded.shape != (32, 32, 3):
            raise ValueError(
                f"image in {path.name} must hold images of 32 x 32 pixels, but row "
                f"{rows[i]} has {decoded.shape[0]} x {decoded.shape[1]}."
            )
        pixels[i] = decoded
    # Transposed while it is small; the copy to float32 is then contiguous.
    images = np.ascontiguousarray(pixels.transpose(0, 3, 1, 2)).astype(np.float32)
    images /= 255
    return images
