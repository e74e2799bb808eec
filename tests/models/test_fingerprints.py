"""Every tensor of every form of weights is told from another; where files are and what stands beside them is not looked at."""

import json
import os
import shutil
import struct
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from hf_gateau.models import fingerprints, weight_files
from hf_gateau.models.fingerprints import model_fingerprint, sentence_model_fingerprint, tokenizer_fingerprint
from hf_gateau.models.weight_files import file_digest
from tests.tiny_models import make_model


NAMES = ("model.embed_tokens.weight", "model.layers.0.norm.weight", "model.layers.0.mlp.weight", "lm_head.weight")


@pytest.fixture(params=["small", "large"])
def size(request, monkeypatch) -> None:
    """Files read whole, and files of which some bytes of every tensor are read."""
    if request.param == "large":
        monkeypatch.setattr(weight_files, "WHOLE_BYTES", 0)


def tensors() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    sizes = (60, 32), (32,), (90, 32), (60, 32)
    return {name: torch.randn(*x, generator=generator) for name, x in zip(NAMES, sizes, strict=True)}


def save_safetensors(folder: Path, weights: dict) -> None:
    save_file(weights, folder / "model.safetensors")


def save_sharded(folder: Path, weights: dict) -> None:
    for i, (name, tensor) in enumerate(weights.items(), 1):
        save_file({name: tensor}, folder / f"model-{i:05}-of-{len(weights):05}.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {}}))


def save_adapter(folder: Path, weights: dict) -> None:
    save_file(weights, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text('{"r": 4}')


def save_torch(folder: Path, weights: dict) -> None:
    torch.save(weights, folder / "pytorch_model.bin")


def save_old_torch(folder: Path, weights: dict) -> None:
    torch.save(weights, folder / "pytorch_model.bin", _use_new_zipfile_serialization=False)


def save_gguf(folder: Path, weights: dict) -> None:
    gguf = pytest.importorskip("gguf")
    writer = gguf.GGUFWriter(folder / "model.gguf", "llama")
    writer.add_array("tokenizer.ggml.tokens", ["a", "", "é"])
    writer.add_array("tokenizer.ggml.scores", [0.5, 1.0])
    writer.add_bool("tokenizer.ggml.add_bos_token", True)
    for name, tensor in weights.items():
        writer.add_tensor(name, tensor.numpy())
    for step in ("header", "kv_data", "tensors"):
        getattr(writer, f"write_{step}_to_file")()
    writer.close()


FORMS = {
    "safetensors": save_safetensors,
    "sharded": save_sharded,
    "adapter": save_adapter,
    "torch": save_torch,
    "old torch": save_old_torch,
    "gguf": save_gguf,
}


def fingerprint_of(folder: Path, form: str) -> str:
    return model_fingerprint(str(folder / "model.gguf" if form == "gguf" else folder))


@pytest.mark.parametrize("form", FORMS)
def test_one_element_of_every_tensor_is_seen(form, size, tmp_path):
    """75 changes to a tensor were tried once, of which 37 were not seen: the blocks that were read were spread over the file."""

    def saved(changed: str | None = None, at: int = 0) -> str:
        weights = tensors()
        if changed is not None:
            weights[changed].view(-1)[at] += 1
        folder = tmp_path / f"{changed}-{at}"
        folder.mkdir()
        FORMS[form](folder, weights)
        return fingerprint_of(folder, form)

    places = [(name, at) for name in NAMES for at in (0, 17, -1)]
    found = [saved(*place) for place in places]
    assert saved() not in found and len(set(found)) == len(places)
    if form == "safetensors":
        shutil.copytree(tmp_path / "None-0", tmp_path / "elsewhere")
        assert fingerprint_of(tmp_path / "elsewhere", form) == fingerprint_of(tmp_path / "None-0", form)


def test_every_tensor_of_a_checkpoint_of_many_is_seen(tmp_path):
    """75 tensors, of which 50 are of 256 bytes, in a file of 20 MiB: one element of each small one, each large one as a whole."""
    weights = {f"{i}.{name}": torch.ones(64) for i in range(25) for name in "ab"}
    save_file(
        weights | {f"{i}.matrix": torch.ones(450, 450) for i in range(25)}, path := tmp_path / "model.safetensors"
    )
    data = path.read_bytes()
    head = 8 + struct.unpack("<Q", data[:8])[0]
    found = {model_fingerprint(str(tmp_path))}
    for name, about in json.loads(data[8:head]).items():
        begin, end = (head + place for place in about["data_offsets"])
        size = end - begin if "matrix" in name else 4
        with path.open("r+b") as stream:
            for changed in (data[begin : begin + size][::-1], data[begin : begin + size]):
                stream.seek(begin)
                stream.write(changed)
                stream.flush()
                found.add(model_fingerprint(str(tmp_path)))
    assert len(found) == 1 + 75 and path.read_bytes() == data


@pytest.mark.parametrize("form", ["safetensors", "torch", "gguf"])
def test_the_table_of_tensors_is_that_of_other_readers(form, tmp_path):
    """Byte for byte what safetensors, torch and gguf read from these files stands where the table says."""
    FORMS[form](tmp_path, tensors())
    [path] = [x for x in tmp_path.iterdir() if x.suffix in (".safetensors", ".bin", ".gguf")]
    if form == "safetensors":
        with safe_open(path, "pt") as file:
            expected = [file.get_tensor(name).numpy() for name in file.keys()]  # noqa: SIM118
    elif form == "torch":
        expected = [x.numpy() for x in torch.load(path).values()]
    else:
        from gguf import GGUFReader

        expected = [np.array(x.data) for x in GGUFReader(path).tensors]
    with path.open("rb", buffering=0) as stream:
        table = weight_files._table(stream, path.stat().st_size)
        found = [b"".join(weight_files._read(stream, *span)) for span in table.tensors]
    assert len(found) == len(expected) == len(NAMES)
    assert sorted(x[: 32 * 4] for x in found) == sorted(x.tobytes()[: 32 * 4] for x in expected)
    assert all(any(x.startswith(y.tobytes()) for x in found) for y in expected)  # gguf fills up to 32 bytes


def test_large_tensors_are_seen_to_change_and_read_in_part(tmp_path, monkeypatch):
    """Three tensors of 8 MiB: another scale of one of them is seen, and a hundredth of the file is read."""
    monkeypatch.setattr(weight_files, "WHOLE_BYTES", 0)
    read, real = [], weight_files._read
    monkeypatch.setattr(
        weight_files, "_read", lambda stream, start, size: read.append(size) or real(stream, start, size)
    )
    weights, found = {name: torch.full((1 << 21,), 1.5) for name in NAMES[:3]}, set()
    for changed in (None, *weights):
        path = tmp_path / f"{changed}.safetensors"
        save_file({name: x * (2 if name == changed else 1) for name, x in weights.items()}, path)
        found.add(file_digest(path))
    assert len(found) == 4 and sum(read) < 4 * 24e6 / 100


def test_a_checkpoint_of_7b_takes_about_a_second(tmp_path):
    """A hollow file of 13.5 GB with the 291 tensors of a LLaMA 7B."""
    sizes = [131_072_000 * 2] * 2 + [4096 * 2] * 65 + [4096 * 4096 * 2] * 128 + [4096 * 11008 * 2] * 96
    ends = np.cumsum(sizes).tolist()
    table = {
        str(i): {"dtype": "BF16", "shape": [n // 2], "data_offsets": [e - n, e]}
        for i, (n, e) in enumerate(zip(sizes, ends, strict=True))
    }
    head = json.dumps(table).encode()
    with (tmp_path / "model.safetensors").open("wb") as stream:
        stream.write(struct.pack("<Q", len(head)) + head)
        stream.truncate(8 + len(head) + ends[-1])
    started = time.process_time()
    model_fingerprint(str(tmp_path))
    assert time.process_time() - started < 1.5


@pytest.mark.parametrize(
    "damage", [b"", b"PK\3\4 no zip", b"GGUF\3\0\0\0" + b"\xff" * 40, b"\xff" * 64, b"\x10" + b"\0" * 7 + b"{" * 99]
)
def test_damaged_files_have_a_digest_too(damage, size, tmp_path):
    (tmp_path / "a.bin").write_bytes(damage)
    (tmp_path / "b.bin").write_bytes(damage + b"!")
    assert file_digest(tmp_path / "a.bin") != file_digest(tmp_path / "b.bin")


def test_a_file_is_read_once_as_long_as_it_stays(tmp_path, monkeypatch):
    path, real, reads = tmp_path / "a.safetensors", weight_files._telling_bytes, []
    monkeypatch.setattr(weight_files, "_telling_bytes", lambda *args: reads.append(1) or real(*args))
    path.write_bytes(b"old!")
    file_digest(path), file_digest(path)
    assert len(reads) == 2  # it may still be written within one tick of the clock
    os.utime(path, (1e9, 1e9))
    first = [file_digest(path) for _ in range(3)]
    assert len(set(first)) == 1 and len(reads) == 3
    path.write_bytes(b"new!")
    os.utime(path, (1e9, 1e9))  # of the same size and age
    assert file_digest(path) != first[0]


# Which files


@pytest.fixture(scope="module")
def folder(tokenizer, tmp_path_factory) -> Path:
    return Path(make_model("llama", tmp_path_factory.mktemp("model"), tokenizer))


# file -> whether a change to it makes another model, another tokenizer
FILES = {
    "config.json": (True, True),
    "model.safetensors": (True, False),
    "adapter_model.safetensors": (True, False),
    "pytorch_model.bin": (True, False),
    "tokenizer.json": (False, True),
    "tokenizer_config.json": (False, True),
    "chat_template.jinja": (False, True),
    "additional_chat_templates/tools.jinja": (False, True),
    "special_tokens_map.json": (False, True),
    "generation_config.json": (False, False),
    "training_args.bin": (False, False),
    "trainer_state.json": (False, False),
    "README.md": (False, False),
    "train.py": (False, False),
}


@pytest.mark.parametrize("file", FILES)
def test_files_that_change_a_model_and_a_tokenizer(file, folder, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    both = model_fingerprint, tokenizer_fingerprint
    before = [fingerprint(str(copy)) for fingerprint in both]
    assert before == [fingerprint(str(folder)) for fingerprint in both]
    (copy / file).parent.mkdir(exist_ok=True)
    with (copy / file).open("ab") as stream:
        stream.write(b" ")
    assert tuple(fingerprint(str(copy)) != x for fingerprint, x in zip(both, before, strict=True)) == FILES[file]


def test_code_that_a_model_brings_along_is_part_of_it(folder, tmp_path):
    for part, fingerprint in (("config.json", model_fingerprint), ("tokenizer_config.json", tokenizer_fingerprint)):
        copy = tmp_path / part
        shutil.copytree(folder, copy)
        about = json.loads((copy / part).read_text())
        (copy / part).write_text(json.dumps(about | {"auto_map": {"AutoModelForCausalLM": "mine.Model"}}))
        found = []
        for text in ("a = 1", "a = 2"):
            (copy / "mine.py").write_text(text)
            found.append(fingerprint(str(copy)))
        assert found[0] != found[1]


def test_every_file_that_a_tokenizer_of_transformers_reads_is_looked_at(tmp_path):
    """By the library's own table of tokenizers."""
    from transformers.models.auto.tokenization_auto import TOKENIZER_MAPPING_NAMES, tokenizer_class_from_name
    from transformers.tokenization_utils_base import ADDED_TOKENS_FILE, CHAT_TEMPLATE_FILE, SPECIAL_TOKENS_MAP_FILE

    classes = {
        x for names in TOKENIZER_MAPPING_NAMES.values() for x in (names if isinstance(names, tuple) else [names])
    }
    files = {ADDED_TOKENS_FILE, CHAT_TEMPLATE_FILE, SPECIAL_TOKENS_MAP_FILE}
    for name in filter(None, classes):
        named = getattr(tokenizer_class_from_name(name), "vocab_files_names", {})
        files |= {x for x in named.values() if isinstance(x, str)}
    assert len(files) > 20
    for file in files:
        (tmp_path / file).write_text("")
    assert fingerprints._tokenizer_files(tmp_path).keys() == files


def test_modules_of_a_sentence_model_are_part_of_it(tmp_path):
    (tmp_path / "1_Pooling").mkdir()
    modules = [{"path": ""}, {"path": "1_Pooling"}]
    (tmp_path / "modules.json").write_text(json.dumps(modules))
    (tmp_path / "elsewhere").mkdir()
    changed = (
        "config_sentence_transformers.json",
        "1_Pooling/config.json",
        "1_Pooling/model.safetensors",
        "tokenizer.json",
    )
    found = [sentence_model_fingerprint(str(tmp_path))]
    for file in changed:
        (tmp_path / file).write_text("{}")
        found.append(sentence_model_fingerprint(str(tmp_path)))
    assert len(set(found)) == 1 + len(changed)
    (tmp_path / "elsewhere" / "README.md").write_text("no module")
    assert sentence_model_fingerprint(str(tmp_path)) == found[-1]


def test_a_gguf_file_is_known_under_any_name(tmp_path):
    save_gguf(tmp_path, tensors())
    shutil.copy(tmp_path / "model.gguf", tmp_path / "renamed.gguf")
    names = [str(tmp_path / x) for x in ("model.gguf", "renamed.gguf")]
    assert len({model_fingerprint(x) for x in names} | {tokenizer_fingerprint(x) for x in names}) == 1
