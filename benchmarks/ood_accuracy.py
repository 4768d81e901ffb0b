"""OODSearchCV against a tuned baseline and the usual ways, under shifts it never saw.

For each protocol of `_protocols.py` and each seed, a search over the default space
chooses by the searched domains; what it chooses is fitted again on all source rows, and
reported on domains that nobody chose by, and in distribution. So are its rivals, on the
same rows:

- baseline: the search's own, T = 1 at the rate that is best in distribution.
- first_default: 128-128, T = 1, no normalisation, Adam; its rate likewise.
- default: today's, SoftRankMLPClassifier().
- best_id: that one of the search's configurations that is best in distribution.
- oracle: that one of which the search's fit is best on the reported domains.
- recipe_a, recipe_b: the default with dropout .2; without normalisation, dropout .15
  and no label smoothing.
- hot, dual: 128-128 at T = 30; and at T = 1, the rate and the first weights scaled so
  that training is the same.
- random_forest, boosting; with --extra real_mlp (pytabkit) and id_search
  (OptunaSearchCV on accuracy in distribution, of as many fits).

Of each network five are fitted, with a seed each, and of those that harm is told by
ten: accuracy is the mean over them, so that a gain is not one network's luck, and
`<name>_ensemble` is that of the average of five.

A search does harm where its choice loses more than half a point to the baseline: under
some shifts the accuracies of two networks of one configuration are several points
apart. The share of the oracle is of the gains of networks that are all fitted again:
that fit which is the best of some hundred is so by luck as well. Beside it stands the
share of `oracle_gain`, that of the best fit itself over the baseline's.

Each cell (protocol, seed) is kept as it is done: a run that was cut off goes on. Rivals
that a kept cell lacks are added to it, and those named by --again measured anew; where
what the search gives is among them, the search is run again. With --sampler random,
searches whose configurations chance proposes are kept by themselves, without rivals.
"""

from __future__ import annotations

import json
import time
import warnings
from functools import partial

import numpy as np
import optuna
from _common import (
    PLAIN,
    RESULTS,
    default_device,
    hold_threads,
    mean_interval,
    parser,
    plain_mlp,
    write,
)
from _protocols import PROTOCOLS
from optuna.distributions import CategoricalDistribution, FloatDistribution
from optuna.samplers import RandomSampler
from sklearn.base import clone
from sklearn.ensemble import HistGradientBoostingClassifier, RandomForestClassifier
from sklearn.model_selection import StratifiedKFold
from sklearn.pipeline import Pipeline
from skorch.callbacks import Callback

from sksoftrank import OODSearchCV, StackedGridSearchCV
from sksoftrank.search.ood.search import as_ensemble

N_MEMBERS = 5
N_NETWORKS = 10
HARM = 0.5
RECIPE_B = {"normalization": None, "dropout": 0.15, "label_smoothing": 0.0}
FIRST_RATES = [3e-4, 1e-3, 3e-3, 1e-2]
SEARCHED = ("choice", "baseline", "best_id", "oracle")
RIVALS = ("baseline", "first_default", "default")
OF_MANY = ("choice", "baseline", "oracle")
OURS = ("default", "recipe_a", "recipe_b", "hot", "dual", "first_default")


class ScaleWeights(Callback):
    """Scale the first weights; biases are zero."""

    def __init__(self, factor):
        self.factor = factor

    def on_train_begin(self, net, **kwargs):
        """Scale all that the layers multiply by."""
        for parameter in net.module_.parameters():
            parameter.data.mul_(self.factor)


class Witness:
    """Accuracy, noting beside it what each fit scores on the reported rows.

    The search sees the accuracy alone.
    """

    def __init__(self, report):
        self.report = report
        self.fits = []
        self.last = None

    def __call__(self, estimator, X, y):
        """Score the rows; of an estimator that is new, the reported ones too."""
        if estimator is not self.last:
            self.last = estimator
            ood = np.mean([estimator.score(*rows) for rows in self.report.values()])
            self.fits.append((estimator.get_params(), float(ood)))
        return estimator.score(X, y)

    def scores(self, candidates):
        """Return the score of each configuration's first fit; NaN where it failed."""

        def score(params):
            wanted = params.items()
            for found, ood in self.fits:
                if all(found[name] == value for name, value in wanted):
                    return ood
            return np.nan

        return np.array([score(params) for params in candidates])


