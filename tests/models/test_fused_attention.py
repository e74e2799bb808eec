"""Attention by fused kernels has the numbers of transformers' own: every type, by FlexAttention as torch runs it uncompiled, and by
a slow and obvious stand-in for the kernel that adds up weights; the kernel itself in Triton's interpreter."""

import importlib.util
import itertools
import json
import math
import random
import subprocess
import sys

import pytest
import torch
from torch.nn.attention.flex_attention import create_block_mask, flex_attention

from hf_gateau import GateauScorer
from hf_gateau.measuring.passes import measure_samples
from hf_gateau.models import attention, flex, fused
from hf_gateau.models.collected import HeadAttention
from hf_gateau.models.config import ModelPairConfig
from hf_gateau.models.packing import Cut, Limits
from hf_gateau.models.pair import ModelPair
from hf_gateau.models.perplexity import batch_nlls
from tests.architectures import MODEL_TYPES, SAMPLES, open_pair, tiny_model
from tests.measured import SETTINGS, make_sample
from tests.models.attention_references import slow_key_mass, slow_output
from tests.models.test_architectures import KINDS, holds


HAS_TRITON = importlib.util.find_spec("triton") is not None
# Soft-capped scores; sinks that are seen in the weights, and those that are not; grouped heads; windows beside full attention
IN_CI = ("gemma2", "gpt_oss", "granite_swa", "qwen3_moe", "cohere2")


@pytest.fixture
def served(monkeypatch) -> list[str]:
    """Kernels that run on a CPU in place of a GPU's; what was asked of them."""
    asked = []

    def mass(query, key, share_BQ, **how):
        asked.append("mass")
        return slow_key_mass(query, key, share_BQ, **how)

    def flexible(*tensors, **how):
        asked.append("flex")
        return flex_attention(*tensors, **how)

    monkeypatch.setattr(attention, "key_mass", mass)
    monkeypatch.setattr(flex, "_compiled", lambda: flexible)
    return asked


@pytest.mark.parametrize("model_type", IN_CI)
def test_a_type_of_each_kind(model_type, tmp_path, tokenizer, served):
    holds(model_type, str(tmp_path), tokenizer, fused.use_fused_attention)
    assert "mass" in served
    assert ("flex" in served) == (model_type != "qwen3_moe")


@pytest.mark.slow
@pytest.mark.parametrize("model_type", sorted({*MODEL_TYPES, *KINDS} - {*IN_CI}))
def test_every_type(model_type, tmp_path, tokenizer, served):
    try:
        tiny_model(model_type, str(tmp_path / "tried"), tokenizer)
    except Exception as error:  # what cannot be built tiny is told as such
        pytest.skip(f"not built: {error}")
    holds(model_type, str(tmp_path), tokenizer, fused.use_fused_attention)


@pytest.mark.parametrize("model_type", ["gemma2", "gpt_oss", "qwen3_moe"])
def test_heads_alone(model_type, tmp_path, tokenizer, served):
    """Of some heads of some layers: the numbers are those without fused kernels."""
    tiny_model(model_type, str(tmp_path), tokenizer)
    model = open_pair(str(tmp_path)).long
    sample, cut, found = SAMPLES[0], Cut(16), []
    for _ in range(2):
        collected = HeadAttention([sample], cut, [(0, 1), (1, 0), (1, 3)])
        batch_nlls(model, [sample.prompt], [sample.response], full=True, response_attention=collected)
        found += collected.segment_heads()
        fused.use_fused_attention(model_type, model)
    assert "mass" in served
    assert (found[0] - found[1]).abs().max() < 1e-6


def fails(*args, **how):
    raise RuntimeError("out of resources: shared memory")


@pytest.mark.parametrize(
    "model_type, change, message",
    [
        (
            "qwen3_moe",
            {"key_mass": lambda *args, **how: 2 * slow_key_mass(*args, **how)},
            "to a segment differs by 100%",
        ),
        ("qwen3_moe", {"key_mass": lambda *args, **how: torch.nan * slow_key_mass(*args, **how)}, "differs by nan%"),
        ("qwen3_moe", {"key_mass": fails}, "the kernels fail on 'its name', .*shared memory"),
        ("gpt_oss", {"_compiled": lambda: fails}, "the kernels fail on 'its name', .*shared memory"),
        (
            "cohere2",
            {"_compiled": lambda: fails},
            "the kernels fail on 'its name', .*shared memory",
        ),  # by its windows alone
    ],
)
def test_a_model_that_they_do_not_serve_is_refused(
    model_type, change, message, tmp_path, tokenizer, served, monkeypatch
):
    """And left as it was."""
    tiny_model(model_type, str(tmp_path), tokenizer)
    model = open_pair(str(tmp_path)).long
    for name, function in change.items():
        monkeypatch.setattr(attention if name == "key_mass" else flex, name, function)
    with pytest.raises(ValueError, match=f"use_fused_attention: .*{message}.*; leave it out"):
        fused.use_fused_attention("its name", model)
    assert not any(hasattr(module, attention.IS_FUSED) for module in model.modules())


