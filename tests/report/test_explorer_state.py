"""What a person does on the explorer's page: decisions and their files, notes, the address, the fields."""

import re

import numpy as np
import pytest

from hf_gateau import rank, select
from hf_gateau.cli import main
from hf_gateau.ranking.decisions import read_decisions
from hf_gateau.ranking.order import ranking_record
from hf_gateau.report.explorer import write_explorer
from tests.browser import until
from tests.ranking.test_bounds import screened
from tests.report.test_explorer import lines, text_of, with_texts


pytestmark = pytest.mark.filterwarnings("ignore::hf_gateau.ranking.order.DegenerateRankingWarning")


def keyed(num_rows=30, **columns):
    """Ranked rows whose keys are c:0000, c:0001, ..."""
    return rank(with_texts(num_rows, gateau_key=[f"c:{i:04}" for i in range(num_rows)], **columns))


def decide(tab, rows, **what):
    tab.evaluate("([rows, what]) => { gateau.decisions.decide(rows, what); }", [rows, what])


def decided(tab):
    """gateau_key -> decision and note, as they are exported."""
    cells = [line.split(",", 2) for line in tab.evaluate("gateau.decisions.csv()").splitlines()[1:]]
    return {key: (decision, note) for key, decision, note in cells}


def address(tab):
    return tab.evaluate("location.hash.slice(1)")


def goes_to(tab, hash):
    """As by hand, and at once: the browser's own `hashchange` comes later."""
    tab.evaluate(
        "hash => { history.pushState(null, '', `#${hash}`); dispatchEvent(new HashChangeEvent('hashchange')); }", hash
    )


def test_two_tabs_decide_on_the_same_rows(open_page, tmp_path):
    page = write_explorer(keyed(), tmp_path / "explorer")
    one = open_page(page)
    other = open_page(page, beside=one)
    decide(one, [3], decision="keep")
    until(other, "document.querySelector('#decisions').textContent.startsWith('1 keep')")
    decide(other, [4], decision="drop", note="why")
    until(one, "document.querySelector('#decisions').textContent === '1 keep, 1 drop, 1 notes'")
    # Nor is anything lost where a tab is told too late
    other.evaluate("addEventListener('storage', event => event.stopImmediatePropagation(), true)")
    one.evaluate("""() => {
        const place = Object.keys(localStorage)[0], kept = JSON.parse(localStorage.getItem(place));
        localStorage.setItem(place, JSON.stringify([...kept, ["0007", { key: "c:0007", decision: "keep", note: "" }]]));
        gateau.decisions.decide([8], { decision: "drop" });
    }""")
    decide(other, [9], decision="keep")
    want = {"c:0003": ("keep", ""), "c:0004": ("drop", "why"), "c:0007": ("keep", "")}
    want |= {"c:0008": ("drop", ""), "c:0009": ("keep", "")}
    assert decided(other) == want == decided(open_page(page, beside=one))


@pytest.mark.slow
def test_what_is_no_decision_in_the_storage_is_passed_over(open_page, tmp_path):
    page = write_explorer(keyed(), tmp_path / "explorer")
    tab = open_page(page)
    decide(tab, [3], decision="keep")
    good = '["0005",{"key":"c:0005","decision":"drop","note":"n"}]'
    bad = [
        *('["0001",{"decision":"bogus","key":"c:0001"}]', '["x",null]', '[1,{"key":"c:1","decision":"keep"}]'),
        *('["0002",{"decision":"keep"}]', "null", "7", '["0003",{"key":"c:0004","decision":"keep"}]'),
        *('["0006",{"key":"c:0006","note":3}]', '["0007",{"key":"c:0007","decision":"","note":""}]'),
    ]
    for text in ("no JSON", '{"a":1}', "null", f"[{','.join([*bad, good])}]"):
        tab.evaluate("text => localStorage.setItem(Object.keys(localStorage)[0], text)", text)
        other = open_page(page, beside=tab)
        assert decided(other) == ({"c:0005": ("drop", "n")} if good in text else {}), text
        assert not other.locator("#not-kept").is_visible()
        other.close()


