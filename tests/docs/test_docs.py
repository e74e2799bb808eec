"""What README.md and docs/ say is so: links lead somewhere, Python runs and prints what stands below it, commands and their
flags exist, messages are those of the code, and the reference is fresh."""

import ast
import contextlib
import importlib.util
import io
import re
import runpy
import shlex
import sys
import types
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from urllib.parse import unquote

import pytest
from markdown_it import MarkdownIt

from tests.paths import ROOT


README = ROOT / "README.md"
PAGES = [README, *sorted((ROOT / "docs").glob("*.md"))]
NAMES = [page.name for page in PAGES]
MARKDOWN = MarkdownIt("commonmark").enable("table")
MOST_LINES = 250  # of the README
NEEDED_LINES = (  # the first is run by continuous integration
    'pip install ".[test]" && pytest',
    "pip install . && hf-gateau quickstart",
)
PLACEHOLDER = "..."  # in a command: whatever the user has


@cache
def tokens_of(page: Path) -> list:
    return MARKDOWN.parse(page.read_text(encoding="utf-8"))


def inline_of(page: Path) -> Iterator:
    for token in tokens_of(page):
        yield from token.children or ()


# Links


def slugs(page: Path) -> set[str]:
    """Anchors of a page's headings, by GitHub's rules: lower case, no punctuation, hyphens for spaces, numbers for repeats."""
    found: dict[str, int] = {}
    tokens = tokens_of(page)
    for i, token in enumerate(tokens):
        if token.type != "heading_open":
            continue
        texts = (x.content for x in tokens[i + 1].children if x.type in ("text", "code_inline"))
        slug = re.sub(r"[^\w\- ]", "", "".join(texts).strip().lower()).replace(" ", "-")
        number = found.get(slug)
        found[slug] = 0 if number is None else number + 1
        if number is not None:
            found[f"{slug}-{number + 1}"] = 0
    return set(found)


def targets(page: Path) -> list[str]:
    """What a page's links and images lead to."""
    return [str(x.attrs[name]) for x in inline_of(page) for name in ("href", "src") if name in x.attrs]


def is_relative(target: str) -> bool:
    return not re.match(r"[a-z][a-z0-9+.-]*:", target)


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_links_lead_somewhere(page):
    for target in filter(is_relative, targets(page)):
        path, _, anchor = unquote(target).partition("#")
        place = (page.parent / path).resolve() if path else page
        assert place.exists(), f"{page.name}: there is no {target}"
        assert place.is_relative_to(ROOT), f"{page.name}: {target} leads out of the repository"
        if anchor:
            assert anchor in slugs(place), f"{page.name}: {target} names no heading of {place.name}"


def test_every_page_is_in_the_index():
    linked = {Path(target).name for target in targets(ROOT / "docs" / "index.md")}
    assert {page.name for page in PAGES[1:]} - linked == {"index.md"}


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_images_say_what_they_show(page):
    for image in (x for x in inline_of(page) if x.type == "image"):
        assert len(image.content) > 20, f"{page.name}: {image.attrs['src']} needs a text for those who do not see it"


# Python


class Block:
    """A fenced block: its code, why it is not run (or None), and what it is said to print (or None)."""

    def __init__(self, page: Path, place: int):
        tokens = tokens_of(page)
        self.page, self.code, self.line = page, tokens[place].content, tokens[place].map[0] + 1
        before = tokens[place - 1] if place else None
        said = re.match(r"<!-- not run: (.+) -->", before.content) if before and before.type == "html_block" else None
        self.reason = said and said.group(1)
        after = tokens[place + 1] if place + 1 < len(tokens) else None
        is_output = after is not None and after.type == "fence" and after.info in ("", "text")
        self.printed = after.content if is_output else None


def blocks(page: Path, language: str) -> list[Block]:
    return [Block(page, i) for i, x in enumerate(tokens_of(page)) if x.type == "fence" and x.info == language]


@pytest.fixture(scope="module")
def shared_store(tmp_path_factory) -> Path:
    """Rows that several pages measure are measured once."""
    return tmp_path_factory.mktemp("docs") / "measurements.sqlite"


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_python_runs_and_prints_what_is_said(page, shared_store, tmp_path, monkeypatch):
    found = blocks(page, "python")
    for block in found:
        ast.parse(block.code, filename=f"{page.name}:{block.line}")
    if all(block.reason for block in found):
        return
    import datasets
    from datasets.utils.logging import disable_progress_bar, enable_progress_bar, is_progress_bar_enabled

    import hf_gateau

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_GATEAU_STORE", str(shared_store))
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    had_bars = is_progress_bar_enabled()
    disable_progress_bar()
    # As a module of its own: `map` takes functions of a block's namespace to other processes by name.
    module = types.ModuleType("docs_example")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    try:
        for block in (block for block in found if block.reason is None):
            printed = io.StringIO()
            code = compile(block.code, f"{page.name}:{block.line}", "exec")
            with contextlib.redirect_stdout(printed):
                exec(code, vars(module))
            if block.printed is not None:
                assert printed.getvalue() == block.printed, f"{page.name}:{block.line} prints something else"
    finally:
        if had_bars:
            enable_progress_bar()
        hf_gateau.gateau_score.__init__()  # a page configures it


