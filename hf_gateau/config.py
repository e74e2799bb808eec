"""Settings, one dataclass a stage; the help texts are their documentation, in Python and on the command line.

Names that a table elsewhere gives a meaning to (`RANK_MODES` and the like) are listed here, so that a misspelt one
is refused before any model runs, not after.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from numbers import Integral
from typing import Any


PAPER_LONG_MODEL, PAPER_SHORT_MODEL = "THUDM/LongAlign-7B-64k-base", "meta-llama/Llama-2-7b-hf"
PAPER_SHORT_ROPE_SCALE = 200.0
DEFAULT_SHORT_WINDOW = 4096

DTYPES = ("auto", "float32", "bfloat16", "float16")
ON_ERROR = ("skip", "raise")
SHORT_PASSES = ("own", "reuse")
# GATEAU without one of its parts -> the part, and what stands in its place
ABLATIONS = {
    "without_hmg": ("hmp", "none"),
    "without_cam": ("cas", "none"),
    "without_norm": ("hmp", "difference"),
}
BASELINES = ("perplexity", "ifd", "ifd_context", "car", "random", "longest", "full", "no_long")
RANK_METHODS = ("gateau", *ABLATIONS, *BASELINES)
RANK_MODES = ("robust", "paper", "released")
HMP_VARIANTS = ("softmax", "minmax", "difference", "log_difference", "rank", "none")
CAS_VARIANTS = ("paper", "raw", "pearson", "spearman", "gain", "gain_far", "gain_distance", "none")
COMBINE_VARIANTS = ("softmax", "released", "rank")
LOSS_WEIGHTINGS = ("sequence", "token")
BATCHINGS = ("random", "sorted")
PAPER_FRACTION = 0.1


def _check_choice(name: str, value: object, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"{name}={value!r} is not known; use one of {', '.join(map(repr, choices))}.")


def _check_belongings(config: Any, owner: str, what: str) -> None:
    """Refuse settings without the one that they belong to."""
    settings = [name for name in set_fields(config) if name != owner]
    if getattr(config, owner) is None and settings:
        raise ValueError(f"{' and '.join(settings)} came without {owner}; name {what}, or leave them out.")


def _parse_mapping(name: str, text: str) -> dict[str, Any]:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"{name}={text!r} is not JSON ({error}); give e.g. '{{\"\": 0}}'.") from error


def json_object(name: str, text: str | None, example: str) -> dict[str, Any]:
    """A setting that is written as a JSON object; empty for None.

    Raises:
        ValueError: it is none.
    """
    try:
        found = json.loads(text or "{}")
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise ValueError(f"{name} must be a JSON object, got {text!r}; give e.g. {example!r}.")
    return found


def did_you_mean(name: object, known: Iterable[str], otherwise: str = "") -> str:
    """The end of a message about an unknown name: the nearest known one, if there is one near."""
    near = difflib.get_close_matches(str(name), list(known), 1)
    return f"; did you mean {near[0]!r}?" if near else otherwise


def set_fields(config: Any) -> dict[str, Any]:
    """The fields of a configuration that are not None."""
    return {name: value for name, value in vars(config).items() if value is not None}


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
    short_pass: str = field(
        default="own",
        metadata={
            "help": "How a windowed sibling reads: 'own', in a pass of its own, or 'reuse', an approximation without one: the "
            "window's keys and values come from the long model's pass, where they have seen what stands before it.",
        },
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
        _check_choice("short_pass", self.short_pass, SHORT_PASSES)
        if self.short_pass == "reuse" and not (self.short_model is None and self.short_rope_scale is None):
            raise ValueError(
                "short_pass='reuse' lets the long model see its last short_window tokens, and here the short sibling is "
                "another model; leave out short_model and short_rope_scale, or take short_pass='own'."
            )
        _check_choice("dtype", self.dtype, DTYPES)


@dataclass
class MeasureConfig:
    """How rows are measured.

    Raises:
        ValueError: a field is out of range.
    """

    segment_length: int = field(default=128, metadata={"help": "L, the tokens in a segment of the context (Eq. 3)."})
    segment_stride: int = field(
        default=1,
        metadata={
            "help": "Measure every so-many-th segment, the last included: an approximation that saves most of the segments' time."
        },
    )
    response_head: int | None = field(
        default=None,
        metadata={
            "help": "Measure only so many of a response's first tokens: an approximation. Default: all (Eq. 1)."
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
            "help": "Database file that keeps every measured row, or, for many machines, a folder on a disk that they share, "
            "with a slash at its end; 'off' for none. Default: $HF_GATEAU_STORE, else gateau/measurements.sqlite under "
            "HF_HOME."
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
        _check_choice("on_error", self.on_error, ON_ERROR)
        if isinstance(self.find_context, str) and self.find_context.count(":") != 1:
            raise ValueError(f"find_context is {self.find_context!r}; name a function as 'package.module:function'.")


@dataclass
class ScoredConfig:
    """Rows that were measured before, and pushed with `push_scored`.

    Raises:
        ValueError: a setting without the dataset that it belongs to.
    """

    scored_dataset: str | None = field(
        default=None,
        metadata={
            "help": "Hub id of rows scored before, whose measurements are taken; rows of the data that are new to it are "
            "measured alone. Without other data, its rows are the data."
        },
    )
    scored_revision: str | None = field(
        default=None, metadata={"help": "Branch, tag or commit of scored_dataset. Default: main."}
    )
    scored_split: str | None = field(
        default=None, metadata={"help": "Split of scored_dataset. Default: train, or the only one."}
    )

    def __post_init__(self):
        _check_belongings(self, "scored_dataset", "it")


@dataclass
class RankConfig:
    """How measured rows are put in order (Eqs. 2-6 of arXiv 2410.15633, and the baselines)."""

    method: str = field(
        default="gateau",
        metadata={
            "help": "What to rank by: 'gateau' (Eq. 6) or it 'without_hmg', 'without_cam' or 'without_norm'; 'perplexity' "
            "(highest long-model perplexity first); 'ifd' (Cherry Selection: perplexity of the response after its prompt over "
            "that of the response alone, highest first); 'ifd_context' (with the context over without it); 'car' (the best "
            "reward of each cluster, then by reward); 'longest'; 'random'; 'full' (every row, as they come); 'no_long' (none)."
        },
    )
    mode: str = field(
        default="robust",
        metadata={
            "help": "Named settings of GATEAU and its ablations: 'robust' (log-perplexity difference, combined on ranks), "
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
    rank_seed: int = field(
        default=0, metadata={"help": "Seed of methods 'random' and 'car' (the argument `seed` of `rank`)."}
    )
    ifd_below_one: bool = field(
        default=False,
        metadata={
            "help": "Methods 'ifd' and 'ifd_context' give no rank to rows of 1 or more, whose prompt does not help: so does "
            "the original."
        },
    )
    reward_column: str = field(
        default="gateau_reward", metadata={"help": "Method 'car': the column of rewards, high is good."}
    )
    car_clusters: int | None = field(
        default=None,
        metadata={"help": "Method 'car': clusters, k. Default: the root of half the number of rows, as in CaR."},
    )
    car_per_cluster: int = field(
        default=1, metadata={"help": "Method 'car': rows that come first of each cluster, n2 of the paper."}
    )
    car_best: int = field(
        default=1000,
        metadata={
            "help": "Method 'car': n1 of the paper, rows of highest reward that it adds. It changes no rank: the ranking's "
            "record says how many rows n1 and n2 make together, for --top_k."
        },
    )

    def __post_init__(self):
        _check_choice("method", self.method, RANK_METHODS)
        _check_choice("mode", self.mode, RANK_MODES)
        for name, choices in (("hmp", HMP_VARIANTS), ("cas", CAS_VARIANTS), ("combine", COMBINE_VARIANTS)):
            if getattr(self, name) is not None:
                _check_choice(name, getattr(self, name), choices)
        if not 0.0 <= self.alpha <= 1.0:  # refuses NaN too
            raise ValueError(f"alpha={self.alpha!r} is not between 0 and 1; use e.g. 0.8, the paper's value.")
        part, instead = ABLATIONS.get(self.method, (None, None))
        if part is not None and getattr(self, part) not in (None, instead):
            raise ValueError(
                f"method={self.method!r} is {part}={instead!r}, and {part}={getattr(self, part)!r} is given too; leave it out."
            )
        left = {"hmp": self.hmp, "cas": self.cas} | ({part: instead} if part is not None else {})
        if left["hmp"] == "none" and left["cas"] == "none":
            raise ValueError("hmp='none' with cas='none' leaves nothing to rank by; keep one of the two terms.")
        if not isinstance(self.rank_seed, Integral):
            raise ValueError(f"The seed must be a whole number, got {self.rank_seed!r}; use e.g. 0.")
        for name in ("car_clusters", "car_per_cluster", "car_best"):
            value, least = getattr(self, name), 0 if name == "car_best" else 1
            if value is not None and not (isinstance(value, Integral) and value >= least):
                raise ValueError(f"{name}={value!r} is not a whole number of {least} or more.")

    def arguments(self) -> dict[str, Any]:
        """The same as arguments of `rank`, where the seed has its short name."""
        return {"seed" if name == "rank_seed" else name: value for name, value in vars(self).items()}


@dataclass
class MethodModelsConfig:
    """Models that some methods need beside the pair, for columns that the data do not have.

    Raises:
        ValueError: a setting without the model that it belongs to.
    """

    reward_model: str | None = field(
        default=None,
        metadata={"help": "Method 'car': reward model, a sequence classifier of one label. Hub id or folder."},
    )
    reward_revision: str | None = field(default=None, metadata={"help": "Branch, tag or commit of the reward model."})
    reward_max_length: int | None = field(
        default=None,
        metadata={
            "help": "Longest conversation that the reward model is given, in tokens; longer ones lose context from the left. "
            "Default: what it was made for."
        },
    )
    embedding_model: str | None = field(
        default=None, metadata={"help": "Method 'car': sentence-transformers model. Hub id or folder."}
    )
    embedding_revision: str | None = field(
        default=None, metadata={"help": "Branch, tag or commit of the embedding model."}
    )
    embed_context: bool = field(
        default=False,
        metadata={
            "help": "Put the context between instruction and response, for an embedding model that sees it all."
        },
    )
    response_model: str | None = field(
        default=None,
        metadata={
            "help": "Method 'ifd': the long model, which measures the response alone. Default: the one that measured the "
            "rows, by their record."
        },
    )
    response_revision: str | None = field(
        default=None, metadata={"help": "Branch, tag or commit of the response model."}
    )
    length_model: str | None = field(
        default=None,
        metadata={
            "help": "Method 'longest': model whose tokenizer rows are counted with that are not measured. No weights are loaded. "
            "Default: the long model, where there is one."
        },
    )

    def __post_init__(self):
        for model in ("reward_model", "embedding_model", "response_model"):
            if (
                getattr(self, model) is None
                and getattr(self, revision := f"{model.split('_')[0]}_revision") is not None
            ):
                raise ValueError(f"{revision} came without {model}; name the model, or leave it out.")
        if self.reward_max_length is not None and self.reward_max_length < 2:
            raise ValueError(f"reward_max_length is a number of tokens, got {self.reward_max_length}; give 2 or more.")


def _like(config: type, name: str) -> Any:
    """A field with the default and the help of another dataclass's."""
    other = config.__dataclass_fields__[name]
    return field(default=other.default, metadata=dict(other.metadata))


