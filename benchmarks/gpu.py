"""Measuring on one GPU, beside the limits that the same card shows in the same run.

    python -m benchmarks.gpu --output gpu.md   # one NVIDIA card of 80 GB, under 4 minutes
    python -m benchmarks.gpu --toy             # the same on a CPU at toy size, to see that it runs

- **limits**: the rate of large matrix products; copies from pinned host memory and back; causal attention by each of torch's
  kernels.
- **parts of a row**: a 7B-shaped Llama in bfloat16 with random weights, 500 response tokens, as `benchmarks.long_context`: the
  long pass with its attention, a window of 4k, the segments of 128. At the longest context also the whole row with
  retrieval heads in place of the segments. Shares are of the matrix rate; memory is what is above the loaded weights.
- **long pass beside the plain decoder**: transformers' own decoder with SDPA, without logits or attention weights, by each kernel.
- **fused kernels**: the long pass and the segments with transformers' own kernels, with `use_fused_attention`, with `torch.compile`'s
  norms and gated MLPs, and with Liger's (`use_liger_kernel`), where it is installed; how far the numbers are from the first, and the
  memory. Then the long pass of four layers of models that SDPA serves in part or not at all (Gemma 2's soft-capped scores, GPT-OSS's
  sinks, Gemma 3's windows), without and with `use_fused_attention`.
- **rows from end to end**: `measure_together` of 100 rows of real text, about 7,500 tokens each, after loading; and what
  `make_plan` had said of them. Models of 135M and 1B parameters, random weights in SmolLM2's and Llama 3.2's shapes, a tokenizer
  trained on the text. Random weights take the time of real ones. Without fused kernels, and with all that there are.

Parts that would begin after `--seconds` are left out, and named.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from hf_gateau.measuring.costs import RowShape, Way, flops, model_shape, row_work
from hf_gateau.models.attention import ATTENTION_NAME
from hf_gateau.models.collected import HeadAttention
from hf_gateau.models.device import matrix_rate, synchronise
from hf_gateau.models.kernels import attention_kernel
from hf_gateau.models.packing import Cut
from hf_gateau.models.perplexity import batch_nlls
from hf_gateau.planning.pilot import Memory

from . import common, fused
from .long_context import SHORT_WINDOW, parts, random_model, random_sample


GIB = 1 << 30
LONG = 1.5  # seconds
KERNELS = {"cuDNN": SDPBackend.CUDNN_ATTENTION, "flash": SDPBackend.FLASH_ATTENTION}
NO_GPU = "No NVIDIA GPU is here, so that no GPU figure is printed: what follows are a CPU's, at toy size."
SMOLLM2 = {"hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30, "num_attention_heads": 9,
           "num_key_value_heads": 3, "vocab_size": 49_152, "tie_word_embeddings": True}  # fmt: skip
LLAMA_1B = {"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "num_attention_heads": 32,
            "num_key_value_heads": 8, "vocab_size": 128_256, "tie_word_embeddings": True}  # fmt: skip
TOY = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "vocab_size": 2_000,
}
TOKENIZER_SIZE, CHARACTERS = 2_000, 3.3  # of its tokens, about


@dataclass(frozen=True)
class Sizes:
    """What is measured: a card's, or a CPU's at toy size."""

    shape: str = "7b"
    contexts: tuple[int, ...] = (8_192, 32_768, 65_536)
    compared: int = 32_768  # the context of the plain decoder
    of_types: int = 16_384  # that of models that SDPA does not serve
    response: int = 500
    segment: int = 128
    window: int = SHORT_WINDOW
    repeats: int = 2
    attention: tuple[tuple[int, int, int, int], ...] = ((90, 32, 700, 128), (1, 32, 16_384, 128), (1, 32, 65_536, 128))
    copied: int = 1 << 30
    models: tuple[tuple[str, dict], ...] = (("135M", SMOLLM2), ("1B", LLAMA_1B))
    rows: int = 100
    row_tokens: int = 7_500
    pilot_seconds: float = 15.0
    dtype: str = "bfloat16"


ON_A_CARD = Sizes()
AT_TOY_SIZE = Sizes(
    "tiny", (256, 512), 512, 256, 20, 64, 100, 1, ((2, 4, 64, 16),), 1 << 20, (("toy", TOY),), 4, 400, 2.0, "float32"
)


class Report:
    """Lines, printed as they come and kept; and the time that is left for more."""

    def __init__(self, seconds: float):
        self.lines, self.deadline, self.started = [], time.monotonic() + seconds, time.monotonic()

    def say(self, line: str = "") -> None:
        self.lines.append(line)
        print(line, flush=True)

    def table(self, header: Sequence[str], rows: Iterator[Sequence[str]]) -> None:
        """A Markdown table whose rows are measured one after the other."""
        self.say()
        for cells in (header, ["---"] * len(header)):
            self.say(f"| {' | '.join(cells)} |")
        for cells in rows:
            self.say(f"| {' | '.join(cells)} |")

    def has_time(self, what: str) -> bool:
        """Whether a part may begin; says so where it may not."""
        if time.monotonic() < self.deadline:
            return True
        self.say(f"\nLeft out for want of time: {what}.")
        return False


def timed(call: Callable[[], object], device: torch.device, repeats: int) -> float:
    """Least seconds of some calls after a first one; of one alone where that takes long, and so differs little."""
    best = float("inf")
    for i in range(repeats + 1):
        synchronise(device)
        started = time.perf_counter()
        call()
        synchronise(device)
        best = min(best, time.perf_counter() - started) if i else best
        if LONG < best < float("inf"):
            break
    return best


@contextmanager
def by_kernel(name: str | None) -> Iterator[None]:
    """Attention by one of torch's kernels, or by what torch chooses."""
    if name is None:
        yield
        return
    with sdpa_kernel([KERNELS[name], SDPBackend.MATH], set_priority=True):
        yield


