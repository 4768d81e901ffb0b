"""The compressor: scikit-learn's contract, PCA as reference, the head-aware size."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.decomposition import PCA
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

from sksoftrank import RankCompressor
from sksoftrank.theory import argmaxable

relaxed = settings(max_examples=25)
seeds = st.integers(0, 2**32 - 1)
SHAPES = [(60, 8), (8, 60), (9, 9)]


def representation(n, d, seed=0, dtype=np.float64):
    """Return rows with a falling spectrum, away from the origin."""
    rng = np.random.default_rng(seed)
    spread = rng.standard_normal((n, d)) * np.geomspace(1.0, 0.05, d)
    rotation = np.linalg.qr(rng.standard_normal((d, d)))[0]
    return (spread @ rotation + rng.standard_normal(d)).astype(dtype)


def affine_head(d, c, seed=0):
    rng = np.random.default_rng(seed)
    weight = torch.from_numpy(rng.standard_normal((d, c)))
    bias = torch.from_numpy(rng.standard_normal(c))
    return lambda z: z @ weight + bias


def aligned(found, expected):
    """Return the signs that turn each row of `found` towards that of `expected`."""
    return np.sign((found * expected).sum(axis=1))


@pytest.mark.kernels
@parametrize_with_checks([RankCompressor()])
def test_scikit_learn(estimator, check):
    check(estimator)


# PCA


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize(("n", "d"), SHAPES)
@pytest.mark.parametrize("n_components", [3, 0.9, 0.999])
def test_agrees_with_pca(n, d, dtype, n_components):
    X, new = representation(n + 7, d, dtype=dtype)[:n], representation(7, d, 1, dtype)
    tol = 1e-9 if dtype == np.float64 else 2e-5
    ours = RankCompressor(n_components).fit(X)
    pca = PCA(n_components, svd_solver="full").fit(X.astype(np.float64))

    assert ours.n_components_ == pca.n_components_
    k = ours.n_components_
    assert ours.singular_values_.shape == (d,)
    # Values from float32 rows are computed in float64 too.
    np.testing.assert_allclose(ours.singular_values_[:k], pca.singular_values_)
    np.testing.assert_allclose(
        ours.explained_variance_ratio_, pca.explained_variance_ratio_
    )
    np.testing.assert_allclose(ours.mean_, pca.mean_, atol=tol)
    signs = aligned(ours.components_, pca.components_)
    np.testing.assert_allclose(
        ours.components_, signs[:, None] * pca.components_, atol=tol
    )
    Z = ours.transform(new)
    np.testing.assert_allclose(Z, signs * pca.transform(new), atol=tol)
    back = ours.inverse_transform(Z)
    np.testing.assert_allclose(
        back, pca.inverse_transform(pca.transform(new)), atol=2 * tol
    )
    assert Z.dtype == back.dtype == ours.components_.dtype == ours.mean_.dtype == dtype


@pytest.mark.parametrize(("n", "d"), SHAPES)
def test_all_directions_are_an_orthonormal_basis(n, d):
    X = representation(n, d)
    ours = RankCompressor(None).fit(X)
    assert ours.n_components_ == d
    np.testing.assert_allclose(
        ours.components_ @ ours.components_.T, np.eye(d), atol=1e-12
    )
    reference = np.linalg.svd(X - X.mean(axis=0), compute_uv=False)
    reference = np.pad(reference, (0, d - len(reference)))
    np.testing.assert_allclose(ours.singular_values_, reference, atol=1e-9)
    assert ours.explained_variance_ratio_.sum() == pytest.approx(1.0)
    new = representation(5, d, seed=1)
    np.testing.assert_allclose(ours.inverse_transform(ours.transform(new)), new)


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_directions_that_the_rows_lack_have_no_variance(dtype):
    X = representation(50, 3) @ np.random.default_rng(0).standard_normal((3, 10))
    singular_values = RankCompressor().fit(X.astype(dtype)).singular_values_
    assert (singular_values[:3] > 0).all()
    np.testing.assert_array_equal(singular_values[3:], 0.0)


@pytest.mark.parametrize(("n", "d"), SHAPES)
def test_signs_do_not_depend_on_the_order_of_rows(n, d):
    X = representation(n, d)
    shuffled = np.random.default_rng(0).permutation(X)
    first, second = (RankCompressor(3).fit(rows) for rows in (X, shuffled))
    np.testing.assert_allclose(first.components_, second.components_, atol=1e-9)


# Sample weights


@pytest.mark.parametrize(("n", "d"), [(40, 6), (12, 10), (6, 30)])
@relaxed
@given(seed=seeds)
def test_weights_are_repetition(n, d, seed):
    X = representation(n, d, seed)
    counts = np.random.default_rng(seed).integers(0, 4, n)
    counts[:5] += 1  # So that four directions have variance.
    weighted = RankCompressor(4).fit(X, sample_weight=counts)
    repeated = RankCompressor(4).fit(np.repeat(X, counts, axis=0))
    np.testing.assert_allclose(weighted.mean_, repeated.mean_)
    np.testing.assert_allclose(
        weighted.singular_values_, repeated.singular_values_, atol=1e-6
    )
    np.testing.assert_allclose(
        weighted.explained_variance_ratio_, repeated.explained_variance_ratio_
    )
    signs = aligned(weighted.components_, repeated.components_)
    np.testing.assert_allclose(
        weighted.components_, signs[:, None] * repeated.components_, atol=1e-6
    )


@pytest.mark.parametrize("scale", [1e-40, 1e-8, 1e8, 1e40])
@pytest.mark.parametrize(("n", "d"), SHAPES)
def test_scale_of_the_weights_does_not_matter(n, d, scale):
    X = representation(n, d)
    plain = RankCompressor().fit(X)
    scaled = RankCompressor().fit(X, sample_weight=np.full(n, scale))
    assert scaled.n_components_ == plain.n_components_
    np.testing.assert_allclose(
        scaled.explained_variance_ratio_, plain.explained_variance_ratio_
    )
    np.testing.assert_allclose(
        scaled.singular_values_ / np.sqrt(scale), plain.singular_values_, atol=1e-9
    )


def test_negative_weights():
    with pytest.raises(ValueError, match=r"[Nn]egative"):
        RankCompressor().fit(np.eye(3), sample_weight=[1, -1, 1])


# Size


@pytest.mark.parametrize(
    ("n_components", "expected"),
    [
        (1, 1),
        (4, 4),
        (0.5, 1),
        (0.8, 2),
        (0.97, 3),
        ("auto", 3),
        (0.9999, 4),
        (None, 4),
    ],
)
def test_size_from_the_spectrum(n_components, expected):
    # Variances of 64, 32, 8 and 0.25 in 104.25: shares of 61, 92, 99.8 and 100 %.
    s = np.sqrt([64.0, 32.0, 8.0, 0.25])
    basis = np.linalg.qr(
        np.column_stack([np.ones(20), np.random.default_rng(0).random((20, 4))])
    )[0][:, 1:]
    X = basis * s + 5.0
    ours = RankCompressor(n_components).fit(X)
    assert ours.n_components_ == expected
    assert ours.components_.shape == (expected, 4)
    assert ours.transform(X).shape == (20, expected)
    assert ours.explained_variance_ratio_.shape == (expected,)
    np.testing.assert_allclose(ours.singular_values_, s)
    assert list(ours.get_feature_names_out()) == [
        f"rankcompressor{i}" for i in range(expected)
    ]


def margins_of(X, y, head):
    """Return by how much the score of each row's class leads the next."""
    scores = head(torch.from_numpy(X)).numpy()
    own = scores[np.arange(len(X)), y]
    scores[np.arange(len(X)), y] = -np.inf
    return own - scores.max(axis=1)


