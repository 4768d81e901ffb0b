"""What a search tried, and what it chose and why."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy import stats

from sksoftrank._tables import shorten
from sksoftrank.displays import OODSearchDisplay
from sksoftrank.reporting._code import code_of
from sksoftrank.reporting._page import NOTHING, Section, Table, draw, number
from sksoftrank.reporting._words import IN_DISTRIBUTION

_MAX_ROWS = 10
Results = Mapping[str, Any]


def describe_search(
    search: Any,
) -> tuple[list[str], list[Section], list[Section]]:
    """Return the lead of a search, its sections, and those of the page's end."""
    is_ood = "mean_test_ood" in search.cv_results_
    lead, sections, fit = (_describe_ood if is_ood else _describe_grid)(search)
    params = getattr(search, "best_params_", {})
    rows = [
        [name, _tried(search.cv_results_[f"param_{name}"]), _written(value)]
        for name, value in sorted(params.items())
        if f"param_{name}" in search.cv_results_
    ]
    if rows:
        caption = "What the search could set."
        table = Table(caption, ["parameter", "tried", "chosen"], rows)
        sections[-1].tables = [*sections[-1].tables, table]
    again = Section(
        "How to search again",
        ["The same search, on the same rows."],
        code=code_of("search", search, fit),
    )
    return lead, sections, [again]


def _tried(values: Any) -> str:
    """Return what a parameter's values were, as a range or a list."""
    given = [value for value in np.ma.getdata(values)[~np.ma.getmaskarray(values)]]
    is_number = all(
        isinstance(v, int | float | np.number) and not isinstance(v, bool)
        for v in given
    )
    if is_number and len(set(given)) > 4:
        return f"{min(given):.4g} to {max(given):.4g}"
    return shorten(dict.fromkeys(map(_written, given)), 6)


def _written(value: Any) -> str:
    if isinstance(value, float | np.floating):
        return f"{value:.4g}"
    return value if isinstance(value, str) else repr(value)


def _scale(results: Results, name: str) -> tuple[float, str]:
    """Return what scores are multiplied by, and their unit, in brackets."""
    values = np.asarray(results[name], dtype=float)
    values = values[np.isfinite(values)]
    return (100.0, " (%)") if ((values >= 0) & (values <= 1)).all() else (1.0, "")


def _half(std: float, n: int) -> float:
    """Return half the 95 % t-interval of a mean of n values, of which std is numpy's."""
    return math.nan if n < 2 else stats.t.ppf(0.975, n - 1) * std / math.sqrt(n - 1)


# -- Under shift -------------------------------------------------------------------


def _describe_ood(search: Any) -> tuple[list[str], list[Section], str]:
    results, best = search.cv_results_, search.best_index_
    is_final = np.asarray(results["stage"]) == 2
    is_baseline = np.asarray(results["is_baseline"])
    # The baseline is the one that does best in distribution, as the search has it.
    own = np.where(is_baseline, results["mean_test_id"], np.nan)
    baseline = None if np.isnan(own).all() else int(np.nanargmax(own))
    stage = "final" if is_final[best] else "test"
    score = np.nan_to_num(results["mean_test_score"], nan=-np.inf)
    last = np.where(is_final, results["mean_final_score"], score)
    order = sorted(range(len(last)), key=lambda k: (not is_final[k], -last[k], k))
    others = [k for k in order if k not in (best, baseline) and np.isfinite(score[k])]
    first = [best] if baseline in (best, None) else [best, baseline]
    rival = baseline if baseline != best else next(iter(others), None)

    def role(k: int) -> str:
        trial = results["trial"][k]
        if k == best:
            kept = ", the baseline" if k == baseline else ""
            return f"the choice{kept}, trial {trial}"
        if k == baseline:
            return f"the baseline, trial {trial}"
        return f"{'finalist' if is_final[k] else 'trial'} {trial}"

    scale, unit = _scale(results, "mean_test_score")
    n_seeds = int(results["n_seeds"].max()) - 1

    def cell(k: int, name: str) -> str:
        half = _half(results[f"std_{name}"][k], n_seeds) if "final" in name else math.nan
        return number(results[f"mean_{name}"][k], half, scale=scale)

    def gain(a: int, b: int, name: str) -> str:
        column = results[f"mean_{name}"]
        return number(column[a] - column[b], scale=scale, signed=True)

    noise = "of one seed each, so without intervals"
    if stage == "final":
        noise = (
            f"means of {n_seeds} fresh seeds with 95 % intervals, which know the noise "
            "of training"
        )
    columns = [f"first seed{unit}", f"in distribution{unit}", f"under shift{unit}"]
    rows = [
        [
            role(k),
            number(results["mean_test_score"][k], scale=scale),
            cell(k, f"{stage}_id"),
            cell(k, f"{stage}_ood"),
        ]
        for k in (first + others)[:_MAX_ROWS]
    ]
    candidates = Table(
        f"The choice and the best others of {len(last)} settings. The first column is "
        f"the weighted score of the first seed, the others are {noise}.",
        ["setting", *columns],
        rows,
        [0],
    )
    picture = _picture(search, results, best, baseline, scale)
    tried = Section(
        "What was tried",
        facts=_facts(search, results, is_final, n_seeds),
        tables=[candidates],
        pictures=picture,
    )
    lead = [_lead(search, results, best, rival, baseline, stage, scale)]
    places = [(IN_DISTRIBUTION, "id"), ("under shift, mean", "ood")]
    places += [(name, f"ood_{name}") for name in search.domains_]
    if len(search.domains_) == 1:
        del places[1]
    compared = [best] if rival is None else [best, rival]
    by_domain = Table(
        f"Scores in distribution and on each domain: {noise}.",
        ["rows of", *(f"{role(k)}{unit}" for k in compared),
         *(["difference"] if rival is not None else [])],
        [
            [
                name,
                *(cell(k, f"{stage}_{key}") for k in compared),
                *([gain(best, rival, f"{stage}_{key}")] if rival is not None else []),
            ]
            for name, key in places
        ],
    )  # fmt: skip
    chosen = Section("What was chosen, and why", [search.best_reason_])
    chosen.tables = [by_domain]
    fit = "search.fit(X, y)"
    if search.shifts is None:
        fit = (
            "# With domains=..., or X_ood=... and y_ood=..., as it had:\n"
            "search.fit(X, y, domains=domains)"
        )
    return lead, [tried, chosen], fit


