"""A scored dataset as others get it: the digest knows the rows however they are stored, and any change of them."""

import hashlib
import json
import struct

import numpy as np
import pyarrow as pa
import pytest
from datasets import Dataset, Features, List, Value, concatenate_datasets, load_dataset

from hf_gateau.hub.dataset_card import COLUMN_TEXTS
from hf_gateau.hub.scored import (
    SCHEMA_VERSION,
    ScoredRecord,
    changed_rows,
    compact,
    compact_type,
    content_hashes,
    gateau_columns,
    rows_digest,
    split_record,
)
from hf_gateau.ranking.columns import DERIVED_COLUMNS
from hf_gateau.rows.batches import COLUMNS, LISTS, VALUE_COLUMNS, feature_of
from hf_gateau.rows.conversations import content_hash


pytestmark = pytest.mark.quick


NAN = float("nan")


def scored_rows() -> list[dict]:
    """Four rows of every column: plain numbers, null, NaN, lists of several lengths, a text of several bytes a character."""
    rows = []
    for i, segments in enumerate(([1.5, 2.25, 3.0], [4.0], None, [])):
        rows.append(
            {
                "messages": [{"role": "user", "content": f"text {i}"}],
                "gateau_ppl_short": [2.5, None, NAN, 1e30][i],
                "gateau_ppl_long": 1.5 + i,
                "gateau_ppl_no_context": 0.1,
                "gateau_segment_ppl": segments,
                "gateau_segment_attention": [[0.5, None, NAN], [0.25], None, []][i],
                "gateau_segment_heads": [[0.5, -0.25], [0.0], None, []][i],
                "gateau_num_far_segments": [2, 0, None, 0][i],
                "gateau_token_nll_long": [[0.5, 1.25], [3.0], None, []][i],  # halves have these exactly
                "gateau_token_nll_short": [[1.5, 2.25], [4.0], None, []][i],
                "gateau_token_nll_no_context": [[2.5, 3.25], [5.0], None, []][i],
                "gateau_token_nll_far": [[0.75, 2.0], [], None, []][i],
                "gateau_token_nll_near": [[1.0, 2.5], [4.5], None, []][i],
                "gateau_token_far_segment": [[1, 0], [], None, []][i],
                "gateau_token_text": ["Só 😀", "So", None, ""][i],
                "gateau_token_starts": [[0, 3], [0], None, []][i],
                "gateau_num_context_tokens": [384, 128, None, 0][i],
                "gateau_num_response_tokens": 7 * i,
                "gateau_truncated": [True, False, None, False][i],
                "gateau_num_cut_tokens": [3, 0, None, 0][i],
                "gateau_context_rule": ["last paragraph", "headings", None, ""][i],
                "gateau_context_span": [[0, 0, 0, 1 << 25], [1, 7, 3, 9], None, []][i],
                "gateau_segment_starts": [[0, (1 << 24) + 1], [0], None, None][i],
                "gateau_screened": [False, True, None, None][i],
                "gateau_error": [None, None, "too long: é\U0001f600", ""][i],
                "gateau_key": f"0123456789abcdef:{i}" if i != 2 else None,
                "gateau_content_hash": f"{i:016x}",
                "gateau_hmp": 0.1 * i,
                "gateau_cas": [-1.0, 0.0, NAN, 1.0][i],
                "gateau_score": [0.3, 0.2, None, 0.1][i],
                "gateau_rank": [1, 2, None, 3][i],
                "gateau_percentile": [100.0, 66.5, None, 33.0][i],
                "gateau_note": [None, "note", None, "a context of one segment"][i],
            }
        )
    return rows


def wide_features() -> Features:
    """The types that measuring and ranking give; narrower ones are pushed."""
    features = {"messages": List({"role": Value("string"), "content": Value("string")})}
    for name, kind in COLUMNS.items():
        features[name] = feature_of(kind)
    for name in DERIVED_COLUMNS:
        features[name] = Value({"gateau_rank": "int64", "gateau_note": "string"}.get(name, "float64"))
    return Features(features)


