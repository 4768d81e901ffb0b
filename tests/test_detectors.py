"""Detectors: scikit-learn's contract, formulas, invariances, thresholds."""

import pickle

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats
from scipy.special import logsumexp, softmax, xlogy
from scipy.stats import ortho_group
from sklearn.base import BaseEstimator, ClassifierMixin, clone
from sklearn.datasets import load_digits, make_blobs
from sklearn.decomposition import PCA
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.ensemble import HistGradientBoostingClassifier, RandomForestClassifier
from sklearn.exceptions import NotFittedError
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LinearRegression, LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC
from sklearn.utils.estimator_checks import parametrize_with_checks
from sklearn.utils.validation import validate_data

from sksoftrank import (
    OODDetector,
    SoftRankEnsembleClassifier,
    SoftRankMLPClassifier,
    StackedGridSearchCV,
)
from sksoftrank.detectors._detector import _offset
from sksoftrank.detectors._methods import METHODS as _METHODS
from sksoftrank.detectors._rows import Rows
from sksoftrank.ood import auroc, fpr_at_tpr

ON_PROBABILITIES = ["msp", "entropy"]
ON_LOGITS = [*ON_PROBABILITIES, "max_logit", "energy"]
ON_FEATURES = ["knn", "mahalanobis", "relative_mahalanobis", "residual", "vim", "neco"]
ON_FEATURES += ["react"]
# Their threshold is for new rows, which those of `fit` would flatter.
OPTIMISTIC = ["knn", "mahalanobis", "relative_mahalanobis", "residual", "vim"]
EPS = float(np.finfo(np.float64).eps)

every_method = pytest.mark.parametrize("method", [*ON_LOGITS, *ON_FEATURES])
feature_method = pytest.mark.parametrize("method", ON_FEATURES)


def test_every_method_is_tested():
    assert set(_METHODS) == {*ON_LOGITS, *ON_FEATURES}


# -- Doubles --------------------------------------------------------------------------


class Plain(ClassifierMixin, BaseEstimator):
    """A classifier whose features are its rows and whose head is the one given."""

    def __init__(self, weights, offset):
        self.weights = weights
        self.offset = offset

    def fit(self, X, y=None):
        self.n_features_in_ = np.shape(X)[1]
        self.classes_ = np.arange(np.shape(self.weights)[1])
        return self

    def embed(self, X):
        return np.asarray(X)

    def decision_function(self, X):
        return np.asarray(X) @ self.weights + self.offset

    def predict(self, X):
        return self.decision_function(X).argmax(axis=1)


class Means(ClassifierMixin, BaseEstimator):
    """Nearest mean; finds three classes without labels, as outlier checks give none."""

    def fit(self, X, y=None):
        X = validate_data(self, X, dtype=np.float64)
        if y is None:
            y = np.searchsorted(np.quantile(X[:, 0], [1 / 3, 2 / 3]), X[:, 0])
        y = np.asarray(y)
        self.classes_ = np.unique(y)
        means = np.array([X[y == c].mean(axis=0) for c in self.classes_])
        self.weights_, self.offset_ = 2 * means.T, -(means**2).sum(axis=1)
        return self

    def transform(self, X):
        return validate_data(self, X, dtype=np.float64, reset=False)

    def decision_function(self, X):
        return self.transform(X) @ self.weights_ + self.offset_

    def predict(self, X):
        return self.classes_[self.decision_function(X).argmax(axis=1)]

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.target_tags.required = False
        return tags


def plain(width, n_classes, seed=0):
    rng = np.random.default_rng(seed)
    clf = Plain(rng.standard_normal((width, n_classes)), rng.standard_normal(n_classes))
    return clf.fit(np.zeros((1, width)))


def draw(n=400, width=8, n_classes=3, seed=0, distance=4.0):
    rng = np.random.default_rng(seed)
    y = rng.integers(n_classes, size=n)
    return distance * np.eye(n_classes, width)[y] + rng.standard_normal((n, width)), y


# -- scikit-learn's contract ----------------------------------------------------------


def expected_failures(detector):
    if detector.method in OPTIMISTIC:
        reason = (
            "the threshold is for new rows: of those in `fit`, given again, fewer than "
            "contamination fall below"
        )
        return dict.fromkeys(
            ["check_outliers_train", "check_outliers_fit_predict"], reason
        )
    return {}


# Without "vim": the checks' rows have two columns and a mean logit of any sign.
@pytest.mark.kernels
@parametrize_with_checks(
    [
        OODDetector(Means()),
        *(OODDetector(Means(), method) for method in ("msp", "entropy", "max_logit")),
        *(
            OODDetector(Means(), method)
            for method in ("mahalanobis", "relative_mahalanobis", "react")
        ),
        *(OODDetector(Means(), method) for method in ("residual", "neco")),
        OODDetector(Means(), "knn", n_neighbors=2),
    ],
    expected_failed_checks=expected_failures,
)
def test_scikit_learn(estimator, check):
    check(estimator)


# -- The package's classifiers --------------------------------------------------------


@pytest.fixture(scope="module")
def rows():
    """Return digits 0 to 5 to train on and to calibrate, and digits 6 to 9."""
    X, y = load_digits(return_X_y=True)
    X = X / 16
    known = y < 6
    return (X[known][::2], y[known][::2]), (X[known][1::2], y[known][1::2]), X[~known]


@pytest.fixture(scope="module")
def networks(rows):
    return [
        SoftRankMLPClassifier(
            (64, 32), max_epochs=15, temperature=3.0, random_state=seed
        ).fit(*rows[0])
        for seed in range(4)
    ]


@pytest.fixture(scope="module")
def network(networks):
    return networks[0]


@pytest.fixture(scope="module")
def ensemble(rows):
    member = SoftRankMLPClassifier((32, 16), max_epochs=8)
    return SoftRankEnsembleClassifier(
        member, n_estimators=2, temperature=[1.0, 10.0], random_state=0
    ).fit(*rows[0])


