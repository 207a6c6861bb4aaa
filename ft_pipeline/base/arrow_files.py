"""Arrow IPC files of one table: written whole, mapped into memory."""

from pathlib import Path

import pyarrow as pa


def map_table(file: Path) -> pa.Table:
    """Return the table in a file. Raises pa.ArrowInvalid or OSError if the file is incomplete."""
    with pa.ipc.open_file(pa.memory_map(str(file))) as reader:
        return reader.read_all()


def write_table(file: Path, table: pa.Table) -> None:
    """Write a table as a file."""
    with pa.ipc.new_file(str(file), table.schema) as writer:
        writer.write_table(table)