def of_networks(task, network, seed, n_more=0):
    """Return accuracies on each domain: mean of several networks, and their average.

    The average is of those without `n_more`.
    """
    network[-1].set_params(random_state=seed)
    ensemble = as_ensemble(network, N_MEMBERS).fit(*task.fit)
    members = [*ensemble[-1].estimators_]
    if n_more:
        more = clone(network)
        more[-1].set_params(random_state=1000 + seed)
        members += as_ensemble(more, n_more).fit(*task.fit)[-1].estimators_

    def accuracies(X, y):
        for step in ensemble[:-1]:
            X = step.transform(X)
        return float(np.mean([member.score(X, y) for member in members]))

    rows = domains(task)
    return (
        with_mean({name: accuracies(*own) for name, own in rows.items()}),
        with_mean({name: float(ensemble.score(*own)) for name, own in rows.items()}),
    )


def domains(task):
    return {"id": task.id, **task.report}


def with_mean(scores):
    """Add the mean over the reported domains."""
    ood = float(np.mean([value for name, value in scores.items() if name != "id"]))
    return {**scores, "ood": ood}


def tuned(task, clf, rates, seed):
    """Return a network at the learning rate that is best in distribution."""
    network = task.pipeline(clf)
    name = f"{network.steps[-1][0]}__learning_rate"
    cv = held_out_fifth(task, seed)
    search = StackedGridSearchCV(network, {name: rates}, cv=cv, refit=False)
    return clone(network).set_params(**search.fit(*task.fit).best_params_)


def held_out_fifth(task, seed):
    """Return one fold, as a search makes it: a class may have one row."""
    folds = StratifiedKFold(5, shuffle=True, random_state=seed)
    return [next(folds.split(*task.fit))]


def id_search(task, network, seed, n_trials):
    """Return what OptunaSearchCV chooses in distribution."""
    from optuna_integration import OptunaSearchCV

    space = {
        "temperature": FloatDistribution(0.3, 100.0, log=True),
        "learning_rate": FloatDistribution(3e-4, 3e-2, log=True),
        "weight_decay": FloatDistribution(1e-3, 0.3, log=True),
        "label_smoothing": FloatDistribution(0.0, 0.2),
        "dropout": FloatDistribution(0.0, 0.5),
        "normalization": CategoricalDistribution((None, "batch")),
    }
    prefix = f"{network.steps[-1][0]}__"
    search = OptunaSearchCV(
        clone(network).set_params(**{f"{prefix}random_state": seed}),
        {prefix + name: values for name, values in space.items()},
        n_trials=n_trials,
        cv=held_out_fifth(task, seed),
        random_state=seed,
        refit=False,
    ).fit(*task.fit)
    return clone(network).set_params(**search.best_params_)


def real_mlp(seed):
    from pytabkit import RealMLP_TD_S_Classifier

    return RealMLP_TD_S_Classifier(random_state=seed, n_cv=1, n_refit=0)


def rivals(protocol, task, seed, n_fits):
    """Return what fits each rival that our search did not choose.

    Each is a network, or a classifier.
    """
    network = task.pipeline(protocol.network())
    found = {"default": lambda: task.pipeline(protocol.network())}
    if protocol.image_shape is not None:
        return found
    # Three layers of weights.
    hot, root = 30.0, 30.0 ** (1 / 3)
    rate = 1e-3 * hot**0.5
    dual = {
        "learning_rate": rate / root,
        "callbacks": [ScaleWeights(1 / root)],
        "net_params": {"optimizer__eps": 1e-8 * root},
    }
    plain = protocol.network(**PLAIN, temperature=1.0, random_state=seed)
    clfs = {
        "recipe_a": protocol.network(dropout=0.2),
        "recipe_b": protocol.network(**RECIPE_B),
        "hot": plain_mlp(temperature=hot, learning_rate=rate),
        "dual": plain_mlp(**dual),
    }
    return found | {
        **{name: partial(task.pipeline, clf) for name, clf in clfs.items()},
        "first_default": lambda: tuned(task, plain, FIRST_RATES, seed),
        "id_search": lambda: id_search(task, network, seed, n_fits),
        "random_forest": lambda: RandomForestClassifier(random_state=seed),
        "boosting": lambda: HistGradientBoostingClassifier(random_state=seed),
        "real_mlp": lambda: real_mlp(seed),
    }


def score_networks(task, networks, seed):
    """Return the accuracies of several networks of each kind, and of their average."""
    scores, fitted = {}, {}
    for name, network in networks.items():
        n_more = N_NETWORKS - N_MEMBERS if name in OF_MANY else 0
        key = repr(network.get_params()), n_more
        if key not in fitted:  # The choice may be the baseline.
            fitted[key] = of_networks(task, network, seed, n_more)
        scores[name], scores[f"{name}_ensemble"] = fitted[key]
    return scores


