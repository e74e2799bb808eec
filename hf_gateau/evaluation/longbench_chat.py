"""LongBench-Chat: 50 questions of real users about long documents, the answers rated from 1 to 10 by a judge.

As LongAlign published it (arXiv 2401.18058, section 3.4): the judge sees the question, the reference answer and three
answers with the ratings that people gave them, and not the document. The prompt and the rated answers come with the package;
the questions and documents are on the Hub.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from typing import Any

from ..files.reading import load_rows
from ..files.texts import read_user_text
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
from .tasks import Messages, Work


TASK = "longbench_chat"
ANSWER_TOKENS = 1024  # of the model's answer, at most: the published setting
LOW, HIGH = 1, 10
NUM_SHOTS = 3
SYSTEM = (
    "You're a good assistant at evaluating the quality of texts."  # what LongAlign's evaluation says before the prompt
)


@dataclass
class LongBenchChatConfig:
    """Which questions, and how their answers are rated.

    Raises:
        ValueError: a field is out of range.
    """

    RARELY_GIVEN = (
        "longbench_chat_split",
        "longbench_chat_revision",
        "longbench_chat_few_shots",
        "longbench_chat_ratings",
        "longbench_chat_temperature",
        "longbench_chat_data",
    )

    longbench_chat_data: str = field(
        default="THUDM/LongBench-Chat",
        metadata={
            "help": "The questions, a file or a Hub id, with the columns idx (1 to 50), query, answer (the reference), and "
            "prompt (document and question) or context."
        },
    )
    longbench_chat_split: str | None = field(
        default=None, metadata={"help": "Split of the questions. Default: train, or the only one."}
    )
    longbench_chat_revision: str | None = field(
        default=None, metadata={"help": "Branch, tag or commit of questions on the Hub."}
    )
    longbench_chat_few_shots: str | None = field(
        default=None,
        metadata={
            "help": "JSON file of rated answers, for each question (in the order of idx) three of {answer, score}. Default: "
            "those that LongAlign published."
        },
    )
    longbench_chat_ratings: int = field(default=2, metadata={"help": "Ratings of each answer, to be averaged."})
    longbench_chat_temperature: float = field(
        default=0.0,
        metadata={
            "help": "Temperature of the judge. At 0, the published one, a server of your own may rate twice alike."
        },
    )

    def __post_init__(self):
        check_ratings("longbench_chat", self.longbench_chat_ratings, self.longbench_chat_temperature)


OPTIONS = (LongBenchChatConfig,)


@dataclass(frozen=True)
class Question:
    """One question: what the model is given, what the judge compares with, and how people rated others' answers."""

    idx: int
    prompt: str
    query: str
    reference: str
    shots: tuple[dict[str, Any], ...]

    @property
    def language(self) -> str:
        """ "zh" where the question has Chinese characters: 10 of the 50."""
        return "zh" if any("\u4e00" <= character <= "\u9fff" for character in self.query) else "en"

    def judge_prompt(self, template: str, answer: str) -> Messages:
        """The published prompt, filled in."""
        shots = [part for shot in self.shots for part in (shot["answer"], shot["score"])]
        asked = template.format(self.query, self.reference, *shots, answer)
        return [{"role": "system", "content": SYSTEM}, {"role": "user", "content": asked}]


def run(work: Work) -> TaskResult:
    """Ratings of the model's answers: `score` is the mean of an answer's ratings, `percent` the mean score times 10, as in
    the papers.

    Raises:
        ValueError: the questions lack a column, or a question has no rated answers.
        EndpointError: the judge cannot be asked.
        RuntimeError: no answer could be rated.
    """
    config, endpoint = work.settings(LongBenchChatConfig), work.endpoint()
    template = shipped_prompt("longbench_chat/prompt_fs.txt")
    questions = read_questions(config, work.limit)
    prompts = [[{"role": "user", "content": question.prompt}] for question in questions]
    answers = work.generator().generate(prompts, ANSWER_TOKENS)
    judged = judge(
        endpoint,
        [question.judge_prompt(template, answer) for question, answer in zip(questions, answers, strict=True)],
        rating_in(LOW, HIGH),
        num_ratings=config.longbench_chat_ratings,
        temperature=config.longbench_chat_temperature,
        desc="LongBench-Chat",
    )
    rows = [
        rated_row(
            {
                "id": str(question.idx),
                "group": question.language,
                "question": question.query,
                "reference": question.reference,
                "answer": answer,
            },
            judgement,
        )
        for question, answer, judgement in zip(questions, answers, judged, strict=True)
    ]
    num_failed = tell_failures(rows, "answers of LongBench-Chat")
    about = {
        "judge": endpoint.model,
        "prompt": version_of(SYSTEM, template),
        "num_rows": len(rows),
        "num_failed": num_failed,
    }
    return TaskResult(TASK, _metrics(rows), rows, about | asdict(config))


