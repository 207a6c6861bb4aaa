"""Read raw files into rows, each with its place and its `row_id`.

A row of `data/samples/trivia.csv`:

    Row(row_id="0b1d…", file="trivia.csv", line=2, values={"category": "Geography", "question":
        "Which river flows through Paris?", "correct_answer": "Seine", …})
"""

import csv
import hashlib
import html
import io
import json
import re
import unicodedata
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ft_pipeline.errors import PipelineError, suggest

csv.field_size_limit(64 * 1024 * 1024)

# JSON can hold half a character ("\\ud83d", a cut emoji), which no UTF-8 file can.
_HALF_CHARACTER = re.compile("[\ud800-\udfff]")


@dataclass(frozen=True)
class Row:
    """One record of a source, its text as it came."""

    row_id: str
    file: str
    line: int
    values: dict[str, Any]


@dataclass(frozen=True)
class Malformed:
    """A record that could not be read as a row."""

    file: str
    line: int
    text: str


def clean(text: object) -> str:
    """Decode HTML entities once, normalise to NFC, collapse white space, strip."""
    decoded = unicodedata.normalize("NFC", html.unescape("" if text is None else str(text)))
    return " ".join(_HALF_CHARACTER.sub("\ufffd", decoded).split())


def compute_row_id(source: str, values: dict[str, Any], identity: tuple[str, ...]) -> str:
    """Return 32 hex characters of SHA-256 over the source's name and the identity columns."""
    columns = identity or tuple(sorted(values))
    parts = [[column, _clean_value(values.get(column))] for column in columns]
    text = json.dumps([source, parts], ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:32]


def read_rows(
    files: Mapping[str, Path], source: str, identity: tuple[str, ...], needed: tuple[str, ...]
) -> Iterator[Row | Malformed]:
    """Yield the records of the files, given by name, in order of file name and line.

    `needed` are the columns that the parser cannot do without. Raises PipelineError for a file
    that is empty, not text, of unknown format, or without a needed or an identity column.
    """
    readable = {name: path for name, path in sorted(files.items()) if path.suffix in READERS}
    if not readable:
        raise PipelineError(
            f"source {source}: no file of a known format ({', '.join(sorted(READERS))}) among: "
            f"{', '.join(sorted(files)) or 'nothing'}."
        )
    for name, path in readable.items():
        where = f"source {source}: {name}"
        records = READERS[path.suffix](_read_text(path, where), where)
        checked = False
        for line, values in records:
            if isinstance(values, str):
                yield Malformed(name, line, values)
                continue
            if not checked:
                _require_columns(where, tuple(values), (*needed, *identity))
                checked = True
            yield Row(compute_row_id(source, values, identity), name, line, values)


Records = Iterator[tuple[int, dict[str, Any] | str]]


def _read_csv(text: str, where: str, delimiter: str = ",") -> Records:
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
    header = [name.strip() for name in next(reader, [])]
    if len(set(header)) != len(header):
        raise PipelineError(f"{where}: a column name stands twice in the header: {header}.")
    _require_columns(where, tuple(header), ())
    line = reader.line_num + 1
    try:
        for fields in reader:
            if len(fields) == len(header):
                yield line, dict(zip(header, fields, strict=True))
            elif any(field.strip() for field in fields):
                yield line, delimiter.join(fields)
            line = reader.line_num + 1
    except csv.Error as error:
        raise PipelineError(f"{where}: line {line}: not valid CSV: {error}.") from error


def _read_tsv(text: str, where: str) -> Records:
    return _read_csv(text, where, delimiter="\t")


def _read_jsonl(text: str, where: str) -> Records:
    for line, content in enumerate(text.split("\n"), start=1):
        if content.strip():
            try:
                record = json.loads(content)
            except (ValueError, RecursionError):  # not JSON, or a number or nesting without end
                record = None
            yield line, record if isinstance(record, dict) else content


def _read_json(text: str, where: str) -> Records:
    """Read an array of objects, or an object that holds one under `results` or `data`."""
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        if text.lstrip().startswith("{") and "\n{" in text.strip():
            yield from _read_jsonl(text, where)
            return
        raise PipelineError(f"{where}: not valid JSON: {error}.") from error
    if isinstance(content, dict):
        content = content.get("results", content.get("data"))
    if not isinstance(content, list):
        raise PipelineError(f"{where}: expected a JSON array of objects, or one under `results`.")
    for index, record in enumerate(content, start=1):
        yield index, record if isinstance(record, dict) else json.dumps(record, ensure_ascii=False)


READERS = {".csv": _read_csv, ".tsv": _read_tsv, ".jsonl": _read_jsonl, ".json": _read_json}


def _read_text(path: Path, where: str) -> str:
    content = path.read_bytes()
    if not content.strip():
        raise PipelineError(f"{where}: the file is empty; expected a header and rows.")
    if b"\0" in content[:65536]:
        raise PipelineError(
            f"{where}: a binary file (it holds NUL bytes), not text. Expected "
            f"{', '.join(sorted(READERS))} in UTF-8."
        )
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise PipelineError(
            f"{where}: line {line}: byte 0x{content[error.start]:02x} is not UTF-8. "
            "Save the file in UTF-8."
        ) from error


def _require_columns(where: str, found: tuple[str, ...], needed: tuple[str, ...]) -> None:
    for column in needed:
        if column not in found:
            raise PipelineError(
                f"{where}: no column `{column}`. Found: {', '.join(found) or 'none'}. "
                f"Needed: {', '.join(dict.fromkeys(needed))}.{suggest(column, found)}"
            )


def _clean_value(value: Any) -> Any:
    if isinstance(value, list):
        return [_clean_value(inner) for inner in value]
    if isinstance(value, dict):
        return {key: _clean_value(inner) for key, inner in sorted(value.items())}
    return clean(value)
