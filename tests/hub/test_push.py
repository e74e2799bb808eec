"""Scored data and trained models on the Hub, end to end: the real clients against the tests' own Hub, in processes of their
own. What may break on the way is in `test_publish_faults`."""

import gzip
import io
import json
import re
import zipfile
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import yaml

from hf_gateau.quickstart import LONG_MODEL, PLANTED, SEGMENT_LENGTH, SHORT_WINDOW
from tests.processes import TRL, with_hook
from tests.servers.hub_client import ROOT, Client, ClientError, cli
from tests.servers.hub_server import HubServer, check_card


TOKEN = "hf_" + "abcdefghij" * 4
NUM_ROWS = 40
SOURCE, SCORED, BASE = "acme/planted", "tester/planted-gateau", "acme/tiny-base"
PAIR = {"long_model": LONG_MODEL, "short_window": SHORT_WINDOW, "segment_length": SEGMENT_LENGTH, "device": "cpu"}
FLAGS = [part for name, value in PAIR.items() for part in (f"--{name}", str(value))]
SECRET = "some-long-secret-of-mine-0123"  # in the environment of every client, and in the base model's configuration
# The tiny recipe without its data, and shorter: 4 rows, 2 a step
SHORT_RUN = ["--recipe", "../short.yaml", "--save_steps", "1", "--num_train_epochs", "1", "--gateau_fraction", "0.1"]
TO_THE_HUB = ["--push_to_hub", "true", "--hub_strategy", "every_save", "--hub_always_push", "true"]


# ---- in the clients' processes


def publish_source(repo_id: str, licence: str | None) -> str:
    """Plain rows as anybody pushes them; returns the commit."""
    from datasets import load_dataset
    from huggingface_hub import HfApi, metadata_update

    load_dataset("json", data_files=PLANTED, split="train").select(range(NUM_ROWS)).push_to_hub(repo_id)
    if licence:
        metadata_update(repo_id, {"license": licence}, repo_type="dataset")
    return HfApi().dataset_info(repo_id).sha


def publish_base(repo_id: str, readme: str, **changes) -> str:
    """The tiny model, with changes to JSON files; returns the commit."""
    from huggingface_hub import CommitOperationAdd, HfApi

    files = {x.name: x.read_bytes() for x in Path(LONG_MODEL).iterdir() if x.is_file()} | {
        "README.md": readme.encode()
    }
    for name, change in changes.items():
        files[f"{name}.json"] = json.dumps({**json.loads(files[f"{name}.json"]), **change}).encode()
    HfApi().create_repo(repo_id)
    operations = [CommitOperationAdd(name, data) for name, data in files.items()]
    return HfApi().create_commit(repo_id, operations, commit_message="Base").oid


def score_and_push(source: str, folder: str, repo_id: str, **settings) -> str:
    """Score rows of the Hub, keep them in a folder too, and push them."""
    from datasets import load_dataset

    from hf_gateau import GateauScorer, push_scored, rank

    ds = load_dataset(source, split="train")
    ds = rank(ds.map(GateauScorer(**PAIR | settings), batched=True, load_from_cache_file=False))
    ds.save_to_disk(folder)
    return push_scored(ds, repo_id)


def push(
    folder: str, repo_id: str, configs=None, first: int = 0, stop: int | None = None, alpha=None, **options
) -> str:
    """Some rows of a folder, all by default, ranked anew where an `alpha` is given."""
    from datasets import load_from_disk

    from hf_gateau import push_scored, rank

    ds = load_from_disk(folder)
    if alpha is not None:
        ds = rank(ds.select(range(first, len(ds) if stop is None else stop)), alpha=alpha)
    return push_scored(ds, repo_id, configs, **options)


def push_splits(folder: str, repo_id: str, splits: dict, configs: dict, alpha: float = 0.8) -> str:
    from datasets import DatasetDict, load_from_disk

    from hf_gateau import push_scored, rank

    ds = load_from_disk(folder)
    parts = {name: rank(ds.select(range(*bounds)), alpha=alpha) for name, bounds in splits.items()}
    return push_scored(DatasetDict(parts), repo_id, configs)


def push_in_shards(folder: str, repo_id: str, num_bytes: int, configs: dict) -> None:
    import hf_gateau.hub.push as module

    module.MAX_SHARD_BYTES, before = num_bytes, module.MAX_SHARD_BYTES
    try:
        push(folder, repo_id, configs)
    finally:
        module.MAX_SHARD_BYTES = before


def ids(rows) -> list[str]:
    return list(rows["id"])


def loaded(repo_id: str, name: str = "default", column: str = "id", **options) -> list:
    from hf_gateau import load_scored

    return list(load_scored(repo_id, name, **options)[column])


def stock_loaded(repo_id: str, *name: str, column: str = "id", **options) -> list:
    from datasets import load_dataset

    return list(load_dataset(repo_id, *name, **options)[column])


