import importlib
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"


def leaves(value, where=""):
    """Yield each figure of a result with its place."""
    if isinstance(value, dict | list):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        for key, part in items:
            yield from leaves(part, f"{where}/{key}")
    elif not isinstance(value, str):
        yield where, value


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("cold_start", {"import", "first_fit", "first_search"}),
        ("gpu", {"single_fit", "search", "images", "equality"}),
    ],
)
def test_a_small_run_fills_in_every_figure(name, parts, tmp_path):
    env = os.environ | {
        "SKSOFTRANK_RESULTS": str(tmp_path),
        "PYTHONPATH": str(BENCHMARKS.parent),
    }
    script = str(BENCHMARKS / f"{name}.py")
    subprocess.run(
        # Without data there: images are noise.
        [sys.executable, script, "--small", "--data", str(tmp_path), "--threads", "1"],
        env=env,
        check=True,
        timeout=300,
    )
    record = json.loads((tmp_path / f"{name}.json").read_text())
    assert record.keys() >= {"commit", "seed", "device", "threads", "kernels"}
    assert record["results"].keys() == parts
    figures = dict(leaves(record["results"]))
    wrong = {k: v for k, v in figures.items() if not (math.isfinite(v) and v > 0)}
    assert len(figures) > len(parts)
    assert wrong == {}


def test_every_benchmark_finds_what_it_imports():
    names = sorted(file.stem for file in BENCHMARKS.glob("[a-z]*.py"))
    code = "import importlib, sys\nfor n in sys.argv[1:]: importlib.import_module(n)"
    env = os.environ | {"PYTHONPATH": f"{BENCHMARKS.parent}{os.pathsep}{BENCHMARKS}"}
    subprocess.run([sys.executable, "-c", code, *names], env=env, check=True)


@pytest.fixture(scope="module")
def protocols():
    """Return the module of the protocols."""
    sys.path.insert(0, str(BENCHMARKS))
    yield importlib.import_module("_protocols")
    sys.path.remove(str(BENCHMARKS))


def made_up(protocols, kind):
    """Return data of six domains, of numbers or a frame; the last class is foreign."""
    rng = np.random.default_rng(0)
    n = 600
    X, y, domains = rng.normal(size=(n, 3)), rng.integers(4, size=n), np.arange(n) % 6
    y[(y == 3) & (domains < 2)] = 0
    if kind == "frame":
        X = pd.DataFrame(X, columns=["a", "b", "c"])
        X["site"] = rng.choice(["north", "south"], size=n)
    return protocols.by_domain(
        X, y, domains, (0, 1), {"2": 2, "3": 3}, {"4": 4, "5": 5}
    )


@pytest.mark.parametrize("kind", ["array", "frame"])
def test_a_protocol_keeps_its_rows_apart(protocols, kind):
    tasks = [
        protocols.Protocol("null", lambda _: made_up(protocols, kind), 100).task("", s)
        for s in (0, 0, 1)
    ]
    assert set(tasks[0].places) == {
        *("fit", "id", "search 2", "search 3", "report 4", "report 5")
    }
    rows = np.concatenate(list(tasks[0].places.values()))
    assert len(np.unique(rows)) == len(rows)
    for task in tasks:
        parts = {"fit": task.fit, "id": task.id}
        parts |= {f"search {k}": part for k, part in task.search.items()}
        parts |= {f"report {k}": part for k, part in task.report.items()}
        assert len(task.fit[1]) == 100
        for name, (X, y) in parts.items():
            assert X.dtype == np.float32
            assert len(X) == len(y) == len(task.places[name]) > 50
            # Nobody can name a class that the source has not.
            assert y.max() == 2
        assert len(task.foreign()["X_ood"]) == len(task.foreign()["domains_ood"])
    # Each seed draws its own rows of the source; those of other domains stay.
    first, same, other = (task.places for task in tasks)
    np.testing.assert_array_equal(first["fit"], same["fit"])
    assert set(first["fit"]) != set(other["fit"])
    np.testing.assert_array_equal(first["report 4"], other["report 4"])


