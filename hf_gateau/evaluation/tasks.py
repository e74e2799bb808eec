"""The tasks that `hf-gateau eval` knows, and what each is given.

A task is a function `run(work: Work) -> TaskResult` in a module of its own. One that has settings says which in `OPTIONS`,
a tuple of dataclasses at the top of its module, and reads them with `work.settings(ItsConfig)`; one that reads what another
task left says which in `READS`. A module of several tasks has `run_NAME` for each.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar


if TYPE_CHECKING:
    from ..endpoint.questions import Endpoint
    from .results import TaskResult

T = TypeVar("T")
Messages = list[dict[str, str]]  # of a chat
# name -> module with `run`, or module:function
TASKS: dict[str, str] = {
    "needle": "needle",
    "planted_needle": "planted_needle",
    "longbench": "harness:run_longbench",
    "ruler": "harness:run_ruler",
    "niah": "harness:run_niah",
    "harness": "harness:run_harness",
    "longbench_chat": "longbench_chat",
    "mt_bench": "mt_bench",
    "longbench_judged": "longbench_judged",
}


class Generator(Protocol):
    """A model that answers; greedy. What it has answered is kept in the evaluation's folder and not generated twice.

    Attributes:
        model: as it was named.
        tokenizer: its own, of transformers.
        max_length: tokens that a prompt and its answer may have together.
    """

    model: str
    tokenizer: Any
    max_length: int

    def generate(self, prompts: Sequence[Messages], max_new_tokens: int) -> list[str]:
        """One answer a prompt (chat messages, the last one the user's, or the beginning of the assistant's), in order.
        Prompts that are longer than the model takes lose their middle."""

    def num_tokens(self, prompt: list[dict[str, str]]) -> int:
        """Tokens of a whole prompt, chat template and all."""


@dataclass
class Work:
    """What a task is given.

    Attributes:
        model: folder or Hub id of the model that is evaluated.
        folder: where results go; a task may keep files of its own in `folder / its name`.
        generator: makes the `Generator`, once, when a task first needs it.
        endpoint: makes the `Endpoint` that judges, once, when a task first needs it.
        options: settings of tasks, the dataclasses that the command took, by the names of their classes.
        limit: questions of each data set to take; all where None. Of a grid, spread evenly over it.
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


def split_names(names: Iterable[str]) -> list[str]:
    """Names that came one by one or with commas between, each once."""
    return list(dict.fromkeys(name for part in names for name in part.split(",") if name))


def check_tasks(names: Iterable[str]) -> None:
    """Refuse names that are no task's.

    Raises:
        ValueError: there is no such task.
    """
    if unknown := [name for name in names if name not in TASKS]:
        raise ValueError(f"There is no task {', '.join(map(repr, unknown))}; use some of {', '.join(TASKS)}.")


def task_options(name: str) -> tuple[type, ...]:
    """The dataclasses that a task's settings are."""
    return getattr(_module(name), "OPTIONS", ())


def task_reads(name: str) -> tuple[str, ...]:
    """The tasks whose rows a task reads from the evaluation's folder."""
    return getattr(_module(name), "READS", ())


def run_task(name: str, work: Work) -> TaskResult:
    """What the named task finds.

    Raises:
        ValueError: there is no such task.
    """
    check_tasks([name])
    return getattr(_module(name), TASKS[name].partition(":")[2] or "run")(work)


def _module(name: str) -> Any:
    return importlib.import_module(f".{TASKS[name].partition(':')[0]}", __package__)
