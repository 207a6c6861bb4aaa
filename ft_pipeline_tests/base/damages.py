"""What a power cut, a full disk or another program may leave of a small JSON record."""

from pathlib import Path

import pytest

# None of them is the shape of any record.
OTHER = (
    b"\xff\xfe{}",
    b"null",
    b"7",
    b'"text"',
    b"[1]",
    b'{"a": 1, "b": [null]}',
    b"{}{}",
    b"\0" * 64,
)


def list_damages(whole: bytes) -> list[bytes]:
    """Return a record cut at every byte, from empty on, and contents that are no such record.

    Without its last line end alone it is whole.
    """
    cuts = [whole[:length] for length in range(len(whole.rstrip()))]
    return [*cuts, whole[:-3] + b"\xff" + whole[-3:], *OTHER]


def read_names(caplog: pytest.LogCaptureFixture, file: Path) -> list[str]:
    """Return the warnings that name a file, and forget all."""
    found = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    caplog.clear()
    return [message for message in found if str(file) in message]
