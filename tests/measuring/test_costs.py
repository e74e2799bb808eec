"""Arithmetic of costs against torch's own count of floating-point operations, and by hand."""

from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pytest
from torch.utils.flop_counter import FlopCounterMode

from hf_gateau.measuring.costs import (
    PARTS,
    Forward,
    LayerShape,
    ModelShape,
    RowShape,
    Way,
    flops,
    forward_work,
    forwards,
    model_shape,
    num_segments,
    pass_tokens,
    row_work,
)
from hf_gateau.measuring.heads import HeadCalibration
from hf_gateau.measuring.passes import measure_samples
from hf_gateau.models import attention
from hf_gateau.models.config import ModelPairConfig
from hf_gateau.models.packing import Cut, Limits
from hf_gateau.models.pair import ModelPair
from hf_gateau.models.perplexity import batch_nlls
from hf_gateau.rows.samples import Sample
from tests.measuring.counted import uncounted
from tests.tiny_models import make_model


SAMPLE = Sample([7 + i % 50 for i in range(330)], 5, 265, 285, 330)  # 260 tokens of context, 20 and 45 after it
ROW = RowShape(5, 260, 20, 45)
SIBLINGS = [
    {"short_window": 100},
    {"short_window": 100, "short_pass": "reuse"},
    {"short_window": 4096},
    {"short_rope_scale": 8.0},
]


def counted(pair, sample, segment_length, batch_tokens, heads=None) -> dict[str, int]:
    """Floating-point operations of each part as torch counts them."""
    found = {}

    @contextmanager
    def watch(part):
        with FlopCounterMode(display=False, custom_mapping=uncounted()) as counter:
            yield
        found[part] = counter.get_total_flops()

    samples = sample if isinstance(sample, list) else [sample]
    measure_samples(pair, samples, Cut(segment_length), Limits(batch_tokens), watch, heads)
    return found


HEADS = ((0, 1), (1, 0), (1, 3))


@pytest.mark.parametrize("architecture", ["llama", "mistral", "gemma2", "gemma3_text", "gpt_oss"])
def test_heads_against_torch(architecture, tokenizer, tmp_path):
    """No segment goes through the model, and the chosen heads' weights alone are collected, also where all rows are chunks."""
    pair = ModelPair(ModelPairConfig(long_model=make_model(architecture, tmp_path, tokenizer), short_window=100))
    for heads in (HEADS, HEADS[:1], HEADS[1:]):
        calibration = HeadCalibration(heads, (0,), ((0.0,),) * len(heads))
        expected = counted(pair, SAMPLE, 64, 300, calibration)
        found = computed(pair, ROW, Way(Cut(64), 300, 100, True, heads=heads))
        assert found.pop("segments") == 0 and "segments" not in expected
        assert found == pytest.approx(expected, rel=0.03)


def test_heads_cost_little_beside_the_two_passes_that_there_must_be(tiny_model):
    """Counted: everything that measuring by heads does is at most 1.2 times the long and the short pass without any weights."""
    pair = ModelPair(ModelPairConfig(long_model=tiny_model, short_window=100, device="cpu"))
    sample = Sample([7 + i % 50 for i in range(1_600)], 5, 1_535, 1_555, 1_600)
    calibration = HeadCalibration(HEADS[:2], (0,), ((0.0,),) * 2)
    with FlopCounterMode(display=False, custom_mapping=uncounted()) as passes:
        prompts = [sample.prompt, sample.prefix + pair.short_context(sample) + sample.instruction]
        for prompt in prompts:
            batch_nlls(pair.long, [prompt], [sample.response], full=True)
    everything = sum(counted(pair, sample, 128, 1_024, calibration).values())
    assert everything <= 1.2 * passes.get_total_flops()
    assert sum(counted(pair, sample, 128, 1_024).values()) > 1.4 * everything


def computed(pair, row, way) -> dict[str, float]:
    with pair.short() as short:
        shapes = model_shape(pair.long), model_shape(short)
    return {part: flops(work) for part, work in row_work(*shapes, row, way).items()}


