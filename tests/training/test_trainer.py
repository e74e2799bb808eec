"""LongAlign's training: gradients against the obvious way, batches that lose and repeat nothing, packs that do not leak."""

import json
import subprocess
import sys
from collections import Counter

import pytest
import torch
from datasets import Dataset

from hf_gateau import GateauSFTConfig, GateauSFTTrainer
from hf_gateau.training.loss import is_padded_after, looks_back_only, sequence_weights
from hf_gateau.training.packing import leaks_between_documents
from hf_gateau.training.sorting import SortedSampler, row_lengths, with_blank_rows
from tests.tiny_models import ARCHITECTURES, make_model
from tests.training import gradients


RELATIVE = 1e-5  # in float32


# Loss weighting: L = 1/M sum L_i/N_i


@pytest.mark.parametrize("accumulation", [1, 4])
@pytest.mark.parametrize("micro", [1, 3])
@pytest.mark.parametrize("packing", [False, True])
def test_gradient_is_the_mean_over_sequences(packing, micro, accumulation, tiny_model, tmp_path):
    assert gradients.compare(tiny_model, str(tmp_path), packing, micro, accumulation) < RELATIVE


@pytest.mark.parametrize("variant", ["lora", "checkpointing", "padding_free", "local_counts", "uneven"])
def test_gradient_with(variant, tiny_model, tmp_path):
    from peft import LoraConfig

    model, other = gradients.load(tiny_model), gradients.load(tiny_model)
    rows = gradients.documents(5 if variant == "uneven" else 6, model.config.vocab_size)
    options = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 3}
    peft_config = None
    if variant == "lora":
        torch.manual_seed(0)
        peft_config = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
        from peft import get_peft_model

        torch.manual_seed(42)  # TrainingArguments' default seed, which TRL sets before it makes the adapter
        other = get_peft_model(other, peft_config)
    options |= {
        "checkpointing": {"gradient_checkpointing": True},
        "padding_free": {"padding_free": True, "max_length": None},
        "local_counts": {"average_tokens_across_devices": False},
    }.get(variant, {})
    got = gradients.step_gradient(model, str(tmp_path), rows, peft_config=peft_config, **options)
    assert gradients.deviation(got, gradients.reference_gradient(other, rows)) < RELATIVE


def test_token_mean_is_another_gradient(tiny_model, tmp_path):
    """10 target tokens beside 1,000: their sequence has half of the gradient here, a hundredth under TRL's token mean."""
    model = gradients.load(tiny_model)
    ids = torch.randint(4, model.config.vocab_size, (1010,), generator=torch.Generator().manual_seed(1)).tolist()
    rows = [
        {"input_ids": ids[:20], "labels": [-100] * 10 + ids[10:20]},
        {"input_ids": ids, "labels": [-100] * 10 + ids[10:]},
    ]
    expected = gradients.reference_gradient(gradients.load(tiny_model), rows)
    options = {"per_device_train_batch_size": 2, "max_length": 2000}
    by_sequence = gradients.step_gradient(model, str(tmp_path), rows, **options)
    by_token = gradients.step_gradient(
        gradients.load(tiny_model), str(tmp_path), rows, loss_weighting="token", **options
    )
    assert gradients.deviation(by_sequence, expected) < RELATIVE
    assert gradients.deviation(by_token, expected) > 0.1


@pytest.mark.parametrize("architecture", ["llama", "mistral", "gemma3_text", "gpt_neox"])
@pytest.mark.parametrize("weighting", ["sequence", "token"])
def test_padding_after_the_texts_needs_no_mask(weighting, architecture, tokenizer, tmp_path, monkeypatch):
    """The same gradient with the mask and without it, where models say that they are causal; the model gets none."""
    model_name = make_model(architecture, tmp_path / "model", tokenizer)
    rows = gradients.documents(3, gradients.load(model_name).config.vocab_size)
    rows = [{name: values[19 * i :] for name, values in row.items()} for i, row in enumerate(rows)]
    options = {"per_device_train_batch_size": 3, "loss_weighting": weighting}
    without, masks = gradients.load(model_name), []
    hook = {"hook": lambda _, __, kwargs: masks.append(kwargs["attention_mask"]), "with_kwargs": True}
    without.base_model.register_forward_pre_hook(**hook)
    got = gradients.step_gradient(without, str(tmp_path), rows, **options)
    monkeypatch.setattr("hf_gateau.training.trainer.looks_back_only", lambda model: False)
    expected = gradients.step_gradient(gradients.load(model_name), str(tmp_path), rows, **options)
    assert masks == [None] and gradients.deviation(got, expected) < 1e-6 and expected.norm() > 0


