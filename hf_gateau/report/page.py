"""A ranked dataset as one HTML page that needs no network: what was found, figures, best and worst samples and what in their
contexts tells most, how the numbers came about."""

from __future__ import annotations

import base64
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import __version__
from ..models.packing import Cut
from ..ranking.order import rank_order, ranking_record
from ..records import column_of, find_record
from ..rows.conversations import CONTENT_COLUMNS
from ..shipped import render
from .drawing import Figure, to_svgs
from .figures import figures
from .marking import pieces, stretches, words
from .overview import REASON_WIDTH, cell, overview
from .sample_text import need_of
from .segments import (
    FULL,
    SCALES,
    SLIGHT,
    TEXT_COLUMNS,
    cut_mark,
    cut_of,
    in_words,
    merge_segments,
    nothing_told,
    segment_measures,
    telling_segments,
    text_read,
)
from .texts import excerpt, sample_texts, shortened
from .tokens import STEPS, TOKEN_COLUMNS, ResponseTokens, response_tokens


if TYPE_CHECKING:
    from datasets import Dataset

ADDRESS = re.compile(r"(?:https?://)?[^:\s]+(?::\d+[^:\s]*)?")  # of the web, or a path; no other scheme
MAX_BLOCKS = 60  # of a strip of segments: at 360 pixels, 5 pixels each
TEXT_WIDTH, SEGMENT_WIDTH = 600, 1500  # characters shown
HOW_MARKED = (
    "the deeper the colour of a token and the thicker its line, the more only far context tells of it: by up to "
    f"{STEPS[1]:g}, {STEPS[2]:g}, {STEPS[3]:g} nats above tau, or more"
)
LOWEST = -0.5  # of a full bar: what lies below zero is drawn so far
MEASURED = {  # column of a shown sample -> its name and digits after the point
    "gateau_score": ("score", 4),
    "gateau_hmp": ("HMP", 3),
    "gateau_cas": ("CAS", 3),
    "gateau_ppl_short": ("perplexity, short", 2),
    "gateau_ppl_long": ("perplexity, long", 2),
    "gateau_ppl_no_context": ("perplexity, no context", 2),
    "gateau_num_context_tokens": ("context tokens", 0),
    "gateau_num_response_tokens": ("response tokens", 0),
}


def write_report(
    ds: Dataset,
    path: str | os.PathLike,
    *,
    title: str | None = None,
    cuts: dict[str, float] | None = None,
    source_column: str | None = None,
    num_samples: int = 3,
    explorer: str | None = None,
) -> Path:
    """Write the page and return its path. Texts are read of the shown samples alone.

    Args:
        ds: a ranked `Dataset`.
        path: of the `.html` file; its folder is made.
        title (`str`, *optional*): the heading.
        cuts, source_column: see `figures`.
        num_samples (`int`): how many of the best and of the worst samples are shown.
        explorer (`str`, *optional*): where the explorer of these rows is, to link to: an `https://` address, or a path from the
            page's folder.

    Raises:
        ValueError: num_samples is negative, or `figures` cannot use the data.
    """
    if num_samples < 0:
        raise ValueError(f"num_samples={num_samples} is no number of samples; give 0 or more.")
    if explorer is not None and not ADDRESS.fullmatch(explorer):
        raise ValueError(
            f"explorer={explorer!r} is no place to link to; give an https:// address, or a path from the page's folder."
        )
    told = overview(ds, source_column)
    groups, tokens = _groups(ds, num_samples, cut_of(find_record(ds, "measuring")), ranking_record(ds))
    told["glossary"] = told["glossary"] | words(tokens, HOW_MARKED) if num_samples else {}
    page = render(
        "report.html",
        autoescape=True,
        title=title or "How these data were ranked",
        figures=[_figure(figure) for figure in figures(ds, cuts, source_column)],
        groups=groups,
        **told,
        explorer=explorer,
        version=__version__,
    )
    path = Path(path).expanduser()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(page, encoding="utf-8")
    return path


