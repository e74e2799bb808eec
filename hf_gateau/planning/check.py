"""What rows are, before any model loads: their form, how each is split, what cannot be used, what is there twice, and how long.

What the text tells is told of all rows. Tokens are counted where a tokenizer is named, of all rows or of some, evenly over their
lengths; without one, lengths are guessed from characters.
"""

import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from ..measuring.config import MeasureConfig
from ..models.config import ModelPairConfig
from ..rows.batches import READ_COLUMNS, readable
from ..rows.context_rules import RULES
from ..rows.conversations import (
    CONTENT_COLUMNS,
    MAY_HOLD_TURNS,
    OTHER_RULES,
    ROW_FORMS,
    FindContext,
    SampleError,
    content_hash,
    find_context_of,
    missing_form,
    read_conversation,
)
from ..rows.decoding import as_turns
from ..rows.parts import span_of, texts_of
from .token_counts import Length, Limits, Reasons, length_figures, token_lengths, with_cuts


SAMPLE_ROWS = 2_000  # laid out as tokens
SHOWN_ROWS = 3
LOOKED_AT = 50  # rows among which those to show are chosen, one of each rule first
MOST = 0.5  # share of the rows from which a setting does not suit the data
LETTERS = 200  # of a row, evenly over it, that tell its script
MEANINGS = {rule.name: rule.meaning for rule in RULES} | OTHER_RULES
OWN_PREFIX = "gateau_"


@dataclass
class TextCheck:
    """What the text of rows tells; `add` every row.

    Attributes:
        forms, roles, rules, scripts: how many rows have each form, are split by each rule, are mostly in each script; how many
            turns have each role.
        reasons: why rows cannot be read.
        lengths: guessed, of those that can.
        hashes: what a row says -> the first row that says it.
        repeated: (row, first row that says the same).
        contexts: how many rows that are not `repeated` have a context.
        nulls: how many rows have null in a column that is read.
        constant: columns of text -> the value that all rows had so far.
    """

    find_context: FindContext | None = None
    num_rows: int = 0
    forms: Counter = field(default_factory=Counter)
    roles: Counter = field(default_factory=Counter)
    rules: Counter = field(default_factory=Counter)
    scripts: Counter = field(default_factory=Counter)
    nulls: Counter = field(default_factory=Counter)
    reasons: Reasons = field(default_factory=Reasons)
    hashes: dict[str, int] = field(default_factory=dict)
    repeated: list[tuple[int, int]] = field(default_factory=list)
    contexts: Counter = field(default_factory=Counter)
    constant: dict[str, Any] = field(default_factory=dict)
    lengths: list[Length] = field(default_factory=list)

    def add(self, row: Mapping[str, Any]) -> None:
        number, self.num_rows = self.num_rows, self.num_rows + 1
        self._add_columns(row)
        self.forms[", ".join(form_of(row)) or "none"] += 1
        self.roles.update(roles_of(row))
        try:
            found = read_conversation(row, self.find_context)
        except SampleError as error:
            self.reasons.add(str(error), number)
            return
        self.rules[found.rule] += 1
        before, context, instruction, response = texts_of(row, span_of(found))
        self.scripts[script_of(context + response)] += 1
        self.lengths.append(Length.guessed(number, context, f"{before}{instruction}", response))
        first = self.hashes.setdefault(content_hash(row), number)
        if first != number:
            self.repeated.append((number, first))
        else:
            self.contexts[hash(context.strip())] += 1

    def _add_columns(self, row: Mapping[str, Any]) -> None:
        self.nulls.update(name for name in CONTENT_COLUMNS if name in row and row[name] is None)
        for name in CONTENT_COLUMNS:
            if isinstance(value := row.get(name), str) and self.constant.setdefault(name, value) != value:
                self.constant[name] = None


def form_of(row: Mapping[str, Any]) -> tuple[str, ...]:
    """The columns that a row is read from; empty where it has none of the forms."""
    return next((form for form in ROW_FORMS if all(row.get(name) is not None for name in form)), ())


