"""The lanes: every room has tests, some of them quick; and what the lanes rest on is there."""

import ast
from pathlib import Path

import pytest

from tests.conftest import LONG_FILES, TESTS
from tests.test_rooms import ROOMS


pytestmark = pytest.mark.quick


def has_mark(node: ast.AST, name: str) -> bool:
    """Whether `pytest.mark.<name>` stands somewhere in it."""
    return any(ast.unparse(x) == f"pytest.mark.{name}" for x in ast.walk(node) if isinstance(x, ast.Attribute))


def num_quick(file: Path) -> int:
    """How many of a file's test functions have the mark, themselves or as `pytestmark`."""
    body = ast.parse(file.read_text(encoding="utf-8")).body
    tests = [x for x in body if isinstance(x, ast.FunctionDef) and x.name.startswith("test_")]
    tests = [x for x in tests if not any(has_mark(mark, "slow") for mark in x.decorator_list)]
    if any(
        isinstance(x, ast.Assign) and ast.unparse(x.targets[0]) == "pytestmark" and has_mark(x.value, "quick")
        for x in body
    ):
        return len(tests)
    return sum(any(has_mark(mark, "quick") for mark in test.decorator_list) for test in tests)


@pytest.mark.parametrize("room", ROOMS)
def test_every_room_has_quick_tests(room):
    files = sorted((TESTS / room).glob("test_*.py"))
    assert files, f"tests/{room} has no test_*.py"
    assert sum(map(num_quick, files)) >= 3, f"mark some tests of tests/{room} with pytest.mark.quick"


def test_files_that_are_begun_first_are_there():
    assert [name for name in LONG_FILES if not (TESTS / name).is_file()] == []
