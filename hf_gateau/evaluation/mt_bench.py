"""MT-Bench: 80 questions of two turns, in eight categories, both answers rated from 1 to 10 by a judge.

As FastChat published it (arXiv 2306.05685), single-answer grading: a judge sees the first answer alone, and the second with
the whole conversation; in math, reasoning and coding with a reference answer. Questions, references and prompts come with
the package. One thing differs: answers are greedy in every category, where FastChat draws writing and role play at
temperature 0.7.
"""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import asdict, dataclass, field
from typing import Any

from .judging import (
    check_ratings,
    judge,
    mean_score,
    rated_row,
    rating_in,
    shipped_prompt,
    tell_failures,
    version_of,
)
from .results import TaskResult
from .rows import read_rows, rows_of
from .tasks import Generator, Messages, Work


TASK = "mt_bench"
REFERENCED = ("math", "reasoning", "coding")  # categories that are judged with a reference answer
LOW, HIGH = 1, 10
# (turn, whether there is a reference) -> FastChat's name of the prompt
PROMPTS = {
    (1, False): "single-v1",
    (1, True): "single-math-v1",
    (2, False): "single-v1-multi-turn",
    (2, True): "single-math-v1-multi-turn",
}


@dataclass
class MtBenchConfig:
    """Which questions, and how their answers are rated.

    Raises:
        ValueError: a field is out of range.
    """

    RARELY_GIVEN = (
        "mt_bench_references",
        "mt_bench_answer_tokens",
        "mt_bench_ratings",
        "mt_bench_temperature",
        "mt_bench_questions",
    )

    mt_bench_questions: str | None = field(
        default=None,
        metadata={"help": "JSON lines with question_id, category and two turns. Default: the 80 of FastChat."},
    )
    mt_bench_references: str | None = field(
        default=None,
        metadata={
            "help": "JSON lines of reference answers in FastChat's form, for math, reasoning and coding. Default: "
            "FastChat's, by GPT-4."
        },
    )
    mt_bench_answer_tokens: int = field(
        default=1024, metadata={"help": "The longest answer, in tokens. 1024 is FastChat's."}
    )
    mt_bench_ratings: int = field(default=1, metadata={"help": "Ratings of each answer, to be averaged."})
    mt_bench_temperature: float = field(default=0.0, metadata={"help": "Temperature of the judge."})

    def __post_init__(self):
        check_ratings("mt_bench", self.mt_bench_ratings, self.mt_bench_temperature)
        if self.mt_bench_answer_tokens < 1:
            raise ValueError(
                f"mt_bench_answer_tokens is a length, got {self.mt_bench_answer_tokens}; give 1 or more tokens."
            )


OPTIONS = (MtBenchConfig,)


@dataclass(frozen=True)
class Question:
    """Two turns, and the reference answers to them where the category has some."""

    question_id: int
    category: str
    turns: tuple[str, str]
    references: tuple[str, str] | None


def run(work: Work) -> TaskResult:
    """Ratings of the model's answers, one row a turn.

    Metrics: the mean over all turns, `percent` (times 10, as in GATEAU's tables), first and second turns, categories.

    Raises:
        ValueError: the questions cannot be used.
        EndpointError: the judge cannot be asked.
        RuntimeError: no answer could be rated.
    """
    config, endpoint = work.settings(MtBenchConfig), work.endpoint()
    questions, templates = read_questions(config)[: work.limit], _templates()
    answers = _converse(work.generator(), questions, config.mt_bench_answer_tokens)
    asked = [(question, turn, both) for question, both in zip(questions, answers, strict=True) for turn in (1, 2)]
    judged = judge(
        endpoint,
        [judge_prompt(templates, question, turn, both) for question, turn, both in asked],
        rating_in(LOW, HIGH, whole=False),  # the prompts do not ask for a whole number
        num_ratings=config.mt_bench_ratings,
        temperature=config.mt_bench_temperature,
        desc="MT-Bench",
    )
    rows = [
        rated_row(
            {
                "id": f"{question.question_id}-{turn}",
                "group": question.category,
                "turn": turn,
                "question": question.turns[turn - 1],
                "answer": both[turn - 1],
            },
            judgement,
        )
        for (question, turn, both), judgement in zip(asked, judged, strict=True)
    ]
    num_failed = tell_failures(rows, "answers of MT-Bench")
    version = version_of(*(json.dumps(templates[name], sort_keys=True) for name in sorted(templates)))
    about = {"judge": endpoint.model, "prompt": version, "num_rows": len(rows), "num_failed": num_failed}
    return TaskResult(TASK, _metrics(rows), rows, about | asdict(config))


