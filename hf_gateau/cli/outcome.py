"""What `hf-gateau score` says in the end: what became of the rows, and what is kept where they could not be written."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import TYPE_CHECKING

from ..measuring.progress import Summary
from ..store.sqlite import resolve_store_path


if TYPE_CHECKING:
    from ..measuring.scorer import GateauScorer


SLOW = 0.01  # share of the matrix rate


def is_slowed_by_threads(summary: Summary) -> bool:
    """Whether a CPU with several threads did next to nothing of what it can."""
    import torch

    share = summary.share_of_matrix_rate
    return share is not None and share < SLOW and torch.get_num_threads() > 1 and not torch.accelerator.is_available()


@contextmanager
def told_what_is_kept(scorer: GateauScorer, output: str) -> Iterator[None]:
    """Where rows are written: a failure, of a full disk say, with word of what is not lost by it.

    Raises:
        RuntimeError: the block has failed.
    """
    import pyarrow as pa

    try:
        yield
    except (OSError, ValueError, RuntimeError, pa.ArrowException) as error:
        place = resolve_store_path(scorer.measure_config.store)
        kept = (
            f"What was measured is kept in {place}" if place else "The store is off; the datasets cache may have them"
        )
        again = "give the same command again, or another --output, and no row that is kept is measured twice"
        raise RuntimeError(f"{output} was not written: {str(error).rstrip('.')}. {kept}: {again}.") from error


def print_summary(summary: Summary, as_json: bool, by_heads: bool = False) -> None:
    """Say what became of the rows, and what to do next; or the first as one JSON object. `by_heads`: heads told of segments.

    Raises:
        ValueError: no row could be measured, so that nothing can be done next.
    """
    print(json.dumps(asdict(summary)) if as_json else "\n".join(summary.lines()), flush=True)
    if is_slowed_by_threads(summary):
        print(
            "Measuring went at less than 1% of the speed that this CPU has: its threads may wait for each other, or for other "
            "programs. OMP_NUM_THREADS=1 in the environment may help.",
            file=sys.stderr,
        )
    if sum(summary.not_measured.values()) >= summary.rows:
        raise ValueError(
            f"None of {summary.rows} rows could be measured, and nothing can be ranked; {summary.output} has the reason of "
            "each in gateau_error. Mend the rows, or the settings that the reasons name."
        )
    if as_json:
        return
    how = " --cas heads" if by_heads else ""
    print(f"Next: hf-gateau rank {summary.output} -o RANKED{how}, then hf-gateau top RANKED")
