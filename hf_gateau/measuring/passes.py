"""All raw numbers of some samples, from as few forward passes as there can be.

One pass of the long model gives a response's perplexity and its attention to the segments; one pass of the short sibling,
one of the long model without the context, and the segment passes give the rest. Short samples share passes; samples on
one context share what goes before their instructions.
"""

import logging
from collections.abc import Callable, Container, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import fields, replace
from itertools import chain, islice
from math import isfinite

import numpy as np
import torch

from ..models.abilities import abilities_of
from ..models.collected import HeadAttention, ResponseAttention
from ..models.device import is_out_of_memory, lost_device, release_memory, to_host
from ..models.packing import MOST_TOGETHER, Cut, Limits, pack
from ..models.perplexity import batch_nlls, batching_kinds, perplexity, response_nlls
from ..models.prefill import Prefill
from ..models.rope import is_settled
from ..rows.samples import Sample
from ..store.sqlite import MeasureError, Measurement
from .heads import HeadCalibration, segment_distances
from .segments import BestSegments, num_far_segments, segment_nlls, shared_segment_nlls


logger = logging.getLogger(__name__)

LEAST_PIECE_TOKENS = 1_024  # a context is not cut into smaller pieces


def bunches(samples: Sequence[Sample], limits: Limits) -> list[list[int]]:
    """Cut samples into bunches to measure together; returns their places, every place once.

    Samples on one context come together, up to `MOST_TOGETHER`; short ones, as many as fit into one batch, those of similar length
    with each other, the longest first.
    """
    by_context: dict[str, list[int]] = {}
    for place, sample in enumerate(samples):
        by_context.setdefault(sample.context_key, []).append(place)
    of_lengths = []
    for places in by_context.values():
        for start in range(0, len(places), MOST_TOGETHER):
            together = places[start : start + MOST_TOGETHER]
            of_lengths.append((max(samples[i].response_end for i in together), together))
    found, num_tokens = [], limits.batch_tokens
    for longest, together in sorted(of_lengths, key=lambda part: -part[0]):
        num_tokens += longest
        if num_tokens > limits.batch_tokens:
            found.append([])
            num_tokens = longest
        found[-1] += together
    return found


def measure_samples(
    pair,
    samples: Sequence[Sample],
    cut: Cut,
    limits: Limits,
    watch: Callable[[str], AbstractContextManager] = nullcontext,
    heads: HeadCalibration | None = None,
    segments: bool = True,
    before: Sequence[Measurement] | None = None,
) -> list[Measurement | MeasureError]:
    """Measure some samples, which are all in memory at a time.

    Args:
        pair (`ModelPair`): the siblings.
        samples: in any order; those with one prefix and one context are measured together.
        cut: where segments end, and which are measured.
        limits: of one forward pass; lowered where memory runs out.
        watch: makes the context that each part runs in, from its name: 'long', 'no_context', 'short' or 'segments'.
        heads: that tell of segments, which are not measured then; None to measure them.
        segments: False to leave them for another time.
        before: what was measured of the samples when they were left, so that nothing but their segments is.

    Returns:
        for each sample its `Measurement`, or why there is none: it does not fit into memory, or the models give no finite
        numbers for it.
    """
    pair.load()
    try:
        found = _Work(pair, samples, cut, limits, heads).measure(watch, segments, before)
        return [_checked(x) for x in found]
    except Exception as error:  # one bad row never ends a run, whatever the model's own code raises
        if lost_device(error):
            raise
        ran_out = is_out_of_memory(error)
        failure = _failure_of(error, samples[0], ran_out)
    release_memory(pair.device)  # here the failed pass's tensors are gone, with the exception
    if len(samples) > 1:
        logger.info("%d samples go one by one: %s", len(samples), failure)
        alone = [(x, None if before is None else [before[i]]) for i, x in enumerate(samples)]
        how = (cut, limits, watch, heads, segments)
        return [found for x, known in alone for found in measure_samples(pair, [x], *how, known)]
    if ran_out and _goes_in_smaller_pieces(pair, samples[0], limits):
        return measure_samples(pair, samples, cut, limits, watch, heads, segments, before)
    return [failure]


