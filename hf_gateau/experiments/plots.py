"""Figures of a grid: each table as points with intervals, and curves, maps and radars of what the cells found."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from ..evaluation.results import TaskResult
from ..report.drawing import WIDTH, Figure
from .grid import Cell, Grid
from .specs import reference_of
from .statistics import Estimate, estimate
from .tables import Line, Results, Table


if TYPE_CHECKING:
    from matplotlib.axes import Axes

MARKERS, STYLES = "os^Dvx*P", ("-", "--", ":", "-.")
HEIGHT_A_LINE, MARGIN = 0.26, 1.3  # inches
PLOT_WIDTH, LETTER_WIDTH = 2.2, 0.08  # inches, of the points and of a letter beside them
FEWEST_AXES = 3  # of a radar
MOST_SHAPES = 5  # methods in a figure, besides the reference
MOST_MAPS = 2  # heat maps beside each other, besides the reference
MOST_COLUMNS = 4  # of a table with more, the first alone is drawn


def table_figures(made: Table) -> Iterator[Figure]:
    """One figure a setting, budget and column: the methods from the top down, with their intervals."""
    for setting, budget, lines in _blocks(made):
        for column in _drawn(lines):
            found = [(line, line.entries[column].value) for line in lines if line.entries[column].value is not None]
            if found:
                yield _intervals(made, setting, budget, column, found)


def _blocks(made: Table) -> Iterator[tuple[str, str, list[Line]]]:
    places = dict.fromkeys((line.setting, line.budget) for line in made.lines)
    for setting, budget in places:
        yield setting, budget, [x for x in made.lines if (x.setting, x.budget) == (setting, budget)]


def _drawn(lines: list[Line]) -> list[str]:
    """The columns that get a figure."""
    columns = list(lines[0].entries)
    return columns if len(columns) <= MOST_COLUMNS else columns[:1]


def _said(made: Table, column: str) -> str:
    """A column's name, with its task's where the table has whatever the task found."""
    return column if made.spec.columns else f"{made.spec.name}, {column}"


def _slug(*parts: str) -> str:
    return "-".join("".join(x if x.isalnum() and x.isascii() else "_" for x in part) for part in parts)


def _intervals(made: Table, setting: str, budget: str, column: str, found: list[tuple[Line, Estimate]]) -> Figure:
    words = ", ".join(f"{line.label} {x.mean:.3g}" for line, x in found)
    rows = [(line.label, x.mean, x.low, x.high) for line, x in found]

    def draw(ax: Axes) -> None:
        for place, (line, x) in enumerate(found):
            colour = "C1" if line.method == made.spec.against else "C0"
            low, high = (x.mean, x.mean) if x.low is None else (x.low, x.high)
            ax.plot([low, high], [place, place], color=colour, linewidth=1.8)
            ax.plot([x.mean], [place], "o", color=colour, markersize=5)
        ax.set_yticks(range(len(found)), [line.label for line, _ in found], fontsize=9)
        ax.set(xlabel=column, ylim=(len(found) - 0.5, -0.5))
        ax.grid(axis="y", visible=False)

    return Figure(
        _slug(made.spec.name, setting, budget, column),
        f"{_said(made, column)}: {setting}",
        f"Means over seeds with 95% intervals, {setting}, {budget}: {words}.",
        (("method", column, "low", "high"), rows),
        draw,
        MARGIN + HEIGHT_A_LINE * len(found),
        max(WIDTH, PLOT_WIDTH + LETTER_WIDTH * max(len(line.label) for line, _ in found)),
    )


def fraction_figures(made: Table) -> Iterator[Figure]:
    """One curve a method over the fraction of long rows, where there are two fractions or more."""
    for setting, budget, lines in _blocks(made):
        for column in _drawn(lines):
            curves: dict[str, list[tuple[float, Estimate]]] = {}
            for line in lines:
                if line.fraction is not None and line.entries[column].value is not None:
                    curves.setdefault(line.method, []).append((line.fraction, line.entries[column].value))
            curves = {name: sorted(points, key=lambda x: x[0]) for name, points in curves.items() if len(points) > 1}
            for number, some in enumerate(_few(curves, made.spec.against), 1):
                yield _curves(made, setting, budget, column, some, number)


def _few(shapes: dict[str, Any], against: str | None, most: int = MOST_SHAPES) -> Iterator[dict[str, Any]]:
    """The methods, a few a figure, the reference in each."""
    others = [name for name in shapes if name != against]
    fixed = [name for name in shapes if name == against]
    for start in range(0, max(len(others), min(1, len(fixed))), most):
        yield {name: shapes[name] for name in [*others[start : start + most], *fixed]}


def _curves(made: Table, setting: str, budget: str, column: str, curves: dict[str, list], number: int) -> Figure:
    rows = [(name, x, y.mean, y.low, y.high) for name, points in curves.items() for x, y in points]

    def draw(ax: Axes) -> None:
        _draw_curves(ax, {name: [(100 * share, y) for share, y in points] for name, points in curves.items()})
        ax.set(xlabel="share of the long rows", ylabel=column)
        ax.xaxis.set_major_formatter("{x:g}%")

    return Figure(
        _slug(made.spec.name, setting, budget, column, "fractions", str(number)),
        f"{_said(made, column)} by share: {setting}",
        f"{column} of each method by the share of long rows that is kept, {setting}, {budget}.",
        (("method", "fraction", column, "low", "high"), rows),
        draw,
        3.2,
    )


def _draw_curves(ax: Axes, curves: dict[str, list[tuple[float, Estimate]]]) -> None:
    """One line a method through its points, with their intervals as a band, and a legend."""
    for i, (name, points) in enumerate(curves.items()):
        x, y = [place for place, _ in points], [value.mean for _, value in points]
        ax.plot(x, y, label=name, markersize=5, **_style(i))
        if all(value.low is not None for _, value in points):
            lows, highs = [value.low for _, value in points], [value.high for _, value in points]
            ax.fill_between(x, lows, highs, color=_style(i)["color"], alpha=0.12, lw=0)
    ax.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2, fontsize=8)


def _style(i: int) -> dict[str, str]:
    """Of the i-th line: three colours, and marks and strokes that tell lines of one colour apart."""
    return {"color": f"C{i % 3}", "marker": MARKERS[i % len(MARKERS)], "linestyle": STYLES[i // 3 % len(STYLES)]}


def alpha_figures(made: Table, results: Results) -> Iterator[Figure]:
    """A column by alpha, where three methods or more differ in nothing else."""
    alphas: dict[str, dict[str, float]] = {}
    for method in results.grid.methods:
        if method.method == "gateau" and "alpha" in method.ranking:
            rest = str(sorted((x, y) for x, y in method.ranking.items() if x != "alpha")) + method.measured
            alphas.setdefault(rest, {})[method.name] = method.ranking["alpha"]
    of_method = next((x for x in alphas.values() if len(x) >= 3), None)
    if of_method is None:
        return
    for setting, budget, lines in _blocks(made):
        for column in _drawn(lines):
            for fraction in dict.fromkeys(x.fraction for x in lines if x.method in of_method):
                points = [
                    (of_method[x.method], x.entries[column].value)
                    for x in lines
                    if x.method in of_method and x.fraction == fraction and x.entries[column].value is not None
                ]
                if len(points) >= 3:
                    yield _alpha_curve(made, setting, budget, column, fraction, sorted(points, key=lambda x: x[0]))


def _alpha_curve(made: Table, setting: str, budget: str, column: str, fraction: float, points: list) -> Figure:
    def draw(ax: Axes) -> None:
        x, y = [a for a, _ in points], [value.mean for _, value in points]
        ax.plot(x, y, "o-", color="C0", markersize=5)
        if all(value.low is not None for _, value in points):
            ax.fill_between(x, [v.low for _, v in points], [v.high for _, v in points], color="C0", alpha=0.15, lw=0)
        ax.set(xlabel="alpha (0: CAS alone, 1: HMP alone)", ylabel=column)

    return Figure(
        _slug(made.spec.name, setting, budget, column, f"{100 * fraction:g}", "alpha"),
        f"{_said(made, column)} by alpha: {setting}, {100 * fraction:g}%",
        f"{column} by alpha: " + ", ".join(f"{y.mean:.3g} at {x:g}" for x, y in points) + ".",
        (("alpha", column, "low", "high"), [(x, y.mean, y.low, y.high) for x, y in points]),
        draw,
    )


def length_figures(results: Results) -> Iterator[Figure]:
    """A task's score by the length of its texts, one curve a method, for tasks whose questions are in two ranges or more."""
    for task in results.grid.tasks:
        example = results.any_result(task)
        lengths: dict[str, list[float]] = {}
        for row in example.rows if example else ():
            if row.get("bucket") is not None and row.get("score") is not None:
                lengths.setdefault(row["bucket"], []).append(row.get("length") or 0)
        buckets = sorted(lengths, key=lambda name: min(lengths[name]))
        if len(buckets) < 2:
            continue
        for setting, budget, fraction in _blocks_of(results.grid):
            curves = {}
            for name, found in _at(results, task, setting, budget, fraction):
                values = [_in_bucket(found, bucket) for bucket in buckets]
                if None not in values:
                    curves[name] = list(zip(range(len(buckets)), values, strict=True))
            for number, some in enumerate(_few(curves, reference_of(results.grid)), 1):
                yield _length_curves(task, f"{setting}, {budget}, {100 * fraction:g}%", buckets, some, number)


