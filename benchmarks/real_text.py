"""Which ranking finds the rows that need far text, and puts those first that need most? Labelled rows of real text, ranked in
many ways.

    python -m benchmarks.real_text --books alice29.txt lcet10.txt --heads --output real_text.md

Every row is a stretch of a book of `--num_tokens` tokens, instruction and response included, of a kind of
`benchmarks.real_rows`: the response needs one, two, three or six facts from the first 60% of the context, or a passage of it; one
fact in an answer that otherwise needs nothing; a fact just outside or inside the short sibling's window; the end of the context,
or nothing. A good ranking puts rows that need far text before the others, and those that need more of it before those that need
less. The figures compare orders of rows on one small set, with one model: they say nothing of training.

Measuring takes a 135M model some 25 seconds a row of 2,048 tokens on one CPU core, and goes on where it was stopped
(`--store`). With `--columns FILE` the measured columns are kept, and a second run needs neither model nor books.

With `--heads` every row is measured a second time by retrieval heads, which other rows chose (`cam: heads`), and the order by them
is compared with the order by segments.
"""

import argparse
import shlex
import sys
import warnings
from pathlib import Path

import numpy as np
import pandas as pd

from benchmarks.common import default_model, hardware
from benchmarks.real_rows import FAR_SHARE, KINDS, NEAR_SHARE, make_rows, read_prose, read_short_instructions
from hf_gateau.models.config import ModelPairConfig
from hf_gateau.ranking.config import CAS_VARIANTS, HMP_VARIANTS, RANK_MODES
from hf_gateau.ranking.evidence import HEADS, NUM_FAR
from hf_gateau.ranking.formulas import MODES, normalised_rank
from hf_gateau.ranking.order import DegenerateRankingWarning, rank
from hf_gateau.report.quality import auroc, bootstrap_interval, precision_at


SHARES = (0.1, 0.3, 0.5)
NUM_CALIBRATION_ROWS = 3  # a kind, drawn with another seed
NUM_RESAMPLES = 2000


# From rows to columns


def measure(args: argparse.Namespace) -> pd.DataFrame:
    """Make the rows and measure them; how that was done is in the frame's `attrs`."""
    import torch
    from datasets import Dataset

    from hf_gateau.measuring.scorer import GateauScorer
    from hf_gateau.measuring.together import calibrate_heads
    from hf_gateau.models.pair import ModelPair

    model = args.model or default_model()
    pair = {"long_model": model, "short_window": args.short_window, "dtype": args.dtype}
    tokenizer = ModelPair(ModelPairConfig(**pair)).tokenizer
    books = [read_prose(path) for path in args.books]
    shorts = read_short_instructions(args.short_instructions)
    drawn = (books, tokenizer, args.num_tokens, args.short_window)
    ds = Dataset.from_list(make_rows(*drawn, args.rows_per_kind, shorts, args.seed))
    settings = {**pair, "segment_length": args.segment_length, "store": args.store}
    frame = ds.map(GateauScorer(**settings), batched=True).to_pandas()
    if args.heads:
        others = Dataset.from_list(make_rows(*drawn, NUM_CALIBRATION_ROWS, shorts, args.seed + 1))
        by_heads = GateauScorer(**settings, cam="heads")
        calibration = calibrate_heads(others, by_heads)
        frame[[HEADS, NUM_FAR]] = ds.map(by_heads, batched=True).to_pandas()[[HEADS, NUM_FAR]]
    frame.attrs = {
        "measured by": command(),
        "model": f"{Path(model).name}, {args.dtype}; the short sibling is the same model with a window of "
        f"{args.short_window} tokens",
        "hardware": f"{hardware()}, torch {torch.__version__}, torch threads: {torch.get_num_threads()}",
        "rows": f"{args.rows_per_kind} of each of {len(KINDS)} kinds, {args.num_tokens} tokens each, segments of "
        f"{args.segment_length}",
    }
    if args.heads:
        chosen = ", ".join(f"{layer}.{head}" for layer, head in calibration.heads)
        frame.attrs["heads"] = (
            f"Heads (layer.head) {chosen}, chosen by {len(others)} other rows; agreement on rows not used for choosing "
            f"{calibration.agreement:.2f}."
        )
    return frame


def command() -> str:
    """The command that made this, with the names of files alone."""
    arguments = [Path(argument).name if "/" in argument else argument for argument in sys.argv[1:]]
    return "`python -m benchmarks.real_text " + shlex.join(arguments) + "`"


# From columns to tables


