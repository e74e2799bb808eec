"""`hf-gateau report`: figures and samples on one page."""

from dataclasses import dataclass, field

from ..ranking.config import RankConfig
from .arguments import DataArguments
from .rows import load_ranked


@dataclass
class ReportArguments:
    """What goes on the page."""

    output: str = field(metadata={"help": "Where the page goes: a .html file.", "aliases": ["-o"]})
    source_column: str | None = field(
        default=None,
        metadata={
            "help": "Column that says where a row is from. Default: source, dataset, kind or category, if there."
        },
    )
    num_samples: int = field(default=3, metadata={"help": "How many of the best and of the worst.", "aliases": ["-n"]})
    explorer: str | None = field(
        default=None,
        metadata={
            "help": "Where the explorer of these rows is (`hf-gateau explore`), to link to: a path, or an https:// address."
        },
    )
    figures: str | None = field(default=None, metadata={"help": "Folder that every figure goes to as well, as a PNG."})

    def __post_init__(self):
        if not self.output.endswith(".html"):
            raise ValueError(f"--output {self.output!r} is a page; give a name that ends in .html.")
        if self.num_samples < 0:
            raise ValueError(f"--num_samples is a number of rows, got {self.num_samples}; give 0 or more.")


def command(data: str, rows: DataArguments, page: ReportArguments, config: RankConfig) -> None:
    """Write figures and samples as one page that needs no network. Rows that are not ranked yet are ranked first.

    Example:
        hf-gateau report ranked.parquet -o report.html
    """
    from ..files.apart import check_apart
    from ..report.figures import write_figures
    from ..report.page import write_report

    check_apart(page.output, data)
    check_apart(page.figures, data, page.output, name="--figures")
    ds = load_ranked(data, rows, config)
    settings = {"source_column": page.source_column}
    print(
        f"{write_report(ds, page.output, num_samples=page.num_samples, explorer=page.explorer, **settings)} written."
    )
    for path in write_figures(ds, page.figures, **settings) if page.figures else ():
        print(f"{path} written.")


TAKES = ("data", DataArguments, ReportArguments, RankConfig)
