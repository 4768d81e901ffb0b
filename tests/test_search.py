"""The stacked searches: scikit-learn's results, key for key and score for score."""

import inspect
import pickle
import re
import warnings

import joblib
import numpy as np
import pandas as pd
import pytest
import sklearn
import torch
from scipy import sparse
from scipy.stats import loguniform
from sklearn.base import BaseEstimator, TransformerMixin, clone
from sklearn.datasets import make_classification
from sklearn.decomposition import PCA
from sklearn.exceptions import FitFailedWarning
from sklearn.feature_selection import SelectKBest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score, make_scorer, recall_score
from sklearn.model_selection import (
    BaseCrossValidator,
    GridSearchCV,
    GroupKFold,
    KFold,
    RandomizedSearchCV,
    ShuffleSplit,
    cross_val_score,
)
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import MinMaxScaler, StandardScaler
from skorch.callbacks import ProgressBar

from sksoftrank import (
    SoftRankEnsembleClassifier,
    SoftRankMLPClassifier,
    SoftRankNet,
    StackedGridSearchCV,
    StackedRandomizedSearchCV,
)
from sksoftrank.losses import LinearTemperature
from sksoftrank.search._jobs import Job, StackPlanner

GRID = (StackedGridSearchCV, GridSearchCV)
RANDOMIZED = (StackedRandomizedSearchCV, RandomizedSearchCV)
TEMPERATURES = {"temperature": [0.3, 3.0, 100.0]}


@pytest.fixture(scope="module")
def data():
    """Return a problem that leaves room for candidates to differ."""
    return make_classification(
        150, 8, n_informative=5, n_classes=3, flip_y=0.1, class_sep=0.7, random_state=0
    )


@pytest.fixture(autouse=True)
def started(monkeypatch):
    """Take processes for started, so that small searches use them."""
    monkeypatch.setattr("sksoftrank.search._jobs.START_SECONDS", 0.0)


def make(**params):
    return SoftRankMLPClassifier(
        **{
            "hidden_layer_sizes": (12, 8),
            "max_epochs": 4,
            "batch_size": 32,
            "learning_rate": 0.02,
            "random_state": 0,
            **params,
        }
    )


def piped(*steps, **params):
    """Return a pipeline whose last step is called "net"."""
    named = [(type(step).__name__.lower(), step) for step in steps]
    return Pipeline([*named, ("net", make(**params))])


def assert_same(stacked, plain, X):
    """Hold everything that a search leaves against scikit-learn's, but for times."""
    got, expected = stacked.cv_results_, plain.cv_results_
    assert list(got) == list(expected)
    for key, values in expected.items():
        if key == "params":
            assert str(got[key]) == str(values)
        elif key.startswith("param_"):
            assert got[key].dtype == values.dtype
            np.testing.assert_array_equal(got[key].mask, values.mask)
            assert str(got[key].tolist()) == str(values.tolist())
        elif key.endswith("_time"):
            assert got[key].shape == values.shape
            assert (got[key] >= 0).all()
        else:
            np.testing.assert_array_equal(got[key], values, err_msg=key)
    # Names that end in an underscore, less those of ours.
    fitted = {name for name in vars(stacked) if re.fullmatch(r"[a-z]\w*[^_]_", name)}
    assert fitted - {"fallback_reason_", "stack_bytes_"} == {
        name for name in vars(plain) if re.fullmatch(r"[a-z]\w*[^_]_", name)
    }
    assert stacked.n_splits_ == plain.n_splits_
    assert stacked.multimetric_ == plain.multimetric_
    assert type(stacked.scorer_) is type(plain.scorer_)
    for name in ("best_index_", "best_score_"):
        assert getattr(stacked, name, None) == getattr(plain, name, None)
    assert str(getattr(stacked, "best_params_", 0)) == str(
        getattr(plain, "best_params_", 0)
    )
    if plain.refit:
        np.testing.assert_array_equal(stacked.predict(X), plain.predict(X))
        np.testing.assert_array_equal(stacked.classes_, plain.classes_)
        # A pipeline that begins with "passthrough" has none.
        columns = [
            getattr(search, "n_features_in_", None) for search in (stacked, plain)
        ]
        assert columns[0] == columns[1]


def both(estimator, grid, X, y, fit_params=None, kinds=GRID, **options):
    """Search twice and compare; return ours and scikit-learn's."""
    options = {"cv": 3, **options}
    searches = [
        kind(estimator, grid, **options).fit(X, y, **(fit_params or {}))
        for kind in kinds
    ]
    assert_same(*searches, X)
    return searches


