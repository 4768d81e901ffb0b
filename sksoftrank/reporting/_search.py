"""What a search tried, and what it chose and why."""

from __future__ import annotations

import math
from collections.abc import Mapping
from numbers import Real
from typing import Any

import numpy as np
from scipy import stats

from sksoftrank._digest import stable_repr
from sksoftrank._tables import shorten
from sksoftrank.displays import OODSearchDisplay
from sksoftrank.reporting._code import code_of
from sksoftrank.reporting._page import (
    IN_DISTRIBUTION,
    NOTHING,
    Picture,
    Section,
    Table,
    draw,
    number,
)
from sksoftrank.search._jobs import step_prefix

_MAX_ROWS = 10
Facts = list[tuple[str, str]]


def describe_search(search: Any) -> tuple[str, list[Section], Section]:
    """Return the lead of a search, its sections, and the one for the page's end."""
    is_ood = "mean_test_ood" in search.cv_results_
    found = OODResults(search) if is_ood else Results(search)
    tried = Section(
        "What was tried",
        facts=found.facts(),
        tables=[found.candidates()],
        pictures=found.pictures(),
    )
    chosen = Section(
        "What was chosen, and why",
        [found.reason()],
        tables=[*found.comparison(), *found.parameters()],
    )
    again = Section(
        "How to search again",
        ["The same search, on the same rows."],
        code=code_of("search", search, found.fit),
    )
    return found.lead(), [tried, chosen], again


class Results:
    """`cv_results_` of any search, told to people."""

    fit = "search.fit(X, y)"

    def __init__(self, search: Any) -> None:
        self.search, self.table = search, search.cv_results_
        self.metric = "score"
        if "mean_test_score" not in self.table:  # Several metrics.
            named = isinstance(search.refit, str)
            self.metric = search.refit if named else next(iter(search.scorer_))
        self.mean = np.asarray(self.table[f"mean_test_{self.metric}"], dtype=float)
        self.best: Any = getattr(search, "best_index_", None)
        known = self.mean[np.isfinite(self.mean)]
        is_share = ((known >= 0) & (known <= 1)).all()
        self.scale, self.unit = (100.0, " %") if is_share else (1.0, "")
        self.heading = " (%)" if is_share else ""

    def cell(self, k: int, name: str, n: int = 1) -> str:
        """Return a mean of n values, with a t-interval where there are several."""
        half = math.nan
        if n > 1:  # numpy's deviation is of n, the interval's of n - 1.
            std = self.table[f"std_{name}"][k] / math.sqrt(n - 1)
            half = stats.t.ppf(0.975, n - 1) * std
        return number(self.table[f"mean_{name}"][k], half, scale=self.scale)

    def facts(self) -> Facts:
        """Return what there was to try, and how it was scored."""
        score = self.search.scoring if self.metric == "score" else self.metric
        return [
            ("settings tried", str(len(self.mean))),
            ("splits of the rows", str(self.search.n_splits_)),
            ("score", "accuracy" if score is None else _written(score)),
        ]

    def candidates(self) -> Table:
        """Return the best settings."""
        n, name = self.search.n_splits_, f"test_{self.metric}"
        order = np.argsort(self.table[f"rank_{name}"], kind="stable")[:_MAX_ROWS]
        return Table(
            f"The best of {len(self.mean)} settings: mean over {n} folds with a 95 % "
            "interval, roughly, as folds share rows.",
            ["setting", f"{self.metric}{self.heading}"],
            [[_setting(self.table["params"][k]), self.cell(k, name, n)] for k in order],
            [place for place, k in enumerate(order) if k == self.best],
        )

    def pictures(self) -> list[Picture]:
        """Return what there is to see."""
        return []

    def lead(self) -> str:
        """Return what was chosen, in a sentence."""
        if self.best is None:
            return f"{len(self.mean)} settings were tried, and none was chosen."
        score = self.cell(self.best, f"test_{self.metric}", self.search.n_splits_)
        return (
            f"Of {len(self.mean)} settings {_setting(self.table['params'][self.best])} "
            f"was chosen, whose mean score over the folds is {score}{self.unit}."
        )

    def reason(self) -> str:
        """Return why."""
        if self.best is None:
            return "The search was told to choose none, with refit=False."
        place = int(self.table[f"rank_test_{self.metric}"][self.best])
        return (
            f"Its mean score is {'the best' if place == 1 else f'number {place}'} of "
            "all. As it was picked for that, the score is likely to be a little too "
            "good: measure it on rows that played no part."
        )

    def comparison(self) -> list[Table]:
        """Return what the choice is compared with."""
        return []

    def parameters(self) -> list[Table]:
        """Return what was tried of each parameter, and what was chosen."""
        params = getattr(self.search, "best_params_", {})
        prefix = step_prefix(self.search.estimator)
        rows = [
            [
                name.removeprefix(prefix),
                _tried(self.table[f"param_{name}"]),
                _written(params[name]) if name in params else NOTHING,
            ]
            for name in sorted(
                key.removeprefix("param_")
                for key in self.table
                if key.startswith("param_")
            )
        ]
        columns = ["parameter", "tried", "chosen"]
        return [Table("What the search could set.", columns, rows)] if rows else []


