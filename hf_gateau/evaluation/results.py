"""What an evaluation found: figures of a task, and the questions behind them, in files that other stages read.

FOLDER/TASK/results.json      metrics, settings, versions
FOLDER/TASK/rows.jsonl        one question a line: id, score, group, and what the task adds (answer, replies, length)
"""

from __future__ import annotations

import json
import os
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ..markdown import inline, table


RESULTS, ROWS = "results.json", "rows.jsonl"  # in the folder of a task
# task -> name that readers know
TITLES = {
    "needle": "Needle in a Haystack",
    "planted_needle": "Needle in a Haystack, planted language",
    "longbench": "LongBench",
    "ruler": "RULER",
    "niah": "RULER, needle tasks",
    "longbench_chat": "LongBench-Chat",
    "mt_bench": "MT-Bench",
    "longbench_judged": "LongBench, judged",
}


@dataclass
class TaskResult:
    """What came of one task.

    Attributes:
        task: its name, as in `--tasks`.
        metrics: name -> value, the main one first; nothing in it is estimated from missing answers.
        rows: one dict a question: `id` (str), `score` (float, or None where there is none, with `error`), `group` (str: data
            set, bucket or category), and what the task adds.
        settings: what the figures depend on: model, prompts' version, lengths, judge.
        higher_is_better: of the metrics.
    """

    task: str
    metrics: dict[str, float]
    rows: list[dict[str, Any]]
    settings: dict[str, Any] = field(default_factory=dict)
    higher_is_better: bool = True


def group_means(rows: list[dict[str, Any]]) -> dict[str, float]:
    """Mean score by `group`, of the rows that have a score, and `mean`, the mean of the groups' means, first."""
    means = dict(sorted(means_by(rows, "group").items()))
    return {"mean": sum(means.values()) / len(means), **means} if means else {}


def means_by(rows: Iterable[dict[str, Any]], column: str) -> dict[Any, float]:
    """Mean score of the rows that have one, by a column, in the order of the rows; without those that have nothing there."""
    groups = defaultdict(list)
    for row in rows:
        if row.get("score") is not None and row.get(column) is not None:
            groups[row[column]].append(row["score"])
    return {name: sum(scores) / len(scores) for name, scores in groups.items()}


def write_whole(path: Path, text: str) -> None:
    """Write a file that is whole or not there."""
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)


def save_result(result: TaskResult, folder: str | os.PathLike) -> Path:
    """Write a result into a folder's own folder of the task; returns that. A file is whole or not there."""
    place = Path(folder) / result.task
    place.mkdir(parents=True, exist_ok=True)
    about = {name: value for name, value in asdict(result).items() if name != "rows"}
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in result.rows)
    (place / RESULTS).unlink(missing_ok=True)  # that of other rows; without it the task counts as unfinished
    write_whole(place / ROWS, lines)
    write_whole(place / RESULTS, json.dumps(about, indent=2, ensure_ascii=False) + "\n")
    return place


def load_result(folder: str | os.PathLike, task: str) -> TaskResult | None:
    """What `save_result` wrote; None where the task was not finished."""
    place = Path(folder) / task
    if not (place / RESULTS).exists():
        return None
    lines = filter(None, (place / ROWS).read_text("utf-8").split("\n"))  # not at U+2028, as splitlines does
    return TaskResult(rows=[json.loads(x) for x in lines], **json.loads((place / RESULTS).read_text("utf-8")))


HEADER = ("task", "metric", "value", "questions")


def _summary_rows(results: Sequence[TaskResult]) -> list[tuple[str, str, str, str]]:
    """One line a metric; a task's name and its number of questions stand on its first."""
    rows = []
    for result in results:
        scored = sum(row.get("score") is not None for row in result.rows)
        count = f"{scored:,}" if scored == len(result.rows) else f"{scored:,} of {len(result.rows):,}"
        for i, (name, value) in enumerate(result.metrics.items()):
            rows.append(("" if i else result.task, name, f"{value:.2f}", "" if i else count))
    return rows


def summary(results: Sequence[TaskResult]) -> str:
    """A Markdown table of what tasks found."""
    rows = [[task and inline(task), inline(metric), *rest] for task, metric, *rest in _summary_rows(results)]
    return table(HEADER, rows)


def summary_text(results: Sequence[TaskResult]) -> str:
    """The same for a terminal."""
    rows = [HEADER, *_summary_rows(results)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    numbers = (2, 3)  # columns that end at the same place
    cells = [[x.rjust(widths[i]) if i in numbers else x.ljust(widths[i]) for i, x in enumerate(row)] for row in rows]
    return "\n".join("  ".join(row).rstrip() for row in cells)


def eval_results(results: Sequence[TaskResult], model_name: str) -> list[dict[str, Any]]:
    """What tasks found as the Hub's evaluation metadata: the value of a model card's `model-index`.

    Args:
        results: of tasks; those without a metric are left out.
        model_name: the card's title, without its owner.
    """
    from huggingface_hub import EvalResult
    from huggingface_hub.repocard_data import eval_results_to_model_index

    found = [
        EvalResult(
            task_type="text-generation",
            dataset_type=result.task,
            dataset_name=TITLES.get(result.task, result.task),
            metric_type=name,
            metric_name=name,
            metric_value=value,
        )
        for result in results
        for name, value in result.metrics.items()
    ]
    return eval_results_to_model_index(model_name, found) if found else []
