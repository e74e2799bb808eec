"""A few real rows measured on the user's own device, and what all others will take by them.

Time: seconds of a part = sum over `costs.FEATURES` of work x seconds per unit, non-negative least squares on relative errors,
then a factor for each part that makes the pilot's sum right. Memory: bytes of a part above the loaded models = a x tokens + b
of its largest forward pass, likewise; a row takes the most that one of its parts does.
"""

import resource
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import combinations
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ..measuring.costs import FEATURES, flops
from ..models.device import synchronise
from ..rows.samples import Sample, truncate_context
from ..store.sqlite import MeasureError


QUANTILES = (0.0, 0.25, 0.5, 0.75, 1.0)  # of the rows by their cost: those that the pilot measures, if time allows
ROUNDS = 3  # times that it measures each, at most; the median counts
MEMORY_SHARE = 0.9  # of the memory at hand that a row of the pilot may be expected to take
WARM_UP_CONTEXT = 64  # tokens
FIRST_TOKENS = 512  # of the piece of a row that tells how long more will take
MOST_GROWTH = 16.0  # in operations from one row to the next: of far larger ones the time cannot be told
LATE = 1.25  # times the budget, after which not even the next part of a row is begun
TIMES = ("wall", "cpu")


class Timing(NamedTuple):
    """One part of one row, measured: seconds of `TIMES`, and the peak of memory in bytes."""

    part: str
    seconds: tuple[float, float]
    peak: int


class Memory:
    """The device's memory in bytes: a GPU's own, else the process's resident memory."""

    def __init__(self, device):
        self.device, self.cuda = device, device.type == "cuda"

    def reset_peak(self) -> None:
        """Let `peak` begin anew; where the system cannot (Linux alone can), it stays the most that ever was."""
        if self.cuda:
            import torch

            torch.cuda.reset_peak_memory_stats(self.device)
            return
        try:
            Path("/proc/self/clear_refs").write_text("5")
        except OSError:
            pass

    def now(self) -> int:
        """Bytes in use."""
        if self.cuda:
            import torch

            return torch.cuda.memory_allocated(self.device)
        statm = Path("/proc/self/statm")
        return int(statm.read_text().split()[1]) * resource.getpagesize() if statm.exists() else self.peak()

    def peak(self) -> int:
        """Most bytes in use since `reset_peak`."""
        if self.cuda:
            import torch

            return torch.cuda.max_memory_allocated(self.device)
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)

    def capacity(self) -> int:
        """Bytes that this process could have, those it has included."""
        import os

        if self.cuda:
            import torch

            return torch.cuda.mem_get_info(self.device)[0] + torch.cuda.memory_reserved(self.device)
        if Path("/proc/meminfo").exists():
            lines = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
            return int(lines["MemAvailable"].split()[0]) * 1024 + self.now()
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


class TimeIsUp(BaseException):
    """A row is left in the middle; no failure of its own, which measuring would take it for."""


class Stopwatch:
    """`measure_sample`'s `watch`: a `Timing` of every part in `timings`.

    Raises:
        TimeIsUp: where a part would begin after the deadline (of `time.monotonic`).
    """

    def __init__(self, device, memory: Memory, deadline: float = float("inf")):
        self.device, self.memory, self.deadline, self.timings = device, memory, deadline, []

    @contextmanager
    def __call__(self, part: str) -> Iterator[None]:
        if time.monotonic() > self.deadline and self.timings:
            raise TimeIsUp
        synchronise(self.device)
        self.memory.reset_peak()
        wall, cpu = time.perf_counter(), time.process_time()
        yield
        synchronise(self.device)
        seconds = time.perf_counter() - wall, time.process_time() - cpu
        self.timings.append(Timing(part, seconds, self.memory.peak()))


# Fits


