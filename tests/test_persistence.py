"""Files hold an estimator whole, and nothing that runs."""

import errno
import json
import os
import pickle
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import safetensors.numpy
import torch
from sklearn import config_context
from sklearn.base import BaseEstimator, TransformerMixin, clone
from sklearn.callback import ScoringMonitor
from sklearn.compose import ColumnTransformer
from sklearn.datasets import load_digits
from sklearn.decomposition import PCA
from sklearn.ensemble import RandomForestClassifier
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.neighbors import NearestNeighbors
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import (
    FunctionTransformer,
    OneHotEncoder,
    QuantileTransformer,
    StandardScaler,
)
from sklearn.tree._tree import Tree
from skorch.callbacks import EpochTimer
from torch import nn

from sksoftrank import (
    OODDetector,
    RankCompressor,
    SoftRankClassifier,
    SoftRankCNNClassifier,
    SoftRankEnsembleClassifier,
    SoftRankMLPClassifier,
    SoftRankTransformerClassifier,
    _format,
    load,
    modules,
    save,
)
from sksoftrank.detectors._methods import METHODS
from sksoftrank.inspection import compress_network
from sksoftrank.losses import (
    ConstantTemperature,
    CosineTemperature,
    ExponentialTemperature,
    LinearTemperature,
)
from sksoftrank.persistence import CLASSES, NAMES

QUICK = {"max_epochs": 2, "random_state": 0}


class Net(nn.Module):
    def __init__(self, n_features, n_classes, act=nn.ReLU):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(n_features, 8), act(), nn.BatchNorm1d(8))
        self.last = nn.Linear(8, n_classes)

    def forward(self, x):
        return self.last(self.body(x))


class Doubler(TransformerMixin, BaseEstimator):
    def fit(self, X, y=None):
        return self

    def transform(self, X):
        return 2 * X

    def __sklearn_is_fitted__(self):
        return True


def mlp(**params):
    return SoftRankMLPClassifier((8,), **(QUICK | params))


def same(a, b, where="estimator"):
    """Assert that two values are equal to the last bit, and of equal types."""
    assert type(a) is type(b), where
    if isinstance(a, np.ndarray):
        assert (a.dtype, a.shape, a.flags.f_contiguous) == (
            b.dtype,
            b.shape,
            b.flags.f_contiguous,
        ), where
        if a.dtype == object:
            same(a.ravel().tolist(), b.ravel().tolist(), where)
        else:
            assert a.tobytes() == b.tobytes(), where
    elif isinstance(a, np.random.RandomState):
        same(a.get_state(legacy=False), b.get_state(legacy=False), where)
    elif isinstance(a, list | tuple):
        assert len(a) == len(b), where
        for i, (x, y) in enumerate(zip(a, b, strict=True)):
            same(x, y, f"{where}[{i}]")
    elif isinstance(a, dict):
        same(list(a), list(b), where)
        for key in a:
            same(a[key], b[key], f"{where}[{key!r}]")
    elif isinstance(a, NearestNeighbors):
        same(a.get_params(), b.get_params(), where)
        same(a.kneighbors(), b.kneighbors(), where)
    elif type(a).__name__ in CLASSES:
        state_a, state_b = (
            v.__getstate__() if isinstance(v, BaseEstimator) else vars(v)
            for v in (a, b)
        )
        assert state_a.keys() == state_b.keys(), where
        for key in state_a:
            if key != "_metadata_request":
                same(state_a[key], state_b[key], f"{where}.{key}")
    elif isinstance(a, float) and a != a:
        assert b != b, where
    elif hasattr(a, "func"):
        same((a.func, a.args), (b.func, b.args), where)
    elif not isinstance(a, BaseEstimator):  # What skops keeps, its tests hold.
        assert a == b, where


def through_file(estimator, folder, **options):
    """Return what comes back from a file; assert that it is written alike."""
    path, again = folder / "first", folder / "second"
    save(estimator, path)
    loaded = load(path, **options)
    save(loaded, again)
    assert path.read_bytes() == again.read_bytes()
    save(estimator, again)
    assert path.read_bytes() == again.read_bytes()
    assert sorted(p.name for p in folder.iterdir()) == ["first", "second"]
    same(estimator, loaded)
    return loaded


def signed(path, content, arrays=None):
    """Write content as one who knows the format would."""
    _format.write(path, "estimator", content, arrays or {})
    return path