def compare_rankings(repo_id: str, folder: str, alpha: float) -> dict:
    """Rows from the Hub ranked and selected anew, beside the same of the rows here; with the model out of reach."""
    import transformers
    from datasets import load_from_disk

    from hf_gateau import GateauSelector, load_scored, rank, select
    from hf_gateau.hub.scored import compact, rows_digest

    def refuse(*args, **kwargs):
        raise AssertionError("a model was loaded")

    load = vars(transformers.PreTrainedModel)["from_pretrained"]
    transformers.PreTrainedModel.from_pretrained = refuse
    try:
        there, here = load_scored(repo_id), load_from_disk(folder)
        chosen = GateauSelector(fraction=0.1).select(there)
        other = GateauSelector(fraction=0.1, method="perplexity").select(there)
        return {
            "digests": [rows_digest(there), rows_digest(rank(compact(here)))],
            "ranked": [rows_digest(rank(there, alpha=alpha)), rows_digest(rank(compact(here), alpha=alpha))],
            "scores": [rank(x, alpha=alpha)["gateau_score"][:] for x in (there, compact(here))],
            "ids": [there["id"][:], here["id"][:]],
            "chosen": [ids(chosen), ids(select(here, fraction=0.1))],
            "other": [ids(other), ids(select(rank(here, method="perplexity"), fraction=0.1))],
        }
    finally:
        transformers.PreTrainedModel.from_pretrained = load


def card(kind: str, repo_id: str) -> tuple[dict, str]:
    """Metadata and text of a card, checked by the Hub."""
    import huggingface_hub

    found = getattr(huggingface_hub, kind).load(repo_id, ignore_metadata_errors=False)
    found.validate(repo_type={"DatasetCard": "dataset", "ModelCard": "model"}[kind])
    return found.data.to_dict(), found.text


def train(*arguments: str) -> None:
    """What `hf-gateau sft` runs in its processes."""
    from hf_gateau.scripts.arguments import make_parser
    from hf_gateau.scripts.sft import main

    main(*make_parser().parse_args_and_config(list(arguments)))


def stock_trl(*arguments: str) -> None:
    """What `trl sft` runs in its processes."""
    import transformers
    from trl.scripts.sft import main, make_parser

    main(*make_parser().parse_args_and_config(list(arguments)))
    transformers.logging.set_verbosity_warning()  # which its log_level sets for the whole process


def same_weights(repo_id: str, folder: str) -> bool:
    import torch
    from transformers import AutoModelForCausalLM

    there, here = (AutoModelForCausalLM.from_pretrained(x).state_dict() for x in (repo_id, folder))
    base = AutoModelForCausalLM.from_pretrained(LONG_MODEL).state_dict()
    assert any(not torch.equal(base[name], here[name]) for name in base)
    return there.keys() == here.keys() and all(torch.equal(there[name], here[name]) for name in there)


def api(method: str, **arguments):
    """A method of HfApi."""
    from huggingface_hub import HfApi

    result = getattr(HfApi(), method)(**arguments)
    return getattr(result, "oid", None) or str(result)


def write_text(repo_id: str, path: str, text: str, repo_type: str = "dataset", **options) -> str:
    where = {"repo_id": repo_id, "repo_type": repo_type, "path_in_repo": path}
    return api("upload_file", path_or_fileobj=text.encode(), **where, **options)


# ---- in the tests


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("publish")
    recipe = (ROOT / "recipes" / "tiny-cpu.yaml").read_text()
    (folder / "short.yaml").write_text(re.sub(r"dataset_\w+:.*\n", "", recipe))
    return folder


@pytest.fixture(scope="module")
def server(folder):
    with HubServer(folder / "hub", token=TOKEN) as server:
        yield server
        assert server.errors == []


@pytest.fixture(scope="module")
def author(server, folder):
    with Client(server, folder / "author", MY_API_KEY=SECRET, HF_GATEAU_STORE=str(folder / "store.sqlite")) as client:
        yield client


@pytest.fixture(scope="module")
def reader(server, folder):
    """Somebody else's machine: nothing in the cache."""
    with Client(server, folder / "reader", MY_API_KEY=SECRET) as client:
        yield client


@pytest.fixture(scope="module")
def local(author, folder) -> str:
    """The planted rows, pushed as plain data, loaded from there, scored, ranked, pushed; a folder of the author's."""
    hidden = {"config": {"api_key": SECRET, "deep": {"er": [TOKEN]}}, "tokenizer_config": {"api_key": SECRET}}
    author(publish_base, BASE, "---\nlicense: apache-2.0\n---\n# Base\n", **hidden)
    author(publish_source, SOURCE, "cc-by-4.0")
    author(score_and_push, SOURCE, folder / "local", SCORED, long_model=BASE)
    return str(folder / "local")


@pytest.fixture(scope="module")
def scored(local) -> str:
    """The same on the Hub."""
    return SCORED


def readme(server: HubServer, repo_id: str, repo_type: str = "dataset", revision: str = "main") -> str:
    return server.read(repo_id, "README.md", repo_type, revision).decode()


def metadata(server: HubServer, repo_id: str, revision: str = "main") -> dict:
    text = readme(server, repo_id, revision=revision)
    assert check_card(text, "dataset") == ([], [])
    return yaml.safe_load(text.split("---\n")[1])


def configs(server: HubServer, repo_id: str) -> list[str]:
    return [config["config_name"] for config in metadata(server, repo_id)["configs"]]


def record(server: HubServer, repo_id: str, revision: str = "main") -> dict:
    return json.loads(server.read(repo_id, "gateau.json", revision=revision))


