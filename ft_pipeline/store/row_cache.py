"""Results per row, keyed by content: append-only Arrow shards below `<store>/rows`.

    <store>/rows/<kind>/<hash of the configuration>/000003/questions.arrow, bands.arrow, …

A shard is a folder of Arrow IPC files, written aside and renamed: whole or absent. Readers map the
files into memory. Writers hold the cache's lock from reading to appending.
"""

import fcntl
import logging
import shutil
import uuid
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa

from ft_pipeline.base.file_hashes import sync
from ft_pipeline.base.hashing import hash_json

logger = logging.getLogger(__name__)


class RowCache:
    """The shards of one kind of result and one configuration."""

    def __init__(self, root: Path, kind: str, configuration: Mapping[str, Any]) -> None:
        self.folder = root / kind / hash_json(dict(configuration))

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the right to append; the kernel frees it when this process ends."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / "lock").open("w") as handle:
            fcntl.flock(handle, fcntl.LOCK_EX)
            for leftover in self.folder.glob(".draft-*"):
                shutil.rmtree(leftover, ignore_errors=True)
            yield

    def read(self, names: Collection[str] = ()) -> list[dict[str, pa.Table]]:
        """Return the tables (all, or these) of each shard by name, oldest first, mapped.

        A damaged shard is left out, with a warning: what it held is computed again.
        """
        shards = sorted(folder for folder in self.folder.glob("[0-9]*") if folder.is_dir())
        found = []
        for shard in shards:
            try:
                chosen = names or sorted(file.stem for file in shard.glob("*.arrow"))
                found.append({name: _open(shard / f"{name}.arrow") for name in chosen})
            except (pa.ArrowInvalid, OSError) as error:
                logger.warning("%s: damaged, its rows are computed again (%s)", shard, error)
        return found

    def clear(self) -> None:
        """Remove all shards; what was mapped of them stays readable. The caller holds the lock."""
        for shard in self.folder.glob("[0-9]*"):
            shutil.rmtree(shard)

    def append(self, tables: Mapping[str, pa.Table]) -> None:
        """Add a shard. The caller holds the lock."""
        draft = self.folder / f".draft-{uuid.uuid4().hex[:8]}"
        draft.mkdir()
        for name, table in tables.items():
            with pa.ipc.new_file(str(draft / f"{name}.arrow"), table.schema) as writer:
                writer.write_table(table)
            sync(draft / f"{name}.arrow")
        numbers = [int(folder.name) for folder in self.folder.glob("[0-9]*")]
        draft.rename(self.folder / f"{max(numbers, default=0) + 1:06}")


def _open(file: Path) -> pa.Table:
    with pa.ipc.open_file(pa.memory_map(str(file))) as reader:
        return reader.read_all()
