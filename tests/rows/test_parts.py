"""The context as text, and the characters at which its segments begin: each segment's tokens say what stands there."""

import pytest

from hf_gateau.measuring.known import about
from hf_gateau.models.packing import Cut
from hf_gateau.rows.conversations import OTHER_RULES, read_conversation
from hf_gateau.rows.parts import context_text, span_of, texts_of
from hf_gateau.rows.samples import build_sample
from tests.chats import ANSWER, CHATML, LLAMA_2, QUESTION, trl_template, turns


pytestmark = pytest.mark.quick

DOCUMENT = " ".join(
    f"Boat {i} returned at {i % 24:02d}:15 — 🙂 nobody saw it.\n\nThe keeper noted it." for i in range(12)
)
TALK = turns(f"  {DOCUMENT}", "Noted. \n", f"And this?\n\n{DOCUMENT}\n\n{QUESTION}", ANSWER, system="Be brief.")
ROWS = {
    "last paragraph": turns(f"{DOCUMENT}\n\n{QUESTION}", ANSWER),
    "question first": turns(f"Summarise this:\n\n{DOCUMENT}", ANSWER),
    "earlier turns": TALK,
    "columns": {"context": DOCUMENT, "instruction": QUESTION, "response": ANSWER},
    "context column": turns(f"{QUESTION}\n\n{DOCUMENT}", ANSWER) | {"context": DOCUMENT},
    "headings": {"prompt": f"Document: {DOCUMENT}\n\nQuestion: {QUESTION}\nAnswer:", "completion": f" {ANSWER}"},
    "tool results": {
        "messages": [
            {"role": "user", "content": QUESTION},
            {"role": "assistant", "content": "Let me look."},
            {"role": "tool", "content": DOCUMENT},
            {"role": "assistant", "content": ANSWER},
        ]
    },
    "find_context": turns(f"Now {DOCUMENT} then", ANSWER),
}


def find(text: str) -> tuple[int, int]:
    return text.index("Boat"), text.rindex(" then")


def squeezed(text: str) -> str:
    return "".join(text.split())


@pytest.mark.parametrize("rule", ROWS)
def test_rule_and_span_say_what_was_taken(rule):
    row, find_context = ROWS[rule], find if rule == "find_context" else None
    found = read_conversation(row, find_context)
    assert found.rule == rule
    text = context_text(row, span_of(found))
    assert context_text(row | {"gateau_context_span": span_of(found)}) == text
    assert find_context or context_text(row) == text
    before, context, instruction, response = texts_of(row, span_of(found))
    assert context == text and response == ANSWER and DOCUMENT in text
    if rule == "earlier turns":
        assert text == f"  {DOCUMENT}\n\nNoted. \n\n\nAnd this?\n\n{DOCUMENT}" and before == "Be brief."
    else:
        assert text == DOCUMENT
    assert QUESTION in before + instruction or rule in ("question first", "find_context")


def test_rules_beside_those_of_a_turn_are_documented():
    assert set(OTHER_RULES) <= {*ROWS}


@pytest.mark.parametrize("template", [None, "chatml", "llama2", "qwen3", "llama3_training", "gemma"])
@pytest.mark.parametrize("rule", [x for x in ROWS if x != "tool results"])
@pytest.mark.parametrize("stride", [1, 3])
def test_segments_begin_where_their_tokens_say(rule, template, stride, bpe):
    bpe.chat_template = {None: None, "chatml": CHATML, "llama2": LLAMA_2}.get(template) or (
        template and trl_template(template)
    )
    row, find_context = ROWS[rule], find if rule == "find_context" else None
    if template == "gemma" and rule == "earlier turns":
        row = {"messages": row["messages"][1:]}  # it knows no system turn
    whole = build_sample(row, bpe, find_context=find_context)
    text = context_text(row, whole.span)
    for max_length in (None, whole.response_end - 37):
        sample = build_sample(row, bpe, find_context=find_context, max_length=max_length)
        cut = Cut(16, stride)
        found = about(row, sample, cut)
        starts, firsts = found["gateau_segment_starts"], cut(range(0, len(sample.context), 16))
        assert found["gateau_num_cut_tokens"] == sample.num_truncated == (37 if max_length else 0)
        assert found["gateau_context_rule"] == rule and found["gateau_context_span"] == whole.span
        assert len(starts) == len(firsts) == len(cut(range(-(-len(sample.context) // 16)))) and starts == sorted(
            starts
        )
        assert (starts[0] > 0) == (sample.num_truncated > 0 or firsts[0] > 0)
        for first, start, end in zip(firsts, starts, [*starts[1:], len(text)], strict=True):
            said = squeezed(bpe.decode(sample.context[first:][: 16 * stride]))
            here = squeezed(text[start:end])
            if rule != "earlier turns":  # whose template stands between
                assert said.strip("\ufffd")[:8] in here[:12] or here[:8] in said[:12], (said, here)


def test_segments_of_turns_begin_behind_the_glue(bpe):
    bpe.chat_template = CHATML
    sample = build_sample(TALK, bpe)
    text, places = context_text(TALK, sample.span), sample.places(range(len(sample.context)))
    glue = next(i for i in range(len(places)) if "im_start" in bpe.decode([sample.context[i]]))
    assert text[places[glue] :].startswith("Noted.") and places == sorted(places)
    assert text[places[-1] :].strip() and places[0] <= 2


def test_what_cannot_be_told_is_null(bpe):
    from transformers import ByT5Tokenizer

    row, cut = ROWS["last paragraph"], Cut(16)
    found = about(row, build_sample(row, ByT5Tokenizer()), cut)
    assert found["gateau_segment_starts"] is None and found["gateau_context_rule"] == "last paragraph"
    bpe.chat_template = "{% for m in messages %}{{ m.content | replace('saw', 'SAW') }}\n{% endfor %}"  # rewrites it
    assert (
        about(row, build_sample(row, bpe), cut)["gateau_segment_starts"] is not None
    )  # the same length: it still can
    bad = about({"messages": []}, "no turns", cut)
    assert [
        bad[f"gateau_{name}"] for name in ("context_rule", "context_span", "segment_starts", "num_cut_tokens")
    ] == [None] * 4


def test_texts_of_rows_without_a_context():
    assert texts_of(turns("How?", "So.")) == ("", "", "How?", "So.")
    assert texts_of({"instruction": "How?", "response": "So."}) == ("", "", "How?", "So.")
    assert texts_of({}) == ("", "", "", "") and context_text({"messages": None}) == ""
