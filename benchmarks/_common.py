"""What the benchmarks share: interleaved timing, data, and where results go."""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy import stats
from skorch.callbacks import Callback
from threadpoolctl import threadpool_info, threadpool_limits

import sksoftrank

ROOT = Path(__file__).resolve().parent
RESULTS = Path(os.environ.get("SKSOFTRANK_RESULTS", ROOT / "results"))


def parser(description: str) -> argparse.ArgumentParser:
    """Return a parser with the options that every benchmark takes."""
    p = argparse.ArgumentParser(description=description)
    p.add_argument(
        "--data",
        default=os.environ.get("SKSOFTRANK_DATA", ROOT.parent.parent / "shared/data"),
        type=Path,
        help="folder of the data sets (default $SKSOFTRANK_DATA, else ../shared/data)",
    )
    p.add_argument("--threads", type=int, default=torch.get_num_threads())
    return p


def find_data(folder: Path, name: str) -> Path:
    """Return the path of a data set, or end with a sentence that says where it goes."""
    path = folder / name
    if not path.exists():
        sys.exit(f"{name} is not in {folder}: pass --data DIR or set $SKSOFTRANK_DATA.")
    return path


def interleaved(
    tasks: dict[str, Callable[[], Any]],
    repeats: int,
    pause: float = 0.0,
    clock: Callable[[], float] = time.perf_counter,
    warm_up: bool = True,
) -> dict[str, list[float]]:
    """Time each task `repeats` times in turn, first a turn untimed; seconds.

    Where tasks are short and of libraries with threads of their own, a pause before
    each lets those of the one before stop waiting for more work.
    """
    times: dict[str, list[float]] = {name: [] for name in tasks}
    for turn in range(0 if warm_up else 1, repeats + 1):
        # Every other turn backwards: no task always follows the same one.
        for name in list(tasks)[:: 1 if turn % 2 else -1]:
            time.sleep(pause)
            start = clock()
            tasks[name]()
            if turn:
                times[name].append(clock() - start)
    return times


def ratios(times: dict[str, list[float]], ours: str) -> dict[str, float]:
    """Return the median over turns of each task's time over ours."""
    base = np.array(times[ours])
    return {
        name: float(np.median(np.array(values) / base))
        for name, values in times.items()
        if name != ours
    }


# Without any of the recipe that is now the default: what is measured with it is speed,
# or was measured before.
PLAIN = {
    "hidden_layer_sizes": (128, 128),
    "normalization": None,
    "dropout": 0.0,
    "input_scale": False,
    "optimizer": "adam",
    "betas": (0.9, 0.999),
    "weight_decay": 0.0,
    "label_smoothing": 0.0,
    "max_epochs": 50,
    "batch_size": 128,
}


def plain_mlp(
    hidden_layer_sizes: Any = (128, 128), *, temperature: Any = 1.0, **params: Any
) -> sksoftrank.SoftRankMLPClassifier:
    """Return a perceptron of `PLAIN`, at a rate that follows the temperature's root."""
    own = {"hidden_layer_sizes": hidden_layer_sizes, "temperature": temperature}
    if "learning_rate" not in params:
        own["learning_rate"] = 1e-3 * float(np.sqrt(temperature))
    return sksoftrank.SoftRankMLPClassifier(**{**PLAIN, **own, **params})


def mean_interval(values: Any) -> tuple[float, float]:
    """Return the mean and the half-width of its 95 % t-interval."""
    values = np.asarray(values, float)
    if len(values) < 2:
        return float(values.mean()), float("nan")
    half = stats.t.ppf(0.975, len(values) - 1) * stats.sem(values)
    return float(values.mean()), float(half)


class ByBatches(Callback):
    """Asks for autograd and skorch's own epochs, as it acts on batches."""

    def on_batch_begin(self, net: Any, **_: Any) -> None:
        """Do nothing."""


def hold_threads(n_threads: int) -> None:
    """Hold every library to so many threads; torch's setting is not OpenBLAS's."""
    torch.set_num_threads(n_threads)
    threadpool_limits(n_threads)


def default_device() -> str:
    """Return the name of what `device="auto"` takes."""
    return torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"


def kernels() -> dict[str, str]:
    """Return which kernels multiply, by library."""
    return {
        "torch": torch.backends.cpu.get_cpu_capability(),
        **{
            pool["internal_api"]: f"{pool.get('architecture', 'any')}, "
            f"{pool['num_threads']} threads"
            for pool in threadpool_info()
        },
    }


def _git(*args: str) -> str:
    return subprocess.run(
        ["git", *args], cwd=ROOT, capture_output=True, text=True, check=False
    ).stdout.strip()


def write(name: str, results: Any, **settings: Any) -> None:
    """Write results with what they depend on to ``results/<name>.json``."""
    RESULTS.mkdir(exist_ok=True)
    record = {
        "benchmark": name,
        "commit": _git("rev-parse", "--short", "HEAD")
        + ("-dirty" if _git("status", "--porcelain", "--", "sksoftrank") else ""),
        "version": sksoftrank.__version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "device": "cpu",
        "machine": platform.machine(),
        "threads": torch.get_num_threads(),
        "kernels": kernels(),
        **settings,
        "results": results,
    }
    (RESULTS / f"{name}.json").write_text(json.dumps(record, indent=1) + "\n")
