"""What sets the best samples of a ranking apart from the worst: five aspects, rated from 1 to 5 by a judge.

The aspects, and the comparison of the best and the worst hundredth, are those of the GATEAU paper (arXiv 2410.15633): coherence
of the context, necessity of the context, faithfulness and helpfulness of the response, complexity of the instruction. The
wording of the prompt is our own.

FOLDER/characteristics/    results.json, rows.jsonl (every judgement), table.md, table.csv, radar.png
"""

from __future__ import annotations

import csv
import io
import math
import re
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..endpoint.chat_client import EndpointConfig, ReplyError
from ..endpoint.questions import Endpoint
from ..files.apart import check_apart
from ..files.reading import load_rows
from ..ranking.order import check_ranked, rank_order
from ..records import column_of
from ..report.drawing import Figure, legend_above, save_png
from ..report.quality import bootstrap_interval
from ..report.ranked_rows import num_kept_of
from ..report.texts import sample_texts
from .judging import BRACKETS, fill, judge, rating_requests, shipped_prompt, tell_failures, version_of
from .results import TaskResult, save_result
from .tasks import Messages


if TYPE_CHECKING:
    from datasets import Dataset
    from matplotlib.axes import Axes

TASK = "characteristics"
ASPECTS = ("coherence", "necessity", "faithfulness", "helpfulness", "complexity")
GROUPS = ("best", "worst")
LOW, HIGH = 1, 5
SHORTEST_CONTEXT = 200  # characters, of which half is the beginning and half the end


@dataclass
class CharacteristicsArguments:
    """Which samples, and how they are rated.

    Raises:
        ValueError: a field is out of range.
    """

    RARELY_GIVEN = ("fewest_rows", "context_characters", "ratings", "temperature", "name", "revision")

    output: str | None = field(
        default=None,
        metadata={"help": "Folder for the figures and judgements. Not needed with --dry_run.", "aliases": ["-o"]},
    )
    share: float = field(default=0.01, metadata={"help": "Share of the ranked rows that are the best, and the worst."})
    fewest_rows: int = field(
        default=10, metadata={"help": "Rows of each kind, where the share is less; at most half of all rows."}
    )
    context_characters: int = field(
        default=100_000,
        metadata={
            "help": "Characters of a context that the judge sees, some four to a token in English; a longer one loses its "
            "middle, and says so."
        },
    )
    ratings: int = field(default=1, metadata={"help": "Times that each sample is rated, to be averaged."})
    temperature: float = field(default=0.0, metadata={"help": "Temperature of the judge."})
    split: str | None = field(default=None, metadata={"help": "Split to take. Default: train, or the only one."})
    name: str | None = field(default=None, metadata={"help": "Configuration of a Hub dataset."})
    revision: str | None = field(default=None, metadata={"help": "Branch, tag or commit of a Hub dataset."})
    dry_run: bool = field(default=False, metadata={"help": "Say what it will take, and ask nothing."})

    def __post_init__(self):
        if not 0 < self.share <= 0.5:
            raise ValueError(
                f"--share is a part of the rows, got {self.share}; give a number above 0 and at most 0.5."
            )
        for name, least in (("fewest_rows", 1), ("ratings", 1), ("context_characters", SHORTEST_CONTEXT)):
            if getattr(self, name) < least:
                raise ValueError(f"--{name} is a whole number, got {getattr(self, name)}; give {least} or more.")
        if not 0 <= self.temperature <= 2:
            raise ValueError(f"--temperature is the judge's, got {self.temperature}; give 0 to 2.")
        if self.output is None and not self.dry_run:
            raise ValueError("There is no place for the figures; name a folder with --output, or use --dry_run.")


@dataclass(frozen=True)
class RankedSample:
    """One of the best or the worst, with its texts; `num_cut` characters of the context are left out."""

    id: str
    group: str
    rank: int
    context: str
    instruction: str
    response: str
    num_cut: int

    def judge_prompt(self, template: str) -> Messages:
        """The prompt, filled in."""
        texts = {"context": self.context, "instruction": self.instruction, "response": self.response}
        return [{"role": "user", "content": fill(template, **texts)}]


