import copy
import pickle
from functools import partial

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.model_selection import GridSearchCV
from skorch.callbacks import (
    BatchScoring,
    Callback,
    Checkpoint,
    EarlyStopping,
    EpochScoring,
    Freezer,
    GradientNormClipping,
    LRScheduler,
)
from skorch.dataset import Dataset
from torch.nn import functional as F

from sksoftrank import SoftRankCNNClassifier, SoftRankNet
from sksoftrank.losses import LinearTemperature, TemperatureCrossEntropyLoss
from sksoftrank.modules import CNN, MLP, Transformer
from sksoftrank.training import AccuracyStopping, InMemoryDataset, fit_nets
from sksoftrank.training._grouping import unsupported_reason


def make_net(**params):
    defaults = {
        "module__n_features": 6,
        "module__n_classes": 3,
        "module__hidden_layer_sizes": (16,),
        "module__random_state": 0,
        "iterator_train__random_state": 0,
        "lr": 0.01,
        "batch_size": 32,
        "max_epochs": 3,
        "train_split": None,
        "verbose": 0,
    }
    return SoftRankNet(MLP, **{**defaults, **params})


def weights(net):
    return torch.cat([p.detach().flatten() for p in net.module_.parameters()])


class CountSteps(Callback):
    """A callback that needs batches; counts them."""

    def on_train_begin(self, net, **kwargs):
        self.steps_ = 0

    def on_batch_end(self, net, training=False, **kwargs):
        self.steps_ += training


class StopAfter(Callback):
    """Raise an exception at the given training step, as a signal would."""

    def __init__(self, step, error=KeyboardInterrupt):
        self.step = step
        self.error = error

    def on_train_begin(self, net, **kwargs):
        self.seen_ = 0

    def on_batch_begin(self, net, training=False, **kwargs):
        self.seen_ += training
        if self.seen_ == self.step:
            raise self.error


class RecordWeights(Callback):
    def on_train_begin(self, net, **kwargs):
        self.weights_ = []

    def on_epoch_end(self, net, **kwargs):
        self.weights_.append(weights(net).clone())


def test_lean_epoch_equals_skorchs_own(blobs):
    X, y = blobs
    lean = make_net(temperature=5.0).partial_fit(X, y)  # By autograd.
    full = make_net(temperature=5.0, callbacks=[CountSteps()]).fit(X, y)
    assert torch.equal(weights(lean), weights(full))
    np.testing.assert_allclose(
        lean.history[:, "train_loss"], full.history[:, "train_loss"], rtol=1e-6
    )
    assert dict(full.callbacks_)["CountSteps"].steps_ == 3 * 4
    assert [len(b) for b in lean.history[:, "batches"]] == [0, 0, 0]
    assert [len(b) for b in full.history[:, "batches"]] == [4, 4, 4]


@pytest.mark.parametrize("method", ["fit", "partial_fit"])
def test_lean_from_the_first_epoch_on(blobs, method):
    net = getattr(make_net(precision="bf16"), method)(*blobs)  # By autograd.
    assert [len(b) for b in net.history[:, "batches"]] == [0, 0, 0]
    clf = SoftRankCNNClassifier((4,), input_shape=(1, 6), max_epochs=2, device="cpu")
    history = clf.fit(*blobs).net_.history
    assert [len(b) for b in history[:, "batches"]] == [0, 0]


@pytest.mark.parametrize(
    ("callback", "lean"),
    [
        (EpochScoring("accuracy", lower_is_better=False), True),
        (EpochScoring("accuracy", lower_is_better=False, on_train=True), False),
        (LRScheduler("StepLR", step_size=1), True),
        (LRScheduler("StepLR", step_size=1, step_every="batch"), False),
        (GradientNormClipping(1.0), True),
        (BatchScoring("accuracy"), False),
        (EarlyStopping("train_loss"), True),
    ],
)
def test_lean_only_where_no_callback_needs_batches(blobs, callback, lean):
    net = make_net(callbacks=[callback], max_epochs=1).fit(*blobs)
    assert (len(net.history[0, "batches"]) == 0) is lean


