"""What `datasets` keeps of a scorer is not taken for what another would give: its hash sees weights, tokenizer, chat template,
adapters and the code of `find_context`, wherever the files are named; and stays the same in every process."""

import importlib
import json
import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from datasets.fingerprint import Hasher
from safetensors.torch import load_file, save_file

from hf_gateau import EmbeddingScorer, GateauScorer, ResponseScorer, RewardScorer, WindowScorer, measure_together
from hf_gateau.settings import function_digest
from tests.measured import SETTINGS, assert_same
from tests.tiny_models import make_classifier, make_model, make_sentence_model


@pytest.fixture(scope="module")
def made(tmp_path_factory, tokenizer, rows) -> dict[str, str]:
    """A model of every kind that a scorer names, and an adapter of the first."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    folder = tmp_path_factory.mktemp("models")
    long = make_model("llama", folder / "long", tokenizer)
    settings = LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False)
    get_peft_model(AutoModelForCausalLM.from_pretrained(long), settings).save_pretrained(folder / "adapter")
    tokenizer.save_pretrained(folder / "tokenizer")
    return {
        "long": long,
        "adapter": str(folder / "adapter"),
        "tokenizer": str(folder / "tokenizer"),
        "reward": make_classifier(folder / "reward", tokenizer),
        "sentences": make_sentence_model(folder / "sentences", rows),
    }


@pytest.fixture()
def models(made, tmp_path) -> dict[str, str]:
    """Copies that a test may change."""
    return {name: shutil.copytree(folder, str(tmp_path / name)) for name, folder in made.items()}


HOW = {"device": "cpu", "store": False}
SCORERS = {
    "pair": lambda m: GateauScorer(long_model=m["long"], **SETTINGS, store=False),
    "two models": lambda m: GateauScorer(long_model=m["tokenizer"], short_model=m["long"], store=False),
    "adapter": lambda m: GateauScorer(long_model=m["long"], long_adapter=m["adapter"], **SETTINGS, store=False),
    "tokenizer": lambda m: GateauScorer(long_model=m["long"], tokenizer=m["tokenizer"], **SETTINGS, store=False),
    "response": lambda m: ResponseScorer(m["long"], **HOW),
    "response, adapter": lambda m: ResponseScorer(m["long"], adapter=m["adapter"], **HOW),
    "response, tokenizer": lambda m: ResponseScorer(m["long"], tokenizer=m["tokenizer"], **HOW),
    "windows": lambda m: WindowScorer(m["long"], windows=(20, 40), **HOW),
    "reward": lambda m: RewardScorer(m["reward"], **HOW),
    "embedding": lambda m: EmbeddingScorer(m["sentences"], **HOW),
}
# scorer -> the files that it must see a change to
SEEN = {
    "pair": ["long/model.safetensors", "long/config.json", "long/tokenizer.json", "long/chat_template.jinja"],
    "two models": ["long/model.safetensors", "tokenizer/tokenizer_config.json"],
    "adapter": ["adapter/adapter_model.safetensors", "adapter/adapter_config.json", "long/model.safetensors"],
    "tokenizer": ["tokenizer/tokenizer.json", "tokenizer/chat_template.jinja"],
    "response": ["long/model.safetensors", "long/config.json", "long/tokenizer.json", "long/chat_template.jinja"],
    "response, adapter": ["adapter/adapter_model.safetensors"],
    "windows": ["long/model.safetensors", "long/config.json", "long/tokenizer.json", "long/chat_template.jinja"],
    "response, tokenizer": ["tokenizer/tokenizer.json", "tokenizer/chat_template.jinja"],
    "reward": [
        "reward/model.safetensors",
        "reward/config.json",
        "reward/tokenizer.json",
        "reward/chat_template.jinja",
    ],
    "embedding": ["sentences/model.safetensors", "sentences/tokenizer.json", "sentences/1_Pooling/config.json"],
}
UNSEEN = ["long/generation_config.json", "long/README.md", "reward/trainer_state.json", "adapter/README.md"]


def touched(models: dict[str, str], file: str) -> None:
    """The file with another byte; made if it is not there."""
    name, _, rest = file.partition("/")
    path = Path(models[name]) / rest
    if path.suffix == ".safetensors":
        weights = load_file(path)
        first = min(weights)
        weights[first] += torch.linspace(-1, 1, weights[first].numel()).view_as(weights[first])
        save_file(weights, path, {"format": "pt"})
    else:
        path.write_text((path.read_text() if path.exists() else "") + "\n")


@pytest.mark.parametrize("kind", SCORERS)
def test_the_hash_sees_every_file_that_a_number_rests_on(kind, models):
    scorer = SCORERS[kind](models)
    found = [Hasher.hash(scorer)]
    for file in SEEN[kind]:
        touched(models, file)
        found.append(Hasher.hash(scorer))
        assert found[-1] == Hasher.hash(SCORERS[kind](models)) == Hasher.hash(pickle.loads(pickle.dumps(scorer)))
    assert len(set(found)) == 1 + len(SEEN[kind])
    for file in UNSEEN:
        touched(models, file)
    assert Hasher.hash(scorer) == found[-1] and len(pickle.dumps(scorer)) < 2_000


@pytest.mark.parametrize("kind", ["pair", "response", "windows", "reward", "embedding"])
def test_map_over_changed_weights_gives_their_numbers(kind, models, rows):
    """The same scorer, the same rows, the same folder: what a scorer made afresh gives without the cache of `datasets`."""
    ds, scorer = Dataset.from_list(rows[:2]), SCORERS[kind](models)
    before = ds.map(scorer, batched=True)
    touched(models, SEEN[kind][0])
    after = ds.map(scorer, batched=True)
    fresh = ds.map(SCORERS[kind](models), batched=True, load_from_cache_file=False)
    column = getattr(scorer, "column", "gateau_ppl_long")
    assert after[column] == fresh[column] != before[column]
    if kind == "pair":
        assert after["gateau_key"] == fresh["gateau_key"] != before["gateau_key"]


@pytest.mark.parametrize("kind", ["response", "reward"])
def test_values_in_the_store_are_of_one_chat_template(kind, models, rows, tmp_path):
    """They are kept by what a row says, so the template is part of what measures."""
    make, where = {"response": (ResponseScorer, "long"), "reward": (RewardScorer, "reward")}[kind]

    def values(store) -> list:
        scorer = make(models[where], device="cpu", store=store)
        return [row[scorer.column] for row in scorer.measure_rows(rows[:2])]

    before = values(tmp_path / "s.sqlite")
    template = Path(models[where]) / "chat_template.jinja"
    text = "{% for m in messages %}{{ m['content'] + ' ' + m['content'] }}{% endfor %}"
    template.write_text(text)
    assert values(tmp_path / "s.sqlite") == values(False) != before


def test_a_survey_is_of_one_chat_template(models, rows, tmp_path):
    """What `datasets` kept of the rows' layout is not taken for that of another template."""
    rows, settings = rows[:2], {**SETTINGS, "long_model": models["long"]}
    Dataset.from_list(rows).to_parquet(tmp_path / "rows.parquet")
    ds = Dataset.from_parquet(str(tmp_path / "rows.parquet"), cache_dir=str(tmp_path))
    scorer = GateauScorer(**settings, store=tmp_path / "s.sqlite")
    before = measure_together(ds, scorer)
    template = Path(models["long"]) / "chat_template.jinja"
    template.write_text("{{ bos_token }}" + template.read_text())
    after = measure_together(ds, scorer)
    assert_same(after, [GateauScorer(**settings, store=False)(row) for row in rows])
    before, after = before["gateau_key"], after["gateau_key"]
    assert [x.split(":")[0] for x in before] == [x.split(":")[0] for x in after] and not {*before} & {*after}


