"""What a stack's steps need of the labels and of each network's settings."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import zip_longest
from typing import Any

import torch
from torch import Tensor

from sksoftrank.modules._layers import DTYPE, InputScale
from sksoftrank.training._member import Member

LR_SCALES = (1.0, InputScale.lr_scale)


class EpochSettings:
    """What an epoch's steps need of each member: numbers, and tensors (K, 1, 1).

    The tensors are made once and filled anew for each epoch.

    Parameters
    ----------
    fixed : bool
        Whether learning rates are tensors, too. A graph keeps the numbers that it was
        captured with; on the CPU torch's kernels take only numbers, and round less.
    """

    def __init__(
        self,
        members: Sequence[Member],
        device: torch.device,
        n_classes: int,
        fixed: bool,
    ) -> None:
        def column(values: list[Any], dtype: torch.dtype = DTYPE) -> Tensor:
            return torch.tensor(values, dtype=dtype, device=device).view(-1, 1, 1)

        self.members = members
        self.weight_decays = [m.weight_decay for m in members]
        self._fixed = fixed
        # Of each member, by the multiple that is asked for.
        self.learning_rates: list[dict[float, Any]] = [
            {scale: torch.zeros((), dtype=DTYPE, device=device) for scale in LR_SCALES}
            for _ in members
        ]
        # Dividing by one changes nothing, but takes time.
        tempered = any(t != 1.0 for m in members for t in m.temperatures)
        self.temperature = column([1.0] * len(members)) if tempered else None
        weighted = [m.batches.is_weighted for m in members]
        self.is_weighted = column(weighted, torch.bool) if any(weighted) else None
        # Share of the loss that is the target's, and of each class's.
        smoothing = [m.label_smoothing for m in members]
        self.keep = column([1.0 - eps for eps in smoothing])
        self.spread = (
            column([eps / n_classes for eps in smoothing]) if any(smoothing) else None
        )
        norms = [
            math.inf if m.max_grad_norm is None else m.max_grad_norm for m in members
        ]
        self.max_grad_norms = norms if min(norms) < math.inf else None

    def load(self, epoch: int) -> None:
        """Take the temperatures and learning rates of an epoch, counted from one."""
        for member, rates in zip(self.members, self.learning_rates, strict=True):
            rate = member.learning_rates[epoch - 1]
            for scale in LR_SCALES:
                if self._fixed:
                    rates[scale].fill_(rate * scale)
                else:
                    rates[scale] = rate * scale
        if self.temperature is not None:
            temperatures = [m.temperatures[epoch - 1] for m in self.members]
            self.temperature.copy_(
                torch.tensor(temperatures, dtype=DTYPE).view(-1, 1, 1)
            )


class BlockLoss:
    """Labels and weights of a block of batches, and what they make of the logits.

    Attributes
    ----------
    sizes : list of list of int
        Rows of each member (K) at each step; those without any are the last.
    batch_size : int
        Rows from one step's first to the next one's.
    targets : Tensor of shape (steps, K, size of the largest batch, n_classes)
        Gradient of each step's mean loss by the log-probabilities, which depends on
        the labels and weights alone.
    log_p : Tensor of the same shape
        Log-probabilities, which the steps fill in.
    """

    def __init__(
        self,
        sizes: list[list[int]],
        like: Tensor,
        n_classes: int,
        settings: EpochSettings,
    ) -> None:
        n_steps, k = max(map(len, sizes)), len(sizes)
        self.sizes = [list(at_step) for at_step in zip_longest(*sizes, fillvalue=0)]
        self.batch_size = sizes[0][0]
        # A last batch may be larger: what would be too small a batch joins it.
        largest = max(map(max, sizes))
        n_at = torch.tensor(self.sizes, device=like.device)[..., None, None]
        self.n = n_at.clamp_min(1).to(DTYPE)
        self.is_padding = torch.arange(largest, device=like.device)[:, None] >= n_at
        self.is_full = all(size == largest for own in self.sizes for size in own)
        n_rows = (n_steps - 1) * self.batch_size + largest
        self._labels = torch.zeros(k, n_rows, dtype=torch.int64, device=like.device)
        self._weights: Tensor | None = None
        self.is_weighted: Tensor | None = None
        if settings.is_weighted is not None:
            self._weights = like.new_zeros(self._labels.shape)
            self.is_weighted = settings.is_weighted[:k]
        self.keep = settings.keep[:k]
        self.spread = None if settings.spread is None else settings.spread[:k]

        def by_step(rows: Tensor) -> Tensor:
            return rows.unfold(1, largest, self.batch_size)[..., None].transpose(0, 1)

        # (steps, K, size of the largest batch, 1)
        self.y = by_step(self._labels)
        self.weight = None if self._weights is None else by_step(self._weights)
        shape = (n_steps, k, largest)
        self.targets = like.new_zeros(*shape, n_classes)
        self.log_p = like.new_zeros(*shape, n_classes)
        self.losses = like.new_zeros(*shape, 1)

    def load(self, gathered: list[tuple[Tensor, Tensor, Tensor | None]]) -> None:
        """Take the labels and weights of each member."""
        for row, (_, y, _) in zip(self._labels, gathered, strict=True):
            row[: len(y)].copy_(y)
        if self._weights is not None:
            for row, (_, y, w) in zip(self._weights, gathered, strict=True):
                if w is None:
                    row[: len(y)].fill_(1.0)
                else:
                    row[: len(y)].copy_(w)

    def compute_targets(self) -> None:
        """Compute the targets of all steps."""
        # Roundings as autograd makes them: without weights, the factors of the loss
        # over the rows' number; with them, their product with a row's share.
        on_target = self.keep / self.n
        if self.weight is not None and self.is_weighted is not None:
            share = self.weight * (1.0 / self.n)
            on_target = torch.where(self.is_weighted, share * self.keep, on_target)
        self.targets.zero_()
        if self.spread is not None:
            everywhere = self.spread / self.n
            if self.weight is not None and self.is_weighted is not None:
                everywhere = torch.where(
                    self.is_weighted, share * self.spread, everywhere
                )
            self.targets.sub_(everywhere)
        self.targets.scatter_add_(3, self.y, -on_target.expand_as(self.y))

    def compute_losses(self) -> None:
        """Compute the rows' losses from the log-probabilities, less their sign."""
        torch.gather(self.log_p, 3, self.y, out=self.losses)
        if self.spread is not None:
            self.losses *= self.keep
            self.losses += self.spread * self.log_p.sum(3, keepdim=True)
        if self.weight is not None:
            self.losses *= self.weight
        if not self.is_full:
            self.losses.masked_fill_(self.is_padding, 0.0)

    def sums(self) -> Tensor:
        """Return the sum of the rows' losses at each step, (steps, K), in double."""
        losses = self.losses
        if losses.device.type == "mps":  # It has no double precision.
            losses = losses.cpu()
        return -losses.sum(dim=(2, 3), dtype=torch.float64)
