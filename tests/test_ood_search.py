"""The search under a shift: what it chooses, from what, and what it leaves alone."""

import pickle
import sqlite3
import subprocess
import sys
import warnings
from contextlib import closing
from decimal import Decimal
from importlib.util import find_spec

import numpy as np
import optuna
import pandas as pd
import polars as pl
import pytest
import sklearn
from optuna.distributions import CategoricalDistribution, FloatDistribution
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from scipy import sparse, stats
from sklearn.base import BaseEstimator, clone
from sklearn.datasets import make_classification
from sklearn.decomposition import PCA
from sklearn.exceptions import FitFailedWarning, UndefinedMetricWarning
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.model_selection import (
    GridSearchCV,
    GroupKFold,
    KFold,
    PredefinedSplit,
    ShuffleSplit,
    cross_validate,
)
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import MinMaxScaler, StandardScaler
from skorch.callbacks import Callback

from sksoftrank import (
    OODSearchCV,
    SoftRankCNNClassifier,
    SoftRankEnsembleClassifier,
    SoftRankMLPClassifier,
    SoftRankTransformerClassifier,
    StackedGridSearchCV,
)
from sksoftrank._digest import digest
from sksoftrank.corruptions import Corruption
from sksoftrank.search.ood import space as space_module
from sksoftrank.search.ood.choice import (
    Criterion,
    Outcome,
    choose,
    find_baseline,
    pareto_front,
    pick_finalists,
)
from sksoftrank.search.ood.evaluation import Evaluation
from sksoftrank.search.ood.protocol import make_plan
from sksoftrank.search.ood.results import outcome
from sksoftrank.search.ood.space import default_queue, make_space
from sksoftrank.shifts import FeatureDropout, GainDrift, GaussianNoise, OffsetDrift

SHIFTS = [GainDrift(3), OffsetDrift(2)]
TIMES = [f"{of}_{what}_time" for of in ("mean", "std") for what in ("fit", "score")]


@pytest.fixture(scope="module")
def data():
    """Return rows, labels and four domains, each with an offset of its own."""
    X, y = make_classification(
        160, 8, n_informative=5, n_classes=3, flip_y=0.1, class_sep=0.7, random_state=0
    )
    domains = np.arange(160) % 4
    return X + 0.4 * domains[:, None] * np.sin(np.arange(8)), y, domains


@pytest.fixture(autouse=True)
def started(monkeypatch):
    """Take processes for started, so that small searches use them."""
    monkeypatch.setattr("sksoftrank.search._jobs.START_SECONDS", 0.0)


def make(**params):
    return SoftRankMLPClassifier(
        **{"hidden_layer_sizes": (12, 8), "max_epochs": 4, "batch_size": 32, **params}
    )


def make_search(estimator=None, space=None, **options):
    return OODSearchCV(
        make() if estimator is None else estimator,
        {"temperature": stats.loguniform(0.3, 100)} if space is None else space,
        **{"n_trials": 7, "n_final_seeds": 1, "cv": 2, "random_state": 0, **options},
    )


# -- The rule --------------------------------------------------------------------------


def scored(ood, id=0.9, n_components=2, is_baseline=False):
    ood = np.array(ood, dtype=float)
    return Outcome(
        ood if ood.ndim == 2 else ood[None], np.array([id]), n_components, is_baseline
    )


HALF = Criterion()


def choose_all(outcomes, finals=None, criterion=HALF, **options):
    """Choose where all are finalists; with the same scores again if none are given."""
    finals = outcomes if finals is None else finals
    return choose(outcomes, dict(enumerate(finals)), criterion, **options)


@pytest.mark.parametrize(
    ("criterion", "score"),
    [
        (HALF, 0.5 * 0.6 + 0.5 * 0.9),
        (Criterion(1.0), 0.6),
        (Criterion(0.0), 0.9),
        (Criterion(0.75), 0.75 * 0.6 + 0.25 * 0.9),
        (Criterion(0.5, "worst"), 0.5 * 0.55 + 0.5 * 0.9),
    ],
)
def test_the_score_in_closed_form(criterion, score):
    # Means of the domains over replicates: 0.55 and 0.65.
    outcome = scored([[0.5, 0.7], [0.6, 0.6]], id=0.9)
    assert outcome.score(criterion) == pytest.approx(score)


def test_over_all_seeds_each_counts_the_same():
    joined = scored([0.2]).joined(scored([[0.5], [0.8]]))
    assert joined.ood_score() == pytest.approx(0.5)
    # The worst is of the means, not the mean of the worst.
    joined = scored([0.2, 0.8]).joined(scored([0.8, 0.4]))
    assert joined.ood_score("worst") == pytest.approx(0.5)


def test_the_baseline_is_the_best_in_distribution():
    outcomes = [
        scored([0.9], id=0.5, is_baseline=True),
        scored([0.1], id=0.8, is_baseline=True),
        scored([0.9], id=0.8, is_baseline=True),
        scored([0.9], id=0.9),
    ]
    assert find_baseline(outcomes) == 1  # Of equals the first.
    assert find_baseline(outcomes[3:]) is None


def test_finalists_are_the_baseline_and_the_best():
    base = scored([0.1], is_baseline=True)
    rest = [scored([x]) for x in (0.3, 0.6, 0.5, 0.4)]
    assert pick_finalists([*rest, base], 2, HALF) == [4, 1, 2]
    assert pick_finalists(rest, 2, HALF) == [1, 2]
    assert pick_finalists([base], 2, HALF) == [0]
    # Another rate of the baseline's is a configuration like any other.
    rate = scored([0.9], id=0.8, is_baseline=True)
    assert pick_finalists([*rest, base, rate], 1, HALF) == [4, 5]
    # The Pareto front: the best but for one that is as good, and larger.
    large = [scored([0.6], n_components=9), scored([0.6], n_components=1)]
    assert pick_finalists([base, *large], 2, HALF, pareto=True) == [0, 2]


@pytest.mark.parametrize(
    ("gain", "min_gain", "chosen"),
    [
        (0.0051, 0.005, 1),
        (0.005, 0.005, 0),  # More is asked for.
        (0.005, 0.0, 1),
        (0.0, 0.0, 0),
        (-0.1, 0.0, 0),
    ],
)
def test_the_gain_on_fresh_seeds_decides(gain, min_gain, chosen):
    # With the first seed it is far better: that is what it was picked for.
    first = [scored([0.5], is_baseline=True), scored([0.9])]
    fresh = [scored([0.5], is_baseline=True), scored([0.5 + 2 * gain])]
    choice = choose_all(first, fresh, min_gain=min_gain)
    assert choice.index == chosen
    assert ("not more than" in choice.reason) == (chosen == 0)
    assert f"a gain of {gain:.4f}" in choice.reason


def test_the_best_over_all_seeds_is_considered_alone():
    # The third is better on the fresh seed alone, the second over both.
    first = [scored([x], is_baseline=x == 0.1) for x in (0.1, 0.9, 0.5)]
    fresh = [scored([x], is_baseline=x == 0.1) for x in (0.1, 0.6, 0.7)]
    assert choose_all(first, fresh).index == 1
    # Of the one that is considered the fresh seeds must show the gain.
    fresh = [scored([x], is_baseline=x == 0.3) for x in (0.3, 0.3, 0.4)]
    assert choose_all(first, fresh).index == 0


def test_a_loss_in_distribution_is_weighed():
    base, other = scored([0.5], id=0.9, is_baseline=True), scored([0.6], id=0.85)
    assert choose_all([base, other]).index == 1
    assert choose_all([base, other], criterion=Criterion(0.3)).index == 0


def test_ties_do_not_depend_on_the_order_of_sums():
    values = np.random.default_rng(0).uniform(0.6, 0.9, 7)
    base = scored([0.5] * 7, is_baseline=True)
    for _ in range(20):
        values = np.random.default_rng(0).permutation(values)
        same = [scored(values[::step], n_components=n) for step, n in ((1, 5), (-1, 3))]
        assert choose_all([base, *same]).index == 2


def test_without_a_baseline_the_best_is_chosen():
    outcomes = [scored([0.5, 0.4]), scored([0.6, 0.4])]
    choice = choose_all(outcomes)
    assert choice.index == 1
    assert "no baseline" in choice.reason
    # Nor if its fits with fresh seeds failed, or all of them.
    outcomes = [scored([0.7], is_baseline=True), scored([0.6])]
    assert choose(outcomes, {1: outcomes[1]}, HALF).index == 1
    assert choose(outcomes, {}, HALF).index == 1
    assert choose(outcomes[:1], {0: outcomes[0]}, HALF).index == 0


