"""What "auto" stands for: lengths by the number of rows, strength by rows held out."""

import numpy as np
import pytest
import sklearn
from scipy.special import expit, softmax
from sklearn.datasets import make_classification
from sklearn.metrics import log_loss
from sklearn.model_selection import GridSearchCV, GroupKFold
from skorch.callbacks import Callback

from sksoftrank import (
    SoftRankEnsembleClassifier,
    SoftRankMLPClassifier,
    SoftRankNet,
    StackedGridSearchCV,
)
from sksoftrank.estimators import _choice
from sksoftrank.estimators._choice import fit_logit_scale, score_logits
from sksoftrank.estimators._recipe import (
    STRENGTHS,
    STRENGTHS_OF_FEW,
    STRENGTHS_OF_MANY,
    choose_batch_size,
)
from sksoftrank.estimators._stacked_fit import PendingFit, fit_stacked
from sksoftrank.estimators._training_data import split_folds, split_validation
from sksoftrank.training import InMemoryDataset, fit_nets

AUTO = {"max_epochs": "auto", "batch_size": "auto", "dropout": "auto"}


def make(**params):
    small = {"hidden_layer_sizes": (8,), "temperature": 1.0, "random_state": 0}
    return SoftRankMLPClassifier(**{**small, **AUTO, **params})


@pytest.fixture(scope="module")
def data():
    X, y = make_classification(240, 6, flip_y=0.2, random_state=0)
    return X.astype(np.float32), y


@pytest.fixture(autouse=True)
def one_fold(monkeypatch):
    monkeypatch.setattr(_choice, "HELD_OUT_ROWS", 40)


@pytest.mark.parametrize(
    ("n_rows", "batch_size"), [(10, 32), (114, 32), (2_000, 128), (10**6, 256)]
)
def test_batches_are_powers_of_two(n_rows, batch_size):
    assert choose_batch_size(n_rows) == batch_size


@pytest.mark.parametrize(
    ("n_rows", "n_steps_asked"),
    [(50, 94.8), (500, 299.6), (2_000, 599.3), (32_000, 4794.1), (162_000, 16180)],
)
def test_steps_follow_the_root_of_the_rows_and_then_more(n_rows, n_steps_asked):
    n_epochs, batch_size = make()._lengths(n_rows)
    n_steps = n_epochs * np.ceil(n_rows / batch_size)
    # To half an epoch.
    assert abs(n_steps - n_steps_asked) <= np.ceil(n_rows / batch_size) / 2 + 0.1
    assert make(max_epochs=7, batch_size=5)._lengths(n_rows) == (7, 5)


def spy(monkeypatch):
    """Return what comes to be trained, as lists of (epochs, dropout, rows)."""
    calls = []

    def note(nets, datasets, *args, **kwargs):
        calls.append(
            [
                (net.max_epochs, net.module__dropout, len(dataset))
                for net, dataset in zip(nets, datasets, strict=True)
            ]
        )
        return fit_nets(nets, datasets, *args, **kwargs)

    monkeypatch.setattr("sksoftrank.estimators._training.fit_nets", note)
    return calls


def give_scores(monkeypatch, scores):
    """Let the trials score so, by accuracy and log-likelihood, one after the other."""
    scores = iter(scores)
    monkeypatch.setattr(_choice, "score_logits", lambda *arrays: next(scores))


def test_the_best_on_rows_held_out_is_trained_on_all(data, monkeypatch):
    X, y = data
    calls = spy(monkeypatch)
    give_scores(monkeypatch, [(0.7, -0.6), (0.9, -0.6), (0.9, -0.7)])
    clf = make().fit(X, y)
    trials, (last,) = calls
    assert [(dropout, n) for _, dropout, n in trials] == [
        (strength.dropout, 192) for strength in STRENGTHS
    ]
    shortest, _, longest = (n_epochs for n_epochs, _, _ in trials)
    assert longest > 6 * shortest
    # Of two as accurate the one with the lower loss.
    n_epochs, batch_size = clf._lengths(240, STRENGTHS[1])
    assert last == (n_epochs, 0.2, 240)
    assert clf.auto_params_ == {
        "max_epochs": n_epochs,
        "batch_size": batch_size,
        "dropout": 0.2,
    }
    plain = make(max_epochs=n_epochs, dropout=0.2).fit(X, y)
    np.testing.assert_array_equal(plain.embed(X), clf.embed(X))
    np.testing.assert_allclose(
        plain.decision_function(X) * clf.logit_scale_,
        clf.decision_function(X),
        rtol=1e-5,
        atol=1e-6,  # A sum near zero has the rounding of its terms, which are near one.
    )
    assert plain.logit_scale_ == 1.0


