"""Cards: other people's text in a README survives byte for byte, and no text of theirs does anything in ours."""

import json
import random
import re
from html.parser import HTMLParser

import pytest
import yaml
from huggingface_hub import DatasetCard, ModelCard
from huggingface_hub.utils import yaml_dump

from hf_gateau.hub.dataset_card import card_configs, dataset_card, measuring_rows
from hf_gateau.hub.push import public_measuring
from hf_gateau.hub.readme import BEGIN, END, FRONT_MATTER, KEYED, TAGS, merge_metadata, merge_readme, readme_metadata
from hf_gateau.hub.scored import ScoredRecord
from hf_gateau.markdown import MANY_CHARACTERS, escape, inline, is_repo_id, link, one_line, public_name, table
from hf_gateau.ranking.selection import SelectionRecord
from hf_gateau.training.model_card import ModelFacts, model_card


# Byte for byte: hand-written READMEs of random pieces, merged with a random sequence of pushes

FOREIGN = (
    'pretty_name: "A \\"quoted\\" name: #1"\n',
    "annotations_creators:\n- no-annotation   # a comment\n- found\n",
    "description: |\n  line one\n\n  # no comment\n  line: two\n",
    "extra: &x {a: 1, 'b': [2, 3]}\ncopy: *x\n",
    "'odd key': >-\n  folded\n  text\n",
    "nested:\n    deep:\n        deeper: yes\n    # inside\n    list: [a,\n      b]\n",
    "date: 2024-01-02\n",
    "? complex\n: value\n",
    "empty:\n",
    "nothing:   ~   \n",
    'unicode: "é \u2028 日本 \U0001f600"\n',
    "train-eval-index:\n- config: default\n  col_mapping: {text: text}\n",
    "single: 'it''s'\n",
)
BETWEEN = ("", "", "", "# a comment of mine\n", "\n", "   # indented\n\n")
HAND = {  # in the hand of the README's owner; no value is one that we write
    "license": ("license: mit  # chosen\n", "license: 'cc-by-4.0'\n", "license:\n- mit\n", "license:\n"),
    "library_name": ('library_name: "other"\n', "library_name: >-\n  a b\n"),
    "tags": ("tags: [mine, 'second']\n", "tags:\n  - mine\n\n  # why\n  - second\n", "tags: mine\n", "tags: []\n"),
    "datasets": ('datasets:\n- "hand/data"\n', "datasets: [hand/data,\n    hand/more]\n"),
    "configs": (
        "configs:\n- config_name: mine\n  data_files: mine/*.csv\n",
        "configs:\n- config_name: default\n  data_files: old.csv\n- {config_name: mine, data_files: a.csv}\n",
    ),
    "model-index": ("model-index:\n- name: mine\n  results: []\n",),
    "dataset_info": ("dataset_info:\n  features:\n  - name: text\n    dtype: string\n",),
}
BODIES = (
    "",
    "\n",
    "# Title\n\nText.\n",
    "no newline at the end",
    "\n```yaml\n---\nlicense: no\n---\n```\n\n---\n\n<details open><b>html</b></details>\n<!-- mine -->\n",
    "\nText\n---\n---\n\nlines of --- in it\n\n\n",
    "\r\n\r\n# mixed\n\ttabs \x0c and \u2028 and é\n",
    'The last push left `<!-- gateau:metadata {"tags": ["mine"], "license": "mit"} -->` here.\n',
)


def our_metadata(rng: random.Random) -> dict:
    """Metadata of one push: what may be absent is, at times."""
    metadata = {
        "license": rng.choice(["apache-2.0", "other", "llama3: 'yes' # no"]),
        "library_name": rng.choice(["transformers", "peft"]),
        "pipeline_tag": "text-generation",
        "dataset_info": rng.choice([None, [{"config_name": "foreign"}]]),
    }
    metadata = {name: value for name, value in metadata.items() if rng.random() < 0.6}
    configs = [{"config_name": name, "data_files": [{"split": "train", "path": f"{name}/*"}]} for name in ("default",)]
    configs += [{"config_name": f"top{i}", "data_files": []} for i in range(rng.randrange(3))]
    metadata["tags"] = rng.sample(["gateau", "long-context", "yes", "1.0", "a: b"], rng.randrange(1, 5))
    metadata["datasets"] = rng.sample(["org/one", "org/two", "org/three"], rng.randrange(1, 3))
    metadata["configs"] = configs
    metadata["model-index"] = [{"name": rng.choice(["m1", "m2"]), "results": [{"value": rng.random()}]}]
    names = list(metadata)
    rng.shuffle(names)
    return {name: metadata[name] for name in names}


