"""Where and how precisely a training computes, compilation, and progress bars."""

import pickle
import threading
import warnings

import numpy as np
import pytest
import torch
from _plain import PLAIN
from skorch.callbacks import Callback

from sksoftrank import SoftRankCNNClassifier, SoftRankMLPClassifier, SoftRankNet
from sksoftrank.losses import ExponentialTemperature
from sksoftrank.modules import MLP
from sksoftrank.training import _grouping, _precision
from sksoftrank.training._precision import autocast, matmul_precision

FAST = {**PLAIN, "hidden_layer_sizes": (16, 8), "max_epochs": 4, "batch_size": 16}
NET = {
    "module__n_features": 6,
    "module__n_classes": 3,
    "module__random_state": 0,
    "iterator_train__random_state": 0,
    "max_epochs": 3,
    "train_split": None,
    "verbose": 0,
}


def make(**params):
    return SoftRankMLPClassifier(**{**FAST, "random_state": 0, **params})


def weights(clf):
    return torch.cat([p.detach().flatten() for p in clf.module_.parameters()]).numpy()


# -- Devices ---------------------------------------------------------------------------


@pytest.fixture
def two_gpus(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)


@pytest.fixture
def no_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)


@pytest.mark.parametrize(
    ("device", "expected"),
    [
        ("auto", "cuda"),
        ("cuda", "cuda"),
        ("cuda:1", "cuda:1"),
        (1, "cuda:1"),
        (np.int64(0), "cuda:0"),
        (torch.device("cuda", 1), "cuda:1"),
        ("cpu", "cpu"),
    ],
    ids=str,
)
def test_devices(two_gpus, device, expected):
    clf = make(device=device)
    clf._validate_params()
    assert clf._resolve_device() == torch.device(expected)


@pytest.mark.parametrize("device", ["cuda:2", 2, "mps", "meta"])
def test_a_device_beyond_those_there_are(two_gpus, blobs, device):
    with pytest.raises(ValueError, match="device must be one that this machine offers"):
        make(device=device).fit(*blobs)


@pytest.mark.parametrize("device", ["cuda", 0, torch.device("cuda", 0), "mps"])
def test_cuda_asked_for_and_absent(no_gpu, blobs, device):
    with pytest.raises(ValueError, match=r"this machine offers, got .*'auto'"):
        make(device=device).fit(*blobs)


def test_auto_takes_what_there_is(no_gpu, monkeypatch):
    assert make()._resolve_device() == torch.device("cpu")
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert make()._resolve_device() == torch.device("mps")


@pytest.mark.parametrize("device", ["warp", -1, 1.5, None])
def test_no_device_at_all(blobs, device):
    with pytest.raises(ValueError, match="device"):
        make(device=device).fit(*blobs)


@pytest.mark.parametrize("device", ["cuda:7", 7, torch.device("cuda", 7), "mps"])
@pytest.mark.parametrize("precision", ["float32", "bf16", "tf32"])
def test_a_pickle_of_an_absent_device_goes_to_the_cpu(no_gpu, blobs, device, precision):
    X, y = blobs
    clf = make(precision=precision).fit(X, y)
    expected = clf.predict_proba(X)
    clf.device = device
    copied = pickle.loads(pickle.dumps(clf))
    assert next(copied.module_.parameters()).device == torch.device("cpu")
    np.testing.assert_array_equal(copied.predict_proba(X), expected)
    assert copied.get_params()["device"] == device
    with pytest.raises(ValueError, match="this machine offers"):
        copied.fit(X, y)


def test_a_pickle_knows_no_device(blobs):
    state = make().fit(*blobs).__getstate__()
    assert all(isinstance(w, np.ndarray) for w in state["_weights"].values())
    assert "net_" not in state


@pytest.mark.parametrize("callbacks", [[], [("noop", Callback())]])
def test_a_net_of_no_device_trains_where_it_lies(blobs, callbacks):
    # Accelerate places modules and batches itself.
    X, y = blobs
    X = X.astype(np.float32)
    params = {**NET, "iterator_train__shuffle": False, "callbacks": callbacks}
    net = SoftRankNet(MLP, device=None, **params).fit(X, y)
    expected = SoftRankNet(MLP, **params).fit(X, y)
    np.testing.assert_allclose(net.predict_proba(X), expected.predict_proba(X), 1e-5)


