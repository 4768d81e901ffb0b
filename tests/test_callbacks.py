"""scikit-learn's callbacks: told of fits and epochs, wherever a fit runs."""

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.callback import ProgressBar, ScoringMonitor
from sklearn.datasets import load_iris
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from sksoftrank import (
    OODSearchCV,
    SoftRankEnsembleClassifier,
    SoftRankMLPClassifier,
    StackedGridSearchCV,
)

X, y = load_iris(return_X_y=True)
N_EPOCHS = 4


def network(**params):
    own = {"hidden_layer_sizes": (8,), "max_epochs": N_EPOCHS, "dropout": 0.1}
    return SoftRankMLPClassifier(**own | {"random_state": 0} | params)


class Recorder:
    """Notes what it is told; ends the training after `stop_after` epochs."""

    def __init__(self, stop_after=None):
        self.stop_after = stop_after
        self.told = []
        self.scores = []

    def setup(self, estimator, context):
        self.told.append("setup")

    def teardown(self, estimator, context):
        self.told.append("teardown")

    def on_fit_task_begin(self, estimator, context):
        self.told.append(f"begin {context.task_name} of {context.max_subtasks}")

    def on_fit_task_end(self, estimator, context, *, X, y, fitted_estimator):
        self.told.append(f"end {context.task_name}")
        if context.task_name == "epoch":
            self.scores.append(fitted_estimator.score(X, y))
            return len(self.scores) == self.stop_after
        return False


def test_a_fit_and_its_epochs_are_told():
    recorder = Recorder()
    clf = network().set_callbacks(recorder).fit(X, y)
    epoch = ["begin epoch of 0", "end epoch"]
    fit = [f"begin fit of {N_EPOCHS}", *N_EPOCHS * epoch, "end fit"]
    assert recorder.told == ["setup", *fit, "teardown"]
    assert recorder.scores[-1] == clf.score(X, y)


def test_who_is_told_changes_nothing():
    followed = network().set_callbacks(Recorder()).fit(X, y)
    np.testing.assert_array_equal(followed.embed(X), network().fit(X, y).embed(X))
    assert followed.history_ == network().fit(X, y).history_


def test_a_choice_or_a_rank_that_is_to_be_found_is_told_once_it_is():
    recorder = Recorder()
    clf = network(dropout="auto", max_epochs="auto").set_callbacks(recorder).fit(X, y)
    assert recorder.told[1] == "begin fit of None"  # Nobody can know.
    assert len(recorder.scores) == clf.n_iter_


def test_a_callback_may_end_the_training():
    clf = network().set_callbacks(Recorder(stop_after=2)).fit(X, y)
    assert clf.n_iter_ == 2
    assert clf.transform(X).shape == (len(X), clf.n_components_)


def test_an_error_tears_down_and_leaves_what_was_fitted():
    recorder = Recorder()
    clf = network(optimizer="sgd").fit(X, y)
    before = clf.predict_proba(X)
    clf.set_callbacks(recorder).set_params(learning_rate=1e30)
    with pytest.raises(FloatingPointError):
        clf.fit(X, y)
    assert recorder.told[-1] == "teardown"
    np.testing.assert_array_equal(clf.predict_proba(X), before)


def test_a_monitor_scores_each_epoch_within_a_pipeline():
    monitor = ScoringMonitor(scoring="accuracy")
    clf = network().set_callbacks(monitor)
    model = make_pipeline(StandardScaler(), clf).fit(X, y)
    scores = monitor.get_logs().data_as_pandas["accuracy"]
    assert len(scores) == N_EPOCHS + 1  # And the fit itself.
    assert scores.iloc[-1] == pytest.approx(model.score(X, y))


@pytest.mark.parametrize("search", [GridSearchCV, StackedGridSearchCV])
@pytest.mark.parametrize("n_jobs", [1, 2])
def test_a_monitor_scores_each_epoch_within_a_search(search, n_jobs):
    monitor = ScoringMonitor(scoring="accuracy")
    grid = {"temperature": [1.0, 10.0]}
    found = search(network().set_callbacks(monitor), grid, cv=2, n_jobs=n_jobs)
    found.fit(X, y)
    table = monitor.get_logs(select="all")
    n_fits = 2 * 2 + 1
    assert sum(len(log.data_as_pandas) for log in table) == n_fits * (N_EPOCHS + 1)