def recorded(search, X, y):
    """Fit, and return the search with its warnings, less their tracebacks."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        search.fit(X, y)
    heads = (re.split("Below are|Details", str(w.message))[0] for w in caught)
    return search, sorted(
        (w.category.__name__, head) for w, head in zip(caught, heads, strict=True)
    )


def both_warn(estimator, grid, X, y, **options):
    """Search twice, compare warnings too; return ours and the warnings."""
    options = {"cv": 3, **options}
    stacked, ours = recorded(StackedGridSearchCV(estimator, grid, **options), X, y)
    plain, theirs = recorded(GridSearchCV(estimator, grid, **options), X, y)
    assert ours == theirs
    assert_same(stacked, plain, X)
    return stacked, ours


# -- Same results ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("estimator", "grid"),
    [
        (make(), TEMPERATURES),
        (
            make(),
            {
                "hidden_layer_sizes": [8, (6, 5), [9, 4, 3]],
                "activation": ["relu", "tanh"],
            },
        ),
        (
            make(),
            {
                "optimizer": ["adam", "adamw", "sgd"],
                "batch_size": [16, 64],
                "weight_decay": [0.1],
            },
        ),
        (
            make(max_epochs=8, n_iter_no_change=2),
            {"early_stopping": [True, False], "max_epochs": [2, 8]},
        ),
        (
            make(),
            {
                "random_state": [0, 1],
                "dropout": [0.0, 0.3],
                "class_weight": [None, "balanced"],
                "label_smoothing": [0.1],
                "max_grad_norm": [0.5],
            },
        ),
        (make(), {"temperature": [LinearTemperature(1.0, 9.0), 2.0]}),
        (
            make_pipeline(StandardScaler(), make()),
            {"softrankmlpclassifier__temperature": [0.3, 3.0, 100.0]},
        ),
        (
            piped(StandardScaler(), SelectKBest()),
            {"selectkbest__k": [1, 3, 8], "net__temperature": [1.0, 30.0]},
        ),
        (
            piped(StandardScaler(), PCA(random_state=0)),
            {
                "pca__n_components": [2, 0.9, None],
                "pca__whiten": [True, False],
                "net__learning_rate": [0.01, 0.1],
            },
        ),
        (
            Pipeline(
                [
                    ("select", SelectKBest(k=6)),
                    ("inner", piped(StandardScaler(), PCA(4))),
                ]
            ),
            {
                "select__k": [4, 6],
                "inner__pca__n_components": [1, 3],
                "inner__net__temperature": [1.0, 30.0],
            },
        ),
        (
            piped(StandardScaler()),
            {
                "standardscaler": [StandardScaler(), MinMaxScaler(), "passthrough"],
                "net__temperature": [1.0, 30.0],
            },
        ),
        (
            make(),
            [
                {"temperature": [1.0, 10.0]},
                {"hidden_layer_sizes": [(5,)], "learning_rate": [0.01, 0.1]},
                {"temperature": [100.0], "optimizer": ["sgd"]},
            ],
        ),
    ],
    ids=[
        *("bare", "architecture", "optimizer", "early_stopping", "settings"),
        *("schedule", "make_pipeline", "select", "pca", "nested", "steps", "dicts"),
    ],
)
def test_a_grid_search_equals_scikit_learn_s(data, estimator, grid):
    X, y = data
    stacked, plain = both(
        estimator,
        grid,
        X,
        y,
        scoring=["accuracy", "roc_auc_ovr", "neg_log_loss"],
        refit="accuracy",
    )
    assert stacked.fallback_reason_ is None
    assert stacked.stack_bytes_ > 0
    assert len(set(plain.cv_results_["mean_test_neg_log_loss"])) > 1
    np.testing.assert_array_equal(stacked.predict_proba(X), plain.predict_proba(X))
    np.testing.assert_array_equal(stacked.transform(X), plain.transform(X))


@pytest.mark.parametrize("as_list", [False, True])
def test_a_randomized_search_equals_scikit_learn_s(data, as_list):
    X, y = data
    distributions = {
        "pca__n_components": [2, 4],
        "net__temperature": loguniform(0.1, 100),
        "net__hidden_layer_sizes": [(8,), (5, 4)],
    }
    both(
        piped(StandardScaler(), PCA()),
        [distributions, {"net__dropout": [0.5]}] if as_list else distributions,
        X,
        y,
        kinds=RANDOMIZED,
        n_iter=6,
        random_state=3,
    )


def accuracy(estimator, X, y):
    return accuracy_score(y, estimator.predict(X))


def accuracy_and_size(estimator, X, y):
    # The basis is there for those who look.
    return {
        "accuracy": accuracy(estimator, X, y),
        "n_components": estimator.n_components_,
        "columns": estimator.transform(X).shape[1],
    }


def most_compact(results):
    return int(np.argmin(results["param_temperature"]))


SCORINGS = {
    "none": {},
    "name": {"scoring": "roc_auc_ovr"},
    "list": {"scoring": ["accuracy", "f1_macro"], "refit": "f1_macro"},
    "dict": {
        "scoring": {
            "auc": "roc_auc_ovr",
            "recall": make_scorer(recall_score, average="macro"),
            "plain": accuracy,
        },
        "refit": "recall",
    },
    "callable": {"scoring": accuracy},
    "callable of several": {"scoring": accuracy_and_size, "refit": "n_components"},
    "refit callable": {"refit": most_compact},
    "refit callable of several": {
        "scoring": ["accuracy", "f1_macro"],
        "refit": most_compact,
    },
    "no refit": {"refit": False},
    "no refit of several": {"scoring": accuracy_and_size, "refit": False},
}


@pytest.mark.parametrize("return_train_score", [False, True])
@pytest.mark.parametrize("options", SCORINGS.values(), ids=SCORINGS)
def test_scorings(data, options, return_train_score):
    X, y = data
    stacked, plain = both(
        make(), TEMPERATURES, X, y, return_train_score=return_train_score, **options
    )
    assert stacked.fallback_reason_ is None
    if plain.refit and not (callable(plain.refit) and plain.multimetric_):
        assert stacked.score(X, y) == plain.score(X, y)


def test_scorers_find_an_estimator_like_any_other(data):
    X, y = data

    def through_a_pickle(estimator, X, y):
        twin = pickle.loads(pickle.dumps(estimator))
        assert clone(estimator).get_params().keys() == estimator.get_params().keys()
        assert vars(twin).keys() == vars(estimator).keys()
        return twin.score(X, y)

    estimator = piped(StandardScaler())
    both(estimator, {"net__temperature": [1, 9]}, X, y, scoring=through_a_pickle)


def test_groups(data):
    X, y = data
    groups = np.random.default_rng(0).integers(7, size=len(y))
    both(make(), TEMPERATURES, X, y, {"groups": groups}, cv=GroupKFold(4))


def test_splits_of_any_size(data):
    X, y = data
    rows = np.random.default_rng(0).permutation(150)
    splits = [
        (rows[:100], rows[100:]),
        (rows[:23], rows[23:40]),
        (rows[10:], rows[:1]),
        (rows[60:93], rows[:60]),
        (np.repeat(rows[:9], 2), rows[20:30]),
    ]
    grid = {"temperature": [1.0, 30.0], "max_epochs": [2, 5], "batch_size": [8, 32]}
    stacked, _ = both(make(), grid, X, y, cv=splits)
    both(make(), TEMPERATURES, X, y, cv=ShuffleSplit(3, test_size=0.4, random_state=0))
    assert stacked.n_splits_ == 5


def test_sample_weights(data):
    X, y = data
    weight = np.random.default_rng(0).exponential(size=len(y)) ** 2
    alike, _ = both(make(), TEMPERATURES, X, y)
    weighed, _ = both(
        make(), TEMPERATURES, X, y, {"sample_weight": weight}, return_train_score=True
    )
    assert weighed.fallback_reason_ is None
    assert (
        alike.cv_results_["mean_test_score"] != weighed.cv_results_["mean_test_score"]
    ).any()
    grid = {"net__temperature": [1.0, 30.0]}
    both(piped(StandardScaler()), grid, X, y, {"net__sample_weight": weight})


def test_metadata_routing(data):
    X, y = data
    rng = np.random.default_rng(0)
    weight = rng.exponential(size=len(y)) ** 2
    with sklearn.config_context(enable_metadata_routing=True):
        net = make().set_fit_request(sample_weight=True)
        net.set_score_request(sample_weight=True)
        scaler = StandardScaler().set_fit_request(sample_weight=True)
        pipeline = Pipeline([("scaler", scaler), ("net", net)])
        grid = {"net__temperature": [1.0, 30.0]}
        params = {"sample_weight": weight, "groups": rng.integers(5, size=len(y))}
        stacked, plain = both(pipeline, grid, X, y, params, cv=GroupKFold(3))
        assert stacked.fallback_reason_ is None
        assert_same(stacked.set_params(n_jobs=2).fit(X, y, **params), plain, X)


NAMES = np.array(["ant", "bee", "cow"])


@pytest.mark.parametrize(
    "prepare",
    [
        lambda X, y: (X, NAMES[y]),
        lambda X, y: (X, NAMES[y].astype(object)),
        lambda X, y: (X, pd.Series(NAMES[y], index=range(7, 157))),
        lambda X, y: (X.tolist(), y.tolist()),
        lambda X, y: (X, y - 1.0),
        lambda X, y: (X, y == 1),
        lambda X, y: (X.astype(np.float32), y),
        lambda X, y: (sparse.csr_matrix(np.where(X > 0.5, X, 0)), y),
        lambda X, y: (sparse.csc_array(np.where(X > 0.5, X, 0)), y),
    ],
    ids=[
        *("names", "objects", "series", "lists", "floats", "bools"),
        *("float32", "csr", "csc"),
    ],
)
def test_labels_and_rows_of_any_kind(data, prepare):
    X, y = prepare(*data)
    scaler = StandardScaler(with_mean=False)
    grid = {
        "net__temperature": [1.0, 30.0],
        "standardscaler": [scaler, "passthrough"],
    }
    stacked, _ = both(piped(scaler), grid, X, y, cv=2)
    assert stacked.fallback_reason_ is None


@pytest.mark.parametrize(
    ("estimator", "prefix"), [(make(), ""), (piped(StandardScaler()), "net__")]
)
def test_frames(data, estimator, prefix):
    X = pd.DataFrame(data[0], columns=list("abcdefgh"), index=range(9, 159))
    stacked, plain = both(estimator, {f"{prefix}temperature": [1, 30]}, X, data[1])
    assert stacked.feature_names_in_.tolist() == list("abcdefgh")
    np.testing.assert_array_equal(stacked.feature_names_in_, plain.feature_names_in_)
    with pytest.raises(ValueError, match="feature names"):
        stacked.predict(X[list("hgfedcba")])


def test_a_search_within_a_cross_validation(data):
    X, y = data
    scores = [cross_val_score(k(make(), TEMPERATURES, cv=2), X, y, cv=2) for k in GRID]
    np.testing.assert_array_equal(*scores)


def test_a_fitted_search_can_be_pickled_and_fitted_again(data):
    X, y = data
    stacked, plain = both(make(), TEMPERATURES, X, y)
    twin = pickle.loads(pickle.dumps(stacked))
    assert_same(twin, plain, X)
    # The seeds are drawn anew from the same state.
    assert_same(twin.fit(X, y), plain, X)


# -- What can't be stacked -------------------------------------------------------------


def test_some_candidates_can_t_be_stacked(data):
    X, y = data
    grid = {
        "net_params": [None, {"optimizer": torch.optim.RMSprop}],
        "temperature": [1.0, 30.0],
    }
    stacked, _ = both(make(), grid, X, y)
    assert "6 of 12 fits were not stacked" in stacked.fallback_reason_
    assert "optimizer must be torch's Adam, AdamW or SGD" in stacked.fallback_reason_
    assert "(6 fits)" in stacked.fallback_reason_


# Of 121 rows, training sets of 81 leave a batch of one, which has no variance.
@pytest.mark.parametrize("n_rows", [120, 121])
def test_normalised_candidates_are_stacked_by_kind(data, n_rows):
    X, y = data[0][:n_rows], data[1][:n_rows]
    grid = {"normalization": [None, "layer", "batch"], "temperature": [1.0, 30.0]}
    stacked, _ = both(make(batch_size=16), grid, X, y)
    assert stacked.fallback_reason_ is None

    grid = [{"normalization": ["layer", "batch"]}, {"callbacks": [[]]}]
    stacked, _ = both(make(callbacks=[ProgressBar(0)]), grid, X, y)
    assert "6 of 9 fits" in stacked.fallback_reason_
    assert "ProgressBar acts on batches" in stacked.fallback_reason_


def test_the_last_step_can_be_replaced(data):
    X, y = data
    grid = [
        {"net": [LogisticRegression(), make(max_epochs=2)]},
        {"net": [LogisticRegression()], "net__C": [1e-3, 1e-2]},
        {"net__temperature": [10.0, 20.0]},
        {"net": [piped(SelectKBest(k=2))], "net__net__temperature": [1.0, 30.0]},
    ]
    stacked, _ = both(piped(StandardScaler()), grid, X, y, return_train_score=True)
    assert stacked.fallback_reason_ == (
        "9 of 24 fits were not stacked: the candidate ends in LogisticRegression "
        "(9 fits)"
    )


def test_a_last_step_that_can_t_predict(data):
    grid = {"net": [make(), "passthrough"]}
    stacked, caught = both_warn(piped(StandardScaler()), grid, *data)
    assert "Scoring failed" in str(caught)
    assert "3 of 6 fits" in stacked.fallback_reason_


class Counted(SoftRankMLPClassifier):
    """A user's own, whose `fit` does more."""

    def fit(self, X, y, sample_weight=None):
        super().fit(X, y, sample_weight)
        self.n_rows_ = len(X)
        return self


