"""What tells one model, adapter or tokenizer from another: the commit of its repository, or a hash of its files.

Nothing here loads a model or imports a library that could: `datasets` asks for it whenever it looks for what it has kept.
"""

import hashlib
import json
import logging
import re
import time
from collections.abc import Callable, Iterable
from pathlib import Path

from ..files.hub_reading import client_errors
from .config import ModelPairConfig
from .weight_files import file_digest


logger = logging.getLogger(__name__)

COMMIT = re.compile("[0-9a-f]{40}")
SECONDS_KNOWN = 300.0  # that the Hub is not asked again for
# Files of a repository of which its commit can be told from the local cache
KNOWN_BY = ("config.json", "adapter_config.json", "tokenizer_config.json", "tokenizer.json", "modules.json")

WEIGHT_FILES = ("*.safetensors", "*.bin", "*.index.json", "config.json", "adapter_config.json")
NO_WEIGHTS = ("training_args.bin", "optimizer.bin", "scheduler.bin")  # which a Trainer leaves beside them
CODE_FILES = ("*.py",)  # that a configuration's `auto_map` names
# Everything that `AutoTokenizer` reads; the configuration names the class where nothing else does.
TOKENIZER_FILES = (
    "tokenizer*", "special_tokens_map.json", "added_tokens.json", "chat_template*", "additional_chat_templates/*",
    "*vocab*", "merges*", "*.model", "*.spm", "*.tiktoken", "*.codes", "*.tokenizer", "tekken.json", "dict.txt",
    "normalizer.json", "byte_maps.json", "emoji.json", "word_*.json", "config.json",
)  # fmt: skip

_answers: dict[tuple[str, str], tuple[float, str | None]] = {}


def model_fingerprint(name: str, revision: str | None = None) -> str:
    """What tells one set of weights from another: for a Hub id, as for a snapshot of it in the local cache, its commit; for a
    folder or file a hash over its configuration and some of every tensor.

    Where neither the Hub nor the cache knows a commit, the name stands for the weights.

    Raises:
        OSError: a file cannot be read.
    """
    return _fingerprint(name, revision, _weight_files)


def tokenizer_fingerprint(name: str, revision: str | None = None) -> str:
    """Likewise of a tokenizer and its chat template; of a .gguf file, which brings both along, that of the model.

    Raises:
        OSError: a file cannot be read.
    """
    return _fingerprint(name, revision, _tokenizer_files)


def sentence_model_fingerprint(name: str, revision: str | None = None) -> str:
    """Likewise of a sentence-transformers model: tokenizer, prompts and the modules in folders of their own included.

    Raises:
        OSError: a file cannot be read.
    """
    return _fingerprint(name, revision, _sentence_model_files)


def _fingerprint(name: str, revision: str | None, files_of) -> str:
    path = Path(name).expanduser()
    if not path.exists():
        return _hub_fingerprint(name, revision)
    if (commit := _commit_of_snapshot(path)) is not None:
        return commit
    files = {"": path} if path.is_file() else files_of(path)
    parts = [f"{name} {file_digest(files[name])}" for name in sorted(files)]
    return "sha256:" + hashlib.sha256("\n".join(parts).encode()).hexdigest()[:32]


def _hub_fingerprint(name: str, revision: str | None) -> str:
    commit = resolved_commit(name, revision)
    if commit is None:
        logger.info("No commit is known for %s; its name stands for its weights.", name)
        return name if revision is None else f"{name}@{revision}"
    _, file = repository_of(name)
    return f"{commit}/{file}" if file else commit


def _commit_of_snapshot(path: Path) -> str | None:
    """The commit that a folder of the Hub's local cache, or a .gguf file in one, is; None for any other."""
    folder, file = (path.parent.resolve(), f"/{path.name}") if path.is_file() else (path.resolve(), "")
    repository = folder.parent.parent
    is_snapshot = folder.parent.name == "snapshots" and COMMIT.fullmatch(folder.name)
    return folder.name + file if is_snapshot and (repository / "blobs").is_dir() else None


# The files of a folder, by their names in it


def _matching(folder: Path, patterns: Iterable[str], without: Iterable[str] = ()) -> dict[str, Path]:
    found = {file for pattern in patterns for file in folder.glob(pattern) if file.is_file()}
    return {file.relative_to(folder).as_posix(): file for file in found if file.name not in without}


def _weight_files(folder: Path) -> dict[str, Path]:
    return _matching(folder, (*WEIGHT_FILES, *_code(folder, "config.json")), NO_WEIGHTS)


