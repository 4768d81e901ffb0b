"""The skorch net that an estimator's parameters ask for."""

from __future__ import annotations

import copy
import inspect
import math
from dataclasses import dataclass
from numbers import Integral
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from skorch.callbacks import EarlyStopping, GradientNormClipping, LRScheduler
from skorch.helper import predefined_split
from torch.utils.data import DataLoader

from sksoftrank._sklearn import has_callbacks
from sksoftrank.estimators._input import InputReader
from sksoftrank.estimators._parameters import OPTIMIZERS, SharedParametersMixin
from sksoftrank.estimators._sources import is_stream
from sksoftrank.estimators._training_data import Rows, draw_seeds
from sksoftrank.losses import as_schedule
from sksoftrank.training import AccuracyStopping, SoftRankNet, make_batches

# Arguments of the net that the estimator has a parameter of its own for.
RESERVED = {
    *("module", "temperature", "lr", "max_epochs", "batch_size", "callbacks"),
    *("train_split", "verbose", "device", "warm_start", "classes"),
    *("precision", "compile", "criterion__label_smoothing"),
    *("criterion__temperature", "optimizer__lr", "optimizer__weight_decay"),
    *("iterator_train__batch_size", "iterator_train__random_state"),
    *("iterator_train__min_batch_size", "dataset", "predict_nonlinearity"),
    *("optimizer__betas", "random_state"),
}
# What its names begin with.
RESERVED_PREFIXES = (
    "module__",
    *(f"callbacks__{name}" for name in ("early_stopping", "lr_schedule")),
    "callbacks__max_grad_norm",
)


@dataclass(frozen=True)
class Strength:
    """How long to train, and how strongly to regularise.

    Parameters
    ----------
    steps : float
        Steps of training over the square root of the number of rows, up to
        `FEW_ROWS`; of more rows over a power of it, see `choose_steps`.
    dropout : float
        In [0, 1).
    """

    steps: float
    dropout: float


MODERATE = Strength(13.4, 0.2)
# Tables of noise want it short and strong, those of separable classes long and weak. It
# is the contrast that counts: others between them gained nothing. Of few rows a long
# training is no better, and takes twice the time.
STRENGTHS = (Strength(6.7, 0.4), MODERATE, Strength(53.6, 0.1))
STRENGTHS_OF_FEW = (*STRENGTHS[:2], Strength(26.8, 0.2))
# So many rows may need no dropout at all: with it, 35,000 flights are not even fitted.
STRENGTHS_OF_MANY = (*STRENGTHS, Strength(53.6, 0.0))
FEW_ROWS, MANY_ROWS = 2000, 10_000


def choose_steps(n_rows: int, strength: Strength) -> float:
    """Return how many steps to train for so many rows.

    Of many rows the root alone is too short: with 35,000 flights of fifteen carriers
    twice as long a training gains eight points, and again three.
    """
    return strength.steps * math.sqrt(n_rows) * max(1.0, n_rows / FEW_ROWS) ** 0.25


def choose_batch_size(n_rows: int) -> int:
    """Return the rows of a step for so many rows in all."""
    return int(np.clip(2 ** round(math.log2(3 * math.sqrt(n_rows))), 32, 256))


