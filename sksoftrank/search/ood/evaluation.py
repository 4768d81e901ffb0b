"""Fits and scores a batch of trials: in stacks where that can be, else one by one."""

from __future__ import annotations

import math
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
from sksoftrank.search.ood.choice import FloatArray, Outcome
from sksoftrank.search.ood.protocol import Plan, Scored, Split
from sksoftrank.training import StopFlag

# Networks that a batch of trials trains: enough to fill stacks on two cores, and few
# enough for the sampler to learn from what came before.
_BATCH_FITS = 16
# Times that a trial reports, and may be pruned.
_REPORTS = 10

# Takes an epoch and what the trial scores at it.
ShouldPrune = Callable[[int, Outcome], bool]


@dataclass
class Fit(Job):
    """A configuration on one split, with one of the seeds."""

    seed: int


@dataclass
class FitScores:
    """What one fit scored; of a fit that failed, the error."""

    ood: dict[int, float] = field(default_factory=dict)
    id: float = np.nan
    n_components: float = np.nan
    rank: float = np.nan
    fit_time: float = 0.0
    score_time: float = 0.0
    error: Exception | None = None
    is_pruned: bool = False


@dataclass
class TrialScores:
    """What a trial's fits scored, and their times by seed and split."""

    outcome: Outcome
    rank: float
    fit_time: FloatArray
    score_time: FloatArray
    error: Exception | None
    is_pruned: bool

    @property
    def are_sound(self) -> bool:
        """Whether the trial has all its scores."""
        scores = self.outcome
        return not self.is_pruned and bool(
            np.isfinite(scores.ood).all() and np.isfinite(scores.id).all()
        )

    def to_attr(self) -> dict[str, Any]:
        """Return scores and times as a trial's attribute keeps them."""
        sizes = {"n_components": self.outcome.n_components, "rank": self.rank}
        return {
            "ood": self.outcome.ood.tolist(),
            "id": self.outcome.id.tolist(),
            "fit_time": self.fit_time.tolist(),
            "score_time": self.score_time.tolist(),
            **{k: None if np.isnan(v) else v for k, v in sizes.items()},
        }


