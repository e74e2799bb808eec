"""Measured columns as arrays: read batch by batch, so that a long list column never becomes Python objects."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from ..rows.batches import REASON
from .bounds import SCREENED
from .config import RankConfig
from .evidence import FAR_TOKENS, HEADS, NEED_TOKENS, NUM_FAR
from .formulas import EMBEDDING, LENGTHS, measures_of, needed_columns


if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa
    from datasets import Dataset

DERIVED_COLUMNS = ("gateau_hmp", "gateau_cas", "gateau_score", "gateau_rank", "gateau_percentile", "gateau_note")
TEXT_COLUMNS = ("gateau_error", "gateau_key")  # may be absent


# Column -> how it comes about, where `gateau_score` does not measure it
HOW_TO_MEASURE = (
    {
        "gateau_ppl_response": "ds.map(ResponseScorer(LONG_MODEL), batched=True), or `hf-gateau rank --method ifd "
        "--response_model LONG_MODEL`, measures gateau_ppl_response; method='ifd_context' does without it",
        "gateau_reward": "ds.map(RewardScorer(REWARD_MODEL), batched=True), or `hf-gateau rank --method car --reward_model "
        "REWARD_MODEL`, measures gateau_reward; reward_column names any other column of scores",
        EMBEDDING: "ds.map(EmbeddingScorer(EMBEDDING_MODEL), batched=True), or `hf-gateau rank --method car --embedding_model "
        "EMBEDDING_MODEL`, measures gateau_embedding",
    }
    | dict.fromkeys(
        LENGTHS,
        "`hf-gateau rank --method longest --length_model MODEL` counts lengths with a model's tokenizer, and loads no weights",
    )
    | dict.fromkeys(
        (*NEED_TOKENS, *FAR_TOKENS),
        "rows measured before there were columns of tokens, or with token_nll off, are ranked by mode='mean', 'paper' or 'released', or by "
        "another method; "
        "the same `hf-gateau score` measures them anew with these columns",
    )
    | dict.fromkeys(
        (HEADS, NUM_FAR),
        "`hf-gateau score --cam heads`, or GateauScorer(..., cam='heads') after calibrate_heads(ds, scorer), measures "
        "gateau_segment_heads and what goes with it",
    )
)

BATCH_ROWS = 4096  # bounds of what is read at a time: rows, and values of a list column (one row is never cut)
BATCH_VALUES = 1 << 19
CODE = "{}_code"  # beside a term: why it is undefined, see `ListMeasure.reasons`
FRAME_TYPES = {"gateau_rank": "Int64", "gateau_note": "string"}  # the others are float64
ARROW_TYPES = {"gateau_rank": "int64", "gateau_note": "string"}


def is_frame(data: object) -> bool:
    import pandas as pd

    return isinstance(data, pd.DataFrame)


def _tables(data: Dataset | pd.DataFrame, names: list[str], lists: list[str]) -> Iterator[pa.Table]:
    """The named columns in order, at most BATCH_ROWS rows and about BATCH_VALUES values of the first of `lists` at a time."""
    import pyarrow as pa

    if is_frame(data):
        frame = data[names]
        pieces = (frame.iloc[start : start + BATCH_ROWS] for start in range(0, len(frame), BATCH_ROWS))
        tables = (pa.Table.from_pandas(piece, preserve_index=False) for piece in pieces)
    else:
        tables = data.select_columns(names).with_format("arrow").iter(BATCH_ROWS)
    for table in tables:
        sizes = _lists(table[lists[0]])[1] if lists else np.zeros(len(table))
        starts = np.flatnonzero(np.diff(np.cumsum(sizes) // BATCH_VALUES, prepend=-1))
        for start, stop in zip(starts, np.append(starts[1:], len(sizes)), strict=True):
            yield table.slice(start, stop - start)


def _lists(column: pa.ChunkedArray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(values of all lists, null as NaN; list lengths, 0 for null; which are null). Nothing hidden under a null."""
    import pyarrow as pa
    import pyarrow.compute as pc

    array = column.cast(pa.large_list(pa.float64())).combine_chunks()
    sizes = pc.list_value_length(array).fill_null(0).to_numpy()
    return array.flatten().to_numpy(zero_copy_only=False), sizes, array.is_null().to_numpy(zero_copy_only=False)


