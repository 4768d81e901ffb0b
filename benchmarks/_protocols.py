"""Shifts to search and report under, each split once and for all.

A protocol has three sets of rows that share none: the source, of which each seed draws
rows to fit and rows to report in distribution; domains that a search may score; and
domains that are reported, and nobody chooses by. Rows of classes that the source lacks
are left out: no classifier can name them.

Those of the group "studied" are what the rule of choice was made with; "untouched" it
has not seen; in "null" the domains are random parts of one distribution, so that there
is nothing to find, and only harm to do.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from _common import find_data
from sklearn.compose import make_column_selector, make_column_transformer
from sklearn.datasets import load_digits
from sklearn.model_selection import StratifiedKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler

from sksoftrank import SoftRankCNNClassifier, SoftRankMLPClassifier, shifts
from sksoftrank._sampling import stratified_order
from sksoftrank.corruptions import CORRUPTIONS, Corruption
from sksoftrank.datasets import (
    load_cifar10,
    load_flights,
    load_gas_drift,
    load_portal_rodents,
    load_watch,
)

Rows = tuple[Any, Any]

# Rows of a searched and of a reported domain, at most, and of those in distribution.
N_SEARCHED, N_REPORTED, N_ID = 600, 1000, 1000


@dataclass
class Data:
    """Rows, and the places of those of the source and of each domain.

    Where shifts make the domains, `search` and `report` are empty: the source's own
    rows are shifted, to report those that are not fitted.
    """

    X: Any
    y: Any
    source: Any
    search: dict[str, Any] = field(default_factory=dict)
    report: dict[str, Any] = field(default_factory=dict)
    search_shifts: list[Any] | None = None
    report_shifts: dict[str, Any] = field(default_factory=dict)


@dataclass
class Task:
    """What a seed is given.

    `places` are the rows in the data that each set is made of.
    """

    fit: Rows
    id: Rows
    search: dict[str, Rows]
    report: dict[str, Rows]
    shifts: list[Any] | None
    places: dict[str, Any]
    is_scaled: bool

    def pipeline(self, clf: Any) -> Any:
        """Return a classifier behind what its rows need."""
        return make_pipeline(clf) if self.is_scaled else _scaled(clf)

    def foreign(self) -> dict[str, Any]:
        """Return what the search's `fit` takes beside the source."""
        return {} if self.shifts else stacked_domains(self.search)


@dataclass
class Protocol:
    """How a shift's data are loaded, and what is fitted to them.

    `n_rows` are those that a seed fits, at most.
    """

    group: str
    load: Callable[[Path], Data]
    n_rows: int = 2000
    image_shape: tuple[int, ...] | None = None

    def network(self, **params: Any) -> Any:
        """Return the estimator that is searched around."""
        if self.image_shape is None:
            return SoftRankMLPClassifier(**params)
        # Small and short: a search fits some hundred of them, one by one.
        small = {"channels": (8, 16, 32), "max_epochs": 15}
        return SoftRankCNNClassifier(
            input_shape=self.image_shape, **{**small, **params}
        )

    def task(self, folder: Path, seed: int) -> Task:
        """Return the rows of a seed."""
        return make_task(_load(self.load, folder), seed, self.n_rows)


def make_task(data: Data, seed: int, n_rows: int) -> Task:
    """Draw rows of the source, a fifth of them at least to report, and encode all."""
    X, y = data.X, data.y
    order = data.source[
        stratified_order(y[data.source], np.random.RandomState(1000 + seed))
    ]
    n_rows = min(n_rows, int(0.8 * len(order)))
    places = {"fit": order[:n_rows], "id": order[n_rows:][:N_ID]}
    places |= {f"search {name}": rows for name, rows in data.search.items()}
    places |= {f"report {name}": rows for name, rows in data.report.items()}
    # A class whose only rows are in distribution can't be learnt.
    places = {k: rows[np.isin(y[rows], y[places["fit"]])] for k, rows in places.items()}
    is_frame = hasattr(X, "iloc")
    encoder = _encoder().fit(X.iloc[places["fit"]]) if is_frame else None

    def cut(name: str) -> Rows:
        rows = X.iloc[places[name]] if is_frame else X[places[name]]
        if encoder is not None:
            rows = encoder.transform(rows)
        return np.asarray(rows, np.float32), y[places[name]]

    fit, held_out = cut("fit"), cut("id")
    return Task(
        fit,
        held_out,
        {name: cut(f"search {name}") for name in data.search},
        {name: cut(f"report {name}") for name in data.report}
        | {
            name: (shift.fit(fit[0]).transform(held_out[0]), held_out[1])
            for name, shift in data.report_shifts.items()
        },
        data.search_shifts,
        places,
        is_scaled=is_frame or np.ndim(X) == 4,
    )


