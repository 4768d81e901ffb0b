"""What a temperature, and each layer, does to ranks and accuracies."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from sksoftrank.displays._style import (
    BLUE,
    CURVES,
    GREEN,
    GREY,
    ORANGE,
    finish,
    ink,
    make_axes,
    plain,
)


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
        ("accuracy", "in distribution", BLUE, "o-"),
        ("shifted_accuracy", "shifted", ORANGE, "s-"),
        ("knn_accuracy", "5 neighbours on transform", GREEN, "^--"),
    )
    _RANK = (
        ("variance_rank", "directions for 99 % of variance", BLUE, "o-"),
        ("effective_rank", "effective rank", GREY, "d--"),
        ("n_components", "columns of transform", ORANGE, "s-"),
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
        self.axes_ = make_axes(ax, 2)
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
        finish(axes)


class RankProfileDisplay:
    """Ranks and probes of a network's layers, from the input to the logits.

    Parameters
    ----------
    profile : list of dict
        From :func:`sksoftrank.inspection.rank_profile`; at least one layer.

    Attributes
    ----------
    frame_ : dict of str to ndarray
        Columns, with one value a layer: what is drawn, and ``alignment``,
        ``attention_entropy`` and ``class_separation`` beside it.
    figure_ : matplotlib Figure
        Where it was drawn last.
    axes_ : tuple of matplotlib Axes
        The axes for rank and for accuracy.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from sksoftrank import SoftRankMLPClassifier
    >>> from sksoftrank.displays import RankProfileDisplay
    >>> X, y = load_iris(return_X_y=True)
    >>> clf = SoftRankMLPClassifier((16, 8), max_epochs=5, random_state=0).fit(X, y)
    >>> display = RankProfileDisplay.from_estimator(clf, X, y)
    >>> display.frame_["width"]
    array([16,  8,  3])
    """

    def __init__(self, profile: Sequence[Mapping[str, Any]]) -> None:
        if not profile:
            raise ValueError(
                f"profile must hold at least one layer, got {profile!r}. Pass what "
                "rank_profile returns."
            )
        columns: dict[str, list[Any]] = {
            "layer": [record["layer"] for record in profile],
            "width": [record["n_features"] for record in profile],
            "effective_rank": [record["effective_rank"] for record in profile],
            "places_effective_rank": [
                (record["places"] or {}).get("effective_rank", np.nan)
                for record in profile
            ],
            "variance_rank": [record["variance_rank"][0.99] for record in profile],
        }
        tolerances = sorted(profile[0]["numerical_rank"])
        for tol in tolerances:
            columns[f"numerical_rank[{tol:g}]"] = [
                record["numerical_rank"][tol] for record in profile
            ]
        self._band = f"numerical rank at {tolerances[-1]:g} to {tolerances[0]:g}"
        measures = ("alignment", "attention_entropy", "class_separation")
        for name in (*measures, "probe_accuracy"):
            columns[name] = [record[name] for record in profile]
        self._curves: dict[str, str] = {}
        for measure in ("domain_accuracy", "transfer_accuracy"):
            for name in profile[0][measure]:
                columns[f"{measure}[{name}]"] = [r[measure][name] for r in profile]
                self._curves[f"{measure}[{name}]"] = plain(name)
        self.frame_: dict[str, npt.NDArray[Any]] = {
            name: np.array(values) for name, values in columns.items()
        }

    @classmethod
    def from_estimator(
        cls,
        estimator: Any,
        X: npt.ArrayLike,
        y: npt.ArrayLike,
        *,
        ax: Any = None,
        title: str | None = None,
        **profile_params: Any,
    ) -> RankProfileDisplay:
        """Measure a fitted network and draw its profile.

        Parameters
        ----------
        estimator : fitted classifier
            One of the package's with a single network.
        X : {array-like, sparse matrix} of shape (n_samples, n_features)
            Rows in distribution.
        y : array-like of shape (n_samples,)
            Their labels.
        ax : pair of matplotlib Axes, default=None
            Where to draw; None makes a figure.
        title : str, default=None
            Title of the figure.
        **profile_params : dict
            Further arguments of :func:`sksoftrank.inspection.rank_profile`.

        Returns
        -------
        RankProfileDisplay
            The display.
        """
        from sksoftrank.inspection import rank_profile

        profile = rank_profile(estimator, X, y, **profile_params)
        return cls.from_profile(profile, ax=ax, title=title)

    @classmethod
    def from_profile(
        cls,
        profile: Sequence[Mapping[str, Any]],
        *,
        ax: Any = None,
        title: str | None = None,
    ) -> RankProfileDisplay:
        """Draw a profile.

        Parameters
        ----------
        profile : list of dict
            From :func:`sksoftrank.inspection.rank_profile`.
        ax : pair of matplotlib Axes, default=None
            Where to draw; None makes a figure.
        title : str, default=None
            Title of the figure.

        Returns
        -------
        RankProfileDisplay
            The display.
        """
        return cls(profile).plot(ax, title=title)

    def plot(self, ax: Any = None, *, title: str | None = None) -> RankProfileDisplay:
        """Draw ranks on one axes and the probes' accuracies on another.

        A band reaches from the numerical rank at the largest tolerance to that at the
        smallest. A dotted line marks the first layer that tells 99 % of what the last
        one does.

        Parameters
        ----------
        ax : pair of matplotlib Axes, default=None
            Where to draw; None makes a figure.
        title : str, default=None
            Title of the figure.

        Returns
        -------
        RankProfileDisplay
            Itself.
        """
        frame = self.frame_
        places = np.arange(len(frame["layer"]))
        self.axes_ = make_axes(ax, 2, size=(max(10, len(places)), 5))
        self.figure_ = self.axes_[0].figure
        rank, accuracy = self.axes_

        def draw(axes: Any, name: str, label: str, style: str, **look: Any) -> None:
            scale = 100.0 if "accuracy" in name else 1.0
            look = {"markersize": 5, **look}
            axes.plot(places, scale * frame[name], style, label=label, **look)

        numerical = [v for name, v in frame.items() if name.startswith("numerical")]
        look = {"color": GREY, "alpha": 0.2, "lw": 1, "label": self._band}
        rank.fill_between(places, numerical[-1], numerical[0], **look)
        draw(rank, "width", "width", "_", color=ink(rank), markersize=14)
        draw(rank, "variance_rank", "99 % of variance", "s-", color=ORANGE)
        draw(rank, "effective_rank", "effective rank", "o-", color=BLUE)
        if np.isfinite(frame["places_effective_rank"]).any():
            hollow = {"color": BLUE, "markerfacecolor": rank.get_facecolor()}
            name = "places_effective_rank"
            draw(rank, name, "effective rank, by places", "o:", **hollow)
        rank.set_ylim(bottom=0)
        rank.set_ylabel("directions")

        draw(accuracy, "probe_accuracy", "probe, in distribution", "o-", color=BLUE)
        for index, (name, label) in enumerate(self._curves.items()):
            color, style = CURVES[(index + 1) % len(CURVES)]
            draw(accuracy, name, label, style, color=color)
        own = frame["probe_accuracy"]
        depth = int(np.argmax(own >= 0.99 * own[-1]))
        label = f"effective depth {depth + 1}"
        accuracy.axvline(depth, color=ink(accuracy), ls=":", lw=1, label=label)
        accuracy.set_ylabel("accuracy of a linear probe (%)")
        for axes in self.axes_:
            axes.set_xticks(places, frame["layer"], rotation=45, ha="right")
            finish(axes)
        if title is not None:
            self.figure_.suptitle(title)
        return self
