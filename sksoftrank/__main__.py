"""``python -m sksoftrank``: what each temperature does, on digits or on your table."""

from __future__ import annotations

import argparse
import shlex
import sys
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from sklearn.model_selection import train_test_split
from sklearn.preprocessing import StandardScaler
from tqdm import tqdm

from sksoftrank._features import fit_encoder, order_domains, sort_features
from sksoftrank._tables import read_table, shorten, stem
from sksoftrank.datasets import load_digits_shift, synthetic_shifts
from sksoftrank.displays import TemperatureSweepDisplay
from sksoftrank.estimators import SoftRankMLPClassifier
from sksoftrank.inspection import (
    TEMPERATURES,
    paired_difference,
    summarize_sweep,
    temperature_sweep,
)
from sksoftrank.reporting._page import check_target
from sksoftrank.reporting._sweep import report_sweep

# More rows than this are sampled, and fits of more rows get fewer epochs, so that the
# whole takes a minute or two.
MAX_TRAIN_ROWS, MAX_TEST_ROWS = 50_000, 10_000
ROW_VISITS = 250_000
# In-distribution accuracy that a recommended temperature may lose, as a share.
TOLERANCE = 0.005
# Fewer rows leave less than the five neighbours that the sweep asks for.
MIN_ROWS = 8