def stacked_domains(domains: dict[str, Rows]) -> dict[str, Any]:
    """Return several domains' rows as a search's `fit` takes them."""
    return {
        "X_ood": np.concatenate([X for X, _ in domains.values()]),
        "y_ood": np.concatenate([y for _, y in domains.values()]),
        "domains_ood": np.repeat(list(domains), [len(y) for _, y in domains.values()]),
    }


def _scaled(clf: Any) -> Any:
    return make_pipeline(StandardScaler(), clf)


def _encoder() -> Any:
    """Return what makes numbers of a frame: once a task, not once a fit."""
    return make_column_transformer(
        (StandardScaler(), make_column_selector(dtype_include=np.number)),
        (
            OneHotEncoder(handle_unknown="ignore", sparse_output=False),
            make_column_selector(dtype_exclude=np.number),
        ),
    )


@lru_cache(maxsize=2)
def _load(load: Callable[[Path], Data], folder: Path) -> Data:
    """Return the data, without rows of classes that the source lacks."""
    data = load(folder)
    known = np.isin(data.y, data.y[data.source])
    for domains, most in ((data.search, N_SEARCHED), (data.report, N_REPORTED)):
        for name, rows in domains.items():
            rows = np.asarray(rows)[known[rows]]
            # The same for all seeds.
            rng = np.random.RandomState(0)
            domains[name] = rows[stratified_order(data.y[rows], rng)[:most]]
    return data


# -- Data -----------------------------------------------------------------------------


def by_domain(X, y, domains, source, search, report) -> Data:
    """Return rows by what is asked of their domain; of each name, some domains."""

    def rows(of):
        return np.flatnonzero(np.isin(domains, of))

    return Data(
        X,
        y,
        rows(source),
        {name: rows(of) for name, of in search.items()},
        {name: rows(of) for name, of in report.items()},
    )


def gas(source, search, report):
    def load(folder):
        find_data(folder, "gas_drift.parquet")
        data = load_gas_drift(folder)
        return by_domain(
            data.X,
            data.y,
            data.domains,
            source,
            {f"batch {b}": b for b in search},
            {f"batch {b}": b for b in report},
        )

    return load


def rodents(folder):
    data = load_portal_rodents(find_data(folder, "shifts/portal_rodents.parquet"))

    def years(first, last):
        return range(first, last + 1)

    return by_domain(
        data.X,
        data.y,
        data.domains,
        years(1977, 1984),
        {"1985-87": years(1985, 1987), "1988-90": years(1988, 1990)},
        {
            "1991-94": years(1991, 1994),
            "1995-98": years(1995, 1998),
            "1999-2002": years(1999, 2002),
        },
    )


def flights(folder):
    data = load_flights(find_data(folder, "shifts/flights.parquet"))
    return by_domain(
        data.X,
        data.y,
        data.domains,
        (1, 2),
        {"March": 3, "April": 4},
        {"July": 7, "September": 9, "October": 10, "December": 12},
    )


def watch_by_subject(folder):
    data = load_watch(find_data(folder, "shifts/watch.npz"))
    return by_domain(
        data.X,
        data.y,
        data.subject,
        range(1, 6),
        {f"subject {k}": k for k in (6, 7)},
        {f"subject {k}": k for k in (8, 9, 10)},
    )


