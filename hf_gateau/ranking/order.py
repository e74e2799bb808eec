"""From measured columns to an order of rows, on a `Dataset`, a `DatasetDict` or a pandas frame.

No model runs here, so alpha, a normalisation or a CAS variant can be changed on data that someone else measured.
"""

from __future__ import annotations

import logging
import warnings
from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import __version__
from ..records import attach_record, commonest, find_record, origin_of, value_kind
from ..rows.batches import REASON, VALUE_COLUMNS
from ..rows.cuts import Cuts
from .bounds import SCREENED, bound_of, lack_segments, stand_for
from .columns import ARROW_TYPES, CODE, DERIVED_COLUMNS, FRAME_TYPES, is_frame, read_columns
from .config import RankConfig
from .evidence import HEADS
from .formulas import (
    COMBINE,
    EMBEDDING,
    METHODS,
    PPL_PAIR,
    STANDS_FOR,
    check_measured,
    is_gateau,
    measures_of,
    needed_columns,
    norm,
    order_of,
    parts_of,
)


if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa
    from datasets import Dataset

logger = logging.getLogger(__name__)


EPSILON = np.finfo(np.float64).eps
# A term whose weighted spread is this much narrower than the other's has no say in the order.
SILENT_SPREAD = 1e-2
# Of tokens or nats of a whole response, less than this on every row is no need of anything.
SLIGHT_NEED = 1e-3
TERMS = {"hmp": "HMP", "cas": "CAS", "score": "the score"}  # in notes
NO_LONG = "method='no_long' keeps no long row"
WITHOUT_SEGMENTS = "segments not measured: HMP too low to be among the best {:,}"  # a note of rows that have a rank


class DegenerateRankingWarning(UserWarning):
    """The chosen mode does not measure, on the data at hand, what it is named after."""


# Rows in order


def _valid(name: str, values: np.ndarray, config: RankConfig) -> tuple[np.ndarray, str]:
    """Which values of a column can be ranked by, and what the others are."""
    if name == EMBEDDING:
        return np.isfinite(values).all(axis=1), "not of the length of the others, or not finite"
    if config.method == "car":  # rewards
        return np.isfinite(values), "not finite"
    if "_ppl" in name:
        return np.isfinite(values) & (values > 0), "not positive and finite"
    return np.isfinite(values) & (values >= 0), "not a count"


def _notes(columns: dict[str, Any], config: RankConfig) -> np.ndarray:
    """Why each row has no rank, None where it has one: its error, then its numbers, then its CAS."""
    if config.method in ("full", "no_long"):  # measured or not
        return np.full(len(columns["position"]), None if config.method == "full" else NO_LONG, dtype=object)
    notes = np.array(columns["gateau_error"].to_pylist(), dtype=object)
    reasons = []
    for name in (name for name in needed_columns(config) if name in columns):
        valid, what = _valid(name, columns[name], config)
        told = columns.get(REASON.format(name))
        if told is not None:
            told = np.array(told.to_pylist(), dtype=object)
            known = ~valid & ~np.equal(told, None).astype(bool) & np.equal(notes, None).astype(bool)
            notes[known] = [f"{name}: {reason}" for reason in told[known]]
        reasons.append((~valid, f"{name} is null, or {what}"))
    if config.ifd_below_one and "ifd_below_one" in METHODS[config.method].settings:
        above, below = (columns[name] for name in METHODS[config.method].columns)
        reasons.append((above >= below, "IFD is 1 or more: the prompt does not help"))
    for term, measure in measures_of(config).items():
        code, name = columns[CODE.format(term)], TERMS.get(term)
        reasons += [(code == i, f"{name} is undefined: {x}") for i, x in enumerate(measure.reasons) if i and name]
    for bad, reason in reasons:
        notes[bad & np.equal(notes, None).astype(bool)] = reason
    return notes


