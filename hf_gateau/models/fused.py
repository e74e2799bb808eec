"""Kernels of a GPU that take the place of several, where somebody asks for them, once a few tokens have shown that the numbers stay.

`use_fused_attention`: attention that torch's SDPA does not know (soft-capped scores, attention sinks) or knows by a mask alone
(sliding windows) by torch's FlexAttention, and the weights of responses' rows by kernels of our own (key_mass.py).

`use_liger_kernel`: norms, rotary embedding and gated MLPs in one kernel each, by liger-kernel. transformers computes each of these in
several, which read and write all rows of a layer every time, and on a fast card this is no small part of a pass over short sequences.

Liger exchanges functions and classes in transformers' own modules, where all models of a type would find them: others of the
process, one that is trained beside, one on the CPU, where no such kernel runs. Here the one model that was named is changed; a
rotary embedding, which is no module of a model, takes Liger's function on a GPU and in a pass that measures alone.
"""

import sys
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from typing import Any

import torch

from ..settings import a_type
from .abilities import abilities_of
from .attention import IS_FUSED, attention_layers, decoder_of
from .kernels import AMPERE, HALF
from .loading import check_installed
from .rope import context_window, is_settled
from .trial import NUM_TOKENS, are_alike, told_in_a_line, trial_nll, trial_numbers


# Share of the attention to a segment that kernels may differ by: in half precision experts are chosen anew by the last bit
ATTENTION_TOLERANCE = 0.1
# Tokens of a trial of attention: more than one block of FlexAttention, and than the windows, unless they are very long
LEAST_TRIAL_TOKENS, MOST_TRIAL_TOKENS = 300, 8_192
ROTARY = "apply_rotary_pos_emb"
# The loss, which is not computed here; and torch's own layer norm, which would be exchanged for all models
LEFT_OUT = {"cross_entropy": False, "fused_linear_cross_entropy": False, "layer_norm": False}


def check_fused_attention(device: torch.device, dtype: str) -> None:
    """Refuse `use_fused_attention` where it cannot serve, before weights are loaded.

    Raises:
        ImportError: Triton is not installed, in which the kernels are written.
        ValueError: the device is no GPU that they serve, or the dtype none.
    """
    if device.type != "cuda":
        raise ValueError(f"use_fused_attention needs an NVIDIA or AMD GPU, and the device is {device}; leave it out.")
    if dtype not in HALF:
        raise ValueError(f"use_fused_attention serves {' and '.join(HALF)}, and the dtype is {dtype}; leave it out.")
    if not has_triton():
        raise ImportError("use_fused_attention needs triton, which comes with torch for GPUs on Linux; leave it out.")
    if torch.version.hip is None and (capability := torch.cuda.get_device_capability(device)) < AMPERE:
        found = ".".join(map(str, capability))
        raise ValueError(
            f"use_fused_attention needs a GPU of compute capability 8.0, and this has {found}; leave it out."
        )


def has_triton() -> bool:
    """Whether the language of the kernels is there."""
    return find_spec("triton") is not None


def use_fused_attention(name: str, model) -> None:
    """Let a loaded model's attention go by fused kernels, once a few tokens have shown that its numbers stay.

    Raises:
        ValueError: they do not, or the kernels fail on this model or this device.
    """
    layers = attention_layers(decoder_of(model))
    trials = _attention_trials(model, layers)
    own = [trial_numbers(model, **trial) for trial in trials]
    try:
        for layer in layers:
            setattr(layer, IS_FUSED, True)
        for trial, (nll, attention) in zip(trials, own, strict=True):
            with told_in_a_line(f"use_fused_attention: the kernels fail on {name!r}, {a_type(model)}", "leave it out"):
                found_nll, found = trial_numbers(model, **trial)
            far = [abs(a - b) / max(b, 1e-9) for a, b in zip(found, attention, strict=True)]
            if not (are_alike(found_nll, nll, model.dtype) and all(x <= ATTENTION_TOLERANCE for x in far)):
                raise ValueError(
                    f"use_fused_attention: with its kernels the numbers of {name!r}, {a_type(model)}, are others: "
                    f"{found_nll:.4f} nats a token on a trial, without {nll:.4f}, and attention to a segment differs by "
                    f"{max(far):.0%}; leave it out."
                )
    except BaseException:
        for layer in layers:
            delattr(layer, IS_FUSED)
        raise


