"""Measures of detection and calibration, scorers, reports and probes."""

import itertools
import math
import pickle

import numpy as np
import pandas as pd
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import sparse, stats
from sklearn.datasets import load_digits
from sklearn.exceptions import UndefinedMetricWarning
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import (
    balanced_accuracy_score,
    log_loss,
    precision_recall_curve,
    roc_curve,
)
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import LinearSVC

from sksoftrank import SoftRankMLPClassifier, StackedGridSearchCV
from sksoftrank.corruptions import Corruption
from sksoftrank.ood import (
    aupr_in,
    aupr_out,
    auroc,
    detection_report,
    expected_calibration_error,
    fpr_at_tpr,
    linear_probe_score,
    make_ood_scorer,
    ood_report,
    threshold_at_tpr,
)
from sksoftrank.shifts import GaussianNoise, OffsetDrift

MEASURES = (auroc, fpr_at_tpr, aupr_in, aupr_out)

# Halves between -8 and 8: many ties, and negating or doubling them is exact.
scores = st.lists(st.integers(-16, 16).map(lambda i: i / 2), min_size=1, max_size=30)


# -- Detection ------------------------------------------------------------------------


def test_gaussians_of_equal_width():
    """Of N(0, 1) against N(-d, 1): AUROC Phi(d / sqrt 2), FPR Phi(z - d)."""
    rng = np.random.default_rng(0)
    n, d = 40_000, 1.5
    inside, outside = rng.standard_normal(n), rng.standard_normal(n) - d
    # Standard errors: 0.002 at most.
    assert auroc(inside, outside) == pytest.approx(
        stats.norm.cdf(d / math.sqrt(2)), abs=0.008
    )
    for tpr in (0.5, 0.95):
        expected = stats.norm.cdf(stats.norm.ppf(tpr) - d)
        assert fpr_at_tpr(inside, outside, tpr) == pytest.approx(expected, abs=0.012)


@given(scores, scores)
def test_auroc_counts_pairs_and_half_ties(inside, outside):
    pairs = [(a > b) + 0.5 * (a == b) for a, b in itertools.product(inside, outside)]
    assert auroc(inside, outside) == pytest.approx(np.mean(pairs))


@given(scores, scores, st.floats(0.01, 1.0))
def test_fpr_is_the_one_on_the_roc_curve(inside, outside, tpr):
    labels = [1] * len(inside) + [0] * len(outside)
    fprs, tprs, _ = roc_curve(labels, inside + outside, drop_intermediate=False)
    assert fpr_at_tpr(inside, outside, tpr) == fprs[tprs >= tpr - 1e-12].min()


@given(scores, scores)
def test_auprs_are_areas_of_steps_under_the_curve(inside, outside):
    def area(labels, values):
        precision, recall, _ = precision_recall_curve(labels, values)
        return -np.sum(np.diff(recall) * precision[:-1])

    labels = np.array([1] * len(inside) + [0] * len(outside))
    values = np.array(inside + outside)
    assert aupr_in(inside, outside) == pytest.approx(area(labels, values))
    assert aupr_out(inside, outside) == pytest.approx(area(1 - labels, -values))


@given(scores, scores)
def test_order_alone_matters(inside, outside):
    report = detection_report(inside, outside)
    assert all(0.0 <= value <= 1.0 for value in report.values())
    stretched = detection_report(
        [math.exp(2.0 * s) for s in inside], [math.exp(2.0 * s) for s in outside]
    )
    assert report == pytest.approx(stretched)
    assert detection_report(inside[::-1], outside[::-1]) == pytest.approx(report)


@given(scores, scores)
def test_sets_change_places_with_the_sign(inside, outside):
    mirrored = [-s for s in outside], [-s for s in inside]
    assert auroc(*mirrored) == pytest.approx(auroc(inside, outside))
    assert aupr_in(*mirrored) == pytest.approx(aupr_out(inside, outside))
    assert auroc(outside, inside) == pytest.approx(1.0 - auroc(inside, outside))


