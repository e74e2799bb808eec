"""What tokens and heads tell of a row's need for far text, on numbers of a real model that were measured elsewhere.

    python -m benchmarks.token_evidence FOLDER

The folder, which is not part of this repository, holds `pool.npz` (negative log-likelihoods of every response token of rows of
real book text, under several contexts; `seg`, those of segments alone) and `attn.npz` (attention of every head to every segment).
`meta` of the first names each row's kind: of those that end in `_far` the response needs text from the first 60% of the context,
one fact of it, two, three or six small ones. No kind is known to what is measured here; it is what the numbers are held against.

Printed are the AUROC of rows that need far text against those that need none, and the rank correlation with the number of facts.
The status is 1 where one of the bars is missed.
"""

import json
import sys
from pathlib import Path

import numpy as np

from benchmarks.real_text import follows_facts
from hf_gateau.measuring.heads import (
    CalibrationRow,
    auroc,
    choose_heads,
    far_minus_near,
    segment_distances,
    segment_gains,
)
from hf_gateau.ranking.evidence import LONG, NO_CONTEXT, SHORT, TOKEN_HMP
from hf_gateau.ranking.lists import Rows


WINDOWS, TAU, SEGMENT = (256, 512), 0.5, 128
FACTS = {"one_far": 1, "two_far": 2, "three_far": 3, "list_far": 6}
NEEDING_NONE = ("one_near", "two_near", "diluted_near", "free", "mismatch", "continue", "noise")
ONE_PLACE = ("one_far", "mid", "diluted_far", "quote_far")
NUM_HALVES = 10
BARS = {"need AUROC": 0.997, "need rank correlation": 0.85, "heads agreement": 0.95, "heads AUROC": 0.995}


def told_apart(values: np.ndarray, kinds: np.ndarray) -> float:
    """AUROC of rows that need far text against those that need none."""
    is_far, is_none = np.char.endswith(kinds, "_far"), np.isin(kinds, NEEDING_NONE)
    return auroc(values[is_far | is_none], is_far[is_far | is_none])


def of_tokens(pool, meta: list[dict], kinds: np.ndarray) -> dict[str, float]:
    """Prints a table of the measures of tokens; returns the lowest figures of 'need'."""
    num_facts = np.array([FACTS.get(kind, 0) for kind in kinds])
    rows, lowest = Rows(np.array([row["ny"] for row in meta])), {"need AUROC": 1.0, "need rank correlation": 1.0}
    print("| window | measure | AUROC | rank correlation with facts |\n|---|---|---|---|")
    for window in WINDOWS:
        columns = {LONG: pool["t_long"], SHORT: pool[f"t_w{window}"], NO_CONTEXT: pool["t_none"]}
        columns = {name: x.astype(float) for name, x in columns.items()}
        values = {name: measure.measure(columns, rows, TAU) for name, measure in TOKEN_HMP.items()}
        values["log difference"] = rows.sum(columns[SHORT] - columns[LONG]) / rows.sizes
        for name, x in values.items():
            found = told_apart(x, kinds), follows_facts(x, num_facts)
            print(f"| {window} | {name} | {found[0]:.4f} | {found[1]:.3f} |")
            if name == "need":
                lowest = {bar: min(a, b) for (bar, a), b in zip(lowest.items(), found, strict=True)}
    return lowest


def of_heads(pool, kept, meta: list[dict], kinds: np.ndarray) -> dict[str, float]:
    """Prints how the heads that one half chooses do on the other, for random halves; returns the means."""
    counts = kept["segn"]
    meta, kinds = meta[: len(counts)], kinds[: len(counts)]
    attention = np.split(kept["attn"].astype(float), np.cumsum(counts)[:-1])
    nlls = np.split(pool["seg"].astype(float), np.cumsum(pool["segn"])[:-1])
    rows = []
    for i, row in enumerate(meta):
        starts = range(0, row["nc"], SEGMENT)
        num_far = sum(min(start + SEGMENT, row["nc"]) <= row["nc"] - max(WINDOWS) for start in starts)
        gains, distances = segment_gains(np.exp(nlls[i])), segment_distances(starts, SEGMENT, row["nc"])
        rows.append(CalibrationRow(f"{i:06}", attention[i], gains, distances, num_far))
    names, rng = [divmod(i, 9) for i in range(attention[0].shape[1])], np.random.default_rng(0)
    found = []
    print("\n| half | heads (layer.head) | agreement on rows with one place | rows | AUROC |\n|---|---|---|---|---|")
    for half in range(NUM_HALVES):
        order = rng.permutation(len(rows))
        calibration = choose_heads([rows[i] for i in order[: len(rows) // 2]], names)
        columns, others = [names.index(head) for head in calibration.heads], order[len(rows) // 2 :]
        seen = {i: calibration.calibrated(rows[i].attention[:, columns], rows[i].distances) for i in others}
        one = [i for i in others if kinds[i] in ONE_PLACE and rows[i].is_telling]
        agreement = float(np.mean([seen[i].argmax() == rows[i].gains.argmax() for i in one]))
        far = np.array([far_minus_near(seen[i], rows[i].num_far) for i in others])
        found.append((agreement, told_apart(far, kinds[others])))
        heads = " ".join(f"{layer}.{head}" for layer, head in calibration.heads)
        print(f"| {half} | {heads} | {agreement:.3f} | {len(one)} | {found[-1][1]:.4f} |")
    agreement, area = np.mean(found, 0)
    print(f"\nMean of {NUM_HALVES} halves: agreement {agreement:.3f}, AUROC {area:.4f}")
    return {"heads agreement": float(agreement), "heads AUROC": float(area)}


def main(folder: str) -> int:
    with np.load(Path(folder) / "pool.npz") as pool, np.load(Path(folder) / "attn.npz") as kept:
        meta = json.loads(str(pool["meta"]))
        kinds = np.array([row["kind"] for row in meta])
        found = of_tokens(pool, meta, kinds) | of_heads(pool, kept, meta, kinds)
    missed = [name for name, bar in BARS.items() if not found[name] >= bar]
    for name in missed:
        print(f"{name} is {found[name]:.4f}, below {BARS[name]}", file=sys.stderr)
    return bool(missed)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python -m benchmarks.token_evidence FOLDER")
    sys.exit(main(sys.argv[1]))
