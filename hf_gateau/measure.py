"""`GateauScorer`: a batch of columns in, the raw columns out; what `Dataset.map` calls.

Everything that needs a model happens here, once a row. Ranking reads the columns and never comes back.
"""

import hashlib
import importlib
import json
import logging
import os
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import fields
from math import exp, isfinite, log
from typing import Any

from .batches import COLUMNS, READ_COLUMNS, BatchShape
from .config import MeasureConfig, ModelPairConfig, did_you_mean
from .folder_store import open_store
from .samples import Sample, SampleError, build_sample, content_hash
from .store import Measurement, resolve_store_path


logger = logging.getLogger(__name__)

# Part of every key: raise it when a change to the measuring code changes a number.
MEASURING_VERSION = 1
ENVIRONMENT_PREFIX = "HF_GATEAU_"
CPU_BATCH_TOKENS, GPU_BATCH_TOKENS = 1_024, 65_536
ROWS_LAID_OUT = 20  # at a time, where no model runs: each may be 65,536 tokens
# The short sibling is broken by length, not short of information, when seeing more makes it this much worse (nats).
BREAKS_ON_LENGTH_NATS, BREAKS_ON_LENGTH_ROWS = log(2), 8


class MeasureError(RuntimeError):
    """A row whose measurement failed; the message is the reason kept in `gateau_error`."""


def measure_sample(
    pair,
    sample: Sample,
    segment_length: int = 128,
    batch_tokens: int = CPU_BATCH_TOKENS,
    watch: Callable[[str], AbstractContextManager] = nullcontext,
) -> Measurement:
    """All raw numbers of one sample, from as few passes as there can be.

    One pass of the long model gives the response's perplexity and its attention to the segments; one pass of the short
    sibling, one of the long model without the context, and the batched segment passes give the rest.

    Args:
        pair (`ModelPair`): the siblings.
        sample (`Sample`): the row.
        segment_length (`int`): L of Eqs. 3 and 4, in tokens.
        batch_tokens (`int`): most tokens in one batch of segments.
        watch: makes the context that each part runs in, from its name: 'long', 'no_context', 'short' or 'segments'.

    Raises:
        MeasureError: the sample does not fit into memory, or the models give no finite numbers for it.
    """
    import torch

    from .attention import ResponseAttention
    from .perplexity import perplexity, response_nll

    try:
        attention = ResponseAttention(sample.context_start, sample.context_end, sample.response_start)
        with watch("long"), pair.long_with_attention() as model:
            response = torch.tensor(sample.response, device=model.device)
            whole = torch.tensor([sample.input_ids[: sample.response_end]], device=model.device)
            nll_long = response_nll(model, whole, response, full=True, response_attention=attention).item()
        with watch("no_context"):
            nll_no_context = _nll_after(pair.long, sample, [])
        seen = pair.short_context(sample)
        if pair.is_self_paired and len(seen) == len(sample.context):
            nll_short = nll_long  # the window shows everything: the same model on the same tokens
        else:
            with watch("short"), pair.short() as model:
                nll_short = _nll_after(model, sample, seen)
        with watch("segments"):
            nll_segments = _segment_nlls(pair.long, sample, segment_length, batch_tokens)
    except torch.OutOfMemoryError as error:
        raise MeasureError(
            f"out of memory on {sample.response_end} tokens; lower max_length, or use a device with more"
        ) from error
    measurement = Measurement(
        ppl_short=perplexity(nll_short),
        ppl_long=perplexity(nll_long),
        ppl_no_context=perplexity(nll_no_context),
        segment_ppl=[perplexity(nll) for nll in nll_segments],
        segment_attention=attention.segment_means(segment_length),
    )
    _check_finite(measurement)
    return measurement


def _nll_after(model, sample: Sample, context: list[int]) -> float:
    """Mean NLL of the sample's response with another context in place of its own."""
    import torch

    from .perplexity import response_nll

    ids = sample.prefix + context + sample.instruction + sample.response[:-1]
    tensors = torch.tensor([ids], device=model.device), torch.tensor(sample.response, device=model.device)
    return response_nll(model, *tensors).item()


def _segment_nlls(model, sample: Sample, segment_length: int, batch_tokens: int) -> list[float]:
    """The segment passes, with half the batch as often as memory runs out."""
    import torch

    from .segments import segment_nlls

    while True:
        try:
            return segment_nlls(model, sample, segment_length, batch_tokens)
        except torch.OutOfMemoryError:
            if batch_tokens <= segment_length:
                raise
            batch_tokens //= 2
            logger.warning("Out of memory: segments go on with batch_tokens=%d.", batch_tokens)


