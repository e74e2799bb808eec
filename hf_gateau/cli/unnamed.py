"""The question that stands before the paper's pair is fetched because nobody has named a model."""

import os
import sys

from ..models.config import ModelPairConfig
from ..models.unnamed import unnamed_pair


def agree_to_unnamed_pair(pair: ModelPairConfig, yes: bool) -> None:
    """Go on where models are named, or are in the cache; else tell what is to be fetched, and ask on a terminal.

    Raises:
        ValueError: nobody has agreed.
    """
    line = unnamed_pair(pair)
    if line is None:
        return
    if yes:
        print(f"{line}.", file=sys.stderr)
    elif not (sys.stdin.isatty() and sys.stderr.isatty()) or int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ValueError(f"{line}. Name your own with --long_model, or agree with --yes.")
    else:
        print(f"{line}. Go on? [y/N] ", end="", file=sys.stderr, flush=True)
        if sys.stdin.readline().strip().lower() not in ("y", "yes"):
            raise ValueError("Nothing was fetched; name a model with --long_model, such as Qwen/Qwen3-0.6B.")
