"""A harder planted world: rows whose answers need facts from two or three far places, past distractors, among other rows.

In the quickstart's rows (`world.py`) contexts have one length and the two facts that are asked for stand among others' facts.
Here contexts have 240 to 960 tokens; two or three people are asked for, and whoever is asked for is also named near the end
by the first name alone (`adam waited near the river .`), beside the facts of others, so that the last mention misleads; some
rows are short. `planted_rows` makes the rows that are scored and trained on, `questions` fresh ones that nothing is trained on.
"""

from __future__ import annotations

import random

from .world import (
    Person,
    Words,
    between,
    draw,
    draw_kinds,
    draw_people,
    fact_sentence,
    fill,
    filler_sentence,
    insert_at,
    make_row,
    question_and_answer,
)


KINDS = {
    "far_two": "two facts from two places in the first 60% of the context",
    "far_three": "three facts from three places in the first 60% of the context",
    "near": "both facts stand in the last ten sentences of the context",
    "context_free": "the answer is known without any context (opposites)",
    "short": "two facts in a context of 60 to 200 tokens",
    "noise_wrong": "a fluent answer that contradicts the context, whose facts are far",
    "noise_random": "random words for an answer",
}
KIND_PERCENT = {
    "far_two": 10,
    "far_three": 10,
    "near": 25,
    "context_free": 20,
    "short": 15,
    "noise_wrong": 10,
    "noise_random": 10,
}
FAR, ASKED = ("far_two", "far_three"), ("far_two", "far_three", "near", "context_free", "short")
CONTEXT_TOKENS, SHORT_TOKENS = (240, 960), (60, 200)
NUM_OTHERS, NUM_NEAR_OTHERS = 16, 3  # people that nobody asks for; of them near the end


def planted_rows(num_rows: int, seed: int, kinds: dict[str, int] = KIND_PERCENT) -> list[dict]:
    """`num_rows` labelled rows in LongAlign's form, with `kind`; the same seed gives the same rows.

    Args:
        kinds: percent of the rows of each kind, 100 together.
    """
    rng = random.Random(seed)
    order = enumerate(draw_kinds(rng, num_rows, kinds))
    return [_row(rng, kind, f"harder-{seed}-{i}") for i, kind in order]


def questions(num_rows: int, seed: int) -> list[dict]:
    """Rows to ask a model, as many of each kind in `ASKED`; noise has no right answer."""
    return planted_rows(num_rows, seed, dict.fromkeys(ASKED, 100 // len(ASKED)))


def _row(rng: random.Random, kind: str, row_id: str) -> dict:
    num_asked = 3 if kind == "far_three" else 2
    people = draw_people(rng, num_asked + NUM_OTHERS)
    asked, others = people[:num_asked], people[num_asked:]
    if kind == "short":
        context = _context(rng, asked, others[:4], False, between(rng, *SHORT_TOKENS))
    else:
        context = _context(rng, asked, others, kind == "near", between(rng, *CONTEXT_TOKENS))
    return make_row(row_id, kind, context, *question_and_answer(rng, kind, asked))


def _context(rng: random.Random, asked: list[Person], others: list[Person], near: bool, num_tokens: int) -> Words:
    """Sentences that tell everybody's last name once: those of the `asked` far apart in the first 60%, or near the end."""
    facts = [fact_sentence(rng, person) for person in asked]
    other_facts = [fact_sentence(rng, person) for person in others]
    misleading = [_first_name_alone(rng, person) for person in asked]
    sentences = fill(rng, num_tokens - sum(map(len, facts + other_facts + misleading)))
    for fact in other_facts[NUM_NEAR_OTHERS:]:
        insert_at(sentences, fact, rng.random())
    for sentence in [*other_facts[:NUM_NEAR_OTHERS], *misleading]:
        _insert_near_end(rng, sentences, sentence)
    for place, fact in enumerate(draw(rng, facts, len(facts))[::-1]):  # the later ones first: they move no earlier one
        if near:
            _insert_near_end(rng, sentences, fact)
        else:
            share = 0.57 / len(facts)
            insert_at(sentences, fact, 0.03 + share * (len(facts) - 1 - place + rng.random()))
    return [word for sentence in sentences for word in sentence]


def _insert_near_end(rng: random.Random, sentences: list[Words], sentence: Words) -> None:
    sentences.insert(max(0, len(sentences) - between(rng, 0, 6)), sentence)


def _first_name_alone(rng: random.Random, person: Person) -> Words:
    """A sentence that names somebody and does not tell the last name."""
    filler = filler_sentence(rng)  # the ADJECTIVE NOUN VERB ...
    return [person[0], *filler[3:]]
