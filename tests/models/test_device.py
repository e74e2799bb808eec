"""Memory that runs out, under every name that it has, and what a failed pass leaves behind."""

import gc
import weakref

import pytest
import torch

from hf_gateau.measuring import passes
from hf_gateau.measuring.passes import measure_samples
from hf_gateau.models import perplexity
from hf_gateau.models.config import ModelPairConfig
from hf_gateau.models.device import is_out_of_memory, lost_device
from hf_gateau.models.packing import Cut, Limits
from hf_gateau.models.pair import ModelPair
from hf_gateau.store.sqlite import MeasureError, Measurement
from tests.measured import make_sample
from tests.paths import ROOT


# As torch 2.13, its allocators and NVIDIA's libraries print them
RAN_OUT = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    RuntimeError("CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`"),
    RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
    RuntimeError("MPS backend out of memory (MPS allocated: 8.00 GB, other allocations: 1.00 GB)"),
    RuntimeError(
        "[enforce fail at alloc_cpu.cpp:118] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to"
    ),
    RuntimeError(
        "[enforce fail at alloc_cpu.cpp:121] data. DefaultCPUAllocator: not enough memory: you tried to allocate"
    ),
    MemoryError(),
]
OTHERS = [RuntimeError("view size is not compatible with input tensor's size and stride"), ValueError("out of memory")]
SAMPLE = make_sample(60, 9, 7)


@pytest.mark.parametrize("error", [*RAN_OUT, *OTHERS], ids=lambda error: str(error)[:30])
def test_what_is_out_of_memory(error):
    assert is_out_of_memory(error) == (error in RAN_OUT)


def test_the_allocator_of_this_machine_says_so_too():
    with pytest.raises((RuntimeError, MemoryError)) as raised:
        torch.empty(1 << 60, dtype=torch.uint8)
    assert is_out_of_memory(raised.value)


@pytest.fixture
def pair(tiny_model):
    return ModelPair(ModelPairConfig(long_model=tiny_model, short_window=40, device="cpu"))


class Failing:
    """A forward pass that holds a tensor and fails, as often as it is told to; whether any of those tensors is alive still."""

    def __init__(self, real, error: Exception, times: int):
        self.real, self.error, self.times, self.held, self.alive = real, error, times, [], []

    def __call__(self, *args, **kwargs):
        if any(x() is not None for x in self.held):
            gc.collect()
        self.alive.append(sum(x() is not None for x in self.held))
        if self.times:
            self.times -= 1
            large = torch.zeros(1_000)
            self.held.append(weakref.ref(large))
            raise type(self.error)(*self.error.args)
        return self.real(*args, **kwargs)


SOME = [pytest.param(x, marks=() if i in (0, 3, 7) else pytest.mark.slow) for i, x in enumerate(RAN_OUT)]


@pytest.mark.parametrize("error", SOME, ids=lambda error: str(error)[:30])
def test_a_retry_begins_without_the_tensors_of_the_failed_pass(pair, error, monkeypatch):
    together = [SAMPLE, make_sample(60, 4, 3, seed=1), make_sample(60, 5, 4, seed=2)]
    expected = measure_samples(pair, together, Cut(16), Limits(400))
    failing = Failing(passes.batch_nlls, error, times=1)
    monkeypatch.setattr(passes, "batch_nlls", failing)
    found = measure_samples(pair, together, Cut(16), Limits(400))
    assert all(isinstance(x, Measurement) for x in found)
    assert [x.ppl_long for x in found] == pytest.approx([x.ppl_long for x in expected], rel=1e-6)
    assert len(failing.alive) > 1 and not any(failing.alive)


@pytest.mark.parametrize("error", RAN_OUT[:2], ids=["torch", "cublas"])
def test_batches_of_segments_are_halved_without_the_tensors_of_the_failed_one(pair, error, monkeypatch):
    failing = Failing(perplexity.batch_nlls, error, times=1)
    monkeypatch.setattr(perplexity, "batch_nlls", failing)
    limits = Limits(400)
    found = perplexity.response_nlls(pair.long, [[1, 2, 3], [1, 2, 4], [1, 2, 5]], [[6, 7]] * 3, limits)
    assert len(found) == 3 and limits.batch_tokens < 400 and not any(failing.alive)


def test_a_context_goes_in_pieces_and_a_row_that_fits_in_none_is_given_up(pair, monkeypatch):
    monkeypatch.setattr(passes, "LEAST_PIECE_TOKENS", 16)
    failing = Failing(passes.batch_nlls, RAN_OUT[0], times=1)
    monkeypatch.setattr(passes, "batch_nlls", failing)
    limits = Limits(400)
    [found] = measure_samples(pair, [SAMPLE], Cut(16), limits)
    assert isinstance(found, Measurement) and limits.piece_tokens == 30 and not any(failing.alive)
    monkeypatch.setattr(passes, "Prefill", Failing(None, RAN_OUT[1], times=99))
    [found] = measure_samples(pair, [SAMPLE], Cut(16), limits)
    assert isinstance(found, MeasureError) and "out of memory on 79 tokens" in str(found)
    assert (
        found.__cause__ is None and found.__context__ is None and found.__traceback__ is None
    )  # which would hold tensors


def test_a_model_that_fails_on_a_row_fails_on_that_row_alone(pair, monkeypatch):
    bad, good = make_sample(60, 9, 7, seed=5), SAMPLE
    real = passes.batch_nlls

    def fails(model, prompts, responses, **kwargs):
        if any(response == bad.response for response in responses):
            raise IndexError("list index out of range")
        return real(model, prompts, responses, **kwargs)

    monkeypatch.setattr(passes, "batch_nlls", fails)
    found = measure_samples(pair, [good, bad], Cut(16), Limits(400))
    assert isinstance(found[0], Measurement)
    assert str(found[1]) == "the model failed on it: IndexError: list index out of range"


def test_a_device_that_is_lost_ends_the_run(pair, monkeypatch):
    error = RuntimeError("CUDA error: device-side assert triggered")
    assert lost_device(error) and not is_out_of_memory(error)
    monkeypatch.setattr(passes, "batch_nlls", Failing(None, error, times=9))
    with pytest.raises(RuntimeError, match="device-side assert"):
        measure_samples(pair, [SAMPLE], Cut(16), Limits(400))


def test_nothing_becomes_float64_on_a_device_that_may_lack_it():
    """Apple's GPUs have no float64, and no such GPU is here: tensors go to the CPU first, in every line that asks for it."""
    lines = [line for file in (ROOT / "hf_gateau").rglob("*.py") for line in file.read_text("utf-8").splitlines()]
    found = [line.strip() for line in lines if ".double()" in line]
    assert len(found) == 2 and all(".cpu().double()" in line for line in found), found
    made = [line.strip() for line in lines if "torch.float64" in line]
    assert len(made) == 1 and '"mps"' in made[0], made
