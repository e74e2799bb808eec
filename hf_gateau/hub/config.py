"""Settings of rows that were scored before."""

from __future__ import annotations

from dataclasses import dataclass, field

from ..settings import check_belongings, short_repr


@dataclass
class ScoredConfig:
    """Rows that were measured before, and pushed with `push_scored`.

    Raises:
        ValueError: a setting without the dataset that it belongs to.
    """

    RARELY_GIVEN = ("scored_revision", "scored_split")

    scored_dataset: str | None = field(
        default=None,
        metadata={
            "help": "Hub id of rows scored before, whose measurements are taken; rows of the data that are new to it are "
            "measured alone. Without other data, its rows are the data."
        },
    )
    scored_revision: str | None = field(
        default=None, metadata={"help": "Branch, tag or commit of scored_dataset. Default: main."}
    )
    scored_split: str | None = field(
        default=None, metadata={"help": "Split of scored_dataset. Default: train, or the only one."}
    )

    __repr__ = short_repr

    def __post_init__(self):
        check_belongings(self, "scored_dataset", "it")
