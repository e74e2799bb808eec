"""Selection against a slow reference that takes rows one by one, and datasets whose best rows are plain to see."""

import json
import math
from fractions import Fraction

import numpy as np
import pytest
from datasets import Dataset, DatasetDict, load_from_disk

from hf_gateau.cli import main
from hf_gateau.files.reading import load_rows
from hf_gateau.files.sidecar import read_sidecar
from hf_gateau.files.writing import save_rows
from hf_gateau.ranking.config import SelectConfig
from hf_gateau.ranking.order import rank, ranking_record
from hf_gateau.ranking.selection import BELOW_THE_CUT, SelectionRecord, select, selection_record
from hf_gateau.rows.conversations import SampleError, content_hash, read_turns


pytestmark = pytest.mark.quick


NAN = math.nan
KINDS = {"kind": ["short"] * 10 + ["long"] * 10}
NOT_RANKED = {"gateau_rank": None, "gateau_score": None, "gateau_ppl_long": [None, 9, 1, 2, 4, 5]}  # best: 1, 5, 4


def turns(text: str) -> list[dict]:
    return [{"role": "user", "content": text}, {"role": "assistant", "content": "yes"}]


def ranked(n=10, **changes) -> Dataset:
    """Row i has rank n - i (the last is the best), score i / n and 10 tokens; None takes a column away."""
    columns = {"id": list(range(n)), "messages": [turns(f"text {i}") for i in range(n)]}
    columns |= {"gateau_rank": list(range(n, 0, -1)), "gateau_score": [i / n for i in range(n)]}
    columns |= {"gateau_num_context_tokens": [8] * n, "gateau_num_response_tokens": [2] * n} | changes
    return Dataset.from_dict({name: values for name, values in columns.items() if values is not None})


def random_columns(seed: int) -> dict[str, list]:
    """Of these rows a fifth have no rank; scores, and with them ranks, are often tied."""
    rng = np.random.default_rng(seed)
    n = int(rng.integers(40, 90))
    scores = [None if rng.random() < 0.2 else round(float(rng.random()), 1) for _ in range(n)]
    best = sorted((score for score in scores if score is not None), reverse=True)
    columns = {"gateau_rank": [None if score is None else best.index(score) + 1 for score in scores]}
    columns |= {"gateau_score": scores, "kind": rng.choice(list("abc"), n).tolist()}
    return columns | {f"gateau_num_{what}_tokens": rng.integers(1, 99, n).tolist() for what in ("context", "response")}


def ref_select(columns, wanted=math.inf, min_score=-math.inf, max_tokens=math.inf, share=Fraction(0)) -> list[int]:
    """Each stratum's best, then the best of all, one row at a time for as long as there is room."""
    order = [i for _, i in sorted((r, i) for i, r in enumerate(columns["gateau_rank"]) if r is not None)]
    kept = []
    for kind in "abc":
        members = [i for i in order if columns["kind"][i] == kind]
        kept += members[: math.floor(share * len(members))]
    tokens = [a + b for a, b in np.transpose([columns[f"gateau_num_{x}_tokens"] for x in ("context", "response")])]
    for i in [i for i in order if i not in kept]:
        if len(kept) == wanted or sum(tokens[j] for j in [*kept, i]) > max_tokens:
            break
        kept += [i] * (columns["gateau_score"][i] >= min_score)
    return sorted(kept)


def ids(ds) -> list[int]:
    return [int(row["id"]) for row in ds]


def checked_record(ds: Dataset, kept: Dataset) -> SelectionRecord:
    record = selection_record(kept)
    assert record.num_kept + sum(record.dropped.values()) == record.num_rows == len(ds)
    assert record.num_kept == len(kept) and sum(part["kept"] for part in record.strata.values()) in (0, len(kept))
    return record