def score_rivals(protocol, task, seed, names, n_fits):
    """Return the accuracies of those rivals that are named."""
    X, y = task.fit
    scores, networks = {}, {}
    for name, make in rivals(protocol, task, seed, n_fits).items():
        if name not in names:
            continue
        clf = make()
        if isinstance(clf, Pipeline):
            networks[name] = clf
            continue
        clf.fit(X.reshape(len(X), -1), y)
        scores[name] = with_mean(
            {d: float(clf.score(*rows)) for d, rows in domains(task).items()}
        )
    return scores | score_networks(task, networks, seed)


def measure(protocol, task, seed, n_trials, sampler):
    """Return a cell: the accuracies of what the search chose, and how it chose."""
    start = time.process_time()
    network = task.pipeline(protocol.network())
    witness = Witness(task.report)
    search = OODSearchCV(
        network,
        n_trials=n_trials,
        scoring=witness,
        shifts=task.shifts,
        sampler=sampler,
        refit=False,
        random_state=seed,
    ).fit(*task.fit, **task.foreign())
    seconds = time.process_time() - start

    results = search.cv_results_
    candidates, id_scores = results["params"], results["mean_test_id"]
    baseline = int(np.nanargmax(np.where(results["is_baseline"], id_scores, np.nan)))

    def trial(place):
        return clone(network).set_params(**candidates[place])

    ood = witness.scores(candidates)
    networks = {
        "choice": trial(search.best_index_),
        "baseline": trial(baseline),
        "best_id": trial(int(np.nanargmax(id_scores))),
        "oracle": trial(int(np.nanargmax(ood))),
    }
    return {
        "scores": score_networks(task, networks, seed),
        "choice": {
            "is_baseline": bool(results["is_baseline"][search.best_index_]),
            "params": {
                k.rpartition("__")[2]: v for k, v in search.best_params_.items()
            },
            "reason": search.best_reason_,
            "oracle_gain": float(np.nanmax(ood) - ood[baseline]),
            "choice_gain": float(ood[search.best_index_] - ood[baseline]),
            "search_seconds": seconds,
        },
        "seconds": time.process_time() - start,
    }


# -- Summary ---------------------------------------------------------------------------


def gains(cells, model, rival, where="ood"):
    """Return a model's gains over a rival, in points, one a seed."""
    return np.array(
        [
            100 * (cell["scores"][model][where] - cell["scores"][rival][where])
            for cell in cells
            if model in cell["scores"] and rival in cell["scores"]
        ]
    )


def summarize(cells):
    """Return figures by protocol, and means over the protocols of each group."""
    by_protocol = {}
    for key, cell in cells.items():
        by_protocol.setdefault(key.split("/")[0], []).append(cell)
    table = {name: _of_protocol(own) for name, own in by_protocol.items()}
    groups = {"all but null": ("studied", "untouched")}
    groups |= {group: (group,) for group in ("studied", "untouched", "null")}
    summary = {}
    for group, kinds in groups.items():
        names = [name for name in table if PROTOCOLS[name].group in kinds]
        if names:
            summary[group] = _of_group(
                {name: by_protocol[name] for name in names}, table
            )
    return {"groups": summary, "protocols": table}


def _of_protocol(cells):
    models = list(cells[0]["scores"])
    return {
        "n_seeds": len(cells),
        "accuracy": {
            model: {
                where: 100 * float(np.mean([c["scores"][model][where] for c in cells]))
                for where in ("id", "ood")
            }
            for model in models
            if all(model in cell["scores"] for cell in cells)
        },
        "gain": {
            model: {
                rival: mean_interval(own)
                for rival in RIVALS
                if len(own := gains(cells, model, rival))
            }
            for model in ("choice", "choice_ensemble")
        },
        "gain_in_distribution": mean_interval(gains(cells, "choice", "baseline", "id")),
        "harm_rate": float((gains(cells, "choice", "baseline") < -HARM).mean()),
        "n_baseline_kept": sum(cell["choice"]["is_baseline"] for cell in cells),
        **{
            name: 100 * float(np.mean([cell["choice"][name] for cell in cells]))
            for name in ("oracle_gain", "choice_gain")
        },
        "seconds": float(np.mean([cell["seconds"] for cell in cells])),
    }


def _of_group(by_protocol, table):
    """Return means over protocols of means over seeds; intervals over protocols."""
    cells = [cell for own in by_protocol.values() for cell in own]
    models = sorted({model for cell in cells for model in cell["scores"]})
    found = {}
    for model in ("choice", "choice_ensemble"):
        for rival in models:
            if rival.startswith("choice"):
                continue
            own = {
                name: float(values.mean())
                for name, part in by_protocol.items()
                if len(values := gains(part, model, rival))
            }
            largest = max(own, key=own.get)
            rest = [gain for name, gain in own.items() if name != largest]
            found[f"{model} over {rival}"] = {
                "gain": mean_interval(list(own.values())),
                "without_largest": mean_interval(rest) if rest else None,
                "largest": largest,
                "worst": [min(own, key=own.get), min(own.values())],
            }
    best, choice = (
        sum(table[name][key] for name in by_protocol)
        for key in ("oracle_gain", "choice_gain")
    )
    return {
        "gains": found,
        "harm_rate": float(
            np.mean(
                [gains([c], "choice", "baseline")[0] < -HARM for c in cells],
            )
        ),
        "n_searches": len(cells),
        "share_of_oracle": _share_of_oracle(by_protocol),
        "share_of_best_fit": choice / best if best else float("nan"),
    }


