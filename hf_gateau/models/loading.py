"""From a model's name to what `from_pretrained` takes."""

import json
import os
from importlib.util import find_spec
from pathlib import Path

from transformers import AutoConfig, AutoTokenizer
from transformers.utils import cached_file

from .config import ModelPairConfig


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


def check_installed(module: str, extra: str, what: str) -> None:
    """Refuse what needs a package of an extra that is not installed.

    Raises:
        ImportError: it is not; the message says how to install it.
    """
    if find_spec(module) is None:
        raise ImportError(f'{what} needs {module}; install it with `pip install "hf-gateau[{extra}]"`.')


def load_config(name: str, revision: str | None, trust_remote_code: bool):
    """The configuration of a model's decoder; no weights.

    Raises:
        OSError: there is none, or the Hub cannot be reached; the message names the model.
    """
    if name.endswith(".gguf"):
        check_installed("gguf", "gguf", f"{name}, a .gguf file,")
    try:
        config = AutoConfig.from_pretrained(*load_location(name), **load_options(name, revision, trust_remote_code))
    except OSError as error:
        if name in str(error):
            raise
        raise OSError(f"The model {name!r} cannot be loaded: {error}") from error
    return config.get_text_config(decoder=True)


def load_adapter_config(name: str, revision: str | None) -> dict:
    """The configuration of a PEFT adapter; no weights.

    Raises:
        OSError: there is none.
    """
    try:
        file = cached_file(os.path.expanduser(name), "adapter_config.json", revision=revision or "main")
    except OSError as error:
        raise OSError(
            f"There is no adapter at {name!r} ({error}); give a folder or Hub id with an adapter_config.json."
        ) from error
    return json.loads(Path(file).read_text("utf-8"))


def load_tokenizer(name: str, revision: str | None, config: ModelPairConfig):
    """The tokenizer that a model ships with."""
    return AutoTokenizer.from_pretrained(
        *load_location(name), **load_options(name, revision, config.trust_remote_code)
    )