@given(scores, st.floats(0.01, 1.0))
def test_threshold_accepts_enough_and_no_higher_one_does(inside, tpr):
    values = np.array(inside)
    threshold = threshold_at_tpr(values, tpr)
    assert np.mean(values >= threshold) >= tpr - 1e-12
    higher = values[values > threshold]
    if higher.size:
        assert np.mean(values >= higher.min()) < tpr


@pytest.mark.parametrize("n", [10, 100, 300, 1000])
@pytest.mark.parametrize("tpr", [0.1, 0.7, 0.9, 0.95, 0.99, 1.0])
def test_threshold_counts_rows_without_rounding(n, tpr):
    rows = np.arange(n) >= threshold_at_tpr(np.arange(n), tpr)
    assert rows.sum() == -(-round(100 * tpr) * n // 100)


def test_constant_scores_tell_nothing():
    report = detection_report([1.0] * 6, [1.0] * 2)
    assert report == {
        "auroc": 0.5,
        "fpr_at_tpr": 1.0,
        "aupr_in": 0.75,
        "aupr_out": 0.25,
    }


def test_perfect_and_inverted_scores():
    assert list(detection_report([3, 4], [1, 2]).values()) == [1.0, 0.0, 1.0, 1.0]
    report = detection_report([1, 2], [3, 4])
    assert (report["auroc"], report["fpr_at_tpr"]) == (0.0, 1.0)


def test_report_passes_the_rate_on():
    inside, outside = [1.0, 2.0, 3.0, 4.0], [0.0, 1.5, 2.5, 3.5]
    assert detection_report(inside, outside, tpr=0.5)["fpr_at_tpr"] == 0.25
    assert detection_report(inside, outside)["fpr_at_tpr"] == 0.75
    assert list(detection_report(inside, outside)) == [m.__name__ for m in MEASURES]
    for measure in MEASURES:
        assert type(measure(inside, outside)) is float


@pytest.mark.parametrize("measure", [*MEASURES, detection_report])
@pytest.mark.parametrize("place", [0, 1])
def test_bad_scores_are_named(measure, place):
    name = ("scores_id", "scores_ood")[place]
    for bad, message in (
        ([], r"got shape \(0,\)"),
        ([[1.0]], r"got shape \(1, 1\)"),
        ([1.0, np.nan, np.inf], "got 2 values that are NaN or infinite"),
    ):
        both = [[1.0, 2.0], [0.0, 1.0]]
        both[place] = bad
        with pytest.raises(ValueError, match=f"{name} must be .*{message}"):
            measure(*both)


@pytest.mark.parametrize("tpr", [0.0, -0.5, 1.1, math.nan, "0.95", None])
def test_bad_rate(tpr):
    with pytest.raises(ValueError, match=r"tpr must be in \(0, 1\], got"):
        fpr_at_tpr([1.0], [0.0], tpr)


# -- Calibration ----------------------------------------------------------------------


def direct_ece(codes, proba, n_bins):
    confidence, top = proba.max(axis=1), proba.argmax(axis=1)
    total = 0.0
    for b in range(1, n_bins + 1):
        members = (confidence > (b - 1) / n_bins) & (confidence <= b / n_bins)
        if members.any():
            accuracy = np.mean(top[members] == codes[members])
            total += members.mean() * abs(accuracy - confidence[members].mean())
    return total


@given(st.integers(0, 1000), st.integers(1, 20), st.integers(2, 5))
def test_calibration_error_is_equation_3(seed, n_bins, n_classes):
    rng = np.random.default_rng(seed)
    proba = rng.dirichlet(np.ones(n_classes), 40)
    codes = rng.integers(n_classes, size=40)
    got = expected_calibration_error(codes, proba, n_bins, classes=range(n_classes))
    assert got == pytest.approx(direct_ece(codes, proba, n_bins))
    assert 0.0 <= got <= 1.0


def test_labels_drawn_from_the_probabilities_are_calibrated():
    rng = np.random.default_rng(0)
    p = rng.uniform(size=100_000)
    y = rng.uniform(size=p.size) < p
    assert expected_calibration_error(y, p) < 0.01
    # Confidence c = max(p, 1 - p) is right c of the time: too sure by up to 0.25.
    sure = np.where(p > 0.5, 1.0, 0.0)
    assert expected_calibration_error(y, sure) == pytest.approx(0.25, abs=0.01)


def test_labels_of_any_kind_in_any_order():
    proba = np.array([[0.7, 0.2, 0.1], [0.1, 0.8, 0.1], [0.3, 0.3, 0.4]])
    base = expected_calibration_error([0, 1, 2], proba)
    assert expected_calibration_error(["a", "b", "c"], proba) == base
    # Columns not sorted by label, as no scikit-learn classifier has them.
    assert (
        expected_calibration_error(
            ["a", "b", "c"], proba[:, [2, 0, 1]], classes=["c", "a", "b"]
        )
        == base
    )
    one = expected_calibration_error([0, 0, 0], proba, classes=[0, 1, 2])
    assert one == pytest.approx(direct_ece(np.zeros(3), proba, 15))


def test_confidence_on_an_edge_belongs_below():
    # 0.5 and 0.6: one bin of (0.4, 0.6] where there are five.
    proba = [[0.5, 0.5], [0.6, 0.4]]
    assert expected_calibration_error([0, 1], proba, 5) == pytest.approx(0.05)


@pytest.mark.parametrize(
    ("y", "proba", "params", "message"),
    [
        ([0, 0], [[0.5, 0.5]] * 2, {}, r"got 2 columns and the classes \[0\]"),
        ([0, 5], [[0.5, 0.5]] * 2, {"classes": [0, 1]}, r"y_true .* got \[5\] too"),
        ([0, 1], [[2.0, -1.0]] * 2, {}, "proba must be non-negative"),
        ([0, 1], [[0.5, 0.6]] * 2, {}, r"sums from 1\.1 to 1\.1"),
        ([0, 1], [[np.nan, 0.6]] * 2, {}, "proba must be finite"),
        ([0, 1, 1], [[0.5, 0.5]] * 2, {}, "a label for each of the 2 rows"),
        ([0, 1], [[0.5, 0.5]] * 2, {"n_bins": 0}, "n_bins must be a positive int"),
        ([0, 1], [[0.5, 0.5]] * 2, {"n_bins": 2.5}, "n_bins must be .* got 2.5"),
        ([], np.empty((0, 2)), {}, "at least one row"),
    ],
)
def test_bad_probabilities(y, proba, params, message):
    with pytest.raises(ValueError, match=message):
        expected_calibration_error(y, proba, **params)


# -- Scorers --------------------------------------------------------------------------


class Constant:
    """Predicts one class, whatever the rows."""

    def __init__(self, label):
        self.label = label

    def predict(self, X):
        return np.full(len(X), self.label)


def accuracy_of(estimator, X, y):
    """Score without the tags that scikit-learn's scorers ask for."""
    return float(np.mean(estimator.predict(X) == y))


def test_mean_and_worst_over_domains():
    y = np.array([0, 1, 1, 1, 0, 0])
    domains = np.array(["may", "may", "june", "june", "june", "june"])
    X = np.zeros((6, 1))
    params = {"domains": domains, "scoring": accuracy_of}
    mean = make_ood_scorer(X, y, **params)
    worst = make_ood_scorer(X, y, aggregate="worst", **params)
    whole = make_ood_scorer(X, y, scoring=accuracy_of)
    # Other rows than its own, or none: all the same.
    for args in ((), (None,), (X[:2], y[:2]), (X, 1 - y)):
        assert mean(Constant(1), *args) == 0.5
        assert worst(Constant(0), *args) == 0.5
        assert whole(Constant(1), *args) == 0.5
    y = np.array([1, 1, 1, 0, 0, 0])
    assert make_ood_scorer(X, y, **params)(Constant(1)) == pytest.approx(0.625)
    assert make_ood_scorer(X, y, aggregate="worst", **params)(Constant(1)) == 0.25
    assert make_ood_scorer(X, y, scoring=accuracy_of)(Constant(1)) == 0.5


@pytest.fixture(scope="module")
def problem():
    """Return rows, labels, shifted rows, their labels and their domains."""
    rng = np.random.default_rng(0)

    def draw(n, offset):
        y = np.arange(n) % 3
        X = 2.0 * np.eye(3, 6)[y] + rng.standard_normal((n, 6)) + offset
        return X, np.array(["a", "b", "c"])[y]

    X, y = draw(120, 0.0)
    X_ood, y_ood = draw(90, np.array([0.0, 1.5, 0, 0, 0, 0]))
    return X, y, X_ood, y_ood, np.repeat([2, 3, 4], 30)


def mlp():
    return SoftRankMLPClassifier((12, 8), max_epochs=4, random_state=0)


@pytest.mark.parametrize("search_class", [GridSearchCV, StackedGridSearchCV])
@pytest.mark.parametrize("n_jobs", [1, 2])
def test_searches_score_each_fold_s_model_on_the_shifted_rows(
    problem, search_class, n_jobs
):
    X, y, X_ood, y_ood, domains = problem
    pipeline = make_pipeline(StandardScaler(), mlp())
    grid = {"softrankmlpclassifier__temperature": [0.3, 30.0]}
    scorer = make_ood_scorer(X_ood, y_ood, domains=domains, aggregate="worst")
    folds = [(np.arange(60), np.arange(60, 120)), (np.arange(60, 120), np.arange(60))]
    search = search_class(pipeline, grid, scoring=scorer, cv=folds, n_jobs=n_jobs)
    search.fit(X, y)
    for candidate, params in enumerate(search.cv_results_["params"]):
        for fold, (train, _) in enumerate(folds):
            model = make_pipeline(StandardScaler(), mlp()).set_params(**params)
            model.fit(X[train], y[train])
            expected = min(
                model.score(X_ood[domains == d], y_ood[domains == d]) for d in (2, 3, 4)
            )
            got = search.cv_results_[f"split{fold}_test_score"][candidate]
            assert got == pytest.approx(expected)
    if search_class is StackedGridSearchCV:
        assert search.fallback_reason_ is None


def test_beside_other_metrics_and_weights(problem):
    X, y, X_ood, y_ood, domains = problem
    scoring = {
        "id": "accuracy",
        "ood": make_ood_scorer(X_ood, y_ood, scoring="neg_log_loss"),
        "worst": make_ood_scorer(X_ood, y_ood, domains=domains, aggregate="worst"),
    }
    search = GridSearchCV(
        LogisticRegression(), {"C": [0.1, 1.0]}, scoring=scoring, refit="ood", cv=3
    )
    # Without a warning that the scorer does not take weights.
    search.fit(X, y, sample_weight=np.ones(len(y)))
    results = search.cv_results_
    assert (results["mean_test_ood"] < 0).all()
    assert (results["mean_test_worst"] < results["mean_test_id"]).all()
    single = GridSearchCV(
        LogisticRegression(), {"C": [0.1, 1.0]}, scoring=scoring["ood"], cv=3
    )
    single.fit(X, y, sample_weight=np.ones(len(y)))
    np.testing.assert_allclose(
        single.cv_results_["mean_test_score"], results["mean_test_ood"]
    )


def test_a_loss_is_told_of_the_classes_that_a_domain_lacks(problem):
    X, y, X_ood, y_ood, domains = problem
    model = LogisticRegression().fit(X, y)
    rows = (domains != 4) | (y_ood == "b")
    scorer = make_ood_scorer(
        X_ood[rows], y_ood[rows], domains=domains[rows], scoring="neg_log_loss"
    )
    expected = [
        -log_loss(y_ood[own], model.predict_proba(X_ood[own]), labels=["a", "b", "c"])
        for own in (rows & (domains == d) for d in (2, 3, 4))
    ]
    assert scorer(model) == pytest.approx(np.mean(expected))
    report = ood_report(model, X, y, {"b": (X_ood[rows][60:], y_ood[rows][60:])})
    assert report[-1]["log_loss"] == pytest.approx(-expected[-1])
    search = GridSearchCV(LogisticRegression(), {"C": [1.0]}, scoring=scorer, cv=3)
    assert np.isfinite(search.fit(X, y).best_score_)


@pytest.mark.parametrize(
    ("scoring", "labels", "reason"),
    [
        ("roc_auc_ovr", ["a", "b"], r"no row is of \['c'\]"),
        ("neg_log_loss", ["a", "b", "d"], r"and no fit knows \['d'\]"),
    ],
)
def test_a_domain_without_a_score_is_left_out_by_name(problem, scoring, labels, reason):
    X, y, X_ood, y_ood, domains = problem
    model = LogisticRegression().fit(X, y)
    y_ood = np.where(domains == 4, np.resize(labels, 90), y_ood)
    known = domains != 4
    rest = make_ood_scorer(
        X_ood[known], y_ood[known], domains=domains[known], scoring=scoring
    )
    scorer = make_ood_scorer(X_ood, y_ood, domains=domains, scoring=scoring)
    said = f"scoring='{scoring}' is not defined on domain '4', where .*{reason}"
    with pytest.warns(UndefinedMetricWarning, match=said):
        assert scorer(model) == rest(model)
    alone = make_ood_scorer(X_ood[~known], y_ood[~known], scoring=scoring)
    with pytest.raises(ValueError, match=f"domain 'X_ood', where .*{reason}"):
        alone(model)


def test_a_score_that_one_model_lacks_is_not_left_out(problem):
    X, y, X_ood, y_ood, _ = problem

    def score(estimator, X, y):
        return np.nan if y[0] == "a" else 1.0

    scorer = make_ood_scorer(
        X_ood, np.sort(y_ood), domains=np.sort(y_ood), scoring=score
    )
    assert np.isnan(scorer(LogisticRegression().fit(X, y)))


def test_scorer_survives_a_pickle(problem):
    X, y, X_ood, y_ood, domains = problem
    scorer = make_ood_scorer(X_ood, y_ood, domains=domains)
    again = pickle.loads(pickle.dumps(scorer))
    model = LogisticRegression().fit(X, y)
    assert again(model) == scorer(model) == scorer(model, X, y)
    assert repr(again) == (
        "make_ood_scorer(scoring='accuracy', n_domains=3, aggregate='mean')"
    )
    assert cross_val_score(model, X, y, scoring=again, cv=3).shape == (3,)


FORMATS = [
    getattr(sparse, f"{name}_{kind}")
    for name in ("bsr", "coo", "csc", "csr", "dia", "dok", "lil")
    for kind in ("array", "matrix")
]


@pytest.mark.parametrize(
    "form", [lambda X: pd.DataFrame(X, columns=list("abcdef")), *FORMATS]
)
def test_rows_of_any_form(problem, form):
    X, y, X_ood, y_ood, domains = problem
    model = LogisticRegression().fit(form(X[:90]), y[:90])
    scorer = make_ood_scorer(
        form(X_ood), pd.Series(y_ood, index=np.arange(90) + 7), domains=domains
    )
    expected = [
        model.score(form(X_ood[domains == d]), y_ood[domains == d]) for d in (2, 3, 4)
    ]
    assert scorer(model) == pytest.approx(np.mean(expected))
    whole = make_ood_scorer(form(X_ood), y_ood)
    assert whole(model) == pytest.approx(model.score(form(X_ood), y_ood))


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"aggregate": "max"}, "aggregate must be 'mean' or 'worst', got 'max'"),
        ({"aggregate": "worst"}, "domains must say which domain"),
        ({"domains": [1, 2]}, "inconsistent numbers of samples"),
        ({"scoring": "acuracy"}, "'acuracy' is not a valid scoring value"),
        ({"scoring": None}, "scoring must be the name of a metric"),
    ],
)
def test_bad_scorers(params, message):
    with pytest.raises(ValueError, match=message):
        make_ood_scorer(np.zeros((3, 1)), [0, 1, 0], **params)


