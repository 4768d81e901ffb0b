"""Rank of the embedding against temperature, with controls matched to its confounds.

On gas-sensor data (batches 2 and 3 pooled, a random quarter held out) and on digits, a
network of three hidden layers is trained on standardised columns, clipped at five
standard deviations, at each temperature in four arms:

- temperature: the learning rate follows the square root of the temperature, the default
- fixed_rate: the same learning rate at every temperature
- rate_control: temperature 1 at the learning rate of the first arm
- init_control: temperature 1 and its learning rate, the L layers' initial weights
  scaled by ``T ** (-1 / L)``, which divides the initial logits by ``T``

What the first arm does and the third does not is not due to the learning rate; the
fourth shows how far the scale of the initial weights is the same lever. All arms of a
seed share the split, the draw of the initial weights and the order of the rows. The
train accuracy stands beside each rank: what has not converged has a low rank for the
wrong reason.
"""

from __future__ import annotations

import itertools
import os

import numpy as np
import pandas as pd
import torch
from _common import find_data, mean_interval, parser, plain_mlp, write
from joblib import Parallel, delayed
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from sklearn.preprocessing import StandardScaler

from sksoftrank.rank import effective_rank, rank_report

TEMPERATURES = (0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0)
HIDDEN = (128, 128, 128)
N_LAYERS = len(HIDDEN) + 1  # Linear ones.
RATE = 1e-3
BATCHES = (2, 3)
# Standard deviations. A few spikes of the gas sensors, of up to fifty, would else be
# most of the variance that the ranks count.
CLIP = 5.0
ARMS = {
    "temperature": lambda t: {"temperature": t},
    "fixed_rate": lambda t: {"temperature": t, "learning_rate": RATE},
    "rate_control": lambda t: {"learning_rate": RATE * t**0.5},
    "init_control": lambda t: {"init_scale": t ** (-1 / N_LAYERS)},
}
COLUMNS = {  # Heading and format of each measure in the table printed.
    "train_accuracy": ("train", ".4f"),
    "test_accuracy": ("test", ".4f"),
    "z99": ("z99", ".1f"),
    "effective_rank": ("erank", ".1f"),
    "numerical_rank_1e-2": ("rank 1e-2", ".1f"),
    "numerical_rank_1e-3": ("rank 1e-3", ".1f"),
    "rmin": ("rmin", ".1f"),
    "logit_effective_rank": ("logit erank", ".2f"),
    "logit_norm": ("logit norm", ".1f"),
}


def load(name, folder):
    if name == "digits":
        return load_digits(return_X_y=True)
    table = pd.read_parquet(find_data(folder, "gas_drift.parquet"))
    table = table[table["batch"].isin(BATCHES)]
    return table.filter(regex=r"^f\d+$").to_numpy(), table["gas"].to_numpy()


def split(X, y, seed):
    X_train, X_test, y_train, y_test = train_test_split(
        X, y, test_size=0.25, stratify=y, random_state=seed
    )
    scaler = StandardScaler().fit(X_train)
    X_train, X_test = (
        np.clip(scaler.transform(Z), -CLIP, CLIP) for Z in (X_train, X_test)
    )
    return X_train, X_test, y_train, y_test


def measure(data, settings, seed, epochs, threads):
    """Fit once and return what is measured of the fit."""
    torch.set_num_threads(threads)
    X_train, X_test, y_train, y_test = split(*data, seed)
    clf = plain_mlp(
        hidden_layer_sizes=HIDDEN,
        max_epochs=epochs,
        device="cpu",
        random_state=seed,
        **settings,
    ).fit(X_train, y_train)
    ranks = rank_report(clf.embed(X_test), tols=(1e-2, 1e-3), shares=(0.99,))
    return {
        "train_accuracy": clf.score(X_train, y_train),
        "test_accuracy": clf.score(X_test, y_test),
        "z99": ranks["variance_rank"][0.99],
        "effective_rank": ranks["effective_rank"],
        "numerical_rank_1e-2": ranks["numerical_rank"][1e-2],
        "numerical_rank_1e-3": ranks["numerical_rank"][1e-3],
        "rmin": clf.n_components_,
        "logit_effective_rank": effective_rank(clf.decision_function(X_test)),
        "logit_norm": clf.logit_norm_,
        "n_samples": ranks["n_samples"],
    }


