"""Attention in blocks of rows against the softmax of whole matrices."""

from types import SimpleNamespace

import pytest
import torch
from torch.nn.attention.bias import CausalVariant

from hf_gateau.measuring.passes import measure_samples
from hf_gateau.models import attention
from hf_gateau.models.attention import (
    BLOCK_ROWS,
    BLOCKED_TOKENS,
    LowerRight,
    ResponseAttention,
    blocked_attention,
    gateau_attention,
)
from hf_gateau.models.config import ModelPairConfig
from hf_gateau.models.packing import Cut, Limits
from hf_gateau.models.pair import ModelPair
from hf_gateau.rows.samples import Sample
from tests.measured import make_sample


pytestmark = pytest.mark.quick


def whole_matrices(query, key, value, scaling):
    """(B, T, H, D) by the formula: softmax(scaling Q K^T + mask) V, every head with the keys of its group."""
    groups, tokens = query.shape[1] // key.shape[1], query.shape[2]
    key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    scores = scaling * query @ key.mT
    scores = scores.masked_fill(~torch.ones(tokens, tokens).tril().bool(), -torch.inf)
    return (scores.softmax(-1) @ value).transpose(1, 2)


@pytest.mark.parametrize("tokens", [1, 2, BLOCK_ROWS - 1, BLOCK_ROWS, BLOCK_ROWS + 1, 3 * BLOCK_ROWS + 5])
@pytest.mark.parametrize("heads, kv_heads", [(4, 4), (6, 2), (3, 1)])
def test_against_whole_matrices(tokens, heads, kv_heads):
    torch.manual_seed(tokens)
    query, key = 3 * torch.randn(2, heads, tokens, 16), torch.randn(2, kv_heads, tokens, 16)
    value = torch.randn(2, kv_heads, tokens, 24)  # of another size, as some architectures have it
    expected = whole_matrices(query.double(), key.double(), value.double(), 0.25)
    for found in (blocked_attention(query, key, value, 0.25), blocked_attention(query, key, value)):
        torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(
        blocked_attention(query, key, value, 0.7).double(),
        whole_matrices(query.double(), key.double(), value.double(), 0.7),
        rtol=1e-4,
        atol=1e-5,
    )


def test_views_that_are_not_contiguous():
    """As models hand them over: (B, T, H, D) transposed."""
    torch.manual_seed(0)
    query, key, value = (torch.randn(2, 70, heads, 8).transpose(1, 2) for heads in (4, 2, 2))
    torch.testing.assert_close(blocked_attention(query, key, value), whole_matrices(query, key, value, 8**-0.5))


def test_numbers_of_a_sample_are_those_of_sdpa(tiny_model, monkeypatch):
    """Short passes go in blocks, long ones do not; where none does, all numbers are the same."""
    pair = ModelPair(ModelPairConfig(long_model=tiny_model, short_window=60, device="cpu"))
    ids = torch.randint(7, 100, (BLOCKED_TOKENS + 100,), generator=torch.Generator().manual_seed(0)).tolist()
    sample, calls = Sample(ids, 3, len(ids) - 40, len(ids) - 20, len(ids)), []
    monkeypatch.setattr(
        attention, "blocked_attention", lambda *args: calls.append(args[0].shape[2]) or blocked_attention(*args)
    )
    [found] = measure_samples(pair, [sample], Cut(64), Limits(400))
    assert calls and max(calls) <= BLOCKED_TOKENS
    monkeypatch.setattr(attention, "BLOCKED_TOKENS", 0)
    [expected], num_calls = measure_samples(pair, [sample], Cut(64), Limits(400)), len(calls)
    assert len(calls) == num_calls
    for name, value in vars(expected).items():
        same = value if value is None else pytest.approx(value, rel=2e-5, abs=2e-5)
        assert getattr(found, name) == same, name


# Rows after a past of keys


