"""Models that nobody has tried are tried on a few tokens when they are loaded."""

import pytest
import torch

from hf_gateau.models import abilities, attention
from tests.architectures import SAMPLES, expected, farthest, open_pair, tiny_model


@pytest.fixture(autouse=True)
def nothing_is_known(monkeypatch):
    monkeypatch.setattr(abilities, "known_architectures", dict)


def test_a_model_that_is_measured_rightly_passes_and_takes_no_short_cut(tmp_path, tokenizer):
    from transformers import AutoModelForCausalLM

    tiny_model("qwen3", str(tmp_path), tokenizer)
    pair = open_pair(str(tmp_path))
    model = AutoModelForCausalLM.from_pretrained(tmp_path, dtype="float32", attn_implementation="eager").eval()
    assert pair.long.config._attn_implementation == attention.ATTENTION_NAME  # as it was before the trial
    assert farthest(pair, "mixed", [expected(model, sample) for sample in SAMPLES]) <= 1e-5


@pytest.mark.parametrize("model_type", ["deepseek_v32", "nemotron"])
def test_one_that_does_not_work_is_refused(model_type, tmp_path, tokenizer):
    tiny_model(model_type, str(tmp_path), tokenizer)
    with pytest.raises(ValueError, match="which fails with an attention that is handed in .*; use another model"):
        open_pair(str(tmp_path))


def test_one_whose_numbers_are_others_is_refused(tmp_path, tokenizer, monkeypatch):
    tiny_model("llama", str(tmp_path), tokenizer)
    real = attention.blocked_attention
    monkeypatch.setattr(attention, "blocked_attention", lambda *args: torch.zeros_like(real(*args)))
    with pytest.raises(ValueError, match="whose numbers are others with an attention that is handed in: .* by itself"):
        open_pair(str(tmp_path))
