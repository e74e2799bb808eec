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
        assert found.totals[0].device == torch.device("xla:0")


# The weights of the response's rows


class Collected:
    """Takes the place of a `ResponseAttention` over one layer: keeps all that it gets."""

    def __init__(self, first_row: int, heads=None):
        self.first_row, self.heads, self.chunks = first_row, heads, []

    def begin_layer(self):
        return self.heads

    def add(self, weights, first_row, first_key):
        self.chunks.append((weights, first_row, first_key))


def weights_by_formula(query, key) -> torch.Tensor:
    """(B, H, T, T), float64: causal."""
    key = key.repeat_interleave(query.shape[1] // key.shape[1], 1).double()
    scores = query.double() @ key.mT / query.shape[-1] ** 0.5
    return scores.masked_fill(~torch.ones(scores.shape[-2:]).tril().bool(), -torch.inf).softmax(-1)


HALF_FACTORS = {
    "factors": lambda *tensors: list(tensors),
    "float32_product": lambda a, b: torch.bmm(a.float(), b.float()),  # what matrix units give
}


@pytest.mark.parametrize("fused", [False, True], ids=["outputs of weights", "as on a GPU"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("kv_heads", [8, 2, 1])
@pytest.mark.parametrize("some", [None, (0, 3, 5), ()], ids=["all heads", "some", "none"])
def test_weights_and_outputs_of_the_response(some, kv_heads, dtype, fused, monkeypatch):
    """In small chunks, two sequences at a time, by half factors as by float32 ones; rows before the response give no weights."""
    monkeypatch.setattr(attention, "WEIGHTS_PER_CHUNK", 2 * 8 * 90 * 7)
    monkeypatch.setattr(attention, "OUTPUTS_ARE_FUSED", ("cpu",) if fused else ())
    torch.manual_seed(0)
    query, key, value = (torch.randn(90, 2, n, 16).to(dtype).permute(1, 2, 0, 3) for n in (8, kv_heads, kv_heads))
    wanted, rows = weights_by_formula(query, key), 90 - 71
    expected = (wanted @ value.repeat_interleave(8 // kv_heads, 1).double()).transpose(1, 2)
    for half in (False, True):
        for name, function in HALF_FACTORS.items() if half else ():
            monkeypatch.setattr(attention, name, function)
        found = Collected(71, some)
        output, _ = gateau_attention(
            module(8 // kv_heads), query, key, value, None, scaling=16**-0.5, response_attention=found
        )
        near = {"rtol": 1e-4, "atol": 1e-5} if dtype == torch.float32 else {"rtol": 2e-2, "atol": 2e-2}
        torch.testing.assert_close(output.double(), expected, **near)
        assert sum(weights.shape[2] for weights, _, _ in found.chunks) == (rows if some != () else 0)
        of_heads = wanted if some is None else wanted[:, list(some)]
        near = {"rtol": 1e-4 if dtype == torch.float32 else 2e-2, "atol": 1e-6}
        for weights, first_row, first_key in found.chunks:
            last = first_row + weights.shape[2]
            assert weights.dtype == torch.float32 and weights.numel() <= attention.WEIGHTS_PER_CHUNK
            assert first_key == 0 and weights.shape[3] == last
            torch.testing.assert_close(weights.double(), of_heads[:, :, first_row:last, :last], **near)


@pytest.mark.parametrize("some", [None, (0, 3, 5)], ids=["all heads", "some"])
def test_on_a_gpu_no_key_is_converted_or_repeated_and_scores_are_float32(some, monkeypatch):
    """The meta device stands for it: shapes and dtypes without numbers."""
    from torch.utils._python_dispatch import TorchDispatchMode

    class Calls(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            found = function(*args, **(kwargs or {}))
            if isinstance(found, torch.Tensor):
                memory = [x.untyped_storage()._cdata for x in (found, *args) if isinstance(x, torch.Tensor)]
                made.extend([(str(function), found.dtype, found.numel())] * (memory[0] not in memory[1:]))
            return found

    made = []
    monkeypatch.setattr(attention, "WEIGHTS_PER_CHUNK_GPU", 8 * 4_000 * 10)
    monkeypatch.setattr(attention, "OUTPUTS_ARE_FUSED", ("meta",))
    monkeypatch.setattr(attention, "factors", HALF_FACTORS["factors"])
    monkeypatch.setattr(
        attention,
        "sdpa_attention_forward",
        lambda module, query, *_, **kw: (torch.empty_like(query).transpose(1, 2), None),
    )
    query, key, value = (
        torch.empty(1, 4_000, n, 64, dtype=torch.bfloat16, device="meta").transpose(1, 2) for n in (8, 2, 2)
    )
    with Calls():
        output, _ = gateau_attention(
            module(4), query, key, value, None, scaling=None, response_attention=Collected(3_900, some)
        )
    assert output.dtype == torch.bfloat16 and output.shape == (1, 4_000, 8, 64)
    products = [dtype for name, dtype, _ in made if "bmm" in name]
    assert len(products) == (10 if some is None else 4) and set(products) == {torch.float32}
    of_keys = [name for name, dtype, size in made if size >= key.numel() and dtype == torch.bfloat16]
    assert len(of_keys) == (1 if some is None else 2), of_keys  # SDPA's output, and the keys of the chosen heads
    assert max(size for _, dtype, size in made if dtype == torch.float32) <= attention.WEIGHTS_PER_CHUNK_GPU
