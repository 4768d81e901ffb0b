"""Code that makes an estimator again, with the imports that it needs."""

from __future__ import annotations

import ast
import inspect
import sys
from typing import Any

import numpy as np

from sksoftrank._digest import shorten, stable_repr

_WIDTH = 80
_BRACKETS: dict[Any, str] = {list: "[]", tuple: "()"}


class NotCodeError(ValueError):
    """Of a value that code can't write out, such as a function without a name."""


class CodeWriter:
    """Writes values as expressions, and remembers what they need imported."""

    def __init__(self) -> None:
        self._names: dict[str, str] = {}  # A name and the module that it is of.

    @property
    def imports(self) -> str:
        """Lines that import what was written so far."""
        by_home: dict[str, list[str]] = {}
        for name, home in self._names.items():
            by_home.setdefault(home, []).append(name)
        return "\n".join(
            f"from {home} import {', '.join(sorted(names))}"
            for home, names in sorted(by_home.items())
        )

    def write(self, value: Any, indent: int = 0) -> str:
        """Return an expression that makes an equal value.

        Raises
        ------
        NotCodeError
            If there is none.
        """
        if isinstance(value, np.generic):
            value = value.item()
        kind = type(value)
        if kind is float and not np.isfinite(value):
            return f"float({str(value)!r})"
        if value is None or kind in (bool, int, float, str, bytes):
            return repr(value)
        if callable(value) and hasattr(value, "__name__"):
            return self._import(value)
        if kind in _BRACKETS:
            items = [self.write(item, indent + 4) for item in value]
            if kind is tuple and len(items) == 1:
                return f"({items[0]},)"
            return _join(_BRACKETS[kind], items, indent)
        if kind is dict:
            items = [
                f"{self.write(key)}: {self.write(item, indent + 4)}"
                for key, item in value.items()
            ]
            return _join("{}", items, indent)
        if hasattr(value, "get_params"):
            name = self._import(kind)
            items = [
                f"{key}={self.write(item, indent + 4)}"
                for key, item in _changed_params(value).items()
            ]
            return f"{name}{_join('()', items, indent)}"
        return self._written_by_itself(value)

    def _written_by_itself(self, value: Any) -> str:
        """Return the repr of what shows the call that makes it."""
        text, name = stable_repr(value), type(value).__name__
        try:
            tree = ast.parse(text, mode="eval").body
        except (SyntaxError, ValueError) as error:
            raise NotCodeError(text) from error
        names = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
        if not isinstance(tree, ast.Call) or names != {name}:
            raise NotCodeError(text)
        self._import(type(value))
        return text

    def _import(self, value: Any) -> str:
        """Return the name of a class or function, from the module that publishes it."""
        name, parts = str(value.__name__), str(value.__module__).split(".")
        homes = [".".join(parts[: k + 1]) for k in range(len(parts))]
        found = [h for h in homes if getattr(sys.modules.get(h), name, None) is value]
        if not found or found[0] == "__main__":
            raise NotCodeError(stable_repr(value))
        if self._names.setdefault(name, found[0]) != found[0]:
            raise NotCodeError(stable_repr(value))  # Two of one name.
        return name


def _join(brackets: str, items: list[str], indent: int) -> str:
    """Return items in brackets, on lines of their own where one is too short."""
    flat = ", ".join(items)
    if "\n" not in flat and indent + len(flat) < _WIDTH:
        return f"{brackets[0]}{flat}{brackets[1]}"
    space = "\n" + (indent + 4) * " "
    inner = "".join(f"{space}{item}," for item in items)
    return f"{brackets[0]}{inner}\n{indent * ' '}{brackets[1]}"


def _changed_params(estimator: Any) -> dict[str, Any]:
    defaults = inspect.signature(type(estimator)).parameters
    return {
        name: value
        for name, value in estimator.get_params(deep=False).items()
        if name not in defaults or repr(value) != repr(defaults[name].default)
    }


def code_of(name: str, estimator: Any, *after: str) -> str:
    """Return code that makes an estimator under a name, and lines after it."""
    writer = CodeWriter()
    try:
        expression = writer.write(estimator)
    except NotCodeError as error:
        what = shorten(" ".join(str(error).split()))  # A comment is one line.
        return (
            f"# The {name} was made with {what},\n"
            "# which code can't write out: keep it, with sksoftrank.save or pickle."
        )
    return "\n".join([writer.imports, "", f"{name} = {expression}", *after])
