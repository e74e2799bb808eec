"""Settings of the homologous pair."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, fields
from typing import Any

from ..settings import check_choice, short_repr


PAPER_LONG_MODEL, PAPER_SHORT_MODEL = "THUDM/LongAlign-7B-64k-base", "meta-llama/Llama-2-7b-hf"
PAPER_SHORT_ROPE_SCALE = 200.0
DEFAULT_SHORT_WINDOW = 4096
DTYPES = ("auto", "float32", "bfloat16", "float16")
SHORT_PASSES = ("own", "reuse")


def _parse_mapping(name: str, text: str) -> dict[str, Any]:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"{name}={text!r} is not JSON ({error}); give e.g. '{{\"\": 0}}'.") from error


@dataclass
class ModelPairConfig:
    """The homologous pair: a long-window model and its short-window sibling, from the same pre-training.

    Three kinds of sibling: another checkpoint (`short_model`), the long model with another RoPE base (`short_model=None`,
    `short_rope_scale`), or the long model seeing only the end of the context (`short_model=None`, `short_window`). With
    neither model named the paper's pair is taken; with only `long_model` named, a window, which `window_is_open` says was
    chosen by nobody: 4,096 tokens, unless who has all rows chooses one by their lengths (`measuring.lengths`).

    Raises:
        ValueError: a field is out of range or two fields contradict each other.
    """

    RARELY_GIVEN = (
        "short_pass",
        "long_revision",
        "short_revision",
        "long_adapter",
        "short_adapter",
        "long_adapter_revision",
        "short_adapter_revision",
        "tokenizer",
        "load_in_8bit",
        "load_in_4bit",
        "device_map",
        "attn_implementation",
        "use_fused_attention",
        "use_liger_kernel",
        "trust_remote_code",
        "short_rope_scale",
    )

    long_model: str | None = field(
        default=None,
        metadata={
            "help": "Hub id, folder, .gguf file, or quickstart:long (tiny, comes with the package). Default: the paper's 7B."
        },
    )
    short_model: str | None = field(
        default=None,
        metadata={"help": "Short-window sibling checkpoint; leave out to derive the sibling from the long model."},
    )
    short_window: int | None = field(
        default=None,
        metadata={
            "help": "The short sibling sees only the last this many tokens of context and instruction. Default: by the rows, a "
            "quarter of their median context or less, 4,096 at most. It sees the prompt's opening tokens too. Needs no second "
            "checkpoint; recommended where none exists. The default is a power of two, taken where nothing else sets the siblings "
            "apart; in `Dataset.map`, which sees no more than a batch, it is 4,096."
        },
    )
    short_rope_scale: float | None = field(
        default=None,
        metadata={"help": "Factor on the short sibling's RoPE base; 200 in the paper. Default: its native base."},
    )
    short_pass: str = field(
        default="own",
        metadata={
            "help": "How a windowed sibling reads: 'own', in a pass of its own, or 'reuse', an approximation without one: the "
            "window's keys and values come from the long model's pass, where they have seen what stands before it.",
            "choices": list(SHORT_PASSES),
        },
    )
    long_revision: str | None = field(default=None, metadata={"help": "Branch, tag or commit of the long model."})
    short_revision: str | None = field(default=None, metadata={"help": "Branch, tag or commit of the short model."})
    long_adapter: str | None = field(default=None, metadata={"help": "PEFT adapter put on the long model."})
    short_adapter: str | None = field(default=None, metadata={"help": "PEFT adapter put on the short model."})
    long_adapter_revision: str | None = field(
        default=None, metadata={"help": "Branch, tag or commit of the long model's adapter."}
    )
    short_adapter_revision: str | None = field(
        default=None, metadata={"help": "Branch, tag or commit of the short model's adapter."}
    )
    tokenizer: str | None = field(
        default=None, metadata={"help": "Tokenizer, and with it the chat template. Default: the long model's."}
    )
    dtype: str = field(
        default="auto",
        metadata={
            "help": "Dtype of the weights: 'auto' (the checkpoint's; float32 on a CPU), 'float32', 'bfloat16' or 'float16'.",
            "choices": list(DTYPES),
        },
    )
    load_in_8bit: bool = field(default=False, metadata={"help": "Load both models in 8 bit through bitsandbytes."})
    load_in_4bit: bool = field(default=False, metadata={"help": "Load both models in 4 bit through bitsandbytes."})
    device: str = field(
        default="auto", metadata={"help": "'auto' (a GPU if there is one), 'cpu', 'cuda', 'cuda:1', 'mps', ..."}
    )
    device_map: str | None = field(
        default=None,
        metadata={
            "help": "Spread each model over devices instead, as accelerate does: 'auto', 'balanced', 'sequential', or a "
            "mapping such as {\"model.embed_tokens\": 0, \"model.layers\": 1, ...} (in JSON), also to 'cpu' and 'disk'. "
            "Changes no number. One process measures then."
        },
    )
    attn_implementation: str | None = field(
        default=None,
        metadata={
            "help": "Attention of the passes that collect no weights, e.g. 'flash_attention_2'. Default: SDPA, or the "
            "model's own function in chunks of rows where SDPA cannot serve the architecture."
        },
    )
    use_fused_attention: bool = field(
        default=False,
        metadata={
            "help": "On a GPU compute attention with soft-capped scores, attention sinks or sliding windows by FlexAttention, and the "
            "weights of responses' rows by a kernel that writes none to memory. For models in half precision. Numbers differ by "
            "rounding alone, which is tried when the model is loaded."
        },
    )
    use_liger_kernel: bool = field(
        default=False,
        metadata={
            "help": "Compute norms, rotary embedding and gated MLPs by Liger's kernels on a GPU, where it knows the type of model "
            '(`pip install "hf-gateau[liger]"`). Numbers differ by rounding alone, which is tried when the model is loaded.'
        },
    )
    trust_remote_code: bool = field(
        default=False, metadata={"help": "Run code that a model repository brings along. Off unless you trust it."}
    )

    __repr__ = short_repr

    def __post_init__(self):
        if self.long_model is None and self.short_model is not None:
            raise ValueError(f"short_model={self.short_model!r} came without its sibling; name the long_model too.")
        if self.long_model is None:
            self._long_is_default = True
        if self.long_model is None and self.short_window is None and self.short_rope_scale is None:
            self.long_model, self.short_model = PAPER_LONG_MODEL, PAPER_SHORT_MODEL
            self.short_rope_scale = PAPER_SHORT_ROPE_SCALE
        elif self.long_model is None:
            self.long_model = PAPER_LONG_MODEL
        if self.short_model is None and self.short_window is None and self.short_rope_scale is None:
            self.short_window, self._window_is_open = DEFAULT_SHORT_WINDOW, True
        if self.short_window is not None and self.short_window < 1:
            raise ValueError(f"short_window is a number of tokens, got {self.short_window}; give 1 or more.")
        if self.short_rope_scale is not None and not self.short_rope_scale > 0:
            raise ValueError(f"short_rope_scale is a factor, got {self.short_rope_scale}; give a number above 0.")
        if self.short_model is None and (self.short_revision or self.short_adapter):
            raise ValueError("short_revision and short_adapter belong to a short_model; name it, or leave them out.")
        for name in ("long_adapter", "short_adapter"):
            revision = getattr(self, f"{name}_revision")
            if revision is not None and getattr(self, name) is None:
                raise ValueError(
                    f"{name}_revision={revision!r} came without {name}; name the adapter, or leave it out."
                )
        if self.load_in_4bit and self.load_in_8bit:
            raise ValueError("load_in_4bit and load_in_8bit are both set; choose one.")
        for name in filter(None, (self.long_model, self.short_model)):
            if name.endswith(".gguf") and (self.load_in_4bit or self.load_in_8bit):
                raise ValueError(
                    f"load_in_4bit and load_in_8bit cannot quantise {name!r}, a .gguf file, once more; leave them out, or "
                    "name the model's folder or Hub id."
                )
        if self.device_map is not None and self.device != "auto":
            raise ValueError(
                f"device={self.device!r} and device_map={self.device_map!r} are both set; leave one of them out."
            )
        if isinstance(self.device_map, str) and self.device_map.lstrip().startswith("{"):
            self.device_map = _parse_mapping("device_map", self.device_map)
        check_choice("short_pass", self.short_pass, SHORT_PASSES)
        if self.short_pass == "reuse" and not (self.short_model is None and self.short_rope_scale is None):
            raise ValueError(
                "short_pass='reuse' lets the long model see its last short_window tokens, and here the short sibling is "
                "another model; leave out short_model and short_rope_scale, or take short_pass='own'."
            )
        check_choice("dtype", self.dtype, DTYPES)

    @property
    def long_is_default(self) -> bool:
        """Whether nobody has named a model."""
        return vars(self).get("_long_is_default", False)

    @property
    def window_is_open(self) -> bool:
        """Whether `short_window` is the default, in which the rows have a say."""
        return vars(self).get("_window_is_open", False)

    def given(self) -> dict[str, Any]:
        """The fields to make the same configuration of: all, without a window that is open."""
        found = {x.name: getattr(self, x.name) for x in fields(self)}
        return {name: value for name, value in found.items() if not (name == "short_window" and self.window_is_open)}
