"""How much attention some rows pay to each key, by two kernels that never write a weight to memory.

A matrix product would write every score of every row, a softmax read and write them, a sum over the rows read them again: for
500 response rows of a 7B model (32 layers of 32 heads) after 64k tokens these are 134 GB a pass, which go to memory or come from
it four times. Here the first kernel reads queries and keys and leaves the logarithm of each row's sum; the second computes the
scores once more, and adds up over the rows what is left of them.

Shapes: B batch, H heads, G heads of keys, Q rows, K keys, D head size.
"""

import torch
import triton
import triton.language as tl

from .device import current, to_device


LOG2_E = tl.constexpr(1.4426950408889634)
PROGRAMS = 1_024  # of the first kernel, to keep a card busy: where rows are few, their keys are divided
LEAST_KEYS = 1_024  # of such a part
# Lengths of which a kernel is not compiled anew
LENGTHS = ("num_rows", "num_keys", "window", "part_keys")
STAGES = 2  # tiles that are on their way from memory


def key_mass(
    query: torch.Tensor,
    key: torch.Tensor,
    share_BQ: torch.Tensor,
    *,
    scaling: float | None = None,
    heads: tuple[int, ...] | None = None,
    softcap: float | None = None,
    sinks_H: torch.Tensor | None = None,
    window: int | None = None,
    mask: torch.Tensor | None = None,
) -> torch.Tensor:
    """Sums over rows of attention weights, each row's times its share.

    Scores are products in the tensors' own dtype, added up in float32; all that follows is float32.

    Args:
        query: (B, H, Q, D), the last Q rows of their sequences.
        key: (B, G, K, D); H is a multiple of G.
        share_BQ: float32 (B, Q).
        scaling (`float`, *optional*): of the scores; default 1 / sqrt(D).
        heads (*optional*): those that are wanted; default all.
        softcap (`float`, *optional*): c of c tanh(score / c).
        sinks_H (*optional*): of each head a score more, that no key has.
        window (`int`, *optional*): the keys that a row sees, itself the last; default all up to itself.
        mask (*optional*): boolean (B or 1, 1, Q, K), True where a row may look, in place of a window.

    Returns:
        `torch.Tensor` of shape (B, number of heads wanted, K), float32.
    """
    groups = query.shape[1] // key.shape[1]
    wanted = torch.arange(query.shape[1], device=query.device)
    if heads is not None:
        wanted = to_device(torch.tensor(heads), query.device)
        query, sinks_H = query[:, wanted], None if sinks_H is None else sinks_H[wanted]
    kv_heads = (wanted // groups).int()
    query, key = (x if x.stride(-1) == 1 else x.contiguous() for x in (query, key))
    (batch, num_heads, num_rows, size), num_keys = query.shape, key.shape[2]
    block, warps = block_of(size, mask is not None)
    row_blocks = triton.cdiv(num_rows, block)
    parts = min(-(-PROGRAMS // (row_blocks * batch * num_heads)), max(1, num_keys // LEAST_KEYS))
    part_keys = triton.cdiv(triton.cdiv(num_keys, parts), block) * block
    parts = triton.cdiv(num_keys, part_keys)
    masks = query if mask is None else mask.expand(batch, -1, -1, -1)[:, 0].view(torch.uint8)
    shared = {
        "window": window or num_keys, "scale": size**-0.5 if scaling is None else scaling, "cap": softcap or 0.0,
        "num_heads": num_heads, "num_rows": num_rows, "num_keys": num_keys,
        "qb": query.stride(0), "qh": query.stride(1), "qr": query.stride(2),
        "kb": key.stride(0), "kh": key.stride(1), "kk": key.stride(2),
        "mb": masks.stride(0), "mr": masks.stride(1), "mk": masks.stride(2),
        "SIZE": size, "SIZE_BLOCK": max(16, triton.next_power_of_2(size)), "BLOCK": block,
        "IS_CAPPED": softcap is not None, "IS_MASKED": mask is not None, "num_warps": warps, "num_stages": STAGES,
    }  # fmt: skip
    lse = torch.empty(parts, batch, num_heads, num_rows, device=query.device)
    mass = torch.empty(batch, num_heads, num_keys, device=query.device)
    with current(query.device):
        _row_lse[(row_blocks * batch * num_heads, parts)](query, key, kv_heads, masks, lse, part_keys, **shared)
        lse = lse.logsumexp(0)
        if sinks_H is not None:
            lse = torch.logaddexp(lse, sinks_H.float()[None, :, None])
        grid = (triton.cdiv(num_keys, block) * batch * num_heads,)
        _mass[grid](query, key, kv_heads, masks, lse, share_BQ.contiguous(), mass, **shared)
    return mass


def block_of(size: int, is_masked: bool) -> tuple[int, int]:
    """Rows and keys of a tile, and warps for it, that registers and shared memory hold from Ampere on."""
    if size <= 128 and not is_masked:
        return 128, 8
    return (64, 4) if size <= 256 else (32, 4)


@triton.jit
def _scores(
    rows, keys, in_rows, in_keys, queries, key_tile, mask, batch, first, window, scale, cap, mb, mr, mk,
    IS_CAPPED: tl.constexpr, IS_MASKED: tl.constexpr,
):  # fmt: skip
    """Scores of a tile of rows and keys in units of log 2; minus infinity where a row may not look."""
    scores = tl.dot(queries, tl.trans(key_tile), input_precision="ieee") * scale
    if IS_CAPPED:  # tanh
        scores = cap * (2 * tl.sigmoid(2 * scores / cap) - 1)
    seen = in_rows[:, None] & in_keys[None, :]
    if IS_MASKED:
        places = mask + batch * mb + rows[:, None].to(tl.int64) * mr + keys[None, :] * mk
        seen = seen & (tl.load(places, mask=seen, other=0) != 0)
    else:
        places = first + rows[:, None]
        seen = seen & (keys[None, :] <= places) & (keys[None, :] > places - window)
    return tl.where(seen, scores * LOG2_E, -float("inf"))


@triton.jit(do_not_specialize=LENGTHS)
def _row_lse(
    query, key, kv_heads, mask, lse, part_keys, window, scale, cap, num_heads, num_rows, num_keys,
    qb, qh, qr, kb, kh, kk, mb, mr, mk,
    SIZE: tl.constexpr, SIZE_BLOCK: tl.constexpr, BLOCK: tl.constexpr, IS_CAPPED: tl.constexpr, IS_MASKED: tl.constexpr,
):  # fmt: skip
    """Of a block of rows the logarithm of the sum of exponentials of a part of the scores."""
    num_blocks, part = tl.cdiv(num_rows, BLOCK), tl.program_id(1)
    sequence, row_block = tl.program_id(0) // num_blocks, tl.program_id(0) % num_blocks
    batch, head = (sequence // num_heads).to(tl.int64), sequence % num_heads
    kv_head, first = tl.load(kv_heads + head).to(tl.int64), num_keys - num_rows
    rows, sizes = row_block * BLOCK + tl.arange(0, BLOCK), tl.arange(0, SIZE_BLOCK)
    in_rows, in_sizes = rows < num_rows, sizes < SIZE
    places = query + batch * qb + head.to(tl.int64) * qh + rows[:, None].to(tl.int64) * qr + sizes[None, :]
    queries = tl.load(places, mask=in_rows[:, None] & in_sizes[None, :], other=0.0)
    most = tl.full((BLOCK,), -float("inf"), tl.float32)
    total = tl.zeros((BLOCK,), tl.float32)
    begin = part * part_keys
    end = tl.minimum(begin + part_keys, num_keys)
    if not IS_MASKED:  # keys that some of the rows see
        end = tl.minimum(end, first + (row_block + 1) * BLOCK)
        begin = tl.maximum(begin, (first + row_block * BLOCK - window + 1) // BLOCK * BLOCK)
    for start in range(begin, end, BLOCK):
        keys = start + tl.arange(0, BLOCK)
        in_keys = keys < num_keys
        places = key + batch * kb + kv_head * kh + keys[:, None].to(tl.int64) * kk + sizes[None, :]
        key_tile = tl.load(places, mask=in_keys[:, None] & in_sizes[None, :], other=0.0)
        scores = _scores(rows, keys, in_rows, in_keys, queries, key_tile, mask, batch, first, window, scale, cap,
                         mb, mr, mk, IS_CAPPED, IS_MASKED)  # fmt: skip
        highest = tl.maximum(most, tl.max(scores, 1))
        level = tl.where(highest == -float("inf"), 0.0, highest)
        total = total * tl.exp2(most - level) + tl.sum(tl.exp2(scores - level[:, None]), 1)
        most = highest
    found = (most + tl.log2(total)) / LOG2_E
    found = tl.where(total == 0.0, -float("inf"), found)
    place = (part.to(tl.int64) * (tl.num_programs(0) // num_blocks) + sequence) * num_rows
    tl.store(lse + place + rows, found, mask=in_rows)


@triton.jit(do_not_specialize=LENGTHS[:3])
def _mass(
    query, key, kv_heads, mask, lse, share, mass, window, scale, cap, num_heads, num_rows, num_keys,
    qb, qh, qr, kb, kh, kk, mb, mr, mk,
    SIZE: tl.constexpr, SIZE_BLOCK: tl.constexpr, BLOCK: tl.constexpr, IS_CAPPED: tl.constexpr, IS_MASKED: tl.constexpr,
):  # fmt: skip
    """Of a block of keys the sum of all rows' weights, each times its row's share."""
    num_blocks = tl.cdiv(num_keys, BLOCK)
    sequence, key_block = tl.program_id(0) // num_blocks, tl.program_id(0) % num_blocks
    batch, head = (sequence // num_heads).to(tl.int64), sequence % num_heads
    kv_head, first = tl.load(kv_heads + head).to(tl.int64), num_keys - num_rows
    keys, sizes = key_block * BLOCK + tl.arange(0, BLOCK), tl.arange(0, SIZE_BLOCK)
    in_keys, in_sizes = keys < num_keys, sizes < SIZE
    places = key + batch * kb + kv_head * kh + keys[:, None].to(tl.int64) * kk + sizes[None, :]
    key_tile = tl.load(places, mask=in_keys[:, None] & in_sizes[None, :], other=0.0)
    total = tl.zeros((BLOCK,), tl.float32)
    begin, end = 0, num_rows
    if not IS_MASKED:  # rows that see some of the keys
        begin = tl.maximum(key_block * BLOCK - first, 0) // BLOCK * BLOCK
        end = tl.minimum(end, key_block * BLOCK + BLOCK - 1 + window - first)
    for start in range(begin, end, BLOCK):
        rows = start + tl.arange(0, BLOCK)
        in_rows = rows < num_rows
        places = query + batch * qb + head.to(tl.int64) * qh + rows[:, None].to(tl.int64) * qr + sizes[None, :]
        queries = tl.load(places, mask=in_rows[:, None] & in_sizes[None, :], other=0.0)
        scores = _scores(rows, keys, in_rows, in_keys, queries, key_tile, mask, batch, first, window, scale, cap,
                         mb, mr, mk, IS_CAPPED, IS_MASKED)  # fmt: skip
        level = tl.load(lse + sequence.to(tl.int64) * num_rows + rows, mask=in_rows, other=0.0)
        level = tl.where(level == -float("inf"), 0.0, level)  # of a row that sees no key
        shares = tl.load(share + batch * num_rows + rows, mask=in_rows, other=0.0)
        weights = tl.exp2(scores - (level * LOG2_E)[:, None])
        total += tl.sum(weights * shares[:, None], 0)
    tl.store(mass + sequence.to(tl.int64) * num_keys + keys, total, mask=in_keys)
