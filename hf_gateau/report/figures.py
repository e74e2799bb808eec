"""Figures of a ranked dataset, each with its words and its numbers: from columns of one number a row, no texts; that of the reach
from those of tokens.

Shapes: n rows that have a rank, in the order of the data; masks are (n,) bool.
"""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..ranking.config import RankConfig
from ..ranking.formulas import COMBINE, needed_columns, score
from ..ranking.order import rank, rank_order
from ..records import column_of, find_record
from .drawing import Figure, bars, bars_height, legend_above, points, save_png
from .ranked_rows import RankedRows, best_rows, length_ranges, num_kept_of, read_ranked, source_groups
from .reach import distances, has_own_windows, reach_of_segments, reach_of_windows
from .segments import FULL, SCALES, cut_of, in_words, merge_segments, segment_measures


if TYPE_CHECKING:
    from datasets import Dataset
    from matplotlib.axes import Axes

CUTS = {"top 10%": 0.1, "top 30%": 0.3, "top 50%": 0.5}
BASELINES = {"perplexity": "Perplexity", "ifd_context": "IFD of context", "longest": "longest", "random": "random"}
MAX_POINTS, MAX_BLOCKS = 5000, 60  # of a scatter plot, of a strip of segments
FEWEST_ROWS = 10  # of which a tenth can be taken


def figures(ds: Dataset, cuts: dict[str, float] | None = None, source_column: str | None = None) -> list[Figure]:
    """Figures of what the ranking did; those that the data have no columns, rows or spread for are left out.

    Args:
        ds: a ranked `Dataset`; rows without a rank are counted and left out.
        cuts: name -> fraction of the ranked rows, the lines in the distribution of scores.
        source_column: column by which the kept share is shown; by default the first of source, dataset, kind and
            category that is there with 2 to 20 values.

    Raises:
        TypeError: `ds` is no `Dataset`.
        ValueError: no row has a rank, ranks are not of one ranking, a fraction is not above 0 and at most 1, or there
            is no such source column.
    """
    cuts = CUTS if cuts is None else cuts
    if wrong := {name: fraction for name, fraction in cuts.items() if not 0 < fraction <= 1}:
        raise ValueError(f"cuts must be fractions above 0 and at most 1, got {wrong}; use e.g. {CUTS}.")
    rows = read_ranked(ds, source_column)
    found = [_score_distribution(rows, cuts), _hmp_and_cas(rows), _score_and_length(rows), _kept_by_length(rows)]
    found += [_kept_by_source(rows), _baseline_overlap(rows), _alpha_stability(rows), _reach(ds, rows)]
    return [figure for figure in found if figure is not None]


def write_figures(ds: Dataset, folder: str | os.PathLike, **settings: Any) -> list[Path]:
    """Write every figure of a ranked dataset as a PNG; `settings` are those of `figures`. Returns the paths."""
    found = [*figures(ds, **settings), *segment_figures(ds)]
    folder = Path(folder).expanduser()
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{figure.name}.png" for figure in found]
    for figure, path in zip(found, paths, strict=True):
        save_png(figure, path)
    return paths


def segment_figures(ds: Dataset, num_samples: int = 2) -> list[Figure]:
    """The strips of segment gain and attention of the best and the worst samples, in one figure; empty where they have no
    segments. (A page shows them beside the samples' texts.)"""
    if not {"gateau_rank", "gateau_segment_ppl"} <= set(ds.column_names):
        return []
    names = ("rank", "segment_ppl", "segment_attention", "ppl_no_context")
    needed = [f"gateau_{name}" for name in names if f"gateau_{name}" in ds.column_names]
    order = rank_order(column_of(ds, "gateau_rank"))
    places = order if len(order) <= 2 * num_samples else [*order[:num_samples], *order[-num_samples:]]
    rows = ds.select_columns(needed).with_format(None)
    found = {f"rank {row['gateau_rank']:,}": segment_measures(row).bars for row in map(rows.__getitem__, places)}
    found = {label: measures for label, measures in found.items() if measures}
    if not found:
        return []
    words = [f"{x}: {', '.join(in_words(y, z) for y, z in measures.items())}" for x, measures in found.items()]
    table = [(x, y, z.index(max(z)) + 1, len(z)) for x, measures in found.items() for y, z in measures.items()]
    return [
        Figure(
            "segments",
            "Segments of the best and worst samples",
            f"Strips of segment gain and attention of samples of {len(order):,}; gain: {SCALES['gain']}, attention: "
            f"{SCALES['attention']}. {'. '.join(words)}.",
            (("sample", "measure", "highest at segment", "segments"), table),
            partial(_draw_strips, found=found),
            0.8 + 0.6 * len(found),
        )
    ]


