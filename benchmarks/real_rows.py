"""Labelled rows of real text: a stretch of a book with made-up facts put in, and an instruction that needs them, or needs nothing.

A `Kind` says what a row needs: how many facts of the first 60% of the context, one that lies just outside the short sibling's
window or just inside, the end alone, no context. `make_rows` draws rows until they are what their label says.
"""

import json
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random

import numpy as np

from hf_gateau.rows.samples import Sample, build_sample


FAR_SHARE, NEAR_SHARE, NEAR_TOKENS = 0.6, 0.07, 80  # where evidence may lie, as shares of the context
EDGE_TOKENS = range(60, 180)  # between the window's edge and a fact that is just outside or inside
SHORT_ROW = 0.75  # of the window: tokens of a short row
MAX_REGISTER_LINES, REGISTER_LINE_TOKENS = 110, 10
LEAK_CHARACTERS, ATTEMPTS = 30, 200

# Words to make facts from

FIRST_NAMES = (
    "Ada Bruno Clara Dario Edith Felix Greta Hugo Irene Jonas Karla Louis Marta Nils Olga Pablo Rosa Simon Tessa Ulrich "
    "Vera Walter Yvonne Zeno Agnes Boris Celia Dennis Elsa Frank Gloria Henry Ines Jasper Kate Lorenz Mona Oscar"
).split()
STEMS = "Ash Brook Cold Dun East Fair Green Hart Kirk Lang Mill North Oak Pen Red Stan Thorn Up West Wood".split()
ENDINGS = "ford ley ton well field wick ham worth".split()
TOWNS = (
    "Lisbon Oslo Turin Ghent Cork Riga Basel Lyon Malaga Bergen Krakow Utrecht Dresden Porto Aarhus Verona Leeds Graz "
    "Nantes Seville Tartu Bilbao Bremen Trieste Galway Gdansk Zagreb Toledo Bruges Ulm"
).split()
HOUSES = "Marlow Hall,the old mill,Saint Bride's,the glass house,Fenwick Court,the east tower,Larkin Lodge".split(",")
STREETS = "Tanner Street,Mill Lane,Copper Row,Harbour Road,Bishop's Walk,Linden Avenue,Quarry Hill".split(",")
THINGS = "barometer,lantern,copper kettle,clock,violin,mirror,globe,typewriter,saddle,telescope,piano stool".split(",")
COLOURS = "green,grey,purple,white,yellow,crimson,turquoise,brown,silver,black".split(",")
ANIMALS = "parrot,goat,tortoise,ferret,donkey,falcon,hound,peacock".split(",")
PETS = "Pepper,Biscuit,Comet,Juniper,Domino,Saffron,Bramble,Tinsel".split(",")
FRUITS = "quinces,plums,figs,gooseberries,pears,apricots,medlars".split(",")
PASSWORDS = "heron,gravel,anchor,thimble,walnut,cinder,ribbon,marble,turnip,candle,pillow,hammer".split(",")
WEEKDAYS = "Monday,Tuesday,Wednesday,Thursday,Friday,Saturday,Sunday".split(",")

