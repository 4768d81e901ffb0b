"""Plots: a frame first, then axes. matplotlib is imported when something is drawn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["TemperatureSweepDisplay"]

# Okabe and Ito's colours, told apart by most colour-blind readers.
_BLUE, _ORANGE, _GREEN, _GREY = "#0072B2", "#D55E00", "#009E73", "#666666"


class TemperatureSweepDisplay:
    """Accuracy and rank against the temperature.

    Parameters
    ----------
    rows : list of dict
        From :func:`sksoftrank.inspection.summarize_sweep`; at least one.

    Attributes
    ----------
    frame_ : dict of str to ndarray
        The columns that are drawn.
    figure_ : matplotlib Figure
        Where it was drawn last.
    axes_ : tuple of matplotlib Axes
        The axes for accuracy and for rank.

    Examples
    --------
    >>> from sksoftrank.displays import TemperatureSweepDisplay
    >>> names = (
    ...     "temperature", "accuracy", "shifted_accuracy", "knn_accuracy",
    ...     "effective_rank", "variance_rank", "n_components",
    ... )
    >>> row = {name: 1.0 for name in names} | {f"{n}_interval": 0.1 for n in names}
    >>> TemperatureSweepDisplay([row]).frame_["accuracy"]
    array([1.])
    """

    _ACCURACY = (
        ("accuracy", "in distribution", _BLUE, "o-"),
        ("shifted_accuracy", "shifted", _ORANGE, "s-"),
        ("knn_accuracy", "5 neighbours on transform", _GREEN, "^--"),
    )
    _RANK = (
        ("variance_rank", "directions for 99 % of variance", _BLUE, "o-"),
        ("effective_rank", "effective rank", _GREY, "d--"),
        ("n_components", "columns of transform", _ORANGE, "s-"),
    )

    def __init__(self, rows: Sequence[Mapping[str, float]]) -> None:
        if not rows:
            raise ValueError(
                f"rows must hold at least one temperature, got {rows!r}. Pass what "
                "summarize_sweep returns."
            )
        self.frame_: dict[str, npt.NDArray[np.float64]] = {
            name: np.array([row[name] for row in rows]) for name in rows[0]
        }

    def plot(self, ax: Any = None, *, title: str | None = None) -> Any:
        """Draw accuracy on one axes and rank on another.

        Parameters
        ----------
        ax : pair of matplotlib Axes, default=None
            Where to draw; None makes a figure.
        title : str, default=None
            Title of the figure.

        Returns
        -------
        TemperatureSweepDisplay
            Itself.
        """
        if ax is None:
            from matplotlib.figure import Figure

            figure = Figure(figsize=(10, 4), layout="constrained")
            ax = figure.subplots(1, 2)
        self.axes_ = tuple(ax)
        self.figure_ = self.axes_[0].figure
        accuracy, rank = self.axes_
        self._draw(accuracy, self._ACCURACY, scale=100.0)
        accuracy.set(xlabel="softmax temperature in training", ylabel="accuracy (%)")
        self._draw(rank, self._RANK, scale=1.0)
        rank.set(xlabel="softmax temperature in training", ylabel="directions")
        rank.set_ylim(bottom=0)
        if title is not None:
            self.figure_.suptitle(title)
        return self

    def _draw(self, axes: Any, curves: Any, scale: float) -> None:
        temperature = self.frame_["temperature"]
        for name, label, color, style in curves:
            mean = scale * self.frame_[name]
            half = scale * np.nan_to_num(self.frame_[f"{name}_interval"])
            axes.plot(temperature, mean, style, color=color, label=label, markersize=5)
            axes.fill_between(
                temperature, mean - half, mean + half, color=color, alpha=0.15, lw=0
            )
        axes.set_xscale("log")
        axes.set_xticks(temperature, [f"{value:g}" for value in temperature])
        axes.minorticks_off()
        axes.grid(alpha=0.3)
        axes.legend(frameon=False, fontsize="small")
        axes.spines[["top", "right"]].set_visible(False)
