"""How fast the explorer of scored rows opens and scrolls, what memory its page takes, and how large its folder is.

    python -m benchmarks.exploring --rows 10000 --tokens 65536

Rows are synthetic: words of a made-up vocabulary, as often as Zipf's law has it, which gzip makes about as small as English. Each
row has a document of its own, 4 characters a token, a number for every segment of 128 tokens, and 300 response tokens. The folder
is compared with the texts of rows in one file (of every tenth row, times 10), by gzip -9 and by zstd. The page is opened from the disk in Chromium, by
playwright.
"""

import argparse
import gzip
import shlex
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from tests.browser import chromium, until

from .common import MIB, hardware, peak_rss_mib


CHARACTERS_A_TOKEN, SEGMENT, RESPONSE_TOKENS = 4, 128, 300
NUM_WORDS, POOL_BYTES = 30_000, 64 * MIB
REFERENCE = 10  # every so-many-th row is compressed for comparison
NUM_OPENED = 30  # rows, one after the other
SCROLL = """async () => {
    const grid = document.getElementById("grid"), end = grid.scrollHeight, steps = 300, times = [];
    const frame = () => new Promise(requestAnimationFrame);
    for (const size of [90, end / steps]) {
        for (let i = 0; i < steps; i++) {
            grid.scrollTop = size * i;
            times.push(await frame());
        }
    }
    return Math.max(...times.slice(1).map((x, i) => x - times[i]));
}"""


def words(rng: np.random.Generator) -> np.ndarray:
    """A vocabulary: the commoner, the shorter."""
    letters = np.array(list("etaoinshrdlcumwfgypbvk"))
    share = 1 / (np.arange(len(letters)) + 3.0)
    sizes = 2 + np.minimum(9, rng.poisson(np.linspace(1, 6, NUM_WORDS)))
    return np.array(["".join(rng.choice(letters, size, p=share / share.sum())) for size in sizes], dtype=object)


