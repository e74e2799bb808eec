"""Secrets: nothing that is written for others may hold one."""

import os
import re
from collections.abc import Mapping
from typing import Any


SECRET_NAMES = re.compile(r"TOKEN|SECRET|PASSW|CREDENTIAL|API_?KEY|ACCESS_?KEY|PRIVATE_?KEY", re.IGNORECASE)
TOKEN_FORM = re.compile(r"(?<![A-Za-z0-9])hf_[A-Za-z0-9]{30,}")
REMOVED = "(removed)"
SHORTEST_SECRET = 8  # characters; shorter values of such variables are switches, not secrets


def known_secrets() -> set[str]:
    """Values that must not get out: the Hub's token, and what variables of the environment with such names hold."""
    from huggingface_hub import get_token

    found = {value for name, value in os.environ.items() if SECRET_NAMES.search(name)}
    return {value for value in {*found, get_token() or ""} if len(value) >= SHORTEST_SECRET}


def redact(value: Any) -> Any:
    """A JSON-like value with every known secret, and whatever has a Hub token's form, replaced."""
    secrets = sorted(known_secrets(), key=len, reverse=True)  # one may be part of another

    def clean(x: Any) -> Any:
        if isinstance(x, str):
            for secret in secrets:
                x = x.replace(secret, REMOVED)
            return TOKEN_FORM.sub(REMOVED, x)
        if isinstance(x, Mapping):
            return {clean(key): clean(item) for key, item in x.items()}
        return type(x)(map(clean, x)) if type(x) in (list, tuple) else x

    return clean(value)


def clear_secrets(*settings: Any) -> list[str]:
    """Set attributes of a model's or tokenizer's configuration that hold a secret to None; returns their names.

    What is saved with a checkpoint, and pushed, is what stands there.
    """
    cleared = []
    for part in settings:
        for name, value in list(vars(part).items()) if part is not None else ():
            if isinstance(value, (str, Mapping, list)) and (clean := redact(value)) != value:
                setattr(part, name, None if isinstance(value, str) else clean)
                cleared.append(name)
    return cleared
