"""`RewardScorer`: how good a reward model finds a conversation; the ranking half of CaR (arXiv 2402.18191)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from ..models.config import DTYPES
from ..models.notices import announced
from ..rows.conversations import FindContext, SampleError, checked_turns
from ..rows.rendering import ChatTemplate, plain_texts
from ..rows.samples import build_sample, truncate_context
from .value_scorer import ValueScorer


@dataclass(frozen=True)
class Tokens:
    """One conversation as a reward model reads it: `input_ids`, and `token_type_ids` where it tells the texts of a pair apart."""

    input_ids: list[int]
    token_type_ids: list[int] | None = None


class RewardScorer(ValueScorer):
    """Adds `gateau_reward`, the one number that a reward model (`AutoModelForSequenceClassification` with one label) gives for a
    conversation: through its chat template; without one, as the pair of texts (all before the response, the response).

    A conversation that is longer than `max_length` loses the beginning of its context, as in measuring.

    Args:
        model (`str`): folder or Hub id of the reward model.
        revision (`str`, *optional*): its branch, tag or commit.
        max_length (`int`, *optional*): longest conversation in tokens. Default: what the model was made for.
        dtype, device, trust_remote_code: see `ModelPairConfig`.
        find_context (a function, or its name), batch_tokens, store: see `MeasureConfig`.

    Example:

        >>> ds = ds.map(RewardScorer("Skywork/Skywork-Reward-V2-Qwen3-0.6B"), batched=True)

    Raises:
        ValueError: a setting out of range, a model with several labels, or one whose head was never trained.
    """

    column, title = "gateau_reward", "Rewards"

    def __init__(
        self,
        model: str,
        *,
        revision: str | None = None,
        max_length: int | None = None,
        dtype: str = "auto",
        device: str = "auto",
        trust_remote_code: bool = False,
        find_context: FindContext | str | None = None,
        batch_tokens: int | None = None,
        store: Any = None,
    ):
        if max_length is not None and max_length < 2:
            raise ValueError(f"max_length is a number of tokens, got {max_length}; give 2 or more.")
        if dtype not in DTYPES:
            raise ValueError(f"dtype={dtype!r} is not known; use one of {', '.join(map(repr, DTYPES))}.")
        super().__init__(**{name: x for name, x in locals().items() if name not in ("self", "__class__")})

    @property
    def _source(self) -> dict[str, Any]:
        return {
            "revision": self.settings["revision"] or "main",
            "trust_remote_code": self.settings["trust_remote_code"],
        }

    @cached_property
    def model_config(self):
        """The model's configuration; refuses one that gives several numbers."""
        from transformers import AutoConfig

        name = self.settings["model"]
        config = AutoConfig.from_pretrained(name, **self._source)
        if config.num_labels != 1:
            raise ValueError(
                f"{name!r} has {config.num_labels} labels, and a reward model has one; give a model that was trained as one."
            )
        return config

    @cached_property
    def tokenizer(self):
        """The model's own tokenizer, which loses the left of a text that is too long."""
        from transformers import AutoTokenizer

        return AutoTokenizer.from_pretrained(self.settings["model"], truncation_side="left", **self._source)

    @cached_property
    def max_length(self) -> int:
        """Longest conversation in tokens."""
        from ..models.rope import context_window

        window = min(context_window(self.model_config.get_text_config()), self.tokenizer.model_max_length)
        return min(self.settings["max_length"] or window, window)

    @cached_property
    def dtype(self) -> str:
        """The name of the weights' dtype after resolving 'auto'."""
        from ..models.device import resolve_dtype

        return resolve_dtype(self.settings["dtype"], self.device, self.model_config)

    @cached_property
    def model(self):
        """The model, loaded on first use.

        Raises:
            ValueError: the checkpoint lacks weights, such as those of the head that gives the reward.
        """
        import torch
        from transformers import AutoModelForSequenceClassification

        name = self.settings["model"]
        options = {"config": self.model_config, "dtype": getattr(torch, self.dtype), "output_loading_info": True}
        source = self._source | {"revision": self.note_loaded() or self._source["revision"]}  # what the key says
        with announced(f"Loading {name}"):
            model, info = AutoModelForSequenceClassification.from_pretrained(name, **source, **options)
        if info["missing_keys"]:
            raise ValueError(
                f"{name!r} is no reward model: its checkpoint lacks {', '.join(sorted(info['missing_keys'])[:3])}, which "
                "would be random. Give one that was trained to give rewards."
            )
        model.config.get_text_config().use_cache = (
            False  # nothing is generated, and 64k tokens of keys and values are gigabytes
        )
        self.check_unchanged()
        return model.to(self.device).eval()

    def describe_model(self) -> dict[str, Any]:
        max_length = self.max_length  # reads the configuration, after which the commit is known for sure
        self.note_loaded()
        fingerprint, tokenizer = self.made_of["model"], self.made_of["tokenizer"]
        return {
            "model": self.settings["model"],
            "fingerprint": fingerprint,
            "dtype": self.dtype,
            "max_length": max_length,
            **({"tokenizer": tokenizer} if tokenizer != fingerprint else {}),
        }

    def lay_out(self, row: Mapping[str, Any]) -> Tokens:
        from ..models.pair import check_tokens

        messages = checked_turns(row)
        if messages[-1]["role"] != "assistant":
            raise SampleError(f"the last turn is the {messages[-1]['role']}'s; the response must be the assistant's")
        template = ChatTemplate.of(row, self.tokenizer)
        item = self._as_pair(messages) if template.source is None else self._as_chat(row, messages, template)
        check_tokens(item.input_ids, self.tokenizer, self.model_config.get_text_config().vocab_size)
        return item

    def _as_chat(self, row: Mapping[str, Any], messages: list[dict], template: ChatTemplate) -> Tokens:
        text = template.render(messages)
        input_ids = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        if len(input_ids) <= self.max_length:
            return Tokens(input_ids)
        try:
            sample = build_sample(row, self.tokenizer, find_context=self.find_context)
            beyond = len(sample.input_ids) - sample.response_end  # such as a line break behind the end-of-turn token
            return Tokens(truncate_context(sample, self.max_length - beyond).input_ids)
        except SampleError as error:
            raise SampleError(
                f"{len(input_ids)} tokens are more than max_length={self.max_length}, and cannot be cut: {error}"
            ) from error

    def _as_pair(self, messages: list[dict]) -> Tokens:
        *earlier, answer = plain_texts(messages)
        asked = "\n\n".join(filter(None, earlier))
        texts = asked, answer
        num_tokens = len(self.tokenizer(*texts, verbose=False)["input_ids"])
        if num_tokens - self.max_length >= len(
            self.tokenizer(asked, add_special_tokens=False, verbose=False)["input_ids"]
        ):
            raise SampleError(f"the response alone takes the {self.max_length} tokens that the reward model sees")
        found = self.tokenizer(*texts, truncation="only_first", max_length=self.max_length)
        return Tokens(found["input_ids"], found.get("token_type_ids"))

    def num_tokens(self, item: Tokens) -> int:
        return len(item.input_ids)

    def measure(self, items: Sequence[Tokens]) -> list[float]:
        import torch

        from ..models.rope import unsettled_after

        padding = self.model.config.get_text_config().pad_token_id
        alone = padding is None  # transformers finds the last token of a row by its padding
        if (alone or unsettled_after(self.model_config)) and len(items) > 1:
            return [value for item in items for value in self.measure([item])]
        length = max(len(x.input_ids) for x in items)

        def padded(rows: list[list[int]], filler: int) -> Any:
            return torch.tensor([row + [filler] * (length - len(row)) for row in rows], device=self.device)

        inputs = {"input_ids": padded([x.input_ids for x in items], padding or 0)}
        inputs["attention_mask"] = padded([[1] * len(x.input_ids) for x in items], 0)
        if items[0].token_type_ids is not None:
            inputs["token_type_ids"] = padded([x.token_type_ids for x in items], 0)
        with torch.inference_mode():
            return self.model(**inputs).logits[:, 0].cpu().double().tolist()
