"""What a study's trials were and scored, as outcomes and as columns."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import joblib
import numpy as np
from optuna.trial import FrozenTrial, TrialState
from scipy import sparse
from scipy.stats import rankdata
from sklearn.base import BaseEstimator
from sklearn.exceptions import FitFailedWarning
from sklearn.model_selection._search import _yield_masked_array_for_each_param

from sksoftrank.search._ood_choice import Outcome, choose, pareto_front
from sksoftrank.search._ood_fits import TrialScores
from sksoftrank.search._ood_space import Params, Space, stable_repr
from sksoftrank.search._ood_splits import Plan
from sksoftrank.search._ood_study import ERROR, RESULT, TASK


def to_attr(scores: TrialScores) -> dict[str, Any]:
    """Return scores as a trial's attribute keeps them."""
    return {
        "ood": scores.ood.tolist(),
        "id": scores.id.tolist(),
        "parts": None if scores.parts is None else scores.parts.tolist(),
        "n_components": _or_none(scores.n_components),
        "rank": _or_none(scores.rank),
        "seconds": scores.seconds,
    }


def _or_none(value: float) -> float | None:
    return None if math.isnan(value) else value


def is_complete(trial: FrozenTrial) -> bool:
    """Return whether a trial has scores to choose by."""
    return trial.state == TrialState.COMPLETE and RESULT in trial.user_attrs


def baseline_of(trial: FrozenTrial) -> int | None:
    """Return the place in the baseline's grid that a trial evaluated, if any."""
    place: int | None = trial.user_attrs.get(TASK, {}).get("baseline")
    return place


def outcome(trial: FrozenTrial) -> Outcome:
    """Return what a complete trial scored."""
    result = trial.user_attrs[RESULT]
    n_components = result["n_components"]
    return Outcome(
        np.array(result["ood"], dtype=np.float64),
        np.array(result["id"], dtype=np.float64),
        math.nan if n_components is None else n_components,
        baseline_of(trial) is not None,
        None if result["parts"] is None else np.array(result["parts"], np.float64),
    )


def params_of(trial: FrozenTrial, space: Space, grid: Sequence[Params]) -> Params:
    """Return the parameters that a trial evaluated, whichever process did."""
    place = baseline_of(trial)
    return dict(grid[place]) if place is not None else space.suggest(trial)


def make_columns(
    trials: Sequence[FrozenTrial],
    params: Sequence[Params],
    domains: Sequence[str],
    aggregate: str,
) -> dict[str, Any]:
    """Return one entry a trial of each column; scores are NaN where there are none."""
    outcomes = [outcome(trial) if is_complete(trial) else None for trial in trials]
    results = [trial.user_attrs.get(RESULT, {}) for trial in trials]
    scores = np.array([o.ood_score(aggregate) if o else np.nan for o in outcomes])
    columns: dict[str, Any] = {
        "trial": np.array([trial.number for trial in trials]),
        "state": np.array([trial.state.name for trial in trials]),
        "is_baseline": np.array([baseline_of(trial) is not None for trial in trials]),
        "params": list(params),
    }
    columns |= dict(_yield_masked_array_for_each_param(params))
    columns["ood_score"] = scores
    for place, name in enumerate(domains):
        columns[f"ood_score_{name}"] = np.array(
            [o.domain_scores()[place] if o else np.nan for o in outcomes]
        )
    columns["id_score"] = np.array([o.id_score if o else np.nan for o in outcomes])
    # Those without a score come last.
    filled = np.where(np.isnan(scores), -np.inf, scores)
    columns["rank_ood_score"] = rankdata(-filled, method="min").astype(np.int32)
    for column, key in (
        ("n_components", "n_components"),
        ("rank", "rank"),
        ("fit_time", "seconds"),
    ):
        columns[column] = np.array(
            [np.nan if r.get(key) is None else r[key] for r in results], dtype=float
        )
    return columns


def summarize(
    trials: Sequence[FrozenTrial],
    space: Space,
    grid: Sequence[Params],
    domains: Sequence[str],
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
        raise ValueError(
            f"All {len(trials)} trials failed, the first with: {errors[0]}\nSet "
            "error_score='raise' to see where."
        )
    if errors:
        warnings.warn(
            f"{len(errors)} of {len(trials)} trials failed and are out, the first "
            f"with: {errors[0]}",
            FitFailedWarning,
            stacklevel=5,
        )
    params = [params_of(trial, space, grid) for trial in trials]
    columns = make_columns(trials, params, domains, aggregate)
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
        "best_score_": float(columns["ood_score"][best]),
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


# -- What a study is of ----------------------------------------------------------------


def fingerprint(
    *,
    estimator: BaseEstimator,
    X: Any,
    y: Any,
    plan: Plan,
    space: Space,
    settings: Mapping[str, Any],
    fit_params: Mapping[str, Any],
) -> dict[str, str]:
    """Return what a study is of, part by part, the same in every process."""
    own = {
        name: stable_repr(value)
        for name, value in sorted(estimator.get_params(deep=True).items())
        if not hasattr(value, "get_params") and name != "steps"
    }
    kinds = {
        name: type(value).__name__
        for name, value in sorted(estimator.get_params(deep=True).items())
        if hasattr(value, "get_params")
    }
    rows = [
        (split.train, split.id.rows, *(o.rows for o in split.ood.values()))
        for split in plan.splits
    ]
    scored = {id(o.X): o for split in plan.splits for o in split.ood.values()}
    foreign = [(o.X, o.y) for o in scored.values() if o.X is not X]
    return {
        "estimator": type(estimator).__name__,
        **{f"estimator's {name}": value for name, value in {**kinds, **own}.items()},
        "X": digest(X),
        "y": digest(y),
        "domains": f"{plan.domains}",
        "rows of the splits": digest(rows),
        "X_ood or shifted rows": digest(foreign) if foreign else "none",
        "fit parameters": digest(sorted(fit_params.items())),
        **{f"space of {name}": text for name, text in space.description.items()},
        **{name: stable_repr(value) for name, value in settings.items()},
    }


def digest(data: Any) -> str:
    """Return shape and hash of data; equal for equal data in any process."""
    shape = getattr(data, "shape", None)
    kind = f"{shape[0]} rows, shape {tuple(shape)}, " if shape else ""
    return f"{kind}{joblib.hash(_hashable(data))[:16]}"


def _hashable(data: Any) -> Any:
    """Return lists, flat arrays and texts: what joblib hashes by value alone.

    Of an array it hashes the strides, too, and of an object what else refers to it.
    """
    if sparse.issparse(data):
        data = data.tocsr()
        return _hashable([data.shape, data.data, data.indices, data.indptr])
    if hasattr(data, "columns"):  # A frame: a column's type is its own.
        return [[str(name), _hashable(data[name])] for name in data.columns]
    if isinstance(data, dict):
        data = sorted(data.items())
    if isinstance(data, list | tuple):
        return [_hashable(item) for item in data]
    if hasattr(data, "__array__"):
        array = np.asarray(data)
        flat = np.ascontiguousarray(array).ravel()
        is_text = flat.dtype.hasobject
        return [str(array.shape), [*map(stable_repr, flat)] if is_text else flat]
    return stable_repr(data)
