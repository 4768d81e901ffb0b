"""A search for what holds up under a shift, with Optuna."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from numbers import Integral, Real
from typing import Any, Self

import joblib
import numpy as np
import numpy.typing as npt
import optuna
from optuna.samplers import RandomSampler, TPESampler
from optuna.trial import FrozenTrial
from sklearn import get_config
from sklearn.base import BaseEstimator, clone, is_classifier
from sklearn.metrics import get_scorer_names
from sklearn.utils import Tags
from sklearn.utils.metadata_routing import MetadataRouter
from sklearn.utils.multiclass import check_classification_targets

from sksoftrank._sklearn import (
    HasMethods,
    Interval,
    StrOptions,
    _fit_context,
    _get_scorers,
    _init_callback_context,
    _validate_params,
)
from sksoftrank.estimators import BaseSoftRankClassifier, SoftRankEnsembleClassifier
from sksoftrank.estimators._training_data import draw_seeds
from sksoftrank.search._base import BaseNetworkSearchCV
from sksoftrank.search._jobs import last_step, step_prefix, with_params
from sksoftrank.search.ood.choice import Criterion, Outcome, pick_finalists
from sksoftrank.search.ood.evaluation import Evaluation, random_states
from sksoftrank.search.ood.fingerprint import check_fingerprint, fingerprint
from sksoftrank.search.ood.protocol import keep_defined, make_plan
from sksoftrank.search.ood.results import (
    complete_outcomes,
    is_complete,
    outcome,
    params_of,
    summarize,
)
from sksoftrank.search.ood.space import (
    BASELINE,
    Params,
    Queued,
    Space,
    default_queue,
    make_space,
)
from sksoftrank.search.ood.storage import (
    is_in_memory,
    open_storage,
    release,
    storage_errors,
)
from sksoftrank.search.ood.study import QUEUED, StudyLoop, open_study, quiet

_STUDY_NAME = "OODSearchCV"
# For a trial's rank and number of components: of all rows they would take a quarter of
# a small network's time.
_MEASURED_ROWS = 1000


class OODSearchCV(BaseNetworkSearchCV):
    """Search for the configuration that holds up best under a distribution shift.

    In a first stage Optuna proposes configurations; each is fitted on source rows, and
    scored on shifted rows (out of distribution) and on held-out source rows (in
    distribution). What is maximised is the mean of both scores, or another weight of
    theirs. In a second stage the best few, and the baseline, are fitted with fresh
    seeds. The one that is best over all its seeds is chosen, if on the fresh ones alone
    it beats the baseline by more than `min_gain`; else the baseline is, and
    `best_reason_` says so. The baseline is the estimator at temperature 1, with that
    learning rate of the first four trials (its own times 1, 0.3, 0.1 and 0.03) which
    does best in distribution; or the estimator as it is, where its learning rate is a
    number. Networks of one architecture train as one stack.

    The shift comes from one of three places: ``fit(X, y, domains=...)`` leaves one
    domain out at a time; ``fit(X, y, X_ood=..., y_ood=...)`` scores rows of another
    domain; ``shifts=[...]`` shifts the held-out rows. The best configuration is fitted
    again on all rows of `X`, never on `X_ood`. Report on a domain that played no part.

    A search finds what pays on the domains that it is given. It can only carry over to
    others where the same configurations do well on both: domains that are later, or
    further away, in the same way. Where accuracy on the searched domains says nothing
    of the others, or the opposite, no rule of choice can tell.

    Parameters
    ----------
    estimator : estimator
        A classifier, or a pipeline that ends in one.
    param_distributions : dict, callable or None, default=None
        Names of parameters, and for each a distribution of Optuna or scipy.stats or a
        list of values. Or a function from an Optuna trial to a dict of parameters,
        which may ask for some only where others need them, or raise
        ``optuna.TrialPruned``; it is called again to read finished trials. None
        searches the temperature, the learning rate in units of the automatic one,
        weight decay, label smoothing, the length of training, where these are there
        the dropout and the attention's temperature, and an MLP's normalisation and
        depth; after the baselines it tries the estimator's own recipe, and a robust
        one without normalisation and smoothing.
    n_trials : int, default=50
        Configurations of the first stage, the baselines included; together, whoever
        works on the study.
    n_finalists : int or "auto", default="auto"
        Configurations of the second stage beside the baseline; "auto" is 5, or 3 of
        fewer than 45 trials.
    n_final_seeds : int, default=4
        Fresh seeds that each of them is fitted with, on each split. An estimator
        without a `random_state` has no second stage: its scores stand.
    min_gain : float, default=0.005
        Non-negative. By how much the choice must beat the baseline. 0 finds more, and
        harms more often.
    ood_weight : float, default=0.5
        In [0, 1]. What the score under the shift counts; that in distribution counts
        the rest.
    timeout : float, default=None
        Seconds after which no new trials are started, but for the first ones: the
        baselines and recipes. The second stage always follows. None sets no limit.
    objective : {"ood", "pareto"}, default="ood"
        What is optimized: the weighted score; or the Pareto front of both scores and
        the number of columns that `transform` gives, which the finalists are then of.
    aggregate : {"mean", "worst"}, default="mean"
        How the scores on several domains become one.
    scoring : str or callable, default=None
        The metric; None takes the estimator's ``score``. A domain it is not defined
        on, such as the area under a ROC curve where a class is missing, is left out
        with a warning; a logarithmic loss is told of all classes.
    cv : int, splitter or iterable, default=None
        How source rows are split for training and in-distribution scores. A number
        means that many stratified folds of shuffled rows. None holds out a fifth of
        the rows, once: more trials tell more than more folds of each. With
        `domains`, folds are made of and count within the source rows: all but the
        domain left out. So indices that are fixed, as of a ``PredefinedSplit``, are
        no rows of `X` there; those out of range are refused.
    sampler : optuna.samplers.BaseSampler, default=None
        None takes Optuna's TPE sampler. Those that try everything, such as
        ``GridSampler``, end the search when they have.
    pruner : optuna.pruners.BasePruner, default=None
        Prunes trials, by their scores during training; never the first ones. A trial
        is judged at epochs that all its fits have reached: of fits that are not
        stacked, which follow each other, the last one is cut short. For sksoftrank's
        classifiers, ensembles apart, and ``objective="ood"``.
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
    refit : bool or "ensemble", default=True
        Whether the best configuration is fitted again on all rows of `X`; "ensemble"
        fits several of it, with a seed each, as a `SoftRankEnsembleClassifier`.
    n_estimators : int, default=5
        Members of that ensemble.
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
        ``split<i>_test_score``, ``mean_test_score`` (what is maximised),
        ``std_test_score`` (over splits), ``rank_test_score``, and means and deviations
        of ``fit_time`` and ``score_time`` over fits: all of the first stage. And its
        ``mean_test_id``, ``split<i>_test_id``, ``mean_test_ood``,
        ``mean_test_ood_<domain>``; the same means of the fresh seeds of the second
        stage, ``mean_final_score`` and so on, NaN for what was not in it, and
        deviations over those seeds, ``std_final_id``, ``std_final_ood`` and
        ``std_final_ood_<domain>``; ``stage`` (2 for finalists, else 1), ``n_seeds``,
        ``n_components``, ``rank`` (of the embedding of 1,000 rows at most), ``trial``
        (its number), ``state``, ``is_baseline``.
    results_ : pandas.DataFrame
        The same as a table; needs pandas.
    best_estimator_ : estimator
        The chosen configuration, fitted on all rows; with `refit`.
    best_params_ : dict
        Its parameters.
    best_score_ : float
        What was maximised, over all its seeds.
    best_index_ : int
        Its place in ``cv_results_``.
    best_reason_ : str
        Why it was chosen, or the baseline kept, out of how many and by what scores.
    pareto_front_ : list of dict
        Of ``objective="pareto"``: index, parameters, scores and columns of each trial
        that no other one dominates.
    domains_ : list of str
        Names of the domains or shifts that were scored.
    n_trials_ : int
        Trials that the choice was made from.
    study_ : optuna.Study
        The study of the first stage. Its trials have attributes:
        ``sksoftrank:id_score``; ``:ood_score``; ``:scores`` of each fit, with times;
        ``:queued``, a name, of those that it began with; ``:error``. The second stage
        is a study of its own in the same storage, ``<study_name>:finals``, where
        neither the sampler nor a plot takes its trials for configurations.
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
        "n_finalists": [
            StrOptions({"auto"}),
            Interval(Integral, 1, None, closed="left"),
        ],
        "n_final_seeds": [Interval(Integral, 1, None, closed="left")],
        "min_gain": [Interval(Real, 0, None, closed="left")],
        "ood_weight": [Interval(Real, 0, 1, closed="both")],
        "objective": [StrOptions({"ood", "pareto"})],
        "aggregate": [StrOptions({"mean", "worst"})],
        "scoring": [StrOptions(set(get_scorer_names())), callable, None],
        "cv": ["cv_object"],
        "sampler": [HasMethods(["sample_relative", "sample_independent"]), None],
        "pruner": [HasMethods(["prune"]), None],
        "storage": [str, os.PathLike, HasMethods(["create_new_trial"]), None],
        "study_name": [str, None],
        "study_callbacks": [list, tuple, None],
        "refit": ["boolean", StrOptions({"ensemble"})],
        "n_estimators": [Interval(Integral, 1, None, closed="left")],
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
        n_finalists: int | str = "auto",
        n_final_seeds: int = 4,
        min_gain: float = 0.005,
        ood_weight: float = 0.5,
        timeout: float | None = None,
        objective: str = "ood",
        aggregate: str = "mean",
        scoring: str | Callable[..., float] | None = None,
        cv: Any = None,
        sampler: Any = None,
        pruner: Any = None,
        storage: Any = None,
        study_name: str | None = None,
        study_callbacks: Sequence[Callable[..., None]] | None = None,
        refit: bool | str = True,
        n_estimators: int = 5,
        n_jobs: int | None = None,
        random_state: int | np.random.RandomState | None = None,
        verbose: int = 0,
        error_score: str | float = np.nan,
        shifts: Sequence[Any] | None = None,
    ) -> None:
        self.estimator = estimator
        self.param_distributions = param_distributions
        self.n_trials = n_trials
        self.n_finalists = n_finalists
        self.n_final_seeds = n_final_seeds
        self.min_gain = min_gain
        self.ood_weight = ood_weight
        self.timeout = timeout
        self.objective = objective
        self.aggregate = aggregate
        self.scoring = scoring
        self.cv = cv
        self.sampler = sampler
        self.pruner = pruner
        self.storage = storage
        self.study_name = study_name
        self.study_callbacks = study_callbacks
        self.refit = refit
        self.n_estimators = n_estimators
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
        context = _init_callback_context(
            self, max_subtasks=2 + bool(self.refit), sequential_subtasks=False
        )
        before = dict(vars(self))
        context.call_on_fit_task_begin(estimator=self, X=X, y=y)
        try:
            self._search(X, y, domains, X_ood, y_ood, domains_ood, params, context)
            context.call_on_fit_task_end(
                estimator=self, X=X, y=y, reconstruction_attributes={}
            )
        except BaseException as error:
            # As it was, but for the trials that were finished before Ctrl-C.
            kept = {}
            if isinstance(error, KeyboardInterrupt) and "_unfinished" in vars(self):
                kept = {k: vars(self)[k] for k in ("_studies", "_study_name")}
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
        context: Any,
    ) -> None:
        self._check_estimator()
        if self.refit:
            refit = context.subcontext(task_name="refit", task_id=2)
            with refit.propagate_callback_context(clone(self.estimator)):
                pass  # Or an error, before any training.
        scorer, _ = _get_scorers(self)
        X, y, routed = self._read(X, y, params)
        check_classification_targets(y)
        base: BaseEstimator = clone(self.estimator)
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
            seed=seeds[0],
        )
        plan = keep_defined(plan, y, scorer, self.scoring)
        space = make_space(self.param_distributions, base, len(plan.splits[0].train))
        with quiet():
            queue = default_queue(self.param_distributions, base, space)
        n_finalists = self._check_budget(queue)
        queue = dict(list(queue.items())[: self.n_trials])
        criterion = Criterion(self.ood_weight, self.aggregate)
        evaluation = Evaluation(
            base_estimator=base,
            X=X,
            y=y,
            plan=plan,
            fit_params=routed.estimator.fit,
            scorer=scorer,
            score_params=routed.scorer.score,
            error_score=self.error_score,
            # A scorer of the user's own may look at anything that a fit leaves.
            basis_rows=None if callable(self.scoring) else _MEASURED_ROWS,
            n_jobs=self.n_jobs,
            n_trials=self.n_trials,
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
                "ood_weight": self.ood_weight,
                "seeds of random_state": seeds[:2],
            },
            fit_params=routed.estimator.fit,
        )
        is_pareto = self.objective == "pareto"
        in_memory = is_in_memory(self.storage)
        storage = open_storage(self.storage)
        try:
            with storage_errors(self.storage):
                if not (in_memory and last_parts and last_parts == describe()):
                    self._studies: dict[str, optuna.Study] = {}
                first = self._open_study(
                    "first",
                    storage,
                    self._shared_name(),
                    ["maximize", "maximize", "minimize"][: 3 if is_pareto else 1],
                    sampler=clone(self.sampler, safe=False)
                    or TPESampler(seed=seeds[0] % 2**32),
                    pruner=clone(self.pruner, safe=False),
                )
                if not in_memory:
                    check_fingerprint(first, describe(), self.storage)
                self._study_name = first.study_name
                self._unfinished = seeds, describe
                loop = StudyLoop(
                    first,
                    storage,
                    evaluation,
                    seeds[1:2],
                    space,
                    queue,
                    n_trials=self.n_trials,
                    batch_size=evaluation.batch_size,
                    criterion=criterion,
                    timeout=self.timeout,
                    verbose=self.verbose,
                )
                with self._stage(context, 0, loop) as tell:
                    loop.callbacks = [*(self.study_callbacks or ()), tell]
                    trials = loop.run()
                tried = [params_of(t, loop.params, space, queue) for t in trials]
                outcomes = complete_outcomes(trials)
                places = list(outcomes)
                finalists = [
                    places[k]
                    for k in pick_finalists(
                        list(outcomes.values()),
                        n_finalists,
                        criterion,
                        pareto=is_pareto,
                    )
                ]
                finals: dict[int, Outcome | None] = dict.fromkeys(finalists)
                if random_states(base):
                    finals = self._second_stage(
                        loop,
                        {k: (trials[k], tried[k]) for k in finalists},
                        seeds[2:],
                        context,
                    )
        finally:
            release(storage)
        self.multimetric_ = False
        self.scorer_ = scorer
        self.n_splits_ = len(plan.splits)
        self.domains_ = plan.domains
        self.fallback_reason_ = evaluation.fallback_reason()
        summary = summarize(
            trials,
            tried,
            finals,
            plan,
            criterion,
            min_gain=self.min_gain,
            is_pareto=is_pareto,
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
            if self.refit == "ensemble":
                best = as_ensemble(best, self.n_estimators, self.n_jobs)
            with refit.propagate_callback_context(best):
                refit.call_on_fit_task_begin(estimator=self, X=X, y=y)
                self._refit(best, X, y, routed.estimator.fit)
            refit.call_on_fit_task_end(estimator=self, X=X, y=y)
        del self._unfinished

    def _second_stage(
        self,
        first: StudyLoop,
        finalists: dict[int, tuple[FrozenTrial, Params]],
        seeds: Sequence[int],
        context: Any,
    ) -> dict[int, Outcome | None]:
        """Return what finalists score with fresh seeds, by place; as one stack.

        In a study of their own, for Optuna takes no new attributes of trials that have
        finished: so that workers share them, and none is lost with its worker.
        """
        queue = {
            f"trial {trial.number}": Queued({}, params)
            for trial, params in finalists.values()
        }
        finals = replace(
            first,
            study=self._open_study(
                "finals",
                first.storage,
                f"{self._study_name}:finals:{len(seeds)}",
                ["maximize"],
                sampler=RandomSampler(),
            ),
            seeds=seeds,
            space=Space(lambda trial: {}),
            queue=queue,
            n_trials=len(queue),
            batch_size=len(queue),
            timeout=None,
            params={},
        )
        with self._stage(context, 1, finals) as tell:
            finals.callbacks = [tell]
            done = finals.run()
        by_name = {
            trial.user_attrs[QUEUED]: outcome(trial)
            for trial in done
            if is_complete(trial)
        }
        return {
            place: by_name[f"trial {trial.number}"]
            for place, (trial, _) in finalists.items()
            if f"trial {trial.number}" in by_name
        }

    @contextmanager
    def _stage(
        self, context: Any, place: int, loop: StudyLoop
    ) -> Iterator[Callable[[optuna.Study, FrozenTrial], None]]:
        """Make a stage a task, and yield what tells scikit-learn's callbacks of trials.

        Each is a task of its own, told of when it is done: those of a batch train as
        one stack.
        """
        # Others may work on what lies in a storage.
        n_trials = loop.n_trials if is_in_memory(self.storage) else None
        stage = context.subcontext(
            task_name=("first stage", "second stage")[place],
            task_id=place,
            max_subtasks=n_trials,
        )
        stage.call_on_fit_task_begin(estimator=self)

        def tell(study: optuna.Study, trial: FrozenTrial) -> None:
            task = stage.subcontext(task_name="trial")
            task.call_on_fit_task_begin(estimator=self)
            if task.call_on_fit_task_end(estimator=self):
                study.stop()

        yield tell
        stage.call_on_fit_task_end(estimator=self)

    def _open_study(
        self, stage: str, storage: Any, name: str | None, *args: Any, **options: Any
    ) -> optuna.Study:
        """Open a stage's study, or go on with that of a fit that was interrupted."""
        if stage not in self._studies:
            self._studies[stage] = open_study(storage, name, *args, **options)
        return self._studies[stage]

    def _check_budget(self, queue: Iterable[str]) -> int:
        """Return how many finalists there are beside the baseline."""
        n_baselines = sum(name.startswith(BASELINE) for name in queue)
        if self.n_trials <= n_baselines:
            raise ValueError(
                f"n_trials must leave configurations beside the {n_baselines} of the "
                f"baseline, got {self.n_trials}. Use at least {n_baselines + 1}, "
                "better 50 or more."
            )
        if isinstance(self.n_finalists, str):
            return min(5 if self.n_trials >= 45 else 3, self.n_trials - 1)
        if self.n_finalists >= self.n_trials:
            raise ValueError(
                "n_finalists must be less than n_trials, which they and the baseline "
                f"are of, got {self.n_finalists} and {self.n_trials}. Use 'auto', or "
                "raise n_trials."
            )
        return int(self.n_finalists)

    def _check_estimator(self) -> None:
        """Check what the parameters' own ranges don't say, before any training."""
        if not all(map(callable, self.study_callbacks or ())):
            raise ValueError(
                "study_callbacks must hold functions (study, trial), got "
                f"{self.study_callbacks!r}. Leave it out for none."
            )
        if not is_classifier(self.estimator):
            raise ValueError(
                "estimator must be a classifier or a pipeline that ends in one, got "
                f"{type(self.estimator).__name__}. Use e.g. SoftRankMLPClassifier()."
            )
        last = last_step(self.estimator)
        is_ours = isinstance(last, BaseSoftRankClassifier | SoftRankEnsembleClassifier)
        if self.refit == "ensemble" and not isinstance(last, BaseSoftRankClassifier):
            raise ValueError(
                "refit='ensemble' needs an estimator that ends in one of this "
                f"package's networks, got {type(last).__name__}. Use refit=True."
            )
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
        return draw_seeds(random_state, 2 + self.n_final_seeds)

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
        if "_studies" not in vars(self):  # Unpickled, maybe where its storage is not.
            storage = open_storage(self.storage)
            self._studies = {
                "first": optuna.load_study(study_name=name, storage=storage)
            }
        return self._studies["first"]

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
        if self.shifts is not None:
            tags.input_tags.sparse = False
        return tags

    def __getstate__(self) -> dict[str, Any]:
        state: dict[str, Any] = dict(super().__getstate__())
        if not is_in_memory(self.storage):
            # A model must load where the study's server is out of reach.
            state.pop("_studies", None)
        return state


def as_ensemble(estimator: Any, n_estimators: int, n_jobs: int | None = None) -> Any:
    """Return an estimator with several networks where it has one, its last step."""
    last = last_step(estimator)
    ensemble = SoftRankEnsembleClassifier(
        last,
        n_estimators,
        n_components=last.n_components,
        compression_tol=last.compression_tol,
        n_jobs=n_jobs,
        random_state=last.random_state,
    )
    if get_config()["enable_metadata_routing"]:
        asked = last.get_metadata_routing().fit.requests
        ensemble.set_fit_request(sample_weight=asked.get("sample_weight"))
    if last is estimator:
        return ensemble
    name = step_prefix(estimator).removesuffix("__")
    return clone(estimator).set_params(**{name: ensemble})
