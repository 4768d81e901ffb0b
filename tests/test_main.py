"""``python -m sksoftrank``: what it prints, draws and refuses."""

import os
import re
import signal
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import sklearn.datasets
from matplotlib.figure import Figure
from skorch.callbacks import Callback

import sksoftrank.__main__ as demo
from sksoftrank import SoftRankMLPClassifier
from sksoftrank.__main__ import advice, format_table, main
from sksoftrank.inspection import temperature_sweep

HEADER = [
    "temperature",
    "train acc. %",
    "test acc. %",
    "shifted acc. %",
    "logit norm",
    "eff. rank",
    "99 % var.",
    "columns",
    "kNN acc. %",
]


@pytest.fixture(autouse=True)
def small(monkeypatch, tmp_path):
    """Train little, and leave nothing in the working directory."""
    monkeypatch.setattr(demo, "TEMPERATURES", (1.0, 30.0))
    monkeypatch.setattr(demo, "ROW_VISITS", 1)
    monkeypatch.chdir(tmp_path)


def table(n=120, seed=0):
    """Return three blobs of text labels, measured at two sites over three years."""
    rng = np.random.default_rng(seed)
    codes = np.arange(n) % 3
    X = 2.0 * np.eye(3, 4)[codes] + rng.standard_normal((n, 4))
    frame = pd.DataFrame(X, columns=list("abcd"))
    frame["kind"] = np.array(["oak", "ash", "elm"])[codes]
    frame["year"] = 2020 + np.arange(n) * 3 // n
    return frame


def write(frame, suffix):
    name = f"trees{suffix}"
    if suffix == ".parquet":
        frame.to_parquet(name)
    else:
        frame.to_csv(name, index=False)
    return name


def rows_of(text):
    """Return the cells of the table in the output, header first."""
    lines = text.splitlines()
    rule = next(i for i, line in enumerate(lines) if line.startswith("-----------"))
    ends = [match.span() for match in re.finditer("-+", lines[rule])]
    table = [lines[rule - 1]]
    for line in lines[rule + 1 :]:
        if not re.match(r" *[0-9.]+  ", line):
            break
        table.append(line)
    return [[line[a:b].strip() for a, b in ends] for line in table]


def fails(capsys, *argv):
    """Return the message of a run that must end in one line and exit code 2."""
    assert main(list(argv)) == 2
    printed, message = capsys.readouterr()
    assert printed == ""
    assert message.startswith("error: ")
    assert message.count("\n") == 1
    return message


def assert_is_png(path):
    assert path.read_bytes().startswith(b"\x89PNG")


# -- Runs that end well --------------------------------------------------------------


def test_digits(capsys, tmp_path):
    assert main(["--seeds", "2"]) == 0
    printed, errors = capsys.readouterr()
    assert errors == ""
    assert printed.startswith("Handwritten digits (scikit-learn), 8 x 8 pixels\n")
    assert "1347 images to train on, 450 to test on" in printed
    header, *rows = rows_of(printed)
    assert header == HEADER
    assert [row[0] for row in rows] == ["1", "30"]
    for row in rows:
        for column in (2, 3, 8):
            assert re.fullmatch(r"\d+\.\d ± *\d+\.\d", row[column])
        for column in (1, 5, 6, 7):
            assert re.fullmatch(r"\d+\.\d", row[column])
    assert "Mean over seeds ± 95 % interval." in printed
    assert "These shifts are synthetic" in printed
    assert printed.endswith("\nPlot: sksoftrank_temperature.png\n")
    assert_is_png(tmp_path / "sksoftrank_temperature.png")


def test_one_seed_has_no_intervals(capsys):
    name = write(table().drop(columns="year"), ".csv")
    assert main([name, "--target", "kind", "--seeds", "1"]) == 0
    printed = capsys.readouterr().out
    assert "±" not in printed
    assert "\nOne seed. eff. rank" in printed
    assert "One seed can't tell that from noise" in printed


