"""The tasks that `hf-gateau eval` knows, and what each is given.

A task is a function `run(work: Work) -> TaskResult` in a module of its own, imported when it is asked for.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar


if TYPE_CHECKING:
    from ..endpoint import Endpoint
    from .results import TaskResult

T = TypeVar("T")
# name -> module with `run`
TASKS: dict[str, str] = {
    "longbench_chat": "longbench_chat",
    "mt_bench": "mt_bench",
    "longbench_judged": "longbench_judged",
}


class Generator(Protocol):
    """A model that answers; greedy. What it has answered is kept in the evaluation's folder and not generated twice."""

    model: str

    def generate(self, prompts: Sequence[list[dict[str, str]]], max_new_tokens: int) -> list[str]:
        """One answer a prompt (chat messages, the last one the user's), in order. Prompts that are longer than the model
        takes lose their middle."""


@dataclass
class Work:
    """What a task is given.

    Attributes:
        model: folder or Hub id of the model that is evaluated.
        folder: where results go; a task may keep files of its own in `folder / its name`.
        generator: makes the `Generator`, once, when a task first needs it.
        endpoint: makes the `Endpoint` that judges, once, when a task first needs it.
        options: settings of tasks by name, the dataclasses that the command took.
        limit: questions of each data set to take; all where None.
    """

    model: str
    folder: Path
    generator: Callable[[], Generator]
    endpoint: Callable[[], Endpoint]
    options: dict[str, Any] = field(default_factory=dict)
    limit: int | None = None

    def settings(self, kind: type[T]) -> T:
        """The settings of that class: those that the command took, else the defaults."""
        return self.options.get(kind.__name__) or kind()


def run_task(name: str, work: Work) -> TaskResult:
    """What the named task finds.

    Raises:
        ValueError: there is no such task.
    """
    if name not in TASKS:
        raise ValueError(f"There is no task {name!r}; use some of {', '.join(TASKS)}.")
    return importlib.import_module(f".{TASKS[name]}", __package__).run(work)
