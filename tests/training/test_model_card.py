"""The card of a checkpoint: what a real trainer says of itself, nothing invented, and no secret of whoever trained it."""

import html
import json
import logging
import os
import re
from types import SimpleNamespace

import pytest
import yaml
from datasets import Dataset
from huggingface_hub import ModelCard
from transformers import AutoConfig, AutoTokenizer
from trl import SFTConfig, SFTTrainer

from hf_gateau import GateauScorer, GateauSelector, GateauSFTConfig, GateauSFTTrainer, rank
from hf_gateau.hub.dataset_card import dataset_card
from hf_gateau.hub.readme import BEGIN, END, TAGS, license_of, merge_readme, readme_metadata
from hf_gateau.hub.scored import ScoredRecord
from hf_gateau.markdown import inline
from hf_gateau.ranking.selection import SelectionRecord
from hf_gateau.records import attach_record
from hf_gateau.redaction import REMOVED, clear_secrets, known_secrets, redact
from hf_gateau.training.model_card import (
    ModelFacts,
    _results,
    facts_of,
    hyperparameters,
    model_card,
    write_model_card,
)
from hf_gateau.training.selector import SELECTION_FILE
from tests.training import gradients


pytestmark = pytest.mark.quick


TOKEN = "hf_" + "Ab1" * 12  # a token's form, and no token
COMMIT = "a" * 40


@pytest.fixture(scope="module")
def ranked(tiny_model, rows) -> Dataset:
    scorer = GateauScorer(long_model=tiny_model, short_window=200, segment_length=64, device="cpu")
    ds = rank(Dataset.from_list(rows).map(scorer, batched=True))
    attach_record(ds, "origin", {"repo_id": "org/long", "config": "default", "revision": COMMIT})
    attach_record(ds, "measuring", scorer.describe())
    return ds


def trainer_of(model, folder, ds, selector=None, base=None, stock=False, **options):
    """A trainer over ranked rows; `base` is the name that its model is given."""
    options = {"max_length": 1100, "max_steps": 1} | options
    peft_config, evaluated = options.pop("peft_config", None), options.pop("eval_dataset", None)
    tokenizer = AutoTokenizer.from_pretrained(model)
    model = gradients.load(model)
    if base is not None:
        model.name_or_path = model.config._name_or_path = base
    args = gradients.settings(str(folder), **options)
    if stock:
        names = {*options, "use_cpu", "bf16", "report_to", "disable_tqdm", "logging_strategy", "save_strategy"}
        args = SFTConfig(str(folder), **{name: getattr(args, name) for name in names})
    kind = SFTTrainer if stock else GateauSFTTrainer
    callbacks = [selector] if selector is not None else None
    data = {"train_dataset": ds, "eval_dataset": evaluated, "processing_class": tokenizer}
    return kind(model, args=args, callbacks=callbacks, peft_config=peft_config, **data)


def facts_with(trainer, record=None, **options) -> ModelFacts:
    return facts_of(trainer, record, options.get("model_name"), options.get("dataset_name"), options.get("tags", []))


def card_of(facts: ModelFacts) -> str:
    block, metadata = model_card(facts)
    text = merge_readme(None, "Title", block, metadata)
    assert ModelCard(text).data.to_dict() == yaml.safe_load(yaml.safe_dump(metadata))  # the Hub's client agrees
    return text


def cell(text: str, title: str) -> str:
    """The second cell of the table row that begins with a title."""
    rows = [line for line in text.splitlines() if line.startswith(f"| {title} |")]
    assert len(rows) == 1, (title, rows)
    return rows[0].strip("|").split(" | ", 1)[1].strip()


# What was set


