"""What the quickstart's two models find of a needle, at every length and depth, one by one and side by side.

    python -m benchmarks.needle --folder benchmarks/results

In the planted language, 64 to 896 tokens, eight needles a cell; the short model's window is 128 tokens, and it is asked beyond.
"""

import argparse
import os
import tempfile
from pathlib import Path

from hf_gateau.evaluation.answering import GeneratorConfig
from hf_gateau.evaluation.command import evaluate
from hf_gateau.evaluation.needle_map import needle_figure
from hf_gateau.evaluation.results import TaskResult
from hf_gateau.quickstart import LONG_MODEL, SHORT_MODEL
from hf_gateau.report.drawing import Figure, save_png

from . import common


MODELS = {"long": LONG_MODEL, "short": SHORT_MODEL}


def needle_result(model: str) -> TaskResult:
    """What one model finds."""
    with tempfile.TemporaryDirectory() as folder:
        how = GeneratorConfig(max_length=1_024, device="cpu")
        results, failed = evaluate(model, Path(folder), ["planted_needle"], how)
    if failed:
        raise RuntimeError(failed)
    return results[0]


def save_small(figure: Figure, path: Path) -> None:
    """Write a figure in few colours."""
    save_png(figure, path)
    common.shrink_png(path)


def table(results: dict[str, TaskResult]) -> str:
    """Mean points by length."""
    names = [name for name in results["long"].metrics if name != "mean"]
    lines = [f"| model | mean | {' | '.join(names)} |", f"| --- |{' ---: |' * (len(names) + 1)}"]
    for model, result in results.items():
        cells = " | ".join(f"{result.metrics[name]:.0f}" for name in ("mean", *names))
        lines.append(f"| {model} | {cells} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", help="where needle.md and the pictures go; default: nowhere, the table is printed")
    args = parser.parse_args()
    results = {name: needle_result(model) for name, model in MODELS.items()}
    output = None
    if args.folder:
        folder = Path(args.folder)
        folder.mkdir(parents=True, exist_ok=True)
        for name, result in results.items():
            save_small(needle_figure({name: result}), folder / f"needle_{name}.png")
        save_small(needle_figure(results), folder / "needle.png")
        output = os.path.join(folder, "needle.md")
    seen = "Points: share of the needle's words that the answer has, mean over depths of 0 to 100%.\n"
    picture = "\n\n![Heat maps of the two models](needle.png)"
    common.tell(f"{common.torch_header('float32', 'quickstart pair')}\n{seen}\n{table(results)}{picture}", output)


if __name__ == "__main__":
    main()
