"""Known measurements are taken, new rows are measured alone: the same as measuring everything."""

import json

import pytest
from datasets import Dataset

from hf_gateau import GateauScorer, rank
from hf_gateau.hub.reuse import known_places, reuse_scores
from hf_gateau.hub.scored import compact, rows_digest
from hf_gateau.records import attach_record, find_record
from hf_gateau.rows.batches import COLUMNS
from tests.measured import SETTINGS
from tests.tiny_models import make_model


@pytest.fixture(scope="module")
def scored(scorer, rows) -> Dataset:
    """The first eight of twelve rows, in another order, among them one that cannot be measured; ranked, with a record."""
    order = [5, 0, 7, 2, 4, 1, 6, 3]
    broken = rows[9] | {"messages": [{"role": "user", "content": "no answer"}]}
    ds = rank(Dataset.from_list([rows[i] for i in order] + [broken]).map(scorer, batched=True))
    attach_record(ds, "measuring", {"long": {"model": "org/long"}})
    return ds


@pytest.fixture(scope="module")
def everything(scorer, rows) -> Dataset:
    return compact(Dataset.from_list(rows).map(scorer, batched=True))


class Counted:
    """Measures, and remembers which rows it was handed."""

    def __init__(self, scorer):
        self.scorer, self.seen = scorer, []

    def __call__(self, ds: Dataset) -> Dataset:
        self.seen += ds["id"]
        return ds.map(self.scorer, batched=True, load_from_cache_file=False)


def test_equals_measuring_everything(scorer, scored, rows, everything):
    """The slow way is the oracle: every row measured anew."""
    counted = Counted(scorer)
    out = reuse_scores(Dataset.from_list(rows), scored, scorer, measure=counted)
    assert counted.seen == [row["id"] for row in rows[8:]]
    assert out.remove_columns(list(COLUMNS)).to_list() == rows
    assert out.features == everything.features | Dataset.from_list(rows).features
    assert rows_digest(out) == rows_digest(everything)
    assert out._indices is None  # no mapping that would have to be copied before columns are added
    assert rank(out)["gateau_rank"] == rank(everything)["gateau_rank"]


def test_default_way_of_measuring(scorer, scored, rows, everything):
    assert rows_digest(reuse_scores(Dataset.from_list(rows), scored, scorer)) == rows_digest(everything)


def test_known_rows_need_no_model(scored, rows, everything):
    """Whatever their order and number, and whatever else is in them."""
    order = [3, 3, 0, 7, 1, 3]
    ds = Dataset.from_list([rows[i] | {"other": k} for k, i in enumerate(order)])
    out = reuse_scores(ds, scored)
    assert out["other"] == list(range(6)) and out["id"] == [rows[i]["id"] for i in order]
    assert rows_digest(out) == rows_digest(everything.select(order))
    measured = reuse_scores(ds.select([0]), scored, measure=lambda _: pytest.fail("measures"))
    assert measured["gateau_key"] == everything.select([3])["gateau_key"]


def test_new_rows_alone(scorer, scored, rows, everything):
    ds = Dataset.from_list([rows[11], rows[8], rows[11]])
    counted = Counted(scorer)
    assert rows_digest(reuse_scores(ds, scored, scorer, measure=counted)) == rows_digest(
        everything.select([11, 8, 11])
    )
    assert counted.seen == [rows[i]["id"] for i in (11, 8, 11)]


def test_new_and_known_in_turn(scorer, scored, rows, everything):
    order = [9, 0, 10, 10, 5, 8, 0, 11]
    ds = Dataset.from_list([rows[i] for i in order])
    counted = Counted(scorer)
    out = reuse_scores(ds, scored, scorer, measure=counted)
    assert counted.seen == [rows[i]["id"] for i in (9, 10, 10, 8, 11)]
    assert rows_digest(out) == rows_digest(everything.select(order))
    shuffled = reuse_scores(ds.select([7, 6, 5, 4, 3, 2, 1, 0]), scored, scorer)  # behind an index mapping
    assert rows_digest(shuffled) == rows_digest(everything.select(order[::-1]))


