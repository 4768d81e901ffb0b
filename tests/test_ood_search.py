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
from sksoftrank.corruptions import Corruption
from sksoftrank.search.ood import evaluation
from sksoftrank.search.ood import space as space_module
from sksoftrank.search.ood.choice import Outcome, choose, paired_gain, pareto_front
from sksoftrank.search.ood.fingerprint import digest
from sksoftrank.search.ood.protocol import make_plan
from sksoftrank.search.ood.results import outcome
from sksoftrank.search.ood.space import baseline_grid, make_space
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
    monkeypatch.setattr("sksoftrank.search._fits.START_SECONDS", 0.0)


def make(**params):
    return SoftRankMLPClassifier(
        **{"hidden_layer_sizes": (12, 8), "max_epochs": 4, "batch_size": 32, **params}
    )


def make_search(estimator=None, space=None, **options):
    return OODSearchCV(
        make() if estimator is None else estimator,
        {"temperature": stats.loguniform(0.3, 100)} if space is None else space,
        **{"n_trials": 7, "cv": 2, "random_state": 0, **options},
    )


# -- The rule --------------------------------------------------------------------------


def scored(ood, id=0.9, n_components=2, is_baseline=False):
    ood = np.array(ood, dtype=float)
    return Outcome(
        ood if ood.ndim == 2 else ood[None], np.array([id]), n_components, is_baseline
    )


def test_the_paired_gain_in_closed_form():
    gain, error = paired_gain(
        scored([[0.6, 0.7], [0.8, 0.9]]), scored([[0.5, 0.5], [0.5, 0.5]]), "mean"
    )
    assert gain == pytest.approx(0.25)
    # Differences of 0.1 and 0.2, 0.3 and 0.4: replicates differ by 0.2, which counts
    # as two values, not as four.
    assert error == pytest.approx(np.sqrt(0.2**2 / 2 / 2))
    gain, error = paired_gain(
        scored([[0.6, 0.9], [0.8, 0.7]]), scored([[0.5, 0.9], [0.9, 0.5]]), "worst"
    )
    # Means of the worst domain, and differences of 0.1 and 0.2 between the worst.
    assert gain == pytest.approx(0.7 - 0.7)
    assert error == pytest.approx(0.05)
    assert np.isnan(paired_gain(scored([0.6]), scored([0.5]), "mean")[1])


def test_the_error_is_clustered_both_ways():
    gains = np.array([[0.0, 0.0, 0.3], [0.3, 0.0, 0.0]])
    by_row, by_column = 0.0, np.var([0.15, 0, 0.15], ddof=1) / 3
    each = gains.var(ddof=1) / 6
    assert by_row + by_column - each < by_column
    error = paired_gain(scored(gains), scored(0 * gains), "mean")[1]
    assert error == pytest.approx(np.sqrt(by_column))
    # What replicates and domains have of their own adds up.
    gains = np.add.outer([0.0, 0.1, 0.2], [0.0, 0.1, 0.2])
    by_row = by_column = 0.1**2 / 3
    each = gains.var(ddof=1) / 9
    error = paired_gain(scored(gains), scored(0 * gains), "mean")[1]
    assert error == pytest.approx(np.sqrt(by_row + by_column - each))


@pytest.mark.parametrize("aggregate", ["mean", "worst"])
def test_few_rows_make_a_gain_unsure(aggregate):
    base, other = scored([[0.5], [0.5]], is_baseline=True), scored([[0.6], [0.6]])
    # Each fit gains as much, all of it on one of the two parts of the rows.
    assert paired_gain(other, base, aggregate)[1] == pytest.approx(0, abs=1e-12)
    base.parts = np.array([[[0.5, 0.5]], [[0.5, 0.5]]])
    other.parts = np.array([[[0.7, 0.5]], [[0.7, 0.5]]])
    gain, error = paired_gain(other, base, aggregate)
    assert gain == pytest.approx(0.1)
    assert error == pytest.approx(np.sqrt(0.2**2 / 2 / 2))


