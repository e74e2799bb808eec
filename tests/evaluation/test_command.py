"""`hf-gateau eval` as its users meet it: results, the same command again, a kill half way, tasks that fail, wrong input."""

import json
import os
import signal
import sqlite3
import subprocess
import sys
import time

import pytest
from huggingface_hub.repocard_data import model_index_to_eval_results

from hf_gateau.cli import main
from hf_gateau.evaluation import generation
from hf_gateau.evaluation.answering import ANSWERS
from hf_gateau.evaluation.command import MODEL_INDEX, SUMMARY, EvalArguments, evaluate
from hf_gateau.evaluation.needle import NeedleConfig
from hf_gateau.evaluation.planted_needle import PlantedNeedleConfig
from hf_gateau.evaluation.results import TaskResult, eval_results, group_means, load_result, save_result, summary
from hf_gateau.evaluation.tasks import TASKS, Work, run_task, task_options, task_reads
from hf_gateau.quickstart import LONG_MODEL, SHORT_MODEL


GRID = "--needle_lengths 64 256 --planted_repeats 2 --needle_depths 0 50 100".split()


def run(*arguments) -> int:
    return main(["eval", *map(str, arguments)])


@pytest.fixture()
def no_weights(monkeypatch):
    """Any use of a model is an error."""

    def refuse(self):
        raise AssertionError("a model was loaded")

    monkeypatch.setattr(generation.TransformersGenerator, "_load", refuse)


def test_the_tiny_pair_and_the_same_command_again(tmp_path, capsys, request):
    settings = [*GRID, "--max_length", 400, "--device", "cpu"]
    for name, model in (("long", LONG_MODEL), ("short", SHORT_MODEL)):
        assert run(model, "--tasks", "planted_needle", "-o", tmp_path / name, *settings) == 0
    long, short = (load_result(tmp_path / name, "planted_needle") for name in ("long", "short"))
    assert long.metrics == {"mean": 100.0, "64 tokens": 100.0, "256 tokens": 100.0}
    assert short.metrics["64 tokens"] > 80 and short.metrics["256 tokens"] < 60  # its window is 128 tokens
    assert {row["score"] for row in short.rows if (row["length"], row["depth"]) == (256, 0.0)} == {0.0}
    assert len(long.rows) == 12 and all(row["answer"] for row in long.rows)
    printed = capsys.readouterr().out
    assert "planted_needle  mean        100.00         12" in printed and "64 tokens   100.00\n" in printed
    text = (tmp_path / "long" / SUMMARY).read_text()
    assert "| `planted_needle` | `mean` | 100.00 | 12 |" in text and "|  | `64 tokens` | 100.00 |  |" in text
    for name in ("needle.png", "needle.csv", "rows.jsonl", "results.json"):
        assert (tmp_path / "long" / "planted_needle" / name).stat().st_size
    request.getfixturevalue("no_weights")
    assert run(LONG_MODEL, "--tasks", "planted_needle", "-o", tmp_path / "long", *settings) == 0
    printed = capsys.readouterr().out
    assert "finished before, with the same settings" in printed and "planted_needle  mean        100.00" in printed


def test_other_settings_are_another_task_but_answers_stay(tmp_path, capsys, request):
    folder = ["-o", tmp_path, "--device", "cpu", "--tasks", "planted_needle"]
    assert run(LONG_MODEL, *folder, *GRID) == 0
    request.getfixturevalue("no_weights")
    assert run(LONG_MODEL, *folder, *GRID, "--needle_depths", 0, 100) == 0  # all of its questions were answered
    assert "finished before" not in capsys.readouterr().out
    assert len(load_result(tmp_path, "planted_needle").rows) == 8
    assert run(LONG_MODEL, *folder, *GRID, "--needle_seed", 1) == 2
    assert "planted_needle could not be finished: AssertionError: a model was loaded" in capsys.readouterr().err
    assert "| `planted_needle` | `mean` | 100.00 | 8 |" in (tmp_path / SUMMARY).read_text()  # as its files say
    assert json.loads((tmp_path / MODEL_INDEX).read_text())


def test_task_by_task_into_one_folder(tmp_path):
    """The summary and the card's metadata hold what all commands found."""
    text = tmp_path / "hay.txt"
    text.write_text("the old river stood . the quiet bridge waited near the tower .\n" * 20)
    needle = ["--needle", "adam baxter slept .", "--needle_question", "who is adam ?", "--haystack", text]
    settings = ["-o", tmp_path / "out", "--device", "cpu", *GRID]
    assert run(LONG_MODEL, "--tasks", "needle", *settings, *needle) == 0
    assert run(LONG_MODEL, "--tasks", "planted_needle", *settings) == 0
    written = (tmp_path / "out" / SUMMARY).read_text()
    assert "| `needle` | `mean` |" in written and "| `planted_needle` | `mean` | 100.00 | 12 |" in written
    _, found = model_index_to_eval_results(json.loads((tmp_path / "out" / MODEL_INDEX).read_text()))
    assert {x.dataset_type for x in found} == {"needle", "planted_needle"}


