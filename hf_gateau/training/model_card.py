"""The card of a fine-tuned checkpoint: base model, how its rows were selected, how it was trained, what came out.

`facts_of` reads a trainer, `model_card` makes Markdown and metadata of the facts, the template only prints.
"""

from __future__ import annotations

import logging
import os
from dataclasses import MISSING, dataclass, field, fields
from enum import Enum
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from ..files.hub_reading import HubError, head_of, read_text
from ..hub.dataset_card import cut_rows, license_text, measuring_rows, ranking_rows, source_rows
from ..hub.readme import BEGIN, CITATIONS, TAGS, TRAINING_CITATIONS, license_of, merge_readme
from ..markdown import escape, inline, is_repo_id, link, public_name, table
from ..models.fingerprints import commit_of
from ..ranking.config import ABLATIONS
from ..ranking.selection import SelectionRecord, library_versions
from ..redaction import redact
from ..shipped import render
from .config import TrainConfig


if TYPE_CHECKING:
    from transformers import Trainer

logger = logging.getLogger(__name__)

# Arguments that say nothing of what was learned, or have their own line.
NOT_SHOWN = {*TrainConfig.__dataclass_fields__, "packing", "max_length", "output_dir", "run_name", "report_to"}
NOT_SHOWN |= {"model_init_kwargs", "disable_tqdm", "use_cpu", "project", "trackio_space_id"}
NOT_SHOWN |= {"gradient_checkpointing", "activation_checkpointing"}
SHOWN_TYPES = (str, int, float, list, dict)
NOT_SHOWN_PREFIXES = (
    "hub_",
    "push_to_hub",
    "logging_",
    "log_",
    "save_",
    "dataloader_",
    "dataset_num_proc",
    "resume_",
    "ddp_",
)
EVALUATION = "eval_"
NO_RESULTS = ("runtime", "samples_per_second", "steps_per_second", "num_tokens", "epoch")


@dataclass
class ModelFacts:
    """What a model card says.

    Attributes:
        repo_id, model_name (`str`): where it is pushed to, and its title.
        base_model, base_revision (`str`): a Hub id, or the name of a folder; None where it has no name.
        base_license (`dict`): see `license_of`.
        is_adapter (`bool`): whether the checkpoint is a PEFT adapter of the base model.
        record (`SelectionRecord`): None where nothing was selected.
        datasets (`list[str]`): Hub ids of the training data.
        training (`dict`): strategies and sizes, title -> text.
        hyperparameters (`dict`): arguments that differ from their defaults.
        results (`dict`): metric -> value of the last evaluation.
        evaluated_on (`str`): name of the evaluation data.
        versions (`dict`): library -> version.
        tags (`list[str]`): besides ours.
    """

    repo_id: str
    model_name: str
    trainer: str
    base_model: str | None = None
    base_revision: str | None = None
    base_license: dict[str, str] = field(default_factory=dict)
    is_adapter: bool = False
    record: SelectionRecord | None = None
    datasets: list[str] = field(default_factory=list)
    training: dict[str, str] = field(default_factory=dict)
    hyperparameters: dict[str, Any] = field(default_factory=dict)
    results: dict[str, float] = field(default_factory=dict)
    evaluated_on: str | None = None
    versions: dict[str, str] = field(default_factory=dict)
    tags: list[str] = field(default_factory=list)


def write_model_card(
    trainer: Trainer,
    record: SelectionRecord | None,
    model_name: str | None = None,
    dataset_name: str | None = None,
    tags: str | list[str] | None = None,
) -> None:
    """Write `README.md` into a trainer's output folder; what others wrote into the one on the Hub stays in it.

    Args:
        record: how the training rows were selected; None where they were not.
        model_name, dataset_name, tags: as in `Trainer.create_model_card`.
    """
    facts = facts_of(trainer, record, model_name, dataset_name, [tags] if isinstance(tags, str) else list(tags or []))
    block, metadata = model_card(facts)
    path = os.path.join(trainer.args.output_dir, "README.md")
    try:
        text = merge_readme(_existing(trainer, path), escape(facts.model_name), redact(block), redact(metadata))
    except ValueError as error:  # of what somebody wrote on the Hub: no reason to end a training run
        logger.error("%s No model card is written until then.", error)
        return
    os.makedirs(trainer.args.output_dir, exist_ok=True)
    with open(path, "w", encoding="utf-8", newline="") as stream:
        stream.write(text)


