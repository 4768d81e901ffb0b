"""Which configuration a search chooses, as functions of the scores alone."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import stats

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


@dataclass
class Outcome:
    """What a configuration scored.

    `ood` is (replicates, domains), where a replicate is a seed and a split; `id` holds
    one in-distribution score a fit. `parts` is (replicates, domains, parts) where all
    replicates score the same rows: scores of parts of them, which tell how much a score
    owes to the rows that there happen to be.
    """

    ood: FloatArray
    id: FloatArray
    n_components: float = math.nan
    is_baseline: bool = False
    parts: FloatArray | None = None

    @property
    def id_score(self) -> float:
        """Mean in-distribution score, rounded."""
        return rounded(float(self.id.mean()))

    def domain_scores(self) -> FloatArray:
        """Return the mean score on each domain (domains,)."""
        means: FloatArray = self.ood.mean(axis=0)
        return means

    def ood_score(self, aggregate: str) -> float:
        """Return the mean over domains, or the worst domain's mean, rounded."""
        means = self.domain_scores()
        return rounded(float(means.min() if aggregate == "worst" else means.mean()))


@dataclass
class Choice:
    """The place of the chosen configuration, and why in a sentence."""

    index: int
    reason: str


def paired_gain(
    candidate: Outcome, baseline: Outcome, aggregate: str, *, is_sample: bool = True
) -> tuple[float, float]:
    """Return the gain in the out-of-distribution score, and its standard error.

    The pairs are replicates by domains and their parts. The error is clustered both
    ways (Cameron, Gelbach & Miller, "Robust Inference With Multiway Clustering", 2011,
    eq. 2.9), for fits share what is peculiar to rows, and rows what is peculiar to a
    fit; parts share their domain, too. For the worst domain, pairs are of its score in
    each replicate and part; likewise of the mean where the domains are no sample, as
    long as there are two replicates. With less than two pairs the error is NaN.
    """
    gain = candidate.ood_score(aggregate) - baseline.ood_score(aggregate)
    a, b = candidate.ood[..., None], baseline.ood[..., None]
    if candidate.parts is not None and baseline.parts is not None:
        a, b = candidate.parts, baseline.parts
    pairs = a - b
    if aggregate == "worst" and pairs[:, 0].size > 1:
        pairs = (a.min(axis=1) - b.min(axis=1))[:, None]
    elif not is_sample and len(pairs) > 1:
        pairs = pairs.mean(axis=1, keepdims=True)
    if pairs.size < 2:
        return gain, math.nan
    by_replicate, by_domain, by_rows, each = (
        float(means.var(ddof=1)) / means.size if means.size > 1 else 0.0
        for means in (
            pairs.mean(axis=(1, 2)),
            pairs.mean(axis=(0, 2)),
            pairs.mean(axis=0),
            pairs,
        )
    )
    by_rows = max(by_rows, by_domain)
    # Each of them alone is a lower limit, and the sum may be negative.
    variance = max(by_replicate, by_rows, by_replicate + by_rows - each)
    return gain, math.sqrt(variance)


