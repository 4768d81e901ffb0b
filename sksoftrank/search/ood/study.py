"""The loop: asks Optuna for trials in batches, evaluates them, tells their scores.

A study is what was queued for it and the first other trials by number, up to
`n_trials`, that finished: completed, pruned, or failed by an error of their own. The
choice is made of them once none is running, and later ones, such as two workers may
start at the same time, have higher numbers. So every worker, a late one too, chooses
from the same.
"""

from __future__ import annotations

import math
import threading
import time
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import optuna
from optuna.exceptions import (
    DuplicatedStudyError,
    ExperimentalWarning,
    UpdateFinishedTrialError,
)
from optuna.samplers import BruteForceSampler, GridSampler, RandomSampler
from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial, Trial, TrialState
from tqdm.auto import tqdm

from sksoftrank._optuna import optimize_loop, stop_requested
from sksoftrank.search.ood import storage as storages
from sksoftrank.search.ood.choice import Criterion, Outcome
from sksoftrank.search.ood.evaluation import Evaluation, TrialScores
from sksoftrank.search.ood.space import BASELINE, Params, Queued, Space
from sksoftrank.search.ood.storage import reconnect

# Attributes of trials, apart from those that a function of a trial may set.
QUEUED = "sksoftrank:queued"
SCORES = "sksoftrank:scores"
ID_SCORE = "sksoftrank:id_score"
OOD_SCORE = "sksoftrank:ood_score"
ERROR = "sksoftrank:error"

_POLL_SECONDS = (0.05, 1.0)


def open_study(
    storage: BaseStorage,
    name: str | None,
    directions: Sequence[Any],
    *,
    sampler: Any = None,
    pruner: Any = None,
) -> optuna.Study:
    """Create a study or join it; who joins draws other points than who created it."""
    options = {"storage": storage, "study_name": name, "sampler": sampler}
    options["pruner"] = pruner or optuna.pruners.NopPruner()
    with quiet():
        while True:
            if name is not None:
                with suppress(KeyError):
                    study = optuna.load_study(**options)
                    study.sampler.reseed_rng()
                    return study
            # Another worker may be the first.
            with suppress(DuplicatedStudyError):
                return optuna.create_study(**options, directions=directions)


@contextmanager
def quiet(level: int = optuna.logging.WARNING) -> Iterator[None]:
    """Keep Optuna from announcing each study on stderr."""
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(max(before, level))
    try:
        yield
    finally:
        optuna.logging.set_verbosity(before)


def is_baseline(trial: FrozenTrial) -> bool:
    """Return whether a trial is one of the baselines."""
    name: str = trial.user_attrs.get(QUEUED, "")
    return name.startswith(BASELINE)


def counted_trials(
    trials: Sequence[FrozenTrial], queue: Collection[str], n_trials: int
) -> list[FrozenTrial]:
    """Return the trials that are the study, finished or yet to be, by number."""
    queued: dict[str, FrozenTrial] = {}
    others = []
    for trial in trials:
        if trial.state == TrialState.FAIL and ERROR not in trial.user_attrs:
            continue  # Its worker was killed or interrupted.
        name = trial.user_attrs.get(QUEUED)
        if name is None:
            others.append(trial)
        elif name in queue:
            queued.setdefault(name, trial)
    counted = [*queued.values(), *others[: n_trials - len(queue)]]
    return sorted(counted, key=lambda trial: trial.number)


def beat(study: optuna.Study, storage: BaseStorage, number: int) -> None:
    """Record a sign of life of a trial, where the storage takes any."""
    if storages.has_heartbeat(storage):
        assert isinstance(storage, optuna.storages.RDBStorage)
        study_id = storage.get_study_id_from_name(study.study_name)
        storage.record_heartbeat(
            storage.get_trial_id_from_study_id_trial_number(study_id, number)
        )