def test_the_fit_of_a_subclass_is_respected(data):
    X, y = data
    stacked, _ = both(
        Counted(8, max_epochs=2, random_state=0),
        {"temperature": [1.0, 30.0]},
        X,
        y,
        scoring=lambda estimator, X, y: estimator.n_rows_,
    )
    assert "6 of 6 fits" in stacked.fallback_reason_


@pytest.mark.parametrize(
    ("estimator", "grid", "name"),
    [
        (LogisticRegression(), {"C": [0.01, 1.0]}, "LogisticRegression"),
        (
            make_pipeline(make(), LogisticRegression()),
            {"softrankmlpclassifier__temperature": [1.0, 30.0]},
            "LogisticRegression",
        ),
        (
            StackedGridSearchCV(make(), TEMPERATURES, cv=2),
            {"cv": [2, 3]},
            "StackedGridSearchCV",
        ),
        (
            SoftRankEnsembleClassifier(make(), 2, random_state=0),
            {"temperature": [1.0, 30.0]},
            "SoftRankEnsembleClassifier",
        ),
    ],
    ids=["alone", "last in a pipeline", "around", "an ensemble of"],
)
def test_other_estimators_are_searched_as_scikit_learn_does(
    data, estimator, grid, name
):
    stacked, _ = both(estimator, grid, *data, cv=2)
    assert name in stacked.fallback_reason_
    options = {"n_iter": 1, "random_state": 0, "cv": 2}
    stacked, _ = both(estimator, grid, *data, kinds=RANDOMIZED, **options)
    assert name in stacked.fallback_reason_


