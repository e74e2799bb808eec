"""`hf-gateau explore`: all rows in a page of their own."""

from dataclasses import dataclass, field

from ..markdown import is_repo_id
from ..ranking.config import RankConfig
from .arguments import DataArguments
from .rows import load_ranked


@dataclass
class ExploreArguments:
    """Where the page goes, and what it compares with."""

    output: str = field(
        default="explorer",
        metadata={"help": "Folder that the page goes to; open its index.html.", "aliases": ["-o"]},
    )
    title: str | None = field(default=None, metadata={"help": "Heading of the page. Default: the name of the data."})
    compare: str | None = field(
        default=None,
        metadata={
            "help": "The same rows, ranked or measured in another way, to compare with: a file, a folder, or a Hub id."
        },
    )

    push_space: str | None = field(
        default=None,
        metadata={
            "help": "Push the page to the Hub as well, as this static Space, OWNER/NAME; made where it does not exist."
        },
    )
    private: bool = field(default=False, metadata={"help": "Make the Space private, where it does not exist yet."})

    def __post_init__(self):
        if self.push_space is not None and not is_repo_id(self.push_space):
            raise ValueError(f"--push_space {self.push_space!r} is no Space's name; give OWNER/NAME.")
        if self.output.endswith(".html"):
            raise ValueError(f"--output {self.output!r} is a page, and an explorer is a folder; name a folder.")


def command(data: str, rows: DataArguments, page: ExploreArguments, config: RankConfig) -> None:
    """Write all rows as a page to look through and decide on. It opens from the disk, needs no network, and ranks anew as `rank`
    does. Rows that are not ranked yet are ranked first.

    Examples:
        hf-gateau explore ranked.parquet -o explorer
        hf-gateau explore ranked.parquet --push_space me/longalign-explorer
    """
    from pathlib import Path

    from ..files.apart import check_apart
    from ..records import origin_of
    from ..report.explorer import check_folder, write_explorer
    from ..report.provenance import data_name

    check_apart(page.output, data, page.compare)
    check_folder(Path(page.output).expanduser())
    ds = load_ranked(data, rows, config)
    other = None if page.compare is None else load_ranked(page.compare, DataArguments(), RankConfig())
    compared = {"other": other, "other_name": Path(page.compare).name} if page.compare else {}
    title = page.title or f"Scored rows of {data_name(ds)}"
    print(f"{write_explorer(ds, page.output, title=title, **compared)} written; open it in a browser.")
    if page.push_space is not None:
        from ..hub.space import push_explorer

        dataset = (origin_of(ds) or {}).get("repo_id")
        print(
            f"Pushed: {push_explorer(page.output, page.push_space, title=title, dataset=dataset, private=page.private or None)}"
        )


TAKES = ("data", DataArguments, ExploreArguments, RankConfig)
