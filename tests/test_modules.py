"""The perceptron: embedding and head, seeds, initial scale, dropout, copies."""

import copy
import pickle

import pytest
import torch
from torch import nn

from sksoftrank.modules import MLP
from sksoftrank.modules._layers import ACTIVATIONS, Dropout
from sksoftrank.modules._mlp import NORMALIZATIONS
from sksoftrank.modules._protocol import EmbedHeadModule


def rows(n=16, d=4, seed=0):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed))


def duplicate_by_pickle(module):
    return pickle.loads(pickle.dumps(module))


@pytest.fixture
def global_rng_untouched():
    """Fail if the test moved torch's global generator."""
    before = torch.get_rng_state()
    yield
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("sizes", [(), (8,), (8, 7, 6)])
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("normalization", [None, *NORMALIZATIONS])
def test_forward_is_head_of_embed(sizes, activation, normalization):
    module = MLP(4, 3, sizes, activation, normalization=normalization, random_state=0)
    module.eval()
    x = rows()
    z = module.embed(x)
    assert z.shape == (16, (4, *sizes)[-1])
    assert module.head(z).shape == (16, 3)
    assert torch.equal(module(x), module.head(z))


def test_protocol_is_abstract():
    with pytest.raises(TypeError, match="abstract"):
        EmbedHeadModule()


def test_head_is_affine():
    module = MLP(4, 3, (8,), random_state=0)
    nn.init.normal_(module.output.bias, generator=torch.Generator().manual_seed(1))
    a, b = rows(5, 8, seed=2), rows(5, 8, seed=3)
    torch.testing.assert_close(
        module.head(0.3 * a + 0.7 * b), 0.3 * module.head(a) + 0.7 * module.head(b)
    )


def test_arithmetic_against_plain_torch():
    module = MLP(4, 3, (8, 6), "tanh", random_state=0)
    weights = [m.weight for m in module.modules() if isinstance(m, nn.Linear)]
    assert [tuple(w.shape) for w in weights] == [(8, 4), (6, 8), (3, 6)]
    x = rows()
    z = torch.tanh(torch.tanh(x @ weights[0].T) @ weights[1].T)
    torch.testing.assert_close(module.embed(x), z)
    torch.testing.assert_close(module(x), z @ weights[2].T)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_activation_is_the_one_named(activation):
    x = rows(5, 4)
    module = MLP(4, 3, (4,), activation, random_state=0)
    with torch.no_grad():
        module.body[0].weight.copy_(torch.eye(4))
    expected = x if activation == "identity" else getattr(torch, activation, None)
    if activation in ("gelu", "silu"):
        expected = getattr(nn.functional, activation)
    expected = expected if activation == "identity" else expected(x)
    torch.testing.assert_close(module.embed(x), expected)


# Seeds


@pytest.mark.usefixtures("global_rng_untouched")
def test_same_seed_same_weights():
    first, second = (MLP(4, 3, (8, 8), random_state=7).state_dict() for _ in range(2))
    for name, tensor in first.items():
        assert torch.equal(tensor, second[name])
    other = MLP(4, 3, (8, 8), random_state=8)
    assert not torch.equal(other.output.weight, first["output.weight"])


@pytest.mark.usefixtures("global_rng_untouched")
@pytest.mark.parametrize("normalization", [None, *NORMALIZATIONS])
def test_training_with_dropout_has_a_generator_of_its_own(normalization):
    def outputs():
        module = MLP(
            4, 3, (8, 8), dropout=0.5, normalization=normalization, random_state=0
        )
        return [module(rows()).detach() for _ in range(2)]

    first, second = outputs(), outputs()
    for a, b in zip(first, second, strict=True):
        assert torch.equal(a, b)
    assert not torch.equal(*first)  # A new mask each step.


def test_layers_have_masks_of_their_own():
    module = MLP(8, 3, (8, 8), dropout=0.5, random_state=0)
    masks = [m(torch.ones(4, 8)) for m in module.modules() if isinstance(m, Dropout)]
    assert len(masks) == 2
    assert not torch.equal(*masks)


def test_without_a_seed_the_global_generator_decides():
    def output(seed):
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            return MLP(4, 3, (8, 8), dropout=0.5)(rows()).detach()

    assert torch.equal(output(0), output(0))
    assert not torch.equal(output(0), output(1))


# Initial weights


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_biases_start_at_zero(activation):
    module = MLP(4, 3, (8, 6), activation, random_state=0)
    linear = [m for m in module.modules() if isinstance(m, nn.Linear)]
    assert len(linear) == 3
    for layer in linear:
        assert torch.count_nonzero(layer.bias) == 0
        assert torch.count_nonzero(layer.weight) == layer.weight.numel()


