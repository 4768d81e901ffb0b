"""A fitted network made smaller: what is exact, what is promised, what is refused."""

import copy
import pickle

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import nn

from sksoftrank import (
    OODDetector,
    SoftRankClassifier,
    SoftRankCNNClassifier,
    SoftRankMLPClassifier,
    SoftRankTransformerClassifier,
)
from sksoftrank.inspection import compress_network
from sksoftrank.inspection._cut import _order_units
from sksoftrank.modules import MLP, ReducedModule

QUICK = {"dropout": 0.0, "max_epochs": 8, "random_state": 0, "device": "cpu"}


@pytest.fixture(scope="module")
def mlp(digits):
    X, _, y, _ = digits
    return SoftRankMLPClassifier((64, 64, 64), **QUICK).fit(X, y)


@pytest.fixture(scope="module")
def small(mlp, digits):
    X, _, y, _ = digits
    return compress_network(mlp, X, y, random_state=0)


@pytest.fixture(scope="module")
def images(digits):
    X, X_new, y, y_new = digits
    return X.reshape(-1, 1, 8, 8), X_new.reshape(-1, 1, 8, 8), y, y_new


@pytest.fixture(scope="module")
def cnn(images):
    X, _, y, _ = images
    clf = SoftRankCNNClassifier((16, 32), temperature=100.0, **QUICK)
    return clf.fit(X, y)


@pytest.fixture(scope="module")
def transformer(images):
    X, _, y, _ = images
    clf = SoftRankTransformerClassifier(32, patch_size=4, temperature=100.0, **QUICK)
    return clf.fit(X, y)


def products(sizes):
    """Return the number of weights of linear layers of these widths."""
    return sum(a * b for a, b in sizes)


def close(small, whole, X):
    """Return the largest difference of the logits, over the largest of them."""
    ours, theirs = small.decision_function(X), whole.decision_function(X)
    return np.abs(ours - theirs).max() / np.abs(theirs).max()


# -- What is exact -------------------------------------------------------------------


def of_low_rank(blobs, rank, activation="relu", normalization=None):
    """Return a network whose hidden activations lie in `rank` dimensions."""
    X, y = blobs
    clf = SoftRankMLPClassifier(
        (24, 24, 24), activation=activation, normalization=normalization, **QUICK
    ).fit(X, y)
    rng = np.random.default_rng(0)
    hidden = [m for m in clf.module_.body if isinstance(m, nn.Linear)]
    with torch.no_grad():
        for layer in hidden[1:]:
            # Of few bits, so that the product has that rank in single precision too.
            left, right = (rng.integers(-4, 5, (24, rank)) / 4 for _ in range(2))
            layer.weight.copy_(torch.from_numpy(left @ right.T / 2))
    return clf, X, y


@pytest.mark.parametrize("normalization", [None, "layer"])
def test_without_a_loss_what_no_row_uses_goes_and_nothing_changes(blobs, normalization):
    clf, X, y = of_low_rank(blobs, 2, "tanh", normalization)
    small = compress_network(clf, X, y, tol=0.0, random_state=0)
    assert close(small, clf, X) < 1e-5
    # A layer normalisation makes roundings of rows large that vary less than these do.
    new = np.random.default_rng(1).standard_normal((50, 6))
    assert close(small, clf, new) < (1e-5 if normalization is None else 1e-3)
    report = small.compression_report_
    assert report["method"] in ("rank", "both")
    ranks = [widths[1] for widths in small.module_.replaced.values()]
    assert ranks[-2:] == [2, 2]
    assert report["n_parameters"][1] < 0.5 * report["n_parameters"][0]


def test_units_that_others_repeat_go_without_a_loss(blobs):
    X, y = blobs
    clf = SoftRankMLPClassifier((16, 16), normalization=None, **QUICK).fit(X, y)
    first, second = (m for m in clf.module_.body if isinstance(m, nn.Linear))
    with torch.no_grad():
        for layer in (first, second):  # Each unit four times, in multiples.
            for times in range(1, 4):
                rows = slice(4 * times, 4 * times + 4)
                layer.weight[rows] = (times + 1) * layer.weight[:4]
                layer.bias[rows] = (times + 1) * layer.bias[:4]
    small = compress_network(clf, X, y, tol=0.0, random_state=0)
    assert small.compression_report_["method"] == "units"
    assert small.module_.original_params["hidden_layer_sizes"] == (4, 4)
    assert close(small, clf, X) < 1e-5


