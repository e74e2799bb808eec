"""The raw half of Eq. 3: how hard the response is when only one segment of the context is left.

Segments of one sample are equally long but for the last, and prefix, instruction and response are the same around each:
they run in dense batches. Several samples on one context share the keys and values of each segment.
"""

from collections.abc import Sequence
from itertools import groupby

from ..models.packing import Cut, Limits
from ..models.perplexity import response_nlls
from ..models.prefill import Prefill
from ..rows.samples import Sample


def split_segments(context: list[int], cut: Cut) -> list[list[int]]:
    """`c[0:L], c[L:2L], ...`; the last may be shorter and is kept."""
    return cut([context[a : a + cut.length] for a in range(0, len(context), cut.length)])


def segment_nlls(model, samples: Sequence[Sample], cut: Cut, limits: Limits) -> list[list[float]]:
    """Mean NLL of each sample's response from each of its segments alone: Eq. 3 of arXiv 2410.15633 before exp and softmax.

    Args:
        model: the long-window model.
        cut: where segments end, and which are measured.
        limits: of the batches, into which segments of all samples go together.

    Returns:
        one `list[float]` a sample, one number a segment, in nats per token.
    """
    prompts, responses, counts = [], [], []
    for sample in samples:
        segments = split_segments(sample.context, cut)
        prompts += [sample.prefix + segment + sample.instruction for segment in segments]
        responses += [sample.response] * len(segments)
        counts.append(len(segments))
    nlls = iter(response_nlls(model, prompts, responses, limits))
    return [[next(nlls) for _ in range(count)] for count in counts]


def shared_segment_nlls(model, samples: Sequence[Sample], cut: Cut, limits: Limits) -> list[list[float]]:
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
                found += prefill.nlls(sample.instruction, sample.response).tolist()
    return nlls
