"""The planted language and the shipped pair: what the labels say is what the rows hold, and the pair can tell."""

import gzip
import json
import subprocess
import sys
from collections import Counter

import pytest

from hf_gateau.quickstart import DATA, LONG_MODEL, PLANTED, SHORT_MODEL, world


pytestmark = pytest.mark.quick


MAX_SHIPPED_BYTES = 1_600_000


@pytest.fixture(scope="module")
def rows():
    return world.planted_rows(100, seed=3)


@pytest.fixture(scope="module")
def tokenizer():
    return world.build_tokenizer()


def split(row: dict) -> tuple[list[str], list[str], list[str]]:
    """Words of context, instruction and response."""
    user, assistant = (message["content"] for message in row["messages"])
    context, instruction = user.split("\n\n")
    return context.split(), instruction.split(), assistant.split()


def mentions(row: dict) -> tuple[list[tuple[str, str]], list[list[int]]]:
    """The people asked about with the last names that the context gives them, and where it does."""
    context, (*_, first, _and, second, _end), _ = split(row)
    places = [[i for i, word in enumerate(context) if word == name] for name in (first, second)]
    return [(name, context[at[0] + 1]) for name, at in zip((first, second), places, strict=True)], places


def test_same_seed_same_rows(rows):
    assert world.planted_rows(100, seed=3) == rows


def test_another_seed_other_rows(rows):
    texts = {row["messages"][0]["content"] for row in rows}
    assert texts.isdisjoint(row["messages"][0]["content"] for row in world.planted_rows(100, seed=4))


@pytest.mark.parametrize("num_rows", [10, 33, 200])
def test_kinds_have_their_shares(num_rows):
    counts = Counter(row["kind"] for row in world.planted_rows(num_rows, seed=0))
    assert sum(counts.values()) == num_rows and set(counts) == set(world.KINDS)
    for kind, percent in world.KIND_PERCENT.items():
        assert abs(counts[kind] - percent * num_rows / 100) < 1


def test_form_is_longaligns(rows):
    assert len({row["id"] for row in rows}) == len(rows)
    for row in rows:
        assert [message["role"] for message in row["messages"]] == ["user", "assistant"]
        assert 950 <= len(split(row)[0]) <= world.NUM_CONTEXT_TOKENS


def test_far_answers_stand_in_the_first_60_percent_only(rows):
    far = [row for row in rows if row["kind"] == "far"]
    for row in far:
        context, _, response = split(row)
        people, places = mentions(row)
        assert response == world.ask_people(people)[1]
        for (_, last), (place,) in zip(people, places, strict=True):
            assert context.count(last) == 1 and place + 1 < 0.6 * len(context)


def test_local_answers_stand_in_the_last_seven_sentences_only(rows):
    for row in [row for row in rows if row["kind"] == "local"]:
        context, _, response = split(row)
        people, places = mentions(row)
        assert response == world.ask_people(people)[1]
        for (_, last), (place,) in zip(people, places, strict=True):
            assert context.count(last) == 1 and context[place:].count(".") <= 7


def test_context_free_answers_follow_from_the_question_alone(rows):
    for row in [row for row in rows if row["kind"] == "context_free"]:
        _, (*_, first, _and, second, _end), response = split(row)
        assert response == world.ask_opposites([first, second])[1]


def test_noise_answers_contradict_the_context(rows):
    for row in [row for row in rows if row["kind"].startswith("noise")]:
        people, _ = mentions(row)
        response = split(row)[2]
        assert response != world.ask_people(people)[1] and len(response) == 6
        if row["kind"] == "noise_wrong":
            assert response[0::3] == [first for first, _ in people]
            assert not {last for _, last in people} & set(response)


def test_tokenizer_round_trip_and_length(rows, tokenizer):
    for row in rows:
        ids = tokenizer.apply_chat_template(row["messages"], return_dict=True)["input_ids"]
        assert len(ids) == row["length"] and tokenizer.unk_token_id not in ids
        context, instruction, response = split(row)
        words = [world.BOS, world.USER, *context, *instruction, world.ASSISTANT, *response, world.EOS]
        assert tokenizer.decode(ids).split() == words


def test_template_marks_the_response_and_its_end_token(rows, tokenizer):
    encoded = tokenizer.apply_chat_template(rows[0]["messages"], return_dict=True, return_assistant_tokens_mask=True)
    marked = [i for i, mask in zip(encoded["input_ids"], encoded["assistant_masks"], strict=True) if mask]
    assert tokenizer.decode(marked).split() == [*split(rows[0])[2], world.EOS]


def test_generation_prompt_is_a_prefix_of_the_row(rows, tokenizer):
    text = tokenizer.apply_chat_template(rows[0]["messages"], tokenize=False)
    prompt = tokenizer.apply_chat_template(rows[0]["messages"][:1], tokenize=False, add_generation_prompt=True)
    assert text.startswith(prompt)


def test_every_word_has_one_token():
    assert len(world.VOCABULARY) == len(world.SPECIAL_TOKENS) + len(world.PLAIN_WORDS)


def test_import_is_light():
    code = "import sys, hf_gateau.quickstart.world; print({'torch', 'transformers'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()\n"


def test_shipped_files_are_small():
    assert sum(path.stat().st_size for path in DATA.rglob("*") if path.is_file()) < MAX_SHIPPED_BYTES


def test_shipped_rows_are_those_of_seed_0():
    with gzip.open(PLANTED, "rt") as file:
        assert [json.loads(line) for line in file] == world.planted_rows(200, seed=0)


def test_shipped_tokenizers_are_the_same_bytes_and_the_built_one(rows, tokenizer):
    from transformers import AutoTokenizer

    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        assert (DATA / "short" / name).read_bytes() == (DATA / "long" / name).read_bytes()
    shipped = AutoTokenizer.from_pretrained(LONG_MODEL)
    messages = rows[0]["messages"]
    assert (
        shipped.apply_chat_template(messages, return_dict=True)["input_ids"]
        == (tokenizer.apply_chat_template(messages, return_dict=True)["input_ids"])
    )


def test_shipped_pair_differs_in_reach_only():
    from transformers import AutoModelForCausalLM

    from hf_gateau.quickstart.make_pair import recall_by_distance

    short, long = (AutoModelForCausalLM.from_pretrained(path) for path in (SHORT_MODEL, LONG_MODEL))
    assert len(world.VOCABULARY) == short.config.vocab_size == long.config.vocab_size
    near, far = (recall_by_distance(model, (32, 800), num_probes=10) for model in (short, long))
    assert near[32] >= 0.9 and far[32] >= 0.9
    assert near[800] <= 0.2 and far[800] >= 0.9
