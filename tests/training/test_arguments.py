"""Every argument of the installed `SFTConfig`: what it does to weighting, sorting and keeping documents apart, or is refused."""

import inspect
import re
import warnings
from dataclasses import fields
from importlib.metadata import version

import numpy as np
import pytest
from datasets import Dataset
from trl import SFTConfig, pack_dataset

from hf_gateau import GateauSFTConfig, GateauSFTTrainer
from hf_gateau.training.arguments import PACKING_FAULTS, WHOLE_DOCUMENTS
from tests.tiny_models import make_model
from tests.training import gradients


# Why an argument cannot undo the strategies -> the arguments
HARMLESS = {
    "tells, writes and pushes": """output_dir logging_strategy logging_steps logging_first_step log_on_each_node log_level
        log_level_replica disable_tqdm report_to run_name project trackio_space_id trackio_bucket_id trackio_static_space_id
        save_only_model save_strategy save_steps save_on_each_node save_total_limit enable_jit_checkpoint push_to_hub
        hub_private_repo hub_model_id hub_strategy hub_always_push hub_revision debug skip_memory_metrics do_train do_eval
        do_predict include_num_input_tokens_seen""",
    "decides when to evaluate, and what becomes of the loss": """eval_strategy eval_steps eval_delay eval_on_start
        load_best_model_at_end metric_for_best_model greater_is_better""",
    "takes a gradient as it is": """num_train_epochs max_steps learning_rate lr_scheduler_type lr_scheduler_kwargs warmup_steps
        optim optim_args weight_decay adam_beta1 adam_beta2 adam_epsilon optim_target_modules max_grad_norm""",
    "is the same sum in another precision or order": """bf16 fp16 bf16_full_eval fp16_full_eval tf32 torch_compile
        torch_compile_backend torch_compile_mode use_cache torch_empty_cache_steps activation_offloading use_cpu local_rank
        activation_checkpointing_kwargs gradient_checkpointing_kwargs""",
    "kernels of layers; TRL refuses the one that would replace its head": "use_liger_kernel liger_kernel_config",
    "is noise on embeddings, over a batch's row, which may be a pack": "neftune_noise_alpha",
    "halves batches, whose groups of neighbours stay neighbours": "auto_find_batch_size",
    "hands batches on, in the sampler's order": """dataloader_num_workers dataloader_pin_memory dataloader_persistent_workers
        dataloader_prefetch_factor dataloader_multiprocessing_context remove_unused_columns""",
    "only lets batches come in another order": "dataloader_in_order seed data_seed full_determinism shuffle_dataset",
    "is for another order of the same rows, which sorting refuses": "length_column_name",
    "begins or goes on, see test_sorted_epochs_and_resume": """resume_from_checkpoint ignore_data_skip
        restore_callback_states_from_checkpoint""",
    "loads a model or tokenizer; attention is looked at afterwards": """model_init_kwargs trust_remote_code chat_template_path
        eos_token pad_token""",
    "is of rows that TRL lays out": "dataset_text_field completion_only_loss dataset_num_proc",
    "names what the model's own loss reads, and TRL's head does not": "label_names",
    "talks between ranks": """ddp_find_unused_parameters ddp_bucket_cap_mb ddp_broadcast_buffers ddp_static_graph ddp_backend
        ddp_timeout""",
}
# Argument -> the test that has it, here or in test_trainer
TESTED = {
    "per_device_train_batch_size": "test_gradient_is_the_mean_over_sequences",
    "gradient_accumulation_steps": "test_gradient_is_the_mean_over_sequences",
    "packing": "test_gradient_is_the_mean_over_sequences",
    "average_tokens_across_devices": "test_gradient_with",
    "activation_checkpointing": "test_gradient_with",
    "gradient_checkpointing": "test_gradient_with",
    "padding_free": "test_gradient_with",
    "pad_to_multiple_of": "test_gradient_with_padding_to_a_multiple",
    "accelerator_config": "test_sorted_rows_come_once_with",
    "dataloader_drop_last": "test_sorted_rows_come_once_with",
    "router_aux_loss_coef": "test_a_mixture_of_experts_without_its_own_loss",
    "fsdp": "test_two_ranks_have_the_same_gradient",
    "fsdp_config": "test_two_ranks_have_the_same_gradient",
    "deepspeed": "test_two_ranks_have_the_same_gradient",  # as far as it goes: it shards as FSDP does
    "per_device_eval_batch_size": "test_evaluation_loss_is_the_mean_over_sequences",
    "prediction_loss_only": "test_evaluation_loss_with",
    "eval_do_concat_batches": "test_evaluation_loss_with",
    "eval_use_gather_object": "test_evaluation_loss_with",
    "eval_accumulation_steps": "test_evaluation_loss_with",
    "include_for_metrics": "test_evaluation_loss_with",
    "batch_eval_metrics": "test_evaluation_loss_with",
    "logging_nan_inf_filter": "test_evaluation_loss_with",
    "max_length": "test_strategies_that_cut_rows_lose_nothing",
    "truncation_mode": "test_response_is_kept_and_cut_as_in_scoring",
    "assistant_only_loss": "test_settings_that_are_set_right",
}
# Argument -> settings that are refused, and how the message says so
REFUSED = {
    "loss_type": ({"loss_type": "dft"}, "weights loss_type='nll'"),
    "label_smoothing_factor": ({"label_smoothing_factor": 0.1}, "label smoothing"),
    "packing_strategy": ({"packing": True, "packing_strategy": "wrapped"}, "lets them see each other"),
    "eval_packing": ({"eval_packing": True}, "packs whose documents see each other"),
    "train_sampling_strategy": ({"batching": "sorted", "train_sampling_strategy": "group_by_length"}, "two orders"),
    "hub_token": ({"hub_token": "hf_x"}, "would be saved"),
    "parallelism_config": ({}, "context and sequence parallelism cut"),
    "dataset_kwargs": ({"dataset_kwargs": {"skip_prepare_dataset": True}}, "are packs already"),
}


