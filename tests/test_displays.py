"""Displays: a frame, then axes, and matplotlib only when something is drawn."""

import copy
import subprocess
import sys

import numpy as np
import pytest
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from sklearn.datasets import make_blobs
from sklearn.exceptions import NotFittedError
from sklearn.pipeline import make_pipeline

from sksoftrank import OODSearchCV, SoftRankMLPClassifier
from sksoftrank.displays import (
    EmbeddingDisplay,
    OODReportDisplay,
    OODSearchDisplay,
    RankProfileDisplay,
    SpectrumDisplay,
    TemperatureSweepDisplay,
    TrainingDisplay,
)
from sksoftrank.inspection import effective_depth, rank_profile, summarize_sweep
from sksoftrank.ood import ood_report
from sksoftrank.shifts import GainDrift

MEASURES = [
    "accuracy",
    "shifted_accuracy",
    "knn_accuracy",
    "effective_rank",
    "variance_rank",
    "n_components",
]


def rows(interval=0.02):
    """Return the summary of a sweep over three temperatures."""
    return [
        {"temperature": temperature}
        | {name: (i + 1) / 10 + k / 100 for k, name in enumerate(MEASURES)}
        | {f"{name}_interval": interval for name in MEASURES}
        for i, temperature in enumerate((0.1, 1.0, 10.0))
    ]


def test_frame_has_the_columns_of_the_rows():
    display = TemperatureSweepDisplay(rows())
    assert set(display.frame_) == set(rows()[0])
    np.testing.assert_array_equal(display.frame_["temperature"], [0.1, 1.0, 10.0])
    for k, name in enumerate(MEASURES):
        expected = np.array([0.1, 0.2, 0.3]) + k / 100
        np.testing.assert_allclose(display.frame_[name], expected)
        np.testing.assert_array_equal(display.frame_[f"{name}_interval"], 0.02)


def test_no_rows_are_refused():
    with pytest.raises(ValueError, match=r"rows must hold at least one .*, got \[\]"):
        TemperatureSweepDisplay([])


def test_default_makes_a_figure():
    display = TemperatureSweepDisplay(rows())
    assert not hasattr(display, "figure_")
    assert display.plot(title="Sweep") is display
    assert isinstance(display.figure_, Figure)
    assert display.figure_.axes == list(display.axes_)
    assert display.figure_.get_suptitle() == "Sweep"
    assert TemperatureSweepDisplay(rows()).plot().figure_.get_suptitle() == ""


def test_figure_is_not_pyplot_s():
    import matplotlib.pyplot as plt

    before = plt.get_fignums()
    TemperatureSweepDisplay(rows()).plot()
    assert plt.get_fignums() == before


def test_given_axes_are_used():
    figure = Figure()
    grid = figure.subplots(2, 2)
    display = TemperatureSweepDisplay(rows())
    assert display.plot(grid[1]) is display
    assert display.figure_ is figure
    assert display.axes_ == tuple(grid[1])
    assert all(axes.lines for axes in grid[1])
    assert not any(axes.lines for axes in grid[0])
    assert len(figure.axes) == 4


def test_curves_are_the_frame():
    display = TemperatureSweepDisplay(rows()).plot()
    for axes, names, scale in zip(
        display.axes_,
        (
            ["accuracy", "shifted_accuracy", "knn_accuracy"],
            ["variance_rank", "effective_rank", "n_components"],
        ),
        (100, 1),
        strict=True,
    ):
        assert axes.get_xscale() == "log"
        assert [t.get_text() for t in axes.get_xticklabels()] == ["0.1", "1", "10"]
        assert axes.get_xlabel()
        assert axes.get_ylabel()
        assert len(axes.get_legend().get_texts()) == 3
        for line, band, name in zip(axes.lines, axes.collections, names, strict=True):
            mean = scale * display.frame_[name]
            np.testing.assert_array_equal(line.get_xdata(), [0.1, 1.0, 10.0])
            np.testing.assert_allclose(line.get_ydata(), mean)
            heights = band.get_paths()[0].vertices[:, 1]
            assert heights.min() == pytest.approx(mean.min() - scale * 0.02)
            assert heights.max() == pytest.approx(mean.max() + scale * 0.02)
    assert display.axes_[1].get_ylim()[0] == 0


