"""The CNN, the transformer and any torch module as scikit-learn estimators."""

import pickle
import warnings
from types import SimpleNamespace

import numpy as np
import pandas as pd
import polars as pl
import pytest
import torch
from _plain import PLAIN
from hypothesis import given, settings
from hypothesis import strategies as st
from joblib import Parallel, delayed
from scipy import sparse
from sklearn import config_context
from sklearn.base import clone
from sklearn.calibration import CalibratedClassifierCV
from sklearn.compose import make_column_transformer
from sklearn.exceptions import NotFittedError
from sklearn.frozen import FrozenEstimator
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler
from torch import nn

from sksoftrank import (
    OODDetector,
    SoftRankClassifier,
    SoftRankCNNClassifier,
    SoftRankEnsembleClassifier,
    SoftRankMLPClassifier,
    SoftRankTransformerClassifier,
    StackedGridSearchCV,
)
from sksoftrank.estimators._categories import OneHotCategories
from sksoftrank.modules import MLP
from sksoftrank.rank import effective_rank
from sksoftrank.training._grouping import stack_size

FAST = {"max_epochs": 3, "batch_size": 32, "learning_rate": 0.01, "random_state": 0}


class Network(nn.Module):
    """A small network like a ResNet, of torch's own layers."""

    def __init__(self, input_shape, num_classes, width=6):
        super().__init__()
        self.conv = nn.Conv2d(input_shape[0], width, 3, padding=1)
        self.bn = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.dropout = nn.Dropout(0.3)
        self.fc = nn.Linear(width, num_classes)

    def forward(self, x):
        x = self.relu(self.bn(self.conv(x)))
        return self.fc(self.dropout(x.mean(dim=(2, 3))))


class Dense(nn.Module):
    def __init__(self, n_features, n_classes, dropout=0.5):
        super().__init__()
        self.hidden = nn.Linear(n_features, 8)
        self.dropout = nn.Dropout(dropout)
        self.fc = nn.Linear(8, n_classes)

    def forward(self, x):
        return self.fc(self.dropout(torch.relu(self.hidden(x))))


def cnn(**params):
    return SoftRankCNNClassifier(**{"channels": (4, 8), **FAST, **params})


def transformer(**params):
    return SoftRankTransformerClassifier(
        **{"d_model": 8, "n_heads": 2, "depth": 1, **FAST, **params}
    )


def module(network=Network, params=None, **more):
    return SoftRankClassifier(network, params, **{**FAST, **more})


ESTIMATORS = {"cnn": cnn, "transformer": transformer, "module": module}
each = pytest.mark.parametrize("make", ESTIMATORS.values(), ids=ESTIMATORS)


