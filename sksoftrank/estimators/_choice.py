"""How long to train, and how strongly to regularise: chosen on rows held out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax

from sksoftrank.estimators._recipe import MODERATE, STRENGTHS
from sksoftrank.estimators._training_data import Codes, FloatArray
from sksoftrank.training import SoftRankNet


class Choice:
    """Trains for longer and regularises less, as long as it pays on rows held out.

    The first trials are the two strongest; each time the last one is the best, the
    next in `STRENGTHS` is tried. Most tables need no more than those two or three.

    Parameters
    ----------
    build : callable
        Returns the net for a `strength`, to be trained on `train`.
    train, valid : dataset
        The rows for the trials, and those that score them.

    Attributes
    ----------
    trials : dict
        What to train next, by strength; empty when the choice is made.
    strength : Strength
        The best so far, by accuracy, and between equals by loss.
    logit_scale : float
        The factor on its logits whose log loss is least.
    """

    def __init__(
        self, build: Callable[..., SoftRankNet], train: Any, valid: Any
    ) -> None:
        self.build, self.train, self.valid = build, train, valid
        self.strength, self.logit_scale = MODERATE, 1.0
        self.trials = {strength: build(strength=strength) for strength in STRENGTHS[:2]}
        self._best: tuple[float, float] | None = None

    def take(self, errors: Sequence[Exception | None]) -> None:
        """Score the trials, trained, and say what to try next.

        Those that ended with errors are none.
        """
        for (strength, net), error in zip(self.trials.items(), errors, strict=True):
            if error is None:
                result = net.validate(self.valid)
                score = round(result["valid_acc"], 9), -result["valid_loss"]
                if self._best is None or score > self._best:
                    self._best, self.strength = score, strength
                    self.logit_scale = self._fit_scale(net)
        last = [*self.trials][-1]
        ahead = STRENGTHS[STRENGTHS.index(last) + 1 :]
        longer = ahead[:1] if self.strength == last else ()
        self.trials = {strength: self.build(strength=strength) for strength in longer}

    def _fit_scale(self, net: SoftRankNet) -> float:
        logits = net.forward(self.valid).numpy().astype(np.float64) / net.temperature_
        rows, whole = self.valid.indices, self.valid.dataset
        weight = whole.sample_weight
        weight = np.ones(len(rows)) if weight is None else weight[rows]
        return fit_logit_scale(logits, whole.y[rows], weight)


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
