"""What a row says and where its context stands, before any tokenizer; unusable rows say why."""

import json

import pytest

from hf_gateau.rows.context_rules import last_paragraph
from hf_gateau.rows.conversations import (
    MARKER,
    SampleError,
    checked_turns,
    content_hash,
    read_conversation,
)


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
        ({"context": "a", "instruction": "b", "response": 5}, "response is an integer, not a string"),
        ({"messages": "hello"}, "messages is a string"),
        ({"messages": []}, "0 turn"),
        ({"messages": [USER]}, "1 turn"),
        ({"messages": [USER, "c"]}, "turn 1 is a string"),
        ({"messages": [USER, {"role": "assistant"}]}, "turn 1 has no content"),
        ({"messages": [USER, {"content": "c"}]}, "turn 1 has no role"),
        ({"messages": [USER, {"role": "robot", "content": "c"}]}, "role 'robot'"),
        ({"messages": [USER, {"role": "assistant", "content": None}]}, "turn 1 (assistant) is null"),
        ({"messages": [USER, {"role": "assistant", "content": ["c"]}]}, "is a list, not a string"),
        ({"messages": [USER, {"role": "assistant", "content": " \n"}]}, "turn 1 (assistant) is empty"),
        ({"messages": [{"role": "user", "content": "b"}, ASSISTANT]}, "one paragraph"),
        ({"messages": [ASSISTANT, USER]}, "last turn is the user's"),
        ({"messages": [{"role": "system", "content": "s"}, ASSISTANT]}, "no turn is the user's"),
        ({"messages": [USER, {"role": "assistant", "content": None, "tool_calls": []}]}, "turn 1 (assistant) is null"),
        ({"messages": [{"role": "user", "content": ""}, ASSISTANT]}, "turn 0 (user) is empty"),
        ({"messages": [{"role": "user", "content": "a\n\n\ud800"}, ASSISTANT]}, "lone surrogate"),
        ({"messages": [{"role": "user", "content": f"a\n\n{MARKER}"}, ASSISTANT]}, "private-use marker"),
        ({"messages": [USER, ASSISTANT], "context": "elsewhere"}, "found in 0 turns"),
    ],
)
def test_unusable_rows_say_why(row, reason):
    with pytest.raises(SampleError) as error:
        read_conversation(row)
    assert reason in str(error.value)


# Answers behind a tool's result: where their context is

CALL = {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "f", "arguments": {}}}]}
RESULT, ASKED = {"role": "tool", "content": "42"}, {"role": "user", "content": "b"}


@pytest.mark.parametrize(
    "messages, place",
    [
        ([USER, CALL, RESULT, ASSISTANT], (0, 0, 0, 1)),  # the document in the question, not the result
        ([ASKED, CALL, RESULT, RESULT, ASSISTANT], (2, 0, 3, 2)),  # nothing else: all results
        ([ASKED, ASSISTANT, ASKED, CALL, RESULT, ASSISTANT], (0, 0, 1, 1)),  # all before the last question
        ([{"role": "system", "content": ""}, USER, ASSISTANT], (1, 0, 1, 1)),
        ([USER, ASSISTANT, ASSISTANT], (0, 0, 0, 1)),
    ],
)
def test_context_of_an_answer_behind_other_turns(messages, place):
    found = read_conversation({"messages": messages})
    assert (found.first, found.start, found.last, found.end) == place
    with pytest.raises(SampleError, match="one paragraph"):
        read_conversation({"messages": [ASKED, CALL, RESULT | {"content": ""}, ASSISTANT]})


TOOLS = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}]


def test_content_hash_tells_tools_and_arguments_of_the_template():
    row = {"messages": [USER, ASSISTANT]}
    assert content_hash(row) == "acb1b2db1b0dc776"  # as before the two columns were looked at
    assert content_hash(row | {"tools": None, "chat_template_kwargs": None}) == content_hash(row)
    others = [{"tools": TOOLS}, {"tools": []}, {"chat_template_kwargs": {"enable_thinking": False}}]
    others += [{"chat_template_kwargs": {"enable_thinking": None}}]
    assert len({content_hash(row), *(content_hash(row | other) for other in others)}) == 5
    assert content_hash(row | {"tools": json.dumps(TOOLS)}) == content_hash(row | {"tools": TOOLS})
    packed = {"messages": [json.dumps(turn) for turn in row["messages"]]}  # as Parquet without its types has them
    assert content_hash(packed) == content_hash(row) and checked_turns(packed) == checked_turns(row)