def test_a_note_is_of_the_row_that_is_open(opened):
    tab = opened(keyed(), "row=2")
    decide(tab, [2], note="of two")
    tab.evaluate("gateau.model.set({ row: 5, segment: null }, { push: true })")
    tab.keyboard.press("n")
    tab.keyboard.type("of five")
    tab.go_back()
    until(tab, "gateau.model.state.row === 2")
    assert tab.input_value("#row-note") == "of two" and tab.evaluate("document.activeElement.id") == "row-note"
    tab.keyboard.press("End")
    tab.keyboard.type("!")
    assert decided(tab) == {"c:0002": ("", "of two!"), "c:0005": ("", "of five")}
    tab.go_forward()
    until(tab, "gateau.model.state.row === 5")
    assert tab.input_value("#row-note") == "of five"


def test_undo_takes_back_what_it_stands_beside_and_no_more(opened):
    tab = opened(keyed())
    decide(tab, [1], decision="drop", note="before")
    tab.click("summary:has-text('Decide on all')")
    tab.click("#all-keep")
    assert text_of(tab, "#decisions") == "30 keep, 0 drop, 1 notes"
    decide(tab, [3], decision="drop")
    decide(tab, [4], note="after")
    decide(tab, [5], decision="")
    tab.click("#said button")
    assert decided(tab) == {"c:0001": ("drop", "before"), "c:0003": ("drop", ""), "c:0004": ("", "after")}
    assert text_of(tab, "#said") == ""


def test_copies_of_a_row_are_counted_as_rows(opened):
    tab = opened(rank(with_texts(20, gateau_key=[f"c:{i // 2:04}" for i in range(20)])))
    tab.focus("#grid")
    tab.keyboard.press("k")
    assert (
        text_of(tab, "#decisions")
        == "2 keep, 0 drop, 0 notes"
        == f"{lines(tab, 'decided').count('✓ keep')} keep, 0 drop, 0 notes"
    )


HEADER = "gateau_key,decision,note\n"
FILES = {
    "plain": f"{HEADER}c:0001,keep,x\nc:0002,drop,\n",
    "byte order mark, other ends of lines": f"\ufeff{HEADER}c:0001,keep,x\nc:0002,drop,\n".replace("\n", "\r\n"),
    "oldest ends of lines": f"{HEADER}c:0001,keep,x\n\nc:0002,drop,\n".replace("\n", "\r"),
    "semicolons": "gateau_key;decision;note\nc:0001;keep;a, b\n",
    "bars": "gateau_key|decision\nc:0001|keep\n",
    "tabs": "gateau_key\tdecision\tnote\nc:0001\tkeep\tx\n",
    "tabs, .tsv": "gateau_key\tdecision\tnote,x\nc:0001\tkeep\tx\n",
    "commas, .tsv": f"{HEADER}c:0001,keep,x\n",
    "UTF-16": "gateau_key\tdecision\tnote\nc:0001\tkeep\tü😀\n".encode("utf-16"),
    "UTF-16, the other": b"\xfe\xff" + f"{HEADER}c:0001,keep,\u0a0d\n".encode("utf-16-be"),
    "UTF-16 without a mark": f"{HEADER}c:0001,keep,x\n".encode("utf-16-le"),
    "half a character": b"\xff\xfe" + HEADER.encode("utf-16-le") + b"c",
    "another encoding": f"{HEADER}c:0001,keep,x\nc:0002,keep,für\n".encode("latin-1"),
    "a cut character": f"{HEADER}c:0001,keep,ü".encode()[:-1],
    "capitals and blanks": f"{HEADER} c:0001 , Keep ,x\nc:0002, DROP ,\n",
    "blanks in the header": "gateau_key, decision, note\nc:0001,keep,x\n",
    "both": f"{HEADER}c:0001,keep,x\n\nc:0002,keep,\nc:0001,drop,\n",
    "both, of two measurings": f"{HEADER}c:0001,keep,x\ne:0001,drop,\n",
    "twice the same": f"{HEADER}c:0001,keep,x\ne:0001,keep,\n",
    "a note alone, after a decision": f"{HEADER}c:0001,keep,x\nc:0001,,more\n",
    "a decision after a note": f"{HEADER}c:0001,,x\nc:0001,drop,\n",
    "no key": f"{HEADER}c:0001,keep,\n,keep,x\n",
    "a note without a key": f"{HEADER}c:0001,keep,\n ,,x\n",
    "nothing in a line": f"{HEADER},,\n  \nc:0001,keep,\n",
    "unknown decision": f"{HEADER}c:0001,keep,\nc:0002,maybe,\n",
    "other columns": "id,gateau_key,decision,note,why\n1,c:0001,keep,n,w\n2,c:0002,,,w\n",
    "more cells": f"{HEADER}c:0001,keep,a,b,c\n",
    "fewer cells": f"{HEADER}c:0001\nc:0002,keep\n",
    "no note": "gateau_key,decision\nc:0001,keep\n",
    "quoted": '"gateau_key","decision",note\n"c:0001","keep","a ""b"", \n\r\n c"\nc:0002,x,\n',
    "quoted, good": '"gateau_key";"decision";"a,b"\n"c:0001";"keep";""\n'.replace(";", ","),
    "a mark in a cell": f'{HEADER}c:0001,keep,5" or 6"\nc:0002,drop, "x"\n',
    "empty": "",
    "blank": "\n\n",
    "the header alone": HEADER,
    "blank lines first": f"\n\n{HEADER}c:0001,keep,\nc:0002,?,\n",
    "a column twice": "gateau_key,decision,decision,note\nc:0001,keep,drop,\n",
    "a needless column twice": "gateau_key,note,note,decision\nc:0001,,,drop\n",
    "no decision": "gateau_key,note\nc:0001,x\n",
    "no end of the last line": f"{HEADER}c:0001,keep,\nc:0002,drop",
    "rows of other data": f"{HEADER}c:zzzz,keep,x\nc:0001,keep,\n",
    "keys of many colons": f"{HEADER}a:b:0001,keep,x\n0002,drop,x\n",
    "an open quotation mark": f'{HEADER}c:0001,keep,"never closed\nc:0002,drop,x\n',
    "text after a quotation mark": f'{HEADER}c:0001,keep,\n"c:0002"x,keep,y\n',
}