def heads(rows: int, keys: int, kv_heads: int = 2, dtype=torch.float32):
    """Queries of the last rows, keys and values, each (1, H, T, 8); the last keys matter more, so that a wrong mask shows."""
    torch.manual_seed(rows)
    query, key, value = (
        torch.randn(1, 8, rows, 8),
        torch.randn(1, kv_heads, keys, 8),
        torch.randn(1, kv_heads, keys, 8),
    )
    key[:, :, -3:] *= 4
    return query.to(dtype), key.to(dtype), value.to(dtype)


def last_rows(query, key, value):
    """(B, T, H, D) by the formula, the rows being the last of as many as there are keys."""
    groups, (rows, keys) = query.shape[1] // key.shape[1], (query.shape[2], key.shape[2])
    key, value = key.repeat_interleave(groups, 1).double(), value.repeat_interleave(groups, 1).double()
    scores = query.double() @ key.mT / query.shape[-1] ** 0.5
    scores = scores.masked_fill(~torch.ones(rows, keys).tril(keys - rows).bool(), -torch.inf)
    return (scores.softmax(-1) @ value).transpose(1, 2)


def module(groups: int) -> SimpleNamespace:
    return SimpleNamespace(num_key_value_groups=groups, is_causal=True, training=False)


@pytest.mark.parametrize("knows_past", [False, True], ids=["chunks", "as on a GPU"])
@pytest.mark.parametrize("kv_heads", [8, 2, 1])
@pytest.mark.parametrize("rows", [1, 2, 7, 40])
def test_rows_after_a_past(rows, kv_heads, knows_past, monkeypatch):
    """One row too: with a mask, transformers packs grouped heads into rows that the mask does not fit."""
    monkeypatch.setattr(attention, "KERNELS_KNOW_PAST", ("cpu",) if knows_past else ())
    query, key, value = heads(rows, 400, kv_heads)
    found, _ = gateau_attention(module(8 // kv_heads), query, key, value, None, scaling=8**-0.5)
    torch.testing.assert_close(found.double(), last_rows(query, key, value), rtol=1e-4, atol=1e-5)


def test_float32_of_grouped_heads_goes_in_chunks_where_no_kernel_groups_them(monkeypatch):
    monkeypatch.setattr(attention, "lacks_grouped_kernel", lambda query, key: True)
    monkeypatch.setattr(attention, "WEIGHTS_PER_CHUNK", 8 * 1_000 * 10)
    masks = []
    real = attention.sdpa_attention_forward
    monkeypatch.setattr(
        attention, "sdpa_attention_forward", lambda *args, **kw: masks.append(args[4].shape) or real(*args, **kw)
    )
    query, key, value = heads(1_000, 1_000)
    found, _ = gateau_attention(module(4), query, key, value, None, scaling=8**-0.5)
    torch.testing.assert_close(found.double(), last_rows(query, key, value), rtol=1e-4, atol=1e-5)
    assert len(masks) == 100 and max(shape[-2] * shape[-1] for shape in masks) <= 10 * 1_000


def test_a_mask_of_a_long_past_allocates_nothing():
    """torch's own maker makes a tensor of rows x keys on the CPU: 32 GB for a piece of 32k tokens of 128k."""
    mask = LowerRight(CausalVariant.LOWER_RIGHT, 32_768, 131_072)
    assert mask.numel() == 0 and (mask.seq_len_q, mask.seq_len_kv) == (32_768, 131_072)


def test_layers_on_two_devices_add_up():
    """torch's fake tensors have devices that this machine lacks, and refuse what would mix two of them."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    sample = make_sample(30, 5, 4)
    with FakeTensorMode():
        found = ResponseAttention([sample])
        for device in ("xla:0", "hpu:0", "cpu"):
            found.add(torch.rand(1, 4, 4, sample.response_end, device=device), sample.response_start, 0)
        assert found._total_BK.device == torch.device("xla:0")
