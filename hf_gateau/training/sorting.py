"""LongAlign's sorted batching: rows of similar length together, in random order, none lost and none repeated."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from datasets import Dataset, concatenate_datasets
from transformers import Trainer, TrainerCallback

from ..rows.labels import IGNORED


def row_lengths(ds: Dataset) -> list[int]:
    """Tokens of each row."""
    import pyarrow.compute as pc

    tables = ds.select_columns(["input_ids"]).with_format("arrow").iter(1000)
    return [length for table in tables for length in pc.list_value_length(table["input_ids"]).to_pylist()]


def with_blank_rows(ds: Dataset, multiple: int, pad_token_id: int) -> Dataset:
    """The rows, and as many without a target as make their number a multiple: they add nothing to the loss.

    Otherwise the last batch of an epoch, or of an evaluation, would be filled up with rows that were seen already, on one
    rank or another. Rows may be packs.
    """
    missing = -len(ds) % multiple
    if not missing:
        return ds
    blank = {"input_ids": [pad_token_id] * 2, "labels": [IGNORED] * 2, "seq_lengths": [2]}
    columns = ds.select_columns([name for name in blank if name in ds.column_names])
    rows = Dataset.from_list([{name: blank[name] for name in columns.column_names}] * missing).cast(columns.features)
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


class EpochOfSampler(TrainerCallback):
    """Tells a trainer's sampler the epoch also where accelerate does not: when several ranks resume within one."""

    def __init__(self, trainer: Trainer):
        self.trainer = trainer

    def on_epoch_begin(self, args, state, control, **kwargs) -> None:
        self.trainer.sampler.set_epoch(int(state.epoch or 0))