@pytest.mark.parametrize("suffix", [".csv", ".csv.gz", ".parquet"])
@pytest.mark.parametrize("domain", [False, True])
def test_table(capsys, tmp_path, suffix, domain):
    frame = table() if domain else table().drop(columns="year")
    output = tmp_path / "plot $2 and $3.png"  # no formula
    argv = [write(frame, suffix), "--target", "kind", "--output", str(output)]
    if domain:
        argv += ["--domain", "year"]
    assert main([*argv, "--seeds", "1"]) == 0
    printed, errors = capsys.readouterr()
    assert errors == ""
    assert printed.startswith(f"trees{suffix}, target 'kind'\n")
    n_train, n_test = (30, 10) if domain else (90, 30)
    assert (
        f"{n_train} rows to train on, {n_test} to test on, 3 classes, 4 fe" in printed
    )
    header, *rows = rows_of(printed)
    assert header == HEADER
    assert [row[0] for row in rows] == ["1", "30"]
    if domain:
        assert "in distribution: year = 2020; shifted: year = 2021, 2022\n" in printed
        assert "confirm it on one that played no part" in printed
    else:
        assert "shifted: the test rows under 4 synthetic shifts" in printed
        assert "These shifts are synthetic" in printed
    assert_is_png(output)


@pytest.mark.parametrize(
    ("data", "name"),
    [
        (None, "sksoftrank_temperature.png"),
        ("/data/gas.csv", "gas_temperature.png"),
        ("gas.2024.csv.gz", "gas.2024_temperature.png"),
        ("gas.parquet", "gas_temperature.png"),
        ("GAS.TSV.GZ", "GAS_temperature.png"),
    ],
)
def test_default_output_is_named_after_the_table_and_lies_here(data, name):
    assert str(demo._default_output(data)) == name


def test_labels_may_be_booleans_whole_numbers_or_a_mixture(capsys):
    base = table()[list("abcd")]
    for labels in (
        np.arange(120) % 2 == 0,
        (np.arange(120) % 3).astype(float),
        pd.Series(["x", 1, 2.5] * 40, dtype=object),
        pd.Categorical(["x", "y", "z"] * 40),
    ):
        name = write(base.assign(kind=labels), ".csv")
        assert main([name, "--target", "kind", "--seeds", "1"]) == 0
        assert capsys.readouterr().err == ""


def test_numbers_in_a_target_need_not_be_consecutive(capsys):
    frame = table().drop(columns="year")
    frame["kind"] = frame["kind"].map({"oak": -7, "ash": 10, "elm": 1000})
    assert main([write(frame, ".parquet"), "--target", "kind", "--seeds", "1"]) == 0
    assert "3 classes" in capsys.readouterr().out


def test_large_tables_are_sampled(capsys, monkeypatch):
    monkeypatch.setattr(demo, "MAX_TRAIN_ROWS", 60)
    monkeypatch.setattr(demo, "MAX_TEST_ROWS", 20)
    name = write(table(n=300), ".csv")
    argv = [name, "--target", "kind", "--domain", "year", "--seeds", "1"]
    assert main(argv) == 0
    assert "60 rows to train on, 20 to test on" in capsys.readouterr().out


def test_many_classes_of_few_rows(capsys):
    rng = np.random.default_rng(0)
    frame = pd.DataFrame(rng.standard_normal((120, 3)), columns=list("abc"))
    frame["kind"] = np.arange(120) % 40
    assert main([write(frame, ".csv"), "--target", "kind", "--seeds", "1"]) == 0
    assert capsys.readouterr().err == ""


def test_classes_seen_nowhere_in_training_are_left_out(capsys):
    frame = table()
    frame.loc[frame["year"] == 2021, "kind"] = "fir"
    frame.loc[frame.index[-3:], "kind"] = "fir"
    argv = [write(frame, ".csv"), "--target", "kind", "--domain", "year"]
    assert main([*argv, "--seeds", "1"]) == 0
    # A domain that nothing is left of is not announced.
    assert (
        "shifted: year = 2022 (43 rows of unseen classes left out)\n"
        in capsys.readouterr().out
    )


def test_many_domains_are_shortened(capsys):
    frame = table(n=300)
    frame["year"] = 2000 + np.arange(300) // 12
    argv = [write(frame, ".csv"), "--target", "kind", "--domain", "year"]
    assert main([*argv, "--seeds", "1"]) == 0
    assert "2007, 2008 and 16 more\n" in capsys.readouterr().out


