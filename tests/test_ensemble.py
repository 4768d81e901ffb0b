"""The ensemble: its members are ordinary fits, and it decides by their mean."""

import copy
import pickle

import joblib
import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
import torch
from _plain import PLAIN
from scipy import sparse
from sklearn.base import clone
from sklearn.datasets import make_classification
from sklearn.decomposition import PCA
from sklearn.exceptions import NotFittedError
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from sksoftrank import (
    SoftRankCNNClassifier,
    SoftRankEnsembleClassifier,
    SoftRankMLPClassifier,
    SoftRankNet,
    SoftRankTransformerClassifier,
)
from sksoftrank.losses import LinearTemperature

FAST = {
    **PLAIN,
    "hidden_layer_sizes": (16, 8),
    "max_epochs": 5,
    "batch_size": 32,
    "learning_rate": 0.02,
}


def make(estimator=None, n_estimators=3, **params):
    estimator = SoftRankMLPClassifier(**{**FAST, **(estimator or {})})
    return SoftRankEnsembleClassifier(
        estimator, n_estimators, **{"random_state": 0, **params}
    )


def weights(clf):
    return torch.cat([p.detach().flatten() for p in clf.module_.parameters()]).numpy()


def all_weights(ensemble):
    return np.concatenate([weights(member) for member in ensemble.estimators_])


# -- Members ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("estimator", "params"),
    [
        ({}, {}),
        ({"temperature": 10.0, "dropout": 0.2}, {"n_estimators": 4}),
        ({"optimizer": "sgd", "class_weight": "balanced"}, {"n_jobs": 2}),
        ({"early_stopping": True, "max_grad_norm": 1.0}, {"temperature": 3.0}),
        ({"learning_rate": "auto"}, {"temperature": [0.3, 3.0, 100.0]}),
        ({}, {"temperature": (None, 2.0, LinearTemperature(1.0, 9.0))}),
        ({"normalization": "layer"}, {"temperature": np.array([1.0, 9.0, 3.0])}),
        ({"callbacks": [], "net_params": {"iterator_valid__batch_size": 9}}, {}),
    ],
    ids=str,
)
@pytest.mark.parametrize("weighted", [False, True])
def test_members_equal_fits_of_their_own(blobs, estimator, params, weighted):
    X, y = blobs
    weight = None
    if weighted:
        weight = np.random.default_rng(0).exponential(size=len(y))
    given = SoftRankMLPClassifier(**{**FAST, **estimator})
    ensemble = SoftRankEnsembleClassifier(
        given, **{"n_estimators": 3, "random_state": 0, **params}
    ).fit(X, y, weight)
    n_estimators = params.get("n_estimators", 3)
    temperatures = params.get("temperature")
    if temperatures is None or isinstance(temperatures, float):
        temperatures = [temperatures] * n_estimators
    assert len(ensemble.estimators_) == n_estimators
    for member, temperature in zip(ensemble.estimators_, temperatures, strict=True):
        alone = clone(given).set_params(random_state=member.random_state)
        if temperature is not None:
            alone.set_params(temperature=temperature)
        assert str(alone.get_params()) == str(member.get_params())
        alone.fit(X, y, weight)
        close = {"rtol": 0, "atol": 1e-6}
        np.testing.assert_allclose(weights(member), weights(alone), **close)
        np.testing.assert_allclose(
            member.predict_proba(X), alone.predict_proba(X), **close
        )
        assert member.temperature_ == alone.temperature_
        assert member.n_iter_ == alone.n_iter_
        assert member.n_components_ == alone.n_components_
    assert not hasattr(given, "net_")


def test_members_differ_by_their_seeds(blobs):
    ensemble = make(n_estimators=5).fit(*blobs)
    assert len({member.random_state for member in ensemble.estimators_}) == 5
    assert len({weights(member).tobytes() for member in ensemble.estimators_}) == 5
    assert len(SoftRankEnsembleClassifier(n_estimators=2).fit(*blobs).estimators_) == 2


