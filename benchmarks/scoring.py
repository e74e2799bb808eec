"""Time of measuring one sample: ours, the straight way, the released way, and the arithmetic they all need.

    python -m benchmarks.scoring --contexts 1024 2048 4096 8192 --output scoring.md

All ways take the same sample in one process, on the CPU, one after the other in each repeat, so that drift hits all
alike. Medians over the repeats are printed. The allocator is set as `hf-gateau score` sets it, for all ways.

- **ours**: `measure_samples` of one, with a short checkpoint (the same weights, in a pass of their own over everything: the
  paper's setting), and with a windowed sibling (the same model on its last `--short-window` tokens).
- **straight**: what one writes first, with transformers alone and without padding. `model(input_ids, labels=...)` (SDPA,
  logits on every position) for the short model, the long model, no context, and each segment by itself; one more pass
  with eager attention for the attention weights, with `output_attentions=True` where the weights of all layers fit into
  memory, else read and reduced layer by layer with a hook. A windowed sibling saves it the same tokens as ours.
- **released**: the same, with every long context padded to `--window` tokens and masked, as the public release pads to
  64,000. Segments and the pass without context are not padded to the window.
- **sharing**: ours with `--questions` samples on the context at once, whose numbers are compared with those of each alone.
  The straight way goes over the context for each of them, so its time is that of one, times the questions.
- **floor**: the floating-point operations of the matrix products of plain passes on our path, divided by the rate at which this machine
  multiplies matrices. For each pass over T tokens with R rows of logits:

      2 T (sum of in x out over the decoder's nn.Linear)
      + 4 x heads x head size x (pairs of query and visible key, T (T + 1) / 2 without a sliding window) per layer
      + 2 R x hidden size x vocabulary

  The rate is the best of several products of 2,000 rows with the decoder's own weights, taken before and after each
  timing, median over those of one context. Norms, RoPE, softmax, SiLU, copies and the cross-entropy count nothing. Every
  layer is counted on every row, as a plain forward pass computes it, though ours leaves rows out of the last one.

Experts that are no nn.Linear are not counted: take a dense model.
"""

import argparse
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import torch

from hf_gateau.measuring.passes import measure_samples
from hf_gateau.measuring.runtime import CPU_BATCH_TOKENS
from hf_gateau.models.attention import attention_layers
from hf_gateau.models.device import keep_freed_memory
from hf_gateau.models.packing import Cut, Limits
from hf_gateau.rows.samples import Sample

from . import common


WAYS = ("ours", "ours-windowed", "sharing", "sharing-windowed", "straight", "released")
GEMM_ROWS, GEMM_TRIES, GIB = 2000, 3, 1 << 30
AGREEMENT = 1e-4  # relative, between the numbers of all ways, in float32
MEMORY_SHARE = 0.8  # of the memory at hand that one pass may be expected to take


# The straight way


@contextmanager
def attention_as(model, implementation: str) -> Iterator[None]:
    """One of transformers' own attention implementations for the time of the block."""
    own = model.config._attn_implementation
    model.set_attn_implementation(implementation)
    try:
        yield
    finally:
        model.set_attn_implementation(own)


def padded(ids: list[int], length: int, pad_id: int = 0) -> dict[str, torch.Tensor]:
    """Model inputs; padded on the right and masked where `length` asks for more tokens than there are."""
    missing = max(0, length - len(ids))
    inputs = {"input_ids": torch.tensor([ids + [pad_id] * missing])}
    return inputs | ({"attention_mask": torch.tensor([[1] * len(ids) + [0] * missing])} if missing else {})


@torch.inference_mode()
def perplexity(model, prompt: list[int], response: list[int], length: int = 0) -> float:
    """Eq. 1 from transformers' own loss: logits on every position, cross-entropy in float32."""
    inputs = padded(prompt + response, length)
    labels = torch.full_like(inputs["input_ids"], -100)
    labels[0, len(prompt) : len(prompt) + len(response)] = torch.tensor(response)
    with attention_as(model, "sdpa"):
        return math.exp(model(**inputs, labels=labels, use_cache=False).loss.item())


@torch.inference_mode()
def segment_attention(model, sample, segment_length: int, length: int = 0, by_layer: bool = False) -> list[float]:
    """Eq. 4 before the softmax from T x T matrices, of all layers at once or (`by_layer`) of one layer at a time."""
    inputs, means = padded(sample.input_ids[: sample.response_end], length), []

    def read(weights: torch.Tensor) -> None:
        rows = weights[0, :, sample.response_start : sample.response_end, sample.context_start : sample.context_end]
        means.append(rows.float().mean((0, 1)))

    with attention_as(model, "eager"):
        if by_layer:
            hooks = [
                module.register_forward_hook(lambda *args: read(args[-1][1]))
                for module in attention_layers(model.get_decoder())
            ]
            model(**inputs, use_cache=False)
            for hook in hooks:
                hook.remove()
        else:
            for weights in model(**inputs, use_cache=False, output_attentions=True).attentions:
                read(weights)
    return [part.mean().item() for part in torch.stack(means).mean(0).split(segment_length)]


