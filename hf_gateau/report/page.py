"""A ranked dataset as one HTML page that needs no network: what was ranked and how, figures, best and worst samples."""

from __future__ import annotations

import base64
import os
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import __version__
from ..ranking.order import rank_order, ranking_record
from ..records import column_of, commonest
from ..rows.conversations import CONTENT_COLUMNS
from ..shipped import render
from .drawing import Figure, to_svg
from .figures import figures
from .sample_text import in_words, merge_segments, sample_texts, segment_measures, shortened


if TYPE_CHECKING:
    from datasets import Dataset

MAX_BLOCKS = 60  # of a strip of segments: at 360 pixels, 5 pixels each
REASON_WIDTH, TEXT_WIDTH = 300, 600  # characters shown
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
    drawn = [_figure(figure) for figure in figures(ds, cuts, source_column)]
    record = ranking_record(ds)
    page = render(
        "report.html",
        autoescape=True,
        title=title or "How these data were ranked",
        summary=_summary(ds, record),
        reasons=_reasons(ds),
        warnings=(record or {}).get("warnings", []),
        figures=drawn,
        groups=_groups(ds, num_samples),
        version=__version__,
    )
    path = Path(path).expanduser()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(page, encoding="utf-8")
    return path


def _summary(ds: Dataset, record: dict | None) -> list[tuple[str, str]]:
    num_ranked = sum(rank is not None for rank in column_of(ds, "gateau_rank"))
    rows = [("rows", f"{len(ds):,}"), ("ranked", f"{num_ranked:,}"), ("not ranked", f"{len(ds) - num_ranked:,}")]
    if record is None:
        return [*rows, ("made with", "not recorded with these data")]
    rows += [(name, _cell(record[name])) for name in SETTINGS if record.get(name) is not None]
    return [*rows, ("measured by", ", ".join(record.get("measuring_configs", [])) or "not recorded")]


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


def _groups(ds: Dataset, num_samples: int) -> list[dict[str, Any]]:
    """The best samples and the worst, none in both."""
    order = rank_order(column_of(ds, "gateau_rank"))
    shown = {"best": order[:num_samples], "worst": order[max(num_samples, len(order) - num_samples) :]}
    segments = ("gateau_rank", "gateau_segment_ppl", "gateau_segment_attention", "id")
    wanted = [name for name in (*segments, *MEASURED, *CONTENT_COLUMNS) if name in ds.column_names]
    rows = ds.select_columns(wanted).with_format(None)
    return [
        {"name": name, "samples": [_sample(rows[i], len(order)) for i in places]}
        for name, places in shown.items()
        if places
    ]


def _sample(row: dict[str, Any], num_ranked: int) -> dict[str, Any]:
    texts = zip(("context", "instruction", "response"), sample_texts(row), strict=True)
    known = {name: (row.get(column), digits) for column, (name, digits) in MEASURED.items()}
    return {
        "rank": f"{row['gateau_rank']:,} of {num_ranked:,}",
        "id": None if row.get("id") is None else shortened(str(row["id"]), REASON_WIDTH),
        "numbers": [(name, f"{value:,.{digits}f}") for name, (value, digits) in known.items() if value is not None],
        "strips": [_strip(name, values) for name, values in segment_measures(row).items()],
        "texts": [(name, shortened(text, TEXT_WIDTH)) for name, text in texts if text.strip()],
    }


def _strip(name: str, values: list[float]) -> dict[str, Any]:
    """Bars for the eye, heights from 0 to 1, and words for the ear."""
    blocks = merge_segments(values, MAX_BLOCKS)
    per_block = -(-len(values) // len(blocks))
    spread = max(values) - min(blocks)
    return {
        "name": name,
        "words": in_words(name, values),
        "heights": [round((value - min(blocks)) / spread, 3) if spread > 0 else 0.5 for value in blocks],
        "note": f"{per_block} segments to a bar" if per_block > 1 else "",
    }
