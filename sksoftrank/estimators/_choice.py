"""How long to train, and how strongly to regularise: chosen on rows held out."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import islice
from typing import Any

import numpy as np
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax

from sksoftrank.estimators._recipe import (
    MANY_ROWS,
    MODERATE,
    STRENGTHS,
    STRENGTHS_OF_FEW,
    STRENGTHS_OF_MANY,
    Strength,
)
from sksoftrank.estimators._training_data import Codes, FloatArray, split_folds
from sksoftrank.training import InMemoryDataset, SoftRankNet

# Fewer rows are too few to tell by; where there are more, about so many are held out,
# if three of the folds make them. With 100 rows more folds gained no accuracy.
MIN_ROWS = 50
HELD_OUT_ROWS = 200
N_FOLDS, MAX_PARTS = 5, 3


class Choice:
    """Trains with each of some strengths, and takes the best on rows held out.

    All of them: to go on to a longer training only where a little longer pays stopped
    short on tables whose gain comes late.

    Parameters
    ----------
    build : callable
        Returns the net of a trial for the rows to train on and its `strength`.
    dataset : InMemoryDataset
        A fifth of its rows is held out; where that is less than `HELD_OUT_ROWS`, so are
        one or two others in turn.
    seed : int
        Of the folds.

    Attributes
    ----------
    trials : list of pairs
        Nets to train, each with its rows; empty when the choice is made.
    strength : Strength
        The best so far, by accuracy, and between equals by log loss.
    logit_scale : float
        The factor on its logits whose log loss is least.
    """

    def __init__(
        self, build: Callable[..., SoftRankNet], dataset: InMemoryDataset, seed: int
    ) -> None:
        n_parts = math.ceil(N_FOLDS * HELD_OUT_ROWS / len(dataset))
        self._parts = split_folds(dataset, N_FOLDS, seed)[: min(n_parts, MAX_PARTS)]
        self._strengths: tuple[Strength, ...] = STRENGTHS
        if n_parts > 1:
            self._strengths = STRENGTHS_OF_FEW
        elif len(dataset) >= MANY_ROWS:
            self._strengths = STRENGTHS_OF_MANY
        self.strength, self.logit_scale = MODERATE, 1.0
        self.trials = [
            (build(train, strength=strength), train)
            for strength in self._strengths
            for train, _ in self._parts
        ]

    @property
    def found(self) -> dict[str, Any]:
        """What to build a net with."""
        return {"strength": self.strength}

    def take(self, errors: Sequence[Exception | None]) -> None:
        """Score the trials, trained.

        A strength with a trial that ended with an error is none; where all did, the
        first error is raised.
        """
        best: tuple[float, float] | None = None
        nets = iter(zip(self.trials, errors, strict=True))
        for strength in self._strengths:
            own = list(islice(nets, len(self._parts)))
            if any(error is not None for _, error in own):
                continue
            told = zip(own, self._parts, strict=True)
            found = [predict_held_out(net, valid) for ((net, _), _), (_, valid) in told]
            predicted = [np.concatenate(arrays) for arrays in zip(*found, strict=True)]
            score = score_logits(*predicted)
            if best is None or score > best:
                best, self.strength = score, strength
                self.logit_scale = fit_logit_scale(*predicted)
        if best is None:
            raise next(error for error in errors if error is not None)
        self.trials = []


def predict_held_out(
    net: SoftRankNet, valid: Any
) -> tuple[FloatArray, Codes, FloatArray]:
    """Return the logits over temperature, codes and weights of rows held out."""
    logits = net.forward(valid).numpy().astype(np.float64) / net.temperature_
    rows, whole = valid.indices, valid.dataset
    weight = whole.sample_weight
    weight = np.ones(len(rows)) if weight is None else weight[rows]
    return logits, whole.y[rows], weight


def score_logits(
    logits: FloatArray, codes: Codes, weight: FloatArray
) -> tuple[float, float]:
    """Return the accuracy, to a rounding, and the log-likelihood of a row."""
    accuracy = np.average(logits.argmax(axis=1) == codes, weights=weight)
    own = np.take_along_axis(log_softmax(logits, axis=1), codes[:, np.newaxis], axis=1)
    return round(float(accuracy), 9), float(np.average(own[:, 0], weights=weight))


def fit_logit_scale(logits: FloatArray, codes: Codes, weight: FloatArray) -> float:
    """Return the factor on the logits whose log loss on rows held out is least.

    It puts right what smoothed labels do to probabilities (Guo et al. 2017,
    arXiv:1706.04599). Half a row counts as an error, as in the Krichevsky-Trofimov
    estimator: no rows all told right make anyone certain.
    """
    n_rows, n_classes = logits.shape
    error = 0.5 / (n_rows + 1) * n_classes / (n_classes - 1)

    def loss(log_scale: float) -> float:
        scaled = log_softmax(np.exp(log_scale) * logits, axis=1)
        own = np.take_along_axis(scaled, codes[:, np.newaxis], axis=1)[:, 0]
        losses = (1 - error) * own + error * scaled.mean(axis=1)
        return -float(np.average(losses, weights=weight))

    found = minimize_scalar(loss, bounds=(-4.0, 4.0), method="bounded")
    return float(np.exp(found.x))
