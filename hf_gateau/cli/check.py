"""`hf-gateau check`: whether rows are read as they are meant."""

from dataclasses import dataclass, field

from ..measuring.config import MeasureConfig
from ..models.config import ModelPairConfig
from ..rows.cutting import TRUNCATION_MODES
from ..settings import check_choice
from .arguments import DataArguments
from .rows import load


@dataclass
class CheckArguments:
    """What to look at."""

    num_samples: int = field(default=3, metadata={"help": "Rows to show.", "aliases": ["-n"]})
    sample_rows: int = field(
        default=2_000,
        metadata={
            "help": "Rows to lay out as tokens, chosen evenly over their lengths; lengths of all others are estimated from "
            "them. All else is told of all rows."
        },
    )
    train_max_length: int | None = field(
        default=None,
        metadata={"help": "max_length of the training to come. Default: max_length."},
    )
    truncation_mode: str = field(
        default="keep_start",
        metadata={
            "help": "How that training cuts longer rows, see GateauSFTConfig: keep_start or keep_end.",
            "choices": list(TRUNCATION_MODES),
        },
    )
    json: bool = field(default=False, metadata={"help": "Print one JSON object with the same instead."})

    def __post_init__(self):
        check_choice("truncation_mode", self.truncation_mode, TRUNCATION_MODES)
        for name in ("sample_rows", "train_max_length"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise ValueError(f"--{name} is a whole number, got {getattr(self, name)}; give 1 or more.")
        if self.num_samples < 0:
            raise ValueError(f"--num_samples is a number of rows, got {self.num_samples}; give 0 or more.")


def command(data: str, rows: DataArguments, how: CheckArguments, pair, measure) -> int:
    """Say what the rows are, before any model loads. Columns and form, how each row is split into context, instruction and
    response, lengths, what cannot be measured or trained on, and what is there twice. Where --long_model or --tokenizer is named,
    the tokenizer is loaded and tokens are counted. Exit status: 0 if all is well; 1 if something is to be looked at (rows that
    cannot be measured or trained on, repeat another, or are cut; a column that is the same in all rows; most rows too short for
    the window or the segments); 2 if no row can be measured, or nothing can be read.

    Example:
        hf-gateau check train.jsonl --long_model Qwen/Qwen3-0.6B --short_window 4096
    """
    import json

    from ..planning.check import check_rows
    from ..planning.check_text import check_text

    settings = {name: value for name, value in vars(how).items() if name != "json"}
    found = check_rows(load(data, rows), pair, measure, **settings)
    print(json.dumps(found) if how.json else check_text(found), flush=True)
    if found["status"] == 2:
        raise ValueError(f"None of the {found['rows']:,} rows of {data!r} can be measured.")
    return found["status"]


TAKES = ("data", DataArguments, CheckArguments, ModelPairConfig, MeasureConfig)
