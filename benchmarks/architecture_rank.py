"""Rank against temperature for CNN, ViT and tabular transformer, rates matched.

Three arms, which share split, initial weights and order of the rows within a seed:

- temperature: the learning rate follows the square root of the temperature, the default
- rate_control: temperature 1 at the learning rate of the first arm
- attention: temperature 1 with the attention's own temperature changed (transformers)

Ranks are those of centred test embeddings; rmin is the number of columns of `transform`
that keeps accuracy; attention rank is the mean effective rank of the attention
matrices, over their number of tokens. The train accuracy stands beside each rank: what
has not converged has a low rank for the wrong reason.
"""

from __future__ import annotations

import itertools

import numpy as np
import torch
from _common import find_data, mean_interval, parser, write
from joblib import Parallel, delayed
from sklearn.model_selection import train_test_split
from sklearn.preprocessing import StandardScaler

from sksoftrank import SoftRankCNNClassifier, SoftRankTransformerClassifier
from sksoftrank.datasets import load_cifar10, load_gas_drift
from sksoftrank.rank import effective_rank, variance_rank

TEMPERATURES = (0.3, 1.0, 10.0, 100.0)
ATTENTION_TEMPERATURES = (0.3, 3.0)
CASES = {
    "cnn": lambda **p: SoftRankCNNClassifier((16, 32, 64), **p),
    "vit": lambda **p: SoftRankTransformerClassifier(48, **p),
    "table": lambda **p: SoftRankTransformerClassifier(32, depth=2, **p),
}
IMAGE_OPTIONS = {"augmentation": ("flip", "shift")}
COLUMNS = ("train_accuracy", "test_accuracy", "z99", "logit_effective_rank", "rmin")


def load(case, args):
    if case != "table":
        data = load_cifar10(args.data, n_train=args.images, n_test=2000)
        return data.X_train, data.y_train, data.X_test, data.y_test
    gas = load_gas_drift(args.data)
    source = np.isin(gas.domains, (2, 3))
    X, _, y, _ = train_test_split(
        gas.X[source],
        gas.y[source],
        train_size=args.rows,
        stratify=gas.y[source],
        random_state=0,
    )
    return X, y, None, None


def split(case, data, seed):
    X, y, X_test, y_test = data
    if case != "table":
        return data
    X_train, X_test, y_train, y_test = train_test_split(
        X, y, test_size=0.25, stratify=y, random_state=seed
    )
    scaler = StandardScaler().fit(X_train)
    X_train, X_test = (
        scaler.transform(Z).clip(-5, 5).astype(np.float32) for Z in (X_train, X_test)
    )
    return X_train, y_train, X_test, y_test


def attention_rank(clf, X):
    """Return the mean effective rank of attention matrices over their tokens."""
    with torch.inference_mode():
        weights = clf.module_.attention(torch.tensor(X[:50]))
    ranks = [
        effective_rank(matrix.double().numpy())
        for block in weights
        for matrix in block.flatten(0, 1)
    ]
    return float(np.mean(ranks) / weights[0].shape[-1])


def measure(case, data, settings, seed, epochs):
    torch.set_num_threads(1)
    X_train, y_train, X_test, y_test = split(case, data, seed)
    options = {} if case == "table" else IMAGE_OPTIONS
    clf = CASES[case](
        max_epochs=epochs, device="cpu", random_state=seed, **options, **settings
    ).fit(X_train, y_train)
    rows = np.random.default_rng(0).permutation(len(X_train))[:2000]
    record = {
        "train_accuracy": clf.score(X_train[rows], y_train[rows]),
        "test_accuracy": clf.score(X_test, y_test),
        "z99": variance_rank(clf.embed(X_test), 0.99),
        "logit_effective_rank": effective_rank(clf.decision_function(X_test)),
        "rmin": clf.n_components_,
    }
    if case != "cnn":
        record["attention_rank"] = attention_rank(clf, X_test)
    return record


def main():
    p = parser(__doc__.splitlines()[0])
    p.add_argument("--seeds", type=int, default=3)
    p.add_argument("--images", type=int, default=4000)
    p.add_argument("--rows", type=int, default=1500)
    p.add_argument("--epochs", type=int, default=12)
    p.add_argument("--cases", nargs="+", choices=list(CASES), default=list(CASES))
    args = p.parse_args()
    find_data(args.data, "cifar10_train.parquet")
    for case in args.cases:
        clf = CASES[case]()
        base = clf._first_learning_rate(clf.temperature)
        arms = {("temperature", t): {"temperature": t} for t in TEMPERATURES}
        arms |= {
            ("rate_control", t): {"learning_rate": base * t**0.5} for t in (10.0, 100.0)
        }
        if case != "cnn":
            arms |= {
                ("attention", t): {"attention_temperature": t}
                for t in ATTENTION_TEMPERATURES
            }
        data = load(case, args)
        keys = list(itertools.product(arms, range(args.seeds)))
        fits = Parallel(n_jobs=2)(
            delayed(measure)(case, data, arms[arm], seed, args.epochs)
            for arm, seed in keys
        )
        records = dict(zip(keys, fits, strict=True))
        rows = []
        for arm in arms:
            own = [records[arm, seed] for seed in range(args.seeds)]
            row = {"arm": arm[0], "at": arm[1]}
            for name in own[0]:
                mean, half = mean_interval([fit[name] for fit in own])
                row[name] = {"mean": mean, "half_width": half}
            rows.append(row)
            cells = [
                f"{name} {row[name]['mean']:.3f} ±{row[name]['half_width']:.3f}"
                for name in own[0]
            ]
            print(f"{case} {arm[0]} {arm[1]:g}:", ", ".join(cells), flush=True)
        loss = [
            records[("temperature", 10.0), s]["test_accuracy"]
            - records[("temperature", 1.0), s]["test_accuracy"]
            for s in range(args.seeds)
        ]
        mean, half = mean_interval(loss)
        print(f"{case}: accuracy at T=10 less that at T=1: {mean:+.4f} ± {half:.4f}")
        write(
            f"architecture_rank_{case}",
            {"table": rows, "t10_less_t1": [mean, half]},
            seeds=list(range(args.seeds)),
            images=args.images,
            rows=args.rows,
            epochs=args.epochs,
        )


if __name__ == "__main__":
    main()