def test_a_lean_epoch_clips_as_skorch_does(blobs):
    class Clipping(GradientNormClipping):
        """A subclass may do anything: skorch's own loop calls it."""

    nets = [
        make_net(callbacks=[callback], max_epochs=3).partial_fit(*blobs)
        for callback in (GradientNormClipping(0.05), Clipping(0.05))
    ]
    free = make_net(max_epochs=3).partial_fit(*blobs)
    lean, full, unclipped = (
        net.module_.state_dict()["output.weight"] for net in (*nets, free)
    )
    assert len(nets[0].history[0, "batches"]) == 0
    assert len(nets[1].history[0, "batches"]) == 4
    assert torch.equal(lean, full)
    assert not torch.equal(lean, unclipped)


def test_a_subclass_with_its_own_step_is_not_run_lean(blobs):
    class Own(SoftRankNet):
        calls = 0

        def train_step(self, batch, **params):
            Own.calls += 1
            return super().train_step(batch, **params)

    params = make_net().get_params(deep=False)
    Own(**params).fit(*blobs)
    assert Own.calls == 12


def test_lbfgs_gets_its_closure(blobs):
    net = make_net(optimizer=torch.optim.LBFGS, lr=0.5, batch_size=-1, max_epochs=5)
    losses = net.fit(*blobs).history[:, "train_loss"]
    assert losses[-1] < 0.5 * losses[0]


def test_probabilities_use_the_temperature(blobs):
    X, y = blobs
    X = X.astype(np.float32)
    net = make_net(temperature=7.0).fit(X, y)
    with torch.no_grad():
        expected = torch.softmax(net.module_(torch.tensor(X)) / 7.0, dim=1)
    np.testing.assert_allclose(net.predict_proba(X), expected.numpy(), rtol=1e-6)
    plain = make_net(temperature=7.0, predict_nonlinearity=None).fit(X, y)
    assert np.abs(plain.predict_proba(X)).max() > 1  # logits, as asked for


def test_a_new_temperature_takes_effect_at_the_next_fit_and_never_before(blobs):
    X, y = blobs
    net = make_net(temperature=2.0).fit(X, y)
    before = net.predict_proba(X)
    net.set_params(temperature=20.0)
    np.testing.assert_array_equal(net.predict_proba(X), before)
    assert net.temperature_ == 2.0
    net.fit(X, y)
    assert net.temperature_ == net.criterion_.temperature == 20.0
    np.testing.assert_array_equal(
        net.predict_proba(X), make_net(temperature=20.0).fit(X, y).predict_proba(X)
    )


@pytest.mark.parametrize("method", ["partial_fit", "fit"])
def test_a_new_temperature_reaches_a_warm_start(blobs, method):
    net = make_net(temperature=2.0, warm_start=True).fit(*blobs)
    before = weights(net).clone()
    getattr(net.set_params(temperature=20.0), method)(*blobs)
    assert net.criterion_.temperature == 20.0
    reference = make_net(temperature=2.0, warm_start=True).fit(*blobs)
    assert torch.equal(weights(reference), before)
    getattr(reference, method)(*blobs)
    assert not torch.equal(weights(reference), weights(net))


def test_schedule_sets_each_epochs_temperature(blobs):
    net = make_net(temperature=LinearTemperature(1.0, 9.0), max_epochs=5).fit(*blobs)
    assert net.history[:, "temperature"] == [1.0, 3.0, 5.0, 7.0, 9.0]
    assert net.temperature_ == 9.0


def test_grid_search_over_temperature(blobs):
    X, y = blobs
    search = GridSearchCV(
        make_net(max_epochs=15), {"temperature": [0.5, 50.0], "lr": [0.01]}, cv=2
    )
    search.fit(X.astype(np.float32), y)
    assert search.best_estimator_.temperature_ == search.best_params_["temperature"]
    assert search.best_score_ > 0.9


def test_clone_and_params_round_trip():
    net = make_net(temperature=3.0, optimizer__weight_decay=0.1)
    params = clone(net).get_params(deep=False)
    assert params["temperature"] == 3.0
    assert params["optimizer__weight_decay"] == 0.1
    assert params["iterator_train__shuffle"] is True


def test_save_and_load_params(blobs, tmp_path):
    X, y = blobs
    net = make_net(temperature=4.0).fit(X, y)
    net.save_params(f_params=tmp_path / "weights.pt")
    other = make_net(temperature=4.0).initialize()
    other.load_params(f_params=tmp_path / "weights.pt")
    np.testing.assert_array_equal(other.predict_proba(X), net.predict_proba(X))


