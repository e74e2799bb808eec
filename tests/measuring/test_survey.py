"""Rows surveyed once: the same columns as `Dataset.map` gives, no row laid out again, rows on one document together."""

import numpy as np
import pytest
from datasets import Dataset, Features, load_dataset

from hf_gateau import GateauScorer, measure_together
from hf_gateau.measuring import passes, runtime
from hf_gateau.measuring.costs import RowShape
from hf_gateau.measuring.survey import ABOUT, Work, are_kept, measured_rows, survey_rows
from hf_gateau.models.packing import MOST_TOGETHER
from hf_gateau.records import attach_record, find_record
from hf_gateau.rows.batches import COLUMNS, feature_of
from hf_gateau.store.sqlite import MeasurementStore, StoreError
from tests.measured import assert_same


@pytest.fixture()
def settings(tiny_model) -> dict:
    return {"long_model": tiny_model, "short_window": 200, "segment_length": 64, "max_length": 700, "device": "cpu"}


def on_documents(rows: list[dict], num_documents: int, num_questions: int) -> list[dict]:
    """Rows that ask several questions about each context, far from each other in the data."""
    contexts = [row["messages"][0]["content"].rpartition("\n\n")[0] for row in rows[:num_documents]]
    asked = [row["messages"][0]["content"].rpartition("\n\n")[2] for row in rows]
    return [
        {"id": f"{d}-{q}", "context": context, "instruction": asked[q], "response": rows[q]["messages"][1]["content"]}
        for q in range(num_questions)
        for d, context in enumerate(contexts)
    ]


@pytest.fixture()
def laid_out(monkeypatch) -> list:
    """Every row that is laid out as tokens."""
    real, seen = runtime.build_sample, []
    monkeypatch.setattr(
        runtime, "build_sample", lambda row, *rest, **more: seen.append(row) or real(row, *rest, **more)
    )
    return seen


def bad_and_repeated(rows) -> list[dict]:
    return [{"id": "bad", "messages": None}, *rows, {**rows[3], "id": "twice"}, {"id": "worse", "messages": []}]


@pytest.mark.parametrize("kind", ["list", "file", "shuffled", "numpy", "measured"])
def test_same_columns_as_map(kind, rows, settings, tmp_path):
    ds = Dataset.from_list(bad_and_repeated(rows[:6]))
    alone = ds.map(GateauScorer(**settings, store=False), batched=True)
    if kind == "file":
        ds.to_json(tmp_path / "rows.jsonl")
        ds = load_dataset("json", data_files=str(tmp_path / "rows.jsonl"), split="train", cache_dir=str(tmp_path))
    if kind == "shuffled":
        ds, alone = ds.shuffle(seed=1), alone.shuffle(seed=1)
    if kind == "numpy":
        ds = ds.with_format("numpy", columns=["id"])
    if kind == "measured":
        ds = ds.add_column("gateau_ppl_long", [0.0] * len(ds))
    attach_record(ds, "origin", {"name": "here"})
    out = measure_together(ds, GateauScorer(**settings, store=tmp_path / "s.sqlite"))
    assert out.column_names == ([*alone.column_names] if kind != "file" else out.column_names)
    assert {name: out.features[name] for name in COLUMNS} == {name: alone.features[name] for name in COLUMNS}
    assert find_record(out, "origin") == {"name": "here"} and out.split == ds.split
    expected = ds.map(lambda row: {}).format
    assert out.format["type"] == expected["type"]
    if kind == "numpy":
        assert out.format["columns"] == ["id", *COLUMNS]
    plain = out.with_format(None)
    assert_same(plain, alone)
    assert plain["id"] == alone["id"] and plain["messages"] == alone["messages"]
    assert plain["gateau_content_hash"] == alone["gateau_content_hash"]


def test_rows_are_laid_out_once_to_be_surveyed_and_once_to_be_measured(rows, settings, laid_out, tmp_path):
    Dataset.from_list(rows).to_json(tmp_path / "rows.jsonl")
    ds = load_dataset("json", data_files=str(tmp_path / "rows.jsonl"), split="train", cache_dir=str(tmp_path))
    settings["store"] = tmp_path / "s.sqlite"
    first = measure_together(ds, GateauScorer(**settings))
    assert len(laid_out) == 2 * len(rows)
    scorer = GateauScorer(**settings)
    again = measure_together(ds, scorer)
    assert len(laid_out) == 2 * len(rows), "the survey is in the cache of `datasets`, the numbers are in the store"
    assert again.to_dict() == first.to_dict() and scorer.start().pair._long is None
    (configuration,) = MeasurementStore(settings["store"]).configurations()
    assert configuration["num_measured"] == len(rows)


