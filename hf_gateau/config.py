"""Settings, one dataclass a stage; the help texts are their documentation, in Python and on the command line.

Names that a table elsewhere gives a meaning to (`RANK_MODES` and the like) are listed here, so that a misspelt one
is refused before any model runs, not after.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from numbers import Integral


PAPER_LONG_MODEL, PAPER_SHORT_MODEL = "THUDM/LongAlign-7B-64k-base", "meta-llama/Llama-2-7b-hf"
PAPER_SHORT_ROPE_SCALE = 200.0
DEFAULT_SHORT_WINDOW = 4096

DTYPES = ("auto", "float32", "bfloat16", "float16")
ON_ERROR = ("skip", "raise")
RANK_METHODS = ("gateau", "perplexity", "ifd", "random", "longest")
RANK_MODES = ("robust", "paper", "released")
HMP_VARIANTS = ("softmax", "minmax", "difference", "log_difference", "rank", "none")
CAS_VARIANTS = ("paper", "raw", "pearson", "spearman", "gain", "gain_far", "gain_distance", "none")
COMBINE_VARIANTS = ("softmax", "released", "rank")


def _check_choice(name: str, value: object, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"{name}={value!r} is not known; use one of {', '.join(map(repr, choices))}.")


@dataclass
class ModelPairConfig:
    """The homologous pair: a long-window model and its short-window sibling, from the same pre-training.

    Three kinds of sibling: another checkpoint (`short_model`), the long model with another RoPE base (`short_model=None`,
    `short_rope_scale`), or the long model seeing only the end of the context (`short_model=None`, `short_window`). With
    neither model named the paper's pair is taken; with only `long_model` named, a window of 4,096 tokens.

    Raises:
        ValueError: a field is out of range or two fields contradict each other.
    """

    long_model: str | None = field(
        default=None,
        metadata={"help": "Long-window model: Hub id, folder, or .gguf file. Default: the paper's, LLaMA-2-7B-64k."},
    )
    short_model: str | None = field(
        default=None,
        metadata={"help": "Short-window sibling checkpoint; leave out to derive the sibling from the long model."},
    )
    short_window: int | None = field(
        default=None,
        metadata={
            "help": "The short sibling sees only the last this many tokens of context and instruction (and the "
            "prompt's opening tokens). Needs no second checkpoint; recommended where none exists."
        },
    )
    short_rope_scale: float | None = field(
        default=None,
        metadata={"help": "Factor on the short sibling's RoPE base; 200 in the paper. Default: its native base."},
    )
    long_revision: str | None = field(default=None, metadata={"help": "Branch, tag or commit of the long model."})
    short_revision: str | None = field(default=None, metadata={"help": "Branch, tag or commit of the short model."})
    long_adapter: str | None = field(default=None, metadata={"help": "PEFT adapter put on the long model."})
    short_adapter: str | None = field(default=None, metadata={"help": "PEFT adapter put on the short model."})
    tokenizer: str | None = field(
        default=None, metadata={"help": "Tokenizer, and with it the chat template. Default: the long model's."}
    )
    dtype: str = field(
        default="auto",
        metadata={
            "help": "Dtype of the weights: 'auto' (the checkpoint's; float32 on a CPU), 'float32', 'bfloat16' or 'float16'.",
        },
    )
    load_in_8bit: bool = field(default=False, metadata={"help": "Load both models in 8 bit through bitsandbytes."})
    load_in_4bit: bool = field(default=False, metadata={"help": "Load both models in 4 bit through bitsandbytes."})
    device: str = field(
        default="auto", metadata={"help": "'auto' (a GPU if there is one), 'cpu', 'cuda', 'cuda:1', 'mps', ..."}
    )
    attn_implementation: str | None = field(
        default=None,
        metadata={
            "help": "Attention of the passes that collect no weights, e.g. 'flash_attention_2'. Default: SDPA, or the "
            "model's own function in chunks of rows where SDPA cannot serve the architecture."
        },
    )
    trust_remote_code: bool = field(
        default=False, metadata={"help": "Run code that a model repository brings along. Off unless you trust it."}
    )

    def __post_init__(self):
        if self.long_model is None and self.short_model is not None:
            raise ValueError(f"short_model={self.short_model!r} came without its sibling; name the long_model too.")
        if self.long_model is None and self.short_window is None and self.short_rope_scale is None:
            self.long_model, self.short_model = PAPER_LONG_MODEL, PAPER_SHORT_MODEL
            self.short_rope_scale = PAPER_SHORT_ROPE_SCALE
        elif self.long_model is None:
            self.long_model = PAPER_LONG_MODEL
        if self.short_model is None and self.short_window is None and self.short_rope_scale is None:
            self.short_window = DEFAULT_SHORT_WINDOW
        if self.short_window is not None and self.short_window < 1:
            raise ValueError(f"short_window is a number of tokens, got {self.short_window}; give 1 or more.")
        if self.short_rope_scale is not None and not self.short_rope_scale > 0:
            raise ValueError(f"short_rope_scale is a factor, got {self.short_rope_scale}; give a number above 0.")
        if self.short_model is None and (self.short_revision or self.short_adapter):
            raise ValueError("short_revision and short_adapter belong to a short_model; name it, or leave them out.")
        if self.load_in_4bit and self.load_in_8bit:
            raise ValueError("load_in_4bit and load_in_8bit are both set; choose one.")
        _check_choice("dtype", self.dtype, DTYPES)


@dataclass
class MeasureConfig:
    """How rows are measured.

    Raises:
        ValueError: a field is out of range.
    """

    segment_length: int = field(default=128, metadata={"help": "L, the tokens in a segment of the context (Eq. 3)."})
    max_length: int = field(
        default=65_536,
        metadata={
            "help": "Longest sample in tokens; longer ones lose context from the left. Never more than the long model's "
            "own window."
        },
    )
    batch_tokens: int | None = field(
        default=None,
        metadata={"help": "Most tokens in one batch of segments. Default: 1,024 on a CPU, 65,536 on a GPU."},
    )
    find_context: str | None = field(
        default=None,
        metadata={
            "help": "module:function that maps the text of the last user turn to the (start, end) characters of its "
            "context. Default: the last paragraph is the instruction, what stands before it the context."
        },
    )
    store: str | None = field(
        default=None,
        metadata={
            "help": "Database file that keeps every measured row, 'off' for none. Default: $HF_GATEAU_STORE, else "
            "gateau/measurements.sqlite under HF_HOME."
        },
    )
    on_error: str = field(
        default="skip",
        metadata={
            "help": "What a row that cannot be measured does: 'skip' keeps it with the reason in gateau_error, 'raise' stops.",
        },
    )

    def __post_init__(self):
        if self.segment_length < 1:
            raise ValueError(f"segment_length is a number of tokens, got {self.segment_length}; give 1 or more.")
        if self.max_length < 2:
            raise ValueError(f"max_length is a number of tokens, got {self.max_length}; give 2 or more.")
        if self.batch_tokens is not None and self.batch_tokens < 1:
            raise ValueError(f"batch_tokens is a number of tokens, got {self.batch_tokens}; give 1 or more.")
        _check_choice("on_error", self.on_error, ON_ERROR)
        if isinstance(self.find_context, str) and self.find_context.count(":") != 1:
            raise ValueError(f"find_context is {self.find_context!r}; name a function as 'package.module:function'.")


@dataclass
class RankConfig:
    """How measured rows are put in order (Eqs. 2-6 of arXiv 2410.15633, and the baselines)."""

    method: str = field(
        default="gateau",
        metadata={
            "help": "What to rank by: 'gateau' (Eq. 6), 'perplexity' (highest long-model perplexity first), 'ifd' "
            "(perplexity with the context over perplexity without, highest first), 'longest' or 'random'."
        },
    )
    mode: str = field(
        default="robust",
        metadata={
            "help": "Named settings of method 'gateau': 'robust' (log-perplexity difference, combined on ranks), "
            "'paper' (the equations to the letter) or 'released' (the public code)."
        },
    )
    alpha: float = field(
        default=0.8,
        metadata={
            "help": "Weight of HMP in Eq. 6, from 0 to 1; CAS has 1 - alpha. The paper takes 0.8 with all the short "
            "data mixed in and 0.7 with the first tenth of it."
        },
    )
    hmp: str | None = field(
        default=None,
        metadata={"help": f"HMP variant instead of the mode's: {', '.join(HMP_VARIANTS)} ('none': without HMG)."},
    )
    cas: str | None = field(
        default=None,
        metadata={"help": f"CAS variant instead of the mode's: {', '.join(CAS_VARIANTS)} ('none': without CAM)."},
    )
    combine: str | None = field(
        default=None,
        metadata={"help": f"How HMP and CAS are combined, instead of the mode's way: {', '.join(COMBINE_VARIANTS)}."},
    )
    # Not `seed`: transformers' TrainingArguments has one, and one parser cannot hold two options of a name.
    rank_seed: int = field(default=0, metadata={"help": "Seed of method 'random' (the argument `seed` of `rank`)."})

    def __post_init__(self):
        _check_choice("method", self.method, RANK_METHODS)
        _check_choice("mode", self.mode, RANK_MODES)
        for name, choices in (("hmp", HMP_VARIANTS), ("cas", CAS_VARIANTS), ("combine", COMBINE_VARIANTS)):
            if getattr(self, name) is not None:
                _check_choice(name, getattr(self, name), choices)
        if not 0.0 <= self.alpha <= 1.0:  # refuses NaN too
            raise ValueError(f"alpha={self.alpha!r} is not between 0 and 1; use e.g. 0.8, the paper's value.")
        if self.hmp == "none" and self.cas == "none":
            raise ValueError("hmp='none' with cas='none' leaves nothing to rank by; keep one of the two terms.")
        if not isinstance(self.rank_seed, Integral):
            raise ValueError(f"The seed must be a whole number, got {self.rank_seed!r}; use e.g. 0.")
