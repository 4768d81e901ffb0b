"""Studies that outlive killed workers, full disks, servers and files that fail."""

import errno
import json
import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import time
from glob import glob
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import optuna
import pytest
from _ood_workers import N_TRIALS, make_data, make_search
from optuna.trial import TrialState, create_trial

from sksoftrank.search import _ood_storage, _ood_study
from sksoftrank.search._ood_study import TASK, WORKER, SharedStudy, open_study

WORKERS = Path(__file__).with_name("_ood_workers.py")
N_ROUNDS = 10


def run_rounds(storage, n_rounds=N_ROUNDS):
    """Kill a worker in each round; hold what is left against what must be."""
    done = subprocess.run(
        [sys.executable, WORKERS, storage, str(n_rounds), "0"],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    rounds = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(rounds) == n_rounds
    opened = _ood_storage.open_storage(storage)
    for number, outcome in enumerate(rounds):
        assert outcome["killed"][0] in (-signal.SIGKILL, 0), done.stderr
        for code, report in (outcome["alive"], outcome["late"]):
            assert code == 0, done.stderr
            assert report["n_trials"] == N_TRIALS
            assert report["n_baselines"] == 4
            assert not np.isnan(report["scores"]).any()
        assert outcome["alive"] == outcome["late"]
        study = open_study(opened, f"round {number}", ["maximize"])
        states = [trial.state for trial in study.trials]
        assert states.count(TrialState.COMPLETE) == N_TRIALS
        assert TrialState.RUNNING not in states
    _ood_storage.release(opened)


def test_killed_workers_of_a_journal(tmp_path):
    run_rounds(str(tmp_path / "study.log"))


def test_killed_workers_of_sqlite(tmp_path):
    run_rounds(f"sqlite:///{tmp_path / 'study.db'}")


# -- PostgreSQL ------------------------------------------------------------------------


@pytest.fixture(scope="module")
def postgres(tmp_path_factory):
    """Start a server of our own; yield its URL and what stops it."""
    # Debian keeps the server's commands off the path.
    places = [os.environ["PATH"], *sorted(glob("/usr/lib/postgresql/*/bin"))]
    commands = {
        name: shutil.which(name, path=os.pathsep.join(places))
        for name in ("initdb", "postgres")
    }
    missing = [name for name, command in commands.items() if command is None]
    if missing:
        pytest.skip(f"PostgreSQL is not installed: no {', '.join(missing)}")
    if find_spec("psycopg") is None:
        pytest.skip("psycopg, the driver, is not installed")
    folder = tmp_path_factory.mktemp("postgres")
    user, run_as = pwd.getpwuid(os.getuid()).pw_name, {}
    if os.getuid() == 0:  # PostgreSQL refuses to run as root.
        try:
            owner = pwd.getpwnam("postgres")
        except KeyError:
            pytest.skip("PostgreSQL refuses to run as root, and no user postgres")
        user = owner.pw_name
        run_as = {"user": owner.pw_uid, "group": owner.pw_gid, "extra_groups": []}
        os.chown(folder, owner.pw_uid, owner.pw_gid)
        for parent in folder.parents:
            if parent.name.startswith(("pytest-", "popen-")):
                parent.chmod(parent.stat().st_mode | 0o011)
    data = folder / "data"
    subprocess.run(
        [commands["initdb"], "-D", data, "-A", "trust", "--no-sync"],
        check=True,
        capture_output=True,
        cwd="/",
        **run_as,
    )
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    options = {"listen_addresses": "127.0.0.1", "unix_socket_directories": folder}
    server = subprocess.Popen(
        [
            *(commands["postgres"], "-D", data, "-p", str(port), "-F"),
            *(word for k, v in options.items() for word in ("-c", f"{k}={v}")),
        ],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        cwd="/",
        **run_as,
    )
    url = f"postgresql+psycopg://{user}@127.0.0.1:{port}/postgres"
    for _ in range(150):
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            break
        except OSError:
            time.sleep(0.1)
    yield url
    server.send_signal(signal.SIGINT)
    server.wait(timeout=30)


def test_killed_workers_of_postgresql(postgres):
    run_rounds(postgres)


def test_a_search_in_postgresql_goes_on(postgres):
    first = make_search(postgres, "again").set_params(n_trials=4).fit(*make_data())
    both = make_search(postgres, "again").fit(*make_data())
    np.testing.assert_array_equal(
        both.cv_results_["ood_score"][:4], first.cv_results_["ood_score"]
    )
    assert both.n_trials_ == N_TRIALS
    with pytest.raises(ValueError, match="differs in X:"):
        make_search(postgres, "again").fit(make_data()[0] + 1, make_data()[1])


# -- Workers that are gone -------------------------------------------------------------


@pytest.fixture
def shared(tmp_path):
    """Return a function that makes a worker's view of one study."""

    def make(n_trials=4, n_baselines=0):
        storage = _ood_storage.open_storage(tmp_path / "study.log")
        study = open_study(storage, "study", ["maximize"])
        return SharedStudy(study, storage, n_trials, n_baselines)

    return make


def leave_running(shared, params=None, place="elsewhere", process=(1, 1), **task):
    """Leave a trial as a worker does that is killed."""
    shared.storage.set_study_user_attr(
        shared.study_id,
        "sksoftrank:worker:gone",
        {"beat": 1, "place": place, "process": list(process)},
    )
    distribution = optuna.distributions.FloatDistribution(0, 1)
    shared.storage.create_new_trial(
        shared.study_id,
        create_trial(
            state=TrialState.RUNNING,
            params=params or {},
            distributions=dict.fromkeys(params or {}, distribution),
            user_attrs={WORKER: "gone", TASK: {"attempt": 1, **task}},
        ),
    )


def test_a_worker_on_another_machine_is_given_up_without_signs_of_life(
    shared, monkeypatch
):
    worker = shared(n_trials=1)
    leave_running(worker, {"x": 0.25})
    assert worker.claim(1) == []
    monkeypatch.setattr(_ood_study, "GRACE_SECONDS", 0.0)
    (claim,) = worker.claim(1)
    assert claim.retry_of == 0
    # The same parameters, until they have had their chances.
    trial = optuna.Trial(worker.study, claim.trial_id)
    assert trial.suggest_float("x", 0, 1) == 0.25


def test_a_worker_that_shows_life_keeps_its_trials(shared, monkeypatch):
    worker = shared(n_trials=1)
    leave_running(worker)
    monkeypatch.setattr(_ood_study, "GRACE_SECONDS", 0.05)
    for beat in range(2, 5):
        assert worker.claim(1) == []
        info = {"beat": beat, "place": "elsewhere", "process": [1, 1]}
        worker.storage.set_study_user_attr(
            worker.study_id, "sksoftrank:worker:gone", info
        )
        time.sleep(0.06)


@pytest.mark.skipif(_ood_study._place() is None, reason="no /proc on this system")
def test_a_process_of_this_machine_is_given_up_at_once(shared):
    worker = shared(n_trials=1)
    child = subprocess.Popen([sys.executable, "-c", "pass"])
    start = _ood_study._start_time(child.pid)
    child.wait()
    leave_running(worker, {}, _ood_study._place(), (child.pid, start or 0), baseline=0)
    (claim,) = worker.claim(1)
    assert claim.retry_of is None  # It had no parameters yet.


def test_a_lost_baseline_comes_again(shared):
    first = shared(n_trials=4, n_baselines=2)
    with first:
        assert [claim.baseline for claim in first.claim(1)] == [0]
    second = shared(n_trials=4, n_baselines=2)
    assert [claim.baseline for claim in second.claim(9)] == [0, 1, None, None]


def test_no_more_trials_than_asked_for(shared):
    one, other = shared(n_trials=3), shared(n_trials=3)
    assert len(one.claim(2)) == 2
    assert len(other.claim(9)) == 1
    assert one.claim(1) == other.claim(1) == []


def test_two_that_claim_the_last_trial(shared, monkeypatch):
    one, other = shared(n_trials=1), shared(n_trials=1)
    trials = one.trials

    def late():
        # Between the count and the claim comes the other one.
        result = trials()
        if not result:
            assert len(other.claim(1)) == 1
        return result

    monkeypatch.setattr(one, "trials", late)
    assert one.claim(1) == []
    assert len(other.trials()) == 1


def test_parameters_that_kill_are_tried_three_times(shared, monkeypatch):
    monkeypatch.setattr(_ood_study, "GRACE_SECONDS", -1.0)
    worker = shared(n_trials=1)
    leave_running(worker, {"x": 0.5}, attempt=3)
    (claim,) = worker.claim(1)
    assert claim.retry_of is None


def test_a_trial_taken_for_gone_is_not_told_twice(shared):
    worker = shared()
    (claim,) = worker.claim(1)
    worker.storage.set_trial_state_values(claim.trial_id, TrialState.FAIL)
    trial = optuna.Trial(worker.study, claim.trial_id)
    assert not worker.finish(trial, [1.0], TrialState.COMPLETE, {"a": 1})
    assert worker.finished() == []


def test_an_interruption_gives_its_trials_back(tmp_path, monkeypatch):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    search = make_search(str(tmp_path / "study.log"))
    with monkeypatch.context() as patch:
        patch.setattr("sksoftrank.training._grouping.train", interrupt)
        with pytest.raises(KeyboardInterrupt):
            search.fit(*make_data())
    assert not hasattr(search, "cv_results_")
    assert search.fit(*make_data()).n_trials_ == N_TRIALS


# -- Journals --------------------------------------------------------------------------


@pytest.fixture
def journal(tmp_path):
    """Return the path of a finished study's journal."""
    path = tmp_path / "study.log"
    make_search(path).set_params(n_trials=4).fit(*make_data())
    return path


@pytest.mark.parametrize("line", ["garbage", '{"op_code":4,"wor', "[]", "7", '"text"'])
def test_a_corrupt_journal(journal, line):
    lines = journal.read_text().splitlines()
    lines[5] = line
    journal.write_text("\n".join(lines) + "\n")
    before = journal.read_bytes()
    with pytest.raises(ValueError, match=r"study\.log.* line 6 is no record"):
        make_search(journal).fit(*make_data())
    assert journal.read_bytes() == before


def test_a_journal_of_other_records(tmp_path):
    path = tmp_path / "study.log"
    path.write_text('{"op_code": 0}\n')
    with pytest.raises(ValueError, match="must be a journal of Optuna's"):
        make_search(path).fit(*make_data())


def test_a_line_cut_off_is_dropped(journal):
    whole = journal.read_bytes()
    journal.write_bytes(whole + b'{"op_code":4,"worker_id":"half a li')
    search = make_search(journal).fit(*make_data())
    assert search.n_trials_ == N_TRIALS
    assert journal.read_bytes().startswith(whole + b"{")
    assert b"half a li" not in journal.read_bytes()


def test_a_full_disk_leaves_earlier_trials_intact(journal, monkeypatch):
    size = journal.stat().st_size
    write = os.write

    def full(fd, data):
        room = size + 2000 - os.fstat(fd).st_size
        if room <= 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(fd, data[:room])  # A part, as a disk does that fills up.

    with monkeypatch.context() as patch:
        patch.setattr(_ood_storage.os, "write", full)
        with pytest.raises(OSError, match=r"study\.log.*No space left") as caught:
            make_search(journal).fit(*make_data())
        assert caught.value.errno == errno.ENOSPC
    assert journal.read_bytes().endswith(b"\n")
    assert make_search(journal).fit(*make_data()).n_trials_ == N_TRIALS


def test_a_path_that_can_t_be(tmp_path):
    with pytest.raises(OSError, match="a directory"):
        make_search(tmp_path).fit(*make_data())
    with pytest.raises(OSError, match="make its directory"):
        make_search(tmp_path / "nowhere" / "study.log").fit(*make_data())


# -- Databases -------------------------------------------------------------------------


@pytest.mark.skipif(find_spec("psycopg") is None, reason="psycopg is not installed")
def test_a_server_out_of_reach(monkeypatch):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    url = f"postgresql+psycopg://me:secret@127.0.0.1:{port}/study"
    monkeypatch.setattr("sksoftrank.search._ood_fits.fit_stacked", None)
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
        ("sqlite:////nowhere/at/all.db", ConnectionError, "unable to open"),
    ],
)
def test_a_url_that_can_t_be(url, error, message, monkeypatch):
    monkeypatch.setattr(_ood_storage, "_SCHEMA_ATTEMPTS", 2)
    with pytest.raises(error, match=message) as caught:
        make_search(url).fit(*make_data())
    assert "secret" not in str(caught.value)


def test_a_database_that_fails_while_it_is_used(tmp_path, monkeypatch):
    path = tmp_path / "study.db"
    storage = f"sqlite:///{path}"
    make_search(storage).set_params(n_trials=4).fit(*make_data())
    finish = SharedStudy.finish

    def fail(self, *args, **kwargs):
        from sqlalchemy.exc import OperationalError

        finish(self, *args, **kwargs)
        raise OperationalError("UPDATE", {}, Exception("disk I/O error"))

    with monkeypatch.context() as patch:
        patch.setattr(SharedStudy, "finish", fail)
        with pytest.raises(ConnectionError, match="Finished trials are kept"):
            make_search(storage).fit(*make_data())
    assert make_search(storage).fit(*make_data()).n_trials_ == N_TRIALS