@pytest.mark.quick
def test_refused_before_anything_is_loaded(tiny_model, monkeypatch):
    with pytest.raises(
        ValueError, match="use_fused_attention needs an NVIDIA or AMD GPU, and the device is cpu; leave it out"
    ):
        GateauScorer(long_model=tiny_model, use_fused_attention=True, **SETTINGS, store=False).describe()
    with pytest.raises(ValueError, match="needs an NVIDIA or AMD GPU"):
        ModelPair(ModelPairConfig(long_model=tiny_model, device="cpu", use_fused_attention=True))
    cuda = torch.device("cuda")
    with pytest.raises(ValueError, match="serves bfloat16 and float16, and the dtype is float32; leave it out"):
        fused.check_fused_attention(cuda, "float32")
    monkeypatch.setattr(fused, "has_triton", lambda: False)
    with pytest.raises(
        ImportError, match="use_fused_attention needs triton, which comes with torch for GPUs on Linux"
    ):
        fused.check_fused_attention(cuda, "bfloat16")
    monkeypatch.setattr(fused, "has_triton", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    with pytest.raises(ValueError, match=r"of compute capability 8\.0, and this has 7\.5; leave it out"):
        fused.check_fused_attention(cuda, "bfloat16")


@pytest.mark.quick
@pytest.mark.parametrize("num_rows", [1, 5, 128, 130, 300])
def test_blocks_are_those_that_torch_finds_by_looking_at_every_row_and_key(num_rows):
    for num_keys, window in itertools.product((300, 512, 700), (None, 1, 64, 128, 200, 1_000)):
        first, width = num_keys - num_rows, window or num_keys

        def sees(batch, head, row, key, first=first, width=width):
            return (key <= row + first) & (key > row + first - width)

        found = flex.seen_blocks(num_rows, num_keys, window, torch.device("cpu")).to_dense()
        wanted = create_block_mask(sees, 1, None, num_rows, num_keys, device="cpu").to_dense()
        rows, keys = wanted.shape[2:]
        assert torch.equal(found[..., :rows, :keys], wanted), (num_rows, num_keys, window)
        assert found.sum() == wanted.sum() and min(found.shape[2:]) >= 2  # of one block no kernel is made of its own


# (B, H, G, Q, K), with a size of heads, soft-cap, sinks, window
SHAPES = [
    ((1, 4, 2, 300, 300), 50.0, False, None),
    ((2, 4, 2, 200, 200), 50.0, False, 64),
    ((1, 4, 2, 50, 400), 50.0, False, 64),
    ((3, 4, 4, 33, 999), 2.0, False, None),
    ((1, 4, 1, 1, 999), 50.0, False, None),
    ((1, 4, 2, 300, 300), None, True, 64),
    ((2, 4, 2, 200, 300), None, True, None),
    ((1, 4, 2, 200, 300), 10.0, True, 1),
]


def made(shape, softcap, has_sinks, window, dtype=torch.float32, size=32, device="cpu"):
    """Tensors of a shape, and how their attention is to be computed."""
    batch, heads, groups, num_rows, num_keys = shape
    draw = torch.Generator().manual_seed(0)
    query, key, value = (
        torch.randn(batch, tokens, n, size, generator=draw).to(device, dtype).transpose(1, 2)
        for n, tokens in ((heads, num_rows), (groups, num_keys), (groups, num_keys))
    )
    sinks = torch.randn(heads, generator=draw).to(device) if has_sinks else None
    return (query, key, value), {"scaling": size**-0.5, "softcap": softcap, "sinks_H": sinks}, window


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_flex_attention(shape, served):
    tensors, how, window = made(*shape)
    found = flex.flex_output(*tensors, **how, window=window)
    assert (found - slow_output(*tensors, **how, window=window)).abs().max() < 2e-6


@torch.inference_mode()
def test_few_kernels_serve_any_lengths(monkeypatch):
    """Several sequences or one, several rows or one; not lengths, pasts, rows of the last layer, keys that were kept, or windows."""
    compiled = []

    def backend(graph, inputs):
        compiled.append(graph)
        return lambda *args: (next(x for x in args if isinstance(x, torch.Tensor) and x.dim() == 4),)

    attend = torch.compile(flex_attention, dynamic=True, fullgraph=True, backend=backend)
    monkeypatch.setattr(flex, "_compiled", lambda: attend)
    draw = random.Random(0)
    for _ in range(150):
        batch, past = draw.choice([1, 1, 2, 3, 5, 8, 12]), draw.choice([0, 0, 64, 200, 1_500])
        num_rows = draw.choice([draw.randint(20, 200), draw.randint(200, 900), draw.randint(900, 3_000)])
        query = torch.zeros(batch, num_rows, 4, 16).transpose(1, 2)
        kept = torch.zeros(batch, 2, past + num_rows, 16)
        key = kept if past else kept.transpose(1, 2).contiguous().transpose(1, 2)
        for rows, window in itertools.product((num_rows, draw.choice([1, 7, 20])), (None, 64)):
            flex.flex_output(query[:, :, -rows:], key, key, softcap=50.0, window=window)
    assert len(compiled) <= 4


@pytest.mark.slow
def test_flex_attention_compiled_for_any_number_of_rows():
    """On a CPU torch's compiler gives no sum of a row, which sinks need. More shapes than it compiles a function for by default."""
    shapes = itertools.product((1, 2), (None, 1, 50, 200), (200, 300, 150, 100), (None, 64))
    for batch, past, num_rows, window in shapes:
        shape = (batch, 4, 2, 1 if past == 1 else num_rows, num_rows + (past or 0))
        tensors, how, _ = made(shape, 50.0, False, window)
        with torch.inference_mode():
            found = flex.flex_output(*tensors, **how, window=window)
        assert (found - slow_output(*tensors, **how, window=window)).abs().max() < 2e-6, shape


def lines_of(module: str) -> list[dict]:
    """What a module prints in a process of its own: the interpreter is there before Triton is, or not at all."""
    done = subprocess.run([sys.executable, "-m", module], capture_output=True, text=True, timeout=1200)
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads(line) for line in done.stdout.splitlines()]


