"""`hf-gateau eval`: run tasks on a model, keep every answer, print what came of it."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from ..endpoint.chat_client import EndpointConfig
from ..files.apart import check_apart
from ..markdown import inline, public_name
from ..redaction import redact
from .answering import GeneratorConfig
from .generation import load_generator
from .results import ROWS, TaskResult, eval_results, load_result, save_result, summary, summary_text, write_whole
from .tasks import TASKS, Work, check_tasks, run_task, split_names, task_options, task_reads


logger = logging.getLogger(__name__)

SUMMARY, MODEL_INDEX = "summary.md", "model_index.json"
ASKED = "asked"  # in a result's settings: what the command was asked for


@dataclass
class EvalArguments:
    """Which tasks, and where to.

    Raises:
        ValueError: there is no such task, or a field is out of range.
    """

    tasks: list[str] = field(
        metadata={"help": f"Tasks, one after the other or with commas between: {', '.join(TASKS)}."}
    )
    output: str = field(
        metadata={
            "help": "Folder for results and answers; with the same one, what is finished is not done again.",
            "aliases": ["-o"],
        }
    )
    limit: int | None = field(
        default=None,
        metadata={
            "help": "Take this many questions of each task or of each of its data sets, to try it out; of needles, spread "
            "evenly over lengths and depths."
        },
    )

    def __post_init__(self):
        self.tasks = split_names(self.tasks)
        check_tasks(self.tasks)
        if self.limit is not None and self.limit < 1:
            raise ValueError(f"--limit is a number of questions, got {self.limit}; give 1 or more.")


def command(model: str, arguments: EvalArguments, how: GeneratorConfig, judge: EndpointConfig, *settings: Any) -> None:
    """Evaluate a model on long-context tasks. LongBench, RULER, needles in haystacks, and judges of its answers. Every answer
    is kept at once, so a run that was stopped goes on where it was when the same command is given again.

    Examples:
        hf-gateau eval Qwen/Qwen3-0.6B --tasks needle,longbench -o results/qwen3
        # without network or GPU
        hf-gateau eval MODEL --tasks needle --needle_lengths 500 1000 2000 -o results
    """
    folder = Path(arguments.output).expanduser()
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"--output {str(folder)!r} is a file; give a folder, which is made where there is none.")
    check_apart(folder, model, around=True, inside=True)
    folder.mkdir(parents=True, exist_ok=True)
    results, failed = evaluate(model, folder, arguments.tasks, how, judge, settings, arguments.limit)
    write_summary(folder, model, finished(folder))
    if results:
        print(
            f"\n{summary_text(results)}\n\nAlso in {folder / SUMMARY}, with what earlier commands found of this model; "
            f"question by question in {folder}/TASK/rows.jsonl."
        )
    if failed:
        raise RuntimeError("; ".join(f"{name} could not be finished: {reason}" for name, reason in failed.items()))


def evaluate(
    model: str,
    folder: Path,
    tasks: list[str],
    how: GeneratorConfig | None = None,
    judge: EndpointConfig | None = None,
    settings: tuple[Any, ...] = (),
    limit: int | None = None,
) -> tuple[list[TaskResult], dict[str, str]]:
    """What tasks find of a model; a finished one with the same settings is read from the folder.

    Args:
        model: folder, .gguf file or Hub id.
        folder: for results and answers.
        tasks: names from `TASKS`.
        how: how the model answers.
        judge: who judges, for tasks that need it.
        settings: dataclasses of tasks (`OPTIONS`); defaults for those that are not given.
        limit: questions of each data set.

    Returns:
        the results of the tasks that could be finished, and why others could not.

    Raises:
        ValueError: there is no such task, or the folder has results of other weights.
        FileNotFoundError, OSError: there is no such model.
    """
    from ..endpoint.questions import Endpoint

    check_tasks(tasks)
    how, judge = how or GeneratorConfig(), judge or EndpointConfig()
    generator = load_generator(
        model, folder, how
    )  # finds the model and its tokenizer; weights come when they are needed
    _check_folder(folder, model, generator.describe())
    endpoint = cache(lambda: Endpoint(judge))
    options = {type(part).__name__: part for part in settings}
    work = Work(model, folder, lambda: generator, endpoint, options, limit)
    results, failed = [], {}
    for name in tasks:
        own = [work.settings(kind) for kind in task_options(name)]
        asked = _asked(generator.describe(), judge, own, limit)
        asked |= {"files": _contents(own, {read: folder / read / ROWS for read in task_reads(name)})}
        kept = load_result(folder, name)
        if kept is not None and kept.settings.get(ASKED) == asked and not kept.settings.get("num_failed"):
            print(f"{name}: finished before, with the same settings.")
            results.append(kept)
            continue
        print(f"{name} ...", flush=True)
        try:
            result = run_task(name, work)
        except Exception as error:  # tasks of others may raise anything; it is told, and the other tasks go on
            if os.environ.get("HF_GATEAU_TRACEBACK"):
                raise
            failed[name] = f"{type(error).__name__}: {error}"
            logger.error("%s: %s", name, error)
            continue
        result.settings |= {"model": public_name(model), ASKED: asked}
        save_result(result, folder)
        results.append(result)
    return results, failed


def _asked(generator: dict[str, Any], judge: EndpointConfig, own: list[Any], limit: int | None) -> dict[str, Any]:
    """What a task's figures depend on, as it comes back from JSON."""
    settings = {type(part).__name__: asdict(part) for part in own}
    return json.loads(
        json.dumps({"generator": generator, "judge": redact(judge.known_as), "limit": limit, **settings})
    )


