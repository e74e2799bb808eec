"""`ResponseScorer`: PPL(y), how hard a response is by itself; what Cherry Selection's IFD divides by (arXiv 2308.12032)."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

from ..models.config import ModelPairConfig
from ..models.device import to_host
from ..models.fingerprints import pair_fingerprints
from ..models.packing import Limits
from ..models.perplexity import perplexity, response_nlls
from ..rows.conversations import FindContext, SampleError
from ..rows.samples import build_sample, truncate_response
from .value_scorer import ValueScorer


if TYPE_CHECKING:
    from .scorer import GateauScorer


LONG = ("model", "revision", "adapter", "adapter_revision")  # settings that a pair has for its long model


class ResponseScorer(ValueScorer):
    """Adds `gateau_ppl_response`: perplexity of the response's tokens under the long model, behind the token that begins a
    document (the tokenizer's BOS, else its EOS: lm-evaluation-harness's `prefix_token_id`) and nothing else.

    The tokens are those that `gateau_ppl_long` is measured on, with the same tokenizer and settings.

    Args:
        model (`str`): the long model that measured the rows.
        revision, adapter, adapter_revision, tokenizer, dtype, load_in_8bit, load_in_4bit, device, device_map, attn_implementation,
        trust_remote_code: see `ModelPairConfig`.
        response_head, find_context (a function), batch_tokens, store: see `MeasureConfig`.

    Example:

        >>> ds = ds.map(ResponseScorer("Qwen/Qwen3-0.6B"), batched=True)
        >>> ranked = rank(ds, method="ifd")

    Raises:
        ValueError: a setting out of range, or a tokenizer without a token that begins a document.
    """

    column, title = "gateau_ppl_response", "Responses"

    def __init__(
        self,
        model: str,
        *,
        revision: str | None = None,
        adapter: str | None = None,
        adapter_revision: str | None = None,
        tokenizer: str | None = None,
        dtype: str = "auto",
        load_in_8bit: bool = False,
        load_in_4bit: bool = False,
        device: str = "auto",
        device_map: Any = None,
        attn_implementation: str | None = None,
        trust_remote_code: bool = False,
        response_head: int | None = None,
        find_context: FindContext | str | None = None,
        batch_tokens: int | None = None,
        store: Any = None,
    ):
        super().__init__(**{name: x for name, x in locals().items() if name not in ("self", "__class__")})
        self._pair_config()  # wrong settings are told now

    @classmethod
    def settings_of(cls, scorer: GateauScorer) -> dict[str, Any]:
        """Arguments for a `ResponseScorer` with the long model of a `GateauScorer`, run as there."""
        pair, how = vars(scorer.pair_config), vars(scorer.measure_config)
        found = {name: (pair | how)[name] for name in inspect.signature(cls).parameters if name in (pair | how)}
        return found | {name: pair[f"long_{name}"] for name in LONG}

    def _pair_config(self) -> ModelPairConfig:
        own = (*LONG, "response_head", "find_context", "batch_tokens", "store")
        shared = {name: value for name, value in self.settings.items() if name not in own}
        names = {name: self.settings[name] for name in LONG}
        return ModelPairConfig(**{f"long_{name}": value for name, value in names.items()}, **shared)

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

    @cached_property
    def first_token(self) -> int:
        """The token that begins a document."""
        tokenizer = self.pair.tokenizer
        token = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
        if token is None:
            raise ValueError(
                f"The tokenizer of {self.settings['model']!r} has neither a BOS nor an EOS token for a response to stand "
                "behind; name another as tokenizer=, or rank by method='ifd_context'."
            )
        return token

    def describe_model(self) -> dict[str, Any]:
        described = self.pair.describe()
        kept = {"dtype": described["dtype"], "bits": described["bits"], "first_token": self.first_token}
        head = {} if (head := self.settings["response_head"]) is None else {"response_head": head}
        tokenizer = {} if self.pair.own_tokenizer is None else {"tokenizer": self.pair.own_tokenizer}
        return {**described["long"], **kept, **head, **tokenizer}

    def lay_out(self, row: Mapping[str, Any]) -> list[int]:
        sample = build_sample(row, self.pair.tokenizer, find_context=self.find_context)
        head = self.settings["response_head"]
        response = (sample if head is None else truncate_response(sample, head)).response
        self.pair.check_tokens(response)
        if len(response) > self.pair.max_length:
            raise SampleError(f"the response has {len(response)} tokens, and the model sees {self.pair.max_length}")
        return response

    def num_tokens(self, item: list[int]) -> int:
        return len(item)

    def measure(self, items: Sequence[list[int]]) -> list[float]:
        limits = Limits(self.batch_tokens)
        nlls = response_nlls(self.pair.long, [[self.first_token]] * len(items), items, limits)
        return [perplexity(nll_R) for nll_R in to_host(nlls)]
