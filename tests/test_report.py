"""Reports: a page that shows what was found, whatever the names in it are."""

import base64
import copy
import errno
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ET
from html.parser import HTMLParser
from pathlib import Path

import matplotlib.style
import numpy as np
import pandas as pd
import pytest
from scipy import stats
from sklearn.datasets import make_blobs
from sklearn.exceptions import NotFittedError
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, StandardScaler

import sksoftrank.__main__ as command_line
from sksoftrank import (
    OODDetector,
    OODSearchCV,
    SoftRankClassifier,
    SoftRankEnsembleClassifier,
    SoftRankMLPClassifier,
    StackedGridSearchCV,
    report,
)
from sksoftrank.__main__ import main
from sksoftrank.modules import MLP
from sksoftrank.ood import ood_report
from sksoftrank.reporting._code import NotCodeError, code_of
from sksoftrank.shifts import GainDrift

# What would be markup, a template, a formula or a quote, if it were not data.
NAMES = [
    "<script>alert(1)</script>",
    "{{7*7}}{% if x %}",
    'it\'s "q" & &amp;',
    "$a_b$ _x \\n",
    "\N{GRINNING FACE} שלום עולם",
    "x" * 300,
]
VOID = {"meta", "img", "br", "hr", "link", "input"}


class Page(HTMLParser):
    """The elements of a page, and what is in them; fails where they don't nest."""

    def __init__(self, path):
        super().__init__()
        self.text = path.read_text(encoding="utf-8")
        self.open, self.elements, self.tables, self.code = [], [], [], []
        self.words = ""
        self.feed(self.text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)
        if tag == "table":
            self.tables.append([])
        if tag == "tr":
            self.tables[-1].append([])
        if tag in ("th", "td"):
            self.tables[-1][-1].append("")
        if tag == "code":
            self.code.append("")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" in self.open:
            return
        self.words += data
        if {"th", "td"} & set(self.open):
            self.tables[-1][-1][-1] += data
        if "code" in self.open:
            self.code[-1] += data

    def all(self, tag):
        return [attrs for name, attrs in self.elements if name == tag]

    def table(self, heading):
        """Return the rows of the table whose second heading begins so, by name."""
        (found,) = [t for t in self.tables if t[0][1].startswith(heading)]
        return {row[0]: row[1:] for row in found[1:]}


@pytest.fixture(scope="module")
def rows():
    X, codes = make_blobs(240, 4, centers=6, cluster_std=3.0, random_state=0)
    return X, np.array(NAMES)[codes], np.arange(240) % 3


@pytest.fixture(scope="module")
def clf(rows):
    X, y, _ = rows
    return make_pipeline(
        StandardScaler(),
        SoftRankMLPClassifier((8,), max_epochs=3, early_stopping=True, random_state=0),
    ).fit(X, y)


@pytest.fixture(scope="module")
def search(rows):
    X, y, domains = rows
    return OODSearchCV(
        make_pipeline(StandardScaler(), SoftRankMLPClassifier((8,), max_epochs=2)),
        n_trials=8,
        n_final_seeds=3,
        random_state=0,
    ).fit(X, y, domains=np.array(NAMES)[domains])


@pytest.fixture(scope="module")
def grid(rows):
    X, y, _ = rows
    return StackedGridSearchCV(
        SoftRankMLPClassifier((8,), max_epochs=2, random_state=0),
        {"temperature": [1, 10], "learning_rate": [1e-3, 1e-2]},
        cv=3,
    ).fit(X, y)


def shifted(rows):
    X, y, _ = rows
    return {name: (X[k::6] + 1, y[k::6]) for k, name in enumerate(NAMES)}