def _contents(own: list[Any], read: dict[str, Path]) -> dict[str, str]:
    """What stands in the files that settings name and in those that are read besides; of a folder, which files it has."""
    settings = {name: value for part in own for name, value in vars(part).items() if value and isinstance(value, str)}
    named = {name: Path(os.path.expanduser(value)) for name, value in settings.items()}
    return {name: _digest(path) for name, path in (named | read).items() if os.path.exists(path)}


def _digest(path: Path) -> str:
    if path.is_file():
        return hashlib.sha256(path.read_bytes()).hexdigest()
    files = sorted(x for x in path.rglob("*") if x.is_file())
    states = [(str(x.relative_to(path)), x.stat().st_size, x.stat().st_mtime_ns) for x in files]
    return hashlib.sha256(json.dumps(states).encode()).hexdigest()


def finished(folder: Path) -> list[TaskResult]:
    """What the tasks that are finished in a folder have found."""
    return [result for name in TASKS if (result := load_result(folder, name)) is not None]


def _check_folder(folder: Path, model: str, generator: dict[str, Any]) -> None:
    """Refuse a folder with results of other weights, which would be lost or mixed with these."""
    for result in finished(folder):
        known = result.settings.get(ASKED, {}).get("generator", generator)
        if known.get("fingerprint") != generator["fingerprint"]:
            raise ValueError(
                f"{folder} has results of other weights, {result.settings.get('model')!r} (task {result.task}), and {model!r} "
                "is to be evaluated; give each model, and each version of it, a folder of its own (-o)."
            )


def write_summary(folder: Path, model: str, results: list[TaskResult]) -> None:
    """`summary.md`, the table, and `model_index.json`, the same for a model card's metadata."""
    name = public_name(model) or model
    write_whole(folder / SUMMARY, f"# Evaluation of {inline(name)}\n\n{summary(results)}\n")
    index = json.dumps(eval_results(results, name.rpartition("/")[2]), indent=2)
    write_whole(folder / MODEL_INDEX, index + "\n")


# The settings of all tasks, each once.
TAKES = (
    "model",
    EvalArguments,
    GeneratorConfig,
    EndpointConfig,
    *dict.fromkeys(kind for name in TASKS for kind in task_options(name)),
)
