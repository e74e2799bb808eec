"""What setup.py declares: every distribution that the package imports, and every extra where it is needed."""

import ast
import re
import runpy
import subprocess
import sys
import types
from collections.abc import Iterator

import pytest

from tests.paths import ROOT


pytestmark = pytest.mark.quick

PACKAGE = ROOT / "hf_gateau"
# Module -> its distribution, where the names differ by more than a hyphen
DISTRIBUTIONS = {"markdown_it": "markdown-it-py", "yaml": "pyyaml", "sklearn": "scikit-learn"}
# vLLM depends on one exact torch, and torch for GPUs on one exact Triton: an extra would decide about it; messages say what to do
NOT_OURS = {"vllm", "triton"}
KERNELS = "hf_gateau/models/key_mass.py"  # written in Triton, and read where somebody asks for them
FORM = re.compile(r"hf-gateau\[(\w+)\]")


@pytest.fixture()
def declared(monkeypatch) -> dict:
    """What setup.py gives to `setup`."""
    given = {}
    fake = types.ModuleType("setuptools")
    fake.setup, fake.find_packages = lambda **kwargs: given.update(kwargs), lambda **kwargs: []
    monkeypatch.setitem(sys.modules, "setuptools", fake)
    monkeypatch.chdir(ROOT)
    runpy.run_path("setup.py")
    return given


def names(requirements: list[str]) -> set[str]:
    return {re.match(r"[\w.-]+", x)[0].lower() for x in requirements}


def imported() -> Iterator[tuple[str, str, bool]]:
    """Distribution, file, and whether importing the file imports it."""
    for file in PACKAGE.rglob("*.py"):
        tree = ast.parse(file.read_text(encoding="utf-8"))
        inside = {x for f in ast.walk(tree) if isinstance(f, (ast.FunctionDef, ast.If)) for x in ast.walk(f)}
        for node in ast.walk(tree):
            modules = [x.name for x in node.names] if isinstance(node, ast.Import) else []
            modules += [node.module] if isinstance(node, ast.ImportFrom) and node.level == 0 else []
            for module in (x.split(".")[0] for x in modules):
                if module not in sys.stdlib_module_names and module != PACKAGE.name:
                    name = DISTRIBUTIONS.get(module, module.replace("_", "-"))
                    yield name, str(file.relative_to(ROOT)), node not in inside


def test_every_import_is_declared(declared):
    needed, extras = names(declared["install_requires"]), declared["extras_require"]
    optional = set().union(*(names(x) for extra, x in extras.items() if extra != "test"))
    found = list(imported())
    assert len({name for name, *_ in found}) > 15
    for name, file, is_at_once in found:
        assert name in needed | optional | NOT_OURS, f"{file} imports {name}, which setup.py does not name"
        assert name in needed or not is_at_once or file == KERNELS, (
            f"{file} imports {name} at once, and only an extra has it"
        )


def test_kernels_are_read_by_nobody_at_once():
    code = "import sys, hf_gateau.measuring.passes, hf_gateau.models.fused; sys.exit('hf_gateau.models.key_mass' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


def test_nothing_is_declared_in_vain(declared):
    used = {name for name, *_ in imported()}
    assert names(declared["install_requires"]) <= used


def test_extras_are_named_in_one_form_that_a_shell_takes(declared):
    """`pip install "hf-gateau[judge]"`: pip finds the installed package, wherever it came from, and adds what is missing."""
    told, extras = set(), set(declared["extras_require"])
    files = [
        *PACKAGE.rglob("*.py"),
        *(ROOT / "docs").glob("*.md"),
        *(ROOT / "recipes").rglob("*.yaml"),
        ROOT / "README.md",
    ]
    for file in files:
        text = file.read_text(encoding="utf-8").replace('\\"', '"')
        for found in FORM.finditer(text):
            assert found[1] in extras, f"{file.name}: there is no extra {found[1]}"
            assert text[: found.start()].endswith('pip install "') and text[found.end()] == '"', (file.name, found[0])
        if file.name == "README.md":
            told = set(FORM.findall(text))
    assert told == extras - {"test"}
