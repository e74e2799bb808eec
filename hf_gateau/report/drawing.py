"""How a figure is drawn and kept: one look for the Hub's cards (PNG) and for a light and a dark page (SVG)."""

from __future__ import annotations

import io
import os
import re
import textwrap
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np


if TYPE_CHECKING:
    from matplotlib.axes import Axes

WIDTH = 3.8  # inches: little more than a phone's, which shrinks the picture and its text
DPI = 200
TITLE_LETTERS = 11  # to an inch
VECTOR_POINTS = 1000  # more become one picture inside the SVG, which would be megabytes otherwise
# From Okabe and Ito's colours, which colour-blind people can tell apart: first, second and neutral; ink and grid
LIGHT = {"cycle": ["#0072B2", "#D55E00", "#57606a"], "ink": "#1b1f24", "grid": "#d8dce1"}
DARK = {"cycle": ["#56B4E9", "#E69F00", "#a3acb8"], "ink": "#e6e9ee", "grid": "#3a414b"}
INK = ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color")
SMALL = ("legend.fontsize", "xtick.labelsize", "ytick.labelsize", "axes.labelsize")
STYLE = {
    **dict.fromkeys(SMALL, 10),
    "figure.titlesize": 11,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "text.parse_math": False,  # a name with two dollar signs is no formula
    "svg.fonttype": "none",
    "svg.hashsalt": "hf-gateau",
}


@dataclass(frozen=True)
class Figure:
    """One figure, for those who see it and for those who do not.

    Attributes:
        name (`str`): file name without a suffix.
        title (`str`): a few words.
        text (`str`): what is to be seen, in words and numbers of the data at hand.
        table (`tuple`): (names of columns, rows), the numbers behind it: shares from 0 to 1, lengths in tokens.
        draw: draws it into matplotlib axes, in the colours C0, C1 and C2 of their cycle.
        height, width (`float`): inches.
    """

    name: str
    title: str
    text: str
    table: tuple[tuple[str, ...], list[tuple]]
    draw: Callable[[Axes], None]
    height: float = 2.9
    width: float = WIDTH


def save_png(figure: Figure, path: str | os.PathLike) -> None:
    """Write a figure with its title on a light background; the same bytes every time."""
    _save(figure, path, LIGHT, figure.title, format="png", metadata={"Software": None})


def to_svgs(figure: Figure) -> dict[str, str]:
    """A figure as `to_svg` has it, for a "light" and a "dark" page; drawn once, unless a part of it is a picture."""
    light = to_svg(figure, dark=False)
    if "<image" in light:
        return {"light": light, "dark": to_svg(figure, dark=True)}
    return {"light": light, "dark": re.sub(r'(?<= style=")[^"]*', lambda style: _darkened(style[0]), light)}


def _darkened(style: str) -> str:
    for name in ("ink", "grid"):
        style = style.replace(LIGHT[name], DARK[name])
    for light, dark in zip(LIGHT["cycle"], DARK["cycle"], strict=True):
        style = style.replace(light.lower(), dark.lower())
    return style


def to_svg(figure: Figure, dark: bool) -> str:
    """A figure without title and background, for a light or a dark page; the same text every time."""
    stream, metadata = io.StringIO(), dict.fromkeys(("Date", "Creator", "Format", "Type"))
    _save(figure, stream, DARK if dark else LIGHT, None, format="svg", metadata=metadata, transparent=True)
    return stream.getvalue()


def _save(figure: Figure, target: Any, colours: dict, title: str | None, **options: Any) -> None:
    import matplotlib
    from matplotlib.figure import Figure as Canvas

    with matplotlib.rc_context(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r"Glyph .* missing from")  # in the name of a source
        matplotlib.rcdefaults()
        cycle = matplotlib.cycler(color=colours["cycle"])
        inks = dict.fromkeys(INK, colours["ink"])
        matplotlib.rcParams.update(STYLE | inks | {"grid.color": colours["grid"], "axes.prop_cycle": cycle})
        canvas = Canvas(figsize=(figure.width, figure.height), layout="constrained")
        figure.draw(canvas.add_subplot())
        if title is not None:
            canvas.suptitle(textwrap.fill(title, int(figure.width * TITLE_LETTERS)))
        canvas.savefig(target, dpi=DPI, **options)


# What several figures are made of


def legend_above(ax: Axes) -> None:
    """A legend over the axes, where it hides nothing."""
    ax.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=3, columnspacing=1.0, handlelength=1.5)


def points(ax: Axes, x: np.ndarray, y: np.ndarray, marked: np.ndarray, label: str) -> None:
    """A scatter plot; marked points differ in colour and in shape."""
    flat = len(x) > VECTOR_POINTS
    ax.scatter(x[~marked], y[~marked], s=12, marker="o", color="C0", alpha=0.6, lw=0, label="others", rasterized=flat)
    ax.scatter(x[marked], y[marked], s=22, marker="^", color="C1", alpha=0.9, lw=0, label=label, rasterized=flat)
    legend_above(ax)


def bars(ax: Axes, shares: dict[str, float], ends: list[str], reference: tuple[str, float], xlabel: str) -> None:
    """Horizontal bars from the top down, what they count at the right edge, and a line of reference."""
    places = range(len(shares))
    ax.barh(places, list(shares.values()), color="C0", height=0.65)
    for place, end in zip(places, ends, strict=True):
        ax.text(1.02, place, end, transform=ax.get_yaxis_transform(), va="center", fontsize=9)
    ax.axvline(reference[1], color="C1", linestyle="--", linewidth=1.8, label=reference[0])
    ax.set_yticks(places, list(shares), fontsize=9)
    ax.set(xlabel=xlabel, xlim=(0, min(1, 1.1 * max(*shares.values(), reference[1]))))
    ax.locator_params(axis="x", nbins=4, steps=[1, 2, 5, 10])
    ax.xaxis.set_major_formatter("{x:.0%}")
    ax.grid(axis="y", visible=False)
    ax.invert_yaxis()
    legend_above(ax)


def bars_height(shares: dict[str, float]) -> float:
    """Inches that `bars` needs."""
    return 1.2 + 0.25 * len(shares)
