"""Every causal language model of the installed transformers, tiny: its own default configuration with small sizes."""

import math
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from copy import deepcopy
from typing import Any
from unittest.mock import patch

import torch
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from hf_gateau.measuring.passes import measure_samples
from hf_gateau.models import abilities
from hf_gateau.models.config import ModelPairConfig
from hf_gateau.models.packing import Cut, Limits
from hf_gateau.models.pair import ModelPair
from hf_gateau.rows.samples import Sample
from hf_gateau.store.sqlite import Measurement
from tests.measured import make_sample


MODEL_TYPES = sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
# What a size is called -> what it becomes, wherever a configuration has it and says something
SIZES: dict[str, Any] = {
    **dict.fromkeys(("vocab_size",), 128),
    **dict.fromkeys(("hidden_size", "d_model", "n_embd", "dim", "model_dim"), 32),
    **dict.fromkeys(("intermediate_size", "ffn_dim", "n_inner", "d_ff", "ffn_hidden_size"), 64),
    **dict.fromkeys(("moe_intermediate_size", "shared_expert_intermediate_size"), 16),
    "shared_intermediate_size": 32,
    **dict.fromkeys(("num_hidden_layers", "n_layer", "num_layers", "n_layers", "decoder_layers"), 4),
    **dict.fromkeys(("num_attention_heads", "n_head", "n_heads", "num_heads", "decoder_attention_heads"), 4),
    "num_key_value_heads": 2,
    "head_dim": 8,
    **dict.fromkeys(("max_position_embeddings", "n_positions", "max_seq_len"), 512),
    **dict.fromkeys(("num_experts", "n_routed_experts", "num_local_experts", "moe_num_experts"), 4),
    **dict.fromkeys(("num_experts_per_tok", "moe_topk", "moe_k"), 2),
    **dict.fromkeys(("n_group", "topk_group"), 1),
    **dict.fromkeys(("q_lora_rank", "kv_lora_rank"), 16),
    **dict.fromkeys(("qk_rope_head_dim", "qk_nope_head_dim", "v_head_dim"), 8),
    "qk_head_dim": 16,
    "sliding_window": 24,
    "is_decoder": True,  # of encoders that can be one
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
MOST_WEIGHTS = 100_000_000
LATENT = {"num_key_value_heads": 4, "head_dim": None}  # multi-head latent attention has a key head for each head
MAMBA = {"mamba_n_heads": 4, "mamba_d_head": 16, "mamba_d_state": 8, "mamba_chunk_size": 16}
SHARED = {  # the last layers take the keys and values of earlier ones
    "num_kv_shared_layers": 2,
    "vocab_size_per_layer_input": 128,
    "layer_types": ["sliding_attention", "full_attention", "sliding_attention", "full_attention"],
}
ZAMBA = {"n_mamba_heads": 2, "mamba_d_state": 8, "mamba_headdim": 16, "chunk_size": 16}
OVERRIDES: dict[str, dict[str, Any]] = {
    **dict.fromkeys(
        (
            "axk1",
            "axk2",
            "deepseek_v3",
            "deepseek_v32",
            "glm4_moe_lite",
            "glm_moe_dsa",
            "minicpm3",
            "sarvam_mla",
            "youtu",
        ),
        LATENT,
    ),
    "bamba": {**MAMBA, "attn_layer_indices": [1]},
    "codegen": {"rotary_dim": 4},
    "cohere_compass_text": {
        "rope_parameters": {
            kind: {"rope_type": "default", "rope_theta": 1e4} for kind in ("full_attention", "sliding_attention")
        }
    },
    "dbrx": {
        "attn_config": {"kv_n_heads": 2, "rope_theta": 1e4, "clip_qkv": 8},
        "ffn_config": {"hidden_size": 32, "ffn_hidden_size": 64, "moe_num_experts": 4, "moe_top_k": 2},
    },
    "deepseek_v2": {**LATENT, "num_experts_per_tok": 2},
    "dots1": {"n_routed_experts": 4, "n_shared_experts": 1, "num_experts_per_tok": 2},
    "falcon_h1": {**MAMBA, "mamba_d_ssm": 64},
    "dots3_note_text": {
        "num_key_value_heads": 4,
        "shared_experts_intermediate_size": 16,
        "index_topk": 16,
        "index_n_heads": 2,
        "index_head_dim": 8,
    },
    "falcon": {"head_dim": None},
    "gemma3n_text": {**SHARED, "intermediate_size": 64},
    "gemma4_text": SHARED,
    "gpt_neo": {"attention_types": [[["global", "local"], 2]]},
    "gptj": {"rotary_dim": 4},
    "granitemoehybrid": {**MAMBA, "layer_types": ["mamba", "attention", "mamba", "attention"]},
    **dict.fromkeys(("hunyuan_v1_dense", "hunyuan_v1_moe", "ministral"), {"head_dim": 8}),
    "lfm2": {"layer_types": ["conv", "full_attention", "conv", "conv"]},
    "lfm2_moe": {"layer_types": ["conv", "full_attention", "conv", "full_attention"]},
    "inkling2_text": {"unpadded_vocab_size": 128, "sliding_window_size": 24, "rel_extent": 64},
    "inkling2_loop_text": {"unpadded_vocab_size": 128, "sliding_window_size": 24, "rel_extent": 64},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 0, "expert_layer_period": 2, "mamba_d_state": 8},
    "longcat_flash": {"num_key_value_heads": 4, "head_dim": 8},
    "mamba2": {"num_heads": 4, "head_dim": 16, "n_groups": 1},
    "nemotron": {"num_key_value_heads": 2},
    "prophetnet": {"num_hidden_layers": None, "num_decoder_layers": 2, "num_encoder_layers": 2},
    "reformer": {"is_decoder": True, "axial_pos_shape": [8, 64], "axial_pos_embds_dim": [16, 16]},
    "xlnet": {"max_position_embeddings": None},
    "xlstm": {"v_head_dim": None, "qk_head_dim": None, "head_dim": None},
    "xmod": {"default_language": "en_XX", "languages": ["en_XX"]},
    "zamba": {"num_hidden_layers": 7, "attn_layer_period": 3, "attn_layer_offset": 2, **ZAMBA},
    "zamba2": {
        "layers_block_type": ["mamba", "hybrid", "mamba", "hybrid"],
        **ZAMBA,
        "n_mamba_heads": 4,
        "num_mem_blocks": 1,
    },
    "zaya": {"num_experts_per_tok": 1},
}


