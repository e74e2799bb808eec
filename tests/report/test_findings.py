"""What is said of a ranking, against numbers that were put into its columns."""

import math
import warnings

import numpy as np
import pytest

from hf_gateau import rank
from hf_gateau.cli import main
from hf_gateau.ranking.config import CAS_VARIANTS, COMBINE_VARIANTS, HMP_VARIANTS, RANK_METHODS
from hf_gateau.records import attach_record
from hf_gateau.report.findings import CAS_WORDS, COMBINE_WORDS, HMP_WORDS, about, cut_rows, finding, glossary
from hf_gateau.report.provenance import behind
from hf_gateau.report.ranked_rows import read_ranked
from tests.measured import measured


pytestmark = [
    pytest.mark.quick,
    pytest.mark.filterwarnings("ignore::hf_gateau.ranking.order.DegenerateRankingWarning"),
]
MEASURING = {
    "config_key": "c",
    "long": {"model": "them/long", "fingerprint": "0" * 40},
    "short": {"model": "/home/me/models/short", "window": 4096, "rope_scale": 200.0},
    "segment_length": 128,
    "max_length": 65_536,
    "dtype": "bfloat16",
}


def needing(num_rows: int, num_needing: int, need: float = 0.83, **columns):
    """Rows of which the first need far text by so many nats a token, and the others by 0.04."""
    needs = [need] * num_needing + [0.04] * (num_rows - num_needing)
    short = [3.0 * math.exp(x + 1e-6 * i) for i, x in enumerate(needs)]
    return measured(num_rows, gateau_ppl_long=[3.0] * num_rows, gateau_ppl_short=short, **columns)


def said(ds, **settings) -> str:
    return finding(read_ranked(rank(ds, **settings), None))


def test_the_best_tenth_needs_far_text_in_tokens():
    """Four tokens a response, each of probability 1 / 3, and 0.3 of that without the far context; a tenth is taken off."""
    ds = needing(100, 10, need=-math.log(0.3), gateau_ppl_no_context=[50.0] * 100)
    assert said(ds) == (
        "The best tenth (10 of 100 rows) needs far text: only far context lets the long model foresee about "
        f"{4 * (0.7 / 3 - 0.1):.2f} tokens of a response, against 0.00 for all (medians)."
    )
    assert "needs far text no more than all rows do: only far context lets the long model foresee about 0.00" in said(
        needing(100, 10, need=0.0)
    )


def test_the_best_tenth_needs_far_text():
    assert said(needing(1600, 160), mode="mean", cas="none") == (
        "The best tenth (160 of 1,600 rows) needs far text: the long model finds its responses 0.83 nats a token likelier "
        "than the short sibling does, against 0.04 for all (medians)."
    )
    assert said(needing(5, 1), mode="mean", cas="none").startswith("The best of 5 rows needs far text")
    assert "20 of 200" in said(needing(200, 30)) and "(9 of 90" in said(
        needing(100, 30, gateau_error=["x"] * 10 + [None] * 90)
    )


def test_a_ranking_by_something_else_does_not_claim_it():
    ds = needing(100, 10, gateau_num_context_tokens=list(range(100, 200)))
    assert "(10 of 100 rows) needs far text no more than all rows do: the long model finds its responses 0.04" in said(
        ds, method="longest"
    )
    none = ds.remove_columns("gateau_ppl_short")
    assert "needs its context" in said(none, method="longest") and "likelier with it than without" in said(
        none, method="longest"
    )
    lengths = none.remove_columns(["gateau_ppl_long", "gateau_ppl_no_context"])
    assert said(lengths, method="longest") == (
        "The best tenth (10 of 100 rows) has contexts of 194 tokens, against 150 for all (medians)."
    )
    only = rank(ds, method="longest").select_columns(["gateau_rank", "gateau_score"])
    assert finding(read_ranked(only, None)).endswith("no measured column says what it needs.")


def test_what_is_null_or_infinite_is_left_out():
    ds = needing(40, 8)
    short = np.array(ds["gateau_ppl_short"])
    short[:2] = math.inf
    broken = rank(ds, method="longest").remove_columns("gateau_ppl_short").add_column("gateau_ppl_short", short)
    assert "inf" not in finding(read_ranked(broken, None)) and "nan" not in finding(read_ranked(broken, None))
    nothing = broken.remove_columns("gateau_ppl_short").add_column("gateau_ppl_short", [math.nan] * 40)
    assert "needs its context" in finding(read_ranked(nothing, None))


