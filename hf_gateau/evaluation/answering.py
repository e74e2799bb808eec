"""What models that answer an evaluation's questions have in common: settings, prompts as tokens, answers that are kept.

A prompt is chat messages. Those of a model without a chat template, such as a base model, are read as plain text, or in the
paper's form if that is asked for.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import sqlite3
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..models.config import DTYPES
from ..rows.labels import render_plain_turns
from ..settings import json_object, set_fields
from .tasks import Messages


if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

ANSWERS = "answers.sqlite"  # in the evaluation's folder
BACKENDS = ("transformers", "vllm")
CHAT_TEMPLATES = ("auto", "off", "paper")
NO_THINKING = '{"enable_thinking": false}'
# Settings of one backend that the other has not
TRANSFORMERS_ONLY, VLLM_ONLY = ("device", "attn_implementation", "batch_tokens"), ("vllm_parameters",)
CPU_BATCH_TOKENS, GPU_BATCH_TOKENS = 8_192, 131_072
FEWEST_PROMPT_TOKENS = 8  # of a text whose middle is cut out; fewer say nothing


@dataclass
class GeneratorConfig:
    """How the model that is evaluated answers.

    Raises:
        ValueError: a field is out of range.
    """

    RARELY_GIVEN = (
        "model_revision",
        "attn_implementation",
        "batch_tokens",
        "chat_template",
        "chat_template_kwargs",
        "vllm_parameters",
    )

    backend: str = field(
        default="transformers",
        metadata={
            "help": "What runs the model: transformers, or vllm where it is installed.",
            "choices": list(BACKENDS),
        },
    )
    model_revision: str | None = field(default=None, metadata={"help": "Branch, tag or commit of a model on the Hub."})
    dtype: str = field(
        default="auto",
        metadata={
            "help": "auto: as the weights are stored, and float32 on a CPU; or float32, bfloat16, float16.",
            "choices": list(DTYPES),
        },
    )
    device: str = field(
        default="auto",
        metadata={
            "help": "auto, or a device of torch, such as cuda:1 or cpu. vllm takes those of CUDA_VISIBLE_DEVICES."
        },
    )
    attn_implementation: str | None = field(
        default=None, metadata={"help": "As in transformers, such as flash_attention_2. Default: transformers' own."}
    )
    max_length: int | None = field(
        default=None,
        metadata={
            "help": "Tokens of a prompt with its answer; a longer prompt loses its middle, as in LongBench. Default: the "
            "model's window; more than that shows what the model does beyond it."
        },
    )
    batch_tokens: int | None = field(
        default=None,
        metadata={
            "help": "Tokens of prompts and answers to run at a time, padding included; a GPU that has too little memory "
            f"gets smaller batches by itself. Default: {GPU_BATCH_TOKENS:,}, and {CPU_BATCH_TOKENS:,} on a CPU."
        },
    )
    chat_template: str = field(
        default="auto",
        metadata={
            "help": "auto: the chat template of the model, where it has one, else plain text; off: plain text; paper: the "
            "paper's ### Input / ### Instruction / ### Response, which models without a template are trained on here.",
            "choices": list(CHAT_TEMPLATES),
        },
    )
    chat_template_kwargs: str = field(
        default=NO_THINKING,
        metadata={
            "help": "JSON of what the chat template is told besides the messages. Default: models that can think before they "
            "answer, such as Qwen3, do not; the tasks' answers have room for no more than the answer."
        },
    )
    vllm_parameters: str | None = field(
        default=None,
        metadata={
            "help": """JSON of arguments of vllm.LLM, over our own, such as '{"tensor_parallel_size": 4}' for four GPUs."""
        },
    )

    def __post_init__(self):
        for name, known in (("backend", BACKENDS), ("dtype", DTYPES), ("chat_template", CHAT_TEMPLATES)):
            if getattr(self, name) not in known:
                raise ValueError(f"{name} is one of {', '.join(known)}; got {getattr(self, name)!r}.")
        for name in ("max_length", "batch_tokens"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise ValueError(f"{name} is a number of tokens, got {getattr(self, name)}; give 1 or more.")
        json_object("chat_template_kwargs", self.chat_template_kwargs, NO_THINKING)
        json_object("vllm_parameters", self.vllm_parameters, '{"tensor_parallel_size": 4}')
        given, others = set_fields(self), TRANSFORMERS_ONLY if self.backend == "vllm" else VLLM_ONLY
        if foreign := [name for name in others if given.get(name, "auto") != "auto"]:
            raise ValueError(f"{' and '.join(foreign)} means nothing to backend={self.backend!r}; leave it out.")


def check_fast(tokenizer: PreTrainedTokenizerBase, model: str) -> None:
    """Refuse a tokenizer that does not tell where in a text its tokens are; texts are cut to lengths in tokens.

    Raises:
        ValueError: it is none of the fast ones.
    """
    if not tokenizer.is_fast:
        raise ValueError(
            f"{model!r} has no fast tokenizer, and {type(tokenizer).__name__} does not tell where in a text its tokens are; "
            "save a fast one with the model (`AutoTokenizer.from_pretrained(...).save_pretrained(...)`)."
        )


class AnswerStore:
    """Every answer, in one SQLite file of the evaluation's folder; on the disk when `put` returns."""

    def __init__(self, path: Path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            self._connection = sqlite3.connect(path, timeout=120, isolation_level=None)
            self._connection.execute("PRAGMA journal_mode = WAL")
            self._connection.execute("CREATE TABLE IF NOT EXISTS answers (key TEXT PRIMARY KEY, text TEXT NOT NULL)")
        except sqlite3.Error as error:
            raise RuntimeError(f"The file of answers {path} cannot be used ({error}); take another folder.") from error

    def get(self, key: str) -> str | None:
        """An answer, None where there is none."""
        found = self._connection.execute("SELECT text FROM answers WHERE key = ?", [key]).fetchone()
        return found[0] if found else None

    def put(self, key: str, text: str) -> None:
        """Keep an answer."""
        self._connection.execute("INSERT OR REPLACE INTO answers VALUES (?, ?)", [key, text])


class KeepingGenerator(ABC):
    """What all backends share: prompts as tokens, answers that are kept, and a progress bar.

    Attributes:
        model: as it was named.
        tokenizer: its own.
        max_length: tokens that a prompt and its answer may have together.
        adapter: whether it is a PEFT adapter.
        fingerprint: what tells these weights from others.
    """

    def __init__(self, model: str, folder: Path, config: GeneratorConfig):
        from transformers import AutoConfig, AutoTokenizer
        from transformers.utils import find_adapter_config_file

        from ..models.device import resolve_device
        from ..models.fingerprints import model_fingerprint
        from ..models.loading import check_local, load_location, load_options
        from ..models.rope import context_window

        model = os.path.expanduser(model)
        check_local(model)
        self.model, self.config = model, config
        base, options = model, load_options(model, config.model_revision, False)
        found = None if model.endswith(".gguf") else find_adapter_config_file(model, revision=config.model_revision)
        if found is not None:
            base = json.loads(Path(found).read_text(encoding="utf-8"))["base_model_name_or_path"]
        self.adapter = found is not None
        own = options if base == model else load_options(base, None, False)
        self.model_config = AutoConfig.from_pretrained(*load_location(base), **own).get_text_config(decoder=True)
        self.tokenizer = AutoTokenizer.from_pretrained(*load_location(model), **options)
        check_fast(self.tokenizer, model)
        self.device = resolve_device(config.device)
        self.fingerprint = model_fingerprint(model, config.model_revision)
        self.max_length = config.max_length or context_window(self.model_config)
        self.has_chat = config.chat_template == "auto" and self.tokenizer.chat_template is not None
        self._template_options = json_object("chat_template_kwargs", config.chat_template_kwargs, NO_THINKING)
        self._tokenizer_hash = _hash(self.tokenizer.backend_tokenizer.to_str(), self.tokenizer.chat_template)
        self._store = AnswerStore(Path(folder) / ANSWERS)

    @property
    def dtype(self) -> str:
        """The name of the weights' dtype after resolving 'auto'."""
        import torch

        if self.config.dtype != "auto":
            return self.config.dtype
        stored = self.model_config.dtype or torch.float32
        return "float32" if self.device.type == "cpu" else str(stored).removeprefix("torch.")

    def describe(self) -> dict[str, Any]:
        """What an answer depends on besides its prompt, as plain JSON."""
        names = {"fingerprint": self.fingerprint, "backend": self.config.backend, "dtype": self.dtype}
        names |= {"max_length": self.max_length, "chat_template": self.config.chat_template}
        names |= {"tokenizer": self._tokenizer_hash, "chat_template_kwargs": self._template_options}
        told = json_object("vllm_parameters", self.config.vllm_parameters, "{}")
        return names | ({"vllm_parameters": told} if told else {})

    def generate(self, prompts: Sequence[Messages], max_new_tokens: int) -> list[str]:
        """One answer a prompt, in order: the tokens of highest probability up to an end of text or of turn.

        Args:
            prompts: chat messages. A last one of the assistant is the beginning of its answer. Where a prompt is too
                long, its longest message loses its middle.
            max_new_tokens: the longest answer.

        Raises:
            ValueError: the model's window has no room for an answer of that length.
            RuntimeError: one prompt alone does not fit into memory.
        """
        from tqdm.auto import tqdm

        described = self.describe()
        keys = [_key(described, prompt, max_new_tokens) for prompt in prompts]
        todo = {key: prompt for key, prompt in zip(keys, prompts, strict=True) if self._store.get(key) is None}
        if todo:
            ids = [self.prompt_ids(prompt, max_new_tokens) for prompt in tqdm(todo.values(), "Prompts", leave=False)]
            self._tell_truncated(sum(shortened for _, shortened in ids), len(ids), max_new_tokens)
            names = list(todo)
            with tqdm(total=len(todo), desc="Answers") as bar:
                for place, text in self._answers([tokens for tokens, _ in ids], max_new_tokens):
                    self._store.put(names[place], text)
                    bar.update()
        return [self._store.get(key) for key in keys]

    def num_tokens(self, prompt: Messages) -> int:
        """Tokens of a whole prompt, chat template and all."""
        return len(self._tokens(prompt))

    def _tell_truncated(self, num_truncated: int, num_prompts: int, max_new_tokens: int) -> None:
        if num_truncated:
            logger.warning(
                "%d of %d prompts are longer than %s tokens and lost their middle.",
                num_truncated,
                num_prompts,
                f"{self.max_length - max_new_tokens:,}",
            )

    def prompt_ids(self, prompt: Messages, max_new_tokens: int = 0) -> tuple[list[int], bool]:
        """Tokens of a prompt, and whether it had to be shortened: then the first and the last half of the tokens of its
        longest message are kept, before the chat template is applied, as LongBench does."""
        limit = self.max_length - max_new_tokens
        ids = self._tokens(prompt)
        if len(ids) <= limit:
            return ids, False
        place = max(range(len(prompt)), key=lambda i: len(prompt[i]["content"]))
        text = prompt[place]["content"]
        starts = self._token_starts(text)
        keep = len(starts) - (len(ids) - limit)
        while keep >= FEWEST_PROMPT_TOKENS:
            cut = text[: starts[keep // 2]] + text[starts[-(keep // 2)] :]
            ids = self._tokens([*prompt[:place], {**prompt[place], "content": cut}, *prompt[place + 1 :]])
            if len(ids) <= limit:
                return ids, True
            keep -= len(ids) - limit  # where the halves meet, text may have other tokens than it was cut from
        raise ValueError(
            f"{self.model!r} reads {self.max_length:,} tokens, which leaves no room for a prompt before an answer of "
            f"{max_new_tokens:,}; take a model with a longer window, or a larger max_length."
        )

    def _token_starts(self, text: str) -> list[int]:
        """Where in a text each token begins. A cut there loses nothing of what is kept, which decoding would: white space,
        and words that the vocabulary has not."""
        found = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        return [start for start, _ in found["offset_mapping"]]

    def _tokens(self, prompt: Messages) -> list[int]:
        """A whole prompt as the model reads it; `verbose=False` leaves out a warning on length."""
        if not self.has_chat:
            return self._plain_tokens(prompt)
        begun = prompt[-1]["role"] == "assistant"
        text = self.tokenizer.apply_chat_template(
            prompt,
            tokenize=False,
            add_generation_prompt=not begun,
            continue_final_message=begun,
            **self._template_options,
        )
        return self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]

    def _plain_tokens(self, prompt: Messages) -> list[int]:
        """A prompt without a chat template. A token that ends a text is none of a prompt's, also where the tokenizer adds it."""
        if self.config.chat_template == "paper":
            begun = prompt[-1]["role"] == "assistant"
            turns = prompt if begun else [*prompt, {"role": "assistant", "content": "."}]
            text, [(start, end)] = render_plain_turns({"messages": turns}, turns)
            text = text[: end if begun else start]
        else:
            text = " ".join(message["content"] for message in prompt)
        found = self.tokenizer(text, return_offsets_mapping=True, verbose=False)
        ids, ends = found["input_ids"], [end for _, end in found["offset_mapping"]]
        while text and ends and ends[-1] == 0:
            ids.pop(), ends.pop()
        return ids

    def eos_token_ids(self, configured: int | list[int] | None) -> list[int]:
        """Tokens that end an answer: those of the generation configuration, and the tokenizer's own, which is the end of a
        turn in many a chat template."""
        found = configured if isinstance(configured, list) else [configured]
        return sorted({token for token in (*found, self.tokenizer.eos_token_id) if token is not None})

    @abstractmethod
    def _answers(self, prompts: list[list[int]], max_new_tokens: int) -> Iterator[tuple[int, str]]:
        """(place of the prompt, its answer), as they come."""


def _key(described: dict[str, Any], prompt: Messages, max_new_tokens: int) -> str:
    """What an answer is known by."""
    return _hash(described, prompt, max_new_tokens)


def _hash(*parts: Any) -> str:
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