def _draw_strips(ax: Axes, found: dict[str, dict[str, list[float]]]) -> None:
    """One strip a measure, from the first segment to the last; heights are from zero, of one scale in all rows."""
    labels = []
    for label, measures in found.items():
        for name, values in measures.items():
            blocks = merge_segments(values, MAX_BLOCKS)
            width = 1 / len(blocks)
            heights = [0.85 * min(1, max(0, value / FULL[name])) for value in blocks]
            starts = [(at + 0.5) * width for at in range(len(blocks))]
            colour = "C0" if name == "gain" else "C1"
            ax.axhline(-len(labels), color="C2", linewidth=0.6)
            ax.bar(starts, heights, 0.9 * width, bottom=-len(labels), color=colour)
            labels.append(f"{label}, {name}")
    ax.set_yticks([0.4 - at for at in range(len(labels))], labels, fontsize=9)
    ax.set(xlabel="place in the context", xlim=(0, 1), ylim=(0.9 - len(labels), 1))
    ax.xaxis.set_major_formatter("{x:.0%}")
    ax.grid(visible=False)


# The figures


def _score_distribution(rows: RankedRows, cuts: dict[str, float]) -> Figure | None:
    if (scores := rows.numbers("score")) is None:
        return None
    counts, edges = np.histogram(scores, bins=int(np.clip(np.sqrt(len(scores)), 5, 40)))
    ordered = scores[np.argsort(rows.frame["gateau_rank"])]
    lines = {name: ordered[num_kept_of(fraction, len(scores)) - 1] for name, fraction in cuts.items()}
    text = (
        f"Histogram of the scores of {rows.counted}, from {_n(scores.min())} to {_n(scores.max())}, median "
        f"{_n(np.median(scores))}. Lowest score inside a cut: "
        + ", ".join(f"{x} {_n(y)}" for x, y in lines.items())
        + "."
    )
    table = [(float(low), float(high), int(n)) for low, high, n in zip(edges, edges[1:], counts, strict=False)]

    def draw(ax: Axes) -> None:
        ax.stairs(counts, edges, fill=True, color="C0", alpha=0.75)
        for i, (name, value) in enumerate(lines.items()):
            ax.axvline(value, color="C1", linestyle=("-", "--", ":", "-.")[i % 4], linewidth=1.8, label=name)
        ax.set(xlabel="score", ylabel="rows")
        legend_above(ax)

    return Figure("score_distribution", "Scores, and where the cuts fall", text, (("from", "to", "rows"), table), draw)


def _hmp_and_cas(rows: RankedRows) -> Figure | None:
    terms = {"HMP": rows.numbers("hmp"), "CAS": rows.numbers("cas")}
    if any(values is None for values in terms.values()):
        return None
    shown, note = _shown(rows)
    is_known = ~np.isnan(list(terms.values())).any(axis=0)
    groups = {"top 10%": rows.top & is_known, "others": ~rows.top & is_known}
    if missing := int((~is_known).sum()):
        note += f", without {missing:,} whose segments were not measured, which are those of lowest HMP"
    text = (
        f"Scatter plot of HMP and CAS of {rows.counted}{note}. Their rank correlation is {_correlation(*terms.values())}. "
        + " ".join(_medians(rows, name, values) for name, values in terms.items())
    )
    table = [(x, y, *_quantiles(values[mask])) for x, values in terms.items() for y, mask in groups.items()]

    def draw(ax: Axes) -> None:
        points(ax, *(values[shown] for values in terms.values()), rows.top[shown], "top 10%")
        ax.set(xlabel=_variant(rows, "HMP"), ylabel=_variant(rows, "CAS"))

    header = ("measure", "rows", "10th percentile", "median", "90th percentile")
    return Figure("hmp_and_cas", "HMP against CAS", text, (header, table), draw)


