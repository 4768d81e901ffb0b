"""What many fits, predictions, saves and searches leave behind in one process.

Each kind of work runs over and over in a process of its own, on small networks, so that
a leak of one of them shows. After a tenth of the rounds, when caches are full, and at
every tenth from there on, the process's memory (RssAnon, once the allocator has given
back what is free), threads and open files are noted. What grows is given as bytes a
round: the slope over all tenths. Reads /proc: Linux only.
"""

from __future__ import annotations

import ctypes
import gc
import json
import os
import pickle
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from _common import hold_threads, parser, write
from memory import status

from sksoftrank import (
    OODDetector,
    SoftRankCNNClassifier,
    SoftRankEnsembleClassifier,
    SoftRankMLPClassifier,
    SoftRankTransformerClassifier,
    StackedGridSearchCV,
    load,
    save,
)

# Of the kinds that take long fewer rounds are made.
ROUNDS = {
    "fit_predict": 10_000,
    "partial_fit": 10_000,
    "predict": 10_000,
    "autograd": 1_000,
    "cnn": 1_000,
    "transformer": 1_000,
    "ensemble": 1_000,
    "search": 500,
    "detector": 1_000,
    "save_load": 2_000,
    "pickle": 2_000,
    "refused": 10_000,
}
FAST = {"max_epochs": 2, "batch_size": 32, "random_state": 0, "device": "cpu"}


def data() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    y = np.arange(60) % 3
    return 3.0 * np.eye(3, 6)[y] + rng.standard_normal((60, 6)), y


def works(folder: Path) -> dict[str, Callable[[], object]]:
    """Return what a round of each kind does."""
    X, y = data()
    mlp = SoftRankMLPClassifier((8,), **FAST)
    fitted = SoftRankMLPClassifier((8,), **FAST).fit(X, y)
    growing = SoftRankMLPClassifier((8,), **FAST).fit(X, y)
    by_autograd = SoftRankMLPClassifier(
        (8,), **FAST, net_params={"optimizer": torch.optim.RMSprop}
    )
    cnn = SoftRankCNNClassifier((4,), **FAST)
    transformer = SoftRankTransformerClassifier(8, n_heads=2, depth=1, **FAST)
    grid = StackedGridSearchCV(mlp, {"temperature": [1.0, 10.0]}, cv=2)

    def refused() -> None:
        try:
            fitted.fit(np.full_like(X, np.nan), y)
        except ValueError:
            return
        raise AssertionError("NaN was let through")

    def outputs() -> None:
        for method in ("predict", "predict_proba", "transform", "embed"):
            getattr(fitted, method)(X)

    def kept() -> None:
        save(fitted, folder / "model")
        load(folder / "model").predict(X)

    def partial_fit() -> None:
        growing.partial_fit(X, y)
        growing.history_.clear()  # Grows by an epoch a call, as it is to.
        growing.net_.history.clear()

    return {
        "fit_predict": lambda: SoftRankMLPClassifier((8,), **FAST).fit(X, y).predict(X),
        "partial_fit": partial_fit,
        "predict": outputs,
        "autograd": lambda: by_autograd.fit(X, y).predict(X),
        "cnn": lambda: cnn.fit(X, y).predict(X),
        "transformer": lambda: transformer.fit(X, y).predict(X),
        "ensemble": lambda: SoftRankEnsembleClassifier(mlp, 3).fit(X, y).predict(X),
        "search": lambda: grid.fit(X, y).predict(X),
        "detector": lambda: OODDetector(fitted).fit(X, y).predict(X),
        "save_load": kept,
        "pickle": lambda: pickle.loads(pickle.dumps(fitted)).predict(X),
        "refused": refused,
    }


def note() -> dict[str, int]:
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    with open("/proc/self/status") as file:
        threads = next(int(s.split()[1]) for s in file if s.startswith("Threads:"))
    (memory,) = status("RssAnon")
    return {
        "memory": memory,
        "threads": threads,
        "files": len(os.listdir("/proc/self/fd")),
    }


def measure(kind: str, n_rounds: int) -> dict[str, float]:
    """Do the work in this process and return what grew."""
    warnings.simplefilter("error")
    notes = []
    with tempfile.TemporaryDirectory() as folder:
        work = works(Path(folder))[kind]
        for tenth in range(10):
            for _ in range(n_rounds // 10):
                work()
            notes.append(note() | {"rounds": (tenth + 1) * (n_rounds // 10)})
    memory = [n["memory"] for n in notes]
    slope = np.polyfit([n["rounds"] for n in notes], memory, 1)[0]
    return {
        "rounds": n_rounds,
        "bytes_a_round": float(slope),
        "memory_after_a_tenth": memory[0],
        "memory_growth": memory[-1] - memory[0],
        "threads_growth": notes[-1]["threads"] - notes[0]["threads"],
        "files_growth": notes[-1]["files"] - notes[0]["files"],
    }


def main() -> None:
    p = parser(__doc__.splitlines()[0])
    p.add_argument("--share", type=float, default=1.0, help="of the rounds")
    p.add_argument("--measure", choices=ROUNDS, help="work in this process, and end")
    args = p.parse_args()
    hold_threads(args.threads)
    if args.measure:
        n_rounds = max(round(args.share * ROUNDS[args.measure]), 10)
        print(json.dumps(measure(args.measure, n_rounds)))
        return
    results = {}
    for kind in ROUNDS:
        command = [sys.executable, __file__, "--measure", kind]
        command += ["--share", str(args.share), "--threads", str(args.threads)]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        results[kind] = row = json.loads(done.stdout)
        print(
            f"{kind}: {row['rounds']} rounds, {row['memory_growth'] / 1e6:+.2f} MB on "
            f"{row['memory_after_a_tenth'] / 1e6:.0f} ({row['bytes_a_round']:+.0f} "
            f"bytes a round), {row['threads_growth']:+d} threads, "
            f"{row['files_growth']:+d} files",
            flush=True,
        )
        write("endurance", results, seed=0)


if __name__ == "__main__":
    main()
