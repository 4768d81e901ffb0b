"""Every input that can be meant is taken for what it is, and any other refused by name.

Rows in any container and layout, labels of any type, threads, processes, many fits, a
full disk and a kill: nothing is lost, and nothing passes in silence.
"""

import copy
import gc
import multiprocessing
import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import sparse
from sklearn.model_selection import KFold

from sksoftrank import (
    OODDetector,
    OODSearchCV,
    RankCompressor,
    SoftRankCNNClassifier,
    SoftRankEnsembleClassifier,
    SoftRankMLPClassifier,
    SoftRankNet,
    SoftRankTransformerClassifier,
    StackedGridSearchCV,
    collapse,
    compression,
    datasets,
    load,
    losses,
    ood,
    rank,
    save,
    theory,
)
from sksoftrank.domains import DomainSplit
from sksoftrank.inspection import compress_network, effective_depth, rank_profile
from sksoftrank.modules import MLP
from sksoftrank.shifts import GainDrift, GaussianNoise, OffsetDrift

FAST = {"max_epochs": 2, "batch_size": 16, "random_state": 0}
N, D = 24, 4
Y = np.arange(N) % 3


def mlp(**params):
    return SoftRankMLPClassifier(**{"hidden_layer_sizes": (8,), **FAST, **params})


def rows():
    """Return rows that every type of float holds exactly, and int8 twice over."""
    rng = np.random.default_rng(0)
    return np.round(4 * np.eye(3, D)[Y] + rng.standard_normal((N, D)))


X = rows()
CLF = mlp(max_epochs=10).fit(X, Y)
MAKE = {
    "mlp": mlp,
    "cnn": partial(SoftRankCNNClassifier, (4,), **FAST),
    "transformer": partial(
        SoftRankTransformerClassifier, 8, n_heads=2, depth=1, **FAST
    ),
    "ensemble": lambda: SoftRankEnsembleClassifier(mlp(), 2, random_state=0),
}


# -- Rows as they may come -------------------------------------------------------------


def frozen(X):
    X = X.copy()
    X.flags.writeable = False
    return X


def wide_indices(X):
    X = sparse.csr_array(X)
    X.indices, X.indptr = X.indices.astype(np.int64), X.indptr.astype(np.int64)
    return X


def twice(X):
    """Return entries in two halves, that a sparse matrix may hold and adds up."""
    n, d = X.shape
    columns = np.repeat(np.tile(np.arange(d), n), 2)
    halves = np.repeat(X.ravel() / 2, 2)
    return sparse.csr_array((halves, columns, 2 * d * np.arange(n + 1)), shape=X.shape)


LAYOUTS = {
    "fortran": np.asfortranarray,
    "reversed": lambda X: np.ascontiguousarray(X[::-1, ::-1])[::-1, ::-1],
    "strided": lambda X: np.repeat(np.repeat(X, 3, axis=0), 2, axis=1)[::3, ::2],
    "read-only": frozen,
    "unmasked": np.ma.masked_array,
    "list": lambda X: X.tolist(),
    "tuple": lambda X: tuple(map(tuple, X)),
    "tensor": torch.tensor,
    "frame": pd.DataFrame,
    "frame of numbers that may lack": lambda X: pd.DataFrame(X).astype("Float64"),
    "frame of Arrow": lambda X: pd.DataFrame(X).astype("double[pyarrow]"),
}
NAMED = {
    "pandas": lambda X: pd.DataFrame(X, columns=list("abcd")),
    "polars": lambda X: pl.DataFrame(X, schema=list("abcd")),
    "arrow": lambda X: pa.table(dict(zip("abcd", X.T, strict=True))),
}
TYPES = {
    **{t: lambda X, t=t: X.astype(t) for t in ("f2", "f4", "f8", "g", "i1", "i8")},
    **{t: lambda X, t=t: X.astype(t) for t in (">f4", ">f8", ">i4", "O", "U8")},
}
SPARSE = {
    **{
        f"{kind}_{base}": getattr(sparse, f"{kind}_{base}")
        for kind in ("csr", "csc", "coo", "lil", "dok", "bsr", "dia")
        for base in ("matrix", "array")
    },
    "wide indices": wide_indices,
    "twice": twice,
}
exact = hnp.arrays(
    np.float64, st.tuples(st.integers(1, 9), st.just(D)), elements=st.integers(-8, 8)
)


def outputs(clf, X):
    names = ("predict", "predict_proba", "decision_function", "transform", "embed")
    return {name: np.asarray(getattr(clf, name)(X)) for name in names}


