"""`hf-gateau human-tally`: what several people chose on a page of `hf-gateau human-sheet`.

A question goes to the choice that most raters made; where two choices have most votes alike, it is a tie, as it is where most
raters chose the tie.
"""

from __future__ import annotations

import csv
import io
import json
import math
from collections import Counter
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from statistics import NormalDist
from typing import Any

import numpy as np

from ..files.apart import check_apart
from ..files.texts import read_user_text
from .human_sheet import CHOICES, COLUMNS
from .results import TaskResult, save_result


TASK = "human"
OUTCOMES = ("win", "tie", "loss")  # of the first model
SCORES = {"win": 1.0, "tie": 0.5, "loss": 0.0}


@dataclass
class HumanTallyArguments:
    """Which page, and whose votes."""

    key: str = field(metadata={"help": "The key that human-sheet wrote beside the page: NAME.key.json."})
    votes: list[str] = field(metadata={"help": "The CSV files that raters saved, one each."})
    output: str | None = field(
        default=None,
        metadata={"help": "Folder that the figures and every question's votes go to.", "aliases": ["-o"]},
    )


def command(arguments: HumanTallyArguments) -> None:
    """Count what people chose on a page of `human-sheet`. A question goes to the choice of most raters. Shows how often the
    first model wins, ties and loses, with 95% intervals over questions, and how far raters agree.

    Example:
        hf-gateau human-tally --key sheet.key.json --votes ann.csv ben.csv eve.csv
    """
    check_apart(arguments.output, arguments.key, *arguments.votes, around=True)
    key = read_key(arguments.key)
    result = tally(key, read_votes(key, arguments.votes))
    print(tally_text(result))
    if arguments.output is not None:
        print(f"{save_result(result, Path(arguments.output).expanduser())} written.")


def read_key(path: str) -> dict[str, Any]:
    """What `human-sheet` wrote beside the page.

    Raises:
        ValueError: the file is no such key.
    """
    try:
        key = json.loads(read_user_text(path))
        sides = {about["left"] for about in key["order"].values()}
        is_sound = isinstance(key["sheet"], str) and len(key["names"]) == 2 and sides <= set(key["names"])
    except (ValueError, KeyError, TypeError, AttributeError):
        is_sound = False
    if not is_sound:
        raise ValueError(f"{path} is no key of a sheet; give the NAME.key.json that hf-gateau human-sheet wrote.")
    return key


def read_votes(key: dict[str, Any], paths: list[str]) -> dict[str, dict[str, str]]:
    """Rater -> question -> win, tie or loss of the first model. Questions that a rater left open are not there.

    Raises:
        ValueError: a file is of another sheet or of no known form, a rater has voted in two files, an id is unknown or there
            twice, or a choice is none.
    """
    votes: dict[str, dict[str, str]] = {}
    for path in paths:
        rater, chosen = _read_file(key, path)
        if rater in votes:
            raise ValueError(f"{path}: {rater!r} has voted in another file already; give one file of each rater.")
        votes[rater] = chosen
    return votes


def _read_file(key: dict[str, Any], path: str) -> tuple[str, dict[str, str]]:
    try:
        reader = csv.DictReader(io.StringIO(read_user_text(path, newline=""), newline=""), strict=True)
        rows, columns = list(reader), tuple(reader.fieldnames or ())
    except (csv.Error, ValueError) as error:
        raise ValueError(f"{path} is no CSV that the page saved ({error}).") from error
    if columns != COLUMNS or not rows:
        raise ValueError(
            f"{path} is no CSV that the page saved: it must have the columns {', '.join(COLUMNS)}, and votes."
        )
    raters = {row["rater"] for row in rows}
    if len(raters) > 1 or not all(raters):
        raise ValueError(
            f"{path} has votes of {len(raters)} raters, {sorted(map(str, raters))}; give one file of each."
        )
    chosen = {}
    for number, row in enumerate(rows, 2):
        problem = _problem(key, row, chosen)
        if problem:
            raise ValueError(f"Line {number} of {path} {problem}.")
        if row["choice"] == "tie":
            chosen[row["id"]] = "tie"
        else:
            is_left = key["order"][row["id"]]["left"] == key["names"][0]
            chosen[row["id"]] = "win" if (row["choice"] == "left") == is_left else "loss"
    return raters.pop(), chosen


def _problem(key: dict[str, Any], row: dict[str, str], chosen: dict[str, str]) -> str | None:
    """What is wrong with a vote."""
    if row["sheet"] != key["sheet"]:
        return f"is of another sheet, {row['sheet']!r}; this key is of {key['sheet']!r}"
    if row["id"] not in key["order"]:
        return f"names a question {row['id']!r}, which is not on the sheet"
    if row["id"] in chosen:
        return f"votes on question {row['id']!r} a second time"
    if row["choice"] not in CHOICES:
        return f"has the choice {row['choice']!r}; known are {', '.join(CHOICES)}"
    return None


def majority(votes: list[str]) -> str:
    """The choice with most votes; a tie where two or three have most alike."""
    counts = Counter(votes)
    most = max(counts.values())
    leaders = [choice for choice, number in counts.items() if number == most]
    return leaders[0] if len(leaders) == 1 else "tie"


