"""Short data beside the selected: what becomes of a ShareGPT row, how much is taken, what is counted."""

import json
import re

import pytest
from datasets import Dataset

from hf_gateau.quickstart.world import planted_rows
from hf_gateau.ranking.config import MixConfig
from hf_gateau.ranking.mixture import (
    EMPTY_ANSWER,
    ITS_QUESTION,
    LONG,
    NO_ANSWER,
    SHORT,
    SOURCE_COLUMN,
    TURN_KEYS,
    load_short,
    mix,
    to_messages,
)
from hf_gateau.ranking.selection import select, selection_record
from hf_gateau.rows.conversations import SampleError
from hf_gateau.rows.labels import tokenize_for_training
from tests.rows.shapes import SHAPES, TEMPLATES, marked_tokenizer


pytestmark = pytest.mark.quick


ROLES = {"u": ("human", "user"), "a": ("gpt", "assistant"), "s": ("system", "system")}
NO_TEXT = "no turn of the assistant has text"
NAN = float("nan")


def sharegpt(*said: str) -> dict:
    """A row of turns such as 'u:question', 'a:answer', 'a:'."""
    return {"conversations": [{"from": ROLES[turn[0]][0], "value": turn[2:]} for turn in said]}


def messages(*said: str) -> list[dict]:
    return [{"role": ROLES[turn[0]][1], "content": turn[2:]} for turn in said]


def short_rows(n=20) -> Dataset:
    return Dataset.from_list([sharegpt(f"u:What is {i} ?", f"a:The code of item {i} is {i} .") for i in range(n)])


@pytest.fixture(scope="module")
def long():
    ds = Dataset.from_list(planted_rows(6, seed=3)).add_column("gateau_rank", list(range(1, 7)))
    return select(ds.add_column("gateau_score", [6, 5, 4, 3, 2, 1]), top_k=3)


def short_share(mixed, tokenizer) -> float:
    counts = {LONG: 0, SHORT: 0}
    for row in mixed:
        counts[row[SOURCE_COLUMN]] += len(tokenize_for_training(row, tokenizer)["input_ids"])
    return counts[SHORT] / sum(counts.values())


@pytest.mark.parametrize(
    "said, left",
    [
        (["s:s", "u:q", "a:a"], ["s:s", "u:q", "a:a"]),
        (["s:s", "u:q", "a:", "u:r", "a:b"], ["s:s", "u:r", "a:b"]),  # an empty answer goes with its question
        (["u:q", "a:a", "u:r", "a: \n", "u:t", "a:c"], ["u:q", "a:a", "u:t", "a:c"]),
        (["u:q", "a:a", "u:r", "a:"], ["u:q", "a:a"]),
        (["u:q", "a:a", "u:r", "u:t"], ["u:q", "a:a"]),  # nobody answers
    ],
)
def test_turns_without_an_answer_are_dropped(said, left):
    assert to_messages(sharegpt(*said)) == to_messages({"messages": messages(*said)}) == messages(*left)


def test_other_forms_of_a_row_and_rows_with_nothing_to_learn():
    row = {"context": "c", "instruction": "x", "response": "y"}
    assert to_messages(row) == messages("u:c\n\nx", "a:y") and to_messages(row | {"context": ""})[0]["content"] == "x"
    extra = [turn | {"weight": 1, "name": None} for turn in messages("u:q", "a:a")]
    assert to_messages({"messages": extra}) == messages("u:q", "a:a")  # what no template reads goes
    for wrong in ({"id": 1}, row | {"response": None}, {"messages": [{"role": "user", "content": 5}]}):
        with pytest.raises(SampleError, match="neither messages|no text of a role"):
            to_messages(wrong)
    for said in ([], ["u:q"], ["u:q", "a:"], ["s:s", "u:q", "a: "], ["s:s"]):
        with pytest.raises(SampleError, match=NO_TEXT):
            to_messages(sharegpt(*said))


