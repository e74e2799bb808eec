"""Eq. 1: how hard a response is, in nats per token. Logits exist on response rows only, one chunk at a time.

Shapes: B batch, T tokens, R response tokens, N response rows of all sequences, D hidden size, V vocabulary.
"""

import logging
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import nn

from .abilities import abilities_of
from .attention import decoder_of
from .device import current, exact_dtype, free_bytes, is_out_of_memory, release_memory, to_device
from .last_layer import exchanged_forward, rows_read
from .masks import one_sequence_a_row
from .packing import Limits, pack
from .rope import forget_lengths, length_classes, unsettled_after


logger = logging.getLogger(__name__)

# Elements of one chunk of logits, float32: 64 MiB, which keeps a CPU's matrix product near its best rate (a head of 50,000
# tokens on 100 rows runs at two thirds of it, on 300 at five sixths); on Apple's GPUs 256 MiB.
LOGITS_PER_CHUNK, LOGITS_PER_CHUNK_MPS = 1 << 24, 1 << 26
# On an NVIDIA GPU as many as a share of its free memory holds, each with its float32 copies; more than 2 ** 30 need other indices.
LOGITS_SHARE, BYTES_PER_LOGIT, MOST_LOGITS = 1 / 4, 16, 1 << 30


def perplexity(nll: float | torch.Tensor) -> float:
    """`exp` of a mean, or of the mean of tokens' (R,): the outer half of Eq. 1 of arXiv 2410.15633; infinite where float64 ends."""
    try:
        return math.exp(nll.mean() if isinstance(nll, torch.Tensor) else nll)
    except OverflowError:
        return math.inf


def response_nlls(
    model, prompts: Sequence[list[int]], responses: Sequence[list[int]], limits: Limits
) -> list[torch.Tensor]:
    """Negative log-likelihoods of responses after prompts, as `batch_nlls`, in batches of `limits.batch_tokens`.

    Where memory runs out, that limit is halved, as long as a batch holds two sequences.
    """
    lengths = [len(prompt) + len(response) - 1 for prompt, response in zip(prompts, responses, strict=True)]
    kinds = batching_kinds(model.config, [length + 1 for length in lengths])
    nlls: list[torch.Tensor | None] = [None] * len(lengths)
    batches = pack(lengths, limits.batch_tokens, kinds)[::-1]
    while batches:
        batch = batches.pop()
        found = None
        try:
            found = batch_nlls(model, [prompts[i] for i in batch], [responses[i] for i in batch])
        except RuntimeError as error:
            if len(batch) == 1 or not is_out_of_memory(error):
                raise
        if found is None:  # here the failed pass's tensors are gone, with the exception
            release_memory(model.device)
            limits.batch_tokens = len(batch) * lengths[batch[0]] // 2
            logger.warning("Out of memory: batches go on with %d tokens.", limits.batch_tokens)
            left = [i for waiting in (batch, *batches[::-1]) for i in waiting]
            parts = pack([lengths[i] for i in left], limits.batch_tokens, [kinds[i] for i in left])
            batches = [[left[i] for i in part] for part in parts[::-1]]
            continue
        for place, nll_R in zip(batch, found, strict=True):
            nlls[place] = nll_R
    return nlls


@torch.inference_mode()
def batch_nlls(
    model, prompts: Sequence[list[int]], responses: Sequence[list[int]], *, full: bool = False, **kwargs
) -> list[torch.Tensor]:
    """Negative log-likelihood of every token of B responses, each after its prompt: Eq. 1 of arXiv 2410.15633 before mean and exp.

    Args:
        model: a causal language model of transformers.
        prompts: token ids; at least one each. With `past_key_values`, what follows the tokens that those were made from.
        responses: token ids; at least one each.
        full (`bool`): let the last response tokens through the model too, which predict nothing, for their attention.
        kwargs: passed on to the model's decoder and its attention layers.

    Returns:
        for each response a `torch.Tensor` of shape (R,), float64 (`exact_dtype`), on the model's device, in nats. The device may
        still be computing it; `to_host` waits, for as many as there are at once.
    """
    depends_on_length = bool(unsettled_after(model.config))  # then the last token counts, though it predicts nothing
    cut = None if full or depends_on_length else -1
    sequences = [prompt + response[:cut] for prompt, response in zip(prompts, responses, strict=True)]
    starts = [len(prompt) - 1 for prompt in prompts]
    ids_BT = padded(sequences, model.device)
    forget_lengths(model)
    with current(model.device), one_sequence_a_row(), rows_read(model, min(starts)) as keywords:
        outputs = decoder_of(model)(input_ids=ids_BT, use_cache=False, **keywords, **kwargs)
    hidden_BTD = outputs.last_hidden_state
    hidden_ND = torch.cat(
        [hidden_D[a : a + len(y)] for hidden_D, a, y in zip(hidden_BTD, starts, responses, strict=True)]
    )
    targets_N = to_device(torch.tensor([token for response in responses for token in response]), hidden_ND.device)
    nll_N = torch.empty(len(targets_N), dtype=exact_dtype(hidden_ND.device), device=hidden_ND.device)
    num_logits = len(targets_N) * model.config.get_text_config().vocab_size
    num_chunks = min(math.ceil(num_logits / logits_per_chunk(hidden_ND.device)), len(targets_N))
    with language_model_head(model, type(outputs)) as head:
        chunks = (x.tensor_split(num_chunks) for x in (hidden_ND, targets_N, nll_N))
        for hidden, targets, nll in zip(*chunks, strict=True):
            logits = head(hidden).float()
            nll.copy_(nn.functional.cross_entropy(logits, to_device(targets, logits.device), reduction="none"))
    return list(nll_N.split([len(response) for response in responses]))


def logits_per_chunk(device: torch.device) -> int:
    """Elements of logits that may exist at a time."""
    if device.type == "cuda":
        return max(1, min(MOST_LOGITS, int(LOGITS_SHARE * free_bytes(device)) // BYTES_PER_LOGIT))
    return LOGITS_PER_CHUNK_MPS if device.type == "mps" else LOGITS_PER_CHUNK


def batching_kinds(config, lengths: Sequence[int]) -> list[int]:
    """For each length of a sequence, in tokens, what it must have in common with another to share a batch with it, padded on the
    right, without a change to their numbers."""
    return length_classes(config, lengths) if abilities_of(config).pads else list(lengths)


def padded(sequences: Sequence[list[int]], device: torch.device | str) -> torch.Tensor:
    """Token ids as one tensor (B, T), zeros after the shorter ones."""
    length = max(map(len, sequences))
    ids_BT = torch.tensor([sequence + [0] * (length - len(sequence)) for sequence in sequences])
    return to_device(ids_BT, torch.device(device))


@contextmanager
def language_model_head(model, output_type: type) -> Iterator[Callable[[torch.Tensor], torch.Tensor]]:
    """Yield `head(hidden_ND) -> logits_NV`, the model's own way from its decoder's output (`output_type`) to logits.

    For its time the decoder hands through the hidden states it is given, so that whatever the model does behind it
    (scaling, soft-capping) comes along for every architecture, on as few rows as the caller likes.
    """

    def hand_through(*args, inputs_embeds, **kwargs):
        return output_type(last_hidden_state=inputs_embeds)

    with exchanged_forward(decoder_of(model), hand_through):
        yield lambda hidden_ND: model(inputs_embeds=hidden_ND[None], use_cache=False).logits[0]
