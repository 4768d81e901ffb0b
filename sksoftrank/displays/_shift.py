"""What a search found under a shift, and what is left of a classifier's accuracy."""

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


class OODSearchDisplay:
    """Configurations of a search: in distribution against out of distribution.

    Parameters
    ----------
    results : dict of ndarray
        `cv_results_` of a fitted :class:`~sksoftrank.OODSearchCV`.
    best_index : int, default=None
        The choice; None marks none.

    Attributes
    ----------
    frame_ : dict of str to ndarray
        One entry a configuration that has scores: ``trial``, ``id``, ``ood`` (means of
        the first stage), ``is_baseline``, ``is_finalist``, ``is_choice``, and
        ``is_pareto``: none is better in both.
    figure_ : matplotlib Figure
        Where it was drawn last.
    ax_ : matplotlib Axes
        The axes.

    Examples
    --------
    >>> import numpy as np
    >>> from sksoftrank.displays import OODSearchDisplay
    >>> results = {
    ...     "trial": np.arange(3),
    ...     "mean_test_id": np.array([0.9, 0.8, 0.7]),
    ...     "mean_test_ood": np.array([0.5, 0.7, 0.6]),
    ...     "is_baseline": np.array([True, False, False]),
    ...     "stage": np.array([2, 2, 1]),
    ... }
    >>> OODSearchDisplay(results, best_index=1).frame_["is_pareto"]
    array([ True,  True, False])
    """

    def __init__(
        self, results: Mapping[str, npt.ArrayLike], best_index: int | None = None
    ) -> None:
        needed = ("mean_test_id", "mean_test_ood", "is_baseline", "stage", "trial")
        missing = [name for name in needed if name not in results]
        if missing:
            raise ValueError(
                "results must have the columns of OODSearchCV.cv_results_, got none of "
                f"the name {missing[0]!r}. Pass search.cv_results_."
            )
        columns = {name: np.asarray(results[name]) for name in needed}
        n = len(columns["trial"])
        is_choice = np.zeros(n, dtype=bool)
        if best_index is not None:
            is_choice[best_index] = True
        frame = {
            "trial": columns["trial"],
            "id": columns["mean_test_id"].astype(float),
            "ood": columns["mean_test_ood"].astype(float),
            "is_baseline": columns["is_baseline"].astype(bool),
            "is_finalist": columns["stage"] == 2,
            "is_choice": is_choice,
        }
        is_scored = np.isfinite(frame["id"]) & np.isfinite(frame["ood"])
        if not is_scored.any():
            raise ValueError(
                "results must hold at least one configuration with scores, got none. "
                "Pass search.cv_results_ of a search that has finished."
            )
        self.frame_: Frame = {name: values[is_scored] for name, values in frame.items()}
        both = np.column_stack([self.frame_["id"], self.frame_["ood"]])
        beaten = [
            bool(((both >= row).all(axis=1) & (both > row).any(axis=1)).any())
            for row in both
        ]
        self.frame_["is_pareto"] = ~np.array(beaten)

    @classmethod
    def from_estimator(cls, search: Any, *, ax: Any = None) -> OODSearchDisplay:
        """Draw a fitted search.

        Parameters
        ----------
        search : OODSearchCV
            Fitted.
        ax : matplotlib Axes, default=None
            Where to draw; None makes a figure.

        Returns
        -------
        OODSearchDisplay
            The display.
        """
        check_is_fitted(search)
        return cls.from_results(
            search.cv_results_, best_index=getattr(search, "best_index_", None), ax=ax
        )

    @classmethod
    def from_results(
        cls,
        results: Mapping[str, npt.ArrayLike],
        *,
        best_index: int | None = None,
        ax: Any = None,
    ) -> OODSearchDisplay:
        """Draw the results of a search.

        Parameters
        ----------
        results : dict of ndarray
            `cv_results_`.
        best_index : int, default=None
            The choice; None marks none.
        ax : matplotlib Axes, default=None
            Where to draw; None makes a figure.

        Returns
        -------
        OODSearchDisplay
            The display.
        """
        return cls(results, best_index).plot(ax)

    def plot(self, ax: Any = None) -> OODSearchDisplay:
        """Draw all configurations, and mark baselines, finalists, front and choice.

        Parameters
        ----------
        ax : matplotlib Axes, default=None
            Where to draw; None makes a figure.

        Returns
        -------
        OODSearchDisplay
            Itself.
        """
        (self.ax_,) = make_axes(ax, 1, size=(6.0, 5.0))
        self.figure_ = self.ax_.figure
        frame = self.frame_
        both = np.concatenate([frame["id"], frame["ood"]])
        # Of other scores, such as the log loss, there are no per cent.
        is_share = bool(((both >= 0) & (both <= 1)).all())
        scale, unit = (100, "score, %") if is_share else (1, "score")
        x, y = scale * frame["id"], scale * frame["ood"]
        other = ~(frame["is_baseline"] | frame["is_finalist"] | frame["is_choice"])
        # The baseline is in the second stage without being one.
        is_finalist = frame["is_finalist"] & ~frame["is_choice"] & ~frame["is_baseline"]
        kinds = (
            (other, "o", GREY, 18, "configurations"),
            (is_finalist, "s", BLUE, 34, "finalists"),
            (
                frame["is_baseline"] & ~frame["is_choice"],
                "^",
                ink(self.ax_),
                40,
                "baselines",
            ),
            (frame["is_choice"], "*", ORANGE, 190, "the choice"),
        )
        front = np.flatnonzero(frame["is_pareto"])
        front = front[np.argsort(x[front])]
        if len(front) > 1:
            color, label = ink(self.ax_), "Pareto front"
            self.ax_.plot(
                x[front], y[front], ":", color=color, lw=1, zorder=1, label=label
            )
        for rows, marker, color, size, label in kinds:
            if rows.any():
                self.ax_.scatter(
                    x[rows], y[rows], s=size, marker=marker, color=color, label=label
                )
        self.ax_.set(
            xlabel=f"in distribution ({unit})", ylabel=f"under the shift ({unit})"
        )
        finish(self.ax_)
        return self