def reached(X, mean, kept, head):
    """Return the classes that rows, or else any embedding of directions, are given."""
    rows = mean + (X - mean) @ kept.T @ kept
    scores = head(torch.from_numpy(np.vstack([rows, mean, mean + kept]))).numpy()
    offset, effects = scores[len(X)], scores[len(X) + 1 :] - scores[len(X)]
    on_rows = np.unique(scores[: len(X)].argmax(axis=1))
    return {*on_rows, *np.flatnonzero(argmaxable(effects.T, offset))}


def brute_force(X, y, weight, head, tol):
    """Return the fewest directions whose reconstruction is expected to do as well.

    And which lose no class of the rows that all directions reach.
    """
    mean = np.average(X, axis=0, weights=weight)
    centred = X - mean
    directions = np.linalg.svd(np.sqrt(weight)[:, None] * centred)[2]
    full = margins_of(X, y, head)
    needed = {*y} & reached(X, mean, directions, head)

    for size in range(1, X.shape[1] + 1):
        kept = directions[:size]
        found = margins_of(mean + centred @ kept.T @ kept, y, head)
        on_rows = (found < 0) * 1.0 - (full < 0)
        of_margins = (found < 0.8 * np.maximum(full, 0)) * 1.0 - (full < 0)
        loss = max(
            np.average(on_rows, weights=weight),
            np.average(of_margins, weights=weight) / 8,
        )
        if loss <= tol + 1e-12 and needed <= reached(X, mean, kept, head):
            return size
    return X.shape[1]


