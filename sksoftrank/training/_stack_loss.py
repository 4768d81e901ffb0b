"""What a stack's steps need of the labels and of each network's settings."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from sksoftrank.training._stacked import Member


class EpochSettings:
    """What an epoch's steps need of each member: numbers, and tensors (K, 1, 1)."""

    def __init__(
        self,
        members: Sequence[Member],
        epoch: int,
        device: torch.device,
        n_classes: int,
    ) -> None:
        def column(values: list[Any]) -> Tensor:
            return torch.tensor(values, device=device).view(-1, 1, 1)

        self.learning_rates = [m.learning_rates[epoch - 1] for m in members]
        self.weight_decays = [m.weight_decay for m in members]
        temperatures = [m.temperatures[epoch - 1] for m in members]
        self.temperature = (
            None if all(t == 1.0 for t in temperatures) else column(temperatures)
        )
        weighted = [m.batches.is_weighted for m in members]
        self.is_weighted = column(weighted) if any(weighted) else None
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


class BlockLoss:
    """Labels and weights of a block of batches, and what they make of the logits.

    Attributes
    ----------
    sizes : list of list of int
        Rows of each member (K) at each step; descending within a step.
    targets : Tensor of shape (steps, K, batch_size, n_classes)
        Gradient of each step's mean loss by the log-probabilities, which depends on
        the labels and weights alone.
    log_p : Tensor of the same shape
        Log-probabilities, which the steps fill in.
    """

    def __init__(
        self, counts: tuple[int, ...], batch_size: int, like: Tensor, n_classes: int
    ) -> None:
        n_steps = -(-counts[0] // batch_size)
        self.sizes = [
            [min(max(n - step * batch_size, 0), batch_size) for n in counts]
            for step in range(n_steps)
        ]
        sizes = torch.tensor(self.sizes, device=like.device)[..., None, None]
        self.n = sizes.clamp_min(1).float()
        self.is_row = torch.arange(batch_size, device=like.device)[:, None] < sizes
        self.is_full = counts[-1] == n_steps * batch_size
        shape = (n_steps, len(counts), batch_size)
        self.targets = like.new_zeros(*shape, n_classes)
        self.log_p = like.new_zeros(*shape, n_classes)

    def _spread_out(self, parts: list[Tensor]) -> Tensor:
        """Return tensors (n_k,) as one (steps, K, batch_size, 1)."""
        n_steps, k, size = self.log_p.shape[:3]
        padded = parts[0].new_zeros(k, n_steps * size)
        for row, part in zip(padded, parts, strict=True):
            row[: len(part)] = part
        return padded.view(k, n_steps, size, 1).transpose(0, 1)

    def load(
        self,
        gathered: list[tuple[Tensor, Tensor, Tensor | None]],
        settings: EpochSettings,
    ) -> None:
        """Take the labels and weights of each member."""
        self.y = self._spread_out([y for _, y, _ in gathered])
        # Roundings as autograd makes them: without weights, the factors of the loss
        # over the rows' number; with them, their product with a row's share.
        members = slice(len(gathered))
        self.keep, self.spread = settings.keep[members], settings.spread
        on_target = self.keep / self.n
        self.weight = None
        if settings.is_weighted is not None:
            self.weight = self._spread_out(
                [torch.ones_like(x[:, 0]) if w is None else w for x, _, w in gathered]
            )
            is_weighted = settings.is_weighted[members]
            share = self.weight * (1.0 / self.n)
            on_target = torch.where(is_weighted, share * self.keep, on_target)
        self.targets.zero_()
        if self.spread is not None:
            self.spread = self.spread[members]
            everywhere = self.spread / self.n
            if self.weight is not None:
                everywhere = torch.where(is_weighted, share * self.spread, everywhere)
            self.targets.sub_(everywhere)
        self.targets.scatter_add_(3, self.y, -on_target.expand_as(self.y))

    def sums(self) -> Tensor:
        """Return the sum of the rows' losses at each step, (steps, K), on the CPU."""
        losses = self.log_p.gather(3, self.y)
        if self.spread is not None:
            losses *= self.keep
            losses += self.spread * self.log_p.sum(3, keepdim=True)
        if self.weight is not None:
            losses *= self.weight
        if not self.is_full:
            losses = torch.where(self.is_row, losses, 0.0)
        # Added up on the CPU: not every device has double precision.
        return -losses.cpu().sum(dim=(2, 3), dtype=torch.float64)
