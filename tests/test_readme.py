"""The README's examples run, in order, and its links lead somewhere."""

import importlib
import json
import re
from functools import reduce
from pathlib import Path

import pytest

from sksoftrank.__main__ import _parser

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
TEXT = README.read_text(encoding="utf-8")
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks(language):
    """Return first line and text of every block in a language."""
    return [
        (TEXT.count("\n", 0, match.start(2)) + 1, match.group(2))
        for match in BLOCK.finditer(TEXT)
        if match.group(1) == language
    ]


def test_the_blocks_are_found():
    assert blocks("python")
    assert len(blocks("python")) + len(blocks("sh")) == TEXT.count("```") // 2


def test_examples_run(monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)  # They leave one file behind.
    namespace = {"__name__": "readme"}
    for line, source in blocks("python"):
        # Blank lines in front: a traceback then gives the line in the README.
        code = compile("\n" * (line - 1) + source, str(README), "exec")
        exec(code, namespace)
    assert capsys.readouterr().err == ""
    assert [path.name for path in tmp_path.iterdir()] == ["model.safetensors"]

    X_test, y_test = namespace["X_test"], namespace["y_test"]
    assert namespace["model"].score(X_test, y_test) > 0.93


def test_examples_fit_the_page():
    for _, source in (*blocks("python"), *blocks("sh")):
        assert max(map(len, source.splitlines())) <= 88


def test_commands_exist():
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.M))
    commands = "\n".join(source for _, source in blocks("sh"))
    used = set(re.findall(r"\bmake ([a-z]+)", commands + TEXT))
    assert {"demo", "test"} <= used <= targets
    (demo,) = re.findall(r"-m sksoftrank (.+)", commands)
    args = _parser().parse_args(demo.split())
    assert (args.data, args.target, args.domain) == ("table.csv", "label", "month")


def test_links_lead_somewhere():
    links = re.findall(r"\]\(([^)]+)\)", TEXT)
    local = [link for link in links if "://" not in link]
    assert "docs/temperature.png" in local
    missing = [link for link in local if not (ROOT / link).is_file()]
    assert missing == []


# -- Figures ---------------------------------------------------------------------------


def prose_of(text):
    """Return text without code, addresses, and breaks of lines."""
    words = re.sub(r"`[^`]*`|\]\([^)]*\)", "", BLOCK.sub("", text)).replace("|", " ")
    return " ".join(words.split())


PROSE = prose_of(TEXT)
COUNT = ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]
NUMBER = re.compile(
    r"\d[\d.,]*|±|%|\b(half|twice|double|third|fourth|fifth|tenth|several|dozens?|"
    rf"hundreds?|eleven|twelve|fifteen|twenty|{'|'.join(COUNT[1:])})\b",
    re.IGNORECASE,
)
# Numbers that nobody measured.
GIVEN = [
    "holds out a fifth of the rows",
    "of fourteen tables with 2,000 rows at most, three splits each",
    "with one core",
    "Python 3.11 or later",
    "(2025)",
    "five nearest neighbours",
    "A network at temperature 1",
    "that hold 99 % of the variance",
    "With 10,000 images of CIFAR-10",
    "trains three networks on the rest",
    "twice as long with less, and for eight times as long (of few rows, four)",
    "of very many rows, a fourth without any",
    "of 128-128 at temperature 1",
    "more than half a point to their baseline",
    "arXiv:2506.01562",
    "BSD-3-Clause",
    "and T = 1 with its rate",
    "95 % interval over five tables, or seven shifts, of five seeds each",
    "over three seeds, which at T = 100 had",
]


def read(name, *keys):
    """Return what a benchmark measured."""
    file = ROOT / "benchmarks" / "results" / f"{name}.json"
    return reduce(lambda part, key: part[key], keys, json.loads(file.read_text()))


def search_times(*rivals):
    """Return the least and most times as long that these searches take."""
    times = [
        search["wall"][rival]
        for search in read("stacked_speed", "results", "search")
        for rival in rivals
    ]
    return min(times), max(times)


