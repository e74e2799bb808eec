"""What a person decided of rows: files as spreadsheets write them, and selections against a slow reference."""

import gzip
import json
import logging

import numpy as np
import pytest
from datasets import Dataset, DatasetDict

from hf_gateau.cli import main
from hf_gateau.files.sidecar import read_sidecar
from hf_gateau.ranking.decisions import content_of, read_decisions
from hf_gateau.ranking.order import rank
from hf_gateau.ranking.selection import BELOW_THE_CUT, DROPPED, SelectionRecord, select, selection_record
from tests.measured import measured


pytestmark = pytest.mark.quick


def ranked(n=10, **changes) -> Dataset:
    """Row i has the key s:ki, rank n - i (the last is the best), score i / n and 10 tokens."""
    columns = {"id": list(range(n)), "gateau_key": [f"s:k{i}" for i in range(n)]}
    columns |= {"gateau_rank": list(range(n, 0, -1)), "gateau_score": [i / n for i in range(n)]}
    columns |= {"gateau_num_context_tokens": [8] * n, "gateau_num_response_tokens": [2] * n} | changes
    return Dataset.from_dict({name: values for name, values in columns.items() if values is not None})


def unranked(n: int, *places: int) -> dict[str, list]:
    """Ranks and scores of `ranked`, without those of some rows."""
    ranks = iter(range(n - len(places), 0, -1))
    ranks = [None if i in places else next(ranks) for i in range(n)]
    notes = ["CAS is undefined" if rank is None else None for rank in ranks]
    scores = [None if rank is None else i / n for i, rank in enumerate(ranks)]
    return {"gateau_rank": ranks, "gateau_score": scores, "gateau_note": notes}


def decided(folder, keep=(), drop=(), settings="s", name="decisions.csv"):
    lines = [f"{settings}:k{i},{decision}," for decision, part in (("keep", keep), ("drop", drop)) for i in part]
    path = folder / name
    path.write_text("\n".join(["gateau_key,decision,note", *lines]) + "\n")
    return path


def ids(ds) -> list[int]:
    return [int(row["id"]) for row in ds]


def checked_record(ds: Dataset, kept: Dataset) -> SelectionRecord:
    record = selection_record(kept)
    assert record.num_kept + sum(record.dropped.values()) == record.num_rows == len(ds)
    assert record.num_kept == len(kept) and sum(part["kept"] for part in record.strata.values()) in (0, len(kept))
    return record


# ---- the file

ROWS = [("a:1", "keep", 'the 3rd line says "no",\nand why'), ("a:2", "drop", "größer"), ("a:3", "", "look again")]


def as_text(separator=",", end="\n", rows=ROWS, header=("gateau_key", "decision", "note")) -> str:
    def cell(text):
        return '"' + text.replace('"', '""') + '"' if set(text) & {'"', "\n", separator} else text

    return end.join(separator.join(map(cell, row)) for row in [header, *rows]) + end


FILES = {
    "plain.csv": as_text().encode(),
    "bom.csv": as_text(end="\r\n").encode("utf-8-sig"),
    "crlf.csv": as_text(end="\r\n").encode(),
    "utf-16.csv": as_text("\t", "\r\n").encode("utf-16"),
    "semicolons.csv": as_text(";").encode(),
    "tabs.tsv": as_text("\t").encode(),
    "packed.csv.gz": gzip.compress(as_text().encode()),
    "order.csv": as_text(rows=ROWS[::-1]).encode(),
    "no_end.csv": as_text().rstrip().encode(),
    "empty_lines.csv": as_text().replace("\na:2", "\n\n,,\n  , ,\na:2").encode(),
    "any_case.csv": as_text(rows=[("a:1", " Keep ", ""), (" a:2 ", "DROP", "")]).encode(),
    "twice.csv": as_text(rows=[*ROWS, ("b:1", "keep", ""), ("a:1", "", "said before")]).encode(),
    "no_notes.csv": b"gateau_key,decision\na:1,keep\na:2,drop\na:3\n",
    "more.csv": b"title,decision,gateau_key\nx,keep,a:1\ny,drop,a:2\n",
}


