"""What sets the best samples of a ranking apart from the worst, with a judge that rates by rule."""

import csv
import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from hf_gateau.cli import main
from hf_gateau.endpoint.questions import Endpoint, EndpointConfig, ReplyError
from hf_gateau.evaluation.characteristics import (
    ASPECTS,
    CharacteristicsArguments,
    choose_samples,
    compare_groups,
    cut_middle,
    rate_samples,
    read_aspects,
)
from hf_gateau.evaluation.results import load_result
from tests.paths import ROOT
from tests.servers.chat_server import ChatServer, Fault


pytest.importorskip("openai")


def ranked(num=40, context="A context."):
    """Row n has rank num - n, so that the last is the best, and a response of n characters."""
    from datasets import Dataset

    rows = [
        {
            "id": f"s{n}",
            "messages": [
                {"role": "user", "content": f"{context}\n\nWhat is {n}?"},
                {"role": "assistant", "content": f"It is {n}."},
            ],
            "gateau_rank": num - n if n else None,  # the first row could not be measured
        }
        for n in range(num)
    ]
    return Dataset.from_list(rows)


def reply(ratings: dict[str, int]) -> str:
    return "Reasons.\n" + "\n".join(f"{name}: [[{rating}]]" for name, rating in ratings.items())


def by_rule(request: dict) -> str:
    """Coherence and necessity from the number of the sample, the rest constant."""
    number = int(request["messages"][0]["content"].split("It is ")[1].split(".")[0])
    return reply({"coherence": 1 + number % 5, "necessity": 5 if number > 20 else 2} | dict.fromkeys(ASPECTS[2:], 3))


@pytest.fixture
def server():
    with ChatServer(by_rule) as running:
        yield running


@pytest.fixture
def endpoint(server, tmp_path):
    return EndpointConfig(endpoint_model="judge", endpoint_url=server.url, replies=str(tmp_path / "replies.sqlite"))


@pytest.fixture
def data(tmp_path) -> str:
    ranked().to_parquet(tmp_path / "ranked.parquet")
    return str(tmp_path / "ranked.parquet")


def test_the_best_and_the_worst_are_chosen():
    samples = choose_samples(ranked(), share=0.1, fewest_rows=1)
    assert [sample.id for sample in samples] == ["s39", "s38", "s37", "s36", "s4", "s3", "s2", "s1"]
    assert [sample.group for sample in samples] == ["best"] * 4 + ["worst"] * 4
    assert (samples[0].context, samples[0].instruction, samples[0].response) == (
        "A context.",
        "What is 39?",
        "It is 39.",
    )
    assert len(choose_samples(ranked(), share=0.01, fewest_rows=3)) == 6
    assert len(choose_samples(ranked(6), share=0.01, fewest_rows=10)) == 4  # 5 have a rank: no row is in both groups


def test_what_cannot_be_compared():
    with pytest.raises(ValueError, match="not ranked"):
        choose_samples(ranked().remove_columns("gateau_rank"))
    with pytest.raises(ValueError, match="1 of 2 rows have a rank"):
        choose_samples(ranked(2))
    with pytest.raises(
        ValueError, match="20 of the 20 samples to rate have no instruction or no response, the first 's39'"
    ):
        choose_samples(ranked().remove_columns("messages"))


def test_a_long_context_loses_its_middle_and_says_so():
    text = "a" * 500 + "b" * 1000 + "c" * 500
    shown, num_cut = cut_middle(text, 1000)
    assert (
        shown == f"{'a' * 500}\n\n[1,000 characters of the context are left out here]\n\n{'c' * 500}"
        and num_cut == 1000
    )
    assert cut_middle(text, 2000) == (text, 0)
    (sample, *_) = choose_samples(ranked(4, context="x" * 3000), context_characters=200)
    assert (
        sample.num_cut == 2800
        and "2,800 characters of the context are left out" in sample.judge_prompt("{context}")[0]["content"]
    )


def test_ratings_are_read():
    ratings = dict(zip(ASPECTS, (1, 2, 3, 4, 5), strict=True))
    assert read_aspects(reply(ratings)) == ratings
    bold = "\n".join(f"**{name.title()}**: [[{rating}]]" for name, rating in ratings.items())
    assert read_aspects(bold) == ratings


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (("coherence: [[3]]", ""), "0 ratings of coherence"),
        (("coherence: [[3]]", "coherence: 3"), "0 ratings of coherence"),
        (("coherence: [[3]]", "incoherence: [[3]]"), "0 ratings of coherence"),
        (("coherence: [[3]]", "coherence: [[3]]\ncoherence: [[4]]"), "2 ratings of coherence"),
        (("complexity: [[3]]", "complexity: [[6]]"), r"\[\[6\]\] for complexity is no whole number from 1 to 5"),
        (("complexity: [[3]]", "complexity: [[2.5]]"), "is no whole number"),
    ],
)
def test_ratings_that_are_none(change, reason):
    with pytest.raises(ReplyError, match=reason):
        read_aspects(reply(dict.fromkeys(ASPECTS, 3)).replace(*change))