@pytest.fixture(scope="module")
def rows():
    rng = np.random.default_rng(0)
    y = np.repeat([0, 1, 2], 20)
    return 3.0 * np.eye(3, 6)[y] + rng.standard_normal((60, 6)), y


@pytest.fixture(scope="module")
def written(rows, tmp_path_factory):
    """Return a pipeline, and the bytes of its file."""
    path = tmp_path_factory.mktemp("file") / "pipeline"
    pipeline = make_pipeline(StandardScaler(), mlp()).fit(*rows)
    save(pipeline, path)
    return pipeline, path.read_bytes()


# -- Round trips -------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(
    "labels",
    [
        np.array([3, 5, 9]),
        np.array([3, 5, 9], dtype=np.uint8),
        np.array(["a", "ä", "\U0001f600 z"]),
        np.array(["a", "ä", "z"], dtype=object),
        np.array([-1.0, 0.0, 2.0]),
        np.array([False, True, True]),
    ],
    ids=["int", "uint8", "str", "object", "float", "bool"],
)
def test_labels_come_back(labels, dtype, rows, tmp_path):
    X, y = rows
    X = X.astype(dtype)
    clf = mlp().fit(X, labels[y])
    loaded = through_file(clf, tmp_path)
    for method in ("predict", "predict_proba", "decision_function", "transform"):
        same(getattr(clf, method)(X), getattr(loaded, method)(X))
    assert loaded.score(X, labels[y]) == clf.score(X, labels[y])


@pytest.mark.parametrize(
    "params",
    [
        {"temperature": ConstantTemperature(3.0)},
        {"temperature": LinearTemperature(1.0, 3.0)},
        {"temperature": CosineTemperature(1.0, 3.0)},
        {"temperature": ExponentialTemperature(1.0, 3.0), "warm_start": True},
        {"class_weight": {0: 1.0, np.int64(1): 2.0, 2: 1}},
        {"early_stopping": True, "optimizer": "sgd", "n_components": 2},
        {"device": torch.device("cpu"), "net_params": {"criterion__reduction": "mean"}},
        {"random_state": np.random.RandomState(3)},
        {"betas": np.array([0.9, 0.95]), "tol": np.float32(0.1)},
        {"dropout": 0.5, "normalization": "layer", "compression_tol": 0},
    ],
    ids=lambda params: "-".join(params),
)
def test_parameters_come_back(params, rows, tmp_path):
    clf = mlp(**params).fit(*rows)
    loaded = through_file(clf, tmp_path)
    same(clf.get_params(), loaded.get_params())
    same(clf.history_, loaded.history_)
    same(clf.predict_proba(rows[0]), loaded.predict_proba(rows[0]))
    unfitted = clone(loaded)
    same(clone(clf).get_params(), through_file(unfitted, tmp_path).get_params())
    assert not hasattr(load(tmp_path / "first"), "classes_")


@pytest.mark.parametrize("clf", [mlp(), SoftRankTransformerClassifier(**QUICK)])
@pytest.mark.parametrize("handle_unknown", ["infrequent_if_exist", "error"])
def test_columns_of_categories_come_back(clf, handle_unknown, rows, tmp_path):
    X, y = rows
    X = pd.DataFrame(X, columns=list("abcdef"))
    X["town"] = np.array(["x", "ü", None], dtype=object)[y]
    X["code"] = pd.Categorical(np.array([4, 7, 7])[y])
    clf = clone(clf).set_params(handle_unknown=handle_unknown).fit(X, y)
    loaded = through_file(clf, tmp_path)
    same(clf.predict_proba(X), loaded.predict_proba(X))
    same(clf.feature_names_in_, loaded.feature_names_in_)
    same(clf.get_feature_names_out(), loaded.get_feature_names_out())
    if handle_unknown == "error":
        with pytest.raises(ValueError, match="seen in fit, got 'w'"):
            loaded.predict(X.assign(town="w"))
    # Fits go on: the categories stay.
    loaded.set_params(warm_start=True).fit(X, y)


@pytest.mark.parametrize(
    "clf",
    [
        SoftRankCNNClassifier((4, 8), input_shape=(1, 4, 4), **QUICK),
        SoftRankCNNClassifier((4,), augmentation=("flip", "shift"), **QUICK),
        SoftRankTransformerClassifier(input_shape=[1, 4, 4], patch_size=2, **QUICK),
    ],
)
def test_networks_of_images_come_back(clf, tmp_path):
    rng = np.random.default_rng(0)
    X, y = rng.random((40, 1, 4, 4)), np.arange(40) % 2
    clf = clone(clf).fit(X, y)
    loaded = through_file(clf, tmp_path)
    same(clf.predict_proba(X), loaded.predict_proba(X))
    same(loaded.fit(X, y).predict_proba(X), clf.fit(X, y).predict_proba(X))


