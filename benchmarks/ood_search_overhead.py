"""What a search under a shift takes beside its fits.

- memory, sqlite: milliseconds a trial beside fits and scores, of quick fits; sqlite
  with two workers, each a process of its own.
- grid: the time of a whole search over that of StackedGridSearchCV with the same fits:
  its trials, and its finalists with each fresh seed.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from _common import interleaved, parser, ratios, write
from scipy.stats import loguniform
from sklearn.datasets import make_classification
from sklearn.naive_bayes import GaussianNB

from sksoftrank import OODSearchCV, SoftRankMLPClassifier, StackedGridSearchCV
from sksoftrank.search.ood.storage import open_storage, release
from sksoftrank.shifts import GainDrift

N_TRIALS = 60


def quick_rows():
    return make_classification(200, 8, n_informative=5, random_state=0)


def timed_search(n_trials, storage=None):
    """Search with fits of a millisecond; return its seconds, and those of its fits."""
    X, y = quick_rows()
    search = OODSearchCV(
        GaussianNB(),
        {"var_smoothing": loguniform(1e-12, 1e-2)},
        n_trials=n_trials,
        shifts=[GainDrift(1, random_state=0)],
        storage=storage,
        random_state=0,
        refit=False,
    )
    start = time.perf_counter()
    search.fit(X, y)
    seconds = time.perf_counter() - start
    results = search.cv_results_
    fits = float(np.sum(results["mean_fit_time"] + results["mean_score_time"]))
    return seconds, fits


def one_worker(path):
    """Wait for the other one, and say when the search began and ended."""
    timed_search(2)  # Imports are no trial's.
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    sys.stdin.readline()
    seconds, fits = timed_search(N_TRIALS, path)
    sys.stdout.write(f"{seconds} {fits}\n")


def two_workers():
    """Return milliseconds a trial of two workers on one SQLite file."""
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder) / "study.db")
        release(open_storage(path))  # Its tables are made once, and are no trial's.
        command = [sys.executable, __file__, "--worker", path]
        workers = [
            subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
            )
            for _ in range(2)
        ]
        for worker in workers:
            worker.stdout.readline()
        for worker in workers:
            worker.stdin.write("\n")
            worker.stdin.flush()
        reports = [w.communicate()[0].split() for w in workers]
    # Each was at work all the time, on half of the trials.
    seconds = sum(float(seconds) for seconds, _ in reports)
    return 1e3 * (seconds - float(reports[0][1])) / N_TRIALS


def of_a_grid(args):
    """Return the time of a search and of a grid of the same fits."""
    X, y = make_classification(
        args.rows, 16, n_informative=12, n_classes=4, random_state=0
    )
    X = X.astype(np.float32)
    search = OODSearchCV(
        SoftRankMLPClassifier(random_state=None),
        n_trials=args.trials,
        shifts=[GainDrift(3, random_state=0)],
        random_state=0,
        refit=False,
    ).fit(X, y)
    results = search.cv_results_
    seeds = search._seeds()
    grid = [{**p, "random_state": seeds[1]} for p in results["params"]]
    grid += [
        {**results["params"][k], "random_state": seed}
        for k in np.flatnonzero(results["stage"] == 2)
        for seed in seeds[2:]
    ]
    grid = [{name: [value] for name, value in params.items()} for params in grid]
    rows = np.random.default_rng(0).permutation(len(X))
    fold = [(rows[len(X) // 5 :], rows[: len(X) // 5])]
    estimator = SoftRankMLPClassifier(dropout=0.2)
    return {
        "ours": lambda: search.fit(X, y),
        "grid": lambda: StackedGridSearchCV(estimator, grid, cv=fold, refit=False).fit(
            X, y
        ),
    }, len(grid)


def main():
    p = parser(__doc__.splitlines()[0])
    p.add_argument("--worker")
    p.add_argument("--trials", type=int, default=72)
    p.add_argument("--rows", type=int, default=2000)
    p.add_argument("--turns", type=int, default=3)
    args = p.parse_args()
    if args.worker:
        one_worker(args.worker)
        return
    timed_search(2)
    memory = []
    for _ in range(args.turns):
        seconds, fits = timed_search(N_TRIALS)
        memory.append(1e3 * (seconds - fits) / N_TRIALS)
    sqlite = [two_workers() for _ in range(args.turns)]
    jobs, n_fits = of_a_grid(args)
    over = ratios(interleaved(jobs, args.turns, pause=0.5), "grid")
    figures = {
        "memory_ms": float(np.median(memory)),
        "sqlite_two_workers_ms": float(np.median(sqlite)),
        "search_over_grid": over["ours"],
    }
    for name, value in figures.items():
        print(f"{name}: {value:.2f}")
    write(
        "ood_search_overhead",
        figures,
        trials=args.trials,
        fits=n_fits,
        rows=args.rows,
        turns=args.turns,
    )


if __name__ == "__main__":
    main()
