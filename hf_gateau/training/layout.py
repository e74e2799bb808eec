"""Rows of a dataset as the trainer makes tokens of them, and the reasons why some cannot be trained on; no model is needed."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from datasets import Dataset, Features, IterableDataset, List, Value

from ..rows.conversations import PROMPT_FORM, ROW_FORMS, TURN_COLUMNS, SampleError, find_context_of
from ..rows.cutting import NO_TARGETS, tokens_to_train


if TYPE_CHECKING:
    from .arguments import GateauSFTConfig

LOST = "gateau_lost"  # why a row cannot be trained on, "" where it can
TRLS_COLUMNS = {"input_ids", "image", "images"}  # rows that TRL lays out
SPLITTING = ("bfd_split", "wrapped")  # packing strategies that cut rows themselves, and lose nothing of them


@dataclass(frozen=True)
class RowLayout:
    """How a trainer makes tokens and labels of rows.

    Attributes:
        tokenizer: of the model that is trained, with the chat template that it is trained with.
        max_length, truncation_mode, find_context: as in `tokens_to_train`.
        num_proc (`int`): processes that tokenise.
    """

    tokenizer: Any
    max_length: int | None
    truncation_mode: str = "keep_start"
    find_context: Callable | str | None = None
    num_proc: int | None = None

    @classmethod
    def of(cls, args: GateauSFTConfig, tokenizer, packing: bool, find_context: Callable | str | None = None):
        """The layout of a trainer's rows, that packs them or not."""
        max_length = None if packing and args.packing_strategy in SPLITTING else args.max_length
        return cls(tokenizer, max_length, args.truncation_mode, find_context, args.dataset_num_proc)

    def tokens(self, ds: Dataset | IterableDataset, name: str = "train") -> Dataset | IterableDataset:
        """The rows with `input_ids`, `labels` and `LOST` beside their own columns."""
        options = {"fn_kwargs": {"layout": self}}
        if isinstance(ds, IterableDataset):
            return ds.map(_tokens_of_row, **options)
        new = {"input_ids": List(Value("int64")), "labels": List(Value("int64")), LOST: Value("string")}
        features = Features({**ds.features, **new})
        options |= {"features": features, "num_proc": self.num_proc, "desc": f"Tokenizing {name} dataset"}
        return ds.map(_tokens_of_row, **options)

    def reasons(self, ds: Dataset) -> list[str]:
        """Why each row cannot be trained on, an empty string where it can."""
        features = Features({LOST: Value("string")})
        options = {"features": features, "num_proc": self.num_proc, "desc": "Looking what can be trained on"}
        plain = ds.with_format(None)
        return plain.map(_reason_of_row, fn_kwargs={"layout": self}, remove_columns=ds.column_names, **options)[:][
            LOST
        ]


def told_reasons(reasons: Counter, max_length: int | None) -> str:
    """Reasons with the number of their rows, and what would keep these."""
    shown = "; ".join(f"{count:,} since {reason}" for reason, count in reasons.most_common(3))
    shown += f"; and {len(reasons) - 3} other reasons" if len(reasons) > 3 else ""
    if NO_TARGETS not in reasons:
        return shown
    return f"{shown} (max_length={max_length}: raise it, or keep the responses by truncation_mode='keep_end')"


def lays_out(columns: Iterable[str]) -> bool:
    """Whether rows with these columns are laid out here, and not by TRL."""
    columns = set(columns)
    if "prompt" in columns and (columns & {*TURN_COLUMNS} or not columns.issuperset(PROMPT_FORM)):
        return False  # TRL trains on the prompt, and scoring reads another form
    return any(columns.issuperset(form) for form in ROW_FORMS) and not columns & TRLS_COLUMNS


def tokenizer_to_train(model_name_or_path: str, revision: str | None, args: GateauSFTConfig):
    """The tokenizer that `SFTTrainer` trains a model with: `eos_token` and `chat_template_path` are heeded.

    Raises:
        OSError: there is no such model, or template.
    """
    from transformers import AutoTokenizer

    def load(name: str, **options):
        return AutoTokenizer.from_pretrained(name, trust_remote_code=args.trust_remote_code, **options)

    tokenizer = load(model_name_or_path, revision=revision)
    if args.eos_token is not None:
        tokenizer.eos_token = args.eos_token
    path = args.chat_template_path
    if path is not None and os.path.isfile(path):
        with open(path, encoding="utf-8") as stream:
            tokenizer.chat_template = stream.read()
    elif path is not None:
        source = load(path)
        tokenizer.chat_template = source.get_chat_template()
        tokenizer.add_tokens([x for x in source.added_tokens_decoder.values() if x.content not in tokenizer.vocab])
        tokenizer.eos_token = source.eos_token
    return tokenizer


def _tokens_of_row(row: dict, layout: RowLayout) -> dict[str, Any]:
    settings = {"truncation_mode": layout.truncation_mode, "find_context": find_context_of(layout.find_context)}
    try:
        tokens = tokens_to_train(row, layout.tokenizer, max_length=layout.max_length, **settings)
    except SampleError as error:
        return {"input_ids": [], "labels": [], LOST: str(error)}
    return tokens | {LOST: ""}


def _reason_of_row(row: dict, layout: RowLayout) -> dict[str, str]:
    return {LOST: _tokens_of_row(row, layout)[LOST]}