def test_a_module_comes_back_where_it_is_trusted(rows, tmp_path):
    X, y = rows
    clf = SoftRankClassifier(Net, {"act": nn.GELU}, **QUICK).fit(X, y)
    loaded = through_file(clf, tmp_path, trusted=[Net, nn.GELU])
    same(clf.predict_proba(X), loaded.predict_proba(X))
    for trusted in ([], [Net], [nn.GELU]):
        with pytest.raises(ValueError, match=r"first', which names .*trusted"):
            load(tmp_path / "first", trusted=trusted)
    for trusted in (["torch.nn.GELU"], "torch.nn.GELU", Net):
        with pytest.raises(ValueError, match="trusted must be a list of classes"):
            load(tmp_path / "first", trusted=trusted)


def test_training_goes_on_as_from_a_pickle(rows, tmp_path):
    X, y = rows
    clf = mlp(warm_start=True, dropout=0.2).fit(X, y)
    save(clf, tmp_path / "clf")
    for method in ("fit", "partial_fit"):
        loaded, unpickled = load(tmp_path / "clf"), pickle.loads(pickle.dumps(clf))
        getattr(loaded, method)(X, y)
        getattr(unpickled, method)(X, y)
        same(loaded, unpickled)
        same(loaded.predict_proba(X), unpickled.predict_proba(X))
        same(pickle.loads(pickle.dumps(loaded)), loaded)
    incremental = mlp().partial_fit(X, y, classes=[0, 1, 2])
    same(
        load(save_as(incremental, tmp_path / "p")).partial_fit(X, y).predict_proba(X),
        pickle.loads(pickle.dumps(incremental)).partial_fit(X, y).predict_proba(X),
    )


def save_as(estimator, path):
    save(estimator, path)
    return path


@pytest.mark.parametrize("params", [{}, {"temperature": [1, LinearTemperature(1, 9)]}])
def test_ensembles_come_back(params, rows, tmp_path):
    X, y = rows
    X = pd.DataFrame(X, columns=list("abcdef")).assign(town=np.array(list("xyx"))[y])
    ensemble = SoftRankEnsembleClassifier(
        mlp(), n_estimators=2, random_state=0, **params
    ).fit(X, y)
    loaded = through_file(ensemble, tmp_path)
    for method in ("predict_proba", "transform", "predict_std"):
        same(getattr(ensemble, method)(X), getattr(loaded, method)(X))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_compressors_come_back(dtype, rows, tmp_path):
    X = pd.DataFrame(rows[0].astype(dtype), columns=list("abcdef"))
    compressor = RankCompressor(0.9).fit(X)
    loaded = through_file(compressor, tmp_path)
    same(compressor.transform(X), loaded.transform(X))


@pytest.mark.parametrize("method", METHODS)
def test_detectors_come_back(method, rows, tmp_path):
    X, y = rows
    detector = OODDetector(mlp().fit(X, y), method).fit(X, y)
    loaded = through_file(detector, tmp_path)
    same(detector.score_samples(X), loaded.score_samples(X))
    same(detector.predict(5 * X), loaded.predict(5 * X))
    assert loaded.estimator_ is loaded.estimator


def test_detectors_around_others_come_back(rows, tmp_path):
    X, y = rows
    for estimator in (
        LogisticRegression().fit(X, y),
        FrozenEstimator(mlp().fit(X, y)),
        make_pipeline(StandardScaler(), PCA(3), mlp()).fit(X, y),
        mlp(),
    ):
        detector = OODDetector(estimator, "react").fit(X, y)
        loaded = through_file(detector, tmp_path)
        same(detector.score_samples(X), loaded.score_samples(X))
        is_fitted = detector.estimator_ is detector.estimator
        assert (loaded.estimator_ is loaded.estimator) is is_fitted