def _numbers(column: pa.ChunkedArray) -> np.ndarray:
    """A column of numbers or of truth, null as NaN."""
    import pyarrow as pa

    if pa.types.is_boolean(column.type):
        column = column.cast("int8")
    return column.cast("float64").to_numpy()


def _matrix(parts: list[tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
    """Lists as rows of one matrix (n, D), float32; D is the commonest length, and lists of another are NaN."""
    sizes = np.concatenate([sizes for _, sizes in parts])
    width = int(np.bincount(sizes).argmax())
    width = width or int(sizes.max(initial=1))  # most are null
    out, start = np.full((len(sizes), width), np.nan, dtype=np.float32), 0
    for values, lengths in parts:
        good = lengths == width
        out[start : start + len(lengths)][good] = values[np.repeat(good, lengths)].reshape(-1, width)
        start += len(lengths)
    return out


def read_columns(data: Dataset | pd.DataFrame, config: RankConfig) -> dict[str, Any]:
    """What the method needs, one entry a row: the named numbers, what is measured of lists (`measures_of`) with a code into its
    reasons, `error`, `key`, `position`."""
    import pyarrow as pa

    have = list(data.columns if is_frame(data) else data.column_names)
    needed, measures = needed_columns(config), measures_of(config)
    lists = list(dict.fromkeys(name for measure in measures.values() for name in measure.columns))
    if missing := [name for name in needed if name not in have]:
        how = list(dict.fromkeys(HOW_TO_MEASURE[name] for name in missing if name in HOW_TO_MEASURE))
        if any(name not in HOW_TO_MEASURE for name in missing):
            how.append(
                "measure with `hf-gateau score` or ds.map(gateau_score, batched=True), or take a method, hmp or cas that does without"
            )
        raise ValueError(
            f"Method {config.method!r} needs the column(s) {', '.join(missing)}; the data have {have}: "
            f"{'; '.join(how)}."
        )
    reasons = [REASON.format(name) for name in needed]
    text, texts = pa.large_string(), {name: [] for name in (*TEXT_COLUMNS, *reasons) if name in have}
    numbers = {name: [np.empty(0)] for name in needed if name not in (*lists, EMBEDDING)}
    numbers |= {name: [np.empty(0)] for term in measures for name in (term, CODE.format(term))}
    screened = [SCREENED] if "cas" in measures and SCREENED in have else []
    numbers |= {name: [np.empty(0)] for name in screened}
    read = [*needed, *screened, *texts]
    embeddings = []
    for table in _tables(data, read, lists) if read else ():
        flat = {name: _lists(table[name]) for name in lists}
        own = {name: _numbers(table[name]) for name in numbers if name in read}
        measured = {}
        for term, measure in measures.items():
            measured[term], measured[CODE.format(term)] = measure(flat, config.tau, own)
        for name, parts in numbers.items():
            parts.append(measured[name] if name in measured else own[name])
        for name, chunks in texts.items():
            chunks += table[name].cast(text).chunks
        if EMBEDDING in needed:
            values, sizes, _ = _lists(table[EMBEDDING])
            embeddings.append((values.astype(np.float32), sizes))
    columns = {name: np.concatenate(parts) for name, parts in numbers.items()}
    columns |= {EMBEDDING: _matrix(embeddings)} if embeddings else {}
    for name in dict.fromkeys([*TEXT_COLUMNS, *texts]):
        columns[name] = pa.chunked_array(texts.get(name, [pa.nulls(len(data), text)]), text).combine_chunks()
    return columns | {"position": np.arange(len(data))}