def taken(tab, data, name="d.csv"):
    """What the page says of a file, and what it has decided then."""
    tab.evaluate("document.querySelector('#said').replaceChildren()")
    tab.set_input_files("#import", {"name": name, "mimeType": "text/csv", "buffer": data})
    until(tab, "document.querySelector('#said').textContent !== ''")
    return text_of(tab, "#said"), tab.evaluate("gateau.decisions.csv()")


def lines_of(message):
    return re.findall(r"[Ll]ine (\d+)", message)


def test_files_of_decisions_say_what_they_say_to_select(opened, tmp_path):
    """The same rows to keep and to drop, or a refusal with the same line."""
    tab, num_refused = opened(keyed()), 0
    for case, text in FILES.items():
        data, name = text if isinstance(text, bytes) else text.encode(), "d.tsv" if ".tsv" in case else "d.csv"
        (tmp_path / name).write_bytes(data)
        said, csv = taken(tab, data, name)
        try:
            want = read_decisions(tmp_path / name)
        except ValueError as error:
            told = str(error).replace(str(tmp_path / name), "")
            assert "nothing was taken" in said and csv == HEADER.replace("\n", "\r\n"), case
            assert lines_of(said) == lines_of(told), (case, said, told)
            num_refused += 1
            continue
        assert "read" in said and "nothing was taken" not in said, (case, said)
        tab.click("#said button")  # undo
        (tmp_path / "out.csv").write_text(csv, encoding="utf-8", newline="")
        found = read_decisions(tmp_path / "out.csv")
        assert (found.keep, found.drop) == (want.keep, want.drop), case
    assert 15 < num_refused < len(FILES) - 15
    assert "is no .csv or .tsv file" in taken(tab, HEADER.encode(), "d.txt")[0]


