"""`push_scored`: score once, and let everybody choose from it.

A push is one commit: every file is sent ahead, then the data, the record, the figures and the card appear together. Whoever
reads meanwhile, or after a push that broke off, sees the state before it.
"""

from __future__ import annotations

import re
import tempfile
import warnings
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, replace
from functools import partial
from io import BytesIO
from math import ceil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import __version__
from ..files.hub_reading import read_text
from ..files.replacing import SIDECAR
from ..markdown import escape, is_repo_id, public_name
from ..ranking.config import SelectConfig
from ..ranking.decisions import contents_of_all, read_decisions
from ..ranking.formulas import METHOD_SETTINGS
from ..ranking.mixture import to_messages
from ..ranking.order import DegenerateRankingWarning, rank, ranking_record
from ..ranking.selection import select_rows, selection_record
from ..records import attach_record, find_record, origin_of
from ..redaction import redact
from ..rows.conversations import CONTENT_COLUMNS
from ..store.folder import known_measuring
from .commits import check_arrived, commit, open_repository, upload
from .dataset_card import DEFAULT, dataset_card, folder_of
from .pull import record_at
from .readme import license_of, merge_readme, readme_metadata
from .scored import ScoredRecord, changed_rows, compact, gateau_columns, rows_digest, split_record


if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict

TOP = {"top10": 0.1, "top30": 0.3, "top50": 0.5}  # the paper's shares
FIGURES = "figures"
MAX_SHARD_BYTES = 500 * 2**20
# Columns that `SFTTrainer` takes for something else than they are to us; left out of what is selected to train on.
NOT_TO_TRAIN_ON = ("prompt", "completion", "text", "labels", "input_ids", "images", "image", "conversations")
NAME = re.compile(r"[A-Za-z0-9][\w.-]*", re.ASCII)


def push_scored(
    ds: Dataset | DatasetDict,
    repo_id: str,
    configs: Mapping[str, float | dict[str, Any] | SelectConfig] | None = None,
    *,
    private: bool | None = None,
    revision: str | None = None,
    create_pr: bool = False,
    source: str | None = None,
    license: str | None = None,
    explorer: str | None = None,
    commit_message: str = "Scored with hf_gateau",
) -> str:
    """Push scored rows to the Hub, for others to load, rank in their own way, and train on.

    The rows become the configuration `default`; each selection one of its own, which `trl sft --dataset_config` trains on as
    it is. The card says how all this was made. A push that breaks off changes nothing and can be repeated; what the Hub has
    is not sent again; your own text and metadata in the card stay.

    Args:
        ds: ranked rows (`rank`); a `DatasetDict` pushes several splits.
        repo_id (`str`): OWNER/NAME, or NAME for your own.
        configs: name -> the share of ranked rows to keep, or settings of `select`; the best 10, 30 and 50% by default.
        private (`bool`, *optional*): whether a repository that does not exist yet is made private.
        revision (`str`, *optional*): branch to push to, made where it does not exist. Default: main.
        create_pr (`bool`): open a pull request instead.
        source (`str`, *optional*): the Hub's name of the data that were scored. Default: what the rows know of it.
        license (`str`, *optional*): the licence's identifier on the Hub. Default: what the source's own card says, if it does.
        explorer (`str`, *optional*): the Hub's name of a Space with the explorer of these rows (`push_explorer`), for the
            card to link to.
        commit_message (`str`): of the commit.

    Returns:
        The address of the commit, or of the pull request.

    Raises:
        ValueError: rows that are not ranked, that have changed since they were measured, or a name that cannot be used.
        HubError: the Hub refused or could not be reached.
    """
    splits = _splits(ds)
    if explorer is not None and not is_repo_id(explorer):
        raise ValueError(f"explorer={explorer!r} is no Space's name; give OWNER/NAME.")
    selections = {name: _select_config(name, value) for name, value in (TOP if configs is None else configs).items()}
    for split, part in splits.items():
        _check_pushable(part, split)
    decided = [read_decisions(x.decisions) for x in selections.values() if x.decisions is not None]
    contents = contents_of_all(splits.values()) if decided else set()
    for decisions in decided:
        decisions.num_unknown(contents)  # refused before anything is sent
    push = _Push(open_repository(repo_id, "dataset", private, revision), revision, create_pr, explorer)
    with tempfile.TemporaryDirectory(prefix="hf-gateau-") as folder:
        for split, part in splits.items():
            full = _as_pushed(part)
            push.add_rows(split, full, _split_entry(full, source), Path(folder))
            for name, config in selections.items():
                push.add_selection(split, name, select_rows(full, config, elsewhere=contents), Path(folder))
            push.add_figures(full, selections, "" if len(splits) == 1 else f"{split}_")
    return push.commit(commit_message, {"license": license} if license else None)


