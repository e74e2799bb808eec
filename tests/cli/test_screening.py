"""`--segments_for` on the command line: score, rank and select, what is refused, and a YAML file."""

import json
import re

import pytest

from hf_gateau import SelectionRecord
from hf_gateau.cli import main
from hf_gateau.files.reading import load_rows
from hf_gateau.files.sidecar import read_sidecar
from hf_gateau.training.model_card import _selection_table as model_table


@pytest.fixture()
def given(rows, tiny_model, tmp_path) -> list[str]:
    """Settings; the rows are at `rows.jsonl`."""
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = {"long_model": tiny_model, "short_window": 200, "segment_length": 64, "device": "cpu"}
    return [f"--{name}={value}" for name, value in (settings | {"store": tmp_path / "s.sqlite"}).items()]


def test_score_rank_and_select(given, tmp_path, capsys):
    measured, ranked, kept = (str(tmp_path / f"{name}.parquet") for name in ("measured", "ranked", "kept"))
    (tmp_path / "how.yaml").write_text("segments_for: 0.5\nmode: mean\n")
    yaml = ["--config", str(tmp_path / "how.yaml")]
    assert main(["score", str(tmp_path / "rows.jsonl"), "-o", measured, *given, *yaml]) in (None, 0)
    last_lines = capsys.readouterr().out
    out, screening = load_rows(measured), read_sidecar(measured)["measuring"]["screening"]
    assert (screening["share"], screening["hmp"], screening["num_rows"]) == (0.5, "log_difference", 12)
    assert (
        sum(x is not None for x in out["gateau_segment_ppl"]) == screening["num_high"] + screening["num_sampled"] < 12
    )
    sizes = sum(out["gateau_num_context_tokens"]) + sum(out["gateau_num_response_tokens"])
    assert int(re.search(r"; ([\d,]+) tokens", last_lines)[1].replace(",", "")) > 1.4 * sizes, "both passes count"
    num_now = screening["num_high"] + screening["num_sampled"]
    assert f"({num_now} now, {12 - num_now} from the pass without segments or the store" in last_lines
    assert main(["rank", measured, "-o", ranked, "--mode", "mean"]) in (None, 0)
    assert "  certain: the best " in capsys.readouterr().out
    assert main(["top", ranked, "-n", "12"]) in (None, 0)
    assert "note        segments not measured" in capsys.readouterr().out
    assert main(["report", ranked, "-o", str(tmp_path / "report.html")]) in (None, 0)
    page = (tmp_path / "report.html").read_text()
    others = f"{screening['num_sampled']:,} of the {12 - screening['num_high']:,} others"
    assert f"the {screening['num_high']:,} rows of highest log_difference, and a sample of {others}" in page
    assert (
        "Why rows have no rank" not in page
        and ">nan<" not in page
        and "The top 10% at other values of alpha" not in page
    )
    safe = read_sidecar(ranked)["ranking"]["screening"]["num_safe"]
    assert f"the best {safe:,} rows, as if all segments were measured; {12 - num_now:,} rows have none" in page
    capsys.readouterr()
    assert main(["select", ranked, "-o", kept, "--top_k", "2"]) in (None, 0)
    assert "rows without segments belongs among them" in capsys.readouterr().out
    selected = SelectionRecord(**read_sidecar(kept)["selection"])
    assert "as if all segments were measured" in model_table(selected)
    assert "of the selected rows at most" in model_table(selected) and "a sample of" in model_table(selected)
    assert main(["select", ranked, "-o", kept, "--fraction", "0.9"]) != 0
    assert "Ask for at most top_k=" in capsys.readouterr().err
    assert main(["rank", measured, "-o", ranked, "--mode", "paper"]) != 0
    assert "combine='softmax' needs all of them" in capsys.readouterr().err
    whole = ["score", str(tmp_path / "rows.jsonl"), "-o", measured, *given]  # the missing segments alone
    assert main(whole) in (None, 0)
    assert None not in load_rows(measured)["gateau_segment_ppl"]


@pytest.mark.parametrize(
    "more, message",
    [
        (["--segments_for", "1.5"], "segments_for is a share of the rows between 0 and 1, got 1.5"),
        (["--segments_for", "0.5", "--mode", "paper"], "one row's CAS can outweigh any HMP"),
        (["--segments_for", "0.5", "--alpha", "0.5"], "is certain of no row with alpha=0.5"),
        (["--segments_for", "0.5", "--streaming", "true"], "a stream shows some at a time; leave --streaming out"),
        (["--segments_for", "0.5", "--token_nll", "false"], "token_nll=False keeps nothing of tokens"),
        (["--segments_for", "0.5", "--store", "off"], "segments_for keeps in the store what it chooses by"),
    ],
)
def test_refusals(given, more, message, tmp_path, capsys):
    assert main(["score", str(tmp_path / "rows.jsonl"), "-o", str(tmp_path / "out"), *given, *more]) != 0
    assert message in capsys.readouterr().err
