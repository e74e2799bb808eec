"""`hf-gateau push`: measured rows to the Hub."""

from dataclasses import dataclass, field

from ..ranking.config import RankConfig
from .arguments import DataArguments
from .rows import load_ranked


@dataclass
class PushArguments:
    """What is pushed, and how."""

    fractions: list[float] = field(
        default_factory=lambda: [0.1, 0.3, 0.5],
        metadata={"help": "Shares of the best rows that become configurations to train on: 0.1 becomes top10."},
    )
    decisions: str | None = field(
        default=None,
        metadata={"help": "A .csv file of rows that a person keeps or drops, as in select, for these configurations."},
    )
    source: str | None = field(
        default=None, metadata={"help": "Hub id of the data that were scored. Default: what the rows know of it."}
    )
    license: str | None = field(
        default=None, metadata={"help": "Licence identifier. Default: what the source's card says, if it says one."}
    )
    explorer: str | None = field(
        default=None,
        metadata={
            "help": "Space with the explorer of these rows (`hf-gateau explore --push_space`), for the card to link to."
        },
    )
    private: bool = field(
        default=False, metadata={"help": "Make the repository private, where it does not exist yet."}
    )
    branch: str | None = field(default=None, metadata={"help": "Branch to push to. Default: main."})
    create_pr: bool = field(default=False, metadata={"help": "Open a pull request instead."})


def command(data: str, repo_id: str, rows: DataArguments, what: PushArguments, config: RankConfig) -> None:
    """Push measured rows to the Hub. All of them and the best of them, with a card that says how they were scored. Rows that
    are not ranked yet are ranked first. A push that was cut off changes nothing; give it again.

    Example:
        hf-gateau push ranked.parquet me/LongAlign-10k-gateau
    """
    from ..hub.push import push_scored
    from ..rows.cuts import Cuts

    ds = load_ranked(data, rows, config)
    configs = {f"top{100 * x:g}": {"fraction": x, "decisions": what.decisions} for x in what.fractions}
    settings = {
        "source": what.source,
        "license": what.license,
        "explorer": what.explorer,
        "revision": what.branch,
        "create_pr": what.create_pr,
    }
    if cut := Cuts.of_data(ds):
        print(cut.line())
    print(f"Pushed: {push_scored(ds, repo_id, configs, private=what.private or None, **settings)}")


TAKES = ("data", "repo_id", DataArguments, PushArguments, RankConfig)
