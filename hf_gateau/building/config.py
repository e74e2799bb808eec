"""Settings of a build: which documents, contexts of what length, and which questions about them."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from .prompts import NUM_QUESTIONS, TASK_TYPES


@dataclass
class DocumentConfig:
    """What a document is.

    Raises:
        ValueError: a field is out of range.
    """

    RARELY_GIVEN = ("id_column", "license_column", "license")

    text_column: str = field(
        default="text", metadata={"help": "Column of the text, in .jsonl, .parquet and on the Hub."}
    )
    id_column: str | None = field(
        default=None, metadata={"help": "Column that names a document. Default: the file and the row's number."}
    )
    source_column: str | None = field(
        default=None,
        metadata={
            "help": "Column that says where a document is from; only documents of one source are joined. Default: all are "
            "of one source; .txt files, of their folder."
        },
    )
    license_column: str | None = field(default=None, metadata={"help": "Column of a document's licence."})
    license: str | None = field(default=None, metadata={"help": "Licence of all documents, kept with every row."})

    def __post_init__(self):
        if self.license is not None and self.license_column is not None:
            raise ValueError("license and license_column are both given; choose one.")


@dataclass
class BuildConfig:
    """What is made of the documents. The defaults are LongAlign's (arXiv 2401.18058), where it says.

    Raises:
        ValueError: a field is out of range.
    """

    RARELY_GIVEN = ("rows_per_context", "question_tokens", "answer_tokens", "temperature", "near_duplicate")

    num_rows: int | None = field(
        default=None, metadata={"help": "Rows to make. Default: as many as the documents have contexts for."}
    )
    tokenizer: str = field(
        default="Qwen/Qwen3-0.6B",
        metadata={"help": "Tokenizer that lengths are counted with: that of the model to be trained, best."},
    )
    min_tokens: int = field(default=8192, metadata={"help": "Tokens of the shortest context."})
    max_tokens: int = field(default=65536, metadata={"help": "Tokens of the longest context."})
    join: bool = field(
        default=True,
        metadata={
            "help": "Join documents of one source that are too short for a context of their own; else leave them out."
        },
    )
    rows_per_context: int = field(
        default=1, metadata={"help": "Rows to make of one context, with different questions. LongAlign makes one."}
    )
    task_types: list[str] = field(
        default_factory=lambda: list(TASK_TYPES),
        metadata={"help": "Kinds of questions, each with a weight if they are not to be alike: general=2 summary ..."},
    )
    question_tokens: int = field(
        default=1024, metadata={"help": f"Most tokens of a reply with {NUM_QUESTIONS} questions."}
    )
    answer_tokens: int = field(default=2048, metadata={"help": "Most tokens of an answer."})
    temperature: float = field(
        default=0.7, metadata={"help": "Temperature of questions and answers; LongAlign does not say its own."}
    )
    near_duplicate: float = field(
        default=0.7,
        metadata={
            "help": "ROUGE-L with a question that was taken before, from which on a question is left out (0.7 in "
            "Self-Instruct); 1: exact duplicates alone."
        },
    )
    seed: int = field(default=0, metadata={"help": "Of the order of documents and the choice of questions."})
    dry_run: bool = field(
        default=False, metadata={"help": "Ask nothing, write nothing: say how many contexts there are, and the cost."}
    )

    def __post_init__(self):
        for name in ("rows_per_context", "min_tokens", "question_tokens", "answer_tokens"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is a whole number, got {getattr(self, name)}; give 1 or more.")
        if self.num_rows is not None and self.num_rows < 1:
            raise ValueError(f"num_rows is a number of rows, got {self.num_rows}; give 1 or more.")
        if self.max_tokens <= self.min_tokens:
            raise ValueError(f"max_tokens={self.max_tokens} is not above min_tokens={self.min_tokens}; leave room.")
        if not 0.0 < self.near_duplicate <= 1.0:
            raise ValueError(f"near_duplicate={self.near_duplicate} is not above 0 and at most 1; use e.g. 0.7.")
        if not 0.0 <= self.temperature <= 2.0:
            raise ValueError(f"temperature={self.temperature} is not from 0 to 2; use e.g. 0.7.")
        most = NUM_QUESTIONS * len(self.weights())
        if self.rows_per_context > most:
            raise ValueError(f"rows_per_context={self.rows_per_context}, and a context has {most} questions at most.")

    def weights(self) -> dict[str, float]:
        """Task type -> its share of the rows; the shares' sum is 1.

        Raises:
            ValueError: there is no such type, it is named twice, or a weight is no number above 0.
        """
        weights = {}
        for entry in self.task_types:
            name, _, weight = entry.partition("=")
            if name not in TASK_TYPES:
                raise ValueError(f"There is no task type {name!r}; use some of {', '.join(TASK_TYPES)}.")
            weights[name] = _positive_number(weight or "1", entry)
        if not weights or len(weights) < len(self.task_types):
            names = Counter(entry.partition("=")[0] for entry in self.task_types)
            raise ValueError(f"task_types names each type once, and at least one; got {dict(names)}.")
        return {name: weight / sum(weights.values()) for name, weight in weights.items()}


def _positive_number(text: str, entry: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = 0.0
    if not 0.0 < number < float("inf"):
        raise ValueError(f"task_types: {entry!r} has no weight above 0; write e.g. summary=2, or leave the type out.")
    return number
