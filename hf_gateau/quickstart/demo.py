"""`hf-gateau quickstart`: score planted samples whose right order is known, and see which way of ranking finds it."""

import logging
import os
import textwrap
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path

from . import LONG_MODEL, PLANTED, SEGMENT_LENGTH, SHORT_MODEL, SHORT_WINDOW


SIBLINGS = {
    "short checkpoint": {"short_model": SHORT_MODEL},
    f"window of {SHORT_WINDOW}": {"short_model": None, "short_window": SHORT_WINDOW},
}
# label -> settings of `rank`
RANKINGS = {
    "robust (default)": {"mode": "robust"},
    "paper": {"mode": "paper"},
    "released": {"mode": "released"},
    "Perplexity Guidance": {"method": "perplexity"},
    "IFD of context": {"method": "ifd_context"},
    "longest": {"method": "longest"},
    "random": {"method": "random"},
}
NEEDED = "far"  # the kind of sample that long-context training is after
SHOWN_WIDTH = 100


def run(output: str, *, seed: int | None = None, num_rows: int = 200, fine_tune: bool = True) -> dict:
    """Score, rank, print the table and two samples, write the scored samples and a figure, and fine-tune on the best.

    Args:
        output (`str`): folder for `scored.jsonl` and `scores.png`.
        seed (`int`, *optional*): plant fresh samples; the shipped ones otherwise.
        num_rows (`int`): how many, with `seed`.
        fine_tune (`bool`): see what the best tenth teaches, against a random one; takes a minute more.

    Returns:
        `{sibling: {ranking: (AUROC, precision in the top 10%)}}`, the printed figures.
    """
    from datasets.utils import tqdm

    from ..models.packing import Cut
    from ..report.sample_text import sample_text

    started = time.monotonic()
    ds = planted_dataset(seed, num_rows)
    print(_introduction(ds, seed))
    with _one_thread():
        scored = {name: _score(ds, sibling) for name, sibling in SIBLINGS.items()}
    figures, notes = _figures(scored)
    print(_table(figures, notes))
    ranked = _rank(scored["short checkpoint"], {"mode": "robust"})[0]
    ranks = ranked["gateau_rank"]
    for title, place in (("The best sample", 1), ("The worst sample", len(ranked))):
        row = ranked[ranks.index(place)]
        print(f"\n{title}, planted as {row['kind']!r}:")
        print(textwrap.indent(sample_text(row, len(ranked), SHOWN_WIDTH, Cut(SEGMENT_LENGTH)), "  "))
    if fine_tune:
        from . import finetune

        print(finetune.introduction())
        bar = {"total": finetune.num_steps(), "desc": "Fine-tuning", "unit": " steps", "leave": False}
        with _one_thread(), tqdm(**bar) as steps, _quiet():
            found = finetune.compare(scored[f"window of {SHORT_WINDOW}"], advance=steps.update)
        print(finetune.table(found))
    files = _write(ranked, Path(output))
    print(f"\n{' and '.join(map(str, files))} written; {time.monotonic() - started:.0f} s in all.")
    return figures


def planted_dataset(seed: int | None = None, num_rows: int = 200):
    """The shipped planted samples, or fresh ones from a seed, as a `Dataset`."""
    from datasets import Dataset, load_dataset

    from .world import planted_rows

    if seed is None:
        return load_dataset("json", data_files=str(PLANTED), split="train")
    if num_rows < 10:
        raise ValueError(f"--num_rows is {num_rows}; give 10 or more, so that each kind is there.")
    return Dataset.from_list(planted_rows(num_rows, seed))


def _introduction(ds, seed: int | None) -> str:
    from .world import KINDS

    kinds = [f"  {ds['kind'].count(kind):>4}  {kind:<14}{what}" for kind, what in KINDS.items()]
    source = "the shipped set" if seed is None else f"seed {seed}"
    return "\n".join(
        [
            f"{len(ds)} planted samples of about {ds['length'][0]} tokens ({source}), of which a good ranking puts {NEEDED!r} first:",
            *kinds,
            "",
            "Scored with a tiny pair of Llamas (95,000 parameters, trained for this on a CPU from a hand-made start: see",
            "hf_gateau/quickstart/make_pair.py). The short one reads 128 tokens at a time well, the long one 1,024.",
            "",
        ]
    )


