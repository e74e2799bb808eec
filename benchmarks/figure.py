"""The README's figure: what is measured on a row that needs far text and on one that does not.

    python -m benchmarks.figure --books alice29.txt -o docs/images/selected.png

Rows of a book's text as `benchmarks.real_rows` makes them, of three kinds; one kind needs far text. SmolLM2-135M
scores them, which takes half a minute a row on one CPU core (the store keeps what was scored), and `rank` puts them in
order. Drawn are the first and the last row that asks for a fact: none is picked by hand, all numbers are the scoring's.
"""

import argparse
import math
import textwrap
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import matplotlib
import numpy as np
from datasets import Dataset
from matplotlib.figure import Figure

from benchmarks.common import default_model, shrink_png
from benchmarks.real_rows import make_rows, read_prose, read_short_instructions, sentence_starts
from hf_gateau import GateauScorer, ModelPairConfig, rank, select
from hf_gateau.models.pair import ModelPair
from hf_gateau.report.drawing import DPI, INK, LIGHT, STYLE
from hf_gateau.rows.samples import build_sample


KINDS = ("one fact", "fact near the end", "short instruction")
ROWS_PER_KIND, NUM_TOKENS, SHORT_WINDOW, SEGMENT_LENGTH, KEPT = 6, 2048, 512, 128, 0.1
INCHES = (8, 5.0)
BLOCK, STRIP, TEXT = 1.95, 0.9, 8.5  # inches from row to row, of a strip's height; points
WINDOW_COLOUR, TELLING_COLOUR, GREY = LIGHT["cycle"]


@dataclass(frozen=True)
class Panel:
    """What is drawn of one row.

    Attributes:
        row (`dict`): its texts and columns.
        gains (n segments,): nats a token by which each segment alone makes the response easier than no context does.
        edges (n segments + 1,): tokens of the context before each segment, and all of them.
        window_start (`int`): tokens of the context that the short window cuts off.
        quote (`str`): the sentence of the most telling segment that shares most words with the response.
        is_kept (`bool`): whether it is among the best `KEPT` of the rows.
        num_ranked (`int`): how many rows there are.
    """

    row: dict
    gains: np.ndarray
    edges: np.ndarray
    window_start: int
    quote: str
    is_kept: bool
    num_ranked: int

    @property
    def best(self) -> int:
        return int(self.gains.argmax())


def telling_sentence(context: str, start: int, end: int, response: str) -> str:
    """The sentence which overlaps these characters of the context and shares the most words with the response."""
    starts = [0, *sentence_starts(context), len(context)]
    sentences = [context[a:b] for a, b in pairwise(starts) if a < end and b > start]
    words = set(response.split())
    return " ".join(max(sentences, key=lambda sentence: len(words & set(sentence.split()))).split())


def read_panel(row: dict, pair: ModelPair, kept: list[str], num_ranked: int) -> Panel:
    """What is drawn of a ranked row."""
    sample = build_sample(row, pair.tokenizer)
    gains = math.log(row["gateau_ppl_no_context"]) - np.log(row["gateau_segment_ppl"])
    edges = np.minimum(np.arange(len(gains) + 1) * SEGMENT_LENGTH, len(sample.context))
    best = gains.argmax()
    start, end = (len(pair.tokenizer.decode(sample.context[:edge])) for edge in edges[best : best + 2])
    quote = telling_sentence(row["context"], start, end, row["response"])
    window_start = len(sample.context) - len(pair.short_context(sample))
    return Panel(row, gains, edges, window_start, quote, row["id"] in kept, num_ranked)


def score(args: argparse.Namespace) -> list[Panel]:
    """Make rows, score and rank them; the first and the last that asks for a fact."""
    settings = {"long_model": args.model, "short_window": SHORT_WINDOW, "dtype": "float32", "device": "cpu"}
    pair = ModelPair(ModelPairConfig(**settings))
    books, shorts = [read_prose(path) for path in args.books], read_short_instructions(None)
    rows = make_rows(books, pair.tokenizer, NUM_TOKENS, SHORT_WINDOW, ROWS_PER_KIND, shorts, seed=0)
    scorer = GateauScorer(**settings, segment_length=SEGMENT_LENGTH, store=args.store)
    ds = Dataset.from_list([row for row in rows if row["kind"] in KINDS])
    ds = rank(ds.map(scorer, batched=True, batch_size=4))
    ranked, kept = ds.sort("gateau_rank"), list(select(ds, fraction=KEPT)["id"])
    asks_for_fact = [i for i, kind in enumerate(ranked["kind"]) if "fact" in kind]
    return [read_panel(ranked[asks_for_fact[i]], pair, kept, len(ds)) for i in (0, -1)]


# Drawing


