"""A fit that was killed goes on from its file, to the same weights."""

import errno
import json
import os
import pickle
import re
import shutil
import signal
import subprocess
import sys
import warnings

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scipy import sparse
from sklearn.base import clone
from sklearn.calibration import CalibratedClassifierCV
from sklearn.callback import ProgressBar
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from skorch.callbacks import EpochTimer
from torch import nn
from torch.utils.data import DataLoader, IterableDataset

from sksoftrank import (
    OODSearchCV,
    SoftRankClassifier,
    SoftRankCNNClassifier,
    SoftRankEnsembleClassifier,
    SoftRankMLPClassifier,
    SoftRankTransformerClassifier,
    StackedGridSearchCV,
    StackedRandomizedSearchCV,
    _format,
    load,
    save,
)
from sksoftrank.estimators import _choice
from sksoftrank.estimators._recipe import Strength
from sksoftrank.losses import ExponentialTemperature, TemperatureSchedule
from sksoftrank.training import _checkpoint, _stacked
from sksoftrank.training._autograd import AutogradSteps
from sksoftrank.training._stacked import StackSteps

FITTED = ("history_", "temperature_", "logit_scale_", "auto_params_", "n_components_")
FITTED += ("n_iter_", "training_accuracy_", "rank_", "logit_norm_")


@pytest.fixture(autouse=True)
def every_epoch(monkeypatch):
    """Write at the end of each epoch, however short, and try short trainings."""
    monkeypatch.setattr(_checkpoint, "SHARE", float("inf"))
    strengths = (Strength(0.8, 0.4), Strength(1.6, 0.1))
    monkeypatch.setattr(_choice, "STRENGTHS_OF_FEW", strengths)


class Rows(IterableDataset):
    def __init__(self, X, y):
        self.X, self.y = X, y

    def __iter__(self):
        return iter(zip(self.X, self.y, strict=True))


class Noisy(nn.Module):
    """It draws from torch's global generator and from one of its own."""

    def __init__(self, n_features, n_classes, random_state):
        super().__init__()
        self.first, self.last = nn.Linear(n_features, 8), nn.Linear(8, n_classes)
        self.dropout, self.norm = nn.Dropout(0.3), nn.BatchNorm1d(8)
        self.noise = torch.Generator().manual_seed(random_state)
        self.shift = np.random.default_rng(random_state)
        self.register_buffer("n_calls", torch.zeros((), dtype=torch.int64), False)
        self.register_buffer("phase", torch.ones(8, dtype=torch.complex64))
        self.register_buffer("scale", torch.ones(8, dtype=torch.bfloat16))

    def forward(self, x):
        if self.training:
            x = x + 0.1 * torch.randn(x.shape, generator=self.noise)
            x = x + 0.1 * self.shift.standard_normal()
            self.n_calls += 1
            self.phase *= 0.9 + 0.1j
            self.scale *= 0.9
            x = x / (1 + 0.1 * self.n_calls)
        z = torch.relu(self.first(x)) * self.phase.real * self.scale.float()
        return self.last(self.dropout(self.norm(z)))


def mlp(**params):
    params = {"max_epochs": 4, "batch_size": 16, "random_state": 0, **params}
    return SoftRankMLPClassifier((8, 8), **params)


def images(cls, **params):
    params = {"max_epochs": 3, "batch_size": 32, "random_state": 0, **params}
    return cls(input_shape=(1, 2, 3), **params)


ESTIMATORS = {
    "stack": mlp(dropout=0.2),
    "stack, SGD": mlp(dropout=0.2, optimizer="sgd", max_grad_norm=0.5),
    "stack, batch normalization": mlp(dropout=0.1, normalization="batch"),
    "stack, schedules": mlp(
        temperature=ExponentialTemperature(1.0, 9.0), lr_schedule="warmup_cosine"
    ),
    "stack, early stopping": mlp(
        dropout=0.2, early_stopping=True, n_iter_no_change=3, max_epochs=15
    ),
    "strengths": SoftRankMLPClassifier((8,), random_state=0),
    "target_rank": SoftRankMLPClassifier(
        (8,), target_rank=0.9, compression_tol=0.3, max_epochs=3, dropout=0.0
    ).set_params(temperature=10.0, random_state=0),
    "autograd": mlp(dropout=0.2, precision="bf16", class_weight="balanced"),
    "autograd, early stopping": mlp(
        precision="bf16", early_stopping=True, n_iter_no_change=2, max_epochs=15
    ),
    "autograd, another optimizer": mlp(
        net_params={"optimizer": torch.optim.RMSprop}, optimizer="adamw"
    ),
    "autograd, LBFGS": mlp(
        net_params={"optimizer": torch.optim.LBFGS, "optimizer__max_iter": 3},
        batch_size=120,
        weight_decay=0.0,
        input_scale=False,
    ),
    "a DataLoader": mlp(dropout=0.2, net_params={"iterator_train__drop_last": True}),
    "CNN": images(
        SoftRankCNNClassifier, channels=(4, 4), dropout=0.2, augmentation=("flip",)
    ),
    "transformer": images(
        SoftRankTransformerClassifier, patch_size=1, d_model=8, depth=1, dropout=0.2
    ),
    "own module": SoftRankClassifier(
        Noisy, max_epochs=4, batch_size=16, random_state=0
    ),
    "no seed": mlp(dropout=0.2, random_state=None),
}


