"""The loaders: digits with shifts, CIFAR-10, natural shifts, and tables from files."""

import csv
import decimal
import gzip
import io
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet
import pytest
import sklearn.datasets
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from sklearn.datasets import load_digits

from sksoftrank import SoftRankMLPClassifier, shifts
from sksoftrank.corruptions import Corruption
from sksoftrank.datasets import (
    FLIGHT_FEATURES,
    load_cifar10,
    load_digits_shift,
    load_flights,
    load_gas_drift,
    load_portal_rodents,
    load_table,
    load_watch,
    synthetic_shifts,
)

# Digits


def test_digits_are_split_and_shifted():
    digits = load_digits_shift()
    assert digits.X_train.shape == (1347, 64)
    assert digits.X_test.shape == (450, 64)
    assert digits.y_train.shape == (1347,)
    assert digits.image_shape == (1, 8, 8)
    assert set(digits.X_shifted) == {
        *shifts.__all__,
        *("defocus_blur", "contrast", "brightness", "pixelate"),
    }
    for shifted in digits.X_shifted.values():
        assert shifted.shape == (450, 64)
        assert not np.array_equal(shifted, digits.X_test)
    # Each image once, in [0, 1], beside its own label.
    data, target = load_digits(return_X_y=True)
    X = np.vstack([digits.X_train, digits.X_test])
    y = np.concatenate([digits.y_train, digits.y_test])
    assert sorted(np.column_stack([16 * X, y]).tolist()) == sorted(
        np.column_stack([data, target]).tolist()
    )
    # Stratified: each digit is as frequent in both parts.
    shares = [np.bincount(part) / len(part) for part in (digits.y_train, digits.y_test)]
    np.testing.assert_allclose(*shares, atol=2e-3)


def test_digits_are_the_same_for_the_same_seed():
    first, second, other = (load_digits_shift(random_state=s) for s in (1, 1, 2))
    np.testing.assert_array_equal(first.X_train, second.X_train)
    for name, shifted in first.X_shifted.items():
        np.testing.assert_array_equal(shifted, second.X_shifted[name])
    assert not np.array_equal(first.X_train, other.X_train)


def test_digits_severity_and_test_size():
    mild, severe = (load_digits_shift(s, test_size=0.1) for s in (1, 5))
    assert mild.X_test.shape == (180, 64)
    np.testing.assert_array_equal(mild.X_test, severe.X_test)
    for name, shifted in mild.X_shifted.items():
        change = np.abs(shifted - mild.X_test).mean()
        assert change < np.abs(severe.X_shifted[name] - mild.X_test).mean()
    with pytest.raises(ValueError, match="severity"):
        load_digits_shift(6)


def test_digits_are_shifted_by_what_the_training_images_say():
    digits = load_digits_shift(2, random_state=3)
    for kind in (shifts.GaussianNoise, shifts.GainDrift):
        shift = kind(2, random_state=3).fit(digits.X_train)
        np.testing.assert_array_equal(
            digits.X_shifted[kind.__name__], shift.transform(digits.X_test)
        )
    shift = Corruption("pixelate", 2).fit(digits.X_train)
    np.testing.assert_array_equal(
        digits.X_shifted["pixelate"], shift.transform(digits.X_test)
    )


def test_synthetic_shifts_take_severity_and_seed():
    made = synthetic_shifts(4, random_state=9)
    assert [type(shift).__name__ for shift in made] == [
        "GaussianNoise",
        "FeatureDropout",
        "GainDrift",
        "OffsetDrift",
    ]
    assert {(shift.severity, shift.random_state) for shift in made} == {(4, 9)}


# CIFAR-10


def image_file(number, size=(32, 32), kind="png"):
    """Return the bytes of an image whose pixels all say its number."""
    file = io.BytesIO()
    Image.new("RGB", size, (number, 2 * number, 255)).save(file, format=kind)
    return file.getvalue()


def cifar_frame(n=60):
    """Return `n` images: the classes 0 to 5 in turn, and the last a sixth."""
    return pd.DataFrame(
        {"image": [image_file(i) for i in range(n)], "label": np.arange(n) % 6}
    ).astype({"label": np.int8})


@pytest.fixture
def cifar(tmp_path):
    """Return a folder of 60 images to train on and 30 to test on."""
    cifar_frame().to_parquet(tmp_path / "cifar10_train.parquet")
    cifar_frame(30).to_parquet(tmp_path / "cifar10_test.parquet")
    return tmp_path


