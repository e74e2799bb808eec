"""The benchmark of a GPU, at toy size on the CPU: it runs through, and prints no figure as a GPU's."""

from contextlib import nullcontext

import pytest
import torch
from torch.nn.attention.flex_attention import flex_attention

from benchmarks import fused, gpu
from benchmarks.long_context import random_model, random_sample
from hf_gateau.models import attention, flex
from tests.models.attention_references import slow_key_mass


def test_it_runs_at_toy_size(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(gpu, "matrix_rate", lambda device, dtype: 1e10)
    gpu.main(["--toy", "--output", str(tmp_path / "gpu.md")])
    text = (tmp_path / "gpu.md").read_text()
    assert text.startswith(gpu.NO_GPU) and text in capsys.readouterr().out
    for name in ("matrix products", "torch's choice", "long, by heads", "whole row by segments", "plain / long pass"):
        assert name in text, name
    lines = {line.split(" | ")[0][2:]: line.split(" | ")[1:] for line in text.splitlines() if line.startswith("| ")}
    assert lines["transformers'"][2] == "0.0e+00"
    for name in (*list(fused.WAYS)[1:], *fused.TYPES):  # kernels that a CPU does not run
        assert lines[name][0].startswith("not measured: ")
    row, *others = (line.split(" | ") for line in text.splitlines() if line.startswith("| toy | "))
    assert row[1] == "transformers'" and len(others) == 2
    assert all("not measured: use_fused_attention needs an NVIDIA" in other[5] for other in others)
    planned, measured, ratio = map(float, row[4:7])
    least, most = ((planned + x) / (measured - x) for x in (-0.005, 0.005))  # all three are rounded
    assert planned > 0 and measured > 0.01 and least - 0.005 <= ratio <= most + 0.005
    assert "Left out" not in text


def test_fused_kernels_are_compared_as_on_a_card(monkeypatch):
    """With stand-ins for the kernels, which are those of the tests of `use_fused_attention`."""
    monkeypatch.setattr(fused, "check_fused_attention", lambda device, dtype: None)
    monkeypatch.setattr(attention, "key_mass", slow_key_mass)
    monkeypatch.setattr(flex, "_compiled", lambda: flex_attention)
    sizes = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
    }
    few = {"num_local_experts": 2, "num_experts_per_tok": 1, "sliding_window": 64}
    tiny = {name: (model_type, sizes | few) for name, (model_type, _) in fused.TYPES.items()}
    monkeypatch.setattr(fused, "TYPES", tiny)
    report = gpu.Report(60.0)
    way, cpu = gpu._way(gpu.AT_TOY_SIZE), torch.device("cpu")
    lines = list(fused.types(report, 200, 20, way, cpu, torch.float32, gpu._timed(gpu.AT_TOY_SIZE, cpu)))
    assert [line[0] for line in lines] == [*tiny]
    assert all(float(line[3]) > 0 and float(line[4]) < 1e-4 for line in lines)
    monkeypatch.setattr(
        fused, "WAYS", {"plain": nullcontext, "fused attention": fused.fused_attention, "again": nullcontext}
    )
    model, sample = random_model("tiny", torch.float32, cpu), random_sample(200, 20, 32_000)
    lines = list(
        fused.ways(report, model, {"long": sample, "segments": sample}, way, 1e10, gpu._timed(gpu.AT_TOY_SIZE, cpu))
    )
    assert [float(line[3]) < 1e-4 for line in lines] == [True] * 3 and lines[2][3] == "0.0e+00"


def test_parts_that_there_is_no_time_for_are_named(capsys):
    report = gpu.Report(-1.0)
    assert not report.has_time("all of it")
    assert "Left out for want of time: all of it." in capsys.readouterr().out


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so():
    with pytest.raises(SystemExit, match="no NVIDIA GPU here; `--toy`"):
        gpu.main([])
