"""Misspelt flags, keys and values: refused by name, in one last line, with what was meant."""

import shutil

import pytest
import yaml

from hf_gateau.cli import main
from hf_gateau.cli.commands import COMMANDS
from hf_gateau.cli.parser import parser_of
from hf_gateau.scripts.arguments import recipes_folder
from hf_gateau.shell.help import GENERAL


pytestmark = pytest.mark.quick

WRONG_VALUES = ("[1, [2]]", "{a: 1}", "some words", "2.5", "null", "true", "2024-02-02")


def refused(capsys, *arguments) -> str:
    """The one line that a command says of its arguments."""
    assert main([str(x) for x in arguments]) == 2
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1 and "usage" not in said[0]
    return said[0]


@pytest.mark.parametrize("command", COMMANDS)
def test_misspelt_flags_of_every_command(command, capsys):
    """A letter of a flag is lost; what else the command needs is not asked for."""
    own = [action for action in parser_of(command)._actions if action.dest not in GENERAL]
    flag = max((x for action in own for x in action.option_strings if "-" not in x[2:]), key=len)
    said = refused(capsys, command, flag[:-2] + flag[-1], "1")
    assert said == f"hf-gateau {command}: unknown argument {flag[:-2] + flag[-1]}; did you mean {flag}?"


@pytest.mark.parametrize("command", COMMANDS)
def test_misspelt_keys_of_every_command(command, capsys, tmp_path):
    (tmp_path / "c.yaml").write_text("confgi: 1\n")
    assert "c.yaml: there is no setting 'confgi'" in refused(capsys, command, "--config", tmp_path / "c.yaml")


SFT = {
    ("--gateau_frction", "0.2"): "unknown argument --gateau_frction; did you mean --gateau_fraction?",
    ("--gateau-frction", "0.2"): "unknown argument --gateau-frction; did you mean --gateau_fraction?",
    ("--lerning_rate=1e-5",): "unknown argument --lerning_rate; did you mean --learning_rate?",
    ("--num_proceses", "2"): "unknown argument --num_proceses; did you mean --num_processes?",
    ("stray",): "unexpected argument 'stray'",
    ("--gateau_mode", "bset"): "--gateau_mode='bset' is not known; use one of",
    ("--max_steps", "many"): "--max_steps takes an integer, got 'many'",
    ("--gateau_top_k", "many"): "--gateau_top_k takes an integer, got 'many'",
    ("--recipe", "gateau"): "give one of --recipe and --config, once",
    ("--num_processes", "x"): "accelerate launch: argument --num_processes: invalid int value: 'x'",
}


@pytest.mark.parametrize("dry_run", ("true", "false"))
@pytest.mark.parametrize("flags", SFT, ids=lambda flags: flags[0])
def test_sft_refuses_in_the_dry_run_as_in_the_real_one(flags, dry_run, capsys):
    assert SFT[flags] in refused(capsys, "sft", "--recipe", "tiny-cpu", "--dry_run", dry_run, *flags)


RECIPES = {
    "gateau:": ("gatau:", "there is no setting 'gatau'; did you mean 'gateau'?"),
    "learning_rate:": ("lerning_rate:", "there is no setting 'lerning_rate'; did you mean 'learning_rate'?"),
    "  fraction:": ("  frction:", "`gateau:` has no key 'frction'; did you mean 'fraction'?"),
    "max_length:": ("max_length: [1]  #", "max_length takes an integer, got a list"),
    "  short_window:": ("  short_window: {a: 1}  #", "gateau_short_window takes an integer, got a mapping"),
    "dataset_name:": ("datasets: [{pth: x, path: y}]\nx:", "`datasets:` has no key 'pth'; did you mean 'path'?"),
}


@pytest.mark.parametrize("key", RECIPES)
def test_misspelt_keys_of_recipes(key, capsys, tmp_path):
    text = (recipes_folder() / "tiny-cpu.yaml").read_text()
    assert f"\n{key}" in text
    (tmp_path / "r.yaml").write_text(text.replace(f"\n{key}", f"\n{RECIPES[key][0]}"))
    assert RECIPES[key][1] in refused(capsys, "sft", "--recipe", tmp_path / "r.yaml", "--dry_run", "true")


