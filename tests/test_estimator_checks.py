"""scikit-learn's own checks: none skipped, none expected to fail."""

import unittest

import pytest
import torch
from _plain import PLAIN
from sklearn.utils.estimator_checks import estimator_checks_generator
from torch import nn

from sksoftrank import (
    OODSearchCV,
    SoftRankClassifier,
    SoftRankCNNClassifier,
    SoftRankEnsembleClassifier,
    SoftRankMLPClassifier,
    SoftRankTransformerClassifier,
    StackedGridSearchCV,
    StackedRandomizedSearchCV,
)
from sksoftrank.modules import MLP
from sksoftrank.shifts import OffsetDrift

CONFIGURATIONS = {
    "default": {},
    # So cold, twenty steps with dropout are luck.
    "temperature=0.05": {"temperature": 0.05, "dropout": 0.0, "max_epochs": 50},
    "plain": {**PLAIN, "learning_rate": 0.01, "max_epochs": 20},
    "batch_size=32": {"batch_size": 32},
    "normalization=layer": {"normalization": "layer"},
    "normalization=None": {"normalization": None},
    # A few rows decide when to stop: before that the steps must have led somewhere.
    "early_stopping": {**PLAIN, "early_stopping": True, "learning_rate": 0.01},
    "sgd": {"optimizer": "sgd", "max_epochs": 50},
}


def small(**params):
    quick = {**PLAIN, "hidden_layer_sizes": 16, "learning_rate": 0.01, "max_epochs": 20}
    return SoftRankMLPClassifier(**{**quick, **params})


class PlainNetwork(nn.Module):
    """Without a method of ours, and with a dropout and normalisation of torch's."""

    def __init__(self, in_features, num_classes):
        super().__init__()
        self.hidden = nn.Linear(in_features, 16)
        self.norm = nn.BatchNorm1d(16)
        self.dropout = nn.Dropout(0.1)
        self.classifier = nn.Linear(16, num_classes)

    def forward(self, x):
        z = self.dropout(torch.relu(self.norm(self.hidden(x))))
        return self.classifier(z)


# A few steps suffice at this rate: the checks' data give one step an epoch.
QUICK = {"learning_rate": 0.01, "max_epochs": 20}
# The checks seed an estimator, but not one within.
SEEDED = small(random_state=0)
CANDIDATES = {"temperature": [1.0, 3.0]}
SEARCH = {"cv": 2, "error_score": "raise"}
ESTIMATORS = {
    "mlp as it comes": SoftRankMLPClassifier(),
    "cnn as it comes": SoftRankCNNClassifier(),
    "transformer as it comes": SoftRankTransformerClassifier(),
    "ensemble as it comes": SoftRankEnsembleClassifier(),
    **{
        name: SoftRankMLPClassifier(**{"max_epochs": 20, **params})
        for name, params in CONFIGURATIONS.items()
    },
    "ensemble": SoftRankEnsembleClassifier(small(), 2),
    "ensemble of two temperatures": SoftRankEnsembleClassifier(
        small(normalization="layer"),
        n_estimators=2,
        temperature=[1.0, 10.0],
        embedding="concatenated",
    ),
    "module": SoftRankClassifier(
        MLP, {"hidden_layer_sizes": (16,)}, **{**QUICK, "max_epochs": 50}
    ),
    "module without a protocol": SoftRankClassifier(PlainNetwork, **QUICK),
    "cnn with batch norm": SoftRankCNNClassifier((16, 32), **QUICK),
    "cnn with group norm": SoftRankCNNClassifier(
        (16, 32), normalization="group", residual=False, dropout=0.1, **QUICK
    ),
    "transformer": SoftRankTransformerClassifier(16, depth=1, **QUICK),
    "grid search": StackedGridSearchCV(SEEDED, CANDIDATES, **SEARCH),
    "randomized search": StackedRandomizedSearchCV(
        SEEDED, CANDIDATES, n_iter=2, **SEARCH
    ),
    "ood search": OODSearchCV(
        SEEDED, CANDIDATES, n_trials=5, shifts=[OffsetDrift(1)], **SEARCH
    ),
}


# One of each, to be checked with other kernels too.
KERNELS = {
    *("default", "ensemble", "module", "cnn with batch norm", "transformer"),
    *("grid search", "randomized search", "ood search"),
}


# They call partial_fit, which early stopping is refused in.
PARTIAL_FIT = {
    "check_fit_score_takes_y",
    "check_n_features_in_after_fitting",
    "check_estimators_partial_fit_n_features",
}


def cases():
    for name, estimator in ESTIMATORS.items():
        checks = estimator_checks_generator(estimator)
        marks = [pytest.mark.kernels] if name in KERNELS else []
        for number, (instance, check) in enumerate(checks):
            label = getattr(check, "func", check).__name__
            if name == "early_stopping" and label in PARTIAL_FIT:
                continue
            case_id = f"{name}-{number}-{label}"
            yield pytest.param(instance, check, id=case_id, marks=marks)


# Some set n_components=1, which gives up a class of three.
@pytest.mark.filterwarnings("ignore:n_components=1 must keep:UserWarning")
@pytest.mark.parametrize(("estimator", "check"), list(cases()))
def test_scikit_learn(estimator, check):
    try:
        check(estimator)
    except unittest.SkipTest as skipped:
        pytest.fail(f"skipped: {skipped}")
