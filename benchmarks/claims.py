"""What is claimed of the temperature, each against its controls, with a verdict.

The claims are those of Masarczyk et al. (2025), arXiv:2506.01562, and our own. What is
trained and measured stands in `_claims.py`. Each claim is an effect, in the direction
claimed, of a network at a temperature over

- T=1: the same network at temperature 1, as it is;
- tuned: temperature 1 at the rate and the scale of the first weights that are the most
  accurate on rows held out;
- alike: temperature 1 at that rate and scale which the rule chooses that also chooses
  the temperature (the smallest that keeps accuracy, the best on searched domains);
- dual: temperature 1 at the settings that theory says train the same network. Exact
  but for biases in the plain recipe, and no more than a rate and a scale in the default
  one, whose normalisation breaks it.

Effects are means over data sets of means over seeds, with the 95 % t-interval over the
data sets; of less than three, over seeds. A claim **holds** where the whole interval
reaches its goal, over T=1 and over the tuned control (alike, where there is one);
**partly** where it only lies above zero over T=1, or costs more accuracy than half a
point where it may not; and else **does not**. The accuracy is that on test rows less
that of T=1, in points; train is that on the rows trained on.

Cells are kept as they are done, so that a run that was cut off goes on.
"""

from __future__ import annotations

import itertools
import json
import os
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from _claims import (
    DIAL_TEMPERATURES,
    DIALS,
    FINE_TOLERANCES,
    METHODS,
    TEMPERATURES,
    TOL,
    TOLERANCES,
    measure,
)
from _common import (
    RESULTS,
    ROOT,
    default_device,
    hold_threads,
    mean_interval,
    parser,
    write,
)
from joblib import Parallel, delayed

RECIPES = ("plain", "default")
DATA = ("digits", "gas_drift", "penbased", "satimage", "segment")
SHIFTS = (
    *("digits", "gas", "watch_by_side", "watch_by_subject", "rodents"),
    *("penbased", "segment"),
)
QUICK = ("digits", "segment")
HOT = {"plain": 100, "default": 1000, "cnn": 100, "vit": 100}
RIVALS = ("T=1", "tuned", "alike", "dual")
Cell = dict[str, dict[str, Any]]


# -- What is compared ------------------------------------------------------------------


def fewer(name, ours, theirs):
    """Return how many per cent less there is of a measure."""
    return 100 * (1 - ours[name] / theirs[name])


def fewer_of_classes(name, tol, ours, theirs):
    """Return how many fewer directions are above a tolerance, in % of C - 1."""
    k = TOLERANCES.index(tol)
    return 100 * (theirs[name][k] - ours[name][k]) / (ours["n_classes"] - 1)


def more(name, ours, theirs):
    return ours[name] - theirs[name]


def less(name, ours, theirs):
    return theirs[name] - ours[name]


def best_detector(ours, theirs):
    return max(ours[m] for m in METHODS) - max(theirs[m] for m in METHODS)


def versus(effect, arm, cell):
    """Return a network's effect over each rival."""
    ours = cell[arm]
    name = ours.get("of", arm)
    rivals = {
        "T=1": "T=1",
        "tuned": "tuned",
        "alike": arm.replace("chosen", "alike"),
        "dual": name if name == "T=1" else name.replace("T=", "dual "),
    }
    found = {
        rival: effect(ours, cell[other])
        for rival, other in rivals.items()
        if other in cell and other != arm
    }
    found["accuracy"] = ours["test"] - cell["T=1"]["test"]
    return found | {"train": ours["train"]}


def below_classes(name, tol, arm, cell):
    """Return how far a rank lies below C - 1, and below its rivals', in % of C - 1."""
    found = versus(partial(fewer_of_classes, name, tol), arm, cell)
    own, most = cell[arm][name][TOLERANCES.index(tol)], cell[arm]["n_classes"] - 1
    return found | {"T=1": 100 * (1 - own / most)}


def fall(dial, cell):
    """Return by how many per cent the rank falls with each tenfold temperature."""

    def of(name):
        ranks = [cell[f"{name} T={t:g}"]["effective"] for t in DIAL_TEMPERATURES]
        slope = np.polyfit(np.log10(DIAL_TEMPERATURES), np.log10(ranks), 1)[0]
        return 100 * (1 - 10**slope)

    cold, hot = (cell[f"{dial} T={t:g}"] for t in DIAL_TEMPERATURES[::2])
    return {
        "T=1": of(dial),
        "plain": of(dial) - of("plain"),
        "accuracy": hot["test"] - cold["test"],
        "train": hot["train"],
    }


