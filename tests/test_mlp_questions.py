"""What scikit-learn asks of its MLPClassifier, asked of ours, names mapped.

Each test bears the name that it has in `sklearn/neural_network/tests/test_mlp.py`;
`ANSWERED_BY_A_LINE` holds the rest, and why.
"""

import ast
from pathlib import Path

import joblib
import numpy as np
import pandas as pd
import pytest
import sklearn.neural_network
from _plain import PLAIN
from scipy.sparse import csc_array, csr_array
from sklearn.datasets import load_digits, load_iris, make_classification
from sklearn.metrics import roc_auc_score
from sklearn.preprocessing import MinMaxScaler

from sksoftrank import SoftRankMLPClassifier

ANSWERED_BY_A_LINE = {
    **dict.fromkeys(
        (
            "test_lbfgs_regression",
            "test_lbfgs_regression_maxfun",
            "test_multioutput_regression",
            "test_partial_fit_regression",
            "test_mlp_regressor_dtypes_casting",
            "test_mlp_vs_poisson_glm_equivalent",
        ),
        "Of a regressor; ours are classifiers.",
    ),
    **dict.fromkeys(
        ("test_lbfgs_classification", "test_lbfgs_classification_maxfun"),
        "Of L-BFGS, which trains on all rows at once; ours train in batches.",
    ),
    **dict.fromkeys(
        ("test_multilabel_classification", "test_predict_proba_multilabel"),
        "The softmax, and so its temperature, is of one label a row.",
    ),
    "test_fit": "Sets private arrays, and reads off one step of them; the step is held "
    "to torch's in test_stacked.py.",
    "test_gradient": "Of a private method; gradients are held to autograd's in "
    "test_stacked.py.",
    "test_learning_rate_warmstart": "'invscaling' goes on over fits; our schedules go "
    "over one, see lr_schedule.",
    "test_adaptive_learning_rate": "'adaptive' lowers it when the loss stays; ours "
    "goes by the epoch, or a skorch LRScheduler's.",
    "test_tolerance": "`tol` is of the accuracy on held-out rows: without "
    "early_stopping a training has the length that was asked for, so that the cosine "
    "ends at zero. There is no ConvergenceWarning for the same reason.",
    "test_n_iter_no_change_inf": "n_iter_no_change is an int; early_stopping=False is "
    "how to never stop.",
    "test_shuffle": "Rows are always shuffled; the seed alone makes fits equal, which "
    "the estimator checks hold.",
    "test_mlp_param_dtypes": "Weights are float32 and predictions as precise as X, see "
    "test_precision.py.",
}

X_digits, y_digits = load_digits(return_X_y=True)
X_digits = MinMaxScaler().fit_transform(X_digits[:400])
y_digits = y_digits[:400]
two = y_digits < 2
X_two, y_two = X_digits[two], y_digits[two]
X_iris, y_iris = load_iris(return_X_y=True)


def network(hidden_layer_sizes=(16,), **params):
    own = {"max_epochs": 20, "batch_size": 32, "learning_rate": 0.01}
    own |= {"hidden_layer_sizes": hidden_layer_sizes, "random_state": 0}
    return SoftRankMLPClassifier(**PLAIN | own | params)


def test_each_question_has_an_answer():
    folder = Path(sklearn.neural_network.__file__).parent / "tests"
    if not (source := folder / "test_mlp.py").exists():
        pytest.skip("scikit-learn is installed without its tests")
    asked = {
        node.name
        for node in ast.parse(source.read_text()).body
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
    }
    answered = {name for name in globals() if name.startswith("test_")}
    assert asked - answered - set(ANSWERED_BY_A_LINE) == set()
    assert not answered & set(ANSWERED_BY_A_LINE)


def test_alpha():
    clfs = [network(weight_decay=decay).fit(X_two, y_two) for decay in (0.0, 1.0)]
    free, decayed = ([p.abs().sum() for p in c.module_.parameters()] for c in clfs)
    weights = [k for k, p in enumerate(clfs[0].module_.parameters()) if p.ndim == 2]
    assert all(free[k] > decayed[k] for k in weights)


def test_partial_fit_classes_error():
    clf = network().partial_fit([[3, 2], [1, 2]], [0, 1], classes=[0, 1])
    with pytest.raises(ValueError, match="classes"):
        clf.partial_fit([[3, 2]], [1], classes=[1, 2])