@relaxed
@given(
    seed=seeds,
    n=st.integers(4, 60),
    d=st.integers(1, 12),
    c=st.integers(2, 6),
    tol=st.sampled_from([0.0, 0.005, 0.05, 0.3]),
    weighted=st.booleans(),
)
def test_auto_is_the_brute_force_search(seed, n, d, c, tol, weighted):
    rng = np.random.default_rng(seed)
    X, head = representation(n, d, seed), affine_head(d, c, seed)
    # Labels that the head mostly, but not always, gets right.
    y = head(torch.from_numpy(X)).argmax(dim=1).numpy()
    y = np.where(rng.random(n) < 0.2, rng.integers(0, c, n), y)
    weight = rng.integers(1, 5, n).astype(float) if weighted else np.ones(n)
    ours = RankCompressor(tol=tol).fit(
        X, y, sample_weight=weight if weighted else None, head=head
    )
    assert ours.n_components_ == brute_force(X, y, weight, head, tol)


def scores_by_direction(*contributions):
    """Return rows, their classes and a head of two, one contribution a direction.

    The rows are all combinations of signs, so that the axes are the principal
    directions, of variances 16, 9, 4 and so on, and the classes' scores differ by the
    signed sum of the contributions.
    """
    d = len(contributions)
    signs = np.array(list(itertools.product([1.0, -1.0], repeat=d)))
    spread = np.arange(4.0, 4.0 - d, -1.0)
    difference = torch.from_numpy(np.array(contributions) / spread)

    def head(z):
        return torch.stack([torch.zeros(len(z), dtype=z.dtype), z @ difference], dim=1)

    return signs * spread, (signs @ contributions > 0).astype(int), head


@pytest.mark.parametrize(
    ("contributions", "tol", "expected"),
    [
        # No margin falls from above 12.5 to the 10 of the first direction.
        ((10.0, 2.0, 0.25), 0.0, 1),
        # A quarter of them does, from 12.6: a loss of 1/32.
        ((10.0, 2.4, 0.2), 0.03, 2),
        ((10.0, 2.4, 0.2), 0.032, 1),
        # The first direction alone gets half of the rows wrong: no fewer than that.
        ((10.0, 12.0, 0.25), 0.49, 2),
        ((10.0, 12.0, 0.25), 0.51, 1),
        # A fall of the margin from 4.3 to 4 is little enough, one from 2.9 to 2 isn't.
        ((3.0, 1.0, 0.3), 0.0, 2),
        ((3.0, 1.0, 0.9), 0.0, 3),
    ],
)
def test_auto_by_the_margins(contributions, tol, expected):
    X, y, head = scores_by_direction(*contributions)
    assert RankCompressor(tol=tol).fit(X, y, head=head).n_components_ == expected


