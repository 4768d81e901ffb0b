"""The display: a frame, then axes, and matplotlib only when something is drawn."""

import subprocess
import sys

import numpy as np
import pytest
from matplotlib.figure import Figure

from sksoftrank.displays import TemperatureSweepDisplay
from sksoftrank.inspection import summarize_sweep

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


def test_import_does_not_import_matplotlib():
    code = (
        "import sys; from sksoftrank.displays import TemperatureSweepDisplay;"
        "print('matplotlib' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "False"
