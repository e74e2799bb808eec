"""One job: train, evaluate, keep what came out. `results.json` is written last, so a folder with one is finished."""

from __future__ import annotations

import gc
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from ..evaluation.results import TaskResult, load_result, save_result
from ..evaluation.tasks import Work
from ..ranking.selection import library_versions
from ..settings import a_type, import_function
from .cells import Job, task_flags
from .sources import write_json


DONE, FAILED, BUSY = "done", "failed", "busy"
RESULTS, TRAINED, FAILURE, LOG, LOCK = "results.json", "trained.json", "failed.json", "log.txt", ".lock"
STEPS = re.compile(r"^(\d+) steps; model and ", re.MULTILINE)  # as the training script says at its end
LAST_LINES = 15  # of a subprocess that failed
SHOW_TRACEBACK = "HF_GATEAU_TRACEBACK"


def is_finished(job: Job) -> bool:
    """Whether the job's results are there, of every task as it is asked now."""
    found = read_json(Path(job.folder) / RESULTS)
    there = (found or {}).get("tasks", {})
    return found is not None and all(there.get(name, {}).get("key") == x["key"] for name, x in job.tasks.items())


def read_json(path: Path) -> Any:
    """What a file holds; None where there is none."""
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def failure_of(job: Job) -> str | None:
    """Why a job failed when it was last tried."""
    return (read_json(Path(job.folder) / FAILURE) or {}).get("reason")


def run_job(job: Job, wait: bool = False) -> str:
    """Train and evaluate, unless that is done: `DONE`, `FAILED` (with the reason in failed.json), or `BUSY`, where another
    process is at it and `wait` is false. Nothing but Ctrl-C is raised."""
    from filelock import FileLock, Timeout

    folder = Path(job.folder)
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(folder / LOCK, timeout=-1 if wait else 0):
            if is_finished(job):
                return DONE
            (folder / FAILURE).unlink(missing_ok=True)
            try:
                _run(job, folder)
            except Exception as error:  # kept with its reason; other cells go on
                note_failure(job, f"{type(error).__name__}: {error}", traceback.format_exc())
                return FAILED
            return DONE
    except Timeout:
        return BUSY


def note_failure(job: Job, reason: str, details: str = "") -> None:
    """Keep why a job failed."""
    folder = Path(job.folder)
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / FAILURE, {"reason": " ".join(reason.split()), "details": details, "time": _now()})


def _run(job: Job, folder: Path) -> None:
    from ..models.fingerprints import model_fingerprint

    write_json(folder / "selection.json", job.selection)
    with (folder / LOG).open("a", encoding="utf-8") as log, _writing_to(log):
        trained = read_json(folder / TRAINED)
        if trained is None or not (folder / "model").is_dir():
            before = (trained or {}).get("fingerprint")
            trained = _train(job, folder, log)
            trained["fingerprint"] = model_fingerprint(str(folder / "model"))
            if trained["fingerprint"] != before:  # what was found is of weights that are no more
                shutil.rmtree(folder / "results", ignore_errors=True)
            write_json(folder / TRAINED, trained)
        tasks = {name: _evaluate(job, name, folder, log) for name in job.tasks}
    about = {"cells": [asdict(cell) for cell in job.cells], "key": job.key, "time": _now()}
    about |= {"train": trained, "tasks": tasks, "versions": {"hf_gateau": _own_version(), **library_versions()}}
    if job.keep_model:
        from .kept import write_card

        write_card(job, {name: load_result(folder / "results", name) for name in job.tasks})
    write_json(folder / RESULTS, about)
    if not job.keep_model:
        shutil.rmtree(folder / "model", ignore_errors=True)


def _own_version() -> str:
    from .. import __version__

    return __version__


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S%z")


@contextmanager
def _writing_to(log) -> Iterator[None]:
    """What Python code prints goes to the job's log; errors of the training script come as they are, not as exit 2."""
    before = os.environ.get(SHOW_TRACEBACK)
    os.environ[SHOW_TRACEBACK] = "1"
    try:
        with redirect_stdout(log), redirect_stderr(log):
            yield
    finally:
        log.flush()
        if before is None:
            del os.environ[SHOW_TRACEBACK]
        else:
            os.environ[SHOW_TRACEBACK] = before


# Training


