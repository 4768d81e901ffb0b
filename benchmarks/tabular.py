"""The tabular transformer against the MLP and scikit-learn's gradient boosting.

On the gas sensors, batches 2 and 3 pooled (a random quarter held out, and batches 4 and
5 as they drifted), and on digits: accuracy of each with its defaults, over seeds of
split and network.
"""

from __future__ import annotations

import numpy as np
import torch
from _common import mean_interval, parser, write
from joblib import Parallel, delayed
from sklearn.datasets import load_digits
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.model_selection import train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from sksoftrank import SoftRankMLPClassifier, SoftRankTransformerClassifier
from sksoftrank.datasets import load_gas_drift

MODELS = {
    "transformer": lambda seed: SoftRankTransformerClassifier(
        32, max_epochs=20, device="cpu", random_state=seed
    ),
    "mlp": lambda seed: SoftRankMLPClassifier(device="cpu", random_state=seed),
    "boosting": lambda seed: HistGradientBoostingClassifier(random_state=seed),
}


def measure(model, data, seed):
    torch.set_num_threads(1)
    X, y, later = data
    X_train, X_test, y_train, y_test = train_test_split(
        X, y, test_size=0.25, stratify=y, random_state=seed
    )
    clf = make_pipeline(StandardScaler(), MODELS[model](seed))
    clf.fit(X_train.astype(np.float32), y_train)
    return {
        "in distribution": clf.score(X_test, y_test),
        **{name: clf.score(*rows) for name, rows in later.items()},
    }


def main():
    p = parser(__doc__.splitlines()[0])
    p.add_argument("--seeds", type=int, default=3)
    args = p.parse_args()
    gas = load_gas_drift(args.data)
    of = {batch: gas.domains == batch for batch in (4, 5)}
    source = np.isin(gas.domains, (2, 3))
    later = {f"batch {b}": (gas.X[rows], gas.y[rows]) for b, rows in of.items()}
    X, y = load_digits(return_X_y=True)
    results = {}
    for name, data in {
        "gas_drift": (gas.X[source], gas.y[source], later),
        "digits": (X, y, {}),
    }.items():
        keys = [(model, seed) for model in MODELS for seed in range(args.seeds)]
        fits = Parallel(n_jobs=2)(
            delayed(measure)(model, data, seed) for model, seed in keys
        )
        results[name] = {}
        for model in MODELS:
            own = [fit for (m, _), fit in zip(keys, fits, strict=True) if m == model]
            results[name][model] = {
                where: mean_interval([fit[where] for fit in own]) for where in own[0]
            }
            cells = [
                f"{where} {100 * mean:.2f} ± {100 * half:.2f}"
                for where, (mean, half) in results[name][model].items()
            ]
            print(f"{name} {model}:", ", ".join(cells), flush=True)
    write("tabular", results, seeds=list(range(args.seeds)))


if __name__ == "__main__":
    main()
