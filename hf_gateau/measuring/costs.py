"""What measuring a row costs in floating-point operations, from the sizes of the models and of the row. Arithmetic alone.

For one forward pass over B sequences of T tokens, with R rows of logits each:

    linear       2 B T x (weights that every token is multiplied with)
    attention    4 B x (heads x head size) x (pairs of a query and a key that are computed) per layer, outside of the rows
                 whose weights are collected; T (T + 1) / 2 pairs without a sliding window
    weights      the same, and 2 B x heads for the mean over them, on the rows whose weights are collected: the response's, in
                 the long pass. Where chosen heads are asked alone, or a fused kernel serves those rows too, their attention is
                 computed as all others', and beside it 2 B x (head size + 1) a pair of each head asked for; with
                 `use_fused_attention` the scores are computed twice for that
    head         2 B R x hidden size x vocabulary

The last layer's MLP and attention run on the rows that are read alone, as last_layer.py says.
A backward pass there is none. Norms, RoPE, softmax and cross-entropy are not counted; their time goes with the tokens', and
so into the rate of `linear`.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import ceil
from typing import Any, NamedTuple

import numpy as np

from ..models.packing import Cut, chunk_rows, pack


PARTS = ("long", "no_context", "short", "segments")  # in the order in which a row's passes run
FEATURES = ("passes", "linear", "attention", "weights", "head")  # number of passes, then floating-point operations


class LayerShape(NamedTuple):
    """One attention layer: heads times head size, heads, and its sliding window in tokens (None: it sees everything)."""

    width: int
    heads: int
    window: int | None


@dataclass(frozen=True)
class ModelShape:
    """What the cost of a forward pass depends on.

    Attributes:
        linear (`int`): weights that every token is multiplied with in the decoder; of experts, those of the chosen.
        head (`int`): weights of the language-model head.
        layers: every kind of attention layer, with how many there are.
        sdpa (`bool`): whether rows without weights go through SDPA; else through the eager function, in chunks.
        weights_per_chunk (`int`): elements of one chunk of attention weights.
        last_mlp (`int`): of `linear`, the weights of the last layer's MLP, which only the rows that are read are multiplied with.
        blocked_tokens, block_rows (`int`): how long sequences are that go in blocks of rows, each over the keys up to its end, and
            how many rows a block has.
        last (`LayerShape`, *optional*): of `layers`, the last one, where it leaves out the rows that are not read.
        order: the layers one by one, as they run; needed where heads are chosen.
        fused (`bool`): whether SDPA gives the outputs of rows whose weights are collected; else the weights of all heads do.
        flex (`bool`): whether fused kernels compute what SDPA cannot, and the weights (`use_fused_attention`).
    """

    linear: int
    head: int
    layers: tuple[tuple[LayerShape, int], ...]
    sdpa: bool
    weights_per_chunk: int
    last_mlp: int = 0
    last: LayerShape | None = None
    blocked_tokens: int = 0
    block_rows: int = 1
    order: tuple[LayerShape, ...] = ()
    fused: bool = False
    flex: bool = False


@dataclass(frozen=True)
class RowShape:
    """The tokens of one row.

    Attributes:
        prefix, context, instruction, response (`int`): of each span.
        follows (`bool`): whether a row on the same context is measured with it, whose prefix and context it does not repeat.
        begun (`bool`): whether everything but its segments is measured already.
    """

    prefix: int
    context: int
    instruction: int
    response: int
    follows: bool = False
    begun: bool = False

    @property
    def length(self) -> int:
        """All tokens that are measured."""
        return self.prefix + self.context + self.instruction + self.response

    def cut(self, max_length: int) -> "RowShape":
        """The row with its context cut to fit `max_length` tokens, as far as its context allows."""
        return replace(self, context=max(0, self.context - max(0, self.length - max_length)))

    @classmethod
    def of(cls, sample) -> "RowShape":
        """The shape of a `Sample`."""
        borders = (0, sample.context_start, sample.context_end, sample.response_start, sample.response_end)
        return cls(*(end - start for start, end in zip(borders, borders[1:], strict=False)))


@dataclass(frozen=True)
class Way:
    """How rows are measured.

    Attributes:
        cut (`Cut`): where segments end, and which are measured.
        batch_tokens (`int`): most tokens in a batch of segments.
        short_window (`int`, *optional*): tokens that the short sibling sees; None: all.
        self_paired (`bool`): whether the siblings differ by the window alone, so that a row that fits it needs no short pass.
        reuses (`bool`): whether the window's keys and values come from the long pass, of which the short pass is a part then.
        heads (*optional*): (layer, head) of those that tell of segments, which are not measured then.
        segments (`bool`): False where they are measured later, or never.
    """

    cut: Cut
    batch_tokens: int
    short_window: int | None
    self_paired: bool
    reuses: bool = False
    heads: tuple[tuple[int, int], ...] | None = None
    segments: bool = True

    @property
    def takes_segments(self) -> bool:
        """Whether segments go through the long model, each alone."""
        return self.segments and self.heads is None

    @classmethod
    def of(cls, runtime) -> "Way":
        """As a `Runtime` measures."""
        heads = None if runtime.heads is None else runtime.heads.heads
        pair = runtime.pair
        window, reuses = pair.config.short_window, pair.config.short_pass == "reuse"
        way = (window, pair.is_self_paired, reuses, heads, not runtime.leaves_segments)
        return cls(runtime.cut, runtime.limits.batch_tokens, *way)


class Forward(NamedTuple):
    """`count` forward passes over `batch` sequences of `tokens` tokens, after `past` tokens whose keys are kept."""

    count: int
    batch: int
    tokens: int
    past: int = 0


def forwards(row: RowShape, way: Way) -> dict[str, list[Forward]]:
    """The forward passes that each of `PARTS` is made of; no entry where a row needs no short pass."""
    fixed = row.length - row.context - 1  # the last response token predicts nothing
    segments = {"segments": _segment_forwards(row, way, fixed) if way.takes_segments else []}
    if row.begun:
        return {part: [] for part in PARTS} | segments
    seen = row.context
    if way.short_window is not None:
        seen = min(seen, max(0, way.short_window - row.instruction))
    past = row.prefix + row.context if row.follows else 0
    passes = {"long": [Forward(1, 1, row.length - past, past)], "no_context": [Forward(1, 1, fixed)]}
    if way.reuses and row.instruction and seen < row.context:
        passes["long"].append(Forward(1, 1, row.instruction + row.response - 1, row.prefix + seen))
    elif not (way.self_paired and seen == row.context):
        sees_all = way.short_window is None
        passes["short"] = [Forward(1, 1, fixed + seen - past, past) if sees_all else Forward(1, 1, fixed + seen)]
    return passes | segments


def _segment_forwards(row: RowShape, way: Way, fixed: int) -> list[Forward]:
    num_full, rest = divmod(row.context, way.cut.length)
    lengths = way.cut([fixed + way.cut.length] * num_full + [fixed + rest] * (rest > 0))
    tail = row.instruction + row.response - 1
    found = []
    for (size, length), count in Counter((len(x), lengths[x[0]]) for x in pack(lengths, way.batch_tokens)).items():
        past = length - tail if row.follows else 0
        found.append(Forward(count, size, length - past, past))
    return found


def num_segments(row: RowShape, way: Way) -> int:
    """Segments of the row's context that are measured; the last may be shorter."""
    if not way.takes_segments:
        return 0
    return len(way.cut(range(ceil(row.context / way.cut.length))))


