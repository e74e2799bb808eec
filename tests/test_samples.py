"""Token spans: their concatenation is what SFTTrainer sees, and each token is counted once, in the right span."""

import string
from importlib.resources import files

import pytest

from hf_gateau.conversations import MARKER, SampleError, last_paragraph
from hf_gateau.samples import build_sample


CONTEXT = (
    "The harbour of Aveiro smells of salt.\n\nIts boats — painted — return at 06:15, 🙂 and not earlier.  \n\tEnd."
)
QUESTION = "When do the boats return?"
ANSWER = "They return at 06:15."
LLAMA_2 = (
    "{% for m in messages %}{% if m.role == 'system' %}{{ '<<SYS>>' + m.content + '<</SYS>>\n' }}"
    "{% elif m.role == 'user' %}{{ bos_token + '[INST] ' + m.content.strip() + ' [/INST]' }}"
    "{% else %}{{ ' ' + m.content.strip() + ' ' + eos_token }}{% endif %}{% endfor %}"
)
CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
MISTRAL = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}{{ '[INST] ' + m.content + '[/INST]' }}"
    "{% else %}{{ ' ' + m.content + eos_token }}{% endif %}{% endfor %}"
)


def trl_template(name: str) -> str:
    return (files("trl") / "chat_templates" / f"{name}.jinja").read_text()


TEMPLATES = {
    "llama-2": LLAMA_2,
    "chatml": CHATML,
    "mistral": MISTRAL,
    "llama-3": trl_template("llama3"),
    "llama-3 with generation marks": trl_template("llama3_training"),
    "qwen3": trl_template("qwen3"),
    "qwen3 with generation marks": trl_template("qwen3_training"),
    "gemma": trl_template("gemma"),
    "phi-3": trl_template("phi3"),
}


def train_bpe(byte_level: bool, bos: bool):
    """A BPE tokenizer trained on a few lines: byte-level as GPT-2's, or with SentencePiece's ▁, as Llama-2's."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE(unk_token=None if byte_level else "<unk>", byte_fallback=not byte_level))
    if byte_level:
        tokenizer.pre_tokenizer, tokenizer.decoder = (
            pre_tokenizers.ByteLevel(add_prefix_space=False),
            decoders.ByteLevel(),
        )
        alphabet = pre_tokenizers.ByteLevel.alphabet()
    else:
        tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
        alphabet = list(string.printable)
    specials = ["<unk>", "<s>", "</s>", "<|im_start|>", "<|im_end|>"]
    texts = [CONTEXT, QUESTION, ANSWER, LLAMA_2, "### Input:\n\n### Instruction:\n### Response:\n user assistant"] * 5
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=specials, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    if bos:
        tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


@pytest.fixture(scope="module", params=["byte-level", "sentencepiece"])
def bpe(request):
    return train_bpe(request.param == "byte-level", bos=request.param == "sentencepiece")


def turns(*contents, system=None) -> dict:
    roles = ["user", "assistant"] * len(contents)
    messages = [{"role": role, "content": content} for role, content in zip(roles, contents, strict=False)]
    return {"messages": ([{"role": "system", "content": system}] if system else []) + messages}


ROW = turns(CONTEXT + "\n\n" + QUESTION, ANSWER)


def squeezed(text: str) -> str:
    return "".join(text.split())


@pytest.mark.parametrize("template", TEMPLATES)
def test_spans_of_chat_templates(bpe, template):
    bpe.chat_template = TEMPLATES[template]
    sample = build_sample(ROW, bpe)
    whole = bpe.apply_chat_template(ROW["messages"], tokenize=True, return_dict=True)["input_ids"]
    assert sample.input_ids == whole
    decode = lambda ids: squeezed(bpe.decode(ids, skip_special_tokens=False))  # noqa: E731
    assert decode(sample.context) == squeezed(CONTEXT)
    assert decode(sample.instruction).startswith(squeezed(QUESTION))
    assert squeezed(ANSWER) in decode(sample.response)
    assert squeezed(ANSWER) not in decode(sample.input_ids[: sample.response_start])
    spans = sample.prefix + sample.context + sample.instruction + sample.response
    assert spans == whole[: sample.response_end]
    assert decode(whole[sample.response_end :]) == ""  # nothing but white space is left out


@pytest.mark.parametrize("template", TEMPLATES)
def test_response_is_what_training_puts_loss_on(bpe, template):
    """TRL's prompt-completion tokenisation counts what follows the prompt; generation marks count what they mark."""
    bpe.chat_template = TEMPLATES[template]
    sample = build_sample(ROW, bpe)
    encoded = bpe.apply_chat_template(
        ROW["messages"], tokenize=True, return_dict=True, return_assistant_tokens_mask=True
    )
    if any(encoded["assistant_masks"]):
        expected = [
            token for token, mark in zip(encoded["input_ids"], encoded["assistant_masks"], strict=True) if mark
        ]
    else:
        prompt = bpe.apply_chat_template(
            ROW["messages"][:1], tokenize=True, add_generation_prompt=True, return_dict=True
        )["input_ids"]
        assert encoded["input_ids"][: len(prompt)] == prompt
        expected = encoded["input_ids"][len(prompt) :]
    assert sample.response == expected


