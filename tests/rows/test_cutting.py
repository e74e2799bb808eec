"""Rows longer than training takes: cut at their end as TRL does, or at the left of the context as scoring does."""

import pytest

from hf_gateau.rows.conversations import SampleError
from hf_gateau.rows.cutting import NO_TARGETS, tokens_to_train
from hf_gateau.rows.labels import IGNORED, tokenize_for_training
from hf_gateau.rows.samples import build_sample
from tests.chats import ANSWER, CONTEXT, QUESTION, turns
from tests.rows.test_samples import TEMPLATES


LONG = (CONTEXT + "\n") * 6
ROW = turns(LONG + "\n\n" + QUESTION, ANSWER, system="Be brief.")


def targets(tokens: dict) -> list[int]:
    return [label for label in tokens["labels"] if label != IGNORED]


@pytest.mark.parametrize("template", [*TEMPLATES, None])
def test_response_is_kept_and_cut_as_in_scoring(bpe, template):
    """Every length between the shortest that holds one token of the context and the whole row."""
    bpe.chat_template = TEMPLATES.get(template)
    row = turns(LONG + "\n\n" + QUESTION, ANSWER) if template == "gemma" else ROW  # Gemma takes no system turn
    whole = tokenize_for_training(row, bpe)
    sample = build_sample(row, bpe)
    size, fixed = len(whole["input_ids"]), len(whole["input_ids"]) - len(sample.context)
    for max_length in range(fixed + 1, size, 7):
        cut = tokens_to_train(row, bpe, max_length=max_length, truncation_mode="keep_end")
        scored = build_sample(row, bpe, max_length=max_length)
        assert cut["input_ids"][: scored.response_end] == scored.input_ids[: scored.response_end]
        assert len(cut["input_ids"]) == len(cut["labels"]) <= max_length
        assert targets(cut) == targets(whole)
        assert all(label in (IGNORED, token) for token, label in zip(cut["input_ids"], cut["labels"], strict=True))
        assert cut["input_ids"][: sample.context_start] == whole["input_ids"][: sample.context_start]
    for mode in ("keep_start", "keep_end"):
        assert tokens_to_train(row, bpe, max_length=size, truncation_mode=mode) == whole
        assert tokens_to_train(row, bpe, truncation_mode=mode) == whole
    with pytest.raises(SampleError, match=f"leave no room for context in max_length={fixed - 20}; raise max_length"):
        tokens_to_train(row, bpe, max_length=fixed - 20, truncation_mode="keep_end")


def test_start_is_kept_as_trl_does(bpe):
    bpe.chat_template = TEMPLATES["chatml"]
    whole = tokenize_for_training(ROW, bpe)
    first = next(i for i, label in enumerate(whole["labels"]) if label != IGNORED)
    cut = tokens_to_train(ROW, bpe, max_length=first + 2)
    assert cut == {name: values[: first + 2] for name, values in whole.items()} and len(targets(cut)) == 2
    for max_length in (first, first - 50):
        with pytest.raises(SampleError, match=NO_TARGETS):
            tokens_to_train(ROW, bpe, max_length=max_length)


def test_end_is_kept_of_several_turns_and_by_the_users_own_context(bpe):
    bpe.chat_template = TEMPLATES["chatml"]
    row = turns(LONG, "Noted.", LONG + "\n\n" + QUESTION, ANSWER)
    whole, cut = (tokens_to_train(row, bpe, max_length=n, truncation_mode="keep_end") for n in (None, 100))
    assert len(cut["input_ids"]) == 100 and cut["input_ids"] == build_sample(row, bpe, max_length=100).input_ids
    last = targets(cut)
    assert last == targets(whole)[-len(last) :] and bpe.decode(last).startswith(ANSWER)  # the first turn's is cut off
    find = lambda text: (text.index("Its boats"), len(LONG))  # noqa: E731
    cut = tokens_to_train(ROW, bpe, max_length=300, truncation_mode="keep_end", find_context=find)
    assert cut["input_ids"] == build_sample(ROW, bpe, max_length=300, find_context=find).input_ids
    assert "The harbour of Aveiro smells of salt" in bpe.decode(cut["input_ids"][:80])


def test_rows_without_a_context_are_not_cut_in_the_dark(bpe):
    bpe.chat_template = TEMPLATES["chatml"]
    row = turns("word " * 300, ANSWER)
    with pytest.raises(SampleError, match="the user turn has one paragraph"):
        tokens_to_train(row, bpe, max_length=100, truncation_mode="keep_end")
    assert (
        len(tokens_to_train(turns("word", ANSWER), bpe, max_length=100, truncation_mode="keep_end")["input_ids"]) < 100
    )