def test_a_file_with_other_contents_is_another_task(tmp_path, capsys):
    text = tmp_path / "hay.txt"
    needle = ["--needle", "adam baxter slept .", "--needle_question", "who is adam ?", "--haystack", text]
    asked = []
    for line in ("the old river stood .\n", "the old river stood .\n", "the quiet bridge waited .\n"):
        text.write_text(line * 20)
        assert run(LONG_MODEL, "--tasks", "needle", "-o", tmp_path / "out", "--device", "cpu", *GRID, *needle) == 0
        asked.append("finished before" not in capsys.readouterr().out)
    assert asked == [True, False, True]


def test_ratings_are_of_the_answers_that_are_there(tmp_path, monkeypatch, capsys):
    """`longbench_judged` reads what `longbench` left, whose settings are not its own."""
    assert task_reads("longbench_judged") == ("longbench",) and task_reads("needle") == ()
    ran = []
    monkeypatch.setattr(
        "hf_gateau.evaluation.command.run_task",
        lambda name, work: ran.append(name) or TaskResult(name, {"mean": 1.0}, [{"id": "1", "score": 1.0}]),
    )
    for answer in ("yes", "yes", "no"):
        save_result(TaskResult("longbench", {"mean": 1.0}, [{"id": "1", "answer": answer}]), tmp_path)
        assert run(LONG_MODEL, "--tasks", "longbench_judged", "-o", tmp_path, "--device", "cpu") == 0
    assert ran == ["longbench_judged"] * 2


def test_the_results_of_another_model_are_not_replaced(tmp_path, capsys):
    settings = ["--tasks", "planted_needle", "-o", tmp_path, "--device", "cpu", "--max_length", 400, *GRID]
    assert run(LONG_MODEL, *settings) == 0
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.suffix in (".md", ".json", ".jsonl")}
    assert run(SHORT_MODEL, *settings) == 2
    message = capsys.readouterr().err
    assert "has results of other weights, 'long' (task planted_needle)" in message and "a folder of its own" in message
    assert before == {path: path.read_bytes() for path in before}


def test_the_cards_metadata(tmp_path):
    result = TaskResult("planted_needle", {"mean": 12.5, "64 tokens": 25.0}, [])
    for index in (eval_results([result, TaskResult("longbench", {"mean": 31.0}, [])], "my-model"),):
        name, found = model_index_to_eval_results(index)
        assert name == "my-model"
        assert [(x.dataset_name, x.metric_name, x.metric_value) for x in found] == [
            ("Needle in a Haystack, planted language", "mean", 12.5),
            ("Needle in a Haystack, planted language", "64 tokens", 25.0),
            ("LongBench", "mean", 31.0),
        ]
    assert eval_results([], "my-model") == []
    assert run(LONG_MODEL, "--tasks", "planted_needle", "-o", tmp_path, *GRID, "--device", "cpu") == 0
    written = json.loads((tmp_path / MODEL_INDEX).read_text())
    assert written == eval_results([load_result(tmp_path, "planted_needle")], "long")


def num_answers(folder) -> int:
    if not (folder / ANSWERS).exists():
        return 0
    with sqlite3.connect(folder / ANSWERS, timeout=60) as connection:
        try:
            return connection.execute("SELECT count(*) FROM answers").fetchone()[0]
        except sqlite3.OperationalError:  # its table is not there yet
            return 0


@pytest.mark.slow
def test_a_killed_run_goes_on_where_it_was(tmp_path, monkeypatch):
    settings = ["--tasks", "planted_needle", "--needle_lengths", "700", "--planted_repeats", "20", "--device", "cpu"]
    command = [sys.executable, "-m", "hf_gateau.cli", "eval", LONG_MODEL, "-o", str(tmp_path), *settings]
    command += ["--batch_tokens", "1500"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=os.environ)
    started = time.monotonic()
    while num_answers(tmp_path) < 6 and process.poll() is None and time.monotonic() - started < 120:
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    kept = num_answers(tmp_path)
    assert 6 <= kept < 200 and load_result(tmp_path, "planted_needle") is None
    ran, real = [], generation.TransformersGenerator._batch

    def count(self, prompts, max_new_tokens):
        ran.extend(prompts)
        return real(self, prompts, max_new_tokens)

    monkeypatch.setattr(generation.TransformersGenerator, "_batch", count)
    assert run(LONG_MODEL, "-o", tmp_path, *settings) == 0
    assert len(ran) + kept == num_answers(tmp_path) == len({tuple(prompt) for prompt in ran}) + kept
    assert load_result(tmp_path, "planted_needle").metrics["mean"] == 100.0


