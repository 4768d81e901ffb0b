import copy
import pickle
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import torch
from _plain import PLAIN
from hypothesis import given, settings
from hypothesis import strategies as st
from joblib import Parallel, delayed
from scipy import sparse
from sklearn.base import clone
from sklearn.datasets import load_iris, make_classification
from sklearn.decomposition import PCA
from sklearn.exceptions import NotFittedError
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from skorch.callbacks import Callback, EarlyStopping, LRScheduler
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from sksoftrank import SoftRankMLPClassifier
from sksoftrank.losses import ExponentialTemperature, LinearTemperature
from sksoftrank.rank import effective_rank
from sksoftrank.training._stopping import BestEpoch

FAST = {
    **PLAIN,
    "learning_rate": "auto",
    "hidden_layer_sizes": (16, 8),
    "max_epochs": 5,
    "batch_size": 32,
}


def make(**params):
    return SoftRankMLPClassifier(**{**FAST, "random_state": 0, **params})


def weights(clf):
    return torch.cat([p.detach().flatten() for p in clf.module_.parameters()]).numpy()


# -- Against a reference ---------------------------------------------------------------


@pytest.mark.parametrize(
    "params",
    [
        {},
        {"temperature": 10.0},
        {"temperature": 0.2, "optimizer": "sgd"},
        {"optimizer": "adamw", "weight_decay": 0.1, "lr_schedule": "constant"},
        {"weight_decay": 0.01, "learning_rate": 0.02, "activation": "tanh"},
        {"temperature": ExponentialTemperature(1.0, 16.0)},
    ],
    ids=str,
)
def test_training_equals_a_loop_in_plain_torch(blobs, params):
    X, y = blobs
    # Without kinks, where a rounding would decide.
    params = {"activation": "tanh", **params}
    clf = make(**params).fit(X, y)

    # The same initial weights and order of rows, taken from the seeds alone.
    initial = make(**params)
    seeds = initial._draw_seeds()
    inputs = {"n_features": X.shape[1]}
    net = initial._make_net(inputs, len(clf.classes_), len(X), seeds)
    module = net.initialize().module_
    linear = [m for m in module.modules() if isinstance(m, nn.Linear)]
    tensors = [
        t.detach().clone().requires_grad_() for m in linear for t in (m.weight, m.bias)
    ]
    rng = np.random.default_rng(seeds["order"])

    temperature = params.get("temperature", 1.0)
    schedule = temperature if callable(temperature) else lambda progress: temperature
    base, power = {"sgd": (0.05, 0.5)}.get(params.get("optimizer"), (0.01, 0.0))
    groups = [
        {"params": tensors[::2], "weight_decay": params.get("weight_decay", 0.0)},
        {"params": tensors[1::2], "weight_decay": 0.0},
    ]
    optimizer = {
        "adam": lambda: torch.optim.Adam(groups),
        "adamw": lambda: torch.optim.AdamW(groups),
        "sgd": lambda: torch.optim.SGD(tensors, momentum=0.9, nesterov=True),
    }[params.get("optimizer", "adam")]()
    x, target = torch.tensor(X, dtype=torch.float32), torch.tensor(y)
    for epoch in range(5):
        t = schedule(epoch / 4)
        rate = params.get("learning_rate", base * t**power)
        if params.get("lr_schedule") != "constant":
            rate *= (1 + np.cos(np.pi * epoch / 5)) / 2
        for group in optimizer.param_groups:
            group["lr"] = rate
        order = rng.permutation(len(x))
        for i in range(0, len(x), 32):
            rows = order[i : i + 32]
            w1, b1, w2, b2, w3, b3 = tensors
            z = torch.tanh(torch.tanh(x[rows] @ w1.T + b1) @ w2.T + b2)
            log_p = torch.log_softmax((z @ w3.T + b3) / t, dim=1)
            loss = -log_p[range(len(rows)), target[rows]].mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    expected = torch.cat([t.detach().flatten() for t in tensors])
    np.testing.assert_allclose(weights(clf), expected.numpy(), rtol=0, atol=1e-6)


def test_outputs_are_what_the_module_says(digits):
    X, X_test, y, _ = digits
    clf = make(temperature=5.0).fit(X, y)
    module = copy.deepcopy(clf.module_).double()
    with torch.no_grad():
        z = module.embed(torch.tensor(X_test))
        logits = module.head(z) / 5.0
    close = {"rtol": 1e-9, "atol": 1e-12}
    np.testing.assert_allclose(clf.embed(X_test), z, **close)
    np.testing.assert_allclose(clf.decision_function(X_test), logits, **close)
    np.testing.assert_allclose(clf.predict_proba(X_test), F.softmax(logits, 1), **close)
    np.testing.assert_allclose(
        clf.predict_log_proba(X_test), F.log_softmax(logits, 1), **close
    )
    assert (clf.predict(X_test) == clf.classes_[logits.argmax(1)]).all()
    projected = (z.numpy() - clf.compressor_.mean_) @ clf.compressor_.components_.T
    np.testing.assert_allclose(clf.transform(X_test), projected, rtol=1e-5, atol=1e-5)


def test_basis_is_that_of_a_principal_component_analysis(digits):
    X, _, y, _ = digits
    clf = make(n_components=3).fit(X, y)
    pca = PCA(3, svd_solver="full").fit(clf.embed(X))
    np.testing.assert_allclose(
        clf.singular_values_[:3], pca.singular_values_, rtol=1e-5
    )
    np.testing.assert_allclose(
        np.abs(clf.transform(X)), np.abs(pca.transform(clf.embed(X))), atol=1e-3
    )
    assert len(clf.singular_values_) == 8


# -- What it is for --------------------------------------------------------------------


