"""The straight way to the raw numbers: what the equations say, with nothing saved.

Every quantity has a forward pass of its own, on one sequence at a time, with eager attention where attention is read,
and logits on every position. Tests take it as the oracle, benchmarks as the yardstick.
"""

import math

import torch
from torch import nn


@torch.inference_mode()
def nll(model, prompt: list[int], response: list[int]) -> float:
    """Eq. 1 before the exp: mean over response tokens of -log P, full logits, float32 log-softmax."""
    logits = model(input_ids=torch.tensor([prompt + response]), use_cache=False).logits[0].float()
    log_probabilities = nn.functional.log_softmax(logits, dim=-1)
    rows = range(len(prompt) - 1, len(prompt) + len(response) - 1)
    return -math.fsum(log_probabilities[row, token].item() for row, token in zip(rows, response, strict=True)) / len(
        response
    )


@torch.inference_mode()
def segment_attention(eager_model, sample, segment_length: int) -> list[float]:
    """Eq. 4 before the softmax, from the T x T matrices of a model with eager attention."""
    ids = torch.tensor([sample.input_ids[: sample.response_end]])
    attentions = eager_model(input_ids=ids, output_attentions=True, use_cache=False).attentions
    rows = [layer[0, :, sample.response_start :, sample.context_start : sample.context_end] for layer in attentions]
    token_mean = torch.stack([layer.double().mean((0, 1)) for layer in rows]).mean(0)
    return [part.mean().item() for part in token_mean.split(segment_length)]


def measure(model, eager_model, sample, segment_length: int, *, short_model=None, short_context=None) -> dict:
    """All raw numbers of one sample; `short_context` is what the short sibling sees (default: the whole context)."""
    prefix, context, instruction, response = sample.prefix, sample.context, sample.instruction, sample.response
    short_context = context if short_context is None else short_context
    segments = [context[a : a + segment_length] for a in range(0, len(context), segment_length)]
    return {
        "ppl_short": math.exp(nll(short_model or model, prefix + short_context + instruction, response)),
        "ppl_long": math.exp(nll(model, prefix + context + instruction, response)),
        "ppl_no_context": math.exp(nll(model, prefix + instruction, response)),
        "segment_ppl": [math.exp(nll(model, prefix + segment + instruction, response)) for segment in segments],
        "segment_attention": segment_attention(eager_model, sample, segment_length),
    }
