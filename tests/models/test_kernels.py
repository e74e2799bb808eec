"""Which attention kernel serves, by tables of what cards and torch can."""

import re

import pytest
import torch
from transformers import AutoModelForCausalLM

from hf_gateau.models import kernels
from hf_gateau.models.kernels import (
    CUDNN,
    EAGER,
    EFFICIENT,
    FLASH,
    FLEX,
    MATH,
    AttentionCase,
    attention_kernel,
    chosen_kernel,
    sdpa_serves,
)
from tests.tiny_models import make_model


pytestmark = pytest.mark.quick

H100, A100, T4 = (9, 0), (8, 0), (7, 5)
ALL = dict.fromkeys((CUDNN, FLASH, EFFICIENT, MATH), True)
FLASH_FIRST = (FLASH, EFFICIENT, MATH, CUDNN)


@pytest.mark.parametrize(
    "capability, dtype, size, lacks, more, name, reason",
    [
        (H100, "bfloat16", 128, (), {}, CUDNN, None),
        ((10, 0), "float16", 64, (), {}, CUDNN, None),
        (A100, "bfloat16", 128, (CUDNN,), {"order": FLASH_FIRST}, FLASH, None),
        (A100, "bfloat16", 128, (), {}, CUDNN, None),
        (T4, "float16", 128, (CUDNN, FLASH), {}, EFFICIENT, None),
        (H100, "bfloat16", 128, (), {"order": FLASH_FIRST}, FLASH, "torch tries flash before cuDNN"),
        (H100, "bfloat16", 128, (CUDNN,), {"enabled": ALL | {CUDNN: False}}, FLASH, "enable_cudnn_sdp.True."),
        (H100, "bfloat16", 128, (), {"enabled": ALL | {CUDNN: False}}, FLASH, "cuDNN is switched off"),
        (H100, "bfloat16", 128, (CUDNN,), {"cudnn": None}, FLASH, "cuDNN is not found"),
        (H100, "bfloat16", 128, (CUDNN,), {"cudnn": (9, 1, 0)}, FLASH, "cuDNN 9.1.0 is loaded.*built with 9.10.2.*LD_LIB"),
        (H100, "bfloat16", 256, (CUDNN,), {}, FLASH, "cuDNN does not serve heads of 256"),
        (H100, "bfloat16", 72, (CUDNN,), {}, FLASH, "torch cannot use cuDNN for heads of 72 in bfloat16"),
        (H100, "float32", 128, (CUDNN, FLASH), {}, EFFICIENT, "cuDNN does not serve float32; take dtype='bfloat16'"),
        (A100, "float32", 128, (CUDNN, FLASH, EFFICIENT), {}, MATH, "flash does not serve float32"),
        (A100, "bfloat16", 512, (CUDNN, FLASH), {}, EFFICIENT, "flash does not serve heads of 512"),
        (T4, "float16", 128, (CUDNN, FLASH, EFFICIENT), {}, MATH, "torch cannot use efficient"),
        (T4, "float16", 128, (CUDNN, FLASH), {"enabled": ALL | {EFFICIENT: False}}, MATH, "enable_mem_efficient_sdp"),
        (H100, "bfloat16", 128, (), {"sdpa": False}, EAGER, "soft-capped scores or attention sinks; try use_fused_attention"),
        (H100, "bfloat16", 128, (), {"sdpa": False, "flex": True}, FLEX, None),
        (H100, "bfloat16", 128, (), {"flex": True}, CUDNN, None),
    ],
)  # fmt: skip
def test_tables(capability, dtype, size, lacks, more, name, reason):
    usable = ALL | dict.fromkeys(lacks, False)
    about = {"cudnn": (9, 10, 2), "built_with": (9, 10, 2)} | more
    found = chosen_kernel(AttentionCase(capability, dtype, size, usable, **about))
    assert found.name == name
    if reason is None:
        assert found.slower_because is None and found.warning is None
    else:
        assert f"runs by the {name} kernel, which is not the fastest" in found.warning
        assert re.search(reason, found.warning)


@pytest.mark.parametrize(
    "architecture, serves", [("llama", True), ("gemma3_text", True), ("gemma2", False), ("gpt_oss", False)]
)
def test_what_sdpa_serves(architecture, serves, tokenizer, tmp_path):
    folder = make_model(architecture, tmp_path, tokenizer)
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert sdpa_serves(model) is serves
    assert attention_kernel(model) is None  # it is on a CPU


class OnACard:
    """A model that says that it is on a GPU."""

    def __init__(self, model):
        self.model, self.device, self.dtype, self.config = model, torch.device("cuda"), model.dtype, model.config

    def get_decoder(self):
        return self.model.get_decoder()


def test_the_slowest_of_a_models_layers_is_told(tiny_model, monkeypatch):
    model = OnACard(AutoModelForCausalLM.from_pretrained(tiny_model))
    cases = [AttentionCase(H100, "bfloat16", size, ALL | {CUDNN: size == 128}) for size in (128, 256)]
    monkeypatch.setattr(kernels, "_cases", lambda model: cases)
    assert attention_kernel(model).name == FLASH
    cases.pop()
    assert attention_kernel(model).name == CUDNN

    def fails(model):
        raise RuntimeError("torch has no such function")

    monkeypatch.setattr(kernels, "_cases", fails)
    assert attention_kernel(model) is None


def test_a_models_own_layers_are_asked_about(tiny_model, monkeypatch):
    """What torch is asked, with the tensors that would be on a GPU left out."""
    model, asked = OnACard(AutoModelForCausalLM.from_pretrained(tiny_model)), []
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: H100)
    monkeypatch.setattr(kernels, "_usable", lambda *arguments: asked.append(arguments[:3]) or ALL)
    [case] = kernels._cases(model)
    config = model.config
    size = config.hidden_size // config.num_attention_heads
    assert asked == [(size, config.num_attention_heads, config.num_key_value_heads)]
    assert (case.capability, case.dtype, case.head_size, case.sdpa) == (H100, "float32", size, True)
    assert set(case.order) == set(ALL) and set(case.enabled) == {CUDNN, FLASH, EFFICIENT}


def test_torch_is_asked_in_its_own_terms():
    """On a CPU it says that nothing but its plain way serves; the call is the one that a GPU gets."""
    stands_for = type("Model", (), {"dtype": torch.bfloat16, "device": torch.device("cpu")})
    assert kernels._usable(64, 8, 2, stands_for) == ALL | {CUDNN: False, FLASH: False, EFFICIENT: False}
