"""Steps by autograd as graphs: repeated on fixed memory, they train the same."""

import copy
from contextlib import nullcontext

import numpy as np
import pytest
import torch
from skorch.callbacks import Callback, Freezer, LRScheduler
from test_stacked import NoRecorder, TapeRecorder
from torch.optim.lr_scheduler import OneCycleLR

from sksoftrank import (
    SoftRankClassifier,
    SoftRankCNNClassifier,
    SoftRankMLPClassifier,
    SoftRankTransformerClassifier,
)
from sksoftrank.losses import LinearTemperature
from sksoftrank.training import _cuda_graph, _grouping

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
    # It moves Adam's means' decay beside the rate.
    "one cycle": {
        "callbacks": [LRScheduler(OneCycleLR, max_lr=2**-7, total_steps=4)],
    },
}


@pytest.fixture
def record(monkeypatch):
    """Return what lets trainings be recorded."""

    monkeypatch.setattr(_grouping, "LEAST_STEPS", 2)

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
    if change not in ("cosine", "one cycle"):
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


def own_network():
    return torch.nn.Sequential(
        torch.nn.Linear(64, 8), torch.nn.Dropout(0.2), torch.nn.Linear(8, 10)
    )


class Forbidden(NoRecorder):
    def warm_up(self, function):
        raise AssertionError("recorded")


class Foreign(Callback):
    pass


class OwnActivation(torch.nn.ReLU):
    pass


def test_what_can_change_between_steps_is_not_recorded(digits, record):
    record(Forbidden())
    clf = copy.deepcopy(ESTIMATORS["vit"])
    with pytest.raises(AssertionError, match="recorded"):
        clf.fit(*rows(digits))
    for params in (
        {"callbacks": [Foreign()]},
        {"callbacks": [Freezer("blocks*")]},
        {"net_params": {"optimizer": torch.optim.RMSprop}},
        {"net_params": {"optimizer__fused": False}},
        {"net_params": {"iterator_train__num_workers": 0}},
    ):
        copy.deepcopy(clf).set_params(**params).fit(*rows(digits))
    SoftRankClassifier(own_network, **SHARED).fit(*rows(digits))


@pytest.mark.parametrize(
    "change",
    [
        lambda net: net.module_.register_forward_hook(lambda *_: None),
        lambda net: next(net.module_.parameters()).register_hook(lambda grad: None),
        lambda net: net.optimizer_.register_step_pre_hook(lambda *_: None),
        lambda net: setattr(net.module_, "activation", OwnActivation()),
        lambda net: setattr(net, "criterion_", copy.copy(net.criterion_)),
    ],
    ids=["hook", "gradient hook", "step hook", "module", "nothing"],
)
def test_what_others_have_changed_is_not_recorded(digits, record, change, request):
    X, y = rows(digits)
    net = ESTIMATORS["vit"].fit(X, y).net_
    change(net)
    record(Forbidden())
    is_recorded = request.node.callspec.id == "nothing"
    with pytest.raises(AssertionError) if is_recorded else nullcontext():
        net.partial_fit(X.reshape(len(X), -1), y)


def test_few_steps_are_not_recorded(digits, record, monkeypatch):
    record(Forbidden())
    monkeypatch.setattr(_grouping, "LEAST_STEPS", 16)
    clf = copy.deepcopy(ESTIMATORS["vit"]).fit(*rows(digits))  # Fifteen.
    schedule = LinearTemperature(2.0, 1.0)  # Five to an epoch.
    clf.set_params(max_epochs=4, temperature=schedule).fit(*rows(digits))
    with pytest.raises(AssertionError, match="recorded"):
        clf.set_params(temperature=1.0).fit(*rows(digits))


def test_a_training_that_diverges_says_where_and_can_go_on(digits, record):
    X, y = rows(digits)
    X = X.reshape(len(X), -1)
    recorder = record(TapeRecorder())
    net = copy.deepcopy(ESTIMATORS["vit"]).fit(X, y).net_
    before = net.predict_proba(X)
    rate = net.optimizer_.param_groups[0]["lr"]
    for group in net.optimizer_.param_groups:
        group["lr"] = np.inf
    with pytest.raises(FloatingPointError, match="step 2 of epoch 1"):
        net.partial_fit(X, y)
    np.testing.assert_array_equal(net.predict_proba(X), before)
    for group in net.optimizer_.param_groups:
        group["lr"] = rate
    assert np.isfinite(net.partial_fit(X, y).predict_proba(X)).all()
    assert recorder.n_replayed


def test_memory_of_graphs_is_given_up_where_one_can_not_be_captured():
    class Second(NoRecorder):
        def record(self, function, generators):
            if function is second:
                raise RuntimeError("out of memory")
            return function

    def first():
        """Do nothing."""

    def second():
        """Do nothing."""

    graphs = _cuda_graph.Graphs(Second(), list)
    for _ in range(2):
        graphs.run("first", first)
    graphs.run("second", second)
    with pytest.warns(RuntimeWarning, match="one by one"):
        graphs.run("second", second)
    assert graphs._launches == {}
