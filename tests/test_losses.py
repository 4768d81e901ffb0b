"""Temperature cross-entropy against torch, the softmax, and the schedules."""

import copy
import math
import pickle

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from sksoftrank import losses
from sksoftrank.losses import (
    ConstantTemperature,
    CosineTemperature,
    ExponentialTemperature,
    LinearTemperature,
    TemperatureCrossEntropyLoss,
    as_schedule,
    temperature_cross_entropy,
    temperature_softmax,
)

relaxed = settings(max_examples=25)
seeds = st.integers(0, 2**31)
temperatures = st.floats(1e-2, 1e3)
MOVING = [LinearTemperature, CosineTemperature, ExponentialTemperature]
INVALID = [0, -1, 0.0, math.nan, math.inf, -math.inf, "hot", None, True, [1.0], 1j]
CLASS_WEIGHT = torch.tensor([0.5, 1.0, 2.0, 0.0])


def problem(seed=0, n=7, c=4):
    generator = torch.Generator().manual_seed(seed)
    logits = 5 * torch.randn(n, c, generator=generator, dtype=torch.float64)
    return logits, torch.randint(c, (n,), generator=generator)


def value_and_gradient(loss, logits):
    """Return `loss` of the logits and the gradient of its sum."""
    logits = logits.clone().requires_grad_()
    value = loss(logits)
    value.sum().backward()
    return value.detach(), logits.grad


def assert_same(found, expected):
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b)


# Against torch


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("label_smoothing", [0.0, 0.3])
@pytest.mark.parametrize("weight", [None, CLASS_WEIGHT], ids=["plain", "class_weight"])
@pytest.mark.parametrize("temperature", [0.1, 1, 30.0])
def test_agrees_with_torch(temperature, weight, label_smoothing, reduction):
    logits, target = problem()
    weight = weight if weight is None else weight.double()
    options = {
        "weight": weight,
        "label_smoothing": label_smoothing,
        "reduction": reduction,
    }
    expected = value_and_gradient(
        lambda z: F.cross_entropy(z / temperature, target, **options), logits
    )
    assert_same(
        value_and_gradient(
            lambda z: temperature_cross_entropy(z, target, temperature, **options),
            logits,
        ),
        expected,
    )
    criterion = TemperatureCrossEntropyLoss(temperature, **options)
    assert_same(value_and_gradient(lambda z: criterion(z, target), logits), expected)


@relaxed
@given(seed=seeds, temperature=temperatures)
def test_gradient_in_closed_form(seed, temperature):
    logits, target = problem(seed)
    _, gradient = value_and_gradient(
        lambda z: temperature_cross_entropy(z, target, temperature), logits
    )
    p = temperature_softmax(logits, temperature)
    expected = (p - F.one_hot(target, 4)) / (temperature * len(target))
    torch.testing.assert_close(gradient, expected)


@relaxed
@given(seed=seeds, temperature=temperatures)
def test_loss_is_the_log_of_the_probability(seed, temperature):
    logits, target = problem(seed)
    p = temperature_softmax(logits, temperature)[torch.arange(7), target]
    loss = temperature_cross_entropy(logits, target, temperature, reduction="none")
    torch.testing.assert_close(torch.exp(-loss), p)


# Sample weights


@pytest.mark.parametrize("weight", [None, CLASS_WEIGHT], ids=["plain", "class_weight"])
@pytest.mark.parametrize("label_smoothing", [0.0, 0.3])
@relaxed
@given(seed=seeds)
def test_weight_is_repetition(weight, label_smoothing, seed):
    logits, target = problem(seed)
    counts = torch.from_numpy(np.random.default_rng(seed).integers(0, 4, len(target)))
    options = {
        "weight": weight if weight is None else weight.double(),
        "label_smoothing": label_smoothing,
        "reduction": "sum",
    }
    weighted = value_and_gradient(
        lambda z: temperature_cross_entropy(
            z, target, 3.0, sample_weight=counts.double(), **options
        ),
        logits,
    )
    repeated = value_and_gradient(
        lambda z: temperature_cross_entropy(
            z.repeat_interleave(counts, dim=0),
            target.repeat_interleave(counts),
            3.0,
            **options,
        ),
        logits,
    )
    assert_same(weighted, repeated)