def _splits(ds: Any) -> dict[str, Dataset]:
    import datasets

    if isinstance(ds, datasets.DatasetDict):
        splits = dict(ds)
    elif isinstance(ds, datasets.Dataset):
        splits = {str(ds.split) if ds.split and NAME.fullmatch(str(ds.split)) else "train": ds}
    else:
        raise TypeError(f"push_scored needs a Dataset or DatasetDict, got {type(ds).__name__}; load a stream first.")
    if not splits or not all(NAME.fullmatch(name) for name in splits):
        raise ValueError(f"The splits {list(splits)} cannot be pushed; give one or more, named like 'train'.")
    return splits


def _select_config(name: str, value: Any) -> SelectConfig:
    if not NAME.fullmatch(name) or name in (DEFAULT, "data", FIGURES):
        raise ValueError(
            f"A configuration cannot be named {name!r}; use letters, digits, '_', '.' and '-', and not {DEFAULT!r}, 'data' "
            f"or {FIGURES!r}."
        )
    if isinstance(value, SelectConfig):
        return replace(value)
    return SelectConfig(**value) if isinstance(value, Mapping) else SelectConfig(fraction=value)


def _check_pushable(ds: Dataset, split: str) -> None:
    if "gateau_rank" not in ds.column_names:
        raise ValueError(
            f"The rows of split {split!r} are not ranked. Rank them first, with `hf-gateau rank` or rank(ds): the order is what is selected by."
        )
    if ranking_record(ds) is None:
        raise ValueError(
            f"The rows of split {split!r} are ranked, but nothing says how. Rank them again, with `hf-gateau rank` or rank(ds), and the settings you want."
        )
    if changed := changed_rows(ds):
        raise ValueError(
            f"{len(changed)} rows of split {split!r} have changed since they were measured (row {changed[0]} is the first). "
            "Measure them again, with `hf-gateau score` or ds.map(gateau_score, batched=True): what is unchanged is not measured "
            "twice."
        )


def _as_pushed(ds: Dataset) -> Dataset:
    """The rows with compact measurements, ranked by these as before, so that whoever ranks them again gets the same."""
    from datasets import concatenate_datasets

    was = ranking_record(ds)
    names = ("method", "mode", "alpha", "hmp", "cas", "combine", "tau", "seed", *METHOD_SETTINGS)
    settings = {name: was[name] for name in names if was.get(name) is not None}
    numbers, own = compact(ds), [was["reward_column"]] if was.get("reward_column") else []
    own = [name for name in own if name not in numbers.column_names]  # of the user's, to rank by
    numbers = concatenate_datasets([numbers, ds.select_columns(own).with_format(None)], axis=1) if own else numbers
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DegenerateRankingWarning)  # said when they were ranked, and in the record
        numbers = rank(numbers, **settings).remove_columns(own)
    texts = ds.remove_columns(gateau_columns(ds)).with_format(None)
    full = concatenate_datasets([texts, numbers], axis=1) if texts.column_names else numbers
    full.info.description = ds.info.description
    attach_record(full, "ranking", ranking_record(numbers))
    attach_record(full, "origin", origin_of(ds) or {})
    return full


def _split_entry(full: Dataset, source: str | None) -> dict[str, Any]:
    ranking, origin = ranking_record(full), {"repo_id": source} if source else origin_of(full) or {}
    measuring = find_record(full, "measuring") or known_measuring(ranking)
    return split_record(full, ranking) | {
        "measuring": public_measuring(measuring),
        "source": origin.get("source") or origin or None,
    }


