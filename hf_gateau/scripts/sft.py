"""`trl sft`, with selection: measure what is missing, rank, select, mix in short data, train.

    trl sft --recipe recipes/gateau.yaml
    accelerate launch -m hf_gateau.scripts.sft --recipe recipes/gateau.yaml

Everything that can be wrong with the settings or the data is said before a model is loaded.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from math import ceil
from typing import Any

from ..files.hub_reading import explained
from ..hub.commits import open_repository
from ..hub.config import ScoredConfig
from ..measuring.config import MeasureConfig
from ..models.config import ModelPairConfig
from ..quickstart import resolve_shipped
from ..ranking.choice import TOKEN_COLUMNS
from ..ranking.config import MethodModelsConfig, MixConfig, RankConfig, SelectConfig
from ..ranking.formulas import needed_columns
from ..ranking.mixture import load_short
from ..ranking.supply import missing_values
from ..settings import set_fields
from ..shell.ending import TRACEBACK, interrupted, plain_warnings, tell_error
from ..training.layout import tokenizer_to_train, told_reasons
from ..training.selector import GateauSelector
from .arguments import config_of, given_settings, make_parser


logger = logging.getLogger(__name__)

LAST_CHECKPOINT = ("true", "last")  # values of --resume_from_checkpoint beside a path


def main(script_args, training_args, model_args, dataset_args, gateau_args, num_processes: int | None = None) -> None:
    """Select and train, as the arguments say; `num_processes` is what a plan counts with before they are launched."""
    import transformers
    from packaging.version import Version
    from trl import get_peft_config, get_quantization_config

    from ..training.trainer import GateauSFTTrainer

    with clear_errors():
        _resolve_names(script_args, model_args, gateau_args)
        mix_config = config_of(gateau_args, MixConfig)
        ds, scored = load_data(script_args, dataset_args, config_of(gateau_args, ScoredConfig))
        selector = make_selector(ds if scored is None else scored, gateau_args)
        if selector.rank_config.method == "no_long" and mix_config.short_data is None:
            raise ValueError("`method: no_long` trains on short data alone; name them as `short_data`.")
        ds = selector.trainable(ds, training_args, _tokenizer(model_args, training_args))
        if gateau_args.dry_run:
            return print(plan(ds, selector, script_args, training_args, model_args, mix_config, num_processes, scored))
        selected = selector.select(ds if scored is None else selector.reuse(ds, scored))
        if mix_config.short_data is not None:
            tokenizer = _tokenizer(model_args, training_args) if mix_config.short_token_share is not None else None
            share = {"fraction": mix_config.short_fraction, "token_share": mix_config.short_token_share}
            selected = selector.mix(selected, load_short(mix_config), tokenizer=tokenizer, **share)
        checkpoint = find_checkpoint(training_args)
        if checkpoint is not None:
            selector.check_checkpoint(checkpoint)
        if training_args.push_to_hub and training_args.process_index == 0:
            open_repository(_hub_name(training_args), "model", training_args.hub_private_repo, None)
        evaluated = None
        if training_args.eval_strategy != "no":
            evaluated = load_split(script_args, dataset_args, script_args.dataset_test_split)
    kwargs = {"revision": model_args.model_revision, "attn_implementation": model_args.attn_implementation}
    kwargs |= {"dtype": model_args.dtype, "trust_remote_code": training_args.trust_remote_code}
    training_args.model_init_kwargs = kwargs | (training_args.model_init_kwargs or {})
    trainer = GateauSFTTrainer(
        model_args.model_name_or_path,
        training_args,
        train_dataset=selected,
        eval_dataset=evaluated,
        quantization_config=get_quantization_config(model_args),
        peft_config=get_peft_config(model_args),
        callbacks=[selector],
    )
    trainer.accelerator.print(f"GATEAU: {selector.record.summary()}")
    trainer.train(resume_from_checkpoint=checkpoint)
    trainer.save_model(training_args.output_dir)
    trainer.accelerator.print(
        f"{trainer.state.global_step} steps; model and gateau_selection.json: {training_args.output_dir}"
    )
    if training_args.push_to_hub:
        with (
            clear_errors(),
            explained(f"Pushing to {trainer.hub_model_id}", f"The model is in {training_args.output_dir}"),
        ):
            trainer.push_to_hub(dataset_name=script_args.dataset_name or gateau_args.gateau_scored_dataset)
        trainer.accelerator.print(f"Pushed to the Hub: {trainer.hub_model_id}")
    if Version(transformers.__version__) >= Version("5.18.0"):
        trainer.end()


@contextmanager
def clear_errors() -> Iterator[None]:
    """Wrong input ends with its message and status 2, without a traceback."""
    try:
        yield
    except (
        ValueError,
        TypeError,
        OSError,
        RuntimeError,
        ImportError,
    ) as error:  # RuntimeError: of the Hub, of the store
        if os.environ.get(TRACEBACK):
            raise
        tell_error("hf-gateau sft", error)
        raise SystemExit(2) from error


def _resolve_names(script_args, model_args, gateau_args) -> None:
    places = [(script_args, "dataset_name"), (model_args, "model_name_or_path")]
    places += [(gateau_args, f"gateau_{name}") for name in ("long_model", "short_model", "tokenizer", "short_data")]
    for place, name in places:
        setattr(place, name, resolve_shipped(getattr(place, name)))
    if model_args.model_name_or_path is None:
        raise ValueError("No model to train; give --model_name_or_path.")


def load_data(script_args, dataset_args, config: ScoredConfig) -> tuple[Any, Any]:
    """The rows to select from; and, where they are not those alone, rows whose measurements are known."""
    if config.scored_dataset is None:
        return load_split(script_args, dataset_args, script_args.dataset_train_split), None
    from ..hub.pull import load_scored

    scored = load_scored(config.scored_dataset, split=config.scored_split, revision=config.scored_revision)
    if script_args.dataset_name is None and not dataset_args.datasets:
        return scored, None
    ds = load_split(script_args, dataset_args, script_args.dataset_train_split)
    if is_stream(ds):
        raise ValueError("The rows of a stream cannot be looked up in scored_dataset; leave dataset_streaming out.")
    return ds, scored


def load_split(script_args, dataset_args, split: str) -> Any:
    """One split of the data that the arguments name: a mixture of TRL's, a stream, a file, a folder or a Hub id."""
    from trl import get_dataset

    from ..files.reading import load_rows

    if dataset_args.datasets:
        return get_dataset(dataset_args)[split]
    if script_args.dataset_name is None:
        raise ValueError("No data to select from; give --dataset_name, or `datasets:` in the recipe.")
    settings = {"name": script_args.dataset_config, "streaming": script_args.dataset_streaming}
    return load_rows(script_args.dataset_name, split=split, **settings)