@pytest.mark.parametrize("sibling", SIBLINGS)
def test_parts_against_torch(sibling, tiny_model):
    pair = ModelPair(ModelPairConfig(long_model=tiny_model, device="cpu", **sibling))
    reuses = "short_pass" in sibling
    way = Way(Cut(64), 300, sibling.get("short_window"), pair.is_self_paired, reuses)
    expected = counted(pair, SAMPLE, 64, 300)
    assert computed(pair, ROW, way) == pytest.approx(expected, rel=0.02 if reuses else 0.001)  # the long pass in two
    assert ("short" in expected) == (sibling != {"short_window": 4096} and not reuses)


@pytest.mark.parametrize(
    "architecture", ["qwen3", "mistral", "gemma2", "gemma3_text", "gpt_neox", "gpt_oss", "granite"]
)
def test_architectures_against_torch(architecture, tokenizer, tmp_path):
    pair = ModelPair(ModelPairConfig(long_model=make_model(architecture, tmp_path, tokenizer), short_window=100))
    expected = counted(pair, SAMPLE, 64, 300)
    assert computed(pair, ROW, Way(Cut(64), 300, 100, True)) == pytest.approx(expected, rel=0.03)


@pytest.mark.parametrize("architecture", ["qwen3", "gemma2", "gemma3_text"])
def test_outputs_by_a_fused_kernel_against_torch(architecture, tokenizer, tmp_path, monkeypatch):
    """As on a GPU: the response's rows go through SDPA too, but for soft-capped ones."""
    monkeypatch.setattr(attention, "OUTPUTS_ARE_FUSED", ("cpu",))
    pair = ModelPair(ModelPairConfig(long_model=make_model(architecture, tmp_path, tokenizer), short_window=100))
    expected = counted(pair, SAMPLE, 64, 300)
    assert computed(pair, ROW, Way(Cut(64), 300, 100, True)) == pytest.approx(expected, rel=0.03)


def test_a_short_checkpoint_of_another_size(tiny_model, tokenizer, tmp_path):
    short = make_model("llama", tmp_path, tokenizer, num_hidden_layers=1)
    pair = ModelPair(ModelPairConfig(long_model=tiny_model, short_model=short, device="cpu"))
    assert computed(pair, ROW, Way(Cut(64), 300, None, False)) == pytest.approx(
        counted(pair, SAMPLE, 64, 300), rel=0.001
    )


@pytest.mark.parametrize("sibling", [{"short_window": 100}, {"short_rope_scale": 8.0}])
def test_a_row_that_follows_against_torch(sibling, tiny_model):
    """Another question on a context: what it adds to the work. The first question goes another way too, which adds a little."""
    pair = ModelPair(ModelPairConfig(long_model=tiny_model, device="cpu", **sibling))
    way = Way(Cut(64), 300, sibling.get("short_window"), pair.is_self_paired)
    other = replace(SAMPLE, input_ids=SAMPLE.input_ids[:265] + SAMPLE.input_ids[:65])
    one = counted(pair, SAMPLE, 64, 300)
    two = counted(pair, [SAMPLE, other, other], 64, 300)
    expected = {part: (two[part] - one[part]) / 2 for part in one}
    found = computed(pair, replace(ROW, follows=True), way)
    assert {part: found[part] for part in expected} == pytest.approx(expected, rel=0.06)


def test_fewer_segments(tiny_model):
    pair = ModelPair(ModelPairConfig(long_model=tiny_model, short_window=100, device="cpu"))
    every, third = (row_work(*2 * [model_shape(pair.long)], ROW, Way(Cut(16, n), 300, 100, True)) for n in (1, 3))
    assert flops(third["segments"]) == pytest.approx(flops(every["segments"]) * 6 / 17, rel=0.03)
    assert num_segments(ROW, Way(Cut(16, 3), 300, 100, True)) == 6


def test_row_shape_of_a_sample_and_cut():
    assert RowShape.of(SAMPLE) == ROW and ROW.length == 330
    assert ROW.cut(300).context == 230 and ROW.cut(400) == ROW and ROW.cut(10).context == 0


