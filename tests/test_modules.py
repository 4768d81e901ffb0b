"""The networks: embedding and head, seeds, shapes, invariances, dropout, copies."""

import copy
import itertools
import math
import pickle
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from sksoftrank.modules import CNN, MLP, AdaptedModule, Augmentation, Transformer
from sksoftrank.modules._cnn import CNN_NORMALIZATIONS
from sksoftrank.modules._layers import (
    ACTIVATIONS,
    AUGMENTATIONS,
    Dropout,
    Linear,
    borrowed_globals,
)
from sksoftrank.modules._mlp import NORMALIZATIONS
from sksoftrank.modules._protocol import (
    EmbedHeadModule,
    find_layer,
    layer_output,
    lr_scales,
)


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
    share = round(0.7 * 2**16) / 2**16  # The probability to its nearest 16 bits.
    torch.testing.assert_close(out[kept], torch.full_like(out[kept], 1 / share))
    # The share kept has a standard deviation of sqrt(0.3 * 0.7) / 400 = 0.0011.
    assert kept.double().mean() == pytest.approx(0.7, abs=0.006)
    assert out.mean() == pytest.approx(1.0, abs=0.01)


def test_dropout_decides_about_each_unit_by_itself():
    # Four units share a word of 64 bits; 100,000 pairs of each two of the four.
    kept = (Dropout(0.5, 0)(torch.ones(100_000, 4)) != 0).double()
    correlation = torch.corrcoef(kept.T) - torch.eye(4)
    assert correlation.abs().max() < 6 / 100_000**0.5


@pytest.mark.parametrize(("p", "share"), [(1e-9, 1.0), (1 - 1e-9, 2**-16)])
def test_dropout_at_the_ends_keeps_the_mean(p, share):
    out = Dropout(p, 0)(torch.ones(1000, 1001))
    assert set(out.unique().tolist()) == ({1.0} if share == 1 else {0.0, 2.0**16})
    # Poisson of a mean of 15.3, in units of 2^16.
    assert out.mean() == pytest.approx(1.0, abs=0.0 if share == 1 else 1.5)


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
    assert kinds == [Linear, NORMALIZATIONS[name], nn.ReLU, Dropout] * 2


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


# -- The convolutional network ---------------------------------------------------------