def _blocks_of(grid: Grid) -> Iterator[tuple[str, str, float]]:
    for setting in grid.settings:
        for budget in grid.budgets:
            for fraction in grid.fractions:
                yield setting.name, budget, fraction


def _at(
    results: Results, task: str, setting: str, budget: str, fraction: float
) -> Iterator[tuple[str, dict[int, TaskResult]]]:
    """Each method's results of a task at one fraction, and of methods that have none, by seed; those that are there."""
    grid = results.grid
    for method in grid.methods:
        share = fraction if method.has_fractions else None
        if share in grid.fractions_of(method):
            found = {
                seed: results.result(Cell(method.name, share, setting, seed, budget), task) for seed in grid.seeds
            }
            found = {seed: x for seed, x in found.items() if x is not None}
            if found:
                yield method.name, found


def _in_bucket(found: dict[int, TaskResult], bucket: str) -> Estimate | None:
    scores = {
        seed: {
            f"{row['group']}/{row['id']}": ("", float(row["score"]))
            for row in x.rows
            if row.get("bucket") == bucket and row.get("score") is not None
        }
        for seed, x in found.items()
    }
    return estimate(scores)


def _length_curves(task: str, place: str, buckets: list[str], curves: dict[str, list], number: int) -> Figure:
    rows = [(name, buckets[x], y.mean, y.low, y.high) for name, points in curves.items() for x, y in points]

    def draw(ax: Axes) -> None:
        _draw_curves(ax, curves)
        ax.set_xticks(range(len(buckets)), buckets)
        ax.set(xlabel="length of the text", ylabel=task)

    return Figure(
        _slug(task, place, "lengths", str(number)),
        f"{task} by length: {place}",
        f"{task} of each method by the length of the text, {place}.",
        (("method", "length", task, "low", "high"), rows),
        draw,
        3.2,
    )


