"""A real pretrained model on real text: SmolLM2-135M-Instruct, in float32. Slow."""

import os

import numpy as np
import pytest
import torch
from datasets import load_dataset
from transformers import AutoModelForCausalLM

from benchmarks import straight
from hf_gateau.measuring.passes import measure_sample
from hf_gateau.measuring.runtime import CPU_BATCH_TOKENS
from hf_gateau.models.config import ModelPairConfig
from hf_gateau.models.packing import Cut, Limits
from hf_gateau.models.pair import ModelPair
from hf_gateau.ranking.formulas import Rows, cas
from hf_gateau.rows.samples import build_sample
from tests.paths import LONG_ROWS


pytestmark = pytest.mark.slow

SHORT_WINDOW, MAX_LENGTH, SEGMENT_LENGTH = 512, 2048, 128


@pytest.fixture(scope="module", autouse=True)
def all_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(os.cpu_count() or 1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def pair(smollm2) -> ModelPair:
    return ModelPair(ModelPairConfig(long_model=smollm2, short_window=SHORT_WINDOW, device="cpu"))


@pytest.fixture(scope="module")
def samples(pair) -> list:
    rows = load_dataset("json", data_files=str(LONG_ROWS), split="train")
    return [build_sample(row, pair.tokenizer, max_length=MAX_LENGTH) for row in rows]


@pytest.fixture(scope="module")
def eager(smollm2):
    folder, _, name = smollm2.rpartition("/")
    return AutoModelForCausalLM.from_pretrained(folder, gguf_file=name, attn_implementation="eager").eval()


def cas_of(segment_ppl, segment_attention) -> float:
    return cas(np.array(segment_ppl), np.array(segment_attention), Rows(np.array([len(segment_ppl)])))[0]


@pytest.mark.parametrize("i", range(8))
def test_agrees_with_the_straight_way(i, pair, samples, eager):
    sample = samples[i]
    assert sample.response_end == MAX_LENGTH and sample.num_truncated
    measured = measure_sample(pair, sample, Cut(SEGMENT_LENGTH), Limits(CPU_BATCH_TOKENS))
    short_context = sample.context[-(SHORT_WINDOW - len(sample.instruction)) :]
    expected = straight.measure(eager, eager, sample, SEGMENT_LENGTH, short_context=short_context)
    for name in ("ppl_short", "ppl_long", "ppl_no_context", "segment_ppl"):
        np.testing.assert_allclose(getattr(measured, name), expected[name], rtol=1e-4, err_msg=name)
    np.testing.assert_allclose(measured.segment_attention, expected["segment_attention"], rtol=0, atol=1e-6)
    got = cas_of(measured.segment_ppl, measured.segment_attention)
    assert got == pytest.approx(cas_of(expected["segment_ppl"], expected["segment_attention"]), abs=1e-5)


def test_batch_size_changes_nothing(pair, samples):
    one, many = (
        measure_sample(pair, samples[0], Cut(SEGMENT_LENGTH), Limits(batch_tokens)) for batch_tokens in (1, 8192)
    )
    # By segments, not by heads
    assert {name for name, value in vars(many).items() if value is None} == {"segment_heads"}
    for name, value in vars(one).items():
        found, expected = (np.array(x, dtype=float) for x in (value, getattr(many, name)))
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6, err_msg=name)


def test_fine_tunes_the_best_rows(smollm2, tmp_path):
    """Score, rank and select real long rows, then three steps of LoRA on up to 4,096 tokens of each.

    With HF_GATEAU_LONG_ROWS=FILE on other rows in LongAlign's form, a tenth of them; the eight of tests/data otherwise.
    """
    from peft import LoraConfig

    from benchmarks.common import load_for_training
    from hf_gateau import GateauSelector, GateauSFTConfig, GateauSFTTrainer

    data = os.environ.get("HF_GATEAU_LONG_ROWS")
    ds = load_dataset("json", data_files=data or str(LONG_ROWS), split="train")
    settings = {"short_window": 192, "max_length": 640, "device": "cpu", "store": str(tmp_path / "store.sqlite")}
    selector = GateauSelector(fraction=0.1 if data else 0.4, long_model=smollm2, **settings)
    kept = selector.select(ds)
    assert len(kept) == (round(0.1 * selector.record.num_ranked) if data else 3)
    model, tokenizer = load_for_training(smollm2)
    args = GateauSFTConfig(
        output_dir=str(tmp_path / "out"),
        max_steps=3,
        max_length=4096,
        per_device_train_batch_size=1,
        learning_rate=2e-4,
        batching="sorted",
        truncation_mode="keep_end",  # the rows are longer, and their answers stand at the end
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=True,
        logging_steps=1,
        report_to="none",
    )
    lora = LoraConfig(r=8, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    trainer = GateauSFTTrainer(
        model, args, train_dataset=kept, processing_class=tokenizer, peft_config=lora, callbacks=[selector]
    )
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert len(losses) == 3 and np.isfinite(losses).all() and trainer.state.global_step == 3
    trained = [p for name, p in trainer.model.named_parameters() if "lora_B" in name]
    assert trained and all(p.abs().max() > 0 for p in trained)  # LoRA's B begins at 0
    assert (tmp_path / "out" / "checkpoint-3" / "gateau_selection.json").exists()