def at_target(effect, asked, cell):
    """Return an effect of the network with the rank that was asked for."""
    ours, cold = cell[f"target {asked}"], cell["T=1"]
    return {
        "T=1": effect(ours, cold),
        "accuracy": ours["test"] - cold["test"],
        "train": ours["train"],
    }


def room(ours, _):
    """Return by how much the rank is nearer than a tenth, or one, in per cent."""
    miss = abs(ours["rank"] - ours["asked"])
    return 100 * (max(1, 0.1 * ours["asked"]) - miss) / ours["asked"]


# -- Claims ----------------------------------------------------------------------------


@dataclass
class Claim:
    """What is claimed of the cells of a kind.

    `effect` gives of a cell the effect over each rival.
    """

    text: str
    cells: str
    effect: Callable[[Cell], dict[str, float]]
    goal: float = 0.0
    unit: str = "%"
    keeps_accuracy: bool = False


def rank_claims(recipe, cells):
    hot = HOT[recipe]
    names = {
        "effective": "effective rank of the embedding",
        "z99": "directions of 99 % of the embedding's variance",
        "logits_effective": "effective rank of the logits",
    }
    for name, text in names.items():
        yield Claim(
            f"{text}: lower at T={hot} (by)",
            cells,
            partial(versus, partial(fewer, name), f"T={hot}"),
        )
    for name, text in {"numerical": "embedding", "logits_numerical": "logits"}.items():
        for tol in (0.1, 0.01, 0.001):
            yield Claim(
                f"rank of the {text} at tolerance {tol:g}: below C - 1 at T={hot} (by)",
                cells,
                partial(below_classes, name, tol, f"T={hot}"),
                unit="% of C - 1",
            )


def size_claims(cells):
    names = {
        "z99": "directions of 99 % of the variance",
        "auto": "columns of `transform`",
        "rmin": "fewest directions that keep accuracy",
    }
    for size, text in names.items():
        yield Claim(
            f"{text}: 30 % fewer, T chosen on rows held out",
            cells,
            partial(versus, partial(fewer, size), f"chosen {size}"),
            goal=30.0,
            keeps_accuracy=True,
        )


def shift_claims(cells, temperatures):
    for t in temperatures:
        yield Claim(
            f"accuracy under shift: higher at T={t:g}",
            cells,
            partial(versus, partial(more, "report"), f"T={t:g}"),
            unit="points",
        )


def chosen_shift_claim(cells):
    return Claim(
        "accuracy under shift: higher at a T chosen on other shifted domains",
        cells,
        partial(versus, partial(more, "report"), "chosen search"),
        unit="points",
    )


def new_class_claims(cells, high, low):
    yield Claim(
        f"detecting new classes, best of {', '.join(METHODS)}: better at T={high}",
        cells,
        partial(versus, best_detector, f"T={high}"),
        unit="points of AUROC",
    )
    for t, how, word in ((high, less, "worse"), (low, more, "better")):
        yield Claim(
            f"telling new classes apart (linear probe): {word} at T={t}",
            cells,
            partial(versus, partial(how, "probe"), f"T={t}"),
            unit="points",
        )


def target_claims(cells):
    for asked in ("0.5", "0.25", "2C"):
        name = asked if asked == "2C" else f"{float(asked):g} of that at T=1"
        yield Claim(
            f"`target_rank` {name}: within a tenth, or one, with room of",
            cells,
            partial(at_target, room, asked),
            unit="% of it",
        )
    yield Claim(
        "`target_rank`: fewer plain fits than six, by",
        cells,
        partial(at_target, lambda ours, _: 6 - ours["fits"], "0.5"),
        unit="fits",
    )
    for asked, (size, text) in itertools.product(
        ("0.5", "0.25"),
        {
            "z99": "directions of 99 % of the variance",
            "auto": "columns of `transform`",
            "rmin": "fewest directions that keep accuracy",
        }.items(),
    ):
        yield Claim(
            f"`target_rank={asked}`, {text}: 50 % fewer",
            cells,
            partial(at_target, partial(fewer, size), asked),
            goal=50.0,
            keeps_accuracy=True,
        )