def of_images(kind):
    """Return the accuracy of a default at two temperatures."""
    rows = read("image_defaults", "results", "summary")
    one, ten = (rows[f"{kind}/now/T={t}"]["accuracy"][0] for t in (1, 10))
    return f"{one:.1f} % at a temperature of 1 and {ten:.1f} at 10"


def under_shift():
    """Return what a search gained, of how many, and how many did harm."""
    summary = read("ood_accuracy", "results", "summary")
    found = summary["groups"]["all but null"]
    shifts = [name for name in summary["protocols"] if not name.startswith("null")]
    gains = [
        "{:.1f} ± {:.1f}".format(*found["gains"][f"choice over {rival}"]["gain"])
        for rival in ("first_default", "baseline", "default", "id_search")
    ]
    n = found["n_searches"]
    n_harmed = round(n * found["harm_rate"])
    return [
        f"In {n} searches of 72 trials, over {len(shifts)} shifts",
        f"gained {gains[0]} points over a tuned network",
        f"{gains[1]} over its own baseline, and {gains[2]} over the default",
        f"{n_harmed} of these searches lost",
        f"it gained {gains[3]}: on average no better",
    ]


def table_rows():
    """Return the rows of the table of what to take, and the differences below it."""
    found = read("tables", "results", "summary", "2000 rows, all")
    models = ("default", "fixed", "robust", *PEERS)
    rows = [f"{found[m]['accuracy']:.1f} {found[m]['seconds']:.1f}" for m in models]
    less = [
        "{:+.1f} ± {:.1f}".format(*found[model]["default_less_it"]) for model in PEERS
    ]
    error = [f"{found[m]['calibration_error']:.1f}" for m in ("default", PEERS[0])]
    return [
        *rows,
        f"by {', '.join(less[:-1])} and {less[-1]} points",
        f"{error[0]} points against {error[1]}",
    ]


PEERS = ("MLPClassifier", "HistGradientBoosting", "RandomForest", "RealMLP-TD-S")


def claims_table():
    """Return the table of claims as their benchmark makes it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT / "benchmarks")
        claims = importlib.import_module("claims")
    return claims.readme_table(read("claims", "results", "rows"))


def test_the_table_of_claims_is_the_benchmarks():
    assert claims_table() in TEXT


def figures():
    """Return each passage with a figure as it must be, from what was measured."""
    width_128 = read("normalized_speed", "results", "None")
    least = width_128["alone"] / width_128["stacked"]
    most = search_times("our_fits_one_by_one")[1]
    on_gpu = ("results", "search", "stock_skorch_over_stacked")
    return [
        *table_rows(),
        f"does the same {least:.1f} to {most:.1f} times as fast",
        "takes {:.1f} to {:.1f} times as long".format(*search_times("MLPClassifier")),
        "plain skorch {:.1f} to {:.1f} times".format(*search_times("stock_skorch")),
        f"on a GPU, an H200, {read('gpu', *on_gpu):.0f} times",
        f"the default CNN reaches {of_images('cnn')}",
        f"the vision transformer {of_images('transformer')}",
        *under_shift(),
        prose_of(claims_table()),
    ]


def unexplained(prose):
    """Return what stands around each number that was neither measured nor given."""
    for passage in (*figures(), *GIVEN):
        prose = prose.replace(passage, " … ")
    return [
        prose[max(0, m.start() - 30) : m.end() + 30] for m in NUMBER.finditer(prose)
    ]


def test_figures_are_those_that_were_measured():
    missing = [passage for passage in (*figures(), *GIVEN) if passage not in PROSE]
    assert missing == []
    assert unexplained(PROSE) == []


@pytest.mark.parametrize(
    "claim", ["several times as fast", "30 % fewer columns", "2.5x", "by about half"]
)
def test_a_figure_that_was_not_measured_is_seen(claim):
    assert unexplained(claim)


def test_a_figure_that_has_changed_is_seen():
    assert unexplained(PROSE.replace(under_shift()[0], "for each of 99 shifts"))
