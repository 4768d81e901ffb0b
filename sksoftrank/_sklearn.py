"""The private names of scikit-learn that the package leans on, all of them.

Its developers' guide tells third parties to check parameters by constraints, but the
classes for that are private; so are the checks of weights, fit parameters and classes
that its own estimators make. The searches are scikit-learn's but for who trains, and
fill in the rest, step by step, with its own. A metric is hidden in its scorer, the rows
in a search for neighbours.

Rows and weights are read here with scikit-learn's checks, whose errors then name them.

Where a subclass must define or override a private name, that stands in the subclass:
``_parameter_constraints``, ``_n_features_out``, ``_run_search``.
"""

import math
from copy import copy
from inspect import signature
from numbers import Number, Real
from typing import Any

import numpy as np
from sklearn.base import BaseEstimator, _fit_context
from sklearn.metrics._scorer import _BaseScorer, _MultimetricScorer
from sklearn.model_selection._search import (
    BaseSearchCV,
    _yield_masked_array_for_each_param,
)
from sklearn.model_selection._validation import (
    _fit_and_score,
    _insert_error_scores,
    _warn_or_raise_about_fit_failures,
)
from sklearn.utils._missing import is_scalar_nan
from sklearn.utils._param_validation import (
    HasMethods,
    Interval,
    StrOptions,
    validate_parameter_constraints,
)
from sklearn.utils.metaestimators import _safe_split
from sklearn.utils.multiclass import _check_partial_fit_first_call
from sklearn.utils.validation import (
    _check_method_params,
    _check_sample_weight,
    _num_features,
    _num_samples,
    validate_data,
)

from sksoftrank._checks import LENGTHS, NAMES, check_readable, naming

__all__ = [
    "METADATA_REQUEST",
    "BaseSearchCV",
    "HasMethods",
    "Interval",
    "StrOptions",
    "_BaseScorer",
    "_check_method_params",
    "_check_partial_fit_first_call",
    "_check_refit_for_multimetric",
    "_fit_and_score",
    "_fit_context",
    "_format_results",
    "_get_routed_params_for_fit",
    "_get_scorers",
    "_init_callback_context",
    "_insert_error_scores",
    "_num_features",
    "_num_samples",
    "_safe_split",
    "_select_best_index",
    "_validate_params",
    "_warn_or_raise_about_fit_failures",
    "_yield_masked_array_for_each_param",
    "check_weights",
    "has_callbacks",
    "is_linear",
    "is_scalar_nan",
    "read_rows",
    "reads_columns",
    "rows_of",
    "scorers_by_name",
    "validate_parameter_constraints",
    "with_labels",
]

# Methods, of which all but `_select_best_index` take the estimator or search first.
_validate_params = BaseEstimator._validate_params
_check_refit_for_multimetric = BaseSearchCV._check_refit_for_multimetric
_format_results = BaseSearchCV._format_results
_get_routed_params_for_fit = BaseSearchCV._get_routed_params_for_fit
_get_scorers = BaseSearchCV._get_scorers
_init_callback_context = BaseSearchCV._init_callback_context
_select_best_index = BaseSearchCV._select_best_index

# Where an estimator keeps what `set_fit_request` and its like were told.
METADATA_REQUEST = "_metadata_request"


def read_rows(
    estimator: BaseEstimator, X: Any, y: Any = "no_validation", **options: Any
) -> Any:
    """Return what `validate_data` does, and name `X` in what it says of others."""
    check_readable("X", X)
    with naming(X, "X", "y", LENGTHS, NAMES, expected="a table of numbers"):
        return validate_data(estimator, X, y, **options)


def check_weights(sample_weight: Any, X: Any) -> Any:
    """Return a finite weight for each row, none negative and not all zero."""
    check_readable("sample_weight", sample_weight)
    # A single number for all would go unchecked.
    if isinstance(sample_weight, Number) and not (
        isinstance(sample_weight, Real) and 0 < float(sample_weight) < math.inf
    ):
        raise ValueError(
            "sample_weight must be positive and finite where it is one number, got "
            f"{sample_weight!r}. Leave it out for equal weights."
        )
    with naming(
        sample_weight, "sample_weight", expected="a non-negative number for each row"
    ):
        return _check_sample_weight(
            sample_weight, X, dtype=np.float64, ensure_non_negative=True
        )


def has_callbacks(estimator: BaseEstimator) -> bool:
    """Return whether scikit-learn's callbacks were set on an estimator."""
    return bool(getattr(estimator, "_skl_callbacks", None))


def is_linear(classifier: Any) -> bool:
    """Return whether a classifier is one of scikit-learn's linear ones."""
    # Here, for all linear models take a while to import.
    from sklearn.linear_model._base import LinearClassifierMixin

    return isinstance(classifier, LinearClassifierMixin)


def rows_of(neighbors: Any) -> Any:
    """Return the rows that a search for neighbours was fitted on; None before."""
    return getattr(neighbors, "_fit_X", None)


def scorers_by_name(scorers: Any) -> Any:
    """Return the scorers of several metrics in a dictionary; another as it is."""
    return scorers._scorers if isinstance(scorers, _MultimetricScorer) else scorers


def reads_columns(scorer: Any) -> bool:
    """Return whether a scorer is of a metric of probabilities or decision values."""
    return isinstance(scorer, _BaseScorer) and scorer._response_method != "predict"


def with_labels(scorer: Any, labels: Any, given: Any) -> Any:
    """Return a metric's scorer that names all labels, if the metric asks for them.

    Unless the scorer or the parameters `given` beside name them already.
    """
    kwargs = scorer._kwargs
    takes = signature(scorer._score_func).parameters
    if "labels" not in takes.keys() - kwargs.keys() - given.keys():
        return scorer
    own = copy(scorer)
    own._kwargs = kwargs | {"labels": labels}
    return own
