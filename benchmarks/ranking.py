"""Time and memory of `rank`, for each mode and a few variants, on synthetic measurements.

    python -m benchmarks.ranking --rows 10000 1000000 --segments 32

Each case runs in a process of its own, on a memory-mapped Arrow file: RSS counts the pages of that file which were
read, anonymous memory (Linux only) does not.
"""

import argparse
import logging
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path

import numpy as np

from .common import hardware, peak_anonymous_mib, peak_rss_mib


CASES = {
    "robust": {"mode": "robust"},
    "paper": {"mode": "paper"},
    "released": {"mode": "released"},
    "cas=spearman": {"cas": "spearman"},
    "perplexity": {"method": "perplexity"},
    "random": {"method": "random"},
}


def write_measurements(path: Path, num_rows: int, mean_segments: int, seed: int = 0) -> None:
    """An Arrow file of the raw columns; rows have 2 to 2 * mean - 2 segments."""
    import pyarrow as pa

    rng, writer = np.random.default_rng(seed), None
    for start in range(0, num_rows, 50_000):
        n = min(50_000, num_rows - start)
        sizes = rng.integers(2, 2 * mean_segments - 1, n)
        offsets = pa.array(np.append(0, np.cumsum(sizes)), pa.int32())
        columns = {name: rng.lognormal(1, 0.5, n) for name in ("gateau_ppl_short", "gateau_ppl_long")}
        for name, values in (
            ("gateau_segment_ppl", rng.lognormal(1, 0.5, sizes.sum())),
            ("gateau_segment_attention", rng.exponential(5e-4, sizes.sum())),
        ):
            columns[name] = pa.ListArray.from_arrays(offsets, pa.array(values))
        columns["gateau_key"] = [f"0123456789ab:{key:040x}" for key in rng.integers(0, 2**63, n).tolist()]
        table = pa.table(columns)
        writer = writer or pa.ipc.new_stream(path, table.schema)
        writer.write_table(table, max_chunksize=1000)  # as `datasets` writes its files
    writer.close()


def run_case(case: str, path: str, shuffled: bool) -> None:
    """One case in this process; prints its line."""
    import datasets

    from hf_gateau.ranking.order import rank

    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    datasets.disable_progress_bars()
    data = datasets.Dataset.from_file(path)
    if shuffled:
        data = data.shuffle(seed=0)
    with peak_anonymous_mib() as peak:
        start = time.perf_counter(), time.process_time()
        rank(data, **CASES[case])
        seconds = time.perf_counter() - start[0]
        cpu_seconds = time.process_time() - start[1]
    anonymous = f"{peak[0]:8.0f}" if peak else "     n/a"
    print(
        f"{len(data):>9,} rows  {case:<14}{seconds:8.2f} s ({cpu_seconds:.2f} CPU)  {peak_rss_mib():8.0f} MiB RSS  {anonymous} MiB anonymous"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[10_000, 1_000_000])
    parser.add_argument("--segments", type=int, default=32, help="mean number of segments a row, 2 or more")
    parser.add_argument("--cases", nargs="+", default=list(CASES), choices=list(CASES))
    parser.add_argument("--shuffled", action="store_true", help="rank behind an index mapping, as after ds.shuffle()")
    parser.add_argument("--file", help=argparse.SUPPRESS)  # for the child processes
    args = parser.parse_args()
    if args.file:
        return run_case(args.cases[0], args.file, args.shuffled)
    print(f"{hardware()}; {args.segments} segments a row")
    for num_rows in args.rows:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "measurements.arrow"
            write_measurements(path, num_rows, args.segments)
            for case in args.cases:
                command = [sys.executable, "-m", "benchmarks.ranking", "--file", str(path), "--cases", case]
                subprocess.run(command + ["--shuffled"] * args.shuffled, check=True)


if __name__ == "__main__":
    main()