def test_a_constant_gain_has_no_error_whatever_the_domains():
    base = np.array([[0.2, 0.5, 0.9]])
    gain, error = paired_gain(scored(base + 0.01), scored(base), "mean")
    assert gain == pytest.approx(0.01)
    assert error == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize(
    ("other", "chosen", "reason"),
    [
        # Gains 0.1 +- 0.
        (scored([0.6, 0.8]), 2, "beats the baseline"),
        # Gains 0.1 +- 0.2.
        (scored([0.8, 0.6]), 1, "not more than 1.00 standard errors of 0.2000"),
        (scored([0.4, 0.6]), 1, "a gain of -0.1000"),
        # The same scores.
        (scored([0.5, 0.7]), 1, "a gain of 0.0000"),
        # Better by far, but not in distribution.
        (scored([0.9, 0.9], id=0.885), 1, "no other configuration was evaluated"),
        (scored([0.6, 0.8], id=0.89), 2, "beats the baseline"),
    ],
)
def test_the_rule(other, chosen, reason):
    outcomes = [
        scored([0.9, 0.9], id=0.8, is_baseline=True),
        scored([0.5, 0.7], is_baseline=True),
        other,
    ]
    choice = choose(outcomes, id_tolerance=0.01)
    assert choice.index == chosen
    assert reason in choice.reason
    assert choice.reason.endswith(".")


@pytest.mark.parametrize(("ood", "chosen"), [([0.7, 0.8], 0), ([0.9, 0.6], 1)])
def test_a_rate_that_does_better_under_the_shift_must_prove_it(ood, chosen):
    outcomes = [
        scored(ood, id=0.9, is_baseline=True),
        # Tuned in distribution, as anybody would.
        scored([0.6, 0.7], id=0.905, is_baseline=True),
    ]
    assert choose(outcomes).index == chosen


def test_the_worst_domain_decides_if_asked():
    outcomes = [
        scored([[0.6] * 8] * 2, is_baseline=True),
        scored([[0.9] * 7 + [0.62]] * 2),
        scored([[0.65] * 8] * 2),
    ]
    assert choose(outcomes).index == 1
    assert choose(outcomes, aggregate="worst").index == 2


def test_the_surest_gain_is_chosen_not_the_largest():
    outcomes = [
        scored([0.5, 0.5, 0.5], is_baseline=True),
        scored([0.9, 0.7, 0.5]),
        scored([0.66, 0.64, 0.65]),
        *[scored([0.41, 0.4, 0.39])] * 5,
    ]
    assert choose(outcomes).index == 2


def test_no_error_counts_as_less_than_is_usual():
    base = scored([0.5, 0.5, 0.5], is_baseline=True)
    lucky = scored([0.61, 0.6, 0.59])
    others = [scored(np.roll([0.7, 0.5, 0.3], k)) for k in range(5)]
    assert choose([base, lucky]).index == 1
    assert choose([base, lucky, *others]).index == 0
    assert choose([base, scored([0.91, 0.9, 0.89]), *others]).index == 1


@pytest.mark.parametrize("shape", [(1, 2), (1, 3), (2, 1), (6, 1), (1, 10)])
@pytest.mark.parametrize("n_others", [1, 8, 46])
def test_noise_is_seldom_chosen_however_many_there_are(shape, n_others):
    # What is left is the baseline's own noise, which all the gains share.
    rng = np.random.default_rng(0)
    n_chosen = 0
    for _ in range(100):
        noise = [scored(rng.standard_normal(shape)) for _ in range(n_others)]
        base = scored(rng.standard_normal(shape), is_baseline=True)
        n_chosen += choose([base, *noise]).index > 0
    assert n_chosen <= 35