def all_claims():
    """Yield the claims by the heading they stand under."""
    for recipe in RECIPES:
        cells = f"{{}}/{recipe}".format
        claims = [*rank_claims(recipe, cells("ranks")), *size_claims(cells("ranks"))]
        claims += shift_claims(cells("shift"), (0.3, 30))
        claims += [chosen_shift_claim(cells("shift"))]
        claims += new_class_claims(cells("new_classes"), HOT[recipe], 0.3)
        yield f"Tables, {recipe} recipe", claims
    for recipe in RECIPES:
        claims = target_claims(f"target/{recipe}")
        yield f"Tables, {recipe} recipe, a rank that is asked for", [*claims]
    yield (
        "Tables, plain recipe and one thing changed: the effective rank falls with T, "
        "with every tenfold by",
        [Claim(dial, "dials/plain", partial(fall, dial)) for dial in DIALS],
    )
    for recipe in ("cnn", "vit"):
        cells = f"images/{recipe}"
        claims = [*rank_claims(recipe, cells), *size_claims(cells)]
        claims += shift_claims(cells, (0.3, 100))
        claims += new_class_claims(cells, HOT[recipe], 0.3)
        if recipe == "vit":
            claims += attention_claims(cells)
        yield f"CIFAR-10, {recipe.upper()}", claims


def attention_claims(cells):
    measured = {
        "effective rank of the embedding: lower": ("effective", fewer, "%"),
        "accuracy under shift: higher": ("report", more, "points"),
        "telling new classes apart: better": ("probe", more, "points"),
    }
    for t, (text, (name, how, unit)) in itertools.product(
        ("0.3", "10"), measured.items()
    ):
        effect = partial(versus, partial(how, name), f"attention {t}")
        yield Claim(f"{text} at attention temperature {t}", cells, effect, unit=unit)


# -- Verdicts --------------------------------------------------------------------------


def interval(values):
    """Return mean and half-width over data sets, of few over seeds."""
    if len(values) >= 3:
        return mean_interval([np.mean(list(own.values())) for own in values.values()])
    seeds = set.intersection(*(set(own) for own in values.values()))
    # Without a seed that all have there is a mean, and no interval.
    groups = [[own[s] for own in values.values()] for s in sorted(seeds)]
    every = [value for own in values.values() for value in own.values()]
    return mean_interval([np.mean(group) for group in groups or [every]])


def reaches(pair, goal):
    mean, half = pair
    return mean - half >= goal if goal else mean - half > 0


def verdict(row, claim):
    """Return what the intervals say of a claim."""
    if not np.isfinite(row["T=1"][1]):
        return "one seed"
    control = row.get("alike") or row.get("tuned") or row["T=1"]
    if not reaches(row["T=1"], 0.0):
        return "does not"
    is_kept = not claim.keeps_accuracy or reaches(
        (row["accuracy"][0] + 100 * TOL, row["accuracy"][1]), 0.0
    )
    is_reached = reaches(row["T=1"], claim.goal) and reaches(control, claim.goal)
    return "holds" if is_reached and is_kept else "partly"


def row_of(claim, cells):
    """Return a claim's row, or None if there are no cells for it."""
    values, n_without = {}, 0
    for key, cell in cells.items():
        if not key.startswith(f"{claim.cells}/"):
            continue
        name, seed = key.split("/")[2:]
        try:
            found = claim.effect(cell)
        except KeyError:  # A network that has diverged, or whose rank can't be had.
            n_without += 1
            continue
        for rival, value in found.items():
            values.setdefault(rival, {}).setdefault(name, {})[seed] = float(value)
    if not values:
        return None
    row = {"claim": claim.text, "goal": claim.goal, "unit": claim.unit}
    row |= {rival: interval(own) for rival, own in values.items()}
    own = values["T=1"]
    row |= {
        "by_data": {name: float(np.mean(list(v.values()))) for name, v in own.items()},
        "n_data": len(own),
        "n_seeds": sorted({len(v) for v in own.values()}),
        "n_without": n_without,
    }
    return row | {"verdict": verdict(row, claim)}


def rows_by_heading(cells):
    """Return all rows, by heading."""
    found = {
        heading: [row for claim in claims if (row := row_of(claim, cells))]
        for heading, claims in all_claims()
    }
    return {heading: rows for heading, rows in found.items() if rows}


