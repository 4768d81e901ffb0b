"""Spectra and ranks: closed forms, invariances, references, degenerate input."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import linalg, stats

from sksoftrank import rank

FUNCTIONS = [
    rank.numerical_rank,
    rank.effective_rank,
    rank.rankme,
    rank.stable_rank,
    rank.participation_ratio,
    rank.variance_rank,
]
relaxed = settings(max_examples=25)
seeds = st.integers(0, 2**32 - 1)
sizes = st.integers(1, 12)


def gaussian(seed, n, d):
    return np.random.default_rng(seed).standard_normal((n, d))


def with_spectrum(s, n, d, seed=0):
    """Return an n x d matrix whose singular values are `s`."""
    r = len(s)
    left = np.linalg.qr(gaussian(seed, n, r))[0]
    right = np.linalg.qr(gaussian(seed + 1, d, r))[0]
    return left * s @ right.T


def all_ranks(Z, center=False):
    """Return every measure of `Z`, as one vector."""
    return np.array([float(f(Z, center=center)) for f in FUNCTIONS])


# Closed forms


@pytest.mark.parametrize("d", [1, 2, 7])
def test_identity_has_all_its_ranks(d):
    np.testing.assert_array_equal(rank.singular_values(np.eye(d)), np.ones(d))
    np.testing.assert_allclose(all_ranks(np.eye(d)), d, rtol=1e-4)
    assert rank.rank_deficit(np.eye(d)) == 0


@pytest.mark.parametrize(("n", "d"), [(20, 6), (6, 20), (4, 4)])
def test_known_spectrum(n, d):
    s = np.array([8.0, 4.0, 2.0, 2e-3])
    Z = with_spectrum(s, n, d)
    found = rank.singular_values(Z)
    assert found.shape == (min(n, d),)
    np.testing.assert_allclose(found, np.pad(s, (0, len(found) - 4)), atol=1e-14)

    p, v = s / s.sum(), s**2
    assert rank.effective_rank(Z) == pytest.approx(np.exp(stats.entropy(p)))
    assert rank.stable_rank(Z) == pytest.approx(v.sum() / 64)
    assert rank.participation_ratio(Z) == pytest.approx(v.sum() ** 2 / (v**2).sum())
    assert [rank.numerical_rank(Z, tol) for tol in (0.6, 0.3, 1e-3, 1e-4)] == [
        1,
        2,
        3,
        4,
    ]
    # Shares of the variance held: 64/84, 80/84, all but 4e-6/84, all.
    shares = (0.7, 0.9, 0.99, 1 - 1e-9)
    assert [rank.variance_rank(Z, share, center=False) for share in shares] == [
        1,
        2,
        3,
        4,
    ]


@pytest.mark.parametrize(("n", "d"), [(40, 6), (6, 40), (20_000, 3)])
def test_principal_axes_have_the_spectrum(n, d):
    s = np.array([8.0, 1e-4])
    found, axes = rank.principal_axes(with_spectrum(s, n, d))
    assert found.shape == (d,)
    np.testing.assert_allclose(found[:2], s, rtol=1e-6)
    np.testing.assert_array_equal(found[2:], 0.0)
    np.testing.assert_allclose(axes @ axes.T, np.eye(d), atol=1e-13)
    # Below the rounding of an offset that was taken away.
    found, _ = rank.principal_axes(with_spectrum(s, n, d), 1e-3)
    np.testing.assert_array_equal(found[1:], 0.0)


def test_effective_rank_of_a_diagonal():
    # p = (3/4, 1/4): exp(H) = 4 / 3**0.75.
    assert rank.effective_rank(np.diag([3.0, 1.0])) == pytest.approx(4 / 3**0.75)


def test_rankme_adds_its_floor_to_each_share():
    p = np.array([0.75, 0.25, 0.0])
    for eps in (1e-7, 1e-2):
        expected = np.exp(-((p[:2] + eps) @ np.log(p[:2] + eps)) - eps * np.log(eps))
        assert rank.rankme(np.diag([3.0, 1.0, 0.0]), eps=eps) == pytest.approx(expected)


def test_tolerance_is_exclusive_and_share_inclusive():
    assert rank.numerical_rank(np.diag([2.0, 1.0]), 0.5) == 1
    assert rank.numerical_rank(np.diag([2.0, 1.0]), 0.4999) == 2
    assert rank.numerical_rank(np.diag([1.0, 1e-12, 0.0]), 0.0) == 2
    assert rank.variance_rank(np.eye(4), 0.5, center=False) == 2
    assert rank.variance_rank(np.eye(4), 0.5001, center=False) == 3
    assert rank.variance_rank(np.diag([1.0, 1.0, 0.0]), 1.0, center=False) == 2


def test_only_variance_rank_centres_unless_asked():
    Z = 100.0 + np.outer([-1.0, 0.0, 1.0], [1.0, 0.0, 0.0])
    for f in FUNCTIONS:
        centred = f is rank.variance_rank
        assert f(Z) == f(Z, center=centred)
    assert rank.variance_rank(Z, 1.0) == rank.numerical_rank(Z, center=True) == 1
    assert rank.variance_rank(Z, 1.0, center=False) == 2


# Invariances


@relaxed
@given(seed=seeds, n=sizes, d=sizes, center=st.booleans())
def test_rotation_of_columns_and_order_of_rows_do_not_matter(seed, n, d, center):
    Z = gaussian(seed, n + 1, d)
    rng = np.random.default_rng(seed)
    rotation = np.linalg.qr(rng.standard_normal((d, d)))[0]
    expected = rank.singular_values(Z, center=center)
    for moved in (Z @ rotation, rng.permutation(Z), -Z):
        found = rank.singular_values(moved, center=center)
        np.testing.assert_allclose(found, expected, atol=1e-13)


@relaxed
@given(seed=seeds, n=sizes, d=sizes)
def test_transposition_does_not_matter(seed, n, d):
    Z = gaussian(seed, n, d)
    np.testing.assert_allclose(all_ranks(Z.T), all_ranks(Z))


@pytest.mark.parametrize("scale", [1e150, 1e-150, -3.0, 5e-324 / np.finfo(float).eps])
@pytest.mark.parametrize("center", [False, True])
@relaxed
@given(seed=seeds, n=sizes, d=sizes)
def test_scale_does_not_matter(scale, center, seed, n, d):
    # Powers of two in the values: the tiniest scale then loses no digit.
    Z = np.random.default_rng(seed).integers(-8, 9, (n + 1, d)).astype(float)
    np.testing.assert_allclose(
        all_ranks(scale * Z, center), all_ranks(Z, center), rtol=1e-9
    )


@relaxed
@given(seed=seeds, n=sizes, d=sizes, offset=st.floats(-1e3, 1e3))
def test_offset_does_not_matter_once_centred(seed, n, d, offset):
    Z = gaussian(seed, n + 1, d)
    np.testing.assert_allclose(
        rank.singular_values(Z + offset, center=True),
        rank.singular_values(Z, center=True),
        atol=1e-10,
    )


@relaxed
@given(seed=seeds, n=sizes, d=sizes, k=sizes)
def test_bounds(seed, n, d, k):
    Z = gaussian(seed, n, k) @ gaussian(seed + 1, k, d)
    true = min(n, d, k)
    assert rank.numerical_rank(Z, 1e-12) == true
    for f in (rank.effective_rank, rank.stable_rank, rank.participation_ratio):
        assert 1 - 1e-9 <= f(Z) <= true + 1e-9
    assert 1 <= rank.variance_rank(Z, center=False) <= true


# References


@relaxed
@given(seed=seeds, n=sizes, d=sizes, center=st.booleans())
def test_agrees_with_numpy(seed, n, d, center):
    Z = gaussian(seed, n + 1, d)
    reference = Z - Z.mean(axis=0) if center else Z
    s = np.linalg.svd(reference, compute_uv=False)
    found = rank.singular_values(Z, center=center)
    np.testing.assert_allclose(found, s, atol=1e-13)
    assert (np.diff(found) <= 0).all()
    for tol in (1e-1, 1e-2, 1e-10):
        expected = np.linalg.matrix_rank(reference, rtol=tol)
        assert rank.numerical_rank(Z, tol, center=center) == expected
    assert rank.stable_rank(Z) == pytest.approx(
        linalg.norm(Z) ** 2 / linalg.norm(Z, 2) ** 2
    )
    covariance = Z.T @ Z
    assert rank.participation_ratio(Z) == pytest.approx(
        np.trace(covariance) ** 2 / np.trace(covariance @ covariance)
    )


# What it is made of


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_tensors_with_a_gradient_give_what_their_numbers_give(dtype):
    Z = torch.tensor(gaussian(0, 9, 4), dtype=dtype, requires_grad=True)
    expected = all_ranks(Z.detach().double().numpy())
    np.testing.assert_array_equal(all_ranks(Z), expected)
    assert rank.rank_deficit(Z) == 0
    assert rank.rank_report(Z)["n_samples"] == 9


def test_lists_and_integers_are_computed_in_double():
    Z = [[200, 0], [0, 100]]
    np.testing.assert_array_equal(rank.singular_values(Z), [200.0, 100.0])
    as_bytes = np.array(Z, dtype=np.uint8)
    assert rank.stable_rank(as_bytes) == 1.25
    assert rank.singular_values(as_bytes, center=True)[0] == pytest.approx(
        np.sqrt(100**2 + 50**2) * np.sqrt(2)
    )


def test_input_is_left_as_it_was():
    Z = gaussian(0, 5, 3)
    copy = Z.copy()
    all_ranks(Z, center=True)
    np.testing.assert_array_equal(Z, copy)


# Degenerate input


@pytest.mark.parametrize("center", [False, True])
@pytest.mark.parametrize("shape", [(1, 1), (5, 3), (3, 5)])
def test_zero_matrix_has_rank_zero(shape, center):
    np.testing.assert_array_equal(all_ranks(np.zeros(shape), center), 0.0)
    np.testing.assert_array_equal(
        rank.singular_values(np.zeros(shape)), np.zeros(min(shape))
    )


def test_one_row_is_one_direction_and_none_once_centred():
    Z = gaussian(0, 1, 6)
    np.testing.assert_allclose(all_ranks(Z), 1.0, atol=1e-5)
    np.testing.assert_array_equal(all_ranks(Z, center=True), 0.0)


@pytest.mark.parametrize("n", [2, 10, 1_000, 20_000])
@pytest.mark.parametrize("d", [1, 3, 64])
def test_equal_rows_have_no_variance(n, d):
    for seed in range(3):
        Z = np.repeat(gaussian(seed, 1, d), n, axis=0)
        np.testing.assert_array_equal(all_ranks(Z, center=True), 0.0)
        assert rank.numerical_rank(Z) == 1


@pytest.mark.parametrize("offset", [1e-300, 1e8, -1e300])
def test_equal_rows_have_no_variance_whatever_the_offset(offset):
    Z = np.full((20_000, 3), offset) * [1.0, 0.1, 0.7]
    np.testing.assert_array_equal(rank.singular_values(Z, center=True), 0.0)


def test_rows_equal_up_to_rounding_have_no_variance():
    rng = np.random.default_rng(0)
    row = 1e8 * rng.standard_normal(5)
    Z = np.where(rng.random((1_000, 5)) < 0.5, row, np.nextafter(row, np.inf))
    np.testing.assert_array_equal(all_ranks(Z, center=True), 0.0)


def test_a_small_direction_on_a_large_offset_survives_centring():
    Z = 1e6 + np.outer(np.linspace(-1, 1, 100), [1.0, 0.0])
    assert rank.numerical_rank(Z, center=True) == 1


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("wrap", [np.asarray, torch.tensor])
def test_not_finite(bad, wrap):
    Z = np.ones((3, 2))
    Z[1, 0] = bad
    for f in (*FUNCTIONS, rank.singular_values, rank.rank_deficit, rank.rank_report):
        with pytest.raises(
            ValueError, match="must be finite, got 1 values that are NaN or inf"
        ):
            f(wrap(Z))


@pytest.mark.parametrize("shape", [(), (4,), (2, 2, 2), (0, 3), (3, 0)])
def test_not_a_matrix(shape):
    for f in (*FUNCTIONS, rank.singular_values, rank.rank_deficit, rank.rank_report):
        with pytest.raises(ValueError, match="must be a matrix") as error:
            f(np.zeros(shape))
        assert str(shape) in str(error.value)


@pytest.mark.parametrize("tol", [-0.1, 1.0, np.nan])
def test_tol_out_of_range(tol):
    for f in (rank.numerical_rank, rank.rank_deficit):
        with pytest.raises(ValueError, match=rf"tol must be in \[0, 1\).*got {tol}"):
            f(np.eye(2), tol=tol)
    with pytest.raises(ValueError, match=rf"tol must be in \[0, 1\).*got {tol}"):
        rank.rank_report(np.eye(2), tols=(0.1, tol))


@pytest.mark.parametrize("share", [0.0, 1.01, -1.0, np.nan])
def test_share_out_of_range(share):
    with pytest.raises(ValueError, match=rf"share must be in \(0, 1\], got {share}"):
        rank.variance_rank(np.eye(2), share)
    with pytest.raises(ValueError, match=rf"shares must be in \(0, 1\], got {share}"):
        rank.rank_report(np.eye(2), shares=(0.9, share))


# Deficit and report


@pytest.mark.parametrize("true_rank", [1, 3, 5])
def test_deficit_is_classes_minus_rank(true_rank):
    logits = with_spectrum(np.ones(true_rank), 30, 5)
    assert rank.rank_deficit(logits) == 5 - true_rank
    assert rank.rank_deficit(logits, n_classes=5) == 5 - true_rank
    # Uncentred: an offset shared by the rows is a direction.
    assert rank.rank_deficit(np.ones((6, 5))) == 4


def test_deficit_takes_the_tolerance():
    logits = np.diag([1.0, 1e-2, 1e-5])
    assert [rank.rank_deficit(logits, tol=t) for t in (0.1, 1e-3, 1e-6)] == [2, 1, 0]


def test_deficit_is_never_negative():
    assert rank.rank_deficit(np.eye(5), n_classes=3) == 0
    # A representation of four columns and one direction, for three classes.
    assert rank.rank_deficit(np.ones((6, 4)), n_classes=3) == 2


@pytest.mark.parametrize("n_classes", [0, -1, 2.0, "3"])
def test_invalid_n_classes(n_classes):
    with pytest.raises(ValueError, match="n_classes must be a positive int") as error:
        rank.rank_deficit(np.eye(3), n_classes)
    assert f"got {n_classes!r}." in str(error.value)


@pytest.mark.parametrize(
    ("shape", "n_classes"), [((4, 5), None), ((9, 5), 6), ((4, 5), 5)]
)
def test_deficit_of_too_few_rows_or_columns(shape, n_classes):
    with pytest.raises(ValueError, match="logits must have at least n_classes") as e:
        rank.rank_deficit(np.ones(shape), n_classes)
    assert str(shape) in str(e.value)


@pytest.mark.parametrize("center", [False, True])
def test_report_agrees_with_the_functions(center):
    Z = with_spectrum(np.geomspace(1, 1e-6, 6), 20, 8) + 0.1
    tols, shares = (0.3, 1e-5), (0.5, 1.0)
    report = rank.rank_report(Z, center=center, tols=tols, shares=shares)
    assert report == {
        "n_samples": 20,
        "n_features": 8,
        "center": center,
        "effective_rank": rank.effective_rank(Z, center=center),
        "rankme": rank.rankme(Z, center=center),
        "stable_rank": rank.stable_rank(Z, center=center),
        "participation_ratio": rank.participation_ratio(Z, center=center),
        "numerical_rank": {t: rank.numerical_rank(Z, t, center=center) for t in tols},
        "variance_rank": {p: rank.variance_rank(Z, p, center=center) for p in shares},
    }


def test_report_centres_by_default():
    assert rank.rank_report(np.ones((3, 2)))["effective_rank"] == 0.0
    # The exponential of an entropy: one up to rounding.
    np.testing.assert_allclose(
        rank.rank_report(np.ones((3, 2)), center=False)["effective_rank"],
        1.0,
        rtol=1e-12,
    )


# Alignment


@given(seed=seeds)
@relaxed
def test_alignment_is_of_the_principal_angles(seed):
    A, B = gaussian(seed, 9, 6), gaussian(seed + 1, 7, 6)
    axes = [np.linalg.svd(matrix)[2][:3].T for matrix in (A, B)]
    expected = np.mean(np.cos(linalg.subspace_angles(*axes)) ** 2)
    assert rank.subspace_alignment(A, B, 3) == pytest.approx(expected)
    # The roles, the scale and a rotation of all columns change nothing.
    rotation = np.linalg.qr(gaussian(seed + 2, 6, 6))[0]
    assert rank.subspace_alignment(1e200 * B @ rotation, A @ rotation, 3) == (
        pytest.approx(expected)
    )


def test_alignment_of_known_directions():
    A = np.diag([3.0, 2.0, 1.0, 0.0])
    assert rank.subspace_alignment(A, A[::-1], 2) == pytest.approx(1.0)
    assert rank.subspace_alignment(A, np.diag([0.0, 1.0, 2.0, 3.0]), 2) == 0.0
    # No more directions than there are, and all of them are all.
    assert rank.subspace_alignment(A, np.diag([1.0, 0.0, 0.0, 0.0]), 3) == 1.0
    assert rank.subspace_alignment(np.eye(4), gaussian(0, 9, 4), 4) == pytest.approx(1)


def test_alignment_with_nothing_is_unknown():
    assert np.isnan(rank.subspace_alignment(np.zeros((2, 3)), np.eye(3), 1))


@pytest.mark.parametrize("n_directions", [0, 4, 1.5])
def test_alignment_refuses_what_it_cannot_take(n_directions):
    with pytest.raises(ValueError, match="n_directions must be an int from 1 to 3"):
        rank.subspace_alignment(np.eye(3), np.eye(3), n_directions)
    with pytest.raises(ValueError, match="B must have the 3 columns of A"):
        rank.subspace_alignment(np.eye(3), np.eye(4), 1)
