"""Short instruction data beside the selected long rows, as the paper trains: all of it, its first part, or a share."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ..rows.conversations import TEMPLATE_COLUMNS, THOUGHTS, TURN_COLUMNS, SampleError, read_turns, says_something
from ..rows.decoding import from_json
from ..rows.labels import tokenize_for_training
from .config import MixConfig


if TYPE_CHECKING:
    from datasets import Dataset, Features

logger = logging.getLogger(__name__)

LONG, SHORT = "long", "short"
SOURCE_COLUMN = "gateau_source"  # of a mixed row: LONG or SHORT
# What chat templates read of a turn beside its role and content.
TURN_KEYS = ("name", "tool_calls", "tool_call_id", *THOUGHTS)
EMPTY_ANSWER, ITS_QUESTION = "an answer that says nothing", "asked before an answer that says nothing"
NO_ANSWER = "asked at the end, and not answered"


def to_messages(row: dict[str, Any]) -> list[dict[str, Any]]:
    """One row of long or short data as turns of a role, its content and what else a chat template reads, calls of tools for one.

    Turns of the assistant that say nothing, in text, thoughts or calls, are dropped with the question before them, and so is a
    question at the end that nobody answers (arXiv 2410.15633 drops empty assistant answers of ShareGPT).

    Raises:
        SampleError: nothing that the assistant says is left, or the turns are of no known form.
    """
    return _cleaned(row)[0]


def _cleaned(row: dict[str, Any]) -> tuple[list[dict[str, Any]], Counter]:
    """The turns of a row, and how many were dropped, by reason."""
    messages, dropped = [], Counter()
    for turn in _turns(row):
        if turn["role"] != "assistant" or says_something(turn):
            messages.append(turn)
            continue
        dropped[EMPTY_ANSWER] += 1
        while messages and messages[-1]["role"] in ("user", "tool"):
            messages.pop()
            dropped[ITS_QUESTION] += 1
    while messages and messages[-1]["role"] != "assistant":
        messages.pop()
        dropped[NO_ANSWER] += 1
    if not messages:
        raise SampleError("no turn of the assistant has text")
    return messages, dropped


def _turns(row: dict[str, Any]) -> list[dict[str, Any]]:
    turns = read_turns(row)
    if turns is None:
        parts = [row.get(name) for name in ("context", "instruction", "response")]
        if not all(isinstance(part, str) for part in parts):
            raise SampleError("the row has neither messages, conversations, nor context, instruction and response")
        context, instruction, response = parts
        user = f"{context}\n\n{instruction}" if context else instruction
        turns = [{"role": "user", "content": user}, {"role": "assistant", "content": response}]
    if not isinstance(turns, list) or not all(isinstance(turn, Mapping) for turn in turns):
        raise SampleError("messages is no list of turns")
    return [_turn(turn) for turn in turns]


def _turn(turn: Mapping[str, Any]) -> dict[str, Any]:
    role, content = turn.get("role"), turn.get("content")
    if not isinstance(role, str) or not (content is None or isinstance(content, str)):
        raise SampleError("a turn is no text of a role")
    more = {name: turn[name] for name in TURN_KEYS if turn.get(name) is not None}
    return {"role": role, "content": content if content is not None or more else "", **more}


def mix(
    long: Dataset,
    short: Dataset,
    *,
    fraction: float | None = None,
    token_share: float | None = None,
    tokenizer: Any = None,
) -> tuple[Dataset, dict[str, Any]]:
    """Selected long rows and short ones in one dataset, with the columns `messages` and `gateau_source`, and with `tools` and
    `chat_template_kwargs` where either has them.

    Args:
        long, short (`Dataset`): rows with `messages`, `conversations` (ShareGPT's form), or `context`, `instruction` and
            `response`.
        fraction (`float`, *optional*): take the first part of the short rows; all by default.
        token_share (`float`, *optional*): take short rows from the first on until they hold this share of all tokens.
        tokenizer: counts the tokens for `token_share`.

    Returns:
        The mixed dataset, the long rows first (the Trainer shuffles), and its record: `num_rows`, `num_kept`, `dropped`
        (reason -> rows) of the short data, and the settings; where there are any, `dropped_long` (reason -> rows), and
        `dropped_turns` (reason -> turns) of rows that could be read.

    Raises:
        ValueError: a setting out of range, or no short row is left.
    """
    from datasets import concatenate_datasets

    if fraction is not None and not 0.0 < fraction <= 1.0:
        raise ValueError(f"fraction={fraction!r} is not above 0 and at most 1; use e.g. 0.1.")
    if fraction is not None and token_share is not None:
        raise ValueError("fraction and token_share are both given; choose one.")
    if token_share is not None and not 0.0 < token_share < 1.0:
        raise ValueError(f"token_share={token_share!r} is not between 0 and 1; use e.g. 0.3.")
    if token_share is not None and tokenizer is None:
        raise ValueError("token_share counts tokens: give the tokenizer.")
    num_rows = len(short)
    if fraction is not None:
        short = short.select(range(round(fraction * num_rows)))
    features = _features_for(long, short)
    readable, unreadable, turns_of_long = _readable(long, LONG, features)
    short, dropped, turns_of_short = _readable(short, SHORT, features)
    if token_share is not None:
        short = _up_to_share(readable, short, token_share, tokenizer)
    if not len(short):
        raise ValueError(
            f"No row of the {num_rows} short ones is left to mix in ({dict(dropped)}); take more of them."
        )
    if unreadable:
        logger.warning("%d selected rows cannot be trained on: %s", unreadable.total(), dict(unreadable))
    record = {"num_rows": num_rows, "num_kept": len(short), "dropped": dict(dropped)}
    record |= {"fraction": fraction, "token_share": token_share}
    record |= {"dropped_long": dict(unreadable)} if unreadable else {}
    record |= {"dropped_turns": dict(turns)} if (turns := turns_of_long + turns_of_short) else {}
    mixed = concatenate_datasets([readable, short])
    mixed.info.description = long.info.description
    return mixed, record


def load_short(config: MixConfig) -> Dataset:
    """The short data that a `MixConfig` names."""
    from datasets import load_dataset

    from ..files.reading import load_rows

    if config.short_data_file is None:
        return load_rows(
            config.short_data, split=config.short_split, name=config.short_name, revision=config.short_data_revision
        )
    files = {"data_files": config.short_data_file, "revision": config.short_data_revision}
    return load_dataset(config.short_data, split=config.short_split or "train", **files)


def _features_for(*sources: Dataset) -> Features:
    """The types of the mixed columns: turns of a role and its content, or of more, as JSON, where a source may have more."""
    from datasets import Features, Json, List, Value

    columns = {name for ds in sources for name in TEMPLATE_COLUMNS if name in ds.column_names}
    turn = {"role": Value("string"), "content": Value("string")}
    turns = List(Json()) if any(_may_say_more(ds.features) for ds in sources) else [turn]
    return Features({"messages": turns, SOURCE_COLUMN: Value("string"), **{name: Json() for name in sorted(columns)}})


def _may_say_more(features: Features) -> bool:
    """Whether turns can have `TURN_KEYS`, by their types."""
    columns = [features[name] for name in TURN_COLUMNS if name in features]
    turns = [column[0] if isinstance(column, list) else getattr(column, "feature", column) for column in columns]
    return any(not isinstance(turn, dict) or bool(turn.keys() & {*TURN_KEYS}) for turn in turns)


def _readable(ds: Dataset, source: str, features: Features) -> tuple[Dataset, Counter, Counter]:
    """The rows as messages, how many could not be read, and how many turns of the others were dropped, by reason."""
    from datasets import Dataset, Features, Json, Value

    features = Features({**features, "reason": Value("string"), "turns": Json()})

    if not len(ds):  # of which `map` would make no new columns
        empty = Dataset.from_dict({name: [] for name in features}, features)
        return empty.remove_columns(["reason", "turns"]), Counter(), Counter()

    def convert(row: dict) -> dict:
        kept = {name: from_json(row.get(name)) for name in TEMPLATE_COLUMNS if name in features}
        if "chat_template_kwargs" in kept:
            kept["chat_template_kwargs"] = kept["chat_template_kwargs"] or {}  # SFTTrainer unpacks it
        try:
            messages, dropped = _cleaned(row)
            return {"messages": messages, SOURCE_COLUMN: source, "reason": None, "turns": dict(dropped), **kept}
        except SampleError as error:
            return {"messages": [], SOURCE_COLUMN: source, "reason": str(error), "turns": {}, **kept}

    converted = ds.with_format(None).map(
        convert, remove_columns=ds.column_names, features=features, desc=f"Reading {source} rows"
    )
    reasons = Counter(reason for reason in converted["reason"] if reason is not None)
    turns = sum((Counter(dropped) for dropped in converted["turns"]), Counter())
    if reasons:
        converted = converted.filter(lambda reason: reason is None, input_columns=["reason"])
        logger.warning("%d of %d %s rows are left out: %s", reasons.total(), len(ds), source, dict(reasons))
    if turns:
        logger.warning("%d turns of %s rows are left out: %s", turns.total(), source, dict(turns))
    return converted.remove_columns(["reason", "turns"]), reasons, turns


def _up_to_share(long: Dataset, short: Dataset, share: float, tokenizer) -> Dataset:
    """The first short rows whose tokens reach the share of all."""

    def num_tokens(row: dict) -> int:
        try:
            return len(tokenize_for_training(row, tokenizer)["input_ids"])
        except SampleError:
            return 0

    wanted = share / (1 - share) * sum(num_tokens(row) for row in long)
    count = 0
    for row in short:
        if wanted <= 0:
            break
        wanted -= num_tokens(row)
        count += 1
    if wanted > 0:
        logger.warning("All %d short rows together are less than the share of %g that was asked for.", count, share)
    return short.select(range(count))
