"""Studies that outlive killed workers, full disks, servers and files that fail."""

import json
import os
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from contextlib import ExitStack, closing, contextmanager
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import optuna
import pytest
from _ood_workers import (
    N_TRIALS,
    finished,
    free_port,
    make_data,
    make_search,
    work,
)
from optuna.exceptions import ExperimentalWarning, StorageInternalError
from optuna.storages import GrpcStorageProxy, JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState, create_trial
from sqlalchemy import event
from sqlalchemy.exc import OperationalError, PendingRollbackError

from sksoftrank._optuna import optimize_loop
from sksoftrank.search.ood import storage as storages
from sksoftrank.search.ood.study import (
    ERROR,
    QUEUED,
    beat,
    counted_trials,
    open_study,
)

pytest_plugins = ["_postgres"]

WORKERS = Path(__file__).with_name("_ood_workers.py")
ONE_THREAD = {**os.environ, "OMP_NUM_THREADS": "1"}


def run_rounds(storage, n_rounds):
    """Kill a worker in each round; hold what is left against what must be."""
    done = subprocess.run(
        [sys.executable, WORKERS, "rounds", storage, str(n_rounds), "0"],
        capture_output=True,
        text=True,
        timeout=300,
        env=ONE_THREAD,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    rounds = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(rounds) == n_rounds
    for outcome in rounds:
        assert outcome["killed"][0] in (-signal.SIGKILL, 0), done.stderr
        for code, report in (outcome["alive"], outcome["late"]):
            assert code == 0, done.stderr
            assert len(set(report["trials"])) == N_TRIALS
            assert report["n_baselines"] == 4
            assert not np.isnan(report["scores"]).any()
        assert outcome["alive"] == outcome["late"]
        assert outcome["lost"] == []
        assert outcome["added"] == 0


def test_killed_workers(tmp_path):
    run_rounds(str(tmp_path / "study.db"), 10)


class Worker:
    """A process that works on a study once it is let go, and is not left behind."""

    def __init__(self, storage, n_trials=N_TRIALS):
        self.process = subprocess.Popen(
            [sys.executable, "-W", "error", WORKERS, "work", storage, str(n_trials)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=ONE_THREAD,
        )

    def go(self):
        self.process.stdin.write("\n")
        self.process.stdin.flush()

    def report(self):
        out, _ = self.process.communicate(timeout=300)
        assert self.process.returncode == 0
        return json.loads(out)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.communicate()


@contextmanager
def served(storage):
    """Run Optuna's gRPC proxy before a storage; give its name."""
    port = free_port()
    code = (
        "from optuna.storages import get_storage, run_grpc_proxy_server as run\n"
        f"run(get_storage({storage!r}), host='127.0.0.1', port={port})"
    )
    process = subprocess.Popen([sys.executable, "-W", "ignore", "-c", code])
    try:
        yield f"grpc:{port}"
    finally:
        process.terminate()
        process.wait()


@pytest.mark.parametrize("kind", ["journal", "grpc"])
def test_workers_on_a_storage_of_optuna_choose_the_same(tmp_path, kind):
    with ExitStack() as stack:
        if kind == "grpc":
            pytest.importorskip("grpc")
            pytest.importorskip("google.protobuf")
            kept = f"sqlite:///{tmp_path / 'study.db'}"
            storage = stack.enter_context(served(kept))
        else:
            kept = storage = f"journal:{tmp_path / 'study.log'}"
        workers = [stack.enter_context(Worker(storage)) for _ in range(2)]
        for worker in workers:
            worker.go()
        reports = [worker.report() for worker in workers]
    # A late one, where the study is kept.
    assert reports == [work(kept)] * 2
    assert len(set(reports[0]["trials"])) == N_TRIALS
    assert reports[0]["n_baselines"] == 4


def test_a_proxy_out_of_reach():
    pytest.importorskip("grpc")
    pytest.importorskip("google.protobuf")
    with pytest.warns(ExperimentalWarning):
        proxy = GrpcStorageProxy(host="127.0.0.1", port=free_port())
    with pytest.raises(ConnectionError, match=r"Proxy> .*: failed to connect"):
        make_search(proxy).fit(*make_data())
    proxy.close()


# -- Which trials count ----------------------------------------------------------------


def trial(number, state="COMPLETE", name=None, error=None):
    attrs = {QUEUED: name, ERROR: error}
    made = create_trial(
        state=TrialState[state],
        values=[0.5] if state == "COMPLETE" else None,
        user_attrs={k: v for k, v in attrs.items() if v is not None},
    )
    made.number = number
    return made


@pytest.mark.parametrize(
    ("trials", "expected"),
    [
        # More than are asked for.
        ([trial(0, name="a"), trial(1), trial(2), trial(3)], [0, 1, 2]),
        # Killed, and what came in its place.
        ([trial(0, name="a"), trial(1, "FAIL"), trial(2), trial(3)], [0, 2, 3]),
        # Failed of its own error, or pruned.
        (
            [trial(0, name="a"), trial(1, "FAIL", error="x"), trial(2, "PRUNED")],
            [0, 1, 2],
        ),
        # A later one may yet finish, and is waited for.
        ([trial(0, name="a"), trial(1, "RUNNING"), trial(2), trial(3)], [0, 1, 2]),
        # A baseline that came again, after all others, and one that came twice.
        (
            [
                trial(0, "FAIL", name="a"),
                trial(1),
                trial(2),
                trial(3, name="a"),
            ],
            [1, 2, 3],
        ),
        (
            [trial(0, name="a"), trial(1, name="a"), trial(2), trial(3)],
            [0, 2, 3],
        ),
    ],
)
def test_the_first_trials_that_finished_count(trials, expected):
    counted = counted_trials(trials, {"a"}, n_trials=3)
    assert [trial.number for trial in counted] == expected


def test_more_trials_than_asked_for_change_nothing(tmp_path):
    path = tmp_path / "study.db"
    first = make_search(path).fit(*make_data())
    best = first.study_.trials[first.best_index_]
    first.study_.add_trial(
        create_trial(
            values=[1.0],
            params=best.params,
            distributions=best.distributions,
            user_attrs=best.user_attrs,
        )
    )
    again = make_search(path).fit(*make_data())
    assert again.cv_results_["trial"].tolist() == list(range(N_TRIALS))
    assert again.best_params_ == first.best_params_


def test_workers_that_start_together_run_each_baseline_once(tmp_path):
    path = tmp_path / "study.db"
    storage = storages.open_storage(path)
    study = open_study(storage, "OODSearchCV", ["maximize"])
    for place in (0, 1, 2, 3, 0, 1, 2, 3):
        study.enqueue_trial(
            {"temperature": 1.0}, user_attrs={QUEUED: f"baseline {place}"}
        )
    search = make_search(path).fit(*make_data())
    assert search.cv_results_["trial"].tolist() == [0, 1, 2, 3, 8, 9, 10]
    states = [trial.state.name for trial in search.study_.trials]
    assert states == ["COMPLETE"] * 4 + ["FAIL"] * 4 + ["COMPLETE"] * 3


def test_who_comes_second_to_the_last_trial_does_not_run_it(monkeypatch):
    ask = optuna.Study.ask

    def race(study):
        if len(study.trials) == N_TRIALS - 1:
            study.tell(ask(study), state=TrialState.PRUNED)
        return ask(study)

    monkeypatch.setattr(optuna.Study, "ask", race)
    search = make_search().fit(*make_data())
    states = [trial.state.name for trial in search.study_.trials]
    assert states == ["COMPLETE"] * 6 + ["PRUNED", "FAIL", "WAITING"]
    assert search.n_trials_ == N_TRIALS


@pytest.mark.parametrize("is_early", [False, True])
def test_a_trial_taken_for_gone_is_not_told_twice(is_early):
    taken = []

    def space(trial):
        def take():
            if trial.number == 5 and not taken:
                taken.append(trial.study.tell(trial.number, state=TrialState.FAIL))

        if is_early:
            take()
        temperature = trial.suggest_float("temperature", 1, 10)
        take()
        return {"temperature": temperature}

    search = make_search().set_params(param_distributions=space).fit(*make_data())
    assert taken
    assert search.cv_results_["trial"].tolist() == [0, 1, 2, 3, 4, 6, 7]
    assert search.study_.trials[5].state == TrialState.FAIL


# -- Workers that are gone -------------------------------------------------------------


@pytest.mark.parametrize("n_beats", [0, 1])
def test_what_a_killed_worker_was_at_is_run_again(tmp_path, monkeypatch, n_beats):
    monkeypatch.setattr(storages, "BEAT_SECONDS", 1)
    monkeypatch.setattr(storages, "GRACE_SECONDS", 1)
    path = tmp_path / "study.db"
    make_search(path, n_trials=5).fit(*make_data())
    storage = storages.open_storage(path)
    study = open_study(storage, "OODSearchCV", ["maximize"])
    with optimize_loop(study):
        killed = study.ask()
        value = killed.suggest_float("temperature", 0.3, 100, log=True)
    for _ in range(n_beats):
        beat(study, storage, killed.number)
    search = make_search(path).fit(*make_data())
    assert search.study_.trials[killed.number].state == TrialState.FAIL
    assert search.n_trials_ == N_TRIALS
    numbers = search.cv_results_["trial"]
    assert killed.number not in numbers
    again = search.cv_results_["param_temperature"] == value
    assert numbers[again] == [max(numbers)]


def test_a_storage_without_signs_of_life_says_whom_it_waits_for(tmp_path, monkeypatch):
    monkeypatch.setattr(storages, "GRACE_SECONDS", 0)
    storage = JournalStorage(JournalFileBackend(str(tmp_path / "study.log")))
    make_search(storage, n_trials=5).fit(*make_data())
    study = open_study(storage, "OODSearchCV", ["maximize"])
    killed = study.ask()
    # As the warning says to do.
    end = threading.Timer(1, study.tell, [killed.number], {"state": TrialState.FAIL})
    end.start()
    with pytest.warns(UserWarning, match=rf"trials \[{killed.number}\] of other work"):
        search = make_search(storage, n_trials=6).fit(*make_data())
    assert search.cv_results_["trial"].tolist() == [0, 1, 2, 3, 4, 6]


class Interrupt:
    """Ctrl-C after a trial, once."""

    def __init__(self):
        self.is_on = True

    def __call__(self, study, trial):
        if self.is_on and trial.number == 4:
            self.is_on = False
            raise KeyboardInterrupt

    def __deepcopy__(self, memo):
        return self


@pytest.mark.parametrize("random_state", [0, None])
@pytest.mark.parametrize("in_memory", [False, True])
def test_a_search_goes_on_after_ctrl_c(tmp_path, in_memory, random_state):
    search = make_search(
        None if in_memory else tmp_path / "study.db",
        random_state=random_state,
        study_callbacks=[Interrupt()],
    )
    with pytest.raises(KeyboardInterrupt):
        search.fit(*make_data())
    assert not hasattr(search, "cv_results_")
    before = [t for t in search.study_.get_trials() if t.state == TrialState.COMPLETE]
    assert len(before) == 5
    search.fit(*make_data())
    assert search.n_trials_ == N_TRIALS
    after = {t.number: t for t in search.study_.get_trials()}
    assert [after[t.number] for t in before] == before
    # What was running then was not lost, and ran once more.
    drawn = search.cv_results_["param_temperature"].tolist()
    lost = [t for t in after.values() if t.state == TrialState.FAIL]
    assert all(t.params["temperature"] in drawn for t in lost)


def test_another_storage_after_ctrl_c_is_a_study_of_its_own(tmp_path):
    search = make_search(tmp_path / "study.db", study_callbacks=[Interrupt()])
    with pytest.raises(KeyboardInterrupt):
        search.fit(*make_data())
    search.set_params(storage=None).fit(*make_data())
    assert search.study_.study_name != "OODSearchCV"
    assert len(search.study_.trials) == N_TRIALS


def test_other_data_after_ctrl_c_are_a_study_of_their_own():
    X, y = make_data()
    search = make_search(study_callbacks=[Interrupt()])
    with pytest.raises(KeyboardInterrupt):
        search.fit(X, y)
    search.fit(X + 1, y)
    expected = make_search().fit(X + 1, y).cv_results_["mean_test_score"]
    np.testing.assert_array_equal(search.cv_results_["mean_test_score"], expected)


# -- SQLite ----------------------------------------------------------------------------


def test_a_full_disk(tmp_path):
    path = tmp_path / "study.db"
    make_search(path, n_trials=5).fit(*make_data())
    engine = sqlite3.connect

    class Full(sqlite3.Connection):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            self.execute("PRAGMA max_page_count = 1")  # No more than there are.

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            sqlite3.dbapi2, "connect", lambda *a, **k: engine(*a, factory=Full, **k)
        )
        with pytest.raises(ConnectionError, match=r"full.* kept: make room") as caught:
            make_search(path, n_trials=40).fit(*make_data())
    assert "study.db" in str(caught.value)
    assert make_search(path).fit(*make_data()).n_trials_ == N_TRIALS


def test_a_locked_database(tmp_path, monkeypatch):
    path = tmp_path / "study.db"
    make_search(path, n_trials=5).fit(*make_data())
    monkeypatch.setattr(storages, "_LOCK_SECONDS", 0.1)
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        with pytest.raises(ConnectionError, match=r"locked.* end the process"):
            make_search(path).fit(*make_data())
    assert make_search(path).fit(*make_data()).n_trials_ == N_TRIALS


def test_a_truncated_database(tmp_path):
    path = tmp_path / "study.db"
    make_search(path, n_trials=5).fit(*make_data())
    path.write_bytes(path.read_bytes()[:6000])
    with pytest.raises(ConnectionError, match=r"malformed.* put back a copy"):
        make_search(path).fit(*make_data())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"op_code": 0}\n', r"a journal of Optuna's\. Pass JournalStorage"),
        ("Dear diary,", "a file of another kind. Pass another path"),
    ],
)
def test_a_file_of_another_kind(tmp_path, text, message):
    path = tmp_path / "study.log"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        make_search(path).fit(*make_data())
    assert path.read_text() == text


