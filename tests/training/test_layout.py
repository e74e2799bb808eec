"""Rows that training would drop: told and left out before a model runs, by the tokens that training makes of them."""

import logging

import pytest
from datasets import Dataset, load_dataset

from hf_gateau import GateauScorer, GateauSelector, GateauSFTTrainer, rank
from hf_gateau.rows.cutting import NO_TARGETS
from hf_gateau.rows.samples import build_sample
from hf_gateau.training.layout import LOST, RowLayout, tokenizer_to_train
from hf_gateau.training.selector import NOT_TRAINABLE
from tests.chats import CHATML, turns
from tests.training import gradients


LIMIT = 600  # tokens: the rows of 975 have their response beyond, the shortened ones are of 400


def shortened(row: dict) -> dict:
    """The same with 400 tokens fewer of a text whose words are tokens."""
    asked, answer = row["messages"]
    words = asked["content"].split(" ")
    return {**row, "messages": [{**asked, "content": " ".join(words[600:])}, answer]}


@pytest.fixture(scope="module")
def mixed(rows) -> Dataset:
    """12 rows, every third of which fits."""
    return Dataset.from_list([shortened(row) if i % 3 == 0 else row for i, row in enumerate(rows)])


@pytest.fixture(scope="module")
def pair(tiny_model) -> dict:
    return {"long_model": tiny_model, "short_window": 100, "segment_length": 64, "device": "cpu", "max_length": LIMIT}


def trained_on(tiny_model, folder, selected, selector, **options) -> GateauSFTTrainer:
    args = gradients.settings(str(folder), max_length=LIMIT, max_steps=1, **options)
    return GateauSFTTrainer(gradients.load(tiny_model), args, train_dataset=selected, callbacks=[selector])


@pytest.mark.parametrize("is_scored", [False, True])
def test_what_training_would_drop_is_not_selected(is_scored, mixed, pair, tokenizer, tiny_model, tmp_path, caplog):
    """With one max_length for scoring, which cuts at the left, and for training, which cuts at the right."""
    args = gradients.settings(str(tmp_path), max_length=LIMIT)
    ds = rank(mixed.map(GateauScorer(**pair), batched=True)) if is_scored else mixed
    selector = GateauSelector(fraction=0.5, store=str(tmp_path / "store"), **({} if is_scored else pair))
    with caplog.at_level(logging.WARNING):
        selected = selector.select(selector.trainable(ds, args, tokenizer))
    assert (
        f"8 of 12 rows cannot be trained on, and are left out: 8 since {NO_TARGETS} (max_length={LIMIT}" in caplog.text
    )
    record = selector.record
    assert (record.num_rows, record.num_ranked, record.num_kept) == (12, 4, 2)  # half of those that can be trained on
    assert record.dropped == {f"{NOT_TRAINABLE}: {NO_TARGETS}": 8, "ranked below the cut": 2}
    assert selector.metrics()["gateau/num_not_trainable"] == 8
    trainer = trained_on(tiny_model, tmp_path, selected, selector)
    assert len(trainer.train_dataset) == 2 and trainer.num_lost == {}


def test_what_is_left_out_is_not_measured(mixed, pair, tokenizer, tmp_path):
    args = gradients.settings(str(tmp_path), max_length=LIMIT)
    selector = GateauSelector(top_k=2, store=str(tmp_path / "store"), **pair)
    left = selector.trainable(mixed, args, tokenizer)
    selector.select(left)
    counts = GateauScorer(**pair, store=str(tmp_path / "store")).count(mixed)
    assert len(left) == 4 and counts["kept"] == 4 and counts["pending"] == 8
    plain = GateauSelector(top_k=2, store=str(tmp_path / "store"), **pair)
    plain.select(left)
    assert plain.record.num_rows == 4 and plain.metrics().keys() == selector.metrics().keys() - {
        "gateau/num_not_trainable"
    }


def test_nothing_is_left_out_where_all_fits(mixed, tokenizer, tmp_path):
    for options in ({"max_length": 1100}, {"max_length": None}, {"max_length": LIMIT, "truncation_mode": "keep_end"}):
        args = gradients.settings(str(tmp_path), **options)
        selector = GateauSelector()
        assert selector.trainable(mixed, args, tokenizer) is mixed and not selector.left_out
    args = gradients.settings(str(tmp_path), max_length=LIMIT, response_only_loss=False)
    assert GateauSelector().trainable(mixed, args, tokenizer) is mixed  # loss on all tokens, the first too
    stream = mixed.to_iterable_dataset()
    assert GateauSelector().trainable(stream, gradients.settings(str(tmp_path)), tokenizer) is stream