def test_runs_are_the_same_twice(capsys):
    argv = [write(table(), ".csv"), "--target", "kind", "--domain", "year"]
    printed = []
    for _ in range(2):
        assert main([*argv, "--seeds", "2"]) == 0
        printed.append(capsys.readouterr().out)
    assert printed[0] == printed[1]


def test_without_matplotlib_the_table_is_still_printed(capsys, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    frame = table().drop(columns="year")
    assert main([write(frame, ".csv"), "--target", "kind", "--seeds", "1"]) == 0
    printed, errors = capsys.readouterr()
    assert rows_of(printed)[0] == HEADER
    assert "For a compact embedding" in printed
    assert "Plot:" not in printed
    assert errors == "No plot: pip install 'sksoftrank[plot]' to get one.\n"
    assert not list(tmp_path.glob("*.png"))


# -- Tables as people have them --------------------------------------------------------


def untidy(n=240, seed=0):
    """Return the trees with ids, text, dates, truth values, and values missing."""
    frame = table(n, seed)
    rng = np.random.default_rng(seed)
    frame.insert(0, "id", np.arange(1, n + 1))
    frame["note"] = [f"tree {i}" for i in range(n)]
    frame["soil"] = rng.choice(["clay", "sand", "NA"], n)
    frame["seen"] = pd.date_range("2020-01-01", periods=n)
    frame["tall"] = rng.random(n) < 0.5
    frame["none"] = np.full(n, np.nan)
    frame["ring"] = rng.choice([f"r{i}" for i in range(60)], n)
    frame.loc[::4, "b"] = np.nan
    return frame


def prepared(monkeypatch, capsys, *argv):
    """Return what the sweep is given and the lines printed before it."""
    given = {}

    def sweep(estimator, train, test, shifted, **options):
        given.update(train=train, test=test, **shifted)
        raise KeyboardInterrupt

    monkeypatch.setattr(demo, "temperature_sweep", sweep)
    assert main(list(argv)) == 130
    return given, capsys.readouterr().out.split("\n\n")[0].split("\n")


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".parquet"])
def test_untidy_table(capsys, tmp_path, suffix):
    frame = untidy()
    name = write(frame, suffix)
    if suffix == ".tsv":
        frame.to_csv(name, sep="\t", index=False)
    assert main([name, "--target", "kind", "--seeds", "1"]) == 0
    printed, errors = capsys.readouterr()
    assert errors == ""
    # What was the text "NA" in Parquet is a missing value of a feature in a CSV.
    gaps = (frame["soil"] == "NA").sum()
    note = "" if suffix == ".parquet" else f"missing text as a category: soil ({gaps} "
    assert note in printed
    for line in (
        "left out: id (counts the rows), note (has another text in each row), "
        "none (is empty)\n",
        "dates as a number of days: seen\n",
        "text as a column for each category, at most 20, the rare ones in one: soil, "
        "ring\n",
        "missing numbers filled with the training rows' median, and marked where those "
        "lack some: b (60 of 240)\n",
        # a, b, c, d, year, seen, tall; the gaps of b; three soils, twenty rings.
        "180 rows to train on, 60 to test on, 3 classes, 9 features in 31 columns\n",
    ):
        assert line in printed


def test_nothing_is_learned_from_rows_that_are_not_trained_on(monkeypatch, capsys):
    frame = untidy().drop(columns=["id", "note", "none"])
    argv = [write(frame, ".parquet"), "--target", "kind", "--domain", "year"]
    before, _ = prepared(monkeypatch, capsys, *argv)
    later = frame["year"] > 2020
    frame.loc[later, "soil"] = "peat"
    frame.loc[later, "a"] = 1e6
    frame.loc[later, "c"] = np.nan
    after, _ = prepared(monkeypatch, capsys, write(frame, ".parquet"), *argv[1:])
    for part in ("train", "test"):
        np.testing.assert_array_equal(after[part][0], before[part][0])
    assert not np.array_equal(after["2021"][0], before["2021"][0])
    for X, y in (*before.values(), *after.values()):
        assert np.isfinite(X).all()
        assert len(X) == len(y)
    np.testing.assert_allclose(before["train"][0].mean(axis=0), 0, atol=1e-9)
    # A soil never seen in training is none of those seen.
    names = ["a", "b", "c", "d", "seen", "tall"]
    soil = slice(len(names) + 1, len(names) + 1 + 3)
    shifted = after["2022"][0][:, soil]
    assert np.ptp(shifted, axis=0).max() == 0
    assert shifted.max() < 0


