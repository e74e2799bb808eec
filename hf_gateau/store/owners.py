"""The processes that measure: what one is called among all machines, and whether it has ended."""

import os
import socket
from functools import lru_cache
from pathlib import Path
from uuid import uuid4


def new_name() -> str:
    """A name of this process: machine, process id and some random digits, in letters that a file name can have. A forked process
    needs one of its own."""
    return f"{_machine()}-{os.getpid()}-{uuid4().hex[:8]}"


def has_ended(name: str) -> bool:
    """Whether a process is known to have ended: one of this machine can be asked for, others cannot."""
    machine, number, _ = name.rsplit("-", 2)
    if machine != _machine():
        return False
    try:
        os.kill(int(number), 0)
    except ProcessLookupError:
        return True
    except PermissionError:  # somebody else's
        pass
    return _is_defunct(int(number))


def _is_defunct(process: int) -> bool:
    """Whether a process has ended and nobody has asked how: in a container without an init it stays so for ever."""
    try:
        stat = Path(f"/proc/{process}/stat").read_text()
    except OSError:  # gone meanwhile, or a system that has no such files
        return False
    return stat.rpartition(")")[2].split()[0] in ("Z", "X")


def shown(name: str) -> str:
    """A name as people read it."""
    machine, number, _ = name.rsplit("-", 2)
    return f"process {number} on {machine.rpartition('.')[0] or machine}"


@lru_cache
def _machine() -> str:
    """Host, and the namespace of process ids in it: of two containers each has its own."""
    host = "".join(c if c.isalnum() or c in "-." else "-" for c in socket.gethostname())
    namespace = Path("/proc/self/ns/pid")
    try:
        return f"{host}.{namespace.readlink().name.strip('pid:[]')}"
    except OSError:
        return host
