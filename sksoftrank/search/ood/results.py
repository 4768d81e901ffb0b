"""What a study's trials were and scored, in scikit-learn's columns."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import optuna
from optuna.trial import FrozenTrial, TrialState
from scipy.stats import rankdata
from sklearn.exceptions import FitFailedWarning

from sksoftrank._sklearn import _yield_masked_array_for_each_param
from sksoftrank.search.ood.choice import (
    Criterion,
    FloatArray,
    Outcome,
    choose,
    pareto_front,
)
from sksoftrank.search.ood.protocol import Plan
from sksoftrank.search.ood.space import Params, Queued, Space
from sksoftrank.search.ood.study import ERROR, QUEUED, SCORES, is_baseline


def is_complete(trial: FrozenTrial) -> bool:
    """Return whether a trial has scores to choose by."""
    return trial.state == TrialState.COMPLETE and SCORES in trial.user_attrs


def outcome(trial: FrozenTrial) -> Outcome:
    """Return what a complete trial scored."""
    scores = trial.user_attrs[SCORES]
    n_components = scores["n_components"]
    return Outcome(
        np.array(scores["ood"], dtype=np.float64),
        np.array(scores["id"], dtype=np.float64),
        math.nan if n_components is None else n_components,
        is_baseline(trial),
    )


def params_of(
    trial: FrozenTrial,
    own: Mapping[int, Params],
    space: Space,
    queue: Mapping[str, Queued],
) -> Params:
    """Return the parameters that a trial evaluated, whichever process did."""
    if trial.number in own:
        return own[trial.number]
    queued = queue.get(trial.user_attrs.get(QUEUED, ""))
    if queued is not None and queued.params is not None:
        return dict(queued.params)
    try:
        return space.suggest(trial)
    except (optuna.TrialPruned, ValueError):
        if is_complete(trial):
            raise
        return trial.params  # Pruned before it had all of them.


def make_columns(
    trials: Sequence[FrozenTrial],
    params: Sequence[Params],
    finals: Mapping[int, Outcome],
    plan: Plan,
    criterion: Criterion,
) -> dict[str, Any]:
    """Return one entry a trial of each column; scores are NaN where there are none."""
    columns: dict[str, Any] = {}
    for name in ("fit_time", "score_time"):
        times = _gather(trials, lambda scores, name=name: np.array(scores[name]))
        columns[f"mean_{name}"] = times.mean(axis=1)
        columns[f"std_{name}"] = times.std(axis=1)
    columns |= dict(_yield_masked_array_for_each_param(params))
    columns["params"] = list(params)
    outcomes = [outcome(trial) if is_complete(trial) else None for trial in trials]
    n_splits = len(plan.splits)

    def by_split(scores: Mapping[str, Any]) -> FloatArray:
        ood, each = np.array(scores["ood"]), np.array(scores["id"])
        return np.array(
            [
                Outcome(ood[[s.replicate]][:, [*s.ood]], each[[k]]).score(criterion)
                for k, s in enumerate(plan.splits)
            ]
        )

    splits = _gather(trials, by_split)
    means = np.array([o.score(criterion) if o else np.nan for o in outcomes])
    columns |= {f"split{k}_test_score": splits[:, k] for k in range(n_splits)}
    columns["mean_test_score"] = means
    columns["std_test_score"] = splits.std(axis=1)
    # Those without a score come last.
    filled = np.where(np.isnan(means), -np.inf, means)
    columns["rank_test_score"] = rankdata(-filled, method="min").astype(np.int32)
    id_splits = _gather(trials, lambda scores: np.array(scores["id"]))
    columns |= {f"split{k}_test_id": id_splits[:, k] for k in range(n_splits)}
    columns |= _means(outcomes, "test", plan)
    fresh = [finals.get(k) for k in range(len(trials))]
    columns["mean_final_score"] = np.array(
        [o.score(criterion) if o else np.nan for o in fresh]
    )
    final_means = _means(fresh, "final", plan)
    n_seeds = max((len(o.ood) // plan.n_replicates for o in fresh if o), default=1)
    by_seed = [
        _means([_of_seed(k, o, plan) for o in fresh], "final", plan)
        for k in range(n_seeds)
    ]
    columns |= final_means
    columns |= {
        f"std{name.removeprefix('mean')}": np.std([m[name] for m in by_seed], axis=0)
        for name in final_means
    }
    columns["stage"] = np.array([2 if o else 1 for o in fresh])
    columns["n_seeds"] = np.array(
        [1 + (len(o.ood) // plan.n_replicates if o else 0) for o in fresh]
    )
    for name in ("n_components", "rank"):
        sizes = _gather(trials, lambda scores, name=name: np.array([scores[name]]))
        columns[name] = sizes[:, 0]
    columns["trial"] = np.array([trial.number for trial in trials])
    columns["state"] = np.array([trial.state.name for trial in trials])
    columns["is_baseline"] = np.array([is_baseline(trial) for trial in trials])
    return columns


def _of_seed(seed: int, outcome: Outcome | None, plan: Plan) -> Outcome | None:
    """Return what one of the seeds scored."""
    if outcome is None:
        return None
    ood, each = (
        scores[seed * size : (seed + 1) * size]
        for scores, size in (
            (outcome.ood, plan.n_replicates),
            (outcome.id, len(plan.splits)),
        )
    )
    return Outcome(ood, each)


def _means(
    outcomes: Sequence[Outcome | None], stage: str, plan: Plan
) -> dict[str, FloatArray]:
    """Return columns of the scores in distribution, under the shift and by domain."""
    empty = np.full(len(plan.domains), np.nan)
    by_domain = np.array([o.ood.mean(axis=0) if o else empty for o in outcomes])
    return {
        f"mean_{stage}_id": np.array([o.id_score if o else np.nan for o in outcomes]),
        f"mean_{stage}_ood": np.array(
            [o.ood_score() if o else np.nan for o in outcomes]
        ),
        **{
            f"mean_{stage}_ood_{name}": by_domain[:, place]
            for place, name in enumerate(plan.domains)
        },
    }


def _gather(trials: Sequence[FrozenTrial], read: Any) -> FloatArray:
    """Return what is read of each trial's scores, as many values of each."""
    rows = [
        read(trial.user_attrs[SCORES]) if is_complete(trial) else None
        for trial in trials
    ]
    size = next(len(row) for row in rows if row is not None)
    empty = np.full(size, np.nan)
    return np.array([empty if row is None else row for row in rows], dtype=np.float64)