def test_keys_of_accelerate_may_stand_in_a_recipe(tmp_path):
    shutil.copy(recipes_folder() / "tiny-cpu.yaml", tmp_path / "r.yaml")
    with (tmp_path / "r.yaml").open("a") as stream:
        stream.write("\nnum_processes: 2\n")
    parser = parser_of("sft")
    *_, left, others = parser.parse_args_and_config(
        ["--recipe", str(tmp_path / "r.yaml")], return_remaining_strings=True, separate_remaining_strings=True
    )
    assert (left, others) == (["--num_processes", "2"], [])
    parser_of("sft").parse_args_and_config(
        ["--recipe", str(tmp_path / "r.yaml")]
    )  # as the script that was launched does


def test_flags_in_part_and_with_dashes():
    def top_k(*arguments):
        parsed = parser_of("sft").parse_args_and_config(["--recipe", "tiny-cpu", *arguments])[-1]
        return parsed.gateau_fraction, parsed.gateau_top_k

    assert top_k() == (0.1, None)
    for flags in (["--gateau_top_k", "5"], ["--gateau-top-k", "5"], ["--gateau_top", "5"], ["--gateau-top-k=5"]):
        assert top_k(*flags) == (None, 5)  # in place of the recipe's fraction
    parsed = parser_of("score").parse_args_and_config(["x", "--outp", "y", "--max-length", "9", "--lim", "3"])
    assert parsed[0].limit == 3 and [x.max_length for x in parsed if hasattr(x, "max_length")] == [9]


@pytest.mark.parametrize("form", (["--config", "{}"], ["--config={}"], ["--conf", "{}"]))
def test_config_in_every_form_is_read(form, tmp_path):
    (tmp_path / "c.yaml").write_text("limit: 3\n")
    arguments = [x.format(tmp_path / "c.yaml") for x in form]
    assert parser_of("top").parse_args_and_config(["x", *arguments])[0].limit == 3


@pytest.mark.parametrize("command", COMMANDS)
def test_values_of_every_type_for_every_setting(command, tmp_path):
    """What a YAML file gives is taken, or refused with the setting's name: never a TypeError of the code behind."""
    parser, path = parser_of(command), tmp_path / "c.yaml"
    told = []

    def refuse(message):
        told.append(message)
        raise SystemExit(2)

    parser.refuse = refuse
    for name in parser._hints:
        if command == "sft" and not name.startswith("gateau_"):
            continue  # TRL's own
        for value in WRONG_VALUES:
            path.write_text(f"{name}: {value}\n")
            try:
                settings = parser.checked(str(path), yaml.safe_load(path.read_text()))
            except SystemExit:
                assert name in told[-1], (name, value)
            else:
                kinds = (type(None), str, int, float, bool, list)
                assert isinstance(settings[name], kinds), (name, value)
                assert "{" not in value or not isinstance(settings[name], dict)


@pytest.mark.parametrize(
    "text, message",
    [
        ("a: [1\nb: 2\n", ", line 2: this is no YAML"),
        ("a: 'b\n", "this is no YAML"),
        ("- a\n- b\n", "holds a list"),
        ("", "holds null"),
        ("just text", "holds a string"),
        ("1: 2\n", "the key 1 is an integer"),
        ("a: 2024-99-99\n", "this is no YAML"),
        (b"a: \xff\xfe\n", "is no text in UTF-8 (line 1 holds the byte 0xff)"),
        ("env: [A]\n", "`env:` is a list"),
    ],
)
def test_files_that_are_no_settings(text, message, capsys, tmp_path):
    path = tmp_path / "c.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    for arguments in (["score", "x", "-o", "y", "--config", path], ["sft", "--recipe", path]):
        said = refused(capsys, *arguments)
        assert message in said and str(path) in said
    if "env" not in str(text):
        assert main(["experiment", str(path), "-o", str(tmp_path / "out")]) == 2
        assert message in capsys.readouterr().err


def test_files_that_cannot_be_read(capsys, tmp_path):
    assert "nowhere.yaml: No such file or directory" in refused(capsys, "top", "x", "--config", "nowhere.yaml")
    assert f"{tmp_path}: Is a directory" in refused(capsys, "top", "x", "--config", tmp_path)
    assert "--config needs a YAML file" in refused(capsys, "top", "x", "--config")


def test_misspelt_command(capsys):
    assert refused(capsys, "scoer") == "hf-gateau: there is no command 'scoer'; did you mean 'score'?"
