"""Contexts, questions and rows against what can be reckoned by hand; the whole over HTTP with a local server."""

import itertools
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from hf_gateau.building.command import BuildArguments, command
from hf_gateau.building.config import BuildConfig, DocumentConfig
from hf_gateau.building.contexts import (
    LONGEST_PIECE,
    NO_PLACE,
    SEPARATOR,
    TOO_FEW,
    Context,
    ContextCutter,
    Lengths,
    cut_places,
    length_ranges,
    text_of,
    token_counter,
)
from hf_gateau.building.documents import load_documents
from hf_gateau.building.duplicates import Questions, rouge_l, words_of
from hf_gateau.building.prompts import TASK_TYPES, language_of, parse_answer, parse_questions, question_prompt
from hf_gateau.building.rows import Assignment, Builder, RowWriter, choose_contexts
from hf_gateau.cli import main
from hf_gateau.endpoint.questions import Endpoint, EndpointConfig, ReplyError, Request
from hf_gateau.rows.samples import build_sample
from tests.chats import CHATML, train_bpe
from tests.paths import LONG_ROWS, ROOT
from tests.servers.chat_server import ChatServer, Fault
from tests.servers.question_server import good_reply, is_proposal, reply_with_faults


CHINESE = "春天到了，园子里的花都开了。孩子们在树下读书，老人坐在门口说话！他们谈起从前的事情；谁也不觉得时间过得快。"
LENGTHS = {"min_tokens": 200, "max_tokens": 1600}


@pytest.fixture(scope="module")
def texts() -> list[tuple[str, str]]:
    """(source, text) of four stories and four meetings."""
    rows = [json.loads(line) for line in LONG_ROWS.read_text(encoding="utf-8").splitlines()]
    return [(row["source"], " \n\n  " + row["messages"][0]["content"] + "\n ") for row in rows]


@pytest.fixture(scope="module")
def tokenizer_folder(tmp_path_factory) -> str:
    """A byte-level BPE, which cuts text within words, with a chat template."""
    folder = tmp_path_factory.mktemp("tokenizer")
    tokenizer = train_bpe(byte_level=True, bos=False)
    tokenizer.chat_template = CHATML
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def count_tokens(tokenizer_folder):
    return token_counter(tokenizer_folder)


@pytest.fixture
def long_documents(tmp_path, texts) -> str:
    """A JSON-lines file of the eight texts."""
    path = tmp_path / "long.jsonl"
    lines = [{"text": text, "source": source, "key": f"d{i}"} for i, (source, text) in enumerate(texts)]
    assert any(line["text"][0].isspace() for line in lines)
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return str(path)


@pytest.fixture
def short_documents(tmp_path, texts) -> str:
    """Forty documents of 300 to 1,100 characters, of two sources."""
    path, chance = tmp_path / "short.jsonl", random.Random(3)
    lines = []
    for i in range(40):
        source, text = texts[i % 8]
        start = chance.randrange(len(text) - 1200)
        piece = text[start : start + chance.randrange(300, 1100)]
        lines.append(json.dumps({"text": piece, "source": source, "key": f"s{i}"}) + "\n")
    path.write_text("".join(lines), encoding="utf-8")
    return str(path)


BY_SOURCE = DocumentConfig(id_column="key", source_column="source")


def cut_all(data: str, count_tokens, what=BY_SOURCE, **settings):
    documents = load_documents(data, what)
    cutter = ContextCutter(documents, BuildConfig(**{**LENGTHS, **settings}), count_tokens)
    return documents, cutter, list(cutter)


# --- where texts are cut


@pytest.mark.quick
def test_cuts_cover_a_text_and_stand_after_paragraphs_or_sentences(texts):
    for _, text in texts:
        places = cut_places(text)
        assert places == sorted(set(places)) and places[-1] == len(text)
        for place in places[:-1]:
            before, after = text[:place].rstrip(), text[len(text[:place].rstrip()) : place]
            assert "\n" in after or before[-1] in ".!?…\"')]", repr(text[place - 20 : place + 5])


def test_a_short_paragraph_is_never_cut_and_a_long_one_after_its_sentences():
    short, sentence = "One. Two. Three.", "A sentence that says something. "
    long = sentence * 200
    text = f"{short}\n\n{long}\n\n{short}"
    places = cut_places(text)
    assert places[0] == len(short) + 2  # "One. Two." is not cut
    inside = [place for place in places if len(short) + 2 < place <= len(short) + 2 + len(long.rstrip())]
    assert inside and all((place - len(short) - 2) % len(sentence) == 0 for place in inside)
    assert len(text) - places[-2] == len(short)


