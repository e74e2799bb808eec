"""The raw half of Eq. 3: how hard the response is when only one segment of the context is left.

Segments of one sample are equally long but for the last, and prefix, instruction and response are the same around each:
they run in dense batches. Several samples on one context share the keys and values of each segment.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

import torch

from ..models.packing import Cut, Limits
from ..models.perplexity import response_nlls
from ..models.prefill import Prefill
from ..rows.samples import Sample


def split_segments(context: list[int], cut: Cut) -> list[list[int]]:
    """`c[0:L], c[L:2L], ...`; the last may be shorter and is kept."""
    return [context[a : a + cut.length] for a in cut.starts(len(context))]


def num_far_segments(num_context: int, num_near: int, cut: Cut) -> int:
    """How many of the measured segments end before the last `num_near` tokens of a context of `num_context`: the first ones."""
    return sum(min(a + cut.length, num_context) <= num_context - num_near for a in cut.starts(num_context))


@dataclass(frozen=True)
class BestSegments:
    """For every response token, how well the best far and the best near segment alone predict it. Shapes: R response tokens.

    Attributes:
        far_R, near_R (`torch.Tensor`): lowest negative log-likelihood over far and over near segments, in nats; empty where
            there are none.
        place_R (`torch.Tensor`): which far segment that is, counted from 0; the first among equals.
    """

    far_R: torch.Tensor
    near_R: torch.Tensor
    place_R: torch.Tensor

    @classmethod
    def of(cls, nlls: Sequence[torch.Tensor], num_far: int) -> "BestSegments":
        """From the response's tokens under each segment, (R,) a segment, of which the first `num_far` are far."""
        lowest = [torch.stack(list(part)).min(0) if part else None for part in (nlls[:num_far], nlls[num_far:])]
        none = torch.empty(0)
        far_R, near_R = (none if part is None else part.values for part in lowest)
        return cls(far_R, near_R, none.long() if lowest[0] is None else lowest[0].indices)


def segment_nlls(model, samples: Sequence[Sample], cut: Cut, limits: Limits) -> list[list[torch.Tensor]]:
    """NLLs of each sample's response from each of its segments alone: Eq. 3 of arXiv 2410.15633 before mean, exp and softmax.

    Args:
        model: the long-window model.
        cut: where segments end, and which are measured.
        limits: of the batches, into which segments of all samples go together.

    Returns:
        one list a sample, for each segment a `torch.Tensor` (R,) over the response's tokens, in nats, as `batch_nlls` leaves it.
    """
    prompts, responses, counts = [], [], []
    for sample in samples:
        segments = split_segments(sample.context, cut)
        prompts += [sample.prefix + segment + sample.instruction for segment in segments]
        responses += [sample.response] * len(segments)
        counts.append(len(segments))
    nlls = iter(response_nlls(model, prompts, responses, limits))
    return [[next(nlls) for _ in range(count)] for count in counts]


def shared_segment_nlls(model, samples: Sequence[Sample], cut: Cut, limits: Limits) -> list[list[torch.Tensor]]:
    """`segment_nlls` of samples that have one prefix and one context, whose segments go through the model once.

    Every sample needs an instruction, and the model one past of keys and values (`abilities_of`).
    """
    contexts = [samples[0].prefix + segment for segment in split_segments(samples[0].context, cut)]
    longest_tail = max(sample.response_end - sample.context_end for sample in samples)
    size = max(1, limits.batch_tokens // (len(contexts[0]) + longest_tail))
    nlls = [[] for _ in samples]
    for _, same_length in groupby(contexts, key=len):
        same_length = list(same_length)
        for start in range(0, len(same_length), size):
            prefill = Prefill(model, same_length[start : start + size])
            for found, sample in zip(nlls, samples, strict=True):
                found += prefill.nlls(sample.instruction, sample.response)
    return nlls