# -- Decisions -------------------------------------------------------------------------


@pytest.mark.parametrize("n_classes", [2, 10])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_mean_decides(digits, n_classes, dtype):
    X, X_test, y, _ = digits
    X, y = X[y < n_classes], y[y < n_classes]
    X_test = X_test.astype(dtype)
    ensemble = make(temperature=[1.0, 3.0, 30.0]).fit(X, y)
    probabilities = np.stack([m.predict_proba(X_test) for m in ensemble.estimators_])
    mean = ensemble.predict_proba(X_test)
    np.testing.assert_allclose(mean, probabilities.mean(axis=0), rtol=1e-6)
    np.testing.assert_allclose(mean.sum(axis=1), 1.0, rtol=1e-6)
    std = ensemble.predict_std(X_test)
    np.testing.assert_allclose(std, probabilities.std(axis=0), rtol=1e-4, atol=1e-7)
    assert 0.0 <= std.min() <= std.max() <= 0.5
    log_mean = ensemble.predict_log_proba(X_test)
    np.testing.assert_allclose(np.exp(log_mean), mean, rtol=1e-5)
    predicted = ensemble.predict(X_test)
    np.testing.assert_array_equal(predicted, ensemble.classes_[mean.argmax(axis=1)])
    scores = ensemble.decision_function(X_test)
    if n_classes == 2:
        assert scores.shape == (450,)
        np.testing.assert_allclose(scores, log_mean[:, 1] - log_mean[:, 0], rtol=1e-5)
        np.testing.assert_array_equal(predicted, (scores > 0).astype(int))
    else:
        np.testing.assert_array_equal(scores, log_mean)
    z = np.hstack([member.embed(X_test) for member in ensemble.estimators_])
    np.testing.assert_array_equal(ensemble.embed(X_test), z)
    for output in (mean, std, log_mean, scores, z, ensemble.transform(X_test)):
        assert output.dtype == dtype
        assert np.isfinite(output).all()


def test_vanishing_probabilities_have_a_logarithm(blobs):
    X, y = blobs
    ensemble = make(temperature=0.05, estimator={"lr_schedule": "constant"}).fit(X, y)
    for rows in (1e3 * X, (1e3 * X).astype(np.float32)):
        assert ensemble.predict_proba(rows).min() == 0.0
        assert np.isfinite(ensemble.predict_log_proba(rows)).all()
        assert np.isfinite(ensemble.decision_function(rows)).all()


def test_one_member_is_that_member(blobs):
    X, y = blobs
    ensemble = make(n_estimators=1).fit(X, y)
    member = ensemble.estimators_[0]
    np.testing.assert_array_equal(ensemble.predict_proba(X), member.predict_proba(X))
    assert not ensemble.predict_std(X).any()
    np.testing.assert_allclose(
        np.abs(ensemble.transform(X)), np.abs(member.transform(X)), atol=1e-4
    )


def test_more_accurate_than_its_members_on_noisy_digits(digits):
    X, X_test, y, y_test = digits
    ensemble = SoftRankEnsembleClassifier(
        SoftRankMLPClassifier(
            **{**PLAIN, "hidden_layer_sizes": 32, "max_epochs": 30},
        ).set_params(learning_rate=0.01),
        n_estimators=8,
        random_state=0,
    ).fit(X, y)
    noisy = np.clip(
        X_test + 0.4 * np.random.default_rng(0).standard_normal(X_test.shape), 0, 1
    )
    members = [member.score(noisy, y_test) for member in ensemble.estimators_]
    assert ensemble.score(X_test, y_test) > 0.95
    assert ensemble.score(noisy, y_test) > np.mean(members)
    # It is less sure of itself where it errs.
    right = ensemble.predict(noisy) == y_test
    spread = ensemble.predict_std(noisy).max(axis=1)
    assert spread[~right].mean() > 1.2 * spread[right].mean()


