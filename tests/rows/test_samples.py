"""Token spans: their concatenation is what SFTTrainer sees, and each token is counted once, in the right span."""

import json

import pytest

from hf_gateau.rows.conversations import SampleError
from hf_gateau.rows.labels import tokenize_for_training
from hf_gateau.rows.samples import build_sample
from tests.chats import ANSWER, CHATML, CONTEXT, LLAMA_2, QUESTION, trl_template, turns


pytestmark = pytest.mark.quick


MISTRAL = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}{{ '[INST] ' + m.content + '[/INST]' }}"
    "{% else %}{{ ' ' + m.content + eos_token }}{% endif %}{% endfor %}"
)
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


def test_template_that_refuses_or_rewrites_is_a_reason(bpe):
    bpe.chat_template = "{{ raise_exception('no such role') }}"
    with pytest.raises(SampleError, match="refuses the conversation: no such role"):
        build_sample(ROW, bpe)
    bpe.chat_template = "{% for m in messages %}{{ m.content | replace('.', '') }}{% endfor %}"
    dotted = {"messages": [{"role": "user", "content": "a.\n\nb"}, ROW["messages"][1]]}
    assert (
        squeezed(bpe.decode(build_sample(dotted, bpe).context)) == "a"
    )  # rewritten, but not where its borders are told
    bpe.chat_template = "{% for m in messages %}{{ m.content | reverse }}{% endfor %}"
    with pytest.raises(SampleError, match="does not write what turn 1"):
        build_sample(ROW, bpe)
    bpe.chat_template = "{% for m in messages %}{{ m.content + m.content }}{% endfor %}"
    with pytest.raises(SampleError, match="2 times"):
        build_sample(ROW, bpe)


TOOLS = [{"type": "function", "function": {"name": "tide", "parameters": {"type": "object", "properties": {}}}}]


@pytest.mark.parametrize(
    "template, given, options",
    [
        ("qwen3", {"tools": TOOLS}, {"tools": TOOLS}),
        ("qwen3", {"tools": json.dumps(TOOLS)}, {"tools": TOOLS}),
        ("llama3_1", {"tools": []}, {"tools": []}),  # Llama writes about tools where there are none; so does TRL
        ("llama3_1", {"chat_template_kwargs": {"date_string": "1 May 2020"}}, {"date_string": "1 May 2020"}),
        ("qwen3_5_think", {"chat_template_kwargs": {"enable_thinking": False}}, {"enable_thinking": False}),
        ("gemma", {"chat_template_kwargs": {"chat_template": CHATML}}, {"chat_template": CHATML}),
        ("qwen3", {"chat_template_kwargs": {"tools": TOOLS}}, {"tools": TOOLS}),
    ],
)
def test_what_a_row_gives_to_the_template_is_measured(bpe, template, given, options):
    bpe.chat_template = trl_template(template)
    sample, plain = build_sample(ROW | given, bpe), build_sample(ROW, bpe)
    whole = bpe.apply_chat_template(ROW["messages"], tokenize=True, return_dict=True, **options)["input_ids"]
    assert sample.input_ids == whole == tokenize_for_training(ROW | given, bpe)["input_ids"]
    is_shown = template != "qwen3_5_think"  # there the prompt alone shows it: the same tokens, other ones learned
    assert (whole != plain.input_ids) == is_shown
    assert sample.key != plain.key
    for nothing in ({"tools": None}, {"chat_template_kwargs": None}, {"chat_template_kwargs": {}}):
        assert build_sample(ROW | nothing, bpe) == plain


@pytest.mark.parametrize(
    "given, reason",
    [
        ({"tools": "hammer"}, "tools is no list of functions"),
        ({"tools": ["hammer"]}, "tools is no list of functions"),
        ({"chat_template_kwargs": ["x"]}, "chat_template_kwargs is a list"),
        ({"chat_template_kwargs": {"tokenize": True, "x": 1}}, "sets tokenize, which training sets itself"),
        ({"chat_template_kwargs": {"chat_template": "{{ raise_exception('no') }}"}}, r"no \(turn 0, user\)"),
    ],
)
def test_what_no_template_can_be_given_is_a_reason(bpe, given, reason):
    bpe.chat_template = CHATML
    for function in (build_sample, tokenize_for_training):
        with pytest.raises(SampleError, match=reason):
            function(ROW | given, bpe)


def test_template_for_tools_is_taken_where_there_are_tools(bpe):
    bpe.chat_template = {"default": CHATML, "tool_use": trl_template("qwen2_5")}
    sample = build_sample(ROW | {"tools": TOOLS}, bpe)
    bpe.chat_template = trl_template("qwen2_5")
    assert sample == build_sample(ROW | {"tools": TOOLS}, bpe)
