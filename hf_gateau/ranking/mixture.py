"""Short instruction data beside the selected long rows, as the paper trains: all of it, its first part, or a share."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ..rows.conversations import SampleError, read_turns
from ..rows.labels import tokenize_for_training
from .config import MixConfig


if TYPE_CHECKING:
    from datasets import Dataset

logger = logging.getLogger(__name__)

LONG, SHORT = "long", "short"
SOURCE_COLUMN = "gateau_source"  # of a mixed row: LONG or SHORT


def to_messages(row: dict[str, Any]) -> list[dict[str, str]]:
    """One row of long or short data as turns of role and content alone, ready for a chat template.

    Turns of the assistant without text are dropped with the question before them, and so is a question at the end that
    nobody answers (arXiv 2410.15633 drops empty assistant answers of ShareGPT).

    Raises:
        SampleError: nothing that the assistant says is left, or the turns are of no known form.
    """
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
    messages: list[dict[str, str]] = []
    for turn in turns:
        role, content = turn.get("role"), turn.get("content")
        if not isinstance(role, str) or not (content is None or isinstance(content, str)):
            raise SampleError("a turn is no text of a role")
        if role == "assistant" and not (content or "").strip():
            while messages and messages[-1]["role"] in ("user", "tool"):
                messages.pop()
        else:
            messages.append({"role": role, "content": content or ""})
    while messages and messages[-1]["role"] != "assistant":
        messages.pop()
    if not messages:
        raise SampleError("no turn of the assistant has text")
    return messages


def mix(
    long: Dataset,
    short: Dataset,
    *,
    fraction: float | None = None,
    token_share: float | None = None,
    tokenizer: Any = None,
) -> tuple[Dataset, dict[str, Any]]:
    """Selected long rows and short ones in one dataset, with the columns `messages` and `gateau_source`.

    Args:
        long, short (`Dataset`): rows with `messages`, `conversations` (ShareGPT's form), or `context`, `instruction` and
            `response`.
        fraction (`float`, *optional*): take the first part of the short rows; all by default.
        token_share (`float`, *optional*): take short rows from the first on until they hold this share of all tokens.
        tokenizer: counts the tokens for `token_share`.

    Returns:
        The mixed dataset, the long rows first (the Trainer shuffles), and its record: `num_rows`, `num_kept`, `dropped`
        (reason -> rows) of the short data, and the settings.

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
    readable, unreadable = _readable(long, LONG)
    short, dropped = _readable(short, SHORT)
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


def _readable(ds: Dataset, source: str) -> tuple[Dataset, Counter]:
    """The rows as messages, and how many could not be read, by reason."""
    from datasets import Dataset, Features, Value

    turn = {"role": Value("string"), "content": Value("string")}
    features = Features({"messages": [turn], SOURCE_COLUMN: Value("string"), "reason": Value("string")})

    if not len(ds):  # of which `map` would make no new columns
        return Dataset.from_dict({name: [] for name in features}, features).remove_columns("reason"), Counter()

    def convert(row: dict) -> dict:
        try:
            return {"messages": to_messages(row), SOURCE_COLUMN: source, "reason": None}
        except SampleError as error:
            return {"messages": [], SOURCE_COLUMN: source, "reason": str(error)}

    converted = ds.map(convert, remove_columns=ds.column_names, features=features, desc=f"Reading {source} rows")
    reasons = Counter(reason for reason in converted["reason"] if reason is not None)
    if reasons:
        converted = converted.filter(lambda reason: reason is None, input_columns=["reason"])
        logger.warning("%d of %d %s rows are left out: %s", reasons.total(), len(ds), source, dict(reasons))
    return converted.remove_columns("reason"), reasons


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