def test_padding_elsewhere_keeps_its_mask(tiny_model):
    def is_padded(mask):
        return is_padded_after({"attention_mask": torch.tensor(mask)})

    assert is_padded([[1, 1, 1], [1, 0, 0]]) and not is_padded([[1, 1, 1], [0, 0, 1]])
    assert not is_padded([[1, 1], [1, 1]]) and not is_padded_after({"position_ids": torch.arange(3)[None]})
    model = gradients.load(tiny_model)
    assert looks_back_only(model)
    model.model.layers[1].self_attn.is_causal = False
    assert not looks_back_only(model) and not looks_back_only(torch.nn.Linear(2, 2))


def test_token_weighting_is_trls_own(tiny_model, tmp_path):
    from trl import SFTConfig, SFTTrainer

    rows = gradients.documents(4, gradients.load(tiny_model).config.vocab_size)
    args = gradients.settings(str(tmp_path), loss_weighting="token", per_device_train_batch_size=4)
    ours = GateauSFTTrainer(gradients.load(tiny_model), args, train_dataset=Dataset.from_list(rows))
    own = {
        name: getattr(args, name) for name in ("use_cpu", "bf16", "report_to", "gradient_checkpointing", "max_length")
    }
    args = SFTConfig(str(tmp_path), per_device_train_batch_size=4, **own)
    theirs = SFTTrainer(gradients.load(tiny_model), args, train_dataset=Dataset.from_list(rows))
    losses = []
    for trainer in (ours, theirs):
        losses.append(trainer.compute_loss(trainer.model, next(iter(trainer.get_train_dataloader()))).item())
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)


@pytest.mark.parametrize("packing, batch_size", [(False, 2), (True, 1), (True, 3)])
def test_evaluation_loss_is_the_mean_over_sequences(packing, batch_size, tiny_model, tmp_path):
    """Of 7 documents, two a pack: the last pack, and the last batch, hold fewer than the others."""
    rows = gradients.documents(7, gradients.load(tiny_model).config.vocab_size)
    options = {"packing": packing, "per_device_eval_batch_size": batch_size}
    expected = gradients.reference_loss(gradients.load(tiny_model), rows)
    assert gradients.evaluated_loss(tiny_model, str(tmp_path), rows, **options) == pytest.approx(expected, rel=1e-5)


def test_packs_are_evaluated_as_they_are(tiny_model, tmp_path):
    """Also those that are given by name, and those of the trainer itself: TRL would pack the packs."""
    model = gradients.load(tiny_model)
    rows = gradients.documents(5, model.config.vocab_size)
    ds = Dataset.from_list(rows)
    args = gradients.settings(str(tmp_path), packing=True, per_device_eval_batch_size=1)
    trainer = GateauSFTTrainer(model, args, train_dataset=ds, eval_dataset=ds)
    expected = pytest.approx(gradients.reference_loss(model, rows), rel=1e-5)
    assert trainer.evaluate(trainer.eval_dataset)["eval_loss"] == expected
    assert trainer.evaluate(ds)["eval_loss"] == expected
    assert trainer.evaluate({"one": ds})["eval_one_loss"] == expected


def test_rows_are_cut_once(rows, tiny_model, tmp_path):
    """TRL prepares the parts of a dict twice; the second time they are tokens, which nothing is to be cut from."""
    ds = Dataset.from_list([{"messages": row["messages"]} for row in rows[:2]])
    args = gradients.settings(str(tmp_path), max_length=300, truncation_mode="keep_end")
    trainer = GateauSFTTrainer(gradients.load(tiny_model), args, train_dataset=ds, eval_dataset={"one": ds})
    found = trainer.evaluate({"two": ds}) | trainer.evaluate()
    assert found["eval_one_loss"] == pytest.approx(found["eval_two_loss"], rel=1e-6)


def test_evaluation_of_several_datasets_and_of_rows_without_targets(tiny_model, tmp_path):
    model = gradients.load(tiny_model)
    rows = gradients.documents(5, model.config.vocab_size)
    parts = {"one": rows[:3], "two": rows[3:] + [{**rows[0], "labels": [-100] * gradients.NUM_TOKENS}]}
    args = gradients.settings(str(tmp_path), per_device_eval_batch_size=1, max_length=None)
    evaluated = {name: Dataset.from_list(part) for name, part in parts.items()}
    trainer = GateauSFTTrainer(model, args, train_dataset=Dataset.from_list(rows), eval_dataset=evaluated)
    found = trainer.evaluate()
    for name, part in (("one", rows[:3]), ("two", rows[3:])):
        assert found[f"eval_{name}_loss"] == pytest.approx(gradients.reference_loss(model, part), rel=1e-5)