def _ranks(scores: np.ndarray, key: pa.Array) -> np.ndarray:
    """Ranks from 1, the highest score; see `order_of`."""
    ranks = np.empty(len(scores), dtype=np.int64)
    ranks[order_of(scores, key)] = np.arange(1, len(scores) + 1)
    return ranks


def derive(columns: dict[str, Any], config: RankConfig) -> tuple[dict[str, np.ndarray], list[str], dict[str, Any]]:
    """The derived columns, NaN where null; what is degenerate about them; and what the method has to say beside them."""
    import pyarrow as pa

    notes = _notes(columns, config)
    without = _without_segments(columns, config, notes)
    notes[without] = None
    ranked = np.equal(notes, None).astype(bool)
    derived = {name: np.full(len(notes), np.nan) for name in DERIVED_COLUMNS[:-1]} | {"gateau_note": notes}
    if not ranked.any():
        return derived, [], {}
    mask = pa.array(ranked)
    rows = {name: x[ranked] if isinstance(x, np.ndarray) else x.filter(mask) for name, x in columns.items()}
    is_known = ~without[ranked]
    if not is_known.all():
        rows[STANDS_FOR] = stand_for(~is_known, rows[SCREENED])
    terms = METHODS[config.method].score(rows, config)
    about = terms.pop("about", {})
    if not is_known.all():
        bound = bound_of(terms["hmp"], terms["cas"], ~is_known, rows[SCREENED], config.alpha)
        about = about | {"screening": bound.to_record()}
        notes[without] = WITHOUT_SEGMENTS.format(bound.num_safe)
    terms["rank"] = _ranks(terms["score"], rows["gateau_key"])
    terms["percentile"] = 100 * np.searchsorted(np.sort(terms["score"]), terms["score"], "right") / ranked.sum()
    for name, term in terms.items():
        derived[f"gateau_{name}"][ranked] = term
    if not is_gateau(config.method) or is_known.sum() <= 2:
        return derived, [], about
    mask = pa.array(is_known)
    rows = {name: x[is_known] if isinstance(x, np.ndarray) else x.filter(mask) for name, x in rows.items()}
    return derived, list(_degenerate(rows, {name: x[is_known] for name, x in terms.items()}, config)), about


def _without_segments(columns: dict[str, Any], config: RankConfig, notes: np.ndarray) -> np.ndarray:
    """Which rows are ranked without their CAS, since their HMP was too low for their segments to be worth measuring.

    Raises:
        ValueError: there are some, and the method cannot do without it.
    """
    hmp, cas_name, combine = parts_of(config)
    measure, code = measures_of(config).get("cas"), columns.get(CODE.format("cas"))
    if measure is None or SCREENED not in columns:
        return np.zeros(len(notes), bool)
    lacking = lack_segments(columns[SCREENED], code, measure)
    lacking &= np.array([note is not None and note.startswith(f"{TERMS['cas']} is undefined") for note in notes], bool)
    if lacking.any() and (hmp == "none" or combine != "rank"):
        why = (
            "without HMG it has nothing else to rank them by"
            if hmp == "none"
            else f"combine={combine!r} needs all of them"
        )
        raise ValueError(
            f"{lacking.sum():,} of {len(notes):,} rows have no segments, since their HMP was too low when segments_for chose, and "
            f"cas={cas_name!r} is made of segments: {why}. Rank with combine='rank' and an HMP, or with method='without_cam', or "
            "measure again without segments_for, which measures the missing segments alone."
        )
    return lacking