def _existing(trainer: Trainer, path: str) -> str | None:
    """The README on the Hub, where there is one to push to; the one here, if we wrote it, where the Hub cannot be read."""
    repo_id = trainer.hub_model_id
    if repo_id is None:
        return None
    try:
        head = head_of(repo_id, "model", trainer.args.hub_revision)
        return read_text(repo_id, "model", "README.md", head) if head is not None else None
    except HubError as error:
        logger.warning("%s The card is made without what may stand in the one on the Hub.", error)
    if os.path.isfile(path):
        with open(path, encoding="utf-8", newline="") as stream:
            text = stream.read()
        return text if BEGIN in text else None
    return None


# From a trainer to facts


@lru_cache  # asked once, not at every checkpoint
def _license_of(base: str | None, revision: str | None) -> dict[str, str]:
    return license_of(base, "model", revision)


def _base_license(base: str | None, revision: str | None) -> dict[str, str]:
    try:
        return _license_of(base, revision)
    except HubError as error:  # no reason to end a training run; the next checkpoint asks again
        logger.warning("%s The card is made without it.", error)
        return {}


def facts_of(
    trainer: Trainer, record: SelectionRecord | None, model_name: str | None, dataset_name: str | None, tags: list[str]
) -> ModelFacts:
    """What can be said of a trainer's model."""
    args = trainer.args
    base, revision, is_adapter = _base_of(trainer)
    local = os.path.basename(os.path.abspath(args.output_dir))
    trained_on = [(record.dataset if record else {}).get("repo_id"), dataset_name]
    return ModelFacts(
        repo_id=trainer.hub_model_id or args.hub_model_id or local,
        model_name=model_name or local,
        trainer=type(trainer).__name__,
        base_model=public_name(base),
        base_revision=revision,
        base_license=_base_license(base, revision),
        is_adapter=is_adapter,
        record=record,
        datasets=[name for name in dict.fromkeys(trained_on) if is_repo_id(name)],
        training=_training(trainer, record),
        hyperparameters=hyperparameters(args),
        results=_results(trainer.state.log_history),
        evaluated_on=dataset_name or next(filter(is_repo_id, trained_on), None),
        versions=library_versions(),
        tags=[*getattr(trainer, "_tag_names", []), *tags],
    )


def _base_of(trainer: Trainer) -> tuple[str | None, str | None, bool]:
    """Name and commit of the model that training began from, and whether only an adapter was trained."""
    from peft import PeftModel

    model = trainer.accelerator.unwrap_model(trainer.model)
    name, asked = getattr(model.config, "_name_or_path", None), (trainer.args.model_init_kwargs or {}).get("revision")
    is_adapter = isinstance(model, PeftModel)
    if is_adapter:
        name = model.active_peft_config.base_model_name_or_path or name
    return name or None, name and commit_of(name, asked), is_adapter


def _training(trainer: Trainer, record: SelectionRecord | None) -> dict[str, str]:
    args, state = trainer.args, trainer.state
    weighting = getattr(args, "loss_weighting", "token")
    rows = {
        "trainer": inline(type(trainer).__name__),
        "steps": f"{state.global_step:,}" + (f" ({state.epoch:.3g} epochs)" if state.epoch else ""),
        "batch": _batch(args),
        "longest row": f"{args.max_length:,} tokens" if getattr(args, "max_length", None) else "not limited",
        "packing": "packed" if getattr(args, "packing", False) else "not packed",
        "loss weighting": "every sequence counts the same"
        if weighting == "sequence"
        else "every target token counts the same",
        "batching": "rows of similar length together" if getattr(args, "batching", None) == "sorted" else "random",
    }
    if getattr(args, "response_only_loss", False) or getattr(args, "assistant_only_loss", False):
        rows["loss on"] = "the assistant's turns alone"
    losses = [entry["loss"] for entry in state.log_history if "loss" in entry]
    if losses:
        rows["training loss"] = f"{losses[0]:.4g} at first, {losses[-1]:.4g} at last"
    if record is not None and record.short:
        rows["short data mixed in"] = f"{record.short['num_kept']:,} of {record.short['num_rows']:,} rows"
    return rows