needs_triton = pytest.mark.skipif(not HAS_TRITON, reason="Triton is not installed (`pip install triton`)")


@pytest.mark.slow
@needs_triton
def test_the_kernels_in_tritons_interpreter():
    found = lines_of("tests.models.interpreted_mass")
    assert len(found) >= 15
    assert [x for x in found if not x["far"] <= 1e-6 * max(1, x["most"])] == []


@pytest.mark.slow
@needs_triton
def test_the_kernels_compiled_for_cards_that_are_not_here():
    """Registers and shared memory suffice, and products are made by matrix units."""
    found = lines_of("tests.models.compiled_mass")
    assert len(found) == 72
    assert [x for x in found if x["spilled"] or not x["on_matrix_units"]] == []
    assert [x for x in found if not x["fits"]] == []


needs_a_card = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
# Each takes seconds to compile
ON_A_CARD = [(shape, size, torch.bfloat16) for shape in SHAPES for size in (64, 80, 128, 256)]
ON_A_CARD += [(shape, 128, torch.float16) for shape in SHAPES]
LONG = ((1, 8, 2, 500, 65_536), None, False, None)


@pytest.mark.gpu
@needs_a_card
@pytest.mark.parametrize("shape, size, dtype", [*ON_A_CARD, (LONG, 128, torch.bfloat16)], ids=str)
def test_sums_of_weights_on_a_card(shape, size, dtype):
    (query, key, _), how, window = made(*shape, dtype=dtype, size=size, device="cuda")
    share_BQ = torch.rand(len(query), query.shape[2], device="cuda")
    wanted = slow_key_mass(query, key, share_BQ, **how, window=window)
    found = attention.key_mass(query, key, share_BQ, **how, window=window)
    assert (found - wanted).abs().max() < 1e-4 * wanted.max()


@pytest.mark.gpu
@needs_a_card
@pytest.mark.parametrize("shape, size", [*((shape, 64) for shape in SHAPES), (SHAPES[1], 256)], ids=str)
def test_flex_attention_on_a_card(shape, size):
    tensors, how, window = made(*shape, dtype=torch.bfloat16, size=size, device="cuda")
    with torch.inference_mode():
        found = flex.flex_output(*tensors, **how, window=window)
    assert (found - slow_output(*tensors, **how, window=window)).abs().max() < 5e-2


@pytest.mark.gpu
@needs_a_card
@pytest.mark.parametrize("model_type", IN_CI)
def test_a_model_on_a_card_has_the_same_numbers_with_and_without(model_type, tmp_path, tokenizer):
    tiny_model(model_type, str(tmp_path), tokenizer)
    how = {"long_model": str(tmp_path), "short_window": 64, "device": "cuda", "dtype": "bfloat16"}
    pairs = [ModelPair(ModelPairConfig(**how, use_fused_attention=x)) for x in (False, True)]
    samples, cut = [make_sample(3_000, 30, 60), make_sample(700, 9, 7)], Cut(64)
    for without, with_ in zip(*(measure_samples(pair, samples, cut, Limits(8_192)) for pair in pairs), strict=True):
        assert math.log(with_.ppl_long) == pytest.approx(math.log(without.ppl_long), abs=0.05)
        assert with_.segment_attention == pytest.approx(without.segment_attention, rel=0.05)