def test_callbacks_of_scikit_learn_see_every_fit(data):
    tasks = []

    class Recording:
        def setup(self, estimator, context):
            pass

        def on_fit_task_begin(self, estimator, context, **_):
            tasks.append(context.task_name)

        def on_fit_task_end(self, estimator, context, **_):
            pass

        def teardown(self, estimator, context):
            pass

    searches = []
    seen = []
    for kind in GRID:
        tasks.clear()
        search = kind(make(), TEMPERATURES, cv=2).set_callbacks(Recording())
        searches.append(search.fit(*data))
        seen.append(list(tasks))
    assert seen[0] == seen[1]
    assert len(seen[0]) > 6
    assert "callbacks" in searches[0].fallback_reason_


# -- Failures --------------------------------------------------------------------------


@pytest.mark.parametrize(
    "grid",
    [
        {"temperature": [3.0, -1.0]},
        {"temperature": ["hot", 3.0], "optimizer": ["adam", "sgd"]},
        {"hidden_layer_sizes": [(8, 0), 8]},
        {"activation": [["relu"], "relu"]},
        {"batch_size": ["many", None, 8, -3]},
        {"device": ["cuda:99", "cpu", "abacus"]},
        {"n_components": [2, 99]},
        {"validation_fraction": [0.9, 1.0], "early_stopping": [True]},
        {"normalization": ["group", None]},
        {"optimizer": ["sgd"], "learning_rate": [1e30, 0.05, 1e25]},
    ],
    ids=str,
)
def test_a_candidate_that_fails_is_nan_and_the_others_are_not(data, grid):
    X, y = data
    stacked, caught = both_warn(make(), grid, X, y, return_train_score=True)
    assert any(name == "FitFailedWarning" for name, _ in caught)
    scores = stacked.cv_results_["mean_test_score"]
    assert np.isnan(scores).any()
    assert np.isfinite(scores).any()
    assert stacked.best_score_ == np.nanmax(scores)