def _check_finite(measurement: Measurement) -> None:
    for field in fields(Measurement):
        value = getattr(measurement, field.name)
        bad = [number for number in (value if isinstance(value, list) else [value]) if not isfinite(number)]
        if bad:
            raise MeasureError(f"{field.name} is {bad[0]}: the models give no finite numbers for this row")


class GateauScorer:
    """Measures rows for GATEAU: pass it to `Dataset.map`, `IterableDataset.map` or Ray Data's `map_batches`, or call it
    on a dict of lists or on one row.

    It pickles as its settings alone, loads models in the process that uses them, when the first row needs them, and
    hashes the same in every process, so that a second `map` over the same data is a cache hit.

    Args:
        settings: any field of `ModelPairConfig` and `MeasureConfig`, by name. `find_context` may be a function, `store` a path
            or False.

    Example:

        >>> scorer = GateauScorer(long_model="Qwen/Qwen3-0.6B", short_window=4096)
        >>> ds = ds.map(scorer, batched=True)

    Raises:
        TypeError: a setting that does not exist.
        ValueError: a setting out of range.
    """

    reads_environment = False
    default_rank = 0  # process number where `map` gives none; no setting, so it changes no hash

    def __init__(self, **settings):
        self._settings: dict[str, Any] = {}
        self.configure(**settings)

    def configure(self, **settings) -> "GateauScorer":
        """Change settings; everything loaded for the old ones is let go. Returns the scorer itself."""
        known = {field.name for config in (ModelPairConfig, MeasureConfig) for field in fields(config)}
        for name in settings.keys() - known:
            raise TypeError(f"GateauScorer has no setting {name!r}" + did_you_mean(name, known, "."))
        self._settings = {**self._settings, **settings}
        self._runtime, self._variants = None, {}
        self.pair_config, self.measure_config = self._configs()
        return self

    def _given(self) -> dict[str, Any]:
        return {**(_settings_from_environment() if self.reads_environment else {}), **self._settings}

    def _configs(self) -> tuple[ModelPairConfig, MeasureConfig]:
        given = self._given()
        return tuple(
            config(**{field.name: given[field.name] for field in fields(config) if field.name in given})
            for config in (ModelPairConfig, MeasureConfig)
        )

    def __reduce__(self):
        resolved = [sorted(vars(config).items()) for config in self._configs()]
        return _rebuild, (sorted(self._given().items()), resolved, MEASURING_VERSION)

    def __call__(self, batch: Mapping[str, Any], rank: int | None = None, **overrides) -> dict[str, Any]:
        """Measure a batch (a mapping of columns) or one row (a mapping of values).

        Args:
            batch: columns `messages`, or `context`, `instruction` and `response`; others are ignored. As a mapping, or as
                an Arrow table, which comes back with its columns and the new ones.
            rank (`int`, *optional*): process number, from `map(..., with_rank=True)`; chooses among several GPUs.
            overrides: settings for this call, from `map(..., fn_kwargs={...})`.

        Returns:
            The columns of `COLUMNS`, one value a row. A row that cannot be measured has null in all but
            `gateau_error` and `gateau_content_hash`.

        Raises:
            SampleError, MeasureError: with `on_error="raise"`, for the first row that cannot be measured.
        """
        if overrides:
            return self._variant(overrides)(batch, rank)
        shape = BatchShape(batch)
        return shape.pack(self.start(rank).measure_rows(shape.rows))

    def start(self, rank: int | None = None) -> "_Runtime":
        """What this process measures with: made by the first call, models not before they are needed."""
        if self._runtime is None:
            self.pair_config, self.measure_config = self._configs()
            rank = rank if isinstance(rank, int) else self.default_rank
            self._runtime = _Runtime(self.pair_config, self.measure_config, rank)
        return self._runtime

    def _variant(self, overrides: dict[str, Any]) -> "GateauScorer":
        key = json.dumps(overrides, sort_keys=True, default=repr)
        if key not in self._variants:
            self._variants[key] = GateauScorer(**{**self._given(), **overrides})
        return self._variants[key]

    @property
    def stores(self) -> bool:
        """Whether what is measured is kept."""
        return resolve_store_path(self.measure_config.store) is not None

    def count(self, ds) -> dict[str, int]:
        """How many rows of a dataset the store has (`kept`), are to be measured (`pending`), or cannot be (`unusable`).

        Lays every row out as tokens; loads no model.
        """
        counts = {"kept": 0, "pending": 0, "unusable": 0}
        for sample, is_kept in self.survey(ds):
            counts["unusable" if isinstance(sample, str) else "kept" if is_kept else "pending"] += 1
        return counts

    def survey(self, ds) -> Iterator[tuple[Sample | str, bool]]:
        """Each row of a dataset as token spans, or why it cannot be, and whether the store has it. Loads no model."""
        return (self._runtime or _Runtime(self.pair_config, self.measure_config)).survey(ds)

    def describe(self) -> dict[str, Any]:
        """What the numbers come from, as plain JSON: `config_key` (the part of `gateau_key` before the colon), models
        with their revisions, dtype, segment length; and the longest sample in tokens. Reads the models' configurations,
        not their weights."""
        runtime = self._runtime or _Runtime(self.pair_config, self.measure_config)
        return {"config_key": runtime.config_key, **runtime.description, "max_length": runtime.max_length}