def expected_value(name: str, there, value, ours):
    """The value of one key after a push, said the slow way; and what of it is ours, so that a later push may change it."""
    if name == "dataset_info":
        return value, None
    if not isinstance(value, list) and not isinstance(ours, list):
        return (value, value) if there is None or there == ours else (there, None)
    items = list(there) if isinstance(there, list) else [] if there is None else [there]
    value, ours = value or [], ours or []
    if name in KEYED:
        names = [entry[KEYED[name]] for entry in [*value, *ours]]
        return [entry for entry in items if entry[KEYED[name]] not in names] + value or None, value
    by_hand = [item for item in items if item not in ours]
    out = [item for item in items if item in by_hand or item in value]
    out += [item for item in value if item not in out]
    return (there if out == items else out or None), [item for item in value if item not in by_hand]


def expected_mapping(there: dict, metadata: dict, ours: dict) -> tuple[dict, dict]:
    out, now = dict(there), {}
    for name in {*metadata, *ours}:
        out[name], now[name] = expected_value(name, there.get(name), metadata.get(name), ours.get(name))
    out = {name: value for name, value in out.items() if value is not None or there.get(name, "") is None}
    return out, {name: value for name, value in now.items() if value}


def hand_written(rng: random.Random) -> tuple[list[tuple[str | None, str]], str, bool]:
    """(key or None, text) of every piece of the front matter, the body, and whether there are lines of `---` at all."""
    pieces = [(None, text) for text in rng.sample(FOREIGN, rng.randrange(len(FOREIGN)))]
    pieces += [(name, rng.choice(texts)) for name, texts in HAND.items() if rng.random() < 0.6]
    rng.shuffle(pieces)
    pieces = [piece for pair in pieces for piece in (pair, (None, rng.choice(BETWEEN)))]
    has_front = bool(pieces) and rng.random() < 0.9
    ending = rng.choice(["\n", "\n", "\r\n"])
    body = rng.choice(BODIES).replace("\r\n", "\n").replace("\n", ending)
    return [(key, text.replace("\n", ending)) for key, text in pieces if has_front], body, has_front


@pytest.mark.parametrize("seed", [x if x < 60 else pytest.param(x, marks=pytest.mark.slow) for x in range(200)])
def test_everything_outside_our_block_survives_every_push(seed):
    """Against the pieces that the README was put together from: each stays as it is unless its key's value changes."""
    rng = random.Random(seed)
    pieces, body, has_front = hand_written(rng)
    opening = rng.choice(["---\n", "---  \n", "\n---\r\n"]) if has_front else "---\n"
    closing = rng.choice(["---\n", "--- \r\n", "---"] if not body else ["---\n", "--- \r\n"]) if has_front else "---\n"
    readme = opening + "".join(text for _, text in pieces) + closing + body if has_front else body
    before, outside = {}, None
    for _ in range(3):
        metadata, block = our_metadata(rng), rng.choice(["Our text.", "## Ours\n\n---\n\n```\n---\n```", "x" * 50])
        there = yaml.safe_load("".join(text for _, text in pieces)) or {}
        wanted, ours_now = expected_mapping(there, metadata, before)
        merged = merge_readme(readme, "Title", block, metadata)

        # The front matter, exactly.
        own_keys = [key for key, _ in pieces]
        text_of = {name: yaml_dump({name: wanted[name]}, sort_keys=False) for name in wanted}
        changed = {x for x in {*metadata, *before} if wanted.get(x) != there.get(x)}
        pieces = [(key, text_of.get(key, "") if key in changed else text) for key, text in pieces]
        pieces = [(key if text else None, text) for key, text in pieces]
        pieces += [(name, text_of[name]) for name in metadata if name in changed and name not in own_keys]
        front = "".join(text for _, text in pieces)
        newline = "" if closing.endswith("\n") else "\n"
        assert merged.startswith(opening + front + closing + newline)
        assert yaml.safe_load(front) == wanted and readme_metadata(merged) == wanted

        # The body, exactly.
        rest = merged[len(opening + front + closing + newline) :]
        assert merged.count(BEGIN) == merged.count(END) == 1
        head, ours, tail = (
            rest.partition(BEGIN)[0],
            merged[merged.index(BEGIN) : merged.index(END)],
            rest.split(END)[1],
        )
        assert ours.endswith(f"-->\n\n{block}\n\n")
        assert head.startswith(body) if body.strip() else head == "\n# Title\n\n"
        assert outside is None or (head, tail) == outside
        outside = head, tail

        # Once more, nothing changes.
        assert merge_readme(merged, "Another", block, metadata) == merged
        readme, before, closing = merged, ours_now, closing + newline