def test_pipelines_come_back(rows, tmp_path):
    X, y = rows
    X = pd.DataFrame(X, columns=list("abcdef")).assign(town=np.array(list("xyx"))[y])
    columns = ColumnTransformer(
        [
            ("scale", QuantileTransformer(n_quantiles=5), ["a", "b"]),
            ("log", FunctionTransformer(np.log1p), ["b"]),
            ("town", OneHotEncoder(), ["town"]),
            ("drop", "drop", ["c"]),
        ]
    )
    columns.set_params(log="passthrough")
    embedding = make_pipeline(
        columns, "passthrough", mlp(), LogisticRegression(max_iter=1000)
    ).fit(X, y)
    loaded = through_file(embedding, tmp_path)
    same(embedding.predict_proba(X), loaded.predict_proba(X))
    same(embedding[:-1].transform(X), loaded[:-1].transform(X))
    nested = make_pipeline(StandardScaler(), make_pipeline(PCA(3), mlp())).fit(*rows)
    loaded = through_file(nested, tmp_path)
    same(nested.predict_proba(rows[0]), loaded.predict_proba(rows[0]))


def test_a_step_of_ones_own_must_be_trusted(rows, tmp_path):
    pipeline = make_pipeline(Doubler(), mlp()).fit(*rows)
    loaded = through_file(pipeline, tmp_path, trusted=[Doubler])
    same(pipeline.predict_proba(rows[0]), loaded.predict_proba(rows[0]))
    with pytest.raises(ValueError, match=r"step Doubler needs .*Doubler"):
        load(tmp_path / "first")


def test_trees_come_back_where_they_are_trusted(rows, tmp_path):
    # Bounds of a tree's nodes are not checked by who walks it.
    forest = RandomForestClassifier(5, random_state=0)
    pipeline = make_pipeline(mlp(), forest).fit(*rows)
    loaded = through_file(pipeline, tmp_path, trusted=[Tree])
    same(pipeline.predict_proba(rows[0]), loaded.predict_proba(rows[0]))
    with pytest.raises(ValueError, match=r"step RandomForestClassifier needs .*Tree"):
        load(tmp_path / "first")


def test_what_metadata_is_asked_for_comes_back(rows, tmp_path):
    with config_context(enable_metadata_routing=True):
        clf = mlp().set_fit_request(sample_weight=True, groups=None)
        clf.set_score_request(sample_weight="other")
        expected = clf.get_metadata_routing()
    loaded = through_file(clf, tmp_path)
    with config_context(enable_metadata_routing=True):
        assert repr(loaded.get_metadata_routing()) == repr(expected)


def test_arrays_come_back_as_they_lie(tmp_path):
    values = [
        np.arange(6.0).reshape(2, 3).T,
        np.arange(24).reshape(2, 3, 4)[:, ::2],
        np.array(5, dtype=np.int8),
        np.zeros((0, 3), dtype=np.float16),
        np.array([1 + 2j]),
        np.array([1, 2], dtype=">i4"),
        np.array(["2020-01-01", "NaT"], dtype="M8[D]"),
        np.array([b"a", b"bc"]),
        np.zeros(0, dtype="<U1"),
        np.array([[None, "x"], [1.5, (1, np.nan)]], dtype=object),
        np.str_("ü"),
        np.bool_(True),
        {(1, "a"): [-0.0, np.inf], "1": {}, 1: ()},
        2**80,
    ]
    compressor = RankCompressor(values)
    save(compressor, tmp_path / "file")
    loaded = load(tmp_path / "file").n_components
    for value, back in zip(values, loaded, strict=True):
        if isinstance(value, np.ndarray):
            assert back.flags.writeable
            value = value.copy(order="K") if value.ndim == 3 else value
        same(value, back)


def test_equal_estimators_give_equal_bytes(rows, tmp_path):
    X, y = rows
    pair = [
        make_pipeline(PCA(3, random_state=0), mlp(random_state=7)).fit(X, y)
        for _ in range(2)
    ]
    pair[1].fit(X, y)  # Attributes that are set anew, in another order or not.
    first, second = (
        save_as(pipeline, tmp_path / str(i)).read_bytes()
        for i, pipeline in enumerate(pair)
    )
    assert first == second


def test_the_file_is_of_safetensors(written, tmp_path):
    path = tmp_path / "file"
    path.write_bytes(written[1])
    tensors = safetensors.numpy.load_file(path)
    weights = written[0][-1].module_.state_dict()
    for name, weight in weights.items():
        same(tensors[f"steps[1][1]._weights[{name!r}]"], weight.numpy())


# -- What a file can't describe ----------------------------------------------------


