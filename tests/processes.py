"""Processes of tests: several at once, one that hears Ctrl-C, and the installed `trl` with this plugin's hook in it."""

import multiprocessing
import signal
import sys
from importlib.metadata import entry_points
from pathlib import Path

import pytest


TRL = Path(sys.executable).with_name("trl")


def hook_is_installed() -> bool:
    return TRL.exists() and any(x.name == "hf_gateau" for x in entry_points(group="torch.backends"))


with_hook = pytest.mark.skipif(not hook_is_installed(), reason="the package is not installed: pip install .")


def hears_ctrl_c() -> None:
    """For `preexec_fn` of `subprocess.Popen`: Ctrl-C does again what it does by itself."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def run_together(function, arguments: list[tuple], method: str = "spawn") -> None:
    """Call a function in processes of their own, one for each tuple of arguments; none may fail."""
    processes = [multiprocessing.get_context(method).Process(target=function, args=each) for each in arguments]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0] * len(arguments)