@pytest.mark.parametrize(("X", "y"), [(X_two, y_two), (X_digits, y_digits)])
def test_partial_fit_classification(X, y):
    steps = network(learning_rate=0.01)
    for _ in range(40):
        steps.partial_fit(X, y, classes=np.unique(y))
    assert steps.score(X, y) > 0.95


def test_partial_fit_unseen_classes():
    clf = network().partial_fit([[1], [2], [3]], list("abc"), classes=list("abcd"))
    clf.partial_fit([[4]], ["d"])
    assert clf.score([[1], [2], [3], [4]], list("abcd")) > 0


def test_partial_fit_errors():
    with pytest.raises(ValueError, match="at least two classes"):
        network().partial_fit([[3, 2], [1, 6]], [1, 0], classes=[2])
    with pytest.raises(ValueError, match="classes must be passed"):
        network().partial_fit([[3, 2], [1, 6]], [1, 0])


def test_nonfinite_params():
    X = np.finfo(np.float64).max * np.random.RandomState(0).uniform(size=(10, 2))
    with pytest.raises(ValueError, match="Scale its columns"):
        network().fit(X, [0, 1] * 5)


@pytest.mark.parametrize(("X", "y"), [(X_two, y_two), (X_digits[:20], y_digits[:20])])
def test_predict_proba_binary(X, y):
    clf = network(max_epochs=60).fit(X, y)
    proba, log_proba = clf.predict_proba(X), clf.predict_log_proba(X)
    assert proba.shape == (len(X), len(np.unique(y)))
    np.testing.assert_allclose(proba.sum(axis=1), 1.0)
    np.testing.assert_allclose(log_proba, np.log(proba))
    np.testing.assert_array_equal(proba.argmax(1), log_proba.argmax(1))
    if len(clf.classes_) == 2:
        assert roc_auc_score(y, proba[:, 1]) == 1.0


test_predict_proba_multiclass = test_predict_proba_binary


@pytest.mark.parametrize("container", [csr_array, csc_array])
def test_sparse_matrices(container):
    dense = network().fit(X_two, y_two)
    sparse = network().fit(container(X_two), y_two)
    expected = dense.predict_proba(X_two)
    np.testing.assert_allclose(sparse.predict_proba(X_two), expected, rtol=1e-4)
    np.testing.assert_allclose(
        dense.predict_proba(container(X_two)), expected, rtol=1e-6
    )


def test_verbose_sgd(capsys):
    clf = network(optimizer="sgd", max_epochs=2, verbose=1).fit(X_two, y_two)
    clf.partial_fit(X_two, y_two)
    assert "train_loss" in capsys.readouterr().out


def test_early_stopping():
    tol = 0.2
    clf = network(max_epochs=300, early_stopping=True, tol=tol, n_iter_no_change=3)
    clf.fit(X_two, y_two)
    assert clf.n_iter_ < 300
    scores = clf.validation_scores_
    assert isinstance(scores, list)
    assert len(scores) == len(clf.loss_curve_) == clf.n_iter_
    assert clf.best_validation_score_ == max(scores)
    assert clf.best_validation_score_ + tol > scores[-1]
    assert np.isfinite(clf.loss_curve_).all()
    clf = network().fit(X_two, y_two)
    assert clf.validation_scores_ is None
    assert clf.best_validation_score_ is None
    assert clf.loss_curve_[-1] < clf.loss_curve_[0]
    assert not hasattr(network(), "loss_curve_")


def test_n_iter_no_change():
    for patience in (2, 5, 10):
        clf = network(
            max_epochs=300, early_stopping=True, tol=0.5, n_iter_no_change=patience
        )
        # Nothing rises by half from the second epoch on, at the latest.
        assert patience < clf.fit(X_two, y_two).n_iter_ <= 2 * patience + 2


def test_warm_start():
    clf = network(warm_start=True).fit(X_iris, y_iris)
    clf.fit(X_iris, y_iris)
    clf.fit(X_iris, np.repeat([0, 1, 2], [40, 40, 70]))
    for others in (np.repeat([0, 1], 75), np.repeat([0, 1, 3], 50), y_iris + 1):
        with pytest.raises(ValueError, match="warm_start"):
            clf.fit(X_iris, others)


