"""Many jobs: one after the other here, or by spawned processes that take one job at a time; what dies loses one job alone.

The same processes make a grid's rows and model, before any job is planned.
"""

from __future__ import annotations

import gc
import os
import signal
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr, redirect_stdout
from functools import partial
from multiprocessing import connection, get_context
from typing import TYPE_CHECKING, Any


if TYPE_CHECKING:
    from .cells import Job
    from .sources import Making


PATIENCE = 5  # seconds that a worker has to end in


def make_all(waiting: list[Making], num_workers: int) -> Iterator[Making]:
    """Make rows and models, several at a time; yields each as it ends. Those that can be made are, also where one fails.

    Raises:
        RuntimeError: at the end, with what failed and why.
    """
    failed = []
    for making, reason in _Pool(min(num_workers, len(waiting)), _make, _note_unmade).run(waiting):
        yield making
        failed += [reason] if reason else []
    if failed:
        raise RuntimeError(" ".join(failed))


def _make(making: Making) -> str:
    """Why it could not be made; empty where it was. What the function says goes to a log beside it."""
    making.path.parent.mkdir(parents=True, exist_ok=True)
    with making.log.open("w", encoding="utf-8") as log, redirect_stdout(log), redirect_stderr(log):
        try:
            making.run()
        except Exception as error:
            return f"{error} ({making.log} has what it said.)"
    return ""


def _note_unmade(making: Making, how: str) -> str:
    return f"{making.what}: the worker process ended with {how}."


def run_jobs(jobs: list[Job], num_workers: int = 1) -> Iterator[tuple[Job, str]]:
    """Run jobs that are not finished; yields each with how it ended, as it ends.

    A job that another run is at comes last, and is waited for.
    """
    from .running import BUSY

    deferred = []
    for job, outcome in _run(jobs, num_workers, wait=False):
        if outcome == BUSY:
            deferred.append(job)
        else:
            yield job, outcome
    yield from _run(deferred, num_workers, wait=True)


def _run(jobs: list[Job], num_workers: int, wait: bool) -> Iterator[tuple[Job, str]]:
    if num_workers > 1 and jobs:
        yield from _Pool(min(num_workers, len(jobs)), partial(_do, wait=wait), _note_death).run(jobs)
        return
    from .running import run_job

    for job in jobs:
        yield job, run_job(job, wait)


def _do(job: Job, wait: bool) -> str:
    from .running import run_job

    return run_job(job, wait)


def _note_death(job: Job, how: str) -> str:
    from .running import DONE, FAILED, is_finished, note_failure

    if is_finished(job):
        return DONE
    note_failure(job, f"During this cell the worker process ended with {how}.")
    return FAILED


class _Pool:
    """Spawned processes; a process that ends before its job does is replaced.

    Args:
        size: processes.
        do: what a process does with a job; it returns the outcome, and raises nothing.
        note_death: the outcome of a job whose process ended before it, as a signal or status says.
    """

    def __init__(self, size: int, do: Callable[[Any], str], note_death: Callable[[Any, str], str]):
        import torch

        self.context, self.size, self.do, self.note_death = get_context("spawn"), size, do, note_death
        self.num_gpus = torch.cuda.device_count()
        self.threads = max(1, (os.cpu_count() or 1) // size)

    def run(self, jobs: list) -> Iterator[tuple[Any, str]]:
        waiting, at_work = deque(jobs), {}
        try:
            for place in range(self.size):
                self._start(place, waiting, at_work)
            while at_work:
                for pipe in connection.wait(list(at_work)):
                    place, process, job = at_work.pop(pipe)
                    try:
                        outcome, is_alive = pipe.recv(), True
                    except (EOFError, ConnectionError):
                        outcome, is_alive = self._died(process, job), False
                    yield job, outcome
                    if is_alive and waiting:
                        at_work[pipe] = place, process, self._give(pipe, waiting)
                    elif is_alive:
                        pipe.close()  # nothing is left: the process ends
                        process.join()
                    elif waiting:
                        self._start(place, waiting, at_work)
        finally:  # also after Ctrl-C: whoever is still at work stops
            for pipe, (_, process, _) in at_work.items():
                pipe.close()  # whoever waits for a job, or for its outcome to be read, ends
                process.terminate()
            for _, process, _ in at_work.values():
                process.join(PATIENCE)
                if process.is_alive():  # library code has swallowed the signal
                    process.kill()
                    process.join()

    def _start(self, place: int, waiting: deque, at_work: dict) -> None:
        ours, theirs = self.context.Pipe()
        gpu = place % self.num_gpus if self.num_gpus else None
        process = self.context.Process(target=work, args=(theirs, gpu, self.threads, self.do), daemon=False)
        process.start()
        theirs.close()
        at_work[ours] = place, process, self._give(ours, waiting)

    @staticmethod
    def _give(pipe: Any, waiting: deque) -> Any:
        job = waiting.popleft()
        try:
            pipe.send(job)
        except ConnectionError:  # it died meanwhile: reading from it tells
            pass
        return job

    def _died(self, process: Any, job: Any) -> str:
        process.join()
        code = process.exitcode
        hint = ": perhaps memory ran out, and fewer workers would do" if code == -signal.SIGKILL else ""
        how = f"signal {-code} ({signal.Signals(-code).name})" if code < 0 else f"status {code}"
        return self.note_death(job, how + hint)


def work(pipe: Any, gpu: int | None, threads: int, do: Callable[[Any], str]) -> None:
    """A worker's whole life: jobs come through the pipe, outcomes go back; it ends where the pipe does."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to the run, which ends its workers
    signal.signal(signal.SIGTERM, _leave)
    if gpu is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = _nth_visible(gpu)
    os.environ.setdefault("OMP_NUM_THREADS", str(threads))
    import torch

    torch.set_num_threads(min(threads, torch.get_num_threads()))
    is_first = True
    while True:
        try:
            job = pipe.recv()
        except EOFError:
            return
        outcome = do(job)
        try:
            pipe.send(outcome)
        except BrokenPipeError:  # the run itself was killed; the job's results are kept
            return
        if is_first:
            # What the first job has imported stays; looking at it takes a collection 0.2 s, and a job has three.
            gc.collect()
            gc.freeze()
            is_first = False


def _leave(number: int, frame: Any) -> None:
    """End as an exception does, so that processes that were started end too."""
    raise SystemExit(128 + number)


def _nth_visible(gpu: int) -> str:
    """The device's own name, where the run was given some of the machine's."""
    names = [x for x in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if x]
    return names[gpu] if names else str(gpu)