@pytest.mark.quick
def test_weights_of_a_pack_are_those_of_its_documents():
    labels = torch.tensor([[-100, 1, 1, -100, 2, -100, -100, -100]])
    position_ids = torch.tensor([[0, 1, 2, 0, 1, 0, 1, 0]])  # the last is padding
    weights, num_sequences = sequence_weights({"labels": labels, "position_ids": position_ids})
    assert weights.tolist() == [[0.5, 0.5, 0, 1, 0, 0, 0]] and num_sequences == 2  # one document has no target


@pytest.mark.quick
@pytest.mark.parametrize(
    "options, reason",
    [
        ({"loss_type": "dft"}, "loss_type"),
        ({"label_smoothing_factor": 0.1}, "label smoothing"),
        ({"batching": "sorted", "packing": True}, "exclude each other"),
        ({"batching": "sorted", "train_sampling_strategy": "group_by_length"}, "two orders"),
        ({"batching": "by length"}, "is not known"),
        ({"loss_weighting": "document"}, "is not known"),
    ],
)
def test_settings_that_exclude_each_other(options, reason, tmp_path):
    with pytest.raises(ValueError, match=reason):
        gradients.settings(str(tmp_path), **options)


def test_plain_sft_config_is_refused(tiny_model, tmp_path):
    from trl import SFTConfig

    rows = gradients.documents(2, 50)
    args = SFTConfig(str(tmp_path), use_cpu=True, bf16=False, report_to="none")
    with pytest.raises(TypeError, match="GateauSFTConfig"):
        GateauSFTTrainer(tiny_model, args, train_dataset=Dataset.from_list(rows))


def test_longest_row_is_the_papers_unless_said(tmp_path):
    assert GateauSFTConfig(str(tmp_path), use_cpu=True, bf16=False).max_length == 65_536


# Sorted batching


@pytest.mark.quick
def test_groups_hold_neighbours_and_all_rows_come_once():
    lengths = [(i * 7919) % 1000 for i in range(96)]
    sampler = SortedSampler(lengths, 8, seed=3)
    order = list(sampler)
    assert sorted(order) == list(range(96)) and order == list(sampler)
    in_order = sorted(range(96), key=lambda i: (-lengths[i], i))
    groups = {tuple(in_order[i : i + 8]) for i in range(0, 96, 8)}
    assert {tuple(order[i : i + 8]) for i in range(0, 96, 8)} == groups
    sampler.set_epoch(1)
    assert list(sampler) != order


@pytest.mark.quick
def test_blank_rows_fill_up_and_have_nothing_to_learn():
    ds = Dataset.from_list(gradients.rows_of_many_lengths(5))
    filled = with_blank_rows(ds, 4, pad_token_id=0)
    assert filled[:5] == ds[:] and row_lengths(filled)[5:] == [2, 2, 2]
    assert all(set(row["labels"]) == {-100} for row in filled.select(range(5, 8)))
    assert with_blank_rows(filled, 4, 0) is filled


def test_sorted_epochs_and_resume(tiny_model, tmp_path):
    """21 rows in batches of 2: one blank row fills up; the second epoch has another order; a resumed run the same."""
    whole = gradients.run_sorted(tiny_model, str(tmp_path / "whole"), 21)
    check_epochs(whole[:11], whole[11:])
    gradients.run_sorted(tiny_model, str(tmp_path / "cut"), 21, steps=15)
    rest = gradients.run_sorted(tiny_model, str(tmp_path / "cut"), 21, resume=str(tmp_path / "cut" / "checkpoint-15"))
    assert rest == whole[15:]


def check_epochs(*epochs):
    for batches in epochs:
        assert Counter(row for batch in batches for row in batch) == Counter(range(10, 31))
    assert len({str(batches) for batches in epochs}) == len(epochs)