def test_a_new_readme():
    text = merge_readme(None, "My \\_data\\_", "Block\n", {"license": "mit"})
    assert text == (
        f'---\nlicense: mit\n---\n\n# My \\_data\\_\n\n{BEGIN}\n<!-- gateau:metadata {{"license": "mit"}} -->\n\nBlock\n\n{END}\n'
    )
    for empty in ("", "\n", "  \n\n"):
        assert merge_readme(empty, "My \\_data\\_", "Block", {"license": "mit"}) == text
    assert merge_readme("---\n---\n", "T", "B", {}) == merge_readme(None, "T", "B", {})
    assert yaml.safe_load(merge_readme("---\na: 1\n---", "T", "B", {"b": 2}).split("---")[1]) == {"a": 1, "b": 2}


def test_text_added_by_hand_around_our_block_stays():
    first = merge_readme(None, "T", "one", {"tags": ["gateau"]})
    edited = first.replace("# T", "# Mine\n\nabove").replace(END, f"{END}\r\nbelow, without a newline").rstrip("\n")
    edited = edited.replace("tags:\n- gateau\n", "tags:\n- mine\n- gateau  # theirs\n- also\n")
    second = merge_readme(edited, "T", "two", {"tags": ["gateau", "new"]})
    assert second.split(BEGIN)[0] == edited.split(BEGIN)[0].replace(
        "tags:\n- mine\n- gateau  # theirs\n- also\n", "tags:\n- mine\n- gateau\n- also\n- new\n"
    )
    assert second.split(END)[1] == edited.split(END)[1] and "one" not in second.partition(BEGIN)[2]
    third = merge_readme(second, "T", "three", {"tags": ["new"]})
    assert readme_metadata(third)["tags"] == ["mine", "also", "new"]


def test_block_is_put_at_the_end_where_there_is_none():
    for body, joined in (("text\n", "text\n\n"), ("text", "text\n\n"), ("text\r\n", "text\r\n\n")):
        assert merge_readme(body, "T", "B", {}).startswith(f"---\n---\n{joined}{BEGIN}\n")


def test_begin_without_end_stays():
    """Whoever deletes our last line keeps what follows."""
    readme = merge_readme(None, "T", "old", {"tags": ["a"]}).replace(END, "") + "mine\n"
    merged = merge_readme(readme, "T", "new", {"tags": ["a"]})
    assert merged.startswith(readme) and merged.count(END) == 1


def test_begin_without_end_is_not_taken_for_the_beginning_of_the_next_block():
    readme = merge_readme(None, "T", "old", {"tags": ["a"]}).replace(END, "") + "mine\n"
    merged = merge_readme(merge_readme(readme, "T", "new", {}), "T", "newer", {})
    assert "mine\n" in merged and merged.count(END) == 1 and "newer" in merged


def test_end_before_begin_is_no_block():
    readme = f"Ours ends at {END}\n"
    merged = merge_readme(readme, "T", "First.", {})
    assert f"{END}\n\n{BEGIN}" in merged
    again = merge_readme(merged, "T", "Second.", {})
    assert again == merged.replace("First.", "Second.")


@pytest.mark.parametrize(
    "front, message",
    [
        ("a: [1\n", "cannot be read as YAML"),
        ("- a\n- b\n", "no mapping"),
        ("just text\n", "no mapping"),
        ("a: 1\nb: &x *y\n", "cannot be read as YAML"),
        ("a: !!python/object/apply:os.system [echo]\n", "cannot be read as YAML"),
        ("a: !mine b\n", "cannot be read as YAML"),
        ("a: 1\n\ta: 2\n", "cannot be read as YAML"),
        ("a: \x00\n", "cannot be read as YAML"),
        ("{a: b}\n", "no mapping with one key a line"),
        ("{a: b, tags: [c]}\n", "no mapping with one key a line"),
        ("a: b\n--- # another document\nc: d\n", "cannot be read as YAML"),
    ],
)
def test_metadata_that_cannot_be_merged_are_refused(front, message):
    with pytest.raises(ValueError, match=f"The README's metadata.*{message}.*mend them on the Hub"):
        merge_readme(f"---\n{front}---\n", "T", "B", {"tags": ["x"]})