def test_warm_start_full_iteration():
    clf = network(warm_start=True, max_epochs=3)
    assert clf.fit(X_iris, y_iris).n_iter_ == 3
    assert clf.fit(X_iris, y_iris).n_iter_ == 3


test_mlp_warm_start_no_convergence = test_warm_start_full_iteration


def test_early_stopping_stratified():
    # A class of one row is no error: the row is trained on.
    clf = network(early_stopping=True).fit(
        [[1, 2], [2, 3], [3, 4], [4, 5]], [0, 0, 0, 1]
    )
    assert clf.classes_.tolist() == [0, 1]
    assert len(clf.validation_scores_) == clf.n_iter_


def test_mlp_early_stopping_string_labels():
    X, y = make_classification(200, 10, n_classes=3, n_informative=5, random_state=42)
    labels = np.array(["class_a", "class_b", "class_c"], dtype=object)
    clf = network(early_stopping=True).fit(X, labels[y])
    assert len(clf.validation_scores_) == clf.n_iter_
    assert np.isfinite(clf.validation_scores_).all()


def test_mlp_classifier_dtypes_casting():
    double = network().fit(X_digits[:300], y_digits[:300])
    single = network().fit(X_digits[:300].astype(np.float32), y_digits[:300])
    np.testing.assert_allclose(
        double.predict_proba(X_digits[300:]),
        single.predict_proba(X_digits[300:].astype(np.float32)),
        rtol=1e-3,
        atol=1e-6,
    )


def test_mlp_loading_from_joblib_partial_fit(tmp_path):
    joblib.dump(network().fit(X_two, y_two), tmp_path / "mlp.pkl")
    loaded = joblib.load(tmp_path / "mlp.pkl")
    assert loaded.score(X_two, y_two) == 1.0
    for _ in range(30):
        loaded.partial_fit(X_two, 1 - y_two)
    assert loaded.score(X_two, 1 - y_two) > 0.9


def test_preserve_feature_names():
    X = pd.DataFrame(np.random.RandomState(0).randn(20, 2), columns=["a", "b"])
    clf = network(early_stopping=True, validation_fraction=0.2)
    clf.fit(X, pd.Series([0, 1] * 10, name="y"))
    assert clf.feature_names_in_.tolist() == ["a", "b"]


def test_mlp_warm_start_with_early_stopping():
    clf = network(warm_start=True, early_stopping=True, max_epochs=5)
    first = clf.fit(X_iris, y_iris).predict_proba(X_iris)
    clf.set_params(max_epochs=10).fit(X_iris, y_iris)
    # The curves are of the last fit, as n_iter_ is.
    assert len(clf.validation_scores_) == clf.n_iter_ <= 10
    assert not np.array_equal(first, clf.predict_proba(X_iris))


def test_mlp_partial_fit_after_fit():
    clf = network(early_stopping=True).fit(X_iris, y_iris)
    with pytest.raises(ValueError, match="early_stopping must be False in partial_fit"):
        clf.partial_fit(X_iris, y_iris)
    # Without it a fit goes on.
    clf = network().fit(X_iris, y_iris).partial_fit(X_iris, y_iris)
    assert clf.n_iter_ == len(clf.loss_curve_) == 21


def test_mlp_diverging_loss():
    # Not NaN scores, but an error that says so, and nothing that was fitted is lost.
    clf = network(optimizer="sgd").fit(X_iris, y_iris)
    before = clf.predict_proba(X_iris)
    clf.set_params(learning_rate=1e30, early_stopping=True, max_epochs=5)
    with pytest.raises(FloatingPointError, match="learning rate"):
        clf.fit(X_iris, y_iris)
    np.testing.assert_array_equal(
        clf.set_params(early_stopping=False).predict_proba(X_iris), before
    )


def test_mlp_sample_weight_with_early_stopping():
    X, y = X_iris, y_iris
    clfs = [
        network(early_stopping=True).fit(X, y, sample_weight=weight)
        for weight in (None, np.ones(len(y)))
    ]
    plain, weighted = (clf.predict_proba(X) for clf in clfs)
    np.testing.assert_allclose(plain, weighted, rtol=1e-5)


def test_minimum_input_sample_size():
    with pytest.raises(ValueError, match="rows"):
        network((4,), normalization="batch", early_stopping=True).fit(
            [[0.0, 1.0], [1.0, 0.0]], [0, 1]
        )