def _failure_of(error: Exception, sample: Sample, ran_out: bool) -> MeasureError:
    """Why a sample has no numbers. It keeps nothing of the exception, whose traceback holds the tensors of the failed pass."""
    if ran_out:
        return MeasureError(
            f"out of memory on {sample.response_end} tokens; lower max_length, or use a device with more"
        )
    logger.warning("The model failed on a row of %d tokens.", sample.response_end, exc_info=error)
    return MeasureError(f"the model failed on it: {type(error).__name__}: {' '.join(str(error).split())[:300]}")


def _goes_in_smaller_pieces(pair, sample: Sample, limits: Limits) -> bool:
    """Halve the pieces that long contexts go in, if this one can go in pieces at all."""
    smaller = min(limits.piece_tokens, len(sample.context)) // 2
    if smaller < LEAST_PIECE_TOKENS or not shares_past(pair, sample):
        return False
    limits.piece_tokens = smaller
    logger.warning("Out of memory: contexts go through the models in pieces of %d tokens.", smaller)
    return True


def head_attention(pair, sample: Sample, cut: Cut, limits: Limits) -> tuple[list[tuple[int, int]], np.ndarray]:
    """Mean attention of a sample's response to each token of a segment, by every head of the long model.

    Returns:
        (layer, head) of the H heads, and `np.ndarray` of shape (S, H), float32.
    """
    pair.load()
    _, collected, _ = _Work(pair, [sample], cut, limits).long(lambda samples: HeadAttention(samples, cut))
    [attention] = collected
    return attention.names(), attention.segment_heads()[0].float().numpy()


def measure_sample(pair, sample: Sample, cut: Cut, limits: Limits, watch=nullcontext, heads=None) -> Measurement:
    """`measure_samples` of one.

    Raises:
        MeasureError: the sample cannot be measured.
    """
    [found] = measure_samples(pair, [sample], cut, limits, watch, heads)
    if isinstance(found, MeasureError):
        raise found
    return found


def shares_past(pair, sample: Sample) -> bool:
    """Whether a sample's context may go through the models before the rest of it: with other samples, or in pieces."""
    configs = [pair.long.config] + ([pair.short_config] if pair.config.short_window is None else [])
    return bool(sample.instruction) and all(
        abilities_of(config).keeps_past and is_settled(config, sample.response_end) for config in configs
    )


