"""Models that are kept: their cards say what the evaluation found, as the Hub's evaluation metadata."""

from __future__ import annotations

from pathlib import Path

from ..evaluation.results import TaskResult, eval_results
from ..markdown import inline, is_repo_id, table
from .cells import Job


def write_card(job: Job, results: dict[str, TaskResult]) -> Path:
    """Put results into the card of a job's model; the card is made where the training left none."""
    from huggingface_hub import ModelCard, ModelCardData
    from huggingface_hub.repocard_data import model_index_to_eval_results

    path = Path(job.folder) / "model" / "README.md"
    name, base = path.parent.parent.name, job.recipe["model_name_or_path"]
    if path.is_file():
        card = ModelCard.load(path)
    else:
        data = ModelCardData(library_name="transformers", pipeline_tag="text-generation", tags=["gateau"])
        card = ModelCard(f"---\n{data.to_yaml()}\n---\n\n# {name}\n\n{_about(job)}\n")
        if is_repo_id(base):
            card.data.base_model = base
    card.data.model_name = name
    index = eval_results(list(results.values()), name)
    card.data.eval_results = model_index_to_eval_results(index)[1] if index else None
    card.save(path)
    return path


def _about(job: Job) -> str:
    rows = [
        [f"{kind} rows", f"{job.selection[name]:,}"] for kind, name in (("long", "num_kept"), ("short", "num_short"))
    ]
    return f"Trained by `hf-gateau experiment`: {inline(job.label)}.\n\n" + table(["", ""], rows)