def test_ties_go_to_the_smaller_embedding_then_the_earlier_trial():
    baseline = scored([0.5, 0.5], is_baseline=True)
    same = [scored([0.7, 0.7], n_components=n) for n in (5, 3, 3)]
    assert choose_all([baseline, *same]).index == 2


def test_the_pareto_front():
    outcomes = [
        scored([0.5], id=0.9, n_components=9),
        scored([0.5], id=0.9, n_components=8),
        scored([0.4], id=0.95, n_components=9),
        scored([0.4], id=0.94, n_components=9),
        scored([0.1], id=0.1, n_components=1),
        scored([0.5], id=0.9, n_components=8),
    ]
    assert pareto_front(outcomes, "mean") == [1, 2, 4, 5]


# -- Splits ----------------------------------------------------------------------------


def test_one_domain_is_left_out_at_a_time(data):
    X, y, domains = data
    plan = make_plan(X, y, domains=domains)
    assert plan.domains == ["0", "1", "2", "3"]
    assert plan.n_replicates == 1
    for d, split in enumerate(plan.splits):
        ((domain, left_out),) = split.ood.items()
        assert domain == d
        assert set(domains[left_out.rows]) == {d}
        assert set(domains[split.train]) == {0, 1, 2, 3} - {d}
        source = np.flatnonzero(domains != d)
        held_out = split.id.rows
        assert not set(held_out) & set(split.train)
        np.testing.assert_array_equal(np.sort([*held_out, *split.train]), source)
        assert len(held_out) == pytest.approx(len(source) / 5, abs=2)
    assert make_plan(X, y, domains=domains, cv=3).n_replicates == 3


def test_held_out_rows_come_from_all_domains_of_sorted_rows(data):
    X, y, domains = data
    order = np.argsort(domains, kind="stable")
    plan = make_plan(X[order], y[order], domains=domains[order])
    for d, split in enumerate(plan.splits):
        assert set(domains[order][split.id.rows]) == {0, 1, 2, 3} - {d}


def test_shifts_see_the_training_rows_only(data):
    X, y, _ = data
    seen = []

    class Spy(GainDrift):
        def fit(self, X, y=None):
            seen.append(X)
            return super().fit(X, y)

    plan = make_plan(X, y, shifts=[Spy(2)], cv=KFold(4))
    assert plan.domains == ["Spy(2)"]
    for rows, split in zip(seen, plan.splits, strict=True):
        np.testing.assert_array_equal(rows, X[split.train])
        assert split.ood[0].X.shape == X[split.id.rows].shape
    again = make_plan(X, y, shifts=[GainDrift(2)], cv=KFold(4))
    np.testing.assert_array_equal(again.splits[1].ood[0].X, plan.splits[1].ood[0].X)


@pytest.mark.parametrize(
    ("labels", "match"),
    [
        ([None] * 40, "y_ood must hold a label for each row, got 40 that are missing"),
        (np.linspace(0, 1, 40), "Unknown label type: continuous"),
    ],
)
def test_foreign_labels_are_checked(data, labels, match):
    X, y, domains = data
    own = domains < 3
    with pytest.raises(ValueError, match=match):
        make_search().fit(X[own], y[own], X_ood=X[~own], y_ood=labels)


def test_a_domain_must_be_another(data):
    X, y, domains = data
    own = domains < 2
    X_ood = np.vstack([X[~own], X[own][:9]])
    rest = {"y_ood": np.append(y[~own], y[own][:9])}
    names = np.append(domains[~own], [9] * 9)
    with pytest.raises(ValueError, match="got only rows of X in '9'"):
        make_search().fit(X[own], y[own], X_ood=X_ood, domains_ood=names, **rest)
    # A few rows of the source among others are no reason.
    plan = make_plan(X[own], y[own], X_ood=X_ood, **rest)
    assert plan.domains == ["ood"]


@pytest.mark.parametrize("source", ["domains", "X_ood"])
def test_a_domain_must_have_classes_of_the_source(data, source):
    X, y, domains = data
    y = np.where(domains == 3, 7, y)
    own = domains < 3
    given = {"X": X, "y": y, "domains": domains}
    if source == "X_ood":
        given = {"X": X[own], "y": y[own], "X_ood": X[~own], "y_ood": y[~own]}
    with pytest.raises(ValueError, match=r"must hold rows of classes .* got none in"):
        make_search().fit(**given)


def test_batches_of_one_row_are_not_to_be_normalised(data):
    kinds = [
        {params["normalization"] for params in suggested(None, make(batch_size=n), 30)}
        for n in (1, 2)
    ]
    assert kinds == [{None}, {None, "batch"}]


def test_names_of_shifts():
    rng = np.random.default_rng(0)
    X, y = rng.random((20, 4)), np.arange(20) % 2
    shifts = [GainDrift(1), GainDrift(1), GainDrift(2), FeatureDropout(1), GainDrift(1)]
    shifts += [Corruption("fog", 2), Corruption("snow", 2)]
    assert make_plan(X, y, shifts=shifts, cv=2).domains == [
        *("GainDrift(1)", "GainDrift(1) #2", "GainDrift(2)", "FeatureDropout(1)"),
        *("GainDrift(1) #3", "fog(2)", "snow(2)"),
    ]


@pytest.mark.parametrize(
    ("options", "given", "message"),
    [
        ({}, {}, "got none"),
        ({"shifts": SHIFTS}, {"domains": True}, "got domains and shifts"),
        ({"shifts": SHIFTS}, {"X_ood": True, "y_ood": True}, "got X_ood and shifts"),
        ({}, {"X_ood": True}, "y_ood must hold"),
        ({}, {"domains": True, "y_ood": True}, "y_ood must come with X_ood"),
        ({"shifts": []}, {}, "at least one transformer"),
        ({"shifts": [3]}, {}, "fit and transform"),
    ],
)
def test_exactly_one_source_of_shift(data, options, given, message):
    X, y, domains = data
    values = {"domains": domains, "X_ood": X, "y_ood": y}
    with pytest.raises((ValueError, TypeError), match=message):
        make_search(**options).fit(X, y, **{name: values[name] for name in given})


def test_bad_domains(data):
    X, y, domains = data
    for bad, message in [
        (np.zeros(160), "at least two domains"),
        (domains[:-1], "inconsistent numbers"),
        (np.stack([domains, domains], 1), "label for each row, in a 1d array"),
        (np.where(domains == 0, np.nan, domains), "NaN"),
        (np.array(["a", None] * 80, dtype=object), "80 that are missing"),
    ]:
        with pytest.raises(ValueError, match=message):
            make_search().fit(X, y, domains=bad)
    with pytest.raises(ValueError, match="shape of X"):
        make_search().fit(X, y, X_ood=X[:, :3], y_ood=y)


# -- Domains without one of the classes, or with one of their own ----------------------


def one_sided(data, lacking=(), holding=()):
    """Return the data with domain 3 without some classes, or with others of its own."""
    X, y, domains = data
    y = y.copy()
    y[(domains == 3) & np.isin(y, lacking)] = 0
    for label in holding:
        y[np.flatnonzero((domains == 3) & (y == 0))[:6]] = label
    return X, y, domains


@pytest.mark.parametrize("source", ["domains", "X_ood"])
@pytest.mark.parametrize("scoring", ["neg_log_loss", "neg_brier_score"])
def test_a_loss_is_told_of_the_classes_that_a_domain_lacks(data, source, scoring):
    X, y, domains = one_sided(data, lacking=[2])
    own = domains < 2
    rows, rest = (X, y), {"domains": domains}
    if source == "X_ood":
        rows = (X[own], y[own])
        rest = {"X_ood": X[~own], "y_ood": y[~own], "domains_ood": domains[~own]}
    search = make_search(n_trials=5, scoring=scoring).fit(*rows, **rest)
    assert search.domains_[-1] == "3"
    assert (search.cv_results_["state"] == "COMPLETE").all()
    if source == "X_ood":
        # By hand: the mean over folds of what the probabilities of all classes cost.
        (base, *_), folds = search.cv_results_["params"], search.study_.trials[0]
        scores = outcome(folds).ood[:, 1]
        plan = make_plan(*rows, cv=2, seed=search._seeds()[0], **rest)
        for split, score in zip(plan.splits, scores, strict=True):
            model = make(**base, random_state=search._seeds()[1])
            model.fit(X[own][split.train], y[own][split.train])
            P = model.predict_proba(X[domains == 3])
            right = np.eye(3)[y[domains == 3]]
            expected = {
                "neg_log_loss": np.log((P * right).sum(axis=1)).mean(),
                "neg_brier_score": -((P - right) ** 2).sum(axis=1).mean(),
            }[scoring]
            assert score == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize(
    ("scoring", "change", "reason"),
    [
        ("roc_auc_ovr", {"lacking": [2]}, r"no row is of \[2\]"),
        ("roc_auc_ovo", {"lacking": [1, 2]}, r"no row is of \[1, 2\]"),
        ("neg_log_loss", {"holding": [7]}, r"no fit knows \[7\]"),
        ("neg_log_loss", {"lacking": [2], "holding": [7]}, r"\[2\] and no fit knows"),
    ],
)
def test_a_domain_without_a_score_is_left_out_by_name(data, scoring, change, reason):
    X, y, domains = one_sided(data, **change)
    search = make_search(n_trials=5, scoring=scoring)
    said = f"scoring='{scoring}' is not defined on domain '3', where .*{reason}"
    with pytest.warns(UndefinedMetricWarning, match=said) as record:
        search.fit(X, y, domains=domains)
    assert record[0].filename == __file__
    assert search.domains_ == ["0", "1", "2"]
    assert search.n_splits_ == 6
    assert np.isfinite(search.cv_results_["mean_test_score"]).all()
    # It is a source of the others all the same.
    assert set(search.classes_) == set(y)


