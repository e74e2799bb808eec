"""What a grid's YAML file says, checked before anything is loaded.

name: tiny                       # of the experiment
data:                            # measured rows, each a file, a folder, a Hub id, or {make: module:function, options: {...}}
  homologous: measured.parquet
  no_rope: measured-without-rope.parquet
model: FOLDER_OR_HUB_ID          # that every cell begins from; or {make: ...}
methods:                         # name: how rows are put in order, as in `hf-gateau rank`
  - {name: GATEAU, method: gateau}
  - {name: without RoPE extension, method: gateau, measured: no_rope}
  - {name: random, method: random}
  - {name: full, method: full}       # all long rows: no fraction
  - {name: no long data, method: no_long}
  - {name: GATEAU at alpha 0.5, method: gateau, alpha: 0.5, fractions: [0.3]}   # fewer fractions than the others
fractions: [0.1, 0.3]
settings:                        # short data, and what they change in ranking
  real_world: {short_data: short.jsonl, alpha: 0.8}
  limited: {short_data: short.jsonl, short_fraction: 0.1, alpha: 0.7}
seeds: [1, 2, 3]
training: {budget: [equal_epochs, equal_steps], num_train_epochs: 2, max_steps: 50, ...}   # as in recipes
evaluation:
  keep_models: false
  tasks:
    longbench: {...}                              # of `hf-gateau eval`
    planted: {evaluator: module:function, ...}    # function(model_folder, work) -> TaskResult; the others: work.options
tables: [...]                    # see tables.py; left out: every task and setting
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from ..ranking.config import MixConfig, RankConfig, SelectConfig
from ..settings import a_type, did_you_mean
from ..shell.values import read_yaml
from ..training.config import TrainConfig


FULL, NO_LONG = "full", "no_long"  # methods that take all long rows, or none: fractions mean nothing to them
EQUAL_EPOCHS, EQUAL_STEPS = "equal_epochs", "equal_steps"
BUDGETS = (EQUAL_EPOCHS, EQUAL_STEPS)
KEYS = ("name", "description", "data", "model", "methods", "fractions", "settings", "seeds", "training", "evaluation")
LAUNCH_KEYS = ("num_processes", "accelerate_config")


@dataclass(frozen=True)
class Source:
    """Where rows, or a model, come from: a file, a folder or a Hub id (`name`), or a function that makes them (`make`)."""

    name: str | None = None
    make: str | None = None
    options: dict[str, Any] = field(default_factory=dict)
    split: str | None = None
    config: str | None = None


@dataclass(frozen=True)
class Method:
    """One way to choose the long rows.

    Attributes:
        name: as tables show it.
        method: of `RankConfig`, or `full` or `no_long`.
        measured: which measurement of the rows it reads.
        ranking, selecting: fields of `RankConfig` and `SelectConfig` that the entry gives.
        fractions: where the method has its own; None: the grid's.
    """

    name: str
    method: str
    measured: str
    ranking: dict[str, Any] = field(default_factory=dict)
    selecting: dict[str, Any] = field(default_factory=dict)
    fractions: tuple[float, ...] | None = None

    @property
    def has_fractions(self) -> bool:
        return self.method not in (FULL, NO_LONG)


@dataclass(frozen=True)
class Setting:
    """Short data beside the selected rows, and fields of `RankConfig` that go with it (the paper's alpha)."""

    name: str
    mixing: dict[str, Any] = field(default_factory=dict)
    ranking: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Grid:
    """An experiment; see the top of this file.

    Attributes:
        training: TRL's and the plugin's arguments, those of every cell.
        launch: `num_processes`, `accelerate_config`; empty: each cell trains in one process.
        tasks: name -> options; `evaluator` among them names a function.
        tables: as in the file; None where it has none.
    """

    name: str
    data: dict[str, Source]
    model: Source
    methods: tuple[Method, ...]
    fractions: tuple[float, ...]
    settings: tuple[Setting, ...]
    seeds: tuple[int, ...]
    budgets: tuple[str, ...]
    training: dict[str, Any]
    launch: dict[str, Any]
    tasks: dict[str, dict[str, Any]]
    keep_models: bool = False
    tables: list[dict[str, Any]] | None = None
    description: str = ""

    def fractions_of(self, method: Method) -> tuple[float | None, ...]:
        """The shares of the long rows that are taken by a method; `(None,)` where a share means nothing to it."""
        return (method.fractions or self.fractions) if method.has_fractions else (None,)


@dataclass(frozen=True)
class Cell:
    """One place in the grid; `fraction` is None where it means nothing."""

    method: str
    fraction: float | None
    setting: str
    seed: int
    budget: str

    @property
    def label(self) -> str:
        share = "" if self.fraction is None else f" {self.fraction:.4g}"
        return f"{self.method}{share}, {self.setting}, seed {self.seed}, {self.budget}"


def cells_of(grid: Grid) -> list[Cell]:
    """Every place in the grid; seeds outermost, so that a run that is stopped has whole tables of few seeds."""
    return [
        Cell(method.name, fraction, setting.name, seed, budget)
        for seed in grid.seeds
        for setting in grid.settings
        for budget in grid.budgets
        for method in grid.methods
        for fraction in grid.fractions_of(method)
    ]


def load_grid(path: str | os.PathLike) -> Grid:
    """Read a grid's file.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no grid; the message says which key.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise FileNotFoundError(f"There is no grid {str(path)!r}; give a YAML file.")
    return read_grid(read_yaml(path), default_name=path.stem)


def read_grid(found: Any, default_name: str = "experiment") -> Grid:
    """A grid from what its file says; see `load_grid`."""
    _check_keys(found, (*KEYS, "tables"), "the grid", needed=("data", "model", "methods", "evaluation"))
    data = _sources(found["data"])
    training, launch = dict(_mapping(found.get("training") or {}, "training")), {}
    for name in LAUNCH_KEYS:
        if name in training:
            launch[name] = training.pop(name)
    processes = launch.get("num_processes", 1)
    if not isinstance(processes, int) or processes < 1:
        raise ValueError(f"training: num_processes={processes!r} is no number of processes; give 1 or more.")
    evaluation = found["evaluation"]
    _check_keys(evaluation, ("keep_models", "tasks"), "evaluation", needed=("tasks",))
    tasks = {
        file_name(name, "task"): dict(_mapping(options or {}, f"task {name!r}"))
        for name, options in _mapping(evaluation["tasks"], "tasks").items()
    }
    if not tasks:
        raise ValueError("`evaluation: tasks:` names no task; name one or more, each with its options.")
    return Grid(
        name=str(found.get("name") or default_name),
        data=data,
        model=_source(found["model"], "model"),
        methods=_methods(found["methods"], data),
        fractions=_fractions(found.get("fractions", [0.1])),
        settings=_settings(found.get("settings") or {"no short data": {}}),
        seeds=_seeds(found.get("seeds", [0])),
        budgets=_budgets(training),
        training=training,
        launch=launch,
        tasks=tasks,
        keep_models=_yes_or_no(evaluation.get("keep_models", False), "keep_models"),
        tables=found.get("tables"),
        description=str(found.get("description") or ""),
    )


def file_name(name: Any, what: str) -> str:
    """A name that files are called by.

    Raises:
        ValueError: it has other characters than letters, digits, spaces and `_-.`, or begins with a dot.
    """
    if not re.fullmatch(r"[\w-][\w .-]*", str(name)):
        raise ValueError(f"The {what} {name!r} gives files their names; use letters, digits, spaces and `_-.` alone.")
    return str(name)


def _yes_or_no(found: Any, where: str) -> bool:
    if not isinstance(found, bool):
        raise ValueError(f"{where}={found!r} is neither true nor false; give one of these.")
    return found


def _check_keys(found: Any, known: tuple[str, ...], where: str, needed: tuple[str, ...] = ()) -> None:
    for name in _mapping(found, where):
        if name not in known:
            raise ValueError(
                f"{where} has no key {name!r}" + did_you_mean(name, known, f"; it takes {', '.join(known)}.")
            )
    if missing := [name for name in needed if not found.get(name)]:
        raise ValueError(f"{where} says nothing of {', '.join(missing)}; give it.")


def _mapping(found: Any, where: str) -> dict:
    if not isinstance(found, dict):
        what = "empty" if found is None else a_type(found)
        raise ValueError(f"{where} is {what}; give `name: value` lines.")
    return found


def _sources(found: Any) -> dict[str, Source]:
    """One measurement, or several by name."""
    if isinstance(found, str) or {"name", "make"} & set(_mapping(found, "data")):
        return {"measured": _source(found, "data")}
    return {str(name): _source(source, f"data: {name}") for name, source in found.items()}


def _source(found: Any, where: str) -> Source:
    if isinstance(found, str):
        return Source(name=found)
    _check_keys(found, tuple(x.name for x in fields(Source)), where)
    source = Source(**found)
    if (source.name is None) == (source.make is None):
        raise ValueError(f"{where} needs either `name`, a file or Hub id, or `make`, a module:function; give one.")
    if source.make is not None and source.make.count(":") != 1:
        raise ValueError(f"{where}: make={source.make!r} is no function; name it as 'package.module:function'.")
    if source.make is None and source.options:
        raise ValueError(f"{where}: options belong to `make`; leave them out.")
    return source


def _methods(found: Any, data: dict[str, Source]) -> tuple[Method, ...]:
    if not isinstance(found, list):
        raise ValueError("`methods:` is a list, one `- {name: ..., method: ...}` a line.")
    methods = tuple(_method(entry, data) for entry in found)
    names = [method.name for method in methods]
    if doubled := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"Two methods are called {', '.join(map(repr, doubled))}; give each its own name.")
    return methods


def _method(entry: Any, data: dict[str, Source]) -> Method:
    ranking, selecting = _names(RankConfig), _names(SelectConfig)
    _check_keys(entry, ("name", "measured", "fractions", *ranking, *selecting), "a method", needed=("name",))
    name, kind = str(entry["name"]), str(entry.get("method", RankConfig.method))
    measured = str(entry.get("measured", next(iter(data))))
    if measured not in data:
        raise ValueError(f"Method {name!r} reads measured={measured!r}; `data:` has {', '.join(data)}.")
    limits = [x for x in ("fraction", "top_k", "min_score", "max_tokens") if x in entry]
    if limits:
        raise ValueError(
            f"Method {name!r} gives {limits[0]}; `fractions:` says how much is kept, the grid's or the method's own."
        )
    given = {x: entry[x] for x in ranking if x in entry and x != "method"}
    if kind in (FULL, NO_LONG):
        return Method(name, kind, measured, selecting={x: entry[x] for x in ("decisions",) if x in entry})
    try:
        RankConfig(method=kind, **given)
        SelectConfig(fraction=0.5, **{x: entry[x] for x in selecting if x in entry})
    except ValueError as error:
        raise ValueError(f"Method {name!r}: {error}") from error
    fractions = _fractions(entry["fractions"]) if "fractions" in entry else None
    return Method(name, kind, measured, given, {x: entry[x] for x in selecting if x in entry}, fractions)


def _names(config: type) -> tuple[str, ...]:
    return tuple(x.name for x in fields(config))


def _fractions(found: Any) -> tuple[float, ...]:
    found = found if isinstance(found, list) else [found]
    numbers = all(isinstance(x, int | float) and not isinstance(x, bool) for x in found)
    if not found or not numbers:
        raise ValueError(f"fractions={found!r} are no shares of the long rows; give e.g. [0.1, 0.3].")
    for fraction in found:
        SelectConfig(fraction=fraction)
    return tuple(dict.fromkeys(float(x) for x in found))


def _settings(found: Any) -> tuple[Setting, ...]:
    settings = []
    for name, entry in _mapping(found, "settings").items():
        entry = entry or {}
        _check_keys(entry, (*_names(MixConfig), *_names(RankConfig)), f"setting {name!r}")
        mixing = {x: entry[x] for x in _names(MixConfig) if x in entry}
        ranking = {x: entry[x] for x in _names(RankConfig) if x in entry}
        source = mixing.get("short_data")
        try:
            MixConfig(**mixing | ({"short_data": "made"} if isinstance(source, dict) else {}))
            RankConfig(**ranking)
        except ValueError as error:
            raise ValueError(f"Setting {name!r}: {error}") from error
        if isinstance(source, dict):
            mixing["short_data"] = _source(source, f"setting {name!r}: short_data")
        settings.append(Setting(str(name), mixing, ranking))
    return tuple(settings)


def _seeds(found: Any) -> tuple[int, ...]:
    found = found if isinstance(found, list) else [found]
    if not found or not all(isinstance(x, int) and not isinstance(x, bool) and 0 <= x < 2**32 for x in found):
        raise ValueError(f"seeds={found!r} are no whole numbers of 0 and more; give e.g. [1, 2, 3].")
    return tuple(dict.fromkeys(found))


def _budgets(training: dict[str, Any]) -> tuple[str, ...]:
    """How much training cells get; taken out of the training arguments, which keep what it needs."""
    steps = training.get("max_steps") or 0
    if not isinstance(steps, int):
        raise ValueError(f"training: max_steps={steps!r} is no whole number; give e.g. 100.")
    has_steps = steps > 0
    found = training.pop("budget", EQUAL_STEPS if has_steps else EQUAL_EPOCHS)
    found = found if isinstance(found, list) else [found]
    for budget in found:
        if budget not in BUDGETS:
            raise ValueError(f"budget={budget!r} is not known" + did_you_mean(budget, BUDGETS, f"; use {BUDGETS}."))
    if EQUAL_STEPS in found and not has_steps:
        raise ValueError(
            "budget equal_steps gives every cell as many steps: say how many, `training: max_steps: 100`."
        )
    return tuple(dict.fromkeys(found))


def split_training(training: dict[str, Any], known: set[str]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Training arguments as a recipe has them: those under `gateau:`, and TRL's own.

    Raises:
        ValueError: an argument that neither has, or that the grid itself gives.
    """
    own = set(_names(TrainConfig))
    taken = {"output_dir", "seed", "dataset_name", "model_name_or_path", "resume_from_checkpoint", "push_to_hub"}
    for name in training:
        if name in taken:
            raise ValueError(f"training: {name} is given by the grid itself; leave it out.")
        if name not in known | own:
            raise ValueError(f"training has no key {name!r}" + did_you_mean(name, known | own))
    return {x: y for x, y in training.items() if x in own}, {x: y for x, y in training.items() if x not in own}
