"""Hashes of files, cached by size and modification time, so that no file is read twice.

A stamp file maps a name to `[size in bytes, mtime in ns, sha256]`. It is valid only locally: on
another machine, or after a copy, the times differ and the files are hashed again.
"""

import contextlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

from pydantic import Field, TypeAdapter

from ft_pipeline.base.errors import PipelineError
from ft_pipeline.base.hashing import hash_file
from ft_pipeline.base.records import read_record, write_atomically

Stamp = tuple[int, int, Annotated[str, Field(pattern="^[0-9a-f]{64}$")]]
STAMPS = TypeAdapter(dict[str, Stamp])


def hash_files(files: Mapping[str, Path], stamp_file: Path) -> dict[str, str]:
    """Return the sha256 of each file by name; a missing file is left out.

    Raises PipelineError for a file that cannot be read.
    """
    known = read_record(stamp_file, STAMPS, "the files are hashed again") or {}
    fresh = {name: _stamp(path, known.get(name)) for name, path in files.items() if path.is_file()}
    if fresh != known:
        _write(stamp_file, fresh)
    return {name: sha256 for name, (_, _, sha256) in fresh.items()}


def _stamp(path: Path, known: Stamp | None) -> Stamp:
    try:
        status = path.stat()
        if known is not None and known[:2] == (status.st_size, status.st_mtime_ns):
            return known
        return status.st_size, status.st_mtime_ns, hash_file(path)
    except FileNotFoundError:
        raise  # taken away just now: not the same as being refused
    except OSError as error:
        raise PipelineError(
            f"{path}: cannot be read ({error.strerror}). Make it readable for this user, or "
            "remove it."
        ) from error


def _write(stamp_file: Path, stamps: Mapping[str, Stamp]) -> None:
    """Write the stamps if the folder is writable; a read-only store is hashed every time."""
    with contextlib.suppress(OSError):
        stamp_file.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(stamp_file, json.dumps(stamps), durable=False)
