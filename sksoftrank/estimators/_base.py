"""What all classifiers share: the scikit-learn contract around a `SoftRankNet`."""

from __future__ import annotations

import copy
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from importlib.metadata import version
from numbers import Integral
from typing import Any, ClassVar, Self

import numpy as np
import numpy.typing as npt
import torch
from sklearn.callback import CallbackSupportMixin, with_callbacks
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils import Tags
from sklearn.utils.validation import check_is_fitted
from skorch.callbacks import EarlyStopping
from torch import Tensor

from sksoftrank._checks import as_labels
from sksoftrank._digest import digest, stable_repr
from sksoftrank._sklearn import (
    _check_partial_fit_first_call,
    _fit_context,
    _init_callback_context,
    check_weights,
    has_callbacks,
    validate_parameter_constraints,
)
from sksoftrank._torch import uncompiled
from sksoftrank.compression import RankCompressor
from sksoftrank.estimators._architecture import Architecture
from sksoftrank.estimators._callbacks import EpochTasks
from sksoftrank.estimators._choice import MIN_ROWS, Choice
from sksoftrank.estimators._inference import InferenceMixin
from sksoftrank.estimators._input import InputReader, check_range
from sksoftrank.estimators._parameters import SharedParametersMixin
from sksoftrank.estimators._recipe import MODERATE, NetMixin
from sksoftrank.estimators._sources import is_stream
from sksoftrank.estimators._target_rank import RankSearch, tolerance_of
from sksoftrank.estimators._training import Training, fit_trainings
from sksoftrank.estimators._training_data import (
    FloatArray,
    Rows,
    check_batches,
    check_class_weight,
    check_classes,
    check_stream_settings,
    count_rows,
    encode,
    from_arrays,
    from_stream,
    sample_rows,
    split_validation,
)
from sksoftrank.modules._layers import torch_defaults
from sksoftrank.rank import count_above
from sksoftrank.training import (
    InMemoryDataset,
    SoftRankNet,
    StreamDataset,
)
from sksoftrank.training._checkpoint import Checkpoint
from sksoftrank.training._threads import threads_for

Array = npt.NDArray[Any]
# rank_ counts the singular values above this share of the largest.
RANK_TOL = 1e-2


