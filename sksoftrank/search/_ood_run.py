"""Works on a study: asks for trials, evaluates them together, tells their scores."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import optuna
from optuna.trial import FrozenTrial, Trial, TrialState

from sksoftrank.search._fits import with_params
from sksoftrank.search._ood_choice import FloatArray, Outcome
from sksoftrank.search._ood_fits import Evaluation, TrialScores, Watch
from sksoftrank.search._ood_results import is_complete, outcome, to_attr
from sksoftrank.search._ood_space import NearestTrial, Params, Space, baseline_wanted
from sksoftrank.search._ood_storage import (
    is_in_memory,
    open_storage,
    release,
    storage_errors,
)
from sksoftrank.search._ood_study import ERROR, RESULT, Claim, SharedStudy, open_study


@dataclass
class Runner:
    """What a worker needs to know to run trials of a study."""

    evaluation: Evaluation
    space: Space
    grid: list[Params]
    seed: int
    n_trials: int
    timeout: float | None
    is_pareto: bool
    id_tolerance: float
    aggregate: str
    sampler: Any
    pruner: Any
    verbose: int

    def run(
        self, storage: Any, name: str | None, describe: Callable[[], dict[str, str]]
    ) -> tuple[optuna.Study, list[FrozenTrial]]:
        """Work on the study until it has all its trials; return them.

        `describe` returns what the study is of; no process sees one kept in memory.
        """
        deadline = time.monotonic() + (self.timeout or math.inf)
        directions = ["maximize", "maximize", "minimize"]
        opened = open_storage(storage)
        try:
            with storage_errors(storage):
                study = open_study(
                    opened,
                    name,
                    directions if self.is_pareto else directions[:1],
                    sampler=self.sampler,
                    pruner=self.pruner,
                )
                shared = SharedStudy(study, opened, self.n_trials, len(self.grid))
                if not is_in_memory(storage):
                    shared.check_fingerprint(describe(), storage)
                if self.sampler is not None and shared.trials():
                    # Others draw from the same sampler: not the same points.
                    study.sampler.reseed_rng()
                with shared:
                    finished = self._work(shared, deadline)
        finally:
            release(opened)
        if not finished:
            raise TimeoutError(
                f"timeout={self.timeout!r} must leave time for a trial, but none was "
                "finished. Raise it."
            )
        return study, finished

    def _work(self, shared: SharedStudy, deadline: float) -> list[FrozenTrial]:
        n_waits = 0
        while len(finished := shared.finished()) < self.n_trials:
            if time.monotonic() > deadline:
                break
            claims = shared.claim(self.evaluation.batch_size)
            if claims:
                self._evaluate(shared, claims)
                n_waits = 0
            else:
                shared.wait(n_waits)
                n_waits += 1
        return finished

    def _evaluate(self, shared: SharedStudy, claims: list[Claim]) -> None:
        asked = [self._ask(shared.study, claim) for claim in claims]
        watches: list[Watch | None] | None = None
        if self.pruner is not None:
            watches = [
                partial(self._is_hopeless, trial, claim.baseline is not None)
                for (trial, _), claim in zip(asked, claims, strict=True)
            ]
        results = self.evaluation.run([params for _, params in asked], watches)
        before = [outcome(t).id_score for t in shared.finished() if is_complete(t)]
        now = [float(scores.id.mean()) for scores in results if _is_sound(scores)]
        best_id = max(before + now, default=math.nan)
        for (trial, _), scores in zip(asked, results, strict=True):
            self._tell(shared, trial, scores, best_id)
        if self.verbose > 0:
            print(  # noqa: T201
                f"{len(shared.finished())} of {self.n_trials} trials; best "
                f"in-distribution score {best_id:.4f}"
            )

    def _ask(self, study: optuna.Study, claim: Claim) -> tuple[Trial, Params]:
        """Return a trial and its parameters."""
        if self.sampler is None:
            # Seeded by the trial, so that no two processes draw the same.
            seed = (self.seed + claim.number) % 2**32
            study.sampler = optuna.samplers.TPESampler(seed=seed)
        if claim.baseline is None:
            trial = Trial(study, claim.trial_id)
            return trial, self.space.suggest(trial)
        params = self.grid[claim.baseline]
        base = with_params(self.evaluation.base_estimator, params)
        wanted = baseline_wanted(base, params)
        trial = NearestTrial(study, claim.trial_id, wanted)
        self.space.suggest(trial)
        return trial, params

    def _is_hopeless(
        self, trial: Trial, is_baseline: bool, epoch: int, ood: FloatArray
    ) -> bool:
        score = Outcome(ood, np.zeros(1)).ood_score(self.aggregate)
        trial.report(score, epoch)
        return not is_baseline and trial.should_prune()

    def _tell(
        self, shared: SharedStudy, trial: Trial, scores: TrialScores, best_id: float
    ) -> None:
        if scores.is_pruned:
            shared.finish(trial, None, TrialState.PRUNED, {})
            return
        if not _is_sound(scores):
            error = scores.error or ValueError("the score is not finite")
            text = f"{type(error).__name__}: {error}"[:500]
            shared.finish(trial, None, TrialState.FAIL, {ERROR: text})
            return
        result = Outcome(scores.ood, scores.id, scores.n_components)
        values = [result.ood_score(self.aggregate)]
        constraints = {"id_score": best_id - self.id_tolerance - result.id_score}
        if self.is_pareto:
            values += [result.id_score, result.n_components]
            constraints = {}
        attrs = {RESULT: to_attr(scores)}
        shared.finish(trial, values, TrialState.COMPLETE, attrs, constraints)


def _is_sound(scores: TrialScores) -> bool:
    """Return whether a trial has all its scores."""
    return not scores.is_pruned and bool(
        np.isfinite(scores.ood).all() and np.isfinite(scores.id).all()
    )