def _score_and_length(rows: RankedRows) -> Figure | None:
    scores, lengths = rows.numbers("score"), rows.numbers("num_context_tokens")
    if scores is None or lengths is None:
        return None
    (shown, note), low, high = _shown(rows), np.nanmin(lengths), np.nanmax(lengths)
    text = (
        f"Scatter plot of score and context length of {rows.counted}{note}{_unknown(lengths)}. Contexts have {low:,.0f} to "
        f"{high:,.0f} tokens; the rank correlation of length and score is {_correlation(lengths, scores)}. "
        f"{_medians(rows, 'tokens', lengths)}"
    )
    table = [(x, int(mask.sum()), *_quantiles(scores[mask])) for x, mask in length_ranges(lengths).items()]

    def draw(ax: Axes) -> None:
        points(ax, lengths[shown], scores[shown], rows.top[shown], "top 10%")
        ax.set(xlabel="context tokens", ylabel="score")
        ax.xaxis.set_major_formatter("{x:,.0f}")
        if low > 0 and high >= 8 * low:
            ax.set_xscale("log", base=2)
            ax.xaxis.set_major_formatter(lambda x, _: f"{x / 1024:g}k" if x >= 1024 else f"{x:g}")
            ax.set_xlabel("context tokens (1k = 1,024)")

    header = ("context tokens", "rows", "score: 10th percentile", "median", "90th percentile")
    return Figure("score_and_length", "Score against length", text, (header, table), draw)


def _kept_by_length(rows: RankedRows) -> Figure | None:
    if (lengths := rows.numbers("num_context_tokens")) is None:
        return None
    return _kept_shares(rows, "length", "context tokens", length_ranges(lengths), _unknown(lengths))


def _kept_by_source(rows: RankedRows) -> Figure | None:
    return None if rows.source is None else _kept_shares(rows, "source", rows.source, source_groups(rows))


def _kept_shares(rows: RankedRows, by: str, unit: str, groups: dict[str, np.ndarray], note: str = "") -> Figure | None:
    """Of each group of rows, the share that is in the top tenth."""
    if len(groups) < 2 or len(rows.frame) < FEWEST_ROWS:
        return None
    counts = {label: (int(rows.top[mask].sum()), int(mask.sum())) for label, mask in groups.items()}
    shares = {label: kept / size for label, (kept, size) in counts.items()}
    high, low = (
        f"{label} ({shares[label]:.0%}, {counts[label][0]:,} of {counts[label][1]:,})"
        for label in (max(shares, key=shares.get), min(shares, key=shares.get))
    )
    overall = rows.num_top / len(rows.frame)
    text = (
        f"Bar chart of the share in the top 10%, by {unit}, of {rows.counted}{note}. Highest: {high}. Lowest: {low}. "
        f"All rows: {overall:.0%}."
    )
    table = [(label, *counts[label], shares[label]) for label in groups]
    ends, line = [f"{kept:,} of {size:,}" for kept, size in counts.values()], (f"all rows: {overall:.0%}", overall)
    return Figure(
        f"kept_by_{by}",
        f"Share in the top 10%, by {by}",
        text,
        ((unit, "rows in the top 10%", "rows", "share"), table),
        lambda ax: bars(ax, shares, ends, line, "share in the top 10%"),
        bars_height(shares),
    )


