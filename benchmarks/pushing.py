"""Time and memory of `push_scored` and `load_scored`, on synthetic rows, through the real client against a local server.

    python -m benchmarks.pushing --rows 10000 --tokens 65536

The server is the tests' own (tests/servers/hub_server.py), so the network's share is left out: what is timed is ours, the client's
hashing and reading, and this machine's disk. Each step runs in a process of its own. Anonymous memory leaves out the pages of
memory-mapped files, which the system takes back when it needs them. Texts are pieces of a book
of random words, four characters a token.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from .common import add_output_argument, hardware, peak_anonymous_mib, tell


SEGMENT_LENGTH, WORDS, BOOK_WORDS = 128, 20_000, 2_000_000
REPO_ID = "tester/benchmark"
STEPS = ("rank", "push", "push again, unchanged", "push again, other alpha", "load in a clean cache")


def rows_of(num_rows: int, num_tokens: int, seed: int = 0):
    """Measured rows: texts of about `num_tokens` tokens, random measurements of that many segments."""
    from hf_gateau.rows.conversations import content_hash

    rng = np.random.default_rng(seed)
    words = np.array(["".join(rng.choice(list("etaoinshrdlu"), rng.integers(1, 7))) for _ in range(WORDS)])
    book = " ".join(words[rng.zipf(1.2, BOOK_WORDS) % WORDS])
    num_segments = num_tokens // SEGMENT_LENGTH
    for i in range(num_rows):
        start = int(rng.integers(0, len(book) - 4 * num_tokens))
        text = f"Text {i}. {book[start : start + 4 * num_tokens]}"
        messages = [{"role": "user", "content": f"{text}\n\nWhat of it?"}, {"role": "assistant", "content": "That."}]
        yield {
            "id": f"row-{i}",
            "messages": messages,
            "gateau_ppl_short": rng.lognormal(1, 0.5),
            "gateau_ppl_long": rng.lognormal(1, 0.5),
            "gateau_ppl_no_context": rng.lognormal(1, 0.5),
            "gateau_segment_ppl": rng.lognormal(1, 0.5, num_segments).tolist(),
            "gateau_segment_attention": rng.exponential(5e-4, num_segments).tolist(),
            "gateau_num_context_tokens": num_tokens,
            "gateau_num_response_tokens": 2,
            "gateau_truncated": False,
            "gateau_error": None,
            "gateau_key": f"0123456789abcdef:{i:032x}",
            "gateau_content_hash": content_hash({"messages": messages}),
        }


def write_rows(folder: Path, num_rows: int, num_tokens: int) -> None:
    """A `save_to_disk` folder of measured rows."""
    from datasets import Dataset, Features, List, Value

    number, text = Value("float64"), Value("string")
    kinds = {"gateau_segment_ppl": List(number), "gateau_segment_attention": List(number)}
    kinds |= {"id": text, "messages": [{"role": text, "content": text}], "gateau_truncated": Value("bool")}
    kinds |= {f"gateau_num_{part}_tokens": Value("int64") for part in ("context", "response")}
    kinds |= {f"gateau_{name}": text for name in ("error", "key", "content_hash")}
    names = next(rows_of(1, SEGMENT_LENGTH))
    settings = {"num_rows": num_rows, "num_tokens": num_tokens}
    features = Features({name: kinds.get(name, number) for name in names})
    ds = Dataset.from_generator(rows_of, features, str(folder.with_name("cache")), gen_kwargs=settings)
    ds.save_to_disk(str(folder))


def run_step(step: str, folder: Path) -> dict[str, float]:
    """Seconds and MiB of one step, in this process."""
    from datasets import load_from_disk

    from hf_gateau import load_scored, push_scored, rank

    ranked = folder / "ranked"
    if step == "rank":
        rank(load_from_disk(str(folder / "rows"))).save_to_disk(str(ranked))
        return {}
    ds = load_from_disk(str(ranked)) if step.startswith("push") else None
    ds = rank(ds, alpha=0.7) if "alpha" in step else ds
    started = time.monotonic()
    with peak_anonymous_mib() as peak:
        load_scored(REPO_ID) if ds is None else push_scored(ds, REPO_ID)
    seconds = time.monotonic() - started
    return {"seconds": seconds, "anonymous": peak[0] if peak else float("nan")}


def in_own_process(step: str, folder: Path, environment: dict[str, str]) -> dict[str, float]:
    command = [sys.executable, "-m", "benchmarks.pushing", "--child", step, "--folder", str(folder)]
    home = {"HF_HOME": str(folder / "clean")} if step.startswith("load") else {}
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, env={**environment, **home}, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def num_bytes(folder: Path) -> int:
    """Size of all files of a folder."""
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=10_000)
    parser.add_argument("--tokens", type=int, default=65_536, help="tokens of a row, four characters each")
    parser.add_argument("--folder", help="where to work; about 12 times the texts' size. Default: a temporary folder")
    add_output_argument(parser)
    parser.add_argument("--child", choices=STEPS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        return print(json.dumps(run_step(args.child, Path(args.folder))))
    from tests.servers.hub_server import HubServer

    with tempfile.TemporaryDirectory(dir=args.folder) as name:
        folder = Path(name)
        write_rows(folder / "rows", args.rows, args.tokens)
        lines = [
            f"{hardware()}. {args.rows:,} rows of {args.tokens:,} tokens (four characters each), a local server.\n",
            "| step | seconds | data sent, MiB | peak anonymous memory, MiB |",
            "| --- | ---: | ---: | ---: |",
        ]
        with HubServer(folder / "hub") as server:
            environment = {**os.environ, **server.environment(folder / "home")}
            for step in STEPS:
                before = num_bytes(folder / "hub")
                found = in_own_process(step, folder, environment)
                sent = num_bytes(folder / "hub") - before
                if found:
                    numbers = [found["seconds"], sent / 2**20, found["anonymous"]]
                    lines.append(f"| {step} | " + " | ".join(f"{number:,.0f}" for number in numbers) + " |")
    tell("\n".join(lines), args.output)


if __name__ == "__main__":
    main()
