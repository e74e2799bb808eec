"""`load_scored`: rows that somebody else has scored, checked against the record that was pushed with them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..files.hub_reading import head_of, read_text, repeated
from ..files.replacing import SIDECAR
from ..records import attach_record
from .dataset_card import DEFAULT
from .scored import ScoredRecord, changed_rows, rows_digest


if TYPE_CHECKING:
    from datasets import Dataset


def load_scored(
    repo_id: str, name: str = DEFAULT, *, split: str | None = None, revision: str | None = None
) -> Dataset:
    """Load rows that somebody has scored and pushed with `push_scored`: `rank` and `GateauSelector` take them at once.

    Rows, measurements and record come from one commit. Nothing in them is run; they are data.

    Args:
        repo_id (`str`): OWNER/NAME on the Hub.
        name (`str`): configuration: every row with all measurements, or a selection such as `top10`.
        split (`str`, *optional*): split to take. Default: train, or the only one.
        revision (`str`, *optional*): branch, tag or commit.

    Raises:
        ValueError: no record or no such configuration, or rows that are not those that the record was written for.
        HubError: the repository cannot be read.
    """
    from datasets import load_dataset

    commit_hash, record = scored_record(repo_id, revision)
    split = split or next(x for x in ("train", *record.splits) if x in record.splits)
    chosen = record.selections.get(name, {}).get(split) if name != DEFAULT else record.splits.get(split)
    if chosen is None:
        configs = {DEFAULT: list(record.splits)} | {x: list(splits) for x, splits in record.selections.items()}
        raise ValueError(f"{repo_id} has no split {split!r} of configuration {name!r}; it has {configs}.")
    ds = repeated(lambda: load_dataset(repo_id, name, split=split, revision=commit_hash), f"Loading {repo_id}")
    _check_loaded(ds, chosen, f"{repo_id} ({name}, {split}, commit {commit_hash[:10]})")
    entry = record.splits[split]
    source = {"source": entry["source"]} if entry.get("source") else {}
    attach_record(ds, "origin", {"repo_id": repo_id, "config": name, "revision": commit_hash} | source)
    for kind in ("ranking", "measuring"):
        if isinstance(entry.get(kind), dict):
            attach_record(ds, kind, entry[kind])
    if name != DEFAULT:
        attach_record(ds, "selection", chosen["record"] | {"measuring": entry.get("measuring")})
    return ds


def scored_record(repo_id: str, revision: str | None = None) -> tuple[str, ScoredRecord]:
    """The commit that a revision is at, and the record there.

    Raises:
        ValueError: the repository has no record of a scored dataset.
        HubError: the repository cannot be read.
    """
    commit_hash = head_of(repo_id, "dataset", revision)
    if commit_hash is None:
        at = f" at {revision!r}" if revision is not None else ""
        raise ValueError(f"There is no dataset {repo_id!r}{at} on the Hub, or you may not read it (`hf auth login`).")
    record = record_at(repo_id, commit_hash)
    if record is None:
        raise ValueError(
            f"{repo_id} has no {SIDECAR}, so it was not pushed with push_scored. load_dataset loads it as it is; score it "
            "with `hf-gateau score` or ds.map(gateau_score, batched=True)."
        )
    return commit_hash, record


def record_at(repo_id: str, commit_hash: str) -> ScoredRecord | None:
    """The record of a repository at one commit; None where there is none."""
    text = read_text(repo_id, "dataset", SIDECAR, commit_hash)
    return ScoredRecord.from_json(text, f"{SIDECAR} of {repo_id}") if text is not None else None


def _check_loaded(ds: Dataset, chosen: dict[str, Any], where: str) -> None:
    """Refuse rows whose measurements or texts are not those of the record."""
    problem = (
        "" if rows_digest(ds) == chosen.get("digest") else "their measurements have another digest than the record"
    )
    if not problem and (changed := changed_rows(ds)):
        problem = f"the text of {len(changed)} rows (row {changed[0]} is the first) is not what was measured"
    if problem:
        raise ValueError(
            f"The rows of {where} are not those that were scored: {problem}. Ask its owner to push them again, or load "
            "them with load_dataset and score them yourself."
        )
