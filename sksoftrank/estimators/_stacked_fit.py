"""Fit many estimators at once: prepare each, train in stacks, complete each."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from skorch.callbacks import Callback

from sksoftrank.estimators._base import BaseSoftRankClassifier, Training
from sksoftrank.modules._layers import torch_defaults
from sksoftrank.training import Member, SoftRankNet, StopFlag, train_stack
from sksoftrank.training._precision import matmul_precision
from sksoftrank.training._stacked import stack_key


@dataclass
class Fit:
    """A call ``estimator.fit(X, y, **params)``, and the error it ended with.

    `on_epoch` is called after each epoch with its number; the estimator then predicts
    with the weights it has got so far. What returns True ends the training, and leaves
    the estimator without a basis for `transform`.
    """

    estimator: BaseSoftRankClassifier
    X: Any
    y: Any
    params: dict[str, Any] = field(default_factory=dict)
    error: Exception | None = None
    on_epoch: Callable[[int], bool] | None = None


def fits_by_parts(estimator: Any) -> bool:
    """Return whether an estimator's `fit` is ours, and not one of a subclass's own."""
    return (
        isinstance(estimator, BaseSoftRankClassifier)
        and type(estimator).fit is BaseSoftRankClassifier.fit
    )


@torch_defaults()
def fit_stacked(
    fits: Sequence[Fit],
    *,
    compress: bool = True,
    stop: StopFlag | None = None,
    validated: dict[Any, Any] | None = None,
) -> None:
    """Fit estimators together, each as its own `fit` would.

    Those whose networks have one shape train as a stack; what can't be stacked is
    trained by itself.

    Parameters
    ----------
    fits : sequence of Fit
        Estimators of one's own, e.g. clones; each is fitted, or has its `error` set.
    compress : bool, default=True
        Whether to find the basis of `transform`; without it an estimator only predicts.
    stop : StopFlag, default=None
        Once set, training ends.
    validated : dict, default=None
        What rows are made of, for calls that share them.

    Raises
    ------
    KeyboardInterrupt
        If Ctrl-C or `stop` ended the training.
    """
    stacks: dict[Hashable, list[tuple[Fit, Training]]] = {}
    validated = {} if validated is None else validated
    for fit in fits:
        if stop is not None and stop.is_set:
            raise KeyboardInterrupt
        estimator = fit.estimator
        try:
            if not fits_by_parts(estimator):
                estimator.fit(fit.X, fit.y, **fit.params)
                continue
            estimator._validate_params()
            training = estimator._prepare(
                fit.X, fit.y, **fit.params, validated=validated
            )
            if training.member is None:
                try:
                    with _followed(fit, training.net):
                        estimator._train(training)
                except _StoppedError:
                    continue
                if training.net.was_interrupted_:
                    raise KeyboardInterrupt
                estimator._complete(training, compress=compress)
                continue
            if fit.on_epoch is not None:
                _follow(fit, training)
        except Exception as error:
            fit.error = error
            continue
        key = (
            estimator.optimizer,
            estimator.precision,
            *stack_key(training.member),
        )
        stacks.setdefault(key, []).append((fit, training))
    for stack in stacks.values():
        members = [training.member for _, training in stack if training.member]
        try:
            first = stack[0][0].estimator
            with matmul_precision(first.precision, members[0].batches.device):
                train_stack(members, *first._optimizer(), stop=stop)
        except Exception as error:  # E.g. the device's memory is exhausted.
            for fit, _ in stack:
                fit.error = error
            continue
        if any(member.is_interrupted for member in members):
            raise KeyboardInterrupt
        for fit, training in stack:
            if training.member is not None and training.member.is_stopped:
                continue
            try:
                fit.estimator._complete(training, compress=compress)
            except Exception as error:
                fit.error = error


class _StoppedError(Exception):
    """Ends a training of skorch's, which takes Ctrl-C for an end by its callbacks."""


class _Follow(Callback):
    """Lets a fit's `on_epoch` be called as its net trains."""

    def __init__(self, fit: Fit) -> None:
        self.fit = fit

    def on_epoch_end(self, net: Any, **kwargs: Any) -> None:
        """Call it with the epoch's number."""
        estimator = self.fit.estimator
        net.module_.eval()  # It is set to train at each step.
        estimator.net_, estimator.temperature_ = net, net.temperature_
        if self.fit.on_epoch and self.fit.on_epoch(net.n_epochs_finished_):
            raise _StoppedError


@contextmanager
def _followed(fit: Fit, net: SoftRankNet) -> Iterator[None]:
    if fit.on_epoch is None:
        yield
        return
    follow = ("on_epoch", _Follow(fit))
    net.callbacks_.append(follow)
    try:
        yield
    finally:
        net.callbacks_.remove(follow)


def _follow(fit: Fit, training: Training) -> None:
    """Let a fit's `on_epoch` be called as its member trains."""
    member, estimator, on_epoch = training.member, fit.estimator, fit.on_epoch
    assert member is not None
    assert on_epoch is not None
    record = member.on_epoch

    def after(member: Member) -> bool:
        if record is not None:
            record(member)
        epoch = len(member.history)
        # Or dropout and batch normalisation would draw from the rows that are scored.
        member.module.eval()
        estimator.net_ = training.net
        estimator.temperature_ = member.temperatures[epoch - 1]
        return on_epoch(epoch)

    member.on_epoch = after
