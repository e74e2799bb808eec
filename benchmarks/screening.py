"""What `segments_for` changes of a selection, on numbers of a real model that were measured elsewhere.

    python -m benchmarks.screening FOLDER

The folder is that of `benchmarks.token_evidence`. All its rows have all their segments; here they are taken from those that HMP
screens out, and the selections of both compared. Printed is the share of the best rows that are the same, with the sample of
screened-out rows that tells where their CAS lies, and without it; the mean and the lowest of some samples. The status is 1 where a
row without segments belongs to the best, or a bound does not hold.
"""

import json
import sys
import warnings
from pathlib import Path

import numpy as np
from datasets import Dataset

from hf_gateau import rank, ranking_record, select, selection_record
from hf_gateau.measuring.screening import choose_rows
from hf_gateau.ranking.bounds import OF_SEGMENTS, SCREENED


SHARE, FRACTION, NUM_SAMPLES = 0.4, 0.1, 5
HMPS, CASS = ("log_difference", "need", "need_tokens"), ("gain_far", "gain", "gain_distance")


def columns_of(pool) -> dict[str, list]:
    """The measured columns, with a window of 512 tokens for the short sibling."""
    meta = json.loads(str(pool["meta"]))
    ends, segment_ends = (np.cumsum(x)[:-1] for x in ([row["ny"] for row in meta], pool["segn"]))
    tokens = {"long": "t_long", "short": "t_w512", "no_context": "t_none"}
    nlls = {name: np.split(pool[key].astype(float), ends) for name, key in tokens.items()}
    found = {f"gateau_ppl_{name}": [float(np.exp(x.mean())) for x in rows] for name, rows in nlls.items()}
    found |= {f"gateau_token_nll_{name}": [x.tolist() for x in rows] for name, rows in nlls.items()}
    segments = [np.exp(x.astype(float)).tolist() for x in np.split(pool["seg"], segment_ends)]
    return found | {"gateau_segment_ppl": segments, "gateau_error": [None] * len(meta)}


def kept(rows: Dataset, number: int) -> set[int]:
    return {i for i, place in enumerate(rows["gateau_rank"]) if place <= number}


def main(folder: str) -> int:
    warnings.simplefilter("ignore")
    columns = columns_of(np.load(Path(folder) / "pool.npz"))
    number, failures = round(FRACTION * len(columns["gateau_error"])), 0
    print("| HMP | CAS | rows with segments | certain | may be others | the same | lowest | without a sample |")
    print("|---|---|---|---|---|---|---|---|")
    for hmp_name in HMPS:
        for cas in CASS:
            settings, found = {"hmp": hmp_name, "cas": cas}, {True: [], False: []}
            full = rank(Dataset.from_dict(columns), **settings)
            hmp, about = (
                np.array(full["gateau_hmp"]),
                dict.fromkeys(("tau", "segments_key", "values_key"), "") | {"alpha": 0.8},
            )
            for sample in range(NUM_SAMPLES):
                keys = [f"{sample}:{i}" for i in range(len(hmp))]
                chosen = choose_rows(hmp, keys, np.ones(len(hmp), bool), SHARE, hmp=hmp_name, **about)
                low = [chosen.is_low(x) for x in hmp]
                for with_sample in (True, False):
                    left = [
                        x and not (with_sample and chosen.is_sampled(key)) for x, key in zip(low, keys, strict=True)
                    ]
                    part = dict(columns) | {SCREENED: low, "gateau_key": keys}
                    for name in set(part) & set(OF_SEGMENTS):
                        part[name] = [None if x else value for x, value in zip(left, part[name], strict=True)]
                    ranked = rank(Dataset.from_dict(part), **settings)
                    same = len(kept(full, number) & kept(ranked, number))
                    found[with_sample].append(same / number)
                    bound = ranking_record(ranked)["screening"]
                    failures += any(left[i] for i in kept(full, bound["num_safe"]))
                    if with_sample:
                        uncertain = selection_record(select(ranked, top_k=number)).screening["num_uncertain"]
                        failures += number - same > uncertain
                        certain, with_segments = bound["num_safe"], len(left) - sum(left)
            print(
                f"| {hmp_name} | {cas} | {with_segments} | {certain} | {uncertain} of {number} | {np.mean(found[True]):.3f} | "
                f"{min(found[True]):.3f} | {np.mean(found[False]):.3f} |"
            )
    return int(failures > 0)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
