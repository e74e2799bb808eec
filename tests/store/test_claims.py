"""Who measures what just now: a row has one owner, and one that is gone holds nobody up."""

import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from hf_gateau.store import claims
from hf_gateau.store.claims import Claims
from hf_gateau.store.folder import FolderStore, open_store
from hf_gateau.store.owners import has_ended, new_name, shown
from hf_gateau.store.sqlite import StoreError


pytestmark = pytest.mark.quick


@pytest.fixture(params=["s.sqlite", "folder"])
def path(request, tmp_path):
    if request.param == "folder":
        (tmp_path / "folder").mkdir()
    return tmp_path / request.param


def two(path) -> tuple[Claims, Claims]:
    return Claims(open_store(path), "config"), Claims(open_store(path), "config")


def test_a_row_has_one_owner_until_it_lets_go(path):
    one, other = two(path)
    assert one.take("abc") == set()
    assert other.take("bcd") == {"b", "c"} and len(other.others) == 1
    assert one.take("abcd") == {"d"}
    one.release()
    assert other.take("abcd") == set()
    other.release()
    other.release()  # nothing is left to let go of
    assert Claims(open_store(path), "config").take("abcd") == set()
    assert Claims(open_store(path), "another").take("abcd") == set()  # models have nothing to do with each other


def test_a_claim_lasts_as_long_as_its_process_renews_it(path, monkeypatch):
    monkeypatch.setattr(claims, "LEASE", 2.0)
    one, other = two(path)
    one.take("a")
    time.sleep(2.5)
    assert other.take("a") == {"a"}  # renewed
    one._holds = False  # as if it had hung
    time.sleep(2.5)
    assert other.take("a") == set()


def test_waiting_ends_when_one_row_is_free(path, monkeypatch):
    monkeypatch.setattr(claims, "LOOK_AGAIN", 0.05)
    one, other = two(path)
    one.take("ab")
    other.wait("abc")  # c is free
    thread = threading.Timer(0.3, lambda: Claims.release(one) if path.is_dir() else _release(path, one))
    thread.start()
    started = time.monotonic()
    other.wait("ab")
    assert 0.2 < time.monotonic() - started < 30
    thread.join()


def _release(path, one):
    open_store(path).release("config", one._own())  # SQLite's connections belong to their threads


def claim_and_hang(path, told):
    Claims(open_store(path), "config").take("ab")
    told.set()
    time.sleep(600)


def test_a_killed_owner_holds_nobody_up(path):
    context = multiprocessing.get_context("fork")
    told = context.Event()
    process = context.Process(target=claim_and_hang, args=(path, told))
    process.start()
    assert told.wait(30)
    claimed = Claims(open_store(path), "config")
    assert claimed.take("abc") == {"a", "b"}
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert claimed.take("abc") == set()  # at once, since it is this machine's


def test_an_owner_on_another_machine_is_believed_until_its_lease_ends(path, monkeypatch):
    monkeypatch.setattr(claims, "LEASE", 3.0)
    store, gone = open_store(path), "another.host.1-1-0000"
    assert store.claim("config", ["a"], gone, claims.LEASE) == {}
    own = Claims(open_store(path), "config")
    assert own.take("a") == {"a"} and own.others == {gone}
    started = time.monotonic()
    own.wait("a")
    assert time.monotonic() - started < 10 and own.take("a") == set()


def test_processes_that_claim_at_once_never_share_a_row(tmp_path):
    path, store = tmp_path / "s.sqlite", open_store(tmp_path / "s.sqlite")
    context = multiprocessing.get_context("fork")
    barrier, queue = context.Barrier(4), context.Queue()

    def race(name):
        mine = open_store(path)
        barrier.wait(30)
        queue.put([i for i in range(50) if not mine.claim("config", [str(i)], name, 60.0)])

    processes = [context.Process(target=race, args=(new_name(),)) for _ in range(4)]
    for process in processes:
        process.start()
    won = [row for _ in processes for row in queue.get(timeout=60)]
    for process in processes:
        process.join()
    assert sorted(won) == list(range(50)) and len(store.claimed("config", "nobody", 60.0)) == 50


def test_a_store_that_cannot_be_written_while_a_claim_is_renewed_ends_no_run(tmp_path, monkeypatch):
    monkeypatch.setattr(claims, "LEASE", 0.2)
    own, errors = Claims(FolderStore(tmp_path / "s"), "config"), []
    monkeypatch.setattr(threading, "excepthook", errors.append)
    monkeypatch.setattr(FolderStore, "renew", lambda *_: (_ for _ in ()).throw(StoreError("full")))
    own.take("a")
    time.sleep(0.3)
    assert own._heart.is_alive() and not errors
    own.release()
    own._heart.join(5)
    assert not own._heart.is_alive()


def test_names():
    name = new_name()
    assert not has_ended(name) and name != new_name() and f"process {os.getpid()} on " in shown(name)
    assert not has_ended("elsewhere.1-999999999-00000000")


@pytest.mark.skipif(not os.path.exists("/proc/self/stat"), reason="the system tells nothing of its processes")
def test_a_process_that_nobody_has_asked_after_has_ended():
    """As in a container without an init, where what a killed run leaves stays defunct."""
    machine = new_name().rsplit("-", 2)[0]
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    name = f"{machine}-{process.pid}-00000000"
    assert not has_ended(name)
    process.kill()
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # it has ended, and still stands in the table
    os.kill(process.pid, 0)
    assert has_ended(name)
    process.wait()
    assert has_ended(name)
