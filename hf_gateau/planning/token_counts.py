"""How long rows are, against the settings of measuring and of training: in tokens, or guessed from characters."""

import re
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from math import ceil
from typing import Any

from ..measuring.config import MeasureConfig
from ..measuring.lengths import default_window
from ..models.config import ModelPairConfig
from ..records import PLACE
from ..rows.batches import readable
from ..rows.conversations import FindContext, SampleError
from ..rows.cutting import tokens_to_train
from ..rows.samples import Sample, build_sample, truncate_context


# Characters of a token, about: of writing without spaces between words, and of other writing
IDEOGRAPHS, IDEOGRAPHS_A_TOKEN, LETTERS_A_TOKEN = re.compile("[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]"), 1.5, 4.0
PARTS = ("total", "context", "instruction", "response")


class Reasons:
    """Why rows cannot be used: how many there are for each reason, and the first of them."""

    def __init__(self):
        self.counts, self.first = Counter(), {}

    def add(self, reason: str, row: int, weight: int = 1) -> None:
        """Reasons that only name another place in a file are one."""
        kind = PLACE.sub("", reason)
        self.counts[kind] += weight
        self.first.setdefault(kind, (reason, row))

    def to_list(self) -> list[dict[str, Any]]:
        """The commonest first, each with its number of `rows` and the first of them as `example`."""
        firsts = ((*self.first[kind], count) for kind, count in self.counts.most_common())
        return [{"reason": reason, "rows": count, "example": row} for reason, row, count in firsts]


@dataclass(frozen=True)
class Limits:
    """What lengths are held against, in tokens.

    Attributes:
        tokenizer (`str`, *optional*): what is named; None: nothing is, and lengths are guessed.
        max_length (`int`): of measuring.
        short_window (`int`, *optional*): of a sibling that differs by it alone; None for another sibling.
        window_is_open (`bool`): the lengths choose `short_window`, as they do for `score`.
        segment_length (`int`): of measuring.
        train_max_length (`int`), truncation_mode (`str`): of training.
    """

    tokenizer: str | None
    max_length: int
    short_window: int | None
    window_is_open: bool
    segment_length: int
    train_max_length: int
    truncation_mode: str

    @classmethod
    def of(
        cls, pair: ModelPairConfig, measure: MeasureConfig, train_max_length: int | None, truncation_mode: str
    ) -> "Limits":
        """As the settings have them; `max_length` is the model's own window at most."""
        named, max_length = named_tokenizer(pair), measure.max_length
        if not pair.long_is_default:
            from ..models.loading import check_local, load_config
            from ..models.rope import context_window

            check_local(pair.long_model)
            config = load_config(pair.long_model, pair.long_revision, pair.trust_remote_code)
            max_length = min(max_length, context_window(config))
        window = pair.short_window if pair.short_model is None and pair.short_rope_scale is None else None
        is_open = pair.window_is_open or (pair.long_is_default and window is None)
        lengths = (measure.segment_length, train_max_length or max_length)
        return cls(named, max_length, window, is_open, *lengths, truncation_mode)


def named_tokenizer(pair: ModelPairConfig) -> str | None:
    """The tokenizer or model that is named; None where the default is left, which nobody wants to fetch for this."""
    return pair.tokenizer or (None if pair.long_is_default else pair.long_model)


@dataclass(frozen=True)
class Length:
    """A row's tokens before anything is cut; `weight` rows of the data are like it.

    Attributes:
        row (`int`): its number.
        total, context, instruction, response (`int`): tokens; the total has those of the template and the system's turn too.
        cut (`int`): context tokens that `max_length` drops.
    """

    row: int
    total: int
    context: int
    instruction: int
    response: int
    cut: int = 0
    weight: int = 1

    @classmethod
    def guessed(cls, row: int, context: str, instruction: str, response: str) -> "Length":
        """From the text."""
        parts = [about_tokens(text) for text in (context, instruction, response)]
        return cls(row, sum(parts), *parts)

    @classmethod
    def of_sample(cls, row: int, sample: Sample, num_cut: int, weight: int) -> "Length":
        """From tokens of which none was cut."""
        parts = (len(part) for part in (sample.context, sample.instruction, sample.response))
        return cls(row, sample.response_end, *parts, num_cut, weight)


