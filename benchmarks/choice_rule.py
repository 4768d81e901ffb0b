"""How OODSearchCV's rule of choice does, over whole searches drawn from stored fits.

For each protocol of `_protocols.py`, configurations are drawn at random from the
default space, beside the baselines and recipes that a search begins with. Each is
fitted as a search would, with two seeds, and the best ones, which alone can become
finalists, with more; accuracy in distribution, on each searched and each reported
domain is kept. From these, searches are drawn again and again: configurations without
replacement, a first seed, fresh seeds for the finalists, which the package's own
`pick_finalists` and `choose` pick and judge. One number at a time is changed from the
default; a search always costs as many fits as its budget says, so that more finalists
or seeds leave fewer configurations.

Reported are the gain over the baseline on the reported domains (means over all seeds of
either configuration, in points), the share of the oracle's (which picks the best of the
same configurations by the reported domains), and harm, the share of searches that lose
more than half a point. A default is developed on the protocols that were studied before
and confirmed on the untouched ones; nulls stand apart.

A TPE proposes better configurations than chance does: `ood_accuracy.py` runs whole
searches.
"""

from __future__ import annotations

import time
import warnings
import zipfile

import joblib
import numpy as np
import optuna
from _common import RESULTS, default_device, hold_threads, mean_interval, parser, write
from _protocols import PROTOCOLS
from optuna.samplers import RandomSampler

from sksoftrank.search.ood.choice import Criterion, Outcome, choose, pick_finalists
from sksoftrank.search.ood.evaluation import Evaluation
from sksoftrank.search.ood.protocol import Scored, make_plan
from sksoftrank.search.ood.space import BASELINE, default_queue, make_space

HARM = 0.005
N_FIRST = 2  # Seeds that all configurations are fitted with.
BATCH = 16
DEFAULT = {
    "min_gain": 0.005,
    "ood_weight": 0.5,
    "n_finalists": 5,
    "n_final_seeds": 4,
    "budget": 96,
}
GRID = {
    "min_gain": (0.0, 0.0025, 0.005, 0.0075, 0.01),
    "ood_weight": (0.25, 0.5, 0.75, 1.0),
    "n_finalists": (3, 5, 8),
    "n_final_seeds": (2, 4, 8),
    "budget": (48, 96, 192),
}
HALVES = {"studied": "development", "untouched": "confirmation", "null": "null"}


