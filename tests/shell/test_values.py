"""Values of YAML files for settings of every type."""

import pytest

from hf_gateau.shell.values import fitting


pytestmark = pytest.mark.quick

TAKEN = [
    (3, int | None, 3),
    (3.0, int, 3),
    ("3", int, 3),
    (None, int | None, None),
    ("1e-5", float, 1e-5),  # YAML takes it for a text
    (2, float, 2),
    ("no", bool, False),
    (True, bool | None, True),
    (1234567, str, "1234567"),  # a commit may look like a number
    ([1, "2"], list[int], [1, 2]),
    ([0.5], list[float] | None, [0.5]),
    ("none", None | str | list[str], "none"),
    ({"a": 1}, dict | str | None, {"a": 1}),  # no check is known: the setting's own
]
REFUSED = [
    (2.5, int, "x takes an integer, got 2.5"),
    (float("inf"), int, "x takes an integer, got inf"),
    (True, int, "x takes an integer, got True"),
    (None, int, "x takes an integer, got null"),
    ("many", float | None, "x takes a number, got 'many'"),
    ([1], float, "x takes a number, got a list"),
    ({"a": 1}, str, "x takes text, got a mapping"),
    (False, str | None, "x takes text, got False; put it in quotes"),
    (2, bool, "x takes true or false, got 2"),
    (3, list[int], "x takes a list, got 3"),
    (["a"], list[float], "x takes a number, got 'a'"),
]


@pytest.mark.parametrize("value, hint, expected", TAKEN)
def test_taken(value, hint, expected):
    found = fitting("x", value, hint)
    assert found == expected and type(found) is type(expected)


@pytest.mark.parametrize("value, hint, message", REFUSED)
def test_refused(value, hint, message):
    with pytest.raises(ValueError) as error:
        fitting("x", value, hint)
    assert message in str(error.value)
