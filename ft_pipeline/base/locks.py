"""Locks on files (`flock`), which the kernel frees when their owner dies.

A lock file stays: one that is removed while another process waits for it locks nothing.
"""

import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO


@contextmanager
def hold_lock(file: Path, when_waiting: Callable[[], None] | None = None) -> Iterator[None]:
    """Hold a file's lock, and wait for it where somebody has it.

    `when_waiting` is called before that. Makes the file and its folder, and raises OSError where it
    cannot. Does not touch the file's times.
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
    """Hold a file's lock if it is free, and say so. Does not touch the file's times."""
    try:
        handle = file.open("a" if create else "r", encoding="utf-8")
    except FileNotFoundError:
        yield True
        return
    with handle:
        yield _try(handle)


@contextmanager
def hold_mark(file: Path) -> Iterator[None]:
    """Have a file there, locked from the moment it appears, for as long as this lasts.

    A mark that is there and that nobody holds is that of a process which was killed. Raises OSError
    where it cannot be made.
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
