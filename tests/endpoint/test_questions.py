"""Questions to an endpoint, with the real `openai` client over HTTP to a server on this machine."""

import json
import os
import re
import signal
import sqlite3
import subprocess
import sys
import time
from email.utils import formatdate
from pathlib import Path

import pytest

from hf_gateau.endpoint.chat_client import ChatClient
from hf_gateau.endpoint.questions import Endpoint, EndpointConfig, EndpointError, ReplyError, Request
from tests.paths import ROOT
from tests.processes import hears_ctrl_c
from tests.servers.chat_server import ChatServer, Fault, rating_of


pytest.importorskip("openai")


def question(number: int, **settings) -> Request:
    return Request([{"role": "user", "content": f"Question {'x' * number}"}], **settings)


def rating(text: str) -> int:
    if not (found := re.search(r"\[\[(\d+)\]\]", text)):
        raise ReplyError("there is no [[rating]] in it")
    return int(found.group(1))


def by_hand(number: int, seed: int = 0) -> int:
    """What `rating_of` says of `question(number)`."""
    return 1 + (len("Question ") + number + seed) % 10


@pytest.fixture
def server():
    with ChatServer(rating_of) as running:
        yield running


@pytest.fixture
def endpoint(server, tmp_path):
    def make(**settings) -> Endpoint:
        settings = {"endpoint_model": "judge", "endpoint_url": server.url, "concurrency": 4} | settings
        return Endpoint(EndpointConfig(replies=str(tmp_path / "replies.sqlite"), **settings))

    return make


@pytest.mark.quick
def test_answers_come_in_order_and_are_asked_once(server, endpoint):
    told = {}
    answers = endpoint().ask([question(n) for n in range(30)], rating, tell=lambda place, x: told.update({place: x}))
    assert [answer.value for answer in answers] == [by_hand(n) for n in range(30)]
    assert [told[place] for place in range(30)] == answers
    assert [answer.value for answer in endpoint().ask([question(n) for n in range(31)], rating)][30] == by_hand(30)
    assert len(server.requests) == 31  # the second run asked for the one that was new


@pytest.mark.quick
def test_the_request_is_what_was_meant(server, endpoint):
    endpoint().ask([question(3, max_tokens=7, temperature=0.5, sample=2)])
    (sent,) = server.requests
    expected = {"model": "judge", "messages": [{"role": "user", "content": "Question xxx"}]}
    assert sent == expected | {"max_tokens": 7, "temperature": 0.5, "seed": 2000}


def test_other_parameters_are_sent_and_are_other_questions(server, endpoint):
    endpoint().ask([question(1)])
    changed = endpoint(endpoint_parameters='{"max_tokens": null, "max_completion_tokens": 9, "temperature": null}')
    changed.ask([question(1)])
    assert {"max_tokens", "temperature"}.isdisjoint(server.requests[1])
    assert server.requests[1]["max_completion_tokens"] == 9


@pytest.mark.quick
def test_equal_questions_are_asked_once_and_samples_are_not_equal(server, endpoint):
    answers = endpoint().ask([question(1), question(1), question(1, sample=1)], rating)
    assert [answer.value for answer in answers] == [by_hand(1), by_hand(1), by_hand(1, seed=1000)]
    assert len(server.requests) == 2


@pytest.mark.quick
def test_a_malformed_reply_is_asked_for_again_and_kept(server, endpoint, tmp_path):
    server.faults += [Fault(text="I cannot say."), Fault(text="Rating: eight")]
    (answer,) = endpoint().ask([question(1)], rating)
    assert answer.value == by_hand(1, seed=2) and answer.error is None
    assert answer.replies[:2] == ("I cannot say.", "Rating: eight")
    rows = sqlite3.connect(tmp_path / "replies.sqlite").execute("SELECT attempt, text FROM replies ORDER BY attempt")
    assert [text for _, text in rows] == list(answer.replies)
    assert endpoint().ask([question(1)], rating) == [answer] and len(server.requests) == 3


def test_a_greedy_server_is_asked_otherwise_the_second_time(server, endpoint, tmp_path):
    # As vLLM at temperature 0: whatever the seed, a question has one reply.
    server.reply = lambda request: "hm" if not request["temperature"] else rating_of(request)
    (answer,) = endpoint().ask([question(1)], rating)
    assert answer.value == by_hand(1, seed=1) and answer.replies[0] == "hm"
    assert [request["temperature"] for request in server.requests] == [0.0, 0.5]
    rows = sqlite3.connect(tmp_path / "replies.sqlite").execute("SELECT request FROM replies ORDER BY attempt")
    assert [json.loads(asked)["temperature"] for (asked,) in rows] == [0.0, 0.5]
    endpoint(reply_attempts=2).ask([question(2, temperature=0.9)], lambda text: rating("no"))
    assert [request["temperature"] for request in server.requests[2:]] == [0.9, 0.9]