def test_no_rows():
    with pytest.raises(ValueError, match="X_ood must have at least one row"):
        make_ood_scorer(np.zeros((0, 1)), [])


# -- Reports --------------------------------------------------------------------------

RECORDED = (
    "accuracy",
    "balanced_accuracy",
    "log_loss",
    "expected_calibration_error",
    "accuracy_gap",
)


@pytest.fixture(scope="module")
def fitted(problem):
    X, y, *_ = problem
    return LogisticRegression().fit(X[::2], y[::2])


def test_records_are_what_one_measures_by_hand(problem, fitted):
    X, y, X_ood, y_ood, domains = problem
    X, y = X[1::2], y[1::2]
    may = X_ood[domains == 2], y_ood[domains == 2]
    one_class = X_ood[y_ood == "a"], y_ood[y_ood == "a"]
    noise = GaussianNoise(random_state=3)
    records = ood_report(
        fitted,
        X,
        y,
        {"may": may, "noise": noise, "one class": one_class},
        severities=(1, 5),
        n_bins=10,
    )
    assert [(r["domain"], r["severity"]) for r in records] == [
        ("in-distribution", 0),
        ("may", None),
        ("noise", 1),
        ("noise", 5),
        ("one class", None),
    ]
    rows = [
        (X, y),
        may,
        *((GaussianNoise(s, random_state=3).fit_transform(X), y) for s in (1, 5)),
        one_class,
    ]
    for record, (X_d, y_d) in zip(records, rows, strict=True):
        proba = fitted.predict_proba(X_d)
        recalls = [fitted.score(X_d[y_d == c], y_d[y_d == c]) for c in np.unique(y_d)]
        assert record["n_samples"] == len(y_d)
        assert record["accuracy"] == pytest.approx(fitted.score(X_d, y_d))
        assert record["balanced_accuracy"] == pytest.approx(np.mean(recalls))
        assert record["log_loss"] == pytest.approx(
            log_loss(y_d, proba, labels=fitted.classes_)
        )
        assert record["expected_calibration_error"] == pytest.approx(
            expected_calibration_error(y_d, proba, 10, classes=fitted.classes_)
        )
        assert record["accuracy_gap"] == pytest.approx(
            records[0]["accuracy"] - record["accuracy"]
        )
        assert list(record) == [
            "domain",
            "severity",
            "n_samples",
            *itertools.chain(*((m, f"{m}_low", f"{m}_high") for m in RECORDED)),
        ]
        for measure in RECORDED:
            assert type(record[measure]) is float
            assert record[f"{measure}_low"] <= record[measure] + 1e-12
            assert record[measure] <= record[f"{measure}_high"] + 1e-12
        interval = stats.binomtest(
            round(record["accuracy"] * len(y_d)), len(y_d)
        ).proportion_ci(method="wilson")
        assert record["accuracy_low"] == pytest.approx(interval.low)
        assert record["accuracy_high"] == pytest.approx(interval.high)
    assert records[1]["balanced_accuracy"] == pytest.approx(
        balanced_accuracy_score(may[1], fitted.predict(may[0]))
    )
    gap = [records[0][f"accuracy_gap{end}"] for end in ("", "_low", "_high")]
    assert gap == [0.0, 0.0, 0.0]