def public_measuring(measuring: dict[str, Any] | None) -> dict[str, Any] | None:
    """What measured the rows, without the folders of this machine."""

    def public(part: Any) -> Any:
        names = {key: public_name(part[key]) for key in ("model", "adapter", "adapter_name") if part.get(key)}
        return part | names

    return measuring and {key: public(part) if isinstance(part, dict) else part for key, part in measuring.items()}


def _to_train_on(ds: Dataset) -> Dataset:
    """Selected rows as any `SFTTrainer` takes them: turns in `messages`, and no column that it takes for something else."""
    drop = {
        name
        for name in ds.column_names
        if name in NOT_TO_TRAIN_ON or name.startswith(("gateau_segment_", "gateau_token_"))
    }
    if "messages" not in ds.column_names:
        drop |= {name for name in CONTENT_COLUMNS if name in ds.column_names}
        ds = ds.map(_with_messages, desc="Messages")
    if drop & set(CONTENT_COLUMNS):
        drop |= {"gateau_content_hash"}  # it speaks of the columns that go
    return ds.remove_columns([name for name in ds.column_names if name in drop])


def _with_messages(row: dict[str, Any]) -> dict[str, Any]:
    return {"messages": to_messages(row)}


def _parquet_files(ds: Dataset, stem: str, folder: Path) -> Iterator[tuple[str, Path]]:
    """Each shard as (path in the repository, file here); the file is gone when the next one is asked for."""
    num_bytes = ds.data.nbytes * len(ds) / max(ds.data.num_rows, 1)
    num_shards = max(1, min(ceil(num_bytes / MAX_SHARD_BYTES), len(ds)))
    for i in range(num_shards):
        file = folder / f"{i}.parquet"
        ds.shard(num_shards, i, contiguous=True).to_parquet(file)
        yield f"{stem}-{i:05d}-of-{num_shards:05d}.parquet", file
        file.unlink()