def is_stream(ds) -> bool:
    """Whether the rows come one by one, uncounted."""
    from datasets import IterableDataset

    return isinstance(ds, IterableDataset)


def make_selector(ds, gateau_args) -> GateauSelector:
    """The selector of the arguments; it refuses data that it could not rank."""
    settings = given_settings(gateau_args, SelectConfig, ModelPairConfig, MeasureConfig, MethodModelsConfig)
    rank_config = config_of(gateau_args, RankConfig)
    columns = ds.column_names or []
    missing = [name for name in needed_columns(rank_config) if name not in columns]
    ranked_before = "gateau_rank" in columns and bool(missing)
    if not ranked_before:  # the order is made as the recipe says, also of rows that were ranked in another way
        settings |= set_fields(rank_config)
    elif given_settings(gateau_args, RankConfig):
        raise ValueError(
            f"The data are ranked, but without the measured column(s) {', '.join(missing)}, so they cannot be ranked as the "
            "recipe says. Leave mode, alpha and the like out to take their order as it is."
        )
    selector = GateauSelector(**settings)
    if not is_stream(ds) and (missing := selector.missing(ds)) and not ranked_before and not selector.has_pair:
        raise ValueError(
            f"The data are not measured (no column {', '.join(missing)}), and the recipe names no pair of models. Name "
            "`long_model` under `gateau:`, with `short_window` or `short_model`, or give data that are scored already."
        )
    return selector


def find_checkpoint(training_args) -> str | None:
    """The checkpoint to resume: a path, or the last one of `output_dir` for `true` and `last`; None for a new run."""
    from transformers.trainer_utils import get_last_checkpoint

    wanted = training_args.resume_from_checkpoint
    if wanted is None or str(wanted).lower() in ("false", "none", ""):
        return None
    if str(wanted).lower() not in LAST_CHECKPOINT:
        if not os.path.isdir(wanted):
            raise ValueError(
                f"There is no checkpoint {wanted!r}; give its folder, or `true` for the last of output_dir."
            )
        return str(wanted)
    last = get_last_checkpoint(training_args.output_dir) if os.path.isdir(training_args.output_dir) else None
    if last is None:
        logger.warning("No checkpoint in %s yet: the run begins anew.", training_args.output_dir)
    return last


def _hub_name(training_args) -> str:
    """The repository that the Trainer pushes to."""
    return training_args.hub_model_id or os.path.basename(os.path.abspath(training_args.output_dir))


def _tokenizer(model_args, training_args):
    return tokenizer_to_train(model_args.model_name_or_path, model_args.model_revision, training_args)


# The plan


