"""Forks workers on one study and kills some of them; run by test_ood_search_faults.

    python tests/_ood_workers.py STORAGE ROUNDS SEED

Each round is a study of its own: two workers, one of which is killed with SIGKILL at a
random moment, and a third one that comes when all is done. Prints one JSON line a
round. Workers are forked, as importing torch takes longer than a whole study.
"""

import json
import os
import random
import signal
import sys
import time

import numpy as np
import torch
from scipy.stats import loguniform

from sksoftrank import OODSearchCV, SoftRankMLPClassifier
from sksoftrank.search import _ood_fits, _ood_storage
from sksoftrank.shifts import OffsetDrift

N_TRIALS = 7
# A trial a batch: more moments at which a worker may be killed.
_BATCH_FITS = 2


def make_search(storage, study_name="study"):
    return OODSearchCV(
        SoftRankMLPClassifier(4, max_epochs=2, batch_size=64),
        {"temperature": loguniform(0.3, 100)},
        n_trials=N_TRIALS,
        cv=2,
        shifts=[OffsetDrift(3)],
        storage=storage,
        study_name=study_name,
        random_state=0,
    )


def make_data():
    rng = np.random.default_rng(0)
    y = np.arange(60) % 3
    return np.eye(3, 4)[y] + rng.standard_normal((60, 4)), y


def work(storage, name, pipe):
    search = make_search(storage, name).fit(*make_data())
    report = {
        "n_trials": search.n_trials_,
        "best_index": search.best_index_,
        "n_baselines": int(search.cv_results_["is_baseline"].sum()),
        "scores": search.cv_results_["ood_score"].tolist(),
    }
    os.write(pipe, json.dumps(report).encode())


def start(storage, name):
    """Fork a worker; return its id and the end of a pipe with its report."""
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            os.close(read)
            work(storage, name, write)
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


def main(storage, n_rounds, seed):
    torch.set_num_threads(1)
    _ood_fits._BATCH_FITS = _BATCH_FITS
    rng = random.Random(seed)
    # What is imported and compiled here, no worker has to.
    make_search(None, None).fit(*make_data())
    _ood_storage.release(_ood_storage.open_storage(storage))
    begin = time.perf_counter()
    finish(*start(storage, "warm up"))
    seconds = time.perf_counter() - begin
    for number in range(int(n_rounds)):
        name = f"round {number}"
        victim, survivor = start(storage, name), start(storage, name)
        time.sleep(rng.uniform(0, seconds))
        os.kill(victim[0], signal.SIGKILL)
        killed = finish(*victim)
        alive = finish(*survivor)
        late = finish(*start(storage, name))
        report = {"killed": killed, "alive": alive, "late": late}
        sys.stdout.write(json.dumps(report) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