# -- Embedding -------------------------------------------------------------------------


def test_the_basis_is_that_of_a_principal_component_analysis(digits):
    X, X_test, y, _ = digits
    ensemble = make(n_components=3).fit(X, y)
    pca = PCA(3, svd_solver="full").fit(ensemble.embed(X))
    np.testing.assert_allclose(
        np.abs(ensemble.transform(X_test)),
        np.abs(pca.transform(ensemble.embed(X_test))),
        atol=1e-3,
    )


@pytest.mark.parametrize("temperature", [None, [0.3, 3.0, 30.0]])
def test_auto_size_is_the_smallest_expected_to_keep_accuracy(digits, temperature):
    X, _, y, _ = digits
    ensemble = make(
        {"max_epochs": 10},
        temperature=temperature,
        compression_tol=0.01,
    ).fit(X, y)
    z = ensemble.embed(X.astype(np.float32))
    heads = [
        (copy.deepcopy(member.module_).double().head, member.temperature_)
        for member in ensemble.estimators_
    ]

    def margins(z):
        parts = torch.tensor(z).double().split(8, dim=1)
        with torch.no_grad():
            scores = sum(head(p) / t for (head, t), p in zip(heads, parts, strict=True))
        scores = scores.numpy()
        own = scores[np.arange(len(y)), y]
        scores[np.arange(len(y)), y] = -np.inf
        return own - scores.max(axis=1)

    full = margins(z)

    def loss(size):
        basis = PCA(size, svd_solver="full").fit(z)
        found = margins(basis.inverse_transform(basis.transform(z)))
        error = np.mean(full < 0)
        weak = np.mean(found < 0.8 * np.maximum(full, 0))
        return max(np.mean(found < 0) - error, (weak - error) / 8)

    size = ensemble.n_components_
    assert 1 < size < 24
    assert loss(size) <= 0.01
    assert all(loss(smaller) > 0.01 for smaller in range(1, size))


# So few can be too few for ten classes, which a warning says.
@pytest.mark.filterwarnings("ignore:n_components=:UserWarning")
@pytest.mark.parametrize(
    ("n_components", "columns"),
    [(1, 1), (24, 24), (None, 24), (0.5, None), ("auto", None)],
)
def test_n_components(digits, n_components, columns):
    X, X_test, y, _ = digits
    ensemble = make(n_components=n_components).fit(X, y)
    size = ensemble.n_components_
    assert columns in (None, size)
    assert ensemble.transform(X_test).shape == (450, size)
    assert ensemble.get_feature_names_out().tolist() == [
        f"softrankensembleclassifier{i}" for i in range(size)
    ]
    if n_components == 0.5:
        share = ensemble.compressor_.explained_variance_ratio_
        assert share[:-1].sum() < 0.5 <= share.sum()


@pytest.mark.parametrize("embedding", ["compressed", "concatenated"])
def test_set_output_and_pipelines(digits, embedding):
    X, X_test, y, y_test = digits
    ensemble = make(embedding=embedding, n_components=5)
    embed = make_pipeline(StandardScaler(), ensemble, LogisticRegression(max_iter=999))
    assert embed.fit(X, y).score(X_test, y_test) > 0.7
    ensemble.set_output(transform="pandas").fit(X, y)
    frame = ensemble.transform(pd.DataFrame(X_test, index=range(9, 459)))
    assert frame.shape == (450, 5 if embedding == "compressed" else 24)
    assert list(frame.columns) == list(ensemble.get_feature_names_out())
    assert frame.index[0] == 9
    ensemble.set_output(transform="default")
    Z = ensemble.transform(X_test)
    np.testing.assert_array_equal(frame, Z)
    if embedding == "concatenated":
        np.testing.assert_array_equal(Z, ensemble.embed(X_test))


# -- Same seed, same numbers -----------------------------------------------------------


