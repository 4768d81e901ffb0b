"""Fits and scores a batch of trials: in stacks where that can be, else one by one."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from itertools import product
from typing import Any

import numpy as np
import torch
from joblib import effective_n_jobs
from sklearn.base import BaseEstimator
from sklearn.utils.metaestimators import _safe_split
from sklearn.utils.parallel import Parallel, delayed
from sklearn.utils.validation import _check_method_params

from sksoftrank.estimators._stacked_fit import PendingFit, fit_stacked, fits_by_parts
from sksoftrank.ood._rows import score_rows
from sksoftrank.search._fits import (
    Job,
    last_step,
    plan_stacks,
    prepare_fit,
    with_params,
)
from sksoftrank.search._ood_choice import FloatArray
from sksoftrank.search._ood_splits import Plan, Scored, Split
from sksoftrank.training import StopFlag

# Networks that a batch of trials trains: enough to fill stacks on two cores, and few
# enough for the sampler to learn from what came before.
_BATCH_FITS = 16
# Times that a trial is asked whether it is hopeless.
_REPORTS = 10

Watch = Callable[[int, FloatArray], bool]


@dataclass
class SeededJob(Job):
    """A job with one of the seeds."""

    seed: int


@dataclass
class FitScores:
    """What one fit scored; of a fit that failed, the error."""

    ood: dict[int, float] = field(default_factory=dict)
    parts: dict[int, list[float]] = field(default_factory=dict)
    id: float = np.nan
    n_components: float = np.nan
    rank: float = np.nan
    seconds: float = 0.0
    error: Exception | None = None
    is_stopped: bool = False


@dataclass
class TrialScores:
    """What a trial's fits scored; arrays as in `Outcome`."""

    ood: FloatArray
    id: FloatArray
    parts: FloatArray | None
    n_components: float
    rank: float
    seconds: float
    error: Exception | None
    is_pruned: bool


class Evaluation:
    """Evaluates configurations, each on all splits and with all seeds."""

    def __init__(
        self,
        base_estimator: BaseEstimator,
        X: Any,
        y: Any,
        plan: Plan,
        *,
        seeds: Sequence[int],
        fit_params: dict[str, Any],
        scorer: Callable[..., float],
        score_params: dict[str, Any],
        error_score: Any,
        n_jobs: int | None,
    ) -> None:
        self.base_estimator = base_estimator
        self.X, self.y, self.plan = X, y, plan
        self.seeds = seeds
        self.fit_params = fit_params
        self.scorer, self.score_params = scorer, score_params
        self.error_score = error_score
        self.n_jobs = n_jobs
        self.n_fits = 0
        self.unsupported: Counter[str] = Counter()
        self._identities: dict[Any, int] = {}
        self.n_classes = len(set(np.asarray(y).ravel().tolist()))

    @property
    def fits_per_trial(self) -> int:
        """Number of networks of a configuration."""
        return len(self.plan.splits) * len(self.seeds)

    @property
    def batch_size(self) -> int:
        """Number of trials to ask for at once; the same whatever the machine."""
        return max(1, _BATCH_FITS // self.fits_per_trial)

    def run(
        self,
        candidates: Sequence[dict[str, Any]],
        watches: Sequence[Watch | None] | None = None,
    ) -> list[TrialScores]:
        """Return what each configuration scores.

        A watch is called with an epoch's number and the scores at it, as
        (replicates, domains), and returns whether the trial is hopeless.
        """
        jobs = [
            job
            for candidate, params in enumerate(candidates)
            for job in self._jobs(candidate, params)
        ]
        followed = watches is not None
        stacks = plan_stacks(
            self.base_estimator,
            jobs,
            self.X,
            self.n_classes,
            self.n_jobs,
            whole_candidates=followed,
        )
        self.n_fits += len(jobs)
        self.unsupported += stacks.unsupported
        followers = [
            None if watch is None else Follower(watch, self._empty())
            for watch in watches or [None] * len(candidates)
        ]
        stop = StopFlag()
        threads = torch.get_num_threads()
        try:
            # Those that are followed report to the study, which lives here.
            done = Parallel(
                n_jobs=stacks.n_jobs, require="sharedmem" if followed else None
            )(
                delayed(_evaluate)(
                    self.base_estimator,
                    self.X,
                    self.y,
                    chunk,
                    [self.plan.splits[job.split] for job in chunk],
                    [followers[job.candidate] for job in chunk],
                    self.plan.n_replicates,
                    self.fit_params,
                    self.scorer,
                    self.score_params,
                    stop,
                    1 if effective_n_jobs(stacks.n_jobs) > 1 else None,
                )
                for chunk in stacks.chunks
            )
        except BaseException:
            stop.is_set = True  # Threads would train on.
            raise
        finally:
            torch.set_num_threads(threads)
        for follower in followers:
            if follower is not None and follower.error is not None:
                raise follower.error
        by_trial: list[list[tuple[SeededJob, FitScores]]] = [[] for _ in candidates]
        for chunk, results in zip(stacks.chunks, done, strict=True):
            for job, result in zip(chunk, results, strict=True):
                by_trial[job.candidate].append((job, result))
        return [self._collect(fits) for fits in by_trial]

    def fallback_reason(self) -> str | None:
        """Return why some fits were not stacked; None if all were."""
        if not self.unsupported:
            return None
        reasons = ", ".join(f"{why} ({n} fits)" for why, n in self.unsupported.items())
        return (
            f"{self.unsupported.total()} of {self.n_fits} fits were not stacked: "
            f"{reasons}"
        )

    def _jobs(self, candidate: int, params: dict[str, Any]) -> list[SeededJob]:
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
            ids = {name: self._identity(value) for name, value in settings.items()}
            train = self.plan.splits[split].train
            jobs.append(SeededJob(candidate, settings, ids, split, train, seed))
        return jobs

    def _identity(self, value: Any) -> int:
        """Return a number for a value, so that equal steps are fitted once."""
        if isinstance(value, bool | int | float | str | None):
            # Below zero, where no address is.
            key = (type(value), value)
            return self._identities.setdefault(key, -1 - len(self._identities))
        return id(value)

    def _empty(self) -> FloatArray:
        n_rows = self.plan.n_replicates * len(self.seeds)
        return np.full((n_rows, len(self.plan.domains)), np.nan)

    def _collect(self, fits: list[tuple[SeededJob, FitScores]]) -> TrialScores:
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
            float(sum(scores.seconds for _, scores in fits)),
            errors[0] if errors else None,
            any(scores.is_stopped for _, scores in fits),
        )


