"""Attention that SDPA does not know how to compute, or by a mask alone, by torch's FlexAttention: soft-capped scores, attention sinks,
sliding windows.

Compiled for any number of sequences, rows and keys: of one kind of layer some four times, for one sequence or several, and one row or
several, whatever their lengths are.

Shapes: B batch, H heads, G heads of keys, Q rows, K keys, D head size.
"""

import functools
import inspect
from collections.abc import Callable

import torch
from torch._dynamo import config as dynamo
from torch.fx.experimental import _config as shapes
from torch.nn.attention import flex_attention
from torch.nn.attention.flex_attention import BlockMask


BLOCK = 128  # rows and keys that are left out or computed together
# torch counts the compilations for all models of a process together, and beyond 8 scores would be whole matrices; what scores are
# scaled by is a number of the model
COMPILING = {"cache_size_limit": 1 << 20, "accumulated_cache_size_limit": 1 << 20, "specialize_float": True}
# One kernel for few rows and many: that for few has limits of its own
OPTIONS = {"FORCE_USE_FLEX_ATTENTION": True}
# What a backward pass needs of a mask, which newer torch leaves out where it is told so
HAS_CHOICE = "compute_q_blocks" in inspect.signature(BlockMask.from_kv_blocks).parameters
NO_GRADIENT = {"compute_q_blocks": False} if HAS_CHOICE else {}


def flex_output(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    *,
    scaling: float | None = None,
    softcap: float | None = None,
    sinks_H: torch.Tensor | None = None,
    window: int | None = None,
) -> torch.Tensor:
    """Causal attention of the last rows of some sequences.

    Args:
        query: (B, H, Q, D), the last Q rows.
        key, value: (B, G, K, D); H is a multiple of G, and value's D may be another.
        scaling (`float`, *optional*): of the scores; default 1 / sqrt(D).
        softcap (`float`, *optional*): c of c tanh(score / c).
        sinks_H (*optional*): of each head a score more, that no key has.
        window (`int`, *optional*): the keys that a row sees, itself the last.

    Returns:
        `torch.Tensor` of shape (B, Q, H, D), as transformers' attention functions.
    """
    how = {"scale": scaling, "enable_gqa": query.shape[1] != key.shape[1], "kernel_options": OPTIONS}
    how["block_mask"] = seen_blocks(query.shape[2], key.shape[2], window, query.device)
    if softcap is not None:
        how["score_mod"] = _capping(softcap, query.device)
    attend, tensors = _compiled(), [_laid_out(x) for x in (query, key, value)]
    # Lengths that happen to be equal are no kind of their own
    with dynamo.patch(**COMPILING), shapes.patch(use_duck_shape=False):
        if sinks_H is None:
            return attend(*tensors, **how).transpose(1, 2)
        output, lse = attend(*tensors, **how, **_asked_for_sums())
    kept = torch.sigmoid(getattr(lse, "lse", lse) - sinks_H.float()[:, None])  # what the sink leaves of a row
    return (output * kept[..., None].to(output.dtype)).transpose(1, 2)


def _laid_out(tensor: torch.Tensor) -> torch.Tensor:
    """(B, H, T, D) as models mostly have it, token by token: keys that were kept, or some rows of a pass, are not."""
    tokens = tensor.transpose(1, 2)
    return tokens.reshape(-1).view(tokens.shape).transpose(1, 2)  # the strides of one sequence or one row too


@functools.cache
def _compiled() -> Callable:
    """FlexAttention as a kernel; an error, and no whole matrix of scores, where it cannot be made."""
    return torch.compile(flex_attention.flex_attention, dynamic=True, fullgraph=True)


def _asked_for_sums() -> dict:
    """How to ask for the logarithms of the rows' sums, beside which a sink is seen."""
    if hasattr(flex_attention, "AuxRequest"):
        return {"return_aux": flex_attention.AuxRequest(lse=True)}
    return {"return_lse": True}  # before torch 2.9


@functools.cache
def _capping(softcap: float, device: torch.device) -> Callable:
    """What soft-caps a score. The number is a tensor, for which nothing is compiled anew."""
    cap = torch.full((), softcap, device=device)
    return lambda score, batch, head, row, key: cap * torch.tanh(score / cap)


@functools.lru_cache(maxsize=4)  # the kinds of layers of a pass
def seen_blocks(num_rows: int, num_keys: int, window: int | None, device: torch.device) -> BlockMask:
    """What the last rows of a sequence see, in blocks: all keys up to themselves, or the last so many of those.

    transformers and torch make the same by looking at every row and key.
    """
    # Tensors, for which nothing is compiled anew
    first, width = (torch.full((), n, device=device) for n in (num_keys - num_rows, window or num_keys))

    def sees(batch, head, row, key):
        return (key <= row + first) & (key > row + first - width)

    rows, keys = (torch.arange(0, n, BLOCK, device=device) for n in (num_rows, num_keys))
    first_row, first_key = rows[:, None] + first, keys[None, :]
    last_row = (rows[:, None] + BLOCK - 1).clamp(max=num_rows - 1) + first
    last_key = first_key + BLOCK - 1
    any_seen = (first_key <= last_row) & (last_key > first_row - width)
    all_seen = (last_key <= first_row) & (first_key > last_row - width)
    partly, wholly = (_places(x[None, None]) for x in (any_seen & ~all_seen, all_seen))
    return BlockMask.from_kv_blocks(*partly, *wholly, BLOCK, sees, (num_rows, num_keys), **NO_GRADIENT)


def _places(blocks: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Of each row of blocks how many are True, and their places first. One row or column of blocks gets another, of which none is
    seen: nothing is compiled anew for it."""
    lacking = [max(0, 2 - n) for n in blocks.shape[2:]]
    blocks = torch.nn.functional.pad(blocks, (0, lacking[1], 0, lacking[0]))
    places = blocks.int().argsort(dim=-1, descending=True, stable=True)
    return blocks.sum(-1, dtype=torch.int32), places.int().contiguous()