class _Work:
    """The passes over some samples, whose results go by their places."""

    def __init__(
        self, pair, samples: Sequence[Sample], cut: Cut, limits: Limits, heads: HeadCalibration | None = None
    ):
        self.pair, self.samples, self.cut, self.limits, self.heads = pair, samples, cut, limits, heads
        by_context: dict[str | int, list[int]] = {}
        for place, sample in enumerate(samples):
            key = sample.context_key if shares_past(pair, sample) else place
            by_context.setdefault(key, []).append(place)
        self.together = [places for places in by_context.values() if len(places) > 1]
        alone = [places[0] for places in by_context.values() if len(places) == 1]
        in_pieces = {i for i in alone if self._goes_in_pieces(i)}
        self.reusing = set(filter(self._reuses, range(len(samples))))
        apart = sorted(in_pieces | self.reusing.intersection(alone))
        self.prefilled = [*self.together, *([place] for place in apart)]
        self.alone, self.whole = alone, [place for place in alone if place not in apart]

    def _goes_in_pieces(self, place: int) -> bool:
        """Whether a sample's context is too long for one pass, and may go in several."""
        sample = self.samples[place]
        return len(sample.context) > self.limits.piece_tokens and shares_past(self.pair, sample)

    def _reuses(self, place: int) -> bool:
        """Whether a sample's short pass takes keys and values of its long one."""
        sample = self.samples[place]
        if self.pair.config.short_pass != "reuse" or not sample.instruction:
            return False
        return len(self.pair.short_context(sample)) < len(sample.context)

    def measure(self, watch, segments: bool = True, before: Sequence[Measurement] | None = None) -> list[Measurement]:
        """The passes that are wanted, whose results the device keeps until it has them all; then the numbers."""
        places, attentions = range(len(self.samples)), []
        of_whole = dict.fromkeys(places, [])
        if before is None:
            of_whole, attentions = self.whole_rows(watch)
        of_segments = dict.fromkeys(places, [])
        if segments := segments and self.heads is None:
            with watch("segments"):
                of_segments = self.segments()
        read = read_at_once([[*of_whole[i], *of_segments[i]] for i in places], attentions)
        attention = {id(x): y for found in attentions for x, y in zip(found.samples, self.seen(found), strict=True)}
        found = before
        if before is None:
            found = [self.measurement(x, attention[id(x)], *read[i][:3]) for i, x in enumerate(self.samples)]
        return [self.completed(found[i], read[i][len(of_whole[i]) :]) for i in places] if segments else [*found]

    def whole_rows(self, watch) -> tuple[dict[int, list[torch.Tensor]], list[ResponseAttention]]:
        """NLLs of the responses as the short sibling sees them, after everything, and without context; and the attention that was
        collected."""
        with watch("long"):
            long, attentions, reused = self.long(self.collector)
        with watch("no_context"):
            no_context = self.packed(self.pair.long, {place: [] for place in range(len(self.samples))})
        short = reused
        if self.pair.is_self_paired:  # where the window shows everything: the same model on the same tokens
            seen = enumerate(map(self.pair.short_context, self.samples))
            short |= {i: long[i] for i, context in seen if len(context) == len(self.samples[i].context)}
        if len(short) < len(self.samples):
            with watch("short"):
                short |= self.short(without=short)
        return {i: [short[i], long[i], no_context[i]] for i in long}, attentions

    def measurement(self, sample: Sample, attention: list[float], short_R, long_R, no_context_R) -> Measurement:
        """What is kept of a sample, from what is seen in its attention, and the negative log-likelihoods of its response's tokens
        under each context."""
        found = Measurement(
            ppl_short=perplexity(short_R),
            ppl_long=perplexity(long_R),
            ppl_no_context=perplexity(no_context_R),
            num_far_segments=num_far_segments(len(sample.context), self.pair.num_near(sample), self.cut),
            token_nll_long=_as_float32(long_R),
            token_nll_short=_as_float32(short_R),
            token_nll_no_context=_as_float32(no_context_R),
        )
        return replace(found, **{"segment_attention" if self.heads is None else "segment_heads": attention})

    def completed(self, found: Measurement, segments: Sequence[torch.Tensor]) -> Measurement:
        """The same with what segments alone tell."""
        best = BestSegments.of(segments, found.num_far_segments)
        return replace(
            found,
            segment_ppl=[perplexity(nll_R) for nll_R in segments],
            token_nll_far=_as_float32(best.far_R),
            token_nll_near=_as_float32(best.near_R),
            token_far_segment=best.place_R.tolist(),
        )

    def collector(self, samples: Sequence[Sample]) -> ResponseAttention:
        """What sees the attention in the long pass of some samples."""
        return ResponseAttention(samples) if self.heads is None else HeadAttention(samples, self.cut, self.heads.heads)

    def seen(self, attention: ResponseAttention) -> list[list[float]]:
        """What it has seen of each sample's segments."""
        if self.heads is None:
            return attention.segment_means(self.cut)
        return [
            self.heads.calibrated(found.numpy(), sample_distances(sample, self.cut)).tolist()
            for sample, found in zip(attention.samples, attention.segment_heads(), strict=True)
        ]

    def long(
        self, collector: Callable[[Sequence[Sample]], ResponseAttention]
    ) -> tuple[dict[int, torch.Tensor], list[ResponseAttention], dict[int, torch.Tensor]]:
        """NLLs of the responses after everything; the attention that was collected of all samples; and NLLs of those whose short
        pass reuses this one."""
        found, attentions, reused = {}, [], {}
        with self.pair.long_with_attention() as model:
            lengths = [self.samples[i].response_end for i in self.whole]
            kinds = batching_kinds(model.config, lengths)
            for batch in pack(lengths, self.limits.batch_tokens, kinds):
                places = [self.whole[i] for i in batch]
                samples = [self.samples[i] for i in places]
                attentions.append(collector(samples))
                prompts, responses = [x.prompt for x in samples], [x.response for x in samples]
                nlls = batch_nlls(model, prompts, responses, full=True, response_attention=attentions[-1])
                found |= dict(zip(places, nlls, strict=True))
            for place, prefill, sample in self.after_prefill(model):
                attentions.append(collector([sample]))
                collected = {"full": True, "response_attention": attentions[-1]}
                [found[place]] = prefill.nlls(sample.instruction, sample.response, **collected)
                if place in self.reusing:
                    borders = len(sample.prefix), len(self.pair.short_context(sample))
                    [reused[place]] = prefill.windowed_nlls(*borders, sample.instruction, sample.response)
        return found, attentions, reused

    def short(self, without: Container[int]) -> dict[int, torch.Tensor]:
        """NLLs of the responses as the short sibling sees them, but for some."""
        contexts = {i: self.pair.short_context(x) for i, x in enumerate(self.samples) if i not in without}
        with self.pair.short() as model:
            if self.pair.config.short_window is not None:
                return self.packed(model, contexts)
            found = self.packed(model, {place: contexts[place] for place in self.whole})
            for place, prefill, sample in self.after_prefill(model):
                [found[place]] = prefill.nlls(sample.instruction, sample.response)
            return found

    def segments(self) -> dict[int, list[torch.Tensor]]:
        """NLLs of the responses from each segment alone."""
        model, length, limits = self.pair.long, self.cut, self.limits
        alone = segment_nlls(model, [self.samples[i] for i in self.alone], length, limits)
        found = dict(zip(self.alone, alone, strict=True))
        for places in self.together:
            shared = shared_segment_nlls(model, [self.samples[i] for i in places], length, limits)
            found |= dict(zip(places, shared, strict=True))
        return found

    def packed(self, model, contexts: dict[int, list[int]]) -> dict[int, torch.Tensor]:
        """NLLs of the responses of some samples with other contexts in place of their own."""
        samples = [self.samples[i] for i in contexts]
        prompts = [x.prefix + context + x.instruction for x, context in zip(samples, contexts.values(), strict=True)]
        nlls = response_nlls(model, prompts, [x.response for x in samples], self.limits)
        return dict(zip(contexts, nlls, strict=True))

    def after_prefill(self, model) -> Iterator[tuple[int, Prefill, Sample]]:
        """The samples that share a context, or whose context goes in pieces."""
        for places in self.prefilled:
            first = self.samples[places[0]]
            prefill = Prefill(model, [first.prefix + first.context], self.limits.piece_tokens)
            for place in places:
                yield place, prefill, self.samples[place]