def test_domains_may_be_all_that_matters():
    base = scored([[0.5, 0.5], [0.5, 0.5], [0.5, 0.5]], is_baseline=True)
    # All of the gain under one of two shifts, the same for each fit but for a little.
    other = scored([[0.7, 0.5], [0.71, 0.5], [0.69, 0.5]])
    error = paired_gain(other, base, "mean", is_sample=False)[1]
    assert error == pytest.approx(0.005 / np.sqrt(3))
    assert paired_gain(other, base, "mean")[1] == pytest.approx(0.1)
    # Then the largest gain is of one pair of means.
    one, single = scored([[0.7, 0.5]]), scored([[0.5, 0.5]], is_baseline=True)
    assert paired_gain(one, single, "mean", is_sample=False)[1] == pytest.approx(0.1)
    assert choose([base, other, scored([[0.4, 0.4]] * 3)], is_sample=False).index == 1
    assert choose([base, other, scored([[0.4, 0.4]] * 3)]).index == 0


def test_domains_in_parts_are_still_domains():
    base = scored([[0.5, 0.5, 0.5]], is_baseline=True)
    other = scored([[0.7, 0.45, 0.45]])
    error = paired_gain(other, base, "mean")[1]
    for scores in (base, other):
        scores.parts = np.repeat(scores.ood[..., None], 5, axis=2)
    assert paired_gain(other, base, "mean")[1] == pytest.approx(error)
    other.parts = None
    assert paired_gain(other, base, "mean")[1] == pytest.approx(error)


def test_ties_do_not_depend_on_the_order_of_sums():
    values = np.random.default_rng(0).uniform(0.6, 0.9, 7)
    base = scored([0.5] * 7, is_baseline=True)
    for _ in range(20):
        values = np.random.default_rng(0).permutation(values)
        same = [scored(values[::step], n_components=n) for step, n in ((1, 5), (-1, 3))]
        assert choose([base, *same]).index == 2


def test_the_best_of_many_must_beat_what_chance_gives_the_best_of_many():
    def chosen(n_others):
        rest = [scored([0.4, 0.4, 0.4])] * (n_others - 1)
        spread = 0.1 * np.sqrt(3)  # An error of 0.1 over three domains.
        noisy = scored([0.7 - spread, 0.7, 0.7 + spread])
        base = scored([0.5, 0.5, 0.5], is_baseline=True)
        gain, error = paired_gain(noisy, base, "mean")
        assert (gain, error) == (pytest.approx(0.2), pytest.approx(0.1))
        return choose([base, noisy, *rest]).index

    # sqrt(2 log 7) is below two, sqrt(2 log 8) above.
    assert [chosen(n) for n in (1, 7, 8, 30)] == [1, 1, 0, 0]


def test_one_pair_is_no_evidence():
    choice = choose([scored([0.5], is_baseline=True), scored([0.9])])
    assert choice.index == 0
    assert "Raise n_seeds" in choice.reason


def test_a_baseline_out_of_tolerance_is_still_what_must_be_beaten():
    outcomes = [
        scored([0.5, 0.6], id=0.5, is_baseline=True),
        scored([0.6, 0.5], id=0.6, is_baseline=True),
        scored([0.4, 0.4], id=0.9),
    ]
    assert choose(outcomes).index == 1


def test_without_a_baseline_the_best_is_chosen():
    assert "no baseline" in choose([scored([0.5, 0.4]), scored([0.6, 0.4])]).reason


def test_ties_go_to_the_smaller_embedding_then_the_earlier_trial():
    baseline = scored([0.5, 0.5], is_baseline=True)
    same = [scored([0.7, 0.7], n_components=n) for n in (5, 3, 3)]
    assert choose([baseline, *same]).index == 2


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


