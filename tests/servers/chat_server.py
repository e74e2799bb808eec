"""A local server that speaks OpenAI's chat completions over HTTP, on the standard library, with faults on request.

    python -m tests.servers.chat_server --port 0 --log FILE          # prints READY http://127.0.0.1:PORT/v1

The real `openai` client talks to it. What it answers is a function of the request, so that a test can reckon by hand what
must come out; every request that was answered is kept in `requests`, and in the log file, one JSON object a line.
"""

import argparse
import json
import re
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


@dataclass
class Fault:
    """What happens to the next requests instead of an answer.

    Attributes:
        status: of the error that is answered; 0 closes the connection without a word.
        times: how many requests it befalls.
        retry_after: the header of that name, in seconds, or as it stands.
        delay: seconds before anything is answered; with `status` 200 the answer then comes as usual.
        text: what is answered instead of the real reply, or the message of the error.
        body: the whole body of the answer, with `status` 200, whatever it is.
    """

    status: int = 200
    times: int = 1
    retry_after: float | str | None = None
    delay: float = 0.0
    text: str | None = None
    body: str | None = None


@dataclass
class ChatServer:
    """The server in a thread of this process; `with ChatServer(reply) as server:` and `server.url`.

    Attributes:
        reply: from the request's JSON to the text of the reply.
        faults: taken from the front, each `times` times.
        requests: the JSON of every request that got a reply, in the order of the replies.
        arrivals: (seconds of the monotonic clock, status that was answered) of every request, faults included.
    """

    reply: Callable[[dict], str]
    faults: list[Fault] = field(default_factory=list)
    log: Path | None = None
    port: int = 0
    requests: list[dict] = field(default_factory=list)
    arrivals: list[tuple[float, int]] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def __enter__(self) -> "ChatServer":
        self.server = ThreadingHTTPServer(("127.0.0.1", self.port), _handler(self))
        self.server.daemon_threads = True
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *exception) -> None:
        self.server.shutdown()
        self.server.server_close()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.server_address[1]}/v1"

    def next_fault(self) -> Fault | None:
        with self.lock:
            if not self.faults:
                return None
            self.faults[0].times -= 1
            return self.faults.pop(0) if self.faults[0].times <= 0 else self.faults[0]

    def keep(self, request: dict) -> None:
        with self.lock:
            self.requests.append(request)
            if self.log is not None:
                with self.log.open("a") as file:
                    file.write(json.dumps(request) + "\n")


def _handler(state: ChatServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *args):
            pass

        def do_POST(self):
            request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            fault = state.next_fault() or Fault()
            with state.lock:
                state.arrivals.append((time.monotonic(), fault.status))
            time.sleep(fault.delay)
            if fault.status == 0:
                self.close_connection = True
                return
            if not self.path.endswith("/chat/completions"):
                self.answer(404, {"error": {"message": f"no such path {self.path}"}})
            elif fault.status != 200:
                headers = {} if fault.retry_after is None else {"Retry-After": str(fault.retry_after)}
                message = fault.text or f"fault {fault.status}"
                self.answer(fault.status, {"error": {"message": message}}, headers)
            elif fault.body is not None:
                self.send(200, fault.body.encode())
            else:
                text = state.reply(request) if fault.text is None else fault.text
                state.keep(request)
                self.answer(200, completion(request, text))

        def answer(self, status: int, body: dict, headers: dict[str, str] | None = None) -> None:
            self.send(status, json.dumps(body).encode(), headers)

        def send(self, status: int, data: bytes, headers: dict[str, str] | None = None) -> None:
            try:
                self.send_response(status)
                for name, value in {"Content-Type": "application/json", **(headers or {})}.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)
            except (BrokenPipeError, ConnectionResetError):  # the client was killed, or did not wait
                self.close_connection = True

    return Handler


def completion(request: dict, text: str) -> dict:
    """The JSON of one answer."""
    cut_off = len(text) // 4 > request.get("max_tokens", len(text))
    text = text[: 4 * request["max_tokens"]] if cut_off else text
    num_in = sum(len(message["content"]) for message in request["messages"]) // 4
    return {
        "id": "chatcmpl-0",
        "object": "chat.completion",
        "created": 0,
        "model": request["model"],
        "choices": [
            {
                "index": 0,
                "finish_reason": "length" if cut_off else "stop",
                "message": {"role": "assistant", "content": text},
            }
        ],
        "usage": {
            "prompt_tokens": num_in,
            "completion_tokens": len(text) // 4,
            "total_tokens": num_in + len(text) // 4,
        },
    }


def rating_of(request: dict) -> str:
    """A judge that can be reckoned by hand: the rating is 1 + (characters of the last message + the seed) % 10."""
    rating = 1 + (len(request["messages"][-1]["content"]) + request.get("seed", 0)) % 10
    return f"The answer has its merits. Rating: [[{rating}]]"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--log", type=Path)
    parser.add_argument("--delay", type=float, default=0.0, help="seconds that every reply takes")
    args = parser.parse_args()

    def reply(request: dict) -> str:
        time.sleep(args.delay)
        asked = request["messages"][-1]["content"]
        return found.group(1) if (found := re.search(r"REPLY: (.*)", asked)) else rating_of(request)

    with ChatServer(reply, log=args.log, port=args.port) as server:
        print(f"READY {server.url}", flush=True)
        threading.Event().wait()


if __name__ == "__main__":
    main()
