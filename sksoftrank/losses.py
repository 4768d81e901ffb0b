"""Temperature cross-entropy, the matching softmax, and temperature schedules."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from numbers import Real

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = [
    "ConstantTemperature",
    "CosineTemperature",
    "ExponentialTemperature",
    "LinearTemperature",
    "TemperatureCrossEntropyLoss",
    "TemperatureSchedule",
    "as_schedule",
    "temperature_cross_entropy",
    "temperature_softmax",
]


def check_temperature(temperature: object, name: str = "temperature") -> float:
    """Return `temperature` as a float, or say why it can't be one."""
    value = math.nan
    if isinstance(temperature, Real) and not isinstance(temperature, bool):
        try:
            value = float(temperature)
        except OverflowError:  # An int or a fraction beyond the largest float.
            value = math.inf
    if 0.0 < value < math.inf:
        return value
    raise ValueError(
        f"{name} must be a positive, finite number or a schedule from "
        f"sksoftrank.losses, got {temperature!r}. Use 1.0 for the ordinary softmax, "
        "more for embeddings of lower rank."
    )


def temperature_softmax(logits: Tensor, temperature: float = 1.0) -> Tensor:
    """Return the probabilities of the classes, ``softmax(logits / temperature)``.

    Parameters
    ----------
    logits : Tensor of shape (..., n_classes)
        Scores of the classes, before the softmax.
    temperature : float, default=1.0
        Positive. The temperature the network was trained at.

    Returns
    -------
    Tensor of shape (..., n_classes)
        Probabilities in [0, 1] that sum to one over the last axis.

    Raises
    ------
    ValueError
        If `temperature` is not a positive, finite number.

    Examples
    --------
    >>> import torch
    >>> from sksoftrank.losses import temperature_softmax
    >>> temperature_softmax(torch.tensor([0.0, 2.0]), temperature=2.0)
    tensor([0.2689, 0.7311])
    """
    return torch.softmax(logits / check_temperature(temperature), dim=-1)


def temperature_cross_entropy(
    logits: Tensor,
    target: Tensor,
    temperature: float = 1.0,
    *,
    weight: Tensor | None = None,
    sample_weight: Tensor | None = None,
    label_smoothing: float = 0.0,
    reduction: str = "mean",
) -> Tensor:
    """Cross-entropy of ``softmax(logits / temperature)`` with the target.

    Parameters
    ----------
    logits : Tensor of shape (n, n_classes)
        Scores of the classes, before the softmax.
    target : Tensor of shape (n,), dtype int64
        Class codes in ``0..n_classes - 1``.
    temperature : float, default=1.0
        Positive. Divides the logits, here only: the logits themselves stay as they
        are.
    weight : Tensor of shape (n_classes,), default=None
        Class weights, as in :func:`torch.nn.functional.cross_entropy`.
    sample_weight : Tensor of shape (n,), default=None
        Weight of each row, non-negative.
    label_smoothing : float, default=0.0
        In [0, 1]. Share of the target spread evenly over the classes.
    reduction : {"mean", "sum", "none"}, default="mean"
        Without `sample_weight` as in torch, where "mean" divides by the class weights
        of the batch. With `sample_weight`, "mean" divides the weighted losses by
        ``n``: weights whose mean over the data is one then give gradients that are
        unbiased over batches.

    Returns
    -------
    Tensor of shape () or (n,)
        Loss in nats, non-negative; lower is better.

    Raises
    ------
    ValueError
        If `temperature` is not a positive, finite number.

    References
    ----------
    Masarczyk et al. (2025), arXiv:2506.01562.

    Examples
    --------
    >>> import torch
    >>> from sksoftrank.losses import temperature_cross_entropy
    >>> logits, target = torch.zeros(3, 4), torch.tensor([0, 1, 2])
    >>> temperature_cross_entropy(logits, target, temperature=10.0)  # log(4)
    tensor(1.3863)
    """
    check_temperature(temperature)
    return _cross_entropy(
        logits, target, temperature, weight, sample_weight, label_smoothing, reduction
    )


def _cross_entropy(
    logits: Tensor,
    target: Tensor,
    temperature: float,
    weight: Tensor | None,
    sample_weight: Tensor | None,
    label_smoothing: float,
    reduction: str,
) -> Tensor:
    """Return the loss; torch.compile would trip over a check of the temperature."""
    scaled = logits / temperature
    if sample_weight is None:
        return F.cross_entropy(
            scaled,
            target,
            weight=weight,
            label_smoothing=label_smoothing,
            reduction=reduction,
        )
    loss = sample_weight * F.cross_entropy(
        scaled,
        target,
        weight=weight,
        label_smoothing=label_smoothing,
        reduction="none",
    )
    if reduction == "none":
        return loss
    if reduction == "sum":
        return loss.sum()
    if reduction == "mean":
        return loss.mean()
    raise ValueError(
        f"reduction must be 'mean', 'sum' or 'none', got {reduction!r}. "
        "Use 'mean' for training."
    )


