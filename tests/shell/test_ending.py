"""How a command ends: one line and a status, whatever happens, and quietly where nobody reads."""

import os
import subprocess
import sys
import warnings

import pytest

from hf_gateau.cli import main
from hf_gateau.shell.ending import run_command
from tests.paths import ROOT


TRACEBACK = "Traceback (most recent call last)"
PRINTING = "from hf_gateau.shell.ending import run_command; import sys; sys.exit(run_command('x', lambda: {}))"


def raising(error: BaseException):
    def work():
        raise error

    return work


class Odd(Exception):
    pass


ENDINGS = [
    (ValueError("alpha is wrong; use 0.8."), 2, "x: alpha is wrong; use 0.8.\n"),
    (PermissionError(13, "Permission denied", "file.jsonl"), 2, "x: file.jsonl: Permission denied\n"),
    (FileNotFoundError("There is no file 'a'."), 2, "x: There is no file 'a'.\n"),
    (ImportError("Asking needs openai."), 2, "x: Asking needs openai.\n"),
    (KeyError("name"), 1, "x: unexpected KeyError: 'name'\n"),
    (TypeError("'<' not supported"), 1, "x: unexpected TypeError: '<' not supported\n"),
    (Odd(), 1, "x: unexpected Odd\n"),
    (ValueError(), 2, "x: unexpected ValueError\n"),
    (MemoryError(), 1, "x: unexpected MemoryError\n"),
    (KeyboardInterrupt(), 130, "Interrupted. What was measured"),
    (SystemExit(3), 3, ""),
]


@pytest.mark.quick
@pytest.mark.parametrize("error, status, line", ENDINGS, ids=lambda x: type(x).__name__)
def test_every_error_is_a_line_and_a_status(error, status, line, capsys):
    assert run_command("x", raising(error)) == status
    said = capsys.readouterr().err
    assert said.startswith(line) and TRACEBACK not in said and len(said.splitlines()) <= 2


def test_traceback_for_those_who_ask(monkeypatch):
    monkeypatch.setenv("HF_GATEAU_TRACEBACK", "1")
    with pytest.raises(KeyError):
        run_command("x", raising(KeyError("name")))


@pytest.mark.quick
def test_warnings_are_one_line_without_source(capsys):
    def work():
        warnings.warn("the name is old; use the new one", FutureWarning, stacklevel=1)

    before = warnings.formatwarning
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.showwarning = lambda message, category, filename, lineno, file=None, line=None: print(
            warnings.formatwarning(message, category, filename, lineno, line), end="", file=sys.stderr
        )
        assert run_command("x", work) == 0
    assert capsys.readouterr().err == "WARNING: the name is old; use the new one\n"
    assert warnings.formatwarning is before


def printing(work: str, shell: str, **environment) -> subprocess.CompletedProcess:
    """Python code as a command in a shell's line, where {} is the command; bash says every status."""
    command = f'"{sys.executable}" -c "{PRINTING.format(work)}"'
    line = shell.format(command)
    env = {**os.environ, **environment}
    return subprocess.run(["bash", "-c", line], capture_output=True, text=True, errors="replace", env=env, timeout=60)


PRINTED = """
import logging
import datasets, huggingface_hub, transformers, trl
from hf_gateau.shell.ending import log_handler

for name in ("datasets", "huggingface_hub", "transformers", "trl", "hf_gateau"):
    library, said = logging.getLogger(name), logging.LogRecord(f"{name}.part", logging.WARNING, "file.py", 1, "said", (), None)
    print(name, bool(library.handlers) + (library.propagate and bool(log_handler().filter(said))))
"""


@pytest.mark.quick
@pytest.mark.parametrize("ci", ["", "true"])
def test_what_libraries_print_themselves_is_printed_once(ci):
    """In a process of its own: other tests change what libraries log. transformers passes its messages on where CI is set."""
    command = [sys.executable, "-c", PRINTED]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT, env=os.environ | {"CI": ci})
    assert {line.split()[1] for line in done.stdout.splitlines()} == {"1"} and len(done.stdout.splitlines()) == 5


