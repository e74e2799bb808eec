"""From a grid to jobs: what each cell trains on and how, as a recipe of `hf-gateau sft`, and a key of all that it depends on.

Cells that come to the same training (a random order of which everything is kept, and `full`) are one job. Selecting is done
here once, before any training, so that a method that cannot rank the data is told at once; a job's own selection, by the
training script, must have the same fingerprint.
"""

from __future__ import annotations

import json
import warnings
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from ..evaluation.tasks import TASKS
from ..models.fingerprints import model_fingerprint
from ..ranking.config import MixConfig, RankConfig, SelectConfig
from ..ranking.formulas import needed_columns
from ..ranking.mixture import load_short
from ..ranking.order import DegenerateRankingWarning, rank
from ..ranking.selection import SelectionRecord, select_rows, selection_record
from ..records import column_of
from ..rows.conversations import SampleError, content_hash
from ..rows.labels import tokenize_for_training
from ..settings import import_function, set_fields
from .grid import EQUAL_EPOCHS, EQUAL_STEPS, NO_LONG, Cell, Grid, Method, Setting, Source, cells_of, split_training
from .sources import digest, load_source, model_of, rows_of


# What a cell trains with where the grid says nothing: no files but the model, no reports.
TRAINING_DEFAULTS = {"save_strategy": "no", "report_to": "none", "disable_tqdm": True}
DRAWN = ("random", "car")  # methods that draw at random: anew at every seed
SEED = "{seed}"  # in a name or an option of short data: the cell's seed
COUNTED_ROWS = 100  # about so many rows become tokens, to say what all have; measured rows are counted already


@dataclass
class Job:
    """One training and what is asked of it afterwards.

    Attributes:
        key: 16 hex digits of everything that the trained model depends on.
        folder: of the job, FOLDER/cells/NAME-KEY.
        cells: the places in the grid that it fills, one or more.
        recipe: as `hf-gateau sft --recipe` takes it.
        selection: record of the rows, with their `ids` and `num_tokens`; `num_short` and `num_short_tokens` beside them.
        tasks: name -> {"options", "key"}; the key is of what the answers depend on besides the model.
        launch: `num_processes`, `accelerate_config`; empty: this process trains.
    """

    key: str
    folder: str
    cells: list[Cell]
    recipe: dict[str, Any]
    selection: dict[str, Any]
    tasks: dict[str, dict[str, Any]]
    launch: dict[str, Any]
    keep_model: bool

    @property
    def label(self) -> str:
        return self.cells[0].label


def plan_jobs(grid: Grid, folder: Path) -> list[Job]:
    """Every job of a grid, in the order of its cells.

    Raises:
        ValueError: data that a method cannot rank, an argument that does not exist, a task that nobody knows: all before any
            training.
    """
    planner = _Planner(grid, folder)
    jobs: dict[str, Job] = {}
    from tqdm import tqdm

    for cell in tqdm(cells_of(grid), desc="Selecting", unit=" cells", leave=False, delay=1.0):
        job = planner.job(cell)
        if job.key in jobs:
            jobs[job.key].cells.append(cell)
        else:
            jobs[job.key] = job
    return list(jobs.values())