Rows = tuple[npt.NDArray[Any], npt.NDArray[Any]]
# Of rows in a table.
Places = npt.NDArray[np.intp]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the demo; return the exit code."""
    args = _parser().parse_args(argv)
    try:
        return _run(args)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130


def _run(args: argparse.Namespace) -> int:
    output = args.output or _default_output(args.data)
    if not output.suffix and not output.is_dir():
        output = output.with_suffix(".png")  # As matplotlib would, without a word.
    try:
        _check_options(args, output)
        train, test, shifted, lines = _digits() if args.data is None else _table(args)
    except (ValueError, OSError, ImportError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    print("\n".join(lines), end="\n\n", flush=True)

    records = _sweep(train, test, shifted, args.seeds)
    rows = summarize_sweep(records)
    print(format_table(rows), end="\n\n")
    said = advice(records, synthetic=args.domain is None)
    print(said, end="\n\n")
    seeds = "one seed"
    if args.seeds > 1:
        seeds = f"mean of {args.seeds} seeds and its 95 % interval"
    code = _draw(rows, output, f"{lines[0]}: {seeds}")
    return _report(args, rows, lines, said) or code if args.report else code


def _sweep(
    train: Rows, test: Rows, shifted: Mapping[str, Rows], n_seeds: int
) -> list[dict[str, float]]:
    epochs = int(np.clip(ROW_VISITS // len(train[0]), 3, 50))
    progress = tqdm(
        total=len(TEMPERATURES) * n_seeds,
        desc="training",
        unit="fit",
        leave=False,
        disable=not sys.stderr.isatty(),
    )
    with progress, warnings.catch_warnings():
        # Ctrl-C ends a fit with a warning and what it has learnt so far. Here it is to
        # end the whole sweep.
        warnings.filterwarnings("error", ".*interrupted", UserWarning)
        # Many classes of few rows each: they were looked at when the table was read.
        warnings.filterwarnings("ignore", "The number of unique classes", UserWarning)
        try:
            return temperature_sweep(
                SoftRankMLPClassifier(max_epochs=epochs),
                train,
                test,
                shifted,
                temperatures=TEMPERATURES,
                n_seeds=n_seeds,
                on_fit=progress.update,
            )
        except UserWarning as interruption:
            if "interrupted" not in str(interruption):
                raise
            raise KeyboardInterrupt from interruption


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m sksoftrank",
        description="Train an MLP at several softmax temperatures and show what each "
        "does to accuracy, rank, size and accuracy under shift.",
    )
    parser.add_argument(
        "data",
        nargs="?",
        help="CSV, TSV or Parquet table (default: scikit-learn's digits)",
    )
    parser.add_argument("--target", metavar="COL", help="column of the labels")
    parser.add_argument(
        "--domain",
        metavar="COL",
        help="column that tells where or when a row comes from: one of its values is "
        "trained on, the others are the shift",
    )
    parser.add_argument(
        "--source",
        metavar="VALUE",
        help="value of the domain that is trained on (default: the first, in the order "
        "of time, numbers, categories or the alphabet)",
    )
    parser.add_argument(
        "--seeds",
        type=_positive,
        default=3,
        metavar="N",
        help="fits per temperature (default: 3)",
    )
    parser.add_argument(
        "--output",
        metavar="PNG",
        type=Path,
        help="where the plot goes (default: NAME_temperature.png, here)",
    )
    parser.add_argument(
        "--report",
        metavar="HTML",
        type=Path,
        help="where a report goes, of all this in one page (default: none is made)",
    )
    return parser


def _positive(text: str) -> int:
    try:
        value = int(text)
    except ValueError:
        value = 0
    if value < 1:
        raise argparse.ArgumentTypeError(
            f"must be a whole number of at least 1, got {text!r}"
        )
    return value


def _default_output(data: str | None) -> Path:
    return Path(f"{'sksoftrank' if data is None else stem(data)}_temperature.png")


def _check_options(args: argparse.Namespace, output: Path) -> None:
    """Refuse, before any work, what can't come to an end."""
    if args.data is None:
        for name in ("target", "domain", "source"):
            if getattr(args, name) is not None:
                raise ValueError(
                    f"--{name} must come with a table, got none. Name its file first: "
                    f"python -m sksoftrank table.csv --{name} {getattr(args, name)}"
                )
    elif args.target is None:
        raise ValueError("--target must name the column of the labels, e.g. --target y")
    elif args.target == args.domain:
        raise ValueError(
            "--target and --domain must be two columns, got "
            f"{args.target!r} for both. Leave --domain out for synthetic shifts."
        )
    elif args.source is not None and args.domain is None:
        raise ValueError(
            f"--source must come with --domain, got {args.source!r} alone. Name the "
            "column that holds it: --domain COL"
        )
    if output.is_dir():
        raise ValueError(
            f"--output must be a file, got the directory {str(output)!r}. Name a file "
            "in it."
        )
    if not output.parent.is_dir():
        raise ValueError(
            f"--output must lie in a directory that exists, got {str(output)!r}. "
            f"Create {str(output.parent)!r} first."
        )
    _check_kind(output)
    if args.report is not None:
        check_target(args.report, "--report")


