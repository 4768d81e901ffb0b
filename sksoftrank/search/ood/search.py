"""A search for what holds up under a shift, with Optuna."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from functools import partial
from numbers import Integral, Real
from typing import Any, Self

import joblib
import numpy as np
import numpy.typing as npt
import optuna
from optuna.samplers import TPESampler
from sklearn.base import BaseEstimator, clone, is_classifier
from sklearn.metrics import get_scorer_names
from sklearn.utils import Tags, assert_all_finite, get_tags, indexable
from sklearn.utils.metadata_routing import MetadataRouter
from sklearn.utils.metaestimators import available_if
from sklearn.utils.multiclass import check_classification_targets

from sksoftrank._sklearn import (
    BaseSearchCV,
    HasMethods,
    Interval,
    StrOptions,
    _check_method_params,
    _fit_context,
    _get_routed_params_for_fit,
    _get_scorers,
    _validate_params,
)
from sksoftrank.estimators import BaseSoftRankClassifier, SoftRankEnsembleClassifier
from sksoftrank.estimators._training_data import draw_seeds
from sksoftrank.search._fits import last_step, with_params
from sksoftrank.search.ood.evaluation import Evaluation, random_states
from sksoftrank.search.ood.fingerprint import check_fingerprint, fingerprint
from sksoftrank.search.ood.protocol import keep_defined, make_plan
from sksoftrank.search.ood.results import params_of, summarize
from sksoftrank.search.ood.space import baseline_grid, make_space
from sksoftrank.search.ood.storage import (
    is_in_memory,
    open_storage,
    release,
    storage_errors,
)
from sksoftrank.search.ood.study import StudyLoop, open_study

_STUDY_NAME = "OODSearchCV"


class OODSearchCV(BaseSearchCV):
    """Search for the configuration that holds up best under a distribution shift.

    Optuna proposes configurations; each is fitted on source rows, and scored on
    shifted rows (out of distribution) and on held-out source rows (in distribution).
    The baseline is the default configuration at temperature 1, with that learning rate
    of the first four trials (its own times 1, 3, 10 and 0.3) which does best in
    distribution. Of the configurations whose in-distribution score is near the best,
    the one wins that most surely beats the baseline under the shift: by the most beyond
    as many standard errors of the paired difference as the best of so many gets by
    chance, ``sqrt(2 log m)`` of m. If none does, the baseline is returned, and
    `best_reason_` says so. More splits, seeds, domains and rows make a gain surer.
    Domains count as a sample of those to come, `shifts` as all that is feared.
    Networks of one architecture train as one stack.

    The shift comes from one of three places: ``fit(X, y, domains=...)`` leaves one
    domain out at a time; ``fit(X, y, X_ood=..., y_ood=...)`` scores rows of another
    domain; ``shifts=[...]`` shifts the held-out rows. The best configuration is fitted
    again on all rows of `X`, never on `X_ood`. Report on a domain that played no part.

    Parameters
    ----------
    estimator : estimator
        A classifier, or a pipeline that ends in one.
    param_distributions : dict, callable or None, default=None
        Names of parameters, and for each a distribution of Optuna or scipy.stats or a
        list of values. Or a function from an Optuna trial to a dict of parameters,
        which may ask for some only where others need them, or raise
        ``optuna.TrialPruned``; it is called again to read finished trials. None
        searches the temperature, the learning rate in units of the automatic one, the
        weight decay, the dropout where there is one, and the normalisation of an MLP.
    n_trials : int, default=50
        Configurations, the baseline's included; together, whoever works on the study.
    timeout : float, default=None
        Seconds after which no new trials are started, but for the baseline's; None
        sets no limit.
    objective : {"ood", "pareto"}, default="ood"
        What is optimized: the score under the shift, with the in-distribution score as
        a constraint; or the Pareto front of both scores and the number of columns that
        `transform` gives, of which the same rule chooses.
    id_tolerance : float, default=0.01
        Non-negative. How far below the best in-distribution score seen a configuration
        may be.
    aggregate : {"mean", "worst"}, default="mean"
        How the scores on several domains become one.
    n_seeds : int, default=1
        Random states that each configuration is fitted with, on each split.
    scoring : str or callable, default=None
        The metric; None takes the estimator's ``score``. A domain it is not defined
        on, such as the area under a ROC curve where a class is missing, is left out
        with a warning; a logarithmic loss is told of all classes.
    cv : int, splitter or iterable, default=None
        How source rows are split for training and in-distribution scores. A number
        means that many stratified folds of shuffled rows. None means five; with
        `domains` only the first of them, as the domains are the repetitions. With
        `domains`, folds are made of and count within the source rows: all but the
        domain left out. So indices that are fixed, as of a ``PredefinedSplit``, are
        no rows of `X` there; those out of range are refused.
    sampler : optuna.samplers.BaseSampler, default=None
        None takes Optuna's TPE sampler. Those that try everything, such as
        ``GridSampler``, end the search when they have.
    pruner : optuna.pruners.BasePruner, default=None
        Prunes trials, by their scores under the shift during training; never
        the baseline. A trial is judged at epochs that all its fits have reached: of
        fits that are not stacked, which follow each other, the last one is cut short.
        For sksoftrank's classifiers, ensembles apart, and ``objective="ood"``.
        None stops none.
    storage : path, str or optuna.storages.BaseStorage, default=None
        Where the study is kept: a path, of an SQLite file on a disk of this machine; a
        URL, of a PostgreSQL or MySQL database; or a storage of Optuna's. A search that
        was ended goes on. All processes with the same `storage` and `study_name` work
        together, and choose the same. In a database given as path or URL, trials whose
        worker was killed are run again, a minute later; other storages don't notice,
        and the other workers wait. None keeps the study in memory, where the same fit
        goes on after Ctrl-C.
    study_name : str, default=None
        Name of the study in the storage; None takes "OODSearchCV".
    study_callbacks : list of callable, default=None
        Optuna's: called with the study and each trial that this process finished. They
        may call ``study.stop()``, which ends the search once the baseline is done.
    refit : bool, default=True
        Whether the best configuration is fitted again on all rows of `X`.
    n_jobs : int, default=None
        Stacks trained at the same time; None means 1.
    random_state : int, RandomState instance or None, default=None
        Seeds the splits, the fits and the sampler. Processes that work together must
        be given the same number, or None.
    verbose : int, default=0
        Above 0, a bar shows the trials done, the best score and the time left.
    error_score : "raise" or float, default=nan
        Score of a fit that failed; with nan its trial is out.
    shifts : list of transformers, default=None
        Of `sksoftrank.shifts`, `sksoftrank.corruptions` or the like. Each is fitted on
        a split's training rows and applied to its held-out rows.

    Attributes
    ----------
    cv_results_ : dict of ndarray
        As scikit-learn's, one entry a trial: ``params``, ``param_<name>``,
        ``split<i>_test_score`` (under the shift, over the split's domains),
        ``mean_test_score`` (what is optimized), ``std_test_score`` (over splits),
        ``rank_test_score``, and means and deviations of ``fit_time`` and ``score_time``
        over fits. And ``mean_test_id``, ``split<i>_test_id``, ``mean_test_ood``,
        ``mean_test_ood_<domain>``, ``n_components``, ``rank`` (of the embedding),
        ``trial`` (its number), ``state``, ``is_baseline``.
    results_ : pandas.DataFrame
        The same as a table; needs pandas.
    best_estimator_ : estimator
        The chosen configuration, fitted on all rows; with `refit`.
    best_params_ : dict
        Its parameters.
    best_score_ : float
        Its score under the shift.
    best_index_ : int
        Its place in ``cv_results_``.
    best_reason_ : str
        Why it was chosen, with the gain and its standard error over seeds, splits,
        domains and, where `X_ood` is given, parts of its rows.
    pareto_front_ : list of dict
        Of ``objective="pareto"``: index, parameters, scores and columns of each trial
        that no other one dominates.
    domains_ : list of str
        Names of the domains or shifts that were scored.
    n_trials_ : int
        Trials that the choice was made from.
    study_ : optuna.Study
        The study. Its trials have attributes: ``sksoftrank:id_score``; ``:scores`` of
        each fit, with times; ``:baseline``, a place among the baselines; ``:error``.
    scorer_ : callable
        The metric.
    n_splits_ : int
        Splits, over all domains.
    refit_time_ : float
        Seconds of the last fit.
    fallback_reason_ : str or None
        Why some of this process's fits were not stacked; None if all were.
    feature_names_in_ : ndarray
        Names of the columns, where `X` had any.

    Raises
    ------
    ValueError
        At fit: for none or several sources of shift, parameters out of range, a study
        of another search, or a file that is no database. If all fits failed.
    OSError
        At fit, if the storage can't be used.

    See Also
    --------
    StackedGridSearchCV : A grid, without a shift.
    sksoftrank.shifts : Shifts with severities.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from sksoftrank import OODSearchCV, SoftRankMLPClassifier
    >>> from sksoftrank.shifts import GainDrift
    >>> X, y = load_iris(return_X_y=True)
    >>> search = OODSearchCV(
    ...     SoftRankMLPClassifier(16, max_epochs=10),
    ...     n_trials=6,
    ...     cv=2,
    ...     shifts=[GainDrift(severity=3)],
    ...     random_state=0,
    ... )
    >>> search.fit(X, y).cv_results_["is_baseline"]
    array([ True,  True,  True,  True, False, False])
    >>> search.predict(X).shape
    (150,)
    """

    _parameter_constraints = {  # noqa: RUF012
        "estimator": [HasMethods(["fit"])],
        "param_distributions": [dict, callable, None],
        "n_trials": [Interval(Integral, 1, None, closed="left")],
        "timeout": [Interval(Real, 0, None, closed="neither"), None],
        "objective": [StrOptions({"ood", "pareto"})],
        "id_tolerance": [Interval(Real, 0, None, closed="left")],
        "aggregate": [StrOptions({"mean", "worst"})],
        "n_seeds": [Interval(Integral, 1, None, closed="left")],
        "scoring": [StrOptions(set(get_scorer_names())), callable, None],
        "cv": ["cv_object"],
        "sampler": [HasMethods(["sample_relative", "sample_independent"]), None],
        "pruner": [HasMethods(["prune"]), None],
        "storage": [str, os.PathLike, HasMethods(["create_new_trial"]), None],
        "study_name": [str, None],
        "study_callbacks": [list, tuple, None],
        "refit": ["boolean"],
        "n_jobs": [Integral, None],
        "random_state": ["random_state"],
        "verbose": ["verbose"],
        "error_score": [StrOptions({"raise"}), Real],
        "shifts": [list, tuple, None],
    }

    def __init__(
        self,
        estimator: Any,
        param_distributions: Any = None,
        *,
        n_trials: int = 50,
        timeout: float | None = None,
        objective: str = "ood",
        id_tolerance: float = 0.01,
        aggregate: str = "mean",
        n_seeds: int = 1,
        scoring: str | Callable[..., float] | None = None,
        cv: Any = None,
        sampler: Any = None,
        pruner: Any = None,
        storage: Any = None,
        study_name: str | None = None,
        study_callbacks: Sequence[Callable[..., None]] | None = None,
        refit: bool = True,
        n_jobs: int | None = None,
        random_state: int | np.random.RandomState | None = None,
        verbose: int = 0,
        error_score: str | float = np.nan,
        shifts: Sequence[Any] | None = None,
    ) -> None:
        self.estimator = estimator
        self.param_distributions = param_distributions
        self.n_trials = n_trials
        self.timeout = timeout
        self.objective = objective
        self.id_tolerance = id_tolerance
        self.aggregate = aggregate
        self.n_seeds = n_seeds
        self.scoring = scoring
        self.cv = cv
        self.sampler = sampler
        self.pruner = pruner
        self.storage = storage
        self.study_name = study_name
        self.study_callbacks = study_callbacks
        self.refit = refit
        self.n_jobs = n_jobs
        self.random_state = random_state
        self.verbose = verbose
        self.error_score = error_score
        self.shifts = shifts

    @_fit_context(prefer_skip_nested_validation=False)
    def fit(
        self,
        X: Any,
        y: Any = None,
        *,
        domains: npt.ArrayLike | None = None,
        X_ood: Any = None,
        y_ood: npt.ArrayLike | None = None,
        domains_ood: npt.ArrayLike | None = None,
        **params: Any,
    ) -> Self:
        """Search, and fit the best configuration on all rows of `X`.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Source rows.
        y : array-like of shape (n_samples,), default=None
            Labels.
        domains : array-like of shape (n_samples,), default=None
            Where each row comes from. Each domain is scored by fits on the others.
        X_ood : array-like of shape (n_samples_ood, n_features), default=None
            Rows of another domain, to be scored only.
        y_ood : array-like of shape (n_samples_ood,), default=None
            Their labels.
        domains_ood : array-like of shape (n_samples_ood,), default=None
            Where each of them comes from; None takes them for one domain.
        **params : dict
            Parameters of the estimator's ``fit``, the scorer and the splitter, such as
            `sample_weight` or `groups`.

        Returns
        -------
        Self
            The fitted search.
        """
        before = dict(vars(self))
        try:
            self._search(X, y, domains, X_ood, y_ood, domains_ood, params)
        except BaseException as error:
            # As it was, but for the trials that were finished before Ctrl-C.
            kept = {}
            if isinstance(error, KeyboardInterrupt) and "_unfinished" in vars(self):
                kept = {k: vars(self)[k] for k in ("_study", "_study_name")}
                if is_in_memory(self.storage):  # Others open theirs again.
                    seeds, describe = self._unfinished
                    kept["_unfinished"] = seeds, describe()
            self.__dict__ = {**before, **kept}
            raise
        return self

    def _search(
        self,
        X: Any,
        y: Any,
        domains: Any,
        X_ood: Any,
        y_ood: Any,
        domains_ood: Any,
        params: dict[str, Any],
    ) -> None:
        self._check_estimator()
        scorer, _ = _get_scorers(self)
        if y is None:
            raise ValueError(
                "y must hold the labels, got None. A search over classifiers requires "
                "y to be passed, but the target y is None."
            )
        X, y = indexable(X, y)
        assert_all_finite(y, input_name="y")
        check_classification_targets(y)
        params = _check_method_params(X, params=params)
        routed = _get_routed_params_for_fit(self, params)
        base: BaseEstimator = clone(self.estimator)
        space, grid = make_space(self.param_distributions, base), baseline_grid(base)
        seeds = self._seeds()
        # Of a fit that was interrupted: the same one goes on from there.
        last_seeds, last_parts = self.__dict__.pop("_unfinished", (None, None))
        if last_seeds and not isinstance(self.random_state, Integral):
            seeds = last_seeds if len(last_seeds) == len(seeds) else seeds
        plan = make_plan(
            X,
            y,
            domains=domains,
            X_ood=X_ood,
            y_ood=y_ood,
            domains_ood=domains_ood,
            shifts=self.shifts,
            cv=self.cv,
            split_params=routed.splitter.split,
            needs_classes=self.scoring not in (None, "accuracy"),
            seed=seeds[0],
        )
        plan = keep_defined(plan, y, scorer, self.scoring)
        evaluation = Evaluation(
            base_estimator=base,
            X=X,
            y=y,
            plan=plan,
            seeds=seeds[1:],
            fit_params=routed.estimator.fit,
            scorer=scorer,
            score_params=routed.scorer.score,
            error_score=self.error_score,
            n_jobs=self.n_jobs,
        )
        describe = partial(
            fingerprint,
            estimator=base,
            X=X,
            y=y,
            plan=plan,
            space=space,
            settings={
                "scoring": self.scoring,
                "objective": self.objective,
                "aggregate": self.aggregate,
                "seeds of n_seeds and random_state": seeds,
            },
            fit_params=routed.estimator.fit,
        )
        is_pareto = self.objective == "pareto"
        in_memory = is_in_memory(self.storage)
        storage = open_storage(self.storage)
        try:
            with storage_errors(self.storage):
                if not (in_memory and last_parts and last_parts == describe()):
                    self._study = open_study(
                        storage,
                        self._shared_name(),
                        ["maximize", "maximize", "minimize"][: 3 if is_pareto else 1],
                        sampler=clone(self.sampler, safe=False)
                        or TPESampler(seed=seeds[0] % 2**32),
                        pruner=clone(self.pruner, safe=False),
                    )
                if not in_memory:
                    check_fingerprint(self._study, describe(), self.storage)
                self._study_name = self._study.study_name
                self._unfinished = seeds, describe
                loop = StudyLoop(
                    self._study,
                    storage,
                    evaluation,
                    space,
                    grid,
                    n_trials=self.n_trials,
                    timeout=self.timeout,
                    id_tolerance=self.id_tolerance,
                    aggregate=self.aggregate,
                    callbacks=self.study_callbacks or (),
                    verbose=self.verbose,
                )
                trials = loop.run()
        finally:
            release(storage)
        self.multimetric_ = False
        self.scorer_ = scorer
        self.n_splits_ = len(plan.splits)
        self.domains_ = plan.domains
        self.fallback_reason_ = evaluation.fallback_reason()
        summary = summarize(
            trials,
            [params_of(trial, loop.params, space, grid) for trial in trials],
            plan,
            aggregate=self.aggregate,
            id_tolerance=self.id_tolerance,
            is_pareto=is_pareto,
            is_sample=self.shifts is None,
        )
        self.__dict__.update(summary)
        if self.refit:
            best = with_params(base, self.best_params_)
            best.set_params(
                **{
                    name: seeds[1]
                    for name in random_states(best)
                    if best.get_params()[name] is None
                }
            )
            start = time.time()
            self.best_estimator_ = best.fit(X, y, **routed.estimator.fit)
            self.refit_time_ = time.time() - start
            if hasattr(best, "feature_names_in_"):
                self.feature_names_in_ = best.feature_names_in_
        del self._unfinished

    def _check_estimator(self) -> None:
        """Check what the parameters' own ranges don't say, before any training."""
        if not is_classifier(self.estimator):
            raise ValueError(
                "estimator must be a classifier or a pipeline that ends in one, got "
                f"{type(self.estimator).__name__}. Use e.g. SoftRankMLPClassifier()."
            )
        last = last_step(self.estimator)
        is_ours = isinstance(last, BaseSoftRankClassifier | SoftRankEnsembleClassifier)
        if self.objective == "pareto":
            if not is_ours:
                raise ValueError(
                    "objective='pareto' needs an estimator whose embedding has a size, "
                    f"got {type(last).__name__}. Use objective='ood'."
                )
            if self.pruner is not None:
                raise ValueError(
                    "pruner must be None with objective='pareto', where no trial is "
                    f"judged by one number, got {self.pruner!r}. Remove it, or use "
                    "objective='ood'."
                )
        if is_ours:
            _validate_params(last)

    def _seeds(self) -> list[int]:
        """Return seeds of the splits and of the fits."""
        random_state = self.random_state
        if random_state is None and not is_in_memory(self.storage):
            # The same in all processes that work on the study.
            random_state = int(joblib.hash(self._shared_name())[:8], 16)
        return draw_seeds(random_state, 1 + self.n_seeds)

    def _shared_name(self) -> str | None:
        """Return the name by which other processes know the study, if any do."""
        if self.study_name is None and not is_in_memory(self.storage):
            return _STUDY_NAME
        return self.study_name

    # -- Results ---------------------------------------------------------------------

    @property
    def study_(self) -> optuna.Study:
        """The Optuna study."""
        name = self._study_name
        if "_study" not in vars(self):  # Unpickled, maybe where its storage is not.
            self._study = optuna.load_study(
                study_name=name, storage=open_storage(self.storage)
            )
        return self._study

    @property
    def results_(self) -> Any:
        """The results as a pandas table, one row a trial."""
        results = self.cv_results_
        try:
            import pandas as pd
        except ImportError as error:
            raise ImportError(
                "results_ needs pandas, which is not installed. Run pip install "
                "'sksoftrank[table]', or use cv_results_."
            ) from error
        return pd.DataFrame(results)

    # -- scikit-learn's conventions ----------------------------------------------------

    def _run_search(self, evaluate_candidates: Any, **_: Any) -> None:
        # The base class's loop, which `fit` does without.
        raise NotImplementedError

    @available_if(lambda search: hasattr(search, "transform"))
    def fit_transform(self, X: Any, y: Any = None, **params: Any) -> Any:
        """Search, and transform the rows with the best configuration.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Source rows.
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

    def get_metadata_routing(self) -> MetadataRouter:
        """Return what `fit` passes on, and what it takes itself.

        Returns
        -------
        MetadataRouter
            As for :class:`sklearn.model_selection.GridSearchCV`, and `domains`.
        """
        return super().get_metadata_routing().add_self_request(self)

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.transformer_tags = get_tags(self.estimator).transformer_tags
        if self.shifts is not None:
            tags.input_tags.sparse = False
        return tags

    def __getstate__(self) -> dict[str, Any]:
        state: dict[str, Any] = dict(super().__getstate__())
        if not is_in_memory(self.storage):
            # A model must load where the study's server is out of reach.
            state.pop("_study", None)
        return state
