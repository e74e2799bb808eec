"""Rows laid out as tokens once, all but the tokens kept: a table, on the disk where the rows are, that tells what is to be
measured, which rows belong together, and in the end what columns each row gets.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any

import numpy as np

from ..models.packing import MOST_TOGETHER
from ..rows.batches import COLUMNS, BatchShape, column_features, feature_of, readable, rows_of
from ..store.sqlite import StoreError
from .costs import RowShape
from .known import ABOUT, about
from .runtime import ROWS_LAID_OUT
from .scorer import GateauScorer


if TYPE_CHECKING:
    from datasets import Dataset

KEYS_PER_LOOK = 500
KEY_TYPE = "S32"


def survey_rows(ds: Dataset, scorer: GateauScorer, num_proc: int | None = None) -> Dataset:
    """`ABOUT` every row of a dataset. Loads no model; `datasets` keeps the table as it does with every `map`, by what makes
    tokens of rows: it serves scorers that differ by their short sibling."""
    from datasets import Dataset, Features
    from datasets.fingerprint import Hasher

    features = Features({name: feature_of(kind) for name, kind in ABOUT.items()})
    if not len(ds):  # of which `map` would leave the types
        return Dataset.from_dict({name: [] for name in ABOUT}, features=features)
    read = readable(ds)
    runtime = scorer.start()
    made_by = (*ABOUT, runtime.layout_key, runtime.pair.num_embeddings, runtime.config.on_error)
    made_by += (runtime.cut.length, runtime.cut.stride)
    options = {"batched": True, "batch_size": ROWS_LAID_OUT, "desc": "Laying out", "num_proc": num_proc}
    options |= {"new_fingerprint": Hasher.hash((read._fingerprint, *made_by))}
    return read.map(partial(_lay_out, scorer=scorer), remove_columns=read.column_names, features=features, **options)


def _lay_out(batch, scorer: GateauScorer) -> dict[str, list]:
    runtime = scorer.start()
    rows = rows_of({name: batch[name] for name in batch})
    found = [about(row, runtime.lay_out(row), runtime.cut) for row in rows]
    return {name: [one[name] for one in found] for name in ABOUT}


def are_kept(table: Dataset, runtime) -> np.ndarray:
    """Whether the store has each row of a survey."""
    kept = np.zeros(len(table), bool)
    for start in range(0, len(table), KEYS_PER_LOOK):
        keys = table[start : start + KEYS_PER_LOOK]["key"]
        found = runtime.known(key for key in keys if key is not None)
        kept[start : start + len(keys)] = [key in found for key in keys]
    return kept


def measured_rows(ds: Dataset, table: Dataset, scorer: GateauScorer) -> Dataset:
    """The dataset with the columns of its survey and of the store; as `ds.map(scorer)` makes it, but that no row is laid out
    and no text written again."""
    from datasets import concatenate_datasets
    from datasets.fingerprint import Hasher

    runtime = scorer.start()
    screened = () if runtime.screen is None else (runtime.screen.screening.digest,)
    fingerprint = Hasher.hash((table._fingerprint, runtime.config_key, sorted(runtime.failed.items()), *screened))
    options = {"batched": True, "new_fingerprint": fingerprint, "features": column_features(), "desc": "Rows"}
    columns = table.map(partial(_columns, runtime=runtime), remove_columns=table.column_names, **options)
    info = ds.info.copy()
    info.features = None  # those of the parts
    own = ds.remove_columns([name for name in COLUMNS if name in ds.column_names])
    out = concatenate_datasets([own.with_format(None), columns], info=info, split=ds.split, axis=1)
    return _formatted_as(out, ds)


def _columns(batch, runtime) -> dict[str, Any]:
    rows = rows_of({name: batch[name] for name in batch})
    keys = [row["key"] for row in rows if row["key"] is not None]
    found = dict(runtime.failed) | runtime.known(keys)
    if missing := set(keys) - found.keys():
        raise StoreError(
            f"{len(missing)} measured rows are gone from the store {runtime.store.path}; give the same command again."
        )
    low = runtime.low(keys)
    return BatchShape(batch).pack([runtime.columns(row, found, low) for row in rows])


def _formatted_as(out: Dataset, ds: Dataset) -> Dataset:
    """In the format of another dataset, the columns that are new to it included."""
    shown = ds.format
    if shown["type"] is None:
        return out
    hidden = set(ds.column_names) - set(shown["columns"])
    columns = [name for name in out.column_names if name not in hidden]
    more = {"output_all_columns": shown["output_all_columns"], **shown["format_kwargs"]}
    return out.with_format(shown["type"], columns=columns, **more)


@dataclass
class Work:
    """Rows to measure, one of each key, in bunches that are measured together: row `order[starts[b]]` and those after it are
    bunch b. All arrays but `starts` and `weights` have one value a row.

    Attributes:
        places: of the rows in the dataset. keys: of the samples, as bytes. tokens, prefix, context, response: their numbers.
        are_first (bool): whether a row is the first of its bunch, which goes through the models whole.
        starts, weights: of the bunches; `weights` counts the tokens that go through a model, a shared context once.
    """

    places: np.ndarray
    keys: np.ndarray
    tokens: np.ndarray
    prefix: np.ndarray
    context: np.ndarray
    response: np.ndarray
    are_first: np.ndarray
    starts: np.ndarray
    weights: np.ndarray

    @classmethod
    def of(cls, table: Dataset, kept: np.ndarray) -> Work:
        """What a survey leaves to do; the same in every process."""
        keys = _strings(table, "key")
        pending = np.flatnonzero((keys != b"") & ~kept)
        chosen = np.sort(pending[np.unique(keys[pending], return_index=True)[1]])
        groups = np.unique(_strings(table, "context_key")[chosen], return_inverse=True)[1]
        order = np.argsort(groups, kind="stable")
        chosen, groups = chosen[order], groups[order]
        begins = np.flatnonzero(np.diff(groups, prepend=-1))
        position = np.arange(len(chosen)) - np.repeat(begins, np.diff(begins, append=len(chosen)))
        are_first = position % MOST_TOGETHER == 0
        names = ("num_tokens", "num_prefix_tokens", "gateau_num_context_tokens", "gateau_num_response_tokens")
        tokens, prefix, context, response = (_numbers(table, name)[chosen] for name in names)
        starts = np.flatnonzero(are_first)
        through = np.where(are_first, tokens, tokens - prefix - context)
        weights = np.add.reduceat(through, starts) if len(starts) else starts
        return cls(chosen, keys[chosen], tokens, prefix, context, response, are_first, starts, weights)

    def rows(self, bunches: Sequence[int]) -> np.ndarray:
        """The rows of some bunches, in their order."""
        return np.concatenate([np.arange(0), *(np.arange(self.starts[b], self.ends[b]) for b in bunches)])

    @cached_property
    def ends(self) -> np.ndarray:
        """Where each bunch ends."""
        return np.append(self.starts[1:], len(self.places))

    def shapes(self, rows: np.ndarray, begun: bool = False) -> list[RowShape]:
        """The tokens of some rows; `begun`: of all of them everything but segments is measured."""
        instruction = self.tokens - self.prefix - self.context - self.response
        spans = (self.prefix, self.context, instruction, self.response, ~self.are_first)
        columns = (x[rows].tolist() for x in spans)
        return [RowShape(*lengths, begun) for lengths in zip(*columns, strict=True)]

    def parts(self, bunches: Sequence[int], most_tokens: int, only: np.ndarray | None = None) -> Iterator[list[int]]:
        """The places of some bunches' rows, as many bunches at a time as hold so many tokens; one in any case. `only`: whether each
        row is to be among them."""
        part, num_tokens = [], 0
        for bunch in bunches:
            rows = np.arange(self.starts[bunch], self.ends[bunch])
            rows = rows if only is None else rows[only[rows]]
            size = int(self.tokens[rows].sum())
            if part and num_tokens + size > most_tokens:
                yield part
                part, num_tokens = [], 0
            part, num_tokens = part + self.places[rows].tolist(), num_tokens + size
        if part:
            yield part


def _strings(table: Dataset, name: str) -> np.ndarray:
    """A column of keys as bytes, empty for null."""
    chunks = table.data.column(name).chunks
    return np.concatenate([np.zeros(0, KEY_TYPE), *(np.array(x.fill_null("").to_pylist(), KEY_TYPE) for x in chunks)])


def _numbers(table: Dataset, name: str) -> np.ndarray:
    """A column of numbers, 0 for null."""
    return table.data.column(name).fill_null(0).to_numpy()
