"""The sweep and its summary, the profile of layers, and the monitor of training."""

import math

import numpy as np
import pytest
import torch
from scipy import stats
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold, cross_val_score
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.validation import check_is_fitted
from skorch.callbacks import EpochTimer
from torch import nn
from torch.utils.data import TensorDataset

from sksoftrank import (
    SoftRankClassifier,
    SoftRankCNNClassifier,
    SoftRankEnsembleClassifier,
    SoftRankMLPClassifier,
    SoftRankNet,
    SoftRankTransformerClassifier,
)
from sksoftrank.collapse import class_separation, within_class_variability
from sksoftrank.inspection import (
    TEMPERATURES,
    RankMonitor,
    effective_depth,
    paired_difference,
    rank_profile,
    summarize_sweep,
    temperature_sweep,
)
from sksoftrank.modules import MLP
from sksoftrank.rank import (
    effective_rank,
    rank_report,
    singular_values,
    subspace_alignment,
    variance_rank,
)
from sksoftrank.training._grouping import unsupported_reason

MEASURES = [
    "train_accuracy",
    "accuracy",
    "shifted_accuracy",
    "shifted_accuracy[near]",
    "shifted_accuracy[far]",
    "logit_norm",
    "effective_rank",
    "variance_rank",
    "n_components",
    "knn_accuracy",
]


def record(temperature, seed, **measures):
    return {"temperature": temperature, "seed": seed, **measures}


# -- The sweep -----------------------------------------------------------------------


@pytest.fixture(scope="module")
def problem():
    """Return train, test and two shifted sets of three overlapping blobs."""
    rng = np.random.default_rng(0)

    def draw(n, offset=0.0):
        y = np.arange(n) % 3
        X = 2.0 * np.eye(3, 6)[y] + rng.standard_normal((n, 6)) + offset
        return X, np.array(["a", "b", "c"])[y]

    return draw(150), draw(60), {"near": draw(30, 0.5), "far": draw(90, 2.0)}


@pytest.fixture(scope="module")
def estimator():
    return SoftRankMLPClassifier(hidden_layer_sizes=(16, 12), max_epochs=4)


@pytest.fixture(scope="module")
def sweep(problem, estimator):
    return temperature_sweep(estimator, *problem, temperatures=(1.0, 20), n_seeds=2)


def test_one_record_for_each_temperature_and_seed(sweep):
    assert [(r["temperature"], r["seed"]) for r in sweep] == [
        (1.0, 0),
        (1.0, 1),
        (20.0, 0),
        (20.0, 1),
    ]
    for entry in sweep:
        assert list(entry) == ["temperature", "seed", *MEASURES]
        assert isinstance(entry["temperature"], float)


def test_records_are_what_one_measures_by_hand(sweep, problem, estimator):
    (X, y), (X_test, y_test), shifted = problem
    for entry in sweep:
        clf = clone(estimator).set_params(
            temperature=entry["temperature"], random_state=entry["seed"]
        )
        clf.fit(X, y)
        Z = clf.embed(X_test)
        knn = KNeighborsClassifier(n_neighbors=5).fit(clf.transform(X), y)
        expected = {
            "train_accuracy": np.mean(clf.predict(X) == y),
            "accuracy": np.mean(clf.predict(X_test) == y_test),
            # Each shift counts the same, however many rows it has.
            "shifted_accuracy": np.mean(
                [np.mean(clf.predict(A) == b) for A, b in shifted.values()]
            ),
            **{
                f"shifted_accuracy[{name}]": np.mean(clf.predict(A) == b)
                for name, (A, b) in shifted.items()
            },
            "logit_norm": clf.logit_norm_,
            "effective_rank": effective_rank(Z, center=True),
            "variance_rank": variance_rank(Z, 0.99),
            "n_components": clf.transform(X_test).shape[1],
            "knn_accuracy": np.mean(knn.predict(clf.transform(X_test)) == y_test),
        }
        assert {name: entry[name] for name in MEASURES} == pytest.approx(expected)


def test_estimator_passed_stays_as_it_was(sweep, estimator):
    with pytest.raises(NotFittedError):
        check_is_fitted(estimator)
    assert (estimator.temperature, estimator.random_state) == (10.0, None)