def test_weighted_mean_divides_by_the_number_of_rows():
    logits, target = problem()
    w = torch.arange(7, dtype=torch.float64)
    rows = temperature_cross_entropy(logits, target, 2.0, reduction="none")
    found = {
        reduction: temperature_cross_entropy(
            logits, target, 2.0, sample_weight=w, reduction=reduction
        )
        for reduction in ("none", "sum", "mean")
    }
    torch.testing.assert_close(found["none"], w * rows)
    torch.testing.assert_close(found["sum"], (w * rows).sum())
    torch.testing.assert_close(found["mean"], (w * rows).sum() / 7)
    criterion = TemperatureCrossEntropyLoss(2.0)
    torch.testing.assert_close(criterion(logits, target, w), found["mean"])


@pytest.mark.parametrize("sample_weight", [None, torch.ones(7)])
def test_unknown_reduction(sample_weight):
    logits, target = problem()
    with pytest.raises(ValueError, match="average"):
        temperature_cross_entropy(
            logits, target, sample_weight=sample_weight, reduction="average"
        )


# Softmax


@relaxed
@given(
    seed=seeds,
    temperature=temperatures,
    constant=st.floats(-100, 100),
)
def test_softmax(seed, temperature, constant):
    logits, _ = problem(seed)
    p = temperature_softmax(logits, temperature)
    torch.testing.assert_close(p, F.softmax(logits / temperature, dim=1))
    torch.testing.assert_close(p.sum(dim=1), torch.ones(7, dtype=torch.float64))
    shifted = temperature_softmax(logits + constant, temperature)
    torch.testing.assert_close(shifted, p)


def test_softmax_works_on_the_last_axis():
    logits = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0))
    p = temperature_softmax(logits, 2.0)
    torch.testing.assert_close(p[1], temperature_softmax(logits[1], 2.0))
    torch.testing.assert_close(p.sum(dim=-1), torch.ones(2, 3))


def test_temperature_flattens_and_sharpens():
    logits = torch.tensor([3.0, 0.0, -1.0])
    torch.testing.assert_close(
        temperature_softmax(logits, 1e6), torch.full((3,), 1 / 3)
    )
    torch.testing.assert_close(
        temperature_softmax(logits, 1e-6), torch.tensor([1.0, 0.0, 0.0])
    )


# Module


def test_temperature_may_change_between_steps():
    logits, target = problem()
    criterion = TemperatureCrossEntropyLoss()
    assert criterion.temperature == 1.0
    torch.testing.assert_close(
        criterion(logits, target), F.cross_entropy(logits, target)
    )
    criterion.temperature = 5.0
    torch.testing.assert_close(
        criterion(logits, target), F.cross_entropy(logits / 5, target)
    )
    assert repr(criterion) == "TemperatureCrossEntropyLoss(temperature=5)"


def test_class_weights_follow_the_module():
    criterion = TemperatureCrossEntropyLoss(weight=CLASS_WEIGHT)
    assert criterion.double().weight.dtype == torch.float64
    assert list(criterion.parameters()) == []


@pytest.mark.parametrize("value", INVALID, ids=repr)
@pytest.mark.parametrize("use", [TemperatureCrossEntropyLoss, as_schedule])
def test_invalid_temperature(use, value):
    with pytest.raises(ValueError, match=r"^temperature must be a positive") as error:
        use(value)
    assert f"got {value!r}." in str(error.value)


def test_a_number_too_large_for_a_float_is_not_a_temperature():
    with pytest.raises(ValueError, match="temperature must be a positive, finite"):
        as_schedule(10**400)


@pytest.mark.parametrize("value", [2, np.float32(2), np.float64(2), np.int64(2)])
def test_any_real_number_is_a_temperature(value):
    stored = TemperatureCrossEntropyLoss(value).temperature
    assert type(stored) is float
    assert stored == 2.0
    assert as_schedule(value) == ConstantTemperature(2.0)


