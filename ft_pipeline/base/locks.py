"""Locks on files (`flock`), which the kernel frees when their owner dies."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def hold_lock(file: Path) -> Iterator[None]:
    """Hold a file's lock, waiting for it; the file's time is then that of its last lock."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("w", encoding="utf-8") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


@contextmanager
def hold_mark(file: Path) -> Iterator[None]:
    """Have a file there, locked from the moment it appears, for as long as this lasts.

    A mark that is there and that nobody holds is that of a process which was killed. Raises OSError
    where it cannot be made.
    """
    created = file.with_name(f".{file.name}.{os.getpid()}")
    file.parent.mkdir(parents=True, exist_ok=True)
    with created.open("w", encoding="utf-8") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        created.rename(file)
        try:
            yield
        finally:
            file.unlink(missing_ok=True)


def is_held(file: Path) -> bool:
    """Whether a process holds the lock of a file."""
    with try_lock(file) as free:
        return not free


@contextmanager
def try_lock(file: Path, create: bool = False) -> Iterator[bool]:
    """Hold a file's lock if it is free, and say so. Does not touch the file's times."""
    try:
        handle = file.open("a" if create else "r", encoding="utf-8")
    except FileNotFoundError:
        yield True
        return
    with handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            free = True
        except BlockingIOError:
            free = False
        yield free