def complete_outcomes(trials: Sequence[FrozenTrial]) -> dict[int, Outcome]:
    """Return what there is to choose from, by place, and warn of what failed.

    Raises
    ------
    ValueError
        If no trial has scores.
    """
    outcomes = {k: outcome(t) for k, t in enumerate(trials) if is_complete(t)}
    errors = [t.user_attrs[ERROR] for t in trials if ERROR in t.user_attrs]
    if not outcomes:
        reason = f"the first with: {errors[0]}" if errors else "or were pruned."
        raise ValueError(
            f"All {len(trials)} trials failed, {reason}\nSet error_score='raise' to "
            "see where."
        )
    if errors:
        warnings.warn(
            f"{len(errors)} of {len(trials)} trials failed and are out, the first "
            f"with: {errors[0]}",
            FitFailedWarning,
            stacklevel=5,
        )
    return outcomes


def summarize(
    trials: Sequence[FrozenTrial],
    params: Sequence[Params],
    finals: Mapping[int, Outcome | None],
    plan: Plan,
    criterion: Criterion,
    *,
    min_gain: float,
    is_pareto: bool,
) -> dict[str, Any]:
    """Return the search's fitted attributes that say what it found and chose.

    `finals` are the finalists' outcomes with fresh seeds, by place among the trials;
    None where an estimator has no seed, so that what it scored stands.
    """
    complete = [k for k, trial in enumerate(trials) if is_complete(trial)]
    outcomes = [outcome(trials[k]) for k in complete]
    fresh = {k: o for k, o in finals.items() if o is not None}
    choice = choose(
        outcomes,
        {complete.index(k): o or outcome(trials[k]) for k, o in finals.items()},
        criterion,
        min_gain=min_gain,
        are_fresh=bool(fresh),
    )
    best = complete[choice.index]
    overall = outcomes[choice.index]
    if best in fresh:
        overall = overall.joined(fresh[best])
    summary = {
        "cv_results_": make_columns(trials, params, fresh, plan, criterion),
        "best_index_": best,
        "best_params_": params[best],
        "best_score_": overall.score(criterion),
        "best_reason_": choice.reason,
        "n_trials_": len(trials),
    }
    if is_pareto:
        summary["pareto_front_"] = [
            {
                "index": complete[k],
                "params": params[complete[k]],
                "ood_score": outcomes[k].ood_score(criterion.aggregate),
                "id_score": outcomes[k].id_score,
                "n_components": outcomes[k].n_components,
            }
            for k in pareto_front(outcomes, criterion.aggregate)
        ]
    return summary