@pytest.mark.parametrize(
    "front",
    [
        "a: 2020-13-45\n",
        f"a: {'[' * 3000}\n",
        "a: !!int x\n",
        "a: !!bool x\n",
        "a: !!int ''\n",
        "a: !!timestamp x\n",
    ],
)
def test_values_that_yaml_itself_stumbles_on_are_refused_likewise(front):
    with pytest.raises(ValueError, match="The README's metadata"):
        merge_readme(f"---\n{front}---\n", "T", "B", {"tags": ["x"]})
    assert readme_metadata(f"---\n{front}---\n") == {}


@pytest.mark.parametrize("front", ["tags: &t [a]\nother: *t\n", "a: 1\n...\n", "a: 1\n...\n\n# Text\n\n"])
def test_what_is_written_is_read_back(front):
    """An anchor on a value that we change, the end of a document: what was there is there, or the push is refused."""
    try:
        merged, _ = merge_metadata(front, {"tags": ["b"]}, {})
    except ValueError:
        return
    there = yaml.safe_load(front)
    assert yaml.safe_load(merged) == there | {"tags": [*there.get("tags", []), "b"]}


@pytest.mark.parametrize("readme", [None, "---\nmine: .nan\nlist: [.inf, -0.0]\n---\n"])
def test_numbers_that_are_none_are_written_and_read_back(readme):
    """NaN, which is not itself: the loss of a run that diverged, or a value of somebody else's."""
    metadata = {"model-index": [{"name": "m", "results": [{"value": float("nan")}]}]}
    merged = merge_readme(readme, "T", "B", metadata)
    assert repr(readme_metadata(merged)["model-index"]) == repr(metadata["model-index"])
    assert merge_readme(merged, "T", "B", metadata) == merged


def test_hand_set_before_the_first_push_stays_when_we_no_longer_say_it():
    readme = "---\nlicense: mit\ndatasets:\n- org/one\n---\nText\n"
    first = merge_readme(readme, "T", "B", {"license": "mit", "datasets": ["org/one", "org/two"]})
    assert readme_metadata(merge_readme(first, "T", "B", {})) == {"license": "mit", "datasets": ["org/one"]}


def test_what_we_put_into_a_list_of_others_is_taken_away():
    readme = "---\ndatasets:\n- mine/data\nmodel-index:\n- name: mine\n---\nText\n"
    first = merge_readme(readme, "T", "B", {"datasets": ["org/one"], "model-index": [{"name": "ours"}]})
    found = readme_metadata(merge_readme(first, "T", "B", {}))
    assert found == {"datasets": ["mine/data"], "model-index": [{"name": "mine"}]}


def test_scalars_set_by_hand_stay_and_ours_change():
    first = merge_readme(None, "T", "B", {"license": "other", "library_name": "peft", "pipeline_tag": "x"})
    edited = first.replace("license: other", 'license:   "mit" # mine', 1)
    second = merge_readme(edited, "T", "B", {"license": "apache-2.0", "library_name": "transformers"})
    assert second.startswith('---\nlicense:   "mit" # mine\nlibrary_name: transformers\n---\n')


def test_dataset_info_is_replaced_or_taken_away():
    front = "a: 1\ndataset_info:\n  features: []\n  # of a push by other means\nz: 2\n"
    assert merge_metadata(front, {"dataset_info": None}, {})[0] == "a: 1\n  # of a push by other means\nz: 2\n"
    assert yaml.safe_load(merge_metadata(front, {"dataset_info": [{"config_name": "x"}]}, {})[0]) == {
        "a": 1,
        "dataset_info": [{"config_name": "x"}],
        "z": 2,
    }
    assert merge_metadata(front, {}, {})[0] == front
    assert merge_metadata("a: 1\n", {"dataset_info": None}, {})[0] == "a: 1\n"


def test_a_note_outside_our_block_is_no_note():
    """A README that quotes the comment that we keep our metadata in: nothing of it is taken for ours."""
    quoted = '<!-- gateau:metadata {"license": "mit", "tags": ["mine"]} -->'
    readme = f"---\nlicense: mit\ntags:\n- mine\n---\n{quoted}\n"
    for _ in range(2):
        readme = merge_readme(readme, "T", "B", {"tags": ["ours"]})
        assert readme_metadata(readme) == {"license": "mit", "tags": ["mine", "ours"]}
        assert quoted in readme.partition(BEGIN)[0]