@every_method
def test_new_digits_are_found(rows, networks, method):
    _, (X, y), X_new = rows
    detectors = [OODDetector(model, method).fit(X[::2], y[::2]) for model in networks]
    # The area of a network has a standard deviation of 0.1 at most, the mean of four
    # half of it, and the least mean is 0.76.
    areas = [auroc(d.score_samples(X[1::2]), d.score_samples(X_new)) for d in detectors]
    assert np.mean(areas) > 0.6
    accepted = np.array([(d.predict(X[1::2]) == 1).mean() for d in detectors])
    # Standard error of 95 % of 270 rows, and of as many that set the threshold: 2 %.
    assert (accepted > 0.88).all()
    accepted_new = [(d.predict(X_new) == 1).mean() for d in detectors]
    assert np.mean(accepted_new) < accepted.mean() - 0.02


def test_logits_and_probabilities_are_the_network_s(rows, network):
    _, (X, _), _ = rows
    temperature = network.temperature_
    assert temperature == 3.0
    logits = network.decision_function(X) * temperature
    proba = network.predict_proba(X)
    expected = {
        "msp": np.log(proba.max(axis=1)),
        "entropy": (proba * np.log(proba)).sum(axis=1),
        "max_logit": logits.max(axis=1),
        "energy": np.log(np.exp(logits).sum(axis=1)),
    }
    for method, scores in expected.items():
        got = OODDetector(network, method).fit(X).score_samples(X)
        np.testing.assert_allclose(got, scores, rtol=1e-7, atol=1e-9)


def test_two_classes_have_both_logits(rows):
    (X, y), _, _ = rows
    X, y = X[y < 2], y[y < 2]
    clf = SoftRankMLPClassifier(8, max_epochs=3, temperature=5.0, random_state=0)
    clf.fit(X, y)
    with torch.no_grad():
        logits = clf.module_.double()(torch.tensor(X)).numpy()
    clf.module_.float()
    energy = OODDetector(clf).fit(X).score_samples(X)
    np.testing.assert_allclose(energy, logsumexp(logits, axis=1), rtol=1e-6)
    msp = OODDetector(clf, "msp").fit(X).score_samples(X)
    np.testing.assert_allclose(np.exp(msp), clf.predict_proba(X).max(axis=1))


def test_ensemble_has_the_members_mean_logit_and_its_own_probability(rows, ensemble):
    """Its decision function is a log-probability, of which the energy is always 0."""
    _, (X, _), _ = rows
    logits = np.mean(
        [m.decision_function(X) * m.temperature_ for m in ensemble.estimators_], axis=0
    )
    energy = OODDetector(ensemble).fit(X).score_samples(X)
    np.testing.assert_allclose(energy, logsumexp(logits, axis=1), rtol=1e-6)
    msp = OODDetector(ensemble, "msp").fit(X).score_samples(X)
    proba = ensemble.predict_proba(X)
    np.testing.assert_allclose(msp, np.log(proba.max(axis=1)), rtol=1e-6)


@feature_method
def test_ensemble_has_features(rows, ensemble, method):
    """The members' side by side, and the head that gives the mean of their logits."""
    _, (X, y), X_new = rows
    W, b = Rows.seen_by(ensemble, X, method).head
    Z, Z_new = ensemble.embed(X), ensemble.embed(X_new)
    logits = [m.decision_function(X) * m.temperature_ for m in ensemble.estimators_]
    np.testing.assert_allclose(Z @ W + b, np.mean(logits, axis=0), rtol=1e-6, atol=1e-9)
    detector = OODDetector(ensemble, method).fit(X, y)
    linear = LogisticRegression()
    linear.classes_, linear.n_features_in_ = ensemble.classes_, Z.shape[1]
    linear.coef_, linear.intercept_ = W.T, b
    twin = OODDetector(linear, method).fit(Z, y)
    np.testing.assert_allclose(
        detector.score_samples(X_new), twin.score_samples(Z_new), rtol=1e-6
    )


def test_sure_rows_keep_their_order():
    """Probabilities that round to one: the logarithm still tells them apart."""
    clf = plain(1, 2)
    clf.set_params(weights=np.array([[0.0, 1.0]]), offset=np.zeros(2))
    X = np.array([[50.0], [60.0], [700.0]])
    scores = OODDetector(clf, "msp").fit(X).score_samples(X)
    np.testing.assert_allclose(scores, -np.exp([-50.0, -60.0, -700.0]), rtol=1e-6)
    entropies = OODDetector(clf, "entropy").fit(X).score_samples(X)
    assert (np.diff(entropies) > 0).all()


@every_method
@pytest.mark.parametrize(
    "wrap",
    [
        FrozenEstimator,
        lambda model: make_pipeline(FrozenEstimator(model)).fit([[0.0] * 64], [0]),
    ],
)
def test_wrappers_change_nothing(rows, network, method, wrap):
    _, (X, y), X_new = rows
    expected = OODDetector(network, method).fit(X, y).score_samples(X_new)
    got = OODDetector(wrap(network), method).fit(X, y).score_samples(X_new)
    np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize("search_class", [GridSearchCV, StackedGridSearchCV])
def test_a_search_over_a_pipeline(rows, search_class):
    (X, y), (X_id, y_id), X_new = rows
    model = make_pipeline(
        StandardScaler(), SoftRankMLPClassifier(16, max_epochs=3, random_state=0)
    )
    search = search_class(
        model, {"softrankmlpclassifier__temperature": [2.0]}, cv=2
    ).fit(X, y)
    steps = search.best_estimator_
    for method in ("energy", "vim"):
        got = OODDetector(search, method).fit(X_id, y_id).score_samples(X_new)
        alone = OODDetector(steps[-1], method).fit(steps[:-1].transform(X_id), y_id)
        np.testing.assert_allclose(
            got, alone.score_samples(steps[:-1].transform(X_new))
        )


