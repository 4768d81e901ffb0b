"""Fits and scores a batch of trials: in stacks where that can be, else one by one."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from itertools import product
from typing import Any

import numpy as np
from sklearn.base import BaseEstimator

from sksoftrank.ood._rows import score_rows
from sksoftrank.search._jobs import Job, StackPlanner, fit_jobs, last_step, with_params
from sksoftrank.search.ood.choice import FloatArray
from sksoftrank.search.ood.protocol import Plan, Scored, Split
from sksoftrank.training import StopFlag

# Networks that a batch of trials trains: enough to fill stacks on two cores, and few
# enough for the sampler to learn from what came before.
_BATCH_FITS = 16
# Times that a trial reports, and may be pruned.
_REPORTS = 10

# Takes an epoch and the scores at it, as (replicates, domains).
ShouldPrune = Callable[[int, FloatArray], bool]


@dataclass
class Fit(Job):
    """A configuration on one split, with one of the seeds."""

    seed: int


@dataclass
class FitScores:
    """What one fit scored; of a fit that failed, the error."""

    ood: dict[int, float] = field(default_factory=dict)
    parts: dict[int, list[float]] = field(default_factory=dict)
    id: float = np.nan
    n_components: float = np.nan
    rank: float = np.nan
    fit_time: float = 0.0
    score_time: float = 0.0
    error: Exception | None = None
    is_pruned: bool = False


@dataclass
class TrialScores:
    """What a trial's fits scored: arrays as in `Outcome`, times by seed and split."""

    ood: FloatArray
    id: FloatArray
    parts: FloatArray | None
    n_components: float
    rank: float
    fit_time: FloatArray
    score_time: FloatArray
    error: Exception | None
    is_pruned: bool

    @property
    def are_sound(self) -> bool:
        """Whether the trial has all its scores."""
        return not self.is_pruned and bool(
            np.isfinite(self.ood).all() and np.isfinite(self.id).all()
        )

    def to_attr(self) -> dict[str, Any]:
        """Return scores and times as a trial's attribute keeps them."""
        arrays = ("ood", "id", "parts", "fit_time", "score_time")
        attr = {name: getattr(self, name) for name in arrays}
        attr = {k: None if v is None else v.tolist() for k, v in attr.items()}
        sizes = {"n_components": self.n_components, "rank": self.rank}
        return {**attr, **{k: None if np.isnan(v) else v for k, v in sizes.items()}}


