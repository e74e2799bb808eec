"""What one sample looks like in a terminal: its numbers, what its segments tell, and the text of those that tell most."""

from __future__ import annotations

import math
import textwrap
from typing import Any

from ..models.packing import Cut
from .segments import (
    FULL,
    SLIGHT,
    cut_mark,
    merge_segments,
    nothing_told,
    segment_measures,
    telling_segments,
    text_read,
)
from .texts import sample_texts, shortened


BLOCKS = "▁▂▃▄▅▆▇█"
NAME_WIDTH, SEGMENT_WIDTH, TEXT_WIDTH, MIN_BLOCKS = 12, 700, 300, 10  # characters


def strip(values: list[float], full: float) -> str:
    """One block a value, from zero to `full` and more; a blank where there is nothing to show, or less."""
    eighths = (0 if value < SLIGHT * full else math.ceil(min(1, value / full) * len(BLOCKS)) for value in values)
    return "".join(BLOCKS[number - 1] if number else " " for number in eighths)


def need_of(row: dict[str, Any]) -> float | None:
    """Nats a token by which the response is likelier for the long model than for the short sibling."""
    short, long = (row.get(f"gateau_ppl_{name}") or math.nan for name in ("short", "long"))
    need = math.log(short) - math.log(long) if short > 0 and long > 0 else math.nan
    return need if math.isfinite(need) else None


def sample_text(row: dict[str, Any], num_ranked: int, width: int = 100, cut: Cut | None = None) -> str:
    """A ranked sample for the terminal.

    Args:
        row: a row with raw and derived columns, and `messages` or the explicit columns.
        num_ranked (`int`): how many rows have a rank.
        width (`int`): characters in a line.
        cut: how contexts were cut into segments, see `segments.cut_of`.
    """
    ppl = {name: _number(row.get(f"gateau_ppl_{name}"), 2) for name in ("short", "long", "no_context")}
    terms = [
        f"{name.upper()} {row[f'gateau_{name}']:.3f}"
        for name in ("hmp", "cas")
        if row.get(f"gateau_{name}") is not None
    ]
    name = "" if row.get("id") is None else f"  id {shortened(str(row['id']), width)}"
    lines = [
        f"rank {row['gateau_rank']} of {num_ranked}{name}  score {row['gateau_score']:.4f}  {'  '.join(terms)}".rstrip(),
        f"perplexity  short {ppl['short']}  long {ppl['long']}  without context {ppl['no_context']}  need {_number(need_of(row), 2)}",
        *_segment_lines(row, width),
        *_context_lines(row, width, cut),
    ]
    for name, text in zip(("instruction", "response"), sample_texts(row)[1:], strict=True):
        lines += _wrapped(name, shortened(text, TEXT_WIDTH), width)
    return "\n".join(lines)


def _number(value: float | None, digits: int) -> str:
    return "unknown" if value is None else f"{value:.{digits}f}"


def _segment_lines(row: dict[str, Any], width: int) -> list[str]:
    """The end of the context is on the right."""
    lines, measures = [], segment_measures(row)
    for name, values in measures.bars.items():
        blocks = merge_segments(values, max(MIN_BLOCKS, width - 45))
        per_block = -(-len(values) // len(blocks))
        unit = f"{len(values)} segments" + (f", {per_block} to a block" if per_block > 1 else "")
        lines.append(f"{name:<{NAME_WIDTH}}│{strip(blocks, FULL[name])}│{'' if lines else f' {unit}'}")
    return lines


def _context_lines(row: dict[str, Any], width: int, cut: Cut | None) -> list[str]:
    """The segments that tell most, each with its text; where none does, the ends of what the models read."""
    told, mark = telling_segments(row, cut), cut_mark(row)
    lines = _wrapped("context", mark, width) if mark else []
    for segment in told:
        lines += textwrap.wrap(segment.label, width)
        lines += textwrap.wrap(
            shortened(segment.text or "", SEGMENT_WIDTH), width, initial_indent="    ", subsequent_indent="    "
        )
    if not told:
        lines += filter(None, [nothing_told(row)])
        lines += _wrapped("context", shortened(text_read(row) or "", width - NAME_WIDTH), width)
    return lines


def _wrapped(name: str, text: str, width: int) -> list[str]:
    indents = {"initial_indent": f"{name:<{NAME_WIDTH}}", "subsequent_indent": " " * NAME_WIDTH}
    return textwrap.wrap(text, max(width, 2 * NAME_WIDTH), **indents) or [name]
