import json
import math
import os
import subprocess
import sys
from pathlib import Path

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
        ("cold_start", {"first_fit", "first_search"}),
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