def test_rows_of_a_foreign_domain_come_in_parts(data):
    X, y, domains = data
    own = domains < 2
    rest = {"X_ood": X[~own], "y_ood": y[~own], "domains_ood": domains[~own]}
    plan = make_plan(X[own], y[own], cv=3, **rest)
    for split in plan.splits:
        for d, name in enumerate(plan.domains):
            parts = [part.cut() for part in split.parts[d]]
            assert len(parts) == 5
            expected = X[domains == int(name)]
            np.testing.assert_array_equal(
                np.unique(np.vstack([rows for rows, _ in parts]), axis=0),
                np.unique(expected, axis=0),
            )
            assert sum(len(rows) for rows, _ in parts) == len(expected)
            shares = [np.bincount(labels, minlength=3) for _, labels in parts]
            assert np.ptp(shares, axis=0).max() <= 1
            assert np.min(shares) > 0
    # A class of two rows is in two parts, which a metric may need to be all.
    y = y.copy()
    y[domains == 3] = 0
    y[np.flatnonzero(domains == 3)[:2]] = 1
    rest["y_ood"] = y[~own]
    plans = [
        make_plan(X[own], y[own], cv=3, needs_classes=needs, **rest)
        for needs in (True, False)
    ]
    assert [len(plan.splits[0].parts[0]) for plan in plans] == [2, 5]
    rest["y_ood"][np.flatnonzero(domains[~own] == 3)[0]] = 0
    assert make_plan(X[own], y[own], cv=3, **rest).splits[0].parts == {}


def test_parts_that_cannot_be_scored_are_left_out(data):
    X, y, domains = data
    own = domains < 3

    def needs_many(estimator, X, y):
        if len(y) < 10:
            raise ValueError("too few rows")
        return estimator.score(X, y)

    search = make_search(scoring=needs_many, refit=False)
    search.fit(X[own], y[own], X_ood=X[~own], y_ood=y[~own])
    assert all(outcome(trial).parts is None for trial in search.study_.trials)
    plain = make_search(refit=False).fit(
        X[own], y[own], X_ood=X[~own], y_ood=y[~own].reshape(-1, 1)[:, 0]
    )
    np.testing.assert_array_equal(
        search.cv_results_["mean_test_score"], plain.cv_results_["mean_test_score"]
    )


@pytest.mark.parametrize(
    ("labels", "match"),
    [
        ([None] * 40, "Unknown label type"),
        (np.linspace(0, 1, 40), "Unknown label type: continuous"),
    ],
)
def test_foreign_labels_are_checked(data, labels, match):
    X, y, domains = data
    own = domains < 3
    with pytest.raises(ValueError, match=match):
        make_search().fit(X[own], y[own], X_ood=X[~own], y_ood=labels)


def test_parts_are_scored_and_kept(data):
    X, y, domains = data
    own = domains < 3
    search = make_search(n_seeds=2).fit(X[own], y[own], X_ood=X[~own], y_ood=y[~own])
    for trial in search.study_.trials:
        scored = outcome(trial)
        assert scored.parts.shape == (2 * 2, 1, 5)
        # Of eight rows each, and their mean is the accuracy on all of them.
        np.testing.assert_allclose(scored.parts.mean(axis=2), scored.ood)


def test_batches_of_one_row_are_not_to_be_normalised(data):
    kinds = [
        {params["normalization"] for params in suggested(None, make(batch_size=n), 30)}
        for n in (1, 2)
    ]
    assert kinds == [{None, "layer"}, {None, "layer", "batch"}]


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
        (domains[:, None], "one label a row"),
        (np.where(domains == 0, np.nan, domains), "NaN"),
        (np.array(["a", None] * 80, dtype=object), "one kind"),
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
    assert outcome(search.study_.trials[0]).parts.shape[1] == 2


def test_classes_do_not_matter_to_accuracy(data):
    X, y, domains = one_sided(data, lacking=[2], holding=[7])
    search = make_search(n_trials=5).fit(X, y, domains=domains)
    assert search.domains_ == ["0", "1", "2", "3"]
    assert np.isfinite(search.cv_results_["mean_test_ood_3"]).all()


def test_no_search_without_a_score(data, monkeypatch):
    monkeypatch.setattr(evaluation, "fit_stacked", None)
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
    monkeypatch.setattr(evaluation, "fit_stacked", None)
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
    made = make_space(space, estimator)
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


