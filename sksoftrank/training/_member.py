"""A network to be trained, with everything that is its own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from sksoftrank.modules import MLP
from sksoftrank.training._batches import InMemoryBatches
from sksoftrank.training._stopping import BestEpoch


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
    """One network of a stack, with everything that is its own.

    Parameters
    ----------
    module : MLP
        The network; trained in place. Members of a stack agree in all shapes, the
        activation and the normalisation.
    batches : InMemoryBatches
        The rows, labels and weights to train on. Members of a stack agree in batch
        sizes and device.
    temperatures : sequence of float
        Temperature of each epoch; their number is the number of epochs.
    learning_rates : sequence of float
        Learning rate of each epoch.
    weight_decay : float, default=0.0
        Non-negative.
    label_smoothing : float, default=0.0
        In [0, 1].
    max_grad_norm : float, default=None
        Positive. Longer gradients are scaled down to this norm; None leaves them.
    valid : InMemoryBatches, default=None
        Rows to validate on after each epoch.
    stopping : BestEpoch, default=None
        When to stop by the validation; the weights of the best epoch are restored.
    on_epoch : callable, default=None
        Called with the member after each epoch; what returns True ends its training.

    Attributes
    ----------
    history : list of dict
        One record an epoch finished, as in ``SoftRankMLPClassifier.history_``.
    error : FloatingPointError or None
        Why training ended early: the loss was not finite. The weights are then those
        of the last finished epoch.
    is_interrupted : bool
        Whether Ctrl-C ended training after a finished epoch.
    is_stopped : bool
        Whether `on_epoch` ended training.

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

    module: MLP
    batches: InMemoryBatches
    temperatures: Sequence[float]
    learning_rates: Sequence[float]
    weight_decay: float = 0.0
    label_smoothing: float = 0.0
    max_grad_norm: float | None = None
    valid: InMemoryBatches | None = None
    stopping: BestEpoch | None = None
    on_epoch: Callable[[Member], object] | None = None
    history: list[dict[str, float]] = field(default_factory=list, init=False)
    error: FloatingPointError | None = field(default=None, init=False)
    is_interrupted: bool = field(default=False, init=False)
    is_stopped: bool = field(default=False, init=False)

    @property
    def n_epochs(self) -> int:
        """Number of epochs to train."""
        return len(self.temperatures)

    @property
    def kept_epoch(self) -> int:
        """The epoch, counted from one, whose weights the module has."""
        return self.stopping.epoch if self.stopping else len(self.history)