def tiny_config(model_type: str, **more):
    """A small configuration of a model type, of the part that reads text."""
    own = AutoConfig.for_model(model_type).get_text_config(decoder=True)
    said = own.to_dict()  # an attribute that each layer has its own of cannot be asked for
    settings = {
        name: size for name, size in SIZES.items() if said.get(name, said.get(own.attribute_map.get(name))) is not None
    }
    settings |= OVERRIDES.get(own.model_type, {}) | more
    return type(own)(**{name: value for name, value in settings.items() if value is not None})


def tiny_model(model_type: str, folder: str, tokenizer, **settings) -> None:
    """Save a random tiny model of a type with a tokenizer, its weights large enough for a wrong row to show."""
    config = tiny_config(model_type, **settings)
    config.vocab_size = len(tokenizer)
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        setattr(config, name, getattr(tokenizer, name))
    with torch.device("meta"):
        num_weights = sum(parameter.numel() for parameter in AutoModelForCausalLM.from_config(config).parameters())
    if num_weights > MOST_WEIGHTS:
        raise ValueError(f"its sizes have other names: {num_weights / 1e6:.0f} million weights at the smallest")
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).float()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "sink" in name:
                parameter.normal_()
            elif parameter.ndim > 1 and parameter.std() < 0.05:
                parameter.mul_(4)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


# What a model's own full passes say: each sequence by itself, from nothing, by a model that has seen no other


FIRST = make_sample(90, 9, 7)
SAMPLES = [  # of several lengths; two on one context, one whose response is one token
    FIRST,
    make_sample(20, 5, 3, seed=1),
    make_sample(90, 4, 12, seed=2, of=FIRST),
    make_sample(70, 1, 1, seed=3),
    make_sample(85, 6, 5, seed=4),
]
SHORT_WINDOW, SEGMENT_LENGTH, PIECE = 40, 32, 32


def full_pass(model, prompt: list[int], response: list[int]) -> float:
    """Mean negative log-likelihood of a response, in nats a token."""
    model = deepcopy(model)
    with torch.inference_mode():
        logits = model(torch.tensor([prompt + response]), use_cache=False).logits[0].double()
    logits = logits[-len(response) - 1 : -1].log_softmax(-1)
    return -logits.gather(1, torch.tensor(response)[:, None]).mean().item()


