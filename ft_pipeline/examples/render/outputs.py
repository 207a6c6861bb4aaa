"""The outputs of building examples: examples, used rows, rejected rows, and the report."""

import json
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from ft_pipeline.base.errors import PipelineError
from ft_pipeline.base.hashing import META
from ft_pipeline.config.recipe import Examples
from ft_pipeline.examples.read.database import quote
from ft_pipeline.examples.read.parse import REASONS
from ft_pipeline.examples.select.split import explain_empty_split
from ft_pipeline.store.artifact_files import EXAMPLES_FILE, REJECTED_FILE, REPORT_FILE, ROWS_FILE

# Fixed, so that the same examples give the same bytes.
ROW_GROUP = 50_000

_TEXT, _LIST = pa.string(), pa.list_(pa.string())
EXAMPLES_SCHEMA = pa.schema(
    {
        "example_id": _TEXT,
        "task": _TEXT,
        "side": _TEXT,
        "prompt": _TEXT,
        "completion": _TEXT,
        "history": _TEXT,
        "source_rows": _LIST,
        "groups": _LIST,
        "category": _TEXT,
        "difficulty": _TEXT,
    }
)
ROWS_SCHEMA = pa.schema(
    {
        "row_id": _TEXT,
        "source": _TEXT,
        "file": _TEXT,
        "line": pa.int64(),
        "group": _TEXT,
        "side": _TEXT,
        "question": _TEXT,
        "neutralized": pa.bool_(),
    }
)
REJECTED_SCHEMA = pa.schema(
    {
        "row_id": _TEXT,
        "source": _TEXT,
        "file": _TEXT,
        "line": pa.int64(),
        "reason": _TEXT,
        "repeats": _TEXT,
        "text": _TEXT,
    }
)


