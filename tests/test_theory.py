"""Closed forms, bounds and the flow against training, optima and random cases."""

import importlib
import itertools
import math
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp
from scipy.linalg import hadamard
from scipy.spatial import ConvexHull
from scipy.special import softmax

from sksoftrank import theory
from sksoftrank.theory import (
    argmaxable,
    dual_settings,
    minimal_logit_norm,
    minimal_rank,
    predict_rank,
    softmax_rank_bound,
    temperature_for_rank,
)

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"


@pytest.fixture(scope="module")
def measured():
    """Return the benchmark, whose networks and optima are not the package's."""
    sys.path.insert(0, str(BENCHMARKS))
    yield importlib.import_module("theory")
    sys.path.remove(str(BENCHMARKS))


# Temperature as other settings


@pytest.mark.parametrize("temperature", [0.1, 10.0, 1000.0])
@pytest.mark.parametrize("n_layers", [2, 3, 4, 5, 6])
@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw"])
def test_the_dual_trains_the_same_network(measured, optimizer, n_layers, temperature):
    power = 2 / n_layers if optimizer == "sgd" else 1 / n_layers
    settings = {"learning_rate": 0.01 * temperature**power, "weight_decay": 0.01}
    extra = {"nesterov": True} if optimizer == "sgd" else {}
    if optimizer != "sgd":
        settings["eps"] = 1e-3
    ours = measured.logits_of(
        optimizer,
        n_layers,
        temperature=temperature,
        init_scale=0.7,
        **settings,
        **extra,
    )
    dual = dual_settings(temperature, n_layers, optimizer, init_scale=0.7, **settings)
    theirs = measured.logits_of(optimizer, n_layers, **dual, **extra)
    torch.testing.assert_close(theirs, ours, atol=1e-10, rtol=0)
    start = measured.logits_of(optimizer, n_layers, steps=0, **dual, **extra)
    assert (ours - start).abs().max() > 0.1 * start.abs().max()  # It has moved.


def test_the_dual_scales_the_eps_of_adam(measured):
    settings = {"learning_rate": 0.01, "eps": 1e-3}
    ours = measured.logits_of("adam", 2, temperature=100.0, init_scale=1.0, **settings)
    dual = dual_settings(100.0, 2, "adam", **settings)
    assert dual["eps"] == pytest.approx(1e-2)
    dual["eps"] = 1e-3
    assert (measured.logits_of("adam", 2, **dual) - ours).abs().max() > 1e-3


def test_a_rate_of_the_root_is_neutral_at_one_depth_alone():
    for optimizer, n_layers in (("sgd", 4), ("adam", 2), ("adamw", 2)):
        dual = dual_settings(100.0, n_layers, optimizer, learning_rate=0.1 * 100**0.5)
        assert dual["learning_rate"] == pytest.approx(0.1)


def test_the_dual_at_one_is_what_was_given():
    given = {"learning_rate": 0.1, "weight_decay": 0.2, "eps": 0.3, "init_scale": 0.4}
    for optimizer in ("adam", "adamw"):
        assert dual_settings(1.0, 3, optimizer, **given) == {"temperature": 1.0} | given
    assert "eps" not in dual_settings(1.0, 3, "sgd", **given)


# The price of a rank


def least_probability(Z):
    return np.diag(softmax(Z, axis=1)).min()