def parquet(server: HubServer, repo_id: str, path: str, revision: str = "main"):
    return pq.read_table(io.BytesIO(server.read(repo_id, path, revision=revision)))


# ---- the story: plain data, scored data, a model


def test_card_of_scored_data(server, reader, scored):
    found, text = reader(card, "DatasetCard", scored)
    source = server.refs(SOURCE)["main"]
    assert found["license"] == "cc-by-4.0" and "as the source states it: `cc-by-4.0`" in text
    assert found["source_datasets"] == [f"extended|{SOURCE}"]
    assert {"gateau", "long-context", "data-selection"} <= set(found["tags"])
    assert [x["config_name"] for x in found["configs"]] == ["default", "top10", "top30", "top50"]
    assert [x.get("default", False) for x in found["configs"]] == [True, False, False, False]
    assert f"datasets/{SOURCE}/tree/{source}" in text and "| `top10` | `train` | 4 |" in text
    assert f'load_dataset("{scored}", "top10", split="train")' in text
    assert record(server, scored)["splits"]["train"]["source"]["revision"] == source
    pictures = [path for path in server.files(scored) if path.startswith("figures/")]
    assert len(pictures) >= 4 and all(f"]({path})" in text for path in pictures)


def test_a_clean_machine_ranks_anew_without_a_model(reader, local, scored):
    found = reader(compare_rankings, scored, local, 0.3)
    for what, (there, here) in found.items():
        assert there == here, what
    assert found["chosen"] != found["other"]


def test_stock_datasets_gives_every_row_and_every_selection(reader, local, scored):
    def in_order(*name):
        return reader(stock_loaded, scored, *name, split="train")

    everything = in_order()
    assert everything == [f"planted-0-{i}" for i in range(NUM_ROWS)]
    ranks = reader(stock_loaded, scored, split="train", column="gateau_rank")
    for name, count in (("top10", 4), ("top30", 12), ("top50", 20)):
        best = [x for x, place in zip(everything, ranks, strict=True) if place <= count]
        assert in_order(name) == reader(loaded, scored, name) == best
    messages = reader(stock_loaded, scored, "top10", split="train", column="messages")
    assert [turn["role"] for turn in messages[0]] == ["user", "assistant"]


@pytest.mark.slow
@with_hook
def test_trl_sft_recipe_trains_from_pushed_rows(server, reader, scored):
    """A local base model: the card names no base_model, and no folder."""
    repo_id = "tester/tuned-local"
    data = ["--gateau_scored_dataset", scored, "--output_dir", "tuned-local", "--hub_model_id", repo_id]
    done = reader.run(TRL, "sft", *SHORT_RUN, *TO_THE_HUB, *data)
    assert "4 of 40 rows kept" in done.stdout and f"Pushed to the Hub: {repo_id}" in done.stdout
    check_model(server, reader, repo_id, "tuned-local", scored)
    found, text = reader(card, "ModelCard", repo_id)
    assert "base_model" not in found and "license" not in found and "(a local folder)" in text
    assert str(Path(LONG_MODEL).parent) not in text and str(reader.folder) not in text


@pytest.fixture(scope="module")
def tuned(reader, scored) -> str:
    """A model trained from a base model on the Hub."""
    repo_id = "tester/tuned"
    data = ["--gateau_scored_dataset", scored, "--output_dir", "tuned", "--hub_model_id", repo_id]
    reader(train, *SHORT_RUN, *TO_THE_HUB, *data, "--model_name_or_path", BASE)
    return repo_id


def test_a_model_from_a_base_on_the_hub(server, reader, scored, tuned):
    repo_id = tuned
    check_model(server, reader, repo_id, "tuned", scored)
    found, text = reader(card, "ModelCard", repo_id)
    assert (found["base_model"], found["base_model_relation"], found["license"]) == (BASE, "finetune", "apache-2.0")
    assert f"datasets/{SOURCE}" in text


def test_revisions_of_models_are_named(server, reader, scored, tuned):
    """In the record of what measured, and so in the key of measurements; in both cards."""
    base = server.refs(BASE, "model")["main"]
    assert record(server, scored)["splits"]["train"]["measuring"]["long"]["fingerprint"] == base
    assert f"/{BASE}/tree/{base}" in reader(card, "DatasetCard", scored)[1]
    assert f"/{BASE}/tree/{base}" in reader(card, "ModelCard", tuned)[1].split("trained on")[0]


def check_model(server, reader, repo_id: str, output: str, scored: str) -> None:
    """What is on the Hub is the model that was trained on the four best rows, and its card says so."""
    output = reader.folder / output
    assert reader(same_weights, repo_id, output)
    selection = json.loads(server.read(repo_id, "gateau_selection.json", "model"))
    assert selection["num_kept"] == 4 and selection == json.loads((output / "gateau_selection.json").read_text())
    assert selection["dataset"]["revision"] == server.refs(scored)["main"]
    titles = [commit["title"] for commit in server.commits(repo_id, "model")]
    assert sum("step" in title for title in titles) >= 1, titles  # of checkpoints
    found, text = reader(card, "ModelCard", repo_id)
    assert found["library_name"] == "transformers" and found["datasets"] == [scored]
    assert {"gateau", "long-context", "data-selection", "sft", "trl"} <= set(found["tags"])
    assert f"datasets/{scored}/tree/{server.refs(scored)['main']}" in text and "4 of 40" in text
    assert check_card(readme(server, repo_id, "model"), "model") == ([], [])


