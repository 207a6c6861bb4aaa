"""Ends a process group when the process that started this one is gone.

Started by `launch.py` beside each worker as a script of its own, so that even SIGKILL of the
launcher leaves nothing behind. Usage: `python reaper.py <process group> <grace seconds> <run
folder>`; standard input is a pipe whose other end only the launcher holds, and closes when it ends,
however it ends. A training that needs longer for its checkpoint says so in `shutdown.json`.
"""

import json
import math
import os
import signal
import sys
import time
from collections.abc import Callable

NEEDS_FILE = "shutdown.json"


def group_exists(group: int) -> bool:
    """Whether any process of the group is left."""
    try:
        os.killpg(group, 0)
    except (ProcessLookupError, PermissionError):
        return False
    return True


def read_needs(folder: str) -> float:
    """Return the seconds that the worker of a run folder asks for, 0 where it has not asked.

    Raises ValueError, naming the file, where what it wrote cannot be understood.
    """
    path = os.path.join(folder, NEEDS_FILE)
    try:
        with open(path, encoding="utf-8") as file:
            seconds = float(json.load(file)["seconds"])
    except OSError:
        return 0.0
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f'{path}: expected {{"seconds": 40.0}} ({error!r})') from error
    if not math.isfinite(seconds):
        raise ValueError(f"{path}: {seconds} is no number of seconds")
    return seconds


def read_grace(folder: str, least: float) -> float:
    """Return the seconds that the worker of a run folder asks for, at least `least`."""
    try:
        return max(least, read_needs(folder))
    except ValueError:
        return least  # the launcher names it


def end_group(group: int, grace: Callable[[], float]) -> None:
    """SIGTERM the group, wait up to `grace()` seconds, SIGKILL what is left."""
    for sign, patience in ((signal.SIGTERM, grace), (signal.SIGKILL, lambda: 5.0)):
        try:
            os.killpg(group, sign)
        except (ProcessLookupError, PermissionError):
            return
        start = time.monotonic()
        while group_exists(group) and time.monotonic() - start < patience():
            time.sleep(0.05)


def main() -> None:
    """Wait for the launcher's end of the pipe to close, then end the group."""
    for sign in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(sign, signal.SIG_IGN)
    group, grace, folder = int(sys.argv[1]), float(sys.argv[2]), sys.argv[3]
    os.read(0, 1)
    end_group(group, lambda: read_grace(folder, grace))


if __name__ == "__main__":
    main()
