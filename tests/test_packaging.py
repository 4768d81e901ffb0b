"""What pyproject.toml promises is what is tested."""

import ast
import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]
REQUIRED = [
    Requirement(text)
    for group in (
        PROJECT["dependencies"],
        *(EXTRAS[name] for name in EXTRAS if name not in ("bench", "dev")),
    )
    for text in group
]


def pins(name):
    """Return the version that a file of constraints gives each package."""
    lines = (ROOT / name).read_text().splitlines()
    return dict(line.split("==") for line in lines if not line.startswith("#"))


@pytest.mark.parametrize("required", REQUIRED, ids=lambda required: required.name)
def test_floors_and_what_is_newest_are_tested(required):
    lowest, newest = (
        pins(file)[required.name]
        for file in ("constraints-lowest.txt", "constraints.txt")
    )
    (floor,) = (spec.version for spec in required.specifier if spec.operator == ">=")
    assert re.fullmatch(rf"{re.escape(floor)}(\.0)*", lowest)
    assert required.specifier.contains(lowest)
    assert required.specifier.contains(newest)


def private_names(package):
    """Return what the package imports of another's private modules and names."""
    return {
        f"{node.module}.{alias.name}"
        for path in (ROOT / "sksoftrank").rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ImportFrom) and node.module.split(".")[0] == package
        for alias in node.names
        if re.search(r"\._", f".{node.module}.{alias.name}")
    }


def test_private_names_have_an_upper_bound():
    modules = {"scikit-learn": "sklearn", "pillow": "PIL"}
    for required in REQUIRED:
        names = private_names(modules.get(required.name, required.name))
        is_bounded = any(spec.operator == "<" for spec in required.specifier)
        # Any other torch is gigabytes; Optuna's and skorch's are attributes.
        if required.name not in ("torch", "optuna", "skorch"):
            assert is_bounded == bool(names), (required.name, names)