def test_all_short_rows_or_the_first_tenth_follow_the_long_ones(long):
    rows = short_rows()
    rows.info.description = '<!-- gateau:selection {"of": "the short rows"} -->'
    short = [to_messages(row) for row in rows]
    for fraction, count in ((None, 20), (0.1, 2)):  # the paper's two settings
        mixed, record = mix(long, rows, fraction=fraction)
        assert mixed.column_names == ["messages", SOURCE_COLUMN]
        assert mixed[SOURCE_COLUMN] == [LONG] * 3 + [SHORT] * count
        assert mixed["messages"] == [to_messages(row) for row in long] + short[:count]
        assert record == {"num_rows": 20, "num_kept": count, "dropped": {}, "fraction": fraction, "token_share": None}
        assert json.loads(json.dumps(record)) == record and selection_record(mixed) == selection_record(long)


def test_rows_with_nothing_left_are_counted_by_reason(long, caplog):
    rows = [sharegpt("u:q", "a:a"), sharegpt("u:q", "a:"), sharegpt("u:q"), {"conversations": None}]
    spoilt = [{"messages": long[0]["messages"]}, {"messages": messages("u:q")}]
    mixed, record = mix(Dataset.from_list(spoilt), Dataset.from_list(rows))
    no_form = "the row has neither messages, conversations, nor context, instruction and response"
    assert record["dropped"] == {NO_TEXT: 2, no_form: 1} and record["num_kept"] == 1
    assert mixed[SOURCE_COLUMN] == [LONG, SHORT]
    assert "3 of 4 short rows are left out" in caplog.text and "1 selected rows cannot be trained on" in caplog.text
    with pytest.raises(ValueError, match=f"No row of the 2 short ones is left .*{NO_TEXT}"):
        mix(long, Dataset.from_list(rows[1:3]))


@pytest.mark.parametrize("share", [0.05, 0.2])
def test_short_rows_are_taken_until_they_hold_their_share(share, long, tokenizer, caplog):
    mixed, record = mix(long, short_rows(100), token_share=share, tokenizer=tokenizer)
    count = record["num_kept"]
    assert 1 < count < 100 and mixed["messages"][3:] == [to_messages(row) for row in short_rows(count)]
    assert short_share(mixed, tokenizer) >= share > short_share(mixed.select(range(len(mixed) - 1)), tokenizer)
    assert mix(long, short_rows(2), token_share=share, tokenizer=tokenizer)[1]["num_kept"] == 2
    assert f"less than the share of {share}" in caplog.text


@pytest.mark.parametrize(
    "settings, message",
    [
        *(({"fraction": value}, "not above 0 and at most 1") for value in (0, 1.5, NAN)),
        ({"fraction": 0.1, "token_share": 0.1}, "both given"),
        ({"token_share": 0.1}, "give the tokenizer"),
    ],
)
def test_wrong_settings_are_refused(settings, message, long):
    with pytest.raises(ValueError, match=message):
        mix(long, short_rows(), **settings)


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"short_name": "x", "short_split": "y"}, "short_name and short_split came without short_data"),
        *(({"short_data": "d", "short_fraction": value}, "not above 0") for value in (0, 1.1, NAN)),
        *(({"short_data": "d", "short_token_share": value}, "not between 0 and 1") for value in (0, 1, NAN)),
        ({"short_data": "d", "short_fraction": 0.1, "short_token_share": 0.1}, "both given"),
    ],
)
def test_settings_out_of_range_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        MixConfig(**settings)


def test_short_data_are_loaded_from_a_file_or_from_one_file_of_a_folder(tmp_path):
    for name in ("one", "two"):
        (tmp_path / f"{name}.jsonl").write_text(json.dumps(sharegpt(f"u:{name}", "a:a")) + "\n")
    for config in (
        MixConfig(short_data=str(tmp_path / "two.jsonl")),
        MixConfig(short_data=str(tmp_path), short_data_file="two.jsonl"),
    ):
        assert load_short(config).to_list() == [sharegpt("u:two", "a:a")]


def test_a_fraction_of_less_than_a_row_is_refused(long):
    with pytest.raises(ValueError, match="No row of the 3 short ones is left"):
        mix(long, short_rows(3), fraction=0.1)


