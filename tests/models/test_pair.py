"""The raw numbers against the straight way, for every architecture; the three kinds of sibling; the checks at the door."""

import copy
import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from benchmarks import straight
from hf_gateau import GateauScorer
from hf_gateau.measuring.passes import measure_samples
from hf_gateau.models import attention
from hf_gateau.models.config import ModelPairConfig
from hf_gateau.models.device import resolve_device
from hf_gateau.models.fingerprints import model_fingerprint
from hf_gateau.models.packing import Cut, Limits
from hf_gateau.models.pair import ModelPair
from hf_gateau.models.rope import context_window, scale_rope
from hf_gateau.rows.samples import build_sample
from tests.measured import SETTINGS
from tests.tiny_models import ARCHITECTURES, make_model


SEGMENT_LENGTH = 16


def load_straight(folder, **options):
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager", **options)
    return model.eval()


def measure_sample(pair, sample, segment_length, batch_tokens=1024):
    [measured] = measure_samples(pair, [sample], Cut(segment_length), Limits(batch_tokens))
    return measured


def assert_agrees(measured, expected):
    """The bars of the real-model test: perplexities to 1e-4 relative, attention to 1e-6 absolute."""
    for name in ("ppl_short", "ppl_long", "ppl_no_context", "segment_ppl"):
        assert getattr(measured, name) == pytest.approx(expected[name], rel=1e-4), name
    assert measured.segment_attention == pytest.approx(expected["segment_attention"], abs=1e-6)


