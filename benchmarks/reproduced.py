"""The small reproduction's tables, and which kinds of rows each method kept, of a finished experiment.

    hf-gateau experiment recipes/reproduce-tiny.yaml -o reproduce-tiny --num_workers 2
    python -m benchmarks.reproduced reproduce-tiny --output benchmarks/results/reproduce_tiny.md

With --output, the figure of the first column is copied beside it.

The kinds are those of `hf_gateau/quickstart/harder.py`; no method sees them.
"""

import argparse
import json
import shutil
from collections import Counter, defaultdict
from pathlib import Path

from hf_gateau.experiments import planted
from hf_gateau.markdown import table
from hf_gateau.quickstart import harder

from . import common


FIGURE = "main-real_world-equal_steps-far.png"


def kinds_kept(folder: Path) -> dict[tuple[str, float | None], list[Counter]]:
    """How many rows of each kind the trainings of a method and fraction kept, one counter a seed."""
    kinds = {row["id"]: row["kind"] for row in harder.planted_rows(planted.NUM_ROWS, planted.ROWS_SEED)}
    kept = defaultdict(list)
    for path in sorted(folder.glob("cells/*/results.json")):
        selection = json.loads((path.parent / "selection.json").read_text())
        for cell in json.loads(path.read_text())["cells"]:
            kept[cell["method"], cell["fraction"]].append(Counter(kinds[row_id] for row_id in selection["ids"]))
    return kept


def kinds_table(folder: Path) -> str:
    """Mean rows kept of each kind, in the grid's order of methods."""
    import yaml

    names = [method["name"] for method in yaml.safe_load((folder / "grid.yaml").read_text())["methods"]]
    kept = kinds_kept(folder)
    rows = []
    for method, fraction in sorted(kept, key=lambda x: (names.index(x[0]), x[1] or 0)):
        counts = kept[method, fraction]
        share = "" if fraction is None else f", {fraction:.0%}"
        rows.append(
            [f"{method}{share}", *(f"{sum(x[kind] for x in counts) / len(counts):.0f}" for kind in harder.KINDS)]
        )
    return table(["", *harder.KINDS], rows)


def seconds_taken(folder: Path) -> tuple[int, float]:
    """Trainings, and the seconds that they and their questions took together."""
    found = [json.loads(path.read_text()) for path in folder.glob("cells/*/results.json")]
    return len(found), sum(x["train"]["seconds"] + sum(task["seconds"] for task in x["tasks"].values()) for x in found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="folder of the experiment")
    common.add_output_argument(parser)
    args = parser.parse_args()
    number, seconds = seconds_taken(args.folder)
    lines = [
        common.torch_header("float32", "the quickstart's pair"),
        f"`hf-gateau experiment recipes/reproduce-tiny.yaml`: {number} trainings, {seconds / 60:.0f} minutes of them one after the "
        "other.\n",
        *((args.folder / "tables" / f"{name}.md").read_text() for name in ("main", "default")),
        "## Rows that were kept, by kind",
        "Mean over the seeds; of 400 rows.\n",
        kinds_table(args.folder),
    ]
    if args.output:
        picture = Path(args.output).with_suffix(".png")
        shutil.copyfile(args.folder / "figures" / FIGURE, picture)
        common.shrink_png(picture, colours=16)
        lines += ["", f"![Far questions, by method and share of the rows]({picture.name})"]
    common.tell("\n".join(lines), args.output)


if __name__ == "__main__":
    main()
