"""How our part of a README is put into one that holds other people's, and what its metadata say.

A README is YAML metadata between two lines of `---`, then Markdown. Ours is the block between `BEGIN` and `END`, and the
metadata that the last push wrote; everything else stays as it is, byte for byte.
"""

from __future__ import annotations

import json
import logging
import os
import re
from functools import partial
from pathlib import Path
from typing import Any

from ..files.hub_reading import STUMBLES, again, explained
from ..markdown import is_repo_id, one_line


logger = logging.getLogger(__name__)


BEGIN = "<!-- gateau:begin. Each push writes this part anew, up to gateau:end; what stands outside is left alone. -->"
END = "<!-- gateau:end -->"
TAGS = ["gateau", "long-context", "data-selection"]
FRONT_MATTER = re.compile(r"\A(\s*---[ \t]*\r?\n)(.*?)(^---[ \t]*(?:\r?\n|\Z))", re.DOTALL | re.MULTILINE)
# What PyYAML raises besides its own errors
YAML_STUMBLES = (ValueError, LookupError, AttributeError, TypeError, RecursionError)
KEYED = {"configs": "config_name", "model-index": "name"}  # metadata that are lists of entries with a name
BLOCK = re.compile(f"{re.escape(BEGIN)}(?:(?!{re.escape(BEGIN)}).)*?{re.escape(END)}", re.DOTALL)
WRITTEN = re.compile(r"<!-- gateau:metadata (\{.*\}) -->")

CITATIONS = """\
@article{si2024gateau,
  title = {GATEAU: Selecting Influential Samples for Long Context Alignment},
  author = {Si, Shuzheng and Zhao, Haozhe and Chen, Gang and Li, Yunshui and Luo, Kangyang and Lv, Chuancheng and An, Kaikai and Qi, Fanchao and Chang, Baobao and Sun, Maosong},
  journal = {arXiv preprint arXiv:2410.15633},
  year = {2024}
}"""
TRAINING_CITATIONS = """\
@article{bai2024longalign,
  title = {LongAlign: A Recipe for Long Context Alignment of Large Language Models},
  author = {Bai, Yushi and Lv, Xin and Zhang, Jiajie and He, Yuze and Qi, Ji and Hou, Lei and Tang, Jie and Dong, Yuxiao and Li, Juanzi},
  journal = {arXiv preprint arXiv:2401.18058},
  year = {2024}
}

@software{vonwerra2020trl,
  title = {{TRL: Transformers Reinforcement Learning}},
  author = {von Werra, Leandro and Belkada, Younes and Tunstall, Lewis and Beeching, Edward and Thrush, Tristan and Lambert, Nathan and Huang, Shengyi and Rasul, Kashif and Gallouédec, Quentin},
  license = {Apache-2.0},
  url = {https://github.com/huggingface/trl},
  year = {2020}
}"""


def merge_readme(readme: str | None, title: str, block: str, metadata: dict[str, Any]) -> str:
    """A README with our block and metadata in place of those of the last push.

    Args:
        readme (`str`): what is there; None for nothing.
        title (`str`): heading of a README that does not exist yet, as Markdown.
        block (`str`): our Markdown.
        metadata (`dict`): what is to stand in the YAML, see `merge_metadata`.

    Raises:
        ValueError: the README's YAML cannot be read.
    """
    found = FRONT_MATTER.match(readme or "")
    opening, front, closing = found.groups() if found else ("---\n", "", "---\n")
    body = (readme or "")[found.end() :] if found else (readme or "")
    there = BLOCK.search(body)
    front, ours = merge_metadata(front, metadata, _written(there[0]) if there else {})
    head = opening + front + closing
    head += "" if head.endswith("\n") else "\n"
    note = json.dumps(ours, sort_keys=True).replace(">", "\\u003e")  # so that nothing can end the comment
    block = f"{BEGIN}\n<!-- gateau:metadata {note} -->\n\n{block.strip()}\n\n{END}"
    if there:
        return head + body[: there.start()] + block + body[there.end() :]
    if not body.strip():
        return f"{head}\n# {title}\n\n{block}\n"
    return head + body + ("\n" if body.endswith("\n") else "\n\n") + block + "\n"


def _written(block: str) -> dict[str, Any]:
    """The metadata that the last push wrote, as its block says."""
    found = WRITTEN.search(block)
    try:
        metadata = json.loads(found[1]) if found else {}
    except (ValueError, RecursionError):
        return {}
    return metadata if isinstance(metadata, dict) else {}