@pytest.fixture(scope="module")
def sample(rows, tokenizer):
    return build_sample(rows[0], tokenizer, max_length=150)  # longer than the sliding windows, last segment shorter


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_raw_numbers_agree_with_the_straight_way(architecture, sample, tokenizer, tmp_path, monkeypatch):
    monkeypatch.setattr(attention, "WEIGHTS_PER_CHUNK", 2_000)  # several chunks of query rows
    monkeypatch.setattr("hf_gateau.models.perplexity.LOGITS_PER_CHUNK", 1_000)  # several chunks of logits
    folder = make_model(architecture, tmp_path, tokenizer)
    pair = ModelPair(ModelPairConfig(long_model=folder, short_window=60, device="cpu"))
    measured = measure_sample(pair, sample, SEGMENT_LENGTH, batch_tokens=120)
    model = load_straight(folder)
    short_context = sample.context[-(60 - len(sample.instruction)) :]
    expected = straight.measure(model, model, sample, SEGMENT_LENGTH, short_context=short_context)
    assert_agrees(measured, expected)
    assert len(measured.segment_ppl) == len(measured.segment_attention) == -(-len(sample.context) // SEGMENT_LENGTH)
    assert len(sample.context) % SEGMENT_LENGTH  # the shorter last segment is there
    assert measured.ppl_short != pytest.approx(measured.ppl_long, rel=1e-3)  # the siblings do differ


def test_uniform_logits_give_the_vocabulary_size(sample, tokenizer, tmp_path):
    folder = make_model("llama", tmp_path, tokenizer, scale=0.0)
    measured = measure_sample(ModelPair(ModelPairConfig(long_model=folder, short_window=9, device="cpu")), sample, 32)
    assert measured.ppl_long == pytest.approx(len(tokenizer), rel=1e-6)
    assert measured.segment_ppl == pytest.approx([len(tokenizer)] * len(measured.segment_ppl), rel=1e-6)
    # zero queries look everywhere alike: row r of T sees r + 1 tokens
    rows = range(sample.response_start, sample.response_end)
    uniform = sum(1 / (row + 1) for row in rows) / len(rows)
    assert measured.segment_attention == pytest.approx([uniform] * len(measured.segment_attention), rel=1e-5)


def test_checkpoint_sibling_with_scaled_rope(sample, tokenizer, tmp_path):
    long = make_model("llama", tmp_path / "long", tokenizer)
    short = make_model("llama", tmp_path / "short", tokenizer, initializer_range=0.3)
    pair = ModelPair(ModelPairConfig(long_model=long, short_model=short, short_rope_scale=200, device="cpu"))
    measured = measure_sample(pair, sample, SEGMENT_LENGTH)
    config = AutoConfig.from_pretrained(short)
    config.rope_parameters["rope_theta"] *= 200
    expected = straight.measure(
        load_straight(long),
        load_straight(long),
        sample,
        SEGMENT_LENGTH,
        short_model=load_straight(short, config=config),
    )
    assert_agrees(measured, expected)


@pytest.mark.parametrize("architecture", ["llama", "gemma3_text", "gpt_neox"])
def test_rope_sibling_shares_weights_and_leaves_the_long_model_as_it_was(architecture, sample, tokenizer, tmp_path):
    folder = make_model(architecture, tmp_path, tokenizer)
    pair = ModelPair(ModelPairConfig(long_model=folder, short_rope_scale=0.01, device="cpu"))
    measured = [measure_sample(pair, sample, SEGMENT_LENGTH) for _ in range(2)]
    assert measured[0] == measured[1]
    scaled = load_straight(folder, config=scale_rope(AutoConfig.from_pretrained(folder), 0.01))
    model = load_straight(folder)
    assert_agrees(measured[0], straight.measure(model, model, sample, SEGMENT_LENGTH, short_model=scaled))


def test_window_that_shows_everything_equals_the_long_model(sample, tiny_model):
    pair = ModelPair(ModelPairConfig(long_model=tiny_model, short_window=4096, device="cpu"))
    measured = measure_sample(pair, sample, SEGMENT_LENGTH)
    assert measured.ppl_short == measured.ppl_long


def test_window_never_cuts_the_instruction(sample, tiny_model):
    pair = ModelPair(ModelPairConfig(long_model=tiny_model, short_window=1, device="cpu"))
    assert pair.short_context(sample) == []
    measured = measure_sample(pair, sample, SEGMENT_LENGTH)
    assert measured.ppl_short == pytest.approx(measured.ppl_no_context, rel=1e-6)


def test_other_attention_implementation_gives_the_same_numbers(sample, tiny_model):
    def measured(name):
        config = ModelPairConfig(long_model=tiny_model, short_window=60, device="cpu", attn_implementation=name)
        return measure_sample(ModelPair(config), sample, SEGMENT_LENGTH)

    default, eager = measured(None), measured("eager")
    assert vars(eager).keys() == vars(default).keys()
    # of mean negative log-likelihoods, as conftest.assert_same: in other blocks float32 rounds otherwise
    np.testing.assert_allclose(np.log(eager.segment_ppl), np.log(default.segment_ppl), rtol=1e-6, atol=1e-6)
    assert eager.segment_attention == pytest.approx(default.segment_attention, abs=1e-8)


def test_half_precision_stays_within_its_bound(sample, tiny_model):
    def measured(dtype):
        config = ModelPairConfig(long_model=tiny_model, short_window=60, device="cpu", dtype=dtype)
        return measure_sample(ModelPair(config), sample, SEGMENT_LENGTH)

    exact, half = measured("float32"), measured("bfloat16")
    assert half.ppl_long == pytest.approx(exact.ppl_long, rel=0.1)
    assert half.ppl_long != exact.ppl_long
    assert half.segment_attention == pytest.approx(exact.segment_attention, rel=0.1)


@pytest.fixture
def loads(monkeypatch) -> list[str]:
    """What was loaded by us (not within transformers), one class an entry."""
    called = []

    def counted(auto):
        return SimpleNamespace(
            from_pretrained=lambda *a, **kw: called.append(auto.__name__) or auto.from_pretrained(*a, **kw)
        )

    for auto, module in ((AutoConfig, "loading"), (AutoTokenizer, "loading"), (AutoModelForCausalLM, "weights")):
        monkeypatch.setattr(f"hf_gateau.models.{module}.{auto.__name__}", counted(auto))
    return called


ONCE = ["AutoConfig", "AutoTokenizer", "AutoModelForCausalLM"]


@pytest.mark.parametrize("scale", [None, 0.01])
def test_one_checkpoint_for_both_siblings_is_loaded_once(scale, sample, tokenizer, tmp_path, loads):
    folder, link = make_model("llama", tmp_path / "model", tokenizer), tmp_path / "link"
    link.symlink_to(folder)
    config = ModelPairConfig(
        long_model=folder, short_model=str(link), tokenizer=folder + "/", short_rope_scale=scale, device="cpu"
    )
    pair = ModelPair(config)
    short = pair.describe()["short"]
    assert short["model"] == str(link) and short["fingerprint"] == model_fingerprint(folder)
    measured = measure_sample(pair, sample, SEGMENT_LENGTH)
    assert loads == ONCE
    scaled = load_straight(folder, config=scale_rope(AutoConfig.from_pretrained(folder), scale or 1.0))
    model = load_straight(folder)
    assert_agrees(measured, straight.measure(model, model, sample, SEGMENT_LENGTH, short_model=scaled))
    assert (scale is None) == (measured.ppl_short == pytest.approx(measured.ppl_long, rel=1e-6))


def test_two_checkpoints_are_each_loaded_once(sample, tiny_model, tokenizer, tmp_path, loads):
    short = make_model("llama", tmp_path, tokenizer, initializer_range=0.3)
    pair = ModelPair(ModelPairConfig(long_model=tiny_model, short_model=short, tokenizer=short, device="cpu"))
    measure_sample(pair, sample, SEGMENT_LENGTH)
    assert not pair.shares_weights
    assert sorted(loads) == sorted(2 * ONCE)


def test_revisions_of_one_repository_are_two_models(monkeypatch):
    """The files would come from the Hub: that each of the three is asked for with its own revision is what counts."""
    asked = []

    def found(name, revision, *_):
        asked.append((name, revision))
        return AutoConfig.for_model("llama")

    monkeypatch.setattr("hf_gateau.models.pair.load_config", found)
    monkeypatch.setattr("hf_gateau.models.pair.load_tokenizer", found)
    monkeypatch.setattr("hf_gateau.models.pair.check_same_vocabulary", lambda *_: None)
    monkeypatch.setattr("hf_gateau.models.pair.check_embedded", lambda *_: None)
    pair = ModelPair(ModelPairConfig(long_model="a/b", short_model="a/b", short_revision="step1000"))
    assert not pair.shares_weights
    assert asked == 2 * [("a/b", None), ("a/b", "step1000")]
    asked.clear()
    both = {"long_model": "a/b", "short_model": "a/b", "long_revision": "main"}
    assert ModelPair(ModelPairConfig(**both)).shares_weights
    assert len(asked) == 2
    asked.clear()
    ModelPair(ModelPairConfig(long_model="a/b", short_model="c/d", short_revision="step1000", tokenizer="c/d"))
    assert asked[2:] == [("c/d", "step1000"), ("a/b", None)]


REST = {"model.embed_tokens": "cpu", "model.layers.0": "cpu", "model.norm": "cpu", "model.rotary_emb": "cpu"}
ON_DISK = {**REST, "lm_head": "cpu", "model.layers.1": "disk"}


@pytest.mark.parametrize("sibling", ["window", "rope", "checkpoint"])
def test_device_map_changes_no_number(sibling, rows):
    """On a CPU alone a disk is the one second place; its layers are hooked as those on a second GPU are."""
    from hf_gateau.quickstart import LONG_MODEL, SHORT_MODEL

    kinds = {
        "window": {"short_window": 128},
        "rope": {"short_rope_scale": 0.1},
        "checkpoint": {"short_model": SHORT_MODEL},
    }
    settings = {"long_model": LONG_MODEL, **kinds[sibling], "store": "off"}
    plain = GateauScorer(**settings, device="cpu")
    expected = plain(rows[0])
    for device_map in ("cpu", {**ON_DISK, "model.layers.1": "cpu"}, ON_DISK, json.dumps(ON_DISK)):
        scorer = GateauScorer(**settings, device_map=device_map)
        measured = scorer(rows[0])
        assert scorer.describe() == plain.describe()
        for name, value in measured.items():
            same = value if value is None or isinstance(value, str) else pytest.approx(value, rel=1e-6)
            assert expected[name] == same, name
    pair = scorer.start().pair
    with pair.short() as short:
        for model in (pair.long, short):
            assert all(parameter.is_meta for parameter in model.model.layers[1].parameters())
            assert model.device.type == "cpu"


def test_device_map_says_where_a_model_begins(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)

    def device(device_map):
        config = ModelPairConfig(long_model="a", device_map=device_map)
        return ModelPair.device.fget(SimpleNamespace(config=config, rank=0))

    assert device({"": "cpu"}) == device("cpu") == device({"a": "disk", "b": "cpu"}) == torch.device("cpu")
    assert device({"a": "cpu", "b": "cuda:1", "c": "cuda:0"}) == device("cuda:1") == torch.device("cuda", 1)
    assert device("balanced") == resolve_device("auto")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    with pytest.raises(ValueError, match="device='cuda:1' is not there"):
        device("cuda:1")


def test_device_map_is_refused_where_it_cannot_serve(sample, tiny_model, tmp_path):
    from peft import LoraConfig, get_peft_model

    def load(device_map, rank=0, **settings):
        return ModelPair(ModelPairConfig(long_model=tiny_model, device_map=device_map, **settings), rank).long

    with pytest.raises(ValueError, match="leaves the first weights of .* without a device; put its input embeddings"):
        load({**ON_DISK, "model.embed_tokens": "disk"})
    with pytest.raises(ValueError, match="this is process 2 of several"):
        load("auto", rank=1)
    get_peft_model(load_straight(tiny_model), LoraConfig(target_modules=["q_proj"])).save_pretrained(tmp_path)
    assert load("auto", long_adapter=str(tmp_path)).device.type == resolve_device("auto").type
    with pytest.raises(ValueError, match="cannot be put on them; merge it into the model first"):
        load(ON_DISK, long_adapter=str(tmp_path))


def test_peft_adapter_changes_its_model_alone(sample, tiny_model, tmp_path):
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(1)
    adapted = get_peft_model(load_straight(tiny_model), LoraConfig(init_lora_weights=False, target_modules=["q_proj"]))
    adapted.save_pretrained(tmp_path)
    config = ModelPairConfig(long_model=tiny_model, short_model=tiny_model, short_adapter=str(tmp_path), device="cpu")
    measured = measure_sample(ModelPair(config), sample, SEGMENT_LENGTH)
    model = load_straight(tiny_model)
    expected = straight.measure(model, model, sample, SEGMENT_LENGTH, short_model=adapted.merge_and_unload().eval())
    assert_agrees(measured, expected)
    assert measured.ppl_short != pytest.approx(measured.ppl_long, rel=1e-3)


def test_different_vocabularies_are_refused_before_weights_load(tiny_model, tokenizer, tmp_path):
    from copy import deepcopy

    other = deepcopy(tokenizer)
    other.add_tokens(["cherry"])
    short = make_model("llama", tmp_path, other)
    with pytest.raises(ValueError, match=r"do not share a vocabulary: 1 tokens differ, e\.g\. 'cherry'"):
        ModelPair(ModelPairConfig(long_model=tiny_model, short_model=short))


def test_missing_folder_is_refused_with_its_name():
    with pytest.raises(FileNotFoundError, match="no model at './nowhere'"):
        ModelPair(ModelPairConfig(long_model="./nowhere"))


def test_rope_scale_without_rope_is_refused(tokenizer, tmp_path):
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(vocab_size=len(tokenizer), n_embd=32, n_layer=1, n_head=2)
    GPT2LMHeadModel(config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="a gpt2 model has none; use short_window"):
        ModelPair(ModelPairConfig(long_model=str(tmp_path), short_rope_scale=200))


def test_an_adapter_that_is_not_there_is_told_before_any_weights(tiny_model):
    for adapter in ("./nowhere", tiny_model, "nobody/nothing"):
        with pytest.raises(OSError, match=f"no (model|adapter) at '{adapter}'"):
            ModelPair(ModelPairConfig(long_model=tiny_model, long_adapter=adapter))


def test_fingerprint_follows_the_weights_not_the_place(tiny_model, tokenizer, tmp_path):
    same = make_model("llama", tmp_path / "same", tokenizer)
    other = make_model("llama", tmp_path / "other", tokenizer, initializer_range=0.1)
    assert model_fingerprint(same) == model_fingerprint(tiny_model) != model_fingerprint(other)


def test_context_window_counts_rope_scaling():
    yarn = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 1024}
    config = AutoConfig.for_model("llama", max_position_embeddings=1024, rope_parameters=yarn)
    assert context_window(config) == 4096
    assert context_window(AutoConfig.for_model("llama", max_position_embeddings=2048)) == 2048


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"short_model": "a"}, "without its sibling"),
        ({"long_model": "a", "short_window": 0}, "short_window is a number of tokens, got 0"),
        ({"long_model": "a", "short_rope_scale": -1.0}, "short_rope_scale is a factor, got -1"),
        ({"long_model": "a", "load_in_4bit": True, "load_in_8bit": True}, "choose one"),
        ({"long_model": "a", "short_model": "b.gguf", "load_in_8bit": True}, "cannot quantise 'b.gguf'"),
        ({"long_model": "a", "dtype": "int3"}, "dtype='int3'"),
        (
            {"long_model": "a", "device": "cpu", "device_map": "auto"},
            "device='cpu' and device_map='auto' are both set",
        ),
        ({"long_model": "a", "device_map": "{model: 0}"}, "is not JSON"),
        ({"long_model": "a", "short_adapter": "b"}, "belong to a short_model"),
        ({"long_model": "a", "long_adapter_revision": "b"}, "long_adapter_revision='b' came without long_adapter"),
        ({"long_model": "a", "short_model": "c", "short_adapter_revision": "b"}, "came without short_adapter"),
    ],
)
def test_contradicting_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        ModelPairConfig(**settings)