class TemperatureCrossEntropyLoss(nn.Module):
    """Cross-entropy of ``softmax(logits / temperature)`` as a module.

    Parameters
    ----------
    temperature : float, default=1.0
        Positive. May be changed between steps through the attribute of that name.
    weight : Tensor of shape (n_classes,), default=None
        Class weights.
    label_smoothing : float, default=0.0
        In [0, 1].
    reduction : {"mean", "sum", "none"}, default="mean"
        See :func:`temperature_cross_entropy`.

    Raises
    ------
    ValueError
        If `temperature` is not a positive, finite number.

    Examples
    --------
    >>> import torch
    >>> from sksoftrank.losses import TemperatureCrossEntropyLoss
    >>> criterion = TemperatureCrossEntropyLoss(temperature=10.0)
    >>> criterion(torch.tensor([[30.0, 0.0]]), torch.tensor([1]))
    tensor(3.0486)
    """

    weight: Tensor | None

    def __init__(
        self,
        temperature: float = 1.0,
        *,
        weight: Tensor | None = None,
        label_smoothing: float = 0.0,
        reduction: str = "mean",
    ) -> None:
        super().__init__()
        self.temperature = check_temperature(temperature)
        self.register_buffer("weight", weight)
        self.label_smoothing = label_smoothing
        self.reduction = reduction

    def forward(
        self, logits: Tensor, target: Tensor, sample_weight: Tensor | None = None
    ) -> Tensor:
        """Return the loss of `logits` (n, n_classes) at `target` (n,)."""
        return _cross_entropy(
            logits,
            target,
            self.temperature,
            self.weight,
            sample_weight,
            self.label_smoothing,
            self.reduction,
        )

    def extra_repr(self) -> str:
        """Show the temperature where torch prints the module."""
        return f"temperature={self.temperature:g}"


@dataclass(frozen=True)
class TemperatureSchedule(ABC):
    """Temperature as a function of training's progress, from `start` to `stop`.

    Parameters
    ----------
    start : float
        Temperature of the first epoch; positive.
    stop : float
        Temperature of the last epoch; positive.

    Raises
    ------
    ValueError
        If either is not a positive, finite number.
    """

    start: float
    stop: float

    def __post_init__(self) -> None:
        check_temperature(self.start, "start")
        check_temperature(self.stop, "stop")

    @abstractmethod
    def __call__(self, progress: float) -> float:
        """Return the temperature at `progress`, which runs from 0 to 1."""

    def values(self, n_epochs: int) -> list[float]:
        """Return the temperature of each of `n_epochs` epochs."""
        last = max(n_epochs - 1, 1)
        return [self(epoch / last) for epoch in range(n_epochs)]


class LinearTemperature(TemperatureSchedule):
    """Temperature that moves by the same amount every epoch.

    Parameters
    ----------
    start : float
        Temperature of the first epoch; positive.
    stop : float
        Temperature of the last epoch; positive.

    Examples
    --------
    >>> from sksoftrank.losses import LinearTemperature
    >>> LinearTemperature(1.0, 9.0).values(5)
    [1.0, 3.0, 5.0, 7.0, 9.0]
    """

    def __call__(self, progress: float) -> float:
        """Return the temperature at `progress`, which runs from 0 to 1."""
        return self.start + (self.stop - self.start) * progress


class CosineTemperature(TemperatureSchedule):
    """Temperature that moves along half a cosine: slowly at both ends.

    Parameters
    ----------
    start : float
        Temperature of the first epoch; positive.
    stop : float
        Temperature of the last epoch; positive.

    Examples
    --------
    >>> from sksoftrank.losses import CosineTemperature
    >>> [round(value, 2) for value in CosineTemperature(1.0, 9.0).values(5)]
    [1.0, 2.17, 5.0, 7.83, 9.0]
    """

    def __call__(self, progress: float) -> float:
        """Return the temperature at `progress`, which runs from 0 to 1."""
        share = (1.0 - math.cos(math.pi * progress)) / 2.0
        return self.start + (self.stop - self.start) * share


class ExponentialTemperature(TemperatureSchedule):
    """Temperature that changes by the same factor every epoch.

    Parameters
    ----------
    start : float
        Temperature of the first epoch; positive.
    stop : float
        Temperature of the last epoch; positive.

    Examples
    --------
    >>> from sksoftrank.losses import ExponentialTemperature
    >>> [round(value, 6) for value in ExponentialTemperature(1.0, 100.0).values(3)]
    [1.0, 10.0, 100.0]
    """

    def __call__(self, progress: float) -> float:
        """Return the temperature at `progress`, which runs from 0 to 1."""
        return float(self.start * (self.stop / self.start) ** progress)


class ConstantTemperature(TemperatureSchedule):
    """The same temperature throughout: what a plain number stands for.

    Parameters
    ----------
    temperature : float
        Positive.

    Examples
    --------
    >>> from sksoftrank.losses import ConstantTemperature
    >>> ConstantTemperature(3.0).values(2)
    [3.0, 3.0]
    """

    def __init__(self, temperature: float) -> None:
        value = check_temperature(temperature)
        super().__init__(value, value)

    def __call__(self, progress: float) -> float:
        """Return the temperature at `progress`, which runs from 0 to 1."""
        return self.start

    def __repr__(self) -> str:
        return f"ConstantTemperature({self.start!r})"


def as_schedule(temperature: float | TemperatureSchedule) -> TemperatureSchedule:
    """Return `temperature` as a schedule; a number stands for a constant one.

    Parameters
    ----------
    temperature : float or TemperatureSchedule
        Positive, finite number, or a schedule.

    Returns
    -------
    TemperatureSchedule
        The schedule, called with training's progress from 0 to 1.

    Raises
    ------
    ValueError
        If `temperature` is neither.

    Examples
    --------
    >>> from sksoftrank.losses import as_schedule
    >>> as_schedule(10)
    ConstantTemperature(10.0)
    """
    if isinstance(temperature, TemperatureSchedule):
        return temperature
    return ConstantTemperature(temperature)