@pytest.mark.parametrize("kind", [str, lambda path: path], ids=["str", "Path"])
def test_cifar_is_loaded_whole(cifar, kind):
    data = load_cifar10(kind(cifar))
    assert data.X_train.shape == (60, *data.image_shape) == (60, 3, 32, 32)
    assert data.X_test.shape == (30, 3, 32, 32)
    assert data.X_train.dtype == data.X_test.dtype == np.float32
    assert data.X_train.flags.c_contiguous
    assert data.y_train.dtype == data.y_test.dtype == np.int64
    np.testing.assert_array_equal(data.y_train, np.arange(60) % 6)
    colours = np.stack([np.arange(60), 2 * np.arange(60), np.full(60, 255)], 1) / 255
    np.testing.assert_allclose(data.X_train[:, :, 5, 7], colours, rtol=1e-6)
    assert np.ptp(data.X_train, axis=(2, 3)).max() == 0
    assert len(data.target_names) == 10
    assert data.target_names[9] == "truck"


def test_cifar_in_structs_and_other_kinds_of_files(cifar):
    frame = cifar_frame(6)
    frame["image"] = [
        {"bytes": image_file(40 * i, kind="jpeg"), "path": None} for i in range(6)
    ]
    frame.to_parquet(cifar / "cifar10_test.parquet")
    data = load_cifar10(cifar, n_train=6)
    np.testing.assert_allclose(255 * data.X_test[:, 0, 0, 0], 40 * np.arange(6), atol=3)


def test_part_of_cifar_is_stratified_and_seeded(cifar):
    whole = load_cifar10(cifar)
    part = load_cifar10(cifar, n_train=30, n_test=12, random_state=1)
    np.testing.assert_array_equal(np.bincount(part.y_train), np.full(6, 5))
    np.testing.assert_array_equal(np.bincount(part.y_test), np.full(6, 2))
    # Images beside their own labels, in the file's order.
    numbers = np.rint(255 * part.X_train[:, 0, 0, 0]).astype(int)
    assert (np.diff(numbers) > 0).all()
    np.testing.assert_array_equal(part.y_train, numbers % 6)
    np.testing.assert_array_equal(part.X_train, whole.X_train[numbers])

    again = load_cifar10(cifar, n_train=30, n_test=12, random_state=1)
    np.testing.assert_array_equal(again.X_train, part.X_train)
    other = load_cifar10(cifar, n_train=30, n_test=12, random_state=2)
    assert not np.array_equal(other.X_train, part.X_train)
    generator = load_cifar10(
        cifar, n_train=30, n_test=12, random_state=np.random.RandomState(1)
    )
    np.testing.assert_array_equal(generator.X_train, part.X_train)


def test_parts_of_cifar_are_nested_and_apart(cifar):
    small, large = (load_cifar10(cifar, n_train=n, n_test=12) for n in (12, 31))
    small_numbers, large_numbers = (
        set(np.rint(255 * data.X_train[:, 0, 0, 0]).tolist()) for data in (small, large)
    )
    assert small_numbers < large_numbers
    np.testing.assert_array_equal(small.X_test, large.X_test)


def test_only_the_part_is_decoded(cifar):
    frame = cifar_frame()
    keep = np.rint(255 * load_cifar10(cifar, n_train=6).X_train[:, 0, 0, 0])
    frame.loc[~np.isin(np.arange(60), keep), "image"] = b"not an image"
    frame.to_parquet(cifar / "cifar10_train.parquet")
    assert load_cifar10(cifar, n_train=6).X_train.shape == (6, 3, 32, 32)
    with pytest.raises(ValueError, match=r"cifar10_train\.parquet must hold the bytes"):
        load_cifar10(cifar)


@pytest.mark.parametrize("n", [5, 61, 0, -1, 12.0, True, "12"])
def test_size_of_a_part(cifar, n):
    with pytest.raises(
        ValueError, match="n_train must be an integer from 6, the number of classes, to"
    ) as error:
        load_cifar10(cifar, n_train=n)
    assert f"got {n!r}" in str(error.value)
    for n_train in (60, np.int64(60)):
        assert len(load_cifar10(cifar, n_train=n_train).X_train) == 60