def test_pickle_and_deepcopy_predict_the_same_and_go_on(blobs):
    X, y = blobs
    net = make_net(temperature=4.0).fit(X, y)
    for twin in (pickle.loads(pickle.dumps(net)), copy.deepcopy(net)):
        np.testing.assert_array_equal(twin.predict_proba(X), net.predict_proba(X))
        twin.partial_fit(X, y)


def test_validation_is_recorded_and_the_history_prints(blobs, capsys):
    net = make_net(verbose=1, train_split=make_net_split()).fit(*blobs)
    record = net.history[-1]
    assert 0 <= record["valid_acc"] <= 1
    assert {"train_loss", "valid_loss", "temperature"} <= set(record)
    assert "valid_acc" in capsys.readouterr().out
    proba = net.predict_proba(blobs[0].astype(np.float32))
    assert proba.shape == (120, 3)


def make_net_split():
    from skorch.dataset import ValidSplit

    return ValidSplit(5, stratified=True)


@pytest.mark.parametrize("method", ["fit", "partial_fit"])
def test_the_least_losses_so_far_are_marked(blobs, method):
    # Rates that go up and down again; in two trainings that go on.
    net = make_net(lr=[0.01, 3.0, 0.01], train_split=make_net_split())
    getattr(net, method)(*blobs).partial_fit(*blobs)
    for name in ("train_loss", "valid_loss"):
        losses = net.history[:, name]
        expected = [
            loss < min(losses[:k], default=np.inf) for k, loss in enumerate(losses)
        ]
        assert net.history[:, f"{name}_best"] == expected
        assert not all(expected)


def test_validation_accuracy_is_weighted():
    X = np.zeros((4, 6), np.float32)
    train = InMemoryDataset(X, np.array([0, 0, 0, 1]))
    weighted = InMemoryDataset(X[:2], np.array([0, 1]), np.array([3.0, 1.0]))
    net = make_net(train_split=lambda *_: (train, weighted), max_epochs=20)
    net.fit(train, y=None)
    assert net.history[-1, "valid_acc"] == 0.75


def test_sample_weights_equal_repetition(blobs):
    X, y = blobs[0][:30].astype(np.float32), blobs[1][::4]
    weight = np.ones(30)
    weight[:10] = 2.0
    rows = np.r_[np.arange(30), np.arange(10)]
    params = {"batch_size": 64, "optimizer": torch.optim.SGD, "lr": 0.1}
    # 30 rows of total weight 40: the mean over rows is 4/3 of the weighted mean.
    a = make_net(**params).partial_fit(InMemoryDataset(X, y, weight * 30 / 40))
    b = make_net(**params).fit(X[rows], y[rows])
    torch.testing.assert_close(weights(a), weights(b), rtol=1e-5, atol=1e-6)
    full = make_net(**params, callbacks=[CountSteps()])
    full.fit(InMemoryDataset(X, y, weight * 30 / 40), y=None)
    assert torch.equal(weights(a), weights(full))


def test_a_dataset_is_trained_on_through_a_dataloader(blobs):
    X, y = blobs[0].astype(np.float32), blobs[1]

    class Rows(torch.utils.data.Dataset):
        def __len__(self):
            return len(X)

        def __getitem__(self, i):
            return X[i], y[i]

    net = make_net(max_epochs=10).fit(Rows(), y=None)
    assert (net.predict(X) == y).mean() > 0.9
    stock = make_net(max_epochs=2, dataset=Dataset).fit(X, y)
    assert len(stock.history) == 2


# -- Interruptions and divergence ------------------------------------------------------


def test_ctrl_c_keeps_the_last_finished_epoch(blobs):
    record, stop = RecordWeights(), StopAfter(step=4 * 2 + 3)  # within the third epoch
    net = make_net(max_epochs=9, callbacks=[record, stop])
    with pytest.warns(UserWarning, match="interrupted after epoch 2 of 9"):
        net.fit(*blobs)
    assert len(net.history) == 2
    assert torch.equal(weights(net), dict(net.callbacks_)["RecordWeights"].weights_[1])
    assert net.predict(blobs[0].astype(np.float32)).shape == (120,)