def kernels_of(device: torch.device) -> list[str | None]:
    """Those that are compared."""
    return [None, *KERNELS] if device.type == "cuda" else [None]


# Limits


def limits(report: Report, sizes: Sizes, device: torch.device, rate: float) -> None:
    """Matrix rate, copy rates, attention by each kernel."""
    host = torch.empty(sizes.copied, dtype=torch.uint8, pin_memory=device.type == "cuda")
    there = torch.empty_like(host, device=device)
    to, back = (timed(partial(a.copy_, b, non_blocking=True), device, 3) for a, b in ((there, host), (host, there)))
    report.table(
        ("limit", "rate"),
        iter(
            [
                ("matrix products", f"{rate / 1e12:.2f} TFLOP/s"),
                (
                    "copies to the device, and back",
                    f"{sizes.copied / to / 1e9:.1f}, {sizes.copied / back / 1e9:.1f} GB/s",
                ),
            ]
        ),
    )
    report.table(("causal attention", "kernel", "TFLOP/s"), _attention_rates(sizes, device))


def _attention_rates(sizes: Sizes, device: torch.device) -> Iterator[Sequence[str]]:
    for batch, heads, tokens, size in sizes.attention:
        query, key, value = (
            torch.randn(batch, heads, tokens, size, device=device, dtype=getattr(torch, sizes.dtype)) for _ in range(3)
        )
        work = 2 * batch * heads * tokens**2 * size
        for kernel in kernels_of(device):
            try:
                with by_kernel(kernel):
                    call = partial(torch.nn.functional.scaled_dot_product_attention, query, key, value, is_causal=True)
                    found = f"{work / timed(call, device, 3) / 1e12:.2f}"
            except RuntimeError as error:
                found = f"fails: {str(error).splitlines()[0][:60]}"
            yield f"{batch} x {heads} x {tokens:,} x {size}", kernel or "torch's choice", found


# One row


def parts_of_rows(report: Report, sizes: Sizes, model, rate: float) -> None:
    """Every part at every context, then the longest row with heads, and the long pass beside the plain decoder."""
    header = ("context", "part", "seconds", "tokens/s", "of the matrix rate", "GiB above the weights")
    report.table(header, _parts(report, sizes, model, rate))
    if report.has_time("the long pass beside the plain decoder"):
        header = (f"{sizes.compared:,} tokens, attention by", "plain decoder", "long pass", "plain / long pass")
        report.table(header, _beside_plain(sizes, model, rate))
    if report.has_time("fused kernels"):
        contexts = {"long": sizes.compared, "segments": sizes.contexts[0]}
        samples = {x: random_sample(n, sizes.response, model.config.vocab_size) for x, n in contexts.items()}
        header = ("kernels", *(f"{x}, {n:,} tokens" for x, n in contexts.items()), *fused.HEADER)
        report.table(header, fused.ways(report, model, samples, _way(sizes), rate, _timed(sizes, model.device)))


def types_of_models(report: Report, sizes: Sizes, device: torch.device) -> None:
    """The long pass of models that SDPA serves in part or not at all, without and with fused attention."""
    if report.has_time("models that SDPA does not serve"):
        how = (_way(sizes), device, getattr(torch, sizes.dtype), _timed(sizes, device))
        header = (f"{sizes.of_types:,} tokens, four layers of", *fused.HEADER_OF_TYPES)
        report.table(header, fused.types(report, sizes.of_types, sizes.response, *how))


def _timed(sizes: Sizes, device: torch.device) -> Callable[[Callable[[], object]], float]:
    return lambda call: timed(call, device, sizes.repeats)


