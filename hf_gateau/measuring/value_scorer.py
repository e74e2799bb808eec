"""What the scorers of `responses`, `windows`, `rewards` and `embeddings` have in common: a batch of columns in, one value a row out.

Like `GateauScorer` they are handed to `Dataset.map`, pickle as their settings, load a model when a row needs one, and keep
each value in the store at once, by what the row says (`key_of`) and what measured it (`config_key`).
"""

from __future__ import annotations

import hashlib
import inspect
import logging
import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

from ..markdown import public_name
from ..models.fingerprints import fingerprint_or_name, loaded_commit, model_fingerprint, tokenizer_fingerprint
from ..models.packing import pack
from ..records import attach_record, column_of, value_kind
from ..rows.batches import REASON, VALUE_COLUMNS, BatchShape
from ..rows.context_rules import last_paragraph
from ..rows.conversations import FindContext, SampleError, content_hash, find_context_of, read_conversation
from ..rows.parts import span_of
from ..settings import call_text
from ..store.claims import Claims
from ..store.folder import FolderStore, open_store
from ..store.keys import config_key
from ..store.sqlite import MeasurementStore, Value, resolve_store_path
from .progress import keep_bars_over_forks
from .runtime import CPU_BATCH_TOKENS, GPU_BATCH_TOKENS, LAYOUT_VERSION, TOKENS_LAID_OUT, rests_on


if TYPE_CHECKING:
    from datasets import Dataset, IterableDataset

logger = logging.getLogger(__name__)

KEPT = ("settings", "rank", "default_rank")  # of a scorer when its model's files have changed


