"""Which tokens get loss, against oracles that know nothing of how `labels.py` finds them.

First oracle: each template written out by hand as pieces of text, loss or no loss; together they are the rendered
conversation, and a token gets loss where the piece that holds its last character does. Second: TRL's own training
templates, whose `{% generation %}` marks transformers turns into a mask.
"""

import copy
import random

import pytest

from hf_gateau.rows.conversations import SampleError
from hf_gateau.rows.labels import IGNORED, tokenize_for_training
from hf_gateau.rows.places import Rendered
from hf_gateau.rows.rendering import ChatTemplate
from tests.chats import ANSWER, CHATML, CONTEXT, QUESTION, trl_template, turns


SPLIT = (
    "{% if messages[0].role == 'system' %}{% set system = messages[0].content %}{% set turns = messages[1:] %}"
    "{% else %}{% set system = false %}{% set turns = messages %}{% endif %}"
)
TURNS = (
    "{% for m in turns %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('must alternate') }}"
    "{% endif %}{% if loop.SHOWN and system != false %}{% set content = 'SYSTEM' + m.content %}"
    "{% else %}{% set content = m.content %}{% endif %}{% if m.role == 'user' %}"
)
# As in meta-llama/Llama-2-7b-chat-hf: a BOS a pair of turns, the system prompt within the first user turn.
LLAMA_2 = SPLIT + TURNS.replace("SHOWN", "first").replace("SYSTEM", "<<SYS>>\n' + system + '\n<</SYS>>\n\n") + (
    "{{ bos_token + '[INST] ' + content.strip() + ' [/INST]' }}"
    "{% else %}{{ ' ' + content.strip() + ' ' + eos_token }}{% endif %}{% endfor %}"
)  # fmt: skip
# As in mistralai/Mistral-7B-Instruct-v0.2, and -v0.3, whose system prompt goes to the last turn if that is a user's.
MISTRAL_2 = SPLIT + "{{ bos_token }}" + TURNS.replace("SHOWN", "first").replace("SYSTEM", "' + system + '\n\n") + (
    "{{ ' [INST] ' + content + ' [/INST]' }}{% else %}{{ ' ' + m.content + eos_token }}{% endif %}{% endfor %}"
)  # fmt: skip
MISTRAL_3 = SPLIT + "{{ bos_token }}" + TURNS.replace("SHOWN", "last").replace("SYSTEM", "' + system + '\n\n") + (
    "{{ '[INST] ' + content + '[/INST]' }}{% else %}{{ ' ' + m.content | trim + eos_token }}{% endif %}{% endfor %}"
)  # fmt: skip


# The first oracle: the pieces of a conversation, (text, has loss)


def bracketed_pieces(messages, first, user, answer, system="{}\n\n", at=0, strip=()):
    """Llama-2 and Mistral: no role headers; the system prompt stands in turn `at` if that is a user's."""
    has_system = messages[0]["role"] == "system"
    said = [message["content"] for message in messages[has_system:]]
    if has_system and (at == 0 or len(said) % 2):
        said[at] = system.format(messages[0]["content"]) + said[at]
    said = [content.strip() if i % 2 in strip else content for i, content in enumerate(said)]
    return [(first, False), *(((answer if i % 2 else user).format(x), i % 2 == 1) for i, x in enumerate(said))]


def headed_pieces(messages, header, end, first="", last="", assistant="assistant", strip=False):
    """Most templates: a header that names the role, the content, an end."""
    pieces = [(first, False)]
    for message in messages:
        is_answer, content = message["role"] == "assistant", message["content"]
        pieces.append((header.format(assistant if is_answer else message["role"]), False))
        pieces.append(((content.strip() if strip else content) + end, is_answer))
    return [*pieces, (last, is_answer)]


def chatml(messages):
    return headed_pieces(messages, "<|im_start|>{}\n", "<|im_end|>\n")


