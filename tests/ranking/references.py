"""Measured columns, and ranking written from the paper's equations line by line, with math.fsum and no numpy."""

import math
import random
import statistics

import datasets
import pandas as pd
import scipy.stats

from hf_gateau.ranking.columns import DERIVED_COLUMNS


def measurements(n=60, seed=0, min_segments=2, max_segments=11) -> dict[str, list]:
    """Raw columns as `gateau_score` leaves them, nothing degenerate about them."""
    rng = random.Random(seed)
    sizes = [rng.randint(min_segments, max_segments) for _ in range(n)]
    return {
        "id": [f"row {i}" for i in range(n)],
        "gateau_ppl_short": [1 + rng.random() * 3 for _ in range(n)],
        "gateau_ppl_long": [1 + rng.random() for _ in range(n)],
        "gateau_ppl_no_context": [1 + rng.random() * 4 for _ in range(n)],
        "gateau_ppl_response": [1 + rng.random() * 5 for _ in range(n)],
        "gateau_reward": [rng.gauss(0, 1) for _ in range(n)],
        "gateau_embedding": [[rng.gauss(0, 1) for _ in range(5)] for _ in range(n)],
        "gateau_segment_ppl": [[1 + rng.random() * 3 for _ in range(size)] for size in sizes],
        "gateau_segment_attention": [[rng.random() for _ in range(size)] for size in sizes],
        "gateau_num_context_tokens": [128 * size - rng.randint(0, 9) for size in sizes],
        "gateau_num_response_tokens": [rng.randint(1, 9) for _ in range(n)],
        "gateau_error": [None] * n,
        "gateau_key": [f"cfg:{rng.getrandbits(64):016x}" for _ in range(n)],
    }


def dataset(**changes) -> datasets.Dataset:
    columns = measurements() | changes
    return datasets.Dataset.from_dict({name: values for name, values in columns.items() if values is not None})


def derived(data) -> dict[str, list]:
    frame = data if isinstance(data, pd.DataFrame) else data.to_pandas()
    return {name: frame[name].astype(object).where(frame[name].notna(), None).tolist() for name in DERIVED_COLUMNS}


def ref_softmax(values):
    exps = [math.exp(v - max(values)) for v in values]
    return [e / math.fsum(exps) for e in exps]


def ref_min_max(values):
    return [(v - min(values)) / (max(values) - min(values)) for v in values]


def ref_rank(values):
    def place(v):
        return sum(w < v for w in values) + (sum(w == v for w in values) - 1) / 2

    return [place(v) / (len(values) - 1) for v in values]


def ref_cosine(a, b):
    dot, aa, bb = (math.fsum(x * y for x, y in zip(u, v, strict=True)) for u, v in ((a, b), (a, a), (b, b)))
    return dot / math.sqrt(aa * bb)


def ref_gains(ppl):
    nll = [math.log(p) for p in ppl]
    return [statistics.median(nll) - v for v in nll]


def ref_gain_far(ppl):
    gain, near = ref_gains(ppl), min(4, math.ceil(len(ppl) / 4))
    return max(gain[:-near]) - max(gain[-near:])


def ref_gain_distance(ppl):
    last = len(ppl) - 1
    return max(g * (last - i) / len(ppl) for i, g in enumerate(ref_gains(ppl)))


def ref_difference(norm):
    return lambda short, long: [a - b for a, b in zip(norm(short), norm(long), strict=True)]


REF_HMP = {
    "softmax": ref_difference(ref_softmax),
    "minmax": ref_difference(ref_min_max),
    "difference": ref_difference(list),
    "log_difference": ref_difference(lambda values: [math.log(v) for v in values]),
    "rank": ref_difference(ref_rank),
}


REF_CAS = {
    "paper": lambda ppl, attention: ref_cosine(ref_softmax(ppl), ref_softmax(attention)),
    "raw": ref_cosine,
    "pearson": lambda ppl, attention: scipy.stats.pearsonr(ppl, attention).statistic,
    "spearman": lambda ppl, attention: round(scipy.stats.spearmanr(ppl, attention).statistic, 13),  # ties
    "gain": lambda ppl, attention: max(ref_gains(ppl)),
    "gain_far": lambda ppl, attention: ref_gain_far(ppl),
    "gain_distance": lambda ppl, attention: ref_gain_distance(ppl),
}


REF_COMBINE = {"softmax": (ref_softmax, ref_softmax), "released": (ref_softmax, list), "rank": (ref_rank, ref_rank)}


def ref_scores(columns, hmp, cas, combine, alpha):
    hmps = REF_HMP[hmp](columns["gateau_ppl_short"], columns["gateau_ppl_long"])
    lists = zip(columns["gateau_segment_ppl"], columns["gateau_segment_attention"], strict=True)
    cass = [REF_CAS[cas](ppl, attention) for ppl, attention in lists]
    norm_hmp, norm_cas = REF_COMBINE[combine]
    scores = [alpha * h + (1 - alpha) * c for h, c in zip(norm_hmp(hmps), norm_cas(cass), strict=True)]
    return hmps, cass, scores
