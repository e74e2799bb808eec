"""Samples measured together: as each by itself, in fewer passes; what happens where memory is too small."""

from dataclasses import replace

import pytest
import torch
from transformers import AutoModelForCausalLM

from hf_gateau.measuring import passes
from hf_gateau.measuring.passes import MOST_TOGETHER, bunches, measure_samples
from hf_gateau.models import attention, perplexity, prefill
from hf_gateau.models.abilities import Abilities, abilities_of
from hf_gateau.models.config import ModelPairConfig
from hf_gateau.models.packing import MOST_PADDING, Cut, Limits, pack
from hf_gateau.models.pair import ModelPair
from hf_gateau.rows.samples import Sample
from hf_gateau.store.sqlite import MeasureError
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
    make_sample(150, 1, 1, seed=4, of=FIRST),
]


def assert_close(found, expected):
    for name in ("ppl_short", "ppl_long", "ppl_no_context", "segment_ppl", "segment_attention"):
        assert getattr(found, name) == pytest.approx(getattr(expected, name), rel=2e-5), name


@pytest.mark.parametrize("sibling", [{"short_window": 60}, {"short_rope_scale": 8.0}])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_together_is_as_each_alone(architecture, sibling, tokenizer, tmp_path):
    """A shared context, short samples in one batch, contexts in pieces: all the same numbers, for every architecture."""
    if architecture == "gpt_neox" and "short_rope_scale" in sibling:
        sibling = {"short_rope_scale": 0.5}  # at 8 some of this model's perplexities have no digits left
    folder = make_model(architecture, tmp_path, tokenizer)
    pair = ModelPair(ModelPairConfig(long_model=folder, device="cpu", **sibling))
    alone = [measure_samples(pair, [sample], CUT, Limits(1))[0] for sample in SAMPLES]
    for limits in (Limits(400), Limits(100_000), Limits(400, piece_tokens=40)):
        for found, expected in zip(measure_samples(pair, SAMPLES, CUT, limits), alone, strict=True):
            assert_close(found, expected)


@pytest.mark.parametrize("architecture", ["llama", "qwen3", "gpt_neox"])
def test_rows_after_a_past_as_a_gpu_computes_them(architecture, tokenizer, tmp_path, monkeypatch):
    """The mask that fast kernels know says the same as ours; on a CPU torch writes it out."""
    folder = make_model(architecture, tmp_path, tokenizer)
    pair = ModelPair(ModelPairConfig(long_model=folder, short_window=60, device="cpu"))
    limits = Limits(400, piece_tokens=40)
    expected = measure_samples(pair, SAMPLES, CUT, limits)
    monkeypatch.setattr(attention, "KERNELS_KNOW_PAST", ("cpu",))
    monkeypatch.setattr(attention, "WEIGHTS_PER_CHUNK", 1)
    monkeypatch.setattr(attention, "BLOCKED_TOKENS", 0)
    for found, want in zip(measure_samples(pair, SAMPLES, CUT, limits), expected, strict=True):
        assert_close(found, want)


def passed_tokens(model) -> list[int]:
    """Collects the tokens of each forward pass of the decoder from now on."""
    found = []

    def look(module, args, kwargs):
        if kwargs.get("input_ids") is not None:
            found.append(kwargs["input_ids"].numel())

    model.get_decoder().register_forward_pre_hook(look, with_kwargs=True)
    return found


def test_a_shared_context_goes_through_once(tiny_model):
    """Three questions of 16, 16 and 2 tokens after 153: tokens of every pass, in the order of the parts."""
    pair = ModelPair(ModelPairConfig(long_model=tiny_model, short_rope_scale=8.0, device="cpu"))
    tokens = passed_tokens(pair.long)
    measure_samples(pair, [SAMPLES[0], SAMPLES[2], SAMPLES[4]], CUT, Limits(10_000))
    long, no_context, short = [153, 16, 16, 2], [2 * 18, 4], [153, 15, 15, 1]
    segments = [9 * 19, 9 * 15, 9 * 15, 9 * 1, 9, 15, 15, 1]
    assert tokens == long + no_context + short + segments


def test_short_samples_share_passes(tiny_model):
    pair = ModelPair(ModelPairConfig(long_model=tiny_model, short_window=16, device="cpu"))
    tokens = passed_tokens(pair.long)
    samples = [make_sample(48, 4, 3, seed=i) for i in range(10)]
    measure_samples(pair, samples, CUT, Limits(1_000))
    assert tokens == [10 * 58, 10 * 9, 10 * (3 + 12 + 4 + 2), 30 * 25]


