"""Accuracy, log loss, calibration and time on tables: our defaults and their peers.

Each cell (table, rows, split, model) is kept as it is done, so that a run that was cut
off goes on, and a model that is added runs alone. Rows are standardised, categories
one-hot, for all models alike; splits are the same for all, so that differences are of
pairs. Rates and lengths of the defaults were chosen on other tables, or on the first
half of these (`CHOSEN_ON`); the others confirm them. Times are of the processor, on one
thread.

RealMLP-TD-S is there where pytabkit is installed.
"""

from __future__ import annotations

import json
import time
import warnings
from itertools import product

import numpy as np
import pandas as pd
from _common import (
    RESULTS,
    find_data,
    hold_threads,
    mean_interval,
    parser,
    plain_mlp,
    write,
)
from sklearn import datasets
from sklearn.compose import make_column_selector, make_column_transformer
from sklearn.ensemble import HistGradientBoostingClassifier, RandomForestClassifier
from sklearn.metrics import log_loss
from sklearn.model_selection import train_test_split
from sklearn.neural_network import MLPClassifier
from sklearn.preprocessing import OneHotEncoder, StandardScaler

from sksoftrank import SoftRankMLPClassifier
from sksoftrank.ood import expected_calibration_error

FILES = (
    *("chess", "german", "magic", "marketing", "penbased", "phoneme", "satimage"),
    *("segment", "spambase", "splice"),
)
BUNDLED = ("breast_cancer", "digits", "iris", "wine")
CHOSEN_ON = ("chess", "magic", "phoneme", "segment", "splice")
# Rows of a test set, at most: enough for a tenth of a point over splits.
TEST_ROWS = 6000
ROBUST = {"normalization": None, "dropout": 0.15, "label_smoothing": 0.0}


def real_mlp(seed):
    from pytabkit import RealMLP_TD_S_Classifier

    return RealMLP_TD_S_Classifier(random_state=seed, n_cv=1, n_refit=0)


MODELS = {
    "default": lambda seed: SoftRankMLPClassifier(random_state=seed),
    "fixed": lambda seed: SoftRankMLPClassifier(dropout=0.2, random_state=seed),
    # For rows from elsewhere.
    "robust": lambda seed: SoftRankMLPClassifier(**ROBUST, random_state=seed),
    "plain": lambda seed: plain_mlp(random_state=seed),
    "MLPClassifier": lambda seed: MLPClassifier(random_state=seed),
    "HistGradientBoosting": lambda seed: HistGradientBoostingClassifier(
        random_state=seed
    ),
    "RandomForest": lambda seed: RandomForestClassifier(random_state=seed),
    "RealMLP-TD-S": real_mlp,
}


def load(name, folder):
    """Return a table's features as a frame, and its classes as codes."""
    if name in BUNDLED:
        bunch = getattr(datasets, f"load_{name}")()
        return pd.DataFrame(bunch.data), bunch.target
    frame = pd.read_parquet(find_data(folder, f"tables/{name}.parquet"))
    target = frame.pop("target")
    return frame, np.unique(target, return_inverse=True)[1]


def split(frame, y, n_rows, seed):
    """Return rows to train on, at most `n_rows` and seven tenths, and to test on."""
    n_rows = min(n_rows, int(0.7 * len(y)))
    train, test = train_test_split(
        np.arange(len(y)), train_size=n_rows, stratify=y, random_state=seed
    )
    test = test[:TEST_ROWS]
    encoder = make_column_transformer(
        (StandardScaler(), make_column_selector(dtype_include=np.number)),
        (
            OneHotEncoder(handle_unknown="ignore", sparse_output=False),
            make_column_selector(dtype_exclude=np.number),
        ),
    )
    X = encoder.fit_transform(frame.iloc[train]).astype(np.float32)
    X_test = encoder.transform(frame.iloc[test]).astype(np.float32)
    return X, y[train], X_test, y[test]


