"""Rows that somebody has measured before, possibly elsewhere: take what is known of them, and measure the others alone."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING

from ..measuring.survey import survey_rows
from ..ranking.bounds import SCREENED
from ..records import attach_record, column_of, find_record
from ..rows.batches import LAYOUT_COLUMNS
from .scored import compact, compact_type, content_hashes, gateau_columns


if TYPE_CHECKING:
    from datasets import Dataset

    from ..measuring.scorer import GateauScorer

logger = logging.getLogger(__name__)

MOST_SHOWN = 3
ROWS_A_LOOK = 4_096  # read at a time


def reuse_scores(
    ds: Dataset, scored: Dataset, scorer: GateauScorer | None = None, *, measure: Callable | None = None
) -> Dataset:
    """Rows with the measurements that `scored` has of the same rows; rows that are new to it are measured alone.

    Rows are the same if they say the same (`gateau_content_hash`), wherever they stand and whatever else is in them; and, with
    a scorer, if its tokenizer, chat template, `find_context` and lengths make the tokens of them that were measured
    (`gateau_key`). A row that says the same in other tokens is measured anew.

    Args:
        ds (`Dataset`): rows, measured or not.
        scored (`Dataset`): measured rows, such as `load_scored` gives.
        scorer (`GateauScorer`, *optional*): measures new rows; its settings and models must be those of `scored`. Without one
            what is known is taken as it is.
        measure (`Callable`, *optional*): from new rows to measured ones. Default: `rows.map(scorer, batched=True)`.

    Returns:
        `ds` with the measured columns, not ranked.

    Raises:
        ValueError: `scored` is not measured; there are new rows and no scorer; or the scorer measures in another way.
        OSError: a model of the scorer is not found.
    """
    from datasets import concatenate_datasets

    if not len(ds):
        raise ValueError("There are no rows to take measurements for; give one or more.")
    places = known_places(ds, scored)
    if scorer is not None:
        if scorer.measure_config.segments_for is not None:
            raise ValueError(
                f"segments_for={scorer.measure_config.segments_for} chooses among all rows as they are measured, and the scored "
                "rows are not measured now; leave one of the two out."
            )
        places = _with_segments(scored, places)
        take_window(scorer, scored)
        _check_scorer(places.count(None), scored, scorer)
        places = _laid_out_alike(ds, scored, places, scorer)
    new = [i for i, place in enumerate(places) if place is None]
    known = [place for place in places if place is not None]
    parts = [compact(scored.select(known))] if known else []
    if new:
        if scorer is None:
            raise ValueError(
                f"{len(new)} of {len(ds)} rows are new to the scored data, and no pair of models is named to measure them. "
                "Name the one that measured the others (long_model, short_window, ...), or leave the new rows out."
            )
        measure = measure or (lambda rows: rows.map(scorer, batched=True, desc="New rows"))
        parts.append(compact(measure(ds.select(new))))
    logger.info("%d rows were measured before, %d are new.", len(known), len(new))
    parts = [_with_layout(part) for part in parts]
    shared = [name for name in parts[0].column_names if all(name in part.column_names for part in parts)]
    parts = [part.select_columns(shared) for part in parts]  # what other scorers measured of some rows is left out
    order = {row: at for at, row in enumerate([*(i for i, place in enumerate(places) if place is not None), *new])}
    numbers = concatenate_datasets(parts).select([order[i] for i in range(len(ds))]).flatten_indices()
    texts = ds.remove_columns(gateau_columns(ds))
    out = concatenate_datasets([texts, numbers], axis=1)
    out.info.description = ds.info.description
    if (measuring := find_record(scored, "measuring")) is not None:
        attach_record(out, "measuring", measuring)
    return out


def _with_segments(scored: Dataset, places: list[int | None]) -> list[int | None]:
    """The places without those whose segments were left out (`segments_for`), which a scorer measures."""
    if SCREENED not in scored.column_names:
        return places
    read = scored.select_columns([SCREENED, "gateau_segment_ppl"]).with_format("arrow")
    lacking = [
        bool(is_low) and is_null
        for table in read.iter(ROWS_A_LOOK)
        for is_low, is_null in zip(
            table[SCREENED].to_pylist(), table["gateau_segment_ppl"].is_null().to_pylist(), strict=True
        )
    ]
    return [None if place is None or lacking[place] else place for place in places]


def _with_layout(part: Dataset) -> Dataset:
    """Measured columns with those of the layout, null where the rows were measured before there were such columns."""
    import pyarrow as pa
    from datasets import Features

    missing = [name for name in LAYOUT_COLUMNS if name not in part.column_names]
    for name in missing:
        feature = Features.from_arrow_schema(pa.schema([(name, compact_type(name))]))[name]
        part = part.add_column(name, [None] * len(part), feature=feature)
    return part


def take_window(scorer: GateauScorer, scored: Dataset) -> None:
    """Give a scorer whose `short_window` is open that of the scored data, with which its numbers are to compare."""
    window = ((find_record(scored, "measuring") or {}).get("short") or {}).get("window")
    if scorer.pair_config.window_is_open and window is not None:
        scorer.configure(short_window=window)


def known_places(ds: Dataset, scored: Dataset) -> list[int | None]:
    """For each row the position in `scored` of one that says the same; None where there is none, or it could not be measured."""
    needed = {"gateau_content_hash", "gateau_error", "gateau_key"}
    if missing := needed - set(scored.column_names):
        raise ValueError(f"The scored rows lack the column(s) {', '.join(sorted(missing))}; measure them again.")
    table = scored.select_columns(sorted(needed)).with_format(None)[:]
    pairs = enumerate(zip(table["gateau_content_hash"], table["gateau_error"], strict=True))
    places = {content: i for i, (content, error) in pairs if error is None}
    return [places.get(content) for content in content_hashes(ds)]


def _check_scorer(num_new: int, scored: Dataset, scorer: GateauScorer) -> None:
    """Refuse a scorer whose numbers do not compare with those that there are."""
    keys = {key.partition(":")[0] for key in scored["gateau_key"] if key is not None}
    ours, theirs = scorer.describe(), find_record(scored, "measuring") or {}
    if keys - {ours["config_key"]} or theirs.get("max_length", ours["max_length"]) != ours["max_length"]:
        raise ValueError(
            f"The scored rows were measured in another way ({', '.join(sorted(keys)[:MOST_SHOWN])}) than the {num_new} new "
            f"ones would be ({ours['config_key']}: {ours}), so they do not compare. Name the same models, revisions, dtype, "
            "segment_length and max_length; or no scorer, to take known rows as they are."
        )


def _laid_out_alike(ds: Dataset, scored: Dataset, places: list[int | None], scorer: GateauScorer) -> list[int | None]:
    """The places without those whose tokens the scorer would not measure. No row is laid out where the record says that all
    were as they would be now."""
    theirs = (find_record(scored, "measuring") or {}).get("layout_key")
    known = [i for i, place in enumerate(places) if place is not None]
    if not known or theirs == scorer.describe()["layout_key"]:
        return places
    config_key, keys = scorer.start().config_key, survey_rows(ds.select(known), scorer)["key"]
    columns = (column_of(scored, name) for name in ("gateau_content_hash", "gateau_key", "gateau_error"))
    measured = {(said, key): i for i, (said, key, error) in enumerate(zip(*columns, strict=True)) if error is None}
    hashes = column_of(scored.select([places[i] for i in known]), "gateau_content_hash")
    found = {i: measured.get((said, f"{config_key}:{key}")) for i, said, key in zip(known, hashes, keys, strict=True)}
    other = list(found.values()).count(None)
    if other:
        logger.warning(
            "%d of %d known rows are other tokens here than those that were measured: of another tokenizer, chat template, "
            "find_context or length. They are measured anew.",
            other, len(known),
        )  # fmt: skip
    return [found.get(i) for i in range(len(places))]