def test_hyperparameters_are_what_was_set(tmp_path):
    shown = {"learning_rate": 3e-4, "num_train_epochs": 2, "warmup_steps": 5, "weight_decay": 0.1, "seed": 7}
    shown |= {"optim": "adafactor", "lr_scheduler_type": "cosine", "max_grad_norm": 0.5, "neftune_noise_alpha": 5.0}
    shown |= {
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 4,
        "lr_scheduler_kwargs": {"num_cycles": 1},
    }
    hidden = {
        "hub_model_id": "me/secret", "hub_private_repo": True, "push_to_hub": False, "hub_revision": "x",
        "logging_steps": 3, "logging_first_step": True, "log_level": "debug", "save_steps": 3, "save_total_limit": 1,
        "run_name": "my run", "report_to": "none", "dataloader_num_workers": 2, "dataset_num_proc": 2,
        "resume_from_checkpoint": "/home/user/secret", "ddp_timeout": 5, "disable_tqdm": True, "use_cpu": True,
        "model_init_kwargs": {"dtype": "float32"}, "project": "mine", "trackio_space_id": "me/secret",
        "packing": True, "max_length": 77,
    }  # fmt: skip
    output = str(tmp_path / "secret")
    base = hyperparameters(SFTConfig(output, use_cpu=True, bf16=False))
    assert base.keys() <= {"bf16", "activation_checkpointing"}
    assert hyperparameters(SFTConfig(output, bf16=False, **shown, **hidden)) == base | shown
    ours = {"loss_weighting": "token", "batching": "random", "response_only_loss": False}
    found = hyperparameters(GateauSFTConfig(output, bf16=False, **shown, **hidden, **ours))
    assert found == base | shown  # the strategies have their own lines
    table = model_card(ModelFacts("me/x", "x", "SFTTrainer", hyperparameters=found))[0]
    assert cell(table, "`learning_rate`") == "`0.0003`" and cell(table, "`optim`") == "`adafactor`"
    assert str(tmp_path) not in table and "/home" not in table


def test_defaults_are_not_shown():
    assert hyperparameters(SFTConfig("out", use_cpu=True, bf16=False)).keys() <= {"bf16"}


@pytest.mark.parametrize("name", ["chat_template_path", "fsdp_config"])
def test_hyperparameters_name_no_folder_of_this_machine(name):
    args = SFTConfig("out", use_cpu=True, bf16=False, **{name: "/home/user/secret/file.json"})
    assert "/home/user" not in json.dumps(hyperparameters(args))


def test_results_are_the_numbers_of_the_last_evaluation():
    log = [
        {"loss": 3.0, "step": 1},
        {"eval_loss": 2.0, "eval_old": 1.0, "eval_runtime": 1.0, "step": 1},
        {"loss": 2.0, "step": 2},
        {"eval_loss": 1.5, "eval_mean_token_accuracy": 0.5, "eval_runtime": 9.0, "eval_samples_per_second": 1.0,
         "eval_steps_per_second": 1.0, "eval_num_tokens": 99, "epoch": 2.0, "step": 2, "eval_text": "x"},
        {"train_runtime": 5.0, "train_loss": 2.5},
    ]  # fmt: skip
    assert _results(log) == {"loss": 1.5, "mean_token_accuracy": 0.5}
    assert _results([]) == _results(log[:1]) == {}


# From a real trainer


