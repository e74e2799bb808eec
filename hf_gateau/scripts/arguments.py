"""A recipe's keys: TRL's own flat ones, and one mapping `gateau:`, which is the flags `--gateau_...` on the command line."""

from __future__ import annotations

import sys
from argparse import Namespace
from collections.abc import Iterable
from dataclasses import field, fields, make_dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, get_type_hints

from trl import DatasetMixtureConfig, ModelConfig, ScriptArguments
from trl.scripts.utils import DatasetConfig

from ..hub.config import ScoredConfig
from ..measuring.config import MeasureConfig
from ..models.config import ModelPairConfig
from ..ranking.config import MethodModelsConfig, MixConfig, RankConfig, SelectConfig
from ..settings import a_type, did_you_mean
from ..shell.help import Group, group_of
from ..shell.parser import ShellParser
from ..shipped import shipped_folder
from ..training.arguments import GateauSFTConfig
from ..training.config import TrainConfig


PREFIX = "gateau_"
CONFIGS = (SelectConfig, RankConfig, ModelPairConfig, MeasureConfig, MethodModelsConfig, ScoredConfig, MixConfig)
TRAIN_KEYS = tuple(x.name for x in fields(TrainConfig))  # fields of the trainer's own configuration too
# Settings that say the same thing in different ways: one on the command line replaces all of them in the recipe
ALTERNATIVES = (("fraction", "top_k", "min_score", "max_tokens"), ("short_fraction", "short_token_share"))
DATA_KEYS = ("dataset_name", "dataset_config", "datasets")


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
KINDS = (ScriptArguments, GateauSFTConfig, ModelConfig, DatasetMixtureConfig, GateauArguments)
# What most trainings set of TRL's arguments; `--help` shows these
DATA = ("dataset_name", "model_name_or_path")
TRAINING = (
    *("output_dir", "max_length", "packing", "learning_rate", "num_train_epochs", "max_steps", "use_peft"),
    *("per_device_train_batch_size", "gradient_accumulation_steps", "save_steps", "resume_from_checkpoint"),
    *("push_to_hub", "hub_model_id"),
)
# The plugin's arguments that a training, other than the commands that they come from, can mostly leave alone
LEFT_ALONE = (
    "strata",
    "decisions",
    "short_token_share",
    "rank_seed",
    "dtype",
    "device",
    "reward_model",
    "embedding_model",
    "response_model",
)


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


def split_flag(arguments: list[str], flag: str) -> list[str]:
    """`--flag=value` as two arguments."""
    return [part for x in arguments for part in (x.split("=", 1) if x.startswith(f"{flag}=") else [x])]


class RecipeParser(ShellParser):
    """The parser of a recipe: `--recipe` is `--config`, and a mapping `gateau:` is the flags `--gateau_...`."""

    file_flags = ("recipe", "config")
    has_terse_help = True
    _replaced: set[str] = set()  # settings of the recipe that give way to the command line's
    _has_other_data = False  # whether the command line names scored data in place of the recipe's

    def other_flags(self) -> Iterable[str]:
        return (*launch_parser()._option_string_actions, "--accelerate_config")

    def other_keys(self) -> Iterable[str]:
        return (*super().other_keys(), "gateau")

    def find_file(self, name: str, file: str) -> Path:
        return find_recipe(file) if name == "recipe" else super().find_file(name, file)

    def parse_args_and_config(self, args=None, **kwargs):
        args = [str(x) for x in (sys.argv[1:] if args is None else args)]
        given = {self.name_of(x) for x in args if x.startswith("--")}
        self._replaced = {x for names in ALTERNATIVES if given & {PREFIX + y for y in names} for x in names}
        self._has_other_data = f"{PREFIX}scored_dataset" in given and "dataset_name" not in given
        try:
            parsed = super().parse_args_and_config(args, **kwargs)
        except (ValueError, TypeError) as error:
            self.error(str(error))
        return tuple(part for part in parsed if not isinstance(part, Namespace))  # --recipe, which is read above

    def checked(self, file: str, settings: dict[str, Any]) -> dict[str, Any]:
        own = settings.get("gateau") or {}
        if not isinstance(own, dict):
            self.error(f"{file}: `gateau:` is {a_type(own)}; it holds settings, one a line, as `fraction: 0.1`")
        known = {x.name for config in (*CONFIGS, TrainConfig) for x in fields(config)}
        for name in own:
            if name not in known:
                self.error(f"{file}: `gateau:` has no key {name!r}" + did_you_mean(name, known))
        own = {name: value for name, value in own.items() if name not in self._replaced}
        own = {name if name in TRAIN_KEYS else PREFIX + name: value for name, value in own.items()}
        left_out = {"gateau", *(DATA_KEYS if self._has_other_data else ())}  # data than the recipe's
        settings = {name: value for name, value in settings.items() if name not in left_out}
        self._check_datasets(file, settings.get("datasets") or [])
        return super().checked(file, settings | own)

    def _check_datasets(self, file: str, entries: Any) -> None:
        """The entries of TRL's `datasets:`, which TRL itself would take to Python."""
        known = {x.name for x in fields(DatasetConfig)}
        for entry in entries if isinstance(entries, list) else ():
            if not isinstance(entry, dict) or "path" not in entry:
                self.error(f"{file}: an entry of `datasets:` is a mapping with a `path`, got {entry!r}")
            for name in entry:
                if name not in known:
                    self.error(f"{file}: an entry of `datasets:` has no key {name!r}{did_you_mean(name, known)}")


@cache
def launch_parser():
    """The parser of `accelerate launch`."""
    from accelerate.commands.launch import launch_command_parser

    return launch_command_parser()


def _groups() -> list[Group]:
    """The arguments of a training as the help has them: a recipe's first, and of TRL's those that most trainings set."""
    own = [group_of(config, PREFIX) for config in CONFIGS]
    own = [replace(group, rare=group.rare | {PREFIX + x for x in LEFT_ALONE}) for group in own]
    trained = replace(group_of(TrainConfig), rare=frozenset({"response_only_loss"}))
    known = {name for group in (*own, trained) for name in group.names} | {*DATA, *TRAINING, "dry_run"}
    rest = [x.name for kind in KINDS for x in fields(kind) if x.name not in known]
    return [
        Group("what is run", ("recipe", "dry_run")),
        Group("data and model", DATA),
        *own,
        trained,
        Group("training, as in TRL", TRAINING),
        Group("all other arguments of TRL's", tuple(rest), frozenset(rest)),
    ]


DESCRIPTION = (
    "Fine-tune on the rows that teach long context the most. A recipe gives all arguments at once, and any flag overrides it. "
    "Recipes that ship with the package: gateau, limited, qlora, tiny-cpu, baselines/random, ... Takes every argument of "
    "`trl sft` and of `accelerate launch` too, such as --num_processes 2."
)
EXAMPLES = (
    "hf-gateau sft --recipe tiny-cpu --dry_run true   # shows the plan",
    "hf-gateau sft --recipe tiny-cpu --gateau_fraction 0.2 --num_processes 2",
)


def make_parser(prog: str | None = None) -> RecipeParser:
    """The parser of the training script: TRL's arguments of `trl sft`, and the plugin's."""
    parser = RecipeParser(KINDS, prog=prog, description=DESCRIPTION, examples=EXAMPLES, groups=_groups())
    said = "A recipe's YAML file, or the name of one that ships with the package."
    parser.add_argument("--recipe", metavar="RECIPE", help=said)
    return parser
