"""Small records on disk: written whole or not at all, and read with a word on what is wrong.

    .trivia.json.draft-1a2b3c4d    the next content, until it is renamed; never read
    .trivia.json.lock              held while a record is read, changed and written
    trivia.json                    the old content or the new one, whenever a process or power ends

What has no `durable` write may be empty after a power cut; then its reader makes it again.
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
    """A record that is not what was written; `fault` says in what."""

    def __init__(self, where: Path | str, fault: str) -> None:
        super().__init__(f"{where}: {fault}.")
        self.fault = fault


def write_atomically(file: Path, text: str, durable: bool = True) -> None:
    """Give a file of an existing folder new content, in UTF-8: readers see the old or the new.

    `durable`: it is on the disk when this returns (fsync of file and folder). Without that, a power
    cut may leave it empty, which is right only for what is made again. Raises OSError; the old
    content then stays.
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
    """Hold the right to read a record and write it changed; make its folder where it is missing.

    All who write the record hold it, so what a killed one has left is cleared away. Raises OSError.
    """
    target = Path(os.path.realpath(file))
    with hold_lock(target.with_name(f".{target.name}.lock")):
        for left in target.parent.glob(f".{glob.escape(target.name)}{DRAFT_MARK}*"):
            left.unlink(missing_ok=True)
        yield


def read_record(file: Path, shape: TypeAdapter[ShapeT], otherwise: str) -> ShapeT | None:
    """Return a JSON record. None where there is none, and where it is damaged: then with a warning.

    `otherwise` says there what is done without it. A damage is named once, as long as it stays.
    Raises PipelineError where the file cannot be read.
    """
    try:
        record = load_record(file, shape)
    except DamagedRecord as damage:
        _warn(file, f"{damage.fault}; {otherwise}.")
        return None
    _said.pop(file, None)
    return record


def load_record(file: Path, shape: TypeAdapter[ShapeT]) -> ShapeT | None:
    """Return a JSON record, or None where there is none.

    Raises DamagedRecord, and PipelineError where it cannot be read.
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
    """Return the lines of a record that people write, too; none where there is no file.

    Warns where the last line has no end: a file that was cut off looks so. Raises DamagedRecord
    where it is empty or not UTF-8, and PipelineError where it cannot be read.
    """
    content = _read(file)
    if content is None:
        return []
    if not content:
        raise DamagedRecord(file, "is empty, as after a power cut")
    try:
        lines = content.decode("utf-8").removesuffix("\n").split("\n")
    except UnicodeDecodeError as error:
        raise DamagedRecord(file, f"cannot be read as UTF-8 ({error})") from error
    if content.endswith(b"\n"):
        _said.pop(file, None)
    else:
        remedy = "If the file was cut off, restore it; else end that line."
        _warn(file, f"line {len(lines)}, the last, has no line end. {remedy}")
    return [line.removesuffix("\r") for line in lines]


def is_draft(file: Path, records: Collection[str]) -> bool:
    """Whether a killed process left a file as the next content of one of these records."""
    named = (re.escape(record) for record in records)
    return re.fullmatch(rf"\.({'|'.join(named)}){DRAFT_MARK}[0-9a-f]{{8}}", file.name) is not None


def sync(path: Path) -> None:
    """Have a file or folder written to the disk (fsync)."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_tree(folder: Path) -> None:
    """Have a folder with all that is in it written to the disk."""
    for place, _, names in os.walk(folder, topdown=False):
        for file in (Path(place, name) for name in names):
            if file.is_file():
                sync(file)
        sync(Path(place))


def _take_mode(old: Path, new: Path) -> None:
    """Give the new file the rights that the old one had, if there is one."""
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
            f"{file}: cannot be read ({error.strerror}). Let this user read it, or take it away."
        ) from error


def _warn(file: Path, text: str) -> None:
    if _said.get(file) != text:
        _said[file] = text
        logger.warning("%s: %s", file, text)


def _describe(error: ValidationError) -> str:
    """Say what is wrong first, without the content, which may be long."""
    first = error.errors(include_url=False, include_input=False)[0]
    if first["type"] == "json_invalid":
        return f"cut off or not JSON ({first['ctx']['error']})"
    path = ".".join(str(part) for part in first["loc"]) or "the whole record"
    return f"not the record that was expected ({path}: {first['msg']})"
