"""Set up before scipy is imported: scikit-learn's array-API checks need it."""

import os

os.environ["SCIPY_ARRAY_API"] = "1"
os.environ.setdefault("MPLBACKEND", "Agg")

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

# One thread a test process: they run side by side.
torch.set_num_threads(1)


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