def _rebuild(given: list, resolved: list, version: int) -> GateauScorer:
    """Unpickle; what was resolved, defaults included, and the code's version are there for `datasets` to hash."""
    return GateauScorer(**dict(given))


class _ReadyScorer(GateauScorer):
    """`gateau_score`: settings that were not given come from `HF_GATEAU_<SETTING>` in the environment."""

    reads_environment = True


def _settings_from_environment() -> dict[str, Any]:
    settings = {}
    for config in (ModelPairConfig, MeasureConfig):
        for field in fields(config):
            value = os.environ.get(ENVIRONMENT_PREFIX + field.name.upper())
            if value is not None and field.name != "store":  # the store resolves its own variable
                settings[field.name] = _parse(field.name, value, str(field.type))
    return settings


def _parse(name: str, value: str, annotation: str) -> Any:
    kind = next((kind for kind in (bool, int, float) if kind.__name__ in annotation), str)
    try:
        return value.lower() in ("1", "true", "yes", "on") if kind is bool else kind(value)
    except ValueError as error:
        variable = ENVIRONMENT_PREFIX + name.upper()
        raise ValueError(f"{variable} is {value!r}; give it a value of type {kind.__name__}.") from error


class _Runtime:
    """What a scorer has at hand in one process: the pair, the store, the key of its settings."""

    def __init__(self, pair_config: ModelPairConfig, config: MeasureConfig, rank: int = 0):
        from .models import ModelPair

        _use_one_thread_after_fork()
        self.config, self.rank = config, rank
        find = config.find_context
        self.find_context = _import_function(find) if isinstance(find, str) else find
        self.pair = ModelPair(pair_config, rank)
        self.max_length = min(config.max_length, self.pair.max_length)
        default = CPU_BATCH_TOKENS if self.pair.device.type == "cpu" else GPU_BATCH_TOKENS
        self.batch_tokens = config.batch_tokens or default
        self.description = {
            "measuring_version": MEASURING_VERSION,
            **self.pair.describe(),
            "segment_length": config.segment_length,
        }
        # A model is known by its fingerprint: the same weights in another place give the same key.
        nameless = {
            key: {k: v for k, v in value.items() if k != "model"} if isinstance(value, dict) else value
            for key, value in self.description.items()
        }
        canonical = json.dumps(nameless, sort_keys=True)
        self.config_key = hashlib.sha256(canonical.encode()).hexdigest()[:16]
        path = resolve_store_path(config.store)
        self.store = open_store(path) if path is not None else None
        if self.store is not None:
            self.store.describe(self.config_key, self.description)
        self.length_check = _LengthCheck(self.pair, pair_config)
        self.failed: dict[str, str] = {}  # sample key -> reason, where another process has tried

    def measure_rows(self, rows: list[Mapping]) -> list[dict[str, Any]]:
        """One dict of `COLUMNS` a row, in order; what the store has is not measured again."""
        laid_out = [self.lay_out(row) for row in rows]
        keys = [sample.key for sample in laid_out if isinstance(sample, Sample)]
        found = self.store.get(self.config_key, keys) if self.store is not None else {}
        pending = len(set(keys) - found.keys())
        with _Progress(len(rows), len(rows) - pending, self.rank) as progress:
            return [self._columns(row, sample, found, progress) for row, sample in zip(rows, laid_out, strict=True)]

    def survey(self, ds) -> Iterator[tuple[Sample | str, bool]]:
        """See `GateauScorer.survey`."""
        columns = [name for name in READ_COLUMNS if name in ds.column_names] or ds.column_names
        for batch in ds.select_columns(columns).with_format(None).iter(ROWS_LAID_OUT):
            rows = [dict(zip(batch, values, strict=True)) for values in zip(*batch.values(), strict=True)]
            laid_out = [self.lay_out(row) for row in rows]
            keys = [sample.key for sample in laid_out if isinstance(sample, Sample)]
            found = self.store.get(self.config_key, keys) if self.store is not None else {}
            for sample in laid_out:
                yield sample, isinstance(sample, Sample) and sample.key in found

    def lay_out(self, row: Mapping) -> Sample | str:
        """The row as token spans, or why it cannot be."""
        try:
            return build_sample(row, self.pair.tokenizer, max_length=self.max_length, find_context=self.find_context)
        except SampleError as error:
            return self._failed(row, error)

    def _failed(self, row: Mapping, error: Exception) -> str:
        if self.config.on_error == "raise":
            raise type(error)(f"Row {row.get('id')!r}: {error}; fix or drop it, or use on_error='skip'.") from error
        return str(error)

    def _columns(self, row: Mapping, sample: Sample | str, found: dict, progress: "_Progress") -> dict[str, Any]:
        columns = dict.fromkeys(COLUMNS) | {"gateau_content_hash": content_hash(row)}
        if isinstance(sample, str):
            return columns | {"gateau_error": sample}
        columns |= {
            "gateau_num_context_tokens": len(sample.context),
            "gateau_num_response_tokens": len(sample.response),
            "gateau_truncated": sample.num_truncated > 0,
            "gateau_key": f"{self.config_key}:{sample.key}",
        }
        if sample.key not in found:
            try:
                found[sample.key] = self._measure(sample)
            except MeasureError as error:
                return columns | {"gateau_error": self._failed(row, error)}
            progress.advance(sample.response_end)
        measured = vars(found[sample.key])
        return columns | {f"gateau_{name}": value for name, value in measured.items()}

    def _measure(self, sample: Sample) -> Measurement:
        if sample.key in self.failed:
            raise MeasureError(self.failed[sample.key])
        measurement = measure_sample(self.pair, sample, self.config.segment_length, self.batch_tokens)
        if self.store is not None:
            self.store.put(self.config_key, sample.key, measurement)
        self.length_check.see(sample, measurement)
        return measurement


