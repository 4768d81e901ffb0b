"""On a GPU, where there is one: what the CPU learns, to a rounding, and as much."""

import copy
import gc
import pickle

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.model_selection import GridSearchCV

import sksoftrank
from sksoftrank import (
    OODDetector,
    OODSearchCV,
    SoftRankCNNClassifier,
    SoftRankEnsembleClassifier,
    SoftRankMLPClassifier,
    SoftRankTransformerClassifier,
    StackedGridSearchCV,
)
from sksoftrank.estimators._stacked_fit import PendingFit, fit_stacked
from sksoftrank.inspection import compress_network, rank_profile
from sksoftrank.losses import LinearTemperature
from sksoftrank.training import _checkpoint, _cuda_graph, _grouping

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")


@pytest.fixture(autouse=True)
def globals_are_left_alone():
    """Check that the user's draws and switches are as they were."""
    state = torch.cuda.get_rng_state()
    switches = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    yield
    assert torch.equal(torch.cuda.get_rng_state(), state)
    assert switches == (
        torch.backends.cuda.matmul.allow_tf32,
        torch.backends.cudnn.allow_tf32,
    )


def mlp(**params):
    """Return a network that is smooth: at a kink a rounding would decide."""
    own = {"hidden_layer_sizes": (24, 24), "activation": "tanh", "max_epochs": 4}
    own |= {"dropout": 0.0, "device": "cuda", "random_state": 0}
    return SoftRankMLPClassifier(**{**own, **params})


def cnn(**params):
    own = {"channels": (4, 8), "input_shape": (1, 8, 8), "max_epochs": 2}
    return SoftRankCNNClassifier(**{**own, **shared(), **params})


def vit(**params):
    own = {"d_model": 16, "depth": 1, "n_heads": 2, "patch_size": 2}
    own |= {"input_shape": (1, 8, 8), "max_epochs": 2}
    return SoftRankTransformerClassifier(**{**own, **shared(), **params})


def shared():
    return {"dropout": 0.0, "device": "cuda", "random_state": 0}


ESTIMATORS = {"mlp": mlp, "cnn": cnn, "vit": vit}


def difference(one, other, X):
    """Return the largest difference of logits, as a share of the largest logit."""
    a, b = one.decision_function(X), other.decision_function(X)
    return np.abs(a - b).max() / np.abs(a).max()


@pytest.mark.parametrize("optimizer", ["adamw", "adam", "sgd"])
@pytest.mark.parametrize("kind", ESTIMATORS)
def test_learns_what_the_cpu_learns(digits, monkeypatch, kind, optimizer):
    monkeypatch.setattr(_grouping, "LEAST_STEPS", 2)
    X, X_test, y, _ = digits
    there = ESTIMATORS[kind](optimizer=optimizer).fit(X[:400], y[:400])
    here = clone(there).set_params(device="cpu").fit(X[:400], y[:400])
    assert next(there.module_.parameters()).device.type == "cuda"
    assert difference(here, there, X_test) < 1e-2
    np.testing.assert_allclose(
        there.predict_proba(X_test), here.predict_proba(X_test), atol=1e-2
    )
    assert there.transform(X_test).shape[0] == len(X_test)


@pytest.mark.parametrize(
    "params",
    [
        {"normalization": None},
        {"normalization": "layer"},
        {"normalization": "batch"},
        {"optimizer": "sgd", "learning_rate": 0.05},
        {"optimizer": "adam", "weight_decay": 1e-3},
        {"max_grad_norm": 0.5, "label_smoothing": 0.1},
        {"temperature": LinearTemperature(10.0, 1.0), "batch_size": 33},
        {"class_weight": "balanced"},
    ],
    ids=str,
)
def test_stacks_learn_what_the_cpu_learns(digits, params):
    X, X_test, y, _ = digits
    fits = {}
    for device in ("cpu", "cuda"):
        fits[device] = [
            # A stack's members may have fewer rows than others.
            PendingFit(
                mlp(**{**params, "device": device, "random_state": k}), X[:n], y[:n]
            )
            for k, n in enumerate((300, 250, 300))
        ]
        fit_stacked(fits[device])
        assert [fit.error for fit in fits[device]] == [None] * 3
    for here, there in zip(*fits.values(), strict=True):
        assert difference(here.estimator, there.estimator, X_test) < 1e-3


def test_a_member_is_its_training_alone(digits):
    X, X_test, y, _ = digits
    fits = [
        PendingFit(mlp(temperature=t, dropout=0.2, random_state=3), X, y)
        for t in (0.5, 5.0)
    ]
    fit_stacked(fits)
    for fit in fits:
        alone = clone(fit.estimator).fit(X, y)
        assert difference(alone, fit.estimator, X_test) < 1e-3


@pytest.mark.parametrize("kind", ESTIMATORS)
def test_a_seed_repeats_with_dropout(digits, kind):
    X, X_test, y, _ = digits
    clf = ESTIMATORS[kind](dropout=0.3)
    first = clf.fit(X[:300], y[:300]).predict_proba(X_test)
    again = clone(clf).fit(X[:300], y[:300]).predict_proba(X_test)
    # torch's convolutions and attention add up gradients in no fixed order.
    atol = 0.0 if kind == "mlp" else 1e-4
    np.testing.assert_allclose(first, again, atol=atol, rtol=0.0)
    other = clone(clf).set_params(random_state=1).fit(X[:300], y[:300])
    assert not np.allclose(other.predict_proba(X_test), first, atol=1e-3)


