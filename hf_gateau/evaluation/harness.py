"""LongBench, RULER and any other generation task of lm-evaluation-harness, answered by our generator.

The harness has the data, the prompts and the metrics. Answers come from here, since LongBench wants prompts that are too long
to lose their middle before the chat template is applied, which the harness's own models do not do; and since they are kept.
"""

from __future__ import annotations

import json
import logging
from collections import defaultdict
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..settings import did_you_mean
from .metrics import POINTS, longbench_metrics
from .results import TaskResult, means_by
from .tasks import Generator, Work, split_names


if TYPE_CHECKING:
    from lm_eval.api.instance import Instance

logger = logging.getLogger(__name__)

# LongBench's sets in the GATEAU paper, by what they are about
LONGBENCH = {
    "single_doc_qa": ("narrativeqa", "qasper", "multifieldqa_en", "multifieldqa_zh"),
    "multi_doc_qa": ("hotpotqa", "2wikimqa", "musique", "dureader"),
    "summarization": ("gov_report", "qmsum", "multi_news", "vcsum"),
}
NIAH = tuple(f"niah_{kind}" for kind in ("single_1", "single_2", "single_3", "multikey_1", "multikey_2", "multikey_3"))
NIAH += ("niah_multiquery", "niah_multivalue")
RULER = (*NIAH, "ruler_vt", "ruler_cwe", "ruler_fwe", "ruler_qa_squad", "ruler_qa_hotpot")
PREFIX = "longbench_"  # of its sets' names in the harness
# LongBench-E's ranges of `length`, which counts words in English and characters in Chinese: (its name, its end)
BUCKETS = (("0-4k", 4_000), ("4k-8k", 8_000), ("8k+", float("inf")))

ANSWER_TOKENS = 256  # where a task does not say


@dataclass
class HarnessConfig:
    """Which tasks of lm-evaluation-harness.

    Raises:
        ValueError: a field is out of range.
    """

    RARELY_GIVEN = ("include_path",)

    longbench_sets: list[str] = field(
        default_factory=lambda: [name for names in LONGBENCH.values() for name in names],
        metadata={
            "help": "Data sets of the task longbench, one after the other or with commas between. Default: the twelve of the "
            "GATEAU paper."
        },
    )
    ruler_lengths: list[int] = field(
        default_factory=lambda: [4_096],
        metadata={"help": "Lengths of the tasks ruler and niah, in tokens; 500 questions each, of every data set."},
    )
    harness_tasks: list[str] = field(
        default_factory=list,
        metadata={
            "help": "Tasks or groups of lm-evaluation-harness for the task harness, such as longbench_fewshot (which LongBench "
            "asks without a chat template: --chat_template off)."
        },
    )
    include_path: str | None = field(
        default=None,
        metadata={
            "help": "Folder of task files (YAML) of your own. One with the name of a task of lm-evaluation-harness takes its "
            "place, as for LongBench from files of yours."
        },
    )

    def __post_init__(self):
        self.longbench_sets, self.harness_tasks = split_names(self.longbench_sets), split_names(self.harness_tasks)
        if not self.longbench_sets:
            raise ValueError("longbench_sets is empty; name some data sets, or leave it out.")
        if not self.ruler_lengths or min(self.ruler_lengths) < 256:
            raise ValueError(f"ruler_lengths are numbers of tokens, got {self.ruler_lengths}; give 256 or more.")
        if self.include_path is not None and not Path(self.include_path).expanduser().is_dir():
            raise ValueError(f"include_path {self.include_path!r} is no folder; give one with task files.")


OPTIONS = (HarnessConfig,)


