"""What a row says and where its context stands, before any tokenizer; unusable rows say why."""

import pytest

from hf_gateau.rows.conversations import MARKER, SampleError, last_paragraph, read_conversation


pytestmark = pytest.mark.quick


@pytest.mark.parametrize(
    "text, instruction",
    [
        ("a\n\nb", "b"),
        ("a\n\nb\n\nc\n\n", "c"),  # ends in a blank line: the document is not dropped
        ("a\n \t\nb", "b"),
        ("a\n\n\n\nb\nc", "b\nc"),
        ("\n\n a \n\n b ", "b"),
    ],
)
def test_last_paragraph(text, instruction):
    start, end = last_paragraph(text)
    assert start == 0 and text[end:].strip() == instruction and text[:end].strip().startswith("a")


USER, ASSISTANT = {"role": "user", "content": "a\n\nb"}, {"role": "assistant", "content": "c"}


@pytest.mark.parametrize(
    "row, reason",
    [
        ({}, "neither messages nor the column"),
        ({"messages": None}, "messages is null"),
        ({"context": "a", "response": "b"}, "instruction"),
        ({"context": "a", "instruction": None, "response": "b"}, "instruction is null"),
        ({"context": " ", "instruction": "b", "response": "c"}, "context is empty"),
        ({"context": "a", "instruction": "b", "response": 5}, "response is a int, not a string"),
        ({"messages": "hello"}, "messages is a str"),
        ({"messages": []}, "0 turn"),
        ({"messages": [USER]}, "1 turn"),
        ({"messages": [USER, "c"]}, "turn 1 is a str"),
        ({"messages": [USER, {"role": "assistant"}]}, "turn 1 has no content"),
        ({"messages": [USER, {"content": "c"}]}, "turn 1 has no role"),
        ({"messages": [USER, {"role": "robot", "content": "c"}]}, "role 'robot'"),
        ({"messages": [USER, {"role": "assistant", "content": None}]}, "turn 1 (assistant) is null"),
        ({"messages": [USER, {"role": "assistant", "content": ["c"]}]}, "is a list, not a string"),
        ({"messages": [USER, {"role": "assistant", "content": " \n"}]}, "turn 1 (assistant) is empty"),
        ({"messages": [{"role": "user", "content": "b"}, ASSISTANT]}, "one paragraph"),
        ({"messages": [ASSISTANT, USER]}, "last turn is the user's"),
        ({"messages": [USER, ASSISTANT, ASSISTANT]}, "not the user's"),
        ({"messages": [{"role": "user", "content": "a\n\n\ud800"}, ASSISTANT]}, "lone surrogate"),
        ({"messages": [{"role": "user", "content": f"a\n\n{MARKER}"}, ASSISTANT]}, "private-use marker"),
        ({"messages": [USER, ASSISTANT], "context": "elsewhere"}, "found in 0 turns"),
    ],
)
def test_unusable_rows_say_why(row, reason):
    with pytest.raises(SampleError) as error:
        read_conversation(row)
    assert reason in str(error.value)