@dataclass
class StudyLoop:
    """One worker on a study."""

    study: optuna.Study
    storage: BaseStorage
    evaluation: Evaluation
    seeds: Sequence[int]
    space: Space
    # By name; at most `n_trials`.
    queue: Mapping[str, Queued]
    n_trials: int
    batch_size: int
    criterion: Criterion
    timeout: float | None = None
    callbacks: Sequence[Callable[[optuna.Study, FrozenTrial], None]] = ()
    verbose: int = 0
    # Of the trials that this worker ran, by number.
    params: dict[int, Params] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._is_exhausted = False
        self._seen: set[int] = set()

    def run(self) -> list[FrozenTrial]:
        """Work on the study until it has all its trials; return those finished."""
        deadline = time.monotonic() + (self.timeout or math.inf)
        n_waits = 0
        before = [t for t in reconnect(self._counted) if t.state.is_finished()]
        options = {"total": self.n_trials, "initial": len(before), "unit": "trial"}
        bar = tqdm(**options, disable=self.verbose <= 0)
        with optimize_loop(self.study), bar:
            while True:
                counted = reconnect(self._counted)
                finished = [trial for trial in counted if trial.state.is_finished()]
                values = [trial.values[0] for trial in finished if trial.values]
                if values:
                    bar.set_description(f"best {max(values):.4f}", refresh=False)
                bar.update(len(finished) - bar.n)
                running = [t for t in counted if t.state == TrialState.RUNNING]
                n_waiting = len(counted) - len(finished) - len(running)
                n_free = 0 if self._is_exhausted else self.n_trials - len(counted)
                n_queued = sum(QUEUED in trial.user_attrs for trial in finished)
                is_stopped = stop_requested(self.study)
                if is_stopped or time.monotonic() > deadline:
                    n_free = 0
                    # Where the sampler has stopped all workers, they finish theirs.
                    is_last = is_stopped and self._tries_everything()
                    if n_queued == len(self.queue) and not is_last:
                        return finished
                if n_waiting + n_free:
                    self._run_batch(n_waiting, n_free)
                    n_waits = 0
                elif running:
                    self._wait(running, n_waits)
                    n_waits += 1
                else:
                    return finished

    # -- Which trials there are --------------------------------------------------------

    def _counted(self) -> list[FrozenTrial]:
        """Return the trials that count, after what is missing was queued."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)
            optuna.storages.fail_stale_trials(self.study)
        trials = self.study.get_trials(deepcopy=False)
        counted = counted_trials(trials, self.queue, self.n_trials)
        there = {trial.user_attrs.get(QUEUED) for trial in counted}
        missing = [name for name in self.queue if name not in there]
        if not missing:
            return counted
        for name in missing:
            self.study.enqueue_trial(self.queue[name].point, user_attrs={QUEUED: name})
        if not trials and isinstance(self.study.sampler, BruteForceSampler):
            # It takes for tried the points where what was evaluated is another.
            points = [q.point for q in self.queue.values() if q.params is not None]
            for k, point in enumerate(points[: self.n_trials - len(self.queue)]):
                if point not in points[:k]:
                    self.study.enqueue_trial(point)
        return self._counted()

    def _tries_everything(self) -> bool:
        return isinstance(self.study.sampler, GridSampler | BruteForceSampler)

    def _has_nothing_left(self) -> bool:
        """Return whether a sampler that tries everything has; else it repeats."""
        if not self._tries_everything():
            return False
        trials = [
            trial
            for trial in reconnect(partial(self.study.get_trials, deepcopy=False))
            if trial.state != TrialState.WAITING
        ]
        with quiet(optuna.logging.ERROR):
            probe = optuna.create_study(
                sampler=self.study.sampler, directions=self.study.directions
            )
            probe.add_trials(trials)
            with optimize_loop(probe):
                trial = probe.ask()
                with suppress(optuna.TrialPruned):
                    self.space.suggest(trial)
        self._is_exhausted = any(
            trial.params == other.params
            for other in trials
            if QUEUED not in other.user_attrs
            and (other.state != TrialState.FAIL or ERROR in other.user_attrs)
        )
        return self._is_exhausted

    # -- One batch ---------------------------------------------------------------------

    def _run_batch(self, n_waiting: int, n_free: int) -> None:
        untold: list[Trial] = []
        candidates: dict[Trial, Params] = {}
        try:
            with self._alive(untold):
                for place in range(min(self.batch_size, n_waiting + n_free)):
                    # What waits comes first.
                    if place >= n_waiting and self._has_nothing_left():
                        break
                    trial = reconnect(self.study.ask)
                    untold.append(trial)
                    reconnect(partial(beat, self.study, self.storage, trial.number))
                    if trial.number not in {t.number for t in reconnect(self._counted)}:
                        # Another worker was first, with the last or with one queued.
                        self._give_back(untold.pop())
                        continue
                    try:
                        params = self._suggest(trial)
                    except UpdateFinishedTrialError:  # Taken for gone: another's now.
                        untold.remove(trial)
                        continue
                    if params is None:
                        self._tell(trial, None, untold)
                    else:
                        candidates[trial] = params
                if candidates:
                    self._evaluate(candidates, untold)
        except BaseException:
            for trial in untold:
                self._give_back(trial)
            raise

    @contextmanager
    def _alive(self, trials: list[Trial]) -> Iterator[None]:
        """Show signs of life of trials, as `Study.optimize` does for one."""
        is_over = threading.Event()

        def go_on() -> None:
            while not is_over.wait(storages.BEAT_SECONDS):
                for trial in list(trials):
                    # One that fails is made up for by the next.
                    with suppress(Exception):
                        beat(self.study, self.storage, trial.number)
            self.storage.remove_session()

        thread = threading.Thread(target=go_on, daemon=True)
        if storages.has_heartbeat(self.storage):
            thread.start()
        try:
            yield
        finally:
            is_over.set()
            if thread.ident is not None:
                thread.join()

    def _suggest(self, trial: Trial) -> Params | None:
        """Return a trial's parameters; None if its function pruned it."""
        params: Params | None = None
        with suppress(optuna.TrialPruned):
            params = reconnect(partial(self.space.suggest, trial))
        queued = self.queue.get(trial.user_attrs.get(QUEUED, ""))
        if queued is not None and queued.params is not None:
            params = dict(queued.params)
        self.params[trial.number] = trial.params if params is None else params
        return params

    def _evaluate(self, candidates: dict[Trial, Params], untold: list[Trial]) -> None:
        checks = None
        if not isinstance(self.study.pruner, optuna.pruners.NopPruner):
            checks = [partial(self._should_prune, trial) for trial in candidates]
        results = self.evaluation.run(list(candidates.values()), self.seeds, checks)
        for trial, scores in zip(candidates, results, strict=True):
            self._tell(trial, scores, untold)

    def _should_prune(self, trial: Trial, epoch: int, outcome: Outcome) -> bool:
        score = outcome.score(self.criterion)
        with suppress(UpdateFinishedTrialError):  # Taken for gone: another's now.
            reconnect(partial(trial.report, score, epoch))
        return QUEUED not in trial.user_attrs and trial.should_prune()

    def _tell(
        self,
        trial: Trial,
        scores: TrialScores | None,
        untold: list[Trial],
    ) -> None:
        # One taken for gone, since its signs of life were late, is another's by now.
        told: FrozenTrial | None = None
        with suppress(UpdateFinishedTrialError):
            told = reconnect(partial(self._finish, trial, scores))
        untold.remove(trial)
        if told is not None:
            for callback in self.callbacks:
                callback(self.study, told)

    def _finish(self, trial: Trial, scores: TrialScores | None) -> FrozenTrial:
        values: list[float] | None = None
        state = TrialState.PRUNED
        if scores is not None and scores.are_sound:
            state = TrialState.COMPLETE
            outcome = scores.outcome
            ood_score = outcome.ood_score(self.criterion.aggregate)
            trial.set_user_attr(ID_SCORE, outcome.id_score)
            trial.set_user_attr(OOD_SCORE, ood_score)
            trial.set_user_attr(SCORES, scores.to_attr())
            values = [outcome.score(self.criterion)]
            if len(self.study.directions) > 1:
                values = [ood_score, outcome.id_score, outcome.n_components]
        elif scores is not None and not scores.is_pruned:
            state = TrialState.FAIL
            error = scores.error or ValueError("the score is not finite")
            trial.set_user_attr(ERROR, f"{type(error).__name__}: {error}"[:500])
        sampler = self.study.sampler
        if QUEUED in trial.user_attrs:
            # Not this sampler's trial: GridSampler would miss a place in its grid.
            self.study.sampler = RandomSampler()
        try:
            return self.study.tell(trial, values, state=state, skip_if_finished=True)
        finally:
            self.study.sampler = sampler

    def _give_back(self, trial: Trial) -> None:
        """Fail a trial that was not run to its end, and queue it once more."""
        with suppress(Exception):  # Where the storage is what failed.
            told = self.study.tell(trial, state=TrialState.FAIL)
            if QUEUED not in trial.user_attrs:  # Else queued where it is missing.
                storages.retry_callback()(self.study, told)

    def _wait(self, running: list[FrozenTrial], n_waits: int) -> None:
        """Wait for the trials of others, the longer the more often one has."""
        first, longest = _POLL_SECONDS
        for trial in running:
            if trial.number not in self._seen:
                # Once: one that was killed before its first beat would never be stale.
                self._seen.add(trial.number)
                reconnect(partial(beat, self.study, self.storage, trial.number))
        if n_waits * longest == storages.GRACE_SECONDS and not storages.has_heartbeat(
            self.storage
        ):
            numbers = [trial.number for trial in running]
            warnings.warn(
                f"Waiting for the trials {numbers} of other workers. This storage "
                "can't tell whether these are alive: if they are not, end each trial "
                "with study.tell(number, state=TrialState.FAIL), or use the URL of a "
                "database as storage.",
                stacklevel=6,
            )
        time.sleep(min(longest, first * 1.5**n_waits))
