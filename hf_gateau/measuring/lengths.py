"""What the lengths of all rows make of the settings: the window that they leave open, whether they leave anything to measure, and
whether the short sibling stands them."""

from __future__ import annotations

import logging
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import exp, log
from typing import TYPE_CHECKING

import numpy as np

from ..models.config import DEFAULT_SHORT_WINDOW, ModelPairConfig
from ..rows.cuts import Cuts
from ..rows.samples import Sample
from ..store.sqlite import Measurement
from .config import MeasureConfig


if TYPE_CHECKING:
    from datasets import Dataset

logger = logging.getLogger(__name__)

LEAST_WINDOW = 64  # tokens: the instruction stands in it too
WORTH_TELLING = 0.2  # share of the rows that settings leave without a number
HMP, CAS = "HMP", "CAS"
# The short sibling is broken by length, not short of information, when seeing more makes it this much worse (nats).
BREAKS_ON_LENGTH_NATS, BREAKS_ON_LENGTH_ROWS = log(2), 8


def default_window(median_context: float) -> int:
    """The `short_window` for rows of so many context tokens: the largest power of two that is at most a quarter of that, no
    more than 4,096, the paper's, and no less than 64.

    A window that holds the context shows the short sibling what the long model sees, and tells nothing. It is part of what a
    measurement is known by, hence the coarse steps: some rows more or less seldom change it.
    """
    quarter = int(median_context) // 4
    return min(DEFAULT_SHORT_WINDOW, max(LEAST_WINDOW, 1 << max(0, quarter.bit_length() - 1)))


