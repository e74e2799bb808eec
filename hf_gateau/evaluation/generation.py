"""Models that answer the questions of an evaluation, greedily; what was answered is kept and not generated twice.

GeneratorConfig -> load_generator -> Generator.generate(prompts, max_new_tokens) -> answers, in order
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from ..settings import json_object
from .answering import CPU_BATCH_TOKENS, GPU_BATCH_TOKENS, GeneratorConfig, KeepingGenerator


if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from .tasks import Generator

logger = logging.getLogger(__name__)

VLLM_PROMPTS_AT_A_TIME = 256  # their answers are kept together
NO_WINDOW = 1 << 62  # tokens, of a model that names no window


def load_generator(model: str, folder: Path, config: GeneratorConfig | None = None) -> Generator:
    """The generator that a configuration names; its tokenizer is loaded at once, its weights when they are needed.

    Args:
        model: folder (of a PEFT adapter too), .gguf file or Hub id.
        folder: of the evaluation, where answers are kept.

    Raises:
        FileNotFoundError, OSError: there is no such model.
        ImportError: the backend is not installed.
    """
    config = config or GeneratorConfig()
    return (VllmGenerator if config.backend == "vllm" else TransformersGenerator)(model, folder, config)


class TransformersGenerator(KeepingGenerator):
    """Answers by `transformers`: batches of prompts of like length, padded on the left, the longest ones first."""

    def __init__(self, model: str, folder: Path, config: GeneratorConfig):
        super().__init__(model, folder, config)
        self._loaded: PreTrainedModel | None = None

    def _load(self) -> PreTrainedModel:
        """The model; of its generation configuration only the tokens that end an answer are taken, the rest is greedy."""
        import torch
        import transformers

        from ..models.loading import load_location, load_options

        if self._loaded is None:
            attention = self.config.attn_implementation
            options = {} if attention is None else {"attn_implementation": attention}
            model = transformers.AutoModelForCausalLM.from_pretrained(
                *load_location(self.model),
                **load_options(self.model, self.config.model_revision, False),
                dtype=getattr(torch, self.dtype),
                **options,
            )
            eos = self.eos_token_ids(model.generation_config.eos_token_id)
            pad = next((x for x in (self.tokenizer.pad_token_id, *eos) if x is not None), 0)
            model.generation_config = transformers.GenerationConfig(eos_token_id=eos or None, pad_token_id=pad)
            self._loaded = model.to(self.device).eval()
        return self._loaded

    def _answers(self, prompts: list[list[int]], max_new_tokens: int) -> Iterator[tuple[int, str]]:
        from ..models.device import is_out_of_memory, release_memory

        default = CPU_BATCH_TOKENS if self.device.type == "cpu" else GPU_BATCH_TOKENS
        budget = self.config.batch_tokens or default
        waiting = sorted(range(len(prompts)), key=lambda i: -len(prompts[i]))
        while waiting:
            size = max(1, budget // (len(prompts[waiting[0]]) + max_new_tokens))
            places, texts = waiting[:size], None
            try:
                texts = self._batch([prompts[i] for i in places], max_new_tokens)
            except RuntimeError as error:
                if not is_out_of_memory(error):
                    raise
                if len(places) == 1:
                    raise RuntimeError(
                        f"A prompt of {len(prompts[places[0]]):,} tokens does not fit into the memory of {self.device}; "
                        "lower max_length, or take another device. Answers so far are kept."
                    ) from error
            if texts is None:  # here the failed batch's tensors are gone, with the exception
                budget = len(places) // 2 * (len(prompts[waiting[0]]) + max_new_tokens)
                logger.warning("Out of memory with %d prompts at a time; going on with half.", len(places))
                release_memory(self.device)
                continue
            yield from zip(places, texts, strict=True)
            waiting = waiting[len(places) :]

    def _batch(self, prompts: list[list[int]], max_new_tokens: int) -> list[str]:
        """Answers to prompts in one batch of shape (B, T), T the longest."""
        import torch

        model = self._load()
        longest, pad = max(map(len, prompts)), model.generation_config.pad_token_id
        input_ids = torch.tensor([[pad] * (longest - len(ids)) + ids for ids in prompts], device=self.device)
        mask = torch.tensor([[0] * (longest - len(ids)) + [1] * len(ids) for ids in prompts], device=self.device)
        with torch.inference_mode():
            out = model.generate(
                input_ids, attention_mask=mask, max_new_tokens=max_new_tokens, do_sample=False, num_beams=1
            )
        return self.tokenizer.batch_decode(out[:, longest:], skip_special_tokens=True)


class VllmGenerator(KeepingGenerator):
    """Answers by vLLM, for large models on GPUs. Same prompts, same greedy choice; the project's tests run it against a stand-in
    for vLLM alone, which needs a GPU.

    Raises:
        ImportError: it is not installed.
        ValueError: the model is in a form that it is not given here.
    """

    def __init__(self, model: str, folder: Path, config: GeneratorConfig):
        try:
            import vllm
        except ImportError as error:
            raise ImportError("backend='vllm' needs vLLM; `pip install vllm`, or take transformers.") from error
        super().__init__(model, folder, config)
        if self.adapter or self.model.endswith(".gguf"):
            raise ValueError(
                f"{model!r} is {'a PEFT adapter' if self.adapter else 'a .gguf file'}, and backend='vllm' takes whole models "
                "in transformers' form; merge the adapter and save it (`merge_and_unload`), or take backend='transformers'."
            )
        self._vllm, self._engine = vllm, None

    def _answers(self, prompts: list[list[int]], max_new_tokens: int) -> Iterator[tuple[int, str]]:
        if self._engine is None:
            ours = {
                "revision": self.config.model_revision,
                "tokenizer_revision": self.config.model_revision,
                "dtype": self.dtype,
                "max_model_len": self.max_length if self.max_length < NO_WINDOW else None,
                "trust_remote_code": False,
            }
            theirs = json_object("vllm_parameters", self.config.vllm_parameters, "{}")
            self._engine = self._vllm.LLM(self.model, **(ours | theirs))
        eos = self.eos_token_ids(None)  # vLLM adds those of the generation configuration itself
        settings = self._vllm.SamplingParams(temperature=0.0, max_tokens=max_new_tokens, stop_token_ids=eos)
        places = iter(range(len(prompts)))
        while chunk := list(islice(places, VLLM_PROMPTS_AT_A_TIME)):
            asked = [{"prompt_token_ids": prompts[i]} for i in chunk]
            for place, output in zip(chunk, self._engine.generate(asked, settings, use_tqdm=False), strict=True):
                yield place, output.outputs[0].text
