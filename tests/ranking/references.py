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
    columns = {
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
    columns |= token_columns(columns["gateau_num_response_tokens"], sizes, random.Random(seed + 1000))
    return columns | head_columns(sizes, random.Random(seed + 2000))


def head_columns(num_segments: list[int], rng: random.Random) -> dict[str, list]:
    """What heads see of segments; of some rows all are far, or none."""
    return {
        "gateau_segment_heads": [[rng.gauss(0, 2) for _ in range(size)] for size in num_segments],
        "gateau_num_far_segments": [rng.randint(0, size) for size in num_segments],
    }


def token_columns(num_tokens: list[int], num_segments: list[int], rng: random.Random) -> dict[str, list]:
    """Evidence of tokens: of half of them far context tells something, of some a far segment alone."""
    names = ("long", "short", "no_context", "far", "near")
    columns = {f"gateau_token_nll_{name}": [] for name in names} | {"gateau_token_far_segment": []}
    for n, size in zip(num_tokens, num_segments, strict=True):
        long = [rng.expovariate(1.0) for _ in range(n)]
        gain = [rng.expovariate(0.3) * rng.randint(0, 1) + rng.gauss(0, 0.2) for _ in range(n)]
        rows = {
            "long": long,
            "short": [x + g for x, g in zip(long, gain, strict=True)],
            "no_context": [x + g + rng.gauss(0.5, 0.5) for x, g in zip(long, gain, strict=True)],
            "far": [x + rng.gauss(0.2, 0.3) for x in long],
            "near": [x + g + rng.gauss(0.1, 0.3) for x, g in zip(long, gain, strict=True)],
        }
        for name in names:
            columns[f"gateau_token_nll_{name}"].append(rows[name])
        columns["gateau_token_far_segment"].append([rng.randrange(size) for _ in range(n)])
    return columns


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


def ref_needs(row, tau=0.5):
    tokens = zip(*(row[f"gateau_token_nll_{name}"] for name in ("short", "no_context", "long")), strict=True)
    return [max(0.0, min(short, without) - long - tau) for short, without, long in tokens]


def ref_far_needs(row, tau=0.5):
    needs = []
    for i, long in enumerate(row["gateau_token_nll_long"]):
        near = row["gateau_token_nll_near"][i] if row["gateau_token_nll_near"] else math.inf
        far = row["gateau_token_nll_far"][i] if row["gateau_token_nll_far"] else math.inf
        needs.append(max(0.0, min(near, row["gateau_token_nll_no_context"][i]) - max(far, long) - tau))
    return needs


def ref_far_tokens(row):
    gains = []
    for i, long in enumerate(row["gateau_token_nll_long"]):
        near = row["gateau_token_nll_near"][i] if row["gateau_token_nll_near"] else math.inf
        far = row["gateau_token_nll_far"][i] if row["gateau_token_nll_far"] else math.inf
        before = math.exp(-min(near, row["gateau_token_nll_no_context"][i]))
        gains.append(max(0.0, math.exp(-max(far, long)) - before - 0.1))
    return math.fsum(gains)


def ref_pairs(row):
    return list(zip(row["gateau_token_nll_short"], row["gateau_token_nll_long"], strict=True))


# From one row, a dict of its columns
REF_TOKEN_HMP = {
    "need": lambda row: math.fsum(ref_needs(row)),
    "need_mean": lambda row: statistics.fmean(ref_needs(row)),
    "need_tokens": lambda row: math.fsum(
        max(0.0, math.exp(-long) - math.exp(-min(short, without)) - 0.1)
        + max(0.0, math.exp(-long) - math.exp(-without) - 0.1) / 1_048_576
        for short, without, long in zip(
            *(row[f"gateau_token_nll_{x}"] for x in ("short", "no_context", "long")), strict=True
        )
    ),
    "key_tokens": lambda row: sum(short - long > 2 and long < 2 for short, long in ref_pairs(row)),
    "longfilter": lambda row: statistics.fmean(math.exp(-long) * (short - long) for short, long in ref_pairs(row)),
}
REF_TOKEN_CAS = {
    "far_need": lambda row: math.fsum(ref_far_needs(row)),
    "far_tokens": ref_far_tokens,
    "places": lambda row: len(
        {best for best, x in zip(row["gateau_token_far_segment"], ref_far_needs(row), strict=False) if x > 0}
    ),
}


def ref_heads(seen, num_far):
    return max(seen[:num_far], default=min(seen)) - max(seen[num_far:], default=min(seen))


REF_ROW_CAS = {
    **REF_TOKEN_CAS,
    "heads": lambda row: ref_heads(row["gateau_segment_heads"], row["gateau_num_far_segments"]),
}


def ref_ladm(row):
    attention = row["gateau_segment_attention"]
    distance = [(len(attention) - i) / len(attention) for i in range(len(attention))]
    return statistics.pstdev(attention) * math.fsum(a * d for a, d in zip(attention, distance, strict=True))


def rows_of(columns):
    return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]


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
    if hmp in REF_HMP:
        hmps = REF_HMP[hmp](columns["gateau_ppl_short"], columns["gateau_ppl_long"])
    else:
        hmps = [REF_TOKEN_HMP[hmp](row) for row in rows_of(columns)]
    if cas in REF_CAS:
        lists = zip(columns["gateau_segment_ppl"], columns["gateau_segment_attention"], strict=True)
        cass = [REF_CAS[cas](ppl, attention) for ppl, attention in lists]
    else:
        cass = [REF_ROW_CAS[cas](row) for row in rows_of(columns)]
    norm_hmp, norm_cas = REF_COMBINE[combine]
    scores = [alpha * h + (1 - alpha) * c for h, c in zip(norm_hmp(hmps), norm_cas(cass), strict=True)]
    return hmps, cass, scores
