"""The temperature sweep, its summary, and the paired comparison."""

import math

import numpy as np
import pytest
from scipy import stats
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.neighbors import KNeighborsClassifier
from sklearn.utils.validation import check_is_fitted

from sksoftrank import SoftRankMLPClassifier
from sksoftrank.inspection import (
    TEMPERATURES,
    paired_difference,
    summarize_sweep,
    temperature_sweep,
)
from sksoftrank.rank import effective_rank, variance_rank

MEASURES = [
    "train_accuracy",
    "accuracy",
    "shifted_accuracy",
    "logit_norm",
    "effective_rank",
    "variance_rank",
    "n_components",
    "knn_accuracy",
]


def record(temperature, seed, **measures):
    return {"temperature": temperature, "seed": seed, **measures}


# -- The sweep -----------------------------------------------------------------------


@pytest.fixture(scope="module")
def problem():
    """Return train, test and two shifted sets of three overlapping blobs."""
    rng = np.random.default_rng(0)

    def draw(n, offset=0.0):
        y = np.arange(n) % 3
        X = 2.0 * np.eye(3, 6)[y] + rng.standard_normal((n, 6)) + offset
        return X, np.array(["a", "b", "c"])[y]

    return draw(150), draw(60), {"near": draw(30, 0.5), "far": draw(90, 2.0)}


@pytest.fixture(scope="module")
def estimator():
    return SoftRankMLPClassifier(hidden_layer_sizes=(16, 12), max_epochs=4)


@pytest.fixture(scope="module")
def sweep(problem, estimator):
    return temperature_sweep(estimator, *problem, temperatures=(1.0, 20), n_seeds=2)


def test_one_record_for_each_temperature_and_seed(sweep):
    assert [(r["temperature"], r["seed"]) for r in sweep] == [
        (1.0, 0),
        (1.0, 1),
        (20.0, 0),
        (20.0, 1),
    ]
    for entry in sweep:
        assert list(entry) == ["temperature", "seed", *MEASURES]
        assert isinstance(entry["temperature"], float)


def test_records_are_what_one_measures_by_hand(sweep, problem, estimator):
    (X, y), (X_test, y_test), shifted = problem
    for entry in sweep:
        clf = clone(estimator).set_params(
            temperature=entry["temperature"], random_state=entry["seed"]
        )
        clf.fit(X, y)
        Z = clf.embed(X_test)
        knn = KNeighborsClassifier(n_neighbors=5).fit(clf.transform(X), y)
        expected = {
            "train_accuracy": np.mean(clf.predict(X) == y),
            "accuracy": np.mean(clf.predict(X_test) == y_test),
            # Each shift counts the same, however many rows it has.
            "shifted_accuracy": np.mean(
                [np.mean(clf.predict(A) == b) for A, b in shifted.values()]
            ),
            "logit_norm": clf.logit_norm_,
            "effective_rank": effective_rank(Z, center=True),
            "variance_rank": variance_rank(Z, 0.99),
            "n_components": clf.transform(X_test).shape[1],
            "knn_accuracy": np.mean(knn.predict(clf.transform(X_test)) == y_test),
        }
        assert {name: entry[name] for name in MEASURES} == pytest.approx(expected)


def test_estimator_passed_stays_as_it_was(sweep, estimator):
    with pytest.raises(NotFittedError):
        check_is_fitted(estimator)
    assert (estimator.temperature, estimator.random_state) == (30.0, None)


def test_same_sweep_twice(sweep, problem, estimator):
    again = temperature_sweep(estimator, *problem, temperatures=(1.0, 20), n_seeds=2)
    assert again == sweep


def test_seeds_differ(sweep):
    assert sweep[0]["logit_norm"] != sweep[1]["logit_norm"]


def test_on_fit_is_called_after_each_fit(problem, estimator):
    calls = []
    records = temperature_sweep(
        estimator,
        *problem,
        temperatures=(0.5, 1.0, 2.0),
        n_seeds=1,
        on_fit=lambda: calls.append(None),
    )
    assert len(calls) == len(records) == 3


def test_defaults(problem, estimator):
    train, test, shifted = problem
    one_epoch = clone(estimator).set_params(max_epochs=1)
    records = temperature_sweep(one_epoch, train, test, shifted)
    assert len(records) == 3 * len(TEMPERATURES)
    assert list(TEMPERATURES) == sorted(TEMPERATURES)
    assert {r["temperature"] for r in records} == set(TEMPERATURES)
    assert 1.0 in TEMPERATURES  # what the others are compared with


# -- The summary ---------------------------------------------------------------------


def test_summary_is_the_mean_and_student_s_interval():
    values = [0.70, 0.74, 0.75, 0.81]
    rows = summarize_sweep([record(2.0, s, accuracy=v) for s, v in enumerate(values)])
    assert [list(row) for row in rows] == [
        ["temperature", "accuracy", "accuracy_interval"]
    ]
    low, high = stats.t.interval(
        0.95, df=3, loc=np.mean(values), scale=stats.sem(values)
    )
    assert rows[0]["accuracy"] == pytest.approx(0.75)
    assert rows[0]["accuracy_interval"] == pytest.approx((high - low) / 2)


