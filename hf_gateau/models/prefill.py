"""Keys and values of a context that several responses follow: computed once, exactly as in one pass over everything.

Rows that ask several questions about one document share its prefill, and the prefill of each of its segments; a context
too long for one pass goes through in pieces.
"""

import inspect
import math
from collections.abc import Sequence

import torch
from transformers import DynamicCache

from .attention import decoder_of
from .device import current
from .last_layer import rows_read
from .perplexity import batch_nlls, padded


class Prefill:
    """B contexts of equal length, gone through a model once, and what follows each.

    Args:
        model: a causal language model of transformers that keeps its past (`abilities_of`).
        contexts: token ids, as many each.
        piece_tokens: most tokens of a context in one forward pass.
    """

    def __init__(self, model, contexts: Sequence[list[int]], piece_tokens: float = math.inf):
        self.model, self.num_contexts, self.num_tokens = model, len(contexts), len(contexts[0])
        self._cache = (
            DynamicCache()
        )  # without the configuration: keys outside of sliding windows stay, for cutting back
        decoder = decoder_of(model)
        # transformers 5.24 calls it `cache`, and warns of the name before
        self._name = "cache" if "cache" in inspect.signature(decoder.forward).parameters else "past_key_values"
        ids_BT = padded(contexts, model.device)
        with torch.inference_mode(), current(model.device):
            for piece_BT in ids_BT.split(int(min(piece_tokens, self.num_tokens)), dim=1):
                with rows_read(model, piece_BT.shape[1]) as keywords:
                    decoder(input_ids=piece_BT, use_cache=True, **keywords, **{self._name: self._cache})

    def nlls(self, prompt: list[int], response: list[int], **kwargs) -> list[torch.Tensor]:
        """Negative log-likelihoods of one response's tokens after each context and the prompt (one token at least): B times
        (R,), as `batch_nlls`, which takes the keywords."""
        try:
            return self._nlls_after(self._cache, prompt, response, **kwargs)
        finally:
            self._cut_back()

    def windowed_nlls(
        self, num_first: int, num_last: int, prompt: list[int], response: list[int]
    ) -> list[torch.Tensor]:
        """The same where no more is seen of the contexts than their first and their last tokens.

        What is seen keeps its place, and its keys and values, which have seen all that stands before them: an
        approximation of a pass over those tokens alone.
        """
        cache, end = DynamicCache(), self.num_tokens
        for i, layer in enumerate(self._cache.layers):
            seen = (
                torch.cat([x[:, :, :num_first], x[:, :, end - num_last : end]], dim=2)
                for x in (layer.keys, layer.values)
            )
            cache.update(*seen, i)
        rows = torch.arange(end, end + len(prompt) + len(response) - 1, device=self.model.device)[None]
        return self._nlls_after(cache, prompt, response, position_ids=rows)

    def _nlls_after(self, cache: DynamicCache, prompt: list[int], response: list[int], **kwargs) -> list[torch.Tensor]:
        prompts, responses = [prompt] * self.num_contexts, [response] * self.num_contexts
        return batch_nlls(self.model, prompts, responses, **{self._name: cache}, **kwargs)

    def _cut_back(self) -> None:
        for layer in self._cache.layers:
            layer.crop(min(0, self.num_tokens - layer.get_seq_length()))
