"""DomainSplit: which rows train, validate and test, and scikit-learn's tools."""

import numpy as np
import pytest
import sklearn
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.base import clone
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import (
    GridSearchCV,
    LeaveOneGroupOut,
    LeavePGroupsOut,
    cross_val_score,
    cross_validate,
)
from sklearn.pipeline import make_pipeline

from sksoftrank._sampling import stratified_order
from sksoftrank.domains import DomainSplit


def problem(n=240, n_domains=4, seed=0):
    """Return rows, labels and domains, shuffled."""
    rng = np.random.default_rng(seed)
    y = np.arange(n) % 3
    groups = rng.integers(0, n_domains, n)
    X = 2.0 * np.eye(3)[y] + rng.standard_normal((n, 3))
    order = rng.permutation(n)
    return X[order], y[order], groups[order]


def folds(cv, *data):
    return list(cv.split_with_validation(*data))


def assert_same_folds(first, second):
    assert len(first) == len(second)
    for a, b in zip(first, second, strict=True):
        for part, other in zip(a, b, strict=True):
            np.testing.assert_array_equal(part, other)


# Which rows


@pytest.mark.parametrize("n_out", [1, 2, 3])
@pytest.mark.parametrize("names", [None, np.array(["d", "a", "c", "b"])])
def test_without_validation_it_is_scikit_learn_s(n_out, names):
    X, y, groups = problem()
    groups = groups if names is None else names[groups]
    cv = DomainSplit(n_out, valid_fraction=0)
    expected = list(LeavePGroupsOut(n_out).split(X, y, groups))
    assert_same_folds(list(cv.split(X, y, groups)), expected)
    if n_out == 1:
        assert_same_folds(list(LeaveOneGroupOut().split(X, y, groups)), expected)
    assert cv.get_n_splits(groups=groups) == len(expected)
    assert cv.get_n_splits(X, y, groups) == len(expected)
    assert all(len(valid) == 0 for _, valid, _ in folds(cv, X, y, groups))


@settings(max_examples=60)
@given(
    groups=st.lists(st.integers(0, 5), min_size=8, max_size=60).filter(
        lambda g: len(set(g)) > 2
    ),
    n_out=st.integers(1, 2),
    fraction=st.sampled_from([0.0, 0.1, 0.25, 0.5, 0.8]),
)
def test_each_row_is_in_one_part(groups, n_out, fraction):
    groups = np.array(groups)
    y = np.arange(len(groups)) % 2
    cv = DomainSplit(n_out, valid_fraction=fraction, random_state=0)
    held_out = [len(t) for _, t in LeavePGroupsOut(n_out).split(y, y, groups)]
    n_rows = len(groups) - np.array(held_out)
    n_valid = np.floor(fraction * n_rows + 0.5)
    if fraction and not ((n_valid > 0) & (n_valid < n_rows)).all():
        with pytest.raises(ValueError, match="must leave rows both"):
            folds(cv, groups, y, groups)
        return
    parts = folds(cv, groups, y, groups)
    assert [len(valid) for _, valid, _ in parts] == n_valid.tolist()
    for train, valid, test in parts:
        together = np.sort(np.concatenate([train, valid, test]))
        np.testing.assert_array_equal(together, np.arange(len(groups)))
        for part in (train, valid, test):
            assert (np.diff(part) > 0).all()
        assert len(set(groups[test])) == n_out
        assert not set(groups[test]) & set(groups[[*train, *valid]])


def test_split_leaves_out_what_validates():
    X, y, groups = problem()
    cv = DomainSplit(random_state=0)
    assert_same_folds(
        list(cv.split(X, y, groups)),
        [(train, test) for train, _, test in folds(cv, X, y, groups)],
    )


@pytest.mark.parametrize("fraction", [0.2, 0.5])
def test_each_class_of_each_domain_has_its_share(fraction):
    X, y, groups = problem(600)
    cv = DomainSplit(valid_fraction=fraction, random_state=0)
    for train, valid, _ in folds(cv, X, y, groups):
        for domain in set(groups[train]):
            for label in range(3):
                n_train, n_valid = (
                    ((groups[part] == domain) & (y[part] == label)).sum()
                    for part in (train, valid)
                )
                assert n_valid == pytest.approx(fraction * (n_train + n_valid), abs=1)


def test_without_classes_each_domain_has_its_share():
    X, _, groups = problem(600)
    target = X[:, 0]  # Real numbers: a regression.
    several = np.column_stack([groups, groups])
    for y in (None, target, several):
        for train, valid, _ in folds(DomainSplit(random_state=0), X, y, groups):
            for domain in set(groups[train]):
                n_train, n_valid = (
                    (groups[part] == domain).sum() for part in (train, valid)
                )
                assert n_valid == pytest.approx(0.2 * (n_train + n_valid), abs=1)
    assert_same_folds(
        folds(DomainSplit(random_state=0), X, target, groups),
        folds(DomainSplit(random_state=0), X, None, groups),
    )


def test_a_class_with_one_row_in_a_domain_stays_in_training():
    X, y, groups = problem()
    y[np.flatnonzero(groups == 1)[0]] = 7
    for train, valid, test in folds(DomainSplit(random_state=0), X, y, groups):
        assert 7 not in y[valid]
        assert (7 in y[train]) != (7 in y[test])


def test_more_classes_than_rows_of_each():
    """As many labels as rows, almost: no warning, and sizes as asked."""
    groups = np.repeat([0, 1, 2], 20)
    y = np.arange(60) // 2
    for train, valid, _ in folds(DomainSplit(random_state=0), y, y, groups):
        assert (len(train), len(valid)) == (32, 8)


