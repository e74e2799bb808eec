"""Attention in blocks of rows against the softmax of whole matrices."""

import pytest
import torch

from hf_gateau.measuring.passes import measure_samples
from hf_gateau.models import attention
from hf_gateau.models.attention import BLOCK_ROWS, BLOCKED_TOKENS, blocked_attention
from hf_gateau.models.config import ModelPairConfig
from hf_gateau.models.packing import Cut, Limits
from hf_gateau.models.pair import ModelPair
from hf_gateau.rows.samples import Sample


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
        assert getattr(found, name) == pytest.approx(value, rel=2e-5), name
