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
from sksoftrank.search.ood.choice import FloatArray, Outcome, choose, pareto_front
from sksoftrank.search.ood.protocol import Plan
from sksoftrank.search.ood.space import Params, Space
from sksoftrank.search.ood.study import BASELINE, ERROR, SCORES


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
        BASELINE in trial.user_attrs,
        None if scores["parts"] is None else np.array(scores["parts"], np.float64),
    )


def params_of(
    trial: FrozenTrial, own: Mapping[int, Params], space: Space, grid: Sequence[Params]
) -> Params:
    """Return the parameters that a trial evaluated, whichever process did."""
    if trial.number in own:
        return own[trial.number]
    if BASELINE in trial.user_attrs:
        return dict(grid[trial.user_attrs[BASELINE]])
    try:
        return space.suggest(trial)
    except (optuna.TrialPruned, ValueError):
        if is_complete(trial):
            raise
        return trial.params  # Pruned before it had all of them.


def make_columns(
    trials: Sequence[FrozenTrial],
    params: Sequence[Params],
    plan: Plan,
    aggregate: str,
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
        ood = np.array(scores["ood"])
        ood = ood.reshape(-1, plan.n_replicates, len(plan.domains)).mean(axis=0)
        worst_or_mean = np.min if aggregate == "worst" else np.mean
        return np.array(
            [worst_or_mean(ood[s.replicate, [*s.ood]]) for s in plan.splits]
        )

    def id_by_split(scores: Mapping[str, Any]) -> FloatArray:
        means: FloatArray = np.array(scores["id"]).reshape(-1, n_splits).mean(axis=0)
        return means

    splits = _gather(trials, by_split)
    means = np.array([o.ood_score(aggregate) if o else np.nan for o in outcomes])
    columns |= {f"split{k}_test_score": splits[:, k] for k in range(n_splits)}
    columns["mean_test_score"] = means
    columns["std_test_score"] = splits.std(axis=1)
    # Those without a score come last.
    filled = np.where(np.isnan(means), -np.inf, means)
    columns["rank_test_score"] = rankdata(-filled, method="min").astype(np.int32)
    id_splits = _gather(trials, id_by_split)
    columns |= {f"split{k}_test_id": id_splits[:, k] for k in range(n_splits)}
    columns["mean_test_id"] = np.array([o.id_score if o else np.nan for o in outcomes])
    columns["mean_test_ood"] = np.array(
        [o.ood_score("mean") if o else np.nan for o in outcomes]
    )
    by_domain = _gather(trials, lambda scores: np.array(scores["ood"]).mean(axis=0))
    for place, name in enumerate(plan.domains):
        columns[f"mean_test_ood_{name}"] = by_domain[:, place]
    for name in ("n_components", "rank"):
        sizes = _gather(trials, lambda scores, name=name: np.array([scores[name]]))
        columns[name] = sizes[:, 0]
    columns["trial"] = np.array([trial.number for trial in trials])
    columns["state"] = np.array([trial.state.name for trial in trials])
    columns["is_baseline"] = np.array([BASELINE in t.user_attrs for t in trials])
    return columns


def _gather(trials: Sequence[FrozenTrial], read: Any) -> FloatArray:
    """Return what is read of each trial's scores, as many values of each."""
    rows = [
        read(trial.user_attrs[SCORES]) if is_complete(trial) else None
        for trial in trials
    ]
    size = next(len(row) for row in rows if row is not None)
    empty = np.full(size, np.nan)
    return np.array([empty if row is None else row for row in rows], dtype=np.float64)


def summarize(
    trials: Sequence[FrozenTrial],
    params: Sequence[Params],
    plan: Plan,
    *,
    aggregate: str,
    id_tolerance: float,
    is_pareto: bool,
    is_sample: bool,
) -> dict[str, Any]:
    """Return the search's fitted attributes that say what it found and chose."""
    complete = [k for k, trial in enumerate(trials) if is_complete(trial)]
    errors = [t.user_attrs[ERROR] for t in trials if ERROR in t.user_attrs]
    if not complete:
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
    columns = make_columns(trials, params, plan, aggregate)
    outcomes = [outcome(trials[k]) for k in complete]
    choice = choose(
        outcomes,
        aggregate=aggregate,
        id_tolerance=id_tolerance,
        pareto=is_pareto,
        is_sample=is_sample,
    )
    best = complete[choice.index]
    summary = {
        "cv_results_": columns,
        "best_index_": best,
        "best_params_": params[best],
        "best_score_": float(columns["mean_test_score"][best]),
        "best_reason_": choice.reason,
        "n_trials_": len(trials),
    }
    if is_pareto:
        summary["pareto_front_"] = [
            {
                "index": complete[k],
                "params": params[complete[k]],
                "ood_score": outcomes[k].ood_score(aggregate),
                "id_score": outcomes[k].id_score,
                "n_components": outcomes[k].n_components,
            }
            for k in pareto_front(outcomes, aggregate)
        ]
    return summary