def test_each_limit_keeps_the_best_rows_in_the_order_they_came():
    ds = ranked()
    assert ids(select(ds)) == [9]  # the paper's tenth
    assert ids(select(ds, fraction=0.3)) == ids(select(ds, top_k=3)) == ids(select(ds, min_score=0.7)) == [7, 8, 9]
    assert ids(select(ds, max_tokens=30)) == ids(select(ds, max_tokens=39)) == [7, 8, 9]  # 10 tokens each
    assert ids(select(ds, fraction=1.0)) == ids(ds) and select(ds).column_names == ds.column_names
    uneven = ranked(4, gateau_num_context_tokens=[1, 1, 50, 1])
    assert ids(select(uneven, max_tokens=10)) == [3]  # ends at row 2, though the worse row 1 would fit


@pytest.mark.parametrize("seed", range(4))
def test_every_limit_agrees_with_the_reference(seed):
    columns = random_columns(seed)
    ds = ranked(len(columns["kind"]), messages=None, **columns)
    num_ranked = sum(r is not None for r in columns["gateau_rank"])
    for k, limit in [(k, {"top_k": k}) for k in (1, 9, num_ranked)] + [(round(num_ranked * 0.4), {"fraction": 0.4})]:
        assert ids(select(ds, **limit)) == ref_select(columns, k)
        expected = ref_select(columns, k, share=Fraction(k, num_ranked))
        assert ids(select(ds, **limit, strata="kind")) == expected
    for limit in ({"min_score": 0.6}, {"max_tokens": 2500}):
        assert ids(select(ds, **limit)) == ref_select(columns, **limit)
        kept = select(ds, **limit, strata="kind", min_share=0.2)
        assert ids(kept) == ref_select(columns, **limit, share=Fraction("0.2"))
        checked_record(ds, kept)


@pytest.mark.parametrize("settings", [{"fraction": 0.2}, {"max_tokens": 95}, {"top_k": 9, "strata": "kind"}], ids=str)
def test_shuffled_rows_give_the_same_selection(settings):
    ds = ranked(40, kind=["odd" if i % 3 else "even" for i in range(40)])
    kept = ids(select(ds, **settings))
    shuffled = ds.shuffle(seed=1)
    assert ids(select(shuffled, **settings)) == [i for i in ids(shuffled) if i in kept]


def test_strata_have_equal_shares_or_a_least_share_and_the_best_fill_up():
    ds = ranked(20, **KINDS)  # all the long are better
    kept = select(ds, fraction=0.2, strata="kind")
    assert ids(kept) == [8, 9, 18, 19]
    assert checked_record(ds, kept).strata == {kind: {"ranked": 10, "kept": 2} for kind in ("long", "short")}
    least = {"strata": "kind", "min_share": 0.1}
    assert ids(select(ds, top_k=5, **least)) == [9, 16, 17, 18, 19]
    assert ids(select(ds, min_score=0.95, **least)) == [9, 19]
    assert ids(select(ds, max_tokens=30, **least)) == [9, 18, 19]


@pytest.mark.parametrize(
    "lengths, edges, sizes",
    [
        ([1, 7, 8, 15, None], [8, 16], {"below 8": 2, "8 to 16": 2, "None": 1}),
        ([1, 7, 8, 8, None], None, {"1": 1, "7": 1, "8": 2, "None": 1}),
        (list(range(40)), None, {"below 1": 1, "32 or more": 8} | {f"{n} to {2 * n}": n for n in (1, 2, 4, 8, 16)}),
    ],
)
def test_strata_of_numbers_are_ranges_or_few_values(lengths, edges, sizes):
    ds = ranked(len(lengths), length=lengths)
    record = selection_record(select(ds, fraction=1.0, strata="length", strata_edges=edges))
    assert {name: part["kept"] for name, part in record.strata.items()} == sizes