def needle_figures(results: Results) -> Iterator[Figure]:
    """Heat maps over depth and length, a few methods beside each other, for tasks whose questions have both; every cell a
    mean over seeds."""
    for task in results.grid.tasks:
        example = results.any_result(task)
        if example is None or not all({"depth", "length"} <= row.keys() for row in example.rows):
            continue
        from ..evaluation.needle_map import needle_figure

        for setting, budget, fraction in _blocks_of(results.grid):
            place = f"{setting}, {budget}, {100 * fraction:g}%"
            maps = {
                name: TaskResult(task, {}, [row for x in found.values() for row in x.rows if row["score"] is not None])
                for name, found in _at(results, task, setting, budget, fraction)
            }
            maps = {name: x for name, x in maps.items() if x.rows}
            for number, some in enumerate(_few(maps, reference_of(results.grid), MOST_MAPS), 1):
                yield replace(
                    needle_figure(some), name=_slug(task, place, "map", str(number)), title=f"{task}: {place}"
                )


def radar_figures(results: Results) -> Iterator[Figure]:
    """The groups of a task around a circle, one line a method at the first fraction, where there are three groups or more."""
    grid = results.grid
    for task in grid.tasks:
        example = results.any_result(task)
        groups = sorted({row["group"] for row in example.rows}) if example else []
        if not FEWEST_AXES <= len(groups) <= 12:
            continue
        for setting, budget, fraction in _blocks_of(grid):
            if fraction != grid.fractions[0]:
                continue
            shapes = {
                name: [float(np.mean([x.metrics.get(group, np.nan) for x in found.values()])) for group in groups]
                for name, found in _at(results, task, setting, budget, fraction)
            }
            shapes = {name: values for name, values in shapes.items() if not np.isnan(values).any()}
            for number, some in enumerate(_few(shapes, reference_of(grid)), 1):
                yield _radar(f"{task}, {setting}, {budget}, {number}", fraction, groups, some)


def _radar(title: str, fraction: float, groups: list[str], shapes: dict[str, list[float]]) -> Figure:
    def draw(ax: Axes) -> None:
        canvas, place = ax.figure, ax.get_subplotspec()
        ax.remove()
        polar = canvas.add_subplot(place, projection="polar")
        polar.set_theta_zero_location("N")
        angles = np.linspace(0, 2 * np.pi, len(groups), endpoint=False)
        for i, (name, values) in enumerate(shapes.items()):
            ends = [*angles, angles[0]], [*values, values[0]]
            polar.plot(*ends, label=name, markersize=4, linewidth=1.3, **_style(i))
        polar.set_xticks(angles, groups, fontsize=8)
        polar.tick_params(axis="y", labelsize=7)
        polar.legend(loc="upper center", bbox_to_anchor=(0.5, -0.08), ncols=2, fontsize=8)

    return Figure(
        _slug(*title.split(", "), "radar"),
        f"By group: {title}",
        f"Mean over seeds of each group, {title}, at {100 * fraction:g}% of the long rows.",
        (("method", *groups), [(name, *values) for name, values in shapes.items()]),
        draw,
        4.2,
    )
