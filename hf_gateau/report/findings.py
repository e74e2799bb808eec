"""What comes of a ranking, in a sentence or two: what its best tenth needs, what was cut, what its numbers mean.

Shapes: n rows that have a rank; masks are (n,) bool.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from ..records import column_of
from ..rows.context_rules import RULES
from ..rows.conversations import OTHER_RULES
from .provenance import behind
from .ranked_rows import RankedRows
from .segments import SCALES
from .texts import shortened


if TYPE_CHECKING:
    from datasets import Dataset

CLEAR, CLEAR_TOKENS = 0.05, 0.25  # nats a token, and tokens, by which the best rows' median is above all rows'
HMP_WORDS = {
    "softmax": "the short sibling's perplexity minus the long model's, after a softmax of each over all rows (Eq. 2)",
    "minmax": "the short sibling's perplexity minus the long model's, each brought to 0 to 1 over all rows",
    "difference": "the short sibling's perplexity minus the long model's",
    "log_difference": "here the same as need, below",
    "need": "nats of the response that only far context tells: the sum over its tokens, each above tau",
    "need_mean": "the same a token",
    "need_tokens": "about how many tokens of the response only far context lets the model foresee; below 0.001, how much its near "
    "context does",
    "key_tokens": "how many tokens of the response are certain with the far context and not without it (LongPPL's)",
    "longfilter": "what far context adds to a token's log-probability, weighted by its probability, a token (LongFilter's)",
    "rank": "the row's place from 0 to 1 by the short sibling's perplexity, minus that by the long model's",
}
CAS_WORDS = {
    "paper": "cosine of the segments' importance scores and attention (Eqs. 3-5): high where attention is on segments that tell little",
    "raw": "cosine of the segments' perplexity and attention: high where attention is on segments that tell little",
    "pearson": "correlation of the segments' perplexity and attention: high where attention is on segments that tell little",
    "spearman": "correlation of the ranks of the segments' perplexity and attention: high where attention is on segments that tell little",
    "gain": "gain of the segment that tells most, above the row's median segment",
    "gain_far": "the best gain of a far segment minus the best of a near one (the last four, or the last quarter of fewer)",
    "far_need": "nats of the response that a far segment alone tells and no near one, each token by its own best segments",
    "far_tokens": "about how many tokens of the response a far segment alone lets the model foresee, and no near one",
    "heads": "the most that the chosen heads see in a far segment, minus the most in a near one",
    "places": "how many far segments are the best of some token that needs one",
    "gain_distance": "the largest gain above the row's median segment, times its distance from the end (0 to 1)",
}
COMBINE_WORDS = {
    "rank": "each as its rank among all rows, from 0 to 1",
    "softmax": "each after a softmax over all rows (Eq. 6)",
    "released": "HMP after a softmax over all rows, CAS as it is",
}


def finding(rows: RankedRows) -> str:
    """What the best tenth of the rows needs, in numbers of the columns at hand; medians, which no outlier moves."""
    top, num_rows = rows.num_top, len(rows.frame)
    best = f"The best tenth ({top:,} of {num_rows:,} rows)" if num_rows >= 10 else f"The best of {num_rows:,} rows"
    for needs, words, values, clear in _contrasts(rows):
        known = np.isfinite(values)
        if not (known & rows.top).any():
            continue
        of_top, of_all = (float(np.median(values[mask & known])) for mask in (rows.top, np.ones(num_rows, bool)))
        verb = needs if of_top - of_all >= clear else f"{needs} no more than all rows do"
        return f"{best} {verb}: {words.format(f'{of_top:.2f}')}, against {of_all:.2f} for all (medians)."
    if (lengths := rows.numbers("num_context_tokens")) is not None and np.isfinite(lengths[rows.top]).any():
        of_top, of_all = np.nanmedian(lengths[rows.top]), np.nanmedian(lengths)
        return f"{best} has contexts of {of_top:,.0f} tokens, against {of_all:,.0f} for all (medians)."
    return f"{best} has ranks, and no measured column says what it needs."


def _contrasts(rows: RankedRows) -> Iterator[tuple[str, str, np.ndarray, float]]:
    """What rows may need, as far as columns say it: in words, with its number, a number a row, and by how much the best rows' median
    is clearly above that of all."""
    if (rows.record or {}).get("hmp") == "need_tokens" and "gateau_hmp" in rows.frame:
        words = "only far context lets the long model foresee about {} tokens of a response"
        yield "needs far text", words, rows.frame["gateau_hmp"].to_numpy(float), CLEAR_TOKENS
    for other, needs, words in (
        ("short", "needs far text", "than the short sibling does"),
        ("no_context", "needs its context", "with it than without"),
    ):
        columns = [f"gateau_ppl_{name}" for name in (other, "long")]
        if set(columns) <= set(rows.frame.columns):
            with np.errstate(all="ignore"):
                less, more = (np.log(rows.frame[name].to_numpy(float)) for name in columns)
                difference = less - more
            yield needs, f"the long model finds its responses {{}} nats a token likelier {words}", difference, CLEAR


def cut_rows(ds: Dataset) -> str | None:
    """How many rows were cut to `max_length`, and how much they lost; None where no column says. Rows that were measured
    before their lost tokens were counted only say whether they were cut."""
    lost, flags = (_column(ds, f"gateau_{name}") for name in ("num_cut_tokens", "truncated"))
    known = [number for number in lost if number is not None]
    unknown = [flag for number, flag in zip(lost, flags, strict=True) if number is None and flag is not None]
    if not known and not unknown:
        return None
    cut = sorted(number for number in known if number > 0)
    told = [f"{len(cut) + sum(unknown):,} of {len(known) + len(unknown):,}"]
    if cut:
        rest = sum(filter(None, _column(ds, "gateau_num_context_tokens")))
        share = f", {sum(cut) / (sum(cut) + rest):.1%} of all context tokens" if rest else ""
        each = f"{cut[0]:,}" if cut[0] == cut[-1] else f"{cut[0]:,} to {cut[-1]:,}"
        told.append(f"which lost {each} tokens from the beginning of their context ({sum(cut):,} in all{share})")
    if any(unknown):
        told.append(f"of {sum(unknown):,} these data do not say how much")
    return ", ".join(told)


def _column(ds: Dataset, name: str) -> list:
    return column_of(ds, name) if name in ds.column_names else [None] * len(ds)


def context_rules(ds: Dataset) -> str | None:
    """By which rule the context of how many rows was found, the commonest first; None where no column says."""
    if "gateau_context_rule" not in ds.column_names:
        return None
    meanings = {rule.name: rule.meaning for rule in RULES} | OTHER_RULES
    counts = Counter(rule for rule in column_of(ds, "gateau_context_rule") if rule is not None)
    named = {rule: f"{rule} ({meanings[rule]})" if rule in meanings else shortened(rule, 300) for rule in counts}
    return "; ".join(f"{named[rule]}: {count:,} rows" for rule, count in counts.most_common()) or None


def about(ds: Dataset) -> list[tuple[str, str]]:
    """Data, models, what of the rows was read: names and values."""
    found = {"cut by max_length": cut_rows(ds), "context found by": context_rules(ds)}
    return [*behind(ds), *((name, value) for name, value in found.items() if value)]


def glossary(record: dict[str, Any] | None) -> dict[str, str]:
    """Each number that is shown of a row, and what it means, as these rows were ranked; see `ranking_record`."""
    record = record or {}
    hmp, cas, combine = (record.get(name) for name in ("hmp", "cas", "combine"))
    found = {"score": "what rows are ordered by; high: train on this"}
    if hmp in HMP_WORDS and cas in CAS_WORDS:
        alpha = record.get("alpha", 0.8)
        found["score"] += f". {alpha:g} times HMP + {1 - alpha:g} times CAS, {COMBINE_WORDS.get(combine, combine)}"
    elif record.get("what") and hmp not in HMP_WORDS and cas not in CAS_WORDS:
        found["score"] += f". {record['what']}"
    found["perplexity"] = "how hard the response is for a model; 1: certain of every token"
    found["need"] = "nats a token by which the response is likelier for the long model than for the short sibling"
    if hmp in HMP_WORDS or not record:
        found["HMP"] = HMP_WORDS.get(hmp, "how much harder the response is for the short sibling (Eq. 2)")
    if cas in CAS_WORDS or not record:
        found["CAS"] = CAS_WORDS.get(cas, "how attention and what segments tell go together (Eq. 5)")
    found["gain"] = (
        "nats a token by which one segment alone makes the response likelier than no context (the segment's importance); "
        + SCALES["gain"]
    )
    found["attention"] = f"what a segment's tokens get of the response's attention; {SCALES['attention']}"
    return found