def test_jobs_give_the_same_numbers(digits):
    X, X_test, y, _ = digits
    ensemble = make({"dropout": 0.2}, n_estimators=5, temperature=[1.0, 2, 3, 4, 5])
    fits = [clone(ensemble).set_params(n_jobs=n).fit(X, y) for n in (None, 1, 2, -1)]
    with joblib.parallel_config(backend="loky", n_jobs=2):
        fits.append(clone(ensemble).fit(X, y))
    assert torch.get_num_threads() == 1
    for other in fits[1:]:
        np.testing.assert_array_equal(all_weights(other), all_weights(fits[0]))
        np.testing.assert_array_equal(
            other.predict_proba(X_test), fits[0].predict_proba(X_test)
        )
        np.testing.assert_array_equal(
            other.transform(X_test), fits[0].transform(X_test)
        )
    again = make({"dropout": 0.2}, n_estimators=5, random_state=1).fit(X, y)
    assert (all_weights(again) != all_weights(fits[0])).any()


def test_global_generators_neither_matter_nor_move(digits):
    X, _, y, _ = digits
    torch.manual_seed(1)
    np.random.seed(1)  # noqa: NPY002
    a = make({"dropout": 0.2}).fit(X, y)
    torch.manual_seed(2)
    np.random.seed(2)  # noqa: NPY002
    torch_state = torch.get_rng_state()
    numpy_state = np.random.get_state()  # noqa: NPY002
    b = make({"dropout": 0.2}).fit(X, y)
    fresh = [make(random_state=None).fit(X, y) for _ in range(2)]
    b.predict(X), b.transform(X), pickle.loads(pickle.dumps(b))
    np.testing.assert_array_equal(all_weights(a), all_weights(b))
    np.testing.assert_array_equal(a.transform(X), b.transform(X))
    assert (all_weights(fresh[0]) != all_weights(fresh[1])).any()
    assert torch.equal(torch_state, torch.get_rng_state())
    np.testing.assert_array_equal(numpy_state[1], np.random.get_state()[1])  # noqa: NPY002


def test_a_pickle_predicts_the_same_and_holds_no_data():
    X, y = make_classification(2000, 40, n_informative=9, n_classes=4, random_state=0)
    ensemble = make(n_estimators=4, n_components=3).fit(X, y)
    data = pickle.dumps(ensemble)
    # Weights, bases of single precision, and what describes the members.
    assert len(data) < 4 * all_weights(ensemble).size + 4 * 3 * 32 + 4 * 8_000
    assert len(data) < X.nbytes / 10
    for twin in (pickle.loads(data), copy.deepcopy(ensemble)):
        for method in ("predict", "predict_proba", "predict_std", "transform", "embed"):
            np.testing.assert_array_equal(
                getattr(twin, method)(X), getattr(ensemble, method)(X)
            )
        np.testing.assert_array_equal(
            all_weights(twin.fit(X, y)), all_weights(ensemble)
        )


# -- Input -----------------------------------------------------------------------------


@pytest.mark.parametrize("as_object", [False, True])
def test_labels(blobs, as_object):
    X, y = blobs
    names = np.array(["ant", "bee", "cow"], dtype=object if as_object else None)
    ensemble = make().fit(X, names[y])
    assert ensemble.classes_.tolist() == ["ant", "bee", "cow"]
    assert ensemble.score(X, names[y]) > 0.9
    np.testing.assert_array_equal(
        ensemble.predict_proba(X), make().fit(X, y).predict_proba(X)
    )


@pytest.mark.parametrize("kind", [sparse.csr_matrix, sparse.csc_array])
def test_sparse_equals_dense(digits, kind):
    X, X_test, y, _ = digits
    a, b = make().fit(X, y), make().fit(kind(X), y)
    np.testing.assert_array_equal(all_weights(a), all_weights(b))
    np.testing.assert_allclose(a.transform(X_test), b.transform(kind(X_test)))
    np.testing.assert_array_equal(a.predict(X_test), b.predict(kind(X_test)))