def test_default_severities_and_names(problem, fitted):
    X, y, *_ = problem
    records = ood_report(
        fitted, X, y, [GaussianNoise(), OffsetDrift()], n_resamples=10, random_state=1
    )
    assert [(r["domain"], r["severity"]) for r in records[1:]] == [
        (name, s) for name in ("GaussianNoise", "OffsetDrift") for s in (1, 2, 3, 4, 5)
    ]
    # Shifts without a seed take the report's.
    again = ood_report(
        fitted, X, y, [GaussianNoise(), OffsetDrift()], n_resamples=10, random_state=1
    )
    assert records == again
    other = ood_report(
        fitted, X, y, [GaussianNoise(), OffsetDrift()], n_resamples=10, random_state=2
    )
    assert records != other


def test_intervals_have_the_width_of_theory(problem, fitted):
    """Of a mean: the standard error; of a paired gap: that of the differences."""
    X, y, *_ = problem
    shift = GaussianNoise(random_state=0)
    base, shifted = ood_report(
        fitted, X, y, {"noise": shift}, severities=[4], n_resamples=3000
    )
    right = fitted.predict(X) == y
    X_shifted = GaussianNoise(4, random_state=0).fit_transform(X)
    right_shifted = fitted.predict(X_shifted) == y
    z, n = stats.norm.ppf(0.975), len(y)
    loss = -np.log(
        fitted.predict_proba(X)[np.arange(n), np.searchsorted(fitted.classes_, y)]
    )
    width = base["log_loss_high"] - base["log_loss_low"]
    assert width == pytest.approx(2 * z * loss.std() / np.sqrt(n), rel=0.06)
    differences = right.astype(float) - right_shifted
    width = shifted["accuracy_gap_high"] - shifted["accuracy_gap_low"]
    assert width == pytest.approx(2 * z * differences.std() / np.sqrt(n), rel=0.06)
    # Of other rows: errors add.
    domain = ood_report(
        fitted, X, y, {"may": (X_shifted, y)}, n_resamples=3000, confidence_level=0.5
    )[1]
    width = domain["accuracy_gap_high"] - domain["accuracy_gap_low"]
    variance = right.var() + right_shifted.var()
    expected = 2 * stats.norm.ppf(0.75) * np.sqrt(variance / n)
    assert width == pytest.approx(expected, rel=0.06)


