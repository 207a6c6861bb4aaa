"""Rows of one source as Arrow batches: place, identity, and the parser's fields, cleaned.

One row of a batch, shortened:

    {"file": "trivia.csv", "line": 2, "broken": None, "text": None, "controlled": False,
     "identity": "trivia\\x1fcorrect_answer\\x1eSeine\\x1fquestion\\x1eWhich river…", "letters":
     "whichriverflowsthroughparis\\n", "question": "Which river…", "incorrect_answers": ["Loire"]}

`row_id` is 32 hex characters of SHA-256 over `identity`: the source's name and its cleaned identity
columns; empty ones are left out.
"""

import hashlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.compute as pc

from ft_pipeline.base.errors import PipelineError
from ft_pipeline.config.sources import Source
from ft_pipeline.examples.read.columns import has_column, pick, resolve_columns
from ft_pipeline.examples.read.formats import Block, read_blocks
from ft_pipeline.examples.read.parse import LINE, LINES, PARSERS, Field, Parser
from ft_pipeline.examples.read.text import fold_letters, sanitize_array
from ft_pipeline.examples.read.values import TEXT, read_identity, read_line

Result = TypeVar("Result")
THREADS = 2
_EMPTY = pa.nulls(0, TEXT)
PLACE = {
    "file": pa.string(),
    "line": pa.int64(),
    "broken": pa.string(),
    "text": pa.string(),
    "controlled": pa.bool_(),
    "identity": pa.string(),
    "letters": pa.string(),
}