class _Planner:
    """Loads and ranks what cells share, once."""

    def __init__(self, grid: Grid, folder: Path):
        self.grid, self.folder = grid, folder
        self.methods = {method.name: method for method in grid.methods}
        self.settings = {setting.name: setting for setting in grid.settings}
        self.own, self.trl = split_training(grid.training, _known_arguments())
        self.tasks = {name: _task(name, options) for name, options in grid.tasks.items()}
        self.sources = {name: rows_of(source, folder, f"data: {name}") for name, source in grid.data.items()}
        self.data = {name: load_source(self.sources[name]) for name in {x.measured for x in grid.methods}}
        self._check_columns()
        self.model = model_of(grid.model, folder)
        self.model_key = model_fingerprint(self.model, grid.training.get("model_revision"))
        self.tokenizer = _tokenizer(self.model, grid.training)
        self.shorts: dict[str, _Short | None] = {}
        for setting in grid.settings:
            for seed in grid.seeds:
                self.short(setting, seed)
        self.ranked: tuple[str, Any] = ("", None)  # the last one: cells come method by method
        self.selected: dict[str, dict[str, Any]] = {}
        self._is_checked = False

    def _check_columns(self) -> None:
        for method in self.grid.methods:
            if not method.has_fractions:
                continue
            columns = self.data[method.measured].column_names
            config = RankConfig(method=method.method, **method.ranking)
            if missing := [name for name in needed_columns(config) if name not in columns]:
                raise ValueError(
                    f"Method {method.name!r} needs the column(s) {', '.join(missing)}, which data {method.measured!r} lacks; "
                    "measure the rows with `hf-gateau score`, or leave the method out."
                )

    def short(self, setting: Setting, seed: int) -> _Short | None:
        """The short rows of a setting, read once; of each seed its own, where the grid says `{seed}` of them."""
        mixing = _with_seed(setting.mixing, seed)
        key = digest([setting.name, str(mixing)])
        if key not in self.shorts:
            self.shorts[key] = _short(setting.name, mixing, self.folder, self.tokenizer)
        return self.shorts[key]

    def job(self, cell: Cell) -> Job:
        method, setting = self.methods[cell.method], self.settings[cell.setting]
        ranking, short = _ranking(method, setting, cell.seed), self.short(setting, cell.seed)
        if method.method == NO_LONG and (short is None or short.config.short_token_share is not None):
            raise ValueError(
                f"Setting {setting.name!r} mixes in no short data, or a share of all tokens, so the method {NO_LONG!r} has "
                "nothing to train on; give `short_data` (with `short_fraction`), or leave the method out."
            )
        gateau = set_fields(ranking) | method.selecting
        gateau |= {} if cell.fraction is None else {"fraction": cell.fraction}
        selection = self._selection(method.measured, ranking, gateau) | {
            "num_short": short.num_rows if short else 0,
            "short": short and short.digest,
            "num_short_tokens": short.num_tokens if short else 0,
        }
        gateau |= set_fields(short.config) if short else {}
        data = self.sources[method.measured]
        training = self.trl | _budget(cell.budget, self.trl) | {"seed": cell.seed}
        key = digest(
            {
                "rows": [selection["fingerprint"], selection["short"]],
                "model": self.model_key,
                "training": [self.own, training, self.grid.launch],
            }
        )
        folder = _job_folder(self.folder, key, cell)
        recipe = {"model_name_or_path": self.model, "dataset_name": data.name}
        recipe |= {"dataset_train_split": data.split} if data.split else {}
        recipe |= {"dataset_config": data.config} if data.config else {}
        recipe |= {"gateau": gateau | self.own, **TRAINING_DEFAULTS, **training, "output_dir": str(folder / "model")}
        if not self._is_checked:
            _check_recipe(recipe)
            self._is_checked = True
        return Job(key, str(folder), [cell], recipe, selection, self.tasks, self.grid.launch, self.grid.keep_models)

    def _selection(self, measured: str, ranking: RankConfig, gateau: dict[str, Any]) -> dict[str, Any]:
        """The record of a selection, made once for all settings and budgets that come to the same one."""
        key = digest([measured, gateau])
        if key not in self.selected:
            ds = self._ranked(measured, ranking)
            given = {x.name: gateau[x.name] for x in fields(SelectConfig) if x.name in gateau}
            kept = select_rows(ds, SelectConfig(**given), may_be_empty=True)
            record: SelectionRecord = selection_record(kept)
            column = next((name for name in ("id", "gateau_key") if name in kept.column_names), None)
            ids = column_of(kept, column) if column and len(kept) else []
            counted = record.num_tokens_kept
            num_tokens = _num_tokens(kept, self.tokenizer) if counted is None else counted
            self.selected[key] = asdict(record) | {"ids": ids, "num_tokens": num_tokens}
        return self.selected[key]

    def _ranked(self, measured: str, ranking: RankConfig):
        key = digest([measured, vars(ranking)])
        if self.ranked[0] != key:
            with warnings.catch_warnings():  # they are in the record, and in the summary
                warnings.simplefilter("ignore", DegenerateRankingWarning)
                self.ranked = key, rank(self.data[measured], **ranking.arguments())
        return self.ranked[1]


def _ranking(method: Method, setting: Setting, seed: int) -> RankConfig:
    """How the rows of a cell are put in order; what the method says wins over what the setting says."""
    if not method.has_fractions:
        return RankConfig(method=method.method)
    given = {"method": method.method, **setting.ranking, **method.ranking}
    if method.method in DRAWN:
        given = {"rank_seed": seed} | given
    return RankConfig(**given)


def _budget(budget: str, training: dict[str, Any]) -> dict[str, Any]:
    if budget == EQUAL_EPOCHS:
        return {"max_steps": -1}
    assert budget == EQUAL_STEPS
    return {"max_steps": training["max_steps"]}


def _job_folder(folder: Path, key: str, cell: Cell) -> Path:
    """The folder of a key, whatever the cell was called when it was made."""
    there = sorted((folder / "cells").glob(f"*-{key}"))
    if there:
        return there[0]
    share = "" if cell.fraction is None else f"-{100 * cell.fraction:g}"
    name = f"{cell.method}{share}-{cell.setting}-s{cell.seed}-{cell.budget}"
    name = "".join(x if x.isalnum() and x.isascii() or x in "-." else "_" for x in name.replace(" ", "_"))
    return folder / "cells" / f"{name}-{key}"


# What is checked before anything runs


def _known_arguments() -> set[str]:
    from trl import DatasetMixtureConfig, ModelConfig, ScriptArguments

    from ..training.arguments import GateauSFTConfig

    return {
        x.name for kind in (GateauSFTConfig, ModelConfig, ScriptArguments, DatasetMixtureConfig) for x in fields(kind)
    }