def nonnegative_least_squares(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """The x >= 0 with the least |a x - b|. Exact: the columns that it uses are one of the few subsets, all of which are tried."""
    scale = np.linalg.norm(a, axis=0)
    scaled = a / np.where(scale > 0, scale, 1)
    best, least = np.zeros(a.shape[1]), float(b @ b)
    for size in range(1, a.shape[1] + 1):
        for columns in map(list, combinations(np.flatnonzero(scale > 0), size)):
            x = np.linalg.lstsq(scaled[:, columns], b, rcond=None)[0]
            residual = float(((scaled[:, columns] @ x - b) ** 2).sum())
            if (x >= 0).all() and residual < least * (1 - 1e-9):
                best, least = np.zeros(a.shape[1]), residual
                best[columns] = x / scale[columns]
    return best


class TimeModel:
    """Seconds of a part from its work.

    Args:
        parts: the part of each observation.
        work: its array of `FEATURES`.
        seconds: what it took.
    """

    def __init__(self, parts: Sequence[str], work: Sequence[np.ndarray], seconds: Sequence[float]):
        work, seconds = np.array(work).reshape(-1, len(FEATURES)), np.maximum(seconds, 1e-9)
        self.per_unit = nonnegative_least_squares(work / seconds[:, None], np.ones(len(seconds)))
        self.factors = {}
        for part in dict.fromkeys(parts):
            chosen = [i for i, name in enumerate(parts) if name == part]
            self.factors[part] = float(seconds[chosen].sum() / max((work[chosen] @ self.per_unit).sum(), 1e-12))

    def __call__(self, part: str, work: np.ndarray) -> float:
        """Seconds; a part that the pilot did not see takes what the others' rates say."""
        return self.factors.get(part, 1.0) * float(work @ self.per_unit)


class MemoryModel:
    """Bytes of a part above the loaded models, from the tokens of its largest forward pass; arguments as `TimeModel`'s."""

    def __init__(self, parts: Sequence[str], tokens: Sequence[int], above: Sequence[float]):
        self.lines, tokens, above = {}, np.array(tokens, float), np.maximum(above, 0.0)
        for part in dict.fromkeys(parts):
            chosen = [i for i, name in enumerate(parts) if name == part]
            a = np.stack([tokens[chosen], np.ones(len(chosen))], 1)
            self.lines[part] = nonnegative_least_squares(a, above[chosen])

    def __call__(self, tokens: dict[str, int]) -> float:
        """Most bytes that a row takes, from the tokens of each part's largest pass."""
        return max((float(self.lines[part] @ [n, 1]) for part, n in tokens.items() if part in self.lines), default=0.0)


# The pilot


class PilotRow(NamedTuple):
    """A row that the pilot may measure: its sample, the work of its parts, the tokens of their largest passes."""

    sample: Sample
    work: dict[str, np.ndarray]
    tokens: dict[str, int]

    @property
    def flops(self) -> float:
        """Floating-point operations of all parts."""
        return sum(map(flops, self.work.values()))


class Pilot:
    """Measures some rows, those of least work first, for about `budget` seconds. Of a row that would take longer a piece is measured,
    with the end of its context; of the first row a short piece in any case.

    Args:
        runtime: to measure with; the models are loaded.
        samples: rows to choose from.
        row_of: makes a `PilotRow` of a sample.
        budget: seconds.
        advance: is called with each row or piece that was measured.

    Attributes:
        batches (`dict[int, float]`): seconds of the longest row's segments by `batch_tokens`, where there was time to try.
        rows (`list[PilotRow]`): rows and pieces that were measured. rounds (`int`): how often.
        seconds (`float`): what the pilot took. failures (`list[str]`): why rows were not measured.
        time (`dict[str, TimeModel]`): by name of `TIMES`. memory (`MemoryModel`): above `loaded` bytes.

    Raises:
        ValueError: no row could be measured.
    """

    def __init__(
        self,
        runtime,
        samples: Sequence[Sample],
        row_of: Callable[[Sample], PilotRow],
        budget: float,
        advance: Callable[[PilotRow], None],
    ):
        self.runtime, self.row_of, self.advance = runtime, row_of, advance
        self.device = runtime.pair.device
        self.gauge = Memory(self.device)
        self.loaded, self.capacity = self.gauge.now(), self.gauge.capacity()
        self.rows, self.timings, self.failures = [], [], []
        started = time.monotonic()
        self.last_moment = started + LATE * budget
        self._first_round(sorted(map(row_of, samples), key=lambda row: row.flops), started + budget)
        if not self.rows:
            raise ValueError(f"The pilot could measure no row: {self.failures[0]}.")
        self.rounds = self._more_rounds(started + budget)
        self.batches = self._try_batches(started + budget)
        self.seconds = time.monotonic() - started
        self.time = {name: self._fit_time(i) for i, name in enumerate(TIMES)}

    def _first_round(self, rows: list[PilotRow], deadline: float) -> None:
        tried = [[*self._pieces(rows[0]), rows[0]][0]]
        self._try(tried[0], float("inf"))
        for index in dict.fromkeys(round(q * (len(rows) - 1)) for q in QUANTILES):
            choice, done = [*rows[: index + 1], *self._pieces(rows[index])], None
            while done is not rows[index]:
                least = self.rows[-1].flops if self.rows else 0.0
                most = MOST_GROWTH * least or float("inf")
                larger = [row for row in choice if least < row.flops <= most and not any(row is x for x in tried)]
                done = self._affordable(sorted(larger, key=lambda row: row.flops), deadline)
                tried.append(done)
                if done is None or not self._try(done, self.last_moment):
                    break
        if self.rows:
            self.memory = self._fit_memory()

    def _try(self, row: PilotRow, last_moment: float) -> bool:
        """Measure a row for the first time; False where it fails."""
        try:
            self.timings.append([self._measure(row, last_moment)])
        except MeasureError as error:
            self.failures.append(str(error))
            return False
        self.rows.append(row)
        return True

    def _pieces(self, row: PilotRow) -> list[PilotRow]:
        """A row with ever more of the end of its context, each piece twice the tokens of the one before; not the whole row."""
        fixed = row.sample.response_end - len(row.sample.context)
        length, pieces = max(FIRST_TOKENS, fixed + WARM_UP_CONTEXT), []
        while length < row.sample.response_end:
            pieces.append(self.row_of(truncate_context(row.sample, length)))
            length *= 2
        return pieces

    def _affordable(self, rows: list[PilotRow], deadline: float) -> PilotRow | None:
        """The largest of some rows, in their order, that fits into the time and the memory that are left, by those measured so far;
        the first where none was."""
        if not self.rows:
            return rows[0] if rows else None
        rate = self.rows[-1].flops / sum(timing.seconds[0] for timing in self.timings[-1][0])
        time_left, memory = deadline - time.monotonic(), self._fit_memory()
        room = MEMORY_SHARE * self.capacity - self.loaded
        fitting = [row for row in rows if row.flops / rate <= time_left and memory(row.tokens) <= room]
        return fitting[-1] if fitting else None

    def _more_rounds(self, deadline: float) -> int:
        for count in range(1, ROUNDS):
            last = sum(timing.seconds[0] for row in self.timings for timing in row[-1])
            if time.monotonic() + last > deadline:
                return count
            again = [self._measure(row, self.last_moment) for row in self.rows]
            if any(len(found) < len(before[-1]) for found, before in zip(again, self.timings, strict=True)):
                return count  # there was no time for all
            for timings, found in zip(self.timings, again, strict=True):
                timings.append(found)
        return ROUNDS

    def _try_batches(self, deadline: float) -> dict[int, float]:
        from ..measuring.segments import segment_nlls
        from ..models.packing import Limits

        pair, cut, usual = self.runtime.pair, self.runtime.cut, self.runtime.limits.batch_tokens
        sample, seconds = self.rows[-1].sample, {}
        usual_seconds = next((t.seconds[0] for t in self.timings[-1][-1] if t.part == "segments"), None)
        if usual_seconds is None:  # none are measured
            return {}
        for batch_tokens in (usual, usual // 2, 2 * usual, 4 * usual):
            if batch_tokens < 1 or time.monotonic() + 2 * usual_seconds > deadline:
                continue
            limits, times = Limits(batch_tokens), []
            for _ in range(2):
                started = time.monotonic()
                segment_nlls(pair.long, [sample], cut, limits)
                synchronise(self.device)
                times.append(time.monotonic() - started)
            if limits.batch_tokens == batch_tokens:  # it fitted into memory
                seconds[batch_tokens] = min(times)
        return dict(sorted(seconds.items()))

    def _measure(self, row: PilotRow, last_moment: float) -> list[Timing]:
        """The parts of a row, the first in any case, the others as far as there is time."""
        from ..measuring.passes import measure_sample

        watch = Stopwatch(self.device, self.gauge, last_moment)
        runtime = self.runtime
        with suppress(TimeIsUp):
            measure_sample(runtime.pair, row.sample, runtime.cut, runtime.limits, watch, runtime.heads)
        self.advance(row)
        return watch.timings

    def _fit_time(self, kind: int) -> TimeModel:
        parts, work, seconds = [], [], []
        for row, rounds in zip(self.rows, self.timings, strict=True):
            for timings in zip(*rounds, strict=True):
                parts.append(timings[0].part)
                work.append(row.work[parts[-1]])
                seconds.append(float(np.median([timing.seconds[kind] for timing in timings])))
        return TimeModel(parts, work, seconds)

    def _fit_memory(self) -> MemoryModel:
        """From the first round, whose rows grow: what a process has let go of, its allocator may keep."""
        seen = [(row, timing) for row, rounds in zip(self.rows, self.timings, strict=True) for timing in rounds[0]]
        tokens = [row.tokens[timing.part] for row, timing in seen]
        return MemoryModel([t.part for _, t in seen], tokens, [t.peak - self.loaded for _, t in seen])


def load_and_warm_up(runtime, sample) -> tuple[float, float]:
    """Load both models and measure the beginning of a row; returns the seconds that it took, as `TIMES`."""
    from ..measuring.passes import measure_sample

    wall, cpu = time.perf_counter(), time.process_time()
    runtime.get_ready()
    fixed = sample.response_end - len(sample.context)
    beginning = truncate_context(sample, min(sample.response_end, fixed + WARM_UP_CONTEXT))
    try:
        measure_sample(runtime.pair, beginning, runtime.cut, runtime.limits)
    except MeasureError as error:
        raise ValueError(f"The models cannot measure {beginning.response_end} tokens: {error}.") from error
    with runtime.pair.short():  # loads it, where the beginning needed no short pass
        synchronise(runtime.pair.device)
    return time.perf_counter() - wall, time.process_time() - cpu