def test_a_file_leaves_what_it_says_nothing_of_and_tells_of_other_rows(opened):
    tab = opened(keyed())
    decide(tab, [1, 2], decision="keep", note="mine")
    said, _ = taken(tab, f"{HEADER}c:0001,,\nc:0002,drop,\nc:zzzz,keep,\nc:0003,,theirs\n".encode())
    assert "on 3 rows read, 1 of them not here." in said
    want = {"c:0001": ("keep", "mine"), "c:0002": ("drop", "mine"), "c:zzzz": ("keep", ""), "c:0003": ("", "theirs")}
    assert decided(tab) == want and text_of(tab, "#decisions") == "1 keep, 1 drop, 3 notes; 1 about no row here"
    tab.click("#said button")
    assert decided(tab) == {"c:0001": ("keep", "mine"), "c:0002": ("keep", "mine")}
    decide(tab, [1, 2], decision="", note="")
    taken(tab, f"{HEADER}c:zzzz,keep,\n".encode())
    assert "--decisions" not in tab.evaluate("gateau.main.command()") and tab.locator("#export").is_enabled()
    decide(tab, [1], decision="keep")
    assert "--decisions decisions.csv" in tab.evaluate("gateau.main.command()")


def test_the_skip_link_and_g_lead_to_the_rows_and_change_nothing(opened):
    tab = opened(keyed(), "q=mill&alpha=0.3&strata=source")
    before = address(tab)
    for press in (lambda: (tab.focus(".skip"), tab.keyboard.press("Enter")), lambda: tab.keyboard.press("g")):
        tab.evaluate("document.activeElement.blur()")
        press()
        assert address(tab) == before and tab.evaluate("document.activeElement.id") == "grid"
        tab.click("[data-view=about]")
        press()
        assert address(tab) == before and tab.evaluate("document.activeElement.id") == "grid"


SENSELESS = [
    *(
        "values.own:source=zzz",
        "values.own:source=99",
        "values.own:source=",
        "values.own:source=1~x",
        "values.score=1",
    ),
    *(
        "values.own:source=-1",
        "values.own:source=0.5",
        "ranges.own:source=1~2",
        "ranges.score=abc~def",
        "ranges.score=1",
    ),
    *("ranges.score=", "ranges.score=1~2~3", "ranges.nothing=1~2", "ranges.__proto__=1~2", "values.__proto__=1"),
    *("lasso=need~cas~a~b~c~d~e~f", "lasso=need~cas~0~0~1~1~2~2~3", "lasso=own:source~cas~0~0~1~1~2~2", "lasso=a"),
    *(
        "amount=5",
        "amount=0",
        "amount=-1",
        "amount=",
        "amount=x",
        "amount=1e99&by=top_k",
        "amount=2.5&by=top_k",
        "by=top_k",
    ),
    *(
        "by=max_tokens&amount=0.5",
        "by=nothing&amount=7",
        "alpha=7",
        "alpha=0x1",
        "alpha=NaN",
        "alpha=",
        "x=own:source",
    ),
    *(
        "hmp=none&cas=none",
        "row=99999",
        "row=-1",
        "mode=none",
        "strata=nope",
        "sort=constructor",
        "x=__proto__",
        "grid",
    ),
]


def test_senseless_addresses_are_passed_over_and_good_ones_are_not(opened):
    tab = opened(keyed())
    beginning = tab.evaluate("JSON.stringify(gateau.model.state)")
    good = [
        "values.own:source=0~1",
        "ranges.score=~0.5",
        "ranges.score=~",
        "lasso=need~cas~0~0~1e-3~1~2~2",
        "amount=1",
    ]
    good += [
        "by=top_k&amount=7",
        "by=max_tokens&amount=1000",
        "hmp=none",
        "alpha=0",
        "row=3",
        "q=%00",
        "strata=source",
    ]
    script = """addresses => addresses.map(hash => {
        history.replaceState(null, "", `#${hash}`);
        dispatchEvent(new HashChangeEvent("hashchange"));
        const state = JSON.stringify(gateau.model.state);
        gateau.model.set({});
        return [state, location.hash];
    })"""
    for hash, (state, after) in zip(SENSELESS + good, tab.evaluate(script, SENSELESS + good), strict=True):
        assert (state == beginning) == (hash in SENSELESS) == (after in ("", "#")), hash