SEARCHED = ("learning_rate", "weight_decay", "dropout", "normalization")


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
                *(f"estimator__{name}" for name in SEARCHED),
            },
        ),
    ],
    ids=["mlp", "pipeline", "ensemble", "ensemble of none"],
)
def test_the_default_space_and_the_baseline(estimator, names):
    for params in suggested(None, estimator, 5):
        assert set(params) == names
        clone(estimator).set_params(**params)._validate_params()
    for params in baseline_grid(estimator):
        fitted = clone(estimator).set_params(**params).get_params()
        assert [v for k, v in fitted.items() if k.endswith("temperature")][-1] == 1.0
    rates = [
        value
        for params in baseline_grid(estimator)
        for name, value in params.items()
        if name.endswith("learning_rate")
    ]
    assert rates == pytest.approx([1e-2, 3e-2, 3e-3, 1e-3])


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
    assert len(Noting.fits) == 3 * 2 + 1
    assert search.domains_ == ["0", "1", "2", "3"]


def test_no_fit_sees_the_domain_it_is_scored_on(data, monkeypatch):
    X, y, domains = data
    monkeypatch.setattr(Noting, "fits", [])
    make_search(Noting(), {"temperature": [1.0]}, n_trials=1, cv=None, refit=False).fit(
        X, y, domains=domains
    )
    by_row = {tuple(row): domain for row, domain in zip(X, domains, strict=True)}
    seen = [{by_row[tuple(row)] for row in rows} for rows in Noting.fits]
    assert seen == [{1, 2, 3}, {0, 2, 3}, {0, 1, 3}, {0, 1, 2}]


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
        search = make_search(
            pipeline, space, n_seeds=2, scoring="neg_log_loss", **options
        )
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
    search = make_search(make(), n_trials=5, cv=None, n_seeds=2)
    search.fit(X, y, domains=domains)
    seeds = search._seeds()
    plan = make_plan(X, y, domains=domains, seed=seeds[0])
    for k in (1, 4):
        ood, held_out = np.empty((2, 4)), []
        for row, seed in enumerate(seeds[1:]):
            for d, split in enumerate(plan.splits):
                clf = make(random_state=seed, **search.cv_results_["params"][k])
                clf.fit(X[split.train], y[split.train])
                ood[row, d] = clf.score(X[domains == d], y[domains == d])
                held_out.append(clf.score(X[split.id.rows], y[split.id.rows]))
        assert search.cv_results_["mean_test_score"][k] == pytest.approx(ood.mean())
        assert search.cv_results_["mean_test_ood_2"][k] == pytest.approx(
            ood[:, 2].mean()
        )
        assert search.cv_results_["mean_test_id"][k] == pytest.approx(np.mean(held_out))


def test_the_first_trials_are_the_baseline(data):
    X, y, domains = data
    search = make_search(make(dropout=0.1, temperature=50.0)).fit(X, y, domains=domains)
    assert search.cv_results_["is_baseline"].tolist() == [True] * 4 + [False] * 3
    assert search.cv_results_["params"][:4] == [
        {"temperature": 1.0, "learning_rate": pytest.approx(factor * 1e-2)}
        for factor in (1.0, 3.0, 0.3, 0.1)
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
    np.testing.assert_allclose(scores.mean(axis=1), table["mean_test_score"])
    assert table["n_components"].between(1, 8).all()
    assert table["rank"].between(1, 8).all()
    assert (table["mean_fit_time"] > 0).all()
    assert table["state"].unique().tolist() == ["COMPLETE"]
    assert search.best_score_ == table["mean_test_score"][search.best_index_]
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
        id_tolerance=0.2,
        random_state=0,
    ).fit(X, y, X_ood=X_ood, y_ood=y)
    assert search.best_params_ == {"column__drop": True}
    assert "beats the baseline" in search.best_reason_
    tight = clone(search).set_params(id_tolerance=0.01).fit(X, y, X_ood=X_ood, y_ood=y)
    assert tight.best_params_ == {}
    assert tight.best_reason_.startswith("The baseline")


