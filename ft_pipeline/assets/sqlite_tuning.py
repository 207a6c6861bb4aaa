"""Dagster's run history in SQLite, written without waiting for the disk at every event.

Dagster opens and closes a database for each event of a run. Closing the last connection to one
copies its write-ahead log into it and deletes the log, waiting for the disk several times; a commit
waits once more. A run of 40 steps does so a thousand times.
"""

import contextlib
import sqlite3
from collections.abc import Iterator
from typing import Any

TIMEOUT_SECONDS = 30  # as Dagster waits for a lock


@contextlib.contextmanager
def hold_databases_open() -> Iterator[None]:
    """Keep a connection open to each SQLite database of SQLAlchemy, and commit without waiting.

    Thus no other connection of this process is ever the last, and commits only append to the log
    (`synchronous=NORMAL`, https://sqlite.org/pragma.html#pragma_synchronous). Other processes see
    each commit at once, and it survives the end of this process, even by signal 9. A power loss can
    lose the last events of the history, but never the database. Other kinds of databases are left
    alone.
    """
    from sqlalchemy import Engine, event

    held: dict[str, sqlite3.Connection] = {}

    def on_connect(connection: Any, _record: Any) -> None:
        if not isinstance(connection, sqlite3.Connection):
            return
        (_, _, file) = connection.execute("PRAGMA database_list").fetchone()
        if file and file not in held:
            held[file] = _open(file)
        connection.execute("PRAGMA synchronous=NORMAL")

    event.listen(Engine, "connect", on_connect)
    try:
        yield
    finally:
        event.remove(Engine, "connect", on_connect)
        for connection in held.values():
            connection.close()


def _open(file: str) -> sqlite3.Connection:
    """Open a database with its write-ahead log; a new one gets it before Dagster sets it."""
    connection = sqlite3.connect(file, timeout=TIMEOUT_SECONDS, check_same_thread=False)
    connection.execute("PRAGMA journal_mode=WAL").fetchall()
    connection.execute("SELECT * FROM sqlite_master").fetchall()  # the first read opens the log
    return connection