def _share_of_oracle(by_protocol):
    """Return what the choices gain over the baselines, of what the oracles gain."""
    sums = np.zeros(2)
    for cells in by_protocol.values():
        told = [cell for cell in cells if "oracle" in cell["scores"]]
        if told:
            sums += [gains(told, m, "baseline").mean() for m in ("choice", "oracle")]
    return float(sums[0] / sums[1]) if sums[1] else float("nan")


def report(summary):
    for name, row in summary["protocols"].items():
        accuracy = row["accuracy"]
        by_rival = ", ".join(
            f"{rival} {mean:+.2f} ± {half:.2f}"
            for rival, (mean, half) in row["gain"]["choice"].items()
        )
        print(
            f"{name} ({PROTOCOLS[name].group}, {row['n_seeds']} seeds): choice "
            f"{accuracy['choice']['ood']:.2f} (ID {accuracy['choice']['id']:.2f}), "
            f"over {by_rival}; harm {100 * row['harm_rate']:.0f} %, oracle "
            f"{row['oracle_gain']:+.2f}, kept {row['n_baseline_kept']}"
        )
    for group, row in summary["groups"].items():
        print(
            f"{group}: {row['n_searches']} searches, harm {100 * row['harm_rate']:.1f} "
            f"%, share of the oracle {row['share_of_oracle']:.2f}, of the best fit "
            f"{row['share_of_best_fit']:.2f}"
        )
        for pair, own in row["gains"].items():
            model, _, rival = pair.split()
            if rival.endswith("_ensemble") != model.endswith("_ensemble"):
                continue
            mean, half = own["gain"]
            rest, rest_half = own["without_largest"] or (float("nan"),) * 2
            print(
                f"  {pair:38s} {mean:+.2f} ± {half:.2f}; without {own['largest']} "
                f"{rest:+.2f} ± {rest_half:.2f}; worst {own['worst'][0]} "
                f"{own['worst'][1]:+.2f}"
            )


def main():
    p = parser(__doc__)
    p.add_argument("--protocols", nargs="+", default=list(PROTOCOLS), choices=PROTOCOLS)
    p.add_argument("--seeds", type=int, default=10)
    p.add_argument("--first-seed", type=int, default=0)
    p.add_argument("--trials", type=int, default=72)
    p.add_argument("--extra", nargs="+", default=[], choices=["real_mlp", "id_search"])
    p.add_argument("--sampler", default="tpe", choices=["tpe", "random"])
    p.add_argument("--again", nargs="+", default=[], help="rivals to measure anew")
    args = p.parse_args()
    hold_threads(args.threads)
    warnings.simplefilter("ignore")
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    is_random = args.sampler == "random"
    result = "ood_accuracy_random" if is_random else "ood_accuracy"
    path = RESULTS / f"{result}.json"
    cells = {}
    if path.exists():
        record = json.loads(path.read_text())
        if record["trials"] == args.trials:
            cells = record["results"]["cells"]
    names = {*OURS, "random_forest", "boosting", *args.extra}
    if is_random:
        names = {"default"}
    # All protocols with the first seed, then with the next one.
    for seed in range(args.first_seed, args.first_seed + args.seeds):
        for name in args.protocols:
            protocol, key = PROTOCOLS[name], f"{name}/{seed}"
            task = protocol.task(args.data, seed)
            old = cells.get(key, {"scores": {}})["scores"]
            is_new = bool(set(SEARCHED) - set(old) | set(SEARCHED) & set(args.again))
            if is_new:
                sampler = RandomSampler(seed=seed) if is_random else None
                cells[key] = measure(protocol, task, seed, args.trials, sampler)
            scores = cells[key]["scores"] = {**old, **cells[key]["scores"]}
            left = names - set(scores) | (names & set(args.again))
            # As many as our search makes: a quarter are of its second stage.
            new = score_rivals(protocol, task, seed, left, args.trials * 4 // 3)
            scores |= new
            if is_new or new:
                print(key, f"{cells[key]['seconds']:.0f} s", *new, flush=True)
                write(
                    result,
                    {"summary": summarize(cells), "cells": cells},
                    device=default_device(),
                    trials=args.trials,
                )
    report(summarize(cells))


if __name__ == "__main__":
    main()
