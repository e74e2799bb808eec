"""Measured columns as arrays: read batch by batch, so that a long list column never becomes Python objects."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from ..rows.batches import REASON
from .config import RankConfig
from .formulas import (
    CAS,
    CAS_REASONS,
    COSINES,
    EMBEDDING,
    LENGTHS,
    SEGMENT_COLUMNS,
    Rows,
    needed_columns,
    parts_of,
)


if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa
    from datasets import Dataset

DERIVED_COLUMNS = ("gateau_hmp", "gateau_cas", "gateau_score", "gateau_rank", "gateau_percentile", "gateau_note")
TEXT_COLUMNS = ("gateau_error", "gateau_key")  # may be absent


# Column -> how it comes about, where `gateau_score` does not measure it
HOW_TO_MEASURE = {
    "gateau_ppl_response": "ds.map(ResponseScorer(LONG_MODEL), batched=True), or `hf-gateau rank --method ifd "
    "--response_model LONG_MODEL`, measures gateau_ppl_response; method='ifd_context' does without it",
    "gateau_reward": "ds.map(RewardScorer(REWARD_MODEL), batched=True), or `hf-gateau rank --method car --reward_model "
    "REWARD_MODEL`, measures gateau_reward; reward_column names any other column of scores",
    EMBEDDING: "ds.map(EmbeddingScorer(EMBEDDING_MODEL), batched=True), or `hf-gateau rank --method car --embedding_model "
    "EMBEDDING_MODEL`, measures gateau_embedding",
} | dict.fromkeys(
    LENGTHS,
    "`hf-gateau rank --method longest --length_model MODEL` counts lengths with a model's tokenizer, and loads no weights",
)

BATCH_ROWS = 4096  # bounds of what is read at a time: rows, and segment values (one row is never cut)
BATCH_VALUES = 1 << 19
FRAME_TYPES = {"gateau_rank": "Int64", "gateau_note": "string"}  # the others are float64
ARROW_TYPES = {"gateau_rank": "int64", "gateau_note": "string"}


def is_frame(data: object) -> bool:
    import pandas as pd

    return isinstance(data, pd.DataFrame)


def _tables(data: Dataset | pd.DataFrame, names: list[str]) -> Iterator[pa.Table]:
    """The named columns in order, at most BATCH_ROWS rows and about BATCH_VALUES segments at a time."""
    import pyarrow as pa

    if is_frame(data):
        frame = data[names]
        pieces = (frame.iloc[start : start + BATCH_ROWS] for start in range(0, len(frame), BATCH_ROWS))
        tables = (pa.Table.from_pandas(piece, preserve_index=False) for piece in pieces)
    else:
        tables = data.select_columns(names).with_format("arrow").iter(BATCH_ROWS)
    for table in tables:
        sizes = _lists(table[SEGMENT_COLUMNS[0]])[1] if SEGMENT_COLUMNS[0] in names else np.zeros(len(table))
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


def _measure_cas(name: str, table: pa.Table) -> dict[str, np.ndarray]:
    """For each row: CAS, the CAS that uniform attention would give (cosines only), and a code into CAS_REASONS."""
    columns, measure = CAS[name]
    ppl, sizes, no_ppl = _lists(table[columns[0]])
    rows, is_alone = Rows(sizes), len(columns) == 1  # where CAS needs perplexities alone, they stand for both
    attention, attention_sizes, no_attention = (ppl, sizes, no_ppl) if is_alone else _lists(table[columns[1]])
    attention_rows = rows if is_alone else Rows(attention_sizes)
    reasons = [no_ppl, no_attention, sizes != attention_sizes, sizes == 0, sizes == 1]
    bad_ppl = rows.any(~((ppl > 0) & np.isfinite(ppl)))
    reasons += [bad_ppl, bad_ppl if is_alone else attention_rows.any(~np.isfinite(attention))]
    code = np.select(reasons, range(1, len(reasons) + 1), 0)
    value, uniform = np.full((2, len(code)), np.nan)
    good = code == 0
    if good.any():
        if not good.all():
            ppl, attention, rows = ppl[rows.spread(good)], attention[attention_rows.spread(good)], Rows(sizes[good])
        with np.errstate(all="ignore"):  # what overflows, or divides by 0, gets the last reason
            value[good] = measure(ppl, attention, rows)
            if name in COSINES:
                uniform[good] = measure(ppl, 1 / rows.spread(rows.sizes), rows)
    code[good & ~np.isfinite(value)] = len(CAS_REASONS) - 1
    return {"cas": value, "uniform": uniform, "code": code}


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
    """What the method needs, one entry a row: the named numbers, CAS if there is one, `error`, `key`, `position`."""
    import pyarrow as pa

    have = list(data.columns if is_frame(data) else data.column_names)
    needed, cas_name = needed_columns(config), parts_of(config)[1]
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
    numbers = {name: [np.empty(0)] for name in needed if name not in (*SEGMENT_COLUMNS, EMBEDDING)}
    embeddings = []
    if cas_name not in (None, "none"):
        numbers |= {name: [np.empty(0)] for name in ("cas", "uniform", "code")}
    for table in _tables(data, [*needed, *texts]) if needed or texts else ():
        measured = _measure_cas(cas_name, table) if "cas" in numbers else {}
        for name, parts in numbers.items():
            parts.append(measured[name] if name in measured else table[name].cast("float64").to_numpy())
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
