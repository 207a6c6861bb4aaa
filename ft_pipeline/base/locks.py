"""File locks (`flock`), which the kernel releases when their owner dies.

Lock files are never removed: removing one while another process waits for it would void the lock.
"""

import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO


@contextmanager
def hold_lock(file: Path, when_waiting: Callable[[], None] | None = None) -> Iterator[None]:
    """Hold a file's lock, waiting for it if another process holds it.

    `when_waiting` is called before the wait. Creates the file and its folder; raises OSError if it
    cannot. Does not change the file's times.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("a", encoding="utf-8") as handle:
        if not _try(handle):
            if when_waiting is not None:
                when_waiting()
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield


@contextmanager
def try_lock(file: Path, create: bool = False) -> Iterator[bool]:
    """Hold a file's lock if it is free; yield whether it is. Does not change the file's times."""
    try:
        handle = file.open("a" if create else "r", encoding="utf-8")
    except FileNotFoundError:
        yield True
        return
    with handle:
        yield _try(handle)


@contextmanager
def hold_mark(file: Path) -> Iterator[None]:
    """Create a file that is locked from the moment it appears until this context ends.

    A mark that exists but is not locked was left by a killed process. Raises OSError if the mark
    cannot be created.
    """
    created = file.with_name(f".{file.name}.{os.getpid()}")
    with hold_lock(created):
        created.rename(file)
        try:
            yield
        finally:
            file.unlink(missing_ok=True)


def is_held(file: Path) -> bool:
    """Whether a process holds the lock of a file."""
    with try_lock(file) as free:
        return not free


def _try(handle: IO[str]) -> bool:
    """Take the lock of an open file if it is free."""
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