# Schedules


@pytest.mark.parametrize("schedule", MOVING)
@pytest.mark.parametrize(("start", "stop"), [(0.1, 30.0), (100.0, 1.0), (2.0, 2.0)])
@pytest.mark.parametrize("n_epochs", [2, 3, 50])
def test_schedule_runs_from_start_to_stop(schedule, start, stop, n_epochs):
    values = schedule(start, stop).values(n_epochs)
    assert len(values) == n_epochs
    assert values[0] == start
    assert values[-1] == pytest.approx(stop)
    steps = np.diff(values) * np.sign(stop - start)
    assert (steps > 0).all() if start != stop else (steps == 0).all()


@relaxed
@given(start=st.floats(1e-3, 1e3), stop=st.floats(1e-3, 1e3), n=st.integers(1, 40))
def test_schedules_stay_between_their_ends(start, stop, n):
    low, high = sorted((start, stop))
    for schedule in MOVING:
        values = np.array(schedule(start, stop).values(n))
        assert (values >= low * (1 - 1e-9)).all()
        assert (values <= high * (1 + 1e-9)).all()


def test_shapes_of_the_schedules():
    assert LinearTemperature(1, 100)(0.25) == pytest.approx(1 + 99 / 4)
    assert ExponentialTemperature(1, 100)(0.25) == pytest.approx(math.sqrt(10))
    assert CosineTemperature(1, 100)(0.25) == pytest.approx(
        1 + 99 * (1 - math.sqrt(0.5)) / 2
    )
    for schedule, middle in zip(MOVING, (50.5, 50.5, 10.0), strict=True):
        assert schedule(1, 100)(0.5) == pytest.approx(middle)


@pytest.mark.parametrize("schedule", MOVING)
def test_few_epochs(schedule):
    assert schedule(3.0, 9.0).values(1) == [3.0]
    assert schedule(3.0, 9.0).values(0) == []


def test_constant():
    assert ConstantTemperature(3).values(4) == [3.0] * 4
    assert as_schedule(3) == ConstantTemperature(3.0)


@pytest.mark.parametrize("schedule", MOVING)
def test_as_schedule_returns_a_schedule_as_it_is(schedule):
    made = schedule(1.0, 2.0)
    assert as_schedule(made) is made


@pytest.mark.parametrize("schedule", MOVING)
@pytest.mark.parametrize("value", INVALID, ids=repr)
def test_invalid_ends(schedule, value):
    for name, ends in (("start", (value, 1.0)), ("stop", (1.0, value))):
        with pytest.raises(ValueError, match=f"^{name} must be a positive") as error:
            schedule(*ends)
        assert f"got {value!r}." in str(error.value)


def test_base_class_is_abstract():
    with pytest.raises(TypeError, match="abstract"):
        losses.TemperatureSchedule(1.0, 2.0)


@pytest.mark.parametrize(
    "schedule", [*(s(1.0, 9.0) for s in MOVING), ConstantTemperature(2.0)], ids=repr
)
@pytest.mark.parametrize(
    "duplicate",
    [lambda s: pickle.loads(pickle.dumps(s)), copy.deepcopy, lambda s: eval(repr(s))],
    ids=["pickle", "deepcopy", "repr"],
)
def test_duplicates_are_equal(schedule, duplicate):
    again = duplicate(schedule)
    assert again == schedule
    assert hash(again) == hash(schedule)
    assert repr(again) == repr(schedule)
    assert again.values(5) == schedule.values(5)


def test_schedules_differ_by_kind_and_by_ends():
    every = [
        *(s(1.0, 9.0) for s in MOVING),
        *(s(1.0, 8.0) for s in MOVING),
        *(s(2.0, 9.0) for s in MOVING),
        LinearTemperature(2.0, 2.0),
        ConstantTemperature(2.0),
        ConstantTemperature(3.0),
    ]
    assert len(set(every)) == len(every)


def test_schedules_are_frozen():
    with pytest.raises(AttributeError):
        LinearTemperature(1.0, 2.0).start = 3.0
