"""What `hf-gateau score` does with rows: measure a dataset or a stream, write the stream, and say what came of it."""

from __future__ import annotations

import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..files.shards import write_shards
from ..files.writing import is_file_name
from ..hub.reuse import reuse_scores
from ..measuring.progress import Meter, Summary, errors_of
from ..measuring.scorer import GateauScorer
from ..measuring.together import calibrate_heads, measure_together
from ..measuring.windows import WindowScorer
from ..ranking.config import RankConfig
from ..ranking.screening import screen_for
from ..rows.batches import column_features, feature_of
from ..rows.cuts import Cuts
from ..store.sqlite import resolve_store_path
from .ready import Ready


if TYPE_CHECKING:
    import pyarrow as pa
    from datasets import Dataset, Features, IterableDataset

ROWS_OF_A_STREAM = 50  # measured at a time: each may be 65,536 tokens


def plan_line(ds: Dataset | IterableDataset, description: dict[str, Any], scorer: GateauScorer) -> str:
    """What is about to be done."""
    long, short = description["long"]["model"], description["short"]
    sibling = short.get("model") or "the same"
    sibling += f", RoPE base x {short['rope_scale']:g}" if short["rope_scale"] else ""
    sibling += f", its last {short['window']} tokens" if short["window"] else ""
    sibling += " of the long pass" if short.get("pass") == "reuse" else ""
    kept = resolve_store_path(scorer.measure_config.store)
    size = f"{description['dtype']}, samples of up to {description['max_length']:,} tokens"
    rows = f"{len(ds)} rows" if hasattr(ds, "__len__") else "a stream of rows"
    return f"{rows}; long model {long}, short sibling {sibling}; {size}; store: {kept or 'off'}"


def measured_rows(
    ds: Dataset, scorer: GateauScorer, num_proc: int, ready: Ready, config: RankConfig
) -> tuple[Dataset, Summary]:
    """A dataset with the measured columns, from processes of this machine or of a launch, and what became of its rows; what
    a scored dataset knows is taken from there. `config`: how they will be ranked, which may say whose segments are measured."""
    from accelerate import PartialState

    told: list[Summary] = []

    def measure(ds: Dataset, part: Dataset | None = None) -> Dataset:
        if scorer.measure_config.segments_for is not None:
            found = screen_for(ds, scorer, config, part)
            if PartialState().is_main_process:
                print(found.line(), file=sys.stderr, flush=True)
        if num_proc == 1:
            return measure_together(ds, scorer, tell=told.append, part=part)
        if scorer.measure_config.cam == "heads":
            calibrate_heads(ds, scorer)
        if scorer.measure_config.cam == "heads" or scorer.measure_config.segments_for is not None:
            scorer.configure()  # the workers load the models themselves
        options = {"num_proc": min(num_proc, len(ds)), "batch_size": 10}
        ds = ds.map(scorer, batched=True, with_rank=True, desc="Rows", **options)
        told.append(Summary.of(len(ds), errors_of(ds), cut=Cuts.of_data(ds)))
        return ds

    if ready.before is None:
        return measure(ds, ready.part), told[0]
    measured = reuse_scores(ds, ready.before, scorer, measure=measure)
    new = told[0] if told else Summary(0, measured=0)
    found = {"the scored dataset": len(ds) - new.rows} if len(ds) > new.rows else {}
    return measured, replace(new, rows=len(ds), known=new.known | found, cut=Cuts.of_data(measured).to_record())


def check_streaming(
    output: str, num_proc: int | None, scored_dataset: str | None, segments_for: float | None = None
) -> None:
    """Refuse what a stream cannot do.

    Raises:
        ValueError: it goes into one file, to several processes, is to be looked up in a scored dataset, or to be chosen among.
    """
    if is_file_name(output):
        raise ValueError(f"--streaming writes shard by shard; name a folder as --output, not {output!r}.")
    if (num_proc or 1) > 1:
        raise ValueError(
            f"--streaming is for one process, got --num_proc {num_proc}; give each process a part of the files, such as "
            "'data/train-0*.parquet', and an output of its own."
        )
    if scored_dataset is not None:
        raise ValueError("The rows of a stream cannot be looked up in --scored_dataset; leave --streaming out.")
    if segments_for is not None:
        raise ValueError(
            f"--segments_for {segments_for} chooses among all rows, and a stream shows some at a time; leave --streaming out."
        )


def score_stream(
    ds: IterableDataset,
    scorer: GateauScorer,
    output: str,
    record: dict[str, Any],
    max_shard_size: str,
    windows: WindowScorer | None = None,
) -> Summary:
    """Measure a stream and write it as Parquet shards while it goes; never more rows are in memory than a row group has.

    Raises:
        ValueError: a row does not fit the columns of the first ones.
    """
    runtime = scorer.start()
    runtime.meter, num_rows, errors, cut = Meter(runtime), 0, Counter(), Cuts()
    if windows is not None:
        windows.pair = runtime.pair

    def measure(table: pa.Table) -> pa.Table:
        nonlocal num_rows, cut
        measured = scorer(table)
        num_rows += len(measured)
        cut += Cuts.of_data(measured)
        errors.update(measured["gateau_error"].drop_null().to_pylist())
        return measured if windows is None else windows(measured)

    measured = ds.with_format("arrow").map(measure, batched=True, batch_size=ROWS_OF_A_STREAM)
    features = _measured_features(ds, {} if windows is None else windows.columns)
    write_shards(measured, features, Path(output).expanduser(), record, max_shard_size)
    known = "the store" if scorer.stores else "another row"
    return Summary.of(num_rows, errors, runtime.meter.read(), rest=known, cut=cut)


def _measured_features(ds: IterableDataset, more: dict[str, str]) -> Features:
    """The types of a stream's columns, of those that measuring adds, and of `more`."""
    from datasets import Features

    own = ds.features
    if own is None:  # not every reader tells before it has read
        own = Features.from_arrow_schema(next(ds.with_format("arrow").iter(ROWS_OF_A_STREAM)).schema)
    return Features({**own, **column_features(), **{name: feature_of(kind) for name, kind in more.items()}})