def test_missing_cifar(cifar, tmp_path):
    with pytest.raises(
        FileNotFoundError, match=r"folder must hold cifar10_train\.parquet, got"
    ):
        load_cifar10(tmp_path / "none")
    (cifar / "cifar10_test.parquet").unlink()
    with pytest.raises(FileNotFoundError, match=r"hold cifar10_test\.parquet") as error:
        load_cifar10(cifar)
    assert repr(str(cifar)) in str(error.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: f.drop(columns="image"), "but image is missing. It has: label"),
        (
            lambda f: f.assign(label=f.label + 5),
            "label in .* from 0 to 9, got 10, 5, 6",
        ),
        (lambda f: f.assign(label=f.label - 1), "from 0 to 9, got -1, 0, 1"),
        (lambda f: f.assign(label=f.label / 2), "from 0 to 9, got 0.0, 0.5"),
        (lambda f: f.assign(label="cat"), "from 0 to 9, got cat"),
        (lambda f: f[:0], "from 0 to 9, got"),
        (
            lambda f: f.assign(image=b"\xff\xd8"),
            "bytes of image files, but row 0 can't",
        ),
        (lambda f: f.assign(image=7), "bytes of image files, but row 0 can't"),
        (
            lambda f: f.assign(image=image_file(3, size=(28, 32))),
            "32 x 32 pixels, but row 0 has 32 x 28",
        ),
    ],
)
def test_files_that_are_not_cifar(cifar, change, message):
    change(cifar_frame(6)).to_parquet(cifar / "cifar10_train.parquet")
    with pytest.raises(ValueError, match=message):
        load_cifar10(cifar)


@pytest.mark.parametrize(
    ("module", "extra"),
    [("PIL", "image,table"), ("pandas", "table"), ("pyarrow", "table")],
)
def test_what_cifar_needs(cifar, monkeypatch, module, extra):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ImportError, match=rf"pip install 'sksoftrank\[{extra}\]'"):
        load_cifar10(cifar)


# Gas sensors


def gas_frame(n=12):
    X = np.arange(n * 128.0).reshape(n, 128)
    frame = pd.DataFrame(X, columns=[f"f{i:03d}" for i in range(1, 129)])
    return frame.assign(gas=np.arange(n) % 6, batch=2 + np.arange(n) // 4)


def test_gas_drift(tmp_path):
    path = tmp_path / "gas_drift.parquet"
    gas_frame().to_parquet(path)
    for where in (path, tmp_path, str(tmp_path)):
        gas = load_gas_drift(where)
        assert gas.X.dtype == np.float32
        np.testing.assert_array_equal(gas.X, np.arange(12 * 128).reshape(12, 128))
        np.testing.assert_array_equal(gas.y, np.arange(12) % 6)
        np.testing.assert_array_equal(gas.domains, 2 + np.arange(12) // 4)
        assert gas.y.dtype == gas.domains.dtype == np.int64
        assert gas.feature_names[127] == "f128"
        assert gas.target_names[5] == "toluene"


def test_missing_gas_drift(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"folder must hold gas_drift\.parquet"):
        load_gas_drift(tmp_path)
    with pytest.raises(FileNotFoundError, match="path must be a file, got"):
        load_gas_drift(tmp_path / "none.parquet")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: f.drop(columns="f007"), "the features f001 to f128, got f001"),
        (lambda f: f.drop(columns="batch"), "domain must be a column .* got 'batch'"),
        (lambda f: f.assign(gas=f.gas + 1), "gas in .* from 0 to 5, got 1, 2"),
        (lambda f: f.assign(gas=f.gas / 2), "gas in .* from 0 to 5, got 0.0"),
        (lambda f: f.assign(batch="May"), "batch in .* from 0 to 10, got May"),
    ],
)
def test_files_that_are_not_gas_drift(tmp_path, change, message):
    path = tmp_path / "gas_drift.parquet"
    change(gas_frame()).to_parquet(path)
    with pytest.raises(ValueError, match=message):
        load_gas_drift(path)


# Rodents, flights and a watch


def rodents_frame():
    return pd.DataFrame(
        {
            "year": np.array([1977, 1977, 1990, 2002], np.int16),
            "month": [8, 8, 1, 12],
            "plot_id": [3, 7, 3, 24],
            "plot_type": pd.Categorical(["Control", "Spectab", "Control", "Control"]),
            "sex": pd.Categorical(["M", "F", None, "M"]),
            "hindfoot_length": np.array([35, 37, 20, 16], np.float32),
            "weight": np.array([40, 48, 7, 8], np.float32),
            "species_id": ["DM", "DM", "PF", "NA"],
        }
    )


def flights_frame():
    frame = pd.DataFrame(
        np.arange(60).reshape(6, 10), columns=list(FLIGHT_FEATURES)
    ).astype(dict.fromkeys(FLIGHT_FEATURES[:8], np.int16))
    return frame.assign(
        origin=pd.Categorical(["EWR", "LGA"] * 3),
        dest=pd.Categorical(["IAH"] * 6),
        carrier=pd.Categorical(["UA", "AA", "UA", "B6", "UA", "UA"]),
        month=np.array([1, 1, 2, 3, 3, 3], np.int8),
    )


