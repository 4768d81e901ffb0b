"""Which configuration a search chooses, as functions of the scores alone."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]


@dataclass
class Outcome:
    """What a configuration scored.

    `ood` is (replicates, domains), where a replicate is a seed and a split; `id` holds
    one in-distribution score a fit.
    """

    ood: FloatArray
    id: FloatArray
    n_components: float = math.nan
    is_baseline: bool = False

    @property
    def id_score(self) -> float:
        """Mean in-distribution score."""
        return float(self.id.mean())

    def domain_scores(self) -> FloatArray:
        """Return the mean score on each domain (domains,)."""
        means: FloatArray = self.ood.mean(axis=0)
        return means

    def ood_score(self, aggregate: str) -> float:
        """Return the mean over domains, or the worst domain's mean."""
        means = self.domain_scores()
        return float(means.min() if aggregate == "worst" else means.mean())


@dataclass
class Choice:
    """The place of the chosen configuration, and why in a sentence."""

    index: int
    reason: str


def paired_gain(
    candidate: Outcome, baseline: Outcome, aggregate: str
) -> tuple[float, float]:
    """Return the gain in the out-of-distribution score, and its standard error.

    The pairs are replicates times domains; for the worst domain they are replicates,
    or domains where there is one replicate. With less than two pairs the error is NaN.
    """
    gain = candidate.ood_score(aggregate) - baseline.ood_score(aggregate)
    if aggregate == "worst" and len(candidate.ood) > 1:
        pairs = candidate.ood.min(axis=1) - baseline.ood.min(axis=1)
    else:
        pairs = (candidate.ood - baseline.ood).ravel()
    if len(pairs) < 2:
        return gain, math.nan
    return gain, float(pairs.std(ddof=1) / math.sqrt(len(pairs)))


def pareto_front(outcomes: Sequence[Outcome], aggregate: str) -> list[int]:
    """Return the places of those that no other one dominates.

    Larger scores out of and in distribution, and fewer columns, are better.
    """
    points = np.array(
        [[o.ood_score(aggregate), o.id_score, -o.n_components] for o in outcomes]
    )
    return [
        place
        for place, point in enumerate(points)
        if not ((points >= point).all(axis=1) & (points > point).any(axis=1)).any()
    ]


def choose(
    outcomes: Sequence[Outcome],
    *,
    aggregate: str = "mean",
    id_tolerance: float = 0.01,
    pareto: bool = False,
) -> Choice:
    """Choose the best configuration that beats the baseline, else the baseline.

    Only those within `id_tolerance` of the best in-distribution score are considered.
    Of these, the one with the highest out-of-distribution score must beat the baseline
    by more than the standard error of their paired difference. The baseline is that of
    the baselines with the best in-distribution score; the others are candidates.

    Parameters
    ----------
    outcomes : sequence of Outcome
        At least one, without NaN.
    aggregate : {"mean", "worst"}, default="mean"
        How scores on the domains become one.
    id_tolerance : float, default=0.01
        Non-negative.
    pareto : bool, default=False
        Whether to consider only the Pareto front and the baselines.

    Returns
    -------
    Choice
        The place of the chosen one.
    """
    best_id = max(outcome.id_score for outcome in outcomes)
    # Means of equal scores in another order may differ in the last digit.
    least_id = best_id - id_tolerance - 1e-12

    def key(place: int) -> tuple[float, float, float, int]:
        outcome = outcomes[place]
        size = outcome.n_components
        return (
            outcome.ood_score(aggregate),
            outcome.id_score,
            -math.inf if math.isnan(size) else -size,
            -place,
        )

    places = range(len(outcomes))
    feasible = [k for k in places if outcomes[k].id_score >= least_id]
    # Tuned as anybody would: a rate picked by the score under the shift is a choice
    # like any other, and must prove itself.
    baseline = max(
        (k for k in places if outcomes[k].is_baseline),
        key=lambda k: (outcomes[k].id_score, -k),
        default=None,
    )
    others = [k for k in feasible if k != baseline]
    if pareto:
        front = set(pareto_front(outcomes, aggregate))
        others = [k for k in others if k in front]
    if not others:
        if baseline is None:
            place = max(feasible, key=key)
            return Choice(place, "Nothing else was evaluated.")
        return Choice(
            baseline,
            "The baseline: no other configuration was evaluated whose in-distribution "
            f"score is within {id_tolerance:g} of the best, {best_id:.4f}.",
        )
    best = max(others, key=key)
    if baseline is None:
        return Choice(
            best,
            "The highest out-of-distribution score within the in-distribution "
            "tolerance; there is no baseline, whose fits failed, to compare it with.",
        )
    gain, error = paired_gain(outcomes[best], outcomes[baseline], aggregate)
    scores = (
        f"{outcomes[best].ood_score(aggregate):.4f} against "
        f"{outcomes[baseline].ood_score(aggregate):.4f}"
    )
    if math.isnan(error):
        return Choice(
            baseline,
            f"The baseline: the best other configuration scores {scores} out of "
            "distribution, but one pair of scores has no standard error. Raise n_seeds "
            "or cv, or use more domains.",
        )
    if gain > error and gain > 1e-12:
        return Choice(
            best,
            f"It beats the baseline out of distribution, {scores}: the gain of "
            f"{gain:.4f} is more than its standard error, {error:.4f}.",
        )
    return Choice(
        baseline,
        f"The baseline: the best other configuration scores {scores} out of "
        f"distribution, a gain of {gain:.4f} that is not more than its standard error, "
        f"{error:.4f}.",
    )