def _degenerate(rows: dict[str, Any], terms: dict[str, np.ndarray], config: RankConfig) -> Iterator[str]:
    """What makes HMP, CAS or alpha meaningless on these rows, and what to do instead."""
    hmp_name, cas_name, combine = parts_of(config)
    norms = dict(zip(("hmp", "cas"), COMBINE[combine], strict=True))
    weights = {"hmp": config.alpha if "cas" in terms else 1, "cas": 1 - config.alpha if "hmp" in terms else 1}
    normed = {name: norms[name](terms[name]) for name in norms if name in terms and weights[name] > 0}
    softmaxes = {f"Norm({name.upper()})": x for name, x in normed.items() if norms[name] is norm}
    if "hmp" in normed and hmp_name == "softmax":
        softmaxes |= {f"Norm({name}) of Eq. 2": norm(rows[name]) for name in PPL_PAIR}
    for name, share in softmaxes.items():
        if share.max() > 0.5:
            yield (
                f"One row holds {share.max():.0%} of the softmax {name} over {len(share)} rows, so the other rows are "
                "all but equal in it. mode='robust' takes no softmax over the data."
            )
    if "hmp" in normed and _saw_the_same(rows, terms["hmp"]):
        normed.pop("hmp")  # said once
        yield (
            "HMP is 0 on every row: the short sibling found the responses as likely as the long model, so it saw "
            "everything. Measure again with a smaller short_window, or rank with hmp='none', which does not use it."
        )
    if "cas" in normed and "uniform" in rows:
        difference, spread = np.abs(terms["cas"] - rows["uniform"]).max(), np.std(terms["cas"])
        if difference < 0.01 * spread:
            yield (
                f"CAS does not see attention: cas={cas_name!r} differs by at most {difference:.1e} from what uniform "
                f"attention would give, and its own spread is {spread:.1e}. mode='robust' needs "
                "no attention; cas='spearman' sees it."
            )
    spreads = {name: weights[name] * np.std(x) for name, x in normed.items()}
    for name, spread in spreads.items():
        noise = 4 * EPSILON * weights[name] * np.abs(normed[name]).max()
        if spread <= noise or spread < SILENT_SPREAD * max(spreads.values()):
            advice = "mode='robust' combines ranks, where alpha does what it says"
            if combine == "rank":
                advice = f"Its ranks are tied on almost every row: take another {name}, or none, {name}='none'"
            yield (
                f"{name.upper()} does not count: its spread times its weight is {spread:.1e}, the widest is "
                f"{max(spreads.values()):.1e}, so alpha={config.alpha} means nothing. {advice}."
            )


def _saw_the_same(rows: dict[str, Any], hmp: np.ndarray) -> bool:
    """Whether nothing tells the siblings apart."""
    if PPL_PAIR[0] in rows:
        return np.array_equal(rows[PPL_PAIR[0]], rows[PPL_PAIR[1]])
    return np.abs(hmp).max() < SLIGHT_NEED


def _lack_segments(data: Dataset | pd.DataFrame, notes: np.ndarray) -> bool:
    """Whether most rows have no rank for want of a list, and heads were asked about them instead."""
    lacking = [i for i, note in enumerate(notes) if note is not None and note.endswith(" is null")]
    if 2 * len(lacking) <= len(notes) or HEADS not in (data.columns if is_frame(data) else data.column_names):
        return False
    value = data[HEADS].iloc[lacking[0]] if is_frame(data) else data[lacking[0]][HEADS]
    return isinstance(value, list | np.ndarray)


# The record: how the order was made, kept with the data


def _record(
    columns: dict, derived: dict, messages: list[str], about: dict, config: RankConfig, cut: Cuts
) -> dict[str, Any]:
    """The JSON record of one ranking; reasons beyond the 20 most common (errors can be long) are counted as other."""
    import pyarrow.compute as pc

    is_ranked = np.isfinite(derived["gateau_rank"])
    reasons = Counter(derived["gateau_note"][~is_ranked])
    key = columns["gateau_key"]
    key = key.filter(pc.match_substring(key, ":"))
    colons = pc.min_max(pc.find_substring(key, ":")).as_py()
    if colons["min"] == colons["max"] and colons["max"] is not None:  # as in all our keys: no search in each
        prefixes = pc.binary_slice(key.cast("large_binary"), 0, colons["max"]).unique().cast("large_string")
    else:
        prefixes = pc.replace_substring_regex(key, "(?s):.*", "")
    hmp, cas_name, combine = parts_of(config)
    parts = {"mode": config.mode, "hmp": hmp, "cas": cas_name, "combine": combine, "alpha": float(config.alpha)}
    parts |= {"tau": float(config.tau) if any(x.unit == "token" for x in measures_of(config).values()) else None}
    method = METHODS[config.method]
    return {
        "method": config.method,
        "what": method.what,
        **{name: part if is_gateau(config.method) else None for name, part in parts.items()},
        **{name: getattr(config, name) for name in method.settings},
        **about,
        "seed": int(config.rank_seed),
        "num_ranked": len(derived["gateau_note"]) - reasons.total(),
        "num_unranked": commonest(reasons),
        "cut": cut.to_record(),
        "measuring_configs": sorted(prefixes.unique().to_pylist()),
        "warnings": messages,
        "version": __version__,
    }


