"""Steps by autograd as graphs: repeated on fixed memory, they train the same."""

import copy

import numpy as np
import pytest
import torch
from skorch.callbacks import Callback
from test_stacked import NoRecorder, TapeRecorder

from sksoftrank import (
    SoftRankCNNClassifier,
    SoftRankMLPClassifier,
    SoftRankTransformerClassifier,
)
from sksoftrank.losses import LinearTemperature
from sksoftrank.training import _grouping

# The rate is a number of single precision, as it is where a graph reads it.
SHARED = {"learning_rate": 2**-7, "lr_schedule": "constant", "max_epochs": 3}
SHARED |= {"batch_size": 16, "random_state": 0, "device": "cpu"}
ESTIMATORS = {
    "cnn": SoftRankCNNClassifier(
        (4, 8),
        input_shape=(1, 8, 8),
        augmentation=("flip", "shift", "cutout"),
        **SHARED,
    ),
    "vit": SoftRankTransformerClassifier(
        8, depth=1, n_heads=2, patch_size=4, input_shape=(1, 8, 8), **SHARED
    ),
    "tokens": SoftRankTransformerClassifier(8, depth=1, n_heads=2, **SHARED),
    # Half precision keeps it from a stack.
    "mlp": SoftRankMLPClassifier((8, 8), precision="bf16", dropout=0.2, **SHARED),
}
CHANGES = {
    "as it is": {},
    "cosine": {"lr_schedule": "cosine"},
    "sgd": {"optimizer": "sgd", "weight_decay": 1e-3},
    "adam, clipped": {"optimizer": "adam", "max_grad_norm": 0.1},
    "temperatures": {"temperature": LinearTemperature(10.0, 1.0), "dropout": 0.5},
    "weights": {"class_weight": "balanced", "label_smoothing": 0.1},
    "stopping": {"early_stopping": True, "n_iter_no_change": 1, "max_epochs": 6},
}


@pytest.fixture
def record(monkeypatch):
    """Return what lets trainings be recorded."""

    def by(recorder):
        monkeypatch.setattr(_grouping, "recorder_for", lambda device: recorder)
        return recorder

    return by


def rows(digits, n=75):
    # The last batch has fewer rows.
    X, _, y, _ = digits
    return X[:n].astype(np.float32), y[:n]


def assert_same(one, other):
    a, b = (clf.module_.state_dict() for clf in (one, other))
    assert list(a) == list(b)
    for name in a:
        np.testing.assert_array_equal(a[name], b[name], err_msg=name)
    assert one.net_.history[:, "train_loss"] == other.net_.history[:, "train_loss"]


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("kind", ESTIMATORS)
def test_replayed_steps_are_steps(digits, record, kind, change):
    clf = copy.deepcopy(ESTIMATORS[kind]).set_params(**CHANGES[change])
    plain = copy.deepcopy(clf).fit(*rows(digits))
    record(NoRecorder())
    again = copy.deepcopy(clf).fit(*rows(digits))
    if change != "cosine":
        assert_same(plain, again)
    recorder = record(TapeRecorder())
    replayed = clf.fit(*rows(digits))
    assert_same(again, replayed)
    assert recorder.n_recorded
    assert recorder.n_replayed


def test_recorded_once_unless_the_temperature_changes(digits, record):
    clf = copy.deepcopy(ESTIMATORS["vit"])
    recorder = record(TapeRecorder())
    clf.fit(*rows(digits))
    # Four whole batches and one of what is left, which comes up in each epoch.
    assert recorder.n_recorded == 2
    recorder = record(TapeRecorder())
    clf.set_params(temperature=LinearTemperature(2.0, 1.0)).fit(*rows(digits))
    assert recorder.n_recorded == 3


def test_no_memory_of_a_graph_is_kept(digits, record):
    record(TapeRecorder())
    clf = ESTIMATORS["vit"].fit(*rows(digits))
    assert all(p.grad is None for p in clf.module_.parameters())


def test_what_can_change_between_steps_is_not_recorded(digits, record):
    class Forbidden(NoRecorder):
        def warm_up(self, function):
            raise AssertionError("recorded")

    record(Forbidden())
    clf = copy.deepcopy(ESTIMATORS["vit"])
    with pytest.raises(AssertionError, match="recorded"):
        clf.fit(*rows(digits))
    for net_params in (
        {"optimizer": torch.optim.RMSprop},
        {"optimizer__fused": False},
        {"iterator_train__num_workers": 0},
    ):
        copy.deepcopy(clf).set_params(net_params=net_params).fit(*rows(digits))


class SetRate(Callback):
    rate = 2**-7

    def on_epoch_begin(self, net, **kwargs):
        for group in net.optimizer_.param_groups:
            group["lr"] = self.rate


def test_a_training_that_diverges_says_where_and_can_go_on(digits, record, monkeypatch):
    clf = copy.deepcopy(ESTIMATORS["vit"]).set_params(callbacks=[SetRate()])
    X, y = rows(digits)
    record(TapeRecorder())
    clf.partial_fit(X, y, classes=range(10))
    before = clf.predict_proba(X)
    with monkeypatch.context() as patch:
        patch.setattr(SetRate, "rate", np.inf)
        with pytest.raises(FloatingPointError, match="step 2 of epoch 1"):
            clf.partial_fit(X, y)
    np.testing.assert_array_equal(clf.predict_proba(X), before)
    assert np.isfinite(clf.partial_fit(X, y).predict_proba(X)).all()
