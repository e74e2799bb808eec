"""Answers that a judge rates: each task with a server that rates by rule, so that every figure can be reckoned by hand."""

import hashlib
import json
import re

import pytest

from hf_gateau.cli import main
from hf_gateau.endpoint.questions import Endpoint, EndpointConfig, EndpointError, ReplyError
from hf_gateau.evaluation import longbench_chat, longbench_judged, mt_bench
from hf_gateau.evaluation.judging import BRACKETS, fill, judge, rating_in, shipped_prompt
from hf_gateau.evaluation.results import load_result, save_result
from hf_gateau.evaluation.rows import read_rows
from hf_gateau.evaluation.tasks import TASKS, Work, run_task
from tests.servers.chat_server import ChatServer, Fault, rating_of


pytest.importorskip("openai")


class Parrot:
    """Answers with the end of what it was told and how many messages there were; remembers what it was asked."""

    model = "parrot"

    def __init__(self):
        self.asked = []

    def generate(self, prompts, max_new_tokens):
        self.asked.append(([list(prompt) for prompt in prompts], max_new_tokens))
        return [f"{len(prompt)}: {prompt[-1]['content'][-20:]}" for prompt in prompts]


@pytest.fixture
def server():
    with ChatServer(rating_of) as running:
        yield running


@pytest.fixture
def work(server, tmp_path):
    """Makes a `Work` whose judge is the server."""

    def make(*options, limit=None, generator=None, replay=False) -> Work:
        config = EndpointConfig(
            endpoint_model="judge",
            endpoint_url=None if replay else server.url,
            replies=str(tmp_path / "replies.sqlite"),
            replay=replay,
            reply_attempts=2,
        )
        by_name = {type(part).__name__: part for part in options}
        chosen = generator or Parrot()
        return Work("model", tmp_path / "out", lambda: chosen, lambda: Endpoint(config), by_name, limit)

    return make


def content(request: dict) -> str:
    return request["messages"][-1]["content"]


# Ratings


@pytest.mark.parametrize(
    "text", ["[[7]]", "Good. Rating: [[7]]", "[[7]] means that, in short: [[7]]", "Rating: [[ 7 ]]."]
)
def test_a_rating_is_read(text):
    assert rating_in(1, 10)(text) == 7


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "there is no"),
        ("7", "there is no"),
        ("Rating: [7]", "there is no"),
        ("[[7]] or [[8]]", "several ratings, "),
        ("[[rating]] [[7]]", "several ratings"),
        ("[[seven]]", "is no number from 1 to 10"),
        ("[[0]]", "is no number from 1 to 10"),
        ("[[11]]", "is no number from 1 to 10"),
        ("[[-3]]", "is no number from 1 to 10"),
        ("[[7/10]]", "is no number from 1 to 10"),
        ("[[nan]]", "is no number from 1 to 10"),
        ("[[٧]]", "is no number from 1 to 10"),
        ("[[7.5]]", "no whole number"),
        ("[[]]", "is no number"),
    ],
)
def test_what_is_no_rating(text, reason):
    with pytest.raises(ReplyError, match=reason):
        rating_in(1, 10)(text)


def test_a_rating_that_need_not_be_whole():
    assert rating_in(1, 10, whole=False)("[[7.5]]") == 7.5
    assert rating_in(1, 10)("[[7.0]]") == 7


def test_values_with_braces_stay_as_they_are():
    assert fill("{a} {b} {c} {{a}}", a="{b}", b="\\1 {a}") == r"{b} \1 {a} {c} {{b}}"


def test_two_ratings_are_averaged_and_a_missing_one_is_not(work, server):
    endpoint = work().endpoint()
    prompts = [[{"role": "user", "content": "x" * n}] for n in (1, 2)]
    # By `rating_of`: 1 + (1 + 0) % 10 = 2 and, with the seed of the second sample, 1000, the same.
    one, two = judge(endpoint, prompts, rating_in(1, 10), num_ratings=2)
    assert (one.values, one.score, two.values, two.score) == ((2, 2), 2, (3, 3), 3)
    server.reply = lambda request: {0: "[[4]]", 1000: "[[9]]"}.get(request["seed"], "?")
    assert judge(endpoint, [[{"role": "user", "content": "new"}]], rating_in(1, 10), num_ratings=2)[0].score == 6.5
    server.reply = lambda request: "[[4]]" if request["seed"] < 1000 else "no idea"
    (lost,) = judge(endpoint, [[{"role": "user", "content": "newer"}]], rating_in(1, 10), num_ratings=2)
    assert lost.score is None and lost.values == (4, None) and lost.replies == (("[[4]]",), ("no idea", "no idea"))
    assert lost.error == "1 of 2 ratings are missing: 2 replies, the last one: there is no [[rating]] in it"