class Thin(BaseEstimator):
    """A sampler as in imbalanced-learn: takes every other row, in training alone."""

    def fit_resample(self, X, y):
        return X[::2], y[::2]


class SamplingPipeline(Pipeline):
    """The part of imbalanced-learn's pipeline that matters: samplers, skipped later."""

    def _validate_steps(self):
        pass

    def _iter(self, *args, **kwargs):
        for step in super()._iter(*args, **kwargs):
            if not hasattr(step[2], "fit_resample"):
                yield step

    def fit(self, X, y):
        for _, step in self.steps[:-1]:
            if hasattr(step, "fit_resample"):
                X, y = step.fit_resample(X, y)
            elif step not in (None, "passthrough"):
                X = step.fit_transform(X)
        self.steps[-1][1].fit(X, y)
        return self


@every_method
def test_samplers_and_passthrough_are_skipped(blobs, method):
    X, y = blobs
    X = X[:, ::-1] * [1.0, 10.0, 0.1, 5.0]
    model = LogisticRegression()
    steps = [
        ("sampler", Thin()),
        ("nothing", "passthrough"),
        ("scaler", StandardScaler()),
        ("none", None),
        ("inner", SamplingPipeline([("again", Thin()), ("model", model)])),
    ]
    pipeline = SamplingPipeline(steps).fit(X, y)
    scaler = pipeline.named_steps["scaler"]
    np.testing.assert_array_equal(scaler.mean_, X[::2].mean(axis=0))
    got = OODDetector(pipeline, method).fit(X, y).score_samples(X)
    alone = OODDetector(model, method).fit(scaler.transform(X), y)
    np.testing.assert_array_equal(got, alone.score_samples(scaler.transform(X)))


@every_method
def test_pickles_score_the_same(rows, network, method):
    _, (X, y), X_new = rows
    detector = OODDetector(network, method).fit(X, y)
    again = pickle.loads(pickle.dumps(detector))
    np.testing.assert_allclose(
        again.score_samples(X_new), detector.score_samples(X_new), rtol=1e-9, atol=1e-12
    )
    assert again.offset_ == detector.offset_


@every_method
def test_single_precision_gives_the_same_to_its_digits(rows, network, method):
    _, (X, y), X_new = rows
    double = OODDetector(network, method).fit(X, y)
    single = OODDetector(network, method).fit(X.astype(np.float32), y)
    a = double.score_samples(X_new)
    b = single.score_samples(X_new.astype(np.float32))
    assert b.dtype == np.float64
    np.testing.assert_allclose(a, b, rtol=1e-2, atol=1e-3 * np.abs(a).max())


# -- Formulas, written down directly --------------------------------------------------