@pytest.mark.parametrize("note", ["{", "[]", "null", '{"tags": null}', "{} -->  <!-- gateau:metadata {}"])
def test_a_damaged_note_is_an_empty_one(note):
    readme = merge_readme("---\nlicense: mit\n---\n", "T", "B", {"tags": ["x"]})
    damaged = re.sub(r"gateau:metadata .* -->", lambda _: f"gateau:metadata {note} -->", readme)
    assert readme_metadata(merge_readme(damaged, "T", "B", {"tags": ["y"]})) == {"license": "mit", "tags": ["x", "y"]}


@pytest.mark.parametrize("note", ['{"configs": "x"}', '{"configs": [1]}', '{"configs": [{}]}'])
def test_a_note_of_another_form_ends_no_push(note):
    readme = merge_readme("---\nconfigs:\n- config_name: mine\n---\n", "T", "B", {"tags": ["x"]})
    damaged = re.sub(r"gateau:metadata .* -->", lambda _: f"gateau:metadata {note} -->", readme)
    merged = merge_readme(damaged, "T", "B", {"tags": ["y"], "configs": [{"config_name": "ours"}]})
    assert readme_metadata(merged)["configs"] == [{"config_name": "mine"}, {"config_name": "ours"}]


def test_nothing_ends_the_note():
    metadata = {"license": "--> <script>alert(1)</script> <!-- gateau:end -->"}
    readme = merge_readme(None, "T", "B", metadata)
    note = readme.partition(BEGIN)[2].split("-->")[0]
    assert (
        json.loads(note.partition("gateau:metadata")[2]) == metadata and readme.count("<script>") == 1
    )  # in the YAML
    assert merge_readme(readme, "T", "B", {}).startswith("---\n---\n")  # taken for what we wrote, so taken away


# Fuzz: hostile strings in every field that somebody else writes, through both cards

HOSTILE = (
    '"', "'", "\n", "\r", "\r\n", "\n\n", "\x00", "\x07\x1b[31m", "\x7f", "\u2028", "\u2029", "\ud800", "\udfff",
    "\u202eevil\u202c", "\u200b", "\ufeff", "\ufffe", "\n---\n", "---", "\n...\n", "...", ": ", "- ", "# ", "\n# Heading\n",
    "!!python/object/apply:os.system ['echo']", "&anchor", "*anchor", "<<: *x", "{{ 7777*7 }}", "{{ config }}",
    "{% raw %}", "{% include 'report.html' %}", "{# note #}", "{{", "<script>alert(1)</script>", "</script>",
    "<img src=x onerror=alert(1)>", "<iframe src='http://e'>", "<a href='http://e'>x</a>", "<!--", "-->",
    "--><script>alert(2)</script>", END, BEGIN, "<!-- gateau:metadata {} -->", "](javascript:alert(1))", "[x](http://e)",
    "![x](http://e)", "<http://e>", "http://e.example/x", "https://e.example", "www.e.example", "me@e.example", "[x]: http://e",
    "`", "``", "```", "\n```\n", "~~~", "\n~~~\n", "|", "||", "\\|", "\\", "\\\\", "</details>", "</table>", "</td>",
    "**b**", "__b__", "_i_", "~~s~~", "$x$", "[^1]", "&lt;script&gt;", "&#60;script&#62;", "&amp;", "&", "<", ">",
    "\n> quote", "\n- item", "\n1. item", "\n    code", "\n===\n", "\t", "  ", "\U0001f600", "日本語", "é", "x" * 700, "long " * 300,
    "/home/user/secret/model", "C:\\secret", "../../up", "org/name", "null", "yes", "1e3", "0x1F", "=", "%", "@", "plain words",
)  # fmt: skip


def hostile_strings(number: int) -> list[str]:
    """Every piece alone, then random chains of them."""
    rng = random.Random(0)
    chains = ["".join(rng.choice(HOSTILE) for _ in range(rng.randrange(2, 9))) for _ in range(number)]
    return [*HOSTILE, *chains][:number]


SCORES = {"0": 0.1, "0.5": 0.5, "1": 0.9}


def ranking_with(text: str) -> dict:
    return {
        "method": text,
        "mode": text,
        "alpha": text,
        "hmp": text,
        "cas": text,
        "combine": text,
        "num_ranked": 8,
        "num_unranked": {text: 3},
        "warnings": [text, text],
    }


def measuring_with(text: str) -> dict:
    model = {"model": text, "adapter": text, "fingerprint": text}
    return {"long": model, "short": {**model, "rope_scale": 2.0, "window": 512}, "dtype": text, "config_key": text}


