"""Errors meant for people: what was found, where, what was expected, what to do."""

import errno
import os
import shutil
from difflib import get_close_matches
from pathlib import Path


class PipelineError(Exception):
    """An error with a remedy. Only its message is shown, without a traceback; exit code 1."""


def suggest(word: str, known: list[str] | tuple[str, ...]) -> str:
    """Return " Did you mean `x`?" for the closest of `known`, or "" if none is close."""
    near = get_close_matches(word, known, n=1, cutoff=0.6)
    return f" Did you mean `{near[0]}`?" if near else ""


def explain_os_error(error: OSError, folder: Path) -> PipelineError:
    """Turn a failed write below `folder` into an error that says what to do about the disk."""
    where = Path(error.filename) if error.filename else folder
    if error.errno is None:  # raised by a library with a message of its own
        return PipelineError(f"{type(error).__name__}: {error}")
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        free = shutil.disk_usage(_nearest_existing(folder)).free
        return PipelineError(
            f"{where}: no space left on the disk ({free / 1e6:.0f} MB free). Nothing was lost: "
            "the store is intact, and the unfinished artifact was removed. Free some space, or "
            "set FT_STORE to a folder on a larger disk, and run again."
        )
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR):
        return PipelineError(
            f"{where}: cannot be written ({os.strerror(error.errno)}). Give this user write "
            "access, or set FT_STORE to a writable folder."
        )
    return PipelineError(f"{where}: {os.strerror(error.errno or 0)} (errno {error.errno}).")


def is_disk_error(error: Exception) -> bool:
    """Say whether an error concerns a file on this machine rather than the network.

    The clients' network errors are OSErrors too, but carry neither a file name nor these numbers.
    """
    return isinstance(error, OSError) and (
        error.filename is not None or error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    )


def _nearest_existing(folder: Path) -> Path:
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    return folder