def test_rows_with_an_error_are_measured_anew(scorer, scored, rows):
    broken = rows[9] | {"messages": [{"role": "user", "content": "no answer"}]}
    ds = Dataset.from_list([rows[0], broken])
    assert known_places(ds, scored) == [1, None]
    counted = Counted(scorer)
    out = reuse_scores(ds, scored, scorer, measure=counted)
    assert counted.seen == [broken["id"]]
    assert out["gateau_error"][0] is None and out["gateau_error"][1] == scored[8]["gateau_error"] is not None
    with pytest.raises(ValueError, match="1 of 2 rows are new"):
        reuse_scores(ds, scored)


def test_a_row_that_once_failed_is_known_where_it_was_measured_too(scored, rows):
    failed = scored.select([0]).map(lambda row: {"gateau_error": "out of memory", "gateau_ppl_long": None})
    from datasets import concatenate_datasets

    for order in ([scored, failed], [failed, scored]):
        both = concatenate_datasets(order)
        out = reuse_scores(Dataset.from_list([rows[5]]), both)
        assert out["gateau_error"] == [None] and out["gateau_ppl_long"][0] == scored[0]["gateau_ppl_long"]


def test_an_edited_row_is_new(scored, rows):
    edited = json.loads(json.dumps(rows[0]))
    edited["messages"][1]["content"] += " indeed"
    assert known_places(Dataset.from_list([edited, rows[0]]), scored) == [None, 1]


def test_measurements_that_are_there_are_replaced(scorer, scored, rows, everything):
    """`ds` may be measured and ranked itself, in another way: nothing of that stays."""
    other = rank(Dataset.from_list(rows).map(scorer, batched=True), method="longest")
    other = other.map(lambda row: {"gateau_ppl_long": -1.0, "gateau_key": "x"})
    attach_record(other, "origin", {"repo_id": "org/source"})
    counted = Counted(scorer)
    out = reuse_scores(other, scored, scorer, measure=counted)
    assert set(out.column_names) == {*rows[0], *COLUMNS} and len(counted.seen) == 4
    assert rows_digest(out) == rows_digest(everything)
    assert find_record(out, "origin") == {"repo_id": "org/source"}
    assert find_record(out, "measuring") == {"long": {"model": "org/long"}}


def test_without_a_scorer_new_rows_are_refused(scored, rows):
    with pytest.raises(ValueError, match="4 of 12 rows are new to the scored data, and no pair of models is named"):
        reuse_scores(Dataset.from_list(rows), scored)


def test_another_way_of_measuring_is_refused_before_it_measures(scored, rows, tiny_model, tokenizer, tmp_path):
    def fail(_):
        pytest.fail("measures")

    other = GateauScorer(long_model=tiny_model, store=False, **(SETTINGS | {"segment_length": 32}))
    with pytest.raises(ValueError, match=r"measured in another way \([0-9a-f]{16}\) than the 4 new ones would be"):
        reuse_scores(Dataset.from_list(rows), scored, other, measure=fail)
    model = make_model("llama", tmp_path / "model", tokenizer, scale=0.5)
    other = GateauScorer(long_model=model, store=False, **SETTINGS)
    with pytest.raises(ValueError, match="measured in another way"):
        reuse_scores(Dataset.from_list(rows), scored, other, measure=fail)
    reuse_scores(Dataset.from_list(rows[:8]), scored, other, measure=fail)  # nothing is new, so it is not asked


@pytest.mark.parametrize("name", ["gateau_content_hash", "gateau_error", "gateau_key"])
def test_scored_rows_without_what_is_needed_are_refused(name, scored, rows):
    with pytest.raises(ValueError, match=rf"lack the column\(s\) {name}; measure them again"):
        reuse_scores(Dataset.from_list(rows), scored.remove_columns(name))


def test_rows_without_text_are_refused(scored):
    with pytest.raises(ValueError, match="none of the columns messages"):
        reuse_scores(Dataset.from_dict({"id": ["a"]}), scored)


def test_scored_rows_as_they_are_loaded(scorer, scored, rows, everything, tmp_path):
    """Narrow types, through a file, as `load_scored` gives them."""
    from datasets import concatenate_datasets, load_dataset

    pushed = concatenate_datasets([scored.select_columns(["messages"]), compact(scored)], axis=1)
    pushed.to_parquet(tmp_path / "a.parquet")
    loaded = load_dataset("parquet", data_files=str(tmp_path / "a.parquet"), split="train", cache_dir=str(tmp_path))
    out = reuse_scores(Dataset.from_list(rows), loaded, scorer)
    assert rows_digest(out) == rows_digest(everything)