def test_chinese_is_cut_after_its_own_marks():
    places = cut_places(CHINESE * 60)
    assert len(places) > 60 and all((CHINESE * 60)[place - 1] in "。！；" for place in places)


def test_text_without_any_mark_is_cut_after_words_or_else_anywhere():
    assert all(("word " * 2000)[place - 1] == " " for place in cut_places("word " * 2000))
    assert cut_places("x" * 5000) == [LONGEST_PIECE, 2 * LONGEST_PIECE, 5000]


# --- lengths


def test_ranges_double_and_touch():
    assert length_ranges(8192, 65536) == [(8192, 16383), (16384, 32767), (32768, 65536)]
    assert length_ranges(100, 120) == [(100, 120)]


@pytest.mark.quick
def test_lengths_are_balanced_and_a_document_that_fits_is_taken_whole():
    lengths, config = Lengths(BuildConfig()), BuildConfig()
    chosen = []
    for _ in range(30):
        chosen.append(lengths.choose(1e9))
        lengths.count(chosen[-1])
    assert lengths.counts == [10, 10, 10]
    assert all(config.min_tokens <= length <= config.max_tokens for length in chosen)
    assert lengths.choose(8191) is None
    assert lengths.choose(40_000) == 40_000  # of the range whose turn it is
    assert len(set(chosen)) > 20


# --- contexts


@pytest.mark.parametrize("byte_level", [True, False])
def test_contexts_are_in_range_and_spans_give_their_text(long_documents, texts, byte_level, tmp_path):
    train_bpe(byte_level, bos=not byte_level).save_pretrained(tmp_path / "bpe")
    count = token_counter(str(tmp_path / "bpe"))
    documents, cutter, contexts = cut_all(long_documents, count)
    assert len(contexts) > 10
    raw = {f"d{i}": text for i, (_, text) in enumerate(texts)}
    used: dict[str, list[tuple[int, int]]] = {}
    for context in contexts:
        text = SEPARATOR.join(raw[documents[s.place].id][s.start : s.end] for s in context.spans)
        assert text == text_of(context.spans, documents) == text.strip()
        assert context.num_tokens == count([text])[0] and 200 <= context.num_tokens <= 1600
        for span in context.spans:
            used.setdefault(documents[span.place].id, []).append((span.start, span.end))
    for spans in used.values():  # no text is in two contexts
        spans.sort()
        assert all(a[1] <= b[0] for a, b in itertools.pairwise(spans))
    assert max(cutter.lengths.counts) - min(cutter.lengths.counts) <= len(texts)
    assert len(used) == 8  # each document gives its first before any gives its second


def test_contexts_end_where_the_text_may_be_cut(long_documents, count_tokens):
    documents, _, contexts = cut_all(long_documents, count_tokens)
    for context in contexts:
        (span,) = context.spans
        text = documents[span.place].text
        ends = {len(text[:place].rstrip()) for place in cut_places(text)}
        assert span.end in ends


@pytest.mark.quick
def test_contexts_depend_on_the_seed_alone(long_documents, count_tokens):
    first, again, other = (cut_all(long_documents, count_tokens, seed=seed)[2] for seed in (1, 1, 2))
    assert first == again
    assert first != other


def test_short_documents_of_one_source_are_joined(short_documents, count_tokens):
    documents, cutter, contexts = cut_all(short_documents, count_tokens, min_tokens=700, max_tokens=1600)
    assert len(contexts) >= 4
    assert all(700 <= context.num_tokens <= 1600 for context in contexts)
    assert all(len({documents[span.place].source for span in context.spans}) == 1 for context in contexts)
    assert max(len(context.spans) for context in contexts) > 1
    places = [span.place for context in contexts for span in context.spans]
    assert len(places) == len(set(places))
    left_out = sum(cutter.dropped.values())
    assert len(places) + left_out == len(documents) and set(cutter.dropped) <= {TOO_FEW, NO_PLACE}


def test_short_documents_are_left_out_where_they_are_not_to_be_joined(short_documents, count_tokens):
    documents, cutter, contexts = cut_all(short_documents, count_tokens, min_tokens=1000, max_tokens=2500, join=False)
    assert contexts == [] and cutter.dropped == {"shorter than min_tokens=1000": len(documents)}


def test_a_tokenizer_that_cannot_be_loaded_is_told(tmp_path):
    with pytest.raises(ValueError, match="lengths are counted with, cannot be loaded.*--tokenizer"):
        token_counter(str(tmp_path / "none"))