def test_means_and_intervals_by_hand(server, endpoint):
    result = rate_samples(choose_samples(ranked(), share=0.25), Endpoint(endpoint))
    best, worst = range(30, 40), range(1, 11)  # the numbers of the samples
    expected = np.mean([1 + n % 5 for n in best]) - np.mean([1 + n % 5 for n in worst])
    assert result.metrics["coherence"] == pytest.approx(expected) and result.metrics["necessity"] == 3
    assert [result.metrics[name] for name in ASPECTS[2:]] == [0, 0, 0]
    lines = {line["aspect"]: line for line in compare_groups(result.rows)}
    assert lines["necessity"] == {
        "aspect": "necessity",
        "best": (5, 5, 5),
        "worst": (2, 2, 2),
        "difference": (3, 3, 3),
    }
    mean, low, high = lines["coherence"]["best"]
    spread = np.std([1 + n % 5 for n in best]) / np.sqrt(
        10
    )  # of the mean; the interval is about 1.96 of it on both sides
    assert mean == np.mean([1 + n % 5 for n in best])
    assert low == pytest.approx(mean - 1.96 * spread, abs=0.15) and high == pytest.approx(
        mean + 1.96 * spread, abs=0.15
    )
    assert result.rows[0]["score"] == pytest.approx((1 + 39 % 5 + 5 + 9) / 5)


def test_samples_that_fail_are_counted_and_in_no_mean(server, endpoint, capsys):
    server.reply = lambda request: "no" if "It is 39." in request["messages"][0]["content"] else by_rule(request)
    result = rate_samples(choose_samples(ranked(), share=0.25), Endpoint(endpoint))
    assert result.rows[0]["score"] is None and len(result.rows[0]["replies"][0]) == 3
    assert result.settings["num_failed"] == 1 and "1 of 20 samples have no rating" in capsys.readouterr().err
    assert dict((x["aspect"], x["best"][0]) for x in compare_groups(result.rows))["coherence"] == pytest.approx(
        np.mean([1 + n % 5 for n in range(30, 39)])
    )
    server.reply = lambda request: "no"
    with pytest.raises(RuntimeError, match="None of 4 samples could be rated"):
        rate_samples(choose_samples(ranked(6, context="Another context.")), Endpoint(endpoint))


def arguments(data: str, server, tmp_path, *more: str) -> list[str]:
    judge = ["--endpoint_model", "judge", "--endpoint_url", server.url, "--replies", str(tmp_path / "replies.sqlite")]
    return ["characteristics", data, *judge, "--fewest_rows", "5", *more]


