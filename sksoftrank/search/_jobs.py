"""The runner of a search's jobs, candidates on splits: in stacks where it can."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from joblib import effective_n_jobs
from joblib.parallel import LokyBackend, get_active_backend
from sklearn.base import BaseEstimator, clone
from sklearn.pipeline import Pipeline

from sksoftrank._joblib import are_processes_started
from sksoftrank._sklearn import _check_method_params, _safe_split, _validate_params
from sksoftrank.estimators._stacked_fit import (
    PendingFit,
    fit_stacked,
    fits_by_parts,
    refuse_checkpoint,
    run_stacks,
)
from sksoftrank.training import StopFlag
from sksoftrank.training._grouping import (
    stack_bytes,
    stack_key,
    stack_size,
    training_seconds,
    unsupported_reason,
)

Array = npt.NDArray[Any]

# A new process imports torch and scikit-learn.
START_SECONDS = 4.0


@dataclass
class Job:
    """One candidate on one split."""

    candidate: int
    params: dict[str, Any]
    split: int
    train: Array
    # What the values are known by, also where they come from another process.
    keys: dict[str, Hashable] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self.keys = {name: _key(value) for name, value in self.params.items()}


@dataclass
class FittedJob:
    """A job's estimator, the error its fit ended with if any, and the time it took."""

    estimator: Any
    error: Exception | None
    seconds: float


class _RunStack(Protocol):
    def __call__(self, jobs: list[Any], *, stop: StopFlag) -> list[Any]: ...


@dataclass
class StackPlan:
    """Jobs in lists that train together, several of them at a time, and the memory."""

    jobs: Sequence[Job]
    stacks: list[list[Job]]
    # As asked for, or 1 where processes would take longer to start than they save.
    n_jobs: int | None
    n_bytes: int

    def run(self, run_stack: _RunStack, **options: Any) -> list[Any]:
        """Return what `run_stack` returns for each job, in their order.

        `options` are those of :class:`joblib.Parallel`: processes by default, as the
        many short calls of a step would wait for each other's interpreter lock in
        threads.
        """
        done = run_stacks(run_stack, self.stacks, n_jobs=self.n_jobs, **options)
        by_job = {
            id(job): result
            for stack, results in zip(self.stacks, done, strict=True)
            for job, result in zip(stack, results, strict=True)
        }
        return [by_job[id(job)] for job in self.jobs]


