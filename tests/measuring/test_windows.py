"""Nested windows, against transformers alone; their store, their columns, and `hf-gateau score --windows`."""

import json

import numpy as np
import pytest
import torch
from datasets import Dataset, load_dataset

from hf_gateau import GateauScorer, WindowScorer
from hf_gateau.cli import main
from hf_gateau.files.reading import load_rows
from hf_gateau.files.sidecar import read_sidecar
from hf_gateau.hub.scored import compact
from hf_gateau.records import attach_record
from hf_gateau.report.figures import figures
from hf_gateau.report.reach import reach_of_windows
from hf_gateau.rows.samples import build_sample


WINDOWS = (16, 40, 100)
PAIR = {"short_window": 60, "segment_length": 32, "store": False, "device": "cpu"}


def nlls(model, prompt, response):
    """Of the response's tokens, from the logits of one plain pass."""
    with torch.no_grad():
        logits = model(torch.tensor([prompt + response])).logits[0].double().log_softmax(-1)
    return [-logits[len(prompt) - 1 + i, token].item() for i, token in enumerate(response)]


@pytest.mark.parametrize("batch_tokens", [None, 1, 300])
def test_each_window_is_a_plain_pass_over_what_it_shows(batch_tokens, tiny_model, rows):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    plain, tokenizer = (
        AutoModelForCausalLM.from_pretrained(tiny_model).eval(),
        AutoTokenizer.from_pretrained(tiny_model),
    )
    scorer = WindowScorer(tiny_model, windows=WINDOWS, store=False, device="cpu", batch_tokens=batch_tokens)
    found = Dataset.from_list(rows[:6]).map(scorer, batched=True)
    for row, measured in zip(rows, found, strict=False):
        sample = build_sample(row, tokenizer)
        shown = [size for size in WINDOWS if size < len(sample.context)]
        assert measured["gateau_windows"] == shown
        want = [
            x
            for size in shown
            for x in nlls(plain, sample.prefix + sample.context[-size:] + sample.instruction, sample.response)
        ]
        assert measured["gateau_window_nll"] == pytest.approx(want, abs=1e-4)
    assert any(found["gateau_windows"])


def test_the_default_windows_are_powers_of_two_below_the_context(tiny_model):
    scorer = WindowScorer(tiny_model, store=False, device="cpu")
    assert scorer.sizes(512) == [] and scorer.sizes(513) == [512] and scorer.sizes(4097) == [512, 1024, 2048, 4096]
    assert WindowScorer(tiny_model, windows=[300, 20, 300], store=False).sizes(299) == [20]


def test_windows_of_any_whole_numbers():
    for windows in ([64, 128], np.array([128, 64]), [np.int64(64), 128]):
        assert WindowScorer("m", windows=windows).settings["windows"] == (64, 128)


@pytest.mark.parametrize("windows", [(), (0,), (-3, 10), ("512",), (5.5,), (True,), 64, np.array([]), "64"])
def test_windows_that_are_none(windows):
    with pytest.raises(ValueError, match="windows are numbers of tokens of the context"):
        WindowScorer("m", windows=windows)


def test_rows_without_windows_or_without_a_reason_to_have_any(tiny_model, rows, tmp_path):
    short = {"messages": [{"role": "user", "content": "who ?"}, {"role": "assistant", "content": "nadia ."}]}
    ds = Dataset.from_list([rows[0], {"messages": [{"role": "user", "content": "who ?"}]}, short])
    scorer = WindowScorer(tiny_model, windows=WINDOWS, store=tmp_path / "s.sqlite", device="cpu")
    first, again = (ds.map(scorer, batched=True, load_from_cache_file=False) for _ in range(2))
    assert first["gateau_window_nll"] == again["gateau_window_nll"], "what the store has is what was measured"
    assert first["gateau_windows"][1] is None and first["gateau_window_nll"][1] is None
    assert [bool(x) for x in first["gateau_window_nll_error"]] == [
        False,
        True,
        bool(first["gateau_window_nll_error"][2]),
    ]
    one = scorer(rows[0])
    assert one["gateau_windows"] == first["gateau_windows"][0]