# --- documents


@pytest.mark.quick
def test_text_files_are_read_and_bad_ones_and_copies_counted(tmp_path):
    (tmp_path / "deep").mkdir()
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfFirst.\r\nLine.")
    (tmp_path / "b.txt").write_bytes(b"\xfc\xfe\x00bad")
    (tmp_path / "c.txt").write_text("First.  \n\nLine.\n")
    (tmp_path / "d.txt").write_text(" \n")
    (tmp_path / "deep" / "e.txt").write_text("Another.")
    documents = load_documents(str(tmp_path), DocumentConfig(license="CC0-1.0"))
    assert [(x.id, x.source, x.text, x.license) for x in (documents[0], documents[1])] == [
        ("a.txt", tmp_path.name, "First.\nLine.", "CC0-1.0"),
        ("deep/e.txt", "deep", "Another.", "CC0-1.0"),
    ]
    assert documents.dropped == {
        "the file is not UTF-8": 1,
        "a copy of another document": 1,
        "the text is empty": 1,
    }
    only = load_documents(str(tmp_path / "*.txt"), DocumentConfig())
    assert [only[i].id for i in range(len(only))] == ["a.txt"]


def test_rows_are_read_by_their_columns(tmp_path):
    from datasets import Dataset

    rows = {
        "body": ["One text.", None, "Two texts.", "One  text."],
        "from": ["x", "x", None, "y"],
        "terms": ["MIT", "MIT", None, "MIT"],
    }
    Dataset.from_dict(rows).to_parquet(str(tmp_path / "t.parquet"))
    config = DocumentConfig(text_column="body", source_column="from", license_column="terms")
    documents = load_documents(str(tmp_path / "t.parquet"), config)
    found = [(x.id, x.source, x.text, x.license) for x in (documents[i] for i in range(len(documents)))]
    assert found == [("t.parquet:0", "x", "One text.", "MIT"), ("t.parquet:2", "t.parquet", "Two texts.", None)]
    assert documents.dropped == {"the text is null, not a string": 1, "a copy of another document": 1}


def test_what_cannot_be_read_is_refused_at_once(tmp_path, long_documents):
    with pytest.raises(ValueError, match="has no column 'body'.*--text_column"):
        load_documents(long_documents, DocumentConfig(text_column="body"))
    with pytest.raises(FileNotFoundError, match="no file"):
        load_documents(str(tmp_path / "none.txt"), DocumentConfig())
    (tmp_path / "x.txt").write_text("Text.")
    with pytest.raises(ValueError, match="1 text files and 1 others such as 'long.jsonl'"):
        load_documents(str(tmp_path), DocumentConfig())


@pytest.mark.quick
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"min_tokens": 10, "max_tokens": 10}, "max_tokens=10 is not above min_tokens=10"),
        ({"num_rows": 0}, "num_rows is a number of rows, got 0"),
        ({"rows_per_context": 21}, "a context has 20 questions at most"),
        ({"task_types": ["essay"]}, "no task type 'essay'"),
        ({"task_types": ["summary=0"]}, "no weight above 0"),
        ({"task_types": ["summary", "summary=2"]}, "each type once"),
        ({"near_duplicate": 0.0}, "near_duplicate=0.0 is not above 0"),
        ({"temperature": -1.0}, "temperature=-1.0 is not from 0 to 2"),
    ],
)
def test_settings_out_of_range_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        BuildConfig(**settings)


# --- prompts and replies


def test_the_language_of_a_text():
    assert language_of("A harbour, 2 boats.") == "en"
    assert language_of(CHINESE) == language_of("他说 OK，然后就走了，没有再回来看我们一眼。") == "zh"
    assert language_of("これは日本語の文章です。漢字も含まれています。") == "en"
    assert language_of("The word 好 means good, and so it is used here and there.") == "en"


@pytest.mark.quick
def test_a_prompt_is_in_the_language_of_its_text():
    english, chinese = (question_prompt("TEXT", "reasoning", language) for language in ("en", "zh"))
    assert english.startswith("TEXT\n\n") and "multi-hop reasoning" in english and "Propose 5" in english
    assert chinese.startswith("TEXT\n\n") and "5个" in chinese and "推理" in chinese
    prompts = {question_prompt("", name, language) for name in TASK_TYPES for language in ("en", "zh")}
    assert len(prompts) == 8 and all(is_proposal(prompt) for prompt in prompts)


FIVE = [
    "Who reads the old book?",
    "Why does she leave home?",
    "What is in the box?",
    "When did it end?",
    "Is 3: 4 odds?",
]