def watch_arrays(n=4):
    return {
        "X": np.arange(n * 600, dtype=np.float32).reshape(n, 6, 100),
        "y": np.arange(n),
        "subject": np.arange(1, n + 1),
        "side": np.array(["0.0", "1.0"] * (n // 2)),
        "channels": np.array(["ax", "ay", "az", "wx", "wy", "wz"]),
        "classes": np.array(["ABD", "ER", "FEL", "IR", "PEN", "ROW", "TRAP"]),
    }


def test_rodents(tmp_path):
    path = tmp_path / "portal_rodents.parquet"
    rodents_frame().to_parquet(path)
    for where in (path, tmp_path, str(tmp_path)):
        rodents = load_portal_rodents(where)
        # No year: it is the domain.
        assert rodents.X.columns.tolist() == rodents.feature_names
        assert rodents.feature_names == [
            *("month", "plot_id", "plot_type", "sex", "hindfoot_length", "weight")
        ]
        kinds = rodents.X.dtypes == "category"
        assert kinds[kinds].index.tolist() == ["plot_id", "plot_type", "sex"]
        assert rodents.X.isna().sum().sum() == 1
        assert rodents.target_names == ["DM", "NA", "PF"]
        assert rodents.y.tolist() == [0, 0, 2, 1]
        assert rodents.domains.tolist() == [1977, 1977, 1990, 2002]
        assert rodents.y.dtype == rodents.domains.dtype == np.int64


def test_a_network_takes_rodents_as_they_are(tmp_path):
    rodents_frame().to_parquet(tmp_path / "portal_rodents.parquet")
    rodents = load_portal_rodents(tmp_path)
    X, y = pd.concat([rodents.X] * 3), np.tile(rodents.y, 3)
    clf = SoftRankMLPClassifier(4, max_epochs=1, random_state=0).fit(X, y)
    assert clf.predict(rodents.X).shape == (4,)


def test_flights(tmp_path):
    path = tmp_path / "flights.parquet"
    flights_frame().to_parquet(path)
    flights = load_flights(path)
    assert flights.X.columns.tolist() == list(FLIGHT_FEATURES) == flights.feature_names
    assert flights.X.dtypes.eq("category").sum() == 2
    assert flights.target_names == ["AA", "B6", "UA"]
    assert flights.y.tolist() == [2, 0, 2, 1, 2, 2]
    assert flights.domains.tolist() == [1, 1, 2, 3, 3, 3]


def test_some_months_of_flights(tmp_path):
    flights_frame().to_parquet(tmp_path / "flights.parquet")
    whole, part = (load_flights(tmp_path, months) for months in (None, (1, 3)))
    rows = [0, 1, 3, 4, 5]
    pd.testing.assert_frame_equal(part.X, whole.X.iloc[rows].reset_index(drop=True))
    assert part.y.tolist() == whole.y[rows].tolist()
    assert part.domains.tolist() == [1, 1, 3, 3, 3]
    # A code means the same carrier whatever is loaded.
    assert part.target_names == whole.target_names
    for months in ([4], [], [1, 13]):
        with pytest.raises(ValueError, match=r"months must be .* 1, 2, 3, got"):
            load_flights(tmp_path, months)


def test_watch(tmp_path):
    np.savez(tmp_path / "watch.npz", **watch_arrays())
    for where in (tmp_path, tmp_path / "watch.npz"):
        watch = load_watch(where)
        assert watch.X.dtype == np.float32
        np.testing.assert_array_equal(watch.X, np.arange(2400).reshape(4, 600))
        assert watch.feature_names[105] == "ay_05"
        assert watch.X.reshape(-1, *watch.series_shape)[2, 1, 5] == watch.X[2, 105]
        assert watch.y.tolist() == [0, 1, 2, 3]
        assert watch.subject.tolist() == [1, 2, 3, 4]
        assert watch.side.tolist() == [0, 1, 0, 1]
        assert watch.target_names[6] == "TRAP"


@pytest.mark.parametrize("load", [load_portal_rodents, load_flights, load_watch])
def test_missing_natural_shifts(tmp_path, load):
    with pytest.raises(FileNotFoundError, match="folder must hold"):
        load(tmp_path)
    with pytest.raises(FileNotFoundError, match="path must be a file, got"):
        load(tmp_path / "none.parquet")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: f.drop(columns="plot_id"), "but plot_id is missing"),
        (lambda f: f.drop(columns="year"), "domain must be a column .* got 'year'"),
        (lambda f: f.assign(weight="heavy"), "'weight' of .* numbers, got heavy"),
        (lambda f: f.assign(year="May"), "'year' of .* must hold numbers, got May"),
        (lambda f: f.assign(month=[1, None, 2, 3]), "'month' of .* but 1 values"),
        (lambda f: f.assign(plot_type=None), "'plot_type' of .* but 4 values"),
    ],
)
def test_files_that_are_not_rodents(tmp_path, change, message):
    change(rodents_frame()).to_parquet(tmp_path / "portal_rodents.parquet")
    with pytest.raises(ValueError, match=message):
        load_portal_rodents(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda a: {k: v for k, v in a.items() if k != "side"}, "but side is missing"),
        (lambda a: a | {"X": a["X"][0]}, r"the shape \(6, 100\)"),
        (lambda a: a | {"X": a["X"][:, :5]}, "6 channels"),
        (lambda a: a | {"subject": a["subject"][1:]}, "'subject': 3"),
        (lambda a: a | {"y": a["y"] + 4}, "y in .* from 0 to 6"),
        (lambda a: a | {"X": a["X"] / 0 * 0}, "X in .* must be finite"),
    ],
)
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_files_that_are_not_a_watch(tmp_path, change, message):
    np.savez(tmp_path / "watch.npz", **change(watch_arrays()))
    with pytest.raises(ValueError, match=message):
        load_watch(tmp_path)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 cut off", b"text"])