def test_auto_keeps_accuracy_on_new_rows_of_smaller_margins():
    # All rows of the fit are right by the first direction alone; of new rows, between
    # the classes, it gets half wrong.
    X, y, head = scores_by_direction(10.0, 6.0)
    ours = RankCompressor().fit(X, y, head=head)
    new = X * [0.5, 1.0]
    compressed = ours.inverse_transform(ours.transform(new))
    predicted = [head(torch.from_numpy(rows)).argmax(1) for rows in (new, compressed)]
    np.testing.assert_array_equal(*predicted)


@relaxed
@given(seed=seeds, n=st.integers(4, 60), d=st.integers(1, 12), c=st.integers(2, 6))
def test_auto_keeps_more_for_a_smaller_tolerance(seed, n, d, c):
    X, head = representation(n, d, seed), affine_head(d, c, seed)
    y = np.random.default_rng(seed).integers(0, c, n)
    tols = [0.0, 0.005, 0.05, 0.3, 0.999]
    sizes = [RankCompressor(tol=t).fit(X, y, head=head).n_components_ for t in tols]
    assert sizes == sorted(sizes, reverse=True)
    if c == 2:  # More may lie between each other along one direction.
        assert sizes[-1] == 1


@relaxed
@given(seed=seeds, tol=st.sampled_from([0.0, 0.005, 0.05]))
def test_auto_depends_on_what_the_rows_are_alone(seed, tol):
    # Not on their order or number of copies, nor on axes and units of either space.
    rng = np.random.default_rng(seed)
    n, d = 40, 6
    X, head = representation(n, d, seed), affine_head(d, 4, seed)
    y = rng.integers(0, 4, n)
    counts = rng.integers(1, 4, n)
    rotation = np.linalg.qr(rng.standard_normal((d, d)))[0]
    back = torch.from_numpy(rotation.T)
    order = rng.permutation(np.repeat(np.arange(n), counts))

    def size(X, y, weight, head):
        return RankCompressor(tol=tol).fit(X, y, weight, head=head).n_components_

    expected = size(X, y, counts, head)
    assert size(X, y, 1e-3 * counts, head) == expected
    assert size(X[order], y[order], None, head) == expected
    assert size(np.tile(X[order], (2, 1)), np.tile(y[order], 2), None, head) == expected
    assert size(X @ rotation, y, counts, lambda z: head(z @ back)) == expected
    assert size(X, y, counts, lambda z: 1e-3 * head(z) + z[:, :1]) == expected


def test_auto_drops_what_the_head_does_not_read():
    # The largest direction says nothing of the class; two small ones do.
    rng = np.random.default_rng(0)
    X = rng.standard_normal((300, 5)) * [10.0, 1.0, 0.9, 0.1, 0.05]
    weight = torch.zeros(5, 3, dtype=torch.float64)
    weight[1, 0], weight[2, 1] = 1.0, 1.0

    def head(z):
        return z @ weight

    y = head(torch.from_numpy(X)).argmax(dim=1).numpy()
    assert RankCompressor().fit(X, y, head=head).n_components_ == 3
    # Along one direction a class lies between the two others.
    assert RankCompressor(tol=0.9).fit(X, y, head=head).n_components_ == 2
    # Without a head the variance alone decides: the first direction holds 98 %.
    assert RankCompressor().fit(X, y).n_components_ == 2


def test_auto_weighs_the_rows_that_it_may_get_wrong():
    # The second direction matters to the last four rows alone.
    X = np.array([[10.0, 0.0], [-10.0, 0.0]] * 2 + [[-1.0, 1.0], [1.0, -1.0]] * 2)
    y = np.array([0, 1] * 4)
    scores = torch.tensor([[1.0, 0.0], [3.0, 0.0]], dtype=torch.float64)

    def head(z):
        return z @ scores

    light = np.repeat([1.0, 1e-3], 4)
    fitted = [RankCompressor().fit(X, y, w, head=head) for w in (None, light)]
    assert [compressor.n_components_ for compressor in fitted] == [2, 1]