def sample_distances(sample: Sample, cut: Cut) -> np.ndarray:
    """`segment_distances` of a sample's measured segments."""
    return segment_distances(cut.starts(len(sample.context)), cut.length, len(sample.context))


def read_at_once(
    nlls: Sequence[Sequence[torch.Tensor]], attentions: Sequence[ResponseAttention]
) -> list[list[torch.Tensor]]:
    """NLLs in float64 on the CPU, with the attentions' totals: what a GPU has still to compute is waited for once."""
    totals = [total for attention in attentions for total in attention.totals]
    found = iter(to_host([*chain.from_iterable(nlls), *totals]))
    read = [list(islice(found, len(of_one))) for of_one in nlls]
    for attention in attentions:
        attention.totals = list(islice(found, len(attention.totals)))
    return read


def _as_float32(nll_R: torch.Tensor) -> list[float]:
    """What is kept of tokens: float32, so that numbers read from a store are those that were measured."""
    return nll_R.float().tolist()


def _checked(measurement: Measurement) -> Measurement | MeasureError:
    for field in fields(Measurement):
        value = getattr(measurement, field.name)
        numbers = value if isinstance(value, list) else [value] if value is not None else []
        bad = [number for number in numbers if not isfinite(number)]
        if bad:
            return MeasureError(f"{field.name} is {bad[0]}: the models give no finite numbers for this row")
    return measurement