def images(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


SIDE = st.integers(1, 9)


@settings(max_examples=60)
@given(
    shape=st.one_of(st.tuples(SIDE, SIDE), st.tuples(SIDE, SIDE, SIDE)),
    n=st.integers(1, 3),
    channels=st.lists(st.sampled_from([1, 2, 5, 16, 33]), min_size=1, max_size=4),
    normalization=st.sampled_from([None, *CNN_NORMALIZATIONS]),
    residual=st.booleans(),
    is_flat=st.booleans(),
)
def test_cnn_takes_any_shape(shape, n, channels, normalization, residual, is_flat):
    module = CNN(
        shape, 3, channels, normalization=normalization, residual=residual,
        dropout=0.1, random_state=0,
    ).eval()  # fmt: skip
    x = images(n, *shape)
    z = module.embed(x.flatten(1) if is_flat else x)
    assert z.shape == (n, module.embedding_width) == (n, channels[-1])
    assert z.isfinite().all()
    assert torch.equal(module.head(z), module(x))
    # A row's logits do not depend on the rows beside it. In double precision: group
    # normalisation of next to nothing enlarges what rounding there is.
    double = copy.deepcopy(module).double()
    torch.testing.assert_close(
        double(x[:1].double()), double(x.double())[:1], rtol=1e-6, atol=1e-6
    )
    if n > 1:
        module.train()(x).sum().backward()
        assert all(p.grad.isfinite().all() for p in module.parameters())


@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("normalization", [None, *CNN_NORMALIZATIONS])
def test_cnn_arithmetic_against_plain_torch(normalization, residual):
    module = CNN(
        (2, 8, 6), 3, (4, 32), normalization=normalization, residual=residual,
        whitening=False, random_state=0,
    ).eval()  # fmt: skip
    x = expected = images(5, 2, 8, 6)
    for stage in module.stages:
        for place, block in enumerate(stage):
            y = F.conv2d(expected, block.conv.weight, block.conv.bias, padding=1)
            if place == 0:
                y = F.max_pool2d(y, 2)
            if normalization == "batch":
                y = y / math.sqrt(1 + 1e-5)  # Nothing was trained.
            elif normalization == "group":
                y = F.group_norm(y, {4: 1, 32: 2}[y.shape[1]])
            y = F.relu(y)
            expected = expected + y if residual and place == 1 else y
    z = expected.mean(dim=(2, 3))
    torch.testing.assert_close(module.embed(x), z)
    torch.testing.assert_close(module(x), z @ module.output.weight.T)


def test_cnn_halves_the_sides_in_each_stage():
    module = CNN((1, 9, 3), 2, (2, 2, 2, 2), random_state=0)
    shapes = []
    for stage in module.stages:
        stage.register_forward_hook(lambda _, x, y: shapes.append(tuple(y.shape[2:])))
    module(images(2, 1, 9, 3))
    assert shapes == [(4, 1), (2, 1), (1, 1), (1, 1)]


@pytest.mark.parametrize("shape", [(3, 6, 7), (2, 9), (1, 1, 5), (1, 1)])
@pytest.mark.parametrize("scale", [1.0, 255.0])
def test_cnn_whitens_patches(shape, scale):
    module, x = CNN(shape, 3, (4,), random_state=0), scale * (2 + images(200, *shape))
    x[:, :, 1:] += 0.5 * x[:, :, :-1]  # Neighbours are alike.
    assert torch.equal(module.eval().whitening[0](x).flatten(2).relu(),
                       module.whitening(x).flatten(2))  # fmt: skip
    module.train()(x)
    parts = module.whitening[0].eval()(x).double().transpose(0, 1).flatten(1)
    parts, negative = parts.chunk(2)
    torch.testing.assert_close(negative, -parts)
    torch.testing.assert_close(
        parts.mean(1), torch.zeros(len(parts)).double(), rtol=0, atol=1e-4
    )
    # But for what is added to each variance.
    covariance = parts @ parts.T / parts.shape[1]
    assert (covariance - torch.eye(len(parts))).abs().max() < 0.25
    assert (covariance - covariance.diag().diag()).abs().max() < 1e-4


def test_cnn_whitens_by_the_first_batch_of_all():
    module, x = CNN((1, 4, 4), 3, (4,), random_state=0), images(20, 1, 4, 4)
    module.train()(x)
    filters = module.whitening[0].weight.clone()
    module(3 * x)
    other = CNN((1, 4, 4), 3, (4,), random_state=1).train()
    other.load_state_dict(module.state_dict())
    other(3 * x)
    for network in (module, other):
        assert torch.equal(network.whitening[0].weight, filters)


def test_cnn_whitens_anew_where_weights_from_before_are_loaded():
    x = torch.randn(8, 3, 6, 6, generator=torch.Generator().manual_seed(0))
    module = CNN((3, 6, 6), 2, (4,), random_state=0)
    before = copy.deepcopy(module.state_dict())
    module(x)
    filters = module.whitening[0].weight.clone()
    module.load_state_dict(before)
    assert not torch.equal(module.whitening[0].weight, filters)
    module(x)
    assert torch.equal(module.whitening[0].weight, filters)


@pytest.mark.parametrize("x", [torch.zeros(5, 1, 4, 4), torch.ones(1, 1, 4, 4)])
def test_cnn_whitens_what_does_not_vary(x):
    module = CNN((1, 4, 4), 3, (4,), normalization=None, random_state=0).train()
    assert module(x).isfinite().all()
    assert (module.whitening(x) == 0).all()


def test_cnn_leaves_patches_of_many_numbers_as_they_are():
    assert isinstance(CNN((16, 5), 3, (4,)).whitening, nn.Sequential)
    assert isinstance(CNN((17, 5), 3, (4,)).whitening, nn.Identity)


def test_cnn_works_in_channels_last():
    module, seen = CNN((3, 16, 16), 2, (4, 8), random_state=0), []
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d):
            assert layer.weight.is_contiguous(memory_format=torch.channels_last)
            layer.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    module(images(4, 3, 16, 16))
    assert len(seen) == 4
    for x in seen:
        assert x.is_contiguous(memory_format=torch.channels_last)
        assert not x.is_contiguous()


def test_cnn_embedding_does_not_see_a_cyclic_order_of_places_in_one_stage():
    # The mean over places: with circular padding, a shift changes nothing, where it is
    # a multiple of what a maximum is taken of.
    module = CNN((2, 8, 8), 3, (6,), whitening=False, random_state=0).eval()
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d):
            layer.padding_mode = "circular"
            layer._reversed_padding_repeated_twice = [1, 1, 1, 1]
    x = images(4, 2, 8, 8)
    torch.testing.assert_close(module.embed(x.roll((2, 4), (2, 3))), module.embed(x))


