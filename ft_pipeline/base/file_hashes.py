"""Hashes of files, remembered by size and modification time, so that nothing is read twice.

A stamp file maps a name to `[size in bytes, mtime in ns, sha256]`. It is local knowledge: on
another machine, or after a copy, the times differ and the files are hashed again.
"""

import contextlib
import json
import os
import uuid
from collections.abc import Mapping
from pathlib import Path

from ft_pipeline.base.errors import PipelineError
from ft_pipeline.base.hashing import hash_file


def hash_files(files: Mapping[str, Path], stamp_file: Path) -> dict[str, str]:
    """Return the sha256 of each file by name; a missing file is left out.

    Raises PipelineError for a file that cannot be read.
    """
    known = _read(stamp_file)
    fresh = {name: _stamp(path, known.get(name)) for name, path in files.items() if path.is_file()}
    if fresh != known:
        _write(stamp_file, fresh)
    return {name: str(stamp[2]) for name, stamp in fresh.items()}


def sync(path: Path) -> None:
    """Have a file or folder written to the disk (fsync)."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


Stamp = list[int | str]


def _stamp(path: Path, known: Stamp | None) -> Stamp:
    try:
        status = path.stat()
        if known is not None and known[:2] == [status.st_size, status.st_mtime_ns]:
            return known
        return [status.st_size, status.st_mtime_ns, hash_file(path)]
    except FileNotFoundError:
        raise  # taken away just now: not the same as being refused
    except OSError as error:
        raise PipelineError(
            f"{path}: cannot be read ({error.strerror}). Let this user read it, or take it away."
        ) from error


def _read(stamp_file: Path) -> dict[str, Stamp]:
    try:
        stamps = json.loads(stamp_file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return stamps if isinstance(stamps, dict) else {}


def _write(stamp_file: Path, stamps: Mapping[str, Stamp]) -> None:
    """Write the stamps if the folder can be written; a read-only store is hashed every time."""
    temporary = stamp_file.with_name(f"{stamp_file.name}.{uuid.uuid4().hex[:8]}")
    try:
        stamp_file.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(json.dumps(stamps), encoding="utf-8")
        temporary.rename(stamp_file)
    except OSError:
        with contextlib.suppress(OSError):  # on a read-only file system even this is refused
            temporary.unlink(missing_ok=True)
