"""Set up before scipy is imported: scikit-learn's array-API checks need it."""

import os

os.environ["SCIPY_ARRAY_API"] = "1"
os.environ.setdefault("MPLBACKEND", "Agg")

import numpy as np
import pytest
import torch
from hypothesis import settings
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from threadpoolctl import threadpool_info

# One thread a test process, for they run side by side, unless told otherwise.
torch.set_num_threads(int(os.environ.get("SKSOFTRANK_TEST_THREADS", "1")))

# No test is timed. Where a change is judged, its chances are not drawn anew.
settings.register_profile(
    "sksoftrank", deadline=None, derandomize=bool(os.environ.get("CI"))
)
settings.load_profile("sksoftrank")


def pytest_report_header(config):
    """Say which kernels multiply."""
    torch_kernels = torch.backends.cpu.get_cpu_capability()
    lines = [f"torch: {torch_kernels} kernels, {torch.get_num_threads()} threads"]
    lines += [
        f"{pool['internal_api']}: {pool.get('architecture', 'any')} kernels, "
        f"{pool['num_threads']} threads, {os.path.basename(pool['filepath'])}"
        for pool in threadpool_info()
    ]
    # oneDNN does not tell which it takes.
    return [*lines, f"oneDNN: up to {os.environ.get('ONEDNN_MAX_CPU_ISA', 'any')}"]


@pytest.fixture(scope="session")
def digits():
    """Return digits in [0, 1], split: X_train, X_test, y_train, y_test."""
    X, y = load_digits(return_X_y=True)
    return train_test_split(X / 16.0, y, random_state=0)


@pytest.fixture
def blobs():
    """Return a small problem of three classes that a network learns in an instant."""
    rng = np.random.default_rng(0)
    y = np.repeat([0, 1, 2], 40)
    X = 3.0 * np.eye(3, 6)[y] + rng.standard_normal((120, 6))
    return X, y
