"""Displays: a frame, then axes, and matplotlib only when something is drawn."""

import subprocess
import sys

import numpy as np
import pytest
from matplotlib.figure import Figure

from sksoftrank import SoftRankMLPClassifier
from sksoftrank.displays import RankProfileDisplay, TemperatureSweepDisplay
from sksoftrank.inspection import effective_depth, rank_profile, summarize_sweep

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
