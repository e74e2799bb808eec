"""Rotary position embeddings: the window that they are made for, and another base for the short sibling."""

from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy


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
        setattr(parent, name, type(module)(config=config).to(device))
    try:
        yield
    finally:
        for parent, name, module in found:
            setattr(parent, name, module)
