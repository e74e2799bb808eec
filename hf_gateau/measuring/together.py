"""Many processes, on one machine or on many, measure one dataset: each its share into the store, then all rows from there.

Shares are balanced by tokens, for a sample of 60,000 takes as long as sixty of 1,000. Who has nothing left to do waits for
the others as long as it takes; who ends early ends the others too.
"""

from __future__ import annotations

import heapq
import logging
import socket
import time
from collections import Counter
from collections.abc import Callable, Sequence
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import numpy as np

from ..rows.batches import readable, rows_of
from ..rows.cuts import Cuts
from ..rows.samples import Sample
from ..store.folder import FolderStore
from ..store.sqlite import StoreError
from .calibration import (
    calibrate,
    calibration_places,
    keep_calibrated_rows,
    keep_calibration,
    measure_for_calibration,
)
from .heads import HeadCalibration
from .lengths import CAS, HMP, Lengths, check_lengths
from .progress import Meter, Reading, Summary, View, errors_of
from .runtime import Runtime
from .scorer import GateauScorer
from .survey import KEYS_PER_LOOK, Work, are_kept, measured_rows, survey_rows


if TYPE_CHECKING:
    from accelerate import PartialState
    from datasets import Dataset

    from .value_scorer import ValueScorer

logger = logging.getLogger(__name__)

LONGEST_WAIT = timedelta(days=30)  # for processes that are still measuring
ROWS_A_MESSAGE = 10_000  # of its part of the survey that a process sends at a time
ROWS_AT_ONCE = 1_000  # that a process reads of its share of values
SHARED_DISK_DELAY = 120.0  # seconds until what one machine wrote must be seen by the others


def join_launch(scorer: GateauScorer | ValueScorer) -> PartialState:
    """Take the place that `accelerate launch` (or torchrun) gave this process, and its GPU; does nothing without them.

    Raises:
        ValueError: there are several processes and no store, through which alone they can put their work together.
    """
    import torch
    from accelerate import PartialState

    state = PartialState(cpu=not torch.accelerator.is_available())  # else several processes on CPUs are not seen
    scorer.default_rank = state.local_process_index
    if state.num_processes > 1 and not scorer.stores:
        raise ValueError(
            f"{state.num_processes} processes measure together through the store, and it is off. Name one: a file (one "
            "machine) or a folder on a shared disk, with a slash at its end (many), as store or in HF_GATEAU_STORE."
        )
    return state


def fit_to_rows(
    ds: Dataset, scorer: GateauScorer, needs: Sequence[str] = (HMP, CAS), num_proc: int | None = None
) -> tuple[Dataset, Lengths]:
    """Lay all rows out before any is measured; give the scorer the short window that its settings leave open, and refuse
    settings that leave nothing to measure. Loads no model.

    Args:
        ds (`Dataset`): the same rows in every process of a launch.
        scorer (`GateauScorer`): its `short_window` is set where it is open, see `lengths.default_window`.
        needs: what is wanted of the rows; see `check_lengths`.
        num_proc (`int`, *optional*): processes that lay out rows.

    Returns:
        what `measure_together` takes as `part`, and the lengths of all rows.

    Raises:
        ValueError: the settings leave no row with what is needed.
    """
    team = Team(join_launch(scorer))
    scorer.refresh()
    part = _surveyed_part(ds, scorer, team, num_proc)
    lengths = Lengths.joined(team.exchange(Lengths.of_survey(part)))
    if scorer.pair_config.window_is_open and len(lengths):
        scorer.configure(short_window=lengths.window())
        if team.is_main:
            logger.info("short_window=%d, by the median context of the rows", scorer.pair_config.short_window)
    check_lengths(lengths, scorer.pair_config, scorer.measure_config, needs)
    return part, lengths


def measure_together(
    ds: Dataset, scorer: GateauScorer, tell: Callable[[Summary], None] | None = None, part: Dataset | None = None
) -> Dataset:
    """Measure a dataset with all processes of a launch, each of which calls this and gets all rows.

    Every process lays out an equal part of the rows, which tells what is not in the store yet, how long it is, and which
    rows stand on one context; measures its share of that into the store; and when all are done, takes the columns of all
    rows from there, the main process first. One process does the same alone; without a store it is `ds.map(scorer)`.

    Args:
        ds (`Dataset`): the same rows in every process.
        scorer (`GateauScorer`): the same settings in every process.
        tell (`Callable`, *optional*): takes the `Summary` in the end, in every process. Default: the main one logs it.
        part (`Dataset`, *optional*): from `fit_to_rows`, with the same rows.

    Raises:
        ValueError: there are several processes and no store; or they differ in rows, settings or store.
        StoreError: what others wrote cannot be read here.
        RuntimeError: another process has ended.
    """
    started, team = time.monotonic(), Team(join_launch(scorer))
    scorer.refresh()
    runtime = scorer.start()
    if runtime.lacks_screening:
        runtime.check_ready()
    runtime.meter = meter = Meter(runtime)
    check_alike(team, len(ds), runtime)
    if scorer.stores and len(ds):
        known, ds = measure_by_survey(ds, scorer, team, survey_together(ds, scorer, team, part))
    else:
        known, ds = {}, ds.map(scorer, batched=True, desc="Rows")
    runtime.meter = None
    errors = errors_of(ds) if len(ds) else Counter()
    reading = Reading.sum(team.exchange(meter.read())).after(runtime.first_pass)
    rest = "another row" if scorer.stores else "the datasets cache or another row"
    summary = Summary.of(len(ds), errors, reading, known, rest, time.monotonic() - started, Cuts.of_data(ds))
    if tell is not None:
        tell(summary)
    elif team.is_main:
        logger.info("\n".join(summary.lines()))
    return ds