@pytest.mark.parametrize(
    "changes, settings, message",
    [
        ({"gateau_rank": None}, {}, "no column gateau_rank"),
        ({"gateau_rank": [None] * 20}, {}, "None of 20 rows can be ranked; of 20 the reason is: not ranked"),
        *(({}, limit, "keeps none of 20") for limit in ({"fraction": 0.01}, {"min_score": 2.0}, {"max_tokens": 9})),
        ({}, {"top_k": 21}, "more than the 20 ranked rows"),
        ({"gateau_num_context_tokens": None}, {"max_tokens": 99}, "max_tokens needs the columns"),
        ({}, {"strata": "kinds"}, "no column 'kinds'"),
        ({}, {"strata": "kind", "strata_edges": [1]}, "need a column of numbers"),
        ({}, {"strata": "kind", "min_share": 0.2, "top_k": 3}, "keeps 4 rows, and 3 are asked for"),
        ({}, {"strata": "kind", "min_share": 0.2, "max_tokens": 39}, "more than max_tokens"),
        # Settings out of range
        ({}, {"fraction": 0.1, "top_k": 3}, "fraction and top_k are all given"),
        *(({}, {"fraction": value}, "fraction=.* is not above 0") for value in (0, -0.1, 1.1, NAN)),
        *(({}, {name: value}, "not a whole") for name in ("top_k", "max_tokens") for value in (0, 2.5, NAN)),
        ({}, {"min_score": NAN}, "min_score is NaN"),
        *(({}, setting, "belong to strata") for setting in ({"min_share": 0.1}, {"strata_edges": [1]})),
        *(({}, {"strata": "id", "strata_edges": edges}, "not ascending") for edges in ([2, 1], [1, 1])),
        *(({}, {"strata": "kind", "min_share": value}, "not between 0 and 1") for value in (-0.1, 1.1, NAN)),
        *(({}, {"strata": "kind", name: 5}, "need a min_share") for name in ("min_score", "max_tokens")),
    ],
)
def test_what_cannot_be_selected_is_refused(changes, settings, message):
    with pytest.raises(ValueError, match=message):
        select(ranked(20, **KINDS, **changes), **settings)


def test_rows_changed_since_they_were_measured_are_refused():
    measured = [content_hash(row) for row in ranked()]
    said = [turns("new" if i == 8 else f"text {i}") for i in range(10)]
    changed = ranked(messages=said, gateau_content_hash=measured)
    assert ids(select(changed, top_k=1)) == [9]  # row 8 is not kept
    with pytest.raises(ValueError, match=r"1 of the 2 kept rows have changed .*\(row 8"):
        select(changed, top_k=2)
    assert len(select(ranked(messages=said, gateau_content_hash=[*measured[:8], None, measured[9]]), top_k=2)) == 2


def test_splits_are_selected_one_by_one():
    kept = select(DatasetDict(a=ranked(10), b=ranked(30)), fraction=0.1)
    assert isinstance(kept, DatasetDict) and ids(kept["a"]) == [9] and ids(kept["b"]) == [27, 28, 29]
    with pytest.raises(TypeError, match="got list"):
        select([{"gateau_rank": 1}])


def test_streams_are_selected_by_score():
    stream = ranked(5, gateau_score=[0.1, None, 0.9, 0.5, NAN]).to_iterable_dataset()
    kept = select(stream, min_score=0.5)
    assert ids(kept) == [2, 3] and selection_record(stream) is None
    record = selection_record(kept)
    assert record.settings == {"min_score": 0.5} and record.num_kept is None and "0.5 or more" in record.summary()
    with pytest.raises(ValueError, match="only be selected by min_score"):
        select(stream, top_k=1)
    with pytest.raises(ValueError, match="strata cannot be formed"):
        select(stream, min_score=0.5, strata="id", min_share=0.1)
    with pytest.raises(ValueError, match="no column gateau_score"):
        select(stream.remove_columns("gateau_score"), min_score=0.5)