def test_two_classes_and_a_domain_of_one_of_them(data):
    X, y, domains = data
    y = np.where((domains == 1) | (y == 0), "no", "yes")
    search = make_search(n_trials=5, scoring="roc_auc", aggregate="worst")
    own = domains == 0
    with pytest.warns(UndefinedMetricWarning, match="domain '1', where no row is of"):
        search.fit(
            X[own], y[own], X_ood=X[~own], y_ood=y[~own], domains_ood=domains[~own]
        )
    assert search.domains_ == ["2", "3"]
    assert outcome(search.study_.trials[0]).ood.shape[1] == 2


def test_classes_do_not_matter_to_accuracy(data):
    X, y, domains = one_sided(data, lacking=[2], holding=[7])
    search = make_search(n_trials=5).fit(X, y, domains=domains)
    assert search.domains_ == ["0", "1", "2", "3"]
    assert np.isfinite(search.cv_results_["mean_test_ood_3"]).all()


def test_no_search_without_a_score(data, monkeypatch):
    monkeypatch.setattr("sksoftrank.search._jobs.fit_stacked", None)
    X, y, domains = data
    y = np.minimum(y, 1)
    for d in range(4):
        y[(domains == d)] = d % 2
    with pytest.raises(ValueError, match="leaves no domain to score"):
        make_search(scoring="roc_auc").fit(X, y, domains=domains)
    # A fold of source rows without a class.
    y, folds = data[1], [(np.arange(80), np.flatnonzero(data[1][80:] > 0) + 80)]
    with pytest.raises(ValueError, match=r"held-out source rows, but .* of \[0\]"):
        make_search(scoring="roc_auc_ovr", cv=folds, shifts=SHIFTS).fit(X, y)


# -- Folds of one's own ----------------------------------------------------------------


@pytest.mark.parametrize("form", [list, iter])
def test_an_iterator_gives_its_folds_to_every_domain(data, form):
    X, y, domains = data
    folds = [(np.arange(60), np.arange(60, 120)), (np.arange(60, 120), np.arange(60))]
    expected = make_plan(X, y, domains=domains, cv=KFold(2))
    plan = make_plan(X, y, domains=domains, cv=form(folds[::-1]))
    for own, other in zip(expected.splits, plan.splits, strict=True):
        np.testing.assert_array_equal(own.train, other.train)
        np.testing.assert_array_equal(own.id.rows, other.id.rows)
    masks = [tuple(np.isin(np.arange(120), rows) for rows in fold) for fold in folds]
    plan = make_plan(X, y, domains=domains, cv=form(masks[::-1]))
    np.testing.assert_array_equal(plan.splits[-1].train, expected.splits[-1].train)


@pytest.mark.parametrize(
    ("cv", "message"),
    [
        (PredefinedSplit(np.arange(160) % 2), "the 120 rows of .*domain '0'"),
        (iter([(np.arange(100), np.arange(100, 160))]), "120 rows .*StratifiedKFold"),
        ([(np.ones(160, dtype=bool), np.arange(3))], "the 120 rows of the source"),
        ([(np.arange(50), np.arange(40, 60))], "50 and 20 rows .* 10 of them the same"),
        ([([], [1, 2])], "got 0 and 2 rows"),
        ([([1, 2], [])], "got 2 and 0 rows"),
        (iter([]), "at least one split"),
    ],
)
def test_folds_that_do_not_fit_are_refused(data, cv, message, monkeypatch):
    monkeypatch.setattr("sksoftrank.search._jobs.fit_stacked", None)
    X, y, domains = data
    with pytest.raises(ValueError, match=message):
        make_search(cv=cv).fit(X, y, domains=domains)


def test_folds_of_all_rows_must_fit_too(data):
    X, y, _ = data
    for cv, message in [
        ([(np.arange(80), np.arange(100, 161))], "indices of the 160 rows of X"),
        ([(np.arange(80), np.arange(79, 160))], "1 of them the same"),
    ]:
        with pytest.raises(ValueError, match=message):
            make_search(cv=cv, shifts=SHIFTS).fit(X, y)
    plan = make_plan(X, y, shifts=SHIFTS, cv=PredefinedSplit(np.arange(160) % 2))
    np.testing.assert_array_equal(plan.splits[1].id.rows, np.arange(1, 160, 2))


# -- Spaces ----------------------------------------------------------------------------


def suggested(space, estimator, n=40, **fixed):
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    made = make_space(space, estimator, 100)
    for _ in range(n):
        trial = study.ask()
        params = made.suggest(trial)
        study.tell(trial, 0.0)
        # What another process makes of the stored trial.
        again = made.suggest(study.trials[-1])
        assert repr(again) == repr(params)
        yield params


@pytest.mark.filterwarnings("error")
def test_distributions_of_optuna_and_scipy_and_lists():
    scaler = StandardScaler()
    space = {
        "net__temperature": FloatDistribution(1, 10, log=True),
        "net__activation": CategoricalDistribution(["relu", "tanh"]),
        "net__hidden_layer_sizes": [(8,), (4, 4)],
        "net__weight_decay": stats.loguniform(1e-4, 1e-2),
        "net__dropout": stats.uniform(0.1, 0.2),
        "net__batch_size": stats.randint(8, 11),
        "net__tol": stats.expon(scale=1e-3),
        "net__max_epochs": stats.poisson(3, loc=1),
        "net__label_smoothing": np.array([0.0, 0.1]),
        "scale": [scaler, MinMaxScaler(), "passthrough"],
    }
    estimator = Pipeline([("scale", StandardScaler()), ("net", make())])
    drawn = list(suggested(space, estimator))
    seen = {name: {str(params[name]) for params in drawn} for name in space}
    assert seen["net__hidden_layer_sizes"] == {"(8,)", "(4, 4)"}
    assert seen["net__batch_size"] == {"8", "9", "10"}
    assert seen["scale"] == {"StandardScaler()", "MinMaxScaler()", "passthrough"}
    assert seen["net__label_smoothing"] == {"0.0", "0.1"}
    for params in drawn:
        assert 1e-4 <= params["net__weight_decay"] <= 1e-2
        assert 0.1 <= params["net__dropout"] <= 0.3
        assert params["net__tol"] > 0
        assert isinstance(params["net__max_epochs"], int)
        clone(estimator).set_params(**params)


@pytest.mark.parametrize(
    ("space", "error", "message"),
    [
        ({}, ValueError, "at least one parameter"),
        ({"temprature": [1]}, ValueError, "Did you mean temperature"),
        ({"temperature": 3.0}, TypeError, r"Use \[3.0\]"),
        ({"temperature": []}, ValueError, "at least one value"),
        (lambda trial: 3, TypeError, "must return a dict"),
        (lambda trial: {"x": 1}, ValueError, "got 'x'"),
    ],
)
def test_bad_spaces(data, space, error, message):
    X, y, domains = data
    with pytest.raises(error, match=message):
        make_search(space=space).fit(X, y, domains=domains)


SEARCHED = (
    *("learning_rate", "weight_decay", "label_smoothing", "dropout"),
    *("normalization", "hidden_layer_sizes"),
)


