"""FOLDER/README.md: tables, figures, settings, versions, what failed, and the command that makes it all again."""

from __future__ import annotations

import sys
import time
from pathlib import Path

from ..evaluation.results import write_whole
from ..files.texts import read_user_text
from ..markdown import escape, inline, table
from ..ranking.selection import library_versions
from ..redaction import redact
from ..report.drawing import Figure, save_png
from .cells import Job
from .grid import Grid
from .plots import alpha_figures, fraction_figures, length_figures, needle_figures, radar_figures, table_figures
from .running import failure_of, is_finished
from .specs import TableSpec
from .tables import COST_COLUMNS, COST_TITLE, Results, Table, cost_rows, make_table, to_csv, to_markdown


def write_summary(
    grid: Grid, jobs: list[Job], specs: list[TableSpec], folder: Path, grid_file: Path, num_workers: int = 1
) -> Path:
    """Write tables (Markdown, CSV), figures (PNG) and the page that shows them; returns its path."""
    results = Results(grid, jobs)
    for name in ("tables", "figures"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    made = [make_table(spec, results) for spec in specs]
    sections = [_table_section(x, results, folder) for x in made]
    sections.append(_figure_section("By length of the text", list(length_figures(results)), folder))
    sections.append(_figure_section("Maps of needles", list(needle_figures(results)), folder))
    sections.append(_figure_section("By group", list(radar_figures(results)), folder))
    sections.append(f"## {COST_TITLE}\n\n" + table(["setting", "budget", "", *COST_COLUMNS], cost_rows(results)))
    parts = [f"# {escape(grid.name)}", escape(grid.description), _state(jobs, results), *sections]
    settings = redact(read_user_text(grid_file))
    (folder / "grid.yaml").write_text(settings, encoding="utf-8")
    parts += [_warnings(jobs), _settings(settings), _again(grid_file, folder, num_workers)]
    path = folder / "README.md"
    text = "\n\n".join(part for part in parts if part) + "\n"
    write_whole(path, redact(text))
    return path


def _state(jobs: list[Job], results: Results) -> str:
    failed = [(job, failure_of(job)) for job in jobs if not is_finished(job) and failure_of(job)]
    counts = f"{len(results.finished)} of {len(jobs)} trainings are finished, {len(failed)} failed."
    if not failed:
        return counts
    rows = [[inline(job.label), inline(reason)] for job, reason in failed]
    return f"{counts}\n\n" + table(["failed", "why"], rows)


def _table_section(made: Table, results: Results, folder: Path) -> str:
    (folder / "tables" / f"{made.spec.name}.md").write_text(to_markdown(made) + "\n", encoding="utf-8")
    to_csv(made, folder / "tables" / f"{made.spec.name}.csv")
    figures = [*table_figures(made), *fraction_figures(made), *alpha_figures(made, results)]
    shown = "\n\n".join(_picture(x, folder) for x in figures)
    return f"## {escape(made.spec.title)}\n\n{to_markdown(made)}\n\n{shown}"


def _figure_section(title: str, figures: list[Figure], folder: Path) -> str:
    return f"## {title}\n\n" + "\n\n".join(_picture(x, folder) for x in figures) if figures else ""


def _picture(figure: Figure, folder: Path) -> str:
    save_png(figure, folder / "figures" / f"{figure.name}.png")
    return f"![{escape(figure.text)}](figures/{figure.name}.png)"


def _settings(text: str) -> str:
    from .. import __version__

    versions = "".join(f", {name} {number}" for name, number in library_versions().items())
    fence = "`" * 3
    while fence in text:
        fence += "`"
    own = f"hf_gateau {__version__}{versions}, Python {sys.version.split()[0]}"
    return f"## Settings\n\n{fence}yaml\n{text.rstrip()}\n{fence}\n\n{own}."


def _warnings(jobs: list[Job]) -> str:
    """What rankings warned of, each once."""
    found: dict[str, list[str]] = {}
    for job in jobs:
        for message in (job.selection.get("ranking") or {}).get("warnings", ()):
            found.setdefault(message, []).append(job.label)
    rows = [[inline(message), inline("; ".join(labels))] for message, labels in found.items()]
    return "## What rankings warned of\n\n" + table(["warning", "cells"], rows) if rows else ""


def _again(grid_file: Path, folder: Path, num_workers: int) -> str:
    workers = f" --num_workers {num_workers}" if num_workers > 1 else ""
    command = f"hf-gateau experiment {grid_file.name} -o {folder.name}{workers}"
    return f"## Again\n\nWritten on {time.strftime('%Y-%m-%d %H:%M')} by\n\n```\n{command}\n```\n\nEach cell's folder has its recipe, for `hf-gateau sft --recipe`, its selection, log and results."
