"""Every causal language model of transformers is measured as its own full passes say, in every way, or refused by name.

The table of the package (`hf_gateau/models/architectures.json`) is what `benchmarks.architectures` found; here it is held to the
models themselves. Some types stand for their kind in the fast tests; all of them, and whether the table is of all, are slow.
"""

import json
import math
from collections.abc import Callable
from importlib.resources import files
from typing import Any

import pytest
import transformers
from packaging.version import Version
from transformers import AutoConfig, AutoModelForCausalLM

from hf_gateau.measuring.costs import model_shape
from hf_gateau.models import attention
from hf_gateau.models.abilities import Abilities, abilities_of, known_architectures
from hf_gateau.models.config import ModelPairConfig
from hf_gateau.models.pair import ModelPair
from tests.architectures import (
    MODEL_TYPES,
    SAMPLES,
    WAYS,
    expected,
    farthest,
    farthest_attention,
    open_pair,
    tiny_config,
    tiny_model,
)
from tests.paths import ROOT


TOLERANCE = 1e-5  # nats a token, float32
# One of each kind that was ever wrong, or would be in its own way: experts, hybrids whose last attention is not in their last layer,
# shared keys, latent attention, attention of two kinds, attention of its own, one that looks ahead
KINDS = (
    "qwen3_moe", "mixtral", "gpt2", "deepseek_v3", "jamba", "bamba", "lfm2_moe", "qwen3_next", "gemma3n_text", "gemma4_text", "cohere2",
    "deepseek_v32", "falcon", "mamba", "bert", "bart",
)  # fmt: skip
FOUND = json.loads((files("hf_gateau.models") / "architectures.json").read_text(encoding="utf-8"))


def holds(
    model_type: str, folder: str, tokenizer, change: Callable[[str, Any], None] | None = None, **settings
) -> None:
    """Assert that a type is refused before any row, or measured like its own full passes in every way; also with a change to the
    loaded model, or other settings of its configuration."""
    tiny_model(model_type, folder, tokenizer, **settings)
    if abilities_of(tiny_config(model_type)).refusal is not None:
        with pytest.raises((ValueError, KeyError)) as refused:
            open_pair(folder)
        assert str(refused.value)
        return
    model = AutoModelForCausalLM.from_pretrained(folder, dtype="float32", attn_implementation="eager").eval()
    expectations, pair = [expected(model, sample) for sample in SAMPLES], open_pair(folder)
    if change is not None:
        change(model_type, pair.long)
    for way in WAYS:
        assert farthest(pair, way, expectations) <= TOLERANCE, way
    assert model_shape(pair.long).layers  # costs are reckoned
    assert farthest_attention(pair, model) <= TOLERANCE


@pytest.mark.parametrize(
    "model_type", [pytest.param(x, marks=pytest.mark.slow) if x in ("qwen3_next", "bart") else x for x in KINDS]
)
def test_a_type_of_each_kind(model_type, tmp_path, tokenizer):
    holds(model_type, str(tmp_path), tokenizer)


@pytest.mark.parametrize("model_type", ["qwen3_moe", "gpt2", "deepseek_v3", "gemma3n_text"])
def test_a_type_whose_outputs_a_fused_kernel_gives(model_type, tmp_path, tokenizer, monkeypatch):
    """As on a GPU: the response's rows too go through SDPA, and their weights are computed beside it."""
    monkeypatch.setattr(attention, "OUTPUTS_ARE_FUSED", ("cpu",))
    holds(model_type, str(tmp_path), tokenizer)


def test_a_window_that_a_model_hands_on_and_its_mask_does_not_have(tmp_path, tokenizer):
    """OLMoE's layers tell of a window, and transformers' own pass sees everything."""
    holds("olmoe", str(tmp_path), tokenizer, sliding_window=24)


@pytest.mark.slow
@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_every_type_with_a_window(model_type, tmp_path, tokenizer):
    """Those that have one, and none by default."""
    try:
        config = tiny_config(model_type)
        if getattr(config, "sliding_window", 0) is not None:
            pytest.skip("as in the test of every type")
        tiny_model(model_type, str(tmp_path / "tried"), tokenizer, sliding_window=24)
    except Exception as error:  # what cannot be built tiny is told as such
        pytest.skip(f"not built: {error}")
    holds(model_type, str(tmp_path), tokenizer, sliding_window=24)