def test_same_sweep_twice(sweep, problem, estimator):
    again = temperature_sweep(estimator, *problem, temperatures=(1.0, 20), n_seeds=2)
    assert again == sweep


def test_seeds_differ(sweep):
    assert sweep[0]["logit_norm"] != sweep[1]["logit_norm"]


def test_on_fit_is_called_after_each_fit(problem, estimator):
    calls = []
    records = temperature_sweep(
        estimator,
        *problem,
        temperatures=(0.5, 1.0, 2.0),
        n_seeds=1,
        on_fit=lambda: calls.append(None),
    )
    assert len(calls) == len(records) == 3


def test_defaults(problem, estimator):
    train, test, shifted = problem
    one_epoch = clone(estimator).set_params(max_epochs=1)
    records = temperature_sweep(one_epoch, train, test, shifted)
    assert len(records) == 3 * len(TEMPERATURES)
    assert list(TEMPERATURES) == sorted(TEMPERATURES)
    assert {r["temperature"] for r in records} == set(TEMPERATURES)
    assert 1.0 in TEMPERATURES  # what the others are compared with


# -- The summary ---------------------------------------------------------------------


def test_summary_is_the_mean_and_student_s_interval():
    values = [0.70, 0.74, 0.75, 0.81]
    rows = summarize_sweep([record(2.0, s, accuracy=v) for s, v in enumerate(values)])
    assert [list(row) for row in rows] == [
        ["temperature", "accuracy", "accuracy_interval"]
    ]
    low, high = stats.t.interval(
        0.95, df=3, loc=np.mean(values), scale=stats.sem(values)
    )
    assert rows[0]["accuracy"] == pytest.approx(0.75)
    assert rows[0]["accuracy_interval"] == pytest.approx((high - low) / 2)


def test_summary_of_two_seeds_in_closed_form():
    # With one degree of freedom Student's t is Cauchy's: its quantile is a tangent.
    rows = summarize_sweep(
        [record(1.0, s, accuracy=v) for s, v in ((0, 0.2), (1, 0.4))]
    )
    assert rows[0]["accuracy_interval"] == pytest.approx(
        0.1 * math.tan(math.pi * (0.975 - 0.5))
    )


def test_summary_sorts_temperatures_and_keeps_them_apart():
    records = [
        record(t, s, accuracy=t + s, logit_norm=10 * t)
        for s in range(3)
        for t in (10.0, 0.5, 1.0)
    ]
    rows = summarize_sweep(records)
    assert [row["temperature"] for row in rows] == [0.5, 1.0, 10.0]
    assert [row["accuracy"] for row in rows] == [1.5, 2.0, 11.0]
    assert [row["logit_norm_interval"] for row in rows] == [0.0, 0.0, 0.0]
    assert len({row["accuracy_interval"] for row in rows}) == 1


def test_summary_of_one_seed_has_no_interval():
    (row,) = summarize_sweep([record(1.0, 0, accuracy=0.5)])
    assert row["accuracy"] == 0.5
    assert math.isnan(row["accuracy_interval"])


def test_summary_of_nothing_is_empty():
    assert summarize_sweep([]) == []


def test_summary_takes_a_sweep(sweep):
    rows = summarize_sweep(sweep)
    assert [row["temperature"] for row in rows] == [1.0, 20.0]
    for name in MEASURES:
        mean = np.mean([r[name] for r in sweep if r["temperature"] == 20.0])
        assert rows[1][name] == pytest.approx(mean)


# -- The paired comparison -----------------------------------------------------------

GAINS = np.array([0.02, 0.03, 0.01, 0.06])


def paired_records(seed_effect):
    """Return records whose gain of 10 over 1 does not depend on the seed's effect."""
    return [
        entry
        for seed, (gain, effect) in enumerate(zip(GAINS, seed_effect, strict=True))
        for entry in (
            record(1.0, seed, accuracy=0.5 + effect),
            record(10.0, seed, accuracy=0.5 + effect + gain),
        )
    ]


@pytest.mark.parametrize("n_comparisons", [1, 5])
def test_interval_is_that_of_scipy_s_paired_test(n_comparisons):
    records = paired_records([0.0, 0.1, 0.2, 0.3])
    mean, half = paired_difference(
        records, "accuracy", 10.0, n_comparisons=n_comparisons
    )
    values = [
        [r["accuracy"] for r in records if r["temperature"] == t] for t in (10.0, 1.0)
    ]
    interval = stats.ttest_rel(*values).confidence_interval(1 - 0.05 / n_comparisons)
    assert mean - half == pytest.approx(interval.low)
    assert mean + half == pytest.approx(interval.high)