def test_a_file_that_is_no_archive(tmp_path, content):
    (tmp_path / "watch.npz").write_bytes(content)
    with pytest.raises(ValueError, match=r"watch\.npz must be an archive of arrays"):
        load_watch(tmp_path)


# Tables

FRAME = pd.DataFrame(
    {
        "whole": [1, 2, 3],
        "site": ["north", "south", "south"],
        "real": [0.5, 1e-300, -2.25],
        "label": ["x", "y", "x"],
        "yes": [True, False, True],
    }
)
PACKED = ["bz2", "gz", "tar", "tar.gz", "xz", "zip"]
WRITERS = {
    "table.csv": lambda frame, path: frame.to_csv(path, index=False),
    "table.csv.gz": lambda frame, path: frame.to_csv(path, index=False),
    "table.csv.tar.gz": lambda frame, path: frame.to_csv(path, index=False),
    "table.csv.xz": lambda frame, path: frame.to_csv(path, index=False),
    "table.v2.csv": lambda frame, path: frame.to_csv(path, index=False),
    "table.parquet": lambda frame, path: frame.to_parquet(path),
    "table.csv.parquet": lambda frame, path: frame.to_parquet(path),
}


def write(folder, frame, name="table.csv"):
    path = folder / name
    WRITERS[name](frame, path)
    return path


@pytest.mark.parametrize("name", WRITERS)
@pytest.mark.parametrize("kind", [str, lambda path: path], ids=["str", "Path"])
def test_round_trip(tmp_path, name, kind):
    table = load_table(kind(write(tmp_path, FRAME, name)), "label", domain="site")
    assert table.feature_names == ["whole", "real", "yes"]
    np.testing.assert_array_equal(
        table.data, [[1, 0.5, 1], [2, 1e-300, 0], [3, -2.25, 1]]
    )
    assert table.data.dtype == np.float64
    assert table.target.tolist() == ["x", "y", "x"]
    assert table.domain.tolist() == ["north", "south", "south"]


def test_without_a_domain(tmp_path):
    path = write(tmp_path, FRAME.drop(columns="site"))
    table = load_table(path, "label")
    assert table.domain is None
    assert table.feature_names == ["whole", "real", "yes"]


def test_numbers_as_labels_and_domain(tmp_path):
    table = load_table(write(tmp_path, FRAME[["whole", "real"]]), "whole", "whole")
    assert table.target.dtype == np.int64
    assert table.target.tolist() == table.domain.tolist() == [1, 2, 3]
    assert table.feature_names == ["real"]


def test_nullable_columns_without_nulls(tmp_path):
    frame = FRAME[["whole", "real", "yes", "label"]].convert_dtypes()
    table = load_table(write(tmp_path, frame, "table.parquet"), "label")
    assert table.data.dtype == np.float64
    np.testing.assert_array_equal(table.data[:, 0], [1, 2, 3])


def test_missing_file(tmp_path):
    for path in (tmp_path / "none.csv", tmp_path):
        with pytest.raises(FileNotFoundError, match="path must be a file, got") as e:
            load_table(path, "label")
        assert repr(str(path)) in str(e.value)


def test_unknown_column(tmp_path):
    path = write(tmp_path, FRAME)
    with pytest.raises(
        ValueError, match=r"target must be a column of table\.csv, got 'z'"
    ):
        load_table(path, "z")
    with pytest.raises(
        ValueError, match=r"domain must be a column of table\.csv, got 'z'"
    ):
        load_table(path, "label", domain="z")
    with pytest.raises(ValueError, match="It has: whole, site, real, label, yes"):
        load_table(path, "z")
    with pytest.raises(ValueError, match="target must be the name of a column, got No"):
        load_table(path, None)