@pytest.mark.slow
def test_a_link_keeps_filters_by_columns_of_any_name(opened):
    names = ["a~b.c", "a b", "a-b", "%7E", "x=1&y%"]
    columns = {name: [float(i % 3) * 1.5 + j for i in range(30)] for j, name in enumerate(names)}
    tab = opened(keyed(**columns))
    for x, y in zip(names, names[1:] + names[:1], strict=True):
        lasso = {"x": f"own:{x}", "y": f"own:{y}", "points": [-1, -1, 9, -1, 9, 9, -1, 9]}
        changes = {"lasso": lasso, "ranges": {f"own:{x}": [1, None]}, "x": f"own:{x}", "y": f"own:{y}"}
        tab.evaluate("x => { x.ranges[Object.keys(x.ranges)[0]][1] = Infinity; gateau.model.set(x); }", changes)
        state, hash = tab.evaluate("JSON.stringify(gateau.model.state)"), address(tab)
        goes_to(tab, "")
        goes_to(tab, hash)
        assert tab.evaluate("JSON.stringify(gateau.model.state)") == state and "lasso" in hash, x
    ids = tab.locator("[id]").evaluate_all("x => x.map(element => element.id)")
    assert len(ids) == len(set(ids)) and len([x for x in ids if x.startswith("chart-own")]) == len(names)


@pytest.mark.slow
def test_a_field_shows_what_is_used(opened):
    tab = opened(keyed())
    fields = {"#amount": ("50", "0", "", "-1", "1.01"), "#alpha-number": ("7", "-0.1", "")}
    for field, wrong in fields.items():
        used = tab.input_value(field)
        for text in wrong:
            tab.fill(field, text)
            assert tab.get_attribute(field, "aria-invalid") == "true" and address(tab) == "", text
            tab.press(field, "Enter") if text else tab.focus("#grid")
            assert tab.input_value(field) == used and tab.get_attribute(field, "aria-invalid") != "true", text
    tab.fill("#amount", "0.20")
    assert tab.input_value("#amount") == "0.20" and address(tab) == "amount=0.2"
    for by in ("top_k", "max_tokens"):
        tab.select_option("#by", by)
        tab.fill("#amount", "12")
        for text in ("2.5", "0", "", "1e99"):
            tab.fill("#amount", text)
            assert "amount=12" in address(tab), text
            tab.focus("#grid")
            assert tab.input_value("#amount") == "12", text


def test_fields_that_are_written_in_follow_the_address(opened):
    tab = opened(keyed())
    tab.click("[data-view=scatter]")
    tab.fill("#search", "zzz")
    until(tab, "gateau.model.state.q === 'zzz'")
    for field, text in (("#alpha-number", "0.25"), ("#amount", "0.5"), ("#chart-need input >> nth=0", "0.01")):
        tab.fill(field, text)
        tab.press(field, "Enter")
        tab.evaluate(
            "gateau.model.set({ view: gateau.model.state.view === 'rows' ? 'about' : 'rows' }, { push: true })"
        )
        tab.evaluate("gateau.model.set({ alpha: 0.8, amount: 0.1, ranges: {} })")
        tab.focus(field)
        assert tab.input_value(field) != text, field
        tab.go_back()
        until(tab, f"document.activeElement.value === '{text}'")
    goes_to(tab, "")
    assert text_of(tab, "#left").startswith("30 of 30")
    values = [tab.input_value(x) for x in ("#search", "#alpha-number", "#amount", "#chart-need input >> nth=0")]
    assert values == ["", "0.8", "0.1", ""]