def _attention_trials(model, layers: Sequence[torch.nn.Module]) -> list[dict[str, Any]]:
    """Trials in which every kind of a model's attention layers runs in every way that kernels are made for: beyond its window, one
    sequence and several, at the start and after a past."""
    windows = {getattr(layer, "sliding_window", None) for layer in layers} - {None}
    seen = [window for window in windows if window <= MOST_TRIAL_TOKENS]
    num_tokens = min(max([LEAST_TRIAL_TOKENS, *seen]) + NUM_TOKENS, context_window(model.config))
    ways = [{"batch": 1}, {"batch": 2}]
    if abilities_of(model.config).keeps_past and is_settled(model.config, num_tokens):
        ways += [{"batch": 1, "past": True}, {"batch": 2, "past": True}]
    return [{"num_tokens": num_tokens} | way for way in ways]


def check_liger(name: str, model_config, device: torch.device) -> None:
    """Refuse `use_liger_kernel` where it cannot serve, before weights are loaded.

    Raises:
        ImportError: liger-kernel is not installed.
        ValueError: the device is no GPU that it serves, or it does not know the type of model.
    """
    if device.type != "cuda":
        raise ValueError(f"use_liger_kernel needs an NVIDIA or AMD GPU, and the device is {device}; leave it out.")
    check_installed("liger_kernel", "liger", "use_liger_kernel")
    if model_config.model_type not in (known := liger_types()):
        raise ValueError(
            f"use_liger_kernel: Liger has no kernels for {name!r}, a model of type {model_config.model_type!r}, but for "
            f"{', '.join(sorted(known))}; leave it out."
        )


def liger_types() -> frozenset[str]:
    """The types of model that the installed Liger has kernels for."""
    from liger_kernel.transformers.monkey_patch import MODEL_TYPE_TO_APPLY_LIGER_FN

    return frozenset(MODEL_TYPE_TO_APPLY_LIGER_FN)


def use_liger(name: str, model) -> None:
    """Let a loaded model compute by Liger's kernels, once a few tokens have shown that its numbers stay.

    Raises:
        ValueError: they do not, or Liger does not work with this model.
    """
    if len(places := {x.device for x in model.parameters()}) > 1:  # its kernels start on the current GPU alone
        raise ValueError(
            f"use_liger_kernel needs a model on one GPU, and {name!r} is on {', '.join(sorted(map(str, places)))}; leave it "
            "or device_map out."
        )
    own = trial_nll(model)
    # It may have been made for another version of transformers
    with told_in_a_line(f"use_liger_kernel: Liger's kernels fail on {name!r}, {a_type(model)}", "leave it out"):
        _exchange(model)
        found = trial_nll(model)
    if not are_alike(found, own, model.dtype):
        raise ValueError(
            f"use_liger_kernel: with Liger's kernels the numbers of {name!r}, {a_type(model)}, are others: {found:.4f} nats a "
            f"token on a trial, without {own:.4f}; leave it out."
        )


def _exchange(model) -> None:
    """Let Liger change a model, and leave transformers' module of its type as it was, but for the rotary embedding."""
    from liger_kernel.transformers import _apply_liger_kernel_to_instance

    modeling = vars(sys.modules[type(model).__module__])
    before = dict(modeling)
    try:
        _apply_liger_kernel_to_instance(model=model, **LEFT_OUT)
    finally:
        fused = modeling.get(ROTARY)
        modeling.update(before)
    if fused is not before.get(ROTARY):
        modeling[ROTARY] = _in_passes(before[ROTARY], fused)


def _in_passes(own: Callable, fused: Callable) -> Callable:
    """A rotary embedding that is Liger's in passes that measure: these, and no others, run in inference mode."""

    def apply_rotary_pos_emb(query, key, *args, **kwargs):
        serves = torch.is_inference_mode_enabled() and _is_on_gpu(query) and query.shape[-2] == key.shape[-2]
        return (fused if serves else own)(query, key, *args, **kwargs)

    return apply_rotary_pos_emb


def _is_on_gpu(tensor: torch.Tensor) -> bool:
    return tensor.is_cuda