def selection_with(text: str, **ranking) -> SelectionRecord:
    return SelectionRecord(
        fingerprint=text,
        dataset={"repo_id": text, "name": text, "config": text, "split": text, "source": {"name": text}},
        settings={"strata": text, "fraction": 0.1},
        ranking=ranking_with(text) | ranking,
        measuring=measuring_with(text),
        num_rows=12,
        num_ranked=8,
        num_kept=4,
        num_tokens_kept=4_000,
        dropped={text: 4},
        strata={text: {"ranked": 8, "kept": 4}},
        scores={"ranked": SCORES, "kept": SCORES},
        tokens={"ranked": SCORES, "kept": SCORES},
    )


def dataset_card_with(text: str, readme: str | None = None) -> str:
    """The card of a scored dataset whose texts of others are all this one."""
    entry = {
        "num_rows": 12,
        "num_measured": 8,
        "errors": {text: 4},
        "ranking": ranking_with(text),
        "digest": "0",
        "measuring": measuring_with(text),
        "source": {"name": text, "config": text, "revision": text},
    }
    sourced = entry | {"source": {"repo_id": text, "config": text, "revision": text}}
    chosen = {"record": vars(selection_with(text, method="gateau", mode="robust")), "digest": "0"}
    for first in (entry, sourced):
        record = ScoredRecord({"train": first}, {"top10": {"train": chosen}})
        figures = [{"path": "figures/scores.png", "alt": escape(text)}]
        licence = {"license": text, "license_name": text, "license_link": text}
        block, metadata = dataset_card(record, "org/data", licence, ["gateau_score"], figures, explorer=text)
        linked = dataset_card(record, "org/data", licence, ["gateau_score"], figures, explorer="me/space")[0]
        assert "[me/space](https://huggingface.co/spaces/me/space)" in linked
        assert metadata["configs"] == card_configs(record)
        readme = merge_readme(readme, escape(text), block, metadata)
    return readme


def model_card_with(text: str, readme: str | None = None) -> str:
    facts = ModelFacts(
        repo_id=text,
        model_name=text,
        trainer="SFTTrainer",
        base_model=text,
        base_revision=text,
        base_license={"license": text, "license_name": text},
        record=selection_with(text),
        datasets=[text, text],
        training={"steps": "3"},
        hyperparameters={text: text, "list": [text], "mapping": {text: text}},
        results={text: 0.5, "loss": 1.25},
        evaluated_on=text,
        versions={"torch": text},
        tags=[text],
    )
    block, metadata = model_card(facts)
    return merge_readme(readme, escape(text), block, metadata)


class Page(HTMLParser):
    """What a browser would make of a card: elements, links, comments, texts of cells and of code fences."""

    def __init__(self, html: str):
        super().__init__()
        self.elements, self.addresses, self.comments, self.texts, self.fences = [], [], [], [], []
        self.attributes: set[tuple[str, str]] = set()
        self.stack: list[str] = []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.elements.append(tag)
        self.attributes |= {(tag, name) for name, _ in attrs}
        self.addresses += [value for name, value in attrs if name in ("href", "src")]
        if tag in ("td", "li", "p", "h1"):
            self.texts.append("")
        if tag not in ("img", "br", "hr"):
            self.stack.append(tag)
        if tag == "code" and self.stack[-2] == "pre":
            self.fences.append("")

    def handle_endtag(self, tag):
        if self.stack and self.stack[-1] == tag:
            self.stack.pop()

    def handle_data(self, data):
        if self.stack[-2:] == ["pre", "code"]:
            self.fences[-1] += data
        elif self.texts:
            self.texts[-1] += data

    def handle_comment(self, data):
        self.comments.append(data)

    def handle_decl(self, decl):
        self.elements.append(f"!{decl}")

    unknown_decl = handle_pi = handle_decl


def page_of(card: str) -> Page:
    """CommonMark with tables, as the Hub shows a card; HTML in it is passed through, so that none escapes notice."""
    body = FRONT_MATTER.sub("", card, count=1)
    markdown = pytest.importorskip("markdown_it").MarkdownIt("commonmark", {"html": True}).enable("table")
    return Page(markdown.render(body))


ATTRIBUTES = {("a", "href"), ("img", "src"), ("img", "alt"), ("code", "class")}
PLACES = ("https://huggingface.co/", "https://arxiv.org/", "https://github.com/huggingface/trl", "figures/scores.png")


def structure(page: Page) -> list[str]:
    """Elements but those that a text may be shown in: code for what is plain, a link for a repository's name."""
    return [tag for tag in page.elements if tag not in ("code", "a")]