def test_facts_of_a_trained_selection(ranked, tiny_model, tmp_path, monkeypatch):
    selector = GateauSelector(top_k=4)
    kept = selector.select(ranked)
    options = {"eval_dataset": ranked.select([0, 1]), "eval_strategy": "no", "learning_rate": 1e-4}
    options |= {"logging_strategy": "steps", "logging_steps": 1, "per_device_train_batch_size": 2, "max_steps": 2}
    trainer = trainer_of(
        tiny_model, tmp_path / "my_model", kept, selector, base="org/base", max_length=1100, **options
    )
    monkeypatch.setattr(
        "hf_gateau.training.model_card.commit_of", lambda name, asked: COMMIT if name == "org/base" else None
    )
    trainer.train()
    trainer.evaluate()
    facts = facts_with(trainer, selector.record, tags=["mine"])
    assert (facts.repo_id, facts.model_name, facts.trainer) == ("my_model", "my_model", "GateauSFTTrainer")
    assert (facts.base_model, facts.base_revision, facts.is_adapter) == ("org/base", COMMIT, False)
    assert facts.base_license == {} and facts.datasets == ["org/long"] and facts.evaluated_on == "org/long"
    assert facts.hyperparameters.items() >= {"learning_rate": 1e-4, "max_steps": 2}.items()
    assert facts.results["loss"] == trainer.state.log_history[-1]["eval_loss"]
    assert facts.versions.keys() == {"torch", "transformers", "datasets", "trl", "peft"}
    assert facts.tags == [*trainer._tag_names, "mine"]

    text = card_of(facts)
    place = "https://huggingface.co"
    assert f"[org/base]({place}/org/base) at [`aaaaaaaaaa`]({place}/org/base/tree/{COMMIT})" in text
    assert "trained on the 4 of 12 long samples whose responses need their long context most" in text
    assert (
        cell(text, "source")
        == f"[org/long]({place}/datasets/org/long) at [`aaaaaaaaaa`]({place}/datasets/org/long/tree/{COMMIT})"
    )
    assert cell(text, "kept") == "4 of 12 rows: `top_k 4`"
    assert cell(text, "tokens kept") == f"{selector.record.num_tokens_kept:,}"
    assert cell(text, "fingerprint") == f"`{selector.record.fingerprint}`"
    assert cell(text, "long model").startswith(f"`{os.path.basename(tiny_model)}`, weights `")
    assert cell(text, "short sibling") == "the same model, seeing only the last 200 tokens"
    assert cell(text, "`ranked below the cut`") == str(selector.record.num_ranked - 4)
    scores = selector.record.scores["kept"]
    assert cell(text, "score, kept").split(" | ")[0] == f"{scores['0']:.3f}"
    assert cell(text, "score, kept").split(" | ")[-1] == f"{scores['1']:.3f}"
    losses = [x["loss"] for x in trainer.state.log_history if "loss" in x]
    assert cell(text, "training loss") == f"{losses[0]:.4g} at first, {losses[-1]:.4g} at last"
    assert cell(text, "steps").startswith("2 (") and cell(text, "longest row") == "1,100 tokens"
    assert cell(text, "batch") == "2 rows a step (1 processes x 2 rows x 1 accumulated)"
    assert cell(text, "loss on") == "the assistant's turns alone"
    assert "No licence is named here, since none was found for [org/base]" in text
    assert str(tmp_path) not in text and tiny_model not in text

    data = ModelCard(text).data
    assert (data.base_model, data.base_model_relation, data.library_name) == ("org/base", "finetune", "transformers")
    assert data.datasets == ["org/long"] and data.tags[:3] == TAGS and data.tags[-1] == "mine" and data.license is None
    results = {x.metric_type: x for x in data.eval_results}
    assert {name: x.metric_value for name, x in results.items()} == facts.results
    assert {(x.dataset_type, x.dataset_name, x.task_type) for x in data.eval_results} == {
        ("org/long", "org/long", "text-generation")
    }
    assert data.model_name == "my_model"


@pytest.mark.parametrize(
    "options, expected",
    [
        ({}, {"packing": "not packed", "loss weighting": "every sequence counts the same", "batching": "random"}),
        ({"packing": True}, {"packing": "packed"}),
        ({"batching": "sorted"}, {"batching": "rows of similar length together"}),
        ({"loss_weighting": "token"}, {"loss weighting": "every target token counts the same"}),
        ({"max_length": None}, {"longest row": "not limited"}),
        ({"response_only_loss": False}, {"loss on": None}),
        (
            {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 3},
            {"batch": "6 rows a step (1 processes x 2 rows x 3 accumulated)"},
        ),
    ],
)
def test_strategies_have_their_lines(options, expected, tiny_model, tmp_path):
    rows = Dataset.from_list(gradients.documents(8, gradients.load(tiny_model).config.vocab_size))
    facts = facts_with(trainer_of(tiny_model, tmp_path, rows, **options))
    text = card_of(facts)
    for title, value in expected.items():
        assert (cell(text, title) == value) if value else f"| {title} |" not in text
    assert "## Data, and how it was selected" not in text and "## Results" not in text
    assert "It was trained on" not in text and facts.record is None and facts.datasets == []


