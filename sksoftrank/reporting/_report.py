"""Reports of a fitted classifier and of a search."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.base import BaseEstimator, is_classifier
from sklearn.utils import resample
from sklearn.utils.validation import check_is_fitted

from sksoftrank._checks import as_labels
from sksoftrank.displays import (
    EmbeddingDisplay,
    OODReportDisplay,
    SpectrumDisplay,
    TrainingDisplay,
)
from sksoftrank.ood import ood_report
from sksoftrank.reporting._code import code_of
from sksoftrank.reporting._page import (
    IN_DISTRIBUTION,
    NOTHING,
    Page,
    Picture,
    Section,
    Table,
    check_target,
    draw,
    number,
    write_page,
)
from sksoftrank.reporting._search import describe_search
from sksoftrank.search._jobs import last_step

# More points, domains or classes than these no picture shows.
_MAX_POINTS, _MAX_DOMAINS, _MAX_CLASSES = 1000, 30, 20


def report(
    estimator: Any,
    path: str | os.PathLike[str],
    X: Any = None,
    y: Any = None,
    shifted: Mapping[str, Any] | Iterable[Any] | None = None,
    *,
    title: str | None = None,
) -> Path:
    """Write what a search found, or a classifier learned, as one page of HTML.

    For those who decide: what was tried, what was chosen and why, accuracy in
    distribution and under each shift with intervals, pictures, and the code that makes
    the model again. The file needs nothing beside itself, follows the reader's light or
    dark setting, and is the same, byte by byte, for the same results.

    Parameters
    ----------
    estimator : fitted classifier or search
        An :class:`~sksoftrank.OODSearchCV`, a :class:`~sksoftrank.StackedGridSearchCV`
        or another search of scikit-learn's kind, a classifier, or a pipeline that ends
        in one.
    path : str or path-like
        Where to, ending in ``.html``. What is there stays until the new page is
        complete.
    X : array-like of shape (n_samples, n_features), default=None
        Rows in distribution that played no part in training or search, to measure on.
    y : array-like of shape (n_samples,), default=None
        Their labels.
    shifted : dict, or iterable of transformers, default=None
        Domains, as tuples ``(X, y)`` by name, or shifts, to measure under too: as
        :func:`sksoftrank.ood.ood_report` takes them.
    title : str, default=None
        Title of the page; None names the estimator.

    Returns
    -------
    Path
        Where it was written.

    Raises
    ------
    ValueError
        If the path can't be that of a report, or rows come without labels.
    ImportError
        If jinja2 or matplotlib is not installed.
    OSError
        If the file can't be written; what was there before is as it was.

    Examples
    --------
    >>> import tempfile
    >>> from pathlib import Path
    >>> from sklearn.datasets import load_iris
    >>> from sksoftrank import SoftRankMLPClassifier, report
    >>> X, y = load_iris(return_X_y=True)
    >>> clf = SoftRankMLPClassifier(16, max_epochs=5, random_state=0)
    >>> clf = clf.fit(X[::2], y[::2])
    >>> page = report(clf, Path(tempfile.mkdtemp()) / "iris.html", X[1::2], y[1::2])
    >>> page.read_text(encoding="utf-8").startswith("<!DOCTYPE html>")
    True
    """
    target = check_target(path)
    model = _check(estimator, X, y, shifted, title)
    y = None if y is None else as_labels("y", y)
    lead: list[str] = []
    sections: list[Section] = []
    last: list[Section] = []
    is_search = hasattr(estimator, "cv_results_")
    if is_search:
        choice, sections, again = describe_search(estimator)
        lead, last = [choice], [again]
    if X is not None:
        records = ood_report(model, X, y, {} if shifted is None else shifted)
        lead.append(_sum_up(records))
        sections.append(_measured(records))
    if model is not None:
        sections.append(_network(model, X, y))
        last.insert(0, _code(model))
    title = title or f"Report on {_name(estimator)}"
    write_page(Page(title, lead, [*sections, *last], is_search), target)
    return target


def _check(estimator: Any, X: Any, y: Any, shifted: Any, title: Any) -> Any:
    """Return the model that a report is of, None where a search refitted none."""
    if not isinstance(estimator, BaseEstimator) or not is_classifier(estimator):
        raise TypeError(
            "estimator must be a fitted classifier, or a search over classifiers, got "
            f"{estimator!r}. Fit one, and pass it."
        )
    check_is_fitted(estimator)
    model = estimator
    if hasattr(estimator, "cv_results_"):
        model = getattr(estimator, "best_estimator_", None)
    if (X is None) != (y is None):
        here, missing = ("y", "X") if X is None else ("X", "y")
        raise ValueError(
            f"{missing} must come with {here}, got None. Pass both, or neither."
        )
    if shifted is not None and X is None:
        raise ValueError(
            "shifted must come with rows in distribution, to compare with, got X=None. "
            "Pass X and y too."
        )
    if X is not None and model is None:
        raise ValueError(
            "X must be None for a search that has no model to measure, as it was made "
            "with refit=False. Set refit=True, or pass a fitted classifier."
        )
    if title is not None and not isinstance(title, str):
        raise TypeError(f"title must be text or None, got {title!r}. Pass a string.")
    return model


def _name(estimator: Any) -> str:
    inner = getattr(estimator, "estimator", None)
    name = type(last_step(estimator)).__name__
    return name if inner is None else f"{name} of {type(last_step(inner)).__name__}"


# -- Accuracy ----------------------------------------------------------------------


def _record_name(record: Mapping[str, Any]) -> str:
    if record["severity"] == 0:
        return IN_DISTRIBUTION
    if record["severity"] is None:
        return str(record["domain"])
    return f"{record['domain']}, severity {record['severity']}"


def _percent(record: Mapping[str, Any], name: str) -> tuple[str, str]:
    """Return a measure and its interval."""
    value, low, high = (
        number(record[key], scale=100) for key in (name, f"{name}_low", f"{name}_high")
    )
    return value, f"{low} to {high}"


def _sum_up(records: list[dict[str, Any]]) -> str:
    own, *others = records
    value, interval = _percent(own, "accuracy")
    text = (
        f"In distribution the model is right for {value}\u00a0% of "
        f"{own['n_samples']} rows (95\u00a0% interval {interval}\u00a0%)"
    )
    if not others:
        return f"{text}."
    worst = min(others, key=lambda record: record["accuracy"])
    value, interval = _percent(worst, "accuracy")
    where = f"; under shift for {value}\u00a0% ({interval}\u00a0%)"
    if len(others) > 1:
        where += f" in the worst of {len(others)} cases, {_record_name(worst)}"
    return f"{text}{where}."


def _measured(records: list[dict[str, Any]]) -> Section:
    rows = [
        [
            _record_name(record),
            str(record["n_samples"]),
            *_percent(record, "accuracy"),
            *(_percent(record, "accuracy_gap") if k else (NOTHING, NOTHING)),
            number(record["balanced_accuracy"], scale=100),
        ]
        for k, record in enumerate(records)
    ]
    table = Table(
        "Accuracy on the rows that were handed to the report, in %; it says what to "
        "expect of new rows if the model was not trained on these. Intervals are 95 %: "
        "they know the noise of the rows, not that of training.",
        ["rows of", "rows", "accuracy", "interval", "points lost", "interval",
         "balanced accuracy"],
        rows,
    )  # fmt: skip
    own, *others = records
    shown = sorted(others, key=lambda record: record["accuracy"])[:_MAX_DOMAINS]
    shown = [own, *(record for record in others if record in shown)]
    caption = "Accuracy with 95 % intervals."
    if len(shown) <= len(others):
        caption += f" The worst {len(shown) - 1} of {len(others)} shifts."
    alt = "Accuracy with 95 % intervals: " + "; ".join(
        f"{_record_name(r)} {number(r['accuracy'], scale=100)} %" for r in shown[:12]
    )
    alt += f"; and {len(shown) - 12} more." if len(shown) > 12 else "."
    size = 5.5, 1.6 + 0.32 * len(shown)
    pictures = draw(OODReportDisplay(shown).plot, (alt, caption), size=size)
    title = "Accuracy, in distribution and under shift" if others else "Accuracy"
    return Section(title, tables=[table], pictures=pictures)


# -- The network -------------------------------------------------------------------


def _network(model: Any, X: Any, y: Any) -> Section:
    last = last_step(model)
    facts = [("kind", type(last).__name__)]

    def fact(name: str, attribute: str, form: str = "{}", scale: int = 1) -> None:
        value = getattr(last, attribute, None)
        if value is not None:
            facts.append((name, form.format(scale * value)))

    fact("softmax temperature", "temperature_", "{:.4g}")
    fact("columns that it reads", "n_features_in_")
    facts.append(("classes", str(len(model.classes_))))
    if hasattr(last, "history_"):
        fact("epochs of training", "n_iter_")
    fact("right on its training rows", "training_accuracy_", "{:.1f} %", 100)
    values = getattr(last, "singular_values_", None)
    if values is not None:
        facts.append(("rank", f"{last.rank_} of {len(values)} directions"))
    fact("columns of the embedding", "n_components_")
    pictures = []
    if getattr(last, "history_", None):
        pictures += _training(TrainingDisplay(last.history_))
    if values is not None:
        pictures += _spectrum(SpectrumDisplay(values, last.rank_, last.n_components_))
    if X is not None and 1 < len(model.classes_) <= _MAX_CLASSES:
        pictures += _embedding(model, X, y)
    return Section("The model", facts=facts, pictures=pictures)


def _training(display: TrainingDisplay) -> list[Picture]:
    frame = display.frame_
    loss = frame["train_loss"]
    alt = (
        f"Loss over {len(loss)} epochs: from {loss[0]:.3g} to {loss[-1]:.3g} on the "
        "training rows"
    )
    if "valid_loss" in frame:
        alt += f", {frame['valid_loss'][-1]:.3g} at last on rows held out"
    seen = [(f"{alt}.", "Loss in training.")]
    if "valid_acc" in frame:
        hits = frame["valid_acc"]
        alt = (
            f"Accuracy on rows held out: {hits[0]:.1%} after the first epoch, "
            f"{hits[-1]:.1%} after the last, at best {np.max(hits):.1%}."
        )
        seen.append((alt, "Accuracy on rows held out in training."))
    return draw(display.plot, *seen)


def _spectrum(display: SpectrumDisplay) -> list[Picture]:
    share = display.frame_["share"]
    kept = min(display.n_components, len(share))
    alt = (
        f"Singular values of the embedding, falling over {len(share)} directions: "
        f"{display.rank} lie above a hundredth of the largest. The {kept} that are "
        f"kept hold {share[kept - 1]:.1%} of the variance."
    )
    caption = (
        "How much each direction of the embedding holds. The ring marks the last one "
        "kept, the line a hundredth of the first."
    )
    return draw(display.plot, (alt, caption))


def _embedding(model: Any, X: Any, y: Any) -> list[Picture]:
    """Return a picture of what `transform` gives, where that has two columns."""
    if not hasattr(model, "transform"):
        return []
    n = min(_MAX_POINTS, len(np.asarray(y)))
    X, y = resample(X, y, replace=False, n_samples=n, random_state=0)
    Z = np.asarray(model.transform(X))
    if Z.ndim != 2 or Z.shape[1] < 2:
        return []
    (left, low), (right, high) = Z[:, :2].min(axis=0), Z[:, :2].max(axis=0)
    alt = (
        f"{n} rows of {len(np.unique(y))} classes in the two leading directions of the "
        f"embedding, from {left:.3g} to {right:.3g} and from {low:.3g} to {high:.3g}."
    )
    caption = f"The first two of {Z.shape[1]} columns of the embedding, {n} rows."
    return draw(EmbeddingDisplay(Z[:, :2], y).plot, (alt, caption))


def _code(model: Any) -> Section:
    return Section(
        "How to make the model again",
        ["The model, to be trained on the same rows X and labels y."],
        code=code_of("model", model, "model.fit(X, y)"),
    )
