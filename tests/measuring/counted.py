"""What torch has no count of floating-point operations for."""

import torch


def causal_sdpa(query, key, value, dropout=0.0, is_causal=False, **kwargs) -> int:
    """torch counts nothing for the CPU's kernel; of a causal square it computes the triangle."""
    batch, heads, rows, size = query
    return 4 * batch * heads * size * (rows * (rows + 1) // 2 if is_causal else rows * key[2])


def grouped_mm(rows, weights, *args, **kwargs) -> int:
    """Experts' products, which torch does not count either: every row meets the weights of one expert."""
    return 2 * rows[0] * weights[1] * weights[2]


def uncounted() -> dict:
    """What torch has no count for, with ours."""
    aten = torch.ops.aten
    return {aten._scaled_dot_product_flash_attention_for_cpu: causal_sdpa, aten._grouped_mm: grouped_mm}
