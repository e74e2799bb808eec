"""Settings of measuring."""

from __future__ import annotations

from dataclasses import dataclass, field

from ..settings import check_choice, short_repr


ON_ERROR = ("skip", "raise")
CAM = ("segments", "heads")


@dataclass
class MeasureConfig:
    """How rows are measured.

    Raises:
        ValueError: a field is out of range.
    """

    RARELY_GIVEN = (
        *("segment_stride", "response_head", "on_error", "batch_tokens"),
        *("cam_rows", "segments_for", "token_nll", "find_context"),
    )

    segment_length: int = field(default=128, metadata={"help": "L, the tokens in a segment of the context (Eq. 3)."})
    segment_stride: int = field(
        default=1,
        metadata={
            "help": "Measure every so-many-th segment, the last included: an approximation that saves most of the segments' time."
        },
    )
    cam: str = field(
        default="segments",
        metadata={
            "help": "What tells which segments matter. 'segments' measures each alone (Eq. 3); 'heads' does so for `cam_rows` "
            "rows, finds the attention heads that tell the same, and asks them alone for all other rows, which need no pass "
            "over segments. Rank such rows with --cas heads.",
            "choices": list(CAM),
        },
    )
    cam_rows: int = field(
        default=100,
        metadata={
            "help": "Rows that heads are chosen by, with cam 'heads'; the store keeps which, and no run chooses anew."
        },
    )
    segments_for: float | None = field(
        default=None,
        metadata={
            "help": "Measure all rows without their segments first, and the segments for this share alone, such as 0.4: the rows "
            "of highest HMP, which can still get into the selection, and a sample of the others. Default: for all."
        },
    )
    response_head: int | None = field(
        default=None,
        metadata={
            "help": "Measure only so many of a response's first tokens: an approximation. Default: all (Eq. 1)."
        },
    )
    token_nll: bool = field(
        default=True,
        metadata={
            "help": "Keep what each token of a response tells too (columns gateau_token_..., some 36 bytes a token), which "
            "the default ranking goes by. It costs no time. Rows measured before there were such columns are measured anew; "
            "'false' takes them as they are, for `--mode mean`."
        },
    )
    max_length: int = field(
        default=65_536,
        metadata={
            "help": "Longest sample in tokens; longer ones lose context from the left. Never more than the long model's "
            "own window."
        },
    )
    batch_tokens: int | None = field(
        default=None,
        metadata={
            "help": "Most tokens in one batch of segments. Default: 1,024 on a CPU; on a GPU by the model's size and the memory "
            "that is left, 65,000 for 7B in half precision."
        },
    )
    find_context: str | None = field(
        default=None,
        metadata={
            "help": "module:function that maps the text of the last user turn to the (start, end) characters of its "
            "context. Default: rules that tell a question before or behind a text; else the last paragraph is the "
            "instruction, what stands before it the context. docs/rows.md lists them."
        },
    )
    store: str | None = field(
        default=None,
        metadata={
            "help": "Database file that keeps every measured row, or, for many machines, a folder on a disk that they share, "
            "with a slash at its end; 'off' for none. Default: $HF_GATEAU_STORE, else gateau/measurements.sqlite under "
            "HF_HOME."
        },
    )
    on_error: str = field(
        default="skip",
        metadata={
            "help": "What a row that cannot be measured does: 'skip' keeps it with the reason in gateau_error, 'raise' stops.",
            "choices": list(ON_ERROR),
        },
    )

    __repr__ = short_repr

    def __post_init__(self):
        if self.segment_length < 1:
            raise ValueError(f"segment_length is a number of tokens, got {self.segment_length}; give 1 or more.")
        if self.segment_stride < 1:
            raise ValueError(
                f"segment_stride is a number of segments, got {self.segment_stride}; give 1 (all) or more."
            )
        if self.response_head is not None and self.response_head < 1:
            raise ValueError(f"response_head is a number of tokens, got {self.response_head}; give 1 or more.")
        if self.max_length < 2:
            raise ValueError(f"max_length is a number of tokens, got {self.max_length}; give 2 or more.")
        if self.batch_tokens is not None and self.batch_tokens < 1:
            raise ValueError(f"batch_tokens is a number of tokens, got {self.batch_tokens}; give 1 or more.")
        check_choice("on_error", self.on_error, ON_ERROR)
        check_choice("cam", self.cam, CAM)
        if self.cam_rows < 1:
            raise ValueError(f"cam_rows is a number of rows, got {self.cam_rows}; give 1 or more.")
        if self.segments_for is not None and not 0.0 < self.segments_for < 1.0:
            raise ValueError(
                f"segments_for is a share of the rows between 0 and 1, got {self.segments_for}; give e.g. 0.4, or leave it out "
                "for all rows."
            )
        if self.segments_for is not None and self.cam == "heads":
            raise ValueError(
                f"segments_for={self.segments_for} says whose segments are measured, and cam='heads' measures none; leave one out."
            )
        if isinstance(self.find_context, str) and self.find_context.count(":") != 1:
            raise ValueError(f"find_context is {self.find_context!r}; name a function as 'package.module:function'.")
