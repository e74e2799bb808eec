"""Settings of ranking, of the models that some methods need, of selecting and of mixing.

Names that a table of `formulas` gives a meaning to are listed here, so that a misspelt one is refused before any model runs.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field, replace
from numbers import Integral
from typing import Any

from ..measuring.config import MeasureConfig
from ..models.config import DTYPES, ModelPairConfig
from ..settings import check_belongings, check_choice, short_repr


# GATEAU without one of its parts -> the part, and what stands in its place
ABLATIONS = {
    "without_hmg": ("hmp", "none"),
    "without_cam": ("cas", "none"),
    "without_norm": ("hmp", "difference"),
}

BASELINES = (
    "perplexity",
    "ifd",
    "ifd_context",
    "longfilter",
    "key_tokens",
    "ladm",
    "car",
    "random",
    "longest",
    "full",
    "no_long",
)
RANK_METHODS = ("gateau", *ABLATIONS, *BASELINES)
RANK_MODES = ("robust", "mean", "paper", "released")
HMP_VARIANTS = (
    *("softmax", "minmax", "difference", "log_difference", "rank"),
    *("need", "need_mean", "need_tokens", "key_tokens", "longfilter", "none"),
)
CAS_VARIANTS = (
    *("paper", "raw", "pearson", "spearman", "gain", "gain_far", "gain_distance"),
    *("far_need", "far_tokens", "places", "heads", "none"),
)
COMBINE_VARIANTS = ("softmax", "released", "rank")
PAPER_FRACTION = 0.1


@dataclass
class RankConfig:
    """How measured rows are put in order (Eqs. 2-6 of arXiv 2410.15633, and the baselines)."""

    RARELY_GIVEN = (
        "hmp",
        "cas",
        "combine",
        "ifd_below_one",
        "reward_column",
        "car_clusters",
        "car_per_cluster",
        "car_best",
    )

    method: str = field(
        default="gateau",
        metadata={
            "help": "Method to rank by. 'gateau' (Eq. 6) or it 'without_hmg', 'without_cam' or 'without_norm'; 'perplexity' "
            "(highest long-model perplexity first); 'ifd' (Cherry Selection: perplexity of the response after its prompt over "
            "that of the response alone, highest first); 'ifd_context' (with the context over without it); 'longfilter', "
            "'key_tokens' (LongPPL's) and 'ladm', other measures of long-range need; 'car' (the best "
            "reward of each cluster, then by reward); 'longest'; 'random'; 'full' (every row, as they come); 'no_long' (none).",
            "choices": list(RANK_METHODS),
        },
    )
    mode: str = field(
        default="robust",
        metadata={
            "help": "Named settings of GATEAU and its ablations. 'robust' (about how many of the response's tokens only far "
            "context lets the model foresee, combined on ranks), 'mean' (log-perplexity difference and the best far segment, "
            "combined on ranks: how much a token needs it, for rows measured without columns of tokens), 'paper' (the equations "
            "to the letter) or 'released' (the public code).",
            "choices": list(RANK_MODES),
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
        metadata={
            "help": f"HMP variant instead of the mode's: {', '.join(HMP_VARIANTS)} ('none': without HMG).",
            "choices": list(HMP_VARIANTS),
        },
    )
    cas: str | None = field(
        default=None,
        metadata={
            "help": f"CAS variant instead of the mode's: {', '.join(CAS_VARIANTS)} ('none': without CAM).",
            "choices": list(CAS_VARIANTS),
        },
    )
    combine: str | None = field(
        default=None,
        metadata={
            "help": f"How HMP and CAS are combined, instead of the mode's way: {', '.join(COMBINE_VARIANTS)}.",
            "choices": list(COMBINE_VARIANTS),
        },
    )
    tau: float = field(
        default=0.5,
        metadata={
            "help": "What a token must gain from far context to count, in nats: less is noise between two models. Of 'need', "
            "'need_mean', 'far_need' and 'places'."
        },
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

    __repr__ = short_repr

    def __post_init__(self):
        check_choice("method", self.method, RANK_METHODS)
        check_choice("mode", self.mode, RANK_MODES)
        for name, choices in (("hmp", HMP_VARIANTS), ("cas", CAS_VARIANTS), ("combine", COMBINE_VARIANTS)):
            if getattr(self, name) is not None:
                check_choice(name, getattr(self, name), choices)
        if not 0.0 <= self.alpha <= 1.0:  # refuses NaN too
            raise ValueError(f"alpha={self.alpha!r} is not between 0 and 1; use e.g. 0.8, the paper's value.")
        if not 0.0 <= self.tau < float("inf"):
            raise ValueError(f"tau={self.tau!r} is not a number of nats of 0 or more; use e.g. 0.5.")
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

    RARELY_GIVEN = (
        "reward_revision",
        "reward_max_length",
        "embedding_revision",
        "embed_context",
        "response_revision",
        "length_model",
    )

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

    __repr__ = short_repr

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
class ScreenConfig:
    """With `segments_for`: how the rows will be ranked, fields of `RankConfig`. Their segments are measured by the HMP of it."""

    RARELY_GIVEN = ("mode", "alpha", "hmp", "cas", "combine", "tau")

    mode: str = _like(RankConfig, "mode")
    alpha: float = _like(RankConfig, "alpha")
    hmp: str | None = _like(RankConfig, "hmp")
    cas: str | None = _like(RankConfig, "cas")
    combine: str | None = _like(RankConfig, "combine")
    tau: float = _like(RankConfig, "tau")

    __repr__ = short_repr

    def __post_init__(self):
        self.ranking()

    def ranking(self) -> RankConfig:
        """The whole configuration."""
        return RankConfig(**vars(self))


@dataclass
class RunConfig:
    """How models are run that measure columns for a method: fields of `ModelPairConfig` and `MeasureConfig`."""

    RARELY_GIVEN = ("trust_remote_code", "batch_tokens", "find_context")

    dtype: str = _like(ModelPairConfig, "dtype")
    device: str = _like(ModelPairConfig, "device")
    trust_remote_code: bool = _like(ModelPairConfig, "trust_remote_code")
    batch_tokens: int | None = _like(MeasureConfig, "batch_tokens")
    find_context: str | None = _like(MeasureConfig, "find_context")
    store: str | None = _like(MeasureConfig, "store")

    __repr__ = short_repr

    def __post_init__(self):
        check_choice("dtype", self.dtype, DTYPES)
        MeasureConfig(batch_tokens=self.batch_tokens, find_context=self.find_context)


@dataclass
class SelectConfig:
    """Which ranked rows are kept. Exactly one of `fraction`, `top_k`, `min_score`, `max_tokens`; where none is given a fraction
    of 0.1, as in the paper, or all rows if they were ranked by method 'full'.

    Raises:
        ValueError: a field is out of range, or two fields contradict each other.
    """

    RARELY_GIVEN = ("strata_edges", "min_share")

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
    decisions: str | None = field(
        default=None,
        metadata={
            "help": "A .csv file of what a person decided, with the columns gateau_key, decision (keep, drop, or nothing) and "
            "note. Rows to keep are kept first, also without a rank; the best of the others, without those to drop, fill up."
        },
    )

    __repr__ = short_repr

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
        if self.decisions is not None:
            self.decisions = os.fspath(self.decisions)
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

    RARELY_GIVEN = ("short_name", "short_data_file", "short_split", "short_data_revision")

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

    __repr__ = short_repr

    def __post_init__(self):
        check_belongings(self, "short_data", "the data")
        if self.short_fraction is not None and self.short_token_share is not None:
            raise ValueError("short_fraction and short_token_share are both given; choose one.")
        if self.short_fraction is not None and not 0.0 < self.short_fraction <= 1.0:
            raise ValueError(f"short_fraction={self.short_fraction!r} is not above 0 and at most 1; use e.g. 0.1.")
        if self.short_token_share is not None and not 0.0 < self.short_token_share < 1.0:
            raise ValueError(f"short_token_share={self.short_token_share!r} is not between 0 and 1; use e.g. 0.3.")