def test_forwards_by_hand():
    """Four segments of 64 in batches of two (2 x 133 tokens fit 300), then one of 4."""
    found = forwards(ROW, Way(Cut(64), 300, 100, True))
    assert list(found) == list(PARTS)
    assert found["long"] == [Forward(1, 1, 330)] and found["no_context"] == [Forward(1, 1, 69)]
    assert found["short"] == [Forward(1, 1, 69 + 80)]
    assert found["segments"] == [Forward(2, 2, 133), Forward(1, 1, 73)]
    assert num_segments(ROW, Way(Cut(64), 300, 100, True)) == 5
    assert pass_tokens(ROW, Way(Cut(64), 300, 100, True)) == {
        "long": 330,
        "no_context": 69,
        "short": 149,
        "segments": 266,
    }
    assert forwards(RowShape(5, 0, 20, 45), Way(Cut(64), 300, None, False))["segments"] == []


def test_forward_work_by_hand():
    model = ModelShape(1000, 500, ((LayerShape(8, 2, None), 3),), sdpa=True, weights_per_chunk=1 << 21)
    work = forward_work(model, batch=2, tokens=10, num_logits=4)
    assert work.tolist() == [1, 2 * 2 * 10 * 1000, 4 * 3 * 8 * 2 * 55, 0, 2 * 2 * 4 * 500]
    work = forward_work(model, batch=1, tokens=10, num_logits=4, split=6)
    assert work.tolist()[2:4] == [4 * 3 * 8 * 21, 3 * (4 * 8 + 2 * 2) * 4 * 10]


def test_last_layer_by_hand():
    """The last of three layers computes the MLP (600 of 1,000 weights) and the attention of the four rows that are read; with
    weights collected the row before them too, whose logits are read."""
    layer = LayerShape(8, 2, None)
    model = ModelShape(1000, 500, ((layer, 3),), sdpa=True, weights_per_chunk=1 << 21, last_mlp=600, last=layer)
    work = forward_work(model, batch=2, tokens=10, num_logits=4)
    assert work.tolist()[1:4] == [2 * 2 * (10 * 1000 - 6 * 600), 4 * 8 * 2 * (2 * 55 + 4 * 10), 0]
    work = forward_work(model, batch=1, tokens=10, num_logits=4, split=6)
    assert work.tolist()[1:4] == [2 * (10 * 1000 - 5 * 600), 4 * 8 * (2 * 21 + 1 * 6), 3 * (4 * 8 + 2 * 2) * 4 * 10]


def test_chunks_shrink_what_a_long_row_computes():
    whole, chunked = (
        ModelShape(0, 0, ((LayerShape(8, 2, 50), 1),), sdpa=True, weights_per_chunk=limit) for limit in (1 << 30, 1000)
    )
    assert forward_work(whole, 1, 400, 0)[2] == 4 * 8 * 400 * 400
    assert forward_work(chunked, 1, 400, 0)[2] < 4 * 8 * 400 * 60


def test_rows_that_see_a_window_go_in_chunks_no_longer_than_that():
    """However many weights a device has room for: a chunk of 1,024 rows computes 1,073 keys for each of them, not 8,000."""
    model = ModelShape(0, 0, ((LayerShape(8, 2, 50), 1),), sdpa=True, weights_per_chunk=1 << 40)
    assert forward_work(model, 1, 8_000, 0)[2] <= 4 * 8 * 8_000 * (1_024 + 49)


def test_fused_attention_by_hand():
    """FlexAttention computes what rows see; the sum of weights takes two products of queries and keys a pair."""
    layers = ((LayerShape(8, 2, 4), 1), (LayerShape(8, 2, None), 2))
    model = ModelShape(0, 0, layers, sdpa=False, weights_per_chunk=1 << 21, flex=True)
    seen = 1 + 2 + 3 + 7 * 4 + 2 * 55  # of ten rows, in one layer by a window of 4
    assert forward_work(model, 2, 10, 0)[2:4].tolist() == [4 * 8 * 2 * seen, 0]
    rectangle = 4 * 10  # of four rows and the keys up to the last; where they see a window, of the seven that they see
    weights = 2 * 2 * 2 * 4 * (4 * 7 + 2 * rectangle)
    assert forward_work(model, 1, 10, 4, split=6)[3] == weights


def test_no_part_needs_torch_at_import():
    import subprocess
    import sys

    code = "import sys, hf_gateau.measuring.costs; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
    assert np.isclose(flops(np.array([5, 1, 2, 3, 4])), 10)
