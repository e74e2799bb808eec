"""Writes docs/reference.md: every public name, every command and every setting, as the code has them.

python docs/make_reference.py           # write it
python docs/make_reference.py --check   # exit with 1 where it is stale
"""

import argparse
import dataclasses
import inspect
import re
import sys
from pathlib import Path
from typing import Any


ROOT = Path(__file__).resolve().parent.parent
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

import hf_gateau  # noqa: E402


PAGE = Path(__file__).with_name("reference.md")
PACKAGE = hf_gateau.__name__
# Public classes whose methods a user calls, and those methods.
METHODS = {
    "GateauScorer": ("configure", "__call__", "count", "describe"),
    "GateauSelector": ("select", "mix", "reuse", "attach"),
    "SelectionRecord": ("summary", "to_json", "from_json"),
}
HEAD = """# Reference

Every public name, every command and every setting. This page is made from the code by `python docs/make_reference.py`: do
not edit it. The tests compare it with the code.
"""


# All that is taken from inside the package.


def commands() -> dict[str, tuple[Any, tuple]]:
    """Name of each subcommand of `hf-gateau` -> its function, and what it takes: names of positional arguments, dataclasses."""
    from hf_gateau.cli.commands import COMMANDS, command_of

    return {name: command_of(name) for name in COMMANDS}


def positionals() -> dict[str, str]:
    """Help of each positional argument."""
    from hf_gateau.cli.arguments import POSITIONALS

    return POSITIONALS


def recipe_configs() -> tuple[type, ...]:
    """The dataclasses whose fields are the keys of a recipe's mapping `gateau:`."""
    from hf_gateau.scripts.arguments import CONFIGS

    return CONFIGS


def read_docstring(function: Any) -> tuple[str, list[str]]:
    """What a command does, and the lines of its examples."""
    from hf_gateau.shell.help import read_docstring

    return read_docstring(function)


# Values and types, as they are written


def type_text(annotation: Any) -> str:
    """A type as one writes it: the same in every version of Python."""
    text = annotation if isinstance(annotation, str) else ""
    if not text:
        text = annotation.__name__ if isinstance(annotation, type) and "[" not in str(annotation) else str(annotation)
    text = re.sub(r"\b(?:\w+\.)+(\w+)", r"\1", text)  # without modules
    return re.sub(r"Optional\[(\w+)\]", r"\1 | None", text).replace("NoneType", "None")


def default_text(value: Any) -> str:
    text = repr(value)
    places = {str(place) for place in (Path.home(), ROOT)} - {"/"}
    if re.search(r" at 0x|<(function|class|object)", text) or any(place in text for place in places):
        raise ValueError(f"The default {text} is not the same on every machine.")
    return text


def field_default(field: dataclasses.Field) -> str | None:
    """The default of a dataclass's field; None where it must be given."""
    if field.default is not dataclasses.MISSING:
        return default_text(field.default)
    if field.default_factory is not dataclasses.MISSING:
        return default_text(field.default_factory())
    return None


def own_fields(config: type) -> dict[str, tuple[dataclasses.Field, Any]]:
    """Fields of a dataclass that this package defines, not those that it inherits from TRL's; with their types, which a
    parser that was made of the dataclass may have changed in the field."""
    ours = [kind for kind in reversed(config.__mro__) if kind.__module__.split(".")[0] == PACKAGE]
    types = {name: annotation for kind in ours for name, annotation in inspect.get_annotations(kind).items()}
    return {field.name: (field, types[field.name]) for field in dataclasses.fields(config) if field.name in types}


def signature_text(name: str, function: Any) -> str:
    """`name(a, *, b=1)`, one argument a line where there are many."""
    parts, starred = [], False
    for parameter in inspect.signature(function).parameters.values():
        if parameter.name == "self":
            continue
        if parameter.kind is parameter.KEYWORD_ONLY and not starred:
            starred = True
            parts.append("*")
        prefix = {parameter.VAR_POSITIONAL: "*", parameter.VAR_KEYWORD: "**"}.get(parameter.kind, "")
        starred = starred or prefix == "*"
        text = prefix + parameter.name
        if parameter.annotation is not parameter.empty:
            text += f": {type_text(parameter.annotation)}"
        if parameter.default is not parameter.empty:
            text += f" = {default_text(parameter.default)}"
        parts.append(text)
    line = f"{name}({', '.join(parts)})"
    return line if len(line) <= 100 else f"{name}(\n" + "".join(f"    {part},\n" for part in parts) + ")"


# Markdown


def fence(text: str) -> str:
    return f"```text\n{text}\n```"