@pytest.fixture(scope="module")
def two_ranks(tiny_model, tmp_path_factory):
    """What two gloo processes did."""
    folder = tmp_path_factory.mktemp("ranks")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    command += ["-m", "tests.training.gradients", tiny_model, str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads((folder / "found.json").read_text())


@pytest.mark.slow
def test_two_ranks_have_the_same_gradient(two_ranks):
    assert len(two_ranks["deviations"]) == 11
    assert max(two_ranks["deviations"].values()) < RELATIVE, two_ranks["deviations"]


@pytest.mark.slow
def test_two_ranks_evaluate_every_sequence_once(two_ranks, tiny_model):
    """7 rows, or 4 packs, 2 and 1 a rank at a time: neither fills the ranks up."""
    model = gradients.load(tiny_model)
    expected = gradients.reference_loss(model, gradients.documents(7, model.config.vocab_size))
    for case, loss in two_ranks["evaluated"].items():
        assert loss == pytest.approx(expected, rel=1e-5), case


@pytest.mark.slow
def test_two_ranks_lose_and_repeat_no_row(two_ranks):
    """21 rows in groups of 4: 6 steps an epoch, on both ranks, also after a resume in the middle of an epoch."""
    whole, rest = ([rank[part] for rank in two_ranks["ranks"]] for part in ("whole", "rest"))
    assert [len(batches) for batches in whole] == [12, 12]
    for epoch in (slice(6), slice(6, 12)):
        assert Counter(row for rank in whole for batch in rank[epoch] for row in batch) == Counter(range(10, 31))
    assert rest == [batches[3:] for batches in whole]
    lengths = {10 + i: len(row["input_ids"]) for i, row in enumerate(gradients.rows_of_many_lengths(21))}
    steps = [[lengths[row] for rank in whole for row in rank[step]] for step in range(6)]
    spans = sorted((min(step), max(step)) for step in steps)
    assert all(
        low >= high for (_, high), (low, _) in zip(spans, spans[1:], strict=False)
    )  # neighbours of equal length


# Packing


def packs(vocabulary: int) -> tuple[list[torch.Tensor], torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(7)
    documents = [torch.randint(4, vocabulary, (n,), generator=generator) for n in (13, 50, 29)]
    position_ids = torch.cat([torch.arange(len(document)) for document in documents])
    return documents, torch.cat(documents)[None], position_ids[None]


CASES = [(architecture, name, "default") for architecture in sorted(ARCHITECTURES) for name in ("sdpa", "eager")]


FLEX = [
    ("llama", "flex_attention", "force_eager"),  # the same masks, without a compiler
    pytest.param("llama", "flex_attention", "default", marks=pytest.mark.slow),
]


@pytest.mark.parametrize("architecture, implementation, stance", [*CASES, *FLEX])
def test_packed_documents_do_not_see_each_other(architecture, implementation, stance, tokenizer, tmp_path):
    model = gradients.load(make_model(architecture, tmp_path, tokenizer))
    try:
        model.set_attn_implementation(implementation)
    except (ValueError, ImportError) as error:
        pytest.skip(str(error))
    documents, input_ids, position_ids = packs(len(tokenizer))
    try:
        with torch.compiler.set_stance(stance), torch.no_grad():
            leaks = leaks_between_documents(model)
            packed = model(input_ids=input_ids, position_ids=position_ids, use_cache=False).logits[0]
            single = torch.cat([model(input_ids=document[None], use_cache=False).logits[0] for document in documents])
    except Exception as error:
        if implementation != "flex_attention":
            raise
        pytest.skip(f"flex attention does not compile here: {error!r}"[:200])
    same = torch.allclose(packed, single, rtol=1e-5, atol=1e-5)
    assert same == (not leaks)
    assert same or architecture == "gpt_oss"  # transformers makes it no mask of documents, so packing refuses it


def test_attention_that_lets_documents_leak_is_refused(tiny_model, tmp_path):
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.integrations.sdpa_attention import sdpa_attention_forward
    from transformers.masking_utils import sdpa_mask

    AttentionInterface.register("leaky", sdpa_attention_forward)
    AttentionMaskInterface.register("leaky", lambda *args, **kwargs: None)
    model = gradients.load(tiny_model)
    rows = Dataset.from_list(gradients.documents(4, model.config.vocab_size))
    model.set_attn_implementation("leaky")
    assert leaks_between_documents(model)
    with pytest.raises(ValueError, match="'leaky' is not known to keep packed documents apart; use eager, sdpa"):
        GateauSFTTrainer(model, gradients.settings(str(tmp_path), packing=True), train_dataset=rows)
    model.set_attn_implementation("sdpa")
    AttentionMaskInterface.register("sdpa", lambda *args, **kwargs: None)  # an architecture that ignores positions
    try:
        with pytest.raises(
            ValueError, match="LlamaForCausalLM with attn_implementation='sdpa' lets packed documents see"
        ):
            GateauSFTTrainer(model, gradients.settings(str(tmp_path), packing=True), train_dataset=rows)
    finally:
        AttentionMaskInterface.register("sdpa", sdpa_mask)
