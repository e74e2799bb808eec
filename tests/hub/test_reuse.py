"""Known measurements are taken, new rows are measured alone: the same as measuring everything."""

import json
import shutil

import pytest
from datasets import Dataset, concatenate_datasets

from hf_gateau import GateauScorer, rank
from hf_gateau.hub.reuse import known_places, reuse_scores
from hf_gateau.hub.scored import compact, rows_digest
from hf_gateau.records import attach_record, find_record
from hf_gateau.rows.batches import COLUMNS, LAYOUT_COLUMNS
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


def test_rows_measured_before_the_layout_had_columns_have_null_in_them(scorer, scored, rows):
    missing = [name for name in LAYOUT_COLUMNS if name != "gateau_truncated"]
    out = reuse_scores(Dataset.from_list([rows[0], rows[9]]), scored.remove_columns(missing), scorer)
    assert set(out.column_names) == {*rows[0], *COLUMNS} and len(out) == 2
    assert all(out[0][name] is None for name in missing) and out[0]["gateau_key"] == scored[1]["gateau_key"]
    again = reuse_scores(Dataset.from_list([rows[0]]), scored, scorer)[0]
    assert again["gateau_context_rule"] == "last paragraph" and again["gateau_segment_starts"][0] >= 0


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
    with pytest.raises(ValueError, match="than the 0 new ones would be"):
        reuse_scores(Dataset.from_list(rows[:8]), scored, other, measure=fail)
    reuse_scores(Dataset.from_list(rows[:8]), scored, measure=fail)  # who names no pair takes what there is


def first_half(text: str) -> tuple[int, int]:
    """Another `find_context`, of the planted rows' user turns."""
    return 0, text.index(" . ", len(text) // 2) + 2


def laid_out_otherwise(kind: str, tiny_model: str, folder) -> dict:
    """Settings of a scorer with the same weights that makes other tokens of rows."""
    if kind == "find_context":
        return {"find_context": first_half}
    shutil.copytree(tiny_model, folder)
    template = folder / "chat_template.jinja"
    if kind == "chat template":
        template.write_text("{{ bos_token }}" + template.read_text())
        return {"long_model": str(folder)}
    settings = json.loads((folder / "tokenizer.json").read_text())
    settings["normalizer"] = {"type": "Replace", "pattern": {"String": " the "}, "content": " "}
    (folder / "tokenizer.json").write_text(json.dumps(settings))
    return {"tokenizer": str(folder)}


@pytest.mark.parametrize("on_record", [True, False])
@pytest.mark.parametrize("kind", ["find_context", "chat template", "tokenizer"])
def test_rows_that_were_other_tokens_are_measured_anew(kind, on_record, scorer, rows, tiny_model, tmp_path, caplog):
    """The oracle is measuring everything in the new way; the same with a record and without one."""
    ds = Dataset.from_list(rows[:4])
    scored = ds.map(scorer, batched=True)
    if on_record:
        attach_record(scored, "measuring", scorer.describe())
    settings = {**SETTINGS, "long_model": tiny_model, "store": False}
    other = GateauScorer(**settings | laid_out_otherwise(kind, tiny_model, tmp_path / "other"))
    assert other.describe()["config_key"] == scorer.describe()["config_key"]
    assert other.describe()["layout_key"] != scorer.describe()["layout_key"]
    counted = Counted(other)
    out = reuse_scores(ds, scored, other, measure=counted)
    expected = compact(ds.map(other, batched=True))
    assert rows_digest(out) == rows_digest(expected) and out["gateau_key"] == expected["gateau_key"]
    assert counted.seen == ds["id"] and "4 of 4 known rows are other tokens here" in caplog.text
    assert reuse_scores(ds, scored)["gateau_key"] == scored["gateau_key"]  # no pair, nothing to compare with


def test_rows_that_are_the_same_tokens_in_spite_of_it_are_taken(scorer, rows, tiny_model, tmp_path):
    """A copy of the tokenizer with another byte in it; and rows of both layouts side by side."""
    folder = tmp_path / "copy"
    shutil.copytree(tiny_model, folder)
    with (folder / "tokenizer_config.json").open("a") as stream:
        stream.write("\n")
    settings = {**SETTINGS, "long_model": str(folder), "store": False}
    same, other = GateauScorer(**settings), GateauScorer(**settings, find_context=first_half)
    ds = Dataset.from_list(rows[:3])
    both = concatenate_datasets([ds.map(x, batched=True) for x in (other, scorer, other)])
    counted = Counted(same)
    out = reuse_scores(ds, both, same, measure=counted)
    assert counted.seen == [] and out["gateau_key"] == ds.map(scorer, batched=True)["gateau_key"]


def test_no_row_is_laid_out_where_the_record_says_that_all_were_alike(scorer, scored, rows, monkeypatch):
    ds = scored.select(range(8))
    attach_record(ds, "measuring", scorer.describe())
    monkeypatch.setattr("hf_gateau.hub.reuse.survey_rows", None)
    reuse_scores(Dataset.from_list(rows[:8]), ds, scorer, measure=lambda _: pytest.fail("measures"))


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