def cell(text: str) -> str:
    """Text in a cell of a table."""
    return re.sub(r"([*<|\\])", r"\\\1", " ".join(text.split()))


def code(text: str) -> str:
    """Code in a cell of a table."""
    return f"`{text}`".replace("|", "\\|")


def docstring(of: Any) -> str:
    """The summary as prose, and from the first of `Args:`, `Returns:` ... on as it stands."""
    text = inspect.cleandoc(of.__doc__)
    found = re.search(r"^(Args|Returns|Raises|Warns|Attributes|Example)s?:", text, re.MULTILINE)
    prose, rest = (text, "") if found is None else (text[: found.start()], text[found.start() :])
    prose = re.sub(r"([*<])", r"\\\1", prose.strip()) if "`" not in prose else prose.strip()
    return prose + (f"\n\n{fence(rest.strip())}" if rest else "")


def link(config: type) -> str:
    return f"[{config.__name__}](#{config.__name__.lower()})"


def settings_table(config: type) -> str:
    lines = ["| setting | type | default | what it does |", "|---|---|---|---|"]
    for field, annotation in own_fields(config).values():
        names = [field.name, *field.metadata.get("aliases", ())]
        default = field_default(field)
        lines.append(
            f"| {', '.join(map(code, names))} | {code(type_text(annotation))} | "
            f"{'must be given' if default is None else code(default)} | {cell(field.metadata.get('help', ''))} |"
        )
    return "\n".join(lines)


def names_section() -> list[str]:
    parts = ["## Public names", "`from hf_gateau import ...`; nothing is imported before it is used."]
    for name in hf_gateau.__all__:
        value = getattr(hf_gateau, name)
        parts.append(f"### {name}")
        if dataclasses.is_dataclass(value) and own_fields(value) and name.endswith("Config"):
            parts += [docstring(value), settings_table(value)]
        elif not callable(value) or isinstance(value, hf_gateau.GateauScorer):
            parts.append(docstring(type(value)))
        elif dataclasses.is_dataclass(value):
            parts.append(docstring(value))
        else:
            parts += [fence(signature_text(name, value)), docstring(value)]
        for method in METHODS.get(name, ()):
            function = getattr(value, method)
            called = "scorer" if method == "__call__" else f"{name}.{method}"
            parts += [f"#### {called}" if method != "__call__" else f"#### Calling a {name}"]
            parts.append(fence(signature_text(called, function)))
            parts += [docstring(function)] if function.__doc__ else []
    return parts


def commands_section() -> tuple[list[str], list[type]]:
    """The section; and the dataclasses that commands take and that are no public names, each once."""
    parts = ["## Commands", "`--config FILE.yaml` gives any of these arguments too; the command line wins over it."]
    others: dict[type, None] = {}
    for name, (function, takes) in commands().items():
        parts.append(f"### hf-gateau {name}")
        text, examples = read_docstring(function)
        parts += [text] + ([fence("\n".join(examples))] if examples else [])
        if name == "sft":
            linked = ", ".join(link(config) for config in recipe_configs())
            parts.append(
                "It takes every argument of `trl sft` and of `accelerate launch`. Beside them it takes `--recipe`, "
                f"`--dry_run`, and, with `--gateau_` in front, the settings of {linked}. In a recipe these are the keys "
                "under `gateau:`."
            )
        lines = []
        for kind in takes:
            if isinstance(kind, str):
                lines.append(f"- `{kind.upper()}`: {positionals()[kind]}")
            else:
                others[kind] = None
        configs = [kind for kind in takes if not isinstance(kind, str)]
        if configs:
            lines.append(f"- settings of {', '.join(link(config) for config in configs)}")
        parts += ["\n".join(lines)] if lines else []
    public = {getattr(hf_gateau, name) for name in hf_gateau.__all__ if inspect.isclass(getattr(hf_gateau, name))}
    return parts, [config for config in others if config not in public]


def reference() -> str:
    """The page."""
    command_parts, configs = commands_section()
    parts = [HEAD.strip(), *names_section(), *command_parts]
    parts += ["## Settings of the commands", "On the command line each has `--` in front."]
    for config in configs:
        parts += [f"### {config.__name__}", docstring(config), settings_table(config)]
    return "\n\n".join(parts) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 where the page is stale")
    text = reference()
    if parser.parse_args().check:
        if not PAGE.is_file() or PAGE.read_text(encoding="utf-8") != text:
            print("docs/reference.md is stale; run `python docs/make_reference.py`.", file=sys.stderr)
            return 1
        return 0
    PAGE.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
