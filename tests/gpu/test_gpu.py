"""What only a GPU can show, against full passes on the CPU. `pytest -n 0 -m gpu`, some minutes on one card.

The default command leaves these out and hides the GPUs of the machine: two CPU ranks on one GPU would share it.
`HF_GATEAU_GPU_TESTS_ON=cpu` runs those that need no GPU's own memory on the CPU, to try the tests themselves.
"""

import math
import os
import subprocess
import sys

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from hf_gateau.measuring.passes import measure_samples
from hf_gateau.models.abilities import abilities_of
from hf_gateau.models.attention import gateau_attention
from hf_gateau.models.config import ModelPairConfig
from hf_gateau.models.packing import Cut, Limits
from hf_gateau.models.pair import ModelPair
from hf_gateau.quickstart import LONG_MODEL, PLANTED
from hf_gateau.store.sqlite import Measurement
from tests.architectures import PIECE, SAMPLES, SHORT_WINDOW, WAYS, expected, farthest, tiny_config, tiny_model
from tests.measured import make_sample
from tests.models.test_architectures import KINDS
from tests.models.test_attention import heads, last_rows, module
from tests.paths import ROOT
from tests.tiny_models import ARCHITECTURES


DEVICE = os.environ.get("HF_GATEAU_GPU_TESTS_ON", "cuda")
HAS_GPU = torch.cuda.is_available()
pytestmark = [pytest.mark.gpu, pytest.mark.skipif(DEVICE == "cuda" and not HAS_GPU, reason="there is no GPU")]
on_a_gpu_alone = pytest.mark.skipif(not HAS_GPU, reason="of a GPU's own memory and kernels")

