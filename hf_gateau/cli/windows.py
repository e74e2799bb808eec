"""`hf-gateau score --windows`: how far back rows reach."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from typing import TYPE_CHECKING


if TYPE_CHECKING:
    from datasets import Dataset

    from ..measuring.scorer import GateauScorer
    from ..measuring.windows import WindowScorer

logger = logging.getLogger(__name__)


@dataclass
class WindowArguments:
    """How far back rows reach."""

    RARELY_GIVEN = ("windows",)

    windows: str | None = field(
        default=None,
        metadata={
            "help": "Measure too how far back rows reach, for a figure of report and card: what the long model foresees from the last "
            "so many tokens of the context, such as 1024,4096,16384; or 'auto': 512, 1,024, 2,048 and so on, which takes about as "
            "long as the long model's pass. Default: the far segments tell it, more roughly."
        },
    )

    def __post_init__(self):
        self.lengths()

    def lengths(self) -> tuple[int, ...] | None:
        """The windows in tokens; None for those that follow from the rows.

        Raises:
            ValueError: `windows` says neither.
        """
        if self.windows in (None, "auto"):
            return None
        lengths = [x.strip().replace("_", "") for x in self.windows.split(",")]
        if not all(x.isdecimal() and int(x) for x in lengths):
            raise ValueError(
                f"--windows is {self.windows!r}; give lengths in tokens, such as 1024,4096,16384, or auto."
            )
        return tuple(map(int, lengths))

    def scorer(self, scorer: GateauScorer) -> WindowScorer | None:
        """What measures them with a scorer's long model, in the same way; None where nobody asks."""
        from ..measuring.windows import WindowScorer

        if self.windows is None:
            return None
        if not scorer.measure_config.token_nll:
            raise ValueError(
                f"--windows {self.windows} is told by the evidence of tokens, and token_nll is off; leave one of the two out."
            )
        return WindowScorer(windows=self.lengths(), **WindowScorer.settings_of(scorer))


def with_windows(ds: Dataset, windows: WindowScorer, scorer: GateauScorer, num_proc: int) -> Dataset:
    """A dataset with the columns of nested windows, from processes of this machine or of a launch; `scorer`: whose model is loaded."""
    from ..measuring.together import values_together
    from ..measuring.value_scorer import told_and_recorded

    if num_proc == 1:
        windows.pair = scorer.start().pair
        ds = values_together(ds, windows)
    else:
        options = {"num_proc": min(num_proc, len(ds)), "batch_size": 10}
        ds = ds.map(windows, batched=True, with_rank=True, desc=windows.title, **options)
    ds = told_and_recorded(ds, windows)
    if not num_with_windows(ds) and windows.settings["windows"]:
        logger.warning(
            "No context is longer than %d tokens, so no window was measured.", windows.settings["windows"][0]
        )
    return ds


def num_with_windows(ds: Dataset) -> int:
    """Rows that were seen through one window at least."""
    import pyarrow.compute as pc

    found = ds.select_columns(["gateau_windows"]).with_format("arrow")[:]["gateau_windows"]
    return pc.sum(pc.greater(pc.list_value_length(found), 0)).as_py() or 0