def test_high_temperature_gives_low_rank(digits):
    X, X_test, y, y_test = digits
    ranks = []
    for temperature in (0.3, 1.0, 10.0, 100.0):
        clf = SoftRankMLPClassifier(
            (128, 128), temperature=temperature, max_epochs=15, random_state=0
        ).fit(X, y)
        assert clf.score(X_test, y_test) > 0.94
        ranks.append(effective_rank(clf.embed(X_test), center=True))
    assert ranks == sorted(ranks, reverse=True)
    assert ranks[-1] < 0.6 * ranks[1]


def test_auto_size_is_the_smallest_expected_to_keep_accuracy(digits):
    X, _, y, _ = digits
    clf = make(max_epochs=20, compression_tol=0.01).fit(X, y)
    z = clf.embed(X.astype(np.float32))
    head = copy.deepcopy(clf.module_).double().head

    def margins(size):
        basis = PCA(size, svd_solver="full").fit(z)
        kept = torch.tensor(basis.inverse_transform(basis.transform(z))).double()
        with torch.no_grad():
            scores = head(kept).numpy()
        own = scores[np.arange(len(y)), y]
        scores[np.arange(len(y)), y] = -np.inf
        return own - scores.max(axis=1)

    full = margins(8)

    def loss(size):
        found, error = margins(size), np.mean(full < 0)
        weak = np.mean(found < 0.8 * np.maximum(full, 0))
        return max(np.mean(found < 0) - error, (weak - error) / 8)

    assert clf.n_components_ > 1
    assert loss(clf.n_components_) <= 0.01
    assert all(loss(size) > 0.01 for size in range(1, clf.n_components_))


def test_basis_and_size_are_of_held_out_rows_too(digits):
    X, _, y, _ = digits
    clf = make(early_stopping=True, validation_fraction=0.4).fit(X, y)
    pca = PCA(8, svd_solver="full").fit(clf.embed(X))
    np.testing.assert_allclose(clf.singular_values_, pca.singular_values_, rtol=1e-4)
    size = clf.n_components_
    assert clf.compress(X, y).n_components_ == size


# So few can be too few for ten classes, which a warning says.
@pytest.mark.filterwarnings("ignore:n_components=:UserWarning")
@pytest.mark.parametrize(
    ("n_components", "columns"),
    [(1, 1), (5, 5), (None, 8), (0.5, None), ("auto", None)],
)
def test_n_components(digits, n_components, columns):
    X, X_test, y, _ = digits
    clf = make(n_components=n_components).fit(X, y)
    Z = clf.transform(X_test)
    assert Z.shape == (450, clf.n_components_)
    assert columns in (None, clf.n_components_)
    assert clf.get_feature_names_out().tolist() == [
        f"softrankmlpclassifier{i}" for i in range(clf.n_components_)
    ]


def test_too_few_components_for_the_classes_warn(digits):
    X, _, y, _ = digits
    clf = make(n_components="auto").fit(X, y)
    match = r"n_components=1 must keep .* with 1 .* positions \[.+\].* Keep at least \d"
    with pytest.warns(UserWarning, match=match):
        clf.compress(X, y, n_components=1)
    # "auto" does not, whatever it may lose.
    assert clf.compress(X, y, compression_tol=0.9).n_components_ > 1


def test_compress_changes_the_size_and_nothing_else(digits):
    X, X_test, y, _ = digits
    clf = make(n_components=2).fit(X, y)
    proba = clf.predict_proba(X_test)
    assert clf.compress(X, n_components=6).transform(X_test).shape == (450, 6)
    np.testing.assert_array_equal(clf.predict_proba(X_test), proba)
    auto = clf.compress(X, y, n_components="auto", compression_tol=0.3).n_components_
    assert auto < clf.compress(X, y, compression_tol=0.0).n_components_
    with pytest.raises(ValueError, match="n_components"):
        clf.compress(X, n_components=9)
    assert clf.transform(X_test).shape[1] == clf.n_components_  # it kept its basis


def test_in_pipelines_and_searches(digits):
    X, X_test, y, y_test = digits
    quick = {"hidden_layer_sizes": 32, "learning_rate": 0.01, "max_epochs": 10}
    classify = make_pipeline(StandardScaler(), make(**quick))
    assert classify.fit(X, y).score(X_test, y_test) > 0.9
    embed = make_pipeline(make(**quick), LogisticRegression(max_iter=1000))
    assert embed.fit(X, y).score(X_test, y_test) > 0.9
    neighbours = make_pipeline(make(**quick), KNeighborsClassifier())
    assert neighbours.fit(X, y).score(X_test, y_test) > 0.9
    search = GridSearchCV(
        classify, {"softrankmlpclassifier__temperature": [1.0, 30.0]}, cv=2
    ).fit(X, y)
    best = search.best_params_["softrankmlpclassifier__temperature"]
    assert search.best_estimator_[-1].temperature_ == best


def test_set_output(digits):
    X, _, y, _ = digits
    frame = make(n_components=2).set_output(transform="pandas").fit(X, y).transform(X)
    assert list(frame.columns) == ["softrankmlpclassifier0", "softrankmlpclassifier1"]


# -- Same seed, same numbers -----------------------------------------------------------


