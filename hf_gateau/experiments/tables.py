"""Tables of a grid: rows are methods at fractions, columns are figures of tasks, blocks are settings and budgets."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..evaluation.results import TaskResult, load_result
from ..markdown import inline, table
from .cells import Job
from .estimates import epoch_tokens, rows_of_job
from .grid import Cell, Grid, Method
from .running import failure_of, is_finished, read_json
from .specs import TableSpec
from .statistics import Estimate, difference, estimate, of_seeds


SAME = 1e-6  # a task's figure is the mean of its questions' scores, if they differ by no more
SCALES = (1.0, 10.0)  # or ten times that: ratings up to 10 in percent
COST_TITLE, COST_COLUMNS = "What training took", ("long rows", "short rows", "tokens an epoch", "steps", "minutes")


@dataclass(frozen=True)
class Entry:
    """One figure of a table: the mean over seeds, and how it differs from the reference; or why there is none."""

    value: Estimate | None
    difference: Estimate | None = None
    note: str = ""


@dataclass(frozen=True)
class Line:
    """One row of a table, in one setting with one budget."""

    setting: str
    budget: str
    method: str
    fraction: float | None
    entries: dict[str, Entry]

    @property
    def label(self) -> str:
        return self.method if self.fraction is None else f"{self.method}, {100 * self.fraction:g}%"


@dataclass(frozen=True)
class Table:
    """A table with its figures."""

    spec: TableSpec
    lines: list[Line]
    notes: list[str] = field(default_factory=list)


# What came out


@dataclass
class Results:
    """What the finished cells of a grid say, read as it is needed."""

    grid: Grid
    jobs: list[Job]

    def __post_init__(self):
        self.job_of = {cell: job for job in self.jobs for cell in job.cells}
        self.finished = {job.key for job in self.jobs if is_finished(job)}
        self._read: dict[tuple[str, str], TaskResult] = {}

    def result(self, cell: Cell, task: str) -> TaskResult | None:
        """What a cell's task found; None where the cell is not finished."""
        job = self.job_of[cell]
        if job.key not in self.finished:
            return None
        if (job.key, task) not in self._read:
            self._read[job.key, task] = load_result(Path(job.folder) / "results", task)
        return self._read[job.key, task]

    def reason(self, cell: Cell) -> str:
        """Why a cell has no results."""
        failure = failure_of(self.job_of[cell])
        return f"failed: {failure}" if failure else "not run yet"

    def training(self, cell: Cell) -> dict[str, Any] | None:
        """What a finished cell's training took."""
        job = self.job_of[cell]
        return read_json(Path(job.folder) / "results.json")["train"] if job.key in self.finished else None

    def any_result(self, task: str) -> TaskResult | None:
        """Some cell's result of a task."""
        found = (self.result(cell, task) for cell in self.job_of)
        return next((x for x in found if x is not None), None)


def make_table(spec: TableSpec, results: Results) -> Table:
    """The table with all figures that the finished cells have."""
    columns = spec.columns or _all_figures(spec.name, results)
    notes: dict[str, int] = {}
    lines = [_line(spec, columns, results, place, notes) for place in _places(spec, results.grid)]
    return Table(spec, lines, list(notes))


def _all_figures(task: str, results: Results) -> dict[str, tuple[str, ...]]:
    found = results.any_result(task)
    return {name: (f"{task}.{name}",) for name in found.metrics} if found else {task: (task,)}


def _places(spec: TableSpec, grid: Grid) -> Iterator[tuple[str, str, Method, float | None]]:
    for setting in spec.settings or [x.name for x in grid.settings]:
        for budget in spec.budgets or grid.budgets:
            for method in grid.methods:
                if spec.methods is None or method.name in spec.methods:
                    for fraction in grid.fractions_of(method):
                        if fraction is None or spec.fractions is None or fraction in spec.fractions:
                            yield setting, budget, method, fraction


def _line(spec: TableSpec, columns: dict, results: Results, place: tuple, notes: dict[str, int]) -> Line:
    setting, budget, method, fraction = place
    reference = next((x for x in results.grid.methods if x.name == spec.against), None)
    entries = {}
    for name, parts in columns.items():
        values, missing = scores_of(parts, results, method.name, fraction, setting, budget)
        value = _estimate(values)
        found = None
        if reference is not None and reference.name != method.name and value is not None:
            share = fraction if reference.has_fractions else None
            if share in results.grid.fractions_of(reference):
                others, _ = scores_of(parts, results, reference.name, share, setting, budget)
                found = _difference(values, others)
        note = "; ".join(missing)
        if note:
            notes.setdefault(note, len(notes) + 1)
        entries[name] = Entry(value, found, f"{notes[note]}" if note else "")
    return Line(setting, budget, method.name, fraction, entries)


