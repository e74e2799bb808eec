"""Columns under other names than ours: renamed, or told which is meant."""

import json

import pytest
from datasets import Dataset, load_dataset

from hf_gateau.cli.arguments import DataArguments
from hf_gateau.cli.rows import load
from hf_gateau.rows.conversations import SampleError, missing_form, read_conversation
from hf_gateau.rows.naming import parse_columns, rename_columns


pytestmark = pytest.mark.quick

THEIRS = {"document": "A text.", "question": "Who?", "answer": "Ida.", "size": 3}
OURS = {"context": "A text.", "instruction": "Who?", "response": "Ida.", "size": 3}
MAPPING = {"context": "document", "instruction": "question", "response": "answer"}
SETTING = "context=document, instruction=question,response=answer"


@pytest.mark.parametrize("is_stream", [False, True])
def test_columns_get_our_names(is_stream):
    ds = Dataset.from_list([THEIRS] * 3)
    renamed = rename_columns(ds.to_iterable_dataset() if is_stream else ds, parse_columns(SETTING))
    assert list(renamed) == [OURS] * 3 and parse_columns(SETTING) == MAPPING
    if not is_stream:
        assert rename_columns(ds, {}) is ds


@pytest.mark.parametrize("is_stream", [False, True])
def test_two_columns_may_have_each_others_names(is_stream):
    ds = Dataset.from_list([{"context": "Who?", "instruction": "A text.", "response": "Ida."}])
    renamed = rename_columns(
        ds.to_iterable_dataset() if is_stream else ds, {"context": "instruction", "instruction": "context"}
    )
    assert list(renamed) == [{"instruction": "Who?", "context": "A text.", "response": "Ida."}]


@pytest.mark.parametrize("streaming", [False, True])
def test_the_command_line_names_columns(streaming, tmp_path):
    file = tmp_path / "rows.jsonl"
    file.write_text(json.dumps(THEIRS) + "\n")
    ds = load(str(file), DataArguments(columns=SETTING), streaming)
    assert next(iter(ds)) == OURS
    with pytest.raises(ValueError, match="names 'documant' for context, .* did you mean 'document'"):
        load(str(file), DataArguments(columns="context=documant"), streaming)


def test_a_stream_whose_columns_nobody_knows(tmp_path):
    (tmp_path / "rows.jsonl").write_text(json.dumps(THEIRS) + "\n")
    ds = load_dataset("json", data_files=str(tmp_path / "rows.jsonl"), split="train", streaming=True).map(
        lambda row: row
    )
    assert next(iter(rename_columns(ds, MAPPING))) == OURS


@pytest.mark.parametrize(
    "setting, reason",
    [
        ("context", "the part 'context'"),
        ("context=", "the part 'context='"),
        (" , ", "give e.g. context=document"),
        ("contxt=document", "did you mean 'context'"),
        ("size=document", "ours are id, messages"),
        ("context=a,context=b", "names 'context' twice"),
        ("context=a,response=a", "names 'a' twice"),
    ],
)
def test_wrong_settings_are_refused(setting, reason):
    with pytest.raises(ValueError, match=reason):
        DataArguments(columns=setting)


def test_a_name_that_is_taken_is_refused():
    ds = Dataset.from_list([OURS | {"document": "Another."}])
    with pytest.raises(ValueError, match="have a column context already"):
        rename_columns(ds, {"context": "document"})
    assert rename_columns(ds, {"context": "context"}) is ds


# Rows of no form


@pytest.mark.parametrize(
    "columns, parts",
    [
        (("context", "instuction", "response"), ("column(s) instruction;", "did you mean instruction by instuction?")),
        (("document", "question", "answer"), ("--columns context=document,instruction=question,response=answer",)),
        (("article", "highlights"), ("context=article,instruction=COLUMN,response=COLUMN",)),
        (("id", "mesages"), ("did you mean messages by mesages?", "--columns messages=mesages")),
        (("prompt", "response"), ("column(s) completion; they have prompt, response",)),
        (("a", "b"), ("column(s) context, instruction, response; they have a, b. A row has one of these forms: messages;",)),
        ((), ("they have no columns",)),
        (("gateau_score", *(f"c{i}" for i in range(40))), ("c11, ....",)),
    ],
)  # fmt: skip
def test_what_is_missing_and_what_may_be_meant(columns, parts):
    found = missing_form(columns)
    for part in parts:
        assert part in found, found
    said = (
        "the rows have no messages; " if "mesages" in columns else "the rows have neither messages nor the column(s) "
    )
    assert found.startswith(said) and len(found) < 500


def test_rows_of_a_form_miss_nothing():
    for columns in (["messages"], ["conversations", "x"], ["prompt", "completion"], list(OURS)):
        assert missing_form(columns) is None
    with pytest.raises(SampleError, match=r"column\(s\) instruction; did you mean instruction by instuction\?$"):
        read_conversation({"context": "a", "instuction": "b", "response": "c"})


@pytest.mark.parametrize(
    "role, meant",
    [("Assistant", "assistant"), ("function_call", "assistant"), ("observation", "tool"), ("human", "user"), ("developer", "system"), ("usr", "user")],
)  # fmt: skip
def test_foreign_roles_are_told_with_the_nearest_known(role, meant):
    row = {"messages": [{"role": role, "content": "a\n\nb"}, {"role": "assistant", "content": "c"}]}
    with pytest.raises(SampleError, match=f"role {role!r}; known roles are .*; did you mean {meant!r}"):
        read_conversation(row)
