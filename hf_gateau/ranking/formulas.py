"""Eqs. 2-6 of arXiv 2410.15633, their variants and the baselines: numpy in float64, no files and no models.

Shapes: n rows that are ranked. `segment_ppl` and `segment_attention` are flat, see `lists`. Perplexities are exp(nats a token).

Every sum over the data set is taken in sorted order, so the same rows in another order get bit-identical scores.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from .clustering import clusters, default_num_clusters, first_of_each
from .config import ABLATIONS, RankConfig
from .evidence import FAR_TOKENS, HEADS, NEED_TOKENS, TOKEN_CAS, TOKEN_HMP
from .lists import ListMeasure, Rows


if TYPE_CHECKING:
    import pyarrow as pa

PPL_PAIR = ("gateau_ppl_short", "gateau_ppl_long")
EMBEDDING = "gateau_embedding"
LENGTHS = ("gateau_num_context_tokens", "gateau_num_response_tokens")
SEGMENT_COLUMNS = ("gateau_segment_ppl", "gateau_segment_attention")
STANDS_FOR = "stands_for"  # how many rows' CAS one row's is taken for, see `bounds`
# HMPs of a row that change with the other rows
RELATIVE_HMP = ("softmax", "minmax", "rank")


# Norm: three ways of making two measures comparable over the data set


def norm(x: np.ndarray) -> np.ndarray:
    """Norm of Eqs. 2 and 6: softmax over the data set, (n,) -> (n,)."""
    exp = np.exp(x - x.max())
    return exp / np.sort(exp).sum()


def min_max(x: np.ndarray) -> np.ndarray:
    """The public release's Norm of Eq. 2: linear onto [0, 1]; all 0 where the data are constant."""
    spread = x.max() - x.min()
    return (x - x.min()) / spread if spread > 0 else np.zeros_like(x)


def normalised_rank(x: np.ndarray, weight: np.ndarray | None = None) -> np.ndarray:
    """Rank from 0 (lowest) to 1 (highest); ties get the mean of their ranks, so constant data get 0.5.

    With a weight, each value stands for so many rows, all of one value, and n is the sum of the weights; those of weight 0, whose
    value is not known, get 0.
    """
    if weight is not None:
        out, known = np.zeros(len(x)), weight > 0
        out[known] = _mean_ranks(x[known], weight[known])
        return out
    return _mean_ranks(x, np.ones(len(x)))


def _mean_ranks(x: np.ndarray, weight: np.ndarray) -> np.ndarray:
    _, inverse = np.unique(x, return_inverse=True)
    counts, total = np.bincount(inverse, weight), weight.sum()
    mean_rank = np.cumsum(counts) - (counts + 1) / 2
    return mean_rank[inverse] / (total - 1) if total > 1 else np.full(len(x), 0.5)


def order_of(scores: np.ndarray, key: pa.Array) -> np.ndarray:
    """Places of rows, the highest score first; ties by key ascending, then (and where there are no keys) by position."""
    import pyarrow.compute as pc

    order = np.argsort(-scores, kind="stable")
    same = np.diff(scores[order]) == 0
    is_tied = np.append(same, False) | np.append(False, same)
    if is_tied.any():  # keys are long texts: only these rows' are sorted
        tied = order[is_tied]
        by_key = np.empty(len(tied), dtype=np.int64)
        by_key[pc.sort_indices(key.take(tied)).to_numpy()] = np.arange(len(tied))  # stable, nulls last
        order[is_tied] = tied[np.lexsort((by_key, -scores[tied]))]
    return order


# HMG, Eq. 2: how much harder the response is for the model with the short window


# name -> a function of (ppl_short, ppl_long), or a measure of the response's tokens. In all of them HIGH means keep.
HMP: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray] | ListMeasure | None] = {
    "softmax": lambda ppl_short, ppl_long: norm(ppl_short) - norm(ppl_long),  # Eq. 2 to the letter
    "minmax": lambda ppl_short, ppl_long: min_max(ppl_short) - min_max(ppl_long),
    "difference": lambda ppl_short, ppl_long: ppl_short - ppl_long,  # the ablation "without Norm in Eq. 2"
    "log_difference": lambda ppl_short, ppl_long: np.log(ppl_short) - np.log(ppl_long),  # nats a token
    "rank": lambda ppl_short, ppl_long: normalised_rank(ppl_short) - normalised_rank(ppl_long),
    **TOKEN_HMP,
    "none": None,  # the ablation "without HMG"
}


