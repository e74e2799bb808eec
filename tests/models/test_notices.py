"""What is said while somebody waits, and what is not imported before a row needs a model."""

import json
import subprocess
import sys
import time

import datasets
import pytest

from hf_gateau import GateauScorer
from hf_gateau.models.notices import announced, are_shown
from hf_gateau.models.weights import AutoModelForCausalLM
from tests.architectures import tiny_model as tiny_model_of


pytestmark = pytest.mark.quick


def test_a_line_at_once_or_when_it_takes_long(capsys):
    with announced("Loading this"):
        assert capsys.readouterr().err == "Loading this ...\n"
    with announced("Never said", after=30.0):
        pass
    with announced("Slow", after=0.05):
        said, end = "", time.monotonic() + 30
        while not said.endswith("\n") and time.monotonic() < end:
            time.sleep(0.02)
            said += capsys.readouterr().err
    assert said == "Slow ...\n"
    assert capsys.readouterr() == ("", "")


def test_nothing_is_said_where_bars_are_disabled(capsys):
    datasets.disable_progress_bars()
    try:
        with announced("Loading"):
            assert not are_shown()
    finally:
        datasets.enable_progress_bars()
    assert are_shown() and capsys.readouterr().err == ""


@pytest.mark.parametrize("value, shown", [("1", False), ("true", False), ("0", True), (None, True)])
def test_before_datasets_is_imported_the_environment_tells(value, shown, monkeypatch):
    monkeypatch.delitem(sys.modules, "datasets.utils")
    monkeypatch.delenv("HF_DATASETS_DISABLE_PROGRESS_BARS", raising=False)
    if value is not None:
        monkeypatch.setenv("HF_DATASETS_DISABLE_PROGRESS_BARS", value)
    assert are_shown() is shown


def test_models_that_are_loaded_are_named(tiny_model, rows, capsys):
    scorer = GateauScorer(long_model=tiny_model, short_window=60, device="cpu", store=False)
    scorer.describe()
    assert capsys.readouterr().err == ""
    scorer(rows[0])
    assert f"Loading {tiny_model} ..." in capsys.readouterr().err


def test_where_no_row_needs_a_model_what_runs_one_is_not_imported(tiny_model):
    """torch's compiler alone takes seconds to import, and attention masks bring it along."""
    code = (
        "import json, sys; from hf_gateau import GateauScorer\n"
        "GateauScorer(long_model=sys.argv[1], short_window=60, device='cpu', store=False).describe()\n"
        "print(json.dumps([x for x in sys.modules if x in ('torch._dynamo', 'hf_gateau.models.weights')]))"
    )
    done = subprocess.run([sys.executable, "-c", code, tiny_model], capture_output=True, text=True)
    assert json.loads(done.stdout) == [], done.stderr[-1000:]


def test_a_type_that_is_refused_is_refused_before_its_weights_are_loaded(tmp_path, tokenizer, monkeypatch):
    tiny_model_of("mamba", str(tmp_path), tokenizer)
    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", None)
    with pytest.raises(
        ValueError, match="is a model of type 'mamba', which cannot be measured: .*no attention.*; use another"
    ):
        GateauScorer(long_model=str(tmp_path), short_window=60, device="cpu", store=False).describe()