@dataclass
class Lengths:
    """Tokens of all rows that can be laid out; each array has a value a row.

    Attributes:
        context, instruction: as they are measured.
        lost: context tokens that were dropped to fit `max_length`.
    """

    context: np.ndarray
    instruction: np.ndarray
    lost: np.ndarray

    @classmethod
    def of_survey(cls, table: Dataset) -> Lengths:
        """Of the rows of `survey_rows`."""
        names = ("num_tokens", "num_prefix_tokens", "gateau_num_context_tokens", "gateau_num_response_tokens")
        columns = table.select_columns([*names, "gateau_num_cut_tokens"]).with_format("arrow")[:]
        tokens, prefix, context, response, lost = (x.drop_null().to_numpy() for x in columns.columns)
        return cls(context, tokens - prefix - context - response, lost)

    @classmethod
    def of_samples(cls, samples: Sequence[tuple[Sample, int]]) -> Lengths:
        """Of samples, each with the number of rows that it stands for."""
        weights = np.array([weight for _, weight in samples], int)
        spans = [(len(x.context), x.response_start - x.context_end, x.num_truncated) for x, _ in samples]
        return cls(*np.repeat(np.array(spans, int).reshape(-1, 3), weights, axis=0).T)

    @classmethod
    def joined(cls, parts: Sequence[Lengths]) -> Lengths:
        """Of rows in parts."""
        return cls(*(np.concatenate([getattr(x, name) for x in parts]) for name in cls.__dataclass_fields__))

    def __len__(self) -> int:
        return len(self.context)

    @property
    def cuts(self) -> Cuts:
        """What was dropped to fit `max_length`."""
        cut = self.lost > 0
        before = int((self.lost + self.context)[cut].sum())
        return Cuts(int(cut.sum()), len(self), int(self.lost.sum()), before)

    @property
    def median_context(self) -> float:
        return float(np.median(self.context))

    def window(self) -> int:
        """The `default_window` of these rows."""
        return default_window(self.median_context) if len(self) else DEFAULT_SHORT_WINDOW

    def fit_window(self, window: int) -> np.ndarray:
        """Whether the window holds the whole context of each row, so that it shows the short sibling all of it."""
        return self.context <= np.maximum(0, window - self.instruction)

    def num_segments(self, length: int, stride: int) -> np.ndarray:
        """Segments of each row that are measured."""
        return (-(-self.context // length) - 1) // stride + 1


def check_lengths(
    lengths: Lengths, pair: ModelPairConfig, measure: MeasureConfig, needs: Sequence[str] = (HMP, CAS)
) -> None:
    """Refuse settings under which no row has an HMP or no row has a CAS, and warn where they are many.

    Args:
        needs: what is wanted of the rows.

    Raises:
        ValueError: a setting leaves all rows without one of them.
    """
    for told, is_all in losses(lengths, pair, measure, needs):
        if is_all:
            raise ValueError(told)
        logger.warning("%s", told)


def losses(
    lengths: Lengths, pair: ModelPairConfig, measure: MeasureConfig, needs: Sequence[str] = (HMP, CAS)
) -> Iterator[tuple[str, bool]]:
    """For each setting that leaves many rows without what is needed: how many and what to do, and whether it is all of them."""
    for what, (are_lost, said, consequence, advice) in _lost(lengths, pair, measure):
        lost = int(are_lost.sum())
        if what not in needs or not len(lengths) or lost <= WORTH_TELLING * len(lengths):
            continue
        of = f"all {len(lengths):,} rows" if lost == len(lengths) else f"{lost:,} of {len(lengths):,} rows"
        sizes = f"median context {lengths.median_context:,.0f} tokens, longest {lengths.context.max():,}"
        cut = f" {lengths.cuts.told()}; a larger max_length keeps more of it." if lengths.cuts else ""
        yield f"{said} of {of} ({sizes}): {consequence}. {advice}{cut}", lost == len(lengths)


def _lost(lengths: Lengths, pair: ModelPairConfig, measure: MeasureConfig) -> Iterator[tuple]:
    """What is measured -> (which rows have none of it, by which setting, what that means, what to do)."""
    if pair.short_model is None and pair.short_rope_scale is None:
        yield (
            HMP,
            (
                lengths.fit_window(pair.short_window),
                f"short_window={pair.short_window} holds the whole context",
                "the short sibling would see what the long model sees, and their HMP would be 0",
                f"Give a smaller short_window, such as {min(lengths.window(), max(1, pair.short_window // 2))}.",
            ),
        )
    length, stride = measure.segment_length, measure.segment_stride
    said = f"segment_length={length}" + (f" with segment_stride={stride}" if stride > 1 else "")
    shorter = max(1, min(MeasureConfig.segment_length, lengths.window() // 4, length // 2))
    yield (
        CAS,
        (
            lengths.num_segments(length, stride) < 2,
            f"{said} leaves fewer than 2 segments to measure in the context",
            "their CAS, which compares segments, would be undefined",
            f"Give a smaller segment_length, such as {shorter}" + (", or segment_stride=1." if stride > 1 else "."),
        ),
    )


class LengthCheck:
    """Warns when the short sibling breaks outright on long input, so that every long sample would look long-range.

    On the first rows longer than the short model's own window, it is also run on the end of the context that fits: a
    sound model is not made worse by seeing more.
    """

    def __init__(self, pair, config: ModelPairConfig):
        from ..models.rope import context_window

        self.pair, self.losses, self.window = pair, [], context_window(pair.short_config)
        self.applies = config.short_window is None

    def see(self, sample: Sample, measurement: Measurement) -> None:
        if not self.applies or sample.response_end <= self.window or len(self.losses) == BREAKS_ON_LENGTH_ROWS:
            return
        from ..models.perplexity import batch_nlls

        room = max(0, self.window - (sample.response_end - len(sample.context)))
        prompt = sample.prefix + sample.context[len(sample.context) - room :] + sample.instruction
        with self.pair.short() as model:
            nll_of_end = batch_nlls(model, [prompt], [sample.response])[0].mean().item()
        self.losses.append(log(measurement.ppl_short) - nll_of_end)
        if len(self.losses) == BREAKS_ON_LENGTH_ROWS and statistics.median(self.losses) > BREAKS_ON_LENGTH_NATS:
            logger.warning(
                "The short model's perplexity is %.1f times higher on whole samples than on the last %d tokens of them: "
                "it breaks on length, so every long sample will look long-range. Set short_rope_scale (200 in the paper) "
                "or short_window=%d.",
                exp(statistics.median(self.losses)), self.window, self.window,
            )  # fmt: skip
