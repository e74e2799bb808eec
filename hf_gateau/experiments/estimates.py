"""The dry run: each cell's rows and tokens, what is there, and about how long the rest takes.

Time comes from finished cells of the same folder: seconds a trained token, and seconds an evaluation. While there are none,
from 6 floating-point operations a parameter and token (forward and backward, without attention), at the rate that the user
gives, or that a matrix product reaches here; evaluation is then left out, and said to be.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..pilot import matrix_rate
from .cells import Job
from .grid import EQUAL_STEPS, Grid
from .running import RESULTS, failure_of, is_finished, read_json


FLOPS_A_WEIGHT = 6  # forward 2, backward 4
REACHED = 0.5  # of a matrix product's rate, by training


def dry_run_text(grid: Grid, jobs: list[Job], flops_per_second: float | None = None) -> str:
    """What would be run, as lines for people."""
    rate, how = seconds_per_token(jobs, grid, flops_per_second)
    lines = [f"{grid.name}: {len(jobs)} trainings for {sum(len(job.cells) for job in jobs)} cells", ""]
    width = max(len(job.label) for job in jobs)
    lines.append(f"{'':{width}}  {'long':>7} {'short':>7} {'tokens':>12} {'trained':>12}  {'state'}")
    left = 0.0
    for job in jobs:
        is_there = is_finished(job)
        tokens = trained_tokens(job)
        left += 0.0 if is_there else rate * tokens
        state = "finished" if is_there else f"failed before: {failure_of(job)}" if failure_of(job) else "to run"
        also = f" (also {', '.join(cell.label for cell in job.cells[1:])})" if len(job.cells) > 1 else ""
        long, short = rows_of_job(job)
        lines.append(
            f"{job.label:{width}}  {long:>7,} {short:>7,} {epoch_tokens(job):>12,} {tokens:>12,}  {state}{also}"
        )
    pending = [job for job in jobs if not is_finished(job)]
    evaluation = evaluation_seconds(jobs)
    hours = (left + (evaluation or 0.0) * len(pending)) / 3600
    without = "" if evaluation is not None else "; without evaluation, whose time is not known yet"
    lines += ["", f"{len(pending)} to run: about {hours:.2g} hours with one worker ({how}{without})."]
    return "\n".join(lines)


def rows_of_job(job: Job) -> tuple[int, int]:
    """Long and short rows."""
    return job.selection["num_kept"], job.selection["num_short"]


def epoch_tokens(job: Job) -> int:
    """Tokens of all rows: counted where rows are measured, else estimated from some."""
    return job.selection["num_tokens"] + job.selection["num_short_tokens"]


def trained_tokens(job: Job) -> int:
    """Tokens of all steps, without padding."""
    recipe, rows = job.recipe, sum(rows_of_job(job))
    batch = recipe.get("per_device_train_batch_size", 8) * recipe.get("gradient_accumulation_steps", 1)
    batch *= int(job.launch.get("num_processes") or 1)
    if job.cells[0].budget == EQUAL_STEPS:
        return round(recipe["max_steps"] * batch * epoch_tokens(job) / max(rows, 1))
    return round(recipe.get("num_train_epochs", 3) * epoch_tokens(job))


def seconds_per_token(jobs: list[Job], grid: Grid, flops_per_second: float | None) -> tuple[float, str]:
    """Seconds of training a token, and where that is known from."""
    took = [(x["train"]["seconds"], trained_tokens(job)) for job, x in _results(jobs)]
    if took:
        return sum(x for x, _ in took) / max(1, sum(x for _, x in took)), f"as {len(took)} finished took"
    rate = flops_per_second or REACHED * _matrix_rate()
    weights = num_parameters(jobs[0].recipe)
    source = "given" if flops_per_second else "half of a matrix product's here"
    devices = int(grid.launch.get("num_processes") or 1)
    how = f"ESTIMATE: 6 x {weights:,} weights a token at {rate:.2g} operations a second, {source}"
    return FLOPS_A_WEIGHT * weights / rate / devices, how


def evaluation_seconds(jobs: list[Job]) -> float | None:
    """Mean seconds that all tasks of a finished job took."""
    found = [sum(task["seconds"] for task in x["tasks"].values()) for _, x in _results(jobs)]
    return sum(found) / len(found) if found else None


def _results(jobs: list[Job]) -> list[tuple[Job, dict[str, Any]]]:
    found = ((job, read_json(Path(job.folder) / RESULTS)) for job in jobs)
    return [(job, x) for job, x in found if x is not None]


def num_parameters(recipe: dict[str, Any]) -> int:
    """Weights of the model, from its configuration alone."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    options = {
        "revision": recipe.get("model_revision") or "main",
        "trust_remote_code": recipe.get("trust_remote_code", False),
    }
    config = AutoConfig.from_pretrained(recipe["model_name_or_path"], **options)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, trust_remote_code=options["trust_remote_code"])
    return sum(x.numel() for x in model.parameters())


def _matrix_rate() -> float:
    """Floating-point operations a second of a matrix product, on the GPU in bfloat16 where there is one."""
    import torch

    on_gpu = torch.cuda.is_available()
    return matrix_rate(torch.device("cuda" if on_gpu else "cpu"), torch.bfloat16 if on_gpu else torch.float32)