def command(data: str, arguments: CharacteristicsArguments, endpoint: EndpointConfig) -> None:
    """See what sets the best samples apart from the worst. A judge behind an OpenAI-compatible endpoint rates five aspects of
    each. --dry_run says how many questions that takes, and what they cost. Replies are kept as they arrive, so that nothing is
    paid for twice.

    Example:
        hf-gateau characteristics ranked.parquet -o characteristics \\
            --endpoint_model gpt-4.1
    """
    check_apart(arguments.output, data, around=True)
    judge_of = Endpoint(replace(endpoint, replay=True) if arguments.dry_run else endpoint)  # a dry run needs no key
    ds = load_rows(data, split=arguments.split, name=arguments.name, revision=arguments.revision)
    samples = choose_samples(ds, arguments.share, arguments.fewest_rows, arguments.context_characters)
    print(_plan_line(samples, arguments.context_characters), flush=True)
    if arguments.dry_run:
        prompts = [sample.judge_prompt(_template()) for sample in samples]
        requests = rating_requests(prompts, arguments.ratings, arguments.temperature)
        print(judge_of.estimate(requests).line(judge_of.model, endpoint.concurrency))
        return
    Path(arguments.output).expanduser().mkdir(parents=True, exist_ok=True)  # before anything is paid for
    result = rate_samples(samples, judge_of, num_ratings=arguments.ratings, temperature=arguments.temperature)
    result.settings |= {"data": Path(data).name, "share": arguments.share, "fewest_rows": arguments.fewest_rows}
    result.settings |= {"context_characters": arguments.context_characters}
    folder = write_characteristics(result, arguments.output)
    print((folder / "table.md").read_text("utf-8"), end="")
    print(f"\n{folder} written: the table, radar.png, and every judgement in rows.jsonl.")


def _plan_line(samples: list[RankedSample], num_characters: int) -> str:
    num_best = sum(sample.group == "best" for sample in samples)
    num_cut = sum(sample.num_cut > 0 for sample in samples)
    cut = f"; {num_cut:,} contexts lose their middle, to {num_characters:,} characters" if num_cut else ""
    return f"The {num_best:,} best and the {len(samples) - num_best:,} worst samples{cut}."


