"""Rotary position embeddings: the window that they are made for, and another base for the short sibling."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from functools import partial

from .device import to_device


# Kinds of RoPE in transformers whose frequencies follow the length of the sequence at hand
LENGTH_DEPENDENT = ("longrope", "dynamic")


def context_window(config) -> int:
    """Positions a model was made for, in tokens; with a RoPE scaling factor in its configuration, the scaled number."""
    rope = getattr(config, "rope_parameters", None) or {}
    original = rope.get("original_max_position_embeddings")
    scaled = int(original * rope.get("factor", 1)) if original else 0
    return max(getattr(config, "max_position_embeddings", None) or 1 << 62, scaled)


def scale_rope(config, factor: float):
    """A copy of a model's configuration with the RoPE base theta times `factor` (in each kind of layer that has one).

    Raises:
        ValueError: the model has no rotary position embedding.
    """
    config = deepcopy(config)
    rope = getattr(config, "rope_parameters", None) or {}
    kinds = [rope] if "rope_theta" in rope else [kind for kind in rope.values() if isinstance(kind, dict)]
    kinds = [kind for kind in kinds if "rope_theta" in kind]
    if not kinds:
        raise ValueError(
            f"short_rope_scale={factor} needs rotary position embeddings, and a {config.model_type} model has none; "
            "use short_window instead."
        )
    for kind in kinds:
        kind["rope_theta"] *= factor
    return config


@contextmanager
def exchanged_rope(model, config) -> Iterator[None]:
    """Give a loaded model the rotary embeddings of another configuration for the time of the block."""
    found = [
        (parent, name, module)
        for parent in model.modules()
        for name, module in parent.named_children()
        if type(module).__name__.endswith("RotaryEmbedding")
    ]
    if not found:
        raise ValueError(f"{type(model).__name__} has no rotary embedding to exchange; use short_window instead.")
    for parent, name, module in found:
        device = next((buffer.device for buffer in module.buffers()), model.device)
        setattr(parent, name, type(module)(config=config)._apply(partial(to_device, device=device)))
    try:
        yield
    finally:
        for parent, name, module in found:
            setattr(parent, name, module)


# Frequencies that depend on how long a sequence is: numbers of one row must not depend on what goes through beside it


def unsettled_after(config) -> dict[str, int]:
    """Kinds of RoPE whose frequencies depend on a sequence's length -> the length, in tokens, up to which they do not."""
    rope = getattr(config.get_text_config(), "rope_parameters", None) or {}
    parts = [rope] if "rope_type" in rope else [part for part in rope.values() if isinstance(part, dict)]
    window, found = getattr(config.get_text_config(), "max_position_embeddings", None), {}
    for part in parts:
        kind, original = part.get("rope_type") or "default", part.get("original_max_position_embeddings")
        if kind in LENGTH_DEPENDENT:
            border = (original or window) if kind == "longrope" else window
            found[kind] = min(border, found.get(kind, border))
    return found


def is_settled(config, num_tokens: int) -> bool:
    """Whether every sequence of so many tokens or fewer is rotated alike, so that they can share batches, pasts and pieces."""
    return all(num_tokens <= border for border in unsettled_after(config).values())


def length_classes(config, lengths: Sequence[int]) -> list[int]:
    """For each length of a sequence, in tokens, the same as for others with its frequencies: 0 for all of a RoPE that does not
    ask."""
    classes = [0] * len(lengths)
    for kind, border in unsettled_after(config).items():
        for place, num_tokens in enumerate(lengths):
            if num_tokens > border:
                classes[place] = max(classes[place], 1 if kind == "longrope" else num_tokens)
    return classes


def forget_lengths(model) -> None:
    """Undo what an earlier, longer sequence left in a model's dynamic frequencies, which would stay for shorter ones."""
    if "dynamic" not in unsettled_after(model.config):
        return
    for module in model.modules():
        for name in [name for name in vars(module) if name.endswith("max_seq_len_cached")]:
            setattr(module, name, module.original_max_seq_len)
        for name, buffer in list(module.named_buffers(recurse=False)):
            if name.endswith("original_inv_freq"):
                module.register_buffer(name.replace("original_", ""), buffer.clone(), persistent=False)
