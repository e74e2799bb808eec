"""How far measuring is and how fast it goes: a bar over tokens while it runs, the same figures in one line when it is done.

Utilisation is the floating-point operations of `costs.row_work` that a second of measuring does, as a share of what the
device does in products of large matrices. What rows on one context share is counted once. Time left is reckoned from the
operations that are left, for a row of twice the tokens takes more than twice the time.
"""

import os
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache

import numpy as np

from ..models.abilities import abilities_of
from ..records import commonest
from ..rows.cuts import Cuts
from ..store.sqlite import Measurement
from .costs import RowShape, Way, flops, model_shape, row_work


MOST_RECKONED = 2_000  # rows whose operations are counted one by one; of more, so many, evenly over their lengths
ROWS_COUNTED = 10_000  # at a time
SECONDS_A_LINE = 60.0  # where the bar goes into a file, which keeps every line
BAR = "{desc}: {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} tokens [{elapsed}{postfix}]"


class RowCosts:
    """Floating-point operations that rows take with a pair, whose models are loaded here."""

    def __init__(self, runtime):
        runtime.get_ready()
        pair = runtime.pair
        with pair.short() as short:
            self.long, self.short = model_shape(pair.long), model_shape(short)
        self.shares = abilities_of(pair.long.config).keeps_past
        self.way = Way.of(runtime)

    def __call__(self, row: RowShape) -> float:
        """Operations of a row; of one that follows another on its context, those of its own tokens alone."""
        follows = row.follows and self.shares and row.instruction > 0
        return sum(map(flops, row_work(self.long, self.short, replace(row, follows=follows), self.way).values()))

    def total(self, rows: Sequence[RowShape]) -> float:
        """Operations of many rows, given in the order of their work."""
        step = max(1, len(rows) // MOST_RECKONED)
        chosen = rows[step // 2 :: step]
        return sum(map(self, chosen)) * len(rows) / max(1, len(chosen))


@lru_cache
def device_rate(device, dtype) -> float:
    """`matrix_rate`, measured once in a process."""
    from ..models.device import matrix_rate

    return matrix_rate(device, dtype)


class Meter:
    """Counts what one process measures.

    Attributes:
        rows, tokens (`int`), flops (`float`): that were measured; failed ones are not among them.
        tried (`float`): operations of rows that were measured or failed.
        seconds (`float`): of measuring; loading models and laying rows out are not in it.
    """

    def __init__(self, runtime):
        self.runtime, self.rows, self.tokens, self.flops, self.tried, self.seconds = runtime, 0, 0, 0.0, 0.0, 0.0

    @cached_property
    def costs(self) -> RowCosts:
        """What rows cost; loads the models."""
        return RowCosts(self.runtime)

    def forget_costs(self) -> None:
        """To be called when rows are measured in another way than before."""
        vars(self).pop("costs", None)

    @cached_property
    def rate(self) -> float:
        """Operations a second of the device in products of large matrices."""
        import torch

        dtype = self.runtime.pair.long.dtype
        return device_rate(self.runtime.pair.device, dtype if dtype.is_floating_point else torch.float32)

    def start(self) -> None:
        """Load the models and try the device, which is no measuring."""
        _ = self.costs, self.rate

    def count(self, samples: Sequence, found: Sequence, seconds: float, begun: bool = False) -> None:
        """Samples that were measured together, what was found for each, and the time that it took; `begun`: it was their
        segments alone."""
        contexts = set()
        for sample, measured in zip(samples, found, strict=True):
            shape = replace(RowShape.of(sample), begun=begun)
            operations = self.costs(replace(shape, follows=sample.context_key in contexts))
            contexts.add(sample.context_key)
            self.tried += operations
            if isinstance(measured, Measurement):
                self.rows, self.tokens, self.flops = (
                    self.rows + 1,
                    self.tokens + sample.response_end,
                    self.flops + operations,
                )
        self.seconds += seconds

    def read(self) -> "Reading":
        """The counts, for other processes."""
        return Reading(
            self.rows, self.tokens, self.flops, self.seconds, self.seconds * self.rate if self.seconds else 0.0
        )


@dataclass
class Reading:
    """What a `Meter` counted; `possible`: operations that the device could have done meanwhile."""

    rows: int
    tokens: int
    flops: float
    seconds: float
    possible: float

    def after(self, first: "Reading | None") -> "Reading":
        """With what was done to the same rows before, in a first pass."""
        if first is None:
            return self
        names = ("tokens", "flops", "seconds", "possible")
        return replace(self, **{name: getattr(self, name) + getattr(first, name) for name in names})

    @classmethod
    def sum(cls, readings: Sequence["Reading"]) -> "Reading":
        """Of processes that measured beside each other."""
        columns = {name: [getattr(reading, name) for reading in readings] for name in cls.__dataclass_fields__}
        return cls(**{name: max(column) if name == "seconds" else sum(column) for name, column in columns.items()})


def errors_of(ds) -> Counter:
    """Why rows of a measured dataset have no numbers: reason -> rows."""
    errors: Counter = Counter()
    for table in ds.select_columns(["gateau_error"]).with_format("arrow").iter(ROWS_COUNTED):
        errors.update(table["gateau_error"].drop_null().to_pylist())
    return errors


@dataclass
class Summary:
    """What became of the rows, and how fast.

    Attributes:
        rows (`int`): of the data. measured (`int`): those measured now; None where other processes know alone.
        known (`dict`): where other rows' numbers come from ('the store', 'another row', ...) -> rows.
        not_measured (`dict`): reason -> rows.
        tokens (`int`): of the rows measured now. seconds (`float`): of everything. measuring_seconds (`float`): of the models.
        tokens_per_second, share_of_matrix_rate (`float`): while the models were measuring; None where they did not.
        output (`str`): where the rows went.
        cut (`dict`): rows that lost context to fit, and how much; see `rows.cuts.Cuts`.
        windows (`int`): rows that have nested windows; None where nobody asked for any.
    """

    rows: int
    measured: int | None = None
    known: dict[str, int] = field(default_factory=dict)
    not_measured: dict[str, int] = field(default_factory=dict)
    tokens: int | None = None
    seconds: float = 0.0
    measuring_seconds: float | None = None
    tokens_per_second: float | None = None
    share_of_matrix_rate: float | None = None
    output: str | None = None
    cut: dict[str, int | None] = field(default_factory=dict)
    windows: int | None = None

    @classmethod
    def of(
        cls,
        rows: int,
        errors: Counter,
        reading: Reading | None = None,
        known: Mapping[str, int] | None = None,
        rest: str = "another row",
        seconds: float = 0.0,
        cut: Cuts | None = None,
    ) -> "Summary":
        """From what was counted, where anything was; `rest` names where the numbers of all other rows come from."""
        cut = Cuts() if cut is None else cut
        summary = cls(rows, not_measured=commonest(errors), seconds=seconds, cut=cut.to_record())
        if reading is None:
            return summary
        summary.measured, summary.tokens, summary.measuring_seconds = reading.rows, reading.tokens, reading.seconds
        known = dict(known or {})
        known[rest] = rows - errors.total() - reading.rows - sum(known.values())
        summary.known = {name: count for name, count in known.items() if count}
        if reading.possible:
            summary.tokens_per_second = reading.tokens / reading.seconds
            summary.share_of_matrix_rate = reading.flops / reading.possible
        return summary

    def lines(self) -> list[str]:
        """One line, one for each reason why rows were not measured, and one for what was cut."""
        parts = [f"{self.measured:,} now"] if self.measured is not None else []
        parts += [f"{count:,} from {name}" for name, count in self.known.items()]
        speed = []
        if self.tokens_per_second is not None:
            speed = [
                f"{self.tokens:,} tokens",
                f"{self.tokens_per_second:,.0f} tokens/s",
                share(self.share_of_matrix_rate),
            ]
        what = "; ".join(", ".join(part) for part in (parts, speed) if part)
        num_sound = self.rows - sum(self.not_measured.values())
        if self.measured == 0 and self.known:
            line = f"{num_sound} of {self.rows} rows taken from {' and '.join(self.known)}, none measured"
        else:
            line = f"{num_sound} of {self.rows} rows measured in {clock(self.seconds)}" + f" ({what})" * bool(what)
        line += f": {self.output}" if self.output else ""
        lost = [f"  {count} not measured: {reason}" for reason, count in self.not_measured.items()]
        cut = Cuts.of_record(self.cut)
        windows = [] if self.windows is None else [f"  {self.windows} of {self.rows} rows have nested windows"]
        return [line, *lost, *([f"  {cut.line()}"] if cut else []), *windows]


@lru_cache
def keep_bars_over_forks() -> None:
    """No process is forked while another thread, such as tqdm's own that watches bars, holds tqdm's lock: the forked one would wait
    for that thread, which it does not have, for ever at its first bar."""
    from tqdm.std import TqdmDefaultWriteLock

    if (lock := TqdmDefaultWriteLock.th_lock) is not None:
        os.register_at_fork(before=lock.acquire, after_in_parent=lock.release, after_in_child=lock.release)


def share(part: float) -> str:
    """Utilisation by a short name."""
    return f"{part:.0%} of matmul speed"


class View:
    """The bar of one process over the tokens that it is to measure; it follows `datasets.disable_progress_bars()`.

    Args:
        meter: counts what is measured.
        num_tokens (`int`): of each row to measure, an array, in the order of their work.
        flops (`float`): operations of all of them.
        name (`str`): what is measured.
        also (`str`): what is said of rows that are not among them.
        shown (`bool`): False for the processes that leave the bar to another.
    """

    def __init__(self, meter: Meter, num_tokens: np.ndarray, flops: float, name: str, also: str, shown: bool = True):
        from datasets.utils import tqdm

        self.meter, self.num_rows, self.flops, self.also, self.done = meter, len(num_tokens), flops, also, 0
        interval = 0.5 if sys.stderr.isatty() else SECONDS_A_LINE
        options = {"unit_scale": True, "bar_format": BAR, "mininterval": interval, "miniters": 1}
        self.bar = tqdm(total=int(num_tokens.sum()), desc=name, disable=not shown or not len(num_tokens), **options)

    def __enter__(self) -> "View":
        return self

    def __exit__(self, *_) -> None:
        self.bar.set_postfix_str(self.text(), refresh=False)
        self.bar.close()

    def skip(self, num_rows: int, num_tokens: int) -> None:
        """Count rows that somebody else has measured meanwhile."""
        self.done += num_rows
        self.bar.update(num_tokens)

    def advance(self, num_tokens: int) -> None:
        """Count a row that was measured, or failed."""
        self.done += 1
        if not self.bar.disable:
            self.bar.set_postfix_str(self.text(), refresh=False)
        self.bar.update(num_tokens)

    def text(self) -> str:
        """Rows, speed, utilisation and time left."""
        meter, rows = self.meter, f"{self.done:,}/{self.num_rows:,} rows{self.also}"
        if not meter.seconds or not meter.tried:
            return rows
        left = max(0.0, self.flops - meter.tried) * meter.seconds / meter.tried if self.done < self.num_rows else 0.0
        speed = f"{meter.tokens / meter.seconds:,.0f} tokens/s, {share(meter.flops / meter.seconds / meter.rate)}"
        return f"{rows}, {speed}, {clock(left)} left"


class RowBar:
    """A bar over the rows of one call, with tokens a second; it follows `datasets.disable_progress_bars()`."""

    def __init__(self, num_rows: int, rank: int):
        from datasets.utils import tqdm

        self.tokens, self.started = 0, time.monotonic()
        options = {"desc": "Measuring", "unit": " rows", "leave": False, "position": 1 + rank, "delay": 1.0}
        self.bar = tqdm(total=num_rows, **options) if num_rows > 1 else None

    def __enter__(self) -> "RowBar":
        return self

    def __exit__(self, *_) -> None:
        if self.bar is not None:
            self.bar.close()

    def skip(self, num_rows: int, num_tokens: int) -> None:
        """Count rows that need no measuring."""
        if self.bar is not None:
            self.bar.update(num_rows)

    def advance(self, num_tokens: int) -> None:
        """Count a row that was measured."""
        self.tokens += num_tokens
        if self.bar is not None:
            rate = self.tokens / (time.monotonic() - self.started)
            self.bar.set_postfix_str(f"{rate:,.0f} tokens/s", refresh=False)
            self.bar.update(1)


def clock(seconds: float) -> str:
    """Hours, minutes and whole seconds."""
    minutes, seconds = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{seconds:02}"
