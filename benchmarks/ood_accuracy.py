"""OODSearchCV against a tuned baseline and the usual ways, under shifts it never saw.

- gas_drift: batches 2 and 3 are the source, batch 4 is searched on, batch 5 reported.
- gas_drift_2: batch 2 is the source, batch 3 is searched on, batches 4 and 5 reported.
  (The default space was made with an eye on batch 4, and none on batch 5.)
- digits: noise, gain drift and defocus blur are searched on, five others reported.
- cifar10: one corruption of each family is searched on, the eleven others reported.

Each seed draws source rows of its own. Rivals, on the same rows: (baseline) the default
network at T = 1, its learning rate tuned on the in-distribution folds of our search,
which returns it where nothing surely beats it; (id_search)
OptunaSearchCV over the same space, which chooses on in-distribution accuracy;
(boosting) HistGradientBoostingClassifier; (ensemble) eight networks at the baseline's
setting. Beside them stand, but for cifar10, eight networks at our setting
(ours_ensemble) and, to see which parameter did the work, our setting with one parameter
at a time put back to the baseline's (less_<parameter>; the learning rate keeps its
ratio to sqrt(T)).

With --ensembles OODSearchCV searches over ensembles of eight instead, whose own
baseline is the ensemble at T = 1; the rivals are then the baseline and the ensemble.

Differences are paired by seed. No figure reported is of rows that a choice saw.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import optuna
import torch
from _common import mean_interval, parser, plain_mlp, write
from joblib import Parallel, delayed
from optuna.distributions import CategoricalDistribution, FloatDistribution
from optuna_integration import OptunaSearchCV
from sklearn.base import clone
from sklearn.datasets import load_digits
from sklearn.ensemble import HistGradientBoostingClassifier, VotingClassifier
from sklearn.model_selection import StratifiedShuffleSplit, train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, StandardScaler

from sksoftrank import (
    OODSearchCV,
    SoftRankCNNClassifier,
    SoftRankEnsembleClassifier,
    shifts,
)
from sksoftrank.corruptions import CORRUPTIONS, Corruption
from sksoftrank.datasets import load_cifar10, load_gas_drift

SPACE = {
    "temperature": FloatDistribution(0.3, 100.0, log=True),
    "learning_rate": FloatDistribution(3e-4, 1e-1, log=True),
    "weight_decay": FloatDistribution(1e-6, 1e-2, log=True),
    "dropout": FloatDistribution(0.0, 0.5),
}
N_MEMBERS = 8
N_BASELINES = 4  # Trials that the search begins with: T = 1, at four learning rates.
DIGITS_SEARCHED = [
    shifts.GaussianNoise(3, random_state=0),
    shifts.GainDrift(3, random_state=0),
    Corruption("defocus_blur", 3),
]
DIGITS_REPORTED = {
    "FeatureDropout": shifts.FeatureDropout(3, random_state=1),
    "OffsetDrift": shifts.OffsetDrift(3, random_state=1),
    **{kind: Corruption(kind, 3) for kind in ("contrast", "brightness", "pixelate")},
}
CIFAR_SEARCHED = ("gaussian_noise", "defocus_blur", "fog", "jpeg_compression")

Rows = tuple[Any, Any]


def clip(X):
    # A few spikes of the gas sensors, of up to fifty standard deviations.
    return np.clip(X, -5.0, 5.0)


def mlp(seed):
    return make_pipeline(
        StandardScaler(),
        FunctionTransformer(clip),
        plain_mlp(max_epochs=20, device="cpu", random_state=seed),
    )


def cnn(seed):
    return make_pipeline(
        SoftRankCNNClassifier(
            (16, 32, 64),
            input_shape=(3, 32, 32),
            augmentation=("flip", "shift"),
            max_epochs=8,
            device="cpu",
            random_state=seed,
        )
    )


@dataclass
class Task:
    """What a seed is given: rows to fit, to search on, and to report."""

    fit: Rows
    id: Rows
    report: dict[str, Rows]
    ood: dict[str, Any] = field(default_factory=dict)
    shifts: list[Any] | None = None
    make: Callable[[int], Any] = mlp
    normalizations: tuple[str | None, ...] = (None, "layer", "batch")
    cv: Any = 3
    n_seeds: int = 2

    def space(self, prefix):
        """Return what is searched, of a network whose parameters have this prefix."""
        space = {
            **SPACE,
            "normalization": CategoricalDistribution(self.normalizations),
        }
        return {prefix + name: values for name, values in space.items()}


def gas_drift(data, source, searched, reported):
    batch = np.asarray(data.domains)

    def rows(*batches):
        chosen = np.isin(batch, batches)
        return data.X[chosen], data.y[chosen]

    def task(seed):
        X, y = rows(*source)
        X, X_id, y, y_id = train_test_split(
            X, y, train_size=0.8, stratify=y, random_state=seed
        )
        X_ood, y_ood = rows(searched)
        return Task(
            fit=(X, y),
            id=(X_id, y_id),
            report={f"batch {b}": rows(b) for b in reported},
            ood={"X_ood": X_ood, "y_ood": y_ood},
        )

    return task


def digits():
    X, y = load_digits(return_X_y=True)
    X = X / 16

    def task(seed):
        X_fit, X_id, y_fit, y_id = train_test_split(
            X, y, train_size=0.8, stratify=y, random_state=seed
        )
        report = {
            name: (shift.fit(X_fit).transform(X_id), y_id)
            for name, shift in DIGITS_REPORTED.items()
        }
        return Task((X_fit, y_fit), (X_id, y_id), report, shifts=DIGITS_SEARCHED)

    return task


def cifar10(folder, n_images):
    data = load_cifar10(folder, n_train=8 * n_images, n_test=1000)
    X, X_test = (part.reshape(len(part), -1) for part in (data.X_train, data.X_test))
    reported = [kind for kind in CORRUPTIONS if kind not in CIFAR_SEARCHED]
    report = {
        kind: (Corruption(kind, random_state=1).fit_transform(X_test), data.y_test)
        for kind in reported
    }

    def task(seed):
        X_fit, _, y_fit, _ = train_test_split(
            X, data.y_train, train_size=n_images, stratify=data.y_train,
            random_state=seed,
        )  # fmt: skip
        return Task(
            (X_fit, y_fit),
            (X_test, data.y_test),
            report,
            shifts=[Corruption(kind, random_state=0) for kind in CIFAR_SEARCHED],
            make=cnn,
            normalizations=("batch", "group", None),
            cv=StratifiedShuffleSplit(1, test_size=0.25, random_state=seed),
            n_seeds=1,
        )

    return task


def voting(clf):
    """Return the mean of networks that differ in their seed."""
    members = []
    for seed in range(N_MEMBERS):
        member = clone(clf)
        member[-1].set_params(random_state=1000 + seed)
        members.append((str(seed), member))
    return VotingClassifier(members, voting="soft")


def put_back(name, params, baseline):
    """Return parameters with one put back to the baseline's."""
    back = {**params, name: baseline[name]}
    scale = math.sqrt(params["temperature"])
    if name == "temperature":
        back["learning_rate"] = params["learning_rate"] / scale
    if name == "learning_rate":
        back["learning_rate"] = baseline["learning_rate"] * scale
    return back


