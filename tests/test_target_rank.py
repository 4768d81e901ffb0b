"""The temperature that a rank asks for: read off closed forms, and found by fits."""

import copy
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.datasets import load_digits
from sklearn.exceptions import ConvergenceWarning
from sklearn.model_selection import GridSearchCV
from torch.utils.data import TensorDataset

from sksoftrank import SoftRankMLPClassifier, StackedGridSearchCV
from sksoftrank.estimators import _target_rank
from sksoftrank.estimators._target_rank import HIGHEST, LOWEST, RankSearch
from sksoftrank.losses import LinearTemperature
from sksoftrank.training import InMemoryDataset

X, y = load_digits(n_class=5, return_X_y=True)
X, y = (X[:300] / 16).astype(np.float32), y[:300]


def network(**params):
    settings = {"hidden_layer_sizes": (64, 64, 64), "max_epochs": 30, "batch_size": 32}
    settings |= {"dropout": 0.1, "device": "cpu", "random_state": 0}
    return SoftRankMLPClassifier(**settings | params)


# -- Closed forms ----------------------------------------------------------------------


def search(rank, target, wrong=lambda temperature: 0.0, tol=0.005, fails=()):
    """Return a search whose nets have a rank and an error by their temperature."""
    dataset = InMemoryDataset(np.zeros((1000, 1), np.float32), np.arange(1000) % 2)

    def build(train, temperature):
        return SimpleNamespace(temperature=temperature)

    def measure(net):
        return max(1, round(rank(net.temperature)))

    def predict(net, valid):
        codes = np.arange(200) % 2
        logits = np.eye(2)[codes]
        n_wrong = round(200 * wrong(net.temperature))
        logits[:n_wrong] = logits[:n_wrong, ::-1]
        return logits, codes, np.ones(200)

    found = RankSearch(build, measure, dataset, 0, target, tol)
    n_trials = 0
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_target_rank, "predict_held_out", predict)
        while found.trials:
            n_trials += len(found.trials)
            errors = [
                FloatingPointError("diverged") if net.temperature in fails else None
                for net, _ in found.trials
            ]
            found.take(errors)
    assert n_trials <= 5
    return found


@given(
    exponent=st.floats(0.1, 0.5),
    cold=st.integers(50, 500),
    share=st.floats(0.15, 1.5),
)
@settings(deadline=None, max_examples=200)
def test_the_temperature_of_a_power_law_has_the_rank(exponent, cold, share):
    def rank(temperature):
        return cold * temperature**-exponent

    lowest, highest = rank(HIGHEST) + 1, rank(LOWEST) - 1
    target = int(np.clip(round(share * cold), lowest, highest))
    found = search(rank, target).temperature
    assert abs(rank(found) - target) <= max(1.0, 0.1 * target)


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_a_share_is_that_of_the_rank_at_a_temperature_of_one(share):
    def rank(temperature):
        return 100 * temperature**-0.3

    by_share, by_number = search(rank, share), search(rank, round(100 * share))
    assert by_share.temperature == by_number.temperature


def test_a_curve_with_steps_and_noise_is_read_as_one_that_falls():
    def rank(temperature):
        return {1.0: 90, 30.0: 100, 1000.0: 20}.get(temperature, 50)

    assert 1.0 < search(rank, 50).temperature < 1000.0


def test_a_temperature_that_ends_in_an_error_is_none():
    def rank(temperature):
        return 100 * temperature**-0.3

    found = search(rank, 50, fails=(1000.0,))
    assert abs(rank(found.temperature) - 50) <= 5
    for fails in ((1.0,), (30.0, 1000.0)):
        with pytest.raises(FloatingPointError, match="diverged"):
            search(rank, 50, fails=fails)


def test_a_rank_out_of_reach_names_the_nearest():
    with pytest.raises(ValueError, match=r"target_rank must be from 20 to 20.* got 5"):
        search(lambda temperature: 20, 5)
    with pytest.raises(ValueError, match=r"nearest rank that was found is 12, at"):
        search(lambda temperature: max(12, 100 * temperature**-0.5), 3)