def run_longbench(work: Work) -> TaskResult:
    """LongBench by its published metrics, in points; the mean of the sets comes first, then those of the three kinds."""
    longbench_metrics()
    config = work.settings(HarnessConfig)
    rows = harness_rows(work, [PREFIX + name for name in config.longbench_sets], folder="longbench")
    means = means_by(rows, "group")
    metrics = {"mean": sum(means.values()) / len(means)}
    for kind, names in LONGBENCH.items():
        if found := [means[name] for name in names if name in means]:
            metrics[kind] = sum(found) / len(found)
    buckets = means_by(rows, "bucket")
    metrics |= means | {name: buckets[name] for name, _ in BUCKETS if name in buckets}
    return TaskResult("longbench", metrics, rows, _settings(work) | {"length": "words, in Chinese characters"})


def run_ruler(work: Work) -> TaskResult:
    """RULER's thirteen tasks at the lengths that were given."""
    return _run_synthetic("ruler", work, RULER)


def run_niah(work: Work) -> TaskResult:
    """RULER's eight needle tasks alone."""
    return _run_synthetic("niah", work, NIAH)


def run_harness(work: Work) -> TaskResult:
    """Any tasks of the harness whose answers are generated.

    Raises:
        ValueError: none is named.
    """
    names = work.settings(HarnessConfig).harness_tasks
    if not names:
        raise ValueError(
            "The task harness runs what you name; give harness_tasks, e.g. --harness_tasks longbench_trec."
        )
    rows = harness_rows(work, names)
    means = means_by(rows, "group")
    return TaskResult("harness", {"mean": sum(means.values()) / len(means), **means}, rows, _settings(work))


def _run_synthetic(name: str, work: Work, tasks: tuple[str, ...]) -> TaskResult:
    """The harness makes these texts as long as the model's tokenizer counts; it reads it from a folder, whatever the
    model's form.

    Raises:
        ValueError: the model's window is shorter: a text that lost its middle would have lost its needles.
    """
    generator, lengths = work.generator(), sorted(set(work.settings(HarnessConfig).ruler_lengths))
    if lengths[-1] > generator.max_length:
        raise ValueError(
            f"ruler_lengths has {lengths[-1]:,}, and {generator.model!r} reads {generator.max_length:,} tokens; give shorter "
            "lengths, or a larger max_length to see what it does beyond."
        )
    folder, rows = work.folder / name / "tokenizer", []
    generator.tokenizer.save_pretrained(folder)
    for length in lengths:  # one by one, so that a limit is of each
        told = {"tokenizer": str(folder), "max_seq_lengths": [length]}
        rows += harness_rows(work, list(tasks), told, folder="ruler")
    by_length = {f"{length} tokens": mean for length, mean in means_by(rows, "length").items()}
    groups = means_by(rows, "group")
    mean = sum(groups.values()) / len(groups)
    return TaskResult(name, {"mean": mean, **by_length, **groups}, rows, _settings(work))


def _settings(work: Work) -> dict[str, Any]:
    from importlib.metadata import version

    return asdict(work.settings(HarnessConfig)) | {"lm_eval": version("lm_eval")}


# The harness


def harness_rows(
    work: Work, tasks: list[str], metadata: dict[str, Any] | None = None, folder: str | None = None
) -> list[dict[str, Any]]:
    """Questions of tasks of the harness with their answers and scores, in points.

    Args:
        work: what to take, and who answers.
        tasks: names of tasks or groups.
        metadata: what tasks that make their own data are told.
        folder: the harness's own folder that they are in, where that is known; to read all of them takes a while.

    Raises:
        ImportError: the harness is not installed.
        ValueError: it has no such task, or one is not answered with text.
        Exception: whatever the harness raises where data of a task cannot be loaded.
    """
    try:
        import lm_eval
        from lm_eval.tasks import TaskManager
    except ImportError as error:
        raise ImportError(
            'LongBench and RULER need lm-evaluation-harness; `pip install "hf-gateau[eval]"`.'
        ) from error
    include = work.settings(HarnessConfig).include_path
    places = [] if folder is None else [Path(lm_eval.tasks.__file__).parent / folder]
    places += [] if include is None else [Path(include).expanduser()]
    manager = TaskManager(include_path=places, include_defaults=folder is None, metadata=metadata or {})
    if unknown := [name for name in tasks if name not in manager.all_tasks]:
        raise ValueError(
            f"lm-evaluation-harness {lm_eval.__version__} has no task {', '.join(unknown)}"
            + did_you_mean(unknown[0], manager.all_tasks, "; `lm-eval ls tasks` lists them.")
        )
    found = lm_eval.simple_evaluate(
        answering_model()(work.generator()),
        tasks=tasks,
        task_manager=manager,
        limit=work.limit,
        apply_chat_template=True,
        bootstrap_iters=0,
    )
    rows = []
    for name, samples in found["samples"].items():
        several = len({sample["filter"] for sample in samples}) > 1
        rows += [_row(f"{name} ({sample['filter']})" if several else name, sample) for sample in samples]
    return rows