def test_stock_trl_trains_on_a_configuration(reader, scored):
    settings = {
        "model_name_or_path": LONG_MODEL,
        "dataset_name": scored,
        "dataset_config": "top10",
        "output_dir": "stock",
        "num_train_epochs": 1,
        "per_device_train_batch_size": 1,
        "use_cpu": True,
        "bf16": False,
        "gradient_checkpointing": False,
        "report_to": "none",
        "log_level": "info",
        "logging_steps": 1,
    }
    (reader.folder / "stock.yaml").write_text(yaml.safe_dump(settings))
    before = len(reader.log)
    reader(stock_trl, "--config", "stock.yaml")
    assert "Num examples = 4\n" in reader.log[before:]
    state = json.loads((reader.folder / "stock" / "checkpoint-4" / "trainer_state.json").read_text())
    assert state["global_step"] == 4 and state["log_history"][-1]["epoch"] == 1
    assert "GateauSelector" not in state["stateful_callbacks"]


# ---- pushing again


@pytest.mark.slow
def test_splits_are_pushed_one_by_one(server, author, local):
    repo_id, kept = "tester/splits", {"top50": 0.5}
    author(push_splits, local, repo_id, {"train": (0, 24), "validation": (24, 40)}, kept)
    before, old = server.files(repo_id), record(server, repo_id)
    author(push_splits, local, repo_id, {"validation": (20, 40)}, {"top30": 0.3}, alpha=0.2)
    after, new = server.files(repo_id), record(server, repo_id)
    train = [path for path in before if "/train-" in path]
    assert len(train) == 2 and all(after[path] == before[path] for path in train)
    assert new["splits"]["train"] == old["splits"]["train"] and new["splits"]["validation"]["num_rows"] == 20
    assert {name: list(splits) for name, splits in new["selections"].items()} == {
        "top30": ["validation"],
        "top50": ["train"],
    }
    assert not any(path.startswith("top50/validation") for path in after)
    assert author(loaded, repo_id) == [f"planted-0-{i}" for i in range(24)]
    assert (
        len(author(loaded, repo_id, "top50")) == 12 and len(author(loaded, repo_id, "top30", split="validation")) == 6
    )
    with pytest.raises(ClientError, match="has no split 'validation' of configuration 'top50'; it has"):
        author(loaded, repo_id, "top50", split="validation")
    listed = {x["config_name"]: [y["split"] for y in x["data_files"]] for x in metadata(server, repo_id)["configs"]}
    assert {name: sorted(splits) for name, splits in listed.items()} == {
        "default": ["train", "validation"],
        "top30": ["validation"],
        "top50": ["train"],
    }


HAND = "# My rows\n\nWritten by hand:  two spaces, a tab\t, and no newline at the end of a line  \n\n- one\n"


def test_what_a_push_replaces_and_what_it_leaves(server, author, local):
    repo_id = "tester/again"
    author(api, "create_repo", repo_id=repo_id, repo_type="dataset")
    author(push_config, SOURCE, repo_id, "extra")
    top = "---\npretty_name: 'Mine'  # quoted\nlanguage: [en]\n"
    text = readme(server, repo_id)
    author(write_text, repo_id, "README.md", text.replace("---\n", top, 1) + HAND)
    author(write_text, repo_id, "notes.txt", "notes")
    author(write_text, repo_id, "figures/mine.jpg", "a picture")
    author(push, local, repo_id)
    text = readme(server, repo_id)
    assert text.startswith(top) and HAND in text
    text = text.replace("gateau:end -->", "gateau:end -->\n\n## After  \nby hand\n")
    text = text.replace("- gateau\n", "- gateau\n- mine\n", 1)
    author(write_text, repo_id, "README.md", text)
    author(push, local, repo_id, {"top30": 0.3, "best": {"top_k": 3}})
    found = metadata(server, repo_id)
    assert {x["config_name"] for x in found["configs"]} == {"default", "extra", "top30", "best"}
    assert found["pretty_name"] == "Mine" and "mine" in found["tags"] and found["language"] == ["en"]
    files = server.files(repo_id)
    assert not any(path.startswith(("top10/", "top50/")) for path in files)
    assert {"notes.txt", "figures/mine.jpg"} <= files.keys() and any(path.startswith("extra/") for path in files)
    assert set(record(server, repo_id)["selections"]) == {"top30", "best"}
    after = readme(server, repo_id)
    assert (
        after.startswith(top)
        and HAND in after
        and after.endswith("\n\n## After  \nby hand\n" + text.split("by hand\n")[-1])
    )
    assert after.count("gateau:begin") == 1 and "top10" not in after.split("gateau:begin")[0]
    assert author(stock_loaded, repo_id, "extra", split="train") == author(loaded, repo_id)
    assert len(author(loaded, repo_id, "best")) == 3
    for gone in ("top10", "top50"):
        with pytest.raises(ClientError, match=f"BuilderConfig '{gone}' not found"):
            author(stock_loaded, repo_id, gone, split="train")


