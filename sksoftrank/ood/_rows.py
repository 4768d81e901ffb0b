"""Scores of rows that lack some of the classes, or hold others."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
from sklearn.dummy import DummyClassifier

from sksoftrank._sklearn import _BaseScorer, reads_columns, with_labels


def score_rows(scorer: Any, estimator: Any, X: Any, y: Any, **params: Any) -> float:
    """Return an estimator's score on rows that needn't hold the classes it knows.

    A metric takes columns of probabilities for those of the classes among the labels,
    in order, unless it is told which they are.

    Raises
    ------
    ValueError
        If the metric reads columns, and rows are of a class that has none.
    """
    classes = getattr(estimator, "classes_", None)
    if classes is not None and reads_columns(scorer):
        unknown = np.setdiff1d(y, classes)
        if unknown.size:
            raise ValueError(
                f"y must hold classes that the estimator knows, got {unknown.tolist()}."
            )
        scorer = with_labels(scorer, classes, params)
    return float(scorer(estimator, X, y, **params))


def why_undefined(scorer: Any, classes: npt.ArrayLike, y: Any) -> str | None:
    """Return why no classifier of some classes has a score on rows of others.

    None if one may have: where the classes of both are the same, or `scorer` is not
    one of a metric.
    """
    missing, unknown = np.setdiff1d(classes, y), np.setdiff1d(y, classes)
    if not (missing.size or unknown.size) or not isinstance(scorer, _BaseScorer):
        return None
    # What can't be computed of guesses can't be of anything better.
    guesses = DummyClassifier(strategy="uniform", random_state=0)
    guesses.fit(np.zeros((np.size(classes), 1)), classes)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            score = score_rows(scorer, guesses, np.zeros((len(y), 1)), y)
            problem = None if np.isfinite(score) else f"the score is {score}"
        except ValueError as error:
            problem = str(error).rstrip(".")
    if problem is None:
        return None
    facts = [
        f"{fact} {labels.tolist()}"
        for fact, labels in (("no row is of", missing), ("no fit knows", unknown))
        if labels.size
    ]
    return f"{' and '.join(facts)} ({problem})"


def undefined_on(scoring: str, reasons: Mapping[str, str]) -> str:
    """Return a sentence that names the metric, the domains and why."""
    where = " and on ".join(
        f"domain {name!r}, where {reason}" for name, reason in reasons.items()
    )
    return f"scoring={scoring} is not defined on {where}."
