"""Time of fresh processes: imports, a first fit and prediction, and a first search.

The import of SoftRankMLPClassifier over that of torch and `sklearn.neural_network`.
A first fit of the digits with a plain SoftRankMLPClassifier against MLPClassifier
with the same layers, batch size and epochs (its own early stopping is off), alone and
in a process that imports torch too: of one epoch, which is imports and little more, and
of our 50. Then a search of 16 temperatures x 5 folds on 1,000 rows with n_jobs=2, whose
worker processes are to be started, against n_jobs=1. All hold to one thread.
"""

from __future__ import annotations

import os
import subprocess
import sys
from functools import partial

from _common import PLAIN, ROOT, interleaved, parser, ratios, write

OURS = """
from sklearn.datasets import load_digits
from sksoftrank import SoftRankMLPClassifier
X, y = load_digits(return_X_y=True)
SoftRankMLPClassifier(
    **{plain}, max_epochs={epochs}, random_state=0
).fit(X / 16, y).predict(X)
"""
MLP_CLASSIFIER = """
from sklearn.datasets import load_digits
from sklearn.neural_network import MLPClassifier
X, y = load_digits(return_X_y=True)
MLPClassifier(
    (128, 128), batch_size=128, max_iter={epochs}, n_iter_no_change={epochs},
    random_state=0,
).fit(X / 16, y).predict(X)
"""
SEARCH = """
import numpy as np
from sklearn.datasets import make_classification
from sksoftrank import SoftRankMLPClassifier, StackedGridSearchCV
X, y = make_classification({rows}, n_informative=12, n_classes=10, random_state=0)
StackedGridSearchCV(
    SoftRankMLPClassifier(**{plain}, max_epochs={epochs}, random_state=0),
    {{"temperature": np.geomspace(0.3, 100, {candidates}).tolist()}},
    cv=5, n_jobs={n_jobs},
).fit(X, y)
"""
SETTINGS = {k: v for k, v in PLAIN.items() if k != "max_epochs"}
IMPORTS = {
    "ours": "from sksoftrank import SoftRankMLPClassifier",
    "torch and scikit-learn": "import torch, sklearn.neural_network",
}
GOAL_IMPORT, GOAL_FIT, GOAL_SEARCH = 1.1, 1.15, 1.0


def run(code: str, threads: int) -> None:
    """Run code in a fresh process, with the package that this file lies beside."""
    env = dict(os.environ)
    # Modules are compiled in the first, untimed turn, as at an installation.
    env.pop("PYTHONDONTWRITEBYTECODE", None)
    env |= dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"), str(threads))
    env |= {"PYTHONPATH": str(ROOT.parent), "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-W", "ignore", "-c", code]
    subprocess.run(command, env=env, check=True)


def measure(codes: dict[str, str], args) -> dict[str, list[float]]:
    tasks = {name: partial(run, code, args.threads) for name, code in codes.items()}
    return interleaved(tasks, args.repeats, warm_up=not args.small)


def main() -> None:
    p = parser(__doc__.splitlines()[0])
    p.set_defaults(threads=1)
    p.add_argument("--repeats", type=int, default=3)
    p.add_argument("--small", action="store_true", help="seconds; figures mean nothing")
    args = p.parse_args()
    if args.small:
        args.repeats = 1
    imports = 1 / ratios(measure(IMPORTS, args), "ours")["torch and scikit-learn"]
    print(f"import: {imports:.2f} of torch's and scikit-learn's (goal {GOAL_IMPORT})")
    fits, searches = [], []
    for epochs in (1,) if args.small else (1, 50):
        mlp = MLP_CLASSIFIER.format(epochs=epochs)
        codes = {
            "ours": OURS.format(epochs=epochs, plain=SETTINGS),
            "MLPClassifier": mlp,
            "MLPClassifier_and_torch": mlp + "import torch",
        }
        times_ours = ratios(measure(codes, args), "ours")
        over = {name: 1 / ratio for name, ratio in times_ours.items()}
        fits.append({"epochs": epochs, "ours_over": over})
        print(
            f"first fit, {epochs} epochs: {over['MLPClassifier_and_torch']:.2f} of "
            f"MLPClassifier's time with torch imported (goal {GOAL_FIT}), "
            f"{over['MLPClassifier']:.2f} without",
            flush=True,
        )
    for epochs in (1,) if args.small else (5, 50):
        sizes = {"rows": 1_000, "candidates": 16, "epochs": epochs}
        if args.small:
            sizes |= {"rows": 200, "candidates": 2}
        codes = {
            str(n): SEARCH.format(n_jobs=n, plain=SETTINGS, **sizes) for n in (1, 2)
        }
        over_one = ratios(measure(codes, args), "1")["2"]
        searches.append({**sizes, "two_jobs_over_one": over_one})
        print(
            f"first search, {epochs} epochs: n_jobs=2 takes {over_one:.2f} of "
            f"n_jobs=1's time (goal {GOAL_SEARCH:.0f})",
            flush=True,
        )
    write(
        "cold_start",
        {"import": imports, "first_fit": fits, "first_search": searches},
        threads=args.threads,
        repeats=args.repeats,
        seed=0,
    )


if __name__ == "__main__":
    main()
