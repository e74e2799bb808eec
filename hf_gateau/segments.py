"""The raw half of Eq. 3: how hard the response is when only one segment of the context is left.

Segments of one sample are equally long but for the last, and prefix, instruction and response are the same around each:
they run in dense batches, without padding and without a mask.

Shapes: B batch, T tokens of prefix + segment + instruction + response, S segments.
"""

from collections.abc import Iterator

import torch

from .perplexity import response_nll
from .samples import Sample


def split_segments(context: list[int], segment_length: int) -> list[list[int]]:
    """`c[0:L], c[L:2L], ...`; the last may be shorter and is kept."""
    return [context[a : a + segment_length] for a in range(0, len(context), segment_length)]


def segment_nlls(model, sample: Sample, segment_length: int, batch_tokens: int) -> list[float]:
    """Mean NLL of the response from each segment alone: Eq. 3 of arXiv 2410.15633 before exp and softmax.

    Args:
        model: the long-window model.
        segment_length (`int`): L, tokens in a segment.
        batch_tokens (`int`): most tokens in one forward pass.

    Returns:
        `list[float]`, one per segment, in nats per token.
    """
    device = model.device
    response_R = torch.tensor(sample.response, device=device)
    nlls = []
    for batch in _batches(sample, segment_length, batch_tokens):
        nlls += response_nll(model, torch.tensor(batch, device=device), response_R).tolist()
    return nlls


def _batches(sample: Sample, segment_length: int, batch_tokens: int) -> Iterator[list[list[int]]]:
    tail = sample.instruction + sample.response[:-1]
    size = max(1, batch_tokens // (len(sample.prefix) + segment_length + len(tail)))
    segments = split_segments(sample.context, segment_length)
    num_full = len(sample.context) // segment_length
    for a in range(0, num_full, size):
        yield [sample.prefix + segment + tail for segment in segments[a : min(a + size, num_full)]]
    if num_full < len(segments):
        yield [sample.prefix + segments[-1] + tail]
