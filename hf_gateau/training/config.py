"""Settings of LongAlign's training (arXiv 2401.18058)."""

from __future__ import annotations

from dataclasses import dataclass, field

from ..settings import check_choice, short_repr


LOSS_WEIGHTINGS = ("sequence", "token")
BATCHINGS = ("random", "sorted")


@dataclass
class TrainConfig:
    """LongAlign's training strategies (arXiv 2401.18058), on top of TRL's `SFTConfig`.

    Raises:
        ValueError: an unknown name.
    """

    loss_weighting: str = field(
        default="sequence",
        metadata={
            "help": "'sequence': every sequence of an optimiser step counts the same, whatever its number of target tokens "
            "(LongAlign's loss weighting, exact under packing, accumulation and several ranks, and in evaluations); 'token': "
            "TRL's mean over all target tokens, which favours long answers.",
            "choices": list(LOSS_WEIGHTINGS),
        },
    )
    batching: str = field(
        default="random",
        metadata={
            "help": "'sorted': batches of rows of similar length, in random order (LongAlign's sorted batching: less "
            "padding, less waiting between ranks); 'random': as TRL does.",
            "choices": list(BATCHINGS),
        },
    )
    response_only_loss: bool = field(
        default=True,
        metadata={
            "help": "Put loss on the assistant's turns alone, with any chat template; False leaves it to TRL's "
            "assistant_only_loss and completion_only_loss."
        },
    )

    __repr__ = short_repr

    def __post_init__(self):
        check_choice("loss_weighting", self.loss_weighting, LOSS_WEIGHTINGS)
        check_choice("batching", self.batching, BATCHINGS)