def test_stock_trainer_counts_tokens(ranked, tiny_model, tmp_path):
    facts = facts_with(trainer_of(tiny_model, tmp_path, ranked, stock=True))
    assert facts.training["loss weighting"] == "every target token counts the same"
    assert facts.trainer == "SFTTrainer" and facts.training["batching"] == "random" and "loss on" not in facts.training


@pytest.mark.parametrize("base", ["", None, "folder"])
def test_base_without_a_name_on_the_hub(base, ranked, tiny_model, tmp_path):
    folder = tmp_path / "secret" / "my-base"
    folder.mkdir(parents=True)
    name = str(folder) if base == "folder" else base
    facts = facts_with(trainer_of(tiny_model, tmp_path / "out", ranked.select([0]), base=name))
    text = card_of(facts)
    expected = {"": None, None: os.path.basename(tiny_model), "folder": "my-base"}[base]
    assert facts.base_model == expected and facts.base_license == {}
    summary = "a base model that was given without a name" if not expected else f"`{expected}` (a local folder)"
    assert f"A fine-tuned version of {summary}" in text and str(tmp_path) not in text
    assert "base_model" not in readme_metadata(text) and "license" not in readme_metadata(text)
    assert "No licence is named here, since none was found for the base model" in text


@pytest.mark.parametrize(
    "readme, expected",
    [
        ("---\nlicense: llama3\nlicense_link: https://x.y\nother: 1\n---\n", {"license": "llama3", "license_link": "https://x.y"}),
        ("---\nlicense: other\nlicense_name: mine\n---\n", {"license": "other", "license_name": "mine"}),
        ("---\nlicense:\n- mit\n---\n", {}),
        ("---\ntags: [mit]\n---\nLicense: MIT\n", {}),
        ("This is under the MIT license.\n", {}),
        ("---\nlicense: [\n---\n", {}),
        (None, {}),
    ],
)  # fmt: skip
def test_licence_of_a_base_in_a_folder(readme, expected, ranked, tiny_model, tmp_path):
    if readme is not None:
        (tmp_path / "README.md").write_text(readme, encoding="utf-8")
    assert license_of(str(tmp_path), "model") == expected
    block, metadata = model_card(ModelFacts("me/x", "x", "SFTTrainer", base_license=expected))
    assert {name: metadata[name] for name in metadata if name.startswith("license")} == expected
    shown = expected.get("license_name") or expected.get("license")
    assert (f"Licence, as the base model states it: `{shown}`." if shown else "No licence is named here") in block


def test_licence_comes_from_the_base_of_the_trainer(ranked, tiny_model, tmp_path):
    base = tmp_path / "base"
    base.mkdir()
    (base / "README.md").write_text("---\nlicense: gemma\n---\n", encoding="utf-8")
    facts = facts_with(trainer_of(tiny_model, tmp_path / "out", ranked.select([0]), base=str(base)))
    assert facts.base_license == {"license": "gemma"} and ModelCard(card_of(facts)).data.license == "gemma"


def test_an_adapter_is_one(ranked, tiny_model, tmp_path):
    from peft import LoraConfig

    lora = LoraConfig(r=2, target_modules=["q_proj"])
    trainer = trainer_of(tiny_model, tmp_path, ranked.select([0]), base="org/base", peft_config=lora)
    facts = facts_with(trainer)
    assert facts.is_adapter and facts.base_model == "org/base"
    text = card_of(facts)
    data = ModelCard(text).data
    assert (data.library_name, data.base_model, data.base_model_relation) == ("peft", "org/base", "adapter")
    assert "An adapter for [org/base](https://huggingface.co/org/base)" in text


def test_names_that_are_given(ranked, tiny_model, tmp_path):
    trainer = trainer_of(tiny_model, tmp_path, ranked.select([0]), hub_model_id="me/model")
    facts = facts_with(trainer, model_name="My model", dataset_name="org/other", tags=["a", "b"])
    assert facts.repo_id == "me/model" and facts.model_name == "My model" and facts.datasets == ["org/other"]
    text = card_of(facts)
    assert 'model="me/model"' in text and readme_metadata(text)["tags"][-2:] == ["a", "b"]
    assert facts_with(trainer, dataset_name="/home/user/secret.jsonl").datasets == []