@pytest.fixture
def images():
    """Return images (n, 2, 8, 8) whose class is the quadrant that is bright."""
    rng = np.random.default_rng(0)
    y = np.tile([0, 1, 2], 30)
    X = rng.standard_normal((90, 2, 8, 8)).astype(np.float32)
    for i, label in enumerate(y):
        X[i, label % 2, :, 4 * (label // 2) :] += 1.5
    return X, y


@pytest.fixture
def table():
    """Return a frame of numbers, text, flags, and the classes."""
    rng = np.random.default_rng(0)
    y = np.tile([0, 1, 2], 40)
    frame = pd.DataFrame(
        {
            "number": rng.standard_normal(120),
            "text": np.array(list("abcd"))[(y + rng.integers(0, 2, 120)) % 4],
            "flag": (y == 1) ^ (rng.random(120) < 0.1),
            "other": rng.standard_normal(120),
        }
    )
    return frame, y


def weights(clf):
    return torch.cat([p.detach().flatten() for p in clf.module_.parameters()]).numpy()


def fitted_state(clf):
    """Return all that a fit leaves, to be compared."""
    return {name: id(value) for name, value in vars(clf).items()}


# -- What all three promise ------------------------------------------------------------


@each
def test_learns(make, images):
    X, y = images
    assert make(max_epochs=25).fit(X, y).score(X, y) > 0.9


@each
@pytest.mark.parametrize("temperature", [0.5, 8.0])
@pytest.mark.parametrize("n_classes", [2, 3])
def test_outputs_are_what_the_head_says(make, images, temperature, n_classes):
    X, y = images
    X, y = X[y < n_classes].astype(np.float64), y[y < n_classes]
    clf = make(temperature=temperature).fit(X, y)
    head = clf._head()
    with torch.no_grad():
        logits = head(torch.tensor(clf.embed(X))).numpy()
    scores = logits[:, 1] - logits[:, 0] if n_classes == 2 else logits
    assert clf.temperature_ == temperature
    np.testing.assert_allclose(
        clf.decision_function(X) * temperature, scores, rtol=1e-8, atol=1e-8
    )
    p = np.exp(logits / temperature)
    np.testing.assert_allclose(
        clf.predict_proba(X), p / p.sum(1, keepdims=True), rtol=1e-8
    )
    assert (clf.predict(X) == logits.argmax(1)).all()
    projected = (clf.embed(X) - clf.compressor_.mean_) @ clf.compressor_.components_.T
    np.testing.assert_allclose(clf.transform(X), projected, atol=1e-5)
    assert 1 <= clf.rank_ <= clf.module_.embedding_width


@each
def test_flattened_rows_and_images_are_one(make, images):
    X, y = images
    rows = X.reshape(len(X), -1)
    clf = make().fit(X, y)
    assert clf.input_shape_ == (2, 8, 8)
    assert clf.n_features_in_ == 128
    assert (clf.predict_proba(X) == clf.predict_proba(rows)).all()
    assert (clf.predict_proba(X[:1]).shape) == (1, 3)
    # Neither strides nor the container matter.
    last = np.ascontiguousarray(X.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)
    assert (clf.predict_proba(last) == clf.predict_proba(X)).all()
    np.testing.assert_allclose(
        clf.predict_proba(list(X)), clf.predict_proba(X), rtol=1e-5
    )
    if make is not module:
        other = make(input_shape=(2, 8, 8)).fit(rows, y)
        assert (weights(other) == weights(clf)).all()
        other = make(input_shape=np.array([2, 8, 8])).fit(rows, y)
        assert (weights(other) == weights(clf)).all()


@each
def test_bytes_are_pixels(make, images):
    X, y = images
    pixels = np.clip(40 * X + 100, 0, 255).astype(np.uint8)
    clf = make().fit(pixels, y)
    numbers = make().fit(pixels.astype(np.float32), y)
    assert (weights(clf) == weights(numbers)).all()
    p = clf.predict_proba(pixels)
    assert p.dtype == np.float32
    assert (p == numbers.predict_proba(pixels.astype(np.float32))).all()


@each
def test_same_seed_same_result_and_no_global_generator(make, images):
    X, y = images
    extra = {"augmentation": ["flip", "shift", "cutout"], "dropout": 0.2}
    if make is module:
        extra = {}  # It has a dropout of torch's.
    torch_state, numpy_state = torch.get_rng_state(), np.random.get_state()  # noqa: NPY002
    first = make(**extra).fit(X, y)
    torch.rand(3)
    second = make(**extra).fit(X, y)
    partial = make(**extra).partial_fit(X, y, classes=[0, 1, 2]).partial_fit(X, y)
    assert (weights(first) == weights(second)).all()
    other = make(**extra, random_state=1).fit(X, y)
    assert (weights(first) != weights(other)).any()
    p = partial.predict_proba(X)
    assert (p == partial.predict_proba(X)).all()  # Nothing is drawn in predict.
    moved = torch.rand(3)
    torch.set_rng_state(torch_state)
    torch.rand(3)
    assert torch.equal(torch.rand(3), moved)
    again = np.random.get_state()  # noqa: NPY002
    assert (again[1] == numpy_state[1]).all()
    assert again[2] == numpy_state[2]


@each
def test_pickle_and_clone(make, images):
    X, y = images
    clf = make(temperature=3.0).fit(X, y)
    again = pickle.loads(pickle.dumps(clf))
    for method in ("predict_proba", "transform", "embed", "decision_function"):
        assert (getattr(again, method)(X) == getattr(clf, method)(X)).all()
    assert again.partial_fit(X, y).n_iter_ == 4
    fresh = clone(clf)
    with pytest.raises(NotFittedError):
        fresh.predict(X)
    assert (weights(fresh.fit(X, y)) == weights(clf)).all()


@each
def test_embed_from_any_layer_by_name(make, images):
    X, y = images
    clf = make().fit(X, y)
    x = torch.tensor(X)
    for name, layer in clf.module_.network.named_modules():
        if not name or isinstance(layer, nn.ModuleList):
            continue
        seen = []
        handle = layer.register_forward_hook(
            lambda _, inputs, output, seen=seen: seen.append(output.clone())
        )
        with torch.no_grad():
            clf.module_(x)
        handle.remove()
        found = clf.embed(X, layer=name)
        np.testing.assert_allclose(found, seen[-1].numpy(), rtol=1e-4, atol=1e-5)
        assert clf.embed(X.astype(np.float64), layer=name).dtype == np.float64
    with pytest.raises(ValueError, match=r"layer must be .*got 'blocks\.99'"):
        clf.embed(X, layer="blocks.99")


# One is too few for the classes, which a warning says.
@pytest.mark.filterwarnings("ignore:n_components=:UserWarning")
@each
def test_components_within_the_width(make, images):
    X, y = images
    clf = make(n_components=None).fit(X, y)
    width = clf.module_.embedding_width
    assert clf.transform(X).shape == (90, width)
    assert make(n_components=2).fit(X, y).transform(X).shape == (90, 2)
    before = fitted_state(clf)
    with pytest.raises(ValueError, match=f"n_components must be at most {width}"):
        clf.set_params(n_components=width + 1).fit(X, y)
    assert {**before, "n_components": 0} == {**fitted_state(clf), "n_components": 0}
    assert clf.compress(X, n_components=1).transform(X).shape == (90, 1)


@each
def test_calibrated_by_temperature(make, images):
    X, y = images
    clf = make().fit(X, y)
    calibrated = CalibratedClassifierCV(FrozenEstimator(clf), method="temperature")
    calibrated.fit(X.reshape(len(X), -1), y)
    p = calibrated.predict_proba(X.reshape(len(X), -1))
    assert (p.argmax(1) == clf.predict(X)).all()
    beta = calibrated.calibrated_classifiers_[0].calibrators[0].beta_
    expected = torch.softmax(torch.tensor(beta * clf.decision_function(X)), 1)
    np.testing.assert_allclose(p, expected, atol=1e-4)
    binary = y < 2
    rows = X.reshape(len(X), -1)[binary]
    shaped = make().set_params(**({} if make is module else {"input_shape": (2, 8, 8)}))
    if make is module:
        shaped = module(Dense)
    calibrated = CalibratedClassifierCV(shaped, method="temperature", cv=2)
    assert calibrated.fit(rows, y[binary]).predict_proba(rows).shape == (60, 2)


@each
def test_searches(make, images):
    X, y = images
    grid = {"temperature": [1.0, 5.0]}
    plain = GridSearchCV(make(), grid, cv=2, error_score="raise").fit(X, y)
    stacked = StackedGridSearchCV(make(), grid, cv=2, error_score="raise").fit(X, y)
    assert plain.best_estimator_.input_shape_ == (2, 8, 8)
    np.testing.assert_array_equal(
        plain.cv_results_["mean_test_score"], stacked.cv_results_["mean_test_score"]
    )
    assert "is not a plain MLP" in stacked.fallback_reason_
    assert "4 of 4 fits" in stacked.fallback_reason_


@each
def test_pipeline_after_a_scaler(make, images):
    X, y = images
    rows = X.reshape(len(X), -1)
    params = {} if make is module else {"input_shape": (2, 8, 8)}
    clf = module(Dense) if make is module else make(**params)
    pipe = make_pipeline(StandardScaler(), clf).set_output(transform="pandas")
    columns = [f"pixel{i}" for i in range(128)]
    out = pipe.fit_transform(pd.DataFrame(rows, columns=columns), y)
    assert list(out) == list(clf.get_feature_names_out())
    assert list(clf.feature_names_in_) == columns
    alone = clone(clf).fit(StandardScaler().fit_transform(rows), y)
    np.testing.assert_allclose(
        pipe.predict_proba(pd.DataFrame(rows, columns=columns)),
        alone.predict_proba(StandardScaler().fit_transform(rows)),
        rtol=1e-4, atol=1e-6,
    )  # fmt: skip


@each
def test_weights_stopping_and_warm_start(make, images):
    X, y = images
    # Two classes weigh nothing beside the third.
    weight = np.where(y == 2, 1.0, 1e-6)
    clf = make(max_epochs=15).fit(X, y, sample_weight=weight)
    assert (clf.predict(X) == 2).mean() > 0.6
    # A weight is as good as that many rows, and zero as good as none.
    times = np.arange(90) % 4
    weighted = make(batch_size=200).fit(X, y, sample_weight=times)
    repeated = make(batch_size=200).fit(X.repeat(times, axis=0), y.repeat(times))
    np.testing.assert_allclose(weights(weighted), weights(repeated), atol=1e-6)

    clf = make(early_stopping=True, n_iter_no_change=2, max_epochs=40, tol=0.5).fit(
        X, y
    )
    assert clf.n_iter_ < 40
    assert "valid_acc" in clf.history_[0]

    first = make().fit(X, y)
    start = first.history_[-1]["train_loss"]
    second = clone(first).set_params(warm_start=True).fit(X, y)
    second.fit(X, y)
    assert second.history_[0]["train_loss"] < first.history_[0]["train_loss"]
    assert second.history_[0]["train_loss"] < start + 0.2


@each
def test_partial_fit_goes_on_and_keeps_the_shape(make, images):
    X, y = images
    clf = make().partial_fit(X, y, classes=[0, 1, 2])
    for _ in range(20):
        clf.partial_fit(X, y)
    assert clf.n_iter_ == 21
    assert clf.history_[-1]["train_loss"] < clf.history_[0]["train_loss"]
    with pytest.raises(ValueError, match=r"X must hold rows of shape \(2, 8, 8\), got"):
        clf.partial_fit(X[:, :1], y)
    assert clf.n_iter_ == 21


@each
def test_a_dataset_in_passes(make, images):
    X, y = images
    data = torch.utils.data.TensorDataset(torch.tensor(X), torch.tensor(y))
    clf = make().fit(data)
    assert clf.input_shape_ == (2, 8, 8)
    assert clf.predict(X).shape == (90,)
    np.testing.assert_allclose(clf.predict_proba(data), clf.predict_proba(X), rtol=1e-5)


@each
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda X: X[:, :1], r"X must hold rows of shape \(2, 8, 8\), got \(1, 8, 8\)"),
        (lambda X: X[..., :4], r"X must hold rows of shape \(2, 8, 8\)"),
        (lambda X: X.reshape(90, -1)[:, 1:], "127 features, but SoftRank.* 128"),
        (lambda X: X.transpose(0, 2, 3, 1), r"got \(8, 8, 2\)"),
    ],
)
def test_rows_of_another_shape_than_in_fit(make, images, change, message):
    X, y = images
    clf = make(max_epochs=1).fit(X, y)
    for method in ("predict", "embed", "transform"):
        with pytest.raises(ValueError, match=message):
            getattr(clf, method)(change(X))


