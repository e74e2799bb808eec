"""What a key is made of, as `hf_gateau/store/keys.py` says it: every ingredient changes its part of the key, all else none."""

import json
import os
import shutil
from pathlib import Path

import pytest
from datasets import Dataset
from safetensors.torch import load_file, save_file

from hf_gateau import EmbeddingScorer, GateauScorer, ResponseScorer, RewardScorer, WindowScorer
from hf_gateau.measuring import runtime
from tests.measured import SETTINGS
from tests.tiny_models import make_classifier, make_model, make_sentence_model


@pytest.fixture(scope="module")
def made(tmp_path_factory, tokenizer, rows) -> dict[str, str]:
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    folder = tmp_path_factory.mktemp("models")
    long = make_model("llama", folder / "long", tokenizer)
    settings = LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False)
    get_peft_model(AutoModelForCausalLM.from_pretrained(long), settings).save_pretrained(folder / "adapter")
    make_model("llama", folder / "short", tokenizer, scale=0.5)
    make_classifier(folder / "reward", tokenizer)
    shutil.move(make_sentence_model(folder / "made", rows), folder / "sentences")
    return {name: str(folder / name) for name in ("long", "short", "adapter", "reward", "sentences")}


@pytest.fixture()
def models(made, tmp_path) -> dict[str, str]:
    """Copies that a change may be made to."""
    return {name: shutil.copytree(folder, str(tmp_path / name)) for name, folder in made.items()}


def weights(folder: str, tensor: int = 0, file: str = "model.safetensors") -> None:
    """One element of one tensor."""
    found = load_file(Path(folder) / file)
    found[sorted(found)[tensor]].view(-1)[-1] += 1
    save_file(found, Path(folder) / file, {"format": "pt"})


def edit(folder: str, file: str, **changes) -> None:
    path = Path(folder) / file
    path.write_text(json.dumps(json.loads(path.read_text() if path.exists() else "{}") | changes))


def template(folder: str, before: str = "{{ bos_token }}") -> None:
    path = Path(folder) / "chat_template.jinja"
    path.write_text(before + path.read_text())


def other_words(folder: str) -> None:
    """A tokenizer that cuts the same text otherwise, with the same vocabulary."""
    edit(folder, "tokenizer.json", normalizer={"type": "Replace", "pattern": {"String": " the "}, "content": " "})


def remote_code(folder: str) -> None:
    edit(folder, "config.json", auto_map={"AutoModelForCausalLM": "mine.Model"})
    (Path(folder) / "mine.py").write_text("import this")


def half(text: str) -> tuple[int, int]:
    return 0, text.index(" . ", len(text) // 2) + 2


YARN = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 2.0, "original_max_position_embeddings": 2048}
# What -> settings, or a change to the models' folders
SETTING = {
    "weights of the long model": lambda m: weights(m["long"]),
    "its last tensor": lambda m: weights(m["long"], -1),
    "its RoPE scaling": lambda m: edit(m["long"], "config.json", rope_parameters=YARN),
    "its own code": lambda m: remote_code(m["long"]),
    "an adapter": lambda m: {"long_adapter": m["adapter"]},
    "a short model": lambda m: {"short_model": m["short"]},
    "short_window": lambda m: {"short_window": 100},
    "short_rope_scale": lambda m: {"short_rope_scale": 10.0},
    "short_pass": lambda m: {"short_pass": "reuse"},
    "dtype": lambda m: {"dtype": "bfloat16"},
    "8 bit": lambda m: {"load_in_8bit": True},
    "4 bit": lambda m: {"load_in_4bit": True},
    "segment_length": lambda m: {"segment_length": 32},
    "segment_stride": lambda m: {"segment_stride": 2},
}
TOKENS = {
    "the tokenizer": lambda m: other_words(m["long"]),
    "the chat template": lambda m: template(m["long"]),
    "another model's tokenizer": lambda m: [other_words(m["short"]), {"tokenizer": m["short"]}][1],
    "find_context": lambda m: {"find_context": half},
    "max_length": lambda m: {"max_length": 500},
}
BOTH = {"response_head": lambda m: {"response_head": 3}}
NEITHER = {
    "nothing": lambda m: None,
    "a generation config": lambda m: edit(m["long"], "generation_config.json", temperature=0.1),
    "other files": lambda m: edit(m["long"], "trainer_state.json", a=1),
    "batch_tokens": lambda m: {"batch_tokens": 7},
    "device": lambda m: {"device": "meta"},
    "device_map": lambda m: {"device": "auto", "device_map": {"": "cpu"}},
    "attn_implementation": lambda m: {"attn_implementation": "eager"},
    "on_error": lambda m: {"on_error": "raise"},
    "dtype as it is": lambda m: {"dtype": "float32"},
    "the same model by another path": lambda m: {"long_model": shutil.copytree(m["long"], m["long"] + "-2")},
    "the same model by a link": lambda m: [os.symlink(m["long"], m["long"] + "-3"), {"long_model": m["long"] + "-3"}][
        1
    ],
    "its own tokenizer": lambda m: {"tokenizer": m["long"]},
    "leave to run code where there is none": lambda m: {"trust_remote_code": True},
}
CHANGES = SETTING | TOKENS | BOTH | NEITHER


