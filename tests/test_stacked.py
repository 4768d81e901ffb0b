"""The stacked engine: every member ends where it would have ended alone."""

import copy
import threading
from contextlib import contextmanager, nullcontext
from types import SimpleNamespace

import joblib
import numpy as np
import pandas as pd
import pytest
import torch
from _plain import PLAIN
from hypothesis import given, settings
from hypothesis import strategies as st
from skorch.callbacks import Callback
from threadpoolctl import threadpool_info, threadpool_limits
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from sksoftrank import SoftRankMLPClassifier, SoftRankNet
from sksoftrank.estimators._stacked_fit import PendingFit, fit_stacked
from sksoftrank.losses import LinearTemperature, TemperatureCrossEntropyLoss
from sksoftrank.modules import MLP
from sksoftrank.modules._layers import ACTIVATIONS, InputScale
from sksoftrank.training import (
    AccuracyStopping,
    InMemoryBatches,
    InMemoryDataset,
    StopFlag,
    _cuda_graph,
    _stacked,
    fit_nets,
)
from sksoftrank.training._autograd import AutogradSteps
from sksoftrank.training._grouping import unsupported_reason
from sksoftrank.training._loop import train
from sksoftrank.training._member import Member
from sksoftrank.training._stacked import StackSteps, network_bytes, stack_size
from sksoftrank.training._threads import threads_for

pytestmark = pytest.mark.kernels
N_EPOCHS = 5
# Where activations have a kink, a rounding can decide on which side of it a unit is.
SMOOTH = ("identity", "gelu", "silu", "tanh")
ADAM, ADAMW, SGD = torch.optim.Adam, torch.optim.AdamW, torch.optim.SGD
OPTIMIZERS = {
    ADAM: {},
    ADAMW: {"betas": (0.8, 0.99)},
    SGD: {"momentum": 0.9, "nesterov": True},
}


def weights(module):
    """Return all parameters, and the running moments of batch normalisation."""
    moments = [b.flatten() for b in module.buffers() if b.is_floating_point()]
    return torch.cat([*(p.detach().flatten() for p in module.parameters()), *moments])


def problem(n, d, c, seed, weighted=False):
    rng = np.random.default_rng(seed)
    X = rng.standard_normal((n, d)).astype(np.float32)
    y = rng.integers(c, size=n)
    weight = rng.random(n) + 0.1 if weighted else None
    return InMemoryDataset(X, y, weight)


def make_member(data, seed, batch_size, rates, hidden, activation, dropout, **own):
    """Return a member whose seed sets weights, masks and order."""
    n_classes = own.pop("n_classes")
    module = MLP(
        data.X.shape[1],
        n_classes,
        hidden,
        activation=activation,
        dropout=dropout,
        normalization=own.pop("normalization", None),
        input_scale=own.pop("input_scale", False),
        random_state=seed,
    )
    # A batch of one row has no variance.
    least = 2 if module.normalization == "batch" else 1
    batches = InMemoryBatches(
        data, batch_size, shuffle=True, random_state=seed, min_batch_size=least
    )
    return Member(module, batches, learning_rates=rates, **own)


def train_stack(members, kind=ADAM, params=None, stop=None):
    train(StackSteps(members, kind, params or {}, stop))