@pytest.mark.parametrize("share", [0.0, 1.0, 1.5, NAN])
def test_a_share_out_of_range_is_refused(share, long, tokenizer):
    with pytest.raises(ValueError, match=f"token_share={share}"):
        mix(long, short_rows(), token_share=share, tokenizer=tokenizer)


@pytest.mark.parametrize("turns", ["text", 5, ["text"], {"role": "user"}], ids=str)
def test_messages_of_no_known_form_are_a_reason(turns):
    with pytest.raises(SampleError):
        to_messages({"messages": turns})


def test_the_share_is_of_the_tokens_that_are_trained_on(long, tokenizer):
    """The long rows end in an empty answer, which goes; what is left of them counts."""
    unfinished = Dataset.from_list([{"messages": row["messages"] + messages("u:more", "a:")} for row in long])
    mixed, _ = mix(unfinished, short_rows(100), token_share=0.1, tokenizer=tokenizer)
    assert short_share(mixed, tokenizer) >= 0.1


# What a mixed row keeps of the row it was


KEPT_SHAPES = (
    "one pair",
    "tools given",
    "two calls in turn",
    "a call answered",
    "thoughts before a call",
    "date_string",
)


def of_shapes(*names: str) -> Dataset:
    rows = [{"tools": None, "chat_template_kwargs": None} | SHAPES[name] for name in names]
    return Dataset.from_list(rows, on_mixed_types="use_json")


@pytest.mark.parametrize("template", ["qwen3", "gptoss", "llama3_1"])
def test_mixed_rows_have_the_tokens_and_labels_that_they_had(template):
    tokenizer = marked_tokenizer()
    tokenizer.chat_template = TEMPLATES[template]
    rows, short = of_shapes(*KEPT_SHAPES), short_rows(3)
    mixed, record = mix(rows, short)
    assert record["dropped"] == {} and "dropped_turns" not in record and "dropped_long" not in record
    assert mixed.column_names == ["messages", SOURCE_COLUMN, "chat_template_kwargs", "tools"]
    for old, new in zip([*rows, *short], mixed, strict=True):
        assert tokenize_for_training(new, tokenizer) == tokenize_for_training(old, tokenizer)
        given = {"tools": new["tools"], **new["chat_template_kwargs"]}  # as SFTTrainer unpacks them
        ids = tokenizer.apply_chat_template(new["messages"], tokenize=True, return_dict=True, **given)["input_ids"]
        assert ids == tokenize_for_training(old, tokenizer)["input_ids"]
    mixed, _ = mix(short, rows)  # and as the short data
    assert [tokenize_for_training(row, tokenizer) for row in mixed.select(range(3, len(mixed)))] == [
        tokenize_for_training(row, tokenizer) for row in rows
    ]


def test_turns_that_are_dropped_are_counted_with_a_reason(long):
    short = Dataset.from_list([sharegpt("u:q", "a:a", "u:r", "a:", "u:t", "a:b", "u:v"), sharegpt("u:q")])
    called = of_shapes("a call answered")  # null beside a call is no empty answer: the document stays
    mixed, record = mix(called, short)
    assert mixed[0]["messages"][0] == SHAPES["a call answered"]["messages"][0] and len(mixed[0]["messages"]) == 4
    assert record["dropped"] == {NO_TEXT: 1}
    assert record["dropped_turns"] == {EMPTY_ANSWER: 1, ITS_QUESTION: 1, NO_ANSWER: 1}
    spoilt = Dataset.from_list([{"messages": long[0]["messages"]}, {"messages": messages("u:q")}])
    assert mix(spoilt, short_rows(2))[1]["dropped_long"] == {NO_TEXT: 1}


def test_every_key_that_a_template_reads_of_a_turn_is_kept():
    read = set()
    for template in TEMPLATES.values():
        read |= set(re.findall(r"\b(?:message|m|msg)(?:\.|\[['\"])(\w+)", template))
    no_keys = {"get", "update", "items", "endswith", "startswith", "strip", "split", "role", "content"}
    beside = {
        "tool_responses",
        "keep_past_thinking",
    }  # no row of messages has them: set by the template, or Gemma's own
    assert read - no_keys - beside <= {*TURN_KEYS}, read