def pass_tokens(row: RowShape, way: Way) -> dict[str, int]:
    """Most tokens in one forward pass of each part: what its activations grow with."""
    return {part: max((x.batch * x.tokens for x in found), default=0) for part, found in forwards(row, way).items()}


def row_work(long: ModelShape, short: ModelShape, row: RowShape, way: Way) -> dict[str, np.ndarray]:
    """The work of each part of one row: arrays of `FEATURES`."""
    work = {}
    for part, found in forwards(row, way).items():
        model = short if part == "short" else long
        work[part] = np.zeros(len(FEATURES))
        for x in found:
            split = row.length - row.response if part == "long" and x.past + x.tokens == row.length else None
            work[part] += x.count * forward_work(model, x.batch, x.tokens, row.response, split, x.past, way.heads)
    return work


def forward_work(
    model: ModelShape,
    batch: int,
    tokens: int,
    num_logits: int,
    split: int | None = None,
    past: int = 0,
    heads: tuple[tuple[int, int], ...] | None = None,
) -> np.ndarray:
    """The work of one forward pass: an array of `FEATURES`.

    Args:
        num_logits (`int`): rows of logits in each sequence.
        split (`int`, *optional*): first row, from the first token, whose attention weights are collected; None: none are.
        past (`int`): tokens before those of the pass, whose keys are kept.
        heads (*optional*): (layer, head) of those whose weights are collected; None: all.
    """
    attention = weights = 0
    end = past + tokens
    start = end if split is None else split
    num_read = (
        num_logits if split is None else num_logits + 1
    )  # of the last response token attention is read, no logits
    num_unread = tokens - num_read
    kinds, last = _collected(model, heads if split is not None else None)
    for (layer, number), count in kinds.items():
        is_eager = number is None or (number and not (model.sdpa or model.flex))  # outputs and weights at once
        first = start if is_eager else end
        num_whole, pairs = count, 0
        if (layer, number) == last:
            num_whole, pairs = count - 1, _chunked_pairs(model, layer, batch, past + num_unread, first, end)
        pairs += num_whole * _pairs(model, layer, batch, past, first, end)
        attention += 4 * layer.width * batch * pairs
        if is_eager:
            per_pair = 4 * layer.width + 2 * (layer.heads if number is None else number)
            weights += per_pair * count * batch * _chunked_pairs(model, layer, batch, first, end, end)
        elif number:
            size = layer.width // layer.heads
            per_pair = 2 * number * (2 * size if model.flex else size + 1)
            weights += (
                per_pair * count * batch * _chunked_pairs(model, layer._replace(heads=number), batch, start, end, end)
            )
    linear = 2 * batch * (tokens * model.linear - num_unread * model.last_mlp)
    return np.array([1, linear, attention, weights, 2 * batch * num_logits * model.head], float)


