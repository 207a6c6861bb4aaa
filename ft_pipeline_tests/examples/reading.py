"""Read content as a file of a source: what was read and what was set aside, each with its line."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from ft_pipeline.config.sources import Format
from ft_pipeline.examples.read.formats import read_blocks, to_list


@dataclass(frozen=True)
class Content:
    """Rows as (line, values by column), broken records as (line, reason, text)."""

    rows: list[tuple[int, dict[str, Any]]]
    broken: list[tuple[int, str, str]]

    @property
    def values(self) -> list[dict[str, Any]]:
        return [values for _, values in self.rows]

    @property
    def lines(self) -> list[int]:
        return [line for line, _ in self.rows]

    @property
    def reasons(self) -> list[tuple[int, str]]:
        return [(line, reason) for line, reason, _ in self.broken]


def read(content: bytes | str, name: str = "rows.csv", **form: Any) -> Content:
    """Read a file of that name and content; `form` is the source's `format`."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / "content"
        path.write_bytes(content.encode("utf-8") if isinstance(content, str) else content)
        return read_files({name: path}, Format(**form))


def read_files(files: Mapping[str, Path], form: Format) -> Content:
    """Read all readable files, in order."""
    found = Content([], [])
    for block in read_blocks("trivia", files, form):
        columns = {name: to_list(values) for name, values in block.columns.items()}
        assert all(len(values) == len(block.lines) for values in columns.values())
        for index, line in enumerate(block.lines):
            found.rows.append((line, {name: values[index] for name, values in columns.items()}))
        found.broken.extend((each.line, each.reason, each.text) for each in block.broken)
    return found
