"""Which of torch's attention kernels serves a model on a GPU, and why not the one that is fastest there.

Long rows spend much of their time in attention, and torch takes a slower kernel without a word, so it is worth saying which one it
is before hours of measuring.
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch

from .attention import IS_FUSED, attention_layers, decoder_of
from .device import free_bytes
from .packing import Limits, tokens_in_flight


logger = logging.getLogger(__name__)

# The fastest first
CUDNN, FLASH, FLEX, EFFICIENT, MATH, EAGER = NAMES = ("cuDNN", "flash", "FlexAttention", "efficient", "math", "eager")
# torch's numbers of its kernels, in which it says in which order it tries them
NUMBERS = {0: MATH, 1: FLASH, 2: EFFICIENT, 3: CUDNN}
HOPPER, AMPERE = (9, 0), (8, 0)
HALF = ("bfloat16", "float16")
MOST_HEAD_SIZE = {CUDNN: 128, FLASH: 256}


@dataclass(frozen=True)
class AttentionCase:
    """One kind of a model's attention layers on a card, and what torch says of it.

    Attributes:
        capability: the card's, such as (9, 0).
        dtype (`str`): of queries, keys and values.
        head_size (`int`): their last dimension.
        usable: for each kernel whether torch can use it here.
        order: in which torch tries the kernels.
        enabled: for each kernel whether torch may use it at all, by its flags.
        cudnn, built_with (*optional*): versions, such as (9, 10, 2), of the cuDNN that is loaded and of the one that torch was built with.
        sdpa (`bool`): whether SDPA serves the architecture.
        flex (`bool`): whether FlexAttention serves it where SDPA does not (`use_fused_attention`).
    """

    capability: tuple[int, int]
    dtype: str
    head_size: int
    usable: Mapping[str, bool]
    order: tuple[str, ...] = (CUDNN, FLASH, EFFICIENT, MATH)
    enabled: Mapping[str, bool] = field(default_factory=lambda: dict.fromkeys(NAMES, True))
    cudnn: tuple[int, ...] | None = None
    built_with: tuple[int, ...] | None = None
    sdpa: bool = True
    flex: bool = False


@dataclass(frozen=True)
class AttentionKernel:
    """The kernel that serves, of `NAMES`; and, where a faster one serves such cards, why it does not here."""

    name: str
    slower_because: str | None = None

    @property
    def warning(self) -> str | None:
        """What is said where it is slower than it could be."""
        if self.slower_because is None:
            return None
        return (
            f"Attention runs by the {self.name} kernel, which is not the fastest of this GPU: {self.slower_because}."
        )


def chosen_kernel(case: AttentionCase) -> AttentionKernel:
    """What serves a case: the first kernel in torch's order that it can use."""
    if not case.sdpa and case.flex:
        return AttentionKernel(FLEX)
    if not case.sdpa:
        return AttentionKernel(
            EAGER, "SDPA does not serve soft-capped scores or attention sinks; try use_fused_attention"
        )
    name = next((x for x in case.order if case.enabled.get(x, True) and case.usable.get(x, False)), MATH)
    best = _best(case.capability)
    if NAMES.index(name) <= NAMES.index(best):
        return AttentionKernel(name)
    return AttentionKernel(name, _why_not(best, case))


def _best(capability: tuple[int, int]) -> str:
    """The kernel that is the fastest of a card's generation."""
    return CUDNN if capability >= HOPPER else FLASH if capability >= AMPERE else EFFICIENT


def _why_not(best: str, case: AttentionCase) -> str:
    """Why the fastest kernel does not serve, with what to do about it."""
    if not case.enabled.get(best, True):
        switch = {CUDNN: "enable_cudnn_sdp", FLASH: "enable_flash_sdp"}.get(best, "enable_mem_efficient_sdp")
        return f"{best} is switched off; call torch.backends.cuda.{switch}(True), or unset what switches it off"
    if best in (CUDNN, FLASH) and case.dtype not in HALF:
        return f"{best} does not serve {case.dtype}; take dtype='bfloat16'"
    if best == CUDNN and case.cudnn is None:
        return "cuDNN is not found; install torch with the cuDNN that it comes with"
    if best == CUDNN and case.built_with is not None and case.cudnn < case.built_with:
        return (
            f"cuDNN {'.'.join(map(str, case.cudnn))} is loaded, and torch was built with {'.'.join(map(str, case.built_with))}; a "
            "CUDA of the system hides torch's own: take it out of LD_LIBRARY_PATH"
        )
    if case.usable.get(best, False):
        return f"torch tries {case.order[0]} before {best}; use a newer torch"
    if (most := MOST_HEAD_SIZE.get(best)) is not None and case.head_size > most:
        return f"{best} does not serve heads of {case.head_size}"
    return f"torch cannot use {best} for heads of {case.head_size} in {case.dtype}"


