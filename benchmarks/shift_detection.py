"""Compare scores by how well they tell what a network gets wrong under a shift.

On the protocols of `_protocols.py`, a network learns the source; half of the held-out
rows of the source calibrate the eleven detectors, the other half and the reported
domains are scored. Of each domain:

- error_auroc: of the rows that are right against those that are wrong. 0.5 is chance.
- risk: the share of wrong ones in the 80 % of rows of the highest score; beside it
  `risk_of_all`, that of all rows.
- shift_auroc: of the source's rows against the domain's.

Means are over domains, then over seeds, then over protocols. The networks are 128-128
at T = 1 without normalisation, the default, and the one that the search of
`ood_accuracy.py` chose for this protocol and seed, where it is on record. Beside the
detectors stand two scores of five such networks: the entropy of their mean
(`ensemble_entropy`) and how far they disagree (`ensemble_disagreement`, the mutual
information between label and network; Lakshminarayanan et al. 2017, Smith & Gal 2018).

Each cell (protocol, network, seed) is kept as it is done. The default method is chosen
on the protocols whose place in the list is even, and confirmed on the others.
"""

from __future__ import annotations

import json
import warnings

import numpy as np
from _common import PLAIN, RESULTS, hold_threads, mean_interval, parser, write
from _protocols import PROTOCOLS
from detectors import METHODS
from scipy.special import entr
from sklearn.base import clone
from sklearn.metrics import roc_auc_score

from sksoftrank import OODDetector
from sksoftrank.search.ood.search import as_ensemble

ENSEMBLE = ("ensemble_entropy", "ensemble_disagreement")
SCORES = (*METHODS, *ENSEMBLE)
MEASURES = ("error_auroc", "risk", "shift_auroc")
NETWORKS = ("cold", "default", "choice")
COVERAGE = 0.8
NAMES = [
    name
    for name, protocol in PROTOCOLS.items()
    if protocol.group != "null" and protocol.image_shape is None
]
CHOSEN_ON = NAMES[::2]


def networks(protocol, task, name, seed):
    """Return the networks by name; the chosen one only where it is on record."""
    made = {
        "cold": protocol.network(**PLAIN, temperature=1.0),
        "default": protocol.network(),
    }
    path = RESULTS / "ood_accuracy.json"
    cells = json.loads(path.read_text())["results"]["cells"] if path.exists() else {}
    cell = cells.get(f"{name}/{seed}")
    if cell is not None:
        params = dict(cell["choice"]["params"])
        if isinstance(params.get("hidden_layer_sizes"), list):
            params["hidden_layer_sizes"] = tuple(params["hidden_layer_sizes"])
        made["choice"] = protocol.network(**params)
    return {name: task.pipeline(clf) for name, clf in made.items()}