def assert_same(one, other):
    ours, theirs = one.module_.state_dict(), other.module_.state_dict()
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        assert torch.equal(tensor, theirs[name]), name
    for name in FITTED:
        assert getattr(one, name) == getattr(other, name), name
    np.testing.assert_array_equal(one.singular_values_, other.singular_values_)


def fit_and_snap(estimator, X, y, folder, monkeypatch, **params):
    """Return the fitted estimator, and a copy of its file after each epoch."""
    path, copies, write = folder / "fit", [], _format.write

    def snap(*args):
        write(*args)
        copies.append(folder / f"copy{len(copies)}")
        shutil.copy(path, copies[-1])

    with monkeypatch.context() as patch:
        patch.setattr(_format, "write", snap)
        estimator.set_params(checkpoint=path).fit(X, y, **params)
    assert not path.exists()
    return estimator, copies


def epoch_of(path):
    """Return the epochs that the network trained last has behind it."""
    return count_epochs(_format.read(path, "checkpoint")[0])


def count_epochs(content):
    states = [state for state in content["networks"] if state is not None]
    return len(dict(states[-1]["dict"])["history"]) if states else 0


@pytest.mark.kernels
@pytest.mark.parametrize("name", ESTIMATORS)
def test_a_fit_goes_on_from_each_of_its_epochs(name, blobs, tmp_path, monkeypatch):
    X, y = blobs
    # Not so easy that it has no more to learn.
    X = (X + np.random.default_rng(1).normal(0, 3, X.shape)).astype(np.float32)
    estimator, copies = fit_and_snap(
        clone(ESTIMATORS[name]), X, y, tmp_path, monkeypatch
    )
    if estimator.random_state is not None:  # To be written changes nothing.
        assert_same(clone(estimator).set_params(checkpoint=None).fit(X, y), estimator)
    is_stack = name.startswith(("stack", "strengths", "target_rank", "no seed"))
    assert estimator.net_.has_optimizer_ != is_stack
    epochs = [epoch_of(path) for path in copies]
    n_trained = len(estimator.net_.history)
    assert epochs[-n_trained:] == [*range(1, n_trained + 1)]
    if name in ("strengths", "target_rank"):
        assert len(epochs) > n_trained + 1
    else:
        assert epochs[0] == 0
    if len(copies) > 8:
        copies = copies[:: len(copies) // 6] + copies[-2:]
    for path in copies:
        other = clone(estimator).set_params(checkpoint=path).fit(X, y)
        assert_same(other, estimator)
        assert not path.exists()


@pytest.mark.parametrize("name", ["stack, early stopping", "strengths", "autograd"])
def test_no_epoch_is_trained_twice(name, blobs, tmp_path, monkeypatch):
    estimator = clone(ESTIMATORS[name])
    _, copies = fit_and_snap(estimator, *blobs, tmp_path, monkeypatch)
    n_trained = 0
    for steps in (StackSteps, AutogradSteps):

        def train_epoch(self, epoch, plain=steps.train_epoch):
            nonlocal n_trained
            n_trained += 1
            return plain(self, epoch)

        monkeypatch.setattr(steps, "train_epoch", train_epoch)
    for place in (0, 1, len(copies) // 2, len(copies) - 1):
        n_trained = 0
        clone(estimator).set_params(checkpoint=copies[place]).fit(*blobs)
        assert n_trained == len(copies) - 1 - place


def test_trials_that_diverged_are_not_tried_again(blobs, tmp_path, monkeypatch):
    X, y = blobs
    estimator = SoftRankMLPClassifier(
        (8,), input_scale=False, normalization=None, optimizer="sgd", random_state=0
    )
    train_epoch = StackSteps.train_epoch

    def diverge(self, epoch):
        losses, errors = train_epoch(self, epoch)
        if epoch == 2 and len(self.members) > 1:
            errors[0] = FloatingPointError("Training diverged")
        return losses, errors

    monkeypatch.setattr(StackSteps, "train_epoch", diverge)
    _, copies = fit_and_snap(estimator, X, y, tmp_path, monkeypatch)
    monkeypatch.setattr(StackSteps, "train_epoch", train_epoch)
    for path in (copies[1], copies[3], copies[-1]):
        other = clone(estimator).set_params(checkpoint=path).fit(X, y)
        assert_same(other, estimator)


@given(
    epoch=st.integers(0, 6),
    seed=st.integers(0, 2**31 - 1),
    dropout=st.sampled_from([0.0, 0.3]),
    batch_size=st.integers(2, 70),
    normalization=st.sampled_from([None, "batch", "layer"]),
    optimizer=st.sampled_from(["adam", "adamw", "sgd"]),
    early_stopping=st.booleans(),
    input_scale=st.booleans(),
)
@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_it_goes_on_whatever_is_trained(
    epoch, seed, blobs, tmp_path_factory, monkeypatch, **params
):
    X, y = blobs
    estimator = mlp(max_epochs=6, random_state=seed, **params)
    folder = tmp_path_factory.mktemp("fit")
    _, copies = fit_and_snap(estimator, X, y, folder, monkeypatch)
    path = copies[min(epoch, len(copies) - 1)]
    assert_same(clone(estimator).set_params(checkpoint=path).fit(X, y), estimator)


@pytest.mark.parametrize("loader", [{}, {"iterator_train__num_workers": 0}])
def test_a_stream_goes_on(loader, blobs, tmp_path, monkeypatch):
    X, y = blobs
    order = np.random.default_rng(0).permutation(len(y))
    rows = Rows(X[order].astype(np.float32), y[order].tolist())
    estimator = mlp(dropout=0.2, class_weight={1: 2.0}, net_params=loader)
    _, copies = fit_and_snap(estimator, rows, None, tmp_path, monkeypatch)
    assert len(copies) == 5
    for path in copies:
        other = clone(estimator).set_params(checkpoint=path).fit(rows)
        assert_same(other, estimator)


def test_sparse_rows_with_weights_and_groups_go_on(blobs, tmp_path, monkeypatch):
    X, y = sparse.csr_array(blobs[0]), blobs[1].astype(str)
    weight = np.linspace(0.5, 2, len(y))
    given = {"sample_weight": weight, "groups": np.arange(len(y)) // 2}
    estimator = mlp(dropout=0.2, early_stopping=True, n_iter_no_change=4)
    _, copies = fit_and_snap(estimator, X, y, tmp_path, monkeypatch, **given)
    other = clone(estimator).set_params(checkpoint=copies[2]).fit(X, y, **given)
    assert_same(other, estimator)
    for changed in ({"sample_weight": weight[::-1]}, {"groups": np.arange(len(y))}):
        with pytest.raises(ValueError, match=r"(weights|groups): .* there, .* here"):
            clone(estimator).set_params(checkpoint=copies[1]).fit(
                X, y, **{**given, **changed}
            )


def test_a_warm_start_goes_on(blobs, tmp_path, monkeypatch):
    X, y = blobs
    first = mlp(warm_start=True, dropout=0.2).fit(X, y)
    text = pickle.dumps(first)
    estimator, copies = fit_and_snap(first, X, y, tmp_path, monkeypatch)
    other = pickle.loads(text).set_params(checkpoint=copies[2]).fit(X, y)
    assert_same(other, estimator)
    with pytest.raises(ValueError, match=r"initial weights: .* there, .* here"):
        clone(estimator).set_params(checkpoint=copies[1]).fit(X, y)


KILLED = """
import os, signal, sys
import numpy as np, torch
torch.set_num_threads(1)
sys.path.insert(0, {tests!r})
from test_checkpoint import ESTIMATORS, Noisy
from sksoftrank import _format
from sksoftrank.training import _checkpoint

_checkpoint.SHARE = float("inf")
X, y = (np.load({data!r})[name] for name in "Xy")
write, n_writes = _format.write, 0

def kill(*args):
    global n_writes
    write(*args)
    n_writes += 1
    if n_writes == 3 and {dies!r}:
        os.kill(os.getpid(), signal.SIGKILL)

_format.write = kill
est = ESTIMATORS[{name!r}].set_params(checkpoint={path!r}).fit(X, y)
np.savez({out!r}, *[t.detach().numpy() for t in est.module_.parameters()])
"""


@pytest.mark.skipif(os.name != "posix", reason="Windows has no SIGKILL")
@pytest.mark.parametrize("name", ["stack", "own module"])
def test_a_process_that_is_killed_goes_on_in_another(name, blobs, tmp_path):
    data, path, out = (str(tmp_path / name) for name in ("data.npz", "fit", "out.npz"))
    np.savez(data, X=blobs[0], y=blobs[1])

    def run(dies):
        parts = {"tests": os.path.dirname(__file__), "data": data, "name": name}
        code = KILLED.format(**parts, path=path, out=out, dies=dies)
        return subprocess.run([sys.executable, "-c", code], timeout=300).returncode

    assert run(dies=True) == -signal.SIGKILL
    assert epoch_of(path) == 2
    assert not os.path.exists(out)
    assert run(dies=False) == 0
    assert not os.path.exists(path)
    whole = clone(ESTIMATORS[name]).fit(*blobs)
    for tensor, other in zip(
        whole.module_.parameters(), np.load(out).values(), strict=True
    ):
        np.testing.assert_array_equal(tensor.detach().numpy(), other)


# -- Refusals ----------------------------------------------------------------------


@pytest.fixture
def halfway(blobs, tmp_path, monkeypatch):
    """Return an estimator whose file holds two epochs of four."""
    _, copies = fit_and_snap(mlp(dropout=0.2), *blobs, tmp_path, monkeypatch)
    return mlp(dropout=0.2, checkpoint=copies[2])


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"temperature": 3.0}, r"temperature: 10\.0 there, 3\.0 here"),
        ({"dropout": 0.1}, r"dropout: 0\.2 there, 0\.1 here"),
        ({"random_state": 1}, "random_state: 0 there, 1 here; seeds drawn: "),
        ({"random_state": None}, "random_state: 0 there, None here; "),
        ({"max_epochs": 9}, "max_epochs: 4 there, 9 here"),
        ({"hidden_layer_sizes": (9,)}, r"hidden_layer_sizes: \(8, 8\) there"),
    ],
)
def test_other_parameters_are_refused(params, message, halfway, blobs):
    before = halfway.checkpoint.read_bytes()
    with pytest.raises(ValueError, match=f"of another fit: .*{message}.*delete"):
        halfway.set_params(**params).fit(*blobs)
    assert halfway.checkpoint.read_bytes() == before
    assert not hasattr(halfway, "classes_")


