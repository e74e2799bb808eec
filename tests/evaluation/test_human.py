"""People compare two models' answers on a page, and their votes are counted."""

import csv
import html
import json
import re
import shutil

import numpy as np
import pytest

from hf_gateau.cli import main
from hf_gateau.evaluation.human_sheet import HumanSheetArguments, pair_answers, write_sheet
from hf_gateau.evaluation.human_tally import (
    OUTCOMES,
    fleiss_kappa,
    majority,
    pair_agreement,
    read_key,
    read_votes,
    share_interval,
    tally,
    tally_text,
)
from hf_gateau.evaluation.markdown_html import markdown_html
from hf_gateau.evaluation.results import load_result
from tests.browser import HOSTILE, Page, browse


pytestmark = pytest.mark.quick


NAMES = ("gateau", "full")


def answers(num: int, text: str, **changes) -> list[dict]:
    rows = [
        {
            "id": f"q{n}",
            "question": f"Question {n}?",
            "answer": f"{text} {n}",
            "group": "en",
            "reference": f"It is {n}.",
        }
        for n in range(num)
    ]
    rows[0] |= changes
    return rows


def lines(folder, name: str, rows: list[dict]) -> str:
    (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(folder / name)


@pytest.fixture
def sheet(tmp_path):
    """Path of a key of four questions."""
    pairs, _ = pair_answers(answers(4, "First"), answers(4, "Second"), NAMES)
    return write_sheet(pairs, str(tmp_path / "sheet.html"), NAMES)[1]


def vote(key_path, folder, name: str, wanted: dict[str, str], **changes) -> str:
    """A rater's file, in which `wanted` says for each question which model is better."""
    key = json.loads(key_path.read_text())
    path = folder / f"{name}.csv"
    with path.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, ("sheet", "rater", "id", "choice"), quoting=csv.QUOTE_ALL)
        writer.writeheader()
        for question, better in wanted.items():
            left = key["order"][question]["left"] if question in key["order"] else None
            choice = better if better not in NAMES else "left" if better == left else "right"
            writer.writerow({"sheet": key["sheet"], "rater": name, "id": question, "choice": choice} | changes)
    return str(path)


# The page


def test_each_answer_stands_on_the_side_that_the_key_says():
    pairs, left_out = pair_answers(answers(20, "First"), answers(20, "Second"), NAMES, seed=3)
    assert not left_out and sorted(pair.id for pair in pairs) == sorted(f"q{n}" for n in range(20))
    for pair in pairs:
        number = pair.id[1:]
        sides = {"gateau": f"First {number}", "full": f"Second {number}"}
        other = NAMES[pair.left == NAMES[0]]
        assert pair.answers == (sides[pair.left], sides[other]) and pair.question == f"Question {number}?"
    assert sum(pair.left == "gateau" for pair in pairs) == 10  # half of them, in no regular order
    assert (
        len(
            {
                "".join(x.left[0] for x in pair_answers(answers(20, "a"), answers(20, "b"), NAMES, seed=s)[0])
                for s in range(5)
            }
        )
        == 5
    )
    assert pair_answers(answers(20, "First"), answers(20, "Second"), NAMES, seed=3)[0] == pairs
    assert [pair.id for pair in pairs] != [f"q{n}" for n in range(20)]


def test_questions_that_are_left_out_are_counted():
    firsts, seconds = answers(5, "First"), answers(6, "Second")[1:]
    seconds[0]["answer"] = " First 1\n"
    pairs, left_out = pair_answers(firsts, seconds, NAMES)
    assert sorted(pair.id for pair in pairs) == ["q2", "q3", "q4"]
    assert left_out == {"full did not answer them": 1, "gateau did not answer them": 1, "both answers are the same": 1}
    assert len(pair_answers(firsts, seconds, NAMES, limit=2)[0]) == 2