@dataclass
class RunConfig:
    """How models are run that measure columns for a method: fields of `ModelPairConfig` and `MeasureConfig`."""

    dtype: str = _like(ModelPairConfig, "dtype")
    device: str = _like(ModelPairConfig, "device")
    trust_remote_code: bool = _like(ModelPairConfig, "trust_remote_code")
    batch_tokens: int | None = _like(MeasureConfig, "batch_tokens")
    find_context: str | None = _like(MeasureConfig, "find_context")
    store: str | None = _like(MeasureConfig, "store")

    def __post_init__(self):
        _check_choice("dtype", self.dtype, DTYPES)
        MeasureConfig(batch_tokens=self.batch_tokens, find_context=self.find_context)


@dataclass
class SelectConfig:
    """Which ranked rows are kept. Exactly one of `fraction`, `top_k`, `min_score`, `max_tokens`; where none is given a fraction
    of 0.1, as in the paper, or all rows if they were ranked by method 'full'.

    Raises:
        ValueError: a field is out of range, or two fields contradict each other.
    """

    fraction: float | None = field(
        default=None,
        metadata={
            "help": "Keep this share of the ranked rows, the best. Default: 0.1 (of method 'full': 1), unless another is given."
        },
    )
    top_k: int | None = field(default=None, metadata={"help": "Keep this many of the best rows."})
    min_score: float | None = field(
        default=None, metadata={"help": "Keep the rows whose gateau_score is at least this. Works on streams too."}
    )
    max_tokens: int | None = field(
        default=None, metadata={"help": "Keep the best rows as long as they have at most this many tokens together."}
    )
    strata: str | None = field(
        default=None,
        metadata={
            "help": "Column whose values (or ranges of values, where it holds many numbers: powers of two, or "
            "strata_edges) form strata that each get a share, such as 'length'."
        },
    )
    strata_edges: list[float] | None = field(
        default=None, metadata={"help": "Where a stratum of a numeric column ends and the next begins, ascending."}
    )
    min_share: float | None = field(
        default=None,
        metadata={
            "help": "Each stratum keeps at least this share of its own ranked rows, its best; the best of all others fill "
            "up. Default: the share that is kept of all rows, which makes every stratum's share equal."
        },
    )

    def __post_init__(self):
        limits = {name: getattr(self, name) for name in ("fraction", "top_k", "min_score", "max_tokens")}
        given = [name for name, value in limits.items() if value is not None]
        if len(given) > 1:
            raise ValueError(f"{' and '.join(given)} are all given; choose one of {', '.join(limits)}.")
        if self.fraction is not None and not 0.0 < self.fraction <= 1.0:
            raise ValueError(f"fraction={self.fraction!r} is not above 0 and at most 1; use e.g. 0.1, the best tenth.")
        for name in ("top_k", "max_tokens"):
            if limits[name] is not None and (not isinstance(limits[name], Integral) or limits[name] < 1):
                raise ValueError(f"{name}={limits[name]!r} is not a whole number of 1 or more.")
            if limits[name] is not None:
                setattr(self, name, int(limits[name]))  # numpy's whole numbers cannot be written as JSON
        if self.min_score is not None and self.min_score != self.min_score:
            raise ValueError("min_score is NaN; give a number.")
        if self.strata is None and (self.strata_edges is not None or self.min_share is not None):
            raise ValueError("strata_edges and min_share belong to strata; name the column, e.g. strata='length'.")
        edges = None if self.strata_edges is None else list(self.strata_edges)
        if edges is not None and (not edges or edges != sorted(set(edges))):
            raise ValueError(f"strata_edges={self.strata_edges!r} is not ascending; give e.g. [8192, 16384, 32768].")
        if self.min_share is not None and not 0.0 <= self.min_share <= 1.0:
            raise ValueError(f"min_share={self.min_share!r} is not between 0 and 1; use e.g. 0.05.")
        if self.strata is not None and self.min_share is None and given and not {"fraction", "top_k"} & set(given):
            raise ValueError("With min_score or max_tokens, strata need a min_share; give e.g. min_share=0.05.")

    def resolved(self, method: str | None) -> SelectConfig:
        """The same with the default limit in its place, for rows that were ranked by a method (None: not known)."""
        if any(getattr(self, name) is not None for name in ("fraction", "top_k", "min_score", "max_tokens")):
            return self
        return replace(self, fraction=1.0 if method == "full" else PAPER_FRACTION)