def decide(folder: str, file: str) -> None:
    """The best row dropped, and the worst kept."""
    from datasets import load_from_disk

    keys = load_from_disk(folder).sort("gateau_rank")["gateau_key"]
    Path(file).write_text(f"gateau_key,decision,note\n{keys[0]},drop,a list\n{keys[-1]},keep,\n")


def test_a_selection_that_a_person_had_a_say_in(server, author, local, folder):
    repo_id, file = "tester/decided", str(folder / "mine.csv")
    author(decide, local, file)
    author(push, local, repo_id, {"mine": {"top_k": 3, "decisions": file}, "top10": 0.1})
    told = "`the best: top_k 3, decisions mine.csv`".replace("`the best: ", "the best: `")
    row = f"| `mine` | `train` | 3 | {record(server, repo_id)['selections']['mine']['train']['record']['num_tokens_kept']:,} |"
    assert f"{row} {told}; a person kept 1 of them and dropped 1 |" in readme(server, repo_id)
    assert sorted(author(loaded, repo_id, "mine", "gateau_rank")) == [2, 3, 40]
    assert str(folder) not in readme(server, repo_id) + server.read(repo_id, "gateau.json").decode()
    Path(file).write_text("gateau_key,decision\nc:other,keep\n")
    with pytest.raises(ClientError, match="None of the 1 decisions in 'mine.csv' is about a row"):
        author(push, local, repo_id, {"mine": {"top_k": 3, "decisions": file}})


def push_config(source: str, repo_id: str, name: str) -> None:
    """Another configuration, as `datasets` itself pushes it."""
    from datasets import load_dataset

    load_dataset(source, split="train").push_to_hub(repo_id, name)


def test_nothing_is_sent_twice(server, author, local):
    repo_id = "tester/twice"
    author(push, local, repo_id)
    before = server.refs(repo_id)
    server.requests.clear()
    author(push, local, repo_id)
    assert server.refs(repo_id) == before
    assert not [x for x in server.requests if x.method == "PUT" or "/commit/" in x.path]


@pytest.mark.slow
def test_branches_pull_requests_and_private_repositories(server, author, reader, local):
    repo_id = "tester/private"
    author(push, local, repo_id, {"top10": 0.1}, private=True)
    assert server.private(repo_id)
    start = server.refs(repo_id)["main"]
    author(push, local, repo_id, {"top30": 0.3}, revision="next")
    url = author(push, local, repo_id, {"top50": 0.5}, create_pr=True)
    assert url.endswith(f"/datasets/{repo_id}/discussions/1")
    assert server.refs(repo_id)["main"] == start and set(server.refs(repo_id)) == {"main", "next", "refs/pr/1"}
    for name, revision, count in (("top10", None, 4), ("top30", "next", 12), ("top50", "refs/pr/1", 20)):
        assert len(reader(loaded, repo_id, name, revision=revision)) == count
    assert configs(server, repo_id) == ["default", "top10"]
    author(push, local, repo_id, {"top20": 0.2}, revision="refs/pr/1")  # on with the same pull request
    assert len(reader(loaded, repo_id, "top20", revision="refs/pr/1")) == 8


def test_fewer_shards_leave_no_stale_file(server, author, reader, local):
    repo_id = "tester/shards"
    author(push_in_shards, local, repo_id, 60_000, {"top50": 0.5})
    shards = [path for path in server.files(repo_id) if path.endswith(".parquet")]
    assert len([path for path in shards if path.startswith("data/")]) > 2
    assert len([path for path in shards if path.startswith("top50/")]) > 1
    everything = [f"planted-0-{i}" for i in range(NUM_ROWS)]
    assert reader(loaded, repo_id) == reader(stock_loaded, repo_id, split="train") == everything
    half = reader(loaded, repo_id, "top50")
    assert half == sorted(half, key=lambda x: int(x.rsplit("-", 1)[1])) and len(half) == 20
    author(push, local, repo_id, {"top50": 0.5})
    assert sorted(path for path in server.files(repo_id) if path.endswith(".parquet")) == [
        "data/train-00000-of-00001.parquet",
        "top50/train-00000-of-00001.parquet",
    ]
    assert reader(loaded, repo_id) == everything and reader(loaded, repo_id, "top50") == half


# ---- rows of other forms


def push_rows_of_form(form: str, repo_id: str) -> None:
    from datasets import Dataset, load_dataset

    from hf_gateau import GateauScorer, push_scored, rank

    rows = []
    for row in load_dataset("json", data_files=PLANTED, split="train").select(range(5)):
        user, answer = (turn["content"] for turn in row["messages"])
        context, instruction = user.rsplit("\n\n", 1)
        answer = "" if len(rows) == 1 else answer  # which cannot be measured
        extra = {"id": row["id"], "prompt": "of my own", "labels": [1, 2]}
        if form == "columns":
            rows.append({"context": context, "instruction": instruction, "response": answer, **extra})
        else:
            turns = [{"from": "human", "value": user}, {"from": "gpt", "value": answer}]
            rows.append({"conversations": turns, **extra})
    measured = Dataset.from_list(rows).map(GateauScorer(**PAIR), batched=True)
    push_scored(rank(measured), repo_id, {"half": 0.5})