def test_what_a_person_decided_is_said(ranked, tmp_path):
    order = ranked.sort("gateau_rank")["gateau_key"]
    (tmp_path / "mine.csv").write_text(f"gateau_key,decision\n{order[0]},drop\n{order[1]},drop\n{order[-1]},keep\n")
    selector = GateauSelector(top_k=3, decisions=tmp_path / "mine.csv")
    selector.select(ranked)
    text = card_of(ModelFacts("me/x", "x", "SFTTrainer", record=selector.record))
    assert cell(text, "decided by a person") == "`a person kept 1 of them and dropped 2`"
    assert cell(text, "kept") == "3 of 12 rows: `top_k 3, decisions mine.csv`"
    assert "| `dropped by a person` | 2 |" in text and str(tmp_path) not in text
    GateauSelector(top_k=3).select(ranked)
    assert "a person" not in card_of(ModelFacts("me/x", "x", "SFTTrainer", record=None))


def test_baselines_are_named_as_such(ranked, tiny_model):
    selector = GateauSelector(top_k=3, method="longest")
    selector.select(ranked)
    text = card_of(ModelFacts("me/x", "x", "SFTTrainer", record=selector.record))
    assert "long samples that the baseline `longest` puts first" in text and "need their long context most" not in text


def test_short_rows_are_said(ranked, rows, tiny_model, tmp_path):
    selector = GateauSelector(top_k=3)
    short = [{"messages": row["messages"]} for row in rows]
    mixed = selector.mix(selector.select(ranked), Dataset.from_list(short), fraction=0.5)
    text = card_of(facts_with(trainer_of(tiny_model, tmp_path, mixed, selector), selector.record))
    assert cell(text, "short data mixed in") == "6 of 12 rows"


def test_results_that_are_no_number_are_written(tmp_path):
    text = card_of(ModelFacts("me/x", "x", "SFTTrainer", results={"loss": float("inf"), "accuracy": 1}))
    assert cell(text, "`loss`") == "inf" and cell(text, "`accuracy`") == "1" and "On the evaluation rows:" in text


# Writing it


def test_create_model_card_writes_ours(ranked, tiny_model, tmp_path):
    selector = GateauSelector(top_k=3)
    trainer = trainer_of(tiny_model, tmp_path, selector.select(ranked), selector)
    trainer.create_model_card(model_name="My *model*", tags="one")
    text = (tmp_path / "README.md").read_text(encoding="utf-8")
    assert "\n# My \\*model\\*\n" in text and "one" in readme_metadata(text)["tags"]
    assert text.count(BEGIN) == text.count(END) == 1 and selector.record.fingerprint in text
    trainer.create_model_card(model_name="Another")  # nothing on the Hub, so nothing of others to keep
    assert "# Another" in (tmp_path / "README.md").read_text(encoding="utf-8")


def test_without_a_selector_the_card_says_nothing_of_a_selection(ranked, tiny_model, tmp_path):
    trainer_of(tiny_model, tmp_path, ranked.select([0])).create_model_card()
    text = (tmp_path / "README.md").read_text(encoding="utf-8")
    assert BEGIN in text and "how it was selected" not in text and SELECTION_FILE not in text


def test_attached_stock_trainer_writes_ours(ranked, tiny_model, tmp_path, caplog):
    trainer = trainer_of(tiny_model, tmp_path, ranked, stock=True)
    selector = GateauSelector(top_k=3).attach(trainer)
    trainer.create_model_card(tags=["mine"])
    text = (tmp_path / "README.md").read_text(encoding="utf-8")
    assert BEGIN in text and selector.record.fingerprint in text and "mine" in readme_metadata(text)["tags"]
    selector.on_push_begin(trainer.args, trainer.state, trainer.control)
    assert "selector.attach" not in caplog.text