def test_linear_layers_become_one(blobs):
    X, y = blobs
    clf = SoftRankMLPClassifier((32, 32), activation="identity", **QUICK).fit(X, y)
    small = compress_network(clf, X, y, tol=0.0, random_state=0)
    assert close(small, clf, X) < 1e-5
    assert small.compression_report_["n_multiply_adds"][1] == products([(6, 3), (3, 3)])
    assert small.embed(X).shape == (len(X), 3)


def test_normalisation_and_input_scale_are_merged(mlp, digits):
    _, X_new, _, _ = digits
    X, _, y, _ = digits
    small = compress_network(mlp, X, y, tol=0.0, random_state=0)
    assert mlp.input_scale
    assert mlp.normalization == "batch"
    kinds = {type(m) for m in small.module_.modules() if not list(m.children())}
    assert all(issubclass(k, nn.Linear | nn.ReLU) for k in kinds)
    assert close(small, mlp, X_new) < 1e-5


@pytest.mark.parametrize("name", ["cnn", "transformer"])
def test_normalisations_of_convolutions_are_merged(name, images, request):
    clf = request.getfixturevalue(name)
    X, X_new, y, _ = images
    small = compress_network(clf, X, y, tol=0.0, random_state=0)
    kinds = [type(m) for m in small.module_.modules()]
    assert not any(issubclass(k, nn.BatchNorm2d) for k in kinds)
    assert close(small, clf, X_new) < 1e-5


def test_a_maximum_keeps_its_normalisation_where_a_scale_is_negative(cnn, images):
    X, X_new, y, _ = images
    clf = copy.deepcopy(cnn)
    with torch.no_grad():
        clf.module_.stages[0][0].norm.weight[0] *= -1.0
        clf.module_.stages[0][1].norm.weight[0] *= -1.0
    predicted = clf.predict(X)
    assert set(predicted) == set(y)
    small = compress_network(clf, X, tol=0.0, random_state=0)
    norms = [m for m in small.module_.modules() if isinstance(m, nn.BatchNorm2d)]
    assert len(norms) == 1
    assert close(small, clf, X_new) < 1e-5


def test_units_are_chosen_by_what_the_others_cannot_make_up_for():
    rng = np.random.default_rng(0)
    basis = torch.from_numpy(rng.standard_normal((3, 500)))
    units = torch.stack([10 * basis[0], 5 * basis[1], 5 * basis[1], 0 * basis[2]])
    covariance = torch.cov(units)
    order, explained = _order_units(covariance, torch.ones(2, 4, dtype=torch.float64))
    assert len(order) == 2
    assert {0} < set(order.tolist()) < {0, 1, 2}
    assert explained[-1] == pytest.approx(1.0)


# -- What is promised ----------------------------------------------------------------


@pytest.mark.parametrize("name", ["mlp", "cnn", "transformer"])
def test_new_rows_lose_no_more_than_was_asked_for(name, digits, images, request):
    clf = request.getfixturevalue(name)
    X, X_new, y, y_new = digits if name == "mlp" else images
    tol = 0.01
    small = compress_network(clf, X, y, tol=tol, distill_epochs=3, random_state=0)
    before, after = clf.predict(X_new) == y_new, small.predict(X_new) == y_new
    lost = before.astype(float) - after
    error = lost.std() / np.sqrt(len(lost))
    assert lost.mean() <= tol + 3 * max(error, 1 / len(lost))
    report = small.compression_report_
    assert report["expected_loss"] <= tol + 1e-12
    assert report["n_parameters"][1] < report["n_parameters"][0]