@pytest.mark.parametrize(
    ("params", "name"),
    [
        ({"callbacks": [EpochTimer()]}, r"callbacks\[0\]"),
        ({"callbacks": [("timer", EpochTimer())]}, r"callbacks\[0\]\[1\]"),
        ({"net_params": {"criterion__weight": torch.ones(3)}}, "net_params"),
        ({"net_params": {"optimizer": lambda p: None}}, "net_params"),
        ({"class_weight": pd.Series([1.0])}, "class_weight"),
        ({"betas": np.ma.masked_array([0.9, 0.95])}, "betas"),
        ({"betas": np.zeros(1, dtype=[("a", "f4")])}, "betas"),
        ({"max_epochs": True + 0j}, "max_epochs"),
        ({"random_state": np.random.RandomState(np.random.PCG64(0))}, "random_state"),
    ],
)
def test_what_cant_be_described_is_named(params, name, tmp_path):
    with pytest.raises(ValueError, match=f"^{name}"):
        save(mlp(**params), tmp_path / "file")
    assert not list(tmp_path.iterdir())


def test_modules_that_have_no_name_are_refused(tmp_path):
    class Inner(Net):
        pass

    for module in (Inner, lambda n_features, n_classes: Net(n_features, n_classes)):
        with pytest.raises(ValueError, match=r"^module must be importable"):
            save(SoftRankClassifier(module), tmp_path / "file")
    with pytest.raises(ValueError, match=r"^module must be plain values"):
        save(SoftRankClassifier(Net(2, 2)), tmp_path / "file")
    endless = []
    endless.append(endless)
    with pytest.raises(ValueError, match="holds itself"):
        save(mlp(betas=endless), tmp_path / "file")
    assert not list(tmp_path.iterdir())


def test_other_estimators_are_refused(tmp_path):
    class Own(SoftRankMLPClassifier):
        pass

    search = GridSearchCV(mlp(), {})
    for estimator in (Own(), search, StandardScaler(), mlp, None):
        with pytest.raises(ValueError, match=r"^estimator must be one of"):
            save(estimator, tmp_path / "file")
    for step in (
        ColumnTransformer([("net", mlp(), [0])]),
        FunctionTransformer(lambda X: X),
        Own(),
        GridSearchCV(mlp(), {}),
    ):
        with pytest.raises(ValueError, match=r"^steps\[0\]\[1\] must"):
            save(make_pipeline(step, mlp()), tmp_path / "file")
    assert not list(tmp_path.iterdir())


def test_without_skops_its_extra_is_named(rows, tmp_path, monkeypatch):
    plain = make_pipeline(StandardScaler(), mlp()).fit(*rows)
    scaled = make_pipeline(PCA(2), mlp()).fit(*rows)
    save(scaled, tmp_path / "scaled")
    monkeypatch.setitem(sys.modules, "skops", None)
    monkeypatch.setitem(sys.modules, "skops.io", None)
    same(through_file_alone(plain, tmp_path), plain)
    with pytest.raises(ImportError, match=r"PCA.*pip install 'sksoftrank\[files\]'"):
        save(scaled, tmp_path / "other")
    with pytest.raises(ImportError, match=r"scaled.*pip install 'sksoftrank\[files\]'"):
        load(tmp_path / "scaled")


@pytest.mark.parametrize("kind", ["mlp", "cnn", "transformer"])
def test_smaller_networks_come_back(kind, tmp_path):
    X, y = load_digits(n_class=3, return_X_y=True)
    if kind == "mlp":
        clf = SoftRankMLPClassifier((16, 16), dropout=0.0, **QUICK)
    else:
        X = X.reshape(-1, 1, 8, 8)
        clf = (
            SoftRankCNNClassifier((8, 8), **QUICK)
            if kind == "cnn"
            else SoftRankTransformerClassifier(16, patch_size=4, **QUICK)
        )
    small = compress_network(clf.fit(X / 16, y), X / 16, y, tol=0.5, random_state=0)
    loaded = through_file(small, tmp_path)
    assert loaded.compression_report_ == small.compression_report_
    same(loaded.predict_proba(X / 16), small.predict_proba(X / 16))


def test_each_network_of_the_package_may_be_named():
    public = [getattr(modules, name) for name in modules.__all__]
    networks = {m for m in public if issubclass(m, modules.EmbedHeadModule)}
    assert networks - {modules.EmbedHeadModule} <= set(NAMES.values())


def test_callbacks_of_scikit_learn_are_refused_with_the_way_out(tmp_path):
    X, y = load_digits(n_class=3, return_X_y=True)
    clf = SoftRankMLPClassifier((8,), dropout=0.0, **QUICK)
    clf.set_callbacks(ScoringMonitor(scoring="accuracy")).fit(X, y)
    with pytest.raises(ValueError, match=r"call set_callbacks\(\) to part"):
        save(clf, tmp_path / "file")
    through_file(clf.set_callbacks(), tmp_path)