def test_a_task_that_fails_does_not_take_the_others_with_it(tmp_path, capsys):
    """LongBench's data cannot be loaded here; what is finished is told and kept."""
    pytest.importorskip("lm_eval")
    tasks = ["--tasks", "harness,planted_needle", "planted_needle"]
    assert run(LONG_MODEL, *tasks, "-o", tmp_path, *GRID, "--device", "cpu") == 2
    captured = capsys.readouterr()
    assert "harness could not be finished: ValueError: The task harness runs what you name" in captured.err
    assert "planted_needle  mean" in captured.out and load_result(tmp_path, "planted_needle") is not None
    assert load_result(tmp_path, "harness") is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((LONG_MODEL, "--tasks", "nedle"), "There is no task 'nedle'; use some of needle"),
        ((LONG_MODEL, "--tasks", "needle", "--limit", 0), "--limit is a number of questions, got 0"),
        (("./nothing", "--tasks", "needle"), "There is no model at './nothing'"),
        ((LONG_MODEL, "--tasks", "needle", "--dtype", "int3"), "--dtype='int3' is not known; use one of 'auto'"),
        (
            (LONG_MODEL, "--tasks", "needle", "--haystack", "no.txt", "--device", "cpu"),
            "There is no haystack at 'no.txt'",
        ),
    ],
)
def test_wrong_input(arguments, message, tmp_path, capsys, no_weights):
    assert run(*arguments, "-o", tmp_path / "out") == 2
    assert message in capsys.readouterr().err


def test_a_file_is_no_folder(tmp_path, capsys, no_weights):
    (tmp_path / "out").touch()
    assert run(LONG_MODEL, "--tasks", "needle", "-o", tmp_path / "out") == 2
    assert "out' is a file; give a folder" in capsys.readouterr().err


def test_a_backend_that_is_not_installed_is_told_in_a_line(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "vllm", None)
    assert run(LONG_MODEL, "--tasks", "needle", "--backend", "vllm", "-o", tmp_path) == 2
    assert "hf-gateau eval: backend='vllm' needs vLLM; `pip install vllm`" in capsys.readouterr().err


def test_importing_the_command_imports_no_torch():
    code = (
        "import sys, hf_gateau.evaluation.command;"
        "print([x for x in ('torch', 'transformers', 'datasets', 'openai', 'lm_eval', 'matplotlib') if x in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_tasks_by_name_with_commas_and_once():
    assert EvalArguments(["needle,planted_needle", "needle"], "out").tasks == ["needle", "planted_needle"]
    assert PlantedNeedleConfig in task_options("planted_needle")
    assert all(isinstance(task_options(name), tuple) for name in TASKS)
    with pytest.raises(ValueError, match="There is no task 'x'"):
        run_task("x", Work("m", None, None, None))


def test_settings_that_are_not_given_are_the_defaults(tmp_path):
    results, failed = evaluate(LONG_MODEL, tmp_path, ["planted_needle"], settings=(NeedleConfig([64]),))
    assert failed == {} and list(results[0].metrics) == ["mean", "64 tokens"]
    assert len(results[0].rows) == 11 * PlantedNeedleConfig().planted_repeats


def test_a_result_comes_back_from_its_files(tmp_path):
    rows = [
        {"id": "1", "score": 1.0, "group": "北京", "answer": "a\u2028b"},
        {"id": "2", "score": None, "group": "a", "error": "no reply"},
    ]
    result = TaskResult("longbench", {"mean": 1.0}, rows, {"limit": 2})
    assert load_result(tmp_path, "longbench") is None
    save_result(result, tmp_path)
    assert load_result(tmp_path, "longbench") == result
    assert "| `longbench` | `mean` | 1.00 | 1 of 2 |" in summary([result])
    assert group_means([*rows, {"score": 0.0, "group": "b"}]) == {"mean": 0.5, "b": 0.0, "北京": 1.0}


def test_lengths_of_planted_texts_are_as_asked_and_not_too_short(tmp_path):
    assert main(["eval", LONG_MODEL, "--tasks", "planted_needle", "-o", str(tmp_path), "--device", "cpu", *GRID]) == 0
    rows = [json.loads(line) for line in (tmp_path / "planted_needle" / "rows.jsonl").read_text().splitlines()]
    assert {row["length"] for row in rows} == {64, 256}
    short = ["--needle_lengths", "8", "--tasks", "planted_needle", "--device", "cpu", "-o", str(tmp_path / "short")]
    assert main(["eval", LONG_MODEL, *short]) == 2
