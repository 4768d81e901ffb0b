"""No label, sign or choice hangs on the last bit of a number.

Products round differently on other processors, with other threads, and for one row than
for many. Here each number goes up or down by a unit in the last place, or stays.
"""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.base import BaseEstimator, ClassifierMixin

from sksoftrank import OODDetector, RankCompressor, SoftRankMLPClassifier
from sksoftrank.detectors._methods import METHODS
from sksoftrank.ood import detection_report
from sksoftrank.rank import variance_rank
from sksoftrank.search.ood.choice import (
    Criterion,
    Outcome,
    choose,
    pareto_front,
    pick_finalists,
    rounded,
)
from sksoftrank.training._stopping import BestEpoch

few = settings(max_examples=25)
seeds = st.integers(0, 2**32 - 1)
every_method = pytest.mark.parametrize("method", sorted(METHODS))


def nudge(values, seed):
    """Return each value moved by a unit in the last place, at random, or not at all."""
    values = np.asarray(values)
    steps = np.random.default_rng(seed).integers(-1, 2, values.shape)
    towards = np.where(steps == 0, values, np.where(steps > 0, np.inf, -np.inf))
    return np.nextafter(values, towards.astype(values.dtype))


@given(seeds)
@few
def test_a_nudge_is_one_unit_in_the_last_place(seed):
    for dtype in (np.float32, np.float64):
        values = np.array([1.5, -1.5, 0.0, 1e30] * 10, dtype=dtype)
        moved = nudge(values, seed)
        assert moved.dtype == dtype
        assert (np.abs(moved - values) <= np.spacing(np.abs(values))).all()
        assert np.unique(np.sign(moved - values)).tolist() == [-1, 0, 1]


# -- Detectors ------------------------------------------------------------------------


class Shaky(ClassifierMixin, BaseEstimator):
    """A linear classifier whose products round anew with each `seed`, None as they are.

    Features are the rows.
    """

    def __init__(self, weights, offset, seed=None, dtype=np.float64):
        self.weights = weights
        self.offset = offset
        self.seed = seed
        self.dtype = dtype

    def fit(self, X, y=None):
        self.n_features_in_ = np.shape(X)[1]
        self.classes_ = np.arange(np.shape(self.weights)[1])
        return self

    def _rounded(self, values):
        values = np.asarray(values, dtype=self.dtype)
        return values if self.seed is None else nudge(values, self.seed)

    def embed(self, X):
        return self._rounded(X)

    def decision_function(self, X):
        return self._rounded(np.asarray(X) @ self.weights + self.offset)

    def predict(self, X):
        return (np.asarray(X) @ self.weights + self.offset).argmax(axis=1)


def spread_out(rng):
    return rng.standard_normal((100, 6))


def repeated(rng):
    """Return few different rows, in the threshold's neighbourhood too."""
    return rng.standard_normal((6, 6))[rng.permutation(np.arange(100) % 6)]


def lattice(rng):
    """Return rows whose products are equal but for the order of their sums."""
    return rng.choice([-0.3, 0.1, 0.7], (100, 6))


@every_method
@pytest.mark.parametrize("make_rows", [spread_out, repeated, lattice])
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@given(seed=seeds)
@settings(max_examples=8)
def test_decisions_of_a_detector(method, make_rows, dtype, seed):
    rng = np.random.default_rng(0)
    Z = make_rows(rng) + 2.0
    y = np.arange(len(Z)) % 3
    weights, offset = rng.choice([-0.7, 0.2, 0.9], (6, 3)), np.array([1.0, 0.5, 0.9])

    def calibrated(seed):
        clf = Shaky(weights, offset, seed, dtype).fit(Z)
        return OODDetector(clf, method, n_neighbors=5, contamination=0.2).fit(Z, y)

    expected = calibrated(None).predict(Z)
    detector = calibrated(seed)
    np.testing.assert_array_equal(detector.predict(Z), expected)
    # Looked at again, they round in another way.
    detector.estimator_.set_params(seed=seed + 1)
    np.testing.assert_array_equal(detector.predict(Z), expected)
    np.testing.assert_array_equal(
        np.concatenate([detector.predict(Z[i : i + 1]) for i in range(len(Z))]),
        expected,
    )
    if not METHODS[method].is_optimistic:
        assert (expected == 1).mean() >= 0.8


@pytest.mark.parametrize("width", [2, 40])
@given(seed=seeds)
@few
def test_equal_rows_are_no_distance_apart(width, seed):
    """Found by a tree or, of many columns, from products."""
    Z = np.repeat(np.random.default_rng(seed).standard_normal((5, width)), 12, axis=0)
    clf = Shaky(np.ones((width, 2)), np.zeros(2), seed).fit(Z)
    detector = OODDetector(clf, "knn").fit(Z)
    np.testing.assert_array_equal(detector.score_samples(nudge(Z, seed)), 0.0)
    assert (detector.predict(Z) == 1).all()
    assert (detector.predict(np.roll(Z, 1, axis=1) + 1.0) == -1).all()


@pytest.mark.parametrize("method", ["msp", "entropy", "max_logit", "energy", "react"])
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@given(seed=seeds)
@few
def test_a_constant_classifier_rejects_nothing(method, dtype, seed):
    Z = np.random.default_rng(0).standard_normal((40, 4))
    weights, offset = np.zeros((4, 3)), np.array([0.3, 0.1, -0.7])
    clf = Shaky(weights, offset, seed, dtype).fit(Z)
    detector = OODDetector(clf, method).fit(Z)
    clf.set_params(seed=seed + 1)
    assert (detector.predict(Z) == 1).all()


