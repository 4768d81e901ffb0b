"""Fit many estimators at once: prepare each, train in stacks, complete each."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any

from sksoftrank.estimators._base import BaseSoftRankClassifier, Training
from sksoftrank.training import StopFlag, train_stack
from sksoftrank.training._precision import matmul_precision
from sksoftrank.training._stacked import stack_key


@dataclass
class Fit:
    """A call ``estimator.fit(X, y, **params)``, and the error it ended with."""

    estimator: BaseSoftRankClassifier
    X: Any
    y: Any
    params: dict[str, Any] = field(default_factory=dict)
    error: Exception | None = None


def fits_by_parts(estimator: Any) -> bool:
    """Return whether an estimator's `fit` is ours, and not one of a subclass's own."""
    return (
        isinstance(estimator, BaseSoftRankClassifier)
        and type(estimator).fit is BaseSoftRankClassifier.fit
    )


def fit_stacked(
    fits: Sequence[Fit], *, compress: bool = True, stop: StopFlag | None = None
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

    Raises
    ------
    KeyboardInterrupt
        If Ctrl-C or `stop` ended the training.
    """
    stacks: dict[Hashable, list[tuple[Fit, Training]]] = {}
    validated: dict[tuple[int, int], Any] = {}
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
                estimator._train(training)
                if training.net.was_interrupted_:
                    raise KeyboardInterrupt
                estimator._complete(training, compress=compress)
                continue
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
            try:
                fit.estimator._complete(training, compress=compress)
            except Exception as error:
                fit.error = error
