"""A network to be trained, with everything that is its own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import nn


@dataclass
class StopFlag:
    """Ends trainings in other threads; a copy in another process is its own.

    Parameters
    ----------
    is_set : bool, default=False
        Whether trainings that hold the flag end at their next block of batches.

    Examples
    --------
    >>> from sksoftrank.training import StopFlag
    >>> stop = StopFlag()
    >>> stop.is_set = True
    """

    is_set: bool = False


@dataclass
class Member:
    """One network in training, with everything that is its own.

    The module is trained in place, on `batches`, anew in each epoch. Members of a stack
    are MLPs of one shape whose batches lie in memory.
    """

    module: nn.Module
    batches: Any
    # Of each epoch, whose number is theirs; rates are read as an epoch begins.
    temperatures: Sequence[float]
    learning_rates: list[float]
    weight_decay: float = 0.0
    label_smoothing: float = 0.0
    # Longer gradients are scaled down to this norm.
    max_grad_norm: float | None = None
    # Rows to validate on, for `on_epoch_end`.
    valid: Any = None
    forward_params: dict[str, Any] | None = None
    on_epoch_begin: Callable[[Member], object] | None = None
    # Where it returns True, or raises an error, the training ends.
    on_epoch_end: Callable[[Member], object] | None = None

    # One record an epoch finished: its number, loss, learning rate and temperature.
    history: list[dict[str, float]] = field(default_factory=list, init=False)
    # Why training ended early; the weights are those of the last finished epoch.
    error: Exception | None = field(default=None, init=False)
    is_interrupted: bool = field(default=False, init=False)
    is_stopped: bool = field(default=False, init=False)

    @property
    def n_epochs(self) -> int:
        """Number of epochs to train."""
        return len(self.temperatures)

    @property
    def is_finished(self) -> bool:
        """Whether no epoch is left to be trained."""
        n_trained = len(self.history)
        return bool(self.error) or self.is_stopped or n_trained >= self.n_epochs
