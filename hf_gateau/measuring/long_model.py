"""`LongModelScorer`: what scorers have in common that measure with the long model of a pair, on the tokens that the pair is measured on."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Any

from ..models.config import ModelPairConfig
from ..models.fingerprints import pair_fingerprints
from ..rows.samples import Sample, build_sample, truncate_response
from .value_scorer import ValueScorer


if TYPE_CHECKING:
    from .scorer import GateauScorer


LONG = ("model", "revision", "adapter", "adapter_revision")  # settings that a pair has for its long model


class LongModelScorer(ValueScorer):
    """Measures with one model, loaded and run as `GateauScorer` does its long one.

    A subclass takes as settings those of `LONG`, fields of `ModelPairConfig` that are no sibling's, and fields of `MeasureConfig`.
    """

    def __init__(self, **settings):
        super().__init__(**settings)
        self._pair_config()  # wrong settings are told now

    @classmethod
    def settings_of(cls, scorer: GateauScorer) -> dict[str, Any]:
        """Arguments with the long model of a `GateauScorer`, run as there."""
        pair, how = vars(scorer.pair_config), vars(scorer.measure_config)
        found = {name: (pair | how)[name] for name in inspect.signature(cls).parameters if name in (pair | how)}
        return found | {name: pair[f"long_{name}"] for name in LONG}

    def _pair_config(self) -> ModelPairConfig:
        shared = {name: x for name, x in self.settings.items() if name in ModelPairConfig.__dataclass_fields__}
        return ModelPairConfig(**{f"long_{name}": self.settings[name] for name in LONG}, **shared)

    def fingerprints(self) -> dict[str, str | None]:
        found = pair_fingerprints(self._pair_config())
        return {"model": found["long"], "adapter": found["long_adapter"], "tokenizer": found["tokenizer"]}

    @cached_property
    def pair(self):
        """The long model, with a sibling that is never loaded."""
        from ..models.pair import ModelPair

        return ModelPair(self._pair_config(), self.rank or 0)

    @property
    def device(self):
        return self.pair.device

    def sample_of(self, row: Mapping[str, Any], **how) -> Sample:
        """The row's token spans, with as much of the response as is measured; `how`: see `build_sample`."""
        sample = build_sample(row, self.pair.tokenizer, find_context=self.find_context, **how)
        head = self.settings["response_head"]
        return sample if head is None else truncate_response(sample, head)

    def describe_model(self) -> dict[str, Any]:
        described = self.pair.describe()
        kept = {"dtype": described["dtype"], "bits": described["bits"]}
        head = {} if (head := self.settings["response_head"]) is None else {"response_head": head}
        tokenizer = {} if self.pair.own_tokenizer is None else {"tokenizer": self.pair.own_tokenizer}
        return {**described["long"], **kept, **head, **tokenizer}