@pytest.mark.parametrize("form", LAYOUTS | TYPES | SPARSE)
@settings(max_examples=10)
@given(X=exact)
def test_predictions_are_of_the_numbers_alone(form, X):
    found = outputs(CLF, (LAYOUTS | TYPES | SPARSE)[form](X))
    for name, expected in outputs(CLF, X).items():
        if name != "predict":
            # Single precision in, single precision out.
            tol = 1e-4 if found[name].dtype == np.float32 else 1e-9
            np.testing.assert_allclose(found[name], expected, rtol=tol, atol=tol)


@pytest.mark.parametrize("form", LAYOUTS | SPARSE)
@pytest.mark.parametrize("make", ["mlp", "transformer"])
def test_a_fit_is_of_the_numbers_alone(make, form):
    expected = MAKE[make]().fit(X if form in LAYOUTS else sparse.csr_array(X), Y)
    found = MAKE[make]().fit((LAYOUTS | SPARSE)[form](X), Y)
    np.testing.assert_allclose(
        found.predict_proba(X), expected.predict_proba(X), rtol=1e-5, atol=1e-6
    )


def test_a_zero_is_a_zero():
    negative = np.where(X == 0.0, -0.0, X)
    assert np.signbit(negative[X == 0.0]).all()
    assert (X == 0.0).any()
    np.testing.assert_array_equal(
        mlp().fit(negative, Y).predict_proba(X), mlp().fit(X, Y).predict_proba(X)
    )


@pytest.mark.parametrize("fitted", NAMED)
def test_frames_of_any_kind_are_one_table(fitted):
    clf = mlp().fit(NAMED[fitted](X), Y)
    for form in NAMED.values():
        np.testing.assert_array_equal(
            clf.predict_proba(form(X)), CLF_OF_NAMES.predict_proba(form(X))
        )


CLF_OF_NAMES = mlp().fit(NAMED["pandas"](X), Y)


@settings(max_examples=30)
@given(X=exact, data=st.data())
def test_rows_in_another_order_and_twice_are_the_same_rows(X, data):
    order = data.draw(st.lists(st.integers(0, len(X) - 1), min_size=1, max_size=20))
    expected = outputs(CLF, X)
    for name, value in outputs(CLF, X[order]).items():
        np.testing.assert_allclose(
            value, expected[name][order], rtol=1e-9, atol=1e-12, err_msg=name
        )


@settings(max_examples=30)
@given(exponent=st.integers(-320, 300), dtype=st.sampled_from(["f4", "f8"]))
def test_numbers_of_any_size_have_probabilities(exponent, dtype):
    limit = 18 if dtype == "f4" else 300
    scaled = (X * 10.0 ** min(exponent, limit)).astype(dtype)
    proba = CLF.predict_proba(scaled)
    assert proba.dtype == dtype
    np.testing.assert_allclose(proba.sum(axis=1), 1.0, rtol=1e-5)
    assert set(CLF.predict(scaled)) <= {0, 1, 2}


@settings(max_examples=10)
@given(exponent=st.integers(-320, 18), dtype=st.sampled_from(["f4", "f8"]))
def test_a_fit_takes_numbers_of_any_size(exponent, dtype):
    scaled = (X * 10.0**exponent).astype(dtype)
    clf = mlp().fit(scaled, Y)
    np.testing.assert_allclose(clf.predict_proba(scaled).sum(axis=1), 1.0, rtol=1e-5)
    assert np.isfinite(clf.transform(scaled)).all()


@pytest.mark.parametrize("make", MAKE)
def test_constant_features_and_one_row_to_predict(make):
    clf = MAKE[make]().fit(np.ones((N, D)), Y)
    proba = clf.predict_proba(np.ones((1, D)))
    assert proba.shape == (1, 3)
    np.testing.assert_allclose(proba.sum(), 1.0)


# -- Labels ----------------------------------------------------------------------------

LABELS = {
    "bool": np.array([False, True, True]),
    "negative": np.array([-3, -2, 7]),
    "huge": np.array([2**62, 2**62 + 1, 2**62 + 2]),
    "unsigned": np.array([2**64 - 1, 2**64 - 2, 0], dtype=np.uint64),
    "big-endian": np.array([1, 2, 3], dtype=">i4"),
    "int8": np.array([-128, 0, 127], dtype=np.int8),
    "float": np.array([0.0, 1e15, -1.0]),
    "half": np.array([0, 1, 2], dtype=np.float16),
    "text": np.array(["b", "", "ä😀"]),
    "text objects": np.array(["b", "a" * 999, "中"], dtype=object),
    "dates": np.array(["2020-01-01", "1970-01-01", "1900-02-03"], "M8[D]"),
}


