"""`hf-gateau top`: the best and the worst samples in the terminal, and why they are."""

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
    """Show what the best rows need, and the best and worst samples. Each with the text of the segments that tell most of its
    response. Rows that are not ranked yet are ranked first.

    Example:
        hf-gateau top ranked.parquet -n 5
    """
    from ..ranking.order import rank_order, ranking_record
    from ..records import find_record
    from ..report.findings import about, finding, glossary
    from ..report.ranked_rows import read_ranked
    from ..report.sample_text import sample_text
    from ..report.segments import cut_of

    ds = load_ranked(data, rows, config)
    print(textwrap.fill(finding(read_ranked(ds, None)), shown.width))
    for name, value in about(ds):
        print(textwrap.fill(f"{name}: {value}", shown.width, subsequent_indent="  "))
    order, cut = rank_order(ds["gateau_rank"]), cut_of(find_record(ds, "measuring"))
    best, worst = order[: shown.num_samples], order[max(shown.num_samples, len(order) - shown.num_samples) :]
    for title, places in (("best", best), ("worst", worst)):
        print(f"\nThe {len(places)} {title} of {len(order)} ranked samples\n")
        for i in places:
            print(textwrap.indent(sample_text(ds[i], len(order), shown.width, cut), "  "), end="\n\n")
    for name, meaning in glossary(ranking_record(ds)).items():
        print(textwrap.fill(f"{name:<12}{meaning}.", shown.width, subsequent_indent=" " * 12))


TAKES = ("data", DataArguments, TopArguments, RankConfig)
