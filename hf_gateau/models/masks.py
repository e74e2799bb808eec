"""Masks of attention for some query rows at a time, so that none of T x T ever exists."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import torch
from transformers import masking_utils
from transformers.masking_utils import sdpa_mask


class RowMask:
    """The mask of one kind of layer, made for some query rows at a time instead of T x T."""

    def __init__(self, **mask_arguments):
        self.make = partial(sdpa_mask, **{**mask_arguments, "allow_is_causal_skip": False})

    def __getitem__(self, index) -> "RowMask":
        """All of it, as models ask that could leave rows out and leave none; of parts there are `rows` alone."""
        if all(part in (slice(None), slice(0, None)) for part in index):
            return self
        raise TypeError("the model takes its attention mask apart, and here none is whole")

    def rows(self, start: int, end: int, first_key: int) -> torch.Tensor:
        """Boolean (B, 1, end - start, end - first_key): True where the query may look."""
        return self.make(q_length=end - start, q_offset=start, kv_length=end - first_key, kv_offset=first_key)


def row_mask(**arguments) -> RowMask | None:
    """transformers' mask function for our attention: None (plain causal) wherever that is the whole truth."""
    local_size = arguments.get("local_size")
    if (
        arguments.get("allow_is_causal_skip", True)
        and arguments.get("attention_mask") is None
        and (local_size is None or arguments["kv_length"] <= local_size)
    ):
        return None
    return RowMask(**arguments)


@contextmanager
def one_sequence_a_row() -> Iterator[None]:
    """Let transformers take every row of a batch for one sequence, for the time of the block. Else it asks the device at every pass
    whether several are packed into one, and waits for all that the device was given to do."""
    own = masking_utils.find_packed_sequence_indices
    masking_utils.find_packed_sequence_indices = lambda position_ids: None  # what it finds of ours
    try:
        yield
    finally:
        masking_utils.find_packed_sequence_indices = own
