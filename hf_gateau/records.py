"""JSON records that stay with a dataset: where it came from, what measured it, how it was ranked and its rows selected.

They live as comments in the dataset's description, which `datasets` keeps through `map`, `filter` and `save_to_disk`.
"""

import json
import logging
import re
from collections import Counter
from pathlib import Path
from typing import Any


logger = logging.getLogger(__name__)

PLACE = re.compile(r" \((?:after )?(?:line|row) \d+ of .*\)$")  # as reasons of `files.json_records` end
MOST_REASONS = 20  # told one by one; errors can be long and many


def column_of(ds, name: str) -> list:
    """One column of a `Dataset` as Python values, whatever its format; no other is read."""
    return ds.select_columns([name]).with_format(None)[:][name]


def commonest(reasons: Counter) -> dict[str, int]:
    """How often each reason was given, the commonest first, and the rare ones together; of reasons that only name another
    place in a file, one with the first place."""
    alike: dict[str, Counter] = {}
    for reason, count in reasons.items():
        alike.setdefault(PLACE.sub("", reason), Counter())[reason] += count
    reasons = Counter({_with_places(list(part)): part.total() for part in alike.values()})
    shown = dict(reasons.most_common(MOST_REASONS))
    rest = reasons.total() - sum(shown.values())
    return shown | ({"other reasons": rest} if rest else {})


def _with_places(reasons: list[str]) -> str:
    return reasons[0] if len(reasons) == 1 else f"{reasons[0][:-1]}, and {len(reasons) - 1} more)"


def _pattern(kind: str) -> re.Pattern:
    return re.compile(rf"(?:\n\n)?<!-- gateau:{kind} (\{{.*?\}}) -->")


def value_kind(column: str) -> str:
    """Of the record that says which model measured a column of values."""
    return column.removeprefix("gateau_")


def attach_record(ds, kind: str, record: dict[str, Any]) -> None:
    """Leave a record with a `Dataset`, in place of an earlier one of its kind."""
    block = json.dumps(record).replace(">", "\\u003e")  # so that no reason can end the comment
    own_text = _pattern(kind).sub("", ds.info.description or "")
    ds.info.description = own_text + "\n\n" * bool(own_text) + f"<!-- gateau:{kind} {block} -->"


def find_record(ds, kind: str) -> dict[str, Any] | None:
    """The record of that kind; None where there is none, or more than one, of parts that were put together."""
    found = set(_pattern(kind).findall(ds.info.description or ""))
    if len(found) > 1:
        logger.warning(
            "These data hold %d records of their %s, of parts made apart; make it again on the whole.",
            len(found),
            kind,
        )
    return json.loads(found.pop()) if len(found) == 1 else None


def origin_of(ds) -> dict[str, Any] | None:
    """Where rows came from: "repo_id", "config" and "revision" (the commit) of the Hub, or "name" of a local file; and,
    where those were scored data, "source", the data that were scored. None where nothing tells.
    """
    found = find_record(ds, "origin")
    if found is not None:
        return found
    for file in getattr(
        ds, "cache_files", ()
    ):  # of `load_dataset`: OWNER___NAME/CONFIG/VERSION/COMMIT/; streams have none
        folders = Path(file["filename"]).parts[-5:-1]
        if len(folders) == 4 and "___" in folders[0] and re.fullmatch(r"[0-9a-f]{40}", folders[3]):
            return {"repo_id": folders[0].replace("___", "/", 1), "config": folders[1], "revision": folders[3]}
    return None