def _collected(
    model: ModelShape, heads: tuple[tuple[int, int], ...] | None
) -> tuple[dict[tuple[LayerShape, int | None], int], tuple[LayerShape, int | None] | None]:
    """Of how many layers of each shape the weights of how many heads are collected, None for all with their outputs; and the same
    of the last layer, where that leaves rows out."""
    if heads is None:
        beside = (model.fused and model.sdpa) or model.flex
        kinds = {(layer, layer.heads if beside else None): count for layer, count in model.layers}
        return kinds, model.last and (model.last, model.last.heads if beside else None)
    numbers = Counter(layer for layer, _ in heads)
    kinds = [(layer, numbers[place]) for place, layer in enumerate(model.order)]
    return Counter(kinds), model.last and kinds[-1]


def flops(work: np.ndarray) -> float:
    """Floating-point operations of some work."""
    return float(work[1:].sum())


def _pairs(model: ModelShape, layer: LayerShape, batch: int, past: int, end: int, tokens: int) -> int:
    """Pairs of a query from `past` to `end` and a key that are computed: a triangle where SDPA knows the mask, else chunks."""
    if past == 0 and model.sdpa and (layer.window is None or tokens <= layer.window):
        if end > model.blocked_tokens:
            return end * (end + 1) // 2
        ends = np.minimum(np.arange(0, end, model.block_rows) + model.block_rows, end)
        return int((np.diff(ends, prepend=0) * ends).sum())
    if model.flex and not (model.sdpa and layer.window is None):
        return int(np.minimum(np.arange(past, end) + 1, layer.window or tokens).sum())
    return _chunked_pairs(model, layer, batch, past, end, tokens)


def _chunked_pairs(model: ModelShape, layer: LayerShape, batch: int, start: int, end: int, tokens: int) -> int:
    """The same for rows that go in chunks, each of which computes a rectangle; see `chunks` in attention.py."""
    window = layer.window or tokens
    step = chunk_rows(model.weights_per_chunk, batch * layer.heads, window, tokens)
    first_rows = np.arange(start, end, step)
    ends = np.minimum(first_rows + step, end)
    return int(((ends - first_rows) * (ends - np.maximum(first_rows - window + 1, 0))).sum())


def model_shape(model) -> ModelShape:
    """The shape of a loaded model of transformers, from its actual parameters."""
    from ..models.attention import (
        ATTENTION_NAME,
        BLOCK_ROWS,
        BLOCKED_TOKENS,
        IS_FUSED,
        OUTPUTS_ARE_FUSED,
        attention_layers,
        decoder_of,
        goes_in_blocks,
        weights_per_chunk,
    )
    from ..models.kernels import sdpa_serves
    from ..models.last_layer import last_mlp

    config, decoder = model.config.get_text_config(), decoder_of(model)
    said = config.to_dict()  # what each layer has its own of cannot be asked for
    layers, mlp = attention_layers(decoder), last_mlp(decoder)
    shapes = [_layer_shape(layer, said) for layer in layers]
    is_ours = model.config._attn_implementation == ATTENTION_NAME
    in_blocks = is_ours and goes_in_blocks(model.get_input_embeddings().weight)
    return ModelShape(
        linear=_linear_weights(decoder, config),
        head=config.hidden_size * config.vocab_size,
        layers=tuple(Counter(shapes).items()),
        sdpa=sdpa_serves(model),
        weights_per_chunk=weights_per_chunk(model.device),
        last_mlp=0 if mlp is None else _linear_weights(mlp, config),
        last=shapes[-1] if is_ours else None,
        blocked_tokens=BLOCKED_TOKENS if in_blocks else 0,
        block_rows=BLOCK_ROWS,
        order=tuple(shapes),
        fused=model.device.type in OUTPUTS_ARE_FUSED,
        flex=any(getattr(layer, IS_FUSED, False) for layer in layers),
    )


def _layer_shape(layer, said: Mapping[str, Any]) -> LayerShape:
    """Of one attention layer, from what it says itself, else from what the configuration says of all."""
    heads = said.get("num_attention_heads") or getattr(layer, "num_heads", None) or layer.config.num_attention_heads
    head_dim = getattr(layer, "head_dim", None) or said.get("head_dim") or said["hidden_size"] // heads
    return LayerShape(heads * head_dim, heads, getattr(layer, "sliding_window", said.get("sliding_window")))


def _linear_weights(decoder, config) -> int:
    """Weights of a decoder's or an MLP's linear layers, and of experts (one tensor of three dimensions for all) those that a
    token meets."""
    from torch import nn

    linear = sum(x.in_features * x.out_features for x in decoder.modules() if isinstance(x, nn.Linear))
    routers = sum(x.numel() for name, x in decoder.named_parameters() if name.endswith("router.weight"))
    experts = [x for x in decoder.parameters() if x.dim() == 3]
    chosen = getattr(config, "num_experts_per_tok", None) or 1
    return linear + routers + sum(x.numel() * chosen // x.shape[0] for x in experts)