@pytest.mark.parametrize(
    "options",
    [
        {"scoring": ["accuracy", "f1_macro"], "refit": "f1_macro"},
        {"scoring": accuracy_and_size, "refit": "accuracy"},
        {"scoring": "roc_auc_ovr", "error_score": -1.0},
    ],
    ids=["list", "callable", "number"],
)
def test_failures_under_any_scoring(data, options):
    both_warn(make(), {"temperature": [-1.0, 3.0]}, *data, **options)


def test_failing_steps_and_scorers(data):
    X, y = data
    grid = {"selectkbest__k": [3, -1], "net__temperature": [1.0, 9.0]}
    both_warn(piped(SelectKBest()), grid, X, y)

    def moody(estimator, X, y):
        if estimator.temperature > 50:
            raise RuntimeError("too hot to score")
        return estimator.score(X, y)

    _, caught = both_warn(make(), TEMPERATURES, X, y, scoring=moody)
    assert "Scoring failed" in str(caught)


def test_the_warning_is_scikit_learn_s(data):
    search = StackedGridSearchCV(make(), {"temperature": [1.0, -1.0]}, cv=3)
    with (
        pytest.warns(UserWarning, match="non-finite"),
        pytest.warns(FitFailedWarning, match="3 fits failed out of a total of 6") as w,
    ):
        search.fit(*data)
    assert "The 'temperature' parameter" in str(w[0].message)


