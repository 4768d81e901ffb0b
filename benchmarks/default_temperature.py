"""What the default temperature of 10 changes against 1 and others, also under shift.

The recipe at a fixed strength (dropout .2), at one learning rate for all temperatures,
is fitted on the source of each protocol of `_protocols.py`; accuracy is of the source's
held-out rows and of the reported domains, and the embedding's size is what `transform`
keeps (`n_components_`: the fewest directions that keep the accuracy) and the directions
of 99 % of the variance of the held-out rows. Differences are of pairs of the same seed;
a protocol's is the mean over seeds, and intervals are over protocols.
"""

from __future__ import annotations

import json

import numpy as np
from _common import RESULTS, hold_threads, mean_interval, parser, write
from _protocols import PROTOCOLS

from sksoftrank.rank import variance_rank

TEMPERATURES = (1.0, 3.0, 10.0, 30.0, 100.0)
MEASURES = ("id", "ood", "n_components", "variance_rank")
NAMES = [name for name, protocol in PROTOCOLS.items() if protocol.image_shape is None]


def measure(protocol, task, temperature, seed):
    clf = protocol.network(temperature=temperature, dropout=0.2, random_state=seed)
    network = task.pipeline(clf).fit(*task.fit)
    X, y = task.id
    Z = network[-1].embed(network[:-1].transform(X) if len(network) > 1 else X)
    return {
        "id": float(network.score(X, y)),
        "ood": float(np.mean([network.score(*rows) for rows in task.report.values()])),
        "n_components": network[-1].n_components_,
        "variance_rank": variance_rank(Z),
    }


def summarize(cells):
    """Return means by temperature, and what each changes against a temperature of 1."""
    names = [n for n in NAMES if f"{n}/1/0" in cells]
    values = {
        (t, key): np.array(
            [
                np.mean(
                    [c[key] for k, c in cells.items() if k.startswith(f"{n}/{t:g}/")]
                )
                for n in names
            ]
        )
        for t in TEMPERATURES
        for key in MEASURES
    }
    summary = {"protocols": names}
    for t in TEMPERATURES:
        row = {key: float(values[t, key].mean()) for key in MEASURES}
        for key in MEASURES:
            own, cold = values[t, key], values[1.0, key]
            is_size = key in ("n_components", "variance_rank")
            # Sizes by their ratio: those of wide embeddings would drown the others.
            difference = np.log(own / cold) if is_size else own - cold
            row[f"{key}_{'log_ratio' if is_size else 'gain'}"] = mean_interval(
                difference
            )
        summary[f"{t:g}"] = row
    return summary


def main():
    p = parser(__doc__.splitlines()[0])
    p.add_argument("--seeds", type=int, default=3)
    args = p.parse_args()
    hold_threads(args.threads)
    path = RESULTS / "default_temperature.json"
    cells = json.loads(path.read_text())["results"]["cells"] if path.exists() else {}
    for name in NAMES:
        protocol = PROTOCOLS[name]
        for seed in range(args.seeds):
            keys = {t: f"{name}/{t:g}/{seed}" for t in TEMPERATURES}
            left = [t for t in TEMPERATURES if keys[t] not in cells]
            task = protocol.task(args.data, seed) if left else None
            for t in left:
                cells[keys[t]] = measure(protocol, task, t, seed)
        results = {"summary": summarize(cells), "cells": cells}
        write("default_temperature", results, seeds=args.seeds)
    for t in TEMPERATURES:
        row = results["summary"][f"{t:g}"]
        gains = {k: [100 * v for v in row[f"{k}_gain"]] for k in ("id", "ood")}
        sizes = {k: row[f"{k}_log_ratio"] for k in ("n_components", "variance_rank")}
        print(
            f"T={t:g} against 1: in distribution {gains['id'][0]:+.2f} ± "
            f"{gains['id'][1]:.2f}, under shift {gains['ood'][0]:+.2f} ± "
            f"{gains['ood'][1]:.2f} points; directions kept times "
            + ", of 99 % of the variance times ".join(
                f"{np.exp(m):.2f} ({np.exp(m - h):.2f} to {np.exp(m + h):.2f})"
                for m, h in sizes.values()
            )
        )


if __name__ == "__main__":
    main()