def test_every_argument_of_trl_is_accounted_for():
    known = {name for names in HARMLESS.values() for name in names.split()} | {*TESTED} | {*REFUSED}
    there = {field.name for field in fields(SFTConfig)}
    assert not there - known, (
        f"TRL {version('trl')} with transformers {version('transformers')} has new arguments {sorted(there - known)}: say in "
        "this table what each does to weighted sequences, sorted batches and documents kept apart, with a test, or refuse it."
    )


@pytest.mark.parametrize("settings", [{}, {"gradient_checkpointing": False}, {"gradient_checkpointing": True}])
def test_no_argument_goes_by_a_name_that_transformers_gives_up(settings, tmp_path):
    """TRL sets `gradient_checkpointing` itself, and recipes do; transformers calls it `activation_checkpointing` now."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", FutureWarning)
        args = GateauSFTConfig(str(tmp_path), bf16=False, **settings)
    expected = settings.get("gradient_checkpointing", True)
    assert (args.gradient_checkpointing, args.activation_checkpointing) == (expected, expected)


def test_the_tables_tests_exist():
    from tests.rows import test_cutting
    from tests.training import test_trainer

    names = {name for module in (test_trainer, test_cutting) for name in vars(module)} | {*globals()}
    assert {*TESTED.values()} <= names


@pytest.mark.parametrize("name", [name for name in REFUSED if name not in ("parallelism_config", "dataset_kwargs")])
def test_refused(name, tmp_path):
    options, message = REFUSED[name]
    with pytest.raises(ValueError, match=message):
        gradients.settings(str(tmp_path), **options)


def test_sequences_shared_by_ranks_are_refused(tiny_model, tmp_path):
    rows = Dataset.from_list(gradients.documents(2, 50))
    trainer = GateauSFTTrainer(gradients.load(tiny_model), gradients.settings(str(tmp_path)), train_dataset=rows)

    class Parallelism:
        cp_enabled, sp_enabled = True, False

    trainer.accelerator.state.parallelism_config = Parallelism()
    with pytest.raises(ValueError, match=REFUSED["parallelism_config"][1]):
        trainer._refuse_sharded_sequences()


def test_settings_that_are_set_right(tmp_path):
    assert not gradients.settings(str(tmp_path), assistant_only_loss=True).assistant_only_loss
    with warnings.catch_warnings(record=True) as warned:  # TRL's own 'keep_end' is deprecated
        warnings.simplefilter("always")
        args = gradients.settings(str(tmp_path), truncation_mode="keep_end")
    assert args.truncation_mode == "keep_end" and not [x for x in warned if "keep_end" in str(x.message)]
    with pytest.raises(
        ValueError, match="truncation_mode='keep_middle' is not known; use one of 'keep_start', 'keep_end'"
    ):
        gradients.settings(str(tmp_path), truncation_mode="keep_middle")


# Packing


def test_every_packing_strategy_of_trl_is_decided_on(tmp_path):
    """By the choices of its argument, and by what its packing knows."""
    known = set(re.findall(r"strategy == \"(\w+)\"", inspect.getsource(pack_dataset)))
    assert known == {*SFTConfig.__dataclass_fields__["packing_strategy"].metadata["choices"]}
    assert known == {*WHOLE_DOCUMENTS, *PACKING_FAULTS}, f"TRL {version('trl')} packs in a new way: decide on it."
    for strategy in sorted(known) + ["bfd-requeue"]:  # the last: an old name of one
        options = {"packing": True, "packing_strategy": strategy}
        gradients.settings(str(tmp_path), loss_weighting="token", **options)
        if strategy in WHOLE_DOCUMENTS:
            gradients.settings(str(tmp_path), **options)
            continue
        with pytest.raises(ValueError, match="cannot weight them; use packing_strategy='bfd', or"):
            gradients.settings(str(tmp_path), **options)


@pytest.mark.parametrize("strategy, is_whole", [("bfd", False), ("bfd_split", True), ("wrapped", True)])
def test_strategies_that_cut_rows_lose_nothing(strategy, is_whole, rows, tiny_model, tmp_path):
    """Rows of 975 tokens in packs of 300: cut at their end, or all tokens kept in several packs."""
    options = {"packing": True, "packing_strategy": strategy, "max_length": 300, "loss_weighting": "token"}
    ds = Dataset.from_list([{"messages": row["messages"]} for row in rows])
    whole = GateauSFTTrainer(
        gradients.load(tiny_model), gradients.settings(str(tmp_path), max_length=None), train_dataset=ds
    )
    num_tokens = sum(map(len, whole.train_dataset["input_ids"]))
    args = gradients.settings(str(tmp_path), **options)
    if not is_whole:  # no response begins within 300 tokens
        with pytest.raises(
            ValueError, match="No row of the train dataset can be trained on: 12 since its whole response"
        ):
            GateauSFTTrainer(gradients.load(tiny_model), args, train_dataset=ds)
        return
    packed = GateauSFTTrainer(gradients.load(tiny_model), args, train_dataset=ds).train_dataset
    assert sum(map(len, packed["input_ids"])) == num_tokens and max(map(len, packed["input_ids"])) == 300


@pytest.mark.parametrize("options", [{}, {"packing": True}, {"dataset_kwargs": {"skip_prepare_dataset": True}}])
def test_packs_made_elsewhere_are_no_rows(options, tiny_model, tmp_path):
    rows = Dataset.from_list(gradients.documents(4, gradients.load(tiny_model).config.vocab_size))
    packs = pack_dataset(rows, 2 * gradients.NUM_TOKENS)
    assert "seq_lengths" in packs.column_names
    with pytest.raises(ValueError, match=r"The train rows are packs already \(column seq_lengths\)"):
        GateauSFTTrainer(gradients.load(tiny_model), gradients.settings(str(tmp_path), **options), train_dataset=packs)
    model = gradients.load(tiny_model)
    got = gradients.step_gradient(
        model, str(tmp_path), packs.to_list(), padding_free=True, max_length=None, per_device_train_batch_size=2
    )
    expected = gradients.reference_gradient(gradients.load(tiny_model), rows.to_list())
    assert gradients.deviation(got, expected) < 1e-5


# Weighting


@pytest.mark.parametrize("packing", [False, True])
def test_gradient_with_padding_to_a_multiple(packing, tiny_model, tmp_path):
    rows = gradients.documents(3, gradients.load(tiny_model).config.vocab_size)
    options = {"packing": packing, "pad_to_multiple_of": 64, "per_device_train_batch_size": 3}
    got = gradients.step_gradient(gradients.load(tiny_model), str(tmp_path), rows, **options)
    assert gradients.deviation(got, gradients.reference_gradient(gradients.load(tiny_model), rows)) < 1e-5


def test_a_mixture_of_experts_without_its_own_loss(tokenizer, tmp_path):
    name = make_model("gpt_oss", tmp_path / "model", tokenizer)
    rows = gradients.documents(3, gradients.load(name).config.vocab_size)
    options = {"router_aux_loss_coef": 0.0, "per_device_train_batch_size": 3}
    got = gradients.step_gradient(gradients.load(name), str(tmp_path), rows, **options)
    assert gradients.deviation(got, gradients.reference_gradient(gradients.load(name), rows)) < 1e-5


@pytest.mark.parametrize("options", [{"dataloader_drop_last": True}, {"accelerator_config": {"split_batches": True}}])
def test_sorted_rows_come_once_with(options, tiny_model, tmp_path):
    fixed = {"batching": "sorted", "per_device_train_batch_size": 2, "num_train_epochs": 1, "max_length": 64}
    args = gradients.settings(str(tmp_path), **fixed, **options)
    rows = Dataset.from_list(gradients.rows_of_many_lengths(7))
    trainer = gradients.RecordingTrainer(gradients.load(tiny_model), args, train_dataset=rows)
    trainer.train()
    assert sorted(row for batch in trainer.seen for row in batch) == list(range(10, 17))


EVALUATIONS = [
    {"prediction_loss_only": True},
    {"eval_do_concat_batches": False},
    {"eval_use_gather_object": True},
    {"eval_accumulation_steps": 1, "include_for_metrics": ["loss", "inputs"]},
    {"batch_eval_metrics": True},
    {"logging_nan_inf_filter": False},
]


@pytest.mark.filterwarnings("ignore:.*return_outputs")
@pytest.mark.parametrize("options", EVALUATIONS, ids=lambda options: next(iter(options)))
def test_evaluation_loss_with(options, tiny_model, tmp_path):
    """Metrics that are computed beside it, in every way that transformers knows."""
    model = gradients.load(tiny_model)
    rows = gradients.documents(3, model.config.vocab_size)
    ds = Dataset.from_list(rows)
    args = gradients.settings(str(tmp_path), per_device_eval_batch_size=2, **options)
    kwargs = {"compute_metrics": lambda found, compute_result=True: {"one": np.float32(1)}}
    trainer = GateauSFTTrainer(model, args, train_dataset=ds, eval_dataset=ds, **kwargs)
    found = trainer.evaluate()
    assert found["eval_loss"] == pytest.approx(gradients.reference_loss(model, rows), rel=1e-5)
    assert found.get("eval_one") == (None if "prediction_loss_only" in options else 1)


# Several GPUs in one process


def test_several_gpus_without_a_launcher_are_refused(tiny_model, tmp_path):
    rows = Dataset.from_list(gradients.documents(2, gradients.load(tiny_model).config.vocab_size))
    args = gradients.settings(str(tmp_path))
    args._n_gpu = 3
    launch = r"3 GPUs.*`accelerate launch --num_processes 3 SCRIPT`.*CUDA_VISIBLE_DEVICES=0"
    with pytest.raises(ValueError, match=launch):
        GateauSFTTrainer(gradients.load(tiny_model), args, train_dataset=rows)
    args.model_init_kwargs = {"device_map": {"": 0}}
    with pytest.raises(ValueError, match=launch):
        GateauSFTTrainer(tiny_model, args, train_dataset=rows)
    model = gradients.load(tiny_model)
    model.hf_device_map = {
        "model.layers.0": "cpu",
        "model.layers.1": 0,
        "lm_head": 1,
    }  # spread: one copy, no DataParallel
    args.model_init_kwargs = None
    assert GateauSFTTrainer(model, args, train_dataset=rows).args.n_gpu == 1
