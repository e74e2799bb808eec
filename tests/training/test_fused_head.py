"""TRL's internals that weighting sequences stands on: for which versions of TRL they are as `fused_head` says.

Where a test here fails under a newer TRL: read what has changed in the source that it names, let `fused_head` and
`GateauSFTTrainer` follow, and add the version and the digests to `READ`.
"""

import hashlib
import inspect
from importlib.metadata import version

import pytest
import torch
from datasets import Dataset
from packaging.version import Version
from trl import SFTTrainer
from trl.data_utils import pack_dataset
from trl.trainer.utils import FusedCausalLMOutput, add_fused_lm_head

from hf_gateau import GateauSFTTrainer
from hf_gateau.training.fused_head import ASKED
from tests.training import gradients


SOURCES = (
    SFTTrainer.compute_loss,
    SFTTrainer.prediction_step,
    SFTTrainer._prepare_dataset,
    add_fused_lm_head,
    FusedCausalLMOutput,
    pack_dataset,
)
# Minor version of TRL -> digests of these sources as they were read
READ = {
    "1.16": ["ca448211ff65", "2db888fb0567", "04b668d28493", "422d009f04b6", "5ccdd6e41dcb", "9b34aacf605e"],
}


def test_trl_is_a_version_whose_sources_were_read():
    installed = Version(version("trl"))
    minor = f"{installed.major}.{installed.minor}"
    holds = f"weighting sequences is known to hold for TRL {', '.join(READ)}; {installed} is installed"
    assert minor in READ, f"{holds}. Read what it changed in {[x.__qualname__ for x in SOURCES]}."
    digests = [hashlib.sha256(inspect.getsource(x).encode()).hexdigest()[:12] for x in SOURCES]
    changed = [x.__qualname__ for x, old, new in zip(SOURCES, READ[minor], digests, strict=True) if old != new]
    assert not changed, f"{holds}, and has other sources of {changed}; read them, then put {digests} in their place."


@pytest.fixture()
def trainer_and_batch(tiny_model, tmp_path):
    rows = gradients.documents(3, gradients.load(tiny_model).config.vocab_size)
    args = gradients.settings(str(tmp_path), per_device_train_batch_size=3)
    trainer = GateauSFTTrainer(gradients.load(tiny_model), args, train_dataset=Dataset.from_list(rows))
    return trainer, next(iter(trainer.get_train_dataloader()))


def test_the_head_answers_as_described(trainer_and_batch):
    """Log-probabilities of plain logits, zero where there is no target; the loss is minus their sum over the items."""
    trainer, batch = trainer_and_batch
    outputs = trainer.model(**batch, **{ASKED: True})
    targets = batch["labels"][:, 1:]
    logits = trainer.model(input_ids=batch["input_ids"]).logits[:, :-1].log_softmax(-1)
    expected = logits.gather(2, targets.clamp(min=0)[..., None])[..., 0] * (targets != -100)
    torch.testing.assert_close(outputs.log_probs, expected, rtol=1e-5, atol=1e-5)
    assert outputs.label_mask.equal(targets != -100)
    loss = SFTTrainer.compute_loss(trainer, trainer.model, dict(batch), num_items_in_batch=torch.tensor(7.0))
    assert loss.item() == pytest.approx(-expected.sum().item() / 7, rel=1e-5)


@pytest.mark.parametrize("weighting", ["sequence", "token"])
def test_nothing_to_learn_is_a_zero_that_every_parameter_sees(weighting, trainer_and_batch):
    """Also where TRL's head is not connected to the model then, and in what is told beside the loss."""
    trainer, batch = trainer_and_batch
    trainer.args.loss_weighting = weighting
    batch = {**batch, "labels": torch.full_like(batch["labels"], -100)}
    gradients.disconnect_empty_heads(trainer.model.train())
    loss = trainer.compute_loss(trainer.model, batch, num_items_in_batch=torch.tensor(2.0))
    loss.backward()
    assert loss.item() == 0
    assert all(p.grad is not None and not p.grad.any() for p in trainer.model.parameters())
    assert trainer._metrics["train"]["entropy"] == [0.0] == trainer._metrics["train"]["mean_token_accuracy"]


def test_a_trl_that_asks_otherwise_ends_the_run(trainer_and_batch, monkeypatch):
    """Instead of training by tokens without a word."""
    trainer, batch = trainer_and_batch
    monkeypatch.setattr(SFTTrainer, "compute_loss", lambda self, model, inputs, *args: model(**inputs).loss)
    with pytest.raises(RuntimeError, match=r"TRL .* makes its loss without asking .* not weighted by sequence"):
        trainer.compute_loss(trainer.model, batch, num_items_in_batch=torch.tensor(2.0))