def test_corruptions_are_called_by_their_kind():
    X, y = load_digits(return_X_y=True)
    X = X[:200] / 16
    fitted = LogisticRegression().fit(X, y[:200])
    kinds = ["fog", "contrast"]
    records = ood_report(fitted, X, y[:200], map(Corruption, kinds), severities=[1, 5])
    assert [(r["domain"], r["severity"]) for r in records[1:]] == [
        *(("fog", 1), ("fog", 5), ("contrast", 1), ("contrast", 5))
    ]


def test_a_fitted_shift_keeps_its_scale(problem, fitted):
    X, y, *_ = problem
    wide = OffsetDrift(random_state=0).fit(100.0 * X)
    assert wide.severity == 3
    record = ood_report(fitted, X, y, {"wide": wide}, severities=[2])[1]
    shifted = OffsetDrift(2, random_state=0).fit(100.0 * X).transform(X)
    assert record["accuracy"] == pytest.approx(fitted.score(shifted, y))
    assert wide.severity == 3


def test_frames_keep_their_columns(problem):
    X, y, *_ = problem
    frame = pd.DataFrame(X, columns=list("abcdef"))
    model = make_pipeline(StandardScaler(), mlp()).fit(frame, y)
    records = ood_report(model, frame, y, [GaussianNoise()], severities=[1])
    assert len(records) == 2


