"""From an order of rows to the rows that are kept, and a record of how.

Selection reads columns alone, and is the same on every rank: ranks are unique, and nothing is drawn at random.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections import Counter
from collections.abc import Collection
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

from .. import __version__
from ..markdown import public_name
from ..records import attach_record, column_of, commonest, find_record, origin_of
from ..rows.conversations import CONTENT_COLUMNS, HASHED_COLUMNS, content_hash
from ..rows.cuts import Cuts
from ..settings import set_fields
from .bounds import Bound
from .choice import ToChoose, kept_rows
from .config import SelectConfig
from .decisions import Decisions, check_keys, content_of, contents_of_all, read_decisions
from .order import check_ranked, none_ranked, ranking_record


if TYPE_CHECKING:
    from datasets import Dataset

logger = logging.getLogger(__name__)

LIBRARIES = ("torch", "transformers", "datasets", "trl", "peft")
QUANTILES = (0.0, 0.1, 0.25, 0.5, 0.75, 0.9, 1.0)
BELOW_THE_CUT = "ranked below the cut"
DROPPED = "dropped by a person"


@dataclass
class SelectionRecord:
    """How rows were chosen, as plain JSON.

    Attributes:
        fingerprint (`str`): of the selection: which rows of how many, and what they say. 16 hex digits.
        dataset (`dict`): name, split and `datasets`' own fingerprint; and where the rows came from, see `records.origin_of`.
        settings (`dict`): the fields of `SelectConfig` that were set; of `decisions` the file's name.
        ranking (`dict`): how the order was made, see `ranking_record`.
        measuring (`dict`): the models with their revisions, see `GateauScorer.describe`; None where not known.
        num_rows, num_ranked, num_kept (`int`): None on a stream, whose rows are not counted beforehand.
        num_tokens_kept (`int`): context and response tokens of the kept rows; None where they were not counted.
        dropped (`dict`): reason -> rows.
        strata (`dict`): stratum -> {"ranked", "kept"}.
        scores, tokens (`dict`): quantiles of `gateau_score`, and of context and response tokens, over the ranked and over
            the kept rows; empty where not counted.
        cut (`dict`): of the kept rows, how many lost how much context to fit when they were measured, see `rows.cuts.Cuts`.
        decisions (`dict`): what a person decided, None for nothing: "file", "digest" (of what is kept and dropped), and of
            the rows how many were kept ("num_kept", of them "num_kept_unranked" without a rank) and dropped ("num_dropped"),
            and how many decisions are about other rows ("num_unknown"); these are None on a stream.
        screening (`dict`): of rows ranked without all segments: what is certain (see `ranking.bounds.Bound`), and `num_uncertain`, of
            how many kept rows others might stand in their place; None where all segments were measured.
        short (`dict`): what was mixed in, see `mix`; None for nothing.
        versions (`dict`): of this package and the libraries it stands on.
    """

    fingerprint: str
    dataset: dict[str, Any]
    settings: dict[str, Any]
    ranking: dict[str, Any] | None = None
    measuring: dict[str, Any] | None = None
    num_rows: int | None = None
    num_ranked: int | None = None
    num_kept: int | None = None
    num_tokens_kept: int | None = None
    dropped: dict[str, int] = field(default_factory=dict)
    strata: dict[str, dict[str, int]] = field(default_factory=dict)
    scores: dict[str, Any] = field(default_factory=dict)
    tokens: dict[str, Any] = field(default_factory=dict)
    cut: dict[str, Any] = field(default_factory=dict)
    decisions: dict[str, Any] | None = None
    screening: dict[str, Any] | None = None
    short: dict[str, Any] | None = None
    versions: dict[str, str] = field(default_factory=dict)

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str) -> SelectionRecord:
        """Read what `to_json` wrote, by this version or another.

        Raises:
            ValueError: the text is no such record.
        """
        return cls.from_dict(json.loads(text))

    @classmethod
    def from_dict(cls, found: Any) -> SelectionRecord:
        """Likewise, of what `asdict` gives."""
        if not isinstance(found, dict) or not {"fingerprint", "dataset", "settings"} <= found.keys():
            raise ValueError("This is no record of a selection: it has no fingerprint, dataset and settings.")
        return cls(**{name: value for name, value in found.items() if name in cls.__dataclass_fields__})

    def summary(self) -> str:
        """One line for people."""
        by_hand = f"; {told}" if (told := self.decided()) else ""
        if self.num_kept is None:
            return f"the rows of a stream that score {self.settings['min_score']} or more{by_hand}"
        how = self.ranking or {}
        by = how.get("mode") if how.get("method") == "gateau" else how.get("method")
        if not self.num_kept:
            return f"none of {self.num_rows:,} long rows kept" + (
                f"; {self.short['num_kept']:,} short ones" if self.short else ""
            )
        tokens = f", {self.num_tokens_kept:,} tokens" if self.num_tokens_kept else ""
        cut = Cuts.of_record(self.cut)
        tokens += f", {cut.rows:,} of the rows cut to fit max_length" if cut else ""
        short = f"; and {self.short['num_kept']:,} short ones" if self.short else ""
        return f"{self.num_kept:,} of {self.num_rows:,} rows kept, best by {by}{tokens}{by_hand}{short}"

    def decided(self) -> str:
        """What a person decided, for people; empty where nobody has."""
        found = self.decisions
        if not found:
            return ""
        if found["num_kept"] is None:
            return f"those that {found['file']} says to keep or drop are kept or dropped"
        unranked = f" ({found['num_kept_unranked']:,} without a rank)" if found["num_kept_unranked"] else ""
        return f"a person kept {found['num_kept']:,} of them{unranked} and dropped {found['num_dropped']:,}"


def select(
    data: Any,
    *,
    fraction: float | None = None,
    top_k: int | None = None,
    min_score: float | None = None,
    max_tokens: int | None = None,
    strata: str | None = None,
    strata_edges: list[float] | None = None,
    min_share: float | None = None,
    decisions: str | os.PathLike | None = None,
) -> Any:
    """Keep the best of the rows that `rank` has put in order.

    Args:
        data: a ranked `Dataset`, a `DatasetDict` (each split by itself), or, with `min_score`, an `IterableDataset`.
        fraction (`float`): this share of the ranked rows, rounded; where nothing is given 0.1, or 1 of method 'full'.
        top_k (`int`): this many rows.
        min_score (`float`): the rows with this `gateau_score` or more.
        max_tokens (`int`): the best rows up to the first that would make it more than these context and response tokens.
        strata, strata_edges, min_share: see `SelectConfig`.
        decisions (`str` or path): a .csv file of what a person decided, see `read_decisions`. Rows to keep are kept in any
            case, and count as part of what is asked for; rows to drop never are, and the next best come in their place.

    Returns:
        The same type, rows in the order they came in, columns as they are. `selection_record` reads back how it was made.

    Raises:
        ValueError: a setting out of range, rows that are not ranked, a selection without a row, kept rows that have
            changed since they were measured, or decisions that cannot be read, or keep more rows than are asked for.
    """
    import datasets

    given = {"fraction": fraction, "top_k": top_k, "min_score": min_score, "max_tokens": max_tokens}
    config = SelectConfig(**given, strata=strata, strata_edges=strata_edges, min_share=min_share, decisions=decisions)
    if isinstance(data, datasets.DatasetDict):
        contents = contents_of_all(data.values()) if config.decisions else ()
        return datasets.DatasetDict({x: select_rows(part, config, elsewhere=contents) for x, part in data.items()})
    return select_rows(data, config)


def select_rows(
    ds: Any,
    config: SelectConfig,
    *,
    may_be_empty: bool = False,
    left_out: Counter | None = None,
    elsewhere: Collection[str | None] = (),
) -> Any:
    """`select` for one split, with its settings as a dataclass; of rows ranked by method 'no_long' none, if that may be.

    Args:
        left_out: reason -> rows that were there, and were left out before the others were put in order; for the record.
        elsewhere: contents (see `contents_of`) of other splits, which decisions may be about.
    """
    import datasets

    if isinstance(ds, datasets.IterableDataset):
        return _select_from_stream(ds, config)
    if not isinstance(ds, datasets.Dataset):
        raise TypeError(f"select needs a Dataset, DatasetDict or IterableDataset, got {type(ds).__name__}.")
    check_ranked(ds)
    method = (ranking_record(ds) or {}).get("method")
    is_none = method == "no_long"
    if is_none and not may_be_empty:
        raise ValueError(
            "The rows are ranked by method='no_long', which keeps none: there is nothing to select. To train on short data "
            "alone, use GateauSelector(method='no_long') and its mix, or `method: no_long` with `short_data` in a recipe."
        )
    if is_none and config.decisions is not None:
        raise ValueError("method='no_long' keeps no long row, whatever a person decided; leave the decisions out.")
    config = config.resolved(method)
    columns = ToChoose(ds, config, elsewhere)
    if not columns.order and not is_none:
        raise ValueError(none_ranked(len(ds), commonest(Counter(filter(None, columns.notes)))))
    kept = [] if is_none else kept_rows(columns, config)
    if not kept and not is_none:
        raise ValueError(f"{set_fields(config)} keeps none of {len(columns.order)} ranked rows; ask for more.")
    bound = _bound(ds, config)
    if bound is not None:
        chosen = set(kept).difference(columns.keep)
        # How far down the order it goes: what a person drops above stands there too
        reached = max((i for i, row in enumerate(columns.order, 1) if row in chosen), default=0)
        bound.check(reached, len(columns.order), _asked(config), config.min_score)
    hashes = _checked_hashes(ds, kept)
    out = ds.select(kept)
    record = _record(ds, columns, kept, hashes, config, left_out or Counter(), bound)
    if record.decisions and (num_unknown := record.decisions["num_unknown"]):
        logger.warning(
            "%d of the decisions in %s are about no row of these data", num_unknown, record.decisions["file"]
        )
    attach_record(out, "selection", asdict(record))
    return out


def selection_record(ds: Any) -> SelectionRecord | None:
    """What `select` left with a dataset; None where there is nothing."""
    if isinstance(ds, dict):
        records = {split: selection_record(part) for split, part in ds.items()}
        return records if any(records.values()) else None
    found = find_record(ds, "selection")
    return SelectionRecord.from_dict(found) if found is not None else None


def _bound(ds: Any, config: SelectConfig) -> Bound | None:
    """What is certain of the order; None where all segments were measured.

    Raises:
        ValueError: strata are to be formed of rows of which some have no segments.
    """
    found = (ranking_record(ds) or {}).get("screening")
    if found is not None and config.strata is not None:
        raise ValueError(
            f"strata={config.strata!r} keeps rows of every stratum, and {found['num_without']:,} rows have no segments, since their "
            "HMP was too low among all rows when segments_for chose. Select without strata, or measure again without segments_for, "
            "which measures the missing segments alone."
        )
    return None if found is None else Bound(**found)


def _asked(config: SelectConfig) -> str:
    return ", ".join(f"{name}={value}" for name, value in set_fields(config).items())


def _screening(bound: Bound | None, columns: ToChoose, kept: list[int]) -> dict[str, Any] | None:
    """What the record says of rows without segments."""
    import numpy as np

    if bound is None:
        return None
    is_kept = np.zeros(len(columns.scores), bool)
    is_kept[kept] = True
    is_kept[columns.keep] = False  # of what a person keeps nothing is uncertain
    return bound.to_record() | {"num_uncertain": bound.num_uncertain(columns.scores, is_kept) if is_kept.any() else 0}


def _checked_hashes(ds: Dataset, kept: list[int]) -> list[str]:
    """The content hash of every kept row, or its key where it has none.

    Raises:
        ValueError: a row says something else than when it was measured.
    """
    readable = [name for name in HASHED_COLUMNS if name in ds.column_names]
    if not set(readable) & set(CONTENT_COLUMNS):
        return column_of(ds.select(kept), "gateau_key") if "gateau_key" in ds.column_names else []
    rows = ds.select_columns(readable).with_format(None).select(kept)
    hashes = [content_hash(row) for row in rows]
    if "gateau_content_hash" in ds.column_names:
        measured = column_of(ds.select(kept), "gateau_content_hash")
        changed = [i for i, old, new in zip(kept, measured, hashes, strict=True) if old is not None and old != new]
        if changed:
            raise ValueError(
                f"{len(changed)} of the {len(kept)} kept rows have changed since they were measured (row {changed[0]} is "
                "the first). Measure them again, with `hf-gateau score` or ds.map(gateau_score, batched=True): what is unchanged is "
                "not measured twice."
            )
    return hashes


def _select_from_stream(ds, config: SelectConfig):
    if config.min_score is None:
        raise ValueError("Of a stream, rows can only be selected by min_score: nobody knows yet how many there are.")
    if config.strata is not None:
        raise ValueError("Of a stream, strata cannot be formed; leave them out.")
    if (bound := _bound(ds, config)) is not None and config.min_score <= bound.highest_score:
        raise ValueError(
            f"min_score={config.min_score}, and {bound.num_without:,} rows without segments may score up to {bound.highest_score:.4g}: "
            "give more than that, or measure again without segments_for, which measures the missing segments alone."
        )
    if ds.column_names is not None and "gateau_score" not in ds.column_names:
        raise ValueError(f"The stream has no column gateau_score, but {ds.column_names}. Rank the rows first.")
    names, told, identity = ["gateau_score"], {"min_score": config.min_score}, _settings(config)
    decided = None
    if config.decisions is not None:
        check_keys(ds)
        decisions = told["decisions"] = read_decisions(config.decisions)
        names.append("gateau_key")
        decided, identity = _decided(decisions), identity | {"decisions": decisions.digest}
    out = ds.filter(_reaches, input_columns=names, fn_kwargs=told)
    fingerprint = hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:16]
    record = SelectionRecord(
        fingerprint,
        _describe(ds),
        _settings(config),
        ranking=ranking_record(ds),
        measuring=find_record(ds, "measuring"),
        decisions=decided,
        versions={"hf_gateau": __version__, **library_versions()},
    )
    attach_record(out, "selection", asdict(record))
    return out


def _reaches(
    score: float | None, key: str | None = None, *, min_score: float, decisions: Decisions | None = None
) -> bool:
    if decisions is not None and content_of(key) in decisions.keep | decisions.drop:
        return content_of(key) in decisions.keep
    return score is not None and score >= min_score


def _settings(config: SelectConfig) -> dict[str, Any]:
    """The fields that were set, for a record: of a file its name, without the folders of this machine."""
    settings = set_fields(config)
    return settings | ({"decisions": public_name(config.decisions)} if config.decisions is not None else {})


def _decided(decisions: Decisions, **counts: int) -> dict[str, Any]:
    known = dict.fromkeys(("num_kept", "num_kept_unranked", "num_dropped", "num_unknown"))
    return {"file": decisions.file, "digest": decisions.digest, **known, **counts}


def _describe(ds) -> dict[str, Any]:
    known = {"name": ds.info.dataset_name, "config": ds.info.config_name, "split": str(ds.split) if ds.split else None}
    return known | {"fingerprint": getattr(ds, "_fingerprint", None)} | (origin_of(ds) or {})


def _record(
    ds,
    columns: ToChoose,
    kept: list[int],
    hashes: list[str],
    config: SelectConfig,
    left_out: Counter,
    bound: Bound | None,
) -> SelectionRecord:
    import numpy as np

    is_ranked = [note is None for note in columns.notes]
    kept_ranked = [i for i in kept if is_ranked[i]]

    def quantiles(values: list) -> dict[str, dict[str, float]]:
        """Over the ranked rows, and over those of them that are kept."""
        parts = {"ranked": columns.order, "kept": kept_ranked}
        found = {name: np.quantile([values[i] for i in rows], QUANTILES) for name, rows in parts.items()}
        return {
            name: {f"{q:g}": float(x) for q, x in zip(QUANTILES, part, strict=True)} for name, part in found.items()
        }

    identity = json.dumps([len(ds), kept, hashes])
    decided, by_hand = {*columns.keep, *columns.drop}, None
    dropped = commonest(Counter(x for i, x in enumerate(columns.notes) if x and i not in decided) + left_out)
    if columns.decisions is not None:
        unranked = sum(not is_ranked[i] for i in columns.keep)
        counts = {"num_kept": len(columns.keep), "num_kept_unranked": unranked, "num_dropped": len(columns.drop)}
        by_hand = _decided(columns.decisions, **counts, num_unknown=columns.num_unknown)
        dropped |= {DROPPED: len(columns.drop)} if columns.drop else {}
    if below := len(columns.left) - sum(i not in decided for i in kept):
        dropped[BELOW_THE_CUT] = below
    strata = {}
    if columns.stratum is not None:
        in_stratum, in_kept = (Counter(columns.stratum[i] for i in rows) for rows in (columns.order, kept))
        strata = {x: {"ranked": in_stratum[x], "kept": in_kept[x]} for x in sorted(in_stratum | in_kept)}
    return SelectionRecord(
        fingerprint=hashlib.sha256(identity.encode()).hexdigest()[:16],
        dataset=_describe(ds),
        settings=_settings(config),
        ranking=ranking_record(ds),
        measuring=find_record(ds, "measuring"),
        num_rows=len(ds) + left_out.total(),
        num_ranked=len(columns.order),
        num_kept=len(kept),
        num_tokens_kept=sum(columns.tokens[i] for i in kept) if columns.tokens is not None else None,
        dropped=dropped,
        strata=strata,
        scores=quantiles(columns.scores) if kept_ranked else {},
        tokens=quantiles(columns.tokens) if columns.tokens is not None and kept_ranked else {},
        cut=Cuts.of_data(ds.select(kept)).to_record(),
        decisions=by_hand,
        screening=_screening(bound, columns, kept) if kept else None,
        versions={"hf_gateau": __version__, **library_versions()},
    )


def library_versions() -> dict[str, str]:
    """Versions of the libraries that this package stands on, those that are installed."""
    found = {}
    for name in LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
