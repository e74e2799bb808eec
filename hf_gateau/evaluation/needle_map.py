"""What a grid of needles looks like: a heat map, length across, depth down, and the numbers as a table.

Shapes: D depths, L lengths.
"""

from __future__ import annotations

import os
import textwrap
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ..markdown import public_name
from ..report.drawing import WIDTH, Figure, save_png
from .metrics import POINTS
from .results import TaskResult


if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLOURS = ["#b2182b", "#ef8a62", "#fddf8b", "#91cf60", "#1a7f37"]  # red to green; the middle is the lightest
MARGIN, CELL, NARROW = 1.6, 0.34, 0.2  # inches: what is no cell, a cell's width, and that of many
CHARACTERS = 13  # of a model's name to an inch
MOST_WRITTEN = 12  # lengths whose cells have room for a number
MOST_LABELS = 12  # of lengths under one map


def needle_grid(result: TaskResult) -> tuple[list[int], list[float], np.ndarray]:
    """Lengths (L), depths (D), and the mean score of each cell (D, L), NaN where nothing was asked."""
    lengths = sorted({row["length"] for row in result.rows})
    depths = sorted({row["depth"] for row in result.rows})
    cells: dict[tuple[float, int], list[float]] = {}
    for row in result.rows:
        cells.setdefault((row["depth"], row["length"]), []).append(row["score"])
    means = [[np.mean(cells[depth, x]) if (depth, x) in cells else np.nan for x in lengths] for depth in depths]
    return lengths, depths, np.array(means)


def needle_figure(results: Mapping[str, TaskResult]) -> Figure:
    """The heat maps of one model or of several, side by side.

    Args:
        results: name of a model -> its result of `needle` or `planted_needle`.

    Raises:
        ValueError: there is no result, or one has no rows.
    """
    if not results or any(not result.rows for result in results.values()):
        raise ValueError("A heat map needs results with rows; run the task first.")
    grids: dict[str, tuple[list[int], list[float], np.ndarray]] = {}
    for place, (name, result) in enumerate(results.items(), start=1):
        name = public_name(name) or name
        grids[f"{name} ({place})" if name in grids else name] = needle_grid(result)
    num_columns = sum(len(lengths) for lengths, _, _ in grids.values()) + len(grids) - 1
    num_depths = max(len(depths) for _, depths, _ in grids.values())
    rows = [
        (name, length, depth, f"{grid[i, j]:.1f}")
        for name, (lengths, depths, grid) in grids.items()
        for i, depth in enumerate(depths)
        for j, length in enumerate(lengths)
    ]
    words = [
        f"{name}: {np.nanmean(grid):.0f} of {POINTS:.0f} points on average" for name, (_, _, grid) in grids.items()
    ]
    cell = CELL if num_columns <= MOST_WRITTEN * len(grids) else NARROW
    width = max(WIDTH, MARGIN + cell * num_columns)
    characters = max(8, int((width - MARGIN) / len(grids) * CHARACTERS))
    named = {textwrap.fill(name, characters): grid for name, grid in grids.items()}
    num_lines = max(name.count("\n") + 1 for name in named)
    return Figure(
        "needle",
        "Needle in a haystack",
        f"Share of the needle's words that the answer has, by length of the text and depth of the needle. {'; '.join(words)}.",
        (("model", "tokens", "depth, %", "points"), rows),
        partial(_draw, grids=named, write=cell == CELL),
        max(2.4, 1.3 + 0.19 * num_depths) + 0.16 * num_lines,
        width,
    )


def write_maps(results: Mapping[str, TaskResult], folder: str | os.PathLike) -> list[Path]:
    """Write `needle.png` and `needle.csv` into a folder; returns the paths."""
    import pandas as pd

    figure, folder = needle_figure(results), Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / "needle.png", folder / "needle.csv"]
    save_png(figure, paths[0])
    pd.DataFrame(figure.table[1], columns=list(figure.table[0])).to_csv(paths[1], index=False)
    return paths


def _draw(ax: Axes, grids: dict[str, tuple[list[int], list[float], np.ndarray]], write: bool) -> None:
    """All maps in one picture with an empty column between two, so that they share a colour bar and the axis of depths."""
    from matplotlib.colors import LinearSegmentedColormap

    depths = sorted({depth for _, found, _ in grids.values() for depth in found})
    ticks, labels, start = [], [], 0
    num_columns = sum(len(lengths) for lengths, _, _ in grids.values()) + len(grids) - 1
    picture = np.full((len(depths), num_columns), np.nan)
    for name, (lengths, own_depths, grid) in grids.items():
        picture[[depths.index(depth) for depth in own_depths], start : start + len(lengths)] = grid
        step = -(-len(lengths) // MOST_LABELS)
        ticks += range(start, start + len(lengths), step)
        labels += [f"{length:,}" for length in lengths[::step]]
        ax.annotate(
            name, (start + (len(lengths) - 1) / 2, -0.5), (0, 3), textcoords="offset points", ha="center", size=9
        )
        start += len(lengths) + 1
    colours = LinearSegmentedColormap.from_list("needle", COLOURS)
    image = ax.imshow(np.ma.masked_invalid(picture), cmap=colours, vmin=0, vmax=POINTS, aspect="auto")
    for (i, j), value in np.ndenumerate(picture) if write else ():
        if not np.isnan(value):
            dark = value < POINTS / 5 or value > 0.85 * POINTS
            ax.text(j, i, f"{value:.0f}", ha="center", va="center", fontsize=6, color="white" if dark else "black")
    ax.set_xticks(ticks, labels, rotation=90, fontsize=8)
    ax.set_yticks(range(len(depths)), [f"{depth:g}%" for depth in depths], fontsize=8)
    ax.set(xlabel="length of the text, tokens", ylabel="depth of the needle")
    ax.grid(visible=False)
    ax.tick_params(length=0)
    for side in ax.spines.values():
        side.set_visible(False)
    bar = ax.figure.colorbar(image, ax=ax, label="words found, points", fraction=0.05, pad=0.02)
    bar.outline.set_visible(False)
    bar.ax.tick_params(labelsize=8)