@pytest.mark.parametrize("n_temperatures", [1, 3])
def test_one_seed_has_curves_without_bands(n_temperatures):
    display = TemperatureSweepDisplay(rows(interval=float("nan"))[:n_temperatures])
    display.plot()
    display.figure_.canvas.draw()
    for axes in display.axes_:
        assert len(axes.lines) == 3
        for line, band in zip(axes.lines, axes.collections, strict=True):
            y = line.get_ydata()
            assert np.isfinite(y).all()
            heights = band.get_paths()[0].vertices[:, 1]
            assert (heights.min(), heights.max()) == (y.min(), y.max())
    # What was not measured stays unknown in the frame.
    assert np.isnan(display.frame_["accuracy_interval"]).all()


def test_takes_what_summarize_sweep_gives(tmp_path):
    records = [
        {"temperature": temperature, "seed": seed}
        | dict.fromkeys(MEASURES, temperature + seed)
        for temperature in (1.0, 10.0)
        for seed in (0, 1)
    ]
    display = TemperatureSweepDisplay(summarize_sweep(records)).plot()
    np.testing.assert_array_equal(display.axes_[1].lines[0].get_ydata(), [1.5, 10.5])
    file = tmp_path / "sweep.png"
    display.figure_.savefig(file)
    assert file.read_bytes().startswith(b"\x89PNG")