def roles_of(row: Mapping[str, Any]) -> Iterator[str]:
    """Who has the turns of a row, as the row calls them."""
    for name in form_of(row):
        turns = as_turns(row[name]) if name in MAY_HOLD_TURNS else None
        for turn in turns if isinstance(turns, list) else ():
            if isinstance(turn, Mapping):
                yield str(turn.get("role", turn.get("from")))


def script_of(text: str) -> str:
    """The script that most letters of a text are in, as Unicode names it: Latin, Cyrillic, CJK, ..."""
    letters = (x for x in text[:: max(1, len(text) // LETTERS)] if x.isalpha())
    counts = Counter(map(_script, letters))
    return counts.most_common(1)[0][0] if counts else "no letters"


@lru_cache(maxsize=1 << 16)
def _script(letter: str) -> str:
    name = unicodedata.name(letter, "unnamed").split()[0]
    return name if name == "CJK" else name.capitalize()


def check_rows(
    ds,
    pair: ModelPairConfig,
    measure: MeasureConfig,
    *,
    sample_rows: int = SAMPLE_ROWS,
    num_samples: int = SHOWN_ROWS,
    train_max_length: int | None = None,
    truncation_mode: str = "keep_start",
) -> dict[str, Any]:
    """What is to be known of rows before they are measured, as plain JSON. Loads a tokenizer at most.

    Args:
        ds (`datasets.Dataset`): the rows.
        pair, measure: the settings of the scorer; the tokenizer, `short_window`, `max_length`, `segment_length` and
            `find_context` are read.
        sample_rows (`int`): rows to lay out as tokens at most; the others are estimated from these.
        num_samples (`int`): rows to show.
        train_max_length (`int`, *optional*), truncation_mode (`str`): how training will cut rows, see `make_plan`.

    Returns:
        `dict` with `rows`, `columns`, `form`, `forms`, `roles`, `rules`, `scripts`, `not_measurable`, `not_trainable`,
        `duplicates`, `nulls`, `constant`, `lengths`, `samples`, `findings` (what to look at, in words) and `status`: 0 where there
        is nothing to look at, 1 where there is, 2 where no row can be measured.
    """
    from datasets.utils import tqdm

    text = TextCheck(find_context_of(measure.find_context))
    for row in tqdm(readable(ds), desc="Reading rows", unit=" rows", leave=False):
        text.add(row)
    not_trainable, limits = Reasons(), Limits.of(pair, measure, train_max_length, truncation_mode)
    if limits.tokenizer is None:
        lengths = with_cuts(text.lengths, limits)
    else:
        reasons = (text.reasons, not_trainable)
        lengths = token_lengths(ds, text.lengths, pair, limits, *reasons, text.find_context, sample_rows)
    found = {
        "rows": text.num_rows,
        "columns": list(ds.column_names),
        "form": missing_form(ds.column_names),
        "forms": dict(text.forms),
        "roles": dict(text.roles.most_common()),
        "rules": {name: {"rows": count, "meaning": MEANINGS[name]} for name, count in text.rules.most_common()},
        "scripts": dict(text.scripts.most_common()),
        "not_measurable": text.reasons.to_list(),
        "not_trainable": not_trainable.to_list(),
        "duplicates": _duplicates(text),
        "nulls": dict(text.nulls),
        "constant": [name for name, value in text.constant.items() if value is not None and text.num_rows > 1],
        "lengths": length_figures(lengths, limits),
        "samples": shown_rows(readable(ds), text.find_context, num_samples),
    }
    findings = list(_findings(found, ds))
    num_lost = sum(part["rows"] for part in found["not_measurable"])
    return found | {"findings": findings, "status": 2 if num_lost >= text.num_rows else int(bool(findings))}


def _duplicates(text: TextCheck) -> dict[str, Any]:
    shared = sum(count for count in text.contexts.values() if count > 1)
    return {"rows": len(text.repeated), "examples": text.repeated[:SHOWN_ROWS], "rows_of_shared_contexts": shared}


def shown_rows(rows: Iterable[Mapping[str, Any]], find_context: FindContext | None, num: int) -> list[dict[str, Any]]:
    """Some of the first rows, those of other rules first: `row` (from 0), `rule`, and what stands `before` the context, `context`,
    `instruction` and `response`; or `row` and the `reason` that it cannot be measured."""
    told = []
    for number, row in zip(range(LOOKED_AT), rows, strict=False):
        try:
            found = read_conversation(row, find_context)
        except SampleError as error:
            told.append({"row": number, "reason": str(error), "rule": ""})
            continue
        parts = dict(zip(("before", "context", "instruction", "response"), texts_of(row, span_of(found)), strict=True))
        told.append({"row": number, "rule": found.rule, **parts})
    firsts = list({one["rule"]: one for one in reversed(told)}.values())[::-1]
    chosen = sorted(firsts, key=lambda one: one["row"])[:num]
    chosen += [one for one in told if one not in chosen][: num - len(chosen)]
    return sorted(chosen, key=lambda one: one["row"])


# What to look at


def _findings(found: dict[str, Any], ds) -> Iterator[str]:
    num_rows, lengths = found["rows"], found["lengths"]
    about = "" if lengths["exact"] else "About "
    if any(name.startswith(OWN_PREFIX) for name in found["columns"]):
        yield "The rows have been through hf-gateau: they carry its columns; measured rows are for `hf-gateau rank`."
    if hint := _rows_in_a_row(ds):
        yield hint
    elif found["form"]:
        yield f"No form fits: {found['form']}"
    if lost := sum(part["rows"] for part in found["not_measurable"]):
        yield f"{lost:,} of {num_rows:,} rows cannot be measured; mend them, or leave them: they keep the reason."
    if lost := sum(part["rows"] for part in found["not_trainable"]):
        yield f"{about}{lost:,} rows cannot be trained on, and would be measured for nothing."
    if repeated := found["duplicates"]["rows"]:
        yield f"{repeated:,} rows repeat another word for word; a selection may hold both."
    for name in found["constant"]:
        yield f"All rows have the same {name}."
    yield from _findings_of_lengths(lengths, about)


def _findings_of_lengths(lengths: dict[str, Any], about: str) -> Iterator[str]:
    limits, many = lengths["limits"], MOST * lengths["rows"]
    if cut := lengths["cut"]["rows"]:
        yield (
            f"{about}{cut:,} rows are longer than max_length={limits['max_length']:,} and lose the left of their context, "
            f"{lengths['cut']['share']:.1%} of all context."
        )
    if cut := lengths["cut_in_training"]:
        how = f"train_max_length={limits['train_max_length']:,}, and training cuts them ({limits['truncation_mode']})"
        yield f"{about}{cut:,} rows are longer than {how}."
    if (fit := lengths["in_window"]) and fit > many:
        yield (
            f"{about}{fit:,} rows fit into short_window={limits['short_window']:,} whole, so that both siblings see the same and HMP "
            f"is 0; a quarter of the median context is {lengths['context']['median'] // 4:,} tokens."
        )
    if (few := lengths["few_segments"]) and few > many:
        yield (
            f"{about}{few:,} rows have fewer than 2 segments of segment_length={limits['segment_length']:,}, so that CAM has "
            "nothing to compare; take shorter segments."
        )


def _rows_in_a_row(ds) -> str | None:
    """A word on a file that is one object, in which the rows are a list."""
    if len(ds) != 1 or any(name in READ_COLUMNS for name in ds.column_names):
        return None
    for name, value in ds.with_format(None)[0].items():
        if isinstance(value, list) and value and isinstance(value[0], Mapping):
            return (
                f"The data are one row, whose column {name!r} holds a list of {len(value):,} objects: if these are the rows, write "
                "them as JSON lines, or under the key 'data'."
            )
    return None