@pytest.mark.parametrize(
    ("estimator", "names"),
    [
        (make(), {"temperature", *SEARCHED}),
        (
            make_pipeline(StandardScaler(), make()),
            {f"softrankmlpclassifier__{name}" for name in ("temperature", *SEARCHED)},
        ),
        (
            SoftRankEnsembleClassifier(make(), 2),
            {
                "temperature",
                *(f"estimator__{name}" for name in SEARCHED),
            },
        ),
        (
            SoftRankEnsembleClassifier(),
            {
                *("estimator", "temperature"),
                # The length, where it isn't given.
                *(f"estimator__{name}" for name in (*SEARCHED, "max_epochs")),
            },
        ),
    ],
    ids=["mlp", "pipeline", "ensemble", "ensemble of none"],
)
def test_the_default_space_and_the_baseline(estimator, names):
    for params in suggested(None, estimator, 5):
        assert set(params) == names
        clone(estimator).set_params(**params)._validate_params()
    space = make_space(None, estimator, 100)
    queue = default_queue(None, estimator, space)
    baselines = [q.params for name, q in queue.items() if name.startswith("baseline")]
    for params in baselines:
        fitted = clone(estimator).set_params(**params).get_params()
        assert [v for k, v in fitted.items() if k.endswith("temperature")][-1] == 1.0
    rates = [
        value
        for params in baselines
        for name, value in params.items()
        if name.endswith("learning_rate")
    ]
    assert rates == pytest.approx([1e-2, 3e-3, 1e-3, 3e-4])


def test_the_baseline_may_have_any_learning_rate_that_is_searched():
    # Else temperature gets the credit for one that the baseline was not allowed.
    assert min(space_module.BASELINE_FACTORS) <= min(space_module._RATE_FACTORS)
    assert max(space_module.BASELINE_FACTORS) >= max(space_module._RATE_FACTORS)


def test_no_default_for_a_foreign_estimator(data):
    X, y, domains = data
    with pytest.raises(ValueError, match="got None for LogisticRegression"):
        OODSearchCV(LogisticRegression()).fit(X, y, domains=domains)


def test_a_conditional_space(data):
    X, y, domains = data

    def space(trial):
        optimizer = trial.suggest_categorical("optimizer", ["adam", "sgd"])
        params = {"optimizer": optimizer}
        if optimizer == "adam":
            params["weight_decay"] = trial.suggest_float("decay", 1e-4, 1, log=True)
        else:
            params["max_grad_norm"] = trial.suggest_float("norm", 0.1, 1)
        return params

    values = {"optimizer": ["adam", "sgd"], "decay": [0.1], "norm": [0.5]}
    sampler = optuna.samplers.GridSampler(values)
    search = make_search(space=space, sampler=sampler).fit(X, y, domains=domains)
    kinds = {frozenset(params) for params in search.cv_results_["params"][4:]}
    assert kinds == {
        frozenset({"optimizer", "weight_decay"}),
        frozenset({"optimizer", "max_grad_norm"}),
    }
    assert search.cv_results_["param_max_grad_norm"].mask.any()


# -- The search ------------------------------------------------------------------------


class Noting(BaseEstimator):
    """A classifier that notes the rows it is fitted on."""

    _estimator_type = "classifier"
    fits: list = []  # noqa: RUF012

    def __init__(self, temperature=1.0, random_state=None):
        self.temperature = temperature
        self.random_state = random_state

    def __sklearn_tags__(self):
        return LogisticRegression().__sklearn_tags__()

    def fit(self, X, y):
        Noting.fits.append(X)
        self.inner_ = KNeighborsClassifier(1).fit(X, y)
        self.classes_ = self.inner_.classes_
        return self

    def predict(self, X):
        return self.inner_.predict(X)

    def score(self, X, y):
        return self.inner_.score(X, y)


def test_no_fit_sees_the_rows_it_is_scored_on(data, monkeypatch):
    X, y, domains = data
    monkeypatch.setattr(Noting, "fits", [])
    X_ood = X + 100
    search = make_search(Noting(), {"temperature": [1.0, 2.0]}, n_trials=3)
    search.fit(X, y, X_ood=X_ood, y_ood=y, domains_ood=domains)
    source = {tuple(row) for row in X}
    for rows in Noting.fits:
        assert {tuple(row) for row in rows} <= source
    # The last fit is the best one's, on all rows of X and on nothing else.
    np.testing.assert_array_equal(Noting.fits[-1], X)
    # Three configurations on two splits, and with a fresh seed again.
    assert len(Noting.fits) == 2 * 3 * 2 + 1
    assert search.domains_ == ["0", "1", "2", "3"]


def test_no_fit_sees_the_domain_it_is_scored_on(data, monkeypatch):
    X, y, domains = data
    monkeypatch.setattr(Noting, "fits", [])
    make_search(Noting(), {"temperature": [1.0]}, n_trials=2, cv=None, refit=False).fit(
        X, y, domains=domains
    )
    by_row = {tuple(row): domain for row, domain in zip(X, domains, strict=True)}
    seen = [{by_row[tuple(row)] for row in rows} for rows in Noting.fits]
    assert seen == 4 * [{1, 2, 3}, {0, 2, 3}, {0, 1, 3}, {0, 1, 2}]


class Solo(SoftRankMLPClassifier):
    """Fits by itself: a `fit` of its own can't be stacked."""

    def fit(self, X, y, sample_weight=None):
        return super().fit(X, y, sample_weight)


@pytest.mark.parametrize("source", ["domains", "X_ood", "shifts"])
def test_stacks_score_as_single_fits_do(data, source):
    X, y, domains = data
    options = {"shifts": SHIFTS} if source == "shifts" else {}
    given = {
        "domains": {"domains": domains},
        "X_ood": {"X_ood": X * 1.5, "y_ood": y, "domains_ood": domains},
        "shifts": {},
    }[source]
    searches = []
    for kind in (SoftRankMLPClassifier, Solo):
        estimator = kind(**make().get_params())
        pipeline = Pipeline([("scale", StandardScaler()), ("net", estimator)])
        space = {"net__temperature": stats.loguniform(0.3, 100)}
        search = make_search(pipeline, space, scoring="neg_log_loss", **options)
        searches.append(search.fit(X, y, **given))
    stacked, single = searches
    assert stacked.fallback_reason_ is None
    assert "Solo" in single.fallback_reason_
    pd.testing.assert_frame_equal(
        stacked.results_.drop(columns=TIMES),
        single.results_.drop(columns=TIMES),
    )
    assert stacked.best_reason_ == single.best_reason_
    np.testing.assert_array_equal(stacked.predict_proba(X), single.predict_proba(X))


def test_scores_are_those_of_a_hand_written_loop(data):
    X, y, domains = data
    search = make_search(make(), n_trials=5, n_final_seeds=2, cv=None)
    search.fit(X, y, domains=domains)
    seeds = search._seeds()
    plan = make_plan(X, y, domains=domains, seed=seeds[0])
    finalist = np.flatnonzero(search.cv_results_["stage"] == 2)[-1]
    for k, stage, own in [
        (1, "test", seeds[1:2]),
        (4, "test", seeds[1:2]),
        (finalist, "final", seeds[2:]),
    ]:
        ood, held_out = np.empty((len(own), 4)), []
        for row, seed in enumerate(own):
            for d, split in enumerate(plan.splits):
                clf = make(random_state=seed, **search.cv_results_["params"][k])
                clf.fit(X[split.train], y[split.train])
                ood[row, d] = clf.score(X[domains == d], y[domains == d])
                held_out.append(clf.score(X[split.id.rows], y[split.id.rows]))
        for name, score in {
            "score": (ood.mean() + np.mean(held_out)) / 2,
            "ood_2": ood[:, 2].mean(),
            "id": np.mean(held_out),
        }.items():
            theirs = search.cv_results_[f"mean_{stage}_{name}"][k]
            assert theirs == pytest.approx(score)
    # Of the finalist, over its seeds.
    for name, scores in {
        "ood": ood.mean(axis=1),
        "ood_2": ood[:, 2],
        "id": np.reshape(held_out, ood.shape).mean(axis=1),
    }.items():
        theirs = search.cv_results_[f"std_final_{name}"][finalist]
        assert theirs == pytest.approx(np.std(scores))


def test_the_first_trials_are_the_baseline(data):
    X, y, domains = data
    search = make_search(make(dropout=0.1, temperature=50.0)).fit(X, y, domains=domains)
    assert search.cv_results_["is_baseline"].tolist() == [True] * 4 + [False] * 3
    assert search.cv_results_["params"][:4] == [
        {"temperature": 1.0, "learning_rate": pytest.approx(factor * 1e-2)}
        for factor in (1.0, 0.3, 0.1, 0.03)
    ]
    assert search.best_params_ == search.cv_results_["params"][search.best_index_]
    # The sampler learns from them: no trial is without the space's parameters.
    assert all("temperature" in trial.params for trial in search.study_.trials)


