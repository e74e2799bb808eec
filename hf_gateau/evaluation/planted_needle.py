"""The needle for models of the quickstart's planted language: in its text, the sentence that says somebody's last name.

Every text is drawn anew, and other people stand in it too, so that only the needle tells the answer. Seconds on a CPU, which
makes it the first thing to try an evaluation with.
"""

from __future__ import annotations

import random
from dataclasses import asdict, dataclass, field

from ..quickstart.world import FIRST_NAMES, ask_people, draw_people, fact_sentence, filler_sentence
from .needle import SPARE, Haystack, NeedleConfig, Question, ask
from .results import TaskResult
from .tasks import Work


TOKENS_A_PERSON = 40  # of text, for each of the other people in it, as in the quickstart's rows
ANSWER_TOKENS = 6  # `adam baxter .` and some to spare


# Where `--needle_lengths` says nothing; the quickstart's short model reads 128 tokens, its long one 1,024.
LENGTHS, SHORTEST = (64, 128, 192, 256, 384, 512, 640, 768, 896), 16


@dataclass
class PlantedNeedleConfig:
    """How often; lengths, depths and seed are those of `NeedleConfig`.

    Raises:
        ValueError: a field is out of range.
    """

    RARELY_GIVEN = ("planted_repeats",)

    planted_repeats: int = field(default=8, metadata={"help": "Planted texts and needles at each length and depth."})

    def __post_init__(self):
        if self.planted_repeats < 1:
            raise ValueError(f"planted_repeats is a whole number, got {self.planted_repeats}; give 1 or more.")


OPTIONS = (NeedleConfig, PlantedNeedleConfig)


def run(work: Work) -> TaskResult:
    """Ask for a last name at every length and depth.

    Raises:
        ValueError: a length is too short for a question.
    """
    grid, planted = work.settings(NeedleConfig), work.settings(PlantedNeedleConfig)
    tokenizer, questions = work.generator().tokenizer, []
    lengths = sorted(set(grid.needle_lengths or LENGTHS))
    if lengths[0] < SHORTEST:
        raise ValueError(f"needle_lengths of planted texts are {SHORTEST} tokens or more, got {lengths[0]}.")
    for length in lengths:
        for repeat in range(planted.planted_repeats):
            rng = random.Random(f"{grid.needle_seed} {length} {repeat}")
            (asked, *others) = draw_people(rng, 1 + min(len(FIRST_NAMES) - 1, length // TOKENS_A_PERSON))
            needle = " ".join(fact_sentence(rng, asked))
            haystack = Haystack(planted_text(rng, others, length + 2 * SPARE), tokenizer, length)
            question, _ = ask_people([asked])
            end = haystack.draw_end(length, None)
            for depth in sorted(set(grid.needle_depths)):
                text, num_tokens = haystack.with_needle(needle, length, depth, end)
                prompt = f"{text}\n\n{' '.join(question)}"
                questions.append(Question(length, depth, repeat, num_tokens, prompt, (asked[1],)))
    settings = (
        asdict(planted)
        | {"needle_lengths": lengths}
        | {name: getattr(grid, name) for name in ("needle_depths", "needle_seed")}
    )
    return ask("planted_needle", work, questions, ANSWER_TOKENS, settings)


def planted_text(rng: random.Random, people: list[tuple[str, str]], num_tokens: int) -> str:
    """Sentences of at least that many tokens that mention each of the people once, in random places."""
    sentences = [fact_sentence(rng, person) for person in people]
    missing = num_tokens - sum(map(len, sentences))
    while missing > 0:
        sentence = filler_sentence(rng)
        sentences.insert(int(rng.random() * (len(sentences) + 1)), sentence)
        missing -= len(sentence)
    return " ".join(word for sentence in sentences for word in sentence)
