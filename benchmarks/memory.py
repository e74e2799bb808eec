"""Memory of measuring one sample: ours beside the straight way, each in a process of its own.

    python -m benchmarks.memory --context 8192 --output memory.md

Printed is the peak of resident memory (`ru_maxrss`) while the sample is measured, above what is resident once the
models are loaded and a tiny sample was measured. On Linux the peak is set back after loading; elsewhere a way that needs
less than loading did shows as "at most". The straight way (see `scoring.py`) reads attention of all layers from one pass
with `output_attentions=True`, or layer by layer with a hook; what cannot fit is left out, with the size it would take.
"""

import argparse
import json
import subprocess
import sys

from hf_gateau.models.device import keep_freed_memory

from . import common


WAYS = ("ours", "ours-windowed", "straight-by-layer", "straight")


def measure(way: str, pairs, sample, segment_length: int) -> None:
    """Measure one sample in one of the ways."""
    from .scoring import check_fits, measured, straight_parts

    full, windowed = pairs
    if way.startswith("ours"):
        measured(windowed if way == "ours-windowed" else full, [sample], segment_length)
        return
    by_layer = way == "straight-by-layer"
    check_fits(full.long, sample.response_end, by_layer)
    parts = straight_parts(full, windowed, sample, segment_length, by_layer)
    for name in parts.keys() - {"ppl_short_windowed"}:
        parts[name]()


def run_way(way: str, args: argparse.Namespace) -> dict:
    """Load, warm up and measure in this process; MiB of the models and of the peak above them, or why there is none."""
    if way.startswith("ours"):
        keep_freed_memory()  # as `hf-gateau score` does
    pairs, text = common.load_pairs(args), common.read_text(args.text)
    if way != "ours-windowed":
        with pairs[0].short():  # loads the short checkpoint
            pass
    tokenizer = pairs[0].tokenizer
    measure(way, pairs, common.text_sample(tokenizer, text, 64, 8, 8), args.segment_length)
    sample = common.text_sample(tokenizer, text, args.context, args.instruction, args.response)
    common.reset_peak_rss()
    loaded, earlier_peak = common.rss_mib(), common.peak_rss_mib()
    try:
        measure(way, pairs, sample, args.segment_length)
    except (MemoryError, RuntimeError) as error:  # PyTorch's CPU allocator raises RuntimeError
        return {"loaded": loaded, "failure": str(error).strip().splitlines()[0]}
    peak = common.peak_rss_mib()
    return {"loaded": loaded, "above": peak - loaded, "at_most": peak <= earlier_peak}


def in_own_process(way: str) -> dict:
    """The result of `run_way` from a new process with this one's arguments."""
    command = [sys.executable, "-m", "benchmarks.memory", *sys.argv[1:], "--child", way]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        return {"failure": f"the process ended with {done.returncode}" + " (killed)" * (done.returncode == -9)}
    return json.loads(done.stdout.splitlines()[-1])


def row(way: str, result: dict) -> str:
    loaded = f"{result['loaded']:,.0f}" if "loaded" in result else "-"
    above = result.get("failure") or f"{'at most ' * result['at_most']}{result['above']:,.0f}"
    return f"| {way} | {loaded} | {above} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    common.add_sample_arguments(parser)
    parser.add_argument("--context", type=int, default=8192, help="tokens of context")
    parser.add_argument("--ways", nargs="+", default=list(WAYS), choices=WAYS, help="what to measure")
    common.add_output_argument(parser)
    parser.add_argument("--child", choices=WAYS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        return print(json.dumps(run_way(args.child, args)))
    lines = [
        common.torch_header(args.dtype, args.model or common.default_model()),
        f"Peak of resident memory for one sample of {args.context:,} tokens of context.\n",
        "| way | models loaded, MiB | peak above, MiB |",
        "| --- | ---: | ---: |",
        *(row(way, in_own_process(way)) for way in args.ways),
    ]
    common.tell("\n".join(lines), args.output)


if __name__ == "__main__":
    main()