def _converse(generator: Generator, questions: list[Question], max_new_tokens: int) -> list[tuple[str, str]]:
    """The model's two answers to each question, the second with the first before it."""
    prompts: list[Messages] = [[{"role": "user", "content": question.turns[0]}] for question in questions]
    first = generator.generate(prompts, max_new_tokens)
    for question, prompt, answer in zip(questions, prompts, first, strict=True):
        prompt += [{"role": "assistant", "content": answer}, {"role": "user", "content": question.turns[1]}]
    return list(zip(first, generator.generate(prompts, max_new_tokens), strict=True))


def judge_prompt(
    templates: dict[str, dict[str, str]], question: Question, turn: int, answers: tuple[str, str]
) -> Messages:
    """FastChat's prompt for the answer of a turn, filled in."""
    template = templates[PROMPTS[turn, question.references is not None]]
    references = question.references or ("", "")
    content = template["prompt_template"].format(
        question=question.turns[0],
        answer=answers[0],
        question_1=question.turns[0],
        question_2=question.turns[1],
        answer_1=answers[0],
        answer_2=answers[1],
        ref_answer_1=references[0],
        ref_answer_2=references[1],
    )
    return [{"role": "system", "content": template["system_prompt"]}, {"role": "user", "content": content}]


def _templates() -> dict[str, dict[str, str]]:
    found = _read_lines(None, "judge_prompts.jsonl")
    return {template["name"]: template for template in found if template["name"] in PROMPTS.values()}


def _metrics(rows: list[dict[str, Any]]) -> dict[str, float]:
    mean = mean_score(rows)
    found = {"mean": mean, "percent": 100 * mean / HIGH}
    found |= {f"turn_{turn}": mean_score(row for row in rows if row["turn"] == turn) for turn in (1, 2)}
    for category in dict.fromkeys(row["group"] for row in rows):
        found[category] = mean_score(row for row in rows if row["group"] == category)
    return {name: value for name, value in found.items() if value is not None}


def read_questions(config: MtBenchConfig) -> list[Question]:
    """The questions with their references, each checked.

    Raises:
        ValueError: one is not in FastChat's form, has an id twice, or lacks the reference that its category is judged with.
    """
    references = _read_references(config.mt_bench_references)
    where = config.mt_bench_questions or "FastChat's questions"
    found = [
        _question(row, references, f"Line {number} of {where}")
        for number, row in enumerate(_read_lines(config.mt_bench_questions, "mt_bench_question.jsonl"), 1)
    ]
    if not found:
        raise ValueError(f"There is no question in {where}.")
    if twice := [key for key, number in Counter(x.question_id for x in found).items() if number > 1]:
        raise ValueError(f"{where}: the question_id {twice[0]!r} is there twice; give each question its own.")
    return found


def _question(row: dict[str, Any], references: dict[Any, tuple[str, str]], where: str) -> Question:
    turns = row.get("turns")
    is_sound = _are_turns(turns) and isinstance(row.get("category"), str) and "question_id" in row
    if not is_sound:
        raise ValueError(f"{where} is no question; give question_id, category and turns, a list of two texts.")
    needs = row["category"] in REFERENCED
    if needs and row["question_id"] not in references:
        raise ValueError(
            f"{where}: {row['category']} is judged with a reference answer, and there is none to question "
            f"{row['question_id']}; give them with --mt_bench_references."
        )
    reference = references[row["question_id"]] if needs else None
    return Question(row["question_id"], row["category"], tuple(turns), reference)


def _read_references(path: str | None) -> dict[Any, tuple[str, str]]:
    found = {}
    for number, row in enumerate(_read_lines(path, "mt_bench_reference_answer_gpt-4.jsonl"), 1):
        try:
            turns, key = row["choices"][0]["turns"], row["question_id"]
        except (KeyError, IndexError, TypeError):
            turns, key = None, None
        if not _are_turns(turns):
            raise ValueError(
                f"Line {number} of {path} is no reference answer; give question_id and choices, [{{turns: [text, text]}}]."
            )
        found[key] = tuple(turns)
    return found


def _are_turns(turns: Any) -> bool:
    return isinstance(turns, list) and len(turns) == 2 and all(isinstance(x, str) and x.strip() for x in turns)


def _read_lines(path: str | None, shipped: str) -> list[dict[str, Any]]:
    return read_rows(path) if path else rows_of(shipped_prompt(f"mt_bench/{shipped}"), shipped)