def test_a_reply_that_had_too_few_tokens_says_so(server, endpoint):
    server.reply = lambda request: "thinking " * 100  # and the rating never comes
    (answer,) = endpoint(reply_attempts=1).ask([question(1, max_tokens=9)], rating)
    assert answer.error.endswith(
        "no [[rating]] in it, and it is cut off: give it more tokens with endpoint_parameters"
    )


def test_what_is_never_well_formed_is_an_error_of_its_own(server, endpoint):
    server.reply = lambda request: "no" if len(request["messages"][0]["content"]) == 10 else rating_of(request)
    bad, good = endpoint(reply_attempts=2).ask([question(1), question(2)], rating)
    assert bad.value is None and bad.replies == ("no", "no") and good.value == by_hand(2)
    assert bad.error == "2 replies, the last one: there is no [[rating]] in it"


@pytest.mark.parametrize(
    "body",
    [
        "<html>gateway</html>",
        "{",
        "{}",
        '{"choices": []}',
        '{"choices": [{"index": 0}]}',
        '{"choices": [{"message": null}]}',
        '{"choices": [{"message": "hi"}]}',
        '{"choices": [{"message": {"content": 5}}]}',
        '{"choices": [5]}',
        '{"choices": 5}',
        '{"choices": {"a": 1}}',
        '{"error": {"message": "overloaded"}}',
        "[]",
        "null",
        "",
    ],
)
def test_a_body_that_is_no_completion_is_asked_for_again(server, endpoint, body):
    server.faults += [Fault(body=body)]
    (answer,) = endpoint().ask([question(1)], rating)
    assert answer.value == by_hand(1, seed=1) and len(answer.replies) == 1


@pytest.mark.parametrize(
    "rest",
    [
        '"message": {"content": "[[3]]"}}]',
        '"message": {"content": "[[3]]"}, "finish_reason": {}}], "usage": 5',
        '"message": {"content": "[[3]]"}}], "usage": {"prompt_tokens": "many"}',
        '"message": {"content": [{"type": "text", "text": "[["}, {"text": "3]]"}, 7, {"type": "image"}]}}]',
    ],
)
def test_a_text_is_read_whatever_else_is_in_the_body(server, endpoint, rest):
    server.faults += [Fault(body='{"choices": [{' + rest + "}")]
    (answer,) = endpoint().ask([question(1)], rating)
    assert (answer.value, answer.replies) == (3, ("[[3]]",))


def test_bodies_that_are_never_completions_are_an_error(server, endpoint):
    server.faults += [Fault(body="{}", times=3)]
    (answer,) = endpoint().ask([question(1)], rating)
    assert answer.value is None and "it holds no message" in answer.error


def test_a_lone_surrogate_harms_one_question_at_most(server, endpoint):
    server.faults += [Fault(text="half a smile \ud83d [[3]]")]
    assert endpoint(concurrency=1).ask([question(1)], rating)[0].value == 3
    odd = Request([{"role": "user", "content": "\ud83d"}])
    bad, good = endpoint().ask([odd, question(2)], rating)
    assert "cannot be sent" in bad.error and good.value == by_hand(2)


def test_429_is_waited_for(server, endpoint):
    server.faults += [Fault(429, retry_after=1.0)]
    assert endpoint(concurrency=1).ask([question(1)], rating)[0].value == by_hand(1)
    (first, status), (second, _) = server.arrivals
    assert status == 429 and 1.0 <= second - first < 3.0


@pytest.fixture
def waits(monkeypatch):
    """Seconds that were waited before a question was put again, of which none passes."""
    found = []
    monkeypatch.setattr(ChatClient, "_wait", lambda self, seconds: found.append(seconds))
    return found


@pytest.mark.parametrize("status", [429, 503])
def test_a_wait_longer_than_the_clients_is_kept_to(server, endpoint, caplog, waits, status):
    server.faults += [Fault(status, retry_after=300), Fault(status, retry_after=150)]
    assert endpoint(concurrency=1).ask([question(1)], rating)[0].value == by_hand(1)
    assert waits == [300, 150] and "asks to wait 300 seconds" in caplog.text and len(server.arrivals) == 3