def test_reader_that_goes_away_ends_it_quietly():
    done = printing("[print(i) for i in range(100000)] and 0", "{} | head -1; echo ${{PIPESTATUS[0]}}")
    assert done.stdout == "0\n141\n" and done.stderr == ""
    done = printing("print(1)", "{} | true; echo ${{PIPESTATUS[0]}}")  # nothing is written before the end
    assert done.stdout in ("141\n", "0\n") and done.stderr == ""


def test_help_into_a_pipe_that_closes():
    line = f'"{sys.executable}" -m hf_gateau.cli --help | true; echo ${{PIPESTATUS[0]}}'
    done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, timeout=60)
    assert done.stderr == "" and done.stdout in ("141\n", "0\n")


def test_closed_stdout_is_nobodys_file(tmp_path):
    """A file that is opened later does not get the number of stdout, where what is printed would land in it."""
    work = f"[open('{tmp_path}/f', 'w'), print(5)] and 0"
    done = printing(work, "{} >&-; echo $?")
    assert done.stdout == "0\n" and done.stderr == "" and (tmp_path / "f").read_text() == ""


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full here")
def test_full_disk_behind_stdout():
    done = printing("print(5)", "{} > /dev/full; echo $?")
    assert done.stdout == "2\n" and TRACEBACK not in done.stderr and "No space left on device" in done.stderr


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_any_text_goes_to_any_terminal(encoding):
    done = printing(r"print('\u4e2d \ud800 é')", "{}; echo $?", PYTHONIOENCODING=encoding)
    assert done.stdout.endswith("\n0\n") and done.stderr == ""


INTERRUPTED = """
import os, signal, sys
class Press:  # Ctrl-C where a module is looked for
    def find_spec(self, name, path=None, target=None):
        if name == {module!r}:
            sys.meta_path.remove(self)
            os.kill(os.getpid(), signal.SIGINT)
sys.meta_path.insert(0, Press())
from hf_gateau.cli import main
sys.exit(main({arguments!r}))
"""


@pytest.mark.parametrize(
    "module, arguments",
    [
        ("hf_gateau.cli.entry", ["--help"]),
        ("hf_gateau.shell.ending", ["--help"]),
        ("hf_gateau.cli.score", ["--help"]),
        ("trl", ["score", "nowhere.jsonl", "-o", "m.jsonl"]),
        ("torch", ["score", "nowhere.jsonl", "-o", "m.jsonl"]),
        ("trl", ["sft", "--recipe", "tiny-cpu", "--dry_run", "true"]),
    ],
)
def test_interrupted_while_it_starts(module, arguments):
    """Ctrl-C while libraries are imported, the longest part of a command's beginning."""
    code = INTERRUPTED.format(module=module, arguments=arguments)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 130, done.stderr
    assert TRACEBACK not in done.stderr and done.stderr.startswith("Interrupted.") and done.stderr.count("\n") == 1


def test_little_is_imported_before_ctrl_c_is_heard():
    code = "import sys; before = set(sys.modules); import hf_gateau.cli; print(*sorted(set(sys.modules) - before))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert {"hf_gateau", "hf_gateau.cli"} <= set(done.stdout.split())
    assert not {"importlib.metadata", "hf_gateau.cli.entry", "logging", "email"} & set(done.stdout.split())


@pytest.mark.quick
def test_device_that_is_not_there(tmp_path, capsys, monkeypatch):
    import torch

    from hf_gateau.models.device import resolve_device

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    for device in ("cuda", "cuda:1", "mps"):
        with pytest.raises(ValueError, match=f"device='{device}' is not there: torch sees no GPU"):
            resolve_device(device)
    with pytest.raises(ValueError, match="device='cdua' is no name of a device"):
        resolve_device("cdua")
    assert resolve_device("cpu").type == "cpu"


@pytest.mark.quick
def test_file_without_permission(tmp_path, capsys):
    path = tmp_path / "c.yaml"
    path.write_text("limit: 3")
    path.chmod(0)
    if os.access(path, os.R_OK):
        pytest.skip("this user may read everything")
    assert main(["top", "x", "--config", str(path)]) == 2
    assert capsys.readouterr().err == f"hf-gateau top: {path}: Permission denied\n"
