"""Read raw files into blocks of records, whatever their format, each record with its line.

One block, shortened:

    Block(file="trivia.csv", lines=[2, 3], columns={"question": ["Which river…", "Who…"], …},
          broken=[BrokenRecord(line=7, reason="malformed_row", text="a,b,c,d,e,f,g")])

`line` is the line on which a record begins; in JSON arrays and Parquet it is the record's number.
"""

import codecs
import json
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from io import BufferedReader
from pathlib import Path
from typing import Any

import pyarrow as pa

from ft_pipeline.base.errors import PipelineError
from ft_pipeline.config.sources import Format
from ft_pipeline.examples.read import archives, encodings
from ft_pipeline.examples.read.delimited import LONGEST_RECORD, read_delimited, unescape
from ft_pipeline.examples.read.json_array import SHOWN, UNDECODABLE, JsonArray
from ft_pipeline.examples.read.text import replace_half_characters

TYPES = {
    ".csv": "csv",
    ".tsv": "tsv",
    ".json": "json",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".parquet": "parquet",
}
BLOCK_ROWS = 5_000
CHUNK_BYTES = 4_000_000
MOST_COLUMNS = 2_000  # of objects
MOST_CELLS = 2_000_000  # of a block of objects
LONGEST_TEXT = 8 * LONGEST_RECORD  # characters of a file of type `text`


@dataclass(frozen=True)
class BrokenRecord:
    """A record that could not be read as a row: a code from REASONS, and the start of its text."""

    line: int
    reason: str
    text: str


@dataclass
class Block:
    """Consecutive records of one file, by column; all columns are as long as `lines`."""

    file: str
    lines: list[int] = field(default_factory=list)
    columns: dict[str, "list[Any] | pa.Array"] = field(default_factory=dict)
    broken: list[BrokenRecord] = field(default_factory=list)


def list_readable(
    source: str, files: Mapping[str, Path], form: Format
) -> list[tuple[str, Path, str]]:
    """Return (file name, path, content name) of everything to read, in order.

    Raises PipelineError if no file has a known format.
    """
    found = [
        (name, path, content)
        for name, path in sorted(files.items())
        for content in archives.list_contents(name, path)
        if _type_of(content, form) is not None
    ]
    if not found:
        raise PipelineError(
            f"source {source}: no file of a known format ({', '.join(sorted(TYPES))}, each also "
            f"as .gz or inside .zip) among: {', '.join(sorted(files)) or 'nothing'}. If the names "
            "do not show the format, declare `format.type` of the source."
        )
    return found


def read_blocks(source: str, files: Mapping[str, Path], form: Format) -> Iterator[Block]:
    """Yield the records of all readable files in blocks. Raises PipelineError naming the file."""
    for name, path, content in list_readable(source, files, form):
        where = f"source {source}: {content}"
        with archives.open_content(name, path, content, form.max_bytes) as stream:
            encodings.peek(stream, where)
            yield from _READERS[_type_of(content, form) or ""](stream, content, where, form)


def _type_of(name: str, form: Format) -> str | None:
    if form.type != "auto":
        return form.type
    return TYPES.get(Path(name.lower().removesuffix(".gz")).suffix)


def _read_csv(stream: BufferedReader, name: str, where: str, form: Format) -> Iterator[Block]:
    return _read_table(stream, name, where, form, ",")


def _read_tsv(stream: BufferedReader, name: str, where: str, form: Format) -> Iterator[Block]:
    return _read_table(stream, name, where, form, "\t")


def _read_table(
    stream: BufferedReader, name: str, where: str, form: Format, delimiter: str
) -> Iterator[Block]:
    chunks = encodings.read_utf8(stream, where, form.encoding, CHUNK_BYTES)
    for records in read_delimited(chunks, where, form, delimiter):
        if not records.lines and not records.broken:
            continue
        broken = [_break(line, shown) for line, shown in records.broken]
        block = _decode(Block(name, records.lines, dict(records.columns), broken))
        if form.escapes:
            block.columns = {
                column: [unescape(value) for value in to_list(values)]
                for column, values in block.columns.items()
            }
        yield block


