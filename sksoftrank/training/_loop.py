"""The loop over epochs, the same for every way to make a step."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from functools import partial
from typing import Any, Protocol

from sksoftrank.training._member import Member
from sksoftrank.training._stopping import divergence


class Steps(Protocol):
    """A way to train the networks of members: by autograd, or as a stack.

    `members` are those still in training; other methods name them by their place.
    """

    members: list[Member]

    def threads(self) -> AbstractContextManager[None]:
        """Return the context that holds as many threads as the steps can use."""

    def train_epoch(self, epoch: int) -> tuple[list[float], dict[int, Exception]]:
        """Train each for an epoch; return mean losses, and the errors of some."""

    def is_finite(self, k: int) -> bool:
        """Return whether the network's logits are finite numbers."""

    def keep(self, k: int) -> None:
        """Take note of the weights as those to return to."""

    def drop(self, places: Sequence[int]) -> None:
        """Take members out, with the weights last kept."""

    def optimizer_state(self, k: int) -> dict[str, Any]:
        """Return what the optimizer knows of a member, as it is in memory."""

    def load_optimizer_state(self, k: int, state: dict[str, Any]) -> None:
        """Let the optimizer go on from what `optimizer_state` returned."""


class RecordError(ValueError):
    """The error of what can't be gone on from: no member's own, but that of all."""


class Record(Protocol):
    """What members go on from, and are written to after each epoch."""

    def restore(
        self, member: Member, load_optimizer: Callable[[dict[str, Any]], object]
    ) -> bool:
        """Give a member, and its optimizer, all that they had; return if that is so."""

    def write(self, steps: Steps) -> None:
        """Take note of what the members have come to."""


def train(steps: Steps, checkpoint: Record | None = None) -> None:
    """Train the members of `steps` to their ends, each as it would be alone.

    Their modules, histories and errors are filled in. Where they have been written to
    a checkpoint before, they go on from there.

    Raises
    ------
    KeyboardInterrupt
        If Ctrl-C came before every member had finished an epoch. Later, the members
        keep their last finished epoch and are marked.
    """
    try:
        with steps.threads():
            _run(steps, checkpoint)
    except KeyboardInterrupt:
        if not steps.members or not all(member.history for member in steps.members):
            raise
        for member in steps.members:
            member.is_interrupted = True
    finally:
        steps.drop(range(len(steps.members)))


def _run(steps: Steps, checkpoint: Record | None) -> None:
    if checkpoint is not None:
        for k, member in enumerate(steps.members):
            if checkpoint.restore(member, partial(steps.load_optimizer_state, k)):
                steps.keep(k)
    steps.drop([k for k, member in enumerate(steps.members) if member.is_finished])
    epoch = max((len(member.history) for member in steps.members), default=0)
    while steps.members:
        epoch += 1
        for member in steps.members:
            if member.on_epoch_begin is not None:
                member.on_epoch_begin(member)
        losses, errors = steps.train_epoch(epoch)
        for k, member in enumerate(steps.members):
            is_last = epoch == member.n_epochs
            member.error = errors.get(k)
            # No loss of training sees what the last step has done.
            if member.error is None and is_last and not steps.is_finite(k):
                member.error = divergence(
                    math.nan,
                    f"the last step of epoch {epoch}",
                    member.temperatures[epoch - 1],
                    member.learning_rates[epoch - 1],
                )
            if member.error is None:
                member.history.append(
                    {
                        "epoch": epoch,
                        "train_loss": losses[k],
                        "lr": member.learning_rates[epoch - 1],
                        "temperature": member.temperatures[epoch - 1],
                    }
                )
                steps.keep(k)
                _tell(member)
        if checkpoint is not None:
            checkpoint.write(steps)
        steps.drop([k for k, member in enumerate(steps.members) if member.is_finished])


def _tell(member: Member) -> None:
    """Let a member's hook know of an epoch; an error of its is the member's own."""
    if member.on_epoch_end is None:
        return
    try:
        member.is_stopped = member.on_epoch_end(member) is True
    except Exception as error:
        member.error = error