def test_later_turns_are_not_shown_alone():
    firsts, seconds = (
        answers(2, text, turn=2) for text in ("First", "Second")
    )  # MT-Bench's, of which one is a second turn
    pairs, left_out = pair_answers(firsts, seconds, NAMES)
    assert (
        [pair.id for pair in pairs] == ["q1"]
        and list(left_out.values()) == [1]
        and "later turns" in next(iter(left_out))
    )


@pytest.mark.parametrize(
    ("firsts", "seconds", "message"),
    [
        (answers(2, "a", answer=None), answers(2, "b"), "Row 1 of gateau has no answer"),
        (answers(2, "a"), answers(2, "b", question=3), "Row 1 of full has no question"),
        (answers(2, "a", id=None), answers(2, "b"), "Row 1 of gateau has no id"),
        (answers(2, "a", id="q1"), answers(2, "b"), "Two rows of gateau have the id 'q1'"),
        (answers(2, "a", question="Else?"), answers(2, "b"), "different questions under the id 'q0'"),
        (answers(2, "a"), answers(2, "a"), "nothing to compare: {'both answers are the same': 2}"),
        ([], [], "nothing to compare"),
    ],
)
def test_answers_that_cannot_be_compared(firsts, seconds, message):
    with pytest.raises(ValueError, match=message):
        pair_answers(firsts, seconds, NAMES)


def test_the_page_is_whole_and_blind_and_nothing_in_it_is_run(tmp_path):
    firsts = answers(3, "First", id=HOSTILE, question=HOSTILE, answer=HOSTILE, reference=HOSTILE)
    seconds = answers(3, "Second", id=HOSTILE, question=HOSTILE)
    pairs, _ = pair_answers(firsts, seconds, NAMES)
    path, _ = write_sheet(pairs, str(tmp_path / "new" / "sheet.html"), NAMES, title=HOSTILE)
    text = path.read_text()
    page = Page(text)
    tags = [tag for tag, _ in page.elements]
    assert tags.count("script") == 1 and "img" not in tags and tags.count("article") == 3
    assert not [name for _, attributes in page.elements for name in attributes if name.startswith("on")]
    assert HOSTILE in page.text and "49" not in page.text.replace("{{ 7*7 }}", "")
    assert not re.search(r"gateau'|\bfull\b", text.replace("hf-gateau", ""))  # whose answer is whose is not in it
    assert (
        next(attributes["data-id"] for tag, attributes in page.elements if attributes.get("data-id", "q")[0] != "q")
        == HOSTILE
    )


# What a model may answer to do harm -> what of it a rater sees
HARMFUL = {
    "<script>alert(1)</script>": "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>": "<img src=x onerror=alert(1)>",
    "a <b onmouseover=alert(1)>b</b>": "a <b onmouseover=alert(1)>b</b>",
    "[here](javascript:alert(1))": "[here](javascript:alert(1))",
    "[here](data:text/html,<script>alert(1)</script>)": "[here](data:text/html,<script>alert(1)</script>)",
    "![seen](http://a.invalid/b.png)": "![seen](http://a.invalid/b.png)",
    "<http://a.invalid>": "<http://a.invalid>",
    "[a][b]\n\n[b]: javascript:alert(1)": "[b]: javascript:alert(1)",
    '```js" onclick="alert(1)\n</code></pre><script>\n```': "</code></pre><script>",
    "`<script>`": "<script>",
    "&lt;script&gt;alert(1)&lt;/script&gt;": "<script>alert(1)</script>",
    "| a |\n|---|\n| <iframe src=x> |": "<iframe src=x>",
    "</div></article><article>": "</div></article><article>",
    "{{ 7*7 }} {% raw %}": "{{ 7*7 }} {% raw %}",
    "good \u202eerew\u202c \u2066x\u2069\x1b[2J": "good erew x[2J",
    ">" * 5 + " deep": "deep",
    ">" * 60 + " deep": "deep",
    **{">" * number + " deep": "deep" for number in range(94, 106)},
    **{"- " * number + "deep": "deep" for number in range(46, 54)},
    ">" * 3000 + " deep": "deep",
    "*" * 3000 + "deep" + "[" * 3000: "deep",
}
MADE = "p strong em s code pre ul ol li blockquote h hr br table thead tbody tr th td".split()


