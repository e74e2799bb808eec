"""Measuring one long sample with a model of a real model's shape and random weights: seconds, rate, memory.

    python -m benchmarks.long_context                                   # a GPU: a 7B-shaped Llama in bfloat16
    python -m benchmarks.long_context --shape tiny --contexts 512 1024  # its twin for a CPU

For each length of context and each part (the long pass with attention, the short pass of a windowed sibling, the segment
passes): seconds (the median of the repeats after a first one), tokens a second, the share of the rate at which the device
multiplies large matrices in the same run, and the peak of memory with the model in it. Beside them the straight way of the
long pass: eager attention that returns all its weights, and logits on every row; it fails where it does not fit.
"""

import argparse
import time
from collections.abc import Callable
from pathlib import Path

import torch

from hf_gateau.measuring.costs import RowShape, Way, flops, model_shape, row_work
from hf_gateau.measuring.segments import segment_nlls
from hf_gateau.models.attention import ATTENTION_NAME
from hf_gateau.models.collected import ResponseAttention
from hf_gateau.models.device import matrix_rate, synchronise
from hf_gateau.models.packing import Cut, Limits
from hf_gateau.models.perplexity import batch_nlls
from hf_gateau.planning.pilot import Memory
from hf_gateau.rows.samples import Sample

from . import common


# Of transformers' LlamaConfig
SHAPES = {
    "7b": {"hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "num_attention_heads": 32},
    "8b": {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32,
           "num_key_value_heads": 8, "vocab_size": 128_256},
    "tiny": {"hidden_size": 256, "intermediate_size": 688, "num_hidden_layers": 4, "num_attention_heads": 8},
}  # fmt: skip
PREFIX, INSTRUCTION, SHORT_WINDOW = 8, 64, 4096
GIB = 1 << 30
HEADER = ("context", "part", "seconds", "tokens/s", "share of matrix rate", "peak, GiB")


def random_model(shape: str, dtype: torch.dtype, device: torch.device):
    """A Llama of that shape with random weights, ready to be measured with."""
    from transformers import LlamaConfig

    config = LlamaConfig(**SHAPES[shape], max_position_embeddings=1 << 18, rope_parameters={"rope_theta": 1e7})
    return random_weights(config, dtype, device)


def random_weights(config, dtype: torch.dtype, device: torch.device):
    """A model of a configuration with random weights, ready to be measured with."""
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    with device:
        model = AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation=ATTENTION_NAME)
    return model.eval()


def random_sample(context: int, response: int, vocab_size: int) -> Sample:
    """Random tokens with the borders of a real sample."""
    generator = torch.Generator().manual_seed(0)
    length = PREFIX + context + INSTRUCTION + response
    ids = torch.randint(vocab_size, (length,), generator=generator).tolist()
    return Sample(ids, PREFIX, PREFIX + context, length - response, length)


def parts(model, sample: Sample, way: Way) -> dict[str, Callable[[], object]]:
    """What measuring a sample is made of, each as a call; as `measure_samples` does them."""
    seen = sample.context[-max(1, SHORT_WINDOW - INSTRUCTION) :]
    windowed = sample.prefix + seen + sample.instruction

    def long():
        attention = ResponseAttention([sample])
        batch_nlls(model, [sample.prompt], [sample.response], full=True, response_attention=attention)
        attention.segment_means(way.cut)

    return {
        "long": long,
        "short": lambda: batch_nlls(model, [windowed], [sample.response]),
        "segments": lambda: segment_nlls(model, [sample], way.cut, Limits(way.batch_tokens)),
    }


@torch.inference_mode()
def straight(model, sample: Sample) -> None:
    """The long pass with eager attention that returns its weights, and logits on every row."""
    model.set_attn_implementation("eager")
    try:
        ids = torch.tensor([sample.input_ids], device=model.device)
        outputs = model(ids, labels=ids, use_cache=False, output_attentions=True)
        rows = slice(sample.response_start, sample.response_end)
        torch.stack([weights[0, :, rows].float().mean(0) for weights in outputs.attentions]).mean(0)
    finally:
        model.set_attn_implementation(ATTENTION_NAME)


def timed(call: Callable[[], object], device: torch.device, num_repeats: int) -> tuple[float, float]:
    """Median seconds of the repeats after a first one, and the peak of memory in GiB, the model included."""
    seconds, memory = [], Memory(device)
    memory.reset_peak()
    for _ in range(num_repeats + 1):
        started = time.perf_counter()
        call()
        synchronise(device)
        seconds.append(time.perf_counter() - started)
    return sorted(seconds[1:])[num_repeats // 2], memory.peak() / GIB


def rows_of(model, args: argparse.Namespace, context: int, rate: float) -> list[list[str]]:
    """The lines of one length of context."""
    sample = random_sample(context, args.response, model.config.vocab_size)
    way = Way(Cut(args.segment_length), args.batch_tokens, SHORT_WINDOW, self_paired=True)
    shape, row = model_shape(model), RowShape.of(sample)
    work = row_work(shape, shape, row, way)
    lines = []
    for name, call in parts(model, sample, way).items():
        if name not in work:  # the window shows everything
            continue
        try:
            seconds, peak = timed(call, model.device, args.repeats)
        except torch.OutOfMemoryError:
            lines.append([f"{context:,}", name, "out of memory", "", "", ""])
            continue
        share = flops(work[name]) / seconds / rate
        speed = f"{row.length / seconds:,.0f}"
        lines.append([f"{context:,}", name, f"{seconds:.2f}", speed, f"{share:.0%}", f"{peak:.1f}"])
    if context <= args.straight_up_to:
        try:
            seconds, peak = timed(lambda: straight(model, sample), model.device, 1)
            lines.append([f"{context:,}", "long, the straight way", f"{seconds:.2f}", "", "", f"{peak:.1f}"])
        except (torch.OutOfMemoryError, RuntimeError) as error:  # a CPU's allocator raises the latter
            reason = str(error).strip().splitlines()[0][:80]
            lines.append([f"{context:,}", "long, the straight way", f"failed: {reason}", "", "", ""])
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", default="7b", choices=list(SHAPES))
    parser.add_argument("--contexts", type=int, nargs="+", default=[8192, 16_384, 32_768, 65_536, 131_072])
    parser.add_argument("--response", type=int, default=500, help="tokens of the response")
    parser.add_argument("--segment_length", type=int, default=128)
    parser.add_argument("--batch_tokens", type=int, default=65_536, help="most tokens in a batch of segments")
    parser.add_argument("--dtype", default="bfloat16", choices=["bfloat16", "float16", "float32"])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument(
        "--straight_up_to", type=int, default=65_536, help="longest context for the straight way; 0: none"
    )
    common.add_output_argument(parser)
    args = parser.parse_args()
    device, dtype = torch.device(args.device), getattr(torch, args.dtype)
    model = random_model(args.shape, dtype, device)
    rate = matrix_rate(device, dtype)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else common.hardware()
    about = f"{name}. A {args.shape} Llama, random weights, {args.dtype}; matrix rate {rate / 1e12:.2f} TFLOP/s."
    print(f"{about}\n", flush=True)
    lines = ["| " + " | ".join(HEADER) + " |", "| ---: | --- | ---: | ---: | ---: | ---: |"]
    print("\n".join(lines), flush=True)
    for context in args.contexts:
        for cells in rows_of(model, args, context, rate):
            lines.append("| " + " | ".join(cells) + " |")
            print(lines[-1], flush=True)
    if args.output:
        Path(args.output).write_text("\n".join([about, "", *lines]) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