def test_auto_with_a_head_in_single_precision_rows():
    X, head = representation(40, 6, dtype=np.float32), affine_head(6, 3)
    y = head(torch.from_numpy(X).double()).argmax(dim=1).numpy()
    ours = RankCompressor(tol=0.0).fit(X, y, head=head)
    expected = brute_force(X.astype(np.float64), y, np.ones(40), head, 0.0)
    assert ours.n_components_ == expected
    assert ours.components_.dtype == np.float32


def classes_on_a_line(n_small=4):
    """Return rows of three classes of which the large direction tells two alone.

    The third leads only along the second direction, and only by its own few rows.
    """
    X = np.array([[9.0, 0.0, 0.0], [-9.0, 0.0, 0.0]] * 200)
    X = np.vstack([X, [[0.0, 2.0, 0.0]] * n_small, [[0.0, 0.0, 0.1], [0.0, 0.0, -0.1]]])
    y = np.r_[[0, 1] * 200, [2] * n_small, 0, 1]
    scores = torch.tensor([[1.0, -1.0, 0.0], [0.0, 0.0, 2.0], [0.0] * 3]).double()
    bias = torch.tensor([0.0, 0.0, -1.0]).double()
    return X, y, lambda z: z @ scores + bias


def test_auto_keeps_what_a_rare_class_needs():
    X, y, head = classes_on_a_line(n_small=1)
    for tol in (0.01, 0.99):  # The one row may be lost; its class may not.
        ours = RankCompressor(tol=tol).fit(X, y, head=head)
        assert ours.n_components_ == 2
        kept = ours.inverse_transform(ours.transform(X))
        assert head(torch.from_numpy(kept)).argmax(dim=1).unique().tolist() == [0, 1, 2]


def test_auto_keeps_nothing_for_a_class_that_the_rows_lack():
    X, y, head = classes_on_a_line()
    for labels, weight in ((np.where(y == 2, 0, y), None), (y, y != 2)):
        ours = RankCompressor(tol=0.9).fit(X, labels, weight, head=head)
        assert ours.n_components_ == 1


def test_auto_keeps_nothing_for_a_class_that_the_head_cannot_reach():
    X, y, _ = classes_on_a_line()
    scores = torch.tensor([[1.0, -1.0, 0.0]] + [[0.0] * 3] * 2).double()
    ours = RankCompressor(tol=0.9).fit(X, y, head=lambda z: z @ scores)
    assert ours.n_components_ == 1


@pytest.mark.parametrize("n_components", [1, 0.5])
def test_too_few_components_for_a_class_warn(n_components):
    X, y, head = classes_on_a_line()
    match = (
        rf"n_components={n_components} must keep .* but with 1 the head can give no "
        r"embedding the classes at positions \[2\] of its output. Keep at least 2"
    )
    with pytest.warns(UserWarning, match=match):
        ours = RankCompressor(n_components).fit(X, y, head=head)
    assert ours.n_components_ == 1
    # Nothing to say of enough, of other rows, or without a head.
    RankCompressor(2).fit(X, y, head=head)
    RankCompressor(n_components).fit(X[y < 2], y[y < 2], head=head)
    RankCompressor(n_components).fit(X, y)


def test_a_class_of_no_row_but_within_reach_is_not_lost():
    # Its rows are all taken for others, but farther out it would be the largest.
    X, y, _ = classes_on_a_line()
    scores = torch.tensor([[1.0, -1.0, 2.0], [0.0] * 3, [0.0] * 3]).double()
    bias = torch.tensor([0.0, 0.0, -50.0]).double()
    RankCompressor(1).fit(X, y, head=lambda z: z @ scores + bias)


def test_head_matters_to_auto_alone():
    X, head = representation(40, 6), affine_head(6, 3)
    y = np.zeros(40, dtype=int)
    for n_components, expected in ((2, 2), (None, 6)):
        ours = RankCompressor(n_components).fit(X, y, head=head)
        assert ours.n_components_ == expected


# Degenerate input