@pytest.mark.quick
@pytest.mark.parametrize(
    "reply",
    [
        "\n".join(f"{i}: {q}" for i, q in enumerate(FIVE, 1)),
        "Here are 5 questions:\n\n"
        + "\n\n".join(f"{i}. {q}" for i, q in enumerate(FIVE, 1))
        + "\n\nI hope this helps!",
        "\n".join(f'"{i}: {q}",' for i, q in enumerate(FIVE, 1)),
        "\n".join(f"**{i}:** {q}" for i, q in enumerate(FIVE, 1)),
        "\n".join(f"Q{i}: {q.replace(' ', chr(10) + '   ', 1)}" for i, q in enumerate(FIVE, 1)),
    ],
    ids=["plain", "preamble", "quoted", "bold", "two lines"],
)
def test_questions_are_read_in_forms_that_models_use(reply):
    assert list(parse_questions(reply)) == FIVE


@pytest.mark.quick
@pytest.mark.parametrize(
    ("reply", "message"),
    [
        ("", "not 5 questions"),
        ("Sure! What is it about?", "not 5 questions"),
        ("\n".join(f"{i}: {q}" for i, q in enumerate(FIVE[:4], 1)), "not 5 questions"),
        ("\n".join(f"{i}: {q}" for i, q in enumerate(FIVE, 2)), "not 5 questions"),
        ("\n".join(f"{i}: {q}" for i, q in enumerate([*FIVE, FIVE[0]], 1)), "not 5 questions"),
        (" ".join(f"{i}: {q}" for i, q in enumerate(FIVE, 1)), "not 5 questions"),
        ("\n".join(f"{i}: " for i in range(1, 6)), "fewer than 3 words"),
    ],
)
def test_malformed_questions_are_told(reply, message):
    with pytest.raises(ReplyError, match=message):
        parse_questions(reply)


def test_chinese_questions_and_answers_are_read():
    reply = "\n".join(f"{i}：孩子们在第{i}棵树下做什么？" for i in range(1, 6))
    assert parse_questions(reply)[4] == "孩子们在第5棵树下做什么？"
    assert parse_answer("答：他们在读书。") == "他们在读书。"


@pytest.mark.parametrize(
    "reply", ["", " \n", "...", "I'm sorry, but I cannot.", "As an AI, I ...", "抱歉，我无法回答。"]
)
def test_empty_answers_and_refusals_are_told(reply):
    with pytest.raises(ReplyError, match="the answer is (empty|a refusal)"):
        parse_answer(reply)


def test_an_answer_is_kept_as_it_is():
    assert (
        parse_answer(" She apologizes: I am not sorry.\n\n- one\n- two\n")
        == "She apologizes: I am not sorry.\n\n- one\n- two"
    )


# --- duplicates


def slow_rouge_l(a: list[str], b: list[str]) -> float:
    """By the table of the textbook."""
    table = [[0] * (len(b) + 1) for _ in range(len(a) + 1)]
    for i, x in enumerate(a):
        for j, y in enumerate(b):
            table[i + 1][j + 1] = table[i][j] + 1 if x == y else max(table[i][j + 1], table[i + 1][j])
    return 2 * table[-1][-1] / (len(a) + len(b)) if a and b else 0.0


@pytest.mark.quick
def test_rouge_l_is_the_textbooks():
    chance = random.Random(0)
    for _ in range(300):
        a, b = (chance.choices("abcde", k=chance.randrange(0, 90)) for _ in range(2))
        assert rouge_l(a, b) == pytest.approx(slow_rouge_l(a, b), abs=1e-12)


@pytest.mark.parametrize("threshold", [0.5, 0.7, 1.0])
def test_the_search_finds_what_a_comparison_with_all_finds(threshold):
    chance, taken, found = random.Random(1), [], Questions(threshold)
    for _ in range(400):
        words = chance.choices("the of a king queen sword war peace who what".split(), k=chance.randrange(3, 9))
        is_new = all(slow_rouge_l(words, other) < threshold for other in taken)
        assert found.take(" ".join(words).title() + "?") == is_new
        taken += [words] * is_new
    assert 10 < len(taken) < 400


def test_case_marks_and_chinese_words():
    questions = Questions(0.7)
    assert questions.take("Why does Alice follow the Rabbit?")
    assert not questions.take("why does alice follow the rabbit")
    assert not questions.take("Why does Alice follow the white Rabbit?")
    assert questions.take("What becomes of the Duchess in the end?")
    assert questions.take("孩子们在树下做什么？") and not questions.take("孩子们在树下做了什么？")
    assert words_of("他read 3本") == ["他", "read", "3", "本"]


