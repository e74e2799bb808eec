"""What a check found, as people read it; see `check.check_rows`. And some rows as they are read, for who is about to measure them."""

import textwrap
from collections.abc import Iterator
from itertools import islice
from typing import Any

from ..rows.batches import readable
from ..rows.conversations import FindContext
from .check import LOOKED_AT, SHOWN_ROWS, shown_rows


WIDTH = 110  # characters of a line
MOST_LINES = 10  # of reasons, columns, roles
PARTS = ("context", "instruction", "response")


def check_text(found: dict[str, Any]) -> str:
    """The check in lines."""
    return "\n".join(
        [*_rows(found), "", *_samples(found["samples"]), "", *_lengths(found["lengths"]), "", *_end(found)]
    )


def preview(ds, find_context: FindContext | None = None, num_rows: int = SHOWN_ROWS) -> list[str]:
    """A few rows as they will be measured, three lines each: their context, instruction and response, and which rule split them.

    Args:
        ds (`datasets.Dataset` or `datasets.IterableDataset`): the rows; of a stream the first ones are read.
        find_context (*optional*): as for `build_sample`.
        num_rows (`int`): how many.
    """
    rows = readable(ds) if hasattr(ds, "__len__") else islice(ds, LOOKED_AT)
    return list(_samples(shown_rows(rows, find_context, num_rows)))


def ends_of(text: str, width: int) -> str:
    """The beginning and the end of a text on one line."""
    text = " ".join(text.split())
    half = (width - 5) // 2
    return text if len(text) <= width else f"{text[:half]} ... {text[-half:]}"


def _samples(samples: list[dict[str, Any]]) -> Iterator[str]:
    for one in samples:
        if "reason" in one:
            yield ends_of(f"row {one['row']} cannot be measured: {one['reason']}", 2 * WIDTH)
            continue
        asked = f"{one['before']} [context] {one['instruction']}" if one["before"].strip() else one["instruction"]
        for title, part, text in zip(
            (f"row {one['row']}", f"({one['rule']})", ""), PARTS, (one["context"], asked, one["response"]), strict=True
        ):
            yield f"{title:<24}{part:<12}| {ends_of(text, WIDTH - 38)}"


def _rows(found: dict[str, Any]) -> Iterator[str]:
    yield f"{found['rows']:,} rows, counted from 0; columns: {', '.join(found['columns'])}"
    forms = ", ".join(f"{form} ({count:,})" for form, count in found["forms"].items())
    yield f"Read from: {forms}"
    if found["form"]:
        yield from textwrap.wrap(f"  {found['form']}", WIDTH, subsequent_indent="  ")
    if found["roles"]:
        roles = list(found["roles"].items())
        more = ", ..." if len(roles) > MOST_LINES else ""
        yield f"Turns by role: {', '.join(f'{role} {count:,}' for role, count in roles[:MOST_LINES])}{more}"
    if found["scripts"]:
        yield f"Rows by script: {', '.join(f'{script} {count:,}' for script, count in found['scripts'].items())}"
    if found["nulls"]:
        yield f"Rows with null in a column: {', '.join(f'{name} {count:,}' for name, count in found['nulls'].items())}"
    for rule, told in found["rules"].items():
        yield f"  {told['rows']:,} split by the rule {rule!r}: the context is {told['meaning']}"
    yield from _reasons("cannot be measured", found["not_measurable"])
    yield from _reasons("cannot be trained on", found["not_trainable"])
    same = found["duplicates"]
    if same["rows"]:
        row, first = same["examples"][0]
        yield f"  {same['rows']:,} repeat another row word for word, such as row {row} row {first}"
    if same["rows_of_shared_contexts"]:
        yield f"  {same['rows_of_shared_contexts']:,} share their context with another"


def _reasons(what: str, reasons: list[dict[str, Any]]) -> Iterator[str]:
    for one in reasons[:MOST_LINES]:
        yield f"  {one['rows']:,} {what}, such as row {one['example']}: {one['reason']}"
    if rest := sum(one["rows"] for one in reasons[MOST_LINES:]):
        yield f"  {rest:,} {what} for other reasons"


def _lengths(lengths: dict[str, Any]) -> Iterator[str]:
    limits = lengths["limits"]
    if limits["tokenizer"] is None:
        yield (
            "Lengths in tokens, GUESSED from characters: 4 a token, 1.5 in Chinese, Japanese and Korean; name --long_model or "
            "--tokenizer to count them"
        )
    elif lengths["exact"]:
        yield f"Lengths in tokens of {limits['tokenizer']}"
    else:
        yield f"Lengths in tokens of {limits['tokenizer']}, estimated from {lengths['laid_out']:,} rows evenly over their lengths"
    yield f"{'':<14}{'shortest':>12}{'median':>12}{'9 of 10 below':>16}{'longest':>12}"
    for part in ("total", *PARTS):
        told = lengths[part]
        yield f"  {part:<12}{told['min']:>12,}{told['median']:>12,}{told['p90']:>16,}{told['max']:>12,}"
    yield f"  {lengths['cut']['rows']:,} longer than max_length={limits['max_length']:,}, which costs {lengths['cut']['share']:.1%} of all context"
    if limits["short_window"] is not None:
        yield f"  {lengths['in_window']:,} fit into short_window={limits['short_window']:,} whole (HMP is 0)"
    yield f"  {lengths['few_segments']:,} have fewer than 2 segments of segment_length={limits['segment_length']:,}"
    yield f"  {lengths['cut_in_training']:,} longer than train_max_length={limits['train_max_length']:,}"


def _end(found: dict[str, Any]) -> Iterator[str]:
    if not found["findings"]:
        yield "Nothing to mend was found."
        return
    yield "To look at:"
    for finding in found["findings"]:
        yield textwrap.fill(finding, WIDTH, initial_indent="- ", subsequent_indent="  ", break_on_hyphens=False)