def test_a_larger_loss_makes_a_smaller_network(mlp, digits):
    X, _, y, _ = digits
    sizes = [
        compress_network(mlp, X, y, tol=tol, random_state=0).compression_report_[
            "n_parameters"
        ][1]
        for tol in (0.0, 0.005, 0.1)
    ]
    assert sizes[0] > sizes[1] > sizes[2]


def test_labels_of_its_own_do_for_rows_without(mlp, small, digits):
    X, _, _, _ = digits
    alone = compress_network(mlp, X, random_state=0)
    told = compress_network(mlp, X, mlp.predict(X), random_state=0)
    np.testing.assert_array_equal(alone.decision_function(X), told.decision_function(X))


def test_rows_without_weight_are_as_good_as_absent(mlp, digits):
    X, _, y, _ = digits
    weight = np.repeat([1.0, 0.0], [1000, len(X) - 1000])
    shorter = compress_network(mlp, X[:1000], y[:1000], random_state=0)
    weighted = compress_network(mlp, X, y, sample_weight=weight, random_state=0)
    assert shorter.compression_report_ == weighted.compression_report_


def test_a_class_of_one_row_is_kept(mlp, digits):
    X, _, y, _ = digits
    one = np.flatnonzero(y == 3)[:1]
    index = np.r_[np.flatnonzero(y != 3)[:400], one]
    small = compress_network(mlp, X[index], y[index], tol=0.3, random_state=0)
    assert small.score(X[index], y[index]) > 0.5


def test_distillation_brings_the_probabilities_closer(mlp, digits, monkeypatch):
    X, X_new, y, _ = digits
    # What a distillation makes up for is not given up.
    monkeypatch.setattr("sksoftrank.inspection._compress._DISTILLED_STEP", np.inf)
    gaps, sizes = [], []
    for epochs in (0, 10):
        small = compress_network(
            mlp, X, y, tol=0.1, distill_epochs=epochs, random_state=0
        )
        sizes.append(small.compression_report_["n_parameters"][1])
        gap = small.predict_proba(X_new) - mlp.predict_proba(X_new)
        gaps.append(np.abs(gap).mean())
    assert sizes[0] == sizes[1]
    assert gaps[1] < 0.9 * gaps[0]


def test_after_a_distillation_more_can_be_cut(mlp, digits):
    X, _, y, _ = digits
    sizes = [
        compress_network(
            mlp, X, y, tol=0.05, distill_epochs=epochs, random_state=0
        ).compression_report_["n_parameters"][1]
        for epochs in (0, 10)
    ]
    assert sizes[1] < sizes[0]


def test_nothing_is_trained_where_nothing_may_be_lost(mlp, digits):
    X, X_new, y, _ = digits
    small = compress_network(mlp, X, y, tol=0.0, distill_epochs=3, random_state=0)
    assert close(small, mlp, X_new) < 1e-5


# -- An estimator like any other -----------------------------------------------------