def _baseline_overlap(rows: RankedRows) -> Figure | None:
    """How much of the top tenth other ways to rank would have kept too."""
    counts = {}
    for method, name in BASELINES.items():
        there = set(needed_columns(RankConfig(method=method))) <= set(rows.frame.columns)
        if there and method != (rows.record or {}).get("method"):
            ranks = rank(rows.frame, method=method)["gateau_rank"].to_numpy(float, na_value=np.nan)
            counts |= {} if np.isnan(ranks).all() else {name: int((best_rows(ranks, rows.num_top) & rows.top).sum())}
    if not set(counts) - {BASELINES["random"]} or len(rows.frame) < FEWEST_ROWS:
        return None
    shares, chance = {name: count / rows.num_top for name, count in counts.items()}, rows.num_top / len(rows.frame)
    text = (
        f"Bar chart of the share of the top 10% ({rows.num_top:,} of {rows.counted}) that is in the top 10% of another way "
        f"to rank too: {', '.join(f'{name} {share:.0%}' for name, share in shares.items())}. Two unrelated rankings have "
        f"{chance:.0%} in common."
    )
    table = [(name, count, shares[name]) for name, count in counts.items()]
    ends = [f"{count:,} of {rows.num_top:,}" for count in counts.values()]
    return Figure(
        "baseline_overlap",
        "The top 10% and other ways to rank",
        text,
        (("ranking", "rows in common", "share"), table),
        lambda ax: bars(ax, shares, ends, (f"chance: {chance:.0%}", chance), "share of the top 10% in common"),
        bars_height(shares),
    )


def _alpha_stability(rows: RankedRows) -> Figure | None:
    """How much of the top tenth stays when alpha changes; only for rows that are still those ranked together."""
    hmp, cas, record, num_rows = rows.numbers("hmp"), rows.numbers("cas"), rows.record or {}, len(rows.frame)
    if hmp is None or cas is None or num_rows < FEWEST_ROWS or record.get("num_ranked", num_rows) != num_rows:
        return None
    if np.isnan(cas).any():  # of rows whose segments were not measured, which another alpha may need
        return None
    normed = [norm(x) for norm, x in zip(COMBINE[record.get("combine") or "rank"], (hmp, cas), strict=True)]
    frame = rows.frame.sort_values("gateau_key", kind="stable") if "gateau_key" in rows.frame else rows.frame
    by_key = frame.index.to_numpy()  # ties as `rank` breaks them
    table = []
    for alpha in (step / 10 for step in range(11)):
        best = by_key[np.argsort(-score(*normed, alpha)[by_key], kind="stable")[: rows.num_top]]
        table.append((alpha, int(rows.top[best].sum()), float(rows.top[best].mean())))
    own = f", ranked with alpha {record['alpha']:g}" if record else ""
    text = (
        f"Line chart of the share of the top 10% ({rows.num_top:,} of {rows.counted}{own}) that stays in it at another "
        f"alpha, the weight of HMP: {', '.join(f'{share:.0%} at {alpha:g}' for alpha, _, share in table)}."
    )

    def draw(ax: Axes) -> None:
        ax.plot([alpha for alpha, _, _ in table], [share for _, _, share in table], "o-", color="C0")
        if record:
            ax.axvline(record["alpha"], color="C1", linestyle="--", label=f"this ranking: alpha {record['alpha']:g}")
            legend_above(ax)
        ax.set(xlabel="alpha (0: CAS alone, 1: HMP alone)", ylabel="share that stays", ylim=(0, 1.05))
        ax.yaxis.set_major_formatter("{x:.0%}")

    header = ("alpha", "rows in common", "share")
    return Figure("alpha_stability", "The top 10% at other values of alpha", text, (header, table), draw)