class NetMixin(SharedParametersMixin):
    """How a net follows from the parameters."""

    classes_: npt.NDArray[Any]
    temperature_: float
    _input: InputReader

    def _check_betas(self) -> None:
        try:
            are_shares = [0 <= float(beta) < 1 for beta in self.betas] == [True, True]
        except (TypeError, ValueError):
            are_shares = False
        if not are_shares:
            raise ValueError(
                f"betas must be two numbers in [0, 1), got {self.betas!r}. Use e.g. "
                "(0.9, 0.999)."
            )

    def _check_target_rank_params(self, X: Any, y: Any) -> None:
        if self.target_rank is None:
            return
        default = self._default("temperature")
        if self.temperature != default:
            raise ValueError(
                f"temperature must stay {default!r} where target_rank says what it is "
                f"to lead to, got {self.temperature!r} and target_rank="
                f"{self.target_rank!r}. Set one of them."
            )
        if is_stream(X, y):
            raise ValueError(
                "target_rank must be None where X is a Dataset, whose rows can't be "
                f"held out, got {self.target_rank!r}. Set a temperature, or use arrays."
            )

    def _default(self, name: str) -> Any:
        """Return a parameter's default."""
        return inspect.signature(type(self).__init__).parameters[name].default

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
        default = self._default("optimizer")
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

    def _check_checkpoint(self) -> None:
        """Refuse what can't be gone on with, for its state is not to be had."""
        if self.checkpoint is None:
            return
        if self.callbacks or has_callbacks(self):
            raise ValueError(
                "callbacks must be None where checkpoint is set, for what they have "
                f"seen can't be written, got {self.callbacks or 'set_callbacks(...)'!r}"
                f" and checkpoint={self.checkpoint!r}. Use early_stopping, lr_schedule "
                "or max_grad_norm instead, or leave out one of them."
            )
        iterator = (self.net_params or {}).get("iterator_train", make_batches)
        if iterator not in (make_batches, DataLoader):
            raise ValueError(
                "net_params must leave iterator_train as it is, or a DataLoader, where "
                "checkpoint is set, for the state of another can't be written, got "
                f"{iterator!r} and checkpoint={self.checkpoint!r}. Leave out one of "
                "them."
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
        if self.target_rank is not None:  # What `fit` has found.
            return self.temperature_
        return as_schedule(self.temperature)(1.0)

    def _first_learning_rate(self, temperature: Any) -> float:
        if self.learning_rate != "auto":
            return float(self.learning_rate)
        base, power = self._architecture().base_rates[self.optimizer]
        return base * float(as_schedule(temperature)(0.0)) ** power

    def _lengths(self, n_rows: int, strength: Strength = MODERATE) -> tuple[int, int]:
        """Return the number of epochs and the batch size for so many rows."""
        batch_size: Any = self.batch_size
        if batch_size == "auto":
            batch_size = choose_batch_size(n_rows)
        n_epochs: Any = self.max_epochs
        if n_epochs == "auto":
            n_batches = math.ceil(n_rows / batch_size)
            n_epochs = max(1, round(choose_steps(n_rows, strength) / n_batches))
        return n_epochs, batch_size

    def _learning_rate_factors(self, n_epochs: int, temperature: Any) -> list[float]:
        """Return each epoch's learning rate over the base rate's.

        The rate follows a power of a scheduled temperature, and half a cosine down, at
        will after a linear rise.
        """
        epochs = range(n_epochs)
        factors = [1.0 for _ in epochs]
        if self.lr_schedule != "constant":
            factors = [(1 + math.cos(math.pi * e / n_epochs)) / 2 for e in epochs]
        if self.lr_schedule == "warmup_cosine":
            n_rising = math.ceil(n_epochs / 10)
            factors = [
                factor * min((e + 1) / (n_rising + 1), 1.0)
                for e, factor in zip(epochs, factors, strict=True)
            ]
        if self.learning_rate == "auto":
            values = as_schedule(temperature).values(n_epochs)
            _, power = self._architecture().base_rates[self.optimizer]
            factors = [
                factor * (value / values[0]) ** power
                for factor, value in zip(factors, values, strict=True)
            ]
        return factors

    def _sketch_net(self, n_classes: int, n_rows: int, X: Any = None) -> SoftRankNet:
        """Return a net that is not to be trained, but asked how it would be.

        For as many inputs as `X` has; it may be transformed before.
        """
        reader = self._architecture().input
        inputs = {"n_features": 1 if X is None else reader.count_columns(X)}
        seeds = dict.fromkeys(("module", "order", "rows"), 0)
        return self._make_net(inputs, n_classes, n_rows, seeds)

    def _make_net(
        self,
        inputs: dict[str, Any],
        n_classes: int,
        n_rows: int,
        seeds: dict[str, int],
        *,
        strength: Strength = MODERATE,
        temperature: Any = None,
        valid_dataset: Rows | None = None,
        incremental: bool = False,
        is_trial: bool = False,
    ) -> SoftRankNet:
        """Return a net for rows as `inputs` tells the module of them."""
        callbacks: list[Any] = []
        if temperature is None:
            temperature = self._last_temperature() if incremental else self.temperature
        rate: Any = self._first_learning_rate(temperature)
        n_epochs, batch_size = self._lengths(n_rows, strength)
        factors = (
            [] if incremental else self._learning_rate_factors(n_epochs, temperature)
        )
        if len(set(factors)) > 1:
            rate = [rate * factor for factor in factors]
        if self.max_grad_norm is not None:
            callbacks.append(
                ("max_grad_norm", GradientNormClipping(float(self.max_grad_norm)))
            )
        if valid_dataset is not None:
            stopping = AccuracyStopping(
                patience=self.n_iter_no_change, threshold=self.tol, load_best=True
            )
            callbacks.append(("early_stopping", stopping))
        if not is_trial:  # They are told of one training.
            callbacks.extend(copy.deepcopy(self.callbacks or []))

        architecture = self._architecture()
        module_params = {**inputs, **architecture.module_params}
        if module_params.get("dropout") == "auto":
            module_params["dropout"] = strength.dropout
        optimizer, optimizer_params = OPTIMIZERS[self.optimizer]
        if self.optimizer != "sgd":
            optimizer_params = {**optimizer_params, "betas": tuple(self.betas)}
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
        if is_trial or not self.verbose:  # It would format its table all the same.
            net_params["callbacks__print_log"] = None
        return SoftRankNet(
            architecture.module,
            **{f"module__{name}": value for name, value in module_params.items()},
            module__n_classes=n_classes,
            module__random_state=seeds["module"],
            temperature=temperature,
            lr=rate,
            max_epochs=1 if incremental else n_epochs,
            batch_size=batch_size,
            criterion__label_smoothing=self.label_smoothing,
            train_split=None
            if valid_dataset is None
            else predefined_split(valid_dataset),
            callbacks=callbacks,
            classes=np.arange(n_classes),
            verbose=0 if is_trial else int(self.verbose),
            device=str(self._resolve_device()),
            precision=self.precision,
            compile=self.compile,
            random_state=seeds["rows"] if architecture.draws_globally else None,
            **{
                "iterator_train__random_state": np.random.default_rng(seeds["order"]),
                **net_params,
                **given,
            },
        )


def _takes_weight_decay(optimizer: Any) -> bool:
    return "weight_decay" in inspect.signature(optimizer).parameters