def _tokenizer_files(folder: Path) -> dict[str, Path]:
    return _matching(folder, (*TOKENIZER_FILES, *_code(folder, "tokenizer_config.json")))


def _code(folder: Path, config: str) -> tuple[str, ...]:
    return CODE_FILES if "auto_map" in _json(folder / config) else ()


def _sentence_model_files(folder: Path) -> dict[str, Path]:
    modules = _json(folder / "modules.json")
    places = (
        {module.get("path") for module in modules if isinstance(module, dict)} if isinstance(modules, list) else ()
    )
    files = _weight_files(folder) | _tokenizer_files(folder) | _matching(folder, ("*.json", "*.txt"), NO_WEIGHTS)
    return files | _matching(folder, [f"{place}/**/*" for place in places if place])


def _json(file: Path) -> dict | list:
    try:
        return json.loads(file.read_text("utf-8"))
    except (OSError, ValueError):
        return {}


# Commits


def repository_of(name: str) -> tuple[str, str]:
    """A Hub id, and the .gguf file in its repository that a name may end in."""
    return tuple(name.rpartition("/")[::2]) if name.endswith(".gguf") else (name, "")


def commit_of(name: str, revision: str | None = None) -> str | None:
    """The Hub's commit that a model was loaded from into the local cache; None for a folder or file."""
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    if Path(name).expanduser().exists():
        return None
    repository, file = repository_of(name)
    for known in (file,) if file else KNOWN_BY:
        try:
            found = try_to_load_from_cache(repository, known, revision=revision or "main")
        except HFValidationError:  # no name that a repository can have
            return None
        if isinstance(found, str):
            return Path(found).parents[known.count("/")].name
    return None


def resolved_commit(name: str, revision: str | None = None) -> str | None:
    """The commit that a revision of a Hub id is at: by the Hub itself, else by the local cache; None for a folder or file, and
    where neither can tell. The Hub is asked once in five minutes."""
    if Path(name).expanduser().exists():
        return None
    if revision is not None and COMMIT.fullmatch(revision):
        return revision
    return _asked(repository_of(name)[0], revision) or commit_of(name, revision)


def _asked(repository: str, revision: str | None) -> str | None:
    """The commit as the Hub tells it; None where it does not, which is remembered too."""
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return None
    key, now = (repository, revision or "main"), time.monotonic()
    known = _answers.get(key)
    if known is None or now - known[0] > SECONDS_KNOWN:
        known = _answers[key] = now, _ask(repository, revision)
    return known[1]


def loaded_commit(name: str, revision: str | None = None) -> str | None:
    """The commit that files of a Hub id have just been loaded from; None for a folder or file. The Hub is not asked for a while."""
    commit = commit_of(name, revision)
    if commit is not None:
        _answers[repository_of(name)[0], revision or "main"] = time.monotonic(), commit
    return commit


def _ask(repository: str, revision: str | None) -> str | None:
    from huggingface_hub import HfApi, constants
    from huggingface_hub.errors import HFValidationError

    try:
        return HfApi().model_info(repository, revision=revision, timeout=constants.HF_HUB_ETAG_TIMEOUT).sha
    except (*client_errors(), HFValidationError) as error:
        logger.info("The Hub does not tell at which commit %s is (%s).", repository, type(error).__name__)
        return None


# A pair


def tokenizer_source(config: ModelPairConfig) -> tuple[str, str | None]:
    """Name and revision of a pair's tokenizer: the one that is set, at a model's revision if it is that model's, or the long
    model's."""
    long, short = (config.long_model, config.long_revision), (config.short_model, config.short_revision)
    if config.tokenizer is None:
        return long
    return config.tokenizer, dict((short, long)).get(config.tokenizer)


def pair_fingerprints(config: ModelPairConfig) -> dict[str, str | None]:
    """Of everything that a pair's numbers and tokens rest on, by name. Where files cannot be read, or nothing is known of a Hub
    id, names stand for them: never an error, since nothing is loaded yet."""
    found = {
        name: model and fingerprint_or_name(model_fingerprint, model, revision)
        for name, model, revision in (
            ("long", config.long_model, config.long_revision),
            ("short", config.short_model, config.short_revision),
            ("long_adapter", config.long_adapter, config.long_adapter_revision),
            ("short_adapter", config.short_adapter, config.short_adapter_revision),
        )
    }
    return found | {"tokenizer": fingerprint_or_name(tokenizer_fingerprint, *tokenizer_source(config))}


def fingerprint_or_name(fingerprint: Callable[..., str], name: str, revision: str | None) -> str:
    """One of the fingerprints; the name where files cannot be read."""
    try:
        return fingerprint(name, revision)
    except OSError:
        return name
