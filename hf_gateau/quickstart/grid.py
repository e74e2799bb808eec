"""What a grid of experiments (`hf-gateau experiment`) takes from the planted world: data, a model, and an evaluator."""

from __future__ import annotations

from typing import TYPE_CHECKING

from . import LONG_MODEL, SHORT_WINDOW


if TYPE_CHECKING:
    from datasets import Dataset

    from ..evaluation.results import TaskResult
    from ..evaluation.tasks import Work


def measured(num_rows: int | None = None, seed: int | None = None) -> Dataset:
    """Planted rows, the shipped ones or, from a seed, fresh ones, measured with the long model and its windowed sibling."""
    from .demo import SIBLINGS, _one_thread, _score, planted_dataset

    ds = planted_dataset(seed, num_rows or 200)
    ds = ds if num_rows is None else ds.select(range(min(num_rows, len(ds))))
    with _one_thread():
        return _score(ds, SIBLINGS[f"window of {SHORT_WINDOW}"])


def forgetful_model(folder: str) -> None:
    """Save the long model after it was made to forget how to look far back; see `finetune.py`."""
    from transformers import AutoTokenizer

    from .demo import _one_thread
    from .finetune import _forget

    with _one_thread():
        _forget().save_pretrained(folder)
    AutoTokenizer.from_pretrained(LONG_MODEL).save_pretrained(folder)


def exact_match(model: str, work: Work) -> TaskResult:
    """Questions about fresh planted rows, by kind, that a model answers exactly: its first choice at every token.

    Options of the task `planted`: `num_rows` (100), `seed` (12) of the rows.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from ..evaluation.results import TaskResult, group_means
    from .finetune import ASKED, HELD_OUT_SEED, NUM_HELD_OUT, answers_exactly
    from .world import planted_rows

    options = {"num_rows": NUM_HELD_OUT, "seed": HELD_OUT_SEED} | next(iter(work.options.values()), {})
    asked = [row for row in planted_rows(**options) if row["kind"] in ASKED]
    loaded, tokenizer = AutoModelForCausalLM.from_pretrained(model), AutoTokenizer.from_pretrained(model)
    rows = [
        {"id": row["id"], "group": row["kind"], "score": float(answers_exactly(loaded, tokenizer, row))}
        for row in asked
    ]
    return TaskResult("planted", group_means(rows), rows, {"world": "planted", **options})