def measure(model, seed, X, y, X_test, y_test):
    start = time.process_time()
    clf = MODELS[model](seed).fit(X, y)
    seconds = time.process_time() - start
    proba = clf.predict_proba(X_test)
    return {
        "accuracy": 100 * float((clf.classes_[proba.argmax(1)] == y_test).mean()),
        "log_loss": float(log_loss(y_test, proba, labels=clf.classes_)),
        "calibration_error": 100 * float(expected_calibration_error(y_test, proba)),
        "seconds": seconds,
    }


def summarize(cells, tables, sizes, models):
    """Return means over tables of means over splits, and paired differences."""
    summary = {}
    for size, (half, own) in product(
        sizes,
        {
            "all": tables,
            "chosen on": [t for t in tables if t in CHOSEN_ON],
            "confirmed on": [t for t in tables if t not in CHOSEN_ON],
        }.items(),
    ):
        by_model = {}
        for model in models:
            rows = []
            for table in own:
                found = [
                    cell
                    for key, cell in cells.items()
                    if key.rsplit("/", 1)[0] == f"{table}/{size}/{model}"
                ]
                if found:
                    rows.append(pd.DataFrame(found).mean())
            if len(rows) == len(own) > 0:
                by_model[model] = pd.DataFrame(rows)
        summary[f"{size} rows, {half}"] = {
            model: {
                **{name: float(value) for name, value in frame.mean().items()},
                **(
                    {
                        "default_less_it": mean_interval(
                            by_model["default"]["accuracy"].to_numpy()
                            - frame["accuracy"].to_numpy()
                        )
                    }
                    if model != "default" and "default" in by_model
                    else {}
                ),
            }
            for model, frame in by_model.items()
        }
    return summary


def main():
    p = parser(__doc__)
    p.add_argument("--sizes", type=int, nargs="+", default=[100, 500, 2000, 6000])
    p.add_argument("--splits", type=int, default=3)
    p.add_argument("--tables", nargs="+", default=[*FILES, *BUNDLED])
    p.add_argument("--models", nargs="+", default=list(MODELS), choices=list(MODELS))
    p.add_argument("--again", nargs="+", default=[], choices=list(MODELS))
    args = p.parse_args()
    hold_threads(args.threads)
    warnings.simplefilter("ignore")
    path = RESULTS / "tables.json"
    cells = json.loads(path.read_text())["results"]["cells"] if path.exists() else {}
    cells = {k: v for k, v in cells.items() if k.split("/")[2] not in args.again}
    models = [m for m in args.models if m != "RealMLP-TD-S" or _has_pytabkit()]
    for size, name in product(args.sizes, args.tables):
        frame, y = load(name, args.data)
        for seed in range(args.splits):
            rows = split(frame, y, size, seed)
            for model in models:
                key = f"{name}/{size}/{model}/{seed}"
                if key not in cells:
                    cells[key] = measure(model, seed, *rows)
        done = {m: cells[f"{name}/{size}/{m}/0"]["accuracy"] for m in models}
        print(name, size, {m: round(v, 2) for m, v in done.items()}, flush=True)
        known = sorted({key.split("/")[2] for key in cells}, key=list(MODELS).index)
        sizes = sorted({int(key.split("/")[1]) for key in cells})
        summary = summarize(cells, args.tables, sizes, known)
        write("tables", {"summary": summary, "cells": cells}, splits=args.splits)
    for where, by_model in summary.items():
        print(where)
        for model, row in by_model.items():
            mean, half = row.get("default_less_it", (0.0, 0.0))
            print(
                f"  {model:22s} {row['accuracy']:6.2f} %"
                f"  log loss {row['log_loss']:.3f}"
                f"  calibration {row['calibration_error']:.1f}  {row['seconds']:.2f} s"
                f"  default less it {mean:+.2f} ± {half:.2f}"
            )


def _has_pytabkit():
    from importlib.util import find_spec

    return find_spec("pytabkit") is not None


if __name__ == "__main__":
    main()
