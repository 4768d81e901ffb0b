"""Neural collapse and class separation: closed forms, invariances, degenerate input."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics.pairwise import cosine_distances

from sksoftrank import collapse

relaxed = settings(max_examples=25)
seeds = st.integers(0, 2**32 - 1)


def simplex(n_classes, d):
    """Return the corners of a simplex (C, d) around zero, of norm one."""
    corners = np.eye(n_classes) - 1 / n_classes
    rotation = np.linalg.qr(np.random.default_rng(0).standard_normal((d, d)))[0]
    return corners @ rotation[:n_classes] / np.sqrt(1 - 1 / n_classes)


def clouds(seed=0, n_classes=4, n=12, d=6):
    """Return overlapping clouds, their labels and other weights and predictions."""
    rng = np.random.default_rng(seed)
    y = np.repeat(np.arange(n_classes), n)
    Z = rng.standard_normal((n_classes, d))[y] + rng.standard_normal((len(y), d))
    return Z, y, rng.standard_normal((n_classes, d)), rng.permutation(y)


def all_measures(Z, y, weight, predictions):
    return list(collapse.neural_collapse(Z, y, weight, predictions).values())


# Closed forms


@pytest.mark.parametrize(("n_classes", "d"), [(2, 2), (3, 8), (10, 10), (10, 64)])
def test_simplex_is_collapsed(n_classes, d):
    y = np.repeat(np.arange(n_classes), 5)
    corners = simplex(n_classes, d)
    report = collapse.neural_collapse(7 + 3 * corners[y], y, 0.2 * corners, y)
    expected = {
        "within_class_variability": 0.0,
        "equinorm": 0.0,
        "equiangularity": 0.0,
        "self_duality": 0.0,
        "nearest_center_agreement": 1.0,
    }
    separation = report.pop("class_separation")
    assert report == pytest.approx(expected, abs=1e-12)
    assert separation == pytest.approx(1.0)


def test_spread_of_a_simplex_is_in_closed_form():
    # Each row is its corner and a step to either side along each axis: S_W = a^2 I / d.
    n_classes, d, a = 5, 8, 0.3
    corners = simplex(n_classes, d)
    steps = a * np.concatenate([np.eye(d), -np.eye(d)])
    Z = (corners[:, None] + steps).reshape(-1, d)
    y = np.repeat(np.arange(n_classes), 2 * d)
    # S_B has C - 1 eigenvalues 1 / (C - 1).
    assert collapse.within_class_variability(Z, y) == pytest.approx(
        (a**2 / d) * (n_classes - 1) ** 2 / n_classes
    )


def test_variability_is_what_the_paper_defines():
    Z, y, _, _ = clouds()
    centers = np.array([Z[y == c].mean(axis=0) for c in range(4)])
    between = np.cov(centers.T, bias=True)
    within = np.mean([np.cov(Z[y == c].T, bias=True) for c in range(4)], axis=0)
    expected = np.trace(within @ np.linalg.pinv(between)) / 4
    assert collapse.within_class_variability(Z, y) == pytest.approx(expected)


def test_norms_and_angles_of_known_centers():
    # Two pairs of opposite corners, at norms 1 and 3.
    Z = np.array([[1.0, 0.0], [-1.0, 0.0], [0.0, 3.0], [0.0, -3.0]])
    assert collapse.equinorm(Z, range(4)) == pytest.approx(0.5)
    # Cosines -1 twice and 0 four times, against -1/3.
    assert collapse.equiangularity(Z, range(4)) == pytest.approx((2 * 2 + 4) / 3 / 6)


def test_duality_of_opposite_weights_is_two():
    corners = simplex(4, 6)
    assert collapse.self_duality(corners, range(4), -corners) == pytest.approx(2.0)
    # What all rows of a weight share changes no probability.
    assert collapse.self_duality(corners, range(4), corners + 9) == pytest.approx(0)


def test_nearest_center_agreement_counts_classes_alike():
    Z = np.array([[1.0], [1.0], [1.0], [-1.0]])
    y = np.array(["a", "a", "a", "b"])
    assert collapse.nearest_center_agreement(Z, y, ["a", "a", "a", "a"]) == 0.5
    assert collapse.nearest_center_agreement(Z, y, ["a", "b", "b", "b"]) == (
        pytest.approx((1 / 3 + 1) / 2)
    )


def test_separation_is_one_less_a_ratio_of_mean_distances():
    Z, y, _, _ = clouds()
    distances = cosine_distances(Z)
    within = np.mean([distances[np.ix_(y == c, y == c)].mean() for c in range(4)])
    total = distances.mean()  # of classes of one size
    expected = 1 - within / total
    assert collapse.class_separation(Z, y) == pytest.approx(expected)


# Invariances


@given(seed=seeds, scale=st.sampled_from([1e-200, 1e-3, 7.0, 1e150]))
@relaxed
def test_scale_rotation_and_order_change_nothing(seed, scale):
    Z, y, weight, predictions = clouds(seed)
    rng = np.random.default_rng(seed)
    rotation = np.linalg.qr(rng.standard_normal((6, 6)))[0]
    order = rng.permutation(len(y))
    found = all_measures(
        scale * (Z @ rotation)[order], y[order], weight @ rotation, predictions[order]
    )
    expected = all_measures(Z, y, weight, predictions)
    np.testing.assert_allclose(found, expected, rtol=1e-7)


@given(seed=seeds)
@relaxed
def test_offset_changes_nothing_but_directions(seed):
    Z, y, weight, predictions = clouds(seed)
    expected = collapse.neural_collapse(Z, y, weight, predictions)
    found = collapse.neural_collapse(Z + 50, y, weight, predictions)
    del found["class_separation"], expected["class_separation"]
    assert found == pytest.approx(expected, rel=1e-6)


def test_rows_repeated_in_one_class_change_nothing():
    Z, y, weight, predictions = clouds()
    again = np.concatenate([np.arange(len(y)), np.flatnonzero(y == 2)])
    np.testing.assert_allclose(
        all_measures(Z[again], y[again], weight, predictions[again]),
        all_measures(Z, y, weight, predictions),
    )


def test_names_of_classes_and_tensors_do():
    Z, y, weight, predictions = clouds()
    names = np.array(["ant", "bee", "cat", "dog"])
    assert all_measures(
        torch.tensor(Z), names[y], torch.tensor(weight), names[predictions]
    ) == all_measures(Z, y, weight, predictions)


def test_rounding_of_single_precision_is_no_direction():
    # Centres on a line, and a second direction in the last digits alone.
    rng = np.random.default_rng(0)
    y = np.repeat(np.arange(5), 20)
    Z = np.column_stack([y + 0.1 * rng.standard_normal(100), np.zeros(100)])
    clean = collapse.within_class_variability(Z, y)
    Z[:, 1] = 1e-8 * rng.standard_normal(100)
    assert collapse.within_class_variability(Z, y) == pytest.approx(clean)


# Degenerate input


@pytest.mark.parametrize("value", [0.0, 1e3, 0.1])
def test_equal_rows_have_not_collapsed(value):
    Z, y = np.full((30, 4), value), np.arange(30) % 3
    report = collapse.neural_collapse(Z, y, np.eye(3, 4), y)
    assert report["within_class_variability"] == np.inf
    assert report["class_separation"] == 0.0
    for name in ("equinorm", "equiangularity", "self_duality"):
        assert np.isnan(report[name])


def test_one_row_of_a_class():
    Z = np.array([[0.0, 1.0], [2.0, 1.0], [5.0, 5.0]])
    y = [0, 0, 1]
    # The deviations are across a direction of length |(4, 4)|: its variance 1/2 * 1/2,
    # the centres' squared singular value 16.
    assert collapse.within_class_variability(Z, y) == pytest.approx(1 / 4 / 16)
    assert collapse.equinorm(Z, y) == pytest.approx(0.0)


def test_center_in_the_mean_has_no_angle():
    Z = np.array([[1.0, 0.0], [0.0, 0.0], [-1.0, 0.0]])
    assert collapse.equiangularity(Z, range(3)) == pytest.approx((2 * 0.5 + 0.5) / 3)


def test_rows_of_zeros_are_far_from_all():
    Z = np.array([[1.0, 0.0], [1.0, 0.0], [0.0, 0.0], [0.0, 0.0]])
    # Within: 0 and 1; in all 1 - |(1/2, 0)|^2.
    assert collapse.class_separation(Z, [0, 0, 1, 1]) == pytest.approx(1 - 0.5 / 0.75)


def test_equal_weights_have_no_duality():
    assert np.isnan(collapse.self_duality(np.eye(3), range(3), np.ones((3, 3))))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda Z, y: collapse.equinorm(Z, np.zeros(len(y))), "at least two classes"),
        (lambda Z, y: collapse.equinorm(Z, y[:-1]), "y must hold a label for each of"),
        (lambda Z, y: collapse.class_separation(Z[:, 0], y), "Z must be a matrix"),
        (lambda Z, y: collapse.equiangularity(np.nan * Z, y), "NaN or infinite"),
        (lambda Z, y: collapse.self_duality(Z, y, np.eye(3)), r"weight must be of sha"),
        (
            lambda Z, y: collapse.nearest_center_agreement(Z, y, y[1:]),
            "predictions must hold a label for each",
        ),
    ],
)
def test_bad_input_is_refused(call, message):
    Z, y, _, _ = clouds()
    with pytest.raises(ValueError, match=message):
        call(Z, y)
