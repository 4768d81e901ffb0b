"""The temperature at which the embedding has a given rank."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np

from sksoftrank.estimators._choice import N_FOLDS, predict_held_out
from sksoftrank.estimators._training_data import FloatArray, split_folds
from sksoftrank.training import InMemoryDataset, SoftRankNet

# The first tell about where, two more how the rank changes there.
FIRST = (1.0, 30.0, 1000.0)
LOWEST, HIGHEST = 0.03, 30_000.0
# On both sides of where the rank should be; neighbours share most of their noise.
_STEP = 2.0


class RankSearch:
    """Trains at a few temperatures, and reads off where the rank is the one wanted.

    The rank falls with the temperature, so that five networks bracket it: three that
    span three decades, and two about the place that these name. The logarithm of the
    rank is read off as a line between neighbours in the logarithm of the temperature.
    All start from the same weights and see the rows in the same order, which leaves
    little but the temperature to tell them apart.

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
        self._train, self._valid = split_folds(dataset, N_FOLDS, seed)[0]
        self._asked, self._tol = target, tol
        self._ranks: dict[float, int] = {}
        self._hits: dict[float, FloatArray] = {}
        self.temperature = 1.0
        self._try(FIRST)

    @property
    def found(self) -> dict[str, Any]:
        """What to build a net with."""
        return {"temperature": self.temperature}

    def _try(self, temperatures: Sequence[float]) -> None:
        self._tried = temperatures
        self.trials = [
            (self._build(self._train, temperature=t), self._train) for t in temperatures
        ]

    def take(self, errors: Sequence[Exception | None]) -> None:
        """Measure the trials, trained, and say what to try next.

        A temperature at which training ended with an error is none; but 1 is needed.
        """
        is_first = not self._ranks
        for t, (net, _), error in zip(self._tried, self.trials, errors, strict=True):
            if error is None:
                logits, codes, weight = predict_held_out(net, self._valid)
                self._hits[t] = (logits.argmax(axis=1) == codes) * weight / weight.sum()
                self._ranks[t] = self._measure(net)
            elif t == 1.0:
                raise error
        cold = self._ranks[1.0]
        is_share = self._asked < 1
        self._target = max(1, round(self._asked * cold)) if is_share else self._asked
        if is_first:
            near = self._read_off()
            pair = np.clip([near / _STEP, near * _STEP], LOWEST, HIGHEST)
            self._try([t for t in pair.tolist() if t not in self._ranks])
            return
        self.trials = []
        self.temperature = self._read_off()
        self._check()

    def _curve(self) -> tuple[FloatArray, FloatArray]:
        """Return the temperatures' logarithms, and those of the ranks, falling."""
        t = np.sort(list(self._ranks))
        ranks = np.array([self._ranks[value] for value in t])
        # Where noise or a network that has not learnt breaks the fall.
        return np.log(t), np.log(np.minimum.accumulate(ranks))

    def _read_off(self) -> float:
        """Return the temperature of the target, by the line through its neighbours."""
        log_t, log_rank = self._curve()
        goal = math.log(self._target)
        above = np.flatnonzero(log_rank > goal)
        # Beyond the ends the last line goes on.
        k = int(np.clip(above[-1] if len(above) else 0, 0, len(log_t) - 2))
        fall = log_rank[k] - log_rank[k + 1]
        if fall == 0:
            return math.exp(log_t[k] if goal >= log_rank[k] else log_t[k + 1])
        share = (log_rank[k] - goal) / fall
        found = math.exp(log_t[k] + share * (log_t[k + 1] - log_t[k]))
        return min(max(found, LOWEST), HIGHEST)

    def _loss(self, temperature: float) -> tuple[float, float]:
        """Return the accuracy lost against a temperature of 1, and what may be."""
        lost = self._hits[1.0] - self._hits[temperature]
        noise = math.sqrt(float(lost @ lost))
        return float(lost.sum()), self._tol + noise

    def _check(self) -> None:
        """Refuse a target out of reach, or one that costs too much accuracy."""
        ranks = self._ranks
        is_kept = {t: self._loss(t)[0] <= self._loss(t)[1] + 1e-12 for t in ranks}
        nearest = min(
            (t for t in ranks if is_kept[t]), key=lambda t: abs(ranks[t] - self._target)
        )
        advice = (
            f"The nearest rank that was found is {ranks[nearest]}, at a temperature of "
            f"{nearest:.3g}. Ask for that"
        )
        slack = max(1.0, 0.1 * self._target)
        least, most = min(ranks.values()), max(ranks.values())
        if not least - slack <= self._target <= most + slack:
            raise ValueError(
                f"target_rank must be from {least} to {most}, which temperatures from "
                f"{max(ranks):.3g} to {min(ranks):.3g} lead to, got {self._asked!r}. "
                f"{advice}, or change the network's width, depth or normalization."
            )
        # What was trained next to it tells what it costs.
        beside = min(ranks, key=lambda t: abs(math.log(t / self.temperature)))
        if not is_kept[beside]:
            lost, _ = self._loss(beside)
            raise ValueError(
                f"target_rank must cost at most compression_tol={self._tol!r} of the "
                f"accuracy at a temperature of 1, got {self._asked!r}: a temperature "
                f"of {beside:.3g}, of rank {ranks[beside]}, costs {lost:.3f}. "
                f"{advice}, or raise compression_tol."
            )
