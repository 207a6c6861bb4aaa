"""Results per row, keyed by content: append-only Arrow shards below `<store>/rows`.

    <store>/rows/<kind>/<hash of the configuration>/000003/questions.arrow, bands.arrow, …

A shard is a folder of Arrow IPC files, written aside and renamed: whole or absent. Readers map the
files into memory. Writers hold the cache's lock from reading to appending.
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
from ft_pipeline.base.file_hashes import sync
from ft_pipeline.base.hashing import hash_json
from ft_pipeline.base.locks import hold_lock, try_lock

Tables = dict[str, pa.Table]

logger = logging.getLogger(__name__)


class RowCache:
    """The shards of one kind of result and one configuration."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.lock_file = folder / "lock"

    @classmethod
    def of(cls, root: Path, kind: str, configuration: Mapping[str, Any]) -> "RowCache":
        """Return the cache of a kind of result and a configuration below `<store>/rows`."""
        return cls(root / kind / hash_json(dict(configuration)))

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the right to append; the kernel frees it when this process ends."""
        with hold_lock(self.lock_file):  # whose time says when the cache was used last
            self._remove_drafts()
            yield

    @contextmanager
    def try_locked(self) -> Iterator[bool]:
        """Hold the same right if it is free, and say so. This is no use of the cache."""
        with try_lock(self.lock_file, create=True) as free:
            if free:
                self._remove_drafts()
            yield free

    def read(self, names: Collection[str] = ()) -> list[Tables]:
        """Return the tables (all, or these) of each shard by name, oldest first, mapped.

        A damaged shard is left out, with a warning: what it held is computed again.
        """
        return [tables for _, tables in self.read_shards(names)]

    def read_shards(self, names: Collection[str] = ()) -> Iterator[tuple[Path, Tables]]:
        """Yield the folder of each shard with what `read` returns of it."""
        for shard in self._list_shards():
            tables = _open_shard(shard, names)
            if tables is not None:
                yield shard, tables

    def clear(self) -> None:
        """Remove all shards; what was mapped of them stays readable. The caller holds the lock."""
        for shard in self._list_shards():
            shutil.rmtree(shard)

    def append(self, tables: Mapping[str, pa.Table]) -> None:
        """Add a shard. The caller holds the lock."""
        draft = self.folder / f".draft-{uuid.uuid4().hex[:8]}"
        draft.mkdir()
        for name, table in tables.items():
            write_table(draft / f"{name}.arrow", table)
            sync(draft / f"{name}.arrow")
        numbers = [int(folder.name) for folder in self._list_shards()]
        draft.rename(self.folder / f"{max(numbers, default=0) + 1:06}")

    def compact(self, keep: Callable[[Tables], Tables], names: Collection[str] = ()) -> None:
        """Replace each shard by the rows that `keep` returns of its tables (all, or these).

        A shard of which no row stays goes, and a damaged one: nobody can say what is in it. A new
        shard is whole before the old one goes. The caller holds the lock.
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
        for leftover in self.folder.glob(".draft-*"):
            shutil.rmtree(leftover, ignore_errors=True)


def list_caches(root: Path, kind: str = "*") -> list[RowCache]:
    """Return the caches below `<store>/rows` (all, or of one kind) that hold a shard."""
    return [RowCache(f) for f in sorted(root.glob(f"{kind}/*")) if any(f.glob("[0-9]*"))]


def _open_shard(shard: Path, names: Collection[str]) -> Tables | None:
    try:
        chosen = names or sorted(file.stem for file in shard.glob("*.arrow"))
        return {name: map_table(shard / f"{name}.arrow") for name in chosen}
    except (pa.ArrowInvalid, OSError) as error:
        logger.warning("%s: damaged, its rows are computed again (%s)", shard, error)
        return None


def _count_rows(tables: Tables) -> dict[str, int]:
    return {name: len(table) for name, table in tables.items()}
