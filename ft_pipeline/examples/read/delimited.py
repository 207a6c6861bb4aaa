"""Records of CSV and TSV files, each with its line; broken ones are repaired if that is certain.

A file is read in chunks of whole lines. A chunk of only regular records goes through Arrow's
reader; any other is read record by record, and irregular records are repaired (repair.py) or set
aside. An unclosed quote costs only its own line.
"""

import csv
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import accumulate

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import csv as arrow_csv

from ft_pipeline.base.errors import PipelineError
from ft_pipeline.config.sources import Format
from ft_pipeline.examples.read import dialects
from ft_pipeline.examples.read.dialects import Dialect, guess_dialect, split_lines
from ft_pipeline.examples.read.encodings import mend
from ft_pipeline.examples.read.repair import repair, repair_quotes
from ft_pipeline.examples.read.text import replace_half_characters

# One record's lines and bytes; what is longer is taken for one whose quote is never closed.
MOST_LINES = 2000
LONGEST_RECORD = 32 * 1024 * 1024
csv.field_size_limit(2 * LONGEST_RECORD)
# In one chunk, quotes that are not closed may cost so many lines of looking ahead.
PATIENCE = 100 * MOST_LINES
SHORT_REACH = 10
RUN = 200  # lines that are read at once where records are regular

_ESCAPES = {"n": "\n", "t": "\t", "r": "\r", "\\": "\\"}


@dataclass
class DelimitedRecords:
    """Some records: their lines, their values by column, and (line, text) of broken ones.

    Values of an irregular chunk may hold bytes that are not UTF-8, as surrogates.
    """

    lines: list[int] = field(default_factory=list)
    columns: dict[str, pa.Array | list[str]] = field(default_factory=dict)
    broken: list[tuple[int, str]] = field(default_factory=list)


def read_delimited(
    chunks: Iterator[bytes], where: str, form: Format, default: str
) -> Iterator[DelimitedRecords]:
    """Yield the records of a file given as UTF-8 chunks; `default` is the usual delimiter.

    Raises PipelineError for a header that is missing, undecodable, or has duplicate names.
    """
    buffer = _read_head(chunks)
    dialect = guess_dialect(buffer, where, form, default)
    names, used, line = list(form.header or ()), 0, 1
    if not names:
        names, used, line = _read_header(buffer, where, dialect)
    buffer, at_end = buffer[used:], False
    while not at_end:
        chunk = next(chunks, b"")
        at_end = not chunk
        buffer += chunk
        end = len(buffer) if at_end else _find_boundary(buffer, dialect)
        if not end:
            if len(buffer) >= LONGEST_RECORD:  # one line
                shown = buffer[:1000].decode("utf-8", "surrogateescape")
                yield DelimitedRecords(columns={name: [] for name in names}, broken=[(line, shown)])
                buffer, line = _skip_line(chunks), line + 1
            continue
        whole = buffer[:end]
        records = _read_regular(whole, names, dialect, line)
        used, lines = len(whole), _count(whole, b"\n")
        if records is None:
            records, used, lines = _read_with_care(whole, names, dialect, line, at_end)
        yield records
        line += lines
        buffer = buffer[used:]


def unescape(text: str) -> str:
    """Read backslash escapes: `\\n`, `\\t`, `\\r` and a doubled backslash."""
    if "\\" not in text:
        return text
    return re.sub(r"\\([ntr\\])", lambda match: _ESCAPES[match[1]], text)


def _read_head(chunks: Iterator[bytes]) -> bytes:
    head: list[bytes] = []
    while sum(map(len, head)) < dialects.HEAD_BYTES and (chunk := next(chunks, b"")):
        head.append(chunk)
    return b"".join(head)


def _skip_line(chunks: Iterator[bytes]) -> bytes:
    """Return what follows the next line feed of the chunks."""
    for chunk in chunks:
        _, end, rest = chunk.partition(b"\n")
        if end:
            return rest
    return b""


def _read_header(buffer: bytes, where: str, dialect: Dialect) -> tuple[list[str], int, int]:
    """Return the names, the length in bytes, and the number of the line after the header."""
    lines = split_lines(buffer[:LONGEST_RECORD])
    blank = next((i for i, line in enumerate(lines) if line.strip()), len(lines))
    count, fields, _ = _next_record(lines, blank, dialect)
    names = [mend(name.strip()) for name in fields or ()]
    if not any(names) or None in names:
        shown = replace_half_characters("".join(lines[blank : blank + 1])[:200].strip())
        raise PipelineError(
            f"{where}: the first line is not a readable header: {shown!r}. Expected column names "
            "in UTF-8; check `format.encoding`, `format.delimiter` and `format.header` of the "
            "source."
        )
    names = [name or f"unnamed_{i}" for i, name in enumerate(names, start=1)]
    if len(set(names)) != len(names):
        raise PipelineError(
            f"{where}: a column name occurs twice in the header: {names}. Rename one, or declare "
            "`format.header`."
        )
    return list(map(str, names)), _count_bytes(lines[: blank + count]), 1 + blank + count