def test_bonferroni_widens_the_interval():
    records = paired_records([0.0, 0.1, 0.2, 0.3])
    (mean, one), (same, five) = (
        paired_difference(records, "accuracy", 10.0, n_comparisons=n) for n in (1, 5)
    )
    assert mean == same
    assert five / one == pytest.approx(stats.t.ppf(0.995, 3) / stats.t.ppf(0.975, 3))


def test_pairing_removes_what_a_seed_does_to_both():
    quiet = paired_difference(paired_records([0.0] * 4), "accuracy", 10.0)
    loud = paired_difference(paired_records([0.4, -0.3, 0.1, -0.2]), "accuracy", 10.0)
    assert loud == pytest.approx(quiet)
    assert quiet[0] == pytest.approx(GAINS.mean())
    # Unpaired, the same records would say nothing.
    rows = summarize_sweep(paired_records([0.4, -0.3, 0.1, -0.2]))
    assert rows[1]["accuracy_interval"] > 10 * loud[1]


def test_pairs_are_found_in_any_order():
    records = paired_records([0.1, 0.4, 0.2, 0.3])
    shuffled = [records[i] for i in (5, 0, 3, 6, 1, 7, 2, 4)]
    assert paired_difference(shuffled, "accuracy", 10.0) == pytest.approx(
        paired_difference(records, "accuracy", 10.0)
    )


def test_difference_changes_sign_with_the_roles():
    records = paired_records([0.1, 0.4, 0.2, 0.3])
    mean, half = paired_difference(records, "accuracy", 10.0)
    assert paired_difference(records, "accuracy", 1.0, baseline=10.0) == pytest.approx(
        (-mean, half)
    )


def test_difference_from_itself_is_zero():
    assert paired_difference(paired_records([0.1] * 4), "accuracy", 1.0) == (0.0, 0.0)


def test_one_seed_has_a_difference_without_an_interval():
    records = [record(1.0, 0, accuracy=0.5), record(10.0, 0, accuracy=0.75)]
    mean, half = paired_difference(records, "accuracy", 10.0)
    assert mean == 0.25
    assert math.isnan(half)


# -- The profile of layers -----------------------------------------------------------


def names(profile):
    return [record["layer"] for record in profile]


@pytest.fixture(scope="module")
def fitted(problem, estimator):
    return clone(estimator).set_params(random_state=0).fit(*problem[0])


@pytest.fixture(scope="module")
def images():
    """Return images of three classes, each bright in another corner, and labels."""
    rng = np.random.default_rng(0)
    y = np.arange(60) % 3
    X = 0.3 * rng.standard_normal((60, 1, 8, 8))
    for c, (i, j) in enumerate([(0, 0), (0, 4), (4, 0)]):
        X[y == c, :, i : i + 4, j : j + 4] += 1.0
    return X, y


@pytest.fixture(scope="module")
def cnn(images):
    clf = SoftRankCNNClassifier(channels=(6, 10), max_epochs=2, random_state=0)
    return clf.fit(*images)


@pytest.fixture(scope="module")
def transformer(images):
    clf = SoftRankTransformerClassifier(
        patch_size=2, d_model=8, n_heads=2, max_epochs=2, random_state=0
    )
    return clf.fit(*images)


