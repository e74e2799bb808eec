"""From a model's name to what `from_pretrained` takes, and to a fingerprint of its weights."""

import hashlib
import logging
import os
from pathlib import Path

from transformers import AutoConfig, AutoTokenizer

from .config import ModelPairConfig


logger = logging.getLogger(__name__)


FINGERPRINT_BLOCKS, FINGERPRINT_BLOCK_BYTES = 64, 1 << 14


def load_location(name: str) -> tuple[str]:
    """A GGUF file is loaded by its folder (or repository) and its own name."""
    name = os.path.expanduser(name)
    return (name.rpartition("/")[0] or ".",) if name.endswith(".gguf") else (name,)


def load_options(name: str, revision: str | None, trust_remote_code: bool) -> dict:
    """What `from_pretrained` takes besides `load_location`."""
    gguf = {"gguf_file": name.rpartition("/")[2]} if name.endswith(".gguf") else {}
    return {"revision": revision or "main", "trust_remote_code": trust_remote_code, **gguf}


def place_of(name: str, revision: str | None) -> str:
    """The same for two names of one folder, file or revision of a repository."""
    path = Path(name).expanduser()
    return str(path.resolve()) if path.exists() else f"{name}@{revision or 'main'}"


def check_local(name: str) -> None:
    """Refuse the name of a folder or file that is not there.

    Raises:
        FileNotFoundError: it looks like one, and nothing is there.
    """
    if name.startswith(("/", "./", "../", "~")) and not Path(name).expanduser().exists():
        raise FileNotFoundError(f"There is no model at {name!r}; give an existing folder, a .gguf file, or a Hub id.")


def load_config(name: str, revision: str | None, trust_remote_code: bool):
    """The configuration of a model's decoder; no weights."""
    config = AutoConfig.from_pretrained(*load_location(name), **load_options(name, revision, trust_remote_code))
    return config.get_text_config(decoder=True)


def load_tokenizer(name: str, revision: str | None, config: ModelPairConfig):
    """The tokenizer that a model ships with."""
    return AutoTokenizer.from_pretrained(
        *load_location(name), **load_options(name, revision, config.trust_remote_code)
    )


def commit_of(name: str, revision: str | None = None) -> str | None:
    """The Hub's commit that a model was loaded from into the local cache; None for a folder or file."""
    from huggingface_hub import try_to_load_from_cache

    if Path(name).expanduser().exists():
        return None
    for file in ("config.json", "adapter_config.json"):
        found = try_to_load_from_cache(name, file, revision=revision or "main")
        if isinstance(found, str):
            return Path(found).parent.name
    return None


def model_fingerprint(name: str, revision: str | None = None) -> str:
    """What tells one set of weights from another: the Hub commit, or a hash over samples of every local weight file."""
    path = Path(name).expanduser()
    if not path.exists():
        commit = commit_of(name, revision)
        if commit is None:
            logger.info("No commit is known for %s; its name stands for its weights.", name)
        return commit or name
    digest = hashlib.sha256()
    patterns = ("*.safetensors", "*.bin", "*.gguf", "config.json", "adapter_config.json")
    files = [path] if path.is_file() else sorted(file for pattern in patterns for file in path.glob(pattern))
    for file in files:
        size = file.stat().st_size
        digest.update(f"{file.name} {size}".encode())
        with file.open("rb") as stream:
            for i in range(FINGERPRINT_BLOCKS):
                stream.seek(i * max(size - FINGERPRINT_BLOCK_BYTES, 0) // (FINGERPRINT_BLOCKS - 1))
                digest.update(stream.read(FINGERPRINT_BLOCK_BYTES))
    return "sha256:" + digest.hexdigest()[:32]
