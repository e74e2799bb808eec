"""Every causal language model of the installed transformers, tiny: its own default configuration with small sizes."""

from typing import Any

from transformers import AutoConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES


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
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
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
            "axk1", "axk2", "deepseek_v3", "deepseek_v32", "glm4_moe_lite", "glm_moe_dsa", 
            "minicpm3", "sarvam_mla", "youtu",
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
    "dots3_note_text": {"num_key_value_heads": 4},
    "falcon": {"head_dim": None},
    "gemma3n_text": {**SHARED, "intermediate_size": 64},
    "gemma4_text": SHARED,
    "gpt_neo": {"attention_types": [[["global", "local"], 2]]},
    "gptj": {"rotary_dim": 4},
    "granitemoehybrid": {**MAMBA, "layer_types": ["mamba", "attention", "mamba", "attention"]},
    **dict.fromkeys(("hunyuan_v1_dense", "hunyuan_v1_moe", "ministral"), {"head_dim": 8}),
    "lfm2": {"layer_types": ["conv", "full_attention", "conv", "conv"]},
    "lfm2_moe": {"layer_types": ["conv", "full_attention", "conv", "full_attention"]},
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
    "zamba2": {"layer_types": ["mamba", "hybrid", "mamba", "hybrid"], **ZAMBA, "n_mamba_heads": 4, "num_mem_blocks": 1},
    "zaya": {"num_experts_per_tok": 1},
}


def tiny_config(model_type: str):
    """A small configuration of a model type, of the part that reads text."""
    own = AutoConfig.for_model(model_type).get_text_config(decoder=True)
    said = own.to_dict()  # an attribute that each layer has its own of cannot be asked for
    settings = {name: size for name, size in SIZES.items() if said.get(name, said.get(own.attribute_map.get(name))) is not None}
    settings |= OVERRIDES.get(model_type, {})
    return type(own)(**{name: value for name, value in settings.items() if value is not None})
