"""A GPU is never waited for while a bunch of rows goes through the models, and their numbers are read at once.

torch's meta device stands for a GPU: its tensors have shapes and dtypes on any machine but no numbers, and whatever reads one fails.
"""

import contextlib
from functools import partial

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoModelForCausalLM

from hf_gateau.measuring import passes
from hf_gateau.measuring.heads import HeadCalibration
from hf_gateau.models import attention, device, perplexity
from hf_gateau.models.attention import ATTENTION_NAME
from hf_gateau.models.config import ModelPairConfig
from hf_gateau.models.packing import Cut, Limits
from hf_gateau.models.pair import ModelPair
from hf_gateau.store.sqlite import Measurement
from tests.architectures import SAMPLES
from tests.tiny_models import make_model


pytestmark = pytest.mark.quick

CUT = Cut(32)
HEADS = HeadCalibration(((0, 1), (1, 0), (1, 3)), (0,), ((0.0,),) * 3)


class Copies(TorchDispatchMode):
    """Every copy between the CPU and the device: (to which, whether it is waited for); and what was read to the CPU."""

    def __init__(self):
        super().__init__()
        self.made = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        found = function(*args, **kwargs)
        if function in (torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default):
            source = args[-1] if function is torch.ops.aten._to_copy.default else args[1]
            if source.device != found.device:
                self.made.append((found.device.type, not (kwargs.get("non_blocking") or args[2:3] == (True,))))
        return found


def not_there(tensor, *args, device=None, **kwargs):
    """`torch.tensor` waits where it copies numbers to a device, which the meta device does not show."""
    assert device is None or torch.device(device).type == "cpu" or len(args[0]) == 0
    return tensor(*args, device=device, **kwargs)


def on_a_device(monkeypatch, folder: str, samples, heads=None, **settings):
    """Measure samples by a model on the meta device; returns the copies, how many tensors each reading had, and what was found."""
    pair, reads = ModelPair(ModelPairConfig(folder, device="cpu", **settings)), []
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(pair.long_config, dtype=torch.bfloat16)
    model.set_attn_implementation(ATTENTION_NAME)
    pair._long, pair._is_loaded = model.eval(), True

    def to_host(tensors):
        assert {x.device.type for x in tensors} == {"meta"}
        reads.append(len(tensors))
        return [torch.full(x.shape, 0.5, dtype=torch.float64) for x in tensors]

    monkeypatch.setattr(passes, "to_host", to_host)
    for name in ("OUTPUTS_ARE_FUSED", "KERNELS_KNOW_PAST"):
        monkeypatch.setattr(attention, name, ("meta",))
    monkeypatch.setattr(torch, "tensor", partial(not_there, torch.tensor))
    with Copies() as copies:
        found = passes._Work(pair, samples, CUT, Limits(400), heads).measure(lambda part: contextlib.nullcontext())
    return copies.made, reads, found


@pytest.mark.parametrize("short", [{"short_window": 40}, {"short_rope_scale": 8.0}], ids=["window", "rope"])
@pytest.mark.parametrize("heads", [None, HEADS], ids=["segments", "heads"])
@pytest.mark.parametrize(
    "architecture",
    ["llama", "gemma3_text", *(pytest.param(x, marks=pytest.mark.slow) for x in ("qwen3", "gemma2", "mistral"))],
)
def test_a_bunch_is_read_at_once(architecture, heads, short, tokenizer, tmp_path, monkeypatch):
    folder = make_model(architecture, tmp_path, tokenizer)
    copies, reads, found = on_a_device(monkeypatch, folder, SAMPLES, heads, **short)
    assert len(found) == len(SAMPLES) and all(isinstance(x, Measurement) for x in found)
    assert len(reads) == 1 and reads[0] > 3 * len(SAMPLES)
    assert copies and set(copies) == {("meta", False)}  # what is computed with goes there, and nothing waits for it


def test_what_would_wait_is_seen():
    """The test's own tools."""
    there = torch.ones(3, device="meta")
    for wait in (torch.Tensor.cpu, torch.Tensor.tolist, lambda x: x.sum().item(), lambda x: bool((x > 0).any())):
        with pytest.raises((RuntimeError, NotImplementedError)):
            wait(there)
    with Copies() as copies:
        torch.ones(3).to("meta")
        there[1:] = torch.ones(2)
        torch.ones(3).to("meta", non_blocking=True)
        there + there.double()
    assert copies.made == [("meta", True)] * 2 + [("meta", False)]


def test_tensors_come_to_the_host_by_one_copy(monkeypatch):
    tensors, calls = [torch.rand(2, 3), torch.rand(0), torch.rand(4).double(), torch.rand(1)], []
    real = torch.Tensor.cpu
    monkeypatch.setattr(torch.Tensor, "cpu", lambda self: calls.append(self.numel()) or real(self))
    found = device.to_host(tensors)
    assert calls == [11]
    for one, expected in zip(found, tensors, strict=True):
        assert one.dtype == torch.float64 and torch.equal(one, expected.double())


def test_what_goes_to_a_gpu_is_pinned_first(monkeypatch):
    pinned = []
    monkeypatch.setattr(device, "pinned", lambda tensor: pinned.append(tensor) or tensor)
    monkeypatch.setattr(torch.Tensor, "to", lambda self, *args, **kw: (args, kw))
    ids = torch.arange(3)
    assert device.to_device(ids, torch.device("cuda", 1)) == ((torch.device("cuda", 1),), {"non_blocking": True})
    device.to_device(ids, torch.device("cpu"))
    assert len(pinned) == 1 and pinned[0] is ids


@pytest.mark.parametrize("free, logits", [(1 << 30, 1 << 24), (1 << 20, 1 << 14), (1 << 45, 1 << 30), (3, 1)])
def test_chunks_of_logits_fit_into_a_share_of_the_free_memory(free, logits, monkeypatch):
    monkeypatch.setattr(perplexity, "free_bytes", lambda device: free)
    assert perplexity.logits_per_chunk(torch.device("cuda")) == logits
    assert perplexity.logits_per_chunk(torch.device("cpu")) == perplexity.LOGITS_PER_CHUNK


def test_chunks_of_logits_of_any_size_give_the_same_losses(tiny_model, monkeypatch):
    pair = ModelPair(ModelPairConfig(tiny_model, short_window=40, device="cpu"))
    prompts, responses = [[7, 8, 9], [9, 8]], [[10, 11, 12, 13], [14]]
    expected = perplexity.batch_nlls(pair.long, prompts, responses)
    for limit in (1, 2 * pair.long.config.vocab_size, 1 << 40):
        monkeypatch.setattr(perplexity, "LOGITS_PER_CHUNK", limit)
        found = perplexity.batch_nlls(pair.long, prompts, responses)
        assert [x.shape for x in found] == [(4,), (1,)] and all(x.dtype == torch.float64 for x in found)
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
