"""Packed documents must not see each other: which attention keeps them apart, and a look whether it does."""

from __future__ import annotations

import torch


# Attention that keeps packed documents apart: by a mask made from position_ids, or by lengths given to the kernel.
MASKED_ATTENTION, VARLEN_ATTENTION = ("eager", "sdpa", "flex_attention"), ("flash_attention", "kernels-community/")


def check_documents_stay_apart(model, is_sharded: bool) -> None:
    """Refuse to train where a packed document would see the one before it.

    Raises:
        ValueError: the attention implementation, or the architecture, does not keep them apart.
    """
    name = model.config._attn_implementation or "eager"
    able = f"{', '.join(MASKED_ATTENTION)}, or FlashAttention (flash_attention_2, flash_attention_3)"
    if not (name in MASKED_ATTENTION or name.startswith(VARLEN_ATTENTION)):
        raise ValueError(f"attn_implementation={name!r} is not known to keep packed documents apart; use {able}.")
    if name in MASKED_ATTENTION and not is_sharded and leaks_between_documents(model):
        raise ValueError(
            f"{type(model).__name__} with attn_implementation={name!r} lets packed documents see each other; use "
            f"another of {able}, or packing=False."
        )


@torch.no_grad()
def leaks_between_documents(model, num_tokens: int = 8) -> bool:
    """Whether what a packed document's logits are depends on the document before it; two passes over a few tokens."""
    generator = torch.Generator().manual_seed(0)
    vocabulary = model.get_input_embeddings().weight.shape[0]
    first, other, second = torch.randint(vocabulary, (3, num_tokens), generator=generator)
    position_ids = torch.arange(num_tokens).repeat(2)[None].to(model.device)
    was_training = model.training
    model.eval()
    try:
        packs = [torch.cat([before, second])[None].to(model.device) for before in (first, other)]
        logits = [
            model(input_ids=ids, position_ids=position_ids, use_cache=False).logits[0, num_tokens:] for ids in packs
        ]
    finally:
        model.train(was_training)
    return not torch.allclose(logits[0], logits[1], rtol=1e-3, atol=1e-3 * logits[0].abs().max().item())