class Outputs:
    """The files of a `prompt_completions` artifact in the making."""

    def __init__(
        self, folder: Path, scratch: Path, con: duckdb.DuckDBPyConnection, settings: Examples
    ) -> None:
        self._folder, self._con, self._settings = folder, con, settings
        self._keeps_questions = settings.near_duplicates.threshold is not None
        self._pool = ThreadPoolExecutor(1)
        self._writing: Future[None] | None = None
        (folder / META).mkdir(exist_ok=True)
        self._rejected_file = scratch / "rejected.arrows"
        self._examples = self._open(EXAMPLES_FILE, EXAMPLES_SCHEMA, ["task", "side", "category"])
        self._rows = self._open(ROWS_FILE, ROWS_SCHEMA, ["source", "file", "side"])
        self._rejected = pa.ipc.new_stream(str(self._rejected_file), REJECTED_SCHEMA)

    def _open(self, name: str, schema: pa.Schema, repeating: list[str]) -> pq.ParquetWriter:
        return pq.ParquetWriter(
            self._folder / name,
            schema,
            compression="lz4",
            use_dictionary=repeating,
            write_statistics=False,
        )

    def __enter__(self) -> "Outputs":
        return self

    def __exit__(self, *details: object) -> None:
        self._close()

    def write_examples(self, table: pa.Table) -> None:
        """Add examples, in their order."""
        self._write(self._examples, table, EXAMPLES_SCHEMA)

    def write_rows(self, source: str, rows: pa.Table, question: str) -> None:
        """Add used rows. Their questions are kept only if a check will compare them."""
        nothing = pa.nulls(len(rows), _TEXT)
        columns = {
            "row_id": rows.column("row_id"),
            "source": pa.repeat(source, len(rows)),
            "file": rows.column("file"),
            "line": rows.column("line"),
            "group": rows.column("question_group"),
            "side": rows.column("side"),
            "question": rows.column(question) if self._keeps_questions else nothing,
            "neutralized": rows.column("controlled"),
        }
        self._write(self._rows, pa.table(columns), ROWS_SCHEMA)

    def _write(self, writer: pq.ParquetWriter, table: pa.Table, schema: pa.Schema) -> None:
        """Write in a separate thread; at most one table waits."""
        self._wait()
        if len(table):
            rows = table.select(schema.names).cast(schema)
            self._writing = self._pool.submit(writer.write_table, rows, row_group_size=ROW_GROUP)

    def _wait(self) -> None:
        if self._writing is not None:
            self._writing.result()

    def reject(self, source: str, rows: pa.RecordBatch | pa.Table, reason: str = "") -> None:
        """Add rejected rows, with the column `reason` or one reason for all."""
        size = len(rows)
        fixed: Mapping[str, Any] = {"source": source, **({"reason": reason} if reason else {})}
        columns = [
            pa.repeat(pa.scalar(fixed[name], field.type), size)
            if name in fixed
            else rows.column(name)
            if name in rows.schema.names
            else pa.nulls(size, field.type)
            for name, field in zip(REJECTED_SCHEMA.names, REJECTED_SCHEMA, strict=True)
        ]
        self._rejected.write_table(pa.table(columns, schema=REJECTED_SCHEMA))

    def finish(self, read: int) -> dict[str, Any]:
        """Close the files, write the rejected rows, and return the counts.

        Raises PipelineError if there is no example, or none in one split.
        """
        self._wait()
        self._close()
        with pa.ipc.open_stream(str(self._rejected_file)) as rejected:
            self._con.register("rejected_stream", rejected)
            self._con.execute("CREATE TEMP TABLE rejected AS FROM rejected_stream")
        self._con.register(
            "meanings", pa.table({"reason": list(REASONS), "meaning": list(REASONS.values())})
        )
        self._con.execute(
            "COPY (SELECT rejected.*, meaning FROM rejected LEFT JOIN meanings USING (reason) "
            f"ORDER BY source, file, line, row_id) TO {quote(str(self._folder / REJECTED_FILE))} "
            "(FORMAT json)"
        )
        report = self._count(read)
        self._require_examples(report)
        questions = report["questions_by_split"]
        for split, title in (("train", "training"), ("val", "validation")):
            if not questions.get(split):
                shares = any(given.shares for given in self._settings.inputs)
                total = sum(questions.values())
                raise explain_empty_split(title, total, self._settings.split, shares)
        return report

    def write_report(self, report: Mapping[str, Any]) -> None:
        """Write the report next to the other outputs."""
        text = json.dumps(report, indent=1, ensure_ascii=False)
        (self._folder / REPORT_FILE).write_text(text + "\n", encoding="utf-8")

    def _close(self) -> None:
        self._pool.shutdown()
        for writer in (self._examples, self._rows, self._rejected):
            writer.close()

    def _count(self, read: int) -> dict[str, Any]:
        examples = f"read_parquet({quote(str(self._folder / EXAMPLES_FILE))})"
        rows = f"read_parquet({quote(str(self._folder / ROWS_FILE))})"
        by = "SELECT {0}, count(*) FROM {1} WHERE {0} IS NOT NULL GROUP BY 1 ORDER BY 1"
        return {
            "schema": EXAMPLES_SCHEMA.names,
            "rows_read": read,
            "rows_used": self._number(f"SELECT count(*) FROM {rows}"),
            "rows_rejected": self._number("SELECT count(*) FROM rejected"),
            "rows_sanitized": self._number(f"SELECT count(*) FROM {rows} WHERE neutralized"),
            "rejected_by_reason": self._counts(by.format("reason", "rejected")),
            "examples": self._number(f"SELECT count(*) FROM {examples}"),
            "examples_by_task_and_split": self._counts(by.format("task || ' ' || side", examples)),
            "examples_by_category": self._counts(by.format("category", examples)),
            "examples_by_difficulty": self._counts(by.format("difficulty", examples)),
            "questions_by_split": self._counts(
                f'SELECT side, count(DISTINCT "group") FROM {rows} GROUP BY 1 ORDER BY 1'
            ),
        }

    def _number(self, query: str) -> int:
        return int(self._con.execute(query).fetchall()[0][0])

    def _counts(self, query: str) -> dict[str, int]:
        return {str(name): int(count) for name, count in self._con.execute(query).fetchall()}

    def _require_examples(self, report: Mapping[str, Any]) -> None:
        if not report["rows_read"]:
            raise PipelineError(
                "prompt_completions: the sources have no rows. Add rows, or other sources to "
                "examples.inputs."
            )
        if not report["rows_used"]:
            reasons = sorted(report["rejected_by_reason"].items(), key=lambda item: -item[1])
            listed = ", ".join(f"{count} × {reason}" for reason, count in reasons)
            with (self._folder / REJECTED_FILE).open(encoding="utf-8") as file:
                first = file.readline().strip()
            raise PipelineError(
                f"prompt_completions: all {report['rows_read']} rows were rejected: {listed}. "
                f"First: {first}. Check the parser and the columns of the source."
            )
