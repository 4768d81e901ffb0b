"""A study that any number of processes work on, and that any of them may leave.

A trial is created running, with its worker's name on it, in one step. Those that count
are running, finished, or failed with an error of their fits; the first `n_trials` of
these, by number, are the study. A worker that is gone has its running trials failed by
the others, which makes room for new ones with the same parameters. So there is nothing
to lock, and no moment at which a worker may not be killed.
"""

from __future__ import annotations

import os
import re
import threading
import time
import uuid
from collections.abc import Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import joblib
import optuna
from optuna.exceptions import UpdateFinishedTrialError
from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial, TrialState, create_trial

from sksoftrank.search._ood_storage import is_shared, shown

# Seconds between the signs of life of a worker, and until it is given up without one.
BEAT_SECONDS = 10.0
GRACE_SECONDS = 60.0
_POLL_SECONDS = (0.05, 1.0)
# Times that the same parameters are tried, for they may be what kills the workers.
_ATTEMPTS = 3

# Attributes of trials.
WORKER = "sksoftrank:worker"
TASK = "sksoftrank:task"
RESULT = "sksoftrank:result"
ERROR = "sksoftrank:error"
# Of the study; the first two are prefixes.
_WORKER_INFO = "sksoftrank:worker:"
_FINGERPRINT = "sksoftrank:fingerprint:"

# Workers of this process.
_AT_WORK: set[str] = set()

_VALID = (TrialState.RUNNING, TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL)


@dataclass
class Claim:
    """A trial of this worker's own, and what is special about it."""

    trial_id: int
    number: int
    baseline: int | None = None
    retry_of: int | None = None


def open_study(
    storage: BaseStorage,
    name: str | None,
    directions: Sequence[Any],
    *,
    sampler: Any = None,
    pruner: Any = None,
) -> optuna.Study:
    """Create a study or join it."""
    options = {
        "storage": storage,
        "study_name": name,
        "sampler": sampler,
        "pruner": pruner or optuna.pruners.NopPruner(),
    }
    with _quiet():
        if name is not None:
            # Not by create_study's load_if_exists, which writes to a journal first.
            with suppress(KeyError):
                return optuna.load_study(**options)
        return optuna.create_study(
            **options, directions=directions, load_if_exists=name is not None
        )


@contextmanager
def _quiet() -> Any:
    """Keep Optuna from announcing each study on stderr."""
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(max(before, optuna.logging.WARNING))
    try:
        yield
    finally:
        optuna.logging.set_verbosity(before)


