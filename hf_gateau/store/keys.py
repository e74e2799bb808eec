"""What measurements are kept under. A row's key, `gateau_key`, is SETTINGS:ROW.

SETTINGS (`config_key`) is everything that changes a number of given tokens:
- the weights of the long model and of the short one, with their configurations (RoPE scaling and so on), adapters, and the code
  that they bring along: the commit of a Hub id or of its snapshot in the local cache, else a hash over the configuration and some
  bytes of every tensor (`models.fingerprints`); whether a repository's own code was run where the library has the architecture too;
- `short_window`, `short_rope_scale`, `short_pass`; the dtype as resolved, and quantisation; `segment_length`, `segment_stride`,
  `response_head`; with `cam` heads, which heads and their habits (kept under a key without any of it, so that they are chosen
  once); the version of the measuring code. Rows whose segments are left for another time (`segments_for`) are kept under a key of
  their own until they have them; which rows that are is no part of any key, since no number depends on it.

ROW (`Sample.key`) is the measured tokens and the borders of the spans in them, so everything that changes those: what the row
says, the tokenizer, its chat template and special tokens, `find_context`, `max_length`, `response_head`.

What other scorers than the pair measure is kept by what a row says and where its context stands; so their SETTINGS have the
tokenizer too, unless the model's commit tells it.

In none of them, since it changes no number by more than rounding does: where files are and what they are called, how a model is
named, `device`, `device_map`, `attn_implementation`, `use_fused_attention`, `use_liger_kernel`, `batch_tokens`, `store`, `on_error`,
the order of rows and what stands beside them, columns that measuring does not read, a `generation_config.json`; and the versions of
libraries: an upgrade must not throw away what took days, and where one is known to have changed numbers the version of the measuring
code is raised.

`layout_key` stands for what makes tokens of rows, without any row: so two ways of laying out compare, and what `datasets` keeps of
one is not taken for the other's.
"""

import hashlib
import json
from collections.abc import Mapping
from typing import Any


NAMES = ("model", "adapter_name")  # in a description, beside the fingerprints that stand for them


def config_key(description: Mapping[str, Any]) -> str:
    """The key of what measures, from its description as plain JSON: 16 hexadecimal digits.

    A model is known by its fingerprint: the same weights under another name (`"model"`) give the same key.
    """
    nameless = {
        key: _without_names(value) if isinstance(value, Mapping) else value
        for key, value in _without_names(description).items()
    }
    return _hash(nameless)


def layout_key(description: Mapping[str, Any]) -> str:
    """The key of what makes tokens of rows, likewise."""
    return _hash(description)


def _without_names(part: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in part.items() if key not in NAMES}


def _hash(value: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]