def about_tokens(text: str) -> int:
    """Tokens of a text, guessed from its characters."""
    num = len(IDEOGRAPHS.findall(text))
    return ceil(num / IDEOGRAPHS_A_TOKEN + (len(text) - num) / LETTERS_A_TOKEN)


def with_cuts(lengths: list[Length], limits: Limits) -> list[Length]:
    """Guessed lengths with what `max_length` will cut of them."""
    return [replace(x, cut=min(x.context, max(0, x.total - limits.max_length))) for x in lengths]


def token_lengths(
    ds,
    guessed: list[Length],
    pair: ModelPairConfig,
    limits: Limits,
    not_measurable: Reasons,
    not_trainable: Reasons,
    find_context: FindContext | None,
    sample_rows: int,
) -> list[Length]:
    """The lengths in tokens of the rows that can be read, or of `sample_rows` of them; reasons are added to those of rows that
    cannot be laid out, and to those of rows that nothing can be learned from."""
    from datasets.utils import tqdm

    from ..models.fingerprints import tokenizer_source
    from ..models.loading import check_local, load_tokenizer
    from .plan import spread

    source = tokenizer_source(pair)
    check_local(source[0])
    tokenizer = load_tokenizer(*source, pair)
    weights = spread([x.total for x in guessed], sample_rows)
    chosen = [(guessed[place].row, weight) for place, weight in weights.items()]
    rows = readable(ds).select([row for row, _ in chosen]) if chosen else ()
    training = {"max_length": limits.train_max_length, "truncation_mode": limits.truncation_mode}
    lengths = []
    bar = tqdm(zip(chosen, rows, strict=True), total=len(chosen), desc="Counting tokens", unit=" rows", leave=False)
    for (number, weight), row in bar:
        try:
            sample = build_sample(row, tokenizer, find_context=find_context)
            num_cut = truncate_context(sample, limits.max_length).num_truncated
        except SampleError as error:
            not_measurable.add(str(error), number, weight)
            continue
        lengths.append(Length.of_sample(number, sample, num_cut, weight))
        try:
            tokens_to_train(row, tokenizer, find_context=find_context, **training)
        except SampleError as error:
            not_trainable.add(str(error), number, weight)
    return lengths


def length_figures(lengths: list[Length], limits: Limits) -> dict[str, Any]:
    """The `limits`; the number of `rows` behind the figures; quantiles of each part; and the rows that are `cut` (and what `share` of
    all context they lose), `in_window` (seen whole by the short sibling), with `few_segments`, and `cut_in_training`."""
    cut = [x for x in lengths if x.cut]
    if limits.window_is_open and lengths:
        median = _quantiles([(x.context - x.cut, x.weight) for x in lengths])["median"]
        limits = replace(limits, short_window=default_window(median))
    window, segment = limits.short_window, limits.segment_length

    def rows_with(is_so: Callable[[Length], bool]) -> int:
        return sum(x.weight for x in lengths if is_so(x))

    return {
        "limits": asdict(limits),
        "rows": sum(x.weight for x in lengths),
        "laid_out": len(lengths) if limits.tokenizer else 0,
        "exact": limits.tokenizer is not None and all(x.weight == 1 for x in lengths),
        **{name: _quantiles([(getattr(x, name), x.weight) for x in lengths]) for name in PARTS},
        "cut": {
            "rows": sum(x.weight for x in cut),
            "share": sum(x.cut * x.weight for x in cut) / max(1, sum(x.context * x.weight for x in lengths)),
            "example": cut[0].row if cut else None,
        },
        "in_window": None if window is None else rows_with(lambda x: x.context - x.cut + x.instruction <= window),
        "few_segments": rows_with(lambda x: x.context - x.cut <= segment),
        "cut_in_training": rows_with(lambda x: x.total > limits.train_max_length),
    }


def _quantiles(values: list[tuple[int, int]]) -> dict[str, int]:
    """The smallest, the median, the ninth decile and the largest of (value, weight)."""
    ordered = sorted(values)
    total, found, seen = sum(weight for _, weight in ordered), {}, 0
    names = {"min": 0.0, "median": 0.5, "p90": 0.9, "max": 1.0}
    for value, weight in ordered:
        seen += weight
        for name, share in names.items():
            if name not in found and seen >= share * total:
                found[name] = value
    return found or dict.fromkeys(names, 0)