@pytest.mark.parametrize("name", ["mlp", "cnn", "transformer"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_it_is_an_estimator_like_any_other(name, dtype, digits, images, request):
    clf = request.getfixturevalue(name)
    X, X_new, y, y_new = digits if name == "mlp" else images
    small = compress_network(clf, X, y, random_state=0)
    X_new = X_new.astype(dtype)
    proba, Z = small.predict_proba(X_new), small.transform(X_new)
    assert proba.dtype == Z.dtype == small.embed(X_new).dtype == dtype
    np.testing.assert_allclose(proba.sum(axis=1), 1.0, rtol=1e-5)
    assert Z.shape == (len(X_new), small.n_components_)
    for twin in (pickle.loads(pickle.dumps(small)), copy.deepcopy(small)):
        np.testing.assert_array_equal(twin.predict_proba(X_new), proba)
        np.testing.assert_array_equal(twin.transform(X_new), Z)
        assert twin.compression_report_ == small.compression_report_
    assert small.score(X_new, y_new) > 0.8
    assert isinstance(small.module_, ReducedModule)
    assert small.temperature_ == clf.temperature_
    # In torch as in numpy.
    x = torch.from_numpy(X_new)
    module = copy.deepcopy(small.module_).to(x.dtype)
    with torch.no_grad():
        logits = module(x).numpy() / small.temperature_
    np.testing.assert_allclose(
        small.decision_function(X_new), logits, rtol=1e-3, atol=1e-4
    )


def test_its_parameters_are_those_of_the_whole_network(mlp, small, digits):
    X, _, y, _ = digits
    assert type(small) is type(mlp)
    assert small.get_params() == mlp.get_params()
    again = clone(small).fit(X, y)
    np.testing.assert_array_equal(again.predict_proba(X), mlp.predict_proba(X))
    assert not hasattr(again, "compression_report_")


def test_training_anew_trains_the_whole_network(mlp, small, digits):
    X, _, y, _ = digits
    refitted = copy.deepcopy(small).fit(X, y)
    np.testing.assert_array_equal(refitted.predict_proba(X), mlp.predict_proba(X))


def test_it_cannot_be_trained_on(small, digits):
    X, _, y, _ = digits
    before = small.predict_proba(X)
    with pytest.raises(ValueError, match="clone"):
        small.partial_fit(X, y)
    np.testing.assert_array_equal(small.predict_proba(X), before)


def test_the_whole_network_is_left_alone(mlp, small, digits):
    X, X_new, y, _ = digits
    before = mlp.predict_proba(X_new)
    compress_network(mlp, X, y, distill_epochs=1, random_state=1)
    np.testing.assert_array_equal(mlp.predict_proba(X_new), before)
    assert type(mlp.module_) is MLP
    assert not hasattr(mlp, "compression_report_")


def test_the_global_generators_are_left_alone(mlp, digits):
    X, _, y, _ = digits
    torch.manual_seed(5)
    np.random.seed(5)  # noqa: NPY002
    states = torch.get_rng_state(), np.random.get_state()[1]  # noqa: NPY002
    compress_network(mlp, X[:300], y[:300], distill_epochs=1, random_state=0)
    assert torch.equal(torch.get_rng_state(), states[0])
    assert (np.random.get_state()[1] == states[1]).all()  # noqa: NPY002


def test_equal_seeds_make_equal_networks(mlp, digits):
    X, _, y, _ = digits
    a, b = (
        compress_network(mlp, X, y, distill_epochs=1, random_state=3) for _ in range(2)
    )
    np.testing.assert_array_equal(a.predict_proba(X), b.predict_proba(X))


def test_a_pipeline_comes_back_as_one(digits):
    X, X_new, y, y_new = digits
    pipeline = make_pipeline(StandardScaler(), SoftRankMLPClassifier((32, 32), **QUICK))
    pipeline.fit(X, y)
    small = compress_network(pipeline, X, y, random_state=0)
    assert small.score(X_new, y_new) > pipeline.score(X_new, y_new) - 0.05
    before, after = small[-1].compression_report_["n_parameters"]
    assert after < before
    assert type(pipeline[-1].module_) is MLP
    assert small[0] is not pipeline[0]


def test_transform_keeps_no_more_columns_than_there_are(digits):
    X, _, y, _ = digits
    clf = SoftRankMLPClassifier((64, 64), n_components=60, **QUICK).fit(X, y)
    small = compress_network(clf, X, y, tol=0.05, random_state=0)
    width = small.module_.embedding_width
    assert width < 60
    assert small.transform(X).shape == (len(X), width)


@pytest.mark.parametrize("method", ["energy", "vim"])
def test_a_detector_takes_it(method, small, digits):
    X, X_new, y, _ = digits
    detector = OODDetector(small, method=method).fit(X, y)
    noise = np.random.default_rng(0).uniform(-3, 3, X_new.shape)
    rows = detector.score_samples(X_new), detector.score_samples(noise)
    assert np.isfinite(np.concatenate(rows)).all()


def test_its_layers_can_be_looked_at(small, digits):
    X, _, _, _ = digits
    shape = small.embed(X[:5], layer="body.0").shape
    assert shape == (5, small.module_.original_params["hidden_layer_sizes"][0])


def test_the_report_counts(mlp, small):
    report = small.compression_report_
    whole = products([(64, 64)] * 3 + [(64, 10)])
    assert report["n_multiply_adds"][0] == whole
    # Two vectors for each normalisation, the input's scale and the head's bias.
    assert report["n_parameters"][0] == whole + 2 * 3 * 64 + 64 + 10
    own = sum(p.numel() for p in small.module_.parameters())
    assert report["n_parameters"][1] == own
    assert report["latency"] is None


def test_convolutions_count_at_each_place(cnn, images):
    X, _, y, _ = images
    report = compress_network(cnn, X, y, tol=0.0).compression_report_
    # 2-wide patches of 1 channel into 8 filters at 7 x 7, then 3-wide convolutions.
    stages = 9 * (49 * (8 * 16) + 9 * 16 * 16 + 9 * (16 * 32) + 32 * 32)
    assert report["n_multiply_adds"][0] == stages + 32 * 10


def test_latency_is_measured_when_asked_for(mlp, digits):
    X, _, y, _ = digits
    report = compress_network(
        mlp, X[:200], y[:200], measure_latency=True
    ).compression_report_
    assert len(report["latency"]) == 2
    assert min(report["latency"]) > 0


# -- Bad input -----------------------------------------------------------------------


@pytest.fixture
def no_work(monkeypatch):
    """Fail as soon as anything is computed of a network's layers."""

    def fail(*args):
        raise AssertionError("work was done")

    monkeypatch.setattr("sksoftrank.inspection._compress._split", fail)


@pytest.mark.usefixtures("no_work")
def test_bad_input_is_refused_before_any_work(mlp, small, digits):
    X, _, y, _ = digits
    with pytest.raises(NotFittedError):
        compress_network(clone(mlp), X, y)
    with pytest.raises(ValueError, match=r"estimator must be one of .*StandardScaler"):
        compress_network(StandardScaler(), X, y)
    other = SoftRankClassifier(nn.Linear)
    with pytest.raises(ValueError, match=r"estimator must be one of .*SoftRankClassif"):
        compress_network(make_pipeline(StandardScaler(), other), X, y)
    with pytest.raises(ValueError, match=r"made smaller\. Pass the original"):
        compress_network(small, X, y)
    for tol in (-0.1, 1.0, "small"):
        with pytest.raises(ValueError, match="'tol' parameter of compress_network"):
            compress_network(mlp, X, y, tol=tol)
    with pytest.raises(ValueError, match="'distill_epochs' parameter"):
        compress_network(mlp, X, y, distill_epochs=-1)
    with pytest.raises(ValueError, match=r"be of all classes .* none of \[9\]"):
        compress_network(mlp, X[y != 9], y[y != 9])
    with pytest.raises(ValueError, match=r"be predicted as all classes .*\[1, 2, 3"):
        compress_network(mlp, X[y == 0])
    with pytest.raises(ValueError, match=r"none of \[9\]"):
        compress_network(mlp, X, y, sample_weight=(y != 9).astype(float))
    with pytest.raises(ValueError, match="a label for each of the"):
        compress_network(mlp, X, y[:-1])
    with pytest.raises(ValueError, match=r"must hold only the classes .*\[10\]"):
        compress_network(mlp, X, np.where(y == 9, 10, y))
    with pytest.raises(ValueError, match="NaN"):
        compress_network(mlp, np.full_like(X, np.nan), y)
    with pytest.raises(ValueError, match="features"):
        compress_network(mlp, X[:, 1:], y)


@pytest.mark.parametrize("name", ["constant", "dead", "narrow"])
def test_degenerate_networks_are_made_smaller_too(name, blobs):
    X, y = blobs
    width = 1 if name == "narrow" else 8
    clf = SoftRankMLPClassifier((width, width), normalization=None, **QUICK).fit(X, y)
    with torch.no_grad():
        if name == "dead":  # No unit ever is above zero.
            for m in clf.module_.body:
                if isinstance(m, nn.Linear):
                    m.bias.fill_(-1e3)
        elif name == "constant":
            clf.module_.output.weight.zero_()
    small = compress_network(clf, X, y, random_state=0)
    assert np.isfinite(small.predict_proba(X)).all()
    np.testing.assert_array_equal(small.predict(X), clf.predict(X))