def scored_dataset(rows=None) -> Dataset:
    return Dataset.from_list(scored_rows() if rows is None else rows, features=wide_features())


def obvious_digest(rows: list[dict]) -> str:
    """The digest, said the slow way: value by value, column by column, in the order of the columns' names in the code."""
    whole = hashlib.sha256()
    for name in (*COLUMNS, *DERIVED_COLUMNS):
        if name not in rows[0]:
            continue
        part = hashlib.sha256()
        for row in rows:
            value = row[name]
            if COLUMNS.get(name) in ("list", "nlls"):
                part.update(struct.pack("<q", -1 if value is None else len(value)))
                for x in value or []:
                    part.update(struct.pack("<f", NAN if x is None else x))
            elif COLUMNS.get(name) == "places":
                part.update(struct.pack("<q", -1 if value is None else len(value)))
                part.update(b"".join(struct.pack("<i", x) for x in value or []))
            elif COLUMNS.get(name) == "string" or name == "gateau_note":
                part.update(b"-" if value is None else f"{len(value.encode())}:".encode() + value.encode())
            else:
                # The columns that are pushed in 4 bytes are whole numbers alone.
                part.update(struct.pack("<d", NAN if value is None else float(value)))
        whole.update(f"{name} {part.hexdigest()}\n".encode())
    return whole.hexdigest()


# Of `scored_rows`, made by the first version that pushed data; what it stands for must be read for ever.
NEW = ["gateau_num_cut_tokens", "gateau_context_rule", "gateau_context_span", "gateau_segment_starts"]
NEW += [
    "gateau_screened",
    "gateau_segment_heads",
    "gateau_num_far_segments",
    *(x for x in COLUMNS if x.startswith("gateau_token_")),
]
GOLDEN = "ad4cb3056aadf1b8d65b57fa168000d12254e143c213d1190a52c01b7df386aa"


def test_digest_is_that_of_the_first_version():
    first = [{name: row[name] for name in row if name not in NEW} for row in scored_rows()]
    assert rows_digest(scored_dataset().remove_columns(NEW)) == obvious_digest(first) == GOLDEN
    assert rows_digest(scored_dataset()) == obvious_digest(scored_rows()) != GOLDEN


def test_digest_does_not_depend_on_how_rows_are_held(tmp_path):
    ds = scored_dataset()
    digest = rows_digest(ds)
    assert rows_digest(concatenate_datasets([ds.select([0]), ds.select([1, 2]), ds.select([3])])) == digest
    assert rows_digest(ds.select([3, 2, 1, 0]).select([3, 2, 1, 0])) == digest  # an index mapping, not a slice
    assert rows_digest(ds.select(range(4)).flatten_indices()) == digest
    assert rows_digest(ds.with_format("numpy")) == digest == rows_digest(ds.with_format("torch"))
    assert rows_digest(ds.add_column("other", [1, 2, 3, 4]).remove_columns("messages")) == digest
    names = ds.column_names
    assert rows_digest(ds.select_columns(names[::-1])) == digest
    ds.to_parquet(tmp_path / "a.parquet", batch_size=2)
    again = load_dataset("parquet", data_files=str(tmp_path / "a.parquet"), split="train", cache_dir=str(tmp_path))
    assert rows_digest(again) == digest
    ds.save_to_disk(tmp_path / "disk", num_shards=3)
    assert rows_digest(Dataset.load_from_disk(tmp_path / "disk")) == digest
    lines = [json.dumps(row).replace("NaN", "null") for row in ds.to_list()]
    (tmp_path / "a.jsonl").write_text("\n".join(lines), encoding="utf-8")  # types become those of the values
    again = load_dataset("json", data_files=str(tmp_path / "a.jsonl"), split="train", cache_dir=str(tmp_path))
    assert rows_digest(again) == digest