@pytest.mark.parametrize(
    ("grid", "options", "message"),
    [
        ({"temperature": [1.0, -1.0]}, {"error_score": "raise"}, "'temperature'"),
        (
            {"learning_rate": [0.02, 1e30], "optimizer": ["sgd"]},
            {"error_score": "raise"},
            "loss",
        ),
        ({"temperature": [-2.0, -1.0]}, {}, "All the 6 fits failed"),
        ({"temperature": [-2.0], "device": ["abacus"]}, {}, "All the 3 fits failed"),
        ({"heat": [1.0]}, {}, "Invalid parameter 'heat'"),
        ([], {}, "No fits were performed"),
        (TEMPERATURES, {"cv": []}, "No fits were performed|at least one"),
        (TEMPERATURES, {"scoring": "warmth"}, "scoring"),
        (TEMPERATURES, {"scoring": ["accuracy"]}, "refit"),
        (TEMPERATURES, {"scoring": ["accuracy"], "refit": "auc"}, "refit"),
        (TEMPERATURES, {"scoring": accuracy_and_size}, "refit"),
        (TEMPERATURES, {"cv": 200}, "n_splits=200"),
        (TEMPERATURES, {"cv": "many"}, "'cv' parameter"),
        (TEMPERATURES, {"error_score": "ignore"}, "'error_score' parameter"),
        (TEMPERATURES, {"refit": lambda results: 99}, "best_index_ index"),
    ],
)
@pytest.mark.parametrize("n_jobs", [None, 2])
def test_errors_are_scikit_learn_s(data, grid, options, message, n_jobs):
    types = []
    for kind in GRID:
        search = kind(make(), grid, **{"cv": 3, **options})
        if kind is StackedGridSearchCV:
            search.set_params(n_jobs=n_jobs)
        with pytest.raises(Exception, match=message) as caught:
            search.fit(*data)
        types.append(caught.type)
        assert not hasattr(search, "cv_results_")
    assert types[0] is types[1]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda X, y: (X, None), "y"),
        (lambda X, y: (X, y[:-1]), "inconsistent numbers of samples"),
        (lambda X, y: (X, np.where(y == 0, np.nan, y)), "NaN"),
        (lambda X, y: (np.full_like(X, np.nan), y), "NaN"),
        (lambda X, y: (X, y + 0.5), "continuous|Unknown label type"),
    ],
)
def test_bad_data_is_refused(data, change, message):
    X, y = change(*data)
    for kind in GRID:
        search = kind(make(), TEMPERATURES, cv=KFold(3), error_score="raise")
        with pytest.raises((ValueError, TypeError), match=message):
            search.fit(X, y)


def test_a_splitter_that_miscounts_is_refused(data):
    class Miscounting(BaseCrossValidator):
        def get_n_splits(self, X=None, y=None, groups=None):
            return 4

        def _iter_test_indices(self, X=None, y=None, groups=None):
            return iter(np.arange(150).reshape(3, 50))

    for kind in GRID:
        with pytest.raises(ValueError, match="got 3"):
            kind(make(), TEMPERATURES, cv=Miscounting()).fit(*data)


# -- No leak ---------------------------------------------------------------------------


class Recorder(TransformerMixin, BaseEstimator):
    """Takes the numbers of rows from the first column, and notes those of a fit."""

    def __init__(self, log, scale=1.0):
        self.log = log
        self.scale = scale

    def fit(self, X, y=None):
        with open(self.log, "a") as log:
            log.write(f"{self.scale} {X[:, 0].astype(int).tolist()}\n")
        return self

    def transform(self, X):
        return X[:, 1:] * self.scale


