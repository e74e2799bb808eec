"""What a scorer has at hand in one process: the pair of models, the store, the key of its settings; and the rows' way through."""

import hashlib
import json
import logging
import time
from collections.abc import Callable, Container, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from typing import Any

from ..models.config import ModelPairConfig
from ..models.packing import Cut, Limits
from ..models.unnamed import unnamed_pair
from ..rows.batches import COLUMNS, RESPONSE_COLUMNS, readable, rows_of
from ..rows.conversations import SampleError, find_context_of
from ..rows.samples import Sample, build_sample, truncate_response
from ..settings import function_digest
from ..store.claims import Claims
from ..store.folder import open_store
from ..store.keys import config_key, layout_key
from ..store.owners import shown
from ..store.sqlite import MeasureError, Measurement, resolve_store_path
from .config import MeasureConfig
from .heads import HeadCalibration
from .known import about
from .lengths import LengthCheck, Lengths, losses
from .progress import Meter, Reading, RowBar, View
from .screening import Screen, Screening


logger = logging.getLogger(__name__)

# Part of every key: raise it when a change to the measuring code changes a number.
MEASURING_VERSION = 1
# Part of no key, since a row's is made of its tokens, but of what `datasets` keeps: raise it when rows become other tokens.
LAYOUT_VERSION = 2
APPROXIMATIONS = ("segment_stride", "response_head")  # settings that are part of a key where they are not the paper's
CPU_BATCH_TOKENS, GPU_BATCH_TOKENS = 1_024, 65_536
ROWS_LAID_OUT = 20  # at a time, where no model runs: each may be 65,536 tokens
CALIBRATION = "calibration"  # what the store knows a calibration by, beside the rows that it was made of
TOKENS_LAID_OUT = 1 << 20  # at a time, where one does, and as many ahead: 40 MB each