def test_the_cost_is_said_before_anything_is_asked(work, server, capsys):
    told = []
    server.reply = lambda request: told.append(capsys.readouterr().err) or "[[5]]"
    judge(work().endpoint(), [[{"role": "user", "content": "x" * 400}]], rating_in(1, 10))
    assert "1 questions to judge, 0 of them answered before; to ask: about 100 input tokens" in told[0]
    assert "8 at a time" in told[0]


@pytest.mark.parametrize(
    ("name", "digest"),  # of the files as LongAlign and FastChat published them
    [
        ("longbench_chat/prompt_fs.txt", "c68efc995bfd8ea5"),
        ("longbench_chat/few_shots.json", "1849e4141863b65c"),
        ("mt_bench/judge_prompts.jsonl", "fd283293406d024f"),
        ("mt_bench/mt_bench_question.jsonl", "119565adbab82227"),
        ("mt_bench/mt_bench_reference_answer_gpt-4.jsonl", "f957a5bc977badb6"),
    ],
)
def test_prompts_are_the_published_ones_to_the_byte(name, digest):
    assert hashlib.sha256(shipped_prompt(name).encode()).hexdigest()[:16] == digest


# LongBench-Chat


def chat_rows(num=3, **changes) -> list[dict]:
    rows = [
        {"idx": n, "prompt": f"A long document.\n\nWhat of {n}?", "query": f"What of {n}?", "answer": f"It is {n}."}
        for n in range(1, num + 1)
    ]
    rows[-1] |= {"query": "作者是谁？"} | changes
    return rows


def chat_file(folder, rows) -> str:
    path = folder / "chat.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def chat_config(folder, rows=None, **settings) -> longbench_chat.LongBenchChatConfig:
    data = chat_file(folder, chat_rows() if rows is None else rows)
    return longbench_chat.LongBenchChatConfig(longbench_chat_data=data, **settings)


def test_longbench_chat_by_hand(work, server, tmp_path):
    generator = Parrot()
    result = run_task("longbench_chat", work(chat_config(tmp_path), generator=generator))
    ((prompts, max_new_tokens),) = generator.asked
    assert prompts[0] == [{"role": "user", "content": "A long document.\n\nWhat of 1?"}] and max_new_tokens == 1024
    sent = {content(request): request for request in server.requests}
    assert len(server.requests) == 6 and len(sent) == 3  # two ratings of each
    expected = []
    for row in result.rows:
        (asked,) = [text for text in sent if f"[Question]\n{row['question']}\n" in text]
        assert asked.endswith(f"[Assistant's answer begins]\n{row['answer']}\n[Assistant's answer ends]\n\nRating: ")
        expected.append(sum(1 + (len(asked) + seed) % 10 for seed in (0, 1000)) / 2)
    assert [row["score"] for row in result.rows] == expected
    assert result.metrics["mean"] == pytest.approx(sum(expected) / 3)
    assert list(result.metrics) == ["mean", "percent", "en", "zh"]
    assert result.metrics["percent"] == pytest.approx(10 * result.metrics["mean"])
    assert result.metrics["zh"] == expected[2] and result.metrics["en"] == sum(expected[:2]) / 2
    assert result.settings["judge"] == "judge" and result.settings["num_failed"] == 0


def test_longbench_chat_prompt_is_the_published_one(tmp_path):
    (first, *_) = longbench_chat.read_questions(chat_config(tmp_path))
    system, message = first.judge_prompt(shipped_prompt("longbench_chat/prompt_fs.txt"), "Braces {} and {0}.")
    assert system == {"role": "system", "content": "You're a good assistant at evaluating the quality of texts."}
    shots = json.loads(shipped_prompt("longbench_chat/few_shots.json"))[0]
    assert [shot["score"] for shot in shots] == [10, 10, 1]
    places = [
        message["content"].index(f"{shot['answer']}\n[Assistant's answer ends]\n\nRating: [[{shot['score']}]]")
        for shot in shots
    ]
    assert places == sorted(places) and "[Reference answer begins]\nIt is 1.\n" in message["content"]
    assert "Braces {} and {0}." in message["content"]