def test_long_lists_of_columns_are_shortened(tmp_path):
    frame = pd.DataFrame(np.ones((2, 20)), columns=[f"f{i}" for i in range(20)])
    with pytest.raises(ValueError, match="f6, f7 and 12 more"):
        load_table(write(tmp_path, frame), "z")


@pytest.mark.parametrize("name", ["table.csv", "table.parquet"])
def test_text_columns(tmp_path, name):
    frame = FRAME.assign(place=["a", "b", None])
    with pytest.raises(ValueError, match=r"must be numbers.*others in: site, place"):
        load_table(write(tmp_path, frame, name), "label")


def test_dates_and_categories_are_not_numbers(tmp_path):
    frame = FRAME[["label", "real"]].assign(
        day=pd.date_range("2020-01-01", periods=3), kind=pd.Categorical(list("aba"))
    )
    with pytest.raises(ValueError, match=r"must be numbers.*others in: day, kind"):
        load_table(write(tmp_path, frame, "table.parquet"), "label")


@pytest.mark.parametrize("name", ["table.csv", "table.parquet"])
@pytest.mark.parametrize("column", ["real", "label", "site"])
def test_missing_values(tmp_path, name, column):
    frame = FRAME.copy()
    frame.loc[[0, 2], column] = None
    path = write(tmp_path, frame, name)
    with pytest.raises(
        ValueError, match=f"column '{column}' of {name} must be complete, but 2 values"
    ):
        load_table(path, "label", domain="site")


def test_missing_values_in_a_nullable_column(tmp_path):
    frame = FRAME[["real", "label"]].assign(n=pd.array([1, None, 3], dtype="Int64"))
    with pytest.raises(
        ValueError, match=r"column 'n' of table\.parquet must be complete"
    ):
        load_table(write(tmp_path, frame, "table.parquet"), "label")


@pytest.mark.parametrize(
    "name",
    ["table.xlsx", "table", "csv", "table.csv.txt", "table.txt.gz", "table.csv.old.gz"],
)
def test_wrong_suffix(tmp_path, name):
    path = tmp_path / name
    path.write_text("a,label\n1,x\n")
    with pytest.raises(ValueError, match=r"path must end in \.csv, \.tsv or \.parq"):
        load_table(path, "label")


@pytest.mark.parametrize(
    "name", ["table.csv", "table.parquet", *(f"table.csv.{end}" for end in PACKED)]
)
@pytest.mark.parametrize("content", [b"", b"\x89\x00 not a table \x00\x81"])
def test_a_file_that_is_not_a_table(tmp_path, name, content):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(ValueError, match=f"{name} can't be read"):
        load_table(path, "label")


def test_empty_table(tmp_path):
    with pytest.raises(ValueError, match="got 0 rows and 3 features"):
        load_table(write(tmp_path, FRAME[:0]), "label", domain="site")
    with pytest.raises(ValueError, match="got 3 rows and 0 features"):
        load_table(write(tmp_path, FRAME[["label", "site"]]), "label", domain="site")


def test_pandas_is_optional(tmp_path, monkeypatch):
    path = write(tmp_path, FRAME)
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(ImportError, match=r"pip install 'sksoftrank\[table\]'"):
        load_table(path, "label")


def test_pyarrow_is_optional(tmp_path, monkeypatch):
    path = write(tmp_path, FRAME, "table.parquet")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ImportError, match=r"needs pyarrow for table\.parquet: pip"):
        load_table(path, "label")


# What files do to their columns


def text(folder, content, name="table.csv"):
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


@pytest.mark.parametrize("name", ["breast_cancer.csv", "wine_data.csv"])
def test_a_header_of_other_things_than_names(name):
    # It holds the number of rows, that of features, and the classes.
    path = Path(sklearn.datasets.__file__).parent / "data" / name
    target = path.read_text().partition("\n")[0].split(",")[-1]
    message = rf"{name} must have as many fields in a row as its header has names, \d, "
    with pytest.raises(ValueError, match=message + r"but line 2 has \d\d, cut at ','"):
        load_table(path, target)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("a,b,label\n1,2,3,0\n", "3, but line 2 has 4"),
        ("a,b,label\n1,2,3\n1,2,3,0\n", "3, but line 3 has 4"),
        ("a,b,label\n1,2,\n\n1,2,3,,\n", "3, but line 4 has 5"),
        ("a,b,label\n1,2,3,\n4,5,6,7\n", "3, but line 3 has 4"),
        ("a,b,label\n1,2\n3,4,5\n", "3, but line 2 has 2"),
        ('a,b,label\n3,"4\n",5\n1,2\n', "3, but line 4 has 2"),
        ("label,a\n1\n2,3\n", "2, but line 2 has 1"),
        ("a;b;label\n1;2\n", "3, but line 2 has 2, cut at ';'"),
    ],
)
@pytest.mark.parametrize("end", ["", ".gz"])
def test_rows_of_other_lengths_than_the_header(tmp_path, content, message, end):
    content = content.encode()
    path = text(tmp_path, gzip.compress(content) if end else content, f"t.csv{end}")
    with pytest.raises(ValueError, match=message) as error:
        load_table(path, "label")
    assert str(error.value).startswith(f"t.csv{end} must have as many fields in a row")