@pytest.mark.parametrize("form", [pd.DataFrame, pl.from_pandas])
def test_of_frames_the_numbers_are_shifted(problem, form):
    X, y, *_ = problem
    frame = form(pd.DataFrame(X, columns=list("abcdef")).assign(kind=y.astype(str)))
    model = SoftRankMLPClassifier((8,), max_epochs=5, random_state=0).fit(frame, y)
    records = ood_report(model, frame, y, [OffsetDrift(random_state=0)], severities=[5])
    shifted = frame.to_pandas() if hasattr(frame, "to_pandas") else frame
    drift = OffsetDrift(5, random_state=0)
    shifted = shifted.assign(
        **dict(zip("abcdef", drift.fit_transform(X).T, strict=True))
    )
    assert records[1]["accuracy"] == pytest.approx(model.score(shifted, y))
    # Columns keep their names in every frame, which warnings would tell.
    numbers = form(pd.DataFrame(X, columns=list("abcdef")))
    model = make_pipeline(StandardScaler(), mlp()).fit(numbers, y)
    assert len(ood_report(model, numbers, y, [GaussianNoise()], severities=[1])) == 2


def test_without_probabilities(problem):
    X, y, *_ = problem
    model = LinearSVC().fit(X, y)
    record = ood_report(model, X, y, {})[0]
    assert record["accuracy"] > 0.5
    for end in ("", "_low", "_high"):
        assert math.isnan(record[f"log_loss{end}"])
        assert math.isnan(record[f"expected_calibration_error{end}"])