@pytest.mark.parametrize("weight", [None, 1e6])
@pytest.mark.parametrize(("n", "d"), [(1, 1), (1, 5), (10, 3), (3, 10), (5_000, 3)])
def test_equal_rows_keep_one_component_of_zeros(n, d, weight):
    for seed in range(3):
        row = np.random.default_rng(seed).standard_normal((1, d))
        X = np.repeat(row, n, axis=0)
        ours = RankCompressor().fit(
            X, sample_weight=None if weight is None else np.full(n, weight)
        )
        assert ours.n_components_ == 1
        np.testing.assert_array_equal(ours.singular_values_, np.zeros(d))
        np.testing.assert_array_equal(ours.explained_variance_ratio_, [0.0])
        assert np.linalg.norm(ours.components_) == pytest.approx(1.0)
        np.testing.assert_allclose(ours.transform(X), np.zeros((n, 1)), atol=1e-10)
        np.testing.assert_allclose(ours.inverse_transform(ours.transform(X)), X)


def test_equal_rows_and_others_without_weight():
    row = np.random.default_rng(0).standard_normal(4)
    X = np.vstack([[1e9] * 4, np.repeat(row[None], 1_000, axis=0)])
    ours = RankCompressor().fit(X, sample_weight=np.arange(1_001) > 0)
    np.testing.assert_array_equal(ours.singular_values_, np.zeros(4))
    np.testing.assert_array_equal(ours.mean_, row)


def test_rows_without_weight_hide_no_direction():
    X, far = representation(30, 4), np.full((1, 4), 1e18)
    alone = RankCompressor(None).fit(X)
    beside = RankCompressor(None).fit(
        np.vstack([far, X]), sample_weight=np.arange(31) > 0
    )
    np.testing.assert_allclose(beside.singular_values_, alone.singular_values_)


def test_equal_rows_with_a_head():
    X, head = np.ones((6, 4)), affine_head(4, 3)
    ours = RankCompressor().fit(X, [0, 1, 2, 0, 1, 2], head=head)
    assert ours.n_components_ == 1


@pytest.mark.parametrize(
    ("n", "y", "scale", "bias"),
    [
        (1, [1], 1.0, [0.0, 0.0, 0.0]),
        (20, [0] * 20, 1.0, [0.0, 1e3, 0.0]),
        (20, [1] * 20, 1.0, [0.0, 1e3, 0.0]),
        (20, [0, 1] * 10, 0.0, [0.0, 0.0, 0.0]),
        (20, [0] * 20, 1.0, [0.0]),
    ],
    ids=["one row", "all wrong", "all right", "constant head", "one class"],
)
def test_auto_where_no_direction_matters(n, y, scale, bias):
    linear, bias = affine_head(4, len(bias)), torch.tensor(bias, dtype=torch.float64)

    def head(z):
        return bias + scale * linear(z)

    X = representation(n, 4)
    assert RankCompressor(tol=0.0).fit(X, y, head=head).n_components_ == 1


def test_zero_matrix():
    ours = RankCompressor().fit(np.zeros((4, 3)))
    np.testing.assert_array_equal(ours.transform(np.zeros((2, 3))), np.zeros((2, 1)))


@pytest.mark.parametrize("scale", [1e-120, 1e120])
def test_scale_of_the_rows_does_not_matter(scale):
    X = representation(30, 5)
    plain, scaled = RankCompressor(0.99).fit(X), RankCompressor(0.99).fit(scale * X)
    np.testing.assert_allclose(
        scaled.explained_variance_ratio_, plain.explained_variance_ratio_
    )


def test_input_stays_as_it_was():
    X = representation(20, 4)
    copy = X.copy()
    ours = RankCompressor().fit(X, sample_weight=np.arange(20.0))
    ours.inverse_transform(ours.transform(X))
    np.testing.assert_array_equal(X, copy)


def read_only(values):
    values = values.copy()
    values.flags.writeable = False
    return values


@pytest.mark.parametrize(
    "view",
    [read_only, lambda a: a[::-1].copy()[::-1], lambda a: np.repeat(a, 2, axis=0)[::2]],
    ids=["read-only", "reversed", "strided"],
)
@pytest.mark.parametrize("argument", ["X", "y", "sample_weight"])
def test_arrays_of_any_layout(view, argument):
    head = affine_head(4, 2)
    arguments = {
        "X": representation(20, 4),
        "y": np.arange(20) % 2,
        "sample_weight": np.linspace(1.0, 2.0, 20),
    }
    expected = RankCompressor().fit(**arguments, head=head)
    arguments[argument] = view(arguments[argument])
    found = RankCompressor().fit(**arguments, head=head)
    np.testing.assert_array_equal(found.components_, expected.components_)


