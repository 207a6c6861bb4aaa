"""One training at a time on a machine's GPU (or CPU), whatever shell or checkout it comes from.

The lock lies below /tmp, which a login shell, cron and a service have in common, unlike
XDG_RUNTIME_DIR, which goes with the last login, and TMPDIR. FT_LOCKS names another folder.
"""

import fcntl
import logging
import os
import stat
import time
from pathlib import Path

from ft_pipeline.base.errors import PipelineError
from ft_pipeline.base.settings import is_switched_on

logger = logging.getLogger("ft_pipeline.worker")


def hold_device(device: str, task: str) -> None:
    """Take the machine's one place for heavy work and keep it until this group has ended.

    The lock lies in a per-user folder, so that it also holds between shells and checkouts; the
    kernel frees it when the last process that inherited it ends. Waits for a live owner; raises
    PipelineError, naming it, where FT_NO_WAIT (`--no-wait`) is set.
    """
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW
    descriptor = os.open(_own_folder() / f"{device}.lock", flags, 0o600)
    os.set_inheritable(descriptor, True)
    waiting = False
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except BlockingIOError:
            owner = os.pread(descriptor, 400, 0).decode(errors="replace") or "unknown"
            if is_switched_on("FT_NO_WAIT"):
                raise PipelineError(
                    f"the {device} is in use by process {owner}, and FT_NO_WAIT (--no-wait) is "
                    "set. Try again when it has ended, or run without it to wait."
                ) from None
            if not waiting:
                logger.info("waiting for the %s: process %s is using it", device, owner)
                waiting = True
            time.sleep(1)
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, f"{os.getpid()} ({task} in {Path.cwd()})".encode(), 0)


def _own_folder() -> Path:
    base = Path(os.environ.get("FT_LOCKS") or "/tmp")
    folder = base / f"ft_pipeline-{os.getuid()}"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    status = folder.lstat()
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid():
        raise PipelineError(
            f"{folder}: not a folder of this user; it holds the lock of the one training at a "
            "time. Remove it, or set FT_LOCKS to a folder that is yours alone."
        )
    return folder