def _reach(ds: Dataset, rows: RankedRows) -> Figure | None:
    """From how far back the responses are told: by nested windows, or, where none were measured, by far segments."""
    if (lengths := rows.numbers("num_context_tokens")) is None:
        return None
    tau = (rows.record or {}).get("tau")
    tau = RankConfig.tau if tau is None else tau
    if (of_windows := reach_of_windows(ds, tau) if has_own_windows(ds) else None) is not None:
        (beyond, found), what = of_windows, "windows"
        how = (
            f"of a response, above tau ({tau:g} nats a token), that neither the instruction nor so many of the context's last tokens "
            "tell the long model, and the whole context does."
        )
    elif beyond := distances(lengths):
        found, what = reach_of_segments(ds, beyond, tau, cut_of(find_record(ds, "measuring"))), "far segments"
        how = (
            f"of a response, above tau ({tau:g} nats a token), that a far segment alone tells which ends so many tokens before the "
            "context's end. Each token counts with the far segment that tells it best; nested windows were not measured."
        )
    else:
        return None
    is_ranked = np.array([rank is not None for rank in column_of(ds, "gateau_rank")])
    known = None if found is None else ~np.isnan(found[is_ranked]).any(axis=1)
    if known is None or not (known & rows.top).any() or not np.nansum(found[is_ranked]):
        return None
    found = found[is_ranked]
    groups = {"top 10%": found[known & rows.top], "all rows": found[known]}
    means = {name: nats.mean(axis=0) for name, nats in groups.items()}
    shares = {name: (nats > 0).mean(axis=0) for name, nats in groups.items()}
    unknown = f", without {missing:,} whose {what} were not measured" if (missing := int((~known).sum())) else ""
    text = f"Line chart of how far back rows reach, of {rows.counted}{unknown}: nats {how} " + " ".join(
        f"Beyond {distance:,} tokens: {_n(means['top 10%'][i])} nats in the top 10%, {_n(means['all rows'][i])} in all rows."
        for i, distance in enumerate(beyond)
    )
    columns = (means["top 10%"], means["all rows"], shares["top 10%"], shares["all rows"])
    table = [(distance, *(float(values[i]) for values in columns)) for i, distance in enumerate(beyond)]

    def draw(ax: Axes) -> None:
        for (name, nats), style in zip(means.items(), ("^-", "o--"), strict=True):
            ax.plot(beyond, nats, style, color="C1" if name != "all rows" else "C0", label=name)
        ax.set_xscale("log", base=2)
        ax.xaxis.set_major_formatter(lambda x, _: f"{x / 1024:g}k" if x >= 1024 else f"{x:g}")
        ax.set(xlabel="tokens before the context's end (1k = 1,024)", ylabel="need beyond, nats a row")
        ax.set_ylim(bottom=0)
        legend_above(ax)

    header = ("beyond tokens", "nats: top 10%", "nats: all rows", "share that reaches: top 10%", "share: all rows")
    return Figure("reach", "How far back rows reach", text, (header, table), draw)


# What several of them need


def _n(x: float) -> str:
    return f"{x:,.0f}" if abs(x) >= 1000 else f"{x:.3g}"


def _variant(rows: RankedRows, term: str) -> str:
    return f"{term} ({rows.record[term.lower()]})" if rows.record else term


def _medians(rows: RankedRows, name: str, values: np.ndarray) -> str:
    known = ~np.isnan(values)
    top, others = (
        _n(np.median(x)) if len(x) else "unknown" for x in (values[rows.top & known], values[~rows.top & known])
    )
    return f"Median {name}: top 10% {top}, others {others}."


def _quantiles(values: np.ndarray) -> list[float]:
    return [float("nan")] * 3 if not len(values) else np.quantile(values, (0.1, 0.5, 0.9)).tolist()


def _correlation(a: np.ndarray, b: np.ndarray) -> str:
    """Spearman's, of the rows that have both."""
    import pandas as pd

    return f"{pd.DataFrame({'a': a, 'b': b}).corr('spearman').iloc[0, 1]:.2f}"


def _shown(rows: RankedRows) -> tuple[np.ndarray, str]:
    """Which rows a scatter plot draws, evenly from the best to the worst where there are many, and words for that."""
    order, num_rows = np.argsort(rows.frame["gateau_rank"].to_numpy()), len(rows.frame)
    if num_rows <= MAX_POINTS:
        return order, ""
    return order[np.linspace(0, num_rows - 1, MAX_POINTS).astype(int)], f", {MAX_POINTS:,} of them drawn"


def _unknown(lengths: np.ndarray) -> str:
    return f", without {missing:,} of unknown length" if (missing := int(np.isnan(lengths).sum())) else ""