def test_weights_that_change_under_way_are_refused(models, rows):
    scorer = SCORERS["pair"](models)
    scorer.describe()
    touched(models, "long/model.safetensors")
    with pytest.raises(ValueError, match="have changed since this run began; start it again"):
        scorer(rows[0])
    reward = SCORERS["reward"](models)
    _ = reward.config_key
    touched(models, "reward/model.safetensors")
    with pytest.raises(ValueError, match="have changed since this run began; start it again"):
        reward(rows[0])


def test_overrides_that_datasets_cannot_see_are_told(models, rows, caplog):
    GateauScorer(store=False)(rows[0], long_model=models["long"], **SETTINGS, store=False)
    assert "does not see when the files of long_model change" in caplog.text


@pytest.mark.parametrize("kind", ["pair", "response", "windows", "reward", "embedding"])
def test_models_out_of_reach_hash_by_their_names(kind):
    """Offline, and nothing of them here: nothing fails before a row is measured."""
    names = dict.fromkeys(("long", "reward", "sentences"), "nobody/nothing")
    found = {Hasher.hash(SCORERS[kind](names)) for _ in "ab"}
    assert len(found) == 1 and found != {Hasher.hash(SCORERS[kind](dict.fromkeys(names, "nobody/else")))}
    assert Hasher.hash(SCORERS[kind](dict.fromkeys(names, "./nowhere/at all")))