@pytest.mark.parametrize("batch", [1, 3, 4096])
def test_digest_does_not_depend_on_batches(batch, monkeypatch):
    ds = concatenate_datasets([scored_dataset()] * 5)
    whole = rows_digest(ds)
    real = Dataset.iter
    monkeypatch.setattr(Dataset, "iter", lambda self, _: real(self, batch))
    assert rows_digest(ds) == whole == obvious_digest(scored_rows() * 5)


def test_digest_over_more_rows_than_a_batch():
    rows = [dict(row, gateau_ppl_long=float(i)) for i, row in enumerate(scored_rows() * 1100)]
    assert rows_digest(scored_dataset(rows)) == obvious_digest(rows)


def test_digest_of_compact_columns_is_that_of_the_rows():
    """Lists are hashed in the 4 bytes that are pushed, so narrowing them changes nothing; a value between two floats does."""
    ds = scored_dataset()
    measured = ds.remove_columns(list(DERIVED_COLUMNS))
    assert rows_digest(compact(ds)) == rows_digest(measured) == rows_digest(compact(compact(ds)))
    rows = scored_rows()
    rows[0]["gateau_segment_ppl"] = [0.1, 1 / 3, 2.0]
    assert rows_digest(compact(scored_dataset(rows))) == rows_digest(
        scored_dataset(rows).remove_columns(list(DERIVED_COLUMNS))
    )
    rows[0]["gateau_segment_ppl"] = [0.1 + 1e-12, 1 / 3, 2.0]  # beyond 7 digits: the same on the Hub
    narrow = rows_digest(scored_dataset(rows))
    rows[0]["gateau_segment_ppl"] = [0.1 + 1e-6, 1 / 3, 2.0]
    assert rows_digest(scored_dataset(rows)) != narrow


def without_nan(value) -> str:
    """What is to be told apart: null and NaN are not."""
    return json.dumps(value).replace("NaN", "null")


FIRST_OF_A_KIND = set({kind: name for name, kind in reversed(COLUMNS.items())}.values())


@pytest.mark.parametrize(
    "name",
    [x if x in FIRST_OF_A_KIND else pytest.param(x, marks=pytest.mark.slow) for x in (*COLUMNS, *DERIVED_COLUMNS)],
)
def test_digest_changes_with_every_value(name):
    """One value, null for a value, an item more or less or another, in every column and row."""
    digest, kind = rows_digest(scored_dataset()), COLUMNS.get(name) or wide_features()[name].dtype
    for i, row in enumerate(scored_rows()):
        value = row[name]
        if kind in ("list", "nlls"):
            others = [None, [], [1.0], [*(value or []), 1.0], (value or [])[:-1], [*(value or [])[:-1], 9.0]]
            others += [[None] * len(value)] if value else []
        elif kind == "places":
            others = [None, [], [1], [*(value or []), 1], (value or [])[:-1], [*(value or [])[:-1], 1 << 24]]
        elif kind == "bool":
            others = [None, True, False]
        elif kind == "string":
            others = [None, "", "x", (value or "") + " ", (value or "-")[:-1]]
        elif kind == "int64":
            others = [None, 1 + (value or 0), -(value or 1)]
        else:
            others = [None, 5.0, float(np.nextafter(value, np.inf)) if value else 1e-300]
        for other in others:
            rows = scored_rows()
            rows[i][name] = other
            same = without_nan(value) == without_nan(other)
            assert (rows_digest(scored_dataset(rows)) == digest) == same, (i, other)


def test_digest_changes_with_the_order_and_the_columns():
    ds = scored_dataset()
    digest = rows_digest(ds)
    found = {digest, rows_digest(ds.select([0, 1, 2])), rows_digest(ds.select([1, 0, 2, 3]))}
    found |= {rows_digest(ds.remove_columns(name)) for name in gateau_columns(ds)}
    found |= {rows_digest(concatenate_datasets([ds, ds.select([3])]))}
    found |= {rows_digest(ds.rename_columns({"gateau_hmp": "gateau_cas", "gateau_cas": "gateau_hmp"}))}
    assert len(found) == 1 + 2 + len(COLUMNS) + len(DERIVED_COLUMNS) + 2


