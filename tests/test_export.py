"""What ONNX computes is what we predict."""

import sys

import numpy as np
import onnxruntime
import pandas as pd
import pytest
from sklearn.decomposition import PCA
from sklearn.exceptions import NotFittedError
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, MinMaxScaler, StandardScaler
from torch import nn

from sksoftrank import (
    SoftRankClassifier,
    SoftRankCNNClassifier,
    SoftRankEnsembleClassifier,
    SoftRankMLPClassifier,
    SoftRankTransformerClassifier,
    to_onnx,
)

QUICK = {"max_epochs": 2, "random_state": 0}


def mlp(**params):
    return SoftRankMLPClassifier((8,), **(QUICK | params))


def network(n_features, n_classes):
    return nn.Sequential(nn.Linear(n_features, 8), nn.GELU(), nn.Linear(8, n_classes))


@pytest.fixture(scope="module")
def rows():
    rng = np.random.default_rng(0)
    y = np.repeat([0, 1, 2], 20)
    X = 3.0 * np.eye(3, 16)[y] + rng.standard_normal((60, 16))
    return X.astype(np.float32), y


def run(model, X):
    """Return what onnxruntime makes of rows."""
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    (value,) = session.run(None, {"X": X})
    return value


def assert_agrees(estimator, X, outputs=("proba", "label", "embedding")):
    methods = {"proba": "predict_proba", "label": "predict", "embedding": "transform"}
    for output in outputs:
        model = to_onnx(estimator, output)
        assert [value.name for value in model.graph.input] == ["X"]
        assert [value.name for value in model.graph.output] == [output]
        expected = getattr(estimator, methods[output])(X)
        for part in (slice(None), slice(1)):  # Any number of rows.
            found = run(model, X[part])
            assert found.shape == expected[part].shape
            if output == "label":
                assert found.tolist() == expected[part].tolist()
            else:
                np.testing.assert_allclose(found, expected[part], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "clf",
    [
        mlp(activation="gelu", normalization="layer", temperature=0.5),
        SoftRankCNNClassifier((4, 8), input_shape=(1, 4, 4), **QUICK),
        SoftRankTransformerClassifier(d_model=16, **QUICK),
        SoftRankTransformerClassifier(
            input_shape=(1, 4, 4), patch_size=2, d_model=16, **QUICK
        ),
        SoftRankClassifier(network, **QUICK),
    ],
    ids=lambda clf: type(clf).__name__,
)
def test_networks_agree(clf, rows):
    assert_agrees(clf.fit(*rows), rows[0], ["proba", "embedding"])


@pytest.mark.parametrize("embedding", ["compressed", "concatenated"])
def test_ensembles_agree(embedding, rows):
    ensemble = SoftRankEnsembleClassifier(
        mlp(), n_estimators=2, temperature=[1, 9], embedding=embedding, random_state=0
    )
    assert_agrees(ensemble.fit(*rows), rows[0])


def test_pipelines_agree(rows):
    X, y = rows
    ours = make_pipeline(
        StandardScaler(), "passthrough", make_pipeline(PCA(5), mlp())
    ).fit(X, y)
    assert_agrees(ours, X)
    middle = make_pipeline(MinMaxScaler(), mlp(), LogisticRegression()).fit(X, y)
    assert_agrees(middle, X, ["proba", "label"])
    assert_agrees(make_pipeline(mlp(), StandardScaler()).fit(X, y), X, ["embedding"])
    frozen = make_pipeline(FrozenEstimator(ours), StandardScaler()).fit(X, y)
    assert_agrees(frozen, X, ["embedding"])


@pytest.mark.parametrize(
    "labels",
    [
        ["a", "ä", "z"],
        np.array(["a", "ä", "z"], dtype=object),
        [-3, 2**40, 2**41],
        [-1.0, 0.0, 2.0],
        [False, True, True],
    ],
    ids=["text", "object", "int", "float", "bool"],
)
def test_labels_agree(labels, rows):
    X, y = rows
    assert_agrees(mlp().fit(X, np.asarray(labels)[y]), X, ["label"])


def test_what_cant_be_exported_says_why(rows):
    X, y = rows
    with pytest.raises(ValueError, match=r"output must be one of .*'logits'"):
        to_onnx(mlp().fit(X, y), "logits")
    with pytest.raises(NotFittedError):
        to_onnx(mlp())
    with pytest.raises(ValueError, match="or a pipeline with one, got PCA"):
        to_onnx(PCA().fit(X), "embedding")
    frame = pd.DataFrame(X).set_axis(list("abcdefghijklmnop"), axis=1)
    frame = frame.assign(town=np.array(list("xyz"))[y])
    with pytest.raises(ValueError, match="columns of categories"):
        to_onnx(mlp().fit(frame, y))
    for last, output in [(StandardScaler(), "proba"), (LogisticRegression(), None)]:
        pipeline = make_pipeline(mlp(), last).fit(X, y)
        with pytest.raises(ValueError, match="output must be"):
            to_onnx(pipeline, output or "embedding")
    odd = make_pipeline(FunctionTransformer(np.log1p), mlp()).fit(np.abs(X), y)
    with pytest.raises(ValueError, match="that skl2onnx converts, got Function"):
        to_onnx(odd)


@pytest.mark.parametrize("name", ["onnx.compose", "onnxscript", "skl2onnx"])
def test_without_its_extra_it_is_named(name, rows, monkeypatch):
    pipeline = make_pipeline(mlp(), StandardScaler()).fit(*rows)
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ImportError, match=r"pip install 'sksoftrank\[onnx\]'"):
        to_onnx(pipeline, "embedding")