@pytest.mark.parametrize("backend", ["sequential", "loky"])
@pytest.mark.parametrize("nested", [False, True])
def test_steps_see_the_training_rows_of_the_fold_and_that_once(
    data, tmp_path, nested, backend
):
    X, y = data
    X = np.column_stack([np.arange(len(y)), X])
    log = tmp_path / "fits"
    pipeline = piped(Recorder(str(log)))
    grid = {
        "recorder__scale": [0.7, 1.3],
        "net__temperature": [1.0, 9.0, 90.0],
        "net__random_state": [0, 1],
    }
    if nested:
        pipeline = Pipeline([("outer", "passthrough"), ("inner", pipeline)])
        grid = {f"inner__{name}": values for name, values in grid.items()}
    cv = KFold(3, shuffle=True, random_state=0)
    search = StackedGridSearchCV(pipeline, grid, cv=cv, refit=False)
    with joblib.parallel_config(backend=backend, n_jobs=2):
        search.fit(X, y)
    assert search.fallback_reason_ is None
    fits = log.read_text().splitlines()
    expected = [
        f"{scale} {train.tolist()}" for scale in (0.7, 1.3) for train, _ in cv.split(X)
    ]
    assert set(fits) == set(expected)
    # A fold may lie in two stacks, trained at the same time.
    assert len(fits) <= len(expected) + (2 if backend == "loky" else 0)
    log.unlink()
    search.set_params(refit=True).fit(X, y)
    assert log.read_text().splitlines()[-1].endswith(f" {list(range(150))}")


# -- Jobs ------------------------------------------------------------------------------

JOBS = {
    "net__temperature": [1.0, 30.0],
    "net__hidden_layer_sizes": [8, (6, 5)],
    "pca__n_components": [0.5, 0.9],
}


@pytest.fixture(scope="module")
def plain(data):
    pipeline = piped(StandardScaler(), PCA(random_state=0))
    return GridSearchCV(pipeline, JOBS, cv=3).fit(*data)


@pytest.mark.parametrize("n_jobs", [1, 2, -1])
def test_threads_give_the_same_results(data, plain, n_jobs):
    search = StackedGridSearchCV(plain.estimator, JOBS, cv=3, n_jobs=n_jobs)
    assert_same(search.fit(*data), plain, data[0])


@pytest.mark.parametrize("pre_dispatch", [1, "all"])
def test_pre_dispatch_does_not_matter(data, plain, pre_dispatch):
    search = StackedGridSearchCV(
        plain.estimator, JOBS, cv=3, n_jobs=2, pre_dispatch=pre_dispatch
    )
    assert_same(search.fit(*data), plain, data[0])


def test_processes_give_the_same_results(data, plain):
    X, y = data
    search = StackedGridSearchCV(plain.estimator, JOBS, cv=3)
    with joblib.parallel_config(backend="loky", n_jobs=2):
        assert_same(search.fit(X, y), plain, X)
        # Failures, and their warnings, come back too.
        search.set_params(param_grid={"net__temperature": [30.0, -1.0]})
        with (
            pytest.warns(UserWarning, match="non-finite"),
            pytest.warns(FitFailedWarning, match="3 fits failed"),
        ):
            search.fit(X, y)
    assert np.isnan(search.cv_results_["mean_test_score"]).tolist() == [False, True]


def test_a_dask_cluster_gives_the_same_results(data, plain):
    # Here: its import takes a while.
    dask = pytest.importorskip("distributed")
    search = StackedGridSearchCV(plain.estimator, JOBS, cv=3)
    with (
        dask.LocalCluster(
            n_workers=1, threads_per_worker=2, processes=False, dashboard_address=None
        ) as cluster,
        dask.Client(cluster),
        joblib.parallel_config(backend="dask"),
    ):
        search.fit(*data)
    assert_same(search, plain, data[0])


# -- Interruptions ---------------------------------------------------------------------


class Interrupted(TransformerMixin, BaseEstimator):
    def fit(self, X, y=None):
        raise KeyboardInterrupt

    def transform(self, X):
        return X


