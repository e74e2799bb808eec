"""`GateauSFTTrainer`: what a callback cannot do. LongAlign's training (arXiv 2401.18058) on TRL's own path.

Legend: B rows of a micro-batch, T tokens of a row (padded, or several documents one after the other when packed).
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from datasets import Dataset, IterableDataset, concatenate_datasets
from transformers import TrainerCallback
from trl import SFTConfig, SFTTrainer

from ..redaction import clear_secrets
from ..rows.conversations import SampleError
from ..rows.labels import IGNORED, tokenize_for_training
from .config import TrainConfig
from .model_card import write_model_card
from .selector import GateauSelector


logger = logging.getLogger(__name__)

LOST = "gateau_lost"  # why a row cannot be trained on
NO_TARGETS = "its whole response lies beyond max_length"
ROW_COLUMNS = ({"messages"}, {"conversations"}, {"context", "instruction", "response"})
# Attention that keeps packed documents apart: by a mask made from position_ids, or by lengths given to the kernel.
MASKED_ATTENTION, VARLEN_ATTENTION = ("eager", "sdpa", "flex_attention"), ("flash_attention", "kernels-community/")
# With a mask it computes what lies above the diagonal too, and keeps away from its fastest kernel.
FASTER_UNMASKED = "sdpa"


@dataclass
class GateauSFTConfig(TrainConfig, SFTConfig):
    """TRL's `SFTConfig` with LongAlign's strategies, and the paper's longest row.

    Raises:
        ValueError: strategies that exclude each other.
    """

    max_length: int | None = field(
        default=65_536,
        metadata={
            "help": "Longest row in tokens; longer ones are cut at their end (truncation_mode). None: no limit."
        },
    )

    def __post_init__(self):
        TrainConfig.__post_init__(self)
        SFTConfig.__post_init__(self)
        if self.hub_token is not None or {"token", "use_auth_token"} & (self.model_init_kwargs or {}).keys():
            raise ValueError(
                "A token among the arguments would be saved in training_args.bin, and pushed. Leave it out: log in with "
                "`hf auth login`, or set HF_TOKEN."
            )
        if self.response_only_loss:
            self.assistant_only_loss = False  # the same with fewer templates
        if self.loss_weighting == "sequence" and self.loss_type != "nll":
            raise ValueError(
                f"loss_weighting='sequence' weights loss_type='nll', not {self.loss_type!r}; use 'token'."
            )
        if self.loss_weighting == "sequence" and self.label_smoothing_factor:
            raise ValueError("loss_weighting='sequence' knows no label smoothing; use 'token', or smooth nothing.")
        if self.batching == "sorted" and self.packing:
            raise ValueError(
                "batching='sorted' and packing exclude each other: packs are all of one length. Choose one."
            )
        if self.batching == "sorted" and self.train_sampling_strategy != "random":
            raise ValueError(
                f"batching='sorted' and train_sampling_strategy={self.train_sampling_strategy!r} are two orders of the "
                "same rows; give one."
            )


class GateauSFTTrainer(SFTTrainer):
    """`SFTTrainer` with loss on responses alone, every sequence counting the same, and sorted batches.

    Takes what `SFTTrainer` takes; `args` is a `GateauSFTConfig`. Rows with `messages`, `conversations` or `context`,
    `instruction` and `response` are laid out as they were scored, with any chat template; others are left to TRL.

    Raises:
        TypeError: `args` is no `GateauSFTConfig`.
        ValueError: a strategy that the rows, the attention implementation or the parallelism cannot serve, or a
            `GateauSelector` that has selected nothing.
    """

    def __init__(self, model, args: GateauSFTConfig | None = None, *, callbacks=None, **kwargs):
        args = GateauSFTConfig() if args is None else args
        if not isinstance(args, GateauSFTConfig):
            raise TypeError(f"args is a {type(args).__name__}; GateauSFTTrainer takes a GateauSFTConfig.")
        self.selectors = [callback for callback in callbacks or () if isinstance(callback, GateauSelector)]
        if any(selector.record is None for selector in self.selectors):
            raise ValueError(
                "The GateauSelector in callbacks has selected nothing, so training would be on every row. Give "
                "train_dataset=selector.select(ds)."
            )
        if args.loss_weighting == "sequence" and kwargs.get("compute_loss_func") is not None:
            raise ValueError("loss_weighting='sequence' is a loss function itself; leave compute_loss_func out.")
        if args.batching == "sorted" and isinstance(kwargs.get("train_dataset"), IterableDataset):
            raise ValueError("A stream cannot be sorted by length; use batching='random', or load the rows.")
        self.num_lost: dict[str, dict[str, int]] = {}
        super().__init__(model, args, callbacks=callbacks, **kwargs)
        self._is_logged = False
        clear_secrets(self.model.config, self.processing_class)
        if args.loss_weighting == "sequence":
            self.loss_is_scaled_for_ga = True
            self._refuse_sharded_sequences()
        if self.padding_free:
            _check_documents_stay_apart(self.accelerator.unwrap_model(self.model), self.is_sharded)
        self._is_padding_unseen = self._sees_no_padding()
        if args.batching == "sorted":
            self.sampler: SortedSampler | None = None
            self.add_callback(_EpochOfSampler(self))

    @property
    def is_sharded(self) -> bool:
        """Whether one process alone does not hold the model."""
        return self.is_fsdp_enabled or (
            self.is_deepspeed_enabled and self.accelerator.state.deepspeed_plugin.zero_stage == 3
        )

    def _refuse_sharded_sequences(self) -> None:
        parallelism = self.accelerator.parallelism_config
        if parallelism is not None and (parallelism.cp_enabled or parallelism.sp_enabled):
            raise ValueError(
                "loss_weighting='sequence' needs whole sequences, which context and sequence parallelism cut; use "
                "loss_weighting='token' there."
            )

    # Rows: loss on responses alone

    def _prepare_dataset(self, dataset, processing_class, args, packing, formatting_func, dataset_name):
        columns = set(dataset.column_names or next(iter(dataset)))
        ours = any(needed <= columns for needed in ROW_COLUMNS) and not columns & {
            "input_ids",
            "prompt",
            "image",
            "images",
        }
        if args.response_only_loss and ours and formatting_func is None:
            dataset = self._tokenized(dataset, args, dataset_name)
        return super()._prepare_dataset(dataset, processing_class, args, packing, formatting_func, dataset_name)

    def _tokenized(self, dataset, args: GateauSFTConfig, name: str):
        """Rows as tokens and labels, without those that have nothing to learn; these are counted, loudly."""
        is_stream = isinstance(dataset, IterableDataset)
        settings = {
            "tokenizer": self._tokenizer,
            "max_length": args.max_length,
            "keep_end": args.truncation_mode == "keep_end",
        }
        options = {} if is_stream else {"num_proc": args.dataset_num_proc, "desc": f"Tokenizing {name} dataset"}
        with args.main_process_first(desc=f"tokenizing {name} dataset"):
            tokens = dataset.map(_tokens_of_row, fn_kwargs=settings, **options)
        if is_stream:
            return tokens.filter(_has_targets, input_columns=[LOST]).remove_columns(LOST)
        lost = Counter(reason for reason in tokens[LOST] if reason is not None)
        self.num_lost[name] = dict(lost)
        if lost:
            say = logger.error if lost.total() > len(tokens) // 10 else logger.warning
            say(
                "%d of %d %s rows are dropped: %s%s", lost.total(), len(tokens), name, dict(lost),
                f" (max_length={args.max_length}; raise it)" if NO_TARGETS in lost else "",
            )  # fmt: skip
        if lost.total() == len(tokens):
            raise ValueError(f"No row of the {name} dataset can be trained on: {dict(lost)}.")
        with args.main_process_first(desc=f"filtering {name} dataset"):
            tokens = tokens.filter(_has_targets, input_columns=[LOST]) if lost else tokens
        return tokens.remove_columns([LOST, *({"messages", "conversations"} & set(tokens.column_names))])

    # Batches: rows of similar length

    def get_train_dataloader(self):
        if self.args.batching == "sorted":
            self.train_dataset = with_blank_rows(self.train_dataset, self._group_size(), self._tokenizer.pad_token_id)
        return super().get_train_dataloader()

    def _group_size(self) -> int:
        """Rows that all ranks take at once."""
        copies = self.get_tp_size() * self.get_cp_size() * self.get_sp_size()
        return self.args.train_batch_size * (self.accelerator.num_processes // copies)

    def _get_train_sampler(self, train_dataset=None):
        if self.args.batching != "sorted":
            return super()._get_train_sampler(train_dataset)
        train_dataset = self.train_dataset if train_dataset is None else train_dataset
        seed = self.args.seed if self.args.data_seed is None else self.args.data_seed
        self.sampler = SortedSampler(row_lengths(train_dataset), self._group_size(), seed)
        return self.sampler

    # Loss: every sequence counts the same

    def get_batch_samples(self, epoch_iterator, num_batches, device):
        batches, num_items = super().get_batch_samples(epoch_iterator, num_batches, device)
        if self.args.loss_weighting != "sequence" or not batches:
            return batches, num_items
        num_sequences = sum(sequence_weights(batch)[1] for batch in batches).to(device)
        num_sequences = self.accelerator.gather(num_sequences).sum() / self.get_tp_size()
        return batches, num_sequences * self._loss_scale() / self._num_replicas()

    def _num_replicas(self) -> int:
        return self.accelerator.num_processes // self.get_tp_size()

    def _loss_scale(self) -> int:
        """What `SFTTrainer.compute_loss` multiplies a loss over `num_items_in_batch` with."""
        return self._num_replicas() if self.args.average_tokens_across_devices else 1

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """LongAlign's L = 1/M sum_i L_i / N_i, by weighting the per-token log-probabilities of TRL's fused path.

        `num_items_in_batch` is M, the sequences of the optimiser step on all ranks, see `get_batch_samples`.
        """
        if self._is_padding_unseen and is_padded_after(inputs):
            model = _unmasked(model)
        if self.args.loss_weighting != "sequence":
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        weights_BT, num_sequences = sequence_weights(inputs)
        if num_items_in_batch is None:  # evaluation: the mean over the sequences of this batch
            num_items_in_batch = num_sequences * self._loss_scale()
        return super().compute_loss(_weighted(model, weights_BT), inputs, return_outputs, num_items_in_batch)

    def _sees_no_padding(self) -> bool:
        """Whether padding after a text changes nothing that the loss is made of, and hiding it costs time."""
        model, parallelism = self.accelerator.unwrap_model(self.model), self.accelerator.parallelism_config
        is_cut = parallelism is not None and (parallelism.cp_enabled or parallelism.sp_enabled)
        counts_padding = self.aux_loss_enabled  # a mixture of experts' loss is over all tokens that the mask leaves
        return (
            model.config._attn_implementation == FASTER_UNMASKED
            and not (is_cut or counts_padding)
            and looks_back_only(model)
        )

    # What the selectors have to say

    def create_model_card(self, model_name=None, dataset_name=None, tags=None) -> None:
        """Write the model card: base model, data and how they were selected, training, results; see `write_model_card`."""
        if self.is_world_process_zero():
            record = self.selectors[0].record if self.selectors else None
            write_model_card(self, record, model_name, dataset_name, tags)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if not self._is_logged and self.model.training:
            self._is_logged = True
            for selector in self.selectors:
                logs |= selector.metrics()
            lost = sum(self.num_lost.get("train", {}).values())
            logs |= {"gateau/num_rows_without_response": lost} if self.args.response_only_loss else {}
        super().log(logs, start_time)


# Loss


def sequence_weights(inputs: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor]:
    """1 / N_i for every target token of sequence i, and 0 elsewhere; and the number of sequences that have targets.

    A sequence is a row, or, where rows are packed, a document: it begins where `position_ids` is 0.

    Returns:
        `(B, T - 1)` float32, aligned with `labels[:, 1:]`, and a scalar tensor.
    """
    labels_BT = inputs["labels"]
    if "attention_mask" not in inputs and "position_ids" in inputs:
        sequence_BT = (inputs["position_ids"] == 0).flatten().cumsum(0).view(labels_BT.shape) - 1
    else:
        sequence_BT = torch.arange(len(labels_BT), device=labels_BT.device)[:, None].expand_as(labels_BT)
    targets, sequence = labels_BT[:, 1:] != IGNORED, sequence_BT[:, 1:]
    size = int(sequence_BT.max()) + 1
    counts = torch.zeros(size, device=labels_BT.device).index_add_(0, sequence.flatten(), targets.flatten().float())
    return targets / counts.clamp(min=1)[sequence], (counts > 0).sum()


def _weighted(model, weights_BT: torch.Tensor) -> Callable:
    """The model, with the log-probabilities of its fused head weighted."""

    def forward(**kwargs):
        outputs = model(**kwargs)
        if kwargs.get("fused_lm_head"):
            log_probs_BT = outputs.log_probs
            missing = log_probs_BT.shape[1] - weights_BT.shape[1]  # virtual tokens that PEFT puts in front
            outputs.log_probs = log_probs_BT * torch.nn.functional.pad(weights_BT, (missing, 0)).to(
                log_probs_BT.device
            )
        return outputs

    return forward


def is_padded_after(inputs: dict[str, Any]) -> bool:
    """Whether a batch has padding, all of it after the texts."""
    mask_BT = inputs.get("attention_mask")
    if mask_BT is None or mask_BT.dim() != 2 or bool(mask_BT.all()):
        return False
    return bool((mask_BT[:, 1:] <= mask_BT[:, :-1]).all())


def looks_back_only(model) -> bool:
    """Whether every attention of a model says that it is causal: then no text sees what is padded after it."""
    said = [module.is_causal for module in model.modules() if isinstance(getattr(module, "is_causal", None), bool)]
    return bool(said) and all(said)


def _unmasked(model) -> Callable:
    """The model without the batch's mask; what stands before the padding comes out the same."""

    def forward(**kwargs):
        return model(**kwargs | {"attention_mask": None})

    return forward