def direct(method, clf, Z, y, Z_new):
    """Return the scores of new features, by the papers' formulas."""
    W, b = np.asarray(clf.weights), np.asarray(clf.offset)
    logits, n_classes = Z_new @ W + b, W.shape[1]
    if method == "react":
        c = np.quantile(Z, 0.9)
        return np.log(np.exp(np.minimum(Z_new, c) @ W + b).sum(axis=1))
    if method == "knn":
        a = Z / np.linalg.norm(Z, axis=1, keepdims=True)
        c = Z_new / np.linalg.norm(Z_new, axis=1, keepdims=True)
        distances = np.linalg.norm(c[:, None] - a[None], axis=2)
        return -np.sort(distances, axis=1)[:, 9]
    means = np.array([Z[y == k].mean(axis=0) for k in range(n_classes)])

    def squares(center, covariance):
        d = Z_new - center
        return np.einsum("ni,ij,nj->n", d, np.linalg.inv(covariance), d)

    if "mahalanobis" in method:
        within = (Z - means[y]).T @ (Z - means[y]) / len(Z)
        nearest = np.min([squares(mean, within) for mean in means], axis=0)
        if method == "mahalanobis":
            return -nearest
        total = np.cov(Z.T, bias=True)
        return squares(Z.mean(axis=0), total) - nearest
    if method == "neco":
        mean, scale = Z.mean(axis=0), Z.std(axis=0)
        S, S_new = (Z - mean) / scale, (Z_new - mean) / scale
        P = PCA(n_classes - 1).fit(S).components_
        ratio = np.linalg.norm(S_new @ P.T, axis=1) / np.linalg.norm(S_new, axis=1)
        return ratio * logits.max(axis=1)
    o = -np.linalg.pinv(W.T) @ b
    _, vectors = np.linalg.eigh((Z - o).T @ (Z - o))
    R = vectors[:, : Z.shape[1] - Z.shape[1] // 2]
    residual = np.linalg.norm((Z_new - o) @ R, axis=1)
    if method == "residual":
        return -residual
    alpha = (Z @ W + b).max(axis=1).mean() / np.linalg.norm((Z - o) @ R, axis=1).mean()
    virtual = np.column_stack([logits, alpha * residual])
    probability = softmax(virtual, axis=1)[:, -1]
    return np.log(1 / probability - 1)


@feature_method
@pytest.mark.parametrize("width", [6, 9])
def test_features_methods_agree_with_their_formulas(method, width):
    clf = plain(width, 3)
    (Z, y), (Z_new, _) = draw(width=width), draw(50, width=width, seed=1, distance=1.0)
    got = OODDetector(clf, method).fit(Z, y).score_samples(Z_new)
    np.testing.assert_allclose(got, direct(method, clf, Z, y, Z_new), rtol=1e-6)


def test_logit_methods_agree_with_their_formulas():
    clf = plain(5, 4)
    Z, _ = draw(width=5, n_classes=4)
    logits = clf.decision_function(Z)
    p = softmax(logits, axis=1)
    for method, expected in {
        "msp": np.log(p.max(axis=1)),
        "entropy": -stats.entropy(p, axis=1),
        "max_logit": logits.max(axis=1),
        "energy": np.log(np.exp(logits).sum(axis=1)),
    }.items():
        got = OODDetector(clf, method).fit(Z).score_samples(Z)
        np.testing.assert_allclose(got, expected, rtol=1e-9)


def test_mahalanobis_of_gaussians_is_a_ratio_of_chi_squares():
    """N(0, I) against N(mu, I): central and non-central chi-square, d of freedom."""
    rng = np.random.default_rng(0)
    d, n, shift = 4, 30_000, 2.0
    clf = plain(d, 2)
    bank = rng.standard_normal((n, d))
    detector = OODDetector(clf, "mahalanobis").fit(bank, np.zeros(n, dtype=int))
    inside, outside = rng.standard_normal((2, n, d))
    outside[:, 0] += shift
    scores = detector.score_samples(inside), detector.score_samples(outside)
    # P(central < non-central), integrated over the central one's quantiles.
    quantiles = stats.chi2.ppf((np.arange(20_000) + 0.5) / 20_000, d)
    expected = stats.ncx2.sf(quantiles, d, shift**2).mean()
    assert auroc(*scores) == pytest.approx(expected, abs=0.01)
    expected = stats.ncx2.cdf(stats.chi2.ppf(0.95, d), d, shift**2)
    assert fpr_at_tpr(*scores) == pytest.approx(expected, abs=0.015)
    # And so is the threshold: rows of the bank count.
    assert -detector.offset_ == pytest.approx(stats.chi2.ppf(0.95, d), rel=0.02)


def test_scaling_logits_scales_max_logit_and_leaves_probabilities_bounded():
    clf = plain(5, 4)
    Z, _ = draw(width=5)
    base = OODDetector(clf, "max_logit").fit(Z).score_samples(Z)
    tripled = Plain(3 * clf.weights, 3 * clf.offset).fit(Z)
    scores = OODDetector(tripled, "max_logit").fit(Z).score_samples(Z)
    np.testing.assert_allclose(scores, 3 * base)
    for method, low in (("msp", -np.log(4)), ("entropy", -np.log(4))):
        scores = OODDetector(clf, method).fit(Z).score_samples(Z)
        assert low <= scores.min()
        assert scores.max() <= 0.0


# -- Invariances ----------------------------------------------------------------------


@pytest.mark.parametrize("method", ["knn", "mahalanobis", "relative_mahalanobis"])
def test_rotations_change_nothing(method):
    (Z, y), (Z_new, _) = draw(), draw(50, seed=1, distance=1.0)
    rotation = ortho_group.rvs(8, random_state=0)
    clf = plain(8, 3)
    base = OODDetector(clf, method).fit(Z, y)
    rotated = OODDetector(clf, method).fit(Z @ rotation, y)
    np.testing.assert_allclose(
        rotated.score_samples(Z_new @ rotation), base.score_samples(Z_new)
    )
    assert rotated.offset_ == pytest.approx(base.offset_)


def test_knn_sees_directions_alone():
    (Z, _), (Z_new, _) = draw(), draw(50, seed=1)
    factors = np.random.default_rng(2).uniform(0.1, 10, (len(Z), 1))
    base = OODDetector(plain(8, 3), "knn").fit(Z).score_samples(Z_new)
    scaled = OODDetector(plain(8, 3), "knn").fit(Z * factors).score_samples(5 * Z_new)
    np.testing.assert_allclose(scaled, base)


@pytest.mark.parametrize("method", ["mahalanobis", "relative_mahalanobis"])
def test_affine_maps_change_no_mahalanobis_distance(method):
    rng = np.random.default_rng(2)
    (Z, y), (Z_new, _) = draw(), draw(50, seed=1, distance=1.0)
    A, b = rng.standard_normal((8, 8)), 10 * rng.standard_normal(8)
    clf = plain(8, 3)
    base = OODDetector(clf, method).fit(Z, y).score_samples(Z_new)
    mapped = OODDetector(clf, method).fit(Z @ A + b, y).score_samples(Z_new @ A + b)
    np.testing.assert_allclose(mapped, base, rtol=1e-6)
    # Into more columns than there are directions, too.
    A, b = rng.standard_normal((8, 20)), 10 * rng.standard_normal(20)
    clf = plain(20, 3)
    mapped = OODDetector(clf, method).fit(Z @ A + b, y).score_samples(Z_new @ A + b)
    np.testing.assert_allclose(mapped, base, rtol=1e-6)


@pytest.mark.parametrize("method", ["residual", "vim"])
def test_a_rotated_network_has_the_same_residual(method):
    (Z, _), (Z_new, _) = draw(), draw(50, seed=1)
    clf, rotation = plain(8, 3), ortho_group.rvs(8, random_state=0)
    rotated = Plain(rotation.T @ clf.weights, clf.offset).fit(Z)
    np.testing.assert_allclose(
        OODDetector(rotated, method).fit(Z @ rotation).score_samples(Z_new @ rotation),
        OODDetector(clf, method).fit(Z).score_samples(Z_new),
    )


@every_method
def test_order_of_the_rows_does_not_matter(method):
    Z, y = draw()
    order = np.random.default_rng(0).permutation(len(Z))
    base = OODDetector(plain(8, 3), method).fit(Z, y)
    other = OODDetector(plain(8, 3), method).fit(Z[order], y[order])
    np.testing.assert_allclose(other.score_samples(Z), base.score_samples(Z), rtol=1e-7)


# -- Degenerate input -----------------------------------------------------------------


@feature_method
def test_features_of_low_rank(method):
    """Two directions in twelve columns, two of them constant."""
    rng = np.random.default_rng(0)
    basis = rng.standard_normal((2, 12))
    basis[:, 3:5] = 0.0
    y = np.repeat([0, 1], 100)
    Z = (rng.standard_normal((200, 2)) + 4 * y[:, None]) @ basis + 1.0
    clf = plain(12, 2)
    # Positive logits, as "vim" needs them.
    clf.set_params(offset=clf.offset + 50.0)
    detector = OODDetector(clf, method).fit(Z, y)
    scores = detector.score_samples(Z)
    assert np.isfinite(scores).all()
    assert np.unique(scores.round(9)).size > 100
    assert np.isfinite(detector.score_samples(Z + rng.standard_normal(Z.shape))).all()


def test_residual_sees_what_mahalanobis_leaves_out():
    rng = np.random.default_rng(0)
    y = np.repeat([0, 1], 100)
    Z = np.column_stack([rng.standard_normal((200, 2)) + 4 * y[:, None], np.zeros(200)])
    off = Z + np.array([0.0, 0.0, 1.0])
    clf = plain(3, 2)
    flat = OODDetector(clf, "mahalanobis").fit(Z, y)
    np.testing.assert_allclose(flat.score_samples(off), flat.score_samples(Z))
    residual = OODDetector(
        Plain(np.eye(3, 2), np.zeros(2)).fit(Z), "residual", n_components=1
    ).fit(Z)
    assert (residual.score_samples(off) < residual.score_samples(Z)).all()


@pytest.mark.parametrize("method", ["mahalanobis", "relative_mahalanobis"])
def test_a_class_without_rows(method):
    Z, y = draw(n_classes=4)
    clf = plain(8, 4)
    Z, y = Z[y != 2], y[y != 2]
    scores = OODDetector(clf, method).fit(Z, y).score_samples(Z)
    assert np.isfinite(scores).all()
    # As if the classifier had never known it.
    relabelled = np.unique(y, return_inverse=True)[1]
    np.testing.assert_allclose(
        OODDetector(plain(8, 3), method).fit(Z, relabelled).score_samples(Z), scores
    )


@pytest.mark.parametrize("method", ON_LOGITS)
def test_constant_logits_reject_nothing(method):
    clf = Plain(np.zeros((4, 3)), np.zeros(3)).fit(np.zeros((1, 4)))
    Z, _ = draw(width=4)
    detector = OODDetector(clf, method).fit(Z)
    assert np.unique(detector.score_samples(Z)).size == 1
    assert (detector.predict(Z) == 1).all()


@pytest.mark.parametrize(
    ("method", "message"),
    [
        ("mahalanobis", "needs rows that differ within their classes"),
        ("relative_mahalanobis", "needs rows that differ within their classes"),
        ("neco", "needs rows that differ"),
    ],
)
def test_constant_features(method, message):
    Z, y = np.full((60, 3), 0.1), np.arange(60) % 3
    with pytest.raises(ValueError, match=f"method='{method}' {message}"):
        OODDetector(plain(3, 3), method).fit(Z, y)
    with pytest.raises(ValueError, match="n_samples = 1"):
        OODDetector(plain(3, 3), method).fit(Z[:1], y[:1])


def test_features_at_the_origin_leave_no_residual():
    clf = Plain(np.eye(3), np.zeros(3)).fit(np.zeros((1, 3)))
    with pytest.raises(ValueError, match="needs features away from the point of no"):
        OODDetector(clf, "vim").fit(np.zeros((60, 3)))


def test_rows_at_zero_and_at_the_mean_have_scores():
    Z, y = draw()
    for method, row in (("knn", np.zeros(8)), ("neco", Z.mean(axis=0))):
        detector = OODDetector(plain(8, 3), method).fit(Z, y)
        assert np.isfinite(detector.score_samples(row[None])).all()


def test_vim_needs_positive_logits():
    Z, _ = draw()
    clf = Plain(np.zeros((8, 3)), np.full(3, -5.0)).fit(Z)
    with pytest.raises(ValueError, match=r"positive mean.*got -5\. Use 'residual'"):
        OODDetector(clf, "vim").fit(Z)


# -- Thresholds -----------------------------------------------------------------------


@every_method
@pytest.mark.parametrize("contamination", [0.01, 0.05, 0.1, 0.5])
def test_the_share_asked_for_is_accepted(method, contamination):
    Z, y = draw(n=200)
    detector = OODDetector(plain(8, 3), method, contamination=contamination).fit(Z, y)
    rejected = (detector.predict(Z) == -1).sum()
    if method in OPTIMISTIC:
        # Fewer, but for chance: two standard errors.
        error = np.sqrt(200 * contamination * (1 - contamination))
        assert rejected <= 200 * contamination + 2 * error
    else:
        assert rejected == round(200 * contamination)
    scores = detector.score_samples(Z)
    np.testing.assert_array_equal(
        detector.decision_function(Z), scores - detector.offset_
    )
    np.testing.assert_array_equal(detector.predict(Z) == 1, scores >= detector.offset_)
    np.testing.assert_array_equal(detector.fit_predict(Z, y), detector.predict(Z))


@every_method
def test_no_row_of_fit_stands_on_the_threshold(method):
    """The last bit of a score differs between one row and many: it decides nothing."""
    Z, y = draw(n=200)
    detector = OODDetector(plain(8, 3), method).fit(Z, y)
    scores = detector.score_samples(Z)
    if method in OPTIMISTIC:
        method = detector._method
        rows = Rows.seen_by(detector.estimator_, Z, method.name)
        scores = method.score_as_new(rows, y, detector)
    below, above = np.sort(scores)[9:11]
    assert detector.offset_ == pytest.approx((below + above) / 2)
    assert below < detector.offset_ < above


HUGE = np.finfo(np.float64).max
NEXT = np.nextafter(1.0, 2.0)


@pytest.mark.parametrize(
    ("scores", "share", "threshold"),
    [
        ([1.0, 2.0, 3.0, 4.0], 0.75, 1.5),
        # Equal ones are accepted together, though fewer would do.
        ([1.0, 2.0, 2.0, 2.0], 0.5, 1.5),
        # So are those that differ in the last place.
        ([0.0, 1.0, NEXT, NEXT], 0.5, 0.5),
        # None is rejected: below all.
        ([4.0, 4.0, 4.0, 4.0], 0.75, 4.0 - 4e3 * EPS),
        ([-4.0, 0.0, 0.0, 0.0], 1.0, -4.0 - 4e3 * EPS),
        ([0.0, 0.0], 0.5, 0.0),
        # Neither sums nor differences of finite scores leave the range.
        ([-HUGE, HUGE], 0.5, 0.0),
        ([HUGE / 4, HUGE, HUGE], 0.5, 0.625 * HUGE),
        ([-HUGE, -HUGE], 0.5, -HUGE),
        # No number lies between.
        ([0.0, 5e-324], 0.5, 5e-324),
    ],
)
def test_threshold_is_clear_of_the_scores(scores, share, threshold):
    scores = np.array(scores)
    got = _offset(scores, share, EPS)
    assert got == pytest.approx(threshold, rel=1e-15, abs=0.0)
    assert np.mean(scores >= got) >= share


def test_single_precision_has_wider_ties():
    scores = np.array([1.0, 2.0, 2.0 * (1 + 1e-7), 3.0])
    assert _offset(scores, 0.5, EPS) == pytest.approx(2.0, rel=1e-6)
    assert _offset(scores, 0.5, float(np.finfo(np.float32).eps)) == 1.5


@pytest.mark.parametrize("method", [*OPTIMISTIC, "neco", "react", "energy"])
def test_threshold_holds_for_new_rows_in_many_columns(method):
    """By their own covariance, rows in half as many columns are all close: 0 % pass."""
    Z, y = draw(n=240, width=120)
    detector = OODDetector(plain(120, 3), method).fit(Z, y)
    new, _ = draw(n=2000, width=120, seed=1)
    # Four standard errors of 1.5 %; statistics of four fifths of the rows reject less.
    assert 0.89 < (detector.predict(new) == 1).mean() <= 1.0


@pytest.mark.parametrize("n", [6, 10, 11])
@pytest.mark.parametrize("method", ["vim", "residual"])
def test_few_rows_do_not_reject_all_new_ones(method, n):
    shares = []
    for seed in range(10):
        Z, y = draw(n=n, width=12, seed=seed, distance=10.0)
        clf = Plain(np.eye(12, 3), np.zeros(3)).fit(Z)
        detector = OODDetector(clf, method).fit(Z, y)
        new, _ = draw(n=500, width=12, seed=100 + seed, distance=10.0)
        shares.append((detector.predict(new) == 1).mean())
    # The least of n scores is below a new one's in n of n + 1 cases.
    assert np.mean(shares) > 0.6


def test_knn_threshold_holds_for_new_rows():
    """With one neighbour, rows of the bank would have a distance of zero."""
    Z, _ = draw(n=2000)
    detector = OODDetector(plain(8, 3), "knn", n_neighbors=1).fit(Z)
    new, _ = draw(n=2000, seed=1)
    # Standard error 0.5 %.
    assert (detector.predict(new) == 1).mean() == pytest.approx(0.95, abs=0.02)


@pytest.mark.parametrize("method", ["residual", "vim"])
def test_a_principal_space_of_almost_as_many_directions_as_rows(method):
    """The parts that set the threshold have fewer rows."""
    Z, y = draw(n=30, width=40, distance=10.0)
    clf = Plain(np.eye(40, 3), np.zeros(3)).fit(Z)
    detector = OODDetector(clf, method, n_components=23).fit(Z, y)
    assert detector._method.null_space.shape == (40, 17)
    for n_components in (24, 29):
        detector.set_params(n_components=n_components)
        message = (
            f"less than 24, got {n_components}: of the n_samples = 30 rows .* so many "
            "set the threshold"
        )
        with pytest.raises(ValueError, match=message):
            detector.fit(Z, y)
    detector.set_params(n_components=30)
    message = r"the rank 30 .*\(n_samples = 30, n_features = 40\), got 30"
    with pytest.raises(ValueError, match=message):
        detector.fit(Z, y)


@pytest.mark.parametrize("method", ["residual", "vim"])
@pytest.mark.parametrize("n_components", ["auto", 0.999])
def test_sizes_are_those_of_the_parts(method, n_components):
    """With one direction left of 22 rows, new ones would be far from all of them."""
    accepted = []
    for seed in range(4):
        Z, y = draw(n=22, width=40, distance=10.0, seed=seed)
        clf = Plain(np.eye(40, 3), np.zeros(3)).fit(Z)
        detector = OODDetector(clf, method, n_components=n_components).fit(Z, y)
        # Four fifths of 22 rows are 17, of which one direction is left.
        assert detector._method.null_space.shape == (40, 24)
        new, _ = draw(n=300, width=40, distance=10.0, seed=seed + 100)
        accepted.append((detector.predict(new) == 1).mean())
    assert np.mean(accepted) > 0.8


def test_parts_that_differ_less_than_the_rows_do():
    """One row alone differs: the parts without it have no covariance."""
    Z, y = np.zeros((30, 3)), np.zeros(30, dtype=int)
    Z[7] = 1.0
    message = "takes 24 of the n_samples = 30 rows given .* differ within their classes"
    with pytest.raises(ValueError, match=message):
        OODDetector(plain(3, 3), "mahalanobis").fit(Z, y)


class Once(Plain):
    """Counts how often it looks at rows, and how many."""

    def embed(self, X):
        self.seen = [*getattr(self, "seen", []), len(X)]
        return super().embed(X)

    def decision_function(self, X):
        self.asked = [*getattr(self, "asked", []), len(X)]
        return super().decision_function(X)


@pytest.mark.parametrize(
    "quantity", ["features", "scores", "logits", "log_proba", "rounding", "eps", "head"]
)
@pytest.mark.parametrize("before", [False, True])
def test_a_part_has_what_the_whole_has_of_its_rows(quantity, before):
    Z, _ = draw(n=20)
    clf = Once(plain(8, 3).weights, plain(8, 3).offset).fit(Z)
    whole = Rows.seen_by(clf, Z.astype(np.float32), "energy")
    if before:
        getattr(whole, quantity)
    index = np.array([3, 17, 4])
    part = whole.take(index).take(np.array([2, 0]))
    got, expected = getattr(part, quantity), getattr(whole, quantity)
    if quantity == "rounding":
        length = np.linalg.norm(Z[[4, 3]]) / np.sqrt(2)
        assert got == pytest.approx(np.finfo(np.float32).eps * length)
    elif quantity in ("eps", "head"):
        assert got is expected
    else:
        np.testing.assert_array_equal(got, expected[[4, 3]])
    assert {*getattr(clf, "seen", []), *getattr(clf, "asked", [])} <= {20}
    assert part.X is None


# -- Other classifiers ----------------------------------------------------------------


@pytest.fixture(scope="module")
def blobs():
    X, y = make_blobs(300, 4, centers=3, cluster_std=2.0, random_state=0)
    return X, np.array(["a", "b", "c"])[y]


@pytest.mark.parametrize("n_classes", [2, 3])
@pytest.mark.parametrize(
    "model",
    [
        LogisticRegression(),
        make_pipeline(StandardScaler(), LogisticRegression()),
        HistGradientBoostingClassifier(max_iter=5),
        LinearDiscriminantAnalysis(),
    ],
)
def test_softmax_of_foreign_logits_is_predict_proba(blobs, model, n_classes):
    X, y = blobs
    known = y != "c" if n_classes == 2 else y != ""
    X, y = X[known], y[known]
    model = clone(model).fit(X, y)
    proba = model.predict_proba(X)
    msp = OODDetector(model, "msp").fit(X).score_samples(X)
    np.testing.assert_allclose(np.exp(msp), proba.max(axis=1))
    entropy = OODDetector(model, "entropy").fit(X).score_samples(X)
    np.testing.assert_allclose(
        entropy, xlogy(proba, proba).sum(axis=1), rtol=1e-6, atol=1e-12
    )
    d = model.decision_function(X)
    logits = np.column_stack([-d / 2, d / 2]) if n_classes == 2 else d
    energy = OODDetector(model).fit(X).score_samples(X)
    np.testing.assert_allclose(energy, logsumexp(logits, axis=1))


@feature_method
@pytest.mark.parametrize("n_classes", [2, 3])
def test_a_linear_model_s_features_are_its_input(blobs, method, n_classes):
    X, y = blobs
    known = y != "c" if n_classes == 2 else y != ""
    X, y = X[known], y[known]
    model = make_pipeline(StandardScaler(), LogisticRegression()).fit(X, y)
    Z = model[:-1].transform(X)
    W, b = model[-1].coef_.T, model[-1].intercept_
    if n_classes == 2:
        W, b = np.hstack([-W / 2, W / 2]), np.concatenate([-b / 2, b / 2])
    twin = Plain(W, b).fit(Z)
    codes = np.unique(y, return_inverse=True)[1]
    np.testing.assert_allclose(
        OODDetector(model, method).fit(X, y).score_samples(X),
        OODDetector(twin, method).fit(Z, codes).score_samples(Z),
        rtol=1e-6,
    )


def test_transform_gives_features_and_least_squares_a_head(blobs):
    """Linear discriminant analysis: `transform` is narrower than `coef_` is."""
    X, y = blobs
    model = LinearDiscriminantAnalysis().fit(X, y)
    Z = model.transform(X)
    assert Z.shape[1] < model.coef_.shape[1]
    detector = OODDetector(model, "react", clip_quantile=0.8).fit(X)
    ones = np.ones((len(Z), 1))
    head, *_ = np.linalg.lstsq(np.hstack([Z, ones]), model.decision_function(X))
    np.testing.assert_allclose(
        np.hstack([Z, ones]) @ head, model.decision_function(X), atol=1e-9
    )
    clipped = np.minimum(Z, np.quantile(Z, 0.8))
    np.testing.assert_allclose(
        detector.score_samples(X),
        logsumexp(np.hstack([clipped, ones]) @ head, axis=1),
        rtol=1e-6,
    )


@feature_method
@pytest.mark.parametrize(
    "model",
    [
        HistGradientBoostingClassifier(max_iter=5),
        make_pipeline(StandardScaler(), HistGradientBoostingClassifier(max_iter=5)),
    ],
)
def test_no_features(blobs, method, model):
    X, y = blobs
    model = clone(model).fit(X, y)
    with pytest.raises(
        ValueError,
        match=f"method='{method}' needs features, but HistGradientBoostingClassifier "
        "has no embed .* Use a method that needs none, such as 'energy'",
    ):
        OODDetector(model, method).fit(X, y)


def test_probabilities_alone_serve_two_methods(blobs):
    X, y = blobs
    model = RandomForestClassifier(20, random_state=0).fit(X, y)
    proba = model.predict_proba(X)
    msp = OODDetector(model, "msp").fit(X).score_samples(X)
    np.testing.assert_allclose(np.exp(msp), proba.max(axis=1))
    entropy = OODDetector(model, "entropy").fit(X).score_samples(X)
    np.testing.assert_allclose(entropy, -stats.entropy(proba, axis=1), atol=1e-12)
    for method in ("max_logit", "energy"):
        with pytest.raises(
            ValueError,
            match=f"method='{method}' needs logits, but RandomForestClassifier has no "
            "decision_function. Use 'msp' or 'entropy'",
        ):
            OODDetector(model, method).fit(X)


def test_one_column_for_each_pair_of_classes(blobs):
    X, y = make_blobs(80, 2, centers=4, random_state=0)
    model = SVC(decision_function_shape="ovo").fit(X, y)
    with pytest.raises(ValueError, match=r"one column for each of its 4 .* got 6"):
        OODDetector(model).fit(X)


def test_labels_are_the_predictions_unless_given(blobs):
    X, y = blobs
    model = LogisticRegression().fit(X, y)
    predicted = OODDetector(model, "mahalanobis").fit(X, model.predict(X))
    none = OODDetector(model, "mahalanobis").fit(X)
    given = OODDetector(model, "mahalanobis").fit(X, np.where(X[:, 0] > 0, "a", "b"))
    np.testing.assert_array_equal(none.score_samples(X), predicted.score_samples(X))
    assert not np.allclose(none.score_samples(X), given.score_samples(X))


# -- Fitted or not --------------------------------------------------------------------


def test_a_fitted_classifier_is_not_trained(blobs):
    X, y = blobs
    model = LogisticRegression().fit(X, y)
    coef = model.coef_.copy()
    detector = OODDetector(model).fit(X[:50], y[::-1][:50])
    assert detector.estimator_ is model
    np.testing.assert_array_equal(model.coef_, coef)


def test_an_unfitted_one_is_cloned_and_trained(blobs):
    X, y = blobs
    model = LogisticRegression()
    detector = OODDetector(model).fit(X, y)
    assert detector.estimator_ is not model
    with pytest.raises(NotFittedError):
        model.predict(X)
    expected = OODDetector(LogisticRegression().fit(X, y)).fit(X)
    np.testing.assert_allclose(detector.score_samples(X), expected.score_samples(X))
    with pytest.raises(ValueError, match="must be fitted where y is None, got the unf"):
        OODDetector(model).fit(X)


def test_frozen_keeps_its_training_through_clone(blobs):
    X, y = blobs
    model = LogisticRegression().fit(X, y)
    detector = clone(OODDetector(FrozenEstimator(model))).fit(X)
    assert detector.estimator_.estimator is model
    with pytest.raises(NotFittedError):
        OODDetector(FrozenEstimator(LogisticRegression())).fit(X, y)


def test_names_of_columns(blobs):
    X, y = blobs
    frame = pd.DataFrame(X, columns=list("abcd"))
    detector = OODDetector(LogisticRegression().fit(frame, y)).fit(frame)
    assert detector.feature_names_in_.tolist() == list("abcd")
    assert detector.n_features_in_ == 4
    assert (detector.predict(frame) == 1).mean() == pytest.approx(0.95)
    nameless = LogisticRegression().fit(X, y)
    detector.set_params(estimator=nameless).fit(X)
    assert not hasattr(detector, "feature_names_in_")


def test_changed_parameters_wait_for_the_next_fit(blobs):
    X, y = blobs
    detector = OODDetector(LogisticRegression().fit(X, y)).fit(X)
    scores = detector.score_samples(X)
    detector.set_params(method="knn")
    np.testing.assert_array_equal(detector.score_samples(X), scores)


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"method": "odin"}, "'method' parameter of OODDetector must be a str among"),
        ({"contamination": 0.6}, "'contamination' parameter of OODDetector"),
        ({"contamination": 0.0}, "'contamination' parameter of OODDetector"),
        ({"n_neighbors": 0}, "'n_neighbors' parameter of OODDetector"),
        ({"n_components": 1.5}, "'n_components' parameter of OODDetector"),
        ({"clip_quantile": 1.0}, "'clip_quantile' parameter of OODDetector"),
        ({"estimator": "energy"}, "'estimator' parameter of OODDetector"),
        ({"estimator": LinearRegression()}, "estimator must be a classifier, got Lin"),
        (
            {"method": "knn", "n_neighbors": 300},
            "n_neighbors must be less than the n_samples = 300 rows",
        ),
        (
            {"method": "residual", "n_components": 4},
            r"the rank 4 .*\(n_samples = 300, n_features = 4\), got 4",
        ),
        (
            {"method": "neco", "n_components": 5},
            "n_components must be at most the 4 columns of the features, got 5",
        ),
    ],
)
def test_bad_parameters(blobs, params, message):
    X, y = blobs
    detector = OODDetector(LogisticRegression().fit(X, y)).set_params(**params)
    with pytest.raises(ValueError, match=message):
        detector.fit(X, y)


