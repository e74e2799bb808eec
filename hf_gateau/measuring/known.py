"""What is known of a row once it is tokens, and before anything is measured of it."""

from collections.abc import Mapping
from typing import Any

from ..models.packing import Cut
from ..rows.batches import COLUMNS, LAYOUT_COLUMNS, RESPONSE_COLUMNS
from ..rows.conversations import content_hash
from ..rows.samples import Sample


# Name -> type: columns, and what work is divided by.
ABOUT = {
    "key": "string",
    "context_key": "string",
    "num_prefix_tokens": "int64",
    "num_tokens": "int64",
    **{name: COLUMNS[name] for name in ("gateau_num_context_tokens", "gateau_num_response_tokens", *LAYOUT_COLUMNS)},
    **{name: COLUMNS[name] for name in ("gateau_error", "gateau_content_hash")},
}


def about(row: Mapping, sample: Sample | str, cut: Cut) -> dict[str, Any]:
    """All of a laid-out row but its tokens: one value for each of `ABOUT`, null where the row cannot be measured; `cut` says which
    segments it has."""
    known = dict.fromkeys(ABOUT) | {"gateau_content_hash": content_hash(row)}
    if isinstance(sample, str):
        return known | {"gateau_error": sample}
    text, starts = sample.response_text() or (None, None)
    return known | {
        "key": sample.key,
        "context_key": sample.context_key,
        "num_prefix_tokens": sample.context_start,
        "num_tokens": sample.response_end,
        "gateau_num_context_tokens": len(sample.context),
        "gateau_num_response_tokens": len(sample.response),
        "gateau_truncated": sample.num_truncated > 0,
        "gateau_num_cut_tokens": sample.num_truncated,
        "gateau_context_rule": sample.rule,
        "gateau_context_span": sample.span,
        "gateau_segment_starts": sample.places(cut.starts(len(sample.context))),
        **dict(zip(RESPONSE_COLUMNS, (text, starts), strict=True)),
    }
