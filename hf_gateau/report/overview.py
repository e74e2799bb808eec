"""What is said of a ranking as a whole, by the page of figures and by the explorer alike: the finding, rows, reasons, settings."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

from ..ranking.order import ranking_record
from ..records import column_of, commonest, find_record
from .findings import about, finding, glossary
from .provenance import certain, how_measured
from .ranked_rows import read_ranked
from .texts import shortened


if TYPE_CHECKING:
    from datasets import Dataset

REASON_WIDTH = 300  # characters shown
SETTINGS = ("method", "mode", "hmp", "cas", "combine", "alpha", "version")


def overview(ds: Dataset, source_column: str | None = None) -> dict[str, Any]:
    """Texts of a ranked dataset: "finding"; "summary", "reasons" and "settings", names and values; "warnings"; "glossary", what each
    number means.

    Raises:
        ValueError: see `read_ranked`.
    """
    record, measuring = ranking_record(ds), find_record(ds, "measuring")
    return {
        "finding": finding(read_ranked(ds, source_column)),
        "summary": _summary(ds),
        "reasons": _reasons(ds),
        "warnings": (record or {}).get("warnings", []),
        "settings": _settings(record, measuring),
        "glossary": glossary(record),
    }


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
        ranked = [(name, cell(record[name])) for name in SETTINGS if record.get(name) is not None]
        ranked += [("certain", certain(record["screening"]))] if record.get("screening") else []
        ranked.append(("measured by", ", ".join(record.get("measuring_configs", [])) or "not recorded"))
    return ranked + [(name, value) for name, value in how_measured(measuring or {})]


def _reasons(ds: Dataset) -> list[tuple[str, str]]:
    """Why rows have no rank, the commonest reason first, and how many."""
    if "gateau_note" not in ds.column_names:
        return []
    notes = zip(column_of(ds, "gateau_note"), column_of(ds, "gateau_rank"), strict=True)
    reasons = Counter(shortened(note, REASON_WIDTH) for note, rank in notes if note is not None and rank is None)
    return [(reason, f"{count:,}") for reason, count in commonest(reasons).items()]


def cell(value: Any) -> str:
    """A number or a text as a table has it."""
    if isinstance(value, float):
        return f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}"
    return f"{value:,}" if isinstance(value, int) else str(value)