@pytest.mark.parametrize("encoding", ["latin-1", "utf-8-sig", "utf-16"])
def test_files_of_spreadsheets(monkeypatch, capsys, encoding):
    frame = table().rename(columns={"a": " Größe ", "kind": " Art "})
    frame[" Art "] = frame[" Art "].replace("oak", "Färöer")
    expected, _ = prepared(monkeypatch, capsys, write(frame, ".csv"), "--target", "Art")
    frame.to_csv("TREES.CSV", sep=";", decimal=",", encoding=encoding, index=False)
    given, lines = prepared(monkeypatch, capsys, "TREES.CSV", "--target", "Art")
    np.testing.assert_allclose(given["train"][0], expected["train"][0], rtol=1e-9)
    assert set(given["test"][1]) == {"Färöer", "ash", "elm"}
    assert "columns separated by ';'" in lines
    assert "decimal commas in: Größe, b, c, d" in lines
    assert any("latin-1" in line for line in lines) == (encoding == "latin-1")
    assert any("UTF-16" in line for line in lines) == (encoding == "utf-16")
    assert str(demo._default_output("TREES.CSV")) == "TREES_temperature.png"


def test_row_labels_of_pandas_are_left_out(monkeypatch, capsys):
    frame = table().set_axis([f"t{i}" for i in range(120)])
    frame.to_csv("index.csv")
    frame.to_parquet("index.parquet")
    for name in ("index.csv", "index.parquet"):
        _, lines = prepared(monkeypatch, capsys, name, "--target", "kind")
        assert any(line.startswith("left out as labels of rows") for line in lines)
        assert lines[-1].endswith("5 features")


def test_labels_and_domains_that_look_missing(monkeypatch, capsys):
    frame = table().astype({"year": object})
    frame["kind"] = frame["kind"].replace({"oak": "NA", "ash": "None"})
    frame["year"] = frame["year"].replace({2020: "null", 2021: "NA", 2022: "nan"})
    frame.loc[[0, 50], "kind"] = ""
    frame.loc[1, "year"] = ""
    argv = [write(frame, ".csv"), "--target", "kind", "--domain", "year"]
    given, lines = prepared(monkeypatch, capsys, *argv)
    assert set(given["null"][1]) == {"NA", "None", "elm"}
    assert "left out for want of a label: 2 of 120 rows" in lines
    assert "left out for want of a domain: 1 of 120 rows" in lines
    assert "in distribution: year = NA; shifted: year = nan, null" in lines
    # Of 40 each, "NA" loses one row, and "null" two.
    n_source = len(given["train"][0]) + len(given["test"][0])
    assert (n_source, len(given["null"][0]), len(given["nan"][0])) == (39, 38, 40)