def make_optimizer(module, weight_decay, kind, params):
    matrices = [p for p in module.parameters() if p.ndim > 1]
    scales = [m.weight for m in module.modules() if isinstance(m, InputScale)]
    vectors = [
        p
        for p in module.parameters()
        if p.ndim == 1 and not any(p is scale for scale in scales)
    ]
    groups = [
        {"params": matrices, "weight_decay": weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    if scales:
        groups.append({"params": scales, "weight_decay": 0.0, "lr_scale": 6.0})
    return kind(
        groups,
        lr=1.0,
        fused=True,
        **params,
    )


def train_by_autograd(member, kind, params):
    """Train a member in the one loop, by the steps for any module."""
    optimizer = make_optimizer(member.module, member.weight_decay, kind, params)
    criterion = TemperatureCrossEntropyLoss(label_smoothing=member.label_smoothing)

    def begin(member):
        epoch = len(member.history)
        criterion.temperature = member.temperatures[epoch]
        for group in optimizer.param_groups:
            group["lr"] = member.learning_rates[epoch] * group.get("lr_scale", 1.0)

    def clip():
        torch.nn.utils.clip_grad_norm_(
            member.module.parameters(), member.max_grad_norm or np.inf
        )

    member.on_epoch_begin = begin
    train(AutogradSteps(member, optimizer, criterion, clip=clip))


def reference(member, kind, params):
    """Train a copy of the member's network by a loop in plain torch."""
    module = copy.deepcopy(member.module)
    source = member.batches
    batches = InMemoryBatches(
        source.dataset,
        source.batch_size,
        shuffle=True,
        random_state=copy.deepcopy(source.random_state),
        min_batch_size=source.min_batch_size,
    )
    optimizer = make_optimizer(module, member.weight_decay, kind, params)
    criterion = TemperatureCrossEntropyLoss(label_smoothing=member.label_smoothing)
    losses = []
    for temperature, rate in zip(
        member.temperatures, member.learning_rates, strict=True
    ):
        module.train()
        for group in optimizer.param_groups:
            group["lr"] = rate * group.get("lr_scale", 1.0)
        criterion.temperature = temperature
        total = 0.0
        for x, target in batches:
            target = target if isinstance(target, tuple) else (target,)
            optimizer.zero_grad()
            loss = criterion(module(x), *target)
            loss.backward()
            if member.max_grad_norm is not None:
                torch.nn.utils.clip_grad_norm_(
                    module.parameters(), member.max_grad_norm
                )
            optimizer.step()
            total += loss.item() * len(x)
        losses.append(total / batches.n_rows)
    return module, losses


@st.composite
def stacks(draw, batch_sizes, activations=tuple(ACTIVATIONS)):
    """Draw a stack of one to four members, most settings a member's own."""
    k = draw(st.integers(1, 4))
    seed = draw(st.integers(0, 1000))
    d, c = draw(st.integers(1, 7)), draw(st.integers(2, 6))
    n = draw(st.integers(5, 90))
    batch_size = draw(st.sampled_from(batch_sizes))
    # Two units at least: with one, for a batch of one row, autograd swaps the factors
    # of a product.
    hidden = tuple(draw(st.lists(st.integers(2, 20), min_size=1, max_size=3)))
    activation = draw(st.sampled_from(activations))
    kind = draw(st.sampled_from(list(OPTIMIZERS)))
    normalization = draw(st.sampled_from([None, "layer", "batch"]))
    if normalization is not None and activations is SMOOTH:
        # It takes out the scale of what is before it, and of few values all but their
        # signs: a gradient of nothing, whose roundings Adam would make full steps of.
        kind, d, batch_size, n = SGD, max(d, 3), max(batch_size, 16), max(n, 40)
        hidden = tuple(max(width, 4) for width in hidden)
    sometimes = st.booleans()
    smoothed, dropping, clipped, decayed, scaled = (draw(sometimes) for _ in range(5))
    members = []
    for i in range(k):
        schedule = draw(st.sampled_from([(1.0, 1.0), (0.3, 0.3), (20.0, 20.0), (1, 9)]))
        rate = draw(st.floats(1e-4, 5e-3))
        # Folds differ by a row or so; some members have far fewer.
        n_own = max(n - draw(st.sampled_from([0, 1, 2, n // 2])), 1)
        if normalization is not None and activations is SMOOTH and n_own > batch_size:
            n_own += max(8 - n_own % batch_size, 0)
        if normalization == "batch":
            batch_size, n_own = max(batch_size, 2), max(n_own, 2)
        members.append(
            make_member(
                problem(
                    n_own,
                    d,
                    c,
                    seed + i,
                    weighted=draw(sometimes),
                ),
                seed + i,
                batch_size,
                np.linspace(rate, rate / 3, N_EPOCHS).tolist(),
                hidden,
                activation,
                dropout=draw(st.sampled_from([0.0, 0.3])) if dropping else 0.0,
                n_classes=c,
                normalization=normalization,
                input_scale=scaled,
                temperatures=np.linspace(*schedule, N_EPOCHS).tolist(),
                weight_decay=draw(st.sampled_from([0.0, 0.05])) if decayed else 0.0,
                label_smoothing=draw(st.sampled_from([0.0, 0.1])) if smoothed else 0.0,
                max_grad_norm=draw(st.sampled_from([None, 0.05])) if clipped else None,
            )
        )
    return members, kind


def assert_close(module, expected):
    torch.testing.assert_close(weights(module), weights(expected), rtol=0, atol=1e-5)


# A stack in numpy, one in torch as on a GPU, and steps for any module.
@pytest.mark.parametrize("steps", ["numpy", "torch", "autograd"])
@settings(max_examples=60)
# Batches of one row make hundreds of steps, over which roundings add up.
@given(stack=stacks([7, 16, 33, 128], activations=SMOOTH))
def test_all_steps_equal_a_plain_loop_to_a_rounding(steps, stack):
    members, kind = stack
    in_single_precision(members)
    expected = [reference(m, kind, OPTIMIZERS[kind]) for m in members]
    with recorded_by(NoRecorder()) if steps == "torch" else nullcontext():
        if steps == "autograd":
            for member in members:
                train_by_autograd(member, kind, OPTIMIZERS[kind])
        else:
            train_stack(members, kind, OPTIMIZERS[kind])
    for member, (module, losses) in zip(members, expected, strict=True):
        assert_close(member.module, module)
        np.testing.assert_allclose(
            [record["train_loss"] for record in member.history], losses, rtol=1e-5
        )


@pytest.mark.parametrize("n_threads", [1, 2])
@settings(max_examples=40)
@given(stack=stacks([1, 7, 16, 33, 128]))
def test_members_equal_themselves_alone_to_the_last_bit(n_threads, stack):
    members, kind = stack
    alone = copy.deepcopy(members)
    threads = torch.get_num_threads()
    torch.set_num_threads(n_threads)
    try:
        train_stack(members, kind, OPTIMIZERS[kind])
        for member in alone:
            train_stack([member], kind, OPTIMIZERS[kind])
    finally:
        torch.set_num_threads(threads)
    assert_same(members, alone)


def plain_member(seed=0, n=60, n_epochs=N_EPOCHS, batch_size=16, rate=1e-2, **own):
    own.setdefault("temperatures", [1.0] * n_epochs)
    return make_member(
        problem(n, 5, 3, seed),
        seed,
        batch_size,
        [rate] * n_epochs,
        (12, 8),
        own.pop("activation", "relu"),
        own.pop("dropout", 0.0),
        n_classes=3,
        **own,
    )


def test_members_need_not_train_as_long_as_each_other():
    alone = [plain_member(seed, n_epochs=n) for seed, n in enumerate((3, 7, 5, 0))]
    together = copy.deepcopy(alone)
    for member in alone:
        train_stack([member])
    train_stack(together)
    for a, b in zip(alone, together, strict=True):
        assert len(b.history) == b.n_epochs
        assert a.history == b.history
        assert torch.equal(weights(a.module), weights(b.module))


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_early_stopping_is_the_same_in_a_stack_and_by_autograd(kind):
    data, valid = problem(80, 5, 3, 0), problem(40, 5, 3, 1)

    def make_net(seed, patience):
        return SoftRankNet(
            MLP,
            module__n_features=5,
            module__n_classes=3,
            module__hidden_layer_sizes=(12, 8),
            module__activation="tanh",
            module__random_state=seed,
            iterator_train__random_state=seed,
            optimizer=kind,
            optimizer__fused=True,
            optimizer__weight_decay=0.0,
            **{f"optimizer__{k}": v for k, v in OPTIMIZERS[kind].items()},
            lr=0.02,
            batch_size=16,
            max_epochs=30,
            train_split=lambda *_: (data, valid),
            callbacks=[AccuracyStopping(patience, 1e-4, load_best=True)],
            verbose=0,
        ).initialize()

    stacked, alone = (
        [make_net(seed, patience) for seed, patience in enumerate((2, 3, 50))]
        for _ in range(2)
    )
    assert fit_nets(stacked, [data] * 3) == [None] * 3
    for net, other in zip(stacked, alone, strict=True):
        other.partial_fit(data)
        assert not net.has_optimizer_
        assert other.has_optimizer_
        for name in ("valid_acc", "valid_loss", "lr", "temperature"):
            np.testing.assert_allclose(
                net.history[:, name], other.history[:, name], rtol=1e-4
            )
        assert net.kept_epoch == other.kept_epoch
        assert_close(net.module_, other.module_)
    assert len({len(net.history) for net in stacked}) > 1


def test_a_member_that_diverges_leaves_the_others_alone():
    members = [plain_member(seed) for seed in range(3)]
    expected = [copy.deepcopy(member) for member in members]
    for member in expected:
        train_stack([member])
    # NaN from the third epoch on.
    members[1].learning_rates = [0.01, 0.01, 1e30, 1e30, 1e30]
    two_epochs = plain_member(1, n_epochs=2)
    train_stack([two_epochs])
    train_stack(members)
    for k in (0, 2):
        assert members[k].error is None
        assert torch.equal(weights(members[k].module), weights(expected[k].module))
    # It keeps its last finished epoch, and says where it went wrong.
    message = str(members[1].error)
    assert "epoch 3" in message
    assert "step 2" in message
    assert "temperature=1" in message
    assert "learning rate 1e+30" in message
    assert len(members[1].history) == 2
    assert torch.equal(weights(members[1].module), weights(two_epochs.module))


def test_a_stack_that_diverges_as_a_whole_ends():
    members = [plain_member(seed, rate=1e30, n_epochs=10**6) for seed in range(2)]
    before = [weights(member.module).clone() for member in members]
    train_stack(members)
    for member, initial in zip(members, before, strict=True):
        assert isinstance(member.error, FloatingPointError)
        assert torch.equal(weights(member.module), initial)


@pytest.mark.parametrize("by_flag", [False, True])
def test_an_interruption_keeps_the_last_finished_epoch(by_flag):
    stop = StopFlag()

    def interrupt(member):
        if len(member.history) == 2:
            if not by_flag:
                raise KeyboardInterrupt
            stop.is_set = True

    members = [plain_member(seed) for seed in range(2)]
    members[1].on_epoch_end = interrupt
    expected = [plain_member(seed, n_epochs=2) for seed in range(2)]
    train_stack(expected)
    train_stack(members, stop=stop)
    for member, reference_member in zip(members, expected, strict=True):
        assert member.is_interrupted
        assert len(member.history) == 2
        assert torch.equal(weights(member.module), weights(reference_member.module))


def test_a_member_that_is_told_to_stop_leaves_the_others_as_they_were():
    members = [plain_member(seed) for seed in range(3)]
    members[1].on_epoch_end = lambda member: len(member.history) == 2
    expected = [plain_member(seed) for seed in range(3)]
    expected[1] = plain_member(1, n_epochs=2)
    train_stack(members)
    train_stack(expected)
    assert [member.is_stopped for member in members] == [False, True, False]
    for member, reference_member in zip(members, expected, strict=True):
        assert len(member.history) == reference_member.n_epochs
        assert torch.equal(weights(member.module), weights(reference_member.module))


def test_an_interruption_before_an_epoch_is_raised_and_changes_nothing():
    members = [plain_member(seed) for seed in range(2)]
    before = [weights(member.module).clone() for member in members]
    with pytest.raises(KeyboardInterrupt):
        train_stack(members, stop=StopFlag(is_set=True))
    for member, initial in zip(members, before, strict=True):
        assert torch.equal(weights(member.module), initial)


def test_modules_own_their_weights_afterwards():
    members = [plain_member(seed) for seed in range(3)]
    train_stack(members)
    pointers = set()
    for member in members:
        for parameter in member.module.parameters():
            assert parameter.requires_grad
            assert parameter.untyped_storage().nbytes() == 4 * parameter.numel()
            pointers.add(parameter.data_ptr())
        member.module(torch.zeros(2, 5)).sum().backward()  # can be trained further
    assert len(pointers) == 3 * 6


def test_other_optimizers_are_refused():
    with pytest.raises(ValueError, match="optimizer must be torch's Adam"):
        train_stack([plain_member()], torch.optim.RMSprop)


def test_plain_descent_has_no_momentum():
    member = plain_member(rate=0.1, activation="tanh")
    module, _ = reference(member, SGD, {})
    train_stack([member], SGD)
    assert_close(member.module, module)


@pytest.mark.parametrize("width", [16, 64, 128, 256, 2048])
def test_stacks_share_the_work_evenly_and_fit_the_caches(width):
    widths = (20, width, width, 10)
    cpu = torch.device("cpu")
    for n_networks in (1, 5, 80, 81):
        for n_workers in (1, 2, 7):
            size = stack_size(widths, 128, n_networks, n_workers, cpu)
            n_stacks = -(-n_networks // size)
            assert 1 <= size <= n_networks
            assert size == 1 or size * network_bytes(widths, 128) <= 5 << 20
            # No round of the workers is without work for more than one of them.
            rounds = -(-n_stacks // n_workers)
            assert rounds * n_workers * size < n_networks + rounds * n_workers


class Nothing(Callback):
    """A callback that asks for skorch's own epoch and does nothing in it."""

    def on_batch_end(self, net, **kwargs):
        """Do nothing."""


@pytest.mark.parametrize(
    "params",
    [
        {},
        {"temperature": 20.0, "optimizer": "sgd", "weight_decay": 0.01},
        {"temperature": LinearTemperature(1.0, 9.0), "optimizer": "adamw"},
        {"label_smoothing": 0.1, "max_grad_norm": 0.2, "activation": "gelu"},
        {"dropout": 0.3, "class_weight": "balanced", "batch_size": 17},
        {"early_stopping": True, "n_iter_no_change": 2, "learning_rate": 0.02},
        {"normalization": "layer", "temperature": 10.0, "activation": "silu"},
        {"normalization": "batch", "early_stopping": True, "n_iter_no_change": 1},
        {"normalization": "batch", "dropout": 0.2, "max_grad_norm": 0.5},
        {"input_scale": True, "optimizer": "adamw", "weight_decay": 0.1},
        {"input_scale": True, "optimizer": "sgd", "normalization": "layer"},
    ],
    ids=str,
)
@pytest.mark.parametrize("weighted", [False, True])
def test_the_estimator_fits_alike_with_and_without_skorch(digits, params, weighted):
    X, X_test, y, _ = digits
    sample_weight = 1.0 + np.arange(len(y)) % 3 if weighted else None
    fast = {"max_epochs": 5, "batch_size": 64, "random_state": 0, "activation": "tanh"}
    params = {**PLAIN, **fast, "hidden_layer_sizes": (16, 8), **params}
    engine = SoftRankMLPClassifier(**params)
    skorch = SoftRankMLPClassifier(**params, callbacks=[Nothing()])
    engine.fit(X, y, sample_weight)
    skorch.fit(X, y, sample_weight)
    assert unsupported_reason(engine.net_) is None
    assert unsupported_reason(skorch.net_) == "Nothing acts on batches"
    assert_close(engine.module_, skorch.module_)
    assert engine.n_components_ == skorch.n_components_
    assert engine.temperature_ == skorch.temperature_
    assert engine.net_.temperature_ == skorch.net_.temperature_
    assert [list(r) for r in engine.history_] == [list(r) for r in skorch.history_]
    for a, b in zip(engine.history_, skorch.history_, strict=True):
        np.testing.assert_allclose(list(a.values()), list(b.values()), rtol=1e-4)
    assert engine.net_.history[:, "train_loss"] == [
        record["train_loss"] for record in engine.history_
    ]
    np.testing.assert_allclose(
        engine.net_.predict_proba(X_test.astype(np.float32)),
        engine.predict_proba(X_test),
        atol=1e-5,
    )


def test_both_ways_print_an_epoch_a_line(blobs, capsys):
    tables = []
    for callbacks in (None, [Nothing()]):
        SoftRankMLPClassifier(
            8, max_epochs=3, random_state=0, verbose=1, callbacks=callbacks
        ).fit(*blobs)
        tables.append(capsys.readouterr().out.splitlines())
    engine, skorch = ([line.split() for line in table] for table in tables)
    assert engine[0] == skorch[0]
    assert [row[0] for row in engine] == [row[0] for row in skorch]
    assert len(engine) == 5


@pytest.mark.parametrize("rate", [1e20, 1e38])
def test_a_last_step_that_diverges_is_an_error(rate):
    # One step: no loss of training sees what it has done.
    member = plain_member(n=16, n_epochs=1, rate=rate)
    before = weights(member.module).clone()
    train_stack([member], SGD if rate > 1e30 else ADAM)
    assert isinstance(member.error, FloatingPointError)
    assert "the last step of epoch 1" in str(member.error)
    assert torch.equal(weights(member.module), before)


def test_members_that_are_no_stack_are_refused():
    with pytest.raises(ValueError, match="at least one member"):
        train_stack([])
    other = plain_member(batch_size=8)
    with pytest.raises(ValueError, match="must agree in shapes"):
        train_stack([plain_member(), other])
    normalized = plain_member()
    normalized.module = MLP(5, 3, (12, 8), normalization="layer", random_state=0)
    with pytest.raises(ValueError, match="agree in shapes, activation, normalization"):
        train_stack([plain_member(), normalized])


# Blocks are of 32 batches, of two rows here: the last row joins its block's last batch,
# or that of the block before.
@pytest.mark.parametrize("n", [2, 3, 62, 63, 64, 65, 66, 129])
@pytest.mark.parametrize("is_replayed", [False, True])
def test_a_row_that_would_be_left_alone_joins_the_last_batch(n, is_replayed):
    members = [
        make_member(
            problem(n - less, 4, 3, 0),
            0,
            2,
            [1e-4] * 2,
            (6,),
            "tanh",
            0.0,
            n_classes=3,
            normalization="batch",
            temperatures=[1.0, 3.0],
        )
        for less in {0, min(1, n - 2), min(2, n - 2)}
    ]
    in_single_precision(members)
    # Not Adam: two rows are normalised to their signs, and leave a gradient of nothing.
    expected = [reference(m, SGD, {}) for m in members]
    with recorded_by(TapeRecorder()) if is_replayed else nullcontext():
        train_stack(members, SGD)
    for member, (module, losses) in zip(members, expected, strict=True):
        assert_close(member.module, module)
        np.testing.assert_allclose(
            [record["train_loss"] for record in member.history], losses, rtol=1e-5
        )


# -- Graphs ----------------------------------------------------------------------------


class Tape(TorchDispatchMode):
    """torch's calls, to be repeated on the same memory with the same numbers.

    What a CUDA graph does with kernels: Python is not asked again.
    """

    # They wait for the device, copy from the host, or depend on values.
    FORBIDDEN = ("_local_scalar_dense", "lift_fresh", "nonzero", "item")

    def __init__(self):
        super().__init__()
        self.calls = []

    def __torch_dispatch__(self, call, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        assert not any(name in call.name() for name in self.FORBIDDEN), call
        if "_to_copy" in call.name():
            assert kwargs.get("device") in (None, args[0].device), kwargs
        out = call(*args, **kwargs)
        self.calls.append((call, args, kwargs, out))
        return out

    def replay(self):
        # The calls are of what autograd has made already.
        with torch._C._AutoDispatchBelowAutograd():
            for call, args, kwargs, out in self.calls:
                again = call(*args, **kwargs)
                for old, new in zip(tree_leaves(out), tree_leaves(again), strict=True):
                    is_tensor = isinstance(old, torch.Tensor)
                    if is_tensor and old.data_ptr() != new.data_ptr():
                        old.copy_(new)


def states(generators):
    return {generator.get_state().numpy().tobytes() for generator in generators}


class TapeRecorder:
    """Tapes in place of CUDA graphs."""

    def __init__(self):
        self.n_recorded = self.n_replayed = 0

    def warm_up(self, function):
        function()

    def record(self, function, generators):
        with Tape() as tape:
            function()  # A CUDA graph would wait for the first launch.
        self.n_recorded += 1
        drawn = [kwargs.get("generator") for _, _, kwargs, _ in tape.calls]
        # By their states, for a call is given another Python object.
        assert states(g for g in drawn if g is not None) <= states(generators)
        is_first = True

        def launch():
            nonlocal is_first
            if not is_first:
                self.n_replayed += 1
                tape.replay()
            is_first = False

        return launch


class NoRecorder:
    """Steps as they are recorded elsewhere, made anew each time."""

    def warm_up(self, function):
        function()

    def record(self, function, generators):
        return function


@contextmanager
def recorded_by(recorder):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_stacked, "recorder_for", lambda device: recorder)
        yield recorder


def in_single_precision(members):
    """Round learning rates to what a tensor holds."""
    for member in members:
        member.learning_rates = np.float32(member.learning_rates).tolist()


def assert_same(members, others):
    for a, b in zip(members, others, strict=True):
        # The mean of an epoch's losses is over rows padded to the longest member's.
        for own, other in zip(a.history, b.history, strict=True):
            assert own == pytest.approx(other, rel=1e-12)
        assert str(a.error) == str(b.error)
        assert torch.equal(weights(a.module), weights(b.module))


@settings(max_examples=20)
@given(stack=stacks([1, 7, 33]))
def test_replayed_steps_equal_steps_to_the_last_bit(stack):
    members, kind = stack
    in_single_precision(members)
    others = copy.deepcopy(members)
    with recorded_by(NoRecorder()):
        train_stack(members, kind, OPTIMIZERS[kind])
    with recorded_by(TapeRecorder()) as recorder:
        train_stack(others, kind, OPTIMIZERS[kind])
    assert recorder.n_recorded > 0
    assert recorder.n_replayed > 0
    assert_same(members, others)


def test_graphs_do_not_outlive_the_members_they_were_made_for():
    def make():
        members = [plain_member(k, n_epochs=n) for k, n in enumerate((8, 9, 6))]
        members[0] = plain_member(0, n_epochs=8, dropout=0.3)
        # It has no rows in the second of two blocks, which is for the others the same
        # before and after it leaves.
        members.append(plain_member(3, n_epochs=4, n=20))
        for member in members:
            member.batches.batches_per_block = 2
        members[1].learning_rates[6:] = [1e30] * 3
        in_single_precision(members)
        return members

    members, others = make(), make()
    with recorded_by(NoRecorder()):
        train_stack(members)
    assert "of epoch 7" in str(members[1].error)
    with recorded_by(TapeRecorder()) as recorder:
        train_stack(others)
    assert_same(members, others)
    assert recorder.n_replayed > 0


def test_losses_of_replayed_steps_are_read_once_an_epoch(monkeypatch):
    events = []
    for name, event in (("_train_block", "block"), ("_read", "read")):
        method = getattr(_stacked.StackSteps, name)

        def note(self, *args, method=method, event=event):
            events.append(event)
            return method(self, *args)

        monkeypatch.setattr(_stacked.StackSteps, name, note)

    def train():
        events.clear()
        members = [plain_member(seed, n_epochs=3) for seed in range(2)]
        for member in members:
            member.batches.batches_per_block = 2
        train_stack(members)

    train()
    assert events == ["block", "read"] * 6
    with recorded_by(TapeRecorder()):
        train()
    assert events == ["block", "block", "read", "read"] * 3


def test_steps_that_cannot_be_captured_are_launched_one_by_one():
    class Failing(TapeRecorder):
        def record(self, function, generators):
            self.n_recorded += 1
            raise RuntimeError("operation not permitted when stream is capturing")

    members = [plain_member(seed, dropout=0.3) for seed in range(2)]
    in_single_precision(members)
    others = copy.deepcopy(members)
    with recorded_by(NoRecorder()):
        train_stack(members)
    with (
        recorded_by(Failing()) as recorder,
        pytest.warns(RuntimeWarning, match="one by one") as caught,
    ):
        train_stack(others)
    assert len(caught) == recorder.n_recorded == 1
    assert_same(members, others)


class FakeGenerator:
    def __init__(self, device=None):
        self.device, self.state, self.is_capturing = device, 0, False

    def get_state(self):
        return self.state

    def set_state(self, state):
        self.state = state

    def graphsafe_set_state(self, other):
        self.__dict__.update(other.__dict__)


class FakeGraph:
    """torch's class and context in one; a failed capture leaves its marks."""

    def __init__(self, graph=None, stream=None, capture_error_mode=None):
        self.graph, self.generators = graph, []

    def register_generator_state(self, generator):
        self.generators.append(generator)

    def __enter__(self):
        for generator in self.graph.generators:
            generator.is_capturing = True

    def __exit__(self, kind, *rest):
        if kind is not None:
            raise RuntimeError("the capture was invalidated")
        for generator in self.graph.generators:
            generator.is_capturing = False

    def replay(self):
        return self


@pytest.mark.parametrize("fails", [False, True])
def test_cuda_captures_register_generators_and_repair_them(monkeypatch, fails):
    waits = []
    stream = SimpleNamespace(wait_stream=waits.append)
    cuda = SimpleNamespace(
        Stream=lambda device: stream,
        current_stream=lambda device: stream,
        stream=nullcontext,
        device=nullcontext,
        current_device=lambda: 0,
        default_generators=[FakeGenerator()],
        CUDAGraph=FakeGraph,
        graph=FakeGraph,
    )
    fake = SimpleNamespace(cuda=cuda, Generator=FakeGenerator)
    monkeypatch.setattr(_cuda_graph, "torch", fake)
    monkeypatch.setattr(_cuda_graph.CudaRecorder, "_streams", {})
    recorder = _cuda_graph.recorder_for(torch.device("cuda", 0))
    again = _cuda_graph.recorder_for(torch.device("cuda", 0))
    assert again.stream is recorder.stream
    generator = FakeGenerator()
    generator.state = 7
    seen = []

    def function():
        seen.append(generator.is_capturing)
        generator.state += 1
        if fails and generator.is_capturing:
            raise RuntimeError

    recorder.warm_up(function)
    assert generator.state == 8
    assert waits == 2 * [stream]  # There and back.
    if fails:
        with pytest.raises(RuntimeError, match="invalidated"):
            recorder.record(function, [generator])
        assert generator.state == 8
    else:
        graph = recorder.record(function, [generator])()
        assert graph.generators == [generator]
        assert waits == 3 * [stream]
    assert seen == [False, True]
    assert not generator.is_capturing


# -- Members on a device ---------------------------------------------------------------


@pytest.fixture
def moves(monkeypatch):
    """Shapes of the tensors that change their device."""
    shapes, to = [], torch.Tensor.to

    def spy(tensor, *args, **kwargs):
        moved = to(tensor, *args, **kwargs)
        if moved.device != tensor.device:
            shapes.append(tuple(tensor.shape))
        return moved

    monkeypatch.setattr(torch.Tensor, "to", spy)
    return shapes


def test_members_of_one_array_move_it_once(moves):
    # No values, but a device that is not the CPU.
    X = np.random.default_rng(0).standard_normal((40, 5))
    weight = np.ones(40, np.float32)
    members = []
    for seed in range(3):
        data = InMemoryDataset(X, np.full(40, seed), weight)
        batches = InMemoryBatches(
            data, 16, shuffle=True, random_state=seed, device="meta"
        )
        module = MLP(5, 3, (4,), random_state=seed).to("meta")
        members.append(Member(module, batches, [1.0] * 3, [0.1] * 3))
    moves.clear()
    _stacked.StackSteps(members, ADAM, {})
    # Labels are each member's own.
    assert sorted(moves) == [(40,)] * 4 + [(40, 5)]


def test_blocks_are_gathered_where_the_rows_are(moves):
    data = problem(40, 5, 3, 0, weighted=True)
    batches = InMemoryBatches(data, 16, shuffle=True, random_state=0, device="meta")
    batches.load()
    moves.clear()
    order = batches.order()
    assert moves == [(40,)]
    for start in (0, 16, 32):
        x, y, w = batches.gather(order, slice(start, start + 16))
        assert len(x) == len(y) == len(w) == min(16, 40 - start)
        assert x.device.type == y.device.type == w.device.type == "meta"
    assert len(moves) == 1


# -- Fits of estimators as a stack -----------------------------------------------------


def make_fits(X, y, n=3, **params):
    return [
        PendingFit(
            SoftRankMLPClassifier(8, max_epochs=3, random_state=k, **params), X, y
        )
        for k in range(n)
    ]


@pytest.mark.parametrize("early_stopping", [False, True])
def test_fits_share_the_rows_made_of_a_frame(blobs, monkeypatch, early_stopping):
    X, y = blobs
    seen = set()

    def look(steps, checkpoint):
        for member in steps.members:
            seen.add(member.batches.dataset.X.ctypes.data)
            if member.valid is not None:
                seen.add(member.valid.dataset.X.ctypes.data)
        return train(steps)

    monkeypatch.setattr("sksoftrank.training._grouping.train", look)
    frame = pd.DataFrame(X.astype(np.float32), columns=list("abcdef"))
    fits = make_fits(frame, y, early_stopping=early_stopping, batch_size=32)
    fit_stacked(fits)
    assert len(seen) == 1
    for fit in fits:
        assert fit.error is None
        assert fit.estimator.feature_names_in_.tolist() == list("abcdef")
        alone = SoftRankMLPClassifier(**fit.estimator.get_params()).fit(frame, y)
        np.testing.assert_array_equal(
            alone.transform(frame), fit.estimator.transform(frame)
        )


def test_an_error_in_a_stack_is_its_fits_own(blobs, monkeypatch):
    def fail(steps, checkpoint):
        if steps.members[0].module.activation == "tanh":
            raise RuntimeError("out of memory")
        return train(steps)

    monkeypatch.setattr("sksoftrank.training._grouping.train", fail)
    fits = [*make_fits(*blobs, activation="tanh"), *make_fits(*blobs)]
    fit_stacked(fits)
    assert [str(fit.error) for fit in fits[:3]] == ["out of memory"] * 3
    assert [fit.error for fit in fits[3:]] == [None] * 3


class Interrupt(Callback):
    def on_epoch_begin(self, net, **kwargs):
        if net.history[-1, "epoch"] == 3:
            raise KeyboardInterrupt


@pytest.mark.filterwarnings("ignore:Training was interrupted")
def test_ctrl_c_ends_fits_that_are_not_stacked(blobs):
    with pytest.raises(KeyboardInterrupt):
        fit_stacked(make_fits(*blobs, callbacks=[Interrupt()]))
    with pytest.raises(KeyboardInterrupt):
        fit_stacked(make_fits(*blobs), stop=StopFlag(is_set=True))


def test_a_fit_holds_no_rows(blobs):
    X, y = blobs
    for callbacks in (None, [Nothing()]):
        clf = SoftRankMLPClassifier(
            8, max_epochs=3, early_stopping=True, callbacks=callbacks, random_state=0
        ).fit(X, y)
        assert clf.net_.train_split is None
        stopping = dict(clf.net_.callbacks_)["early_stopping"]
        assert stopping.best_model_weights_ is None


def test_a_diverged_partial_fit_starts_the_optimizer_anew(blobs):
    X, y = blobs
    clf = SoftRankMLPClassifier(8, batch_size=16, random_state=0)
    clf.partial_fit(X, y, classes=[0, 1, 2])
    before = weights(clf.module_).clone()
    clf.set_params(learning_rate=1e30)  # Overflows somewhere in the epoch.
    with pytest.raises(FloatingPointError):
        clf.partial_fit(X, y)
    clf.set_params(learning_rate="auto")
    assert torch.equal(weights(clf.module_), before)
    clf.partial_fit(X, y)
    state = clf.net_.optimizer_.state_dict()["state"][0]
    assert int(state["step"]) == 8  # of this call alone
    assert state["exp_avg_sq"].isfinite().all()


def test_arrays_mapped_from_a_file_are_predicted_with(blobs, tmp_path):
    X, y = blobs
    clf = SoftRankMLPClassifier(8, max_epochs=2, random_state=0).fit(X, y)
    joblib.dump(clf, tmp_path / "clf.joblib")
    mapped = joblib.load(tmp_path / "clf.joblib", mmap_mode="r")
    np.testing.assert_array_equal(mapped.predict_proba(X), clf.predict_proba(X))


# -- Options of the optimizer, and threads ---------------------------------------------


@pytest.mark.parametrize(
    ("kind", "params", "message"),
    [
        (SGD, {"momentum": 0.9, "dampening": 0.5}, "must leave 'dampening' at 0"),
        (ADAM, {"decoupled_weight_decay": True}, "leave 'decoupled_weight_decay' at"),
        (ADAM, {"amsgrad": True}, "must leave 'amsgrad' at False, got True"),
        (ADAM, {"momentum": 0.9}, "must be parameters of Adam, got 'momentum'"),
        (SGD, {"nesterov": True}, "a positive momentum with nesterov=True, got 0"),
        (torch.optim.RMSprop, {}, "must be torch's Adam, AdamW or SGD"),
    ],
)
def test_options_that_a_stack_has_not_are_refused(kind, params, message):
    member = plain_member()
    before = weights(member.module)
    with pytest.raises(ValueError, match=message):
        train_stack([member], kind, params)
    assert torch.equal(weights(member.module), before)


def n_product_threads():
    return {
        pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"
    }


def test_trainings_in_several_threads_give_the_threads_back():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    is_in, is_out = threading.Event(), threading.Event()
    after = []

    def second():
        assert is_in.wait(10)
        train_stack([plain_member(1, on_epoch_end=lambda _: is_out.wait(10))])
        after.append(torch.get_num_threads())

    thread = threading.Thread(target=second)
    try:
        thread.start()
        with threads_for(64):
            is_in.set()
        assert torch.get_num_threads() == 2
        is_out.set()
        thread.join()
        assert after == [2]
    finally:
        is_out.set()
        torch.set_num_threads(before)


@pytest.mark.parametrize(("width", "expected"), [(8, {1}), (2048, None)])
def test_threads_follow_from_the_width_and_are_given_back(width, expected):
    seen = []

    def look(member):
        seen.append((torch.get_num_threads(), n_product_threads()))

    def make(on_epoch_end=None):
        member = plain_member(on_epoch_end=on_epoch_end)
        member.module = MLP(5, 3, (width, width), random_state=0)
        return member

    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with threadpool_limits(2, user_api="blas"):
            granted = n_product_threads()
            train_stack([make(look)])
            assert n_product_threads() == granted
            with pytest.raises(KeyboardInterrupt):
                train_stack([make()], stop=StopFlag(True))
            assert n_product_threads() == granted
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    assert seen == [(1, expected or granted)] * N_EPOCHS


def test_a_basis_may_be_found_from_few_rows(blobs):
    fits = [make_fits(*blobs)[0] for _ in range(3)]
    for fit, n_rows in zip(fits, (len(blobs[0]), 5, 0), strict=True):
        fit_stacked([fit], basis_rows=n_rows)
        assert fit.error is None
    full, few, none = (fit.estimator for fit in fits)
    np.testing.assert_array_equal(
        full.predict_proba(blobs[0]), few.predict_proba(blobs[0])
    )
    # Five rows about their mean span no more than four directions.
    assert np.count_nonzero(few.singular_values_) <= 4
    assert np.count_nonzero(full.singular_values_) > 4
    assert not hasattr(none, "compressor_")