@pytest.mark.parametrize("name", FILES)
def test_every_form_of_the_file_says_the_same(name, tmp_path):
    (tmp_path / name).write_bytes(FILES[name])
    found = read_decisions(tmp_path / name)
    assert (found.keep, found.drop, found.file) == ({"1"}, {"2"}, name)
    (tmp_path / "other.csv").write_text("gateau_key,decision\na:1,keep\nc:2,drop\n")
    (tmp_path / "changed.csv").write_text("gateau_key,decision\na:2,keep\na:1,drop\n")
    assert found.digest == read_decisions(tmp_path / "other.csv").digest
    assert found.digest != read_decisions(tmp_path / "changed.csv").digest


def test_a_file_of_no_rows_decides_nothing(tmp_path):
    kept = select(ranked(), top_k=3, decisions=decided(tmp_path))
    assert ids(kept) == [7, 8, 9] == ids(select(ranked(), top_k=3))
    assert checked_record(ranked(), kept).decisions | {"digest": None} == {
        **{"file": "decisions.csv", "digest": None},
        **{"num_kept": 0, "num_kept_unranked": 0, "num_dropped": 0, "num_unknown": 0},
    }


WRONG = {
    "no file": ("d.csv", None, "There is no file of decisions"),
    "a folder": ("folder", None, "There is no file of decisions"),
    "another kind": ("d.json", b"{}", "is no .csv or .tsv file"),
    "nothing in it": ("d.csv", b"", "is empty; its first line names the columns"),
    "no decision": ("d.csv", b"gateau_key,note\na:1,x\n", "has no column decision, but gateau_key, note"),
    "no key": ("d.csv", b"id,decision\n1,keep\n", "has no column gateau_key, but id, decision"),
    "no header": ("d.csv", b"a:1,keep,\n", "has no column gateau_key, but a:1, keep"),
    "a column twice": ("d.csv", b"gateau_key,decision,decision\n", "more than one column 'decision'"),
    "unknown": ("d.csv", b"gateau_key,decision\na:1,keep\na:2,maybe\n", "line 3: the decision 'maybe' is not known"),
    "after a note of two lines": (
        "d.csv",
        b'gateau_key,decision,note\na:1,keep,"x\ny"\na:2,yes,\n',
        "line 4: the decision 'yes' is not known",
    ),
    "a row without a key": ("d.csv", b"gateau_key,decision\n,drop\n", "line 2 has no gateau_key"),
    "a note without a key": ("d.csv", b"gateau_key,decision,note\n,,what?\n", "line 2 has no gateau_key"),
    "both": (
        "d.csv",
        b"gateau_key,decision\r\na:1,keep\r\na:2,keep\r\na:1,drop\r\n",
        "line 4: a:1 is to drop here, and line 2 says keep",
    ),
    "both, of two measurings": ("d.csv", b"gateau_key,decision\na:1,keep\nb:1,drop\n", "line 3: b:1 is to drop here"),
    "a comma in a note": (
        "d.csv",
        b"gateau_key,decision,note\na:1,keep,no, yes\n",
        "line 2 has 4 cells, and there are 3",
    ),
    "another encoding": ("d.csv", b"gateau_key,decision,note\na:1,keep,gr\xf6\xdfer\n", "line 2 holds the byte 0xf6"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_wrong_in_a_file_is_told_with_its_line(case, tmp_path):
    name, data, message = WRONG[case]
    (tmp_path / "folder").mkdir()
    if data is not None:
        (tmp_path / name).write_bytes(data)
    with pytest.raises((ValueError, FileNotFoundError), match=message) as error:
        read_decisions(tmp_path / name)
    assert name in str(error.value)


def test_the_content_is_what_follows_the_last_colon():
    assert [content_of(key) for key in ("a:1", "a:b:1", "1", None)] == ["1", "1", "1", None]


# ---- what is selected


def ref_select(columns, keep, drop, wanted=None, min_score=None, max_tokens=None, share=0) -> list[int]:
    """Rows to keep; each stratum's best until it has its share; the best of the others as long as there is room."""
    order = [i for _, i in sorted((r, i) for i, r in enumerate(columns["gateau_rank"]) if r is not None)]
    kept, free = list(keep), [i for i in order if i not in {*keep, *drop}]
    tokens = np.add(*(columns[f"gateau_num_{x}_tokens"] for x in ("context", "response")))
    for kind in "abc" if share else "":
        due = int(share * sum(columns["kind"][i] == kind for i in order) + 1e-9)
        due -= sum(columns["kind"][i] == kind for i in keep)
        kept += [i for i in free if columns["kind"][i] == kind][: max(due, 0)]
    for i in free:
        full = wanted is not None and len(kept) >= wanted
        if full or (i not in kept and max_tokens is not None and sum(tokens[[*kept, i]]) > max_tokens):
            break
        kept += [i] * (i not in kept and (min_score is None or columns["gateau_score"][i] >= min_score))
    return sorted(kept)


@pytest.mark.parametrize("seed", range(4))
def test_every_limit_agrees_with_the_reference(seed, tmp_path):
    rng = np.random.default_rng(seed)
    n = 60
    columns = unranked(n, *rng.choice(n, 8, replace=False).tolist())
    columns |= {"kind": rng.choice(list("abc"), n).tolist()}
    columns |= {f"gateau_num_{what}_tokens": rng.integers(1, 99, n).tolist() for what in ("context", "response")}
    chosen = rng.permutation(n)
    keep, drop = sorted(chosen[:7].tolist()), sorted(chosen[7:20].tolist())
    ds, path = ranked(n, **columns), decided(tmp_path, keep, drop)
    for limit in ({"wanted": 7}, {"wanted": 20}, {"min_score": 0.6}, {"max_tokens": 1500}):
        given = {"top_k" if name == "wanted" else name: value for name, value in limit.items()}
        kept = select(ds, **given, decisions=path)
        assert ids(kept) == ref_select(columns, keep, drop, **limit) and {*keep} <= {*ids(kept)}
        record = checked_record(ds, kept)
        assert record.dropped[DROPPED] == record.decisions["num_dropped"] == 13
        assert record.decisions["num_kept"] == 7 and not record.decisions["num_unknown"]
        assert record.decisions["num_kept_unranked"] == sum(columns["gateau_rank"][i] is None for i in keep)
        if limit != {"wanted": 7}:
            kept = select(ds, **given, decisions=path, strata="kind", min_share=0.15)
            assert ids(kept) == ref_select(columns, keep, drop, **limit, share=0.15)
            checked_record(ds, kept)


def test_the_next_best_come_in_place_of_dropped_rows_and_kept_ones_count(tmp_path):
    ds = ranked()
    assert ids(select(ds, top_k=3, decisions=decided(tmp_path, drop=[8]))) == [6, 7, 9]
    assert ids(select(ds, fraction=0.3, decisions=decided(tmp_path, keep=[0], drop=[8]))) == [0, 7, 9]
    assert ids(select(ds, max_tokens=39, decisions=decided(tmp_path, keep=[0]))) == [0, 8, 9]
    assert ids(select(ds, min_score=0.8, decisions=decided(tmp_path, keep=[0], drop=[9]))) == [0, 8]
    assert ids(select(ds, top_k=2, decisions=decided(tmp_path, keep=[0, 1]))) == [0, 1]
    assert ids(select(ds, fraction=1.0, decisions=decided(tmp_path, drop=[9]))) == list(range(9))


def test_a_row_without_a_rank_is_kept_where_a_person_says_so(tmp_path):
    ds = ranked(**unranked(10, 0, 1, 2))
    kept = select(ds, top_k=2, decisions=decided(tmp_path, keep=[0], drop=[1]))
    record = checked_record(ds, kept)
    assert ids(kept) == [0, 9] and record.dropped == {"CAS is undefined": 1, DROPPED: 1, BELOW_THE_CUT: 6}
    assert record.decisions["num_kept_unranked"] == 1 and record.scores["kept"]["0"] == 0.9
    assert record.summary().endswith("a person kept 1 of them (1 without a rank) and dropped 1")
    alone = select(ds, top_k=1, decisions=decided(tmp_path, keep=[0]))
    assert ids(alone) == [0] and checked_record(ds, alone).scores == {}


def test_strata_count_what_a_person_keeps(tmp_path):
    kinds = {"kind": ["short"] * 5 + ["long"] * 5}
    both = {"strata": "kind", "fraction": 0.4}
    assert ids(select(ranked(**kinds), **both)) == [3, 4, 8, 9]
    kept = select(ranked(**kinds), **both, decisions=decided(tmp_path, keep=[0], drop=[9]))
    assert ids(kept) == [0, 4, 7, 8]
    more = select(ranked(**kinds), **both, decisions=decided(tmp_path, keep=[0, 1, 2]))  # than the stratum's share
    assert ids(more) == [0, 1, 2, 9]
    assert checked_record(ranked(**kinds), more).strata["short"] == {"ranked": 5, "kept": 3}
    other = ranked(**unranked(10, 0), kind=["other", *kinds["kind"][1:]])
    assert checked_record(other, select(other, top_k=3, strata="kind", decisions=decided(tmp_path, keep=[0]))).strata[
        "other"
    ] == {"ranked": 0, "kept": 1}


def test_rows_measured_anew_and_copies_of_a_row_are_decided_alike(tmp_path):
    path = decided(tmp_path, keep=[0], drop=[9], settings="of another window")
    assert ids(select(ranked(), top_k=2, decisions=path)) == [0, 8]
    copies = ranked(gateau_key=["s:k0", "t:k0", *(f"s:k{i}" for i in range(2, 8)), "s:k9", "s:k9"])
    kept = select(copies, top_k=3, decisions=path)
    assert ids(kept) == [0, 1, 7] and checked_record(copies, kept).decisions["num_dropped"] == 2


def test_decisions_about_other_rows_are_counted_and_told(tmp_path, caplog):
    with caplog.at_level(logging.WARNING, "hf_gateau"):
        kept = select(ranked(), top_k=2, decisions=decided(tmp_path, keep=[0, 70], drop=[80]))
    assert ids(kept) == [0, 9] and selection_record(kept).decisions["num_unknown"] == 2
    assert "2 of the decisions in decisions.csv are about no row of these data" in caplog.text
    with pytest.raises(ValueError, match="None of the 2 decisions in 'decisions.csv' is about a row of these data"):
        select(ranked(), top_k=2, decisions=decided(tmp_path, keep=[70], drop=[80]))


def test_a_decision_may_be_about_a_row_of_any_split(tmp_path, caplog):
    splits = DatasetDict(a=ranked(5), b=ranked(5, gateau_key=[f"s:k{i}" for i in range(5, 10)]))
    kept = select(splits, top_k=2, decisions=decided(tmp_path, keep=[0], drop=[4]))
    assert ids(kept["a"]) == [0, 3] and ids(kept["b"]) == [3, 4] and not caplog.text
    assert selection_record(kept["b"]).decisions | {"digest": ""} == {
        **{"file": "decisions.csv", "digest": ""},
        **{"num_kept": 0, "num_kept_unranked": 0, "num_dropped": 0, "num_unknown": 0},
    }


@pytest.mark.parametrize(
    "changes, settings, message",
    [
        ({}, {"top_k": 1}, "The rows that a person keeps are 2 rows, and 1 are asked for; raise fraction or top_k"),
        ({}, {}, "are 2 rows, and 1 are asked for"),
        ({}, {"max_tokens": 19}, "are 20 tokens, and 19 are asked for; raise max_tokens"),
        ({}, {"top_k": 10}, "more than the 9 rows that are left by the decisions of 10 ranked ones"),
        ({}, {"top_k": 3, "strata": "id", "min_share": 1.0}, "beside the 2 rows that a person keeps keeps 7 rows"),
        ({"gateau_key": None}, {"top_k": 3}, "found by the column gateau_key, and the rows have"),
        ({"gateau_key": [None] * 10}, {"top_k": 3}, "None of the 3 decisions"),
    ],
)
def test_what_decisions_do_not_allow_is_refused(changes, settings, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        select(ranked(**changes), **settings, decisions=decided(tmp_path, keep=[0, 1], drop=[9]))


def test_no_long_and_decisions_contradict_each_other(tmp_path):
    from hf_gateau.ranking.config import SelectConfig
    from hf_gateau.ranking.selection import select_rows

    ds = rank(measured(10), method="no_long")
    with pytest.raises(ValueError, match="keeps no long row, whatever a person decided"):
        select_rows(ds, SelectConfig(decisions=str(decided(tmp_path))), may_be_empty=True)


def test_streams_obey_them_too(tmp_path):
    scores = [0.1, None, 0.9, 0.5, 0.7]
    keys = ["s:k0", "s:k1", None, "s:k3", "s:k4"]
    stream = ranked(5, gateau_score=scores, gateau_key=keys).to_iterable_dataset()
    path = decided(tmp_path, keep=[0, 1], drop=[3])
    kept = select(stream, min_score=0.5, decisions=path)
    assert ids(kept) == [0, 1, 2, 4]
    record = selection_record(kept)
    assert record.decisions["num_kept"] is None and record.decisions["digest"] == read_decisions(path).digest
    assert "those that decisions.csv says to keep or drop are kept or dropped" in record.summary()
    other = select(stream, min_score=0.5, decisions=decided(tmp_path, keep=[0, 1], drop=[4]))
    assert selection_record(other).fingerprint != record.fingerprint  # of the same file name
    with pytest.raises(ValueError, match="found by the column gateau_key"):
        select(stream.remove_columns("gateau_key"), min_score=0.5, decisions=path)


def test_the_fingerprint_is_of_the_rows_and_the_record_names_no_folder(tmp_path):
    plain = selection_record(select(ranked(), top_k=3))
    notes = tmp_path / "decisions.csv"
    notes.write_text("gateau_key,decision,note\ns:k9,keep,good\ns:k0,drop,bad\n")
    same = selection_record(select(ranked(), top_k=3, decisions=notes))
    assert same.fingerprint == plain.fingerprint  # the same rows as without
    other = selection_record(select(ranked(), top_k=3, decisions=decided(tmp_path, drop=[9])))
    assert other.fingerprint != plain.fingerprint
    assert same.settings == {"top_k": 3, "decisions": "decisions.csv"} and str(tmp_path) not in same.to_json()
    assert SelectionRecord.from_json(same.to_json()) == same and plain.decisions is None
    assert (
        SelectionRecord.from_dict({x: y for x, y in json.loads(plain.to_json()).items() if x != "decisions"}) == plain
    )


def test_the_command_obeys_and_tells(tmp_path, capsys, caplog):
    ranked().to_parquet(tmp_path / "r.parquet")
    path = decided(tmp_path, keep=[0, 77], drop=[9])
    arguments = ["select", str(tmp_path / "r.parquet"), "--top_k", "3", "--decisions", str(path)]
    assert main([*arguments, "-o", str(tmp_path / "s.parquet")]) == 0
    said = capsys.readouterr()
    assert "3 of 10 rows kept" in said.out and "a person kept 1 of them and dropped 1: " in said.out
    assert (
        "1 dropped: dropped by a person" in said.out
        and "1 of the decisions in decisions.csv are about no row" in caplog.text
    )
    assert ids(Dataset.from_parquet(str(tmp_path / "s.parquet"))) == [0, 7, 8]
    assert read_sidecar(str(tmp_path / "s.parquet"))["selection"]["decisions"]["num_dropped"] == 1
    assert main([*arguments, "-o", str(path)]) == 2 and "which is read here" in capsys.readouterr().err
    path.write_text("gateau_key,decision\ns:k1,perhaps\n")
    assert main([*arguments, "-o", str(tmp_path / "t.parquet")]) == 2
    assert f"{path}, line 2: the decision 'perhaps' is not known" in capsys.readouterr().err
    assert not (tmp_path / "t.parquet").exists()
