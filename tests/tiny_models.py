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


def make_classifier(folder, tokenizer, architecture="llama", **overrides) -> str:
    """A random sequence classifier."""
    from transformers import AutoConfig, AutoModelForSequenceClassification

    settings = {**GROUPED, "vocab_size": len(tokenizer), "max_position_embeddings": 2048, "initializer_range": 0.4}
    settings |= {"num_labels": 1, "pad_token_id": tokenizer.pad_token_id, **overrides}
    torch.manual_seed(1)
    AutoModelForSequenceClassification.from_config(AutoConfig.for_model(architecture, **settings)).save_pretrained(
        folder
    )
    tokenizer.save_pretrained(folder)
    return str(folder)


def make_sentence_model(folder, rows) -> str:
    """A random BERT with a vocabulary of the rows' words, as a sentence-transformers model that sees 64 tokens."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.models import Pooling, Transformer
    from transformers import BertConfig, BertModel, BertTokenizerFast

    words = sorted({word for row in rows for turn in row["messages"] for word in turn["content"].lower().split()})
    (folder / "bert").mkdir(parents=True)
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    (folder / "bert" / "vocab.txt").write_text("\n".join([*special, "instruction", "response", ":", *words]))
    BertTokenizerFast(str(folder / "bert" / "vocab.txt")).save_pretrained(folder / "bert")
    torch.manual_seed(2)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    BertModel(BertConfig(vocab_size=len(words) + 8, max_position_embeddings=64, **sizes)).save_pretrained(
        folder / "bert"
    )
    bert = Transformer(str(folder / "bert"), max_seq_length=64)
    SentenceTransformer(modules=[bert, Pooling(16)]).save(str(folder / "whole"))
    return str(folder / "whole")