def test_few_rows_are_not_trained_on_for_as_long(data, monkeypatch):
    X, y = data
    calls = spy(monkeypatch)
    make().fit(X[:100], y[:100])  # Two folds, of forty rows in all.
    assert [dropout for _, dropout, _ in calls[0][::2]] == [
        strength.dropout for strength in STRENGTHS_OF_FEW
    ]
    shortest, _, longest = (n_epochs for n_epochs, _, _ in calls[0][::2])
    assert longest < 5 * shortest


def test_many_rows_are_tried_without_dropout_too(data, monkeypatch):
    calls = spy(monkeypatch)
    monkeypatch.setattr(_choice, "MANY_ROWS", 240)
    make().fit(*data)
    assert [dropout for _, dropout, _ in calls[0]] == [
        strength.dropout for strength in STRENGTHS_OF_MANY
    ]


@pytest.mark.parametrize("best", range(len(STRENGTHS)))
def test_each_strength_can_be_the_best(data, monkeypatch, best):
    scores = [(0.6, -0.5)] * len(STRENGTHS)
    scores[best] = (0.7, -0.9)
    give_scores(monkeypatch, scores)
    clf = make().fit(*data)
    assert clf.auto_params_["dropout"] == STRENGTHS[best].dropout
    assert clf.auto_params_["max_epochs"] == clf._lengths(240, STRENGTHS[best])[0]


@pytest.mark.parametrize(
    ("params", "dropout"),
    [
        ({"dropout": 0.1}, 0.1),
        ({"max_epochs": 3}, 0.2),
        ({"early_stopping": True}, 0.2),
    ],
)
def test_a_value_that_is_given_makes_it_a_plain_fit(data, monkeypatch, params, dropout):
    calls = spy(monkeypatch)
    clf = make(**params).fit(*data)
    assert len(calls) == len(calls[0]) == 1
    assert clf.auto_params_["dropout"] == dropout


