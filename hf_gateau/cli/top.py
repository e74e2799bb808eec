"""`hf-gateau top`: the best and the worst samples in the terminal, and why they are."""

import sys
import textwrap
from dataclasses import dataclass, field

from ..ranking.config import RankConfig
from ..settings import check_choice
from ..shell.colour import is_coloured
from .arguments import DataArguments
from .rows import load_ranked


COLOR = ("auto", "always", "never")


@dataclass
class TopArguments:
    """What to show."""

    num_samples: int = field(default=3, metadata={"help": "How many of the best and of the worst.", "aliases": ["-n"]})
    width: int = field(default=100, metadata={"help": "Characters in a line."})
    color: str = field(
        default="auto",
        metadata={
            "help": "Colour the tokens of responses that need far text: 'auto' does so in a terminal, unless NO_COLOR is set; "
            "where they are not coloured, they stand in brackets.",
            "choices": list(COLOR),
        },
    )

    def __post_init__(self):
        check_choice("color", self.color, COLOR)
        if self.num_samples < 0:
            raise ValueError(f"--num_samples is a number of rows, got {self.num_samples}; give 0 or more.")
        if self.width < 1:
            raise ValueError(f"--width is a number of characters, got {self.width}; give 1 or more.")


def command(data: str, rows: DataArguments, shown: TopArguments, config: RankConfig) -> None:
    """Show what the best rows need, and the best and worst samples. Each with the text of the segments that tell most of its
    response, and marks on the tokens that need them. Rows that are not ranked yet are ranked first.

    Example:
        hf-gateau top ranked.parquet -n 5
    """
    from ..ranking.order import rank_order, ranking_record
    from ..records import find_record
    from ..report.findings import about, finding, glossary
    from ..report.marking import words
    from ..report.ranked_rows import read_ranked
    from ..report.sample_text import marks_legend, sample_text
    from ..report.segments import cut_of
    from ..report.tokens import response_tokens

    ds = load_ranked(data, rows, config)
    print(textwrap.fill(finding(read_ranked(ds, None)), shown.width))
    for name, value in about(ds):
        print(textwrap.fill(f"{name}: {value}", shown.width, subsequent_indent="  "))
    order, cut, record = rank_order(ds["gateau_rank"]), cut_of(find_record(ds, "measuring")), ranking_record(ds)
    best, worst = order[: shown.num_samples], order[max(shown.num_samples, len(order) - shown.num_samples) :]
    has_colours, tokens = is_coloured(shown.color, sys.stdout), []
    for title, places in (("best", best), ("worst", worst)):
        print(f"\nThe {len(places)} {title} of {len(order)} ranked samples\n")
        for row in map(ds.__getitem__, places):
            tokens.append(response_tokens(row, record, cut))
            text = sample_text(row, len(order), shown.width, cut, tokens[-1], has_colours)
            print(textwrap.indent(text, "  "), end="\n\n")
    for name, meaning in (glossary(record) | words(tokens, marks_legend(has_colours))).items():
        print(textwrap.fill(f"{name:<12}{meaning}.", shown.width, subsequent_indent=" " * 12))


TAKES = ("data", DataArguments, TopArguments, RankConfig)
