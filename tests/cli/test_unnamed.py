"""The paper's pair is fetched by nobody's mistake."""

import io
import json
from types import SimpleNamespace

import pytest

from hf_gateau.cli import main
from hf_gateau.cli.unnamed import agree_to_unnamed_pair
from hf_gateau.models import unnamed
from hf_gateau.models.config import PAPER_LONG_MODEL, PAPER_SHORT_MODEL, ModelPairConfig
from hf_gateau.models.loading import load_config
from hf_gateau.models.unnamed import is_cached, unnamed_pair


pytestmark = pytest.mark.quick


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """An empty cache, and a Hub that does not answer."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.file_download.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


def put(cache, name: str, files: dict[str, str]) -> None:
    folder = cache / f"models--{name.replace('/', '--')}"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text("c" * 40)
    for file, text in files.items():
        place = folder / "snapshots" / ("c" * 40) / file
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(text)


@pytest.fixture()
def data(rows, tmp_path):
    (tmp_path / "rows.jsonl").write_text(json.dumps(rows[0]) + "\n")
    return str(tmp_path / "rows.jsonl")


@pytest.mark.parametrize("command", ["score", "plan"])
def test_elsewhere_than_on_a_terminal_it_ends(command, data, tmp_path, capsys):
    output = ["-o", str(tmp_path / "m.parquet")] if command == "score" else []
    assert main([command, data, *output]) == 2
    error = capsys.readouterr().err
    assert "No long_model is named, so the paper's pair is taken" in error and "--yes" in error
    for told in (PAPER_LONG_MODEL, PAPER_SHORT_MODEL, "6.7 billion parameters, about 13.5 GB", str(tmp_path / "hub")):
        assert told in error


def test_with_yes_it_goes_on_and_the_failure_names_the_model(data, tmp_path, capsys):
    assert main(["score", data, "-o", str(tmp_path / "m.parquet"), "--yes"]) == 2
    error = capsys.readouterr().err
    assert "the paper's pair is taken" in error and error.count(PAPER_LONG_MODEL) >= 2


@pytest.mark.parametrize(
    "answer, agreed", [("y\n", True), ("Yes\n", True), ("n\n", False), ("\n", False), ("", False)]
)
def test_on_a_terminal_it_is_asked(answer, agreed, monkeypatch, capsys):
    terminal = io.StringIO(answer)
    terminal.isatty = lambda: True
    monkeypatch.setattr("sys.stdin", terminal)
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    if agreed:
        agree_to_unnamed_pair(ModelPairConfig(), yes=False)
    else:
        with pytest.raises(ValueError, match="Nothing was fetched; name a model with --long_model"):
            agree_to_unnamed_pair(ModelPairConfig(), yes=False)
    assert capsys.readouterr().err.endswith("Go on? [y/N] ")


def test_named_or_cached_nothing_is_asked(cache):
    assert unnamed_pair(ModelPairConfig(long_model=PAPER_LONG_MODEL, short_model=PAPER_SHORT_MODEL)) is None
    assert unnamed_pair(ModelPairConfig(**ModelPairConfig().given())) is None
    index = json.dumps({"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}})
    put(cache, PAPER_LONG_MODEL, {"model.safetensors.index.json": index, "model-1.safetensors": ""})
    assert not is_cached(PAPER_LONG_MODEL), "a file is missing"
    (cache / f"models--{PAPER_LONG_MODEL.replace('/', '--')}/snapshots/{'c' * 40}/model-2.safetensors").touch()
    assert is_cached(PAPER_LONG_MODEL) and not is_cached(PAPER_SHORT_MODEL)
    line = unnamed_pair(ModelPairConfig())
    assert PAPER_LONG_MODEL not in line and PAPER_SHORT_MODEL in line
    assert unnamed_pair(ModelPairConfig(short_window=64)) is None, "the long model alone"
    put(cache, PAPER_SHORT_MODEL, {"pytorch_model.bin": ""})
    assert unnamed_pair(ModelPairConfig()) is None


def test_the_hub_tells_the_size(monkeypatch):
    files = [("a.safetensors", 9e9), ("b.safetensors", 4e9), ("pytorch_model.bin", 50e9), ("README.md", None)]
    about = SimpleNamespace(siblings=[SimpleNamespace(rfilename=name, size=size) for name, size in files])
    monkeypatch.setattr("huggingface_hub.HfApi.model_info", lambda *_, **__: about)
    assert unnamed._size("me/model") == "6.7 billion parameters, 13.0 GB"


def test_a_model_that_cannot_be_reached_is_named():
    with pytest.raises(OSError, match="nobody/nothing"):
        load_config("nobody/nothing", None, False)