@dataclass
class RowReader:
    """Read the rows of one source for one parser.

    `columns` are additional columns, by the names that templates use; `required` are optional
    fields of the parser that a file must have here. Afterwards, `found` tells which column of which
    file was used, and `read` how many records there were.
    """

    source: str
    declared: Source
    parser: Parser
    columns: Sequence[str] = ()
    required: Sequence[str] = ()
    found: dict[str, dict[str, str]] = field(default_factory=dict)
    read: int = 0

    @property
    def schema(self) -> pa.Schema:
        """The schema of the batches."""
        fields = {name: given.type for name, given in self._fields().items()}
        if self.parser.expand:
            empty = {name: pa.array([], kind) for name, kind in fields.items()}
            fields = {name: array.type for name, array in self.parser.expand(empty).items()}
        return pa.schema({**PLACE, **fields})

    def read_batches(self, files: Mapping[str, Path]) -> Iterator[pa.RecordBatch]:
        """Yield all records by file and line. Raises PipelineError for a missing column."""
        return self.map_batches(files, lambda batch: batch)

    def map_batches(
        self, files: Mapping[str, Path], work: Callable[[pa.RecordBatch], Result]
    ) -> Iterator[Result]:
        """Yield the result of `work` for each batch of records, in order; several threads work.

        Raises PipelineError for a missing column.
        """
        blocks = read_blocks(self.source, files, self.declared.format)
        with ThreadPoolExecutor(THREADS) as pool:
            waiting: deque[Future[Any]] = deque()
            try:
                for block in blocks:
                    columns = self._resolve(block)
                    self.read += len(block.lines) + len(block.broken)
                    waiting.append(pool.submit(lambda *b: work(self._convert(*b)), block, columns))
                    if len(waiting) > THREADS:
                        yield waiting.popleft().result()
                while waiting:
                    yield waiting.popleft().result()
            finally:
                for future in waiting:
                    future.cancel()

    def _fields(self) -> dict[str, Field]:
        more = {name: Field(read_line) for name in self.internal.values()}
        return {**more, **self.parser.optional, **self.parser.fields}

    @property
    def internal(self) -> dict[str, str]:
        """Unique names of the additional columns in the batches, apart from SQL's and ours."""
        return {name: f"column_{number}" for number, name in enumerate(self.columns)}

    def _resolve(self, block: Block) -> dict[str, str]:
        """Return the columns of a file, looked up once for each set of columns that occurs."""
        names = list(block.columns)
        if not names or set(names) <= set(self.found.get(f"{block.file}\0", ())):
            return self.found.get(block.file, {})
        where = f"source {self.source}: {block.file}"
        needed = [*self.parser.fields, *self.required, *self.columns]
        optional = [*self.parser.optional, *self.declared.identity]
        chosen = [c for c in names if not self.declared.columns or c in self.declared.columns]
        found = resolve_columns(where, needed, optional, chosen, dict(self.declared.aliases))
        for name in self.declared.identity:
            if name not in found and not has_column(name, names):
                raise PipelineError(
                    f"{where}: no column `{name}`, which the source's `identity` lists. Found: "
                    f"{', '.join(names)}."
                )
        self.found[block.file] = self.found.get(block.file, {}) | found
        self.found[f"{block.file}\0"] = dict.fromkeys(names, "")
        return self.found[block.file]

    def _convert(self, block: Block, columns: Mapping[str, str]) -> pa.RecordBatch:
        size = len(block.lines)
        delimiter = self.declared.format.list_delimiter
        fields: dict[str, pa.Array] = {}
        outside = {name: column for column, name in self.internal.items()}
        for name, given in self._fields().items():
            wanted = outside.get(name, name)
            if size and wanted in columns:
                fields[name] = given.read(pick(block.columns, columns[wanted]), delimiter)
            else:
                is_text = given.type == TEXT
                fields[name] = pa.repeat("", size) if is_text else pa.nulls(size, given.type)
        identity = self._identify(block, columns, fields)
        if self.parser.expand:
            fields = self.parser.expand(fields)
        controlled = pa.array([False] * size, pa.bool_())
        for name, array in fields.items():
            fields[name], mask = sanitize_array(array)
            controlled = pc.or_(controlled, mask) if mask is not None else controlled
        question = pc.fill_null(fields[self.parser.question], "")
        place = {
            "file": pa.array([block.file] * size, TEXT),
            "line": pa.array(block.lines, pa.int64()),
            "broken": pa.nulls(size, TEXT),
            "text": pa.nulls(size, TEXT),
            "controlled": controlled,
            "identity": identity,
            "letters": fold_letters(question),
        }
        batch = pa.RecordBatch.from_pydict({**place, **fields}, schema=self.schema)
        return _add_broken(batch, block) if block.broken else batch

    def _identify(
        self, block: Block, columns: Mapping[str, str], fields: Mapping[str, pa.Array]
    ) -> pa.Array:
        """Return each row's identity; see the module's docstring."""
        only = self.declared.columns
        if self.declared.identity:
            names = {name: columns.get(name, name) for name in self.declared.identity}
        else:  # under the file's own names: what a recipe calls them makes no difference
            names = {c: c for c in block.columns if not only or c in only}
        taken = {columns[field]: field for field in fields if field in columns}
        parts = []
        for name, column in sorted(names.items()):
            field = taken.get(column)
            values = fields[field] if field else None
            if values is None or self._fields().get(str(field), LINE) not in (LINE, LINES):
                values = read_identity(pick(block.columns, column)) if block.lines else _EMPTY
            if b"\n" in memoryview(values.buffers()[2] or b"").tobytes():
                values = pc.replace_substring_regex(values, "\n+", " ")
            part = pc.binary_join_element_wise(name, values, "\x1e")
            parts.append(pc.if_else(pc.equal(values, ""), None, part))
        start = pa.array([self.source] * len(block.lines), TEXT)
        return pc.binary_join_element_wise(start, *parts, "\x1f", null_handling="skip")


def _add_broken(batch: pa.RecordBatch, block: Block) -> pa.RecordBatch:
    place = {
        "file": [block.file] * len(block.broken),
        "line": [broken.line for broken in block.broken],
        "broken": [broken.reason for broken in block.broken],
        "text": [broken.text for broken in block.broken],
        "controlled": [False] * len(block.broken),
    }
    empty = {name: [None] * len(block.broken) for name in batch.schema.names if name not in place}
    added = pa.RecordBatch.from_pydict({**place, **empty}, schema=batch.schema)
    return pa.Table.from_batches([batch, added]).combine_chunks().to_batches()[0]


def make_reader(
    source: str, declared: Source, parser: str, columns: Iterable[str] = ()
) -> RowReader:
    """Return a reader for the parser of that name."""
    chosen = PARSERS[parser]
    own = {**chosen.fields, **chosen.optional}
    more = [column for column in columns if column not in own]
    required = [c for c in columns if c in chosen.optional and c not in chosen.derivable]
    return RowReader(source, declared, chosen, more, required)


def compute_row_id(identity: str) -> str:
    """Return the row_id of an identity: 32 hex characters of SHA-256."""
    return hashlib.sha256(identity.encode("utf-8")).hexdigest()[:32]


def describe_columns(reader: RowReader) -> dict[str, dict[str, str]]:
    """Return by file which column was used for which name."""
    return {file: columns for file, columns in reader.found.items() if not file.endswith("\0")}