def test_candidates_that_share_their_rows_are_checked_each(images):
    X, y = images
    grid = {"patch_size": [4, 3]}
    search = StackedGridSearchCV(transformer(), grid, cv=2, error_score="raise")
    with pytest.raises(ValueError, match=r"patch_size must divide both sides .*got 3"):
        search.fit(X, y)


BAD = {
    "channels": (cnn, {"channels": ()}, "channels must be one or more positive"),
    "no channel": (cnn, {"channels": (4, 0)}, r"channels .*got \(4, 0\)"),
    "half a channel": (cnn, {"channels": (4.5,)}, "channels must be .* integers"),
    "augmentation": (
        cnn, {"augmentation": ("rotate",)}, r"augmentation must be .*'flip'.*'rotate'",
    ),
    "one string": (cnn, {"augmentation": "flip"}, "'augmentation' parameter"),
    "normalization": (cnn, {"normalization": "layer"}, "'normalization' parameter"),
    "wrong channels": (cnn, {"input_shape": (3, 8, 8)}, r"input_shape=\(3, 8, 8\), g"),
    "channels last": (cnn, {"input_shape": (8, 8, 2)}, "channels come first"),
    "a side of zero": (cnn, {"input_shape": (2, 0, 8)}, "input_shape must be"),
    "four sides": (cnn, {"input_shape": (2, 8, 4, 2)}, "input_shape must be"),
    "batch of one": (cnn, {"batch_size": 1}, "batch_size=1"),
    "cuda": (cnn, {"device": "cuda:7"}, "device must be one that this machine offers"),
    "small image": (
        transformer, {"patch_size": 16}, r"patch_size must divide.*\[1, 2, 4, 8\]",
    ),
    "patches": (transformer, {"patch_size": 3}, "patch_size must divide both sides"),
    "heads": (
        transformer, {"d_model": 10, "n_heads": 4},
        "d_model must be a multiple of n_heads=4, got 10",
    ),
    "images of categories": (
        transformer, {"categorical_features": [0]}, "categorical_features must be",
    ),
    "attention": (transformer, {"attention_temperature": 0.0}, "'attention_temp"),
    "signal": (transformer, {"input_shape": (2, 64)}, "input_shape must be"),
    "no module": (module, {"module": 3}, "'module' parameter"),
    "params of an instance": (
        module, {"module": Network((2, 8, 8), 3), "module_params": {"width": 3}},
        "module_params must be empty",
    ),
    "other params": (module, {"module_params": {"depth": 3}}, "module_params must be"),
    "wrong width": (
        module, {"module_params": {"num_classes": 5}}, r"logits of shape \(n, 3\)",
    ),
    "wrong input": (
        module, {"module_params": {"input_shape": (3, 8, 8)}}, r"rows of shape \(2, 8",
    ),
    "no head": (
        module,
        {"module": lambda input_shape: nn.Sequential(nn.Conv2d(2, 3, 8), nn.Flatten())},
        "module must end in a Linear layer",
    ),
    "softmax": (
        module,
        {"module": lambda n_features: nn.Sequential(
            nn.Flatten(), nn.Linear(n_features, 3), nn.Softmax(1))},
        "Return logits without a softmax",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("make", "params", "message"), BAD.values(), ids=BAD)
def test_a_clear_error_and_nothing_half_fitted(make, params, message, images):
    X, y = images
    clf = make(max_epochs=1)
    kept = set(vars(clf))
    unfitted = clone(clf).set_params(**params)
    with pytest.raises(ValueError, match=message):
        unfitted.fit(X, y)
    assert set(vars(unfitted)) == kept
    with pytest.raises(NotFittedError):
        unfitted.predict(X)
    clf.fit(X, y)
    before, p = fitted_state(clf), clf.predict_proba(X)
    own = {name: getattr(clf, name) for name in params}
    with pytest.raises(ValueError, match=message):
        clf.set_params(**params).fit(X, y)
    clf.set_params(**own)
    assert fitted_state(clf) == before
    assert (clf.predict_proba(X) == p).all()


# -- The CNN ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shape", "expected"),
    [((64,), (1, 64)), ((2, 9), (2, 9)), ((1, 1), (1, 1)), ((1, 8, 8), (1, 8, 8))],
)
@pytest.mark.parametrize("normalization", ["batch", "group", None])
def test_shape_of_rows_is_never_a_guessed_square(shape, expected, normalization):
    rng = np.random.default_rng(0)
    X, y = rng.standard_normal((20, *shape)), np.tile([0, 1], 10)
    clf = cnn(normalization=normalization).fit(X, y)
    assert clf.input_shape_ == expected
    conv = nn.Conv2d if len(expected) == 3 else nn.Conv1d
    assert any(isinstance(layer, conv) for layer in clf.module_.modules())
    assert clf.predict_proba(X[:1]).shape == (1, 2)