@pytest.mark.usefixtures("global_rng_untouched")
@pytest.mark.parametrize(
    "make",
    [
        lambda seed: CNN(
            (1, 8, 8), 3, (4, 4), dropout=0.5, augmentation=AUGMENTATIONS,
            random_state=seed,
        ),
        lambda seed: Transformer(
            (1, 8, 8), 3, d_model=8, n_heads=2, depth=2, dropout=0.5,
            augmentation=AUGMENTATIONS, random_state=seed,
        ),
    ],
    ids=["cnn", "transformer"],
)  # fmt: skip
def test_networks_have_a_generator_of_their_own(make):
    def outputs(seed):
        module = make(seed)
        return [module(images(16, 1, 8, 8)).detach() for _ in range(2)]

    first, second = outputs(7), outputs(7)
    assert torch.equal(first[0], second[0])
    assert torch.equal(first[1], second[1])
    assert not torch.equal(*first)  # Drawn anew each step.
    assert not torch.equal(first[0], outputs(8)[0])
    module = make(7)
    module(images(16, 1, 8, 8))
    again = pickle.loads(pickle.dumps(module)).eval()
    x = images(4, 1, 8, 8)
    assert torch.equal(again(x), module.eval()(x))
    assert torch.equal(module(x), module(x))  # Nothing is drawn in evaluation.


# -- Augmentation ----------------------------------------------------------------------


@settings(max_examples=60)
@given(
    shape=st.one_of(st.tuples(SIDE, SIDE), st.tuples(SIDE, SIDE, SIDE)),
    n=st.integers(1, 3),
    kinds=st.lists(st.sampled_from(AUGMENTATIONS), unique=True),
)
def test_augmentation_keeps_shape_dtype_and_evaluation(shape, n, kinds):
    layer, x = Augmentation(kinds, 0), images(n, *shape)
    before = x.clone()
    y = layer(x)
    assert y.shape == x.shape
    assert y.dtype == x.dtype
    assert torch.equal(x, before)  # Not in place.
    assert torch.isin(y, torch.cat([x.flatten(), torch.zeros(1)])).all()
    assert layer.eval()(x) is x


def test_flip_mirrors_half_of_the_images():
    x = images(400, 2, 3, 5)
    y = Augmentation(["flip"], 0)(x)
    flipped = (y == x.flip(-1)).all(dim=(1, 2, 3))
    kept = (y == x).all(dim=(1, 2, 3))
    assert (flipped ^ kept).all()
    assert 150 < flipped.sum() < 250


