"""The attention of every layer as the model would compute it, and on the response's query rows its weights too.

transformers lets a registered function compute the attention of every layer (`AttentionInterface`). Ours does so by SDPA,
and takes the weights of the response's rows beside it, in chunks of rows, so that no T x T matrix ever exists. Where SDPA
cannot serve (soft-capping, attention sinks), rows go through the model's own eager function, which returns the weights.
On a GPU fused kernels may take the place of both chunks and eager function (`use_fused_attention`). Scores and softmax of
the weights are float32 whatever the model's dtype.

Rows and keys are counted from the first token of the sequence, also where the keys of its beginning were kept from an
earlier pass and only the rows after it are computed now.

Shapes: B batch, H heads, K keys (all tokens so far), T rows computed now, Q rows of one chunk, C context tokens.
"""

import sys
from copy import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn.attention.bias import CausalBias, CausalVariant
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from .collected import ResponseAttention
from .device import to_device
from .masks import RowMask, row_mask
from .packing import chunk_rows


# A name with "sdpa" in it would make transformers refuse the models that SDPA itself cannot serve.
ATTENTION_NAME = "gateau"
# Elements of one chunk of attention weights: 8 MiB in float32, which caches hold; on a GPU 512 MiB, which keep it busy.
WEIGHTS_PER_CHUNK, WEIGHTS_PER_CHUNK_GPU = 1 << 21, 1 << 27
# On a CPU, float32 sequences of up to so many tokens go in blocks of so many rows: there SDPA's kernel, which cuts blocks for
# long ones, reaches 35 GFLOP a second at 362 tokens and 49 at 724, blocks 55 and 62, where matrix products run at 95.
BLOCKED_TOKENS, BLOCK_ROWS = 768, 48
# Where SDPA's fast kernels can be told that rows follow a past of keys; elsewhere they are told by a mask, in chunks.
KERNELS_KNOW_PAST = ("cuda",)
# Where a fused kernel gives the outputs of rows whose weights are computed, for less than reading the weights once more takes;
# elsewhere the weights of all heads, which are there, give them.
OUTPUTS_ARE_FUSED = ("cuda",)
# What SDPA cannot serve, by the names that transformers hands it to attention functions under; the last no fused kernel either
EAGER_ALONE = (SOFTCAP, SINKS, BIAS) = ("softcap", "s_aux", "position_bias")
# Of an attention layer: whether fused kernels may compute what SDPA does not; whether sinks are seen in its weights, once that is known
IS_FUSED, SINKS_WEIGH = "gateau_is_fused", "gateau_sinks_weigh"


class LowerRight(CausalBias):
    """torch's causal mask of the last rows of more keys, without the tensor of rows x keys that its own maker allocates."""

    @staticmethod
    def __new__(cls, *_):
        return torch.Tensor._make_subclass(cls, torch.empty(0))


@dataclass(frozen=True)  # no tuple: accelerate would move the layer in it to a device
class ReadRows:
    """The rows of a pass that are read of one attention layer's output: those from `first_row`, counted from the first of
    the pass. Those before stay zero."""

    layer: nn.Module
    first_row: int


def gateau_attention(
    module,
    query,
    key,
    value,
    attention_mask,
    scaling=None,
    *,
    response_attention: ResponseAttention | None = None,
    read_rows: ReadRows | None = None,
    **kw,
):
    """Attention of one layer, (B, H, T, head size) each, as transformers' interface asks; returns (B, T, H, size), None.

    Rows go through SDPA where that can serve them, else through FlexAttention, or the model's own eager function in chunks
    of rows. Of the response's rows, `response_attention` gets the weights of those heads of the layer that it wants; where
    these give the outputs too, the rows go by them alone.
    """
    kw.pop("output_attentions", None)
    layer = _Layer(module, query, key, value, attention_mask, scaling, kw)
    heads, first_row, split = (), layer.end, layer.end
    if response_attention is not None:
        heads = response_attention.begin_layer()
    if heads is None or heads:
        first_row = max(layer.start, response_attention.first_row)
        split = first_row if layer.weights_give_outputs(heads) else layer.end
    outputs, first_read = [], layer.start
    if read_rows is not None and read_rows.layer is module:
        first_read = min(layer.start + read_rows.first_row, split)
    if first_read > layer.start:
        outputs.append(query.new_zeros(query.shape[0], first_read - layer.start, query.shape[1], value.shape[-1]))
    outputs += layer.plain(first_read, split)
    if first_row < layer.end and layer.mass_is_fused:
        response_attention.add_mass(*layer.mass(first_row, heads, response_attention))
        first_row = layer.end
    for weights, output, start, first_key in layer.weights(first_row, heads):
        response_attention.add(weights, start, first_key)
        if split < layer.end:
            outputs.append(output)
    return torch.cat(outputs, 1) if len(outputs) > 1 else outputs[0], None