def test_defaults_are_the_paper_pair_or_a_window():
    paper = ModelPairConfig()
    assert paper.short_model == "meta-llama/Llama-2-7b-hf" and paper.short_rope_scale == 200
    alone = ModelPairConfig(long_model="a")
    assert alone.short_model is None and alone.short_window == 4096


@pytest.mark.parametrize("bits, bound", [("8", 0.05), ("4", 0.5)])
def test_quantised_through_bitsandbytes(bits, bound, rows, tokenizer):
    """Needs the extra `quant`; the tiny pair's long model keeps its numbers within the loss of its bits."""
    pytest.importorskip("bitsandbytes")
    from hf_gateau.quickstart import LONG_MODEL

    def measured(**quantisation):
        config = ModelPairConfig(**{"long_model": LONG_MODEL, "short_window": 128, "device": "cpu", **quantisation})
        return measure_sample(ModelPair(config), build_sample(rows[0], tokenizer), 128)

    exact, quantised = measured(), measured(**{f"load_in_{bits}bit": True})
    assert measured(**{f"load_in_{bits}bit": True, "device": "auto", "device_map": {"": "cpu"}}) == quantised
    with pytest.raises(ValueError, match="Some modules are dispatched on the CPU or the disk"):
        measured(**{f"load_in_{bits}bit": True, "device": "auto", "device_map": ON_DISK})
    assert quantised.ppl_long == pytest.approx(exact.ppl_long, rel=bound)
    assert quantised.ppl_long != exact.ppl_long