def stock_training(repo_id: str, name: str, output: str) -> list:
    """Steps of the stock trainer, and the columns that it was given."""
    from datasets import load_dataset
    from trl import SFTConfig, SFTTrainer

    ds = load_dataset(repo_id, name, split="train")
    args = SFTConfig(output, use_cpu=True, bf16=False, report_to="none", save_strategy="no", num_train_epochs=1)
    args.per_device_train_batch_size = 1
    trainer = SFTTrainer(LONG_MODEL, args=args, train_dataset=ds)
    trainer.train()
    return [trainer.state.global_step, ds.column_names, ds["messages"][0]]


@pytest.mark.parametrize("form", ["columns", "conversations"])
def test_rows_of_other_forms_become_messages(form, server, author, reader):
    repo_id = f"tester/{form}"
    author(push_rows_of_form, form, repo_id)
    names = {"context", "instruction", "response"} if form == "columns" else {"conversations"}
    full = parquet(server, repo_id, "data/train-00000-of-00001.parquet")
    assert {"prompt", "labels", *names} <= set(full.column_names) and "messages" not in full.column_names
    (reason,) = filter(None, full["gateau_error"].to_pylist())
    assert full["gateau_rank"].to_pylist()[1] is None and full.num_rows == 5
    entry = record(server, repo_id)["splits"]["train"]
    assert (entry["num_rows"], entry["num_measured"], entry["errors"]) == (5, 4, {reason: 1})
    assert "1 rows could not be measured" in readme(server, repo_id)
    steps, columns, messages = reader(stock_training, repo_id, "half", form)
    assert steps == 2 and not {"prompt", "labels", *names} & set(columns) and "id" in columns
    assert [turn["role"] for turn in messages] == ["user", "assistant"] and messages[0]["content"].endswith("?")
    assert len(reader(loaded, repo_id)) == 5 and len(reader(loaded, repo_id, "half")) == 2


# ---- a model's card, pushed twice


def test_hand_written_text_of_a_model_card_stays(server, reader, scored):
    repo_id = "acme/mine"
    reader(api, "create_repo", repo_id=repo_id)
    reader(write_text, repo_id, "README.md", f"---\nlanguage: [en]  # by hand\nlicense: mit\n---\n{HAND}", "model")
    data = ["--gateau_scored_dataset", scored, "--hub_model_id", repo_id]
    run = [*SHORT_RUN, *TO_THE_HUB, *data, "--model_name_or_path", BASE]
    reader(train, *run, "--output_dir", "mine-1", "--hub_strategy", "checkpoint")
    assert any(path.startswith("last-checkpoint/") for path in server.files(repo_id, "model"))
    first = readme(server, repo_id, "model")
    assert first.startswith("---\nlanguage: [en]  # by hand\nlicense: mit\n") and HAND in first
    edited = first.replace("gateau:end -->", "gateau:end -->\n\n## Mine  \n").replace(
        "- gateau\n", "- gateau\n- mine\n", 1
    )
    reader(write_text, repo_id, "README.md", edited, "model")
    reader(train, *run, "--output_dir", "mine-2", "--learning_rate", "1e-4", "--save_strategy", "no")
    second = readme(server, repo_id, "model")
    outside = [text.split("<!-- gateau:begin")[0] + text.split("gateau:end -->")[1] for text in (edited, second)]
    assert outside[0] == outside[1] and "0.0001" in second and "0.0005" not in second
    assert second.count("gateau:begin") == 1


# ---- what is refused, and what is only data


def tamper(repo_id: str, how: str) -> None:
    """Change one thing, on a branch of its own."""
    import pyarrow.parquet as pq
    from huggingface_hub import HfApi, hf_hub_download

    api, where = HfApi(), {"repo_type": "dataset"}
    api.create_branch(repo_id, branch=how, **where)
    rows, note = "data/train-00000-of-00001.parquet", "gateau.json"
    found = json.loads(Path(hf_hub_download(repo_id, note, **where)).read_text())
    if how == "no-record":
        return api.delete_file(note, repo_id, revision=how, **where) and None
    if how in ("score", "text"):
        table = pq.read_table(hf_hub_download(repo_id, rows, **where))
        name = {"score": "gateau_ppl_long", "text": "messages"}[how]
        values = table[name].to_pylist()
        if how == "score":
            values[7] *= 0.5
        else:
            values[7][-1]["content"] = "something else"
        at = table.column_names.index(name)
        table = table.set_column(at, table.schema.field(name), [values])
        pq.write_table(table, data := io.BytesIO())
        return (
            api.upload_file(path_or_fileobj=data.getvalue(), path_in_repo=rows, repo_id=repo_id, revision=how, **where)
            and None
        )
    if how == "digest":
        found["splits"]["train"]["digest"] = "nonsense"
    elif how == "newer":
        found["schema_version"] = 99
    elif how == "no-splits":
        found["splits"] = "all of them"
    text = "[1, 2" if how == "no-json" else json.dumps(found)
    api.upload_file(path_or_fileobj=text.encode(), path_in_repo=note, repo_id=repo_id, revision=how, **where)


