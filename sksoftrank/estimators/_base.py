"""What all classifiers share: the scikit-learn contract around a `SoftRankNet`."""

from __future__ import annotations

import copy
import math
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from numbers import Integral, Real
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import torch
from scipy import sparse
from sklearn.base import (
    BaseEstimator,
    ClassifierMixin,
    ClassNamePrefixFeaturesOutMixin,
    TransformerMixin,
    _fit_context,
)
from sklearn.utils import Tags, check_random_state, compute_class_weight, gen_batches
from sklearn.utils._param_validation import HasMethods, Interval, StrOptions
from sklearn.utils.multiclass import (
    _check_partial_fit_first_call,
    check_classification_targets,
)
from sklearn.utils.validation import (
    _check_sample_weight,
    assert_all_finite,
    check_is_fitted,
    validate_data,
)
from skorch.callbacks import EarlyStopping, GradientNormClipping, LRScheduler
from skorch.helper import predefined_split
from torch import Tensor
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import Subset

from sksoftrank.compression import RankCompressor
from sksoftrank.estimators._data import encode, merge_duplicates, split_validation
from sksoftrank.losses import TemperatureSchedule, as_schedule
from sksoftrank.modules import MLP, EmbedHeadModule
from sksoftrank.training import (
    AccuracyStopping,
    InMemoryDataset,
    Member,
    SoftRankNet,
    train_stack,
)
from sksoftrank.training._batches import as_tensor
from sksoftrank.training._stopping import BestEpoch, interruption

Array = npt.NDArray[Any]
FloatArray = npt.NDArray[np.float64]
Rows = InMemoryDataset | Subset[Any]

# Class, parameters, and the base rate that learning_rate="auto" multiplies by the
# square root of the temperature.
OPTIMIZERS: dict[str, tuple[type[torch.optim.Optimizer], dict[str, Any], float]] = {
    "adam": (torch.optim.Adam, {}, 1e-3),
    "adamw": (torch.optim.AdamW, {}, 1e-3),
    "sgd": (torch.optim.SGD, {"momentum": 0.9, "nesterov": True}, 5e-2),
}
# Rows of a forward pass: its activations stay in the cache.
INFERENCE_ROWS = 2048
# Rows that the basis of the embedding is computed from, at most: ample for the leading
# directions among a few hundred, and a fit of any size pays little for it.
BASIS_ROWS = 4096
# rank_ counts the singular values above this share of the largest.
RANK_TOL = 1e-2
# Arguments of the net that the estimator has a parameter of its own for.
_RESERVED = {
    *("module", "temperature", "lr", "max_epochs", "batch_size", "callbacks"),
    *("train_split", "verbose", "device", "warm_start", "classes"),
    "criterion__label_smoothing",
}