def _read_regular(
    whole: bytes, names: list[str], dialect: Dialect, line: int
) -> DelimitedRecords | None:
    """Read records that are all regular; return None if anything is unusual."""
    if not whole or dialect.after_blanks or not dialect.delimiter.isascii():
        return None
    if not _is_utf8(whole):
        return None
    if b"\r" in whole and whole.count(b"\r") != whole.count(b"\r\n"):
        return None
    if dialect.quoting != csv.QUOTE_NONE and not _is_quoted_regularly(whole, dialect.delimiter):
        return None
    unusual: list[object] = []

    def skip(row: object) -> str:
        unusual.append(row)
        return "skip"

    try:
        table = arrow_csv.read_csv(
            pa.py_buffer(whole),
            arrow_csv.ReadOptions(
                use_threads=False, column_names=names, block_size=len(whole) + 1024
            ),
            arrow_csv.ParseOptions(
                delimiter=dialect.delimiter,
                quote_char=False if dialect.quoting == csv.QUOTE_NONE else '"',
                newlines_in_values=True,
                ignore_empty_lines=False,
                invalid_row_handler=skip,
            ),
            arrow_csv.ConvertOptions(
                column_types={name: pa.string() for name in names},
                strings_can_be_null=False,
                check_utf8=False,
            ),
        )
    except pa.ArrowInvalid:
        return None
    count = _count(whole, b"\n") + (not whole.endswith(b"\n"))
    columns = {name: _one_array(table[name]) for name in names}
    if _has_empty_row(list(columns.values())):
        return None  # it may be an empty line, which is no record
    lines = _number_lines(columns, len(table), line, count)
    return None if unusual or lines is None else DelimitedRecords(lines, columns)


def _has_empty_row(columns: list[pa.Array]) -> bool:
    empty = pc.equal(columns[0], "")
    for column in columns[1:]:
        if not pc.any(empty).as_py():
            return False
        empty = pc.and_(empty, pc.equal(column, ""))
    return bool(pc.any(empty).as_py())


def _number_lines(
    columns: dict[str, pa.Array], rows: int, first: int, count: int
) -> list[int] | None:
    """Return each record's line; None if the records do not add up to `count` lines."""
    if rows == count:
        return list(range(first, first + rows))
    spans = np.ones(rows, np.int64)
    for column in columns.values():
        spans += pc.count_substring(column, "\n").to_numpy(zero_copy_only=False)
    if rows == 0 or spans.sum() != count:
        return None
    return list(accumulate(spans[:-1].tolist(), initial=first))


def _read_with_care(
    whole: bytes, names: list[str], dialect: Dialect, first: int, at_end: bool
) -> tuple[DelimitedRecords, int, int]:
    """Read record by record; return the records, and the bytes and lines consumed.

    A record whose end has not arrived yet is left, unless the file ends.
    """
    lines, width = split_lines(whole), len(names)
    records, rows, position, patience = DelimitedRecords(), list[list[str]](), 0, PATIENCE
    while position < len(lines):
        reach = MOST_LINES if patience > 0 else SHORT_REACH
        begun, run = _read_run(lines[position : position + min(reach, RUN)], width, dialect)
        records.lines += [first + position + at for at in begun[:-1]]
        rows += run
        position += begun[-1]
        if position == len(lines):
            break
        count, fields, is_open = _next_record(lines, position, dialect, reach)
        goes_on = is_open and not at_end and count < reach and position + count == len(lines)
        if goes_on and (position or len(whole) < LONGEST_RECORD):
            break
        taken = lines[position : position + count]
        if fields is None or len(fields) != width:
            taken, fields = _repair_record(taken, fields, width, dialect)
            patience -= count - len(taken)
        shown = "".join(taken).rstrip("\r\n")
        if fields is not None:
            records.lines.append(first + position)
            rows.append(fields)
        elif shown.strip(' \t\r\n"' + dialect.delimiter):
            records.broken.append((first + position, shown))
        position += len(taken)
    values = zip(*rows, strict=True) if rows else ([] for _ in names)
    records.columns = dict(zip(names, map(list, values), strict=True))
    return records, _count_bytes(lines[:position]), position