def measure(task, network, seed):
    """Return the measures of each score, and the accuracies."""
    ensemble = clone(as_ensemble(network, 5))
    ensemble.set_params(**{f"{ensemble.steps[-1][0]}__random_state": seed})
    network = clone(network)
    network[-1].set_params(random_state=seed)
    X, y = task.id
    half = np.random.RandomState(seed).permutation(len(y))
    calibration, rest = half[: len(y) // 2], half[len(y) // 2 :]
    domains = {"id": (X[rest], y[rest]), **task.report}
    network.fit(*task.fit)
    ensemble.fit(*task.fit)
    hits = {d: network.predict(X) == y for d, (X, y) in domains.items()}
    scores = {}
    for method in METHODS:
        detector = OODDetector(network, method).fit(X[calibration], y[calibration])
        scores[method] = {
            d: detector.score_samples(rows) for d, (rows, _) in domains.items()
        }
    # Of these, right and wrong are the ensemble's.
    scores |= {name: {} for name in ENSEMBLE}
    hits_of_five = {}
    for d, (rows, labels) in domains.items():
        mean, one_by_one = probabilities(ensemble, rows)
        hits_of_five[d] = ensemble.classes_[mean.argmax(1)] == labels
        total = entr(mean).sum(1)
        scores["ensemble_entropy"][d] = -total
        within = entr(one_by_one).sum(2).mean(0)
        scores["ensemble_disagreement"][d] = within - total
    foreign = [d for d in domains if d != "id"]
    record = {
        "accuracy": float(np.mean([hits[d].mean() for d in foreign])),
        "id_accuracy": float(hits["id"].mean()),
        "ensemble_accuracy": float(np.mean([hits_of_five[d].mean() for d in foreign])),
    }
    for name, by_domain in scores.items():
        own = hits_of_five if name in ENSEMBLE else hits
        rows = [measures(by_domain[d], own[d], by_domain["id"]) for d in foreign]
        record[name] = {
            key: float(np.nanmean([row[key] for row in rows])) for key in rows[0]
        }
    return record


def probabilities(ensemble, X):
    """Return the mean (n, c) and the members' probabilities (members, n, c)."""
    for step in ensemble[:-1]:
        X = step.transform(X)
    each = np.stack([m.predict_proba(X) for m in ensemble[-1].estimators_])
    return each.mean(0), each


def measures(score, hit, score_id):
    """Return a domain's measures; NaN where no row is wrong, or none right."""
    kept = np.argsort(-score, kind="stable")[: round(COVERAGE * len(score))]
    is_source = np.repeat([True, False], [len(score_id), len(score)])
    return {
        "error_auroc": roc_auc_score(hit, score) if 0 < hit.mean() < 1 else np.nan,
        "risk": 1 - hit[kept].mean(),
        "risk_of_all": 1 - hit.mean(),
        "shift_auroc": roc_auc_score(is_source, np.concatenate([score_id, score])),
    }


def summarize(cells):
    """Return means over seeds and protocols, with what each score loses to energy."""
    summary = {}
    for network in NETWORKS:
        for half in ("all", "chosen on", "confirmed on"):
            names = [
                name
                for name in NAMES
                if f"{name}/{network}/0" in cells
                and (half == "all" or (name in CHOSEN_ON) == (half == "chosen on"))
            ]
            if not names:
                continue
            summary[f"{network}, {half}"] = rows = {"protocols": names}
            for score in SCORES:
                row = {}
                for key in MEASURES:
                    by_name = {
                        other: np.array(
                            [over_seeds(cells, n, network, other, key) for n in names]
                        )
                        for other in (score, "energy")
                    }
                    row[key] = float(by_name[score].mean())
                    row[f"{key}_less_energy"] = mean_interval(
                        by_name[score] - by_name["energy"]
                    )
                rows[score] = row
    return summary


def over_seeds(cells, name, network, score, key):
    own = [k for k in cells if k.startswith(f"{name}/{network}/")]
    return np.mean([cells[k][score][key] for k in own])


def main():
    p = parser(__doc__)
    p.add_argument("--protocols", nargs="+", default=NAMES, choices=NAMES)
    p.add_argument("--seeds", type=int, default=3)
    args = p.parse_args()
    hold_threads(args.threads)
    warnings.simplefilter("ignore")
    path = RESULTS / "shift_detection.json"
    cells = json.loads(path.read_text())["results"]["cells"] if path.exists() else {}
    for seed in range(args.seeds):
        for name in args.protocols:
            protocol = PROTOCOLS[name]
            task = protocol.task(args.data, seed)
            for kind, network in networks(protocol, task, name, seed).items():
                key = f"{name}/{kind}/{seed}"
                if key in cells:
                    continue
                cells[key] = cell = measure(task, network, seed)
                best = sorted(SCORES, key=lambda s, c=cell: -c[s]["error_auroc"])[:3]
                shown = [f"{s} {100 * cell[s]['error_auroc']:.1f}" for s in best]
                print(
                    f"{key}: accuracy {100 * cell['accuracy']:.1f}; AUROC of the "
                    f"error: {', '.join(shown)}",
                    flush=True,
                )
                results = {"summary": summarize(cells), "cells": cells}
                write("shift_detection", results, seeds=args.seeds)
    for where, rows in summarize(cells).items():
        print(f"{where}: {len(rows['protocols'])} protocols")
        for score in SCORES:
            row = rows[score]
            loss, half = row["error_auroc_less_energy"]
            print(
                f"  {score:22s} AUROC of the error {100 * row['error_auroc']:5.1f} "
                f"({100 * loss:+.1f} ± {100 * half:.1f} to energy), risk at 80 % "
                f"{100 * row['risk']:5.1f} %, AUROC of the shift "
                f"{100 * row['shift_auroc']:5.1f}"
            )


if __name__ == "__main__":
    main()
