"""The parameters that all classifiers share, and the net they describe."""

from __future__ import annotations

import copy
import inspect
import math
from abc import ABC, abstractmethod
from numbers import Integral, Real
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import torch
from sklearn.base import BaseEstimator
from sklearn.utils._param_validation import HasMethods, Interval, StrOptions
from skorch.callbacks import EarlyStopping, GradientNormClipping, LRScheduler
from skorch.helper import predefined_split

from sksoftrank.estimators._data import Rows, draw_seeds
from sksoftrank.losses import TemperatureSchedule, as_schedule
from sksoftrank.modules import EmbedHeadModule
from sksoftrank.training import AccuracyStopping, SoftRankNet

OPTIMIZERS: dict[str, tuple[type[torch.optim.Optimizer], dict[str, Any]]] = {
    "adam": (torch.optim.Adam, {}),
    "adamw": (torch.optim.AdamW, {}),
    "sgd": (torch.optim.SGD, {"momentum": 0.9, "nesterov": True}),
}
# Arguments of the net that the estimator has a parameter of its own for.
RESERVED = {
    *("module", "temperature", "lr", "max_epochs", "batch_size", "callbacks"),
    *("train_split", "verbose", "device", "warm_start", "classes"),
    *("precision", "compile", "criterion__label_smoothing"),
    *("criterion__temperature", "optimizer__lr", "optimizer__weight_decay"),
    *("iterator_train__batch_size", "iterator_train__random_state"),
    *("iterator_train__min_batch_size", "dataset", "predict_nonlinearity"),
}
# What its names begin with.
RESERVED_PREFIXES = (
    "module__",
    *(f"callbacks__{name}" for name in ("early_stopping", "lr_schedule")),
    "callbacks__max_grad_norm",
)