def measure_by_survey(ds: Dataset, scorer: GateauScorer, team: Team, table: Dataset) -> tuple[dict[str, int], Dataset]:
    """Measure what the store has not of rows that were laid out; returns how many rows it had, and all rows with their columns."""
    runtime = scorer.start()
    runtime.failed = {}
    if runtime.config.cam == "heads":
        _calibrate(ds, table, runtime, team)
    num_new = sum(team.exchange(runtime.meter.rows))
    kept = _kept(table, runtime, team)
    work = Work.of(table, kept)
    share = balanced_shares(work.weights.tolist(), team.size)[team.rank]
    failed, num_others = _measure_share(ds, work, share, runtime, team, _also(table, kept))
    runtime.failed = {key: reason for part in team.exchange(failed) for key, reason in part.items()}
    if team.size > 1:
        _wait_for(runtime, {key.decode() for key in work.keys.tolist()} - runtime.failed.keys())
    for is_turn in (team.is_main, not team.is_main):  # `datasets` keeps what the main process has put together
        if is_turn:
            measured = measured_rows(ds, table, scorer)
        team.exchange(None)
    others = {"other processes": sum(team.exchange(num_others))}
    place = "the store" if runtime.screen is None else "the pass without segments or the store"
    return {place: int(kept.sum()) - num_new} | others, measured


def calibrate_heads(ds: Dataset, scorer: GateauScorer) -> HeadCalibration:
    """Choose the heads that a scorer with `cam="heads"` is to measure by, from some rows of a data set, into its store.

    Every process of a launch calls this with the same rows. Where the store has heads for the pair, the dtype and the segment
    length already, they are taken.

    Args:
        ds (`Dataset`): the rows that are to be measured afterwards.
        scorer (`GateauScorer`): with `cam="heads"` and a store.

    Returns:
        `HeadCalibration`, whose `refusal` says why segments will be measured all the same, where its heads cannot serve.

    Raises:
        ValueError: the scorer has another `cam`, or no store.
    """
    if scorer.measure_config.cam != "heads":
        raise ValueError(f"calibrate_heads is for cam='heads', and the scorer has cam={scorer.measure_config.cam!r}.")
    team = Team(join_launch(scorer))
    scorer.refresh()
    runtime = scorer.start()
    check_alike(team, len(ds), runtime)
    _calibrate(ds, survey_together(ds, scorer, team, None), runtime, team)
    return runtime.calibration


def _calibrate(ds: Dataset, table: Dataset, runtime: Runtime, team: Team) -> None:
    """Let every process settle for one calibration: the store's, or one that all measure for, each some rows."""
    known = [found for found in team.exchange(runtime.calibration) if found is not None]
    if known:
        runtime.settle(known[0])
        return
    places = calibration_places(table, runtime)
    tokens = [table[place]["num_tokens"] for place in places]
    share = sorted(places[i] for i in balanced_shares(tokens, team.size)[team.rank])
    samples = map(runtime.lay_out, rows_of(readable(ds)[share]) if share else [])
    names, rows = measure_for_calibration(runtime, [sample for sample in samples if isinstance(sample, Sample)])
    parts = team.exchange((names, rows))
    names = next((found for found, _ in parts if found), [])
    found = calibrate(runtime, names, [row for _, part in parts for row in part]) if team.is_main else None
    found = team.exchange(found)[0]
    runtime.settle(found)
    keep_calibrated_rows(runtime, names, rows)
    team.exchange(None)  # the calibration is kept last: with it the rows that it was made of are there
    kept = team.exchange(keep_calibration(runtime, found) if team.is_main else None)[0]
    if kept.digest != found.digest:
        runtime.settle(kept)


