"""Heads are chosen for a pair by some rows of a data set: which rows, and what is measured of them.

Every row is in the store as soon as it is measured, and so is the calibration: a run that was stopped goes on, and a later one,
or another process or machine with the same store, takes what is there.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from ..rows.samples import Sample
from ..store.sqlite import Measurement
from .heads import CalibrationRow, HeadCalibration, choose_heads, segment_distances, segment_gains
from .runtime import CALIBRATION, Runtime
from .segments import num_far_segments


if TYPE_CHECKING:
    from datasets import Dataset

logger = logging.getLogger(__name__)

NAMES = "names"  # (layer, head) of the columns of every row's attention, kept beside the rows
LEAST_FAR, LEAST_SEGMENTS = 2, 4  # that a row must have to tell heads apart

Names = list[tuple[int, int]]


def calibration_places(table: Dataset, runtime: Runtime) -> list[int]:
    """The rows of a survey that heads are to be chosen by, `cam_rows` at most: of those with several far segments the ones
    whose key has the lowest hash, whatever the order of rows."""
    names = ("num_tokens", "num_prefix_tokens", "gateau_num_context_tokens", "gateau_num_response_tokens")
    keys, sizes, places = table["key"], list(zip(*(table[name] for name in names), strict=True)), {}
    order = {key: hashlib.sha256(key.encode()).digest() for key in keys if key is not None}
    first = {key: place for place, key in reversed(list(enumerate(keys)))}
    for key in sorted(order, key=order.get):
        if len(places) == runtime.config.cam_rows:
            break
        tokens, prefix, context, response = sizes[first[key]]
        num_near = runtime.pair.near_tokens(context, tokens - prefix - context - response, tokens)
        num_far = num_far_segments(context, num_near, runtime.cut)
        if num_far >= LEAST_FAR and len(runtime.cut.starts(context)) >= LEAST_SEGMENTS:
            places[key] = first[key]
    return list(places.values())


def measure_for_calibration(runtime: Runtime, samples: Sequence[Sample]) -> tuple[Names, list[CalibrationRow]]:
    """Samples measured segment by segment, as without heads, and the attention of every head; all of it is in the store before
    the next is measured, and what is there is not measured again. A sample that cannot be measured is left out."""
    from ..models.device import lost_device
    from .passes import head_attention

    store, by_key = runtime.store, {sample.key: sample for sample in samples}
    store.describe(runtime.heads_key, runtime.by_all_heads)
    measured = _measured(runtime, list(by_key))
    for sample, found in runtime.measure([x for key, x in by_key.items() if key not in measured]):
        if isinstance(found, Measurement):
            measured[sample.key] = found
    kept = store.get_values(runtime.heads_key, [NAMES, *measured])
    names = [tuple(name) for name in json.loads(kept.get(NAMES, "[]"))]
    rows = []
    for key, found in sorted(measured.items()):
        context = len(by_key[key].context)
        starts = runtime.cut.starts(context)
        if key in kept and names:
            attention = np.array(kept[key], np.float32).reshape(len(starts), -1)
        else:
            try:
                names, attention = head_attention(runtime.pair, by_key[key], runtime.cut, runtime.limits)
            except Exception as error:  # one bad row never ends a run, whatever the model's own code raises
                if lost_device(error):
                    raise
                logger.warning("A row is left out of the calibration: %s: %s", type(error).__name__, error)
                continue
            if NAMES not in kept:
                kept[NAMES] = json.dumps(names)
                store.put_values(runtime.heads_key, {NAMES: kept[NAMES]})
            store.put_values(runtime.heads_key, {key: attention.ravel().tolist()})
        num_far = num_far_segments(context, runtime.pair.num_near(by_key[key]), runtime.cut)
        distances = segment_distances(starts, runtime.cut.length, context)
        rows.append(CalibrationRow(key, attention, segment_gains(found.segment_ppl), distances, num_far))
    return names, rows


def calibrate(runtime: Runtime, names: Names, rows: Sequence[CalibrationRow]) -> HeadCalibration:
    """The heads that some rows choose; where they serve, said in the log."""
    found = choose_heads(rows, names)
    if found.refusal is None:
        heads = ", ".join(f"{layer}.{head}" for layer, head in found.heads)
        logger.info(
            "Heads %s (layer.head) find the telling segment of %.0f%% of %d rows; chosen by %d.",
            heads, 100 * found.agreement, found.num_tested, found.num_rows,
        )  # fmt: skip
    return found


def keep_calibration(runtime: Runtime, calibration: HeadCalibration) -> HeadCalibration:
    """Keep a calibration in the store; returns the one that is there then: another launch may have been faster."""
    runtime.store.put_values(runtime.heads_key, {CALIBRATION: json.dumps(calibration.to_json())})
    return runtime.kept_calibration()


def keep_calibrated_rows(runtime: Runtime, names: Names, rows: Sequence[CalibrationRow]) -> None:
    """What the heads that a runtime has settled for see in the rows that chose them, beside what their segments tell: kept as
    these rows' measurements. Nothing where segments are measured of all rows."""
    if runtime.heads is None or not rows:
        return
    columns = [names.index(head) for head in runtime.heads.heads]
    measured = _measured(runtime, [x.key for x in rows])
    seen = {x.key: runtime.heads.calibrated(x.attention[:, columns], x.distances).tolist() for x in rows}
    runtime.keep(
        {
            x.key: replace(measured[x.key], segment_heads=seen[x.key], num_far_segments=x.num_far)
            for x in rows
            if x.key in measured
        }
    )


def _measured(runtime: Runtime, keys: list[str]) -> dict[str, Measurement]:
    """What the store has of samples whose segments were measured."""
    return runtime.store.get(runtime.segments_key, keys)