class Fits:
    """Scores of a protocol's fits, (configurations, seeds, 1 + domains).

    In distribution first, then the searched domains, then the reported ones; NaN where
    there is no fit.
    """

    def __init__(self, name, folder, draw, n_configs, n_seeds):
        protocol = PROTOCOLS[name]
        task = protocol.task(folder, draw)
        self.network = task.pipeline(protocol.network())
        X, y = task.fit
        plan = make_plan(X, y, shifts=task.shifts, **task.foreign(), seed=draw)
        self.n_searched = len(plan.domains)
        for split in plan.splits:
            for place, rows in enumerate(task.report.values()):
                split.ood[self.n_searched + place] = Scored(*rows, None, None)
        plan.domains += list(task.report)
        n_rows = len(plan.splits[0].train)
        space = make_space(None, self.network, n_rows)
        queue = default_queue(None, self.network, space)
        self.n_queued = len(queue)
        self.candidates = propose(space, queue, n_configs, draw)
        self.is_baseline = np.zeros(n_configs, bool)
        self.is_baseline[: len(queue)] = [name.startswith(BASELINE) for name in queue]
        # Of another space, or other rows, there are no fits yet.
        what = repr(self.candidates[: len(queue) + 1]), X, y, plan.domains
        self.key = f"{name}/{draw}/{joblib.hash(what)[:8]}"
        self.seeds = [1000 * draw + seed for seed in range(n_seeds)]
        self.scores = np.full(
            (n_configs, n_seeds, 1 + len(plan.domains)), np.nan, np.float32
        )
        self.evaluation = Evaluation(
            base_estimator=self.network,
            X=X,
            y=y,
            plan=plan,
            fit_params={},
            scorer=lambda estimator, X, y: estimator.score(X, y),
            score_params={},
            basis_rows=0,
            error_score="raise",
            n_jobs=1,
        )

    def fill(self, stored, keep):
        """Fit what is not stored, and `keep` the scores batch by batch."""
        if stored is not None:
            # Of a run with other numbers: what both have.
            n, m = np.minimum(stored.shape[:2], self.scores.shape[:2])
            self.scores[:n, :m] = stored[:n, :m]
        first, more = range(N_FIRST), range(N_FIRST, len(self.seeds))
        self._fit(range(len(self.candidates)), first, keep)
        self._fit(self.pool(), more, keep)

    def _fit(self, places, seeds, keep):
        is_missing = np.isnan(self.scores[:, seeds, 0]).any(axis=1)
        places = [k for k in places if is_missing[k]]
        for start in range(0, len(places) if len(seeds) else 0, BATCH):
            batch = places[start : start + BATCH]
            found = self.evaluation.run(
                [self.candidates[k] for k in batch], [self.seeds[s] for s in seeds]
            )
            for place, trial in zip(batch, found, strict=True):
                own = np.column_stack([trial.outcome.id, trial.outcome.ood])
                self.scores[place, list(seeds)] = own
            keep(self.scores)

    def pool(self):
        """Return the baselines and those that may become finalists of a search.

        The best three tenths, by any of the weights and first seeds.
        """
        chosen = set(np.flatnonzero(self.is_baseline).tolist())
        n_best = len(self.candidates) * 3 // 10
        for weight in GRID["ood_weight"]:
            for seed in range(N_FIRST):
                ood = self.scores[:, seed, 1 : 1 + self.n_searched].mean(axis=1)
                score = weight * ood + (1 - weight) * self.scores[:, seed, 0]
                chosen |= set(np.argsort(-score)[:n_best].tolist())
        return sorted(chosen)

    def outcome(self, place, seeds):
        """Return what a search would know of a configuration with these seeds."""
        scores = self.scores[place, seeds].astype(np.float64)
        return Outcome(
            scores[:, 1 : 1 + self.n_searched],
            scores[:, 0],
            is_baseline=bool(self.is_baseline[place]),
        )

    def searches(self, setting, n_searches, rng):
        """Return gains and the oracle's gains of so many searches; None for none.

        That is where there are too few configurations or seeds.
        """
        n_fresh, n_finalists = setting["n_final_seeds"], setting["n_finalists"]
        n_trials = setting["budget"] - n_fresh * (1 + n_finalists)
        n_configs, n_seeds = self.scores.shape[:2]
        if n_trials > n_configs or n_fresh >= n_seeds or n_trials <= self.n_queued:
            return None
        criterion = Criterion(setting["ood_weight"])
        truth = np.nanmean(self.scores[..., 1 + self.n_searched :], axis=(1, 2))

        firsts = [
            [self.outcome(k, [seed]) for k in range(n_configs)]
            for seed in range(N_FIRST)
        ]
        is_whole = ~np.isnan(self.scores[..., 0]).any(axis=1)
        found = []
        for _ in range(n_searches):
            first = int(rng.integers(N_FIRST))
            fresh = rng.permutation([s for s in range(n_seeds) if s != first])[:n_fresh]
            drawn = self.n_queued + rng.permutation(n_configs - self.n_queued)
            places = [*range(self.n_queued), *drawn[: n_trials - self.n_queued]]
            outcomes = [firsts[first][k] for k in places]
            finalists = pick_finalists(outcomes, n_finalists, criterion)
            finals = {
                k: self.outcome(places[k], fresh)
                for k in finalists
                if is_whole[places[k]]
            }
            choice = choose(outcomes, finals, criterion, min_gain=setting["min_gain"])
            base = truth[places[finalists[0]]]
            found.append(
                (truth[places[choice.index]] - base, truth[places].max() - base)
            )
        return np.array(found).T


def propose(space, queue, n_configs, seed):
    """Return what a search begins with, and random configurations."""
    candidates = [
        space.suggest(optuna.trial.FixedTrial(queued.point))
        if queued.params is None
        else queued.params
        for queued in queue.values()
    ]
    study = optuna.create_study(sampler=RandomSampler(seed=seed))
    while len(candidates) < n_configs:
        candidates.append(space.suggest(study.ask()))
    return candidates


def load(path):
    if not path.exists():
        return {}
    try:
        with np.load(path) as arrays:
            return dict(arrays)
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise SystemExit(f"{path} can't be read: {error}. Delete it.") from error


def settings():
    """Yield each setting, and what is changed in it."""
    yield "default", DEFAULT
    for name, values in GRID.items():
        for value in values:
            if value != DEFAULT[name]:
                yield f"{name}={value:g}", {**DEFAULT, name: value}


