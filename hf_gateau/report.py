"""Figures and text from columns: how well scores put the wanted rows first, and what one sample looks like.

Shapes: n rows; `scores` (n,) float, high = wanted; `positive` (n,) bool, which rows are wanted in truth.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from .conversations import last_paragraph, read_turns


BLOCKS = "▁▂▃▄▅▆▇█"

Statistic = Callable[[np.ndarray, np.ndarray], float]


def auroc(scores: np.ndarray, positive: np.ndarray) -> float:
    """The probability that a positive row scores higher than a negative one, a tie counting half (Mann-Whitney's U
    over the number of pairs): 1 is perfect, 0.5 chance, 0 exactly the wrong way round.

    Raises:
        ValueError: a score is NaN, the shapes differ, or one of the two classes is empty.
    """
    scores, positive = _checked(scores, positive)
    wanted, others = scores[positive], np.sort(scores[~positive])
    if not len(wanted) or not len(others):
        raise ValueError(
            f"AUROC compares two classes, got {len(wanted)} positive and {len(others)} negative rows; give both."
        )
    below = np.searchsorted(others, wanted, "left") + np.searchsorted(others, wanted, "right")
    return float(below.sum() / (2 * len(wanted) * len(others)))


def precision_at(scores: np.ndarray, positive: np.ndarray, fraction: float) -> float:
    """The share of positive rows among the best `fraction` of all, rounded to whole rows, at least one.

    Where the border runs through tied scores, the tied rows inside count with the positive share of all that are tied:
    what breaking the tie at random gives on average.

    Raises:
        ValueError: a score is NaN, the shapes differ, there are no rows, or fraction is not in (0, 1].
    """
    scores, positive = _checked(scores, positive)
    if not 0 < fraction <= 1:
        raise ValueError(f"fraction={fraction!r} is not above 0 and at most 1; use e.g. 0.1 for the best tenth.")
    if not len(scores):
        raise ValueError("precision_at needs at least one row, got none.")
    num_kept = max(1, round(fraction * len(scores)))
    border = np.sort(scores)[-num_kept]
    above, tied = scores > border, scores == border
    return float((positive[above].sum() + (num_kept - above.sum()) * positive[tied].mean()) / num_kept)


def bootstrap_interval(
    statistic: Statistic,
    scores: np.ndarray,
    positive: np.ndarray,
    *,
    level: float = 0.95,
    num_resamples: int = 2000,
    seed: int = 0,
) -> tuple[float, float]:
    """Percentile bootstrap interval of `statistic(scores, positive)`, from rows drawn with replacement.

    Positive and negative rows are drawn apart (stratified), so that every draw has as many of each as the data. It has
    no width where the statistic is at its bound on the data, however few they are.

    Raises:
        ValueError: a score is NaN, the shapes differ, or level is not between 0 and 1.
    """
    scores, positive = _checked(scores, positive)
    if not 0 < level < 1:
        raise ValueError(f"level={level!r} is not between 0 and 1; use e.g. 0.95.")
    rng = np.random.default_rng(seed)
    strata = [np.flatnonzero(positive == value) for value in (True, False)]
    draws = np.empty(num_resamples)
    for i in range(num_resamples):
        rows = np.concatenate([rng.choice(stratum, len(stratum)) for stratum in strata if len(stratum)])
        draws[i] = statistic(scores[rows], positive[rows])
    low, high = np.quantile(draws, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def _checked(scores: np.ndarray, positive: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    scores, positive = np.asarray(scores, dtype=np.float64), np.asarray(positive, dtype=bool)
    if scores.ndim != 1 or scores.shape != positive.shape:
        raise ValueError(f"scores and positive must be (n,) alike, got {scores.shape} and {positive.shape}.")
    if np.isnan(scores).any():
        raise ValueError(f"{np.isnan(scores).sum()} of {len(scores)} scores are null; leave out rows without a rank.")
    return scores, positive


# One sample as text


def strip(values: list[float]) -> str:
    """One block a value, from the lowest to the highest; a line of middling blocks where all are equal."""
    low, high = min(values), max(values)
    if high == low:
        return BLOCKS[3] * len(values)
    return "".join(BLOCKS[round((value - low) / (high - low) * (len(BLOCKS) - 1))] for value in values)


def sample_text(row: dict[str, Any], num_ranked: int, width: int = 100) -> str:
    """A ranked sample for the terminal: its numbers, its segments' importance and attention, its instruction and response.

    Args:
        row: a row with raw and derived columns, and `messages` or the explicit columns.
        num_ranked (`int`): how many rows have a rank.
        width (`int`): characters in a line.
    """
    ppl = {name: _number(row.get(f"gateau_ppl_{name}"), 2) for name in ("short", "long", "no_context")}
    terms = [f"{name} {row[f'gateau_{name}']:.3f}" for name in ("hmp", "cas") if row.get(f"gateau_{name}") is not None]
    lines = [
        f"rank {row['gateau_rank']} of {num_ranked}  id {row.get('id')}  score {row['gateau_score']:.4f}  {'  '.join(terms)}",
        f"perplexity  short {ppl['short']}  long {ppl['long']}  without context {ppl['no_context']}",
        *_segment_lines(row, width),
    ]
    context, instruction, response = sample_texts(row)
    for name, text in (("context", context), ("instruction", instruction), ("response", response)):
        lines.append(f"{name:<12}{shortened(text, width - 12)}")
    return "\n".join(lines)


def _number(value: float | None, digits: int) -> str:
    return "unknown" if value is None else f"{value:.{digits}f}"


def _segment_lines(row: dict[str, Any], width: int) -> list[str]:
    """Tall = this segment alone tells much of the response, or gets much of its attention; the end is on the right."""
    if not (measures := segment_measures(row)):
        return []
    num_segments = len(measures["importance"])
    merged = {name: merge_segments(values, max(1, width - 30)) for name, values in measures.items()}
    per_block = -(-num_segments // len(merged["importance"]))
    unit = f"{num_segments} segments" + (f", {per_block} to a block" if per_block > 1 else "")
    return [f"importance  {strip(merged['importance'])}  {unit}", f"attention   {strip(merged['attention'])}"]


def segment_measures(row: dict[str, Any]) -> dict[str, list[float]]:
    """`importance`, minus the log of a segment's perplexity, and `attention`, a value a segment; high = matters.

    Empty where the row has no segments, or a value that is null or not finite.
    """
    columns = [row.get(f"gateau_segment_{name}") or [] for name in ("ppl", "attention")]
    ppl, attention = (np.array(column, dtype=np.float64) for column in columns)
    if not len(ppl) or len(ppl) != len(attention) or not (np.isfinite(ppl).all() and np.isfinite(attention).all()):
        return {}
    return {"importance": (-np.log(ppl)).tolist(), "attention": attention.tolist()} if ppl.min() > 0 else {}


def merge_segments(values: list[float], num_blocks: int) -> list[float]:
    """The highest value of each block of neighbours, at most `num_blocks` of them."""
    per_block = -(-len(values) // num_blocks)
    return [max(values[start : start + per_block]) for start in range(0, len(values), per_block)]


def in_words(name: str, values: list[float]) -> str:
    """Where along its segments a measure of a sample is highest."""
    high = max(values)
    where = f"the highest {name} at segment {values.index(high) + 1} of {len(values)}"
    return f"{len(values)} segments; {where if high > min(values) else f'{name} is equal in all of them'}"


def sample_texts(row: dict[str, Any]) -> tuple[str, str, str]:
    """Context, instruction and response of a row in any of the forms that can be measured; empty where there is none."""
    if not (turns := read_turns(row)):
        return tuple(row.get(name) or "" for name in ("context", "instruction", "response"))
    *earlier, question, answer = ["", *(turn["content"] or "" for turn in turns)]
    end = last_paragraph(question)[1]
    return "\n\n".join([*filter(None, earlier), question[:end]]), question[end:], answer


def shortened(text: str, width: int) -> str:
    """The beginning and the end of a text on one line."""
    text = " ".join(text.split())
    half = (width - 5) // 2
    return text if len(text) <= width else f"{text[:half]} ... {text[-half:]}"