def _estimate(values: tuple[str, Any]) -> Estimate | None:
    kind, found = values
    return estimate(found) if kind == "questions" else of_seeds(found)


def _difference(a: tuple[str, Any], b: tuple[str, Any]) -> Estimate | None:
    if a[0] == b[0] == "questions":
        return difference(a[1], b[1])
    if a[0] == b[0]:
        return of_seeds({seed: a[1][seed] - b[1][seed] for seed in a[1].keys() & b[1].keys()})
    return None


def scores_of(
    parts: tuple[str, ...], results: Results, method: str, fraction: float | None, setting: str, budget: str
) -> tuple[tuple[str, Any], list[str]]:
    """What the seeds of one row of a table scored in one column, and what is missing.

    Returns:
        `("questions", seed -> id -> (group, score))`, or, where a figure is no mean over questions, `("seeds", seed ->
        value)`; and a reason for each seed that has none.
    """
    cells = [Cell(method, fraction, setting, seed, budget) for seed in results.grid.seeds]
    questions: dict[int, dict] = {}
    values: dict[int, float] = {}
    missing: dict[str, list[int]] = {}
    for cell in cells:
        found = {task: results.result(cell, task) for task in {x.partition(".")[0] for x in parts}}
        if any(x is None for x in found.values()):
            missing.setdefault(results.reason(cell), []).append(cell.seed)
            continue
        scored = _question_scores(parts, found)
        if scored is not None:
            questions[cell.seed] = scored
        elif (value := _metric(parts, found)) is not None:
            values[cell.seed] = value
        else:
            missing.setdefault(f"the task gave no {' or '.join(parts)}", []).append(cell.seed)
    notes = [f"seed {', '.join(map(str, seeds))}: {reason}" for reason, seeds in missing.items()]
    return (("seeds", values) if values else ("questions", questions)), notes


def _question_scores(parts: tuple[str, ...], found: dict[str, TaskResult]) -> dict[str, tuple[str, float]] | None:
    """id -> (group, score) of the questions that a column is the mean of; None where it is no such mean."""
    scored: dict[str, tuple[str, float]] = {}
    for part in parts:
        task, _, figure = part.partition(".")
        figure = figure or next(iter(found[task].metrics), "")
        questions = _questions_behind(found[task], figure)
        if questions is None:
            return None
        scored |= {f"{part}/{x}": (f"{part}/{group}", score) for x, (group, score) in questions.items()}
    return scored


def _questions_behind(result: TaskResult, figure: str) -> dict[str, tuple[str, float]] | None:
    """The questions whose mean a figure of a task is, or the mean of whose groups' means; None where it is neither. Their
    scores are on the figure's scale."""
    rows = [row for row in result.rows if row.get("score") is not None]
    value = result.metrics.get(figure)
    for chosen in _candidates(rows, figure, result.task):
        for grouped in (True, False) if chosen else ():
            questions = {
                f"{row['group']}/{row['id']}": (row["group"] if grouped else "", float(row["score"])) for row in chosen
            }
            for scale in SCALES:
                mean = scale * _mean_of_groups(questions)
                if value is None or abs(mean - value) <= SAME * max(1.0, abs(value)):
                    return {name: (group, scale * score) for name, (group, score) in questions.items()}
    return None


def _candidates(rows: list[dict], figure: str, task: str) -> Iterator[list[dict]]:
    """Rows that a figure may be of: a group's, those of groups whose names begin with its name, those of LongBench's kind,
    those with its name in some column, all."""
    yield [row for row in rows if row["group"] == figure]
    yield [row for row in rows if row["group"].startswith(f"{figure}_")]
    if task == "longbench":
        from ..evaluation.harness import LONGBENCH

        yield [row for row in rows if row["group"] in LONGBENCH.get(figure, ())]
    if task == "longbench_judged":
        from ..evaluation.longbench_judged import family_of

        yield [row for row in rows if family_of(row["group"]) == figure]
    for column in rows[0] if rows else ():
        yield [row for row in rows if figure in (str(row.get(column)), f"{column}_{row.get(column)}")]
    yield rows


