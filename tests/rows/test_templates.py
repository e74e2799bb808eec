"""All chat templates that TRL ships, by all shapes of rows: what is measured is what is trained is what TRL's `SFTTrainer` trains.

Tokens' oracle: `apply_chat_template` as `SFTTrainer` calls it. Labels' oracle: the mask of TRL's own training templates, for
the rows that both of a pair write alike, less what the plain template's generation prompt has of a turn: that is not learned.
"""

import os
from collections import Counter

import pytest
from datasets import Dataset

from hf_gateau.rows.conversations import SampleError
from hf_gateau.rows.labels import IGNORED, tokenize_for_training
from hf_gateau.rows.samples import build_sample
from tests.rows.shapes import ANSWER, DOCUMENT, SHAPES, TEMPLATES, TOOLS, assistant, marked_tokenizer, user
from tests.tiny_models import make_model


PAIRS = [name for name in TEMPLATES if name + "_training" in TEMPLATES]
# Rows whose labels are not those of TRL's marks, and why
OTHER_LABELS = {
    # Marks of two turns run into one, over the header between them; DiffusionGemma writes none.
    **{("*", "two answers in turn"): "TRL has loss on the header of the second"},
    # A call ends in `<|tool_response>`, and behind a result the prompt has no header, but the conversation has.
    **{("diffusion_gemma", shape): "its prompt is not what it writes" for shape, row in SHAPES.items() if "tools" in row},
}  # fmt: skip
LISTS_OF_PARTS = ("idefics3", "llava_next", "smolvlm")  # they write no content that is a string
# What ours refuses and TRL trains: nothing of an answer would be in the text, or a tool's result would be learned.
OURS_TO_REFUSE = ("does not write what turn", "says inside turn")


@pytest.fixture(scope="module")
def tokenizer():
    return marked_tokenizer()


def as_trl_calls(tokenizer, row: dict, messages=None, **settings):
    """`tokenize_fn` of TRL 1.16's `SFTTrainer`."""
    given = {"chat_template": None, "tools": row.get("tools"), **row.get("chat_template_kwargs", {}), **settings}
    return tokenizer.apply_chat_template(row["messages"] if messages is None else messages, **given)


def tokens_of_trl(tokenizer, row: dict):
    try:
        return as_trl_calls(tokenizer, row, tokenize=True, return_dict=True)["input_ids"]
    except Exception as error:  # a template raises what it likes
        return error


def ours(function, row: dict, tokenizer):
    try:
        return function(row, tokenizer)
    except SampleError as error:
        return str(error)


def last_span(labels: list[int]) -> tuple[int, int]:
    end = max(i for i, label in enumerate(labels) if label != IGNORED) + 1
    return next((i + 1 for i in range(end - 1, -1, -1) if labels[i] == IGNORED), 0), end


@pytest.mark.parametrize("name", TEMPLATES)
def test_measured_trained_and_trl_tokens_agree_or_the_row_is_refused(name, tokenizer):
    tokenizer.chat_template = TEMPLATES[name]
    for shape, row in SHAPES.items():
        expected = tokens_of_trl(tokenizer, row)
        trained, measured = ours(tokenize_for_training, row, tokenizer), ours(build_sample, row, tokenizer)
        if isinstance(expected, Exception):
            assert trained == measured and "refuses the conversation" in trained, shape
        elif isinstance(trained, str):
            assert trained == measured and any(reason in trained for reason in OURS_TO_REFUSE), (shape, trained)
            assert "turn" in trained
        else:
            assert trained["input_ids"] == measured.input_ids == expected, shape
            if shape != "two answers in turn":  # whose labels may touch
                assert (measured.response_start, measured.response_end) == last_span(trained["labels"]), shape
            assert measured.context and measured.prefix