def merge_metadata(front: str, metadata: dict[str, Any], before: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """The YAML with our metadata in it, and what of it is ours; lines of keys that do not change stay as they are.

    A list is united with what is there; in `configs` and `model-index`, entries of other names stay. Anything else is
    written where nothing stands, or where what the last push wrote stands. What the last push wrote (`before`) and this one
    does not is taken away. `dataset_info` is replaced, with None taken away.

    Raises:
        ValueError: the YAML cannot be read, or not be changed without changing what is not ours.
    """
    there, spans = _read_front_matter(front)
    merged = {
        name: _merged(name, there.get(name), metadata.get(name), before.get(name))
        for name in dict.fromkeys([*metadata, *before])
    }
    lines, added = front.splitlines(keepends=True), []
    if lines and not lines[-1].endswith("\n"):
        lines[-1] += "\n"
    changed = {name: value for name, (value, _) in merged.items() if there.get(name) != value}
    for name, value in changed.items():
        text = "" if value is None else _dump({name: value})
        if name in spans:
            start, stop = spans[name]
            lines[start:stop] = [text] + [""] * (stop - start - 1)
        else:
            added.append(text)
    front = "".join(lines) + "".join(added)
    expected = {name: value for name, value in (there | changed).items() if name not in changed or value is not None}
    found = _read_front_matter(front)[0]
    if {x: repr(y) for x, y in found.items()} != {x: repr(y) for x, y in expected.items()}:  # NaN is not NaN
        raise ValueError(
            "The README's metadata cannot be changed without changing what is not ours (an anchor, or the end of a document, "
            "perhaps); simplify them on the Hub, then push again."
        )
    return front, {name: ours for name, (_, ours) in merged.items() if ours not in (None, [])}


def _merged(name: str, there: Any, value: Any, before: Any) -> tuple[Any, Any]:
    """What is to stand under a key, and what of it is ours; `before` is what was ours at the last push."""
    if name == "dataset_info":
        return value, None
    if not isinstance(value, list) and not isinstance(before, list):
        return (value, value) if there is None or there == before else (there, None)
    value, before = (x if isinstance(x, list) else [] for x in (value, before))
    items = there if isinstance(there, list) else [] if there is None else [there]
    if name in KEYED:
        own = {_name_of(x, name) for x in [*value, *before]} - {None}
        kept, ours = [x for x in items if _name_of(x, name) not in own], value
    else:
        kept = [x for x in items if x not in before or x in value]
        ours = [x for x in value if x not in kept or x in before]
    value = kept + [x for x in value if x not in kept]
    return (there if value == items else value or None), ours


def _name_of(entry: Any, name: str) -> Any:
    """The name of an entry of `configs` or `model-index`; None where it has none."""
    found = entry.get(KEYED[name]) if isinstance(entry, dict) else None
    return found if isinstance(found, str) else None


def _read_front_matter(front: str) -> tuple[dict[str, Any], dict[str, tuple[int, int]]]:
    """The metadata, and the lines of each key."""
    import yaml

    try:
        there, spans = yaml.safe_load(front), _key_spans(front)
        if there is not None and not isinstance(there, dict):
            raise ValueError("no mapping")
    except (yaml.YAMLError, *YAML_STUMBLES) as error:
        raise ValueError(
            f"The README's metadata cannot be read as YAML ({' '.join(str(error).split())}); mend them on the Hub, then push "
            "again."
        ) from error
    return there or {}, spans


def _key_spans(front: str) -> dict[str, tuple[int, int]]:
    """Lines [start, stop) of each key of the mapping, without blank lines and comments after it."""
    import yaml

    root = yaml.compose(front)
    if root is None:
        return {}
    if not isinstance(root, yaml.MappingNode) or root.flow_style:
        raise yaml.YAMLError("no mapping with one key a line")
    lines, spans = front.splitlines(), {}
    starts = [key.start_mark.line for key, _ in root.value] + [len(lines)]
    for (key, _), start, stop in zip(root.value, starts, starts[1:], strict=False):
        while stop > start + 1 and (not lines[stop - 1].strip() or lines[stop - 1].lstrip().startswith("#")):
            stop -= 1
        spans[key.value] = start, stop
    return spans


def _dump(mapping: dict[str, Any]) -> str:
    from huggingface_hub.utils import yaml_dump

    return yaml_dump(mapping, sort_keys=False)


def readme_metadata(readme: str | None) -> dict[str, Any]:
    """The metadata of a README; empty where there are none, or they cannot be read."""
    import yaml

    found = FRONT_MATTER.match(readme or "")
    try:
        metadata = yaml.safe_load(found[2]) if found else None
    except (yaml.YAMLError, *YAML_STUMBLES):
        return {}
    return metadata if isinstance(metadata, dict) else {}


def license_of(name: str | None, repo_type: str, revision: str | None = None) -> dict[str, str]:
    """What the metadata of a repository, or of a model's folder, say of its licence; empty where they say nothing, or you
    may not see them. Nothing is guessed.

    Raises:
        HubError: the Hub cannot be reached.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HFValidationError, RepositoryNotFoundError, RevisionNotFoundError

    metadata: dict[str, Any] = {}
    if name and os.path.isdir(name):
        readme = Path(name, "README.md")
        metadata = readme_metadata(readme.read_text("utf-8", "replace") if readme.is_file() else None)
    elif is_repo_id(name):
        with explained(f"Reading the licence of {name}", "Try again"):
            try:
                ask = partial(HfApi().repo_info, name, repo_type=repo_type, revision=revision)
                card = again(ask, STUMBLES).card_data
                metadata = card.to_dict() if card is not None else {}
            except (RepositoryNotFoundError, RevisionNotFoundError, HFValidationError) as error:
                logger.info("The licence of %s is not known: %s", name, error)
    names = ("license", "license_name", "license_link")
    return {key: one_line(metadata[key]) for key in names if isinstance(metadata.get(key), str)}