def test_single_precision_agrees_with_double(digits):
    X, X_test, y, _ = digits
    a, b = make().fit(X, y), make().fit(X.astype(np.float32), y)
    assert a.n_components_ == b.n_components_
    close = {"rtol": 1e-3, "atol": 1e-4}
    np.testing.assert_allclose(
        b.predict_proba(X_test.astype(np.float32)), a.predict_proba(X_test), **close
    )


def test_frames_give_names_and_are_checked(blobs):
    X = pd.DataFrame(blobs[0], columns=list("abcdef"))
    ensemble = make().fit(X, blobs[1])
    assert ensemble.feature_names_in_.tolist() == list("abcdef")
    assert ensemble.n_features_in_ == 6
    with pytest.raises(ValueError, match="feature names"):
        ensemble.predict(X[list("fedcba")])


def test_names_are_those_of_the_last_fit(blobs):
    X, y = blobs
    ensemble = make().fit(pd.DataFrame(X, columns=list("abcdef")), y)
    assert not hasattr(ensemble.fit(X, y), "feature_names_in_")


@pytest.fixture
def table(blobs):
    """Return a frame of numbers, text and flags, and the classes."""
    X, y = blobs
    letters = np.array(list("abcd"))[(y + (X[:, 4] > 0)) % 4]
    letters[7] = "z"
    columns = {"number": X[:, 0], "text": letters, "flag": X[:, 1] > 1.5}
    return pd.DataFrame(columns), y


SMALL = {"max_epochs": 2, "batch_size": 32}
TABULAR = [
    SoftRankMLPClassifier(**FAST),
    SoftRankTransformerClassifier(8, n_heads=2, depth=1, **SMALL),
]


@pytest.mark.parametrize("estimator", TABULAR, ids=["mlp", "transformer"])
@pytest.mark.parametrize("form", [pd.DataFrame, pl.from_pandas])
@pytest.mark.parametrize("n_jobs", [None, 2])
def test_members_take_frames_with_categories(table, estimator, form, n_jobs):
    X, y = form(table[0]), table[1]
    ensemble = SoftRankEnsembleClassifier(estimator, 2, random_state=0, n_jobs=n_jobs)
    ensemble.fit(X, y)
    assert ensemble.feature_names_in_.tolist() == ["number", "text", "flag"]
    assert ensemble.n_features_in_ == 3
    for member in ensemble.estimators_:
        assert member.is_categorical_.tolist() == [False, True, True]
        alone = clone(member).fit(X, y)
        np.testing.assert_allclose(weights(member), weights(alone), rtol=0, atol=1e-6)
    p = np.mean([member.predict_proba(X) for member in ensemble.estimators_], axis=0)
    np.testing.assert_array_equal(ensemble.predict_proba(X), p)
    assert ensemble.transform(X).shape == (120, ensemble.n_components_)
    before = vars(ensemble).copy()
    with pytest.raises(ValueError, match="feature names"):
        ensemble.predict(X[["text", "number", "flag"]])
    gap = form(table[0].assign(number=np.nan))
    with pytest.raises(ValueError, match=r"NaN in \['number'\]. Impute"):
        ensemble.fit(gap, y)
    assert vars(ensemble) == before


SHAPED = [
    SoftRankCNNClassifier((4,), **SMALL),
    SoftRankTransformerClassifier(8, n_heads=2, depth=1, patch_size=2, **SMALL),
]