def test_another_estimator_is_refused(halfway, blobs):
    class Other(SoftRankMLPClassifier):
        pass

    with pytest.raises(ValueError, match="SoftRankMLPClassifier there, Other here"):
        Other(**halfway.get_params()).fit(*blobs)


def test_other_data_are_refused(halfway, blobs):
    X, y = blobs
    changed = X.copy()
    changed[7, 3] = np.nextafter(X[7, 3], 9)
    for rows, labels, message in [
        (changed, y, r"X: 120 rows, shape \(120, 6\), \w+ there, 120 rows"),
        (X, np.roll(y, 1), "y: 120 rows"),
        (X, y + 1, r"classes: \[0, 1, 2\] there, \[1, 2, 3\] here"),
        (X[:, :5], y, "n_features: 6 there, 5 here"),
        (X[:100], y[:100], "X: 120 rows"),
    ]:
        with pytest.raises(ValueError, match=f"checkpoint must be.*{message}"):
            halfway.fit(rows, labels)
    assert_same(halfway.fit(X, y), mlp(dropout=0.2).fit(X, y))


def test_another_module_is_refused(blobs, tmp_path, monkeypatch):
    X, y = blobs
    own = SoftRankClassifier(nn.Linear(6, 3), max_epochs=2, random_state=0)
    _, copies = fit_and_snap(own, X, y, tmp_path, monkeypatch)
    other = SoftRankClassifier(nn.Linear(6, 3), max_epochs=2, random_state=0)
    with pytest.raises(ValueError, match="initial weights: "):
        other.set_params(checkpoint=copies[1]).fit(X, y)