def test_every_published_question_has_three_rated_answers():
    shots = longbench_chat._read_shots(None)
    assert len(shots) == 50 and all(1 <= shot["score"] <= 10 for three in shots for shot in three)


def test_a_context_of_its_own_is_put_before_the_question(tmp_path):
    rows = [{"idx": 1, "context": "A document.", "query": "Who?", "answer": "Ann."}]
    assert longbench_chat.read_questions(chat_config(tmp_path, rows))[0].prompt == "A document.\n\nWho?"


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"id": 1, "query": "q", "answer": "a"}], r"no column idx, prompt \(or context\)"),
        (chat_rows(idx=51), "idx 51, and there are rated answers to questions 1 to 50"),
        (chat_rows(idx=1), "two of the same idx"),
        (chat_rows(answer=""), "Question 3 of .* has no text in answer"),
        (chat_rows(prompt=None), "has no text in prompt"),
    ],
)
def test_questions_that_cannot_be_used_end_before_any_answer(work, server, tmp_path, rows, message):
    generator = Parrot()
    with pytest.raises(ValueError, match=message):
        run_task("longbench_chat", work(chat_config(tmp_path, rows), generator=generator))
    assert not generator.asked and not server.requests


@pytest.mark.parametrize("text", ["{}", "[[]]", "nothing", '[[{"answer": "a", "score": 11}]]', "[[1, 2, 3]]"])
def test_rated_answers_of_ones_own_are_checked(tmp_path, text):
    (tmp_path / "shots.json").write_text(text)
    config = chat_config(tmp_path, longbench_chat_few_shots=str(tmp_path / "shots.json"))
    with pytest.raises(ValueError, match='must be a list with, for each question, 3 of {"answer"'):
        longbench_chat.read_questions(config)


def test_a_judge_that_is_not_named_ends_before_any_answer(work, tmp_path):
    generator = Parrot()
    given = work(chat_config(tmp_path), generator=generator)
    given.endpoint = lambda: Endpoint(EndpointConfig())
    with pytest.raises(ValueError, match="No model to ask is named"):
        run_task("longbench_chat", given)
    assert not generator.asked


def test_a_failed_rating_is_in_no_mean_and_is_shown(work, server, tmp_path, capsys):
    server.reply = lambda request: "hm" if "What of 2?" in content(request) else "[[8]]"
    result = run_task("longbench_chat", work(chat_config(tmp_path)))
    assert [row["score"] for row in result.rows] == [8, None, 8] and result.metrics["mean"] == 8
    assert result.rows[1]["replies"] == [["hm", "hm"], ["hm", "hm"]]
    assert result.settings["num_failed"] == 1
    shown = capsys.readouterr().err
    assert "1 of 3 answers of LongBench-Chat have no rating and are in no mean" in shown
    assert "there is no [[rating]] in it" in shown


def test_when_nothing_is_rated_there_is_no_figure(work, server, tmp_path):
    server.reply = lambda request: "hm"
    with pytest.raises(RuntimeError, match="None of 3 answers of LongBench-Chat could be rated: 2 of 2 ratings"):
        run_task("longbench_chat", work(chat_config(tmp_path)))


def test_replay_gives_the_same_result(work, server, tmp_path):
    server.faults += [Fault(text="hm")]
    live = run_task("longbench_chat", work(chat_config(tmp_path)))
    save_result(live, tmp_path / "out")
    asked = len(server.requests)
    again = run_task("longbench_chat", work(chat_config(tmp_path), replay=True))
    assert again == live == load_result(tmp_path / "out", "longbench_chat") and len(server.requests) == asked == 7
    changed = chat_config(tmp_path, longbench_chat_ratings=3)
    with pytest.raises(EndpointError, match="no recorded reply"):
        run_task("longbench_chat", work(changed, replay=True))


# MT-Bench