@pytest.mark.parametrize("estimator", SHAPED, ids=["cnn", "transformer"])
def test_members_take_images(estimator):
    y = np.arange(40) % 2
    X = np.random.default_rng(0).standard_normal((40, 2, 4, 4)) + y[:, None, None, None]
    ensemble = SoftRankEnsembleClassifier(estimator, 2, random_state=0).fit(X, y)
    assert ensemble.n_features_in_ == 32
    rows = X.reshape(40, -1)
    flat = clone(ensemble).set_params(estimator__input_shape=(2, 4, 4)).fit(rows, y)
    for method in ("predict_proba", "predict_std", "transform", "embed"):
        np.testing.assert_array_equal(
            getattr(ensemble, method)(X), getattr(flat, method)(rows)
        )
    state = vars(ensemble).copy()
    for wrong in (X[:, :1], X[:, 0]):
        with pytest.raises(ValueError, match="X must hold rows of shape"):
            ensemble.predict(wrong)
    with pytest.raises(ValueError, match="must hold images"):
        ensemble.fit(X[:, None], y)
    assert vars(ensemble) == state


def test_members_read_a_dataset_in_passes(blobs):
    X, y = blobs
    data = torch.utils.data.TensorDataset(torch.tensor(X), torch.tensor(y))
    ensemble = make().fit(data)
    for member in ensemble.estimators_:
        np.testing.assert_array_equal(weights(member), weights(clone(member).fit(data)))
    np.testing.assert_allclose(
        ensemble.predict_proba(data), ensemble.predict_proba(X), rtol=1e-6
    )
    assert ensemble.transform(data).shape == (120, ensemble.n_components_)
    assert ensemble.score(data) == ensemble.score(data, y) == ensemble.score(X, y)
    state = vars(ensemble).copy()
    with pytest.raises(ValueError, match="sample_weight must be None"):
        ensemble.fit(data, sample_weight=np.ones(120))
    with pytest.raises(ValueError, match="rows alone"):
        ensemble.fit(torch.utils.data.TensorDataset(torch.tensor(X)))
    with pytest.raises(ValueError, match="rows alone"):
        ensemble.score(torch.utils.data.TensorDataset(torch.tensor(X)))
    assert vars(ensemble) == state


def test_members_read_arrow(blobs):
    X, y = blobs
    columns = dict(zip("abcdef", X.T, strict=True))
    arrow = pa.table({**columns, "kind": y, "note": ["text"] * 120})
    ensemble = make().fit(arrow.drop_columns("note"), "kind")
    assert ensemble.feature_names_in_.tolist() == list("abcdef")
    frame = pd.DataFrame(columns)
    np.testing.assert_array_equal(ensemble.predict(arrow), ensemble.predict(frame))
    assert ensemble.score(arrow, "kind") == ensemble.score(frame, y)


def test_weights_reach_the_basis_too(blobs):
    X, y = blobs
    weight = np.where(np.arange(120) % 2, 0.0, 3.0)
    some, half = make().fit(X, y, weight), make().fit(X[::2], y[::2])
    np.testing.assert_allclose(all_weights(some), all_weights(half), rtol=0, atol=1e-6)
    np.testing.assert_allclose(some.transform(X), half.transform(X), atol=1e-4)


def test_a_grid_search_over_members_and_their_parameters(blobs):
    X, y = blobs
    search = GridSearchCV(
        make(), {"n_estimators": [1, 3], "estimator__learning_rate": [1e-5, 0.02]}, cv=2
    ).fit(X, y)
    best = search.best_estimator_
    assert search.best_params_["estimator__learning_rate"] == 0.02
    assert len(best.estimators_) == search.best_params_["n_estimators"]
    assert {member.learning_rate for member in best.estimators_} == {0.02}