@pytest.fixture(scope="module")
def pages(rows, clf, search, grid, tmp_path_factory):
    """Return a page of each kind."""
    folder = tmp_path_factory.mktemp("pages")
    X, y, _ = rows
    found = {
        "classifier": report(
            clf, folder / "c.html", X, y, shifted(rows), title=NAMES[0]
        ),
        "search": report(search, folder / "s.html", X, y, [GainDrift()]),
        "grid": report(grid, folder / "g.html"),
    }
    table = pd.DataFrame(X, columns=list("abcd")).assign(**{NAMES[0]: y})
    table[NAMES[2]] = np.array(NAMES)[np.arange(240) // 60]
    table.to_parquet(folder / "a table.parquet")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(command_line, "TEMPERATURES", (1.0, 30.0))
        patch.setattr(command_line, "ROW_VISITS", 1)
        patch.chdir(folder)
        assert main(arguments()) == 0
    return found | {"command line": folder / "t.html"}


def arguments():
    return [
        "a table.parquet", f"--target={NAMES[0]}", f"--domain={NAMES[2]}", "--seeds=2",
        "--report=t.html",
    ]  # fmt: skip


KINDS = ["classifier", "search", "grid", "command line"]

# -- Form ----------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_a_page_is_whole_and_needs_nothing_else(kind, pages):
    page = Page(pages[kind])
    assert page.text.startswith("<!DOCTYPE html>")
    assert page.all("html") == [{"lang": "en"}]
    headings = [int(t[1]) for t, _ in page.elements if re.fullmatch(r"h\d", t)]
    assert headings[0] == 1
    assert set(headings[1:]) == {2}
    assert not {t for t, _ in page.elements} & {"script", "link", "iframe", "object"}
    for _, attrs in page.elements:
        assert not [k for k in attrs if k.startswith("on") or k in ("href", "style")]
    assert "url(" not in page.text
    assert "@import" not in page.text
    assert len(page.all("caption")) == len(page.tables) > 0
    assert all(th["scope"] in ("row", "col") for th in page.all("th"))
    for table in page.tables:
        assert len({len(row) for row in table}) == 1
    assert len(page.all("img")) > 0
    for image in page.all("img"):
        assert re.search(r"\d", image["alt"])
        kind, _, data = image["src"].partition(",")
        assert kind == "data:image/svg+xml;base64"
        drawn = ET.fromstring(base64.b64decode(data))
        for element in drawn.iter():
            assert not element.tag.endswith(("script", "foreignObject"))
            for name, value in element.attrib.items():
                assert not name.endswith("href") or value.startswith("#")


@pytest.mark.parametrize("kind", ["classifier", "search", "command line"])
def test_names_are_data(kind, pages):
    page = Page(pages[kind])
    cells = [row[0] for table in page.tables for row in table]
    named = NAMES if kind == "classifier" else NAMES[:3]
    assert set(named[1:]) <= set(cells)
    assert "<script" not in page.text
    assert "{{7*7}}" in page.text
    if kind == "classifier":
        assert page.text.count("&lt;script&gt;alert(1)&lt;/script&gt;") >= 4
        start = page.words.index(NAMES[0])  # The title, in the head and on the page.
        assert page.words.index(NAMES[0], start + 1)


def test_equal_results_give_equal_bytes(pages, rows, clf, search, tmp_path):
    X, y, _ = rows
    with matplotlib.style.context("dark_background"):  # The user's, not the page's.
        again = report(clf, tmp_path / "c.html", X, y, shifted(rows), title=NAMES[0])
    assert again.read_bytes() == pages["classifier"].read_bytes()
    again = report(search, tmp_path / "s.html", X, y, [GainDrift()])
    assert again.read_bytes() == pages["search"].read_bytes()


# -- Content -------------------------------------------------------------------------


def shown(value, half=None, sign=""):
    text = f"{100 * value:{sign}.1f}" + ("" if half is None else f" ± {100 * half:.1f}")
    return text.replace("-", "\N{MINUS SIGN}")


def check_search(page, search):
    """Compare a page with the search's results."""
    results, best = search.cv_results_, search.best_index_
    half = stats.t.ppf(0.975, 2) / np.sqrt(2)
    table = page.table("first seed")
    assert len(table) == 8
    first, *others = table
    assert first.startswith(f"{results['trial'][best]}, the choice")
    assert sum("finalist" in name or "baseline" in name for name in table) <= 4
    for name, cells in table.items():
        k = int(name.split(",")[0])
        assert cells[0] == shown(results["mean_test_score"][k])
        for key, cell in zip(("id", "ood"), cells[1:], strict=True):
            mean, std = (results[f"{m}_final_{key}"][k] for m in ("mean", "std"))
            if results["stage"][k] == 2:
                assert cell == shown(mean, half * std)
            else:
                assert cell == "\N{EN DASH}"
    rival = int(others[0].split(",")[0])
    compared = page.table("the choice")
    keys = {"in distribution": "id", "under shift, mean": "ood"}
    keys |= {name: f"ood_{name}" for name in search.domains_}
    assert list(compared) == list(keys)
    for name, key in keys.items():
        mean, std = (results[f"{m}_final_{key}"] for m in ("mean", "std"))
        assert compared[name] == [
            shown(mean[best], half * std[best]),
            shown(mean[rival], half * std[rival]),
            shown(mean[best] - mean[rival], sign="+"),
        ]
    assert search.best_reason_ in page.words
    chosen = page.table("tried")
    assert len(chosen) == sum(name.startswith("param_") for name in results)
    assert chosen["temperature"][1] == f"{best_param(search, 'temperature'):.4g}"


def best_param(search, name):
    return search.best_params_[f"softrankmlpclassifier__{name}"]


def test_a_search_is_shown_as_it_was(pages, search):
    check_search(Page(pages["search"]), search)


def test_a_choice_and_a_kept_baseline_are_told_apart(search, tmp_path):
    results = search.cv_results_
    baseline = int(np.argmax(np.where(results["is_baseline"], results["mean_test_id"],
                                      -1)))  # fmt: skip
    finalist = next(k for k in range(8) if results["stage"][k] == 2 and k != baseline)
    for best, words in [
        (baseline, "Of 8 settings none beat the baseline by enough, so it was kept."),
        (finalist, f"Of 8 settings trial {finalist} was chosen. Against the baseline"),
    ]:
        other = copy.copy(search)
        other.best_index_, other.best_params_ = best, results["params"][best]
        page = Page(report(other, tmp_path / "page.html"))
        assert words in page.words
        check_search(page, other)


def test_one_fresh_seed_has_no_intervals(search, tmp_path):
    one = copy.copy(search)
    one.cv_results_ = dict(search.cv_results_)
    one.cv_results_["n_seeds"] = np.minimum(search.cv_results_["n_seeds"], 2)
    page = Page(report(one, tmp_path / "page.html"))
    assert "of one fresh seed each, so without intervals" in page.words
    assert "±" not in page.words


def test_a_grid_is_shown_as_it_was(pages, grid):
    page = Page(pages["grid"])
    results = grid.cv_results_
    table = page.table("score")
    half = stats.t.ppf(0.975, 2) / np.sqrt(2)
    for params, mean, std in zip(
        results["params"], results["mean_test_score"], results["std_test_score"],
        strict=True,
    ):  # fmt: skip
        name = ", ".join(f"{name}={value:g}" for name, value in params.items())
        assert table[name] == [shown(mean, half * std)]
    assert page.table("tried")["temperature"][0] == "1, 10"


def test_accuracies_are_those_of_ood_report(pages, rows, clf):
    X, y, _ = rows
    table = Page(pages["classifier"]).table("rows")
    records = ood_report(clf, X, y, shifted(rows))
    for cells, record in zip(table.values(), records, strict=True):
        low, high = (shown(record[f"accuracy_{end}"]) for end in ("low", "high"))
        assert cells[:3] == [
            str(record["n_samples"]), shown(record["accuracy"]), f"{low} to {high}"
        ]  # fmt: skip
    assert f"rank{clf[-1].rank_} of 8 directions" in Page(
        pages["classifier"]
    ).words.replace("\n", "")


def test_the_sweep_is_told_by_domain(pages):
    page = Page(pages["command line"])
    table = page.table("1")
    assert list(table)[:2] == ["in distribution", "under shift, mean"]
    domains = [table[name] for name in NAMES[:3]]  # The first in order is trained on.
    for k, mean in enumerate(table["under shift, mean"]):
        means = [float(cells[k].split()[0]) for cells in domains]
        assert float(mean.split()[0]) == pytest.approx(np.mean(means), abs=0.11)
    words = shlex.split(page.code[0])
    assert words[:3] == ["python", "-m", "sksoftrank"]
    assert words[3:] == arguments()


# -- Code ----------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["search", "grid", "classifier"])
def test_the_code_makes_the_model_again(kind, pages, rows, request):
    X, y, _ = rows
    fitted = request.getfixturevalue("clf" if kind == "classifier" else kind)
    model, *search = Page(pages[kind]).code
    names = {"X": X, "y": y}
    exec(model, names)
    np.testing.assert_array_equal(names["model"].predict(X), fitted.predict(X))
    for code in search:
        exec(code.rpartition("\nsearch.fit")[0], names)
        assert repr(names["search"]) == repr(fitted)


def identity(X):
    return X


@pytest.mark.parametrize(
    "estimator",
    [
        SoftRankClassifier(MLP, {"n_features": 4, "n_classes": 2}),
        SoftRankMLPClassifier((np.int64(3),), temperature=np.float32(2.0)),
        SoftRankEnsembleClassifier(SoftRankMLPClassifier(), 3),
        LogisticRegression(class_weight={0: 1.0, 1: 2.0}, C=float("inf")),
        OODSearchCV(SoftRankMLPClassifier(), shifts=[GainDrift(severity=2)]),
        make_pipeline(FunctionTransformer(np.mean), SoftRankMLPClassifier()),
    ],
    ids=lambda e: type(e).__name__,
)
def test_code_of_many_kinds(estimator):
    names = {}
    exec(code_of("made", estimator), names)
    made = names["made"].get_params()
    assert {k: repr(v) for k, v in made.items()} == {
        k: repr(v.item() if isinstance(v, np.generic) else v)
        for k, v in estimator.get_params().items()
    } or isinstance(estimator, SoftRankMLPClassifier)
    if isinstance(estimator, SoftRankMLPClassifier):
        assert made["hidden_layer_sizes"] == (3,)
        assert made["temperature"] == 2.0


def test_what_code_cant_write_stays_a_comment_of_one_line():
    class Hostile:
        def __repr__(self):
            return "x\nraise SystemExit"

    for value in (Hostile(), np.arange(60)):
        code = code_of("model", FunctionTransformer(kw_args={"a": value}))
        exec(code, {})
    assert " at 0x" not in code_of("model", FunctionTransformer(lambda x: x))


def test_what_code_cant_write_is_said():
    for value in (lambda X: X, object(), np.zeros(3)):
        code = code_of("model", FunctionTransformer(value))
        assert "which code can't write out" in code
        exec(code, {})  # All of it is a comment.
    assert issubclass(NotCodeError, ValueError)


# -- Other models --------------------------------------------------------------------


def test_any_classifier_and_search_has_a_report(rows, tmp_path):
    X, y, _ = rows
    member = SoftRankMLPClassifier((8,), max_epochs=1)
    several = {"scoring": ["accuracy", "neg_log_loss"], "cv": 2}
    for estimator, has_code in [
        (SoftRankEnsembleClassifier(member, 2, random_state=0), True),
        (LogisticRegression(max_iter=2000), True),
        (
            GridSearchCV(
                LogisticRegression(max_iter=2000), {"C": [1, 2]}, scoring="neg_log_loss"
            ),
            1,
        ),
        (
            GridSearchCV(
                LogisticRegression(max_iter=2000),
                {"C": [1]},
                refit="neg_log_loss",
                **several,
            ),
            True,
        ),
        (
            GridSearchCV(
                LogisticRegression(max_iter=2000), {"C": [1]}, refit=False, **several
            ),
            False,
        ),
    ]:
        page = Page(report(estimator.fit(X, y), tmp_path / "page.html"))
        assert ("model.fit(X, y)" in page.words) == bool(has_code)
    two = y == y[0]
    narrow = SoftRankMLPClassifier((8,), max_epochs=1, n_components=1).fit(X, two)
    assert report(narrow, tmp_path / "page.html", X, two).exists()


def test_many_domains_are_all_in_the_table(rows, clf, tmp_path):
    X, y, _ = rows
    domains = {f"site {k}": (X[k : k + 20], y[k : k + 20]) for k in range(60)}
    page = Page(report(clf, tmp_path / "page.html", X, y, domains))
    assert len(page.table("rows")) == 61
    assert "The worst 30 of 60 shifts." in page.words


# -- Errors --------------------------------------------------------------------------


def test_bad_input_is_refused_before_any_work(clf, grid, rows, tmp_path, monkeypatch):
    X, y, _ = rows
    out = tmp_path / "page.html"

    def work(*args, **kwargs):
        raise AssertionError("worked")

    monkeypatch.setattr("sksoftrank.reporting._report.ood_report", work)
    (tmp_path / "d.html").mkdir()
    without = copy.copy(grid)
    del without.best_estimator_
    for args, kind, message in [
        ((clf, tmp_path / "t.csv", X, y), ValueError, r"path must end in \.html.*t\.c"),
        ((clf, tmp_path / "d.html", X, y), ValueError, r"path must be a file, got the"),
        ((clf, tmp_path / "no" / "p.html"), ValueError, r"path must lie in a dir.*no"),
        ((clf, 3, X, y), TypeError, r"path must be a path, got 3"),
        ((clf, out, X), ValueError, r"y must come with X, got None"),
        ((clf, out, None, y), ValueError, r"X must come with y, got None"),
        ((clf, out, None, None, {}), ValueError, r"shifted must come with rows in di"),
        ((without, out, X, y), ValueError, r"X must be None for a search that has no"),
        ((SoftRankMLPClassifier, out, X, y), TypeError, r"estimator must be a fitted"),
        ((3, out), TypeError, r"estimator must be a fitted .* got 3"),
        ((OODDetector(clf), out), TypeError, r"estimator must be .* got OODDetector"),
        ((SoftRankMLPClassifier(), out, X, y), NotFittedError, r"not fitted"),
        ((OODSearchCV(clf), out, X, y), NotFittedError, r"not fitted"),
    ]:
        with pytest.raises(kind, match=message):
            report(*args)
    with pytest.raises(TypeError, match=r"title must be text or None, got 3"):
        report(clf, out, title=3)
    assert os.listdir(tmp_path) == ["d.html"]


@pytest.mark.parametrize("missing", ["jinja2", "matplotlib"])
def test_a_missing_package_is_named_with_its_extra(missing, clf, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(ImportError, match=r"pip install 'sksoftrank\[report\]'"):
        report(clf, tmp_path / "page.html")


def test_a_write_that_fails_leaves_what_was_there(clf, tmp_path, monkeypatch):
    path = tmp_path / "page.html"
    path.write_text("before")

    def write(handle, data):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", write)
        with pytest.raises(OSError, match="No space left on device: nothing was"):
            report(clf, path)
    assert path.read_text() == "before"
    assert os.listdir(tmp_path) == ["page.html"]


def test_the_command_line_refuses_a_report_before_training(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(command_line, "_sweep", None)
    Path("t.csv").write_text("a,y\n1,2\n")
    for path, message in [
        ("t.csv", "--report must end in .html"),
        ("no/page.html", "--report must lie in a directory"),
    ]:
        assert main(["t.csv", "--target", "y", "--report", path]) == 2
        assert capsys.readouterr().err.startswith(f"error: {message}")
    monkeypatch.setitem(sys.modules, "jinja2", None)
    assert main(["t.csv", "--target", "y", "--report", "page.html"]) == 2
    assert "sksoftrank[report]" in capsys.readouterr().err
    assert Path("t.csv").read_text() == "a,y\n1,2\n"
    assert os.listdir(tmp_path) == ["t.csv"]


def test_the_command_line_says_that_a_report_was_not_written(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(command_line, "TEMPERATURES", (1.0, 30.0))
    monkeypatch.setattr(command_line, "ROW_VISITS", 1)

    def fail(*args):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("sksoftrank._format.replace", fail)
    assert main(["--seeds", "1", "--report", "page.html"]) == 2
    assert "error: the report can't be written" in capsys.readouterr().err


# -- In a browser --------------------------------------------------------------------

BROWSER = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))),
    None,
)
WATCH = """<script>
const errors = [];
addEventListener("error", e => errors.push(String(e.message || e.target)), true);
console.error = console.warn = (...words) => errors.push(words.join(" "));
addEventListener("load", () => parent.postMessage({
  width: innerWidth, needed: document.documentElement.scrollWidth, errors,
  images: [...document.images].map(image => image.naturalWidth),
  page: getComputedStyle(document.body).backgroundColor,
}, "*"));
</script>"""
FRAMES = """<!DOCTYPE html><pre id="found"></pre><script>
const found = [];
addEventListener("message", e => {
  found.push(e.data);
  document.getElementById("found").textContent = JSON.stringify(found);
});
</script>"""