def table_of(records, n_seeds):
    """Return the mean and 95 % half-width of each measure by arm and temperature."""
    rows = []
    for arm, t in itertools.product(ARMS, TEMPERATURES):
        fits = [records[arm, t, seed] for seed in range(n_seeds)]
        row = {"arm": arm, "temperature": t, "n_samples": fits[0]["n_samples"]}
        for name in COLUMNS:
            mean, half = mean_interval([fit[name] for fit in fits])
            row[name] = {"mean": mean, "half_width": half}
        rows.append(row)
    return rows


def show(rows):
    headings = [f"{heading:>14}" for heading, _ in COLUMNS.values()]
    print(f"{'arm':<13}{'T':>6}", *headings)
    for row in rows:
        cells = [
            f"{row[name]['mean']:{form}} ±{row[name]['half_width']:{form}}"
            for name, (_, form) in COLUMNS.items()
        ]
        print(
            f"{row['arm']:<13}{row['temperature']:>6g}",
            *(f"{cell:>14}" for cell in cells),
            flush=True,
        )


def ratio_of_ranks(records, arm, n_seeds):
    """Return z99 at the highest temperature over that at 1, paired by seed."""
    high = max(TEMPERATURES)
    mean, half = mean_interval(
        [
            records[arm, high, seed]["z99"] / records[arm, 1.0, seed]["z99"]
            for seed in range(n_seeds)
        ]
    )
    return {"mean": mean, "half_width": half}


def main() -> None:
    p = parser(__doc__.splitlines()[0])
    p.set_defaults(threads=1)
    p.add_argument("--seeds", type=int, default=5)
    p.add_argument("--epochs", type=int, default=50)
    p.add_argument("--jobs", type=int, default=os.cpu_count())
    args = p.parse_args()
    torch.set_num_threads(args.threads)
    results = {}
    for name in ("gas_drift", "digits"):
        data = load(name, args.data)
        keys = [
            key
            for key in itertools.product(ARMS, TEMPERATURES, range(args.seeds))
            # At temperature 1 all arms are the same fit.
            if key[0] == "temperature" or key[1] != 1.0
        ]
        fits = Parallel(n_jobs=args.jobs)(
            delayed(measure)(data, ARMS[arm](t), seed, args.epochs, args.threads)
            for arm, t, seed in keys
        )
        records = dict(zip(keys, fits, strict=True))
        for arm, seed in itertools.product(ARMS, range(args.seeds)):
            records[arm, 1.0, seed] = records["temperature", 1.0, seed]
        rows = table_of(records, args.seeds)
        print(
            f"{name}: {len(data[0])} rows, ranks of {rows[0]['n_samples']} centred "
            f"test embeddings; mean ± 95 % interval of {args.seeds} seeds"
        )
        show(rows)
        ratios = {arm: ratio_of_ranks(records, arm, args.seeds) for arm in ARMS}
        for arm, ratio in ratios.items():
            print(
                f"{name}, {arm}: z99 at T={max(TEMPERATURES):g} is "
                f"{ratio['mean']:.2f} ±{ratio['half_width']:.2f} times that at T=1"
            )
        results[name] = {"z99_ratio": ratios, "table": rows}
    write(
        "temperature_rank",
        results,
        seeds=list(range(args.seeds)),
        epochs=args.epochs,
        hidden_layer_sizes=HIDDEN,
        base_learning_rate=RATE,
        gas_drift_batches=BATCHES,
        n_jobs=args.jobs,
        center=True,
    )


if __name__ == "__main__":
    main()
