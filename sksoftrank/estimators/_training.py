"""What a fit trains: trials of what is to be found, then the network itself."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, Protocol

from sksoftrank.estimators._choice import Choice
from sksoftrank.estimators._recipe import MODERATE, Strength
from sksoftrank.estimators._target_rank import RankSearch
from sksoftrank.estimators._training_data import Rows
from sksoftrank.training import SoftRankNet, StopFlag, StreamDataset, fit_nets
from sksoftrank.training._checkpoint import Checkpoint


class Search(Protocol):
    """Trains nets to find how to build the one that is wanted."""

    trials: list[tuple[SoftRankNet, Rows]]

    @property
    def found(self) -> dict[str, Any]:
        """Options of `build`."""

    def take(self, errors: Sequence[Exception | None]) -> None:
        """Score the trials, trained, and say what to try next."""


@dataclass
class Training:
    """What a fit is going to train, and on what.

    Where there are `searches`, the trials of each are trained first, in turn, and say
    what to `build` for all rows. A search is started with what those before it found.
    """

    net: SoftRankNet
    dataset: Rows | StreamDataset
    seed: int
    strength: Strength = MODERATE
    logit_scale: float = 1.0
    build: Callable[..., SoftRankNet] | None = None
    searches: list[Callable[..., Search]] = field(default_factory=list)
    search: Search | None = None
    found: dict[str, Any] = field(default_factory=dict)
    target_rank: float | None = None
    checkpoint: Checkpoint | None = None

    @property
    def trials(self) -> list[tuple[SoftRankNet, Rows]]:
        """Nets to train before the next call of `take`."""
        return self.search.trials if self.search is not None else []

    def start_search(self) -> None:
        """Go on with the next search."""
        self.search = self.searches.pop(0)(**self.found) if self.searches else None

    def take(self, errors: Sequence[Exception | None]) -> None:
        """Let the search score its trials; after the last, build the net to train."""
        search = self.search
        if search is None or self.build is None:
            return
        search.take(errors)
        if search.trials:
            return
        self.found |= search.found
        if isinstance(search, Choice):
            self.strength, self.logit_scale = search.strength, search.logit_scale
        elif isinstance(search, RankSearch):
            self.target_rank = search.target
        self.start_search()
        if self.search is None:
            self.net = self.build(self.dataset, **self.found)


def fit_trainings(
    trainings: Sequence[Training],
    stop: StopFlag | None = None,
    callbacks: Sequence[Any] | None = None,
    checkpoint: Checkpoint | None = None,
) -> list[Exception | None]:
    """Train the nets of several fits together; return the error of each, or None.

    Parameters
    ----------
    trainings : sequence of Training
        Their nets are trained, those of trials before.
    stop : StopFlag, default=None
        Once set, training ends as Ctrl-C ends it.
    callbacks : sequence, default=None
        One for the net of each, or None.
    checkpoint : Checkpoint, default=None
        What they go on from, trials too, and are written to.
    """
    errors: list[Exception | None] = [None] * len(trainings)
    searching = {k: t for k, t in enumerate(trainings) if t.trials}
    while searching:
        trials = [trial for training in searching.values() for trial in training.trials]
        nets, datasets = [n for n, _ in trials], [d for _, d in trials]
        found = iter(fit_nets(nets, datasets, stop, checkpoint=checkpoint))
        if any(net.was_interrupted_ for net, _ in trials):
            raise KeyboardInterrupt
        for k, training in [*searching.items()]:
            own = list(islice(found, len(training.trials)))
            try:
                training.take(own)
                if training.trials:
                    continue
            except Exception as error:  # This fit's own: others go on.
                errors[k] = error
            del searching[k]
    left = [k for k, error in enumerate(errors) if error is None]
    nets = [trainings[k].net for k in left]
    own_callbacks = [callbacks[k] if callbacks else None for k in left]
    for net, callback in zip(nets, own_callbacks, strict=True):
        if callback is not None:
            net.callbacks_.append(("on_epoch", callback))
    try:
        done = fit_nets(
            nets,
            [trainings[k].dataset for k in left],
            stop,
            together=any(callback is not None for callback in own_callbacks),
            checkpoint=checkpoint,
        )
    finally:
        for net, callback in zip(nets, own_callbacks, strict=True):
            if callback is not None:
                net.callbacks_.remove(("on_epoch", callback))
    for k, outcome in zip(left, done, strict=True):
        errors[k] = outcome
    return errors