def test_most_rows_are_taken_and_no_template_refuses_plain_text(tokenizer):
    taken = Counter()
    for name, template in TEMPLATES.items():
        tokenizer.chat_template = template
        taken[name] = sum(not isinstance(ours(build_sample, row, tokenizer), str) for row in SHAPES.values())
    without_text = {name for name in TEMPLATES if name.startswith(LISTS_OF_PARTS)}
    assert {name for name in TEMPLATES if not taken[name]} == without_text
    for name, least in {
        "qwen3": 23,
        "qwen2_5": 23,
        "llama3_1": 22,
        "gptoss": 23,
        "glm4moe": 22,
        "gemma4_v5": 21,
    }.items():
        assert taken[name] >= least, (name, taken[name])


@pytest.mark.parametrize("name", PAIRS)
def test_labels_are_those_of_trl_training_template(name, tokenizer):
    num_compared = 0
    for shape, row in SHAPES.items():
        tokenizer.chat_template = TEMPLATES[name]
        trained = ours(tokenize_for_training, row, tokenizer)
        if isinstance(trained, str) or (name, shape) in OTHER_LABELS or ("*", shape) in OTHER_LABELS:
            continue
        marks = {"chat_template": TEMPLATES[name + "_training"], "return_assistant_tokens_mask": True}
        try:
            marked = as_trl_calls(tokenizer, row, tokenize=True, return_dict=True, **marks)
        except Exception:  # stricter than the plain one
            continue
        if marked["input_ids"] != trained["input_ids"]:  # written otherwise: thoughts in every turn, for one
            continue
        mask = without_prompts(row, tokenizer, marked["assistant_masks"])
        expected = [x if on else IGNORED for x, on in zip(marked["input_ids"], mask, strict=True)]
        assert trained["labels"] == expected, shape
        num_compared += 1
    assert num_compared >= 3 or name.startswith(("glm4moe", *LISTS_OF_PARTS))  # GLM's pair never writes alike


def without_prompts(row: dict, tokenizer, mask: list[int]) -> list[int]:
    """TRL's mask, less what the template itself writes to prompt for a turn."""
    text = as_trl_calls(tokenizer, row, tokenize=False)
    places = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
    mask, glues = list(mask), set()
    for i, message in enumerate(row["messages"]):
        if message["role"] != "assistant":
            continue
        before = row["messages"][:i]
        prompt = as_trl_calls(tokenizer, row, before, tokenize=False, add_generation_prompt=True)
        plain = as_trl_calls(tokenizer, row, before, tokenize=False)
        glues.add(prompt[shared(prompt, plain) :])
        if text.startswith(prompt):
            begins = said_until(before[-1], text, shared(plain, written_of(tokenizer, row, before[:-1])), len(plain))
            mask = [on and not begins < end <= len(prompt) for on, (_, end) in zip(mask, places, strict=True)]
    for i in range(len(mask)):
        if mask[i] and not (i and mask[i - 1]):
            stop = max(prompted(glue, text, places[i][0]) for glue in glues)
            while mask[i] and places[i][1] <= stop:
                mask[i], i = False, i + 1
    return mask


def written_of(tokenizer, row: dict, messages: list[dict]) -> str:
    try:
        return as_trl_calls(tokenizer, row, messages, tokenize=False)
    except Exception:  # nothing, or a system turn alone
        return ""


def said_until(message: dict, text: str, start: int, end: int) -> int:
    """Where a message's text ends in what the template writes for it; the end of that, where it is not there."""
    said = (message["content"] or "").strip()
    found = text.find(said, start, end) if said else -1
    return found + len(said) if found >= 0 else end


def prompted(glue: str, text: str, at: int) -> int:
    """How far the text goes on with a prompt whose beginning stands before a place."""
    known = next(k for k in range(len(glue), -1, -1) if text[:at].endswith(glue[:k]))
    return at + shared(glue[known:], text[at:])


def shared(one: str, other: str) -> int:
    return len(os.path.commonprefix([one, other]))


# Rows of other forms, refused alike or alike to `messages`


