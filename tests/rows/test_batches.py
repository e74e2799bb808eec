"""Shapes of batches by readers: rows whose turns have unequal keys, tools and arguments of the template come out as they went in.

`datasets` types such turns as `List(Json)`. Whoever is handed Arrow gets strings, whoever is handed numpy gets arrays.
"""

import json

import pyarrow as pa
import pytest
from datasets import Dataset, List, load_dataset

from hf_gateau.rows.batches import BatchShape
from hf_gateau.rows.conversations import ROW_FORMS, content_hash, read_turns
from hf_gateau.rows.decoding import plain
from hf_gateau.rows.samples import build_sample
from tests.rows.shapes import SHAPES, TEMPLATES, marked_tokenizer


FORMATS = (None, "arrow", "numpy", "pandas", "torch")
COLUMNS = {"gateau_num_response_tokens": "int64", "gateau_error": "string", "gateau_content_hash": "string"}
NAMES = ("one pair", "two calls in turn", "a call answered", "thoughts", "enable_thinking", "date_string")
ROWS = [
    {"id": name, "tools": None, "chat_template_kwargs": {}, "size": i} | SHAPES[name] for i, name in enumerate(NAMES)
]


@pytest.fixture(scope="module")
def tokenizer():
    found = marked_tokenizer()
    found.chat_template = TEMPLATES["qwen3_5_nothink"]
    return found


@pytest.fixture(scope="module")
def file(tmp_path_factory) -> str:
    path = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return str(path)


def measured(row: dict, tokenizer) -> dict:
    try:
        found = {"gateau_num_response_tokens": len(build_sample(row, tokenizer).response), "gateau_error": None}
    except ValueError as error:
        found = {"gateau_num_response_tokens": None, "gateau_error": str(error)}
    return found | {"gateau_content_hash": content_hash(row)}


class Measure:
    """What scorers do with a batch, without a model."""

    def __init__(self, tokenizer):
        self.tokenizer = tokenizer

    def __call__(self, batch):
        shape = BatchShape(batch)
        return shape.pack([measured(row, self.tokenizer) for row in shape.rows], COLUMNS)


def checked(rows, tokenizer) -> None:
    rows = list(rows)
    assert [{name: row[name] for name in COLUMNS} for row in rows] == [measured(row, tokenizer) for row in ROWS]
    assert all(row["gateau_error"] is None for row in rows)
    for row, own in zip(rows, ROWS, strict=True):  # what was there is there still
        assert (row["id"], row["size"]) == (own["id"], own["size"])
        assert content_hash(plain(row)) == content_hash(own)


@pytest.mark.parametrize("batched", [True, False])
@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("reader", ["file", "list", "stream", "stream of a list"])
def test_turns_of_unequal_keys_in_every_format_of_datasets(reader, kind, batched, file, tokenizer):
    ds = load_dataset("json", data_files=file, split="train", streaming=reader == "stream")
    if "list" in reader:
        ds = Dataset.from_list(ROWS, on_mixed_types="use_json")
    assert isinstance(ds.features["messages"], List) and ds.features["messages"].feature.__class__.__name__ == "Json"
    ds = ds.to_iterable_dataset() if reader == "stream of a list" else ds
    options = {} if "stream" in reader else {"load_from_cache_file": False}
    ds = ds.with_format(kind).map(
        Measure(tokenizer), batched=batched, **({"batch_size": 4} if batched else {}), **options
    )
    checked(ds.with_format(None), tokenizer)


def table_of(file: str) -> pa.Table:
    return load_dataset("json", data_files=file, split="train").data.table


@pytest.mark.parametrize("typed", [True, False])
def test_arrow_tables_with_and_without_the_type_of_json(typed, file, tokenizer, tmp_path):
    """Ray Data's tables; Parquet that another tool wrote knows the strings alone."""
    import pyarrow.parquet as pq

    table = table_of(file)
    if not typed:
        columns = {"id": table["id"], "size": table["size"]}
        columns["messages"] = [[json.dumps(turn) for turn in row["messages"]] for row in ROWS]
        columns |= {name: [json.dumps(row[name]) for row in ROWS] for name in ("tools", "chat_template_kwargs")}
        pq.write_table(pa.table(columns), tmp_path / "x.parquet")
        table = pq.read_table(tmp_path / "x.parquet")
    out = Measure(tokenizer)(table)
    assert out.column_names == [*table.column_names, *COLUMNS] and out["messages"] == table["messages"]
    found = [dict(zip(COLUMNS, values, strict=True)) for values in zip(*(out[name].to_pylist() for name in COLUMNS))]  # noqa: B905
    assert found == [measured(row, tokenizer) for row in ROWS]
    assert [read_turns(row) for row in BatchShape(table).rows] == [row["messages"] for row in ROWS]


def test_text_of_a_column_of_mixed_types_is_the_text_itself():
    """`datasets` stores a column of strings and numbers as JSON, quotes and all."""
    ds = Dataset.from_list(
        [{"context": "c", "response": "e"}, {"context": "d", "response": 5}], on_mixed_types="use_json"
    )
    assert ds.features["response"].__class__.__name__ == "Json"
    assert BatchShape(ds.with_format("arrow")[:]).rows == ds.to_list()


def test_missing_cells_of_pandas_are_null():
    import pandas as pd

    frame = pd.DataFrame({"id": ["a", None], "context": ["c", float("nan")], "size": [1, 2]})
    assert BatchShape(frame).rows == [{"id": "a", "context": "c"}, {"id": None, "context": None}]
    out = BatchShape(frame).pack([{"gateau_error": None}] * 2, {"gateau_error": "string"})
    assert out.column_names == ["id", "context", "size", "gateau_error"] and out["context"].to_pylist() == ["c", None]


def test_what_is_no_batch_is_refused():
    with pytest.raises(TypeError, match="A batch is a list; give a mapping of columns"):
        BatchShape([1])


TURNS = {
    "messages": [{"role": "user", "content": "A text.\n\nWho?"}, {"role": "assistant", "content": "Ida."}],
    "conversations": [{"from": "human", "value": "A text.\n\nWho?"}, {"from": "gpt", "value": "Ida."}],
    "prompt": [{"role": "user", "content": "A text.\n\nWho?"}],
    "completion": [{"role": "assistant", "content": "Ida."}],
    "context": "A text.",
    "instruction": "Who?",
    "response": "Ida.",
}


@pytest.mark.parametrize("form", ROW_FORMS, ids=lambda form: form[0])
def test_one_row_of_every_form_is_told_from_a_batch(form):
    row = {name: TURNS[name] for name in form}
    alone, batch = BatchShape(row), BatchShape({name: [value] for name, value in row.items()})
    assert alone.is_row and not batch.is_row and alone.rows == batch.rows == [row]


def test_one_row_of_strings_of_prompt_and_completion():
    row = {"prompt": "A text.\n\nWho?", "completion": "Ida."}
    assert BatchShape(row).is_row and BatchShape(row).rows == [row]
    assert not BatchShape({name: [value] for name, value in row.items()}).is_row