def random_states(estimator: Any) -> list[str]:
    """Return the names of an estimator's parameters that seed it."""
    names = sorted(estimator.get_params())
    return [name for name in names if name.rpartition("__")[2] == "random_state"]


class Follower:
    """Gathers the scores of a trial's fits at an epoch, and asks its watch."""

    def __init__(self, watch: Watch, empty: FloatArray) -> None:
        self.watch = watch
        self.empty = empty
        self.scores: dict[int, FloatArray] = {}
        self.is_hopeless = False
        self.error: Exception | None = None

    def report(self, epoch: int, row: int, scores: dict[int, float]) -> None:
        """Note a fit's scores; once all have come, ask."""
        table = self.scores.setdefault(epoch, self.empty.copy())
        for domain, score in scores.items():
            table[row, domain] = score
        # Where a fit has ended early, there is no such epoch any more.
        if not np.isnan(table).any():
            del self.scores[epoch]
            try:
                self.is_hopeless = self.watch(epoch, table)
            except Exception as error:
                # The study's, not the fit's: raised once the stack has come to its end.
                self.error, self.is_hopeless = error, True


def _evaluate(
    base_estimator: BaseEstimator,
    X: Any,
    y: Any,
    jobs: list[SeededJob],
    splits: list[Split],
    followers: list[Follower | None],
    n_replicates: int,
    fit_params: dict[str, Any],
    scorer: Callable[..., float],
    score_params: dict[str, Any],
    stop: StopFlag,
    n_threads: int | None,
) -> list[FitScores]:
    """Fit jobs together and score each."""
    if n_threads is not None:
        torch.set_num_threads(n_threads)
    start = time.perf_counter()
    estimators: list[Any] = []
    results = [FitScores() for _ in jobs]
    fits: dict[int, PendingFit] = {}
    shared: dict[Any, tuple[Any, PendingFit]] = {}

    def score(estimator: Any, rows: Scored) -> float:
        params = rows.params(X, score_params)
        return score_rows(scorer, estimator, *rows.cut(), **params)

    def score_all(estimator: Any, split: Split) -> dict[int, float]:
        return {domain: score(estimator, rows) for domain, rows in split.ood.items()}

    for place, (job, split) in enumerate(zip(jobs, splits, strict=True)):
        try:
            estimator = with_params(base_estimator, job.params)
            estimators.append(estimator)
            if fits_by_parts(last_step(estimator)):
                fits[place] = prepare_fit(estimator, job, X, y, fit_params, shared)
                follower = followers[place]
                if follower is not None:
                    fits[place].on_epoch = partial(
                        _follow,
                        follower,
                        job.seed * n_replicates + split.replicate,
                        last_step(estimator).max_epochs,
                        partial(score_all, estimator, split),
                    )
            else:
                rows, labels = _safe_split(estimator, X, y, job.train)
                call = _check_method_params(X, fit_params, indices=job.train)
                estimator.fit(rows, labels, **call)
        except Exception as error:
            results[place].error = error
            if len(estimators) == place:
                estimators.append(None)
    fit_stacked(list(fits.values()), stop=stop)
    for place, fit in fits.items():
        results[place].error = fit.error
    fit_seconds = (time.perf_counter() - start) / len(jobs)

    for place, (result, split) in enumerate(zip(results, splits, strict=True)):
        result.seconds = fit_seconds
        follower = followers[place]
        if follower is not None and follower.is_hopeless:
            result.is_stopped = True
        if result.error is not None or result.is_stopped:
            continue
        estimator = estimators[place]
        try:
            result.id = score(estimator, split.id)
            result.ood = score_all(estimator, split)
        except Exception as error:
            result.error = error
            continue
        # A metric may need more rows than a part has; then there are none.
        with suppress(Exception):
            result.parts = {
                domain: [score(estimator, rows) for rows in parts]
                for domain, parts in split.parts.items()
            }
        result.n_components = getattr(last_step(estimator), "n_components_", np.nan)
        result.rank = getattr(last_step(estimator), "rank_", np.nan)
    return results


def _follow(
    follower: Follower,
    row: int,
    max_epochs: int,
    score: Callable[[], dict[int, float]],
    epoch: int,
) -> bool:
    """Report a fit's scores from time to time; return whether its trial is hopeless."""
    is_due = epoch % max(1, max_epochs // _REPORTS) == 0 and epoch < max_epochs
    if is_due and not follower.is_hopeless:
        # A score that can't be had is no report; its error comes up at the end.
        with suppress(Exception):
            # The last fit of a trial decides for all, which stop at their next epoch.
            follower.report(epoch, row, score())
    return follower.is_hopeless