def eager_bytes(model, num_tokens: int, by_layer: bool) -> int:
    """What T x T weights take: of all layers (or one), and three more of their size while the softmax is made."""
    config = model.config.get_text_config()
    layers = 1 if by_layer else config.num_hidden_layers
    return (layers + 3) * num_tokens**2 * config.num_attention_heads * model.dtype.itemsize


def reads_by_layer(model, num_tokens: int) -> bool:
    """Whether the attention of all layers at once would not fit into memory.

    Raises:
        MemoryError: that of one layer would not either.
    """
    if eager_bytes(model, num_tokens, by_layer=False) < MEMORY_SHARE * common.available_bytes():
        return False
    check_fits(model, num_tokens, by_layer=True)
    return True


def check_fits(model, num_tokens: int, by_layer: bool) -> None:
    """Raise MemoryError where the attention weights would not fit into memory."""
    needed, at_hand = eager_bytes(model, num_tokens, by_layer), common.available_bytes()
    if needed > MEMORY_SHARE * at_hand:
        layers = "one layer" if by_layer else "all layers"
        raise MemoryError(f"the weights of {layers} need {needed / GIB:.0f} GiB, and {at_hand / GIB:.0f} are at hand")


def straight_parts(
    full, windowed, sample, segment_length: int, by_layer: bool, length: int = 0
) -> dict[str, Callable]:
    """One call for each raw number; long contexts are padded to `length` tokens. `full` and `windowed` are the pairs."""
    prefix, context, instruction, response = sample.prefix, sample.context, sample.instruction, sample.response
    segments = [context[a : a + segment_length] for a in range(0, len(context), segment_length)]
    padded_segment = min(length, len(prefix) + segment_length + len(instruction) + len(response))

    def short(pair, length):
        with pair.short() as model:
            return perplexity(model, prefix + pair.short_context(sample) + instruction, response, length)

    def each_segment():
        prompts = [prefix + segment + instruction for segment in segments]
        return [perplexity(full.long, prompt, response, padded_segment) for prompt in prompts]

    return {
        "ppl_short": lambda: short(full, length),
        "ppl_short_windowed": lambda: short(windowed, 0),
        "ppl_long": lambda: perplexity(full.long, prefix + context + instruction, response, length),
        "ppl_no_context": lambda: perplexity(full.long, prefix + instruction, response),
        "segment_ppl": each_segment,
        "segment_attention": lambda: segment_attention(full.long, sample, segment_length, length, by_layer),
    }


# The floor


def needed_flops(pair, sample, segment_length: int) -> int:
    """Floating-point operations of the matrix products on our path; see the module's formula."""
    model = pair.long
    fixed = len(sample.prefix) + len(sample.instruction) + len(sample.response) - 1
    seen, num_context = len(pair.short_context(sample)), len(sample.context)
    lengths = [
        fixed + num_context + 1,
        fixed,
    ]  # the long pass runs over the last response token too, for its attention
    if not (pair.is_self_paired and seen == num_context):
        lengths.append(fixed + seen)
    lengths += [fixed + min(segment_length, num_context - a) for a in range(0, num_context, segment_length)]
    linear = sum(x.weight.numel() for x in model.get_decoder().modules() if isinstance(x, torch.nn.Linear))
    heads, head_rows = model.config.get_text_config().num_attention_heads, len(sample.response) * len(lengths)
    products = sum(
        4 * heads * layer.head_dim * visible_pairs(layer, n)
        for layer in attention_layers(model.get_decoder())
        for n in lengths
    )
    return 2 * sum(lengths) * linear + products + 2 * head_rows * model.get_output_embeddings().weight.numel()


def visible_pairs(layer, num_tokens: int) -> int:
    """Pairs of a query and a key that it may look at."""
    window = min(getattr(layer, "sliding_window", None) or num_tokens, num_tokens)
    return window * (window + 1) // 2 + (num_tokens - window) * window


class GemmRate:
    """How fast the machine multiplies matrices of the decoder's own shapes at this moment."""

    def __init__(self, model):
        linears = [module for module in model.get_decoder().modules() if isinstance(module, torch.nn.Linear)]
        self.weights = list({linear.weight.shape: linear.weight for linear in linears}.values())
        self.inputs = [torch.randn(GEMM_ROWS, weight.shape[1], dtype=weight.dtype) for weight in self.weights]

    @torch.inference_mode()
    def __call__(self) -> np.ndarray:
        """Floating-point operations a wall and a CPU second, the best over shapes and tries."""
        best = np.zeros(2)
        for _ in range(GEMM_TRIES):
            for x, weight in zip(self.inputs, self.weights, strict=True):
                seconds = timed(lambda x=x, weight=weight: torch.nn.functional.linear(x, weight))[1]
                best = np.maximum(best, 2 * GEMM_ROWS * weight.numel() / seconds)
        return best