def test_profile_is_what_one_measures_by_hand(fitted, problem):
    _, (X, y), shifted = problem
    tolerances = (0.5, 0.01)
    profile = rank_profile(
        fitted,
        X,
        y,
        domains=shifted,
        transfer={"vowel": (X, y == "a")},
        tolerances=tolerances,
    )
    last = fitted.module_.body[-2]  # Dropout follows it.
    layers = {n: part for n, part in fitted.module_.named_modules() if part is last}
    assert [names(profile)[1]] == [*layers]
    assert names(profile)[2:] == ["logits"]
    weight = fitted.module_.output.weight.detach().numpy()
    probe = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))

    def features(record, X):
        if record["layer"] == "logits":
            return fitted.decision_function(X) * fitted.temperature_
        return fitted.embed(X, layer=record["layer"])

    for record in profile:
        Z = features(record, X)
        report = rank_report(Z, tols=tolerances)
        ranks = [report.pop(name) for name in ("numerical_rank", "variance_rank")]
        assert [record["numerical_rank"], record["variance_rank"]] == ranks
        assert {name: record[name] for name in report} == pytest.approx(report)
        np.testing.assert_allclose(
            record["singular_values"], singular_values(Z, center=True), atol=1e-9
        )
        assert record["places"] is None
        assert math.isnan(record["attention_entropy"])
        assert record["class_separation"] == pytest.approx(class_separation(Z, y))
        scores = cross_val_score(probe, Z, y, cv=StratifiedKFold(3))
        assert record["probe_accuracy"] == pytest.approx(scores.mean())
        probe.fit(Z, y)
        assert record["domain_accuracy"] == {
            name: pytest.approx(probe.score(features(record, A), b))
            for name, (A, b) in shifted.items()
        }
        scores = cross_val_score(probe, Z, y == "a", cv=StratifiedKFold(3))
        assert record["transfer_accuracy"] == {"vowel": pytest.approx(scores.mean())}
    Z = fitted.embed(X)
    assert profile[1]["alignment"] == pytest.approx(
        subspace_alignment(Z - Z.mean(axis=0), weight, 2)
    )
    assert math.isnan(profile[2]["alignment"])


def test_profile_of_single_precision_is_near(fitted, problem):
    _, (X, y), _ = problem
    for record, single in zip(
        rank_profile(fitted, X, y),
        rank_profile(fitted, X.astype(np.float32), y),
        strict=True,
    ):
        assert single["effective_rank"] == pytest.approx(record["effective_rank"])


def test_cnn_is_seen_by_rows_and_by_places(cnn, images):
    X, y = images
    profile = rank_profile(cnn, X, y)
    stages = [f"stages.{i}.{j}" for i in (0, 1) for j in (0, 1)]
    # The mean over the last one's places is the embedding.
    assert names(profile) == [*stages, "logits"]
    assert [record["n_features"] for record in profile] == [6, 6, 10, 10, 3]
    for record in profile[:-1]:
        Z = cnn.embed(X, layer=record["layer"])
        n_places = Z.shape[2] * Z.shape[3]
        rows = Z.mean(axis=(2, 3))
        assert record["effective_rank"] == pytest.approx(
            effective_rank(rows, center=True)
        )
        if n_places == 1:
            assert record["places"] is None
        elif n_places <= 16:
            places = Z.transpose(0, 2, 3, 1).reshape(-1, Z.shape[1])
            assert record["places"]["n_samples"] == len(X) * n_places
            assert record["places"]["effective_rank"] == pytest.approx(
                effective_rank(places, center=True)
            )
        else:
            assert record["places"]["n_samples"] == len(X) * 16
    # What a convolution takes: its weight (out, in, 3, 3), on each place.
    Z = cnn.embed(X, layer="stages.0.0").transpose(0, 2, 3, 1).reshape(-1, 6)
    weight = dict(cnn.module_.named_modules())["stages.0.1"].conv.weight.detach()
    weight = weight.permute(0, 2, 3, 1).reshape(-1, 6).numpy()
    assert profile[0]["alignment"] == pytest.approx(
        subspace_alignment(Z - Z.mean(axis=0), weight, 2)
    )


def test_transformer_is_seen_by_tokens_and_attention(transformer, images):
    X, y = images
    profile = rank_profile(transformer, X, y)
    blocks = [f"blocks.{i}" for i in range(len(transformer.module_.blocks))]
    assert names(profile) == ["tokens", *blocks, "embedding", "logits"]
    tokens = transformer.embed(X, layer="tokens")
    assert profile[0]["places"]["effective_rank"] == pytest.approx(
        effective_rank(tokens.reshape(-1, 8), center=True)
    )
    assert profile[0]["effective_rank"] == pytest.approx(
        effective_rank(tokens.mean(axis=1), center=True)
    )
    with torch.no_grad():
        attention = transformer.module_.attention(torch.tensor(X).float())
    for record, weights in zip(profile[1:], attention, strict=False):
        entropies = stats.entropy(weights.numpy(), axis=-1) / np.log(16)
        assert record["attention_entropy"] == pytest.approx(entropies.mean(), rel=1e-5)
    assert math.isnan(profile[0]["attention_entropy"])