def test_a_pipeline_passes_labels_of_any_kind():
    X = representation(30, 5)
    labels = np.where(np.arange(30) % 2, "odd", "even")
    steps = make_pipeline(StandardScaler(), RankCompressor(2))
    assert steps.fit_transform(X, labels).shape == (30, 2)


# Errors


@pytest.mark.parametrize("shape", SHAPES)
def test_more_components_than_columns(shape):
    d = shape[1]
    with pytest.raises(
        ValueError, match=f"n_components must be at most the {d} .*, got {d + 1}"
    ):
        RankCompressor(d + 1).fit(representation(*shape))


@pytest.mark.parametrize("n_components", [0, -1, 1.5, 1.0, 0.0, "many"])
def test_invalid_n_components(n_components):
    with pytest.raises(ValueError, match="'n_components' parameter of RankCompressor"):
        RankCompressor(n_components).fit(np.eye(3))


@pytest.mark.parametrize("tol", [-0.1, 1.0, "none", None])
def test_invalid_tol(tol):
    with pytest.raises(ValueError, match="'tol' parameter of RankCompressor"):
        RankCompressor(tol=tol).fit(np.eye(3))


@pytest.mark.parametrize("n_components", ["auto", 2])
def test_a_head_needs_the_classes(n_components):
    with pytest.raises(ValueError, match=r"y must hold the right class .* got None"):
        RankCompressor(n_components).fit(np.eye(3), head=affine_head(3, 2))


@pytest.mark.parametrize("n_components", ["auto", 2])
@pytest.mark.parametrize(
    ("y", "found"),
    [
        (["even", "odd", "even"], "'even'"),
        (["0", "1", "0"], "'0'"),
        (np.array([0, "odd", 1], dtype=object), "'odd'"),
        ([0, 2, 1], "2"),
        ([0, -1, 1], "-1"),
        ([0.0, 0.5, 1.0], "0.5"),
        ([0.0, np.nan, 1.0], "nan"),
    ],
    ids=str,
)
def test_classes_must_be_columns_of_the_head(y, found, n_components):
    match = f"y must hold the right column .* from 0 to 1, got {found}. Encode the labe"
    with pytest.raises(ValueError, match=match):
        RankCompressor(n_components).fit(np.eye(3), y, head=affine_head(3, 2))


@pytest.mark.parametrize("dtype", [bool, np.uint8, float, object])
def test_classes_of_any_type_that_counts(dtype):
    X, head = representation(20, 4), affine_head(4, 2)
    y = np.arange(20) % 2
    expected = RankCompressor().fit(X, y, head=head)
    found = RankCompressor().fit(X, y.astype(dtype), head=head)
    assert found.n_components_ == expected.n_components_


def test_mismatched_lengths():
    with pytest.raises(ValueError, match="inconsistent numbers of samples"):
        RankCompressor().fit(np.eye(3), [0, 1], head=affine_head(3, 2))
    with pytest.raises(ValueError, match="sample_weight"):
        RankCompressor().fit(np.eye(3), sample_weight=[1.0, 2.0])


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_not_finite(bad):
    X = np.eye(3)
    X[1, 1] = bad
    with pytest.raises(ValueError, match=r"NaN|infinity"):
        RankCompressor().fit(X)
    with pytest.raises(ValueError, match=r"NaN|infinity"):
        RankCompressor().fit(np.eye(3)).transform(X)


@pytest.mark.parametrize("shape", [(4, 3), (4, 1), (2,)])
def test_inverse_transform_of_another_width(shape):
    ours = RankCompressor(2).fit(representation(10, 4))
    with pytest.raises(ValueError, match="X must have the 2 columns") as error:
        ours.inverse_transform(np.zeros(shape))
    assert str(shape) in str(error.value)
