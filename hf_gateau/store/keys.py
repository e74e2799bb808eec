"""What measurements are kept under: a key of everything that changes a number, and the rows' own keys beside it."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any


def config_key(description: Mapping[str, Any]) -> str:
    """The key of what measures, from its description as plain JSON: 16 hexadecimal digits.

    A model is known by its fingerprint: the same weights under another name (`"model"`) give the same key.
    """
    nameless = {
        key: {k: v for k, v in value.items() if k != "model"} if isinstance(value, Mapping) else value
        for key, value in description.items()
        if key != "model"
    }
    return hashlib.sha256(json.dumps(nameless, sort_keys=True).encode()).hexdigest()[:16]