# --- rows


def make_endpoint(url: str, folder: Path, **settings) -> Endpoint:
    config = {"endpoint_model": "m", "endpoint_url": url, "replies": str(folder / "replies.sqlite"), **settings}
    return Endpoint(EndpointConfig(**config))


def build_rows(reply, data: str, folder: Path, count_tokens, **settings):
    """(rows as they are written, the builder, the requests that were answered)."""
    config = BuildConfig(**{**LENGTHS, **settings})
    documents = load_documents(data, BY_SOURCE)
    contexts = choose_contexts(ContextCutter(documents, config, count_tokens), config)
    with ChatServer(reply) as server:
        builder = Builder(documents, config, make_endpoint(server.url, folder))
        built = builder.build(contexts)
    writer = RowWriter(documents, count_tokens, "m")
    return [writer.row(one) for one in built], builder, server.requests


def test_every_row_is_a_sample_of_its_context_and_instruction(long_documents, texts, tmp_path, tokenizer_folder):
    from transformers import AutoTokenizer

    tokenizer, count = AutoTokenizer.from_pretrained(tokenizer_folder), token_counter(tokenizer_folder)
    rows, builder, requests = build_rows(
        reply_with_faults, long_documents, tmp_path, count, num_rows=24, rows_per_context=2
    )
    assert len(rows) == 24 and Counter(row["task_type"] for row in rows) == dict.fromkeys(TASK_TYPES, 6)
    assert builder.dropped.total() > 0 and set(builder.dropped) == {
        "answer: 3 replies, the last one: the answer is a refusal"
    }
    raw = {f"d{i}": text for i, (_, text) in enumerate(texts)}
    asked = {request["messages"][-1]["content"] for request in requests}
    for row in rows:
        user, answer = (message["content"] for message in row["messages"])
        context = SEPARATOR.join(raw[part["id"]][part["start"] : part["end"]] for part in row["documents"])
        instruction = user.removeprefix(context + "\n\n")
        assert user in asked and instruction.startswith("How do ") and "\n" not in instruction
        sample = build_sample(row, tokenizer)
        assert tokenizer.decode(sample.context) == context
        assert instruction in tokenizer.decode(sample.instruction) and answer in tokenizer.decode(sample.response)
        assert row["num_context_tokens"] == count([context])[0] and 200 <= row["num_context_tokens"] <= 1600
        assert row["length"] == sum(count([user, answer]))
        kept = [builder.endpoint.store.get(key) for key in row["reply_keys"]]
        assert instruction in " ".join(kept[0].split()) and kept[1] == answer
    assert len({row["id"] for row in rows}) == len({row["messages"][0]["content"] for row in rows}) == 24


def test_shares_of_kinds_are_kept_and_questions_of_a_kind_are_asked_for_once(long_documents, tmp_path, count_tokens):
    settings = {"num_rows": 12, "rows_per_context": 4, "task_types": ["summary=2", "extraction"]}
    rows, _, requests = build_rows(good_reply, long_documents, tmp_path, count_tokens, **settings)
    assert Counter(row["task_type"] for row in rows) == {"summary": 8, "extraction": 4}
    prompts = [request["messages"][-1]["content"] for request in requests]
    asked = [prompt for prompt in prompts if is_proposal(prompt)]
    assert len(asked) == len(set(asked)) == len({(row["task_type"], str(row["documents"])) for row in rows}) < 12


def test_kinds_that_fail_are_made_up_for(long_documents, tmp_path, count_tokens):
    failing: dict[str, None] = {}  # the first two prompts for reasoning, whatever their order

    def reply(request):
        prompt = request["messages"][-1]["content"]
        if is_proposal(prompt) and "multi-hop" in prompt and len(failing) < 2:
            failing[prompt] = None
        return "No." if prompt in failing else good_reply(request)

    settings = {"num_rows": 16, "rows_per_context": 2}
    rows, builder, _ = build_rows(reply, long_documents, tmp_path, count_tokens, **settings)
    reason = "questions: 3 replies, the last one: not 5 questions, numbered from 1, one a line"
    assert len(rows) == 16 and builder.dropped == {reason: 2}
    assert Counter(row["task_type"] for row in rows) == dict.fromkeys(TASK_TYPES, 4)


