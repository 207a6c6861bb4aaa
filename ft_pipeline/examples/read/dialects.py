"""How to separate the fields of a CSV or TSV file: its delimiter, and what quotes mean."""

import csv
import io
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from ft_pipeline.base.errors import PipelineError
from ft_pipeline.config.sources import Format

# From so many bytes the delimiter and the meaning of quotes are told.
HEAD_BYTES = 1_000_000
QUOTED = re.compile(r'"[^"]*(?:""[^"]*)*"')


@dataclass(frozen=True)
class Dialect:
    """How to separate fields; `after_blanks`: fields start after their leading blanks."""

    delimiter: str
    quoting: int
    after_blanks: bool = False

    def reader(self, lines: Iterable[str]) -> Iterator[list[str]]:
        return csv.reader(
            lines,
            delimiter=self.delimiter,
            quoting=self.quoting,  # type: ignore[arg-type]
            skipinitialspace=self.after_blanks,
            strict=True,
        )


def guess_dialect(buffer: bytes, where: str, form: Format, default: str) -> Dialect:
    """Return the dialect that the start of a file shows, unless `form` declares it.

    `default` is the usual delimiter. Raises PipelineError for an impossible one.
    """
    sample = split_lines(buffer[:HEAD_BYTES])[:1000]
    is_whole = len(sample) < 1000 and len(buffer) < HEAD_BYTES
    begun = next((i for i, line in enumerate(sample) if line.strip()), 0)
    outside = re.split("[\r\n]", QUOTED.sub("", "".join(sample[begun:])), maxsplit=1)[0]
    delimiter = form.delimiter
    if delimiter is None:
        others = (default, ",", ";", "\t", "|")
        delimiter = default if default in outside else max(others, key=outside.count)
    if delimiter in '"\r\n':
        raise PipelineError(
            f"{where}: `format.delimiter` cannot be {delimiter!r}. Use another character."
        )
    whole = sample if is_whole else sample[:-1]  # the last line may be cut
    if delimiter == "\t" and _has_plain_quotes(whole, is_whole):
        return Dialect(delimiter, csv.QUOTE_NONE)
    after_blanks = not form.header and all(
        name.startswith(" ") for name in [" ", *outside.split(delimiter)[1:]]
    )
    return Dialect(delimiter, csv.QUOTE_MINIMAL, after_blanks and delimiter in outside)


def _has_plain_quotes(lines: list[str], is_whole: bool) -> bool:
    """Say whether quotes in a TSV are plain text: some enclose nothing, and all lines are whole."""
    rows = [line.rstrip("\r\n").split("\t") for line in lines if line.strip()]
    loose = any(f.startswith('"') and not QUOTED.fullmatch(f) for row in rows for f in row)
    if not loose or len({len(row) for row in rows}) != 1:
        return False
    reader = Dialect("\t", csv.QUOTE_MINIMAL).reader(lines)
    widths: set[int] = set()
    try:
        widths.update(len(row) for row in reader if row)
    except csv.Error as error:
        if is_whole or not str(error).startswith("unexpected end"):
            return True
    return widths != {len(rows[0])}


def split_lines(content: bytes) -> list[str]:
    """Return the lines of a text in UTF-8 with their ends; other bytes become surrogates."""
    return list(io.StringIO(content.decode("utf-8", "surrogateescape"), newline=""))
