"""Models that need a package of an extra."""

import pytest
import torch
from transformers import AutoConfig

from hf_gateau.models import loading, weights
from hf_gateau.models.config import ModelPairConfig
from hf_gateau.models.pair import ModelPair


pytestmark = pytest.mark.quick


def test_gguf_without_its_package_names_the_extra(monkeypatch, tmp_path):
    monkeypatch.setattr(loading, "find_spec", lambda name: None)
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    with pytest.raises(ImportError, match=r'needs gguf; install it with `pip install "hf-gateau\[gguf\]"`'):
        loading.load_config(str(tmp_path / "model.gguf"), None, False)


def test_quantised_loading_without_its_package_names_the_extra(monkeypatch):
    monkeypatch.setattr(loading, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r'Loading in 4 or 8 bit needs bitsandbytes; .*"hf-gateau\[quant\]"`'):
        loading.check_installed("bitsandbytes", "quant", "Loading in 4 or 8 bit")


# Straight onto the device


class Asked(Exception):
    """What `from_pretrained` would have been given."""


@pytest.mark.parametrize(
    "place, settings, expected",
    [
        ("cuda:3", {}, {"": torch.device("cuda", 3)}),
        ("cuda:0", {"device": "auto", "device_map": "balanced"}, "balanced"),
        ("cpu", {}, None),
        ("mps", {}, None),
    ],
)
def test_weights_go_straight_onto_a_gpu(place, settings, expected, tiny_model, monkeypatch):
    """Else every process of a GPU would hold a copy in the host's memory first."""

    def ask(name, revision, trust_remote_code, options):
        raise Asked(options.get("device_map"))

    pair = ModelPair(ModelPairConfig(tiny_model, short_window=40, **settings))
    monkeypatch.setattr(ModelPair, "device", property(lambda self: torch.device(place)))
    monkeypatch.setattr(weights, "load_weights", ask)
    with pytest.raises(Asked) as asked:
        pair.load()
    assert asked.value.args == (expected,)


def test_a_model_put_on_one_device_is_as_it_would_be_without(tiny_model):
    """The same weights, and no hook that moves tensors at every layer."""
    config = AutoConfig.from_pretrained(tiny_model)
    plain, put = (
        weights.load_weights(tiny_model, None, False, {"config": config, "dtype": torch.float32, **options})
        for options in ({}, {"device_map": {"": torch.device("cpu")}})
    )
    own = dict(put.named_parameters())
    assert all(torch.equal(parameter, own[name]) for name, parameter in plain.named_parameters())
    assert not any(hasattr(module, "_hf_hook") for module in put.modules())