def test_the_record_tells_how_rows_were_chosen_and_stays_with_them(tmp_path):
    ds = rank(ranked(6, **NOT_RANKED), method="perplexity")
    kept = select(ds, top_k=2)
    record = checked_record(ds, kept)
    assert ids(kept) == [1, 5] and selection_record(ds) is None
    assert record.dropped == {"gateau_ppl_long is null, or not positive and finite": 1, BELOW_THE_CUT: 3}
    assert (record.num_rows, record.num_ranked, record.num_kept, record.num_tokens_kept) == (6, 5, 2, 20)
    assert record.settings == {"top_k": 2} and record.ranking == ranking_record(ds)
    assert [record.scores["ranked"][q] for q in ("0", "0.5", "1")] == [1, 4, 9]  # of 1, 2, 4, 5, 9
    assert [record.scores["kept"][q] for q in ("0", "0.5", "1")] == [5, 7, 9]
    assert record.summary() == "2 of 6 rows kept, best by perplexity, 20 tokens"
    later = record.to_json().replace("{", '{"of_a_later_version": 1, ', 1)
    assert SelectionRecord.from_json(record.to_json()) == SelectionRecord.from_json(later) == record
    for text in ("{}", "[]", "no json", '{"fingerprint": "0"}'):
        with pytest.raises(ValueError):
            SelectionRecord.from_json(text)
    kept.save_to_disk(tmp_path / "kept")
    loaded = load_from_disk(tmp_path / "kept")
    changed = loaded.map(lambda row: {"more": row["id"]}).filter(lambda row: row["id"] == 5)
    assert selection_record(loaded) == selection_record(changed) == record and ranking_record(changed)
    assert selection_record(select(changed, top_k=1)).num_rows == 1  # of the later selection alone


def test_the_fingerprint_is_of_the_kept_rows_and_what_they_say():
    def fingerprint(said=None, top_k=3, **more):
        messages = [turns((said or {}).get(i, f"text {i}")) for i in range(10)]
        return selection_record(select(ranked(messages=messages, **more), top_k=top_k)).fingerprint

    first = fingerprint()
    assert first == fingerprint() == fingerprint({0: "not kept"}) == fingerprint(more=[1] * 10)
    assert len({first, fingerprint({9: "kept"}), fingerprint({7: "kept"}), fingerprint(top_k=4)}) == 4
    keyed = [ranked(messages=None, gateau_key=list(f"abcdefghi{last}")) for last in "jk"]
    assert len({selection_record(select(ds)).fingerprint for ds in keyed}) == 2  # no text: the keys stand for it


def test_two_calls_are_identical_and_the_format_stays():
    ds = ranked(20, **KINDS)
    one, two = (select(ds, fraction=0.3, strata="kind") for _ in range(2))
    assert one.to_dict() == two.to_dict() and selection_record(one) == selection_record(two)
    shown = select(ds.with_format("numpy", columns=["id"]), fraction=0.3, strata="kind")
    assert shown.format["type"] == "numpy" and shown.format["columns"] == ["id"] and ids(shown) == ids(one)


def test_content_hash_is_of_the_text_and_not_of_the_nulls_that_arrow_adds():
    rows = [{"messages": [turns("a")[0] | {"name": "x"}, turns("a")[1]]}, {"messages": turns("a")}]
    rows += [{"messages": turns("b")}, {"messages": turns("a"), "response": "b"}, {"conversations": turns("a")}]
    hashes = [content_hash(row) for row in rows]
    names = ("messages", "response", "conversations")
    arrow = Dataset.from_dict({name: [row.get(name) for row in rows] for name in names})
    assert [content_hash(row) for row in arrow] == hashes and len(set(hashes)) == 5
    assert content_hash(rows[0] | {"id": 5, "gateau_rank": 1}) == hashes[0]


def test_read_turns_knows_sharegpt():
    said = [turns("q")[0] | {"role": "system"}, *turns("q")]
    spoken = [
        {"from": who, "value": turn["content"]} for who, turn in zip(("system", "human", "gpt"), said, strict=True)
    ]
    assert read_turns({"conversations": spoken}) == read_turns({"conversations": said}) == said
    assert read_turns({"messages": turns("a"), "conversations": spoken}) == turns("a")
    assert read_turns({"context": "c"}) is read_turns({"messages": None, "conversations": None}) is None
    for wrong in ("text", ["text"], [{"from": "human"}]):
        with pytest.raises(SampleError, match="conversations"):
            read_turns({"conversations": wrong})


def run_select(*arguments) -> int:
    return main(["select", *(str(argument) for argument in arguments)])