def test_digest_tells_where_a_list_or_a_text_ends():
    rows = scored_rows()
    rows[0]["gateau_segment_ppl"], rows[1]["gateau_segment_ppl"] = [1.0], [2.0, 3.0]
    rows[0]["gateau_note"], rows[1]["gateau_note"] = "a", "bc"
    moved = scored_rows()
    moved[0]["gateau_segment_ppl"], moved[1]["gateau_segment_ppl"] = [1.0, 2.0], [3.0]
    moved[0]["gateau_note"], moved[1]["gateau_note"] = "ab", "c"
    for name in ("gateau_segment_ppl", "gateau_note"):
        assert len({rows_digest(scored_dataset(x).select_columns([name])) for x in (rows, moved)}) == 2


def test_null_is_nan_and_what_hides_under_a_null_does_not_count():
    rows = scored_rows()
    for row in rows:
        for name, value in row.items():
            row[name] = None if value is not None and value != value else value
    rows[0]["gateau_segment_attention"] = [0.5, NAN, None]
    assert rows_digest(scored_dataset(rows)) == rows_digest(scored_dataset())
    lists = pa.ListArray.from_arrays(pa.array([0, 2, 4]), pa.array([1.0, 2.0, 3.0, 4.0]), mask=pa.array([True, False]))
    hidden, plain = pa.table({"gateau_segment_ppl": lists}), pa.table({"gateau_segment_ppl": [None, [3.0, 4.0]]})
    assert rows_digest(Dataset(hidden)) == rows_digest(Dataset(plain))


@pytest.mark.parametrize("name", ["gateau_ppl_long", "gateau_segment_ppl"])
def test_every_nan_is_the_same(name):
    """What 0/0 gives on x86 has another sign than `numpy.nan`."""
    values = [pa.array(np.array([0xFFF8000000000000], dtype="u8").view("f8")), pa.array([NAN])]
    values = [pa.ListArray.from_arrays([0, 1], x) for x in values] if "segment" in name else values
    assert len({rows_digest(Dataset(pa.table({name: x}))) for x in values}) == 1


def test_digest_of_nothing():
    empty = scored_dataset().select([])
    assert rows_digest(empty) == rows_digest(Dataset.from_dict({name: [] for name in wide_features()}))
    assert rows_digest(empty) != rows_digest(empty.remove_columns("gateau_note"))


# Compact columns


def test_compact_types_and_values():
    ds = scored_dataset()
    out = compact(ds)
    assert out.column_names == list(COLUMNS) and len(out) == 4
    kinds = {name: out.features.arrow_schema.field(name).type for name in COLUMNS}
    assert kinds == {name: compact_type(name) for name in COLUMNS}
    assert kinds["gateau_segment_ppl"] == kinds["gateau_segment_attention"] == pa.list_(pa.float32())
    assert kinds["gateau_num_context_tokens"] == pa.int32() and kinds["gateau_ppl_long"] == pa.float64()
    assert kinds["gateau_truncated"] == pa.bool_() and kinds["gateau_error"] == pa.string()
    np.testing.assert_equal(
        out.to_list(), [{name: row[name] for name in COLUMNS} for row in scored_dataset().to_list()]
    )
    assert compact(out).features == out.features
    np.testing.assert_equal(compact(out).to_list(), out.to_list())


def test_compact_takes_what_is_there_in_its_own_order_from_behind_an_index_and_a_format():
    ds = (
        scored_dataset()
        .select_columns(["messages", "gateau_error", "gateau_ppl_short"])
        .select([3, 0])
        .with_format("np")
    )
    out = compact(ds)
    assert out.column_names == ["gateau_ppl_short", "gateau_error"] and out.format["type"] is None
    assert out.to_list() == [
        {"gateau_ppl_short": 1e30, "gateau_error": ""},
        {"gateau_ppl_short": 2.5, "gateau_error": None},
    ]