def _decode(block: Block) -> Block:
    """Decode values with bytes of another encoding; a row that cannot be decoded is broken."""
    if any(isinstance(column, pa.Array) for column in block.columns.values()):
        return block  # Arrow has proved it to be UTF-8
    odd = {
        index
        for column in block.columns.values()
        if not "".join(column).isascii()
        for index, value in enumerate(column)
        if encodings.needs_mending(value)
    }
    lost = set()
    for column in block.columns.values():
        for index in odd:
            mended = encodings.mend(column[index])
            if mended is None:
                lost.add(index)
            else:
                column[index] = mended
    if not lost:
        return block
    for index in sorted(lost):
        text = " ".join(str(column[index]) for column in block.columns.values())
        block.broken.append(_break(block.lines[index], text, "undecodable"))
    block.broken.sort(key=lambda broken: broken.line)
    kept = [i for i in range(len(block.lines)) if i not in lost]
    columns = {name: [column[i] for i in kept] for name, column in block.columns.items()}
    return Block(block.file, [block.lines[i] for i in kept], columns, block.broken)


def _break(line: int, text: str, reason: str = "malformed_row") -> BrokenRecord:
    return BrokenRecord(line, reason, replace_half_characters(text[:SHOWN]).rstrip("\r\n"))


def to_list(values: "list[Any] | pa.Array") -> list[Any]:
    """Return a column's values as Python objects."""
    return values if isinstance(values, list) else values.to_pylist()


NumberedRecord = tuple[int, dict[str, Any] | BrokenRecord]


def _read_jsonl(stream: BufferedReader, name: str, where: str, form: Format) -> Iterator[Block]:
    yield from _collect(name, where, _parse_lines(stream, where, form))


def _parse_lines(stream: BufferedReader, where: str, form: Format) -> Iterator[NumberedRecord]:
    text = encodings.open_text(stream, where, form.encoding)
    number = 0
    while line := text.readline(LONGEST_RECORD):
        number += 1
        if len(line) == LONGEST_RECORD and not _is_ended(line):
            yield number, _break(number, line)
            while (rest := text.readline(LONGEST_RECORD)) and not _is_ended(rest):
                pass
            continue
        if not line.strip():
            continue
        mended = encodings.mend(line)
        if mended is None:
            yield number, _break(number, line, "undecodable")
            continue
        try:
            record = json.loads(mended)
        except (ValueError, RecursionError):  # not JSON, or a number or nesting without end
            record = None
        yield number, record if isinstance(record, dict) else _break(number, mended)


def _is_ended(line: str) -> bool:
    return line.endswith(("\n", "\r"))


def _read_json(stream: BufferedReader, name: str, where: str, form: Format) -> Iterator[Block]:
    """Read an array of objects, or an object with one under `results` or `data`.

    JSON Lines with this file name are recognized.
    """
    if _holds_lines(stream.peek()):
        yield from _read_jsonl(stream, name, where, form)
        return
    text = encodings.open_text(stream, where, form.encoding)
    yield from _collect(name, where, _number(JsonArray(text, where)))


def _holds_lines(head: bytes) -> bool:
    """Say whether the first line is an object, and another one starts on the next."""
    first, _, rest = head.removeprefix(codecs.BOM_UTF8).lstrip().partition(b"\n")
    if not (first.startswith(b"{") and rest.lstrip().startswith(b"{")):
        return False
    try:
        return isinstance(json.loads(first.decode("utf-8", "replace")), dict)
    except (ValueError, RecursionError):
        return False


def _number(array: JsonArray) -> Iterator[NumberedRecord]:
    for number, record in enumerate(array.items(), start=1):
        if isinstance(record, dict):
            yield number, record
        else:
            reason = "undecodable" if record is UNDECODABLE else "malformed_row"
            yield number, _break(number, array.shown, reason)