def through_file_alone(estimator, folder):
    return load(save_as(estimator, folder / "alone"))


# -- Files that are not as they were written ----------------------------------------

ERROR = r"path must be a file that sksoftrank wrote, got '.*file', .*\. "


def mutate(data, rng):
    """Return the bytes with one fault of a random kind."""
    data = bytearray(data)
    kind, at = rng.integers(6), int(rng.integers(len(data)))
    if kind == 0:
        for place in rng.integers(len(data), size=rng.integers(1, 9)):
            data[place] ^= 1 << rng.integers(8)
    elif kind == 1:
        del data[at:]
    elif kind == 2:
        data[at:at] = rng.bytes(rng.integers(1, 99))
    elif kind == 3:
        del data[at : at + rng.integers(1, 99)]
    elif kind == 4:  # In the header, where most is to be misread.
        at = int(rng.integers(3000))
        data[at : at + 4] = rng.bytes(4)
    else:  # Another's header length, or another's start.
        n = int(rng.choice([8, 200, 2000]))
        data[:n] = rng.bytes(n)
    return bytes(data)


def test_a_thousand_mutated_files_are_refused(written, tmp_path):
    path, (_, data) = tmp_path / "file", written
    rng = np.random.default_rng(0)
    for _ in range(1000):
        mutated = mutate(data, rng)
        path.write_bytes(mutated)
        if mutated == data:
            load(path)
            continue
        with pytest.raises(ValueError, match=ERROR):
            load(path)


def nodes_of(value):
    if isinstance(value, dict | list):
        yield value
        for inner in value.values() if isinstance(value, dict) else value:
            yield from nodes_of(inner)


def test_mutations_that_are_signed_raise_or_load(written, tmp_path):
    # By one who writes the checksum anew, too.
    path = tmp_path / "file"
    path.write_bytes(written[1])
    text, arrays = _format.read(path, "estimator")
    text = json.dumps(text)
    rng = np.random.default_rng(0)
    strange = [None, -1, 1e300, "os.system", [], {}, {"tuple": [1]}, {"same": 0}]
    strange += [{"trusted": "os.system"}, {"known": "MLP"}, {"device": "cuda:9"}]
    strange += [{"object": ["RankCompressor", {}]}, {"object": ["Popen", {}]}]
    messages = []
    for _ in range(300):
        content = json.loads(text)
        node = [n for n in nodes_of(content) if n]
        node = node[rng.integers(len(node))]
        key = list(node)[rng.integers(len(node))] if isinstance(node, dict) else 0
        node[key] = strange[rng.integers(len(strange))]
        try:
            load(signed(path, content, arrays))
        except ValueError as error:
            messages.append(str(error))
    assert all(m.startswith("path must be a file that sksoftrank") for m in messages)
    assert messages


def later(data):
    """Return the file of a later version, whose checksum is right."""
    data = bytearray(data.replace(b'\\"schema\\":1', b'\\"schema\\":2'))
    data[_format._CHECKSUM] = _format._digest(data)
    return bytes(data)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "which is empty"),
        (b"\x00", "which begins otherwise"),
        (b"\xff" * 4096, "which begins otherwise"),
        (pickle.dumps(RankCompressor()), "which begins otherwise"),
        (safetensors.numpy.save({"a": np.zeros(300)}), "which begins otherwise"),
        (safetensors.numpy.save({}, {"sksoftrank": "{}"}), "which begins otherwise"),
    ],
)
def test_foreign_files_are_refused(data, message, tmp_path):
    path = tmp_path / "file"
    path.write_bytes(data)
    with pytest.raises(ValueError, match=ERROR + "Pass one") as error:
        load(path)
    assert message in str(error.value)


def test_files_of_later_versions_are_refused(written, tmp_path):
    path = tmp_path / "file"
    path.write_bytes(later(written[1]))
    with pytest.raises(
        ValueError, match=r"its schema is 2.*Update the package.*'numpy'"
    ):
        load(path)


def test_what_is_no_file_is_refused(tmp_path):
    with pytest.raises(ValueError, match="which is no file"):
        load(tmp_path)
    with pytest.raises(FileNotFoundError):
        load(tmp_path / "none")
    with pytest.raises(ValueError, match="got a folder"):
        save(mlp(), tmp_path)
    if os.path.exists("/dev/zero"):
        with pytest.raises(ValueError, match="which is no file"):
            load("/dev/zero")


