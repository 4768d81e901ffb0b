"""scikit-learn's searches, with the candidates' networks trained together."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product
from typing import Any, Self

import numpy.typing as npt
from joblib import effective_n_jobs
from sklearn.base import BaseEstimator, clone, is_classifier
from sklearn.model_selection import GridSearchCV, RandomizedSearchCV, check_cv

from sksoftrank._sklearn import (
    _check_refit_for_multimetric,
    _fit_and_score,
    _fit_context,
    _format_results,
    _get_scorers,
    _init_callback_context,
    _insert_error_scores,
    _select_best_index,
    _warn_or_raise_about_fit_failures,
    has_callbacks,
    scorers_by_name,
)
from sksoftrank.estimators import BaseSoftRankClassifier
from sksoftrank.estimators._stacked_fit import refuse_checkpoint
from sksoftrank.search._base import BaseNetworkSearchCV
from sksoftrank.search._jobs import (
    Job,
    StackPlanner,
    fit_jobs,
    last_step,
    with_params,
)
from sksoftrank.training import StopFlag

Array = npt.NDArray[Any]


@dataclass
class _ScoredJob(Job):
    """A job of as many as there are, scored as scikit-learn does."""

    n_candidates: int
    n_splits: int
    test: Array


class _StackedSearch(BaseNetworkSearchCV):
    """Evaluates candidates in stacks; the rest is scikit-learn's."""

    @_fit_context(prefer_skip_nested_validation=False)
    def fit(self, X: Any, y: Any = None, **params: Any) -> Self:
        """Evaluate all candidates, and refit the best one on all rows.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Training rows.
        y : array-like of shape (n_samples,), default=None
            Labels.
        **params : dict
            As for :class:`sklearn.model_selection.GridSearchCV`: parameters of the
            estimator's ``fit``, the scorer and the splitter, such as `groups`.

        Returns
        -------
        Self
            The fitted search.
        """
        refuse_checkpoint(self.estimator)
        reason = self._unsupported_reason()
        if reason is not None:
            self.fallback_reason_: str | None = reason
            return super().fit(X, y, **params)

        scorers, refit_metric = _get_scorers(self)
        X, y, routed = self._read(X, y, params)
        cv = check_cv(self.cv, y, classifier=is_classifier(self.estimator))
        self.n_splits_ = cv.get_n_splits(X, y, **routed.splitter.split)
        base_estimator = clone(self.estimator)
        planner = StackPlanner(base_estimator, X, y, self.n_jobs)
        fit_and_score = partial(
            _fit_and_score_stack,
            base_estimator=base_estimator,
            X=X,
            y=y,
            fit_params=routed.estimator.fit,
            # A scorer of the user's own may look at anything that a fit leaves.
            basis_rows=None
            if callable(self.scoring)
            or (
                isinstance(self.scoring, dict)
                and any(map(callable, self.scoring.values()))
            )
            else 0,
            score_options={
                "scorer": scorers,
                "fit_params": {},
                "score_params": routed.scorer.score,
                "return_train_score": self.return_train_score,
                "return_n_test_samples": True,
                "return_times": True,
                "error_score": self.error_score,
                "verbose": self.verbose,
            },
        )
        candidates: list[dict[str, Any]] = []
        out: list[dict[str, Any]] = []
        more: dict[str, list[Any]] = {}
        results: dict[str, Any] = {}

        def evaluate(
            candidate_params: Iterable[dict[str, Any]],
            cv: Any = cv,
            more_results: Mapping[str, Sequence[Any]] | None = None,
            **_: Any,
        ) -> dict[str, Any]:
            nonlocal results
            added = list(candidate_params)
            splits = list(cv.split(X, y, **routed.splitter.split))
            if len(splits) != self.n_splits_:
                raise ValueError(
                    f"cv must yield as many splits as it announces, {self.n_splits_}, "
                    f"got {len(splits)}. Mend its get_n_splits."
                )
            if not added or not splits:
                raise ValueError(
                    f"No fits were performed: got {len(added)} candidates and "
                    f"{len(splits)} splits. Pass at least one of each."
                )
            if self.verbose > 0:
                print(  # noqa: T201
                    f"Fitting {len(splits)} folds for each of {len(added)} candidates,"
                    f" totalling {len(splits) * len(added)} fits"
                )
            plan = planner.plan(
                [
                    _ScoredJob(
                        candidate, params, split, train, len(added), len(splits), test
                    )
                    for (candidate, params), (split, (train, test)) in product(
                        enumerate(added), enumerate(splits)
                    )
                ]
            )
            if self.verbose > 0 and plan.n_bytes:
                print(  # noqa: T201
                    f"Training in {len(plan.stacks)} stacks, "
                    f"{effective_n_jobs(plan.n_jobs)} at a time, which takes about "
                    f"{plan.n_bytes / 2**20:.0f} MB"
                )
            new = plan.run(fit_and_score, pre_dispatch=self.pre_dispatch)
            _warn_or_raise_about_fit_failures(new, self.error_score)
            if callable(self.scoring):
                _insert_error_scores(new, self.error_score)
            candidates.extend(added)
            out.extend(new)
            for key, value in (more_results or {}).items():
                more.setdefault(key, []).extend(value)
            results = _format_results(self, candidates, self.n_splits_, out, more)
            return results

        context = _init_callback_context(self, max_subtasks=1)
        context.call_on_fit_task_begin(estimator=self)
        self._run_search(evaluate, callback_ctx=context)
        context.call_on_fit_task_end(estimator=self)
        self.fallback_reason_ = planner.fallback_reason()
        self.stack_bytes_ = planner.n_bytes

        first = out[0]["test_scores"]
        self.multimetric_ = isinstance(first, dict)
        if callable(self.scoring) and self.multimetric_:
            _check_refit_for_multimetric(self, first)
            refit_metric = self.refit
        if self.refit or not self.multimetric_:
            self.best_index_ = _select_best_index(self.refit, refit_metric, results)
            if not callable(self.refit):
                self.best_score_ = results[f"mean_test_{refit_metric}"][
                    self.best_index_
                ]
            self.best_params_ = results["params"][self.best_index_]
        if self.refit:
            best = with_params(base_estimator, self.best_params_)
            self._refit(best, X, y, routed.estimator.fit)
        self.scorer_ = scorers_by_name(scorers)
        self.cv_results_ = results
        return self

    def _unsupported_reason(self) -> str | None:
        """Return why no candidate can be stacked; None if some may be."""
        last = last_step(self.estimator)
        if not isinstance(last, BaseSoftRankClassifier):
            return (
                f"{type(last).__name__} is no SoftRankMLPClassifier, nor a pipeline "
                "that ends in one"
            )
        if has_callbacks(self):
            return "scikit-learn's callbacks follow each fit by itself"
        return None