def rankings(frame: pd.DataFrame) -> dict[str, dict]:
    """Name in the table -> arguments of `rank`, as far as the columns allow."""
    hmp, cas, _ = MODES["robust"]
    variants = [name for name in CAS_VARIANTS if name != "none" and (name != "heads" or HEADS in frame)]
    found = {
        f"**robust** (HMP {hmp}, CAS {cas})": {},
        **{mode: {"mode": mode} for mode in RANK_MODES if mode != "robust"},
        "robust without CAM": {"method": "without_cam"},
        "robust without HMG": {"method": "without_hmg"},
        "mean without CAM": {"method": "without_cam", "mode": "mean"},
        **{f"robust, CAS {name}": {"cas": name} for name in variants if name != cas},
        **{f"HMP {name} alone": {"hmp": name, "cas": "none"} for name in HMP_VARIANTS if name not in (hmp, "none")},
        **{f"CAS {name} alone": {"hmp": "none", "cas": name} for name in variants if name != cas},
        "LADM": {"method": "ladm"},
        "IFD of context": {"method": "ifd_context"},
        "Perplexity Guidance": {"method": "perplexity"},
        "longest": {"method": "longest"},
        "random": {"method": "random"},
    }
    return found


def ranked(frame: pd.DataFrame, **arguments) -> tuple[pd.DataFrame, bool]:
    """The rows with their ranks, and whether the ranking degenerates on them."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", DegenerateRankingWarning)
        out = rank(frame, **arguments).dropna(subset="gateau_score")
    return out, any(issubclass(warning.category, DegenerateRankingWarning) for warning in caught)


def follows_facts(scores: np.ndarray, num_facts: np.ndarray) -> float:
    """Spearman's correlation of scores with the number of far facts, over rows whose facts are counted."""
    counted = num_facts > 0
    a, b = normalised_rank(scores[counted]), normalised_rank(num_facts[counted].astype(float))
    return float(np.corrcoef(a, b)[0, 1]) if a.std() and b.std() else 0.0


def facts_interval(scores: np.ndarray, num_facts: np.ndarray) -> tuple[float, float]:
    """95% percentile bootstrap over the rows of each number of facts."""
    rng, groups = (
        np.random.default_rng(0),
        [np.flatnonzero(num_facts == n) for n in np.unique(num_facts[num_facts > 0])],
    )
    draws = [np.concatenate([rng.choice(group, len(group)) for group in groups]) for _ in range(NUM_RESAMPLES)]
    low, high = np.percentile([follows_facts(scores[draw], num_facts[draw]) for draw in draws], [2.5, 97.5])
    return float(low), float(high)


def ranking_table(frame: pd.DataFrame) -> str:
    """Markdown: how well each ranking puts the rows that need far text before the others, and those first that need more."""
    lines = [
        "| ranking | AUROC | 95% interval | precision in the top 25% | rank correlation with far facts | 95% interval |",
        "|---|---|---|---|---|---|",
    ]
    for name, arguments in rankings(frame).items():
        scored, degenerates = ranked(frame, **arguments)
        data = scored["gateau_score"].to_numpy(float), scored["needs_far"].to_numpy(bool)
        facts = data[0], scored["num_facts"].to_numpy(int)
        intervals = [
            f"{low:.3f} to {high:.3f}" for low, high in (bootstrap_interval(auroc, *data), facts_interval(*facts))
        ]
        cells = [f"{auroc(*data):.3f}", intervals[0], f"{precision_at(*data, 0.25):.2f}"]
        cells += [f"{follows_facts(*facts):.3f}", intervals[1]]
        lines.append(f"| {name}{' †' * degenerates} | {' | '.join(cells)} |")
    return "\n".join(lines)


def kept_table(frame: pd.DataFrame) -> str:
    """Markdown: how many rows of each kind stand in the top 10, 30 and 50% of some rankings."""
    compared = {
        "robust": {},
        "mean": {"mode": "mean"},
        "without CAM": {"method": "without_cam"},
        "in nats": {"hmp": "need", "cas": "far_need"},
        "key tokens": {"method": "key_tokens"},
        "LongFilter": {"method": "longfilter"},
        "by heads": {"cas": "heads"},
    }
    compared = {name: arguments for name, arguments in compared.items() if name != "by heads" or HEADS in frame}
    counts = {kind: [] for kind in KINDS}
    for arguments in compared.values():
        scored, _ = ranked(frame, **arguments)
        best = [scored[scored["gateau_rank"] <= round(share * len(scored))]["kind"].value_counts() for share in SHARES]
        for kind, cells in counts.items():
            cells.append(", ".join(str(count.get(kind, 0)) for count in best))
    lines = [
        "| kind | needs far text | rows | " + " | ".join(compared) + " |",
        "|---|---|---|" + "---|" * len(compared),
    ]
    for kind, cells in counts.items():
        needed = "yes" if KINDS[kind].needs_far else "no"
        lines.append(f"| {kind} | {needed} | {(frame['kind'] == kind).sum()} | {' | '.join(cells)} |")
    return "\n".join(lines)