def tally(key: dict[str, Any], votes: dict[str, dict[str, str]]) -> TaskResult:
    """What the raters chose together.

    Args:
        key: see `read_key`.
        votes: see `read_votes`.

    Returns:
        a result with the shares of questions that the first model wins, ties and loses, and what raters agree on; its
        settings have the intervals. Questions that nobody voted on have no score.

    Raises:
        ValueError: nobody voted on anything.
    """
    rows = []
    for question, about in key["order"].items():
        cast = {rater: chosen[question] for rater, chosen in votes.items() if question in chosen}
        outcome = majority(list(cast.values())) if cast else None
        error = None if cast else "nobody voted on it"
        score = SCORES.get(outcome)
        rows.append(
            {
                "id": question,
                "score": score,
                "group": about.get("group"),
                "outcome": outcome,
                "votes": cast,
                "error": error,
            }
        )
    outcomes = [row["outcome"] for row in rows if row["outcome"] is not None]
    if not outcomes:
        raise ValueError("There is no vote to count.")
    shares = {name: outcomes.count(name) / len(outcomes) for name in OUTCOMES}
    cast = [list(row["votes"].values()) for row in rows if row["votes"]]
    agreement = {"agreement": pair_agreement(cast), "kappa": fleiss_kappa([x for x in cast if len(x) == len(votes)])}
    settings = {"names": key["names"], "sheet": key["sheet"], "raters": sorted(votes), "num_rows": len(rows)}
    settings["num_failed"] = len(rows) - len(outcomes)
    settings["intervals"] = {name: list(share_interval(outcomes.count(name), len(outcomes))) for name in OUTCOMES}
    settings["left_out"] = key.get("left_out", {})
    settings["num_rated_by_all"] = sum(len(x) == len(votes) for x in cast)
    metrics = shares | {name: value for name, value in agreement.items() if value is not None}
    return TaskResult(TASK, metrics, rows, settings)


def share_interval(number: int, total: int, level: float = 0.95) -> tuple[float, float]:
    """Wilson's interval (1927) of a share, `number` of `total`; a bootstrap's has no width where all or none are."""
    z = NormalDist().inv_cdf((1 + level) / 2)
    share, weight = number / total, z**2 / total
    middle = (share + weight / 2) / (1 + weight)
    half = math.sqrt(share * (1 - share) * weight + weight**2 / 4) / (1 + weight)
    return max(0.0, middle - half), min(1.0, middle + half)


def pair_agreement(cast: list[list[str]]) -> float | None:
    """The share of pairs of votes on one question that are alike; None where no question has two votes."""
    pairs = [one == other for votes in cast for one, other in combinations(votes, 2)]
    return sum(pairs) / len(pairs) if pairs else None


def fleiss_kappa(cast: list[list[str]]) -> float | None:
    """Agreement beyond chance (Fleiss, 1971) of questions that have the same number of votes: 1 is perfect, 0 is chance.

    None where there are fewer than two raters, or all votes are alike, where chance alone agrees wholly.
    """
    counts = np.array([[votes.count(outcome) for outcome in OUTCOMES] for votes in cast], dtype=np.float64)
    num_raters = counts[0].sum() if len(counts) else 0
    if num_raters < 2:
        return None
    observed = ((counts**2).sum(axis=1) - num_raters) / (num_raters * (num_raters - 1))
    chance = ((counts.sum(axis=0) / counts.sum()) ** 2).sum()
    return None if chance == 1 else float((observed.mean() - chance) / (1 - chance))


def tally_text(result: TaskResult) -> str:
    """The result for the terminal, as a Markdown table and what it rests on."""
    settings, metrics = result.settings, result.metrics
    first, second = settings["names"]
    labels = {"win": f"{first} is better", "tie": "tie", "loss": f"{second} is better"}
    lines = ["| | share of questions | 95% interval |", "|---|---|---|"]
    for name in OUTCOMES:
        low, high = settings["intervals"][name]
        lines.append(f"| {labels[name]} | {metrics[name]:.1%} | {low:.1%} to {high:.1%} |")
    num_voted = len(result.rows) - settings["num_failed"]
    raters = len(settings["raters"])
    lines += ["", f"{num_voted:,} questions, {raters} rater{'s' * (raters != 1)}: {', '.join(settings['raters'])}."]
    if settings["num_failed"]:
        lines.append(f"{settings['num_failed']:,} questions have no vote and are not counted.")
    lines += [f"{number:,} questions were not on the sheet: {why}." for why, number in settings["left_out"].items()]
    if "agreement" in metrics:
        kappa = f"; Fleiss' kappa {metrics['kappa']:.2f}" if "kappa" in metrics else ""
        rated = f" over {settings['num_rated_by_all']:,} questions that all rated" if kappa else ""
        lines.append(f"Two raters of one question agree in {metrics['agreement']:.1%} of cases{kappa}{rated}.")
    return "\n".join(lines)


TAKES = (HumanTallyArguments,)