def test_columns_that_do_not_fill_the_shape():
    with pytest.raises(
        ValueError, match=r"X must have 64 columns for input_shape=\(1, 8, 8\), got 63"
    ):
        cnn(input_shape=(1, 8, 8)).fit(np.zeros((4, 63)), [0, 1, 0, 1])


@pytest.mark.parametrize("make", [cnn, transformer], ids=["cnn", "transformer"])
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_channels_that_come_last_are_warned_of(make, channels):
    X = np.random.default_rng(0).standard_normal((12, 8, 8, channels))
    y = np.tile([0, 1], 6)
    params = {"patch_size": 1} if make is transformer else {}
    clf = make(max_epochs=1, **params)
    message = rf"shape \(8, 8, {channels}\), .* np\.moveaxis\(X, -1, 1\)"
    with pytest.warns(UserWarning, match=message):
        clf.fit(X, y)
    clf.predict(X)  # As fit saw them.
    data = torch.utils.data.TensorDataset(torch.tensor(X), torch.tensor(y))
    with pytest.warns(UserWarning, match=message):
        clone(clf).fit(data)
    clone(clf).set_params(input_shape=(8, 8, channels)).fit(X, y)  # So it be.
    clone(clf).fit(np.moveaxis(X, -1, 1), y)
    clone(clf).fit(X.reshape(12, -1), y)


@pytest.mark.parametrize("shape", [(16, 4, 4), (3, 8, 4), (3, 8, 3), (1, 9, 1), (8, 3)])
def test_channels_that_come_first_are_not_warned_of(shape):
    X = np.random.default_rng(0).standard_normal((12, *shape))
    assert cnn(max_epochs=1).fit(X, np.tile([0, 1], 6)).input_shape_ == shape


def test_augmentation_acts_in_training_alone(images):
    X, y = images
    plain = cnn().fit(X, y)
    changed = cnn(augmentation=["shift"]).fit(X, y)
    assert (weights(plain) != weights(changed)).any()
    assert (changed.predict_proba(X) == changed.predict_proba(X)).all()
    # Same weights, same predictions: nothing is left of it outside training.
    changed.module_.load_state_dict(plain.module_.state_dict())
    assert (changed.predict_proba(X) == plain.predict_proba(X)).all()


def test_high_temperature_gives_low_rank(digits):
    X, _, y, _ = digits
    X = X[:600].reshape(-1, 1, 8, 8)
    y = y[:600]
    low, high = (
        cnn(temperature=t, learning_rate="auto", max_epochs=15, channels=(16, 32)).fit(
            X, y
        )
        for t in (0.3, 100.0)
    )
    assert min(low.score(X, y), high.score(X, y)) > 0.9
    ranks = [effective_rank(clf.embed(X), center=True) for clf in (low, high)]
    assert ranks[1] < 0.8 * ranks[0]


def test_an_ensemble_of_cnns_keeps_the_shape(images):
    X, y = images
    rows = X.reshape(len(X), -1)
    ensemble = SoftRankEnsembleClassifier(cnn(input_shape=(2, 8, 8)), 2, random_state=0)
    ensemble.fit(rows, y)
    assert [m.input_shape_ for m in ensemble.estimators_] == [(2, 8, 8)] * 2
    assert ensemble.predict_proba(rows).shape == (90, 3)


# -- Tables with columns of categories -------------------------------------------------


def perceptron(**params):
    small = {**PLAIN, "hidden_layer_sizes": (8,)}
    return SoftRankMLPClassifier(**{**small, **FAST, **params})


tabular = pytest.mark.parametrize(
    "make", [perceptron, transformer], ids=["mlp", "transformer"]
)


def rare(frame):
    """Return the frame with two categories that a row each has."""
    frame = frame.astype({"text": object})
    frame.loc[[3, 8], "text"] = ["x", "y"]
    return frame


FRAMES = {
    "text": lambda frame: frame,
    "category": lambda frame: frame.astype({"text": "category"}),
    "string": lambda frame: frame.astype({"text": "string", "flag": "boolean"}),
    "object": lambda frame: frame.astype({"text": object, "flag": object}),
    "polars": lambda frame: pl.DataFrame(frame.to_dict("list")),
    "polars categorical": lambda frame: pl.DataFrame(frame.to_dict("list")).cast(
        {"text": pl.Categorical}
    ),
    "polars enum": lambda frame: pl.DataFrame(frame.to_dict("list")).cast(
        {"text": pl.Enum(list("abcd"))}
    ),
}  # fmt: skip