# Our way


def measured(pair, samples: list[Sample], segment_length: int) -> list[dict]:
    """The raw numbers of some samples, measured together."""
    return list(map(vars, measure_samples(pair, samples, Cut(segment_length), Limits(CPU_BATCH_TOKENS))))


def questions_on(sample: Sample, num: int) -> list[Sample]:
    """The sample, and others on its context: their instructions and responses are other stretches of its text."""
    tail = len(sample.input_ids) - sample.context_end
    starts = [sample.context_start + i * tail for i in range(num - 1)]
    ids = [sample.input_ids[: sample.context_end] + sample.input_ids[start : start + tail] for start in starts]
    return [sample, *(replace(sample, input_ids=other) for other in ids)]


# Timing


def timed(function: Callable) -> tuple[object, np.ndarray]:
    """What the function returns, and its seconds: wall, and CPU over all threads."""
    wall, cpu = time.perf_counter(), time.process_time()
    value = function()
    return value, np.array([time.perf_counter() - wall, time.process_time() - cpu])


def timed_parts(parts: dict[str, Callable]) -> tuple[dict, dict[str, np.ndarray]]:
    """The values and the seconds of each part."""
    measured = {name: timed(part) for name, part in parts.items()}
    return tuple({name: pair[i] for name, pair in measured.items()} for i in (0, 1))


def deviation(got: dict, expected: dict) -> float:
    """The largest relative deviation among the raw numbers that both have."""
    names = got.keys() & expected.keys()
    return max(float(np.max(np.abs(np.divide(got[name], expected[name]) - 1))) for name in names)


class Context:
    """All timings at one length of context.

    Attributes:
        seconds: for each way, one array (wall, CPU) a repeat; the straight ways' by part.
        rates: the matrix-product rates taken in between.
        deviations: the largest relative one of each way's numbers from the straight way's with the same sibling.
        notes: what the reader of the row must know.
    """

    def __init__(self, pairs, sample, args, ways: list[str]):
        self.full, self.windowed = pairs
        self.sample, self.args = sample, args
        self.notes, self.rates, self.deviations = [], [], []
        self.calls = {way: call for way in ways if (call := self._call(way)) is not None}
        self.seconds = {way: [] for way in self.calls}

    def _call(self, way: str) -> Callable | None:
        length = self.args.segment_length
        pair = self.windowed if way.endswith("windowed") else self.full
        if way.startswith("ours"):
            return lambda: timed(lambda: measured(pair, [self.sample], length)[0])
        if way.startswith("sharing"):
            questions = questions_on(self.sample, self.args.questions)
            return lambda: timed(lambda: measured(pair, questions, length)[0])
        window = self.args.window if way == "released" else 0
        num_tokens = max(window, self.sample.response_end)
        try:
            by_layer = reads_by_layer(self.full.long, num_tokens)
        except MemoryError as error:
            return self.notes.append(f"{way}: left out, {error}")
        if way == "released" and window <= self.sample.response_end:
            return self.notes.append(f"released: nothing to pad, the sample fills the window of {window:,}")
        self.notes.append(f"{way}: attention read {'layer by layer' if by_layer else 'of all layers at once'}")
        parts = straight_parts(self.full, self.windowed, self.sample, length, by_layer, window)
        if way == "released":
            del parts["ppl_short_windowed"]
        return lambda: timed_parts(parts)

    def repeat(self, rate: GemmRate) -> None:
        """Every way once, with the machine's rate taken before and after each."""
        values = {}
        self.rates.append(rate())
        for way, call in self.calls.items():
            values[way], seconds = call()
            self.seconds[way].append(seconds)
            self.rates.append(rate())
        self._compare(values)

    def _compare(self, values: dict[str, dict]) -> None:
        if "straight" not in values:
            return
        straight = values.pop("straight")
        windowed = straight | {"ppl_short": straight["ppl_short_windowed"]}
        for way, got in values.items():
            self.deviations.append(deviation(got, windowed if way.endswith("windowed") else straight))

    def median(self, way: str, windowed: bool) -> np.ndarray | None:
        """Median wall and CPU seconds of a way with one sibling; None where it was not timed."""
        unused = "ppl_short" if windowed else "ppl_short_windowed"
        repeats = self.seconds.get(f"{way}-windowed" if way in ("ours", "sharing") and windowed else way)
        if not repeats or (way == "released" and windowed):
            return None
        if isinstance(repeats[0], dict):
            repeats = [sum(seconds for part, seconds in parts.items() if part != unused) for parts in repeats]
        return np.median(repeats, 0)

    def row(self, windowed: bool) -> list[str]:
        """One row of the table."""
        pair = self.windowed if windowed else self.full
        floor = needed_flops(pair, self.sample, self.args.segment_length) / np.median(self.rates, 0)
        times = [self.median(way, windowed) for way in ("ours", "straight", "released", "sharing")]
        ours, straight, released, sharing = times
        sibling = f"last {self.args.short_window}" if windowed else "checkpoint"
        sharing = None if sharing is None else sharing / self.args.questions
        ratios = [ratio(ours, floor), ratio(straight, ours), ratio(straight, sharing), ratio(released, ours)]
        cells = [*ratios, *map(both, times[:3]), both(sharing)]
        return [f"{len(self.sample.context):,}", sibling, both(floor), *cells]