@pytest.mark.parametrize("text", HARMFUL)
def test_no_tag_or_attribute_of_an_answer_is_one_of_the_page(text):
    page = Page(html_text := str(markdown_html(text)))
    assert HARMFUL[text] in page.text and {tag for tag, _ in page.elements} <= {*MADE}
    assert {name for _, attributes in page.elements for name in attributes} <= {"class", "style", "start"}
    assert not any(x in html_text for x in "\u202e\u202c\u2066\u2069\x1b")


def test_markdown_is_shown_as_what_it_means():
    text = "# Title\n\n**bold** *thin* ~~no~~ `x < y`\n\n3. three\n4. four\n\n- a\n\n| k | v |\n|:-:|--|\n| 1 | 2 |\n\n> said\n"
    page = Page(str(markdown_html(text)))
    tags = [tag for tag, _ in page.elements]
    assert tags[0] == "p" and page.elements[0][1] == {"class": "heading"}, "not a heading of the page's"
    for tag in ("strong", "em", "s", "code", "ol", "ul", "table", "th", "td", "blockquote"):
        assert tag in tags
    assert ("ol", {"start": "3"}) in page.elements and "x < y" in page.text
    assert ("th", {"style": "text-align:center"}) in page.elements
    assert markdown_html("") == "" and "<pre>" in markdown_html("```python\nx = 1\n")


def test_the_document_stands_apart_from_what_is_asked(tmp_path):
    document = "Chapter one.\n\nIt rained.\n\nIt snowed."
    firsts = answers(2, "First", question=f"{document}\n\nWhat fell?", answer="**Rain** and snow.\n\n- both")
    seconds = answers(2, "Second", question=f"{document}\n\nWhat fell?")
    pairs, _ = pair_answers(firsts, seconds, NAMES)
    page, _ = write_sheet(pairs, str(tmp_path / "sheet.html"), NAMES)
    found = Page(page.read_text())
    shown = [x for x in found.all("div") if x.get("class") == "document"]
    assert len(shown) == 1 and shown[0]["role"] == "region" and shown[0]["tabindex"] == "0", "of one of the two"
    assert (
        document in found.text
        and "What fell?" in found.text
        and "**" not in found.text
        and "Question 1?" in found.text
    )
    assert len(found.all("strong")) == 1 + 1, "and that of the note for browsers without scripts"


def test_settings_out_of_range():
    for settings, message in (
        ({"output": "sheet.txt"}, "ends in .html"),
        ({"names": ["a", "a"]}, "two different names"),
        ({"names": ["a"]}, "two different names"),
        ({"limit": 0}, "--limit is a number of questions"),
    ):
        with pytest.raises(ValueError, match=message):
            HumanSheetArguments(**{"first": "a", "second": "b", "output": "s.html"} | settings)


# The tally


@pytest.mark.parametrize(
    ("votes", "expected"),
    [
        (["win"], "win"),
        (["win", "win", "loss"], "win"),
        (["tie", "tie", "loss"], "tie"),
        (["win", "loss"], "tie"),
        (["win", "tie"], "tie"),
        (["win", "tie", "loss"], "tie"),
        (["loss", "loss", "tie", "win"], "loss"),
    ],
)
def test_the_majority(votes, expected):
    assert majority(votes) == majority(votes[::-1]) == expected


