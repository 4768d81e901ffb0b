"""What the searches share: jobs, their grouping into stacks, and pipelines' fits."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import numpy as np
import numpy.typing as npt
from joblib import effective_n_jobs
from joblib.parallel import LokyBackend, get_active_backend
from sklearn.base import BaseEstimator, clone
from sklearn.pipeline import Pipeline

from sksoftrank._joblib import are_processes_started
from sksoftrank._sklearn import _check_method_params, _safe_split, _validate_params
from sksoftrank.estimators._stacked_fit import PendingFit, fits_by_parts
from sksoftrank.training._grouping import (
    stack_bytes,
    stack_key,
    stack_size,
    training_seconds,
    unsupported_reason,
)

Array = npt.NDArray[Any]


@dataclass
class Job:
    """One candidate on one split."""

    candidate: int
    params: dict[str, Any]
    # Identities of the values, which those don't keep on their way to a process.
    ids: dict[str, int]
    split: int
    train: Array


# A new process imports torch and scikit-learn.
START_SECONDS = 4.0

AnyJob = TypeVar("AnyJob", bound=Job)


@dataclass
class StackPlan(Generic[AnyJob]):
    """Jobs in lists that can train together, why others can't, and the memory."""

    # As asked for, or 1 where processes would take longer to start than they save.
    n_jobs: int | None
    chunks: list[list[AnyJob]]
    unsupported: Counter[str]
    n_bytes: int


def plan_stacks(
    base_estimator: BaseEstimator,
    jobs: Sequence[AnyJob],
    X: Any,
    n_classes: int,
    n_jobs: int | None,
    *,
    whole_candidates: bool = False,
) -> StackPlan[AnyJob]:
    """Group jobs into stacks.

    With `whole_candidates` no candidate is in two stacks, for those that are followed
    while they train.
    """
    by_candidate: dict[int, list[AnyJob]] = {}
    for job in jobs:
        by_candidate.setdefault(job.candidate, []).append(job)
    stackable: dict[Hashable, list[AnyJob]] = {}
    lasts: dict[Hashable, Any] = {}
    plan = StackPlan[AnyJob](n_jobs, [], Counter(), 0)
    for own in by_candidate.values():
        last = last_step(with_params(base_estimator, own[0].params))
        if not fits_by_parts(last):
            reason: str | None = f"the candidate ends in {type(last).__name__}"
        else:
            try:
                _validate_params(last)
                # To see whether, not how large: X may be transformed before.
                net = last._sketch_net(n_classes, len(own[0].train))
                reason = unsupported_reason(net)
            except (ValueError, TypeError):  # Its fit will say so.
                reason = "invalid parameters"
        if reason is not None:
            plan.unsupported[reason] += len(own)
            plan.chunks.extend([job] for job in own)
        else:
            key = stack_key(net)
            stackable.setdefault(key, []).extend(own)
            lasts[key] = last
    nets = {
        key: last._sketch_net(n_classes, len(stackable[key][0].train), X)
        for key, last in lasts.items()
    }
    if not plan.unsupported:
        plan.n_jobs = _choose_n_jobs(
            n_jobs,
            sum(
                training_seconds(nets[key], len(job.train))
                for key, members in stackable.items()
                for job in members
            ),
        )
    n_workers = effective_n_jobs(plan.n_jobs)
    for key, members in stackable.items():
        net = nets[key]
        size = stack_size(net, len(members), n_workers)
        if whole_candidates:
            n_each = len(by_candidate[members[0].candidate])
            size = max(1, size // n_each) * n_each
        else:
            # Splits together: their rows are cut out and transformed once a chunk.
            members = sorted(members, key=lambda job: job.split)
        stacks = [
            members[start : start + size] for start in range(0, len(members), size)
        ]
        plan.chunks.extend(stacks)
        n_splits = max(len({job.split for job in stack}) for stack in stacks)
        plan.n_bytes = max(
            plan.n_bytes,
            min(n_workers, len(stacks))
            * (
                stack_bytes(net, size)
                # Rows to train on, and once more all rows, cut out to be scored.
                + (n_splits + 1) * nbytes(X)
            ),
        )
    return plan


def explain_fallback(unsupported: Counter[str], n_fits: int) -> str | None:
    """Return why some of so many fits were not stacked; None if all were."""
    if not unsupported:
        return None
    reasons = ", ".join(f"{why} ({n} fits)" for why, n in unsupported.items())
    return f"{unsupported.total()} of {n_fits} fits were not stacked: {reasons}"


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


def prepare_fit(
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
    early = [(k, i) for k, i in job.ids.items() if not k.startswith(prefix)]
    key = (job.split, *sorted(early))
    if key in shared:
        other, fit = shared[key]
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
    shared[key] = (estimator, fit)
    return fit


def with_params(estimator: Any, params: dict[str, Any]) -> Any:
    """Return a clone with these parameters, which may be estimators themselves."""
    return clone(estimator).set_params(**clone(params, safe=False))


def nbytes(X: Any) -> int:
    """Return the size of an array, sparse matrix or frame; 0 of anything else."""
    if hasattr(X, "memory_usage"):
        return int(np.sum(X.memory_usage()))
    return int(getattr(getattr(X, "data", X), "nbytes", getattr(X, "nbytes", 0)))


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


def _take_steps(estimator: Any, other: Any) -> None:
    """Let a pipeline have the fitted steps of another, but its own last one."""
    while isinstance(estimator, Pipeline):
        estimator.steps[:-1] = other.steps[:-1]
        estimator, other = estimator.steps[-1][1], other.steps[-1][1]