@pytest.mark.parametrize("sizes", [(), (8,), (8, 8, 8)])
@pytest.mark.parametrize("scale", [0.5, 2.0])
def test_initial_scale_acts_like_a_temperature(sizes, scale):
    x = rows()
    plain = MLP(4, 3, sizes, random_state=0)(x)
    scaled = MLP(4, 3, sizes, init_scale=scale, random_state=0)(x)
    n_layers = len(sizes) + 1
    torch.testing.assert_close(scaled, plain * scale**n_layers)


@pytest.mark.parametrize("activation", ["identity", "relu"])
def test_depth_keeps_the_size_of_the_signal(activation):
    module = MLP(256, 256, (256,) * 6, activation, random_state=0)
    ratio = module(rows(64, 256)).square().mean()  # The input's is one.
    assert 0.5 < ratio < 2.0


# Dropout


@pytest.mark.parametrize("random_state", [None, 0])
def test_dropout_keeps_the_mean(random_state):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        out = Dropout(0.3, random_state)(torch.ones(400, 400))
    kept = out != 0
    torch.testing.assert_close(out[kept], torch.full_like(out[kept], 1 / 0.7))
    # The share kept has a standard deviation of sqrt(0.3 * 0.7) / 400 = 0.0011.
    assert kept.double().mean() == pytest.approx(0.7, abs=0.006)
    assert out.mean() == pytest.approx(1.0, abs=0.01)


@pytest.mark.parametrize("random_state", [None, 0])
def test_dropout_is_the_identity_in_evaluation(random_state):
    layer, x = Dropout(0.9, random_state).eval(), rows()
    assert torch.equal(layer(x), x)
    module = MLP(4, 3, (8,), dropout=0.9, random_state=0).eval()
    without = MLP(4, 3, (8,), random_state=0)
    assert torch.equal(module(x), without(x))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_dropout_keeps_the_dtype_and_passes_the_gradient(dtype):
    x = torch.ones(50, 8, dtype=dtype, requires_grad=True)
    out = Dropout(0.5, 0)(x)
    out.sum().backward()
    assert out.dtype == dtype
    assert torch.equal(x.grad, out.detach())


def test_dropout_layers_follow_the_probability():
    assert not any(isinstance(m, Dropout) for m in MLP(4, 3).modules())
    layers = [m for m in MLP(4, 3, dropout=0.25).modules() if isinstance(m, Dropout)]
    assert [layer.p for layer in layers] == [0.25, 0.25]
    assert repr(layers[0]) == "Dropout(p=0.25)"


# Normalization


@pytest.mark.parametrize("name", NORMALIZATIONS)
def test_normalization_precedes_each_activation(name):
    module = MLP(4, 3, (8, 6), normalization=name, dropout=0.1, random_state=0)
    kinds = [type(layer) for layer in module.body]
    assert kinds == [nn.Linear, NORMALIZATIONS[name], nn.ReLU, Dropout] * 2


def test_normalization_takes_the_scale_of_rows_or_columns_away():
    x = rows(64)
    for name, axis in (("batch", 0), ("layer", 1)):
        module = MLP(4, 3, (8,), "identity", normalization=name, random_state=0)
        z = module.embed(50 * x)
        torch.testing.assert_close(
            z.mean(dim=axis), torch.zeros(z.shape[1 - axis]), atol=1e-5, rtol=0
        )
        deviation = z.std(dim=axis, correction=0)
        torch.testing.assert_close(
            deviation, torch.ones_like(deviation), atol=1e-3, rtol=0
        )


# Copies


@pytest.mark.parametrize("duplicate", [duplicate_by_pickle, copy.deepcopy])
@pytest.mark.parametrize("normalization", [None, "batch"])
def test_copies_after_dropout_was_used(duplicate, normalization):
    module = MLP(4, 3, (8, 8), dropout=0.5, normalization=normalization, random_state=0)
    module(rows())
    again = duplicate(module)
    masks = [m for m in again.modules() if isinstance(m, Dropout)]
    assert [mask.random_state for mask in masks] == [1, 2]
    again(rows())  # It can train on.
    again = duplicate(module)
    x = rows()
    assert torch.equal(again.eval()(x), module.eval()(x))


def test_a_copy_does_not_carry_the_generator():
    def size(use):
        layer = Dropout(0.5, 0)
        if use:
            layer(rows())
        return len(pickle.dumps(layer))

    assert size(use=True) == size(use=False)


def test_the_original_draws_on_after_it_was_copied():
    first, second = Dropout(0.5, 0), Dropout(0.5, 0)
    first(rows())
    second(rows())
    pickle.dumps(first)
    copy.deepcopy(first)
    assert torch.equal(first(rows()), second(rows()))