# -- Sizes ----------------------------------------------------------------------------


def equal_directions(n, d):
    """Return centred rows with `d` equal singular values."""
    signs = np.array([[1.0]])
    while len(signs) < n:
        signs = np.block([[signs, signs], [signs, -signs]])
    rotation = np.linalg.qr(np.random.default_rng(0).standard_normal((d, d)))[0]
    return signs[:n, 1 : d + 1] @ rotation


@pytest.mark.parametrize("d", [4, 5, 10])
@given(seed=seeds)
@few
def test_shares_that_are_just_reached(d, seed):
    Z = nudge(equal_directions(64, d), seed)
    for size in range(1, d):
        share = size / d
        assert RankCompressor(share).fit(Z).n_components_ == size
        assert variance_rank(Z, share) == size
        clf = Shaky(np.eye(d, 3), np.zeros(3)).fit(Z)
        residual = OODDetector(clf, "residual", n_components=share).fit(Z)
        assert residual._method.null_space.shape == (d, d - size)
        neco = OODDetector(clf, "neco", n_components=share).fit(Z)
        assert neco._method.components.shape == (d, size)


@given(seeds, seeds)
@few
def test_size_by_a_head(seed, other):
    rng = np.random.default_rng(seed)
    Z = rng.standard_normal((60, 5)) * [4.0, 2.0, 1.0, 0.5, 0.1] + 3.0
    weights = torch.from_numpy(rng.standard_normal((5, 3)))

    def head(z):
        return z @ weights

    y = (Z @ weights.numpy()).argmax(axis=1)
    expected = RankCompressor().fit(Z, y, head=head).n_components_
    again = RankCompressor().fit(nudge(Z, other), y, head=head)
    assert again.n_components_ == expected


# -- Choices --------------------------------------------------------------------------


@given(seeds, st.sampled_from([0.0, 1e-4]))
@few
def test_the_best_epoch(seed, tol):
    accuracies = np.array([0.7, 0.8, 0.8, 0.8, 0.9, 0.9, 0.9])
    losses = np.array([0.6, 0.5, 0.5, 0.4, 0.3, 0.3, 0.3])
    stopping = BestEpoch(3, tol)
    best = [
        stopping.update(epoch, accuracy, loss)
        for epoch, (accuracy, loss) in enumerate(
            zip(nudge(accuracies, seed), nudge(losses, seed // 2), strict=True), 1
        )
    ]
    assert best == [True, True, False, True, True, False, False]
    assert stopping.epoch == 5


def outcome(ood, id, n_components, seed, is_baseline=False):
    return Outcome(
        nudge(np.array([ood]), seed),
        nudge(np.array([id]), seed // 2),
        n_components,
        is_baseline,
    )


@pytest.mark.parametrize("aggregate", ["mean", "worst"])
@pytest.mark.parametrize("pareto", [False, True])
@pytest.mark.parametrize("scale", [1.0, 1e6])
@given(seed=seeds)
@few
def test_the_choice_of_a_search(aggregate, pareto, scale, seed):
    rng = np.random.default_rng(seed)
    scores = scale * np.array([0.71, 0.73, 0.72])
    better = scale * np.array([0.81, 0.84, 0.82])

    def all_of(*rows):
        return [
            outcome(ood, scale * id, size, rng.integers(2**32), is_baseline)
            for ood, id, size, is_baseline in rows
        ]

    def chosen(outcomes):
        criterion = Criterion(0.5, aggregate)
        places = pick_finalists(outcomes, 2, criterion, pareto=pareto)
        return choose(outcomes, {k: outcomes[k] for k in places}, criterion).index

    # Equal scores: the fewer columns, then the earlier.
    ties = all_of(
        (scores, 0.9, 4, True), (better, 0.9, 8, False), (better, 0.9, 3, False)
    )
    ties += all_of((better, 0.9, 3, False))
    assert chosen(ties) == 2
    assert pareto_front(ties, aggregate) == [2, 3]
    # No gain: the baseline. Nor half of 0.01, of which more than 0.005 is asked.
    equal = all_of((scores, 0.9, 4, True), (scores, 0.9, 3, False))
    assert chosen(equal) == 0
    if scale == 1.0:
        edge = all_of((scores, 0.9, 4, True), (scores + 0.01, 0.9, 3, False))
        assert chosen(edge) == 0


@given(st.integers(0, 2**14), st.integers(0, 14), seeds)
def test_equal_shares_of_rows_round_alike(numerator, exponent, seed):
    """Of decimal places, 1 / 8192 = 0.0001220703125 lies halfway between two."""
    n = 2**exponent
    score = (numerator % (n + 1)) / n
    assert rounded(float(nudge(score, seed))) == rounded(score)


def test_a_tie_of_logits_is_the_first_class_to_all():
    X = np.random.default_rng(0).standard_normal((30, 4))
    for n_classes in (2, 3):
        y = np.array(["a", "b", "c"])[np.arange(30) % n_classes]
        clf = SoftRankMLPClassifier(4, max_epochs=1, random_state=0).fit(X, y)
        with torch.no_grad():
            for parameter in clf.module_.output.parameters():
                parameter.zero_()
        np.testing.assert_array_equal(clf.decision_function(X), 0.0)
        np.testing.assert_array_equal(clf.predict_proba(X), 1 / n_classes)
        np.testing.assert_array_equal(clf.predict(X), "a")


@given(seeds)
@few
def test_measures_of_detection_of_distinct_scores(seed):
    inside, outside = np.random.default_rng(0).standard_normal((2, 50))
    expected = detection_report(inside, outside)
    assert detection_report(nudge(inside, seed), nudge(outside, seed)) == expected