def test_the_same_questions_everywhere_are_taken_once(long_documents, tmp_path, count_tokens):
    def reply(request):
        if is_proposal(request["messages"][-1]["content"]):
            return "\n".join(f"{i}: {question}" for i, question in enumerate(FIVE, 1))
        return "It is told in the text."

    rows, builder, _ = build_rows(reply, long_documents, tmp_path, count_tokens)
    assert len(rows) == 5 and builder.passed_over > 0
    assert sorted(row["messages"][0]["content"].rsplit("\n\n", 1)[1] for row in rows) == sorted(FIVE)
    assert set(builder.dropped) == {"every question is a duplicate of one taken before"}


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (lambda text, question: question, "answer: it repeats the question"),
        (lambda text, question: text + " and more", "answer: it repeats the context"),
        (lambda text, question: "Bad \ue000gateau\ue001 mark", "the row cannot be read"),
    ],
)
def test_answers_that_say_nothing_are_dropped_with_a_reason(long_documents, tmp_path, count_tokens, answer, reason):
    def reply(request):
        prompt = request["messages"][-1]["content"]
        return good_reply(request) if is_proposal(prompt) else answer(*prompt.rsplit("\n\n", 1))

    rows, builder, _ = build_rows(reply, long_documents, tmp_path, count_tokens, num_rows=2)
    assert rows == [] and all(found.startswith(reason) for found in builder.dropped)


def test_chinese_documents_are_asked_about_in_chinese(tmp_path, count_tokens):
    chance = random.Random(5)
    sentences = re.findall(r"[^。！；]+[。！；]", CHINESE)
    text = "".join(chance.choice(sentences) for _ in range(300))
    (tmp_path / "zh.jsonl").write_text(json.dumps({"text": text, "source": "a", "key": "zh"}), encoding="utf-8")
    rows, _, requests = build_rows(good_reply, str(tmp_path / "zh.jsonl"), tmp_path, count_tokens, num_rows=2)
    assert [row["language"] for row in rows] == ["zh", "zh"]
    asked = [request["messages"][-1]["content"] for request in requests]
    assert sum(is_proposal(x) for x in asked) == 2 and all("中文问题" in x for x in asked if is_proposal(x))


@pytest.mark.parametrize(
    "kinds, expected",
    [(TASK_TYPES, dict.fromkeys(TASK_TYPES, 6)), (("summary=2", "general"), {"summary": 16, "general": 8})],
)
@pytest.mark.parametrize("max_tokens", [800, 1600, 3200])
def test_no_kind_is_asked_about_contexts_of_one_length_alone(kinds, expected, max_tokens):
    """Lengths that come in turns, of 2, 3 and 4 ranges: every kind has its share of each, give or take a row."""
    config = BuildConfig(min_tokens=200, max_tokens=max_tokens, task_types=list(kinds))
    ranges = length_ranges(200, max_tokens)
    contexts = [Context((), str(i), "en", ranges[i % len(ranges)][0]) for i in range(24)]
    tasks = Assignment(contexts, config).take(24)
    assert Counter(task.task_type for task in tasks) == expected
    found = Counter((task.task_type, task.context.num_tokens) for task in tasks)
    for name, number in expected.items():
        for low, _ in ranges:
            assert abs(found[name, low] - number / len(ranges)) <= 1, found


def test_kinds_of_a_context_differ_while_they_can(long_documents, count_tokens):
    config = BuildConfig(**LENGTHS, num_rows=32, rows_per_context=4)
    _, _, contexts = cut_all(long_documents, count_tokens)
    tasks = Assignment(contexts, config).take(32)
    by_context = Counter((task.context.key, task.task_type) for task in tasks)
    assert Counter(task.task_type for task in tasks) == dict.fromkeys(TASK_TYPES, 8)
    assert len(by_context) >= 30  # of 32 pairs


# --- the command


def arguments(data: str, output: str, url: str, folder: Path, tokenizer_folder: str, *more: str) -> list[str]:
    named = {
        "--tokenizer": tokenizer_folder,
        "--min_tokens": "200",
        "--max_tokens": "1600",
        "--id_column": "key",
        "--source_column": "source",
        "--num_rows": "20",
        "--endpoint_model": "m",
        "--endpoint_url": url,
        "--replies": str(folder / "replies.sqlite"),
    }
    return ["build", data, "-o", output, *itertools.chain(*named.items()), *more]