def _mean_of_groups(questions: dict[str, tuple[str, float]]) -> float:
    groups: dict[str, list[float]] = {}
    for group, score in questions.values():
        groups.setdefault(group, []).append(score)
    return sum(sum(scores) / len(scores) for scores in groups.values()) / len(groups)


def _metric(parts: tuple[str, ...], found: dict[str, TaskResult]) -> float | None:
    """The mean of the parts as the task itself gives them."""
    values = []
    for part in parts:
        task, _, figure = part.partition(".")
        metrics = found[task].metrics
        figure = figure or next(iter(metrics), "")
        if figure not in metrics:
            return None
        values.append(float(metrics[figure]))
    return sum(values) / len(values)


# As text


def to_markdown(made: Table) -> str:
    """The table, one block a setting and budget, and the differences to the reference below."""
    spec, blocks = made.spec, {}
    for line in made.lines:
        blocks.setdefault((line.setting, line.budget), []).append(line)
    parts = [spec.text] if spec.text else []
    for (setting, budget), lines in blocks.items():
        columns = list(lines[0].entries)
        parts.append(f"**{inline(setting)}, {inline(budget)}**: mean over seeds, with 95% intervals.")
        parts.append(
            table(["", *map(inline, columns)], [[inline(x.label), *map(_shown, x.entries.values())] for x in lines])
        )
        compared = [x for x in lines if any(y.difference for y in x.entries.values())]
        if compared:
            parts.append(
                f"Difference to {inline(spec.against)}, paired by seed and question; bold where the interval leaves out 0."
            )
            rows = [
                [inline(x.label), *(_shown_difference(y.difference) for y in x.entries.values())] for x in compared
            ]
            parts.append(table(["", *map(inline, columns)], rows))
    parts += [f"({number}) {inline(note)}" for number, note in enumerate(made.notes, 1)]
    return "\n\n".join(parts)


def _shown(entry: Entry) -> str:
    mark = f" ({entry.note})" if entry.note else ""
    return (_with_interval(entry.value) if entry.value else "–") + mark


def _with_interval(found: Estimate, sign: str = "") -> str:
    interval = "" if found.low is None else f" [{found.low:{sign}.3g}, {found.high:{sign}.3g}]"
    return f"{found.mean:{sign}.3g}{interval}"


def _shown_difference(found: Estimate | None) -> str:
    if found is None:
        return "–"
    text = _with_interval(found, "+")
    return f"**{text}**" if found.excludes_zero else text


CSV_HEADER = ("setting", "budget", "method", "fraction", "column", "mean", "low", "high", "num_seeds", "num_questions")
CSV_HEADER += ("against", "difference", "difference_low", "difference_high", "note")


def to_csv(made: Table, path: Path) -> None:
    """One line a figure."""
    import csv

    with path.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(CSV_HEADER)
        for line in made.lines:
            for name, entry in line.entries.items():
                value, other = entry.value, entry.difference
                row = [line.setting, line.budget, line.method, line.fraction, name]
                row += (
                    [value.mean, value.low, value.high, value.num_seeds, value.num_questions] if value else [None] * 5
                )
                row += [made.spec.against, other.mean, other.low, other.high] if other else [None] * 4
                writer.writerow([*row, made.notes[int(entry.note) - 1] if entry.note else ""])


# What training took


def cost_rows(results: Results) -> list[list[str]]:
    """Rows, tokens, steps and time of each method, of the first seed that is finished."""
    grid, rows = results.grid, []
    spec = TableSpec("cost", COST_TITLE, {})
    for setting, budget, method, fraction in _places(spec, grid):
        cells = [Cell(method.name, fraction, setting, seed, budget) for seed in grid.seeds]
        job = results.job_of[cells[0]]
        took = [x for x in map(results.training, cells) if x is not None]
        steps = took[0]["num_steps"] if took else None
        minutes = f"{sum(x['seconds'] for x in took) / len(took) / 60:.3g}" if took else "–"
        label = Line(setting, budget, method.name, fraction, {}).label
        (long, short), tokens = rows_of_job(job), epoch_tokens(job)
        cells_text = [f"{long:,}", f"{short:,}", f"{tokens:,}", "–" if steps is None else f"{steps:,}", minutes]
        rows.append([inline(setting), inline(budget), inline(label), *cells_text])
    return rows
