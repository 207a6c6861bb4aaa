"""Locks on files hold between processes, and are freed when their owner dies.

Not proven here: file systems whose `flock` holds on one machine only (NFS mounted without locks).
"""

import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from ft_pipeline.base.locks import hold_lock, hold_mark, is_held, try_lock

HOLD = """
import sys, time
from pathlib import Path
from ft_pipeline.base.locks import hold_lock
with hold_lock(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(600)
"""


@pytest.fixture
def lock(tmp_path: Path) -> Path:
    return tmp_path / "locks/a.lock"


@pytest.fixture
def owner(lock: Path) -> Iterator["subprocess.Popen[str]"]:
    """Another process that holds the lock."""
    command = [sys.executable, "-c", HOLD, str(lock)]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None and child.stdout.readline() == "held\n"
    yield child
    child.kill()
    child.communicate(timeout=30)


def test_a_lock_is_waited_for_and_free_when_its_owner_is_killed(
    lock: Path, owner: "subprocess.Popen[str]"
) -> None:
    waiting = threading.Event()
    threading.Thread(target=lambda: (waiting.wait(30), time.sleep(0.2), owner.kill())).start()
    with hold_lock(lock, waiting.set):
        assert owner.wait(30) != 0
    assert waiting.is_set()
    assert lock.is_file()


def test_a_free_lock_is_not_waited_for(lock: Path) -> None:
    said: list[str] = []
    with hold_lock(lock, lambda: said.append("waiting")):
        assert is_held(lock)
    assert not is_held(lock)
    assert said == []


def test_who_only_tries_does_not_wait(lock: Path, owner: "subprocess.Popen[str]") -> None:
    with try_lock(lock) as free:
        assert not free
    owner.kill()
    owner.wait(30)
    with try_lock(lock) as free:
        assert free
        assert is_held(lock)


def test_the_times_of_a_lock_file_stay(lock: Path) -> None:
    with hold_lock(lock):
        pass
    os.utime(lock, (7, 7))
    with hold_lock(lock):
        assert is_held(lock)
    assert lock.stat().st_mtime == 7


def test_a_mark_is_held_from_the_moment_it_appears_to_its_end(tmp_path: Path) -> None:
    mark = tmp_path / "locks/run.0123"
    with hold_mark(mark):
        assert is_held(mark)
        assert list(mark.parent.iterdir()) == [mark]
    assert list(mark.parent.iterdir()) == []