def test_a_wait_until_a_time_is_kept_to(server, endpoint, waits):
    server.faults += [Fault(429, retry_after=formatdate(time.time() + 600, usegmt=True))]
    assert endpoint(concurrency=1).ask([question(1)], rating)[0].value == by_hand(1)
    assert len(waits) == 1 and 590 < waits[0] <= 600


def test_a_wait_of_a_day_ends_the_run_at_once(server, endpoint, waits):
    server.faults += [Fault(429, retry_after=86_400, text="quota of the day")]
    with pytest.raises(EndpointError, match="asks to wait 86,400 seconds .*quota of the day.*run again then"):
        endpoint(concurrency=1).ask([question(n) for n in range(5)])
    assert not waits and len(server.arrivals) == 1


@pytest.mark.parametrize("header", ["soon", "-5", "inf", "nan", "Thu, 99 Foo 2026"])
def test_a_wait_that_says_nothing_is_none(server, endpoint, waits, header):
    server.faults += [Fault(429, retry_after=header)]
    assert endpoint(concurrency=1).ask([question(1)], rating)[0].value == by_hand(1) and not waits


@pytest.mark.parametrize("status", [500, 503, 0])
def test_passing_faults_are_asked_again(server, endpoint, status):
    server.faults += [Fault(status, times=2)]
    answers = endpoint().ask([question(n) for n in range(5)], rating)
    assert [answer.value for answer in answers] == [by_hand(n) for n in range(5)]


def test_a_timeout_is_asked_again(server, endpoint):
    server.faults += [Fault(delay=1.5)]
    assert endpoint(request_timeout=0.4, concurrency=1).ask([question(1)], rating)[0].value == by_hand(1)


def test_a_fault_that_stays_is_one_questions_error_and_the_next_run_asks_again(server, endpoint):
    endpoint(request_retries=0).ask([question(0)])
    server.faults += [Fault(500)]
    lost, kept = endpoint(request_retries=0, concurrency=1).ask([question(1), question(2)], rating)
    assert lost.value is None and lost.error.startswith("InternalServerError") and kept.value == by_hand(2)
    assert endpoint().ask([question(1)], rating)[0].value == by_hand(1)


def test_a_request_that_is_refused_is_an_error_of_its_own(server, endpoint):
    server.faults += [Fault(400)]
    bad, good = endpoint(concurrency=1).ask([question(1), question(2)], rating)
    assert bad.error.startswith("BadRequestError") and good.value == by_hand(2)


@pytest.mark.parametrize("status", [401, 403, 404])
def test_a_wrong_key_or_model_ends_at_once(server, endpoint, status):
    server.faults += [Fault(status, times=1000)]
    with pytest.raises(EndpointError, match=r"refuses .*OPENAI_API_KEY.*the model's name, 'judge'"):
        endpoint().ask([question(n) for n in range(50)])
    assert len(server.arrivals) <= 2 * 4


def test_an_endpoint_that_answers_nothing_is_given_up(server, endpoint):
    server.faults += [Fault(503, times=1000)]
    with pytest.raises(EndpointError, match="did not answer 5 requests in a row.*Check its address"):
        endpoint(request_retries=0).ask([question(n) for n in range(50)])
    assert len(server.arrivals) <= 10
    with pytest.raises(EndpointError, match="answered none of 2 requests"):
        endpoint(request_retries=0).ask([question(n) for n in range(2)])


def test_an_endpoint_that_never_speaks_is_told_of_and_given_up(server, endpoint, caplog):
    server.faults += [Fault(delay=30, times=1000)]
    started = time.monotonic()
    with pytest.raises(EndpointError, match="did not answer 5 requests in a row.*timed out"):
        endpoint(request_timeout=0.3, request_retries=1).ask([question(n) for n in range(50)])
    assert time.monotonic() - started < 10
    assert "has not answered within 0.3 seconds" in caplog.text


def test_no_endpoint_there(endpoint):
    with pytest.raises(EndpointError, match="answered none of 1 requests .*Connection error"):
        endpoint(endpoint_url="http://127.0.0.1:9/v1", request_retries=0).ask([question(1)])


def test_every_request_refused_says_so(server, endpoint):
    server.faults += [Fault(400, times=1000)]
    with pytest.raises(EndpointError, match="answered none of 20 requests .*endpoint_parameters"):
        endpoint().ask([question(n) for n in range(20)])