def watch_by_side(folder):
    data = load_watch(find_data(folder, "shifts/watch.npz"))
    # One arm of all, and the other arm of some to search on, of the rest to report.
    domains = np.where(data.side == 0, 0, data.subject)
    return by_domain(
        data.X,
        data.y,
        domains,
        0,
        {"subjects 1-2": (1, 2), "subjects 3-5": (3, 4, 5)},
        {"subjects 6-7": (6, 7), "subjects 8-10": (8, 9, 10)},
    )


def digits(folder):
    X, y = load_digits(return_X_y=True)
    return Data(
        X / 16,
        y,
        np.arange(len(y)),
        search_shifts=[
            shifts.GaussianNoise(3, random_state=0),
            shifts.GainDrift(3, random_state=0),
            Corruption("defocus_blur", 3),
        ],
        report_shifts={
            "feature dropout": shifts.FeatureDropout(3, random_state=1),
            "offset drift": shifts.OffsetDrift(3, random_state=1),
            **{kind: Corruption(kind, 3) for kind in DIGITS_KINDS},
        },
    )


DIGITS_KINDS = ("contrast", "brightness", "pixelate")
# One corruption of each family to search on.
CIFAR_KINDS = ("gaussian_noise", "defocus_blur", "fog", "jpeg_compression")


def cifar10(folder):
    find_data(folder, "cifar10_train.parquet")
    data = load_cifar10(folder, n_train=8000, n_test=10)
    return Data(
        data.X_train,
        data.y_train,
        np.arange(len(data.y_train)),
        search_shifts=[Corruption(kind, random_state=0) for kind in CIFAR_KINDS],
        report_shifts={
            kind: Corruption(kind, random_state=1)
            for kind in CORRUPTIONS
            if kind not in CIFAR_KINDS
        },
    )


def read_table(folder, name):
    frame = pd.read_parquet(find_data(folder, f"tables/{name}.parquet"))
    y = np.unique(frame.pop("target"), return_inverse=True)[1]
    return frame.to_numpy(np.float32), y


def by_feature(name):
    """Return how a table is split along its first feature.

    The lower half is the source, two tenths above it each are searched on, and the two
    parts of what is highest are reported.
    """

    def load(folder):
        X, y = read_table(folder, name)
        rank = np.argsort(np.argsort(X[:, 0], kind="stable")) / len(y)
        parts = np.digitize(rank, (0.5, 0.6, 0.7, 0.85))
        return by_domain(
            X,
            y,
            parts,
            0,
            {"50-60 %": 1, "60-70 %": 2},
            {"70-85 %": 3, "85-100 %": 4},
        )

    return load


def random_parts(X, y) -> Data:
    """Return domains that differ by nothing."""
    folds = StratifiedKFold(10, shuffle=True, random_state=0).split(X, y)
    parts = np.empty(len(y), int)
    # Six tenths of the rows, and a tenth for each domain.
    for part, (_, rows) in enumerate(folds):
        parts[rows] = part
    return by_domain(
        X, y, parts, range(6), {"part 6": 6, "part 7": 7}, {"part 8": 8, "part 9": 9}
    )


def null_table(name):
    return lambda folder: random_parts(*read_table(folder, name))


def null_digits(folder):
    X, y = load_digits(return_X_y=True)
    return random_parts(X / 16, y)


PROTOCOLS = {
    "rodents": Protocol("studied", rodents),
    "watch_by_subject": Protocol("studied", watch_by_subject),
    "watch_by_side": Protocol("studied", watch_by_side),
    "gas": Protocol("studied", gas((2, 3), (4,), (5,))),
    "gas_2": Protocol("studied", gas((2,), (3,), (4, 5))),
    "digits": Protocol("studied", digits),
    "flights": Protocol("untouched", flights, n_rows=3000),
    "magic": Protocol("untouched", by_feature("magic")),
    "penbased": Protocol("untouched", by_feature("penbased")),
    "phoneme": Protocol("untouched", by_feature("phoneme")),
    "segment": Protocol("untouched", by_feature("segment")),
    "cifar10": Protocol("untouched", cifar10, n_rows=1000, image_shape=(3, 32, 32)),
    "null_digits": Protocol("null", null_digits),
    "null_satimage": Protocol("null", null_table("satimage")),
}
