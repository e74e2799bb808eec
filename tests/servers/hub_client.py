"""A process of its own that uses the Hub's real clients, for tests: they read their environment when they are imported.

client = Client(server, tmp_path / "somebody")
client(push, "tester/data", rows=3)   # calls `push` of the test's own module there; answers go through JSON
"""

import contextlib
import importlib
import inspect
import io
import json
import logging
import os
import subprocess
import sys
from pathlib import Path

from tests.paths import ROOT
from tests.servers.hub_server import HubServer


class ClientError(Exception):
    """What was raised there: the name of its class, the message, and what it was raised from."""

    def __init__(self, error: str, message: str, causes: list[str]):
        super().__init__(f"{error}: {message}")
        self.error, self.message, self.causes = error, message, causes


class Client:
    """The process, with a Hugging Face home of its own in `folder`; what it prints goes into `folder/log`.

    Args:
        waits: whether repetitions wait as long as they do for users.
        environment: variables besides those of `HubServer.environment`; None takes one away.
    """

    def __init__(self, server: HubServer, folder: Path, waits: bool = False, **environment: str | None):
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.environment = {**server.environment(folder / "home"), "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
        self.environment |= {"HF_DATASETS_DISABLE_PROGRESS_BARS": "1", **environment}
        self.environment = {name: value for name, value in self.environment.items() if value is not None}
        self._log = open(folder / "log", "a")
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.servers.hub_client", *(["--waits"] if waits else [])],
            cwd=folder,
            env=self.environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
        )

    def __call__(self, function, *positional, **named):
        call = [function.__module__, function.__name__, positional, named]
        self._process.stdin.write(json.dumps(call, default=str) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        assert line, f"the client ended:\n{self.log[-3000:]}"
        answer = json.loads(line)
        if "error" in answer:
            raise ClientError(**answer)
        return answer["result"]

    def run(self, *command, check: bool = True) -> subprocess.CompletedProcess:
        """Another process with the same environment, in the same folder."""
        done = subprocess.run(
            list(map(str, command)), cwd=self.folder, env=self.environment, capture_output=True, text=True, timeout=300
        )
        with open(self.folder / "log", "a") as log:
            log.write(done.stdout + done.stderr)
        assert done.returncode == 0 or not check, done.stderr[-4000:]
        return done

    @property
    def log(self) -> str:
        return (self.folder / "log").read_text("utf-8", "replace")

    def __enter__(self) -> "Client":
        return self

    def __exit__(self, *error) -> None:
        self._process.communicate(timeout=60)
        self._log.close()


# ---- in the process


def cli(*arguments: str, **environment: str) -> tuple[int, str, str]:
    """The command `hf-gateau` with changes to the environment: its exit status, and what it printed."""
    import hf_gateau.cli

    out, errors, before = io.StringIO(), io.StringIO(), dict(os.environ)
    os.environ.update(environment)
    logging.getLogger().handlers.clear()  # the command sets up its own
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(errors):
        try:
            status = hf_gateau.cli.main(list(arguments))
        except SystemExit as ended:
            status = ended.code or 0
    os.environ.clear()
    os.environ.update(before)
    sys.stderr.write(out.getvalue() + errors.getvalue())
    return status, out.getvalue(), errors.getvalue()


def in_a_child(module: str, name: str, pid_file: str, *positional, **named) -> int:
    """Call a function in a forked process, whose id stands in a file meanwhile; returns its exit status."""
    sys.stderr.flush()
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            Path(pid_file).write_text(str(os.getpid()))
            getattr(importlib.import_module(module), name)(*positional, **named)
            status = 0
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def causes_of(error: BaseException | None) -> list[str]:
    return [] if error is None else [type(error).__name__, *causes_of(error.__cause__)]


def work() -> None:
    """Answer calls, a line of JSON each, until the pipe closes."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what libraries print is no answer
    if "--waits" not in sys.argv:
        import huggingface_hub.utils._http as http

        import hf_gateau.hub.commits

        http.http_backoff.__kwdefaults__.update(base_wait_time=0.01, max_wait_time=0.01)
        hf_gateau.files.hub_reading.FIRST_WAIT = 0.01
    for line in sys.stdin:
        module, name, positional, named = json.loads(line)
        try:
            result = getattr(importlib.import_module(module), name)(*positional, **named)
            answer = {"result": list(result) if inspect.isgenerator(result) else result}
        except (Exception, SystemExit) as error:
            answer = {"error": type(error).__name__, "message": str(error), "causes": causes_of(error.__cause__)}
        answers.write(json.dumps(answer, default=str) + "\n")


if __name__ == "__main__":
    work()
