"""`GateauSelector`: select before training, remember it in every checkpoint, refuse to go on with another selection."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any

from transformers import TrainerCallback
from transformers.trainer_callback import ExportableState

from ..hub.readme import BEGIN
from ..hub.reuse import reuse_scores
from ..measuring.config import MeasureConfig
from ..measuring.lengths import CAS, HMP
from ..measuring.responses import ResponseScorer
from ..models.config import ModelPairConfig
from ..ranking.config import MethodModelsConfig, RankConfig, RunConfig, SelectConfig
from ..ranking.decisions import read_decisions
from ..ranking.evidence import FAR, SHORT
from ..ranking.formulas import PPL_PAIR, SEGMENT_COLUMNS, check_measured, needed_columns
from ..ranking.mixture import mix
from ..ranking.order import rank
from ..ranking.screening import check_screening, screen_for
from ..ranking.selection import SelectionRecord, select_rows, selection_record
from ..ranking.supply import measure_missing, missing_values
from ..redaction import clear_secrets, redact
from ..settings import call_text, did_you_mean
from ..store.folder import known_measuring
from .layout import RowLayout, lays_out, told_reasons
from .model_card import write_model_card


logger = logging.getLogger(__name__)

SELECTION_FILE = "gateau_selection.json"
NEEDS = {HMP: {PPL_PAIR[0], SHORT}, CAS: {SEGMENT_COLUMNS[0], FAR}}  # of rows -> columns of which it is made of one
NOT_TRAINABLE = "cannot be trained on"  # how a reason on record begins
CONFIGS = (SelectConfig, RankConfig, ModelPairConfig, MeasureConfig, MethodModelsConfig)
# A Trainer may rebuild its callbacks from a checkpoint's state; by output folder, what the rebuilt one replaced had chosen.
_SELECTED: dict[str, SelectionRecord] = {}


class GateauSelector(TrainerCallback, ExportableState):
    """Selects the rows to train on, and follows the training on them.

    `selector.select(ds)` is the way: it measures what is not measured (where a pair of models is named), ranks what is
    not ranked, and keeps the best. As a callback it writes `gateau_selection.json` into the output folder and beside every
    checkpoint, and refuses to resume a checkpoint of another selection.

    Args:
        settings: fields of `SelectConfig` (`fraction`, `top_k`, `min_score`, `max_tokens`, ...; `decisions`, a file of rows
            that a person keeps or drops), and for data that are not ranked or measured yet those of `RankConfig` (`mode`,
            `alpha`, ...), `ModelPairConfig` (`long_model`, `short_window`, ...), `MeasureConfig` and `MethodModelsConfig`
            (`reward_model`, ...). Rows that are ranked already are ranked again only if a field of `RankConfig` is given.

    Example:

        >>> selector = GateauSelector(fraction=0.1)
        >>> trainer = SFTTrainer(model, args=args, train_dataset=selector.select(ds), callbacks=[selector])

        Without the rows that this training would drop, which are then not measured either:

        >>> rows = selector.select(selector.trainable(ds, args, tokenizer))

    Raises:
        TypeError: a setting that does not exist.
        ValueError: a setting out of range.
    """

    def __init__(self, **settings):
        known = {field.name for config in CONFIGS for field in fields(config)}
        for name in settings.keys() - known:
            raise TypeError(f"GateauSelector has no setting {name!r}" + did_you_mean(name, known, "."))
        self.settings = settings
        self.select_config, self.rank_config = self._config(SelectConfig), self._config(RankConfig)
        self.models = self._config(MethodModelsConfig)
        if self.has_pair:
            _, measure = self._config(ModelPairConfig), self._config(MeasureConfig)  # wrong settings are told now
            check_measured(self.rank_config, measure.cam, measure.token_nll)
            check_screening(self.rank_config, measure, self.select_config)
        self.record: SelectionRecord | None = None
        self.trained_on: str | None = None  # fingerprint in the checkpoint that this was rebuilt from
        self._trainer, self._has_warned = None, False
        self.left_out: Counter = Counter()  # reason -> rows, since `trainable` until `select`
        self.num_left_out = 0

    def __repr__(self) -> str:
        return call_text(type(self).__name__, self.settings)

    def given(self, config: type) -> dict[str, Any]:
        """The settings that are fields of one of the dataclasses."""
        return {field.name: self.settings[field.name] for field in fields(config) if field.name in self.settings}

    def _config(self, config: type):
        return config(**self.given(config))

    @property
    def has_pair(self) -> bool:
        """Whether models are named to measure with."""
        return any(self.settings.get(name) is not None for name in ("long_model", "short_model", "short_window"))

    @property
    def fingerprint(self) -> str | None:
        """Of the selection and what was mixed in, 16 hex digits; None before `select`."""
        if self.record is None:
            return None
        return hashlib.sha256(json.dumps([self.record.fingerprint, self.record.short]).encode()).hexdigest()[:16]

    # Before training

    def trainable(self, ds: Any, args: Any, tokenizer: Any) -> Any:
        """The rows that a trainer can learn from; `select` then chooses among them, and has the others on record.

        Costs no model: rows become tokens as `GateauSFTTrainer` makes them. To be called before rows are measured, which
        those that training would drop need not be. A fraction is then of the rows that are left.

        Args:
            ds (`Dataset`): rows to select from; a stream comes back as it is, and loses such rows when it is trained on.
            args (`GateauSFTConfig`): the trainer's.
            tokenizer: the trainer's; see `tokenizer_to_train`.

        Raises:
            ValueError: no row can be trained on.
        """
        import datasets

        self.left_out = Counter()
        if not isinstance(ds, datasets.Dataset) or not (args.response_only_loss and lays_out(ds.column_names)):
            return ds
        layout = RowLayout.of(args, tokenizer, args.packing, self.settings.get("find_context"))
        with args.main_process_first(desc="looking what can be trained on"):
            reasons = layout.reasons(ds)
        lost = Counter(filter(None, reasons))
        told = told_reasons(lost, layout.max_length)
        if lost.total() == len(ds):
            raise ValueError(f"None of the {len(ds):,} rows can be trained on: {told}.")
        if lost and args.process_index == 0:
            logger.warning("%d of %d rows cannot be trained on, and are left out: %s", lost.total(), len(ds), told)
        self.left_out = lost
        return ds.select([i for i, reason in enumerate(reasons) if not reason]) if lost else ds

    def select(self, ds: Any) -> Any:
        """Measure (with a pair), rank and select; returns the kept rows, in the order they came in.

        Every process of a distributed run calls this and gets the same rows. Rows that are not measured are measured by
        all processes together, each its share into the store; then the main process puts the columns together first.

        Args:
            ds (`Dataset` or, with `min_score`, `IterableDataset`): scored rows, or rows to score.

        Raises:
            ValueError: rows that are not measured where no pair is named, or what `select` and `rank` raise.
        """
        import datasets

        if isinstance(ds, (datasets.DatasetDict, datasets.IterableDatasetDict)):
            raise ValueError(f"Give one split, such as ds['train'], not a dict of the splits {', '.join(ds)}.")
        if self.select_config.decisions is not None:
            read_decisions(self.select_config.decisions)  # what is wrong in it is told before anything is measured
        description = None
        if isinstance(ds, datasets.Dataset):
            ds, description = self._ranked(ds)
        left_out = Counter({f"{NOT_TRAINABLE}: {reason}": count for reason, count in self.left_out.items()})
        self.num_left_out, self.left_out = left_out.total(), Counter()
        selected = select_rows(ds, self.select_config, may_be_empty=True, left_out=left_out)
        self.record = selection_record(selected)
        self.record.measuring = description or self.record.measuring or known_measuring(self.record.ranking)
        logger.info("GATEAU: %s", self.record.summary())
        return selected

    def _ranked(self, ds) -> tuple[Any, dict | None]:
        if "gateau_rank" in ds.column_names and not self.given(RankConfig):
            return ds, None
        description = None
        if missing := self.missing(ds):
            if not self.has_pair:
                raise ValueError(
                    f"The rows are not measured (no column {', '.join(missing)}), and no pair of models is named. Name "
                    "one, e.g. GateauSelector(long_model=..., short_window=4096), or give data scored before."
                )
            ds, description = self._measured(ds)
        if missing_values(self.rank_config, ds.column_names):
            with _whole_models():
                ds = measure_missing(ds, self.rank_config, *self._other_models())
        return rank(ds, **self.rank_config.arguments()), description

    def missing(self, ds: Any) -> list[str]:
        """Columns that the method needs, that rows do not have, and that the pair of models measures."""
        columns = ds.column_names or []
        values = missing_values(self.rank_config, columns)
        return [name for name in needed_columns(self.rank_config) if name not in (*columns, *values)]

    def _other_models(self) -> tuple:
        """What measures other columns than the pair's; the pair's long model measures responses too."""
        long = ResponseScorer.settings_of(self._scorer()) if self.has_pair else None
        return self.models, self._config(RunConfig), long

    def reuse(self, ds: Any, scored: Any) -> Any:
        """Rows with the measurements that `scored` has of them; new rows are measured with the selector's pair.

        Raises:
            ValueError: see `reuse_scores`.
        """
        scorer = self._scorer() if self.has_pair else None
        return reuse_scores(ds, scored, scorer, measure=lambda rows: self._measured(rows)[0])

    def _scorer(self):
        from ..measuring.scorer import GateauScorer

        return GateauScorer(**{**self.given(ModelPairConfig), **self.given(MeasureConfig)})

    def _measured(self, ds) -> tuple[Any, dict]:
        from ..measuring.together import measure_together

        scorer = self._scorer()
        with _whole_models():
            part = self.fit(ds, scorer) if len(ds) else None
            if scorer.measure_config.segments_for is not None:
                screen_for(ds, scorer, self.rank_config, part)
            ds = measure_together(ds, scorer, part=part)
        return ds, scorer.describe()

    def fit(self, ds: Any, scorer: Any) -> Any:
        """Let the rows choose what the scorer's settings leave open, as `hf-gateau score` does, so that both know a measurement by
        the same key; returns what `measure_together` takes as `part`.

        Raises:
            ValueError: the settings leave no row with what the method needs.
        """
        from ..measuring.together import fit_to_rows

        columns = needed_columns(self.rank_config)
        needs = [what for what, names in NEEDS.items() if names.intersection(columns)]
        return fit_to_rows(ds, scorer, needs)[0]

    def mix(self, selected: Any, short: Any, **settings) -> Any:
        """Short instruction data beside the selected rows; `settings` are those of `mix`, which also goes on record."""
        if self.record is None:
            raise ValueError("Select first: selector.mix(selector.select(ds), short).")
        mixed, self.record.short = mix(selected, short, **settings)
        return mixed

    def attach(self, trainer) -> GateauSelector:
        """Follow a trainer that is built already, before `train()`; returns the selector itself.

        Where nothing is selected yet, the trainer's rows are. What was kept then goes to the trainer's trackers too, and into
        the model card of every push, which a callback alone cannot reach.

        Raises:
            ValueError: the trainer packs its rows, which are merged by now, or does not have scored ones.
        """
        if self.record is None:
            self._select_of(trainer)
        if self not in trainer.callback_handler.callbacks:
            trainer.add_callback(self)
        self._trainer = trainer
        trainer.create_model_card = self._create_model_card
        self.on_init_end(trainer.args, trainer.state, trainer.control)
        return self

    def _select_of(self, trainer) -> None:
        if getattr(trainer.args, "packing", False):
            raise ValueError(
                "The trainer has packed its rows together, so none can be chosen any more. Select before: "
                "SFTTrainer(..., train_dataset=selector.select(ds), callbacks=[selector])."
            )
        columns = trainer.train_dataset.column_names or []
        needed = needed_columns(self.rank_config)
        if "gateau_rank" not in columns and any(name not in columns for name in needed):
            raise ValueError(
                "The trainer's rows have no scores, and are tokens by now, so they cannot be measured. Select before: "
                "SFTTrainer(..., train_dataset=selector.select(ds), callbacks=[selector])."
            )
        trainer.train_dataset = self.select(trainer.train_dataset)

    def _create_model_card(self, model_name=None, dataset_name=None, tags=None) -> None:
        """In place of an attached trainer's own method of that name."""
        if self._trainer.is_world_process_zero():
            write_model_card(self._trainer, self.record, model_name, dataset_name, tags)

    def check_checkpoint(self, checkpoint: str | os.PathLike) -> None:
        """Refuse to resume a checkpoint that was trained on another selection; costs no model.

        Raises:
            ValueError: the checkpoint's selection is another.
        """
        state = Path(checkpoint) / "trainer_state.json"
        if state.is_file():
            callbacks = json.loads(state.read_text(encoding="utf-8")).get("stateful_callbacks", {})
            self._check(_trained_on(callbacks), str(checkpoint))

    def _check(self, trained_on: str | None, where: str) -> None:
        if trained_on is not None and trained_on != self.fingerprint:
            raise ValueError(
                f"The checkpoint ({where}) was trained on another selection of rows ({trained_on}) than this run's "
                f"({self.fingerprint}: {self.record.summary()}). Select as before, or begin anew in another output_dir."
            )

    # While training

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps: the settings, and the fingerprint of what it was trained on."""
        settings = {name: value if _is_json(value) else str(value) for name, value in self.settings.items()}
        return {"args": settings, "attributes": {"trained_on": self.fingerprint}}

    def metrics(self) -> dict[str, float]:
        """What was kept, for the Trainer's log."""
        record = self.record
        if record is None or record.num_kept is None:
            return {}
        found = {"gateau/num_rows": record.num_rows, "gateau/num_kept": record.num_kept}
        if record.scores:
            found["gateau/lowest_score_kept"] = record.scores["kept"]["0"]
        if record.num_tokens_kept is not None:
            found["gateau/num_tokens_kept"] = record.num_tokens_kept
        if self.num_left_out:
            found["gateau/num_not_trainable"] = self.num_left_out
        return found | ({"gateau/num_short": record.short["num_kept"]} if record.short else {})

    def on_init_end(self, args, state, control, **kwargs) -> None:
        if self.record is not None:
            _SELECTED[os.path.abspath(args.output_dir)] = self.record

    def on_train_begin(self, args, state, control, **kwargs) -> None:
        rebuilt_from = self.trained_on
        if self.record is None:
            self.record = _SELECTED.get(os.path.abspath(args.output_dir)) if rebuilt_from else None
        if self.record is None:
            raise ValueError(
                "GateauSelector has selected nothing, so training would be on every row. Give the trainer "
                "train_dataset=selector.select(ds), or call selector.attach(trainer) before train()."
            )
        if self.record.num_kept == 0 and self.record.short is None:
            raise ValueError(
                "GateauSelector has kept no long row (method='no_long'), and no short data are mixed in: there is nothing to "
                "train on. Give train_dataset=selector.mix(selector.select(ds), short)[...]."
            )
        if state.global_step:
            self._check(rebuilt_from or _trained_on(state.stateful_callbacks), f"step {state.global_step}")
        self._clear_secrets(kwargs.get("model"), kwargs.get("processing_class"))
        if not state.global_step and self._trainer is not None:
            self._trainer.log(self.metrics())
        if state.is_world_process_zero:
            logger.info("GATEAU: %s; %d steps", self.record.summary(), state.max_steps)
            if not state.global_step and self._trainer is None:
                state.log_history.append({"step": 0, **self.metrics()})
            self._write(args.output_dir)

    def _clear_secrets(self, model, tokenizer) -> None:
        """Nothing that a checkpoint's configuration says may be a secret: it is pushed."""
        settings = [getattr(model, "config", None), getattr(model, "generation_config", None), tokenizer]
        if cleared := clear_secrets(*settings):
            logger.warning("The model's configuration held a secret in %s; it is left out.", ", ".join(cleared))

    def on_save(self, args, state, control, **kwargs) -> None:
        if state.is_world_process_zero:
            self._write(os.path.join(args.output_dir, f"checkpoint-{state.global_step}"))

    def on_push_begin(self, args, state, control, **kwargs) -> None:
        readme = Path(args.output_dir, "README.md")
        if state.is_world_process_zero and self._trainer is None and not self._has_warned and readme.is_file():
            self._has_warned = BEGIN not in readme.read_text("utf-8", "replace")
            if self._has_warned:
                logger.warning(
                    "The model card of this push does not say how the rows were selected: call selector.attach(trainer) before "
                    "train(), or use GateauSFTTrainer."
                )

    def _write(self, folder: str) -> None:
        Path(folder).mkdir(parents=True, exist_ok=True)
        clean = SelectionRecord(**redact(vars(self.record)))
        Path(folder, SELECTION_FILE).write_text(clean.to_json(), encoding="utf-8")


@contextmanager
def _whole_models() -> Iterator[None]:
    """Load models whole, in every process, also where training is to shard them (ZeRO-3, FSDP)."""
    from transformers.integrations import deepspeed

    reference = deepspeed._hf_deepspeed_config_weak_ref
    zero3 = reference() if reference is not None else None
    fsdp = os.environ.pop("ACCELERATE_USE_FSDP", None)
    deepspeed.unset_hf_deepspeed_config()
    try:
        yield
    finally:
        if zero3 is not None:
            deepspeed.set_hf_deepspeed_config(zero3)
        if fsdp is not None:
            os.environ["ACCELERATE_USE_FSDP"] = fsdp


def _trained_on(stateful_callbacks: dict[str, Any]) -> str | None:
    """The fingerprint that a selector left in a Trainer's state."""
    found = stateful_callbacks.get(GateauSelector.__name__)
    found = found[0] if isinstance(found, list) else found
    return (found or {}).get("attributes", {}).get("trained_on")


def _is_json(value: Any) -> bool:
    return value is None or isinstance(value, (bool, int, float, str, list, dict))