def test_a_network_file_system(tmp_path, monkeypatch):
    mounts = tmp_path / "mounts"
    mounts.write_text(
        f"/dev/sda / ext4 rw 0 0\nhome:/x {tmp_path.resolve()} nfs4 rw 0 0\n"
    )
    monkeypatch.setattr(storages, "_MOUNTS", mounts)
    with pytest.raises(OSError, match=r"network file system, nfs4.* URL of a database"):
        make_search(tmp_path / "study.db").fit(*make_data())
    mounts.write_text("/dev/sda / ext4 rw 0 0\nhome:/x /somewhere nfs4 rw 0 0\n")
    storages.open_storage(tmp_path / "study.db")


def test_a_path_that_can_t_be(tmp_path):
    with pytest.raises(OSError, match="a directory"):
        make_search(tmp_path).fit(*make_data())
    with pytest.raises(OSError, match="make its directory"):
        make_search(tmp_path / "nowhere" / "study.db").fit(*make_data())


# -- Databases -------------------------------------------------------------------------


def test_a_call_whose_connection_broke_is_made_again():
    def fail(n_times, error):
        def call():
            calls.append(1)
            if len(calls) <= n_times:
                raise StorageInternalError from error
            return len(calls)

        calls = []
        return call

    refused = OperationalError("UPDATE", {}, Exception("refused"))
    gone = OperationalError(
        "UPDATE", {}, Exception("gone"), connection_invalidated=True
    )
    for error in (gone, PendingRollbackError()):
        assert storages.reconnect(fail(2, error)) == 3
    for call in (fail(3, gone), fail(1, refused)):
        with pytest.raises(StorageInternalError):
            storages.reconnect(call)