def test_summary_of_two_seeds_in_closed_form():
    # With one degree of freedom Student's t is Cauchy's: its quantile is a tangent.
    rows = summarize_sweep(
        [record(1.0, s, accuracy=v) for s, v in ((0, 0.2), (1, 0.4))]
    )
    assert rows[0]["accuracy_interval"] == pytest.approx(
        0.1 * math.tan(math.pi * (0.975 - 0.5))
    )


def test_summary_sorts_temperatures_and_keeps_them_apart():
    records = [
        record(t, s, accuracy=t + s, logit_norm=10 * t)
        for s in range(3)
        for t in (10.0, 0.5, 1.0)
    ]
    rows = summarize_sweep(records)
    assert [row["temperature"] for row in rows] == [0.5, 1.0, 10.0]
    assert [row["accuracy"] for row in rows] == [1.5, 2.0, 11.0]
    assert [row["logit_norm_interval"] for row in rows] == [0.0, 0.0, 0.0]
    assert len({row["accuracy_interval"] for row in rows}) == 1


def test_summary_of_one_seed_has_no_interval():
    (row,) = summarize_sweep([record(1.0, 0, accuracy=0.5)])
    assert row["accuracy"] == 0.5
    assert math.isnan(row["accuracy_interval"])


def test_summary_of_nothing_is_empty():
    assert summarize_sweep([]) == []


def test_summary_takes_a_sweep(sweep):
    rows = summarize_sweep(sweep)
    assert [row["temperature"] for row in rows] == [1.0, 20.0]
    for name in MEASURES:
        mean = np.mean([r[name] for r in sweep if r["temperature"] == 20.0])
        assert rows[1][name] == pytest.approx(mean)


# -- The paired comparison -----------------------------------------------------------

GAINS = np.array([0.02, 0.03, 0.01, 0.06])


def paired_records(seed_effect):
    """Return records whose gain of 10 over 1 does not depend on the seed's effect."""
    return [
        entry
        for seed, (gain, effect) in enumerate(zip(GAINS, seed_effect, strict=True))
        for entry in (
            record(1.0, seed, accuracy=0.5 + effect),
            record(10.0, seed, accuracy=0.5 + effect + gain),
        )
    ]


@pytest.mark.parametrize("n_comparisons", [1, 5])
def test_interval_is_that_of_scipy_s_paired_test(n_comparisons):
    records = paired_records([0.0, 0.1, 0.2, 0.3])
    mean, half = paired_difference(
        records, "accuracy", 10.0, n_comparisons=n_comparisons
    )
    values = [
        [r["accuracy"] for r in records if r["temperature"] == t] for t in (10.0, 1.0)
    ]
    interval = stats.ttest_rel(*values).confidence_interval(1 - 0.05 / n_comparisons)
    assert mean - half == pytest.approx(interval.low)
    assert mean + half == pytest.approx(interval.high)


def test_bonferroni_widens_the_interval():
    records = paired_records([0.0, 0.1, 0.2, 0.3])
    (mean, one), (same, five) = (
        paired_difference(records, "accuracy", 10.0, n_comparisons=n) for n in (1, 5)
    )
    assert mean == same
    assert five / one == pytest.approx(stats.t.ppf(0.995, 3) / stats.t.ppf(0.975, 3))


def test_pairing_removes_what_a_seed_does_to_both():
    quiet = paired_difference(paired_records([0.0] * 4), "accuracy", 10.0)
    loud = paired_difference(paired_records([0.4, -0.3, 0.1, -0.2]), "accuracy", 10.0)
    assert loud == pytest.approx(quiet)
    assert quiet[0] == pytest.approx(GAINS.mean())
    # Unpaired, the same records would say nothing.
    rows = summarize_sweep(paired_records([0.4, -0.3, 0.1, -0.2]))
    assert rows[1]["accuracy_interval"] > 10 * loud[1]


def test_pairs_are_found_in_any_order():
    records = paired_records([0.1, 0.4, 0.2, 0.3])
    shuffled = [records[i] for i in (5, 0, 3, 6, 1, 7, 2, 4)]
    assert paired_difference(shuffled, "accuracy", 10.0) == pytest.approx(
        paired_difference(records, "accuracy", 10.0)
    )


def test_difference_changes_sign_with_the_roles():
    records = paired_records([0.1, 0.4, 0.2, 0.3])
    mean, half = paired_difference(records, "accuracy", 10.0)
    assert paired_difference(records, "accuracy", 1.0, baseline=10.0) == pytest.approx(
        (-mean, half)
    )


def test_difference_from_itself_is_zero():
    assert paired_difference(paired_records([0.1] * 4), "accuracy", 1.0) == (0.0, 0.0)


def test_one_seed_has_a_difference_without_an_interval():
    records = [record(1.0, 0, accuracy=0.5), record(10.0, 0, accuracy=0.75)]
    mean, half = paired_difference(records, "accuracy", 10.0)
    assert mean == 0.25
    assert math.isnan(half)