@pytest.mark.parametrize("precision", ["float32", "tf32", "bf16"])
@pytest.mark.parametrize("kind", ESTIMATORS)
def test_precisions_learn(digits, kind, precision):
    X, X_test, y, y_test = digits
    clf = ESTIMATORS[kind](precision=precision, max_epochs=40).fit(X, y)
    assert clf.score(X_test, y_test) > 0.85
    assert clf.predict_proba(X_test).dtype in (np.float32, np.float64)


@pytest.mark.parametrize("kind", ESTIMATORS)
def test_is_kept_and_read(digits, kind, tmp_path):
    X, X_test, y, _ = digits
    clf = ESTIMATORS[kind]().fit(X[:300], y[:300])
    expected = clf.predict_proba(X_test)
    sksoftrank.save(clf, tmp_path / "clf.softrank")
    for other in (
        pickle.loads(pickle.dumps(clf)),
        copy.deepcopy(clf),
        sksoftrank.load(tmp_path / "clf.softrank"),
    ):
        np.testing.assert_allclose(other.predict_proba(X_test), expected, atol=1e-4)


def test_goes_on_by_parts_and_from_early_stopping(digits):
    X, X_test, y, y_test = digits
    clf = mlp(random_state=0)
    for _ in range(8):
        clf.partial_fit(X, y, classes=range(10))
    assert clf.score(X_test, y_test) > 0.85
    stopped = mlp(early_stopping=True, n_iter_no_change=3, max_epochs=60).fit(X, y)
    assert stopped.score(X_test, y_test) > 0.85
    warm = mlp(warm_start=True).fit(X, y)
    assert warm.fit(X, y).score(X_test, y_test) > 0.85


@pytest.mark.parametrize("kind", ESTIMATORS)
def test_a_checkpoint_is_gone_on_from(digits, kind, tmp_path, monkeypatch):
    monkeypatch.setattr(_checkpoint, "SHARE", float("inf"))
    X, X_test, y, _ = digits
    whole = ESTIMATORS[kind](dropout=0.2, max_epochs=3).fit(X[:300], y[:300])
    copies = []
    write = _checkpoint.Checkpoint.write

    def keep(checkpoint, steps):
        write(checkpoint, steps)
        copies.append(path.read_bytes())

    path = tmp_path / "training"
    monkeypatch.setattr(_checkpoint.Checkpoint, "write", keep)
    clf = clone(whole).set_params(checkpoint=path).fit(X[:300], y[:300])
    assert difference(whole, clf, X_test) < 1e-3
    path.write_bytes(copies[0])
    rest = clone(whole).set_params(checkpoint=path).fit(X[:300], y[:300])
    assert difference(whole, rest, X_test) < 1e-3


def test_searches(digits):
    X, X_test, y, y_test = digits
    grid = {"temperature": [1.0, 10.0]}
    # A seed's accuracy may turn on a rounding.
    stacked = StackedGridSearchCV(mlp(), grid, cv=2).fit(X, y)
    plain = GridSearchCV(mlp(), grid, cv=2).fit(X, y)
    np.testing.assert_allclose(
        stacked.cv_results_["mean_test_score"],
        plain.cv_results_["mean_test_score"],
        atol=0.01,
    )
    search = OODSearchCV(
        mlp(dropout="auto", max_epochs="auto"), n_trials=8, random_state=0
    )
    search.fit(X[:500], y[:500], X_ood=X_test[:100] + 0.1, y_ood=y_test[:100])
    assert search.score(X_test, y_test) > 0.85


def test_ensembles_ranks_and_detectors(digits):
    X, X_test, y, y_test = digits
    ensemble = SoftRankEnsembleClassifier(mlp(), n_estimators=3).fit(X, y)
    assert ensemble.score(X_test, y_test) > 0.85
    found = SoftRankMLPClassifier(target_rank=0.5, device="cuda", random_state=0)
    found.fit(X, y)
    assert found.temperature_ > 1
    assert OODDetector(found).fit(X, y).score_samples(X_test).shape == y_test.shape


@pytest.mark.parametrize("kind", ESTIMATORS)
def test_is_seen_and_cut(digits, kind):
    X, X_test, y, y_test = digits
    clf = ESTIMATORS[kind](max_epochs=10).fit(X, y)
    assert len(rank_profile(clf, X_test, y_test)) > 1
    small = compress_network(clf, X, y, random_state=0)
    assert next(small.module_.parameters()).device.type == "cuda"
    assert small.score(X_test, y_test) > clf.score(X_test, y_test) - 0.05


@pytest.mark.parametrize("kind", ESTIMATORS)
def test_memory_is_given_back(digits, kind):
    X, _, y, _ = digits

    def search():
        grid = {"temperature": [1.0, 3.0]}
        GridSearchCV(ESTIMATORS[kind](), grid, cv=2).fit(X, y)
        StackedGridSearchCV(ESTIMATORS[kind](), grid, cv=2).fit(X, y)
        gc.collect()
        return torch.cuda.memory_allocated()

    before = search()  # With what libraries keep for good.
    # A network takes some hundred kilobytes, a library's workspace 32 megabytes.
    assert max(search() for _ in range(3)) < before + 2**17


@pytest.mark.parametrize("kind", ESTIMATORS)
def test_steps_are_graphs(digits, kind, monkeypatch):
    X, _, y, _ = digits
    record, n_recorded = _cuda_graph.CudaRecorder.record, []

    def count(recorder, function, generators):
        n_recorded.append(len(generators))
        return record(recorder, function, generators)

    monkeypatch.setattr(_cuda_graph.CudaRecorder, "record", count)
    ESTIMATORS[kind](dropout=0.2, max_epochs=10).fit(X, y)
    assert n_recorded
    assert min(n_recorded) > 0
