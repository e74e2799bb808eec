"""The paper's pair, taken where nobody names a model: said before 27 GB are fetched."""

from __future__ import annotations

import json
from pathlib import Path

from ..files.hub_reading import client_errors
from .config import ModelPairConfig


PARAMETERS = 6.74e9  # of LLaMA-2-7B, which both are
BYTES_A_PARAMETER = 2
WEIGHTS = (".safetensors", ".bin")
INDEXES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
SECONDS = 10.0  # that the Hub has to tell a size


def unnamed_pair(config: ModelPairConfig) -> str | None:
    """One line: which models are about to be fetched, how large they are, and where they go. None where the long model was named,
    or all weights are in the cache."""
    if not config.long_is_default:
        return None
    missing = [name for name in filter(None, (config.long_model, config.short_model)) if not is_cached(name)]
    if not missing:
        return None
    from huggingface_hub.constants import HF_HUB_CACHE

    told = " and ".join(f"{name} ({_size(name)})" for name in missing)
    verb = "is" if len(missing) == 1 else "are"
    return f"No long_model is named, so the paper's pair is taken: {told} {verb} to be fetched into {HF_HUB_CACHE}"


def is_cached(name: str) -> bool:
    """Whether all weights of a Hub id's main revision are in the cache."""
    for index in INDEXES:
        if (found := _cached(name, index)) is not None:
            return all(_cached(name, x) for x in set(json.loads(found.read_text("utf-8"))["weight_map"].values()))
    return any(_cached(name, index.removesuffix(".index.json")) for index in INDEXES)


def _cached(name: str, file: str) -> Path | None:
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(name, file)
    return Path(found) if isinstance(found, str) else None


def _size(name: str) -> str:
    """Parameters and bytes, as the Hub has them, or else of LLaMA-2-7B."""
    num_bytes = _weights_on_hub(name)
    about = "" if num_bytes else "about "
    num_bytes = num_bytes or PARAMETERS * BYTES_A_PARAMETER
    return f"{PARAMETERS / 1e9:.1f} billion parameters, {about}{num_bytes / 1e9:.1f} GB"


def _weights_on_hub(name: str) -> int:
    """Bytes of the files that are fetched; 0 where the Hub does not tell."""
    from huggingface_hub import HfApi

    try:
        files = HfApi().model_info(name, files_metadata=True, timeout=SECONDS).siblings or []
    except client_errors():  # not there, not allowed, not reached: loading says which
        return 0
    sizes = [sum(file.size or 0 for file in files if file.rfilename.endswith(suffix)) for suffix in WEIGHTS]
    return next(filter(None, sizes), 0)