def test_votes_by_hand(sheet, tmp_path):
    files = [
        vote(sheet, tmp_path, "ann", {"q0": "gateau", "q1": "gateau", "q2": "tie", "q3": "full"}),
        vote(sheet, tmp_path, "ben", {"q0": "gateau", "q1": "full", "q2": "tie", "q3": "full"}),
        vote(sheet, tmp_path, "eve", {"q0": "gateau", "q1": "tie", "q2": "gateau"}),
    ]
    key = read_key(sheet)
    result = tally(key, read_votes(key, files))
    outcomes = {row["id"]: row["outcome"] for row in result.rows}
    assert outcomes == {"q0": "win", "q1": "tie", "q2": "tie", "q3": "loss"}
    assert [result.metrics[name] for name in ("win", "tie", "loss")] == [0.25, 0.5, 0.25]
    # Pairs of votes that are alike: q0 3 of 3, q1 0 of 3, q2 1 of 3, q3 1 of 1.
    assert result.metrics["agreement"] == pytest.approx(5 / 10)
    low, high = result.settings["intervals"]["win"]
    assert (low, high) == share_interval(1, 4) and result.settings["num_rated_by_all"] == 3
    text = tally_text(result)
    assert "| gateau is better | 25.0% |" in text and "4 questions, 3 raters: ann, ben, eve." in text


def test_the_interval_is_that_of_a_share():
    # Brown, Cai and DasGupta (2001): where the share is p, the z of what was seen is 1.96 at both ends.
    for number, total in ((25, 100), (1, 7), (399, 400)):
        for p in share_interval(number, total):
            assert abs(number / total - p) / (p * (1 - p) / total) ** 0.5 == pytest.approx(1.959964, abs=1e-5)
    # Of 4 of 4, by hand: the lower end solves (1 - p) = z sqrt(p (1 - p) / 4), p = 1 / (1 + z^2 / 4).
    assert share_interval(4, 4) == pytest.approx((1 / (1 + 1.959964**2 / 4), 1), abs=1e-6)
    assert share_interval(0, 4) == pytest.approx((0, 1 - 1 / (1 + 1.959964**2 / 4)), abs=1e-6)


def test_the_intervals_hold_what_they_promise():
    """Of 30 questions of which each is won with probability 0.9, some 95 of 100 intervals hold 0.9; a percentile
    bootstrap's, which is [1, 1] where all are won, do not."""
    wins = np.random.default_rng(0).binomial(30, 0.9, 4000)
    held = np.mean([low <= 0.9 <= high for low, high in (share_interval(int(n), 30) for n in wins)])
    assert 0.93 < held < 0.98


def test_kappa_of_fleiss():
    # By hand: P = (1 + 1/3 + 1/3) / 3 and Pe = (5/9)^2 + (3/9)^2 + (1/9)^2.
    cast = [["win"] * 3, ["win", "win", "loss"], ["loss", "loss", "tie"]]
    observed, chance = (1 + 1 / 3 + 1 / 3) / 3, (25 + 9 + 1) / 81
    assert fleiss_kappa(cast) == pytest.approx((observed - chance) / (1 - chance))
    assert fleiss_kappa([["win"] * 3, ["loss"] * 3]) == 1
    assert fleiss_kappa([["win"] * 3, ["win"] * 3]) is None
    assert fleiss_kappa([["win"]]) is None and fleiss_kappa([]) is None
    assert pair_agreement([["win", "win"], ["win", "loss"]]) == 0.5 and pair_agreement([["win"]]) is None


@pytest.mark.parametrize("seed", range(5))
def test_agreement_against_a_slow_reference(seed):
    rng = np.random.default_rng(seed)
    cast = [[OUTCOMES[i] for i in rng.choice(3, 4, p=[0.5, 0.2, 0.3])] for _ in range(25)]
    alike = [np.mean([a == b for i, a in enumerate(x) for j, b in enumerate(x) if i != j]) for x in cast]
    everything = [vote for votes in cast for vote in votes]
    chance = np.mean([a == b for a in everything for b in everything])  # two votes of any question, with replacement
    assert fleiss_kappa(cast) == pytest.approx((np.mean(alike) - chance) / (1 - chance))
    assert pair_agreement(cast) == pytest.approx(np.mean(alike))


def test_questions_without_a_vote_are_not_counted(sheet, tmp_path):
    key = read_key(sheet)
    result = tally(key, read_votes(key, [vote(sheet, tmp_path, "ann", {"q0": "gateau"})]))
    assert result.metrics["win"] == 1 and result.settings["num_failed"] == 3
    assert "3 questions have no vote and are not counted" in tally_text(result)
    assert [row["score"] for row in result.rows].count(None) == 3