@pytest.mark.postgres
def test_a_connection_that_breaks_while_trials_are_read(server):
    storage = storages.open_storage(server.url)
    study = open_study(storage, "broken", ["maximize"])
    study.add_trial(create_trial(value=1.0))
    ended = []

    @event.listens_for(storage.engine, "before_cursor_execute")
    def _(connection, cursor, statement, *_):
        if "ORDER BY trials.trial_id" in statement and not ended:
            ended.append(connection.connection.driver_connection.info.backend_pid)
            with closing(storage.engine.raw_connection()) as other:
                other.cursor().execute(f"SELECT pg_terminate_backend({ended[0]}, 5000)")

    try:
        assert len(storages.reconnect(study.get_trials)) == 1
    finally:
        storages.release(storage)
    assert ended


@pytest.mark.skipif(find_spec("psycopg") is None, reason="psycopg is not installed")
def test_a_server_out_of_reach(monkeypatch):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    url = f"postgresql+psycopg://me:secret@127.0.0.1:{port}/study"
    monkeypatch.setattr("sksoftrank.search._jobs.fit_stacked", None)
    with pytest.raises(ConnectionError, match="can't be used") as caught:
        make_search(url).fit(*make_data())
    assert "secret" not in str(caught.value)
    assert "Nothing was trained" in str(caught.value)


