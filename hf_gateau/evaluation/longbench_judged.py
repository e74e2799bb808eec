"""LongBench's answers and summaries, rated by a judge where an overlap of words says little.

Answers are rated from 1 to 3 and summaries from 1 to 5 against the reference, as in LongAlign (arXiv 2401.18058, appendix
C.2) and GATEAU (arXiv 2410.15633). The judge does not see the document. What is rated are the rows that the task `longbench`
left in the evaluation's folder, or a file of answers.
"""

from __future__ import annotations

import ast
from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..files.reading import load_rows
from ..files.texts import read_user_text
from .harness import LONGBENCH
from .judging import (
    check_ratings,
    fill,
    judge,
    mean_score,
    rated_row,
    rating_in,
    rating_requests,
    shipped_prompt,
    tell_cost,
    tell_failures,
    version_of,
)
from .results import ROWS, TaskResult
from .rows import read_rows
from .tasks import Messages, Work


if TYPE_CHECKING:
    from ..endpoint.questions import Endpoint

TASK = "longbench_judged"
QA, SUMMARY = "qa", "summary"
SCALES = {QA: (1, 3), SUMMARY: (1, 5)}
NAMES = {  # what is read -> columns that it may stand in, the first that is there
    "question": ("question", "input", "query"),
    "reference": ("reference", "references", "answers", "target"),
    "answer": ("answer", "response", "prediction", "pred"),
    "group": ("group", "dataset"),
}


@dataclass
class LongBenchJudgedConfig:
    """Which answers, and how they are rated.

    Raises:
        ValueError: a field is out of range.
    """

    RARELY_GIVEN = (
        "longbench_judged_qa_prompt",
        "longbench_judged_summary_prompt",
        "longbench_judged_ratings",
        "longbench_judged_temperature",
        "longbench_judged_answers",
    )

    longbench_judged_answers: str | None = field(
        default=None,
        metadata={
            "help": "The answers to rate: JSON lines or Parquet with the columns question, reference (a text or several), "
            "answer, group (the data set) and, for data sets other than LongBench's, kind (qa or summary). Default: what the "
            "task longbench left in the output folder."
        },
    )
    longbench_judged_qa_prompt: str | None = field(
        default=None,
        metadata={"help": "Text file with another prompt for answers, with {question}, {reference} and {answer}."},
    )
    longbench_judged_summary_prompt: str | None = field(
        default=None, metadata={"help": "The same for summaries, with {reference} and {answer}."}
    )
    longbench_judged_ratings: int = field(default=1, metadata={"help": "Ratings of each answer, to be averaged."})
    longbench_judged_temperature: float = field(default=0.0, metadata={"help": "Temperature of the judge."})

    def __post_init__(self):
        check_ratings("longbench_judged", self.longbench_judged_ratings, self.longbench_judged_temperature)


OPTIONS, READS = (LongBenchJudgedConfig,), ("longbench",)


@dataclass(frozen=True)
class Answered:
    """An answer of the model to rate, with what the judge compares it with."""

    id: str
    group: str
    kind: str
    question: str
    references: tuple[str, ...]
    answer: str

    def judge_prompt(self, templates: dict[str, str]) -> Messages:
        """The prompt of its kind, filled in; several references become a list."""
        first, *others = self.references
        reference = first if not others else "\n".join(f"- {text}" for text in self.references)
        values = {"question": self.question, "reference": reference, "answer": self.answer}
        return [{"role": "user", "content": fill(templates[self.kind], **values)}]


def run(work: Work) -> TaskResult:
    """Ratings of answers that exist: `rating` on the scale of the prompt, `score` in percent of the way from its lowest to its
    highest.

    Metrics: the mean of the families' means, each family (mean over its data sets), each data set, all in percent.

    Raises:
        FileNotFoundError: there are no answers.
        ValueError: the answers lack a column, or the judge can rate none of them.
        EndpointError: the judge cannot be asked.
        RuntimeError: no answer could be rated.
    """
    config, endpoint = work.settings(LongBenchJudgedConfig), work.endpoint()
    templates = _templates(config)
    answered, num_others = read_answers(config.longbench_judged_answers, work.folder, work.limit)
    prompts = [x.judge_prompt(templates) for x in answered]
    how = {"num_ratings": config.longbench_judged_ratings, "temperature": config.longbench_judged_temperature}
    tell_cost(endpoint, rating_requests(prompts, **how))  # of both kinds together
    judged = {}
    for kind in (QA, SUMMARY):
        chosen = [x for x in answered if x.kind == kind]
        found = _judged(chosen, templates, kind, how, endpoint) if chosen else []
        judged |= dict(zip(((x.group, x.id) for x in chosen), found, strict=True))
    rows = [judged[x.group, x.id] for x in answered]
    num_failed = tell_failures(rows, "answers of LongBench")
    about = {"judge": endpoint.model, "prompt": version_of(*templates.values()), "num_rows": len(rows)}
    about |= {"num_failed": num_failed, "num_not_judged": num_others}
    return TaskResult(TASK, _metrics(rows), rows, about | asdict(config))


def _judged(
    chosen: list[Answered], templates: dict[str, str], kind: str, how: dict[str, Any], endpoint: Endpoint
) -> list[dict[str, Any]]:
    low, high = SCALES[kind]
    judgements = judge(
        endpoint,
        [x.judge_prompt(templates) for x in chosen],
        rating_in(low, high),
        **how,
        desc=f"LongBench, {kind}",
        is_told=True,
    )
    rows = []
    for x, judgement in zip(chosen, judgements, strict=True):
        row = rated_row(asdict(x) | {"references": list(x.references)}, judgement)
        rating = row["score"]
        rows.append(row | {"rating": rating, "score": None if rating is None else 100 * (rating - low) / (high - low)})
    return rows