def test_ctrl_c_in_the_first_epoch_is_raised_and_changes_nothing(blobs):
    net = make_net(warm_start=True, max_epochs=2).fit(*blobs)
    before = weights(net).clone()
    net.callbacks_.append(("stop", StopAfter(step=2)))
    with pytest.raises(KeyboardInterrupt):
        net.fit(*blobs)
    assert torch.equal(weights(net), before)


def test_any_error_leaves_the_last_finished_epoch(blobs):
    record, stop = RecordWeights(), StopAfter(step=6, error=RuntimeError)
    net = make_net(callbacks=[record, stop])
    with pytest.raises(RuntimeError):
        net.fit(*blobs)
    assert torch.equal(weights(net), dict(net.callbacks_)["RecordWeights"].weights_[0])


def test_early_stopping_is_no_interruption(blobs):
    stopping = EarlyStopping("train_loss", patience=2, threshold=1e9)
    net = make_net(max_epochs=20, callbacks=[stopping]).fit(*blobs)  # no warning
    assert len(net.history) < 20


@pytest.mark.parametrize("callbacks", [None, [CountSteps()]])
def test_divergence_is_an_error_at_its_step(blobs, callbacks):
    X, y = blobs
    X = X.copy()
    X[100:] = np.inf  # The loss of any batch with one of these rows is NaN.
    net = make_net(
        temperature=3.0, lr=0.25, iterator_train__shuffle=False, callbacks=callbacks
    )
    steps = []
    step = torch.optim.Adam.step
    with pytest.MonkeyPatch.context() as patch:

        def counted(self, *args, **kwargs):
            steps.append(1)
            return step(self, *args, **kwargs)

        counted.hooked = True
        patch.setattr(torch.optim.Adam, "step", counted)
        with pytest.raises(FloatingPointError) as caught:
            net.partial_fit(X, y)
    # Rows 96 to 127 are the fourth batch; a closure is entered before it fails.
    assert len(steps) == (3 if callbacks is None else 4)
    message = str(caught.value)
    assert "temperature=3" in message
    assert "learning rate 0.25" in message
    assert "epoch 1" in message
    assert torch.isfinite(weights(net)).all()


# -- Bad input -------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [0, -1.0, np.nan, np.inf, "hot", None, True])
def test_bad_temperature(blobs, temperature):
    with pytest.raises(ValueError, match="temperature must be a positive"):
        make_net(temperature=temperature).fit(*blobs)


@pytest.mark.parametrize("labels", [list("abc"), [0.5, 1.5, 2.5], [-1, 0, 1]])
def test_bad_labels(blobs, labels):
    with pytest.raises(ValueError, match="y must be a vector of class codes"):
        make_net().fit(blobs[0], np.array(labels)[blobs[1]])


def test_labels_are_needed(blobs):
    with pytest.raises(ValueError, match="got None"):
        make_net().fit(blobs[0], None)


def test_the_criterion_must_have_a_temperature(blobs):
    with pytest.raises(ValueError, match="must be TemperatureCrossEntropyLoss"):
        make_net(criterion=torch.nn.CrossEntropyLoss).fit(*blobs)
    with pytest.raises(ValueError, match="compete with temperature"):
        make_net(criterion__temperature=2.0).fit(*blobs)


def test_criterion_parameters_reach_it(blobs):
    X, y = blobs
    net = make_net(criterion__label_smoothing=0.2, temperature=2.0).fit(X, y)
    assert isinstance(net.criterion_, TemperatureCrossEntropyLoss)
    logits = torch.randn(5, 3)
    target = torch.tensor([0, 1, 2, 0, 1])
    expected = F.cross_entropy(logits / 2.0, target, label_smoothing=0.2)
    torch.testing.assert_close(net.criterion_(logits, target), expected)


# -- AccuracyStopping ------------------------------------------------------------------


class FakeNet:
    def __init__(self):
        self.module_ = torch.nn.Linear(1, 1)
        self.history = None
        self.verbose = 0


def run(callback, records):
    """Feed accuracies and losses; return the epoch at which it stops, or None."""
    from skorch.history import History

    net = FakeNet()
    net.history = History()
    callback.on_train_begin(net)
    for epoch, (accuracy, loss) in enumerate(records, start=1):
        net.history.new_epoch()
        net.history.record("epoch", epoch)
        net.history.record("valid_acc", accuracy)
        net.history.record("valid_loss", loss)
        try:
            callback.on_epoch_end(net)
        except KeyboardInterrupt:
            return epoch
    return None


