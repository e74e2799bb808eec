"""What each token of a response tells, against transformers' own full passes, one context at a time."""

import math

import pytest
import torch
from transformers import AutoModelForCausalLM

from hf_gateau.measuring.passes import measure_samples
from hf_gateau.measuring.segments import num_far_segments
from hf_gateau.models.config import ModelPairConfig
from hf_gateau.models.packing import Cut, Limits
from hf_gateau.models.pair import ModelPair
from hf_gateau.store.sqlite import TOKEN_FIELDS
from tests.measured import make_sample
from tests.tiny_models import ARCHITECTURES, make_model


pytestmark = pytest.mark.quick

CUT = Cut(16)
FIRST = make_sample(150, 9, 7)
SAMPLES = [
    FIRST,
    make_sample(20, 5, 3, seed=1),
    make_sample(150, 4, 12, seed=2, of=FIRST),
    make_sample(70, 1, 1, seed=3),
]
NUM_NEAR = {
    9: 51,
    5: 20,
    4: 56,
    1: 59,
}  # by tokens of the instruction: a window of 60 holds both, and at most the context
KEPT_TOGETHER = ("ppl_short", "ppl_long", "ppl_no_context")


def own_nlls(model, sample, context: list[int]) -> list[float]:
    """Of every response token after prefix, a context and instruction, from one full pass of the model as it is saved."""
    ids = torch.tensor([sample.prefix + context + sample.instruction + sample.response])
    with torch.inference_mode():
        logits = model(ids).logits[0, :-1].double()
    chosen = torch.log_softmax(logits, -1).gather(1, ids[0, 1:, None])[:, 0]
    return (-chosen[-len(sample.response) :]).tolist()


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_tokens_are_those_of_full_passes(architecture, tokenizer, tmp_path):
    folder = make_model(architecture, tmp_path, tokenizer)
    pair = ModelPair(ModelPairConfig(long_model=folder, short_window=60, device="cpu"))
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    close = {"rel": 1e-4, "abs": 2e-5}
    for sample, found in zip(SAMPLES, measure_samples(pair, SAMPLES, CUT, Limits(400)), strict=True):
        num_near, context = NUM_NEAR[len(sample.instruction)], sample.context
        assert found.token_nll_long == pytest.approx(own_nlls(model, sample, context), **close)
        assert found.token_nll_no_context == pytest.approx(own_nlls(model, sample, []), **close)
        assert found.token_nll_short == pytest.approx(
            own_nlls(model, sample, context[len(context) - num_near :]), **close
        )
        starts = range(0, len(context), 16)
        alone = [own_nlls(model, sample, context[a : a + 16]) for a in starts]
        is_far = [min(a + 16, len(context)) <= len(context) - num_near for a in starts]
        far = [nlls for nlls, x in zip(alone, is_far, strict=True) if x]
        near = [nlls for nlls, x in zip(alone, is_far, strict=True) if not x]
        assert found.num_far_segments == len(far)
        assert found.token_nll_far == pytest.approx(list(map(min, *far)) if len(far) > 1 else sum(far, []), **close)
        assert found.token_nll_near == pytest.approx(
            list(map(min, *near)) if len(near) > 1 else sum(near, []), **close
        )
        for place, nll, best in zip(
            found.token_far_segment, found.token_nll_far, range(len(found.token_nll_far)), strict=True
        ):
            assert far[place][best] == pytest.approx(nll, **close)


@pytest.mark.parametrize("sibling", [{"short_window": 60}, {"short_rope_scale": 8.0}])
def test_their_means_are_the_perplexities(tiny_model, sibling):
    pair = ModelPair(ModelPairConfig(long_model=tiny_model, device="cpu", **sibling))
    for found in measure_samples(pair, SAMPLES, CUT, Limits(400)):
        for name in ("long", "short", "no_context"):
            tokens = getattr(found, f"token_nll_{name}")
            assert math.fsum(tokens) / len(tokens) == pytest.approx(math.log(getattr(found, f"ppl_{name}")), abs=1e-6)


def test_they_do_not_depend_on_what_is_measured_beside_them(tiny_model):
    pair = ModelPair(ModelPairConfig(long_model=tiny_model, short_window=60, device="cpu"))
    together = measure_samples(pair, SAMPLES, CUT, Limits(100_000))
    for sample, found in zip(SAMPLES, together, strict=True):
        [alone] = measure_samples(pair, [sample], CUT, Limits(1))
        for name in TOKEN_FIELDS:
            if name != "token_far_segment":  # of two that are equal but for rounding, either
                assert getattr(found, name) == pytest.approx(getattr(alone, name), rel=1e-4, abs=2e-5), name


@pytest.mark.parametrize(
    ("num_context", "num_near", "stride", "expected"),
    # segments end at 16, 32, 48, 50
    [
        (50, 0, 1, 4),
        (50, 1, 1, 3),
        (50, 2, 1, 3),
        (50, 3, 1, 2),
        (50, 18, 1, 2),
        (50, 19, 1, 1),
        (50, 50, 1, 0),
        (9, 0, 1, 1),
    ]
    # every other one, the last included: those that end at 32 and 50
    + [(50, 0, 2, 2), (50, 18, 2, 1), (50, 19, 2, 0)],
)
def test_a_far_segment_ends_before_all_that_is_near(num_context, num_near, stride, expected):
    assert num_far_segments(num_context, num_near, Cut(16, stride)) == expected


def test_near_is_what_the_short_model_s_own_window_holds(tiny_model, tokenizer, tmp_path):
    short = make_model("llama", tmp_path, tokenizer, max_position_embeddings=64)
    pair = ModelPair(ModelPairConfig(long_model=tiny_model, short_model=short, device="cpu"))
    rest = FIRST.response_end - len(FIRST.context)
    assert pair.num_near(FIRST) == 64 - rest
    [found] = measure_samples(pair, [FIRST], CUT, Limits(400))
    assert found.num_far_segments == (150 - (64 - rest)) // 16
    whole = ModelPair(ModelPairConfig(long_model=tiny_model, short_rope_scale=8.0, device="cpu"))
    [found] = measure_samples(whole, [FIRST], CUT, Limits(400))
    assert found.num_far_segments == 0 and found.token_nll_far == found.token_far_segment == []