def test_rows_on_one_document_are_measured_together(rows, settings, tmp_path, monkeypatch):
    real, bunches = passes.measure_samples, []
    monkeypatch.setattr(passes, "measure_samples", lambda pair, x, *rest: bunches.append(x) or real(pair, x, *rest))
    settings["max_length"] = 4096  # rows that are cut lose different parts of their documents
    ds = Dataset.from_list(on_documents(rows, 3, 4))
    out = measure_together(ds, GateauScorer(**settings, store=tmp_path / "s.sqlite"))
    assert [len(bunch) for bunch in bunches] == [4, 4, 4]
    assert all(len({sample.context_key for sample in bunch}) == 1 for bunch in bunches)
    assert_same(out, ds.map(GateauScorer(**settings, store=False), batched=True))


def test_failed_rows_keep_their_reason_and_are_tried_again(rows, settings, tmp_path, monkeypatch):
    real, longest = passes.measure_samples, {"tokens": 0}

    def failing(pair, samples, *rest):
        longest["tokens"] = max([longest["tokens"], *(sample.response_end for sample in samples)])
        fails = passes.MeasureError("made to fail")
        found = real(pair, samples, *rest)
        return [fails if x.response_end == longest["tokens"] else y for x, y in zip(samples, found, strict=True)]

    ds = Dataset.from_list(rows[:4])
    scorer = GateauScorer(**settings | {"max_length": 4096}, store=tmp_path / "s.sqlite")
    with monkeypatch.context() as patch:
        patch.setattr(passes, "measure_samples", failing)
        out, told = measure_together(ds, scorer), []
        assert out["gateau_error"].count("made to fail") == 1 and out["gateau_error"].count(None) == 3
        failed = out[out["gateau_error"].index("made to fail")]
        assert failed["gateau_key"] is not None and failed["gateau_ppl_long"] is None
    assert measure_together(ds, scorer, tell=told.append)["gateau_error"] == [None] * 4
    assert told[0].measured == 1 and told[0].known == {"the store": 3}
    longest["tokens"] = 0
    with pytest.raises(passes.MeasureError, match="Row .*: made to fail; fix or drop it"):
        monkeypatch.setattr(passes, "measure_samples", failing)
        measure_together(
            ds, GateauScorer(**settings | {"max_length": 500}, store=tmp_path / "t.sqlite", on_error="raise")
        )


def test_rows_that_are_gone_from_the_store_are_told(rows, settings, tmp_path):
    ds, scorer = Dataset.from_list(rows[:2]), GateauScorer(**settings, store=tmp_path / "s.sqlite")
    table = survey_rows(ds, scorer)
    assert not are_kept(table, scorer.start()).any()
    with pytest.raises(StoreError, match="2 measured rows are gone from the store"):
        measured_rows(ds, table, scorer)


def surveyed(contexts, tokens, keys=None) -> Dataset:
    """A survey of rows with 2 tokens of prefix, 3 of instruction and 5 of response."""
    columns = dict.fromkeys(ABOUT, [None] * len(tokens)) | {
        "key": keys or [f"{i:032}" for i in range(len(tokens))],
        "context_key": contexts,
        "num_prefix_tokens": [2] * len(tokens),
        "num_tokens": tokens,
        "gateau_num_context_tokens": [n - 10 for n in tokens],
        "gateau_num_response_tokens": [5] * len(tokens),
    }
    return Dataset.from_dict(columns, features=Features({name: feature_of(kind) for name, kind in ABOUT.items()}))


def test_work_in_bunches_counts_a_shared_context_once():
    """By hand: 18 rows of 100 tokens on one context, of which 92 come before the instruction, go in bunches of 16 and 2."""
    assert MOST_TOGETHER == 16
    contexts = ["a", "b"] + ["a"] * 17
    work = Work.of(surveyed(contexts, [100, 50] + [100] * 17), np.zeros(19, bool))
    assert work.weights.tolist() == [100 + 15 * 8, 100 + 8, 50]
    assert work.places.tolist() == [0, *range(2, 19), 1]
    assert [work.places[work.rows([b])].tolist() for b in (1, 2)] == [[17, 18], [1]]
    assert list(work.parts([0, 1, 2], 250)) == [[0, *range(2, 17)], [17, 18, 1]]
    row = work.shapes(np.array([18]))[0]
    assert row == RowShape(2, 40, 3, 5, follows=False) and work.shapes(np.array([1]))[0].follows


def test_work_is_one_row_of_each_key_that_is_not_kept():
    table = surveyed(["a", "b", "a", "c", "d"], [30, 40, 30, 50, 60], ["k", "l", "k", "m", None])
    work = Work.of(table, np.array([False, False, False, True, False]))
    assert work.keys.tolist() == [b"k", b"l"] and work.places.tolist() == [0, 1]
    nothing = Work.of(table, np.ones(5, bool))
    assert not len(nothing.weights) and not len(nothing.rows([])) and list(nothing.parts([], 10)) == []
