"""A page: sections of words, tables, pictures and code, written whole or not at all."""

from __future__ import annotations

import base64
import io
import math
import os
import platform
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path
from typing import Any

from sksoftrank import _format

_PACKAGES = ("sksoftrank", "scikit-learn", "torch", "numpy")
IN_DISTRIBUTION = "in distribution"
NOTHING = "\N{EN DASH}"


@dataclass
class Table:
    """Rows whose first cell names them; `marked` are the places of those to see first.

    Texts are data: whatever they hold, the page shows it as it is.
    """

    caption: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    marked: Sequence[int] = ()


@dataclass
class Picture:
    """An SVG as a data URI, and what there is to see in it, in words."""

    source: str
    alt: str
    caption: str


@dataclass
class Section:
    """A heading and what is below it, in this order."""

    title: str
    text: Sequence[str] = ()
    facts: Sequence[tuple[str, str]] = ()
    tables: Sequence[Table] = ()
    pictures: Sequence[Picture] = ()
    code: str = ""


@dataclass
class Page:
    """What a report says: the lead first, then sections."""

    title: str
    lead: Sequence[str]
    sections: Sequence[Section]
    is_search: bool = False


def check_target(path: str | os.PathLike[str], name: str = "path") -> Path:
    """Return where a report goes, or refuse what can't be written, or is not one.

    Raises
    ------
    ValueError
        If it is a folder, lies in none that can be written to, or has another ending:
        a table, say, whose name was given in the wrong place.
    ImportError
        If what draws the report is not installed.
    """
    try:
        import jinja2  # noqa: F401
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise ImportError(
            f"{name} needs jinja2 and matplotlib, for a report: pip install "
            "'sksoftrank[report]'."
        ) from error
    if not isinstance(path, str | os.PathLike):
        raise TypeError(f"{name} must be a path, got {path!r}. Use e.g. 'report.html'.")
    target = Path(path)
    if target.suffix.lower() not in (".html", ".htm"):
        raise ValueError(
            f"{name} must end in .html, so that no other file is written over, got "
            f"{str(target)!r}. Use e.g. {str(target.with_suffix('.html'))!r}."
        )
    if target.is_dir():
        raise ValueError(
            f"{name} must be a file, got the directory {str(target)!r}. Name a file "
            "in it."
        )
    if not os.path.isdir(target.parent) or not os.access(target.parent, os.W_OK):
        raise ValueError(
            f"{name} must lie in a directory that can be written to, got "
            f"{str(target)!r}. Create {str(target.parent)!r} first, or use another."
        )
    return target


def write_page(page: Page, path: Path) -> None:
    """Write a page; where that fails, what was there before is as it was."""
    import jinja2

    environment = jinja2.Environment(
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    template = files("sksoftrank.reporting").joinpath("report.html.jinja")
    versions = [f"{name} {version(name)}" for name in _PACKAGES]
    text = environment.from_string(template.read_text("utf-8")).render(
        page=page, versions=[*versions, f"Python {platform.python_version()}"]
    )
    # Half a pair of UTF-16, which a file's name may hold, has no bytes.
    _format.replace(path, bytearray(text.encode("utf-8", "backslashreplace")))


def draw(
    plot: Callable[[Any], object],
    *seen: tuple[str, str],
    size: tuple[float, float] = (5.0, 4.0),
) -> list[Picture]:
    """Return what a function draws into axes, each a picture of its own.

    Pairs are the alternative text and the caption of each. Equal content gives equal
    bytes, whatever style the user has set.
    """
    import matplotlib
    from matplotlib import style
    from matplotlib.figure import Figure

    look: Any = {"svg.hashsalt": "sksoftrank", "svg.fonttype": "none"}
    with (
        style.context("default"),
        matplotlib.rc_context(look),
        warnings.catch_warnings(),
    ):
        # The browser's fonts have what matplotlib's lack.
        warnings.filterwarnings("ignore", "(?s)Glyph .* missing", UserWarning)
        figures = [Figure(figsize=size, layout="constrained") for _ in seen]
        axes = tuple(figure.subplots() for figure in figures)
        plot(axes if len(axes) > 1 else axes[0])
        return [
            Picture(_as_uri(figure), *words)
            for figure, words in zip(figures, seen, strict=True)
        ]


def _as_uri(figure: Any) -> str:
    data = io.BytesIO()
    figure.savefig(data, format="svg", metadata={"Date": None, "Creator": None})
    return f"data:image/svg+xml;base64,{base64.b64encode(data.getvalue()).decode()}"


# -- Numbers -----------------------------------------------------------------------


def number(
    value: float, half: float = math.nan, *, scale: float = 1.0, signed: bool = False
) -> str:
    """Return a number, with half the width of its interval where that is known."""
    if not math.isfinite(value):
        return NOTHING
    digits = 1 if scale == 100 else 4
    text = f"{scale * value:{'+' if signed else ''}.{digits}f}"
    tail = f" ± {scale * half:.{digits}f}" if math.isfinite(half) else ""
    return text.replace("-", "\N{MINUS SIGN}") + tail