def _way(sizes: Sizes, heads=None) -> Way:
    return Way(Cut(sizes.segment), 65_536, sizes.window, self_paired=True, heads=heads)


def _parts(report: Report, sizes: Sizes, model, rate: float) -> Iterator[Sequence[str]]:
    device, memory, shape = model.device, Memory(model.device), model_shape(model)
    for context in sizes.contexts:
        if not report.has_time(f"{context:,} tokens of context"):
            return
        sample = random_sample(context, sizes.response, model.config.vocab_size)
        row, seconds = RowShape.of(sample), {}
        calls = parts(model, sample, _way(sizes))
        if context == sizes.contexts[-1]:
            heads = tuple((layer, layer % 4) for layer in range(0, model.config.num_hidden_layers, 4))
            calls["long, by heads"] = partial(_long_by_heads, model, sample, sizes, heads)
        for name, call in calls.items():
            chosen = heads if name.endswith("heads") else None
            work = row_work(shape, shape, row, _way(sizes, chosen)).get(name.partition(",")[0])
            if work is None:  # the window shows everything
                continue
            loaded = memory.now()
            memory.reset_peak()
            seconds[name] = timed(call, device, sizes.repeats)
            above = (memory.peak() - loaded) / GIB
            share = f"{flops(work) / seconds[name] / rate:.0%}"
            yield (
                f"{context:,}",
                name,
                f"{seconds[name]:.3f}",
                f"{row.length / seconds[name]:,.0f}",
                share,
                f"{above:.1f}",
            )
    by_heads = seconds["long, by heads"] + seconds.get("short", 0.0)
    by_segments = seconds["long"] + seconds.get("short", 0.0) + seconds["segments"]
    for name, found in (("whole row by heads", by_heads), ("whole row by segments", by_segments)):
        yield f"{context:,}", name, f"{found:.3f}", f"{row.length / found:,.0f}", "", ""


def _long_by_heads(model, sample, sizes: Sizes, heads) -> None:
    attention = HeadAttention([sample], Cut(sizes.segment), heads)
    batch_nlls(model, [sample.prompt], [sample.response], full=True, response_attention=attention)
    attention.segment_heads()


def _beside_plain(sizes: Sizes, model, rate: float) -> Iterator[Sequence[str]]:
    sample = random_sample(sizes.compared, sizes.response, model.config.vocab_size)
    ids = torch.tensor([sample.input_ids], device=model.device)
    shape = model_shape(model)
    work = flops(row_work(shape, shape, RowShape.of(sample), _way(sizes))["long"])

    @torch.inference_mode()
    def plain():
        model.set_attn_implementation("sdpa")
        try:
            model.model(input_ids=ids, use_cache=False)
        finally:
            model.set_attn_implementation(ATTENTION_NAME)

    for kernel in kernels_of(model.device):
        with by_kernel(kernel):
            both = [timed(x, model.device, sizes.repeats) for x in (plain, parts(model, sample, _way(sizes))["long"])]
        cells = [f"{x:.3f} s, {work / x / rate:.0%}" for x in both]
        yield kernel or "torch's choice", *cells, f"{both[0] / both[1]:.2f}"


# Rows from end to end

ATTENTION, LIGER = {"use_fused_attention": True}, {"use_liger_kernel": True}
END_TO_END = {"transformers'": {}, "fused attention": ATTENTION, "Liger's and fused attention": ATTENTION | LIGER}


def rows_end_to_end(report: Report, sizes: Sizes, device: torch.device) -> None:
    """`make_plan`, then `measure_together`, of the same rows."""
    header = (
        "model",
        "kernels",
        "rows",
        "tokens",
        "planned s",
        "measured s",
        "planned / measured",
        "tokens/s",
        "of the matrix rate",
    )
    report.table(header, _end_to_end(report, sizes, device))


