"""Settings of other libraries that a user may have changed make no difference."""

from contextlib import contextmanager
from functools import partial

import numpy as np
import pytest
import sklearn
import torch
from sklearn.datasets import load_iris
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler, scale
from torch import nn

from sksoftrank import (
    OODDetector,
    OODSearchCV,
    SoftRankClassifier,
    SoftRankCNNClassifier,
    SoftRankEnsembleClassifier,
    SoftRankMLPClassifier,
    SoftRankTransformerClassifier,
    StackedGridSearchCV,
)
from sksoftrank.shifts import GainDrift

FAST = {"max_epochs": 2, "batch_size": 32, "random_state": 0}


def network(n_features, n_classes):
    return nn.Sequential(
        nn.Linear(n_features, 8), nn.ReLU(), nn.Dropout(0.1), nn.Linear(8, n_classes)
    )


def mlp(**params):
    return SoftRankMLPClassifier((8,), **{**FAST, **params})


ESTIMATORS = {
    "mlp": partial(mlp, dropout=0.1),
    "normalised": partial(
        mlp,
        normalization="batch",
        weight_decay=0.1,
        label_smoothing=0.1,
        max_grad_norm=1.0,
        temperature=3.0,
        class_weight={0: 2.0, 1: 1.0, 2: 1.0},
    ),
    "skorch": partial(
        mlp, early_stopping=True, net_params={"iterator_valid__batch_size": 30}
    ),
    "cnn": partial(
        SoftRankCNNClassifier, (4,), augmentation=("flip", "shift", "cutout"), **FAST
    ),
    "transformer": partial(
        SoftRankTransformerClassifier, 8, n_heads=2, depth=1, **FAST
    ),
    "own module": partial(SoftRankClassifier, network, **FAST),
    "ensemble": lambda: SoftRankEnsembleClassifier(mlp(), 2, random_state=0),
    "grid": lambda: StackedGridSearchCV(mlp(), {"temperature": [1.0, 3.0]}, cv=2),
    "search": lambda: OODSearchCV(
        mlp(),
        shifts=[GainDrift(3, random_state=0)],
        n_trials=5,
        cv=2,
        random_state=0,
        error_score="raise",
    ),
    "pipelines": lambda: StackedGridSearchCV(
        make_pipeline(StandardScaler(), mlp()),
        {"softrankmlpclassifier__temperature": [1.0, 3.0]},
        cv=2,
        error_score="raise",
    ),
    "search in pipelines": lambda: OODSearchCV(
        make_pipeline(StandardScaler(), mlp()),
        {"softrankmlpclassifier__temperature": [1.0, 3.0]},
        shifts=[GainDrift(3, random_state=0)],
        n_trials=5,
        cv=2,
        random_state=0,
        error_score="raise",
    ),
    "detector of a pipeline": lambda: OODDetector(
        make_pipeline(StandardScaler(), mlp())
    ),
    "detector": lambda: OODDetector(mlp(), method="vim"),
}


@contextmanager
def default_dtype(dtype):
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@contextmanager
def deterministic():
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


STATES = {
    "float64": lambda: default_dtype(torch.float64),
    "bfloat16": lambda: default_dtype(torch.bfloat16),
    # Another than the CPU, that every machine has: what goes there is lost.
    "device": lambda: torch.device("meta"),
    "no_grad": torch.no_grad,
    "inference_mode": torch.inference_mode,
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "deterministic": deterministic,
    "errstate": lambda: np.errstate(all="raise"),
    "pandas": lambda: sklearn.config_context(transform_output="pandas"),
    "polars": lambda: sklearn.config_context(transform_output="polars"),
    "routing": lambda: sklearn.config_context(enable_metadata_routing=True),
    "unchecked": lambda: sklearn.config_context(
        skip_parameter_validation=True, assume_finite=True
    ),
}


def outputs(make):
    """Return what a new estimator makes of a table, by method."""
    X, y = load_iris(return_X_y=True)
    X = scale(X)
    estimator = make().fit(X, y)
    if hasattr(estimator, "partial_fit"):
        estimator.set_params(early_stopping=False).partial_fit(X, y)
    if hasattr(estimator, "compress"):
        estimator.compress(X, y)
    return {
        name: np.asarray(getattr(estimator, name)(X))
        for name in (
            *("predict", "predict_proba", "predict_log_proba", "decision_function"),
            *("transform", "embed", "score_samples"),
        )
        if hasattr(estimator, name)
    }


@pytest.fixture(scope="module", params=ESTIMATORS)
def estimator(request):
    make = ESTIMATORS[request.param]
    return make, outputs(make)


@pytest.mark.parametrize("state", STATES)
def test_settings_of_others_make_no_difference(estimator, state):
    make, expected = estimator
    with STATES[state]():
        found = outputs(make)
    assert found.keys() == expected.keys()
    for name, value in found.items():
        assert value.dtype == expected[name].dtype
        np.testing.assert_array_equal(value, expected[name], err_msg=name)


def test_the_caller_works_outside_of_our_settings(blobs):
    X, y = blobs
    clf = mlp().fit(X, y)
    for _ in clf.iter_transform(X):
        assert not torch.is_inference_mode_enabled()
        assert torch.is_grad_enabled()