def simulate(all_fits, n_searches):
    """Return the figures of each setting on each protocol."""
    table = {}
    for label, setting in settings():
        rows = {}
        for name, draws in all_fits.items():
            own = [
                # The same searches for each setting, as far as they can be.
                fits.searches(setting, n_searches, np.random.default_rng(draw))
                for draw, fits in enumerate(draws)
            ]
            if all(found is not None for found in own):
                gain, oracle = np.concatenate(own, axis=1)
                rows[name] = {
                    "gain": 100 * float(gain.mean()),
                    "oracle": 100 * float(oracle.mean()),
                    "harm": float((gain < -HARM).mean()),
                    "kept": float((gain == 0).mean()),
                }
        table[label] = rows
    return table


def summarize(table):
    """Return means over the protocols of each half."""
    summary = {}
    for label, rows in table.items():
        summary[label] = {}
        for group, half in HALVES.items():
            own = {k: row for k, row in rows.items() if PROTOCOLS[k].group == group}
            if not own:
                continue
            gains = {name: row["gain"] for name, row in own.items()}
            rest = sorted(gains.values())[:-1]
            oracle = sum(row["oracle"] for row in own.values())
            summary[label][half] = {
                "gain": mean_interval(list(gains.values())),
                "without_largest": float(np.mean(rest)) if rest else None,
                "share_of_oracle": sum(gains.values()) / oracle,
                "harm": float(np.mean([row["harm"] for row in own.values()])),
                "worst": [min(gains, key=gains.get), min(gains.values())],
            }
    return summary


def report(table, summary):
    for name, row in table["default"].items():
        print(
            f"{name} ({HALVES[PROTOCOLS[name].group]}): gain {row['gain']:+.2f} of "
            f"{row['oracle']:.2f}, harm {100 * row['harm']:.1f} %, kept "
            f"{100 * row['kept']:.0f} %"
        )
    for half in HALVES.values():
        print(half)
        for label, by_half in summary.items():
            if half not in by_half:
                continue
            row = by_half[half]
            mean, interval = row["gain"]
            rest = row["without_largest"]
            rest = float("nan") if rest is None else rest
            print(
                f"  {label:18s} gain {mean:+.2f} ± {interval:.2f}"
                f" ({rest:+.2f} without the largest), "
                f"oracle {100 * row['share_of_oracle']:.0f} %, harm "
                f"{100 * row['harm']:.1f} %, worst {row['worst'][0]} "
                f"{row['worst'][1]:+.2f}"
            )


def main():
    p = parser(__doc__)
    names = [name for name, own in PROTOCOLS.items() if own.image_shape is None]
    # Images take minutes a batch: on demand.
    p.add_argument("--protocols", nargs="+", default=names, choices=PROTOCOLS)
    p.add_argument("--configs", type=int, default=100)
    p.add_argument("--seeds", type=int, default=5)
    p.add_argument("--draws", type=int, default=1, help="draws of source rows")
    p.add_argument("--searches", type=int, default=200)
    args = p.parse_args()
    hold_threads(args.threads)
    warnings.simplefilter("ignore")
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    path = RESULTS / "choice_rule_fits.npz"
    RESULTS.mkdir(exist_ok=True)
    stored = load(path)
    all_fits = {name: [] for name in args.protocols}
    for draw in range(args.draws):
        for name in args.protocols:
            fits = Fits(name, args.data, draw, args.configs, args.seeds)

            def keep(scores, key=fits.key):
                stored[key] = scores
                np.savez_compressed(path, **stored)

            start = time.process_time()
            fits.fill(stored.get(fits.key), keep)
            seconds = time.process_time() - start
            print(f"{name}/{draw}: {seconds:.0f} s", flush=True)
            all_fits[name].append(fits)
    table = simulate(all_fits, args.searches)
    left_out = [label for label, rows in table.items() if not rows]
    if left_out:
        print(f"Too few --configs or --seeds for {', '.join(left_out)}")
    summary = summarize(table)
    write(
        "choice_rule",
        {"summary": summary, "protocols": table},
        device=default_device(),
        configs=args.configs,
        seeds=args.seeds,
        draws=args.draws,
        searches=args.searches,
    )
    report(table, summary)


if __name__ == "__main__":
    main()
