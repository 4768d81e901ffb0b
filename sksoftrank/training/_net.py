"""The skorch net: a temperature, batches from memory, and the one loop."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from functools import partial
from numbers import Real
from typing import Any

import numpy as np
import torch
from sklearn import get_config
from sklearn.utils.metadata_routing import process_routing
from skorch import NeuralNetClassifier
from skorch.callbacks import (
    Callback,
    EarlyStopping,
    EpochTimer,
    GradientNormClipping,
    PrintLog,
)
from skorch.dataset import unpack_data
from skorch.utils import is_dataset, to_numpy, to_tensor
from torch import Tensor

from sksoftrank._checks import check_readable
from sksoftrank._skorch import _initialize_optimizer
from sksoftrank._torch import _BatchNorm
from sksoftrank.losses import (
    TemperatureCrossEntropyLoss,
    as_schedule,
    temperature_softmax,
)
from sksoftrank.modules._protocol import lr_scales, parameters_without_decay
from sksoftrank.training._autograd import as_logits, validate
from sksoftrank.training._batches import InMemoryDataset
from sksoftrank.training._checkpoint import Checkpoint
from sksoftrank.training._grouping import (
    acts_on_batches,
    callbacks_of,
    train_members,
)
from sksoftrank.training._iterators import make_batches
from sksoftrank.training._loop import RecordError
from sksoftrank.training._member import Member, StopFlag
from sksoftrank.training._precision import PRECISIONS, autocast
from sksoftrank.training._stopping import divergence, interruption

# What a subclass may do in its own way.
_STEPS = ("get_loss", "infer", "run_single_epoch", "train_step", "train_step_single")


class SoftRankNet(NeuralNetClassifier):
    """A skorch classifier trained with ``cross_entropy(logits / temperature, y)``.

    Everything of :class:`skorch.NeuralNetClassifier` holds: ``module__x``,
    ``optimizer__x``, callbacks, history, ``save_params``, grid searches. What differs:
    the module returns logits; `temperature` is a parameter, and `predict_proba` uses
    the one that the net was trained at; weight decay is for weight matrices, not for
    biases, scales, and what the module's ``no_weight_decay()`` names; arrays are
    batched in memory and shuffled; an epoch runs without per-batch bookkeeping where no
    callback asks for it, and `fit` trains a plain :class:`sksoftrank.modules.MLP`
    without autograd, several times as fast; a loss that is not finite is an error;
    Ctrl-C keeps the last finished epoch.

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
    lr : float or sequence of float, default=0.001
        Learning rate, or one for each epoch. What suits a temperature grows like its
        square root.
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
    random_state : int, default=None
        Seed of torch's global generators while the net trains, for modules that draw
        from them; they are put back afterwards. None leaves them alone.
    **kwargs : dict
        Further parameters of skorch's net.

    Attributes
    ----------
    temperature_ : float
        The temperature of the last epoch trained, used by `predict_proba`.

    Raises
    ------
    ValueError
        At fit, for a temperature that is not positive and finite, labels that are not
        class codes, or too few learning rates.
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
        lr: Any = 1e-3,
        dataset: Any = InMemoryDataset,
        iterator_train: Any = make_batches,
        iterator_valid: Any = make_batches,
        iterator_train__shuffle: bool = True,
        precision: str = "float32",
        random_state: int | None = None,
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
        self.random_state = random_state

    @property
    def _default_callbacks(self) -> list[tuple[str, Callback]]:
        # skorch's own, less those that score: the loop records losses and accuracy.
        return [("epoch_timer", EpochTimer()), ("print_log", PrintLog())]

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
        for name, values in (("X", X), ("y", y)):
            check_readable(name, values)
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
        if training and self.min_batch_size > 1:
            # A variance of few rows is a poor one.
            least = max(self.min_batch_size, params["batch_size"] // 4)
            params.setdefault("min_batch_size", min(least, params["batch_size"]))
        return make_batches(dataset, device=self.device, **params)

    @property
    def min_batch_size(self) -> int:
        """The fewest rows that the module can train on.

        Batch normalisation has no variance to divide by in a batch of one.
        """
        layers = self.module_.modules()
        return 2 if any(isinstance(layer, _BatchNorm) for layer in layers) else 1

    # -- The optimizer ----------------------------------------------------------------

    prefixes_: list[str]
    # Whether Ctrl-C ended the last training; of one that could not begin it did not.
    was_interrupted_ = False

    @property
    def has_optimizer_(self) -> bool:
        """Whether the optimizer has been built."""
        return "optimizer_" in self.__dict__

    def initialize(self) -> SoftRankNet:
        """Build all parts but the optimizer; see skorch.

        That is built when it is first asked for: it imports torch's compiler, which
        takes longer than a small network's training, that may need none.
        """
        self.__dict__.pop("optimizer_", None)
        return super().initialize()

    def initialize_optimizer(self, *args: Any, **kwargs: Any) -> SoftRankNet:
        """Build the optimizer anew where there is one, and else leave it for later."""
        if self.has_optimizer_:
            return super().initialize_optimizer(*args, **kwargs)
        # Its arguments are checked by their prefix all the same.
        if "optimizer" not in self.prefixes_:
            self.prefixes_ = [*self.prefixes_, "optimizer"]
        return self

    def _build_optimizer(self) -> None:
        if not self.has_optimizer_:
            # skorch takes note of it only where its name is new.
            self.prefixes_ = [name for name in self.prefixes_ if name != "optimizer"]
            self.__dict__["optimizer_"] = None
            self.initialized_ = False  # Or skorch would say that it is built again.
            try:
                _initialize_optimizer(self)
            finally:
                self.initialized_ = True

    def set_params(self, **params: Any) -> SoftRankNet:
        """Set parameters; see skorch."""
        if self.initialized_ and any(name.startswith("optimizer") for name in params):
            self._build_optimizer()  # skorch sets them on it.
        return super().set_params(**params)

    def __getattr__(self, name: str) -> Any:
        if name == "optimizer_" and self.__dict__.get("initialized_", False):
            self._build_optimizer()
            return self.optimizer_
        raise AttributeError(
            f"{type(self).__name__!r} object has no attribute {name!r}"
        )

    def get_params_for_optimizer(
        self, prefix: str, named_parameters: Any
    ) -> tuple[Any, dict[str, Any]]:
        """Return the optimizer's arguments; see skorch.

        Decay is for weight matrices, and rates are multiplied where the module says so.
        A group of ``optimizer__param_groups`` with a decay or rate of its own keeps it
        whole.
        """
        args, kwargs = super().get_params_for_optimizer(prefix, named_parameters)
        if not isinstance(kwargs["lr"], Real):
            kwargs["lr"] = kwargs["lr"][0]
        scales = lr_scales(self.module_)
        has_decay = bool(kwargs.get("weight_decay"))
        if not (has_decay or scales):
            return args, kwargs
        spared = set(parameters_without_decay(self.module_)) if has_decay else set()
        groups = []
        for group in args[0]:
            parts: dict[tuple[float, bool], list[Any]] = {}
            for p in group["params"]:
                scale = 1.0 if "lr" in group else scales.get(p, 1.0)
                is_spared = p in spared and "weight_decay" not in group
                parts.setdefault((scale, is_spared), []).append(p)
            # What has the rate itself comes first, for whoever reads it there.
            order = sorted(parts, key=lambda key: (key[0] != 1.0, key))
            for scale, is_spared in order:
                own = {"weight_decay": 0.0} if is_spared else {}
                if scale != 1.0:
                    own |= {"lr": kwargs["lr"] * scale, "lr_scale": scale}
                groups.append({**group, "params": parts[scale, is_spared], **own})
        return (groups, *args[1:]), kwargs

    # -- Loss and probabilities ----------------------------------------------------

    def get_loss(
        self, y_pred: Any, y_true: Any, X: Any = None, training: bool = False
    ) -> Tensor:
        """Return the loss; `y_true` is codes or a pair of codes and sample weights."""
        target = to_tensor(y_true, device=self.device)
        if not isinstance(target, tuple | list):
            target = (target,)
        loss: Tensor = self.criterion_(as_logits(y_pred), *target)
        if training and not math.isfinite(loss.item()):
            raise divergence(
                loss.item(),
                f"epoch {len(self.history)}",
                self.criterion_.temperature,
                self.optimizer_.param_groups[0]["lr"],
            )
        return loss

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
            return (as_logits(output), *output[1:])
        return as_logits(output)

    # -- Training --------------------------------------------------------------------

    @property
    def has_own_steps(self) -> bool:
        """Whether a subclass has its own way to make a step."""
        return any(
            getattr(type(self), name) is not getattr(SoftRankNet, name)
            for name in _STEPS
        )

    def fit(self, X: Any, y: Any = None, **fit_params: Any) -> SoftRankNet:
        """Build all parts anew and train; see :meth:`skorch.NeuralNet.fit`."""
        if self.warm_start and self.initialized_:
            return self.partial_fit(X, y, _routing_method="fit", **fit_params)
        self.initialize()
        return self._fit(X, y, **fit_params)

    def partial_fit(
        self, X: Any, y: Any = None, classes: Any = None, **fit_params: Any
    ) -> SoftRankNet:
        """Train on from where the net is, by autograd; see skorch.

        The optimizer's state lives from call to call. After a `fit` it starts anew.
        """
        if not self.initialized_:
            self.initialize()
        self._build_optimizer()
        fit_params.setdefault("_routing_method", "partial_fit")
        return self._fit(X, y, **fit_params)

    def _fit(self, X: Any, y: Any, **params: Any) -> SoftRankNet:
        self.notify("on_train_begin", X=X, y=y)
        self.fit_loop(X, y, **params)
        self._end_training(X, y)
        return self

    def fit_loop(
        self,
        X: Any,
        y: Any = None,
        epochs: int | None = None,
        *,
        _routing_method: str = "fit",
        **params: Any,
    ) -> SoftRankNet:
        """Train; an interruption or an error leaves the last finished epoch's weights.

        See :meth:`skorch.NeuralNet.fit_loop` for the parameters.
        """
        member = self._make_member(X, y, epochs, _routing_method, params)
        self._train([self], [member])
        if member.error is not None:
            raise member.error
        if self.was_interrupted_:
            self.warn_of_interruption(stacklevel=4)
        return self

    @staticmethod
    def _train(
        nets: Sequence[SoftRankNet],
        members: Sequence[Member],
        stop: StopFlag | None = None,
        **options: Any,
    ) -> None:
        """Train, and take note of how each net ends."""
        try:
            train_members(nets, members, stop, **options)
        finally:
            for net, member in zip(nets, members, strict=True):
                net.was_interrupted_ = member.is_interrupted
                if net.history and "temperature" not in net.history[-1]:
                    del net.history[-1]  # An epoch that did not come to its end.

    def _end_training(self, X: Any, y: Any = None) -> None:
        self.notify("on_train_end", X=X, y=y)
        if self.history:
            self.temperature_ = self.history[self.kept_epoch - 1, "temperature"]

    @property
    def kept_epoch(self) -> int:
        """The epoch, counted from one, whose weights the module has."""
        for callback in callbacks_of(self):
            is_stopping = isinstance(callback, EarlyStopping)
            if is_stopping and callback.load_best and callback.best_epoch_:
                return int(callback.best_epoch_)
        return len(self.history)

    def warn_of_interruption(self, more: str = "", *, stacklevel: int) -> None:
        """Say that Ctrl-C ended the training, and what is kept.

        Parameters
        ----------
        more : str, default=""
            Added to that.
        stacklevel : int
            Whose line it is: 1 for the caller's, as in ``warnings.warn``.
        """
        message = interruption(len(self.history), self.max_epochs, self.kept_epoch)
        warnings.warn(message + more, UserWarning, stacklevel=stacklevel + 1)

    def _make_member(
        self,
        X: Any,
        y: Any = None,
        epochs: int | None = None,
        routing_method: str = "fit",
        params: dict[str, Any] | None = None,
    ) -> Member:
        """Return the training that is ahead, checked."""
        params = params or {}
        self.check_data(X, y)
        self.check_training_readiness()
        if self.precision not in PRECISIONS:
            raise ValueError(
                f"precision must be one of {PRECISIONS}, got {self.precision!r}. Use "
                "'float32'."
            )
        epochs = self.max_epochs if epochs is None else epochs
        split_params = params
        if get_config()["enable_metadata_routing"]:
            routed = process_routing(self, routing_method, **params)
            split_params = routed.get("splitter", {"split": {}})["split"]
        train, valid = self.get_split_datasets(X, y, **split_params)
        datasets = {"dataset_train": train, "dataset_valid": valid}
        clipping = [
            callback.gradient_clip_value
            for callback in callbacks_of(self)
            if isinstance(callback, GradientNormClipping)
        ]
        least = {
            name: min((r[name] for r in self.history if name in r), default=math.inf)
            for name in ("train_loss", "valid_loss")
        }
        return Member(
            self.module_,
            self.get_iterator(train, training=True),
            as_schedule(self.temperature).values(epochs),
            self._learning_rates(epochs),
            weight_decay=self.get_params_for("optimizer").get("weight_decay", 0.0),
            label_smoothing=self.criterion_.label_smoothing,
            max_grad_norm=min(clipping, default=None),
            valid=None if valid is None else self.get_iterator(valid),
            forward_params=params,
            on_epoch_begin=partial(self._begin_epoch, datasets),
            on_epoch_end=partial(self._end_epoch, datasets, least),
        )

    def _learning_rates(self, epochs: int) -> list[float]:
        given = self.get_params_for("optimizer").get("lr", self.lr)
        if isinstance(given, Real):
            return [float(given)] * epochs
        if len(given) < epochs:
            raise ValueError(
                f"lr must be one number, or one for each of {epochs} epochs, got "
                f"{len(given)} numbers. Pass as many as there are epochs."
            )
        return list(given[:epochs])

    def _begin_epoch(self, datasets: dict[str, Any], member: Member) -> None:
        """Set an epoch's temperature and learning rate, and let callbacks know."""
        epoch = len(member.history)
        self.temperature_ = self.criterion_.temperature = member.temperatures[epoch]
        self.notify("on_epoch_begin", **datasets)
        if not self.has_optimizer_:
            return
        if isinstance(self.lr, Real):
            # The optimizer's, which a callback may have set.
            member.learning_rates[epoch] = self.optimizer_.param_groups[0]["lr"]
        else:
            for group in self.optimizer_.param_groups:
                group["lr"] = member.learning_rates[epoch] * group.get("lr_scale", 1.0)

    def _end_epoch(
        self, datasets: dict[str, Any], least: dict[str, float], member: Member
    ) -> bool:
        """Validate, add to the history, and ask callbacks whether to stop.

        `least` has the losses to fall below.
        """
        done = dict(member.history[-1])
        del done["epoch"]  # A training that goes on has more of them.
        if member.valid is not None:
            done |= self._validate(member)
        for name in least:
            if name in done:
                done[f"{name}_best"] = done[name] < least[name]
                least[name] = min(done[name], least[name])
        for name, value in done.items():
            self.history.record(name, value)
        try:
            self.notify("on_epoch_end", **datasets)
        except KeyboardInterrupt:
            return True  # How skorch's callbacks stop a training.
        return False

    def validate(self, dataset: Any) -> dict[str, float]:
        """Return the loss and the weighted accuracy on a dataset.

        Parameters
        ----------
        dataset : Dataset
            Rows and class codes.

        Returns
        -------
        dict
            "valid_loss" at the criterion's temperature, and "valid_acc".
        """
        return validate(
            *(self.module_, self.get_iterator(dataset), self.criterion_),
            device=self.device,
            precision=self.precision,
        )

    def _validate(self, member: Member) -> dict[str, float]:
        # At one temperature: losses of different ones do not compare.
        self.criterion_.temperature = member.temperatures[-1]
        if not (acts_on_batches(self, training=False) or member.forward_params):
            return validate(
                *(self.module_, member.valid, self.criterion_),
                device=self.device,
                precision=self.precision,
            )
        correct, total = 0.0, 0.0

        def counting_step(batch: Any, **params: Any) -> Any:
            nonlocal correct, total
            step = self.validation_step(batch, **params)
            _, target = unpack_data(batch)
            codes, weight = (
                target if isinstance(target, tuple | list) else (target, None)
            )
            logits = as_logits(step["y_pred"])
            hits = (logits.argmax(dim=1).cpu() == codes.cpu()).double()
            weight = torch.ones_like(hits) if weight is None else weight.cpu().double()
            correct += (weight * hits).sum().item()
            total += weight.sum().item()
            return step

        self.run_single_epoch(
            member.valid, False, "valid", counting_step, **(member.forward_params or {})
        )
        names = ["valid_batch_size", "valid_loss"]
        sizes, losses = zip(*self.history[-1, "batches", :, names], strict=True)
        loss = float(np.average(losses, weights=sizes))
        return {"valid_loss": loss, "valid_acc": correct / total}


def fit_nets(
    nets: Sequence[SoftRankNet],
    datasets: Sequence[Any],
    stop: StopFlag | None = None,
    *,
    together: bool = False,
    checkpoint: Checkpoint | None = None,
) -> list[Exception | None]:
    """Train initialised nets, in stacks where they can be, each as by its own `fit`.

    Parameters
    ----------
    nets : sequence of SoftRankNet
        Initialised; each ends trained, or as it was.
    datasets : sequence of Dataset
        What each trains on.
    stop : StopFlag, default=None
        Once set, from another thread, training ends as Ctrl-C ends it.
    together : bool, default=False
        Whether nets that can be one stack are, however large, as those must be whose
        callbacks wait for each other.
    checkpoint : Checkpoint, default=None
        What all go on from, and are written to.

    Returns
    -------
    list of Exception or None
        The error that each net's training ended with.

    Examples
    --------
    >>> import numpy as np
    >>> from sksoftrank import SoftRankNet
    >>> from sksoftrank.modules import MLP
    >>> from sksoftrank.training import InMemoryDataset, fit_nets
    >>> X = np.random.default_rng(0).standard_normal((64, 4))
    >>> dataset = InMemoryDataset(X, (X[:, 0] > 0).astype(int))
    >>> params = {"module__n_features": 4, "module__n_classes": 2, "train_split": None}
    >>> nets = [
    ...     SoftRankNet(MLP, temperature=temperature, verbose=0, **params).initialize()
    ...     for temperature in [1.0, 10.0]
    ... ]
    >>> fit_nets(nets, [dataset] * 2)
    [None, None]
    >>> [len(net.history) for net in nets]
    [10, 10]
    """
    errors: list[Exception | None] = [None] * len(nets)
    members: dict[int, Member] = {}
    for k, (net, dataset) in enumerate(zip(nets, datasets, strict=True)):
        try:
            net.notify("on_train_begin", X=dataset, y=None)
            if checkpoint is not None:
                checkpoint.attach(net)
            members[k] = net._make_member(dataset)
        except RecordError:
            raise
        except Exception as error:
            errors[k] = error
    SoftRankNet._train(
        *([nets[k] for k in members], [*members.values()], stop),
        together=together,
        checkpoint=checkpoint,
    )
    for k, member in members.items():
        errors[k] = member.error
        if member.error is None:
            try:
                nets[k]._end_training(datasets[k])
            except Exception as error:
                errors[k] = error
    return errors