@pytest.mark.parametrize(
    ("values", "order"),
    [
        ([10, 9, 8.5], ["8.5", "9.0", "10.0"]),
        ([10, 9, None], ["9", "10"]),
        (["10", "9", "8"], ["8", "9", "10"]),
        (["b", "B", "a"], ["B", "a", "b"]),
        ([True, False, True], ["False", "True"]),
        (
            ["2021-02-01", "2020-12-31", "2021-01-01"],
            ["2020-12-31", "2021-01-01", "2021-02-01"],
        ),
        (
            ["1.2.2021", "31.12.2020", "3.1.2021"],
            ["31.12.2020", "3.1.2021", "1.2.2021"],
        ),
        (
            pd.to_datetime(["2021-02-01", "2020-12-31", "2021-01-01"]),
            ["2020-12-31", "2021-01-01", "2021-02-01"],
        ),
        (
            pd.Categorical(
                ["low", "high", "mid"], ["low", "mid", "high", "none"], ordered=True
            ),
            ["low", "mid", "high"],
        ),
        (pd.Categorical(["low", "high", "mid"]), ["high", "low", "mid"]),
    ],
)
def test_order_of_domains(monkeypatch, capsys, values, order):
    frame = table(n=240).drop(columns="year")
    where = np.arange(240) // 5 % 3
    frame["where"] = pd.Series(values)[where].array
    argv = [write(frame, ".parquet"), "--target", "kind", "--domain", "where"]
    given, lines = prepared(monkeypatch, capsys, *argv)
    assert list(given)[2:] == order[1:]
    assert f"in distribution: where = {order[0]}; shifted: where = " in "\n".join(lines)
    last, *others = reversed(order)
    chosen, _ = prepared(monkeypatch, capsys, *argv, "--source", last)
    assert list(chosen)[2:] == others[::-1]


def test_source(capsys):
    argv = [write(table(), ".csv"), "--target", "kind", "--domain", "year"]
    assert main([*argv, "--source", "2021", "--seeds", "1"]) == 0
    assert (
        "in distribution: year = 2021; shifted: year = 2020, 2022\n"
        in capsys.readouterr().out
    )
    message = fails(capsys, *argv, "--source", "2019")
    assert "--source must be a value of 'year', got '2019'" in message
    assert "It has: 2020, 2021, 2022." in message
    message = fails(capsys, *argv[:3], "--source", "2021")
    assert "--source must come with --domain, got '2021' alone" in message
    assert "--source must come with a table" in fails(capsys, "--source", "2021")


def test_a_column_that_is_empty_where_it_is_trained_on(monkeypatch, capsys):
    frame = table()
    frame.loc[frame["year"] == 2020, ["a", "b"]] = np.nan
    argv = [write(frame, ".csv"), "--target", "kind", "--domain", "year"]
    given, lines = prepared(monkeypatch, capsys, *argv)
    assert "left out, as the training rows have no values: a, b" in lines
    assert given["train"][0].shape[1] == given["2021"][0].shape[1] == 2
    frame = frame.drop(columns=["c", "d"])
    message = fails(capsys, write(frame, ".csv"), *argv[1:])
    assert "features must have values in the rows that are trained on" in message


def test_no_column_to_learn_from(capsys):
    frame = untidy()[["id", "note", "none", "kind"]]
    message = fails(capsys, write(frame, ".csv"), "--target", "kind")
    assert "must have a column to learn from, got none beside kind" in message
    assert "id (counts the rows)" in message


def test_columns_of_other_things_are_left_out(monkeypatch, capsys):
    frame = table().assign(image=[b"\xff"] * 120, spots=[[1, 2]] * 120)
    given, lines = prepared(
        monkeypatch, capsys, write(frame, ".parquet"), "--target", "kind"
    )
    assert (
        "left out: image (holds neither numbers, dates nor text), spots (holds neither "
        "numbers, dates nor text)" in lines
    )
    assert given["train"][0].shape[1] == 5


def test_a_header_of_other_things_than_names(capsys):
    path = Path(sklearn.datasets.__file__).parent / "data" / "breast_cancer.csv"
    message = fails(capsys, str(path), "--target", "benign")
    assert "as many fields in a row as its header has names, 4, but line 2 has 31" in (
        message
    )


# -- Runs that are refused -----------------------------------------------------------


def test_missing_file(capsys):
    message = fails(capsys, "no.csv", "--target", "kind")
    assert "no.csv" in message


def test_missing_target(capsys):
    message = fails(capsys, write(table(), ".csv"))
    assert "--target must name the column of the labels" in message


@pytest.mark.parametrize("option", ["--target", "--domain"])
def test_columns_without_a_table(capsys, option):
    message = fails(capsys, option, "kind")
    assert f"{option} must come with a table" in message


def test_unknown_target(capsys):
    message = fails(capsys, write(table(), ".csv"), "--target", "species")
    assert "target must be a column of trees.csv, got 'species'" in message
    assert "a, b, c, d, kind, year" in message