def test_certain_and_wrong_costs_a_finite_loss():
    X = np.array([[-1000.0], [1000.0]] * 10)
    y = np.array([0, 1] * 10)
    model = LogisticRegression(C=1e6).fit(X, y)
    record = ood_report(model, X, 1 - y, {})[0]
    assert record["log_loss"] == pytest.approx(
        log_loss(1 - y, model.predict_proba(X)), rel=1e-6
    )
    assert record["accuracy"] == 0.0
    assert 0.0 < record["accuracy_high"] < 0.2


@pytest.mark.parametrize(
    ("shifted", "params", "message"),
    [
        ([GaussianNoise(1), GaussianNoise(2)], {}, "give each shift a name"),
        ({"x": StandardScaler()}, {}, "transformers with a severity"),
        ({"x": np.zeros((3, 6))}, {}, "a pair .* got ndarray for 'x'"),
        ([np.zeros((3, 6))], {}, "got ndarray for 'ndarray'"),
        ([GaussianNoise()], {"severities": [6]}, "'severity' parameter"),
        ([Corruption()], {}, r"X must hold values in \[0, 1\]"),
        ({}, {"n_resamples": 1}, "n_resamples must be an int of at least 2, got 1"),
        ({}, {"n_bins": -1}, "n_bins must be a positive int"),
        ({}, {"confidence_level": 95}, r"confidence_level must be in \(0, 1\), got 95"),
        ({"x": (np.zeros((1, 6)), ["a"])}, {}, "y of 'x' must hold at least two"),
        (
            {"x": (np.zeros((2, 6)), ["a", "z"])},
            {},
            r"y of 'x' must hold only the classes .* got \['z'\] too",
        ),
    ],
)
def test_bad_reports(problem, fitted, shifted, params, message):
    X, y, *_ = problem
    with pytest.raises(ValueError, match=message):
        ood_report(fitted, X, y, shifted, **params)