FIND = """
import re
from functools import partial
BORDER, PATTERN = {border!r}, re.compile({pattern!r})
def helper(text):
    return {helper}
class Finder:
    def __call__(self, text):
        return 0, len(text) // {part}
def inner(text, border=BORDER):
    kept = {{"a", "b", "c", {word!r}}}
    return (0, helper(text)) if text in {{"a", {word!r}, "b"}} else (0, PATTERN.search(text).start())
find, other = partial(inner, border="x"), Finder()
"""
AS_IT_IS = {"border": "x", "pattern": "a", "helper": "len(text)", "part": 2, "word": "w"}
EDITS = [{"pattern": "b"}, {"helper": "len(text) - 1"}, {"word": "v"}, {"border": "y"}]
DIGESTS = """
import importlib, json, sys
sys.path.insert(0, sys.argv[1])
from hf_gateau.settings import function_digest
modules = [importlib.import_module(name) for name in sys.argv[2:]]
print(json.dumps([[function_digest(x) for x in (m.inner, m.find, m.other)] for m in modules]))
"""


def test_the_code_of_find_context_is_seen(tmp_path, monkeypatch):
    """With what it calls and the constants that it uses, in processes whose sets have other orders."""
    variants = {"find_0": {}, "find_1": {}, "find_2": {"part": 3}} | {f"find_{i}": x for i, x in enumerate(EDITS, 3)}
    for name, edit in variants.items():
        (tmp_path / f"{name}.py").write_text(FIND.format(**AS_IT_IS | edit))
    command = [sys.executable, "-B", "-c", DIGESTS, str(tmp_path), *variants]
    found, again = (
        json.loads(subprocess.run(command, env={**os.environ, "PYTHONHASHSEED": seed}, capture_output=True).stdout)
        for seed in "12"
    )
    assert found == again and found[0] == found[1] and found[0][0] == found[0][1]
    assert found[2][:2] == found[0][:2] and found[2][2] != found[0][2]
    assert all(x[0] != found[0][0] and x[1] != found[0][1] and x[2] == found[0][2] for x in found[3:])
    monkeypatch.syspath_prepend(str(tmp_path))
    hashes = set()
    for name in ("find_0", "find_3"):
        sys.modules["my_find"] = importlib.import_module(name)
        hashes.add(Hasher.hash(GateauScorer(long_model="nobody/nothing", find_context="my_find:inner", store=False)))
    assert len(hashes) == 2


def test_functions_without_code_have_a_digest():
    assert function_digest(len) == function_digest(print)
    assert function_digest(lambda text: 1) != function_digest(lambda text: 2)