@pytest.mark.parametrize(
    "content",
    [
        "a,b,label\n1,2,x,\n3,4,y,\n",
        "a,b,label,\n1,2,x,\n3,4,y,\n",
        "a,b,label,\n1,2,x\n3,4,y\n",
        ",a,b,label\n7,1,2,x\n9,3,4,y\n",
        "Unnamed: 0.1,Unnamed: 0,a,b,label\n0,7,1,2,x\n1,9,3,4,y\n",
        " a , b,label \n1, 2, x\n\n3,4,y\n",
        '"a" , b,label\n1, "2", "x"\n3,4,y\n',
    ],
)
def test_separators_at_the_end_spaces_and_row_labels(tmp_path, content):
    table = load_table(text(tmp_path, content), "label")
    assert table.feature_names == ["a", "b"]
    np.testing.assert_array_equal(table.data, [[1, 2], [3, 4]])
    assert table.target.tolist() == ["x", "y"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("a,a,label\n1,2,3\n", "several are named 'a'"),
        ("a, a ,label\n1,2,3\n", "several are named 'a'"),
        ("label,a,label\n1,2,3\n", "several are named 'label'"),
        ("a,,label\n1,2,3\n", "column 2 has no name"),
        (",a,label\n1,2,3\n1,5,6\n", "column 1 has no name"),  # No labels of rows.
    ],
)
def test_names_of_columns(tmp_path, content, message):
    with pytest.raises(ValueError, match=f"table\\.csv must .*{message}"):
        load_table(text(tmp_path, content), "label")


@pytest.mark.parametrize("index", ["b", ["b", "label"], ["a", "b", "label"]])
def test_a_named_index_in_parquet_is_a_column(tmp_path, index):
    frame = pd.DataFrame({"a": [1, 2], "b": [5, 3], "label": ["x", "y"]})
    frame.set_index(index).to_parquet(tmp_path / "table.parquet")
    table = load_table(tmp_path / "table.parquet", "label")
    by_name = dict(zip(table.feature_names, table.data.T.tolist(), strict=True))
    assert by_name == {"a": [1, 2], "b": [5, 3]}
    assert table.target.tolist() == ["x", "y"]


@pytest.mark.parametrize(
    "index",
    [
        pd.RangeIndex(2),
        pd.RangeIndex(5, 3, -1),
        [7, 3],
        ["p", "q"],
        pd.MultiIndex.from_tuples([(1, "p"), (2, "q")]),
    ],
    ids=str,
)
def test_an_index_without_a_name_in_parquet_is_none(tmp_path, index):
    frame = pd.DataFrame({"a": [1, 2], "label": ["x", "y"]}).set_axis(index)
    frame.to_parquet(tmp_path / "table.parquet")
    table = load_table(tmp_path / "table.parquet", "label")
    assert table.feature_names == ["a"]
    assert table.data.tolist() == [[1], [2]]
    # Nor where no pandas restores it.
    rows = pa.Table.from_pandas(frame).replace_schema_metadata()
    pa.parquet.write_table(rows, tmp_path / "table.parquet")
    if not isinstance(frame.index, pd.MultiIndex):
        assert load_table(tmp_path / "table.parquet", "label").feature_names == ["a"]


def test_names_in_parquet(tmp_path):
    path = tmp_path / "table.parquet"
    pa.parquet.write_table(pa.table([[1], [2], [3]], ["a", "label", "a"]), path)
    with pytest.raises(
        ValueError, match=r"table\.parquet must .* several are named 'a"
    ):
        load_table(path, "label")
    frame = pd.DataFrame({"a": [1, 2], "label": ["x", "y"]})
    frame.set_index("a", drop=False).to_parquet(path)
    with pytest.raises(
        ValueError, match=r"table\.parquet must .* several are named 'a"
    ):
        load_table(path, "label")
    frame.set_axis([0, 1], axis=1).to_parquet(path)
    assert load_table(path, "1").feature_names == ["0"]