class BaseSoftRankClassifier(
    ClassNamePrefixFeaturesOutMixin,
    TransformerMixin,
    ClassifierMixin,
    BaseEstimator,
    ABC,
):
    """Base of the classifiers; a subclass adds the parameters of its module."""

    _parameter_constraints: dict[str, list[Any]] = {  # noqa: RUF012
        "temperature": [Interval(Real, 0, None, closed="neither"), TemperatureSchedule],
        "n_components": [
            StrOptions({"auto"}),
            Interval(Integral, 1, None, closed="left"),
            Interval(Real, 0, 1, closed="neither"),
            None,
        ],
        "compression_tol": [Interval(Real, 0, 1, closed="left")],
        "optimizer": [StrOptions(set(OPTIMIZERS))],
        "learning_rate": [
            StrOptions({"auto"}),
            Interval(Real, 0, None, closed="neither"),
        ],
        "weight_decay": [Interval(Real, 0, None, closed="left")],
        "lr_schedule": [StrOptions({"cosine", "constant"})],
        "label_smoothing": [Interval(Real, 0, 1, closed="left")],
        "max_grad_norm": [Interval(Real, 0, None, closed="neither"), None],
        "max_epochs": [Interval(Integral, 1, None, closed="left")],
        "batch_size": [Interval(Integral, 1, None, closed="left")],
        "early_stopping": ["boolean"],
        "validation_fraction": [Interval(Real, 0, 1, closed="neither")],
        "n_iter_no_change": [Interval(Integral, 1, None, closed="left")],
        "tol": [Interval(Real, 0, None, closed="left")],
        "class_weight": [StrOptions({"balanced"}), dict, None],
        "warm_start": ["boolean"],
        "callbacks": [list, tuple, None],
        "net_params": [dict, None],
        "device": [str, torch.device, HasMethods("type")],
        "random_state": ["random_state"],
        "verbose": ["verbose"],
    }

    temperature: float | TemperatureSchedule
    n_components: str | float | None
    compression_tol: float
    optimizer: str
    learning_rate: str | float
    weight_decay: float
    lr_schedule: str
    label_smoothing: float
    max_grad_norm: float | None
    max_epochs: int
    batch_size: int
    early_stopping: bool
    validation_fraction: float
    n_iter_no_change: int
    tol: float
    class_weight: dict[Any, float] | str | None
    warm_start: bool
    callbacks: list[Any] | None
    net_params: dict[str, Any] | None
    device: str | torch.device
    random_state: int | np.random.RandomState | None
    verbose: int

    classes_: Array
    net_: SoftRankNet

    # -- What a subclass says of its module ----------------------------------------

    @abstractmethod
    def _module_recipe(
        self, n_features: int
    ) -> tuple[type[EmbedHeadModule], dict[str, Any]]:
        """Return the module's class and parameters, less n_classes and the seed."""

    @abstractmethod
    def _embedding_width(self) -> int:
        """Return the width of the embedding, or raise where it can't be had."""

    def _min_batch_size(self) -> int:
        """Return the fewest rows that the module can train on."""
        return 1

    def _stacking_obstacle(self) -> str | None:
        """Return why `train_stack` can't train the network; None if it can."""
        if self.callbacks:
            return "callbacks ask for skorch's loop"
        if self.net_params:
            return "net_params ask for skorch's net"
        return self._module_obstacle()

    def _stack_key(self) -> tuple[Hashable, ...]:
        """Return what estimators must agree in to train as one stack."""
        raise NotImplementedError

    def _stack_size(
        self, n_features: int, n_classes: int, n_networks: int, n_workers: int
    ) -> int:
        """Return how many such networks should train as one stack."""
        raise NotImplementedError

    def _stack_bytes(self, n_features: int, n_classes: int, n_networks: int) -> int:
        """Return the bytes that training a stack of such networks takes."""
        raise NotImplementedError

    def _module_obstacle(self) -> str | None:
        """Return why `train_stack` can't train the module; None if it can."""
        return f"{type(self).__name__}'s network is not a plain MLP"

    # -- Training ------------------------------------------------------------------

    @_fit_context(prefer_skip_nested_validation=True)
    def fit(
        self,
        X: npt.ArrayLike,
        y: npt.ArrayLike,
        sample_weight: npt.ArrayLike | None = None,
    ) -> Self:
        """Train the network on `X` and `y`, then find the basis of its embedding.

        Parameters
        ----------
        X : {array-like, sparse matrix} of shape (n_samples, n_features)
            Training rows. float32 and C-contiguous arrays, memory maps included, are
            used where they lie.
        y : array-like of shape (n_samples,)
            Labels, of any type that scikit-learn takes for classes.
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
            At the training step whose loss is not finite.
        """
        with self._unchanged_on_error():
            training = self._prepare(X, y, sample_weight)
            if training.member is None:
                training.net.partial_fit(training.dataset)
            else:
                train_stack([training.member], *self._optimizer())
            self._complete(training)
        return self

    def _prepare(
        self,
        X: Any,
        y: Any,
        sample_weight: npt.ArrayLike | None = None,
        *,
        validated: dict[tuple[int, int], Any] | None = None,
    ) -> Training:
        """Check the data and parameters of a fit, and return what is to be trained.

        Fits of the same `X` and `y` share the arrays made of them in `validated`.
        """
        warm = self.warm_start and hasattr(self, "net_")
        key = (id(X), id(y))
        if validated is not None and key in validated:
            # Converted once for all fits of a stack; the columns' names are each one's.
            validate_data(self, X, reset=True, skip_check_array=True)
            X, labels = validated[key]
        else:
            X, labels = self._validate_training_data(X, y, reset=True)
            if validated is not None:
                validated[key] = (X, labels)
        classes, codes = np.unique(labels, return_inverse=True)
        if len(classes) < 2:
            raise ValueError(
                "y must hold at least two classes, got one class, "
                f"{classes.tolist()[0]!r}. Add rows of another."
            )
        if warm and not np.array_equal(classes, self.classes_):
            raise ValueError(
                "warm_start=True needs the classes of the previous fit, "
                f"{self.classes_.tolist()}, got {classes.tolist()}. Set "
                "warm_start=False to start anew."
            )
        self._check_settings(X)
        X, codes, weight = self._weigh(
            X, codes.astype(np.int64, copy=False), sample_weight, classes
        )
        self.classes_ = classes
        seeds = self._draw_seeds()
        train = valid = None
        if self.early_stopping:
            train, valid = split_validation(
                codes, self.validation_fraction, seeds["split"]
            )
        dataset = make_dataset(X, codes, weight, train)
        valid_dataset = None if valid is None else make_dataset(X, codes, weight, valid)
        net = self._make_net(seeds, self.max_epochs, valid_dataset)
        net.initialize()
        if warm:
            self._load_weights(net, self.net_.module_.state_dict())
        member = None
        if self._stacking_obstacle() is None:
            member = self._make_member(net, dataset, valid_dataset)
        return Training(net, dataset, seeds["rows"], member)

    def _complete(self, training: Training, *, compress: bool = True) -> None:
        """Set the fitted attributes once the network is trained."""
        net, member = training.net, training.member
        if member is not None:
            if member.error is not None:
                raise member.error
            if member.is_interrupted:
                message = interruption(
                    len(member.history), member.n_epochs, member.kept_epoch
                )
                warnings.warn(message, UserWarning, stacklevel=4)
            net.temperature_ = member.temperatures[member.kept_epoch - 1]
        else:
            for _, callback in net.callbacks_:
                if isinstance(callback, EarlyStopping) and callback.best_epoch_:
                    best = net.history[callback.best_epoch_ - 1]
                    net.temperature_ = best["temperature"]
        self._finish(net, history=[])
        if compress:
            self._find_basis(training.dataset, training.seed)
        self._is_incremental = False

    @_fit_context(prefer_skip_nested_validation=True)
    def partial_fit(
        self,
        X: npt.ArrayLike,
        y: npt.ArrayLike,
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
        X : {array-like, sparse matrix} of shape (n_samples, n_features)
            Training rows.
        y : array-like of shape (n_samples,)
            Labels.
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
        with self._unchanged_on_error():
            if isinstance(self.class_weight, str):
                raise ValueError(
                    "class_weight='balanced' can't be known from a part of the rows, "
                    "as partial_fit sees them. Pass a dictionary of weights."
                )
            fitted = hasattr(self, "net_")
            _check_partial_fit_first_call(self, classes)
            if len(self.classes_) < 2:
                raise ValueError(
                    "classes must name at least two classes, got "
                    f"{self.classes_.tolist()}. Name all that will ever come."
                )
            X, labels = self._validate_training_data(X, y, reset=not fitted)
            codes = encode(labels, self.classes_)
            self._check_settings(X)
            X, codes, weight = self._weigh(X, codes, sample_weight, self.classes_)
            dataset = make_dataset(X, codes, weight)

            seeds = self._draw_seeds()
            if fitted and self._is_incremental:
                net = self.net_
                # Taken up when the net next trains.
                net.set_params(
                    temperature=self._last_temperature(),
                    lr=self._first_learning_rate(incremental=True),
                )
            else:
                net = self._make_net(seeds, 1, None, incremental=True)
                net.initialize()
                if fitted:
                    self._load_weights(net, self.net_.module_.state_dict())
            net.partial_fit(dataset)
            history = self.history_ if fitted else []
            self._finish(net, history=history)
            self._find_basis(dataset, seeds["rows"])
            self._is_incremental = True
        return self

    @contextmanager
    def _unchanged_on_error(self) -> Iterator[None]:
        """Leave the estimator as it was if fitting fails: nothing is lost."""
        before = dict(vars(self))
        try:
            yield
        except BaseException as error:
            self.__dict__ = before
            if isinstance(error, FloatingPointError | KeyboardInterrupt):
                # Its weights are as they were, but not its optimizer.
                self._is_incremental = False
            raise

    def _validate_training_data(
        self, X: Any, y: Any, *, reset: bool
    ) -> tuple[Any, Array]:
        X, y = validate_data(
            self,
            X,
            y,
            accept_sparse="csr",
            dtype=[np.float64, np.float32],
            order="C",
            reset=reset,
        )
        check_classification_targets(y)
        return X, y

    def _check_settings(self, X: Any) -> None:
        """Check what the parameters' own ranges don't say."""
        width = self._embedding_width()
        if isinstance(self.n_components, Integral) and self.n_components > width:
            raise ValueError(
                f"n_components must be at most {width}, the width of the embedding, "
                f"got {self.n_components}. Lower it, or use 'auto'."
            )
        if min(self.batch_size, X.shape[0]) < self._min_batch_size():
            raise ValueError(
                f"batch_size={self.batch_size} and {X.shape[0]} rows of X must both be "
                f"at least {self._min_batch_size()} for a module with "
                "normalization='batch'. Raise them, or use normalization='layer'."
            )
        reserved = _RESERVED.intersection(self.net_params or {})
        if reserved:
            raise ValueError(
                f"net_params must leave {sorted(reserved)} to the estimator, got "
                f"{self.net_params!r}. Use the estimator's own parameters for these."
            )
        self._resolve_device()

    def _resolve_device(self) -> torch.device:
        if self.device == "auto":
            if torch.cuda.is_available():
                return torch.device("cuda")
            mps = torch.backends.mps.is_available()
            return torch.device("mps" if mps else "cpu")
        try:
            device = torch.device(self.device)
        except (RuntimeError, TypeError) as error:
            raise ValueError(
                "device must be 'auto' or a name that torch knows, such as 'cpu' or "
                f"'cuda:0', got {self.device!r}. Use 'auto'."
            ) from error
        available = {
            "cpu": True,
            "cuda": torch.cuda.is_available()
            and (device.index or 0) < torch.cuda.device_count(),
            "mps": torch.backends.mps.is_available(),
        }
        if not available.get(device.type, False):
            raise ValueError(
                f"device must be one that this machine offers, got {self.device!r}. "
                "Use 'auto' to take the best there is, or 'cpu'."
            )
        return device

    def _weigh(
        self,
        X: Any,
        codes: npt.NDArray[np.int64],
        sample_weight: npt.ArrayLike | None,
        classes: Array,
    ) -> tuple[Any, npt.NDArray[np.int64], FloatArray | None]:
        """Return rows, codes and weights with mean one, None where all are equal."""
        if X.shape[0] > self.batch_size and sample_weight is self.class_weight is None:
            return X, codes, None
        weight = _check_sample_weight(
            sample_weight, X, dtype=np.float64, ensure_non_negative=True
        )
        if self.class_weight is not None:
            by_class = compute_class_weight(
                self.class_weight,
                classes=classes,
                y=classes[codes],
                sample_weight=weight,
            )
            weight = weight * by_class[codes]
            if not weight.any():
                raise ValueError(
                    f"class_weight must leave some row a positive weight, got "
                    f"{self.class_weight!r}. Raise the weight of a class in y."
                )
        kept = weight > 0
        if not kept.all():
            X, codes, weight = X[kept], codes[kept], weight[kept]
        if X.shape[0] <= self.batch_size:
            X, codes, weight = merge_duplicates(X, codes, weight)
        if (weight == weight[0]).all():
            return X, codes, None
        return X, codes, weight / weight.mean()

    def _draw_seeds(self) -> dict[str, int]:
        """Return seeds for each use of chance."""
        names = ("module", "order", "split", "rows")
        return dict(zip(names, draw_seeds(self.random_state, len(names)), strict=True))

    # -- The net -------------------------------------------------------------------

    def _last_temperature(self) -> float:
        return as_schedule(self.temperature)(1.0)

    def _first_learning_rate(self, *, incremental: bool = False) -> float:
        if self.learning_rate != "auto":
            return float(self.learning_rate)
        progress = 1.0 if incremental else 0.0
        base = OPTIMIZERS[self.optimizer][2]
        return base * math.sqrt(as_schedule(self.temperature)(progress))

    def _learning_rate_factors(self) -> list[float]:
        """Return each epoch's learning rate over the first's.

        The rate follows the square root of a scheduled temperature, and half a cosine
        down.
        """
        epochs = range(self.max_epochs)
        factors = [1.0 for _ in epochs]
        if self.lr_schedule == "cosine":
            factors = [
                (1 + math.cos(math.pi * e / self.max_epochs)) / 2 for e in epochs
            ]
        if self.learning_rate == "auto":
            values = as_schedule(self.temperature).values(self.max_epochs)
            factors = [
                factor * math.sqrt(value / values[0])
                for factor, value in zip(factors, values, strict=True)
            ]
        return factors

    def _make_net(
        self,
        seeds: dict[str, int],
        max_epochs: int,
        valid_dataset: Rows | None,
        *,
        incremental: bool = False,
    ) -> SoftRankNet:
        callbacks: list[Any] = []
        if not incremental:
            factors = self._learning_rate_factors()
            if len(set(factors)) > 1:
                # torch asks once more after the last epoch.
                factors.append(factors[-1])
                scheduler = LRScheduler(
                    LambdaLR, lr_lambda=factors.__getitem__, event_name=None
                )
                callbacks.append(("lr_schedule", scheduler))
        if self.max_grad_norm is not None:
            callbacks.append(
                ("max_grad_norm", GradientNormClipping(self.max_grad_norm))
            )
        if valid_dataset is not None:
            stopping = AccuracyStopping(
                patience=self.n_iter_no_change, threshold=self.tol, load_best=True
            )
            callbacks.append(("early_stopping", stopping))
        callbacks.extend(copy.deepcopy(self.callbacks or []))

        module, module_params = self._module_recipe(self.n_features_in_)
        optimizer, optimizer_params, _ = OPTIMIZERS[self.optimizer]
        net_params = {
            "optimizer": optimizer,
            **{f"optimizer__{name}": v for name, v in optimizer_params.items()},
            "optimizer__fused": True,
            "optimizer__weight_decay": self.weight_decay,
        }
        given = self.net_params or {}
        if "optimizer" in given:  # Then these are not its parameters.
            net_params = {}
        if not self.verbose:  # It would format its table all the same.
            net_params["callbacks__print_log"] = None
        temperature = self._last_temperature() if incremental else self.temperature
        return SoftRankNet(
            module,
            **{f"module__{name}": value for name, value in module_params.items()},
            module__n_classes=len(self.classes_),
            module__random_state=seeds["module"],
            temperature=temperature,
            lr=self._first_learning_rate(incremental=incremental),
            max_epochs=max_epochs,
            batch_size=self.batch_size,
            criterion__label_smoothing=self.label_smoothing,
            train_split=None
            if valid_dataset is None
            else predefined_split(valid_dataset),
            callbacks=callbacks,
            classes=np.arange(len(self.classes_)),
            verbose=int(self.verbose),
            device=str(self._resolve_device()),
            **{
                "iterator_train__random_state": np.random.default_rng(seeds["order"]),
                "iterator_train__min_batch_size": self._min_batch_size(),
                **net_params,
                **given,
            },
        )

    def _optimizer(self) -> tuple[type[torch.optim.Optimizer], dict[str, Any]]:
        return OPTIMIZERS[self.optimizer][:2]

    def _make_member(
        self,
        net: SoftRankNet,
        dataset: Rows,
        valid_dataset: Rows | None,
    ) -> Member:
        """Return the net's training as one that can be stacked."""
        stopping = None
        if self.early_stopping:
            stopping = BestEpoch(self.n_iter_no_change, self.tol)
        valid = None if valid_dataset is None else net.get_iterator(valid_dataset)
        module = net.module_
        assert isinstance(module, MLP)
        return Member(
            module,
            net.get_iterator(dataset, training=True),
            temperatures=as_schedule(self.temperature).values(self.max_epochs),
            learning_rates=[
                self._first_learning_rate() * factor
                for factor in self._learning_rate_factors()
            ],
            weight_decay=self.weight_decay,
            label_smoothing=self.label_smoothing,
            max_grad_norm=self.max_grad_norm,
            valid=valid,
            stopping=stopping,
            on_epoch=partial(_record_epoch, net),
        )

    def _load_weights(self, net: SoftRankNet, weights: dict[str, Tensor]) -> None:
        own = net.module_.state_dict()
        if {k: v.shape for k, v in own.items()} != {
            k: v.shape for k, v in weights.items()
        }:
            raise ValueError(
                "The module's parameters must stay as they were at the previous fit to "
                "go on from its weights. Undo the change, or call clone(estimator) and "
                "start anew."
            )
        net.module_.load_state_dict(weights)

    def _finish(self, net: SoftRankNet, history: list[dict[str, Any]]) -> None:
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

    def _find_basis(self, dataset: Rows, seed: int) -> None:
        """Set the fitted attributes that `transform` needs, from the training rows."""
        X, codes, weight = sample_rows(dataset, seed)
        self._fit_compressor(X, codes, weight, self.n_components, self.compression_tol)

    def _fit_compressor(
        self,
        X: Any,
        codes: npt.NDArray[np.int64] | None,
        weight: FloatArray | None,
        n_components: str | float | None,
        tol: float,
    ) -> None:
        # In single precision, like the training: half the time of double.
        Z = self._embed(X.astype(np.float32, copy=False))
        head = self._head()
        with torch.inference_mode():
            logits = head(torch.tensor(Z, dtype=torch.float64)).numpy()
            if codes is None:
                codes = logits.argmax(axis=1)
            compressor = RankCompressor(n_components, tol=tol)
            compressor.fit(Z, codes, weight, head=head)
        norms = np.linalg.norm(logits, axis=1)
        s = compressor.singular_values_
        self.compressor_ = compressor
        self.n_components_ = compressor.n_components_
        self.singular_values_ = s
        self.rank_ = int(np.count_nonzero(s > RANK_TOL * s[0]))
        self.logit_norm_ = float(np.average(norms, weights=weight))

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
            Rows that stand for those to be transformed.
        y : array-like of shape (n_samples,), default=None
            Their labels, for ``n_components="auto"``. None takes the network's own
            predictions: the size is then the least that keeps those.
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
        X = self._validate_rows(X)
        codes = None if y is None else encode(np.asarray(y), self.classes_)
        weight = None
        if sample_weight is not None:
            weight = _check_sample_weight(
                sample_weight, X, dtype=np.float64, ensure_non_negative=True
            )
        tol = self.compression_tol if compression_tol is None else compression_tol
        self._fit_compressor(X, codes, weight, n_components, tol)
        return self

    # -- Inference -----------------------------------------------------------------

    @property
    def module_(self) -> EmbedHeadModule:
        """The trained network."""
        try:
            return self.__dict__["net_"].module_
        except KeyError:
            raise AttributeError(
                f"This {type(self).__name__} has no module_ before it is fitted."
            ) from None

    def _validate_rows(self, X: Any) -> Any:
        X = validate_data(
            self,
            X,
            accept_sparse="csr",
            dtype=[np.float64, np.float32],
            ensure_all_finite=False,
            reset=False,
        )
        # torch sums several times as fast as scikit-learn's check; where the sum is not
        # finite, that check finds out why.
        writeable = (
            isinstance(X, np.ndarray) and X.flags.writeable and min(X.strides) >= 0
        )
        if not (writeable and torch.from_numpy(X).sum().isfinite()):
            assert_all_finite(X, estimator_name=type(self).__name__, input_name="X")
        return X

    def _infer(
        self, X: Any, compute: Callable[[EmbedHeadModule, Tensor], Tensor]
    ) -> Array:
        """Return what `compute` makes of the rows, in the dtype of `X`.

        In double precision where `X` is: a row's result then does not depend on which
        rows come with it, to more digits than anyone compares.
        """
        device = torch.device(self.net_.device)
        module = self.module_
        double = X.dtype == np.float64 and device.type != "mps"
        if double:
            module = copy.deepcopy(module).double()
        output: Tensor | None = None
        with torch.inference_mode():
            for rows in gen_batches(X.shape[0], INFERENCE_ROWS):
                chunk = X[rows].toarray() if sparse.issparse(X) else X[rows]
                part = compute(module, as_tensor(chunk, double=double).to(device))
                if output is None:
                    # In one piece: parts kept apart would cut up the memory that the
                    # activations are freed to, and each chunk would fault in new pages.
                    output = part.new_empty(X.shape[0], *part.shape[1:], device="cpu")
                output[rows] = part
        assert output is not None  # There is a row at least.
        result: Array = output.numpy()
        # Indices from predict stay integers.
        return (
            result.astype(X.dtype, copy=False) if result.dtype.kind == "f" else result
        )

    def decision_function(self, X: npt.ArrayLike) -> Array:
        """Return the logits over the temperature the network was trained at.

        Parameters
        ----------
        X : {array-like, sparse matrix} of shape (n_samples, n_features)
            Rows.

        Returns
        -------
        ndarray of shape (n_samples, n_classes) or (n_samples,)
            What the softmax turns into probabilities; for two classes the difference
            in favour of ``classes_[1]``.
        """
        check_is_fitted(self)
        temperature = self.temperature_
        scores = self._infer(
            self._validate_rows(X), lambda module, x: module(x) / temperature
        )
        return scores[:, 1] - scores[:, 0] if len(self.classes_) == 2 else scores

    def predict(self, X: npt.ArrayLike) -> Array:
        """Return the most probable class of each row.

        Parameters
        ----------
        X : {array-like, sparse matrix} of shape (n_samples, n_features)
            Rows.

        Returns
        -------
        ndarray of shape (n_samples,)
            Elements of ``classes_``.
        """
        check_is_fitted(self)
        codes = self._infer(
            self._validate_rows(X), lambda module, x: module(x).max(dim=1).indices
        )
        return self.classes_[codes]

    def predict_proba(self, X: npt.ArrayLike) -> Array:
        """Return ``softmax(logits / temperature_)``.

        Parameters
        ----------
        X : {array-like, sparse matrix} of shape (n_samples, n_features)
            Rows.

        Returns
        -------
        ndarray of shape (n_samples, n_classes)
            Probabilities, in the order of ``classes_``.
        """
        check_is_fitted(self)
        return self._probabilities(self._validate_rows(X))

    def _probabilities(self, X: Any) -> Array:
        logits = self._infer(X, lambda module, x: module(x))
        return _softmax_(torch.from_numpy(logits), self.temperature_).numpy()

    def predict_log_proba(self, X: npt.ArrayLike) -> Array:
        """Return the logarithm of `predict_proba`, without its underflow.

        Parameters
        ----------
        X : {array-like, sparse matrix} of shape (n_samples, n_features)
            Rows.

        Returns
        -------
        ndarray of shape (n_samples, n_classes)
            Log-probabilities, in the order of ``classes_``.
        """
        check_is_fitted(self)
        temperature = self.temperature_
        return self._infer(
            self._validate_rows(X),
            lambda module, x: torch.log_softmax(module(x) / temperature, dim=1),
        )

    def embed(self, X: npt.ArrayLike) -> Array:
        """Return the full penultimate representation.

        Parameters
        ----------
        X : {array-like, sparse matrix} of shape (n_samples, n_features)
            Rows.

        Returns
        -------
        ndarray of shape (n_samples, d)
            What the head turns into logits.
        """
        check_is_fitted(self)
        return self._embed(self._validate_rows(X))

    def _embed(self, X: Any) -> Array:
        return self._infer(X, lambda module, x: module.embed(x))

    def transform(self, X: npt.ArrayLike) -> Array:
        """Return the embedding, projected on its leading directions.

        Parameters
        ----------
        X : {array-like, sparse matrix} of shape (n_samples, n_features)
            Rows.

        Returns
        -------
        ndarray of shape (n_samples, n_components_)
            Coordinates along ``compressor_.components_``, in the dtype of `X`.
        """
        check_is_fitted(self)
        X = self._validate_rows(X)
        # Copies into torch's memory, whose alignment the last digits depend on.
        basis = torch.tensor(self.compressor_.components_).T
        offset = -torch.tensor(self.compressor_.mean_) @ basis

        def project(module: EmbedHeadModule, x: Tensor) -> Tensor:
            z = module.embed(x)
            return torch.addmm(offset.to(z), z, basis.to(z))

        return self._infer(X, project)

    # -- scikit-learn's conventions --------------------------------------------------

    @property
    def _n_features_out(self) -> int:
        return self.n_components_

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.input_tags.sparse = True
        tags.transformer_tags.preserves_dtype = ["float64", "float32"]
        return tags

    def __getstate__(self) -> dict[str, Any]:
        # Weights as arrays, and what rebuilds the net around them: no optimizer,
        # callbacks or data, and no trace of the device.
        state: dict[str, Any] = dict(super().__getstate__())
        net = state.pop("net_", None)
        if net is not None:
            state["_net_recipe"] = (net.module, net.get_params_for("module"))
            state["_weights"] = {
                name: tensor.numpy(force=True)
                for name, tensor in net.module_.state_dict().items()
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
        self.net_ = SoftRankNet(
            module,
            **{f"module__{name}": value for name, value in module_params.items()},
            temperature=self.temperature_,
            classes=np.arange(len(self.classes_)),
            callbacks="disable",
            train_split=None,
            verbose=0,
            device=str(device),
        ).initialize()
        self.module_.load_state_dict(
            {name: torch.tensor(array) for name, array in weights.items()}
        )
        self.module_.eval()


@dataclass
class Training:
    """What a fit is going to train; `member` is None where skorch is asked for."""

    net: SoftRankNet
    dataset: Rows
    seed: int
    member: Member | None


def _record_epoch(net: SoftRankNet, member: Member) -> None:
    """Put a member's last epoch into the net's history, and print it if asked to."""
    net.history.new_epoch()
    for name, value in member.history[-1].items():
        net.history.record(name, value)
    if net.verbose:
        dict(net.callbacks_)["print_log"].on_epoch_end(net)


def draw_seeds(
    random_state: int | np.random.RandomState | None, n_seeds: int
) -> list[int]:
    """Return seeds, so that no global generator is used."""
    if random_state is None:
        random_state = np.random.RandomState()  # Fresh entropy, not numpy's global one.
    rng = check_random_state(random_state)
    return rng.randint(np.iinfo(np.int32).max, size=n_seeds).tolist()


def _softmax_(logits: Tensor, temperature: float) -> Tensor:
    """Turn logits (n, c) into probabilities in place.

    Several times as fast as torch's own softmax, which takes short rows one by one.
    """
    logits -= logits.amax(dim=1, keepdim=True)
    logits.div_(temperature).exp_()
    return logits.div_(logits.sum(dim=1, keepdim=True))


def make_dataset(
    X: Any,
    codes: npt.NDArray[np.int64],
    weight: FloatArray | None,
    rows: npt.NDArray[np.intp] | None = None,
) -> Rows:
    """Return all rows as a dataset, or a part of them without a copy."""
    dataset = InMemoryDataset(X, codes, weight)
    return dataset if rows is None else Subset(dataset, rows)  # type: ignore[arg-type]


def sample_rows(
    dataset: Rows, seed: int
) -> tuple[Any, npt.NDArray[np.int64], FloatArray | None]:
    """Return at most `BASIS_ROWS` rows, codes and weights of a dataset."""
    rows = None
    source: Any = dataset
    if isinstance(dataset, Subset):
        rows, source = np.asarray(dataset.indices), dataset.dataset
    X, codes, weight = source.X, source.y, source.sample_weight
    n_rows = X.shape[0] if rows is None else len(rows)
    if n_rows > BASIS_ROWS:
        rng = np.random.default_rng(seed)
        sample = np.sort(rng.choice(n_rows, BASIS_ROWS, replace=False))
        rows = sample if rows is None else rows[sample]
    if rows is not None:
        X, codes = X[rows], codes[rows]
        weight = None if weight is None else weight[rows]
    return X, codes, weight


def _public_record(record: dict[str, Any]) -> dict[str, Any]:
    """Return skorch's record of an epoch, less bookkeeping and times."""
    return {
        name: value.item() if isinstance(value, np.generic) else value
        for name, value in sorted(record.items())
        if name not in ("batches", "dur")
        and not name.endswith(("_best", "_batch_count"))
    }
