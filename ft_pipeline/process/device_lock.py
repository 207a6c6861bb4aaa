"""One training at a time on each GPU (or the CPU), whatever shell or checkout it comes from.

A kernel file lock named after the card grants the right to it, whatever CUDA_VISIBLE_DEVICES each
process has. It is taken before anything heavy starts, inherited by what is started, and released
when the last process that inherited it has exited.

The lock is under /tmp, which login shells, cron and services share, unlike TMPDIR and
XDG_RUNTIME_DIR, which disappears with the last login. FT_LOCKS names another folder.
"""

import fcntl
import os
import stat
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from ft_pipeline.base.errors import PipelineError
from ft_pipeline.base.settings import is_switched_on
from ft_pipeline.process.gpus import Place, list_places

POLL_SECONDS = 0.5


@dataclass(frozen=True)
class Device:
    """A place for heavy work, held by every process that has `descriptor` open.

    `environment`: the variables that a process working there needs.
    """

    name: str
    environment: Mapping[str, str]
    descriptor: int


@contextmanager
def hold_device(task: str, say: Callable[[str], None]) -> Iterator[Device]:
    """Hold what `take_device` takes until this ends, or longer if a process inherited it.

    It is taken last: whoever has it asks for no lock of a fingerprint, whose holder may be waiting
    for it.
    """
    device = take_device(task, say)
    try:
        yield device
    finally:
        os.close(device.descriptor)


def take_device(task: str, say: Callable[[str], None]) -> Device:
    """Take the first free card (or the CPU) and keep it until this process has ended.

    Waits while all are in use, and says by whom; an interrupt is raised here at once. If FT_NO_WAIT
    (`--no-wait`) is set, raises PipelineError naming the owners instead.
    """
    places, said = list_places(), ""
    while True:
        for place in places:
            if (device := _try_to_take(place, task)) is not None:
                return device
        in_use = " and ".join(
            f"the {place.name} is in use by process {_read_owner(place)}" for place in places
        )
        if is_switched_on("FT_NO_WAIT"):
            raise PipelineError(
                f"{in_use}, and FT_NO_WAIT (--no-wait) is set. Try again when it has finished, or "
                "run without --no-wait."
            )
        if in_use != said:
            said = in_use
            say(f"waiting: {in_use}")
        time.sleep(POLL_SECONDS)


def _try_to_take(place: Place, task: str) -> Device | None:
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW
    descriptor = os.open(find_lock(place.name), flags, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    owner = f"{os.getpid()} ({task} in {Path.cwd()})\n".encode()
    os.pwrite(descriptor, owner, 0)  # first, so that nobody reads an empty line
    os.ftruncate(descriptor, len(owner))
    shown = {} if place.visible is None else {"CUDA_VISIBLE_DEVICES": place.visible}
    return Device(place.name, shown, descriptor)


def _read_owner(place: Place) -> str:
    text = find_lock(place.name).read_text("utf-8", errors="replace")
    return text.partition("\n")[0] or "unknown"


def find_lock(device: str) -> Path:
    """Return the file whose flock grants a device; it names the last owner."""
    return _own_folder() / f"{device.replace('/', '_')}.lock"


def _own_folder() -> Path:
    base = Path(os.environ.get("FT_LOCKS") or "/tmp")
    folder = base / f"ft_pipeline-{os.getuid()}"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = folder.lstat()
    except OSError as error:
        raise PipelineError(
            f"{folder}: cannot be created ({error.strerror}). It holds the locks that allow one "
            "training at a time. Set FT_LOCKS to a folder that only you can use."
        ) from error
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid():
        raise PipelineError(
            f"{folder}: not a folder owned by this user. It holds the locks that allow one "
            "training at a time. Remove it, or set FT_LOCKS to a folder that only you can use."
        )
    return folder
