"""What cheaper ways do to an order of rows: the same samples measured in other dtypes or settings, then ranked.

    python -m benchmarks.precision --data train.jsonl --output precision.md
    python -m benchmarks.precision --data train.jsonl --ways segment_stride=4 segment_length=256 response_head=50

Real rows in LongAlign's form, spread evenly over the lengths of the file, each cut to the last `--context` tokens of its
context, are measured in float32 by one model and its windowed sibling, and in each of `--ways`, and ranked by the default
mode. Every way is compared with float32: the orders (Spearman's rank correlation, rows that both keep), the raw columns
(largest relative deviation of any number), and the seconds. A way is a dtype, which weights and arithmetic are of; '8bit'
or '4bit', bitsandbytes' layers with the rest in float32; or a setting of `hf-gateau score` with its value, in float32.

CPUs without half-precision arithmetic emulate it: count on some ten times float32's time. Nothing is kept between runs.
"""

import argparse
import gc
import json
import logging
import math
import tempfile
import time
from contextlib import contextmanager
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pandas as pd

from hf_gateau.measuring.config import MeasureConfig
from hf_gateau.models.config import ModelPairConfig
from hf_gateau.ranking.order import rank
from hf_gateau.rows.samples import Sample, build_sample, truncate_context, truncate_response
from hf_gateau.store.sqlite import MeasureError

from . import common


DTYPES, BITS = ("bfloat16", "float16", "float32"), ("8bit", "4bit")
SETTINGS = ("segment_stride", "segment_length", "response_head", "short_window")
REUSE = "short_pass=reuse"
SHARES = (0.1, 0.3)
RAW = ("ppl_short", "ppl_long", "ppl_no_context", "segment_ppl", "segment_attention")
MIN_SAMPLES = 3  # fewer have no order to speak of
WARM_UP = Sample(list(range(10, 42)), 0, 16, 24, 32)


# Samples


def read_samples(path: str, tokenizer, num_samples: int, num_context: int) -> list[Sample]:
    """Rows of a JSONL file, spread evenly over its lengths from the shortest to the longest, each with the last
    `num_context` tokens of its context (0: all of it).

    Raises:
        ValueError: the file has fewer rows.
        SampleError: a row that was chosen cannot be measured.
    """
    rows = [json.loads(line) for line in Path(path).read_text(encoding="utf-8").splitlines() if line.strip()]
    if not MIN_SAMPLES <= num_samples <= len(rows):
        raise ValueError(
            f"{num_samples} samples were asked for, and {path} has {len(rows)} rows; give --samples from {MIN_SAMPLES} to "
            "that number."
        )
    rows.sort(key=lambda row: len(json.dumps(row)))
    places = np.linspace(0, len(rows) - 1, num_samples).round().astype(int)
    return [_with_context(build_sample(rows[place], tokenizer), num_context) for place in places]


def _with_context(sample: Sample, num_context: int) -> Sample:
    excess = len(sample.context) - num_context
    return truncate_context(sample, sample.response_end - excess) if num_context and excess > 0 else sample


# Measuring


@contextmanager
def unpacked(model: str):
    """The model as a folder or Hub id, since what a .gguf file holds can be put into no other dtype's layers as it is."""
    if not model.endswith(".gguf"):
        yield model
        return
    with tempfile.TemporaryDirectory() as folder:
        for part in common.load_for_training(model):
            part.save_pretrained(folder)
        yield folder


def settings(way: str) -> dict:
    """The settings of `ModelPairConfig` and `MeasureConfig` that stand for a way of the table."""
    if way in BITS:
        return {f"load_in_{way}": True, "dtype": "float32"}
    if way in DTYPES:
        return {"dtype": way}
    name, _, value = way.partition("=")
    return {"dtype": "float32", name: int(value) if value.isdigit() else value}


def is_way(text: str) -> str:
    """The text, if it names a way; for argparse."""
    name, _, value = text.partition("=")
    if text not in (*DTYPES, *BITS, REUSE) and not (name in SETTINGS and value.isdigit()):
        raise argparse.ArgumentTypeError(
            f"{text!r} is no way; give one of {', '.join((*DTYPES, *BITS, REUSE))}, or {', '.join(SETTINGS)} with =NUMBER"
        )
    return text


def measure(model: str, way: str, samples: list[Sample] | None, args: argparse.Namespace):
    """The samples' raw columns as a frame, and the seconds that each took (CPU seconds on a CPU, else wall seconds)."""
    from hf_gateau.measuring.runtime import Runtime

    given = {"short_window": args.short_window, "segment_length": args.segment_length, **settings(way)}
    of_pair = {name: given.pop(name) for name in list(given) if name in ModelPairConfig.__dataclass_fields__}
    runtime = Runtime(
        ModelPairConfig(long_model=model, device=args.device, **of_pair), MeasureConfig(store="off", **given)
    )
    if samples is None:
        samples = read_samples(args.data, runtime.pair.tokenizer, args.samples, args.context)
    clock = time.process_time if runtime.pair.device.type == "cpu" else time.perf_counter
    list(runtime.measure([WARM_UP]))  # loads the weights
    rows, seconds = [], []
    for i, sample in enumerate(samples):
        started, row = clock(), {"gateau_key": sample.key, "gateau_error": None}
        [(_, measured)] = runtime.measure(
            [truncate_response(sample, given.get("response_head", len(sample.response)))]
        )
        if isinstance(measured, MeasureError):
            row["gateau_error"] = str(measured)
        else:
            row |= {f"gateau_{name}": value for name, value in asdict(measured).items()}
        seconds.append(clock() - started)
        rows.append(row | {"gateau_num_context_tokens": len(sample.context)})
        print(f"{way}: sample {i + 1} of {len(samples)}, {seconds[-1]:.1f} s", flush=True)
    return pd.DataFrame(rows), sum(seconds), samples