def main_process_first(scorer: Any, work: Callable[[], Any]) -> Any:
    """What `work` gives each process of a launch, the main one first: the others find what it has kept in the store.

    Args:
        scorer: what `work` measures with; it takes the process's GPU.
        work: called once in every process.
    """
    team, found = Team(join_launch(scorer)), None
    for is_turn in (team.is_main, not team.is_main):
        if is_turn:
            found = work()
        team.exchange(None)
    return found


def values_together(ds: Dataset, scorer: ValueScorer) -> Dataset:
    """`ds.map(scorer)` with all processes of a launch, each of which calls this: a process measures every so-many-th row into the
    store, and when all have, each takes the values of all rows from there, the main one first."""
    if (team := Team(join_launch(scorer))).size > 1:
        scorer.rank = scorer.default_rank
        for batch in readable(ds.shard(team.size, team.rank, contiguous=False)).iter(ROWS_AT_ONCE):
            scorer.measure_rows(rows_of(batch))
        team.exchange(None)
    return main_process_first(scorer, lambda: ds.map(scorer, batched=True, desc=scorer.title))


def balanced_shares(num_tokens: Sequence[int], num_shares: int) -> list[list[int]]:
    """Places of rows, or of bunches of rows, one list a process: those of most tokens first, each to the process that has the
    fewest tokens so far.

    The heaviest share has at most 4/3 - 1/(3 num_shares) times the tokens that the best division has (Graham 1969).
    """
    shares = [[] for _ in range(num_shares)]
    loads = [(0, i) for i in range(num_shares)]
    for place in sorted(range(len(num_tokens)), key=lambda i: (-num_tokens[i], i)):
        load, lightest = loads[0]
        shares[lightest].append(place)
        heapq.heapreplace(loads, (load + num_tokens[place], lightest))
    return shares


class Team:
    """The processes of a launch, or one alone. They meet on the CPU, with a patience of its own: the default group's ends
    after minutes."""

    def __init__(self, state: PartialState):
        import torch.distributed as dist

        self.rank, self.size, self.is_main = state.process_index, state.num_processes, state.is_main_process
        self._group = dist.new_group(backend="gloo", timeout=LONGEST_WAIT) if self.size > 1 else None

    def exchange(self, value: Any) -> list:
        """Every process's value, by rank; returns when all have given theirs.

        Raises:
            RuntimeError: a process has ended without giving one.
        """
        import torch.distributed as dist

        if self.size == 1:
            return [value]
        values = [None] * self.size
        try:
            dist.all_gather_object(values, value, group=self._group)
        except RuntimeError as error:
            raise RuntimeError(
                f"Another process has ended ({error}); its own message says why. What was measured is in the store: give the "
                "same command again."
            ) from error
        return values


def check_alike(team: Team, num_rows: int, runtime) -> None:
    """Refuse, before any work, processes that would not do parts of one thing."""
    if team.size == 1:
        return
    same = {"rows": num_rows, "settings or models": runtime.segments_key, "cam": runtime.config.cam}
    for what, value in (same | {"tokenizer, find_context or max_length": runtime.layout_key}).items():
        if len(found := set(team.exchange(value))) > 1:
            raise ValueError(
                f"The processes do not have the same {what} ({', '.join(map(str, sorted(found)))}); give all the same data, "
                "models, dtype and versions."
            )
    num_machines = len(set(team.exchange(socket.gethostname())))
    if num_machines > 1 and not isinstance(runtime.store, FolderStore):
        raise ValueError(
            f"The processes run on {num_machines} machines, and the store {runtime.store.path} is a SQLite file, which serves "
            "one. Name a folder on a disk that all share, with a slash at its end: --store /shared/gateau/."
        )
    _check_shared(team, runtime.store.path)


def _check_shared(team: Team, path: Path) -> None:
    """A file beside the store that the main process makes is seen by every process, or they have different stores."""
    folder = path if path.is_dir() else path.parent
    probe = folder / team.exchange(f".seen-{uuid4().hex}")[0]
    if team.is_main:
        probe.touch()
    team.exchange(None)
    blind = [rank for rank, sees in enumerate(team.exchange(probe.exists())) if not sees]
    if team.is_main:
        probe.unlink()
    if blind:
        raise ValueError(
            f"The store {path} is not the same for process(es) {blind}; name one on a disk that all share."
        )


def _surveyed_part(ds: Dataset, scorer: GateauScorer, team: Team, num_proc: int | None = None) -> Dataset:
    """The survey of the rows that this process lays out."""
    part = ds.select(range(team.rank, len(ds), team.size)) if team.size > 1 else ds
    return survey_rows(part, scorer, num_proc)


def survey_together(ds: Dataset, scorer: GateauScorer, team: Team, part: Dataset | None) -> Dataset:
    """The survey of all rows; the same in every process, of which each lays out a part."""
    part = _surveyed_part(ds, scorer, team) if part is None else part
    return part if team.size == 1 else _gathered(ds, part, team)


