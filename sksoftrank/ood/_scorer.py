"""A scorer that lets a search choose on shifted rows."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
from sklearn.exceptions import UndefinedMetricWarning
from sklearn.metrics import get_scorer
from sklearn.utils import _safe_indexing, indexable

from sksoftrank._checks import as_labels, naming
from sksoftrank._sklearn import _num_samples
from sksoftrank.ood._rows import score_rows, undefined_on, why_undefined

Scorer = Callable[..., float]


class _OODScorer:
    """A scorer that brings its rows: picklable, and usable wherever scorers are."""

    def __init__(
        self,
        parts: dict[str, tuple[Any, Any]],
        scorer: Scorer,
        aggregate: str,
        name: str,
    ) -> None:
        self._parts = parts
        self._scorer = scorer
        self._aggregate = aggregate
        self._name = name

    def __call__(
        self, estimator: Any, X: Any = None, y: Any = None, sample_weight: Any = None
    ) -> float:
        scores, undefined = [], {}
        classes = getattr(estimator, "classes_", None)
        for domain, (rows, labels) in self._parts.items():
            reason = None
            if classes is not None:
                reason = why_undefined(self._scorer, classes, labels)
            if reason is None:
                scores.append(score_rows(self._scorer, estimator, rows, labels))
            else:
                undefined[domain] = reason
        if undefined:
            text = undefined_on(self._name, undefined)
            if not scores:
                raise ValueError(f"{text} Use a metric such as 'accuracy'.")
            warnings.warn(
                f"{text} It is left out of the score.",
                UndefinedMetricWarning,
                stacklevel=2,
            )
        return float(min(scores) if self._aggregate == "worst" else np.mean(scores))

    def _accept_sample_weight(self) -> bool:
        # Weights given to a search's fit belong to the rows that are ignored. A scorer
        # that says no makes scikit-learn warn of wrong statistics.
        return True

    def __repr__(self) -> str:
        return (
            f"make_ood_scorer(scoring={self._name}, n_domains={len(self._parts)}, "
            f"aggregate={self._aggregate!r})"
        )


def make_ood_scorer(
    X_ood: Any,
    y_ood: npt.ArrayLike,
    *,
    domains: npt.ArrayLike | None = None,
    scoring: str | Scorer = "accuracy",
    aggregate: str = "mean",
) -> Scorer:
    """Make a scorer that scores on labelled shifted rows instead of the fold's.

    For the `scoring` of :class:`sklearn.model_selection.GridSearchCV`,
    :func:`sklearn.model_selection.cross_val_score` and the like: a search then chooses
    what is best under the shift. Report on other domains than these.

    Parameters
    ----------
    X_ood : array-like of shape (n, n_features)
        Rows under the shift, as the estimator takes them.
    y_ood : array-like of shape (n,)
        Their labels.
    domains : array-like of shape (n,), default=None
        Which domain each row comes from, such as a month or a site. Each is scored by
        itself. None takes all rows for one. One that lacks classes which the metric
        needs, or holds some that the estimator doesn't know, is left out, with a
        warning.
    scoring : str or callable, default="accuracy"
        A name from :func:`sklearn.metrics.get_scorer_names`, or a callable
        ``(estimator, X, y) -> float``; higher is better.
    aggregate : {"mean", "worst"}, default="mean"
        Mean over the domains, each counting the same, or the lowest of them.

    Returns
    -------
    callable
        ``scorer(estimator, X, y) -> float``, which ignores `X` and `y`, and can be
        pickled if `scoring` can.

    Raises
    ------
    ValueError
        If there are no rows, lengths differ, a name is unknown, or the worst of no
        domains is asked for. At scoring, if the metric is defined on no domain.

    Warns
    -----
    UndefinedMetricWarning
        At scoring, of domains that are left out.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from sklearn.linear_model import LogisticRegression
    >>> from sklearn.model_selection import GridSearchCV
    >>> from sksoftrank.ood import make_ood_scorer
    >>> X, y = load_iris(return_X_y=True)
    >>> scorer = make_ood_scorer(
    ...     1.1 * X, y, domains=[0, 1, 2] * 50, aggregate="worst"
    ... )
    >>> search = GridSearchCV(
    ...     LogisticRegression(max_iter=1000), {"C": [0.01, 1.0]}, scoring=scorer
    ... )
    >>> search.fit(X, y).best_params_
    {'C': 1.0}
    """
    if aggregate not in ("mean", "worst"):
        raise ValueError(
            f"aggregate must be 'mean' or 'worst', got {aggregate!r}. Use 'worst' for "
            "the lowest score over the domains."
        )
    if aggregate == "worst" and domains is None:
        raise ValueError(
            "domains must say which domain each row comes from for aggregate='worst', "
            "got None. Pass domains, or use aggregate='mean'."
        )
    # Rows of any sparse format can then be taken.
    with naming(X_ood, "X_ood", expected="rows, y_ood a label for each"):
        X_ood, y_ood, domains = indexable(X_ood, y_ood, domains)
    y_ood = as_labels("y_ood", y_ood)
    if _num_samples(X_ood) == 0:
        raise ValueError("X_ood must have at least one row, got none. Pass some.")
    parts = {"X_ood": (X_ood, y_ood)}
    if domains is not None:
        names = as_labels("domains", domains)
        rows = {str(name): np.flatnonzero(names == name) for name in np.unique(names)}
        parts = {
            name: (_safe_indexing(X_ood, i), _safe_indexing(y_ood, i))
            for name, i in rows.items()
        }
    scorer = get_scorer(scoring) if isinstance(scoring, str) else scoring
    if not callable(scorer):
        raise ValueError(
            "scoring must be the name of a metric or a callable (estimator, X, y) -> "
            f"float, got {scoring!r}. Use 'accuracy'."
        )
    return _OODScorer(parts, scorer, aggregate, repr(scoring))