def test_stock_trainer_alone_writes_trls_and_the_push_warns_once(ranked, tiny_model, tmp_path, caplog):
    selector = GateauSelector(top_k=3)
    trainer = trainer_of(tiny_model, tmp_path, selector.select(ranked), selector, stock=True)
    push = (trainer.args, trainer.state, trainer.control)
    with caplog.at_level(logging.WARNING, "hf_gateau"):
        selector.on_push_begin(*push)
        assert "selector.attach" not in caplog.text  # there is no card yet
        trainer.create_model_card()
        assert BEGIN not in (tmp_path / "README.md").read_text(encoding="utf-8")
        for _ in range(3):
            selector.on_push_begin(*push)
    assert caplog.text.count("call selector.attach(trainer) before train()") == 1


# Secrets


@pytest.fixture
def secrets(monkeypatch) -> dict[str, str]:
    """Variables of the environment that hold secrets, by every kind of name."""
    found = {
        "HF_TOKEN": TOKEN,
        "WANDB_API_KEY": "0123456789abcdef0123",
        "AWS_SECRET_ACCESS_KEY": "wJalrXUtnFEMI/K7MDENG+bPxRfi",
        "MY_DB_PASSWORD": "correct horse, battery",
        "SOME_CREDENTIALS": "user:pass@host",
        "DEPLOY_PRIVATE_KEY": "-----BEGIN KEY-----",
    }
    for name, value in found.items():
        monkeypatch.setenv(name, value)
    return found


def test_known_secrets(secrets, monkeypatch):
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "false")
    monkeypatch.setenv("HARMLESS", "a harmless value")
    assert known_secrets() >= set(secrets.values())
    assert not {"false", "a harmless value", ""} & known_secrets()


def test_redact_reaches_every_place(secrets):
    for secret in [*secrets.values(), "hf_" + "x" * 34]:
        value = {"a": [f"before {secret} after", {"b": (secret, 1)}], secret: None, "n": 3, "plain": "text"}
        expected = {"a": [f"before {REMOVED} after", {"b": [REMOVED, 1]}], REMOVED: None, "n": 3, "plain": "text"}
        assert json.loads(json.dumps(redact(value))) == expected
    for harmless in ("hf_gateau", "hf_gateau/model", "hf_short", None, 5, 0.5, True, [], {}, "pad_token"):
        assert redact(harmless) == harmless


def test_redact_where_one_secret_is_part_of_another(monkeypatch):
    monkeypatch.setenv("A_TOKEN", "abcdefgh")
    monkeypatch.setenv("B_TOKEN", "abcdefgh-ijklmnop")
    assert "ijklmnop" not in redact("x abcdefgh-ijklmnop y") or "abcdefgh" not in redact("x abcdefgh-ijklmnop y")


def test_clear_secrets(secrets, tiny_model):
    config, tokenizer = AutoConfig.from_pretrained(tiny_model), AutoTokenizer.from_pretrained(tiny_model)
    names = ("pad_token", "eos_token", "bos_token", "unk_token", "special_tokens_map", "chat_template", "name_or_path")
    before = {name: getattr(tokenizer, name) for name in names}
    vocabulary, as_json = tokenizer.get_vocab(), config.to_json_string()
    assert clear_secrets(config, tokenizer, None) == [] and config.to_json_string() == as_json
    config.token = TOKEN
    config.custom = {"nested": [secrets["WANDB_API_KEY"], "kept"]}
    tokenizer.init_kwargs["token"] = TOKEN
    tokenizer.init_kwargs["kept"] = "yes"
    assert sorted(clear_secrets(config, tokenizer)) == ["custom", "init_kwargs", "token"]
    assert config.token is None and config.custom == {"nested": [REMOVED, "kept"]}
    assert tokenizer.init_kwargs["token"] == REMOVED and tokenizer.init_kwargs["kept"] == "yes"
    assert {name: getattr(tokenizer, name) for name in names} == before and tokenizer.get_vocab() == vocabulary
    assert clear_secrets(config, tokenizer) == []


def test_tuples_are_no_secrets():
    settings = SimpleNamespace(pairs={"sizes": (1, 2)}, sizes=[(1, 2)])
    assert clear_secrets(settings) == [] and settings.sizes == [(1, 2)] and settings.pairs == {"sizes": (1, 2)}