@tabular
@pytest.mark.parametrize("convert", FRAMES.values(), ids=FRAMES)
def test_categories_are_found_from_dtypes(make, table, convert):
    frame, y = table
    X = convert(frame)
    clf = make().fit(X, y)
    assert clf.is_categorical_.tolist() == [False, True, True, False]
    assert clf.n_features_in_ == 4
    assert list(clf.feature_names_in_) == ["number", "text", "flag", "other"]
    # All containers say the same.
    expected = make().fit(frame, y)
    assert (weights(clf) == weights(expected)).all()
    assert (clf.predict_proba(X) == expected.predict_proba(frame)).all()


@tabular
def test_numbers_and_dates_in_columns_of_objects_are_no_categories(make, table):
    frame, y = table
    clf = make().fit(frame.astype({"number": object}), y)
    assert clf.is_categorical_.tolist() == [False, True, True, False]
    assert (weights(clf) == weights(make().fit(frame, y))).all()
    dates = pd.Series(pd.date_range("2024", periods=len(frame))).dt.date
    with pytest.raises(ValueError, match="must hold numbers in the columns that are"):
        make().fit(frame.assign(number=dates), y)


@tabular
@pytest.mark.parametrize("output", ["pandas", "polars"])
def test_categories_under_an_output_set_for_all_transformers(make, output):
    rng = np.random.default_rng(0)
    y = np.tile([0, 1, 2], 400)
    # So many that rows are kept sparse, where there is a column for each.
    frame = pd.DataFrame({"kind": [f"k{i % 600}" for i in range(1200)]})
    frame["x"] = rng.standard_normal(1200)
    expected = make(max_epochs=1).fit(frame, y)
    with config_context(transform_output=output):
        clf = make(max_epochs=1).fit(frame, y)
        np.testing.assert_array_equal(
            clf.predict_proba(frame), expected.predict_proba(frame)
        )


@tabular
def test_times_and_numbers_that_are_none_are_refused_in_polars_too(make, table):
    frame, y = table
    X = pl.DataFrame(frame.to_dict("list"))
    days = pl.date_range(pl.date(2024, 1, 1), pl.date(2024, 4, 29), eager=True)
    for column in (days, days.cast(pl.Datetime), days - days[0]):
        with pytest.raises(ValueError, match=r"times and dates in \['number'\]"):
            make().fit(X.with_columns(number=column), y)
    with pytest.raises(ValueError, match="complex"):
        make().fit(frame.assign(number=1j), y)


def test_a_token_for_each_column_a_number_for_each_category(table):
    frame, y = table
    tokens = transformer().fit(frame, y).module_.tokens
    assert (tokens.n_tokens, tokens.n_categorical) == (4, 2)
    # Four letters, two flags and two numbers.
    assert perceptron().fit(frame, y).module_.body[0].in_features == 8


@tabular
def test_categories_are_learned(make, table):
    frame, y = table
    clf = make(max_epochs=40).fit(frame, y)
    assert clf.score(frame, y) > 0.75
    assert pickle.loads(pickle.dumps(clf)).score(frame, y) == clf.score(frame, y)


@pytest.mark.parametrize(
    "features",
    [["text", "flag"], [1, 2], np.array([False, True, True, False])],
    ids=str,
)
@tabular
def test_categories_named_by_the_user(make, table, features):
    frame, y = table
    clf = make(categorical_features=features).fit(frame, y)
    assert (weights(clf) == weights(make().fit(frame, y))).all()


@tabular
def test_categories_of_an_array_are_codes_in_any_order(make, table):
    frame, y = table
    codes = frame.assign(text=frame["text"].map(ord), flag=frame["flag"] * 1.0)
    X = codes.to_numpy(dtype=float)
    a = make(categorical_features=[1, 2]).fit(X, y)
    b = make(categorical_features=[2, 1]).fit(X, y)
    expected = make().fit(frame, y)
    assert (weights(a) == weights(expected)).all()
    assert (a.predict_proba(X) == expected.predict_proba(frame)).all()
    assert (weights(a) == weights(b)).all()
    assert (a.predict(X.tolist()) == a.predict(X)).all()
    data = torch.utils.data.TensorDataset(torch.tensor(X), torch.tensor(y))
    np.testing.assert_allclose(a.predict_proba(data), a.predict_proba(X), rtol=1e-6)
    assert make().fit(X, y).is_categorical_ is None
    assert make(categorical_features=[]).fit(X, y).is_categorical_ is None
    everything = make(categorical_features=[0, 1, 2, 3]).fit(X.round(), y)
    assert everything.predict(X.round()).shape == y.shape


@pytest.mark.parametrize("missing", [None, np.nan, pd.NA, pd.NaT], ids=str)
@tabular
def test_a_missing_value_is_a_category(make, table, missing):
    frame, y = table
    gaps = frame.astype({"text": object})
    gaps.loc[gaps["text"] == "a", "text"] = missing
    clf = make().fit(gaps, y)
    # A category like any other: the same fit as with a name for it, up to the name.
    p = clf.predict_proba(gaps)
    assert np.isfinite(p).all()
    a = gaps["text"].isna().to_numpy()
    assert (p[a] != p[~a][: a.sum()]).any()
    assert (clf.predict_proba(gaps.assign(text=None)).shape) == (120, 3)
    # Every kind of missing value is the same.
    again = gaps.copy()
    again.loc[a, "text"] = None
    assert (clf.predict_proba(again) == p).all()


@tabular
def test_unseen_categories_are_refused_where_asked_for(make, table):
    frame, y = table
    clf = make(handle_unknown="error").fit(frame, y)
    p = clf.predict_proba(frame)
    for text in ("z", None):
        with pytest.raises(
            ValueError,
            match=r"categories seen in fit, got .* in column 'text', not among \['a'",
        ):
            clf.predict(frame.assign(text=text))
    with pytest.raises(ValueError, match="categories seen in fit"):
        clf.partial_fit(frame.assign(text="z"), y)
    assert (clf.predict_proba(frame) == p).all()
    X = np.column_stack([np.tile([1.0, 2.0], 60), frame["number"]])
    clf = make(categorical_features=[0], handle_unknown="error").fit(X, y)
    with pytest.raises(ValueError, match=r"got 3\.0 in column 0"):
        clf.predict(X + np.array([1, 0]))
    # Nothing is merged: what one row has is a category like any other.
    clf = make(handle_unknown="error").fit(rare(frame), y)
    p = [clf.predict_proba(frame.assign(text=text)) for text in "xy"]
    assert (p[0] != p[1]).any()