def test_import_imports_neither_matplotlib_nor_torch():
    code = (
        "import sys; from sksoftrank.displays import RankProfileDisplay;"
        "print({'matplotlib', 'torch'} & set(sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "set()"


# -- The profile of layers -----------------------------------------------------------


def layer(name, width, accuracy, places=None):
    """Return a layer's record, whose ranks follow from its width."""
    return {
        "layer": name,
        "n_features": width,
        "effective_rank": width / 2,
        "variance_rank": {0.9: 1, 0.99: width - 1},
        "numerical_rank": {0.1: width - 2, 0.001: width},
        "places": places,
        "alignment": 0.5,
        "attention_entropy": float("nan"),
        "class_separation": 0.25,
        "probe_accuracy": accuracy,
        "domain_accuracy": {"far": accuracy - 0.2},
        "transfer_accuracy": {"new": accuracy - 0.1},
    }


@pytest.fixture
def profile():
    return [
        layer("first", 8, 0.5, places={"effective_rank": 3.0}),
        layer("second", 6, 0.895),
        layer("logits", 4, 0.9),
    ]


def test_profile_s_frame_has_a_value_a_layer(profile):
    frame = RankProfileDisplay(profile).frame_
    expected = {
        "layer": ["first", "second", "logits"],
        "width": [8, 6, 4],
        "effective_rank": [4, 3, 2],
        "places_effective_rank": [3, np.nan, np.nan],
        "variance_rank": [7, 5, 3],
        "numerical_rank[0.001]": [8, 6, 4],
        "numerical_rank[0.1]": [6, 4, 2],
        "alignment": [0.5] * 3,
        "attention_entropy": [np.nan] * 3,
        "class_separation": [0.25] * 3,
        "probe_accuracy": [0.5, 0.895, 0.9],
        "domain_accuracy[far]": [0.3, 0.695, 0.7],
        "transfer_accuracy[new]": [0.4, 0.795, 0.8],
    }
    assert set(frame) == set(expected)
    for name, values in expected.items():
        if name == "layer":
            assert [*frame[name]] == values
        else:
            np.testing.assert_allclose(frame[name], values)


def test_profile_of_no_layers_is_refused():
    with pytest.raises(ValueError, match=r"profile must hold at least one .* got \[\]"):
        RankProfileDisplay([])


def test_profile_s_curves_are_the_frame(profile):
    display = RankProfileDisplay.from_profile(profile, title="Layers")
    assert display.figure_.get_suptitle() == "Layers"
    frame = display.frame_
    rank, accuracy = display.axes_
    drawn = {line.get_label(): line.get_ydata() for line in rank.lines}
    assert {name: [*values] for name, values in drawn.items()} == {
        "width": [*frame["width"]],
        "99 % of variance": [*frame["variance_rank"]],
        "effective rank": [*frame["effective_rank"]],
        "effective rank, by places": pytest.approx(
            frame["places_effective_rank"], nan_ok=True
        ),
    }
    (band,) = rank.collections
    assert band.get_label() == "numerical rank at 0.1 to 0.001"
    heights = band.get_paths()[0].vertices[:, 1]
    assert (heights.min(), heights.max()) == (2, 8)
    *curves, depth = accuracy.lines
    assert [curve.get_label() for curve in curves] == [
        "probe, in distribution",
        "far",
        "new",
    ]
    np.testing.assert_allclose(curves[1].get_ydata(), [30, 69.5, 70])
    assert depth.get_label() == f"effective depth {effective_depth(profile)}"
    assert set(depth.get_xdata()) == {effective_depth(profile) - 1}
    for axes in display.axes_:
        labels = [text.get_text() for text in axes.get_xticklabels()]
        assert labels == ["first", "second", "logits"]
        # Off the data.
        display.figure_.canvas.draw()
        legend = axes.get_legend().get_window_extent()
        assert legend.y0 >= axes.get_window_extent().y1 - 1


def test_profile_s_curves_are_told_apart_without_colour(profile):
    for record in profile:
        record["domain_accuracy"] = dict.fromkeys("abc", 0.5)
    display = RankProfileDisplay(profile).plot()
    for axes in display.axes_:
        looks = [(line.get_marker(), line.get_linestyle()) for line in axes.lines]
        assert len(set(looks)) == len(looks)


def test_profile_without_places_has_no_curve_of_them(profile):
    display = RankProfileDisplay(profile[1:]).plot()
    labels = [line.get_label() for line in display.axes_[0].lines]
    assert "effective rank, by places" not in labels


def test_profile_draws_on_given_axes(profile):
    figure = Figure()
    grid = figure.subplots(2, 2)
    display = RankProfileDisplay(profile)
    assert display.plot(grid[0]) is display
    assert display.figure_ is figure
    assert display.axes_ == tuple(grid[0])
    assert not any(axes.lines for axes in grid[1])


def test_profile_from_an_estimator(tmp_path):
    rng = np.random.default_rng(0)
    X, y = rng.standard_normal((60, 4)), np.arange(60) % 3
    clf = SoftRankMLPClassifier((8, 6), max_epochs=1, random_state=0).fit(X, y)
    axes = Figure().subplots(1, 2)
    options = {"domains": {"far": (X + 1, y)}, "cv": 2}
    display = RankProfileDisplay.from_estimator(clf, X, y, ax=axes, **options)
    assert display.axes_ == tuple(axes)
    expected = RankProfileDisplay(rank_profile(clf, X, y, **options)).frame_
    for name, values in expected.items():
        np.testing.assert_array_equal(display.frame_[name], values)
    display.figure_.savefig(tmp_path / "profile.png")


# -- One network, and what a search found ----------------------------------------------


@pytest.fixture(scope="module")
def fitted():
    X, y = make_blobs(120, 5, centers=3, cluster_std=2.0, random_state=0)
    clf = SoftRankMLPClassifier(
        (16, 8), max_epochs=6, dropout=0.0, early_stopping=True, random_state=0
    )
    return clf.fit(X, y), X, y


def test_training_is_drawn_as_it_went(fitted):
    clf, _, _ = fitted
    pipeline = make_pipeline(clf)
    display = TrainingDisplay.from_estimator(pipeline, title="Training")
    np.testing.assert_array_equal(display.frame_["train_loss"], clf.loss_curve_)
    np.testing.assert_array_equal(display.frame_["valid_acc"], clf.validation_scores_)
    loss, accuracy = display.axes_
    np.testing.assert_array_equal(loss.lines[0].get_ydata(), clf.loss_curve_)
    assert 100 * clf.best_validation_score_ in accuracy.lines[0].get_ydata()
    assert display.figure_.get_suptitle() == "Training"
    records = [{k: v for k, v in r.items() if "valid" not in k} for r in clf.history_]
    assert len(TrainingDisplay(records).plot().axes_) == 1
    with pytest.raises(ValueError, match="at least one epoch"):
        TrainingDisplay([])
    with pytest.raises(NotFittedError):
        TrainingDisplay.from_estimator(SoftRankMLPClassifier())


def test_a_spectrum_is_relative_and_marks_what_is_kept(fitted):
    clf, _, _ = fitted
    display = SpectrumDisplay([4.0, 2.0, 0.0], rank=2, n_components=1)
    np.testing.assert_allclose(display.frame_["relative"], [1.0, 0.5, 0.0])
    np.testing.assert_allclose(display.frame_["share"], [0.8, 1.0, 1.0])
    curve, ring, line = display.plot().ax_.lines
    np.testing.assert_array_equal(curve.get_xdata(), [1, 2])
    assert (ring.get_xdata(), ring.get_ydata()) == ([1], [1.0])
    assert set(line.get_ydata()) == {0.01}
    first = SpectrumDisplay.from_estimator(clf, name="one")
    second = SpectrumDisplay.from_estimator(clf, ax=first.ax_, curve=1)
    labels = [text.get_text() for text in second.ax_.get_legend().texts]
    assert [label.partition(":")[0] for label in labels] == ["one", "T = 10"]
    assert first.figure_ is second.figure_
    flat = SpectrumDisplay([0.0, 0.0], rank=0, n_components=1).plot()
    assert flat.frame_["share"].tolist() == [1.0, 1.0]
    with pytest.raises(ValueError, match=r"must be a vector, got .* shape \(2, 2\)"):
        SpectrumDisplay(np.eye(2), 1, 1)


def test_an_embedding_marks_what_is_shifted(fitted):
    clf, X, y = fitted
    wide = copy.deepcopy(clf).compress(X, n_components=3)
    display = EmbeddingDisplay.from_estimator(
        wide, X, y, X_shifted=X[:30] + 5, y_shifted=y[:30]
    )
    frame = display.frame_
    Z = wide.transform(np.vstack([X, X[:30] + 5]))
    np.testing.assert_array_equal(np.c_[frame["x"], frame["y"]], Z[:, :2])
    assert frame["is_shifted"].sum() == 30
    np.testing.assert_array_equal(frame["label"], np.r_[y, y[:30]])
    drawn = sum(len(points.get_offsets()) for points in display.ax_.collections)
    assert drawn == 150
    names = [text.get_text() for text in display.ax_.get_legend().texts]
    assert names == ["0", "1", "2", "hollow: shifted"]
    assert "label" not in EmbeddingDisplay.from_estimator(wide, X).frame_
    with pytest.raises(ValueError, match="y_shifted must hold a label"):
        EmbeddingDisplay.from_estimator(wide, X, y, X_shifted=X)
    narrow = copy.deepcopy(clf).compress(X, n_components=None)
    narrow.compressor_.components_ = narrow.compressor_.components_[:1]
    with pytest.raises(ValueError, match=r"two directions or more, got 1"):
        EmbeddingDisplay.from_estimator(narrow, X)
    with pytest.raises(ValueError, match=r"label must have one entry a row, 2"):
        EmbeddingDisplay(np.zeros((2, 2)), [1])
    with pytest.raises(ValueError, match=r"points must be of shape \(n, 2\)"):
        EmbeddingDisplay(np.zeros((2, 3)))


RESULTS = {
    "trial": np.arange(5),
    "mean_test_id": np.array([0.9, 0.8, 0.7, 0.8, np.nan]),
    "mean_test_ood": np.array([0.5, 0.7, 0.6, 0.7, np.nan]),
    "is_baseline": np.array([True, False, False, False, False]),
    "stage": np.array([2, 2, 1, 1, 1]),
}


def test_a_search_shows_its_front_and_its_choice():
    display = OODSearchDisplay.from_results(RESULTS, best_index=1)
    frame = display.frame_
    assert frame["trial"].tolist() == [0, 1, 2, 3]  # The last one has no scores.
    # Equals are both on the front: neither is worse.
    assert frame["is_pareto"].tolist() == [True, True, False, True]
    assert frame["is_choice"].tolist() == [False, True, False, False]
    names = [text.get_text() for text in display.ax_.get_legend().texts]
    assert names == ["Pareto front", "configurations", "baselines", "the choice"]
    front = display.ax_.lines[0]
    np.testing.assert_allclose(front.get_xdata(), [80, 80, 90])
    failed = {**RESULTS, "mean_test_ood": np.full(5, np.nan)}
    with pytest.raises(ValueError, match="at least one configuration with scores"):
        OODSearchDisplay(failed)
    with pytest.raises(ValueError, match=r"got none of the name 'stage'"):
        OODSearchDisplay({k: v for k, v in RESULTS.items() if k != "stage"})


def test_a_fitted_search_has_what_its_display_asks_for(fitted):
    _, X, y = fitted
    search = OODSearchCV(
        SoftRankMLPClassifier((8,), max_epochs=2, dropout=0.0, random_state=0),
        n_trials=8,
        cv=2,
        shifts=[GainDrift(3)],
        random_state=0,
    ).fit(X, y)
    frame = OODSearchDisplay.from_estimator(search).frame_
    assert frame["trial"][frame["is_choice"]].tolist() == [search.best_index_]
    assert frame["is_finalist"].sum() >= 2


def test_a_report_is_drawn_with_its_intervals(fitted):
    clf, X, y = fitted
    display = OODReportDisplay.from_estimator(
        clf, X, y, {"far": (X + 1, y), "drift": GainDrift()}, severities=[1, 5]
    )
    frame = display.frame_
    assert frame["domain"].tolist() == ["in-distribution", "far", "drift", "drift"]
    np.testing.assert_array_equal(frame["severity"], [0, np.nan, 1, 5])
    assert (frame["low"] <= frame["accuracy"]).all()
    assert (frame["accuracy"] <= frame["high"]).all()
    labels = [tick.get_text() for tick in display.ax_.get_yticklabels()]
    assert labels == ["in-distribution", "far", "drift, 1", "drift, 5"]
    records = ood_report(clf, X, y, {"far": (X, y)})
    loss = OODReportDisplay.from_results(records, measure="log_loss")
    assert loss.ax_.get_xlabel() == "log loss"
    with pytest.raises(ValueError, match=r"measure must be one that .* got 'auc'"):
        OODReportDisplay(records, "auc")
    with pytest.raises(ValueError, match="records must hold at least one domain"):
        OODReportDisplay([])


# -- Names and backgrounds -----------------------------------------------------------

NAMES = ["$a_b$", "$", "_hidden", "n\x00ul\nand more", "x" * 500, ""]


def test_names_are_drawn_as_they_are():
    records = [
        {"domain": name, "severity": None}
        | {"accuracy": 0.5, "accuracy_low": 0.4, "accuracy_high": 0.6}
        for name in NAMES
    ]
    report = OODReportDisplay(records).plot()
    points = np.random.default_rng(0).standard_normal((len(NAMES), 2))
    embedding = EmbeddingDisplay(points, NAMES).plot()
    spectrum = SpectrumDisplay([2.0, 1.0], 2, 1, name="$x_1$").plot()
    drawn = [label.get_text() for label in report.ax_.get_yticklabels()]
    legend = [text.get_text() for text in embedding.ax_.get_legend().get_texts()]
    assert sorted(legend) == sorted(drawn)
    assert drawn[:4] == [r"\$a_b\$", r"\$", " _hidden", "n ul and more"]
    assert drawn[4] == "x" * 27 + "…"
    for display in (report, embedding, spectrum):
        display.figure_.canvas.draw()  # A formula would be an error.


def test_no_interval_lies_on_the_edge_and_no_front_is_a_point():
    own = {"accuracy": 0.9, "accuracy_low": 0.8, "accuracy_high": 0.95}
    records = [{"domain": k, "severity": None, **own} for k in range(2)]
    low, high = OODReportDisplay(records).plot().ax_.get_ylim()
    assert low <= -0.5
    assert high >= 1.5
    for n, names in ((1, []), (2, ["Pareto front"])):
        results = {
            "trial": np.arange(n),
            "mean_test_id": np.linspace(0.5, 0.6, n),
            "mean_test_ood": np.linspace(0.6, 0.5, n),
            "is_baseline": np.zeros(n, dtype=bool),
            "stage": np.ones(n),
        }
        legend = OODSearchDisplay(results).plot().ax_.get_legend()
        assert [text.get_text() for text in legend.get_texts()] == [
            *names, "configurations"
        ]  # fmt: skip


def colors(artists):
    return [to_rgb(artist.get_color()) for artist in artists]


def test_what_is_drawn_can_be_seen_on_a_dark_background():
    import matplotlib.style

    history = [
        {"epoch": k, "train_loss": 1.0, "valid_loss": 1.0, "valid_acc": 0.5}
        for k in (1, 2)
    ]
    with matplotlib.style.context("dark_background"):
        training = TrainingDisplay(history).plot()
        search = OODSearchDisplay(RESULTS).plot()
        embedding = EmbeddingDisplay(np.eye(2), ["a", "b"]).plot()
    assert min(map(sum, colors(training.axes_[1].lines))) > 0.8
    assert min(map(sum, colors(search.ax_.lines))) > 0.8
    for display in (search, embedding):
        for points in display.ax_.collections:
            assert points.get_facecolor()[:, :3].sum(axis=1).min() > 0.8


def test_epochs_are_whole_numbers():
    display = TrainingDisplay([{"epoch": k, "train_loss": 1.0} for k in (1, 2)]).plot()
    ticks = display.axes_[0].get_xticks()
    np.testing.assert_array_equal(ticks, np.round(ticks))


def test_scores_that_are_no_shares_are_not_drawn_as_per_cent():
    losses = {
        name: -np.asarray(column, dtype=float)
        if name in ("mean_test_id", "mean_test_ood")
        else column
        for name, column in RESULTS.items()
    }
    display = OODSearchDisplay(losses).plot()
    assert display.ax_.get_xlabel() == "in distribution (score)"
    drawn = np.concatenate([c.get_offsets()[:, 0] for c in display.ax_.collections])
    assert sorted(drawn) == pytest.approx(sorted(display.frame_["id"]))
