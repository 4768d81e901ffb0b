"""Fit many estimators at once: prepare each, train in stacks, complete each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from joblib import effective_n_jobs
from sklearn.utils.parallel import Parallel, delayed
from skorch.callbacks import Callback

from sksoftrank._sklearn import _validate_params, has_callbacks
from sksoftrank.estimators._base import BaseSoftRankClassifier
from sksoftrank.estimators._training import Training, fit_trainings
from sksoftrank.modules._layers import torch_defaults
from sksoftrank.training import StopFlag


@dataclass
class PendingFit:
    """A call ``estimator.fit(X, y, **params)``, and the error it ended with.

    `on_epoch` is called after each epoch with its number and that of all; the estimator
    then predicts with the weights it has got so far. What returns True ends the
    training, and leaves the estimator without a basis for `transform`.
    """

    estimator: BaseSoftRankClassifier
    X: Any
    y: Any
    params: dict[str, Any] = field(default_factory=dict)
    error: Exception | None = None
    on_epoch: Callable[[int, int], bool] | None = None


def fits_by_parts(estimator: Any) -> bool:
    """Return whether an estimator's `fit` is ours, with nobody but us to be told of it.

    A subclass may have a `fit` of its own, and scikit-learn's callbacks follow one.
    """
    return (
        isinstance(estimator, BaseSoftRankClassifier)
        and type(estimator).fit is BaseSoftRankClassifier.fit
        and not has_callbacks(estimator)
    )


def refuse_checkpoint(estimator: Any) -> None:
    """Refuse a file that several fits would write to, each over the other's."""
    for part in (estimator, *estimator.get_params(deep=True).values()):
        if isinstance(part, BaseSoftRankClassifier) and part.checkpoint is not None:
            raise ValueError(
                "checkpoint must be None where several fits are made of one estimator, "
                f"as in a search or an ensemble, got {part.checkpoint!r}: each would "
                "write over the other's file. Set it to None."
            )


@torch_defaults()
def fit_stacked(
    fits: Sequence[PendingFit],
    *,
    basis_rows: int | None = None,
    stop: StopFlag | None = None,
    validated: dict[Any, Any] | None = None,
) -> None:
    """Fit estimators together, each as its own `fit` would.

    Those whose networks have one shape train as a stack; what can't be stacked is
    trained by itself.

    Parameters
    ----------
    fits : sequence of PendingFit
        Estimators of one's own, e.g. clones; each is fitted, or has its `error` set.
    basis_rows : int, default=None
        Rows, at most, to find the basis of `transform` from; None takes as many as a
        fit does, and from 0 an estimator only predicts.
    stop : StopFlag, default=None
        Once set, training ends.
    validated : dict, default=None
        What rows are made of, for calls that share them.

    Raises
    ------
    KeyboardInterrupt
        If Ctrl-C or `stop` ended the training.
    """
    prepared: list[tuple[PendingFit, Training]] = []
    validated = {} if validated is None else validated
    for fit in fits:
        if stop is not None and stop.is_set:
            raise KeyboardInterrupt
        estimator = fit.estimator
        try:
            if not fits_by_parts(estimator):
                estimator.fit(fit.X, fit.y, **fit.params)
                continue
            _validate_params(estimator)
            training = estimator._prepare(
                fit.X, fit.y, **fit.params, validated=validated
            )
            prepared.append((fit, training))
        except Exception as error:
            fit.error = error
    followers = [_Follow(fit) if fit.on_epoch else None for fit, _ in prepared]
    trainings = [training for _, training in prepared]
    errors = fit_trainings(trainings, stop, followers)
    if any(training.net.was_interrupted_ for training in trainings):
        raise KeyboardInterrupt
    for (fit, training), follower, fit.error in zip(
        prepared, followers, errors, strict=True
    ):
        if fit.error is None and not (follower and follower.is_stopped):
            try:
                fit.estimator._complete(training, basis_rows=basis_rows)
            except Exception as error:
                fit.error = error


def run_stacks(
    function: Callable[..., Any],
    stacks: Sequence[Any],
    *,
    n_jobs: int | None,
    **options: Any,
) -> list[Any]:
    """Return ``function(stack, stop=...)`` of each stack, several at a time.

    Those at work beside each other keep to one thread each. An error, or Ctrl-C, sets
    `stop` for all, as threads would train on. `options` are those of
    :class:`joblib.Parallel`.
    """
    stop = StopFlag()
    is_alone = effective_n_jobs(n_jobs) == 1
    n_threads = torch.get_num_threads()
    try:
        done: list[Any] = Parallel(n_jobs=n_jobs, **options)(
            delayed(_run_stack)(function, stack, stop, is_alone) for stack in stacks
        )
    except BaseException:
        stop.is_set = True
        raise
    finally:
        torch.set_num_threads(n_threads)
    return done


def _run_stack(
    function: Callable[..., Any], stack: Any, stop: StopFlag, is_alone: bool
) -> Any:
    if not is_alone:
        torch.set_num_threads(1)
    return function(stack, stop=stop)


class _Follow(Callback):
    """Lets a fit's `on_epoch` be called as its net trains."""

    def __init__(self, fit: PendingFit) -> None:
        self.fit = fit
        self.is_stopped = False

    def on_epoch_end(self, net: Any, **kwargs: Any) -> None:
        """Call it with the epoch's number, and stop where it says so."""
        estimator = self.fit.estimator
        # Or dropout and batch normalisation would draw from the rows that are scored.
        net.module_.eval()
        estimator.net_, estimator.temperature_ = net, net.temperature_
        epoch, on_epoch = len(net.history), self.fit.on_epoch
        if on_epoch is not None and on_epoch(epoch, net.max_epochs):
            self.is_stopped = True
            raise KeyboardInterrupt  # How skorch's callbacks stop a training.