# -- Precision -------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_bf16_trains_and_predicts_in_the_precision_of_x(blobs, dtype):
    X, y = blobs
    X = X.astype(dtype)
    params = {"learning_rate": 0.02, "max_epochs": 8}
    single = make(**params).fit(X, y)
    clf = make(precision="bf16", **params).fit(X, y)
    assert clf.score(X, y) > 0.9
    difference = np.abs(weights(clf) - weights(single)).max()
    assert 1e-5 < difference < 0.5
    for name in ("predict_proba", "embed", "transform", "decision_function"):
        assert getattr(clf, name)(X).dtype == dtype
    with torch.no_grad():
        module = pickle.loads(pickle.dumps(clf)).module_.double()
        logits = module(torch.tensor(X, dtype=torch.float64)).numpy()
    np.testing.assert_allclose(clf.decision_function(X), logits, rtol=1e-4, atol=1e-4)
    clf.partial_fit(X, y)
    assert all(p.dtype == torch.float32 for p in clf.module_.parameters())


def test_bf16_with_a_gradient_norm_images_and_early_stopping(digits):
    X, _, y, _ = digits
    clf = SoftRankCNNClassifier(
        (8, 16),
        input_shape=(1, 8, 8),
        batch_size=32,
        max_epochs=3,
        learning_rate=0.01,
        precision="bf16",
        max_grad_norm=1.0,
        early_stopping=True,
        random_state=0,
    )
    assert clf.fit(X[:500], y[:500]).score(X, y) > 0.7


class Spy(MLP):
    """Notes the precision of its logits."""

    seen: list[torch.dtype] = []  # noqa: RUF012

    def head(self, z):
        logits = super().head(z)
        self.seen.append(logits.dtype)
        return logits


@pytest.mark.parametrize("callbacks", [[], [("noop", Callback())]])
@pytest.mark.parametrize("precision", ["float32", "tf32", "bf16"])
def test_precision_of_a_net(blobs, monkeypatch, precision, callbacks):
    monkeypatch.setattr(Spy, "seen", [])
    X, y = blobs
    net = SoftRankNet(Spy, precision=precision, callbacks=callbacks, **NET).fit(X, y)
    half = precision == "bf16"
    assert set(Spy.seen) == {torch.bfloat16 if half else torch.float32}
    assert net.predict_proba(X.astype(np.float32)).dtype == np.float32
    assert net.infer(torch.zeros(1, 6)).dtype == torch.float32


def test_single_precision_shortens_nothing(blobs):
    net = SoftRankNet(MLP, **NET).initialize()
    net.module_.double()
    assert net.infer(torch.zeros(1, 6, dtype=torch.float64)).dtype == torch.float64


@pytest.mark.parametrize("precision", ["float16", None, "BF16"])
def test_unknown_precision(blobs, precision):
    with pytest.raises(ValueError, match="precision"):
        make(precision=precision).fit(*blobs)
    with pytest.raises(ValueError, match="precision must be one of"):
        SoftRankNet(MLP, precision=precision, **NET).fit(*blobs)


def test_autocast_leaves_that_of_the_caller():
    x = torch.ones(2, 2)
    with torch.autocast("cpu", torch.bfloat16), autocast("float32", "cpu"):
        assert (x @ x).dtype == torch.bfloat16
    with autocast("bf16", None):
        assert (x @ x).dtype == torch.bfloat16


MATMUL, CUDNN = torch.backends.cuda.matmul, torch.backends.cudnn


def switches():
    """Return the switches by the interface that can be read."""
    try:
        return MATMUL.allow_tf32, CUDNN.allow_tf32
    except RuntimeError:
        return MATMUL.fp32_precision, CUDNN.conv.fp32_precision


@pytest.fixture(params=["default", "allow_tf32", "fp32_precision"])
def setting(request, monkeypatch):
    """Let the CPU pass for a CUDA device, after a setting of the user's."""
    monkeypatch.setattr(_precision, "device_type", lambda device: "cuda")
    before = MATMUL.allow_tf32, CUDNN.allow_tf32
    if request.param == "allow_tf32":
        MATMUL.allow_tf32, CUDNN.allow_tf32 = not before[0], not before[1]
    elif request.param == "fp32_precision":
        if not hasattr(CUDNN, "conv"):
            pytest.skip("This torch has the older interface only.")
        newer = MATMUL.fp32_precision
        MATMUL.fp32_precision = "tf32"
    yield switches()
    if request.param == "fp32_precision":
        MATMUL.fp32_precision = newer
    MATMUL.allow_tf32, CUDNN.allow_tf32 = before


