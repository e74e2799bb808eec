"""`GateauScorer`: a batch of columns in, the raw columns out; what `Dataset.map` calls.

Everything that needs a model happens here, once a row. Ranking reads the columns and never comes back.
"""

import json
import logging
import os
from collections.abc import Iterator, Mapping
from dataclasses import fields
from typing import Any

from ..models.config import ModelPairConfig
from ..models.fingerprints import pair_fingerprints
from ..rows.batches import COLUMNS, BatchShape
from ..rows.samples import Sample
from ..settings import call_text, defaults_of, did_you_mean
from ..store.sqlite import resolve_store_path
from .config import MeasureConfig
from .progress import keep_bars_over_forks
from .runtime import LAYOUT_VERSION, MEASURING_VERSION, Runtime, rests_on
from .screening import Screening


logger = logging.getLogger(__name__)

ENVIRONMENT_PREFIX = "HF_GATEAU_"
FILES = ("long_model", "short_model", "long_adapter", "short_adapter", "tokenizer")  # settings that may name a folder


class GateauScorer:
    """Measures rows for GATEAU: pass it to `Dataset.map`, `IterableDataset.map` or Ray Data's `map_batches`, or call it
    on a dict of lists or on one row.

    It pickles as its settings, and what tells the files that they name from others; loads models in the process that uses
    them, when the first row needs them; and hashes the same in every process. So a second `map` over the same data is a
    cache hit, until weights, tokenizer, chat template or the code of `find_context` are others.

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
        self._screening: Screening | None = None
        self.configure(**settings)

    def configure(self, **settings) -> "GateauScorer":
        """Change settings; everything loaded for the old ones is let go. Returns the scorer itself."""
        known = {field.name for config in (ModelPairConfig, MeasureConfig) for field in fields(config)}
        for name in settings.keys() - known:
            raise TypeError(f"GateauScorer has no setting {name!r}" + did_you_mean(name, known, "."))
        self._settings = {**self._settings, **settings}
        self._screening = None if settings else self._screening
        self._runtime, self._variants, self._rests_on = None, {}, None
        self.pair_config, self.measure_config = self._configs()
        return self

    def __repr__(self) -> str:
        return call_text("GateauScorer", self._given(), defaults_of(ModelPairConfig, MeasureConfig))

    def _given(self) -> dict[str, Any]:
        return {**(_settings_from_environment() if self.reads_environment else {}), **self._settings}

    def _configs(self) -> tuple[ModelPairConfig, MeasureConfig]:
        given = self._given()
        return tuple(
            config(**{field.name: given[field.name] for field in fields(config) if field.name in given})
            for config in (ModelPairConfig, MeasureConfig)
        )

    def __reduce__(self):
        keep_bars_over_forks()  # before `datasets` forks workers, it pickles what they do
        resolved = [sorted((x.name, getattr(config, x.name)) for x in fields(config)) for config in self._configs()]
        versions = MEASURING_VERSION, LAYOUT_VERSION, tuple(COLUMNS)
        rests_on = self.refresh(), self._calibrated_by()
        return _rebuild, (sorted(self._given().items()), self._screening, resolved, versions, *rests_on)

    def _calibrated_by(self) -> str | None:
        """What tells the heads that rows are measured by from others; None where segments are measured."""
        if self._configs()[1].cam != "heads":
            return None
        heads = self._look().heads
        return heads and heads.digest

    def refresh(self) -> str:
        """What the numbers rest on beside the settings, files, code and commits, as 16 hexadecimal digits; what was loaded
        when they were others is let go. Loads nothing, and reads no file twice."""
        found = _rests_on(*self._configs())
        if self._rests_on not in (None, found):
            self._runtime, self._variants = None, {}
        self._rests_on = found
        return found

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

    def start(self, rank: int | None = None) -> Runtime:
        """What this process measures with: made by the first call, models not before they are needed."""
        runtime = self._look()
        runtime.rank = runtime.pair.rank = rank if isinstance(rank, int) else self.default_rank
        return runtime

    def leave_segments(self) -> None:
        """Measure everything but segments, of all rows, until `screen_by` is called."""
        self._screening = None
        self._look().leave_segments()

    def screen_by(self, screening: Screening) -> None:
        """Measure segments of the rows that a decision names alone, in this process and in those that the scorer is sent to."""
        self._look().measure_segments(screening)
        self._screening = screening

    def _look(self) -> Runtime:
        """What is known before this process's number is: made once, since a .gguf file's tokenizer takes seconds to read."""
        configs = self._configs()
        if self._runtime is None or configs != (self.pair_config, self.measure_config):
            self.pair_config, self.measure_config = configs
            self._rests_on, self._runtime = _rests_on(*configs), Runtime(*configs)
            if self._screening is not None and self._screening.segments_key == self._runtime.segments_key:
                self._runtime.measure_segments(self._screening)
        return self._runtime

    def _variant(self, overrides: dict[str, Any]) -> "GateauScorer":
        key = json.dumps(overrides, sort_keys=True, default=repr)
        if key not in self._variants:
            if named := [name for name in FILES if os.path.exists(os.path.expanduser(overrides.get(name) or ""))]:
                logger.warning(
                    "`datasets` does not see when the files of %s change, named in fn_kwargs; name them in GateauScorer(...).",
                    ", ".join(named),
                )
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
        self.refresh()
        return self._look().survey(ds)

    def describe(self) -> dict[str, Any]:
        """What the numbers come from, as plain JSON: `config_key` (the part of `gateau_key` before the colon), models
        with their revisions, dtype, segment length; the longest sample in tokens; and `layout_key`, which tells another
        tokenizer, chat template, `find_context` or length; `screening`, where segments are measured of some rows alone. Reads
        the models' configurations, not their weights."""
        self.refresh()
        runtime = self._look()
        found = {"config_key": runtime.config_key, **runtime.description, "max_length": runtime.max_length}
        screened = {"screening": runtime.screen.screening.to_json()} if runtime.screen is not None else {}
        return found | {"layout_key": runtime.layout_key} | screened


def _rests_on(pair: ModelPairConfig, how: MeasureConfig) -> str:
    return rests_on(pair_fingerprints(pair), how.find_context)


def _rebuild(given: list, screening: Screening | None, *hashed) -> GateauScorer:
    """Unpickle; what was resolved, defaults included, the code's versions and what the numbers rest on are there for `datasets` to
    hash."""
    scorer = GateauScorer(**dict(given))
    scorer._screening = screening
    return scorer


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


gateau_score = _ReadyScorer()