# (planted text, question, answer)
FACTS = (
    (
        'The spare key to {house} hangs behind the {thing}, and {person} asks for the word "{password}" before handing '
        "it over.",
        "Where does the spare key to {house} hang, and which word does {person} ask for?",
        'The spare key hangs behind the {thing}, and {person} asks for the word "{password}".',
    ),
    (
        "In the spring of {year}, {person} sold a {colour} {thing} to a dealer from {town} for {number} crowns.",
        "What did {person} sell in the spring of {year}, to whom and for how much?",
        "{person} sold a {colour} {thing} to a dealer from {town} for {number} crowns.",
    ),
    (
        "{person} keeps a {colour} {animal} called {pet}, which was bought from a sailor in {town}.",
        "Which animal does {person} keep, what is it called, and where was it bought?",
        "{person} keeps a {colour} {animal} called {pet}, which was bought in {town}.",
    ),
    (
        "The night train to {town} leaves from platform {small} at {hour}:{minute}, and its conductor is {person}.",
        "When and from which platform does the night train to {town} leave, and who is the conductor?",
        "It leaves from platform {small} at {hour}:{minute}, and the conductor is {person}.",
    ),
    (
        "Last {weekday} the password of the archive at {house} was changed to {password}-{number}-{colour}, and only "
        "{person} was told.",
        "Who was told the new password of the archive at {house}, and what is it?",
        "Only {person} was told that the password is {password}-{number}-{colour}.",
    ),
    (
        "In the will, {person} gets the {thing} and {number} crowns, while {house} goes to a cousin in {town}.",
        "According to the will, what does {person} get, and to whom does {house} go?",
        "{person} gets the {thing} and {number} crowns, and {house} goes to a cousin in {town}.",
    ),
    (
        "For the fair at {house}, {person} used up {number} {fruit} in one {weekday} afternoon and hid the recipe in a "
        "{colour} {thing}.",
        "How many of which fruit did {person} use up for the fair at {house}, and where is the recipe?",
        "{person} used up {number} {fruit} and hid the recipe in a {colour} {thing}.",
    ),
    (
        "The parcel for {person} was left by mistake at number {small}, {street}, with a note that said only "
        '"{password}".',
        "At which address was the parcel for {person} left, and what did the note say?",
        'The parcel was left at number {small}, {street}, and the note said "{password}".',
    ),
)
# (planted text, text planted further on, question that needs both, answer)
FACT_PAIRS = (
    (
        "The {colour} boat in the harbour of {town} belongs to {person}.",
        "{person} can only be reached on {weekday}, at number {small}, {street}.",
        "When and at which address can the owner of the {colour} boat in the harbour of {town} be reached?",
        "The boat belongs to {person}, who can be reached on {weekday} at number {small}, {street}.",
    ),
    (
        "The last to borrow the map of {town} was {person}.",
        "Everything that {person} borrows goes into locker {number}, under the {colour} {thing}.",
        "Who was the last to borrow the map of {town}, and where is it now?",
        "{person} borrowed the map, so it is in locker {number}, under the {colour} {thing}.",
    ),
    (
        "The rowing race of {year} was won by {person}.",
        "With the prize money, {person} bought a {animal} and a house in {town}.",
        "Who won the rowing race of {year}, and what did the winner buy with the prize money?",
        "{person} won the race and bought a {animal} and a house in {town}.",
    ),
    (
        "At the auction, {person} paid {number} crowns for a {thing}.",
        "At the same auction, {other} went home with a {colour} {animal} that had cost {small} crowns.",
        "What did {person} and {other} buy at the auction, and for how much?",
        "{person} bought a {thing} for {number} crowns, and {other} a {colour} {animal} for {small} crowns.",
    ),
    (
        "The letter that was found in {house} is signed with the name {pet}.",
        "{pet} is what {person}, who sells {fruit} in {town}, calls himself in letters.",
        "Who wrote the letter that was found in {house}, and what does the writer do?",
        "The letter was written by {person}, who sells {fruit} in {town}.",
    ),
)
SHORT_INSTRUCTIONS = (
    ("What is the capital of France?", "The capital of France is Paris, which lies on the river Seine."),
    ("Name three primary colours.", "Three primary colours are red, blue and yellow."),
    ("How many days are there in a leap year?", "A leap year has 366 days, one more than a common year."),
    ("Why do leaves look green?", "Leaves look green because chlorophyll absorbs red and blue light and reflects green."),
    ("Give one reason to drink water in the morning.", "Drinking water in the morning makes up for what you lost at night."),
    ("Write a short sentence with the word 'rain'.", "The rain fell softly on the roof all through the night."),
    ("What does a thermometer measure?", "A thermometer measures temperature, usually in degrees Celsius or Fahrenheit."),
    ("Explain in one sentence what a library is.", "A library is a place that keeps books and lends them to its readers."),
    ("Name the largest planet of the solar system.", "The largest planet of the solar system is Jupiter, a gas giant."),
    ("How do you boil an egg?", "Put the egg into boiling water, wait for eight minutes, then cool it under cold water."),
    ("What is 12 times 12?", "12 times 12 is 144, because 12 times 10 is 120 and 12 times 2 is 24."),
    ("Suggest a polite way to decline an invitation.", "Thank you very much for the invitation, but I am afraid I cannot come."),
)  # fmt: skip