def test_results_and_attributes(data):
    X, y, domains = data
    search = make_search(make_pipeline(StandardScaler(), make()), None)
    search.set_params(param_distributions=None).fit(X, y, domains=domains)
    table = search.results_
    assert isinstance(table, pd.DataFrame)
    assert len(table) == search.n_trials_ == 7
    assert list(table["rank_test_score"].sort_values()) == sorted(
        stats.rankdata(-table["mean_test_score"], method="min")
    )
    scores = table[[f"mean_test_ood_{d}" for d in range(4)]]
    np.testing.assert_allclose(scores.mean(axis=1), table["mean_test_ood"])
    np.testing.assert_allclose(
        table[["mean_test_ood", "mean_test_id"]].mean(axis=1), table["mean_test_score"]
    )
    assert table["n_components"].between(1, 8).all()
    assert table["rank"].between(1, 8).all()
    assert (table["mean_fit_time"] > 0).all()
    assert table["state"].unique().tolist() == ["COMPLETE"]
    finals = table[table["stage"] == 2]
    assert len(finals) == 4
    assert finals["is_baseline"].any()
    assert (finals["n_seeds"] == 2).all()
    assert (table["n_seeds"][table["stage"] == 1] == 1).all()
    assert table["mean_final_score"].notna().tolist() == (table["stage"] == 2).tolist()
    fresh = table[[f"mean_final_ood_{d}" for d in range(4)]]
    np.testing.assert_allclose(fresh.mean(axis=1), table["mean_final_ood"])
    best = table.loc[search.best_index_]
    assert search.best_score_ == pytest.approx(
        (best["mean_test_score"] + best["mean_final_score"]) / 2
    )
    assert search.n_splits_ == 8
    assert search.score(X, y) == search.best_estimator_.score(X, y)
    np.testing.assert_array_equal(search.classes_, [0, 1, 2])
    assert search.transform(X).shape == (160, search.best_estimator_[-1].n_components_)
    assert search.n_features_in_ == 8
    assert search.refit_time_ > 0


def test_the_same_random_state_gives_the_same_search(data):
    X, y, domains = data
    one, other = (
        make_search(n_jobs=n_jobs).fit(X, y, domains=domains) for n_jobs in (None, 2)
    )
    pd.testing.assert_frame_equal(
        one.results_.drop(columns=TIMES), other.results_.drop(columns=TIMES)
    )
    np.testing.assert_array_equal(one.predict_proba(X), other.predict_proba(X))
    third = make_search(random_state=1).fit(X, y, domains=domains)
    assert (third.results_["mean_test_score"] != one.results_["mean_test_score"]).any()


def test_it_chooses_what_holds_up():
    # A column that tells the classes apart here and misleads elsewhere: without it the
    # accuracy under the shift is much higher, and the baseline is beaten.
    rng = np.random.default_rng(0)
    y = np.arange(400) % 2
    X = rng.standard_normal((400, 2)) + 2.5 * np.column_stack([y, y])
    X_ood = X.copy()
    X_ood[:, 1] = 3 * rng.standard_normal(400)

    class Column(BaseEstimator):
        def __init__(self, drop=False):
            self.drop = drop

        def fit(self, X, y=None):
            return self

        def transform(self, X):
            return X[:, :1] if self.drop else X

    pipeline = make_pipeline(Column(), LogisticRegression())
    search = OODSearchCV(
        pipeline,
        {"column__drop": [True]},
        n_trials=2,
        ood_weight=0.9,
        random_state=0,
    ).fit(X, y, X_ood=X_ood, y_ood=y)
    assert search.best_params_ == {"column__drop": True}
    assert "beats the baseline" in search.best_reason_
    tight = clone(search).set_params(ood_weight=0.1).fit(X, y, X_ood=X_ood, y_ood=y)
    assert tight.best_params_ == {}
    assert tight.best_reason_.startswith("The baseline")


def test_an_estimator_without_a_seed_has_no_second_stage(data):
    X, y, domains = data
    space = {"n_neighbors": [1, 3, 9]}
    search = make_search(KNeighborsClassifier(), space, n_trials=4)
    search.fit(X, y, domains=domains)
    assert (search.cv_results_["stage"] == 1).all()
    assert np.isnan(search.cv_results_["mean_final_score"]).all()
    best = search.cv_results_["mean_test_score"][search.best_index_]
    assert search.best_score_ == best
    assert "fresh" not in search.best_reason_


def test_a_second_stage_that_was_interrupted_goes_on(data, monkeypatch):
    X, y, domains = data
    expected = make_search().fit(X, y, domains=domains)
    search, run = make_search(), Evaluation.run
    calls = []

    def interrupt(self, candidates, seeds, checks=None):
        calls.append(tuple(seeds))
        if calls.count(tuple(search._seeds()[2:])) == 1:
            raise KeyboardInterrupt
        return run(self, candidates, seeds, checks)

    monkeypatch.setattr(Evaluation, "run", interrupt)
    with pytest.raises(KeyboardInterrupt):
        search.fit(X, y, domains=domains)
    n_before = len(calls)
    search.fit(X, y, domains=domains)
    assert len(calls) == n_before + 1
    assert search.best_index_ == expected.best_index_
    assert search.best_score_ == expected.best_score_
    assert len(search.study_.trials) == 7


@pytest.mark.parametrize("is_pipeline", [False, True])
def test_an_ensemble_of_the_choice(data, is_pipeline):
    X, y, domains = data
    estimator, space = make(), {"temperature": [3.0, 9.0]}
    if is_pipeline:
        estimator = make_pipeline(StandardScaler(), estimator)
        space = {"softrankmlpclassifier__temperature": [3.0, 9.0]}
    search = make_search(estimator, space, refit="ensemble", n_estimators=3)
    search.fit(X, y, domains=domains)
    best = search.best_estimator_
    ensemble = best[-1] if is_pipeline else best
    assert isinstance(ensemble, SoftRankEnsembleClassifier)
    assert len(ensemble.estimators_) == 3
    chosen = clone(estimator).set_params(**search.best_params_)
    chosen = chosen[-1] if is_pipeline else chosen
    for member in ensemble.estimators_:
        own = {**member.get_params(), "random_state": None}
        assert own == chosen.get_params()
    assert search.transform(X).shape[1] == ensemble.n_components_
    assert search.predict(X).shape == y.shape


def test_an_ensemble_of_what_is_no_network(data):
    X, y, domains = data
    search = make_search(LogisticRegression(), {"C": [1.0]}, refit="ensemble")
    with pytest.raises(ValueError, match=r"got LogisticRegression\. Use refit=True"):
        search.fit(X, y, domains=domains)


def test_the_pareto_front_of_a_search(data):
    X, y, domains = data
    search = make_search(objective="pareto", n_trials=8).fit(X, y, domains=domains)
    front = {entry["index"] for entry in search.pareto_front_}
    table = search.results_
    points = table[["mean_test_ood", "mean_test_id"]].assign(
        size=-table["n_components"]
    )
    for k, point in points.iterrows():
        beaten = (points >= point).all(axis=1) & (points > point).any(axis=1)
        assert (k in front) != beaten.any()
    assert len(search.study_.directions) == 3
    assert {t.number for t in search.study_.best_trials} == set(
        table["trial"][sorted(front)]
    )
    assert search.best_index_ in front or table["is_baseline"][search.best_index_]


def test_a_pareto_front_needs_a_size_and_no_pruner(data):
    X, y, domains = data
    with pytest.raises(ValueError, match="embedding has a size"):
        OODSearchCV(LogisticRegression(), {"C": [1]}, objective="pareto").fit(
            X, y, domains=domains
        )
    with pytest.raises(ValueError, match="pruner must be None"):
        make_search(objective="pareto", pruner=optuna.pruners.MedianPruner()).fit(
            X, y, domains=domains
        )


class Below(optuna.pruners.BasePruner):
    """Ends every trial at once, or none."""

    def __init__(self, is_on):
        self.is_on = is_on

    def prune(self, study, trial):
        return self.is_on


@pytest.mark.parametrize("n_jobs", [None, 2])
@pytest.mark.parametrize("callbacks", [None, [Callback()]])  # Stacked, and by skorch.
def test_pruned_trials_end_early(data, n_jobs, callbacks):
    X, y, domains = data
    estimator = make(max_epochs=20, callbacks=callbacks)
    search = make_search(estimator, pruner=Below(True), n_jobs=n_jobs)
    search.fit(X, y, domains=domains)
    assert search.cv_results_["state"].tolist() == ["COMPLETE"] * 4 + ["PRUNED"] * 3
    assert np.isnan(search.cv_results_["mean_test_score"][4:]).all()
    assert search.best_index_ < 4
    # Every second epoch of the baseline; the others end at their first report.
    steps = [sorted(t.intermediate_values) for t in search.study_.trials]
    assert steps == [list(range(2, 20, 2))] * 4 + [[2]] * 3