def test_bad_labels(blobs):
    X, y = blobs
    model = LogisticRegression().fit(X, y)
    with pytest.raises(ValueError, match=r"only the classifier's .* got \['z'\] too"):
        OODDetector(model, "mahalanobis").fit(X, np.where(y == "a", "z", y))
    with pytest.raises(ValueError, match="inconsistent numbers of samples"):
        OODDetector(model, "mahalanobis").fit(X, y[:-1])


@pytest.mark.parametrize(
    ("method", "n_components", "kept"),
    [
        ("residual", 2, 2),
        ("residual", 0.5, 1),
        ("vim", 0.999999, 3),
        ("neco", 2, 2),
        ("neco", 0.999999, 4),
    ],
)
def test_sizes_of_the_principal_space(method, n_components, kept):
    rng = np.random.default_rng(0)
    Z = rng.standard_normal((500, 4)) * [10.0, 1.0, 0.5, 0.2]
    clf = Plain(np.eye(4, 3), np.zeros(3)).fit(Z)
    detector = OODDetector(clf, method, n_components=n_components).fit(Z)
    if method == "neco":
        assert detector._method.components.shape == (4, kept)
    else:
        assert detector._method.null_space.shape == (4, 4 - kept)


def test_a_foreign_temperature_is_undone():
    Z, _ = draw(width=5)
    clf = plain(5, 3)
    hot = plain(5, 3)
    hot.set_params(weights=hot.weights / 7.0, offset=hot.offset / 7.0)
    hot.temperature_ = 7.0
    np.testing.assert_allclose(
        OODDetector(hot).fit(Z).score_samples(Z),
        OODDetector(clf).fit(Z).score_samples(Z),
    )
    msp = OODDetector(hot, "msp").fit(Z).score_samples(Z)
    expected = softmax(clf.decision_function(Z) / 7.0, axis=1).max(axis=1)
    np.testing.assert_allclose(np.exp(msp), expected)


def test_neighbours_classifier_has_neither(blobs):
    X, y = blobs
    model = KNeighborsClassifier().fit(X, y)
    assert OODDetector(model, "msp").fit(X).offset_ <= 0.0
    with pytest.raises(ValueError, match="KNeighborsClassifier has no embed"):
        OODDetector(model, "knn").fit(X)
