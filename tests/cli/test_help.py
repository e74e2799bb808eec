"""Help teaches: what is shown is short, true, in order, and can be copied."""

import dataclasses
import re
import shlex
from functools import cache

import pytest

from hf_gateau.cli import main
from hf_gateau.cli.commands import COMMANDS, TITLES, command_of
from hf_gateau.cli.parser import parser_of
from hf_gateau.shell.help import GENERAL, read_docstring


pytestmark = pytest.mark.quick

MOST_LINES = {"sft": 120}  # of --help; other commands: 70
WIDTHS = (80, 100)


@cache
def parser(command: str):
    return parser_of(command)


@pytest.fixture(params=WIDTHS)
def width(request, monkeypatch) -> int:
    monkeypatch.setenv("COLUMNS", str(request.param))
    return request.param


def flags_of(text: str) -> set[str]:
    """Flags that begin a line of arguments."""
    found = [re.findall(r"--\w+", line[: line.find("  ", 4)]) for line in text.splitlines() if re.match("  -", line)]
    return {flag for flags in found for flag in flags}


@pytest.mark.parametrize("command", COMMANDS)
def test_help_is_short_and_has_no_line_over_the_width(command, width):
    shown = parser(command).format_help().splitlines()
    assert len(shown) < MOST_LINES.get(command, 70)
    for line in shown + parser(command).format_help(shows_all=True).splitlines():
        assert len(line) <= width, line


@pytest.mark.parametrize("command", COMMANDS)
def test_only_true_defaults_are_shown_and_each_once(command):
    shown = parser(command).format_help(shows_all=True)
    assert "default: None" not in shown and "default: False" not in shown
    assert "==SUPPRESS==" not in shown
    entries = re.split(r"\n  (?=\S)", shown)
    for entry in entries:
        assert entry.count("(default:") + entry.count("Default:") <= 1, entry


@pytest.mark.parametrize("command", COMMANDS)
def test_every_flag_is_under_help_all_and_in_one_group(command):
    actions = [action for action in parser(command)._actions if action.option_strings]
    flags = [max((x for x in action.option_strings if "-" not in x[2:]), key=len) for action in actions]
    shown = parser(command).format_help(shows_all=True)
    lines = [line for line in shown.splitlines() if re.match("  -", line)]
    for flag in flags:
        if flag.lstrip("-") not in GENERAL:
            assert sum(flag in re.split(r"[ ,]+", line) for line in lines) == 1, flag


@pytest.mark.parametrize("command", COMMANDS)
def test_choices_are_listed(command):
    shown = " ".join(parser(command).format_help(shows_all=True).split())
    for action in parser(command)._actions:
        for choice in action.choices or ():
            assert str(choice) in shown


def examples(command: str) -> list[list[str]]:
    lines = "\n".join(parser(command)._examples).replace("\\\n", " ").splitlines()
    return [shlex.split(line, comments=True) for line in lines if not line.startswith("#")]


@pytest.mark.parametrize("command", COMMANDS)
def test_examples_stand_as_they_are_written_and_parse(command):
    shown = parser(command).format_help()
    assert examples(command)
    for line in parser(command)._examples:
        assert f"\n  {line}\n" in shown
    for words in examples(command):
        start = words.index("hf_gateau.cli") + 1 if "hf_gateau.cli" in words else 1
        assert words[0] in ("hf-gateau", "accelerate") and words[start] == command
        fresh = parser_of(command)  # a recipe changes a parser's defaults
        is_sft = command == "sft"
        fresh.parse_args_and_config(words[start + 1 :], return_remaining_strings=is_sft)


def test_rare_settings_are_settings():
    kinds = {kind for name in COMMANDS for kind in command_of(name)[1] if not isinstance(kind, str)}
    marked = [kind for kind in kinds if hasattr(kind, "RARELY_GIVEN")]
    assert len(marked) > 10
    for kind in marked:
        assert set(kind.RARELY_GIVEN) <= {x.name for x in dataclasses.fields(kind)}, kind


def test_help_shows_less_than_help_all(capsys):
    with pytest.raises(SystemExit, match="0"):
        main(["score", "--help_all"])
    everything = flags_of(capsys.readouterr().out)
    with pytest.raises(SystemExit, match="0"):
        main(["score", "--help"])
    shown = flags_of(capsys.readouterr().out)
    assert shown < everything and {"--long_model", "--short_window", "--output", "--store"} <= shown
    assert {"--long_adapter", "--segment_stride"} <= everything - shown


def test_help_of_sft_has_the_plugins_arguments_and_those_of_trl_that_people_need():
    shown = flags_of(parser("sft").format_help())
    needed = (
        *("recipe", "dry_run", "gateau_fraction", "gateau_alpha", "gateau_long_model", "loss_weighting"),
        *("model_name_or_path", "dataset_name", "output_dir", "learning_rate", "num_train_epochs", "max_length"),
        *("per_device_train_batch_size", "gradient_accumulation_steps", "packing", "push_to_hub"),
    )
    assert {f"--{name}" for name in needed} <= shown


def test_overview_is_in_the_order_of_the_work(capsys, width):
    assert main([]) == 0
    lines = capsys.readouterr().out.splitlines()
    named = [line.split()[0] for line in lines if re.match(r"  \w", line)]
    assert named == list(COMMANDS) and set(TITLES) <= set(COMMANDS)
    assert all(len(line) <= width for line in lines)
    titles = [line for line in lines if line.endswith(":")]
    assert len(titles) == len(TITLES)


@pytest.mark.parametrize("command", COMMANDS)
def test_docstrings_have_one_form(command):
    text, lines = read_docstring(command_of(command)[0])
    assert text.endswith(".") and "Example" not in text and lines
