"""The transformer's defaults on tables, beside the perceptron's.

The tables, splits and halves of `tables.py`, but categories as they come: each network
has its own way with them. Each cell (table, rows, split, model) is kept as it is done,
so that a run that was cut off goes on. Times are of the processor, on one thread.
"""

from __future__ import annotations

import json
import time
import warnings

import numpy as np
from _common import RESULTS, hold_threads, mean_interval, parser, write
from sklearn.model_selection import train_test_split
from sklearn.preprocessing import StandardScaler
from tables import BUNDLED, CHOSEN_ON, FILES, load

from sksoftrank import SoftRankMLPClassifier, SoftRankTransformerClassifier

MODELS = {
    "mlp": lambda seed: SoftRankMLPClassifier(random_state=seed),
    "mlp, one training": lambda seed: SoftRankMLPClassifier(
        dropout=0.2, random_state=seed
    ),
    "transformer": lambda seed: SoftRankTransformerClassifier(random_state=seed),
    "transformer, T=10": lambda seed: SoftRankTransformerClassifier(
        temperature=10.0, random_state=seed
    ),
}
TEST_ROWS = 3000


def measure(model, frame, y, n_rows, seed):
    n_rows = min(n_rows, int(0.7 * len(y)))
    train, test = train_test_split(
        np.arange(len(y)), train_size=n_rows, stratify=y, random_state=seed
    )
    test = test[:TEST_ROWS]
    frame = frame.copy()
    numbers = frame.select_dtypes(np.number).columns
    if len(numbers):
        scaler = StandardScaler().fit(frame.iloc[train][numbers])
        frame[numbers] = scaler.transform(frame[numbers])
    start = time.process_time()
    clf = MODELS[model](seed).fit(frame.iloc[train], y[train])
    seconds = time.process_time() - start
    return {
        "accuracy": 100 * clf.score(frame.iloc[test], y[test]),
        "seconds": seconds,
    }


def summarize(cells, tables, sizes):
    """Return means over tables of means over splits, and paired differences."""
    summary = {}
    for size in sizes:
        halves = {"all": tables, "confirmed on": [*set(tables) - set(CHOSEN_ON)]}
        for half, own in halves.items():
            means = {}
            for model in MODELS:
                found = [
                    [
                        c
                        for k, c in cells.items()
                        if k.startswith(f"{t}/{size}/{model}/")
                    ]
                    for t in own
                ]
                if all(found):
                    means[model] = {
                        name: np.array([np.mean([c[name] for c in f]) for f in found])
                        for name in ("accuracy", "seconds")
                    }
            summary[f"{size} rows, {half}"] = {
                model: {
                    **{name: float(values.mean()) for name, values in own.items()},
                    "less_mlp": mean_interval(
                        own["accuracy"] - means["mlp"]["accuracy"]
                    ),
                }
                for model, own in means.items()
                if "mlp" in means
            }
    return summary


def main():
    p = parser(__doc__)
    p.add_argument("--sizes", type=int, nargs="+", default=[500, 2000])
    p.add_argument("--splits", type=int, default=3)
    p.add_argument("--tables", nargs="+", default=[*FILES, *BUNDLED])
    p.add_argument("--models", nargs="+", default=list(MODELS), choices=list(MODELS))
    args = p.parse_args()
    hold_threads(1)
    warnings.simplefilter("ignore")
    path = RESULTS / "transformer_defaults.json"
    cells = json.loads(path.read_text())["results"]["cells"] if path.exists() else {}
    for size in args.sizes:
        for table in args.tables:
            frame, y = load(table, args.data)
            for seed in range(args.splits):
                for model in args.models:
                    key = f"{table}/{size}/{model}/{seed}"
                    if key not in cells:
                        cells[key] = measure(model, frame, y, size, seed)
            print(table, size, flush=True)
            summary = summarize(cells, args.tables, args.sizes)
            write("transformer_defaults", {"summary": summary, "cells": cells})
    for where, by_model in summary.items():
        print(where)
        for model, row in by_model.items():
            mean, half = row["less_mlp"]
            print(
                f"  {model:18s} {row['accuracy']:6.2f} %  {row['seconds']:6.2f} s"
                f"  less mlp {mean:+.2f} ± {half:.2f}"
            )


if __name__ == "__main__":
    main()