def test_mt_bench_has_its_80_questions():
    questions = mt_bench.read_questions(mt_bench.MtBenchConfig())
    assert len(questions) == 80 and len({question.category for question in questions}) == 8
    assert sum(question.references is not None for question in questions) == 30


def test_mt_bench_by_hand(work, server):
    generator = Parrot()
    result = run_task("mt_bench", work(limit=42, generator=generator))  # math begins at the 31st, coding at the 41st
    (first, _), (second, _) = generator.asked
    assert [len(prompt) for prompt in first] == [1] * 42 and [len(prompt) for prompt in second] == [3] * 42
    assert second[0][1] == {"role": "assistant", "content": result.rows[0]["answer"]}
    assert [row["id"] for row in result.rows[:3]] == ["81-1", "81-2", "82-1"] and len(result.rows) == 84
    systems = {request["messages"][0]["content"][:30] for request in server.requests}
    assert systems == {"You are a helpful assistant.", "Please act as an impartial jud"}
    by_text = {content(request): 1 + (len(content(request)) + request["seed"]) % 10 for request in server.requests}
    questions = mt_bench.read_questions(mt_bench.MtBenchConfig())
    for row in result.rows:
        question = next(x for x in questions if row["id"].startswith(f"{x.question_id}-"))
        (text,) = [
            x
            for x in by_text
            if row["question"] in x and row["answer"] in x and ("### User" in x) == (row["turn"] == 2)
        ]
        assert row["score"] == by_text[text]
        assert ("eference" in text) == (question.category in ("math", "reasoning", "coding"))
        assert row["turn"] == 1 or question.turns[0] in text
    scores = [row["score"] for row in result.rows]
    assert result.metrics["mean"] == pytest.approx(sum(scores) / 84)
    assert result.metrics["turn_2"] == pytest.approx(sum(scores[1::2]) / 42)
    assert result.metrics["math"] == pytest.approx(sum(scores[60:80]) / 20)


def test_mt_bench_judges_math_with_the_reference():
    question = next(x for x in mt_bench.read_questions(mt_bench.MtBenchConfig()) if x.question_id == 111)
    templates = mt_bench._templates()
    first, second = (mt_bench.judge_prompt(templates, question, turn, ("ANSWER 1", "ANSWER 2")) for turn in (1, 2))
    assert first[0] == {"role": "system", "content": "You are a helpful assistant."}
    assert question.references[0] in first[1]["content"] and "ANSWER 2" not in first[1]["content"]
    assert all(x in second[1]["content"] for x in (*question.references, *question.turns, "ANSWER 1", "ANSWER 2"))
    assert "reference answer" in second[0]["content"]


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (['{"question_id": 1, "category": "stem", "turns": ["a"]}'], "Line 1 of .* is no question"),
        (['{"question_id": 1, "category": "stem", "turns": ["a", ""]}'], "is no question"),
        (['{"question_id": 1, "category": "math", "turns": ["a", "b"]}'], "math is judged with a reference answer"),
        (['{"question_id": 1, "category": "stem", "turns": ["a", "b"]}'] * 2, "question_id 1 is there twice"),
        (["{"], "Line 1 of .* is no JSON"),
        (["[]"], "Line 1 of .* is a list"),
        ([], "There is no question"),
    ],
)
def test_mt_bench_questions_of_ones_own_are_checked(tmp_path, lines, message):
    (tmp_path / "q.jsonl").write_text("\n".join(lines))
    with pytest.raises(ValueError, match=message):
        mt_bench.read_questions(mt_bench.MtBenchConfig(mt_bench_questions=str(tmp_path / "q.jsonl")))


# LongBench's answers


ANSWERS = [
    {"id": "1", "group": "hotpotqa", "question": "Who?", "target": ["Ann", "Ann B."], "answer": "Ann", "score": 100},
    {"id": "2", "group": "hotpotqa", "question": "Where?", "target": "['Rome']", "answer": "Oslo"},
    {"id": "1", "group": "qasper", "input": "[Why?]", "answers": "[sic] so", "pred": "So."},
    {"id": "1", "group": "longbench_gov_report_e", "target": "A summary.", "answer": "Another."},
    {"id": "1", "group": "trec", "target": "LOC", "answer": "LOC"},
]


def judged(work, tmp_path, server, rows=ANSWERS, **settings):
    path = tmp_path / "answers.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return run_task("longbench_judged", work(longbench_judged.LongBenchJudgedConfig(str(path), **settings)))