def _check_recipe(recipe: dict[str, Any]) -> None:
    """Let the training script's own parser read a recipe, which checks the values."""
    import tempfile

    import yaml

    from ..scripts.arguments import make_parser

    def refuse(message: str):
        raise ValueError(f"training: {message}")

    parser = make_parser("hf-gateau experiment")
    parser.refuse = refuse
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "recipe.yaml"
        path.write_text(yaml.safe_dump(recipe), encoding="utf-8")
        parser.parse_args_and_config(["--recipe", str(path)], fail_with_unknown_args=True)


def _task(name: str, options: dict[str, Any]) -> dict[str, Any]:
    options = dict(options)
    evaluator = options.pop("evaluator", None)
    if evaluator is not None:
        import_function(str(evaluator), f"task {name!r}: {str(evaluator)!r}")
    elif name not in TASKS:
        raise ValueError(
            f"There is no task {name!r}; give one of `hf-gateau eval` ({', '.join(TASKS)}), or "
            "`evaluator: package.module:function`."
        )
    else:
        _check_options(name, options)
    return {"evaluator": evaluator, "options": options, "key": digest([evaluator, options])}


def _check_options(name: str, options: dict[str, Any]) -> None:
    """Let the parser of `hf-gateau eval` read a task's options, which checks the values.

    Raises:
        ValueError: it has no such option, or a value is wrong.
    """
    from ..evaluation.command import TAKES
    from ..shell.parser import ShellParser

    def refuse(message: str):
        raise ValueError(f"task {name!r}: {message}")

    parser = ShellParser([kind for kind in TAKES if not isinstance(kind, str)])
    parser.refuse = refuse
    arguments = ["--tasks", name, "--output", ".", *task_flags(options)]
    try:
        parser.parse_args_and_config(arguments)
    except (ValueError, TypeError) as error:
        refuse(str(error).removeprefix(f"task {name!r}: "))


def task_flags(options: dict[str, Any]) -> list[str]:
    """A task's options as `hf-gateau eval` takes them."""
    flags = []
    for name, value in options.items():
        values = value if isinstance(value, list) else [] if value is None else [value]
        texts = [json.dumps(x) if isinstance(x, dict) else str(x) for x in values]
        flags += [f"--{name}", *texts] if texts else []
    return flags


def _tokenizer(model: str, training: dict[str, Any]):
    from transformers import AutoTokenizer

    options = {
        "revision": training.get("model_revision"),
        "trust_remote_code": training.get("trust_remote_code", False),
    }
    return AutoTokenizer.from_pretrained(model, **{x: y for x, y in options.items() if y is not None})


# Short data


@dataclass(frozen=True)
class _Short:
    """The short rows of a setting.

    Attributes:
        num_rows: of the part that is taken; with a share of tokens, of all.
        digest: of what they say, and of the share.
    """

    config: MixConfig
    num_rows: int
    digest: str
    num_tokens: int


def _with_seed(value: Any, seed: int) -> Any:
    """A setting's short data with the seed in place of `{seed}`, as a number where nothing stands around it."""
    if isinstance(value, Source):
        changed = {x.name: _with_seed(getattr(value, x.name), seed) for x in fields(Source)}
        return Source(**changed)
    if isinstance(value, dict):
        return {name: _with_seed(x, seed) for name, x in value.items()}
    if isinstance(value, str):
        return seed if value == SEED else value.replace(SEED, str(seed))
    return value


def _short(name: str, mixing: dict[str, Any], folder: Path, tokenizer) -> _Short | None:
    if mixing.get("short_data") is None:
        return None
    given = mixing["short_data"]
    source = rows_of(given if isinstance(given, Source) else Source(given), folder, f"setting {name!r}: short_data")
    mixing |= {"short_split": source.split} if source.split else {}
    mixing |= {"short_name": source.config} if source.config else {}
    mixing["short_data"] = source.name
    config = MixConfig(**mixing)
    rows = load_short(config)
    if config.short_token_share is None:
        rows = rows.select(range(round((config.short_fraction or 1.0) * len(rows))))
    if not len(rows):
        raise ValueError(f"Setting {name!r} takes no row of its short data; raise short_fraction.")
    hashes = [content_hash(row) for row in rows]
    return _Short(config, len(rows), digest([hashes, config.short_token_share], 12), _num_tokens(rows, tokenizer))


def _num_tokens(ds, tokenizer) -> int:
    """Tokens of all rows, estimated from some, evenly spread; rows that cannot be trained on have none."""
    places = range(0, len(ds), max(1, len(ds) // COUNTED_ROWS))
    count = 0
    for row in ds.select(places):
        try:
            count += len(tokenize_for_training(row, tokenizer)["input_ids"])
        except SampleError:
            continue
    return round(count * len(ds) / len(places)) if len(ds) else 0
