"""What goes through a model at a time: sequences of different lengths in dense batches, padded on the right.

Under causal attention no token sees what follows it, so padding on the right needs no mask and changes no number: the
fast kernels serve such a batch, and all that it costs is the padding's own arithmetic.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass


MOST_TOGETHER = 16  # samples on one context whose numbers are in memory alone until all are measured
MOST_PADDING = 1 / 8  # share of a sequence that may be padding: less is cheaper than another pass


@dataclass(frozen=True)
class Cut:
    """How a context is cut into segments, and which of them are measured.

    Attributes:
        length (`int`): L of Eqs. 3 and 4, in tokens.
        stride (`int`): every so-many-th segment is measured, the last included.
    """

    length: int
    stride: int = 1

    def __call__(self, segments: Sequence) -> list:
        """Of all segments, in order, those that are measured."""
        return list(segments[(len(segments) - 1) % self.stride :: self.stride])

    def starts(self, num_tokens: int) -> list[int]:
        """Where the measured segments of a context of `num_tokens` start, in tokens from its start."""
        return self(range(0, num_tokens, self.length))


@dataclass
class Limits:
    """What may go through a model at a time; lowered for good where it turns out not to fit into memory.

    Attributes:
        batch_tokens (`int`): most tokens in a batch of several sequences.
        piece_tokens (`float`): most tokens of a context in one forward pass; a longer context goes in pieces, over the keys
            and values of those before.
    """

    batch_tokens: int
    piece_tokens: float = math.inf


def pack(lengths: Sequence[int], batch_tokens: int, kinds: Sequence[int] | None = None) -> list[list[int]]:
    """Cut sequences into batches; returns their places, every place once.

    Args:
        lengths: tokens of each sequence.
        batch_tokens (`int`): most tokens in a batch, padding included; a sequence that is longer is a batch by itself.
        kinds (*optional*): of each sequence; those of one kind alone may share a batch.
    """
    batches: list[list[int]] = []
    kinds = [0] * len(lengths) if kinds is None else kinds
    for place in sorted(range(len(lengths)), key=lambda i: (kinds[i], -lengths[i], i)):
        batch = batches[-1] if batches and kinds[batches[-1][0]] == kinds[place] else []
        longest = lengths[batch[0]] if batch else 0
        if batch and lengths[place] >= (1 - MOST_PADDING) * longest and (len(batch) + 1) * longest <= batch_tokens:
            batch.append(place)
        else:
            batches.append([place])
    return batches