@pytest.mark.skipif(BROWSER is None, reason="no Chromium is installed")
@pytest.mark.parametrize(
    ("scheme", "color"), [(1, "rgb(255, 255, 255)"), (0, "rgb(23, 23, 23)")]
)
def test_a_browser_shows_all_of_it(scheme, color, pages, tmp_path):
    frames = FRAMES
    for k, path in enumerate(pages.values()):
        copied = tmp_path / f"{k}.html"
        text = path.read_text(encoding="utf-8")
        copied.write_text(text.replace("<head>", f"<head>{WATCH}"), encoding="utf-8")
        frames += "".join(
            f'<iframe src="{k}.html" width="{width}" height="900"></iframe>'
            for width in (400, 1400)
        )
    (tmp_path / "frames.html").write_text(frames)
    with tempfile.TemporaryDirectory() as profile:
        done = subprocess.run(
            [
                BROWSER,
                "--headless",
                "--no-sandbox",
                "--disable-gpu",
                "--disable-quic",
                "--disable-dev-shm-usage",
                "--no-first-run",
                "--disable-background-networking",
                "--disable-component-update",
                "--disable-sync",
                f"--user-data-dir={profile}",
                f"--blink-settings=preferredColorScheme={scheme}",
                "--virtual-time-budget=20000",
                "--dump-dom",
                (tmp_path / "frames.html").as_uri(),
            ],
            capture_output=True,
            text=True,
            timeout=300,
        )
    found = json.loads(re.search(r'<pre id="found">(.*?)</pre>', done.stdout, re.S)[1])
    assert sorted(frame["width"] for frame in found) == [400] * 4 + [1400] * 4
    for frame in found:
        assert frame["errors"] == []
        assert frame["needed"] <= frame["width"]
        assert min(frame["images"]) > 0
        assert frame["page"] == color
    assert "CONSOLE" not in done.stderr