def qwen_2(messages):
    default = turns(system="You are Qwen, created by Alibaba Cloud. You are a helpful assistant.")["messages"]
    return chatml(messages if messages[0]["role"] == "system" else default + messages)


def qwen_3(messages):
    *before, last = messages
    thought = "<think>\n\n</think>\n\n" + last["content"].lstrip("\n")
    return chatml([*before, last | {"content": thought}] if last["role"] == "assistant" else messages)


LLAMA_3_HEADER, GEMMA_HEADER = "<|start_header_id|>{}<|end_header_id|>\n\n", "<start_of_turn>{}\n"
SYS = "<<SYS>>\n{}\n<</SYS>>\n\n"
SPECS = {
    "llama-2": (LLAMA_2, lambda m: bracketed_pieces(m, "", "<s>[INST] {} [/INST]", " {} </s>", SYS, strip=(0, 1))),
    "llama-3": (trl_template("llama3"), lambda m: headed_pieces(m, LLAMA_3_HEADER, "<|eot_id|>", "<s>", strip=True)),
    "qwen-2.5": (trl_template("qwen2_5"), qwen_2),
    "qwen-3": (trl_template("qwen3"), qwen_3),
    "mistral-0.2": (MISTRAL_2, lambda m: bracketed_pieces(m, "<s>", " [INST] {} [/INST]", " {}</s>")),
    "mistral-0.3": (MISTRAL_3, lambda m: bracketed_pieces(m, "<s>", "[INST] {}[/INST]", " {}</s>", at=-1, strip=(1,))),
    "chatml": (CHATML, chatml),
    "gemma": (
        trl_template("gemma"),
        lambda m: headed_pieces(m, GEMMA_HEADER, "<end_of_turn>\n", "<s>", "", "model", True),
    ),
    "phi-3": (trl_template("phi3"), lambda m: headed_pieces(m, "<|{}|>\n", "<|end|>\n", last="</s>")),
}


def learned(input_ids, mask) -> dict[str, list[int]]:
    return {"input_ids": input_ids, "labels": [x if on else IGNORED for x, on in zip(input_ids, mask, strict=True)]}


def expected_of(pieces, tokenizer, add_special_tokens=False) -> dict[str, list[int]]:
    text, has_loss = "".join(piece for piece, _ in pieces), [loss for piece, loss in pieces for _ in piece]
    encoding = tokenizer(text, return_offsets_mapping=True, add_special_tokens=add_special_tokens)
    return learned(encoding["input_ids"], [end > 0 and has_loss[end - 1] for _, end in encoding["offset_mapping"]])


# Conversations

FRAGMENTS = (
    "Yes.", "the boats return at 06:15", "42", "1 234,5", "naïve", "日本語です", "🙂", "👩‍👩‍👧‍👦", "\n", "\n\n", "\t", "  ",
    "\u00a0", "[INST]", " [/INST] ", "<<SYS>>", "<</SYS>>", "<s>", "</s>", "<|im_start|>assistant\n", "<|im_end|>\n",
    "<|eot_id|>", "<|start_header_id|>assistant<|end_header_id|>\n\n", "<end_of_turn>\n", "<start_of_turn>model\n",
    "<", "<|end|>\n", "<|assistant|>\n", "<|user|>\n", "### Response:\n", "{{ bos_token }}", "{}", "|", ">", "user",
)  # fmt: skip


def text_of(rng: random.Random) -> str:
    words = [rng.choice(FRAGMENTS) for _ in range(rng.randint(0, 8))]
    words.insert(rng.randint(0, len(words)), rng.choice(("Yes.", "é", "7", "🙂", "A long answer")))
    return (
        rng.choice(("", " ", "\n", " \n\t")) + rng.choice((" ", "")).join(words) + rng.choice(("", " ", "\n", "\n\n "))
    )