def _read_run(lines: list[str], width: int, dialect: Dialect) -> tuple[list[int], list[list[str]]]:
    """Return the records up to the first irregular or incomplete one.

    Also return the position of each one's first line, and of the line after them.
    """
    begun, rows = [0], list[list[str]]()
    reader = dialect.reader(lines)
    try:
        for fields in reader:
            if len(fields) != width:
                break
            rows.append(fields)
            begun.append(reader.line_num)  # type: ignore[attr-defined]
    except csv.Error:
        pass  # what is wrong with it is found out for this record alone
    return begun, rows


def _next_record(
    lines: list[str], position: int, dialect: Dialect, reach: int = MOST_LINES
) -> tuple[int, list[str] | None, bool]:
    """Return the number of lines of the record that starts at a position, and its fields.

    Also return whether it has none because a quote is not closed within `reach` lines.
    """
    stop = min(position + reach, len(lines))
    reader = dialect.reader(map(lines.__getitem__, range(position, stop)))
    fields, is_open = None, False
    try:
        fields = next(reader, None)
    except csv.Error as error:
        is_open = str(error).startswith("unexpected end")
    return max(int(reader.line_num), 1), fields, is_open  # type: ignore[attr-defined]


def _repair_record(
    taken: list[str], fields: list[str] | None, width: int, dialect: Dialect
) -> tuple[list[str], list[str] | None]:
    """Return the lines that belong to an irregular record, and its fields if certain."""
    if fields is None:
        taken = taken[:1]
    if len(taken) == 1 and '"' in taken[0] and dialect.quoting != csv.QUOTE_NONE:
        found = repair_quotes(taken[0], width, dialect.delimiter)
        if found is not None or fields is None:
            return taken, found
    found = repair(fields or [], width, dialect.delimiter)
    if found is None and _swallows_records(taken, width, dialect):
        taken = taken[:1]
    return taken, found


def _swallows_records(taken: list[str], width: int, dialect: Dialect) -> bool:
    """Say whether the inner lines of a record are records themselves, between two stray quotes."""
    inner = taken[1:-1]
    return len(inner) * (width - 1) >= 3 and all(
        len(_next_record(inner, i, dialect, 1)[1] or ()) == width for i in range(len(inner))
    )


def _find_boundary(buffer: bytes, dialect: Dialect) -> int:
    """Return the end of the last line that is not inside a quoted field, or 0."""
    last = end = buffer.rfind(b"\n") + 1 or buffer.rfind(b"\r", 0, -1) + 1
    if dialect.quoting == csv.QUOTE_NONE:
        return end
    quotes = _count(buffer[:end], b'"')
    for _ in range(MOST_LINES):
        if not end or quotes % 2 == 0:
            break
        start = buffer.rfind(b"\n", 0, end - 1) + 1
        quotes -= buffer.count(b'"', start, end)
        end = start
    return end if end and quotes % 2 == 0 else last


def _count(content: bytes, byte: bytes) -> int:
    """Count a frequent byte; bytes.count is optimized for rare ones."""
    return int(np.count_nonzero(np.frombuffer(content, np.uint8) == byte[0]))


def _is_quoted_regularly(whole: bytes, delimiter: str) -> bool:
    """Say whether every quote opens a field at its start, closes it at its end, or is doubled.

    Adjacent quotes are a run. Outside a field, a run must be at the field's start, and one of even
    length (which closes the field again) also at its end; inside, one of odd length (which closes
    it) must be at its end.
    """
    content = np.frombuffer(whole if whole.endswith(b"\n") else whole + b"\n", np.uint8)
    at = np.flatnonzero(content == ord('"'))
    if len(at) % 2:
        return False
    if not len(at):
        return True
    is_edge = np.zeros(256, bool)
    is_edge[list(f"{delimiter}\r\n".encode())] = True
    begins = np.flatnonzero(np.diff(at, prepend=-2) != 1)
    ends = np.append(begins[1:], len(at)) - 1
    left = is_edge[content[at[begins] - 1]]  # before the first byte: the last, a line feed
    right = is_edge[content[at[ends] + 1]]
    is_inside, is_odd = (begins & 1).astype(bool), ((begins ^ ends) & 1) == 0
    return bool(np.all(np.where(is_inside, right | ~is_odd, left & (right | is_odd))))


def _is_utf8(content: bytes) -> bool:
    if content.isascii():
        return True
    try:
        content.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


def _one_array(column: pa.ChunkedArray) -> pa.Array:
    combined = column.combine_chunks()
    return combined.chunk(0) if isinstance(combined, pa.ChunkedArray) else combined


def _count_bytes(lines: list[str]) -> int:
    return sum(len(line.encode("utf-8", "surrogateescape")) for line in lines)
