"""What is on the Hub is known by its commit: before it is here, once it is here, offline, and by the path of its snapshot; so
a model, an adapter, a tokenizer, a reward, embedding or response model has one key wherever it is named."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.measured import SETTINGS
from tests.servers.hub_client import Client, ClientError
from tests.servers.hub_server import HubServer
from tests.tiny_models import make_classifier, make_model, make_sentence_model


HOW = {"device": "cpu", "store": False}
REPOSITORIES = ("long", "adapter", "tokenizer", "reward", "sentences")


# ---- in the clients' processes


def publish(folder: str, repo_id: str) -> str:
    """Returns the commit."""
    from huggingface_hub import HfApi

    HfApi().create_repo(repo_id, exist_ok=True)
    return HfApi().upload_folder(repo_id=repo_id, folder_path=folder).oid


def scorers(names: dict, revisions: dict) -> dict:
    """All kinds, each with a setting for what it may name."""
    from hf_gateau import EmbeddingScorer, GateauScorer, ResponseScorer, RewardScorer

    pair = {"long_model": names["long"], "long_revision": revisions.get("long"), **SETTINGS, "store": False}
    adapter = {"long_adapter": names["adapter"], "long_adapter_revision": revisions.get("adapter")}
    own = {"adapter": names["adapter"], "adapter_revision": revisions.get("adapter")}
    return {
        "pair": GateauScorer(**pair),
        "adapter": GateauScorer(**pair, **adapter),
        "tokenizer": GateauScorer(**pair, tokenizer=names["tokenizer"]),
        "response": ResponseScorer(names["long"], tokenizer=names["tokenizer"], **own, **HOW),
        "reward": RewardScorer(names["reward"], revision=revisions.get("reward"), **HOW),
        "embedding": EmbeddingScorer(names["sentences"], revision=revisions.get("sentences"), **HOW),
    }


def known(names: dict, revisions: dict | None = None) -> dict[str, list[str]]:
    """What `datasets` keeps results of each scorer by, beside its settings; and its keys."""

    def keys(scorer) -> list[str]:
        about = scorer.describe() if hasattr(scorer, "describe") else {"config_key": scorer.config_key}
        return [about["config_key"], about.get("layout_key")]

    return {kind: [x.refresh(), *keys(x)] for kind, x in scorers(names, revisions or {}).items()}


def hashes(names: dict, revisions: dict | None = None) -> dict[str, str]:
    return {kind: scorer.refresh() for kind, scorer in scorers(names, revisions or {}).items()}


def numbers(names: dict, row: dict, revisions: dict | None = None) -> dict[str, list]:
    """A row measured by each."""
    found = {}
    for kind, scorer in scorers(names, revisions or {}).items():
        value = scorer(row)[getattr(scorer, "column", "gateau_ppl_long")]
        found[kind] = value if isinstance(value, list) else [value]
    return found


def snapshots(commits: dict) -> dict[str, str]:
    """Where they are here."""
    from huggingface_hub import snapshot_download

    return {name: snapshot_download(f"acme/{name}", revision=commit) for name, commit in commits.items()}


def forget_answers() -> None:
    from hf_gateau.models import fingerprints

    fingerprints._answers.clear()


def fingerprints_of_gguf(repo_id: str, file: str) -> list[str]:
    from huggingface_hub import hf_hub_download

    from hf_gateau.models.fingerprints import model_fingerprint

    before = model_fingerprint(f"{repo_id}/{file}")
    return [before, model_fingerprint(hf_hub_download(repo_id, file)), model_fingerprint(f"{repo_id}/{file}")]


# ---- in the tests


@pytest.fixture(scope="module")
def folders(tmp_path_factory, tokenizer, rows) -> dict[str, str]:
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    folder = tmp_path_factory.mktemp("models")
    long = make_model("llama", folder / "long", tokenizer)
    settings = LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False)
    get_peft_model(AutoModelForCausalLM.from_pretrained(long), settings).save_pretrained(folder / "adapter")
    tokenizer.save_pretrained(folder / "tokenizer")
    make_classifier(folder / "reward", tokenizer)
    shutil.move(make_sentence_model(folder / "made", rows), folder / "sentences")
    return {name: str(folder / name) for name in REPOSITORIES}


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with HubServer(tmp_path_factory.mktemp("hub")) as server:
        yield server
        assert server.errors == []


@pytest.mark.slow
def test_one_key_before_and_after_the_download_offline_and_by_path(server, folders, rows, tmp_path):
    row, ids = {"messages": rows[0]["messages"]}, {name: f"acme/{name}" for name in REPOSITORIES}
    with Client(server, tmp_path / "one") as client:
        first = {name: client(publish, folder, ids[name]) for name, folder in folders.items()}
        before, keys = client(hashes, ids), client(known, ids)
        assert before == {kind: x[0] for kind, x in keys.items()}, "a hash asks for no file"
        client(numbers, ids, row)
        assert client(known, ids) == keys
        by_path = client(known, client(snapshots, first))
        assert by_path == keys
        described = client(described_adapter, ids, first["adapter"])
        assert (described["adapter"], described["adapter_name"]) == (first["adapter"], "acme/adapter")
    with Client(server, tmp_path / "one", HF_HUB_OFFLINE="1") as client:
        assert client(known, ids) == keys


@pytest.mark.slow
def test_revisions_of_adapters_and_models_are_what_they_name(server, folders, rows, tmp_path):
    """Numbers, keys and hashes, once the main branch has gone on; of an adapter too."""
    row, ids = {"messages": rows[0]["messages"]}, {name: f"acme/{name}-that-moves" for name in REPOSITORIES}
    with Client(server, tmp_path / "another") as client:
        first = {name: client(publish, folder, ids[name]) for name, folder in folders.items()}
        keys, old = client(known, ids), client(numbers, ids, row)
        for name, folder in folders.items():
            copy = shutil.copytree(folder, tmp_path / "changed" / name)
            changed(copy)
            client(publish, str(copy), ids[name])
        client(forget_answers)
        now = client(known, ids)
        assert all(now[kind][0] != keys[kind][0] and now[kind][1:] != keys[kind][1:] for kind in keys)
        pinned = {name: first[name] for name in REPOSITORIES if name != "tokenizer"}
        then = client(known, ids, pinned)
        new, found = client(numbers, ids, row), client(numbers, ids, row, pinned)
        for kind in ("pair", "adapter", "reward", "embedding"):
            assert then[kind] == keys[kind]
            assert found[kind] == pytest.approx(old[kind], rel=1e-6) != pytest.approx(new[kind], rel=1e-3)


def described_adapter(names: dict, revision: str) -> dict:
    return scorers(names, {"adapter": revision})["adapter"].describe()["long"]


def changed(folder: Path) -> None:
    """Other weights, and another template where there is a tokenizer."""
    for file in (*folder.glob("*.safetensors"), folder / "chat_template.jinja"):
        if file.suffix == ".safetensors":
            weights = {name: x + torch.linspace(-1, 1, x.numel()).view_as(x) for name, x in load_file(file).items()}
            save_file(weights, file, {"format": "pt"})
        elif file.exists():
            file.write_text(file.read_text() + "{{ '' }}")


@pytest.mark.slow
def test_the_hub_is_asked_once_and_what_it_does_not_say_is_no_error(server, tmp_path):
    (tmp_path / "any").mkdir()
    (tmp_path / "any" / "config.json").write_text("{}")
    with Client(server, tmp_path / "asks") as client:
        ids = {name: f"acme/any-{name}" for name in REPOSITORIES}
        for name in ids.values():
            client(publish, str(tmp_path / "any"), name)
        server.requests.clear()
        first = client(hashes, ids)
        assert client(hashes, ids) == first and len(server.requests) == len(ids)
        client(forget_answers)
        server.fail(status=503, times=len(ids))
        by_name = client(hashes, ids)
        assert all(by_name[kind] != first[kind] for kind in first)
        client(forget_answers)
        nowhere = client(hashes, {name: "acme/nothing" for name in ids})
        assert nowhere == client(hashes, {name: "acme/nothing" for name in ids})
        with pytest.raises(ClientError, match="acme/nothing"):
            client(known, {name: "acme/nothing" for name in ids})
        # GGUF repositories hold one model in many precisions, and often no configuration
        (tmp_path / "quantised").mkdir()
        for name in ("a.gguf", "b.gguf"):
            (tmp_path / "quantised" / name).write_bytes(b"GGUF" + name.encode())
        commit = client(publish, str(tmp_path / "quantised"), "acme/quantised")
        for name in ("a.gguf", "b.gguf"):
            assert set(client(fingerprints_of_gguf, "acme/quantised", name)) == {f"{commit}/{name}"}


def test_a_folder_that_only_looks_like_a_snapshot_is_read(tmp_path):
    from hf_gateau.models.fingerprints import model_fingerprint

    folder = tmp_path / "snapshots" / ("0" * 40)
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({}))
    assert model_fingerprint(str(folder)).startswith("sha256:")
