"""How the default chooses its strength: rules compared on what their trials scored.

On the tables that the default was chosen on, each length and dropout is trained on four
fifths of the rows, scored on the fifth held out (accuracy, log loss, and log loss of
the scaled logits), then trained on all and scored on test rows. A rule sees what is
held out; what it takes is worth what that scored on the test rows. Cells (table, rows,
split, strength) are kept as they are done.
"""

from __future__ import annotations

import itertools
import json
import math
import warnings

import numpy as np
from _common import RESULTS, hold_threads, parser, write
from sklearn.model_selection import StratifiedKFold
from tables import CHOSEN_ON, load, split

from sksoftrank import SoftRankMLPClassifier
from sksoftrank.estimators._choice import fit_logit_scale, score_logits
from sksoftrank.estimators._recipe import Strength, choose_batch_size, choose_steps

STRENGTHS = ((6.7, 0.4), (13.4, 0.2), (26.8, 0.2), (26.8, 0.4), (53.6, 0.1))
SHORT, MODERATE, LONG, STRONG, LONGEST = STRENGTHS


def fit(X, y, strength, seed):
    batch_size = choose_batch_size(len(y))
    n_epochs = choose_steps(len(y), Strength(*strength)) / math.ceil(
        len(y) / batch_size
    )
    clf = SoftRankMLPClassifier(
        dropout=strength[1], max_epochs=max(1, round(n_epochs)), random_state=seed
    )
    return clf.fit(X, y)


def measure(strength, seed, y, y_test, rows):
    X, X_test = rows["matrix"]
    folds = StratifiedKFold(5, shuffle=True, random_state=seed)
    train, valid = next(folds.split(X, y))
    clf = fit(X[train], y[train], strength, seed)
    logits = np.log(clf.predict_proba(X[valid].astype(float)))
    codes, weight = np.searchsorted(clf.classes_, y[valid]), np.ones(len(valid))
    accuracy, likelihood = score_logits(logits, codes, weight)
    scale = fit_logit_scale(logits, codes, weight)
    return {
        "accuracy": accuracy,
        "likelihood": likelihood,
        "scaled_likelihood": score_logits(scale * logits, codes, weight)[1],
        "test_accuracy": float(fit(X, y, strength, seed).score(X_test, y_test)),
    }


def by_accuracy(cell):
    return round(cell["accuracy"], 9), cell["likelihood"]


def by_scaled(cell):
    return cell["scaled_likelihood"]


def best(*strengths, score=by_accuracy):
    """Return the rule that tries all of these."""
    return lambda cells: max(strengths, key=lambda s: score(cells[s]))


def climb(*strengths):
    """Return the rule that goes on to the next only where the last was the best."""

    def rule(cells):
        found = best(*strengths[:2])(cells)
        for last, ahead in itertools.pairwise(strengths[1:]):
            if found != last:
                break
            found = best(found, ahead)(cells)
        return found

    return rule


RULES = {
    "moderate": lambda _: MODERATE,
    "longest": lambda _: LONGEST,
    "climb to 26.8": climb(SHORT, MODERATE, LONG),
    "climb to 53.6": climb(SHORT, MODERATE, LONG, LONGEST),
    "all of 6.7, 13.4, 53.6": best(SHORT, MODERATE, LONGEST),
    "26.8 with .4 or 53.6": best(STRONG, LONGEST),
    "13.4 or 53.6": best(MODERATE, LONGEST),
    "four, by scaled log loss": best(SHORT, MODERATE, LONG, LONGEST, score=by_scaled),
    "oracle of five": best(*STRENGTHS, score=lambda cell: cell["test_accuracy"]),
}


def summarize(cells):
    """Return each rule's test accuracy in per cent, by table and rows, and its mean."""
    splits = {}
    for key, cell in cells.items():
        *where, steps, dropout = key.split("/")
        splits.setdefault(tuple(where), {})[float(steps), float(dropout)] = cell
    whole = {k: v for k, v in splits.items() if len(v) == len(STRENGTHS)}
    summary = {}
    for name, rule in RULES.items():
        row = {}
        for (table, n_rows, _), own in whole.items():
            row.setdefault(f"{table}/{n_rows}", []).append(
                100 * own[rule(own)]["test_accuracy"]
            )
        summary[name] = {where: float(np.mean(values)) for where, values in row.items()}
    return summary


def main():
    p = parser(__doc__)
    p.add_argument("--sizes", type=int, nargs="+", default=[2000, 6000])
    p.add_argument("--splits", type=int, default=3)
    args = p.parse_args()
    hold_threads(args.threads)
    warnings.simplefilter("ignore")
    path = RESULTS / "strengths.json"
    cells = json.loads(path.read_text())["results"]["cells"] if path.exists() else {}
    for size in args.sizes:
        for name in CHOSEN_ON:
            table = load(name, args.data)
            n_rows = int(min(size, 0.7 * len(table[1])))
            if size > 2000 and n_rows < 3000:
                continue  # As good as the size before.
            for seed in range(args.splits):
                keys = {s: f"{name}/{n_rows}/{seed}/{s[0]}/{s[1]}" for s in STRENGTHS}
                left = [s for s in STRENGTHS if keys[s] not in cells]
                rows = split(*table, n_rows, seed) if left else None
                for strength in left:
                    cells[keys[strength]] = measure(strength, seed, *rows)
                results = {"summary": summarize(cells), "cells": cells}
                write("strengths", results, splits=args.splits)
    for name, row in summarize(cells).items():
        few = [v for where, v in row.items() if int(where.split("/")[1]) <= 2000]
        many = [v for where, v in row.items() if int(where.split("/")[1]) > 2000]
        print(
            f"{name:26s} {np.mean(few):6.2f} % up to 2,000 rows, {np.mean(many):6.2f}"
        )


if __name__ == "__main__":
    main()
