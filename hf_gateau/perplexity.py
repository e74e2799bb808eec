"""Eq. 1: how hard a response is, in nats per token. Logits exist on response rows only, one chunk at a time.

Shapes: B batch, T tokens, R response tokens, N rows (B x R), D hidden size, V vocabulary.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import nn


LOGITS_PER_CHUNK = 1 << 24  # elements of one chunk of logits: 64 MiB in float32


def perplexity(nll: float) -> float:
    """`exp(nll)`, the outer half of Eq. 1 of arXiv 2410.15633; infinite where float64 ends."""
    try:
        return math.exp(nll)
    except OverflowError:
        return math.inf


@torch.inference_mode()
def response_nll(model, input_ids_BT: torch.Tensor, response_R: torch.Tensor, *, full: bool = False, **kwargs):
    """Mean negative log-likelihood of one response after each of B prompts: Eq. 1 of arXiv 2410.15633 before the exp.

    Args:
        model: a causal language model of transformers.
        input_ids_BT: B prompts of equal length, each followed by the response without its last token, which predicts
            nothing; with `full=True` by the whole response, when the last token's attention is wanted too.
        response_R: token ids of the response.
        kwargs: passed on to the model's decoder and its attention layers.

    Returns:
        `torch.Tensor` of shape (B,), float64, on the CPU, in nats per token.
    """
    num_response = len(response_R)
    outputs = model.get_decoder()(input_ids=input_ids_BT, use_cache=False, **kwargs)
    hidden_BTD = outputs.last_hidden_state
    end = hidden_BTD.shape[1] - full
    hidden_ND = hidden_BTD[:, end - num_response : end].flatten(0, 1)
    targets_N = response_R.repeat(len(input_ids_BT))
    nll_N = torch.empty(len(hidden_ND), dtype=torch.float64)
    rows = max(1, LOGITS_PER_CHUNK // model.config.get_text_config().vocab_size)
    with language_model_head(model, type(outputs)) as head:
        for chunk in (slice(a, a + rows) for a in range(0, len(hidden_ND), rows)):
            logits = head(hidden_ND[chunk])
            nll_N[chunk] = nn.functional.cross_entropy(
                logits.float(), targets_N[chunk].to(logits.device), reduction="none"
            ).cpu()
    return nll_N.view(-1, num_response).mean(1)


@contextmanager
def language_model_head(model, output_type: type) -> Iterator[Callable[[torch.Tensor], torch.Tensor]]:
    """Yield `head(hidden_ND) -> logits_NV`, the model's own way from its decoder's output (`output_type`) to logits.

    For its time the decoder hands through the hidden states it is given, so that whatever the model does behind it
    (scaling, soft-capping) comes along for every architecture, on as few rows as the caller likes.
    """
    decoder = model.get_decoder()
    own_forward = vars(decoder).get("forward")  # set where accelerate hooked the module
    decoder.forward = lambda *args, inputs_embeds, **kwargs: output_type(last_hidden_state=inputs_embeds)
    try:
        yield lambda hidden_ND: model(inputs_embeds=hidden_ND[None], use_cache=False).logits[0]
    finally:
        if own_forward is None:
            del decoder.forward
        else:
            decoder.forward = own_forward