def _read_parquet(stream: BufferedReader, name: str, where: str, form: Format) -> Iterator[Block]:
    import pyarrow.parquet as pq

    with tempfile.TemporaryFile() as scratch:
        if not stream.seekable():  # packed; Parquet is read from its end
            shutil.copyfileobj(stream, scratch, 1 << 20)
        try:
            file = pq.ParquetFile(stream if stream.seekable() else scratch)
            start = 1
            for batch in file.iter_batches(batch_size=BLOCK_ROWS):
                lines = list(range(start, start + len(batch)))
                yield Block(name, lines, _list_columns(batch, where))
                start += len(batch)
        except (pa.ArrowException, OSError, ValueError, OverflowError) as error:
            raise PipelineError(
                f"{where}: not a readable Parquet file ({error}). Fetch or create it again."
            ) from error


def _list_columns(batch: pa.RecordBatch, where: str) -> dict[str, list[Any] | pa.Array]:
    names = batch.schema.names
    if len(set(names)) != len(names):
        raise PipelineError(f"{where}: a column name occurs twice: {names}. Rename one.")
    return {name: batch.column(name).to_pylist() for name in names}


def _read_text(stream: BufferedReader, name: str, where: str, form: Format) -> Iterator[Block]:
    """Match the declared pattern over the whole text; anything between matches is broken."""
    text = encodings.open_text(stream, where, form.encoding, newline=None).read(LONGEST_TEXT + 1)
    if len(text) > LONGEST_TEXT:
        raise PipelineError(
            f"{where}: longer than {LONGEST_TEXT} characters, the most that `type: text` reads "
            "into memory. Split the file."
        )
    pattern = re.compile(form.pattern or "", re.MULTILINE)
    yield from _collect(name, where, _match_all(text, pattern))


def _match_all(text: str, pattern: re.Pattern[str]) -> Iterator[NumberedRecord]:
    line, end = 1, 0
    for match in pattern.finditer(text):
        if match.end() == match.start():
            continue
        yield from _skip(text[end : match.start()], line)
        line += text.count("\n", end, match.start())
        record: dict[str, Any] = {k: v or "" for k, v in match.groupdict().items()}
        mended = {key: encodings.mend(value) for key, value in record.items()}
        if None in mended.values():
            yield line, _break(line, match[0], "undecodable")
        else:
            yield line, mended
        line += text.count("\n", match.start(), match.end())
        end = match.end()
    yield from _skip(text[end:], line)


def _skip(between: str, line: int) -> Iterator[NumberedRecord]:
    if between.strip():
        line += between[: len(between) - len(between.lstrip())].count("\n")
        yield line, _break(line, between.strip())


def _collect(file: str, where: str, items: Iterator[NumberedRecord]) -> Iterator[Block]:
    """Collect objects into blocks: a column for each key so far, None if an object lacks it."""
    block, records, names = Block(file), list[dict[str, Any]](), dict[str, None]()
    for line, record in items:
        if isinstance(record, BrokenRecord):
            block.broken.append(record)
        else:
            block.lines.append(line)
            records.append(record)
            if not names.keys() >= record.keys():
                names |= dict.fromkeys(record)
        if len(names) > MOST_COLUMNS:
            raise PipelineError(
                f"{where}: more than {MOST_COLUMNS} different keys up to record {line}. Each key "
                "becomes a column; if keys are data, nest them in one object under a single key."
            )
        size = len(records) + len(block.broken)
        if size >= BLOCK_ROWS or len(records) * len(names) > MOST_CELLS:
            yield _with_columns(block, records, names)
            block, records = Block(file), []
    if block.lines or block.broken:
        yield _with_columns(block, records, names)


def _with_columns(block: Block, records: list[dict[str, Any]], names: Mapping[str, None]) -> Block:
    block.columns = {
        replace_half_characters(name): [record.get(name) for record in records] for name in names
    }
    return block


_READERS = {
    "csv": _read_csv,
    "tsv": _read_tsv,
    "json": _read_json,
    "jsonl": _read_jsonl,
    "parquet": _read_parquet,
    "text": _read_text,
}
