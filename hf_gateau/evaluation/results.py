"""What an evaluation found: figures of a task, and the questions behind them, in files that other stages read.

FOLDER/TASK/results.json      metrics, settings, versions
FOLDER/TASK/rows.jsonl        one question a line: id, score, group, and what the task adds (answer, replies, length)
"""

from __future__ import annotations

import json
import os
from collections import defaultdict
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any


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
    groups = defaultdict(list)
    for row in rows:
        if row.get("score") is not None:
            groups[row["group"]].append(row["score"])
    means = {group: sum(scores) / len(scores) for group, scores in sorted(groups.items())}
    return {"mean": sum(means.values()) / len(means), **means} if means else {}


def save_result(result: TaskResult, folder: str | os.PathLike) -> Path:
    """Write a result into a folder's own folder of the task; returns that. A file is whole or not there."""
    place = Path(folder) / result.task
    place.mkdir(parents=True, exist_ok=True)
    about = {name: value for name, value in asdict(result).items() if name != "rows"}
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in result.rows)
    for name, text in (
        ("rows.jsonl", lines),
        ("results.json", json.dumps(about, indent=2, ensure_ascii=False) + "\n"),
    ):
        partial = place / f".{name}.{os.getpid()}"
        partial.write_text(text, encoding="utf-8")
        partial.replace(place / name)
    return place


def load_result(folder: str | os.PathLike, task: str) -> TaskResult | None:
    """What `save_result` wrote; None where the task was not finished."""
    place = Path(folder) / task
    if not (place / "results.json").exists():
        return None
    lines = filter(None, (place / "rows.jsonl").read_text("utf-8").split("\n"))  # not at U+2028, as splitlines does
    return TaskResult(rows=[json.loads(x) for x in lines], **json.loads((place / "results.json").read_text("utf-8")))
