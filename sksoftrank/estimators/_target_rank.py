"""The temperature at which the embedding has a given rank."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
from scipy.interpolate import PchipInterpolator

from sksoftrank.estimators._choice import N_FOLDS, predict_held_out
from sksoftrank.estimators._training_data import FloatArray, split_folds
from sksoftrank.training import InMemoryDataset, SoftRankNet

# They tell about where, and what the temperature costs.
FIRST = (1.0, 30.0, 1000.0)
LOWEST, HIGHEST = 0.03, 30_000.0


def tolerance_of(target: float) -> float:
    """Return how far from it a rank may be: a tenth, or one."""
    return max(1.0, 0.1 * target)


class RankSearch:
    """Trains at a few temperatures, and reads off where the rank is the one wanted.

    The rank falls with the temperature. Three networks that span three decades, trained
    on four fifths of the rows, tell where it should be the one wanted, by a curve
    through them. One more, on all rows, tells what it is there, and the curve what is
    to be changed; for a share another one tells what all of it is. All start from the
    same weights, which leaves little but the temperature to tell them apart.

    Parameters
    ----------
    build : callable
        Returns the net of a trial for the rows to train on and its `temperature`.
    measure : callable
        Returns the rank that a trained net's embedding of all rows has.
    dataset : InMemoryDataset
        A fifth of its rows is held out, and tells what the temperature costs.
    seed : int
        Of the folds.
    target : int or float
        The rank, or in (0, 1) its share of that at a temperature of 1.
    tol : float
        Accuracy that the temperature may cost against 1, beside a standard error.
    **found : object
        What else to build all nets with.

    Attributes
    ----------
    trials : list of pairs
        Nets to train next, each with its rows; empty when the temperature is found.
    temperature : float
        What was found.
    target : float
        The rank that it is for.

    Raises
    ------
    ValueError
        From `take`, where no temperature has the rank at the accuracy asked for.
    """

    def __init__(
        self,
        build: Callable[..., SoftRankNet],
        measure: Callable[[SoftRankNet], int],
        dataset: InMemoryDataset,
        seed: int,
        target: float,
        tol: float,
        **found: Any,
    ) -> None:
        self._build, self._measure = partial(build, **found), measure
        self._dataset: Any = dataset
        self._train, self._valid = split_folds(dataset, N_FOLDS, seed)[0]
        self._asked, self.target, self._tol = target, float(target), tol
        # Of networks on four fifths of the rows, and on all of them.
        self._ranks: dict[float, int] = {}
        self._whole_ranks: dict[float, int] = {}
        self._hits: dict[float, FloatArray] = {}
        self.temperature = 1.0
        self._try(FIRST, self._train)

    @property
    def found(self) -> dict[str, Any]:
        """What to build a net with."""
        return {"temperature": self.temperature}

    def _try(self, temperatures: Sequence[float], rows: Any) -> None:
        self._tried = temperatures
        self.trials = [(self._build(rows, temperature=t), rows) for t in temperatures]

    def take(self, errors: Sequence[Exception | None]) -> None:
        """Measure the trials, trained, and say what to try next.

        Of the first, a temperature at which training ended with an error is none; but
        1 and another one are needed.
        """
        is_first = not self._ranks
        failed = [error for error in errors if error is not None]
        if failed and (not is_first or len(failed) > 1 or errors[0] is not None):
            raise failed[0]
        for t, (net, _), error in zip(self._tried, self.trials, errors, strict=True):
            if error is not None:
                continue
            if is_first:
                logits, codes, weight = predict_held_out(net, self._valid)
                self._hits[t] = (logits.argmax(axis=1) == codes) * weight / weight.sum()
            ranks = self._ranks if is_first else self._whole_ranks
            ranks[t] = self._measure(net)
        is_share = self._asked < 1
        if is_first:
            if is_share:
                self.target = max(1.0, self._asked * self._ranks[1.0])
            self.temperature = self._read_off(self.target)
            again = {1.0, self.temperature} if is_share else {self.temperature}
            self._try(sorted(again), self._dataset)
            return
        self.trials = []
        # What was to be had is, on all rows, so many times what it should be.
        excess = self._whole_ranks[self.temperature] / self.target
        if is_share:
            self.target = max(1.0, self._asked * self._whole_ranks[1.0])
        self.temperature = self._read_off(self.target / excess)
        self._check()

    def _read_off(self, rank: float) -> float:
        """Return the temperature at which the first trials had this rank.

        By the monotone cubic through them in logarithms of both, and beyond them by the
        line that it ends with.
        """
        t = np.sort(list(self._ranks))
        # Where noise or a network that has not learnt breaks the fall.
        ranks = np.minimum.accumulate([self._ranks[value] for value in t])
        curve = PchipInterpolator(np.log(t), np.log(ranks))
        grid = np.linspace(math.log(t[0]), math.log(t[-1]), 1000)
        values, goal = curve(grid), math.log(rank)
        if values[-1] < goal < values[0]:
            place = float(np.interp(-goal, -values, grid))
        else:
            end = 0 if goal >= values[0] else -1
            slope = float(curve(grid[end], 1))
            place = float(grid[end])
            if slope < 0:
                place += (goal - float(values[end])) / slope
        low, high = math.log(LOWEST), math.log(HIGHEST)
        return math.exp(min(max(place, low), high))

    def _loss(self, temperature: float) -> tuple[float, float]:
        """Return the accuracy lost against a temperature of 1, and its error."""
        lost = self._hits[1.0] - self._hits[temperature]
        return float(lost.sum()), math.sqrt(float(lost @ lost))

    def _check(self) -> None:
        """Refuse a target out of reach, or one that costs too much accuracy."""
        tried = np.sort(list(self._hits))
        losses, noises = np.transpose([self._loss(t) for t in tried])
        place, places = math.log(self.temperature), np.log(tried)
        is_kept = losses <= self._tol + noises + 1e-12
        kept = [self._ranks[t] for t in tried[is_kept]]
        nearest = min(kept, key=lambda rank: abs(rank - self.target))
        where = next(t for t in tried if self._ranks[t] == nearest)
        advice = (
            f"The nearest rank that was found is {nearest}, at a temperature of "
            f"{where:.3g}. Ask for that"
        )
        ranks = [*self._ranks.values(), *self._whole_ranks.values()]
        least, most = min(ranks), max(ranks)
        slack = tolerance_of(self.target)
        if not least - slack <= self.target <= most + slack:
            raise ValueError(
                f"target_rank must be from {least} to {most}, which temperatures from "
                f"{tried[0]:.3g} to {tried[-1]:.3g} and beyond lead to, got "
                f"{self._asked!r}. {advice}, or change the network's width, depth or "
                "normalization."
            )
        lost = float(np.interp(place, places, losses))
        if lost > self._tol + float(np.interp(place, places, noises)) + 1e-12:
            raise ValueError(
                f"target_rank must cost at most compression_tol={self._tol!r} of the "
                f"accuracy at a temperature of 1, got {self._asked!r}: a temperature "
                f"of {self.temperature:.3g} costs {lost:.3f}. {advice}, or raise "
                "compression_tol."
            )