def read_lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_two_books_make_twenty_rows_of_all_kinds_that_score_takes(
    texts, tmp_path, tokenizer_folder, tokenizer, tiny_model, capsys
):
    """The books are two stories of Project Gutenberg's; the rows go to `score` as they are, every one of them."""
    books, output = tmp_path / "books", tmp_path / "long_rows.jsonl"
    books.mkdir()
    for i, (source, text) in enumerate(texts[:2]):
        assert source.startswith("SQuALITY")
        (books / f"{i}.txt").write_text(text, encoding="utf-8")
    with ChatServer(reply_with_faults) as server:
        named = {"--tokenizer": tokenizer_folder, "--min_tokens": "200", "--max_tokens": "1600", "--num_rows": "20"}
        named |= {"--rows_per_context": "4", "--endpoint_model": "m", "--endpoint_url": server.url}
        named |= {"--replies": str(tmp_path / "replies.sqlite"), "--license": "public domain"}
        assert main(["build", str(books), "-o", str(output), *itertools.chain(*named.items())]) == 0
    said, rows = capsys.readouterr().out, read_lines(output)
    assert f"20 rows: {output}" in said and "200 to 399" in said and "dropped: answer" in said
    assert Counter(row["task_type"] for row in rows) == dict.fromkeys(TASK_TYPES, 5)
    assert (
        all(list(row)[:3] == ["id", "messages", "length"] for row in rows) and len({row["id"] for row in rows}) == 20
    )
    assert {part["id"] for row in rows for part in row["documents"]} == {"0.txt", "1.txt"}
    assert {(row["source"], row["license"]) for row in rows} == {("books", "public domain")}
    record = json.loads((tmp_path / "long_rows.jsonl.gateau.json").read_text())["building"]
    assert record["num_rows"] == 20 and record["model"] == "m" and str(tmp_path) not in json.dumps(record)
    assert sum(sum(counts.values()) for counts in record["rows"].values()) == 20
    scored = tmp_path / "scored.parquet"
    score = ["score", str(output), "-o", str(scored), "--long_model", tiny_model, "--short_window", "200"]
    assert main([*score, "--segment_length", "64", "--max_length", "400", "--device", "cpu"]) == 0
    assert "20 of 20 rows measured" in capsys.readouterr().out


@pytest.mark.parametrize("suffix", [".parquet", ""])
def test_rows_are_the_same_from_the_same_replies_in_any_form(long_documents, tmp_path, tokenizer_folder, suffix):
    from hf_gateau.files.reading import load_rows
    from hf_gateau.files.sidecar import read_sidecar

    with ChatServer(reply_with_faults) as server:
        first = arguments(long_documents, str(tmp_path / "a.jsonl"), server.url, tmp_path, tokenizer_folder)
        assert main(first) == 0
        num_asked = len(server.requests)
        again = arguments(long_documents, str(tmp_path / f"b{suffix}"), server.url, tmp_path, tokenizer_folder)
        assert main([*again, "--concurrency", "1", "--replay"]) == 0
        assert len(server.requests) == num_asked
    ds = load_rows(str(tmp_path / f"b{suffix}"))
    assert list(ds) == read_lines(tmp_path / "a.jsonl")
    assert read_sidecar(str(tmp_path / f"b{suffix}")) == read_sidecar(str(tmp_path / "a.jsonl"))