def test_a_random_state_goes_on_where_it_was(blobs, tmp_path, monkeypatch):
    estimator = mlp(random_state=np.random.RandomState(3))
    _, copies = fit_and_snap(estimator, *blobs, tmp_path, monkeypatch)
    other = mlp(checkpoint=copies[2], random_state=np.random.RandomState(4))
    with pytest.raises(ValueError, match=r"of another fit: .*; seeds drawn: "):
        other.fit(*blobs)
    other = mlp(checkpoint=copies[2], random_state=np.random.RandomState(3))
    assert_same(other.fit(*blobs), estimator)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda data: b"", "which is empty"),
        (lambda data: b"PK" + data, "which begins otherwise"),
        (lambda data: data[:-1], "it was changed or cut short"),
        (lambda data: data[:-9] + b"x" + data[-8:], "it was changed or cut short"),
        (lambda data: pickle.dumps([1]), "which begins otherwise"),
    ],
)
def test_files_that_were_changed_are_refused(change, message, halfway, blobs):
    data = change(halfway.checkpoint.read_bytes())
    halfway.checkpoint.write_bytes(data)
    with pytest.raises(
        ValueError, match=rf"checkpoint must be .*{message}\. Name another one"
    ):
        halfway.fit(*blobs)
    assert halfway.checkpoint.read_bytes() == data


