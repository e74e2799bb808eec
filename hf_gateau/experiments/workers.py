"""Many jobs: one after the other here, or by spawned processes that take one job at a time; what dies loses one job alone."""

from __future__ import annotations

import os
import signal
from collections import deque
from collections.abc import Iterator
from multiprocessing import connection, get_context
from typing import TYPE_CHECKING, Any


if TYPE_CHECKING:
    from .cells import Job


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
        yield from _Pool(min(num_workers, len(jobs)), wait).run(jobs)
        return
    from .running import run_job

    for job in jobs:
        yield job, run_job(job, wait)


class _Pool:
    """Spawned processes; a process that ends before its job does is replaced."""

    def __init__(self, size: int, wait: bool):
        import torch

        self.context, self.size, self.wait = get_context("spawn"), size, wait
        self.num_gpus = torch.cuda.device_count()
        self.threads = max(1, (os.cpu_count() or 1) // size)

    def run(self, jobs: list[Job]) -> Iterator[tuple[Job, str]]:
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
            for _, process, _ in at_work.values():
                process.terminate()
            for pipe, (_, process, _) in at_work.items():
                process.join()
                pipe.close()

    def _start(self, place: int, waiting: deque, at_work: dict) -> None:
        ours, theirs = self.context.Pipe()
        gpu = place % self.num_gpus if self.num_gpus else None
        process = self.context.Process(target=work, args=(theirs, gpu, self.threads, self.wait), daemon=False)
        process.start()
        theirs.close()
        at_work[ours] = place, process, self._give(ours, waiting)

    @staticmethod
    def _give(pipe: Any, waiting: deque) -> Job:
        job = waiting.popleft()
        try:
            pipe.send(job)
        except ConnectionError:  # it died meanwhile: reading from it tells
            pass
        return job

    @staticmethod
    def _died(process: Any, job: Job) -> str:
        from .running import DONE, FAILED, is_finished, note_failure

        process.join()
        if is_finished(job):
            return DONE
        code = process.exitcode
        how = f"signal {-code} ({signal.Signals(-code).name})" if code < 0 else f"status {code}"
        hint = " Perhaps memory ran out: take fewer workers." if code == -signal.SIGKILL else ""
        note_failure(job, f"The worker process ended with {how} during this cell.{hint}")
        return FAILED


def work(pipe: Any, gpu: int | None, threads: int, wait: bool) -> None:
    """A worker's whole life: jobs come through the pipe, outcomes go back; it ends where the pipe does."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to the run, which ends its workers
    signal.signal(signal.SIGTERM, _leave)
    if gpu is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = _nth_visible(gpu)
    os.environ.setdefault("OMP_NUM_THREADS", str(threads))
    import torch

    from .running import run_job

    torch.set_num_threads(min(threads, torch.get_num_threads()))
    while True:
        try:
            job = pipe.recv()
        except EOFError:
            return
        try:
            pipe.send(run_job(job, wait))
        except BrokenPipeError:  # the run itself was killed; the job's results are kept
            return


def _leave(number: int, frame: Any) -> None:
    """End as an exception does, so that processes that were started end too."""
    raise SystemExit(128 + number)


def _nth_visible(gpu: int) -> str:
    """The device's own name, where the run was given some of the machine's."""
    names = [x for x in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if x]
    return names[gpu] if names else str(gpu)