def test_checkpoints_hold_no_secret(secrets, ranked, tiny_model, tmp_path):
    """Wherever it stands when training begins: in no file of the output folder, in any encoding that keeps the text."""
    selector = GateauSelector(top_k=2)
    kept = selector.select(ranked)
    trainer = trainer_of(tiny_model, tmp_path, kept, selector, save_strategy="steps", save_steps=1)
    trainer.model.config.auth = TOKEN
    trainer.model.generation_config.auth = TOKEN
    trainer.processing_class.init_kwargs["auth"] = TOKEN
    selector.record.dropped = {f"could not read with {TOKEN}": 1}
    trainer.train()
    trainer.save_model()
    trainer.create_model_card()
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert {"config.json", "tokenizer_config.json", "README.md", SELECTION_FILE} <= {path.name for path in files}
    assert [path.name for path in files if TOKEN.encode() in path.read_bytes()] == []
    assert REMOVED in (tmp_path / SELECTION_FILE).read_text(encoding="utf-8")
    tokenizer = json.loads((tmp_path / "tokenizer_config.json").read_text(encoding="utf-8"))
    assert tokenizer["eos_token"] and tokenizer["pad_token"]


def written_card(trainer, facts: ModelFacts, monkeypatch) -> str:
    monkeypatch.setattr("hf_gateau.training.model_card.facts_of", lambda *_: facts)
    write_model_card(trainer, facts.record)
    with open(os.path.join(trainer.args.output_dir, "README.md"), encoding="utf-8") as stream:
        return stream.read()


def facts_with_secret(secret: str, shown: str) -> ModelFacts:
    """The secret in every text of the card; `shown` has it among other words."""
    record = SelectionRecord(
        fingerprint="0" * 16,
        dataset={"name": shown, "config": shown, "split": "train"},
        settings={"strata": shown},
        ranking={"method": "gateau", "num_ranked": 3, "num_unranked": {shown: 1}},
        measuring={"long": {"model": shown, "fingerprint": "0"}, "short": {}, "config_key": secret},
        num_rows=4,
        num_ranked=3,
        num_kept=2,
        dropped={shown: 1},
    )
    return ModelFacts(
        repo_id="me/x",
        model_name="x",
        trainer="SFTTrainer",
        base_model=shown,
        base_license={"license": shown},
        record=record,
        hyperparameters={"optim_args": shown},
        results={shown: 0.5},
        evaluated_on=shown,
        tags=[shown],
    )


def assert_not_said(secret: str, text: str) -> None:
    """Neither as it is, nor with what Markdown puts before punctuation and its entities in place of `&<>`."""
    plain = html.unescape(re.sub(r"\\(.)", r"\1", text))
    assert secret not in text and secret not in plain, secret


def test_model_card_holds_no_plain_secret(secrets, tmp_path, monkeypatch):
    trainer = SimpleNamespace(args=SimpleNamespace(output_dir=str(tmp_path)), hub_model_id=None)
    for secret in (TOKEN, secrets["WANDB_API_KEY"], secrets["AWS_SECRET_ACCESS_KEY"]):
        text = written_card(trainer, facts_with_secret(secret, f"with {secret}"), monkeypatch)
        assert text.count(REMOVED) > 10
        assert_not_said(secret, text)


def test_title_holds_no_secret(secrets, tmp_path, monkeypatch):
    trainer = SimpleNamespace(args=SimpleNamespace(output_dir=str(tmp_path)), hub_model_id=None)
    text = written_card(trainer, ModelFacts("me/x", f"model {secrets['WANDB_API_KEY']}", "SFTTrainer"), monkeypatch)
    assert_not_said(secrets["WANDB_API_KEY"], text)


ESCAPED = [
    (TOKEN, f"refused [{TOKEN}]!"),
    ("p*ss_w|rd[1]", "p*ss_w|rd[1]"),
    ("a<b>c&d#efgh", "a<b>c&d#efgh"),
    ('quoted"\\secret', 'quoted"\\secret'),
    ("two  spaces in it", "two  spaces in it"),
    ("secret-at-the-cut", "x" * 490 + "secret-at-the-cut"),
]