def test_plain_form_without_a_chat_template(bpe):
    bpe.chat_template = None
    sample = build_sample(ROW, bpe)
    text = f"### Input:\n{CONTEXT}\n### Instruction:\n{QUESTION}\n### Response:\n{ANSWER}"
    assert sample.input_ids == [*bpe(text)["input_ids"], bpe.eos_token_id]
    assert squeezed(bpe.decode(sample.response)) == squeezed(ANSWER) + "</s>"
    assert squeezed(bpe.decode(sample.context)) == squeezed(CONTEXT)
    assert squeezed(bpe.decode(sample.prefix)).removeprefix("<s>") == "###Input:"


def test_first_response_token_counts_after_a_trailing_space(bpe):
    """`### Response: ` with a space: the token that holds the space and the first letters belongs to the response."""
    bpe.chat_template = (
        "{% for m in messages %}{{ 'Q: ' + m.content + ' A: ' if m.role == 'user' else m.content }}{% endfor %}"
    )
    sample = build_sample(ROW, bpe)
    assert squeezed(bpe.decode(sample.response)) == squeezed(ANSWER)
    assert (
        sample.input_ids
        == bpe("Q: " + CONTEXT + "\n\n" + QUESTION + " A: " + ANSWER, add_special_tokens=False)["input_ids"]
    )


def test_tokenizer_without_offsets():
    from transformers import ByT5Tokenizer

    tokenizer = ByT5Tokenizer()
    assert not tokenizer.is_fast
    sample = build_sample(ROW, tokenizer)
    assert tokenizer.decode(sample.context) == CONTEXT
    assert tokenizer.decode(sample.response) == ANSWER + "</s>"
    tokenizer.chat_template = CHATML
    sample = build_sample(ROW, tokenizer)
    assert tokenizer.decode(sample.context) == CONTEXT
    assert tokenizer.decode(sample.response) == ANSWER + "<|im_end|>\n"


def test_sft_trainer_sees_the_same_tokens(rows, tokenizer, tiny_model, tmp_path):
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    args = SFTConfig(
        output_dir=str(tmp_path), max_length=None, assistant_only_loss=True, report_to="none", use_cpu=True
    )
    messages = [{"messages": row["messages"]} for row in rows]
    trainer = SFTTrainer(tiny_model, args=args, train_dataset=Dataset.from_list(messages), processing_class=tokenizer)
    for row, trained in zip(rows, trainer.train_dataset, strict=True):
        sample = build_sample(row, tokenizer)
        assert sample.input_ids == trained["input_ids"]
        assert sample.response == [label for label in trained["labels"] if label != -100]


def test_several_turns(bpe):
    bpe.chat_template = CHATML
    row = turns(
        "The sky is green here.", "Noted.", "And the sea?\n\nWhat colour is the sky?", "Green.", system="Be brief."
    )
    sample = build_sample(row, bpe)
    context = squeezed(bpe.decode(sample.context))
    assert context.startswith("Theskyisgreenhere.") and context.endswith("Andthesea?") and "Noted." in context
    assert squeezed(bpe.decode(sample.prefix)).endswith("user") and "Bebrief." in squeezed(bpe.decode(sample.prefix))
    assert squeezed(bpe.decode(sample.instruction)).startswith("Whatcolouristhesky?")
    assert squeezed(bpe.decode(sample.response)) == "Green.<|im_end|>"


