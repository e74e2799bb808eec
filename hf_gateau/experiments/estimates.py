"""The dry run: each cell's rows and tokens, what is there, and about how long the rest takes.

Time comes from finished cells of the same folder: seconds a trained token, and seconds an evaluation. While there are none,
it is the least that training can take: 6 floating-point operations a weight and token, forward and backward, and those of
causal attention at the mean length of the rows, at the rate that the user gives, or half of what a matrix product reaches here.
Small models, short batches, padding and offloading take longer. Evaluation is then left out, and said to be.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..models.device import matrix_rate
from .cells import Job
from .grid import EQUAL_STEPS, Grid
from .running import RESULTS, failure_of, is_finished, read_json


PASSES = 3  # forward, and twice that backward; with gradient checkpointing a forward more
FLOPS_A_WEIGHT = 2  # a pass: multiply and add
REACHED = 0.5  # of a matrix product's rate, by training


def dry_run_text(grid: Grid, jobs: list[Job], flops_per_second: float | None = None, num_workers: int = 1) -> str:
    """What would be run, as lines for people."""
    seconds, how, is_measured = training_seconds(jobs, grid, flops_per_second)
    lines = [f"{grid.name}: {len(jobs)} trainings for {sum(len(job.cells) for job in jobs)} cells", ""]
    width = max(len(job.label) for job in jobs)
    lines.append(f"{'':{width}}  {'long':>7} {'short':>7} {'tokens':>12} {'trained':>12}  {'state'}")
    pending = [job for job in jobs if not is_finished(job)]
    keys = {job.key for job in pending}
    for job in jobs:
        failure = failure_of(job) if job.key in keys else None
        state = f"failed before: {failure}" if failure else "to run" if job.key in keys else "finished"
        also = f" (also {', '.join(cell.label for cell in job.cells[1:])})" if len(job.cells) > 1 else ""
        long, short = rows_of_job(job)
        lines.append(
            f"{job.label:{width}}  {long:>7,} {short:>7,} {epoch_tokens(job):>12,} {trained_tokens(job):>12,}  {state}{also}"
        )
    evaluation = evaluation_seconds(jobs)
    hours = (sum(map(seconds, pending)) + (evaluation or 0.0) * len(pending)) / 3600
    without = "" if evaluation is not None else "; without evaluation, whose time is not known yet"
    lines += ["", f"{len(pending)} to run: {_hours(hours, grid, num_workers, is_measured)} ({how}{without})."]
    return "\n".join(lines)


def _hours(hours: float, grid: Grid, num_workers: int, is_measured: bool) -> str:
    """Hours that the user waits, and those of devices, where trainings take GPUs."""
    import torch

    devices = num_devices(grid.launch)
    workers = "one worker" if num_workers == 1 else f"{num_workers} workers"
    waits = f"{'about' if is_measured else 'at least'} {hours / num_workers:.2g} hours with {workers}"
    of = f", each on {devices} devices" if devices > 1 else ""
    return waits + of + (f": {hours * devices:.2g} GPU hours" if devices > 1 or torch.cuda.is_available() else "")


def num_devices(launch: dict[str, Any]) -> int:
    """Processes that a training takes: as the grid says, or the file of accelerate that it names."""
    import yaml

    file = Path(str(launch.get("accelerate_config", "")))
    told = yaml.safe_load(file.read_text(encoding="utf-8")) if file.is_file() else {}
    return int(launch.get("num_processes") or (told or {}).get("num_processes") or 1)


def rows_of_job(job: Job) -> tuple[int, int]:
    """Long and short rows."""
    return job.selection["num_kept"], job.selection["num_short"]


def epoch_tokens(job: Job) -> int:
    """Tokens of all rows: counted where rows are measured, else estimated from some."""
    return job.selection["num_tokens"] + job.selection["num_short_tokens"]


def trained_tokens(job: Job) -> int:
    """Tokens of all steps, without padding."""
    recipe, rows = job.recipe, sum(rows_of_job(job))
    if recipe.get("packing") and recipe.get("max_length"):  # a batch is of packs
        rows = epoch_tokens(job) / recipe["max_length"]
    batch = recipe.get("per_device_train_batch_size", 8) * recipe.get("gradient_accumulation_steps", 1)
    batch *= num_devices(job.launch)
    if job.cells[0].budget == EQUAL_STEPS:
        return round(recipe["max_steps"] * batch * epoch_tokens(job) / max(rows, 1))
    return round(recipe.get("num_train_epochs", 3) * epoch_tokens(job))


def training_seconds(
    jobs: list[Job], grid: Grid, flops_per_second: float | None
) -> tuple[Callable[[Job], float], str, bool]:
    """Seconds that a job trains for, where that is known from, and whether trainings were timed for it."""
    took = [(x["train"]["seconds"], trained_tokens(job)) for job, x in _results(jobs)]
    if took:
        a_token = sum(x for x, _ in took) / max(1, sum(x for _, x in took))
        return lambda job: a_token * trained_tokens(job), f"as {len(took)} finished took", True
    rate = (flops_per_second or REACHED * _matrix_rate()) * num_devices(grid.launch)
    weights, layers, width = shape_of_model(jobs[0].recipe)
    passes = PASSES + bool(jobs[0].recipe.get("gradient_checkpointing"))

    def seconds(job: Job) -> float:
        length = epoch_tokens(job) / max(1, sum(rows_of_job(job)))
        attention = FLOPS_A_WEIGHT * layers * width * length  # two products with half of a row's tokens
        return passes * (FLOPS_A_WEIGHT * weights + attention) * trained_tokens(job) / rate

    source = "given" if flops_per_second else "half of a matrix product's here"
    each = rate / num_devices(grid.launch)
    how = f"ESTIMATE: {passes * FLOPS_A_WEIGHT} x {weights:,} weights a token, and attention, at {each:.2g} operations a second, "
    return seconds, how + source, False


def evaluation_seconds(jobs: list[Job]) -> float | None:
    """Mean seconds that all tasks of a finished job took."""
    found = [sum(task["seconds"] for task in x["tasks"].values()) for _, x in _results(jobs)]
    return sum(found) / len(found) if found else None


def _results(jobs: list[Job]) -> list[tuple[Job, dict[str, Any]]]:
    found = ((job, read_json(Path(job.folder) / RESULTS)) for job in jobs)
    return [(job, x) for job, x in found if x is not None]


def shape_of_model(recipe: dict[str, Any]) -> tuple[int, int, int]:
    """Weights, layers and width of the model, from its configuration alone."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    options = {
        "revision": recipe.get("model_revision") or "main",
        "trust_remote_code": recipe.get("trust_remote_code", False),
    }
    config = AutoConfig.from_pretrained(recipe["model_name_or_path"], **options)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, trust_remote_code=options["trust_remote_code"])
    text = config.get_text_config()
    return sum(x.numel() for x in model.parameters()), text.num_hidden_layers, text.hidden_size


def _matrix_rate() -> float:
    """Floating-point operations a second of a matrix product, on the GPU in bfloat16 where there is one."""
    import torch

    on_gpu = torch.cuda.is_available()
    return matrix_rate(torch.device("cuda" if on_gpu else "cpu"), torch.bfloat16 if on_gpu else torch.float32)