@pytest.mark.parametrize("kind", LABELS)
@pytest.mark.parametrize("make", MAKE)
def test_labels_come_back_as_they_were(make, kind):
    y = LABELS[kind][Y]
    clf = MAKE[make]().fit(X, y)
    np.testing.assert_array_equal(clf.classes_, np.unique(y))
    predicted = clf.predict(X)
    assert predicted.dtype == clf.classes_.dtype
    assert predicted.dtype.kind == y.dtype.kind or y.dtype.kind == "U"
    assert np.isin(predicted, y).all()


@pytest.mark.parametrize(
    ("y", "kind"),
    [
        (pd.Series([2**62, 2**62 + 1, 5], dtype="Int64"), "i"),
        (pd.Series([True, False, True], dtype="boolean"), "b"),
        (pd.Series([1, 2, 3], dtype="int64[pyarrow]"), "i"),
        (pd.Series(["a", "b", "c"], dtype="string"), "O"),
        (pd.Series(["a", "b", "c"], dtype="category"), "O"),
        (pd.Series([1, 2, 3], index=[7, 8, 9]), "i"),
        (pl.Series(["a", "b", "c"]), "U"),
        (pa.array([1, 2, 3]), "i"),
        (torch.tensor([1, 2, 3]), "i"),
        (["a", "b", "c"], "U"),
    ],
    ids=str,
)
def test_labels_in_other_containers(y, kind):
    if isinstance(y, pd.Series):
        labels = y.iloc[Y]
    elif isinstance(y, list | pa.Array):
        labels = [y[i] for i in Y] if isinstance(y, list) else y.take(pa.array(Y))
    else:
        labels = y[Y.tolist()] if isinstance(y, pl.Series) else y[torch.tensor(Y)]
    clf = mlp().fit(X, labels)
    values = y.tolist() if hasattr(y, "tolist") else list(y)
    assert clf.classes_.tolist() == sorted(
        {v.as_py() if hasattr(v, "as_py") else v for v in values}
    )
    assert clf.predict(X).dtype.kind in (kind, "O")


def test_a_thousand_classes(monkeypatch):
    rng = np.random.default_rng(0)
    y = np.arange(2000) % 1000
    X = rng.standard_normal((2000, 6))
    among, asked = compression.argmaxable_among, []

    def count(classes, *args):
        asked.append(len(classes))
        return among(classes, *args)

    monkeypatch.setattr(compression, "argmaxable_among", count)
    clf = mlp(max_epochs=1, batch_size=256, early_stopping=True).fit(X, y)
    proba = clf.predict_proba(X[:50])
    assert proba.shape == (50, 1000)
    np.testing.assert_allclose(proba.sum(axis=1), 1.0)
    assert clf.transform(X[:50]).shape == (50, clf.n_components_)
    # Linear programmes of some 10 ms each, for those that no row is given.
    assert max(asked, default=0) <= 100


def test_a_class_that_a_fold_lacks():
    order = np.argsort(Y, kind="stable")  # Each fold lacks the class that it holds out.
    grid = {"temperature": [1.0, 10.0]}
    search = StackedGridSearchCV(mlp(), grid, cv=KFold(3), error_score="raise")
    search.fit(X[order], Y[order])
    assert (search.cv_results_["mean_test_score"] == 0.0).all()
    assert search.best_estimator_.classes_.tolist() == [0, 1, 2]


# -- What is refused -------------------------------------------------------------------


def odd(value, place=(0, 0)):
    changed = X.astype(object)
    changed[place] = value
    return changed


def labels(*values, dtype=object):
    y = np.empty(N, dtype=dtype)
    for i in range(N):
        y[i] = values[i % len(values)]
    return y