def test_an_endpoint_that_breaks_down_is_given_up_and_replies_are_kept(server, endpoint):
    def reply(request: dict) -> str:
        if len(server.requests) >= 10:
            server.faults = [Fault(500, times=1000)]
        return rating_of(request)

    server.reply = reply
    with pytest.raises(EndpointError, match="in a row.*run again to go on"):
        endpoint(request_retries=0).ask([question(n) for n in range(100)])
    num_kept = len(server.requests)
    server.faults, server.reply = [], rating_of
    answers = endpoint().ask([question(n) for n in range(100)], rating)
    assert [answer.value for answer in answers] == [by_hand(n) for n in range(100)]
    assert len(server.requests) == 100 and num_kept >= 10


@pytest.mark.quick
def test_no_error_tells_the_key(server, endpoint, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-1234567890abcdef")
    server.faults += [Fault(401, text="wrong key sk-1234567890abcdef")]
    with pytest.raises(EndpointError) as caught:
        endpoint().ask([question(1)])
    assert "sk-1234567890abcdef" not in str(caught.value)


def test_a_key_in_a_variable_of_any_name_is_told_to_nobody(server, endpoint, monkeypatch, tmp_path, caplog):
    monkeypatch.setenv("JUDGE", "my-very-own-words")  # a name that says nothing, a form that is nobody's
    server.faults += [Fault(400, text="header: Bearer my-very-own-words")]
    asked = endpoint(endpoint_key_variable="JUDGE", concurrency=1)
    bad, good = asked.ask([question(1), question(2)], rating)
    assert bad.error.startswith("BadRequestError") and "Bearer (removed)" in bad.error and good.value == by_hand(2)
    server.faults += [Fault(403, text="no my-very-own-words")]
    with pytest.raises(EndpointError) as caught:
        asked.ask([question(3)], rating)
    assert "my-very-own-words" not in str(caught.value) and "my-very-own-words" not in caplog.text
    assert not [path for path in tmp_path.iterdir() if b"my-very-own-words" in path.read_bytes()]


def test_an_address_with_a_password_is_shown_without(server, endpoint):
    server.faults += [Fault(404)]
    with pytest.raises(EndpointError) as caught:
        endpoint(endpoint_url=server.url.replace("//", "//ann:secret-word@")).ask([question(1)])
    assert "secret-word" not in str(caught.value) and server.url in str(caught.value)


@pytest.mark.quick
def test_replay_needs_no_network(server, endpoint, tmp_path, monkeypatch):
    live = endpoint().ask([question(n) for n in range(5)], rating)
    monkeypatch.setitem(sys.modules, "openai", None)  # nor the client
    replayed = Endpoint(EndpointConfig(endpoint_model="judge", replay=True, replies=str(tmp_path / "replies.sqlite")))
    assert replayed.ask([question(n) for n in range(5)], rating) == live
    with pytest.raises(EndpointError, match="no recorded reply of judge to a question that starts 'Question xxxxx"):
        replayed.ask([question(5)], rating)


@pytest.mark.quick
def test_the_estimate_counts_what_is_new(server, endpoint):
    asked = endpoint(input_price=2.0, output_price=8.0)
    requests = [Request([{"role": "user", "content": "x" * 4000}], max_tokens=100, sample=n) for n in range(10)]
    asked.ask(requests[:4])
    found = asked.estimate([*requests, requests[0]])
    assert (found.requests, found.recorded, found.input_tokens, found.output_tokens) == (10, 4, 6000, 600)
    assert found.price == pytest.approx((6000 * 2 + 600 * 8) / 1e6)
    assert found.line("judge", 4) == (
        "10 questions to judge, 4 of them answered before; to ask: about 6,000 input tokens, at most 600 output tokens, "
        "about 0.02 if replies are that long; 4 at a time"
    )
    assert endpoint().estimate(requests).price is None and len(server.requests) == 4


def test_the_estimate_counts_what_is_sent_and_chinese_as_it_is(endpoint):
    requests = [Request([{"role": "user", "content": "文" * 4000}], max_tokens=100)]
    limits = endpoint(endpoint_parameters='{"max_tokens": null, "max_completion_tokens": 4096}')
    found = limits.estimate(requests)
    assert (found.input_tokens, found.output_tokens) == (3000, 4096)
    assert endpoint(endpoint_parameters='{"max_tokens": 7}').estimate(requests).output_tokens == 7


@pytest.mark.quick
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"concurrency": 0}, "concurrency is a whole number, got 0"),
        ({"reply_attempts": 0}, "reply_attempts is a whole number"),
        ({"request_retries": -1}, "request_retries is a number of times"),
        ({"request_timeout": 0}, "request_timeout is a number of seconds"),
        ({"input_price": -1.0}, "input_price is a price, got -1"),
        ({"input_price": 1.0}, "Only one of input_price and output_price"),
        ({"endpoint_parameters": "[1]"}, "must be a JSON object"),
        ({"endpoint_parameters": "{"}, "must be a JSON object"),
    ],
)
def test_settings_out_of_range(settings, message):
    with pytest.raises(ValueError, match=message):
        EndpointConfig(**settings)


