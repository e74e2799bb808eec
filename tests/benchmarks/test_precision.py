"""The precision table: what it compares, on made numbers, and from rows to Markdown with the tiny pair."""

import json
import sys

import numpy as np
import pandas as pd
import pytest

from benchmarks import precision
from hf_gateau.quickstart import LONG_MODEL
from hf_gateau.rows.samples import build_sample
from tests.measured import measured


def frame(ppl_short: list[float], error: int | None = None) -> pd.DataFrame:
    """Measured rows that differ by the short sibling alone."""
    n = len(ppl_short)
    columns = {
        "gateau_key": [f"s:{i}" for i in range(n)],
        "gateau_ppl_short": [float(ppl) for ppl in ppl_short],
        "gateau_ppl_long": [2.0] * n,
        "gateau_ppl_no_context": [50.0] * n,
        "gateau_segment_ppl": [[2.0, 3.0, 4.0 + i] for i in range(n)],
        "gateau_segment_attention": [[0.1, 0.2, 0.3]] * n,
    }
    rows = measured(n, **columns).to_pandas()
    rows["gateau_error"] = [None] * n
    for name in columns:
        rows[name] = columns[name]  # lists as lists
    rows.loc[[] if error is None else [error], "gateau_error"] = "no finite numbers"
    return rows


def test_equal_numbers_agree_in_everything():
    cells = precision.compare(frame([2, 3, 4, 5, 6, 7, 8, 9, 10, 11]), frame([2, 3, 4, 5, 6, 7, 8, 9, 10, 11]))
    assert cells == {
        "left out": "0 of 10",
        "score": "1.0000",
        "top 10%": "1 of 1",
        "top 30%": "3 of 3",
        "log PPL difference": "1.0000",
        **dict.fromkeys(precision.RAW, "0.0e+00"),
    }


def test_what_differs_is_told():
    exact = frame([2, 3, 4, 5, 6, 7, 8, 9, 10, 11])
    other = frame([2, 3, 4, 5, 6, 7, 8, 9, 11, 10])
    other.at[4, "gateau_segment_attention"] = [0.1, 0.15, 0.3]
    cells = precision.compare(exact, other)
    assert cells["log PPL difference"] == f"{1 - 6 * 2 / 990:.4f}"  # 1 - 6 sum d^2 / n(n^2 - 1)
    assert cells["ppl_short"] == "1.0e-01" and cells["segment_attention"] == "2.5e-01"
    assert cells["ppl_long"] == cells["segment_ppl"] == "0.0e+00"
    reverse = precision.compare(exact, frame([11, 10, 9, 8, 7, 6, 5, 4, 3, 2]))
    assert reverse["log PPL difference"] == "-1.0000"
    assert float(reverse["score"]) < 1


def test_rows_without_numbers_are_counted_and_left_out():
    other = frame([2, 3, 4, 5, 9], error=4)
    other.loc[4, "gateau_ppl_short"] = np.nan
    cells = precision.compare(frame([2, 3, 4, 5, 6]), other)
    assert cells["left out"] == "1 of 5" and cells["log PPL difference"] == "1.0000"
    assert precision.compare(frame([2, 3, 4]), frame([2, 3, 4], error=0)) == {"left out": "1 of 3"}


def test_shares_are_of_whole_rows():
    assert [precision.num_kept(24, share) for share in precision.SHARES] == [2, 7]
    assert precision.num_kept(3, 0.1) == 1


@pytest.fixture
def data(rows, tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)) + "\n\n")
    return str(path)


def test_samples_are_spread_and_cut(data, rows, tokenizer):
    whole = precision.read_samples(data, tokenizer, len(rows), 0)
    assert {sample.key for sample in whole} == {build_sample(row, tokenizer).key for row in rows}
    some = precision.read_samples(data, tokenizer, 3, 100)
    ends = [whole[0], whole[-1]]
    assert [some[0].response, some[-1].response] == [sample.response for sample in ends]
    for sample in some:
        assert len(sample.context) == 100
    assert some[0].context == whole[0].context[-100:] and some[0].instruction == whole[0].instruction
    with pytest.raises(ValueError, match="13 samples were asked for, and .* has 12 rows; give --samples from 3"):
        precision.read_samples(data, tokenizer, 13, 0)


def test_table_of_the_tiny_pair(data, tmp_path, monkeypatch, capsys):
    output = tmp_path / "precision.md"
    arguments = ["--data", data, "--model", LONG_MODEL, "--samples", "6", "--context", "120", "--short-window", "64"]
    arguments += ["--segment-length", "32", "--ways", "bfloat16", "float16", "segment_stride=2", "response_head=1"]
    monkeypatch.setattr(sys, "argv", ["precision.py", *arguments, "--output", str(output)])
    precision.main()
    text = output.read_text()
    assert "`python -m benchmarks.precision" in text and text in capsys.readouterr().out
    assert "6 rows, 120 to 120 tokens of context" in text
    assert "(top 10%: 1, top 30%: 2)" in text
    names, _, *ways = (line.split(" | ") for line in text.splitlines() if line.startswith("|"))
    bfloat16, float16, stride, head = (dict(zip(names, cells, strict=True)) for cells in ways)
    assert all(cell.strip("| ") for cells in ways for cell in cells)  # every column has its figure
    # 8 bits of mantissa against 11: both differ from float32, the first by more
    assert 0 < float(float16["ppl_long"]) < float(bfloat16["ppl_long"]) < 0.5
    assert stride["ppl_long"] == "0.0e+00" and stride["segment_ppl"] == "nan"  # two segments of four
    assert float(head["ppl_long"]) > 0.01


def test_arguments_are_refused_before_a_model_loads(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["precision.py", "--data", str(tmp_path / "none.jsonl")])
    with pytest.raises(SystemExit):
        precision.main()
    assert "none.jsonl is no file; give a .jsonl file" in capsys.readouterr().err
    monkeypatch.setattr(sys, "argv", ["precision.py", "--data", __file__, "--context", "256"])
    with pytest.raises(SystemExit):
        precision.main()
    assert "window of 512 tokens shows it all of --context 256; lower --short-window" in capsys.readouterr().err
    monkeypatch.setattr(sys, "argv", ["precision.py", "--data", __file__, "--ways", "segment_stride=half"])
    with pytest.raises(SystemExit):
        precision.main()
    assert "'segment_stride=half' is no way; give one of bfloat16, " in capsys.readouterr().err
