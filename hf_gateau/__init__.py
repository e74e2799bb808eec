"""Choose the long-context training data that teaches a language model the most: GATEAU for `datasets` and TRL.

The rooms, in the order in which one reads them (a room imports only from those before it):
`files` (rows from the disk and the Hub, and back), `rows` (one row to a sample of tokens), `models` (the pair and its forward
pass), `store` (measurements that survive a crash), `measuring` (models over samples: the raw columns), `planning` (what
measuring will take), `ranking` (columns to an order, an order to a selection), `report` (figures and a page), `hub` (push,
pull, cards), `training` (select, then train), `quickstart` (a planted world and a tiny pair), `shell` (what every command has
in common), `scripts` (`trl sft --recipe`), `endpoint` (models behind an address), `building` (long rows out of documents),
`evaluation`, `experiments`, `cli`.

At the root stand the files that belong to no room: `redaction`, `markdown`, `settings`, `records`, `shipped`.
"""

import importlib
from typing import TYPE_CHECKING


# Public name -> the module it lives in; nothing is imported before it is used.
_PUBLIC = {
    "ModelPairConfig": "models.config",
    "MeasureConfig": "measuring.config",
    "gateau_score": "measuring.scorer",
    "GateauScorer": "measuring.scorer",
    "ResponseScorer": "measuring.responses",
    "WindowScorer": "measuring.windows",
    "RewardScorer": "measuring.rewards",
    "EmbeddingScorer": "measuring.embeddings",
    "calibrate_heads": "measuring.together",
    "measure_together": "measuring.together",
    "RankConfig": "ranking.config",
    "SelectConfig": "ranking.config",
    "MixConfig": "ranking.config",
    "rank": "ranking.order",
    "ranking_record": "ranking.order",
    "screen": "ranking.screening",
    "select": "ranking.selection",
    "selection_record": "ranking.selection",
    "SelectionRecord": "ranking.selection",
    "mix": "ranking.mixture",
    "compare": "report.comparison",
    "Comparison": "report.comparison",
    "write_report": "report.page",
    "write_explorer": "report.explorer",
    "ScoredConfig": "hub.config",
    "load_scored": "hub.pull",
    "push_scored": "hub.push",
    "push_explorer": "hub.space",
    "reuse_scores": "hub.reuse",
    "TrainConfig": "training.config",
    "GateauSelector": "training.selector",
    "GateauSFTConfig": "training.arguments",
    "GateauSFTTrainer": "training.trainer",
}
__all__ = sorted(_PUBLIC)

if TYPE_CHECKING:  # for editors and type checkers
    from .hub.config import ScoredConfig  # noqa: F401
    from .hub.pull import load_scored  # noqa: F401
    from .hub.push import push_scored  # noqa: F401
    from .hub.reuse import reuse_scores  # noqa: F401
    from .hub.space import push_explorer  # noqa: F401
    from .measuring.config import MeasureConfig  # noqa: F401
    from .measuring.embeddings import EmbeddingScorer  # noqa: F401
    from .measuring.responses import ResponseScorer  # noqa: F401
    from .measuring.rewards import RewardScorer  # noqa: F401
    from .measuring.scorer import GateauScorer, gateau_score  # noqa: F401
    from .measuring.together import calibrate_heads, measure_together  # noqa: F401
    from .measuring.windows import WindowScorer  # noqa: F401
    from .models.config import ModelPairConfig  # noqa: F401
    from .ranking.config import MixConfig, RankConfig, SelectConfig  # noqa: F401
    from .ranking.mixture import mix  # noqa: F401
    from .ranking.order import rank, ranking_record  # noqa: F401
    from .ranking.screening import screen  # noqa: F401
    from .ranking.selection import SelectionRecord, select, selection_record  # noqa: F401
    from .report.comparison import Comparison, compare  # noqa: F401
    from .report.explorer import write_explorer  # noqa: F401
    from .report.page import write_report  # noqa: F401
    from .training.arguments import GateauSFTConfig  # noqa: F401
    from .training.config import TrainConfig  # noqa: F401
    from .training.selector import GateauSelector  # noqa: F401
    from .training.trainer import GateauSFTTrainer  # noqa: F401


def __getattr__(name: str):
    if name == "__version__":
        globals()[name] = _version()
        return globals()[name]
    if name not in _PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f".{_PUBLIC[name]}", __name__), name)
    globals()[name] = value
    return value


def _version() -> str:
    """The version that is installed; looking it up takes longer than everything else here."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("hf-gateau")
    except PackageNotFoundError:  # a bare checkout
        return "0.0.0"


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
