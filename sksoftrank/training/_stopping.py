"""How training ends before its last epoch: by validation, divergence or Ctrl-C."""

from __future__ import annotations

import math
from typing import Any

from skorch.callbacks import EarlyStopping

# Accuracies and losses closer than this are equal.
_ROUNDING = 1e-9


def divergence(
    loss: float, where: str, temperature: float, learning_rate: float
) -> FloatingPointError:
    """Return the error for a loss that is not finite."""
    return FloatingPointError(
        f"Training diverged: the loss became {loss} in {where}, at "
        f"temperature={temperature:g} and learning rate {learning_rate:g}. Lower the "
        "learning rate (a tenth is a start), raise a temperature below 1, or scale the "
        "features, e.g. with StandardScaler."
    )


def interruption(n_finished: int, n_epochs: int, kept_epoch: int) -> str:
    """Return the warning for a training that Ctrl-C ended."""
    return (
        f"Training was interrupted after epoch {n_finished} of {n_epochs}; the weights "
        f"of epoch {kept_epoch} are kept."
    )


class BestEpoch:
    """The best epoch so far by validation accuracy; between equals the loss decides.

    Alone the accuracy would go back to the first epoch that reaches 100 % of a small
    validation set. Only a rise of it renews the patience: a loss can go on falling for
    as long as the logits grow.

    Parameters
    ----------
    patience : int
        Epochs without a rise in accuracy before `is_exhausted`.
    threshold : float
        Rise in accuracy, or fall in loss at no lower accuracy, that counts.
    """

    def __init__(self, patience: int, threshold: float) -> None:
        self.patience = patience
        self.threshold = threshold
        self.accuracy, self.loss = -math.inf, math.inf
        self.epoch = 0
        self.misses = 0

    def update(self, epoch: int, accuracy: float, loss: float) -> bool:
        """Take note of an epoch, counted from one; return whether it is the best.

        Losses of different epochs must be of one temperature.
        """
        # Less than the roundings of a mean over rows is no difference.
        threshold = max(self.threshold, _ROUNDING)
        is_higher = accuracy > self.accuracy + threshold
        is_surer = accuracy > self.accuracy - _ROUNDING and loss < self.loss - threshold
        self.misses = 0 if is_higher else self.misses + 1
        if not (is_higher or is_surer):
            return False
        self.accuracy, self.loss, self.epoch = accuracy, loss, epoch
        return True

    @property
    def is_exhausted(self) -> bool:
        """Whether `patience` epochs have passed without a rise in accuracy."""
        return self.misses >= self.patience


class AccuracyStopping(EarlyStopping):
    """Stop on the validation accuracy; between equals the loss decides.

    Parameters
    ----------
    patience : int, default=5
        Epochs without a rise in accuracy before training stops.
    threshold : float, default=1e-4
        Rise in accuracy, or fall in loss at no lower accuracy, that counts.
    load_best : bool, default=False
        Whether to go back to the weights of the best epoch.

    Examples
    --------
    >>> from sksoftrank import SoftRankNet
    >>> from sksoftrank.modules import MLP
    >>> from sksoftrank.training import AccuracyStopping
    >>> net = SoftRankNet(MLP, callbacks=[AccuracyStopping(patience=10)])
    """

    def __init__(
        self, patience: int = 5, threshold: float = 1e-4, load_best: bool = False
    ) -> None:
        super().__init__(
            "valid_acc",
            patience=patience,
            threshold=threshold,
            lower_is_better=False,
            load_best=load_best,
        )

    def on_train_begin(self, net: Any, **kwargs: Any) -> None:
        """Forget the best epoch of an earlier training."""
        super().on_train_begin(net, **kwargs)
        self.best_ = BestEpoch(self.patience, self.threshold)

    def on_epoch_end(self, net: Any, **kwargs: Any) -> None:
        """Compare the epoch with the best one, and stop after too many misses."""
        epoch, accuracy, loss = net.history[-1, ("epoch", "valid_acc", "valid_loss")]
        if self.best_.update(epoch, accuracy, loss):
            self.best_epoch_ = epoch
            if self.load_best:
                # Not by deepcopy: in a stack a tensor's memory is that of all networks.
                state = net.module_.state_dict()
                self.best_model_weights_ = {k: v.clone() for k, v in state.items()}
        self.misses_ = self.best_.misses
        if self.best_.is_exhausted:
            raise KeyboardInterrupt  # How skorch's callbacks stop a training.