def test_unknown_domain(capsys):
    name = write(table(), ".csv")
    message = fails(capsys, name, "--target", "kind", "--domain", "site")
    assert "domain must be a column of trees.csv, got 'site'" in message


def test_target_as_domain(capsys):
    name = write(table(), ".csv")
    message = fails(capsys, name, "--target", "kind", "--domain", "kind")
    assert "must be two columns" in message


def test_one_class(capsys):
    name = write(table().assign(kind="oak"), ".csv")
    message = fails(capsys, name, "--target", "kind")
    assert "at least two classes, got only 'oak'" in message


def test_one_class_in_the_first_domain(capsys):
    frame = table()
    frame.loc[frame["year"] == 2020, "kind"] = "oak"
    name = write(frame, ".csv")
    message = fails(capsys, name, "--target", "kind", "--domain", "year")
    assert "at least two classes where year is '2020', got only 'oak'" in message


def test_one_domain(capsys):
    name = write(table().assign(year=2020), ".csv")
    message = fails(capsys, name, "--target", "kind", "--domain", "year")
    assert "at least two values, got only '2020' in 'year'" in message


def test_domains_of_other_classes(capsys):
    frame = table()
    frame.loc[frame["year"] > 2020, "kind"] = "fir"
    name = write(frame, ".csv")
    message = fails(capsys, name, "--target", "kind", "--domain", "year")
    assert "must hold classes of the one trained on" in message


@pytest.mark.parametrize(
    "values",
    [
        np.linspace(0, 1, 120),
        np.arange(120),  # whole, but each once
        np.repeat([0.5, 1.5], 60),
        np.repeat([1.0, np.inf], 60),
        pd.date_range("2020-01-01", periods=120),
    ],
    ids=["continuous", "counter", "fractions", "infinite", "dates"],
)
def test_target_without_classes(capsys, values):
    name = write(table().drop(columns="year").assign(kind=values), ".parquet")
    message = fails(capsys, name, "--target", "kind")
    assert "--target 'kind' must hold classes" in message


@pytest.mark.parametrize("value", [np.inf, -1e200])
def test_features_out_of_range(capsys, value):
    frame = table()
    frame.loc[3, "b"] = value
    message = fails(capsys, write(frame, ".csv"), "--target", "kind")
    assert "features must be finite" in message


def test_few_rows(capsys):
    message = fails(capsys, write(table(n=7), ".csv"), "--target", "kind")
    assert "at least 8 rows, got 7" in message
    frame = table(n=24)
    message = fails(
        capsys,
        write(frame[(frame["year"] > 2020) | (frame.index < 5)], ".csv"),
        *("--target", "kind", "--domain", "year"),
    )
    assert "at least 8 rows where year is '2020', got 5" in message


def test_fewest_rows_that_are_taken(capsys):
    name = write(table(n=8).drop(columns="year"), ".csv")
    assert main([name, "--target", "kind", "--seeds", "1"]) == 0
    assert "6 rows to train on" in capsys.readouterr().out


def test_class_that_only_the_test_rows_would_have(capsys):
    frame = table(n=9).drop(columns="year")
    seen = set()
    for row in range(9):
        frame["kind"] = np.where(frame.index == row, "oak", "ash")
        name = write(frame, ".csv")
        code = main([name, "--target", "kind", "--seeds", "1"])
        seen.add(code)
        if code == 2:
            assert "must still hold two classes" in capsys.readouterr().err
    assert seen == {0, 2}


def test_unreadable_files(capsys, tmp_path):
    (tmp_path / "broken.parquet").write_text("no parquet")
    assert "broken.parquet can't be read" in fails(
        capsys, "broken.parquet", "--target", "kind"
    )
    (tmp_path / "empty.csv").write_text("")
    assert "empty.csv can't be read" in fails(capsys, "empty.csv", "--target", "kind")
    (tmp_path / "table.xlsx").write_text("")
    assert "must end in .csv, .tsv or .parquet" in fails(
        capsys, "table.xlsx", "--target", "kind"
    )