def parts(models: dict, settings: dict | None, row: dict) -> tuple[str, str, str]:
    """The two parts of a row's key, and the key of the layout. Loads no weights."""
    scorer = GateauScorer(**{"long_model": models["long"], **SETTINGS, "store": False, **(settings or {})})
    about = scorer.describe()
    return about["config_key"], scorer.start().lay_out(row).key, about["layout_key"]


@pytest.mark.parametrize("what", CHANGES)
def test_every_ingredient_of_a_row_s_key(what, models, made, rows):
    before, after = parts(made, None, rows[0]), parts(models, CHANGES[what](models), rows[0])
    assert (before[0] != after[0]) == (what in SETTING | BOTH)
    assert (before[1] != after[1]) == (what in TOKENS | BOTH)
    if (
        what not in SETTING
    ):  # a model's configuration names its tokenizer's class, so another layout is thought possible
        assert (before[2] != after[2]) == (what in TOKENS | BOTH)


@pytest.mark.parametrize("which", ["short_adapter", "short_model's weights", "measuring", "leave to run code"])
def test_ingredients_that_need_others_beside_them(which, models, rows, monkeypatch):
    settings = {"short_model": models["short"]}
    if which == "leave to run code":  # where the library has the architecture too, what is run is the user's choice
        settings = {}
        remote_code(models["long"])
    before = parts(models, settings, rows[0])
    if which == "short_adapter":
        settings["short_adapter"] = models["adapter"]
    elif which == "measuring":
        monkeypatch.setattr(runtime, "MEASURING_VERSION", -1)
    elif which == "leave to run code":
        settings["trust_remote_code"] = True
    else:
        weights(models["short"])
    after = parts(models, settings, rows[0])
    assert before[0] != after[0] and before[1:] == after[1:]


def test_weights_of_an_adapter(models, rows):
    settings = {"long_adapter": models["adapter"]}
    before = parts(models, settings, rows[0])
    weights(models["adapter"], file="adapter_model.safetensors")
    assert parts(models, settings, rows[0])[0] != before[0]


ASKED = ("user", "assistant")
ROWS = {
    "a word of the response": lambda row: row["messages"][1].update(content="nadia ."),
    "an earlier turn": lambda row: row["messages"].__setitem__(slice(0), [{"role": x, "content": "a"} for x in ASKED]),
    "a word of the context": lambda row: row["messages"][0].update(content="the " + row["messages"][0]["content"]),
}
SAME_ROWS = {
    "its id": lambda row: row.update(id="other"),
    "columns that are not read": lambda row: row.update(source="law", weight=2.0),
    "a key that is null": lambda row: row["messages"][0].update(name=None),
}


@pytest.mark.parametrize("what", ROWS | SAME_ROWS)
def test_what_a_row_says(what, scorer, rows):
    look = GateauScorer(**scorer._settings | {"max_length": 4096}).start()
    row = json.loads(json.dumps(rows[0]))
    (ROWS | SAME_ROWS)[what](row)
    assert (look.lay_out(row).key != look.lay_out(rows[0]).key) == (what in ROWS)


