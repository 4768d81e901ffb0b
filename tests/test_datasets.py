"""The loaders: digits with shifts, and tables from files."""

import sys

import numpy as np
import pandas as pd
import pytest
from sklearn.datasets import load_digits

from sksoftrank import shifts
from sksoftrank.datasets import load_digits_shift, load_table, synthetic_shifts

# Digits


def test_digits_are_split_and_shifted():
    digits = load_digits_shift()
    assert digits.X_train.shape == (1347, 64)
    assert digits.X_test.shape == (450, 64)
    assert digits.y_train.shape == (1347,)
    assert digits.image_shape == (1, 8, 8)
    assert set(digits.X_shifted) == set(shifts.__all__)
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
    shift = shifts.Pixelate(2, image_shape=(8, 8)).fit(digits.X_train)
    np.testing.assert_array_equal(
        digits.X_shifted["Pixelate"], shift.transform(digits.X_test)
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
    with pytest.raises(ValueError, match=r"path must end in \.csv or \.parquet, got"):
        load_table(path, "label")


@pytest.mark.parametrize(
    "name", ["table.csv", "table.parquet", *(f"table.csv.{end}" for end in PACKED)]
)
@pytest.mark.parametrize("content", [b"", b"\xff\xfe\x00 not a table \x00\x81"])
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