@pytest.mark.parametrize(
    ("wanted", "changes", "message"),
    [
        ({"q9": "left"}, {}, "Line 2 of .* names a question 'q9', which is not on the sheet"),
        ({"q0": "better"}, {}, "has the choice 'better'"),
        ({"q0": "left"}, {"sheet": "other"}, "is of another sheet, 'other'"),
        ({"q0": "left", "q1": "left"}, {"id": "q0"}, "Line 3 of .* votes on question 'q0' a second time"),
        ({"q0": "left"}, {"rater": ""}, "votes of 1 raters"),
        ({}, {}, "must have the columns sheet, rater, id, choice, and votes"),
    ],
)
def test_votes_that_cannot_be_counted(sheet, tmp_path, wanted, changes, message):
    with pytest.raises(ValueError, match=message):
        read_votes(read_key(sheet), [vote(sheet, tmp_path, "ann", wanted, **changes)])


def test_a_rater_votes_once(sheet, tmp_path):
    files = [vote(sheet, tmp_path, "ann", {"q0": "gateau"}), vote(sheet, tmp_path, "ben", {"q0": "full"}, rater="ann")]
    with pytest.raises(ValueError, match="ben.csv: 'ann' has voted in another file already"):
        read_votes(read_key(sheet), files)


@pytest.mark.parametrize(
    "text", ["", "{}", "[]", '{"sheet": "a", "names": ["a", "b"], "order": {"q": {"left": "c"}}}']
)
def test_a_key_that_is_none(tmp_path, text):
    (tmp_path / "key.json").write_text(text)
    with pytest.raises(ValueError, match="is no key of a sheet"):
        read_key(str(tmp_path / "key.json"))


def test_a_file_that_is_no_csv(sheet, tmp_path):
    (tmp_path / "x.csv").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match="is no CSV that the page saved"):
        read_votes(read_key(sheet), [str(tmp_path / "x.csv")])


def test_both_commands(tmp_path, capsys):
    first, second = lines(tmp_path, "a.jsonl", answers(4, "First")), lines(tmp_path, "b.jsonl", answers(4, "Second"))
    page = str(tmp_path / "sheet.html")
    assert main(["human-sheet", "--first", first, "--second", second, "--names", *NAMES, "-o", page]) == 0
    assert "4 questions: give it to the raters" in capsys.readouterr().out
    key = tmp_path / "sheet.key.json"
    files = [vote(key, tmp_path, name, {f"q{n}": "gateau" for n in range(4)}) for name in ("ann", "ben")]
    assert main(["human-tally", "--key", str(key), "--votes", *files, "-o", str(tmp_path / "out")]) == 0
    assert "| gateau is better | 100.0% | 51.0% to 100.0% |" in capsys.readouterr().out
    assert load_result(tmp_path / "out", "human").metrics["win"] == 1
    assert main(["human-tally", "--key", str(key), "--votes", *files, files[0]]) == 2
    assert "'ann' has voted in another file already" in capsys.readouterr().err


def test_the_key_of_a_page_that_raters_may_have_stays(tmp_path, capsys):
    first, second = lines(tmp_path, "a.jsonl", answers(4, "First")), lines(tmp_path, "b.jsonl", answers(4, "Second"))
    again = ["human-sheet", "--first", first, "--second", second, "-o", str(tmp_path / "sheet.html")]
    assert main(again) == 0 and main([*again, "--title", "The same page"]) == 0
    before = {name: (tmp_path / name).read_text() for name in ("sheet.html", "sheet.key.json")}
    assert main([*again, "--seed", "1"]) == 2
    assert "is the key of another page" in capsys.readouterr().err
    assert {name: (tmp_path / name).read_text() for name in before} == before