@pytest.mark.parametrize("kind", [None, "float32", "string", "bool", "int64", "list"])
def test_compact_of_columns_without_a_value(kind):
    """A column that is null throughout may come in any type, such as null's own after JSON."""
    kind = (
        pa.list_(pa.float64())
        if kind == "list"
        else pa.null()
        if kind is None
        else getattr(pa, {"bool": "bool_"}.get(kind, kind))()
    )
    castable = [name for name in COLUMNS if kind == pa.null() or (pa.types.is_list(kind) == (COLUMNS[name] in LISTS))]
    ds = Dataset(pa.table({name: pa.array([None, None], kind) for name in castable}))
    out = compact(ds)
    assert out.features.arrow_schema.types == [compact_type(name) for name in castable]
    assert rows_digest(ds) == rows_digest(out) and set(out[0].values()) == {None}


def test_compact_of_no_row():
    out = compact(scored_dataset().select([]))
    assert len(out) == 0 and out.features.arrow_schema.types == [compact_type(name) for name in COLUMNS]


def test_compact_refuses_what_does_not_fit():
    rows = scored_rows()
    rows[0]["gateau_num_context_tokens"] = 2**40
    with pytest.raises(pa.ArrowInvalid, match="not in range"):
        compact(scored_dataset(rows))


# Texts


def texts_dataset() -> Dataset:
    rows = [{"messages": [{"role": "user", "content": f"text {i}"}], "id": i} for i in range(600)]
    return Dataset.from_list([row | {"gateau_content_hash": content_hash(row)} for row in rows])


def test_content_hashes_in_order_over_batches():
    ds = texts_dataset()
    assert list(content_hashes(ds)) == ds["gateau_content_hash"][:] and len(set(content_hashes(ds))) == 600
    assert list(content_hashes(ds.with_format("numpy", columns=["id"]))) == ds["gateau_content_hash"][:]
    with pytest.raises(ValueError, match="none of the columns messages, conversations, .* but .'id'"):
        list(content_hashes(ds.select_columns(["id"])))


def test_changed_rows():
    ds = texts_dataset()
    assert changed_rows(ds) == [] and changed_rows(ds.remove_columns("gateau_content_hash")) == []

    def edit(row, i):
        return {"messages": [{"role": "user", "content": "other"}]} if i in (0, 299, 599) else {}

    changed = ds.map(edit, with_indices=True)
    assert changed_rows(changed) == [0, 299, 599]
    nulls = changed.map(lambda row, i: {"gateau_content_hash": None} if i == 299 else {}, with_indices=True)
    assert changed_rows(nulls) == [0, 599]  # a row that nobody has hashed has not changed
    assert changed_rows(ds.map(lambda row: {"id": -1})) == []  # not what is measured
    assert changed_rows(changed.select([1, 299, 0])) == [1, 2]


# The record


def test_split_record_counts():
    found = split_record(scored_dataset(), {"method": "gateau"})
    assert found == {
        "num_rows": 4,
        "num_measured": 2,
        "errors": {"too long: é\U0001f600": 1, "": 1},
        "cut": {"rows": 1, "of": 3, "tokens": 3, "before": 387},
        "ranking": {"method": "gateau"},
        "digest": rows_digest(scored_dataset()),
    }
    earlier = split_record(scored_dataset().remove_columns(NEW), None)
    assert earlier["digest"] == GOLDEN and earlier["cut"] == {"rows": 1, "of": 3, "tokens": None, "before": None}
    assert split_record(scored_dataset().remove_columns("gateau_error"), None)["num_measured"] == 4
    rows = [dict(row) for row in scored_rows() * 30]
    for i, row in enumerate(rows):
        row["gateau_error"] = f"reason {i}" if i < 50 else "often" if i < 60 else None
    errors = split_record(scored_dataset(rows), None)["errors"]
    assert len(errors) == 21 and errors["often"] == 10 and errors["other reasons"] == 31 and sum(errors.values()) == 60


