"""From an order of rows to the rows that are kept, and a record of how.

Selection reads columns alone, and is the same on every rank: ranks are unique, and nothing is drawn at random.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

from .. import __version__
from ..records import attach_record, column_of, commonest, find_record, origin_of
from ..rows.conversations import CONTENT_COLUMNS, HASHED_COLUMNS, content_hash
from ..rows.cuts import Cuts
from ..settings import set_fields
from .bounds import Bound
from .config import SelectConfig
from .order import check_ranked, none_ranked, rank_order, ranking_record


if TYPE_CHECKING:
    from datasets import Dataset

logger = logging.getLogger(__name__)

LIBRARIES = ("torch", "transformers", "datasets", "trl", "peft")
QUANTILES = (0.0, 0.1, 0.25, 0.5, 0.75, 0.9, 1.0)
TOKEN_COLUMNS = ("gateau_num_context_tokens", "gateau_num_response_tokens")
MANY_VALUES = 32  # a numeric column with more is cut into ranges
BELOW_THE_CUT = "ranked below the cut"


@dataclass
class SelectionRecord:
    """How rows were chosen, as plain JSON.

    Attributes:
        fingerprint (`str`): of the selection: which rows of how many, and what they say. 16 hex digits.
        dataset (`dict`): name, split and `datasets`' own fingerprint; and where the rows came from, see `records.origin_of`.
        settings (`dict`): the fields of `SelectConfig` that were set.
        ranking (`dict`): how the order was made, see `ranking_record`.
        measuring (`dict`): the models with their revisions, see `GateauScorer.describe`; None where not known.
        num_rows, num_ranked, num_kept (`int`): None on a stream, whose rows are not counted beforehand.
        num_tokens_kept (`int`): context and response tokens of the kept rows; None where they were not counted.
        dropped (`dict`): reason -> rows.
        strata (`dict`): stratum -> {"ranked", "kept"}.
        scores, tokens (`dict`): quantiles of `gateau_score`, and of context and response tokens, over the ranked and over
            the kept rows; empty where not counted.
        cut (`dict`): of the kept rows, how many lost how much context to fit when they were measured, see `rows.cuts.Cuts`.
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
        if self.num_kept is None:
            return f"the rows of a stream that score {self.settings['min_score']} or more"
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
        return f"{self.num_kept:,} of {self.num_rows:,} rows kept, best by {by}{tokens}{short}"


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
) -> Any:
    """Keep the best of the rows that `rank` has put in order.

    Args:
        data: a ranked `Dataset`, a `DatasetDict` (each split by itself), or, with `min_score`, an `IterableDataset`.
        fraction (`float`): this share of the ranked rows, rounded; where nothing is given 0.1, or 1 of method 'full'.
        top_k (`int`): this many rows.
        min_score (`float`): the rows with this `gateau_score` or more.
        max_tokens (`int`): the best rows up to the first that would make it more than these context and response tokens.
        strata, strata_edges, min_share: see `SelectConfig`.

    Returns:
        The same type, rows in the order they came in, columns as they are. `selection_record` reads back how it was made.

    Raises:
        ValueError: a setting out of range, rows that are not ranked, a selection without a row, or kept rows that have
            changed since they were measured.
    """
    import datasets

    given = {"fraction": fraction, "top_k": top_k, "min_score": min_score, "max_tokens": max_tokens}
    config = SelectConfig(**given, strata=strata, strata_edges=strata_edges, min_share=min_share)
    if isinstance(data, datasets.DatasetDict):
        return datasets.DatasetDict({name: select_rows(split, config) for name, split in data.items()})
    return select_rows(data, config)