def _figure(figure: Figure) -> dict[str, Any]:
    header, rows = figure.table
    return {
        "name": figure.name,
        "title": figure.title,
        "text": figure.text,
        "header": header,
        "rows": [[cell(value) for value in row] for row in rows],
        **{theme: base64.b64encode(svg.encode()).decode() for theme, svg in to_svgs(figure).items()},
    }


def _groups(
    ds: Dataset, num_samples: int, cut: Cut | None, record: dict | None
) -> tuple[list[dict[str, Any]], list[ResponseTokens]]:
    """The best samples and the worst, none in both, and what the tokens of their responses need."""
    order = rank_order(column_of(ds, "gateau_rank"))
    shown = {"best": order[:num_samples], "worst": order[max(num_samples, len(order) - num_samples) :]}
    segments = ("gateau_rank", "gateau_segment_ppl", "gateau_segment_attention", *TEXT_COLUMNS, *TOKEN_COLUMNS, "id")
    wanted = [name for name in (*segments, *MEASURED, *CONTENT_COLUMNS) if name in ds.column_names]
    rows = ds.select_columns(wanted).with_format(None)
    groups, found = [], []
    for name, places in shown.items():
        samples = []
        for row in map(rows.__getitem__, places):
            found.append(response_tokens(row, record, cut))
            samples.append(_sample(row, len(order), cut, found[-1]))
        groups += [{"name": name, "samples": samples}] if samples else []
    return groups, found


def _sample(row: dict[str, Any], num_ranked: int, cut: Cut | None, tokens: ResponseTokens) -> dict[str, Any]:
    known = [(name, row.get(column), digits) for column, (name, digits) in MEASURED.items()]
    known.insert(1, ("need", need_of(row), 2))
    measures, told, (_, instruction, response) = segment_measures(row), telling_segments(row, cut), sample_texts(row)
    bars = measures.bars
    if bars and any(needed := tokens.of_segments(len(bars["gain"]))):
        bars = bars | {"far need": needed}
    texts = [("context", "" if told else excerpt(text_read(row) or "", TEXT_WIDTH))]
    texts += [("instruction", excerpt(instruction, TEXT_WIDTH))]
    if tokens.missing:
        texts += [("response", excerpt(response, TEXT_WIDTH))]
    return {
        "rank": f"{row['gateau_rank']:,} of {num_ranked:,}",
        "id": None if row.get("id") is None else shortened(str(row["id"]), REASON_WIDTH),
        "numbers": [(name, f"{value:,.{digits}f}") for name, value, digits in known if value is not None],
        "strips": [_strip(name, values, measures.baseline) for name, values in bars.items()],
        "nothing": "" if told else nothing_told(row),
        "cut": cut_mark(row),
        "segments": [(segment.label, excerpt(segment.text or "", SEGMENT_WIDTH)) for segment in told],
        "texts": [(name, text) for name, text in texts if text],
        "response": pieces(tokens, TEXT_WIDTH, keep_lines=True),
        "needs": [stretch.label for stretch in stretches(tokens)],
    }


def _strip(name: str, values: list[float], baseline: str) -> dict[str, Any]:
    """Bars for the eye, from LOWEST to 1 with zero between, of one scale in all rows; and words for the ear."""
    blocks = merge_segments(values, MAX_BLOCKS)
    per_block = -(-len(values) // len(blocks))
    heights = [value / FULL[name] for value in blocks]
    notes = [f"zero is the response {baseline}"] if name == "gain" else []
    notes += [SCALES[name], *([f"{per_block} segments to a bar"] if per_block > 1 else [])]
    return {
        "name": name,
        "words": in_words(name, values),
        "heights": [round(min(1, max(LOWEST, x)), 3) if abs(x) >= SLIGHT else 0 for x in heights],
        "low": LOWEST if min(heights) <= -SLIGHT else 0,
        "notes": "; ".join(notes),
    }
