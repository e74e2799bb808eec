"""How much of a response needs far context: token by token, from the negative log-likelihoods of its tokens, or by what a few
attention heads see.

Shapes: flat arrays over the response tokens of all rows, in nats. `near` is what the short sibling sees of the context, in
tokens, and a far segment ends before it. A measure that sums tells how much a row depends on far context; one that averages,
how much of it does.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from .lists import ListMeasure, Rows


LONG, SHORT, NO_CONTEXT = (f"gateau_token_nll_{name}" for name in ("long", "short", "no_context"))
FAR, NEAR, BEST = "gateau_token_nll_far", "gateau_token_nll_near", "gateau_token_far_segment"
HEADS, NUM_FAR = "gateau_segment_heads", "gateau_num_far_segments"
PAIR_TOKENS = (LONG, SHORT)
NEED_TOKENS = (*PAIR_TOKENS, NO_CONTEXT)
FAR_TOKENS = (LONG, NO_CONTEXT, NEAR, FAR)
# LongPPL's borders of a key token (arXiv 2410.23771), in nats: gained by the long context, and certain with it
KEY_GAIN, KEY_NLL = 2.0, 2.0
# What a token's probability must gain to count in 'need_tokens' and 'far_tokens'
PROBABILITY_GAIN = 0.1
# What a token counts in 'need_tokens' that the context tells and needs no far part of: it parts rows that would be tied
TIE_WEIGHT = 2.0**-20

Lists = Mapping[str, np.ndarray]


def token_need(x: Lists, tau: float) -> np.ndarray:
    """What the whole context tells of each token that neither the near context nor the instruction does, above tau."""
    return np.maximum(np.minimum(x[SHORT], x[NO_CONTEXT]) - x[LONG] - tau, 0.0)


def token_far_need(x: Lists, tau: float) -> np.ndarray:
    """What a far segment alone tells of each token that no near one and not the instruction does, above tau.

    Only as far as the whole context tells it too: the lowest of many segments' numbers is low by chance.
    """
    return np.maximum(np.minimum(x[NEAR], x[NO_CONTEXT]) - np.maximum(x[FAR], x[LONG]) - tau, 0.0)


def need(x: Lists, rows: Rows, tau: float) -> np.ndarray:
    """Sum of `token_need`: how many nats of the response only far context tells."""
    return rows.sum(token_need(x, tau))


def need_mean(x: Lists, rows: Rows, tau: float) -> np.ndarray:
    """Mean of `token_need`: how much of the response only far context tells."""
    return need(x, rows, tau) / rows.sizes


def foreseen(nll: np.ndarray, without: np.ndarray) -> np.ndarray:
    """What a context adds to each token's probability, `without` it, above a tenth."""
    return np.maximum(np.exp(-nll) - without - PROBABILITY_GAIN, 0.0)


def need_tokens(x: Lists, rows: Rows, tau: float) -> np.ndarray:
    """Sum of what the whole context adds to each token's probability, above a tenth: about how many tokens of the response only
    far context lets the model foresee. A token that stays improbable counts for nothing, whatever its odds.

    Of rows that need no far context, those come first that need their near one: what the context adds to the instruction alone
    counts 2**-20. So noise, and answers that are known without any context, stand last and are not tied with the others.
    """
    without = np.exp(-x[NO_CONTEXT])
    far = foreseen(x[LONG], np.maximum(np.exp(-x[SHORT]), without))
    return rows.sum(far + TIE_WEIGHT * foreseen(x[LONG], without))


def far_tokens(x: Lists, rows: Rows, tau: float) -> np.ndarray:
    """The same of what a far segment alone adds to what near ones and the instruction give; see `token_far_need`."""
    return rows.sum(foreseen(np.maximum(x[FAR], x[LONG]), np.exp(-np.minimum(x[NEAR], x[NO_CONTEXT]))))


def key_tokens(x: Lists, rows: Rows, tau: float) -> np.ndarray:
    """How many tokens are LongPPL's key tokens (arXiv 2410.23771): gained by the long context, and certain with it."""
    is_key = (x[SHORT] - x[LONG] > KEY_GAIN) & (x[LONG] < KEY_NLL)
    return rows.sum(is_key.astype(np.float64))


def longfilter(x: Lists, rows: Rows, tau: float) -> np.ndarray:
    """LongFilter (arXiv 2510.25804): mean of what the long context gains, weighted by the token's probability with it."""
    return rows.sum(np.exp(-x[LONG]) * (x[SHORT] - x[LONG])) / rows.sizes


def far_need(x: Lists, rows: Rows, tau: float) -> np.ndarray:
    """Sum of `token_far_need`: each token its own best far segment against its best near one; 0 without a far segment."""
    return rows.sum(token_far_need(x, tau))


def places(x: Lists, rows: Rows, tau: float) -> np.ndarray:
    """How many far segments are the best of some token that needs one: from how many places the response is drawn."""
    return rows.num_distinct(x[BEST], token_far_need(x, tau) > 0)


def heads(x: Lists, rows: Rows, tau: float) -> np.ndarray:
    """The most that retrieval heads see in a far segment, minus the most in a near one, in nats; see `measuring.heads`. Where a row
    has no segment of one kind its lowest stands for them, so a row without far segments is among the lowest."""
    seen, is_far = x[HEADS], rows.position < rows.spread(x[NUM_FAR])
    lowest = rows.spread(-rows.max(-seen))
    return rows.max(np.where(is_far, seen, lowest)) - rows.max(np.where(is_far, lowest, seen))


# name -> measure, which may stand for HMP; its siblings may be two checkpoints or two windows
TOKEN_HMP = {
    "need": ListMeasure(NEED_TOKENS, need),
    "need_mean": ListMeasure(NEED_TOKENS, need_mean),
    "need_tokens": ListMeasure(NEED_TOKENS, need_tokens),
    "key_tokens": ListMeasure(PAIR_TOKENS, key_tokens),
    "longfilter": ListMeasure(PAIR_TOKENS, longfilter),
}
# Likewise for CAS; all but 'heads' need the segments
TOKEN_CAS = {
    "far_need": ListMeasure(FAR_TOKENS, far_need, optional=(NEAR, FAR)),
    "far_tokens": ListMeasure(FAR_TOKENS, far_tokens, optional=(NEAR, FAR)),
    "places": ListMeasure((*FAR_TOKENS, BEST), places, optional=(NEAR, FAR, BEST)),
    "heads": ListMeasure((HEADS,), heads, "segment", numbers=(NUM_FAR,)),
}
