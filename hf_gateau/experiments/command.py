"""`hf-gateau experiment`: run a grid, or say what it would take, and write its tables."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class ExperimentArguments:
    """How a grid is run."""

    RARELY_GIVEN = ("flops_per_second",)

    output: str = field(
        metadata={
            "help": "Folder of the experiment: cells/, tables, figures, README.md. The same command goes on there.",
            "aliases": ["-o"],
        }
    )
    num_workers: int = field(
        default=1,
        metadata={"help": "Processes that take cells, one at a time; with several GPUs, one each. 1: this process."},
    )
    dry_run: bool = field(
        default=False,
        metadata={
            "help": "Say what would be run, what is there, and about how long it takes; train no cell. Rows and models that "
            "functions make are made: they are what is selected from."
        },
    )
    tables_only: bool = field(
        default=False, metadata={"help": "Write tables and figures of the cells that are finished; train nothing."}
    )
    flops_per_second: float | None = field(
        default=None,
        metadata={
            "help": "Floating-point operations a second that training reaches on a device, for the dry run, while no cell is "
            "finished. Default: measured on a matrix product, of which a real training reaches a half at best."
        },
    )

    def __post_init__(self):
        if self.num_workers < 1:
            raise ValueError(f"--num_workers is a number of processes, got {self.num_workers}; give 1 or more.")
        if self.flops_per_second is not None and not self.flops_per_second > 0:
            raise ValueError(f"--flops_per_second is a rate, got {self.flops_per_second}; give e.g. 2e14.")
        if self.dry_run and self.tables_only:
            raise ValueError("--dry_run and --tables_only are both given; choose one.")


TAKES = ("grid", ExperimentArguments)


def command(grid: str, how: ExperimentArguments) -> None:
    """Compare ways to select, by training with each. Methods x fractions x settings x seeds: selects, trains, evaluates, and
    writes tables with confidence intervals. What is finished is kept; the same command goes on where it was stopped.

    Example:
        hf-gateau experiment reproduce-tiny -o results --num_workers 2
    """
    from pathlib import Path

    from ..files.apart import check_apart
    from ..files.writing import check_writable
    from ..models.device import keep_freed_memory
    from ..models.notices import announced
    from ..scripts.arguments import find_recipe
    from .cells import plan_jobs
    from .estimates import dry_run_text
    from .grid import load_grid
    from .running import DONE, is_finished
    from .specs import table_specs
    from .summary import write_summary

    file, folder = find_recipe(grid), Path(how.output).expanduser().absolute()
    check_apart(folder, file, around=True)
    with announced("Reading the grid, its data and models", after=1.0):
        planned = load_grid(file)
        specs = table_specs(planned)
    check_apart(folder, *(source.name for source in planned.data.values()), around=True)
    check_writable(str(folder), (folder, *folder.parents))
    _check_workers(planned, how)
    _make(planned, folder, how.num_workers)
    with announced("Planning the trainings", after=1.0):
        jobs = plan_jobs(planned, folder)
    if how.dry_run:
        return print(dry_run_text(planned, jobs, how.flops_per_second, how.num_workers))
    pending = [job for job in jobs if not is_finished(job)]
    print(
        f"{len(jobs)} trainings, {sum(len(x.cells) for x in jobs)} cells; {len(jobs) - len(pending)} are there.",
        flush=True,
    )
    keep_freed_memory()
    num_failed = sum(outcome != DONE for outcome in _with_bar([] if how.tables_only else pending, how.num_workers))
    path = write_summary(planned, jobs, specs, folder, file, how.num_workers)
    print(f"Tables, figures and settings: {path}")
    if num_failed:
        raise RuntimeError(
            f"{num_failed} of {len(jobs)} trainings failed; {path} says why. The same command tries again."
        )


def _check_workers(grid, how: ExperimentArguments) -> None:
    import torch

    if grid.launch and how.num_workers > 1 and torch.cuda.device_count():
        raise ValueError(
            f"--num_workers {how.num_workers}: each cell of this grid trains on several processes, which take the devices; "
            "leave --num_workers out."
        )


def _make(grid, folder, num_workers: int) -> None:
    """Make rows and model of a grid, several at a time; with one worker they are made where they are needed."""
    import sys

    from tqdm import tqdm

    from .sources import to_make
    from .workers import make_all

    waiting = to_make(grid, folder)
    if num_workers > 1 and len(waiting) > 1:
        with tqdm(total=len(waiting), desc="Making rows and models", file=sys.stderr) as bar:
            for making in make_all(waiting, num_workers):
                bar.update(1)
                bar.set_postfix_str(making.what)


def _with_bar(jobs: list, num_workers: int):
    """How each job ended, with a bar, and a line for each that failed."""
    import sys

    from tqdm import tqdm

    from .running import DONE, failure_of
    from .workers import run_jobs

    with tqdm(total=len(jobs), desc="Training", unit=" cells", disable=not jobs, file=sys.stderr) as bar:
        for job, outcome in run_jobs(jobs, num_workers):
            bar.update(1)
            if outcome != DONE:
                bar.write(f"failed: {job.label}: {failure_of(job)}", file=sys.stderr)
            yield outcome