@pytest.mark.parametrize(
    ("output", "reason"),
    [
        ("nowhere/plot.png", "must lie in a directory that exists"),
        (".", "must be a file, got the directory"),
        ("plot.docx", "must end in one of .*, got 'plot.docx'. Name it 'plot.png'"),
    ],
)
def test_impossible_output_is_refused_before_training(
    capsys, monkeypatch, output, reason
):
    monkeypatch.setattr(demo, "temperature_sweep", None)
    assert re.search(f"--output {reason}", fails(capsys, "--output", output))


def test_unwritable_output(capsys, monkeypatch):
    def fail(*args, **kwargs):
        raise OSError("No space left on device")

    monkeypatch.setattr(Figure, "savefig", fail)
    name = write(table().drop(columns="year"), ".csv")
    argv = [name, "--target", "kind", "--seeds", "1", "--output", "plot.png"]
    assert main(argv) == 2
    printed, message = capsys.readouterr()
    assert rows_of(printed)[0] == HEADER  # The work isn't lost.
    assert message.startswith("error: the plot can't be written to plot.png: No space")
    assert message.count("\n") == 1


def test_output_without_a_suffix_is_a_png(capsys, tmp_path):
    name = write(table().drop(columns="year"), ".csv")
    argv = [name, "--target", "kind", "--seeds", "1", "--output", "plot"]
    assert main(argv) == 0
    assert capsys.readouterr().out.endswith("Plot: plot.png\n")
    assert_is_png(tmp_path / "plot.png")


@pytest.mark.parametrize("seeds", ["0", "-1", "2.5", "many"])
def test_seeds_must_be_positive(capsys, seeds):
    with pytest.raises(SystemExit) as exit_:
        main([f"--seeds={seeds}"])
    assert exit_.value.code == 2
    message = capsys.readouterr().err
    assert f"--seeds: must be a whole number of at least 1, got '{seeds}'" in message


# -- Interruptions -------------------------------------------------------------------


class Interruption(Callback):
    """Ctrl-C, in the epoch of that number."""

    def __init__(self, epoch):
        self.epoch = epoch

    def on_epoch_begin(self, net, **kwargs):
        if len(net.history) == self.epoch:
            raise KeyboardInterrupt


@pytest.mark.parametrize("epoch", [1, 2])
def test_ctrl_c_ends_the_sweep(capsys, monkeypatch, epoch):
    # In a later epoch the fit itself keeps what it has learnt and goes on.
    monkeypatch.setattr(
        demo,
        "SoftRankMLPClassifier",
        lambda **params: SoftRankMLPClassifier(
            **params, callbacks=[Interruption(epoch)]
        ),
    )
    assert main(["--seeds", "1"]) == 130
    printed, message = capsys.readouterr()
    assert message == "interrupted\n"
    assert "temperature  train" not in printed


def test_a_real_ctrl_c_ends_the_sweep(capsys, monkeypatch):
    monkeypatch.setattr(demo, "ROW_VISITS", 100_000)

    def sweep(*args, **kwargs):
        timer = threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGINT))
        timer.start()
        return temperature_sweep(*args, **kwargs)

    monkeypatch.setattr(demo, "temperature_sweep", sweep)
    assert main(["--seeds", "50"]) == 130
    assert capsys.readouterr().err == "interrupted\n"


def test_ctrl_c_while_reading(capsys, monkeypatch):
    def interrupted():
        raise KeyboardInterrupt

    monkeypatch.setattr(demo, "load_digits_shift", interrupted)
    assert main([]) == 130
    assert capsys.readouterr().err == "interrupted\n"


def test_other_warnings_are_no_interruption(monkeypatch):
    def warn(*args, **kwargs):
        raise UserWarning("something else")

    monkeypatch.setattr(demo, "temperature_sweep", warn)
    with pytest.raises(UserWarning, match="something else"):
        main(["--seeds", "1"])


# -- The advice ----------------------------------------------------------------------

BASE = {
    "train_accuracy": 1.0,
    "accuracy": 0.95,
    "shifted_accuracy": 0.70,
    "logit_norm": 10.0,
    "effective_rank": 30.0,
    "variance_rank": 40.0,
    "n_components": 12.0,
    "knn_accuracy": 0.94,
}


