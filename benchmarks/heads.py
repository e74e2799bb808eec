"""What a row costs that is measured by retrieval heads (`cam: heads`), against its segments.

    OMP_NUM_THREADS=1 python -m benchmarks.heads --output heads.md

One sample, on the CPU, in CPU seconds of one process. **Passes** are the long and the short pass alone, with nothing collected; the
others are all that is measured of a row, by heads and by segments. Both siblings are measured: a short checkpoint (the same weights,
in a pass of their own over everything), and a window. Which heads are taken changes no time: one in each of eight layers here.
"""

import argparse
import time
from collections.abc import Callable

import torch

from hf_gateau.markdown import table
from hf_gateau.measuring.heads import HeadCalibration
from hf_gateau.measuring.passes import measure_samples
from hf_gateau.measuring.runtime import CPU_BATCH_TOKENS
from hf_gateau.models.device import keep_freed_memory
from hf_gateau.models.packing import Cut, Limits
from hf_gateau.models.perplexity import batch_nlls

from . import common


NUM_HEADS = 8
BINS = tuple(range(32))  # of distances up to 2 ** 16


def cpu_seconds(work: Callable[[], object]) -> float:
    started = time.process_time()
    with torch.inference_mode():
        work()
    return time.process_time() - started


def passes(pair, sample) -> None:
    """The long and the short pass, and nothing else."""
    batch_nlls(pair.long, [sample.prompt], [sample.response])
    with pair.short() as model:
        batch_nlls(model, [sample.prefix + pair.short_context(sample) + sample.instruction], [sample.response])


def costs(pair, args: argparse.Namespace) -> tuple[float, float, float]:
    """CPU seconds of the passes alone, by heads, and by segments."""
    pair.load()
    text = common.read_text(args.text)
    sample = common.text_sample(pair.tokenizer, text, args.context, args.instruction, args.response)
    layers, cut, limits = pair.long.config.num_hidden_layers, Cut(args.segment_length), Limits(CPU_BATCH_TOKENS)
    chosen = tuple((layer * layers // NUM_HEADS, 0) for layer in range(min(NUM_HEADS, layers)))
    heads = HeadCalibration(chosen, BINS, tuple((0.0,) * len(BINS) for _ in chosen))
    return (
        cpu_seconds(lambda: passes(pair, sample)),
        cpu_seconds(lambda: measure_samples(pair, [sample], cut, limits, heads=heads)),
        cpu_seconds(lambda: measure_samples(pair, [sample], cut, limits)),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    common.add_sample_arguments(parser)
    parser.add_argument("--context", type=int, default=4096, help="tokens in the context (default: %(default)s)")
    common.add_output_argument(parser)
    args = parser.parse_args()
    keep_freed_memory()
    rows = []
    for name, pair in zip(("checkpoint", f"last {args.short_window}"), common.load_pairs(args), strict=True):
        plain, by_heads, by_segments = costs(pair, args)
        cells = (plain, by_heads, by_heads / plain, by_segments, by_segments / plain)
        rows.append([name, *(f"{x:.2f}" for x in cells)])
    header = ["short sibling", "passes, CPU s", "by heads", "by heads / passes", "by segments", "by segments / passes"]
    told = [
        common.torch_header(args.dtype, args.model or "SmolLM2-135M-Instruct"),
        f"{args.context:,} context and {args.response:,} response tokens, segments of {args.segment_length}.\n",
        table(header, rows),
    ]
    common.tell("\n".join(told), args.output)


if __name__ == "__main__":
    main()
