"""What a worker writes: its own log records, marked, among whatever libraries print.

A worker that a launcher has started writes each record of this project as one line of JSON behind
the mark of RFC 7464 (byte 1e):

    \\x1e{"name": "ft_pipeline.worker…", "level": 20, "text": "back end: plain", "activity": null}

The launcher takes them out of the worker's output, shows them, and puts them in plain words into
worker.log, where all the rest of the output goes too, and only there.
"""

import contextlib
import json
import logging
import os
import re
from collections import deque
from dataclasses import asdict, replace
from typing import TextIO

from ft_pipeline.base.activity import Activities, Activity
from ft_pipeline.base.console import PROJECT

# Set by the launcher: the worker's records are to be marked.
MARKED = "FT_MARKED_RECORDS"
MARK = b"\x1e"

# Escape sequences of terminals, and the characters that move their cursor.
_CONTROLS = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|[\x00-\x08\x0b-\x1f\x7f]")


class MarkedHandler(logging.Handler):
    """Writes each record as a marked line to a file descriptor, in one piece where it is short."""

    def __init__(self, descriptor: int) -> None:
        super().__init__(logging.INFO)
        self._descriptor = descriptor

    def emit(self, record: logging.LogRecord) -> None:
        state = getattr(record, "activity", None)
        data = {
            "name": record.name,
            "level": record.levelno,
            "text": self.format(record),
            "activity": asdict(state) if isinstance(state, Activity) else None,
        }
        left = MARK + json.dumps(data).encode() + b"\n"
        with contextlib.suppress(OSError):  # the launcher is gone: the work ends by itself
            while left:
                left = left[os.write(self._descriptor, left) :]


class OutputReader:
    """Parts a worker's output: records go to the project's loggers, all of it to a log.

    `tail` gets the log's last lines. A bar of a library that is drawn anew in its place is one line
    in the log, as it was last.
    """

    def __init__(self, log: TextIO, tail: "deque[str]") -> None:
        self._log, self._tail = log, tail
        self._rest = b""
        self._activities = Activities()

    def feed(self, chunk: bytes) -> None:
        """Take the next bytes."""
        *lines, rest = (self._rest + chunk).split(b"\n")
        for line in lines:
            self._take(line)
        self._rest = b"\r".join(rest.rsplit(b"\r", 2)[-2:])  # no more of a bar than its last state

    def close(self) -> None:
        """Take what has no end of line, and end the activities that a killed worker has left."""
        self._take(self._rest)
        for shown in reversed(list(self._activities.going.values())):
            _log(_to_record(str(shown.state), state=replace(shown.state, ended=True)))

    def _take(self, line: bytes) -> None:
        printed, mark, marked = line.partition(MARK)
        record = _parse(marked) if mark else None
        if record is None:
            self._write(clean(line))
            return
        self._write(clean(printed))
        state = getattr(record, "activity", None)
        if state is None:
            self._write(f"{record.levelname} {record.getMessage()}")
        else:
            self._write(self._activities.update(state) or self._activities.next_line() or "")
        _log(record)

    def _write(self, text: str) -> None:
        for line in text.splitlines():
            if line.strip():
                self._tail.append(line)
                with contextlib.suppress(OSError):  # a full disk stops no training
                    self._log.write(f"{line}\n")
                    self._log.flush()


def clean(line: bytes) -> str:
    """Return a printed line as it looked at last, without what steers a terminal."""
    text = line.decode("utf-8", errors="replace").rstrip("\r")
    return _CONTROLS.sub("", text.rpartition("\r")[2]).rstrip()


def _parse(marked: bytes) -> logging.LogRecord | None:
    """Return the record of a line, or None where it was torn."""
    try:
        data = json.loads(marked)
        state = data["activity"] and Activity(**data["activity"])
        return _to_record(str(data["text"]), str(data["name"]), int(data["level"]), state)
    except (ValueError, TypeError, KeyError):
        return None


def _to_record(
    text: str,
    name: str = PROJECT.name,
    level: int = logging.INFO,
    state: Activity | None = None,
) -> logging.LogRecord:
    data = {"name": name, "levelno": level, "levelname": logging.getLevelName(level)}
    return logging.makeLogRecord({**data, "msg": text, "activity": state})


def _log(record: logging.LogRecord) -> None:
    logging.getLogger(record.name).handle(record)