def _batch(args: Any) -> str:
    processes, rows, accumulated = args.world_size, args.per_device_train_batch_size, args.gradient_accumulation_steps
    shape = f"{processes} processes x {rows} rows x {accumulated} accumulated"
    return f"{processes * rows * accumulated} rows a step ({shape})"


def hyperparameters(args: Any) -> dict[str, Any]:
    """Training arguments that differ from their defaults and bear on what is learned; without names of this machine."""
    found = {}
    for x in fields(args):
        default = (
            x.default
            if x.default is not MISSING
            else x.default_factory()
            if x.default_factory is not MISSING
            else None
        )
        value, default = (_plain(y) for y in (getattr(args, x.name), default))
        if x.name in NOT_SHOWN or x.name.startswith(NOT_SHOWN_PREFIXES) or not isinstance(value, SHOWN_TYPES):
            continue
        if value != default and value not in ({}, []):
            found[x.name] = public_name(value) if isinstance(value, str) and os.path.isabs(value) else value
    return found


def _plain(value: Any) -> Any:
    return value.value if isinstance(value, Enum) else value


def _results(log_history: list[dict[str, Any]]) -> dict[str, float]:
    """The numbers of the last evaluation; several datasets log one entry each at the same step."""
    evaluations = [entry for entry in log_history if any(name.startswith(EVALUATION) for name in entry)]
    last = [entry for entry in evaluations if entry.get("step") == evaluations[-1].get("step")]
    named = {
        name.removeprefix(EVALUATION): x for entry in last for name, x in entry.items() if name.startswith(EVALUATION)
    }
    return {name: x for name, x in named.items() if not name.endswith(NO_RESULTS) and isinstance(x, (int, float))}


# From facts to a card


def model_card(facts: ModelFacts) -> tuple[str, dict[str, Any]]:
    """The card's Markdown, and its metadata."""
    of = facts.base_model if is_repo_id(facts.base_model) else None
    block = render(
        "model.md",
        autoescape=False,
        summary=_summary(facts),
        repo_id=facts.repo_id if is_repo_id(facts.repo_id) else "PATH",
        selection_table=_selection_table(facts.record),
        dropped_table=_dropped_table(facts.record),
        distributions_table=_distributions_table(facts.record),
        training_table=table(["", ""], facts.training.items()),
        trainer=facts.trainer,
        hyperparameters_table=_pairs("argument", facts.hyperparameters),
        results_table=_results_table(facts),
        license_text=license_text(facts.base_license, "the base model", of, "model"),
        versions=", ".join(f"{name} {inline(number)}" for name, number in facts.versions.items()),
        citations=f"{CITATIONS}\n\n{TRAINING_CITATIONS}",
    )
    return block, _metadata(facts)


def _summary(facts: ModelFacts) -> str:
    if facts.base_model is None:
        base = "a base model that was given without a name"
    elif is_repo_id(facts.base_model):
        base = link(facts.base_model, "model", facts.base_revision)
    else:
        base = f"{inline(facts.base_model)} (a local folder)"
    what = "An adapter for" if facts.is_adapter else "A fine-tuned version of"
    data = f" on rows of {' and '.join(link(name) for name in facts.datasets)}" if facts.datasets else ""
    how = ""
    if facts.record is not None and facts.record.num_kept is not None:
        method = (facts.record.ranking or {}).get("method", "gateau")
        best = (
            "whose responses need their long context most, as [GATEAU](https://arxiv.org/abs/2410.15633) measures it"
        )
        if method != "gateau":
            best = f"that the {'ablation' if method in ABLATIONS else 'baseline'} {inline(method)} puts first"
        how = f" It was trained on the {facts.record.num_kept:,} of {facts.record.num_rows:,} long samples {best}."
        if not facts.record.num_kept:
            how = f" It was trained on none of the {facts.record.num_rows:,} long samples."
    return f"{what} {base}, trained{data} with `hf_gateau` and [TRL](https://github.com/huggingface/trl).{how}"


