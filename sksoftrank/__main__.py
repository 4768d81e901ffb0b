"""``python -m sksoftrank``: what each temperature does, on digits or on your table."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from sklearn.model_selection import train_test_split
from sklearn.preprocessing import StandardScaler
from sklearn.utils.multiclass import check_classification_targets
from tqdm import tqdm

from sksoftrank.datasets import load_digits_shift, load_table, synthetic_shifts
from sksoftrank.displays import TemperatureSweepDisplay
from sksoftrank.estimators import SoftRankMLPClassifier
from sksoftrank.inspection import (
    TEMPERATURES,
    paired_difference,
    summarize_sweep,
    temperature_sweep,
)

# More rows than this are sampled, and fits of more rows get fewer epochs, so that the
# whole takes a minute or two.
MAX_TRAIN_ROWS, MAX_TEST_ROWS = 50_000, 10_000
ROW_VISITS = 250_000
# In-distribution accuracy that a recommended temperature may lose, as a share.
TOLERANCE = 0.005

Rows = tuple[npt.NDArray[Any], npt.NDArray[Any]]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the demo; return the exit code."""
    args = _parser().parse_args(argv)
    try:
        train, test, shifted, lines = _digits() if args.data is None else _table(args)
    except (ValueError, OSError, ImportError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    print("\n".join(lines), end="\n\n", flush=True)

    epochs = int(np.clip(ROW_VISITS // len(train[0]), 3, 50))
    progress = tqdm(
        total=len(TEMPERATURES) * args.seeds,
        desc="training",
        unit="fit",
        leave=False,
        disable=not sys.stderr.isatty(),
    )
    try:
        with progress:
            records = temperature_sweep(
                SoftRankMLPClassifier(max_epochs=epochs),
                train,
                test,
                shifted,
                n_seeds=args.seeds,
                on_fit=progress.update,
            )
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    rows = summarize_sweep(records)
    print(format_table(rows), end="\n\n")
    print(advice(records, synthetic=args.domain is None), end="\n\n")
    return _draw(rows, args.output or _default_output(args.data), lines[0])


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m sksoftrank",
        description="Train an MLP at several softmax temperatures and show what each "
        "does to accuracy, rank, size and accuracy under shift.",
    )
    parser.add_argument(
        "data", nargs="?", help="CSV or Parquet table (default: scikit-learn's digits)"
    )
    parser.add_argument("--target", metavar="COL", help="column of the labels")
    parser.add_argument(
        "--domain",
        metavar="COL",
        help="column that tells where or when a row comes from: the first value, in "
        "sorted order, is trained on, the others are the shift",
    )
    parser.add_argument("--seeds", type=_positive, default=3, metavar="N")
    parser.add_argument(
        "--output", metavar="PNG", type=Path, help="where the plot goes"
    )
    return parser


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {value}")
    return value


def _default_output(data: str | None) -> Path:
    stem = "sksoftrank" if data is None else Path(data).stem
    return Path(f"{stem}_temperature.png")


# -- Data --------------------------------------------------------------------------


def _digits() -> tuple[Rows, Rows, dict[str, Rows], list[str]]:
    digits = load_digits_shift()
    scaler = StandardScaler().fit(digits.X_train)
    shifted = {
        name: (scaler.transform(X), digits.y_test)
        for name, X in digits.X_shifted.items()
    }
    lines = [
        "Handwritten digits (scikit-learn), 8 x 8 pixels",
        f"{len(digits.X_train)} images to train on, {len(digits.X_test)} to test on; "
        f"shifted: the same test images under {len(shifted)} corruptions at severity 3",
    ]
    return (
        (scaler.transform(digits.X_train), digits.y_train),
        (scaler.transform(digits.X_test), digits.y_test),
        shifted,
        lines,
    )


def _table(
    args: argparse.Namespace,
) -> tuple[Rows, Rows, dict[str, Rows], list[str]]:
    if args.target is None:
        raise ValueError("--target must name the column of the labels, e.g. --target y")
    table = load_table(args.data, args.target, args.domain)
    X, y, domain = table.data, table.target, table.domain
    if not np.isfinite(X).all():
        raise ValueError("features must be finite, but some are infinite. Drop them.")
    check_classification_targets(y)
    name = Path(args.data).name
    lines = [f"{name}, target {args.target!r}"]
    others: dict[str, Rows] = {}
    if domain is not None:
        source, *rest = np.unique(domain)
        if not rest:
            raise ValueError(
                f"--domain must hold at least two values, got only {source!r} in "
                f"{args.domain!r}. Leave it out for synthetic shifts."
            )
        others = {str(v): (X[domain == v], y[domain == v]) for v in rest}
        X, y = X[domain == source], y[domain == source]
        lines.append(
            f"in distribution: {args.domain} = {source}; shifted: {args.domain} = "
            f"{', '.join(others)}"
        )
    classes, counts = np.unique(y, return_counts=True)
    if len(classes) < 2:
        raise ValueError(
            f"{args.target!r} must hold at least two classes, got only "
            f"{classes.tolist()[0]!r}{' in the first domain' if others else ''}."
        )
    X_train, X_test, y_train, y_test = train_test_split(
        X,
        y,
        test_size=0.25,
        random_state=0,
        stratify=y if counts.min() >= 2 and len(y) >= 8 * len(classes) else None,
    )
    X_train, y_train = _at_most(MAX_TRAIN_ROWS, X_train, y_train)
    X_test, y_test = _at_most(MAX_TEST_ROWS, X_test, y_test)
    if len(np.unique(y_train)) < 2:
        raise ValueError(
            f"{args.target!r} must hold two classes after a quarter of the rows is set "
            "aside for testing. Pass more rows."
        )
    if domain is None:
        lines.append("shifted: the test rows under 4 synthetic shifts at severity 3")
        others = {
            type(shift).__name__: (shift.fit(X_train).transform(X_test), y_test)
            for shift in synthetic_shifts()
        }
    others, n_unseen = _known_classes(others, np.unique(y_train))
    lines.append(
        f"{len(X_train)} rows to train on, {len(X_test)} to test on, "
        f"{len(classes)} classes, {X.shape[1]} features"
        + (f"; {n_unseen} shifted rows of unseen classes left out" if n_unseen else "")
    )
    scaler = StandardScaler().fit(X_train)
    scaled = {name: (scaler.transform(X), y) for name, (X, y) in others.items()}
    return (
        (scaler.transform(X_train), y_train),
        (scaler.transform(X_test), y_test),
        scaled,
        lines,
    )


def _at_most(n_rows: int, X: npt.NDArray[Any], y: npt.NDArray[Any]) -> Rows:
    if len(X) <= n_rows:
        return X, y
    rows = np.random.default_rng(0).choice(len(X), n_rows, replace=False)
    return X[rows], y[rows]


def _known_classes(
    shifted: Mapping[str, Rows], classes: npt.NDArray[Any]
) -> tuple[dict[str, Rows], int]:
    known = {name: np.isin(y, classes) for name, (_, y) in shifted.items()}
    kept = {
        name: _at_most(MAX_TEST_ROWS, X[known[name]], y[known[name]])
        for name, (X, y) in shifted.items()
        if known[name].any()
    }
    if not kept:
        raise ValueError(
            "shifted rows must hold classes of the first domain, got none of them."
        )
    return kept, int(sum((~rows).sum() for rows in known.values()))


# -- What it says ------------------------------------------------------------------


def format_table(rows: Sequence[Mapping[str, float]]) -> str:
    """Return the summary as text, one line a temperature."""

    def percent(row: Mapping[str, float], name: str) -> str:
        half = row[f"{name}_interval"]
        tail = "" if np.isnan(half) else f" ±{100 * half:4.1f}"
        return f"{100 * row[name]:5.1f}{tail}"

    header = (
        "temperature", "train acc. %", "test acc. %", "shifted acc. %", "logit norm",
        "eff. rank", "99 % var.", "columns", "kNN acc. %",
    )  # fmt: skip
    body = [
        (
            f"{row['temperature']:g}",
            f"{100 * row['train_accuracy']:.1f}",
            percent(row, "accuracy"),
            percent(row, "shifted_accuracy"),
            f"{row['logit_norm']:.3g}",
            f"{row['effective_rank']:.1f}",
            f"{row['variance_rank']:.1f}",
            f"{row['n_components']:.1f}",
            percent(row, "knn_accuracy"),
        )
        for row in rows
    ]
    widths = [max(map(len, column)) for column in zip(header, *body, strict=True)]
    lines = [
        "  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True))
        for line in (header, *body)
    ]
    lines.insert(1, "  ".join("-" * width for width in widths))
    lines.append(
        "Mean over seeds ± 95 % interval. eff. rank and 99 % var.: directions of the "
        "test embedding;\ncolumns: width of transform(X); kNN: 5 neighbours on it."
    )
    return "\n".join(lines)


def advice(records: Sequence[dict[str, float]], *, synthetic: bool) -> str:
    """Return in two or three sentences what to choose, and why."""
    rows = {row["temperature"]: row for row in summarize_sweep(records)}
    base = rows[1.0]
    rivals = [t for t in rows if t != 1.0]

    # Compact: the smallest transform at no real loss of accuracy.
    kept = [t for t in rivals if base["accuracy"] - rows[t]["accuracy"] <= TOLERANCE]
    compact = min(kept, key=lambda t: rows[t]["n_components"], default=1.0)
    row = rows[compact]
    if row["n_components"] <= base["n_components"] - 1:
        first = (
            f"For a compact embedding take temperature {compact:g}: transform(X) has "
            f"{row['n_components']:.0f} columns instead of "
            f"{base['n_components']:.0f} at temperature 1, with test accuracy "
            f"{100 * row['accuracy']:.1f} % against {100 * base['accuracy']:.1f} %."
        )
    else:
        first = (
            "For a compact embedding temperature 1 is as good as any here: none with "
            f"fewer columns than its {base['n_components']:.0f} keeps its test "
            f"accuracy of {100 * base['accuracy']:.1f} % within half a point."
        )

    best = max(rivals, key=lambda t: rows[t]["shifted_accuracy"])
    gain, half = paired_difference(
        records, "shifted_accuracy", best, n_comparisons=len(rivals)
    )
    figures = f"{100 * gain:+.1f} points" + (
        "" if np.isnan(half) else f" ± {100 * half:.1f}"
    )
    if gain - half > 0:
        second = (
            f"Under shift temperature {best:g} did better than 1 ({figures}, paired "
            f"over seeds, as the best of {len(rivals)})."
        )
    else:
        second = (
            "Under shift no temperature beat 1 beyond the noise of the seeds: the "
            f"best, {best:g}, differs by {figures} (paired, as the best of "
            f"{len(rivals)})."
        )
    third = (
        "These shifts are synthetic: before you rely on it, search the temperature on "
        "shifted data of your own, other than what you report on."
        if synthetic
        else "That was seen on the domains shown, so confirm it on one that played no "
        "part in the choice."
    )
    return f"{first}\n{second}\n{third}"


def _draw(rows: Sequence[Mapping[str, float]], output: Path, title: str) -> int:
    try:
        display = TemperatureSweepDisplay(rows).plot(title=title)
    except ImportError:
        print("No plot: pip install 'sksoftrank[plot]' to get one.", file=sys.stderr)
        return 0
    try:
        display.figure_.savefig(output, dpi=150)
    except (OSError, ValueError) as error:
        print(f"error: the plot can't be written to {output}: {error}", file=sys.stderr)
        return 2
    print(f"Plot: {output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
