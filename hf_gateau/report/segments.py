"""Which segments of a sample tell most of its response, how much each tells, and which text it is.

Shapes: S measured segments of one row, in the order of the text. A gain is in nats a token of the response: how much likelier
this segment alone, with the instruction, makes it than the instruction without any context.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from ..models.packing import Cut
from ..rows.parts import SPAN_COLUMN, context_text


FULL = {"gain": 1.0, "attention": 4.0, "far need": 4.0}  # of a full bar: nats a token; times the row's mean; nats
SCALES = {
    "gain": "a full bar is 1 nat a token or more",
    "attention": "a full bar is 4 times the row's mean or more",
    "far need": "a full bar is 4 nats or more",
}
TEXT_COLUMNS = (  # raw columns that say which text a segment is; data that were measured before lack them
    SPAN_COLUMN,
    "gateau_segment_starts",
    "gateau_num_cut_tokens",
    "gateau_truncated",
)
SLIGHT = 0.02  # of a full bar: less is shown as nothing
MOST_TOLD, LEAST_SHARE = 3, 0.25  # segments that are shown; of the best one's lead over the usual gain
WITHOUT, MEDIAN = "without context", "with the row's median segment (what it is without context was not measured)"


@dataclass(frozen=True)
class Measures:
    """What was measured of S segments.

    Attributes:
        bars (`dict`): "gain" and "attention" (S,), the second as multiples of its mean, each as far as it was measured.
        baseline (`str`): what gains are measured from.
    """

    bars: dict[str, list[float]]
    baseline: str = WITHOUT


@dataclass(frozen=True)
class Segment:
    """One segment and what it tells.

    Attributes:
        number, num_segments (`int`): its place among those that were measured, from 1, and how many these are.
        place (`str`): how far it is from the context's end.
        gain (`float`): nats a token.
        attention (`float`): that its tokens get, as a multiple of the mean; None where it was not measured.
        text (`str`): None where nothing tells it.
        is_exact (`bool`): whether the text is this very segment's; else it stands about there.
    """

    number: int
    num_segments: int
    place: str
    gain: float
    attention: float | None
    text: str | None
    is_exact: bool

    @property
    def label(self) -> str:
        """Where it is and what it tells, in words."""
        seen = "" if self.attention is None else f", attention {self.attention:.1f} times the mean"
        about = "" if self.is_exact or self.text is None else "; its text is about here"
        return f"segment {self.number:,} of {self.num_segments:,}, {self.place}: gain {self.gain:.2f}{seen}{about}"


def cut_of(measuring: dict[str, Any] | None) -> Cut | None:
    """How contexts were cut into segments, by the record of the measuring; None where it does not say."""
    length = (measuring or {}).get("segment_length")
    return Cut(length, measuring.get("segment_stride") or 1) if length else None


def segment_measures(row: dict[str, Any]) -> Measures:
    """The bars of a row; none where it has no segments, or a perplexity that is not positive and finite. Gains are measured
    from the median segment where the perplexity without context is not known."""
    columns = [row.get(f"gateau_segment_{name}") or [] for name in ("ppl", "attention")]
    ppl, attention = (np.array(column, dtype=np.float64) for column in columns)
    if not len(ppl) or not (np.isfinite(ppl).all() and ppl.min() > 0):
        return Measures({})
    without = row.get("gateau_ppl_no_context") or np.nan
    is_known = np.isfinite(without) and without > 0
    nll = np.log(ppl)
    bars = {"gain": ((np.log(without) if is_known else np.median(nll)) - nll).tolist()}
    if len(attention) == len(ppl) and np.isfinite(attention).all() and attention.mean() > 0:
        bars["attention"] = (attention / attention.mean()).tolist()
    return Measures(bars, WITHOUT if is_known else MEDIAN)


def telling_segments(row: dict[str, Any], cut: Cut | None = None) -> list[Segment]:
    """The segments that tell most of the response, at most three of them, in the order of the text.

    Args:
        row: with raw columns, and its texts.
        cut: how its context was cut into segments; None where that is not known.
    """
    bars = segment_measures(row).bars
    gains = np.array(bars.get("gain", []))
    if not len(gains) or gains.max() < SLIGHT:
        return []
    usual = np.median(gains) if len(gains) > MOST_TOLD else 0  # what any of its segments tells
    if (lead := gains.max() - usual) < SLIGHT:
        return []
    best = np.argsort(-gains, kind="stable")[:MOST_TOLD]
    chosen = sorted(int(i) for i in best if gains[i] >= max(SLIGHT, usual + LEAST_SHARE * lead))
    spans, is_known = token_spans(row, len(gains), cut)
    places, is_exact = character_spans(row, len(gains), cut)
    text = context_text(row) if places else ""
    texts = places and [text[start:end] for start, end in places]
    attention = bars.get("attention")
    found = []
    for i in chosen:
        rest = len(gains) - 1 - i
        place = f"{rest:,} segments before the context's end"
        if spans:
            place = f"{'' if is_known else 'about '}{spans[-1][1] - spans[i][1]:,.0f} tokens before the context's end"
        found.append(
            Segment(
                i + 1,
                len(gains),
                place if rest else "the context's end",
                float(gains[i]),
                attention and attention[i],
                texts and texts[i],
                is_exact,
            )
        )
    return found


def nothing_told(row: dict[str, Any]) -> str:
    """Why `telling_segments` has none, in words; empty where the row has no segments that could."""
    gains = segment_measures(row).bars.get("gain", [])
    if not gains:
        return ""
    told = "than the instruction does" if max(gains) < SLIGHT else "than most others do"
    return f"No segment alone tells more of the response {told}."


def token_spans(row: dict[str, Any], num_segments: int, cut: Cut | None) -> tuple[list[tuple[float, float]], bool]:
    """First token and end of each segment in the context, and whether they are exact: the row may have been cut into
    segments otherwise than `cut` says. Empty where the context's length is not known."""
    num_tokens = row.get("gateau_num_context_tokens") or 0
    if cut is not None and len(places := cut(range(-(-num_tokens // cut.length)))) == num_segments:
        return [(place * cut.length, min(num_tokens, (place + 1) * cut.length)) for place in places], True
    length = num_tokens / num_segments
    return [(i * length, (i + 1) * length) for i in range(num_segments)] if length else [], False


def character_spans(
    row: dict[str, Any], num_segments: int, cut: Cut | None, text: str | None = None
) -> tuple[list[tuple[int, int]] | None, bool]:
    """First character and end of each measured segment in `context_text`, and whether they are this very segment's; else they
    are about there. None where nothing tells it, as of a row that was cut. `text`: the row's context, where it is at hand."""
    spans, is_known = token_spans(row, num_segments, cut)
    starts = row.get("gateau_segment_starts") or []
    if not spans:
        return None, False
    text = context_text(row) if text is None else text
    if len(starts) == len(spans):
        ends = [*starts[1:], len(text)]
        # Between two measured segments may be others, which are about as long.
        shares = [(end - start) / (after - start) for (start, end), (after, _) in zip(spans, spans[1:], strict=False)]
        ends[:-1] = [at + round(share * (end - at)) for at, end, share in zip(starts, ends, shares, strict=False)]
        return list(zip(starts, ends, strict=True)), min(shares, default=1) > 1 - 1e-9
    if num_cut_tokens(row) != 0 or not text.strip():
        return None, False
    scale = len(text) / spans[-1][1]
    return [(round(scale * start), round(scale * end)) for start, end in spans], False


def num_cut_tokens(row: dict[str, Any]) -> int | None:
    """Tokens of the context that `max_length` left no room for; None where there are such, and nothing says how many."""
    number = row.get("gateau_num_cut_tokens")
    return number if number is not None else None if row.get("gateau_truncated") else 0


def text_read(row: dict[str, Any]) -> str | None:
    """The context as far as the models read it; None where nothing tells how far."""
    starts = row.get("gateau_segment_starts")
    if starts and num_cut_tokens(row):
        return context_text(row)[starts[0] :]
    return context_text(row) if num_cut_tokens(row) == 0 else None


def cut_mark(row: dict[str, Any]) -> str | None:
    """What stands where the text of a row begins that was cut."""
    number = num_cut_tokens(row)
    how_many = "some tokens" if number is None else f"{number:,} token{'s' * (number != 1)}"
    return None if number == 0 else f"… {how_many} before this were cut by max_length"


def in_words(name: str, values: list[float]) -> str:
    """Where along its segments a measure of a sample is highest, and how high."""
    high = max(values)
    height = {"gain": f"{high:.2f} nats a token", "far need": f"{high:.2f} nats"}.get(
        name, f"{high:.1f} times the mean"
    )
    where = f"the highest {name}, {height}, at segment {values.index(high) + 1} of {len(values)}"
    return f"{len(values)} segments; {where if high > min(values) else f'{name} is equal in all of them'}"


def merge_segments(values: list[float], num_blocks: int) -> list[float]:
    """The highest value of each block of neighbours, at most `num_blocks` of them."""
    per_block = -(-len(values) // num_blocks)
    return [max(values[start : start + per_block]) for start in range(0, len(values), per_block)]