REFUSED = {
    "score": "their measurements have another digest than the record",
    "text": r"the text of 1 rows \(row 7 is the first\) is not what was measured",
    "digest": "their measurements have another digest than the record",
    "newer": "has schema version 99, and this hf_gateau reads up to 1; install a newer one",
    "no-splits": "is damaged: it names no splits",
    "no-json": "is no record of a scored dataset",
    "no-record": "has no gateau.json, so it was not pushed with push_scored",
}


@pytest.mark.parametrize("how", REFUSED)
def test_changed_data_are_refused(how, author, reader, scored):
    author(tamper, scored, how)
    with pytest.raises(ClientError, match=REFUSED[how]) as caught:
        reader(loaded, scored, revision=how)
    assert caught.value.error == "ValueError"
    assert len(reader(loaded, scored)) == NUM_ROWS


HOSTILE = "</script><img src=x onerror=alert(1)> {{ 7*7 }} {% raw %} [x](javascript:alert(1)) -->"


def publish_hostile(repo_id: str, branch: str) -> None:
    """The record says what it should not; its digests are right."""
    from huggingface_hub import HfApi, hf_hub_download

    where = {"repo_type": "dataset"}
    found = json.loads(Path(hf_hub_download(repo_id, "gateau.json", **where)).read_text())
    entry = found["splits"]["train"]
    entry["measuring"] = {
        "find_context": "evil:run",
        "long": {"model": "evil:run", "revision": HOSTILE},
        "dtype": HOSTILE,
    }
    entry["measuring"] |= {"trust_remote_code": True, "config_key": HOSTILE, "chat_template": "{{ evil }}"}
    entry["ranking"] |= {"method": HOSTILE, "warnings": [HOSTILE]}
    entry["source"] = {"repo_id": HOSTILE, "name": HOSTILE, "revision": HOSTILE}
    HfApi().create_branch(repo_id, branch=branch, **where)
    text = json.dumps(found).encode()
    HfApi().upload_file(path_or_fileobj=text, path_in_repo="gateau.json", repo_id=repo_id, revision=branch, **where)


def use_hostile(repo_id: str, branch: str, copy: str) -> None:
    from hf_gateau import GateauSelector, load_scored, push_scored, rank, select

    ds = load_scored(repo_id, revision=branch)
    select(ds, fraction=0.1), GateauSelector(fraction=0.2, alpha=0.5).select(ds)
    push_scored(rank(ds), copy, {"top10": 0.1})


def test_a_hostile_record_is_data(server, author, reader, scored):
    mark = reader.folder / "evil-ran"
    (reader.folder / "evil.py").write_text(f"open({str(mark)!r}, 'w')\ndef run(*args): pass\n")
    author(publish_hostile, scored, "hostile")
    code = {"auto_map": {"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"}}
    author(publish_base, "acme/evil-base", "# Base\n", config=code)
    author(write_text, "acme/evil-base", "evil.py", (reader.folder / "evil.py").read_text(), "model")
    reader(use_hostile, scored, "hostile", "acme/copied")
    training = [
        "--gateau_scored_dataset",
        scored,
        "--gateau_scored_revision",
        "hostile",
        "--hub_model_id",
        "acme/evil",
    ]
    training += ["--model_name_or_path", "acme/evil-base", "--output_dir", "evil-out", "--max_steps", "1"]
    reader(train, *SHORT_RUN, *TO_THE_HUB, *training)
    assert not mark.exists()
    for kind, repo_id in (("DatasetCard", "acme/copied"), ("ModelCard", "acme/evil")):
        _, text = reader(card, kind, repo_id)
        assert "<img" not in text and "<script" not in text and r"7\*7" in text and r"\{% raw" in text
        assert not re.search(r"(?<!\\)\]\(javascript:", text) and text.count("gateau:end -->") == 1


# ---- the command line


def test_from_files_to_the_hub_and_back(server, author, reader, folder):
    """The records beside the files go with the rows; the folders of this machine do not."""
    repo_id, rows = "tester/from-files", author.folder / "data of mine"
    rows.mkdir()
    with gzip.open(PLANTED, "rt") as stream:
        lines = stream.readlines()
    (rows / "all.jsonl").write_text("".join(lines[:16]))
    (rows / "some.jsonl").write_text("".join(lines[:12]))
    some, measured, ranked = rows / "some.jsonl", rows / "measured.parquet", rows / "ranked.parquet"
    assert author(cli, "score", some, "-o", measured, *FLAGS)[0] == 0
    assert author(cli, "rank", measured, "-o", ranked, "--alpha", "0.7")[0] == 0
    status, out, errors = author(cli, "push", ranked, repo_id, "--fractions", "0.25", "0.5", "--license", "mit")
    assert status == 0 and out.startswith(f"Pushed: {server.url}/datasets/{repo_id}/commit/"), errors
    assert configs(server, repo_id) == ["default", "top25", "top50"] and metadata(server, repo_id)["license"] == "mit"
    text = readme(server, repo_id)
    assert "| long model | `long`" in text and "| alpha | `0.7` |" in text and "| source | `some.jsonl` |" in text
    hidden = [str(Path(LONG_MODEL).parent), str(folder), "data of mine"]
    for path in server.files(repo_id):
        data = server.read(repo_id, path)
        texts = str(parquet(server, repo_id, path).to_pylist()).encode() if path.endswith(".parquet") else b""
        assert not [name for name in hidden if name.encode() in data + texts], path

    pulled, again = reader.folder / "pulled.parquet", reader.folder / "again.parquet"
    status, out, errors = reader(cli, "pull", repo_id, "-o", pulled)
    assert status == 0 and out.startswith(f"12 rows: {pulled}\n"), errors
    assert json.loads((reader.folder / "pulled.parquet.gateau.json").read_text())["origin"]["repo_id"] == repo_id
    status, out, _ = reader(cli, "rank", pulled, "-o", again, "--alpha", "0.2")
    assert status == 0 and "12 of 12 rows ranked" in out and "alpha=0.2" in out
    status, out, _ = reader(cli, "pull", repo_id, "-o", reader.folder / "top.jsonl", "--name", "top25")
    assert status == 0 and out.startswith("3 rows:")

    store = reader.folder / "store.sqlite"
    known = ["--scored_dataset", repo_id, *FLAGS, "--store", store]
    status, out, errors = reader(cli, "score", rows / "all.jsonl", "-o", reader.folder / "more.parquet", *known)
    assert status == 0 and "16 of 16 rows measured" in out, errors
    status, out, _ = reader(cli, "store", "--store", store)
    assert f"{4:>9,} rows" in out  # the others were not measured again
    both = [pq.read_table(path) for path in (measured, reader.folder / "more.parquet")]
    hashes = [table["gateau_content_hash"].to_pylist() for table in both]
    assert hashes[1][:12] == hashes[0]
    wrong = ["--segment_length", "32"]
    status, _, errors = reader(cli, "score", rows / "all.jsonl", "-o", reader.folder / "x.parquet", *known, *wrong)
    assert status == 2 and "were measured in another way" in errors