# Tokens without an embedding, which on a GPU end the process


def test_a_tokenizer_of_another_model_is_refused_before_any_weight(tokenizer, tmp_path, monkeypatch):
    folder = make_model("llama", tmp_path, tokenizer, vocab_size=len(tokenizer) - 40)
    monkeypatch.setattr("hf_gateau.models.weights.AutoModelForCausalLM", None)
    with pytest.raises(ValueError, match=r"makes 40 tokens that the model has no embedding for .* name the tokenizer"):
        ModelPair(ModelPairConfig(long_model=folder, short_window=60, device="cpu"))


def test_rows_with_an_added_token_that_has_no_embedding_have_a_reason(tokenizer, tmp_path, rows, caplog):
    tokenizer = copy.deepcopy(tokenizer)
    size = len(tokenizer)
    tokenizer.add_tokens(["<extra>"])
    folder = make_model("llama", tmp_path, tokenizer, vocab_size=size)
    scorer = GateauScorer(long_model=folder, store=False, **SETTINGS)
    bad = {**rows[0], "messages": [{**turn, "content": turn["content"] + " <extra>"} for turn in rows[0]["messages"]]}
    found = scorer({"messages": [bad["messages"], rows[1]["messages"]]})
    assert found["gateau_error"] == [
        f"token '<extra>' (id {size}) has no embedding: the model knows {size} tokens",
        None,
    ]
    assert found["gateau_ppl_long"][0] is None and found["gateau_ppl_long"][1] > 0
    assert "rows with one of them are not measured: <extra>" in caplog.text