@pytest.fixture(scope="module", params=[dataset_card_with, model_card_with])
def card(request):
    return request.param


@pytest.fixture(scope="module", params=[60, pytest.param(300, marks=pytest.mark.slow)])
def cards(card, request) -> dict[str, str]:
    """Hostile text -> the card that has it in every field."""
    made = {text: card(text) for text in hostile_strings(request.param)}
    assert len(made) == request.param
    return made


def test_hostile_text_does_nothing(card, cards):
    """Whatever the text, the page has the elements that it has for a harmless one, and says the text."""
    harmless = page_of(card("harmless"))
    assert len(harmless.fences) == (4 if card is dataset_card_with else 2)
    for text, made in cards.items():
        body = FRONT_MATTER.sub("", made, count=1)
        assert body.encode("utf-8").decode().count(BEGIN) == body.count(END) == 1, repr(text)
        page = page_of(body)
        assert structure(page) == structure(harmless), repr(text)
        assert page.attributes <= ATTRIBUTES, repr(text)
        assert all(address.startswith(PLACES) for address in page.addresses), repr(text)
        assert [x.split()[0] for x in page.comments] == ["gateau:begin.", "gateau:metadata", "gateau:end"], repr(text)
        assert [x.replace('model="org/name"', 'model="PATH"') for x in page.fences] == harmless.fences, repr(text)
        assert [x.strip() for x in page.texts].count(one_line(text) or "(nothing)") >= 5, repr(text)
        assert "54439" not in made  # 7777 * 7


def test_addresses_of_others_are_no_links(cards):
    """GitHub's Markdown makes links of bare addresses; outside code there is none of them."""
    for text, made in cards.items():
        ours = made.partition(BEGIN)[2]
        bare = re.sub(r"<!--.*?-->|^```.*?^```$|(?<!\\)`[^`\n]+`", "", ours, flags=re.DOTALL | re.MULTILINE)
        found = re.findall(r"(?:https?|ftp)://[^\s)]*|www\.\S+|(?<!\\)@\S+", bare, re.IGNORECASE)
        assert found and all(address.startswith(PLACES) for address in found), repr(text)


def test_hostile_metadata_are_plain_strings(card, cards):
    for text, made in cards.items():
        found = readme_metadata(made)
        assert found["license"] == found["license_name"] == text, repr(text)
        assert found["tags"][: len(TAGS)] == TAGS
        if card is model_card_with:
            assert found["tags"][len(TAGS) :] == [text] and found["datasets"] == [text, text]
            assert found["model-index"][0]["name"] == text
            assert {x["type"] for x in found["model-index"][0]["results"][0]["metrics"]} == {text, "loss"}
        else:
            assert found["configs"][0]["config_name"] == "default"
            assert found.get("source_datasets") == ([f"extended|{text}"] if is_repo_id(text) else None)


def test_another_push_replaces_hostile_ones(card, cards):
    harmless = page_of(card("harmless"))
    for text in list(cards)[::7]:
        again = card("harmless", cards[text])
        assert page_of(again).elements == harmless.elements and readme_metadata(again)["license"] == "harmless"


@pytest.mark.parametrize("made, kind", [(dataset_card_with, DatasetCard), (model_card_with, ModelCard)])
def test_the_hubs_own_client_reads_the_cards(made, kind):
    read = kind(made('it\'s: "text"\n---\n'))
    assert read.data.license == 'it\'s: "text"\n---\n' and BEGIN in read.text


def test_hand_written_parts_survive_hostile_ones(card):
    readme = "---\nlicense: mit # mine\n---\n# Mine\n"
    for text in hostile_strings(300)[::15]:
        made = card(text, readme)
        assert made.startswith("---\nlicense: mit # mine\n") and "\n---\n# Mine\n\n" + BEGIN in made
        again = card("harmless", made)
        assert page_of(again).elements == page_of(card("harmless", readme)).elements


def test_escaped_text_as_alternative_of_a_picture():
    markdown = pytest.importorskip("markdown_it").MarkdownIt("commonmark", {"html": True})
    for text in hostile_strings(300):
        tokens = [x for x in markdown.parseInline(f"![{escape(text)}](figures/a.png)")[0].children]
        assert [x.type for x in tokens] == ["image"], repr(text)
        assert tokens[0].attrs["src"] == "figures/a.png" and tokens[0].content == escape(text)
        html = markdown.renderInline(f"![{escape(text)}](figures/a.png)")
        shown = []
        parser = HTMLParser()
        parser.handle_startendtag = lambda tag, attrs, shown=shown: shown.append(dict(attrs)["alt"])
        parser.feed(html)
        assert shown == [one_line(text)], repr(text)