def test_every_other_segment(tiny_model):
    """The last is among them, alone and where a context is shared; nothing else changes."""
    pair = ModelPair(ModelPairConfig(long_model=tiny_model, short_window=60, device="cpu"))
    every, other = (measure_samples(pair, SAMPLES, cut, Limits(400)) for cut in (CUT, Cut(16, stride=2)))
    for whole, half in zip(every, other, strict=True):
        assert half.segment_ppl[::-1] == pytest.approx(whole.segment_ppl[::-2], rel=2e-5)
        assert half.segment_attention[::-1] == whole.segment_attention[::-2]
        assert (half.ppl_long, half.ppl_no_context, half.ppl_short) == pytest.approx(
            (whole.ppl_long, whole.ppl_no_context, whole.ppl_short), rel=1e-6
        )


def test_a_model_with_a_state_of_its_own_shares_nothing(tiny_model, monkeypatch):
    pair = ModelPair(ModelPairConfig(long_model=tiny_model, short_window=60, device="cpu"))
    assert abilities_of(pair.long.config).keeps_past
    monkeypatch.setattr(pair.long.config, "layer_types", ["full_attention", "linear_attention"], raising=False)
    assert not abilities_of(pair.long.config).keeps_past
    monkeypatch.setattr(passes, "Prefill", None)
    assert len(measure_samples(pair, SAMPLES, CUT, Limits(400))) == len(SAMPLES)


# A short pass that reuses the long one


@torch.inference_mode()
def masked_nll(folder: str, sample: Sample, num_seen: int) -> float:
    """One pass over everything, in which what follows the context sees the prefix and the context's end alone."""
    model = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager")
    num_tokens = len(sample.input_ids)
    allowed = torch.ones(num_tokens, num_tokens).tril().bool()
    allowed[sample.context_end :, sample.context_start : sample.context_end - num_seen] = False
    mask = torch.zeros(1, 1, num_tokens, num_tokens).masked_fill(~allowed, torch.finfo(torch.float32).min)
    logits = model(torch.tensor([sample.input_ids]), attention_mask=mask).logits[0].log_softmax(-1)
    rows = range(sample.response_start, sample.response_end)
    return -sum(float(logits[i - 1, sample.input_ids[i]]) for i in rows) / len(rows)


@pytest.mark.parametrize("architecture", ["llama", "qwen3", "gpt_neox", "granite"])
def test_short_pass_that_reuses_the_long_one(architecture, tokenizer, tmp_path):
    """Only the short perplexity differs, and is that of a mask over the long pass; whatever goes together."""
    folder = make_model(architecture, tmp_path, tokenizer)
    own, reuse = (
        ModelPair(ModelPairConfig(long_model=folder, short_window=60, short_pass=short_pass, device="cpu"))
        for short_pass in ("own", "reuse")
    )
    expected = measure_samples(own, SAMPLES, CUT, Limits(400))
    for limits in (Limits(400), Limits(1), Limits(400, piece_tokens=40)):
        found = measure_samples(reuse, SAMPLES, CUT, limits)
        for got, want, sample in zip(found, expected, SAMPLES, strict=True):
            seen = len(reuse.short_context(sample))
            if seen < len(sample.context):
                assert got.ppl_short != pytest.approx(want.ppl_short, rel=1e-3)
                want = replace(want, ppl_short=perplexity.perplexity(masked_nll(folder, sample, seen)))
            assert_close(got, want)
    assert own.describe() != reuse.describe() and "pass" not in own.describe()["short"]


def test_short_pass_is_saved(tiny_model):
    """What follows the context goes through the model again, the window does not."""
    pair = ModelPair(ModelPairConfig(long_model=tiny_model, short_window=60, short_pass="reuse", device="cpu"))
    tokens = passed_tokens(pair.long)
    measure_samples(pair, [FIRST], CUT, Limits(100))
    assert tokens[:4] == [153, 9 + 7, 9 + 7 - 1, 3 + 9 + 7 - 1]  # context, what follows it twice; without context


def test_reuse_is_refused_where_there_is_nothing_to_reuse(tiny_model, monkeypatch):
    with pytest.raises(ValueError, match="short_pass='reuse' lets the long model see"):
        ModelPairConfig(long_model=tiny_model, short_model=tiny_model, short_pass="reuse")
    with pytest.raises(ValueError, match="short_pass"):
        ModelPairConfig(long_model=tiny_model, short_pass="twice")
    monkeypatch.setattr("hf_gateau.models.pair.abilities_of", lambda config: Abilities())
    with pytest.raises(ValueError, match="keys and values alone"):
        ModelPair(ModelPairConfig(long_model=tiny_model, short_window=60, short_pass="reuse", device="cpu"))


# Bunches


