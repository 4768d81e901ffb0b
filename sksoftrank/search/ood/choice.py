"""Which configuration a search chooses, as functions of the scores alone."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]


def rounded(score: float) -> float:
    """Return a score without the digits that the order of a sum decides.

    Forty binary places, as no share of fewer than 2**41 rows lies halfway between two:
    of decimal places, some shares of 8192 rows do.
    """
    if not math.isfinite(score):
        return score
    exponent = max(math.frexp(score)[1], 0) - 40
    return math.ldexp(round(math.ldexp(score, -exponent)), exponent)


@dataclass(frozen=True)
class Criterion:
    """What a search maximises: so much of the score under the shift, the rest without.

    Parameters
    ----------
    ood_weight : float
        In [0, 1].
    aggregate : {"mean", "worst"}
        How the scores on several domains become one.
    """

    ood_weight: float = 0.5
    aggregate: str = "mean"


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
        """Mean in-distribution score, rounded."""
        return rounded(float(self.id.mean()))

    def ood_score(self, aggregate: str = "mean") -> float:
        """Return the mean over domains, or the worst domain's mean, rounded."""
        means: FloatArray = self.ood.mean(axis=0)
        return rounded(float(means.min() if aggregate == "worst" else means.mean()))

    def score(self, criterion: Criterion) -> float:
        """Return what is maximised, rounded."""
        weight = criterion.ood_weight
        ood = self.ood_score(criterion.aggregate)
        return rounded(weight * ood + (1 - weight) * self.id_score)

    def joined(self, other: Outcome) -> Outcome:
        """Return the outcome over the seeds of both."""
        return Outcome(
            np.concatenate([self.ood, other.ood]),
            np.concatenate([self.id, other.id]),
            self.n_components,
            self.is_baseline,
        )


@dataclass
class Choice:
    """The place of the chosen configuration, and why in words."""

    index: int
    reason: str


def find_baseline(outcomes: Sequence[Outcome]) -> int | None:
    """Return the place of the baseline that is best in distribution, if any is there.

    Tuned as anybody would: a rate picked by the score under the shift is a choice like
    any other, and must prove itself.
    """
    return max(
        (k for k, outcome in enumerate(outcomes) if outcome.is_baseline),
        key=lambda k: (outcomes[k].id_score, -k),
        default=None,
    )


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


def pick_finalists(
    outcomes: Sequence[Outcome],
    n_finalists: int,
    criterion: Criterion,
    *,
    pareto: bool = False,
) -> list[int]:
    """Return the places of the baseline and of those with the best scores beside it.

    Parameters
    ----------
    outcomes : sequence of Outcome
        At least one, without NaN.
    n_finalists : int
        How many beside the baseline.
    criterion : Criterion
        What is maximised.
    pareto : bool, default=False
        Whether to consider only the Pareto front beside the baseline.

    Returns
    -------
    list of int
        The baseline first, where there is one; then the best first.
    """
    baseline = find_baseline(outcomes)
    places = range(len(outcomes))
    others = [
        k
        for k in (pareto_front(outcomes, criterion.aggregate) if pareto else places)
        if k != baseline
    ]
    others.sort(key=lambda k: _preference(outcomes[k], k, criterion), reverse=True)
    return [*([] if baseline is None else [baseline]), *others[:n_finalists]]


def choose(
    outcomes: Sequence[Outcome],
    finals: Mapping[int, Outcome],
    criterion: Criterion,
    *,
    min_gain: float = 0.005,
    are_fresh: bool = True,
) -> Choice:
    """Choose the best finalist if it beats the baseline on fresh seeds, else that.

    The finalist with the best score over all its seeds is considered. That it was
    picked for its score on the first seed makes this score too good; so it must beat
    the baseline by more than `min_gain` on the fresh seeds alone, which both had.

    Parameters
    ----------
    outcomes : sequence of Outcome
        With the first seed; at least one, without NaN.
    finals : mapping of int to Outcome
        By place, with fresh seeds: the baseline and the other finalists.
    criterion : Criterion
        What is maximised.
    min_gain : float, default=0.005
        Non-negative.
    are_fresh : bool, default=True
        Whether `finals` are of other seeds than `outcomes`; the words depend on it.

    Returns
    -------
    Choice
        The place of the chosen one.
    """
    baseline = find_baseline(outcomes)
    overall = {k: outcomes[k].joined(fresh) for k, fresh in finals.items()}
    best = max(
        (k for k in finals if k != baseline),
        key=lambda k: _preference(overall[k], k, criterion),
        default=None,
    )
    if baseline is None or baseline not in finals:
        if best is None:  # No fit with a fresh seed succeeded.
            best = pick_finalists(outcomes, 1, criterion)[-1]
        return Choice(
            best, "The best score; there is no baseline, whose fits failed, beside it."
        )
    if best is None:
        return Choice(baseline, "The baseline: there is nothing else to choose.")
    scores = {k: finals[k].score(criterion) for k in (best, baseline)}
    gain = rounded(scores[best] - scores[baseline])
    # Not by the last digits of two sums.
    is_better = round(gain - min_gain, 9) > 0
    of = f"of {len(finals) - 1} finalists out of {len(outcomes)} configurations"
    what = f"It beats the baseline, as the best {of}:"
    if not is_better:
        what = f"The baseline: the best {of} does not beat it:"

    def pair(score: Callable[[Outcome], float]) -> str:
        return f"{score(finals[best]):.4f} against {score(finals[baseline]):.4f}"

    weight = criterion.ood_weight
    reason = (
        f"{what} {'with fresh seeds ' if are_fresh else ''}it scores "
        f"{pair(lambda o: o.score(criterion))}, a gain of {gain:.4f} that is "
        f"{'' if is_better else 'not '}more than min_gain={min_gain:g}. Under the "
        f"shift, which counts {weight:g}, these are "
        f"{pair(lambda o: o.ood_score(criterion.aggregate))}; in distribution, which "
        f"counts {1 - weight:g}, {pair(lambda o: o.id_score)}."
    )
    return Choice(best if is_better else baseline, reason)


def _preference(
    outcome: Outcome, place: int, criterion: Criterion
) -> tuple[float, float, int]:
    """Return what to choose by; of equals the smaller embedding, then the earlier."""
    size = outcome.n_components
    return (
        outcome.score(criterion),
        -math.inf if math.isnan(size) else -size,
        -place,
    )
