"""Parts of a set of rows in which each stratum keeps its share."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]


def stratified_order(strata: Array, rng: np.random.RandomState) -> Array:
    """Return all places in a random order whose every beginning is stratified.

    The j-th of a stratum's m rows, in random order, stands at (j + 1/2) / m of the
    way, so that a smaller part lies within a larger one. The last of each stratum
    comes after all that are no last: what is left after a beginning keeps each stratum
    for as long as it can.
    """
    shuffled = rng.permutation(len(strata))
    _, codes, counts = np.unique(strata, return_inverse=True, return_counts=True)
    by_stratum = shuffled[np.argsort(codes[shuffled], kind="stable")]
    sizes = np.repeat(counts, counts)
    j = np.arange(len(strata)) - np.repeat(np.cumsum(counts) - counts, counts)
    position = np.where(j == sizes - 1, 1.0, (j + 0.5) / sizes)
    # Strata that tie come in random order too.
    return by_stratum[np.lexsort((rng.random_sample(len(strata)), position))]
