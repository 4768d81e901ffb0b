"""A trained MLP computes on the CPU what its module does, by numpy's products."""

import copy

import numpy as np
import pytest
import torch
from threadpoolctl import threadpool_info, threadpool_limits
from torch import nn
from torch.utils.data import TensorDataset

from sksoftrank import SoftRankClassifier, SoftRankMLPClassifier
from sksoftrank.modules import MLP
from sksoftrank.training._forward import ForwardMLP


def trained(activation="relu", normalization=None, dropout=0.0):
    """Return a network whose parameters and moments are none of the first ones."""
    is_scaled = normalization is not None
    options = {"input_scale": is_scaled, "random_state": 0}
    module = MLP(6, 4, (9, 7), activation, dropout, normalization, **options)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for tensor in (*module.parameters(), *module.buffers()):
            if tensor.is_floating_point() and tensor.ndim == 1:
                tensor.copy_(torch.rand(tensor.shape, generator=generator) + 0.5)
    return module.eval()


@pytest.mark.parametrize("activation", ["identity", "relu", "gelu", "silu", "tanh"])
@pytest.mark.parametrize("normalization", [None, "batch", "layer"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_it_computes_what_the_module_does(activation, normalization, dtype):
    single = trained(activation, normalization, dropout=0.5)
    module = copy.deepcopy(single).to(dtype)
    network = ForwardMLP(single, dtype)
    x = torch.randn(33, 6, generator=torch.Generator().manual_seed(2), dtype=dtype)
    rtol = 1e-4 if dtype == torch.float32 else 1e-12
    with network.settings():
        # Of other sizes too, with memory kept from those before.
        for rows in (x[:20], x[20:], x[:1], x):
            z = module.embed(rows)
            for found, expected in (
                (network.embed(rows), z),
                (network.head(z), module.head(z)),
                (network(rows), module(rows)),
            ):
                torch.testing.assert_close(found, expected, rtol=rtol, atol=rtol / 10)


@pytest.fixture(scope="module")
def data():
    rng = np.random.default_rng(0)
    X = rng.standard_normal((120, 6), dtype=np.float32)
    return X, (X[:, 0] > 0) + (X[:, 1] > 0).astype(int)


@pytest.fixture
def clf(data):
    return SoftRankMLPClassifier((8,), max_epochs=2, random_state=0).fit(*data)


def test_weights_that_change_are_seen(clf, data):
    X, y = data
    for change in (
        lambda: clf.module_.output.weight.data.mul_(2.0),
        lambda: clf.partial_fit(X, y),
        lambda: clf.set_params(warm_start=True).fit(X, y),
    ):
        before = clf.decision_function(X)
        change()
        after = clf.decision_function(X)
        assert (after != before).any()
        with torch.no_grad():
            expected = clf.module_(torch.from_numpy(X)).numpy() / clf.temperature_
        np.testing.assert_allclose(after, expected, rtol=1e-4, atol=1e-5)


def test_a_chunk_leaves_the_result_of_the_one_before(clf, data):
    X, _ = data
    methods = ("embed", "transform", "decision_function", "predict_proba")
    expected = {name: getattr(clf, name)(X) for name in methods}
    clf._inference_rows = 50
    for rows in (X, TensorDataset(torch.from_numpy(X))):
        for name, value in expected.items():
            found = getattr(clf, name)(rows)
            np.testing.assert_allclose(found, value, rtol=1e-4, atol=1e-5)
    parts = list(clf.iter_transform(X))
    assert [len(part) for part in parts] == [50, 50, 20]
    np.testing.assert_allclose(
        np.concatenate(parts), expected["transform"], rtol=1e-4, atol=1e-5
    )


def test_a_layer_by_name_is_the_module_s(clf, data):
    np.testing.assert_allclose(
        clf.embed(data[0], layer="body.3"), clf.embed(data[0]), rtol=1e-4, atol=1e-5
    )


def blas_threads():
    return [p["num_threads"] for p in threadpool_info() if p["user_api"] == "blas"]


def test_threads_are_held_for_a_prediction_alone(clf, data, monkeypatch):
    seen = []
    embed = ForwardMLP.embed

    def spy(network, x):
        seen.append((torch.get_num_threads(), set(blas_threads())))
        return embed(network, x)

    monkeypatch.setattr(ForwardMLP, "embed", spy)
    n_threads = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        with threadpool_limits(2, user_api="blas"):
            before = blas_threads()
            for _ in clf.iter_transform(data[0]):
                assert (torch.get_num_threads(), blas_threads()) == (2, before)
            clf.predict(data[0])
            assert (torch.get_num_threads(), blas_threads()) == (2, before)
    finally:
        torch.set_num_threads(n_threads)
    assert seen == [(1, {1})] * 2


def test_a_product_that_overflows_is_an_error_without_a_warning(clf, data):
    clf.module_.output.weight.data.fill_(3e38)
    rows = np.float32(100.0 * data[0])
    for method in ("predict", "predict_proba", "decision_function"):
        with pytest.raises(ValueError, match=r"X must hold numbers .* float32"):
            getattr(clf, method)(rows)


def test_a_module_derived_from_it_computes_for_itself(data):
    class Shifted(MLP):
        def embed(self, x):
            return super().embed(x) + 100.0

    clf = SoftRankClassifier(
        Shifted, {"hidden_layer_sizes": (8,)}, max_epochs=1, random_state=0
    ).fit(*data)
    assert clf.embed(data[0]).min() >= 100.0
    assert isinstance(clf.module_, nn.Module)
