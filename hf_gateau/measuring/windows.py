"""`WindowScorer`: the response as the long model foresees it from the last 512, 1,024, 2,048, ... tokens of its context, which tells
how far back it reaches.

Shapes: R response tokens of a row, W windows that are shorter than its context.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from operator import index
from typing import Any, NamedTuple

from ..models.device import to_host
from ..models.packing import Limits
from ..models.perplexity import response_nlls
from ..rows.batches import REASON, VALUE_COLUMNS
from ..rows.conversations import FindContext
from ..rows.samples import Sample
from ..store.sqlite import Value
from .long_model import LongModelScorer


FIRST_WINDOW = 512  # in tokens of the context; each of the default's others is twice as long


class Windows(NamedTuple):
    """A sample, and the windows that it is seen through."""

    sample: Sample
    sizes: list[int]


class WindowScorer(LongModelScorer):
    """Adds `gateau_windows`, the W lengths in tokens of nested windows that end where the context does, and `gateau_window_nll`, W times
    R numbers in nats: negative log-likelihoods of the response's tokens when the long model sees so much of the context, the first
    window's before the second's. Prefix, instruction and response stay whole.

    A window as long as the context shows what the long pass shows, and is left out; so a row with a short context has none.
    The tokens are those that `gateau_token_nll_long` is measured on, with the same tokenizer and settings.

    Args:
        model (`str`): the long model that measured the rows.
        windows (`Sequence[int]`, *optional*): lengths in tokens. Default: powers of two from 512, which together take about as many
            tokens as the context has.
        revision, adapter, adapter_revision, tokenizer, dtype, load_in_8bit, load_in_4bit, device, device_map, attn_implementation,
        use_fused_attention, use_liger_kernel, trust_remote_code: see `ModelPairConfig`.
        max_length, response_head, find_context, batch_tokens, store: see `MeasureConfig`.

    Example:

        >>> ds = ds.map(WindowScorer("Qwen/Qwen3-0.6B", windows=(1024, 4096, 16384)), batched=True)
        >>> write_report(rank(ds), "report.html")

    Raises:
        ValueError: a setting out of range.
    """

    column, title = "gateau_window_nll", "Windows"

    def __init__(
        self,
        model: str,
        *,
        windows: Sequence[int] | None = None,
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
        max_length: int = 65_536,
        response_head: int | None = None,
        find_context: FindContext | str | None = None,
        batch_tokens: int | None = None,
        store: Any = None,
    ):
        windows = None if windows is None else _checked_windows(windows)
        super().__init__(**{name: x for name, x in locals().items() if name not in ("self", "__class__")})

    @property
    def max_length(self) -> int:
        """Longest sample in tokens."""
        return min(self.settings["max_length"], self.pair.max_length)

    def describe_model(self) -> dict[str, Any]:
        return super().describe_model() | {"windows": self.settings["windows"], "max_length": self.max_length}

    def lay_out(self, row: Mapping[str, Any]) -> Windows:
        sample = self.sample_of(row, max_length=self.max_length)
        self.pair.check_tokens(sample.input_ids)
        return Windows(sample, self.sizes(len(sample.context)))

    def sizes(self, num_context: int) -> list[int]:
        """The windows that are shorter than a context of so many tokens."""
        powers = [FIRST_WINDOW << i for i in range(num_context.bit_length())]
        return [x for x in self.settings["windows"] or powers if x < num_context]

    def num_tokens(self, item: Windows) -> int:
        sample, sizes = item
        return len(sizes) * (sample.response_end - len(sample.context)) + sum(sizes)

    def measure(self, items: Sequence[Windows]) -> list[list[float]]:
        """Of each row W, the windows, and then the numbers."""
        prompts = [x.prefix + x.context[-size:] + x.instruction for x, sizes in items for size in sizes]
        responses = [x.response for x, sizes in items for _ in sizes]
        nlls = iter(to_host(response_nlls(self.pair.long, prompts, responses, Limits(self.batch_tokens))))
        found = []
        for _, sizes in items:
            numbers = [x for _ in sizes for x in next(nlls).float().tolist()]
            found.append([float(len(sizes)), *map(float, sizes), *numbers])
        return found

    @property
    def columns(self) -> dict[str, str]:
        names = ("gateau_windows", self.column, REASON.format(self.column))
        return {name: VALUE_COLUMNS[name] for name in names}

    def columns_of(self, found: Value | str) -> dict[str, Any]:
        if isinstance(found, str):
            return {**dict.fromkeys(self.columns), REASON.format(self.column): found}
        end = 1 + int(found[0])
        return dict(zip(self.columns, ([int(x) for x in found[1:end]], found[end:], None), strict=True))


def _checked_windows(windows: Sequence[int]) -> tuple[int, ...]:
    """In order, each once.

    Raises:
        ValueError: there is none, or one of no tokens.
    """
    try:
        found = sorted({index(x) for x in windows})
    except TypeError:  # a number alone, or what is no whole number
        found = [0]
    if not found or found[0] < 1 or any(isinstance(x, bool) for x in windows):
        raise ValueError(
            f"windows are numbers of tokens of the context, got {windows!r}; give e.g. (512, 1024, 2048)."
        )
    return tuple(found)
