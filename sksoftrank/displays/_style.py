"""What all displays look like: told apart in grey, and by the colour-blind."""

from __future__ import annotations

from typing import Any

# Okabe and Ito's colours, told apart by most colour-blind readers.
BLUE, ORANGE, GREEN, GREY = "#0072B2", "#D55E00", "#009E73", "#666666"
PURPLE, SKY = "#CC79A7", "#56B4E9"
# With markers and dashes of their own, for those who see no colours.
CURVES = tuple(
    zip(
        (BLUE, ORANGE, GREEN, PURPLE, SKY, GREY),
        ("o-", "s-", "^--", "d-.", "v:", "P-"),
        strict=True,
    )
)


_MAX_LETTERS = 28


def plain(name: object) -> str:
    """Return a name as it is drawn: in one short line, no formula, and not left out."""
    text = "".join(letter if letter.isprintable() else " " for letter in str(name))
    text = " ".join(text.split()) or " "
    if len(text) > _MAX_LETTERS:
        text = f"{text[: _MAX_LETTERS - 1]}…"
    # A dollar sign would start a formula, and a legend has no place for "_name".
    return f"{' ' * text.startswith('_')}{text}".replace("$", r"\$")


def ink(axes: Any) -> Any:
    """Return the colour that axes are labelled in, which can be seen on theirs."""
    return axes.xaxis.label.get_color()


def make_axes(
    ax: Any, n_axes: int, size: tuple[float, float] | None = None
) -> tuple[Any, ...]:
    """Return the axes given, or those of a new figure, which is not pyplot's."""
    if ax is None:
        from matplotlib.figure import Figure

        size = (1.0 + 4.5 * n_axes, 4.0) if size is None else size
        figure = Figure(figsize=size, layout="constrained")
        ax = figure.subplots(1, n_axes)
    return (ax,) if n_axes == 1 else tuple(ax)


def finish(axes: Any) -> None:
    """Add a grid, and a legend above the axes, off the data."""
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    handles, _ = axes.get_legend_handles_labels()
    if handles:
        axes.legend(
            loc="lower left",
            bbox_to_anchor=(0.0, 1.0),
            ncols=min(len(handles), 2),
            frameon=False,
            fontsize="small",
        )
