"""scikit-learn's own checks: none skipped, none expected to fail."""

import unittest

import pytest
from sklearn.utils.estimator_checks import estimator_checks_generator

from sksoftrank import SoftRankMLPClassifier

CONFIGURATIONS = {
    "default": {},
    # A step at a low temperature is small (learning_rate="auto"), and the checks' data
    # give one step an epoch: this one needs the default number of epochs.
    "temperature=0.05": {"temperature": 0.05, "max_epochs": 50},
    "temperature=30": {"temperature": 30.0},
    "batch_size=32": {"batch_size": 32},
    "normalization=layer": {"normalization": "layer"},
    "normalization=batch": {
        "normalization": "batch",
        "temperature": 30.0,
        "max_epochs": 30,
    },
    "dropout": {"dropout": 0.2},
    "early_stopping": {"early_stopping": True},
    "sgd": {"optimizer": "sgd"},
}


def cases():
    for name, params in CONFIGURATIONS.items():
        estimator = SoftRankMLPClassifier(**{"max_epochs": 20, **params})
        checks = estimator_checks_generator(estimator)
        for number, (instance, check) in enumerate(checks):
            label = getattr(check, "func", check).__name__
            yield pytest.param(instance, check, id=f"{name}-{number}-{label}")


@pytest.mark.parametrize(("estimator", "check"), list(cases()))
def test_scikit_learn(estimator, check):
    try:
        check(estimator)
    except unittest.SkipTest as skipped:
        pytest.fail(f"skipped: {skipped}")