@dataclass
class MixConfig:
    """Short instruction data that the selected rows are mixed with.

    Raises:
        ValueError: a field is out of range, or two fields contradict each other.
    """

    short_data: str | None = field(
        default=None,
        metadata={
            "help": "Short instruction data to mix in: a .jsonl or .parquet file, a folder, or a Hub id, with `messages` or "
            "ShareGPT's `conversations`."
        },
    )
    short_name: str | None = field(default=None, metadata={"help": "Configuration of short_data on the Hub."})
    short_data_file: str | None = field(
        default=None, metadata={"help": "File in the repository of short_data, where it has no configurations."}
    )
    short_split: str | None = field(
        default=None, metadata={"help": "Split of short_data. Default: train, or the only one."}
    )
    short_data_revision: str | None = field(
        default=None, metadata={"help": "Branch, tag or commit of short_data on the Hub."}
    )
    short_fraction: float | None = field(
        default=None,
        metadata={
            "help": "Take the first part of the short rows, this share: 1 (the default) is the paper's real-world setting, "
            "0.1 its limited one."
        },
    )
    short_token_share: float | None = field(
        default=None,
        metadata={"help": "Take short rows from the first on until they hold this share of all training tokens."},
    )

    def __post_init__(self):
        _check_belongings(self, "short_data", "the data")
        if self.short_fraction is not None and self.short_token_share is not None:
            raise ValueError("short_fraction and short_token_share are both given; choose one.")
        if self.short_fraction is not None and not 0.0 < self.short_fraction <= 1.0:
            raise ValueError(f"short_fraction={self.short_fraction!r} is not above 0 and at most 1; use e.g. 0.1.")
        if self.short_token_share is not None and not 0.0 < self.short_token_share < 1.0:
            raise ValueError(f"short_token_share={self.short_token_share!r} is not between 0 and 1; use e.g. 0.3.")


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
            "(LongAlign's loss weighting, exact under packing, accumulation and several ranks); 'token': TRL's mean over "
            "all target tokens, which favours long answers."
        },
    )
    batching: str = field(
        default="random",
        metadata={
            "help": "'sorted': batches of rows of similar length, in random order (LongAlign's sorted batching: less "
            "padding, less waiting between ranks); 'random': as TRL does."
        },
    )
    response_only_loss: bool = field(
        default=True,
        metadata={
            "help": "Put loss on the assistant's turns alone, with any chat template; False leaves it to TRL's "
            "assistant_only_loss and completion_only_loss."
        },
    )

    def __post_init__(self):
        _check_choice("loss_weighting", self.loss_weighting, LOSS_WEIGHTINGS)
        _check_choice("batching", self.batching, BATCHINGS)
