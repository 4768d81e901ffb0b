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

    Parameters
    ----------
    module : torch.nn.Module
        The network; trained in place. Those of a stack are MLPs that agree in all
        shapes, the activation and the normalisation.
    batches : iterable
        The rows, labels and weights to train on, anew in each epoch. Those of a stack
        are `InMemoryBatches` that agree in batch sizes and device.
    temperatures : sequence of float
        Temperature of each epoch; their number is the number of epochs.
    learning_rates : list of float
        Learning rate of each epoch, read as it begins.
    weight_decay : float, default=0.0
        Non-negative.
    label_smoothing : float, default=0.0
        In [0, 1].
    max_grad_norm : float, default=None
        Positive. Longer gradients are scaled down to this norm; None leaves them.
    valid : iterable, default=None
        Rows to validate on, for `on_epoch_end`.
    forward_params : dict, default=None
        Further arguments of the module's forward pass.
    on_epoch_begin, on_epoch_end : callable, default=None
        Called with the member before and after each epoch. Where the latter returns
        True, or raises an error, its training ends.

    Attributes
    ----------
    history : list of dict
        One record an epoch finished: its number, loss, learning rate and temperature.
    error : Exception or None
        Why training ended early, such as a loss that was not finite. The weights are
        then those of the last finished epoch.
    is_interrupted : bool
        Whether Ctrl-C ended training after a finished epoch.
    is_stopped : bool
        Whether `on_epoch_end` ended training.

    Examples
    --------
    >>> import numpy as np
    >>> from sksoftrank.modules import MLP
    >>> from sksoftrank.training import InMemoryBatches, InMemoryDataset, Member
    >>> data = InMemoryDataset(np.zeros((6, 4)), np.array([0, 1, 0, 1, 0, 1]))
    >>> member = Member(MLP(4, 2), InMemoryBatches(data, 2), [1.0] * 3, [1e-3] * 3)
    >>> member.n_epochs
    3
    """

    module: nn.Module
    batches: Any
    temperatures: Sequence[float]
    learning_rates: list[float]
    weight_decay: float = 0.0
    label_smoothing: float = 0.0
    max_grad_norm: float | None = None
    valid: Any = None
    forward_params: dict[str, Any] | None = None
    on_epoch_begin: Callable[[Member], object] | None = None
    on_epoch_end: Callable[[Member], object] | None = None
    history: list[dict[str, float]] = field(default_factory=list, init=False)
    error: Exception | None = field(default=None, init=False)
    is_interrupted: bool = field(default=False, init=False)
    is_stopped: bool = field(default=False, init=False)

    @property
    def n_epochs(self) -> int:
        """Number of epochs to train."""
        return len(self.temperatures)