def test_a_rank_that_costs_accuracy_names_the_nearest_that_does_not():
    def rank(temperature):
        return 100 * temperature**-0.3

    def wrong(temperature):
        return 0.0 if temperature < 100 else 0.3

    with pytest.raises(ValueError, match=r"target_rank must cost at most compression_"):
        search(rank, 13, wrong)
    # Of 200 rows two more are wrong: within a standard error of what may be lost.
    search(rank, 13, lambda temperature: 0.0 if temperature < 100 else 0.01)
    assert search(rank, 13, wrong, tol=0.5).temperature > 100


# -- Fits ------------------------------------------------------------------------------


def test_the_network_is_the_one_that_its_temperature_alone_leads_to():
    clf = network(target_rank=20).fit(X, y)
    # It falls from some 60 to 7; a fifth more rows leaves it where it was, about.
    assert abs(clf.rank_ - 20) <= 4
    again = network(temperature=clf.temperature_).fit(X, y)
    np.testing.assert_array_equal(clf.transform(X), again.transform(X))
    assert clf.history_[-1]["temperature"] == clf.temperature_


def test_a_rank_that_is_missed_is_told_of(monkeypatch):
    # Whatever is asked for, the first trial is what is to be had.
    monkeypatch.setattr(RankSearch, "_read_off", lambda self, rank: 1.0)
    message = r"has rank \d+ at the temperature of 1 .* target_rank=0.7 .* above that"
    with pytest.warns(ConvergenceWarning, match=message) as caught:
        clf = network(target_rank=0.7).fit(X, y)
    assert [warning.filename for warning in caught] == [__file__]
    assert clf.temperature_ == 1.0
    network(target_rank=clf.rank_).fit(X, y)


def test_the_strength_is_chosen_before_and_kept():
    clf = network(target_rank=0.4, dropout="auto", max_epochs="auto", batch_size="auto")
    clf.fit(X, y)
    chosen = {
        name: clf.auto_params_[name] for name in ("dropout", "max_epochs", "batch_size")
    }
    again = network(temperature=clf.temperature_, **chosen).fit(X, y)
    np.testing.assert_array_equal(clf.embed(X), again.embed(X))


def test_training_goes_on_at_the_temperature_that_was_found():
    clf = network(target_rank=20).fit(X, y)
    found = clf.temperature_
    on = copy.deepcopy(clf).partial_fit(X, y)
    assert on.temperature_ == found
    clf.set_params(warm_start=True).fit(X, y)
    assert clf.temperature_ == found
    assert clf.n_iter_ == 30  # No trials again.


def test_a_grid_of_target_ranks_is_scikit_learns():
    grid = {"target_rank": [12, 30]}
    ours = StackedGridSearchCV(network(), grid, cv=2).fit(X, y)
    theirs = GridSearchCV(network(), grid, cv=2).fit(X, y)
    np.testing.assert_allclose(
        ours.cv_results_["mean_test_score"], theirs.cv_results_["mean_test_score"]
    )
    assert ours.best_estimator_.temperature_ == theirs.best_estimator_.temperature_


@pytest.mark.parametrize("temperature", [2.0, LinearTemperature(1.0, 5.0)])
def test_a_temperature_beside_it_is_refused(temperature):
    with pytest.raises(ValueError, match=r"temperature must stay 10\.0 where target_r"):
        network(target_rank=5, temperature=temperature).fit(X, y)


def test_what_can_not_be_had_is_refused_before_any_training(monkeypatch):
    monkeypatch.setattr("sksoftrank.estimators._training.fit_nets", None)
    with pytest.raises(ValueError, match="at most 64, the width of the embedding"):
        network(target_rank=65).fit(X, y)
    with pytest.raises(ValueError, match="at most 39, the width of the embedding or"):
        network(target_rank=40).fit(X[:40], y[:40])
    with pytest.raises(ValueError, match="at a first call of partial_fit"):
        network(target_rank=5).partial_fit(X, y, classes=range(5))
    stream = TensorDataset(torch.from_numpy(X), torch.from_numpy(y))
    with pytest.raises(ValueError, match="target_rank must be None where X is a Data"):
        network(target_rank=5).fit(stream)
    for wrong in (0, 1.5, -0.5, "half"):
        with pytest.raises(ValueError, match="'target_rank' parameter"):
            network(target_rank=wrong).fit(X, y)
