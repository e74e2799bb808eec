"""One optimiser step of `GateauSFTTrainer`, and the same step written the slow, obvious way. Also run by torchrun."""

import json
import os
import sys
import tempfile

import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, TrainerCallback

from hf_gateau import GateauSFTConfig, GateauSFTTrainer


NUM_TOKENS = 60  # of a document; two fill a pack


def documents(num_documents: int, vocabulary: int) -> list[dict]:
    """Documents of one length with between 1 and all but one token as targets."""
    generator = torch.Generator().manual_seed(num_documents)
    rows = []
    for i in range(num_documents):
        ids = torch.randint(4, vocabulary, (NUM_TOKENS,), generator=generator).tolist()
        num_targets = 1 + (i * 17) % (NUM_TOKENS - 1)
        rows.append({"input_ids": ids, "labels": [-100] * (NUM_TOKENS - num_targets) + ids[-num_targets:]})
    return rows


def reference_gradient(model, rows: list[dict]) -> torch.Tensor:
    """Gradient of the mean over sequences of the mean over target tokens: every document by itself, plain logits."""
    model.zero_grad()
    for row in rows:
        ids, labels = torch.tensor([row["input_ids"]]), torch.tensor(row["labels"])
        logits = model(input_ids=ids).logits[0, :-1]
        (torch.nn.functional.cross_entropy(logits, labels[1:], ignore_index=-100) / len(rows)).backward()
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.requires_grad])


def settings(folder: str, **options) -> GateauSFTConfig:
    fixed = {"use_cpu": True, "bf16": False, "report_to": "none", "save_strategy": "no", "max_length": 2 * NUM_TOKENS}
    fixed |= {"gradient_checkpointing": False, "disable_tqdm": True, "logging_strategy": "no"}
    return GateauSFTConfig(folder, **(fixed | options))


def step_gradient(model, folder: str, rows: list[dict], *, peft_config=None, **options) -> torch.Tensor:
    """The gradient of one step of plain SGD, from what it does to the weights."""
    options = {"optim": "sgd", "learning_rate": 1.0, "lr_scheduler_type": "constant", "max_grad_norm": 0.0} | options
    args = settings(folder, max_steps=1, **options)
    trainer = GateauSFTTrainer(model, args, train_dataset=Dataset.from_list(rows), peft_config=peft_config)
    before = [p.detach().clone() for p in trainer.model.parameters() if p.requires_grad]
    trainer.train()
    after = [p.detach() for p in trainer.model.parameters() if p.requires_grad]
    assert trainer.state.global_step == 1
    return torch.cat([(a - b).flatten() for a, b in zip(before, after, strict=True)])


def deviation(got: torch.Tensor, expected: torch.Tensor) -> float:
    return ((got - expected).norm() / expected.norm()).item()


def load(model_name: str):
    return AutoModelForCausalLM.from_pretrained(model_name, dtype=torch.float32)


def compare(model_name: str, folder: str, packing: bool, micro: int, accumulation: int, ranks: int = 1) -> float:
    """Relative deviation of one step from the reference."""
    model = load(model_name)
    rows = documents(micro * accumulation * ranks * (2 if packing else 1), model.config.vocab_size)
    expected = reference_gradient(load(model_name), rows)
    options = {"per_device_train_batch_size": micro, "gradient_accumulation_steps": accumulation, "packing": packing}
    return deviation(step_gradient(model, folder, rows, **options), expected)


def reference_loss(model, rows: list[dict]) -> float:
    """The mean over sequences of the mean over target tokens: every document by itself, plain logits."""
    losses = []
    for row in rows:
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([row["input_ids"]])).logits[0, :-1]
        losses.append(torch.nn.functional.cross_entropy(logits, torch.tensor(row["labels"])[1:]).item())
    return sum(losses) / len(losses)


def evaluated_loss(model_name: str, folder: str, rows: list[dict], **options) -> float:
    """What an evaluation on documents says."""
    ds = Dataset.from_list(rows)
    options = {"max_length": 2 * NUM_TOKENS} | options
    trainer = GateauSFTTrainer(load(model_name), settings(folder, **options), train_dataset=ds, eval_dataset=ds)
    found = trainer.evaluate()["eval_loss"]
    assert trainer.evaluate()["eval_loss"] == found  # what fills the ranks up comes once
    return found


def compare_with_blank_rows(model_name: str, folder: str) -> float:
    """One step of 5 sorted rows on two ranks, 2 rows a micro-batch: one of the 4 micro-batches has nothing to learn."""
    rows = documents(5, load(model_name).config.vocab_size)
    expected = reference_gradient(load(model_name), rows)
    options = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2, "batching": "sorted"}
    return deviation(step_gradient(load(model_name), folder, rows, **options), expected)


