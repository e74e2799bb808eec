"""Memory while `hf-gateau score` measures many short rows, as a dataset or as a stream: does it stay flat? (Linux only)

    python -m benchmarks.streaming --rows 100000 --way streaming --output streaming.md

Planted rows, made as the quickstart's, are written as Parquet shards and scored with its tiny pair by the command itself, in
a process of its own with a clean cache. Its anonymous memory is read every second: memory-mapped files, which the system
takes back when it needs to, are no part of it. Rows done are those in its store.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from .common import add_output_argument, hardware, tell


WAYS = {"map": [], "streaming": ["--streaming"]}
ROWS_OF_A_SEED = 1_000
SHARD_SIZE = "20MB"
NUM_POINTS = 10
SETTLED = 0.2  # of the run, after which memory is to stay as it is


class Point(NamedTuple):
    """What was seen at one moment."""

    num_rows: int
    seconds: float
    anonymous_mib: float


def rows_of(num_rows: int, num_tokens: int) -> Iterator[dict]:
    """Planted rows, a thousand from each seed."""
    from hf_gateau.quickstart.world import planted_rows

    for seed in range(0, num_rows, ROWS_OF_A_SEED):
        yield from planted_rows(min(ROWS_OF_A_SEED, num_rows - seed), 1_000_000 + seed, num_tokens)


def write_rows(folder: Path, num_rows: int, num_tokens: int) -> None:
    """A folder of Parquet shards."""
    from datasets import Dataset, IterableDataset

    from hf_gateau.files.shards import write_shards

    features = Dataset.from_list(list(rows_of(10, num_tokens))).features
    settings = {"num_rows": num_rows, "num_tokens": num_tokens}
    write_shards(IterableDataset.from_generator(rows_of, gen_kwargs=settings), features, folder, {}, SHARD_SIZE)


def score(folder: Path, way: str, num_rows: int) -> list[Point]:
    """Run the command and watch it, once a second.

    Raises:
        RuntimeError: it failed, or wrote another number of rows.
    """
    from datasets.utils import tqdm

    from hf_gateau.quickstart import LONG_MODEL, SEGMENT_LENGTH, SHORT_MODEL

    store, out = folder / "store.sqlite", folder / "out"
    command = [sys.executable, "-m", "hf_gateau.cli", "score", str(folder / "rows"), "-o", str(out), *WAYS[way]]
    command += ["--max_shard_size", SHARD_SIZE, "--store", str(store), "--segment_length", str(SEGMENT_LENGTH)]
    command += ["--long_model", LONG_MODEL, "--short_model", SHORT_MODEL, "--device", "cpu"]
    environment = {**os.environ, "HF_HOME": str(folder / "home"), "HF_DATASETS_DISABLE_PROGRESS_BARS": "1"}
    log, points, started = folder / "log", [], time.monotonic()
    with log.open("w") as stream, tqdm(total=num_rows, desc=f"Scoring ({way})", unit=" rows") as bar:
        process = subprocess.Popen(command, stdout=stream, stderr=stream, env=environment)
        done = _RowsDone(store)
        while process.poll() is None:
            if (memory := anonymous_mib(process.pid)) is not None:
                points.append(Point(done.count(), time.monotonic() - started, memory))
                bar.update(points[-1].num_rows - bar.n)
            time.sleep(1)
    if process.returncode or num_rows_in(out) != num_rows:
        raise RuntimeError(f"hf-gateau score ended with {process.returncode}:\n{log.read_text()[-3000:]}")
    return [*points, points[-1]._replace(num_rows=num_rows)]


class _RowsDone:
    """Counts the rows in a store, seldom enough to take no more than a fiftieth of the time."""

    def __init__(self, path: Path):
        from hf_gateau.store.sqlite import MeasurementStore

        self.store, self.num_rows, self.next = MeasurementStore(path), 0, 0.0

    def count(self) -> int:
        started = time.monotonic()
        if started >= self.next:
            self.num_rows = sum(x["num_rows"] for x in self.store.configurations())
            self.next = time.monotonic() + 50 * (time.monotonic() - started)
        return self.num_rows


def anonymous_mib(process: int) -> float | None:
    """Anonymous memory of a process now; None once it has ended."""
    try:
        status = Path(f"/proc/{process}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return int(status.split("RssAnon:")[1].split()[0]) / 1024 if "RssAnon:" in status else None


def num_rows_in(folder: Path) -> int:
    """Rows of all Parquet files of a folder."""
    import pyarrow.parquet as pq

    return sum(pq.read_metadata(part).num_rows for part in folder.glob("*.parquet"))


def table(points: list[Point], num_rows: int) -> list[str]:
    """Markdown: what was seen at tenths of the rows, and the last memory over that at a fifth."""
    chosen = [next(x for x in points if x.num_rows * NUM_POINTS >= i * num_rows) for i in range(1, NUM_POINTS)]
    chosen.append(points[-1])
    lines = ["| rows done | seconds | anonymous MiB | rows/s since the line before |", "| ---: | ---: | ---: | ---: |"]
    for before, point in zip([Point(0, 0.0, 0.0), *chosen], chosen, strict=False):
        rate = (point.num_rows - before.num_rows) / max(point.seconds - before.seconds, 1e-9)
        rate = f"{rate:,.1f}" if point.num_rows > before.num_rows else "-"
        lines.append(f"| {point.num_rows:,} | {point.seconds:,.0f} | {point.anonymous_mib:,.0f} | {rate} |")
    settled = next(x for x in points if x.num_rows >= SETTLED * num_rows)
    ratio = points[-1].anonymous_mib / settled.anonymous_mib
    most = max(x.anonymous_mib for x in points)
    lines += ["", f"At the end {ratio:.2f} times the memory at {SETTLED:.0%} of the rows; {most:,.0f} MiB at most."]
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--tokens", type=int, default=960, help="of a row's context")
    parser.add_argument("--way", choices=WAYS, nargs="+", default=list(WAYS), help="one of them, or both in turn")
    parser.add_argument("--folder", help="where to work. Default: a temporary folder")
    add_output_argument(parser)
    args = parser.parse_args()
    if not Path("/proc/self/status").exists():
        parser.error("this system has no /proc to read memory from")
    lines = [f"{hardware()}. {args.rows:,} planted rows of about {args.tokens:,} tokens, the quickstart's pair."]
    for way in args.way:
        with tempfile.TemporaryDirectory(dir=args.folder) as name:
            write_rows(Path(name) / "rows", args.rows, args.tokens)
            title = " ".join(["hf-gateau score", *WAYS[way]])
            lines += ["", f"`{title}`:", "", *table(score(Path(name), way, args.rows), args.rows)]
    tell("\n".join(lines), args.output)


if __name__ == "__main__":
    main()
