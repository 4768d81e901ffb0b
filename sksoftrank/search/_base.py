"""What the searches share with each other beside scikit-learn's base class."""

from __future__ import annotations

import time
from typing import Any

from sklearn.base import BaseEstimator
from sklearn.utils import Bunch, Tags, assert_all_finite, get_tags, indexable
from sklearn.utils.metaestimators import available_if

from sksoftrank._checks import LENGTHS, naming, read_labels
from sksoftrank._sklearn import (
    BaseSearchCV,
    _check_method_params,
    _get_routed_params_for_fit,
)
from sksoftrank.estimators._stacked_fit import refuse_checkpoint


class BaseNetworkSearchCV(BaseSearchCV):
    """Reads rows, refits the best, and transforms with it; subclasses evaluate."""

    def _read(self, X: Any, y: Any, params: dict[str, Any]) -> tuple[Any, Any, Bunch]:
        """Return rows and labels that can be cut, and what is routed where."""
        refuse_checkpoint(self.estimator)
        with (
            naming(y, "y", "X", expected="a label for each row of X"),
            naming(X, "X", LENGTHS, expected="rows"),
        ):
            X, y = indexable(X, y)
        if y is None:
            raise ValueError(
                "y must hold the labels, got None. A search over classifiers requires "
                "y to be passed, but the target y is None."
            )
        read_labels("y", y)
        assert_all_finite(y, input_name="y")
        params = _check_method_params(X, params=params)
        return X, y, _get_routed_params_for_fit(self, params)

    def _refit(
        self, best: BaseEstimator, X: Any, y: Any, fit_params: dict[str, Any]
    ) -> None:
        """Fit the best candidate on all rows."""
        start = time.time()
        self.best_estimator_ = best.fit(X, y, **fit_params)
        self.refit_time_ = time.time() - start
        if hasattr(best, "feature_names_in_"):
            self.feature_names_in_ = best.feature_names_in_

    @available_if(lambda search: hasattr(search, "transform"))
    def fit_transform(self, X: Any, y: Any = None, **params: Any) -> Any:
        """Search, and transform the rows with the best candidate.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Training rows.
        y : array-like of shape (n_samples,), default=None
            Labels.
        **params : dict
            As for `fit`.

        Returns
        -------
        ndarray of shape (n_samples, n_features_out)
            What the best estimator's `transform` returns.
        """
        return self.fit(X, y, **params).transform(X)

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        # scikit-learn's searches have `transform` where the estimator has, but neither
        # these tags nor `fit_transform`, and no check of theirs can start.
        tags.transformer_tags = get_tags(self.estimator).transformer_tags
        return tags
