"""What each temperature does, as ``python -m sksoftrank`` measures it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from sksoftrank.displays import TemperatureSweepDisplay
from sksoftrank.reporting._page import (
    IN_DISTRIBUTION,
    Page,
    Section,
    Table,
    draw,
    number,
    write_page,
)

Row = Mapping[str, float]


def report_sweep(
    rows: Sequence[Row],
    path: Path,
    *,
    title: str,
    data: Sequence[str],
    advice: Sequence[str],
    n_seeds: int,
    command: str,
) -> None:
    """Write a page of a summarised sweep, and of what was said about it.

    `data` and `advice` are sentences; `command` makes the page again.
    """
    noise, bands = "of one training each, so without intervals", ""
    if n_seeds > 1:
        bands = "; bands are 95 % intervals"
        noise = (
            f"means of {n_seeds} trainings with 95 % intervals, which know the noise "
            "of training and not that of the rows"
        )

    def cell(row: Row, name: str, scale: float = 100.0) -> str:
        return number(row[name], row[f"{name}_interval"], scale=scale)

    places = [(IN_DISTRIBUTION, "accuracy"), ("under shift, mean", "shifted_accuracy")]
    domains = [name for name in rows[0] if name.startswith("shifted_accuracy[")]
    domains = [name for name in domains if not name.endswith("_interval")]
    places += [(name.partition("[")[2][:-1], name) for name in domains]
    accuracy = Table(
        f"Accuracy in %, by temperature: {noise}.",
        ["rows of", *(f"{row['temperature']:g}" for row in rows)],
        [[name, *(cell(row, key) for row in rows)] for name, key in places],
    )
    sizes = Table(
        f"What the network learned: {noise}.",
        ["temperature", "right on training rows (%)", "directions for 99 % of variance",
         "columns of the embedding", "5 neighbours on them (%)"],
        [
            [
                f"{row['temperature']:g}",
                cell(row, "train_accuracy"),
                *(f"{row[name]:.1f}" for name in ("variance_rank", "n_components")),
                cell(row, "knn_accuracy"),
            ]
            for row in rows
        ],
    )  # fmt: skip

    def ends(name: str, scale: float = 1.0) -> str:
        return " and ".join(
            f"{scale * row[name]:.1f} at {row['temperature']:g}"
            for row in (rows[0], rows[-1])
        )

    pictures = draw(
        TemperatureSweepDisplay(rows).plot,
        (
            "Accuracy in % against temperature: in distribution "
            f"{ends('accuracy', 100)}; under shift {ends('shifted_accuracy', 100)}; of "
            f"neighbours on the embedding {ends('knn_accuracy', 100)}.",
            f"Accuracy at each temperature{bands}.",
        ),
        (
            "Size of the embedding against temperature: columns "
            f"{ends('n_components')}; directions for 99 % of the variance "
            f"{ends('variance_rank')}; effective rank {ends('effective_rank')}.",
            "Directions and columns of the embedding at each temperature.",
        ),
    )
    sections = [
        Section("What was tried", data),
        Section("Accuracy, in distribution and under shift", tables=[accuracy]),
        Section("What the temperature does", tables=[sizes], pictures=pictures),
        Section("How to make this again", ["In a shell:"], code=command),
    ]
    write_page(Page(title, advice, sections), path)