def test_order_and_company_of_rows_change_no_key(scorer, rows):
    keys = [row["gateau_key"] for row in map(scorer, rows[:3])]
    ds = Dataset.from_list(rows[2::-1]).map(scorer, batched=True)
    assert ds["gateau_key"][:] == keys[::-1]


# Values of other scorers


VALUES = {
    "response": lambda m, **x: ResponseScorer(m["long"], device="cpu", store=False, **x),
    "windows": lambda m, **x: WindowScorer(m["long"], device="cpu", store=False, **x),
    "reward": lambda m, **x: RewardScorer(m["reward"], device="cpu", store=False, **x),
    "embedding": lambda m, **x: EmbeddingScorer(m["sentences"], device="cpu", store=False, **x),
}
# (scorer, what) -> likewise; all of these change its settings' key
VALUE_CHANGES = {
    ("response", "weights"): lambda m: weights(m["long"]),
    ("response", "an adapter"): lambda m: {"adapter": m["adapter"]},
    ("response", "the tokenizer"): lambda m: other_words(m["long"]),
    ("response", "the chat template"): lambda m: template(m["long"]),
    ("response", "another tokenizer"): lambda m: [template(m["short"]), {"tokenizer": m["short"]}][1],
    ("response", "response_head"): lambda m: {"response_head": 3},
    ("response", "dtype"): lambda m: {"dtype": "bfloat16"},
    ("response", "8 bit"): lambda m: {"load_in_8bit": True},
    ("windows", "weights"): lambda m: weights(m["long"]),
    ("windows", "an adapter"): lambda m: {"adapter": m["adapter"]},
    ("windows", "the chat template"): lambda m: template(m["long"]),
    ("windows", "another tokenizer"): lambda m: [template(m["short"]), {"tokenizer": m["short"]}][1],
    ("windows", "response_head"): lambda m: {"response_head": 3},
    ("windows", "max_length"): lambda m: {"max_length": 100},
    ("windows", "windows"): lambda m: {"windows": (20, 40)},
    ("windows", "dtype"): lambda m: {"dtype": "bfloat16"},
    ("reward", "weights"): lambda m: weights(m["reward"]),
    ("reward", "the tokenizer"): lambda m: other_words(m["reward"]),
    ("reward", "the chat template"): lambda m: template(m["reward"]),
    ("reward", "max_length"): lambda m: {"max_length": 100},
    ("reward", "dtype"): lambda m: {"dtype": "bfloat16"},
    ("embedding", "weights"): lambda m: weights(m["sentences"]),
    ("embedding", "the tokenizer"): lambda m: edit(m["sentences"], "tokenizer.json", truncation=None),
    ("embedding", "pooling"): lambda m: edit(m["sentences"], "1_Pooling/config.json", pooling_mode="cls"),
    ("embedding", "prompts"): lambda m: edit(
        m["sentences"], "config_sentence_transformers.json", prompts={"a": "b"}, default_prompt_name="a"
    ),
    ("embedding", "embed_context"): lambda m: {"embed_context": True},
    ("embedding", "dtype"): lambda m: {"dtype": "bfloat16"},
}


@pytest.mark.parametrize("kind, what", VALUE_CHANGES)
def test_every_ingredient_of_a_value_s_key(kind, what, models, made):
    changes = VALUE_CHANGES[kind, what](models) or {}
    assert VALUES[kind](models, **changes).config_key != VALUES[kind](made).config_key


@pytest.mark.parametrize("kind", VALUES)
def test_what_changes_no_value_changes_no_key(kind, models, made, rows):
    for folder in models.values():
        (Path(folder) / "README.md").write_text("other words")
        (Path(folder) / "training_args.bin").write_bytes(b"other settings")
    one, other = VALUES[kind](made), VALUES[kind](models, batch_tokens=9)
    assert one.config_key == other.config_key
    assert one.key_of(rows[0]) == other.key_of({**rows[0], "id": 3, "more": "columns"}) != one.key_of(rows[1])
    placed = VALUES[kind](made, find_context=half)
    assert placed.config_key == one.config_key and placed.key_of(rows[0]) != one.key_of(rows[0])
