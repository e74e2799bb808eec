"""Attention that SDPA does not know how to compute, or by a mask alone, by torch's FlexAttention: soft-capped scores, attention sinks,
sliding windows.

Compiled for any number of rows and keys, so that rows of many lengths need a compilation for each kind of layer alone. What is
compiled anew for one sequence or several, for rows at the start or after a past, is few and told by the shapes.

Shapes: B batch, H heads, G heads of keys, Q rows, K keys, D head size.
"""

import functools
from collections.abc import Callable

import torch
from torch._dynamo import config as dynamo
from torch.nn.attention import flex_attention
from torch.nn.attention.flex_attention import BlockMask


BLOCK = 128  # rows and keys that are left out or computed together
# Of one kind of layer: torch's own limit, 8, is less than the kinds of shapes, and beyond it scores would be whole matrices
MOST_COMPILED = 64
# One kernel for few rows and many: that for few has limits of its own
OPTIONS = {"FORCE_USE_FLEX_ATTENTION": True}


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
    attend = _compiled()
    with dynamo.patch(recompile_limit=MOST_COMPILED):
        if sinks_H is None:
            return attend(query, key, value, **how).transpose(1, 2)
        output, lse = attend(query, key, value, **how, **_asked_for_sums())
    kept = torch.sigmoid(getattr(lse, "lse", lse) - sinks_H.float()[:, None])  # what the sink leaves of a row
    return (output * kept[..., None]).to(query.dtype).transpose(1, 2)


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
    cap = torch.tensor(softcap, device=device)
    return lambda score, batch, head, row, key: cap * torch.tanh(score / cap)


@functools.lru_cache(maxsize=8)  # the kinds of layers of a pass, and of the one before
def seen_blocks(num_rows: int, num_keys: int, window: int | None, device: torch.device) -> BlockMask:
    """What the last rows of a sequence see, in blocks: all keys up to themselves, or the last so many of those.

    transformers and torch make the same by looking at every row and key.
    """
    first = torch.tensor(num_keys - num_rows, device=device)  # a tensor, for which nothing is compiled anew
    width = torch.tensor(num_keys if window is None else window, device=device)

    def sees(batch, head, row, key):
        return (key <= row + first) & (key > row + first - width)

    rows, keys = (torch.arange(0, n, BLOCK, device=device) for n in (num_rows, num_keys))
    first_row, first_key = rows[:, None] + first, keys[None, :]
    last_row = (rows[:, None] + BLOCK - 1).clamp(max=num_rows - 1) + first
    last_key = first_key + BLOCK - 1
    any_seen = (first_key <= last_row) & (last_key > first_row - width)
    all_seen = (last_key <= first_row) & (first_key > last_row - width)
    partly, wholly = (_places(x[None, None]) for x in (any_seen & ~all_seen, all_seen))
    return BlockMask.from_kv_blocks(*partly, *wholly, BLOCK, sees, (num_rows, num_keys))


def _places(blocks: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Of each row of blocks how many are True, and their places first."""
    places = blocks.int().argsort(dim=-1, descending=True, stable=True)
    return blocks.sum(-1, dtype=torch.int32), places.int().contiguous()
