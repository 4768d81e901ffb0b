"""The skorch net: a temperature, batches from memory, and a lean epoch."""

from __future__ import annotations

import math
import warnings
from functools import partial
from typing import Any

import numpy as np
import torch
from skorch import NeuralNetClassifier
from skorch.callbacks import (
    Callback,
    EarlyStopping,
    EpochScoring,
    EpochTimer,
    GradientNormClipping,
    LRScheduler,
    PassthroughScoring,
    PrintLog,
)
from skorch.dataset import unpack_data
from skorch.utils import is_dataset, to_numpy, to_tensor
from torch import Tensor
from tqdm.auto import tqdm

from sksoftrank.losses import (
    TemperatureCrossEntropyLoss,
    as_schedule,
    temperature_softmax,
)
from sksoftrank.modules._protocol import parameters_without_decay
from sksoftrank.training._batches import InMemoryDataset
from sksoftrank.training._iterators import make_batches
from sksoftrank.training._precision import PRECISIONS, autocast, matmul_precision
from sksoftrank.training._stopping import divergence, interruption

# Hooks that a lean epoch does not call.
_BATCH_HOOKS = ("on_batch_begin", "on_batch_end", "on_grad_computed")


class SoftRankNet(NeuralNetClassifier):
    """A skorch classifier trained with ``cross_entropy(logits / temperature, y)``.

    Everything of :class:`skorch.NeuralNetClassifier` holds: ``module__x``,
    ``optimizer__x``, callbacks, history, ``save_params``, grid searches. What differs:
    the module returns logits; `temperature` is a parameter, and `predict_proba` uses
    the one that the net was trained at; weight decay is for weight matrices, not for
    biases, scales, and what the module's ``no_weight_decay()`` names; arrays are
    batched in memory and shuffled; an epoch runs without per-batch bookkeeping where no
    callback asks for it; a loss that is not finite is an error; Ctrl-C keeps the last
    finished epoch.

    Parameters
    ----------
    module : type or instance of torch.nn.Module
        The network; its ``forward`` returns logits (n, n_classes).
    *args : tuple
        Further positional arguments of skorch's net.
    temperature : float or TemperatureSchedule, default=1.0
        Positive. Divides the logits in the loss. A change through `set_params` takes
        effect at the next fit and never before.
    criterion : type, default=TemperatureCrossEntropyLoss
        The loss, or a subclass of it. ``criterion__x`` sets its other parameters.
    optimizer : type, default=torch.optim.Adam
        Optimizer class. ``optimizer__x`` sets its parameters.
    lr : float, default=0.001
        Learning rate. What suits a temperature grows like its square root.
    dataset : type, default=InMemoryDataset
        Dataset class that wraps `X` and `y`.
    iterator_train : callable, default=make_batches
        Makes the training batches. ``iterator_train__random_state`` seeds their order.
    iterator_valid : callable, default=make_batches
        Makes the batches for validation and prediction.
    iterator_train__shuffle : bool, default=True
        Whether each epoch has an order of its own.
    precision : {"float32", "bf16", "tf32"}, default="float32"
        "bf16" runs the module in half precision where that is safe, "tf32" lets CUDA
        shorten the factors of a training's products.
    **kwargs : dict
        Further parameters of skorch's net.

    Attributes
    ----------
    temperature_ : float
        The temperature of the last epoch trained, used by `predict_proba`.

    Raises
    ------
    ValueError
        At fit, for a temperature that is not positive and finite, or labels that are
        not class codes.
    FloatingPointError
        At the training step whose loss is not finite.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from sklearn.preprocessing import scale
    >>> from sksoftrank import SoftRankNet
    >>> from sksoftrank.modules import MLP
    >>> X, y = load_iris(return_X_y=True)
    >>> net = SoftRankNet(
    ...     MLP,
    ...     module__n_features=4,
    ...     module__n_classes=3,
    ...     module__random_state=0,
    ...     iterator_train__random_state=0,
    ...     temperature=10.0,
    ...     lr=0.003,
    ...     max_epochs=30,
    ...     batch_size=16,
    ...     verbose=0,
    ... )
    >>> net.fit(scale(X), y).score(scale(X), y) > 0.9
    True
    """

    def __init__(
        self,
        module: Any,
        *args: Any,
        temperature: Any = 1.0,
        criterion: Any = TemperatureCrossEntropyLoss,
        optimizer: Any = torch.optim.Adam,
        lr: float = 1e-3,
        dataset: Any = InMemoryDataset,
        iterator_train: Any = make_batches,
        iterator_valid: Any = make_batches,
        iterator_train__shuffle: bool = True,
        precision: str = "float32",
        **kwargs: Any,
    ) -> None:
        super().__init__(
            module,
            *args,
            criterion=criterion,
            optimizer=optimizer,
            lr=lr,
            dataset=dataset,
            iterator_train=iterator_train,
            iterator_valid=iterator_valid,
            iterator_train__shuffle=iterator_train__shuffle,
            **kwargs,
        )
        self.temperature = temperature
        self.precision = precision

    @property
    def _default_callbacks(self) -> list[tuple[str, Callback]]:
        # skorch's own, less the accuracy's EpochScoring: the validation epoch below
        # counts correct rows as it goes.
        return [
            ("epoch_timer", EpochTimer()),
            ("train_loss", PassthroughScoring(name="train_loss", on_train=True)),
            ("valid_loss", PassthroughScoring(name="valid_loss")),
            ("print_log", PrintLog()),
        ]

    # -- Parts ---------------------------------------------------------------------

    def initialize_criterion(self) -> SoftRankNet:
        """Build the criterion at the schedule's first temperature."""
        kwargs = self.get_params_for("criterion")
        if "temperature" in kwargs:
            raise ValueError(
                f"criterion__temperature={kwargs['temperature']!r} would compete with "
                f"temperature={self.temperature!r}. Set temperature alone."
            )
        self.temperature_ = as_schedule(self.temperature)(0.0)
        criterion = self.initialized_instance(self.criterion, kwargs)
        if not isinstance(criterion, TemperatureCrossEntropyLoss):
            raise ValueError(
                "criterion must be TemperatureCrossEntropyLoss or a subclass, whose "
                f"temperature the net sets, got {self.criterion!r}. Subclass it, or "
                "use skorch's NeuralNetClassifier."
            )
        criterion.temperature = self.temperature_
        self.criterion_ = criterion
        return self

    def torch_compile(self, module: Any, name: str) -> Any:
        """Compile the module if asked to, but not the criterion; see skorch."""
        # For each temperature of a schedule it would be compiled anew.
        return module if name == "criterion" else super().torch_compile(module, name)

    def check_data(self, X: Any, y: Any = None) -> None:
        """Refuse labels that are not class codes, before any training."""
        if y is None:
            if not is_dataset(X):
                raise ValueError(
                    "y must hold the class codes, got None. Pass y, or a Dataset that "
                    "yields pairs (x, y)."
                )
            return
        labels = np.asarray(to_numpy(y))
        if labels.dtype.kind not in "iu" or labels.ndim != 1 or labels.min() < 0:
            raise ValueError(
                "y must be a vector of class codes 0..n_classes - 1, got dtype "
                f"{labels.dtype} and shape {labels.shape}. Encode it with scikit-"
                "learn's LabelEncoder, or use an estimator such as "
                "SoftRankMLPClassifier, which takes any labels."
            )
        self.classes_inferred_ = np.unique(labels)

    def get_dataset(self, X: Any, y: Any = None) -> Any:
        """Return the dataset, with class codes in the type that torch's loss takes."""
        if y is not None and not isinstance(y, Tensor):
            y = np.asarray(y).astype(np.int64, copy=False)
        return super().get_dataset(X, y)

    def get_iterator(self, dataset: Any, training: bool = False) -> Any:
        """Return the batches of `dataset`; those from memory come on the device."""
        prefix = "iterator_train" if training else "iterator_valid"
        if getattr(self, prefix) is not make_batches:
            return super().get_iterator(dataset, training=training)
        params = self.get_params_for(prefix)
        params.setdefault("batch_size", self.batch_size)
        if params["batch_size"] == -1:
            params["batch_size"] = len(dataset)
        return make_batches(dataset, device=self.device, **params)

    # Whether the optimizer is built only once this net trains by itself: to build one
    # imports torch's compiler, which takes longer than a small network's training.
    defers_optimizer_ = False
    prefixes_: list[str]

    def initialize_optimizer(self, *args: Any, **kwargs: Any) -> SoftRankNet:
        """Build the optimizer, unless others train or nobody does; see skorch."""
        if self.defers_optimizer_:
            # Its arguments are checked by their prefix all the same.
            self.prefixes_ = [*self.prefixes_, "optimizer"]
            return self
        return super().initialize_optimizer(*args, **kwargs)

    def _build_deferred_optimizer(self) -> None:
        if self.defers_optimizer_:
            self.defers_optimizer_ = False
            # skorch takes note of it only where its name is new.
            self.prefixes_ = [name for name in self.prefixes_ if name != "optimizer"]
            self._initialize_optimizer()

    def set_params(self, **params: Any) -> SoftRankNet:
        """Set parameters; see skorch."""
        if any(name.startswith("optimizer") for name in params):
            self._build_deferred_optimizer()
        return super().set_params(**params)

    def __getattr__(self, name: str) -> Any:
        # Of what is not there: a deferred optimizer comes when it is asked for.
        if name == "optimizer_" and self.__dict__.get("defers_optimizer_", False):
            self._build_deferred_optimizer()
            return self.optimizer_
        raise AttributeError(
            f"{type(self).__name__!r} object has no attribute {name!r}"
        )

    def get_params_for_optimizer(
        self, prefix: str, named_parameters: Any
    ) -> tuple[Any, dict[str, Any]]:
        """Return the optimizer's arguments: decay is for weight matrices; see skorch.

        A group of ``optimizer__param_groups`` with a decay of its own keeps it whole.
        """
        args, kwargs = super().get_params_for_optimizer(prefix, named_parameters)
        if not kwargs.get("weight_decay"):
            return args, kwargs
        spared = {id(p) for p in parameters_without_decay(self.module_)}
        groups = []
        for group in args[0]:
            if "weight_decay" in group:
                groups.append(group)
                continue
            matrices = [p for p in group["params"] if id(p) not in spared]
            others = [p for p in group["params"] if id(p) in spared]
            if matrices:
                groups.append({**group, "params": matrices})
            if others:
                groups.append({**group, "params": others, "weight_decay": 0.0})
        return (groups, *args[1:]), kwargs

    # -- Loss and probabilities ----------------------------------------------------

    def get_loss(
        self, y_pred: Any, y_true: Any, X: Any = None, training: bool = False
    ) -> Tensor:
        """Return the loss; `y_true` is codes or a pair of codes and sample weights."""
        logits = y_pred[0] if isinstance(y_pred, tuple) else y_pred
        target = to_tensor(y_true, device=self.device)
        if not isinstance(target, tuple | list):
            target = (target,)
        loss: Tensor = self.criterion_(logits, *target)
        if training and not math.isfinite(loss.item()):
            self._raise_divergence(loss)
        return loss

    def _raise_divergence(self, loss: Tensor) -> None:
        raise divergence(
            loss.item(),
            f"epoch {len(self.history)}",
            self.criterion_.temperature,
            self.optimizer_.param_groups[0]["lr"],
        )

    def _get_predict_nonlinearity(self) -> Any:
        self.check_is_fitted()
        if self.predict_nonlinearity == "auto":
            return partial(temperature_softmax, temperature=self.temperature_)
        return super()._get_predict_nonlinearity()

    def infer(self, x: Any, **fit_params: Any) -> Any:
        """Run the module, in the net's precision; see skorch."""
        with autocast(self.precision, self.device):
            output = super().infer(x, **fit_params)
        if isinstance(output, tuple):
            return (_lengthen(output[0]), *output[1:])
        return _lengthen(output)

    # -- Epochs --------------------------------------------------------------------

    def _needs_batches(self, callback: Callback) -> bool:
        """Whether a callback acts on training batches."""
        if isinstance(callback, EpochScoring) and not callback.on_train:
            return False  # Its batch hook keeps predictions for validation.
        if type(callback) is GradientNormClipping:
            return False  # A lean epoch calls it.
        if isinstance(callback, LRScheduler) and callback.step_every == "epoch":
            return False
        return any(
            getattr(type(callback), hook) is not getattr(Callback, hook)
            for hook in _BATCH_HOOKS
        )

    def _can_run_lean(self) -> bool:
        """Whether nothing needs more of an epoch than steps and the mean loss."""
        own = all(
            getattr(type(self), name) is getattr(base, name)
            for base, names in (
                (SoftRankNet, ("get_loss", "infer")),
                (
                    NeuralNetClassifier,
                    ("train_step", "train_step_single", *_BATCH_HOOKS),
                ),
            )
            for name in names
        )
        return (
            own
            and self._optimizers == ["optimizer"]
            and not isinstance(self.optimizer_, torch.optim.LBFGS)
            and not any(self._needs_batches(cb) for _, cb in self.callbacks_)
        )

    def run_single_epoch(
        self, iterator: Any, training: bool, prefix: str, step_fn: Any, **params: Any
    ) -> None:
        """Run one epoch of training or validation."""
        if iterator is None:
            return
        if not training:
            self._run_validation(iterator, prefix, step_fn, **params)
            return
        if self.verbose > 1:
            epoch = f"epoch {len(self.history)}"
            iterator = tqdm(iterator, desc=epoch, unit="batch", leave=False)
        if params or not self._can_run_lean():
            super().run_single_epoch(iterator, training, prefix, step_fn, **params)
        else:
            self._run_lean_epoch(iterator, prefix)

    def _run_lean_epoch(self, iterator: Any, prefix: str) -> None:
        module, criterion, optimizer = self.module_, self.criterion_, self.optimizer_
        device = self.device
        self._set_training(True)
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        clippings = [
            cb for _, cb in self.callbacks_ if isinstance(cb, GradientNormClipping)
        ]
        total, n_rows, n_batches = 0.0, 0, 0
        for x, y in iterator:
            x = to_tensor(x, device=device)
            target = y if isinstance(y, tuple | list) else (y,)
            for parameter in parameters:  # zero_grad, less its profiler hook
                parameter.grad = None
            with autocast(self.precision, device):
                output = module(**x) if isinstance(x, dict) else module(x)
            logits = output[0] if isinstance(output, tuple) else output
            target = to_tensor(target, device=device)
            loss = criterion(_lengthen(logits), *target)
            value = loss.item()
            if not math.isfinite(value):
                self._raise_divergence(loss)
            loss.backward()
            for clipping in clippings:
                clipping.on_grad_computed(self, module.named_parameters())
            optimizer.step()
            size = len(target[0])
            total += value * size
            n_rows += size
            n_batches += 1
        if n_batches and self.n_epochs_finished_ + 1 == len(self.temperatures_):
            self._check_last_step(x)
        # One record for the epoch, in the shape that skorch's callbacks read.
        self.history.new_batch()
        self.history.record_batch(f"{prefix}_loss", total / n_rows)
        self.history.record_batch(f"{prefix}_batch_size", n_rows)
        self.history.record(f"{prefix}_batch_count", n_batches)

    def _check_last_step(self, x: Any) -> None:
        """Refuse logits that are not finite: no loss sees what the last step does."""
        self._set_training(False)
        with torch.no_grad(), autocast(self.precision, self.device):
            output = self.module_(**x) if isinstance(x, dict) else self.module_(x)
        logits = output[0] if isinstance(output, tuple) else output
        if not logits.isfinite().all():
            self._raise_divergence(torch.tensor(math.nan))

    def _run_validation(
        self, iterator: Any, prefix: str, step_fn: Any, **params: Any
    ) -> None:
        """Run skorch's epoch, with the weighted share of correct rows beside it."""
        correct, total = 0.0, 0.0

        def counting_step(batch: Any, **params: Any) -> Any:
            nonlocal correct, total
            step = step_fn(batch, **params)
            _, target = unpack_data(batch)
            logits = step["y_pred"]
            logits = logits[0] if isinstance(logits, tuple) else logits
            codes, weight = (
                target if isinstance(target, tuple | list) else (target, None)
            )
            hits = (logits.argmax(dim=1).cpu() == codes.cpu()).double()
            weight = torch.ones_like(hits) if weight is None else weight.cpu().double()
            correct += (weight * hits).sum().item()
            total += weight.sum().item()
            return step

        # At one temperature: losses of different ones do not compare.
        self.criterion_.temperature = self.temperatures_[-1]
        super().run_single_epoch(iterator, False, prefix, counting_step, **params)
        self.history.record(f"{prefix}_acc", correct / total)

    # -- The loop: temperature, and what an interruption leaves behind ---------------

    def on_epoch_begin(self, net: Any, **kwargs: Any) -> None:
        """Set the epoch's temperature."""
        super().on_epoch_begin(net, **kwargs)
        self.temperature_ = self.temperatures_[self.n_epochs_finished_]
        self.criterion_.temperature = self.temperature_

    def on_epoch_end(self, net: Any, **kwargs: Any) -> None:
        """Keep the weights: this epoch is finished."""
        super().on_epoch_end(net, **kwargs)
        if "optimizer" in self._optimizers:
            self.history.record("lr", self.optimizer_.param_groups[0]["lr"])
        self.history.record("temperature", self.temperature_)
        self._take_snapshot()
        self.n_epochs_finished_ += 1

    def _take_snapshot(self) -> None:
        with torch.no_grad():
            for kept, tensor in zip(
                self.snapshot_, self.module_.state_dict().values(), strict=True
            ):
                kept.copy_(tensor)

    def _restore_snapshot(self) -> None:
        names = self.module_.state_dict()
        self.module_.load_state_dict(dict(zip(names, self.snapshot_, strict=True)))

    def _stopped_early(self) -> bool:
        return any(
            isinstance(callback, EarlyStopping)
            and callback.misses_ >= callback.patience
            for _, callback in self.callbacks_
        )

    def fit_loop(
        self, X: Any, y: Any = None, epochs: int | None = None, **params: Any
    ) -> SoftRankNet:
        """Train; an interruption or an error leaves the last finished epoch's weights.

        See :meth:`skorch.NeuralNet.fit_loop` for the parameters.
        """
        epochs = self.max_epochs if epochs is None else epochs
        self._build_deferred_optimizer()
        if self.precision not in PRECISIONS:
            raise ValueError(
                f"precision must be one of {PRECISIONS}, got {self.precision!r}. Use "
                "'float32'."
            )
        self.temperatures_ = as_schedule(self.temperature).values(epochs)
        self.n_epochs_finished_ = 0
        self.was_interrupted_ = False
        self.snapshot_ = [
            tensor.detach().clone() for tensor in self.module_.state_dict().values()
        ]
        try:
            with torch.enable_grad(), matmul_precision(self.precision, self.device):
                super().fit_loop(X, y, epochs=epochs, **params)
        except KeyboardInterrupt:
            # skorch's callbacks stop a training by raising this too.
            if self._stopped_early():
                return self
            self._restore_snapshot()
            self._drop_unfinished_epoch()
            if self.n_epochs_finished_ == 0:
                raise
            self.was_interrupted_ = True
            warnings.warn(
                interruption(self.n_epochs_finished_, epochs, self.n_epochs_finished_),
                UserWarning,
                stacklevel=2,
            )
        except BaseException:
            self._restore_snapshot()
            self._drop_unfinished_epoch()
            raise
        finally:
            del self.snapshot_
        return self

    def _drop_unfinished_epoch(self) -> None:
        if self.history and "temperature" not in self.history[-1]:
            del self.history[-1]

    def partial_fit(
        self, X: Any, y: Any = None, classes: Any = None, **fit_params: Any
    ) -> SoftRankNet:
        """Train without starting anew; see :meth:`skorch.NeuralNet.partial_fit`."""
        # skorch's own, but for its silence on KeyboardInterrupt, which fit_loop
        # handles.
        if not self.initialized_:
            self.initialize()
        routing_method = fit_params.pop("_routing_method", "partial_fit")
        self.notify("on_train_begin", X=X, y=y)
        self.fit_loop(X, y, _routing_method=routing_method, **fit_params)
        self.notify("on_train_end", X=X, y=y)
        return self


def _lengthen(logits: Any) -> Any:
    """Return logits in half precision as those in single, which the loss needs."""
    is_half = isinstance(logits, Tensor) and logits.dtype == torch.bfloat16
    return logits.float() if is_half else logits
