"""`hf-gateau plan`: what measuring will take."""

from dataclasses import dataclass, field

from ..measuring.config import MeasureConfig
from ..models.config import ModelPairConfig
from ..ranking.config import ScreenConfig
from ..rows.cutting import TRUNCATION_MODES
from ..settings import check_choice
from .arguments import DataArguments
from .rows import check_form, load
from .unnamed import agree_to_unnamed_pair


@dataclass
class PlanArguments:
    """How to plan."""

    RARELY_GIVEN = ("train_max_length", "truncation_mode")

    sample_rows: int = field(
        default=300,
        metadata={
            "help": "Rows to lay out as tokens, chosen evenly over their lengths, the longest included; all others are "
            "estimated from them. As many as there are, or more: nothing is estimated."
        },
    )
    pilot_seconds: float = field(
        default=60.0,
        metadata={
            "help": "About how long a few rows may be measured, or pieces of them where whole rows take too long. What is "
            "longer is extrapolated."
        },
    )
    price_per_hour: float | None = field(
        default=None, metadata={"help": "What one device costs an hour, in any currency."}
    )
    num_devices: int = field(default=1, metadata={"help": "Devices like this one that will share the rows."})
    train_max_length: int | None = field(
        default=None,
        metadata={
            "help": "max_length of the training to come; rows that it would drop are counted. Default: max_length."
        },
    )
    truncation_mode: str = field(
        default="keep_start",
        metadata={
            "help": "How that training cuts longer rows, see GateauSFTConfig: keep_start or keep_end.",
            "choices": list(TRUNCATION_MODES),
        },
    )
    yes: bool = field(
        default=False,
        metadata={"help": "Fetch the paper's models unasked, where none is named."},
    )
    json: bool = field(default=False, metadata={"help": "Print one JSON object with the same numbers instead."})

    def __post_init__(self):
        check_choice("truncation_mode", self.truncation_mode, TRUNCATION_MODES)
        for name in ("sample_rows", "num_devices", "train_max_length"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise ValueError(f"--{name} is a whole number, got {getattr(self, name)}; give 1 or more.")
        if not self.pilot_seconds > 0:
            raise ValueError(f"--pilot_seconds is a time, got {self.pilot_seconds}; give a number above 0.")
        if self.price_per_hour is not None and not self.price_per_hour >= 0:
            raise ValueError(f"--price_per_hour is a price, got {self.price_per_hour}; give 0 or more.")


def command(data: str, rows: DataArguments, how: PlanArguments, pair, measure, ranked: ScreenConfig) -> None:
    """Say what `score` will take, before it is run. Rows and tokens, time of each part, memory, money, and what would be
    cheaper: lays rows out as tokens, leaves out those that the store has, measures a few on this device, and reckons the others
    from the floating-point operations that they need. Nothing that it measures is kept.

    Example:
        hf-gateau plan train.jsonl --long_model Qwen/Qwen3-0.6B \\
            --short_window 4096 --price_per_hour 2.5 --num_devices 8
    """
    import json

    from ..models.device import keep_freed_memory
    from ..planning.plan import make_plan
    from ..planning.plan_text import plan_text
    from ..ranking.screening import check_screening

    check_screening(ranked.ranking(), measure)
    keep_freed_memory()  # as `score` does, whose time is to be told
    settings = {name: value for name, value in vars(how).items() if name not in ("json", "yes")}
    ds = load(data, rows)
    check_form(ds)
    agree_to_unnamed_pair(pair, how.yes)
    planned = make_plan(ds, ModelPairConfig(**pair.given()), measure, alpha=ranked.alpha, **settings)
    print(json.dumps(planned) if how.json else plan_text(planned))


TAKES = ("data", DataArguments, PlanArguments, ModelPairConfig, MeasureConfig, ScreenConfig)