class _Push:
    """What one push is made of: files sent ahead, the record and the figures, and the commit that brings them together."""

    def __init__(self, repo_id: str, revision: str | None, create_pr: bool, explorer: str | None):
        self.explorer = explorer
        self.repo_id, self.where = repo_id, {"revision": revision, "create_pr": create_pr}
        self.record, self.columns = ScoredRecord({}, version=__version__), []
        self.uploads: list[Any] = []
        self.pictures: dict[str, tuple[str, bytes]] = {}  # path in the repository -> (what it shows, PNG)

    def add_rows(self, split: str, full: Dataset, entry: dict[str, Any], folder: Path) -> None:
        """Every row of a split, and its entry in the record."""
        self.record.splits[split] = redact(entry)
        self.columns = list(dict.fromkeys([*self.columns, *gateau_columns(full)]))
        self._send(full, f"{folder_of(DEFAULT)}/{split}", folder)

    def add_selection(self, split: str, name: str, selected: Dataset, folder: Path) -> None:
        """The best rows of a split, as a configuration of their own."""
        record = asdict(selection_record(selected)) | {"measuring": None}  # which stands with the split
        rows = _to_train_on(selected)
        self.record.selections.setdefault(name, {})[split] = redact({"record": record, "digest": rows_digest(rows)})
        self._send(rows, f"{folder_of(name)}/{split}", folder)

    def _send(self, rows: Dataset, stem: str, folder: Path) -> None:
        for path, file in _parquet_files(rows, stem, folder):
            self.uploads.append(upload(self.repo_id, "dataset", path, file, **self.where))

    def add_figures(self, full: Dataset, selections: dict[str, SelectConfig], prefix: str) -> None:
        from ..report.drawing import save_png
        from ..report.figures import figures, segment_figures

        cuts = {name: config.fraction for name, config in selections.items() if config.fraction is not None}
        for figure in [*figures(full, cuts or None), *segment_figures(full)]:
            save_png(figure, png := BytesIO())
            self.pictures[f"{FIGURES}/{prefix}{figure.name}.png"] = f"{figure.title}. {figure.text}", png.getvalue()

    def commit(self, message: str, licence: dict[str, str] | None) -> str:
        """All of it at once; returns the address of the commit, or of the pull request."""
        if licence is None:
            source = next(iter(self.record.splits.values())).get("source") or {}
            licence = license_of(source.get("repo_id"), "dataset", source.get("revision"))
        plan = partial(self._operations, licence=licence)
        done = commit(self.repo_id, "dataset", message=message, plan=plan, **self.where)
        check_arrived(self.repo_id, "dataset", self.uploads, done.pr_revision or done.oid)
        return done.pr_url or done.commit_url

    def _operations(self, head: str, licence: dict[str, str]) -> list:
        """What the commit is made of, on what is in the repository at one moment."""
        from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi
        from huggingface_hub.hf_api import RepoFile

        readme = read_text(self.repo_id, "dataset", "README.md", head)
        before = record_at(self.repo_id, head)
        record = self._merged(before)
        files = {path: data for path, (_, data) in self.pictures.items()}
        files |= {"README.md": self._card(readme, record, licence).encode(), SIDECAR: record.to_json().encode()}
        tree = HfApi().list_repo_tree(self.repo_id, repo_type="dataset", revision=head, recursive=True)
        there = {x.path: x.lfs and x.lfs.sha256 for x in tree if isinstance(x, RepoFile)}
        # What a commit whose answer was lost has brought there is no part of the next one
        new = [x for x in self.uploads if there.get(x.path_in_repo) != x.upload_info.sha256.hex()]
        new += [CommitOperationAdd(path, data) for path, data in files.items()]
        stale = self._stale(there, before) - {x.path_in_repo for x in self.uploads} - files.keys()
        return [*new, *(CommitOperationDelete(path) for path in sorted(stale))]

    def _card(self, readme: str | None, record: ScoredRecord, licence: dict[str, str]) -> str:
        figures = [{"path": path, "alt": escape(alt)} for path, (alt, _) in self.pictures.items()]
        block, metadata = dataset_card(record, self.repo_id, licence, self.columns, figures, self.explorer)
        metadata |= _infos_of_others(readme, record)
        return merge_readme(readme, escape(self.repo_id.split("/")[-1]), redact(block), redact(metadata))

    def _merged(self, before: ScoredRecord | None) -> ScoredRecord:
        """Our splits, and those of an earlier push that we do not push."""
        there = before.splits if before else {}
        others = {x: entry for x, entry in there.items() if x not in self.record.splits and NAME.fullmatch(x)}
        kept: dict[str, dict] = {name: dict(splits) for name, splits in self.record.selections.items()}
        for name, splits in (before.selections if before else {}).items():
            for split in splits.keys() & others.keys() if NAME.fullmatch(name) else ():
                kept.setdefault(name, {})[split] = splits[split]
        return replace(self.record, splits=self.record.splits | others, selections=kept)

    def _stale(self, names: Iterable[str], before: ScoredRecord | None) -> set[str]:
        """Files of an earlier push that this one replaces."""
        configs = {DEFAULT, *self.record.selections, *(before.selections if before else ())}
        stems = "|".join(re.escape(f"{folder_of(x)}/{split}") for x in configs for split in self.record.splits)
        pictures = rf"|{FIGURES}/[a-z_]+\.png" if before and before.splits.keys() <= self.record.splits.keys() else ""
        pattern = re.compile(rf"(?:{stems})-\d{{5}}-of-\d{{5}}\.parquet{pictures}")
        return {name for name in names if pattern.fullmatch(name)}


def _infos_of_others(readme: str | None, record: ScoredRecord) -> dict[str, Any]:
    """`dataset_info` without our configurations, whose sizes an earlier push by other means may have left there."""
    there = readme_metadata(readme).get("dataset_info")
    if there is None:
        return {}
    infos = there if isinstance(there, list) else [there]
    others = [
        x for x in infos if isinstance(x, dict) and x.get("config_name", DEFAULT) not in (DEFAULT, *record.selections)
    ]
    return {"dataset_info": others or None}
