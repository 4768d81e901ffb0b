"""What pyproject.toml promises is what is tested."""

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
        *(EXTRAS[name] for name in EXTRAS if name not in ("bench", "dev", "docs")),
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


@pytest.mark.parametrize("required", REQUIRED, ids=lambda required: required.name)
def test_where_private_names_are_used_is_an_upper_bound(required):
    library = {"scikit-learn": "sklearn"}.get(required.name, required.name)
    leans = (ROOT / "sksoftrank" / f"_{library}.py").exists()
    is_bounded = any(spec.operator == "<" for spec in required.specifier)
    # Any other torch is gigabytes.
    assert is_bounded == (leans and library != "torch")