def choose_samples(
    ds: Dataset, share: float = 0.01, fewest_rows: int = 10, context_characters: int = 100_000
) -> list[RankedSample]:
    """The best and the worst of a ranked dataset, each with its texts, none in both.

    Raises:
        ValueError: the rows are not ranked, or fewer than two are, or one of those chosen has no instruction or response.
    """
    check_ranked(ds)
    order = rank_order(column_of(ds, "gateau_rank"))
    if len(order) < 2:
        raise ValueError(f"{len(order)} of {len(ds)} rows have a rank; two or more are needed to compare.")
    number = min(max(fewest_rows, num_kept_of(share, len(order))), len(order) // 2)
    rows = ds.with_format(None)
    places = {"best": order[:number], "worst": order[-number:]}
    found = [_sample(rows[place], place, group, context_characters) for group in GROUPS for place in places[group]]
    if bare := [sample.id for sample in found if not (sample.instruction and sample.response.strip())]:
        raise ValueError(
            f"{len(bare)} of the {len(found)} samples to rate have no instruction or no response, the first {bare[0]!r}; "
            f"the columns are {', '.join(ds.column_names)}. Give rows with messages, or context, instruction and response."
        )
    return found


def _sample(row: dict[str, Any], place: int, group: str, context_characters: int) -> RankedSample:
    context, instruction, response = sample_texts(row)
    shown, num_cut = cut_middle(context, context_characters)
    name = str(row["id"]) if row.get("id") is not None else f"row {place}"
    return RankedSample(name, group, row["gateau_rank"], shown, instruction.strip(), response, num_cut)


def cut_middle(text: str, num_characters: int) -> tuple[str, int]:
    """The beginning and the end of a text, with a note of what is missing between, and how many characters that is."""
    if len(text) <= num_characters:
        return text, 0
    half = num_characters // 2
    num_cut = len(text) - 2 * half
    return f"{text[:half]}\n\n[{num_cut:,} characters of the context are left out here]\n\n{text[-half:]}", num_cut


def read_aspects(text: str) -> dict[str, float]:
    """The five ratings of a reply, each of which must stand once, as `name: [[rating]]`, and be a whole number from 1 to 5.

    Raises:
        ReplyError: one is missing, there twice with different numbers, or out of range.
    """
    found = {}
    for aspect in ASPECTS:
        pattern = rf"\b{aspect}\b[*_\s]*:[*_\s]*{BRACKETS.pattern}"
        ratings = set(re.findall(pattern, text, re.IGNORECASE))
        if len(ratings) != 1:
            raise ReplyError(f"it has {len(ratings)} ratings of {aspect} in the form '{aspect}: [[rating]]'")
        rating = ratings.pop()
        if rating not in map(str, range(LOW, HIGH + 1)):
            raise ReplyError(f"[[{rating}]] for {aspect} is no whole number from {LOW} to {HIGH}")
        found[aspect] = float(rating)
    return found


def _template() -> str:
    return shipped_prompt(f"{TASK}/rating.txt")


def rate_samples(
    samples: list[RankedSample], endpoint: Endpoint, *, num_ratings: int = 1, temperature: float = 0.0
) -> TaskResult:
    """What the judge says of the samples.

    Returns:
        a result whose metrics are, for each aspect, the mean of the best samples minus that of the worst, and whose rows
        have the ratings by aspect; a row's `score` is the mean of its five.

    Raises:
        EndpointError: the judge cannot be asked.
        RuntimeError: none of the best samples or none of the worst could be rated.
    """
    template = _template()
    prompts = [sample.judge_prompt(template) for sample in samples]
    judged = judge(
        endpoint, prompts, read_aspects, num_ratings=num_ratings, temperature=temperature, desc="Characteristics"
    )
    rows = []
    for sample, judgement in zip(samples, judged, strict=True):
        aspects = dict.fromkeys(ASPECTS)
        if judgement.error is None:
            aspects = {name: math.fsum(x[name] for x in judgement.values) / num_ratings for name in ASPECTS}
        about = {"id": sample.id, "score": None, "group": sample.group, "rank": sample.rank, "num_cut": sample.num_cut}
        if judgement.error is None:
            about["score"] = math.fsum(aspects.values()) / len(ASPECTS)
        replies = [list(texts) for texts in judgement.replies]
        rows.append(
            about | aspects | {"ratings": list(judgement.values), "replies": replies, "error": judgement.error}
        )
    num_failed = tell_failures(rows, "samples")
    rated = {row["group"] for row in rows if row["score"] is not None}
    if missing := [group for group in GROUPS if group not in rated]:
        raise RuntimeError(f"None of the {missing[0]} samples could be rated; there is nothing to compare.")
    settings = {"judge": endpoint.model, "prompt": version_of(template), "ratings": num_ratings}
    settings |= {"temperature": temperature, "num_rows": len(rows), "num_failed": num_failed}
    settings["num_cut"] = sum(row["num_cut"] > 0 for row in rows)
    result = TaskResult(TASK, {}, rows, settings)
    result.metrics = {line["aspect"]: line["difference"][0] for line in compare_groups(rows)}
    return result


def compare_groups(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """For each aspect its name, and `best`, `worst` and `difference` as (mean, lower, upper), with percentile bootstrap
    intervals of 95% over the samples that were rated."""
    rated = [row for row in rows if row["score"] is not None]
    is_best = np.array([row["group"] == "best" for row in rated])
    statistics = {
        "best": lambda scores, best: scores[best].mean(),
        "worst": lambda scores, best: scores[~best].mean(),
        "difference": lambda scores, best: scores[best].mean() - scores[~best].mean(),
    }
    lines = []
    for aspect in ASPECTS:
        ratings = np.array([row[aspect] for row in rated])
        found = {
            name: (float(statistic(ratings, is_best)), *bootstrap_interval(statistic, ratings, is_best))
            for name, statistic in statistics.items()
        }
        lines.append({"aspect": aspect, **found})
    return lines


def write_characteristics(result: TaskResult, folder: str) -> Path:
    """Write the result, its table and its figure; returns where they are."""
    lines = compare_groups(result.rows)
    place = save_result(result, Path(folder).expanduser())
    (place / "table.md").write_text(markdown_table(lines, result), encoding="utf-8")
    (place / "table.csv").write_text(_csv_table(lines), encoding="utf-8")
    save_png(radar_figure(lines, result), place / "radar.png")
    return place


def markdown_table(lines: list[dict[str, Any]], result: TaskResult) -> str:
    """The comparison, and under it what it rests on."""
    rows = ["| aspect | best | worst | difference |", "|---|---|---|---|"]
    for line in lines:
        cells = [f"{mean:.2f} [{low:.2f}, {high:.2f}]" for mean, low, high in (line["best"], line["worst"])]
        mean, low, high = line["difference"]
        rows.append(f"| {line['aspect']} | {' | '.join(cells)} | {mean:+.2f} [{low:+.2f}, {high:+.2f}] |")
    settings, counts = result.settings, _counts(result)
    notes = [
        f"Mean ratings from {LOW} to {HIGH} by {settings['judge']}, with 95% bootstrap intervals over samples; "
        f"{counts['best']:,} best and {counts['worst']:,} worst samples.",
    ]
    if settings["num_failed"]:
        notes.append(f"{settings['num_failed']:,} samples could not be rated and are in no mean.")
    if settings["num_cut"]:
        notes.append(f"{settings['num_cut']:,} contexts lost their middle: the judge saw the beginning and the end.")
    return "\n".join([*rows, "", *notes]) + "\n"


def _counts(result: TaskResult) -> dict[str, int]:
    """Samples of each group that were rated."""
    rated = [row["group"] for row in result.rows if row["score"] is not None]
    return {group: rated.count(group) for group in GROUPS}


def _csv_table(lines: list[dict[str, Any]]) -> str:
    names = ("best", "worst", "difference")
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(["aspect", *(f"{name}{part}" for name in names for part in ("", "_low", "_high"))])
    writer.writerows([line["aspect"], *(f"{x:.4f}" for name in names for x in line[name])] for line in lines)
    return stream.getvalue()


def radar_figure(lines: list[dict[str, Any]], result: TaskResult) -> Figure:
    """The means of both groups on five axes from the middle outwards, with their intervals along the axes."""
    counts = _counts(result)
    shown = [(line["aspect"], *(x for group in GROUPS for x in line[group])) for line in lines]
    header = ("aspect", *(f"{group}{part}" for group in GROUPS for part in ("", ", from", ", to")))
    words = "; ".join(f"{line['aspect']} {line['best'][0]:.1f} and {line['worst'][0]:.1f}" for line in lines)
    text = f"Mean ratings of the {counts['best']:,} best and the {counts['worst']:,} worst samples: {words}."
    return Figure(
        name="radar",
        title=f"The {counts['best']:,} best and the {counts['worst']:,} worst samples",
        text=text,
        table=(header, shown),
        draw=lambda ax: _draw_radar(ax, lines),
        height=4.0,
    )


def _draw_radar(ax: Axes, lines: list[dict[str, Any]]) -> None:
    import matplotlib

    angles = np.pi / 2 - 2 * np.pi * np.arange(len(lines)) / len(lines)  # the first on top, clockwise
    x, y = np.cos(angles), np.sin(angles)
    closed = np.r_[np.arange(len(lines)), 0]
    grid, ink = matplotlib.rcParams["grid.color"], matplotlib.rcParams["text.color"]
    ax.set_axis_off()
    ax.grid(False)
    ax.set_aspect("equal")
    for ring in range(LOW, HIGH + 1):
        ax.plot(ring * x[closed], ring * y[closed], color=grid, linewidth=0.6, zorder=1)
        ax.text(0.1, ring * y[0] - 0.04, f"{ring}", fontsize=8, color=ink, ha="left", va="top", zorder=4)
    for group, color, style in (("best", "C0", "-"), ("worst", "C1", "--")):
        means, lows, highs = np.array([line[group] for line in lines]).T
        ax.plot(means[closed] * x[closed], means[closed] * y[closed], style, color=color, label=group, zorder=3)
        ax.fill(means * x, means * y, color=color, alpha=0.12, linewidth=0, zorder=2)
        ax.plot([lows * x, highs * x], [lows * y, highs * y], color=color, linewidth=3, alpha=0.5, zorder=3)
    for place, line in enumerate(lines):
        ax.plot([0, HIGH * x[place]], [0, HIGH * y[place]], color=grid, linewidth=0.6, zorder=1)
        is_above = y[place] > 0
        at = 1.04 * HIGH * y[place] + (0.2 if is_above else -0.1)
        edge = "bottom" if is_above else "top"
        ax.text(1.02 * HIGH * x[place], at, line["aspect"], ha="center", va=edge, fontsize=10)
    ax.set(xlim=(-6.7, 6.7), ylim=(-5.4, 6.6))
    legend_above(ax)


TAKES = ("data", CharacteristicsArguments, EndpointConfig)