@pytest.mark.parametrize("callbacks", [None, [Callback()]])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_reports_change_nothing(data, callbacks, dtype):
    X, y, domains = data
    X = X.astype(dtype)  # In double precision a copy of the network predicts.
    estimator = make(dropout=0.1, normalization="batch", callbacks=callbacks)
    plain = make_search(estimator).fit(X, y, domains=domains)
    pruned = make_search(estimator, pruner=Below(False)).fit(X, y, domains=domains)
    net = pruned.best_estimator_.net_
    assert [type(c) for _, c in net.callbacks_] == [
        type(c) for _, c in plain.best_estimator_.net_.callbacks_
    ]
    pd.testing.assert_frame_equal(
        plain.results_.drop(columns=TIMES),
        pruned.results_.drop(columns=TIMES),
    )


@pytest.mark.parametrize("callbacks", [None, [Callback()]])
def test_a_report_is_the_score_at_that_epoch(data, callbacks):
    X, y, domains = data
    estimator = make(
        max_epochs=10,
        lr_schedule="constant",
        dropout=0.3,
        normalization="batch",
        callbacks=callbacks,
    )
    options = {"n_trials": 5}
    search = make_search(estimator, pruner=Below(False), **options)
    reports = search.fit(X, y, domains=domains).study_.trials[0].intermediate_values
    short = make_search(clone(estimator).set_params(max_epochs=4), **options)
    short.fit(X, y, domains=domains)
    assert reports[4] == short.cv_results_["mean_test_score"][0]


def test_a_pruned_network_of_its_own_saves_its_epochs(data):
    X, y, domains = data
    own = domains < 3
    epochs = []

    class Count(Callback):
        def on_epoch_end(self, net, **kwargs):
            epochs.append(net.history[-1, "epoch"])

        def __deepcopy__(self, memo):
            return self

    search = make_search(
        SoftRankCNNClassifier(
            (4,), input_shape=(1, 4, 2), max_epochs=10, callbacks=[Count()]
        ),
        cv=ShuffleSplit(1, random_state=0),
        pruner=Below(True),
        refit=False,
    )
    search.fit(X[own], y[own], X_ood=X[~own], y_ood=y[~own])
    assert search.cv_results_["state"].tolist() == ["COMPLETE"] * 4 + ["PRUNED"] * 3
    # Finalists are the baselines, and train to the end.
    assert epochs == [*range(1, 11)] * 4 + [1] * 3 + [*range(1, 11)] * 4


def test_a_pipeline_is_not_fitted_on_held_out_rows(data):
    X, y, domains = data
    seen = []

    class Spy(StandardScaler):
        def fit(self, X, y=None, sample_weight=None):
            seen.append(len(X))
            return super().fit(X, y, sample_weight)

    pipeline = Pipeline([("scale", Spy()), ("pca", PCA(4)), ("net", make())])
    space = {"net__temperature": [1.0, 10.0], "pca__n_components": [2, 4]}
    search = make_search(pipeline, space, cv=None).fit(X, y, domains=domains)
    assert search.fallback_reason_ is None
    assert set(seen[:-1]) == {96}
    assert seen[-1] == 160


def test_fits_that_fail(data):
    X, y, domains = data
    space = {"learning_rate": [1e-3, 1e30]}
    search = make_search(space=space, n_trials=9)
    with pytest.warns(FitFailedWarning, match="trials failed and are out"):
        search.fit(X, y, domains=domains)
    failed = search.cv_results_["state"] == "FAIL"
    rates = search.cv_results_["param_learning_rate"]
    np.testing.assert_array_equal(failed, rates == 1e30)
    assert not failed[search.best_index_]
    with pytest.raises(FloatingPointError):
        clone(search).set_params(error_score="raise").fit(X, y, domains=domains)
    zero = clone(search).set_params(error_score=0.0).fit(X, y, domains=domains)
    assert (zero.cv_results_["mean_test_score"][failed] == 0).all()
    broken = make_search(make(learning_rate=1e30), {"dropout": [0.0]}, n_trials=4)
    with pytest.raises(ValueError, match="All 4 trials failed, the first with: Floa"):
        broken.fit(X, y, domains=domains)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_trials": 0}, "n_trials"),
        ({"objective": "best"}, "objective"),
        ({"min_gain": -1}, "min_gain"),
        ({"ood_weight": 1.5}, "ood_weight"),
        ({"n_trials": 4}, "n_trials must leave configurations beside the 4"),
        ({"n_finalists": 7}, "n_finalists must be less than n_trials"),
        ({"aggregate": "median"}, "aggregate"),
        ({"scoring": ["accuracy", "f1_macro"]}, "scoring"),
        ({"estimator": Ridge()}, "must be a classifier"),
        ({"estimator": make(temperature=-1.0)}, "temperature"),
        ({"sampler": "tpe"}, "sampler"),
    ],
)
def test_bad_parameters(data, options, message, monkeypatch):
    X, y, domains = data
    monkeypatch.setattr("sksoftrank.search._jobs.fit_stacked", None)
    with pytest.raises(ValueError, match=message):
        make_search(**options).fit(X, y, domains=domains)


def test_a_search_that_fails_leaves_the_last_one(data):
    X, y, domains = data
    search = make_search().fit(X, y, domains=domains)
    before = search.predict(X)
    with pytest.raises(ValueError, match="source of shift"):
        search.fit(X, y)
    np.testing.assert_array_equal(search.predict(X), before)


def test_a_timeout_ends_it_once_the_baseline_is_done(data):
    X, y, domains = data
    search = make_search(timeout=1e-9).fit(X, y, domains=domains)
    assert search.cv_results_["is_baseline"].tolist() == [True] * 4


def test_nothing_is_printed_unless_asked(data, capfd):
    X, y, domains = data
    make_search().fit(X, y, domains=domains)
    assert capfd.readouterr() == ("", "")
    search = make_search(verbose=1).fit(X, y, domains=domains)
    out, err = capfd.readouterr()
    assert out == ""
    assert "7/7" in err
    assert f"best {search.cv_results_['mean_test_score'].max():.4f}" in err


# -- What goes along with the rows -----------------------------------------------------


def test_sample_weights_and_groups(data):
    X, y, domains = data
    weight = np.random.default_rng(0).uniform(0.5, 2, 160)
    plain = make_search().fit(X, y, domains=domains)
    weighed = make_search().fit(X, y, domains=domains, sample_weight=weight)
    assert (
        weighed.results_["mean_test_score"] != plain.results_["mean_test_score"]
    ).any()
    groups = np.arange(160) // 8
    make_search(cv=GroupKFold(2)).fit(X, y, domains=domains, groups=groups)
    make_search(cv=GroupKFold(2)).fit(X, y, X_ood=X + 1, y_ood=y, groups=groups)


def test_metadata_routing(data):
    X, y, domains = data
    weight = np.random.default_rng(0).uniform(0.5, 2, 160)
    expected = make_search().fit(X, y, domains=domains, sample_weight=weight)
    with sklearn.config_context(enable_metadata_routing=True):
        estimator = make().set_fit_request(sample_weight=True)
        estimator.set_score_request(sample_weight=True)
        search = make_search(estimator).fit(X, y, domains=domains, sample_weight=weight)
        # And of the search itself, within another.
        search.set_fit_request(domains=True)
        scores = cross_validate(search, X, y, cv=2, params={"domains": domains})
    assert len(scores["test_score"]) == 2
    np.testing.assert_array_equal(
        search.results_["n_components"], expected.results_["n_components"]
    )


@pytest.mark.parametrize("kind", ["array", "matrix"])
@pytest.mark.parametrize("name", ["bsr", "coo", "csc", "csr", "dia", "dok", "lil"])
def test_foreign_rows_in_any_sparse_format(data, name, kind):
    X, y, domains = data
    form = getattr(sparse, f"{name}_{kind}")
    own = domains < 2
    foreign = {"y_ood": y[~own], "domains_ood": domains[~own]}
    plan = make_plan(X[own], y[own], X_ood=form(X[~own]), cv=2, **foreign)
    expected = make_plan(X[own], y[own], X_ood=X[~own], cv=2, **foreign)
    for split, dense in zip(plan.splits, expected.splits, strict=True):
        for d in dense.ood:
            got, wanted = split.ood[d].cut()[0], dense.ood[d].cut()[0]
            np.testing.assert_array_equal(got.toarray(), wanted)
    search = make_search(LogisticRegression(), {"C": [0.1, 1.0]}, n_trials=3)
    search.fit(form(X[own]), y[own], X_ood=form(X[~own]), **foreign)
    assert len(search.domains_) == 2


