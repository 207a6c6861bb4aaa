"""DuckDB for the relational part: in memory, spilling to disk if that is not enough."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import duckdb
import pyarrow as pa

MEMORY = "400MB"


@contextmanager
def keep_memory() -> Iterator[None]:
    """Let Arrow use malloc, which keeps freed memory for the next batch.

    Arrow's own pool returns pages at once, to be zeroed again: 5% of a build's time.
    """
    before = pa.default_memory_pool()
    pa.set_memory_pool(pa.system_memory_pool())
    try:
        yield
    finally:
        pa.set_memory_pool(before)


@contextmanager
def open_database(scratch: Path) -> Iterator[duckdb.DuckDBPyConnection]:
    """Open a separate database that spills to `scratch`; rows keep their order."""
    con = duckdb.connect()
    try:
        con.execute(f"SET memory_limit = '{MEMORY}'")
        con.execute(f"SET threads = {max(1, min(8, os.cpu_count() or 1))}")
        con.execute("SET temp_directory = " + quote(str(scratch / "spill")))
        con.execute("SET autoinstall_known_extensions = false")
        yield con
    finally:
        con.close()


def quote(text: str) -> str:
    """Return a text as an SQL literal."""
    return "'" + text.replace("'", "''") + "'"


def quote_name(column: str) -> str:
    """Return a column's name quoted for SQL."""
    return '"' + column.replace('"', '""') + '"'
