"""The guide's Python runs, in order, and no figure on its pages was measured."""

import re
from pathlib import Path

import pytest

import sksoftrank

DOCS = Path(__file__).parents[1] / "docs"
PAGES = [DOCS / "index.md", DOCS / "coming_from.md", *sorted(DOCS.glob("guide/*.md"))]
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def check_temperature(names):
    ranks = [record["effective_rank"] for record in names["records"]]
    assert min(ranks[:2]) > max(ranks[-2:])
    assert names["annealed"].temperature_ == pytest.approx(1.0)


def check_embeddings(names):
    assert names["knn"].score(names["X_test"], names["y_test"]) > 0.93
    assert names["knn"][-1].n_features_in_ < 20
    assert names["clf"].n_components_ == 256  # None was the last.


def check_stacked(names):
    assert names["search"].fallback_reason_ is None


# What the text says of the names that its Python sets.
CHECKS = {
    "temperature": check_temperature,
    "embeddings": check_embeddings,
    "stacked": check_stacked,
}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_the_python_runs(page, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    text, names = page.read_text(encoding="utf-8"), {"__name__": page.stem}
    for match in BLOCK.finditer(text):
        # Blank lines in front: a traceback then gives the line on the page.
        source = "\n" * (text.count("\n", 0, match.start()) + 1) + match[1]
        exec(compile(source, str(page), "exec"), names)
        assert max(map(len, match[1].splitlines())) <= 88
    assert list(tmp_path.iterdir()) == []
    if page.stem in CHECKS:
        CHECKS[page.stem](names)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_figures_are_left_to_the_log(page):
    prose = re.sub(
        r"```.*?```|`[^`]*`", "", page.read_text(encoding="utf-8"), flags=re.S
    )
    assert re.findall(r"±|\d *(?:%|points?\b|times\b|x\b)|\d\.\d+ s\b", prose) == []


def test_the_guide_is_short():
    index = (DOCS / "guide" / "index.md").read_text(encoding="utf-8")
    pages = re.search(r"maxdepth: 1\n\n(.*?)```", index, re.S)[1].split()
    assert len(pages) <= 8
    assert {f"{name}.md" for name in pages} >= {
        page.name for page in DOCS.glob("guide/*.md") if page.stem != "index"
    }


def test_every_public_name_has_a_page():
    listed = set(
        re.findall(r"^   (\w+)$", (DOCS / "api.rst").read_text(), re.MULTILINE)
    )
    # Their public names are those of the package itself.
    whole = {"compression", "detectors", "export", "persistence", "reporting", "search"}
    assert listed == set(sksoftrank.__all__) - whole - {"__version__"}
    for module in whole:
        assert set(getattr(sksoftrank, module).__all__) <= listed
