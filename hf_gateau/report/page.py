"""A ranked dataset as one HTML page that needs no network: what was found, figures, best and worst samples and what in their
contexts tells most, how the numbers came about."""

from __future__ import annotations

import base64
import os
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import __version__
from ..models.packing import Cut
from ..ranking.order import rank_order, ranking_record
from ..records import column_of, commonest, find_record
from ..rows.conversations import CONTENT_COLUMNS
from ..shipped import render
from .drawing import Figure, to_svg
from .figures import figures
from .findings import about, finding, glossary
from .marking import pieces, stretches, words
from .provenance import how_measured
from .ranked_rows import read_ranked
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

MAX_BLOCKS = 60  # of a strip of segments: at 360 pixels, 5 pixels each
REASON_WIDTH, TEXT_WIDTH, SEGMENT_WIDTH = 300, 600, 1500  # characters shown
HOW_MARKED = (
    "the deeper the colour of a token and the thicker its line, the more only far context tells of it: by up to "
    f"{STEPS[1]:g}, {STEPS[2]:g}, {STEPS[3]:g} nats above tau, or more"
)
LOWEST = -0.5  # of a full bar: what lies below zero is drawn so far
SETTINGS = ("method", "mode", "hmp", "cas", "combine", "alpha", "version")
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
) -> Path:
    """Write the page and return its path. Texts are read of the shown samples alone.

    Args:
        ds: a ranked `Dataset`.
        path: of the `.html` file; its folder is made.
        title (`str`, *optional*): the heading.
        cuts, source_column: see `figures`.
        num_samples (`int`): how many of the best and of the worst samples are shown.

    Raises:
        ValueError: num_samples is negative, or `figures` cannot use the data.
    """
    if num_samples < 0:
        raise ValueError(f"num_samples={num_samples} is no number of samples; give 0 or more.")
    rows = read_ranked(ds, source_column)
    record, measuring = ranking_record(ds), find_record(ds, "measuring")
    groups, tokens = _groups(ds, num_samples, cut_of(measuring), record)
    page = render(
        "report.html",
        autoescape=True,
        title=title or "How these data were ranked",
        finding=finding(rows),
        summary=_summary(ds),
        reasons=_reasons(ds),
        warnings=(record or {}).get("warnings", []),
        figures=[_figure(figure) for figure in figures(ds, cuts, source_column)],
        glossary=glossary(record) | words(tokens, HOW_MARKED) if num_samples else {},
        groups=groups,
        settings=_settings(record, measuring),
        version=__version__,
    )
    path = Path(path).expanduser()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(page, encoding="utf-8")
    return path


def _summary(ds: Dataset) -> list[tuple[str, str]]:
    """Rows and what became of them, and the models and data behind them."""
    num_ranked = sum(rank is not None for rank in column_of(ds, "gateau_rank"))
    rows = [("rows", f"{len(ds):,}"), ("ranked", f"{num_ranked:,}"), ("not ranked", f"{len(ds) - num_ranked:,}")]
    return [*rows, *about(ds)]


def _settings(record: dict | None, measuring: dict | None) -> list[tuple[str, str]]:
    """How rows were measured and ranked."""
    if record is None:
        ranked = [("ranked with", "not recorded with these data")]
    else:
        ranked = [(name, _cell(record[name])) for name in SETTINGS if record.get(name) is not None]
        ranked.append(("measured by", ", ".join(record.get("measuring_configs", [])) or "not recorded"))
    return ranked + [(name, value) for name, value in how_measured(measuring or {})]


def _reasons(ds: Dataset) -> list[tuple[str, str]]:
    """Why rows have no rank, the commonest reason first, and how many."""
    if "gateau_note" not in ds.column_names:
        return []
    reasons = Counter(shortened(note, REASON_WIDTH) for note in column_of(ds, "gateau_note") if note is not None)
    return [(reason, f"{count:,}") for reason, count in commonest(reasons).items()]


def _figure(figure: Figure) -> dict[str, Any]:
    header, rows = figure.table
    svgs = {theme: to_svg(figure, theme == "dark") for theme in ("light", "dark")}
    return {
        "name": figure.name,
        "title": figure.title,
        "text": figure.text,
        "header": header,
        "rows": [[_cell(value) for value in row] for row in rows],
        **{theme: base64.b64encode(svg.encode()).decode() for theme, svg in svgs.items()},
    }


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}"
    return f"{value:,}" if isinstance(value, int) else str(value)


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
