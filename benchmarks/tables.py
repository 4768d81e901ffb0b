"""Accuracy, log loss, calibration and time on tables: our defaults and their peers.

Each cell (table, rows, model, split) is kept as it is done, so that a run that was cut
off goes on, and a model that is added runs alone. A table with fewer rows than a size
asks for gives all it has. Rows are standardised, categories one-hot, for all models but
RealMLP, which has its own ways with both and gets the table as it is; splits are the
same for all, so that differences are of pairs. What the defaults are was chosen on
other tables, or on the first half of these (`CHOSEN_ON`); the others confirm it. Times
are of the processor.

With all rows come two tables, magic and the flights of January and February.
RealMLP-TD-S is there where pytabkit is installed (the extra `bench`).
"""

from __future__ import annotations

import json
import time
import warnings
from importlib.util import find_spec

import numpy as np
import pandas as pd
import torch
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
LARGE = ("magic", "flights")
# Rows of a test set, at most: enough for a tenth of a point over splits.
TEST_ROWS = 6000
ROBUST = {"normalization": None, "dropout": 0.15, "label_smoothing": 0.0}


def real_mlp(seed):
    from pytabkit import RealMLP_TD_S_Classifier

    n_threads = torch.get_num_threads()
    return RealMLP_TD_S_Classifier(random_state=seed, n_threads=n_threads, device="cpu")


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
    if name == "flights":
        # The other months are for what is measured under shift.
        path = find_data(folder, "shifts/flights.parquet")
        frame = pd.read_parquet(path, filters=[("month", "<=", 2)])
        # One carrier has a single flight; and a flight's number all but names its own.
        frame = frame[frame["carrier"].isin(frame["carrier"].value_counts()[:15].index)]
        frame = frame.drop(columns=["month", "flight"])
        return frame, np.unique(frame.pop("carrier"), return_inverse=True)[1]
    if name in BUNDLED:
        bunch = getattr(datasets, f"load_{name}")()
        return pd.DataFrame(bunch.data), bunch.target
    frame = pd.read_parquet(find_data(folder, f"tables/{name}.parquet"))
    target = frame.pop("target")
    return frame, np.unique(target, return_inverse=True)[1]


def split(frame, y, n_rows, seed):
    """Return rows to train on and to test on, as frames and as matrices."""
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
    frames = frame.iloc[train], frame.iloc[test]
    return y[train], y[test], {"matrix": (X, X_test), "frame": frames}


def measure(model, seed, y, y_test, rows):
    X, X_test = rows["frame" if model == "RealMLP-TD-S" else "matrix"]
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


def summarize(cells, splits, n_rows, models):
    """Return means over tables of means over splits, and paired differences.

    `n_rows` are the rows of each table, by size. Of each size as many splits count, at
    most `splits`, as the default has on all its tables.
    """
    summary = {}
    for size, rows in n_rows.items():
        for half, tables in {
            "all": list(rows),
            "chosen on": [table for table in rows if table in CHOSEN_ON],
            "confirmed on": [table for table in rows if table not in CHOSEN_ON],
        }.items():
            means = {}
            seeds = list(range(splits))
            while seeds and not all(
                f"{t}/{rows[t]}/default/{seeds[-1]}" in cells for t in tables
            ):
                seeds.pop()
            for model in models if seeds else []:
                keys = [
                    [f"{t}/{rows[t]}/{model}/{seed}" for seed in seeds] for t in tables
                ]
                if all(key in cells for own in keys for key in own):
                    means[model] = pd.DataFrame(
                        [pd.DataFrame([cells[k] for k in own]).mean() for own in keys]
                    )
            own = summary[f"{size} rows, {half}"] = {}
            for model, frame in means.items():
                own[model] = {name: float(v) for name, v in frame.mean().items()}
                if model != "default" and "default" in means:
                    less = means["default"] - frame
                    own[model]["default_less_it"] = mean_interval(less["accuracy"])
                    for name in ("log_loss", "calibration_error"):
                        own[model][f"default_less_its_{name}"] = mean_interval(
                            less[name]
                        )
    return summary


def as_size(text):
    return text if text == "all" else int(text)


def main():
    p = parser(__doc__)
    sizes = [100, 500, 2000, 6000, "all"]
    p.add_argument("--sizes", type=as_size, nargs="+", default=sizes)
    p.add_argument("--splits", type=int, default=3)
    p.add_argument("--models", nargs="+", default=list(MODELS), choices=list(MODELS))
    p.add_argument("--again", nargs="+", default=[], choices=list(MODELS))
    args = p.parse_args()
    hold_threads(args.threads)
    warnings.simplefilter("ignore")
    path = RESULTS / "tables.json"
    cells = json.loads(path.read_text())["results"]["cells"] if path.exists() else {}
    has_pytabkit = find_spec("pytabkit") is not None
    models = [m for m in args.models if m != "RealMLP-TD-S" or has_pytabkit]
    tables = {name: load(name, args.data) for name in (*FILES, *BUNDLED, *LARGE)}
    n_rows = {}
    for size in sizes:
        names = LARGE if size == "all" else (*FILES, *BUNDLED)
        limit = np.inf if size == "all" else size
        n_rows[size] = {n: int(min(limit, 0.7 * len(tables[n][1]))) for n in names}
    asked = {(name, n) for size in args.sizes for name, n in n_rows[size].items()}
    for key in list(cells):
        name, n, model, _ = key.split("/")
        if model in args.again and (name, int(n)) in asked:
            del cells[key]
    for size in args.sizes:
        for name, n in n_rows[size].items():
            shown = {}
            for seed in range(args.splits):
                left = [m for m in models if f"{name}/{n}/{m}/{seed}" not in cells]
                rows = split(*tables[name], n, seed) if left else None
                for model in left:
                    cell = measure(model, seed, *rows)
                    cells[f"{name}/{n}/{model}/{seed}"] = cell
                    shown[model] = round(cell["accuracy"], 2)
            if shown:
                print(name, n, shown, flush=True)
                summary = summarize(cells, args.splits, n_rows, MODELS)
                results = {"summary": summary, "cells": cells}
                write("tables", results, splits=args.splits)
    for where, by_model in summarize(cells, args.splits, n_rows, MODELS).items():
        print(where)
        for model, row in by_model.items():
            pair = row.get("default_less_it", (0.0, 0.0))
            print(
                f"  {model:22s} {row['accuracy']:6.2f} %"
                f"  log loss {row['log_loss']:.3f}"
                f"  calibration {row['calibration_error']:.1f}  {row['seconds']:.2f} s"
                f"  default less it {pair[0]:+.2f} ± {pair[1]:.2f}"
            )


if __name__ == "__main__":
    main()