@tabular
def test_what_was_never_seen_is_taken_for_what_was_seen_once(make, table):
    frame, y = table
    clf = make().fit(rare(frame), y)
    expected = clf.predict_proba(frame.assign(text="x"))
    for text in ("y", "z", 3, None, np.nan, pd.NA):
        assert (clf.predict_proba(frame.assign(text=text)) == expected).all()
    for text in "abcd":
        assert (clf.predict_proba(frame.assign(text=text)) != expected).any()


def test_without_a_rare_category_the_unseen_one_has_the_vector_zero(table):
    frame, y = table
    x = torch.zeros(1, 4)  # The codes of text and flag, then the numbers.
    tokens = transformer().fit(frame, y).module_.tokens.requires_grad_(False)
    assert torch.equal(tokens(x)[0], tokens.columns)
    tokens = transformer().fit(rare(frame), y).module_.tokens.requires_grad_(False)
    assert (tokens(x)[0, 0] != tokens.columns[0]).all()  # It is learned.
    clf = perceptron(activation="identity").fit(frame, y)
    zero = clf.embed(frame.assign(text="z"))
    columns = [(clf.embed(frame.assign(text=t)) - zero)[0] for t in "abcd"]
    first = clf.module_.body[0].weight.detach().numpy()
    np.testing.assert_allclose(columns, first[:, :4].T, atol=1e-6)


@tabular
def test_a_missing_value_that_one_row_has_is_no_rest(make, table):
    frame, y = table
    X = rare(frame)
    X.loc[17, "text"] = None
    clf = make().fit(X, y)
    p = [clf.predict_proba(frame.assign(text=text)) for text in (None, "x", "z")]
    assert (p[0] != p[1]).any()
    assert (p[1] == p[2]).all()


@tabular
def test_a_column_of_which_all_is_seen_once(make, table):
    frame, y = table
    X = frame.assign(name=[f"row {i}" for i in range(120)], gap=None)
    clf = make().fit(X, y)
    p = clf.predict_proba(X)
    assert np.isfinite(p).all()
    assert (clf.predict_proba(X.assign(name="new")) == p).all()


@tabular
def test_cross_validation_with_a_rare_category(make, table):
    frame, y = table
    scores = cross_val_score(make(), rare(frame), y, cv=5, error_score="raise")
    assert np.isfinite(scores).all()


@tabular
def test_later_chunks_bring_unseen_categories(make, table):
    frame, y = table
    for X in (frame, rare(frame)):
        clf = make().partial_fit(X, y, classes=[0, 1, 2])
        n_weights = len(weights(clf))
        clf.partial_fit(frame.assign(text="z"), y).partial_fit(X.assign(text=None), y)
        assert len(weights(clf)) == n_weights
        p = [clf.predict_proba(frame.assign(text=text)) for text in ("z", "w", None)]
        assert (p[0] == p[1]).all()
        assert (p[0] == p[2]).all()


@tabular
def test_a_warm_start_keeps_what_a_category_stands_for(make, table):
    frame, y = table
    clf = make(warm_start=True).fit(rare(frame), y)
    p = [clf.predict_proba(frame.assign(text=text)) for text in "abx"]
    # So small a step leaves the weights as they are, if they stand for the same.
    clf.set_params(learning_rate=1e-30)
    clf.fit(frame.assign(text=lambda X: X["text"].replace("a", "z")), y)
    for text, expected in zip("abx", p, strict=True):
        again = clf.predict_proba(frame.assign(text=text))
        np.testing.assert_allclose(again, expected, atol=1e-6)
    with pytest.raises(ValueError, match="warm_start=True needs the columns of categ"):
        clf.fit(frame.assign(text=1.0), y)
    assert clf.is_categorical_.tolist() == [False, True, True, False]


@settings(deadline=None)
@given(
    st.lists(st.tuples(*[st.sampled_from("abcde")] * 2), min_size=1, max_size=12),
    st.lists(st.tuples(*[st.sampled_from("abcdefg")] * 2), min_size=1, max_size=5),
)
def test_one_hot_columns_are_scikit_learns(seen, new):
    mask = np.array([True, True])
    ours = OneHotCategories(mask, "infrequent_if_exist").fit(seen)
    reference = OneHotEncoder(
        min_frequency=2, handle_unknown="infrequent_if_exist", sparse_output=False
    ).fit(seen)
    for rows in (seen, new):
        columns = ours.transform(rows)
        assert columns.shape[1] == ours.n_columns
        # In their own order: the rest comes first here, and last there.
        expected = sorted(map(tuple, reference.transform(seen + rows).T))
        assert sorted(map(tuple, ours.transform(seen + rows).T)) == expected


def test_a_perceptron_equals_one_after_an_encoder(table):
    frame, y = table
    encoder = make_column_transformer(
        (OneHotEncoder(sparse_output=False), ["text", "flag"]), remainder="passthrough"
    )
    X = encoder.fit_transform(frame)
    ours, theirs = perceptron().fit(frame, y), perceptron().fit(X, y)
    assert (weights(ours) == weights(theirs)).all()
    for method in ("predict_proba", "transform", "embed", "decision_function"):
        assert (getattr(ours, method)(frame) == getattr(theirs, method)(X)).all()
    scores = [
        OODDetector(clf, method="mahalanobis").fit(rows, y).score_samples(rows)
        for clf, rows in ((ours, frame), (theirs, X))
    ]
    assert (scores[0] == scores[1]).all()
    ours, theirs = ours.compress(frame[:60]), theirs.compress(X[:60])
    assert (ours.transform(frame) == theirs.transform(X)).all()


