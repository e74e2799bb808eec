"""The house: rooms in the order in which one reads them, files in a room likewise, and no import that goes the other way.

The order of rooms is said by the docstring of `hf_gateau/__init__.py`, that of a room's files by its own `__init__`: names in
backticks, so that what people read is what is tested. Imports inside functions and under TYPE_CHECKING count too.
"""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

import hf_gateau


pytestmark = pytest.mark.quick


PACKAGE = Path(hf_gateau.__file__).parent
MODULES = {
    tuple(x for x in file.relative_to(PACKAGE).with_suffix("").parts if x != "__init__"): file
    for file in sorted(PACKAGE.rglob("*.py"))
}
ROOT_FILES = sorted(name[0] for name in MODULES if len(name) == 1 and MODULES[name].name != "__init__.py")
# Shipped beside the package, and mapped into it where it is installed
NO_ROOMS = {"recipes", "model_cards"}


class Import(NamedTuple):
    """Names that a module takes from another, as tuples of the path below the package."""

    by: tuple[str, ...]
    module: tuple[str, ...]
    name: str
    line: int


def named_in(file: Path, known: set[str]) -> list[str]:
    """Known names, as a docstring says them in backticks, each once."""
    said = re.findall(r"`(\w+)(?:\.py)?`", ast.get_docstring(ast.parse(file.read_text())) or "")
    return [name for name in dict.fromkeys(said) if name in known]


def imports() -> Iterator[Import]:
    for name, file in MODULES.items():
        is_init = file.name == "__init__.py"
        for node in ast.walk(ast.parse(file.read_text())):
            if not isinstance(node, ast.ImportFrom) or (node.level == 0 and not node.module.startswith("hf_gateau")):
                continue
            base = name if is_init else name[:-1]
            base = base[: len(base) - node.level + 1] if node.level else ()
            parts = (node.module or "").split(".") if node.level else node.module.split(".")[1:]
            module = (*base, *filter(None, parts))
            for alias in node.names:
                if (*module, alias.name) in MODULES:  # a module itself
                    yield Import(name, (*module, alias.name), "*", node.lineno)
                else:
                    yield Import(name, module, alias.name, node.lineno)


IMPORTS = list(imports())
ROOMS = named_in(PACKAGE / "__init__.py", {name[0] for name in MODULES if len(name) > 1})


def test_the_docstring_names_every_room_and_every_file_at_the_root():
    assert set(ROOMS) == {name[0] for name in MODULES if len(name) > 1} - NO_ROOMS
    assert set(named_in(PACKAGE / "__init__.py", set(ROOT_FILES))) == set(ROOT_FILES)
    assert len(ROOT_FILES) <= 5


def test_rooms_import_from_rooms_before_them():
    assert len(IMPORTS) > 500  # the test sees them
    place = {room: i for i, room in enumerate(ROOMS)}
    wrong = [
        x
        for x in IMPORTS
        if len(x.by) > 0
        and x.module
        and x.module[0] in place
        and (x.by[0] not in place or place[x.module[0]] > place[x.by[0]])
    ]
    assert not wrong, "\n".join(map(str, wrong))


@pytest.mark.parametrize("room", ROOMS)
def test_files_of_a_room_import_from_files_before_them(room):
    files = {name[1] for name in MODULES if len(name) == 2 and name[0] == room and name[1] != "__main__"}
    order = named_in(PACKAGE / room / "__init__.py", files)
    assert set(order) == files, f"hf_gateau/{room}/__init__.py does not name {sorted(files - set(order))}"
    place = {name: i for i, name in enumerate(order)}
    inside = [x for x in IMPORTS if x.by[:1] == x.module[:1] == (room,) and len(x.by) == 2 and len(x.module) == 2]
    wrong = [x for x in inside if x.by[1] in place and place[x.module[1]] >= place[x.by[1]]]
    assert not wrong, "\n".join(map(str, wrong))


def test_names_come_from_where_they_are_defined():
    """Not from a module that has imported them itself: a reader who follows an import arrives."""
    defined = {name: set() for name in MODULES}
    for name, file in MODULES.items():
        for node in ast.parse(file.read_text()).body:
            if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
                defined[name].add(node.name)
            elif isinstance(node, (ast.Assign, ast.AnnAssign)):
                targets = node.targets if isinstance(node, ast.Assign) else [node.target]
                defined[name] |= {x.id for target in targets for x in ast.walk(target) if isinstance(x, ast.Name)}
    defined[()].add("__version__")  # behind a try
    wrong = [x for x in IMPORTS if x.name != "*" and x.module in defined and x.name not in defined[x.module]]
    wrong = [x for x in wrong if x.by != ("cli",)]  # `hf_gateau.cli:main` is what the installed command calls
    assert not wrong, "\n".join(map(str, wrong))


def test_no_private_name_is_taken_from_another_room():
    wrong = [x for x in IMPORTS if x.name.startswith("_") and x.name != "__version__" and x.by[:1] != x.module[:1]]
    assert not wrong, "\n".join(map(str, wrong))


def test_no_file_is_long():
    lengths = {file.relative_to(PACKAGE): len(file.read_text().splitlines()) for file in MODULES.values()}
    assert {str(file): n for file, n in lengths.items() if n > (150 if file.parts[0] == "cli" else 450)} == {}


def test_importing_the_package_imports_no_heavy_library():
    code = (
        "import hf_gateau, sys; print([x for x in ('torch', 'transformers', 'datasets', 'numpy') if x in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"