def _attach(data: Dataset | pd.DataFrame, derived: dict[str, np.ndarray], record: dict) -> Dataset | pd.DataFrame:
    """The data with new derived columns and a new record; text is rewritten only where there is an index mapping."""
    import pandas as pd
    import pyarrow as pa

    if is_frame(data):
        out = data.drop(columns=[name for name in DERIVED_COLUMNS if name in data.columns])
        for name, values in derived.items():
            out[name] = pd.array(values, dtype=FRAME_TYPES.get(name, "float64"))
        out.attrs["gateau_ranking"] = record
        return out
    out = data.remove_columns([name for name in DERIVED_COLUMNS if name in data.column_names])
    for name, values in derived.items():
        out = out.add_column(name, pa.array(values, from_pandas=True).cast(ARROW_TYPES.get(name, "float64")))
    if data.format["columns"] != data.column_names:
        out.set_format(**data.format)  # add_column has added the new columns to those that the format shows
    attach_record(out, "ranking", record)
    if (origin := origin_of(data)) is not None:  # which files would not tell any more
        attach_record(out, "origin", origin)
    return out


def _measured_by(data: Dataset | pd.DataFrame, column: str) -> dict[str, Any] | None:
    """The record of what measured a column, where that is another model than the pair."""
    return find_record(data, value_kind(column)) if column in VALUE_COLUMNS and not is_frame(data) else None


def rank_order(ranks: list[int | None]) -> list[int]:
    """Positions of the rows that have a rank, the best first; from the column `gateau_rank`."""
    return [i for _, i in sorted((rank, i) for i, rank in enumerate(ranks) if rank is not None)]


def check_ranked(ds: Dataset) -> None:
    """Let only rows pass that `rank` has seen.

    Raises:
        ValueError: there is no column `gateau_rank`.
    """
    if "gateau_rank" not in ds.column_names:
        raise ValueError(
            f"The rows are not ranked: no column gateau_rank among {ds.column_names}. Rank them first, with `hf-gateau rank` or rank(ds)."
        )


def none_ranked(num_rows: int, reasons: dict[str, int]) -> str:
    """Why there is nothing to choose from: the commonest reason, and what to do."""
    reason, count = next(iter(reasons.items()), ("no reason is on record", num_rows))
    return (
        f"None of {num_rows:,} rows can be ranked; of {count:,} the reason is: {reason}. The column gateau_note has that of each; "
        "mend the rows or the settings, and measure and rank again."
    )


def ranking_record(data: Any) -> dict | None:
    """The settings, counts and warnings that `rank` left with the data; a dict of them by split for a DatasetDict.

    None where there is no record, or more than one: parts ranked apart and put together have no common order.
    """
    if is_frame(data):
        return data.attrs.get("gateau_ranking")
    if isinstance(data, dict):
        records = {split: ranking_record(part) for split, part in data.items()}
        return records if any(records.values()) else None
    return find_record(data, "ranking")