def _metrics(rows: list[dict[str, Any]]) -> dict[str, float]:
    mean = mean_score(rows)
    languages = {x: mean_score([row for row in rows if row["group"] == x]) for x in ("en", "zh")}
    found = {"mean": mean, "percent": 100 * mean / HIGH, **languages}
    return {name: value for name, value in found.items() if value is not None}


def read_questions(config: LongBenchChatConfig, limit: int | None = None) -> list[Question]:
    """The questions, each checked.

    Raises:
        ValueError: a column is missing, a value is empty, or there are no rated answers to a question.
    """
    shots = _read_shots(config.longbench_chat_few_shots)
    name = config.longbench_chat_data
    ds = load_rows(name, split=config.longbench_chat_split, revision=config.longbench_chat_revision)
    missing = [column for column in ("idx", "query", "answer") if column not in ds.column_names]
    if not {"prompt", "context"} & set(ds.column_names):
        missing.append("prompt (or context)")
    if missing:
        raise ValueError(
            f"{name!r} has no column {', '.join(missing)}, but {ds.column_names}; LongBench-Chat's questions have idx, "
            "query, answer and prompt. Name a file that has them with --longbench_chat_data."
        )
    rows = ds.with_format(None).select(range(min(limit or len(ds), len(ds))))
    found = [_question(row, shots, name) for row in rows]
    if len({question.idx for question in found}) < len(found) or not found:
        raise ValueError(f"{name!r} has no questions, or two of the same idx; give each a number of its own.")
    return found


def _question(row: dict[str, Any], shots: list[list[dict[str, Any]]], name: str) -> Question:
    idx = row["idx"]
    if not isinstance(idx, int) or not 1 <= idx <= len(shots):
        raise ValueError(
            f"A question of {name!r} has idx {idx!r}, and there are rated answers to questions 1 to {len(shots)}; give yours "
            "with --longbench_chat_few_shots."
        )
    document = row.get("context")
    prompt = row.get("prompt") or (f"{document}\n\n{row['query']}" if document else None)
    texts = {"query": row["query"], "answer": row["answer"], "prompt": prompt}
    if empty := [column for column, text in texts.items() if not isinstance(text, str) or not text.strip()]:
        raise ValueError(
            f"Question {idx} of {name!r} has no text in {', '.join(empty)}; fill it in, or leave the row out."
        )
    return Question(idx, prompt, row["query"], row["answer"], tuple(shots[idx - 1]))


def _read_shots(path: str | None) -> list[list[dict[str, Any]]]:
    text = read_user_text(path) if path else shipped_prompt("longbench_chat/few_shots.json")
    try:
        found = json.loads(text)
    except ValueError:
        found = None
    is_sound = isinstance(found, list) and all(
        isinstance(shots, list) and len(shots) == NUM_SHOTS and all(map(_is_shot, shots)) for shots in found
    )
    if not is_sound:
        raise ValueError(
            f'{path} must be a list with, for each question, {NUM_SHOTS} of {{"answer": text, "score": {LOW} to {HIGH}}}.'
        )
    return found


def _is_shot(shot: Any) -> bool:
    if not isinstance(shot, dict) or not isinstance(shot.get("answer"), str):
        return False
    score = shot.get("score")
    return isinstance(score, int) and LOW <= score <= HIGH