class Runtime:
    """The pair, the store, and what a key is made of. Models load when the first row needs them."""

    def __init__(self, pair_config: ModelPairConfig, config: MeasureConfig):
        from ..models.pair import ModelPair

        _use_one_thread_after_fork()
        self.config, self.rank = config, 0
        find = config.find_context
        self.find_context = find_context_of(find)
        if (line := unnamed_pair(pair_config)) is not None:
            logger.warning("%s.", line)
        self.pair = ModelPair(pair_config)
        self.max_length = min(config.max_length, self.pair.max_length)
        default = CPU_BATCH_TOKENS if self.pair.device.type == "cpu" else GPU_BATCH_TOKENS
        self.cut = Cut(config.segment_length, config.segment_stride)
        self.limits = Limits(config.batch_tokens or default)
        self.is_ready = False
        numbers = {
            "measuring_version": MEASURING_VERSION,
            **self.pair.describe(),
            "segment_length": config.segment_length,
            **{
                name: value
                for name in APPROXIMATIONS
                if (value := getattr(config, name)) != getattr(MeasureConfig, name)
            },
        }
        # Of rows whose segments are measured; rows from before there was any evidence of tokens have no such entry
        self.by_segments = numbers | ({"token_nll": True} if config.token_nll else {})
        self.by_all_heads = {"column": "head_attention", **numbers}
        self.without_segments = self.by_segments | {"segments": False}
        self.segments_key, self.heads_key = config_key(self.by_segments), config_key(self.by_all_heads)
        self.without_segments_key = config_key(self.without_segments)
        self.layout_key = layout_key(
            {
                "layout_version": LAYOUT_VERSION,
                "tokenizer": self.pair.fingerprints["tokenizer"],
                "find_context": self.find_context and function_digest(self.find_context),
                "max_length": self.max_length,
                "response_head": config.response_head,
            }
        )
        path = resolve_store_path(config.store)
        self.store = open_store(path) if path is not None else None
        self._has_told = False
        self.length_check = LengthCheck(self.pair, pair_config)
        self.failed: dict[str, str] = {}  # sample key -> reason, where another process has tried
        self.met_others = False
        self.first_pass: Reading | None = None  # what was measured before segments, where HMP chooses whose are
        self.meter: Meter | None = None  # counts what is measured, where somebody wants to know
        self.screen: Screen | None = None  # says whose segments are measured, where not all rows' are
        self.leaves_segments = False  # for another time
        kept = {"cam='heads'": config.cam == "heads", "segments_for": config.segments_for is not None}
        if self.store is None and any(kept.values()):
            what = next(name for name, is_given in kept.items() if is_given)
            raise ValueError(
                f"{what} keeps in the store what it chooses by, and it is off; name one as store or in HF_GATEAU_STORE."
            )
        self.settle(self.kept_calibration() if config.cam == "heads" else None)

    def get_ready(self) -> None:
        """Load the models, and let batches be as large as their device likes, where no setting says how large."""
        if not self.is_ready:
            from ..models.kernels import fit_to_device

            self.pair.load()
            fit_to_device(self.pair.long, self.limits if self.config.batch_tokens is None else None)
            self.is_ready = True

    def settle(self, calibration: HeadCalibration | None) -> None:
        """Measure by the heads of a calibration from now on; by segments without one, and where its heads cannot serve.

        Sets `heads` (None: segments are measured), `description` and `config_key`.
        """
        self.calibration, self.heads = calibration, None
        if calibration is not None and calibration.refusal is not None:
            logger.warning(
                "cam='heads' does not serve this model on these rows, so segments are measured: %s.",
                calibration.refusal,
            )
        elif calibration is not None:
            self.heads = calibration
        by_heads = {} if self.heads is None else {"cam": "heads", CALIBRATION: self.heads.to_json()}
        self._measure_as(self.by_segments | by_heads)

    def leave_segments(self) -> None:
        """Measure everything but segments from now on, until `measure_segments` is called."""
        self.leaves_segments, self.screen = True, None
        self._measure_as(self.without_segments)

    def measure_segments(self, screening: Screening) -> None:
        """Measure segments from now on, of the rows that were chosen alone."""
        self.leaves_segments, self.screen = False, Screen(screening, self.store)
        self._measure_as(self.by_segments)

    @property
    def takes_segments(self) -> bool:
        """Whether segments go through the long model, each alone, of some rows at least."""
        return self.heads is None and not self.leaves_segments

    def _measure_as(self, description: dict[str, Any]) -> None:
        self.description, self.config_key = description, config_key(description)
        self._is_described = False  # in the store, which is told with the first measurement
        self.claims = Claims(self.store, self.config_key) if self.store is not None else None
        if self.meter is not None:
            self.meter.forget_costs()

    @property
    def lacks_screening(self) -> bool:
        """Whether it is still to be decided whose segments are measured."""
        return self.config.segments_for is not None and self.screen is None

    @property
    def lacks_calibration(self) -> bool:
        """Whether rows cannot be measured before heads are chosen."""
        return self.config.cam == "heads" and self.calibration is None

    def kept_calibration(self) -> HeadCalibration | None:
        """What the store has for this pair, dtype and segment length, whoever chose it."""
        found = self.store.get_values(self.heads_key, [CALIBRATION])
        return HeadCalibration.from_json(json.loads(found[CALIBRATION])) if found else None

    def check_ready(self) -> None:
        """Refuse to measure before the data set has told what its rows are measured by."""
        if self.lacks_screening:
            raise ValueError(
                f"segments_for={self.config.segments_for} chooses among all rows by their HMP, and nobody has chosen yet: call "
                "screen(ds, scorer) with the data set first, or let `hf-gateau score --segments_for` do both."
            )
        if self.lacks_calibration and (found := self.kept_calibration()) is not None:  # made since this began
            self.settle(found)
        if self.lacks_calibration:
            raise ValueError(
                f"cam='heads' needs heads that were chosen for these models, and the store {self.store.path} has none: call "
                "calibrate_heads(ds, scorer) with the data set before ds.map(scorer), or let `hf-gateau score --cam heads` do both."
            )

    def measure_rows(self, rows: list[Mapping]) -> list[dict[str, Any]]:
        """One dict of `COLUMNS` a row, in order; what the store has is not measured again."""
        self.check_ready()
        if self.config.on_error == "raise" and len(rows) > 1:
            for row in rows:  # tells of a bad row before any is measured
                self.lay_out(row)
        found: dict[str, Measurement | str] = dict(self.failed)
        with RowBar(len(rows), self.rank) as progress:
            columns = []
            for part in ahead(map(self._looked_at, self._laid_out(rows))):
                part = self._measured(part, found, progress)
                low = self.low(sample.key for _, sample in part if isinstance(sample, Sample))
                columns += [self.columns(about(row, sample, self.cut), found, low) for row, sample in part]
            return columns

    def measure_into_store(self, parts: Iterable[Iterable[Mapping]], view: View) -> tuple[dict[str, str], set[str]]:
        """Measure rows that can be laid out, so many in memory as a part has; returns why some failed, by key, and the keys of those
        that other processes are measuring."""
        failed: dict[str, str] = {}
        busy: set[str] = set()
        for part in ahead([(row, self.lay_out(row)) for row in rows] for rows in parts):
            found: dict[str, Measurement | str] = {}
            busy |= {sample.key for sample in self._measure_part(part, found, view)}
            failed |= {key: measured for key, measured in found.items() if isinstance(measured, str)}
        return failed, busy

    def _laid_out(self, rows: Iterable[Mapping]) -> Iterator[list[tuple[Mapping, Sample | str]]]:
        """Rows with their token spans, as many at a time as may be in memory."""
        part, num_tokens = [], 0
        for row in rows:
            part.append((row, self.lay_out(row)))
            num_tokens += part[-1][1].response_end if isinstance(part[-1][1], Sample) else 0
            if num_tokens >= TOKENS_LAID_OUT:
                yield part
                part, num_tokens = [], 0
        yield part

    def _looked_at(self, part: list[tuple[Mapping, Sample | str]]) -> list[tuple[Mapping, Sample | str]]:
        """The part; says once where the settings leave nothing of all its rows, for `map` never sees all rows of the data."""
        samples = [(sample, 1) for _, sample in part if isinstance(sample, Sample)]
        if len(samples) > 1 and not self._has_told:
            told = list(losses(Lengths.of_samples(samples), self.pair.config, self.config))
            self._has_told = any(is_all for _, is_all in told)
            for text in (text for text, is_all in told if is_all):
                logger.warning("In one batch, %s", text)
        return part

    def _measured(self, part: list[tuple[Mapping, Sample | str]], found: dict, progress: RowBar | View) -> list:
        """Measure what neither `found` nor the store has; returns the part."""
        left = self._measure_part(part, found, progress)
        rows = {sample.key: (row, sample) for row, sample in part if isinstance(sample, Sample)} if left else {}
        while left:
            self.claims.wait(sample.key for sample in left)
            left = self._measure_part([rows[sample.key] for sample in left], found, progress)
        return part

    def _measure_part(
        self, part: list[tuple[Mapping, Sample | str]], found: dict, progress: RowBar | View
    ) -> list[Sample]:
        """Measure what neither `found` nor the store has, nor others are at; returns what they are."""
        rows = {sample.key: (row, sample) for row, sample in part if isinstance(sample, Sample)}
        if self.store is not None:
            found |= self.known(rows.keys() - found.keys())
        pending = [sample for key, (_, sample) in rows.items() if key not in found]
        num_tokens = sum(sample.response_end for _, sample in rows.values()) - sum(x.response_end for x in pending)
        progress.skip(len(part) - len(pending), num_tokens)
        left = self.screen.without_segments(x.key for x in pending) if self.screen is not None and pending else ()
        for sample, measured in self.measure(pending):
            if isinstance(measured, MeasureError):
                measured = self._failed(rows[sample.key][0], measured)
            elif sample.key in left:  # what it was screened by is gone from the store
                measured = measured.without_segments()
            found[sample.key] = measured
            progress.advance(sample.response_end)
        return [sample for sample in pending if sample.key not in found]

    def measure(self, samples: list[Sample]) -> Iterator[tuple[Sample, Measurement | MeasureError]]:
        """Measure samples into the store, in an order that saves work; those that another process is measuring are left out."""
        from .passes import bunches

        if samples:
            self.get_ready()
        if self.meter is not None and samples:
            self.meter.start()
        for places in bunches(samples, self.limits):
            bunch = [samples[i] for i in places]
            if self.claims is None:
                yield from self._measure_bunch(bunch)
                continue
            busy = self.claims.take(sample.key for sample in bunch)
            try:
                self._tell_of_others()
                kept = self.known(sample.key for sample in bunch)  # measured a moment ago
                yield from ((sample, kept[sample.key]) for sample in bunch if sample.key in kept)
                mine = [sample for sample in bunch if sample.key not in busy and sample.key not in kept]
                measured = self._measure_bunch(mine) if mine else []
            finally:
                self.claims.release()
            yield from measured

    def _measure_bunch(self, bunch: list[Sample]) -> list[tuple[Sample, Measurement | MeasureError]]:
        """Measure samples that share passes into the store; of those that were left without segments, the segments alone."""
        begun = self.begun(sample.key for sample in bunch)
        fresh = [sample for sample in bunch if sample.key not in begun]
        left = [sample for sample in bunch if sample.key in begun]
        measured = self._measure_alike(fresh) if fresh else []
        return measured + (self._measure_alike(left, [begun[sample.key] for sample in left]) if left else [])

    def _measure_alike(
        self, bunch: list[Sample], before: list[Measurement] | None = None
    ) -> list[tuple[Sample, Measurement | MeasureError]]:
        """Measure samples, or of all of them the segments that they were left without before."""
        from .passes import measure_samples

        started = time.monotonic()
        by_heads = () if self.heads is None else (nullcontext, self.heads)
        parts = {} if before is None else {"before": before}
        parts |= {"segments": False} if self.leaves_segments else {}
        found = measure_samples(self.pair, bunch, self.cut, self.limits, *by_heads, **parts)
        if not self.config.token_nll:
            found = [x.without_tokens() if isinstance(x, Measurement) else x for x in found]
        if self.meter is not None:
            self.meter.count(bunch, found, time.monotonic() - started, begun=before is not None)
        measured = list(zip(bunch, found, strict=True))
        kept = {sample.key: x for sample, x in measured if isinstance(x, Measurement)}
        if self.store is not None and kept:
            self.keep(kept)
        for sample, measurement in measured:
            if isinstance(measurement, Measurement) and before is None:
                self.length_check.see(sample, measurement)
        return measured

    def known(self, keys: Iterable[str]) -> dict[str, Measurement]:
        """What the store has of samples, by key, as far as it is all that is to be measured of them."""
        keys = list(keys)
        if self.screen is None and not self.leaves_segments:
            return self.store.get(self.config_key, keys)
        left = set(keys) if self.leaves_segments else self.screen.without_segments(keys)
        found = self.store.get(self.segments_key, [key for key in keys if key not in left])
        found |= self.store.get(self.without_segments_key, left)
        whole = self.store.get(self.segments_key, left - found.keys())  # of a run that left none
        return found | {key: measured.without_segments() for key, measured in whole.items()}

    def begun(self, keys: Iterable[str]) -> dict[str, Measurement]:
        """What the store has of samples that lack nothing but the segments which are to be measured, by key."""
        if self.store is None or not self.takes_segments:
            return {}
        return self.store.get(self.without_segments_key, keys)

    def keep(self, found: Mapping[str, Measurement]) -> None:
        """Put measurements into the store, by sample key, with what their configuration stands for."""
        if not self._is_described:
            self.store.describe(self.config_key, self.description)
            self._is_described = True
        self.store.put_all(self.config_key, found)

    def _tell_of_others(self) -> None:
        """Once, that others measure with the same settings into the same store."""
        if self.claims.others and not self.met_others:
            self.met_others = True
            who = " and ".join(sorted(map(shown, self.claims.others)))
            logger.warning(
                "Rows are shared with %s, which is measuring with the same models and settings into %s: none is measured twice.",
                who, self.store.path,
            )  # fmt: skip

    def survey(self, ds) -> Iterator[tuple[Sample | str, bool]]:
        """See `GateauScorer.survey`."""
        for batch in readable(ds).iter(ROWS_LAID_OUT):
            laid_out = [self.lay_out(row) for row in rows_of(batch)]
            keys = [sample.key for sample in laid_out if isinstance(sample, Sample)]
            found = self.known(keys) if self.store is not None else {}
            for sample in laid_out:
                yield sample, isinstance(sample, Sample) and sample.key in found and not self.lacks_calibration

    def lay_out(self, row: Mapping) -> Sample | str:
        """The row as token spans, or why it cannot be."""
        try:
            sample = build_sample(row, self.pair.tokenizer, max_length=self.max_length, find_context=self.find_context)
            self.pair.check_tokens(sample.input_ids)
            head = self.config.response_head
            return sample if head is None else truncate_response(sample, head)
        except SampleError as error:
            return self._failed(row, error)

    def _failed(self, row: Mapping, error: Exception) -> str:
        if self.config.on_error == "raise":
            raise type(error)(f"Row {row.get('id')!r}: {error}; fix or drop it, or use on_error='skip'.") from error
        return str(error)

    def low(self, keys: Iterable[str]) -> set[str] | None:
        """Those of some samples that HMP screened out; None where all segments are measured."""
        return None if self.screen is None else self.screen.low(keys)

    def columns(
        self, about: Mapping, found: Mapping[str, Measurement | str], low: Container[str] | None = None
    ) -> dict[str, Any]:
        """The `COLUMNS` of a row from `about` it and what was measured, or why nothing was, by sample key; `low`: as the method
        of that name gives it."""
        is_off = () if self.config.token_nll else RESPONSE_COLUMNS
        columns = dict.fromkeys(COLUMNS) | {x: about[x] for x in about if x in COLUMNS and x not in is_off}
        if about["key"] is None:
            return columns
        columns["gateau_key"] = f"{self.config_key}:{about['key']}"
        columns["gateau_screened"] = None if low is None else about["key"] in low
        measured = found[about["key"]]
        if isinstance(measured, str):
            return columns | {"gateau_error": measured}
        return columns | {f"gateau_{name}": value for name, value in vars(measured).items()}


