"""A module imports only from floors below its own."""

import ast
import subprocess
import sys
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import sksoftrank

PACKAGE = Path(sksoftrank.__file__).parent

FLOORS = {
    "_checks": -2,
    "_joblib": -1,
    "_optuna": -1,
    "_sklearn": -1,
    "_skorch": -1,
    "_torch": -1,
    "rank": 0,
    "theory": 0,
    "shifts": 0,
    "corruptions": 0,
    "_digest": 0,
    "_format": 0,
    "_sampling": 0,
    "_tables": 0,
    "_features": 1,
    "losses": 0,
    "modules": 0,
    "collapse": 1,
    "datasets": 1,
    "domains": 1,
    "compression": 1,
    "ood": 1,
    "training": 1,
    "estimators": 2,
    "inspection": 3,
    "detectors": 3,
    "export": 4,
    "persistence": 4,
    "search": 4,
    "displays": 5,
    "reporting": 6,
    "__main__": 7,
}
# What the lowest floors may import from outside: the cellar holds a library's private
# names in each file, and floor 0 serves people without the rest.
OUTSIDE = {
    "_checks": {"numpy"},
    "_joblib": {"joblib"},
    "_optuna": {"optuna"},
    "_sklearn": {"numpy", "sklearn"},
    "_skorch": {"skorch"},
    "_torch": {"torch"},
    "rank": {"numpy", "scipy"},
    "theory": {"numpy", "scipy"},
    "shifts": {"narwhals", "numpy", "scipy", "sklearn"},
    "corruptions": {"numpy", "scipy", "sklearn", "PIL"},
    "_digest": {"joblib", "numpy", "scipy"},
    "_format": {"numpy", "safetensors"},
    "_sampling": {"numpy"},
    "losses": {"torch"},
    "modules": {"torch"},
}
MODULES = sorted(
    path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py"
)


def unit(path):
    """Return the name in FLOORS that a file belongs to."""
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


def imports(path):
    """Yield the full dotted names that a file imports, anywhere in it."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            if node.module == "sksoftrank":
                yield from (f"sksoftrank.{alias.name}" for alias in node.names)
            else:
                yield node.module


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_come_from_floors_below(path):
    own = unit(path)
    for name in imports(path):
        package, *rest = name.split(".")
        if package != "sksoftrank":
            if own in OUTSIDE and package not in sys.stdlib_module_names:
                assert package in OUTSIDE[own], f"{own} may not import {name}"
        elif rest[0] != own:
            assert FLOORS[rest[0]] < FLOORS[own], f"{own} may not import {name}"


def modules_of(path):
    """Return which of the package's files a file imports, for the types too."""
    names = {}
    for other in MODULES:
        parts = other.relative_to(PACKAGE).with_suffix("").parts
        parts = parts[:-1] if parts[-1] == "__init__" else parts
        names[".".join(("sksoftrank", *parts))] = other
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {names.get(alias.name) for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            for alias in node.names:
                inner = names.get(f"{node.module}.{alias.name}")
                found.add(inner or names.get(node.module))
    return found - {None, path}


def circles(graph):
    """Return the files that can't be put into an order."""
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return error.args[1]
    return []


def test_no_files_import_each_other_in_a_circle():
    found = circles({path: modules_of(path) for path in MODULES})
    assert [str(path.relative_to(PACKAGE)) for path in found] == []


def test_a_circle_is_seen():
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"a"}})


def test_the_rule_sees_an_import_from_above(tmp_path):
    file = tmp_path / "rank.py"
    file.write_text("def f():\n    from sksoftrank import estimators\n")
    assert list(imports(file)) == ["sksoftrank.estimators"]


@pytest.mark.parametrize(
    ("statement", "absent"),
    [
        ("import sksoftrank", {"matplotlib", "optuna", "pandas", "torch"}),
        ("import sksoftrank.corruptions, sksoftrank.datasets", {"PIL", "torch"}),
        # scikit-learn itself imports pandas where it is installed.
        ("from sksoftrank import SoftRankMLPClassifier", {"matplotlib", "optuna"}),
        ("import sksoftrank.__main__", {"matplotlib", "optuna"}),
        ("from sksoftrank import StackedGridSearchCV", {"matplotlib", "optuna"}),
    ],
)
def test_import_is_light(statement, absent):
    code = f"{statement}; import sys; print(sorted({absent!r} & set(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


def test_public_names_resolve():
    for name in sksoftrank.__all__:
        assert getattr(sksoftrank, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = sksoftrank.nothing
    assert set(sksoftrank.__all__) <= set(dir(sksoftrank))


def test_errors_of_parameters_name_no_private_class():
    for name in sksoftrank.__all__:
        constraints = getattr(
            getattr(sksoftrank, name), "_parameter_constraints", {}
        ).values()
        for allowed in constraints:
            for kind in allowed if isinstance(allowed, list) else []:
                if isinstance(kind, type):
                    assert "._" not in f"{kind.__module__}.{kind.__name__}", name