@pytest.mark.parametrize("params", [{}, {"dropout": 0.3}, {"early_stopping": True}])
def test_global_generators_neither_matter_nor_move(digits, params):
    X, _, y, _ = digits
    torch.manual_seed(1)
    np.random.seed(1)  # noqa: NPY002
    a = make(**params).fit(X, y)
    torch.manual_seed(2)
    np.random.seed(2)  # noqa: NPY002
    torch_state = torch.get_rng_state()
    numpy_state = np.random.get_state()  # noqa: NPY002
    b = make(**params).fit(X, y)
    make(random_state=None).fit(X, y)
    b.predict(X), b.transform(X), pickle.loads(pickle.dumps(b))
    np.testing.assert_array_equal(weights(a), weights(b))
    np.testing.assert_array_equal(a.transform(X), b.transform(X))
    assert a.history_ == b.history_
    assert torch.equal(torch_state, torch.get_rng_state())
    np.testing.assert_array_equal(numpy_state[1], np.random.get_state()[1])  # noqa: NPY002


def test_seeds_matter(digits):
    X, _, y, _ = digits
    assert (weights(make().fit(X, y)) != weights(make(random_state=1).fit(X, y))).any()
    none = [weights(make(random_state=None).fit(X, y)) for _ in range(2)]
    assert (none[0] != none[1]).any()


@pytest.mark.parametrize("backend", ["loky", "threading"])
def test_jobs_and_threads_give_the_same_numbers(digits, backend):
    X, _, y, _ = digits
    clf = make(dropout=0.2)
    expected = weights(clone(clf).fit(X, y))
    fits = Parallel(n_jobs=2, backend=backend)(
        delayed(clone(clf).fit)(X, y) for _ in range(3)
    )
    for fitted in fits:
        np.testing.assert_array_equal(weights(fitted), expected)
    a = cross_val_score(clf, X, y, cv=3, n_jobs=2)
    np.testing.assert_array_equal(a, cross_val_score(clf, X, y, cv=3))