def select_rows(ds: Any, config: SelectConfig, *, may_be_empty: bool = False, left_out: Counter | None = None) -> Any:
    """`select` for one split, with its settings as a dataclass; of rows ranked by method 'no_long' none, if that may be.

    `left_out`: reason -> rows that were there, and were left out before the others were put in order; for the record.
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
    config = config.resolved(method)
    columns = _Columns(ds, config)
    if not columns.order and not is_none:
        raise ValueError(none_ranked(len(ds), commonest(Counter(columns.notes))))
    kept = [] if is_none else _kept(columns, config)
    if not kept and not is_none:
        raise ValueError(f"{set_fields(config)} keeps none of {len(columns.order)} ranked rows; ask for more.")
    bound = _bound(ds, config)
    if bound is not None:
        bound.check(len(kept), len(columns.order), _asked(config), config.min_score)
    hashes = _checked_hashes(ds, kept)
    out = ds.select(kept)
    attach_record(out, "selection", asdict(_record(ds, columns, kept, hashes, config, left_out or Counter())))
    return out


def selection_record(ds: Any) -> SelectionRecord | None:
    """What `select` left with a dataset; None where there is nothing."""
    if isinstance(ds, dict):
        records = {split: selection_record(part) for split, part in ds.items()}
        return records if any(records.values()) else None
    found = find_record(ds, "selection")
    return SelectionRecord.from_dict(found) if found is not None else None


class _Columns:
    """What selecting needs of the data: who is ranked, in which order, in which stratum, of how many tokens.

    Attributes:
        order (`list[int]`): positions of the ranked rows, the best first.
        scores (`np.ndarray`): one a row, NaN where not ranked.
        tokens (`list[int]`): one a row, None without the columns.
        stratum (`list[str]`): one a row, None without strata.
        notes (`list[str]`): why a row is not ranked.
    """

    def __init__(self, ds: Dataset, config: SelectConfig):
        import numpy as np

        ranks = column_of(ds, "gateau_rank")
        self.order = rank_order(ranks)
        self.scores = np.array(column_of(ds, "gateau_score"), dtype=float)
        self.notes = [note or "not ranked" for rank, note in zip(ranks, _notes(ds), strict=True) if rank is None]
        self.tokens = self.stratum = None
        if all(name in ds.column_names for name in TOKEN_COLUMNS):
            counts = [column_of(ds, name) for name in TOKEN_COLUMNS]
            self.tokens = [(context or 0) + (response or 0) for context, response in zip(*counts, strict=True)]
        elif config.max_tokens is not None:
            raise ValueError(f"max_tokens needs the columns {', '.join(TOKEN_COLUMNS)}; measure the rows first.")
        if config.strata is not None:
            self.stratum = _strata(ds, config)


def _notes(ds: Dataset) -> list:
    return column_of(ds, "gateau_note") if "gateau_note" in ds.column_names else [None] * len(ds)


def _strata(ds: Dataset, config: SelectConfig) -> list[str]:
    """The stratum of each row: a column's value, or the range it falls into."""
    import bisect
    from numbers import Real

    if config.strata not in ds.column_names:
        raise ValueError(f"There is no column {config.strata!r} to form strata of; the data have {ds.column_names}.")
    values = column_of(ds, config.strata)
    numeric = all(value is None or (isinstance(value, Real) and not isinstance(value, bool)) for value in values)
    values = [None if value != value else value for value in values] if numeric else values  # NaN
    edges = config.strata_edges
    if edges is not None and not numeric:
        raise ValueError(f"strata_edges need a column of numbers; {config.strata!r} is none.")
    if edges is None and not (numeric and len(set(values)) > MANY_VALUES):
        return [str(value) for value in values]
    if edges is None:
        largest = max(value for value in values if value is not None)
        edges = [2**power for power in range(64) if 2**power <= max(largest, 1)]
    names = [f"below {edges[0]}", *(f"{low} to {high}" for low, high in zip(edges, edges[1:], strict=False))]
    names.append(f"{edges[-1]} or more")
    return ["None" if value is None else names[bisect.bisect_right(edges, value)] for value in values]


def _kept(columns: _Columns, config: SelectConfig) -> list[int]:
    """Positions of the rows that are kept, ascending."""
    num_ranked = len(columns.order)
    wanted = round(config.fraction * num_ranked) if config.fraction is not None else config.top_k
    if config.top_k is not None and config.top_k > num_ranked:
        raise ValueError(f"top_k={config.top_k} asks for more than the {num_ranked} ranked rows; lower it.")
    share = wanted / max(num_ranked, 1) if config.min_share is None and wanted is not None else config.min_share
    assured = _assured(columns, share) if columns.stratum is not None else []
    if wanted is not None and len(assured) > wanted:
        raise ValueError(f"min_share={share} alone keeps {len(assured)} rows, and {wanted} are asked for; lower it.")
    taken = set(assured)
    others = [i for i in columns.order if i not in taken]
    if config.min_score is not None:
        others = [i for i in others if columns.scores[i] >= config.min_score]
    elif config.max_tokens is not None:
        others = list(
            _within_budget(others, columns.tokens, config.max_tokens - sum(columns.tokens[i] for i in assured))
        )
    else:
        others = others[: wanted - len(assured)]
    return sorted([*assured, *others])