def rests_on(fingerprints: Mapping[str, str | None], find_context: Callable | str | None) -> str:
    """What tells `datasets` that a scorer is what it was, beside its settings: 16 hexadecimal digits of the fingerprints of its
    models and tokenizer, and of the code of `find_context` (of none for a name that nothing has, which is told later)."""
    try:
        function = find_context_of(find_context)
    except ValueError:
        function = None
    found = dict(fingerprints) | {"find_context": function and function_digest(function)}
    return hashlib.sha256(json.dumps(found, sort_keys=True).encode()).hexdigest()[:16]


def ahead(parts: Iterator) -> Iterator:
    """The same parts, each made by another thread while the one before is measured: rows become tokens beside the device."""
    with ThreadPoolExecutor(1, thread_name_prefix="rows-to-tokens") as thread:
        end = object()
        waiting = thread.submit(next, parts, end)
        while (part := waiting.result()) is not end:
            waiting = thread.submit(next, parts, end)
            yield part


def _use_one_thread_after_fork() -> None:
    """OpenMP's threads do not survive a fork: the first parallel matrix product of a forked worker would hang."""
    import multiprocessing

    import multiprocess  # what `datasets` forks with
    import torch

    for library in (multiprocessing, multiprocess):
        if library.parent_process() is not None and library.get_start_method(allow_none=True) in (None, "fork"):
            torch.set_num_threads(1)
