"""Which learning rate and regularisation suit the transformer, on three data sets.

A random search on each: CIFAR-10 as images, the gas sensors and digits as tables. The
score is the accuracy on rows held out of the training part; no test row is looked at.
Each setting is ranked within each data set, and the best mean rank is what the defaults
of SoftRankTransformerClassifier are taken from.
"""

from __future__ import annotations

import numpy as np
import torch
from _common import parser, write
from joblib import Parallel, delayed
from scipy.stats import rankdata
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from sklearn.preprocessing import StandardScaler

from sksoftrank import SoftRankTransformerClassifier
from sksoftrank.datasets import load_cifar10, load_gas_drift

SPACE = {
    "learning_rate": [3e-4, 1e-3, 2e-3, 4e-3],
    "weight_decay": [0.0, 0.01, 0.1, 0.3],
    "dropout": [0.0, 0.1, 0.2],
    "depth": [2, 3, 4],
    "lr_schedule": ["cosine", "warmup_cosine"],
}


def load(args):
    """Return for each data set: rows, labels, and the parameters that are its own."""
    cifar = load_cifar10(args.data, n_train=args.images, n_test=10)
    gas = load_gas_drift(args.data)
    source = np.isin(gas.domains, (2, 3))
    X_gas, y_gas = gas.X[source], gas.y[source]
    if len(X_gas) > args.rows:
        X_gas, _, y_gas, _ = train_test_split(
            X_gas, y_gas, train_size=args.rows, stratify=y_gas, random_state=0
        )
    digits, y_digits = load_digits(return_X_y=True)
    return {
        "cifar10": (cifar.X_train, cifar.y_train, {"augmentation": ("flip", "shift")}),
        "gas_drift": (X_gas, y_gas, {"d_model": 32}),
        "digits": (digits.astype(np.float32), y_digits, {"d_model": 32}),
    }


def accuracy(X, y, own, params, epochs, seed):
    torch.set_num_threads(1)
    X_train, X_valid, y_train, y_valid = train_test_split(
        X, y, test_size=0.25, stratify=y, random_state=seed
    )
    if X.ndim == 2:
        scaler = StandardScaler().fit(X_train)
        X_train, X_valid = (
            scaler.transform(part).astype(np.float32) for part in (X_train, X_valid)
        )
    clf = SoftRankTransformerClassifier(
        **own, **params, max_epochs=epochs, random_state=seed
    )
    return clf.fit(X_train, y_train).score(X_valid, y_valid)


def main():
    p = parser(__doc__)
    p.add_argument("--trials", type=int, default=24)
    p.add_argument("--images", type=int, default=4000)
    p.add_argument("--rows", type=int, default=1500)
    p.add_argument("--epochs", type=int, default=12)
    args = p.parse_args()
    rng = np.random.default_rng(0)
    trials = [
        {name: values[rng.integers(len(values))] for name, values in SPACE.items()}
        for _ in range(args.trials)
    ]
    data = load(args)
    scores = {}
    for name, (X, y, own) in data.items():
        scores[name] = Parallel(n_jobs=2)(
            delayed(accuracy)(X, y, own, params, args.epochs, seed=0)
            for params in trials
        )
        best = int(np.argmax(scores[name]))
        print(f"{name}: best {scores[name][best]:.4f} with {trials[best]}", flush=True)
    ranks = np.mean([rankdata(-np.array(s)) for s in scores.values()], axis=0)
    for place in np.argsort(ranks)[:5]:
        line = ", ".join(f"{s[place]:.4f}" for s in scores.values())
        print(f"mean rank {ranks[place]:.1f} of {args.trials}: {line} {trials[place]}")
    # What each value does on average, over all else.
    effects = {
        name: {
            str(value): float(
                np.mean([ranks[i] for i, t in enumerate(trials) if t[name] == value])
            )
            for value in values
            if any(t[name] == value for t in trials)
        }
        for name, values in SPACE.items()
    }
    print("mean rank by value:", effects)
    write(
        "transformer_defaults",
        {
            "trials": [
                {**t, **{n: s[i] for n, s in scores.items()}, "mean_rank": ranks[i]}
                for i, t in enumerate(trials)
            ],
            "mean_rank_by_value": effects,
        },
        images=args.images,
        rows=args.rows,
        epochs=args.epochs,
    )


if __name__ == "__main__":
    main()