def test_decimals_in_parquet(tmp_path):
    column = [decimal.Decimal("1.5"), decimal.Decimal("2")]
    frame = pd.DataFrame({"a": column, "label": ["x", "y"]})
    table = load_table(write(tmp_path, frame, "table.parquet"), "label")
    assert table.data.tolist() == [[1.5], [2.0]]


CELLS = st.text("abÄ ,;|\"'é-", max_size=6).map(str.strip).filter(bool)


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.tuples(CELLS, st.floats(-1e9, 1e9)), min_size=1, max_size=30),
    st.sampled_from(",;\t|"),
    st.sampled_from(["utf-8", "utf-8-sig", "utf-16", "latin-1"]),
)
def test_separators_and_encodings(tmp_path_factory, rows, separator, encoding):
    frame = pd.DataFrame(rows, columns=["größe x", "wert"]).assign(label=1)
    path = tmp_path_factory.mktemp("tables") / "Table.CSV"
    options = {"sep": separator, "encoding": encoding, "index": False}
    frame.to_csv(path, quoting=csv.QUOTE_NONNUMERIC, **options)
    table = load_table(path, "größe x", domain="label")
    assert table.target.tolist() == frame["größe x"].tolist()
    # The parser of older pandas may miss a number's last digits.
    np.testing.assert_allclose(table.data[:, 0], frame["wert"], rtol=1e-12)


@pytest.mark.parametrize(
    "name", ["t.tsv", "T.TSV", "t.Tsv.GZ", "t.PARQUET", "t.CSV", "t.Csv.Xz"]
)
def test_endings(tmp_path, name):
    path = tmp_path / name
    frame = FRAME.drop(columns="site")
    if name.endswith("PARQUET"):
        frame.to_parquet(path)
    else:
        frame.to_csv(path, sep="\t" if "tsv" in name.lower() else ",", index=False)
    table = load_table(path, "label")
    assert table.feature_names == ["whole", "real", "yes"]
    assert table.target.tolist() == ["x", "y", "x"]


def test_commas_in_a_tsv_separate_nothing(tmp_path):
    path = text(tmp_path, "a\tx, y, z\n1\tp,q,r\n", "table.tsv")
    assert load_table(path, "x, y, z").target.tolist() == ["p,q,r"]


@pytest.mark.parametrize(
    "content",
    [
        "day;heat, °C;rain, mm;label\n1;2;3;x\n",  # More commas than in the rows.
        "a;b;c;label\n1,5;2,5;3,5;x,y,z\n",
        'a;label\n1;"x,y,z"\n',
        '"a","label"\n1,"x;y;z"\n',
        "a &amp; b,label\n1,x&lt;&gt;&quot;\n",
        'a,label\n1,"x\ny"\n',
        "a,label\r1,x\r",
        "\na|label\n\n1|x, y\n",
    ],
)
def test_what_separates(tmp_path, content):
    table = load_table(text(tmp_path, content), "label")
    assert len(table.target) == 1
    assert table.target[0][0] == "x"


def test_decimal_commas(tmp_path):
    path = text(tmp_path, "a;b;label\n1,5;-2e3;1,5\n-0,25;7;2,5\n")
    table = load_table(path, "label")
    assert table.data.tolist() == [[1.5, -2000], [-0.25, 7]]
    assert table.target.tolist() == ["1,5", "2,5"]
    for content in ('a,label\n"1,5",x\n', "a;label\n1.234,5;x\n"):  # Or thousands.
        with pytest.raises(ValueError, match="others in: a"):
            load_table(text(tmp_path, content), "label")


def test_only_an_empty_label_is_missing(tmp_path):
    content = "a,label,site\n1,NA,None\n2,None,null\n3,nan,n/a\n"
    table = load_table(text(tmp_path, content), "label", domain="site")
    assert table.target.tolist() == ["NA", "None", "nan"]
    assert table.domain.tolist() == ["None", "null", "n/a"]
    with pytest.raises(ValueError, match=r"column 'label' .* but 1 values"):
        load_table(text(tmp_path, content + "4,,x\n"), "label", domain="site")
    with pytest.raises(ValueError, match=r"column 'a' .* but 1 values"):
        load_table(text(tmp_path, content + "NA,x,x\n"), "label", domain="site")


def test_text_in_utf_16_without_its_mark(tmp_path):
    path = text(tmp_path, "a,label\n1,x\n".encode("utf-16-le"))
    with pytest.raises(ValueError, match=r"table\.csv can't be read: it holds zero"):
        load_table(path, "label")
