"""Which rows' segments to measure, by the HMP that they will be ranked by: the formulas of this room between the two passes of
`measuring.screened`."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from ..measuring.config import MeasureConfig
from ..measuring.scorer import GateauScorer
from ..measuring.screened import keep_screening, measure_without_segments
from ..measuring.screening import Screening, safe_fraction
from .bounds import OF_SEGMENTS
from .columns import read_columns
from .config import RankConfig, SelectConfig
from .formulas import RELATIVE_HMP, check_measured, needed_columns, parts_of
from .order import derive


if TYPE_CHECKING:
    from datasets import Dataset

logger = logging.getLogger(__name__)


def check_screening(config: RankConfig, measure: MeasureConfig, select: SelectConfig | None = None) -> None:
    """Refuse to leave rows without segments where nothing bounds what these could change; does nothing without `segments_for`.

    Args:
        config: how rows will be ranked.
        measure: how they are to be measured.
        select: which are to be kept; None where that is not known yet.

    Raises:
        ValueError: the ranking needs all segments or none, or more rows are to be kept than could be certain.
    """
    if measure.segments_for is None:
        return
    check_measured(config, measure.cam, measure.token_nll)
    hmp, cas, combine = parts_of(config)
    said = f"segments_for={measure.segments_for}"
    if not set(needed_columns(config)) & set(OF_SEGMENTS):
        what = f"method={config.method!r}" if cas is None else f"cas={cas!r}"
        raise ValueError(f"{said} says whose segments are measured, and {what} needs none; leave it out.")
    if hmp is None or hmp == "none":
        raise ValueError(
            f"{said} chooses rows by their HMP, and method={config.method!r} has none; leave it out, or rank with an HMP."
        )
    if combine != "rank":
        raise ValueError(
            f"{said} rests on ranks: with combine={combine!r} one row's CAS can outweigh any HMP, so every row may be selected. "
            "Rank with combine='rank' (mode='robust' does), or leave segments_for out."
        )
    if hmp in RELATIVE_HMP:
        raise ValueError(
            f"{said} chooses rows by an HMP of their own, and hmp={hmp!r} changes with the other rows; take another, or leave it out."
        )
    safe = safe_fraction(measure.segments_for, config.alpha)
    if safe == 0:
        least = least_share(config, 0)
        advice = f"give a segments_for above {least:.3g}, or leave it out" if least < 1 else "leave it out"
        raise ValueError(
            f"{said} is certain of no row with alpha={config.alpha}: whatever HMP they have, CAS can bring a row before another; "
            f"{advice}."
        )
    if select is None:
        return
    if select.strata is not None:
        raise ValueError(
            f"{said} chooses among all rows, and strata={select.strata!r} keeps some of every stratum; leave one out."
        )
    fraction = select.resolved(config.method).fraction
    if fraction is not None and fraction > safe + 1e-9:
        least = least_share(config, fraction)
        advice = f"give a segments_for of {least:.3g} or more, or leave it out" if least < 1 else "leave it out"
        raise ValueError(
            f"{said} with alpha={config.alpha} is certain of the best {safe:.3g} of the rows, and fraction={fraction} is wanted; "
            f"{advice}."
        )


def least_share(config: RankConfig, fraction: float) -> float:
    """The `segments_for` that makes a selection of this fraction certain; more than 1 where none does."""
    return fraction + (1 - config.alpha) / config.alpha if config.alpha else float("inf")


def screen(
    ds: Dataset,
    scorer: GateauScorer,
    *,
    mode: str = "robust",
    alpha: float = 0.8,
    hmp: str | None = None,
    cas: str | None = None,
    combine: str | None = None,
    tau: float = 0.5,
    part: Dataset | None = None,
) -> Screening:
    """Measure all rows without their segments, and choose by their HMP whose segments are measured afterwards, by `ds.map(scorer)`,
    `measure_together(ds, scorer)` or whatever else this scorer is given to.

    Every process of a launch calls this with the same rows. What was measured before is not measured again.

    Args:
        ds (`Dataset`): all rows that are to be ranked together.
        scorer (`GateauScorer`): with `segments_for` and a store.
        mode, alpha, hmp, cas, combine, tau: how they will be ranked, see `RankConfig`.
        part (`Dataset`, *optional*): of the survey, from `fit_to_rows`.

    Returns:
        `Screening`, which the scorer keeps.

    Raises:
        ValueError: the scorer has no `segments_for`; the ranking has no bound, see `check_screening`; or HMP tells no rows apart.
    """
    config = RankConfig(mode=mode, alpha=alpha, hmp=hmp, cas=cas, combine=combine, tau=tau)
    return screen_for(ds, scorer, config, part)


def screen_for(ds: Dataset, scorer: GateauScorer, config: RankConfig, part: Dataset | None = None) -> Screening:
    """`screen` with its settings as a dataclass."""
    if scorer.measure_config.segments_for is None:
        raise ValueError(
            "screen is for a scorer with segments_for, and this one has none; give e.g. segments_for=0.4."
        )
    check_screening(config, scorer.measure_config)
    table, measured = measure_without_segments(ds, scorer, part)
    how = parts_of(config)[0], config.tau, config.alpha
    found = keep_screening(table, scorer, lambda: hmp_of(measured, config), *how)
    logger.info("%s", found.line())
    wanted = int(safe_fraction(found.share, config.alpha) * found.num_rows)
    if found.num_certain < wanted - 1:
        logger.warning(
            "Many rows have the same HMP (%s), so segments_for=%s is certain of the best %s alone, not of %s; a larger one of more.",
            found.hmp, found.share, f"{found.num_certain:,}", f"{wanted:,}",
        )  # fmt: skip
    return found


def hmp_of(measured: Dataset, config: RankConfig) -> np.ndarray:
    """HMP of all rows of a measured data set, NaN where there is none; needs no segments."""
    alone = replace(config, method="without_cam", cas=None)
    return derive(read_columns(measured, alone), alone)[0]["gateau_hmp"]