def test_even_attention_has_an_entropy_of_one(images):
    clf = SoftRankTransformerClassifier(
        patch_size=2, d_model=8, n_heads=2, max_epochs=1, attention_temperature=1e6
    )
    profile = rank_profile(clf.fit(*images), *images)
    assert profile[1]["attention_entropy"] == pytest.approx(1.0)


class Branched(nn.Module):
    """A network with a layer that is not called, and a function between layers."""

    def __init__(self, n_features, n_classes):
        super().__init__()
        self.first = nn.Linear(n_features, 9)
        self.unused = nn.Linear(2, 2)
        self.block = nn.Sequential(
            nn.Linear(9, 7), nn.BatchNorm1d(7), nn.ReLU(inplace=True), nn.Dropout(0.1)
        )
        self.last = nn.Linear(7, n_classes)

    def forward(self, x):
        return self.last(self.block(torch.tanh(self.first(x))))


def test_any_module_has_its_layers_found(problem):
    train, test, _ = problem
    clf = SoftRankClassifier(Branched, max_epochs=2, random_state=0).fit(*train)
    profile = rank_profile(clf, *test)
    # Up to what follows in a Sequential, less what does nothing.
    assert names(profile) == ["first", "block.2", "logits"]
    assert [record["n_features"] for record in profile] == [9, 7, 3]
    assert profile[1]["singular_values"] == pytest.approx(
        singular_values(clf.embed(test[0]), center=True)
    )


def test_flattened_places_are_columns_of_no_weight(images):
    network = nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(256, 3)
    )
    clf = SoftRankClassifier(network, max_epochs=1, random_state=0).fit(*images)
    profile = rank_profile(clf, *images)
    assert names(profile) == ["1", "embedding", "logits"]
    assert [record["n_features"] for record in profile] == [4, 256, 3]
    assert math.isnan(profile[0]["alignment"])


def test_signals_have_channels_and_not_tokens():
    rng = np.random.default_rng(0)
    X, y = rng.standard_normal((30, 2, 12)), np.arange(30) % 3
    clf = SoftRankCNNClassifier(channels=(5,), max_epochs=1, random_state=0).fit(X, y)
    profile = rank_profile(clf, X, y)
    assert [record["n_features"] for record in profile] == [5, 5, 3]
    assert profile[0]["places"]["n_features"] == 5


def test_layers_are_those_named(fitted, problem):
    profile = rank_profile(fitted, *problem[1], layers=["body.0"])
    assert names(profile)[0] == "body.0"
    assert names(profile)[1:] == ["embedding", "logits"]


def test_new_classes_have_probes_of_their_own(fitted, problem):
    rng = np.random.default_rng(1)
    X_new = rng.standard_normal((40, 6))
    X_new[:20] += 6
    (record, *_) = rank_profile(
        fitted, *problem[1], transfer={"new": (X_new, np.repeat([7, 8], 20))}
    )
    assert record["transfer_accuracy"]["new"] > 0.9


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"X": np.zeros((60, 5))}, "features"),
        ({"y": ["a", "b", "c"]}, "y must hold a label for each of the 60 rows"),
        ({"y": ["a", "b"] * 30}, r"y must hold all classes .* no row of \['c'\]"),
        ({"y": ["a", "b", "c", "d"] * 15}, r"y must hold only the classes .* \['d'\]"),
        ({"layers": ["body.99"]}, "layer must be the name of a submodule"),
        ({"layers": "body.0"}, "layers must be a sequence of names, got 'body.0'"),
        ({"layers": []}, "layers must be a sequence of names"),
        ({"tolerances": (0.1, 1.0)}, r"tolerances must be numbers in \(0, 1\)"),
        ({"tolerances": (0.0,)}, r"tolerances must be numbers in \(0, 1\)"),
        ({"tolerances": ()}, r"tolerances must be numbers in \(0, 1\)"),
        ({"cv": 21}, "of at least cv=21 rows each"),
        ({"cv": 1}, "n_splits"),
        ({"domains": {"far": (np.zeros((2, 5)), "ab")}}, "features"),
        (
            {"domains": {"far": (np.zeros((2, 6)), ["a", "d"])}},
            r"domains\['far'\] must",
        ),
        (
            {"domains": {"far": (np.zeros((2, 6)), ["a"])}},
            r"domains\['far'\] must hold",
        ),
        (
            {"transfer": {"new": (np.zeros((2, 6)), [0, 0])}},
            r"transfer\['new'\] must hold at least two classes",
        ),
    ],
)
def test_profile_refuses_before_it_computes(
    fitted, problem, change, message, monkeypatch
):
    def fail(*args):
        raise AssertionError("computed")

    monkeypatch.setattr("sksoftrank.inspection._profile._views", fail)
    X, y = problem[1]
    with pytest.raises(ValueError, match=message):
        rank_profile(**{"estimator": fitted, "X": X, "y": y, **change})


