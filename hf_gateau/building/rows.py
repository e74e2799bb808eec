"""From contexts to rows: which questions are asked, which of them are taken, and what is kept of the answers.

    Context -> Task (a context and a kind of question) -> five questions -> one that is new -> its answer -> BuiltRow

Tasks are taken in rounds, so that what failed is made up for. Every decision depends on the seed and on the replies alone,
and replies are kept by the endpoint: a build that was cut off is repeated from them and goes on where it was.
"""

from __future__ import annotations

import hashlib
import random
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from ..endpoint.questions import Answer, Endpoint, Estimate
from ..endpoint.replies import Request
from ..rows.conversations import SampleError, read_conversation
from .config import BuildConfig
from .contexts import Context, CountTokens, length_ranges, range_of, text_of
from .documents import Documents
from .duplicates import Questions, rouge_l, words_of
from .prompts import PROMPT_VERSION, parse_answer, parse_questions, question_prompt


TASKS_A_ROUND = (
    256  # at once in memory, where each may be 64k tokens; the rows do not depend on how many are under way
)
SPARE = 0.25  # contexts beyond those needed, to make up for questions and answers that cannot be used
REPEATS = 0.8  # ROUGE-L of an answer with its question from which on it says nothing else
COPIED = 200  # characters of the context that an answer which begins with them copies
NO_REPLY = "no reply"
ALIKE = 0.5  # rows
COLUMNS = (
    *("id", "messages", "length"),  # LongAlign's
    *("num_context_tokens", "task_type", "language", "source", "license", "documents"),
    *("model", "prompt_version", "reply_keys"),
)


@dataclass(frozen=True)
class Task:
    """One row to be made: a context and the kind of question."""

    context: Context
    task_type: str


@dataclass(frozen=True)
class BuiltRow:
    """A row but for its text, which is long and is read again from the documents.

    Attributes:
        reply_keys: what the endpoint's store knows the replies by, that with the questions and that with the answer.
    """

    task: Task
    instruction: str
    answer: str
    reply_keys: tuple[str, str]


def choose_contexts(cutter: Iterable[Context], config: BuildConfig) -> list[Context]:
    """The contexts to ask about and some to spare; those with a text that was there before are left out."""
    from tqdm.auto import tqdm

    wanted = None if config.num_rows is None else num_needed(config) + int(SPARE * num_needed(config)) + 1
    contexts: dict[str, Context] = {}
    with tqdm(total=wanted, desc="Contexts", unit="") as bar:
        for context in cutter:
            bar.update(context.key not in contexts)
            contexts.setdefault(context.key, context)
            if len(contexts) == wanted:
                break
    return list(contexts.values())