@pytest.mark.parametrize(
    ("url", "error", "message"),
    [
        ("nothing://host/name", ValueError, "Correct the URL"),
        ("sqlite://host/name", ValueError, "Correct the URL"),
        ("mysql+pymysql://me:secret@localhost/x", ImportError, "driver"),
        ("sqlite:////nowhere/at/all.db", OSError, "make its directory"),
    ],
)
def test_a_url_that_can_t_be(url, error, message, monkeypatch):
    monkeypatch.setattr(storages, "_N_ATTEMPTS", 2)
    monkeypatch.setitem(sys.modules, "pymysql", None)
    with pytest.raises(error, match=message) as caught:
        make_search(url).fit(*make_data())
    assert "secret" not in str(caught.value)


# -- PostgreSQL ------------------------------------------------------------------------


@pytest.mark.postgres
def test_killed_workers_of_postgresql(server):
    run_rounds(server.url, 4)


@pytest.mark.postgres
def test_a_long_study_outlives_a_worker_and_an_outage(server):
    n_trials, name = 200, "OODSearchCV"

    def wait_for(n_finished):
        give_up = time.monotonic() + 300
        while len(trials := finished(server.url, name)) < n_finished:
            assert time.monotonic() < give_up
            time.sleep(0.2)
        return trials

    with ExitStack() as stack:
        killed, alive, new = (
            stack.enter_context(Worker(server.url, n_trials)) for _ in range(3)
        )
        killed.go()
        alive.go()
        wait_for(40)
        killed.process.kill()
        before = wait_for(0)
        new.go()
        before |= wait_for(100)
        server.stop()
        time.sleep(5)
        server.start()
        reports = [alive.report(), new.report()]
    after = finished(server.url, name)
    assert reports == [work(server.url, n_trials=n_trials)] * 2
    assert len(set(reports[0]["trials"])) == n_trials
    assert {number: after[number] for number in before} == before
    assert finished(server.url, name) == after