def plan(
    ds,
    selector: GateauSelector,
    script_args,
    training_args,
    model_args,
    mix_config: MixConfig,
    num_processes: int | None = None,
    scored: Any = None,
) -> str:
    """What would be done, a line each: rows, tokens, steps, what is measured, cached and pushed. Loads no model."""
    lines = {"model": model_args.model_name_or_path, "data": f"{script_args.dataset_name or 'a mixture'}"}
    num_kept = num_tokens = None
    if not is_stream(ds):
        lines["data"] += f", {len(ds):,} rows" + _tokens_of(ds)
        if selector.left_out:
            told = told_reasons(selector.left_out, training_args.max_length)
            lines["left out"] = f"{selector.left_out.total():,} more rows, which cannot be trained on: {told}"
        lines["measure"], is_ready = _measuring(ds, selector) if scored is None else _new_rows(ds, scored)
        ds = selector.reuse(ds, scored) if is_ready and scored is not None else ds
        if is_ready:
            selector.select(ds)
            num_kept, num_tokens = selector.record.num_kept, selector.record.num_tokens_kept
            lines["select"] = selector.record.summary()
        else:
            config = selector.select_config.resolved(selector.rank_config.method)
            num_kept = round(config.fraction * len(ds)) if config.fraction is not None else config.top_k
            chosen = ", ".join(f"{name} {value}" for name, value in set_fields(config).items())
            lines["select"] = chosen + (f", at most {num_kept:,} rows" if num_kept is not None else "")
    else:
        lines["select"] = f"of a stream, rows with a score of {selector.select_config.min_score} or more"
    if mix_config.short_data is not None:
        num_kept, lines["short data"] = _short_plan(mix_config, num_kept)
    lines["train"] = _steps(training_args, num_kept, num_tokens, num_processes or training_args.world_size)
    checkpoint = find_checkpoint(training_args)
    if checkpoint is not None:
        lines["resume"] = checkpoint
    lines["output"] = training_args.output_dir
    lines["push"] = f"model to the Hub: {_hub_name(training_args)}" if training_args.push_to_hub else "nothing"
    return "\n".join(f"{title:<11}{text}" for title, text in lines.items())


def _tokens_of(ds) -> str:
    names = TOKEN_COLUMNS if set(TOKEN_COLUMNS) <= set(ds.column_names) else ("length",)
    if not set(names) <= set(ds.column_names):
        return ", tokens not counted"
    table = ds.select_columns(list(names)).to_dict()
    return f", {sum(sum(filter(None, values)) for values in table.values()):,} tokens"


def _measuring(ds, selector: GateauSelector) -> tuple[str, bool]:
    """What is measured and what is still to be, and whether rows could be selected without a model."""
    from ..measuring.scorer import GateauScorer

    missing, columns = selector.missing(ds), ds.column_names
    values = [] if "gateau_rank" in columns else missing_values(selector.rank_config, columns)
    if values and selector.rank_config.method == "longest":
        return f"lengths of {len(ds):,} rows, with a tokenizer alone", True
    other = f"{', '.join(values)} of {len(ds):,} rows, where the store has it not" if values else ""
    if not missing or "gateau_rank" in columns:
        return other or "nothing: the columns are there", not values
    scorer = GateauScorer(**{**selector.given(ModelPairConfig), **selector.given(MeasureConfig)})
    selector.fit(ds, scorer)
    counts = scorer.count(ds)
    text = "{pending:,} rows to measure, {kept:,} in the store, {unusable:,} that cannot be measured".format(**counts)
    if scorer.measure_config.segments_for is not None and counts["pending"]:
        scorer.leave_segments()
        begun = scorer.count(ds)["kept"] - counts["kept"]
        text += f"; {begun:,} of those to measure have all but their segments, which are measured of some rows alone"
    return text + (f"; and {other}" if other else ""), counts["pending"] == 0 and not values


def _new_rows(ds, scored) -> tuple[str, bool]:
    """What the scored data have, and whether that is all."""
    from ..hub.reuse import known_places

    num_new = known_places(ds, scored).count(None)
    return f"{num_new:,} new rows to measure, {len(ds) - num_new:,} scored before", num_new == 0


def _short_plan(config: MixConfig, num_kept: int | None) -> tuple[int | None, str]:
    name = config.short_data + (f"/{config.short_data_file}" if config.short_data_file else "")
    if config.short_token_share is not None:
        return None, f"{name}, up to {config.short_token_share:.0%} of all tokens"
    num_rows = round((config.short_fraction or 1.0) * len(load_short(config)))
    return None if num_kept is None else num_kept + num_rows, f"{name}, the first {num_rows:,} rows"


def _steps(args, num_rows: int | None, num_tokens: int | None, num_processes: int) -> str:
    batch = args.per_device_train_batch_size * args.gradient_accumulation_steps * num_processes
    shape = (
        f"{num_processes} process(es) x {args.per_device_train_batch_size} rows x {args.gradient_accumulation_steps} "
        f"accumulation, max_length {args.max_length}, loss_weighting {args.loss_weighting}"
    )
    shape += ", packing" if args.packing else f", batching {args.batching}"
    if args.max_steps > 0:
        return f"{args.max_steps} steps; {shape}"
    if num_rows is None or (args.packing and num_tokens is None):
        return f"{args.num_train_epochs:g} epochs; {shape}"
    if args.packing:
        num_rows = ceil(num_tokens / args.max_length)
    steps = ceil(ceil(num_rows / batch) * args.num_train_epochs)
    return f"{'about ' if args.packing else ''}{steps:,} steps ({args.num_train_epochs:g} epochs); {shape}"


def run() -> None:
    """What `accelerate launch` starts in each process."""
    try:
        with plain_warnings():
            main(*make_parser("hf-gateau sft").parse_args_and_config())
    except KeyboardInterrupt:
        raise SystemExit(interrupted()) from None


if __name__ == "__main__":
    run()
