"""OODSearchCV against a tuned baseline and the usual ways, under shifts it never saw.

- gas_drift: batches 2 and 3 are the source, batch 4 is searched on, batch 5 reported.
- digits: GaussianNoise, GainDrift and Blur are searched on, the others reported.

Each seed draws 80 % of the source rows. Rivals, on the same rows: (baseline) at T =
1, its learning rate tuned on in-distribution folds; (id_search) OptunaSearchCV over the
same space, which chooses on in-distribution accuracy; (boosting)
HistGradientBoostingClassifier; (ensemble) eight members at the baseline's setting.
Differences are paired by seed. No figure reported is of rows that a choice saw.
"""

from __future__ import annotations

import warnings

import numpy as np
import optuna
import torch
from _common import mean_interval, parser, write
from joblib import Parallel, delayed
from optuna.distributions import FloatDistribution
from optuna_integration import OptunaSearchCV
from sklearn.datasets import load_digits
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.model_selection import train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, StandardScaler

from sksoftrank import (
    OODSearchCV,
    SoftRankEnsembleClassifier,
    SoftRankMLPClassifier,
    StackedGridSearchCV,
    shifts,
)
from sksoftrank.datasets import load_gas_drift

RATES = [3e-4, 1e-3, 3e-3]
SPACE = {
    "temperature": FloatDistribution(0.3, 100.0, log=True),
    "learning_rate": FloatDistribution(3e-4, 3e-2, log=True),
    "weight_decay": FloatDistribution(1e-6, 1e-2, log=True),
    "dropout": FloatDistribution(0.0, 0.5),
}
STEP = "softrankmlpclassifier__"
IMAGE = {"image_shape": (8, 8)}
SEARCHED = [
    shifts.GaussianNoise(3, random_state=0),
    shifts.GainDrift(3, random_state=0),
    shifts.Blur(3, **IMAGE),
]
REPORTED = [
    shifts.FeatureDropout(3, random_state=1),
    shifts.OffsetDrift(3, random_state=1),
    shifts.Contrast(3, **IMAGE),
    shifts.Brightness(3, **IMAGE),
    shifts.Pixelate(3, **IMAGE),
]


def clip(X):
    # A few spikes of the gas sensors, of up to fifty standard deviations.
    return np.clip(X, -5.0, 5.0)


def network(seed, epochs):
    return make_pipeline(
        StandardScaler(),
        FunctionTransformer(clip),
        SoftRankMLPClassifier(max_epochs=epochs, device="cpu", random_state=seed),
    )


def prepare(name, data, seed):
    """Return source rows, what to search on, and what to report, of one seed."""
    if name == "gas_drift":
        batch = data.domains
        source = np.isin(batch, (2, 3))
        X, X_id, y, y_id = train_test_split(
            data.X[source],
            data.y[source],
            train_size=0.8,
            stratify=data.y[source],
            random_state=seed,
        )
        ood = {
            "X_ood": data.X[batch == 4],
            "y_ood": data.y[batch == 4],
        }
        report = {"batch 5": (data.X[batch == 5], data.y[batch == 5])}
        return (X, y), (X_id, y_id), {"fit": ood, "shifts": None}, report
    X, X_id, y, y_id = train_test_split(
        data.data / 16,
        data.target,
        train_size=0.8,
        stratify=data.target,
        random_state=seed,
    )
    report = {
        type(shift).__name__: (shift.fit(X).transform(X_id), y_id) for shift in REPORTED
    }
    return (X, y), (X_id, y_id), {"fit": {}, "shifts": SEARCHED}, report


def run(name, data, seed, args):
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    (X, y), in_distribution, where, report = prepare(name, data, seed)
    baseline = StackedGridSearchCV(
        network(seed, args.epochs), {f"{STEP}learning_rate": RATES}, cv=3
    ).fit(X, y)
    space = {STEP + key: value for key, value in SPACE.items()}
    ours = OODSearchCV(
        network(seed, args.epochs),
        space,
        n_trials=args.trials,
        n_seeds=2,
        cv=3,
        shifts=where["shifts"],
        random_state=seed,
    ).fit(X, y, **where["fit"])
    id_search = OptunaSearchCV(
        network(seed, args.epochs),
        space,
        n_trials=args.trials,
        cv=3,
        random_state=seed,
        study=optuna.create_study(
            direction="maximize", sampler=optuna.samplers.TPESampler(seed=seed)
        ),
    ).fit(X, y)
    boosting = HistGradientBoostingClassifier(random_state=seed).fit(X, y)
    ensemble = make_pipeline(
        StandardScaler(),
        FunctionTransformer(clip),
        SoftRankEnsembleClassifier(
            baseline.best_estimator_[-1], n_estimators=8, random_state=seed
        ),
    ).fit(X, y)
    models = {
        "baseline": baseline,
        "ours": ours,
        "id_search": id_search,
        "boosting": boosting,
        "ensemble": ensemble,
    }
    record = {
        model: {
            "id": clf.score(*in_distribution),
            "ood": float(np.mean([clf.score(*rows) for rows in report.values()])),
        }
        for model, clf in models.items()
    }
    record["choice"] = {
        "reason": ours.best_reason_,
        "params": {k: float(v) for k, v in ours.best_params_.items()},
    }
    return record


def main():
    p = parser(__doc__.splitlines()[0])
    p.add_argument("--seeds", type=int, default=20)
    p.add_argument("--trials", type=int, default=24)
    p.add_argument("--epochs", type=int, default=20)
    p.add_argument("--sets", nargs="+", default=["gas_drift", "digits"])
    args = p.parse_args()
    data = {"gas_drift": load_gas_drift(args.data), "digits": load_digits()}
    results = {}
    for name in args.sets:
        records = Parallel(n_jobs=2)(
            delayed(run)(name, data[name], seed, args) for seed in range(args.seeds)
        )
        models = [model for model in records[0] if model != "choice"]
        table = {}
        for model in models:
            row = {}
            for where in ("id", "ood"):
                values = 100 * np.array([r[model][where] for r in records])
                base = 100 * np.array([r["baseline"][where] for r in records])
                row[where] = mean_interval(values)
                row[f"{where}_gain"] = mean_interval(values - base)
                row[f"{where}_wins"] = int((values > base).sum())
                row[f"{where}_losses"] = int((values < base).sum())
            table[model] = row
            print(
                f"{name} {model}: id {row['id'][0]:.2f}, ood {row['ood'][0]:.2f}, over "
                f"the baseline {row['ood_gain'][0]:+.2f} ± {row['ood_gain'][1]:.2f} "
                f"({row['ood_wins']} wins, {row['ood_losses']} losses)",
                flush=True,
            )
        n_kept = sum("baseline" in r["choice"]["reason"][:60] for r in records)
        results[name] = {"table": table, "choices": [r["choice"] for r in records]}
        print(f"{name}: reasons mention the baseline at first in {n_kept}", flush=True)
    write(
        "ood_accuracy",
        results,
        seeds=args.seeds,
        trials=args.trials,
        epochs=args.epochs,
    )


if __name__ == "__main__":
    main()
