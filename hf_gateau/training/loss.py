"""What a micro-batch tells of its loss: which sequences it holds, what is padding, and a target where it has none.

Legend: B rows of a micro-batch, T tokens of a row (padded, or several documents one after the other when packed).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from ..rows.labels import IGNORED


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


def has_targets(inputs: dict[str, Any]) -> bool:
    """Whether a micro-batch has anything to learn."""
    return bool((inputs["labels"][:, 1:] != IGNORED).any())


def with_some_target(inputs: dict[str, Any]) -> dict[str, Any]:
    """A micro-batch with its second token as a target, whose loss is to count for nothing.

    Where a rank has nothing to learn, the others have: all of them have to go the same way through the model and back, or
    those that gather its parts and add up its gradients (ZeRO-3, FSDP) wait for each other forever.
    """
    labels_BT = inputs["labels"].clone()
    labels_BT[:1, 1:2] = inputs["input_ids"][:1, 1:2]
    return {**inputs, "labels": labels_BT}


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


def unmasked(model) -> Callable:
    """The model without the batch's mask; what stands before the padding comes out the same."""

    def forward(**kwargs):
        return model(**kwargs | {"attention_mask": None})

    return forward


class SequenceMean:
    """The mean over the sequences of all batches and ranks, of which each batch tells its own mean."""

    def __init__(self):
        self.total, self.num_sequences = 0.0, 0

    def add(self, mean: float, num_sequences: int) -> None:
        self.total += mean * num_sequences
        self.num_sequences += num_sequences

    def over_ranks(self, accelerator) -> float | None:
        """The mean, for every rank to ask at once; None of no sequence."""
        sums = torch.tensor([self.total, self.num_sequences], device=accelerator.device)
        total, num_sequences = accelerator.reduce(sums, "sum").tolist()
        return total / num_sequences if num_sequences else None
