"""What an architecture can be trusted with: which of the ways that save work give its own numbers, and which models are refused.

`architectures.json` says it of every causal language model of transformers: each was built tiny and measured against separate
full passes of its own (`python -m benchmarks.architectures` makes the file anew). A model type that is not in there takes no
short cut.
"""

import json
from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from typing import NamedTuple


# Kinds of layers whose past is keys and values alone, and can be cut back; and those that are attention, whatever they see
KEEPING_LAYERS = {"full_attention", "sliding_attention"}
ATTENTION_LAYERS = {*KEEPING_LAYERS, "chunked_attention"}


class Abilities(NamedTuple):
    """What may be done with a model, each without a change to its numbers.

    Attributes:
        refusal (`str`, *optional*): why it cannot be measured at all.
        leaves_rows_out (`bool`): the last layer may compute the rows alone that are read.
        keeps_past (`bool`): what it knows of earlier tokens is keys and values, which several rows can share.
        pads (`bool`): sequences of several lengths may share a pass, padded on the right.
    """

    refusal: str | None = None
    leaves_rows_out: bool = False
    keeps_past: bool = False
    pads: bool = False


@cache
def known_architectures() -> Mapping[str, Abilities]:
    """Abilities by `model_type`, as they were found."""
    found = json.loads((files(__package__) / "architectures.json").read_text(encoding="utf-8"))
    return {name: Abilities(**said) for name, said in found["model_types"].items()}


def is_known(config) -> bool:
    """Whether the type of a configuration was tried."""
    return config.get_text_config().model_type in known_architectures()


def abilities_of(config) -> Abilities:
    """What may be done with a model of this configuration: what its type can, as far as all its layers are attention."""
    config = config.get_text_config()
    known = known_architectures().get(config.model_type, Abilities())
    kinds = set(getattr(config, "layer_types", None) or ())
    return known._replace(
        leaves_rows_out=known.leaves_rows_out and kinds <= ATTENTION_LAYERS,
        keeps_past=known.keeps_past and kinds <= KEEPING_LAYERS,
    )
