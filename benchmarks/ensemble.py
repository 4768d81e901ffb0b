"""Accuracy and cost of an ensemble of eight against one fit, in and out of domain.

Gas-sensor drift: trained on batches 2 and 3 less a quarter of their rows, tested on
that quarter and on the later batches 4 and 5. Digits: tested as they are and under the
eight shifts of `load_digits_shift`. Nothing is chosen on any of these rows. Each seed's
ensemble is paired with a single fit of that seed, at temperature 1 and at 30.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from _common import (
    find_data,
    interleaved,
    mean_interval,
    parser,
    plain_mlp,
    ratios,
    write,
)
from sklearn.model_selection import train_test_split
from sklearn.preprocessing import StandardScaler

from sksoftrank import SoftRankEnsembleClassifier
from sksoftrank.datasets import load_digits_shift

TEMPERATURES = (1.0, 30.0)
N_MEMBERS = 8
Rows = tuple[np.ndarray, np.ndarray]


def gas(folder: Any) -> tuple[Rows, dict[str, Rows]]:
    frame = pd.read_parquet(find_data(folder, "gas_drift.parquet"))
    features = [name for name in frame if name.startswith("f")]
    X, y = frame[features].to_numpy(np.float32), frame["gas"].to_numpy()
    batch = frame["batch"].to_numpy()
    source = np.isin(batch, (2, 3))
    X_train, X_test, y_train, y_test = train_test_split(
        X[source], y[source], test_size=0.25, stratify=y[source], random_state=0
    )
    scaler = StandardScaler().fit(X_train)
    tests = {"in domain": (scaler.transform(X_test), y_test)}
    for later in (4, 5):
        rows = (batch == later) & np.isin(y, np.unique(y_train))
        tests[f"batch {later}"] = (scaler.transform(X[rows]), y[rows])
    return (scaler.transform(X_train), y_train), tests


def digits() -> tuple[Rows, dict[str, Rows]]:
    data = load_digits_shift()
    scaler = StandardScaler().fit(data.X_train)
    tests = {"in domain": (scaler.transform(data.X_test), data.y_test)}
    shifted = np.concatenate([scaler.transform(X) for X in data.X_shifted.values()])
    tests["shifted"] = (shifted, np.tile(data.y_test, len(data.X_shifted)))
    return (scaler.transform(data.X_train), data.y_train), tests


def make(seed: int, temperature: float) -> tuple[Any, Any]:
    single = plain_mlp(temperature=temperature, random_state=seed)
    ensemble = SoftRankEnsembleClassifier(
        plain_mlp(temperature=temperature),
        N_MEMBERS,
        n_jobs=2,
        random_state=seed,
    )
    return single, ensemble


def compare(
    train: Rows, tests: dict[str, Rows], temperature: float, seeds: int, repeats: int
) -> dict[str, Any]:
    scores: dict[str, list[tuple[float, float]]] = {name: [] for name in tests}
    for seed in range(seeds):
        single, ensemble = make(seed, temperature)
        single.fit(*train)
        ensemble.fit(*train)
        for name, rows in tests.items():
            scores[name].append((single.score(*rows), ensemble.score(*rows)))
    single, ensemble = make(0, temperature)
    times = interleaved(
        {"single": lambda: single.fit(*train), "ours": lambda: ensemble.fit(*train)},
        repeats,
    )
    cost = 1 / ratios(times, "ours")["single"]
    result: dict[str, Any] = {"temperature": temperature, "cost": cost, "accuracy": {}}
    for name, pairs in scores.items():
        one, many = np.array(pairs).T
        gain, half = mean_interval(many - one)
        result["accuracy"][name] = {
            "single": mean_interval(one),
            "ensemble": mean_interval(many),
            "gain": (gain, half),
            "wins": int((many > one).sum()),
        }
        print(
            f"  T={temperature:g}, {name}: {100 * one.mean():.2f} % alone, "
            f"{100 * many.mean():.2f} % together, gain {100 * gain:+.2f} "
            f"± {100 * half:.2f} points, wins {(many > one).sum()} of {seeds}"
        )
    print(f"  T={temperature:g}: {N_MEMBERS} members take {cost:.2f}x the time of one")
    return result


def main() -> None:
    p = parser(__doc__.splitlines()[0])
    p.add_argument("--seeds", type=int, default=10)
    p.add_argument("--repeats", type=int, default=5)
    args = p.parse_args()
    results = {}
    for name, (train, tests) in (("gas_drift", gas(args.data)), ("digits", digits())):
        print(f"{name}: {len(train[0])} rows to train on")
        results[name] = [
            compare(train, tests, temperature, args.seeds, args.repeats)
            for temperature in TEMPERATURES
        ]
    write("ensemble", results, seeds=args.seeds, members=N_MEMBERS)


if __name__ == "__main__":
    main()