def as_markdown(headings):
    """Return the tables of all claims."""
    lines = []
    for heading, rows in headings.items():
        rivals = [r for r in (*RIVALS, "plain") if any(r in row for row in rows)]
        columns = ["claim", *(f"over {r}" for r in rivals), "accuracy", "train"]
        columns += ["data, seeds", "verdict"]
        lines += [
            "",
            f"**{heading}**",
            "",
            _line(columns),
            _line(["---"] * len(columns)),
        ]
        for row in rows:
            text = f"{row['claim']} ({row['unit']})"
            seeds = "-".join(map(str, row["n_seeds"]))
            lacking = f" (none: {row['n_without']})" if row["n_without"] else ""
            lines.append(
                _line(
                    [
                        text,
                        *(_figure(row.get(rival)) for rival in rivals),
                        _figure(row["accuracy"], 2),
                        f"{row['train'][0]:.1f}",
                        f"{row['n_data']}, {seeds}{lacking}",
                        row["verdict"],
                    ]
                )
            )
    return "\n".join(lines[1:])


# Of the README: what is said, of which network, and the row that tells.
README_ROWS = [
    (
        "the embedding's effective rank falls (T = 1000)",
        "MLP",
        "effective rank of the e",
    ),
    ("the same (T = 100)", "CNN", "effective rank of the e"),
    ("the same (T = 100)", "transformer", "effective rank of the e"),
    (
        "the logits' rank is below the classes less one (T = 1000)",
        "MLP",
        "rank of the logits at tolerance 0.1:",
    ),
    (
        "30 % fewer directions hold 99 % of the variance",
        "MLP",
        "directions of 99 % of the variance: 30 %",
    ),
    ("30 % fewer columns of `transform`", "MLP", "columns of `transform`: 30 %"),
    (
        "more accurate under shift, T chosen on other domains",
        "MLP",
        "accuracy under shift: higher at a T",
    ),
    ("better at detecting new classes (T = 1000)", "MLP", "detecting new classes"),
    (
        "worse at telling new classes apart (T = 1000)",
        "MLP",
        "telling new classes apart (linear probe): worse",
    ),
]
README_HEADINGS = {
    "MLP": "Tables, default recipe",
    "CNN": "CIFAR-10, CNN",
    "transformer": "CIFAR-10, VIT",
}


def readme_table(headings):
    """Return the README's table, of the default recipe."""
    columns = ["claim", "network", "over T = 1", "over T = 1 tuned", "verdict"]
    lines = [_line(columns), _line(["---"] * len(columns))]
    for text, kind, start in README_ROWS:
        rows = headings[README_HEADINGS[kind]]
        row = next(row for row in rows if row["claim"].startswith(start))
        unit = row["unit"].split(" of ")[0]
        control = row.get("alike") or row["tuned"]
        figures = [f"{_figure(pair)} {unit}" for pair in (row["T=1"], control)]
        lines.append(_line([text, kind, *figures, row["verdict"]]))
    return "\n".join(lines)


def _line(cells):
    return f"| {' | '.join(cells)} |"


def _figure(pair, digits=1):
    return f"{pair[0]:+.{digits}f} ± {pair[1]:.{digits}f}" if pair else ""


# -- By temperature --------------------------------------------------------------------


def by_temperature(cells):
    """Return means over data sets of what is measured, by recipe and temperature."""
    columns = {
        "ranks": ("train", "test", "effective", "z99", "auto", "rmin"),
        "shift": ("report",),
        "new_classes": (*METHODS, "probe"),
    }
    table = {}
    for recipe in RECIPES:
        for t in TEMPERATURES[recipe]:
            row = {}
            for kind, names in columns.items():
                own = [
                    cell[f"T={t:g}"]
                    for key, cell in cells.items()
                    if key.startswith(f"{kind}/{recipe}/") and f"T={t:g}" in cell
                ]
                if own:
                    row |= {n: float(np.mean([r[n] for r in own])) for n in names}
            if row:
                table[f"{recipe} T={t:g}"] = row
    return table


