"""What the docstrings say holds: examples, parameters, defaults, attributes."""

import ast
import doctest
import importlib
import inspect
import io
import math
import pkgutil
import re

import numpy as np
import pandas as pd
import pytest
from numpydoc.docscrape import get_doc_object
from numpydoc.validate import validate
from sklearn.base import BaseEstimator

import sksoftrank
from sksoftrank.modules import MLP

MODULES = sorted(
    info.name
    for info in pkgutil.walk_packages(sksoftrank.__path__, "sksoftrank.")
    if info.name != "sksoftrank.__main__"
)
# numpydoc's complaints that are none here, and why.
IGNORED = {
    "ES01",  # No extended summary: a summary that says all needs none.
    "SA01",  # No See Also: names are linked where the text needs them.
    "EX01",  # No Examples: asked below of what can be called by itself.
}
# What a summary alone leaves out: the sections for parameters and results.
SECTIONS = {"PR01", "RT01", "YD01"}


def public_objects():
    """Return every public class and function by the module that defines it."""
    found = {}
    # Private modules pass on what is private to other libraries.
    public = [name for name in MODULES if not name.split(".")[-1].startswith("_")]
    for module in map(importlib.import_module, public):
        for name in getattr(module, "__all__", ()):
            obj = getattr(module, name)
            if inspect.isclass(obj) or inspect.isfunction(obj):
                found[f"{obj.__module__}.{obj.__qualname__}"] = obj
    return dict(sorted(found.items()))


def own_methods(cls):
    """Return the public methods and properties that the package itself defines."""
    found = {}
    for owner in reversed(cls.__mro__):
        if owner.__module__.startswith("sksoftrank"):
            for name, member in vars(owner).items():
                if isinstance(member, classmethod | staticmethod):
                    member = getattr(owner, name)
                is_code = inspect.isfunction(member) or isinstance(member, property)
                if not name.startswith("_") and is_code:
                    found[f"{owner.__module__}.{owner.__qualname__}.{name}"] = member
    return found


OBJECTS = public_objects()
METHODS = {
    name: method
    for cls in filter(inspect.isclass, OBJECTS.values())
    for name, method in own_methods(cls).items()
}
FUNCTIONS = {
    **OBJECTS,
    **{name: m for name, m in METHODS.items() if not isinstance(m, property)},
}


def has_own_init(obj):
    """Whether a class's constructor is the package's, and so are its parameters."""
    if not inspect.isclass(obj):
        return True
    if inspect.isabstract(obj):
        return False  # Its subclasses document what they hand on.
    owner = next(base for base in obj.__mro__ if "__init__" in vars(base))
    return owner is object or owner.__module__.startswith("sksoftrank")


def is_hook(name):
    """Whether a method fills in what torch, skorch or scikit-learn document."""
    owner, _, method = name.rpartition(".")
    module, _, cls = owner.rpartition(".")
    mro = getattr(importlib.import_module(module), cls).__mro__
    return any(
        hasattr(base, method)
        for base in mro
        if not base.__module__.startswith("sksoftrank")
    )


def says_all(method):
    """Whether a summary alone tells a method's parameters: it names each of them."""
    doc = inspect.getdoc(method) or ""
    parameters = set(inspect.signature(method).parameters) - {"self"}
    return "\n" not in doc and all(f"`{parameter}`" in doc for parameter in parameters)


def test_the_public_objects_are_found():
    assert {
        "sksoftrank.compression.RankCompressor",
        "sksoftrank.estimators._mlp.SoftRankMLPClassifier",
        "sksoftrank.rank.effective_rank",
        "sksoftrank.training._net.SoftRankNet",
    } <= set(OBJECTS)
    assert "sksoftrank.estimators._base.BaseSoftRankClassifier.fit" in METHODS
    assert "sksoftrank.shifts._Shift.transform" in METHODS


# -- Examples ----------------------------------------------------------------------


@pytest.mark.parametrize("name", MODULES)
def test_examples_run(name):
    module = importlib.import_module(name)
    # No option that forgives: what an example shows is what a reader gets.
    runner = doctest.DocTestRunner(verbose=False, optionflags=0)
    report = io.StringIO()
    for example in doctest.DocTestFinder(exclude_empty=True).find(module):
        runner.run(example, out=report.write)
    assert runner.summarize(verbose=False).failed == 0, report.getvalue()