class OODReportDisplay:
    """Accuracy in distribution and under each shift, with intervals.

    Parameters
    ----------
    records : list of dict
        From :func:`sksoftrank.ood.ood_report`; at least one.
    measure : str, default="accuracy"
        Which of its measures to draw.

    Attributes
    ----------
    frame_ : dict of str to ndarray
        ``domain``, ``severity`` (NaN for a domain), the measure, ``low``, ``high``.
    figure_ : matplotlib Figure
        Where it was drawn last.
    ax_ : matplotlib Axes
        The axes.

    Examples
    --------
    >>> from sksoftrank.displays import OODReportDisplay
    >>> own = {"accuracy": 0.9, "accuracy_low": 0.8, "accuracy_high": 0.95}
    >>> record = {"domain": "in-distribution", "severity": 0, **own}
    >>> OODReportDisplay([record]).frame_["accuracy"]
    array([0.9])
    """

    def __init__(
        self, records: Sequence[Mapping[str, Any]], measure: str = "accuracy"
    ) -> None:
        if not records:
            raise ValueError(
                f"records must hold at least one domain, got {records!r}. Pass what "
                "ood_report returns."
            )
        if measure not in records[0]:
            known = [k for k in records[0] if f"{k}_low" in records[0]]
            raise ValueError(
                f"measure must be one that the records have, {known}, got {measure!r}. "
                "Use 'accuracy'."
            )
        self.measure = measure
        severity = [
            np.nan if record["severity"] is None else float(record["severity"])
            for record in records
        ]
        self.frame_: Frame = {
            "domain": np.array([str(record["domain"]) for record in records]),
            "severity": np.array(severity),
            measure: np.array([record[measure] for record in records]),
            "low": np.array([record[f"{measure}_low"] for record in records]),
            "high": np.array([record[f"{measure}_high"] for record in records]),
        }

    @classmethod
    def from_estimator(
        cls,
        estimator: Any,
        X_id: Any,
        y_id: npt.ArrayLike,
        shifted: Any,
        *,
        measure: str = "accuracy",
        ax: Any = None,
        **report_params: Any,
    ) -> OODReportDisplay:
        """Measure a fitted classifier and draw the report.

        Parameters
        ----------
        estimator : fitted classifier
            Any of scikit-learn's kind.
        X_id : array-like of shape (n, n_features)
            In-distribution rows that it was not trained on.
        y_id : array-like of shape (n,)
            Their labels.
        shifted : dict, or iterable of transformers
            As :func:`sksoftrank.ood.ood_report` takes them.
        measure : str, default="accuracy"
            Which of its measures to draw.
        ax : matplotlib Axes, default=None
            Where to draw; None makes a figure.
        **report_params : dict
            Further arguments of :func:`sksoftrank.ood.ood_report`.

        Returns
        -------
        OODReportDisplay
            The display.
        """
        from sksoftrank.ood import ood_report

        records = ood_report(estimator, X_id, y_id, shifted, **report_params)
        return cls.from_results(records, measure=measure, ax=ax)

    @classmethod
    def from_results(
        cls,
        records: Sequence[Mapping[str, Any]],
        *,
        measure: str = "accuracy",
        ax: Any = None,
    ) -> OODReportDisplay:
        """Draw a report.

        Parameters
        ----------
        records : list of dict
            From :func:`sksoftrank.ood.ood_report`.
        measure : str, default="accuracy"
            Which of its measures to draw.
        ax : matplotlib Axes, default=None
            Where to draw; None makes a figure.

        Returns
        -------
        OODReportDisplay
            The display.
        """
        return cls(records, measure).plot(ax)

    def plot(self, ax: Any = None) -> OODReportDisplay:
        """Draw a row for each domain, and one for each severity of a shift.

        Parameters
        ----------
        ax : matplotlib Axes, default=None
            Where to draw; None makes a figure.

        Returns
        -------
        OODReportDisplay
            Itself.
        """
        frame = self.frame_
        n = len(frame["domain"])
        (self.ax_,) = make_axes(ax, 1, size=(7.0, 1.5 + 0.32 * n))
        self.figure_ = self.ax_.figure
        is_share = self.measure != "log_loss"
        value, low, high = (
            (100.0 if is_share else 1.0) * frame[name]
            for name in (self.measure, "low", "high")
        )
        places = np.arange(n)[::-1]
        is_own = frame["severity"] == 0
        for rows, (color, style), label in (
            (is_own, CURVES[0], "in distribution"),
            (~is_own, CURVES[1], "shifted"),
        ):
            if rows.any():
                self.ax_.errorbar(
                    value[rows],
                    places[rows],
                    xerr=np.array([(value - low)[rows], (high - value)[rows]]),
                    fmt=style[0],
                    color=color,
                    capsize=3,
                    label=label,
                )
        if is_own.any():
            self.ax_.axvline(value[is_own][0], color=BLUE, ls=":", lw=1)
        names = [
            plain(domain)
            + ("" if np.isnan(severity) or severity == 0 else f", {severity:g}")
            for domain, severity in zip(frame["domain"], frame["severity"], strict=True)
        ]
        self.ax_.set_yticks(places, names)
        self.ax_.set_ylim(-0.6, n - 0.4)
        name = self.measure.replace("_", " ")
        self.ax_.set_xlabel(f"{name} (%)" if is_share else name)
        finish(self.ax_)
        return self