def attention_kernel(model) -> AttentionKernel | None:
    """The kernel that serves a loaded model, of its layers' the slowest; None where it is on no NVIDIA GPU, or torch does not
    tell."""
    if model.device.type != "cuda" or torch.version.hip is not None:
        return None
    try:
        cases = _cases(model)
    except (AttributeError, RuntimeError, TypeError) as error:  # other versions of torch; no reason not to measure
        logger.debug("Which attention kernel serves is not known: %s", error)
        return None
    return max(map(chosen_kernel, cases), key=lambda found: NAMES.index(found.name))


def fit_to_device(model, limits: Limits | None) -> None:
    """Once a model is loaded on an NVIDIA GPU: set `limits` by the memory that is left, where they are given, and log which kernel
    computes attention, as a warning where it is not the fastest."""
    if model.device.type != "cuda":
        return
    if limits is not None:
        limits.batch_tokens = tokens_in_flight(model.config, model.dtype.itemsize, free_bytes(model.device))
    if (kernel := attention_kernel(model)) is not None:
        logger.info("Attention runs by the %s kernel.", kernel.name)
        if kernel.warning is not None:
            logger.warning("%s", kernel.warning)


def sdpa_serves(model) -> bool:
    """Whether SDPA can compute a model's attention: it knows neither soft-capped scores nor attention sinks."""
    has_sinks = any(hasattr(layer, "sinks") for layer in attention_layers(decoder_of(model)))
    return not has_sinks and getattr(model.config.get_text_config(), "attn_logit_softcapping", None) is None


def _cases(model) -> list[AttentionCase]:
    """Every kind of attention layer that a model on an NVIDIA GPU has."""
    config, layers = model.config.get_text_config(), attention_layers(decoder_of(model))
    heads = config.num_attention_heads
    kv_heads = getattr(config, "num_key_value_heads", None) or heads
    order = getattr(torch._C, "_get_sdp_priority_order", lambda: (1, 2, 0, 3))()
    backends, library = torch.backends.cuda, getattr(torch._C, "_cudnn", None)
    about = {
        "capability": torch.cuda.get_device_capability(model.device),
        "dtype": str(model.dtype).removeprefix("torch."),
        "order": tuple(NUMBERS[int(number)] for number in order if int(number) in NUMBERS),
        "enabled": {
            CUDNN: backends.cudnn_sdp_enabled(),
            FLASH: backends.flash_sdp_enabled(),
            EFFICIENT: backends.mem_efficient_sdp_enabled(),
        },
        "cudnn": None if library is None else tuple(library.getRuntimeVersion()),
        "built_with": None if library is None else tuple(library.getCompileVersion()),
        "sdpa": sdpa_serves(model),
        "flex": any(getattr(x, IS_FUSED, False) for x in layers),
    }
    sizes = {getattr(x, "head_dim", None) or config.hidden_size // heads for x in layers}
    return [
        AttentionCase(head_size=size, usable=_usable(size, heads, kv_heads, model), **about) for size in sorted(sizes)
    ]


def _usable(size: int, heads: int, kv_heads: int, model) -> dict[str, bool]:
    """What torch says that its kernels can do with causal attention of such heads."""
    tokens = 256
    query, key = (
        torch.empty(1, tokens, n, size, dtype=model.dtype, device=model.device).transpose(1, 2)
        for n in (heads, kv_heads)
    )
    cuda = torch.backends.cuda
    asked = cuda.SDPAParams(query, key, key, None, 0.0, True, heads != kv_heads)
    return {
        CUDNN: cuda.can_use_cudnn_attention(asked),
        FLASH: cuda.can_use_flash_attention(asked),
        EFFICIENT: cuda.can_use_efficient_attention(asked),
        MATH: True,
    }