def num_needed(config: BuildConfig) -> int:
    """Contexts that `num_rows` rows take."""
    return -(-config.num_rows // config.rows_per_context)


def check_enough(contexts: Sequence[Context], config: BuildConfig) -> None:
    """Refuse to make more rows than there are contexts for.

    Raises:
        ValueError: they are too few for `num_rows`, or there is none.
    """
    between = f"of {config.min_tokens:,} to {config.max_tokens:,} tokens"
    if not contexts:
        raise ValueError(f"The documents have no context {between}; give longer ones, or lower min_tokens.")
    if config.num_rows is not None and len(contexts) < num_needed(config):
        raise ValueError(
            f"The documents have {len(contexts)} contexts {between}, which make {len(contexts) * config.rows_per_context} "
            f"rows with rows_per_context={config.rows_per_context}, and num_rows={config.num_rows}; give more documents, "
            "more rows_per_context, or lower max_tokens."
        )


class Assignment:
    """Says which kind of question each context is asked for next, so that kinds have their shares among the rows.

    A kind that is furthest behind its share comes first; one that the context was asked for already counts as a row ahead.
    Among kinds that are less than `ALIKE` apart, the one that is furthest behind among contexts of this length comes first:
    lengths come in turns as kinds do, and a kind would get one length alone.
    """

    def __init__(self, contexts: Sequence[Context], config: BuildConfig):
        self.weights = config.weights()
        self.given: Counter = Counter()
        self._ranges = length_ranges(config.min_tokens, config.max_tokens)
        self._of_length: dict[int, Counter] = defaultdict(Counter)
        self._of_context: dict[str, Counter] = {context.key: Counter() for context in contexts}
        self._order = self._contexts_in_order(contexts, config)

    def _contexts_in_order(self, contexts: Sequence[Context], config: BuildConfig) -> Iterator[Context]:
        """Once each, then a second time, ...; those to spare after all others."""
        needed = len(contexts) if config.num_rows is None else num_needed(config)
        for part in (contexts[:needed], contexts[needed:]):
            for _ in range(config.rows_per_context):
                yield from part

    def take(self, number: int) -> list[Task]:
        """The next tasks, fewer where contexts are at their end."""
        tasks = []
        for context in self._order:
            tasks.append(Task(context, self._next_type(context)))
            if len(tasks) == number:
                break
        return tasks

    def _next_type(self, context: Context) -> str:
        used, alike = self._of_context[context.key], self._of_length[range_of(context.num_tokens, self._ranges)]
        behind = {name: self._behind(name, self.given) - used[name] for name in self.weights}
        nearly = [name for name in self.weights if behind[name] > max(behind.values()) - ALIKE]
        chosen = max(nearly, key=lambda name: self._behind(name, alike))
        for counts in (used, self.given, alike):
            counts[chosen] += 1
        return chosen

    def _behind(self, name: str, given: Counter) -> float:
        """Rows that a kind lacks for its share, with the next one."""
        return self.weights[name] * (given.total() + 1) - given[name]

    def give_back(self, task: Task) -> None:
        """No row came of a task: its kind is behind by one more."""
        self.given[task.task_type] -= 1
        self._of_length[range_of(task.context.num_tokens, self._ranges)][task.task_type] -= 1


class Builder:
    """Asks an endpoint for questions and answers.

    Args:
        documents (`Documents`): what contexts are of.
        config (`BuildConfig`): how many rows, of which kinds.
        endpoint (`Endpoint`): what is asked.

    Attributes:
        dropped: why tasks became no row, and how many.
        passed_over (`int`): questions that were duplicates, of those looked at.
    """

    def __init__(self, documents: Documents, config: BuildConfig, endpoint: Endpoint):
        self.documents, self.config, self.endpoint = documents, config, endpoint
        self.dropped: Counter = Counter()
        self.passed_over = 0
        self._questions = Questions(config.near_duplicate)

    def build(self, contexts: Sequence[Context]) -> list[BuiltRow]:
        """The rows, `num_rows` of them or fewer."""
        assignment = Assignment(contexts, self.config)
        wanted = self.config.num_rows or len(contexts) * self.config.rows_per_context
        rows: list[BuiltRow] = []
        while len(rows) < wanted and (tasks := assignment.take(min(TASKS_A_ROUND, wanted - len(rows)))):
            made = self._round(tasks, f"{len(rows):,} of {wanted:,} rows")
            rows += [row for row in made if row is not None]
            for task, row in zip(tasks, made, strict=True):
                if row is None:
                    assignment.give_back(task)
        return rows

    def _round(self, tasks: Sequence[Task], done: str) -> list[BuiltRow | None]:
        """A row a task, None where there can be none; the reason is counted."""
        distinct = {(task.context.key, task.task_type): task for task in tasks}
        requests = {key: self.question_request(task) for key, task in distinct.items()}
        replies = self.endpoint.ask(requests.values(), parse_questions, desc=f"{done}: questions")
        proposals = dict(zip(requests, replies, strict=True))
        proposed = [proposals[task.context.key, task.task_type] for task in tasks]
        chosen = [self._choose(task, answer) for task, answer in zip(tasks, proposed, strict=True)]
        asked = [i for i, instruction in enumerate(chosen) if instruction is not None]
        answer_requests = [self.answer_request(tasks[i].context, chosen[i]) for i in asked]
        answers = self.endpoint.ask(answer_requests, parse_answer, desc=f"{done}: answers")
        rows: list[BuiltRow | None] = [None] * len(tasks)
        for i, answer in zip(asked, answers, strict=True):
            keys = proposed[i].key, answer.key
            rows[i] = self._checked(tasks[i], chosen[i], answer, keys)
        return rows

    def estimate(self, contexts: Sequence[Context]) -> Estimate:
        """What all questions will take, and as many answers: whose questions are not known yet, and are short."""
        wanted = self.config.num_rows or len(contexts) * self.config.rows_per_context
        tasks = Assignment(contexts, self.config).take(wanted)
        parts = []
        for start in range(0, len(tasks), TASKS_A_ROUND):
            some = tasks[start : start + TASKS_A_ROUND]
            parts.append(self.endpoint.estimate(self.question_request(task) for task in some))
            answers = (self.answer_request(task.context, str(start + i)) for i, task in enumerate(some))
            parts.append(self.endpoint.estimate(answers))
        numbers = (
            [getattr(part, name) for part in parts]
            for name in ("requests", "recorded", "input_tokens", "output_tokens")
        )
        prices = [part.price for part in parts]
        return Estimate(*map(sum, numbers), None if None in prices else sum(prices))

    def question_request(self, task: Task) -> Request:
        """Asks for five questions."""
        context = task.context
        prompt = question_prompt(text_of(context.spans, self.documents), task.task_type, context.language)
        return self._request(prompt, self.config.question_tokens)

    def answer_request(self, context: Context, instruction: str) -> Request:
        """Asks for the answer as whoever is trained on the row will be asked."""
        return self._request(user_turn(text_of(context.spans, self.documents), instruction), self.config.answer_tokens)

    def _request(self, prompt: str, max_tokens: int) -> Request:
        messages = [{"role": "user", "content": prompt}]
        return Request(messages, max_tokens=max_tokens, temperature=self.config.temperature, whole=True)

    def _choose(self, task: Task, answer: Answer) -> str | None:
        """One of the five questions, at random, that is like none that was taken before."""
        if answer.value is None:
            self.dropped[_reason("questions", answer)] += 1
            return None
        questions = list(answer.value)
        random.Random(f"{self.config.seed} {task.context.key} {task.task_type}").shuffle(questions)
        for question in questions:
            if self._questions.take(question):
                return question
            self.passed_over += 1
        self.dropped["every question is a duplicate of one taken before"] += 1
        return None

    def _checked(
        self, task: Task, instruction: str, answer: Answer, reply_keys: tuple[str | None, str | None]
    ) -> BuiltRow | None:
        """The row, if the answer says something and a reader of rows will find context and instruction in it."""
        problem = _reason("answer", answer) if answer.error else None
        problem = problem or self._problem(task.context, instruction, answer.value)
        if problem:
            self.dropped[problem] += 1
            return None
        return BuiltRow(task, instruction, answer.value, reply_keys)

    def _problem(self, context: Context, instruction: str, answer: str) -> str | None:
        if rouge_l(words_of(answer), words_of(instruction)) >= REPEATS:
            return "answer: it repeats the question"
        text = text_of(context.spans, self.documents)
        if answer.startswith(text[:COPIED]):
            return "answer: it repeats the context"
        try:
            read = read_conversation({"messages": turns(text, instruction, answer)})
        except SampleError as error:
            return f"the row cannot be read: {error}"
        found = read.messages[0]["content"][read.start : read.end], read.messages[0]["content"][read.end :].strip()
        return None if found == (text, instruction) else "the row is not read as this context and this instruction"


def _reason(asked: str, answer: Answer) -> str:
    """Why there is no value; that no reply came is told apart, for it may come another time."""
    return f"{asked}: {answer.error}" if answer.replies else f"{NO_REPLY}, {asked}: {answer.error}"


def user_turn(context: str, instruction: str) -> str:
    """LongAlign's form: the context, an empty line, the instruction."""
    return f"{context}\n\n{instruction}"


def turns(context: str, instruction: str, answer: str) -> list[dict[str, str]]:
    """A row's `messages`."""
    user = {"role": "user", "content": user_turn(context, instruction)}
    return [user, {"role": "assistant", "content": answer}]


class RowWriter:
    """Makes whole rows of built ones, one at a time.

    Args:
        documents (`Documents`): where texts are read from.
        count_tokens: texts to their lengths.
        model (`str`): the endpoint's.
    """

    def __init__(self, documents: Documents, count_tokens: CountTokens, model: str):
        self.documents, self.count_tokens, self.model = documents, count_tokens, model

    def row(self, built: BuiltRow) -> dict[str, Any]:
        """LongAlign's `id`, `messages` and `length` (tokens of all turns), and where each part is from."""
        context = built.task.context
        messages = turns(text_of(context.spans, self.documents), built.instruction, built.answer)
        documents = [self.documents[span.place] for span in context.spans]
        licenses = sorted({document.license for document in documents if document.license})
        return {
            "id": hashlib.sha256(messages[0]["content"].encode()).hexdigest()[:32],
            "messages": messages,
            "length": sum(self.count_tokens([message["content"] for message in messages])),
            "num_context_tokens": context.num_tokens,
            "task_type": built.task.task_type,
            "language": context.language,
            "source": documents[0].source,
            "license": ", ".join(licenses) or None,
            "documents": [
                {"id": document.id, "start": span.start, "end": span.end}
                for document, span in zip(documents, context.spans, strict=True)
            ],
            "model": self.model,
            "prompt_version": PROMPT_VERSION,
            "reply_keys": list(built.reply_keys),
        }

    @cached_property
    def features(self):
        """The columns' types, `datasets.Features`."""
        from datasets import Features, Value

        text, number = Value("string"), Value("int64")
        types = dict.fromkeys(COLUMNS, text) | dict.fromkeys(("length", "num_context_tokens"), number)
        types["messages"], types["reply_keys"] = [{"role": text, "content": text}], [text]
        types["documents"] = [{"id": text, "start": number, "end": number}]
        return Features(types)


def write_rows(built: Sequence[BuiltRow], writer: RowWriter, save: Callable[[Any], None]) -> None:
    """Give the rows to `save` as a `Dataset` that is on the disk, not in memory, until `save` returns."""
    import tempfile

    from datasets import Dataset

    def rows() -> Iterator[dict[str, Any]]:
        for one in built:
            yield writer.row(one)

    with tempfile.TemporaryDirectory(prefix="gateau-build-") as folder:
        options = {"features": writer.features, "cache_dir": folder, "fingerprint": "gateau-build"}
        save(Dataset.from_generator(rows, **options))
