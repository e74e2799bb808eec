"""`EmbeddingScorer`: what a row is about, as a sentence embedding; the clustering half of CaR (arXiv 2402.18191)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

from ..models.config import DTYPES
from ..models.fingerprints import fingerprint_or_name, sentence_model_fingerprint
from ..models.notices import announced
from ..rows.conversations import (
    FindContext,
    SampleError,
    checked_turns,
    last_question,
    read_conversation,
)
from ..rows.parts import span_of, text_between
from .value_scorer import ValueScorer


CHARACTERS_PER_TOKEN = 4  # about; batches are made by it
TEXT = "Instruction: {instruction} Response: {response}"
TEXT_WITH_CONTEXT = "Instruction: {instruction} Input: {context} Response: {response}"


class EmbeddingScorer(ValueScorer):
    """Adds `gateau_embedding`, a list of float32: the sentence embedding of `Instruction: ... Response: ...`.

    CaR embeds the same, with the input between the two. A long context there would leave no room for the response in what a
    sentence model sees (256 to 512 tokens, mostly); `embed_context=True` puts it in, as CaR does, for a model that sees it all.

    Args:
        model (`str`): folder or Hub id of a sentence-transformers model.
        revision (`str`, *optional*): its branch, tag or commit.
        embed_context (`bool`): put the context between instruction and response.
        dtype, device, trust_remote_code: see `ModelPairConfig`.
        find_context (a function, or its name), batch_tokens, store: see `MeasureConfig`.

    Example:

        >>> ds = ds.map(EmbeddingScorer("sentence-transformers/all-MiniLM-L6-v2"), batched=True)

    Raises:
        ValueError: a setting out of range.
        RuntimeError: sentence-transformers is not installed.
    """

    column, title = "gateau_embedding", "Embeddings"
    version = 2

    def __init__(
        self,
        model: str,
        *,
        revision: str | None = None,
        embed_context: bool = False,
        dtype: str = "auto",
        device: str = "auto",
        trust_remote_code: bool = False,
        find_context: FindContext | str | None = None,
        batch_tokens: int | None = None,
        store: Any = None,
    ):
        if dtype not in DTYPES:
            raise ValueError(f"dtype={dtype!r} is not known; use one of {', '.join(map(repr, DTYPES))}.")
        super().__init__(**{name: x for name, x in locals().items() if name not in ("self", "__class__")})

    @cached_property
    def dtype(self) -> str:
        """The name of the weights' dtype after resolving 'auto'."""
        from transformers import AutoConfig

        from ..models.device import resolve_dtype

        if self.settings["dtype"] != "auto" or self.device.type == "cpu":
            return resolve_dtype(self.settings["dtype"], self.device, None)
        config = AutoConfig.from_pretrained(
            self.settings["model"],
            revision=self.settings["revision"] or "main",
            trust_remote_code=self.settings["trust_remote_code"],
        )
        return resolve_dtype("auto", self.device, config)

    @cached_property
    def model(self):
        """The model, loaded on first use."""
        try:
            from sentence_transformers import SentenceTransformer
        except ImportError as error:
            raise RuntimeError(
                'Sentence embeddings need sentence-transformers; install it with `pip install "hf-gateau[embed]"`.'
            ) from error
        with announced(f"Loading {self.settings['model']}"):
            model = SentenceTransformer(
                self.settings["model"],
                revision=self.settings["revision"],
                device=str(self.device),
                trust_remote_code=self.settings["trust_remote_code"],
                model_kwargs={"dtype": self.dtype},
            )
        self.note_loaded()
        self.check_unchanged()
        return model

    def fingerprints(self) -> dict[str, str | None]:
        source = self.settings["model"], self.settings["revision"]
        return {"model": fingerprint_or_name(sentence_model_fingerprint, *source)}

    def describe_model(self) -> dict[str, Any]:
        return {
            "model": self.settings["model"],
            "fingerprint": self.made_of["model"],
            "dtype": self.dtype,
            "text": TEXT_WITH_CONTEXT if self.settings["embed_context"] else TEXT,
        }

    def lay_out(self, row: Mapping[str, Any]) -> str:
        form = TEXT_WITH_CONTEXT if self.settings["embed_context"] else TEXT
        return form.format(**parts_of_row(row, self.find_context))

    def num_tokens(self, item: str) -> int:
        window = self.model.max_seq_length or 1 << 62
        return min(1 + len(item) // CHARACTERS_PER_TOKEN, window)

    def measure(self, items: Sequence[str]) -> list[list[float]]:
        found = self.model.encode(list(items), batch_size=len(items), show_progress_bar=False)
        return [embedding.tolist() for embedding in found.astype("float32")]


def parts_of_row(row: Mapping[str, Any], find_context: FindContext | None = None) -> dict[str, str]:
    """`context`, `instruction` (all of the last question's turn that is not context) and `response` as texts; where no context
    is found, the last question is the instruction.

    Raises:
        SampleError: the row's turns cannot be read, or the last one is not the assistant's.
    """
    messages = checked_turns(row)
    if messages[-1]["role"] != "assistant":
        raise SampleError(f"the last turn is the {messages[-1]['role']}'s; the response must be the assistant's")
    said = [message.get("content") or "" for message in messages]
    last = last_question(messages) if any(message["role"] == "user" for message in messages) else len(messages) - 2
    try:
        found = read_conversation(row, find_context)
    except SampleError:
        return {"context": "", "instruction": said[last].strip(), "response": said[-1]}
    before = said[last][: found.start] if found.first == last else ""
    behind = said[last][found.end :] if found.last == last else "" if found.first == last else said[last]
    asked = "\n\n".join(filter(None, (before.strip(), behind.strip())))
    context = text_between(messages, span_of(found))
    return {"context": context.strip(), "instruction": asked, "response": said[-1].strip()}
