"""Attention head by head and by segment, against the weights that transformers' own eager pass returns."""

import pytest
import torch
from transformers import AutoModelForCausalLM

from hf_gateau.models import attention
from hf_gateau.models.collected import HeadAttention, ResponseAttention
from hf_gateau.models.config import ModelPairConfig
from hf_gateau.models.packing import Cut
from hf_gateau.models.pair import ModelPair
from hf_gateau.models.perplexity import batch_nlls
from hf_gateau.models.prefill import Prefill
from tests.measured import make_sample
from tests.tiny_models import ARCHITECTURES, make_model


pytestmark = pytest.mark.quick

CUT = Cut(16)
SAMPLES = [make_sample(150, 9, 7), make_sample(140, 5, 12, seed=1)]
SOME = [(1, 3), (0, 1), (1, 0)]  # heads of both layers, of one group and of two


def own_attention(model, sample) -> torch.Tensor:
    """(S, H): by the formula, from one pass of the model that returns all its weights."""
    with torch.inference_mode():
        weights = model(torch.tensor([sample.input_ids]), output_attentions=True).attentions
    rows = slice(sample.response_start, sample.response_end)
    found = []
    for start in range(sample.context_start, sample.context_end, CUT.length):
        end = min(start + CUT.length, sample.context_end)
        found.append(torch.cat([layer[0, :, rows, start:end].double().mean((1, 2)) for layer in weights]))
    return torch.stack(found)


def collected(pair, samples, heads=None, cut=CUT):
    """One pass over some samples: what was collected, and the responses' negative log-likelihoods."""
    with pair.long_with_attention() as model:
        found = HeadAttention(samples, cut, heads)
        prompts, responses = [x.prompt for x in samples], [x.response for x in samples]
        nlls = batch_nlls(model, prompts, responses, full=True, response_attention=found)
    return found, nlls


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_heads_are_those_of_transformers(architecture, tokenizer, tmp_path, monkeypatch):
    """All of them and some alone; whole, in small chunks, and after a past of keys; alone and in a batch. The mean over all heads
    and layers is what `ResponseAttention` collects, and the response's likelihoods are the same in every way."""
    folder = make_model(architecture, tmp_path, tokenizer)
    pair = ModelPair(ModelPairConfig(long_model=folder, short_window=60, device="cpu"))
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    expected = [own_attention(model, sample) for sample in SAMPLES]
    close = {"rtol": 2e-4, "atol": 1e-7}
    for chunk in (attention.WEIGHTS_PER_CHUNK, 3_000):
        monkeypatch.setattr(attention, "WEIGHTS_PER_CHUNK", chunk)
        for samples, wanted in ((SAMPLES, expected), (SAMPLES[:1], expected[:1])):
            whole, nlls = collected(pair, samples)
            assert whole.names() == [(layer, head) for layer in (0, 1) for head in range(4)]
            some, same_nlls = collected(pair, samples, SOME)
            assert some.names() == sorted(SOME)
            columns = [whole.names().index(name) for name in some.names()]
            for a, b, c in zip(whole.segment_heads(), some.segment_heads(), wanted, strict=True):
                torch.testing.assert_close(a, c, **close)
                torch.testing.assert_close(b, c[:, columns], **close)
            torch.testing.assert_close(nlls, same_nlls, rtol=1e-4, atol=1e-5)
            with pair.long_with_attention() as long:
                means = ResponseAttention(samples)
                responses = [x.response for x in samples]
                batch_nlls(long, [x.prompt for x in samples], responses, full=True, response_attention=means)
            for mean, heads in zip(means.segment_means(CUT), whole.segment_heads(), strict=True):
                torch.testing.assert_close(torch.tensor(mean).double(), heads.mean(1), rtol=1e-6, atol=0)
    sample = SAMPLES[0]
    with pair.long_with_attention() as long:
        prefill = Prefill(long, [sample.prefix + sample.context], 50)
        for heads in (None, SOME):
            found = HeadAttention([sample], CUT, heads)
            prefill.nlls(sample.instruction, sample.response, full=True, response_attention=found)
            columns = [(layer, head) in found.names() for layer in (0, 1) for head in range(4)]
            torch.testing.assert_close(found.segment_heads()[0], expected[0][:, columns], **close)


def test_a_layer_without_a_named_head_computes_no_weights(tiny_model, monkeypatch):
    pair = ModelPair(ModelPairConfig(long_model=tiny_model, short_window=60, device="cpu"))
    layers = []
    real = HeadAttention.add
    monkeypatch.setattr(HeadAttention, "add", lambda self, *rest: layers.append(self.num_layers) or real(self, *rest))
    monkeypatch.setattr(
        attention, "eager_attention_forward", lambda module: pytest.fail("the eager function was asked for")
    )
    found, _ = collected(pair, SAMPLES[:1], [(1, 2)])
    assert set(layers) == {2} and found.segment_heads()[0].shape == (10, 1)


def test_segments_that_are_left_out_and_short_ones(tiny_model):
    pair = ModelPair(ModelPairConfig(long_model=tiny_model, short_window=60, device="cpu"))
    every, third = (collected(pair, SAMPLES, cut=Cut(16, stride))[0].segment_heads() for stride in (1, 3))
    for a, b in zip(every, third, strict=True):
        torch.testing.assert_close(a[(len(a) - 1) % 3 :: 3], b)
    assert len(every[0]) == 10 and len(every[1]) == 9  # 6 of 150 tokens are a segment too, and 12 of 140


def test_a_head_that_the_model_lacks_is_told(tiny_model):
    pair = ModelPair(ModelPairConfig(long_model=tiny_model, short_window=60, device="cpu"))
    with pytest.raises(ValueError, match="has no attention layer 5"):
        collected(pair, SAMPLES, [(0, 1), (5, 0)])[0].segment_heads()
