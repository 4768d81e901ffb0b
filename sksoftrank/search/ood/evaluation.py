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
from sklearn.utils.parallel import Parallel, delayed

from sksoftrank._sklearn import _check_method_params, _safe_split
from sksoftrank.estimators._stacked_fit import PendingFit, fit_stacked, fits_by_parts
from sksoftrank.ood._rows import score_rows
from sksoftrank.search._fits import (
    Job,
    explain_fallback,
    last_step,
    plan_stacks,
    prepare_fit,
    with_params,
)
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
        self.n_fits = 0
        self.unsupported: Counter[str] = Counter()
        self._identities: dict[Any, int] = {}
        self.n_classes = len(set(np.asarray(self.y).ravel().tolist()))

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
        stacks = plan_stacks(
            self.base_estimator,
            jobs,
            self.X,
            self.n_classes,
            self.n_jobs,
            whole_candidates=checks is not None,
        )
        self.n_fits += len(jobs)
        self.unsupported += stacks.unsupported
        pruning = [
            None if checks is None else Pruning(checks[candidate], self._empty())
            for candidate in range(len(candidates))
        ]
        stop = StopFlag()
        threads = torch.get_num_threads()
        try:
            # Reports go to the study, which lives here.
            done = Parallel(
                n_jobs=stacks.n_jobs, require="sharedmem" if checks else None
            )(
                delayed(self._evaluate)(
                    chunk,
                    [pruning[job.candidate] for job in chunk],
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
        for own in pruning:
            if own is not None and own.error is not None:
                raise own.error
        by_trial: list[list[tuple[Fit, FitScores]]] = [[] for _ in candidates]
        for chunk, results in zip(stacks.chunks, done, strict=True):
            for job, result in zip(chunk, results, strict=True):
                by_trial[job.candidate].append((job, result))
        return [self._collect(fits) for fits in by_trial]

    def fallback_reason(self) -> str | None:
        """Return why some fits were not stacked; None if all were."""
        return explain_fallback(self.unsupported, self.n_fits)

    def _evaluate(
        self,
        jobs: list[Fit],
        pruning: list[Pruning | None],
        stop: StopFlag,
        n_threads: int | None,
    ) -> list[FitScores]:
        """Fit jobs together and score each."""
        if n_threads is not None:
            torch.set_num_threads(n_threads)
        splits = [self.plan.splits[job.split] for job in jobs]
        start = time.perf_counter()
        estimators: list[Any] = []
        results = [FitScores() for _ in jobs]
        fits: dict[int, PendingFit] = {}
        shared: dict[Any, tuple[Any, PendingFit]] = {}

        def score(estimator: Any, rows: Scored) -> float:
            params = rows.params(self.X, self.score_params)
            return score_rows(self.scorer, estimator, *rows.cut(), **params)

        def score_all(estimator: Any, split: Split) -> dict[int, float]:
            return {
                domain: score(estimator, rows) for domain, rows in split.ood.items()
            }

        for place, (job, split) in enumerate(zip(jobs, splits, strict=True)):
            try:
                estimator = with_params(self.base_estimator, job.params)
                estimators.append(estimator)
                if fits_by_parts(last_step(estimator)):
                    fits[place] = prepare_fit(
                        estimator, job, self.X, self.y, self.fit_params, shared
                    )
                    own = pruning[place]
                    if own is not None:
                        fits[place].on_epoch = partial(
                            own.follow,
                            job.seed * self.plan.n_replicates + split.replicate,
                            partial(score_all, estimator, split),
                        )
                else:
                    rows, labels = _safe_split(estimator, self.X, self.y, job.train)
                    call = _check_method_params(
                        self.X, self.fit_params, indices=job.train
                    )
                    estimator.fit(rows, labels, **call)
            except Exception as error:
                results[place].error = error
                if len(estimators) == place:
                    estimators.append(None)
        fit_stacked(list(fits.values()), stop=stop)
        for place, fit in fits.items():
            results[place].error = fit.error
        fit_time = (time.perf_counter() - start) / len(jobs)

        for place, (result, split) in enumerate(zip(results, splits, strict=True)):
            result.fit_time = fit_time
            own = pruning[place]
            result.is_pruned = own is not None and own.is_pruned
            if result.error is not None or result.is_pruned:
                continue
            start = time.perf_counter()
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
            result.score_time = time.perf_counter() - start
            result.n_components = getattr(last_step(estimator), "n_components_", np.nan)
            result.rank = getattr(last_step(estimator), "rank_", np.nan)
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
            ids = {name: self._identity(value) for name, value in settings.items()}
            train = self.plan.splits[split].train
            jobs.append(Fit(candidate, settings, ids, split, train, seed))
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
