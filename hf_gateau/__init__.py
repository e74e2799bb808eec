"""Choose the long-context training data that teaches a language model the most: GATEAU for `datasets` and TRL."""

import importlib
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING


try:
    __version__ = version("hf-gateau")
except PackageNotFoundError:  # a bare checkout
    __version__ = "0.0.0"

# Public name -> the module it lives in; nothing is imported before it is used.
_PUBLIC = {
    "gateau_score": "measure",
    "GateauScorer": "measure",
    "ResponseScorer": "responses",
    "RewardScorer": "rewards",
    "EmbeddingScorer": "embeddings",
    "measure_together": "distributed",
    "MeasureConfig": "config",
    "ModelPairConfig": "config",
    "RankConfig": "config",
    "SelectConfig": "config",
    "MixConfig": "config",
    "TrainConfig": "config",
    "ScoredConfig": "config",
    "rank": "ranking",
    "ranking_record": "ranking",
    "select": "selection",
    "selection_record": "selection",
    "SelectionRecord": "selection",
    "mix": "mixture",
    "write_report": "page",
    "reuse_scores": "reuse",
    "push_scored": "push",
    "load_scored": "pull",
    "GateauSelector": "callbacks",
    "GateauSFTConfig": "training",
    "GateauSFTTrainer": "training",
}
__all__ = sorted(_PUBLIC)

if TYPE_CHECKING:  # for editors and type checkers
    from .callbacks import GateauSelector  # noqa: F401
    from .config import (  # noqa: F401
        MeasureConfig,
        MixConfig,
        ModelPairConfig,
        RankConfig,
        ScoredConfig,
        SelectConfig,
        TrainConfig,
    )
    from .distributed import measure_together  # noqa: F401
    from .embeddings import EmbeddingScorer  # noqa: F401
    from .measure import GateauScorer, gateau_score  # noqa: F401
    from .mixture import mix  # noqa: F401
    from .page import write_report  # noqa: F401
    from .pull import load_scored  # noqa: F401
    from .push import push_scored  # noqa: F401
    from .ranking import rank, ranking_record  # noqa: F401
    from .responses import ResponseScorer  # noqa: F401
    from .reuse import reuse_scores  # noqa: F401
    from .rewards import RewardScorer  # noqa: F401
    from .selection import SelectionRecord, select, selection_record  # noqa: F401
    from .training import GateauSFTConfig, GateauSFTTrainer  # noqa: F401


def __getattr__(name: str):
    if name not in _PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f".{_PUBLIC[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