@pytest.mark.postgres
@pytest.mark.skipif(not hasattr(socket, "TCP_USER_TIMEOUT"), reason="Linux only")
def test_a_machine_that_is_gone_is_not_waited_for(server):
    storage = storages.open_storage(server.url)
    try:
        with storage.engine.connect() as connection:
            fileno = connection.connection.driver_connection.fileno()
            with socket.socket(fileno=os.dup(fileno)) as own:
                wait = own.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT)
    finally:
        storages.release(storage)
    assert wait == 10_000


@pytest.mark.postgres
def test_a_search_in_postgresql_goes_on(server):
    first = make_search(server.url, "again", n_trials=5).fit(*make_data())
    both = make_search(server.url, "again").fit(*make_data())
    np.testing.assert_array_equal(
        both.cv_results_["mean_test_score"][:5], first.cv_results_["mean_test_score"]
    )
    assert both.n_trials_ == N_TRIALS
    with pytest.raises(ValueError, match="differs in X:"):
        make_search(server.url, "again").fit(make_data()[0] + 1, make_data()[1])


@pytest.mark.postgres
def test_a_server_that_is_away_for_five_seconds(server):
    def restart(study, trial):
        if trial.number == 3:
            server.stop()
            again.start()

    again = threading.Timer(5, server.start)
    search = make_search(server.url, "away", study_callbacks=[restart])
    search.fit(*make_data())
    again.join()
    assert search.cv_results_["trial"].tolist() == list(range(N_TRIALS))


@pytest.mark.postgres
def test_a_server_that_does_not_come_back(server, monkeypatch):
    monkeypatch.setattr(storages, "_OUTAGE_SECONDS", 1)
    monkeypatch.setattr(storages, "BEAT_SECONDS", 1)
    monkeypatch.setattr(storages, "GRACE_SECONDS", 1)

    def stop(study, trial):
        if trial.number == 3:
            server.stop()

    search = make_search(server.url, "gone", study_callbacks=[stop])
    try:
        with pytest.raises(ConnectionError, match="Finished trials are kept: start"):
            search.fit(*make_data())
    finally:
        server.start()
    search.set_params(study_callbacks=None).fit(*make_data())
    assert search.n_trials_ == N_TRIALS
    assert len(finished(server.url, "gone")) == N_TRIALS