def _assured(columns: _Columns, share: float) -> list[int]:
    """The best rows of each stratum, up to its share of its own ranked rows (rounded down)."""
    sizes = Counter(columns.stratum[i] for i in columns.order)
    left = {stratum: int(share * size + 1e-9) for stratum, size in sizes.items()}
    assured = []
    for i in columns.order:
        if left[columns.stratum[i]]:
            left[columns.stratum[i]] -= 1
            assured.append(i)
    return assured


def _within_budget(order: list[int], tokens: list[int], budget: int) -> Iterator[int]:
    if budget < 0:
        raise ValueError(
            "min_share of the strata alone takes more than max_tokens; lower min_share or raise max_tokens."
        )
    for i in order:
        budget -= tokens[i]
        if budget < 0:
            return
        yield i


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


def _screening(bound: Bound | None, columns: _Columns, kept: list[int]) -> dict[str, Any] | None:
    """What the record says of rows without segments."""
    import numpy as np

    if bound is None:
        return None
    is_kept = np.zeros(len(columns.scores), bool)
    is_kept[kept] = True
    return bound.to_record() | {"num_uncertain": bound.num_uncertain(columns.scores, is_kept)}


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
    out = ds.filter(_reaches, input_columns=["gateau_score"], fn_kwargs={"min_score": config.min_score})
    settings = set_fields(config)
    fingerprint = hashlib.sha256(json.dumps(settings).encode()).hexdigest()[:16]
    record = SelectionRecord(
        fingerprint,
        _describe(ds),
        settings,
        ranking=ranking_record(ds),
        measuring=find_record(ds, "measuring"),
        versions={"hf_gateau": __version__, **library_versions()},
    )
    attach_record(out, "selection", asdict(record))
    return out


def _reaches(score: float | None, min_score: float) -> bool:
    return score is not None and score >= min_score


def _describe(ds) -> dict[str, Any]:
    known = {"name": ds.info.dataset_name, "config": ds.info.config_name, "split": str(ds.split) if ds.split else None}
    return known | {"fingerprint": getattr(ds, "_fingerprint", None)} | (origin_of(ds) or {})


def _record(
    ds, columns: _Columns, kept: list[int], hashes: list[str], config: SelectConfig, left_out: Counter
) -> SelectionRecord:
    import numpy as np

    def quantiles(values: list) -> dict[str, dict[str, float]]:
        """Over the ranked and over the kept rows."""
        parts = {"ranked": columns.order, "kept": kept}
        found = {name: np.quantile([values[i] for i in rows], QUANTILES) for name, rows in parts.items()}
        return {
            name: {f"{q:g}": float(x) for q, x in zip(QUANTILES, part, strict=True)} for name, part in found.items()
        }

    counted = columns.tokens if columns.tokens is not None and kept else None

    identity = json.dumps([len(ds), kept, hashes])
    dropped = commonest(Counter(columns.notes) + left_out)
    if below := len(columns.order) - len(kept):
        dropped[BELOW_THE_CUT] = below
    strata = {}
    if columns.stratum is not None:
        in_stratum, in_kept = (Counter(columns.stratum[i] for i in rows) for rows in (columns.order, kept))
        strata = {name: {"ranked": size, "kept": in_kept[name]} for name, size in sorted(in_stratum.items())}
    return SelectionRecord(
        fingerprint=hashlib.sha256(identity.encode()).hexdigest()[:16],
        dataset=_describe(ds),
        settings=set_fields(config),
        ranking=ranking_record(ds),
        measuring=find_record(ds, "measuring"),
        num_rows=len(ds) + left_out.total(),
        num_ranked=len(columns.order),
        num_kept=len(kept),
        num_tokens_kept=sum(columns.tokens[i] for i in kept) if columns.tokens is not None else None,
        dropped=dropped,
        strata=strata,
        scores=quantiles(columns.scores) if kept else {},
        tokens=quantiles(counted) if counted is not None else {},
        cut=Cuts.of_data(ds.select(kept)).to_record(),
        screening=_screening(_bound(ds, config), columns, kept) if kept else None,
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
