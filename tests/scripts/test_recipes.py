"""Every recipe parses into the real dataclasses, and says in its head how it is launched."""

from pathlib import Path

import pytest
import yaml

from hf_gateau.measuring.config import MeasureConfig
from hf_gateau.models.config import ModelPairConfig
from hf_gateau.quickstart import resolve_shipped
from hf_gateau.ranking.config import MethodModelsConfig, MixConfig, RankConfig, SelectConfig
from hf_gateau.scripts.arguments import config_of, find_recipe, make_parser, recipes_folder


pytestmark = pytest.mark.quick


FOLDER = recipes_folder()
GRIDS = sorted(FOLDER.glob("reproduce-*.yaml"))  # of `hf-gateau experiment`
RECIPES = sorted(x for x in FOLDER.rglob("*.yaml") if x.parent.name != "accelerate" and x not in GRIDS)
PURE_TRL = "prescored.yaml"
ON_THIS_MACHINE = ["--bf16", "false", "--use_cpu", "true"]  # a recipe's bf16 needs a GPU to be accepted


def parse(path, *arguments):
    return make_parser().parse_args_and_config(["--recipe", str(path), *ON_THIS_MACHINE, *arguments])


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: str(path.relative_to(FOLDER)))
def test_recipe_parses_and_fits_together(path):
    script, training, model, _, gateau = parse(path)
    assert script.dataset_name and model.model_name_or_path and training.output_dir
    for config in (SelectConfig, RankConfig, ModelPairConfig, MeasureConfig, MethodModelsConfig, MixConfig):
        config_of(gateau, config)
    head = [line for line in path.read_text().splitlines() if line.startswith("#")]
    name = path.relative_to(FOLDER)
    launch = f"trl sft --config recipes/{name}" if path.name == PURE_TRL else f"trl sft --recipe recipes/{name}"
    assert any(launch in line for line in head)
    assert len(path.read_text().splitlines()) <= 70


@pytest.mark.parametrize("path", GRIDS, ids=lambda path: str(path.relative_to(FOLDER)))
def test_grid_reads_and_says_how_it_is_launched(path):
    from hf_gateau.experiments.grid import cells_of, load_grid

    grid = load_grid(path)
    assert f"hf-gateau experiment recipes/{path.name}" in path.read_text()
    num_methods = len([method for method in grid.methods if method.has_fractions])
    places = len(grid.seeds) * len(grid.settings) * len(grid.budgets)
    assert len(cells_of(grid)) == places * (num_methods * 3 + len(grid.methods) - num_methods)


@pytest.mark.parametrize("path", [*RECIPES, *GRIDS], ids=lambda path: str(path.relative_to(FOLDER)))
def test_paths_in_a_recipe_exist(path):
    for word in path.read_text().split():
        word = word.strip("`,.()")
        if word.startswith("recipes/") and word.endswith(".yaml"):
            assert (FOLDER.parent / word).is_file(), word


def test_pure_trl_recipe_holds_nothing_of_ours():
    from trl import DatasetMixtureConfig, ModelConfig, ScriptArguments, SFTConfig

    known = {
        x
        for kind in (ScriptArguments, SFTConfig, ModelConfig, DatasetMixtureConfig)
        for x in kind.__dataclass_fields__
    }
    assert yaml.safe_load((FOLDER / PURE_TRL).read_text()).keys() <= known


def test_the_papers_settings():
    """METHOD: LLaMA-2 with its RoPE base times 200, alpha 0.8, the top 10%, batch 8 x 12, 2 epochs, 2e-5, AdamW 0.9/0.95."""
    _, training, model, _, gateau = parse(FOLDER / "gateau.yaml")
    assert (gateau.gateau_short_model, gateau.gateau_short_rope_scale) == ("meta-llama/Llama-2-7b-hf", 200)
    assert gateau.gateau_long_model == model.model_name_or_path == "THUDM/LongAlign-7B-64k-base"
    assert (gateau.gateau_alpha, gateau.gateau_fraction, gateau.gateau_segment_length) == (0.8, 0.1, 128)
    assert (training.gradient_accumulation_steps, training.num_train_epochs, training.learning_rate) == (12, 2, 2e-5)
    assert (training.adam_beta1, training.adam_beta2, training.max_length) == (0.9, 0.95, 65_536)
    limited = parse(FOLDER / "limited.yaml")[-1]
    assert (limited.gateau_alpha, limited.gateau_short_fraction) == (0.7, 0.1)


@pytest.mark.parametrize("path", sorted((FOLDER / "accelerate").glob("*.yaml")), ids=lambda path: path.name)
def test_accelerate_reads_its_configurations(path):
    from accelerate.commands.config.config_args import load_config_from_file

    assert load_config_from_file(str(path)).num_processes == 8


def test_recipes_are_found_by_name():
    assert find_recipe("gateau") == FOLDER / "gateau.yaml" == find_recipe(str(FOLDER / "gateau.yaml"))
    assert find_recipe("baselines/random").name == "random.yaml"
    with pytest.raises(FileNotFoundError, match="did you mean 'gateau'"):
        find_recipe("gatau")


def test_shipped_names_resolve():
    assert Path(resolve_shipped("quickstart:long"), "config.json").is_file()
    assert resolve_shipped("Qwen/Qwen3-0.6B") == "Qwen/Qwen3-0.6B"
    with pytest.raises(ValueError, match="quickstart:long"):
        resolve_shipped("quickstart:lang")


def test_flags_override_a_recipe():
    *_, gateau = parse(FOLDER / "tiny-cpu.yaml", "--gateau_alpha", "0.6", "--gateau_fraction", "0.2")
    assert (gateau.gateau_alpha, gateau.gateau_fraction) == (0.6, 0.2)
    assert parse(FOLDER / "tiny-cpu.yaml", "--loss_weighting", "token")[1].loss_weighting == "token"


def test_flag_replaces_what_says_the_same_in_another_way():
    gateau = parse(FOLDER / "limited.yaml", "--gateau_top_k", "500", "--gateau_short_token_share", "0.3")[-1]
    assert (gateau.gateau_fraction, gateau.gateau_top_k) == (None, 500)
    assert (gateau.gateau_short_fraction, gateau.gateau_short_token_share) == (None, 0.3)


@pytest.mark.parametrize(
    "text, message",
    [
        ("gateau: {fractoin: 0.1}", "no key 'fractoin'; did you mean 'fraction'"),
        ("gateau: 0.1", "holds settings"),
        ("gateau: {loss_weighting: mean}", "loss_weighting='mean' is not known"),
        ("learning_rat: 0.1", "learning_rat"),
    ],
)
def test_wrong_keys_are_named(text, message, tmp_path, capsys):
    (tmp_path / "recipe.yaml").write_text(f"output_dir: out\n{text}\n")
    with pytest.raises(SystemExit, match="2"):
        parse(tmp_path / "recipe.yaml")
    assert message in capsys.readouterr().err


def test_recipe_must_exist_and_be_one(tmp_path, capsys):
    for arguments in (["--recipe", "gatau"], ["--recipe"], ["--recipe", "gateau", "--config", "x.yaml"]):
        with pytest.raises(SystemExit, match="2"):
            make_parser().parse_args_and_config(arguments)
        said = capsys.readouterr().err
        assert "usage:" not in said and len(said.splitlines()) == 1
