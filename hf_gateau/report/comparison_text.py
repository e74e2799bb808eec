"""What a comparison of two rankings looks like in a terminal."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from .comparison import TERMS, Comparison, Moved, Side


SHADES = " .:+#@"  # by how many rows, each ten times the one before
WIDTH, HEIGHT = 40, 12  # characters of the scatter
LEAST = 20  # rows that make a scatter worth looking at
COLUMN = 30  # characters of a setting's value


def comparison_text(found: Comparison, width: int = 100) -> str:
    """Everything that was found, in lines.

    Args:
        found: see `compare`.
        width (`int`): characters in a line.
    """
    parts = [list(_about(found)), list(_order(found))]
    if len(found.frame) >= LEAST:
        parts.append([*scatter(found.frame["place_a"].to_numpy(), found.frame["place_b"].to_numpy())])
    if found.moved:
        parts.append(list(_rows(found, width)))
    return "\n\n".join("\n".join(part) for part in parts)


def _about(found: Comparison) -> Iterator[str]:
    for letter, side in zip("AB", (found.a, found.b), strict=True):
        yield f"{letter}  {side.name}: {_counted(side)}"
    by = f"by {found.matched_by}" + (", the part after the colon" if found.matched_by == "gateau_key" else "")
    yield f"{found.num_common:,} rows are in both, {by}; {len(found.frame):,} have a rank in both, and are compared."
    if not found.different:
        yield "Measured and ranked alike, as far as the records say."
        return
    widths = [
        max(map(len, found.different)),
        *(max(len(x[s][:COLUMN]) for x in found.different.values()) for s in "ab"),
    ]
    yield ""
    yield f"{'differs':<{widths[0]}}  {'A':<{widths[1]}}  B"
    for name, values in found.different.items():
        yield f"{name:<{widths[0]}}  {values['a'][:COLUMN]:<{widths[1]}}  {values['b'][:COLUMN]}"


def _counted(side: Side) -> str:
    alone = f", {side.num_alone:,} of them not in the other" if side.num_alone else ""
    ranked = f", {side.num_ranked:,} ranked"
    return f"{side.num_rows:,} rows{alone}{ranked}" + (
        f" ({side.num_ranked_alone:,} that the other has no rank for)" if side.num_ranked_alone else ""
    )


def _order(found: Comparison) -> Iterator[str]:
    if found.spearman is not None:
        yield f"Orders: Spearman {found.spearman:.3f}, Kendall {found.kendall:.3f} (1: the same)"
    for x in found.overlaps:
        yield f"Best {x.fraction:.0%}: {x.num_both:,} of {x.num_top:,} rows are in both (Jaccard {x.jaccard:.2f})"


def scatter(a: np.ndarray, b: np.ndarray, width: int = WIDTH, height: int = HEIGHT) -> Iterator[str]:
    """Lines of characters: places in A to the right, in B downwards, the best in the corner above on the left."""
    counts = np.zeros((height, width), dtype=int)
    np.add.at(counts, ((b - 1) * height // len(b), (a - 1) * width // len(a)), 1)
    yield f"{'':>6} 1 {'A'.center(width - 2)} {len(a):,}"
    for i, line in enumerate(counts):
        name = "1" if i == 0 else f"{len(b):,}" if i == height - 1 else "B" if i == height // 2 else ""
        shades = (SHADES[min(len(str(n)), len(SHADES) - 1) if n else 0] for n in line.tolist())
        yield f"{name:>6} |{''.join(shades)}|"


def _rows(found: Comparison, width: int) -> Iterator[str]:
    yield f"The {len(found.moved)} rows that disagree most, by their place among the {len(found.frame):,} that are compared"
    yield (
        f"{'place':<17}"
        + "".join(f"by {name.upper() if name != 'need' else name:<14}" for name in TERMS)
        + "moved most"
    )
    for row in found.moved:
        yield f"{_arrow(row.place):<17}" + "".join(f"{_arrow(row.terms[x]):<17}" for x in TERMS) + _most(row)
        yield f"    row {row.position['a']}: {row.text}"[:width]


def _arrow(place: dict[str, float | None]) -> str:
    a, b = ("-" if place[side] is None else f"{round(place[side]):,}" for side in "ab")
    return f"{a} -> {b}"


def _most(row: Moved) -> str:
    return "" if row.most is None else row.most.upper() if row.most != "need" else row.most
