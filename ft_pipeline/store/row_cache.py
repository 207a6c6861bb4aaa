"""Results per row, keyed by content: append-only Arrow shards below `<store>/rows`.

    <store>/rows/<kind>/<hash of the configuration>/000003/questions.arrow, bands.arrow, …

A shard is a folder of Arrow IPC files, written as a draft and renamed: complete or absent. Readers
map the files into memory. Writers hold the cache's lock from reading to appending.
"""

import logging
import shutil
import uuid
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa

from ft_pipeline.base.arrow_files import map_table, write_table
from ft_pipeline.base.hashing import hash_json
from ft_pipeline.base.locks import hold_lock, try_lock
from ft_pipeline.base.records import DRAFT_MARK, sync, sync_tree

Tables = dict[str, pa.Table]

logger = logging.getLogger(__name__)


class RowCache:
    """The shards of one kind of result and one configuration."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.lock_file = folder / "lock"

    @classmethod
    def of(cls, root: Path, kind: str, configuration: Mapping[str, Any]) -> "RowCache":
        """Return the cache for a kind of result and a configuration below `<store>/rows`."""
        return cls(root / kind / hash_json(dict(configuration)))

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the lock for appending; the kernel frees it when this process ends."""
        with hold_lock(self.lock_file):
            self.lock_file.touch()  # its time is that of the cache's last use
            self._remove_drafts()
            yield

    @contextmanager
    def try_locked(self) -> Iterator[bool]:
        """Hold the same lock if it is free; yield whether it is. Does not count as a use."""
        with try_lock(self.lock_file, create=True) as free:
            if free:
                self._remove_drafts()
            yield free

    def read(self, names: Collection[str] = ()) -> list[Tables]:
        """Return the mapped tables (all, or these) of each shard by name, oldest shard first.

        A damaged shard is left out, with a warning; its rows are recomputed.
        """
        return [tables for _, tables in self.read_shards(names)]

    def read_shards(self, names: Collection[str] = ()) -> Iterator[tuple[Path, Tables]]:
        """Yield the folder of each shard and what `read` returns for it."""
        for shard in self._list_shards():
            tables = _open_shard(shard, names)
            if tables is not None:
                yield shard, tables

    def clear(self) -> None:
        """Remove all shards; tables already mapped stay readable. The caller holds the lock."""
        for shard in self._list_shards():
            shutil.rmtree(shard)

    def append(self, tables: Mapping[str, pa.Table]) -> None:
        """Add a shard. The caller holds the lock."""
        draft = self.folder / f"{DRAFT_MARK}{uuid.uuid4().hex[:8]}"
        draft.mkdir()
        for name, table in tables.items():
            write_table(draft / f"{name}.arrow", table)
        sync_tree(draft)
        numbers = [int(folder.name) for folder in self._list_shards()]
        draft.rename(self.folder / f"{max(numbers, default=0) + 1:06}")
        sync(self.folder)

    def compact(self, keep: Callable[[Tables], Tables], names: Collection[str] = ()) -> None:
        """Replace each shard by the rows that `keep` returns for its tables (all, or these).

        Shards without remaining rows are removed, and so are damaged ones, whose content is
        unknown. The new shard is complete before the old one goes. The caller holds the lock.
        """
        for shard in self._list_shards():
            tables = _open_shard(shard, names)
            kept = keep(tables) if tables is not None else {}
            if tables is not None and _count_rows(kept) == _count_rows(tables):
                continue
            if any(_count_rows(kept).values()):
                self.append(kept)
            shutil.rmtree(shard)

    def _list_shards(self) -> list[Path]:
        return sorted(folder for folder in self.folder.glob("[0-9]*") if folder.is_dir())

    def _remove_drafts(self) -> None:
        for leftover in self.folder.glob(f"{DRAFT_MARK}*"):
            shutil.rmtree(leftover, ignore_errors=True)


def list_caches(root: Path, kind: str = "*") -> list[RowCache]:
    """Return the caches below `<store>/rows` (all, or of one kind) that hold a shard."""
    return [RowCache(f) for f in sorted(root.glob(f"{kind}/*")) if any(f.glob("[0-9]*"))]


def _open_shard(shard: Path, names: Collection[str]) -> Tables | None:
    chosen = names or sorted(file.stem for file in shard.glob("*.arrow"))
    tables = {name: _read_table(shard / f"{name}.arrow") for name in chosen}
    whole = {name: table for name, table in tables.items() if table is not None}
    if not tables:
        logger.warning("%s: damaged (contains no table); its rows will be recomputed", shard)
    return whole if tables and len(whole) == len(tables) else None


def _read_table(file: Path) -> pa.Table | None:
    try:
        return map_table(file)
    except (pa.ArrowException, OSError) as error:
        logger.warning("%s: damaged (%s); its rows will be recomputed", file, error)
        return None


def _count_rows(tables: Tables) -> dict[str, int]:
    return {name: len(table) for name, table in tables.items()}