def _fit_and_score_stack(
    jobs: list[_ScoredJob],
    *,
    stop: StopFlag,
    base_estimator: BaseEstimator,
    X: Any,
    y: Any,
    fit_params: dict[str, Any],
    basis_rows: int | None,
    score_options: dict[str, Any],
) -> list[dict[str, Any]]:
    """Fit jobs together; return what scikit-learn's `_fit_and_score` does for each."""
    fitted = fit_jobs(
        base_estimator, jobs, X, y, fit_params, stop=stop, basis_rows=basis_rows
    )
    results = []
    for job, own in zip(jobs, fitted, strict=True):
        _end_with(own.estimator, own.error)
        result = _fit_and_score(
            own.estimator,
            X,
            y,
            train=job.train,
            test=job.test,
            parameters=job.params,
            split_progress=(job.split, job.n_splits),
            candidate_progress=(job.candidate, job.n_candidates),
            **score_options,
        )
        result["fit_time"] = own.seconds
        results.append(result)
    return results


def _end_with(estimator: Any, error: Exception | None) -> None:
    """Let the next `fit` do nothing, or raise the error that the fit ended with."""

    def fit(*_: Any, **__: Any) -> Any:
        # Scorers find the estimator as it is: it can be copied and pickled.
        del estimator.fit, estimator.set_params
        if error is not None:
            raise error
        return estimator

    estimator.fit = fit
    estimator.set_params = lambda **_: estimator