def records(n_seeds=3, noise=0.0, **by_temperature):
    """Return records of 1 and others; a keyword such as t10 holds what differs."""
    rng = np.random.default_rng(0)
    settings = {1.0: {}} | {
        float(name[1:].replace("_", ".")): v for name, v in by_temperature.items()
    }
    found = []
    for temperature, changes in settings.items():
        for seed in range(n_seeds):
            measures = BASE | changes
            measures["shifted_accuracy"] += noise * rng.standard_normal()
            found.append({"temperature": temperature, "seed": seed} | measures)
    return found


def sentences(**kwargs):
    synthetic = kwargs.pop("synthetic", True)
    text = advice(records(**kwargs), synthetic=synthetic)
    assert text.count("\n") == 2
    return text.split("\n")


def test_compact_gain():
    compact, _, _ = sentences(
        t10={"n_components": 7.0, "accuracy": 0.946}, t30={"n_components": 9.0}
    )
    assert compact == (
        "For a compact embedding take temperature 10: transform(X) has 7 columns "
        "instead of 12 at temperature 1, with test accuracy 94.6 % against 95.0 %."
    )


def test_no_compact_gain():
    # One is narrow but loses more than half a point; the other is as wide.
    compact, _, _ = sentences(
        t10={"n_components": 3.0, "accuracy": 0.94}, t30={"n_components": 11.5}
    )
    assert compact == (
        "For a compact embedding temperature 1 is as good as any here: none with "
        "fewer columns than its 12 keeps its test accuracy of 95.0 % within half a "
        "point."
    )


def test_gain_under_shift_beyond_noise():
    _, shift, _ = sentences(
        t0_3={"shifted_accuracy": 0.65}, t10={"shifted_accuracy": 0.75}
    )
    assert shift == (
        "Under shift temperature 10 did better than 1 (+5.0 points ± 0.0, paired over "
        "seeds, as the best of 2)."
    )


def test_no_gain_under_shift_beyond_noise():
    _, shift, _ = sentences(noise=0.05, t10={"shifted_accuracy": 0.71})
    assert shift.startswith(
        "Under shift no temperature beat 1 beyond the noise of the seeds: the best, 10,"
    )
    assert re.search(r"differs by [+-]\d+\.\d points ± \d+\.\d \(paired", shift)


def test_loss_under_shift():
    _, shift, _ = sentences(
        t10={"shifted_accuracy": 0.6}, t30={"shifted_accuracy": 0.5}
    )
    assert shift == (
        "Under shift no temperature beat 1 beyond the noise of the seeds: the best, "
        "10, differs by -10.0 points ± 0.0 (paired, as the best of 2)."
    )


def test_one_seed_says_nothing_of_noise():
    _, shift, _ = sentences(n_seeds=1, t10={"shifted_accuracy": 0.9})
    assert shift == (
        "Under shift temperature 10 was the best of the others, and differs from 1 by "
        "+20.0 points. One seed can't tell that from noise: pass --seeds 3 or more."
    )


@pytest.mark.parametrize(
    ("synthetic", "start"),
    [(True, "These shifts are synthetic"), (False, "That was seen on the domains")],
)
def test_how_far_to_trust_it(synthetic, start):
    assert sentences(synthetic=synthetic, t10={})[2].startswith(start)


def test_table_of_one_seed_has_no_intervals():
    rows = [
        {"temperature": 0.3}
        | BASE
        | {f"{name}_interval": float("nan") for name in BASE}
    ]
    header, row = rows_of(format_table(rows))
    assert header == HEADER
    assert row == ["0.3", "100.0", "95.0", "70.0", "10", "30.0", "40.0", "12.0", "94.0"]


# -- The command ---------------------------------------------------------------------


def test_the_command_itself():
    done = subprocess.run(
        [sys.executable, "-m", "sksoftrank", "--help"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stderr == ""
    assert done.stdout.startswith("usage: python -m sksoftrank")
    for option in ("data", "--target", "--domain", "--source", "--seeds", "--output"):
        assert option in done.stdout