def rivals(task, network, baseline, seed, n_trials):
    """Return what a user would otherwise pick, fitted."""
    id_search = OptunaSearchCV(
        network,
        task.space(f"{network.steps[-1][0]}__"),
        n_trials=n_trials,
        cv=task.cv,
        random_state=seed,
        study=optuna.create_study(
            direction="maximize", sampler=optuna.samplers.TPESampler(seed=seed)
        ),
    )
    models = {
        "id_search": id_search,
        "boosting": HistGradientBoostingClassifier(random_state=seed),
        "ensemble": voting(baseline),
    }
    return {name: model.fit(*task.fit) for name, model in models.items()}


def parameters(network):
    """Return what is searched of a network's parameters."""
    params = network.get_params()
    return {name: params[name] for name in (*SPACE, "normalization")}


def tuned_baseline(search, network):
    """Return the network at T = 1 with the rate that does best in distribution."""
    results = search.cv_results_
    id_scores = np.where(results["is_baseline"], results["mean_test_id"], -np.inf)
    return clone(network).set_params(**results["params"][int(np.argmax(id_scores))])


def search(task, network, seed, n_trials, n_seeds):
    """Return our search, fitted, over the networks of an estimator's last step."""
    is_ensemble = isinstance(network[-1], SoftRankEnsembleClassifier)
    prefix = f"{network.steps[-1][0]}__{'estimator__' if is_ensemble else ''}"
    return OODSearchCV(
        network,
        task.space(prefix),
        n_trials=n_trials,
        n_seeds=n_seeds,
        cv=task.cv,
        shifts=task.shifts,
        random_state=seed,
    ).fit(*task.fit, **task.ood)


def of_eight(network, seed):
    """Return a pipeline that ends in eight such networks."""
    ensemble = SoftRankEnsembleClassifier(
        network[-1], n_estimators=N_MEMBERS, random_state=seed
    )
    return make_pipeline(*(clone(step) for step in network[:-1]), ensemble)


