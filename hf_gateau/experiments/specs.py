"""Which tables a grid gets: those of its file, or else the paper's.

A table in the grid's file:

    tables:
      - name: main
        title: Far and near questions
        columns: {far: planted.far, others: [planted.local, planted.context_free]}   # task.group, or the mean of several
        methods: [GATEAU, random]      # default: all; likewise fractions, settings and budgets
        against: random                # differences to this method, at the same fraction, paired by seed and question

A column is `task` (its main figure), `task.group` (a data set, bucket or category of its questions), `task.metric`, or a list
of groups, whose mean it is. Without `tables:` there is one table a task and the two of the paper that take the method apart;
`FOLLOWS` says which table of the paper each is like. What training took is always there.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from ..settings import did_you_mean
from .grid import FULL, Grid, Method, file_name


SPEC_KEYS = ("name", "title", "text", "columns", "methods", "fractions", "settings", "budgets", "against")
PAPER = "arXiv 2410.15633v1"
# task -> (title, what of the paper it is like)
FOLLOWS = {
    "longbench": ("LongBench: understanding of long texts", "Tables 1 (real-world) and 2 (limited)"),
    "longbench_chat": ("LongBench-Chat: long instructions, scored by a judge", "Table 3"),
    "mt_bench": ("MT-Bench: short instructions, scored by a judge", "Tables 4 and 7"),
    "ablations": ("Without parts of the method", "Table 5"),
    "guidance": ("What guides: homologous models, and others", "Table 8"),
    "needle": ("A needle in a haystack", "Figure 2"),
}
# The columns of Tables 5 and 8; a task that is not among them has its main figure there.
PARTS = {
    "longbench": ("single_doc_qa", "multi_doc_qa", "summarization"),
    "longbench_chat": ("percent",),
    "mt_bench": ("turn_1", "turn_2", "percent"),
}


@dataclass(frozen=True)
class TableSpec:
    """A table that is asked for; None stands for all, see the top of this file."""

    name: str
    title: str
    columns: dict[str, tuple[str, ...]]
    text: str = ""
    methods: tuple[str, ...] | None = None
    fractions: tuple[float, ...] | None = None
    settings: tuple[str, ...] | None = None
    budgets: tuple[str, ...] | None = None
    against: str | None = None


# What is asked for


def table_specs(grid: Grid) -> list[TableSpec]:
    """The tables of a grid's file, or the usual ones.

    Raises:
        ValueError: a table that names a method, task or setting that the grid does not have.
    """
    if grid.tables is None:
        return list(_usual_specs(grid))
    if not isinstance(grid.tables, list):
        raise ValueError("`tables:` is a list, one `- {name: ..., columns: ...}` each.")
    specs = [_spec(entry, grid) for entry in grid.tables]
    if doubled := sorted({x.name for x in specs if [y.name for y in specs].count(x.name) > 1}):
        raise ValueError(f"Two tables are called {doubled[0]!r}; give each its own name.")
    return specs


def _usual_specs(grid: Grid) -> Iterator[TableSpec]:
    against = reference_of(grid)
    for task in grid.tasks:
        title, follows = FOLLOWS.get(task, (task, ""))
        yield TableSpec(task, title, {}, _like(follows), against=against)
    whole = tuple(x.name for x in grid.methods if _is_whole(x, grid))
    columns = {
        name: (name,)
        for task in grid.tasks
        for name in ([f"{task}.{part}" for part in PARTS[task]] if task in PARTS else [task])
    }
    for name, belongs, beside in (("ablations", is_ablation, FULL), ("guidance", is_other_guidance, "perplexity")):
        chosen = tuple(x.name for x in grid.methods if belongs(x, grid))
        if chosen:
            title, follows = FOLLOWS[name]
            others = tuple(x.name for x in grid.methods if x.method == beside)
            reference = whole[0] if whole else against
            yield TableSpec(name, title, columns, _like(follows), (*whole, *chosen, *others), against=reference)


def _like(follows: str) -> str:
    return f"As {follows} of {PAPER}." if follows else ""


def reference_of(grid: Grid) -> str | None:
    """The method that others are compared with where the file says nothing: a random choice."""
    return next((x.name for x in grid.methods if x.method == "random"), None)


def is_ablation(method: Method, grid: Grid) -> bool:
    """Whether a method is GATEAU without HMG or without CAM, on the same measurements (Table 5)."""
    without = method.method == "gateau" and "none" in (method.ranking.get("hmp"), method.ranking.get("cas"))
    return method.method in ("without_hmg", "without_cam") or (without and _is_of_main(method, grid))


def is_other_guidance(method: Method, grid: Grid) -> bool:
    """Whether a method is GATEAU with its guidance changed: another sibling, no Norm, or HMG alone (Table 8)."""
    if method.method in ("without_norm", "without_cam"):
        return True
    changed = method.ranking.get("hmp") == "difference" or method.ranking.get("cas") == "none"
    return method.method == "gateau" and (changed or not _is_of_main(method, grid))


def _is_whole(method: Method, grid: Grid) -> bool:
    """Whether a method is GATEAU itself, in one mode or another, with the setting's alpha."""
    changed = {"alpha", "hmp", "cas"} & method.ranking.keys()
    return method.method == "gateau" and not changed and _is_of_main(method, grid)


