"""Rows of `prompt` and `completion`, TRL's form: strings and turns. The oracle of tokens and labels is TRL's own trainer."""

import pytest
from datasets import Dataset

from hf_gateau.rows.batches import BatchShape
from hf_gateau.rows.conversations import SampleError, content_hash, read_conversation, read_turns
from hf_gateau.rows.labels import IGNORED, tokenize_for_training
from hf_gateau.rows.parts import texts_of
from hf_gateau.rows.samples import build_sample
from tests.chats import ANSWER, CHATML, CONTEXT, QUESTION, trl_template
from tests.tiny_models import make_model


ASKED, ANSWERED = [{"role": "user", "content": f"{CONTEXT}\n\n{QUESTION}"}], [{"role": "assistant", "content": ANSWER}]
TURNS = {"prompt": ASKED, "completion": ANSWERED}
STRINGS = {
    "a question last": (f"{CONTEXT}\n\n{QUESTION}", f" {ANSWER}"),
    "a heading for the answer": (f"{CONTEXT}\n\nQuestion: {QUESTION}\nAnswer:", f" {ANSWER}"),
    "a token over the border": (f"{CONTEXT}\n\n{QUESTION} ", ANSWER),
    "closed already": (f"{CONTEXT}\n\n{QUESTION}\n", f"{ANSWER}</s>"),
    "question first": (f"Summarise this:\n\n{CONTEXT}", f"\n{ANSWER}"),
}
CONVERSATIONS = {
    "one pair": TURNS,
    "a system turn": {**TURNS, "prompt": [{"role": "system", "content": "Be brief."}, *ASKED]},
    "several turns": {
        "prompt": [*ASKED, {"role": "assistant", "content": "No."}, {"role": "user", "content": "Sure?"}],
        "completion": ANSWERED,
    },
}


def rows_of_strings() -> list[dict]:
    return [{"prompt": prompt, "completion": completion} for prompt, completion in STRINGS.values()]


def trained_by_trl(rows: list[dict], tokenizer, folder) -> list[dict]:
    from trl import SFTConfig, SFTTrainer

    options = {"max_length": None, "report_to": "none", "use_cpu": True, "bf16": False, "output_dir": str(folder)}
    args = SFTConfig(**options, gradient_checkpointing=False)
    model = make_model("llama", folder / "m", tokenizer)
    return list(
        SFTTrainer(model, args=args, train_dataset=Dataset.from_list(rows), processing_class=tokenizer).train_dataset
    )


@pytest.mark.parametrize("template", [None, "chatml", "qwen3", "qwen3_training", "llama3", "gemma"])
def test_tokens_and_labels_are_those_of_trl(template, bpe, tmp_path):
    bpe.chat_template = {None: None, "chatml": CHATML}.get(template) or (template and trl_template(template))
    rows = rows_of_strings() if template is None else list(CONVERSATIONS.values())
    if template == "gemma":  # knows no system turn
        rows = rows[::2]
    for row, expected in zip(rows, trained_by_trl(rows, bpe, tmp_path), strict=True):
        sample, trained = build_sample(row, bpe), tokenize_for_training(row, bpe)
        assert trained["input_ids"] == expected["input_ids"] == sample.input_ids
        assert trained["labels"] == expected["labels"]
        assert sample.response == [label for label in expected["labels"] if label != IGNORED]
        assert sample.context and sample.response_end == len(sample.input_ids)


def test_strings_have_no_chat_template(bpe):
    bpe.chat_template = CHATML
    with_template = [build_sample(row, bpe) for row in rows_of_strings()]
    bpe.chat_template = None
    assert with_template == [build_sample(row, bpe) for row in rows_of_strings()]
    assert [sample.rule for sample in with_template] == [
        "last paragraph",
        "headings",
        "last paragraph",
        "last paragraph",
        "question first",
    ]
    for sample, (prompt, _) in zip(with_template, STRINGS.values(), strict=True):
        assert (
            bpe.decode(sample.context).split()
            == bpe.decode(bpe(CONTEXT, add_special_tokens=False)["input_ids"]).split()
        )
        assert not sample.instruction or sample.rule != "question first" or prompt.startswith("Summarise")


def test_turns_are_read_like_messages(bpe):
    bpe.chat_template = CHATML
    assert build_sample(TURNS, bpe) == build_sample({"messages": [*ASKED, *ANSWERED]}, bpe)
    assert texts_of(TURNS) == ("", CONTEXT, QUESTION, ANSWER)
    assert read_turns(TURNS) == [*ASKED, *ANSWERED]
    bpe.chat_template = None
    assert build_sample(TURNS, bpe) == build_sample({"messages": [*ASKED, *ANSWERED]}, bpe)


def test_messages_are_read_before_a_prompt_beside_them():
    row = {"messages": [*ASKED, *ANSWERED], "prompt": "another", "completion": "other"}
    assert read_conversation(row).completion is None
    assert content_hash(row) == content_hash({"messages": row["messages"]})  # as before prompts were read
    assert len({content_hash(x) for x in (TURNS, rows_of_strings()[0], {"messages": row["messages"]})}) == 3


@pytest.mark.parametrize(
    "row, reason",
    [
        ({"prompt": None, "completion": "b"}, "prompt is null"),
        ({"prompt": "a\n\nb", "completion": None}, "completion is null"),
        ({"prompt": "a\n\nb", "completion": " "}, "completion is empty"),
        ({"prompt": "a\n\nb", "completion": ANSWERED}, "not both strings, or both lists"),
        ({"prompt": ASKED, "completion": []}, "completion has no turns"),
        ({"prompt": [*ASKED, *ANSWERED], "completion": ANSWERED}, "prompt ends with the assistant's turn"),
        ({"prompt": ASKED, "completion": ASKED}, "completion has turns that are not the assistant's"),
        ({"prompt": ASKED, "completion": [{"role": "robot", "content": "c"}]}, "role 'robot'"),
        ({"prompt": "only one", "completion": "b"}, "one paragraph"),
        ({"prompt": 5, "completion": "b"}, "prompt is an int"),
        ({"prompt": "a\n\nb"}, "neither messages nor the column(s) completion"),
    ],
)  # fmt: skip
def test_unusable_prompts_say_why(row, reason):
    with pytest.raises(SampleError) as error:
        read_conversation(row)
    assert reason in str(error.value)


@pytest.mark.parametrize("kind", [None, "arrow", "pandas"])
def test_prompts_in_batches(kind):
    for rows in (rows_of_strings(), list(CONVERSATIONS.values())):
        shape = BatchShape(Dataset.from_list(rows).with_format(kind)[:])
        assert [read_turns(row) for row in shape.rows] == [read_turns(row) for row in rows]