def test_the_cost_of_answers_and_summaries_is_said_once_and_first(work, server, tmp_path, capsys):
    said = []
    server.reply = lambda request: said.append(capsys.readouterr().err) or "[[2]]"
    judged(work, tmp_path, server, longbench_judged_ratings=3)
    lines = [line for line in "".join([*said, capsys.readouterr().err]).splitlines() if "questions to judge" in line]
    assert len(lines) == 1 and lines[0].startswith("12 questions to judge") and lines[0] in said[0]


def test_longbench_answers_by_hand(work, server, tmp_path):
    ratings = {"Ann": 3, "Oslo": 1, "So.": 2, "Another.": 2}
    server.reply = lambda request: (
        f"[[{next(n for x, n in ratings.items() if x + chr(10) in content(request).split('assistant')[-1])}]]"
    )
    result = judged(work, tmp_path, server)
    assert [row["rating"] for row in result.rows] == [3, 1, 2, 2]
    assert [row["score"] for row in result.rows] == [100, 0, 50, 25]  # percent of 1 to 3, of 1 to 5
    expected = {"single_doc_qa": 50, "multi_doc_qa": 50, "summarization": 25, "mean": 125 / 3}
    expected |= {"hotpotqa": 50, "qasper": 50, "longbench_gov_report_e": 25}
    assert result.metrics == pytest.approx(expected) and next(iter(result.metrics)) == "mean"
    assert result.settings["num_not_judged"] == 1
    first, summary = content(server.requests[0]), content(server.requests[-1])
    assert "[Question]\nWho?" in next(content(x) for x in server.requests if "Ann B." in content(x))
    assert (
        "- Ann\n- Ann B." in "".join(map(content, server.requests)) and "[[2]]" in first and "1, the worst" in summary
    )


def test_a_rating_out_of_the_scale_of_its_kind_is_none(work, server, tmp_path):
    server.reply = lambda request: "[[4]]"  # is one of 1 to 5, and none of 1 to 3
    result = judged(work, tmp_path, server)
    assert [row["score"] for row in result.rows] == [None, None, None, 75] and result.settings["num_failed"] == 3
    # No mean of the rest stands for data sets of which nothing is known.
    assert result.metrics == {"summarization": 75, "longbench_gov_report_e": 75}


def test_longbench_prompts_of_ones_own(work, server, tmp_path):
    server.reply = lambda request: "[[2]]"
    (tmp_path / "qa.txt").write_text("Q {question} R {reference} A {answer} {format}")
    judged(work, tmp_path, server, ANSWERS[:1], longbench_judged_qa_prompt=str(tmp_path / "qa.txt"))
    assert content(server.requests[0]) == "Q Who? R - Ann\n- Ann B. A Ann {format}"
    (tmp_path / "qa.txt").write_text("Q {question} A {answer}")
    with pytest.raises(ValueError, match="has no place for reference"):
        judged(work, tmp_path, server, longbench_judged_qa_prompt=str(tmp_path / "qa.txt"))


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (
            [{"group": "hotpotqa", "target": "a", "answer": "b"}],
            "Row 1 of .* lacks a question, a reference or an answer",
        ),
        ([{"group": "qmsum", "target": [], "answer": "b"}], "lacks a question, a reference or an answer"),
        ([{"target": "a", "answer": "b"}], "names no data set"),
        ([ANSWERS[4]], "None of the 1 rows"),
        ([ANSWERS[0], ANSWERS[0]], "hotpotqa has two rows with the id '1'"),
        ([ANSWERS[0] | {"kind": "poem"}], "of the kind 'poem'"),
    ],
)
def test_answers_that_cannot_be_judged(work, server, tmp_path, rows, message):
    with pytest.raises(ValueError, match=message):
        judged(work, tmp_path, server, rows)
    assert not server.requests


def test_answers_are_those_of_the_evaluation_by_default(work, server, tmp_path):
    with pytest.raises(FileNotFoundError, match="run the task longbench first"):
        run_task("longbench_judged", work())
    folder = tmp_path / "out" / "longbench"
    folder.mkdir(parents=True)
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ANSWERS))
    result = run_task("longbench_judged", work(limit=1))
    assert [row["group"] for row in result.rows] == ["hotpotqa", "qasper", "longbench_gov_report_e"]


