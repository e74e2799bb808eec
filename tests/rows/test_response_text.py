"""The response's tokens as text: each begins where the bytes of the tokens before it end, told by the vocabulary alone."""

import re

import pytest
from tokenizers import AddedToken
from transformers.convert_slow_tokenizer import bytes_to_unicode

from hf_gateau.measuring.known import about
from hf_gateau.models.packing import Cut
from hf_gateau.rows.samples import build_sample, truncate_response
from tests.chats import ANSWER, CHATML, CONTEXT, LLAMA_2, QUESTION, train_bpe, trl_template, turns


pytestmark = pytest.mark.quick

TEMPLATES = {
    "none": None,
    "chatml": CHATML,
    "llama-2": LLAMA_2,
    **{name: trl_template(name) for name in ("llama3", "llama3_training", "qwen3", "qwen3_training", "gemma", "phi3")},
}
CLOSED_BY_A_LINE = ("chatml", "qwen3", "qwen3_training")  # behind the mark that ends a turn
SAID = "Zurück um 06:15 — 🙂🙂 «все»,\n\n  said he.\tNo?  "
ASKED = f"{CONTEXT}\n\n{QUESTION}"
ROWS = {
    "plain": turns(ASKED, ANSWER),
    "characters of several tokens": turns(ASKED, SAID),
    "marks in the text": turns(ASKED, "So <|im_end|> or </s> stand here."),
    "earlier turns": turns(CONTEXT, "Noted. 🙂", ASKED, SAID),
    "completion": {"prompt": turns(ASKED)["messages"], "completion": turns(ASKED, SAID)["messages"][1:]},
    "strings": {"prompt": f"Document: {CONTEXT}\n\nQuestion: {QUESTION}\nAnswer:", "completion": f" {SAID}"},
    "columns": {"context": CONTEXT, "instruction": QUESTION, "response": SAID},
    "thoughts": {"messages": [*turns(ASKED)["messages"], {"role": "assistant", "content": ANSWER, "reasoning_content": SAID}]},
    "a call": {"messages": [*turns(ASKED)["messages"], {"role": "assistant", "content": ANSWER, "tool_calls": [{"type": "function", "function": {"name": "look", "arguments": {"at": "🙂 boats"}}}]}]},
}  # fmt: skip


def token_bytes(tokenizer, token: int) -> bytes:
    """What a token of one of the two vocabularies stands for; nothing for the special ones."""
    text = tokenizer.convert_ids_to_tokens(token)
    if token in tokenizer.all_special_ids or re.fullmatch(r"<\|im_(start|end)\|>", text):
        return b"\xff" if token == tokenizer.unk_token_id else b""
    if "▁" in tokenizer.get_vocab():
        found = re.fullmatch(r"<0x(..)>", text)
        return text.replace("▁", " ").encode() if found is None else bytes.fromhex(found[1])
    known = {letter: byte for byte, letter in bytes_to_unicode().items()}
    return bytes(known[letter] for letter in text)


def num_whole(data: bytes) -> int:
    """Characters of which all bytes are there."""
    return len(data.decode("utf-8", "ignore"))


@pytest.mark.parametrize("template", TEMPLATES)
@pytest.mark.parametrize("name", ROWS)
def test_tokens_begin_where_the_bytes_before_them_end(name, template, bpe):
    bpe.chat_template, row = TEMPLATES[template], ROWS[name]
    sample = build_sample(row, bpe)
    text, starts = sample.response_text()
    pieces = [token_bytes(bpe, token) for token in sample.response]
    assert len(starts) == len(pieces) and starts == sorted(starts)
    if any(
        b"\xff" in piece for piece in pieces
    ):  # some of several unknown characters each: their text is there all the same
        assert "Zurück" in text and "«все»" in text
        return
    whole = b"".join(pieces).decode()
    assert whole.startswith(text) and whole[len(text) :].lstrip(" ") == (
        "\n" if template in CLOSED_BY_A_LINE and name != "strings" else ""
    )
    firsts = [min(len(text), num_whole(b"".join(pieces[:i]))) for i in range(len(pieces))]
    assert starts == firsts
    ends = [*starts[1:], len(text)]
    assert "".join(text[a:b] for a, b in zip(starts, ends, strict=True)) == text


@pytest.mark.parametrize("name", ROWS)
def test_joined_it_is_what_the_assistant_says(name, bpe):
    bpe.chat_template, row = CHATML, ROWS[name]
    said = row.get("response") or row.get("completion") or row["messages"]
    said = said if isinstance(said, str) else said[-1]["content"]
    text, _ = build_sample(row, bpe).response_text()
    assert text == (said if name != "marks in the text" else "So  or  stand here.")


def test_a_cut_context_or_response_moves_nothing(bpe):
    bpe.chat_template, row = CHATML, ROWS["characters of several tokens"]
    sample = build_sample(row, bpe)
    text, starts = sample.response_text()
    assert build_sample(row, bpe, max_length=sample.response_end - 5).response_text() == (text, starts)
    for num in range(1, len(starts)):
        head, firsts = truncate_response(sample, num).response_text()
        assert firsts == starts[:num] and head == text[: starts[num]]


def test_columns_of_a_row(bpe):
    from transformers import ByT5Tokenizer

    bpe.chat_template, row = CHATML, ROWS["plain"]
    found = about(row, build_sample(row, bpe), Cut(16))
    assert found["gateau_token_text"] == ANSWER and found["gateau_token_starts"][:1] == [0]
    assert len(found["gateau_token_starts"]) == found["gateau_num_response_tokens"]
    slow = about(row, build_sample(row, ByT5Tokenizer()), Cut(16))
    assert slow["gateau_token_text"] is slow["gateau_token_starts"] is None, "it does not tell where tokens begin"
    bad = about({"messages": []}, "no turns", Cut(16))
    assert bad["gateau_token_text"] is bad["gateau_token_starts"] is None


def test_special_tokens_that_were_added_are_marks():
    """As `<|eot_id|>` of Llama 3, which no attribute of the tokenizer names; asked anew when the vocabulary has grown."""
    bpe = train_bpe(byte_level=True, bos=False)
    bpe.chat_template = TEMPLATES["llama3"]
    assert build_sample(ROWS["plain"], bpe).response_text()[0] == f"{ANSWER}<|eot_id|>"
    bpe.add_tokens([AddedToken("<|eot_id|>", special=True), AddedToken("06:15", special=False)])
    assert "<|eot_id|>" not in bpe.all_special_tokens
    text, starts = build_sample(ROWS["plain"], bpe).response_text()
    assert text == ANSWER and starts[-1] == len(ANSWER), "the end of the turn is no text"