@contextmanager
def _one_thread() -> Iterator[None]:
    """The models are so small that threads, and a bar for loading them, cost more than they bring."""
    import torch
    from transformers.utils import logging as transformers_logging

    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        torch.set_num_threads(num_threads)
        transformers_logging.enable_progress_bar()


@contextmanager
def _quiet() -> Iterator[None]:
    """No bars, and no line a training run: there are seven of them."""
    import datasets

    datasets.disable_progress_bars()
    try:
        with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        datasets.enable_progress_bars()


def _score(ds, sibling: dict):
    from ..measuring.scorer import GateauScorer

    scorer = GateauScorer(long_model=LONG_MODEL, segment_length=SEGMENT_LENGTH, device="cpu", store=False, **sibling)
    return ds.map(scorer, batched=True, load_from_cache_file=False, desc="Rows")


def _rank(ds, settings: dict):
    """The ranked dataset and what `rank` warned of."""
    from ..ranking.order import rank

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        ranked = rank(ds, **settings)
    return ranked, [str(warning.message) for warning in caught]


def _figures(scored: dict) -> tuple[dict, dict]:
    import numpy as np

    from ..report.quality import auroc, precision_at

    figures, notes = {}, {}
    for sibling, ds in scored.items():
        figures[sibling] = {}
        for label, settings in RANKINGS.items():
            ranked, warned = _rank(ds, settings)
            score = np.array(ranked["gateau_score"], dtype=float)
            needed = np.array(ranked["kind"]) == NEEDED
            figures[sibling][label] = auroc(score, needed), precision_at(score, needed, 0.1)
            notes |= {label: warned} if warned else {}
    return figures, notes


def _table(figures: dict, notes: dict) -> str:
    head = "".join(f"{sibling:>24}" for sibling in figures)
    lines = [f"{'':24}{head}", f"{'ranking':24}" + "   AUROC  top 10% right" * len(figures)]
    for label in RANKINGS:
        cells = "".join(f"{figures[s][label][0]:8.3f}{figures[s][label][1]:16.2f}" for s in figures)
        lines.append(f"{label:24}{cells}" + ("  *" if label in notes else ""))
    for label, warned in notes.items():
        lines += ["", *textwrap.wrap(f"* {label}: {' '.join(warned)}", SHOWN_WIDTH, subsequent_indent="  ")]
    return "\n".join(lines)


def _write(ranked, folder: Path) -> list[Path]:
    from ..files.writing import save_rows
    from ..ranking.order import ranking_record

    rows, figure = folder / "scored.jsonl", folder / "scores.png"
    save_rows(ranked, str(rows), {"ranking": ranking_record(ranked)})
    draw(ranked, figure)
    return [rows, figure]


def draw(ranked, path: str | os.PathLike) -> None:
    """Draw what the score is made of: both perplexities of each sample, and the score by kind of sample."""
    import numpy as np
    from matplotlib.figure import Figure

    from .world import KINDS

    logging.getLogger("matplotlib").setLevel(logging.ERROR)
    kind, jitter = np.array(ranked["kind"]), np.random.default_rng(0).uniform(-0.25, 0.25, len(ranked))
    figure = Figure(figsize=(11, 4.5), layout="constrained")
    left, right = figure.subplots(1, 2)
    for place, (name, marker) in enumerate(zip(KINDS, "o^sxv", strict=True)):
        rows = kind == name
        style = {"s": 18, "alpha": 0.7, "marker": marker, "label": name}
        left.scatter(np.array(ranked["gateau_ppl_long"])[rows], np.array(ranked["gateau_ppl_short"])[rows], **style)
        right.scatter(np.array(ranked["gateau_score"], float)[rows], place + jitter[rows], **style)
    left.set(xscale="log", yscale="log", xlabel="perplexity, long model", ylabel="perplexity, short model")
    left.axline((1, 1), (10, 10), color="grey", linewidth=0.8)
    left.set_title("Above the line: the response needs what only the long model sees", fontsize=10)
    left.legend(frameon=False)
    right.set_yticks(range(len(KINDS)), KINDS)
    right.invert_yaxis()
    right.set(xlabel="gateau_score (mode robust)")
    right.set_title("Score by kind of sample", fontsize=10)
    figure.savefig(path, dpi=150)