def _row(task: str, sample: dict[str, Any]) -> dict[str, Any]:
    """One question, as one of the task's ways to find the answer in what was said reads it. Its score is the task's main
    metric, which is `score` in LongBench, the question's length in RULER, and otherwise the first one that is a number.

    Raises:
        ValueError: none is.
    """
    doc, names = sample["doc"], [name for name in sample["metrics"] if np.isscalar(sample[name])]
    if not names:
        raise ValueError(
            f"The task {task} has no score of one question: {', '.join(sample['metrics'])} is of all of them together; "
            "its own command, lm-eval, computes it."
        )
    length, made = doc.get("max_length", doc.get("length")), "max_length" in doc
    main = next((name for name in (str(doc.get("max_length")), "score") if name in names), names[0])
    answer = sample["resps"][0][0]
    return {
        "id": f"{task}/{f'{length}-' if made else ''}{doc.get('_id', sample['doc_id'])}",
        "score": POINTS * float(sample[main]),
        "group": task.removeprefix(PREFIX),
        "metric": main if main != "score" else next((name for name in names if name != "score"), main),
        "length": length,
        "bucket": None if made else bucket_of(length),
        "question": doc.get("question", doc.get("input")),
        "answer": answer,
        "target": sample["target"],
    }


def bucket_of(length: int | None) -> str | None:
    """LongBench-E's range of a length; None where there is none."""
    return None if length is None else next(name for name, end in BUCKETS if length < end)


@cache
def answering_model() -> Callable[[Generator], Any]:
    """The class by which the harness asks our generator; made here, since its base is the harness's."""
    from lm_eval.api.model import LM

    class Answering(LM):
        """Prompts pass through the harness as JSON of their messages, so that the generator gets the messages themselves."""

        def __init__(self, generator: Generator):
            super().__init__()
            self.generator = generator

        @property
        def tokenizer_name(self) -> str:
            return self.generator.model

        def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
            return json.dumps(chat_history, ensure_ascii=False)

        def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
            answers, by_length = [""] * len(requests), defaultdict(list)
            for place, request in enumerate(requests):
                by_length[_answer_tokens(request.args[1])].append(place)
            for max_new_tokens, places in by_length.items():
                prompts = [json.loads(requests[place].args[0]) for place in places]
                for place, answer in zip(places, self.generator.generate(prompts, max_new_tokens), strict=True):
                    answers[place] = cut_at(answer, _stops(requests[place].args[1]))
            return answers

        def loglikelihood(self, requests: list[Instance]) -> list[tuple[float, bool]]:
            raise ValueError("Only tasks whose answers are generated can be run; this one compares probabilities.")

        loglikelihood_rolling = loglikelihood

    return Answering


def _answer_tokens(told: dict[str, Any]) -> int:
    """The longest answer, under whichever of its names the harness knows a task gives it."""
    names = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
    return int(next((told[name] for name in names if told.get(name) is not None), ANSWER_TOKENS))


def _stops(told: dict[str, Any]) -> list[str]:
    stops = told.get("until") or []
    return [stops] if isinstance(stops, str) else stops


def cut_at(answer: str, stops: list[str]) -> str:
    """An answer up to the first of the strings that end it."""
    places = [place for stop in stops if stop and (place := answer.find(stop)) >= 0]
    return answer[: min(places)] if places else answer