def kind_table(frame: pd.DataFrame) -> str:
    """Markdown: the perplexities, log differences and tokens of need of each kind."""
    frame, _ = ranked(frame)
    frame["difference"] = np.log(frame["gateau_ppl_short"] / frame["gateau_ppl_long"])
    lines = [
        "| kind | PPL short | PPL long | mean log difference | response tokens | HMP: tokens that only far context tells | CAS: "
        "of them from far segments alone |",
        "|---|---|---|---|---|---|---|",
    ]
    for kind, rows in frame.groupby("kind", sort=False):
        short, long, length = (rows[f"gateau_{x}"].median() for x in ("ppl_short", "ppl_long", "num_response_tokens"))
        mean = (rows["difference"].mean(), rows["gateau_hmp"].mean(), rows["gateau_cas"].mean())
        lines.append(
            f"| {kind} | {short:.2f} | {long:.2f} | {mean[0]:+.3f} | {length:.0f} | {mean[1]:.2f} | {mean[2]:.2f} |"
        )
    return "\n".join(lines)


def heads_line(frame: pd.DataFrame) -> list[str]:
    """How far the order by heads is the order by segments; nothing where no heads measured."""
    if HEADS not in frame:
        return []
    full, heads = (ranked(frame, **arguments)[0] for arguments in ({}, {"cas": "heads"}))
    both = full[["gateau_rank", "gateau_score"]].join(heads[["gateau_rank"]], rsuffix="_heads", how="inner")
    spearman = float(np.corrcoef(both["gateau_rank"], both["gateau_rank_heads"])[0, 1])
    best = round(0.1 * len(both))
    same = ((both["gateau_rank"] <= best) & (both["gateau_rank_heads"] <= best)).sum()
    told = f"`cam: heads` against segments: rank correlation of `robust` {spearman:.3f}; {same} of the best {best} rows the same."
    return [told, "", frame.attrs["heads"], ""] if "heads" in frame.attrs else [told, ""]


def report(frame: pd.DataFrame) -> str:
    """The whole Markdown document."""
    far, errors = frame["needs_far"], frame["gateau_error"].notna().sum()
    facts = ", ".join(f"{kind.num_facts} ({name})" for name, kind in KINDS.items() if kind.num_facts)
    return "\n".join(
        [
            "# Which ranking finds the rows that need far text, and how much?",
            "",
            *(f"- {name}: {value}" for name, value in frame.attrs.items() if name != "heads"),
            *([f"- tables by: {command()}"] if command() != frame.attrs["measured by"] else []),
            f"- {len(frame)} rows, {far.sum()} of them need far text (chance precision {far.mean():.2f}), {errors} could "
            "not be measured",
            "",
            "AUROC of the kinds that need far text against the others, with a stratified percentile bootstrap; an interval "
            "without width means that these rows hold no error to draw, not that there is none. The rank correlation is with "
            f"the number of facts from the far text: {facts}.",
            "",
            f"What is far lies in the first {FAR_SHARE:.0%} of the context, what is near in its last {NEAR_SHARE:.0%}; facts at "
            "the window's edge lie beside it.",
            "",
            ranking_table(frame),
            "",
            "† `rank` warns that this ranking degenerates on these rows.",
            "",
            "Rows of each kind among the best 10, 30 and 50%:",
            "",
            kept_table(frame),
            "",
            *heads_line(frame),
            "Medians of perplexities and lengths; the log difference, in nats a token, is log PPL short - log PPL long.",
            "",
            kind_table(frame),
            "",
        ]
    )


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--books", nargs="+", help="UTF-8 text files, prose of some 100,000 characters or more")
    parser.add_argument("--model", help="folder, .gguf file or Hub id; default: SmolLM2-135M, see smollm2.py")
    parser.add_argument("--dtype", default="float32", help="dtype of the weights (default: %(default)s)")
    parser.add_argument(
        "--num_tokens", type=int, default=2048, help="tokens in a row, all told (default: %(default)s)"
    )
    parser.add_argument("--rows_per_kind", type=int, default=5, help="rows of each kind (default: %(default)s)")
    parser.add_argument("--short_window", type=int, default=512, help="tokens the sibling sees (default: %(default)s)")
    parser.add_argument("--segment_length", type=int, default=128, help="tokens in a segment (default: %(default)s)")
    parser.add_argument(
        "--short_instructions", help="self-instruct seed tasks (JSON lines) instead of the script's own"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the rows (default: %(default)s)")
    parser.add_argument("--heads", action="store_true", help="measure every row by retrieval heads too")
    parser.add_argument("--store", help="database of measured rows, 'off' for none; default: that of GateauScorer")
    parser.add_argument("--columns", help="Parquet file of measured columns: read if it exists, else written")
    parser.add_argument("--output", help="Markdown file for the tables, which are also printed")
    args = parser.parse_args()
    if not (args.books or (args.columns and Path(args.columns).exists())):
        parser.error("give --books, or --columns with a file that an earlier run has written")
    return args


def main() -> None:
    args = parse_args()
    if args.columns and Path(args.columns).exists():
        frame = pd.read_parquet(args.columns)
    else:
        frame = measure(args)
        if args.columns:
            frame.to_parquet(args.columns)
    text = report(frame)
    if args.output:
        Path(args.output).write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