def test_many_categories_are_kept_sparse(table, monkeypatch):
    frame, y = table
    dense = perceptron().fit(frame, y)
    monkeypatch.setattr("sksoftrank.estimators._categories._DENSE_COLUMNS", 7)
    clf = perceptron().fit(frame, y)
    assert sparse.issparse(clf._validate_rows(frame))
    np.testing.assert_allclose(weights(clf), weights(dense), atol=1e-6)
    X = frame.assign(text=frame["text"].map(ord)).to_numpy(dtype=float)
    clf = perceptron(categorical_features=[1, 2]).fit(X, y)
    data = torch.utils.data.TensorDataset(torch.tensor(X), torch.tensor(y))
    np.testing.assert_allclose(clf.predict_proba(data), clf.predict_proba(X), rtol=1e-6)
    assert clf.partial_fit(data).n_iter_ == 4


def test_stacks_of_categories(table, monkeypatch):
    frame, y = table
    grid = {
        "temperature": [1.0, 5.0],
        "handle_unknown": ["infrequent_if_exist", "error"],
        "categorical_features": ["from_dtype", ["text", "flag", "number"]],
    }
    told = []
    monkeypatch.setattr(
        "sksoftrank.search._jobs.stack_size",
        lambda net, *rest: (
            told.append(net.module__n_features) or stack_size(net, *rest)
        ),
    )
    X, options = frame.round({"number": 0}), {"cv": 2, "error_score": -1.0}
    with warnings.catch_warnings():
        # A number that only one fold has is refused where that is asked for.
        warnings.simplefilter("ignore", UserWarning)
        plain = GridSearchCV(perceptron(), grid, **options).fit(X, y)
        stacked = StackedGridSearchCV(perceptron(), grid, **options).fit(X, y)
    assert stacked.fallback_reason_ is None
    np.testing.assert_array_equal(
        plain.cv_results_["mean_test_score"], stacked.cv_results_["mean_test_score"]
    )
    assert max(told) > 4
    p = stacked.predict_proba(frame)
    assert (p == clone(stacked.best_estimator_).fit(X, y).predict_proba(frame)).all()


@tabular
def test_columns_that_are_no_numbers(make, table):
    frame, y = table
    for change, message in (
        ({"number": np.nan}, r"no missing values .* got NaN in \['number'\]. Impute"),
        ({"other": np.inf}, "infinity"),
    ):
        X = frame.assign(**change)
        with pytest.raises(ValueError, match=message):
            make().fit(X, y)
        clf = make().fit(frame, y)
        with pytest.raises(ValueError, match=message):
            clf.predict(X)
        with pytest.raises(ValueError, match=message):
            clf.partial_fit(X, y)
    when = frame[["text"]].assign(when=pd.Timestamp("2020-01-01"))
    with pytest.raises(ValueError, match=r"X must hold numbers .*times and dates"):
        make().fit(when, y)


@tabular
def test_rows_of_a_dataset_have_the_columns_of_fit(make, table):
    frame, y = table
    X = frame[["number", "flag", "other"]].to_numpy(dtype=float)
    clf = make(categorical_features=[1]).fit(X, y)
    data = torch.utils.data.TensorDataset(torch.tensor(X[:, :2]))
    with pytest.raises(ValueError, match="rows of 3 numbers, got 2"):
        clf.predict(data)


@pytest.mark.parametrize(
    ("params", "change", "message"),
    [
        ({"categorical_features": ["cart"]}, {}, r"got \['cart'\]. Names need a frame"),
        ({"categorical_features": [9]}, {}, "mask of the 4 columns of X"),
        ({"categorical_features": "auto"}, {}, "'categorical_features' parameter"),
        ({"handle_unknown": "ignore"}, {}, "'handle_unknown' parameter"),
        ({}, {"number": np.nan}, "NaN"),
        ({}, {"when": pd.Timestamp("2020-01-01")}, "X must hold numbers in the colu"),
        ({}, {"text": ["a", 1, None] * 40}, "either text or numbers in a column"),
    ],
)  # fmt: skip
@tabular
def test_tables_that_cannot_be(make, table, params, change, message):
    frame, y = table
    clf = make(**params)
    with pytest.raises(ValueError, match=message):
        clf.fit(frame.assign(**change), y)
    assert not hasattr(clf, "n_features_in_")
    assert not hasattr(clf, "is_categorical_")


@tabular
def test_sparse_rows_have_no_categories(make):
    X, y = sparse.eye_array(6, format="csr"), [0, 1] * 3
    assert make().fit(X, y).predict(X).shape == (6,)
    with pytest.raises(ValueError, match="X must be dense where"):
        make(categorical_features=[0]).fit(X, y)


# -- The transformer -------------------------------------------------------------------


def test_a_table_is_not_augmented(table):
    with pytest.raises(ValueError, match="augmentation must be empty for a table"):
        transformer(augmentation=("flip",)).fit(*table)


def test_a_frame_of_pixels_has_no_categories(images):
    X, y = images
    frame = pd.DataFrame(X.reshape(len(X), -1) > 0, columns=map(str, range(128)))
    clf = transformer(input_shape=(2, 8, 8)).fit(frame, y)
    assert clf.is_categorical_ is None
    assert clf.input_shape_ == (2, 8, 8)


def test_learning_rate_warms_up(blobs):
    X, y = blobs
    clf = transformer(max_epochs=20, learning_rate=0.01).fit(X, y)
    rates = [epoch["lr"] for epoch in clf.history_]
    assert np.argmax(rates) in (1, 2)
    assert rates[0] < rates[1] <= 0.01
    assert rates[2:] == sorted(rates[2:], reverse=True)
    assert rates[-1] < 0.01 * max(rates) * 2


def test_tables_stay_tables_and_images_are_patches(images, blobs):
    assert transformer().fit(*blobs).module_.tokens.n_tokens == 6
    X, y = images
    assert transformer(patch_size=4).fit(X, y).module_.tokens.n_tokens == 4
    assert transformer().fit(X.reshape(90, -1)[:, :9], y).input_shape_ == (9,)
    with pytest.raises(ValueError, match=r"X must hold images .*or be a table"):
        transformer().fit(X[:, 0], y)


# -- Any module ------------------------------------------------------------------------


def test_equals_the_estimator_of_the_same_network(blobs):
    X, y = blobs
    ours = module(MLP, {"hidden_layer_sizes": (8,)}, temperature=3.0).fit(X, y)
    theirs = perceptron(temperature=3.0).fit(X, y)
    np.testing.assert_allclose(weights(ours), weights(theirs), rtol=0, atol=1e-6)
    np.testing.assert_allclose(ours.embed(X), theirs.embed(X), atol=1e-5)


