"""A recipe's keys: TRL's own flat ones, and one mapping `gateau:`, which is the flags `--gateau_...` on the command line."""

from __future__ import annotations

import sys
from argparse import Namespace
from dataclasses import field, fields, make_dataclass
from pathlib import Path
from typing import Any, get_type_hints

from trl import DatasetMixtureConfig, ModelConfig, ScriptArguments, TrlParser

from ..hub.config import ScoredConfig
from ..measuring.config import MeasureConfig
from ..models.config import ModelPairConfig
from ..quickstart import LONG_MODEL, PLANTED, SHORT_MODEL
from ..ranking.config import MethodModelsConfig, MixConfig, RankConfig, SelectConfig
from ..settings import a_type, did_you_mean
from ..shipped import shipped_folder
from ..training.arguments import GateauSFTConfig
from ..training.config import TrainConfig


PREFIX = "gateau_"
CONFIGS = (SelectConfig, RankConfig, ModelPairConfig, MeasureConfig, MethodModelsConfig, ScoredConfig, MixConfig)
TRAIN_KEYS = tuple(x.name for x in fields(TrainConfig))  # fields of the trainer's own configuration too
# Settings that say the same thing in different ways: one on the command line replaces all of them in the recipe
ALTERNATIVES = (("fraction", "top_k", "min_score", "max_tokens"), ("short_fraction", "short_token_share"))
DATA_KEYS = ("dataset_name", "dataset_config", "datasets")
# Names of what ships with the package, in place of a path
SHIPPED = {"quickstart:long": LONG_MODEL, "quickstart:short": SHORT_MODEL, "quickstart:planted": PLANTED}


def _prefixed() -> type:
    """One dataclass with the fields of all stages, under the prefix that keeps them apart from TRL's."""
    found: list[tuple] = []
    for config in CONFIGS:
        hints = get_type_hints(config)
        for x in fields(config):
            found.append((PREFIX + x.name, hints[x.name], field(default=x.default, metadata=dict(x.metadata))))
    help_text = "Print what would be done, without loading a model, and stop."
    found.append(("dry_run", bool, field(default=False, metadata={"help": help_text})))
    return make_dataclass("GateauArguments", found)


GateauArguments = _prefixed()


def config_of(arguments: Any, config: type) -> Any:
    """The part of `GateauArguments` that one stage reads, as that stage's dataclass."""
    return config(**{x.name: getattr(arguments, PREFIX + x.name) for x in fields(config)})


def given_settings(arguments: Any, *configs: type) -> dict[str, Any]:
    """The settings of some stages that differ from their defaults, by name."""
    pairs = ((x, getattr(arguments, PREFIX + x.name)) for config in configs for x in fields(config))
    return {x.name: value for x, value in pairs if value != x.default}


def recipes_folder() -> Path:
    """Where the recipes are; see `shipped_folder`."""
    return shipped_folder("recipes", "gateau.yaml")


def find_recipe(recipe: str) -> Path:
    """The file of a recipe: a path, or the name of one that ships with the package, such as `gateau` or
    `baselines/random`.

    Raises:
        FileNotFoundError: there is none; the message names the nearest.
    """
    path = Path(recipe).expanduser()
    if path.is_file():
        return path
    folder = recipes_folder()
    name = recipe.removeprefix("recipes/").removesuffix(".yaml")
    if (folder / f"{name}.yaml").is_file():
        return folder / f"{name}.yaml"
    names = sorted(str(x.relative_to(folder).with_suffix("")) for x in folder.rglob("*.yaml"))
    names = [x for x in names if not x.startswith("accelerate/")]
    raise FileNotFoundError(
        f"There is no recipe {recipe!r}: no such file, and none of that name ships with the package"
        + did_you_mean(name, names, f" (those that do: {', '.join(names)}).")
    )


def resolve_shipped(name: str | None) -> str | None:
    """`quickstart:long` and the like as the path of what is installed; other names as they are.

    Raises:
        ValueError: a `quickstart:` name that does not exist.
    """
    if name in SHIPPED:
        return SHIPPED[name]
    if name is not None and name.startswith("quickstart:"):
        raise ValueError(f"{name!r} does not ship with the package; {', '.join(SHIPPED)} do.")
    return name


def split_flag(arguments: list[str], flag: str) -> list[str]:
    """`--flag=value` as two arguments."""
    return [part for x in arguments for part in (x.split("=", 1) if x.startswith(f"{flag}=") else [x])]


class RecipeParser(TrlParser):
    """TRL's parser, which reads `--recipe` as `--config`, and a mapping `gateau:` as the flags `--gateau_...`."""

    _replaced: set[str] = set()  # settings of the recipe that give way to the command line's
    _has_other_data = False  # whether the command line names scored data in place of the recipe's

    def parse_args_and_config(self, args=None, **kwargs):
        args = list(sys.argv[1:] if args is None else args)
        args = split_flag(args, "--recipe")
        if args.count("--recipe") + args.count("--config") > 1:
            self.error("give one of --recipe and --config, once")
        flags = {arg.split("=", 1)[0] for arg in args}
        self._replaced = {x for names in ALTERNATIVES if flags & {f"--{PREFIX}{y}" for y in names} for x in names}
        self._has_other_data = f"--{PREFIX}scored_dataset" in flags and "--dataset_name" not in flags
        if "--recipe" in args:
            place = args.index("--recipe")
            if place + 1 == len(args):
                self.error("--recipe needs a file, or the name of a recipe that ships with the package")
            try:
                args[place : place + 2] = ["--config", str(find_recipe(args[place + 1]))]
            except FileNotFoundError as error:
                self.error(str(error))
        try:
            parsed = super().parse_args_and_config(args, **kwargs)
        except (ValueError, TypeError) as error:
            self.error(str(error))
        return tuple(part for part in parsed if not isinstance(part, Namespace))  # --recipe, which is read above

    def set_defaults_with_config(self, **kwargs):
        settings = kwargs.pop("gateau", None) or {}
        if not isinstance(settings, dict):
            self.error(f"`gateau:` is {a_type(settings)}; it holds settings, one a line, as `fraction: 0.1`")
        known = {x.name for config in (*CONFIGS, TrainConfig) for x in fields(config)}
        for name in settings.keys() - known:
            self.error(f"`gateau:` has no key {name!r}" + did_you_mean(name, known))
        settings = {name: value for name, value in settings.items() if name not in self._replaced}
        if self._has_other_data:  # than the recipe's
            kwargs = {name: value for name, value in kwargs.items() if name not in DATA_KEYS}
        own = {name if name in TRAIN_KEYS else PREFIX + name: value for name, value in settings.items()}
        return super().set_defaults_with_config(**kwargs, **own)


def make_parser(prog: str | None = None) -> RecipeParser:
    """The parser of the training script: TRL's arguments of `trl sft`, and the plugin's."""
    kinds = (ScriptArguments, GateauSFTConfig, ModelConfig, DatasetMixtureConfig, GateauArguments)
    description = (
        "Fine-tune on the rows that teach long context the most. `--recipe FILE` (or the name of a recipe that ships with "
        "the package: gateau, limited, qlora, tiny-cpu, baselines/random, ...) gives all arguments at once; any flag "
        "overrides it. `--dry_run true` shows the plan."
    )
    parser = RecipeParser(kinds, prog=prog, description=description)
    parser.add_argument("--recipe", help="YAML file, or the name of a recipe that ships with the package.")
    return parser
