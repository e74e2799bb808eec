"""A row as training sees it: its tokens and labels, cut to the longest row; or why nothing of it can be learned."""

from collections.abc import Mapping
from typing import Any

from .conversations import FindContext, SampleError
from .labels import IGNORED, tokenize_for_training
from .samples import build_sample, truncate_context


TRUNCATION_MODES = ("keep_start", "keep_end")  # TRL's names
NO_TARGETS = "its whole response lies beyond max_length"


def tokens_to_train(
    row: Mapping[str, Any],
    tokenizer,
    *,
    max_length: int | None = None,
    truncation_mode: str = "keep_start",
    find_context: FindContext | None = None,
) -> dict[str, list[int]]:
    """The tokens and labels of a row, at most `max_length` of them.

    Args:
        row, tokenizer: as for `tokenize_for_training`.
        max_length (`int`, *optional*): longest row in tokens; None: nothing is cut.
        truncation_mode (`str`): 'keep_start' keeps the first tokens, as TRL does; 'keep_end' keeps the response whole and
            takes tokens from the left of the context, what stands before it stays: the very tokens that scoring measures.
        find_context: where the context stands, as for `build_sample`; of use to 'keep_end' alone.

    Returns:
        `input_ids` and `labels`, of one length, with a label after the first token.

    Raises:
        SampleError: the row cannot be laid out, cut, or learned from; the message says why.
    """
    tokens = tokenize_for_training(row, tokenizer)
    if max_length is not None and len(tokens["input_ids"]) > max_length:
        cut_left = truncation_mode == "keep_end"
        tokens = _cut_context(tokens, row, tokenizer, max_length, find_context) if cut_left else tokens
        tokens = {name: values[:max_length] for name, values in tokens.items()}
    if not any(label != IGNORED for label in tokens["labels"][1:]):
        raise SampleError(NO_TARGETS)
    return tokens


def _cut_context(
    tokens: dict[str, list[int]], row: Mapping[str, Any], tokenizer, max_length: int, find_context: FindContext | None
) -> dict[str, list[int]]:
    """The tokens without the first of the context, as many as it takes for the response to end within `max_length`."""
    sample = build_sample(row, tokenizer, find_context=find_context)
    if sample.input_ids != tokens["input_ids"]:
        raise SampleError("scoring lays the row out otherwise than training, so its context cannot be shortened")
    num_cut = truncate_context(sample, max_length).num_truncated
    gap = slice(sample.context_start, sample.context_start + num_cut)
    return {name: values[: gap.start] + values[gap.stop :] for name, values in tokens.items()}
