"""`hf-gateau compare`: two rankings of the same rows, or two measurings of them, side by side."""

from dataclasses import dataclass, field

from ..ranking.config import RankConfig
from .arguments import DataArguments
from .rows import load_ranked


@dataclass
class CompareArguments:
    """What is shown, and where the numbers go."""

    output: str | None = field(
        default=None, metadata={"help": "Where the numbers go too: a .json file.", "aliases": ["-o", "--json"]}
    )
    num_rows: int = field(default=10, metadata={"help": "How many of the rows that disagree most.", "aliases": ["-n"]})
    width: int = field(default=100, metadata={"help": "Characters in a line."})

    def __post_init__(self):
        if self.output is not None and not self.output.endswith(".json"):
            raise ValueError(f"--output {self.output!r} is for numbers; give a name that ends in .json.")
        if self.num_rows < 0:
            raise ValueError(f"--num_rows is a number of rows, got {self.num_rows}; give 0 or more.")


def command(data: str, other: str, rows: DataArguments, shown: CompareArguments, config: RankConfig) -> None:
    """Compare two rankings of the same rows. How far the order moved, how much of the best both keep, in which settings they
    differ, and which rows disagree most. `hf-gateau rank` with other settings and another --output makes a second ranking.
    Rows are the same that say the same, so two measurings can be compared too: by another pair, another window. Rows that are
    not ranked yet are ranked first; a setting of ranking, such as --mode, ranks both.

    Examples:
        hf-gateau compare ranked.parquet paper.parquet
        hf-gateau compare window-4k.parquet window-8k.parquet -n 20 -o both.json
    """
    import json
    from pathlib import Path

    from ..files.apart import check_apart
    from ..report.comparison import compare
    from ..report.comparison_text import comparison_text

    check_apart(shown.output, data, other)
    a, b = (load_ranked(x, rows, config) for x in (data, other))
    found = compare(a, b, names=(data, other), num_rows=shown.num_rows)
    print(comparison_text(found, shown.width))
    if shown.output is not None:
        text = json.dumps(found.to_dict(), indent=2, ensure_ascii=False) + "\n"
        path = Path(shown.output).expanduser()
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        print(f"\n{shown.output} written.")


TAKES = ("data", "other", DataArguments, CompareArguments, RankConfig)
