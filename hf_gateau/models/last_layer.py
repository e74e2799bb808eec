"""The last layer computes only the rows that are read: of the rows before them, its keys and values alone are needed.

No layer comes after it, so its output on a row that nobody reads logits or attention from changes nothing. Its attention and
its MLP leave those rows out; its projections, norms and residual sums, which are cheap beside them, go on over all rows.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from weakref import WeakKeyDictionary

from torch import nn

from .abilities import abilities_of
from .attention import ATTENTION_NAME, ReadRows, attention_layers, decoder_of


# Decoder -> its last attention and its last MLP: looking for them takes longer than a pass of a small model.
_last_layers: WeakKeyDictionary[nn.Module, tuple[nn.Module, nn.Module | None]] = WeakKeyDictionary()


@contextmanager
def rows_read(model, first_row: int) -> Iterator[dict]:
    """Let a model's last layer leave out the rows before one, for the time of the block.

    Args:
        model: a causal language model of transformers. With another attention than ours, the MLP alone leaves them out; where
            the architecture does not allow it (`abilities_of`), nothing is left out.
        first_row (`int`): the first row that is read, counted from the first of the pass. One row at least is computed.

    Yields:
        keywords for the decoder's call.
    """
    if not abilities_of(model.config).leaves_rows_out:
        yield {}
        return
    decoder = decoder_of(model)
    if decoder not in _last_layers:
        _last_layers[decoder] = attention_layers(decoder)[-1], last_mlp(decoder)
    attention, mlp = _last_layers[decoder]
    is_ours = model.config._attn_implementation == ATTENTION_NAME
    keywords = {"read_rows": ReadRows(attention, first_row)} if is_ours else {}
    with nullcontext() if mlp is None else _from_row(mlp, first_row):
        yield keywords


def last_mlp(decoder: nn.Module) -> nn.Module | None:
    """The MLP, or the experts, beside the last attention module; None where the architecture has another name for it."""
    last = attention_layers(decoder)[-1]
    layer = next((module for module in decoder.modules() if any(child is last for child in module.children())), None)
    return getattr(layer, "mlp", None)


@contextmanager
def exchanged_forward(module: nn.Module, forward: Callable) -> Iterator[None]:
    """Another `forward` for a module, for the time of the block."""
    own_forward = vars(module).get("forward")  # set where accelerate hooked the module
    module.forward = forward
    try:
        yield
    finally:
        if own_forward is None:
            del module.forward
        else:
            module.forward = own_forward


def _from_row(mlp: nn.Module, first_row: int) -> AbstractContextManager:
    """Let an MLP leave out the rows before one, whose output is zero."""
    forward = mlp.forward

    def on_read_rows(hidden_BTD):
        start = min(first_row, hidden_BTD.shape[1] - 1)
        found = forward(hidden_BTD[:, start:].contiguous())  # experts view all rows as one dimension
        output, *rest = found if isinstance(found, tuple) else (found,)  # experts tell their router's scores too
        output = nn.functional.pad(output, (0, 0, start, 0))
        return (output, *rest) if isinstance(found, tuple) else output

    return exchanged_forward(mlp, on_read_rows)