@pytest.mark.parametrize("probability", [0.3, 0.9, 0.9999])
@pytest.mark.parametrize("n_classes", [4, 6, 10, 16])
def test_known_matrices_have_the_norm_and_reach_the_probability(n_classes, probability):
    angles = 2 * np.pi * np.arange(n_classes) / n_classes
    half = np.eye(n_classes // 2)
    codes = {
        2: np.column_stack([np.cos(angles), np.sin(angles)]),
        n_classes // 2: np.vstack([half, -half]),
        n_classes - 1: np.eye(n_classes) - 1 / n_classes,
    }
    for rank, V in codes.items():
        Z = V @ V.T
        assert np.linalg.matrix_rank(Z) == rank
        norm = minimal_logit_norm(rank, n_classes, probability=probability)
        Z *= norm / np.linalg.norm(Z[0])
        assert least_probability(Z) == pytest.approx(probability, rel=1e-9)


@pytest.mark.parametrize("probability", [0.5, 0.9, 0.99])
@pytest.mark.parametrize("n_classes", [3, 4, 6, 7])
def test_norms_are_those_of_another_optimizer(measured, n_classes, probability):
    for rank in range(2, n_classes):
        ours = minimal_logit_norm(rank, n_classes, probability=probability)
        theirs = measured.sought_norm(rank, n_classes, probability, seed=0)
        assert ours == pytest.approx(theirs, rel=0.01)


@pytest.mark.parametrize("probability", [0.3, 0.9, 0.999])
@pytest.mark.parametrize("n_classes", [5, 10, 13])
def test_norms_fall_with_the_rank(n_classes, probability):
    norms = [
        minimal_logit_norm(rank, n_classes, probability=probability)
        for rank in range(2, n_classes)
    ]
    assert norms == sorted(norms, reverse=True)
    for rank, norm in enumerate(norms, start=2):
        assert minimal_rank(norm, n_classes, probability=probability) == rank
        assert minimal_rank(1.01 * norm, n_classes, probability=probability) <= rank


@pytest.mark.parametrize("rank", [2, 3, 4, 7])
def test_norms_are_proportional_to_the_temperature(rank):
    one = minimal_logit_norm(rank, 8)
    for temperature in (1e-3, 0.5, 1e3):
        norm = minimal_logit_norm(rank, 8, temperature=temperature)
        assert norm == temperature * one
        assert minimal_rank(norm, 8, temperature=temperature) == rank
    assert minimal_logit_norm(rank, 8, probability=0.95) > one


def test_two_classes_need_a_line():
    # Logits (s/2, -s/2) with 1 / (1 + e^-s) = p.
    expected = math.log(9) / math.sqrt(2)
    assert minimal_logit_norm(1, 2) == pytest.approx(expected)
    assert minimal_rank(2.0, 2) == 1


@pytest.mark.parametrize("n_layers", [2, 3, 4, 5, 6])
@pytest.mark.parametrize("n_classes", [4, 6, 10, 40])
def test_under_decay_the_orthoplex_may_cost_less(n_classes, n_layers):
    # Least sum of squared weights, of singular values as the matrices have them.
    p = 1 - 1e-12
    half = np.eye(n_classes // 2)
    costs = []
    for rank, V in (
        (n_classes // 2, np.vstack([half, -half])),
        (n_classes - 1, np.eye(n_classes) - 1 / n_classes),
    ):
        Z = V @ V.T
        Z *= minimal_logit_norm(rank, n_classes, probability=p) / np.linalg.norm(Z[0])
        s = np.linalg.svd(Z, compute_uv=False)[:rank]
        costs.append(n_layers * (s ** (2 / n_layers)).sum())
    cheaper = n_classes / 2 * 2 ** (2 / n_layers) < n_classes - 1
    assert (costs[0] < costs[1]) == cheaper


def test_decay_counts_times_a_power_of_the_temperature():
    # Balanced layers of a product Z: N sum s^(2/N) squared weights, for T Z times
    # T^(2/N), which is what the dual's decay says.
    rng = np.random.default_rng(0)
    s = np.linalg.svd(rng.standard_normal((6, 6)), compute_uv=False)
    for n_layers in (2, 3, 5):
        ratio = ((30 * s) ** (2 / n_layers)).sum() / (s ** (2 / n_layers)).sum()
        dual = dual_settings(30, n_layers, "sgd", learning_rate=1, weight_decay=1)
        assert dual["weight_decay"] == pytest.approx(ratio)


# The rank that training finds


@pytest.mark.parametrize("n_layers", [1, 2, 3, 5])
@pytest.mark.parametrize("temperature", [0.3, 10.0])
def test_the_flow_from_a_walsh_basis_is_a_scalar_ode(n_layers, temperature):
    C = 8
    H = hadamard(C) / math.sqrt(C)
    modes = np.array([0.0, 1.0, 0.8, 0.5, 0.3, 0.2, 0.1, 0.05])
    layer = H * modes ** (1 / n_layers) @ H.T
    Z = theory._flow([layer] * n_layers, temperature, 0.9, rtol=1e-7)
    found = np.diag(H.T @ Z @ H)
    np.testing.assert_allclose(H.T @ Z @ H, np.diag(found), atol=1e-8)

    def probabilities(s):
        P = softmax(H * s @ H.T / temperature, axis=0)
        return P, np.diag(H.T @ P @ H)

    def velocity(_, s):
        rates = n_layers * np.maximum(s, 0) ** (2 - 2 / n_layers)
        return rates * (1 - probabilities(s)[1]) / (temperature * C)

    def reached(_, s):
        return probabilities(s)[0][0, 0] - least_probability(Z.T / temperature)

    reached.terminal = True
    exact = solve_ivp(
        velocity,
        (0, 1e6),
        modes,
        events=reached,
        rtol=1e-10,
        atol=1e-12,
        method="LSODA",
    )
    np.testing.assert_allclose(found, exact.y_events[0][0], rtol=1e-4, atol=1e-6)
    assert found.max() > 1.5 * modes.max()


def test_predicted_ranks_are_those_of_trained_networks(measured):
    cells = [
        measured.rank_cell(n_classes, n_layers, T, seeds=range(3))
        for n_classes, n_layers, T in itertools.product(
            (5, 10, 30), (2, 3, 5), (0.1, 1.0, 100.0)
        )
    ]
    for how in ("descent", "sgd"):
        errors = [cell[how]["error"] for cell in cells]
        assert np.mean(errors) <= 1.0
        assert max(errors) <= 2.0


def test_one_start_is_its_trained_network(measured):
    # The same initial weights, trained in finite steps: the spectra agree, not the rank
    # alone.
    for n_layers, temperature in ((2, 0.1), (3, 1.0), (4, 100.0)):
        W = measured.start(10, n_layers, 5)
        ours = theory._flow(list(W), temperature, 0.9)
        loss, log_p = measured.loss_of(W, temperature)
        while np.diag(log_p).min() < math.log(0.9):
            gradient = measured.gradient(W, temperature, np.eye(10), np.eye(10))
            W = W - 0.05 * temperature ** (2 / n_layers) * gradient
            loss, log_p = measured.loss_of(W, temperature)
        assert loss < 0.2
        spectra = [
            np.linalg.svd(Z - Z.mean(axis=0), compute_uv=False)
            for Z in (ours, temperature * log_p)
        ]
        np.testing.assert_allclose(*spectra, atol=0.02 * spectra[0][0])


def test_temperature_and_the_scale_of_the_start_are_one():
    for n_layers in (2, 3, 5):
        hot = predict_rank(50.0, n_layers, 6)
        small = predict_rank(1.0, n_layers, 6, init_scale=50.0 ** (-1 / n_layers))
        assert hot.rank == small.rank
        np.testing.assert_allclose(
            hot.singular_values, 50 * small.singular_values, rtol=1e-6, atol=1e-8
        )


def test_the_predicted_rank_falls_with_temperature_and_depth():
    ranks = np.array(
        [[predict_rank(T, N, 12).rank for T in (0.1, 10.0, 1000.0)] for N in (3, 4, 5)]
    )
    assert (np.diff(ranks, axis=0) <= 0).all()
    assert (np.diff(ranks, axis=1) <= 0).all()
    assert ranks[0, 0] > 2 * ranks[-1, -1]


def test_the_prediction_is_the_same_for_the_same_seed_and_bound_by_the_width():
    first, again = (predict_rank(1.0, 3, 8, width=3) for _ in range(2))
    np.testing.assert_array_equal(first.singular_values, again.singular_values)
    assert first.rank <= 3
    other = predict_rank(1.0, 3, 8, width=3, random_state=1)
    assert not np.array_equal(first.singular_values, other.singular_values)
    assert predict_rank(1.0, 3, 2, width=1).rank == 1


def test_a_flow_that_goes_nowhere_is_given_up(monkeypatch):
    monkeypatch.setattr(theory, "MAX_STEPS", 50)
    with pytest.raises(RuntimeError, match=r"temperature=1000 didn't .* init_scale"):
        predict_rank(1000.0, 6, 10)


@pytest.mark.parametrize("rank", [2, 4, 7])
def test_the_temperature_for_a_rank_gives_it(rank):
    temperature = temperature_for_rank(rank, 4, 9)
    assert 0.01 <= temperature <= 1000
    assert abs(predict_rank(temperature, 4, 9).rank - rank) <= 0.5


def test_without_a_temperature_for_a_rank_the_error_names_the_nearest():
    # Two layers grow in proportion.
    with pytest.raises(ValueError, match=r"2 layers reach .* got 2: the nearest is 8"):
        temperature_for_rank(2, 2, 9)
    with pytest.raises(ValueError, match=r"in \(10.0, 20.0\), got 8: the nearest is"):
        temperature_for_rank(8, 5, 9, bounds=(10.0, 20.0))


# What the softmax and the head can do


def test_the_bound_holds_in_ten_thousand_cases():
    rng = np.random.default_rng(0)
    tightest = 0.0
    for case in range(10_000):
        shape = rng.integers(2, 9, size=2)
        draw = (rng.standard_normal, lambda s: rng.standard_t(1.0, s), rng.exponential)
        Z = draw[case % 3](size=shape) if case % 3 != 1 else draw[1](shape)
        Z, T = Z + rng.normal(), 10 ** rng.uniform(-2, 2)
        s = np.linalg.svd(softmax(Z / T, axis=1), compute_uv=False)
        bound = softmax_rank_bound(Z, T)
        rest = (s[1:] ** 2).sum()
        assert rest <= bound * (1 + 1e-9) + 1e-15
        tightest = max(tightest, rest / bound)
    assert tightest > 0.5


def test_the_bound_of_large_logits_is_finite_and_of_small_ones_exact():
    assert math.isfinite(softmax_rank_bound(np.diag([1e6, -1e6])))
    assert softmax_rank_bound(np.ones((3, 4))) == 0.0
    Z = np.random.default_rng(0).standard_normal((50, 5))
    Z -= Z.mean(axis=1, keepdims=True)
    # Linear there: P = 1/C + Z / (T C).
    expected = (Z**2).sum() / 1e4**2 / 25
    assert softmax_rank_bound(torch.from_numpy(Z), 1e4) == pytest.approx(expected, 1e-2)


@pytest.mark.parametrize("scale", [1e-8, 1.0, 1e8])
@pytest.mark.parametrize(("n_classes", "d"), [(12, 2), (30, 3), (40, 4)])
def test_without_bias_corners_of_the_hull_are_argmaxable(n_classes, d, scale):
    for seed in range(3):
        W = np.random.default_rng(seed).standard_normal((n_classes, d))
        expected = np.isin(np.arange(n_classes), ConvexHull(W).vertices)
        assert not expected.all()
        np.testing.assert_array_equal(argmaxable(scale * W + scale), expected)


@pytest.mark.parametrize("scale", [1e-8, 1.0, 1e8])
def test_with_bias_the_upper_hull_is_argmaxable(scale):
    for seed in range(5):
        rng = np.random.default_rng(seed)
        W, b = rng.standard_normal((20, 2)), rng.standard_normal(20)
        hull = ConvexHull(np.column_stack([W, b]))
        above = hull.simplices[hull.equations[:, 2] > 0]
        expected = np.isin(np.arange(20), above)
        assert 3 < expected.sum() < 20
        np.testing.assert_array_equal(argmaxable(W, scale * b + 3.0), expected)
        # What is reached by search is.
        Z = 10 * rng.standard_normal((5_000, 2))
        assert expected[np.unique((Z @ W.T + b).argmax(axis=1))].all()


def test_enough_dimensions_reach_every_class():
    W = np.random.default_rng(0).standard_normal((9, 8))
    assert argmaxable(W, np.linspace(-5, 5, 9)).all()
    assert argmaxable(torch.from_numpy(W).requires_grad_()).all()
    assert argmaxable([[1.0, 2.0]]).tolist() == [True]


def test_equal_classes_and_a_head_without_weights_reach_what_leads():
    assert argmaxable([[1.0], [1.0], [-1.0]]).tolist() == [False, False, True]
    assert argmaxable(np.zeros((3, 2)), [0.0, 1.0, 0.5]).tolist() == [
        False,
        True,
        False,
    ]
    assert argmaxable(np.zeros((2, 2))).tolist() == [False, False]


# Errors


def dual(**changes):
    settings = {"temperature": 1.0, "n_layers": 2, "optimizer": "sgd"}
    settings |= {"learning_rate": 0.1} | changes
    return dual_settings(**settings)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: dual(temperature=0.0), r"temperature must be .* got 0.0"),
        (lambda: dual(temperature="hot"), r"temperature must be .* got 'hot'"),
        (lambda: dual(temperature=math.nan), r"temperature must be .* got nan"),
        (lambda: dual(n_layers=0), r"n_layers must be an int of at least 1, got 0"),
        (lambda: dual(n_layers=1.5), r"n_layers must be an int"),
        (lambda: dual(optimizer="lbfgs"), r"optimizer must be one of .* got 'lbfgs'"),
        (lambda: dual(learning_rate=-1), r"learning_rate must be .* got -1"),
        (lambda: dual(weight_decay=-1), r"weight_decay must be .* got -1"),
        (lambda: dual(eps=-1), r"eps must be .* got -1"),
        (lambda: dual(init_scale=0), r"init_scale must be .* got 0"),
        (
            lambda: minimal_logit_norm(1, 3),
            r"rank must be .* least 2 and at most 2, go",
        ),
        (lambda: minimal_logit_norm(5, 5), r"rank must be .* at most 4, got 5"),
        (lambda: minimal_logit_norm(2.0, 5), r"rank must be an int .* got 2.0"),
        (lambda: minimal_logit_norm(2, 1), r"n_classes must be .* got 1"),
        (
            lambda: minimal_logit_norm(2, 5, probability=0.2),
            r"probability must be a number in \(0.2, 1\), got 0.2",
        ),
        (lambda: minimal_logit_norm(2, 5, probability=1), r"probability must .* got 1"),
        (lambda: minimal_logit_norm(2, 5, temperature=0), r"temperature must .* got 0"),
        (lambda: minimal_rank(0.0, 5), r"norm must be .* got 0.0"),
        (
            lambda: minimal_rank(1.0, 10, temperature=2.0),
            r"norm must be at least 8.338 for 10 .* temperature=2, got 1. Raise",
        ),
        (lambda: predict_rank(-1.0, 2, 5), r"temperature must be .* got -1.0"),
        (lambda: predict_rank(1.0, 2, 5, width=1), r"width must .* least 2, got 1"),
        (lambda: predict_rank(1.0, 2, 5, tol=1.0), r"tol must be in .* got 1.0"),
        (lambda: predict_rank(1.0, 2, 5, n_starts=0), r"n_starts must .* got 0"),
        (lambda: predict_rank(1.0, 2, 5, probability=0.1), r"probability .* got 0.1"),
        (lambda: temperature_for_rank(9, 2, 9), r"rank must be .* at most 8, got 9"),
        (
            lambda: temperature_for_rank(3, 2, 9, bounds=(2.0, 1.0)),
            r"bounds must be two positive .* got \(2.0, 1.0\)",
        ),
        (lambda: temperature_for_rank(3, 2, 9, bounds=3.0), r"bounds must .* got 3.0"),
        (lambda: softmax_rank_bound([1.0, 2.0]), r"logits must be a matrix .* \(2,\)"),
        (lambda: softmax_rank_bound([[math.nan]]), r"logits must be finite, got 1"),
        (lambda: softmax_rank_bound(np.eye(2), 0.0), r"temperature must .* got 0.0"),
        (lambda: argmaxable(np.ones(3)), r"weight must be a matrix .* \(3,\)"),
        (lambda: argmaxable(np.eye(3), [1.0, 2.0]), r"bias must .* 3 rows .* \(2,\)"),
        (lambda: argmaxable(np.eye(2), [1.0, math.inf]), r"bias must be finite"),
    ],
)
def test_errors_name_what_is_wrong(call, message):
    with pytest.raises(ValueError, match=message):
        call()