# Rows


def _tokens_of_row(row: dict, tokenizer, max_length: int | None, keep_end: bool) -> dict[str, Any]:
    try:
        tokens = tokenize_for_training(row, tokenizer)
    except SampleError as error:
        return {"input_ids": [], "labels": [], LOST: str(error)}
    part = slice(None) if max_length is None else slice(-max_length, None) if keep_end else slice(max_length)
    tokens = {name: values[part] for name, values in tokens.items()}
    learned = any(label != IGNORED for label in tokens["labels"][1:])
    return tokens | {LOST: None if learned else NO_TARGETS}


def _has_targets(reason: str | None) -> bool:
    return reason is None


def row_lengths(ds: Dataset) -> list[int]:
    """Tokens of each row."""
    import pyarrow.compute as pc

    tables = ds.select_columns(["input_ids"]).with_format("arrow").iter(1000)
    return [length for table in tables for length in pc.list_value_length(table["input_ids"]).to_pylist()]


def with_blank_rows(ds: Dataset, multiple: int, pad_token_id: int) -> Dataset:
    """The rows, and as many without a target as make their number a multiple: they add nothing to the loss.

    Otherwise the last batch of an epoch would be filled up with rows that were seen already, on one rank or another.
    """
    missing = -len(ds) % multiple
    if not missing:
        return ds
    blank = {"input_ids": [pad_token_id] * 2, "labels": [IGNORED] * 2}
    columns = ds.select_columns(list(blank))
    rows = Dataset.from_list([blank] * missing).cast(columns.features)
    return concatenate_datasets([columns, rows])