def _lead(
    search: Any,
    results: Results,
    best: int,
    rival: int | None,
    baseline: int | None,
    stage: str,
    scale: float,
) -> str:
    n, trial = len(results["trial"]), results["trial"][best]
    if best == baseline:
        return (
            f"Of {n} settings none beat the baseline by enough, so the baseline was "
            "kept."
        )
    text = f"Of {n} settings trial {trial} was chosen."
    if rival is None:
        return text
    gains = [
        results[f"mean_{stage}_{key}"][best] - results[f"mean_{stage}_{key}"][rival]
        for key in ("ood", "id")
    ]
    unit = " points" if scale == 100 else ""
    ood, own = (number(gain, scale=scale, signed=True) + unit for gain in gains)
    return (
        f"{text} Against the baseline it scores {ood} under shift and {own} in "
        "distribution" + (", with fresh seeds." if stage == "final" else ".")
    )


def _facts(
    search: Any, results: Results, is_final: Any, n_seeds: int
) -> list[tuple[str, str]]:
    states = [str(state).lower() for state in results["state"]]
    counts = ", ".join(f"{states.count(s)} {s}" for s in sorted(set(states)))
    weight = search.ood_weight
    facts = [
        ("settings tried", f"{len(states)} ({counts})"),
        ("shifts scored", shorten(search.domains_, 20)),
        ("splits of the rows", str(search.n_splits_)),
        ("score", "the model's own" if search.scoring is None else str(search.scoring)),
        (
            "what was maximised",
            f"{weight:g} of the score under shift ({search.aggregate} over domains) "
            f"and {1 - weight:g} of that in distribution",
        ),
    ]
    if is_final.any():
        final = f"{is_final.sum()} settings with {n_seeds} fresh seeds each"
        facts.append(("second stage", final))
    return facts


def _picture(
    search: Any, results: Results, best: int, baseline: int | None, scale: float
) -> Any:
    display = OODSearchDisplay(results, best)
    x, y = display.frame_["id"], display.frame_["ood"]
    bounds = [number(v, scale=scale) for v in (x.min(), x.max(), y.min(), y.max())]
    alt = (
        f"{len(x)} settings: in distribution they score {bounds[0]} to {bounds[1]}, "
        f"under shift {bounds[2]} to {bounds[3]}."
    )
    for name, k in (("choice", best), ("baseline", baseline)):
        if k is not None:
            a, b = (
                number(results[f"mean_test_{key}"][k], scale=scale)
                for key in ("id", "ood")
            )
            alt += f" The {name} scores {a} and {b}."
    caption = (
        "Each setting by its score in distribution and under shift, with the first "
        "seed. On the dotted line none is better in both."
    )
    return draw(display.plot, (alt, caption), size=(5.0, 4.4))


# -- In distribution ---------------------------------------------------------------


def _describe_grid(search: Any) -> tuple[list[str], list[Section], str]:
    results = search.cv_results_
    metric = "score"
    if "mean_test_score" not in results:  # Several metrics.
        is_named = isinstance(search.refit, str)
        metric = search.refit if is_named else next(iter(search.scorer_))
    mean, std = results[f"mean_test_{metric}"], results[f"std_test_{metric}"]
    n = search.n_splits_
    scale, unit = _scale(results, f"mean_test_{metric}")
    order = np.argsort(results[f"rank_test_{metric}"], kind="stable")[:_MAX_ROWS]
    best = getattr(search, "best_index_", None)

    def cell(k: int) -> str:
        return number(mean[k], _half(std[k], n), scale=scale)

    table = Table(
        f"The best of {len(mean)} settings: mean over {n} folds with a 95 % interval, "
        "roughly, as folds share rows.",
        ["setting", f"{metric}{unit}"],
        [[_setting(results["params"][k]), cell(k)] for k in order],
        [i for i, k in enumerate(order) if k == best],
    )
    facts = [
        ("settings tried", str(len(mean))),
        ("folds", str(n)),
        ("score", "the model's own" if metric == "score" and search.scoring is None
         else str(search.scoring if metric == "score" else metric)),
    ]  # fmt: skip
    tried = Section("What was tried", facts=facts, tables=[table])
    chosen = Section("What was chosen, and why")
    lead = [f"{len(mean)} settings were tried."]
    if best is not None:
        lead = [
            f"Of {len(mean)} settings {_setting(results['params'][best])} was chosen, "
            f"whose mean score over {n} folds is {cell(best)}{unit and ' %'}."
        ]
        place = int(results[f"rank_test_{metric}"][best])
        why = "the best" if place == 1 else f"number {place}"
        chosen.text = [
            f"Its mean score is {why} of all. As it was picked for that, the score is "
            "likely to be a little too good: measure it on rows that played no part."
        ]
    return lead, [tried, chosen], "search.fit(X, y)"


def _setting(params: Mapping[str, Any]) -> str:
    named: Sequence[str] = [f"{k}={_written(v)}" for k, v in params.items()]
    return ", ".join(named) or NOTHING
