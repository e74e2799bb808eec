"""What one sample looks like, as text: its numbers, its segments' importance and attention, the ends of what it says."""

from typing import Any

import numpy as np

from ..rows.parts import texts_of


BLOCKS = "▁▂▃▄▅▆▇█"


def strip(values: list[float]) -> str:
    """One block a value, from the lowest to the highest; a line of middling blocks where all are equal."""
    low, high = min(values), max(values)
    if high == low:
        return BLOCKS[3] * len(values)
    return "".join(BLOCKS[round((value - low) / (high - low) * (len(BLOCKS) - 1))] for value in values)


def sample_text(row: dict[str, Any], num_ranked: int, width: int = 100) -> str:
    """A ranked sample for the terminal: its numbers, its segments' importance and attention, its instruction and response.

    Args:
        row: a row with raw and derived columns, and `messages` or the explicit columns.
        num_ranked (`int`): how many rows have a rank.
        width (`int`): characters in a line.
    """
    ppl = {name: _number(row.get(f"gateau_ppl_{name}"), 2) for name in ("short", "long", "no_context")}
    terms = [f"{name} {row[f'gateau_{name}']:.3f}" for name in ("hmp", "cas") if row.get(f"gateau_{name}") is not None]
    lines = [
        f"rank {row['gateau_rank']} of {num_ranked}  id {row.get('id')}  score {row['gateau_score']:.4f}  {'  '.join(terms)}",
        f"perplexity  short {ppl['short']}  long {ppl['long']}  without context {ppl['no_context']}",
        *_segment_lines(row, width),
    ]
    context, instruction, response = sample_texts(row)
    for name, text in (("context", context), ("instruction", instruction), ("response", response)):
        lines.append(f"{name:<12}{shortened(text, width - 12)}")
    return "\n".join(lines)


def _number(value: float | None, digits: int) -> str:
    return "unknown" if value is None else f"{value:.{digits}f}"


def _segment_lines(row: dict[str, Any], width: int) -> list[str]:
    """Tall = this segment alone tells much of the response, or gets much of its attention; the end is on the right."""
    if not (measures := segment_measures(row)):
        return []
    num_segments = len(measures["importance"])
    merged = {name: merge_segments(values, max(1, width - 30)) for name, values in measures.items()}
    per_block = -(-num_segments // len(merged["importance"]))
    unit = f"{num_segments} segments" + (f", {per_block} to a block" if per_block > 1 else "")
    return [f"importance  {strip(merged['importance'])}  {unit}", f"attention   {strip(merged['attention'])}"]


def segment_measures(row: dict[str, Any]) -> dict[str, list[float]]:
    """`importance`, minus the log of a segment's perplexity, and `attention`, a value a segment; high = matters.

    Empty where the row has no segments, or a value that is null or not finite.
    """
    columns = [row.get(f"gateau_segment_{name}") or [] for name in ("ppl", "attention")]
    ppl, attention = (np.array(column, dtype=np.float64) for column in columns)
    if not len(ppl) or len(ppl) != len(attention) or not (np.isfinite(ppl).all() and np.isfinite(attention).all()):
        return {}
    return {"importance": (-np.log(ppl)).tolist(), "attention": attention.tolist()} if ppl.min() > 0 else {}


def merge_segments(values: list[float], num_blocks: int) -> list[float]:
    """The highest value of each block of neighbours, at most `num_blocks` of them."""
    per_block = -(-len(values) // num_blocks)
    return [max(values[start : start + per_block]) for start in range(0, len(values), per_block)]


def in_words(name: str, values: list[float]) -> str:
    """Where along its segments a measure of a sample is highest."""
    high = max(values)
    where = f"the highest {name} at segment {values.index(high) + 1} of {len(values)}"
    return f"{len(values)} segments; {where if high > min(values) else f'{name} is equal in all of them'}"


def sample_texts(row: dict[str, Any]) -> tuple[str, str, str]:
    """Context, instruction and response of a row in any of the forms that can be measured; empty where there is none."""
    before, context, instruction, response = texts_of(row)
    return context, instruction or before, response


def shortened(text: str, width: int) -> str:
    """The beginning and the end of a text on one line."""
    text = " ".join(text.split())
    half = (width - 5) // 2
    return text if len(text) <= width else f"{text[:half]} ... {text[-half:]}"
