"""The raw half of Eq. 4: how much attention the response pays to each segment, taken inside the ordinary forward pass.

transformers lets a registered function compute the attention of every layer (`AttentionInterface`). Ours computes it as
the model would, and on the response's query rows it uses the model's own eager function, which also returns the
weights: the exact attention of any architecture (grouped heads, soft-capping, sinks, sliding windows), while no T x T
matrix ever exists. Everything before the response goes through SDPA.

Shapes: B batch, H heads, T tokens (keys), Q query rows of one chunk, R response tokens, S segments, C context tokens.
"""

import sys
from functools import partial

import torch
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask


# A name with "sdpa" in it would make transformers refuse the models that SDPA itself cannot serve.
ATTENTION_NAME = "gateau"
WEIGHTS_PER_CHUNK = 1 << 21  # elements of one chunk of attention weights: 8 MiB in float32


class ResponseAttention:
    """Collects the attention from the response's rows to the context's tokens over one forward pass of one sample.

    Hand it to the model's decoder as the keyword argument `response_attention`.

    Args:
        context_start, context_end (`int`): the context's token span.
        response_start (`int`): the first response token; its row and all after it are the query rows.
    """

    def __init__(self, context_start: int, context_end: int, response_start: int):
        self.context_start, self.context_end, self.response_start = context_start, context_end, response_start
        self.total_C = torch.zeros(context_end - context_start, dtype=torch.float64)
        self.num_layers = 0

    def add(self, weights_BHQT: torch.Tensor, first_key: int, num_rows: int) -> None:
        """Add a chunk of rows whose keys begin at `first_key`, averaged over heads and over all `num_rows` rows."""
        start, end = max(self.context_start - first_key, 0), self.context_end - first_key
        if end <= start:
            return
        mass = weights_BHQT[0, :, :, start:end].sum((0, 1)).double().cpu() / (weights_BHQT.shape[1] * num_rows)
        self.total_C[first_key + start - self.context_start :] += mass

    def segment_means(self, segment_length: int) -> list[float]:
        """Mean attention per token of each segment, averaged over response tokens, heads and layers: Eq. 4 of
        arXiv 2410.15633 before the softmax. One float per segment; the last segment over its own tokens."""
        if self.num_layers == 0:
            raise ValueError(
                "No attention layer reported its weights: the model does not hand keyword arguments on to transformers' "
                "attention interface. Use a model class from transformers itself."
            )
        return [float(part.mean()) for part in (self.total_C / self.num_layers).split(segment_length)]


class RowMask:
    """The mask of one kind of layer, made for some query rows at a time instead of T x T."""

    def __init__(self, **mask_arguments):
        self.make = partial(sdpa_mask, **{**mask_arguments, "allow_is_causal_skip": False})

    def rows(self, start: int, end: int, first_key: int) -> torch.Tensor:
        """Boolean (B, 1, end - start, end - first_key): True where the query may look."""
        return self.make(q_length=end - start, q_offset=start, kv_length=end - first_key, kv_offset=first_key)


def row_mask(**arguments) -> RowMask | None:
    """transformers' mask function for our attention: None (plain causal) wherever that is the whole truth."""
    local_size = arguments.get("local_size")
    if (
        arguments.get("allow_is_causal_skip", True)
        and arguments.get("attention_mask") is None
        and (local_size is None or arguments["kv_length"] <= local_size)
    ):
        return None
    return RowMask(**arguments)


def gateau_attention(
    module,
    query,
    key,
    value,
    attention_mask,
    scaling=None,
    *,
    response_attention: ResponseAttention | None = None,
    **kw,
):
    """Attention of one layer, (B, H, T, head size) each, as transformers' interface asks; returns (B, T, H, size), None.

    Rows before the response go through SDPA where that can serve them; the response's rows, and whatever SDPA cannot
    serve (soft-capping, attention sinks), through the model's own eager function in chunks of rows.
    """
    kw.pop("output_attentions", None)
    num_tokens = query.shape[2]
    split = num_tokens if response_attention is None else response_attention.response_start
    sdpa_serves = kw.get("softcap") is None and kw.get("s_aux") is None
    layer = _Layer(module, query, key, value, attention_mask, scaling, kw)
    if attention_mask is None and sdpa_serves and split:
        head = (x[:, :, :split] for x in (query, key, value))
        outputs = [sdpa_attention_forward(module, *head, None, scaling=scaling, **kw)[0]]
    else:
        forward = layer.sdpa if sdpa_serves else layer.eager
        outputs = [forward(*rows)[0] for rows in layer.chunks(0, split)]
    if response_attention is not None:
        response_attention.num_layers += 1
        for start, end, first_key in layer.chunks(split, num_tokens):
            output, weights = layer.eager(start, end, first_key, float32=True)
            response_attention.add(weights, first_key, num_tokens - split)
            outputs.append(output)
    return torch.cat(outputs, 1) if len(outputs) > 1 else outputs[0], None


class _Layer:
    """One layer's attention on some query rows."""

    def __init__(self, module, query, key, value, mask: RowMask | None, scaling, kw: dict):
        self.module, self.query, self.key, self.value, self.mask = module, query, key, value, mask
        self.kw = {"scaling": scaling, **kw}
        self.window = kw.get("sliding_window") or query.shape[2]

    def chunks(self, start: int, end: int):
        """(start, end, first key) of chunks of query rows, bounded by the weights they give rise to."""
        per_row = self.query.shape[0] * self.query.shape[1] * min(self.window, self.key.shape[2])
        step = max(1, WEIGHTS_PER_CHUNK // per_row)
        for a in range(start, end, step):
            yield a, min(a + step, end), max(0, a - self.window + 1)

    def _mask(self, start: int, end: int, first_key: int) -> torch.Tensor:
        if self.mask is not None:
            return self.mask.rows(start, end, first_key)
        key = torch.arange(first_key, end, device=self.query.device)
        return (key <= torch.arange(start, end, device=key.device)[:, None])[None, None]

    def _slices(self, start: int, end: int, first_key: int):
        return self.query[:, :, start:end], self.key[:, :, first_key:end], self.value[:, :, first_key:end]

    def sdpa(self, start: int, end: int, first_key: int):
        slices = self._slices(start, end, first_key)
        return sdpa_attention_forward(self.module, *slices, self._mask(start, end, first_key), **self.kw)

    def eager(self, start: int, end: int, first_key: int, float32: bool = False):
        """The model's own eager function; with `float32` so is its arithmetic, as weights of half models are rounded."""
        query, key, value = self._slices(start, end, first_key)
        dtype = torch.float32 if float32 else query.dtype
        allowed = self._mask(start, end, first_key)
        mask = torch.zeros(allowed.shape, dtype=dtype, device=query.device)
        mask.masked_fill_(~allowed, torch.finfo(dtype).min)
        output, weights = eager_attention_forward(self.module)(
            self.module, query.to(dtype), key.to(dtype), value.to(dtype), mask, **self.kw
        )
        return output.to(query.dtype), weights


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