# All of them


def test_settings_of_tasks_have_names_of_their_own():
    modules = (longbench_chat, longbench_judged, mt_bench)
    names = [name for module in modules for kind in module.OPTIONS for name in kind.__dataclass_fields__]
    assert len(names) == len(set(names)) and {"longbench_chat", "mt_bench", "longbench_judged"} <= set(TASKS)


@pytest.mark.parametrize(
    "kind", [longbench_chat.LongBenchChatConfig, mt_bench.MtBenchConfig, longbench_judged.LongBenchJudgedConfig]
)
def test_settings_out_of_range(kind):
    prefix = next(name for name in kind.__dataclass_fields__ if name.endswith("_ratings"))[: -len("_ratings")]
    with pytest.raises(ValueError, match=f"{prefix}_ratings is a number of ratings, got 0"):
        kind(**{f"{prefix}_ratings": 0})
    with pytest.raises(ValueError, match=f"{prefix}_temperature is the judge's temperature, got -1"):
        kind(**{f"{prefix}_temperature": -1})


def test_rows_keep_every_character(tmp_path):
    result = longbench_chat.TaskResult("t", {}, [{"id": "1", "answer": "one\u2028two\x85three\x0b\x1c\r\n\n"}])
    save_result(result, tmp_path)
    assert load_result(tmp_path, "t") == result
    assert read_rows(tmp_path / "t" / "rows.jsonl") == result.rows


class TinyGenerator:
    """A real model of transformers, greedy, a prompt at a time."""

    def __init__(self, folder: str):
        from transformers import AutoModelForCausalLM, AutoTokenizer

        self.model = folder
        self.tokenizer, self.weights = (
            AutoTokenizer.from_pretrained(folder),
            AutoModelForCausalLM.from_pretrained(folder),
        )

    def generate(self, prompts, max_new_tokens):
        answers = []
        for prompt in prompts:
            inputs = self.tokenizer.apply_chat_template(
                prompt, add_generation_prompt=True, return_tensors="pt", return_dict=True
            )
            out = self.weights.generate(**inputs, max_new_tokens=min(8, max_new_tokens), do_sample=False)
            answers.append(self.tokenizer.decode(out[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))
        return answers


def test_with_a_real_model(work, server, tmp_path, tiny_model):
    generator = TinyGenerator(tiny_model)
    result = run_task("mt_bench", work(limit=2, generator=generator))
    assert len(result.rows) == 4 and all(row["answer"] for row in result.rows)
    asked = {content(request) for request in server.requests}
    assert all(any(row["answer"] in text for text in asked) for row in result.rows)
    assert re.fullmatch(r"[0-9a-f]{12}", result.settings["prompt"])
    save_result(result, tmp_path / "out")
    assert run_task("mt_bench", work(limit=2, generator=generator, replay=True)) == load_result(
        tmp_path / "out", "mt_bench"
    )
    chat = run_task("longbench_chat", work(chat_config(tmp_path), generator=generator))
    assert len(chat.rows) == 3 and chat.metrics["mean"] == sum(row["score"] for row in chat.rows) / 3


def test_the_command_judges_once_and_anew_with_other_parameters(server, tmp_path, tiny_model, capsys):
    asked = ["eval", tiny_model, "--tasks", "mt_bench", "--limit", "1", "--mt_bench_answer_tokens", "4"]
    asked += ["--endpoint_model", "judge", "--endpoint_url", server.url]
    asked += ["--replies", str(tmp_path / "replies.sqlite"), "-o", str(tmp_path / "out")]
    assert main(asked) == 0 and len(server.requests) == 2
    figures = load_result(tmp_path / "out", "mt_bench").metrics
    assert figures["mean"] == sum(float(BRACKETS.findall(rating_of(x))[0]) for x in server.requests) / 2
    assert main(asked) == 0 and "finished before" in capsys.readouterr().out
    server.reply = lambda request: "[[1]]"
    assert main([*asked, "--endpoint_parameters", '{"reasoning_effort": "low"}']) == 0
    assert "finished before" not in capsys.readouterr().out and len(server.requests) == 4
    assert load_result(tmp_path / "out", "mt_bench").metrics["mean"] == 1