def test_answers_that_are_no_text(tmp_path, capsys):
    (tmp_path / "a.parquet").write_bytes(b"PAR1\xff\xfe")
    second = lines(tmp_path, "b.jsonl", answers(4, "Second"))
    page = str(tmp_path / "sheet.html")
    assert main(["human-sheet", "--first", str(tmp_path / "a.parquet"), "--second", second, "-o", page]) == 2
    assert re.search(r"a.parquet is no text in UTF-8 .*give JSON lines", capsys.readouterr().err)


# What a rater does, in a browser: first visit chooses and saves, second finds what was kept.
VISIT = """<script nonce="%s">
const saved = [];
const Whole = Blob;  // read at once: the browser may write the page down before a blob's text() comes
window.Blob = class extends Whole { constructor(parts, about) { super(parts, about); this.whole = parts.join(""); } };
URL.createObjectURL = (blob) => { saved.push(blob.whole); return "#"; };
HTMLAnchorElement.prototype.click = () => {};
const choose = (place, value) => document.querySelectorAll("article")[place].querySelector(`[value=${value}]`).click();
document.getElementById("save").click();
const refused = document.getElementById("told").textContent;
const rater = document.getElementById("rater");
rater.value = 'Ann "the" B, Ü';
rater.dispatchEvent(new Event("change", { bubbles: true }));
choose(0, "left"); choose(1, "right"); choose(1, "tie");
document.getElementById("save").click();
const told = document.createElement("output");
const kept = Object.values(JSON.parse(Object.values(localStorage)[0]).choices);
const progress = document.getElementById("progress").textContent;
told.textContent = JSON.stringify({ refused, text: saved[0], kept, progress });
document.body.append(told);
</script></body>"""


AGAIN = """<script nonce="%s">
const told = document.createElement("output");
const checked = [...document.querySelectorAll("input:checked")].map((input) => input.value);
window.confirm = () => false;
document.getElementById("anew").click();
const refused = document.querySelectorAll("input:checked").length;
window.confirm = () => true;
const name = document.getElementById("rater").value;
document.getElementById("anew").click();
const left = [document.querySelectorAll("input:checked").length, document.getElementById("rater").value];
told.textContent = JSON.stringify({ checked, rater: name, refused, left, kept: JSON.parse(Object.values(localStorage)[0]) });
document.body.append(told);
</script></body>"""


def told(page, folder) -> dict:
    """What a page's script left in its last element; the page says nothing on the console and asks for nothing."""
    elements, console, asked = browse(page, folder)
    assert console == [] and asked == []
    return json.loads(html.unescape(re.search(r"<output>(.*)</output>", elements, re.DOTALL).group(1)))


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("chromium"), reason="needs the browser chromium")
def test_a_rater_in_a_browser(tmp_path):
    firsts = answers(3, "First", id=HOSTILE, question=HOSTILE, answer=HOSTILE)
    pairs, _ = pair_answers(firsts, answers(3, "Second", id=HOSTILE, question=HOSTILE), NAMES)
    page, key_path = write_sheet(pairs, str(tmp_path / "sheet.html"), NAMES)
    key = read_key(str(key_path))
    text = page.read_text()
    page.write_text(text.replace("</body>", VISIT % key["sheet"]))
    found = told(page, tmp_path)
    assert found["refused"] == "Please give your name first." and found["progress"] == "2 of 3 chosen"
    assert found["kept"] == ["left", "tie"]
    (tmp_path / "votes.csv").write_text(found["text"], newline="")
    votes = read_votes(key, [str(tmp_path / "votes.csv")])
    assert votes == {
        'Ann "the" B, Ü': {pairs[0].id: "win" if pairs[0].left == "gateau" else "loss", pairs[1].id: "tie"}
    }
    page.write_text(text.replace("</body>", AGAIN % key["sheet"]))
    found = told(page, tmp_path)
    assert found["checked"] == ["left", "tie"] and found["rater"] == 'Ann "the" B, Ü'
    # The next rater at the same browser begins with nothing, where the one before did not refuse.
    assert found["refused"] == 2 and found["left"] == [0, ""] and found["kept"] == {"rater": "", "choices": {}}


