"""Tiny random models of real architectures, in float32."""

import torch  # noqa: E402


# Two layers, grouped heads where the architecture has them, a window shorter than the samples where it slides.
TINY = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}


GROUPED = {**TINY, "num_key_value_heads": 2, "head_dim": 8}


ARCHITECTURES = {
    "llama": GROUPED,
    "qwen3": GROUPED,
    "mistral": {**GROUPED, "sliding_window": 40},
    "gemma2": {
        **GROUPED,
        "sliding_window": 40,
        "layer_types": ["sliding_attention", "full_attention"],
        "attn_logit_softcapping": 2.0,
        "final_logit_softcapping": 1.5,
        "query_pre_attn_scalar": 8,
    },
    "gemma3_text": {
        **GROUPED,
        "sliding_window": 40,
        "layer_types": ["sliding_attention", "full_attention"],
        "query_pre_attn_scalar": 8,
    },
    "gpt_neox": TINY,
    "gpt_oss": {
        **GROUPED,
        "sliding_window": 40,
        "layer_types": ["sliding_attention", "full_attention"],
        "num_local_experts": 2,
        "num_experts_per_tok": 1,
    },
    "granite": {**GROUPED, "logits_scaling": 3.0},
}


def make_model(architecture: str, folder, tokenizer, scale: float = 1.0, **overrides) -> str:
    """Save a random model of an architecture with a tokenizer into a folder; returns the folder's name."""
    from transformers import AutoConfig, AutoModelForCausalLM

    settings = {
        **ARCHITECTURES[architecture],
        "vocab_size": len(tokenizer),
        "max_position_embeddings": 4096,
        "initializer_range": 0.4,  # far from uniform, so that a wrong mask or boundary shows
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        "dtype": "float32",
        **overrides,
    }
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(architecture, **settings))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "sinks" in name:
                parameter.normal_()
            parameter.mul_(scale)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)