@pytest.mark.parametrize(("n_rows", "n_folds"), [(40, 0), (60, 3), (120, 2), (200, 1)])
def test_of_few_rows_more_folds_are_held_out(data, monkeypatch, n_rows, n_folds):
    X, y = data
    calls = spy(monkeypatch)
    scored = []

    def score(logits, codes, weight):
        scored.append(len(codes))
        return score_logits(logits, codes, weight)

    monkeypatch.setattr(_choice, "score_logits", score)
    make().fit(X[:n_rows], y[:n_rows])
    assert len(calls[0]) == max(3 * n_folds, 1)
    assert set(scored) == ({n_rows // 5 * n_folds} if n_folds else set())


def test_folds_hold_out_every_row_once_and_each_class_evenly():
    y = np.repeat([0, 1, 2], [60, 39, 1])
    dataset = InMemoryDataset(np.zeros((100, 1)), y)
    parts = split_folds(dataset, 5, seed=0)
    assert sorted(np.concatenate([valid.indices for _, valid in parts])) == [
        *range(100)
    ]
    for train, valid in parts:
        assert not set(train.indices) & set(valid.indices)
        counts = np.bincount(y[valid.indices], minlength=3)
        assert (counts - [12, 7, 0] <= 1).all()
        assert len(valid) == 20


def test_accuracy_and_loss_are_weighted():
    logits = np.log([[0.9, 0.1], [0.2, 0.8], [0.6, 0.4]])
    accuracy, likelihood = score_logits(
        logits, np.array([0, 0, 1]), np.array([2, 1, 1])
    )
    assert accuracy == 0.5
    expected = (2 * np.log(0.9) + np.log(0.2) + np.log(0.4)) / 4
    assert likelihood == pytest.approx(expected)


def test_what_goes_on_keeps_the_strength(data, monkeypatch):
    X, y = data
    clf = make(warm_start=True).fit(X, y)
    chosen = clf.auto_params_
    calls = spy(monkeypatch)
    clf.fit(X, y)
    assert clf.auto_params_ == chosen
    assert len(calls) == 1
    steps = make().partial_fit(X, y, classes=[0, 1])
    assert steps.n_iter_ == 1
    assert steps.net_.module__dropout == 0.2


def test_the_factor_on_the_logits_is_that_of_the_least_log_loss():
    rng = np.random.default_rng(0)
    logits = 2 * rng.standard_normal((20_000, 3))
    codes = np.array([rng.choice(3, p=p) for p in softmax(logits, axis=1)])
    weight = np.ones(len(codes))
    # Five standard errors: the second derivative is the mean variance of the logits.
    assert fit_logit_scale(4 * logits, codes, weight) == pytest.approx(0.25, rel=0.06)
    flipped = np.where(np.arange(20_000) < 10_000, codes, (codes + 1) % 3)
    weight = np.repeat([1.0, 0.0], 10_000)
    assert fit_logit_scale(logits, flipped, weight) == pytest.approx(1.0, rel=0.09)
    # None of so many rows told wrong leaves room for one in twice as many.
    sure = np.full((50, 2), [10.0, -10.0])
    scale = fit_logit_scale(sure, np.zeros(50, int), np.ones(50))
    assert softmax(scale * sure, axis=1)[0, 1] == pytest.approx(0.5 / 51, rel=1e-3)


def test_probabilities_are_as_sure_as_they_are_right():
    # All are told right, but labels so smoothed leave each a loss of a half.
    X, y = make_classification(400, 6, class_sep=4.0, flip_y=0.0, random_state=0)
    clf = make(label_smoothing=0.4).fit(X[:200], y[:200])
    proba, z = clf.predict_proba(X[200:]), clf.decision_function(X[200:])
    np.testing.assert_allclose(proba[:, 1], expit(z), rtol=1e-6)
    raw = expit(z / clf.logit_scale_)
    assert log_loss(y[200:], proba) < 0.5 * log_loss(y[200:], raw)


def test_what_goes_on_starts_from_the_logits_that_were_trained(data):
    X, y = data
    clf = make(warm_start=True, normalization=None).fit(X, y)
    scale, z = clf.logit_scale_, clf.decision_function(X)
    assert scale != 1.0
    clf.set_params(learning_rate=1e-30).fit(X, y)
    assert clf.logit_scale_ == scale
    np.testing.assert_allclose(clf.decision_function(X), z, rtol=1e-3, atol=1e-3)
    clf.partial_fit(X, y)
    assert clf.logit_scale_ == 1.0
    np.testing.assert_allclose(clf.decision_function(X) * scale, z, 1e-3, 1e-3)


def held_out(monkeypatch, clf, *args, **kwargs):
    """Fit, and return the rows that the first network does not train on."""
    found = []

    def note(nets, datasets, *args, **kwargs):
        found.extend(datasets)
        return fit_nets(nets, datasets, *args, **kwargs)

    monkeypatch.setattr("sksoftrank.estimators._training.fit_nets", note)
    clf.fit(*args, **kwargs)
    part = found[0]
    if not hasattr(part, "indices"):
        return np.array([], int)
    return np.setdiff1d(np.arange(len(part.dataset)), part.indices)


@pytest.mark.parametrize("params", [{}, {"early_stopping": True}])
def test_rows_that_belong_together_are_held_out_together(data, monkeypatch, params):
    groups = np.arange(240) % 30
    rows = held_out(monkeypatch, make(**params), *data, groups=groups)
    assert len(rows) == (24 if params else 48)
    assert not set(groups[rows]) & set(np.delete(groups, rows))


def test_rows_of_one_group_are_not_held_out(data, monkeypatch):
    X, y = data
    groups = ["a"] * 240
    assert len(held_out(monkeypatch, make(), X, y, groups=groups)) == 0
    with pytest.raises(ValueError, match="groups of rows both to train on and"):
        make(early_stopping=True).fit(X, y, groups=groups)
    with pytest.raises(
        ValueError, match="groups must hold a label for each of the 240"
    ):
        make().fit(X, y, groups=groups[1:])


def test_equal_rows_of_different_groups_stay_apart(data):
    X, y = np.repeat(data[0][:20], 2, axis=0), np.repeat(data[1][:20], 2)
    merged = make()._read_training(X, y, None)
    apart = make()._read_training(X, y, None, groups=np.tile([3, 5], 20))
    assert (len(merged), len(apart)) == (20, 40)
    weighted = make()._read_training(X, y, np.tile([0, 1], 20), groups=np.arange(40))
    assert len(set(weighted.groups)) == 20


@pytest.mark.parametrize("search", [GridSearchCV, StackedGridSearchCV])
def test_groups_are_routed_to_fits(data, monkeypatch, search):
    X, y = data
    seen = []

    def note(dataset, fraction, seed):
        seen.append(dataset.groups)
        return split_validation(dataset, fraction, seed)

    monkeypatch.setattr("sksoftrank.estimators._base.split_validation", note)
    with sklearn.config_context(enable_metadata_routing=True):
        clf = make(early_stopping=True, max_epochs=2)
        search(clf, {"temperature": [1.0]}, cv=GroupKFold(5), refit=False).fit(
            X, y, groups=np.arange(240) % 30
        )
    assert [len(set(groups)) for groups in seen] == [24] * 5


def test_an_ensemble_hands_groups_on(data, monkeypatch):
    groups = np.arange(240) % 30
    ensemble = SoftRankEnsembleClassifier(make(), 2, random_state=0)
    rows = held_out(monkeypatch, ensemble, *data, groups=groups)
    assert len(rows) == 48
    assert not set(groups[rows]) & set(np.delete(groups, rows))


def test_a_choice_heeds_weights_of_classes(data, monkeypatch):
    weights = []

    def score(logits, codes, weight):
        weights.append([weight[codes == code].mean() for code in (0, 1)])
        return 0.5, -1.0

    monkeypatch.setattr(_choice, "score_logits", score)
    make(class_weight={0: 1, 1: 3}).fit(*data)
    assert [b / a for a, b in weights] == pytest.approx([3, 3, 3])


def test_a_class_of_one_row_is_no_hindrance(data):
    X, y = data
    clf = make().fit(X, np.where(np.arange(240) == 7, 9, y))
    assert clf.classes_.tolist() == [0, 1, 9]
    assert np.isfinite(clf.predict_proba(X)).all()


def test_callbacks_see_one_training(data):
    class Count(Callback):
        n_trainings, n_epochs = 0, 0

        def on_train_begin(self, net, **kwargs):
            self.n_trainings += 1

        def on_epoch_end(self, net, **kwargs):
            self.n_epochs += 1

    clf = make(callbacks=[("count", Count())]).fit(*data)
    count = dict(clf.net_.callbacks_)["count"]
    assert count.n_trainings == 1
    assert count.n_epochs == clf.n_iter_ == clf.auto_params_["max_epochs"]


def test_an_interruption_of_the_trials_leaves_the_estimator_as_it_was(
    data, monkeypatch
):
    X, y = data
    clf = make(max_epochs=2).fit(X, y)
    before = clf.predict_proba(X)

    def interrupt(steps, checkpoint):
        for member in steps.members:
            member.is_interrupted = True

    monkeypatch.setattr("sksoftrank.training._grouping.train", interrupt)
    with pytest.raises(KeyboardInterrupt):
        clf.set_params(max_epochs="auto").fit(X, y)
    np.testing.assert_array_equal(clf.predict_proba(X), before)


def test_an_error_of_a_choice_is_its_fits_own(data, monkeypatch):
    X, y = data
    forward = SoftRankNet.forward

    def fail(net, dataset):
        if net.temperature == 7.0:
            raise MemoryError("no room to validate")
        return forward(net, dataset)

    monkeypatch.setattr(SoftRankNet, "forward", fail)
    fits = [PendingFit(make(temperature=t), X, y) for t in (1.0, 7.0, 3.0)]
    fit_stacked(fits)
    assert [str(fit.error) for fit in fits] == ["None", "no room to validate", "None"]
    alone = make(temperature=3.0).fit(X, y)
    np.testing.assert_array_equal(
        fits[2].estimator.predict_proba(X), alone.predict_proba(X)
    )


def test_a_search_chooses_for_each_candidate_as_its_own_fit_would(data):
    X, y = data
    grid = {"temperature": [1.0, 10.0], "batch_size": ["auto", 16]}
    options = {"cv": 2, "error_score": "raise"}
    plain = GridSearchCV(make(), grid, **options).fit(X, y)
    stacked = StackedGridSearchCV(make(), grid, **options).fit(X, y)
    assert stacked.fallback_reason_ is None
    np.testing.assert_array_equal(
        plain.cv_results_["mean_test_score"], stacked.cv_results_["mean_test_score"]
    )
    assert plain.best_estimator_.auto_params_ == stacked.best_estimator_.auto_params_


@pytest.mark.parametrize(
    "betas", [0.9, (0.9,), (0.9, 1.0), (-0.1, 0.9), "ab", (0, 0, 0)]
)
def test_bad_betas(data, betas):
    with pytest.raises(ValueError, match=r"betas must|The 'betas' parameter"):
        make(betas=betas).fit(*data)


def test_betas_reach_the_steps(data):
    plain, other = (
        make(max_epochs=3, dropout=0.0, betas=betas).fit(*data).embed(data[0])
        for betas in ((0.9, 0.999), (0.5, 0.9))
    )
    assert not np.array_equal(plain, other)