@dataclass(kw_only=True)
class Evaluation:
    """Evaluates configurations, each on all splits."""

    base_estimator: BaseEstimator
    X: Any
    y: Any
    plan: Plan
    fit_params: dict[str, Any]
    scorer: Callable[..., float]
    score_params: dict[str, Any]
    error_score: Any
    # To find a fit's rank and number of components from, at most.
    basis_rows: int | None
    n_jobs: int | None
    # About so many configurations are to come.
    n_trials: int = 1

    def __post_init__(self) -> None:
        self._planner = StackPlanner(
            self.base_estimator,
            self.X,
            self.y,
            self.n_jobs,
            n_plans=math.ceil(self.n_trials / self.batch_size),
        )

    @property
    def batch_size(self) -> int:
        """Number of trials to ask for at once; the same whatever the machine."""
        return max(1, _BATCH_FITS // len(self.plan.splits))

    def run(
        self,
        candidates: Sequence[dict[str, Any]],
        seeds: Sequence[int],
        checks: Sequence[ShouldPrune] | None = None,
    ) -> list[TrialScores]:
        """Return what each scores over all seeds, unless its check prunes it."""
        jobs = [
            job
            for candidate, params in enumerate(candidates)
            for job in self._jobs(candidate, params, seeds)
        ]
        stacks = self._planner.plan(jobs, whole_candidates=checks is not None)
        pruning = [
            Pruning(check, partial(self._outcome, n_seeds=len(seeds)))
            for check in checks or ()
        ]
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
        return [self._collect(fits, len(seeds)) for fits in by_trial]

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

        def score_fit(estimator: Any, split: Split) -> FitScores:
            ood = {d: score(estimator, rows) for d, rows in split.ood.items()}
            return FitScores(ood, score(estimator, split.id))

        def follow(place: int, estimator: Any) -> Callable[[int, int], bool]:
            score_now = partial(score_fit, estimator, splits[place])
            return partial(
                pruning[jobs[place].candidate].follow, jobs[place], score_now
            )

        fitted = fit_jobs(
            self.base_estimator,
            jobs,
            self.X,
            self.y,
            self.fit_params,
            stop=stop,
            basis_rows=self.basis_rows,
            follow=follow if pruning else None,
        )
        results = []
        for job, own, split in zip(jobs, fitted, splits, strict=True):
            result = FitScores(error=own.error)
            is_pruned = bool(pruning) and pruning[job.candidate].is_pruned
            start = time.perf_counter()
            if own.error is None and not is_pruned:
                try:
                    result = score_fit(own.estimator, split)
                except Exception as error:
                    result.error = error
                last = last_step(own.estimator)
                result.n_components = getattr(last, "n_components_", np.nan)
                result.rank = getattr(last, "rank_", np.nan)
            result.score_time = time.perf_counter() - start
            result.fit_time = own.seconds
            result.is_pruned = is_pruned
            results.append(result)
        return results

    def _jobs(
        self, candidate: int, params: dict[str, Any], seeds: Sequence[int]
    ) -> list[Fit]:
        """Return the fits of a configuration: seed by seed, and split by split."""
        seeded = [
            name
            for name in random_states(with_params(self.base_estimator, params))
            if name not in params
        ]
        return [
            Fit(
                candidate,
                {**params, **dict.fromkeys(seeded, seeds[seed])},
                split,
                self.plan.splits[split].train,
                seed,
            )
            for seed, split in product(range(len(seeds)), range(len(self.plan.splits)))
        ]

    def _outcome(self, fits: Sequence[tuple[Fit, FitScores]], n_seeds: int) -> Outcome:
        """Return scores as arrays; NaN where fits have none."""
        shape = n_seeds, self.plan.n_replicates, len(self.plan.domains)
        ood = np.full(shape, np.nan)
        for job, scores in fits:
            replicate = self.plan.splits[job.split].replicate
            for domain, score in scores.ood.items():
                ood[job.seed, replicate, domain] = score
        sizes = [s.n_components for _, s in fits if s.error is None]
        return Outcome(
            ood.reshape(-1, shape[-1]),
            np.array([scores.id for _, scores in fits]),
            float(np.mean(sizes)) if sizes else np.nan,
        )

    def _collect(
        self, fits: Sequence[tuple[Fit, FitScores]], n_seeds: int
    ) -> TrialScores:
        errors = [scores.error for _, scores in fits if scores.error is not None]
        if errors and self.error_score == "raise":
            raise errors[0]
        for job, scores in fits:
            if scores.error is not None:
                domains = self.plan.splits[job.split].ood
                scores.ood = dict.fromkeys(domains, self.error_score)
                scores.id = self.error_score
        ranks = [scores.rank for _, scores in fits if scores.error is None]
        return TrialScores(
            self._outcome(fits, n_seeds),
            float(np.mean(ranks)) if ranks else np.nan,
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

    def __init__(
        self,
        check: ShouldPrune,
        outcome: Callable[[Sequence[tuple[Fit, FitScores]]], Outcome],
    ) -> None:
        self.check = check
        self.outcome = outcome
        self.scores: dict[int, list[tuple[Fit, FitScores]]] = {}
        self.is_pruned = False
        self.error: Exception | None = None

    def report(self, epoch: int, job: Fit, scores: FitScores) -> None:
        """Note a fit's scores; once all have come, check the trial."""
        fits = self.scores.setdefault(epoch, [])
        fits.append((job, scores))
        outcome = self.outcome(fits)
        # Where a fit has ended early, there is no such epoch any more.
        if not np.isnan(outcome.ood).any():
            del self.scores[epoch]
            try:
                self.is_pruned = self.check(epoch, outcome)
            except Exception as error:
                # The study's, not the fit's: raised once the stack has come to its end.
                self.error, self.is_pruned = error, True

    def follow(
        self,
        job: Fit,
        score: Callable[[], FitScores],
        epoch: int,
        n_epochs: int,
    ) -> bool:
        """Report a fit's scores from time to time; return whether to end it."""
        is_due = epoch % max(1, n_epochs // _REPORTS) == 0 and epoch < n_epochs
        if is_due and not self.is_pruned:
            # A score that can't be had is no report; its error comes up at the end.
            with suppress(Exception):
                # The last fit of a trial decides for all, which stop at their next one.
                self.report(epoch, job, score())
        return self.is_pruned