def test_a_dry_run_says_the_cost_and_asks_nothing(server, data, tmp_path, capsys, monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    prices = ["--input_price", "2", "--output_price", "8"]
    assert main([*arguments(data, server, tmp_path, "--dry_run"), *prices]) == 0
    shown = capsys.readouterr().out
    assert (
        "The 5 best and the 5 worst samples." in shown and "10 questions to judge, 0 of them answered before" in shown
    )
    assert "about 0.1" in shown and not server.arrivals


def test_the_command_writes_table_figure_and_judgements(server, data, tmp_path, capsys):
    out = tmp_path / "out"
    assert main(arguments(data, server, tmp_path, "-o", str(out))) == 0
    shown = capsys.readouterr().out
    assert "| necessity | 5.00 [5.00, 5.00] | 2.00 [2.00, 2.00] | +3.00 [+3.00, +3.00] |" in shown
    assert (out / "characteristics" / "table.md").read_text() in shown
    with (out / "characteristics" / "table.csv").open() as stream:
        table = {row["aspect"]: row for row in csv.DictReader(stream)}
    assert float(table["necessity"]["difference_low"]) == 3 and list(table) == list(ASPECTS)
    result = load_result(out, "characteristics")
    assert len(result.rows) == 10 and result.settings["context_characters"] == 100_000
    assert result.settings["data"] == "ranked.parquet"  # and not the folders before it
    assert (out / "characteristics" / "radar.png").read_bytes().startswith(b"\x89PNG")
    asked = len(server.requests)
    assert main([*arguments(data, server, tmp_path, "-o", str(tmp_path / "again"), "--replay")]) == 0
    again = tmp_path / "again" / "characteristics"
    for name in ("table.md", "rows.jsonl", "radar.png"):
        assert (again / name).read_bytes() == (out / "characteristics" / name).read_bytes()
    assert len(server.requests) == asked == 10


@pytest.mark.slow
def test_every_fault_and_a_kill_change_no_figure_and_nothing_is_rated_twice(data, tmp_path):
    lost, replies, out = {}, tmp_path / "replies.sqlite", tmp_path / "out"

    def trouble(request: dict) -> str:
        """Each sample's first request goes wrong, in one of four ways; the later ones take a moment."""
        number = int(request["messages"][0]["content"].split("It is ")[1].split(".")[0])
        if number not in lost:
            lost[number] = number % 4
            if lost[number] == 1:
                return "I would rather not say."
            if lost[number] == 2:
                return by_rule(request).replace("[[", "[").replace("]]", "]")
            if lost[number] == 3:
                time.sleep(1.3)  # longer than the client waits
        time.sleep(0.1)
        return by_rule(request)

    with ChatServer(trouble) as server:
        server.faults = [Fault(429, times=3, retry_after=1), Fault(0), Fault(503), Fault(body="<html>")]
        how = ["--fewest_rows", "15", "--concurrency", "3", "--request_timeout", "1"]
        given = [*arguments(data, server, tmp_path), *how]
        command = [sys.executable, "-m", "hf_gateau.cli", *given, "-o", str(out)]
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        quiet["env"] = os.environ | {"OPENAI_API_KEY": "a-key-of-nobodys"}
        run = subprocess.Popen(command, **quiet)
        deadline = time.monotonic() + 100
        while len(kept := rated(replies)) < 12:
            assert time.monotonic() < deadline and run.poll() is None
            time.sleep(0.02)
        run.kill()
        assert run.wait() == -signal.SIGKILL and not (out / "characteristics").exists()
        time.sleep(0.5)  # what was under way is written down by the server
        kept, before = rated(replies), len(server.requests)
        assert 12 <= len(kept) < 30
        assert subprocess.run(command, **quiet).returncode == 0
        again = {(question_of(request), request["seed"]) for request in server.requests[before:]}
        assert again.isdisjoint(kept) and set(kept) <= set(rated(replies))
        asked = len(server.requests)
        assert main([*given, "-o", str(tmp_path / "replayed"), "--replay"]) == 0
        assert len(server.requests) == asked
    with (out / "characteristics" / "table.csv").open() as stream:
        table = {row["aspect"]: row for row in csv.DictReader(stream)}
    best, worst = range(25, 40), range(1, 16)
    assert float(table["coherence"]["best"]) == pytest.approx(np.mean([1 + n % 5 for n in best]), abs=1e-4)
    assert float(table["coherence"]["worst"]) == pytest.approx(np.mean([1 + n % 5 for n in worst]), abs=1e-4)
    assert float(table["necessity"]["difference"]) == 3
    rows = load_result(out, "characteristics").rows
    assert len(rows) == 30 and not [row for row in rows if row["error"]]
    for name in ("table.md", "table.csv", "rows.jsonl"):
        replayed = tmp_path / "replayed" / "characteristics" / name
        assert replayed.read_bytes() == (out / "characteristics" / name).read_bytes()
    written = [path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()]
    assert len(written) > 8 and not [text for text in written if b"a-key-of-nobodys" in text]


def question_of(request: dict) -> str:
    return request["messages"][-1]["content"]


def rated(replies: Path) -> dict[tuple[str, int], str]:
    """(question, seed) -> reply of every reply that is kept."""
    if not replies.exists():
        return {}
    try:
        rows = sqlite3.connect(replies).execute("SELECT request, attempt, text FROM replies").fetchall()
    except sqlite3.OperationalError:  # its table is being made
        return {}
    return {(question_of(json.loads(request)), attempt): text for request, attempt, text in rows}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"share": 0}, "--share is a part of the rows, got 0"),
        ({"share": 0.6}, "--share"),
        ({"fewest_rows": 0}, "--fewest_rows is a whole number, got 0"),
        ({"ratings": 0}, "--ratings"),
        ({"context_characters": 10}, "--context_characters is a whole number, got 10; give 200 or more"),
        ({"temperature": 3}, "--temperature"),
        ({"output": None}, "name a folder with --output"),
    ],
)
def test_settings_out_of_range(settings, message):
    with pytest.raises(ValueError, match=message):
        CharacteristicsArguments(**{"output": "out"} | settings)


def test_the_module_is_light():
    """`hf-gateau --help` imports it."""
    code = "import sys, hf_gateau.evaluation.characteristics, hf_gateau.evaluation.human_tally; print([x for x in ('torch', 'transformers', 'datasets', 'openai', 'matplotlib') if x in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert json.loads(done.stdout.replace("'", '"')) == [], done.stderr
