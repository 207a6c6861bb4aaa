"""Results per row, keyed by content: append-only Arrow shards below `<store>/rows`.

    <store>/rows/<kind>/<hash of the configuration>/000003/questions.arrow, bands.arrow, …

A shard is a folder of Arrow IPC files, written aside, synced and renamed: whole or absent. Readers
map the files into memory. Writers hold the cache's lock from reading to appending; the time of
`lock` says when the cache was used last.
"""

import logging
import shutil
import uuid
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa

from ft_pipeline.base.hashing import hash_json
from ft_pipeline.base.locks import hold_lock
from ft_pipeline.base.records import DRAFT_MARK, sync, sync_tree

logger = logging.getLogger(__name__)


class RowCache:
    """The shards of one kind of result and one configuration."""

    def __init__(self, root: Path, kind: str, configuration: Mapping[str, Any]) -> None:
        self.folder = root / kind / hash_json(dict(configuration))

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the right to append; the kernel frees it when this process ends."""
        lock = self.folder / "lock"
        with hold_lock(lock):
            lock.touch()
            for leftover in self.folder.glob(f"{DRAFT_MARK}*"):
                shutil.rmtree(leftover, ignore_errors=True)
            yield

    def read(self, names: Collection[str] = ()) -> list[dict[str, pa.Table]]:
        """Return the tables (all, or these) of each shard by name, oldest first, mapped.

        A damaged shard is left out, with a warning: what it held is computed again.
        """
        shards = sorted(folder for folder in self.folder.glob("[0-9]*") if folder.is_dir())
        found = []
        for shard in shards:
            chosen = names or sorted(file.stem for file in shard.glob("*.arrow"))
            tables = {name: read_table(shard / f"{name}.arrow") for name in chosen}
            whole = {name: table for name, table in tables.items() if table is not None}
            if not tables:
                logger.warning("%s: damaged, its rows are computed again (no table in it)", shard)
            elif len(whole) == len(tables):
                found.append(whole)
        return found

    def clear(self) -> None:
        """Remove all shards; what was mapped of them stays readable. The caller holds the lock."""
        for shard in self.folder.glob("[0-9]*"):
            shutil.rmtree(shard)

    def append(self, tables: Mapping[str, pa.Table]) -> None:
        """Add a shard. The caller holds the lock."""
        write_shard(self.folder, tables)


def write_shard(folder: Path, tables: Mapping[str, pa.Table]) -> None:
    """Add a shard to a cache's folder. The caller holds its lock."""
    draft = folder / f"{DRAFT_MARK}{uuid.uuid4().hex[:8]}"
    draft.mkdir()
    for name, table in tables.items():
        with pa.ipc.new_file(str(draft / f"{name}.arrow"), table.schema) as writer:
            writer.write_table(table)
    sync_tree(draft)
    numbers = [int(shard.name) for shard in folder.glob("[0-9]*")]
    draft.rename(folder / f"{max(numbers, default=0) + 1:06}")
    sync(folder)


def read_table(file: Path) -> pa.Table | None:
    """Return a table of a shard, mapped; None where it is damaged, with a warning."""
    try:
        with pa.ipc.open_file(pa.memory_map(str(file))) as reader:
            return reader.read_all()
    except (pa.ArrowException, OSError) as error:
        logger.warning("%s: damaged, its rows are computed again (%s)", file, error)
        return None
