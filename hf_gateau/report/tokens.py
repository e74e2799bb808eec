"""What each token of a response needs of far context, as text with its numbers.

Shapes: R response tokens of one row, in the order of the text. Need is in nats, see `ranking.evidence`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from ..models.packing import Cut
from ..ranking.config import RankConfig
from ..ranking.evidence import BEST, FAR, LONG, NEAR, NEED_TOKENS, NO_CONTEXT, SHORT, token_far_need, token_need
from ..rows.batches import RESPONSE_COLUMNS
from .segments import token_spans


TOKEN_COLUMNS = (*NEED_TOKENS, NEAR, FAR, BEST, *RESPONSE_COLUMNS)  # that are read here
STEPS = (0.0, 1.0, 2.0, 4.0)  # nats above which a need is of level 1, 2, 3 and 4
NOT_MEASURED = "it was measured without evidence of its tokens (before there was any, or with token_nll off); score it again for that"
NO_STARTS = (
    "nothing tells where its tokens begin: it was measured before that was kept, and to score it again adds it without "
    "measuring; or by a tokenizer that does not tell"
)


@dataclass(frozen=True)
class ResponseToken:
    """One token of a response.

    Attributes:
        text (`str`): as the models read it; empty for what is no text, such as the end of a turn, and for all but the last
            of several tokens that make one character.
        need (`float`): nats that only far context tells of it, see `token_need`; 0 where none does.
        far_need (`float`): nats that one far segment alone tells of it, see `token_far_need`; None where segments were not measured.
        segment (`int`): the far segment that tells most of it, numbered from 1 as in `Segment`; None where none does.
        distance (`float`): tokens from that segment's end to the context's end; None where it is not known.
        nll_long, nll_short, nll_no_context (`float`): nats.
        nll_far, nll_near (`float`): lowest from one far, or one near segment alone; None where there is none.
    """

    text: str
    need: float
    far_need: float | None
    segment: int | None
    distance: float | None
    nll_long: float
    nll_short: float
    nll_no_context: float
    nll_far: float | None
    nll_near: float | None

    @property
    def level(self) -> int:
        """How strongly to mark it, 0 (needs nothing) to 4."""
        return level_of(self.need)


@dataclass(frozen=True)
class ResponseTokens:
    """A response as its tokens.

    Attributes:
        tokens (`list[ResponseToken]`): their texts joined are what the models read as response; empty where that cannot be told.
        tau (`float`): nats that a need is counted above.
        missing (`str`): why there are no tokens, in words; empty where there are.
        is_exact (`bool`): whether distances are those of the very segments; else they are about so.
    """

    tokens: list[ResponseToken]
    tau: float
    missing: str = ""
    is_exact: bool = True

    @property
    def text(self) -> str:
        return "".join(token.text for token in self.tokens)

    @property
    def need(self) -> float:
        """Nats of the whole response."""
        return sum(token.need for token in self.tokens)

    def of_segments(self, num_segments: int) -> list[float]:
        """Nats that each measured segment alone tells of the tokens that need it most."""
        told = [0.0] * num_segments
        for token in self.tokens:
            if token.segment is not None and token.segment <= num_segments:
                told[token.segment - 1] += token.far_need
        return told


def level_of(need: float) -> int:
    """The number of `STEPS` that a need in nats is above."""
    return sum(need > step for step in STEPS)


def response_tokens(
    row: dict[str, Any], record: dict[str, Any] | None = None, cut: Cut | None = None
) -> ResponseTokens:
    """The tokens of a row's response.

    Args:
        row: with raw columns (`TOKEN_COLUMNS`; `gateau_segment_ppl` and `gateau_num_context_tokens` for distances).
        record: of the ranking, which names tau; see `ranking_record`.
        cut: how contexts were cut into segments, see `segments.cut_of`.
    """
    tau = (record or {}).get("tau")
    tau = RankConfig().tau if tau is None else tau
    columns = {name: row.get(name) for name in TOKEN_COLUMNS}
    size = len(columns[LONG] or ())
    x = {name: np.array(columns[name] or [], np.float64) for name in (*NEED_TOKENS, NEAR, FAR)}
    if not size or any(len(x[name]) != size or not np.isfinite(x[name]).all() for name in NEED_TOKENS):
        return ResponseTokens([], tau, NOT_MEASURED)
    text, starts = (columns[name] for name in RESPONSE_COLUMNS)
    if text is None or starts is None or len(starts) != size:
        return ResponseTokens([], tau, NO_STARTS)
    ends = [*starts[1:], len(text)]
    given = {name: x[name].tolist() if len(x[name]) == size else [None] * size for name in (NEAR, FAR)}
    has_segments = columns[NEAR] is not None and columns[FAR] is not None
    num = len(row.get("gateau_segment_ppl") or ())
    spans, is_exact = token_spans(row, num, cut) if num else ([], True)
    places = [spans[-1][1] - end for _, end in spans]
    best = [None] * size
    far_need = np.zeros(size)
    if len(x[FAR]) == len(columns[BEST] or ()) == size:
        filled = x | {NEAR: x[NEAR] if len(x[NEAR]) == size else np.full(size, np.inf)}
        far_need = token_far_need(filled, tau)
        best = [int(at) if amount > 0 else None for at, amount in zip(columns[BEST], far_need, strict=True)]
    need = token_need(x, tau)
    tokens = [
        ResponseToken(
            text[starts[i] : ends[i]],
            float(need[i]),
            float(far_need[i]) if has_segments else None,
            None if best[i] is None else best[i] + 1,
            None if best[i] is None or best[i] >= len(places) else places[best[i]],
            *(float(x[name][i]) for name in (LONG, SHORT, NO_CONTEXT)),
            given[FAR][i],
            given[NEAR][i],
        )
        for i in range(size)
    ]
    return ResponseTokens(tokens, tau, is_exact=is_exact)