# The small pieces


def test_inline_shows_plain_text_as_code_and_escapes_the_rest():
    assert inline("Qwen/Qwen3-0.6B") == "`Qwen/Qwen3-0.6B`"
    assert inline("") == inline("\n\x00") == "(nothing)"
    assert inline("a*b_c") == "a\\*b\\_c" and inline("<b>") == "&lt;b&gt;" and inline("a|b") == "a\\|b"
    assert inline(None) == "`None`" and inline(0.8) == "`0.8`" and inline([1]) == "\\[1\\]"
    assert inline("see http://x.y") == "`see http://x.y`" and "://" not in inline("see http://x.y !")


def test_one_line():
    assert one_line(" a\n\tb\x00\u2028c\ud800 ") == "a b c"
    assert len(one_line("x" * 10_000)) == MANY_CHARACTERS and one_line("x" * 501).endswith("xx...")
    assert one_line("x" * MANY_CHARACTERS) == "x" * MANY_CHARACTERS


def test_link():
    place = "https://huggingface.co"
    assert link("org/data") == f"[org/data]({place}/datasets/org/data)"
    assert link("org/model", "model", "a" * 40) == (
        f"[org/model]({place}/org/model) at [`aaaaaaaaaa`]({place}/org/model/tree/{'a' * 40})"
    )
    assert link("org/model", "model", "main](x)") == f"[org/model]({place}/org/model)"
    assert link("org/a/b") == "`org/a/b`" and link(None) == "`None`" and link("a](b)/c") == "a\\](b)/c"


def test_names_of_repositories_and_of_folders(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "org" / "here").mkdir(parents=True)
    assert is_repo_id("org/name.v1-x_y") and not is_repo_id("org/here")
    assert not any(is_repo_id(x) for x in ("name", "a/b/c", "/a/b", "a/b ", "a/é", "a/b\n", None, 5, "", "/"))
    assert public_name("org/name") == "org/name" and public_name(None) is None
    assert public_name("/home/user/secret/model/") == "model" and public_name("org/here") == "here"
    assert public_name(str(tmp_path / "org" / "here")) == "here" and public_name("data.jsonl") == "data.jsonl"


def test_table():
    assert table(["a", "b"], [["1", "2"]]) == "| a | b |\n| --- | --- |\n| 1 | 2 |"


def test_readme_metadata():
    assert readme_metadata("---\r\nlicense: mit\r\n---\r\ntext") == {"license": "mit"}
    for text in (None, "", "text", "---\n- a\n---\n", "---\na: [\n---\n", "---\na: 1\n", "x\n---\na: 1\n---\n"):
        assert readme_metadata(text) == {}


def test_approximations_are_said():
    """Whoever reads the card knows what was left out of the measuring; without approximations there is no such line."""
    pair = {"long": {"model": "me/long"}, "short": {"window": 4096, "rope_scale": None}, "segment_length": 128}
    exact = dict(measuring_rows(pair))
    assert exact["short sibling"] == "the same model, seeing only the last 4,096 tokens"
    assert "segments measured" not in exact and "of a response, at most" not in exact
    pair["short"]["pass"] = "reuse"
    said = dict(measuring_rows(pair | {"segment_stride": 4, "response_head": 50}))
    assert said["short sibling"].endswith("seeing only the last 4,096 tokens, as the long pass left them")
    assert said["segments measured"] == "one of every 4" and said["of a response, at most"] == "50 tokens"


def test_adapters_are_said_by_name_and_commit():
    commit = "0123456789" * 4
    pair = {"long": {"model": "me/long", "adapter": commit, "adapter_name": "me/adapter"}, "short": {"window": 4096}}
    said = dict(measuring_rows(pair))["long model"]
    assert ", adapter [me/adapter](https://huggingface.co/me/adapter)" in said and f"adapter/tree/{commit})" in said
    pair["long"] |= {"adapter": "sha256:0123", "adapter_name": "/home/user/adapter"}
    assert public_measuring(pair)["long"]["adapter_name"] == "adapter"
    assert dict(measuring_rows(pair))["long model"].endswith(", adapter `adapter`, weights `sha256:0123`")
    pair["long"].pop("adapter_name")  # of a record from before
    assert dict(measuring_rows(pair))["long model"].endswith(", adapter `sha256:0123`")