def reach_by_hand(row, tau):
    """Nats beyond each window of a row, token by token."""
    found, R = {}, len(row["gateau_token_nll_long"])
    for i, size in enumerate(row["gateau_windows"]):
        short = row["gateau_window_nll"][i * R : (i + 1) * R]
        tokens = zip(short, row["gateau_token_nll_no_context"], row["gateau_token_nll_long"], strict=True)
        found[size] = sum(max(0.0, min(x, y) - z - tau) for x, y, z in tokens)
    return found


@pytest.mark.parametrize("tau", [0.0, 0.02])
def test_reach_against_the_tokens_of_each_row(tau, tiny_model, rows):
    ds = Dataset.from_list(rows[:8]).map(GateauScorer(long_model=tiny_model, **PAIR), batched=True)
    ds = ds.map(WindowScorer(tiny_model, windows=(*WINDOWS, 10_000), store=False, device="cpu"), batched=True)
    columns = ds.to_dict()
    columns["gateau_window_nll"][3], columns["gateau_windows"][5] = None, None
    columns["gateau_token_nll_long"][6] = columns["gateau_token_nll_long"][6][:-1]
    ds = Dataset.from_dict(columns, features=ds.features)
    windows, found = reach_of_windows(ds, tau)
    assert windows == sorted({x for sizes in ds["gateau_windows"] if sizes for x in sizes})
    for i, (row, nats) in enumerate(zip(ds, found, strict=True)):
        if i in (3, 5, 6):
            assert np.isnan(nats).all()
            continue
        by_hand = reach_by_hand(row, tau)
        assert nats.tolist() == pytest.approx([by_hand.get(x, 0.0) for x in windows])
    assert np.nanmax(found) > 0
    assert reach_of_windows(ds.remove_columns("gateau_windows"), tau) is None


def test_from_the_command_to_the_figure(tiny_model, rows, tmp_path, capsys, caplog):
    data, out = tmp_path / "rows.jsonl", tmp_path / "measured.parquet"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows[:12]))
    how = ["--long_model", tiny_model, "--short_window", "60", "--segment_length", "32", "--device", "cpu"]
    how += ["--store", str(tmp_path / "s.sqlite"), "--windows", "16,40,100"]
    main(["score", str(data), "-o", str(out), *how])
    assert "\n  12 of 12 rows have nested windows" in capsys.readouterr().out
    main(["score", str(data), "-o", str(tmp_path / "shards"), *how, "--streaming"])
    measured = load_dataset("parquet", data_files=str(out), split="train", cache_dir=str(tmp_path))
    shards = load_dataset(
        "parquet", data_files=str(tmp_path / "shards" / "*.parquet"), split="train", cache_dir=str(tmp_path)
    )
    assert measured["gateau_window_nll"] == shards["gateau_window_nll"]
    assert compact(measured).features["gateau_window_nll"].feature.dtype == "float16"
    main(["rank", str(out), "-o", str(tmp_path / "ranked.parquet")])
    assert read_sidecar(str(tmp_path / "ranked.parquet"))["window_nll"]["windows"] == [16, 40, 100]
    ranked = load_rows(str(tmp_path / "ranked.parquet"))
    [figure] = [x for x in figures(ranked) if x.name == "reach"]
    assert [row[0] for row in figure.table[1]] == [16, 40, 100]
    assert "so many of the context's last tokens" in figure.text and "not measured" not in figure.text
    attach_record(ranked, "measuring", {"dtype": "float32", "long": {"model": "another", "fingerprint": "f" * 16}})
    attach_record(ranked, "window_nll", read_sidecar(str(tmp_path / "ranked.parquet"))["window_nll"])
    with caplog.at_level("WARNING"):
        assert "nested windows were not measured" in "".join(x.text for x in figures(ranked) if x.name == "reach")
    assert "Nested windows were measured otherwise than the rows (fingerprint" in caplog.text
    main(["score", str(data), "-o", str(out), *how[:-1], "50000"])
    assert "No context is longer than 50000 tokens" in caplog.text
    assert main(["score", str(data), "-o", str(out), *how, "--token_nll", "false"]) == 2
    assert "token_nll is off; leave one of the two out" in capsys.readouterr().err
    assert main(["score", str(data), "-o", str(out), *how[:-1], "16,x"]) == 2
    assert "--windows is '16,x'; give lengths in tokens" in capsys.readouterr().err
