"""The elements of a JSON array, decoded one by one as the file is read.

The array is the whole file, or is under `results` or `data` in an object, as in the Open Trivia
Database: `{"response_code": 0, "results": [{"question": …}, …]}`.
"""

import json
import re
from collections.abc import Iterator
from io import TextIOWrapper
from typing import Any

from ft_pipeline.base.errors import PipelineError
from ft_pipeline.examples.read.delimited import LONGEST_RECORD
from ft_pipeline.examples.read.encodings import mend, needs_mending
from ft_pipeline.examples.read.text import replace_half_characters

LONGEST_VALUE = 4 * LONGEST_RECORD  # characters
SHOWN = 200  # characters of an element's text
_VISIBLE = re.compile(r"\S")

# What stands for an element with bytes that are neither UTF-8 nor with certainty cp1252.
UNDECODABLE = object()


class JsonArray:
    """The array in a stream of text; `shown` is the start of the last element's text.

    An element with bytes that are not UTF-8 is read as cp1252, or is UNDECODABLE.
    """

    CHUNK = 1 << 20

    def __init__(self, text: TextIOWrapper, where: str) -> None:
        self._text, self._where = text, where
        self._buffer, self._at, self._has_escaped = "", 0, False
        self._decoder = json.JSONDecoder()
        self._count = 0
        self.shown = ""

    def items(self) -> Iterator[Any]:
        """Yield the elements. Raises PipelineError if the file is not such JSON."""
        first = self._peek()
        if first == "{":
            yield from self._items_of_object()
        elif first == "[":
            yield from self._items_of_array()
        else:
            raise self._wrong(f"it starts with {first!r}")
        if self._peek():
            raise self._wrong(f"{self._buffer[self._at : self._at + 20]!r} follows after its end")

    def _items_of_object(self) -> Iterator[Any]:
        self._expect("{")
        names: list[str] = []
        is_found = False
        while self._peek() != "}":
            if names:
                self._expect(",")
            names.append(str(self._value()))
            self._expect(":")
            if not is_found and names[-1] in ("results", "data", "rows") and self._peek() == "[":
                is_found = True
                yield from self._items_of_array()
            else:
                self._value()
        self._expect("}")
        if not is_found:
            raise self._wrong(f"its keys are {', '.join(names) or 'none'}")

    def _items_of_array(self) -> Iterator[Any]:
        self._expect("[")
        while self._peek() != "]":
            self._count += 1
            yield self._value()
            if self._peek() == ",":
                self._at += 1
            elif self._peek() != "]":
                raise self._wrong(f"found {self._peek() or 'its end'} where , or ] belongs")
        self._expect("]")

    def _value(self) -> Any:
        self._peek()
        while True:
            try:
                value, end = self._decoder.raw_decode(self._buffer, self._at)
            except (ValueError, RecursionError) as error:
                if not self._may_go_on(error) or not self._fill():
                    found = error.msg if isinstance(error, json.JSONDecodeError) else str(error)
                    raise self._wrong(found) from error
                continue
            if end + 2 >= len(self._buffer) and self._fill():  # a number may go on: 1e+ is cut
                continue
            start, self._at = self._at, end
            self.shown = self._buffer[start : min(end, start + SHOWN)]
            if self._has_escaped and needs_mending(text := self._buffer[start:end]):
                mended = mend(text)
                return UNDECODABLE if mended is None else json.loads(mended)
            return value

    def _may_go_on(self, error: Exception) -> bool:
        """Say whether a value may become complete with more of the file."""
        if not isinstance(error, json.JSONDecodeError):
            return False
        # The longest token that can be cut: a character written as `\ud83d\ude00`.
        return error.msg.startswith("Unterminated") or error.pos > len(self._buffer) - 12

    def _peek(self) -> str:
        while True:
            match = _VISIBLE.search(self._buffer, self._at)
            if match:
                self._at = match.start()
                return match[0]
            if not self._fill():
                self._at = len(self._buffer)
                return ""

    def _expect(self, character: str) -> None:
        if self._peek() != character:
            raise self._wrong(f"found {self._peek() or 'its end'} where {character} belongs")
        self._at += 1

    def _fill(self) -> bool:
        size = max(self.CHUNK, len(self._buffer) - self._at)  # double it: a long value is read once
        if size > LONGEST_VALUE:
            raise self._wrong("a value is too long")
        chunk = self._text.read(size)
        if not chunk:
            return False
        kept = self._buffer[self._at :]
        self._has_escaped = needs_mending(chunk) or (self._has_escaped and bool(kept))
        self._buffer, self._at = kept + chunk, 0
        return True

    def _wrong(self, what: str) -> PipelineError:
        place = f"in record {self._count}: " if self._count else ""
        return PipelineError(
            f"{self._where}: neither a JSON array of objects, nor an object with one under "
            f"`results` or `data`: {place}{replace_half_characters(what)}."
        )