def test_several_turns_with_a_one_paragraph_question(bpe):
    for template in (CHATML, None):
        bpe.chat_template = template
        sample = build_sample(turns("The sky is green here.", "Noted.", "What colour is the sky?", "Green."), bpe)
        context = squeezed(bpe.decode(sample.context))
        assert context.startswith("Theskyisgreenhere.") and context.endswith("Noted.")
        assert "Whatcolouristhesky?" in squeezed(bpe.decode(sample.instruction))


def test_explicit_columns_equal_the_same_messages(bpe):
    bpe.chat_template = CHATML
    columns = {"context": CONTEXT, "instruction": QUESTION, "response": ANSWER}
    assert build_sample(columns, bpe) == build_sample(ROW, bpe)
    assert build_sample({"messages": None, **columns}, bpe) == build_sample(ROW, bpe)


def test_context_column_finds_a_context_that_follows_its_question(bpe):
    bpe.chat_template = CHATML
    row = {**turns(QUESTION + "\n\n" + CONTEXT, ANSWER), "context": CONTEXT}
    sample = build_sample(row, bpe)
    assert squeezed(bpe.decode(sample.context)) == squeezed(CONTEXT)
    assert squeezed(QUESTION) in squeezed(bpe.decode(sample.prefix))


def test_find_context_names_the_context(bpe):
    bpe.chat_template = CHATML
    row = turns("Question: why? Text: because.", "Because.")
    sample = build_sample(row, bpe, find_context=lambda text: (text.index("Text: ") + 6, len(text)))
    assert bpe.decode(sample.context).strip() == "because."
    with pytest.raises(SampleError, match=r"span \(5, 500\)"):
        build_sample(row, bpe, find_context=lambda text: (5, 500))
    with pytest.raises(SampleError, match="find_context failed: ValueError"):
        build_sample(row, bpe, find_context=lambda text: text.index("nowhere"))


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


def test_left_truncation_takes_from_the_context_alone(bpe):
    bpe.chat_template = CHATML
    whole = build_sample(ROW, bpe)
    for max_length in (whole.response_end, whole.response_end - 1, whole.response_end - len(whole.context) + 1):
        cut = build_sample(ROW, bpe, max_length=max_length)
        assert cut.response_end == max_length and cut.num_truncated == whole.response_end - max_length
        assert (cut.prefix, cut.instruction, cut.response) == (whole.prefix, whole.instruction, whole.response)
        assert cut.context == whole.context[cut.num_truncated :]
        assert (cut.key == whole.key) == (cut.num_truncated == 0)
    with pytest.raises(SampleError, match="leave no room for context"):
        build_sample(ROW, bpe, max_length=whole.response_end - len(whole.context))


def test_key_tells_borders_apart(bpe):
    bpe.chat_template = CHATML
    whole = build_sample(ROW, bpe)
    other = build_sample(ROW, bpe, find_context=lambda text: (0, text.index("\n\n")))
    assert whole.input_ids == other.input_ids and whole.key != other.key


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
def test_unusable_rows_say_why(row, reason, bpe):
    bpe.chat_template = CHATML
    with pytest.raises(SampleError) as error:
        build_sample(row, bpe)
    assert reason in str(error.value)


def test_template_that_refuses_or_rewrites_is_a_reason(bpe):
    bpe.chat_template = "{{ raise_exception('no such role') }}"
    with pytest.raises(SampleError, match="refuses the conversation: no such role"):
        build_sample(ROW, bpe)
    bpe.chat_template = "{% for m in messages %}{{ m.content | replace('T', '7') }}{% endfor %}"
    with pytest.raises(SampleError, match="rewrites the content"):
        build_sample(ROW, bpe)
    bpe.chat_template = "{% for m in messages %}{{ m.content + m.content }}{% endfor %}"
    with pytest.raises(SampleError, match="2 times"):
        build_sample(ROW, bpe)