def _is_of_main(method: Method, grid: Grid) -> bool:
    return method.measured == next(iter(grid.data))


def _spec(entry: Any, grid: Grid) -> TableSpec:
    if not isinstance(entry, dict) or not entry.get("name"):
        raise ValueError(f"A table is {entry!r}; give it a `name`, and `columns`.")
    for key in entry:
        if key not in SPEC_KEYS:
            raise ValueError(f"Table {entry['name']!r} has no key {key!r}" + did_you_mean(key, SPEC_KEYS))
    known = {
        "methods": [x.name for x in grid.methods],
        "settings": [x.name for x in grid.settings],
        "fractions": [
            x for x in dict.fromkeys(y for m in grid.methods for y in grid.fractions_of(m)) if x is not None
        ],
        "budgets": list(grid.budgets),
        "against": [x.name for x in grid.methods],
    }
    for key, names in known.items():
        given = entry.get(key) if key in entry else []
        for name in given if isinstance(given, list) else [given]:
            if name is not None and name not in names:
                raise ValueError(
                    f"Table {entry['name']!r}, {key}: the grid has no {name!r}" + did_you_mean(name, map(str, names))
                )
    columns = _columns(entry.get("columns"), grid, str(entry["name"]))
    chosen = {
        x: tuple(entry[x]) if isinstance(entry[x], list) else (entry[x],)
        for x in ("methods", "fractions", "settings", "budgets")
        if entry.get(x)
    }
    against = entry["against"] if "against" in entry else reference_of(grid)
    return TableSpec(
        file_name(entry["name"], "table"),
        str(entry.get("title") or entry["name"]),
        columns,
        str(entry.get("text") or ""),
        against=against,
        **chosen,
    )


def _columns(found: Any, grid: Grid, name: str) -> dict[str, tuple[str, ...]]:
    """Name -> `task.figure` of each part; empty for the figures of the task that the table is named after."""
    if found is None and name not in grid.tasks:
        return {task: (task,) for task in grid.tasks}
    if isinstance(found, str):
        found = [found]
    if isinstance(found, list):
        found = {str(x): x for x in found}
    columns = {str(x): tuple(y) if isinstance(y, list) else (str(y),) for x, y in (found or {}).items()}
    for parts in columns.values():
        for part in parts:
            task = part.partition(".")[0]
            if task not in grid.tasks:
                raise ValueError(f"Table {name!r}: no task {task!r}" + did_you_mean(task, grid.tasks))
    return columns
