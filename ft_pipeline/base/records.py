"""Small records on disk: written whole or not at all; reading one names any damage.

    .trivia.json.draft-1a2b3c4d    the next content, until it is renamed; never read
    .trivia.json.lock              held while a record is read, changed and written
    trivia.json                    the old content or the new one, whenever a process or power ends

A record written without `durable` may be empty after a power cut; its reader then rebuilds it.
"""

import contextlib
import glob
import logging
import os
import re
import uuid
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import TypeVar

from pydantic import TypeAdapter, ValidationError

from ft_pipeline.base.errors import PipelineError
from ft_pipeline.base.locks import hold_lock

DRAFT_MARK = ".draft-"

logger = logging.getLogger(__name__)

ShapeT = TypeVar("ShapeT")

# What was said last of a file with a fault: one is read often in a run, and named once.
_said: dict[Path, str] = {}


class DamagedRecord(PipelineError):
    """A damaged record; `fault` says what is wrong."""

    def __init__(self, where: Path | str, fault: str) -> None:
        super().__init__(f"{where}: {fault}.")
        self.fault = fault


def write_atomically(file: Path, text: str, durable: bool = True) -> None:
    """Replace a file's content (UTF-8) in an existing folder: readers see the old or the new.

    `durable`: the content is on disk when this returns (fsync of file and folder). Without it, a
    power cut may leave the file empty, so use that only for what can be rebuilt. Raises OSError;
    the old content then stays.
    """
    target = Path(os.path.realpath(file))  # where people put a link, it stays one
    draft = target.with_name(f".{target.name}{DRAFT_MARK}{uuid.uuid4().hex[:8]}")
    try:
        draft.write_text(text, encoding="utf-8", newline="")
        _take_mode(target, draft)
        if durable:
            sync(draft)
        draft.replace(target)
    except BaseException:
        with contextlib.suppress(OSError):  # on a read-only file system even this is refused
            draft.unlink(missing_ok=True)
        raise
    if durable:
        sync(target.parent)


@contextlib.contextmanager
def changing(file: Path) -> Iterator[None]:
    """Hold the lock to read, change and write a record; create its folder if missing.

    All writers hold it, so drafts left by killed ones can be removed here. Raises OSError.
    """
    target = Path(os.path.realpath(file))
    with hold_lock(target.with_name(f".{target.name}.lock")):
        for left in target.parent.glob(f".{glob.escape(target.name)}{DRAFT_MARK}*"):
            left.unlink(missing_ok=True)
        yield


def read_record(file: Path, shape: TypeAdapter[ShapeT], otherwise: str) -> ShapeT | None:
    """Return a JSON record, or None if it is missing or, with a warning, damaged.

    `otherwise` tells the warning's reader what happens instead. Each damage is reported once.
    Raises PipelineError if the file cannot be read.
    """
    try:
        record = load_record(file, shape)
    except DamagedRecord as damage:
        _warn(file, f"{damage.fault}; {otherwise}.")
        return None
    _said.pop(file, None)
    return record


def load_record(file: Path, shape: TypeAdapter[ShapeT]) -> ShapeT | None:
    """Return a JSON record, or None if it is missing.

    Raises DamagedRecord, or PipelineError if the file cannot be read.
    """
    content = _read(file)
    return None if content is None else parse_record(content, shape, file)


def parse_record(content: bytes, shape: TypeAdapter[ShapeT], where: Path | str) -> ShapeT:
    """Parse a JSON record. Raises DamagedRecord, naming `where`."""
    if not content.strip():
        raise DamagedRecord(where, "is empty")
    try:
        return shape.validate_json(content)
    except ValidationError as error:
        raise DamagedRecord(where, _describe(error)) from None  # it would show the content


def read_lines(file: Path) -> list[str]:
    """Return the lines of a record that people may also edit; no lines if there is no file.

    Warns if the last line has no line end, as in a truncated file. Raises DamagedRecord if the file
    is empty or not UTF-8, and PipelineError if it cannot be read.
    """
    content = _read(file)
    if content is None:
        return []
    if not content:
        raise DamagedRecord(file, "is empty, perhaps after a power cut")
    try:
        lines = content.decode("utf-8").removesuffix("\n").split("\n")
    except UnicodeDecodeError as error:
        raise DamagedRecord(file, f"cannot be read as UTF-8 ({error})") from error
    if content.endswith(b"\n"):
        _said.pop(file, None)
    else:
        remedy = "If the file was truncated, restore it; otherwise add a line end."
        _warn(file, f"its last line ({len(lines)}) has no line end. {remedy}")
    return [line.removesuffix("\r") for line in lines]


def is_draft(file: Path, records: Collection[str]) -> bool:
    """Whether a file is the draft that a killed process left of one of these records."""
    named = (re.escape(record) for record in records)
    return re.fullmatch(rf"\.({'|'.join(named)}){DRAFT_MARK}[0-9a-f]{{8}}", file.name) is not None


def sync(path: Path) -> None:
    """Flush a file or folder to disk (fsync)."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_tree(folder: Path) -> None:
    """Flush a folder and everything in it to disk."""
    for place, _, names in os.walk(folder, topdown=False):
        for file in (Path(place, name) for name in names):
            if file.is_file():
                sync(file)
        sync(Path(place))


def _take_mode(old: Path, new: Path) -> None:
    """Copy the old file's permissions, if there is one, to the new file."""
    with contextlib.suppress(FileNotFoundError):
        mode = old.stat().st_mode
        if mode != new.stat().st_mode:
            new.chmod(mode & 0o7777)


def _read(file: Path) -> bytes | None:
    try:
        return file.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise PipelineError(
            f"{file}: cannot be read ({error.strerror}). Make it readable for this user, or "
            "remove it."
        ) from error


def _warn(file: Path, text: str) -> None:
    if _said.get(file) != text:
        _said[file] = text
        logger.warning("%s: %s", file, text)


def _describe(error: ValidationError) -> str:
    """Describe the first error, without the content, which may be long."""
    first = error.errors(include_url=False, include_input=False)[0]
    if first["type"] == "json_invalid":
        return f"truncated or not JSON ({first['ctx']['error']})"
    path = ".".join(str(part) for part in first["loc"]) or "the whole record"
    return f"not the expected record ({path}: {first['msg']})"