# CAM, Eqs. 3-5: does attention sit on the segments that matter?


def segment_norm(flat: np.ndarray, rows: Rows) -> np.ndarray:
    """Norm of Eqs. 3 and 4: softmax over the segments of each row."""
    exp = np.exp(flat - rows.spread(rows.max(flat)))
    return exp / rows.spread(rows.sum(exp))


def importance_scores(segment_ppl: np.ndarray, rows: Rows) -> np.ndarray:
    """IS of Eq. 3. High: the response is hard from this segment alone, so the segment matters little."""
    return segment_norm(segment_ppl, rows)


def attention_scores(segment_attention: np.ndarray, rows: Rows) -> np.ndarray:
    """Attn of Eq. 4, from the mean attention a token of each segment."""
    return segment_norm(segment_attention, rows)


def scaled(flat: np.ndarray, rows: Rows) -> np.ndarray:
    """Each row times a power of 2, so that sums of its squares cannot overflow and no digit is lost."""
    return np.ldexp(flat, -rows.spread(np.frexp(rows.max(np.abs(flat)))[1]))


def cosine(a: np.ndarray, b: np.ndarray, rows: Rows) -> np.ndarray:
    """Cosine of each row's two vectors, (n,); NaN where one is all 0."""
    a, b = scaled(a, rows), scaled(b, rows)
    return np.clip(rows.sum(a * b) / np.sqrt(rows.sum(a * a) * rows.sum(b * b)), -1.0, 1.0)


def centred(flat: np.ndarray, rows: Rows) -> np.ndarray:
    """Each row's values minus their mean, scaled; exactly 0 where the row is constant."""
    flat = scaled(flat, rows)
    constant = rows.max(flat) == -rows.max(-flat)
    return np.where(rows.spread(constant), 0.0, flat - rows.spread(rows.sum(flat) / rows.sizes))


def segment_ranks(flat: np.ndarray, rows: Rows) -> np.ndarray:
    """Rank of each value in its own row, from 0; ties get the mean of their ranks."""
    order = rows.argsort(flat)
    new = (rows.position == 0) | (np.diff(flat[order], prepend=np.nan) != 0)
    ties = Rows(np.diff(np.append(np.flatnonzero(new), len(flat))))
    ranks = np.empty(len(flat))
    ranks[order] = ties.spread(rows.position[ties.starts] + (ties.sizes - 1) / 2)
    return ranks


def gains(segment_ppl: np.ndarray, rows: Rows) -> np.ndarray:
    """gain_i = median(nll) - nll_i in nats a token: how much more segment i alone tells of the response than most."""
    nll = np.log(segment_ppl)
    return rows.spread(rows.median(nll)) - nll


def cas(segment_ppl, segment_attention, rows):
    """CAS of Eq. 5, cosine of IS and Attn. High: attention sits on the segments that matter least, the row is hard."""
    return cosine(importance_scores(segment_ppl, rows), attention_scores(segment_attention, rows), rows)


def cas_pearson(segment_ppl, segment_attention, rows):
    """Correlation of segment perplexity and attention, before any softmax; the sign is Eq. 5's."""
    return cosine(centred(segment_ppl, rows), centred(segment_attention, rows), rows)


def cas_spearman(segment_ppl, segment_attention, rows):
    """Correlation of the ranks of segment perplexity and attention in their row; the sign is Eq. 5's."""
    return cas_pearson(segment_ranks(segment_ppl, rows), segment_ranks(segment_attention, rows), rows)


def cas_gain(segment_ppl, segment_attention, rows):
    """Largest gain: one segment stands out as the one that the response needs. Uses no attention."""
    return rows.max(gains(segment_ppl, rows))