def _train(job: Job, folder: Path, log) -> dict[str, Any]:
    """Run the training script on the job's recipe, here or through `accelerate launch`; what it took."""
    import yaml

    recipe = folder / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(job.recipe, sort_keys=False, allow_unicode=True), encoding="utf-8")
    model = folder / "model"
    has_checkpoint = any(model.glob("checkpoint-*"))
    if not has_checkpoint:
        shutil.rmtree(model, ignore_errors=True)  # of a training that was stopped
    arguments = ["--recipe", str(recipe), *(["--resume_from_checkpoint", "true"] if has_checkpoint else [])]
    started, so_far = time.monotonic(), _size_of(log)
    if job.launch:
        flags = [part for name, value in job.launch.items() for part in (f"--{name}", str(value))]
        _call(["sft", *arguments, *flags], log)
    else:
        _train_here(arguments)
    seconds = time.monotonic() - started
    steps = STEPS.findall(_said_since(log, so_far))
    _check_selection(job, model)
    for checkpoint in model.glob("checkpoint-*"):
        shutil.rmtree(checkpoint, ignore_errors=True)
    return {"seconds": seconds, "num_steps": int(steps[-1]) if steps else None, "time": _now()}


def _size_of(log) -> int:
    log.flush()
    return os.path.getsize(log.name)


def _said_since(log, size: int) -> str:
    """What the log holds beyond its first `size` bytes."""
    log.flush()
    with open(log.name, encoding="utf-8", errors="replace") as stream:
        stream.seek(size)
        return stream.read()


def _train_here(arguments: list[str]) -> None:
    from ..scripts import sft
    from ..scripts.arguments import make_parser

    try:
        sft.main(*make_parser("hf-gateau experiment").parse_args_and_config(arguments, fail_with_unknown_args=True))
    except SystemExit as error:
        raise RuntimeError(f"The training script ended with status {error.code}; its log says why.") from error
    finally:
        _free_memory()


def _free_memory() -> None:
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _check_selection(job: Job, model: Path) -> None:
    from ..training.selector import SELECTION_FILE

    trained_on = (read_json(model / SELECTION_FILE) or {}).get("fingerprint")
    if trained_on != job.selection["fingerprint"]:
        raise RuntimeError(
            f"The training script selected other rows ({trained_on}) than were planned ({job.selection['fingerprint']}): "
            "the data have changed since the run began. Begin it again."
        )


def _call(arguments: list[str], log) -> None:
    """Run a command of `hf-gateau` as a process of its own.

    Raises:
        RuntimeError: it failed; with its last lines.
    """
    so_far = _size_of(log)
    command = [sys.executable, "-m", "hf_gateau.cli", *arguments]
    options = {"stdout": log, "stderr": subprocess.STDOUT, "stdin": subprocess.DEVNULL, "start_new_session": True}
    with subprocess.Popen(command, **options) as process:
        try:
            status = process.wait()
        except BaseException:  # Ctrl-C, or a worker that is ended: its own processes end with it
            os.killpg(process.pid, signal.SIGKILL)
            raise
    if status:
        said = "\n".join(_said_since(log, so_far).strip().splitlines()[-LAST_LINES:])
        raise RuntimeError(f"`hf-gateau {arguments[0]}` ended with status {status}: {said}")


# Evaluation


def _evaluate(job: Job, name: str, folder: Path, log) -> dict[str, Any]:
    """The task's figures; those that are there already are not made again."""
    task, results = job.tasks[name], folder / "results"
    marker = results / name / "asked.json"
    about = read_json(marker)
    if about is None or about["key"] != task["key"]:
        started = time.monotonic()
        _ask(task, name, str(folder / "model"), results, log)
        about = {"key": task["key"], "seconds": time.monotonic() - started}
        write_json(marker, about)
    result = load_result(results, name)
    return about | {"metrics": result.metrics, "num_questions": len(result.rows), "settings": result.settings}


def _ask(task: dict[str, Any], name: str, model: str, results: Path, log) -> None:
    if task["evaluator"] is None:
        _call(["eval", model, "--tasks", name, "--output", str(results), *task_flags(task["options"])], log)
        return
    work = Work(model, results, _no_generator, _no_generator, task["options"])
    try:
        result = import_function(task["evaluator"], f"task {name!r}: {task['evaluator']!r}")(model, work)
    finally:
        _free_memory()
    if not isinstance(result, TaskResult):
        raise TypeError(f"{task['evaluator']} gave {a_type(result)}; an evaluator returns a TaskResult.")
    save_result(replace(result, task=name), results)


def _no_generator():
    raise ValueError(
        "An evaluator that a grid names as module:function loads the model itself, from its first argument."
    )