@pytest.mark.parametrize(
    "speakers, reason",
    [
        (("user", "assistant"), None),
        (("human", "gpt"), None),
        (("human", "function_call"), "role 'function_call'"),
        (("human", "observation"), "role 'observation'"),
        (("human", None), "role None"),
    ],
)
def test_conversations_with_odd_roles(speakers, reason, tokenizer):
    tokenizer.chat_template = TEMPLATES["qwen3"]
    turns = [{"from": who, "value": text} for who, text in zip(speakers, (DOCUMENT, ANSWER), strict=True)]
    trained, measured = (ours(f, {"conversations": turns}, tokenizer) for f in (tokenize_for_training, build_sample))
    if reason is None:
        assert measured == build_sample(SHAPES["one pair"], tokenizer)
        assert trained == tokenize_for_training(SHAPES["one pair"], tokenizer)
    else:
        assert trained == measured and reason in trained


def test_conversations_keep_calls_of_tools(tokenizer):
    tokenizer.chat_template = TEMPLATES["qwen3"]
    row = SHAPES["two calls in turn"]
    named = [{"from": turn["role"], "value": turn["content"]} | turn for turn in row["messages"]]
    named = [{name: turn[name] for name in turn if name not in ("role", "content")} for turn in named]
    shared_form = {"conversations": named, "tools": row["tools"]}
    assert tokenize_for_training(shared_form, tokenizer) == tokenize_for_training(row, tokenizer)
    assert build_sample(shared_form, tokenizer) == build_sample(row, tokenizer)


# The trainers themselves


@pytest.mark.parametrize("name", ["qwen2_5", pytest.param("llama3_1", marks=pytest.mark.slow)])
def test_both_trainers_and_scoring_have_the_same_tokens(name, tokenizer, tmp_path):
    from trl import SFTConfig, SFTTrainer

    from hf_gateau.training.trainer import GateauSFTConfig, GateauSFTTrainer

    tokenizer.chat_template = TEMPLATES[name]
    rows = [{"tools": None, "chat_template_kwargs": {}} | row for row in SHAPES.values()]
    rows = [row for row in rows if not isinstance(tokens_of_trl(tokenizer, row), Exception)]
    model, ds = make_model("llama", tmp_path / "m", tokenizer), Dataset.from_list(rows, on_mixed_types="use_json")
    same = {"max_length": None, "report_to": "none", "use_cpu": True, "bf16": False, "output_dir": str(tmp_path)}
    same |= {"gradient_checkpointing": False}
    theirs = SFTTrainer(model, args=SFTConfig(**same), train_dataset=ds, processing_class=tokenizer).train_dataset
    trained = GateauSFTTrainer(
        model, GateauSFTConfig(**same), train_dataset=ds, processing_class=tokenizer
    ).train_dataset
    samples = [build_sample(row, tokenizer) for row in ds]
    assert len(samples) > 15 and theirs["input_ids"] == trained["input_ids"] == [x.input_ids for x in samples]
    for sample, labels in list(zip(samples, trained["labels"], strict=True))[:-1]:
        assert sample.response == labels[slice(*last_span(labels))]


# What a row hands to its template is measured, keyed and hashed; see also test_samples.py


def test_refusals_say_which_turn(tokenizer):
    tokenizer.chat_template = TEMPLATES["llama3_1"]
    reason = ours(build_sample, SHAPES["two calls"], tokenizer)
    assert reason.endswith("only supports single tool-calls at once! (turn 1, assistant with tool_calls without text)")
    tokenizer.chat_template = TEMPLATES["gemma"]
    reason = "the chat template does not write what turn 1 (assistant with tool_calls without text) says"
    last = {"messages": [user(DOCUMENT), assistant("", tool_calls=CALLS)], "tools": TOOLS}
    assert ours(build_sample, last, tokenizer) == ours(tokenize_for_training, last, tokenizer) == reason
    tokenizer.chat_template = None
    reason = "turn 1 (assistant with tool_calls without text) has no form without a chat template"
    assert ours(build_sample, last, tokenizer) == ours(tokenize_for_training, last, tokenizer) == reason


CALLS = SHAPES["a tool called"]["messages"][1]["tool_calls"]
