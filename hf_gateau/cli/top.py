"""`hf-gateau top`: the best and the worst samples in the terminal."""

import textwrap
from dataclasses import dataclass, field

from ..ranking.config import RankConfig
from .arguments import DataArguments
from .rows import load_ranked


@dataclass
class TopArguments:
    """What to show."""

    num_samples: int = field(default=3, metadata={"help": "How many of the best and of the worst.", "aliases": ["-n"]})
    width: int = field(default=100, metadata={"help": "Characters in a line."})


def command(data: str, rows: DataArguments, shown: TopArguments, config: RankConfig) -> None:
    """Show the best and the worst samples in the terminal. With their segments' importance and the attention paid to them.
    Rows that are not ranked yet are ranked first.

    Example:
        hf-gateau top ranked.parquet -n 5
    """
    from ..ranking.order import rank_order
    from ..report.sample_text import sample_text

    ds = load_ranked(data, rows, config)
    order = rank_order(ds["gateau_rank"])
    best, worst = order[: shown.num_samples], order[max(shown.num_samples, len(order) - shown.num_samples) :]
    for title, places in (("best", best), ("worst", worst)):
        print(f"The {len(places)} {title} of {len(order)} ranked samples\n")
        for i in places:
            print(textwrap.indent(sample_text(ds[i], len(order), shown.width), "  "), end="\n\n")


TAKES = ("data", DataArguments, TopArguments, RankConfig)