# Commands


def command_lines(page: Path) -> list[str]:
    """Every command of a page: lines of shell blocks, continued lines joined; and commands in prose."""
    lines = []
    for block in blocks(page, "bash"):
        for line in block.code.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            while "&&" in words:
                at = words.index("&&")
                lines.append(words[:at])
                words = words[at + 1 :]
            lines.append(words)
    for token in inline_of(page):
        if token.type == "code_inline" and re.match(r"(hf-gateau|trl|python -m|pytest|accelerate) ", token.content):
            lines.append(shlex.split(token.content))
    return [words for words in lines if words]


@cache
def parser_of(command: str):
    """The parser of a subcommand of `hf-gateau`."""
    from hf_gateau.cli.parser import parser_of

    return parser_of(command)


@cache
def _reference() -> types.ModuleType:
    """docs/make_reference.py, which knows where the commands are."""
    spec = importlib.util.spec_from_file_location("make_reference", ROOT / "docs" / "make_reference.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def check_flags(parser, words: list[str], others: frozenset[str] = frozenset()) -> None:
    known = parser._option_string_actions
    for word in words:
        flag = word.partition("=")[0]
        if re.match(r"--?[a-zA-Z]", flag):
            assert flag in known or flag in others or flag in ("--help", "-h"), f"{flag} is no argument"


def check_gateau(words: list[str]) -> None:
    """`hf-gateau ...`: the command exists, and takes these arguments, which are in range."""
    if not words or words[0].startswith("-"):
        assert words in (["--help"], ["--version"]), words
        return
    command, *arguments = words
    assert command in _reference().commands(), f"there is no command {command}"
    if command == "sft":
        return check_sft(arguments)
    parser = parser_of(command)
    check_flags(parser, arguments)
    required = any(action.required for action in parser._actions)
    is_whole = PLACEHOLDER not in arguments and "--config" not in arguments and "--help" not in arguments
    has_positional = bool(arguments) and not arguments[0].startswith("-")
    if is_whole and (has_positional or not required):
        with contextlib.redirect_stderr(io.StringIO()) as said:
            try:
                parser.parse_args_and_config(arguments)
            except FileNotFoundError:  # the reader's own files
                pass
            except SystemExit:
                assert "the following arguments are required" in said.getvalue(), said.getvalue()


@cache
def accelerates():
    """The parser of `accelerate launch`."""
    from accelerate.commands.launch import launch_command_parser

    return launch_command_parser()


def check_sft(arguments: list[str]) -> None:
    """`trl sft --recipe ...` and its like: the recipe exists; a flag is TRL's, a recipe's, or accelerate's."""
    from hf_gateau.scripts.arguments import find_recipe

    others = frozenset(accelerates()._option_string_actions) | {"--accelerate_config", "--config"}
    check_flags(parser_of("sft"), arguments, others)
    if "--recipe" in arguments[:-1] and arguments[arguments.index("--recipe") + 1] != PLACEHOLDER:
        assert find_recipe(arguments[arguments.index("--recipe") + 1]).is_file()
    if "--accelerate_config" in arguments[:-1]:
        assert (ROOT / arguments[arguments.index("--accelerate_config") + 1]).is_file()


def check_python(words: list[str]) -> None:
    """`python -m MODULE ...` and `python SCRIPT ...`: the file exists; flags of a benchmark stand in its source."""
    if words[0] != "-m":
        assert (ROOT / words[0]).is_file(), words[0]
        return
    module, arguments = words[1], words[2:]
    if module == "hf_gateau.cli":
        return check_gateau(arguments)
    path = ROOT / (module.replace(".", "/") + ".py")
    assert path.is_file(), f"there is no {module}"
    source = path.read_text(encoding="utf-8") + (ROOT / "benchmarks" / "common.py").read_text(encoding="utf-8")
    for flag in (word for word in arguments if word.startswith("--")):
        assert f'"{flag}"' in source, f"{module} has no {flag}"


def check_accelerate(words: list[str]) -> None:
    assert words[0] == "launch", words
    if "-m" not in words:  # just its name
        return
    at = words.index("-m")
    check_flags(accelerates(), words[1:at])
    module, arguments = words[at + 1], words[at + 2 :]
    if module == "hf_gateau.cli":
        check_gateau(arguments)
    else:
        assert importlib.util.find_spec(module), module
        check_sft(arguments)


def check_pytest(words: list[str]) -> None:
    if "-m" in words:
        assert words[words.index("-m") + 1] in ("quick", "slow", "gpu")


CHECKS = {"hf-gateau": check_gateau, "python": check_python, "accelerate": check_accelerate, "pytest": check_pytest}
OTHERS = ("pip", "ruff", "export")  # not looked into


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_commands_exist(page):
    for words in command_lines(page):
        while words and re.fullmatch(r"[A-Z_]+=\S*", words[0]):  # OMP_NUM_THREADS=1 python ...
            words = words[1:]
        if words[0] in OTHERS or words[1:] == [PLACEHOLDER]:
            continue
        try:
            if words[0] == "trl":
                assert words[1] == "sft", words
                check_sft(words[2:])
            else:
                CHECKS[words[0]](words[1:])
        except (AssertionError, ValueError, KeyError) as error:
            raise AssertionError(f"{page.name}: {' '.join(words)}: {error!r}") from error


# Messages, names of files, the reference, the README


@cache
def _texts_of_code() -> str:
    """Every string of the package; an f-string without what is put in."""
    found = []
    for path in sorted((ROOT / "hf_gateau").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                found.append("\0".join(x.value for x in node.values if isinstance(x, ast.Constant)))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(node.value)
    return "\n".join(found)


def test_messages_are_those_of_the_code():
    page = ROOT / "docs" / "troubleshooting.md"
    tokens, messages = tokens_of(page), []
    for i, token in enumerate(tokens):
        if token.type == "tr_open" and tokens[i + 1].type == "td_open":
            messages += [x.content for x in tokens[i + 2].children if x.type == "code_inline"]
    assert len(messages) > 50
    for message in messages:
        pieces = re.split(r"\.\.\.|\d+(?:,\d+)*", message.removeprefix("hf-gateau:"))
        pieces = [piece for piece in map(str.strip, pieces) if len(piece) > 6]
        assert pieces, message
        for piece in pieces:
            assert piece in _texts_of_code(), f"no message of the code has {piece!r}, which is quoted in {message!r}"


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_named_files_exist(page):
    for token in inline_of(page):
        if token.type != "code_inline":
            continue
        for name in re.findall(r"(?:hf_gateau|benchmarks|recipes|tests|docs|model_cards)/[\w./-]*", token.content):
            if "<" not in token.content:
                assert (ROOT / name).exists(), f"{page.name}: there is no {name}"


def test_reference_is_fresh(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["make_reference.py", "--check"])
    assert _reference().main() == 0, capsys.readouterr().err


def test_stale_reference_is_told(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(sys, "argv", ["make_reference.py", "--check"])
    monkeypatch.setattr(_reference(), "PAGE", tmp_path / "reference.md")
    assert _reference().main() == 1
    assert "python docs/make_reference.py" in capsys.readouterr().err


def test_readme_is_short_and_has_what_continuous_integration_needs():
    lines = README.read_text(encoding="utf-8").splitlines()
    assert len(lines) <= MOST_LINES
    for line in NEEDED_LINES:
        assert lines.count(line) == 1, line


def test_no_page_names_this_machine():
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        assert not re.search(r"(?<![\w.])/(home|root|tmp|work)/", text), page.name
        assert str(Path.home()) not in text or Path.home() == Path("/"), page.name


def long_description(monkeypatch) -> str:
    """What setup.py gives to `setup`."""
    given = {}
    fake = types.ModuleType("setuptools")
    fake.setup, fake.find_packages = given.update, lambda **kwargs: []
    monkeypatch.setitem(sys.modules, "setuptools", fake)
    monkeypatch.chdir(ROOT)
    runpy.run_path("setup.py")
    return given["long_description"]


def test_long_description_has_no_relative_link(monkeypatch):
    text = long_description(monkeypatch)
    tokens = MARKDOWN.parse(text)
    found = [
        str(x.attrs[name]) for t in tokens for x in t.children or () for name in ("href", "src") if name in x.attrs
    ]
    assert found and not list(filter(is_relative, found))
    assert "docs/images" not in text
    fences = [[x.content for x in MARKDOWN.parse(y) if x.type == "fence"] for y in (README.read_text("utf-8"), text)]
    assert fences[0] == fences[1]  # code is as it was