def rank(
    data: Any,
    *,
    method: str = "gateau",
    mode: str = "robust",
    alpha: float = 0.8,
    hmp: str | None = None,
    cas: str | None = None,
    combine: str | None = None,
    tau: float = 0.5,
    seed: int = 0,
    ifd_below_one: bool = False,
    reward_column: str = "gateau_reward",
    car_clusters: int | None = None,
    car_per_cluster: int = 1,
    car_best: int = 1000,
) -> Any:
    """Put measured rows in order and return them, in the order they came in, with the derived columns.

    Args:
        data: a `Dataset`, a `DatasetDict` (each split is ranked by itself) or a pandas DataFrame, with the columns
            that `gateau_score` measures (for 'ifd' also those of `ResponseScorer`, for 'car' those of `RewardScorer` and
            `EmbeddingScorer`); a method needs only its own. Rank before you shuffle or filter: rows behind
            an index mapping are read one by one, and copied before columns can be added.
        method, mode, alpha, hmp, cas, combine, tau: see `RankConfig`. In the table of `MODES`, a mode is a triple (hmp,
            cas, combine); what is given explicitly replaces its part of it.
        seed: of methods 'random' and 'car'.
        ifd_below_one, reward_column, car_clusters, car_per_cluster, car_best: see `RankConfig`.

    Returns:
        The same type. `gateau_hmp`, `gateau_cas`, `gateau_score` (float64, high = keep), `gateau_rank` (int64, 1 =
        best; ties by `gateau_key`, else by position), `gateau_percentile` (100 * share of ranked rows that the row
        is at least as good as) are null on rows without a rank, and `gateau_note` says why. Rows whose segments were not
        measured (`segments_for`) have a rank and a note, no `gateau_cas`, and the least score that they can have; see `bounds`.
        `ranking_record` reads back how it was made.

    Raises:
        ValueError: an unknown name, an alpha outside 0 to 1, a column that is missing, or rows whose segments were not measured
            and are to be ranked by them.
        TypeError: data of another type, such as a stream.

    Warns:
        DegenerateRankingWarning: HMP, CAS or alpha means nothing on these data.
    """
    import datasets
    import pandas as pd

    config = RankConfig(
        method=method,
        mode=mode,
        alpha=alpha,
        hmp=hmp,
        cas=cas,
        combine=combine,
        tau=tau,
        rank_seed=seed,
        ifd_below_one=ifd_below_one,
        reward_column=reward_column,
        car_clusters=car_clusters,
        car_per_cluster=car_per_cluster,
        car_best=car_best,
    )
    splits = data if isinstance(data, datasets.DatasetDict) else {"": data}
    done = {}
    for split, part in splits.items():
        if not isinstance(part, datasets.Dataset | pd.DataFrame):
            raise TypeError(
                f"rank needs a Dataset, DatasetDict or DataFrame, got {type(part).__name__}; a ranking needs all the "
                "rows at once, so load a stream first, e.g. with Dataset.from_generator."
            )
        columns = read_columns(part, config)
        derived, messages, about = derive(columns, config)
        if _lack_segments(part, derived["gateau_note"]):
            check_measured(config, "heads")
        record = _record(columns, derived, messages, about, config, Cuts.of_data(part))
        if record["num_unranked"] and config.method != "no_long":
            unranked = sum(record["num_unranked"].values())
            logger.warning("%d of %d rows have no rank: %s", unranked, len(part), record["num_unranked"])
        if len(record["measuring_configs"]) > 1:
            logger.warning(
                "The rows were measured in different ways, which may not compare: %s", record["measuring_configs"]
            )
        measured_by = {name: _measured_by(part, name) for name in needed_columns(config)}
        if any(measured_by.values()):
            record["measured_by"] = {name: known for name, known in measured_by.items() if known is not None}
        for message in messages:
            warnings.warn(f"{split}: {message}" if split else message, DegenerateRankingWarning, stacklevel=2)
        done[split] = _attach(part, derived, record)
    return datasets.DatasetDict(done) if isinstance(data, datasets.DatasetDict) else done[""]