def test_files_of_another_kind_or_of_later_are_refused(halfway, blobs, monkeypatch):
    save(mlp().fit(*blobs), halfway.checkpoint)
    with pytest.raises(ValueError, match="which holds a 'estimator'"):
        halfway.fit(*blobs)
    with monkeypatch.context() as patch:
        patch.setattr(_format, "SCHEMA", 2)
        _format.write(halfway.checkpoint, "checkpoint", {}, {})
    with pytest.raises(ValueError, match=r"checkpoint must .*which a later version"):
        halfway.fit(*blobs)
    _format.write(halfway.checkpoint, "checkpoint", {}, {})
    with pytest.raises(ValueError, match="which no fit has written"):
        halfway.fit(*blobs)
    halfway.set_params(checkpoint=halfway.checkpoint.parent)
    with pytest.raises(ValueError, match="which is no file"):
        halfway.fit(*blobs)


@pytest.mark.parametrize("name", ["stack", "strengths", "own module"])
def test_files_with_another_content_but_signed_are_refused(
    name, blobs, tmp_path, monkeypatch
):
    estimator = clone(ESTIMATORS[name])
    _, copies = fit_and_snap(estimator, *blobs, tmp_path, monkeypatch)
    content, arrays = _format.read(copies[len(copies) // 2], "checkpoint")
    rng = np.random.default_rng(0)

    def broken():
        """Change one node of the content, or one array's shape."""
        if rng.random() < 0.4:
            key = rng.choice([*arrays])
            shape = (*arrays[key].shape, 2)
            other = np.broadcast_to(arrays[key][..., None], shape).copy()
            return content, {**arrays, key: other}
        changed = json.loads(json.dumps(content))
        places = []

        def walk(node):
            pairs = enumerate(node) if isinstance(node, list) else node.items()
            for key, value in pairs:
                places.append((node, key))
                if isinstance(value, list | dict):
                    walk(value)

        walk(changed["networks"])
        node, key = places[rng.integers(len(places))]
        node[key] = [{"os.system": "true"}, [], "x", -1, None][rng.integers(5)]
        return changed, arrays

    path = tmp_path / "broken"
    plain = torch.get_rng_state()
    for _ in range(40):
        _format.write(path, "checkpoint", *broken())
        other = clone(estimator).set_params(checkpoint=path)
        # Numbers may be others, and lead to others, but nothing else may.
        error: Exception | None = None
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                other.fit(*blobs)
            except Exception as caught:
                error = caught
        if error is not None:
            assert not hasattr(other, "net_")
        # An optimizer of torch's may be the one to miss something.
        if name != "own module" and not isinstance(error, FloatingPointError | None):
            assert str(error).startswith("checkpoint must be")
    assert torch.equal(torch.get_rng_state(), plain)


# -- Where it can't be written -----------------------------------------------------


@pytest.fixture
def untrained(monkeypatch):
    """Fail where an epoch is trained."""

    def train_epoch(self, epoch):
        raise AssertionError("trained")

    for steps in (StackSteps, AutogradSteps):
        monkeypatch.setattr(steps, "train_epoch", train_epoch)


@pytest.mark.usefixtures("untrained")
@pytest.mark.parametrize("params", [{}, {"max_epochs": "auto", "dropout": "auto"}])
def test_paths_that_can_t_be_written_are_refused(params, blobs, tmp_path):
    (tmp_path / "file").write_text("mine")
    for path, kind, message in [
        (tmp_path / "none" / "fit", FileNotFoundError, "checkpoint must be a path"),
        (tmp_path / "file" / "fit", NotADirectoryError, "checkpoint must be a path"),
        (tmp_path / "file", ValueError, "checkpoint must be a new file"),
        ("", ValueError, "checkpoint must be a new file.*got ''.*folder"),
        (b"fit", ValueError, "The 'checkpoint' parameter"),
        (3, ValueError, "The 'checkpoint' parameter"),
    ]:
        with pytest.raises(kind, match=message):
            mlp(checkpoint=path, **params).fit(*blobs)
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.usefixtures("untrained")
@pytest.mark.parametrize(
    "params",
    [
        {"callbacks": [EpochTimer()]},
        {"net_params": {"iterator_train": lambda *args, **params: []}},
        {"betas": (3, 0)},
        {"n_components": 99},
        {"target_rank": 99},
    ],
)
def test_a_fit_that_is_refused_leaves_no_file(params, blobs, tmp_path):
    with pytest.raises(ValueError, match=f"{next(iter(params))} must"):
        mlp(checkpoint=tmp_path / "fit", **params).fit(*blobs)
    assert [*tmp_path.iterdir()] == []


def test_callbacks_of_scikit_learn_are_refused(blobs, tmp_path):
    estimator = mlp(checkpoint=tmp_path / "fit").set_callbacks(ProgressBar())
    with pytest.raises(ValueError, match=r"callbacks must be None.*set_callbacks"):
        estimator.fit(*blobs)


def test_a_network_that_can_t_be_written_is_refused(blobs, tmp_path):
    class Odd(nn.Linear):
        def __init__(self, in_features, n_classes):
            super().__init__(in_features, n_classes)
            self.register_buffer("odd", torch.zeros(2, dtype=torch.complex128))

    estimator = SoftRankClassifier(Odd, checkpoint=tmp_path / "fit")
    with pytest.raises(ValueError, match=r"checkpoint must be None.*odd, a tensor of"):
        estimator.fit(*blobs)
    assert [*tmp_path.iterdir()] == []


def test_an_error_before_the_first_epoch_leaves_no_file(blobs, tmp_path, monkeypatch):
    estimator = mlp(checkpoint=tmp_path / "fit", learning_rate=1e30, optimizer="sgd")
    with pytest.raises(FloatingPointError):
        estimator.fit(*blobs)
    assert [*tmp_path.iterdir()] == []


def test_an_error_after_it_leaves_the_file(blobs, tmp_path, monkeypatch):
    estimator = mlp(checkpoint=tmp_path / "fit", dropout=0.2)
    with monkeypatch.context() as patch:

        def fail(*args):
            raise FloatingPointError("underflow")

        patch.setattr(SoftRankMLPClassifier, "_find_basis", fail)
        with pytest.raises(FloatingPointError):
            estimator.fit(*blobs)
    assert epoch_of(tmp_path / "fit") == 4
    assert_same(estimator.fit(*blobs), mlp(dropout=0.2).fit(*blobs))


def test_what_a_stream_could_not_read_once_is_gone_on_before(blobs, tmp_path):
    class Flaky(Rows):
        n_passes = 0

        def __iter__(self):
            Flaky.n_passes += 1
            if Flaky.n_passes == 4:
                raise OSError("the network hiccups")
            return super().__iter__()

    path = tmp_path / "fit"
    clf = mlp(max_epochs=6)
    whole = clone(clf).fit(Rows(*blobs))
    clf.set_params(checkpoint=path)
    with pytest.raises(OSError, match="hiccups"):
        clf.fit(Flaky(*blobs))
    n_passes = Flaky.n_passes
    clf.fit(Flaky(*blobs))
    # To know the classes, for the four epochs that were left, and for the basis.
    assert Flaky.n_passes == n_passes + 1 + 4 + 1
    np.testing.assert_array_equal(clf.embed(blobs[0]), whole.embed(blobs[0]))


def test_trials_go_on_in_stacks_of_another_size(blobs, tmp_path, monkeypatch):
    clf = SoftRankMLPClassifier((8,), random_state=0)
    whole = clone(clf).fit(*blobs)
    clf.set_params(checkpoint=tmp_path / "fit")
    train_epoch, n_epochs = StackSteps.train_epoch, []

    def killed(steps, epoch):
        n_epochs.append(epoch)
        # In the middle of the second trial.
        if epoch == 2 and n_epochs.count(1) == 2:
            raise SystemExit
        return train_epoch(steps, epoch)

    with monkeypatch.context() as patch:
        patch.setattr(_stacked, "_STACK_BYTES", 1)  # Of one, as on a full device.
        patch.setattr(StackSteps, "train_epoch", killed)
        with pytest.raises(SystemExit):
            clf.fit(*blobs)
    clf.fit(*blobs)
    assert clf.auto_params_ == whole.auto_params_
    np.testing.assert_array_equal(clf.embed(blobs[0]), whole.embed(blobs[0]))


def test_a_schedule_whose_repr_hides_what_it_holds_is_refused(
    blobs, tmp_path, monkeypatch
):
    class Constant(TemperatureSchedule):
        def __init__(self, value):
            object.__setattr__(self, "value", value)

        def __call__(self, progress):
            return self.value

    def killed(steps, epoch):
        if epoch == 3:
            raise SystemExit
        return train_epoch(steps, epoch)

    train_epoch = StackSteps.train_epoch
    clf = mlp(temperature=Constant(1.0), checkpoint=tmp_path / "fit")
    with monkeypatch.context() as patch:
        patch.setattr(StackSteps, "train_epoch", killed)
        with pytest.raises(SystemExit):
            clf.fit(*blobs)
    with pytest.raises(ValueError, match="training is none of this network's"):
        clone(clf).set_params(temperature=Constant(50.0)).fit(*blobs)
    clf.fit(*blobs)


def test_a_fit_that_diverged_leaves_no_file(blobs, tmp_path, monkeypatch):
    train_epoch = StackSteps.train_epoch

    def diverge(self, epoch):
        losses, errors = train_epoch(self, epoch)
        return losses, {0: FloatingPointError("diverged")} if epoch == 3 else errors

    monkeypatch.setattr(StackSteps, "train_epoch", diverge)
    with pytest.raises(FloatingPointError):
        mlp(checkpoint=tmp_path / "fit").fit(*blobs)
    assert [*tmp_path.iterdir()] == []


@pytest.mark.skipif(os.name != "posix", reason="links need rights elsewhere")
def test_a_link_stays_one(halfway, blobs):
    link, target = halfway.checkpoint.with_name("link"), halfway.checkpoint
    link.symlink_to(target)
    assert_same(
        halfway.set_params(checkpoint=link).fit(*blobs), mlp(dropout=0.2).fit(*blobs)
    )
    assert link.is_symlink()
    assert not target.exists()


def test_a_full_disk_costs_no_training(blobs, tmp_path, monkeypatch):
    path, replace, n_calls = tmp_path / "fit", os.replace, 0

    def full_for_a_while(*args):
        nonlocal n_calls
        n_calls += 1
        if n_calls in (3, 4):
            raise OSError(errno.ENOSPC, "No space left on device")
        replace(*args)
        if n_calls == 2:
            shutil.copy(path, tmp_path / "second")
        seen.append((n_calls, epoch_of(path)))

    seen = []
    monkeypatch.setattr(os, "replace", full_for_a_while)
    with pytest.warns(UserWarning, match="could not be written: .*No space") as told:
        estimator = mlp(dropout=0.2, checkpoint=path, max_epochs=5).fit(*blobs)
    assert len(told) == 1
    assert seen == [(1, 0), (2, 1), (5, 4), (6, 5)]
    assert [file.name for file in tmp_path.iterdir()] == ["second"]
    assert_same(estimator, mlp(dropout=0.2, max_epochs=5).fit(*blobs))


def test_a_file_that_can_t_be_deleted_is_told_of(blobs, tmp_path, monkeypatch):
    def unlink(self, missing_ok=False):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr("pathlib.Path.unlink", unlink)
    with pytest.warns(UserWarning, match=r"checkpoint=.*could not be deleted.*Delete"):
        mlp(checkpoint=tmp_path / "fit").fit(*blobs)


def test_short_epochs_are_not_all_written(blobs, tmp_path, monkeypatch):
    # A write that takes all the time there is happens once.
    monkeypatch.setattr(_checkpoint, "SHARE", 1e-9)
    _, copies = fit_and_snap(mlp(), *blobs, tmp_path, monkeypatch)
    assert [epoch_of(path) for path in copies] == [0]


# -- Beside other parts ------------------------------------------------------------


def test_ctrl_c_keeps_what_was_learnt_and_the_file(blobs, tmp_path, monkeypatch):
    path, write = tmp_path / "fit", _format.write

    def interrupt(*args):
        if count_epochs(args[2]) == 3:
            raise KeyboardInterrupt
        write(*args)

    estimator = mlp(dropout=0.2, checkpoint=path)
    with monkeypatch.context() as patch:
        patch.setattr(_format, "write", interrupt)
        with pytest.warns(UserWarning, match=r"epoch 3 of 4.*stays; .*goes on") as told:
            estimator.fit(*blobs)
    assert told[0].filename == __file__  # Where `fit` was called.
    assert estimator.n_iter_ == 3
    assert epoch_of(path) == 2
    assert_same(estimator.fit(*blobs), mlp(dropout=0.2).fit(*blobs))
    assert not path.exists()


def test_a_fit_that_goes_on_says_so_where_it_is_verbose(halfway, blobs, capsys):
    halfway.set_params(verbose=1).fit(*blobs)
    out = capsys.readouterr().out
    assert "Going on from checkpoint=" in out
    assert re.findall(r"^ +(\d) ", out, flags=re.MULTILINE) == ["3", "4"]


def test_a_second_fit_trains_anew(blobs, tmp_path):
    estimator = mlp(checkpoint=str(tmp_path / "fit")).fit(*blobs)
    assert [*tmp_path.iterdir()] == []
    assert_same(clone(estimator).fit(*blobs), estimator)


def test_partial_fit_is_refused(blobs, tmp_path):
    with pytest.raises(ValueError, match="checkpoint must be None in partial_fit"):
        mlp(checkpoint=tmp_path / "fit").partial_fit(*blobs, classes=[0, 1, 2])


@pytest.mark.usefixtures("untrained")
def test_searches_and_ensembles_are_refused(blobs, tmp_path):
    X, y = blobs
    one = mlp(checkpoint=tmp_path / "fit")
    grid = {"temperature": [1.0, 2.0]}
    pipeline = make_pipeline(StandardScaler(), one)
    wrapped = CalibratedClassifierCV(one)
    for several in (
        SoftRankEnsembleClassifier(one),
        StackedGridSearchCV(one, grid),
        StackedGridSearchCV(mlp(), {"checkpoint": [None, str(tmp_path / "fit")]}),
        StackedGridSearchCV(pipeline, {"standardscaler": [None, "passthrough"]}),
        StackedGridSearchCV(wrapped, {"method": ["sigmoid"]}),
        StackedRandomizedSearchCV(one, grid, n_iter=2),
        OODSearchCV(one, grid, n_trials=2),
    ):
        with pytest.raises(ValueError, match="checkpoint must be None where several"):
            several.fit(X, y)
    assert [*tmp_path.iterdir()] == []


def test_a_search_of_scikit_learn_has_one_fit_after_another(blobs, tmp_path):
    search = GridSearchCV(mlp(checkpoint=tmp_path / "fit"), {"tol": [0.1, 0.2]}, cv=2)
    assert search.fit(*blobs).best_score_ > 0.5
    assert [*tmp_path.iterdir()] == []


def test_two_fits_at_once_leave_no_broken_file(blobs, tmp_path, monkeypatch):
    path, write, inner = tmp_path / "fit", _format.write, []

    def write_and_fit_another(*args):
        write(*args)
        if not inner:
            inner.append(None)
            # The same fit, begun while this one trains, and over before it.
            inner.append(mlp(dropout=0.2, checkpoint=path).fit(*blobs))

    monkeypatch.setattr(_format, "write", write_and_fit_another)
    outer = mlp(dropout=0.2, checkpoint=path).fit(*blobs)
    assert_same(outer, inner[1])
    assert not path.exists()


def test_an_estimator_with_a_path_is_saved(blobs, tmp_path):
    estimator = mlp(checkpoint=tmp_path / "fit").fit(*blobs)
    save(estimator, tmp_path / "saved")
    loaded = load(tmp_path / "saved")
    assert loaded.checkpoint == str(tmp_path / "fit")
    assert_same(loaded.fit(*blobs), estimator)


def test_a_dataloader_of_one_s_own_goes_on(blobs, tmp_path, monkeypatch):
    estimator = mlp(net_params={"iterator_train": DataLoader}, batch_size=120)
    estimator.set_params(net_params={"iterator_train__num_workers": 0}, dropout=0.2)
    _, copies = fit_and_snap(estimator, *blobs, tmp_path, monkeypatch)
    other = clone(estimator).set_params(checkpoint=copies[2]).fit(*blobs)
    assert_same(other, estimator)