def _kept(table: Dataset, runtime: Runtime, team: Team) -> np.ndarray:
    """Whether the store has each row of a survey; every process looks for a part."""
    if team.size == 1:
        return are_kept(table, runtime)
    part = table.select(range(team.rank, len(table), team.size))
    return np.array(_in_turn(team.exchange(are_kept(part, runtime))), bool)


def _gathered(ds: Dataset, part: Dataset, team: Team) -> Dataset:
    """One table of all processes' parts, which have rows r, r + size, ...; on the disk, a piece of each at a time."""
    from datasets import Dataset
    from datasets.arrow_writer import ArrowWriter

    path = _folder_of(ds) / f"gateau-survey-{uuid4().hex}.arrow"
    with ArrowWriter(path=str(path), features=part.features) as writer:
        for start in range(0, -(-len(ds) // team.size), ROWS_A_MESSAGE):
            pieces = team.exchange(part[start : start + ROWS_A_MESSAGE])
            writer.write_batch({name: _in_turn([piece[name] for piece in pieces]) for name in part.column_names})
        writer.finalize()
    try:
        fingerprint = team.exchange(part._fingerprint)[0]  # by which all of a machine find what one has put together
        return Dataset(Dataset.from_file(str(path)).data, fingerprint=fingerprint)
    finally:
        path.unlink()


def _in_turn(parts: Sequence[Sequence]) -> list:
    """Values r, r + size, ... from part r."""
    merged = [None] * sum(map(len, parts))
    for rank, part in enumerate(parts):
        merged[rank :: len(parts)] = part
    return merged


def _folder_of(ds: Dataset) -> Path:
    """Where `datasets` keeps what is made of a dataset."""
    from datasets import is_caching_enabled
    from datasets.fingerprint import get_temporary_cache_files_directory

    files = ds.cache_files if is_caching_enabled() else []
    return Path(files[0]["filename"]).parent if files else Path(get_temporary_cache_files_directory())


def _also(table: Dataset, kept: np.ndarray) -> str:
    """What is said of the rows that are not to be measured."""
    num_bad = table.data.column("key").null_count
    parts = [f"{kept.sum():,} in the store"] * bool(kept.any()) + [f"{num_bad:,} not measurable"] * bool(num_bad)
    return f" (and {', '.join(parts)})" if parts else ""


def _measure_share(
    ds: Dataset, work: Work, share: list[int], runtime: Runtime, team: Team, also: str
) -> tuple[dict[str, str], int]:
    """Measure some bunches of rows into the store; returns the reasons of those that failed, by key, and how many rows processes of
    other commands have measured meanwhile."""
    rows = work.rows(share)
    if not len(rows):
        return {}, 0
    runtime.meter.start()
    by_work = rows[np.argsort(work.tokens[rows], kind="stable")]
    flops = runtime.meter.costs.total(work.shapes(by_work, begun=runtime.screen is not None))
    name = "Measuring" if team.size == 1 else f"Measuring, process {team.rank + 1} of {team.size}"
    read, failed, before, left = readable(ds), {}, runtime.meter.rows, None
    with View(runtime.meter, work.tokens[rows], flops, name, also, shown=team.is_main) as view:
        while True:
            parts = (rows_of(read[places]) for places in work.parts(share, runtime.limits.batch_tokens, left))
            reasons, busy = runtime.measure_into_store(parts, view)
            failed |= reasons
            if not busy:
                return failed, len(rows) - len(failed) - (runtime.meter.rows - before)
            runtime.claims.wait(busy)
            left = np.isin(work.keys, np.array(list(busy), work.keys.dtype))


def _wait_for(runtime, keys: set[str]) -> None:
    """Shared disks show what other machines wrote after a while: wait for it, so that nothing is measured twice."""
    deadline, keys = time.monotonic() + SHARED_DISK_DELAY, sorted(keys)
    while missing := _missing(runtime, keys):
        if time.monotonic() > deadline:
            raise StoreError(
                f"{len(missing)} rows that other processes measured are not to be seen in the store {runtime.store.path}; is "
                "it on a disk that all share?"
            )
        time.sleep(1.0)


def _missing(runtime, keys: list[str]) -> set[str]:
    missing = set(keys)
    for a in range(0, len(keys), KEYS_PER_LOOK):
        missing -= runtime.known(keys[a : a + KEYS_PER_LOOK]).keys()
    return missing


def be_quiet() -> None:
    """Leave bars and warnings of the libraries to the main process; for commands, which have the process to themselves."""
    import datasets
    from huggingface_hub.utils import disable_progress_bars
    from transformers.utils import logging as transformers_logging

    datasets.disable_progress_bars()
    disable_progress_bars()
    transformers_logging.disable_progress_bar()
    for name in ("hf_gateau", "datasets", "transformers", "huggingface_hub"):
        logging.getLogger(name).setLevel(logging.ERROR)
