"""What a page needs to rank anew: of every row the values that each variant of HMP and CAS gives it, and the words for them.

What is measured of one row's lists is measured here, by the functions of `ranking`; what runs over all rows (a softmax, ranks,
Eq. 6) is left to the page, `static/ranking.js`.
"""

from __future__ import annotations

import warnings
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from ..ranking.columns import read_columns
from ..ranking.config import ABLATIONS, BASELINES, RankConfig
from ..ranking.formulas import CAS, COMBINE, HMP, MODES, PPL_PAIR, needed_columns, norm, normalised_rank, parts_of
from ..ranking.order import derive, ranking_record
from ..records import column_of
from .findings import CAS_WORDS, COMBINE_WORDS, HMP_WORDS
from .tokens import STEPS


if TYPE_CHECKING:
    from datasets import Dataset

OVER_ALL_ROWS = ("softmax", "minmax", "rank")  # HMP variants that the page makes of perplexities
NORMS = {norm: "softmax", normalised_rank: "rank"}  # of Eq. 6; any other leaves its term as it is
GIVEN = "given"  # the ranking that the rows came with, where the page cannot make it anew
NO_SCORES = ("car", "full", "no_long")  # baselines that need models, or that choose nothing


def variants(ds: Dataset) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """The tables of `ranking` as far as the columns allow, for the page to offer; and what it ranks by, (n,) each.

    Returns:
        "modes", "hmp", "cas", "combine" and "methods" with words, "given": how the rows were ranked, whose method is `GIVEN` where
        the others make another order; and the arrays "hmp:NAME", "cas:NAME", "method:NAME" (float64, NaN where a row cannot be
        ranked by it), "ppl_short", "ppl_long", and "tie" (int32), the order of rows with equal scores.
    """
    base = RankConfig(tau=_tau(_given(ds)))
    arrays: dict[str, np.ndarray] = {}
    for kind, other, table in (("hmp", "cas", HMP), ("cas", "hmp", CAS)):
        for name in (name for name, measure in table.items() if measure is not None):
            values = _derived(ds, replace(base, **{kind: name, other: "none"}), f"gateau_{kind}")
            if values is not None:
                arrays[f"{kind}:{name}"] = values
    for name in (name for name in BASELINES if name not in NO_SCORES):
        values = _derived(ds, replace(base, method=name), "gateau_score")
        if values is not None:
            arrays[f"method:{name}"] = values
    tables = _tables(ds, arrays)
    if not _makes_given_order(ds, tables):
        tables["methods"].append(GIVEN)
        tables["given"]["method"] = GIVEN
        scores, is_ranked = (column_of(ds, f"gateau_{name}") for name in ("score", "rank"))
        is_ranked = np.not_equal(is_ranked, None).astype(bool)
        arrays[f"method:{GIVEN}"] = np.where(is_ranked, np.nan_to_num(np.array(scores, dtype=float)), np.nan)
    of_all = [arrays.pop(f"hmp:{name}") for name in tables["over_all_rows"]]
    for name in PPL_PAIR if of_all else ():
        values = np.array(column_of(ds, name), dtype=float)
        arrays[name.removeprefix("gateau_")] = np.where(np.isnan(of_all[0]), np.nan, values)
    return tables, arrays | {"tie": tie_order(ds)}


def _given(ds: Dataset) -> dict[str, Any]:
    return ranking_record(ds) or {}


def _tau(record: dict[str, Any]) -> float:
    return RankConfig.tau if record.get("tau") is None else record["tau"]


def _makes_given_order(ds: Dataset, tables: dict[str, Any]) -> bool:
    """Whether the page comes to the order that the rows have, by what it is told of how they were ranked."""
    given = tables["given"]
    if given["method"] in tables["methods"]:
        config = RankConfig(method=given["method"], tau=tables["tau"])
    elif given["method"] in ("gateau", *ABLATIONS):
        names = ("mode", "hmp", "cas", "combine", "alpha")
        config = RankConfig(tau=tables["tau"], **{name: given[name] for name in names if given[name] is not None})
        if not all(
            part == "none" or part in tables[kind]
            for kind, part in zip(("hmp", "cas"), parts_of(config), strict=False)
        ):
            return False
    else:
        return False
    found = _derived(ds, config, "gateau_rank")
    ranks = np.array([np.nan if rank is None else rank for rank in column_of(ds, "gateau_rank")])
    return found is not None and np.array_equal(found, ranks, equal_nan=True)


def _derived(ds: Dataset, config: RankConfig, column: str) -> np.ndarray | None:
    """A derived column; None where the data lack what it takes, of all rows or of those that HMP screened out, or no row has a
    value."""
    if not set(needed_columns(config)) <= set(ds.column_names):
        return None
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        try:
            values = derive(read_columns(ds, config), config)[0][column]
        except ValueError:
            return None
    return values if np.isfinite(values).any() else None


def tie_order(ds: Dataset) -> np.ndarray:
    """The place (n,) of each row among rows of equal scores: by key, rows without one last, then as they come."""
    import pyarrow.compute as pc

    if "gateau_key" not in ds.column_names:
        return np.arange(len(ds), dtype=np.int32)
    keys = ds.select_columns(["gateau_key"]).with_format("arrow")[:]["gateau_key"]
    places = np.empty(len(ds), dtype=np.int32)
    places[pc.sort_indices(keys.cast("large_string").combine_chunks()).to_numpy()] = np.arange(len(ds))
    return places


def _tables(ds: Dataset, arrays: dict[str, np.ndarray]) -> dict[str, Any]:
    hmp, cas = ({name: words.get(name, "") for name in table if f"{kind}:{name}" in arrays} for kind, table, words in (
        ("hmp", HMP, HMP_WORDS), ("cas", CAS, CAS_WORDS)
    ))  # fmt: skip
    record = _given(ds)
    names = ("method", "mode", "hmp", "cas", "combine", "alpha", "tau")
    return {
        "modes": {name: list(parts) for name, parts in MODES.items()},
        "hmp": hmp,
        "cas": cas,
        "over_all_rows": [name for name in OVER_ALL_ROWS if name in hmp],
        "combine": {
            name: {"norms": [NORMS.get(x, "as is") for x in norms], "words": COMBINE_WORDS.get(name, "")}
            for name, norms in COMBINE.items()
        },
        "methods": [name for name in BASELINES if f"method:{name}" in arrays],
        "ablations": list(ABLATIONS),
        "given": {name: record.get(name) for name in names},
        "tau": _tau(record),
        "usual_tau": RankConfig.tau,
        "num_safe": (record.get("screening") or {}).get("num_safe"),
        "need_steps": list(STEPS),
    }