@pytest.mark.parametrize("shape", [(16, 24), (8, 3), (1, 9), (24,)])
def test_shift_moves_by_up_to_an_eighth_with_zeros_coming_in(shape):
    x = images(600, 2, *shape)
    y = Augmentation(["shift"], 0)(x)
    reaches = [max(size // 8, min(size - 1, 1)) for size in shape]
    seen = set()
    for row, moved in zip(x, y, strict=True):
        for offsets in itertools.product(*(range(-r, r + 1) for r in reaches)):
            padded = F.pad(
                row, [r for reach in reversed(reaches) for r in (reach,) * 2]
            )
            for axis, (r, offset, size) in enumerate(
                zip(reaches, offsets, shape, strict=True), start=1
            ):
                padded = padded.narrow(axis, r + offset, size)
            if torch.equal(padded, moved):
                seen.add(offsets)
                break
        else:
            pytest.fail("neither shifted nor left as it is")
    assert len(seen) == math.prod(2 * r + 1 for r in reaches)


@pytest.mark.parametrize("shape", [(16, 24), (4, 4), (1, 9), (32,)])
def test_cutout_sets_a_box_of_a_quarter_of_the_sides_to_zero(shape):
    x = torch.ones(500, 2, *shape)
    zero = Augmentation(["cutout"], 0)(x) == 0
    assert torch.equal(zero[:, 0], zero[:, 1])  # In all channels.
    for axis, size in enumerate(shape, start=1):
        others = [a for a in range(1, len(shape) + 1) if a != axis]
        lines = zero[:, 0].any(dim=others) if others else zero[:, 0]
        lengths = lines.sum(dim=1)
        assert lengths.max() == max(size // 4, 1)
        assert lengths.min() >= 1
        assert lines.any(dim=0).all()  # Anywhere.
        # In one piece: as many as from the first to the last.
        first = lines.int().argmax(dim=1)
        last = size - 1 - lines.flip(1).int().argmax(dim=1)
        assert torch.equal(last - first + 1, lengths)


@pytest.mark.parametrize("shape", [(1, 1), (1,)])
def test_augmentation_leaves_a_single_pixel_alone(shape):
    x = torch.ones(50, 2, *shape)
    assert torch.equal(Augmentation(AUGMENTATIONS, 0)(x), x)


@pytest.mark.parametrize("kinds", [["rotate"], "flip", ["flip", 3]])
def test_augmentation_refuses_what_it_has_not(kinds):
    with pytest.raises(ValueError, match=r"augmentation must be .*'flip', 'shift'"):
        Augmentation(kinds)


# -- The transformer -------------------------------------------------------------------


@settings(max_examples=60)
@given(
    c=st.integers(1, 4),
    tiles=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    patch_size=st.integers(1, 4),
    n=st.integers(1, 3),
    n_heads=st.integers(1, 3),
    depth=st.integers(1, 2),
)
def test_transformer_takes_any_image(c, tiles, patch_size, n, n_heads, depth):
    shape = (c, tiles[0] * patch_size, tiles[1] * patch_size)
    module = Transformer(
        shape, 3, patch_size, d_model=2 * n_heads, n_heads=n_heads, depth=depth,
        dropout=0.1, random_state=0,
    ).eval()  # fmt: skip
    x = images(n, *shape)
    z = module.embed(x)
    n_tokens = tiles[0] * tiles[1]
    assert z.shape == (n, 2 * n_heads) == (n, module.embedding_width)
    assert torch.equal(module.head(z), module(x.flatten(1)))
    for weights in module.attention(x):
        assert weights.shape == (n, n_heads, n_tokens, n_tokens)
        torch.testing.assert_close(weights.sum(-1), torch.ones(weights.shape[:-1]))


@settings(max_examples=40)
@given(
    cardinalities=st.lists(st.integers(1, 4), max_size=3),
    n_numeric=st.integers(0, 3),
    n=st.integers(1, 3),
)
def test_transformer_takes_any_table(cardinalities, n_numeric, n):
    n_features = len(cardinalities) + n_numeric
    if n_features == 0:
        return
    module = Transformer(
        (n_features,), 2, cardinalities=cardinalities, d_model=4, n_heads=2, depth=1,
        random_state=0,
    )  # fmt: skip
    x = images(n, n_features)
    for column, size in enumerate(cardinalities):
        x[:, column] = torch.arange(n) % size
    assert module.embed(x).shape == (n, 4)
    assert module.embed(x).isfinite().all()
    module(x).sum().backward()


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
def test_fused_attention_equals_the_explicit_softmax(temperature):
    module = Transformer(
        (5,), 2, d_model=12, n_heads=3, depth=1, attention_temperature=temperature,
        random_state=0,
    )  # fmt: skip
    attention = module.blocks[0].attention
    x = images(4, 5, 12)
    parts = (x @ attention.qkv.weight.T).chunk(3, dim=-1)
    q, k, v = (part.view(4, 5, 3, 4).transpose(1, 2) for part in parts)
    scores = q @ k.transpose(2, 3) / (math.sqrt(4) * temperature)
    weights = scores.exp() / scores.exp().sum(-1, keepdim=True)
    mixed = (weights @ v).transpose(1, 2).reshape(4, 5, 12)
    torch.testing.assert_close(attention.weights(x), weights)
    torch.testing.assert_close(attention(x), mixed @ attention.projection.weight.T)


def test_attention_temperature_spreads_the_weights():
    def entropy(temperature):
        module = Transformer(
            (6,), 2, d_model=8, depth=1, attention_temperature=temperature,
            random_state=0,
        )  # fmt: skip
        (weights,) = module.attention(3 * images(16, 6))
        return -(weights * weights.log()).sum(-1).mean()

    assert entropy(0.1) < entropy(1.0) < entropy(100.0)
    torch.testing.assert_close(
        entropy(1e6), torch.tensor(math.log(6)), rtol=1e-4, atol=0
    )


def test_transformer_normalises_before_and_adds_after():
    module = Transformer((4,), 2, d_model=8, n_heads=2, depth=1, random_state=0).eval()
    block, x = module.blocks[0], 5 * images(3, 4, 8)
    y = x + block.attention(F.layer_norm(x, (8,)))
    expected = y + block.mlp(F.layer_norm(y, (8,)))
    torch.testing.assert_close(block(x), expected)
    with torch.no_grad():  # A block that adds nothing is the identity.
        block.attention.projection.weight.zero_()
        block.mlp[2].weight.zero_()
    torch.testing.assert_close(block(x), x)
    tokens = module._tokenize(images(3, 4))
    torch.testing.assert_close(
        module.embed(images(3, 4)), F.layer_norm(tokens.mean(1), (8,))
    )


def test_permuted_columns_with_their_parameters_change_nothing():
    cardinalities, order = (3, 2, 5), [2, 0, 1]
    numeric = [1, 2, 0]
    first = Transformer(
        (6,), 2, cardinalities=cardinalities, d_model=8, depth=2, random_state=0
    )
    second = Transformer(
        (6,), 2, cardinalities=[cardinalities[i] for i in order], d_model=8, depth=2,
        random_state=1,
    )  # fmt: skip
    state = first.state_dict()
    blocks = state["tokens.categories"].split(cardinalities)
    state["tokens.categories"] = torch.cat([blocks[i] for i in order])
    state["tokens.slopes"] = state["tokens.slopes"][numeric]
    columns = [*order, *(3 + i for i in numeric)]
    state["tokens.columns"] = state["tokens.columns"][columns]
    second.load_state_dict(state)
    x = images(7, 6)
    for column, size in enumerate(cardinalities):
        x[:, column] = torch.arange(7) % size
    torch.testing.assert_close(second(x[:, columns]), first(x))


@pytest.mark.parametrize(
    ("patch_size", "widths"),
    [(1, [8]), (2, [8]), (3, [8]), (4, [4, 8]), (6, [4, 8]), (8, [2, 4, 8])],
)
def test_patches_arithmetic_against_plain_torch(patch_size, widths):
    module = Transformer(
        (2, 2 * patch_size, 3 * patch_size), 3, patch_size, d_model=8, random_state=0
    ).eval()
    x = images(5, *module.input_shape)
    expected, factors = x, {4: [2, 2], 6: [2, 3], 8: [2, 2, 2]}
    convs = [m for m in module.tokens.modules() if isinstance(m, nn.Conv2d)]
    assert [conv.out_channels for conv in convs] == widths
    for conv, factor in zip(convs, factors.get(patch_size, [patch_size]), strict=True):
        expected = F.conv2d(expected, conv.weight, padding=1)
        expected = F.relu(F.max_pool2d(expected, factor) / math.sqrt(1 + 1e-5))
    tokens = expected.reshape(5, 8, 6).transpose(1, 2) + module.tokens.positions
    torch.testing.assert_close(module._tokenize(x), tokens)


def test_convolutions_of_patches_have_three_times_the_rate():
    module = Transformer((1, 4, 4), 3, d_model=8, depth=1, random_state=0)
    names = {p: name for name, p in module.named_parameters()}
    scaled = {names[p]: scale for p, scale in lr_scales(module).items()}
    expected = [name for name in names.values() if name.startswith("tokens.stages")]
    assert len(expected) == 6
    assert scaled == dict.fromkeys(expected, 3.0)


def test_patches_have_positions():
    module = Transformer((2, 4, 6), 3, patch_size=2, d_model=8, random_state=0).eval()
    x = images(5, 2, 4, 6)
    embedded = module.embed(x)
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    with torch.no_grad():
        module.tokens.positions.mul_(50)
        before = module.embed(x)
        module.tokens.positions.copy_(module.tokens.positions[order])
    assert not torch.allclose(before, embedded, atol=1e-3)
    assert not torch.allclose(module.embed(x), before, atol=1e-3)


def test_tokens_of_a_table_are_columns():
    module = Transformer((3,), 2, cardinalities=(4,), d_model=8, random_state=0)
    tokens = module._tokenize(torch.tensor([[2.0, 1.5, -1.0]]))[0]
    t = module.tokens
    torch.testing.assert_close(tokens[0], t.categories[2] + t.columns[0])
    torch.testing.assert_close(tokens[1], 1.5 * t.slopes[0] + t.columns[1])
    torch.testing.assert_close(tokens[2], -1.0 * t.slopes[1] + t.columns[2])


# -- Networks of other people ----------------------------------------------------------


class Plain(nn.Module):
    """No protocol, dropout of torch's, a stage that works in place."""

    def __init__(self, n_features=4, n_classes=3, end=None):
        super().__init__()
        self.body = nn.Sequential(
            nn.Linear(n_features, 8), nn.ReLU(inplace=True), nn.Dropout(0.5)
        )
        self.fc = nn.Linear(8, n_classes)
        self.end = end or nn.Identity()

    def forward(self, x):
        return self.end(self.fc(self.body(x)))


def adapt(module, **params):
    return AdaptedModule(module, params, (4,), 3, 0)


def test_adapter_finds_and_hooks_the_last_linear_layer():
    module = adapt(Plain).eval()
    x = rows()
    z = module.embed(x)
    assert module.head_name == "fc"
    assert module.embedding_width == 8
    torch.testing.assert_close(z, torch.relu(module.module.body[0](x)))
    assert torch.equal(module.head(z), module(x))
    assert torch.equal(module(x), module.network(x))
    assert not module.module.fc._forward_pre_hooks  # Nothing is left behind.
    assert not module.module.fc._forward_hooks


@pytest.mark.usefixtures("global_rng_untouched")
@pytest.mark.parametrize(
    "make",
    [Plain, lambda: nn.Sequential(nn.LazyLinear(6), nn.ReLU(), nn.LazyLinear(3))],
)
def test_adapter_seeds_the_initial_weights(make):
    a, b = adapt(make), adapt(make)
    for name, tensor in a.state_dict().items():
        assert torch.equal(tensor, b.state_dict()[name])
    other = AdaptedModule(make, {}, (4,), 3, 1)
    assert not torch.equal(other.eval()(rows()), a.eval()(rows()))


def test_adapter_copies_a_network_and_starts_from_its_weights():
    net = Plain().train()
    before = copy.deepcopy(net.state_dict())
    module = adapt(net)
    with torch.no_grad():
        for parameter in module.parameters():
            assert not any(parameter is own for own in net.parameters())
            parameter.add_(1.0)
    assert net.training
    for name, tensor in net.state_dict().items():
        assert torch.equal(tensor, before[name])
    assert torch.equal(adapt(net).module.fc.weight, net.fc.weight)


@pytest.mark.parametrize(
    "names", [("n_features", "n_classes"), ("in_features", "num_classes")]
)
def test_adapter_tells_the_maker_what_it_asks_for(names):
    features, classes = names
    seen = {}
    namespace = {"seen": seen, "nn": nn}
    exec(
        f"def make({features}, {classes}, input_shape, random_state, width=2):\n"
        f"    seen.update(locals())\n"
        f"    return nn.Sequential(nn.Flatten(), nn.Linear({features}, {classes}))",
        namespace,
    )
    AdaptedModule(namespace["make"], {"width": 5}, (2, 3), 4, 11)
    assert seen == {
        features: 6, classes: 4, "input_shape": (2, 3), "random_state": 11, "width": 5,
    }  # fmt: skip
    # What the user sets goes before.
    module = AdaptedModule(Plain, {"n_features": 4}, (4,), 3, 0)
    assert module.module.body[0].in_features == 4


class HuggingFaceLike(nn.Module):
    """Returns an object with logits, and calls its head by keyword."""

    def __init__(self, n_features, n_classes, kind="object"):
        super().__init__()
        self.encoder = nn.Linear(n_features, 5)
        self.classifier = nn.Linear(5, n_classes)
        self.kind = kind

    def forward(self, x):
        hidden = torch.tanh(self.encoder(x))
        logits = self.classifier(input=hidden)
        return {
            "object": SimpleNamespace(logits=logits, hidden_states=None),
            "dict": {"loss": None, "logits": logits},
            "tuple": (logits, hidden),
        }[self.kind]


@pytest.mark.parametrize("kind", ["object", "dict", "tuple"])
def test_adapter_reads_the_logits_out_of_what_is_returned(kind):
    module, x = adapt(HuggingFaceLike, kind=kind), rows()
    net = module.module
    expected = net.classifier(torch.tanh(net.encoder(x)))
    torch.testing.assert_close(module(x), expected)
    torch.testing.assert_close(module.embed(x), torch.tanh(net.encoder(x)))
    assert module.head_name == "classifier"


class TimmLike(nn.Module):
    """Its classifier is not the last Linear layer to run."""

    def __init__(self, in_features, num_classes):
        super().__init__()
        self.stem = nn.Linear(in_features, 5)
        self.fc = nn.Linear(5, num_classes)
        self.auxiliary = nn.Linear(5, 2)

    def get_classifier(self):
        return self.fc

    def forward_features(self, x):
        return torch.relu(self.stem(x))

    def forward(self, x):
        z = self.forward_features(x)
        logits = self.fc(z)
        self.auxiliary(z)
        return logits


def test_adapter_asks_timms_get_classifier():
    module, x = adapt(TimmLike), rows()
    assert module.head_name == "fc"
    torch.testing.assert_close(module.embed(x), module.module.forward_features(x))


class PatchEmbedded(nn.Module):
    """`embed` and `head` are layers, with others in between, as in many ViTs."""

    def __init__(self, n_features, n_classes, zero=False):
        super().__init__()
        self.embed = nn.Linear(n_features, 6)
        self.block = nn.Linear(6, 6)
        self.head = nn.Linear(6, n_classes)
        if zero:
            nn.init.zeros_(self.head.weight)
            nn.init.zeros_(self.head.bias)

    def forward(self, x):
        return self.head(torch.tanh(self.block(self.embed(x))))


@pytest.mark.parametrize("zero", [False, True])
def test_adapter_is_not_misled_by_layers_called_embed_and_head(zero):
    module, x = adapt(PatchEmbedded, zero=zero), rows()
    net = module.module
    torch.testing.assert_close(module.embed(x), torch.tanh(net.block(net.embed(x))))
    assert module.head_name == "head"


class Protocol(nn.Module):
    """Its own embed and head, which no hook would find."""

    def __init__(self, n_features, n_classes):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(n_features, n_classes))

    def embed(self, x):
        return 2 * x

    def head(self, z):
        return z @ self.weight

    def forward(self, x):
        return self.head(self.embed(x))


def test_adapter_takes_a_networks_own_embed_and_head():
    module, x = adapt(Protocol), rows()
    assert module.head_name is None
    assert torch.equal(module.embed(x), 2 * x)
    assert torch.equal(module.head(2 * x), module(x))


class ReLUEnd(nn.Sequential):
    def __init__(self, n_features, n_classes, end):
        super().__init__(nn.Linear(n_features, n_classes), end)
        nn.init.ones_(self[0].weight)  # All logits are positive on pixels.


@pytest.mark.parametrize(
    "end",
    [
        nn.Softmax(dim=1),
        nn.LogSoftmax(dim=1),
        nn.ReLU(),
        nn.ReLU(inplace=True),
        nn.Hardtanh(-50, 50),
        nn.BatchNorm1d(3),
    ],
    ids=str,
)
def test_adapter_refuses_what_follows_the_head(end):
    for make in (Plain, ReLUEnd):
        with pytest.raises(
            ValueError, match=r"module must end in .* without a softmax"
        ):
            adapt(make, end=end)


def test_adapter_refuses_a_network_without_a_head():
    class Headless(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.ones(4, 3))

        def forward(self, x):
            return x @ self.weight

    with pytest.raises(ValueError, match=r"module must end in a Linear.*Headless"):
        adapt(Headless)


def test_adapter_refuses_a_head_that_runs_on_every_token():
    class PerToken(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(2, 3)

        def forward(self, x):
            return self.fc(x.view(-1, 2, 2)).mean(1)

    with pytest.raises(ValueError, match=r"module must end in|embedding of shape"):
        adapt(PerToken)


@pytest.mark.parametrize(
    ("make", "params", "message"),
    [
        (Plain(), {"n_classes": 3}, "module_params must be empty"),
        (Plain, {"n_classes": 5}, r"logits of shape \(n, 3\).*got \(2, 5\)"),
        (Plain, {"n_features": 9}, r"rows of shape \(4,\).*RuntimeError"),
        (Plain, {"width": 9}, r"module_params must be.*'width': 9.*TypeError"),
        (lambda hidden: None, {}, r"module_params must be.*missing 1 required"),
        (lambda: 3, {}, "module must make a torch.nn.Module, got int"),
        (lambda: Plain().requires_grad_(False), {}, "must have parameters to train"),
        (lambda: HuggingFaceLike(4, 3, "none"), {}, "must take rows of shape"),
    ],
)
def test_adapter_says_what_is_wrong(make, params, message):
    with pytest.raises(ValueError, match=message):
        adapt(make, **params)


class SinglePrecision(nn.Module):
    """Tied to single precision within its forward."""

    def __init__(self, n_features, n_classes):
        super().__init__()
        self.hidden = nn.Linear(n_features, 5)
        self.fc = nn.Linear(5, n_classes)

    def forward(self, x):
        return self.fc(torch.relu(self.hidden(x.float())))


def test_adapter_stays_in_single_precision_where_the_network_does():
    module, x = adapt(SinglePrecision), rows()
    double = copy.deepcopy(module).double()
    assert not module.runs_in_double
    torch.testing.assert_close(double(x.double()), module(x), check_dtype=False)
    z = double.embed(x.double())
    assert torch.equal(double.head(z.double()), double(x.double()).double())
    assert adapt(Plain).runs_in_double
    assert copy.deepcopy(adapt(Plain)).double()(x.double()).dtype == torch.float64


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_adapter_trains_in_single_precision(dtype):
    net = Plain().to(dtype)
    module = adapt(net)
    assert module(rows()).dtype == torch.float32
    assert net.fc.weight.dtype == dtype


def test_borrowed_globals_leaves_the_generator_as_it_was():
    before = torch.get_rng_state()
    with borrowed_globals(3):
        first = torch.rand(3)
        with borrowed_globals(3):
            assert torch.equal(torch.rand(3), first)
        assert not torch.equal(torch.rand(3), first)
    assert torch.equal(torch.get_rng_state(), before)
    with pytest.raises(ZeroDivisionError), borrowed_globals(0):
        torch.rand(3).tolist()[0] / 0
    assert torch.equal(torch.get_rng_state(), before)


# -- Layers by name --------------------------------------------------------------------


def test_layer_output_is_what_the_layer_gave():
    module, x = CNN((1, 4, 4), 2, (3, 5), random_state=0).eval(), images(6, 1, 4, 4)
    parts = module.whitening(x)
    torch.testing.assert_close(layer_output(module, "whitening", x), parts)
    torch.testing.assert_close(
        layer_output(module, "stages.0", x), module.stages[0](parts)
    )
    torch.testing.assert_close(
        layer_output(module, "stages.0.0.conv", x), module.stages[0][0].conv(parts)
    )
    assert not module.stages[0]._forward_hooks


def test_layer_output_is_not_changed_by_what_works_in_place_after_it():
    module, x = adapt(Plain).eval(), rows()
    expected = module.module.body[0](x)
    assert (expected < 0).any()
    assert torch.equal(layer_output(module, "body.0", x), expected)


def test_layer_output_takes_the_first_of_several():
    class Recurrent(nn.Module):
        def __init__(self):
            super().__init__()
            self.lstm = nn.LSTM(2, 6, batch_first=True)
            self.model = HuggingFaceLike(6, 3, "dict")

        def forward(self, x):
            return self.model(self.lstm(x.view(-1, 2, 2))[0].mean(1))

    module, x = adapt(Recurrent), rows()
    assert layer_output(module, "lstm", x).shape == (16, 2, 6)
    with pytest.raises(ValueError, match="gives NoneType for 16 rows"):
        layer_output(module, "model", x)  # Its loss comes first.


def test_layer_that_there_is_not():
    module = adapt(Plain)
    with pytest.raises(ValueError, match=r"layer must be .*'body\.7'.*'body\.0'"):
        find_layer(module, "body.7")
    for name in ("", 3, ["fc"]):
        with pytest.raises(ValueError, match="layer must be the name of a submodule"):
            find_layer(module, name)
    module = Transformer((4,), 2, d_model=8, depth=1)
    with pytest.raises(ValueError, match="a submodule that the network calls"):
        layer_output(module, "blocks", rows())


def test_layer_without_a_row_for_each():
    class Scalar(nn.Module):
        def forward(self, x):
            return x.sum()

    class Mean(nn.Module):
        def __init__(self):
            super().__init__()
            self.scalar, self.fc = Scalar(), nn.Linear(4, 3)

        def forward(self, x):
            self.scalar(x)
            return self.fc(x)

    with pytest.raises(ValueError, match=r"a row for each of X.*shape \(\) for 16"):
        layer_output(adapt(Mean), "scalar", rows())