class NetRecipe(BaseEstimator, ABC):
    """Parameters, and how a net follows from them."""

    # What learning_rate="auto" multiplies by the square root of the temperature.
    _base_rates: ClassVar[dict[str, float]] = {"adam": 1e-3, "adamw": 1e-3, "sgd": 5e-2}

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
        "lr_schedule": [StrOptions({"cosine", "warmup_cosine", "constant"})],
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
        "device": [
            str,
            torch.device,
            HasMethods("type"),
            Interval(Integral, 0, None, closed="left"),
        ],
        "precision": [StrOptions({"float32", "bf16", "tf32"})],
        "compile": ["boolean"],
        "random_state": ["random_state"],
        "verbose": ["verbose"],
    }

    def __init__(
        self,
        *,
        temperature: float | TemperatureSchedule,
        n_components: str | float | None,
        compression_tol: float,
        optimizer: str,
        learning_rate: str | float,
        weight_decay: float,
        lr_schedule: str,
        label_smoothing: float,
        max_grad_norm: float | None,
        max_epochs: int,
        batch_size: int,
        early_stopping: bool,
        validation_fraction: float,
        n_iter_no_change: int,
        tol: float,
        class_weight: dict[Any, float] | str | None,
        warm_start: bool,
        callbacks: list[Any] | None,
        net_params: dict[str, Any] | None,
        device: str | int | torch.device,
        precision: str,
        compile: bool,
        random_state: int | np.random.RandomState | None,
        verbose: int,
    ) -> None:
        self.temperature = temperature
        self.n_components = n_components
        self.compression_tol = compression_tol
        self.optimizer = optimizer
        self.learning_rate = learning_rate
        self.weight_decay = weight_decay
        self.lr_schedule = lr_schedule
        self.label_smoothing = label_smoothing
        self.max_grad_norm = max_grad_norm
        self.max_epochs = max_epochs
        self.batch_size = batch_size
        self.early_stopping = early_stopping
        self.validation_fraction = validation_fraction
        self.n_iter_no_change = n_iter_no_change
        self.tol = tol
        self.class_weight = class_weight
        self.warm_start = warm_start
        self.callbacks = callbacks
        self.net_params = net_params
        self.device = device
        self.precision = precision
        self.compile = compile
        self.random_state = random_state
        self.verbose = verbose

    classes_: npt.NDArray[Any]
    n_features_in_: int

    # -- What a subclass says of its module ----------------------------------------

    @abstractmethod
    def _module_recipe(
        self, n_features: int
    ) -> tuple[type[EmbedHeadModule], dict[str, Any]]:
        """Return the module's class and parameters, less n_classes and the seed."""

    @abstractmethod
    def _embedding_width(self) -> int | None:
        """Return the width of the embedding; None where only the network tells."""

    def _min_batch_size(self) -> int:
        """Return the fewest rows that the module can train on."""
        return 1

    def _check_skorch_params(self) -> None:
        """Refuse what is given twice, or would be without effect."""
        given = self.net_params or {}
        reserved = {
            name
            for name in given
            if name in RESERVED or name.startswith(RESERVED_PREFIXES)
        }
        if reserved:
            raise ValueError(
                f"net_params must leave {sorted(reserved)} to the estimator, got "
                f"{self.net_params!r}. Use the estimator's own parameters for these."
            )
        instances = [c[-1] if isinstance(c, tuple) else c for c in self.callbacks or []]
        for callback in instances:
            monitor = getattr(callback, "monitor", None)
            if isinstance(callback, EarlyStopping) and self.early_stopping:
                raise ValueError(
                    "early_stopping must be False where callbacks hold an "
                    "EarlyStopping, got True. Remove one of them."
                )
            if str(monitor).startswith("valid_") and not self.early_stopping:
                raise ValueError(
                    f"callbacks must not monitor {monitor!r} without rows to validate "
                    f"on, got {callback!r}. Set early_stopping=True, or monitor "
                    "'train_loss'."
                )
            if not hasattr(callback, "on_epoch_end"):
                raise ValueError(
                    "callbacks must hold callbacks of skorch, or pairs of a name and a "
                    f"callback, got {callback!r}. Use e.g. skorch's EpochTimer()."
                )
        if self.lr_schedule != "constant" and any(
            isinstance(callback, LRScheduler) for callback in instances
        ):
            raise ValueError(
                "lr_schedule must be 'constant' where callbacks hold an LRScheduler, "
                f"whose rates it would replace, got {self.lr_schedule!r}. Set it to "
                "'constant', or remove the callback."
            )
        if not self.compile and any(name.startswith("compile__") for name in given):
            raise ValueError(
                "compile must be True where net_params say how to, got False and "
                f"{self.net_params!r}. Set it to True, or remove them."
            )
        if "optimizer" not in given:
            return
        optimizer = given["optimizer"]
        if not callable(optimizer):
            raise ValueError(
                "net_params must give optimizer a class such as torch.optim.RMSprop, "
                f"got {optimizer!r}. Import it from torch.optim."
            )
        signature = inspect.signature(type(self).__init__)
        default = signature.parameters["optimizer"].default
        if self.optimizer != default:
            raise ValueError(
                f"optimizer must stay {default!r} where net_params names one, got "
                f"{self.optimizer!r} and {optimizer!r}. Remove one of them."
            )
        if self.weight_decay and not _takes_weight_decay(optimizer):
            raise ValueError(
                f"weight_decay must be 0 for the optimizer {optimizer!r} of net_params,"
                f" which has none, got {self.weight_decay!r}. Set weight_decay=0."
            )

    def _check_class_weight(self) -> None:
        if not isinstance(self.class_weight, dict):
            return
        for label, weight in self.class_weight.items():
            if not (isinstance(weight, Real) and 0 <= weight < math.inf):
                raise ValueError(
                    "class_weight must hold non-negative, finite numbers, got "
                    f"{weight!r} for {label!r}. Use 0 to leave a class out."
                )

    def _resolve_device(self) -> torch.device:
        if self.device == "auto":
            if torch.cuda.is_available():
                return torch.device("cuda")
            mps = torch.backends.mps.is_available()
            return torch.device("mps" if mps else "cpu")
        given = self.device
        if isinstance(given, Integral) and not isinstance(given, bool):
            given = f"cuda:{given}"
        try:
            device = torch.device(given)
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
        base = self._base_rates[self.optimizer]
        return base * math.sqrt(as_schedule(self.temperature)(progress))

    def _learning_rate_factors(self) -> list[float]:
        """Return each epoch's learning rate over the base rate's.

        The rate follows the square root of a scheduled temperature, and half a cosine
        down, at will after a linear rise.
        """
        epochs = range(self.max_epochs)
        factors = [1.0 for _ in epochs]
        if self.lr_schedule != "constant":
            factors = [
                (1 + math.cos(math.pi * e / self.max_epochs)) / 2 for e in epochs
            ]
        if self.lr_schedule == "warmup_cosine":
            n_rising = math.ceil(self.max_epochs / 10)
            factors = [
                factor * min((e + 1) / (n_rising + 1), 1.0)
                for e, factor in zip(epochs, factors, strict=True)
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
        rate: Any = self._first_learning_rate(incremental=incremental)
        factors = [] if incremental else self._learning_rate_factors()
        if len(set(factors)) > 1:
            rate = [rate * factor for factor in factors]
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
        optimizer, optimizer_params = OPTIMIZERS[self.optimizer]
        net_params = {
            "optimizer": optimizer,
            **{f"optimizer__{name}": v for name, v in optimizer_params.items()},
            "optimizer__fused": True,
        }
        given = self.net_params or {}
        if "optimizer" in given:  # Then these are not its parameters.
            net_params = {}
        if _takes_weight_decay(given.get("optimizer", optimizer)):
            net_params["optimizer__weight_decay"] = self.weight_decay
        if not self.verbose:  # It would format its table all the same.
            net_params["callbacks__print_log"] = None
        temperature = self._last_temperature() if incremental else self.temperature
        return SoftRankNet(
            module,
            **{f"module__{name}": value for name, value in module_params.items()},
            module__n_classes=len(self.classes_),
            module__random_state=seeds["module"],
            temperature=temperature,
            lr=rate,
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
            precision=self.precision,
            compile=self.compile,
            **{
                "iterator_train__random_state": np.random.default_rng(seeds["order"]),
                **net_params,
                **given,
            },
        )


def _takes_weight_decay(optimizer: Any) -> bool:
    return "weight_decay" in inspect.signature(optimizer).parameters