# Book text


SENTENCE_END = re.compile(r"""(?<=[.!?])(?<!\bMr\.)(?<!\bDr\.)(?<!\bMrs\.)["')]*\s+(?=["'`(]*[A-Z])|\n\n""")


def read_prose(path: str) -> str:
    """The paragraphs of a text file, each on one line, without headings, tables and ornaments.

    Raises:
        UnicodeDecodeError: the file is not UTF-8.
    """
    paragraphs = re.split(r"\n\s*\n", Path(path).read_text(encoding="utf-8").replace("\r", ""))
    return "\n\n".join(" ".join(paragraph.split()) for paragraph in paragraphs if _is_prose(paragraph))


def _is_prose(paragraph: str) -> bool:
    letters = sum(character.isalpha() or character.isspace() for character in paragraph)
    return len(paragraph.split()) >= 8 and letters >= 0.8 * len(paragraph)


def sentence_starts(text: str) -> list[int]:
    """Characters at which a sentence begins, the first one left out."""
    return [match.end() for match in SENTENCE_END.finditer(text)]


def plant(book: str, plants: tuple[tuple[float, str], ...]) -> str:
    """The book text with each text put in between two sentences (or at the end), nearest to its share of the way."""
    book = book.strip() + " "
    borders = [*sentence_starts(book), len(book)]
    for share, text in sorted(plants, reverse=True):
        at = min(borders, key=lambda border: abs(border - share * len(book)))
        book = book[:at] + text + " " + book[at:]
    return book.strip()


# The kinds of rows


@dataclass(frozen=True)
class Draft:
    """A row but for its book text.

    Attributes:
        instruction, response (`str`): what is asked and what is answered.
        plants: (share of the way through the book text, text) of what is put into it.
        evidence: the pieces of the context that the response needs; none where it needs no context.
    """

    instruction: str
    response: str
    plants: tuple[tuple[float, str], ...] = ()
    evidence: tuple[str, ...] = ()


class Author:
    """Draws all that is random; no person is named twice, and the answers of rows that were made are kept."""

    def __init__(self, seed: int, num_tokens: int, window: int, short_instructions: tuple[tuple[str, str], ...]):
        self.random, self.num_tokens, self.window = Random(seed), num_tokens, window
        self.short_instructions = short_instructions
        self.surnames = [stem + ending for stem in STEMS for ending in ENDINGS]
        self.persons = [f"{first} {last}" for first in FIRST_NAMES for last in self.surnames]
        self.random.shuffle(self.persons)
        self.answers: list[str] = []
        self.decks: dict[tuple, list] = {}

    def deal(self, choices: tuple):
        """One of the choices at random; all come before one comes again."""
        deck = self.decks.setdefault(choices, [])
        if not deck:
            deck += self.random.sample(choices, len(choices))
        return deck.pop()

    def words(self) -> dict[str, str | int]:
        """A word for each slot of the templates."""
        lists = {"house": HOUSES, "street": STREETS, "town": TOWNS, "thing": THINGS, "colour": COLOURS, "pet": PETS}
        lists |= {"animal": ANIMALS, "fruit": FRUITS, "password": PASSWORDS, "weekday": WEEKDAYS}
        ranges = {"small": (11, 99), "number": (101, 999), "year": (1951, 2019), "hour": (18, 23), "minute": (10, 59)}
        words = {slot: self.random.choice(choices) for slot, choices in lists.items()}
        words |= {slot: self.random.randint(*bounds) for slot, bounds in ranges.items()}
        return words | {"person": self.persons.pop(), "other": self.persons.pop()}

    def fact(self, low: float, high: float) -> Draft:
        """A planted fact, at a share of the way between low and high."""
        words = self.words()
        text, question, answer = (part.format(**words) for part in self.deal(FACTS))
        return Draft(question, answer, ((self.random.uniform(low, high), text),), (text,))


def one_fact(author: Author, before: str, after: str) -> Draft:
    return author.fact(0.02, FAR_SHARE - 0.05)