def test_record_is_read_back():
    record = ScoredRecord({"train": {"num_rows": 1}}, {"top10": {"train": {"record": {}, "digest": "x"}}}, "0.1.0")
    text = record.to_json()
    assert text.isascii() and text.endswith("}\n") and ScoredRecord.from_json(text, "x") == record
    later = json.loads(text) | {"unknown": 1}  # of a later version with the same form
    assert ScoredRecord.from_json(json.dumps(later), "x") == record
    assert ScoredRecord.from_json('{"schema_version": 1, "splits": {"a": {}}}', "x").selections == {}


@pytest.mark.parametrize(
    "text, message",
    [
        ("", "is no record"),
        ("{", "is no record"),
        ("[]", "is no record"),
        ("null", "is no record"),
        ("5", "is no record"),
        ('"text"', "is no record"),
        ("{}", "is no record"),
        ("NaN", "is no record"),
        ("\x00", "is no record"),
        ("9" * 10_000, "is no record"),
        ('{"schema_version": "1", "splits": {"a": {}}}', "is no record"),
        ('{"schema_version": null, "splits": {"a": {}}}', "is no record"),
        ('{"schema_version": 1.0, "splits": {"a": {}}}', "is no record"),
        (f'{{"schema_version": {SCHEMA_VERSION + 1}, "splits": {{"a": {{}}}}}}', "has schema version 2.*install a newer"),
        (f'{{"schema_version": {10**30}}}', "has schema version 1000.*install a newer"),
        ('{"schema_version": 1}', "is damaged"),
        ('{"schema_version": 1, "splits": {}}', "is damaged"),
        ('{"schema_version": 1, "splits": null}', "is damaged"),
        ('{"schema_version": 1, "splits": []}', "is damaged"),
        ('{"schema_version": 1, "splits": ["train"]}', "is damaged"),
        ('{"schema_version": 1, "splits": "train"}', "is damaged"),
        ('{"schema_version": 1, "splits": {"train": null}}', "is damaged"),
        ('{"schema_version": 1, "splits": {"train": {}, "test": []}}', "is damaged"),
        ('{"schema_version": 1, "splits": {"train": {}}, "selections": null}', "is damaged"),
        ('{"schema_version": 1, "splits": {"train": {}}, "selections": [1]}', "is damaged"),
        ('{"schema_version": 1, "splits": {"train": {}}, "selections": {"top10": 1}}', "is damaged"),
    ],
)  # fmt: skip
def test_damaged_records_are_told(text, message):
    with pytest.raises(ValueError, match=f"^gateau.json of org/data {message}"):
        ScoredRecord.from_json(text, "gateau.json of org/data")


@pytest.mark.parametrize("text", ["[" * 100_000, '{"schema_version": 1, "splits": ' + '{"a":' * 100_000])
def test_records_nested_beyond_all_bounds_are_told(text):
    with pytest.raises(ValueError, match="is no record"):
        ScoredRecord.from_json(text, "gateau.json of org/data")


@pytest.mark.parametrize("selections", ['{"top10": {"train": 1}}', '{"top10": {"train": {"digest": "x"}}}'])
def test_selections_of_another_form_are_told(selections):
    with pytest.raises(ValueError, match="is damaged"):
        ScoredRecord.from_json(
            f'{{"schema_version": 1, "splits": {{"train": {{}}}}, "selections": {selections}}}', "x"
        )


def test_any_cut_of_a_record_is_told():
    text = ScoredRecord({"train": {"num_rows": 1}}, {"top10": {"train": {"digest": "x"}}}, "0.1.0").to_json()
    for end in range(len(text) - 2):
        with pytest.raises(ValueError, match="is no record"):
            ScoredRecord.from_json(text[:end], "x")


def test_the_card_has_words_for_every_column_that_may_be_pushed():
    told = COLUMN_TEXTS.keys()
    assert told >= COLUMNS.keys() | VALUE_COLUMNS.keys() | set(DERIVED_COLUMNS)
