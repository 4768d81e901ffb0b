"""What each lever does alone to accuracy under sensor drift.

The default network (T = 1) with one setting changed at a time, on the batches of
gas_drift that a default space may be made with: batch 5 plays no part. Differences are
paired by seed. Weight averages come from a callback: exponential with a decay of 0.99,
or the mean over the second half of the steps.
"""

from __future__ import annotations

import math
import warnings

import numpy as np
import torch
from _common import mean_interval, parser, plain_mlp, write
from joblib import Parallel, delayed
from sklearn.model_selection import train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, StandardScaler
from skorch.callbacks import Callback
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from sksoftrank.datasets import load_gas_drift

PROTOCOLS = {"2": ((2,), (3, 4)), "3": ((3,), (2, 4)), "2 and 3": ((2, 3), (4,))}
BASE_RATE = 1e-3
N_MEMBERS = 8


class WeightAverage(Callback):
    """Replace the weights by their average when training ends."""

    def __init__(self, decay=None, start=0.0):
        self.decay = decay
        self.start = start

    def on_train_begin(self, net, **kwargs):
        """Start from nothing."""
        average = None if self.decay is None else get_ema_multi_avg_fn(self.decay)
        self.model_ = AveragedModel(net.module_, multi_avg_fn=average)

    def on_batch_end(self, net, training, **kwargs):
        """Take the weights in."""
        if training and len(net.history) > self.start * net.max_epochs:
            self.model_.update_parameters(net.module_)

    def on_train_end(self, net, **kwargs):
        """Give the average back."""
        net.module_.load_state_dict(self.model_.module.state_dict())


def settings():
    """Return each lever's parameters; the rate is a factor on sqrt(T)."""
    levers = {"default": {}}
    for t in (0.3, 3.0, 10.0, 30.0, 100.0):
        levers[f"temperature {t:g}"] = {"temperature": t}
    for factor in (0.3, 3.0, 10.0):
        levers[f"learning rate x {factor:g}"] = {"factor": factor}
    for decay in (1e-3, 1e-2):
        levers[f"weight decay {decay:g}"] = {"weight_decay": decay}
    for p in (0.2, 0.5):
        levers[f"dropout {p:g}"] = {"dropout": p}
    for kind in ("layer", "batch"):
        for t in (1.0, 10.0, 100.0):
            levers[f"{kind} normalization, temperature {t:g}"] = {
                "normalization": kind,
                "temperature": t,
            }
    levers["exponential weight average"] = {"callbacks": [WeightAverage(0.99)]}
    levers["mean weight average"] = {"callbacks": [WeightAverage(start=0.5)]}
    return levers


def run(data, source, targets, params, n_members, seed):
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    batch = np.asarray(data.domains)
    chosen = np.isin(batch, source)
    X, X_id, y, y_id = train_test_split(
        data.X[chosen], data.y[chosen], train_size=0.8, random_state=seed
    )
    params = dict(params)
    rate = BASE_RATE * params.pop("factor", 1.0)
    rate *= math.sqrt(params.get("temperature", 1.0))
    clip = FunctionTransformer(np.clip, kw_args={"a_min": -5, "a_max": 5})
    scaler = make_pipeline(StandardScaler(), clip).fit(X)
    sets = {"id": (X_id, y_id)}
    sets |= {str(b): (data.X[batch == b], data.y[batch == b]) for b in targets}
    proba = dict.fromkeys(sets, 0.0)
    for member in range(n_members):
        clf = plain_mlp(
            max_epochs=20,
            learning_rate=rate,
            device="cpu",
            random_state=1000 * member + seed,
            **params,
        ).fit(scaler.transform(X), y)
        for name, (rows, _) in sets.items():
            proba[name] = proba[name] + clf.predict_proba(scaler.transform(rows))
    return {
        name: float(np.mean(clf.classes_[proba[name].argmax(axis=1)] == labels))
        for name, (_, labels) in sets.items()
    }


def main():
    p = parser(__doc__.splitlines()[0])
    p.add_argument("--seeds", type=int, default=16)
    args = p.parse_args()
    data = load_gas_drift(args.data)
    levers = {name: (params, 1) for name, params in settings().items()}
    levers[f"ensemble of {N_MEMBERS}"] = ({}, N_MEMBERS)
    results = {}
    for name, (source, targets) in PROTOCOLS.items():
        keys = [(lever, seed) for lever in levers for seed in range(args.seeds)]
        fits = Parallel(n_jobs=2)(
            delayed(run)(data, source, targets, *levers[lever], seed)
            for lever, seed in keys
        )
        records = dict(zip(keys, fits, strict=True))
        results[name] = {}
        for lever in levers:
            row = {}
            for where in ("id", *map(str, targets)):
                values, base = (
                    100 * np.array([records[k, s][where] for s in range(args.seeds)])
                    for k in (lever, "default")
                )
                row[where] = {
                    "accuracy": mean_interval(values),
                    "gain": mean_interval(values - base),
                }
            results[name][lever] = row
            cells = ", ".join(
                f"{where} {cell['accuracy'][0]:.1f} ({cell['gain'][0]:+.1f} ± "
                f"{cell['gain'][1]:.1f})"
                for where, cell in row.items()
            )
            print(f"source {name}, {lever}: {cells}", flush=True)
    write("ood_levers", results, seeds=args.seeds)


if __name__ == "__main__":
    main()