def cas_gain_far(segment_ppl, segment_attention, rows):
    """Largest gain of the far segments minus that of the near ones, the last min(4, ceil(N/4)). Uses no attention."""
    gain = gains(segment_ppl, rows)
    near = rows.position >= rows.spread(rows.sizes - np.minimum(4, -(-rows.sizes // 4)))
    return rows.max(np.where(near, -np.inf, gain)) - rows.max(np.where(near, gain, -np.inf))


def cas_gain_distance(segment_ppl, segment_attention, rows):
    """Largest gain_i * (segments after segment i) / N: far and telling at once. Uses no attention."""
    sizes = rows.spread(rows.sizes)
    return rows.max(gains(segment_ppl, rows) * (sizes - 1 - rows.position) / sizes)


def _of_segments(measure: Callable, columns: tuple[str, ...] = SEGMENT_COLUMNS) -> ListMeasure:
    """A measure of segments, from a function of their perplexities, their attention and the rows."""
    ppl, attention = columns[0], columns[-1]  # where perplexities are enough, they stand for both
    return ListMeasure(
        columns, lambda x, rows, tau: measure(x[ppl], x[attention], rows), "segment", 2, positive=SEGMENT_COLUMNS[:1]
    )


def _of_uniform(measure: Callable) -> ListMeasure:
    """The same where every segment gets as much attention."""
    return _of_segments(lambda ppl, attention, rows: measure(ppl, 1 / rows.spread(rows.sizes), rows))


# name -> measure; 'gain' to 'places' use no attention. In all of them HIGH means keep.
CAS: dict[str, ListMeasure | None] = {
    "paper": _of_segments(cas),
    "raw": _of_segments(cosine),  # Eq. 5 without the softmaxes of Eqs. 3 and 4
    "pearson": _of_segments(cas_pearson),
    "spearman": _of_segments(cas_spearman),
    "gain": _of_segments(cas_gain, SEGMENT_COLUMNS[:1]),
    "gain_far": _of_segments(cas_gain_far, SEGMENT_COLUMNS[:1]),
    "gain_distance": _of_segments(cas_gain_distance, SEGMENT_COLUMNS[:1]),
    **TOKEN_CAS,
    "none": None,  # the ablation "without CAM"
}
# Of a correlation, what uniform attention would give is undefined.
UNIFORM = {"paper": _of_uniform(cas), "raw": _of_uniform(cosine)}


# Eq. 6


# name -> (Norm of HMP, Norm of CAS)
COMBINE = {
    "softmax": (norm, norm),  # Eq. 6 to the letter
    "released": (norm, lambda x: x),  # the public release leaves CAS as it is
    "rank": (normalised_rank, normalised_rank),
}
# name -> (hmp, cas, combine)
MODES = {
    "robust": ("need_tokens", "far_tokens", "rank"),
    "mean": ("log_difference", "gain_far", "rank"),
    "paper": ("softmax", "paper", "softmax"),
    "released": ("minmax", "paper", "released"),
}


def score(norm_hmp: np.ndarray | None, norm_cas: np.ndarray | None, alpha: float) -> np.ndarray:
    """Eq. 6: alpha * Norm(HMP) + (1 - alpha) * Norm(CAS); the other term alone where one is None (an ablation)."""
    if norm_hmp is None or norm_cas is None:
        return norm_cas if norm_hmp is None else norm_hmp
    return alpha * norm_hmp + (1 - alpha) * norm_cas


def gateau(columns: dict, config: RankConfig) -> dict[str, np.ndarray]:
    """GATEAU: HMP (Eq. 2) and CAS (Eq. 5), measured as the columns were read where they are of lists; and their score (Eq. 6)."""
    hmp_name, _, combine = parts_of(config)
    measure, terms = HMP[hmp_name], {name: columns.get(name) for name in ("hmp", "cas")}
    if measure is not None and not isinstance(measure, ListMeasure):
        terms["hmp"] = measure(columns["gateau_ppl_short"], columns["gateau_ppl_long"])
    normed = [None if x is None else f(x) for x, f in zip(terms.values(), COMBINE[combine], strict=True)]
    if STANDS_FOR in columns:  # not all rows have a CAS
        normed[1] = normalised_rank(terms["cas"], columns[STANDS_FOR])
    terms["score"] = score(*normed, config.alpha)
    return {name: term for name, term in terms.items() if term is not None}


# The baselines


def perplexity(columns: dict, config: RankConfig) -> dict[str, np.ndarray]:
    """Perplexity Guidance: the hardest response for the long model first."""
    return {"score": columns["gateau_ppl_long"]}


def ratio(columns: dict, config: RankConfig) -> dict[str, np.ndarray]:
    """The method's first column over its second, highest first.

    'ifd': Instruction-Following Difficulty (Cherry Selection, arXiv 2308.12032), PPL(y|c,x) / PPL(y). Its release divides mean
    losses instead, which is below 1 for the same rows and may order them otherwise. 'ifd_context': PPL(y|c,x) / PPL(y|x), what
    the context alone buys.
    """
    above, below = METHODS[config.method].columns
    return {"score": columns[above] / columns[below]}


def car(columns: dict, config: RankConfig) -> dict[str, Any]:
    """CaR (arXiv 2402.18191): the `car_per_cluster` rows of highest reward of each cluster, then all others by reward.

    The score is the reward's rank from 0 to 1, and 1 more for the first ones. Once these are in, the first K rows are the
    paper's choice, the n1 best of all and the n2 best of each cluster, for some n1; `about` says for which K n1 is `car_best`.
    """
    reward = columns[config.reward_column]
    wanted = config.car_clusters or default_num_clusters(len(reward))
    labels, order = clusters(columns[EMBEDDING], wanted, config.rank_seed), order_of(reward, columns["gateau_key"])
    is_first = first_of_each(labels, order, config.car_per_cluster)
    num_rows = int(is_first.sum() + (~is_first[order[: config.car_best]]).sum())
    about = {"car_num_clusters": int(labels.max()) + 1, "car_num_first": int(is_first.sum()), "car_num_rows": num_rows}
    return {"score": normalised_rank(reward) + is_first, "about": about}


def full(columns: dict, config: RankConfig) -> dict[str, np.ndarray]:
    """All rows, in the order they came: the score counts down to 1."""
    return {"score": len(columns["position"]) - np.arange(len(columns["position"]), dtype=float)}


def longest(columns: dict, config: RankConfig) -> dict[str, np.ndarray]:
    """Most context tokens first; among equals the longest response, which counts 2**-24 of a context token."""
    return {"score": columns["gateau_num_context_tokens"] + columns["gateau_num_response_tokens"] / 2**24}


def random_score(columns: dict, config: RankConfig) -> dict[str, np.ndarray]:
    """Uniform in [0, 1) from a hash of the seed and the row's content key, or of its position where it has no key."""
    keys = columns["gateau_key"].to_pylist()
    names = (
        f"#{at}" if key is None else key.rpartition(":")[2] for at, key in zip(columns["position"], keys, strict=True)
    )
    digests = (hashlib.blake2b(f"{config.rank_seed}:{name}".encode(), digest_size=8).digest() for name in names)
    bits = np.frombuffer(b"".join(digests), dtype="<u8")
    return {"score": (bits >> np.uint64(11)) * 2.0**-53}


def measured(columns: dict, config: RankConfig) -> dict[str, np.ndarray]:
    """The method's measure of lists, highest first."""
    return {"score": columns["score"]}


def ladm(segment_ppl, segment_attention, rows):
    """LADM (arXiv 2503.02502) with the response for its one span that looks back: attention times distance, summed over segments,
    times the spread of attention over them."""
    sizes = rows.spread(rows.sizes)
    spread = np.sqrt(
        rows.sum((segment_attention - rows.spread(rows.sum(segment_attention) / rows.sizes)) ** 2) / rows.sizes
    )
    return spread * rows.sum(segment_attention * (sizes - rows.position) / sizes)


@dataclass(frozen=True)
class Method:
    """A way to rank.

    Attributes:
        what (`str`): it is, for the record.
        score: from columns of the rows that can be ranked, and the configuration, to `score`, the terms that it is made of, and
            `about`, what the record says beside the settings.
        columns (`tuple`): it needs; GATEAU's and CaR's vary, see `needed_columns`.
        settings (`tuple`): fields of `RankConfig` that it alone reads.
        measure (`ListMeasure`): what its score is, where that is of lists.
    """

    what: str
    score: Callable[[dict, RankConfig], dict[str, Any]]
    columns: tuple[str, ...] = ()
    settings: tuple[str, ...] = ()
    measure: ListMeasure | None = None


METHODS: dict[str, Method] = {
    "gateau": Method("GATEAU", gateau),
    "without_hmg": Method("GATEAU without Homologous Models' Guidance: no HMP", gateau),
    "without_cam": Method("GATEAU without Contextual Awareness Measurement: no CAS", gateau),
    "without_norm": Method("GATEAU without Norm in Eq. 2: HMP is PPL_short - PPL_long", gateau),
    "perplexity": Method("Perplexity Guidance: PPL(y|c,x) of the long model", perplexity, ("gateau_ppl_long",)),
    "ifd": Method(
        "Cherry Selection: IFD = PPL(y|c,x) / PPL(y) of the long model",
        ratio,
        ("gateau_ppl_long", "gateau_ppl_response"),
        ("ifd_below_one",),
    ),
    "ifd_context": Method(
        "IFD of the context: PPL(y|c,x) / PPL(y|x) of the long model",
        ratio,
        ("gateau_ppl_long", "gateau_ppl_no_context"),
        ("ifd_below_one",),
    ),
    "longfilter": Method(
        "LongFilter: gain of the long context, weighted by probability, a token",
        measured,
        measure=TOKEN_HMP["longfilter"],
    ),
    "key_tokens": Method("LongPPL's key tokens, how many", measured, measure=TOKEN_HMP["key_tokens"]),
    "ladm": Method(
        "LADM: attention, times distance, times its spread", measured, measure=_of_segments(ladm, SEGMENT_COLUMNS[1:])
    ),
    "car": Method(
        "CaR: the best rewards of each cluster of embeddings, then all others by reward",
        car,
        settings=("reward_column", "car_clusters", "car_per_cluster", "car_best"),
    ),
    "longest": Method("longest context first", longest, LENGTHS),
    "random": Method("random order", random_score),
    "full": Method("all rows, in the order they came", full),
    "no_long": Method("no long row at all", full),
}

METHOD_SETTINGS = tuple(dict.fromkeys(name for method in METHODS.values() for name in method.settings))


def is_gateau(method: str) -> bool:
    """Whether a method is GATEAU or one of its ablations."""
    return method == "gateau" or method in ABLATIONS


def parts_of(config: RankConfig) -> tuple[str | None, str | None, str | None]:
    """(hmp, cas, combine): the mode's, or what was asked for explicitly."""
    if not is_gateau(config.method):
        return None, None, None
    part, instead = ABLATIONS.get(config.method, (None, None))
    names = dict(zip(("hmp", "cas", "combine"), MODES[config.mode], strict=True))
    return tuple(instead if name == part else getattr(config, name) or names[name] for name in names)


def needed_columns(config: RankConfig) -> list[str]:
    """The raw columns without which the method cannot rank."""
    hmp, cas, _ = parts_of(config)
    pair = () if hmp is None or isinstance(HMP[hmp], ListMeasure | None) else PPL_PAIR
    scored = (config.reward_column, EMBEDDING) if config.method == "car" else ()
    lists = dict.fromkeys(name for x in measures_of(config).values() for name in (*x.columns, *x.numbers))
    return [*METHODS[config.method].columns, *scored, *pair, *lists]


def measures_of(config: RankConfig) -> dict[str, ListMeasure]:
    """What is measured of lists as columns are read, by term: 'hmp', 'cas' or 'score'; 'uniform' of a CAS that is a cosine."""
    hmp, cas_name, _ = parts_of(config)
    found = {"hmp": HMP.get(hmp), "cas": CAS.get(cas_name), "score": METHODS[config.method].measure}
    found |= {"uniform": UNIFORM.get(cas_name)}
    return {term: measure for term, measure in found.items() if isinstance(measure, ListMeasure)}


def check_measured(config: RankConfig, cam: str, token_nll: bool = True) -> None:
    """Refuse to measure rows in a way that leaves most of them without what they are to be ranked by.

    Raises:
        ValueError: segments are needed, and heads stand for them; or tokens are, and they are not kept.
    """
    if not token_nll and (needed := [name for name in needed_columns(config) if name in (*NEED_TOKENS, *FAR_TOKENS)]):
        raise ValueError(
            f"token_nll=False keeps nothing of tokens, and this ranking needs {', '.join(needed)}; rank with mode='mean', or "
            "leave token_nll on."
        )
    if cam != "heads":
        return
    segments = {
        *SEGMENT_COLUMNS,
        *(name for x in TOKEN_CAS.values() if HEADS not in x.columns for name in x.columns),
    } - {*NEED_TOKENS}
    if needed := [name for name in needed_columns(config) if name in segments]:
        cas = parts_of(config)[1]
        by = f"method={config.method!r}" if cas is None else f"cas={cas!r}"
        raise ValueError(
            f"cam='heads' measures no segments, and {by} needs {', '.join(needed)}; rank with cas='heads', or measure with "
            "cam='segments'."
        )
