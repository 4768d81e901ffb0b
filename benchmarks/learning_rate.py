"""Which power of the temperature keeps accuracy flattest at one learning rate.

Accuracy over a grid of temperatures and learning rates, with and without batch
normalisation, at two depths, on the tables that the defaults were chosen on; all
candidates of a table are one stack. For each power p of the temperature and each base
rate b, how much accuracy at the rate b T^p varies over the temperatures.
"""

from __future__ import annotations

import numpy as np
from _common import hold_threads, parser, write
from sklearn.model_selection import PredefinedSplit
from tables import CHOSEN_ON, load, split

from sksoftrank import SoftRankMLPClassifier, StackedGridSearchCV

TEMPERATURES = (0.3, 1.0, 3.0, 10.0, 30.0, 100.0)
RATES = (3e-4, 1e-3, 3e-3, 1e-2, 3e-2)
SHAPES = {
    f"{kind}, {depth} layers": {"hidden_layer_sizes": (128,) * depth, **params}
    for kind, params in {
        "batch norm": {"normalization": "batch", "dropout": 0.2},
        "no norm": {"normalization": None, "dropout": 0.1, "label_smoothing": 0.0},
    }.items()
    for depth in (2, 4)
}


def measure(params, args):
    """Return mean accuracies (temperatures, rates) in per cent."""
    grid = {"temperature": TEMPERATURES, "learning_rate": RATES}
    found = []
    for name in CHOSEN_ON:
        for seed in range(args.seeds):
            X, y, X_test, y_test = split(*load(name, args.data), args.rows, seed)
            fold = np.r_[np.full(len(y), -1), np.zeros(len(y_test), int)]
            search = StackedGridSearchCV(
                SoftRankMLPClassifier(**params, random_state=seed),
                {k: list(v) for k, v in grid.items()},
                cv=PredefinedSplit(fold),
                refit=False,
            ).fit(np.r_[X, X_test], np.r_[y, y_test])
            scores = dict(
                zip(
                    [
                        (p["temperature"], p["learning_rate"])
                        for p in search.cv_results_["params"]
                    ],
                    search.cv_results_["mean_test_score"],
                    strict=True,
                )
            )
            found.append([[scores[t, r] for r in RATES] for t in TEMPERATURES])
    return 100 * np.mean(found, axis=0)


def bases(power):
    """Return base rates whose rates lie within the grid at every temperature."""
    factors = np.array(TEMPERATURES) ** power
    candidates = np.geomspace(RATES[0], RATES[-1], 41)
    within = (candidates * factors.min() >= RATES[0] * 0.999) & (
        candidates * factors.max() <= RATES[-1] * 1.001
    )
    return candidates[within].tolist()


def along(table, base, power):
    """Return accuracies at the rate base T^power, between those of the grid."""
    wanted = np.log(base) + power * np.log(TEMPERATURES)
    return np.array(
        [
            np.interp(log_rate, np.log(RATES), row)
            for log_rate, row in zip(wanted, table, strict=True)
        ]
    )


def main():
    p = parser(__doc__)
    p.add_argument("--rows", type=int, default=1000)
    p.add_argument("--seeds", type=int, default=2)
    args = p.parse_args()
    hold_threads(args.threads)
    results = {}
    for name, params in SHAPES.items():
        table = measure(params, args)
        n_layers = len(params["hidden_layer_sizes"]) + 1
        powers = {"0": 0.0, "1/N": 1 / n_layers, "1/2": 0.5}
        flatness = {
            label: max(
                (
                    {
                        "base": base,
                        "mean": float(along(table, base, power).mean()),
                        "range": float(np.ptp(along(table, base, power))),
                    }
                    for base in bases(power)
                ),
                key=lambda row: row["mean"],
            )
            for label, power in powers.items()
        }
        results[name] = {"accuracy": table.tolist(), "powers": flatness}
        print(name, flatness, flush=True)
    write(
        "learning_rate",
        results,
        temperatures=TEMPERATURES,
        rates=RATES,
        rows=args.rows,
        seeds=args.seeds,
    )


if __name__ == "__main__":
    main()