def _metrics(rows: list[dict[str, Any]]) -> dict[str, float]:
    """A data set without any rating leaves its family, and the mean of all, without a figure: no other can stand for it."""
    groups = {
        x: mean_score(row for row in rows if row["group"] == x) for x in dict.fromkeys(row["group"] for row in rows)
    }
    families = {}
    for group, mean in groups.items():
        families.setdefault(family_of(group), []).append(mean)
    means = {family: _mean(values) for family, values in families.items()}
    found = {"mean": _mean(list(means.values())), **means, **groups}
    return {name: value for name, value in found.items() if value is not None}


def _mean(values: list[float | None]) -> float | None:
    """None as soon as one is."""
    return None if None in values else sum(values) / len(values)


def data_set_of(group: str) -> str:
    """LongBench's name of a data set, as its paper writes it: without lm-eval's `longbench_` and LongBench-E's `_e`."""
    return group.removeprefix("longbench_").removesuffix("_e")


def family_of(group: str) -> str:
    """The family of a data set; "other" where LongBench has it not."""
    return next((family for family, names in LONGBENCH.items() if data_set_of(group) in names), "other")


def kind_of(group: str) -> str | None:
    """qa or summary; None where the judge has no prompt for such a data set."""
    return {"single_doc_qa": QA, "multi_doc_qa": QA, "summarization": SUMMARY}.get(family_of(group))


def read_answers(path: str | None, folder: Path, limit: int | None = None) -> tuple[list[Answered], int]:
    """The answers that a judge can rate, at most `limit` of each data set, and how many others there are.

    Raises:
        FileNotFoundError: there are none.
        ValueError: a column is missing, a row is not in order, or none of them can be rated.
    """
    source = Path(path).expanduser() if path else folder / READS[0] / ROWS
    if path is None and not source.exists():
        raise FileNotFoundError(
            f"There are no answers to rate in {folder}; run the task longbench first, or name a file with "
            "--longbench_judged_answers."
        )
    is_lines = source.name.endswith(".jsonl")  # of which `datasets` would make columns of one type
    rows = read_rows(source) if is_lines else [dict(row) for row in load_rows(str(source)).with_format(None)]
    found, num_others, taken = [], 0, Counter()
    for number, row in enumerate(rows, 1):
        answered = _answered(row, f"Row {number} of {source}", str(number))
        if answered is None:
            num_others += 1
        elif limit is None or taken[answered.group] < limit:
            taken[answered.group] += 1
            found.append(answered)
    if not found:
        raise ValueError(f"None of the {len(rows)} rows of {source} is an answer or a summary that a judge can rate.")
    if twice := [key for key, number in Counter((x.group, x.id) for x in found).items() if number > 1]:
        raise ValueError(f"{source}: {twice[0][0]} has two rows with the id {twice[0][1]!r}; give each its own.")
    return found, num_others


def _answered(row: dict[str, Any], where: str, number: str) -> Answered | None:
    """None where the judge has no prompt for the row's data set."""
    values = {name: _first(row, columns) for name, columns in NAMES.items()}
    group = values["group"]
    if not isinstance(group, str):
        raise ValueError(f"{where} names no data set; give it in the column group.")
    kind = row.get("kind") or kind_of(group)
    if kind is None:
        return None
    if kind not in SCALES:
        raise ValueError(f"{where} is of the kind {kind!r}; use one of {', '.join(SCALES)}.")
    references = _texts(values["reference"])
    question = values["question"] or ""
    if not references or not isinstance(values["answer"], str) or (kind == QA and not question.strip()):
        raise ValueError(
            f"{where} lacks a question, a reference or an answer; the columns are {', '.join(sorted(row))}, and those "
            f"wanted are {', '.join(NAMES)}."
        )
    return Answered(str(row.get("id") or number), group, kind, question, references, values["answer"])


def _first(row: dict[str, Any], columns: tuple[str, ...]) -> Any:
    return next((row[column] for column in columns if row.get(column) is not None), None)


def _texts(value: Any) -> tuple[str, ...]:
    """One text or several; LongBench keeps several in a list, which templates write out as Python's or JSON's."""
    if isinstance(value, str) and value.startswith("["):
        try:
            listed = ast.literal_eval(value)
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            listed = None  # a text that begins with a bracket
        value = listed if isinstance(listed, list) and all(isinstance(x, str) for x in listed) else value
    values = [value] if isinstance(value, str) else value or []
    return tuple(dict.fromkeys(text for text in values if isinstance(text, str) and text.strip()))


def _templates(config: LongBenchJudgedConfig) -> dict[str, str]:
    return {
        QA: _template(config.longbench_judged_qa_prompt, "qa.txt", ("question", "reference", "answer")),
        SUMMARY: _template(config.longbench_judged_summary_prompt, "summary.txt", ("reference", "answer")),
    }


def _template(path: str | None, shipped: str, names: tuple[str, ...]) -> str:
    text = read_user_text(path) if path else shipped_prompt(f"{TASK}/{shipped}")
    if missing := [name for name in names if f"{{{name}}}" not in text]:
        raise ValueError(
            f"The prompt {path or shipped} has no place for {', '.join(missing)}; write {{{missing[0]}}}."
        )
    return text
