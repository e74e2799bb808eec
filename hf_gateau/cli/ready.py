"""What `hf-gateau score` does before it measures: look at all rows, choose what the settings leave open, refuse what is for nothing."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..hub.config import ScoredConfig
from ..hub.pull import load_scored
from ..hub.reuse import take_window
from ..measuring.lengths import Lengths
from ..measuring.scorer import GateauScorer
from ..measuring.together import fit_to_rows


if TYPE_CHECKING:
    from datasets import Dataset, IterableDataset


@dataclass
class Ready:
    """Rows that were looked at before any is measured.

    Attributes:
        before (`Dataset`, *optional*): the scored data that have some of them.
        part (`Dataset`, *optional*): of the survey, for `measure_together`.
        lengths (`Lengths`, *optional*): of all rows; None of a stream.
        window (`int`, *optional*): the short window that was chosen by them; None where it was given.
    """

    before: Dataset | None = None
    part: Dataset | None = None
    lengths: Lengths | None = None
    window: int | None = None

    def lines(self) -> list[str]:
        """What is to be known of them before time is spent."""
        found = []
        if self.window is not None:
            median = f"{self.lengths.median_context:,.0f}"
            found.append(
                f"  short_window {self.window:,}, chosen by the rows' median context of {median} tokens; "
                f"--short_window {self.window} keeps it for other rows"
            )
        if self.lengths is not None and self.lengths.cuts:
            found.append(f"  {self.lengths.cuts.line()}")
        return found


def make_ready(ds: Dataset | IterableDataset, scorer: GateauScorer, num_proc: int, known: ScoredConfig) -> Ready:
    """Look at all rows: choose what the settings leave open, and refuse those that leave nothing. Loads no model.

    Raises:
        ValueError: see `fit_to_rows`.
    """
    if not hasattr(ds, "__len__"):
        return Ready()
    before = None
    if known.scored_dataset is not None:
        before = load_scored(known.scored_dataset, split=known.scored_split, revision=known.scored_revision)
        take_window(scorer, before)
    is_open = scorer.pair_config.window_is_open
    if num_proc > 1:
        _spawn_workers(num_proc)
    part, lengths = fit_to_rows(ds, scorer, num_proc=min(num_proc, len(ds)) if num_proc > 1 else None)
    window = scorer.pair_config.short_window if is_open and len(lengths) else None
    return Ready(before, part, lengths, window)


def _spawn_workers(num_proc: int) -> None:
    """Workers that begin afresh can use GPUs and threads, which forked ones cannot; they share the cores evenly."""
    import multiprocess

    multiprocess.set_start_method("spawn", force=True)
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // num_proc)))