def is_short(value):
    return value in (True, "tf32")


@pytest.mark.parametrize("precision", ["float32", "tf32"])
def test_tf32_is_switched_and_switched_back(setting, precision):
    with matmul_precision(precision, "cuda"):
        assert [is_short(v) for v in switches()] == 2 * [precision == "tf32"]
        # A fit's net does it again.
        with matmul_precision(precision, "cuda"):
            pass
        assert [is_short(v) for v in switches()] == 2 * [precision == "tf32"]
    assert switches() == setting
    with pytest.raises(RuntimeError, match="halt"), matmul_precision("tf32", "cuda"):
        raise RuntimeError("halt")
    assert switches() == setting


def test_tf32_is_switched_back_after_the_last_of_several_threads(setting):
    first_is_in, second_is_in = threading.Event(), threading.Event()
    first_is_out = threading.Event()

    def first():
        with matmul_precision("tf32", "cuda"):
            first_is_in.set()
            assert second_is_in.wait(10)
        first_is_out.set()

    def second():
        assert first_is_in.wait(10)
        with matmul_precision("tf32", "cuda"):
            second_is_in.set()
            assert first_is_out.wait(10)
            assert all(map(is_short, switches()))

    threads = [threading.Thread(target=target) for target in (first, second)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert first_is_out.is_set()
    assert switches() == setting


def test_trainings_of_different_precision_wait_for_each_other(setting):
    first_is_in, second_waits = threading.Event(), threading.Event()
    seen = []

    def first():
        with matmul_precision("tf32", "cuda"):
            first_is_in.set()
            assert second_waits.wait(10)
            # One within another of the same thread has its own.
            with matmul_precision("float32", "cuda"):
                seen.append(list(map(is_short, switches())))
            seen.append(list(map(is_short, switches())))

    def second():
        assert first_is_in.wait(10)
        second_waits.set()
        with matmul_precision("float32", "cuda"):
            seen.append(list(map(is_short, switches())))

    threads = [threading.Thread(target=target) for target in (first, second)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert seen == [[False, False], [True, True], [False, False]]
    assert switches() == setting


class Watch(Callback):
    """Notes the switches during a training."""

    seen: list[tuple] = []  # noqa: RUF012

    def on_epoch_begin(self, net, **kwargs):
        self.seen.append(switches())
        if net.history and len(net.history) > 2:
            raise OSError("The disk is full.")


@pytest.mark.parametrize("precision", ["float32", "tf32"])
def test_tf32_in_a_fit(setting, blobs, monkeypatch, precision):
    monkeypatch.setattr(Watch, "seen", [])
    make(precision=precision, max_epochs=2, callbacks=[Watch()]).fit(*blobs)
    with pytest.raises(OSError, match="disk"):
        make(precision=precision, callbacks=[Watch()]).fit(*blobs)
    net = SoftRankNet(MLP, precision=precision, **NET, callbacks=[Watch()])
    with pytest.raises(OSError, match="disk"):
        net.fit(*blobs)
    assert {is_short(v) for pair in Watch.seen for v in pair} == {precision == "tf32"}
    assert switches() == setting


def test_tf32_in_a_stack(setting, blobs, monkeypatch):
    seen = []

    def halt(*args, **kwargs):
        seen.append(switches())
        raise OSError("The disk is full.")

    monkeypatch.setattr(_grouping, "train", halt)
    with pytest.raises(OSError, match="disk"):
        make(precision="tf32").fit(*blobs)
    assert all(map(is_short, seen[0]))
    assert switches() == setting


def test_tf32_is_nothing_to_a_cpu(blobs, monkeypatch):
    monkeypatch.setattr(Watch, "seen", [])
    before = switches()
    params = {"max_epochs": 2, "callbacks": [Watch()], "device": "cpu"}
    clf = make(precision="tf32", **params).fit(*blobs)
    assert set(Watch.seen) == {before}
    np.testing.assert_array_equal(weights(clf), weights(make(**params).fit(*blobs)))


# -- Compilation -----------------------------------------------------------------------


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_compiled_equals_uncompiled(blobs, backend):
    X, y = blobs
    schedule = ExponentialTemperature(1.0, 4.0)
    compiled = {"compile": True, "net_params": {"compile__backend": backend}}
    clf = make(temperature=schedule, **compiled).fit(X, y)
    expected = make(temperature=schedule, callbacks=[Callback()]).fit(X, y)
    assert hasattr(clf.net_.module_, "_orig_mod")
    assert type(clf.module_) is MLP
    close = {"rtol": 1e-4, "atol": 1e-6}

    def agree():
        for name in ("predict_proba", "transform", "embed"):
            np.testing.assert_allclose(
                getattr(clf, name)(X), getattr(expected, name)(X), **close
            )

    agree()
    copied = pickle.loads(pickle.dumps(clf))
    np.testing.assert_array_equal(copied.predict_proba(X), clf.predict_proba(X))
    for _ in range(2):
        clf.partial_fit(X, y)
        expected.partial_fit(X, y)
    agree()
    for other in (clf, expected, copied):
        other.set_params(warm_start=True, max_epochs=1).fit(X, y)
    agree()
    # From compiled weights to none and back.
    clf.set_params(compile=False, net_params=None).fit(X, y)
    expected.fit(X, y)
    agree()
    clf.set_params(**compiled).fit(X, y)
    expected.fit(X, y)
    agree()


def test_a_compiled_network_of_other_weights_is_no_warm_start(blobs):
    params = {"compile": True, "net_params": {"compile__backend": "eager"}}
    clf = make(warm_start=True, **params).fit(*blobs)
    before = clf.predict_proba(blobs[0])
    for sizes in [(16, 8, 8), (16, 4)]:
        with pytest.raises(ValueError, match="module's parameters must stay"):
            clf.set_params(hidden_layer_sizes=sizes).fit(*blobs)
    np.testing.assert_array_equal(clf.predict_proba(blobs[0]), before)


def test_the_module_is_what_is_compiled(blobs):
    calls = []

    def backend(graph, inputs):
        calls.append(graph)
        return graph.forward

    params = {"compile": True, "net_params": {"compile__backend": backend}}
    # As many temperatures as epochs: the loss would be compiled for each.
    schedule = ExponentialTemperature(1.0, 4.0)
    make(temperature=schedule, max_epochs=6, **params).fit(*blobs)
    assert 1 <= len(calls) <= 3


def test_compiled_and_half_precision(blobs):
    X, y = blobs
    params = {"compile": True, "net_params": {"compile__backend": "eager"}}
    clf = make(precision="bf16", learning_rate=0.02, **params).fit(X, y)
    assert clf.score(X, y) > 0.8


# -- What is shown ---------------------------------------------------------------------


@pytest.mark.parametrize(
    "params",
    [{}, {"max_grad_norm": 1.0}, {"callbacks": [Callback()]}, {"early_stopping": True}],
    ids=["lean", "clipped", "callback", "stopping"],
)
def test_bars(blobs, capsys, params):
    make(verbose=2, **params).fit(*blobs)
    out, err = capsys.readouterr()
    n_batches = 7 if "early_stopping" in params else 8
    for epoch in range(1, 5):
        assert f"epoch {epoch}:" in err
    assert f"/{n_batches} [" in err
    assert "epoch 5" not in err
    assert "train_loss" in out

    make(verbose=1, **params).fit(*blobs)
    out, err = capsys.readouterr()
    assert "train_loss" in out
    assert err == ""

    clf = make(verbose=0, **params).fit(*blobs)
    clf.set_params(early_stopping=False).partial_fit(*blobs)
    assert capsys.readouterr() == ("", "")


def test_bars_of_a_net_and_of_an_interrupted_epoch(blobs, capsys):
    class Halt(Callback):
        def on_batch_end(self, net, **kwargs):
            raise OSError("The disk is full.")

    net = SoftRankNet(MLP, **{**NET, "verbose": 2}, callbacks=[Halt()])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(OSError, match="disk"):
            net.fit(*blobs)
    assert "epoch 1:" in capsys.readouterr().err
    assert len(net.history) == 0