# Comparing


def spearman(a: pd.Series, b: pd.Series) -> float:
    """Rank correlation; ties share their mean rank."""
    return float(np.corrcoef(a.rank(), b.rank())[0, 1])


def overlap(a: pd.Series, b: pd.Series, num_kept: int) -> int:
    """How many rows are among the best `num_kept` of both, by score, ties in the frame's order."""
    return len(set(a.nlargest(num_kept).index) & set(b.nlargest(num_kept).index))


def num_kept(num_rows: int, share: float) -> int:
    return max(1, round(share * num_rows))


def largest_deviation(exact: pd.Series, other: pd.Series) -> float:
    """Of any number in a column, relative to the exact one."""
    a, b = (np.concatenate([np.atleast_1d(value) for value in column]).astype(float) for column in (exact, other))
    return float(np.max(np.abs(b / a - 1))) if len(a) == len(b) else math.nan  # other segments


def compare(exact: pd.DataFrame, other: pd.DataFrame) -> dict[str, str]:
    """One row of the table but for its seconds, by column, on the rows that could be measured and ranked in both."""
    usable = exact["gateau_error"].isna() & other["gateau_error"].isna()
    usable &= np.logical_and(*(rank(frame)["gateau_score"].notna() for frame in (exact, other)))
    left_out = f"{(~usable).sum()} of {len(usable)}"
    if usable.sum() < MIN_SAMPLES:
        return {"left out": left_out}
    exact, other = (frame[usable].reset_index(drop=True) for frame in (exact, other))
    scores = [rank(frame)["gateau_score"] for frame in (exact, other)]
    differences = [np.log(frame["gateau_ppl_short"] / frame["gateau_ppl_long"]) for frame in (exact, other)]
    cells = {"left out": left_out, "score": f"{spearman(*scores):.4f}"}
    for share in SHARES:
        kept = num_kept(len(exact), share)
        cells[f"top {share:.0%}"] = f"{overlap(*scores, kept)} of {kept}"
    cells["log PPL difference"] = f"{spearman(*differences):.4f}"
    for name in RAW:
        cells[name] = f"{largest_deviation(exact[f'gateau_{name}'], other[f'gateau_{name}']):.1e}"
    return cells


def table(rows: dict[str, dict[str, str]]) -> str:
    """Markdown from the cells of each way; what a way has no figure for is left blank."""
    columns = [
        "score",
        *(f"top {share:.0%}" for share in SHARES),
        "log PPL difference",
        *RAW,
        "seconds",
        "left out",
    ]
    lines = [f"| way | {' | '.join(columns)} |", "| --- |" + " ---: |" * len(columns)]
    lines += [f"| {way} | {' | '.join(cells.get(name, '') for name in columns)} |" for way, cells in rows.items()]
    return "\n".join(lines)


ABOUT = (
    "Against float32: `score` and `log PPL difference` are Spearman's rank correlation, `top` the rows that both orders keep, "
    "the five columns after them the largest relative deviation of any of their numbers, `seconds` a ratio, `left out` the "
    "rows that one of the two could not measure or rank.\n"
)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="JSONL file of rows in LongAlign's form")
    parser.add_argument("--model", help="folder, .gguf file or Hub id; default: SmolLM2-135M, see smollm2.py")
    parser.add_argument("--ways", nargs="+", default=["bfloat16"], type=is_way, help="beside float32")
    parser.add_argument("--samples", type=int, default=24, help="rows to measure")
    parser.add_argument("--context", type=int, default=1024, help="tokens of context at most; 0: all there are")
    parser.add_argument("--short-window", type=int, default=512, help="tokens that the windowed sibling sees")
    parser.add_argument("--segment-length", type=int, default=128, help="tokens in a segment")
    parser.add_argument("--device", default="cpu", help="'auto', 'cpu', 'cuda', ...")
    common.add_output_argument(parser)
    args = parser.parse_args()
    if not Path(args.data).is_file():
        parser.error(f"--data {args.data} is no file; give a .jsonl file")
    if 0 < args.context <= args.short_window:
        parser.error(
            f"the sibling's window of {args.short_window} tokens shows it all of --context {args.context}; lower "
            "--short-window"
        )
    if set(BITS) & set(args.ways) and find_spec("bitsandbytes") is None:
        parser.error("8bit and 4bit need bitsandbytes: pip install bitsandbytes, or leave them out of --ways")
    return args


def main() -> None:
    args = parse_args()
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # it says for every product that it casts the input
    model = args.model or common.default_model()
    rows = {}
    with unpacked(model) as folder:
        exact, exact_seconds, samples = measure(folder, "float32", None, args)
        for way in args.ways:
            gc.collect()  # the model before
            other, seconds, _ = measure(folder, way, samples, args)
            rows[way] = compare(exact, other) | {"seconds": f"{seconds / exact_seconds:.2f}"}
            print(table({way: rows[way]}), flush=True)  # progress, in case the run is cut short
    lengths = [len(sample.context) for sample in samples]
    kept = ", ".join(f"top {share:.0%}: {num_kept(len(samples), share)}" for share in SHARES)
    lines = [
        common.torch_header("float32 and others", model),
        f"{len(samples)} rows, {min(lengths):,} to {max(lengths):,} tokens of context, {exact_seconds / len(samples):.1f} s a "
        f"row in float32 ({kept}). The sibling sees {args.short_window:,} tokens.\n",
        ABOUT,
        table(rows),
    ]
    common.tell("\n".join(lines), args.output)


if __name__ == "__main__":
    main()