def test_models_and_data_are_named():
    ds = needing(20, 2)
    assert behind(ds) == [("data", "not recorded"), ("models", "not recorded with these data")]
    attach_record(ds, "measuring", MEASURING)
    attach_record(ds, "origin", {"name": "/home/me/data/train.jsonl"})
    assert behind(ds) == [
        ("data", "train.jsonl"),
        ("long model", "them/long"),
        ("short sibling", "short, RoPE base times 200, seeing only the last 4,096 tokens"),
    ]
    attach_record(ds, "measuring", MEASURING | {"short": {"window": 512}})
    attach_record(ds, "origin", {"repo_id": "me/scored", "source": {"repo_id": "them/data", "config": "long"}})
    assert behind(ds)[0] == ("data", "them/data (long)") and behind(ds)[2][1].startswith("the same model, seeing only")


def test_several_ways_of_measuring_are_named():
    ds = needing(20, 2, gateau_key=[f"{'c' if i < 15 else 'd'}:{i:04}" for i in range(20)])
    attach_record(ds, "measuring", MEASURING)
    assert behind(ds)[-1] == (
        "measured in several ways, which may not compare",
        "15 rows by c (the models above); 5 rows by d",
    )


def test_cut_rows_are_counted():
    ds = needing(20, 2).remove_columns("gateau_num_context_tokens")
    assert cut_rows(ds) is None
    flags = ds.add_column("gateau_truncated", [True] * 3 + [False] * 15 + [None] * 2)
    assert cut_rows(flags) == "3 of 18, of 3 these data do not say how much"
    flags = flags.add_column("gateau_num_context_tokens", [1000] * 20)
    counted = flags.add_column("gateau_num_cut_tokens", [4000, 0, 1000] + [0] * 15 + [None] * 2)
    assert cut_rows(counted) == (
        "2 of 18, which lost 1,000 to 4,000 tokens from the beginning of their context (5,000 in all, 20.0% of all context tokens)"
    )
    assert cut_rows(flags.add_column("gateau_num_cut_tokens", [0] * 20)) == "0 of 20"
    mixed = flags.add_column("gateau_num_cut_tokens", [4000, None, 1000] + [None] * 17)
    assert cut_rows(mixed).startswith("3 of 18, which lost 1,000 to 4,000") and cut_rows(mixed).endswith(
        ", of 1 these data do not say how much"
    )
    rules = counted.add_column("gateau_context_rule", ["last paragraph"] * 12 + ["mine"] * 7 + [None])
    assert dict(about(rules))["context found by"] == (
        "last paragraph (before the last paragraph): 12 rows; mine: 7 rows"
    )


def test_every_variant_is_explained():
    assert set(HMP_WORDS) == set(HMP_VARIANTS) - {"none"} and set(CAS_WORDS) == set(CAS_VARIANTS) - {"none"}
    assert set(COMBINE_WORDS) == set(COMBINE_VARIANTS)
    words = glossary({"hmp": "log_difference", "cas": "gain_far", "combine": "rank", "alpha": 0.7})
    assert list(words) == ["score", "perplexity", "need", "HMP", "CAS", "gain", "attention"]
    assert "0.7 times HMP + 0.3 times CAS, each as its rank" in words["score"]
    for method in RANK_METHODS:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if method in ("ifd", "car"):
                continue
            ranked = rank(measured(12), method=method)
        from hf_gateau import ranking_record

        shown = glossary(ranking_record(ranked))
        for term in ("HMP", "CAS"):
            there = any(x is not None for x in ranked[f"gateau_{term.lower()}"])
            assert (term in shown) == there, method
    assert "HMP" in glossary(None) and "CAS" in glossary(None)


def test_top_begins_with_the_finding_and_ends_with_the_words(tmp_path, capsys):
    ds = needing(
        40,
        4,
        need=2.0,
        gateau_ppl_no_context=[50.0] * 40,
        messages=[[{"role": "user", "content": "A tale.\n\nWho?"}, {"role": "assistant", "content": "Ida."}]] * 40,
    )
    ds.to_parquet(tmp_path / "measured.parquet")
    assert main(["top", str(tmp_path / "measured.parquet"), "-n", "1", "--width", "90"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("The best tenth (4 of 40 rows) needs far text: only far context lets")
    assert "data: measured.parquet" in lines and all(len(line) <= 92 for line in lines)
    terms = [*glossary({"hmp": "log_difference", "cas": "gain_far", "combine": "rank"}), "response"]
    assert [line.split()[0] for line in lines if line and not line.startswith(" ")][-8:] == terms
