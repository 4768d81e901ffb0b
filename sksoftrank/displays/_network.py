"""One network: its training, its spectrum, its embedding."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from sklearn.utils.validation import check_is_fitted

from sksoftrank.displays._style import (
    BLUE,
    CURVES,
    GREY,
    ORANGE,
    finish,
    ink,
    make_axes,
    plain,
)

Frame = dict[str, npt.NDArray[Any]]


def _last_step(estimator: Any) -> Any:
    while hasattr(estimator, "steps"):
        estimator = estimator.steps[-1][1]
    return estimator


class TrainingDisplay:
    """Loss and accuracy over the epochs of a fit.

    Parameters
    ----------
    history : list of dict
        `history_` of a fitted classifier; at least one epoch.

    Attributes
    ----------
    frame_ : dict of str to ndarray
        A column for each number that the epochs have, ``epoch`` among them.
    figure_ : matplotlib Figure
        Where it was drawn last.
    axes_ : tuple of matplotlib Axes
        The axes for the loss and, where rows were held out, for the accuracy.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from sksoftrank import SoftRankMLPClassifier
    >>> from sksoftrank.displays import TrainingDisplay
    >>> X, y = load_iris(return_X_y=True)
    >>> clf = SoftRankMLPClassifier(16, max_epochs=5, random_state=0).fit(X, y)
    >>> TrainingDisplay.from_estimator(clf).frame_["epoch"]
    array([1, 2, 3, 4, 5])
    """

    def __init__(self, history: Sequence[Mapping[str, Any]]) -> None:
        if not history:
            raise ValueError(
                f"history must hold at least one epoch, got {history!r}. Pass history_ "
                "of a fitted classifier."
            )
        names = [k for k, v in history[0].items() if isinstance(v, int | float)]
        self.frame_: Frame = {
            name: np.array([record.get(name, np.nan) for record in history])
            for name in names
        }

    @classmethod
    def from_estimator(
        cls, estimator: Any, *, ax: Any = None, title: str | None = None
    ) -> TrainingDisplay:
        """Draw the training of a fitted classifier, or of a pipeline's last step.

        Parameters
        ----------
        estimator : fitted classifier
            One of the package's with a single network.
        ax : Axes or pair of Axes, default=None
            Where to draw: two where rows were held out. None makes a figure.
        title : str, default=None
            Title of the figure.

        Returns
        -------
        TrainingDisplay
            The display.
        """
        check_is_fitted(estimator)
        return cls(_last_step(estimator).history_).plot(ax, title=title)

    def plot(self, ax: Any = None, *, title: str | None = None) -> TrainingDisplay:
        """Draw the losses and, where rows were held out, the accuracy on them.

        Parameters
        ----------
        ax : Axes or pair of Axes, default=None
            Where to draw: two where rows were held out. None makes a figure.
        title : str, default=None
            Title of the figure.

        Returns
        -------
        TrainingDisplay
            Itself.
        """
        frame = self.frame_
        has_accuracy = "valid_acc" in frame
        self.axes_ = make_axes(ax, 1 + has_accuracy)
        self.figure_ = self.axes_[0].figure
        losses = [("train_loss", "training rows", *CURVES[0])]
        if "valid_loss" in frame:
            losses.append(("valid_loss", "held-out rows", *CURVES[1]))
        # Markers on a few epochs tell curves apart, on each they would hide them.
        every = max(1, len(frame["epoch"]) // 10)
        for name, label, color, style in losses:
            self.axes_[0].plot(
                frame["epoch"],
                frame[name],
                style,
                color=color,
                label=label,
                markersize=5,
                markevery=every,
            )
        self.axes_[0].set_ylabel("loss at the temperature")
        if has_accuracy:
            accuracy = 100 * frame["valid_acc"]
            best = int(np.argmax(accuracy))
            self.axes_[1].plot(
                frame["epoch"],
                accuracy,
                CURVES[1][1],
                color=ORANGE,
                label="held-out rows",
                markersize=5,
                markevery=every,
            )
            self.axes_[1].axvline(
                frame["epoch"][best],
                color=ink(self.axes_[1]),
                ls=":",
                lw=1,
                label=f"best: epoch {frame['epoch'][best]}, {accuracy[best]:.1f} %",
            )
            self.axes_[1].set_ylabel("accuracy (%)")
        for axes in self.axes_:
            axes.set_xlabel("epoch")
            axes.xaxis.get_major_locator().set_params(integer=True)
            finish(axes)
        if title is not None:
            self.figure_.suptitle(title)
        return self


class SpectrumDisplay:
    """Singular values of an embedding, against the largest.

    Parameters
    ----------
    singular_values : ndarray of shape (d,)
        Of the centred embedding, falling.
    rank : int
        Values above a hundredth of the largest.
    n_components : int
        Directions that `transform` keeps.
    name : str, default="embedding"
        What the curve is called.

    Attributes
    ----------
    frame_ : dict of str to ndarray
        ``direction`` (from 1), ``relative`` (the value over the largest) and
        ``share`` (of the variance, of all directions up to this one).
    figure_ : matplotlib Figure
        Where it was drawn last.
    ax_ : matplotlib Axes
        The axes.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from sksoftrank import SoftRankMLPClassifier
    >>> from sksoftrank.displays import SpectrumDisplay
    >>> X, y = load_iris(return_X_y=True)
    >>> clf = SoftRankMLPClassifier(16, max_epochs=5, random_state=0).fit(X, y)
    >>> display = SpectrumDisplay.from_estimator(clf)
    >>> display.frame_["relative"][0]
    np.float64(1.0)
    """

    def __init__(
        self,
        singular_values: npt.ArrayLike,
        rank: int,
        n_components: int,
        *,
        name: str = "embedding",
    ) -> None:
        s = np.asarray(singular_values, dtype=np.float64)
        if s.ndim != 1 or len(s) == 0:
            raise ValueError(
                f"singular_values must be a vector, got an array of shape {s.shape}. "
                "Pass singular_values_ of a fitted classifier."
            )
        squares = np.cumsum(s**2)
        self.frame_: Frame = {
            "direction": np.arange(1, len(s) + 1),
            "relative": s / s[0] if s[0] > 0 else s,
            "share": squares / squares[-1] if s[0] > 0 else np.ones(len(s)),
        }
        self.rank, self.n_components, self.name = rank, n_components, name

    @classmethod
    def from_estimator(
        cls,
        estimator: Any,
        *,
        name: str | None = None,
        ax: Any = None,
        curve: int = 0,
    ) -> SpectrumDisplay:
        """Draw the spectrum of a fitted classifier, or of a pipeline's last step.

        Parameters
        ----------
        estimator : fitted classifier
            One of the package's.
        name : str, default=None
            What the curve is called; None names the temperature.
        ax : matplotlib Axes, default=None
            Where to draw, several in one to compare; None makes a figure.
        curve : int, default=0
            Number of the curve in these axes, which gives its colour and marker.

        Returns
        -------
        SpectrumDisplay
            The display.
        """
        check_is_fitted(estimator)
        last = _last_step(estimator)
        if name is None:
            t = getattr(last, "temperature_", None)
            name = "embedding" if t is None else f"T = {t:.4g}"
        display = cls(last.singular_values_, last.rank_, last.n_components_, name=name)
        return display.plot(ax, curve=curve)

    def plot(self, ax: Any = None, *, curve: int = 0) -> SpectrumDisplay:
        """Draw the spectrum; a ring marks the last direction that `transform` keeps.

        Parameters
        ----------
        ax : matplotlib Axes, default=None
            Where to draw; None makes a figure.
        curve : int, default=0
            Number of the curve, which gives its colour and marker.

        Returns
        -------
        SpectrumDisplay
            Itself.
        """
        (self.ax_,) = make_axes(ax, 1)
        self.figure_ = self.ax_.figure
        color, style = CURVES[curve % len(CURVES)]
        direction, relative = self.frame_["direction"], self.frame_["relative"]
        shown = relative > 0
        self.ax_.plot(
            direction[shown],
            relative[shown],
            style,
            color=color,
            markersize=4,
            markevery=max(1, int(shown.sum()) // 12),
            label=f"{plain(self.name)}: rank {self.rank}, {self.n_components} kept",
        )
        kept = min(self.n_components, len(direction)) - 1
        self.ax_.plot(
            direction[kept],
            relative[kept],
            "o",
            color=color,
            markerfacecolor="none",
            markersize=11,
        )
        self.ax_.axhline(0.01, color=GREY, ls=":", lw=1)
        self.ax_.set_yscale("log")
        self.ax_.set_xscale("log")
        self.ax_.set(xlabel="direction", ylabel="singular value over the largest")
        finish(self.ax_)
        return self


class EmbeddingDisplay:
    """The two leading directions of `transform`.

    Parameters
    ----------
    points : ndarray of shape (n, 2)
        Rows in the plane.
    labels : ndarray of shape (n,), default=None
        Class of each row.
    is_shifted : ndarray of shape (n,), default=None
        Which rows are from elsewhere.

    Attributes
    ----------
    frame_ : dict of str to ndarray
        ``x``, ``y``, ``label`` (where given) and ``is_shifted``.
    figure_ : matplotlib Figure
        Where it was drawn last.
    ax_ : matplotlib Axes
        The axes.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from sksoftrank import SoftRankMLPClassifier
    >>> from sksoftrank.displays import EmbeddingDisplay
    >>> X, y = load_iris(return_X_y=True)
    >>> clf = SoftRankMLPClassifier(
    ...     16, max_epochs=5, n_components=2, random_state=0
    ... ).fit(X, y)
    >>> display = EmbeddingDisplay.from_estimator(clf, X, y)
    >>> display.frame_["x"].shape
    (150,)
    """

    _MARKERS = "osD^vPX*<>"

    def __init__(
        self,
        points: npt.ArrayLike,
        labels: npt.ArrayLike | None = None,
        is_shifted: npt.ArrayLike | None = None,
    ) -> None:
        Z = np.asarray(points)
        if Z.ndim != 2 or Z.shape[1] != 2 or len(Z) == 0:
            raise ValueError(
                f"points must be of shape (n, 2), got {Z.shape}. Keep two directions, "
                "with n_components=2."
            )
        self.frame_: Frame = {"x": Z[:, 0], "y": Z[:, 1]}
        for name, values in (("label", labels), ("is_shifted", is_shifted)):
            if values is None:
                continue
            column = np.asarray(values)
            if column.shape != (len(Z),):
                raise ValueError(
                    f"{name} must have one entry a row, {len(Z)}, got an array of "
                    f"shape {column.shape}. Pass what belongs to the same rows."
                )
            self.frame_[name] = column

    @classmethod
    def from_estimator(
        cls,
        estimator: Any,
        X: npt.ArrayLike,
        y: npt.ArrayLike | None = None,
        *,
        X_shifted: npt.ArrayLike | None = None,
        y_shifted: npt.ArrayLike | None = None,
        ax: Any = None,
    ) -> EmbeddingDisplay:
        """Draw rows as a fitted classifier, or a pipeline, transforms them.

        Parameters
        ----------
        estimator : fitted classifier
            With at least two columns of `transform`, the first two of which are drawn.
        X : array-like of shape (n_samples, n_features)
            Rows in distribution.
        y : array-like of shape (n_samples,), default=None
            Their labels.
        X_shifted : array-like of shape (m, n_features), default=None
            Rows from elsewhere, drawn hollow.
        y_shifted : array-like of shape (m,), default=None
            Their labels, where `y` is given.
        ax : matplotlib Axes, default=None
            Where to draw; None makes a figure.

        Returns
        -------
        EmbeddingDisplay
            The display.
        """
        check_is_fitted(estimator)
        parts = [np.asarray(estimator.transform(X))]
        labels = None if y is None else [np.asarray(y)]
        if X_shifted is not None:
            parts.append(np.asarray(estimator.transform(X_shifted)))
            if labels is not None:
                if y_shifted is None:
                    raise ValueError(
                        "y_shifted must hold a label for each row of X_shifted where y "
                        "is given, got None. Pass both, or neither."
                    )
                labels.append(np.asarray(y_shifted))
        width = parts[0].shape[1]
        if width < 2:
            raise ValueError(
                f"estimator must keep two directions or more, got {width}. Call "
                "estimator.compress(X, n_components=2) before."
            )
        is_shifted = np.repeat([False, True][: len(parts)], [len(p) for p in parts])
        return cls(
            np.concatenate(parts)[:, :2],
            None if labels is None else np.concatenate(labels),
            is_shifted,
        ).plot(ax)

    def plot(self, ax: Any = None) -> EmbeddingDisplay:
        """Draw the rows, a marker for each class, hollow where they are shifted.

        Parameters
        ----------
        ax : matplotlib Axes, default=None
            Where to draw; None makes a figure.

        Returns
        -------
        EmbeddingDisplay
            Itself.
        """
        (self.ax_,) = make_axes(ax, 1, size=(6.0, 5.0))
        self.figure_ = self.ax_.figure
        frame = self.frame_
        n = len(frame["x"])
        labels = frame.get("label", np.full(n, "rows"))
        is_shifted = frame.get("is_shifted", np.zeros(n, dtype=bool))
        classes = np.unique(labels)
        from matplotlib import colormaps
        from matplotlib.colors import to_rgb

        # Of even steps in lightness, so that neighbours differ in grey; but for the end
        # that is lost on this background.
        is_dark = sum(to_rgb(self.ax_.get_facecolor())) < 1.5
        ends = (0.25, 1.0) if is_dark else (0.0, 0.85)
        colors: Any = colormaps["viridis"](np.linspace(*ends, len(classes)))
        if len(classes) == 1:
            colors = [BLUE]
        for k, value in enumerate(classes):
            marker = self._MARKERS[k % len(self._MARKERS)]
            has_own = ((labels == value) & ~is_shifted).any()
            for shifted in (False, True):
                rows = (labels == value) & (is_shifted == shifted)
                if not rows.any():
                    continue
                look = (
                    {"facecolors": "none", "edgecolors": [colors[k]]}
                    if shifted
                    else {"color": [colors[k]]}
                )
                self.ax_.scatter(
                    frame["x"][rows],
                    frame["y"][rows],
                    s=22,
                    marker=marker,
                    alpha=0.8,
                    label=None if shifted and has_own else plain(value),
                    **look,
                )
        if is_shifted.any():
            name = "hollow: shifted"
            self.ax_.scatter(
                [], [], s=22, facecolors="none", edgecolors=ink(self.ax_), label=name
            )
        self.ax_.set(xlabel="first direction", ylabel="second direction")
        finish(self.ax_)
        legend = self.ax_.get_legend()
        if len(legend.texts) > 4:  # Beside the axes: above them it would be a tower.
            handles, names = self.ax_.get_legend_handles_labels()
            self.ax_.legend(
                handles,
                names,
                loc="upper left",
                bbox_to_anchor=(1.0, 1.0),
                frameon=False,
                fontsize="small",
            )
        return self
