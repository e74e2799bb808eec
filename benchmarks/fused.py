"""Fused kernels beside transformers' own on one GPU, for `benchmarks.gpu`."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch

from hf_gateau.measuring.costs import RowShape, Way, flops, model_shape, row_work
from hf_gateau.models.attention import IS_FUSED
from hf_gateau.models.fused import check_fused_attention, check_liger, use_fused_attention, use_liger
from hf_gateau.models.perplexity import batch_nlls
from hf_gateau.planning.pilot import Memory
from hf_gateau.rows.samples import Sample

from .long_context import GIB, parts, random_sample, random_weights


HEADER = ("farthest, nats a token", "GiB above the weights")
HEADER_OF_TYPES = ("without", "with fused attention", "without / with", "farthest, nats a token")
# Four layers in the widths of real models, fewer experts
TYPES: dict[str, tuple[str, dict[str, Any]]] = {
    "Gemma 2 9B: soft-capped scores, windows of 4,096": (
        "gemma2",
        {"hidden_size": 3584, "intermediate_size": 14_336, "num_attention_heads": 16, "num_key_value_heads": 8, "head_dim": 256},
    ),
    "GPT-OSS 20B: sinks, windows of 128": (
        "gpt_oss",
        {"hidden_size": 2880, "intermediate_size": 2880, "num_attention_heads": 64, "num_key_value_heads": 8, "head_dim": 64,
         "num_local_experts": 8, "num_experts_per_tok": 4},
    ),
    "Gemma 3 4B: windows of 1,024": (
        "gemma3_text",
        {"hidden_size": 2560, "intermediate_size": 10_240, "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 256,
         "sliding_window": 1024, "sliding_window_pattern": 4},
    ),
}  # fmt: skip
VOCAB_SIZE = 32_000
SHAPE = {"num_hidden_layers": 4, "vocab_size": VOCAB_SIZE, "max_position_embeddings": 1 << 17}


def ways(
    report, model, samples: dict[str, Sample], way: Way, rate: float, timed: Callable[[Callable], float]
) -> Iterator[Sequence[str]]:
    """A line for each way to compute parts of samples, the last of which cannot be undone."""
    shape, memory, own = model_shape(model), Memory(model.device), None
    work = {part: flops(row_work(shape, shape, RowShape.of(sample), way)[part]) for part, sample in samples.items()}
    calls = {part: parts(model, sample, way)[part] for part, sample in samples.items()}
    for name, change in WAYS.items():
        if not report.has_time(f"{name} kernels"):
            return
        try:
            with change(model):
                seconds = {part: timed(call) for part, call in calls.items()}
                loaded = memory.now()
                memory.reset_peak()
                calls["long"]()
                above = (memory.peak() - loaded) / GIB
                nlls = batch_nlls(model, [samples["long"].prompt], [samples["long"].response])[0]
        except Exception as error:  # whatever a kernel's own code raises
            yield name, why_not(error), "", "", ""
            continue
        own = nlls if own is None else own
        cells = [f"{x:.3f} s, {work[part] / x / rate:.0%}" for part, x in seconds.items()]
        yield name, *cells, f"{(nlls - own).abs().max().item():.1e}", f"{above:.1f}"


def types(
    report,
    context: int,
    response: int,
    way: Way,
    device: torch.device,
    dtype: torch.dtype,
    timed: Callable[[Callable], float],
) -> Iterator[Sequence[str]]:
    """A line for each type of model that SDPA serves in part or not at all: its long pass without and with fused attention."""
    from transformers import AutoConfig

    for name, (model_type, sizes) in TYPES.items():
        if not report.has_time(name):
            return
        try:
            check_fused_attention(device, str(dtype).removeprefix("torch."))
            config = AutoConfig.for_model(model_type, **sizes, **SHAPE)
            model = random_weights(config, dtype, device)
            sample, seconds, nlls = random_sample(context, response, VOCAB_SIZE), [], []
            for change in (nullcontext, fused_attention):
                with change(model):
                    seconds.append(timed(parts(model, sample, way)["long"]))
                    nlls += batch_nlls(model, [sample.prompt], [sample.response])
        except Exception as error:  # whatever a kernel's own code raises
            yield name, why_not(error), "", "", ""
            continue
        ratio, far = f"{seconds[0] / seconds[1]:.2f}", f"{(nlls[1] - nlls[0]).abs().max().item():.1e}"
        yield name, *(f"{x:.3f} s" for x in seconds), ratio, far


def why_not(error: Exception) -> str:
    return f"not measured: {' '.join(str(error).split())[:80]}"


@contextmanager
def fused_attention(model) -> Iterator[None]:
    """`use_fused_attention` for the time of a block."""
    check_fused_attention(model.device, str(model.dtype).removeprefix("torch."))
    use_fused_attention("the model", model)  # which takes itself back where it fails
    try:
        yield
    finally:
        for module in model.modules():
            vars(module).pop(IS_FUSED, None)


@contextmanager
def _compiled(model) -> Iterator[None]:
    """Every norm and MLP by `torch.compile`, for any number of rows."""
    if model.device.type != "cuda":
        raise RuntimeError("on a GPU alone")
    modules = [x for x in model.modules() if type(x).__name__.endswith(("RMSNorm", "MLP"))]
    for module in modules:
        module.forward = torch.compile(module.forward, dynamic=True)
    try:
        yield
    finally:
        for module in modules:
            del module.forward


@contextmanager
def _liger(model) -> Iterator[None]:
    check_liger("the model", model.config, model.device)
    use_liger("the model", model)
    yield


@contextmanager
def _both(model) -> Iterator[None]:
    with _liger(model), fused_attention(model):
        yield


WAYS: dict[str, Callable[[Any], AbstractContextManager]] = {
    "transformers'": nullcontext,
    "fused attention": fused_attention,
    "torch.compile's norms and MLPs": _compiled,
    "Liger's": _liger,
    "Liger's and fused attention": _both,
}