@pytest.mark.parametrize("secret, shown", ESCAPED)
def test_model_card_holds_no_secret_that_markdown_escapes(secret, shown, tmp_path, monkeypatch):
    monkeypatch.setenv("MY_SECRET", secret)
    trainer = SimpleNamespace(args=SimpleNamespace(output_dir=str(tmp_path)), hub_model_id=None)
    text = written_card(trainer, facts_with_secret(secret, shown), monkeypatch)
    assert_not_said(" ".join(secret.split()), text)
    assert "cut" not in shown or "secret" not in text


@pytest.mark.parametrize("secret, shown", ESCAPED)
def test_dataset_card_of_a_redacted_record_holds_no_secret(secret, shown, monkeypatch):
    """`push_scored` redacts the record first, and the card says what the record says."""
    monkeypatch.setenv("MY_SECRET", secret)
    entry = {
        "num_rows": 4,
        "num_measured": 3,
        "errors": {shown: 1},
        "ranking": {"method": "gateau", "num_ranked": 3, "num_unranked": {shown: 1}, "warnings": [shown]},
        "digest": "0",
        "measuring": {"long": {"model": shown}, "short": {}},
        "source": {"name": shown},
    }
    record = ScoredRecord(**redact(vars(ScoredRecord({"train": entry}))))
    block, metadata = dataset_card(record, "org/data", {}, ["gateau_score"], [])
    text = merge_readme(None, "data", redact(block), redact(metadata))
    assert_not_said(" ".join(secret.split()), text)
    assert inline(REMOVED).strip("`") in text.replace("\\", "")


@pytest.mark.parametrize("secret", ['quoted"secret', "back\\slash-secret", "señal-secreta"])
def test_selection_file_holds_no_secret_that_json_escapes(secret, ranked, tmp_path, monkeypatch):
    monkeypatch.setenv("MY_SECRET", secret)
    selector = GateauSelector(top_k=2)
    selector.select(ranked)
    selector.record.dropped = {secret: 1}
    selector._write(str(tmp_path))
    assert secret not in json.loads((tmp_path / SELECTION_FILE).read_text(encoding="utf-8"))["dropped"]


@pytest.mark.parametrize(
    "options",
    [
        {"hub_token": TOKEN},
        {"hub_token": "x"},
        {"model_init_kwargs": {"token": TOKEN}},
        {"model_init_kwargs": {"dtype": "float32", "use_auth_token": True}},
    ],
)
def test_tokens_among_the_arguments_are_refused(options):
    with pytest.raises(
        ValueError, match="A token among the arguments would be saved in training_args.bin.*HF_TOKEN"
    ) as e:
        GateauSFTConfig("out", use_cpu=True, bf16=False, **options)
    assert TOKEN not in str(e.value)


def test_ordinary_arguments_with_such_names_are_not():
    args = GateauSFTConfig(
        "out", use_cpu=True, bf16=False, eos_token="</s>", pad_token="<pad>", model_init_kwargs={"dtype": "float32"}
    )
    assert hyperparameters(args).items() >= {"eos_token": "</s>", "pad_token": "<pad>"}.items()


def test_model_card_says_what_was_cut(tmp_path, monkeypatch):
    trainer = SimpleNamespace(args=SimpleNamespace(output_dir=str(tmp_path)), hub_model_id=None)
    counts = {"num_rows": 4, "num_ranked": 4, "num_kept": 2}
    for cut, said in (({"rows": 1, "of": 2, "tokens": 300, "before": 500}, True), ({}, False)):
        record = SelectionRecord("0" * 16, {"name": "d"}, {"top_k": 2}, **counts, cut=cut)
        text = written_card(trainer, ModelFacts("me/x", "x", "SFTTrainer", record=record), monkeypatch)
        assert ("1 of 2 rows were cut to fit max_length, and lost 300 of the 500 tokens" in text) == said