def test_a_progress_bar_shows_epochs(capsys):
    pytest.importorskip("rich")
    network().set_callbacks(ProgressBar()).fit(X, y)
    assert "100%" in capsys.readouterr().out


def test_a_clone_keeps_its_callbacks_as_scikit_learns_do():
    recorder = Recorder()
    clone(network().set_callbacks(recorder)).fit(X, y)
    assert recorder.told[-1] == "teardown"


def ood_search(**params):
    own = {"n_trials": 6, "n_finalists": 1, "n_final_seeds": 2, "random_state": 0}
    return OODSearchCV(network(), **own | params)


DOMAINS = np.arange(len(X)) % 3


def test_an_ood_search_tells_of_each_trial_and_of_the_refit():
    recorder = Recorder()
    search = ood_search().set_callbacks(recorder).fit(X, y, domains=DOMAINS)
    trial = ["begin trial of 0", "end trial"]
    n_finals = int((search.cv_results_["n_seeds"] > 1).sum())
    assert recorder.told == [
        *["setup", "begin fit of 3"],
        *["begin first stage of 6", *6 * trial, "end first stage"],
        *[f"begin second stage of {n_finals}", *n_finals * trial, "end second stage"],
        *["begin refit of 0", "end refit", "end fit", "teardown"],
    ]
    alone = ood_search().fit(X, y, domains=DOMAINS)
    np.testing.assert_array_equal(alone.predict_proba(X), search.predict_proba(X))


def test_a_callback_may_end_the_first_stage():
    class Stop(Recorder):
        def on_fit_task_end(self, estimator, context):
            return context.task_name == "trial"

    search = ood_search(n_trials=40).set_callbacks(Stop()).fit(X, y, domains=DOMAINS)
    assert len(search.cv_results_["params"]) < 40


def test_a_search_that_fails_tears_its_callbacks_down():
    recorder = Recorder()
    with pytest.raises(ValueError, match="n_trials"):
        ood_search(n_trials=2).set_callbacks(recorder).fit(X, y, domains=DOMAINS)
    assert recorder.told == ["setup", "begin fit of 3", "teardown"]


def test_a_bar_within_what_has_one_of_its_own_is_refused_before_any_training():
    bar = ProgressBar()
    with pytest.raises(TypeError, match="Register them directly"):
        OODSearchCV(network().set_callbacks(bar)).fit(X, y, domains=DOMAINS)


@pytest.mark.parametrize("n_jobs", [1, 2])
def test_an_ensemble_tells_of_each_member(n_jobs):
    recorder = Recorder()
    ensemble = SoftRankEnsembleClassifier(
        network(), n_estimators=2, n_jobs=n_jobs, random_state=0
    )
    before = ensemble.fit(X, y).predict_proba(X)
    ensemble.set_callbacks(recorder).fit(X, y)
    np.testing.assert_array_equal(ensemble.predict_proba(X), before)
    assert recorder.told[:2] == ["setup", "begin fit of 2"]
    assert sorted(recorder.told[2:-2]) == [
        *2 * ["begin member of 0"],
        *2 * ["end member"],
    ]
    assert recorder.told[-2:] == ["end fit", "teardown"]


@pytest.mark.parametrize("model", ["search", "ensemble"])
def test_a_progress_bar_reaches_the_networks_within(model, capsys):
    pytest.importorskip("rich")
    bar = ProgressBar(max_propagation_depth=None)
    if model == "search":
        ood_search().set_callbacks(bar).fit(X, y, domains=DOMAINS)
    else:
        SoftRankEnsembleClassifier(network(), n_estimators=2).set_callbacks(bar).fit(
            X, y
        )
    shown = capsys.readouterr().out
    assert "SoftRankMLPClassifier" in shown
    assert "100%" in shown


def test_a_monitor_scores_a_search_once_it_is_fitted():
    monitor = ScoringMonitor(scoring="accuracy")
    search = ood_search().set_callbacks(monitor).fit(X, y, domains=DOMAINS)
    scores = monitor.get_logs().data_as_pandas["accuracy"]
    assert scores.iloc[-1] == pytest.approx(search.score(X, y))