def test_files_of_another_kind_are_refused(tmp_path):
    path = tmp_path / "file"
    _format.write(path, "checkpoint", {}, {})
    assert _format.read(path, "checkpoint") == ({}, {})
    with pytest.raises(ValueError, match="holds a 'checkpoint' where a 'estimator'"):
        load(path)


# -- Nothing is run ----------------------------------------------------------------


@pytest.fixture
def nothing_runs(monkeypatch):
    def run(*args, **kwargs):
        raise AssertionError("code was run")

    for owner, names in [(os, ["system", "popen"]), (pickle, ["load", "loads"])]:
        for name in names:
            monkeypatch.setattr(owner, name, run)


@pytest.mark.usefixtures("nothing_runs")
@pytest.mark.parametrize(
    ("node", "message"),
    [
        ({"trusted": "os.system"}, "which names os.system, while"),
        ({"known": "system"}, "of which no estimator can be made"),
        ({"scalar_type": "object_"}, "of which no estimator can be made"),
        ({"object": ["Popen", {}]}, "of which no estimator can be made"),
        ({"object": ["RankCompressor", {}]}, r"needs \['n_components', 'tol'\]"),
        ({"object": ["MLP", {}]}, "of which no estimator can be made"),
        ({"eval": "1"}, "of which no estimator can be made"),
        ({"array": ["a", "O", [1], "C"]}, "of which no estimator can be made"),
        ({"array": ["a", "<f8", [1 << 40], "C"]}, "of which no estimator can be made"),
        ({"partial": [{"trusted": "os.system"}, "true"]}, "which names os.system"),
        ({"same": 0}, "holds itself"),
        ({"skops": ["{}", []]}, "of which no estimator can be made"),
    ],
)
def test_a_file_can_name_nothing_that_is_not_listed(node, message, tmp_path):
    state = {"n_components": node, "tol": 0.1}
    arrays = {"a": np.zeros(8, dtype=np.uint8)} if "array" in node else {}
    path = signed(tmp_path / "file", {"object": ["RankCompressor", state]}, arrays)
    with pytest.raises(ValueError, match=message):
        load(path)


@pytest.mark.usefixtures("nothing_runs")
def test_a_step_can_name_nothing_that_is_not_trusted(rows, tmp_path):
    log = FunctionTransformer(np.log1p)
    pipeline = make_pipeline(log, mlp()).fit(np.abs(rows[0]), rows[1])
    save(pipeline, tmp_path / "file")
    content, arrays = _format.read(tmp_path / "file", "estimator")
    (step,) = (n for n in nodes_of(content) if isinstance(n, dict) and "skops" in n)
    schema, members = step["skops"]
    evil = json.loads(schema)
    function = evil["content"]["content"]["func"]
    assert function["__class__"] == "log1p"
    function |= {"__class__": "system", "__module__": "os"}
    step["skops"] = [json.dumps(evil), members]
    path = signed(tmp_path / "file", content, arrays)
    with pytest.raises(ValueError, match=r"needs \['os.system'\], while"):
        load(path)


@pytest.mark.usefixtures("nothing_runs")
def test_steps_that_are_mutated_and_signed_raise_or_load(rows, tmp_path):
    path = tmp_path / "file"
    columns = ColumnTransformer([("scale", QuantileTransformer(n_quantiles=5), [0])])
    save(make_pipeline(columns, mlp()).fit(*rows), path)
    content, arrays = _format.read(path, "estimator")
    (step,) = (n for n in nodes_of(content) if isinstance(n, dict) and "skops" in n)
    schema, members = step["skops"]
    rng = np.random.default_rng(0)
    strange = [None, -1, "os", "system", "numpy", "NdArrayNode", [], {}, "MethodNode"]
    messages = []
    for _ in range(200):
        mutated = json.loads(schema)
        nodes = [n for n in nodes_of(mutated) if n]
        node = nodes[rng.integers(len(nodes))]
        key = list(node)[rng.integers(len(node))] if isinstance(node, dict) else 0
        node[key] = strange[rng.integers(len(strange))]
        step["skops"] = [json.dumps(mutated), members]
        try:
            load(signed(path, content, arrays))
        except ValueError as error:
            messages.append(str(error))
    assert all(m.startswith("path must be a file that sksoftrank") for m in messages)
    assert messages