def expected(model, sample: Sample) -> list[float]:
    """What is measured of a sample, in nats a token: long, short, without context, and from each segment alone."""
    prefix, context, instruction = sample.prefix, sample.context, sample.instruction
    window = context[max(0, len(context) - SHORT_WINDOW + len(instruction)) :]
    segments = [context[a : a + SEGMENT_LENGTH] for a in range(0, len(context), SEGMENT_LENGTH)]
    return [
        full_pass(model, prefix + seen + instruction, sample.response) for seen in (context, window, [], *segments)
    ]


def expected_attention(model, sample: Sample) -> list[float] | None:
    """Eq. 4 before the softmax, from the whole matrices of the model's own eager attention; None where it shows none."""
    with torch.inference_mode():
        found = deepcopy(model)(torch.tensor([sample.input_ids]), output_attentions=True, use_cache=False)
    size = len(sample.input_ids)  # linear attention shows matrices of other shapes, or none
    found = [x for x in found.get("attentions") or () if x is not None and x.shape[2:] == (size, size)]
    layers = [x[0, :, sample.response_start :].double().mean((0, 1)) for x in found]
    if not layers:
        return None
    means = torch.stack(layers).mean(0)[sample.context_start : sample.context_end]
    return [part.mean().item() for part in means.split(SEGMENT_LENGTH)]


# The ways to measure


def measured_numbers(pair, samples: Sequence[Sample], piece_tokens: float = math.inf) -> list[list[float]]:
    """`expected` of some samples, as they are measured in one go."""
    found = measure_samples(pair, samples, Cut(SEGMENT_LENGTH), Limits(1_024, piece_tokens))
    for measurement in found:
        if not isinstance(measurement, Measurement):
            raise measurement
    return [[math.log(ppl) for ppl in (x.ppl_long, x.ppl_short, x.ppl_no_context, *x.segment_ppl)] for x in found]


WAYS: dict[str, Callable[[Any], list[list[float]]]] = {
    "whole": lambda pair: [measured_numbers(pair, [sample])[0] for sample in SAMPLES],
    "mixed": lambda pair: measured_numbers(pair, [SAMPLES[i] for i in (0, 1, 3, 4)]),
    "shared": lambda pair: measured_numbers(pair, [SAMPLES[0], SAMPLES[2]]),
    "pieces": lambda pair: [measured_numbers(pair, [sample], PIECE)[0] for sample in SAMPLES],
}
SAMPLES_OF = {"whole": range(5), "mixed": (0, 1, 3, 4), "shared": (0, 2), "pieces": range(5)}


def farthest(pair, way: str, expectations: Sequence[list[float]]) -> float:
    """The largest difference of any number to what full passes say, in nats a token."""
    found = WAYS[way](pair)
    wanted = [expectations[i] for i in SAMPLES_OF[way]]
    return max(abs(a - b) for x, y in zip(found, wanted, strict=True) for a, b in zip(x, y, strict=True))


def farthest_attention(pair, model) -> float:
    """The largest difference of any segment's attention to that of the model's own eager matrices, as a share of it."""
    largest = 0.0
    for sample in SAMPLES:
        if (wanted := expected_attention(model, sample)) is not None:
            [found] = measure_samples(pair, [sample], Cut(SEGMENT_LENGTH), Limits(1_024))
            pairs = zip(found.segment_attention, wanted, strict=True)
            uniform = 1 / len(sample.context)  # a segment that no layer can see gets nothing
            largest = max(largest, *(abs(a - b) / max(b, uniform) for a, b in pairs))
    return largest


@contextmanager
def trusted_with(model_type: str, can: abilities.Abilities):
    """Let a model type be trusted with some abilities, whatever is known of it."""
    known = {**abilities.known_architectures(), model_type: can}
    with patch.object(abilities, "known_architectures", lambda: known):
        yield


def open_pair(folder: str) -> ModelPair:
    """The model as its own windowed sibling, in float32 on the CPU, loaded."""
    pair = ModelPair(ModelPairConfig(folder, short_window=SHORT_WINDOW, device="cpu", dtype="float32"))
    pair.long  # noqa: B018
    return pair
