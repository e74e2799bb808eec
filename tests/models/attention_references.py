"""Attention by whole matrices in float64: slow and obvious."""

import torch


def weights(query, key, *, scaling, softcap=None, sinks_H=None, window=None, seen=None) -> torch.Tensor:
    """(B, H, Q, K), of the last rows; `seen` boolean, else causal, with a window or without."""
    num_rows, num_keys = query.shape[2], key.shape[2]
    scores = query.double() @ key.double().repeat_interleave(query.shape[1] // key.shape[1], 1).mT * scaling
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    if seen is None:
        row = torch.arange(num_keys - num_rows, num_keys, device=query.device)[:, None]
        place = torch.arange(num_keys, device=query.device)
        seen = (place <= row) & (place > row - (window or num_keys))
    scores = scores.masked_fill(~seen, -torch.inf)
    if sinks_H is not None:
        sinks = sinks_H.double()[None, :, None, None].expand(*scores.shape[:3], 1)
        scores = torch.cat([scores, sinks], -1)
    return scores.softmax(-1)[..., :num_keys]


def slow_key_mass(query, key, share_BQ, *, heads=None, mask=None, **how) -> torch.Tensor:
    """As `key_mass`, (B, H, K) in float32."""
    mass = (weights(query, key, seen=mask, **how) * share_BQ[:, None, :, None]).sum(2)
    return (mass if heads is None else mass[:, list(heads)]).float()


def slow_output(query, key, value, **how) -> torch.Tensor:
    """As `flex_output`, (B, Q, H, D) in float64."""
    values = value.double().repeat_interleave(query.shape[1] // value.shape[1], 1)
    return (weights(query, key, **how) @ values).transpose(1, 2)