def _check_kind(output: Path) -> None:
    """Refuse a picture of a kind that matplotlib can't write."""
    try:
        from matplotlib.backend_bases import FigureCanvasBase
    except ImportError:  # There will be no plot.
        return
    kinds = FigureCanvasBase.get_supported_filetypes()
    if output.suffix[1:].lower() not in kinds:
        raise ValueError(
            f"--output must end in one of {', '.join(sorted(kinds))}, got "
            f"{str(output)!r}. Name it {output.with_suffix('.png').name!r}, say."
        )


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
    frame, notes = read_table(args.data, args.target, args.domain)
    lines = [f"{Path(args.data).name}, target {args.target!r}", *notes]
    features, notes = sort_features(frame.drop(columns=_roles(args)))
    lines += notes
    if features.shape[1] == 0:
        raise ValueError(
            f"{Path(args.data).name} must have a column to learn from, got none beside "
            f"{', '.join(_roles(args))}; {'; '.join(notes)}. Add features."
        )
    for name, values in features.items():
        # Also infinite ones; and the squares of what is left stay finite.
        if values.dtype.kind == "f" and (values.abs() >= 1e100).any():
            raise ValueError(
                "features must be finite numbers below 1e100, but some are not in "
                f"{name!r}. Drop them."
            )
    kept = np.ones(len(frame), dtype=bool)
    for role, column in zip(("label", "domain"), _roles(args), strict=False):
        missing = frame[column].isna().to_numpy() & kept
        kept &= ~missing
        if missing.any():
            lines.append(
                f"left out for want of a {role}: {missing.sum()} of {len(frame)} rows"
            )
    places = np.flatnonzero(kept)
    y = _labels(frame[args.target])

    others: dict[str, Places] = {}
    where = ""
    if args.domain is not None:
        places, others, source = _domains(frame[args.domain], places, args)
        where = f" where {args.domain} is {source!r}"
    _check_classes(y[places], args.target, where)
    train, test = _split(places, y, args.target)
    if args.domain is not None:
        others, n_unseen = _known_classes(others, y, np.unique(y[train]))
        lines.append(
            f"in distribution: {args.domain} = {source}; shifted: {args.domain} = "
            f"{shorten(others)}"
            + (f" ({n_unseen} rows of unseen classes left out)" if n_unseen else "")
        )

    encoder, notes = fit_encoder(features.iloc[train])
    lines += notes

    def encode(rows: Places) -> Rows:
        return encoder.transform(features.iloc[rows]), y[rows]

    in_distribution = encode(train), encode(test)
    shifted = {name: encode(rows) for name, rows in others.items()}
    if args.domain is None:
        lines.append("shifted: the test rows under 4 synthetic shifts at severity 3")
        (X_train, _), (X_test, y_test) = in_distribution
        shifted = {
            type(shift).__name__: (shift.fit(X_train).transform(X_test), y_test)
            for shift in synthetic_shifts()
        }
    n_columns = in_distribution[0][0].shape[1]
    lines.append(
        f"{len(train)} rows to train on, {len(test)} to test on, "
        f"{len(np.unique(y[train]))} classes, {features.shape[1]} features"
        + (f" in {n_columns} columns" if n_columns != features.shape[1] else "")
    )
    scaler = StandardScaler().fit(in_distribution[0][0])

    def scale(rows: Rows) -> Rows:
        return scaler.transform(rows[0]), rows[1]

    train_rows, test_rows = map(scale, in_distribution)
    return (
        train_rows,
        test_rows,
        {name: scale(rows) for name, rows in shifted.items()},
        lines,
    )


def _roles(args: argparse.Namespace) -> list[str]:
    """Return the columns that are no features."""
    return [name for name in (args.target, args.domain) if name is not None]


def _labels(column: Any) -> npt.NDArray[Any]:
    """Return labels that can be sorted: of mixed things, their text."""
    values: npt.NDArray[Any] = column.to_numpy()
    return values.astype(str) if values.dtype == object else values


def _domains(
    column: Any, places: Places, args: argparse.Namespace
) -> tuple[Places, dict[str, Places], str]:
    """Return the rows of the source, those of each other domain, and its name."""
    codes, names = order_domains(column.iloc[places])
    if len(names) < 2:
        raise ValueError(
            "--domain must hold at least two values, got only "
            f"{shorten(map(repr, names)) or 'none'} in {args.domain!r}. Leave "
            "it out for synthetic shifts."
        )
    source = names[0] if args.source is None else args.source
    if source not in names:
        raise ValueError(
            f"--source must be a value of {args.domain!r}, got {source!r}. It has: "
            f"{shorten(names, 20)}."
        )
    by_name = {name: places[codes == code] for code, name in enumerate(names)}
    return by_name.pop(source), by_name, source


