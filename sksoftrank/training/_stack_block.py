"""The steps of a stack over the rows of a block of batches."""

from __future__ import annotations

from itertools import groupby

from torch import Tensor

from sksoftrank.training._stack import Propagation, Stack, empty_rows, stack_rows
from sksoftrank.training._stack_loss import BlockLoss, EpochSettings
from sksoftrank.training._stack_optimizer import FusedOptimizer

Gathered = list[tuple[Tensor, Tensor, Tensor | None]]


class Block:
    """What a stack does with rows that make batches of `sizes`, its members' own.

    By decreasing number of rows. Batches are of one size, but for each member's last.
    `load` takes the rows, `run` steps through them. Where the rows are copied into
    memory of the block's own, `run` is the same kernels on the same memory each time.
    """

    def __init__(
        self,
        stack: Stack,
        optimizer: FusedOptimizer,
        settings: EpochSettings,
        propagations: dict[tuple[int, int, int], Propagation],
        sizes: list[list[int]],
        like: Tensor,
        fixed: bool,
    ) -> None:
        self.optimizer = optimizer
        self.settings = settings
        self.loss = BlockLoss(sizes, like, stack.n_classes, settings)
        self.as_input = stack.linear.as_input
        self.x = like[None]
        self._own = empty_rows(len(sizes), like) if fixed else None
        # In a last batch sizes may differ: those of one size step together.
        self.steps: list[list[tuple[Propagation, slice, slice, Tensor, Tensor]]] = []
        for step, at_step in enumerate(self.loss.sizes):
            start = step * self.loss.batch_size
            first, here = 0, []
            for size, group in groupby(at_step):
                if size == 0:
                    break
                last = first + len(list(group))
                key = (first, last, size)
                if key not in propagations:
                    propagations[key] = Propagation(stack, settings, *key)
                here.append(
                    (
                        propagations[key],
                        slice(first, last),
                        slice(start, start + size),
                        self.loss.targets[step, first:last, :size],
                        self.loss.log_p[step, first:last, :size],
                    )
                )
                first = last
            self.steps.append(here)

    def load(self, gathered: Gathered) -> None:
        """Take the rows, labels and weights of each member."""
        self.x = stack_rows([x for x, _, _ in gathered], self._own)
        self.loss.load(gathered)

    def run(self) -> None:
        """Step through the rows."""
        # What the loss needs of the labels alone is computed for all steps at once.
        self.loss.compute_targets()
        x = self.as_input(self.x)
        for here in self.steps:
            for propagation, members, rows, target, log_p in here:
                propagation.run(x[members, rows], target, log_p)
                self.optimizer.step(members, self.settings)
        self.loss.compute_losses()
