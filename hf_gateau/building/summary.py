"""What a build found and made, in words and figures for the command line and for the record beside the rows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from ..report.sample_text import BLOCKS
from .contexts import Context, length_ranges, range_of
from .rows import BuiltRow


def range_names(ranges: Sequence[tuple[int, int]]) -> list[str]:
    """Names of ranges of lengths."""
    return [f"{low:,} to {high:,}" for low, high in ranges]


def lengths_by_range(contexts: Sequence[Context], min_tokens: int, max_tokens: int) -> dict[str, int]:
    """Range of lengths -> contexts."""
    ranges = length_ranges(min_tokens, max_tokens)
    found = Counter(range_of(context.num_tokens, ranges) for context in contexts)
    return {name: found[i] for i, name in enumerate(range_names(ranges))}


def histogram(counts: dict[str, int]) -> list[str]:
    """A line a range, with a bar."""
    most = max(counts.values(), default=0) or 1
    width = max(len(name) for name in counts)
    return [
        f"  {name:>{width}}  {number:>7,}  {BLOCKS[-1] * round(30 * number / most)}" for name, number in counts.items()
    ]


def table_of(rows: Sequence[BuiltRow], min_tokens: int, max_tokens: int) -> dict[str, dict[str, int]]:
    """Task type -> range of lengths -> rows."""
    types = dict.fromkeys(row.task.task_type for row in rows)
    return {
        name: lengths_by_range(
            [row.task.context for row in rows if row.task.task_type == name], min_tokens, max_tokens
        )
        for name in sorted(types)
    }


def table_lines(table: dict[str, dict[str, int]]) -> list[str]:
    """A table of counts with their sums."""
    columns = [*next(iter(table.values()), {}), "all"]
    body = {name: [*counts.values(), sum(counts.values())] for name, counts in table.items()}
    body["all"] = [sum(column) for column in zip(*body.values(), strict=True)]
    width = max(len(name) for name in columns) + 2
    lines = [f"  {'tokens of context':<18}" + "".join(f"{name:>{width}}" for name in columns)]
    return lines + [f"  {name:<18}" + "".join(f"{x:>{width},}" for x in counts) for name, counts in body.items()]