def _check_classes(y: npt.NDArray[Any], target: str, where: str) -> None:
    classes = np.unique(y)
    if len(y) < MIN_ROWS:
        raise ValueError(
            f"the table must hold at least {MIN_ROWS} rows{where}, got {len(y)}. "
            "Add more."
        )
    if len(classes) < 2:
        raise ValueError(
            f"--target {target!r} must hold at least two classes{where}, got only "
            f"{classes.tolist()[0]!r}. Add rows of another."
        )
    whole = y.dtype.kind != "f" or (np.isfinite(y) & (y == np.floor(y))).all()
    if y.dtype.kind not in "biufU" or not whole or 2 * len(classes) > len(y):
        raise ValueError(
            f"--target {target!r} must hold classes, got {len(classes)} different "
            f"values in {len(y)} rows, such as {str(classes[0])!r}. Name a column of "
            "labels, or cut the values into ranges."
        )


def _split(places: Places, y: npt.NDArray[Any], target: str) -> tuple[Places, Places]:
    _, counts = np.unique(y[places], return_counts=True)
    can_stratify = counts.min() >= 2 and len(places) >= 8 * len(counts)
    train, test = train_test_split(
        places,
        test_size=0.25,
        random_state=0,
        stratify=y[places] if can_stratify else None,
    )
    train = _at_most(MAX_TRAIN_ROWS, train)
    known = np.isin(y[test], y[train])
    if len(np.unique(y[train])) < 2 or not known.any():
        raise ValueError(
            f"--target {target!r} must still hold two classes after a quarter of the "
            f"rows is set aside for testing, got {counts.tolist()} rows of each in "
            "all. Add rows of the rare ones."
        )
    return train, _at_most(MAX_TEST_ROWS, test[known])


def _at_most(n_rows: int, places: Places) -> Places:
    if len(places) <= n_rows:
        return places
    return np.random.default_rng(0).choice(places, n_rows, replace=False)


def _known_classes(
    others: Mapping[str, Places], y: npt.NDArray[Any], classes: npt.NDArray[Any]
) -> tuple[dict[str, Places], int]:
    known = {name: rows[np.isin(y[rows], classes)] for name, rows in others.items()}
    kept = {
        name: _at_most(MAX_TEST_ROWS, rows) for name, rows in known.items() if len(rows)
    }
    if not kept:
        raise ValueError(
            "the other domains must hold classes of the one trained on, got none of "
            "them. Check --domain, --source and --target."
        )
    return kept, sum(len(others[name]) - len(known[name]) for name in others)


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
    one_seed = all(np.isnan(row["accuracy_interval"]) for row in rows)
    seeds = "One seed." if one_seed else "Mean over seeds ± 95 % interval."
    lines.append(
        f"{seeds} eff. rank and 99 % var.: directions of the "
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
    if np.isnan(half):
        second = (
            f"Under shift temperature {best:g} was the best of the others, and differs "
            f"from 1 by {figures}. One seed can't tell that from noise: pass --seeds 3 "
            "or more."
        )
    elif gain - half > 0:
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
        # A dollar sign would start a formula.
        display = TemperatureSweepDisplay(rows).plot(title=title.replace("$", r"\$"))
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


def _report(
    args: argparse.Namespace,
    rows: Sequence[Mapping[str, float]],
    lines: Sequence[str],
    said: str,
) -> int:
    try:
        report_sweep(
            rows,
            args.report,
            title=f"Temperatures on {lines[0]}",
            data=lines[1:],
            advice=said.splitlines(),
            n_seeds=args.seeds,
            command=_command(args),
        )
    except OSError as error:
        print(f"error: the report can't be written: {error}", file=sys.stderr)
        return 2
    print(f"Report: {args.report}")
    return 0


def _command(args: argparse.Namespace) -> str:
    """Return what to type for the same again."""
    words = ["python", "-m", "sksoftrank"]
    if args.data is not None:
        # No option, whatever it begins with.
        words.append(args.data if args.data[0] != "-" else f"./{args.data}")
    for name in ("target", "domain", "source", "seeds", "output", "report"):
        value = getattr(args, name)
        if value is not None:
            words.append(f"--{name}={value}")
    return " ".join(map(shlex.quote, words))


if __name__ == "__main__":
    sys.exit(main())
