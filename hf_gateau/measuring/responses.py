"""`ResponseScorer`: PPL(y), how hard a response is by itself; what Cherry Selection's IFD divides by (arXiv 2308.12032)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

from ..models.device import to_host
from ..models.packing import Limits
from ..models.perplexity import perplexity, response_nlls
from ..rows.conversations import FindContext, SampleError
from .long_model import LongModelScorer


class ResponseScorer(LongModelScorer):
    """Adds `gateau_ppl_response`: perplexity of the response's tokens under the long model, behind the token that begins a
    document (the tokenizer's BOS, else its EOS: lm-evaluation-harness's `prefix_token_id`) and nothing else.

    The tokens are those that `gateau_ppl_long` is measured on, with the same tokenizer and settings.

    Args:
        model (`str`): the long model that measured the rows.
        revision, adapter, adapter_revision, tokenizer, dtype, load_in_8bit, load_in_4bit, device, device_map, attn_implementation,
        use_fused_attention, use_liger_kernel, trust_remote_code: see `ModelPairConfig`.
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
        use_fused_attention: bool = False,
        use_liger_kernel: bool = False,
        trust_remote_code: bool = False,
        response_head: int | None = None,
        find_context: FindContext | str | None = None,
        batch_tokens: int | None = None,
        store: Any = None,
    ):
        super().__init__(**{name: x for name, x in locals().items() if name not in ("self", "__class__")})

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
        return super().describe_model() | {"first_token": self.first_token}

    def lay_out(self, row: Mapping[str, Any]) -> list[int]:
        response = self.sample_of(row).response
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