def test_frames_and_labels_that_are_words(data):
    X, y, domains = data
    frame = pd.DataFrame(X, columns=[f"c{i}" for i in range(8)])
    labels = pd.Series(np.array(["a", "b", "c"])[y])
    months = pd.Series(np.array(["jan", "feb", "mar", "apr"])[domains])
    search = make_search(make_pipeline(StandardScaler(), make()))
    search.set_params(param_distributions=None).fit(frame, labels, domains=months)
    assert search.domains_ == ["apr", "feb", "jan", "mar"]
    assert search.feature_names_in_.tolist() == list(frame)
    shifted = make_search(shifts=[GaussianNoise(2)]).fit(frame, labels)
    assert set(shifted.predict(frame)) <= {"a", "b", "c"}
    make_search().fit(frame, labels, X_ood=frame, y_ood=labels, domains_ood=months)


@pytest.mark.parametrize("form", [pd.DataFrame, pl.from_pandas])
@pytest.mark.parametrize("kind", ["mlp", "transformer"])
def test_frames_with_categories(data, form, kind):
    X, y, domains = data
    columns = {f"c{i}": X[:, i] for i in range(3)}
    words = np.array(["u", "v", "w"])[y]
    words[:2] = ["rare", "seldom"]
    frame = form(pd.DataFrame({**columns, "word": words, "flag": X[:, 3] > 0}))
    estimator = make()
    if kind == "transformer":
        estimator = SoftRankTransformerClassifier(
            8, n_heads=2, depth=1, max_epochs=2, random_state=0
        )
    search = make_search(estimator, shifts=[GainDrift(3)]).fit(frame, y)
    assert np.isfinite(search.cv_results_["mean_test_score"]).all()
    assert (search.fallback_reason_ is None) == (kind == "mlp")
    assert search.predict(frame).shape == y.shape
    search = make_search(estimator).fit(frame, y, domains=domains)
    assert np.isfinite(search.cv_results_["mean_test_score"]).all()


# -- Studies that are kept -------------------------------------------------------------


@pytest.fixture(params=["path", "url", "journal"])
def storage(request, tmp_path):
    path = tmp_path / "study.db"
    if request.param == "journal":
        return JournalStorage(JournalFileBackend(str(path)))
    return path if request.param == "path" else f"sqlite:///{path}"


def read(path):
    """Return all that a database holds."""
    with closing(sqlite3.connect(path)) as connection:
        return list(connection.iterdump())


def test_a_rerun_goes_on_where_it_was(data, storage):
    X, y, domains = data
    first = make_search(storage=storage).fit(X, y, domains=domains)
    again = make_search(storage=storage).fit(X, y, domains=domains)
    pd.testing.assert_frame_equal(first.results_, again.results_)
    np.testing.assert_array_equal(first.predict_proba(X), again.predict_proba(X))
    more = make_search(storage=storage, n_trials=10).fit(X, y, domains=domains)
    assert more.n_trials_ == 10
    names = ["rank_test_score", "stage", "n_seeds"]
    names += [name for name in more.results_ if "_final_" in name]
    pd.testing.assert_frame_equal(
        more.results_.iloc[:7].drop(columns=names), first.results_.drop(columns=names)
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"space": {"temperature": [1.0, 3.0]}}, "space of temperature"),
        ({"scoring": "f1_macro"}, "scoring"),
        ({"cv": 3}, "rows of the splits"),
        ({"aggregate": "worst"}, "aggregate: 'mean' before, 'worst' now"),
        ({"random_state": 1}, "random_state"),
        ({"estimator": make(max_epochs=5)}, "estimator's max_epochs: 4 before, 5 now"),
        ({"objective": "pareto"}, "objective"),
        ({"space": lambda trial: {}}, "callable"),
    ],
)
def test_a_changed_search_under_the_same_name(data, tmp_path, change, message):
    X, y, domains = data
    path = tmp_path / "study.db"
    make_search(storage=path, n_trials=5).fit(X, y, domains=domains)
    before = read(path)
    changed = make_search(**change, storage=path)
    with pytest.raises(ValueError, match=message) as caught:
        changed.fit(X, y, domains=domains)
    assert "pass another study_name" in str(caught.value)
    assert read(path) == before
    changed.set_params(study_name="another", n_trials=5)
    if "space" not in change or not callable(change["space"]):
        assert changed.fit(X, y, domains=domains).n_trials_ == 5


def test_changed_data_under_the_same_name(data, tmp_path):
    X, y, domains = data
    search = make_search(storage=tmp_path / "study.db", n_trials=5)
    search.fit(X, y, domains=domains)
    for changed, message in [
        ((X + 1e-9, y, domains), "differs in X:"),
        ((X[:-4], y[:-4], domains[:-4]), "X: 160 rows.* before, 156 rows.* now"),
        ((X, y[::-1], domains), "; y:"),
        ((X, y, domains % 2), "domains"),
    ]:
        with pytest.raises(ValueError, match=message):
            search.fit(changed[0], changed[1], domains=changed[2])
    with pytest.raises(ValueError, match="fit parameters"):
        search.fit(X, y, domains=domains, sample_weight=np.ones(160))
    search.fit(pd.DataFrame(X).to_numpy(), y.copy(), domains=domains.tolist())


def test_equal_data_have_one_digest_however_they_lie_in_memory():
    X = np.arange(12.0).reshape(6, 2)
    y = np.array(["a", "b", None] * 2, dtype=object)
    columns = {"a": X[:, 0], "when": np.arange(6).astype("datetime64[D]"), "b": y}
    frame = pd.DataFrame(columns)
    weight, one = {"sample_weight": X[:, 0]}, Decimal(1)
    for same in (
        [X, np.asfortranarray(X), np.repeat(X, 2, axis=0)[::2]],
        [X[:, :1], np.asfortranarray(X[:, :1]), X[:, 0].reshape(6, 1)],
        [X[:1, :1], X[:1, :1].copy()],
        [np.array(twice, dtype=object) for twice in ([one, one], [one, Decimal(1)])],
        [[X, X], [X, X.copy()]],
        [weight, {"sample_weight": X[:, 0].copy()}],
        [frame, frame.copy(), frame.iloc[::-1].iloc[::-1]],
        [pl.DataFrame({"a": X[:, 0]}), pd.DataFrame({"a": X[:, 0]})],
        [sparse.csr_array(X), sparse.csc_array(X), sparse.coo_array(X)],
    ):
        assert len({digest(data) for data in same}) == 1
    others = [X, X.astype(np.float32), X.T, X.reshape(3, 4), X[::-1], X.tolist(), frame]
    others += [frame.rename(columns={"a": "c"}), weight, y, y[::-1], [X, X], [X]]
    assert len({digest(data).split()[-1] for data in others}) == len(others)


def test_a_digest_is_the_same_in_another_process():
    code = (
        "import numpy as np, pandas as pd\n"
        "from sksoftrank._digest import digest\n"
        "mixed = {*'abcdefgh', None}\n"
        "data = [np.eye(3), pd.DataFrame({'a': ['u', 'v']}), {'x': mixed, 'y': object}]"
    )
    scope = {}
    exec(code, scope)
    printed = subprocess.check_output(
        [sys.executable, "-c", f"{code}\nprint(digest(data))"], text=True
    )
    assert printed.strip() == digest(scope["data"])


def test_a_model_loads_where_its_study_is_not(data, tmp_path):
    X, y, domains = data
    path = tmp_path / "study.db"
    search = make_search(storage=path).fit(X, y, domains=domains)
    text = pickle.dumps(search)
    assert len(pickle.loads(text).study_.trials) == 7
    path.unlink()
    np.testing.assert_array_equal(pickle.loads(text).predict(X), search.predict(X))


def test_samplers_of_one_s_own(data, tmp_path):
    X, y, domains = data
    sampler = optuna.samplers.RandomSampler(seed=0)
    one, other = (
        make_search(sampler=sampler).fit(X, y, domains=domains) for _ in range(2)
    )
    pd.testing.assert_series_equal(
        one.results_["param_temperature"], other.results_["param_temperature"]
    )
    # Those who join a study draw other points than it has.
    path = tmp_path / "study.db"
    make_search(sampler=sampler, storage=path).fit(X, y, domains=domains)
    joined = make_search(sampler=sampler, storage=path, n_trials=10)
    drawn = joined.fit(X, y, domains=domains).results_["param_temperature"][4:]
    assert len(set(drawn)) == 6