# -- Bad input -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("temperature", 0.0),
        ("temperature", -1.0),
        ("temperature", np.nan),
        ("temperature", np.inf),
        ("temperature", "hot"),
        ("temperature", True),
        ("temperature", []),
        ("temperature", [1.0, 2.0]),
        ("temperature", [1.0] * 4),
        ("temperature", [1.0, -2.0, 3.0]),
        ("temperature", [1.0, np.nan, 3.0]),
        ("temperature", [1.0, 2.0, "hot"]),
        ("temperature", np.array(1.0)),
        ("temperature", np.ones((3, 1))),
        ("temperature", {1.0, 2.0, 3.0}),
        ("n_estimators", 0),
        ("n_estimators", 2.5),
        ("embedding", "mean"),
        ("n_components", 25),
        ("n_components", 0),
        ("n_components", "many"),
        ("compression_tol", 1.0),
        ("n_jobs", 1.5),
        ("random_state", "seed"),
        ("estimator", LogisticRegression()),
        ("estimator__temperature", -1.0),
        ("estimator__hidden_layer_sizes", (0,)),
        ("estimator__n_components", 9),
        ("estimator__device", "abacus"),
    ],
    ids=str,
)
def test_a_bad_parameter_is_named_before_training(blobs, monkeypatch, name, value):
    trained = []
    monkeypatch.setattr(
        "sksoftrank.training._grouping.train",
        lambda *_, **__: trained.append(1),
    )
    ensemble = make().set_params(**{name: value})
    with pytest.raises((ValueError, TypeError), match=name.split("__")[-1]):
        ensemble.fit(*blobs)
    assert not trained
    assert not hasattr(ensemble, "n_features_in_")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda X, y: (np.where(X > 3, np.nan, X), y), "NaN"),
        (lambda X, y: (X, np.zeros(120)), "at least two classes"),
        (lambda X, y: (X[:, :4], y[:-1]), "inconsistent numbers of samples"),
        (lambda X, y: (X, np.linspace(0, 1, 120)), "continuous"),
        (lambda X, y: (X[:, :4], y, -np.ones(120)), "Negative values in data"),
        (lambda X, y: (X[:, :4], y, np.ones(7)), "sample_weight"),
    ],
)
def test_bad_data_is_refused_and_nothing_is_lost(blobs, change, message):
    X, y = blobs
    ensemble = make().fit(X, y)
    before, state = ensemble.predict_proba(X), dict(vars(ensemble))
    with pytest.raises(ValueError, match=message):
        ensemble.fit(*change(X, y))
    assert vars(ensemble) == state
    np.testing.assert_array_equal(ensemble.predict_proba(X), before)


def test_a_member_that_diverges_ends_the_fit(blobs):
    ensemble = make({"optimizer": "sgd"})
    ensemble.set_params(estimator__learning_rate=1e30)
    with pytest.raises(FloatingPointError, match="learning rate"):
        ensemble.fit(*blobs)
    assert not hasattr(ensemble, "estimators_")


@pytest.mark.parametrize("n_jobs", [None, 2])
def test_an_interruption_is_raised_and_nothing_is_lost(blobs, monkeypatch, n_jobs):
    X, y = blobs
    ensemble = make(n_jobs=n_jobs).fit(X, y)
    before = ensemble.predict_proba(X)

    def interrupt(net, datasets, least, member):
        if len(member.history) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(SoftRankNet, "_end_epoch", interrupt)
    with pytest.raises(KeyboardInterrupt):
        ensemble.fit(X[:, :3], y)
    np.testing.assert_array_equal(ensemble.predict_proba(X), before)


def test_prediction_checks_its_input(blobs):
    X, y = blobs
    ensemble = make()
    methods = ("predict", "predict_proba", "predict_std", "transform", "embed")
    for method in (*methods, "decision_function", "predict_log_proba"):
        with pytest.raises(NotFittedError):
            getattr(ensemble, method)(X)
    with pytest.raises(NotFittedError):
        ensemble.get_feature_names_out()
    ensemble.fit(X, y)
    for method in methods:
        with pytest.raises(ValueError, match="6 features"):
            getattr(ensemble, method)(X[:, :5])


@pytest.mark.parametrize(
    "estimator", [3, LogisticRegression(), make_pipeline(SoftRankMLPClassifier())]
)
def test_members_are_networks_of_the_package(digits, estimator):
    X, _, y, _ = digits
    with pytest.raises(ValueError, match=r"such as SoftRankMLPClassifier\(\)") as error:
        SoftRankEnsembleClassifier(estimator, 2).fit(X, y)
    assert "._" not in str(error.value)
