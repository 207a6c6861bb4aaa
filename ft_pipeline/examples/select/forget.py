"""Rows that must not be learned from: `data/forget.txt`.

One row_id per line; anything after it is a comment:

    5f0a3c…9d  asked for by mail on 2026-11-02

The file is changed under a lock and written whole, so that concurrent requests lose no rows. People
may edit it; the program only appends.
"""

import re
from collections.abc import Iterable
from datetime import date
from pathlib import Path

from ft_pipeline.base.errors import PipelineError
from ft_pipeline.base.records import DamagedRecord, changing, read_lines, write_atomically

FORGET_FILE = "data/forget.txt"


def read_forgotten(root: Path) -> tuple[str, ...]:
    """Return the row ids to forget, sorted. Raises PipelineError for an invalid line."""
    try:
        lines = read_lines(root / FORGET_FILE)
    except DamagedRecord as error:
        raise PipelineError(
            f"{FORGET_FILE}: {error.fault}. Without it, the rows to forget are unknown. Fix or "
            "restore the file; if there are no rows to forget, remove it."
        ) from error
    found = set()
    for number, line in enumerate(lines, start=1):
        words = line.partition("#")[0].split()
        if not words:
            continue
        if not re.fullmatch(r"[0-9a-f]{32}", words[0]):
            raise PipelineError(
                f"{FORGET_FILE}: line {number}: {words[0]!r} is not a row_id of 32 hex characters. "
                "`ft-pipeline forget --match TEXT` finds them."
            )
        found.add(words[0])
    return tuple(sorted(found))


def add_forgotten(root: Path, row_ids: Iterable[str]) -> int:
    """Append new row ids with today's date; return their number.

    No content of the rows is written, because the file is in the repository. Raises PipelineError
    if it cannot be read or written.
    """
    file = root / FORGET_FILE
    try:
        with changing(file):
            known = set(read_forgotten(root))
            new = [row_id for row_id in dict.fromkeys(row_ids) if row_id not in known]
            if new:
                write_atomically(file, _read_whole(file) + _format(new))
    except OSError as error:
        raise PipelineError(
            f"{file}: cannot be written ({error.strerror}). No row was added. Give this user "
            "write access to the file and its folder, make sure the disk has free space, then "
            "repeat this."
        ) from error
    return len(new)


def _read_whole(file: Path) -> str:
    """Return the current text, ready for another line."""
    text = file.read_bytes().decode("utf-8") if file.exists() else ""
    return text if not text or text.endswith("\n") else f"{text}\n"


def _format(row_ids: Iterable[str]) -> str:
    day = date.today().isoformat()
    return "".join(f"{row_id}  # {day}\n" for row_id in row_ids)
