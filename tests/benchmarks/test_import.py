"""Every benchmark can be imported, and says what it takes: what the package has renamed shows here."""

import importlib
import pkgutil

import pytest

import benchmarks


# Each needs a library of an extra
EXTRAS = {"figure": "matplotlib", "needle": "matplotlib"}


@pytest.mark.parametrize("name", sorted(module.name for module in pkgutil.iter_modules(benchmarks.__path__)))
def test_it_can_be_imported(name):
    if name in EXTRAS:
        pytest.importorskip(EXTRAS[name])
    module = importlib.import_module(f"benchmarks.{name}")
    assert module.__doc__
