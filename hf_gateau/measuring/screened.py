"""Two passes over a data set: everything but segments of all its rows, then the segments of those that are worth it.

What the first one measures is in the store, and so is what the decision rests on: a run that was stopped, another process or
another machine with the same store and the same rows comes to the same decision, and measures what is left. Between the two,
somebody says what HMP the rows have: the formulas are in `ranking`.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from ..store.keys import config_key
from .progress import Meter, Reading, Summary, errors_of
from .runtime import Runtime
from .scorer import GateauScorer
from .screening import Screening, choose_rows
from .together import Team, check_alike, join_launch, measure_by_survey, survey_together


if TYPE_CHECKING:
    from datasets import Dataset

logger = logging.getLogger(__name__)


def measure_without_segments(
    ds: Dataset, scorer: GateauScorer, part: Dataset | None = None
) -> tuple[Dataset, Dataset]:
    """Measure everything but segments of all rows into the store, with all processes of a launch; `measure_together` then measures
    the segments of those that `keep_screening` chooses. Arguments and errors as there.

    Returns:
        the survey of the rows, and the rows with what was measured; their scorer measures nothing else until it is screened.
    """
    started, team = time.monotonic(), Team(join_launch(scorer))
    scorer.refresh()
    scorer.leave_segments()
    runtime = scorer.start()
    check_alike(team, len(ds), runtime)
    runtime.meter = meter = Meter(runtime)
    table = survey_together(ds, scorer, team, part)
    known, measured = measure_by_survey(ds, scorer, team, table)
    runtime.meter = None
    runtime.first_pass = reading = Reading.sum(team.exchange(meter.read()))
    summary = Summary.of(len(ds), errors_of(measured), reading, known, seconds=time.monotonic() - started)
    if team.is_main:
        logger.info("All but segments: %s", "\n".join(summary.lines()))
    return table, measured


def keep_screening(
    table: Dataset, scorer: GateauScorer, hmp: Callable[[], np.ndarray], name: str, tau: float, alpha: float
) -> Screening:
    """Decide of which rows the segments are measured, the same in every process of a launch, and let the scorer measure so.

    Args:
        table (`Dataset`): from `measure_without_segments`.
        scorer (`GateauScorer`): with `segments_for`.
        hmp: gives every row's HMP, NaN where it has none; called in the main process.
        name, tau: what it is.
        alpha: of the score.

    Raises:
        ValueError: see `choose_rows`.
    """
    team, runtime = Team(join_launch(scorer)), scorer.start()
    found = team.exchange(_decided(table, runtime, hmp(), name, tau, alpha) if team.is_main else None)[0]
    if isinstance(found, ValueError):
        raise found
    scorer.screen_by(found)
    return found


def _decided(
    table: Dataset, runtime: Runtime, hmp: np.ndarray, name: str, tau: float, alpha: float
) -> Screening | ValueError:
    """The decision, once the store has what it rests on; or why there is none, which every process is to say."""
    by_hmp = {"column": "hmp", **runtime.by_segments, "hmp": name, "tau": tau}
    about = {"hmp": name, "tau": tau, "segments_key": runtime.segments_key, "values_key": config_key(by_hmp)}
    keys, starts = table["key"], table["gateau_segment_starts"]
    kept = runtime.store.get_values(about["values_key"], [key for key in keys if key is not None])
    hmp = np.array([kept.get(key, value) for key, value in zip(keys, hmp, strict=True)])  # what others go by
    has_choice = np.array([x is not None and len(x) > 1 for x in starts], bool)
    try:
        found = choose_rows(hmp, keys, has_choice, runtime.config.segments_for, alpha, **about)
    except ValueError as error:
        return error
    runtime.store.describe(found.values_key, by_hmp)
    values = {key: float(x) for key, x in zip(keys, hmp, strict=True) if key is not None and np.isfinite(x)}
    runtime.store.put_values(found.values_key, {key: values[key] for key in sorted(values.keys() - kept.keys())})
    return found
