"""`GateauSFTTrainer`: what a callback cannot do. LongAlign's training (arXiv 2401.18058) on TRL's own path."""

from __future__ import annotations

import copy
import logging
import math
from collections import Counter

from datasets import Dataset, IterableDataset
from trl import SFTTrainer

from ..redaction import clear_secrets
from ..rows.conversations import MAY_HOLD_TURNS
from ..settings import a_type
from .arguments import GateauSFTConfig
from .fused_head import WeightedHead
from .layout import LOST, RowLayout, lays_out, told_reasons
from .loss import (
    SequenceMean,
    has_targets,
    is_padded_after,
    looks_back_only,
    sequence_weights,
    unmasked,
    with_some_target,
)
from .model_card import write_model_card
from .packing import check_documents_stay_apart
from .selector import GateauSelector
from .sorting import EpochOfSampler, SortedSampler, row_lengths, with_blank_rows


logger = logging.getLogger(__name__)

# With a mask it computes what lies above the diagonal too, and keeps away from its fastest kernel.
FASTER_UNMASKED = "sdpa"
PACKED = "seq_lengths"  # TRL's column of the lengths of a pack's documents


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
            raise TypeError(f"args is {a_type(args)}; GateauSFTTrainer takes a GateauSFTConfig.")
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
        _refuse_data_parallel(model, args)
        self.num_lost: dict[str, dict[str, int]] = {}
        self._prepared: set[str] = set()  # fingerprints of rows that are tokens by now, or packs
        self._find_context = next((x.settings.get("find_context") for x in self.selectors), None)
        super().__init__(model, args, callbacks=callbacks, **kwargs)
        self._refuse_packs_as_rows()
        self._is_logged, self._evaluated = False, None
        clear_secrets(self.model.config, self.processing_class)
        if args.loss_weighting == "sequence":
            self.loss_is_scaled_for_ga = True
            self._refuse_sharded_sequences()
        if self.padding_free:
            check_documents_stay_apart(self.accelerator.unwrap_model(self.model), self.is_sharded)
        self._is_padding_unseen = self._sees_no_padding()
        if args.batching == "sorted":
            self.sampler: SortedSampler | None = None
            self.add_callback(EpochOfSampler(self))

    @property
    def is_sharded(self) -> bool:
        """Whether one process alone does not hold the model."""
        return self.is_fsdp_enabled or (
            self.is_deepspeed_enabled and self.accelerator.state.deepspeed_plugin.zero_stage == 3
        )

    def _refuse_sharded_sequences(self) -> None:
        if self.is_cut:
            raise ValueError(
                "loss_weighting='sequence' needs whole sequences, which context and sequence parallelism cut; use "
                "loss_weighting='token' there."
            )

    @property
    def is_cut(self) -> bool:
        """Whether ranks share a sequence among them."""
        parallelism = self.accelerator.parallelism_config
        return parallelism is not None and (parallelism.cp_enabled or parallelism.sp_enabled)

    def _refuse_packs_as_rows(self) -> None:
        """Packs that were made elsewhere would be rows whose documents see each other."""
        evaluated = self.eval_dataset if isinstance(self.eval_dataset, dict) else {"eval": self.eval_dataset}
        for name, ds in {"train": self.train_dataset, **evaluated}.items():
            if PACKED in (getattr(ds, "column_names", None) or ()) and not self.padding_free:
                raise ValueError(
                    f"The {name} rows are packs already (column {PACKED}), whose documents would see each other; give "
                    "padding_free=True with max_length=None, or rows that are not packed with packing=True."
                )

    # Rows: loss on responses alone

    def _prepare_dataset(self, dataset, processing_class, args, packing, formatting_func, dataset_name):
        columns = set(dataset.column_names or next(iter(dataset)))
        if getattr(dataset, "_fingerprint", None) in self._prepared:  # an evaluation hands on what is prepared
            return dataset
        if packing and PACKED in columns:
            raise ValueError(
                f"The {dataset_name} rows are packs already (column {PACKED}); packing them again would put their documents "
                "together. Give the rows themselves, or packing=False with padding_free=True and max_length=None."
            )
        self.num_lost.pop(dataset_name, None)
        if args.response_only_loss and lays_out(columns) and formatting_func is None:
            layout = RowLayout.of(args, self._tokenizer, packing, self._find_context)
            dataset = self._tokenized(dataset, layout, args, dataset_name)
        elif args.truncation_mode == "keep_end":
            raise ValueError(
                "truncation_mode='keep_end' shortens the context of rows with messages, conversations, prompt and "
                f"completion, or context, instruction and response, by response_only_loss=True; the {dataset_name} rows have the columns "
                f"{', '.join(sorted(columns))}. Cut them beforehand, and give 'keep_start'."
            )
        args = copy.copy(args)
        args.truncation_mode = "keep_start"  # what is to be cut is cut
        prepared = super()._prepare_dataset(dataset, processing_class, args, packing, formatting_func, dataset_name)
        if not packing and isinstance(dataset, Dataset):  # rows that TRL lays out, and drops without a word
            lost = Counter({f"no label is left within max_length={args.max_length}": len(dataset) - len(prepared)})
            self._count_lost(dataset_name, lost, len(dataset), args.max_length)
        if isinstance(prepared, Dataset):
            self._prepared.add(prepared._fingerprint)
        return prepared

    def _tokenized(self, dataset, layout: RowLayout, args: GateauSFTConfig, name: str):
        """Rows as tokens and labels, without those that have nothing to learn; these are counted, loudly."""
        with args.main_process_first(desc=f"tokenizing {name} dataset"):
            tokens = layout.tokens(dataset, name)
        if isinstance(dataset, IterableDataset):
            return tokens.filter(_has_targets, input_columns=[LOST]).remove_columns(LOST)
        lost = Counter(filter(None, tokens[LOST]))
        self._count_lost(name, lost, len(tokens), layout.max_length)
        with args.main_process_first(desc=f"filtering {name} dataset"):
            tokens = tokens.filter(_has_targets, input_columns=[LOST]) if lost else tokens
        return tokens.remove_columns([LOST, *(name for name in MAY_HOLD_TURNS if name in tokens.column_names)])

    def _count_lost(self, name: str, lost: Counter, num_rows: int, max_length: int | None) -> None:
        """Tell of the rows that are dropped, and refuse to go on where all are."""
        if not lost.total():
            return
        self.num_lost[name] = self.num_lost.get(name, {}) | lost
        told = told_reasons(lost, max_length)
        if lost.total() == num_rows:
            raise ValueError(f"No row of the {name} dataset can be trained on: {told}.")
        say = logger.error if lost.total() > num_rows // 10 else logger.warning
        say("%d of %d %s rows are dropped: %s", lost.total(), num_rows, name, told)

    # Batches: rows of similar length

    def get_train_dataloader(self):
        if self.args.batching == "sorted":
            self.train_dataset = with_blank_rows(self.train_dataset, self._group_size(), self._tokenizer.pad_token_id)
        return super().get_train_dataloader()

    def _group_size(self, batch_size: int | None = None) -> int:
        """Rows that all ranks take at once."""
        copies = self.get_tp_size() * self.get_cp_size() * self.get_sp_size()
        return (batch_size or self.args.train_batch_size) * (self.accelerator.num_processes // copies)

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
            model = unmasked(model)
        if not self.is_cut and not has_targets(inputs):
            head, num_sequences = WeightedHead(model, None), 0
            inputs = with_some_target(inputs)
        elif self.args.loss_weighting == "sequence":
            weights_BT, num_sequences = sequence_weights(inputs)
            head = WeightedHead(model, weights_BT)
        else:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        if num_items_in_batch is None and self.args.loss_weighting == "sequence":
            num_items_in_batch = num_sequences * self._loss_scale()  # the mean over the sequences of this batch
        found = super().compute_loss(head, inputs, return_outputs, num_items_in_batch)
        head.check()
        if self._evaluated is not None:
            self._add_evaluated(found[0] if return_outputs else found, int(num_sequences))
        return found

    def _add_evaluated(self, loss, num_sequences: int) -> None:
        loss = loss.item()
        if math.isfinite(loss) or not self.args.logging_nan_inf_filter:
            self._evaluated.add(loss, num_sequences)

    def evaluation_loop(self, dataloader, *args, metric_key_prefix="eval", **kwargs):
        """TRL's, whose loss is a mean over batches, with the mean over all sequences where these count the same."""
        if self.args.loss_weighting != "sequence":
            return super().evaluation_loop(dataloader, *args, metric_key_prefix=metric_key_prefix, **kwargs)
        self._evaluated = SequenceMean()
        try:
            output = super().evaluation_loop(dataloader, *args, metric_key_prefix=metric_key_prefix, **kwargs)
            mean = self._evaluated.over_ranks(self.accelerator)
        finally:
            self._evaluated = None
        if mean is not None:
            output.metrics[f"{metric_key_prefix}_loss"] = mean
        return output

    def get_eval_dataloader(self, eval_dataset=None):
        """The evaluation's batches; where several ranks share them and sequences count the same, none comes twice."""
        if self.args.loss_weighting == "sequence" and self.accelerator.num_processes > 1:
            if eval_dataset is None:
                self.eval_dataset = self._filled_up(self.eval_dataset)
            elif isinstance(eval_dataset, str):
                self.eval_dataset[eval_dataset] = self._filled_up(self.eval_dataset[eval_dataset])
            else:
                eval_dataset = self._filled_up(eval_dataset)
        return super().get_eval_dataloader(eval_dataset)

    def _filled_up(self, ds):
        if not isinstance(ds, Dataset) or not {"input_ids", "labels"} <= set(ds.column_names):
            return ds
        filled = with_blank_rows(ds, self._group_size(self.args.eval_batch_size), self._tokenizer.pad_token_id)
        if ds._fingerprint in self._prepared:
            self._prepared.add(filled._fingerprint)
        return filled

    def _sees_no_padding(self) -> bool:
        """Whether padding after a text changes nothing that the loss is made of, and hiding it costs time."""
        model = self.accelerator.unwrap_model(self.model)
        counts_padding = self.aux_loss_enabled  # a mixture of experts' loss is over all tokens that the mask leaves
        return (
            model.config._attn_implementation == FASTER_UNMASKED
            and not (self.is_cut or counts_padding)
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


def _has_targets(reason: str) -> bool:
    return not reason


def _refuse_data_parallel(model, args: GateauSFTConfig) -> None:
    """Refuse several GPUs in one process, but for a model that is spread over them.

    Raises:
        ValueError: the message says how to launch instead.
    """
    if args.n_gpu <= 1:
        return
    placed = getattr(model, "hf_device_map", None)
    if isinstance(model, str):
        placed = (args.model_init_kwargs or {}).get("device_map", "auto")
    is_spread = isinstance(placed, str) or len(set((placed or {}).values()) - {"cpu", "disk"}) > 1
    if not is_spread:
        raise ValueError(
            f"One process sees {args.n_gpu} GPUs, and would copy the model to each (DataParallel), which normalises losses "
            f"wrongly. Launch a process for each, `accelerate launch --num_processes {args.n_gpu} SCRIPT` or `hf-gateau sft "
            f"--recipe RECIPE --num_processes {args.n_gpu}`, or show it one: CUDA_VISIBLE_DEVICES=0."
        )