class SharedStudy:
    """One worker's view of a study."""

    def __init__(
        self, study: optuna.Study, storage: BaseStorage, n_trials: int, n_baselines: int
    ) -> None:
        self.study, self.storage = study, storage
        self.n_trials, self.n_baselines = n_trials, n_baselines
        self.study_id = storage.get_study_id_from_name(study.study_name)
        self.worker = uuid.uuid4().hex[:12]
        self._is_shared = is_shared(storage)
        self._place = _place()
        self._beat = 0
        self._seen: dict[str, tuple[int, float]] = {}
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._running: set[int] = set()

    # -- Life ------------------------------------------------------------------------

    def __enter__(self) -> Self:
        if self._is_shared:
            self._show_life()
            self._thread = threading.Thread(target=self._keep_alive, daemon=True)
            self._thread.start()
        _AT_WORK.add(self.worker)
        return self

    def __exit__(self, *_: object) -> None:
        _AT_WORK.discard(self.worker)
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
        # Others need not wait to find out. Where the storage is what failed, they must.
        for trial_id in self._running:
            with suppress(Exception):
                self.storage.set_trial_state_values(trial_id, TrialState.FAIL)
        if self._is_shared:
            with suppress(Exception):
                self._show_life(is_done=True)

    def _show_life(self, is_done: bool = False) -> None:
        self._beat += 1
        info = {
            "beat": self._beat,
            "place": self._place,
            "process": _process(),
            "is_done": is_done,
        }
        self.storage.set_study_user_attr(
            self.study_id, _WORKER_INFO + self.worker, info
        )

    def _keep_alive(self) -> None:
        while not self._stop.wait(BEAT_SECONDS):
            # One that fails is made up for by the next, or the trials are given up.
            with suppress(Exception):
                self._show_life()

    def _is_gone(self, worker: str, infos: Mapping[str, Any]) -> bool:
        info = infos.get(_WORKER_INFO + worker) or {}
        if info.get("is_done"):
            return True
        if self._place is not None and info.get("place") == self._place:
            if info["process"] == _process():
                return worker not in _AT_WORK
            if not _is_running(*info["process"]):
                return True
        # The clocks of two machines may differ: what counts is that it changes.
        beat = info.get("beat", 0)
        if self._seen.get(worker, (None, 0.0))[0] != beat:
            self._seen[worker] = (beat, time.monotonic())
        return time.monotonic() - self._seen[worker][1] > GRACE_SECONDS

    # -- Trials ----------------------------------------------------------------------

    def trials(self) -> list[FrozenTrial]:
        """Return the trials that count, in order, not to be changed."""
        return [
            trial
            for trial in self.storage.get_all_trials(
                self.study_id, deepcopy=False, states=_VALID
            )
            if WORKER in trial.user_attrs
            and (trial.state != TrialState.FAIL or ERROR in trial.user_attrs)
        ]

    def finished(self) -> list[FrozenTrial]:
        """Return the trials that count and run no more."""
        return [trial for trial in self.trials() if trial.state.is_finished()]

    def claim(self, n_wanted: int) -> list[Claim]:
        """Return new trials to run: as many as wanted, but a fair share of the rest."""
        n_workers = 1 if not self._is_shared else self._give_up_the_gone()
        n_left = self.n_trials - len(self.trials())
        claims: list[Claim] = []
        for _ in range(min(n_wanted, -(-n_left // n_workers))):
            if len(self.trials()) >= self.n_trials:
                break
            claim = self._claim_one()
            if claim is not None:
                claims.append(claim)
        return claims

    def _give_up_the_gone(self) -> int:
        """Fail the trials of workers that are gone; return how many are left."""
        infos = self.storage.get_study_user_attrs(self.study_id)
        running = [t for t in self.trials() if t.state == TrialState.RUNNING]
        workers = {
            *(trial.user_attrs[WORKER] for trial in running),
            *(
                n.removeprefix(_WORKER_INFO)
                for n in infos
                if n.startswith(_WORKER_INFO)
            ),
        } - {self.worker}
        gone = {worker for worker in workers if self._is_gone(worker, infos)}
        for trial in running:
            if trial.user_attrs[WORKER] in gone:
                # It, or another worker, may have been first.
                with suppress(UpdateFinishedTrialError):
                    self.storage.set_trial_state_values(
                        trial._trial_id, TrialState.FAIL
                    )
        return 1 + len(workers - gone)

    def _claim_one(self) -> Claim | None:
        template = create_trial(
            state=TrialState.RUNNING, user_attrs={WORKER: self.worker}
        )
        trial_id = self.storage.create_new_trial(self.study_id, template)
        self._running.add(trial_id)
        trials = self.trials()
        ids = [trial._trial_id for trial in trials]
        if trial_id not in ids[: self.n_trials]:  # Another one was first.
            self._give_back(trial_id)
            return None
        place = ids.index(trial_id)
        # Those before this one that have no task yet take theirs from the same queue.
        n_before = sum(TASK not in trial.user_attrs for trial in trials[:place])
        queue = self._tasks(trials)
        task: dict[str, Any] = {"attempt": 1}
        if n_before < len(queue):
            task = queue[n_before]
        params = task.pop("params", None)
        if params:
            self.storage.set_trial_system_attr(trial_id, "fixed_params", params)
        try:
            self.storage.set_trial_user_attr(trial_id, TASK, task)
        except UpdateFinishedTrialError:  # Taken for gone.
            self._running.discard(trial_id)
            return None
        return Claim(
            trial_id, trials[place].number, task.get("baseline"), task.get("retry_of")
        )

    def _tasks(self, trials: list[FrozenTrial]) -> list[dict[str, Any]]:
        """Return what no trial has been given yet: baselines, and what was lost."""
        tasks = [trial.user_attrs.get(TASK, {}) for trial in trials]
        taken = {task.get("baseline") for task in tasks}
        queue: list[dict[str, Any]] = [
            {"baseline": b, "attempt": 1}
            for b in range(self.n_baselines)
            if b not in taken
        ]
        failed = self.storage.get_all_trials(
            self.study_id, deepcopy=False, states=(TrialState.FAIL,)
        )
        retried = {
            trial.user_attrs.get(TASK, {}).get("retry_of")
            for trial in (*trials, *failed)
        }
        for trial in failed:
            lost = trial.user_attrs.get(TASK)
            if (
                lost is None
                or ERROR in trial.user_attrs
                or "baseline" in lost
                or trial.number in retried
                or lost["attempt"] >= _ATTEMPTS
                or not trial.params
            ):
                continue
            queue.append(
                {
                    "retry_of": trial.number,
                    "attempt": lost["attempt"] + 1,
                    "params": dict(trial.params),
                }
            )
        return queue

    def finish(
        self,
        trial: optuna.Trial,
        values: Sequence[float] | None,
        state: TrialState,
        attrs: Mapping[str, Any],
        constraints: Mapping[str, float] | None = None,
    ) -> bool:
        """Tell a trial's end; return False if it was taken for gone meanwhile."""
        try:
            for name, value in attrs.items():
                trial.set_user_attr(name, value)
            for name, value in (constraints or {}).items():
                trial.set_constraint(name, value)
            self.study.tell(
                trial,
                None if values is None else list(values),
                state=state,
                skip_if_finished=True,
            )
        except UpdateFinishedTrialError:
            return False
        finally:
            self._running.discard(trial._trial_id)
        return True

    def _give_back(self, trial_id: int) -> None:
        with suppress(UpdateFinishedTrialError):
            self.storage.set_trial_state_values(trial_id, TrialState.FAIL)
        self._running.discard(trial_id)

    def wait(self, n_waits: int) -> None:
        """Wait for others, the longer the more often one has."""
        first, longest = _POLL_SECONDS
        time.sleep(min(longest, first * 1.5**n_waits))

    # -- What the study is of ----------------------------------------------------------

    def check_fingerprint(self, parts: Mapping[str, str], given: Any) -> None:
        """Note what the study is of, or raise if it was of something else.

        Raises
        ------
        ValueError
            If a part differs, with its name and both values.
        """
        own = _FINGERPRINT + joblib.hash(dict(parts))[:16]
        self._compare(parts, own, given)
        if own not in self.storage.get_study_user_attrs(self.study_id):
            self.storage.set_study_user_attr(self.study_id, own, dict(parts))
            # Another one may have been written at the same time.
            self._compare(parts, own, given)

    def _compare(self, parts: Mapping[str, str], own: str, given: Any) -> None:
        attrs = self.storage.get_study_user_attrs(self.study_id)
        for name, other in attrs.items():
            if not name.startswith(_FINGERPRINT) or name == own:
                continue
            changed = [
                f"{part}: {_short(other.get(part))} before, {_short(parts.get(part))} "
                "now"
                for part in sorted({*parts, *other})
                if parts.get(part) != other.get(part)
            ]
            raise ValueError(
                f"study_name={self.study.study_name!r} in storage={shown(given)} must "
                f"be of the same search, but this one differs in {'; '.join(changed)}. "
                "Undo the change, or pass another study_name."
            )


def _short(text: str | None) -> str:
    if text is None:
        return "nothing"
    return text if len(text) <= 120 else f"{text[:117]}..."


def _place() -> str | None:
    """Return what all processes that can see each other's ids have in common."""
    with suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {Path('/proc/self/ns/pid').readlink()}"
    return None


def _process() -> list[int]:
    """Return this process's id, and when it started: ids come up again."""
    pid = os.getpid()
    return [pid, _start_time(pid) or 0]


def _start_time(pid: int) -> int | None:
    """Return a process's start in ticks; None if it is no more."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    # The name, in brackets, may hold anything.
    fields = re.sub(r"^.*\)", "", stat, flags=re.DOTALL).split()
    return None if fields[0] in ("Z", "X") else int(fields[19])


def _is_running(pid: int, start: int) -> bool:
    return _start_time(pid) == start
