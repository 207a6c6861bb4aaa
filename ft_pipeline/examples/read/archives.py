"""Open a raw file for reading: plain, gzip or zip, with a limit on its unpacked size.

Nothing is unpacked to disk: `trivia.csv.gz` and the members of `trivia.zip` are read as streams,
under the names `trivia.csv.gz` and `trivia.zip/trivia.csv`.
"""

import gzip
import io
import struct
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path, PurePosixPath
from typing import BinaryIO, cast

from ft_pipeline.base.errors import PipelineError

# Beyond this size, content that is so many times larger than its file is taken for a bomb: text
# packs to a tenth or twentieth, deflate's limit is 1032.
SUSPICIOUS_BYTES = 50_000_000
SUSPICIOUS_RATIO = 250

# Methods that the standard library unpacks piece by piece; a block of bzip2 or LZMA comes out at
# once, however large it is.
_STREAMED = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
# What `zipfile` raises for a damaged or unusual archive.
_ZIP_ERRORS = (
    zipfile.BadZipFile,
    zlib.error,
    struct.error,
    OSError,
    EOFError,
    NotImplementedError,
    RuntimeError,
    ValueError,
    IndexError,
    KeyError,
    OverflowError,
)


class _Limited(io.RawIOBase):
    """A stream that refuses to unpack more than the limit."""

    def __init__(self, stream: BinaryIO, where: str, packed: int, max_bytes: int) -> None:
        self._stream, self._where, self._packed = stream, where, packed
        self._max_bytes, self._read = max_bytes, 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        try:
            chunk = self._stream.read(len(buffer))
        except _ZIP_ERRORS as error:
            raise PipelineError(
                f"{self._where}: damaged archive ({error}). Fetch the file again."
            ) from error
        self._read += len(chunk)
        require_reasonable_size(self._where, self._packed, self._read, self._max_bytes)
        buffer[: len(chunk)] = chunk
        return len(chunk)


def require_reasonable_size(where: str, packed: int, unpacked: int, max_bytes: int) -> None:
    """Raise PipelineError if content exceeds the limit, or is a compression bomb."""
    if unpacked > max_bytes:
        raise PipelineError(
            f"{where}: larger than {max_bytes} bytes when unpacked. If that size is right, raise "
            "the source's `format.max_bytes` in sources.yaml."
        )
    if unpacked > SUSPICIOUS_BYTES and unpacked > SUSPICIOUS_RATIO * max(packed, 1):
        raise PipelineError(
            f"{where}: {packed} bytes unpack to more than {unpacked}, which looks like a "
            "compression bomb. If this is real data, unpack the file yourself."
        )


def list_contents(name: str, path: Path) -> list[str]:
    """Return the names of a file's contents: its own name, or a zip's members.

    Raises PipelineError for a zip that is damaged or encrypted, or has a member that points outside
    its folder, occurs twice, or is compressed in a way that cannot be streamed.
    """
    if not name.lower().endswith(".zip"):
        return [name]
    try:
        with zipfile.ZipFile(path) as archive:
            members = [m for m in archive.infolist() if not m.filename.endswith("/")]
    except _ZIP_ERRORS as error:
        raise PipelineError(
            f"{name}: not a readable zip file ({error}). Fetch or create it again."
        ) from error
    for member in members:
        _require_readable(name, member)
    shown = sorted(m.filename for m in members if not _is_hidden(m.filename))
    twice = next((a for a, b in pairwise(shown) if a == b), None)
    if twice is not None:
        raise PipelineError(
            f"{name}: contains two members named {twice!r}. Unpack the file and rename them."
        )
    return [f"{name}/{member}" for member in shown]


def _require_readable(name: str, member: zipfile.ZipInfo) -> None:
    shown = f"{name}: member {member.filename!r}"
    parts = PurePosixPath(member.filename.replace("\\", "/")).parts
    if not parts or ".." in parts or parts[0] == "/" or ":" in parts[0]:
        raise PipelineError(
            f"{shown} points outside the archive and is refused. Remove it from the archive."
        )
    if member.flag_bits & 1:
        raise PipelineError(f"{shown} is encrypted. Unpack the archive.")
    if member.compress_type not in _STREAMED:
        raise PipelineError(
            f"{shown} is compressed with method {member.compress_type}; expected deflate. Unpack "
            "the archive."
        )


def _is_hidden(member: str) -> bool:
    return member.startswith("__MACOSX/") or PurePosixPath(member).name.startswith(".")


@contextmanager
def open_content(
    name: str, path: Path, content: str, max_bytes: int
) -> Iterator[io.BufferedReader]:
    """Open one of `list_contents(name, path)` as a stream of bytes."""
    with path.open("rb", buffering=1 << 20) as file:
        stream: io.BufferedReader | BinaryIO = file
        packed = path.stat().st_size
        if content != name:
            try:
                archive = zipfile.ZipFile(file)
                member = archive.getinfo(content.removeprefix(f"{name}/"))
                stream, packed = cast(BinaryIO, archive.open(member)), member.compress_size
            except _ZIP_ERRORS as error:
                raise PipelineError(
                    f"{content}: not a readable zip file ({error}). Fetch or create it again."
                ) from error
        if content.lower().endswith(".gz"):
            stream = cast(BinaryIO, gzip.GzipFile(fileobj=stream))
        if isinstance(stream, io.BufferedReader):
            yield stream
        else:
            with stream:
                yield io.BufferedReader(_Limited(stream, content, packed, max_bytes), 1 << 20)
