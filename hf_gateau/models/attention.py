"""The raw half of Eq. 4: how much attention the response pays to each segment, taken inside the ordinary forward pass.

transformers lets a registered function compute the attention of every layer (`AttentionInterface`). Ours computes it as
the model would, by SDPA, and on the response's query rows the weights too, in chunks of rows, so that no T x T matrix ever
exists. Where SDPA cannot serve (soft-capping, attention sinks), rows go through the model's own eager function, which
returns the weights. Scores and softmax of the weights are float32 whatever the model's dtype.

Rows and keys are counted from the first token of the sequence, also where the keys of its beginning were kept from an
earlier pass and only the rows after it are computed now.

Shapes: B batch, H heads, K keys (all tokens so far), T rows computed now, Q rows of one chunk, C context tokens.
"""

import sys
from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn.attention.bias import CausalBias, CausalVariant
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from ..rows.samples import Sample
from .device import exact_dtype, to_device, to_host
from .masks import RowMask, row_mask
from .packing import Cut


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


# What SDPA cannot serve, by the names that transformers hands it to attention functions under
EAGER_ALONE = ("softcap", "s_aux", "position_bias")


class LowerRight(CausalBias):
    """torch's causal mask of the last rows of more keys, without the tensor of rows x keys that its own maker allocates."""

    @staticmethod
    def __new__(cls, *_):
        return torch.Tensor._make_subclass(cls, torch.empty(0))


class ResponseAttention:
    """Collects the attention from the responses' rows to the contexts' tokens over one forward pass of some samples.

    Hand it to the model's decoder as the keyword argument `response_attention`.

    Args:
        samples: one for each sequence of the batch, in order; a response's row and all after it are query rows.

    Attributes:
        totals: what was collected, tensors on the devices of the layers; `to_host` of them may take their places.
    """

    def __init__(self, samples: Sequence[Sample]):
        self.samples = samples
        self.first_row = min(sample.response_start for sample in samples)
        self.num_layers = 0
        self.num_tokens = max(sample.response_end for sample in samples)
        self._share_BT = torch.zeros(
            len(samples), 1, 1, self.num_tokens - self.first_row
        )  # 1 / |y| on a sample's own rows
        for share_T, sample in zip(self._share_BT[:, 0, 0], samples, strict=True):
            rows = slice(sample.response_start - self.first_row, sample.response_end - self.first_row)
            share_T[rows] = 1 / (sample.response_end - sample.response_start)
        self.totals: list[torch.Tensor] = []

    def begin_layer(self) -> tuple[int, ...] | None:
        """To be called by every layer as it runs; returns the heads whose weights are collected of it, None for all."""
        self.num_layers += 1
        return None

    def add(self, weights_BHQK: torch.Tensor, first_row: int, first_key: int) -> None:
        """Add a chunk of rows of the layer that runs, from `first_row`, whose keys begin at `first_key`."""
        mass_BHK = self._mass(weights_BHQK, first_row)
        num_heads, num_keys = mass_BHK.shape[1:]
        if not self.totals:
            shape, device = (len(self.samples), self.num_tokens), mass_BHK.device
            self.totals.append(torch.zeros(shape, dtype=exact_dtype(device), device=device))
        total_BK = self.totals[0].narrow(1, first_key, num_keys)
        total_BK += (mass_BHK.sum(1, dtype=total_BK.dtype) / num_heads).to(total_BK.device)

    def _mass(self, weights_BHQK: torch.Tensor, first_row: int) -> torch.Tensor:
        """A chunk's part of the mean over the response's tokens: (B, H, K)."""
        _, num_heads, num_rows, _ = weights_BHQK.shape
        self._share_BT = to_device(self._share_BT, weights_BHQK.device)  # layers may be on several devices
        share_BQ = self._share_BT.narrow(-1, first_row - self.first_row, num_rows).expand(-1, num_heads, -1, -1)
        return torch.matmul(share_BQ.to(weights_BHQK.dtype), weights_BHQK).squeeze(2)

    def check(self) -> None:
        """To be called after the pass.

        Raises:
            ValueError: no layer knew of this.
        """
        if self.num_layers == 0:
            raise ValueError(
                "No attention layer reported its weights: the model does not hand keyword arguments on to transformers' "
                "attention interface. Use a model class from transformers itself."
            )

    def segment_means(self, cut: Cut) -> list[list[float]]:
        """Mean attention per token of each segment, averaged over response tokens, heads and layers: Eq. 4 of
        arXiv 2410.15633 before the softmax. For each sample one float per segment; the last segment over its own tokens."""
        self.check()
        total_BK = to_host(self.totals)[0] / self.num_layers
        spans = [
            total[sample.context_start : sample.context_end]
            for total, sample in zip(total_BK, self.samples, strict=True)
        ]
        return [[float(part.mean()) for part in cut(span.split(cut.length))] for span in spans]