# As many points as leave room in the last batch.
GRID = {"temperature": [10.0, 30.0, 60.0], "dropout": [0.0]}


def make_samplers():
    """Return samplers of every kind, each with what it needs installed."""
    yield optuna.samplers.TPESampler(seed=0, multivariate=False, n_startup_trials=2)
    yield optuna.samplers.NSGAIISampler(seed=0, population_size=4)
    yield optuna.samplers.GPSampler(seed=0, n_startup_trials=2)
    if find_spec("cmaes") is not None:
        yield optuna.samplers.CmaEsSampler(seed=0, n_startup_trials=2)


# CMA-ES does not look at the score in distribution, the choice does.
@pytest.mark.filterwarnings("ignore:Constraints have been set, but CmaEsSampler")
@pytest.mark.parametrize(
    "sampler", list(make_samplers()), ids=lambda s: type(s).__name__
)
def test_samplers_of_optuna(data, sampler):
    X, y, domains = data
    space = {"temperature": stats.loguniform(2, 100), "dropout": stats.uniform(0, 0.5)}
    search = make_search(space=space, sampler=sampler, n_trials=10)
    # The baseline is beside the space: a temperature of 1.
    search.fit(X, y, domains=domains)
    assert (search.cv_results_["state"] == "COMPLETE").all()
    assert search.n_trials_ == 10
    drawn = [trial.params for trial in search.study_.trials]
    assert drawn[:4] == [{"temperature": 2.0, "dropout": 0.2}] * 4
    assert all(2 <= params["temperature"] <= 100 for params in drawn)


def test_a_pareto_front_by_nsga_ii(data):
    X, y, domains = data
    # Generations of the study's own: each is made of the one before.
    sampler = optuna.samplers.NSGAIISampler(seed=0, population_size=4)
    search = make_search(sampler=sampler, objective="pareto", n_trials=14)
    search.fit(X, y, domains=domains)
    assert (search.cv_results_["state"] == "COMPLETE").all()
    front = {entry["index"] for entry in search.pareto_front_}
    numbers = set(search.cv_results_["trial"][sorted(front)])
    assert numbers == {trial.number for trial in search.study_.best_trials}
    key = "NSGAIISampler:generation"
    generations = {trial.system_attrs.get(key) for trial in search.study_.trials}
    assert {0, 1} <= generations


def brute_force():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        return optuna.samplers.BruteForceSampler(seed=0)


@pytest.mark.parametrize("kept", [False, True])
@pytest.mark.parametrize("kind", ["grid", "brute force"])
def test_a_grid_that_is_used_up_ends_the_search(data, tmp_path, kind, kept):
    X, y, domains = data
    sampler = optuna.samplers.GridSampler(GRID) if kind == "grid" else brute_force()
    storage = tmp_path / "study.db" if kept else None
    for _ in range(2):
        search = make_search(space=GRID, sampler=sampler, n_trials=50, storage=storage)
        search.fit(X, y, domains=domains)
        assert search.cv_results_["is_baseline"].tolist() == [True] * 4 + [False] * 3
        assert sorted(search.cv_results_["param_temperature"][4:]) == [10, 30, 60]
        assert len(search.study_.trials) == 7


def test_a_function_may_prune_its_trial(data):
    X, y, domains = data

    def space(trial):
        temperature = trial.suggest_float("temperature", 1, 10)
        trial.set_user_attr("baseline", "an attribute of the user's own")
        if trial.number % 2:
            raise optuna.TrialPruned
        return {"temperature": temperature}

    search = make_search(space=space, n_trials=8).fit(X, y, domains=domains)
    states = ["COMPLETE"] * 5 + ["PRUNED", "COMPLETE", "PRUNED"]
    assert search.cv_results_["state"].tolist() == states
    assert np.isnan(search.cv_results_["mean_test_score"][[5, 7]]).all()
    assert search.cv_results_["param_temperature"].count() == 8


def test_a_callback_may_stop_the_search(data):
    X, y, domains = data
    seen = []

    def stop(study, trial):
        seen.append((type(study), trial.number, trial.state.name))
        if trial.number == 5:
            study.stop()

    search = make_search(n_trials=100, study_callbacks=[stop])
    search.fit(X, y, domains=domains)
    # A batch is one trial here, for it has as many fits as a stack takes.
    assert seen == [(optuna.Study, number, "COMPLETE") for number in range(6)]
    assert search.n_trials_ == 6


def test_stopping_before_the_baseline_is_done_waits_for_it(data):
    X, y, domains = data

    def space(trial):
        trial.study.stop()
        return {"temperature": trial.suggest_float("temperature", 1, 10)}

    search = make_search(space=space).fit(X, y, domains=domains)
    assert search.cv_results_["is_baseline"].tolist() == [True] * 4


def test_a_full_study_calls_no_callbacks(data, tmp_path):
    X, y, domains = data
    path = tmp_path / "study.db"
    make_search(storage=path).fit(X, y, domains=domains)
    numbers = []
    callbacks = [lambda study, trial: numbers.append(trial.number)]
    again = make_search(storage=path, study_callbacks=callbacks)
    again.fit(X, y, domains=domains)
    assert numbers == []
    again.set_params(n_trials=8).fit(X, y, domains=domains)
    assert numbers == [7]


def test_the_study_is_as_optuna_s_tools_want_it(data, tmp_path):
    X, y, domains = data
    search = make_search(make_pipeline(StandardScaler(), make()), None)
    search.set_params(param_distributions=None, storage=tmp_path / "study.db")
    search.fit(X, y, domains=domains)
    assert type(search.study_) is optuna.Study
    names = {"temperature", "learning_rate_factor", "weight_decay", "dropout"}
    for trial in search.study_.trials:
        assert set(trial.params) == {
            *(*names, "normalization", "label_smoothing", "n_hidden_layers")
        }
        assert set(trial.user_attrs) - {"sksoftrank:queued"} == {
            f"sksoftrank:{name}" for name in ("id_score", "ood_score", "scores")
        }
    table = search.study_.trials_dataframe()
    np.testing.assert_array_equal(
        table["user_attrs_sksoftrank:id_score"], search.cv_results_["mean_test_id"]
    )
    np.testing.assert_array_equal(table["value"], search.cv_results_["mean_test_score"])


@pytest.mark.parametrize("source", ["domains", "X_ood", "shifts"])
@pytest.mark.parametrize("aggregate", ["mean", "worst"])
def test_the_columns_are_scikit_learn_s(data, source, aggregate):
    X, y, domains = data
    given = {
        "domains": {"domains": domains},
        "X_ood": {"X_ood": X * 1.5, "y_ood": y, "domains_ood": domains},
        "shifts": {},
    }[source]
    shifts = SHIFTS if source == "shifts" else None
    search = make_search(shifts=shifts, n_trials=5, aggregate=aggregate)
    results = search.fit(X, y, **given).cv_results_
    n_splits = search.n_splits_
    for kind in (GridSearchCV, StackedGridSearchCV):
        grid = kind(
            make(), {"temperature": [1.0], "learning_rate": [1e-3]}, cv=n_splits
        )
        theirs = grid.fit(X, y).cv_results_
        # Of ours, the parameters are in the order of the space.
        ours = [name for name in results if name in theirs]
        assert set(ours) == set(theirs)
        order = [k for k in theirs if not k.startswith("param_")]
        assert order == [k for k in ours if not k.startswith("param_")]
        for name in theirs.keys() - {"params"}:
            assert results[name].dtype == theirs[name].dtype
            assert results[name].shape == (5,)
    splits = np.array([results[f"split{k}_test_score"] for k in range(n_splits)])
    np.testing.assert_allclose(results["std_test_score"], splits.std(axis=0))
    of_domains = np.array(
        [results[f"mean_test_ood_{name}"] for name in search.domains_]
    )
    objective = of_domains.min if aggregate == "worst" else of_domains.mean
    np.testing.assert_allclose(
        results["mean_test_score"], (objective(axis=0) + results["mean_test_id"]) / 2
    )
    np.testing.assert_allclose(results["mean_test_ood"], of_domains.mean(axis=0))
    if aggregate == "mean":
        np.testing.assert_allclose(results["mean_test_score"], splits.mean(axis=0))
    id_splits = np.array([results[f"split{k}_test_id"] for k in range(n_splits)])
    np.testing.assert_allclose(results["mean_test_id"], id_splits.mean(axis=0))
    assert list(search.results_) == list(results)


def test_before_fit():
    search = make_search()
    assert not hasattr(search, "study_")
    assert not hasattr(search, "results_")
    assert not hasattr(search, "classes_")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        clone(search)