@pytest.mark.parametrize("position", [-1, 625, 10**6, 2**40, "1"])
def test_generators_read_nothing_beyond_their_state(position, tmp_path):
    path = tmp_path / "file"
    save(mlp(random_state=np.random.RandomState(0)), path)
    content, arrays = _format.read(path, "estimator")
    text = json.dumps(content)
    assert text.count('["pos", 624]') == 1
    text = text.replace('["pos", 624]', json.dumps(["pos", position]))
    signed(path, json.loads(text), arrays)
    with pytest.raises(ValueError, match="of which no estimator can be made"):
        load(path)


def test_arrays_that_nothing_uses_are_refused(tmp_path):
    content = {"object": ["RankCompressor", {"n_components": None, "tol": 0.1}]}
    path = signed(tmp_path / "file", content, {"more": np.zeros(3)})
    with pytest.raises(ValueError, match="which holds something else"):
        load(path)
    with pytest.raises(ValueError, match="which holds something else"):
        load(signed(path, [1, 2]))


def test_weights_of_other_shapes_are_refused(written, tmp_path):
    path = tmp_path / "file"
    path.write_bytes(written[1])
    content, arrays = _format.read(path, "estimator")
    name = next(n for n in arrays if "output.bias" in n)
    text = json.dumps(content).replace(f'"{name}", "<f4", [3]', f'"{name}", "<f4", [2]')
    for weight in (np.zeros(2, np.float32), np.zeros(3, np.float64)):
        signed(path, json.loads(text), arrays | {name: weight})
        with pytest.raises(ValueError, match="of which no estimator can be made"):
            load(path)


# -- Whole or not at all -----------------------------------------------------------


@pytest.mark.parametrize("call", ["write", "fsync", "replace", "open"])
@pytest.mark.parametrize(
    "fault", [OSError(errno.ENOSPC, "No space"), KeyboardInterrupt]
)
def test_a_write_that_fails_leaves_what_was_there(call, fault, tmp_path, monkeypatch):
    path = tmp_path / "file"
    save(RankCompressor(1), path)
    before = path.read_bytes()

    def fail(*args, **kwargs):
        raise fault

    with monkeypatch.context() as patch:
        patch.setattr(os, call, fail)
        with pytest.raises(
            type(fault) if isinstance(fault, OSError) else fault
        ) as error:
            save(mlp(), path)
    if isinstance(fault, OSError):
        assert error.value.errno == errno.ENOSPC
        assert error.value.filename == str(path)
        assert "what was there before is as it was" in str(error.value)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["file"]


def test_a_disk_that_fills_up_leaves_what_was_there(tmp_path, monkeypatch):
    path = tmp_path / "file"
    save(RankCompressor(1), path)
    before, real = path.read_bytes(), os.write
    room = [500]

    def write(handle, data):
        if room[0] <= 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        room[0] -= 100
        return real(handle, data[:100])

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", write)
        with pytest.raises(OSError, match="No space left on device: nothing was"):
            save(mlp(), path)
        assert path.read_bytes() == before
        assert os.listdir(tmp_path) == ["file"]
        room[0] = 10**9  # Written in parts, as a full pipe or a signal has it.
        save(mlp(), path)
    assert load(path).hidden_layer_sizes == (8,)


@pytest.mark.skipif(os.name != "posix", reason="has no SIGKILL")
def test_a_process_that_is_killed_leaves_what_was_there(tmp_path):
    path = tmp_path / "file"
    save(RankCompressor(1), path)
    before = path.read_bytes()
    code = """if True:
        import os, signal, sys
        from sksoftrank import RankCompressor, save
        os.replace = lambda *args: os.kill(os.getpid(), signal.SIGKILL)
        save(RankCompressor(2), sys.argv[1])
    """
    done = subprocess.run([sys.executable, "-c", code, str(path)], check=False)
    assert done.returncode == -9
    assert path.read_bytes() == before


def test_a_link_and_its_rights_stay(tmp_path):
    target, link = tmp_path / "target", tmp_path / "link"
    save(RankCompressor(1), target)
    target.chmod(0o600)
    link.symlink_to(target)
    save(RankCompressor(2), link)
    assert link.is_symlink()
    assert load(target).n_components == 2
    assert target.stat().st_mode & 0o777 == 0o600
    save(RankCompressor(3), str(target))
    with pytest.raises(FileNotFoundError, match="nothing was written"):
        save(RankCompressor(), tmp_path / "none" / "file")


def test_a_header_too_long_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(_format, "MAX_HEADER", 1000)
    with pytest.raises(ValueError, match="less than 1,000 bytes"):
        save(RankCompressor("x" * 1000), tmp_path / "file")
    assert not list(tmp_path.iterdir())