@pytest.mark.parametrize("name", OBJECTS)
def test_has_an_example(name):
    obj = OBJECTS[name]
    if inspect.isabstract(obj):
        # Nothing to call: its subclasses show how.
        classes = {o for o in OBJECTS.values() if inspect.isclass(o)} - {obj}
        assert any(issubclass(cls, obj) for cls in classes)
        return
    examples = get_doc_object(obj)["Examples"]
    assert any(line.startswith(">>> ") for line in examples)


# -- Form --------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*OBJECTS, *METHODS])
def test_numpydoc(name):
    ignored = set(IGNORED)
    if name in OBJECTS and not has_own_init(OBJECTS[name]):
        ignored |= {"PR01"}
    if name in METHODS and not isinstance(METHODS[name], property):
        doc = inspect.getdoc(METHODS[name]) or ""
        if "Parameters\n---" not in doc and (is_hook(name) or says_all(METHODS[name])):
            ignored |= SECTIONS
    errors = [error for error in validate(name)["errors"] if error[0] not in ignored]
    assert not errors, "\n".join(f"{code} {message}" for code, message in errors)


# -- Parameters --------------------------------------------------------------------


def documented_parameters(obj):
    """Return name, type and, where there is one, the text of the default."""
    for parameter in get_doc_object(obj)["Parameters"]:
        match = re.search(r",\s*default=(.+)$", parameter.type)
        default = match.group(1) if match else None
        for name in parameter.name.split(", "):
            yield name.lstrip("*"), parameter.type, default


def agrees(text, default):
    """Whether the text of a default stands for the value."""
    if text == "nan":
        return isinstance(default, float) and math.isnan(default)
    try:
        value = ast.literal_eval(text)
    except ValueError:
        return text.rpartition(".")[2] == getattr(default, "__name__", None)
    return value == default and isinstance(value, bool) == isinstance(default, bool)


@pytest.mark.parametrize(
    ("text", "default", "expected"),
    [
        ("1e-4", 0.0001, True),
        ('"auto"', "auto", True),
        ("None", None, True),
        ("nan", float("nan"), True),
        ("nan", 0.0, False),
        ("(1.0, 3.0)", (1.0, 3.0), True),
        ("torch.optim.Adam", dict, False),
        ("builtins.dict", dict, True),
        ("1", True, False),
        ("0.5", 0.05, False),
    ],
)
def test_defaults_are_compared_by_value(text, default, expected):
    assert agrees(text, default) is expected


@pytest.mark.parametrize("name", FUNCTIONS)
def test_parameters_and_defaults_match_the_signature(name):
    obj = FUNCTIONS[name]
    documented = list(documented_parameters(obj))
    if name in METHODS and not documented:
        return  # test_numpydoc says where that may be.
    signature = {
        parameter.name: parameter
        for parameter in inspect.signature(obj).parameters.values()
        if parameter.name != "self"
    }
    names = [entry[0] for entry in documented]
    if has_own_init(obj):
        assert names == list(signature)
    else:
        assert names == [parameter for parameter in signature if parameter in names]
    for parameter, kind, text in documented:
        default = signature[parameter].default
        if kind in ("None", "Ignored"):  # y of scikit-learn's transformers
            assert default is None
        elif default is inspect.Parameter.empty:
            assert text is None, f"{parameter} has no default"
        else:
            assert text is not None, f"{parameter} defaults to {default!r}"
            assert agrees(text, default), f"{parameter} is {default!r}, not {text}"


# -- Attributes --------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [
        name
        for name, obj in OBJECTS.items()
        if inspect.isclass(obj)
        and issubclass(obj, BaseEstimator)
        and hasattr(obj, "fit")
        and obj.__module__.split(".")[1] in ("compression", "estimators", "shifts")
        and not inspect.isabstract(obj)
    ],
)
def test_fitted_attributes_are_the_documented_ones(name):
    rng = np.random.default_rng(0)
    X = pd.DataFrame(rng.standard_normal((30, 4)), columns=list("abcd"))
    required = {"SoftRankClassifier": (MLP,)}
    estimator = OBJECTS[name](*required.get(OBJECTS[name].__name__, ()))
    if hasattr(estimator, "max_epochs"):
        estimator.set_params(max_epochs=1)
    estimator.fit(X, np.arange(30) % 3)
    documented = {
        attribute.name for attribute in get_doc_object(OBJECTS[name])["Attributes"]
    }
    documented = {attribute for attribute in documented if attribute.endswith("_")}
    fitted = {
        attribute
        for attribute in dir(estimator)
        if attribute.endswith("_")
        and not attribute.startswith("_")
        and hasattr(estimator, attribute)
    }
    assert documented == fitted
