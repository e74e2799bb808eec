"""`hf-gateau quickstart`: the planted samples, scored and trained on."""

from dataclasses import dataclass, field


@dataclass
class QuickstartArguments:
    """The planted world to score."""

    seed: int | None = field(
        default=None, metadata={"help": "Plant 200 fresh samples from this seed. Default: the set that is shipped."}
    )
    num_rows: int = field(default=200, metadata={"help": "How many samples to plant with --seed."})
    fine_tune: bool = field(
        default=True, metadata={"help": "See what the best tenth teaches, against a random one (a minute more)."}
    )
    output: str = field(
        default="gateau-quickstart",
        metadata={"help": "Folder for the scored samples and the figure.", "aliases": ["-o"]},
    )


def command(arguments: QuickstartArguments) -> None:
    """See GATEAU pick the right samples, and what they teach. Scores 200 planted samples, whose right order is known, with a tiny
    pair of models that ships with the package, and fine-tunes on the best of them, in about two minutes. Needs no network and
    no GPU.

    Example:
        hf-gateau quickstart -o quickstart
    """
    from ..quickstart.demo import run

    run(arguments.output, seed=arguments.seed, num_rows=arguments.num_rows, fine_tune=arguments.fine_tune)


TAKES = (QuickstartArguments,)