def test_a_protocol_of_shifts_reports_other_kinds_of_other_rows(protocols):
    protocol = protocols.PROTOCOLS["digits"]
    data = protocol.load("")
    searched = {protocols.shifts.shift_name(shift) for shift in data.search_shifts}
    reported = {
        protocols.shifts.shift_name(shift) for shift in data.report_shifts.values()
    }
    assert len(searched) == 3
    assert len(reported) == 5
    assert not searched & reported
    assert not set(protocols.CIFAR_KINDS) - set(protocols.CORRUPTIONS)
    task = protocol.task("", 0)
    assert not set(task.places["fit"]) & set(task.places["id"])
    assert task.foreign() == {}
    for X, y in task.report.values():
        assert X.shape == task.id[0].shape
        assert not np.array_equal(X, task.id[0])
        np.testing.assert_array_equal(y, task.id[1])


def test_a_null_has_domains_of_one_distribution(protocols):
    task = protocols.PROTOCOLS["null_digits"].task("", 0)
    rows = np.concatenate(list(task.places.values()))
    assert len(np.unique(rows)) == len(rows)
    shares = [
        np.bincount(y, minlength=10) / len(y)
        for _, y in (task.fit, task.id, *task.search.values(), *task.report.values())
    ]
    assert np.ptp(shares, axis=0).max() < 0.02


def test_both_kinds_of_protocols_are_there(protocols):
    groups = [protocol.group for protocol in protocols.PROTOCOLS.values()]
    assert {*groups} == {"studied", "untouched", "null"}
    assert groups.count("null") >= 2


# -- Claims ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def claims(protocols):
    """Return the module of the claims."""
    return importlib.import_module("claims")


@pytest.mark.parametrize(
    ("changed", "verdict"),
    [
        ({}, "holds"),
        ({"alike": (35.0, 4.0)}, "holds"),
        ({"alike": (35.0, 6.0)}, "partly"),
        ({"tuned": (40.0, 15.0)}, "partly"),
        ({"accuracy": (-0.4, 0.2)}, "partly"),
        ({"T=1": (35.0, 10.0)}, "partly"),
        ({"T=1": (20.0, 25.0)}, "does not"),
        ({"T=1": (50.0, float("nan"))}, "one seed"),
    ],
)
def test_the_intervals_decide_on_a_claim(claims, changed, verdict):
    claim = claims.Claim("", "ranks/plain", dict, goal=30.0, keeps_accuracy=True)
    row = {"T=1": (50.0, 10.0), "tuned": (40.0, 5.0), "accuracy": (0.0, 0.3)}
    assert claims.verdict(row | changed, claim) == verdict


def test_temperature_and_control_are_chosen_alike_on_rows_held_out(claims):
    accuracy_and_size = {
        "T=1": (90.0, 20),
        "T=10": (89.6, 10),  # Keeps accuracy to half a point.
        "T=100": (89.4, 5),
        "dual 10": (90.0, 10),
        "rate 0.1 init 1": (95.0, 16),
        "rate 1 init 1": (89.0, 2),
    }
    record = {
        arm: {"train": 100.0, "valid": valid, "log_loss": 0.0, "test": valid}
        | {"valid_z99": size, "z99": size}
        for arm, (valid, size) in accuracy_and_size.items()
    }
    module = importlib.import_module("_claims")
    cell = module.with_choices(record, "z99")
    assert cell["chosen z99"]["of"] == "T=10"
    assert cell["alike z99"]["of"] == cell["tuned"]["of"] == "rate 0.1 init 1"
    claim = next(claims.size_claims("ranks/plain"))
    cells = {f"ranks/plain/{name}/0": cell for name in "abc"}
    # A network that has diverged is missing from its cell.
    without = {"ranks/plain/d/0": {"T=1": cell["T=1"]}, "ranks/default/a/0": {}}
    row = claims.row_of(claim, cells | without)
    assert row["T=1"] == (50.0, 0.0)
    assert row["tuned"] == row["alike"] == (37.5, 0.0)
    assert row["dual"] == (0.0, 0.0)
    assert row["accuracy"] == pytest.approx((-0.4, 0.0))
    assert (row["n_data"], row["n_without"]) == (3, 1)
    assert row["verdict"] == "holds"