@pytest.mark.slow
@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_every_type(model_type, tmp_path, tokenizer):
    try:
        tiny_model(model_type, str(tmp_path / "tried"), tokenizer)
    except Exception as error:  # what cannot be built tiny is told as such
        pytest.skip(f"not built: {error}")
    holds(model_type, str(tmp_path), tokenizer)


@pytest.mark.parametrize("model_type", ["bert", "roberta", "electra"])
def test_an_encoder_is_refused_and_the_same_as_a_decoder_is_not(model_type, tmp_path, tokenizer):
    tiny_model(model_type, str(tmp_path), tokenizer, is_decoder=False)
    with pytest.raises(
        ValueError, match="looks at tokens that come later, so it gives no likelihoods; use a causal model"
    ):
        open_pair(str(tmp_path))
    assert abilities_of(tiny_config(model_type)).refusal is None


def test_a_type_that_nobody_has_tried_takes_no_short_cut():
    class New:
        model_type = "from-tomorrow"

        def get_text_config(self):
            return self

    assert abilities_of(New()) == Abilities()


@pytest.mark.parametrize(
    "layer_types", [["mamba", "full_attention"], ["full_attention", "linear_attention"], ["conv"]]
)
def test_layers_that_are_no_attention_forbid_short_cuts_of_any_type(layer_types):
    config = AutoConfig.for_model("llama", num_hidden_layers=len(layer_types))
    assert abilities_of(config).leaves_rows_out and abilities_of(config).keeps_past
    config.layer_types = layer_types
    assert not abilities_of(config).leaves_rows_out and not abilities_of(config).keeps_past


@pytest.mark.skipif(
    Version(transformers.__version__).release[:2] != Version(FOUND["transformers"] or "0").release[:2],
    reason="the table is of another transformers",
)
def test_the_table_is_of_every_type_of_this_transformers():
    tried = set(known_architectures())
    said = (ROOT / "docs" / "supported-models.md").read_text()
    untold = [
        name for name in MODEL_TYPES if name not in FOUND["not_built"] and tiny_config(name).model_type not in tried
    ]
    assert untold == [] and len(tried) > 150 and len(FOUND["not_built"]) < 15
    assert [name for name in (*tried, *FOUND["not_built"]) if f"| `{name}` |" not in said] == []


# What else can make a model's numbers depend on what goes through beside a row, or end a process


LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 1e4,
    "factor": 4.0,
    "original_max_position_embeddings": 64,
    "short_factor": [1.0, 1.0, 1.0, 1.0],
    "long_factor": [1.0, 2.0, 5.0, 9.0],
}
ROPES = {
    "longrope": LONGROPE,
    "dynamic": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 4.0},
    "yarn": {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 64},
    "linear": {"rope_type": "linear", "rope_theta": 1e4, "factor": 4.0},
    "llama3": {
        "rope_type": "llama3",
        "rope_theta": 1e4,
        "factor": 4.0,
        "original_max_position_embeddings": 64,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
    },
}


@pytest.mark.parametrize(("model_type", "kind"), [("phi3", "longrope"), *(("llama", kind) for kind in ROPES)])
def test_numbers_do_not_depend_on_lengths_beside_them(model_type, kind, tmp_path, tokenizer):
    window = 64 if kind == "dynamic" else 512
    tiny_model(model_type, str(tmp_path), tokenizer, rope_parameters=ROPES[kind], max_position_embeddings=window)
    model = AutoModelForCausalLM.from_pretrained(tmp_path, dtype="float32", attn_implementation="eager").eval()
    expectations, pair = [expected(model, sample) for sample in SAMPLES], open_pair(str(tmp_path))
    for way in (*WAYS, "whole"):
        assert farthest(pair, way, expectations) <= TOLERANCE, way


def test_reuse_of_the_long_pass_is_refused_where_keys_depend_on_the_length(tmp_path, tokenizer):
    tiny_model("phi3", str(tmp_path), tokenizer, rope_parameters=LONGROPE, max_position_embeddings=512)
    with pytest.raises(ValueError, match="RoPE of type 'longrope'; take short_pass='own'"):
        ModelPair(ModelPairConfig(str(tmp_path), short_window=40, short_pass="reuse", device="cpu"))


def test_transformers_has_no_kind_of_rope_that_is_not_tested():
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    assert set(ROPE_INIT_FUNCTIONS) - {"proportional"} == set(ROPES)  # proportional: Gemma 4's, of the table above
    assert math.isfinite(TOLERANCE)