class ValueScorer(ABC):
    """Measures one value a row with one model. Subclasses say which, and how.

    Attributes:
        column (`str`): that it adds; beside it `<column>_error` says why a row has none.
        version (`int`): of the measuring code, part of every key: raised when a change to it changes a value.
        default_rank (`int`): process number where `map` gives none; it chooses among several GPUs, and changes no hash.
    """

    column: ClassVar[str]
    title: ClassVar[str]
    version: ClassVar[int] = 1
    default_rank = 0

    def __init__(self, **settings):
        self.settings, self.rank = settings, None
        batch_tokens = settings.get("batch_tokens")
        if batch_tokens is not None and batch_tokens < 1:
            raise ValueError(f"batch_tokens is a number of tokens, got {batch_tokens}; give 1 or more.")
        if not isinstance(settings["model"], str) or not settings["model"]:
            raise ValueError(
                f"{type(self).__name__} needs a model, got {settings['model']!r}; give a folder or a Hub id."
            )

    def __repr__(self) -> str:
        parameters = inspect.signature(type(self).__init__).parameters.values()
        return call_text(
            type(self).__name__, self.settings, {x.name: x.default for x in parameters if x.default is not x.empty}
        )

    # What a subclass says

    @abstractmethod
    def describe_model(self) -> dict[str, Any]:
        """What changes a value, as plain JSON; of the model at least `model` and `fingerprint`. Loads no weights."""

    @abstractmethod
    def lay_out(self, row: Mapping[str, Any]) -> Any:
        """What goes through the model for a row.

        Raises:
            SampleError: the row has no value, and why.
        """

    @abstractmethod
    def num_tokens(self, item: Any) -> int:
        """Tokens of what `lay_out` gave, or about so many."""

    @abstractmethod
    def measure(self, items: Sequence[Any]) -> list[Value]:
        """The values of some rows, in one batch."""

    # What all have in common

    @cached_property
    def find_context(self) -> FindContext | None:
        """The setting of that name, as a function; None where the default is to be taken, or the subclass has no such setting."""
        return find_context_of(self.settings.get("find_context"))

    def key_of(self, row: Mapping[str, Any]) -> str:
        """What the store knows a row by: what it says, and the place of the context, unless that is all before the last paragraph."""
        key, place = content_hash(row), _place(row, self.find_context)
        if place is None or (self.find_context is None and place == _place(row, last_paragraph)):
            return key
        said = " ".join(map(str, [key, *place]))
        return hashlib.sha256(said.encode()).hexdigest()[:16]

    def __reduce__(self):
        keep_bars_over_forks()
        versions = self.version, LAYOUT_VERSION
        return _rebuild, (type(self), sorted(self.settings.items()), versions, self.refresh())

    def fingerprints(self) -> dict[str, str | None]:
        """What tells `model`, `tokenizer` and what else there is from others, as they are now. Loads nothing."""
        source = self.settings["model"], self.settings["revision"]
        return {
            "model": fingerprint_or_name(model_fingerprint, *source),
            "tokenizer": fingerprint_or_name(tokenizer_fingerprint, *source),
        }

    @cached_property
    def made_of(self) -> dict[str, str | None]:
        """`fingerprints` when this scorer began."""
        return self.fingerprints()

    def refresh(self) -> str:
        """See `GateauScorer.refresh`."""
        found = self.fingerprints()
        if self.made_of != found:
            for name in vars(self).keys() - set(KEPT):
                del vars(self)[name]
        return rests_on(found, self.settings.get("find_context"))

    def check_unchanged(self) -> None:
        """To be called once the model is loaded.

        Raises:
            ValueError: its files are not those that the key was made for.
        """
        if self.fingerprints() != self.made_of:
            raise ValueError(
                f"The files of {self.settings['model']!r} have changed since this run began; start it again."
            )

    def note_loaded(self) -> str | None:
        """To be called once files of the model are loaded: their commit; None where they are no Hub id's."""
        return loaded_commit(self.settings["model"], self.settings["revision"])

    @property
    def stores(self) -> bool:
        """Whether what is measured is kept."""
        return resolve_store_path(self.settings.get("store")) is not None

    @cached_property
    def description(self) -> dict[str, Any]:
        """What the values come from, as plain JSON; see `config_key`."""
        return {"column": self.column, "measuring_version": self.version, **self.describe_model()}

    @cached_property
    def config_key(self) -> str:
        """What values are kept under: the same weights under another name give the same key."""
        return config_key(self.description)

    @cached_property
    def store(self) -> MeasurementStore | FolderStore | None:
        """Where values are kept; None where the store is off."""
        path = resolve_store_path(self.settings.get("store"))
        store = open_store(path) if path is not None else None
        if store is not None:
            store.describe(self.config_key, self.description)
        return store

    @cached_property
    def claims(self) -> Claims | None:
        """What this process is measuring, for others that measure the same."""
        return Claims(self.store, self.config_key) if self.store is not None else None

    @cached_property
    def batch_tokens(self) -> int:
        """Most tokens in one batch; lowered for good where they turn out not to fit into memory."""
        default = CPU_BATCH_TOKENS if self.device.type == "cpu" else GPU_BATCH_TOKENS
        return self.settings.get("batch_tokens") or default

    @property
    def device(self):
        """Where the model runs."""
        from ..models.device import resolve_device

        return resolve_device(self.settings.get("device", "auto"), self.rank or 0)

    def __call__(self, batch: Mapping[str, Any], rank: int | None = None) -> Any:
        """The new columns of a batch (a mapping of columns, or an Arrow table) or of one row; see `GateauScorer`."""
        if self.rank is None:
            self.rank = rank if isinstance(rank, int) else self.default_rank
        shape = BatchShape(batch)
        return shape.pack(self.measure_rows(shape.rows), self.columns)

    def measure_rows(self, rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """One value a row, or why there is none; what the store has is not measured again, nor what others are measuring."""
        keys = [self.key_of(row) for row in rows]
        by_key, found = dict(zip(keys, rows, strict=True)), {}
        left = self._missing(by_key, found)
        with self._bar(len(left)) as bar:
            while left:
                for part in self._laid_out({key: by_key[key] for key in left}, found):
                    for measured in self._measured(part):
                        found |= measured
                        bar.update(len(measured))
                if left := [key for key in left if key not in found]:
                    self.claims.wait(left)
                    left = self._missing(left, found)
        return [self.columns_of(found[key]) for key in keys]

    def _missing(self, keys: Iterable[str], found: dict[str, Value | str]) -> list[str]:
        """The keys that the store has no value for; those that it has go to `found`."""
        if self.store is not None:
            found |= self.store.get_values(self.config_key, keys)
        return [key for key in keys if key not in found]

    @property
    def columns(self) -> dict[str, str]:
        """Name -> type of the columns that are added, as in `VALUE_COLUMNS`."""
        return {name: VALUE_COLUMNS[name] for name in (self.column, REASON.format(self.column))}

    def columns_of(self, found: Value | str) -> dict[str, Any]:
        """A row's values of `columns`, from what was measured, or why nothing was."""
        value, reason = (None, found) if isinstance(found, str) else (found, None)
        return {self.column: value, REASON.format(self.column): reason}

    def _laid_out(self, rows: Mapping[str, Mapping], found: dict[str, Value | str]) -> Iterator[dict[str, Any]]:
        """What goes through the model, by content key, as much at a time as may be in memory; reasons go to `found`."""
        part, num_tokens = {}, 0
        for key, row in rows.items():
            try:
                part[key] = self.lay_out(row)
            except SampleError as error:
                found[key] = str(error)
                continue
            num_tokens += self.num_tokens(part[key])
            if num_tokens >= TOKENS_LAID_OUT:
                yield part
                part, num_tokens = {}, 0
        yield part

    def _measured(self, part: dict[str, Any]) -> Iterator[dict[str, Value | str]]:
        """Values by content key, batch by batch; each batch is in the store before the next is measured. Those that another process
        is measuring are left out."""
        keys = list(part)
        for places in pack([self.num_tokens(item) for item in part.values()], self.batch_tokens):
            batch = [keys[i] for i in places]
            if self.claims is None:
                yield self._measured_batch(batch, part)
                continue
            busy, found = self.claims.take(batch), {}
            try:
                pending = [key for key in self._missing(batch, found) if key not in busy]
                found |= self._measured_batch(pending, part) if pending else {}
            finally:
                self.claims.release()
            yield found

    def _measured_batch(self, batch: list[str], part: dict[str, Any]) -> dict[str, Value | str]:
        values = [_checked(value) for value in self._within_memory([part[key] for key in batch])]
        found = dict(zip(batch, values, strict=True))
        sound = {key: value for key, value in found.items() if not isinstance(value, str)}
        if self.store is not None and sound:
            self.store.put_values(self.config_key, sound)
        return found

    def _within_memory(self, items: list[Any]) -> list[Value | str]:
        """`measure`; where memory runs out, in halves."""
        from ..models.device import is_out_of_memory, release_memory

        try:
            return self.measure(items)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
        release_memory(self.device)  # here the failed batch's tensors are gone, with the exception
        if len(items) == 1:
            num_tokens = self.num_tokens(items[0])
            return [f"out of memory on {num_tokens} tokens; lower max_length, or use a device with more"]
        self.batch_tokens = max(1, sum(map(self.num_tokens, items)) // 2)
        logger.warning("Out of memory: batches go on with %d tokens.", self.batch_tokens)
        middle = len(items) // 2
        return [value for half in (items[:middle], items[middle:]) for value in self._within_memory(half)]

    def _bar(self, num_rows: int):
        """A bar over the rows of one call; it follows `datasets.disable_progress_bars()`."""
        from datasets.utils import tqdm

        options = {"unit": " rows", "leave": False, "position": 1 + (self.rank or 0), "delay": 1.0}
        return tqdm(total=num_rows, desc=self.title, **options)


def told_and_recorded(ds: Dataset, scorer: ValueScorer) -> Dataset:
    """The rows once they have a scorer's values: says how many have none, and attaches the record of the model."""
    reason = REASON.format(scorer.column)
    reasons = column_of(ds, reason)
    if num_bad := len(reasons) - reasons.count(None):
        logger.warning("%d of %d rows have no %s; %s says why.", num_bad, len(ds), scorer.column, reason)
    attach_value_record(ds, scorer)
    return ds


def attach_value_record(ds: Dataset | IterableDataset, scorer: ValueScorer) -> None:
    """Says which model measures a scorer's column, under the column's name without `gateau_`."""
    described = scorer.description | {"model": public_name(scorer.description["model"])}
    attach_record(ds, value_kind(scorer.column), {"config_key": scorer.config_key, **described})


def _place(row: Mapping[str, Any], find_context: FindContext | None) -> list[int] | None:
    """Where the context stands; None where there is none."""
    try:
        return span_of(read_conversation(row, find_context))
    except SampleError:
        return None


def _rebuild(kind: type, settings: list, *hashed) -> ValueScorer:
    """Unpickle; the code's versions and what the values rest on are there for `datasets` to hash."""
    return kind(**dict(settings))


def _checked(value: Value | str) -> Value | str:
    """A value, or why it is none."""
    if isinstance(value, str):
        return value
    bad = [x for x in (value if isinstance(value, list) else [value]) if not math.isfinite(x)]
    return f"the model gives {bad[0]} for this row, no finite number" if bad else value