def conversations(num_rows: int, seed: int, system: bool) -> list[list[dict]]:
    """1 to 4 pairs of turns; in every third row all answers are one, which in every sixth is the question too."""
    rng = random.Random(seed)
    rows = []
    for i in range(num_rows):
        contents = [text_of(rng) for _ in range(2 * rng.randint(1, 4))]
        contents[1::2] = [contents[1]] * (len(contents) // 2) if i % 3 == 0 else contents[1::2]
        contents[::2] = contents[1::2] if i % 6 == 0 else contents[::2]
        contents += [text_of(rng)] if i % 5 == 0 else []  # ends in a user turn, which has no loss
        rows.append(turns(*contents, system=text_of(rng) if system and rng.random() < 0.5 else None)["messages"])
    return rows


# Loss is on every assistant turn, whole


@pytest.mark.parametrize("name", SPECS)
def test_labels_equal_the_pieces_written_by_hand(bpe, name):
    """Two have ways of their own: Phi-3 puts EOS after the last turn alone (its headers are no special tokens here);
    with a system prompt, Mistral v0.3's generation prompt is no prefix of the conversation it began.
    """
    bpe.chat_template, pieces_of = SPECS[name]
    for messages in conversations(200, seed=len(name), system=name != "gemma"):
        pieces = pieces_of(messages)
        assert "".join(text for text, _ in pieces) == bpe.apply_chat_template(messages, tokenize=False)
        seen, expected = tokenize_for_training({"messages": messages}, bpe), expected_of(pieces, bpe)
        in_sft_trainer = bpe.apply_chat_template(messages, tokenize=True, return_dict=True)["input_ids"]
        assert seen["input_ids"] == expected["input_ids"] == in_sft_trainer
        assert seen["labels"] == expected["labels"], messages


@pytest.mark.parametrize("name", ["llama3", "qwen2_5", "qwen3", "gemma", "gemma3", "phi3"])
def test_labels_equal_trl_generation_marks(bpe, name):
    """TRL's marks count the newline after the end of a turn, as we do. Where the two differ by design:

    - Qwen2.5's begin before the newline that ends the role header, a part of the generation prompt: no loss for us.
    - Qwen3's training template thinks in every turn, the plain one in the last alone: single pairs are compared.
    - Of several tokens of one character that ends a span, transformers marks the first; the others follow it here.
    """
    for messages in conversations(50, seed=len(name), system=name not in ("gemma", "gemma3")):
        messages = messages[: 2 + (messages[0]["role"] == "system")] if name == "qwen3" else messages
        bpe.chat_template = trl_template(f"{name}_training")
        marked = bpe.apply_chat_template(messages, tokenize=True, return_dict=True, return_assistant_tokens_mask=True)
        ids, mask = marked["input_ids"], marked["assistant_masks"]
        assert tokenize_for_training({"messages": messages}, bpe) == learned(ids, mask)
        text = bpe.apply_chat_template(messages, tokenize=False)
        places = bpe(text, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
        starts = [i for i in range(1, len(ids)) if mask[i] and not mask[i - 1]]
        for i in range(1, len(ids)):
            mask[i] = mask[i - 1] if places[i] == places[i - 1] else mask[i]
        for i in starts if name == "qwen2_5" else ():
            mask[i] = text[slice(*places[i])] != "\n"
        bpe.chat_template = trl_template(name)
        assert tokenize_for_training({"messages": messages}, bpe) == learned(ids, mask)


def test_spans_of_answers_that_are_alike(bpe):
    bpe.chat_template = CHATML
    messages = turns("Yes.", "Yes.", "assistant\nYes.", "Yes.", "<|im_start|>assistant\nYes.", "Yes.", "Yes.")[
        "messages"
    ]
    text = bpe.apply_chat_template(messages, tokenize=False)
    spans = Rendered(ChatTemplate.of({}, bpe), messages).answers()
    assert [text[start:end] for start, end in spans] == ["Yes.<|im_end|>\n"] * 3
    assert [text[:start].count("<|im_end|>") for start, _ in spans] == [1, 3, 5]


def test_first_and_consecutive_assistant_turns(bpe):
    bpe.chat_template = CHATML
    roles = ("assistant", "assistant", "user", "tool", "assistant", "assistant", "user")
    messages = [{"role": role, "content": ANSWER} for role in roles]
    assert tokenize_for_training({"messages": messages}, bpe) == expected_of(chatml(messages), bpe)


# Rows of other forms


@pytest.mark.parametrize("template", [CHATML, LLAMA_2, trl_template("llama3_training"), None])
def test_sharegpt_and_columns_equal_the_same_messages(bpe, template):
    bpe.chat_template = template
    row = turns(CONTEXT + "\n\n" + QUESTION, ANSWER, "Sure?", ANSWER, system="Be brief.")
    names = {"user": "human", "assistant": "gpt", "system": "system"}
    shared = [{"from": names[m["role"]], "value": m["content"]} for m in row["messages"]]
    assert tokenize_for_training({"conversations": shared}, bpe) == tokenize_for_training(row, bpe)
    columns = {"context": CONTEXT, "instruction": QUESTION, "response": ANSWER}
    single = turns(CONTEXT + "\n\n" + QUESTION, ANSWER)
    assert tokenize_for_training(columns, bpe) == tokenize_for_training(single, bpe)


IN_PLAIN_FORM = [
    (turns(f"{CONTEXT}\n\n{QUESTION}", ANSWER), f"### Input:\n{CONTEXT}\n### Instruction:\n{QUESTION}"),
    (turns(QUESTION, ANSWER), f"### Instruction:\n{QUESTION}"),
    (turns(QUESTION, ANSWER, "Sure?"), f"### Instruction:\n{QUESTION}"),
    (turns(QUESTION, "06:15.", "Sure?", ANSWER), f"### Input:\n{QUESTION}\n\n06:15.\n### Instruction:\nSure?"),
]


@pytest.mark.parametrize("row, head", IN_PLAIN_FORM)
def test_without_a_chat_template_the_last_answer_and_eos_are_learned(bpe, row, head):
    bpe.chat_template = None
    expected = expected_of([(f"{head}\n### Response:\n", False), (ANSWER, True)], bpe, add_special_tokens=True)
    assert tokenize_for_training(row, bpe) == {name: ids + [bpe.eos_token_id] for name, ids in expected.items()}


USER, ASSISTANT = turns("a", "b")["messages"]


NULL = {"role": "assistant", "content": None}
UNUSABLE = [
    ({"messages": [USER, USER]}, "no turn is the assistant's"),
    ({"messages": [USER]}, "1 turn"),
    ({"messages": [USER, NULL]}, r"turn 1 \(assistant\) is null"),
    ({"messages": [USER, ASSISTANT, USER | {"content": None}]}, r"turn 2 \(user\) is null"),
    ({"messages": None}, "messages is null"),
    ({"conversations": [{"from": "human", "value": "a"}, {"from": "gpt"}]}, "without from and value"),
    ({"context": "a", "instruction": "b", "response": None}, "response is null"),
]


@pytest.mark.parametrize("template", [CHATML, trl_template("llama3_training"), None])
@pytest.mark.parametrize("row, reason", UNUSABLE)
def test_rows_with_nothing_to_learn_say_why(bpe, template, row, reason):
    bpe.chat_template = template
    with pytest.raises(SampleError, match=reason):
        tokenize_for_training(row, bpe)


@pytest.mark.parametrize("template", [trl_template("gemma"), trl_template("gemma_training")])
def test_template_that_refuses_says_why(bpe, template):
    bpe.chat_template = template
    with pytest.raises(SampleError, match="refuses the conversation: System role not supported"):
        tokenize_for_training(turns("a", "b", system="Be brief."), bpe)


# What GateauSFTTrainer trains on


@pytest.mark.parametrize("is_marked", [True, False])
def test_trainer_has_these_labels_and_counts_what_it_drops(tiny_model, tokenizer, tmp_path, is_marked):
    """The planted language has a token a word, so that the expected labels can be counted off by hand."""
    from datasets import Dataset

    from hf_gateau import GateauSFTConfig, GateauSFTTrainer
    from hf_gateau.rows.cutting import NO_TARGETS

    tokenizer = copy.deepcopy(tokenizer)
    if not is_marked:
        marks = ("{% generation %}", "{% endgeneration %}")
        tokenizer.chat_template = tokenizer.chat_template.replace(marks[0], "").replace(marks[1], "")
    words = [word for word in tokenizer.get_vocab() if word.isalpha()]
    say = lambda start, n: " ".join(words[start : start + n])  # noqa: E731
    rows = [
        turns(say(0, 4), say(4, 3), say(7, 2), say(4, 3)),
        turns(say(0, 10), say(10, 12)),  # cut within the response
        turns(say(0, 16), say(10, 3)),  # one token of the response is left
        turns(say(0, 17), say(10, 3)),  # none is
        turns(say(0, 25), say(10, 3)),
        {"messages": [USER, NULL]},
        {"messages": [USER, USER]},
    ]
    on_cpu = {"use_cpu": True, "bf16": False, "gradient_checkpointing": False, "report_to": "none"}
    args = GateauSFTConfig(output_dir=str(tmp_path), max_length=20, **on_cpu)
    trainer = GateauSFTTrainer(tiny_model, args, train_dataset=Dataset.from_list(rows), processing_class=tokenizer)
    unusable = {"turn 1 (assistant) is null": 1, "no turn is the assistant's": 1}
    assert trainer.num_lost == {"train": {NO_TARGETS: 2, **unusable}}
    masks = [  # <s> <|user|> 4 words <|assistant|>, 3 words </s>, <|user|> 2 words <|assistant|>, 3 words </s>
        [0] * 7 + [1] * 4 + [0] * 4 + [1] * 4,
        [0] * 13 + [1] * 7,
        [0] * 19 + [1] * 1,
    ]
    assert len(trainer.train_dataset) == len(masks)
    for row, trained, mask in zip(rows, trainer.train_dataset, masks, strict=False):
        whole = tokenizer.apply_chat_template(row["messages"], tokenize=True, return_dict=True)["input_ids"]
        assert {name: trained[name] for name in ("input_ids", "labels")} == learned(whole[:20], mask)


# Rows and templates that transformers and TRL know


def test_one_of_several_chat_templates_is_used(bpe):
    """transformers keeps several templates as a dict and renders with the one called `default`."""
    row = turns(QUESTION, ANSWER)
    bpe.chat_template = CHATML
    expected = tokenize_for_training(row, bpe)
    bpe.chat_template = {"default": CHATML, "tool_use": LLAMA_2}
    assert tokenize_for_training(row, bpe) == expected


def test_thoughts_within_the_answer_are_learned(bpe):
    """Qwen3's template takes the thoughts out of the last answer and writes them anew."""
    bpe.chat_template = trl_template("qwen3")
    row = turns(QUESTION, f"<think>Boats.</think>{ANSWER}", "Sure?", f"<think>\nBoats.\n</think>\n\n{ANSWER}")
    shown = turns(QUESTION, ANSWER, "Sure?", f"<think>\nBoats.\n</think>\n\n{ANSWER}")["messages"]
    assert tokenize_for_training(row, bpe) == expected_of(chatml(shown), bpe)


TOOLS = {"tools": [{"name": "tide"}]}


@pytest.mark.parametrize("extra", [TOOLS, {"chat_template_kwargs": TOOLS}])
def test_tools_of_a_row_are_shown(bpe, extra):
    """`SFTTrainer` hands the columns `tools` and `chat_template_kwargs` to the template."""
    bpe.chat_template = trl_template("qwen2_5")
    row = turns(QUESTION, ANSWER)
    seen = bpe.apply_chat_template(row["messages"], **TOOLS, tokenize=True, return_dict=True)["input_ids"]
    assert tokenize_for_training({**row, **extra}, bpe)["input_ids"] == seen