class StackedGridSearchCV(_StackedSearch, GridSearchCV):
    """Grid search that trains the candidates' networks together.

    :class:`sklearn.model_selection.GridSearchCV` with the same signature, results and
    warnings, for `SoftRankMLPClassifier` and pipelines that end in one. Candidates of
    one architecture are stacked over parameters, folds and seeds, which takes less time
    than fits one by one, and the less the narrower they are. The steps before the
    network are fitted on each fold's training rows, so that nothing leaks. Whatever
    can't be stacked is fitted by itself.

    Parameters
    ----------
    estimator : estimator
        A `SoftRankMLPClassifier`, or a pipeline that ends in one. Others are searched
        as scikit-learn does.
    param_grid : dict or list of dict
        Names of parameters and the values to try.
    scoring : str, callable, list, tuple or dict, default=None
        One metric or several; None takes the estimator's ``score``.
    n_jobs : int, default=None
        Stacks trained at the same time, in processes; None means 1. Within
        :func:`joblib.parallel_config` in threads or on a cluster. Processes that would
        take longer to start than a small search takes are not started.
    refit : bool, str or callable, default=True
        Whether, and by which metric or rule, the best candidate is fitted again on all
        rows.
    cv : int, splitter or iterable, default=None
        Cross-validation; None means five folds.
    verbose : int, default=0
        How much is printed.
    pre_dispatch : int or str, default="2*n_jobs"
        Stacks handed out ahead.
    error_score : "raise" or float, default=nan
        Score of a fit that failed.
    return_train_score : bool, default=False
        Whether training rows are scored too.

    Attributes
    ----------
    cv_results_ : dict of ndarray
        As scikit-learn's. ``mean_fit_time`` is the fit's share of its stack's time.
    best_estimator_ : estimator
        The best candidate, fitted on all rows; with `refit`.
    best_score_ : float
        Mean score of the best candidate.
    best_params_ : dict
        Its parameters.
    best_index_ : int
        Its place in ``cv_results_``.
    scorer_ : callable or dict
        The metric, or metrics by name.
    n_splits_ : int
        Folds.
    refit_time_ : float
        Seconds of the last fit.
    multimetric_ : bool
        Whether there is more than one metric.
    feature_names_in_ : ndarray
        Names of the columns, where `X` had any.
    fallback_reason_ : str or None
        Why some or all fits were not stacked; None if all were.
    stack_bytes_ : int
        Memory that the stacks trained at the same time were expected to take, their
        rows included; where some fits were stacked. It does not grow with the number
        of candidates. `verbose` tells it beforehand.

    See Also
    --------
    StackedRandomizedSearchCV : Draws the candidates.
    sklearn.model_selection.GridSearchCV : For any estimator.

    Examples
    --------
    >>> from sklearn.datasets import load_digits
    >>> from sklearn.pipeline import make_pipeline
    >>> from sklearn.preprocessing import MinMaxScaler
    >>> from sksoftrank import SoftRankMLPClassifier, StackedGridSearchCV
    >>> X, y = load_digits(return_X_y=True)
    >>> search = StackedGridSearchCV(
    ...     make_pipeline(
    ...         MinMaxScaler(),
    ...         SoftRankMLPClassifier(32, max_epochs=5, random_state=0),
    ...     ),
    ...     {"softrankmlpclassifier__temperature": [1.0, 10.0]},
    ...     cv=3,
    ... )
    >>> search.fit(X, y).fallback_reason_ is None
    True
    >>> search.cv_results_["mean_test_score"].shape
    (2,)
    """


class StackedRandomizedSearchCV(_StackedSearch, RandomizedSearchCV):
    """Randomized search that trains the candidates' networks together.

    :class:`sklearn.model_selection.RandomizedSearchCV` with the same signature, results
    and warnings; see `StackedGridSearchCV` for what is stacked.

    Parameters
    ----------
    estimator : estimator
        A `SoftRankMLPClassifier`, or a pipeline that ends in one. Others are searched
        as scikit-learn does.
    param_distributions : dict or list of dict
        Names of parameters, and lists or distributions to draw from.
    n_iter : int, default=10
        Candidates drawn.
    scoring : str, callable, list, tuple or dict, default=None
        One metric or several; None takes the estimator's ``score``.
    n_jobs : int, default=None
        Stacks trained at the same time, in processes; None means 1. Within
        :func:`joblib.parallel_config` in threads or on a cluster. Processes that would
        take longer to start than a small search takes are not started.
    refit : bool, str or callable, default=True
        Whether, and by which metric or rule, the best candidate is fitted again on all
        rows.
    cv : int, splitter or iterable, default=None
        Cross-validation; None means five folds.
    verbose : int, default=0
        How much is printed.
    pre_dispatch : int or str, default="2*n_jobs"
        Stacks handed out ahead.
    random_state : int, RandomState instance or None, default=None
        Seeds the draws.
    error_score : "raise" or float, default=nan
        Score of a fit that failed.
    return_train_score : bool, default=False
        Whether training rows are scored too.

    Attributes
    ----------
    cv_results_ : dict of ndarray
        As scikit-learn's. ``mean_fit_time`` is the fit's share of its stack's time.
    best_estimator_ : estimator
        The best candidate, fitted on all rows; with `refit`.
    best_score_ : float
        Mean score of the best candidate.
    best_params_ : dict
        Its parameters.
    best_index_ : int
        Its place in ``cv_results_``.
    scorer_ : callable or dict
        The metric, or metrics by name.
    n_splits_ : int
        Folds.
    refit_time_ : float
        Seconds of the last fit.
    multimetric_ : bool
        Whether there is more than one metric.
    feature_names_in_ : ndarray
        Names of the columns, where `X` had any.
    fallback_reason_ : str or None
        Why some or all fits were not stacked; None if all were.
    stack_bytes_ : int
        Memory that the stacks trained at the same time were expected to take, their
        rows included; where some fits were stacked. It does not grow with the number
        of candidates. `verbose` tells it beforehand.

    See Also
    --------
    StackedGridSearchCV : Tries a whole grid.

    Examples
    --------
    >>> from scipy.stats import loguniform
    >>> from sklearn.datasets import load_iris
    >>> from sksoftrank import SoftRankMLPClassifier, StackedRandomizedSearchCV
    >>> X, y = load_iris(return_X_y=True)
    >>> search = StackedRandomizedSearchCV(
    ...     SoftRankMLPClassifier(32, max_epochs=20, random_state=0),
    ...     {"temperature": loguniform(0.1, 100), "learning_rate": [0.003, 0.01]},
    ...     n_iter=4,
    ...     cv=3,
    ...     random_state=0,
    ... )
    >>> search.fit(X, y).fallback_reason_ is None
    True
    """