class OODResults(Results):
    """`cv_results_` of an OODSearchCV."""

    def __init__(self, search: Any) -> None:
        super().__init__(search)
        table = self.table
        if search.shifts is None:
            self.fit = (
                "# With domains=..., or X_ood=... and y_ood=..., as it had:\n"
                "search.fit(X, y, domains=domains)"
            )
        self.is_final = np.asarray(table["stage"]) == 2
        # As in the choice: the one that does best in distribution.
        own = np.where(table["is_baseline"], table["mean_test_id"], np.nan)
        self.baseline = None if np.isnan(own).all() else int(np.nanargmax(own))
        self.stage, self.n_seeds = "test", 1
        if self.is_final[self.best]:
            self.stage, self.n_seeds = "final", int(max(table["n_seeds"])) - 1
        fresh = "fresh " if self.stage == "final" else ""
        self.noise = f"of one {fresh}seed each, so without intervals"
        if self.n_seeds > 1:
            self.noise = (
                f"means of {self.n_seeds} fresh seeds with 95 % intervals, which know "
                "the noise of training"
            )
        # Finalists first; those without a score are in none of the tables.
        score = np.where(self.is_final, table["mean_final_score"], self.mean)
        order = sorted(
            np.flatnonzero(np.isfinite(score)).tolist(),
            key=lambda k: (k != self.best, k != self.baseline, not self.is_final[k],
                           -score[k], k),
        )  # fmt: skip
        self.order = order
        # What the choice is compared with: the baseline, or else the next best.
        self.rival = order[1] if len(order) > 1 else None

    def role(self, k: int) -> str:
        """Return what a trial is in the search."""
        names = ["the choice"] if k == self.best else []
        names += ["the baseline"] if k == self.baseline else []
        return ", ".join(names) or ("a finalist" if self.is_final[k] else "a trial")

    def gain(self, key: str) -> str:
        """Return what the choice scores more than what it is compared with."""
        column = self.table[f"mean_{self.stage}_{key}"]
        gain = column[self.best] - column[self.rival]
        return number(gain, scale=self.scale, signed=True)

    def facts(self) -> Facts:
        states = [str(state).lower() for state in self.table["state"]]
        counts = ", ".join(f"{states.count(s)} {s}" for s in sorted(set(states)))
        (name, _), *others = super().facts()
        weight = self.search.ood_weight
        stages = f"{self.is_final.sum()} settings, fresh seeds of each: {self.n_seeds}"
        return [
            (name, f"{len(states)} ({counts})"),
            ("shifts scored", shorten(self.search.domains_, 20)),
            *others,
            (
                "what was maximised",
                f"{weight:g} of the score under shift ({self.search.aggregate} over "
                f"domains) and {1 - weight:g} of that in distribution",
            ),
            ("second stage", stages if self.is_final.any() else "none"),
        ]

    def candidates(self) -> Table:
        rows = [
            [
                f"{self.table['trial'][k]}, {self.role(k)}",
                self.cell(k, "test_score"),
                *(
                    self.cell(k, f"{self.stage}_{key}", self.n_seeds)
                    for key in ("id", "ood")
                ),
            ]
            for k in self.order[:_MAX_ROWS]
        ]
        return Table(
            f"The choice and the best others of {len(self.mean)} settings. The first "
            "column is the weighted score of the first seed, the others are "
            f"{self.noise}.",
            ["trial", *(f"{name}{self.heading}" for name in
                        ("first seed", IN_DISTRIBUTION, "under shift"))],
            rows,
            [0],
        )  # fmt: skip

    def pictures(self) -> list[Picture]:
        display = OODSearchDisplay(self.table, self.best)
        x, y = display.frame_["id"], display.frame_["ood"]
        ends = [
            number(v, scale=self.scale) for v in (x.min(), x.max(), y.min(), y.max())
        ]
        alt = (
            f"{len(x)} settings: in distribution they score {ends[0]} to {ends[1]}, "
            f"under shift {ends[2]} to {ends[3]}."
        )
        for name, k in (("choice", self.best), ("baseline", self.baseline)):
            if k is not None:
                own, ood = self.cell(k, "test_id"), self.cell(k, "test_ood")
                alt += f" The {name} scores {own} and {ood}."
        caption = "Each setting by its scores with the first seed."
        if display.frame_["is_pareto"].sum() > 1:
            caption += " None is better in both than the Pareto front."
        return draw(display.plot, (alt, caption), size=(5.0, 4.4))

    def lead(self) -> str:
        n, trial = len(self.mean), self.table["trial"][self.best]
        if self.best == self.baseline:
            return f"Of {n} settings none beat the baseline by enough, so it was kept."
        text = f"Of {n} settings trial {trial} was chosen."
        if self.baseline is None:
            return text
        unit = " points" if self.unit else ""
        return (
            f"{text} Against the baseline it scores {self.gain('ood')}{unit} under "
            f"shift and {self.gain('id')}{unit} in distribution"
            + (", with fresh seeds." if self.stage == "final" else ".")
        )

    def reason(self) -> str:
        return str(self.search.best_reason_)

    def comparison(self) -> list[Table]:
        if self.rival is None:
            return []
        places = [(name, f"ood_{name}") for name in self.search.domains_]
        if len(places) > 1:
            places.insert(0, ("under shift, mean", "ood"))
        places.insert(0, (IN_DISTRIBUTION, "id"))
        pair = self.best, self.rival
        rows = [
            [
                name,
                *(self.cell(k, f"{self.stage}_{key}", self.n_seeds) for k in pair),
                self.gain(key),
            ]
            for name, key in places
        ]
        rival = self.role(self.rival)
        columns = [f"the choice{self.heading}", f"{rival}{self.heading}", "difference"]
        caption = f"Scores in distribution and on each domain, {self.noise}."
        return [Table(caption, ["rows of", *columns], rows)]


def _tried(values: Any) -> str:
    """Return what a parameter's values were, as a range or a list."""
    given = list(np.ma.getdata(values)[~np.ma.getmaskarray(values)])
    is_number = all(isinstance(v, Real) and not isinstance(v, bool) for v in given)
    given = sorted(given) if is_number else given
    if is_number and len(set(given)) > 4:
        return f"{_written(given[0])} to {_written(given[-1])}"
    return shorten(dict.fromkeys(map(_written, given)), 6)


def _written(value: Any) -> str:
    value = value.item() if isinstance(value, np.generic) else value
    if isinstance(value, float):
        return f"{value:.4g}"
    return value if isinstance(value, str) else stable_repr(value)


def _setting(params: Mapping[str, Any]) -> str:
    named = [f"{name}={_written(value)}" for name, value in params.items()]
    return ", ".join(named) or "the defaults"
