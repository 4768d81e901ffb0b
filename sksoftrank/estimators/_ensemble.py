"""Several networks, fitted as one stack, that decide together."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from numbers import Integral, Real
from typing import Any, ClassVar, Self

import numpy as np
import numpy.typing as npt
import torch
from joblib import effective_n_jobs
from sklearn.base import (
    BaseEstimator,
    ClassNamePrefixFeaturesOutMixin,
    TransformerMixin,
    clone,
)
from sklearn.callback import CallbackSupportMixin
from sklearn.utils import Tags
from sklearn.utils.validation import check_is_fitted

from sksoftrank._sklearn import (
    Interval,
    StrOptions,
    _fit_context,
    _init_callback_context,
    _validate_params,
)
from sksoftrank.compression import RankCompressor
from sksoftrank.estimators._base import BaseSoftRankClassifier
from sksoftrank.estimators._inference import StreamScoreMixin
from sksoftrank.estimators._mlp import SoftRankMLPClassifier
from sksoftrank.estimators._sources import is_stream
from sksoftrank.estimators._stacked_fit import (
    PendingFit,
    fit_stacked,
    refuse_checkpoint,
    run_stacks,
)
from sksoftrank.estimators._training_data import draw_seeds, sample_rows
from sksoftrank.losses import TemperatureSchedule
from sksoftrank.training import InMemoryDataset, StopFlag, StreamDataset

Array = npt.NDArray[Any]


class SoftRankEnsembleClassifier(
    CallbackSupportMixin,
    ClassNamePrefixFeaturesOutMixin,
    TransformerMixin,
    StreamScoreMixin,
    BaseEstimator,
):
    """Networks that differ by their seed or temperature, and vote by probability.

    All members see all rows; perceptrons are trained as one stack, at a fraction of the
    time of as many fits. An ensemble is the usual way to gain accuracy under shift, and
    the spread of its members says where it is unsure.

    Parameters
    ----------
    estimator : estimator, default=None
        What the members are clones of: a `SoftRankMLPClassifier`, whose clones train as
        one stack, or another of the package's classifiers; None takes the defaults of
        the former.
    n_estimators : int, default=8
        Members.
    temperature : float, TemperatureSchedule, sequence of these or None, default=None
        Positive. One for all members, or one for each; None takes the estimator's.
    embedding : {"compressed", "concatenated"}, default="compressed"
        What `transform` returns: the members' embeddings side by side, projected
        together on their leading directions, or as they are.
    n_components : "auto", int, float or None, default="auto"
        Columns of the compressed embedding, as for `RankCompressor`. "auto" keeps the
        fewest directions whose reconstruction is expected to keep the accuracy of the
        members' mean score on new rows within `compression_tol`.
    compression_tol : float, default=0.005
        In [0, 1). Accuracy that "auto" may lose on new rows.
    n_jobs : int, default=None
        Stacks trained at the same time, in threads; None means 1.
    random_state : int, RandomState instance or None, default=None
        Seeds the members, each differently.

    Attributes
    ----------
    estimators_ : list of estimator
        The fitted members.
    classes_ : ndarray of shape (n_classes,)
        Labels seen during fit.
    n_features_in_ : int
        Columns seen during fit.
    feature_names_in_ : ndarray of shape (n_features_in_,)
        Names of the columns, where `X` had any.
    compressor_ : RankCompressor
        The basis that `transform` projects on.
    n_components_ : int
        Columns of the compressed embedding.

    Raises
    ------
    ValueError
        At fit, for parameters or data that can't be trained on.

    See Also
    --------
    SoftRankMLPClassifier : One member.

    References
    ----------
    Lakshminarayanan, Pritzel and Blundell (2017), "Simple and scalable predictive
    uncertainty estimation using deep ensembles", NeurIPS.

    Examples
    --------
    >>> from sklearn.datasets import load_digits
    >>> from sksoftrank import SoftRankEnsembleClassifier, SoftRankMLPClassifier
    >>> X, y = load_digits(return_X_y=True)
    >>> ensemble = SoftRankEnsembleClassifier(
    ...     SoftRankMLPClassifier(32, learning_rate=0.01, max_epochs=20),
    ...     n_estimators=4,
    ...     random_state=0,
    ... )
    >>> ensemble.fit(X / 16, y).score(X / 16, y) > 0.95
    True
    >>> ensemble.predict_std(X / 16).shape
    (1797, 10)
    """

    __metadata_request__fit: ClassVar[dict[str, bool]] = {"groups": True}
    _parameter_constraints: dict[str, Any] = {  # noqa: RUF012
        "estimator": "no_validation",  # `_members` names the classes one may pass.
        "n_estimators": [Interval(Integral, 1, None, closed="left")],
        "temperature": [
            Interval(Real, 0, None, closed="neither"),
            TemperatureSchedule,
            "array-like",
            None,
        ],
        "embedding": [StrOptions({"compressed", "concatenated"})],
        "n_components": RankCompressor._parameter_constraints["n_components"],
        "compression_tol": RankCompressor._parameter_constraints["tol"],
        "n_jobs": [Integral, None],
        "random_state": ["random_state"],
    }

    def __init__(
        self,
        estimator: BaseSoftRankClassifier | None = None,
        n_estimators: int = 8,
        *,
        temperature: Any = None,
        embedding: str = "compressed",
        n_components: str | float | None = "auto",
        compression_tol: float = 0.005,
        n_jobs: int | None = None,
        random_state: int | np.random.RandomState | None = None,
    ) -> None:
        self.estimator = estimator
        self.n_estimators = n_estimators
        self.temperature = temperature
        self.embedding = embedding
        self.n_components = n_components
        self.compression_tol = compression_tol
        self.n_jobs = n_jobs
        self.random_state = random_state

    @_fit_context(prefer_skip_nested_validation=False)
    def fit(
        self,
        X: npt.ArrayLike,
        y: npt.ArrayLike | str | None = None,
        sample_weight: npt.ArrayLike | None = None,
        groups: npt.ArrayLike | None = None,
    ) -> Self:
        """Train all members on `X` and `y`.

        Parameters
        ----------
        X : {array-like, sparse matrix, Dataset} of shape (n_samples, n_features)
            Training rows, as `estimator` takes them: images and frames with columns of
            categories too. A Dataset is read in passes by each member.
        y : array-like of shape (n_samples,) or str, default=None
            Labels; as for `estimator` where `X` is a Dataset.
        sample_weight : array-like of shape (n_samples,), default=None
            Non-negative weights of the rows.
        groups : array-like of shape (n_samples,), default=None
            What each row belongs to, as in the members' `fit`.

        Returns
        -------
        Self
            The fitted ensemble.
        """
        # Which member is the first to be done, nobody knows.
        context = _init_callback_context(
            self, max_subtasks=self.n_estimators, sequential_subtasks=False
        )
        before = dict(vars(self))
        params = {"sample_weight": sample_weight, "groups": groups}
        call = {"estimator": self, "X": X, "y": y}
        context.call_on_fit_task_begin(**call)
        try:
            self._fit(X, y, {k: v for k, v in params.items() if v is not None}, context)
            context.call_on_fit_task_end(**call, reconstruction_attributes={})
        except BaseException:
            # As it was: nothing is lost.
            self.__dict__ = before
            raise
        return self

    def _fit(self, X: Any, y: Any, params: dict[str, Any], context: Any) -> None:
        # All members read their input alike: the first to do so is none of them.
        reader = clone(self._base())
        _validate_params(reader)
        if not is_stream(X, y):  # Once for all members.
            X = reader._architecture().input.as_frame(X)
        validated: dict[Any, Any] = {}
        sample_weight = params.get("sample_weight")
        dataset = reader._read_training(X, y, sample_weight, validated=validated)
        seeds = draw_seeds(self.random_state, self.n_estimators + 1)
        members = self._members(seeds)
        # Before the training, and not only after it.
        RankCompressor(self.n_components)._check_size(
            sum(member._architecture().embedding_width or 0 for member in members)
        )
        self.estimators_ = self._fit_members(
            [PendingFit(member, X, y, params) for member in members], validated, context
        )
        self.classes_ = reader.classes_
        self._input = reader._input
        self._input.set_features(self)
        self._find_basis(dataset, seeds[-1])

    def _base(self) -> BaseSoftRankClassifier:
        base = SoftRankMLPClassifier() if self.estimator is None else self.estimator
        if not isinstance(base, BaseSoftRankClassifier):
            raise ValueError(
                "estimator must be one of this package's networks, such as "
                f"SoftRankMLPClassifier() or SoftRankCNNClassifier(), got {base!r}. "
                "Scale or encode rows in a pipeline around the ensemble."
            )
        refuse_checkpoint(base)
        return base

    def _members(self, seeds: Sequence[int]) -> list[Any]:
        temperatures = self.temperature
        if temperatures is None or isinstance(temperatures, Real | TemperatureSchedule):
            temperatures = [temperatures] * self.n_estimators
        if np.shape(temperatures) != (self.n_estimators,):
            raise ValueError(
                f"temperature must be one number, or one for each of the "
                f"n_estimators={self.n_estimators} members, got {self.temperature!r}."
            )
        members = []
        for seed, temperature in zip(seeds, temperatures, strict=False):
            member = clone(self._base()).set_params(random_state=seed)
            if temperature is not None:
                member.set_params(temperature=temperature)
            _validate_params(member)
            members.append(member)
        return members

    def _fit_members(
        self,
        fits: list[PendingFit],
        validated: dict[Any, Any],
        context: Any,
    ) -> list[Any]:
        n_workers = min(effective_n_jobs(self.n_jobs), len(fits))
        size = -(-len(fits) // n_workers)
        tasks = [
            context.subcontext(task_name="member", task_id=k) for k in range(len(fits))
        ]
        followed = list(zip(fits, tasks, strict=True))
        stacks = run_stacks(
            partial(_fit_stack, validated=validated, caller=self),
            [followed[i : i + size] for i in range(0, len(fits), size)],
            n_jobs=n_workers,
            prefer="threads",
        )
        members = []
        for member, error in (fit for stack in stacks for fit in stack):
            if error is not None:
                raise error
            members.append(member)
        return members

    def _find_basis(self, dataset: InMemoryDataset | StreamDataset, seed: int) -> None:
        X, codes, weight = sample_rows(dataset, seed)
        # In single precision, like the training: half the time of double.
        Z = self._concatenate(X.astype(np.float32, copy=False))
        self.compressor_ = RankCompressor(
            self.n_components, tol=self.compression_tol
        ).fit(Z, codes, weight, head=self._mean_score())
        self.n_components_ = self.compressor_.n_components_

    def _mean_score(self) -> Callable[[torch.Tensor], torch.Tensor]:
        """Return the mean of the members' logits over temperature, affine in `z`."""
        widths = [member.module_.embedding_width for member in self.estimators_]
        heads = [(member._head(), member.temperature_) for member in self.estimators_]

        def score(z: torch.Tensor) -> torch.Tensor:
            parts = z.split(widths, dim=1)
            scores = [
                head(part) / temperature
                for (head, temperature), part in zip(heads, parts, strict=True)
            ]
            return torch.stack(scores).mean(dim=0)

        return score

    def _concatenate(self, X: Any) -> Array:
        return np.hstack([member._embed(X) for member in self.estimators_])

    def _validate_rows(self, X: Any) -> Any:
        check_is_fitted(self)
        return self._input.read(self, X)

    def _member_probabilities(self, X: Any) -> Array:
        """Return the members' probabilities (n_estimators, n, n_classes)."""
        return np.stack([member._probabilities(X) for member in self.estimators_])

    def _predict(self, X: Any) -> Array:
        codes = self._member_probabilities(X).mean(axis=0).argmax(axis=1)
        return self.classes_[codes]

    def predict_proba(self, X: npt.ArrayLike) -> Array:
        """Return the mean of the members' probabilities.

        Parameters
        ----------
        X : {array-like, sparse matrix, Dataset} of shape (n_samples, n_features)
            Rows.

        Returns
        -------
        ndarray of shape (n_samples, n_classes)
            Probabilities, in the order of ``classes_``.
        """
        return self._member_probabilities(self._validate_rows(X)).mean(axis=0)

    def predict_std(self, X: npt.ArrayLike) -> Array:
        """Return the standard deviation of the members' probabilities.

        Parameters
        ----------
        X : {array-like, sparse matrix, Dataset} of shape (n_samples, n_features)
            Rows.

        Returns
        -------
        ndarray of shape (n_samples, n_classes)
            In [0, 0.5]; higher where the members disagree.
        """
        with np.errstate(under="ignore"):  # Of members that agree.
            return self._member_probabilities(self._validate_rows(X)).std(axis=0)

    def predict(self, X: npt.ArrayLike) -> Array:
        """Return the class of the highest mean probability.

        Parameters
        ----------
        X : {array-like, sparse matrix, Dataset} of shape (n_samples, n_features)
            Rows.

        Returns
        -------
        ndarray of shape (n_samples,)
            Elements of ``classes_``.
        """
        return self._predict(self._validate_rows(X))

    def predict_log_proba(self, X: npt.ArrayLike) -> Array:
        """Return the logarithm of `predict_proba`.

        Parameters
        ----------
        X : {array-like, sparse matrix, Dataset} of shape (n_samples, n_features)
            Rows.

        Returns
        -------
        ndarray of shape (n_samples, n_classes)
            Log-probabilities, in the order of ``classes_``.
        """
        proba = self.predict_proba(X)
        # The least positive number stands for what vanished.
        return np.log(np.maximum(proba, np.finfo(proba.dtype).tiny))

    def decision_function(self, X: npt.ArrayLike) -> Array:
        """Return the logarithm of the mean probabilities, the ensemble's logits.

        Parameters
        ----------
        X : {array-like, sparse matrix, Dataset} of shape (n_samples, n_features)
            Rows.

        Returns
        -------
        ndarray of shape (n_samples, n_classes) or (n_samples,)
            For two classes the difference in favour of ``classes_[1]``.
        """
        scores = self.predict_log_proba(X)
        return scores[:, 1] - scores[:, 0] if len(self.classes_) == 2 else scores

    def embed(self, X: npt.ArrayLike) -> Array:
        """Return the members' embeddings side by side.

        Parameters
        ----------
        X : {array-like, sparse matrix, Dataset} of shape (n_samples, n_features)
            Rows.

        Returns
        -------
        ndarray of shape (n_samples, n_estimators * d)
            In the order of ``estimators_``.
        """
        return self._concatenate(self._validate_rows(X))

    def transform(self, X: npt.ArrayLike) -> Array:
        """Return the members' joint embedding, compressed unless asked otherwise.

        Parameters
        ----------
        X : {array-like, sparse matrix, Dataset} of shape (n_samples, n_features)
            Rows.

        Returns
        -------
        ndarray of shape (n_samples, n_components_) or (n_samples, n_estimators * d)
            In the dtype of `X`.
        """
        Z = self.embed(X)
        return Z if self.embedding == "concatenated" else self.compressor_.transform(Z)

    @property
    def _n_features_out(self) -> int:
        if self.embedding == "compressed":
            return self.n_components_
        return self.compressor_.n_features_in_

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.input_tags.sparse = True
        tags.transformer_tags.preserves_dtype = ["float64", "float32"]
        return tags


def _fit_stack(
    followed: list[tuple[PendingFit, Any]],
    validated: dict[Any, Any],
    caller: SoftRankEnsembleClassifier,
    *,
    stop: StopFlag,
) -> list[tuple[Any, Exception | None]]:
    """Return fitted members and errors; scikit-learn's callbacks are told of each."""
    fits = [fit for fit, _ in followed]
    with ExitStack() as propagated:
        for fit, task in followed:
            propagated.enter_context(task.propagate_callback_context(fit.estimator))
            task.call_on_fit_task_begin(estimator=caller, X=fit.X, y=fit.y)
        fit_stacked(fits, stop=stop, validated=validated)
    for fit, task in followed:
        if fit.error is None:
            task.call_on_fit_task_end(estimator=caller, X=fit.X, y=fit.y)
    return [(fit.estimator, fit.error) for fit in fits]