def rows(num_rows: int, num_tokens: int, reference: "Reference | None", seed: int = 0) -> Iterator[dict]:
    """Scored rows, one at a time; their texts go to the reference as well."""
    rng = np.random.default_rng(seed)
    vocabulary, ends = words(rng), np.cumsum(1 / (np.arange(NUM_WORDS) + 2.7))
    drawn = vocabulary[np.searchsorted(ends, rng.random(POOL_BYTES // 5) * ends[-1])]
    pool = " ".join(drawn.tolist())  # which no compression can look so far back in as it is long

    def text(size: int) -> str:
        start = int(rng.integers(0, len(pool) - size))
        return pool[start : start + size]

    for i in range(num_rows):
        context, question = text(num_tokens * CHARACTERS_A_TOKEN), text(120)
        answer = text(RESPONSE_TOKENS * CHARACTERS_A_TOKEN)
        if reference is not None and i % REFERENCE == 0:
            reference.add(f"{context}\n{question}\n{answer}\n".encode())
        num_segments = -(-num_tokens // SEGMENT)
        nll = rng.exponential(1, (5, RESPONSE_TOKENS)).round(4)
        ppl = rng.lognormal(1, 0.3, 3)
        yield {
            "id": f"row-{i}",
            "source": ("books", "law", "code")[i % 3],
            "context": context,
            "instruction": question,
            "response": answer,
            "gateau_ppl_short": ppl[0],
            "gateau_ppl_long": ppl[1],
            "gateau_ppl_no_context": ppl[2] * 2,
            "gateau_segment_ppl": rng.lognormal(1, 0.3, num_segments),
            "gateau_segment_attention": rng.exponential(5e-4, num_segments),
            **{f"gateau_token_nll_{x}": nll[j] for j, x in enumerate(("long", "short", "no_context", "far", "near"))},
            "gateau_token_far_segment": rng.integers(0, max(1, num_segments - 4), RESPONSE_TOKENS),
            "gateau_segment_starts": np.arange(num_segments) * SEGMENT * CHARACTERS_A_TOKEN,
            "gateau_num_cut_tokens": 0,
            "gateau_num_context_tokens": num_tokens,
            "gateau_num_response_tokens": RESPONSE_TOKENS,
            "gateau_key": f"c:{rng.integers(0, 2**62):040x}",
        }


class Reference:
    """Texts in one file, compressed as they come; only the bytes are counted."""

    def __init__(self, folder: Path):
        import pyarrow as pa

        self.files = {"gzip -9": folder / "texts.gz", "zstd": folder / "texts.zst"}
        self.streams = [gzip.open(self.files["gzip -9"], "wb", 9)]
        self.streams.append(pa.output_stream(str(self.files["zstd"]), compression="zstd"))
        self.num_bytes = 0

    def add(self, data: bytes) -> None:
        self.num_bytes += len(data)
        for stream in self.streams:
            stream.write(data)

    def sizes(self) -> dict[str, int]:
        for stream in self.streams:
            stream.close()
        return {name: file.stat().st_size for name, file in self.files.items()}


def renderer_mib() -> float:
    """Memory of the largest page process of this machine's browsers: its own pages, and its share of the others (Linux only)."""
    found = [0.0]
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if b"--type=renderer" in (process / "cmdline").read_bytes():
                pss = next(x for x in (process / "smaps_rollup").read_text().splitlines() if x.startswith("Pss:"))
                found.append(int(pss.split()[1]) / 1024)
        except OSError:  # it has ended
            continue
    return max(found)


def browse(page: Path, num_rows: int) -> dict[str, str]:
    """Open the page, scroll, and open rows."""
    figures = {}
    with chromium() as browser:
        tab = browser.new_page(viewport={"width": 1400, "height": 900})
        firsts = []
        for _ in range(3):
            tab.goto("about:blank")
            tab.goto(page.as_uri())
            until(tab, "document.body.dataset.ready", 120)
            firsts.append(tab.evaluate("performance.getEntriesByName('gateau-table')[0].startTime"))
        figures["first table, ms (best and worst of 3)"] = f"{min(firsts):,.0f}, {max(firsts):,.0f}"
        figures["worst frame of 600 while scrolling, ms"] = f"{tab.evaluate(SCROLL):,.0f}"
        opened = []
        for row in np.linspace(0, num_rows - 1, NUM_OPENED).astype(int).tolist():
            start = time.perf_counter()
            tab.evaluate(f"gateau.model.set({{ row: {row}, segment: null }})")
            until(tab, "document.querySelector('#row-body:not([aria-busy]) #segment-text mark') !== null")
            opened.append(1000 * (time.perf_counter() - start))
        figures[f"a row opened, ms (median and worst of {NUM_OPENED})"] = (
            f"{np.median(opened):,.0f}, {max(opened):,.0f}"
        )
        start = time.perf_counter()
        tab.evaluate("gateau.model.set({ alpha: 0.31 })")
        figures["ranked anew by another alpha, ms"] = f"{1000 * (time.perf_counter() - start):,.0f}"
        figures["memory of the page, MiB"] = f"{renderer_mib():,.0f}"
    return figures


def write(num_rows: int, num_tokens: int, folder: Path, place: Path) -> dict[str, str]:
    """Make rows, and the explorer of them; figures by name."""
    import datasets

    from hf_gateau.ranking.order import rank
    from hf_gateau.records import attach_record
    from hf_gateau.report.explorer import write_explorer

    datasets.disable_progress_bars()
    reference = Reference(folder)
    arguments = {"num_rows": num_rows, "num_tokens": num_tokens, "reference": reference}
    ds = datasets.Dataset.from_generator(
        rows, gen_kwargs=arguments, cache_dir=str(folder / "cache"), fingerprint="exploring"
    )
    sizes = reference.sizes()
    ds = rank(ds)
    attach_record(ds, "measuring", {"config_key": "c", "segment_length": SEGMENT})
    start = time.perf_counter()
    page = write_explorer(ds, place)
    seconds = time.perf_counter() - start
    size = sum(x.stat().st_size for x in page.parent.rglob("*") if x.is_file())
    texts = num_rows * (num_tokens * CHARACTERS_A_TOKEN + 120 + RESPONSE_TOKENS * CHARACTERS_A_TOKEN)
    figures = {"texts, MiB": f"{texts / MIB:,.0f}", "folder, MiB": f"{size / MIB:,.0f}"}
    for name, x in sizes.items():
        figures[f"folder over the texts by {name}"] = f"{size / (x * texts / reference.num_bytes):.3f}"
    figures |= {"files": f"{sum(x.is_file() for x in page.parent.rglob('*')):,}", "written in, s": f"{seconds:,.0f}"}
    figures["peak memory of writing, MiB"] = f"{peak_rss_mib():,.0f}"
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=10_000)
    parser.add_argument("--tokens", type=int, default=65_536, help="of a context")
    parser.add_argument("--page", help="an index.html that is there: it is opened, and nothing is written")
    parser.add_argument("--keep", help="folder to write the explorer to, and to leave it in")
    given = parser.parse_args()
    print(
        f"`python -m benchmarks.exploring {shlex.join(sys.argv[1:])}`\n\n{hardware()}\n\n| figure | |\n| --- | --- |"
    )
    if given.page:
        return show(browse(Path(given.page).absolute(), given.rows))
    with tempfile.TemporaryDirectory(prefix="exploring-") as folder:
        place = Path(given.keep or Path(folder) / "explorer")
        show(write(given.rows, given.tokens, Path(folder), place))
        show(browse((place / "index.html").absolute(), given.rows))


def show(figures: dict[str, str]) -> None:
    for name, value in figures.items():
        print(f"| {name} | {value} |", flush=True)


if __name__ == "__main__":
    main()
