"""Rows that must not be learned from: `data/forget.txt`.

One row_id a line, anything behind it is a comment:

    5f0a3c…9d  asked for by mail on 2026-11-02
"""

import re
from collections.abc import Iterable
from datetime import date
from pathlib import Path

from ft_pipeline.base.errors import PipelineError

FORGET_FILE = "data/forget.txt"


def read_forgotten(root: Path) -> tuple[str, ...]:
    """Return the row ids to forget, sorted. Raises PipelineError for a line that is none."""
    file = root / FORGET_FILE
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return ()
    except (OSError, UnicodeDecodeError) as error:
        raise PipelineError(
            f"{FORGET_FILE}: cannot be read as UTF-8 ({error}). Which rows are to be forgotten is "
            "then unknown; mend the file."
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
    """Append row ids that are not there yet, with the day; return their number.

    Nothing of the rows is written: the file lies in the repository.
    """
    file = root / FORGET_FILE
    known = set(read_forgotten(root))
    new = [row_id for row_id in dict.fromkeys(row_ids) if row_id not in known]
    if new:
        file.parent.mkdir(parents=True, exist_ok=True)
        text = file.read_text(encoding="utf-8") if file.exists() else ""
        text += "\n" if text and not text.endswith("\n") else ""
        day = date.today().isoformat()
        file.write_text(text + "".join(f"{r}  # {day}\n" for r in new), encoding="utf-8")
    return len(new)
