"""The harder planted world: labels say what the rows hold, and what the recipe prepares does what it is for."""

from collections import Counter

import pytest
import torch

from hf_gateau.experiments import planted
from hf_gateau.quickstart import LONG_MODEL, SHORT_MODEL, harder, world


@pytest.fixture(scope="module")
def rows():
    return harder.planted_rows(200, seed=5)


def parts(row: dict) -> tuple[list[str], list[str], list[str]]:
    """Words of context, instruction and response."""
    user, assistant = (message["content"] for message in row["messages"])
    context, instruction = user.split("\n\n")
    return context.split(), instruction.split(), assistant.split()


def told(context: list[str], first: str) -> list[int]:
    """Places where the context gives a person's last name."""
    return [i for i, word in enumerate(context[:-1]) if word == first and context[i + 1] in world.LAST_NAMES]


def of_kinds(rows, *kinds: str):
    return [parts(row) for row in rows if row["kind"] in kinds]


def test_kinds_have_their_shares_and_the_same_seed_gives_the_same_rows(rows):
    assert Counter(row["kind"] for row in rows) == {kind: 2 * x for kind, x in harder.KIND_PERCENT.items()}
    assert harder.planted_rows(200, seed=5) == rows != harder.planted_rows(200, seed=6)
    assert Counter(row["kind"] for row in harder.questions(50, seed=1)) == dict.fromkeys(harder.ASKED, 10)


def test_far_facts_are_told_once_and_far_and_right(rows):
    for kind, num in (("far_two", 2), ("far_three", 3)):
        for context, question, answer in of_kinds(rows, kind):
            asked = [word for word in question if word in world.FIRST_NAMES]
            places = [told(context, first) for first in asked]
            assert len(asked) == num and all(len(x) == 1 for x in places)
            assert max(x[0] for x in places) < 0.75 * len(context)  # 60% of the filler before facts near the end
            said = [f"{first} {context[x[0] + 1]}" for first, x in zip(asked, places, strict=True)]
            assert " ".join(answer) == " and ".join(said) + " ."


def test_the_last_mention_of_who_is_asked_for_misleads(rows):
    for context, question, _ in of_kinds(rows, "far_two", "far_three"):
        for first in (word for word in question if word in world.FIRST_NAMES):
            last = max(i for i, word in enumerate(context) if word == first)
            assert context[last + 1] in world.VERBS and last > len(context) - 150


def test_near_facts_are_near(rows):
    for context, question, _ in of_kinds(rows, "near"):
        for first in (word for word in question if word in world.FIRST_NAMES):
            assert told(context, first)[0] > len(context) - 150


def test_wrong_answers_contradict_the_context(rows):
    for context, _, answer in of_kinds(rows, "noise_wrong"):
        for first, last in zip(answer[0:-1:3], answer[1:-1:3], strict=True):
            assert context[told(context, first)[0] + 1] != last


def test_lengths_are_the_tokenizers(rows):
    tokenizer = world.build_tokenizer()
    for row in rows[:40]:
        assert len(tokenizer.apply_chat_template(row["messages"])["input_ids"]) == row["length"]
    lengths = [row["length"] for row in rows if row["kind"] == "short"]
    assert max(lengths) < 250 and len({row["length"] for row in rows}) > 100


def test_long_model_finds_two_far_facts_and_the_short_one_none():
    long, short = (planted.evaluate(model, num_questions=50).metrics for model in (LONG_MODEL, SHORT_MODEL))
    assert long["far_two"] >= 0.9 and short["far"] <= 0.1
    assert long["near"] >= 0.9 and short["near"] >= 0.9


def test_preferences_differ_in_the_answer_alone():
    pairs = planted.preferences(20, seed=3)
    for pair in pairs:
        assert pair["chosen"][0] == pair["rejected"][0] and pair["chosen"][1] != pair["rejected"][1]


def test_reward_model_is_the_same_every_time(tmp_path, monkeypatch):
    """Whatever was drawn before: its head is new, and nothing else seeds it."""
    monkeypatch.setattr(planted, "NUM_PREFERENCES", 8)
    found = []
    for name in ("a", "b"):
        torch.manual_seed(len(found))
        planted._make_reward_model(tmp_path / name)
        found.append((tmp_path / name / "model.safetensors").read_bytes())
    assert found[0] == found[1]


def test_unknown_sibling_is_refused():
    with pytest.raises(ValueError, match="sibling='twin' is not known; use one of 'homologous'"):
        planted.measured_rows("twin")


def test_windowed_rows_are_measured():
    measured = planted.measured_rows("windowed", num_rows=20)
    assert measured["gateau_error"] == [None] * 20
    far = [kind == "far_two" for kind in measured["kind"]]
    ratio = [a / b for a, b in zip(measured["gateau_ppl_short"], measured["gateau_ppl_long"], strict=True)]
    assert min(r for r, f in zip(ratio, far, strict=True) if f) > max(
        r for r, k in zip(ratio, measured["kind"], strict=True) if k in ("near", "context_free")
    )