def test_a_fitted_shift_checks_the_severity(problem, fitted):
    X, y, *_ = problem
    with pytest.raises(ValueError, match="'severity' parameter of GaussianNoise"):
        ood_report(fitted, X, y, [GaussianNoise().fit(X)], severities=[0])


# -- Probes ---------------------------------------------------------------------------


def test_probe_is_a_standardised_logistic_regression(problem):
    X, y, X_ood, y_ood, _ = problem
    expected = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=50))
    expected = expected.fit(X, y).score(X_ood, y_ood)
    assert linear_probe_score(X, y, X_ood, y_ood, C=0.1, max_iter=50) == expected
    scaled = linear_probe_score(X * 1e3 + 5, y, X_ood * 1e3 + 5, y_ood, C=0.1)
    assert scaled == pytest.approx(expected)


def test_probe_of_degenerate_embeddings():
    y = np.arange(30) % 3
    assert linear_probe_score(np.zeros((30, 4)), y, np.zeros((30, 4)), y) == (
        pytest.approx(1 / 3)
    )
    # More columns than rows, of rank one less than there are classes.
    Z = np.eye(3, 100)[y]
    assert linear_probe_score(Z, y, Z, y) == 1.0


def test_probe_needs_classes_on_both_sides():
    Z = np.zeros((4, 2))
    with pytest.raises(ValueError, match=r"y_test .* got \[7\] too"):
        linear_probe_score(Z, [0, 1, 0, 1], Z, [0, 1, 7, 0])
    with pytest.raises(ValueError, match="at least 2 classes"):
        linear_probe_score(Z, [0, 0, 0, 0], Z, [0, 0, 0, 0])
