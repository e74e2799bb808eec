"""Which stretches of a response need far text, and the pieces that it is shown in, each marked by its need."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

from .segments import SCALES
from .texts import readable, shortened
from .tokens import ResponseToken, ResponseTokens, level_of


MOST_STRETCHES = 3
GAP, THE_END, WHITE_SPACE = " ... ", "the end of the response", "white space"


@dataclass(frozen=True)
class Piece:
    """Some text of a response as it is shown.

    Attributes:
        text (`str`): white space brought to one space, or to one line break.
        level (`int`): how strongly it is marked, 0 to 4; see `ResponseToken.level`.
        label (`str`): what it needs, in words; empty where that is nothing.
    """

    text: str
    level: int = 0
    label: str = ""


@dataclass(frozen=True)
class Stretch:
    """Tokens one after the other, all of which need far context.

    Attributes:
        text (`str`): on one line; `WHITE_SPACE` or `THE_END` where there is nothing to be seen.
        need (`float`): nats.
        tokens (`list[ResponseToken]`): as they stand.
        segment (`int`): the far segment that tells most of it, from 1; None where no far segment alone tells any of it.
        label (`str`): all this in words.
    """

    text: str
    need: float
    tokens: list[ResponseToken]
    segment: int | None
    label: str


def stretches(found: ResponseTokens, most: int = MOST_STRETCHES) -> list[Stretch]:
    """The stretches of most need, at most so many, in the order of the text."""
    every = []
    for level, units in groupby(_units(found.tokens), key=lambda unit: _need(unit) > 0):
        tokens = [token for unit in units for token in unit] if level else []
        if tokens:
            need, text = _need(tokens), shortened("".join(token.text for token in tokens), 60)
            told = _told(tokens)
            unseen = WHITE_SPACE if any(token.text for token in tokens) else THE_END
            label = f"{f'“{text}”' if text else unseen}: {need:.2f} nats{_where(tokens, found.is_exact)}"
            every.append(Stretch(text or unseen, need, tokens, told and told.segment, label))
    best = sorted(range(len(every)), key=lambda i: (-every[i].need, i))[:most]
    return [every[i] for i in sorted(best)]


def pieces(found: ResponseTokens, width: int, keep_lines: bool = False) -> list[Piece]:
    """The response in at most about `width` characters: of a longer one where most need is, or both ends where there is none."""
    units = _units(found.tokens)
    letters = _letters(["".join(token.text for token in unit) for unit in units], keep_lines)
    needs = [_need(unit) for unit in units]
    shown = []
    for place, letter in _cut_out(letters, needs, width):
        if shown and shown[-1][0] == place:
            shown[-1][1].append(letter)
        else:
            shown.append((place, [letter]))
    out: list[Piece] = []
    for place, letters_of in shown:
        text, need = "".join(letters_of), 0.0 if place is None else needs[place]
        core = text.strip() if need > 0 else ""
        before, behind = (text[: text.index(core)], text[text.index(core) + len(core) :]) if core else (text, "")
        _append(out, Piece(before))
        if core:
            out.append(Piece(core, level_of(need), f"{need:.2f} nats{_where(units[place], found.is_exact)}"))
        _append(out, Piece(behind))
    return out


def _append(out: list[Piece], piece: Piece) -> None:
    """Add a piece that is not marked to what stands before it."""
    if out and not out[-1].level and piece.text:
        out[-1] = Piece(out[-1].text + piece.text)
    elif piece.text:
        out.append(piece)


def words(shown: Sequence[ResponseTokens], how: str) -> dict[str, str]:
    """What is shown of the need of some responses, and what it means, as more of `findings.glossary`; or why no token is marked.

    Args:
        shown: every response that is shown.
        how: what is marked, and how, in words.
    """
    found, missing = {}, list(dict.fromkeys(x.missing for x in shown if x.missing))
    if any(token.segment is not None for x in shown for token in x.tokens):
        found["far need"] = (
            "nats of the response that a segment alone tells and no near one does, each token by the far segment that tells it "
            f"best; {SCALES['far need']}"
        )
    tau = next((x.tau for x in shown if not x.missing), None)
    if tau is not None:
        rest = "".join(f"; of a response without marks, {reason}" for reason in missing)
        return found | {"response": f"{how}; tau is {tau:g} nats{rest}"}
    return {"response": "; ".join(f"no token is marked: {reason}" for reason in missing)} if missing else {}


def _units(tokens: Sequence[ResponseToken]) -> list[list[ResponseToken]]:
    """Tokens that are shown together: those that make one character, and at the end those without text."""
    units: list[list[ResponseToken]] = []
    is_open = False
    for token in tokens:
        if is_open:
            units[-1].append(token)
        else:
            units.append([token])
        is_open = not token.text
    return units


def _need(tokens: Sequence[ResponseToken]) -> float:
    return sum(token.need for token in tokens)


def _told(tokens: Sequence[ResponseToken]) -> ResponseToken | None:
    """The token that a far segment tells most of."""
    told = [token for token in tokens if token.segment is not None]
    return max(told, key=lambda token: token.far_need or 0.0, default=None)


def _where(tokens: Sequence[ResponseToken], is_exact: bool) -> str:
    """From which segment it is, in words; nothing where segments were not measured."""
    token = _told(tokens)
    if token is None:
        return "" if all(x.far_need is None for x in tokens) else ", from no far segment alone"
    about = "" if is_exact else "about "
    behind = "" if token.distance is None else f", {about}{token.distance:,.0f} tokens before the context's end"
    return f", from segment {token.segment:,}{behind}"


def _letters(texts: Sequence[str], keep_lines: bool) -> list[tuple[int | None, str]]:
    """Characters with the place of the text that each is from; white space as one character, none at either end."""
    letters: list[tuple[int | None, str]] = []
    for place, text in enumerate(texts):
        for letter in readable(text):
            if not letter.isspace():
                letters.append((place, letter))
            elif letters and letters[-1][1] not in " \n":
                letters.append((place, "\n" if keep_lines and letter == "\n" else " "))
            elif letters and keep_lines and letter == "\n":
                letters[-1] = letters[-1][0], "\n"
    while letters and letters[-1][1] in " \n":
        letters.pop()
    return letters


def _cut_out(
    letters: list[tuple[int | None, str]], needs: Sequence[float], width: int
) -> list[tuple[int | None, str]]:
    """As many of the letters in a row as have the most need, in the middle of those that do as well; else both ends."""
    if len(letters) <= width:
        return letters
    gap = [(None, letter) for letter in GAP]  # between two spaces, of which an end has none
    sums, seen = [0.0], set()
    for place, _ in letters:
        sums.append(sums[-1] + (0.0 if place in seen else needs[place]))
        seen.add(place)
    if sums[-1] <= 0:
        half = (width - len(GAP)) // 2
        return [*letters[:half], *gap, *letters[-half:]]
    held = [round(sums[i + width] - sums[i], 6) for i in range(len(letters) - width + 1)]
    best = [i for i, need in enumerate(held) if need == max(held)]
    run = next(i for i in range(len(best)) if i + 1 == len(best) or best[i + 1] > best[i] + 1)
    start = best[run // 2]
    end = start + width
    return [*(gap[1:] if start else []), *letters[start:end], *(gap[:-1] if end < len(letters) else [])]