def _end_to_end(report: Report, sizes: Sizes, device: torch.device) -> Iterator[Sequence[str]]:
    from datasets import Dataset, disable_progress_bars

    from hf_gateau.measuring.config import MeasureConfig
    from hf_gateau.measuring.scorer import GateauScorer
    from hf_gateau.measuring.together import measure_together
    from hf_gateau.models.config import ModelPairConfig
    from hf_gateau.planning.plan import make_plan

    disable_progress_bars()
    text = common.read_text(None)
    for name, shape in sizes.models:
        if not report.has_time(f"rows from end to end, {name}"):
            return
        with tempfile.TemporaryDirectory() as folder:
            model = save_model(Path(folder, "model"), shape, sizes.dtype, text, device)
            ds = Dataset.from_list(real_rows(text, sizes))
            pair = {"long_model": model, "short_window": sizes.window, "device": str(device), "dtype": sizes.dtype}
            measure = {"segment_length": sizes.segment, "store": str(Path(folder, "store.sqlite"))}
            plan = make_plan(ds, ModelPairConfig(**pair), MeasureConfig(**measure), pilot_seconds=sizes.pilot_seconds)
            said = plan["seconds"]["total"] - plan["seconds"]["loading"] - plan["seconds"]["laying_out"]
            for kernels, options in END_TO_END.items():
                if not report.has_time(f"{name} by {kernels} kernels"):
                    return
                told = []
                try:
                    measure["store"] = str(Path(folder, f"{kernels}.sqlite"))
                    scorer = GateauScorer(**pair, **measure, **options)
                    scorer.start().get_ready()
                    measure_together(ds, scorer, told.append)
                except Exception as error:  # whatever a kernel's own code raises
                    yield name, kernels, str(len(ds)), "", "", fused.why_not(error), "", "", ""
                    continue
                [summary] = told
                seconds = summary.measuring_seconds
                speed, share = f"{summary.tokens_per_second:,.0f}", f"{summary.share_of_matrix_rate:.0%}"
                cells = f"{said:.2f}", f"{seconds:.2f}", f"{said / seconds:.2f}", speed, share
                yield name, kernels, f"{summary.measured} of {len(ds)}", f"{summary.tokens:,}", *cells


def save_model(folder: Path, shape: dict, dtype: str, text: str, device: torch.device) -> str:
    """A Llama of some shape with random weights, and a tokenizer trained on the text; returns the folder."""
    from tokenizers import ByteLevelBPETokenizer
    from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedTokenizerFast

    trained = ByteLevelBPETokenizer()
    trained.train_from_iterator(
        [text[:300_000]], vocab_size=TOKENIZER_SIZE, special_tokens=["<s>", "</s>"], show_progress=False
    )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=trained._tokenizer, bos_token="<s>", eos_token="</s>")
    tokenizer.chat_template = "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + eos_token }}{% endfor %}"
    config = LlamaConfig(**shape, max_position_embeddings=1 << 17, bos_token_id=0, eos_token_id=1)
    torch.manual_seed(0)
    with device:
        model = AutoModelForCausalLM.from_config(config, dtype=getattr(torch, dtype))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def real_rows(text: str, sizes: Sizes) -> list[dict[str, str]]:
    """Rows of about as many tokens, between two thirds and four thirds of it, from places all over the text."""
    rows = []
    for i in range(sizes.rows):
        length = int(CHARACTERS * sizes.row_tokens * (2 / 3 + 2 / 3 * i / max(1, sizes.rows - 1)))
        answer = int(CHARACTERS * sizes.response / 2)
        start = (i * 7_919) % max(1, len(text) - length)
        row = text[start : start + length]
        rows.append(
            {"context": row[:-answer], "instruction": f"Go on, for the {i}th time.", "response": row[-answer:]}
        )
    return rows


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--toy", action="store_true", help="on the CPU, at toy size")
    parser.add_argument("--rows", type=int, help="rows from end to end; default: 100")
    parser.add_argument("--seconds", type=float, default=200.0, help="after which no part begins")
    common.add_output_argument(parser)
    args = parser.parse_args(arguments)
    if not args.toy and not torch.cuda.is_available():
        sys.exit("torch sees no NVIDIA GPU here; `--toy` runs the same on a CPU at toy size.")
    sizes, device = (AT_TOY_SIZE, torch.device("cpu")) if args.toy else (ON_A_CARD, torch.device("cuda", 0))
    sizes = sizes if args.rows is None else replace(sizes, rows=args.rows)
    report = Report(args.seconds)
    try:
        run(report, sizes, device)
    finally:  # what was measured is not lost to a part that fails
        if args.output:
            Path(args.output).write_text("\n".join(report.lines) + "\n", encoding="utf-8")


def run(report: Report, sizes: Sizes, device: torch.device) -> None:
    """All parts, one after the other."""
    dtype = getattr(torch, sizes.dtype)
    model, rate = random_model(sizes.shape, dtype, device), matrix_rate(device, dtype)
    if device.type == "cpu":
        report.say(f"{NO_GPU}\n\n{common.hardware()}, torch {torch.__version__}")
    else:
        kernel = attention_kernel(model)
        report.say(f"{torch.cuda.get_device_name(device)}, torch {torch.__version__}, CUDA {torch.version.cuda}")
        report.say(f"Attention by {kernel.name}. {kernel.warning or ''}" if kernel else "Attention: not known.")
    limits(report, sizes, device, rate)
    if report.has_time("parts of a row"):
        parts_of_rows(report, sizes, model, rate)
    del model
    if device.type == "cuda":
        torch.cuda.empty_cache()
    types_of_models(report, sizes, device)
    rows_end_to_end(report, sizes, device)
    report.say(f"\n{time.monotonic() - report.started:.0f} seconds in all.")


if __name__ == "__main__":
    main()