def draw(cells, path, name="digits"):
    """Draw how the rank depends on the tolerance, at some temperatures."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    fig, axes = plt.subplots(2, 2, figsize=(8, 6), sharex=True, layout="constrained")
    kinds = {"curve": "embedding", "logits_curve": "logits"}
    for (row, (kind, text)), (column, recipe) in itertools.product(
        enumerate(kinds.items()), enumerate(RECIPES)
    ):
        ax = axes[row, column]
        own = [c for k, c in cells.items() if k.startswith(f"ranks/{recipe}/{name}/")]
        shown = [t for t in TEMPERATURES[recipe] if t in (0.3, 1, 10, 100, 1000)]
        for t, line, shade in zip(
            shown, ("-", "--", "-.", ":", "-"), np.linspace(0.0, 0.55, 5), strict=False
        ):
            mean = np.mean([cell[f"T={t:g}"][kind] for cell in own], axis=0)
            style = {"color": str(shade), "label": f"T = {t:g}"}
            style |= {"marker": "o", "markersize": 3} if t == 1000 else {}
            ax.plot(FINE_TOLERANCES, mean, line, **style)
        ax.axhline(9, color="0.8", zorder=0)
        ax.annotate("C - 1", (FINE_TOLERANCES[-1], 9), ha="right", va="top")
        ax.set(xscale="log", title=f"{text}, {recipe} recipe")
        if column == 0:
            ax.set_ylabel("directions above the tolerance")
        if row == 1:
            ax.set_xlabel("tolerance, of the largest singular value")
            ax.set_ylim(0, 10)
            ax.legend(frameon=False, loc="lower right")
        else:
            ax.set(yscale="log")
    axes[0, 0].invert_xaxis()
    fig.savefig(path, dpi=110)


# -- Run -------------------------------------------------------------------------------


def wanted(args):
    """Return the keys of all cells, a seed of all before the next."""
    if args.images:
        return [
            f"images/{recipe}/cifar10/{seed}"
            for seed, recipe in itertools.product(range(args.seeds), ("cnn", "vit"))
        ]
    data = dict.fromkeys(("ranks", "dials", "new_classes", "target"), DATA)
    data["shift"] = SHIFTS
    if args.quick:
        data = dict.fromkeys(data, QUICK)
    keys = []
    for seed, (kind, names) in itertools.product(range(args.seeds), data.items()):
        recipes = ("plain",) if kind == "dials" else RECIPES
        keys += [f"{kind}/{r}/{name}/{seed}" for r in recipes for name in names]
    return keys


def cell_of(key, folder, threads):
    """Return a key, its cell and the seconds it took."""
    hold_threads(threads)
    warnings.simplefilter("ignore")
    start = time.perf_counter()
    return key, measure(key, folder), time.perf_counter() - start


def save(cells):
    results = {
        "rows": rows_by_heading(cells),
        "by_temperature": by_temperature(cells),
        "cells": {key: cells[key] for key in sorted(cells)},
    }
    settings = {"tolerances": FINE_TOLERANCES, "seed": "in each cell's key"}
    write("claims", results, device=default_device(), **settings)


def main():
    p = parser(__doc__)
    p.set_defaults(threads=1)
    p.add_argument("--seeds", type=int)
    p.add_argument("--quick", action="store_true", help="of two data sets, two seeds")
    p.add_argument("--images", action="store_true", help="CNN and ViT, and no tables")
    p.add_argument("--jobs", type=int, default=os.cpu_count())
    p.add_argument("--picture", type=Path, default=ROOT.parent / "docs")
    args = p.parse_args()
    args.seeds = args.seeds or (2 if args.quick or args.images else 5)
    hold_threads(args.threads)
    path = RESULTS / "claims.json"
    cells = json.loads(path.read_text())["results"]["cells"] if path.exists() else {}
    left = [key for key in wanted(args) if key not in cells]
    done = Parallel(n_jobs=args.jobs, return_as="generator_unordered")(
        delayed(cell_of)(key, args.data, args.threads) for key in left
    )
    for key, cell, seconds in done:
        cells[key] = cell
        print(f"{key} {seconds:.0f} s", flush=True)
        save(cells)
    save(cells)
    if any(key.startswith("ranks/default/digits/") for key in cells):
        draw(cells, args.picture / "rank_tolerance.png")
    headings = rows_by_heading(cells)
    print(as_markdown(headings))
    if not args.quick and set(README_HEADINGS.values()) <= set(headings):
        print(readme_table(headings))
    for row, figures in by_temperature(cells).items():
        print(row, {k: round(v, 1) for k, v in figures.items()})


if __name__ == "__main__":
    main()
