"""The benchmark of a GPU, at toy size on the CPU: it runs through, and prints no figure as a GPU's."""

import pytest
import torch

from benchmarks import gpu


def test_it_runs_at_toy_size(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(gpu, "matrix_rate", lambda device, dtype: 1e10)
    gpu.main(["--toy", "--output", str(tmp_path / "gpu.md")])
    text = (tmp_path / "gpu.md").read_text()
    assert text.startswith(gpu.NO_GPU) and text in capsys.readouterr().out
    for name in ("matrix products", "torch's choice", "long, by heads", "whole row by segments", "plain / long pass"):
        assert name in text, name
    fused = [
        line.split(" | ")
        for line in text.splitlines()
        if line.startswith(("| transformers'", "| torch.compile", "| Liger"))
    ]
    assert [row[1].split(" ")[0] for row in fused[1:]] == ["not", "not"] and fused[0][-1] == "0.0e+00 |"
    [row] = [line.split(" | ") for line in text.splitlines() if line.startswith("| toy | 4 |")]
    planned, measured, ratio = map(float, row[3:6])
    least, most = ((planned + x) / (measured - x) for x in (-0.005, 0.005))  # all three are rounded
    assert planned > 0 and measured > 0.01 and least - 0.005 <= ratio <= most + 0.005
    assert "Left out" not in text


def test_parts_that_there_is_no_time_for_are_named(capsys):
    report = gpu.Report(-1.0)
    assert not report.has_time("all of it")
    assert "Left out for want of time: all of it." in capsys.readouterr().out


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so():
    with pytest.raises(SystemExit, match="no NVIDIA GPU here; `--toy`"):
        gpu.main([])
