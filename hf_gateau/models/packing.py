"""What goes through a model at a time: sequences of different lengths in dense batches, padded on the right.

Under causal attention no token sees what follows it, so padding on the right needs no mask and changes no number: the
fast kernels serve such a batch, and all that it costs is the padding's own arithmetic.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass


MOST_TOGETHER = 16  # samples on one context whose numbers are in memory alone until all are measured
MOST_PADDING = 1 / 8  # share of a sequence that may be padding: less is cheaper than another pass
# Tokens of a batch on a GPU: as many as so many bytes of activations are of, and no more than fit into a share of what is free. Of a
# 7B model in half precision that is 65,000; a small one needs more tokens in flight to keep a GPU busy.
ACTIVATION_BYTES, ACTIVATION_SHARE = 8 << 30, 1 / 3
LEAST_TOKENS, MOST_TOKENS = 1_024, 1 << 18
# Rows of a chunk of attention where each sees a window of keys: those of the window, and no fewer than so many
LEAST_CHUNK_ROWS = 1_024
HIDDEN_SIZES = ("hidden_size", "n_embd", "d_model", "dim", "emb_dim", "model_dim")


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


def tokens_in_flight(config, itemsize: int, free: int) -> int:
    """Most tokens that a batch on a GPU is to have.

    Args:
        config: of a model of transformers.
        itemsize (`int`): bytes of one activation.
        free (`int`): bytes of the GPU's memory that are free, the weights being there.
    """
    tokens = min(ACTIVATION_BYTES, int(ACTIVATION_SHARE * free)) // (itemsize * activations_per_token(config))
    return max(LEAST_TOKENS, min(MOST_TOKENS, tokens))


def activations_per_token(config) -> int:
    """About how many numbers a pass holds for a token at its widest: in an MLP three times its width (of experts, those of the
    chosen), and beside it eight times the hidden size."""
    said = config.get_text_config().to_dict()
    hidden = next(
        (size for name in HIDDEN_SIZES if (size := said.get(name))), 4096
    )  # as of 7B where it has another name
    widths = [said.get(name) for name in ("intermediate_size", "n_inner", "ffn_dim", "ffn_hidden_size")]
    widths = [max(width) if isinstance(width, list) else width for width in widths if width]
    chosen = said.get("num_experts_per_tok") or 1
    experts = chosen * (said.get("moe_intermediate_size") or max(widths, default=0))
    return 3 * max([*widths, experts] if widths or experts else [4 * hidden]) + 8 * hidden


def chunk_rows(most_weights: int, num_heads: int, window: int, num_keys: int) -> int:
    """Query rows whose attention is computed at a time.

    All rows of a chunk go over the keys of each of them: where rows see a window, one that is much longer would be mostly in vain.

    Args:
        most_weights (`int`): attention weights that a chunk may give rise to.
        num_heads (`int`): heads of all sequences of a batch.
        window (`int`): most keys that a row sees.
        num_keys (`int`): keys of a sequence.
    """
    rows = max(1, most_weights // (num_heads * min(window, num_keys)))
    return rows if window >= num_keys else min(rows, max(window, LEAST_CHUNK_ROWS))


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
