"""What a temperature does to a fitted classifier: accuracy, rank, size, shift."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import numpy.typing as npt
from scipy import stats
from sklearn.base import clone
from sklearn.metrics import accuracy_score
from sklearn.neighbors import KNeighborsClassifier

from sksoftrank.estimators import BaseSoftRankClassifier
from sksoftrank.rank import rank_report

__all__ = ["TEMPERATURES", "paired_difference", "summarize_sweep", "temperature_sweep"]

# Half decades over the range in which the temperature acts.
TEMPERATURES = (0.3, 1.0, 3.0, 10.0, 30.0, 100.0)

Record = dict[str, float]


def temperature_sweep(
    estimator: BaseSoftRankClassifier,
    train: tuple[npt.ArrayLike, npt.ArrayLike],
    test: tuple[npt.ArrayLike, npt.ArrayLike],
    shifted: Mapping[str, tuple[npt.ArrayLike, npt.ArrayLike]],
    *,
    temperatures: Sequence[float] = TEMPERATURES,
    n_seeds: int = 3,
    on_fit: Callable[[], object] | None = None,
) -> list[Record]:
    """Fit at several temperatures and seeds and measure each fit.

    Parameters
    ----------
    estimator : estimator
        Cloned for each fit; its `temperature` and `random_state` are set.
    train : tuple (X, y)
        Rows to train on, scaled as the network should see them.
    test : tuple (X, y)
        In-distribution rows to measure on.
    shifted : dict of str to tuple (X, y)
        Rows under each shift, or from each other domain.
    temperatures : sequence of float, default=(0.3, 1.0, 3.0, 10.0, 30.0, 100.0)
        Positive.
    n_seeds : int, default=3
        Fits per temperature, with ``random_state`` from 0.
    on_fit : callable, default=None
        Called after each fit, e.g. to move a progress bar.

    Returns
    -------
    list of dict
        One record a fit: ``temperature``, ``seed``; ``train_accuracy``, ``accuracy``,
        ``shifted_accuracy`` (mean over the shifts) and ``shifted_accuracy[<name>]`` of
        each; ``logit_norm`` of the training logits; ``effective_rank`` and
        ``variance_rank`` (directions for 99 % of the variance) of the centred test
        embedding; ``n_components`` of `transform`; ``knn_accuracy`` of five nearest
        neighbours on it.

    Examples
    --------
    >>> from sksoftrank import SoftRankMLPClassifier
    >>> from sksoftrank.datasets import load_digits_shift
    >>> from sksoftrank.inspection import temperature_sweep
    >>> digits = load_digits_shift()
    >>> records = temperature_sweep(
    ...     SoftRankMLPClassifier(max_epochs=10),
    ...     (digits.X_train, digits.y_train),
    ...     (digits.X_test, digits.y_test),
    ...     {name: (X, digits.y_test) for name, X in digits.X_shifted.items()},
    ...     temperatures=(1.0, 30.0),
    ...     n_seeds=1,
    ... )
    >>> records[0]["effective_rank"] > records[1]["effective_rank"]
    True
    """
    records = []
    for temperature in temperatures:
        for seed in range(n_seeds):
            clf = clone(estimator).set_params(
                temperature=temperature, random_state=seed
            )
            clf.fit(*train)
            report = rank_report(clf.embed(test[0]))
            knn = KNeighborsClassifier().fit(clf.transform(train[0]), train[1])
            hits = {
                f"shifted_accuracy[{name}]": clf.score(*rows)
                for name, rows in shifted.items()
            }
            records.append(
                {
                    "temperature": float(temperature),
                    "seed": seed,
                    "train_accuracy": clf.score(*train),
                    "accuracy": clf.score(*test),
                    "shifted_accuracy": float(np.mean([*hits.values()])),
                    **hits,
                    "logit_norm": clf.logit_norm_,
                    "effective_rank": report["effective_rank"],
                    "variance_rank": report["variance_rank"][0.99],
                    "n_components": clf.n_components_,
                    "knn_accuracy": accuracy_score(
                        test[1], knn.predict(clf.transform(test[0]))
                    ),
                }
            )
            if on_fit is not None:
                on_fit()
    return records


def summarize_sweep(records: Sequence[Record]) -> list[Record]:
    """Return the mean of each measure by temperature, and its 95 % interval.

    Parameters
    ----------
    records : list of dict
        From `temperature_sweep`.

    Returns
    -------
    list of dict
        One row a temperature, ascending: each measure's mean over the seeds, and under
        ``<measure>_interval`` half the width of its t-interval (NaN for one seed).

    Examples
    --------
    >>> from sksoftrank.inspection import summarize_sweep
    >>> records = [{"temperature": 1.0, "seed": s, "accuracy": 0.9} for s in range(3)]
    >>> summarize_sweep(records)
    [{'temperature': 1.0, 'accuracy': 0.9, 'accuracy_interval': 0.0}]
    """
    rows = []
    for temperature in sorted({record["temperature"] for record in records}):
        members = [r for r in records if r["temperature"] == temperature]
        row = {"temperature": temperature}
        for name in members[0]:
            if name in ("temperature", "seed"):
                continue
            row[name], row[f"{name}_interval"] = _mean_interval(
                [member[name] for member in members]
            )
        rows.append(row)
    return rows


def paired_difference(
    records: Sequence[Record],
    measure: str,
    temperature: float,
    baseline: float = 1.0,
    n_comparisons: int = 1,
) -> tuple[float, float]:
    """Return the mean gain over the baseline's temperature and its interval.

    Seeds are paired: each gives both fits the same initial weights and order of rows.

    Parameters
    ----------
    records : list of dict
        From `temperature_sweep`.
    measure : str
        Key of the records.
    temperature : float
        The temperature to compare.
    baseline : float, default=1.0
        The temperature to compare with.
    n_comparisons : int, default=1
        Temperatures that this one was the best of; widens the 95 % interval by
        Bonferroni's correction.

    Returns
    -------
    tuple of float
        Mean difference and half the width of its interval (NaN for one seed).

    Examples
    --------
    >>> from sksoftrank.inspection import paired_difference
    >>> records = [
    ...     {"temperature": t, "seed": s, "accuracy": 0.5 + 0.01 * t}
    ...     for t in (1.0, 10.0) for s in range(3)
    ... ]
    >>> mean, half_width = paired_difference(records, "accuracy", 10.0)
    >>> round(mean, 6), round(half_width, 6)
    (0.09, 0.0)
    """
    by_key = {(r["temperature"], r["seed"]): r[measure] for r in records}
    seeds = [seed for t, seed in by_key if t == temperature]
    return _mean_interval(
        [by_key[temperature, seed] - by_key[baseline, seed] for seed in seeds],
        level=1 - 0.05 / n_comparisons,
    )


def _mean_interval(values: Sequence[float], level: float = 0.95) -> tuple[float, float]:
    n = len(values)
    mean = float(np.mean(values))
    if n < 2:
        return mean, float("nan")
    spread = float(np.std(values, ddof=1)) / np.sqrt(n)
    return mean, float(stats.t.ppf((1 + level) / 2, n - 1) * spread)
