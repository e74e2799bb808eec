"""Liger's kernels: refused where they do not serve, and elsewhere the numbers are those of transformers."""

import importlib.util
import json
import subprocess
import sys

import pytest
import torch
from datasets import Dataset

from hf_gateau import GateauScorer
from hf_gateau.models import fused, loading
from hf_gateau.models.config import ModelPairConfig
from hf_gateau.models.pair import ModelPair
from tests.measured import SETTINGS


HAS_LIGER = importlib.util.find_spec("liger_kernel") is not None


@pytest.mark.quick
def test_refused_before_anything_is_loaded(tiny_model, monkeypatch):
    asked = {"long_model": tiny_model, "use_liger_kernel": True, **SETTINGS}
    with pytest.raises(
        ValueError, match="use_liger_kernel needs an NVIDIA or AMD GPU, and the device is cpu; leave it out"
    ):
        GateauScorer(**asked, store=False).describe()
    monkeypatch.setattr(loading, "find_spec", lambda name: None)
    config, device = ModelPair(ModelPairConfig(long_model=tiny_model, device="cpu")).long_config, torch.device("cuda")
    with pytest.raises(
        ImportError, match=r'use_liger_kernel needs liger_kernel; install it with `pip install "hf-gateau\[liger\]"`'
    ):
        fused.check_liger(tiny_model, config, device)
    monkeypatch.setattr(loading, "find_spec", lambda name: True)
    monkeypatch.setattr(fused, "liger_types", lambda: frozenset({"gemma", "qwen3"}))
    with pytest.raises(
        ValueError, match="no kernels for .*, a model of type 'llama', but for gemma, qwen3; leave it out"
    ):
        fused.check_liger(tiny_model, config, device)


@pytest.mark.slow
@pytest.mark.skipif(not HAS_LIGER, reason='liger-kernel is not installed (`pip install "hf-gateau[liger]"`)')
def test_every_type_that_both_know_has_the_numbers_of_transformers():
    """By Triton's interpreter; experts' kernels need a card."""
    command = [sys.executable, "-m", "tests.models.interpreted"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=1800)
    assert done.returncode == 0, done.stderr[-3000:]
    found = {name: told for line in done.stdout.splitlines() for name, told in json.loads(line).items()}
    numbers = {x: y for x, y in found.items() if not isinstance(y, str)}
    others = {
        x: y for x, y in found.items() if isinstance(y, str) and not y.startswith(("needs a card", "not measured"))
    }
    assert others == {} and len(numbers) >= 20
    assert {x: y for x, y in numbers.items() if not y <= 1e-4} == {}


@pytest.mark.gpu
@pytest.mark.skipif(not (HAS_LIGER and torch.cuda.is_available()), reason="there is no GPU, or no liger-kernel")
def test_a_card_has_the_same_numbers_with_and_without(tiny_model, rows):
    how = {**SETTINGS, "long_model": tiny_model, "device": "cuda", "store": False}
    with_, without = (
        Dataset.from_list(rows).map(GateauScorer(**how, use_liger_kernel=x), batched=True, load_from_cache_file=False)
        for x in (True, False)
    )
    for column in ("gateau_ppl_long", "gateau_ppl_short"):
        assert with_[column] == pytest.approx(without[column], rel=1e-4)