def draw_strip(ax, panel: Panel) -> None:
    """A bar for each segment, the window behind them, and the quote that goes with the highest bar."""
    edges, best, end = panel.edges, panel.best, panel.edges[-1]
    colours = [TELLING_COLOUR if i == best else GREY for i in range(len(panel.gains))]
    ax.axvspan(panel.window_start, end, color="#dcebf6", lw=0)
    ax.bar(edges[:-1] + 4, panel.gains, np.diff(edges) - 8, align="edge", color=colours)
    ax.axhline(0, color=LIGHT["ink"], lw=0.9)
    above = {"transform": ax.get_xaxis_transform(), "fontsize": TEXT, "va": "bottom", "ha": "center"}
    ax.text(panel.window_start / 2, 1.02, "far text, which a short window never sees", **above)
    ax.text((panel.window_start + end) / 2, 1.02, f"last {SHORT_WINDOW} tokens", color=WINDOW_COLOUR, **above)
    is_right = edges[best] + edges[best + 1] < panel.window_start  # where there is more room outside the window
    side = edges[best + 1] if is_right else edges[best]
    place = side + 70 if is_right else min(side - 30, panel.window_start - 40)
    room = (panel.window_start - place if is_right else place) / end
    words = textwrap.shorten(f"“{panel.quote}”", 150, placeholder=" ...”")
    line = {"arrowstyle": "-", "color": TELLING_COLOUR, "shrinkA": 0, "shrinkB": 0, "lw": 1.2}
    look = {"ha": "left" if is_right else "right", "va": "center", "fontsize": TEXT, "color": TELLING_COLOUR}
    places = (side, 0.55 * panel.gains[best]), (place, 0.55 * panel.gains[best])
    ax.annotate(textwrap.fill(words, min(33, int(room * 70))), *places, arrowprops=line, **look)
    ax.set(xlim=(0, end), xticks=range(0, end, 500))
    ax.locator_params(axis="y", nbins=4, integer=True)
    ax.set_ylabel("easier by\n(nats a token)", fontsize=TEXT)
    ax.xaxis.set_major_formatter("{x:,.0f}")
    ax.tick_params(labelsize=TEXT)


def draw_perplexities(ax, row: dict) -> None:
    """How hard the response is for the model when it sees the window, and when it sees everything."""
    names = {"short": f"model sees the last {SHORT_WINDOW} tokens", "long": "model sees everything"}
    values = [row[f"gateau_ppl_{which}"] for which in names]
    ax.barh([0, 1], values, height=0.4, color=[WINDOW_COLOUR, LIGHT["ink"]])
    for place, (name, value) in enumerate(zip(names.values(), values, strict=True)):
        ax.text(0, place - 0.26, name, fontsize=TEXT, va="bottom")
        ax.text(value, place, f" {value:.1f}", fontsize=TEXT + 1, va="center", weight="bold")
    ax.set(ylim=(1.3, -0.65), yticks=[], xticks=[])
    ax.set_title("Answer's perplexity (low = easy)", fontsize=TEXT, loc="left", pad=5)
    ax.spines[:].set_visible(False)


def heading(panel: Panel) -> tuple[str, str]:
    """The verdict in words, and its colour."""
    where = "near the end" if panel.edges[panel.best] >= panel.window_start else "far back"
    kept = f"kept in the top {KEPT:.0%}" if panel.is_kept else "left out"
    mark, colour = ("✓", "#1a7f37") if panel.is_kept else ("✗", "#b3261e")
    return (
        f"{mark} Rank {panel.row['gateau_rank']} of {panel.num_ranked}, {kept}: the piece that helps most is {where}",
        colour,
    )


def draw(panels: list[Panel], model: str) -> Figure:
    """The two rows, one under the other, on the same scales."""
    figure, (width, height) = Figure(figsize=INCHES), INCHES

    def write(down: float, text: str, left: float = 0.15, **look) -> None:
        """Text whose top is so many inches under the figure's."""
        figure.text(left / width, 1 - down / height, text, va="top", **{"fontsize": TEXT} | look)

    write(0.12, "Keep the long samples whose answer needs the far text", fontsize=13, weight="bold")
    rows = f"{panels[0].num_ranked} samples of {NUM_TOKENS:,} tokens, a book's text with made-up facts put in"
    write(0.42, f"{rows}, scored by {model}.")
    bars = f"how much easier that one piece of {SEGMENT_LENGTH} tokens alone makes the answer than no text at all"
    write(0.60, f"Each bar: {bars}.")
    strip = side = None
    for i, panel in enumerate(panels):
        top = 0.9 + i * BLOCK
        title, colour = heading(panel)
        write(top, title, fontsize=11, weight="bold", color=colour)
        for line, (name, column) in enumerate({"Question": "instruction", "Answer": "response"}.items()):
            write(top + 0.23 + 0.17 * line, name, color=GREY)
            write(top + 0.23 + 0.17 * line, textwrap.shorten(panel.row[column], 105), left=0.82)
        bottom, tall = 1 - (top + 0.82 + STRIP) / height, STRIP / height
        strip = figure.add_axes((0.75 / width, bottom, 4.75 / width, tall), sharey=strip)
        side = figure.add_axes((5.7 / width, bottom, 1.85 / width, tall), sharex=side)
        draw_strip(strip, panel)
        strip.tick_params(labelbottom=panel is panels[-1])
        draw_perplexities(side, panel.row)
    strip.set_xlabel("tokens of text before the question", fontsize=TEXT)
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--books", nargs="+", required=True, help="UTF-8 text files, 100,000 characters or more")
    parser.add_argument("-o", "--output", default="docs/images/selected.png", help="the PNG (default: %(default)s)")
    parser.add_argument("--model", help="folder, .gguf file or Hub id; default: SmolLM2-135M, see smollm2.py")
    parser.add_argument("--store", help="database of measured rows, 'off' for none; default: that of GateauScorer")
    args = parser.parse_args()
    args.model = args.model or default_model()
    panels = score(args)
    path = Path(args.output)
    path.parent.mkdir(parents=True, exist_ok=True)
    with matplotlib.rc_context(STYLE | dict.fromkeys(INK, LIGHT["ink"]) | {"axes.grid": False}):
        draw(panels, Path(args.model).stem).savefig(path, dpi=DPI, metadata={"Software": None})
    shrink_png(path)


if __name__ == "__main__":
    main()
