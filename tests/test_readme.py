"""The README's examples run, in order, and its links lead somewhere."""

import re
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
    assert len(blocks("python")) >= 6
    assert len(blocks("python")) + len(blocks("sh")) == TEXT.count("```") // 2


def test_examples_run(monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)  # They leave no file behind.
    namespace = {"__name__": "readme"}
    for line, source in blocks("python"):
        # Blank lines in front: a traceback then gives the line in the README.
        code = compile("\n" * (line - 1) + source, str(README), "exec")
        exec(code, namespace)
    assert capsys.readouterr().err == ""
    assert list(tmp_path.iterdir()) == []

    # What the text says of them.
    X_test, y_test = namespace["X_test"], namespace["y_test"]
    for name in ("model", "knn", "search"):
        assert namespace[name].score(X_test, y_test) > 0.93
    assert namespace["net"].score(X_test / 16, y_test) > 0.93
    assert namespace["annealed"].temperature_ == pytest.approx(1.0)
    assert namespace["clf"].n_components_ == 128  # None was the last.
    assert namespace["knn"][-1].n_features_in_ < 20
    ranks = [r["effective_rank"] for r in namespace["records"]]
    assert min(ranks[:2]) > max(ranks[-2:])


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