def test_what_cannot_be_used_is_said_before_anything_is_asked(tmp_path, monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    with pytest.raises(ValueError, match="give endpoint_model"):
        Endpoint(EndpointConfig())
    with pytest.raises(ValueError, match="OPENAI_API_KEY is not set"):
        Endpoint(EndpointConfig(endpoint_model="judge", replies=str(tmp_path / "r.sqlite")))
    with pytest.raises(ValueError, match="begins with http:// or https://, got 'localhost:8000/v1'"):
        Endpoint(EndpointConfig("judge", endpoint_url="localhost:8000/v1", replies=str(tmp_path / "r.sqlite")))
    (tmp_path / "text").write_text("no database, and longer than the header of one" * 10)
    with pytest.raises(EndpointError, match="cannot be used .*name another"):
        Endpoint(EndpointConfig(endpoint_model="judge", endpoint_url="http://x", replies=str(tmp_path / "text")))


# Runs that are cut off, in a process of their own


RUN = """
import json, sys
from hf_gateau.endpoint.questions import Endpoint, EndpointConfig
from tests.endpoint.test_questions import question, rating

url, replies, num = sys.argv[1:]
endpoint = Endpoint(EndpointConfig(endpoint_model="judge", endpoint_url=url, replies=replies, concurrency=4))
answers = endpoint.ask([question(n) for n in range(int(num))], rating)
print(json.dumps([answer.value for answer in answers]))
"""


@pytest.fixture
def slow_server(tmp_path):
    """In another process: its log is what it was asked; every reply takes a moment."""
    command = [sys.executable, "-m", "tests.servers.chat_server", "--log", str(tmp_path / "log"), "--delay", "0.05"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        yield process.stdout.readline().split()[1]
        process.kill()


def start(url: str, replies: Path, num: int) -> subprocess.Popen:
    command = [sys.executable, "-c", RUN, url, str(replies), str(num)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(command, cwd=ROOT, text=True, preexec_fn=hears_ctrl_c, **pipes)


def asked(log: Path) -> list[str]:
    return [json.loads(line)["messages"][0]["content"] for line in log.read_text().splitlines()]


def kept(replies: Path) -> set[str]:
    rows = sqlite3.connect(replies).execute("SELECT request FROM replies")
    return {json.loads(request)["messages"][0]["content"] for (request,) in rows}


@pytest.mark.parametrize("how", [signal.SIGKILL, pytest.param(signal.SIGINT, marks=pytest.mark.slow)])
def test_a_run_that_is_cut_off_loses_nothing_and_pays_for_nothing_twice(slow_server, tmp_path, how):
    num, log, replies = 60, tmp_path / "log", tmp_path / "replies.sqlite"
    run = start(slow_server, replies, num)
    deadline = time.monotonic() + 60
    while not log.exists() or len(asked(log)) < 20:
        assert time.monotonic() < deadline and run.poll() is None
        time.sleep(0.02)
    os.kill(run.pid, how)
    interrupted = time.monotonic()
    _, errors = run.communicate(timeout=20)
    assert run.returncode != 0 and time.monotonic() - interrupted < 5
    assert how == signal.SIGKILL or "KeyboardInterrupt" in errors
    time.sleep(0.3)  # what was under way reaches the log
    before, known = asked(log), kept(replies)
    assert 15 <= len(known) < num and known <= set(before) and len(before) - len(known) <= 4

    output, _ = start(slow_server, replies, num).communicate(timeout=60)
    values = json.loads(output)
    assert values == [by_hand(n) for n in range(num)]
    assert sum(values) / num == sum(by_hand(n) for n in range(num)) / num
    again = asked(log)[len(before) :]
    assert known.isdisjoint(again) and len(again) == num - len(known)
    assert kept(replies) == {f"Question {'x' * n}" for n in range(num)}


def test_ctrl_c_does_not_wait_for_an_answer(tmp_path):
    with ChatServer(rating_of, faults=[Fault(delay=60, times=1000)]) as server:
        run = start(server.url, tmp_path / "replies.sqlite", 10)
        deadline = time.monotonic() + 60
        while not server.arrivals:
            assert time.monotonic() < deadline and run.poll() is None
            time.sleep(0.02)
        started = time.monotonic()
        os.kill(run.pid, signal.SIGINT)
        run.communicate(timeout=30)
        assert time.monotonic() - started < 5