# Every architecture of the fast tests. Where a router chooses experts, bfloat16 chooses others by the last bit.
TYPES = sorted({*ARCHITECTURES, *(x for x in KINDS if abilities_of(tiny_config(x)).refusal is None)})
ROUTED = {
    x for x in TYPES if any(word in str(tiny_config(x).to_dict()) for word in ("num_experts", "n_routed", "num_local"))
}
TOLERANCE = {"float32": 2e-4, "bfloat16": 0.15}  # nats a token
GIB = 1 << 30


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("model_type", TYPES)
def test_numbers_are_those_of_full_passes_on_the_cpu(model_type, dtype, tmp_path, tokenizer):
    """Whole, mixed, shared, in pieces; a response of one token among them."""
    if dtype == "bfloat16" and model_type in ROUTED:
        pytest.skip("its router flips in half precision")
    tiny_model(model_type, str(tmp_path), tokenizer)
    model = AutoModelForCausalLM.from_pretrained(tmp_path, dtype="float32", attn_implementation="eager").eval()
    expectations = [expected(model, sample) for sample in SAMPLES]
    pair = ModelPair(ModelPairConfig(str(tmp_path), short_window=SHORT_WINDOW, device=DEVICE, dtype=dtype))
    for way in WAYS:
        assert farthest(pair, way, expectations) <= TOLERANCE[dtype], way


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("kv_heads", [8, 2, 1])
@pytest.mark.parametrize("rows", [1, 2, 7, 400, 4096])
def test_rows_after_a_past(rows, kv_heads, dtype):
    query, key, value = (x.to(DEVICE) for x in heads(rows, 4096, kv_heads, dtype))
    found, _ = gateau_attention(module(8 // kv_heads), query, key, value, None, scaling=8**-0.5)
    far = (found.double().cpu() - last_rows(query.cpu(), key.cpu(), value.cpu())).abs().max().item()
    assert far < (1e-4 if dtype == torch.float32 else 2e-2)


@pytest.fixture(scope="module")
def wide_model(tmp_path_factory, tokenizer) -> str:
    """Eight layers of a 0.6B model's width, grouped heads, a window of 128k: random weights in bfloat16."""
    sizes = {"hidden_size": 1024, "intermediate_size": 3072, "num_hidden_layers": 8, "head_dim": 128}
    shape = {"num_attention_heads": 16, "num_key_value_heads": 8, "max_position_embeddings": 131_072}
    config = AutoConfig.for_model("qwen3", **sizes, **shape, vocab_size=len(tokenizer), initializer_range=0.03)
    folder = tmp_path_factory.mktemp("wide")
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def measured(folder: str, samples, limits: Limits, dtype: str = "bfloat16"):
    return measure_samples(open_on_gpu(folder, dtype), samples, Cut(128), limits)


def open_on_gpu(folder: str, dtype: str = "bfloat16") -> ModelPair:
    pair = ModelPair(ModelPairConfig(folder, short_window=512, device=DEVICE, dtype=dtype))
    pair.long  # noqa: B018
    return pair


@on_a_gpu_alone
def test_float32_of_grouped_heads_makes_no_matrix_of_all_rows(wide_model):
    torch.cuda.reset_peak_memory_stats()
    [found] = measured(wide_model, [make_sample(16_000, 32, 60)], Limits(65_536), "float32")
    assert isinstance(found, Measurement)
    assert torch.cuda.max_memory_allocated() < 6 * GIB


@on_a_gpu_alone
def test_pieces_and_one_token_responses_of_long_rows(wide_model):
    long, one = make_sample(16_000, 32, 60), make_sample(16_000, 32, 1)
    pair = open_on_gpu(wide_model)
    for sample in (long, one):
        [whole] = measure_samples(pair, [sample], Cut(128), Limits(65_536))
        [pieces] = measure_samples(pair, [sample], Cut(128), Limits(65_536, 4_096))
        assert math.log(pieces.ppl_long) == pytest.approx(math.log(whole.ppl_long), abs=5e-3)


@on_a_gpu_alone
@pytest.mark.parametrize("gib", [3, 2, 1.2])
def test_a_row_that_does_not_fit_goes_in_pieces_and_later_rows_are_not_harmed(wide_model, gib):
    pair = open_on_gpu(wide_model)
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(gib * GIB / torch.cuda.get_device_properties(0).total_memory)
    try:
        limits = Limits(65_536)
        [long] = measure_samples(pair, [make_sample(60_000, 32, 400)], Cut(128), limits)
        short = measure_samples(pair, [make_sample(2_000, 32, 60, seed=i) for i in range(3)], Cut(128), limits)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
        torch.cuda.empty_cache()
    assert isinstance(long, Measurement) or gib < 2, long  # keys and values of 60k tokens alone are 1.9 GiB
    assert all(isinstance(found, Measurement) for found in short), short


@on_a_gpu_alone
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_a_model_over_two_gpus(tmp_path, tokenizer):
    tiny_model("qwen3", str(tmp_path), tokenizer)
    model = AutoModelForCausalLM.from_pretrained(tmp_path, dtype="float32", attn_implementation="eager").eval()
    places = {"model.embed_tokens": 0, "model.rotary_emb": 0, "model.norm": 1, "lm_head": 1}
    places |= {f"model.layers.{i}": int(i > 1) for i in range(4)}
    pair = ModelPair(ModelPairConfig(str(tmp_path), short_window=SHORT_WINDOW, device_map=places, dtype="float32"))
    expectations = [expected(model, sample) for sample in SAMPLES]
    assert all(farthest(pair, way, expectations) <= TOLERANCE["float32"] for way in WAYS) and PIECE


def train(tmp_path, *arguments: str) -> str:
    """`hf-gateau sft` for four steps on the quickstart's rows and model, which fit anywhere."""
    rows = ["--model_name_or_path", LONG_MODEL, "--dataset_name", PLANTED, "--gateau_long_model", LONG_MODEL]
    sizes = [
        "--gateau_short_window",
        "256",
        "--gateau_segment_length",
        "64",
        "--max_length",
        "1024",
        "--max_steps",
        "4",
    ]
    own = [
        "--output_dir",
        str(tmp_path / "out"),
        "--report_to",
        "none",
        "--save_strategy",
        "no",
        "--eos_token",
        "</s>",
    ]
    command = [sys.executable, "-m", "hf_gateau.cli", "sft", *arguments, *rows, *sizes, *own]
    environment = os.environ | {"HF_GATEAU_STORE": str(tmp_path / "s.sqlite"), "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout + done.stderr


@on_a_gpu_alone
def test_the_recipe_of_4_bits_and_lora_trains(tmp_path):
    pytest.importorskip("bitsandbytes")
    assert "train_loss" in train(tmp_path, "--recipe", "qlora", "--attn_implementation", "sdpa", "--packing", "false")


@on_a_gpu_alone
def test_the_recipe_with_zero_3_and_offloading_trains(tmp_path):
    pytest.importorskip("deepspeed")
    config = ROOT / "recipes" / "accelerate" / "zero3_offload.yaml"
    launch = ["--accelerate_config", str(config), "--num_processes", "1"]
    assert "train_loss" in train(tmp_path, "--recipe", "gateau", *launch, "--attn_implementation", "sdpa")
