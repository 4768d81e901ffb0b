"""Workers on one study, in processes of their own; run by test_ood_search_faults.

    python tests/_ood_workers.py rounds STORAGE ROUNDS SEED

Each round is a study of its own: two workers, one of which is killed with SIGKILL at a
random moment, and a third one that comes when all is done. Prints one JSON line a
round. Workers are forked, as importing torch takes longer than a whole study.

    python tests/_ood_workers.py work STORAGE N_TRIALS

One worker, which begins when it reads a line, and prints its report as JSON.
"""

import json
import os
import random
import signal
import socket
import sys
import time
import warnings
from contextlib import suppress

import numpy as np
import torch
from optuna.exceptions import ExperimentalWarning
from optuna.storages import GrpcStorageProxy, JournalStorage
from optuna.storages.journal import JournalFileBackend
from scipy.stats import loguniform

from sksoftrank import OODSearchCV, SoftRankMLPClassifier
from sksoftrank.search.ood import evaluation
from sksoftrank.search.ood import storage as storages
from sksoftrank.search.ood.study import open_study
from sksoftrank.shifts import OffsetDrift

N_TRIALS = 7


def make_search(storage=None, name=None, **options):
    return OODSearchCV(
        SoftRankMLPClassifier(4, max_epochs=2, batch_size=32),
        {"temperature": loguniform(0.3, 100)},
        **{
            "n_trials": N_TRIALS,
            "n_final_seeds": 1,
            "cv": 2,
            "shifts": [OffsetDrift(2)],
            "storage": storage,
            "study_name": name,
            "random_state": 0,
            **options,
        },
    )


def make_data():
    rng = np.random.default_rng(0)
    y = np.arange(60) % 3
    return np.eye(3, 4)[y] + rng.standard_normal((60, 4)), y


def free_port():
    """Return a port that the system gives to nobody while the server is away."""
    for port in range(20_000 + os.getpid() % 10_000, 32_000):
        with socket.socket() as free, suppress(OSError):
            free.bind(("127.0.0.1", port))
            return port
    raise OSError("no port is free")


def finished(storage, name):
    """Return the values of the trials that are complete, by number."""
    opened = storages.open_storage(storage)
    try:
        trials = open_study(opened, name, ["maximize"]).get_trials()
        return {t.number: t.values for t in trials if t.values is not None}
    finally:
        storages.release(opened)


def open_named(storage):
    """Return an Optuna storage for "journal:PATH" or "grpc:PORT"; others as given."""
    kind, _, where = storage.partition(":")
    if kind == "journal":
        return JournalStorage(JournalFileBackend(where))
    if kind == "grpc":
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)
            proxy = GrpcStorageProxy(host="127.0.0.1", port=int(where))
        proxy.wait_server_ready(60)
        return proxy
    return storage


def work(storage, name=None, n_trials=N_TRIALS):
    """Return what a worker chose, and from what."""
    search = make_search(open_named(storage), name, n_trials=n_trials)
    results = search.fit(*make_data()).cv_results_
    return {
        "trials": results["trial"].tolist(),
        "best": int(results["trial"][search.best_index_]),
        "n_baselines": int(results["is_baseline"].sum()),
        "scores": results["mean_test_score"].tolist(),
    }


def start(storage, name):
    """Fork a worker; return its id and the end of a pipe with its report."""
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            os.close(read)
            os.write(write, json.dumps(work(storage, name)).encode())
            code = 0
        except BaseException:
            import traceback

            traceback.print_exc()
        finally:
            os._exit(code)
    os.close(write)
    return pid, read


def finish(pid, read):
    with os.fdopen(read) as pipe:
        text = pipe.read()
    _, status = os.waitpid(pid, 0)
    return os.waitstatus_to_exitcode(status), json.loads(text) if text else None


def run_rounds(storage, n_rounds, seed):
    rng = random.Random(seed)
    # What is imported and compiled here, no worker has to.
    make_search().fit(*make_data())
    storages.release(storages.open_storage(storage))
    begin = time.perf_counter()
    finish(*start(storage, "warm up"))
    seconds = time.perf_counter() - begin
    for number in range(int(n_rounds)):
        name = f"round {number}"
        victim, survivor = start(storage, name), start(storage, name)
        time.sleep(rng.uniform(0, seconds))
        os.kill(victim[0], signal.SIGKILL)
        killed = finish(*victim)
        before = finished(storage, name)
        alive = finish(*survivor)
        after = finished(storage, name)
        late = finish(*start(storage, name))
        report = {
            "killed": killed,
            "alive": alive,
            "late": late,
            "lost": [k for k, values in before.items() if after.get(k) != values],
            "added": len(finished(storage, name)) - len(after),
        }
        sys.stdout.write(json.dumps(report) + "\n")


def main(command, storage, *args):
    torch.set_num_threads(1)
    # A trial a batch: more moments at which a worker may be killed.
    evaluation._BATCH_FITS = 1
    storages.BEAT_SECONDS = 1
    if not storage.startswith(("journal:", "grpc:")):  # They would only warn.
        storages.GRACE_SECONDS = 2
    if command == "rounds":
        run_rounds(storage, *args)
    elif sys.stdin.readline():
        sys.stdout.write(json.dumps(work(storage, n_trials=int(args[0]))))


if __name__ == "__main__":
    main(*sys.argv[1:])