# What the keys do, and where things are: told for the size of the window that the page is opened in.
KEYBOARD = """<script nonce="%s">
const articles = [...document.querySelectorAll("article")];
const box = (element) => { const { left, right, top, bottom } = element.getBoundingClientRect(); return { left, right, top, bottom }; };
const press = (key, target = document.body, more = {}) => target.dispatchEvent(new KeyboardEvent("keydown", { key, bubbles: true, cancelable: true, ...more }));
const current = () => articles.map((x) => x.getBoundingClientRect().height > 0).indexOf(true);
const shown = () => articles.filter((x) => x.getBoundingClientRect().height > 0).length;
const chosen = () => articles.map((x) => x.querySelector("input:checked")?.value ?? null);
const seen = { start: current(), shown: shown() };
const last = articles.length - 1;
press("1"); press("n"); press("3"); press("n"); press("2"); press("n"); press("n");
seen.end = current(); seen.chosen = chosen();
press("p"); seen.back = current();
press("1", document.getElementById("rater")); press("2", document.body, { ctrlKey: true }); press("x");
seen.same = chosen();
articles[current()].querySelector(".previous").click(); seen.clicked = current();
const at = articles.findIndex((x) => x.matches(".two"));
while (current() > at) press("p");
while (current() < at) press("n");
const two = articles[at];
seen.document = box(two.querySelector(".document")); seen.beside = box(two.querySelector(".beside"));
seen.choose = box(two.querySelector(".choose")); seen.buttons = [...two.querySelectorAll(".choose label")].map(box);
seen.window = [innerWidth, innerHeight]; seen.wide = document.documentElement.scrollWidth;
seen.progress = document.getElementById("bar").value;
seen.colours = [getComputedStyle(document.body).backgroundColor, getComputedStyle(document.body).color];
const told = document.createElement("output");
told.textContent = JSON.stringify(seen);
document.body.append(told);
</script></body>"""


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("chromium"), reason="needs the browser chromium")
@pytest.mark.parametrize("size", [(1200, 800), (500, 800)])
def test_keys_panes_and_the_bar_in_reach(size, tmp_path):
    """The choice is in sight however long the document and the answers are; panes are side by side where there is room."""
    harm = "\n\n".join(HARMFUL)
    document = "\n\n".join("It rained on the old mill, and nobody asked who owned it. " * 20 for _ in range(40))
    asked = {"question": f"{document}\n\nWho owned it?"}
    firsts = answers(3, "First", answer=harm + " word" * 3000, **asked)
    pairs, _ = pair_answers(firsts, answers(3, "Second", answer=HOSTILE + " word" * 3000, **asked), NAMES)
    page, key_path = write_sheet(pairs, str(tmp_path / "sheet.html"), NAMES)
    page.write_text(page.read_text().replace("</body>", KEYBOARD % read_key(str(key_path))["sheet"]))
    elements, console, requests = browse(page, tmp_path, size)
    assert console == [] and requests == [], "nothing of an answer is run or loaded"
    seen = json.loads(html.unescape(re.search(r"<output>(.*)</output>", elements, re.DOTALL).group(1)))
    assert (seen["start"], seen["shown"], seen["end"], seen["back"], seen["clicked"]) == (0, 1, 2, 1, 0)
    assert seen["chosen"] == seen["same"] == ["left", "right", "tie"] and seen["progress"] == 3
    width, height = seen["window"]
    assert seen["wide"] <= width, "nothing makes the page scroll sideways"
    for box in (seen["choose"], *seen["buttons"]):
        assert 0 <= box["left"] <= box["right"] <= width and 0 <= box["top"] < box["bottom"] <= height + 1
    if width >= 1024:
        assert seen["document"]["right"] <= seen["beside"]["left"] and seen["document"]["top"] == seen["beside"]["top"]
    else:
        assert seen["document"]["bottom"] <= seen["beside"]["top"]
