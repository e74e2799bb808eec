"""Models and rows that several test files share: tiny random models of real architectures, in float32."""

import os


os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ["HF_GATEAU_STORE"] = "off"  # no test touches the user's own store; those that want one name it

import pytest  # noqa: E402
import torch  # noqa: E402


torch.set_num_threads(1)  # the models are tiny: threads cost more than they bring


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


@pytest.fixture(scope="session")
def tokenizer():
    from hf_gateau.quickstart.world import build_tokenizer

    return build_tokenizer()


@pytest.fixture(scope="module", params=["byte-level", "sentencepiece"])
def bpe(request):
    """Tokenizers that cut text within words; a test gives one its chat template."""
    from .chats import train_bpe

    return train_bpe(request.param == "byte-level", bos=request.param == "sentencepiece")


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory, tokenizer) -> str:
    """A random Llama with the planted world's tokenizer."""
    return make_model("llama", tmp_path_factory.mktemp("llama"), tokenizer)


SETTINGS = {"short_window": 200, "segment_length": 64, "max_length": 700, "device": "cpu"}


@pytest.fixture(scope="module")
def scorer(tiny_model):
    """Measures with `tiny_model`, by `SETTINGS`, and keeps nothing."""
    from hf_gateau import GateauScorer

    return GateauScorer(long_model=tiny_model, store=False, **SETTINGS)


@pytest.fixture(scope="session")
def rows() -> list[dict]:
    """Twelve planted rows in LongAlign's form."""
    from hf_gateau.quickstart.world import planted_rows

    return planted_rows(12, seed=3)


def assert_same(columns, expected) -> None:
    """The columns of rows measured in two ways, in float32: mean negative log-likelihoods and attention to 1e-6, relative; all
    else alike. Rows share batches with others, and matrix products of other shapes round otherwise."""
    import numpy as np

    from hf_gateau.batches import COLUMNS

    assert len(columns) == len(expected)
    for got, want in zip(columns, expected, strict=True):
        for name in COLUMNS:
            if "_ppl" in name and want[name] is not None:
                np.testing.assert_allclose(np.log(got[name]), np.log(want[name]), rtol=1e-6, atol=1e-6, err_msg=name)
            elif COLUMNS[name] == "list" and want[name] is not None:
                np.testing.assert_allclose(got[name], want[name], rtol=1e-6, atol=0, err_msg=name)
            elif name != "gateau_content_hash":  # of the row as it is written, not of what is measured
                assert got[name] == want[name], name