def test_no_row_at_all_is_an_error(rows, tokenizer, tmp_path):
    args = gradients.settings(str(tmp_path), max_length=LIMIT)
    message = rf"None of the 12 rows can be trained on: 12 since {NO_TARGETS} \(max_length={LIMIT}: raise it, or keep .*keep_end"
    with pytest.raises(ValueError, match=message):
        GateauSelector().trainable(Dataset.from_list(rows), args, tokenizer)


@pytest.mark.parametrize("packing", [False, True])
def test_keep_end_trains_on_what_was_scored(packing, mixed, pair, tokenizer, tiny_model, tmp_path):
    selector = GateauSelector(fraction=1.0, store=str(tmp_path / "store"), **pair)
    options = {"truncation_mode": "keep_end", "packing": packing}
    args = gradients.settings(str(tmp_path), max_length=LIMIT, **options)
    selected = selector.select(selector.trainable(mixed, args, tokenizer))
    trainer = trained_on(tiny_model, tmp_path, selected, selector, **options)
    expected = [build_sample(row, tokenizer, max_length=LIMIT).input_ids for row in mixed]
    assert trainer.num_lost == {} and max(map(len, expected)) == LIMIT
    found = trainer.train_dataset["input_ids"]
    assert sorted(found) == sorted(expected) if not packing else sum(map(len, found)) == sum(map(len, expected))
    targets = sum(label != -100 for labels in trainer.train_dataset["labels"] for label in labels)
    assert targets == sum(selected["gateau_num_response_tokens"])
    trainer.train()


def test_keep_end_refuses_rows_that_trl_lays_out(tiny_model, tmp_path):
    rows = Dataset.from_list(gradients.documents(2, 50))
    args = gradients.settings(str(tmp_path), truncation_mode="keep_end")
    with pytest.raises(ValueError, match="the train rows have the columns input_ids, labels. Cut them beforehand"):
        GateauSFTTrainer(gradients.load(tiny_model), args, train_dataset=rows)


def test_rows_that_trl_drops_are_counted_too(tiny_model, tmp_path, caplog):
    """It does so without a word: here prompts that fill `max_length`."""
    rows = Dataset.from_list([{"prompt": "a " * n, "completion": "b c"} for n in (5, 40, 41)])
    args = gradients.settings(str(tmp_path), max_length=20, response_only_loss=False)
    trainer = GateauSFTTrainer(gradients.load(tiny_model), args, train_dataset=rows)
    assert trainer.num_lost == {"train": {"no label is left within max_length=20": 2}}
    assert "2 of 3 train rows are dropped" in caplog.text
    with pytest.raises(ValueError, match="No row of the train dataset can be trained on: 2 since no label is left"):
        GateauSFTTrainer(gradients.load(tiny_model), args, train_dataset=rows.select([1, 2]))


def test_a_bad_row_after_a_thousand_good_ones_ends_nothing(tokenizer):
    """`datasets` fixes the types of new columns by the first thousand rows."""
    good = turns("river road", "green river")
    bad = {"messages": [*good["messages"], {"role": "assistant", "content": None}]}
    layout = RowLayout(tokenizer, 100)
    for rows in ([good] * 1001 + [bad], [bad] + [good] * 1001):
        ds = Dataset.from_list(rows)
        reasons = layout.reasons(ds)
        assert reasons == list(layout.tokens(ds)[LOST]) and len(reasons) == 1002
        assert [reason for reason in reasons if reason] == ["turn 2 (assistant) is null"]


def test_tokenizer_is_the_one_that_trl_trains_with(rows, tiny_model, tmp_path):
    """Another chat template, and another end of sequence: what the layout says is what the trainer has."""
    (tmp_path / "chat.jinja").write_text(CHATML)
    options = {"chat_template_path": str(tmp_path / "chat.jinja"), "eos_token": "<pad>", "max_length": None}
    args = gradients.settings(str(tmp_path), **options)
    trainer = GateauSFTTrainer(
        gradients.load(tiny_model), args, train_dataset=Dataset.from_list([{"messages": rows[0]["messages"]}])
    )
    tokenizer = tokenizer_to_train(tiny_model, None, args)
    assert tokenizer.chat_template == trainer.processing_class.chat_template == CHATML
    assert tokenizer.eos_token == trainer.processing_class.eos_token == "<pad>"
    layout = RowLayout.of(args, tokenizer, packing=False)
    assert layout.tokens(Dataset.from_list(rows[:1]))["input_ids"][0] == trainer.train_dataset["input_ids"][0]


def test_rows_on_the_disk_keep_their_columns(mixed, tokenizer, tmp_path):
    mixed.to_json(str(tmp_path / "rows.jsonl"))
    ds = load_dataset("json", data_files=str(tmp_path / "rows.jsonl"), split="train")
    tokens = RowLayout(tokenizer, LIMIT).tokens(ds)
    assert {*ds.column_names, "input_ids", "labels", LOST} == {*tokens.column_names}
    assert sum(map(bool, tokens[LOST])) == 8