def test_the_pareto_front_of_a_search(data):
    X, y, domains = data
    search = make_search(objective="pareto", n_trials=8).fit(X, y, domains=domains)
    front = {entry["index"] for entry in search.pareto_front_}
    table = search.results_
    points = table[["mean_test_score", "mean_test_id"]].assign(
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
    options = {"n_trials": 1, "n_seeds": 2}
    search = make_search(estimator, pruner=Below(False), **options)
    reports = search.fit(X, y, domains=domains).study_.trials[0].intermediate_values
    short = make_search(clone(estimator).set_params(max_epochs=4), **options)
    short.fit(X, y, domains=domains)
    assert reports[4] == short.best_score_


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
    assert epochs == [*range(1, 11)] * 4 + [1] * 3


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
        ({"id_tolerance": -1}, "id_tolerance"),
        ({"aggregate": "median"}, "aggregate"),
        ({"scoring": ["accuracy", "f1_macro"]}, "scoring"),
        ({"estimator": Ridge()}, "must be a classifier"),
        ({"estimator": make(temperature=-1.0)}, "temperature"),
        ({"sampler": "tpe"}, "sampler"),
    ],
)
def test_bad_parameters(data, options, message, monkeypatch):
    X, y, domains = data
    monkeypatch.setattr(evaluation, "fit_stacked", None)
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
    make_search(cv=GroupKFold(2)).fit(X, y, X_ood=X, y_ood=y, groups=groups)


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
            cuts = [split.ood[d], *split.parts[d]], [dense.ood[d], *dense.parts[d]]
            for got, wanted in zip(*cuts, strict=True):
                np.testing.assert_array_equal(got.cut()[0].toarray(), wanted.cut()[0])
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
    pd.testing.assert_frame_equal(
        more.results_.iloc[:7].drop(columns="rank_test_score"),
        first.results_.drop(columns="rank_test_score"),
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
    make_search(storage=path, n_trials=3).fit(X, y, domains=domains)
    before = read(path)
    changed = make_search(**change, storage=path)
    with pytest.raises(ValueError, match=message) as caught:
        changed.fit(X, y, domains=domains)
    assert "pass another study_name" in str(caught.value)
    assert read(path) == before
    changed.set_params(study_name="another", n_trials=3)
    if "space" not in change or not callable(change["space"]):
        assert changed.fit(X, y, domains=domains).n_trials_ == 3


def test_changed_data_under_the_same_name(data, tmp_path):
    X, y, domains = data
    search = make_search(storage=tmp_path / "study.db", n_trials=3)
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
        "from sksoftrank.search.ood.fingerprint import digest\n"
        "data = [np.eye(3), pd.DataFrame({'a': ['u', 'v']}), {'x': {1}, 'y': object}]"
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
    assert drawn[:4] == [{"temperature": 2.0, "dropout": 0.0}] * 4
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

    search = make_search(n_trials=100, n_seeds=4, study_callbacks=[stop])
    search.fit(X, y, domains=domains)
    # A batch is one trial here, for it has as many fits as a stack takes.
    assert seen == [(optuna.Study, number, "COMPLETE") for number in range(6)]
    assert search.n_trials_ == 6


def test_stopping_before_the_baseline_is_done_waits_for_it(data):
    X, y, domains = data

    def space(trial):
        trial.study.stop()
        return {"temperature": trial.suggest_float("temperature", 1, 10)}

    search = make_search(space=space, n_seeds=4).fit(X, y, domains=domains)
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
        assert set(trial.params) == {*names, "normalization"}
        assert {"sksoftrank:id_score", "sksoftrank:scores"} <= set(trial.user_attrs)
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
    search = make_search(shifts=shifts, n_seeds=2, n_trials=5, aggregate=aggregate)
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
    np.testing.assert_allclose(results["mean_test_score"], objective(axis=0))
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
