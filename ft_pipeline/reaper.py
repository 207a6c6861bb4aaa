"""Ends a process group when the process that started this one is gone.

Started by `launch.py` beside each worker as a script of its own, so that even SIGKILL of the
launcher leaves nothing behind. Usage: `python reaper.py <process group> <grace seconds>`; standard
input is a pipe whose other end only the launcher holds, and closes when it ends, however it ends.
"""

import os
import signal
import sys
import time


def group_exists(group: int) -> bool:
    """Whether any process of the group is left."""
    try:
        os.killpg(group, 0)
    except (ProcessLookupError, PermissionError):
        return False
    return True


def end_group(group: int, grace: float) -> None:
    """SIGTERM the group, wait up to `grace` seconds, SIGKILL what is left."""
    for sign, patience in ((signal.SIGTERM, grace), (signal.SIGKILL, 5.0)):
        try:
            os.killpg(group, sign)
        except (ProcessLookupError, PermissionError):
            return
        deadline = time.monotonic() + patience
        while group_exists(group) and time.monotonic() < deadline:
            time.sleep(0.05)


def main() -> None:
    """Wait for the launcher's end of the pipe to close, then end the group."""
    for sign in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(sign, signal.SIG_IGN)
    group, grace = int(sys.argv[1]), float(sys.argv[2])
    os.read(0, 1)
    end_group(group, grace)


if __name__ == "__main__":
    main()