def disconnect_empty_heads(model) -> None:
    """Make TRL's head as one that is not connected to the model where there is nothing to learn."""
    fused = model.forward

    def forward(*args, labels=None, **kwargs):
        outputs = fused(*args, labels=labels, **kwargs)
        if not (labels[:, 1:] != -100).any():
            outputs.log_probs = torch.zeros_like(outputs.log_probs, requires_grad=True)
        return outputs

    model.forward = forward


def compare_sharded(model_name: str, folder: str, disconnected: bool = False) -> float:
    """A backward pass of a model sharded over two ranks (FSDP2 on gloo), the second of which has nothing to learn."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    rank = torch.distributed.get_rank()
    rows = documents(2, load(model_name).config.vocab_size)
    trainer = GateauSFTTrainer(load(model_name), settings(folder), train_dataset=Dataset.from_list(rows))
    model, mesh = trainer.model, init_device_mesh("cpu", (2,))
    for layer in model.model.layers:
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    if disconnected:
        disconnect_empty_heads(model)
    input_ids = torch.tensor([row["input_ids"] for row in rows])
    labels = torch.tensor([row["labels"] for row in rows]) if rank == 0 else torch.full_like(input_ids, -100)
    inputs = {"input_ids": input_ids, "labels": labels, "attention_mask": torch.ones_like(input_ids)}
    loss = trainer.compute_loss(model, inputs, num_items_in_batch=torch.tensor(2.0))
    assert rank == 0 or loss.item() == 0
    loss.backward()
    got = torch.cat([p.grad.full_tensor().flatten() for p in model.parameters()])
    return deviation(got, reference_gradient(load(model_name), rows))


class RecordingTrainer(GateauSFTTrainer):
    """Keeps which rows came, by their first token."""

    def compute_loss(self, model, inputs, *args, **kwargs):
        targets = (inputs["labels"] != -100).any(1)
        self.seen = [*getattr(self, "seen", []), inputs["input_ids"][targets, 0].tolist()]
        return super().compute_loss(model, inputs, *args, **kwargs)


def rows_of_many_lengths(num_rows: int) -> list[dict]:
    """Rows whose first token says which row it is, of lengths that say so too."""
    lengths = [4 + (i * 13) % 40 for i in range(num_rows)]
    return [{"input_ids": [10 + i] + [5] * (n - 1), "labels": [-100] + [5] * (n - 1)} for i, n in enumerate(lengths)]


def run_sorted(model_name: str, folder: str, num_rows: int, steps: int | None = None, resume=None) -> list[list[int]]:
    """Two epochs of sorted batches of two rows a rank; `steps` stops early, with a checkpoint."""
    options = {"batching": "sorted", "per_device_train_batch_size": 2, "num_train_epochs": 2, "learning_rate": 0.0}
    options |= {"save_strategy": "steps", "save_steps": 3, "max_length": 64}
    trainer = RecordingTrainer(
        load(model_name), settings(folder, **options), train_dataset=Dataset.from_list(rows_of_many_lengths(num_rows))
    )
    if steps is not None:
        trainer.add_callback(StopAfter(steps))
    trainer.train(resume_from_checkpoint=resume)
    return trainer.seen


class StopAfter(TrainerCallback):
    def __init__(self, steps: int):
        self.steps = steps

    def on_step_end(self, args, state, control, **kwargs):
        control.should_training_stop = state.global_step >= self.steps


def main(model_name: str, folder: str) -> None:
    """What each of several ranks sees and does; rank 0 writes it down."""
    torch.set_num_threads(1)
    found = {}
    for packing in (False, True):
        for micro in (1, 3):
            for accumulation in (1, 4):
                with tempfile.TemporaryDirectory() as scratch:
                    case = f"packing={packing} micro={micro} accumulation={accumulation}"
                    found[case] = compare(model_name, scratch, packing, micro, accumulation, ranks=2)
    rows = documents(7, load(model_name).config.vocab_size)
    evaluated = {}
    with tempfile.TemporaryDirectory() as scratch:
        found["blank rows"] = compare_with_blank_rows(model_name, scratch)
        found["sharded"] = compare_sharded(model_name, scratch)
        found["sharded, disconnected"] = compare_sharded(model_name, scratch, disconnected=True)
        for packing in (False, True):
            options = {"packing": packing, "per_device_eval_batch_size": 2 - packing}
            evaluated[f"packing={packing}"] = evaluated_loss(model_name, scratch, rows, **options)
    whole = run_sorted(model_name, os.path.join(folder, "whole"), 21)
    run_sorted(model_name, os.path.join(folder, "cut"), 21, steps=3)
    torch.distributed.barrier()
    rest = run_sorted(model_name, os.path.join(folder, "cut"), 21, resume=os.path.join(folder, "cut", "checkpoint-3"))
    gathered = [None, None]
    torch.distributed.all_gather_object(gathered, {"whole": whole, "rest": rest})
    if torch.distributed.get_rank() == 0:
        with open(os.path.join(folder, "found.json"), "w") as file:
            json.dump({"deviations": found, "evaluated": evaluated, "ranks": gathered}, file)


if __name__ == "__main__":
    main(*sys.argv[1:])