class StackPlanner:
    """Groups jobs into stacks, and remembers which could not be stacked, and why.

    Where about so many plans are to come, processes are started for all of them.
    """

    def __init__(
        self,
        base_estimator: BaseEstimator,
        X: Any,
        y: Any,
        n_jobs: int | None,
        *,
        n_plans: int = 1,
    ) -> None:
        self.base_estimator = base_estimator
        self.X = X
        self.n_classes = len(set(np.asarray(y).ravel().tolist()))
        self.n_jobs = n_jobs
        self.n_plans = n_plans
        self.n_planned = 0
        self.n_bytes = 0
        self.unsupported: Counter[str] = Counter()

    def plan(self, jobs: Sequence[Job], *, whole_candidates: bool = False) -> StackPlan:
        """Return which jobs train together.

        With `whole_candidates` no candidate is in two stacks, for those that are
        followed while they train.
        """
        by_candidate: dict[int, list[Job]] = {}
        for job in jobs:
            by_candidate.setdefault(job.candidate, []).append(job)
        alone: list[list[Job]] = []
        stackable: dict[Hashable, list[Job]] = {}
        lasts: dict[Hashable, Any] = {}
        for own in by_candidate.values():
            candidate = with_params(self.base_estimator, own[0].params)
            refuse_checkpoint(candidate)
            last = last_step(candidate)
            # To see whether, not how large: X may be transformed before.
            key, reason = self._stack_key(last, len(own[0].train))
            if reason is not None:
                self.unsupported[reason] += len(own)
                alone.extend([job] for job in own)
            else:
                stackable.setdefault(key, []).extend(own)
                lasts[key] = last
        nets = {
            key: last._sketch_net(self.n_classes, len(stackable[key][0].train), self.X)
            for key, last in lasts.items()
        }
        n_jobs = self.n_jobs
        if not alone:
            trainings = [
                training_seconds(nets[key], len(job.train))
                for key, members in stackable.items()
                for job in members
            ]
            n_jobs = _choose_n_jobs(n_jobs, self.n_plans * sum(trainings))
        plan = StackPlan(jobs, alone, n_jobs, 0)
        n_workers = effective_n_jobs(n_jobs)
        for key, members in stackable.items():
            size = stack_size(nets[key], len(members), n_workers)
            if whole_candidates:
                n_each = len(by_candidate[members[0].candidate])
                size = max(1, size // n_each) * n_each
            else:
                # Splits together: their rows are cut out and transformed once a stack.
                members = sorted(members, key=lambda job: job.split)
            stacks = [members[at : at + size] for at in range(0, len(members), size)]
            plan.stacks.extend(stacks)
            n_splits = max(len({job.split for job in stack}) for stack in stacks)
            # Rows to train on, and once more all rows, cut out to be scored.
            each = stack_bytes(nets[key], size) + (n_splits + 1) * _nbytes(self.X)
            plan.n_bytes = max(plan.n_bytes, min(n_workers, len(stacks)) * each)
        self.n_planned += len(jobs)
        self.n_bytes = max(self.n_bytes, plan.n_bytes)
        return plan

    def fallback_reason(self) -> str | None:
        """Return why some fits were not stacked; None if all were."""
        if not self.unsupported:
            return None
        reasons = ", ".join(f"{why} ({n} fits)" for why, n in self.unsupported.items())
        return (
            f"{self.unsupported.total()} of {self.n_planned} fits were not stacked: "
            f"{reasons}"
        )

    def _stack_key(self, last: Any, n_rows: int) -> tuple[Hashable, str | None]:
        """Return what networks that train together share, or why this one can't."""
        if not fits_by_parts(last):
            return None, f"the candidate ends in {type(last).__name__}"
        try:
            _validate_params(last)
            net = last._sketch_net(self.n_classes, n_rows)
            reason = unsupported_reason(net)
        except (ValueError, TypeError):  # Its fit will say so.
            return None, "invalid parameters"
        return (None, reason) if reason is not None else (stack_key(net), None)


def fit_jobs(
    base_estimator: BaseEstimator,
    jobs: Sequence[Job],
    X: Any,
    y: Any,
    fit_params: dict[str, Any],
    *,
    stop: StopFlag,
    basis_rows: int | None = None,
    follow: Callable[[int, Any], Callable[[int, int], bool] | None] | None = None,
) -> list[FittedJob]:
    """Fit jobs together; `follow` returns a fit's `on_epoch`, by place and estimator.

    Estimators whose `fit` is not ours are fitted as they fit themselves.
    """
    start = time.perf_counter()
    fitted: list[FittedJob] = []
    fits: dict[int, PendingFit] = {}
    shared: dict[Any, tuple[Any, PendingFit]] = {}
    for place, job in enumerate(jobs):
        own = FittedJob(with_params(base_estimator, job.params), None, 0.0)
        fitted.append(own)
        try:
            if fits_by_parts(last_step(own.estimator)):
                fit = _prepare_fit(own.estimator, job, X, y, fit_params, shared)
                fit.on_epoch = follow(place, own.estimator) if follow else None
                fits[place] = fit
            else:
                rows, labels = _safe_split(own.estimator, X, y, job.train)
                call = _check_method_params(X, fit_params, indices=job.train)
                own.estimator.fit(rows, labels, **call)
        except Exception as error:
            own.error = error
    fit_stacked(list(fits.values()), basis_rows=basis_rows, stop=stop)
    for place, fit in fits.items():
        fitted[place].error = fit.error
    seconds = (time.perf_counter() - start) / len(jobs)
    for own in fitted:
        own.seconds = seconds
    return fitted


def _prepare_fit(
    estimator: Any,
    job: Job,
    X: Any,
    y: Any,
    fit_params: dict[str, Any],
    shared: dict[Any, tuple[Any, PendingFit]],
) -> PendingFit:
    """Fit the steps before the last one, and return the last one's fit, not yet made.

    The steps before are fitted once for all jobs that share them, in `shared`.
    """
    last = last_step(estimator)
    prefix = step_prefix(estimator)
    early = [(k, key) for k, key in job.keys.items() if not k.startswith(prefix)]
    steps = (job.split, frozenset(early))
    if steps in shared:
        other, fit = shared[steps]
        _take_steps(estimator, other)
        return PendingFit(last, fit.X, fit.y, fit.params)
    rows, labels = _safe_split(estimator, X, y, job.train)
    call = _check_method_params(X, params=fit_params, indices=job.train)
    fit = PendingFit(last, rows, labels, call)
    if last is not estimator:

        def capture(X: Any, y: Any = None, **params: Any) -> Any:
            fit.X, fit.y, fit.params = X, y, params
            return last

        # The pipeline fits and transforms as it would, up to its last step's fit.
        last.fit = capture
        try:
            estimator.fit(rows, labels, **call)
        finally:
            del last.fit
    shared[steps] = (estimator, fit)
    return fit


def with_params(estimator: Any, params: dict[str, Any]) -> Any:
    """Return a clone with these parameters, which may be estimators themselves."""
    return clone(estimator).set_params(**clone(params, safe=False))


def last_step(estimator: Any) -> Any:
    """Return what a pipeline ends in; any other estimator itself."""
    while isinstance(estimator, Pipeline):
        estimator = estimator.steps[-1][1]
    return estimator


def step_prefix(estimator: Any) -> str:
    """Return what the names of the last step's parameters begin with."""
    prefix = ""
    while isinstance(estimator, Pipeline):
        name, estimator = estimator.steps[-1]
        prefix += f"{name}__"
    return prefix


def _key(value: Any) -> Hashable:
    is_scalar = isinstance(value, bool | int | float | str | None)
    return (type(value).__name__, value if is_scalar else id(value))


def _choose_n_jobs(n_jobs: int | None, seconds: float) -> int | None:
    """Return `n_jobs`, or 1 where processes would take longer to start than they save.

    By what the trainings take by their shapes, and never by the clock.
    """
    n_workers = effective_n_jobs(n_jobs)
    if n_workers == 1 or are_processes_started():
        return n_jobs
    starts_processes = isinstance(get_active_backend()[0], LokyBackend)
    saved = seconds * (1 - 1 / n_workers)
    return 1 if starts_processes and saved < START_SECONDS else n_jobs


def _nbytes(X: Any) -> int:
    """Return the size of an array, sparse matrix or frame; 0 of anything else."""
    if hasattr(X, "memory_usage"):
        return int(np.sum(X.memory_usage()))
    holder = X if hasattr(X, "nbytes") else getattr(X, "data", X)
    return int(getattr(holder, "nbytes", 0))


def _take_steps(estimator: Any, other: Any) -> None:
    """Let a pipeline have the fitted steps of another, but its own last one."""
    while isinstance(estimator, Pipeline):
        estimator.steps[:-1] = other.steps[:-1]
        estimator, other = estimator.steps[-1][1], other.steps[-1][1]