@pytest.mark.slow
def test_a_build_that_was_killed_goes_on_where_it_was(long_documents, tmp_path, tokenizer_folder):
    def slowly(request):
        time.sleep(0.05)
        return reply_with_faults(request)

    with ChatServer(reply_with_faults) as server:
        whole = arguments(long_documents, str(tmp_path / "whole.jsonl"), server.url, tmp_path / "w", tokenizer_folder)
        assert main([*whole, "--seed", "3"]) == 0
        num_whole = len(server.requests)
    with ChatServer(slowly) as server:
        cut = arguments(long_documents, str(tmp_path / "cut.jsonl"), server.url, tmp_path / "c", tokenizer_folder)
        cut += ["--seed", "3", "--concurrency", "2"]
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        process = subprocess.Popen(
            [sys.executable, "-m", "hf_gateau.cli", *cut],
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        deadline = time.monotonic() + 90
        while len(server.requests) < num_whole // 3 and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL and not (tmp_path / "cut.jsonl").exists()
        assert num_whole // 3 <= len(server.requests) < num_whole
        assert main(cut) == 0
        asked = Counter((request["messages"][-1]["content"], request["seed"]) for request in server.requests)
    assert len(asked) == num_whole
    assert asked.total() - len(asked) <= 2  # those that were under way when it was killed
    assert (tmp_path / "cut.jsonl").read_text() == (tmp_path / "whole.jsonl").read_text()


def test_a_dry_run_says_what_it_takes_and_asks_nothing(
    long_documents, tmp_path, tokenizer_folder, capsys, monkeypatch
):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with ChatServer(good_reply) as server:
        dry = arguments(long_documents, str(tmp_path / "x.jsonl"), server.url, tmp_path, tokenizer_folder)
        assert main([*dry, "--dry_run", "--input_price", "2", "--output_price", "8"]) == 0
        assert server.requests == [] and not (tmp_path / "x.jsonl").exists()
    said = capsys.readouterr().out
    assert "8 documents of 2 sources" in said and re.search(r"200 to 399 +\d+ +█", said)
    output_tokens = 20 * (1024 + 2048)
    assert "40 questions to m, 0 of them answered before" in said and f"{output_tokens:,} output tokens" in said
    estimated = int(re.search(r"about ([\d,]+) input tokens", said).group(1).replace(",", ""))
    price = float(re.search(r"about ([\d.]+) if replies", said).group(1))
    assert price == pytest.approx((2 * estimated + 8 * output_tokens) / 1e6, abs=0.006)


def test_chinese_is_not_estimated_by_the_letter(tmp_path):
    """A Chinese character is about a token, of three bytes; four letters of English are."""
    config = EndpointConfig(endpoint_model="m", replies=str(tmp_path / "r.sqlite"), replay=True)
    english, chinese = (
        Endpoint(config).estimate([Request([{"role": "user", "content": text}], max_tokens=1, temperature=0.0)])
        for text in ("word" * 300, "春天到了" * 300)
    )
    assert (english.input_tokens, chinese.input_tokens) == (300, 900)


@pytest.mark.slow
def test_lengths_are_counted_with_the_tokenizer_of_a_gguf_file(smollm2):
    assert token_counter(smollm2)(["One two three.", ""]) == [4, 0]


def test_too_few_contexts_are_told_before_anything_is_asked(long_documents, tmp_path, tokenizer_folder, capsys):
    with ChatServer(good_reply) as server:
        many = arguments(long_documents, str(tmp_path / "x.jsonl"), server.url, tmp_path, tokenizer_folder)
        assert main([*many, "--num_rows", "500"]) == 2
        assert server.requests == []
    assert re.search(r"have \d+ contexts of 200 to 1,600 tokens.*num_rows=500; give more", capsys.readouterr().err)


def test_nothing_is_read_without_a_place_for_the_rows(tmp_path):
    settings = BuildConfig(tokenizer="none"), EndpointConfig(endpoint_model="m")
    with pytest.raises(ValueError, match="no place for the rows.*--output"):
        command("none", BuildArguments(), DocumentConfig(), *settings)
    with pytest.raises(ValueError, match="ends in '.csv'"):
        command("none", BuildArguments(output=str(tmp_path / "x.csv")), DocumentConfig(), *settings)


def test_a_build_of_which_nothing_comes_says_why(long_documents, tmp_path, tokenizer_folder, capsys):
    with ChatServer(lambda request: "No.") as server:
        none = arguments(long_documents, str(tmp_path / "x.jsonl"), server.url, tmp_path, tokenizer_folder)
        assert main([*none, "--num_rows", "3"]) == 2
    assert "No row could be made: {'questions: 3 replies" in capsys.readouterr().err
    assert not (tmp_path / "x.jsonl").exists()


def test_what_got_no_reply_is_told_and_asked_again(long_documents, tmp_path, tokenizer_folder, capsys):
    with ChatServer(good_reply, faults=[Fault(status=500, times=1)]) as server:
        some = arguments(long_documents, str(tmp_path / "x.jsonl"), server.url, tmp_path, tokenizer_folder)
        some += ["--num_rows", "4", "--request_retries", "0", "--concurrency", "1"]
        assert main(some) == 0
        said = capsys.readouterr()
        assert "1 dropped: no reply, questions: InternalServerError" in said.out and "same command again" in said.err
        assert len(read_lines(tmp_path / "x.jsonl")) == 4  # a context to spare made up for it
        num_asked = len(server.requests)
        assert main(some) == 0
        assert len(server.requests) == num_asked + 2 and "no reply" not in capsys.readouterr().out
    assert len(read_lines(tmp_path / "x.jsonl")) == 4


def test_answers_that_were_cut_off_are_none(long_documents, tmp_path, count_tokens):
    settings = {"num_rows": 2, "answer_tokens": 20}
    rows, builder, _ = build_rows(good_reply, long_documents, tmp_path, count_tokens, **settings)
    assert rows == [] and set(builder.dropped) == {"answer: 3 replies, the last one: it is cut off at max_tokens=20"}
