"""Columns that some methods need and `gateau_score` does not measure: supplied by the models that are named for it."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ..measuring.embeddings import EmbeddingScorer
from ..measuring.responses import ResponseScorer
from ..measuring.rewards import RewardScorer
from ..measuring.together import main_process_first, values_together
from ..measuring.value_scorer import ValueScorer, told_and_recorded
from ..records import column_of, find_record
from ..rows.batches import COLUMNS, VALUE_COLUMNS, BatchShape
from ..rows.conversations import SampleError
from ..rows.samples import build_sample
from ..store.folder import known_description
from .columns import HOW_TO_MEASURE
from .config import MethodModelsConfig, RankConfig, RunConfig
from .formulas import EMBEDDING, LENGTHS, needed_columns


if TYPE_CHECKING:
    from datasets import Dataset

logger = logging.getLogger(__name__)

RESPONSE, REWARD = "gateau_ppl_response", "gateau_reward"
CHECKED_ROWS = 5


def missing_values(config: RankConfig, columns: list[str]) -> list[str]:
    """Columns that the method needs, that are not there, and that `measure_missing` can supply."""
    supplied = (*VALUE_COLUMNS, *(LENGTHS if config.method == "longest" else ()))
    return [name for name in needed_columns(config) if name in supplied and name not in columns]


def measure_missing(
    ds: Dataset, config: RankConfig, models: MethodModelsConfig, run: RunConfig, long: dict[str, Any] | None = None
) -> Dataset:
    """Rows with the columns that a method needs beyond those of `gateau_score`; what is there is left as it is.

    Every process of a launch calls this, and measures a part.

    Args:
        ds (`Dataset`): rows with their texts.
        config: which method.
        models: what to measure with. Without a `response_model`, `long` is taken, or else the long model on record; without a
            `length_model`, `long`.
        run: device, dtype, store and the like.
        long (`dict`, *optional*): arguments of the `ResponseScorer` with the long model of the pair at hand.

    Raises:
        ValueError: no model is named that could measure a column, or the one on record is no more what it was.
        OSError: a model is not found.
    """
    missing = missing_values(config, ds.column_names)
    if missing and config.method == "longest":
        return _with_lengths(ds, models, run, long)
    scorers = [_scorer(ds, name, models, run, long) for name in missing]
    for scorer in scorers:  # wrong models are told before the first is run
        _ = scorer.config_key
        if isinstance(scorer, ResponseScorer):
            _check_response(ds, scorer)
    for scorer in scorers:
        ds = told_and_recorded(values_together(ds, scorer), scorer)
    return ds


def _with_lengths(ds: Dataset, models: MethodModelsConfig, run: RunConfig, long: dict[str, Any] | None) -> Dataset:
    """Rows with `LENGTHS`, of whole contexts; `gateau_error` says why a row has none. Loads no weights."""
    if models.length_model is None and long is None:
        raise ValueError(f"The rows are not measured, and no model is named: {HOW_TO_MEASURE[LENGTHS[0]]}.")
    settings = long if models.length_model is None else {"model": models.length_model, **vars(run)}
    counting = ResponseScorer(**settings)
    _ = counting.pair  # a model that is not there is told before any row
    options = {"batched": True, "fn_kwargs": {"counting": counting}, "desc": "Lengths"}
    return main_process_first(counting, lambda: ds.map(_lengths, **options))


def _lengths(batch: Mapping[str, Any], counting: ResponseScorer) -> Any:
    shape, found = BatchShape(batch), []
    for row in shape.rows:
        try:
            sample = build_sample(row, counting.pair.tokenizer, find_context=counting.find_context)
            found.append((len(sample.context), len(sample.response), None))
        except SampleError as error:
            found.append((None, None, str(error)))
    columns = {name: COLUMNS[name] for name in (*LENGTHS, "gateau_error")}
    return shape.pack([dict(zip(columns, values, strict=True)) for values in found], columns)


def _scorer(
    ds: Dataset, column: str, models: MethodModelsConfig, run: RunConfig, long: dict[str, Any] | None
) -> ValueScorer:
    how = vars(run)
    if column == REWARD and models.reward_model is not None:
        settings = {"revision": models.reward_revision, "max_length": models.reward_max_length}
        return RewardScorer(models.reward_model, **settings, **how)
    if column == EMBEDDING and models.embedding_model is not None:
        settings = {"revision": models.embedding_revision, "embed_context": models.embed_context}
        return EmbeddingScorer(models.embedding_model, **settings, **how)
    if column == RESPONSE and models.response_model is None and long is not None:
        return ResponseScorer(**long)
    if column == RESPONSE:
        return _response_scorer(ds, models, how)
    raise ValueError(
        f"The rows have no column {column}, and no model is named to measure it: {HOW_TO_MEASURE[column]}."
    )


def _response_scorer(ds: Dataset, models: MethodModelsConfig, how: dict[str, Any]) -> ResponseScorer:
    """With the model that is named, else with the one that measured the rows, as it was then."""
    known = _known_measuring(ds)
    if models.response_model is not None:
        scorer = ResponseScorer(
            models.response_model, revision=models.response_revision, **(_as_measured(known) | _given(how))
        )
        fingerprint = (known or {}).get("long", {}).get("fingerprint")
        if fingerprint not in (None, scorer.description["fingerprint"]):
            logger.warning(
                "%s is not the long model that measured the rows (%s), so IFD compares two models.",
                models.response_model, known["long"]["model"],
            )  # fmt: skip
        return scorer
    if known is None or known["long"].get("adapter"):
        what = "they were measured with an adapter" if known else "nothing tells which one measured the rows"
        raise ValueError(f"No model is named to measure {RESPONSE}, and {what}: {HOW_TO_MEASURE[RESPONSE]}.")
    name, fingerprint = known["long"]["model"], known["long"]["fingerprint"]
    revision = fingerprint if re.fullmatch("[0-9a-f]{40}", fingerprint) else None
    try:
        scorer = ResponseScorer(name, revision=revision, **(_as_measured(known) | _given(how)))
        found = scorer.description["fingerprint"]
    except OSError as error:
        raise ValueError(
            f"The long model on record, {name!r}, cannot be loaded ({error}); name it as response_model, or rank by "
            "method='ifd_context'."
        ) from error
    if found != fingerprint:
        raise ValueError(
            f"{name!r} has other weights ({found}) than when it measured the rows ({fingerprint}); name those as "
            "response_model, or rank by method='ifd_context'."
        )
    return scorer


def _check_response(ds: Dataset, scorer: ResponseScorer) -> None:
    """Refuse to divide the perplexities of other tokens: those of another tokenizer or chat template."""
    if LENGTHS[1] not in ds.column_names:
        return
    for row in ds.select(range(min(CHECKED_ROWS, len(ds)))).with_format(None):
        try:
            found = len(scorer.lay_out(row))
        except SampleError:
            continue
        if row[LENGTHS[1]] not in (None, found):
            raise ValueError(
                f"The response of row {row.get('id')!r} was measured as {row[LENGTHS[1]]} tokens, and has {found} with the "
                f"tokenizer of {scorer.settings['model']!r}, so IFD would compare different tokens. Measure it with the "
                "tokenizer and the response_head that measured the rows, in Python: ds.map(ResponseScorer(MODEL, tokenizer=...), batched=True)."
            )


def _given(how: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that differ from their defaults, and so win over those on record."""
    default = vars(RunConfig())
    return {name: value for name, value in how.items() if value != default[name]}


def _as_measured(known: Mapping[str, Any] | None) -> dict[str, Any]:
    """Settings of the long model as it measured the rows."""
    if known is None:
        return {}
    bits = {f"load_in_{known['bits']}bit": True} if known.get("bits") else {}
    return {"dtype": known["dtype"], "response_head": known.get("response_head"), **bits}


def _known_measuring(ds: Dataset) -> dict[str, Any] | None:
    """What measured the rows: by their record, else by their keys and the store of this machine."""
    if (found := find_record(ds, "measuring")) is not None or "gateau_key" not in ds.column_names:
        return found
    keys = {key.partition(":")[0] for key in column_of(ds, "gateau_key") if key is not None}
    return known_description(keys.pop()) if len(keys) == 1 else None