def _gains(
    outcomes: Sequence[Outcome],
    others: Sequence[int],
    baseline: int,
    aggregate: str,
    is_sample: bool,
) -> dict[int, tuple[float, float]]:
    """Return gains and errors; none of these is below what is usual for all.

    An error from a few clusters is often far too small, and the surest of many gains
    would be that whose error is. What their median tells of the variance does not
    depend on any single one.
    """
    gains = {
        k: paired_gain(outcomes[k], outcomes[baseline], aggregate, is_sample=is_sample)
        for k in others
    }
    variances = np.array([error**2 for _, error in gains.values()])
    if len(variances) < 2 or np.isnan(variances).any():
        return gains
    shape = outcomes[baseline].ood.shape
    if not is_sample and shape[0] > 1:
        shape = shape[:1]
    n_free = min((size - 1 for size in shape if size > 1), default=1)
    # The median of a variance with few degrees of freedom is below its mean.
    usual = np.median(variances) * n_free / stats.chi2.median(n_free)
    return {
        k: (gain, max(error, math.sqrt(usual))) for k, (gain, error) in gains.items()
    }


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
    is_sample: bool = True,
) -> Choice:
    """Choose the best configuration that beats the baseline, else the baseline.

    Only those within `id_tolerance` of the best in-distribution score are considered.
    Of these m, the one is chosen whose out-of-distribution score beats the baseline's
    most surely, by the most beyond ``sqrt(2 log m)`` standard errors of the paired
    difference, and at least by one: so far the best of m draws of mere noise gets
    (Boucheron, Lugosi & Massart, "Concentration Inequalities", 2013, theorem 2.5). No
    error counts as less than the median of all, which few replicates and domains
    would often make it. The baseline is that of the baselines with the best
    in-distribution score; the others are candidates.

    Parameters
    ----------
    outcomes : sequence of Outcome
        At least one, without NaN.
    aggregate : {"mean", "worst"}, default="mean"
        How scores on the domains become one.
    id_tolerance : float, default=0.01
        Non-negative.
    pareto : bool, default=False
        Whether to consider only the Pareto front and the baseline.
    is_sample : bool, default=True
        Whether the domains stand for others like them, so that how much they differ
        in a gain makes it less sure; or are themselves what matters.

    Returns
    -------
    Choice
        The place of the chosen one.
    """
    best_id = max(outcome.id_score for outcome in outcomes)
    least_id = rounded(best_id - id_tolerance)
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
    n_candidates = len(others)
    where = f"in distribution within {id_tolerance:g} of the best, {best_id:.4f}"
    if pareto:
        where += ", and is on the Pareto front"
        front = set(pareto_front(outcomes, aggregate))
        others = [k for k in others if k in front]
    if baseline is None:
        best = max(others, key=lambda k: _preference(outcomes, k, aggregate))
        return Choice(
            best,
            "The highest out-of-distribution score within the in-distribution "
            "tolerance; there is no baseline, whose fits failed, to compare it with.",
        )
    if not others:
        return Choice(
            baseline,
            f"The baseline: no other configuration was evaluated that is {where}.",
        )
    n_errors = max(1.0, math.sqrt(2 * math.log(n_candidates)))
    gains = _gains(outcomes, others, baseline, aggregate, is_sample)
    # One pair has no error, which is no evidence.
    sure = {
        k: -math.inf if math.isnan(error) else rounded(gain - n_errors * error)
        for k, (gain, error) in gains.items()
    }
    best = max(others, key=lambda k: (sure[k], *_preference(outcomes, k, aggregate)))
    if sure[best] > 0:
        gain, error = gains[best]
        return Choice(
            best,
            "It beats the baseline out of distribution, "
            f"{outcomes[best].ood_score(aggregate):.4f} against "
            f"{outcomes[baseline].ood_score(aggregate):.4f}: the gain of {gain:.4f} is "
            f"more than {n_errors:.2f} standard errors of {error:.4f}, which the best "
            f"of {n_candidates} might get by chance.",
        )
    best = max(others, key=lambda k: _preference(outcomes, k, aggregate))
    gain, error = gains[best]
    reason = (
        "The baseline: the best other configuration scores "
        f"{outcomes[best].ood_score(aggregate):.4f} against "
        f"{outcomes[baseline].ood_score(aggregate):.4f} out of distribution, "
    )
    if math.isnan(error):
        return Choice(
            baseline,
            f"{reason}but one pair of scores has no standard error. Raise n_seeds or "
            "cv, or use more domains.",
        )
    return Choice(
        baseline,
        f"{reason}a gain of {gain:.4f} that is not more than {n_errors:.2f} standard "
        f"errors of {error:.4f}, which the best of {n_candidates} might get by chance.",
    )


def _preference(
    outcomes: Sequence[Outcome], place: int, aggregate: str
) -> tuple[float, float, float, int]:
    """Return what to choose by where nothing else decides."""
    outcome = outcomes[place]
    size = outcome.n_components
    return (
        outcome.ood_score(aggregate),
        outcome.id_score,
        -math.inf if math.isnan(size) else -size,
        -place,
    )
