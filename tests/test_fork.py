"""A child forked from a process that has trained can train and predict, too."""

import os
import subprocess
import sys

import pytest

# Wide layers and large batches: small ones are computed by one thread in any process.
SCRIPT = """
import os, signal
import joblib
import numpy as np
import torch
from skorch.callbacks import Callback
from sksoftrank import (
    SoftRankEnsembleClassifier, SoftRankMLPClassifier, StackedGridSearchCV
)

rng = np.random.default_rng(0)
X, y = rng.standard_normal((1024, 64)).astype(np.float32), np.arange(1024) % 5
own = SoftRankMLPClassifier((512, 512), max_epochs=1, batch_size=512, random_state=0)
autograd = SoftRankMLPClassifier(**own.get_params()).set_params(callbacks=[Callback()])
work = {
    "fit": lambda: own.fit(X, y),
    "fit by autograd": lambda: autograd.fit(X, y),
    "predict": lambda: fitted.predict(X),
    "transform": lambda: fitted.transform(X.astype(float)),
    "ensemble": lambda: SoftRankEnsembleClassifier(own, 2, n_jobs=2).fit(X, y),
    "search": lambda: StackedGridSearchCV(
        own, {"temperature": [1.0, 10.0]}, cv=2, n_jobs=2
    ).fit(X, y),
    "torch": lambda: (torch.ones(2000, 2000) @ torch.ones(2000, 2000)).exp().sum(),
}
torch.set_num_threads(2)
fitted = SoftRankMLPClassifier(**own.get_params()).fit(X, y)
fitted.predict(X)
for name, call in work.items():
    child = os.fork()
    if child == 0:
        signal.alarm(60)  # The end of one that hangs.
        with joblib.parallel_config("threading"):
            call()
        os._exit(0 if torch.get_num_threads() == 1 else 1)
    print(name, os.waitpid(child, 0)[1])
print("parent", torch.get_num_threads())
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
def test_a_forked_child_trains_and_predicts():
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", SCRIPT],
        env=os.environ | {"OMP_NUM_THREADS": "2"},
        capture_output=True,
        text=True,
        timeout=600,
        check=True,
    )
    assert done.stdout.split("\n") == [
        "fit 0",
        "fit by autograd 0",
        "predict 0",
        "transform 0",
        "ensemble 0",
        "search 0",
        "torch 0",
        "parent 2",
        "",
    ]