masked = np.ma.masked_array(X, mask=X > 3)
dated = pd.DataFrame(X, columns=list("abcd")).assign(a=pd.Timestamp("2020-01-01"))
BAD_ROWS = {
    "nothing": None,
    "a number": 3,
    "a file's name": "data.csv",
    "a generator": (row for row in X),
    "a set": {1, 2},
    "a dictionary": {"a": [1.0] * N},
    "a record array": pd.DataFrame(X).to_records(index=False),
    "a vector": X[:, 0],
    "a matrix of matrices": X.reshape(N, 2, 2),
    "no rows": X[:0],
    "no columns": X[:, :0],
    "ragged": [[1.0], [1.0, 2.0]] * (N // 2),
    "text": odd("high"),
    "NaN": odd(np.nan),
    "None": odd(None),
    "infinite": odd(-np.inf),
    "an object": odd({}),
    "a huge int": odd(10**400),
    "complex": X * 1j,
    "masked": masked,
    "dates": X.astype("M8[s]"),
    "durations": X.astype("m8[s]"),
    "a frame with dates": dated,
    "a lazy frame": pl.DataFrame(X).lazy(),
    "columns of one name": pd.DataFrame(X, columns=list("aabc")),
    "a tensor in training": torch.tensor(X, requires_grad=True),
    "bfloat16": torch.tensor(X).bfloat16(),
    "sparse NaN": sparse.csr_array(odd(np.nan).astype(float)),
    "sparse complex": sparse.csr_array(X * 1j),
    "squares too large": X * 1e20,
    "single squares too large": np.float32(X * 1e20),
    "too large": X * 1e300,
}
# What only training squares.
TRAINED_ALONE = ("squares", "single", "too large")


@pytest.mark.filterwarnings("ignore::PendingDeprecationWarning")
@pytest.mark.parametrize("make", ["mlp", "transformer"])
@pytest.mark.parametrize("kind", BAD_ROWS)
def test_bad_rows_are_named_and_cost_nothing(make, kind):
    clf = MAKE[make]().fit(X, Y)
    before, state = clf.predict_proba(X), dict(vars(clf))
    calls = [lambda: clf.fit(BAD_ROWS[kind], Y), lambda: clf.compress(BAD_ROWS[kind])]
    if not kind.startswith(TRAINED_ALONE):
        calls += [lambda: clf.predict(BAD_ROWS[kind])]
    for call in calls:
        with pytest.raises((ValueError, TypeError), match=r"\bX\b"):
            call()
    assert vars(clf) == state
    np.testing.assert_array_equal(clf.predict_proba(X), before)


def test_rows_whose_outputs_overflow_are_no_class():
    clf = mlp(normalization=None, input_scale=False).fit(X, Y)
    for parameter in clf.module_.parameters():
        parameter.data *= 100.0
    unit = X / np.abs(X).max()
    for rows in (np.float32(3e38 * unit), 1e308 * unit):
        for method in ("predict", "predict_proba", "transform", "embed"):
            with pytest.raises(
                ValueError, match=f"X must hold numbers .* {rows.dtype}"
            ):
                getattr(clf, method)(rows)
    assert np.isfinite(clf.predict_proba(1e38 * X)).all()


BAD_LABELS = {
    "nothing": None,
    "a number": 1,
    "a name": "target",
    "a set": {0, 1},
    "a dictionary": {0: 1},
    "None": labels("a", None),
    "NaN": np.where(Y == 0, np.nan, Y),
    "NaN among text": labels("a", float("nan")),
    "pandas' NA": labels("a", pd.NA),
    "NA of a dtype": pd.Series([1, None] * (N // 2), dtype="Int64"),
    "polars' null": pl.Series(["a", None] * (N // 2)),
    "NaT": labels("NaT", "2020-01-01", dtype="M8[D]"),
    "infinite": np.where(Y == 0, np.inf, Y),
    "text and numbers": labels("a", 1),
    "text and numbers in a list": ["a", 1] * (N // 2),
    "ints as objects": labels(1, 2),
    "decimals": labels(Decimal(1), Decimal(2)),
    "bytes": labels(b"a", b"b", dtype="S1"),
    "continuous": np.linspace(0.0, 1.0, N),
    "complex": Y * 1j,
    "masked": np.ma.masked_array(Y, mask=Y == 2),
    "too few": Y[1:],
    "two columns": np.stack([Y, Y], axis=1),
    "ragged": [[1], [1, 2]] * (N // 2),
    "sparse": sparse.csr_array(np.eye(3)[Y]),
    "one class": np.zeros(N),
    "a tensor in training": torch.tensor(Y * 1.0, requires_grad=True),
}


@pytest.mark.parametrize("kind", BAD_LABELS)
def test_bad_labels_are_named_and_cost_nothing(kind):
    y = BAD_LABELS[kind]
    clf = copy.deepcopy(CLF)
    before, state = clf.predict_proba(X), dict(vars(clf))
    calls = [partial(clf.fit, X, y), partial(clf.partial_fit, X, y)]
    # What has a meaning there.
    if kind not in ("nothing", "one class", "ints as objects", "decimals"):
        calls += [partial(clf.compress, X, y), partial(compress_network, clf, X, y)]
    for call in calls[:1] if kind == "one class" else calls:
        with pytest.raises((ValueError, TypeError), match=r"\by\b"):
            call()
    assert vars(clf) == state
    np.testing.assert_array_equal(clf.predict_proba(X), before)


BAD_WEIGHTS = {
    "zeros": np.zeros(N),
    "negative": np.where(Y == 0, -1.0, 1.0),
    "NaN": np.full(N, np.nan),
    "infinite": np.full(N, np.inf),
    "text": "balanced",
    "text for each": np.full(N, "heavy"),
    "too few": np.ones(N - 1),
    "a column": np.ones((N, 1)),
    "complex": np.full(N, 1j),
    "masked": np.ma.masked_array(np.ones(N), mask=Y == 2),
    "dates": np.ones(N, "M8[s]"),
    "a dictionary": {0: 1.0},
    "one NaN": float("nan"),
    "one negative": -1,
    "zero": 0.0,
    "one complex": 1j,
}


@pytest.mark.parametrize("kind", BAD_WEIGHTS)
def test_bad_weights_are_named(kind):
    weight = BAD_WEIGHTS[kind]
    for call in (
        lambda: mlp().fit(X, Y, weight),
        lambda: CLF.compress(X, Y, sample_weight=weight),
        lambda: RankCompressor(2).fit(X, sample_weight=weight),
        lambda: compress_network(CLF, X, Y, sample_weight=weight),
    ):
        with pytest.raises(
            (ValueError, TypeError), match=r"sample_weight|Sample weights"
        ):
            call()


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        (np.full(N, None), "groups must hold a label .* missing"),
        (np.full(N, np.nan), "groups must hold a label .* missing"),
        (labels("a", 1), "groups must hold labels of one type"),
        (np.ones((N, 2)), "groups must hold a label for each of the 24 rows"),
        (Y[1:], "groups must hold a label for each of the 24 rows"),
        ("a", "groups must hold a label for each of the 24 rows"),
        (np.ma.masked_array(Y, mask=Y == 2), "groups must not have masked values"),
    ],
    ids=str,
)
def test_bad_groups_are_named(groups, message):
    for call in (
        lambda: mlp(early_stopping=True).fit(X, Y, groups=groups),
        lambda: mlp().fit(X, Y, groups=groups),
    ):
        with pytest.raises(ValueError, match=message):
            call()
    if np.ndim(groups) == 1 and len(groups) == N:
        with pytest.raises(ValueError, match="groups must"):
            next(DomainSplit().split(X, Y, groups))


SHIFT = {"shifts": [GainDrift(1)], "n_trials": 5}
BAD_PARAMETERS = [
    (lambda: mlp(hidden_layer_sizes=np.array(8.0)), "hidden_layer_sizes must be"),
    (lambda: mlp(hidden_layer_sizes=torch.tensor(8.0)), "hidden_layer_sizes must be"),
    (lambda: mlp(net_params={"a": 1}), "net_params must hold .* got {'a': 1}"),
    (lambda: mlp(class_weight={0: 10**400}), "class_weight must hold"),
    (lambda: SoftRankCNNClassifier(np.array(2.0)), "channels must be"),
    (
        lambda: SoftRankCNNClassifier((4,), augmentation=np.array(2.0)),
        "augmentation must be a sequence",
    ),
    (
        lambda: OODSearchCV(mlp(), study_callbacks=[1], **SHIFT),
        r"study_callbacks must hold functions .* got \[1\]",
    ),
]


@pytest.mark.parametrize(("make", "message"), BAD_PARAMETERS)
def test_bad_parameters_are_named_before_training(make, message, monkeypatch):
    def train(*_, **__):
        raise AssertionError("trained")

    monkeypatch.setattr("sksoftrank.training._grouping.train", train)
    with pytest.raises(ValueError, match=message):
        make().fit(X, Y)


def test_huge_whole_numbers_are_numbers():
    for params in ({"max_grad_norm": 10**30}, {"init_scale": 10}):
        assert np.isfinite(mlp(**params).fit(X, Y).predict_proba(X)).all()


def test_numbers_without_a_mask_are_numbers():
    np.testing.assert_array_equal(
        CLF.predict_proba(np.ma.masked_array(X)), CLF.predict_proba(X)
    )


@pytest.mark.parametrize(
    "classes",
    [[0, None], [0, "a"], np.zeros((2, 2)), [0.0, np.nan], "ab", 3, np.ma.masked],
    ids=str,
)
def test_classes_of_partial_fit_are_labels(classes):
    with pytest.raises((ValueError, TypeError), match="classes"):
        mlp().partial_fit(X, Y, classes=classes)


P = CLF.predict_proba(X)
BAD_NUMBERS = [
    "x",
    {},
    X * 1j,
    masked,
    X.astype("M8[s]"),
    odd("x"),
    odd(np.nan),
    [[1, 2], [3]],
    sparse.csr_array(X),
    3,
    None,
]
NUMBERS = {
    "Z": [
        rank.singular_values,
        rank.effective_rank,
        rank.rank_report,
        lambda Z: collapse.class_separation(Z, Y),
        lambda Z: collapse.within_class_variability(Z, Y),
    ],
    "logits": [rank.rank_deficit, theory.softmax_rank_bound],
    "A": [lambda A: rank.subspace_alignment(A, X, 1)],
    "B": [lambda B: rank.subspace_alignment(X, B, 1)],
    "weight": [
        theory.argmaxable,
        lambda weight: collapse.self_duality(X, Y, weight),
    ],
    "bias": [lambda bias: theory.argmaxable(X, 0 if bias is None else bias)],
    "scores_id": [lambda s: ood.auroc(s, P[:, 0]), ood.threshold_at_tpr],
    "scores_ood": [lambda s: ood.auroc(P[:, 0], s)],
    "proba": [lambda proba: ood.expected_calibration_error(Y, proba)],
    "Z_train": [lambda Z: ood.linear_probe_score(Z, Y, X, Y)],
    "Z_test": [lambda Z: ood.linear_probe_score(X, Y, Z, Y)],
    "X": [
        GainDrift(1).fit,
        RankCompressor(2).fit,
        OODDetector(CLF).fit(X, Y).score_samples,
        lambda rows: rank_profile(CLF, rows, Y),
    ],
}


@pytest.mark.parametrize("bad", BAD_NUMBERS, ids=lambda value: str(value)[:20])
@pytest.mark.parametrize("name", NUMBERS)
def test_bad_numbers_are_named(name, bad):
    # Which those for rows take.
    if name == "X" and sparse.issparse(bad):
        return
    for function in NUMBERS[name]:
        with pytest.raises((ValueError, TypeError), match=rf"\b{name}\b"):
            function(bad)


def test_ranks_of_numbers_near_the_largest_are_refused_rather_than_wrong():
    for function in (rank.effective_rank, rank.stable_rank, rank.numerical_rank):
        with pytest.raises(ValueError, match=r"Z must hold .*got 1e\+308"):
            function(np.full((6, 6), 1e308))
        assert function(np.full((6, 6), 1e300)) == pytest.approx(1.0)


@pytest.mark.parametrize("value", [None, "x", [0.1], 1j, np.nan], ids=str)
def test_bad_shares_are_named(value):
    for name, function in {
        "tol": lambda v: rank.numerical_rank(X, v),
        "tols": lambda v: rank.rank_report(X, tols=v if v != [0.1] else 3),
        "share": lambda v: rank.variance_rank(X, v),
        "shares": lambda v: rank.rank_report(X, shares=v if v != [0.1] else 3),
        "eps": lambda v: rank.rankme(X, eps=v),
        "confidence_level": lambda v: ood.ood_report(CLF, X, Y, {}, confidence_level=v),
        "temperature": lambda v: losses.temperature_softmax(torch.ones(2), v),
    }.items():
        with pytest.raises((ValueError, TypeError), match=rf"\b{name[:3]}"):
            function(value)
    with pytest.raises(ValueError, match="share"):
        effective_depth([{"probe_accuracy": 1.0}], share=value)


@pytest.mark.parametrize("temperature", [0.0, -1.0, np.nan, np.inf, None, "1"])
def test_a_temperature_that_is_none_gives_no_loss(temperature):
    logits, target = torch.zeros(2, 3), torch.tensor([0, 1])
    with pytest.raises(ValueError, match="temperature must be"):
        losses.temperature_cross_entropy(logits, target, temperature)
    with pytest.raises(ValueError, match="temperature must be"):
        losses.temperature_softmax(logits, temperature)


@pytest.mark.parametrize(
    ("call", "name"),
    [
        (lambda y: collapse.class_separation(X, y), "y"),
        (lambda y: collapse.nearest_center_agreement(X, Y, y), "predictions"),
        (lambda y: ood.expected_calibration_error(y, P), "y_true"),
        (lambda y: ood.linear_probe_score(X, y, X, Y), "y_train"),
        (lambda y: ood.linear_probe_score(X, Y, X, y), "y_test"),
        (lambda y: ood.make_ood_scorer(X, y), "y_ood"),
        (lambda y: ood.make_ood_scorer(X, Y, domains=y), "domains"),
        (lambda y: ood.ood_report(CLF, X, y, {}), "y_id"),
        (lambda y: rank_profile(CLF, X, y), "y"),
        (lambda y: OODDetector(CLF, method="mahalanobis").fit(X, y), "y"),
    ],
)
@pytest.mark.parametrize(
    "kind", ["None", "NaN", "pandas' NA", "NaT", "text and numbers", "masked"]
)
def test_bad_labels_of_metrics_are_named(call, name, kind):
    with pytest.raises(ValueError, match=rf"\b{name}\b must"):
        call(BAD_LABELS[kind])


@pytest.mark.parametrize("profile", [None, 3, "x", [1], [[]], [{"a": 1}]], ids=str)
def test_a_profile_is_one(profile):
    with pytest.raises((ValueError, TypeError), match="profile must be"):
        effective_depth(profile)


def test_a_report_is_of_a_classifier():
    with pytest.raises(ValueError, match="estimator must be a fitted classifier"):
        ood.ood_report(None, X, Y, {})
    with pytest.raises(ValueError, match="random_state must be"):
        ood.ood_report(CLF, X, Y, {}, random_state=0.5)


SEARCHES = {
    "grid": partial(StackedGridSearchCV, mlp(), {"temperature": [1.0, 3.0]}, cv=2),
    "ood": partial(OODSearchCV, mlp(), **SHIFT),
}


@pytest.mark.parametrize("search", SEARCHES)
@pytest.mark.parametrize("kind", ["None", "NaT", "text and numbers", "masked"])
def test_bad_labels_of_a_search_are_named_before_training(search, kind):
    with pytest.raises(ValueError, match=r"^y must"):
        SEARCHES[search]().fit(X, BAD_LABELS[kind])
    with pytest.raises(ValueError, match=r"^y must .* numbers of samples"):
        SEARCHES[search]().fit(X, Y[1:])
    with pytest.raises(ValueError, match=r"^y_ood must"):
        OODSearchCV(mlp()).fit(X, Y, X_ood=X + 1, y_ood=BAD_LABELS[kind])


def test_a_grid_search_names_dates():
    search = SEARCHES["grid"](error_score="raise")
    with pytest.raises(ValueError, match="X must hold numbers, got dates"):
        search.fit(BAD_ROWS["dates"], Y)


def test_a_net_of_skorch_heeds_masks_too():
    net = SoftRankNet(MLP, module__n_features=D, module__n_classes=3, max_epochs=1)
    with pytest.raises(ValueError, match="X must not have masked"):
        net.fit(masked.astype("f4"), Y)
    with pytest.raises(ValueError, match="y must not have masked"):
        net.fit(X.astype("f4"), BAD_LABELS["masked"])


@pytest.mark.parametrize("shift", [GainDrift, OffsetDrift, GaussianNoise])
def test_a_shift_has_a_finite_scale_or_none(shift):
    with pytest.raises(ValueError, match="X must hold numbers whose squares"):
        shift(1).fit(1e307 * X)
    assert np.isfinite(shift(5, random_state=0).fit_transform(1e-320 * X)).all()


# -- Threads and processes -------------------------------------------------------------


def test_sixteen_threads_predict_the_same():
    many = np.repeat(X, 20, axis=0)
    clfs = [MAKE[make]().fit(X, Y) for make in ("mlp", "cnn", "transformer")]
    expected = [outputs(clf, many) for clf in clfs]

    def work(i):
        return i % 3, outputs(clfs[i % 3], many)

    with ThreadPoolExecutor(16) as pool:
        for place, found in pool.map(work, range(96)):
            for name, value in found.items():
                # Another thread may round a product in another way.
                np.testing.assert_allclose(
                    value, expected[place][name], rtol=1e-6, atol=1e-8
                )


def test_sixteen_threads_fit_the_same():
    expected = mlp(dropout=0.1).fit(X, Y).predict_proba(X)
    with ThreadPoolExecutor(16) as pool:
        fits = pool.map(lambda _: mlp(dropout=0.1).fit(X, Y), range(32))
        for clf in fits:
            np.testing.assert_allclose(clf.predict_proba(X), expected, rtol=1e-6)


def test_a_spawned_process_predicts_the_same():
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        found = pool.apply(CLF.predict_proba, (X,))
    np.testing.assert_allclose(found, CLF.predict_proba(X), rtol=1e-6)


# -- What many fits leave behind -------------------------------------------------------


def left_behind():
    gc.collect()
    objects = gc.get_objects()
    counts = {
        kind.__name__: sum(isinstance(o, kind) for o in objects)
        for kind in (torch.Tensor, torch.nn.Module, SoftRankNet)
    }
    folder = Path("/proc/self")
    if folder.exists():
        counts["files"] = len(os.listdir(folder / "fd"))
        counts["threads"] = len(os.listdir(folder / "task"))
    return counts


@pytest.mark.filterwarnings("ignore::FutureWarning")  # Of old tensors that gc meets.
def test_many_fits_leave_nothing_behind(tmp_path):
    grid = {"temperature": [1.0, 10.0]}

    def work():
        clf = mlp().fit(X, Y)
        outputs(clf, X)
        save(clf.partial_fit(X, Y), tmp_path / "model")
        load(tmp_path / "model").predict(X)
        for bad in ("NaN", "masked"):
            with pytest.raises(ValueError, match="X"):
                clf.fit(BAD_ROWS[bad], Y)

    def seldom():
        for make in MAKE.values():
            make().fit(X, Y).predict(X)
        StackedGridSearchCV(mlp(), grid, cv=2).fit(X, Y)
        OODDetector(mlp()).fit(X, Y).predict(X)

    for _ in range(3):
        work()
        seldom()
    before = left_behind()
    for i in range(100):
        work()
        if i % 25 == 0:
            seldom()
    assert left_behind() == before


# -- Disks and kills -------------------------------------------------------------------

CHILD = """
import os, resource, signal, sys
import numpy as np
from skorch.callbacks import Callback
from sksoftrank import SoftRankMLPClassifier, load, save

class Kill(Callback):
    def on_epoch_end(self, net, **_):
        os.kill(os.getpid(), signal.SIGKILL)

folder, what = sys.argv[1:]
X, y = np.load(folder + "/X.npy", mmap_mode="r+"), np.arange(24) % 3
clf = load(folder + "/model")
if what == "kill":
    clf.set_params(callbacks=[Kill()], warm_start=True).fit(X, y)
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))
clf.set_params(random_state=1).fit(X, y).predict(X)
try:
    save(clf, folder + "/model")
except OSError as error:
    print(error)
print(clf.n_iter_)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="needs limits of POSIX")
@pytest.mark.parametrize("what", ["kill", "disk"])
def test_a_fit_that_is_killed_or_has_no_disk_loses_nothing(tmp_path, what):
    np.save(tmp_path / "X.npy", X)
    save(CLF, tmp_path / "model")
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    done = subprocess.run(
        [sys.executable, "-c", CHILD, str(tmp_path), what],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    if what == "kill":
        assert done.returncode == -signal.SIGKILL, done.stderr
    else:
        # A fit needs no disk, and a save that has none says so.
        assert done.returncode == 0, done.stderr
        told, n_iter = done.stdout.strip().split("\n")
        assert "what was there before is as it was" in told
        assert int(n_iter) == 10
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    np.testing.assert_array_equal(
        load(tmp_path / "model").predict_proba(X), CLF.predict_proba(X)
    )


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs a pipe with a name")
def test_what_is_no_file_is_not_replaced(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to(tmp_path / "pipe")
    for name in ("pipe", "link"):
        with pytest.raises(ValueError, match="path must be that of a file, got a dev"):
            save(CLF, tmp_path / name)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link", "pipe"]


@pytest.mark.parametrize("path", [None, 3, 1.5, b"x", [], "a\0b"], ids=str)
def test_a_path_is_named(path):
    for call in (
        lambda: save(CLF, path),
        lambda: load(path),
        lambda: datasets.load_table(path, "y"),
        lambda: datasets.load_gas_drift(path),
    ):
        with pytest.raises((ValueError, TypeError), match="path must be a str or"):
            call()
    with pytest.raises((ValueError, TypeError), match="folder must be a str or"):
        datasets.load_cifar10(path)


def test_names_that_changed_are_not_blamed_on_the_numbers():
    frame = pd.DataFrame(X).add_prefix("x")
    clf = mlp().fit(frame, Y)
    with pytest.raises(ValueError, match=r"^The feature names should match"):
        clf.predict(frame.add_suffix("?"))


@pytest.mark.skipif(not hasattr(np.dtypes, "StringDType"), reason="numpy before 2.0")
def test_the_text_of_numpy_is_labels():
    labels = np.array(["a", "b", "c"], dtype=np.dtypes.StringDType())[Y]
    assert mlp().fit(X, labels).classes_.tolist() == ["a", "b", "c"]