def _selection_table(record: SelectionRecord | None) -> str:
    if record is None:
        return ""
    rows = source_rows(record.dataset)
    if record.dataset.get("source"):
        rows += [["scored from", source_rows(record.dataset["source"])[0][1]]]
    rows += [["split", inline(record.dataset["split"])]] if record.dataset.get("split") else []
    settings = ", ".join(f"{name} {value}" for name, value in record.settings.items())
    rows += (
        [["kept", f"{record.num_kept:,} of {record.num_rows:,} rows: {inline(settings)}"]] if record.num_kept else []
    )
    rows += [["decided by a person", inline(record.decided())]] if record.decisions else []
    rows += [["tokens kept", f"{record.num_tokens_kept:,}"]] if record.num_tokens_kept else []
    ranking = record.ranking or {}
    rows += (
        ranking_rows(ranking | ({"screening": record.screening} if record.screening else {}))
        + measuring_rows(record.measuring)
        + cut_rows(record.cut)
    )
    rows += [["fingerprint", inline(record.fingerprint)]]
    return table(["", ""], rows)


def _dropped_table(record: SelectionRecord | None) -> str:
    if record is None or not record.dropped:
        return ""
    return table(["dropped because", "rows"], [[inline(why), f"{count:,}"] for why, count in record.dropped.items()])


def _distributions_table(record: SelectionRecord | None) -> str:
    """Quantiles of scores and lengths of what was ranked, and of what was kept."""
    parts = {"score": record.scores, "tokens": record.tokens} if record is not None else {}
    rows, names = [], []
    for title, found in parts.items():
        for which in ("ranked", "kept"):
            if which in found:
                names = list(found[which])
                form = "{:.3f}" if title == "score" else "{:,.0f}"
                rows.append([f"{title}, {which}", *(form.format(value) for value in found[which].values())])
    head = [{"0": "lowest", "0.5": "median", "1": "highest"}.get(name, f"{float(name):.0%}") for name in names]
    return table(["quantiles", *head], rows) if rows else ""


def _pairs(title: str, values: dict[str, Any]) -> str:
    return table([title, "value"], [[inline(name), inline(value)] for name, value in values.items()]) if values else ""


def _results_table(facts: ModelFacts) -> str:
    if not facts.results:
        return ""
    on = link(facts.evaluated_on) if facts.evaluated_on else "the evaluation rows"
    return f"On {on}:\n\n" + table(
        ["metric", "value"], [[inline(name), f"{value:.4g}"] for name, value in facts.results.items()]
    )


def _metadata(facts: ModelFacts) -> dict[str, Any]:
    metadata: dict[str, Any] = dict(facts.base_license)
    if is_repo_id(facts.base_model):
        metadata |= {
            "base_model": facts.base_model,
            "base_model_relation": "adapter" if facts.is_adapter else "finetune",
        }
    metadata |= {"datasets": facts.datasets} if facts.datasets else {}
    metadata |= {
        "library_name": "peft" if facts.is_adapter else "transformers",
        "pipeline_tag": "text-generation",
        "tags": list(dict.fromkeys([*TAGS, *facts.tags])),
    }
    return metadata | ({"model-index": _model_index(facts)} if facts.results else {})


def _model_index(facts: ModelFacts) -> list[dict[str, Any]]:
    """The results as the Hub's evaluation metadata."""
    from huggingface_hub import EvalResult
    from huggingface_hub.repocard_data import eval_results_to_model_index

    name = facts.evaluated_on if is_repo_id(facts.evaluated_on) else "evaluation rows"
    results = [
        EvalResult("text-generation", name, name, metric, value, metric_name=metric)
        for metric, value in facts.results.items()
    ]
    return eval_results_to_model_index(facts.model_name, results)