def test_bunches_hold_one_context_together_and_fill_a_batch():
    order = [SAMPLES[i] for i in (1, 0, 3, 2, 4)]
    assert bunches(order, Limits(10)) == [[1, 3, 4], [2], [0]]
    assert bunches(order, Limits(10_000)) == [[1, 3, 4, 2, 0]]
    many = [make_sample(40, 2, 2, seed=i, of=SAMPLES[3]) for i in range(MOST_TOGETHER + 3)]
    assert [len(places) for places in bunches(many, Limits(10))] == [MOST_TOGETHER, 3]
    assert bunches([], Limits(10)) == []


def test_rows_of_similar_length_share_passes_in_whatever_order_they_come():
    lengths = [300, 20, 290, 25, 310, 22, 280, 18]
    samples = [make_sample(n, 2, 2, seed=i) for i, n in enumerate(lengths)]
    limits, own = Limits(1_220), [sample.response_end for sample in samples]
    in_bunches = bunches(samples, limits)
    assert sorted(place for places in in_bunches for place in places) == list(range(8))
    assert [sorted(lengths[i] for i in places) for places in in_bunches] == [[280, 290, 300, 310], [18, 20, 22, 25]]
    assert all(sum(own[i] for i in places) <= limits.batch_tokens for places in in_bunches)
    mixed = samples[::-1]
    again = [sorted(mixed[i].response_end for i in places) for places in bunches(mixed, limits)]
    assert again == [sorted(own[i] for i in places) for places in in_bunches]


def test_context_key_tells_prefix_from_context():
    sample = SAMPLES[0]
    assert sample.context_key == SAMPLES[2].context_key != SAMPLES[1].context_key
    assert replace(sample, context_start=2).context_key != sample.context_key


def test_batches_hold_every_sequence_once_and_little_padding():
    lengths = torch.randint(1, 500, (300,), generator=torch.Generator().manual_seed(0)).tolist()
    for batch_tokens in (1, 700, 4_000, 100_000):
        batches = pack(lengths, batch_tokens)
        assert sorted(place for batch in batches for place in batch) == list(range(300))
        for batch in batches:
            longest = max(lengths[i] for i in batch)
            assert len(batch) == 1 or len(batch) * longest <= batch_tokens
            assert all(lengths[i] >= (1 - MOST_PADDING) * longest for i in batch)
    assert len(pack([100] * 50, 1_000)) == 5
    assert pack([], 10) == []


# Memory


@pytest.fixture
def small_device(monkeypatch):
    """A device whose memory holds so many tokens of a pass (with the keys it keeps); hands over the place to say how many."""
    limit = {"tokens": 10**9}

    def guarded(function):
        def call(model, *args, **kwargs):
            sequences = args[0]
            tokens = sum(map(len, sequences))
            if tokens > limit["tokens"]:
                raise torch.OutOfMemoryError("no memory")
            return function(model, *args, **kwargs)

        return call

    for module in (passes, perplexity, prefill):
        monkeypatch.setattr(module, "batch_nlls", guarded(perplexity.batch_nlls))
    real = prefill.Prefill.__init__

    def init(self, model, contexts, piece_tokens=float("inf")):
        if min(sum(map(len, contexts)), piece_tokens) > limit["tokens"]:
            raise torch.OutOfMemoryError("no memory")
        real(self, model, contexts, piece_tokens)

    monkeypatch.setattr(prefill.Prefill, "__init__", init)
    return limit


def test_a_long_context_goes_in_pieces_where_it_does_not_fit(tiny_model, small_device, monkeypatch, caplog):
    monkeypatch.setattr(passes, "LEAST_PIECE_TOKENS", 20)
    pair = ModelPair(ModelPairConfig(long_model=tiny_model, short_rope_scale=8.0, device="cpu"))
    expected = measure_samples(pair, [FIRST], CUT, Limits(60))
    small_device["tokens"], limits = 60, Limits(60)
    [found] = measure_samples(pair, [FIRST], CUT, limits)
    assert_close(found, expected[0])
    assert limits.piece_tokens == 37 and "in pieces of 37 tokens" in caplog.text  # 150 / 2 does not fit, 75 / 2 does


def test_what_fits_in_no_way_is_told_and_the_others_are_measured(tiny_model, small_device, monkeypatch):
    monkeypatch.setattr(passes, "LEAST_PIECE_TOKENS", 60)
    pair = ModelPair(ModelPairConfig(long_model=tiny_model, short_window=60, device="cpu"))
    small_device["tokens"], limits = 50, Limits(50)
    found = measure_samples(pair, SAMPLES[:2], CUT, limits)
    assert isinstance(found[0], MeasureError) and "out of memory on 169 tokens; lower max_length" in str(found[0])
    small_device["tokens"] = 10**9
    assert_close(found[1], measure_samples(pair, SAMPLES[1:2], CUT, Limits(50))[0])