class BaseSoftRankClassifier(
    CallbackSupportMixin, InferenceMixin, NetMixin, SharedParametersMixin, ABC
):
    """Base of the classifiers; a subclass adds its parameters and its architecture."""

    # Where metadata are routed, whoever passes groups has said enough.
    __metadata_request__fit: ClassVar[dict[str, bool]] = {"groups": True}

    @abstractmethod
    def _architecture(self) -> Architecture:
        """Return the network that the parameters ask for; refuse those that can't be.

        Called before the data are known, too.
        """

    # -- Training ------------------------------------------------------------------

    @_fit_context(prefer_skip_nested_validation=True)
    def fit(
        self,
        X: npt.ArrayLike,
        y: npt.ArrayLike | str | None = None,
        sample_weight: npt.ArrayLike | None = None,
        groups: npt.ArrayLike | None = None,
    ) -> Self:
        """Train the network on `X` and `y`, then find the basis of its embedding.

        Parameters
        ----------
        X : {array-like, sparse matrix, Dataset} of shape (n_samples, n_features)
            Training rows. C-contiguous arrays of floats or of uint8, memory maps
            included, are used where they lie. A torch Dataset of pairs (row, label), or
            an Arrow dataset or table with the name of a column as `y`, is read in
            passes and never held whole: one pass checks it, one for each epoch trains,
            and one more finds the basis. An Arrow table with an array as `y` is held in
            memory like a frame.
        y : array-like of shape (n_samples,) or str, default=None
            Labels, of any type that scikit-learn takes for classes; the name of their
            column where `X` is an Arrow dataset, None where it is a torch Dataset.
        sample_weight : array-like of shape (n_samples,), default=None
            Non-negative weights of the rows.
        groups : array-like of shape (n_samples,), default=None
            What each row belongs to, such as a person. Where rows are held out, for
            early stopping or for what is "auto", they are then whole groups.

        Returns
        -------
        Self
            The fitted estimator.

        Raises
        ------
        ValueError
            For parameters or data that can't be trained on, before any training.
        FloatingPointError
            At the training step whose loss is not finite.
        """
        with self._unchanged_on_error():
            training = self._prepare(X, y, sample_weight, groups)
            with training.checkpoint or nullcontext():
                self._train(training, X, y, sample_weight)
        return self

    @with_callbacks
    def _train(self, training: Training, X: Any, y: Any, sample_weight: Any) -> None:
        """Train, tell scikit-learn's callbacks, and set the fitted attributes."""
        # How long is known once nothing is left to be found.
        n_epochs = None if training.trials else training.net.max_epochs
        context = _init_callback_context(self, max_subtasks=n_epochs)
        metadata = None if sample_weight is None else {"sample_weight": sample_weight}
        call = {"estimator": self, "X": X, "y": y, "metadata": metadata}
        context.call_on_fit_task_begin(**call)
        follow = EpochTasks(context, **call) if has_callbacks(self) else None
        checkpoint = training.checkpoint
        if checkpoint is not None and checkpoint.goes_on and self.verbose:
            print(f"Going on from checkpoint={self.checkpoint!r}.")  # noqa: T201
        (error,) = fit_trainings([training], None, [follow], checkpoint)
        if error is not None:
            raise error
        if training.net.was_interrupted_ and not (follow and follow.is_stopped):
            how = ""
            if checkpoint is not None and checkpoint.keep():
                how = (
                    f" checkpoint={self.checkpoint!r} stays; the same fit, begun anew, "
                    "goes on from it."
                )
            # Above are two decorators and `fit`.
            training.net.warn_of_interruption(how, stacklevel=5)
        self._complete(training)
        context.call_on_fit_task_end(**call, reconstruction_attributes={})

    def _prepare(
        self,
        X: Any,
        y: Any,
        sample_weight: npt.ArrayLike | None = None,
        groups: npt.ArrayLike | None = None,
        *,
        validated: dict[Hashable, Any] | None = None,
    ) -> Training:
        """Check the data and parameters of a fit, and return what is to be trained.

        Fits of the same `X` and `y` share the arrays made of them in `validated`.
        """
        width_before = getattr(self, "n_features_in_", None)
        whole = self._read_training(
            X, y, sample_weight, groups=groups, validated=validated
        )
        checkpoint = None if self.checkpoint is None else Checkpoint(self.checkpoint)
        # After the checks: a random state of the user's is left alone by an error.
        seeds = self._draw_seeds()
        if self.random_state is None and checkpoint and checkpoint.seeds:
            seeds |= checkpoint.seeds
        parts = {} if checkpoint is None else self._fingerprint(whole, seeds)
        dataset: Rows | StreamDataset = whole
        valid_dataset = None
        if self.early_stopping:
            assert isinstance(whole, InMemoryDataset)
            dataset, valid_dataset = split_validation(
                whole, self.validation_fraction, seeds["split"]
            )
        if self._goes_on and self.n_features_in_ != width_before:
            raise ValueError(
                f"warm_start=True needs the {width_before} columns of the previous "
                f"fit, got {self.n_features_in_}. Pass those, or set warm_start=False "
                "to start anew."
            )
        build = partial(self._build_net, seeds=seeds, valid_dataset=valid_dataset)
        if self._goes_on:
            strength = getattr(self, "_strength", MODERATE)
            found = None if self.target_rank is None else self.temperature_
            net = build(dataset, strength=strength, temperature=found)
            self._load_weights(net)
            rows, scale = seeds["rows"], self.logit_scale_
            training = Training(net, dataset, rows, strength, scale)
        else:
            # Built whatever will be chosen: what can't be is refused before training.
            training = Training(build(dataset), dataset, seeds["rows"], build=build)
        if isinstance(dataset, InMemoryDataset) and not self._goes_on:
            build_trial = partial(build, is_trial=True)
            if self._chooses_strength(dataset):
                start = partial(Choice, build_trial, dataset, seeds["split"])
                training.searches.append(start)
            if self.target_rank is not None:
                self._check_target_rank(training.net, dataset)
                training.searches.append(
                    partial(
                        RankSearch,
                        build_trial,
                        partial(self._measure_rank, dataset, seeds["rows"]),
                        dataset,
                        seeds["split"],
                        self.target_rank,
                        self.compression_tol,
                    )
                )
        training.start_search()
        if checkpoint is not None:  # Once all else has been checked.
            checkpoint.begin(parts, seeds, training.net.module_)
            training.checkpoint = checkpoint
        return training

    def _fingerprint(
        self, dataset: InMemoryDataset | StreamDataset, seeds: dict[str, int]
    ) -> dict[str, str]:
        """Return what tells a fit from others: a text for each part of it."""
        params = self.get_params(deep=False) | {"device": self._resolve_device()}
        parts = {
            **{name: stable_repr(value) for name, value in params.items()},
            "estimator": type(self).__name__,
            "sksoftrank": version("sksoftrank"),
            "n_features": str(self.n_features_in_),
            "classes": stable_repr(self.classes_.tolist()),
        }
        for name in ("checkpoint", "verbose"):
            parts.pop(name, None)
        if self.random_state is not None:
            parts["seeds drawn"] = str(seeds)
        if isinstance(dataset, StreamDataset):
            return {**parts, "rows of X": str(dataset.n_rows)}
        return {
            **parts,
            "X": digest(dataset.X),
            "y": digest(dataset.y),
            "weights": digest(dataset.sample_weight),
            "groups": digest(dataset.groups),
        }

    def _check_target_rank(self, net: SoftRankNet, dataset: InMemoryDataset) -> None:
        """Refuse a rank that no embedding of these rows has."""
        limit = min(net.module_.embedding_width, len(dataset) - 1)
        if self.target_rank is not None and self.target_rank > limit:
            raise ValueError(
                f"target_rank must be at most {limit}, the width of the embedding or "
                f"one less than the rows, got {self.target_rank!r}. Lower it."
            )

    def _measure_rank(
        self, dataset: InMemoryDataset, seed: int, net: SoftRankNet
    ) -> int:
        """Return what `rank_` would be of a trained net."""
        probe = copy.copy(self)
        probe._finish(net, history=[])
        probe._find_basis(dataset, seed)
        return probe.rank_

    def _read_training(
        self,
        X: Any,
        y: Any,
        sample_weight: npt.ArrayLike | None,
        *,
        groups: npt.ArrayLike | None = None,
        classes: Array | None = None,
        validated: dict[Hashable, Any] | None = None,
    ) -> InMemoryDataset | StreamDataset:
        """Return what to train on; set the classes, and what is known of the input.

        `classes` are all that will come, where a call of partial_fit has named them.
        """
        self._check_skorch_params()
        self._check_betas()
        self._check_checkpoint()
        self._check_target_rank_params(X, y)
        check_class_weight(self.class_weight)
        self._resolve_device()
        before = self.classes_ if classes is None and self._goes_on else None
        is_new = classes is None or not hasattr(self, "net_")
        reader = self._architecture().input if is_new else self._input
        dataset: InMemoryDataset | StreamDataset
        if is_stream(X, y):
            check_stream_settings(X, y, sample_weight, self.early_stopping, groups)
            passes = reader.open(X, y, labelled=True)
            dataset, known = from_stream(passes, classes, self.class_weight)
        else:
            if is_new:
                goes_on_from = self._input if self._goes_on else None
                rows, labels = reader.fit(self, X, y, goes_on_from, validated)
            else:
                rows, labels = reader.read_labelled(self, X, y)
            dataset, known = from_arrays(
                rows,
                labels,
                classes,
                sample_weight=sample_weight,
                class_weight=self.class_weight,
                batch_size=self._lengths(rows.shape[0])[1],
                groups=groups,
            )
        check_classes(known, before)
        self._set_input(reader)
        self.classes_ = known
        return dataset

    @property
    def loss_curve_(self) -> list[float]:
        """Mean training loss of each epoch."""
        return [record["train_loss"] for record in self.history_]

    @property
    def validation_scores_(self) -> list[float] | None:
        """Accuracy of each epoch on the rows held out for early stopping, or None."""
        if not self.history_ or "valid_acc" not in self.history_[0]:
            return None
        return [record["valid_acc"] for record in self.history_]

    @property
    def best_validation_score_(self) -> float | None:
        """The best of `validation_scores_`, or None."""
        scores = self.validation_scores_
        return None if scores is None else max(scores)

    def _chooses_strength(self, dataset: InMemoryDataset) -> bool:
        """Whether rows held out tell how long to train, and with how much dropout."""
        return (
            self._architecture().module_params.get("dropout") == "auto"
            and self.max_epochs == "auto"
            and not self.early_stopping
            and len(dataset) >= MIN_ROWS
            and (dataset.groups is None or len(np.unique(dataset.groups)) > 1)
        )

    def _set_input(self, reader: InputReader) -> None:
        """Set what a fit is known to have seen of `X`."""
        self._input = reader
        reader.set_features(self)
        if reader.axes != (1,):
            self.input_shape_ = reader.shape
        if reader.encoder_class is not None:
            encoder = reader.encoder
            self.is_categorical_ = None if encoder is None else encoder.is_categorical
        self._inference_rows = self._architecture().inference_rows

    @property
    def _goes_on(self) -> bool:
        """Whether `fit` starts from the weights of the previous fit."""
        return bool(self.warm_start) and hasattr(self, "net_")

    def _complete(self, training: Training, *, basis_rows: int | None = None) -> None:
        """Set the fitted attributes once the network is trained.

        Those of `transform` from so many rows at most, or as many as a fit takes; from
        0 none of them.
        """
        net = training.net
        self._strength = training.strength
        self.auto_params_ = {"max_epochs": net.max_epochs, "batch_size": net.batch_size}
        if hasattr(net, "module__dropout"):
            self.auto_params_["dropout"] = net.module__dropout
        self._finish(net, history=[], logit_scale=training.logit_scale)
        if basis_rows != 0:
            self._find_basis(training.dataset, training.seed, basis_rows)
            self._warn_of_rank(training.target_rank)
        self._is_incremental = False

    def _warn_of_rank(self, target: float | None) -> None:
        """Say so where the rank is not the one that was asked for."""
        if target is None or abs(self.rank_ - target) <= tolerance_of(target):
            return
        warnings.warn(
            f"The embedding has rank {self.rank_} at the temperature of "
            f"{self.temperature_:.3g} that was found for {target:.0f}, which "
            f"target_rank={self.target_rank!r} stands for: near it the rank varies "
            "more from one training to the next than with the temperature. Set a "
            f"temperature {'above' if self.rank_ > target else 'below'} that, or "
            "another random_state.",
            ConvergenceWarning,
            # Above are `_complete`, `_train`, `fit` and two decorators.
            stacklevel=7,
        )

    @_fit_context(prefer_skip_nested_validation=True)
    def partial_fit(
        self,
        X: npt.ArrayLike,
        y: npt.ArrayLike | str | None = None,
        classes: npt.ArrayLike | None = None,
        sample_weight: npt.ArrayLike | None = None,
    ) -> Self:
        """Train one epoch on `X` and `y`, going on from where the network is.

        The learning rate is constant and a temperature schedule stays at its last
        value, since the number of calls is not known. The basis of the embedding is
        found anew from these rows. The optimizer's state lives from call to call, but
        not in a pickle.

        Parameters
        ----------
        X : {array-like, sparse matrix, Dataset} of shape (n_samples, n_features)
            Training rows, as in `fit`.
        y : array-like of shape (n_samples,) or str, default=None
            Labels, as in `fit`.
        classes : array-like of shape (n_classes,), default=None
            All labels that will ever come; required at the first call.
        sample_weight : array-like of shape (n_samples,), default=None
            Non-negative weights of the rows.

        Returns
        -------
        Self
            The fitted estimator.

        Raises
        ------
        ValueError
            For parameters or data that can't be trained on, before any training.
        FloatingPointError
            At the training step whose loss is not finite; the network is then as it
            was before the call.
        """
        with self._unchanged_on_error() as before:
            if isinstance(self.class_weight, str):
                raise ValueError(
                    "class_weight='balanced' can't be known from a part of the rows, "
                    "as partial_fit sees them. Pass a dictionary of weights."
                )
            if self.early_stopping:
                raise ValueError(
                    "early_stopping must be False in partial_fit, which trains one "
                    "epoch a call, got True. Set it to False, or use fit."
                )
            if self.checkpoint is not None:
                raise ValueError(
                    "checkpoint must be None in partial_fit, which trains one epoch a "
                    f"call, got {self.checkpoint!r}. Set it to None, and save the "
                    "estimator between calls."
                )
            fitted = hasattr(self, "net_")
            if self.target_rank is not None and not fitted:
                raise ValueError(
                    "target_rank must be None at a first call of partial_fit, which "
                    f"trains one network once, got {self.target_rank!r}. Call fit "
                    "first, or set a temperature."
                )
            if classes is not None:
                classes = as_labels("classes", classes)
            _check_partial_fit_first_call(self, classes)
            if len(self.classes_) < 2:
                raise ValueError(
                    "classes must name at least two classes, got "
                    f"{self.classes_.tolist()}. Name all that will ever come."
                )
            dataset = self._read_training(X, y, sample_weight, classes=self.classes_)
            seeds = self._draw_seeds()
            if fitted and self._is_incremental:
                net = self.net_
                net.batch_size = self._lengths(count_rows(dataset))[1]
                check_batches(dataset, net.batch_size, net.min_batch_size)
                # Taken up when the net next trains.
                net.set_params(
                    temperature=self._last_temperature(),
                    lr=self._first_learning_rate(self._last_temperature()),
                )
            else:
                net = self._build_net(dataset, seeds, incremental=True)
                if fitted:
                    self._load_weights(net)
            if fitted:  # An error from here on costs the optimizer's state.
                before["_is_incremental"] = False
            net.partial_fit(dataset)
            history = self.history_ if fitted else []
            self._finish(net, history=history)
            self._find_basis(dataset, seeds["rows"])
            self._is_incremental = True
        return self

    @contextmanager
    def _unchanged_on_error(self) -> Iterator[dict[str, Any]]:
        """Leave the estimator as it was if fitting fails: nothing is lost."""
        before = dict(vars(self))
        try:
            with torch_defaults():
                yield before
        except BaseException:
            self.__dict__ = before
            if "net_" in before:  # It may have been training on.
                before["net_"].module_.eval()
            raise

    def _build_net(
        self, dataset: Rows | StreamDataset, seeds: dict[str, int], **options: Any
    ) -> SoftRankNet:
        """Return the net for the data and the parameters, with its initial weights."""
        inputs = self._input.describe(self._architecture().input_params)
        n_rows = count_rows(dataset)
        net = self._make_net(inputs, len(self.classes_), n_rows, seeds, **options)
        try:
            net.initialize()
        except ValueError as error:
            if "unexpected argument(s)" not in str(error):
                raise
            raise ValueError(
                "net_params must hold what SoftRankNet takes, got "
                f"{self.net_params!r}: {error}"
            ) from error
        check_batches(dataset, net.batch_size, net.min_batch_size)
        width = net.module_.embedding_width
        if isinstance(self.n_components, Integral) and self.n_components > width:
            raise ValueError(
                f"n_components must be at most {width}, the width of the embedding, "
                f"got {self.n_components}. Lower it, or use 'auto'."
            )
        return net

    def _load_weights(self, net: SoftRankNet) -> None:
        """Start a net from the weights of the previous fit."""
        weights = self.module_.state_dict()
        # Not of torch.compile's wrapper, whose names have a prefix.
        module = uncompiled(net.module_)
        own = module.state_dict()
        if {k: v.shape for k, v in own.items()} != {
            k: v.shape for k, v in weights.items()
        }:
            raise ValueError(
                "The module's parameters must stay as they were at the previous fit to "
                "go on from its weights. Undo the change, or call clone(estimator) and "
                "start anew."
            )
        module.load_state_dict(weights)
        if self.logit_scale_ != 1.0:  # It was not trained.
            module.scale_logits(1 / self.logit_scale_)

    def _finish(
        self,
        net: SoftRankNet,
        history: list[dict[str, Any]],
        logit_scale: float = 1.0,
    ) -> None:
        """Set the fitted attributes of a trained net."""
        net.module_.eval()
        epochs = [_public_record(record) for record in net.history[-net.max_epochs :]]
        self.history_ = [
            *history,
            *({**e, "epoch": len(history) + i} for i, e in enumerate(epochs, start=1)),
        ]
        self.n_iter_ = len(self.history_)
        self.temperature_ = net.temperature_
        # They would hold the validation rows and a second copy of the weights.
        net.train_split = None
        for _, callback in net.callbacks_:
            if isinstance(callback, EarlyStopping):
                callback.best_model_weights_ = None
        self.net_ = net
        self.logit_scale_ = logit_scale
        if logit_scale != 1.0:
            module: Any = self.module_
            module.scale_logits(logit_scale)

    def _find_basis(
        self, dataset: Rows | StreamDataset, seed: int, n_rows: int | None = None
    ) -> None:
        """Set the fitted attributes that `transform` needs, from the rows given."""
        X, codes, weight = sample_rows(dataset, seed, n_rows)
        self.training_accuracy_ = self._fit_compressor(
            X, codes, weight, self.n_components, self.compression_tol
        )

    def _fit_compressor(
        self,
        X: Any,
        codes: npt.NDArray[np.int64] | None,
        weight: FloatArray | None,
        n_components: str | float | None,
        tol: float,
    ) -> float:
        """Find the basis from these rows, and return the accuracy on them."""
        # In single precision, like the training: half the time of double.
        Z = self._embed(X.astype(np.float32, copy=False))
        head = self._head()
        # More threads find a small matrix's axes no sooner, but may take much longer.
        width = Z.shape[1]
        with torch_defaults(), torch.inference_mode(), threads_for(width * width):
            logits = head(torch.from_numpy(Z.astype(np.float64))).numpy()
            predicted = logits.argmax(axis=1)
            codes = predicted if codes is None else codes
            compressor = RankCompressor(n_components, tol=tol)
            compressor.fit(Z, codes, weight, head=head)
        norms = np.linalg.norm(logits, axis=1)
        s = compressor.singular_values_
        self.compressor_ = compressor
        self.n_components_ = compressor.n_components_
        self.singular_values_ = s
        self.rank_ = count_above(s, RANK_TOL)
        self.logit_norm_ = float(np.average(norms, weights=weight))
        return float(np.average(predicted == codes, weights=weight))

    def _head(self) -> Callable[[Tensor], Tensor]:
        """Return the network's head in double precision, on the CPU."""
        return copy.deepcopy(self.module_).cpu().double().head

    def compress(
        self,
        X: npt.ArrayLike,
        y: npt.ArrayLike | None = None,
        *,
        n_components: str | float | None = "auto",
        compression_tol: float | None = None,
        sample_weight: npt.ArrayLike | None = None,
    ) -> Self:
        """Find the basis and the size of the embedding anew, without any training.

        Parameters
        ----------
        X : {array-like, sparse matrix} of shape (n_samples, n_features)
            Rows that stand for those to be transformed. For ``n_components="auto"`` the
            rows trained on serve well; of new ones take a thousand, if there are.
        y : array-like of shape (n_samples,), default=None
            Their labels, for ``n_components="auto"``. None takes the network's own
            predictions: the size is then the least that is expected to keep those.
        n_components : "auto", int, float or None, default="auto"
            As in the constructor.
        compression_tol : float, default=None
            As in the constructor; None takes the estimator's.
        sample_weight : array-like of shape (n_samples,), default=None
            Non-negative weights of the rows.

        Returns
        -------
        Self
            The estimator, whose `transform` uses the new basis.

        Raises
        ------
        ValueError
            For parameters or data out of range; the estimator keeps its basis.
        """
        check_is_fitted(self)
        tol = self.compression_tol if compression_tol is None else compression_tol
        validate_parameter_constraints(
            {
                name: self._parameter_constraints[name]
                for name in ("n_components", "compression_tol")
            },
            {"n_components": n_components, "compression_tol": tol},
            caller_name="compress",
        )
        X = self._input.as_frame(X)
        if is_stream(X):
            raise ValueError(
                f"X must be an array, got {type(X).__name__}. Pass some thousand rows, "
                "whose embedding is held at once."
            )
        rows = self._validate_rows(X)
        check_range(rows)
        codes = None
        if y is not None:
            labels = as_labels("y", y, rows.shape[0])
            codes = encode(labels, self.classes_, "Drop rows of other classes.")
        weight = None
        if sample_weight is not None:
            weight = check_weights(sample_weight, rows)
        self._fit_compressor(rows, codes, weight, n_components, tol)
        return self

    # -- scikit-learn's conventions --------------------------------------------------

    @property
    def _n_features_out(self) -> int:
        return self.n_components_

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.input_tags.sparse = True
        tags.transformer_tags.preserves_dtype = ["float64", "float32"]
        return tags

    def _html_repr(self) -> str:
        """Return scikit-learn's HTML, with a line of what was learned."""
        html: str = super()._html_repr()
        if not hasattr(self, "training_accuracy_"):
            return html
        learned = (
            f"temperature {self.temperature_:.4g}",
            f"rank {self.rank_} of {self.module_.embedding_width}",
            f"{self.n_components_} columns",
            f"{len(self.classes_)} classes",
            f"{self.n_iter_} epochs",
            f"{100 * self.training_accuracy_:.1f} % right in training",
        )
        return f"{html}<p>{' · '.join(learned)}</p>"

    def __getstate__(self) -> dict[str, Any]:
        # Weights as arrays, and what rebuilds the net around them: no optimizer,
        # callbacks or data, and no trace of the device.
        state: dict[str, Any] = dict(super().__getstate__())
        net = state.pop("net_", None)
        if net is not None:
            state["_net_recipe"] = (net.module, net.get_params_for("module"))
            state["_weights"] = {
                name: tensor.numpy(force=True)
                for name, tensor in self.module_.state_dict().items()
            }
            state["_is_incremental"] = False  # Its optimizer is gone.
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        state = dict(state)
        recipe, weights = state.pop("_net_recipe", None), state.pop("_weights", None)
        super().__setstate__(state)
        if recipe is None:
            return
        module, module_params = recipe
        try:
            device = self._resolve_device()
        except ValueError:  # Trained on a device that this machine hasn't got.
            device = torch.device("cpu")
        with torch_defaults():
            net = SoftRankNet(
                module,
                **{f"module__{name}": value for name, value in module_params.items()},
                temperature=self.temperature_,
                classes=np.arange(len(self.classes_)),
                callbacks="disable",
                train_split=None,
                verbose=0,
                device=str(device),
            )
            self.net_ = net.initialize()
            self.module_.load_state_dict(
                {name: torch.tensor(array) for name, array in weights.items()}
            )
        self.module_.eval()


def _public_record(record: dict[str, Any]) -> dict[str, Any]:
    """Return skorch's record of an epoch, less bookkeeping and times."""
    return {
        name: value.item() if isinstance(value, np.generic) else value
        for name, value in sorted(record.items())
        if name not in ("batches", "dur")
        and not name.endswith(("_best", "_batch_count"))
    }