def test_profile_needs_a_fitted_estimator_of_one_network(estimator, problem):
    with pytest.raises(NotFittedError):
        rank_profile(estimator, *problem[1])
    ensemble = SoftRankEnsembleClassifier(estimator, n_estimators=2)
    with pytest.raises(ValueError, match="with a single network, got SoftRankEns"):
        rank_profile(ensemble, *problem[1])


def test_profile_refuses_a_stream(fitted, problem):
    X, y = problem[1]
    dataset = TensorDataset(torch.tensor(X), torch.zeros(len(X)))
    with pytest.raises(ValueError, match="X must be an array, got TensorDataset"):
        rank_profile(fitted, dataset, y)


def probes(*accuracies):
    return [{"probe_accuracy": accuracy} for accuracy in accuracies]


def test_effective_depth_is_the_first_layer_that_reaches_the_share():
    assert effective_depth(probes(0.5, 0.98, 0.99, 1.0)) == 3
    assert effective_depth(probes(0.5, 0.98, 0.99, 1.0), share=1.0) == 4
    assert effective_depth(probes(0.5, 0.98, 0.99, 1.0), share=0.5) == 1
    assert effective_depth(probes(0.9)) == 1
    # A layer may tell more than the last.
    assert effective_depth(probes(0.9, 0.5)) == 1


@pytest.mark.parametrize("share", [0.0, 1.1])
def test_effective_depth_refuses(share):
    with pytest.raises(ValueError, match=r"share must be in \(0, 1\], got"):
        effective_depth(probes(0.5), share)
    with pytest.raises(ValueError, match="profile must hold at least one layer"):
        effective_depth([])


# -- The monitor of training ---------------------------------------------------------

MONITORED = ["logit_norm", "effective_rank", "within_class_variability"]


def monitored(history):
    """Return the epochs that were measured."""
    return [
        epoch
        for epoch, record in enumerate(history, start=1)
        if not any(math.isnan(record[name]) for name in MONITORED)
    ]


def test_monitor_records_what_one_measures(problem, estimator):
    X, y = problem[0]
    clf = clone(estimator).set_params(
        max_epochs=5, random_state=0, callbacks=[RankMonitor(every=2)]
    )
    clf.fit(X, y)
    assert monitored(clf.history_) == [2, 4, 5]
    Z = clf.embed(X)
    logits = clf.decision_function(X) * clf.temperature_
    expected = {
        "logit_norm": np.linalg.norm(logits, axis=1).mean(),
        "effective_rank": effective_rank(Z, center=True),
        "within_class_variability": within_class_variability(Z, y),
    }
    last = {name: clf.history_[-1][name] for name in MONITORED}
    assert last == pytest.approx(expected, rel=1e-4)
    assert clf.history_[-1]["logit_norm"] == pytest.approx(clf.logit_norm_, rel=1e-4)


@pytest.mark.parametrize("monitor", [RankMonitor(every=1), RankMonitor(max_rows=20)])
def test_monitor_leaves_the_training_as_it_is(problem, estimator, images, monitor):
    net = SoftRankNet(
        MLP, module__n_features=2, module__n_classes=2, callbacks=[monitor]
    )
    assert unsupported_reason(net) is None
    cnn = SoftRankCNNClassifier(channels=(6,), max_epochs=2)
    for plain, data in ((estimator, problem[0]), (cnn, images)):
        results = [
            clone(plain).set_params(callbacks=callbacks, random_state=0).fit(*data)
            for callbacks in (None, [monitor])
        ]
        weights = [clf.module_.state_dict() for clf in results]
        for name, tensor in weights[0].items():
            assert torch.equal(tensor, weights[1][name])


