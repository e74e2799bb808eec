"""What measuring a dataset will take, before anybody pays for it: rows and tokens, time, memory, money, and what is cheaper.

Rows are laid out as tokens by the scorer itself, all of them or a sample; the pilot measures a few; the rest is arithmetic.
"""

import time
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np

from ..measuring.config import MeasureConfig
from ..measuring.costs import (
    FEATURES,
    PARTS,
    ModelShape,
    RowShape,
    Way,
    flops,
    model_shape,
    num_segments,
    pass_tokens,
    row_work,
)
from ..measuring.heads import HeadCalibration, likely_heads
from ..measuring.lengths import Lengths, check_lengths
from ..measuring.runtime import Runtime
from ..measuring.screening import foresee
from ..models.config import DEFAULT_SHORT_WINDOW, ModelPairConfig
from ..models.device import matrix_rate
from ..models.packing import MOST_TOGETHER
from ..rows.batches import readable
from ..rows.conversations import SampleError
from ..rows.cutting import tokens_to_train
from ..rows.samples import Sample
from .pilot import MEMORY_SHARE, TIMES, Pilot, PilotRow, load_and_warm_up


SAMPLE_ROWS, PILOT_SECONDS = 300, 60.0
WORTH_SAYING = 0.05  # share of the time that a change must save
SEGMENTS_FOR, ALPHA = 0.4, 0.8  # that are proposed, and by which it is told what that is good for
SPARSER = 4  # times the segment_stride that is proposed
# Spearman's correlation of gateau_score with that of every segment and token: 24 real rows, 1,024 tokens of context, in
# benchmarks/results/approximations.md (segment_stride=4, segment_length twice 128, 50 tokens of the response, short_pass=reuse).
AGREEMENT = {"segment_stride": 0.95, "segment_length": 0.99, "response_head": 0.88, "short_pass": 0.80}


@dataclass
class Counted:
    """Rows as the scorer will meet them. Each laid-out row stands for `weight` rows of the data; the weights sum to all.

    Attributes:
        num_rows, num_laid_out (`int`): rows of the data, and rows that were laid out as tokens.
        spans (`list[Lengths]`): of each row that can be measured, in the store or not.
        longest_uncut (`int`): tokens of the longest row before anything is dropped to fit.
        pending: (sample, weight) of the rows to measure.
        followers: places in `pending` of rows whose context an earlier one has, with which they are measured.
        in_store, repeated (`int`): rows that need no measuring: the store has them, or they say what another row says.
        not_measurable, not_trainable: how many rows there are for each reason; the latter could be measured, and would be
            for nothing.
        seconds (`dict`): what laying out all rows takes, wall and CPU.
    """

    num_rows: int
    num_laid_out: int = 0
    spans: list[Lengths] = field(default_factory=list)
    longest_uncut: int = 0
    pending: list[tuple[Sample, int]] = field(default_factory=list)
    followers: set[int] = field(default_factory=set)
    in_store: int = 0
    repeated: int = 0
    not_measurable: Counter = field(default_factory=Counter)
    not_trainable: Counter = field(default_factory=Counter)
    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(TIMES, 0.0))

    @cached_property
    def lengths(self) -> Lengths:
        """Of all rows that can be measured."""
        return Lengths.joined([Lengths.of_samples([]), *self.spans])


def num_characters(value: Any) -> int:
    """Characters of all strings in a value, however deep."""
    if isinstance(value, dict):
        return sum(map(num_characters, value.values()))
    if isinstance(value, list):
        return sum(map(num_characters, value))
    return len(value) if isinstance(value, str) else 0