def test_an_instance_is_a_start_and_stays_as_it_is(images):
    X, y = images
    net = Network((2, 8, 8), 3)
    with torch.no_grad():
        net.fc.bias.copy_(torch.tensor([0.0, 0.0, 50.0]))
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    clf = module(net, max_epochs=1, learning_rate=1e-12).fit(X, y)
    assert (clf.predict(X) == 2).all()  # The weights that it came with.
    clf.set_params(learning_rate=0.01, max_epochs=2).fit(X, y)
    for name, tensor in net.state_dict().items():
        assert torch.equal(tensor, before[name])
    assert clf.module_.network is not net
    assert clf.module is net
    assert not torch.equal(clf.module_.network.conv.weight, net.conv.weight)


def test_frozen_layers_stay_frozen(images):
    X, y = images
    net = Network((2, 8, 8), 3)
    net.conv.requires_grad_(False)
    clf = module(net, weight_decay=0.1).fit(X, y)
    assert torch.equal(clf.module_.network.conv.weight, net.conv.weight)
    assert not torch.equal(clf.module_.network.fc.weight, net.fc.weight)


class Transformers(nn.Module):
    """Like one of Hugging Face's: an object with logits comes back."""

    def __init__(self, num_classes):
        super().__init__()
        self.encoder = nn.Sequential(nn.Flatten(), nn.LazyLinear(7), nn.GELU())
        self.classifier = nn.LazyLinear(num_classes)

    def forward(self, pixel_values):
        pooled = self.encoder(pixel_values)
        return SimpleNamespace(logits=self.classifier(pooled), hidden_states=None)


class Timm(nn.Module):
    def __init__(self, num_classes=3):
        super().__init__()
        self.embed = nn.Conv2d(2, 5, 4, stride=4)
        self.norm = nn.LayerNorm(5)
        self.head_drop = nn.Dropout(0.2)
        self.head = nn.Linear(5, num_classes)

    def get_classifier(self):
        return self.head

    def forward_features(self, x):
        return self.norm(self.embed(x).flatten(2).transpose(1, 2))

    def forward_head(self, x, pre_logits=False):
        x = self.head_drop(x.mean(1))
        return x if pre_logits else self.head(x)

    def forward(self, x):
        return self.forward_head(self.forward_features(x))


@pytest.mark.parametrize("network", [Transformers, Timm, Timm(), Transformers(3)])
def test_networks_of_other_libraries(images, network):
    X, y = images
    clf = module(network, temperature=2.0).fit(X, y)
    net = clf.module_.network
    with torch.no_grad():
        x = torch.tensor(X)
        if isinstance(net, Timm):
            z = net.forward_head(net.forward_features(x), pre_logits=True)
            logits = net(x)
        else:
            z, logits = net.encoder(x), net(x).logits
    np.testing.assert_allclose(clf.embed(X), z, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(
        2 * clf.decision_function(X), logits, rtol=1e-4, atol=1e-5
    )
    again = pickle.loads(pickle.dumps(clf))
    assert (again.predict_proba(X) == clf.predict_proba(X)).all()
    assert (weights(clone(clf).fit(X, y)) == weights(clf)).all()


class Single(Dense):
    def forward(self, x):
        return super().forward(x.float())


def test_a_network_tied_to_single_precision_takes_double_rows(blobs):
    X, y = blobs
    clf = module(Single).fit(X, y)
    p = clf.predict_proba(X)
    assert p.dtype == np.float64
    np.testing.assert_allclose(p, clf.predict_proba(X.astype(np.float32)), rtol=1e-5)
    assert clf.transform(X).shape == (120, clf.n_components_)


class Tokens(nn.Module):
    def __init__(self, num_classes):
        super().__init__()
        self.embed = nn.Embedding(5, 4)
        self.head = nn.Linear(4, num_classes)

    def forward(self, x):
        return self.head(self.embed(x.long()).mean(1))


def test_a_network_of_codes():
    X = np.random.default_rng(0).integers(0, 5, (60, 3))
    clf = module(Tokens, max_epochs=60, learning_rate=0.05).fit(X, X.max(1) > 3)
    assert clf.embed(X).shape == (60, 4)
    assert clf.score(X, X.max(1) > 3) > 0.9


@pytest.mark.parametrize("n_rows", [33, 65])
def test_a_last_batch_of_one_row_joins_the_one_before(n_rows):
    class Normed(nn.Sequential):
        def __init__(self, n_features, n_classes):
            super().__init__(
                nn.Linear(n_features, 4), nn.BatchNorm1d(4), nn.Linear(4, n_classes)
            )

    rng = np.random.default_rng(0)
    X, y = rng.standard_normal((n_rows, 3)), np.arange(n_rows) % 2
    clf = module(Normed).fit(X, y)
    assert clf.partial_fit(X, y).n_iter_ == 4


def test_dropout_of_torchs_draws_anew_in_each_call_of_partial_fit(blobs):
    masks = []

    class Watched(Dense):
        def forward(self, x):
            if self.training:
                masks.append(self.dropout(torch.ones(64)))
            return super().forward(x)

    X, y = blobs
    clf = module(Watched).partial_fit(X, y, classes=[0, 1, 2]).partial_fit(X, y)
    assert len(masks) == 8
    assert not any(torch.equal(masks[0], mask) for mask in masks[1:])
    assert clf.n_iter_ == 2


def test_the_same_in_threads(blobs):
    X, y = blobs
    alone = [module(Dense, random_state=seed).fit(X, y) for seed in range(4)]
    state = torch.get_rng_state()
    together = Parallel(n_jobs=4, prefer="threads")(
        delayed(module(Dense, random_state=seed).fit)(X, y) for seed in range(4)
    )
    assert torch.equal(torch.get_rng_state(), state)
    for a, b in zip(alone, together, strict=True):
        assert (weights(a) == weights(b)).all()


def test_a_layer_that_works_in_place_does_not_change_what_embed_gives(images):
    X, y = images
    clf = module().fit(X, y)
    assert (clf.embed(X, layer="bn") < 0).any()
    assert (clf.embed(X, layer="relu") >= 0).all()
    assert clf.embed(X, layer="conv").shape == (90, 6, 8, 8)