def test_loss_decides_between_equal_accuracies():
    callback = AccuracyStopping(patience=3, load_best=True)
    assert run(callback, [(1.0, 0.9), (1.0, 0.5), (1.0, 0.6), (1.0, 0.7)]) == 4
    assert callback.best_epoch_ == 2


def test_only_a_rise_in_accuracy_renews_the_patience():
    callback = AccuracyStopping(patience=3, load_best=True)
    assert run(callback, [(0.9, 1 / epoch) for epoch in range(1, 50)]) == 4
    assert callback.best_epoch_ == 4


def test_accuracy_comes_before_loss():
    callback = AccuracyStopping(patience=2)
    assert run(callback, [(0.8, 0.1), (0.9, 5.0), (0.85, 0.01), (0.85, 0.0)]) == 4
    assert callback.best_epoch_ == 2


# -- Weight decay ----------------------------------------------------------------------

DECAYED = {
    "mlp": (
        partial(MLP, 4, 3, (8,), normalization="layer"),
        {"body.0.weight", "output.weight"},
    ),
    "cnn": (
        partial(CNN, (1, 4, 4), 3, (2,)),
        {"stages.0.0.conv.weight", "stages.0.1.conv.weight", "output.weight"},
    ),
    "table": (
        partial(Transformer, (4,), 3, cardinalities=(3,), d_model=8, depth=1),
        {
            *(f"blocks.0.attention.{name}.weight" for name in ("qkv", "projection")),
            *("blocks.0.mlp.0.weight", "blocks.0.mlp.2.weight", "output.weight"),
        },
    ),
    "image": (
        partial(Transformer, (1, 4, 4), 3, d_model=8, depth=1),
        {
            *(f"blocks.0.attention.{name}.weight" for name in ("qkv", "projection")),
            *("blocks.0.mlp.0.weight", "blocks.0.mlp.2.weight", "output.weight"),
            *(f"tokens.stages.{place}.weight" for place in (0, 4)),
        },
    ),
}


@pytest.mark.parametrize("name", DECAYED)
def test_weight_decay_falls_on_weight_matrices_alone(name):
    make, expected = DECAYED[name]
    net = SoftRankNet(make(), optimizer__weight_decay=0.1).initialize()
    names = {id(p): name for name, p in net.module_.named_parameters()}
    by_decay = {0.1: set(), 0.0: set()}
    for group in net.optimizer_.param_groups:
        by_decay[group["weight_decay"]] |= {names[id(p)] for p in group["params"]}
    assert by_decay == {0.1: expected, 0.0: set(names.values()) - expected}


def test_groups_of_ones_own_keep_their_weight_decay():
    net = SoftRankNet(
        MLP(4, 3),
        optimizer__weight_decay=0.1,
        optimizer__param_groups=[("*.bias", {"weight_decay": 0.3})],
    ).initialize()
    decays = {
        name: group["weight_decay"]
        for group in net.optimizer_.param_groups
        for name, p in net.module_.named_parameters()
        if any(p is other for other in group["params"])
    }
    assert decays == {name: 0.3 if name.endswith(".bias") else 0.1 for name in decays}
    assert len(decays) == 6


def test_a_net_trains_where_gradients_are_switched_off(blobs):
    with torch.no_grad():
        net = make_net().fit(*blobs)
    assert torch.equal(weights(net), weights(make_net().fit(*blobs)))


# -- Types of rows and labels ----------------------------------------------------------


@pytest.mark.parametrize("in_tensors", [False, True], ids=["arrays", "tensors"])
@pytest.mark.parametrize("kind", ["uint8", "float16", "float64"])
def test_rows_and_labels_of_any_numeric_type(in_tensors, kind):
    rng = np.random.default_rng(0)
    X, y = rng.integers(0, 4, (60, 6)), rng.integers(0, 3, 60)
    expected = make_net().fit(X.astype(np.float32), y)
    rows, labels = X.astype(kind), y.astype(np.uint8)
    if in_tensors:
        rows, labels = torch.tensor(rows), torch.tensor(labels)
    net = make_net().fit(rows, labels)
    np.testing.assert_array_equal(weights(net), weights(expected))
    np.testing.assert_array_equal(
        net.predict_proba(rows), expected.predict_proba(X.astype(np.float32))
    )


