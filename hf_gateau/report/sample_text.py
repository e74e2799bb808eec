"""What one sample looks like in a terminal: its numbers, what its segments tell, and the text of those that tell most."""

from __future__ import annotations

import math
import textwrap
from itertools import groupby
from typing import Any

from ..models.packing import Cut
from .marking import Piece, pieces, stretches
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
from .tokens import STEPS, ResponseTokens, response_tokens


BLOCKS = "▁▂▃▄▅▆▇█"
# ANSI: black on a deepening orange of the 256 colours, so that it can be read on a light and on a dark terminal; level 4 is bold
INKS = ("38;5;16;48;5;230", "38;5;16;48;5;223", "38;5;16;48;5;215", "1;38;5;16;48;5;208")
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


def sample_text(
    row: dict[str, Any],
    num_ranked: int,
    width: int = 100,
    cut: Cut | None = None,
    tokens: ResponseTokens | None = None,
    is_coloured: bool = False,
) -> str:
    """A ranked sample for the terminal.

    Args:
        row: a row with raw and derived columns, and `messages` or the explicit columns.
        num_ranked (`int`): how many rows have a rank.
        width (`int`): characters in a line.
        cut: how contexts were cut into segments, see `segments.cut_of`.
        tokens: of its response; see `tokens.response_tokens`. Default: those that there are, with tau as it is by default.
        is_coloured (`bool`): whether what needs far context is coloured; else it stands in brackets.
    """
    ppl = {name: _number(row.get(f"gateau_ppl_{name}"), 2) for name in ("short", "long", "no_context")}
    terms = [
        f"{name.upper()} {row[f'gateau_{name}']:.3f}"
        for name in ("hmp", "cas")
        if row.get(f"gateau_{name}") is not None
    ]
    name = "" if row.get("id") is None else f"  id {shortened(str(row['id']), width)}"
    tokens = tokens or response_tokens(row, None, cut)
    lines = [
        f"rank {row['gateau_rank']} of {num_ranked}{name}  score {row['gateau_score']:.4f}  {'  '.join(terms)}".rstrip(),
        f"perplexity  short {ppl['short']}  long {ppl['long']}  without context {ppl['no_context']}  need {_number(need_of(row), 2)}",
        *(_wrapped("note", shortened(row["gateau_note"], TEXT_WIDTH), width) if row.get("gateau_note") else []),
        *_segment_lines(row, width, tokens),
        *_context_lines(row, width, cut),
    ]
    _, instruction, response = sample_texts(row)
    lines += _wrapped("instruction", shortened(instruction, TEXT_WIDTH), width)
    if tokens.missing:
        return "\n".join([*lines, *_wrapped("response", shortened(response, TEXT_WIDTH), width)])
    lines += _marked("response", pieces(tokens, TEXT_WIDTH), width, is_coloured)
    for place, stretch in enumerate(stretches(tokens)):
        lines += _wrapped("" if place else "needs", stretch.label, width)
    return "\n".join(lines)


def marks_legend(is_coloured: bool) -> str:
    """How a response is marked, and what for, in words."""
    marked = "tokens that only far context tells, by nats above tau"
    if not is_coloured:
        return f"brackets are around {marked}; 'needs' names the best far segment of those of most need"
    top = f"{STEPS[-1]:g}"
    steps = [*(f"up_to_{step:g}".replace("_", "\u00a0") for step in STEPS[1:]), f"above\u00a0{top}"]
    shown = " ".join(painted(f"\u00a0{step}\u00a0", level) for level, step in enumerate(steps, 1))
    return f"colours are on {marked}: {shown}; 'needs' names the best far segment of those of most need"


def painted(text: str, level: int) -> str:
    """A text in the colours of its level of need."""
    return f"\x1b[{INKS[level - 1]}m{text}\x1b[0m" if level else text


def _marked(name: str, shown: list[Piece], width: int, is_coloured: bool) -> list[str]:
    """Pieces in lines, coloured or with brackets around what needs far context."""
    letters: list[tuple[str, int]] = []
    for i, piece in enumerate(shown):
        before, after = (shown[x].level if 0 <= x < len(shown) else 0 for x in (i - 1, i + 1))
        marks = ("[" * (not before), "]" * (not after)) if piece.level and not is_coloured else ("", "")
        letters += [(letter, piece.level) for letter in f"{marks[0]}{piece.text}{marks[1]}"]
    rest = iter(letters)
    lines = []
    for line in _wrapped(name, "".join(letter for letter, _ in letters), width):
        if not is_coloured:
            lines.append(line)
            continue
        # Wrapping leaves out white space alone: what a line holds are the next letters.
        head, text = line[:NAME_WIDTH], line[NAME_WIDTH:]
        levels = [next(level for letter, level in rest if letter == wanted) for wanted in text]
        runs = groupby(zip(levels, text, strict=True), key=lambda pair: pair[0])
        lines.append(head + "".join(painted("".join(x for _, x in run), level) for level, run in runs))
    return lines


def _number(value: float | None, digits: int) -> str:
    return "unknown" if value is None else f"{value:.{digits}f}"


def _segment_lines(row: dict[str, Any], width: int, tokens: ResponseTokens) -> list[str]:
    """The end of the context is on the right."""
    lines, bars = [], segment_measures(row).bars
    if bars and any(told := tokens.of_segments(len(bars["gain"]))):
        bars["far need"] = told
    for name, values in bars.items():
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