def run(make_task, seed, n_trials, ensembles):
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    task = make_task(seed)
    X, y = task.fit
    network = task.make(seed)
    ours = search(
        task, network, seed, N_BASELINES if ensembles else n_trials, task.n_seeds
    )
    baseline = tuned_baseline(ours, network).fit(X, y)
    models = {"baseline": baseline}
    if ensembles:
        # Eight networks have seeds enough.
        ours = search(task, of_eight(network, seed), seed, n_trials, n_seeds=1)
        models |= {"ours": ours, "ensemble": voting(baseline).fit(X, y)}
    else:
        models |= {"ours": ours} | rivals(task, network, baseline, seed, n_trials)
        if task.make is mlp:
            models["ours_ensemble"] = voting(ours.best_estimator_).fit(X, y)
    last = ours.best_estimator_[-1]
    own = parameters(last.estimator if ensembles else last)
    is_baseline = bool(ours.cv_results_["is_baseline"][ours.best_index_])
    if not ensembles and task.make is mlp:
        for name in own:
            models[f"less_{name}"] = ours
            if not is_baseline:
                params = put_back(name, own, parameters(baseline[-1]))
                clf = clone(network)
                clf[-1].set_params(**params)
                models[f"less_{name}"] = clf.fit(X, y)
    record = {
        model: {
            "id": clf.score(*task.id),
            **{where: clf.score(*rows) for where, rows in task.report.items()},
        }
        for model, clf in models.items()
    }
    for scores in record.values():
        scores["ood"] = float(np.mean([scores[where] for where in task.report]))
    record["choice"] = {
        "is_baseline": is_baseline,
        "reason": ours.best_reason_,
        "searched_score": float(ours.best_score_),
        **own,
    }
    return record


def summarize(name, records):
    """Print and return each model's scores and its gains over the baseline."""
    table = {}
    for model in records[0]:
        if model == "choice":
            continue
        # What a parameter brought is what ours has more than without it.
        rival = "ours" if model.startswith("less_") else "baseline"
        row = {}
        for where in records[0][model]:
            values = 100 * np.array([r[model][where] for r in records])
            base = 100 * np.array([r[rival][where] for r in records])
            row[where] = {
                "score": mean_interval(values),
                "gain": mean_interval(values - base),
                "wins": int((values > base).sum()),
                "losses": int((values < base).sum()),
            }
        table[model] = row
        gains = ", ".join(
            f"{where} {cell['score'][0]:.2f} ({cell['gain'][0]:+.2f} ± "
            f"{cell['gain'][1]:.2f}, {cell['wins']}:{cell['losses']})"
            for where, cell in row.items()
            if where in ("id", "ood") or where.startswith("batch")
        )
        print(f"{name} {model} over {rival}: {gains}", flush=True)
    choices = [r["choice"] for r in records]
    n_kept = sum(choice["is_baseline"] for choice in choices)
    print(f"{name}: the baseline was kept in {n_kept} of {len(records)}", flush=True)
    return {"table": table, "n_baseline_kept": n_kept, "choices": choices}


def main():
    p = parser(__doc__.splitlines()[0])
    sets = ["gas_drift", "gas_drift_2", "digits", "cifar10"]
    p.add_argument("--seeds", type=int, default=20)
    p.add_argument("--trials", type=int, default=32)
    p.add_argument("--images", type=int, default=1500)
    p.add_argument("--cifar-seeds", type=int, default=6)
    p.add_argument("--cifar-trials", type=int, default=10)
    p.add_argument("--ensembles", action="store_true")
    p.add_argument("--sets", nargs="+", default=sets, choices=sets)
    args = p.parse_args()
    for name in args.sets:
        n_seeds, n_trials = args.seeds, args.trials
        if name.startswith("gas_drift"):
            data = load_gas_drift(args.data)
            protocol = {
                "gas_drift": ((2, 3), 4, (5,)),
                "gas_drift_2": ((2,), 3, (4, 5)),
            }
            make_task = gas_drift(data, *protocol[name])
        elif name == "digits":
            make_task = digits()
        else:
            make_task = cifar10(args.data, args.images)
            n_seeds, n_trials = args.cifar_seeds, args.cifar_trials
        records = Parallel(n_jobs=2)(
            delayed(run)(make_task, seed, n_trials, args.ensembles)
            for seed in range(n_seeds)
        )
        write(
            f"ood_accuracy_{name}" + ("_ensembles" if args.ensembles else ""),
            summarize(name, records),
            seeds=n_seeds,
            trials=n_trials,
            images=args.images if name == "cifar10" else None,
        )


if __name__ == "__main__":
    main()