def two_facts(author: Author, before: str, after: str) -> Draft:
    words = author.words()
    first, second, question, answer = (part.format(**words) for part in author.deal(FACT_PAIRS))
    shares = author.random.uniform(0.02, 0.25), author.random.uniform(0.32, FAR_SHARE - 0.05)
    return Draft(question, answer, tuple(zip(shares, (first, second), strict=True)), (first, second))


def register_line(author: Author, before: str, after: str) -> Draft:
    num_lines = min(MAX_REGISTER_LINES, author.num_tokens // 2 // REGISTER_LINE_TOKENS)
    names = author.random.sample(author.surnames, num_lines)
    lines = [f"{name}, {author.random.randint(11, 99)}, {author.random.choice(TOWNS)}" for name in names]
    asked = author.random.choice(lines)
    name, room, town = asked.split(", ")
    table = "\n\nGuest, room, home town:\n" + "\n".join(lines) + "\n\n"
    question = f"Which room does {name} have, and what is {name}'s home town?"
    return Draft(question, f"{name} has room {room}, and {name}'s home town is {town}.", ((0, table),), (asked,))


def quoted_passage(author: Author, before: str, after: str) -> Draft:
    """A passage of the book itself; where in the context it will lie can be said only roughly before that is cut."""
    characters = int(4.4 * author.num_tokens * author.random.uniform(1 - FAR_SHARE + 0.05, 0.93))
    starts = (x for x in sentence_starts(before) if x >= len(before) - characters)
    paragraphs = (before[start:].split("\n\n")[0].split() for start in starts)
    words = next((words for words in paragraphs if len(words) >= 20), before.split())
    passage, opening = " ".join(words[: author.random.randint(26, 38)]), " ".join(words[:5])
    return Draft(f"Quote the passage of the text that begins with: {opening}", passage, (), (passage, opening))


def near_fact(author: Author, before: str, after: str) -> Draft:
    return author.fact(1 - 0.7 * near_share(author.num_tokens), 1)


def short_instruction(author: Author, before: str, after: str) -> Draft:
    return Draft(*author.deal(author.short_instructions))


def continuation(author: Author, before: str, after: str) -> Draft:
    words = after.split("\n\n")[0].split()[: author.random.randint(26, 38)]
    return Draft("Go on with the text where it breaks off.", " ".join(words))


def mismatched_answer(author: Author, before: str, after: str) -> Draft:
    """A row of another kind, with the answer of a row that was made earlier."""
    others = tuple(KINDS[name].maker for name in MISMATCHED)
    draft = author.deal(others)(author, before, after)
    return replace(draft, response=author.deal(tuple(author.answers)), evidence=())


def answers_of(drafts: list[Draft]) -> Draft:
    """Several questions in one instruction, and their answers one after another."""
    questions = " ".join(f"{i}. {draft.instruction}" for i, draft in enumerate(drafts, 1))
    return Draft(
        f"Answer each of these. {questions}",
        " ".join(draft.response for draft in drafts),
        tuple(text for draft in drafts for text in draft.plants),
        tuple(piece for draft in drafts for piece in draft.evidence),
    )


def three_facts(author: Author, before: str, after: str) -> Draft:
    return answers_of([author.fact(0.02, FAR_SHARE - 0.05) for _ in range(3)])


def six_facts(author: Author, before: str, after: str) -> Draft:
    return answers_of([author.fact(0.02, FAR_SHARE - 0.05) for _ in range(6)])


def long_answer(author: Author, before: str, after: str) -> Draft:
    """Nothing of it needs the text."""
    return answers_of([Draft(*author.deal(author.short_instructions)) for _ in range(6)])


def fact_in_long_answer(author: Author, before: str, after: str) -> Draft:
    """One sentence of six needs the text."""
    others = [Draft(*author.deal(author.short_instructions)) for _ in range(5)]
    return answers_of([*others[:3], author.fact(0.02, FAR_SHARE - 0.05), *others[3:]])


def fact_outside_window(author: Author, before: str, after: str) -> Draft:
    share = author.window / author.num_tokens
    return author.fact(
        1 - share - EDGE_TOKENS.stop / author.num_tokens, 1 - share - EDGE_TOKENS.start / author.num_tokens
    )


def fact_inside_window(author: Author, before: str, after: str) -> Draft:
    share = author.window / author.num_tokens
    return author.fact(
        1 - share + EDGE_TOKENS.start / author.num_tokens, 1 - share + EDGE_TOKENS.stop / author.num_tokens
    )


def short_row(author: Author, before: str, after: str) -> Draft:
    """A fact anywhere in a context that the window holds all of."""
    return author.fact(0.1, 0.9)


@dataclass(frozen=True)
class Kind:
    """What rows of a kind are.

    Attributes:
        needs_far (`bool`): whether the response needs text that is far back.
        maker: draws a row.
        where (`str`): the evidence lies "far", "near", "outside" or "inside" the window's edge, or "anywhere".
        num_facts (`int`): far facts that are asked for, where facts are counted.
        response_tokens (`range`): of rows that are kept.
        fills (`bool`): whether the row has as much text as fits.
    """

    needs_far: bool
    maker: Callable[[Author, str, str], Draft]
    where: str
    num_facts: int = 0
    response_tokens: range = range(10, 61)
    fills: bool = True


LONG_ANSWER = range(40, 260)
# The last kind takes its answers from the rows of the others
KINDS = {
    "one fact": Kind(True, one_fact, "far", 1),
    "two facts": Kind(True, two_facts, "far", 2),
    "register line": Kind(True, register_line, "far"),
    "quoted passage": Kind(True, quoted_passage, "far"),
    "fact near the end": Kind(False, near_fact, "near"),
    "short instruction": Kind(False, short_instruction, "near"),
    "continuation": Kind(False, continuation, "near"),
    "three facts": Kind(True, three_facts, "far", 3, LONG_ANSWER),
    "six facts": Kind(True, six_facts, "far", 6, LONG_ANSWER),
    "fact in a long answer": Kind(True, fact_in_long_answer, "far", 0, LONG_ANSWER),
    "fact just outside the window": Kind(True, fact_outside_window, "outside"),
    "fact just inside the window": Kind(False, fact_inside_window, "inside"),
    "long answer": Kind(False, long_answer, "near", 0, LONG_ANSWER),
    "short row": Kind(False, short_row, "anywhere", fills=False),
    "mismatched answer": Kind(False, mismatched_answer, "near"),
}
# Kinds whose rows a mismatched answer stands behind
MISMATCHED = tuple(KINDS)[:7]


# From drafts to rows of one length


def near_share(num_tokens: int) -> float:
    """The share of the context, at its end, that a near fact lies in; more than 7% only where that is too few tokens."""
    return max(NEAR_SHARE, NEAR_TOKENS / num_tokens)


def fit(draft: Draft, before: str, tokenizer, num_tokens: int) -> tuple[dict[str, str], Sample]:
    """The row with as much book text as fits `num_tokens`, to the word, and its token spans.

    Raises:
        ValueError: nothing of the book fits.
    """

    def lay_out(context: str) -> tuple[dict[str, str], Sample]:
        row = {"context": context, "instruction": draft.instruction, "response": draft.response}
        return row, build_sample(row, tokenizer)

    offsets = tokenizer(before, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
    room = num_tokens - lay_out(plant("", draft.plants) or "-")[1].response_end + REGISTER_LINE_TOKENS
    start = offsets[max(len(offsets) - room, 0)][0] if room > 0 else len(before)
    while 0 < (start := before.find(" ", start) + 1):
        row, sample = lay_out(plant(before[start:], draft.plants))
        if sample.response_end <= num_tokens:
            return row, sample
    raise ValueError(f"A row has no room for book text in num_tokens={num_tokens}; give it more.")


def evidence_span(draft: Draft, context: str) -> tuple[float, float] | None:
    """Where the evidence begins and ends, as shares of the context; (nan, nan) where there is none.

    None where a piece is not found exactly once.
    """
    if any(context.count(piece) != 1 for piece in draft.evidence):
        return None
    starts = [context.index(piece) for piece in draft.evidence]
    ends = [start + len(piece) for start, piece in zip(starts, draft.evidence, strict=True)]
    return (min(starts) / len(context), max(ends) / len(context)) if draft.evidence else (np.nan, np.nan)


def is_as_labelled(draft: Draft, context: str, sample: Sample, where: str, num_tokens: int, window: int) -> bool:
    """Whether the evidence lies where the label says, and no piece of the response where it says there is none."""
    if (span := evidence_span(draft, context)) is None:
        return False
    if where == "far":
        return span[1] <= FAR_SHARE
    if where == "anywhere":
        return True
    if where in ("outside", "inside"):
        seen = window - len(sample.instruction)  # of the context, by the short sibling
        start, end = ((1 - share) * len(sample.context) - seen for share in span)  # tokens before what it sees
        return end >= EDGE_TOKENS.start / 2 if where == "outside" else start <= -EDGE_TOKENS.start / 2
    earlier = context[: int(FAR_SHARE * len(context))] if draft.evidence else context
    starts = range(max(1, len(draft.response) - LEAK_CHARACTERS + 1))
    pieces = (draft.response[start : start + LEAK_CHARACTERS] for start in starts)
    near = not draft.evidence or span[0] >= 1 - near_share(num_tokens)
    return near and not any(piece in earlier for piece in pieces)


def make_row(kind: str, author: Author, places: list[tuple[str, int]], tokenizer) -> dict:
    """One row of a kind, from a random place of a random book; drawn again until it is what its label says.

    Raises:
        ValueError: it never is.
    """
    about, num_tokens = KINDS[kind], author.num_tokens
    if not about.fills:
        num_tokens = int(SHORT_ROW * author.window)
    for _ in range(ATTEMPTS):
        book, cut = author.random.choice(places)
        before, after = book[max(0, cut - 8 * author.num_tokens) : cut].rstrip(), book[cut:]
        draft = about.maker(author, before, after)
        row, sample = fit(draft, before, tokenizer, num_tokens)
        labelled = (draft, row["context"], sample, about.where, num_tokens, author.window)
        if len(sample.response) in about.response_tokens and is_as_labelled(*labelled):
            author.answers += [draft.response] if draft.response not in author.answers else []
            start, end = evidence_span(draft, row["context"])
            told = {"kind": kind, "needs_far": about.needs_far, "num_facts": about.num_facts}
            return {**told, **row, "evidence_start": start, "evidence_end": end}
    raise ValueError(f"No row of kind {kind!r} in {ATTEMPTS} draws; give longer books or a larger num_tokens.")


def make_rows(
    books: list[str], tokenizer, num_tokens: int, window: int, rows_per_kind: int | dict[str, int], shorts, seed: int
) -> list[dict]:
    """All rows, kind after kind; the same for the same arguments.

    Args:
        window: tokens of the prompt that the short sibling sees.
        rows_per_kind: of every kind, or of the kinds named.
        books: texts with a paragraph a line, see `read_prose`.
        shorts: (instruction, answer) pairs that need no context.

    Raises:
        ValueError: no book is long enough.
    """
    places = [
        (book, cut) for book in books for cut in sentence_starts(book) if 6 * num_tokens <= cut <= len(book) - 500
    ]
    if not places:
        raise ValueError(
            f"The longest book has {max(map(len, books))} characters of prose, too few for {num_tokens=}."
        )
    author = Author(seed, num_tokens, window, tuple(shorts))
    counts = rows_per_kind if isinstance(rows_per_kind, dict) else dict.fromkeys(KINDS, rows_per_kind)
    kinds = [(kind, i + 1) for kind in KINDS for i in range(counts.get(kind, 0))]
    return [{"id": f"{kind} {i}", **make_row(kind, author, places, tokenizer)} for kind, i in kinds]


def read_short_instructions(path: str | None) -> tuple[tuple[str, str], ...]:
    """Instructions with an answer and without an input from self-instruct's seed tasks; the script's own without one."""
    if path is None:
        return SHORT_INSTRUCTIONS
    tasks = [json.loads(line) for line in Path(path).read_text(encoding="utf-8").splitlines() if line.strip()]
    pairs = [
        (task["instruction"], case["output"]) for task in tasks for case in task["instances"] if not case["input"]
    ]
    return tuple((asked, answer) for asked, answer in pairs if 8 <= len(answer.split()) <= 40)