def test_the_command_writes_rows_and_how_they_were_chosen(tmp_path, capsys):
    ds, path = ranked(20, **KINDS), tmp_path / "ranked.parquet"
    save_rows(ds, str(path), {"measuring": {"long": {"model": "a"}}})
    assert run_select(path, "-o", tmp_path / "s.parquet", "--fraction", 0.2, "--strata", "kind") == 0
    assert load_rows(str(tmp_path / "s.parquet")).to_list() == select(ds, fraction=0.2, strata="kind").to_list()
    out = capsys.readouterr().out
    assert (
        "4 of 20 rows kept" in out and "16 dropped: ranked below the cut" in out and "kind long: 2 of 10 kept" in out
    )
    sidecar = read_sidecar(str(tmp_path / "s.parquet"))
    record = SelectionRecord.from_json(json.dumps(sidecar["selection"]))
    assert sidecar["measuring"] == record.measuring == {"long": {"model": "a"}}
    assert record.settings == {"fraction": 0.2, "strata": "kind"} and record.num_kept == 4
    for wrong, message in ((["--top_k", 21], "top_k=21"), (["--top_k", 1, "--fraction", 0.1], "choose one")):
        assert run_select(path, "-o", tmp_path / "wrong.parquet", *wrong) == 2
        assert message in capsys.readouterr().err and not (tmp_path / "wrong.parquet").exists()


def test_the_command_ranks_first_where_needed(tmp_path, capsys):
    ranked(6, **NOT_RANKED).to_parquet(tmp_path / "m.parquet")
    assert run_select(tmp_path / "m.parquet", "-o", tmp_path / "s", "--method", "perplexity", "--top_k", 2) == 0
    assert "2 of 6 rows kept, best by perplexity" in capsys.readouterr().out
    assert ids(load_rows(str(tmp_path / "s"))) == [1, 5]
    assert read_sidecar(str(tmp_path / "s"))["selection"]["settings"] == {"top_k": 2}


def test_the_command_keeps_the_ranking_that_lies_beside_a_parquet_file(tmp_path, capsys):
    ds = rank(ranked(6, **NOT_RANKED), method="perplexity")
    save_rows(ds, str(tmp_path / "r.parquet"), {"ranking": ranking_record(ds)})  # as `hf-gateau rank` does
    assert run_select(tmp_path / "r.parquet", "-o", tmp_path / "s.parquet", "--top_k", 2) == 0
    assert "best by perplexity" in capsys.readouterr().out
    sidecar = read_sidecar(str(tmp_path / "s.parquet"))
    assert sidecar["ranking"] == sidecar["selection"]["ranking"] == ranking_record(ds)


def test_counts_add_up_whatever_the_number_of_reasons():
    notes = [f"why {i}" for i in range(30)] + [None] * 10
    ds = ranked(40, gateau_rank=[None] * 30 + list(range(1, 11)), gateau_note=notes)
    checked_record(ds, select(ds, top_k=2))


def test_strata_settings_at_their_limits():
    with pytest.raises(ValueError, match="need a min_share"):
        SelectConfig(min_score=0.0, strata="kind")
    with pytest.raises(ValueError, match="strata_edges"):
        SelectConfig(strata="kind", strata_edges=[])


@pytest.mark.parametrize("value", [lambda i: i / 100, lambda i: -i, lambda i: i or NAN], ids=["<1", "<=0", "nan"])
def test_many_numbers_of_any_size_form_strata(value):
    ds = ranked(50, kind=[float(value(i)) for i in range(50)])
    checked_record(ds, select(ds, fraction=1.0, strata="kind"))


def test_whole_numbers_of_numpy_are_whole_numbers():
    assert ids(select(ranked(), top_k=np.int64(3))) == ids(select(ranked(), max_tokens=np.int64(30))) == [7, 8, 9]


def test_a_record_of_splits_and_one_of_a_later_version_are_read():
    kept = select(DatasetDict(a=ranked(10), b=ranked(30)))
    text = kept["a"].info.description
    kept["a"].info.description = text.replace("{", '{"of_a_later_version": 1, ', 1)
    assert selection_record(kept["a"]).num_kept == 1
    assert {split: record.num_kept for split, record in selection_record(kept).items()} == {"a": 1, "b": 3}