# -- Callbacks in a stack --------------------------------------------------------------


class Follow(Callback):
    """Note what a callback sees at the end of each epoch, and stop at one of them."""

    def __init__(self, last=None):
        self.last = last

    def on_train_begin(self, net, **kwargs):
        self.seen_ = []

    def on_epoch_end(self, net, dataset_train=None, **kwargs):
        self.seen_.append((weights(net).clone(), dict(net.history[-1]), dataset_train))
        if len(self.seen_) == self.last:
            raise KeyboardInterrupt


def test_a_callback_sees_each_epoch_of_a_stack(blobs):
    net = make_net(callbacks=[Follow()], max_epochs=4).fit(*blobs)
    assert unsupported_reason(net) is None
    assert not net.has_optimizer_
    seen = dict(net.callbacks_)["Follow"].seen_
    assert [record["epoch"] for _, record, _ in seen] == [1, 2, 3, 4]
    assert [record["train_loss"] for _, record, _ in seen] == net.history[
        :, "train_loss"
    ]
    assert all(len(dataset) == 120 for _, _, dataset in seen)
    for k, (own, _, _) in enumerate(seen, start=1):
        assert torch.equal(own, weights(make_net(max_epochs=k).fit(*blobs)))


def test_a_callback_stops_its_net_alone(blobs):
    X, y = blobs
    data = InMemoryDataset(X.astype(np.float32), y)
    nets = [
        make_net(callbacks=[Follow(last)], max_epochs=5).initialize()
        for last in (2, None)
    ]
    assert fit_nets(nets, [data, data]) == [None, None]
    for net, n_epochs in zip(nets, (2, 5), strict=True):
        assert len(net.history) == n_epochs
        assert not net.was_interrupted_
        alone = make_net(max_epochs=n_epochs).fit(X, y)
        assert torch.equal(weights(net), weights(alone))


def test_an_error_of_a_callback_is_its_nets_own(blobs):
    class Fail(Callback):
        def on_epoch_end(self, net, **kwargs):
            raise OSError("The disk is full.")

    X, y = blobs
    data = InMemoryDataset(X.astype(np.float32), y)
    nets = [make_net(callbacks=cbs).initialize() for cbs in ([Fail()], [])]
    errors = fit_nets(nets, [data, data])
    assert isinstance(errors[0], OSError)
    assert errors[1] is None
    with pytest.raises(OSError, match="disk is full"):
        make_net(callbacks=[Fail()]).fit(X, y)


def test_an_error_before_the_training_is_its_nets_own(blobs):
    class Fail(Callback):
        def on_train_begin(self, net, **kwargs):
            raise OSError("The disk is full.")

    X, y = blobs
    data = InMemoryDataset(X.astype(np.float32), y)
    nets = [make_net(callbacks=cbs).initialize() for cbs in ([Fail()], [])]
    errors = fit_nets(nets, [data, data])
    assert [type(error) for error in errors] == [OSError, type(None)]
    assert [net.was_interrupted_ for net in nets] == [False, False]
    assert len(nets[1].history) == 3


def test_what_a_stack_can_t_train_is_trained_beside_it(blobs):
    X, y = blobs
    data = InMemoryDataset(X.astype(np.float32), y)
    params = ({}, {"optimizer": torch.optim.RMSprop}, {"callbacks": [CountSteps()]}, {})
    nets = [make_net(**own).initialize() for own in params]
    assert fit_nets(nets, [data] * 4) == [None] * 4
    assert [net.has_optimizer_ for net in nets] == [False, True, True, False]
    for net, own in zip(nets, params, strict=True):
        assert torch.equal(weights(net), weights(make_net(**own).fit(X, y)))


