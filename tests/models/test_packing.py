"""How many tokens a batch on a GPU is to have."""

import contextlib
import logging

import pytest
import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import AutoConfig

from hf_gateau.models import kernels
from hf_gateau.models.kernels import AttentionKernel, fit_to_device
from hf_gateau.models.packing import (
    LEAST_TOKENS,
    MOST_TOKENS,
    Limits,
    activations_per_token,
    chunk_rows,
    tokens_in_flight,
)
from tests.architectures import MODEL_TYPES, tiny_config
from tests.models.test_kernels import OnACard


pytestmark = pytest.mark.quick

GIB = 1 << 30
LLAMA_7B = AutoConfig.for_model("llama", hidden_size=4096, intermediate_size=11_008)
SMALL = AutoConfig.for_model("llama", hidden_size=576, intermediate_size=1536)


@pytest.mark.parametrize(
    "config, itemsize, free, expected",
    [
        (LLAMA_7B, 2, 60 * GIB, 65_280),  # 8 GiB / (2 x (3 x 11,008 + 8 x 4,096))
        (LLAMA_7B, 2, 600 * GIB, 65_280),  # a larger card gains nothing by more
        (LLAMA_7B, 4, 60 * GIB, 32_640),
        (LLAMA_7B, 2, 3 * GIB, 8_160),  # a third of what is free
        (LLAMA_7B, 2, 1 << 20, LEAST_TOKENS),
        (SMALL, 2, 70 * GIB, MOST_TOKENS),
        (SMALL, 2, 6 * GIB, 116_508),
    ],
)
def test_tokens_in_flight(config, itemsize, free, expected):
    assert tokens_in_flight(config, itemsize, free) == expected


@pytest.mark.quick
@pytest.mark.parametrize(
    "most, heads, window, keys, rows",
    [
        (1 << 21, 4, 8_000, 8_000, 65),  # as many as give rise to so many weights
        (1 << 21, 4, 500, 400, 1_310),  # the window shows all
        (1 << 27, 8, 1_024, 32_768, 1_024),  # a GPU has room for 16,384 rows, which would all go over 17,407 keys
        (1 << 27, 8, 4_096, 32_768, 4_096),
        (1 << 27, 64, 128, 32_768, 1_024),
        (1 << 10, 8, 1_024, 32_768, 1),
    ],
)
def test_rows_of_a_chunk(most, heads, window, keys, rows):
    assert chunk_rows(most, heads, window, keys) == rows


def test_every_architecture_has_a_size():
    """Of experts those of the chosen count; no type is without its hidden size under whatever name."""
    sizes = {}
    for name in MODEL_TYPES:
        with contextlib.suppress(StrictDataclassError):  # what cannot be made tiny
            sizes[name] = activations_per_token(tiny_config(name))
    assert len(sizes) > 150 and all(8 * 32 < size <= 1 << 17 for size in sizes.values())
    assert sizes["llama"] == 3 * 64 + 8 * 32
    assert sizes["qwen3_moe"] == 3 * max(64, 2 * 16) + 8 * 32
    assert sizes["gpt2"] == 3 * 4 * 32 + 8 * 32


class Model(OnACard):
    def __init__(self, config):
        self.config, self.device, self.dtype = config, torch.device("cuda"), torch.bfloat16


@pytest.mark.parametrize("reason", [None, "cuDNN is switched off"])
def test_a_loaded_model_says_how_large_and_by_which_kernel(reason, monkeypatch, caplog):
    monkeypatch.setattr(kernels, "free_bytes", lambda device: 60 * GIB)
    monkeypatch.setattr(kernels, "attention_kernel", lambda model: AttentionKernel("flash", reason))
    limits = Limits(1_024)
    with caplog.at_level(logging.INFO):
        fit_to_device(Model(LLAMA_7B), limits)
        fit_to_device(Model(LLAMA_7B), None)  # a setting says how large
    assert limits.batch_tokens == 65_280
    assert [x.levelname for x in caplog.records] == 2 * (["INFO"] if reason is None else ["INFO", "WARNING"])
    assert reason is None or reason in caplog.text


def test_on_a_cpu_nothing_is_changed_or_said(tiny_model, caplog):
    model, limits = Model(LLAMA_7B), Limits(1_024)
    model.device = torch.device("cpu")
    with caplog.at_level(logging.INFO):
        fit_to_device(model, limits)
    assert limits == Limits(1_024) and not caplog.records
