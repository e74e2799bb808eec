"""`hf-gateau human-sheet`: two models' answers side by side on one page, for people to compare without knowing whose is whose.

The page needs no network: it keeps what is chosen in the browser and saves it as CSV. Which answer is whose stands in a key
beside the page, `NAME.key.json`, that raters do not get; `hf-gateau human-tally` puts both together.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import __version__
from ..files.apart import check_apart
from ..report.texts import readable
from ..rows.parts import texts_of
from ..shipped import render
from .markdown_html import markdown_html
from .results import write_whole
from .rows import read_rows


if TYPE_CHECKING:
    from markupsafe import Markup

CHOICES = ("left", "tie", "right")
COLUMNS = ("sheet", "rater", "id", "choice")  # of the CSV that the page saves
EQUAL = "both answers are the same"
KEY_SUFFIX = ".key.json"


@dataclass
class HumanSheetArguments:
    """Whose answers, and where the page goes.

    Raises:
        ValueError: a field is out of range.
    """

    first: str = field(
        metadata={
            "help": "Answers of one model: JSON lines with id, question and answer, such as an evaluation's rows.jsonl."
        }
    )
    second: str = field(metadata={"help": "Answers of the other model to the same questions."})
    output: str = field(metadata={"help": "Where the page goes: a .html file.", "aliases": ["-o"]})
    names: list[str] = field(
        default_factory=lambda: ["first", "second"],
        metadata={"help": "Names of the two models, for the key and the tally; the page does not show them."},
    )
    title: str = field(default="Which answer is better?", metadata={"help": "The page's heading."})
    limit: int | None = field(default=None, metadata={"help": "Take this many questions, drawn at random."})
    seed: int = field(default=0, metadata={"help": "What is drawn at random is drawn from this seed."})

    def __post_init__(self):
        if not self.output.endswith(".html"):
            raise ValueError(f"--output {self.output!r} is a page; give a name that ends in .html.")
        if len(self.names) != 2 or self.names[0] == self.names[1] or not all(self.names):
            raise ValueError(f"--names are two different names, got {self.names}; give e.g. --names gateau full.")
        if self.limit is not None and self.limit < 1:
            raise ValueError(f"--limit is a number of questions, got {self.limit}; give 1 or more.")


@dataclass(frozen=True)
class Pair:
    """One question with both answers as the page shows them; `left` is the name of the model whose answer is there."""

    id: str
    group: str | None
    question: str
    reference: str | None
    answers: tuple[str, str]
    left: str


@dataclass(frozen=True)
class Shown:
    """A pair as its page shows it: safe HTML of the answers, and the document apart from what is asked about it, which may
    stand before it, behind it, or both; empty where the question has none."""

    pair: Pair
    document: str
    question: str
    answers: tuple[Markup, Markup]

    @classmethod
    def of(cls, pair: Pair) -> Shown:
        turns = [{"role": "user", "content": pair.question}, {"role": "assistant", "content": "."}]
        before, document, behind, _ = texts_of({"messages": turns})
        asked = "\n\n".join(filter(None, (before, behind))) if document else pair.question
        answers = (markdown_html(pair.answers[0]), markdown_html(pair.answers[1]))
        return cls(pair, readable(document), readable(asked), answers)


def command(arguments: HumanSheetArguments) -> None:
    """Put two models' answers on a page for people to compare. The answers stand side by side in random order; the page needs
    no network, keeps what is chosen in the browser, and saves it as CSV for `hf-gateau human-tally`.

    Example:
        hf-gateau human-sheet --first gateau/longbench_chat/rows.jsonl \\
            --second full/longbench_chat/rows.jsonl \\
            --names gateau full -o sheet.html
    """
    for written in (arguments.output, _key_of(Path(arguments.output))):
        check_apart(written, arguments.first, arguments.second)
    firsts, seconds = read_rows(arguments.first), read_rows(arguments.second)
    names = (arguments.names[0], arguments.names[1])
    pairs, left_out = pair_answers(firsts, seconds, names, seed=arguments.seed, limit=arguments.limit)
    page, key = write_sheet(pairs, arguments.output, names, title=arguments.title, left_out=left_out)
    for reason, number in left_out.items():
        print(f"{number:,} questions left out: {reason}")
    print(f"{page} written, {len(pairs):,} questions: give it to the raters, each of whom saves a CSV.")
    print(f"{key} written: keep it from them; `hf-gateau human-tally --key {key} --votes *.csv` needs it.")


def pair_answers(
    firsts: list[dict[str, Any]],
    seconds: list[dict[str, Any]],
    names: tuple[str, str],
    *,
    seed: int = 0,
    limit: int | None = None,
) -> tuple[list[Pair], Counter]:
    """Questions that both models answered, in random order, each with its answers in random order: a model's answers stand on
    the left in half of them.

    Returns:
        the pairs, and why questions are left out.

    Raises:
        ValueError: a row lacks its id, question or answer, an id is there twice, two questions with one id differ, or there
            is nothing to compare.
    """
    known = [_by_id(rows, name) for rows, name in ((firsts, names[0]), (seconds, names[1]))]
    left_out = Counter()
    if later := [key for key, row in known[0].items() if (row.get("turn") or 1) > 1]:
        left_out["they are later turns, which say little without the first answers"] = len(later)
        known = [{key: row for key, row in rows.items() if key not in set(later)} for rows in known]
    for one, other, name in ((known[0], known[1], names[1]), (known[1], known[0], names[0])):
        if missing := len(one.keys() - other.keys()):
            left_out[f"{name} did not answer them"] += missing
    both = [key for key in known[0] if key in known[1]]
    if differing := [key for key in both if known[0][key]["question"] != known[1][key]["question"]]:
        raise ValueError(
            f"The two models were asked different questions under the id {differing[0]!r}; give equal ones."
        )
    alike = [key for key in both if known[0][key]["answer"].strip() == known[1][key]["answer"].strip()]
    if alike:
        left_out[EQUAL] = len(alike)
    chosen = [key for key in both if key not in set(alike)]
    if not chosen:
        raise ValueError(f"There is nothing to compare: {dict(left_out) or 'there are no answers'}.")
    rng = random.Random(seed)
    rng.shuffle(chosen)
    chosen = chosen[:limit]
    swapped = [place % 2 == 1 for place in range(len(chosen))]
    rng.shuffle(swapped)
    pairs = zip(chosen, swapped, strict=True)
    return [_pair(known[0][key], known[1][key], names, is_swapped) for key, is_swapped in pairs], left_out


def _by_id(rows: list[dict[str, Any]], name: str) -> dict[str, dict[str, Any]]:
    found = {}
    for number, row in enumerate(rows, 1):
        lacking = [column for column in ("question", "answer") if not isinstance(row.get(column), str)]
        lacking += ["id"] if row.get("id") in (None, "") else []
        if lacking:
            raise ValueError(
                f"Row {number} of {name} has no {', '.join(lacking)}; give JSON lines with id, question and answer."
            )
        if str(row["id"]) in found:
            raise ValueError(f"Two rows of {name} have the id {row['id']!r}; give each question its own.")
        found[str(row["id"])] = row
    return found


def _pair(first: dict[str, Any], second: dict[str, Any], names: tuple[str, str], is_swapped: bool) -> Pair:
    answers = (second["answer"], first["answer"]) if is_swapped else (first["answer"], second["answer"])
    reference = first.get("reference")
    group = first.get("group")
    return Pair(
        str(first["id"]),
        group if isinstance(group, str) else None,
        first["question"],
        reference if isinstance(reference, str) else None,
        answers,
        names[is_swapped],
    )


def _key_of(page: Path) -> Path:
    """Where the key of a page stands."""
    return page.with_name(page.name.removesuffix(".html") + KEY_SUFFIX)


def write_sheet(
    pairs: list[Pair],
    path: str,
    names: tuple[str, str],
    *,
    title: str = "Which answer is better?",
    left_out: Counter | None = None,
) -> tuple[Path, Path]:
    """Write the page and the key beside it; returns their paths.

    Raises:
        ValueError: the key of another page is there, without which its votes can never be counted.
    """
    content = json.dumps([asdict(pair) for pair in pairs], sort_keys=True)
    sheet = hashlib.sha256(content.encode()).hexdigest()[:16]
    page = Path(path).expanduser()
    key = _key_of(page)
    if key.exists() and f'"sheet": "{sheet}"' not in key.read_text("utf-8"):
        raise ValueError(
            f"{key} is the key of another page, without which its raters' votes can never be counted; give another "
            "--output, or delete it."
        )
    page.parent.mkdir(parents=True, exist_ok=True)
    shown = [Shown.of(pair) for pair in pairs]
    text = render("human.html", autoescape=True, title=title, sheet=sheet, questions=shown, version=__version__)
    order = {pair.id: {"left": pair.left, "group": pair.group} for pair in pairs}
    about = {"sheet": sheet, "title": title, "names": list(names), "left_out": left_out or {}, "order": order}
    write_whole(key, json.dumps(about, indent=2, ensure_ascii=False) + "\n")
    write_whole(page, text)
    return page, key


TAKES = (HumanSheetArguments,)