class HeadAttention(ResponseAttention):
    """The same head by head, summed over segments at once: of all heads, or of those alone that are named.

    A layer without a named head does not compute weights at all.

    Args:
        samples: as there.
        cut: where segments end, and which are kept.
        heads (*optional*): (layer, head) of those that are collected, counted from 0 in the order in which attention layers run.
    """

    def __init__(self, samples: Sequence[Sample], cut: Cut, heads: Sequence[tuple[int, int]] | None = None):
        super().__init__(samples)
        self.cut, self.heads = cut, heads
        # A total (B, H, S + 1) for each of some layers; what belongs to no segment goes to the last place.
        self._layers: list[int] = []
        counts = [-(-len(sample.context) // cut.length) for sample in samples]
        self._places, self._rest = [cut(range(count)) for count in counts], max(counts)
        self._segment_BK = torch.full((len(samples), self.num_tokens), self._rest)
        for segment_K, sample in zip(self._segment_BK, samples, strict=True):
            inside = torch.arange(len(sample.context)) // cut.length
            segment_K[sample.context_start : sample.context_end] = inside

    def begin_layer(self) -> tuple[int, ...] | None:
        self.num_layers += 1
        if self.heads is None:
            return None
        return tuple(sorted(head for layer, head in self.heads if layer == self.num_layers - 1))

    def add(self, weights_BHQK: torch.Tensor, first_row: int, first_key: int) -> None:
        mass_BHK = self._mass(weights_BHQK, first_row)
        device, (num_samples, num_heads, num_keys) = mass_BHK.device, mass_BHK.shape
        exact, layer = exact_dtype(device), self.num_layers - 1
        self._segment_BK = to_device(self._segment_BK, device)
        if layer not in self._layers:
            self._layers.append(layer)
            self.totals.append(torch.zeros(num_samples, num_heads, self._rest + 1, dtype=exact, device=device))
        segment_BK = self._segment_BK.narrow(1, first_key, num_keys)
        self.totals[-1].scatter_add_(2, segment_BK[:, None].expand_as(mass_BHK), mass_BHK.to(exact))

    def names(self) -> list[tuple[int, int]]:
        """(layer, head) of the columns of `segment_heads`."""
        if self.heads is not None:
            return sorted(self.heads)
        layers = zip(self._layers, self.totals, strict=True)
        return [(layer, head) for layer, total in layers for head in range(total.shape[1])]

    def segment_heads(self) -> list[torch.Tensor]:
        """Mean attention per token of each segment, averaged over response tokens: for each sample (S, H), float64, on the CPU; the
        last segment over its own tokens."""
        self.check()
        if lacking := {layer for layer, _ in self.heads or ()} - set(self._layers):
            raise ValueError(
                f"The model has no attention layer {min(lacking)}, of which heads were chosen; choose heads anew."
            )
        found = []
        sums_BHS = torch.cat(to_host(self.totals), 1)
        for sums_HS, sample, places in zip(sums_BHS, self.samples, self._places, strict=True):
            sizes = [min(self.cut.length, len(sample.context) - place * self.cut.length) for place in places]
            found.append((sums_HS[:, list(places)] / torch.tensor(sizes, dtype=sums_HS.dtype)).T)
        return found


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

    Rows go through SDPA where that can serve them, else through the model's own eager function in chunks of rows. Of the
    response's rows, `response_attention` gets the weights of those heads of the layer that it wants; where these give the
    outputs too, the rows go by them alone.
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
        self.window = kw.get("sliding_window") or self.end
        self.sdpa_serves = all(kw.get(name) is None for name in EAGER_ALONE)

    def plain(self, start: int, end: int) -> list[torch.Tensor]:
        """Some rows, without their weights, by the fastest way that can serve this layer."""
        if start == end:
            return []
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
        per_row = self.query.shape[0] * (num_heads or self.query.shape[1]) * min(self.window, self.end)
        step = max(1, weights_per_chunk(self.query.device) // per_row)
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

    def weights_give_outputs(self, heads: tuple[int, ...] | None) -> bool:
        """Whether rows whose weights are computed, of some heads or of all, need no other pass for their outputs."""
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
            query, key = query[:, list(heads)], key[:, [head // groups for head in heads]]
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