@pytest.mark.parametrize("n_jobs", [None, 2])
@pytest.mark.parametrize("where", ["before training", "after an epoch", "in a step"])
def test_an_interruption_ends_the_search(data, monkeypatch, where, n_jobs):
    def interrupt(*args, **kwargs):
        raise KeyboardInterrupt

    estimator = piped(Interrupted()) if where == "in a step" else piped()
    if where == "before training":
        monkeypatch.setattr("sksoftrank.training._grouping.train", interrupt)
    elif where == "after an epoch":
        end_epoch = SoftRankNet._end_epoch

        def end_and_interrupt(net, datasets, least, member):
            end_epoch(net, datasets, least, member)
            if len(member.history) == 2:
                raise KeyboardInterrupt

        monkeypatch.setattr(SoftRankNet, "_end_epoch", end_and_interrupt)
    grid = {"net__temperature": [1, 9], "net__batch_size": [16, 32]}
    search = StackedGridSearchCV(estimator, grid, cv=3, n_jobs=n_jobs)
    # In threads: the patches above do not reach other processes.
    with joblib.parallel_config(backend="threading"), pytest.raises(KeyboardInterrupt):
        search.fit(*data)
    assert not hasattr(search, "cv_results_")
    assert not hasattr(search, "best_estimator_")


@pytest.mark.parametrize("n_epochs", [1, 100_000])
@pytest.mark.parametrize("are_started", [False, True])
def test_processes_are_started_only_where_they_save_more(
    data, monkeypatch, n_epochs, are_started
):
    X, y = data
    monkeypatch.setattr("sksoftrank.search._jobs.START_SECONDS", 4.0)
    executor = object() if are_started else None
    monkeypatch.setattr("sksoftrank._joblib.reusable_executor._executor", executor)
    jobs = [Job(0, {}, split, np.arange(90)) for split in range(4)]

    def n_jobs(given):
        estimator = make(max_epochs=n_epochs)
        return StackPlanner(estimator, X, y, given).plan(jobs).n_jobs

    assert n_jobs(2) == (1 if n_epochs == 1 and not are_started else 2)
    # Of many batches to come all count.
    planner = StackPlanner(make(max_epochs=1), X, y, 2, n_plans=10**6)
    assert planner.plan(jobs).n_jobs == 2
    assert n_jobs(None) is None
    with joblib.parallel_config(backend="threading"):
        assert n_jobs(2) == 2


# -- Face ------------------------------------------------------------------------------


@pytest.mark.parametrize("kinds", [GRID, RANDOMIZED], ids=["grid", "randomized"])
def test_the_face_is_scikit_learn_s(kinds):
    stacked, plain = kinds
    # As text: a default of nan is unequal to itself.
    assert str(inspect.signature(stacked)) == str(inspect.signature(plain))
    options = {"n_jobs": 2, "cv": 4, "verbose": 1, "error_score": "raise"}
    ours, theirs = (kind(make(), TEMPERATURES, **options) for kind in kinds)
    assert str(ours.get_params()) == str(theirs.get_params())
    twin = clone(ours)
    assert type(twin) is stacked
    assert str(twin.get_params()) == str(ours.get_params())
    assert isinstance(ours, plain)
    assert ours.set_params(estimator__temperature=7.0).estimator.temperature == 7.0


@pytest.mark.parametrize("verbose", [0, 1, 2, 3, 10])
def test_verbose_prints_what_scikit_learn_prints(data, capsys, verbose):
    printed = []
    for kind in GRID:
        kind(
            make(), {"temperature": [1.0, 9.0], "batch_size": [16, 32]}, verbose=verbose
        ).fit(*data)
        lines = capsys.readouterr().out.splitlines()
        memory = [line for line in lines if line.startswith("Training in")]
        assert len(memory) == (verbose > 0 and kind is StackedGridSearchCV)
        assert all(re.search(r"about \d+ MB", line) for line in memory)
        # Stacks go in another order than candidates.
        printed.append(
            sorted(re.sub("total time=.*", "", x) for x in lines if x not in memory)
        )
    assert printed[0] == printed[1]
    assert len(printed[0]) == {0: 0, 1: 1, 2: 21, 3: 21, 10: 41}[verbose]


def test_memory_is_told_and_does_not_grow_with_the_candidates(data):
    X, y = data
    net = make(hidden_layer_sizes=(256, 256), max_epochs=1)
    sizes = [
        StackedGridSearchCV(net, {"weight_decay": np.linspace(0, 0.1, n)}, cv=2)
        .fit(X, y)
        .stack_bytes_
        for n in (6, 24)
    ]
    # Weights, gradients and two states of the optimizer, at the least.
    assert sizes[0] > 4 * 4 * 256**2
    assert sizes[1] <= 1.5 * sizes[0]