def test_a_command_that_would_be_refused_is_told(opened, tmp_path, capsys):
    """The page warns where `select` refuses, and nowhere else."""
    ds = keyed(**{"-dash": ["a", "b"] * 15})
    tab = opened(ds)
    ds.to_parquet(tmp_path / "ranked.parquet")
    decide(tab, [0, 1, 2], decision="drop")
    decide(tab, [3, 4], decision="keep")
    (tmp_path / "decisions.csv").write_text(tab.evaluate("gateau.decisions.csv()"), newline="")
    place = {"RANKED": str(tmp_path / "ranked.parquet"), "selected.parquet": str(tmp_path / "out.parquet")}
    place["decisions.csv"] = str(tmp_path / "decisions.csv")
    told = {
        "top_k": {27: "", 28: "27 rows that are left", 2: "", 1: "you keep"},
        "fraction": {0.03: "you keep", 0.1: ""},
    }
    for by, amounts in told.items():
        for amount, warning in amounts.items():
            tab.evaluate("x => gateau.model.set(x)", {"by": by, "amount": amount})
            command = [place.get(word, word) for word in tab.evaluate("gateau.main.command()").split()[1:]]
            assert tab.locator("#over").is_visible() == bool(warning) and warning in text_of(tab, "#over"), (
                by,
                amount,
            )
            assert main(command) == (2 if warning else 0), (command, capsys.readouterr())
    decide(tab, list(range(5)), decision="")
    tab.evaluate("gateau.model.set({ by: 'fraction', amount: 0.01 })")
    assert "No row is selected" in text_of(tab, "#over")
    tab.evaluate("gateau.model.set({ amount: 0.5, strata: '-dash' })")
    command = [place.get(word, word) for word in tab.evaluate("gateau.main.command()").split()[1:]]
    assert command[-1] == "--strata=-dash" and main(command) == 0
    tab = opened(rank(with_texts(), method="random", seed=7), "alpha=0.3")  # an order that `rank` is not told here
    assert tab.evaluate("gateau.main.command()").startswith("hf-gateau select RANKED")


def test_more_than_is_certain_of_screened_rows_is_told(opened, tmp_path):
    ds = rank(screened(keyed(200), 0.45))
    num_safe = ranking_record(ds)["screening"]["num_safe"]
    tab = opened(ds)
    for decided in ("", "drop"):  # what is dropped stands in the order all the same
        decide(tab, [int(np.argmin([x or 999 for x in ds["gateau_rank"]]))], decision=decided)
        (tmp_path / "decisions.csv").write_text(tab.evaluate("gateau.decisions.csv()"), newline="")
        for amount in (num_safe - 1, num_safe, num_safe + 1):
            tab.evaluate("x => gateau.model.set({ by: 'top_k', amount: x })", amount)
            settings = {"top_k": amount, "decisions": tmp_path / "decisions.csv" if decided else None}
            try:
                is_refused = not len(select(ds, **settings))
            except ValueError as error:
                is_refused = f"is certain of the best {num_safe} alone" in str(error)
            said = text_of(tab, "#over") if tab.locator("#over").is_visible() else ""
            assert (f"is certain of the best {num_safe} alone" in said) == is_refused, (decided, amount, said)
            assert is_refused == (amount + bool(decided) > num_safe), (decided, amount)


def test_keys_work_after_a_box_is_ticked_or_a_slider_moved(opened):
    tab = opened(keyed())
    tab.get_by_label("law").check()
    tab.keyboard.press("k")
    assert text_of(tab, "#decisions").startswith("1 keep, 0 drop")
    tab.focus("#alpha")
    tab.keyboard.press("ArrowLeft")
    tab.keyboard.press("d")  # on another row, if it is the first one now
    assert ", 1 drop" in text_of(tab, "#decisions")
    for field in ("#search", "#amount", "#mode"):
        before = text_of(tab, "#decisions")
        tab.focus(field)
        tab.keyboard.press("k")
        assert text_of(tab, "#decisions") == before, field


def test_the_row_before_one_that_has_left_the_table(opened):
    ds = keyed()
    tab = opened(ds, "decided=open")
    order = ds.sort("gateau_rank")["gateau_key"]
    tab.focus("#grid")
    for key in ("ArrowDown", "ArrowDown", "Enter", "k", ","):
        tab.keyboard.press(key)
    assert decided(tab) == {order[2]: ("keep", "")}
    assert tab.evaluate("gateau.model.heads.key[gateau.model.state.row]") == order[1]
    for key in ("k", "."):
        tab.keyboard.press(key)
    assert tab.evaluate("gateau.model.heads.key[gateau.model.state.row]") == order[3]