def test_monitor_waits_for_so_many_steps(problem, estimator):
    # Ten steps an epoch, so twenty epochs.
    clf = clone(estimator).set_params(
        max_epochs=41, batch_size=15, callbacks=[RankMonitor()]
    )
    assert monitored(clf.fit(*problem[0]).history_) == [20, 40, 41]


def test_monitor_measures_given_rows(problem, estimator):
    X, y = problem[1]
    codes = np.unique(y, return_inverse=True)[1]
    monitor = RankMonitor(X, codes, every=1)
    clf = clone(estimator).set_params(callbacks=[monitor], random_state=0)
    last = clf.fit(*problem[0]).history_[-1]
    assert last["effective_rank"] == pytest.approx(
        effective_rank(clf.embed(X), center=True), rel=1e-4
    )


def test_monitor_draws_few_rows_with_early_stopping_and_weights(problem, estimator):
    X, y = problem[0]
    clf = clone(estimator).set_params(
        early_stopping=True, callbacks=[RankMonitor(every=1, max_rows=4)]
    )
    clf.fit(X, y, sample_weight=np.linspace(0.5, 1.5, len(y)))
    assert all(record["effective_rank"] <= 3 + 1e-9 for record in clf.history_)


def test_monitor_reads_a_stream(problem, estimator):
    X, y = problem[0]
    codes = np.unique(y, return_inverse=True)[1]
    dataset = TensorDataset(torch.tensor(X).float(), torch.tensor(codes))
    clf = clone(estimator).set_params(callbacks=[RankMonitor(every=2)])
    assert monitored(clf.fit(dataset).history_) == [2, 4]


def test_monitor_goes_on_through_partial_fit(problem, estimator):
    clf = clone(estimator).set_params(callbacks=[RankMonitor(every=2)])
    for _ in range(4):
        clf.partial_fit(*problem[0], classes=["a", "b", "c"])
    assert monitored(clf.history_) == [1, 2, 4]


def test_monitor_takes_a_net_with_a_table_of_its_epochs(problem, capsys):
    X, y = problem[0]
    codes = np.unique(y, return_inverse=True)[1]
    net = SoftRankNet(
        MLP,
        module__n_features=6,
        module__n_classes=3,
        callbacks=[("rank", RankMonitor(every=2))],
        max_epochs=3,
    )
    net.fit(X.astype(np.float32), codes)
    assert monitored(net.history) == [2, 3]
    assert "effective_rank" in capsys.readouterr().out


def test_monitor_of_one_class_has_no_variability(problem):
    X = problem[0][0].astype(np.float32)
    net = SoftRankNet(
        *(MLP,),
        module__n_features=6,
        module__n_classes=3,
        callbacks=[RankMonitor(every=1)],
        train_split=None,
        max_epochs=1,
        verbose=0,
    )
    net.fit(X, np.zeros(len(X), int))
    assert math.isnan(net.history[-1, "within_class_variability"])
    assert net.history[-1, "effective_rank"] > 1


@pytest.mark.parametrize(
    ("monitor", "message"),
    [
        (RankMonitor(every=0), "every of RankMonitor must be an int of at least 1"),
        (RankMonitor(max_rows=1), "max_rows of RankMonitor must be an int of at least"),
        (RankMonitor(max_rows=None), "max_rows of RankMonitor must be"),
        (RankMonitor(np.zeros((4, 6))), "RankMonitor needs X and class codes y"),
        (RankMonitor(np.zeros((4, 6)), [0, 1, 1]), "RankMonitor needs X and class"),
        (RankMonitor(np.zeros((4, 6)), [1, 1, 1, 1]), "of two classes at least"),
    ],
)
def test_monitor_refuses_before_any_training(problem, estimator, monitor, message):
    clf = clone(estimator).set_params(callbacks=[EpochTimer(), monitor])
    with pytest.raises(ValueError, match=message):
        clf.fit(*problem[0])


def test_monitor_needs_an_embedding(problem):
    net = SoftRankNet(nn.Linear(6, 3), callbacks=[RankMonitor()], verbose=0)
    with pytest.raises(ValueError, match=r"module with embed\(x\) and head\(z\), got"):
        net.fit(problem[0][0].astype(np.float32), np.arange(150) % 3)