class _Layer:
    """One layer's attention on the rows from `start` to `end`, with the keys of all tokens up to there."""

    def __init__(self, module, query, key, value, mask: RowMask | None, scaling, kw: dict):
        self.module, self.query, self.key, self.value, self.mask = module, query, key, value, mask
        self.kw = {"scaling": scaling, **kw}
        self.end = key.shape[2]
        self.start = self.end - query.shape[2]
        # Some models hand a window on that their mask does not have, such as OLMoE
        window = kw.get("sliding_window") if mask is not None else None
        self.has_window, self.window = bool(window), window or self.end
        self.sdpa_serves = all(kw.get(name) is None for name in EAGER_ALONE)
        self.mass_is_fused = getattr(module, IS_FUSED, False) and kw.get(BIAS) is None

    def plain(self, start: int, end: int) -> list[torch.Tensor]:
        """Some rows, without their weights, by the fastest way that can serve this layer."""
        if start == end:
            return []
        if self.flex_serves:
            return [self.flex(start, end)]
        if self.mask is not None or not self.sdpa_serves:
            forward = self.sdpa if self.sdpa_serves else self.eager
            return [forward(*rows)[0] for rows in self.chunks(start, end)]
        if (
            end - start == 1
        ):  # it sees all keys; with a mask, grouped heads would be packed into rows that it does not fit
            return [sdpa_attention_forward(self.module, *self._slices(start, end, 0), None, **self.kw)[0]]
        if start == 0 and end <= BLOCKED_TOKENS and goes_in_blocks(self.query):
            return [blocked_attention(*self._slices(0, end, 0), self.kw["scaling"])]
        if lacks_grouped_kernel(self.query, self.key):
            return [self.sdpa(*rows)[0] for rows in self.chunks(start, end)]
        if start == 0:
            return [sdpa_attention_forward(self.module, *self._slices(0, end, 0), None, **self.kw)[0]]
        if self.query.device.type in KERNELS_KNOW_PAST:
            mask = LowerRight(CausalVariant.LOWER_RIGHT, end - start, end)
            return [sdpa_attention_forward(self.module, *self._slices(start, end, 0), mask, **self.kw)[0]]
        return [self.sdpa(*rows)[0] for rows in self.chunks(start, end)]

    def chunks(self, start: int, end: int, num_heads: int | None = None):
        """(start, end, first key) of chunks of query rows, bounded by the weights they give rise to, of all heads or of so many."""
        all_heads = self.query.shape[0] * (num_heads or self.query.shape[1])
        step = chunk_rows(weights_per_chunk(self.query.device), all_heads, self.window, self.end)
        for a in range(start, end, step):
            yield a, min(a + step, end), max(0, a - self.window + 1)

    def _mask(self, start: int, end: int, first_key: int) -> torch.Tensor:
        if self.mask is not None:
            return self.mask.rows(start, end, first_key).to(self.query.device)  # layers may be on several devices
        key = torch.arange(first_key, end, device=self.query.device)
        return (key <= torch.arange(start, end, device=key.device)[:, None])[None, None]

    def _slices(self, start: int, end: int, first_key: int):
        query = self.query[:, :, start - self.start : end - self.start]
        return query, self.key[:, :, first_key:end], self.value[:, :, first_key:end]

    def sdpa(self, start: int, end: int, first_key: int):
        slices = self._slices(start, end, first_key)
        return sdpa_attention_forward(self.module, *slices, self._mask(start, end, first_key), **self.kw)

    def eager(self, start: int, end: int, first_key: int):
        """The model's own eager function: outputs and weights."""
        query, key, value = self._slices(start, end, first_key)
        allowed = self._mask(start, end, first_key)
        mask = torch.zeros(allowed.shape, dtype=query.dtype, device=query.device)
        mask.masked_fill_(~allowed, torch.finfo(query.dtype).min)
        return eager_attention_forward(self.module)(self.module, query, key, value, mask, **self.kw)

    @property
    def flex_serves(self) -> bool:
        """Whether FlexAttention is to compute what SDPA cannot, or by a mask alone: of masks it is told the sliding window's."""
        return self.mass_is_fused and (self.has_window or (self.mask is None and not self.sdpa_serves))

    def flex(self, start: int, end: int) -> torch.Tensor:
        """Some rows by FlexAttention."""
        from .flex import flex_output  # with which torch reads its compiler

        return flex_output(*self._slices(start, end, 0), **self._scoring(), window=self.window)

    def mass(
        self, start: int, heads: tuple[int, ...] | None, collected: ResponseAttention
    ) -> tuple[torch.Tensor, int]:
        """What rows from `start` on pay to keys, of some heads or of all, as `ResponseAttention.add_mass` takes it."""
        first_key = max(0, start - self.window + 1)
        query, key, _ = self._slices(start, self.end, first_key)
        share_BQ = collected.share(start, query.shape[2], query.device)
        is_known = self.mask is None or self.has_window
        seen = {"window": self.window} if is_known else {"mask": self._mask(start, self.end, first_key)}
        scoring = self._scoring()
        if scoring["sinks_H"] is not None and not self._sinks_weigh():
            scoring["sinks_H"] = None
        return key_mass(query, key, share_BQ, heads=heads, **scoring, **seen), first_key

    def _sinks_weigh(self) -> bool:
        """Whether the weights that the model's eager function gives leave to a sink what it takes: those of Granite add up to 1, and
        what the sink takes is taken from the outputs alone."""
        if (known := getattr(self.module, SINKS_WEIGH, None)) is not None:
            return known
        query, key, value = (
            torch.zeros_like(x[:1, :, :1], dtype=torch.float32) for x in (self.query, self.key, self.value)
        )
        mask = query.new_zeros(1, 1, 1, 1)
        _, weights = eager_attention_forward(self.module)(self.module, query, key, value, mask, **self.kw)
        setattr(self.module, SINKS_WEIGH, bool((weights < 1 - 1e-6).any()))
        return getattr(self.module, SINKS_WEIGH)

    def _scoring(self) -> dict[str, Any]:
        """What scores are made by, as fused kernels take it."""
        return {"scaling": self.kw["scaling"], "softcap": self.kw.get(SOFTCAP), "sinks_H": self.kw.get(SINKS)}

    def weights_give_outputs(self, heads: tuple[int, ...] | None) -> bool:
        """Whether rows whose weights are computed, of some heads or of all, need no other pass for their outputs."""
        if self.mass_is_fused:
            return False
        if not self.sdpa_serves:
            return True
        return heads is None and self.query.device.type not in OUTPUTS_ARE_FUSED

    def weights(self, start: int, heads: tuple[int, ...] | None):
        """(weights, outputs, first row, first key) of chunks of query rows from `start` on: weights of some heads alone or of all
        (None), float32; outputs as SDPA's, or None where they are to be had elsewhere."""
        if start == self.end:
            return
        if self.sdpa_serves:
            yield from self._own_weights(start, heads)
            return
        in_float32 = copy(self)  # weights of half models would be rounded
        in_float32.query = self.query[:, :, start - self.start :].float()
        in_float32.key, in_float32.value, in_float32.start = self.key.float(), self.value.float(), start
        for first, last, first_key in self.chunks(start, self.end):
            output, weights = in_float32.eager(first, last, first_key)
            yield weights if heads is None else weights[:, list(heads)], output.to(self.query.dtype), first, first_key

    def _own_weights(self, start: int, heads: tuple[int, ...] | None):
        """The same by plain matrix products, the heads of a group over the keys that they share."""
        query, key = self.query[:, :, start - self.start :], self.key
        if heads is not None:
            groups = query.shape[1] // key.shape[1]
            wanted = to_device(torch.tensor(heads), query.device)
            query, key = query[:, wanted], key[:, wanted // groups]
        (batch, num_heads, _, size), kv_heads = query.shape, key.shape[1]
        has_outputs, dtype = self.weights_give_outputs(heads), self.query.dtype
        # Scaled first: one pass over the scores less, for a rounding that queries had before.
        query = query * (size**-0.5 if self.kw["scaling"] is None else self.kw["scaling"])
        query, key = factors(query.reshape(batch * kv_heads, num_heads // kv_heads, -1, size), key.flatten(0, 1))
        value = self.value.flatten(0, 1).float() if has_outputs else None
        for first, last, first_key in self.chunks(start, self.end, num_heads):
            rows = query[:, :, first - start : last - start].flatten(1, 2)
            scores = float32_product(rows, key[:, first_key:last].mT)
            scores = scores.view(batch, num_heads, last - first, last - first_key)
            self._hide(scores, first, last, first_key)
            weights, output = scores.softmax(-1), None
            if has_outputs:
                output = torch.bmm(weights.view(*rows.shape[:2], -1), value[:, first_key:last]).to(dtype)
                output = output.view(batch, num_heads, last - first, -1).transpose(1, 2)
            yield weights, output, first, first_key

    def _hide(self, scores: torch.Tensor, start: int, end: int, first_key: int) -> None:
        """Lower the scores (B, H, rows, keys) of the keys that rows may not look at."""
        lowest = torch.finfo(scores.dtype).min
        if self.mask is not None:
            scores.masked_fill_(~self._mask(start, end, first_key), lowest)
            return
        ones = torch.ones(end - start, end - start, dtype=torch.bool, device=scores.device)
        scores[..., start - first_key :].masked_fill_(ones.triu(1), lowest)  # they see all keys before the chunk's


def key_mass(query: torch.Tensor, key: torch.Tensor, share_BQ: torch.Tensor, **how) -> torch.Tensor:
    """`key_mass.key_mass`, where somebody asks for it: Triton comes with torch where there are GPUs alone."""
    from .key_mass import key_mass

    return key_mass(query, key, share_BQ, **how)


def factors(*tensors: torch.Tensor) -> list[torch.Tensor]:
    """Tensors as `float32_product` takes them: half ones as they are where matrix units add up in float32, else in float32."""
    is_half = tensors[0].dtype in (torch.bfloat16, torch.float16)
    has_product = torch.version.hip is None and "dtype" in torch.ops.aten.bmm.overloads()  # torch 2.8 and later
    if is_half and has_product and tensors[0].device.type == "cuda":
        return list(tensors)
    return [tensor.float() for tensor in tensors]


def float32_product(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """The products of two batches of matrices, made by `factors`, in float32."""
    return torch.bmm(a, b) if a.dtype == torch.float32 else torch.bmm(a, b, out_dtype=torch.float32)


def goes_in_blocks(weights: torch.Tensor) -> bool:
    """Whether `blocked_attention` is the faster way for short sequences of such a dtype on such a device."""
    return weights.device.type == "cpu" and weights.dtype == torch.float32


def lacks_grouped_kernel(query: torch.Tensor, key: torch.Tensor) -> bool:
    """Whether SDPA would compute grouped heads by whole T x T matrices: on a GPU no fast kernel serves them in float32, unless
    keys are repeated, as they are under a mask."""
    return query.device.type == "cuda" and query.dtype == torch.float32 and query.shape[1] != key.shape[1]


def blocked_attention(query, key, value, scaling: float | None = None) -> torch.Tensor:
    """Causal attention of short sequences: each block of rows over the keys up to its end, by plain matrix products.

    Args:
        query: (B, H, T, D).
        key, value: (B, a divisor of H, T, D); value's D may be another.
        scaling (`float`, *optional*): of the scores; default 1 / sqrt(D).

    Returns:
        `torch.Tensor` of shape (B, T, H, D), as transformers' attention functions.
    """
    (batch, heads, tokens, size), kv_heads = query.shape, key.shape[1]
    grouped = (query * (size**-0.5 if scaling is None else scaling)).reshape(batch * kv_heads, -1, tokens, size)
    keys, values = key.reshape(batch * kv_heads, tokens, -1).mT, value.reshape(batch * kv_heads, tokens, -1)
    output = query.new_empty(batch, tokens, kv_heads, heads // kv_heads, values.shape[-1])
    unseen = query.new_full((BLOCK_ROWS, BLOCK_ROWS), -torch.inf).triu(1)
    for start in range(0, tokens, BLOCK_ROWS):
        end = min(start + BLOCK_ROWS, tokens)
        scores = torch.bmm(grouped[:, :, start:end].flatten(1, 2), keys[:, :, :end]).unflatten(1, (-1, end - start))
        scores[..., start:] += unseen[: end - start, : end - start]
        attended = torch.bmm(scores.softmax(-1).flatten(1, 2), values[:, :end])
        attended = attended.view(batch, kv_heads, -1, end - start, values.shape[-1])
        output[:, start:end] = attended.permute(0, 3, 1, 2, 4)
    return output.flatten(2, 3)


def attention_layers(decoder: nn.Module) -> list[nn.Module]:
    """The modules that are on transformers' attention interface, in the order of the layers."""
    return [module for module in decoder.modules() if hasattr(module, "is_causal") and hasattr(module, "scaling")]


def decoder_of(model: nn.Module) -> nn.Module:
    """What makes the hidden states of a causal language model; the model itself where nothing can be told from it."""
    decoder = model.get_decoder()
    return getattr(model, "model", model) if decoder is model else decoder  # Llama 4 has another name for it


def weights_per_chunk(device: torch.device) -> int:
    """Elements of attention weights that may exist at a time."""
    return WEIGHTS_PER_CHUNK if device.type == "cpu" else WEIGHTS_PER_CHUNK_GPU


def eager_attention_forward(module):
    """The `eager_attention_forward` of the module's own modelling file.

    Raises:
        ValueError: the architecture is not on transformers' attention interface.
    """
    source = sys.modules[type(module).__module__]
    if not hasattr(source, "eager_attention_forward"):
        raise ValueError(
            f"{type(module).__name__} is not on transformers' attention interface: {source.__name__} has no "
            "eager_attention_forward. Use a model class from transformers itself (trust_remote_code=False)."
        )
    return source.eager_attention_forward


AttentionInterface.register(ATTENTION_NAME, gateau_attention)
AttentionMaskInterface.register(ATTENTION_NAME, row_mask)