def test_wrong_token_and_unknown_repository_are_one_line(author, local, scored):
    wrong = {"HF_TOKEN": "hf_wrong"}
    cases = [
        (["push", local, "tester/never"], wrong, "the Hub does not know you"),
        (["push", local, "stranger/never"], {}, "you may not write there"),
        (["pull", "tester/nowhere", "-o", "x.parquet"], {}, "There is no dataset 'tester/nowhere' on the Hub"),
        (["pull", scored, "-o", "x.parquet", "--revision", "none"], {}, "at 'none' on the Hub"),
        (["pull", scored, "-o", "x.parquet", "--name", "top99"], {}, "has no split 'train' of configuration 'top99'"),
        (["pull", SOURCE, "-o", "x.parquet"], {}, "has no gateau.json"),
        (["score", local, "-o", "x.parquet", *FLAGS, "--scored_dataset", "tester/nowhere"], {}, "There is no dataset"),
    ]
    for arguments, environment, message in cases:
        status, out, errors = author(cli, *arguments, **environment)
        lines = [line for line in errors.splitlines() if not line.startswith("(HF_GATEAU_TRACEBACK=1")]
        assert status == 2 and len(lines) == 1 and message in lines[0], (arguments, errors)
        assert lines[0].startswith(f"hf-gateau {arguments[0]}: ") and "Traceback" not in errors
    assert not (author.folder / "x.parquet").exists()


def test_dry_run_with_scored_rows(server, author, scored):
    plan = ["sft", "--recipe", "tiny-cpu", "--dry_run", "true", "--gateau_scored_dataset", scored]
    server.requests.clear()
    status, out, errors = author(cli, *plan, "--push_to_hub", "true", "--hub_model_id", "tester/planned")
    assert status == 0, errors
    assert "nothing: the columns are there" in out or "new rows to measure" in out, out
    assert "Hub: tester/planned" in out and not server.exists("tester/planned", "model")
    assert not [x for x in server.requests if x.method in ("PUT", "DELETE") or "/commit/" in x.path]
    status, _, errors = author(cli, *plan[:-1], "tester/nowhere")
    assert status == 2 and "There is no dataset 'tester/nowhere'" in errors


# ---- secrets


def test_secrets_stay_here(folder, server, author, reader, tuned):
    """Every byte that the tests above left anywhere, besides the base model, which holds the secrets itself."""
    own = {entry["sha256"] for entry in server.store.repository("model", BASE).files().values()}
    places = [path for path in server.root.rglob("*") if path.name not in own]
    outputs = [path for name in ("tuned", "mine-1") for path in (reader.folder / name).rglob("*")]
    places += [*outputs, *folder.glob("store.sqlite*"), *(folder / "local").iterdir()]
    places += [client.folder / "log" for client in (author, reader)]
    assert (folder / "store.sqlite").exists() and any(path.name == "training_args.bin" for path in outputs)
    assert [str(path) for path in places if path.is_file() and holds(path, SECRET, TOKEN)] == []
    base = (server.store.blob(sha256) for sha256 in own)
    assert any(holds(path, SECRET) for path in base)


def holds(path: Path, *secrets: str) -> bool:
    """Whether a file holds one of the texts, within compressed columns too."""
    data = path.read_bytes()
    if data[:4] == b"PAR1":
        table = pq.read_table(path)
        data += repr(table.to_pylist()).encode() + repr(table.schema.metadata).encode()
    elif data[:2] == b"PK":
        with zipfile.ZipFile(path) as archive:
            data += b"".join(archive.read(name) for name in archive.namelist())
    return any(secret.encode() in data for secret in secrets)
