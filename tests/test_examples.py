"""The examples run, and processes together train what one would."""

import os
import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from sksoftrank import SoftRankNet
from sksoftrank.modules import MLP

ROOT = Path(__file__).parents[1]
EXAMPLE = ROOT / "examples" / "data_parallel.py"
GALLERY = sorted((ROOT / "examples").glob("plot_*.py"))
PARAMS = {
    "module__n_features": 64,
    "module__n_classes": 10,
    "module__hidden_layer_sizes": (16, 8),
    "module__random_state": 0,
    "temperature": 3.0,
    "max_epochs": 2,
    "iterator_train__shuffle": False,
    "train_split": None,
    "verbose": 0,
}
WORKER = f"""
import importlib.util, sys
import numpy as np, torch
from accelerate import Accelerator
from sklearn.datasets import load_digits
from sksoftrank.modules import MLP

spec = importlib.util.spec_from_file_location("data_parallel", {str(EXAMPLE)!r})
example = importlib.util.module_from_spec(spec)
spec.loader.exec_module(example)
X, y = load_digits(return_X_y=True)
accelerator = Accelerator(cpu=True)
assert accelerator.num_processes == 2
net = example.AcceleratedSoftRankNet(
    MLP, batch_size=32, accelerator=accelerator, **{PARAMS!r}
)
net.fit((X[:1792] / 16).astype(np.float32), y[:1792])
torch.save(
    [net.module_.state_dict(), net.history[-1, "train_batch_count"]],
    f"{{sys.argv[1]}}.{{accelerator.process_index}}",
)
accelerator.end_training()
"""


def run_in_two_processes(script, *arguments, cwd):
    pytest.importorskip("accelerate")
    # A free port of its own choice.
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    done = subprocess.run(
        [sys.executable, *launch, str(script), *map(str, arguments)],
        cwd=cwd,
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join(paths),
            "OMP_NUM_THREADS": "1",
        },
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize("script", GALLERY, ids=lambda script: script.stem)
def test_the_gallery_runs_and_draws(script, monkeypatch, tmp_path):
    plt = pytest.importorskip("matplotlib.pyplot")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(plt, "show", lambda: None)
    plt.switch_backend("agg")
    try:
        runpy.run_path(str(script))
        assert plt.get_fignums()
    finally:
        plt.close("all")
    assert list(tmp_path.iterdir()) == []


def test_each_question_is_asked():
    assert len(GALLERY) >= 6
    titles = [script.read_text().split("\n")[1] for script in GALLERY]
    assert all(title.endswith("?") for title in titles)


def test_data_parallel_runs(tmp_path):
    path = tmp_path / "weights.pt"
    out = run_in_two_processes(EXAMPLE, path, "--cpu", cwd=tmp_path)
    assert "2 processes: accuracy 0.9" in out
    assert out.count("accuracy") == 1
    X, y = load_digits(return_X_y=True)
    net = SoftRankNet(MLP, module__n_features=64, module__n_classes=10, verbose=0)
    net.initialize().load_params(f_params=path)
    net.classes = np.arange(10)
    assert net.score((X / 16).astype(np.float32), y) > 0.9


def test_two_processes_train_what_one_does_with_twice_the_batch(tmp_path):
    script, path = tmp_path / "worker.py", tmp_path / "weights.pt"
    script.write_text(WORKER)
    run_in_two_processes(script, path, cwd=tmp_path)
    X, y = load_digits(return_X_y=True)
    X, y = (X[:1792] / 16).astype(np.float32), y[:1792]

    def train(batch_size):
        net = SoftRankNet(MLP, batch_size=batch_size, **PARAMS).fit(X, y)
        return flat(net.module_.state_dict())

    def flat(weights):
        return torch.cat([w.flatten() for w in weights.values()]).numpy()

    expected = train(64)
    for process in (0, 1):
        weights, n_batches = torch.load(f"{path}.{process}")
        assert n_batches == 28
        np.testing.assert_allclose(flat(weights), expected, rtol=0, atol=1e-5)
    # Else the share of each would not matter.
    assert np.abs(train(32) - expected).max() > 1e-3
