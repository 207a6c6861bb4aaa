"""Decode the bytes of a raw file, and mark where that is not certain.

Bytes that the encoding lacks stay visible in the decoded value, as surrogates. In a UTF-8 file, a
value with such bytes is read as cp1252 (Windows' Latin-1) if that is certain: its bytes contain no
multi-byte UTF-8 character and none that cp1252 lacks.
"""

import codecs
import io
import re
from collections.abc import Iterator

from ft_pipeline.base.errors import PipelineError

# Encodings whose first bytes tell them; in Python's `utf-16` and `utf-32` these are needed.
_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_ESCAPED_BYTE = re.compile("[\udc80-\udcff]")
# A lead byte of UTF-8 and a continuation byte: a character of UTF-8, whole or cut off.
_UTF8_PAIR = re.compile(rb"[\xc2-\xf4][\x80-\xbf]")


def _mark_undecodable(error: UnicodeError) -> tuple[str | bytes, int]:
    """Append a byte that cp1252 lacks as well, so that nothing reads it as text."""
    if isinstance(error, UnicodeDecodeError):
        return "\udc81", error.end
    if isinstance(error, UnicodeEncodeError):
        return b"\x81", error.end
    raise error


codecs.register_error("ft_mark", _mark_undecodable)


def detect_encoding(stream: io.BufferedReader, where: str, declared: str | None) -> str:
    """Return the encoding of a text file, as Python names it.

    Raises PipelineError for a binary file, and for an encoding that is not for text.
    """
    head = peek(stream, where)
    marked = next((name for mark, name in _MARKS if head.startswith(mark)), None)
    encoding = marked or "utf-8"
    if declared is not None and marked != "utf-8-sig":
        encoding = _normalize(declared, where)
        if marked is not None and encoding.startswith(marked):
            encoding = marked  # the mark is not text
        elif encoding in ("utf-16", "utf-32"):
            encoding += "-le"
    if encoding.startswith("utf-8") and b"\0" in head:
        raise PipelineError(
            f"{where}: a binary file (it contains NUL bytes), not text. Expected UTF-8 text; for "
            "UTF-16 without a byte order mark, declare `format.encoding` of the source."
        )
    return encoding


def _normalize(declared: str, where: str) -> str:
    try:
        "a".encode(declared)  # only encodings of text can
        codecs.getincrementaldecoder(declared)("ft_mark").decode(b"a")
    except (LookupError, UnicodeError) as error:
        raise PipelineError(
            f"{where}: `format.encoding: {declared}` is not an encoding for text files ({error}). "
            "Use one such as utf-8, cp1252 or gbk."
        ) from error
    return codecs.lookup(declared).name


def open_text(
    stream: io.BufferedReader, where: str, declared: str | None, newline: str | None = ""
) -> io.TextIOWrapper:
    """Return a stream of text; `newline` as in `open`. Raises PipelineError for a binary file.

    Bytes that the encoding lacks stay visible as surrogates.
    """
    encoding = detect_encoding(stream, where, declared)
    errors = "surrogateescape" if encoding.startswith("utf-8") else "ft_mark"
    return io.TextIOWrapper(stream, encoding=encoding, errors=errors, newline=newline)


def read_utf8(
    stream: io.BufferedReader, where: str, declared: str | None, size: int
) -> Iterator[bytes]:
    """Yield a text file in chunks of about `size` bytes in UTF-8, without a byte order mark.

    UTF-8 passes through unchanged, including errors; bytes that another encoding lacks become a
    byte that is not valid UTF-8. Raises PipelineError for a binary file.
    """
    encoding = detect_encoding(stream, where, declared)
    if not encoding.startswith("utf-8"):
        text = io.TextIOWrapper(stream, encoding=encoding, errors="ft_mark", newline="")
        while characters := text.read(size):
            yield characters.encode("utf-8", "ft_mark")
        return
    if peek(stream, where).startswith(codecs.BOM_UTF8):
        stream.read(len(codecs.BOM_UTF8))
    while chunk := stream.read(size):
        yield chunk


def peek(stream: io.BufferedReader, where: str) -> bytes:
    """Peek at the first bytes of a file. Raises PipelineError if it is empty."""
    head = stream.peek(65536)[:65536]
    if len(head) < 65536 and not head.removeprefix(codecs.BOM_UTF8).strip():
        raise PipelineError(
            f"{where}: the file is empty. Expected a header and rows; fetch the file again, or "
            "remove it."
        )
    return head


def needs_mending(text: str) -> bool:
    """Say whether a text contains bytes that its file's encoding lacks."""
    return not text.isascii() and _ESCAPED_BYTE.search(text) is not None


def mend(text: str) -> str | None:
    """Return a text with its stray cp1252 bytes decoded; None if that is not certain."""
    if not needs_mending(text):
        return text
    try:
        raw = text.encode("utf-8", "surrogateescape")
        return None if _UTF8_PAIR.search(raw) else raw.decode("cp1252")
    except UnicodeError:
        return None
