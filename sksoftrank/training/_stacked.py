"""Many networks of one shape trained at once, one included.

A small network's training step is mostly overhead: autograd records and replays a
graph, the optimizer walks over its tensors. Here forward and backward of the MLP are
written out, K networks lie in tensors with a leading model axis, and one call
serves them all. Every network keeps rows, order, temperature, learning rate and all
else of its own, and ends to the last bit where it would have ended alone: whatever is
computed for several at once is computed for each by the same formula.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from contextlib import AbstractContextManager, nullcontext
from itertools import pairwise
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from sksoftrank.modules import MLP
from sksoftrank.training._batches import BLOCK_BATCHES, InMemoryBatches
from sksoftrank.training._cuda_graph import Graphs, recorder_for
from sksoftrank.training._member import Member, StopFlag
from sksoftrank.training._stack import Propagation, Stack, linear_layers
from sksoftrank.training._stack_block import Block, Gathered
from sksoftrank.training._stack_linear import NumpyLinear, TorchLinear
from sksoftrank.training._stack_loss import EpochSettings
from sksoftrank.training._stack_optimizer import FusedOptimizer, check_optimizer
from sksoftrank.training._stopping import divergence
from sksoftrank.training._threads import threads_for

# What the networks of a stack touch in a step stays near a core's caches. Measured
# at widths 16 to 256: from 4 to 6 MB a step's time per network is least.
_STACK_BYTES = 5 << 20


def network_bytes(widths: Sequence[int], batch_size: int) -> int:
    """Return the bytes that a training step of one network touches.

    `widths` are those of all layers, input and output included.
    """
    n_weights = sum((a + 1) * b for a, b in pairwise(widths))
    # Weights, gradients and two states of the optimizer; outputs and their gradients.
    return 4 * (4 * n_weights + 2 * batch_size * sum(widths))


def training_seconds(widths: Sequence[int], batch_size: int, n_steps: int) -> float:
    """Return about how long a core takes to train a network so many steps."""
    n_weights = sum(a * b for a, b in pairwise(widths))
    return n_steps * (2e-5 + 6 * n_weights * batch_size / 1e11)


def stack_bytes(widths: Sequence[int], batch_size: int, n_networks: int) -> int:
    """Return the bytes that training a stack takes, beside the data it is cut from."""
    n_weights = sum((a + 1) * b for a, b in pairwise(widths))
    # Rows and labels of a block as they are gathered and stacked, and for each class
    # the loss's gradient and the log-probabilities.
    block = BLOCK_BATCHES * batch_size * (2 * widths[0] + 4 + 2 * widths[-1])
    # The weights to return to, each module's own before and after, and a copy in
    # double precision when it is scored.
    kept = 5 * n_weights
    return n_networks * (network_bytes(widths, batch_size) + 4 * (block + kept))


def stack_size(
    widths: Sequence[int],
    batch_size: int,
    n_networks: int,
    n_workers: int,
    device: torch.device,
) -> int:
    """Return how many networks to train together, the same for each worker.

    As many as stay in reach of a core's caches: more share the overhead no better, and
    wait for memory. On a GPU, as many as half its free memory holds.
    """
    fitting = _STACK_BYTES // network_bytes(widths, batch_size)
    if device.type == "cuda":
        free = torch.cuda.mem_get_info(device)[0] // (2 * n_workers)
        fitting = free // stack_bytes(widths, batch_size, 1)
    fitting = max(fitting, 1)
    n_rounds = math.ceil(n_networks / (fitting * n_workers))
    return math.ceil(n_networks / (n_rounds * n_workers))


def stack_key(member: Member) -> tuple[Hashable, ...]:
    """Return what the members of a stack must agree in."""
    module = cast(MLP, member.module)
    return (
        member.batches.batch_size,
        member.batches.min_batch_size,
        str(member.batches.device),
        module.activation,
        module.normalization,
        *(tuple(parameter.shape) for parameter in module.parameters()),
    )


class StackSteps:
    """Trains members whose networks have one shape, as matrices with a model axis."""

    def __init__(
        self,
        members: Sequence[Member],
        optimizer: type[torch.optim.Optimizer],
        optimizer_params: dict[str, Any],
        stop: StopFlag | None = None,
    ) -> None:
        if not members:
            raise ValueError("members must hold at least one member, got none.")
        if len({stack_key(member) for member in members}) > 1:
            raise ValueError(
                "members must agree in shapes, activation, normalization, batch sizes "
                "and device, got "
                f"{[stack_key(member) for member in members]}. Train each kind by "
                "itself."
            )
        options = check_optimizer(optimizer, optimizer_params)
        loaded: dict[tuple[int, str], tuple[Any, Tensor]] = {}
        for member in members:
            member.batches.load(loaded)
        # Longest first: whoever still has rows at a step is then a range of the stack.
        self.members = sorted(members, key=lambda m: -m.batches.n_rows)
        self.stop = stop
        modules = [cast(MLP, member.module) for member in self.members]
        device = modules[0].output.weight.device
        recorder = recorder_for(device)
        # numpy's products are not torch's, which alone can be recorded.
        in_numpy = device.type == "cpu" and recorder is None
        with torch.no_grad():
            self.stack = Stack(modules, NumpyLinear if in_numpy else TorchLinear)
            self.optimizer = FusedOptimizer(optimizer, options, self.stack)
            # Weights to return to: of the last epoch finished.
            self.kept = self.stack.state.clone()
        self.graphs = (
            None if recorder is None else Graphs(recorder, self.stack.generators)
        )
        # Made once for the members that are left, and each shape that comes up.
        self.settings: EpochSettings | None = None
        self.propagations: dict[tuple[int, int, int], Propagation] = {}
        self.blocks: dict[tuple[int, ...], Block] = {}

    def threads(self) -> AbstractContextManager[None]:
        """Return the context that holds as many threads as the shapes can use."""
        if self.stack.device.type != "cpu":
            return nullcontext()
        layers = linear_layers(self.stack.modules[0])
        return threads_for(max(layer.weight.numel() for layer in layers))

    def is_finite(self, k: int) -> bool:
        """Return whether the logits of some rows are finite."""
        module, batches = self.members[k].module.eval(), self.members[k].batches
        with torch.no_grad():
            x, _, _ = batches.gather(None, slice(0, batches.batch_size))
            return bool(module(x).isfinite().all())

    def keep(self, k: int) -> None:
        """Take note of the weights as those to return to."""
        self.kept[k].copy_(self.stack.state[k])

    def drop(self, places: Sequence[int]) -> None:
        """Take members out, with the weights last kept, in memory of their own."""
        if len(places) == 0:
            return
        for k in places:
            self.stack.release(self.stack.modules[k], self.kept[k])
        rest = [k for k in range(len(self.members)) if k not in set(places)]
        # Together, for an interruption may come between any two lines.
        self.members, self.kept = [self.members[k] for k in rest], self.kept[rest]
        self.stack.select(rest)
        self.optimizer.select(rest)
        self.settings = None
        self.propagations.clear()
        if self.graphs is not None:
            self.graphs.clear()
        self.blocks.clear()

    def optimizer_state(self, k: int) -> dict[str, Any]:
        """Return the steps and means of a network."""
        return {str(i): row for i, row in enumerate(self.optimizer.rows(k))}

    def load_optimizer_state(self, k: int, state: dict[str, Any]) -> None:
        """Let a network go on from such steps and means."""
        for index, row in enumerate(self.optimizer.rows(k)):
            own = state[str(index)]
            if own.shape != row.shape:
                raise ValueError(f"{tuple(own.shape)} in place of {tuple(row.shape)}")
            row.copy_(own)

    # -- One epoch -------------------------------------------------------------------

    def train_epoch(self, epoch: int) -> tuple[list[float], dict[int, Exception]]:
        """Train every member for an epoch; return mean losses, and who diverged."""
        # A product that overflows is a loss that is not finite.
        with torch.no_grad(), np.errstate(all="ignore"):
            return self._train_epoch(epoch)

    def _train_epoch(self, epoch: int) -> tuple[list[float], dict[int, Exception]]:
        members = self.members
        for layers in self.stack.dropouts:
            for dropout in layers:
                dropout.train()
        if self.settings is None:
            self.settings = EpochSettings(
                members,
                self.stack.device,
                self.stack.n_classes,
                fixed=self.graphs is not None,
            )
        self.settings.load(epoch)
        sources = [m.batches for m in members]
        size = sources[0].batch_size
        n_rows = [source.n_rows for source in sources]
        orders = [source.order() for source in sources]
        rows = sources[0].batches_per_block * size
        totals = torch.zeros(len(members), dtype=torch.float64)
        errors: dict[int, Exception] = {
            k: ValueError(
                "callbacks must leave every parameter to be trained, for steps written "
                "out train all, got one that freezes some. Derive it from skorch's "
                "ParamMapper, as Freezer is, or freeze them before training."
            )
            for k, member in enumerate(members)
            if not all(p.requires_grad for p in member.module.parameters())
        }
        unread: list[tuple[int, Tensor]] = []
        for start in range(0, n_rows[0], rows):
            if self.stop is not None and self.stop.is_set:
                raise KeyboardInterrupt
            blocks = [source.block(start) for source in sources]
            gathered = [
                source.gather(order, block)
                for source, order, block in zip(sources, orders, blocks, strict=True)
                if block.start < block.stop
            ]
            if not gathered:
                break
            losses = self._train_block(self.settings, gathered, sources[0])
            unread.append((start // size, losses))
            # To read is to wait for all that the device has yet to do.
            if self.graphs is not None and blocks[0].stop < n_rows[0]:
                continue
            for first, losses in unread:
                self._read(epoch, first, losses.cpu(), totals, errors)
            unread.clear()
            if len(errors) == len(members):
                break
        return (totals / torch.tensor(n_rows)).tolist(), errors

    def _read(
        self,
        epoch: int,
        first: int,
        losses: Tensor,
        totals: Tensor,
        errors: dict[int, Exception],
    ) -> None:
        """Add losses (steps, K) from step `first` on to the totals of an epoch."""
        totals[: losses.shape[1]] += losses.sum(dim=0)
        if losses.isfinite().all():
            return
        for step, k in torch.nonzero(~losses.isfinite()).tolist():
            if k not in errors:
                member = self.members[k]
                errors[k] = divergence(
                    float(losses[step, k]),
                    f"step {first + step + 1} of epoch {epoch}",
                    member.temperatures[epoch - 1],
                    member.learning_rates[epoch - 1],
                )

    def _train_block(
        self, settings: EpochSettings, gathered: Gathered, batches: InMemoryBatches
    ) -> Tensor:
        """Step through rows gathered for each member; return summed losses (steps, K).

        Elsewhere than on the CPU they may be yet to come.
        """
        counts = tuple(len(x) for x, _, _ in gathered)
        if counts not in self.blocks:
            self.blocks[counts] = Block(
                self.stack,
                self.optimizer,
                settings,
                self.propagations,
                [batches.batch_sizes(n) for n in counts],
                # A shorter member's block may be the longer one.
                like=max((x for x, _, _ in gathered), key=len),
                fixed=self.graphs is not None,
            )
        block = self.blocks[counts]
        block.load(gathered)
        if self.graphs is None:
            block.run()
        else:
            self.graphs.run(counts, block.run)
        return block.loss.sums()