TIMES = ("ours", "straight", "released", "sharing")
RATIOS = ("ours/floor", "straight/ours", "straight/sharing", "released/ours")
HEADER = ("context", "short sibling", "floor s", *RATIOS, *(f"{name} s" for name in TIMES))


def both(seconds: np.ndarray | None) -> str:
    return "-" if seconds is None else f"{seconds[0]:.2f} ({seconds[1]:.2f})"


def ratio(a: np.ndarray | None, b: np.ndarray | None) -> str:
    return "-" if a is None or b is None else f"{a[0] / b[0]:.2f} ({a[1] / b[1]:.2f})"


def table(contexts: list[Context], rates: list[np.ndarray], num_repeats: int) -> str:
    """The Markdown table with what is needed to read it."""
    rows = [context.row(windowed) for context in contexts for windowed in (False, True)]
    lines = ["| " + " | ".join(cells) + " |" for cells in (HEADER, ["---:"] * len(HEADER), *rows)]
    wall, cpu = np.median(rates, 0) / 1e9
    about = (
        f"Wall (CPU) seconds for one sample (sharing: one of several on a context), medians of {num_repeats}. Matrix products: {wall:.0f} GFLOP a wall second, "
        f"{cpu:.0f} a CPU second. {agreement([x for context in contexts for x in context.deviations])}"
    )
    notes = [f"- {len(context.sample.context):,}: {'; '.join(context.notes)}" for context in contexts if context.notes]
    return "\n".join([about, "", *lines, "", *notes])


def agreement(deviations: list[float]) -> str:
    """What the comparison of the ways' numbers showed."""
    if not deviations:
        return "The ways' numbers were not compared."
    worst = max(deviations)
    verdict = "agree" if worst < AGREEMENT else "DO NOT AGREE"
    return f"All ways' numbers {verdict} within {AGREEMENT:g}, relative; largest deviation from straight {worst:.1e}."


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    common.add_sample_arguments(parser)
    parser.add_argument("--contexts", type=int, nargs="+", default=[1024, 2048, 4096, 8192], help="tokens of context")
    parser.add_argument("--ways", nargs="+", default=list(WAYS), choices=WAYS, help="what to time")
    parser.add_argument("--questions", type=int, default=4, help="samples that share a context, in `sharing`")
    parser.add_argument("--repeats", type=int, default=3, help="timings of each way, of which the median is taken")
    parser.add_argument("--window", type=int, default=8192, help="tokens that the released way pads a context to")
    parser.add_argument(
        "--released-contexts",
        type=int,
        nargs="*",
        default=[1024],
        help="contexts to time the released way at (minutes)",
    )
    common.add_output_argument(parser)
    return parser.parse_args()


def main() -> None:
    args = parse_arguments()
    keep_freed_memory()
    pairs, text, contexts = common.load_pairs(args), common.read_text(args.text), []
    rate, shape = GemmRate(pairs[0].long), (args.instruction, args.response)
    warm_up = common.text_sample(pairs[0].tokenizer, text, 2 * args.segment_length, 20, 20)
    Context(pairs, warm_up, args, [way for way in args.ways if way != "released"]).repeat(rate)
    for num_tokens in args.contexts:
        ways = [way for way in args.ways if way != "released" or num_tokens in args.released_contexts]
        sample = common.text_sample(pairs[0].tokenizer, text, num_tokens, *shape)
        contexts.append(Context(pairs, sample, args, ways))
        for _ in range(args.repeats):
            contexts[-1].repeat(rate)
        print("| " + " | ".join(contexts[-1].row(False)) + " |", flush=True)  # progress, in case the run is cut short
    report = common.torch_header(args.dtype, args.model or common.default_model())
    report += "\n" + table(contexts, [rate for context in contexts for rate in context.rates], args.repeats)
    print()
    common.tell(report, args.output)


if __name__ == "__main__":
    main()
