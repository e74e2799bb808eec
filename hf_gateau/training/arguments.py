"""`GateauSFTConfig`: TRL's arguments beside LongAlign's strategies, and those of TRL's that would quietly undo them."""

from __future__ import annotations

from dataclasses import dataclass, field

from trl import SFTConfig

from ..rows.cutting import TRUNCATION_MODES
from ..settings import check_choice
from .config import TrainConfig


WHOLE_DOCUMENTS = ("bfd",)  # packing strategies by which a document is one sequence, that sees itself alone
PACKING_FAULTS = {
    "bfd_split": "cuts a long row into pieces that do not see each other, and count as a sequence each",
    "wrapped": "cuts rows wherever a pack ends, and lets them see each other",
}


@dataclass
class GateauSFTConfig(TrainConfig, SFTConfig):
    """TRL's `SFTConfig` with LongAlign's strategies, and the paper's longest row.

    Raises:
        ValueError: strategies that exclude each other, or that an argument would quietly undo.
    """

    max_length: int | None = field(
        default=65_536,
        metadata={"help": "Longest row in tokens; longer ones are cut as truncation_mode says. None: no limit."},
    )
    truncation_mode: str = field(
        default="keep_start",
        metadata={
            "help": "What is kept of a row longer than max_length. 'keep_start': its first tokens, as in the paper; rows "
            "whose response begins later are left out. 'keep_end': the whole response, and as much of the context as fits, "
            "cut from its left as scoring cuts it; what stands before the context stays.",
            "choices": list(TRUNCATION_MODES),
        },
    )

    def __post_init__(self):
        TrainConfig.__post_init__(self)
        check_choice("truncation_mode", self.truncation_mode, TRUNCATION_MODES)
        mode, self.truncation_mode = (
            self.truncation_mode,
            "keep_start",
        )  # TRL's own 'keep_end' is deprecated, ours is not
        # The name that transformers gives it now; TRL sets the old one.
        if getattr(self, "activation_checkpointing", False) is None:
            self.activation_checkpointing = self.gradient_checkpointing
        SFTConfig.__post_init__(self)
        self.truncation_mode = mode
        if self.hub_token is not None or {"token", "use_auth_token"} & (self.model_init_kwargs or {}).keys():
            raise ValueError(
                "A token among the arguments would be saved in training_args.bin, and pushed. Leave it out: log in with "
                "`hf auth login`, or set HF_TOKEN."
            )
        if self.response_only_loss:
            self.assistant_only_loss = False  # the same with fewer templates
        if self.loss_weighting == "sequence":
            self._check_weighting()
        if self.batching == "sorted":
            self._check_sorting()
        if self.eval_packing and not self.packing:
            raise ValueError(
                "eval_packing=True with packing=False evaluates on packs whose documents see each other; give packing=True "
                "too, or eval_packing=False."
            )

    def _check_weighting(self) -> None:
        if self.loss_type != "nll":
            raise ValueError(
                f"loss_weighting='sequence' weights loss_type='nll', not {self.loss_type!r}; use 'token'."
            )
        if self.label_smoothing_factor:
            raise ValueError("loss_weighting='sequence' knows no label smoothing; use 'token', or smooth nothing.")
        strategy = self.packing_strategy
        if self.packing and strategy not in WHOLE_DOCUMENTS:
            fault = PACKING_FAULTS.get(strategy, "is not known to keep documents whole and apart")
            raise ValueError(
                f"packing_strategy={strategy!r} {fault}, so loss_weighting='sequence' cannot weight them; use "
                "packing_strategy='bfd', or loss_weighting='token'."
            )

    def _check_sorting(self) -> None:
        if self.packing:
            raise ValueError(
                "batching='sorted' and packing exclude each other: packs are all of one length. Choose one."
            )
        if self.train_sampling_strategy != "random":
            raise ValueError(
                f"batching='sorted' and train_sampling_strategy={self.train_sampling_strategy!r} are two orders of the "
                "same rows; give one."
            )