class SortedSampler(torch.utils.data.Sampler):
    """LongAlign's sorted batching: rows sorted by length, cut into groups of consecutive rows, the groups shuffled.

    A group is what all ranks take at once, so that they wait for each other least. Every row comes once an epoch.

    Args:
        lengths (`list[int]`): tokens of each row; their number is a multiple of `group_size`, see `with_blank_rows`.
        group_size (`int`): ranks times rows a rank.
        seed (`int`): of the order of the groups, another one each epoch.
    """

    def __init__(self, lengths: list[int], group_size: int, seed: int):
        assert len(lengths) % group_size == 0
        self.order = sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))
        self.group_size, self.seed, self.epoch = group_size, seed, 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.order)

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.seed + self.epoch)
        for group in torch.randperm(len(self.order) // self.group_size, generator=generator).tolist():
            yield from self.order[group * self.group_size : (group + 1) * self.group_size]


class _EpochOfSampler(TrainerCallback):
    """Tells the sampler the epoch also where accelerate does not: when several ranks resume within one."""

    def __init__(self, trainer: GateauSFTTrainer):
        self.trainer = trainer

    def on_epoch_begin(self, args, state, control, **kwargs) -> None:
        self.trainer.sampler.set_epoch(int(state.epoch or 0))


# Packing


def _check_documents_stay_apart(model, is_sharded: bool) -> None:
    """Refuse to train where a packed document would see the one before it.

    Raises:
        ValueError: the attention implementation, or the architecture, does not keep them apart.
    """
    name = model.config._attn_implementation or "eager"
    able = f"{', '.join(MASKED_ATTENTION)}, or FlashAttention (flash_attention_2, flash_attention_3)"
    if not (name in MASKED_ATTENTION or name.startswith(VARLEN_ATTENTION)):
        raise ValueError(f"attn_implementation={name!r} is not known to keep packed documents apart; use {able}.")
    if name in MASKED_ATTENTION and not is_sharded and leaks_between_documents(model):
        raise ValueError(
            f"{type(model).__name__} with attn_implementation={name!r} lets packed documents see each other; use "
            f"another of {able}, or packing=False."
        )


@torch.no_grad()
def leaks_between_documents(model, num_tokens: int = 8) -> bool:
    """Whether what a packed document's logits are depends on the document before it; two passes over a few tokens."""
    generator = torch.Generator().manual_seed(0)
    vocabulary = model.get_input_embeddings().weight.shape[0]
    first, other, second = torch.randint(vocabulary, (3, num_tokens), generator=generator)
    position_ids = torch.arange(num_tokens).repeat(2)[None].to(model.device)
    was_training = model.training
    model.eval()
    try:
        packs = [torch.cat([before, second])[None].to(model.device) for before in (first, other)]
        logits = [
            model(input_ids=ids, position_ids=position_ids, use_cache=False).logits[0, num_tokens:] for ids in packs
        ]
    finally:
        model.train(was_training)
    return not torch.allclose(logits[0], logits[1], rtol=1e-3, atol=1e-3 * logits[0].abs().max().item())