def spread(lengths: list[int], num: int) -> dict[int, int]:
    """Choose rows evenly over their lengths: the longest row for itself, and the middle of each of `num` - 1 strata of the
    others. Returns {row: rows that it stands for}, in the order of the data; every row for itself where `num` is enough."""
    if num >= len(lengths):
        return dict.fromkeys(range(len(lengths)), 1)
    order = sorted(range(len(lengths)), key=lambda i: (lengths[i], i))
    chosen, edges = {order[-1]: 1}, np.linspace(0, len(order) - 1, num).round().astype(int).tolist()
    for start, end in zip(edges, edges[1:], strict=False):
        chosen[order[(start + end) // 2]] = end - start
    return dict(sorted(chosen.items()))


def count_rows(runtime, ds, sample_rows: int, training: dict[str, Any]) -> Counted:
    """Lay rows out as tokens and look them up in the store; of more than `sample_rows` rows, so many (see `spread`).

    `training`: how training cuts rows, arguments of `tokens_to_train`.
    """
    from datasets.utils import tqdm

    weights = dict.fromkeys(range(len(ds)), 1)
    if sample_rows < len(ds):
        rows = tqdm(readable(ds), desc="Reading rows", leave=False)
        weights = spread([num_characters(row) for row in rows], sample_rows)
    counted, seen, measurable = Counted(len(ds), len(weights)), Counter(), []
    started = time.perf_counter(), time.process_time()
    rows = tqdm(runtime.survey(ds.select(list(weights))), total=len(weights), desc="Laying out", leave=False)
    for (sample, is_kept), weight in zip(rows, weights.values(), strict=True):
        _count(runtime, counted, seen, sample, is_kept, weight)
        measurable.append(0 if isinstance(sample, str) else weight)
    elapsed = time.perf_counter() - started[0], time.process_time() - started[1]
    counted.seconds = {name: x * len(ds) / max(1, len(weights)) for name, x in zip(TIMES, elapsed, strict=True)}
    counted.not_trainable = _not_trainable(runtime, readable(ds.select(list(weights))), measurable, training)
    return counted


def _not_trainable(runtime, rows, weights: Iterable[int], training: dict[str, Any]) -> Counter:
    """Why rows could not be trained on afterwards, with the same tokenizer; a weight of 0: not measured, so of no matter."""
    found = Counter()
    for row, weight in zip(rows, weights, strict=True):
        try:
            if weight:
                tokens_to_train(row, runtime.pair.tokenizer, find_context=runtime.find_context, **training)
        except SampleError as error:
            found[str(error)] += weight
    return found


def _count(runtime, counted: Counted, seen: Counter, sample: Sample | str, is_kept: bool, weight: int) -> None:
    if isinstance(sample, str):
        counted.not_measurable[sample] += weight
        return
    counted.spans.append(Lengths.of_samples([(sample, weight)]))
    counted.longest_uncut = max(counted.longest_uncut, sample.response_end + sample.num_truncated)
    if runtime.store is not None and sample.key in seen:
        counted.repeated += weight
    elif is_kept:
        counted.in_store += weight
    else:
        if seen[sample.context_key] % MOST_TOGETHER and sample.instruction:
            counted.followers.add(len(counted.pending))
        counted.pending.append((sample, weight))
        seen.update((sample.key, sample.context_key))


# Prediction


@dataclass(frozen=True)
class Job:
    """Rows to measure (shape, number of such rows), by which models and in which way; how many of them heads are chosen by
    first, whose segments are measured, and whose long pass runs once more for all heads; and of which share of them segments are
    measured, where they are at all."""

    rows: tuple[tuple[RowShape, int], ...]
    long: ModelShape
    short: ModelShape
    way: Way
    num_choosing: int = 0
    share: float = 1.0

    def work(self) -> dict[str, np.ndarray]:
        """The work of each part over all rows."""
        total = {part: np.zeros(len(FEATURES)) for part in PARTS}
        num_rows = sum(weight for _, weight in self.rows)
        choosing = min(1.0, self.num_choosing / num_rows)
        for row, weight in self.rows:
            self._add(total, row, self.way, (1 - choosing) * weight)
            if choosing:
                self._add(total, row, replace(self.way, heads=None), choosing * weight, long=2)
        return total

    def _add(self, total: dict[str, np.ndarray], row: RowShape, way: Way, weight: float, long: int = 1) -> None:
        """Add so many rows of a shape, whose long pass runs so often."""
        for part, work in row_work(self.long, self.short, row, way).items():
            work[0] /= self.together(row)  # passes
            total[part] += weight * work * {"long": long, "segments": self.share}.get(part, 1)

    def together(self, row: RowShape) -> int:
        """Rows of this length that share passes in a run; the pilot measures each by itself."""
        return min(max(1, self.way.batch_tokens // row.length), sum(weight for _, weight in self.rows))

    def longest(self) -> RowShape:
        return max((row for row, _ in self.rows), key=lambda row: row.length)

    def median_length(self) -> int:
        """A window has to be shorter than most rows, or it shows what the long model sees."""
        return int(np.median(np.repeat([row.length for row, _ in self.rows], [weight for _, weight in self.rows])))

    def cut(self, max_length: int) -> "Job":
        """The same with another `max_length`."""
        return replace(self, rows=tuple((row.cut(max_length), weight) for row, weight in self.rows))

    def head(self, num_tokens: int) -> "Job":
        """The same with so many response tokens at most."""
        rows = ((replace(row, response=min(row.response, num_tokens)), weight) for row, weight in self.rows)
        return replace(self, rows=tuple(rows))

    def peak(self, memory) -> float:
        """Most bytes above the loaded models that any row takes."""
        passes = ((pass_tokens(row, self.way), self.together(row)) for row, _ in self.rows)
        return max(memory({part: n * together for part, n in tokens.items()}) for tokens, together in passes)


def make_plan(
    ds,
    pair: ModelPairConfig,
    measure: MeasureConfig,
    *,
    sample_rows: int = SAMPLE_ROWS,
    pilot_seconds: float = PILOT_SECONDS,
    num_devices: int = 1,
    price_per_hour: float | None = None,
    train_max_length: int | None = None,
    truncation_mode: str = "keep_start",
    alpha: float = 0.8,
) -> dict[str, Any]:
    """What `hf-gateau score` will take with the same settings, as plain JSON. Measures a few rows; keeps nothing of them.

    Args:
        ds (`datasets.Dataset`): the rows.
        pair, measure: the settings of the scorer.
        sample_rows (`int`): rows to lay out as tokens at most; the others are estimated from these.
        pilot_seconds (`float`): about what measuring a few rows may take.
        num_devices (`int`): devices like this one that share the rows.
        price_per_hour (`float`, *optional*): of one device.
        train_max_length (`int`, *optional*), truncation_mode (`str`): how training with this tokenizer will cut rows; None: at
            the length of scoring.
        alpha (`float`): that rows will be ranked with; with `segments_for` it says which selections are certain.

    Returns:
        `dict` with `rows` (`cut`: see `rows.cuts.Cuts`), `tokens`, `store`, `training`, `short_window`, and unless there is nothing to measure `pilot`, `batches`, `flops`, `seconds` (wall)
        and `cpu_seconds` of each part, `rates`, `memory` (bytes), `cost` and `cheaper`; with `segments_for`, `screening`.

    Raises:
        ValueError: no row can be measured, or the settings leave nothing to measure; see `check_lengths`.
    """
    started = time.perf_counter(), time.process_time()
    runtime = Runtime(pair, measure)
    opening = time.perf_counter() - started[0], time.process_time() - started[1]
    training = {"max_length": train_max_length or measure.max_length, "truncation_mode": truncation_mode}
    counted = count_rows(runtime, ds, sample_rows, training)
    chosen = counted.lengths.window() if pair.window_is_open else None
    if chosen is not None:  # part of what the store knows rows by
        pair = ModelPairConfig(**pair.given(), short_window=chosen)
        runtime = Runtime(pair, measure)
        counted = count_rows(runtime, ds, sample_rows, training)
    if counted.not_measurable.total() == counted.num_rows:
        reasons = "; ".join(f"{reason} ({count} rows)" for reason, count in counted.not_measurable.most_common(3))
        raise ValueError(f"None of the {counted.num_rows} rows can be measured: {reasons}.")
    check_lengths(counted.lengths, pair, measure)
    way = Way.of(runtime)
    plan = _describe_rows(runtime, counted, way) | {"training": training, "short_window": pair.short_window}
    plan["short_window_chosen"] = chosen is not None
    known = runtime.begun([sample.key for sample, _ in counted.pending])
    begun = {i for i, (sample, _) in enumerate(counted.pending) if sample.key in known}
    plan["rows"]["begun"] = sum(counted.pending[i][1] for i in begun)
    share = 1.0
    if measure.segments_for is not None:
        plan["screening"], share = _foreseen(counted, measure.segments_for, alpha)
        plan["segments"] = round(share * plan["segments"])
    if not counted.pending or (share == 0 and len(begun) == len(counted.pending)):
        return plan
    loading = load_and_warm_up(runtime, counted.pending[0][0])
    loading = {name: a + b for name, a, b in zip(TIMES, opening, loading, strict=True)}
    with runtime.pair.short() as short:
        shapes = model_shape(runtime.pair.long), model_shape(short)
    num_choosing = measure.cam_rows if runtime.lacks_calibration else 0
    if runtime.lacks_calibration:
        runtime.heads = _likely_heads(shapes[0])
        way = Way.of(runtime)
        plan["segments"] = 0
    rows = [(RowShape.of(sample), weight) for sample, weight in counted.pending]
    alone = Job(tuple(rows), *shapes, way, num_choosing, share)
    for i, (row, weight) in enumerate(rows):
        rows[i] = replace(row, follows=i in counted.followers, begun=i in begun), weight
    job = replace(alone, rows=tuple(rows))
    pilot = _run_pilot(runtime, counted, alone, pilot_seconds)
    plan |= _predict(pilot, counted, job, loading, num_devices, price_per_hour)
    if "screening" in plan:
        whole = _seconds(pilot, counted, replace(job, share=1.0).work(), loading, num_devices, "wall")["total"]
        plan["screening"] |= {"seconds_of_all": whole, "saves": 1 - plan["seconds"]["total"] / whole}
    return plan


def _foreseen(counted: Counted, share: float, alpha: float) -> tuple[dict[str, Any], float]:
    """What `segments_for` will do, and the share of the rows to measure that segments are measured of."""
    num_pending = sum(weight for _, weight in counted.pending)
    num_rows = counted.num_rows - counted.not_measurable.total()
    found = foresee(share, alpha, num_rows, num_pending, counted.in_store)
    return found, found["num_left"] / max(1, num_pending)


def _likely_heads(model: ModelShape) -> HeadCalibration:
    """Heads of layers without a window, where there are any."""
    sizes = [layer.heads if layer.window is None else 0 for layer in model.order]
    return likely_heads(sizes if any(sizes) else [layer.heads for layer in model.order])


def _describe_rows(runtime, counted: Counted, way: Way) -> dict[str, Any]:
    shapes = [(RowShape.of(sample), weight) for sample, weight in counted.pending]
    rows = {"total": counted.num_rows, "laid_out": counted.num_laid_out, "in_store": counted.in_store}
    rows |= {"exact": counted.num_laid_out == counted.num_rows, "repeated": counted.repeated}
    rows |= {"cut": counted.lengths.cuts.to_record()}
    rows |= {"not_trainable": dict(counted.not_trainable)}
    rows |= {"not_measurable": dict(counted.not_measurable), "to_measure": sum(weight for _, weight in shapes)}
    tokens = {name: sum(w * getattr(row, name) for row, w in shapes) for name in ("length", "context", "response")}
    tokens["longest"] = max((row.length for row, _ in shapes), default=0)
    tokens["longest_uncut"] = counted.longest_uncut
    segments = sum(weight * num_segments(row, way) for row, weight in shapes)
    store = None if runtime.store is None else str(runtime.store.path)
    return {"rows": rows, "tokens": tokens, "segments": segments, "store": store}


def _run_pilot(runtime, counted: Counted, job: Job, seconds: float) -> Pilot:
    from datasets.utils import tqdm

    def row_of(sample: Sample) -> PilotRow:
        shape = RowShape.of(sample)
        return PilotRow(sample, row_work(job.long, job.short, shape, job.way), pass_tokens(shape, job.way))

    with tqdm(desc="Pilot", unit=" rows", leave=False) as bar:
        samples = [sample for sample, _ in counted.pending]
        return Pilot(runtime, samples, row_of, seconds, lambda row: bar.update(1))


def _predict(pilot: Pilot, counted: Counted, job: Job, loading: dict, num_devices: int, price: float | None) -> dict:
    from torch import float32

    from ..models.kernels import attention_kernel

    work = job.work()
    seconds = {name: _seconds(pilot, counted, work, loading, num_devices, name) for name in TIMES}
    model = pilot.runtime.pair.long
    dtype, kernel = model.dtype if model.dtype.is_floating_point else float32, attention_kernel(model)
    rate, total = matrix_rate(pilot.device, dtype), sum(map(flops, work.values()))
    measuring = sum(seconds["wall"][part] for part in PARTS)
    num_rows = sum(weight for _, weight in job.rows)
    num_tokens = sum(weight * row.length for row, weight in job.rows)
    hours = num_devices * seconds["wall"]["total"] / 3600
    return {
        "pilot": {
            "tokens": [row.sample.response_end for row in pilot.rows],
            "rounds": pilot.rounds,
            "seconds": pilot.seconds,
            "failures": pilot.failures,
            "device": str(pilot.device),
            "dtype": pilot.runtime.pair.dtype,
            "matrix_flops_per_second": rate,
            "attention": kernel and asdict(kernel),
        },
        "batches": {
            "batch_tokens": pilot.runtime.limits.batch_tokens,
            "seconds": {str(n): x for n, x in pilot.batches.items()},
        },
        "flops": {part: flops(x) for part, x in work.items()} | {"total": total},
        "seconds": seconds["wall"],
        "cpu_seconds": seconds["cpu"],
        "rates": {
            "rows_per_second": num_rows / seconds["wall"]["total"],
            "tokens_per_second": num_tokens / seconds["wall"]["total"],
            "share_of_matrix_rate": total / num_devices / measuring / rate,
        },
        "memory": _predict_memory(pilot, job),
        "cost": {
            "num_devices": num_devices,
            "device_hours": hours,
            "price_per_hour": price,
            "total": None if price is None else price * hours,
        },
        "cheaper": list(_cheaper(pilot, counted, job, loading, num_devices)),
    }


def _seconds(pilot: Pilot, counted: Counted, work: dict, loading: dict, num_devices: int, kind: str) -> dict:
    """Seconds of the run by part: every device loads the models, and has its share of the rows."""
    parts = {"loading": loading[kind], "laying_out": counted.seconds[kind] / num_devices}
    parts |= {part: pilot.time[kind](part, x) / num_devices for part, x in work.items()}
    return parts | {"total": sum(parts.values())}


def _predict_memory(pilot: Pilot, job: Job) -> dict[str, Any]:
    """Bytes; the longest row is the one that counts. `longest_fitting`: tokens of the longest that fits, None for none."""
    above, room = job.peak(pilot.memory), pilot.capacity - pilot.loaded
    fits, fitting = above <= room, job.longest().length
    if not fits:
        fitting = largest_fitting(job, pilot.memory, MEMORY_SHARE * room)
    measured = max(timing.peak for rounds in pilot.timings for timing in rounds[0])
    return {
        "loaded": pilot.loaded,
        "peak": pilot.loaded + above,
        "pilot_peak": measured,
        "capacity": pilot.capacity,
        "fits": bool(fits),
        "longest_fitting": fitting,
    }


def largest_fitting(job: Job, memory, room: float) -> int | None:
    """The largest `max_length` by which every row fits into `room` bytes above the models, None where none does."""
    low, high = 0, job.longest().length
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if job.cut(middle).peak(memory) <= room else (low, middle)
    shortest = min(row.length - row.context for row, _ in job.rows)
    return low if low > shortest else None


def _cheaper(pilot: Pilot, counted: Counted, job: Job, loading: dict, num_devices: int) -> Iterator[dict[str, Any]]:
    """Other settings, with their seconds by the same model, where they save something; all change what is measured."""
    half, window = job.longest().length // 2, min(DEFAULT_SHORT_WINDOW, job.median_length() // 2)
    way = replace(job.way, short_window=window, self_paired=True, reuses=False)
    cut = job.way.cut
    longer = replace(job.way, cut=replace(cut, length=2 * cut.length))
    fewer = replace(job.way, cut=replace(cut, stride=SPARSER * cut.stride))
    head = max(1, int(np.median([row.response for row, _ in job.rows])) // 2)
    changes = {
        "short_pass=reuse": replace(job, way=replace(job.way, reuses=job.way.self_paired)),
        f"short_window={window} for the short sibling": replace(job, short=job.long, way=way),
        f"max_length={half}": job.cut(half),
        f"segment_length={longer.cut.length}": replace(job, way=longer),
        f"segment_stride={fewer.cut.stride}": replace(job, way=fewer),
        f"response_head={head}": job.head(head),
    }
    if job.way.heads is None:
        by_heads = replace(job.way, heads=_likely_heads(job.long).heads)
        changes["cam=heads"] = replace(job, way=by_heads, num_choosing=MeasureConfig.cam_rows)
    if job.way.takes_segments and job.share == 1.0:
        found, share = _foreseen(counted, SEGMENTS_FOR, ALPHA)
        changes[f"segments_for={SEGMENTS_FOR}, to select up to {found['safe_fraction']:.0%} of the rows"] = replace(
            job, share=share
        )
    now = _seconds(pilot, counted, job.work(), loading, num_devices, "wall")["total"]
    for change, other in changes.items():
        seconds = _seconds(pilot, counted, other.work(), loading, num_devices, "wall")["total"]
        if seconds < (1 - WORTH_SAYING) * now:
            agreement = AGREEMENT.get(change.partition("=")[0])
            yield {"change": change, "seconds": seconds, "saves": 1 - seconds / now, "agreement": agreement}
