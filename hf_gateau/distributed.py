"""Many processes, on one machine or on many, measure one dataset: each its share into the store, then all rows from there.

Shares are balanced by tokens, for a sample of 60,000 takes as long as sixty of 1,000. Who has nothing left to do waits for
the others as long as it takes; who ends early ends the others too.
"""

from __future__ import annotations

import heapq
import logging
import socket
import time
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from .batches import READ_COLUMNS
from .folder_store import FolderStore
from .measure import GateauScorer
from .store import StoreError


if TYPE_CHECKING:
    from accelerate import PartialState
    from datasets import Dataset

LONGEST_WAIT = timedelta(days=30)  # for processes that are still measuring
KEYS_PER_LOOK = 500
SHARED_DISK_DELAY = 120.0  # seconds until what one machine wrote must be seen by the others


def join_launch(scorer: GateauScorer) -> PartialState:
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


def measure_together(ds: Dataset, scorer: GateauScorer) -> Dataset:
    """Measure a dataset with all processes of a launch, each of which calls this and gets all rows.

    Every process lays out an equal part of the rows, which tells what is not in the store yet and how long it is; measures
    its share of that into the store; and when all are done, takes the columns of all rows from there, the main process first.

    Args:
        ds (`Dataset`): the same rows in every process.
        scorer (`GateauScorer`): the same settings in every process.

    Raises:
        ValueError: there is no store, or processes differ in rows, settings or store.
        StoreError: what others wrote cannot be read here.
        RuntimeError: another process has ended.
    """
    state = join_launch(scorer)
    if state.num_processes == 1:
        return ds.map(scorer, batched=True, desc="Rows")
    team = _Team(state)
    runtime = scorer.start()
    _check_alike(team, len(ds), runtime)
    pending = _pending(team, ds, scorer)
    share = balanced_shares([num_tokens for _, _, num_tokens in pending], team.size)[team.rank]
    failed = _measure_share(ds.select([pending[i][0] for i in share]), scorer, team)
    runtime.failed = {key: reason for part in team.exchange(failed) for key, reason in part.items()}
    _wait_for(runtime, {key for _, key, _ in pending} - runtime.failed.keys())
    for is_turn in (team.is_main, not team.is_main):  # `datasets` keeps what the main process has put together
        if is_turn:
            ds = ds.map(scorer, batched=True, desc="Rows")
        team.exchange(None)
    return ds


def balanced_shares(num_tokens: Sequence[int], num_shares: int) -> list[list[int]]:
    """Places of rows, one list a process: the longest first, each to the process that has the fewest tokens so far.

    The heaviest share has at most 4/3 - 1/(3 num_shares) times the tokens that the best division has (Graham 1969).
    """
    shares = [[] for _ in range(num_shares)]
    loads = [(0, i) for i in range(num_shares)]
    for place in sorted(range(len(num_tokens)), key=lambda i: (-num_tokens[i], i)):
        load, lightest = loads[0]
        shares[lightest].append(place)
        heapq.heapreplace(loads, (load + num_tokens[place], lightest))
    return shares


class _Team:
    """The processes of a launch. They meet on the CPU, with a patience of its own: the default group's ends after minutes."""

    def __init__(self, state: PartialState):
        import torch.distributed as dist

        self.rank, self.size, self.is_main = state.process_index, state.num_processes, state.is_main_process
        self._group = dist.new_group(backend="gloo", timeout=LONGEST_WAIT)

    def exchange(self, value: Any) -> list:
        """Every process's value, by rank; returns when all have given theirs.

        Raises:
            RuntimeError: a process has ended without giving one.
        """
        import torch.distributed as dist

        values = [None] * self.size
        try:
            dist.all_gather_object(values, value, group=self._group)
        except RuntimeError as error:
            raise RuntimeError(
                f"Another process has ended ({error}); its own message says why. What was measured is in the store: give the "
                "same command again."
            ) from error
        return values


def _check_alike(team: _Team, num_rows: int, runtime) -> None:
    """Refuse, before any work, processes that would not do parts of one thing."""
    for what, value in (("rows", num_rows), ("settings or models", runtime.config_key)):
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


def _check_shared(team: _Team, path: Path) -> None:
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


def _pending(team: _Team, ds: Dataset, scorer: GateauScorer) -> list[tuple[int, str, int]]:
    """Place, key and number of tokens of the rows to measure, one of each key; the same list in every process."""
    places = range(team.rank, len(ds), team.size)
    part = [
        (place, sample.key, sample.response_end)
        for place, (sample, is_kept) in zip(places, scorer.survey(ds.select(places)), strict=True)
        if not isinstance(sample, str) and not is_kept
    ]
    found = sorted(row for part in team.exchange(part) for row in part)
    return list({key: (place, key, num_tokens) for place, key, num_tokens in reversed(found)}.values())


def _measure_share(rows: Dataset, scorer: GateauScorer, team: _Team) -> dict[str, str]:
    """Measure rows into the store; returns the reasons of those that failed, by key."""
    from datasets.utils import tqdm

    failed = {}
    readable = [name for name in READ_COLUMNS if name in rows.column_names]
    batches = rows.select_columns(readable).with_format(None).iter(1)
    shown = {"desc": f"Measuring, process 1 of {team.size}", "unit": " rows", "disable": not team.is_main}
    for batch in tqdm(batches, total=len(rows), **shown):
        columns = scorer(batch)
        if columns["gateau_error"][0] is not None:
            failed[columns["gateau_key"][0].partition(":")[2]] = columns["gateau_error"][0]
    return failed


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
        missing -= runtime.store.get(runtime.config_key, keys[a : a + KEYS_PER_LOOK]).keys()
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
