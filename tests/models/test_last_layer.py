"""The last layer on the rows that are read: the same output there, less work, and the model as it was."""

import pytest
import torch
from transformers import AutoModelForCausalLM

from hf_gateau.models.attention import ATTENTION_NAME
from hf_gateau.models.last_layer import last_mlp, rows_read
from tests.tiny_models import ARCHITECTURES, make_model


pytestmark = pytest.mark.quick


IDS = torch.arange(7, 87).reshape(2, 40)


def load(folder: str, attention: str = ATTENTION_NAME):
    return AutoModelForCausalLM.from_pretrained(folder, attn_implementation=attention).eval()


def rows_of_mlp(model) -> list[int]:
    """Collects how many rows the last layer's MLP computes from now on: what its own first matrix product is given."""
    found = []
    inner = next(child for child in last_mlp(model.get_decoder()).children())
    inner.register_forward_pre_hook(lambda module, args: found.append(args[0].numel() // args[0].shape[-1]))
    return found


@torch.inference_mode()
@pytest.mark.parametrize("attention", [ATTENTION_NAME, "eager"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_what_is_read_is_as_before(architecture, attention, tokenizer, tmp_path):
    model = load(make_model(architecture, tmp_path, tokenizer), attention)
    decoder = model.get_decoder()
    expected, rows = decoder(input_ids=IDS, use_cache=False).last_hidden_state, rows_of_mlp(model)
    for first in (0, 1, 25, 39):
        with rows_read(model, first) as keywords:
            found = decoder(input_ids=IDS, use_cache=False, **keywords).last_hidden_state
        torch.testing.assert_close(found[:, first:], expected[:, first:])
        assert found.shape == expected.shape and found.isfinite().all()
        assert rows.pop() == 2 * (40 - first)
    assert torch.equal(decoder(input_ids=IDS, use_cache=False).last_hidden_state, expected)


@torch.inference_mode()
def test_nothing_is_read(tiny_model):
    """A prefill needs the last layer's keys and values alone."""
    model = load(tiny_model)
    rows = rows_of_mlp(model)
    with rows_read(model, 40) as keywords:
        kept = model.get_decoder()(input_ids=IDS, use_cache=True, **keywords).past_key_values
    assert rows == [2] and kept.get_seq_length() == 40
    whole = model.get_decoder()(input_ids=IDS, use_cache=True).past_key_values
    for found, expected in zip(kept.layers, whole.layers, strict=True):
        assert torch.equal(found.keys, expected.keys) and torch.equal(found.values, expected.values)


def test_the_model_is_left_as_it_was(tiny_model):
    model = load(tiny_model)
    mlp = last_mlp(model.get_decoder())
    with pytest.raises(RuntimeError, match="broken"), rows_read(model, 3):
        raise RuntimeError("broken")
    assert "forward" not in vars(mlp)
    hooked = mlp.forward = lambda hidden: hidden * 0  # as accelerate does
    with rows_read(model, 3):
        assert mlp.forward is not hooked
    assert mlp.forward is hooked


def test_architectures_without_such_an_mlp_compute_every_row(tiny_model):
    model = load(tiny_model)
    layer = model.get_decoder().layers[-1]
    layer.feed_forward = layer.mlp
    del layer.mlp
    assert last_mlp(model.get_decoder()) is None
    with rows_read(model, 3) as keywords:
        assert keywords["read_rows"].layer is layer.self_attn