def test_labels_of_any_kind():
    X, y, groups = problem()
    expected = folds(DomainSplit(random_state=0), X, y, groups)
    for labels in (np.array(["a", "b", "c"])[y], y.tolist(), y.astype(float), y > 0):
        same_classes = len(set(np.asarray(labels).tolist())) == 3
        got = folds(DomainSplit(random_state=0), X, labels, groups.tolist())
        if same_classes:
            assert_same_folds(got, expected)


# Seeds


def test_seed():
    X, y, groups = problem()
    first = folds(DomainSplit(random_state=0), X, y, groups)
    cv = DomainSplit(random_state=0)
    for _ in range(2):
        assert_same_folds(folds(cv, X, y, groups), first)

    moving = DomainSplit(random_state=np.random.RandomState(0))
    assert_same_folds(folds(moving, X, y, groups), first)
    for other in (moving, DomainSplit(random_state=1), DomainSplit()):
        got = folds(other, X, y, groups)
        assert not np.array_equal(got[0][1], first[0][1])
        np.testing.assert_array_equal(got[0][2], first[0][2])


def test_global_generator_is_untouched():
    X, y, groups = problem()
    before = np.random.get_state()  # noqa: NPY002
    folds(DomainSplit(), X, y, groups)
    after = np.random.get_state()  # noqa: NPY002
    np.testing.assert_array_equal(before[1], after[1])
    assert before[2:] == after[2:]


# In scikit-learn's tools


def test_cross_validation_and_search():
    X, y, groups = problem()
    cv = DomainSplit(random_state=0)
    model = LogisticRegression()
    expected = [
        clone(model).fit(X[train], y[train]).score(X[test], y[test])
        for train, test in cv.split(X, y, groups)
    ]
    scores = cross_val_score(model, X, y, groups=groups, cv=cv)
    np.testing.assert_array_equal(scores, expected)
    search = GridSearchCV(model, {"C": [0.01, 1.0]}, cv=cv).fit(X, y, groups=groups)
    assert search.n_splits_ == 4
    np.testing.assert_array_equal(search.cv_results_["split0_test_score"][1], scores[0])


def test_metadata_routing():
    X, y, groups = problem()
    cv = DomainSplit(random_state=0)
    expected = cross_val_score(LogisticRegression(), X, y, groups=groups, cv=cv)
    assert cv.get_metadata_routing().split.requests == {"groups": True}
    with sklearn.config_context(enable_metadata_routing=True):
        scores = cross_validate(
            LogisticRegression(), X, y, params={"groups": groups}, cv=cv
        )["test_score"]
        np.testing.assert_array_equal(scores, expected)
        search = GridSearchCV(make_pipeline(LogisticRegression()), {}, cv=cv)
        search.fit(X, y, groups=groups)
        assert search.best_score_ == pytest.approx(expected.mean())


def test_text():
    text = "DomainSplit(n_out=2, random_state=3, valid_fraction=0.2)"
    assert repr(DomainSplit(2, random_state=3)) == text


# Bad input


@pytest.mark.parametrize("method", ["split", "split_with_validation", "get_n_splits"])
def test_domains_must_be_given(method):
    X, y, groups = problem()

    def run(cv, domains):
        result = getattr(cv, method)(X, y, domains)
        return result if method == "get_n_splits" else list(result)

    with pytest.raises(
        ValueError, match=r"domain of each row, got None\. Pass groups="
    ):
        run(DomainSplit(), None)
    with pytest.raises(ValueError, match=r"domains, got only \[7\]\. Use"):
        run(DomainSplit(), np.full(240, 7))
    with pytest.raises(ValueError, match=r"at least two domains, got only \['May'\]"):
        run(DomainSplit(), ["May"] * 240)
    with pytest.raises(
        ValueError,
        match=r"groups must hold a label for each row, in a 1d array.* \(240, 2\)",
    ):
        run(DomainSplit(), np.column_stack([groups, groups]))
    for n_out in (0, 4, 5, -1, 1.0, True, "1", None):
        with pytest.raises(ValueError, match="n_out must be an integer from 1 to 3"):
            run(DomainSplit(n_out), groups)


@pytest.mark.parametrize("fraction", [-0.1, 1, 1.5, "0.2", None, True, np.nan])
def test_share(fraction):
    cv = DomainSplit(valid_fraction=fraction)
    with pytest.raises(
        ValueError, match=r"valid_fraction must be a number in \[0, 1\)"
    ):
        list(cv.split(*problem()))


@pytest.mark.parametrize("fraction", [0.1, 0.95])
def test_too_few_rows_for_a_share(fraction):
    groups = np.array([0, 0, 1, 1])
    cv = DomainSplit(valid_fraction=fraction)
    with pytest.raises(ValueError, match="must leave rows both to validate and to"):
        list(cv.split(groups, groups, groups))


def test_lengths_must_agree():
    X, y, groups = problem()
    with pytest.raises(ValueError, match="inconsistent numbers of samples"):
        list(DomainSplit().split(X, y, groups[:-1]))


# The order under it


@settings(max_examples=60)
@given(strata=st.lists(st.integers(0, 4), min_size=1, max_size=50))
def test_every_beginning_of_the_order_is_stratified(strata):
    strata = np.array(strata)
    order = stratified_order(strata, np.random.RandomState(0))
    np.testing.assert_array_equal(np.sort(order), np.arange(len(strata)))
    names, counts = np.unique(strata, return_counts=True)
    for n in range(len(strata) + 1):
        rest = strata[order[n:]]
        if n <= len(strata) - len(names):
            assert set(rest) == set(names)
    # Half of the rows: half of each stratum.
    half = strata[order[: len(strata) // 2]]
    for name, count in zip(names, counts, strict=True):
        share = count * (len(strata) // 2) / len(strata)
        assert abs((half == name).sum() - share) <= len(names)