def test_number_of_threads_gives_the_same_numbers(digits):
    X, X_test, y, _ = digits
    results, before = [], torch.get_num_threads()
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            clf = SoftRankMLPClassifier(max_epochs=5, random_state=0).fit(X, y)
            results.append((weights(clf), clf.transform(X_test)))
    finally:
        torch.set_num_threads(before)
    np.testing.assert_array_equal(results[0][0], results[1][0])
    # Training takes one thread, but the products of many rows two.
    np.testing.assert_allclose(results[0][1], results[1][1], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_pickle_predicts_the_same(digits, dtype):
    X, X_test, y, _ = (
        part.astype(dtype) if part.ndim == 2 else part for part in digits
    )
    clf = make(temperature=3.0, normalization="batch", dropout=0.1).fit(X, y)
    for twin in (pickle.loads(pickle.dumps(clf)), copy.deepcopy(clf)):
        for method in ("predict", "predict_proba", "transform", "embed"):
            np.testing.assert_array_equal(
                getattr(twin, method)(X_test), getattr(clf, method)(X_test)
            )
        assert twin.history_ == clf.history_
        assert twin.partial_fit(X, y).n_iter_ == clf.n_iter_ + 1
        assert twin.set_params(warm_start=True, max_epochs=1).fit(X, y).n_iter_ == 1


@pytest.mark.parametrize(
    "params",
    [{}, {"hidden_layer_sizes": (128,) * 6, "normalization": "batch", "max_epochs": 3}],
)
def test_a_pickle_holds_neither_optimizer_nor_data(params):
    X, y = make_classification(4000, 50, n_informative=20, n_classes=5, random_state=0)
    # A small basis: that of all columns is as large as a layer.
    clf = SoftRankMLPClassifier(n_components=8, random_state=0, **params).fit(X, y)
    size = sum(t.numel() * t.element_size() for t in clf.module_.state_dict().values())
    assert len(pickle.dumps(clf)) <= 1.3 * size + 20_000
    assert len(pickle.dumps(clf.partial_fit(X, y))) <= 1.3 * size + 20_000


def test_a_model_of_a_device_that_is_not_here_predicts_on_the_cpu(blobs):
    X, y = blobs
    clf = make().fit(X, y)
    clf.device = "cuda:7"
    twin = pickle.loads(pickle.dumps(clf))
    np.testing.assert_array_equal(twin.predict(X), clf.predict(X))


# -- Labels, types and containers ------------------------------------------------------


@pytest.mark.parametrize(
    "names",
    [["b", "a", "c"], [True, False], [1.0, 0.5e1, -2.0], [10, 30, 20]],
    ids=["string", "bool", "float", "int"],
)
@pytest.mark.parametrize("as_object", [False, True])
def test_labels(blobs, names, as_object):
    X, codes = blobs
    y = np.array(names, dtype=object if as_object else None)[codes % len(names)]
    if as_object and not isinstance(names[0], str):
        y = y.astype(str).astype(object)
    clf = make(max_epochs=30, learning_rate=0.01).fit(X, y)
    predicted = clf.predict(X)
    assert clf.classes_.tolist() == sorted(set(y.tolist()))
    assert predicted.dtype == clf.classes_.dtype
    assert clf.score(X, y) > 0.9
    if len(names) == 2:
        assert clf.decision_function(X).shape == (120,)
        positive = predicted == clf.classes_[1]
        np.testing.assert_array_equal(clf.decision_function(X) > 0, positive)
        np.testing.assert_allclose(
            clf.predict_proba(X)[:, 1], 1 / (1 + np.exp(-clf.decision_function(X)))
        )


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_dtype_in_dtype_out(blobs, dtype):
    X, y = blobs
    clf = make().fit(X, y)
    for method in ("transform", "embed", "predict_proba", "decision_function"):
        assert getattr(clf, method)(X.astype(dtype)).dtype == dtype


def test_single_precision_agrees_with_double(digits):
    X, X_test, y, _ = digits
    clf = make().fit(X, y)
    np.testing.assert_allclose(
        clf.predict_proba(X_test.astype(np.float32)),
        clf.predict_proba(X_test),
        atol=1e-5,
    )


@pytest.mark.parametrize(
    "kind", [sparse.csr_matrix, sparse.csc_array, sparse.coo_array]
)
def test_sparse_equals_dense(digits, kind):
    X, X_test, y, _ = digits
    dense, thin = make().fit(X, y), make().fit(kind(X), y)
    np.testing.assert_array_equal(weights(dense), weights(thin))
    np.testing.assert_array_equal(thin.transform(kind(X_test)), dense.transform(X_test))
    np.testing.assert_array_equal(thin.predict(kind(X_test)), dense.predict(X_test))


def test_sparse_rows_are_never_densified_whole():
    # 40,000 x 20,000 would take 3.2 GB in single precision.
    X = sparse.random_array((40_000, 20_000), density=1e-4, format="csr", rng=0)
    X = X.astype(np.float32)
    y = np.arange(40_000) % 2
    largest = 0

    class Watch(sparse.csr_array):
        def toarray(self, *args, **kwargs):
            nonlocal largest
            largest = max(largest, self.shape[0])
            return super().toarray(*args, **kwargs)

    clf = make(hidden_layer_sizes=(2,), max_epochs=1, batch_size=512)
    clf.fit(Watch(X), y).predict(Watch(X))
    assert 0 < largest <= 4096


def test_frames_give_names_and_are_checked(blobs):
    X, y = blobs
    frame = pd.DataFrame(X, columns=list("abcdef"))
    clf = make().fit(frame, pd.Series(y))
    assert clf.feature_names_in_.tolist() == list("abcdef")
    np.testing.assert_array_equal(weights(clf), weights(make().fit(X, y)))
    with pytest.raises(ValueError, match="feature names"):
        clf.predict(frame[list("fedcba")])


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_read_only_memory_maps(digits, tmp_path, dtype):
    X, _, y, _ = digits
    path = tmp_path / "X.npy"
    np.save(path, X.astype(dtype))
    mapped = np.load(path, mmap_mode="r")
    clf = make().fit(mapped, y)
    np.testing.assert_array_equal(
        clf.transform(mapped), make().fit(X.astype(dtype), y).transform(X.astype(dtype))
    )


def test_strange_memory_layouts(digits):
    X, _, y, _ = digits
    expected = make().fit(X, y).transform(X)
    for same in (np.asfortranarray(X), np.repeat(X, 2, axis=1)[:, ::2], X[::-1][::-1]):
        np.testing.assert_allclose(make().fit(same, y).transform(same), expected)


# -- Weights ---------------------------------------------------------------------------


@settings(max_examples=15)
@given(seed=st.integers(0, 1000), n=st.integers(4, 30), as_sparse=st.booleans())
def test_a_weight_is_a_repetition(seed, n, as_sparse):
    rng = np.random.default_rng(seed)
    X, y = rng.standard_normal((n, 3)), np.arange(n) % 2
    weight = rng.integers(0, 4, size=n)
    weight[:2] = 1
    rows = rng.permutation(np.repeat(np.arange(n), weight))
    wrap = sparse.csr_array if as_sparse else np.asarray
    clf = make(batch_size=128)
    a = clone(clf).fit(wrap(X), y, sample_weight=weight)
    b = clone(clf).fit(wrap(X[rows]), y[rows])
    np.testing.assert_array_equal(weights(a), weights(b))
    np.testing.assert_array_equal(a.transform(X), b.transform(X))


def test_weights_in_mini_batches_shift_the_decision(blobs):
    X, y = blobs
    X = X / 3  # overlapping classes
    plain = make(max_epochs=20, learning_rate=0.01).fit(X, y)
    heavy = make(max_epochs=20, learning_rate=0.01).fit(
        X, y, sample_weight=np.where(y == 2, 20.0, 1.0)
    )
    by_class = make(max_epochs=20, learning_rate=0.01, class_weight={2: 20.0}).fit(X, y)
    assert (heavy.predict(X) == 2).mean() > (plain.predict(X) == 2).mean() + 0.05
    np.testing.assert_allclose(weights(heavy), weights(by_class), atol=1e-6)
    scaled = make(max_epochs=20, learning_rate=0.01).fit(
        X, y, sample_weight=np.where(y == 2, 60.0, 3.0)
    )
    np.testing.assert_allclose(weights(scaled), weights(heavy), atol=1e-6)


def test_balanced_class_weight():
    X, y = make_classification(
        400, 5, weights=[0.95], class_sep=0.3, flip_y=0.1, random_state=0
    )
    plain = make().fit(X, y)
    balanced = make(class_weight="balanced").fit(X, y)
    assert balanced.predict(X).sum() > plain.predict(X).sum() + 20


# -- Training options ------------------------------------------------------------------


def test_learning_rate_follows_a_power_of_the_temperature(blobs):
    X, y = blobs
    constant = {"lr_schedule": "constant"}
    for optimizer, rate in (("adam", 0.01), ("adamw", 0.01), ("sgd", 0.15)):
        clf = make(optimizer=optimizer, temperature=9.0, **constant).fit(X, y)
        assert clf.net_.optimizer_.param_groups[0]["lr"] == pytest.approx(rate)
    schedule = LinearTemperature(1.0, 9.0)
    for optimizer, rates in (
        ("adam", [0.01] * 5),
        ("sgd", 0.05 * np.sqrt([1.0, 3.0, 5.0, 7.0, 9.0])),
    ):
        clf = make(optimizer=optimizer, temperature=schedule, **constant).fit(X, y)
        np.testing.assert_allclose([r["lr"] for r in clf.history_], rates)
        assert clf.temperature_ == 9.0
    cosine = [record["lr"] for record in make().fit(X, y).history_]
    np.testing.assert_allclose(
        cosine, 0.01 * (1 + np.cos(np.pi * np.arange(5) / 5)) / 2
    )


def test_history(blobs):
    clf = make(early_stopping=True, temperature=2.0).fit(*blobs)
    assert [record["epoch"] for record in clf.history_] == [1, 2, 3, 4, 5]
    assert clf.n_iter_ == 5
    for record in clf.history_:
        assert set(record) == {
            *("epoch", "train_loss", "valid_loss", "valid_acc", "temperature", "lr")
        }
        assert all(type(value) in (int, float) for value in record.values())
    losses = [record["train_loss"] for record in clf.history_]
    assert losses[-1] < losses[0]


def test_early_stopping_goes_back_to_the_best_epoch(digits):
    X, _, y, _ = digits
    held = {}

    class Keep(Callback):
        def on_epoch_end(self, net, **kwargs):
            epoch = net.history[-1, "epoch"]
            held[epoch] = {k: v.clone() for k, v in net.module_.state_dict().items()}

    clf = make(
        early_stopping=True,
        max_epochs=200,
        n_iter_no_change=3,
        lr_schedule="constant",
        learning_rate=0.01,
        callbacks=[Keep()],
    ).fit(X, y)
    assert clf.n_iter_ < 200
    best = BestEpoch(3, clf.tol)
    for record in clf.history_:
        best.update(record["epoch"], record["valid_acc"], record["valid_loss"])
    assert best.is_exhausted
    # The callback does not see the epoch that stops the training; it may be the best.
    assert clf.n_iter_ not in held
    kept = clf.module_.state_dict()
    same = [e for e in held if all(torch.equal(held[e][k], kept[k]) for k in kept)]
    assert same == [e for e in [best.epoch] if e < clf.n_iter_]


# Once in the stack, once by skorch's loop.
@pytest.mark.parametrize("callbacks", [None, [Callback()]], ids=["stack", "skorch"])
def test_early_stopping_waits_for_accuracy_alone_under_a_schedule(blobs, callbacks):
    clf = make(
        temperature=ExponentialTemperature(1.0, 30.0),
        early_stopping=True,
        n_iter_no_change=5,
        max_epochs=200,
        callbacks=callbacks,
    ).fit(*blobs)
    best, last_rise = -1.0, 0
    for record in clf.history_:
        if record["valid_acc"] > best:
            best, last_rise = record["valid_acc"], record["epoch"]
    assert clf.n_iter_ == last_rise + 5


@pytest.mark.parametrize("callbacks", [None, [Callback()]], ids=["stack", "skorch"])
def test_early_stopping_needs_rows_on_both_sides(blobs, callbacks):
    X, y = blobs
    clf = make(early_stopping=True, callbacks=callbacks)
    weight = np.zeros(len(X))
    weight[[0, 50]] = 1.0  # Of two classes.
    for fraction, n_valid in ((0.9, 2), (0.99, 2)):
        clf.set_params(validation_fraction=fraction)
        with pytest.raises(ValueError, match=f"both to train.*got {n_valid} of 2 rows"):
            clf.fit(X, y, weight)


@pytest.mark.parametrize("callbacks", [None, [Callback()]], ids=["stack", "skorch"])
def test_validation_losses_of_a_schedule_compare(blobs, callbacks):
    # Of a network that stands still, at temperatures from 1 to 30.
    clf = make(
        temperature=ExponentialTemperature(1.0, 30.0),
        early_stopping=True,
        learning_rate=1e-12,
        callbacks=callbacks,
    ).fit(*blobs)
    losses = [record["valid_loss"] for record in clf.history_]
    np.testing.assert_allclose(losses, losses[0], rtol=1e-5)


def test_warm_start_goes_on_from_the_weights(blobs):
    X, y = blobs
    clf = make(warm_start=True, learning_rate=1e-12).fit(X, y)
    first = weights(clf)
    np.testing.assert_allclose(weights(clf.fit(X, y)), first, atol=1e-8)
    cold = make(learning_rate=1e-12).fit(X, y)
    cold.set_params(random_state=1)
    assert np.abs(weights(cold.fit(X, y)) - first).max() > 1e-3
    with pytest.raises(ValueError, match="warm_start=True needs the classes"):
        clf.fit(X[:80], y[:80])
    with pytest.raises(ValueError, match="needs the 6 columns of the previous fit"):
        clf.fit(X[:, :5], y)
    assert clf.n_features_in_ == 6
    with pytest.raises(ValueError, match="module's parameters must stay"):
        clf.set_params(hidden_layer_sizes=(4,)).fit(X, y)


def test_partial_fit_is_an_epoch_and_goes_on(blobs):
    X, y = blobs
    clf = make(temperature=4.0, learning_rate=0.01)
    with pytest.raises(ValueError, match="classes must be passed"):
        clf.partial_fit(X, y)
    clf.partial_fit(X[:40], y[:40], classes=[0, 1, 2])  # one class at first
    assert clf.classes_.tolist() == [0, 1, 2]
    for _ in range(60):
        clf.partial_fit(X, y)
    assert clf.n_iter_ == 61
    assert [record["epoch"] for record in clf.history_] == list(range(1, 62))
    assert clf.score(X, y) > 0.95
    clf.set_params(temperature=40.0).partial_fit(X, y)
    assert clf.temperature_ == 40.0
    with pytest.raises(ValueError, match="must hold only the classes"):
        clf.partial_fit(X, y + 1)
    with pytest.raises(ValueError, match="balanced"):
        clf.set_params(class_weight="balanced").partial_fit(X, y)


def test_partial_fit_after_fit_starts_from_its_weights(blobs):
    X, y = blobs
    clf = make().fit(X, y)
    before = weights(clf)
    clf.set_params(learning_rate=1e-12).partial_fit(X, y)
    np.testing.assert_allclose(weights(clf), before, atol=1e-8)
    assert clf.n_iter_ == 6


def test_partial_fit_orders_differ_between_calls(blobs):
    X, y = blobs
    once = make(max_epochs=2, lr_schedule="constant").fit(X, y)
    calls = make().partial_fit(X, y, classes=[0, 1, 2]).partial_fit(X, y)
    # To a rounding: `partial_fit` trains with skorch.
    np.testing.assert_allclose(weights(once), weights(calls), rtol=0, atol=1e-6)


def test_callbacks_are_copied_and_net_params_reach_the_net(blobs):
    class Count(Callback):
        epochs = 0

        def on_epoch_end(self, net, **kwargs):
            self.epochs += 1

    callback = Count()
    clf = make(
        callbacks=[("count", callback)], net_params={"iterator_valid__batch_size": 7}
    ).fit(*blobs)
    assert callback.epochs == 0
    assert dict(clf.net_.callbacks_)["count"].epochs == 5
    assert clf.net_.iterator_valid__batch_size == 7
    own = {"net_params": {"optimizer": torch.optim.RMSprop}}
    rms = make(optimizer="adamw", **own).fit(*blobs)
    assert isinstance(rms.net_.optimizer_, torch.optim.RMSprop)


def test_a_net_that_a_stack_has_trained_trains_on_by_itself(blobs):
    X, y = blobs
    params = {"lr_schedule": "constant", "learning_rate": 0.01, "weight_decay": 0.1}
    for change in ({}, {"lr": 0.5}, {"optimizer__weight_decay": 0.3}):
        clf = make(**params).fit(X, y)
        before = weights(clf)
        net = clf.net_.set_params(**change, max_epochs=1)
        net.partial_fit(X.astype(np.float32), y)
        assert net.history[-1, "lr"] == change.get("lr", 0.01)
        decays = [group["weight_decay"] for group in net.optimizer_.param_groups]
        assert max(decays) == change.get("optimizer__weight_decay", 0.1)
        assert not np.array_equal(weights(clf), before)


def test_a_first_fit_imports_no_compiler():
    code = """
import pickle, sys
from sklearn.datasets import load_iris
from sksoftrank import SoftRankMLPClassifier
X, y = load_iris(return_X_y=True)
clf = SoftRankMLPClassifier(8, normalization="batch", max_epochs=2).fit(X, y)
pickle.loads(pickle.dumps(clf)).predict(X)
print(sorted({"sympy", "torch._dynamo", "torch._inductor"} & set(sys.modules)))
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


def test_weight_decay_reaches_an_optimizer_of_net_params(blobs):
    norms = [
        np.linalg.norm(
            weights(
                make(
                    weight_decay=weight_decay,
                    learning_rate=0.05,
                    optimizer="adamw",
                    net_params={"optimizer": torch.optim.SGD},
                ).fit(*blobs)
            )
        )
        for weight_decay in (0.0, 10.0)
    ]
    assert norms[1] < 0.5 * norms[0]


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"net_params": {"optimizer__weight_decay": 1.0}}, "optimizer__weight_decay"),
        ({"net_params": {"optimizer__lr": 1.0}}, "optimizer__lr"),
        ({"net_params": {"iterator_train__batch_size": 3}}, "__batch_size"),
        ({"net_params": {"module__activation": "tanh"}}, "module__activation"),
        (
            {"optimizer": "sgd", "net_params": {"optimizer": torch.optim.RMSprop}},
            "optimizer must stay 'adamw' where net_params names one, got 'sgd'",
        ),
        (
            {
                "optimizer": "adamw",
                "weight_decay": 1.0,
                "net_params": {"optimizer": torch.optim.Rprop},
            },
            "weight_decay must be 0 for the optimizer .*Rprop.*Set weight_decay=0",
        ),
        (
            {"callbacks": [("mine", LRScheduler())]},
            "lr_schedule must be 'constant' where callbacks hold an LRScheduler",
        ),
        (
            {"callbacks": [EarlyStopping()], "early_stopping": True},
            "early_stopping must be False where callbacks hold an EarlyStopping",
        ),
        (
            {"callbacks": [("stop", EarlyStopping())]},
            "must not monitor 'valid_loss' without rows to validate on",
        ),
        (
            {"net_params": {"callbacks__early_stopping": None}},
            "callbacks__early_stopping",
        ),
        ({"net_params": {"callbacks__lr_schedule": None}}, "callbacks__lr_schedule"),
        ({"net_params": {"optimizer": "adam"}}, "a class such as .*got 'adam'"),
        ({"net_params": {"optimizer": None}}, "a class such as .*got None"),
        ({"net_params": {"compile__mode": "default"}}, "compile must be True where"),
    ],
)
def test_what_is_given_twice_or_without_effect_is_refused(blobs, params, message):
    clf = make(**params)
    with pytest.raises(ValueError, match=message):
        clf.fit(*blobs)
    assert not hasattr(clf, "classes_")


def test_partial_fit_refuses_early_stopping(blobs):
    X, y = blobs
    clf = make(early_stopping=True)
    with pytest.raises(ValueError, match="early_stopping must be False in partial_fit"):
        clf.partial_fit(X, y, classes=[0, 1, 2])


@pytest.mark.parametrize("weight", [-1.0, np.nan, np.inf, "heavy", None])
def test_class_weights_must_be_weights(blobs, weight):
    clf = make(class_weight={0: 1.0, 1: weight, 2: 1.0})
    for fit in (clf.fit, lambda X, y: clf.partial_fit(X, y, classes=[0, 1, 2])):
        with pytest.raises(ValueError, match=f"class_weight must.*got {weight!r} for"):
            fit(*blobs)


def test_weights_have_mean_one_on_each_side_of_the_validation_split(blobs):
    X, y = blobs
    weight = np.random.default_rng(0).uniform(0.1, 10.0, len(X))
    clf = make(early_stopping=True, validation_fraction=0.3)
    training = clf._prepare(X, y, weight)
    member = training.net._make_member(training.dataset)
    for batches in (member.batches, member.valid):
        rows = batches.gather(batches.indices, slice(0, batches.n_rows))[2]
        assert rows.mean() == pytest.approx(1.0)


def test_verbose_prints_and_silence_is_silent(blobs, capsys):
    make().fit(*blobs)
    assert capsys.readouterr().out == ""
    make(verbose=1).fit(*blobs)
    assert "train_loss" in capsys.readouterr().out


def test_batch_normalization_survives_a_last_row(blobs):
    X, y = blobs
    make(normalization="batch", batch_size=17).fit(X, y)  # 120 = 7 * 17 + 1


def test_interrupted_fit_warns_and_is_fitted(blobs):
    class Stop(Callback):
        def on_epoch_begin(self, net, **kwargs):
            if net.history[-1, "epoch"] == 3:
                raise KeyboardInterrupt

    with pytest.warns(UserWarning, match="after epoch 2 of 5"):
        clf = make(callbacks=[Stop()]).fit(*blobs)
    assert clf.n_iter_ == 2
    assert clf.predict(blobs[0]).shape == (120,)


# -- Bad input -------------------------------------------------------------------------

BAD_PARAMETERS = [
    ("temperature", 0),
    ("temperature", -1.0),
    ("temperature", np.nan),
    ("temperature", np.inf),
    ("temperature", "hot"),
    ("n_components", 0),
    ("n_components", 1.5),
    ("n_components", 9),
    ("n_components", "many"),
    ("compression_tol", -0.1),
    ("optimizer", "lbfgs"),
    ("activation", "step"),
    ("normalization", "group"),
    ("device", "abacus"),
    ("device", "cuda:99"),
    ("learning_rate", 0.0),
    ("learning_rate", "fast"),
    ("weight_decay", -1.0),
    ("lr_schedule", "linear"),
    ("label_smoothing", 1.0),
    ("max_grad_norm", 0.0),
    ("batch_size", 0),
    ("batch_size", 2.5),
    ("max_epochs", 0),
    ("dropout", 1.0),
    ("init_scale", 0.0),
    ("validation_fraction", 1.0),
    ("n_iter_no_change", 0),
    ("hidden_layer_sizes", ()),
    ("hidden_layer_sizes", (8, 0)),
    ("hidden_layer_sizes", 0),
    ("hidden_layer_sizes", (8.5,)),
    ("random_state", "seed"),
    ("class_weight", "heavy"),
    ("net_params", {"lr": 1.0}),
    ("callbacks", [3]),
]


@pytest.mark.parametrize(("name", "value"), BAD_PARAMETERS, ids=str)
def test_a_bad_parameter_is_named_before_training(blobs, monkeypatch, name, value):
    X, y = blobs
    trained = []
    for training in (
        "sksoftrank.training.SoftRankNet.fit_loop",
        "sksoftrank.training._grouping.train",
    ):
        monkeypatch.setattr(training, lambda *a, **k: trained.append(1))
    clf = make(**{name: value})
    with pytest.raises((ValueError, TypeError), match=name) as caught:
        clf.fit(X, y)
    shown = {"net_params": "'lr'", "callbacks": "got 3."}.get(name, str(value))
    assert shown in str(caught.value)
    assert not trained
    assert not hasattr(clf, "classes_")


def with_value(X, value):
    X = X.copy()
    X[3, 2] = value
    return X


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda X, y: (with_value(X, np.nan), y), "NaN"),
        (lambda X, y: (with_value(X, np.inf), y), "infinity"),
        (lambda X, y: (X, np.where(y == 0, np.nan, y)), "NaN"),
        (lambda X, y: (X, np.zeros(120)), "at least two classes"),
        (lambda X, y: (X, y[:-1]), "inconsistent numbers of samples"),
        (lambda X, y: (X, np.linspace(0, 1, 120)), "continuous"),
        (lambda X, y: (X[:, 0], y), "2D array"),
        (lambda X, y: (X, np.stack([y, y], 1)), "1d array"),
        (lambda X, y: (X, y, -np.ones(120)), "Negative values in data"),
        (lambda X, y: (X, y, np.ones(7)), "sample_weight"),
        (lambda X, y: (X, y, np.full(120, np.nan)), "NaN"),
        (lambda X, y: (X, y, np.zeros(120)), "sample_weight|sample weights|zero"),
        (lambda X, y: (with_value(X, -1e39), y), "single precision, got -1e\\+39"),
        (lambda X, y: (sparse.csr_array(with_value(X, 1e39)), y), "got 1e\\+39"),
        (lambda X, y: (DataLoader(TensorDataset(torch.ones(3, 6))), y), "X=loader.d"),
    ],
)
def test_bad_data_is_refused_and_nothing_is_lost(blobs, change, message):
    X, y = blobs
    clf = make().fit(X, y)
    before, state = clf.predict_proba(X), dict(vars(clf))
    with pytest.raises(ValueError, match=message):
        clf.fit(*change(X, y))
    assert vars(clf) == state
    np.testing.assert_array_equal(clf.predict_proba(X), before)


def test_divergence_leaves_the_fitted_estimator_as_it_was(blobs):
    X, y = blobs
    clf = make().fit(X, y)
    before = clf.predict_proba(X)
    clf.set_params(learning_rate=1e30, optimizer="sgd")
    for method in (clf.fit, clf.partial_fit):
        with pytest.raises(FloatingPointError, match="learning rate"):
            method(X, y)
        np.testing.assert_array_equal(clf.predict_proba(X), before)


@pytest.mark.parametrize("callbacks", [None, [Callback()]], ids=["stack", "skorch"])
def test_a_last_step_that_diverges_is_seen(blobs, callbacks):
    X, y = blobs
    # One step: the loss before it is that of the initial weights.
    params = {"batch_size": 120, "max_epochs": 1, "callbacks": callbacks}
    clf = make(**params).fit(X, y)
    before = clf.predict_proba(X)
    clf.set_params(learning_rate=1e30, optimizer="sgd", lr_schedule="constant")
    for method in (clf.fit, clf.partial_fit):
        with pytest.raises(FloatingPointError, match="learning rate"):
            method(X, y)
        np.testing.assert_array_equal(clf.predict_proba(X), before)


def test_the_best_of_a_callback_counts_where_its_weights_are_kept(blobs):
    X, y = blobs
    clf = make(
        temperature=ExponentialTemperature(1.0, 30.0),
        max_epochs=12,
        callbacks=[EarlyStopping(monitor="train_loss", patience=3)],
    ).fit(X, y)
    assert clf.temperature_ == clf.history_[-1]["temperature"]


def test_prediction_checks_its_input(blobs):
    X, y = blobs
    clf = make()
    for method in ("predict", "transform", "embed", "decision_function", "compress"):
        with pytest.raises(NotFittedError):
            getattr(clf, method)(X)
    assert not hasattr(clf, "module_")
    clf.fit(X, y)
    with pytest.raises(ValueError, match=r"\[3\] too. Drop rows of other classes"):
        clf.compress(X, y + 1)
    with pytest.raises(ValueError, match="single precision"):
        clf.compress(with_value(X, 1e39), y)
    with pytest.raises(ValueError, match="'compression_tol' parameter of compress"):
        clf.compress(X, y, compression_tol=3)
    for method in ("predict", "predict_proba", "transform", "embed", "compress"):
        with pytest.raises(ValueError, match="6 features"):
            getattr(clf, method)(X[:, :5])
        with pytest.raises(ValueError, match="NaN"):
            getattr(clf, method)(with_value(X, np.nan))


def test_batch_normalization_needs_two_rows(blobs):
    X, y = blobs
    with pytest.raises(ValueError, match="batch_size=1"):
        make(normalization="batch", batch_size=1).fit(X, y)


@pytest.mark.parametrize("method", ["fit", "partial_fit"])
def test_batch_normalization_needs_two_rows_that_count(blobs, method):
    X, y = blobs
    clf = make(normalization="batch")
    order = np.argsort(y)[[0, -1]]
    params = {"sample_weight": np.array([1.0, 0.0])}
    if method == "partial_fit":
        params["classes"] = np.unique(y)
    with pytest.raises(ValueError, match=r"1 rows of X .to train on.*at least 2"):
        getattr(clf, method)(X[order], y[order], **params)


def test_batch_normalization_needs_two_rows_beside_those_held_out(blobs):
    X, y = blobs
    rows = np.concatenate([np.flatnonzero(y == c)[:2] for c in np.unique(y)[:2]])
    clf = make(normalization="batch", early_stopping=True, validation_fraction=0.75)
    with pytest.raises(ValueError, match=r"1 rows of X .to train on"):
        clf.fit(X[rows], y[rows])


def test_weights_whose_sum_overflows_are_weights(blobs):
    X, y = blobs
    weight = np.random.default_rng(0).integers(1, 4, len(X)).astype(float)
    clf, expected = make().fit(X, y, 4e307 * weight), make().fit(X, y, weight)
    np.testing.assert_allclose(weights(clf), weights(expected), rtol=1e-5)
    assert clf.n_components_ == expected.n_components_


def test_a_weight_is_repetition_for_few_rows_in_small_batches():
    rng = np.random.default_rng(0)
    X, y = rng.standard_normal((30, 4)), np.arange(30) % 3
    times = rng.integers(0, 4, 30)
    assert times.sum() <= 64
    for batch_size in (8, 64):
        weighed = make(batch_size=batch_size).fit(X, y, sample_weight=times)
        order = rng.permutation(times.sum())
        repeated = make(batch_size=batch_size).fit(
            np.repeat(X, times, axis=0)[order], np.repeat(y, times)[order]
        )
        np.testing.assert_array_equal(weights(weighed), weights(repeated))


# -- What a notebook shows -------------------------------------------------------------


@pytest.mark.skipif(
    np.lib.NumpyVersion(np.__version__) < "2.1.0",
    reason="scikit-learn's own HTML compares parameters as numpy 2.0 can't",
)
def test_html_says_what_was_learned_and_text_stays_as_it_was():
    X, y = load_iris(return_X_y=True)
    weight = np.arange(len(y)) % 3
    clf = SoftRankMLPClassifier((8,), max_epochs=3, dropout=0.0, random_state=0)
    assert "right in training" not in clf._repr_html_()
    text = str(clf)
    clf.fit(X, y, sample_weight=weight)
    assert clf.training_accuracy_ == pytest.approx(clf.score(X, y, weight))
    assert str(clf) == text
    line = (
        f"<p>temperature 10 · rank {clf.rank_} of 8 · {clf.n_components_} columns · "
        f"3 classes · 3 epochs · {100 * clf.training_accuracy_:.1f} % right in "
        "training</p>"
    )
    assert clf._repr_html_().endswith(line)
    assert make_pipeline(clf)._repr_html_()