@dataclass(kw_only=True)
class Evaluation:
    """Evaluates configurations, each on all splits and with all seeds."""

    base_estimator: BaseEstimator
    X: Any
    y: Any
    plan: Plan
    seeds: Sequence[int]
    fit_params: dict[str, Any]
    scorer: Callable[..., float]
    score_params: dict[str, Any]
    error_score: Any
    n_jobs: int | None

    def __post_init__(self) -> None:
        self._planner = StackPlanner(self.base_estimator, self.X, self.y, self.n_jobs)

    @property
    def batch_size(self) -> int:
        """Number of trials to ask for at once; the same whatever the machine."""
        return max(1, _BATCH_FITS // (len(self.plan.splits) * len(self.seeds)))

    def run(
        self,
        candidates: Sequence[dict[str, Any]],
        checks: Sequence[ShouldPrune] | None = None,
    ) -> list[TrialScores]:
        """Return what each configuration scores, unless its check prunes it."""
        jobs = [
            job
            for candidate, params in enumerate(candidates)
            for job in self._jobs(candidate, params)
        ]
        stacks = self._planner.plan(jobs, whole_candidates=checks is not None)
        pruning: list[Pruning] = []
        if checks is not None:
            pruning = [Pruning(check, self._empty()) for check in checks]
        # What is reported while a fit trains goes to the study, which lives here.
        results = stacks.run(
            partial(self._evaluate, pruning=pruning),
            require="sharedmem" if pruning else None,
        )
        for own in pruning:
            if own.error is not None:
                raise own.error
        by_trial: list[list[tuple[Fit, FitScores]]] = [[] for _ in candidates]
        for job, result in zip(jobs, results, strict=True):
            by_trial[job.candidate].append((job, result))
        return [self._collect(fits) for fits in by_trial]

    def fallback_reason(self) -> str | None:
        """Return why some fits were not stacked; None if all were."""
        return self._planner.fallback_reason()

    def _evaluate(
        self, jobs: list[Fit], *, stop: StopFlag, pruning: list[Pruning]
    ) -> list[FitScores]:
        """Fit jobs together and score each."""
        splits = [self.plan.splits[job.split] for job in jobs]

        def score(estimator: Any, rows: Scored) -> float:
            params = rows.params(self.X, self.score_params)
            return score_rows(self.scorer, estimator, *rows.cut(), **params)

        def score_all(estimator: Any, split: Split) -> dict[int, float]:
            return {
                domain: score(estimator, rows) for domain, rows in split.ood.items()
            }

        def follow(place: int, estimator: Any) -> Callable[[int, int], bool]:
            job, split = jobs[place], splits[place]
            row = job.seed * self.plan.n_replicates + split.replicate
            score_now = partial(score_all, estimator, split)
            return partial(pruning[job.candidate].follow, row, score_now)

        fitted = fit_jobs(
            self.base_estimator,
            jobs,
            self.X,
            self.y,
            self.fit_params,
            stop=stop,
            follow=follow if pruning else None,
        )
        results = []
        for job, own, split in zip(jobs, fitted, splits, strict=True):
            result = FitScores(error=own.error, fit_time=own.seconds)
            results.append(result)
            result.is_pruned = bool(pruning) and pruning[job.candidate].is_pruned
            if result.error is not None or result.is_pruned:
                continue
            start = time.perf_counter()
            try:
                result.id = score(own.estimator, split.id)
                result.ood = score_all(own.estimator, split)
            except Exception as error:
                result.error = error
                continue
            # A metric may need more rows than a part has; then there are none.
            with suppress(Exception):
                result.parts = {
                    domain: [score(own.estimator, rows) for rows in parts]
                    for domain, parts in split.parts.items()
                }
            result.score_time = time.perf_counter() - start
            last = last_step(own.estimator)
            result.n_components = getattr(last, "n_components_", np.nan)
            result.rank = getattr(last, "rank_", np.nan)
        return results

    def _jobs(self, candidate: int, params: dict[str, Any]) -> list[Fit]:
        seeded = [
            name
            for name in random_states(with_params(self.base_estimator, params))
            if name not in params
        ]
        jobs = []
        for split, seed in product(
            range(len(self.plan.splits)), range(len(self.seeds))
        ):
            settings = {**params, **dict.fromkeys(seeded, self.seeds[seed])}
            train = self.plan.splits[split].train
            jobs.append(Fit(candidate, settings, split, train, seed))
        return jobs

    def _empty(self) -> FloatArray:
        n_rows = self.plan.n_replicates * len(self.seeds)
        return np.full((n_rows, len(self.plan.domains)), np.nan)

    def _collect(self, fits: list[tuple[Fit, FitScores]]) -> TrialScores:
        ood = self._empty()
        n_parts = {len(p) for split in self.plan.splits for p in split.parts.values()}
        parts = np.full((*ood.shape, *n_parts), np.nan) if n_parts else None
        id_scores = np.full(len(fits), np.nan)
        errors = [scores.error for _, scores in fits if scores.error is not None]
        fits = sorted(fits, key=lambda fit: (fit[0].seed, fit[0].split))
        for place, (job, scores) in enumerate(fits):
            split = self.plan.splits[job.split]
            row = job.seed * self.plan.n_replicates + split.replicate
            if scores.error is not None:
                if self.error_score == "raise":
                    raise scores.error
                id_scores[place] = self.error_score
                ood[row, list(split.ood)] = self.error_score
                if parts is not None:
                    parts[row] = self.error_score
                continue
            id_scores[place] = scores.id
            for domain, part_scores in scores.parts.items():
                assert parts is not None
                parts[row, domain] = part_scores
            for domain, score in scores.ood.items():
                ood[row, domain] = score
        scored = [scores for _, scores in fits if scores.error is None] or [FitScores()]
        return TrialScores(
            ood,
            id_scores,
            None if parts is None or np.isnan(parts).any() else parts,
            float(np.mean([scores.n_components for scores in scored])),
            float(np.mean([scores.rank for scores in scored])),
            np.array([scores.fit_time for _, scores in fits]),
            np.array([scores.score_time for _, scores in fits]),
            errors[0] if errors else None,
            any(scores.is_pruned for _, scores in fits),
        )


def random_states(estimator: Any) -> list[str]:
    """Return the names of an estimator's parameters that seed it."""
    names = sorted(estimator.get_params())
    return [name for name in names if name.rpartition("__")[2] == "random_state"]


class Pruning:
    """Gathers the scores of a trial's fits at an epoch, and has it checked."""

    def __init__(self, check: ShouldPrune, empty: FloatArray) -> None:
        self.check = check
        self.empty = empty
        self.scores: dict[int, FloatArray] = {}
        self.is_pruned = False
        self.error: Exception | None = None

    def report(self, epoch: int, row: int, scores: dict[int, float]) -> None:
        """Note a fit's scores; once all have come, check the trial."""
        table = self.scores.setdefault(epoch, self.empty.copy())
        for domain, score in scores.items():
            table[row, domain] = score
        # Where a fit has ended early, there is no such epoch any more.
        if not np.isnan(table).any():
            del self.scores[epoch]
            try:
                self.is_pruned = self.check(epoch, table)
            except Exception as error:
                # The study's, not the fit's: raised once the stack has come to its end.
                self.error, self.is_pruned = error, True

    def follow(
        self,
        row: int,
        score: Callable[[], dict[int, float]],
        epoch: int,
        n_epochs: int,
    ) -> bool:
        """Report a fit's scores from time to time; return whether to end it."""
        is_due = epoch % max(1, n_epochs // _REPORTS) == 0 and epoch < n_epochs
        if is_due and not self.is_pruned:
            # A score that can't be had is no report; its error comes up at the end.
            with suppress(Exception):
                # The last fit of a trial decides for all, which stop at their next one.
                self.report(epoch, row, score())
        return self.is_pruned