@pytest.mark.parametrize(
    ("params", "reason"),
    [
        ({}, None),
        ({"optimizer__betas": (0.5, 0.9), "optimizer__fused": True}, None),
        ({"callbacks": [AccuracyStopping(), GradientNormClipping(1.0)]}, None),
        ({"callbacks": [CountSteps]}, "CountSteps acts on batches"),
        ({"callbacks": [("lr", LRScheduler("StepLR", step_size=1))]}, "LRScheduler"),
        ({"callbacks": [Checkpoint()]}, "Checkpoint needs torch's optimizer"),
        ({"callbacks": [Checkpoint(f_optimizer=None)]}, None),
        ({"optimizer__amsgrad": True}, "leave 'amsgrad'"),
        ({"optimizer": torch.optim.LBFGS}, "optimizer must be torch's Adam"),
        ({"precision": "bf16"}, "bf16"),
        ({"compile": True}, "compile"),
        ({"verbose": 2}, "verbose"),
        ({"criterion__ignore_index": -1}, "criterion"),
        ({"iterator_train__drop_last": True}, "DataLoader"),
        ({"device": None}, "DataLoader"),
    ],
)
def test_what_sends_a_net_to_autograd(params, reason):
    net = make_net(**params)
    found = unsupported_reason(net)
    assert found is reason is None or reason in found


def test_betas_reach_a_stack(blobs):
    plain = make_net().fit(*blobs)
    short = make_net(optimizer__betas=(0.5, 0.9))
    stacked, alone = clone(short).fit(*blobs), clone(short).partial_fit(*blobs)
    assert not stacked.has_optimizer_
    torch.testing.assert_close(weights(stacked), weights(alone), rtol=0, atol=1e-5)
    assert (weights(stacked) - weights(plain)).abs().max() > 1e-3


@pytest.mark.parametrize("method", ["fit", "partial_fit"])
def test_a_learning_rate_for_each_epoch(blobs, method):
    rates = [0.01, 0.02, 0.0]
    net = make_net(lr=rates, callbacks=[Follow()])
    getattr(net, method)(*blobs)
    assert net.history[:, "lr"] == rates
    (_, _, _), (second, _, _), (third, _, _) = dict(net.callbacks_)["Follow"].seen_
    assert torch.equal(second, third)
    net = make_net(lr=rates, max_epochs=4)
    with pytest.raises(ValueError, match="lr must be one number, or one for each of 4"):
        getattr(net, method)(*blobs)


def test_a_callback_may_read_and_set_the_optimizers_rate_in_a_stack(blobs):
    class Halve(Callback):
        def on_epoch_end(self, net, **kwargs):
            for group in net.optimizer_.param_groups:
                group["lr"] /= 2

    net = make_net(callbacks=[Halve()]).fit(*blobs)
    assert net.history[:, "lr"] == [0.01, 0.005, 0.0025]
    same = make_net(lr=[0.01, 0.005, 0.0025]).fit(*blobs)
    assert torch.equal(weights(net), weights(same))


def test_a_frozen_or_hooked_module_is_not_stacked(blobs):
    def frozen():
        module = MLP(6, 3, (16,), random_state=0)
        module.body[0].weight.requires_grad = False
        return module

    module = frozen()
    params = make_net().get_params(deep=False)
    own = {k: v for k, v in params.items() if not k.startswith("module")}
    net = SoftRankNet(module, **own).fit(*blobs)
    assert torch.equal(net.module_.body[0].weight, frozen().body[0].weight)
    assert not torch.equal(net.module_.output.weight, frozen().output.weight)
    calls = []
    hooked = MLP(6, 3, (16,), random_state=0)
    hooked.body[0].register_forward_hook(lambda *_: calls.append(1))
    SoftRankNet(hooked, **own).fit(*blobs)
    assert len(calls) >= 12


# -- Parameters that are not trained ---------------------------------------------------


@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_a_freezer_freezes_what_it_names(blobs, precision):
    first = "body.0*"
    net = make_net(precision=precision).initialize()
    before = next(net.module_.parameters()).detach().clone()
    net = make_net(precision=precision, callbacks=[Freezer(first)]).fit(*blobs)
    parameters = dict(net.module_.named_parameters())
    frozen = [name for name, p in parameters.items() if not p.requires_grad]
    assert frozen
    assert torch.equal(parameters[frozen[0]], before)


def test_who_freezes_between_epochs_of_a_stack_is_told_how(blobs):
    class Freezing(Callback):
        def on_epoch_begin(self, net, **kwargs):
            next(net.module_.parameters()).requires_grad_(len(net.history) < 2)

    net = make_net(callbacks=[Freezing()])
    with pytest.raises(ValueError, match="callbacks must leave every parameter"):
        net.fit(*blobs)
    assert len(net.history) == 1