class _LengthCheck:
    """Warns when the short sibling breaks outright on long input, so that every long sample would look long-range.

    On the first rows longer than the short model's own window, it is also run on the end of the context that fits: a
    sound model is not made worse by seeing more.
    """

    def __init__(self, pair, config: ModelPairConfig):
        from .models import context_window

        self.pair, self.losses, self.window = pair, [], context_window(pair.short_config)
        self.applies = config.short_window is None

    def see(self, sample: Sample, measurement: Measurement) -> None:
        if not self.applies or sample.response_end <= self.window or len(self.losses) == BREAKS_ON_LENGTH_ROWS:
            return
        room = max(0, self.window - (sample.response_end - len(sample.context)))
        with self.pair.short() as model:
            nll_of_end = _nll_after(model, sample, sample.context[len(sample.context) - room :])
        self.losses.append(log(measurement.ppl_short) - nll_of_end)
        if len(self.losses) == BREAKS_ON_LENGTH_ROWS and statistics.median(self.losses) > BREAKS_ON_LENGTH_NATS:
            logger.warning(
                "The short model's perplexity is %.1f times higher on whole samples than on the last %d tokens of them: "
                "it breaks on length, so every long sample will look long-range. Set short_rope_scale (200 in the paper) "
                "or short_window=%d.",
                exp(statistics.median(self.losses)), self.window, self.window,
            )  # fmt: skip


class _Progress:
    """A bar over the rows of one call, with tokens a second; it follows `datasets.disable_progress_bars()`."""

    def __init__(self, num_rows: int, num_done: int, rank: int):
        from datasets.utils import tqdm

        self.tokens, self.started = 0, time.monotonic()
        options = {"desc": "Measuring", "unit": " rows", "leave": False, "position": 1 + rank}
        show = num_rows - num_done > 1
        self.bar = tqdm(total=num_rows, initial=num_done, **options) if show else None

    def __enter__(self) -> "_Progress":
        return self

    def __exit__(self, *_) -> None:
        if self.bar is not None:
            self.bar.close()

    def advance(self, num_tokens: int) -> None:
        self.tokens += num_tokens
        if self.bar is not None:
            rate = self.tokens / (time.monotonic() - self.started)
            self.bar.set_postfix_str(f"{rate:,.0f} tokens/s", refresh=False)
            self.bar.update(1)


def _import_function(name: str) -> Callable:
    module, _, function = name.partition(":")
    try:
        return getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError) as error:
        raise ValueError(
            f"find_context={name!r} cannot be imported ({error}); name a function as 'module:function'."
        ) from error


def _use_one_thread_after_fork() -> None:
    """OpenMP's threads do not survive a fork: the first parallel matrix product of a forked worker would hang."""
    import multiprocessing

    import multiprocess  # what `datasets` forks with
    import torch

    for library in (multiprocessing, multiprocess):
        if library.parent_process() is not None and library.get_start_method(allow_none=True) in (None, "fork"):
            torch.set_num_threads(1)


gateau_score = _ReadyScorer()
