"""Sort records by row_id on disk, with only one part of them in memory.

Records arrive in any order and go to parts by the first characters of their row_id; each part is
then sorted separately. So the order does not depend on the order of files, and equal ids are
adjacent. Parts are Arrow IPC streams, without compression.
"""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

ID_LENGTH = 32
# About so many bytes of raw data go to one part.
PART_BYTES = 24_000_000
MOST_PARTS = 1024
_HEX = np.zeros(256, np.uint8)
_HEX[np.frombuffer(b"0123456789abcdef", np.uint8)] = np.arange(16)


class Parts:
    """Records of one kind, by part. Write all, then read each part in order."""

    def __init__(self, folder: Path, expected_bytes: int) -> None:
        folder.mkdir(parents=True)
        self.count = min(MOST_PARTS, 1 + expected_bytes // PART_BYTES)
        self._files = [folder / f"{number:04}.arrows" for number in range(self.count)]
        self._writers: list[pa.ipc.RecordBatchStreamWriter | None] = [None] * self.count

    def write(self, records: pa.Table | pa.RecordBatch) -> None:
        """Add records; the column `row_id` holds ids of 32 hex characters, never null."""
        if not len(records):
            return
        whole = isinstance(records, pa.Table)
        batch = records.combine_chunks().to_batches()[0] if whole else records
        if self.count == 1:
            self._writer(0, batch.schema).write_batch(batch)
            return
        ids = id_bytes(batch.column("row_id"))
        leading = _HEX[ids[:, :3]].astype(np.int64) @ np.array([256, 16, 1])
        part = leading * self.count // 4096
        order = np.argsort(part, kind="stable")
        ends = np.searchsorted(part[order], np.arange(self.count + 1))
        sorted_batch = batch.take(pa.array(order))
        for number in range(self.count):
            start, end = ends[number], ends[number + 1]
            if end > start:
                writer = self._writer(number, batch.schema)
                writer.write_batch(sorted_batch.slice(start, end - start))

    def close(self) -> None:
        """End writing."""
        for writer in self._writers:
            if writer is not None:
                writer.close()

    def parts(self) -> list[Path]:
        """Return the non-empty parts."""
        return [file for file in self._files if file.exists()]

    def read(self, part: Path, columns: Sequence[str] = ()) -> pa.Table:
        """Return a part's records (or these columns of them) sorted by row_id.

        Equal ids stay in their order of arrival.
        """
        with pa.memory_map(str(part)) as source:
            schema = pa.ipc.open_stream(source).schema
            chosen = [schema.get_field_index(name) for name in columns] or None
            source.seek(0)
            options = pa.ipc.IpcReadOptions(included_fields=chosen)
            with pa.ipc.open_stream(source, options=options) as reader:
                return sort_by_id(reader.read_all())

    def read_all(self, columns: Sequence[str] = ()) -> Iterator[tuple[Path, pa.Table]]:
        """Yield each part and its records; the next part is read while the caller works."""
        with ThreadPoolExecutor(1) as pool:
            waiting = [(part, pool.submit(self.read, part, columns)) for part in self.parts()[:1]]
            for following in [*self.parts()[1:], None]:
                if waiting:
                    part, coming = waiting.pop()
                    table = coming.result()
                    if following is not None:
                        waiting.append((following, pool.submit(self.read, following, columns)))
                    yield part, table

    def _writer(self, number: int, schema: pa.Schema) -> pa.ipc.RecordBatchStreamWriter:
        writer = self._writers[number]
        if writer is None:
            writer = self._writers[number] = pa.ipc.new_stream(str(self._files[number]), schema)
        return writer


def sort_by_id(table: pa.Table) -> pa.Table:
    """Return the records sorted by the first 64 bits of their row_id, as one chunk."""
    table = table.combine_chunks()
    if not len(table):
        return table
    leading = pc.utf8_slice_codeunits(table.column("row_id").chunk(0), 0, 16)
    order = np.argsort(hex_to_uint64(leading), kind="stable")
    return table.take(pa.array(order)).combine_chunks()


def id_bytes(ids: pa.Array) -> np.ndarray:
    """Return ids as uint8[records, 32], without copying."""
    content = np.frombuffer(ids.buffers()[2], np.uint8)
    start = np.frombuffer(ids.buffers()[1], np.int32)[ids.offset]
    return content[start : start + ID_LENGTH * len(ids)].reshape(-1, ID_LENGTH)


def in_batches(table: pa.Table) -> pa.Table:
    """Return the table in small pieces, which DuckDB distributes among its threads."""
    return pa.Table.from_batches(table.to_batches(max_chunksize=10_000), table.schema)


def find_repeated(table: pa.Table) -> np.ndarray:
    """Return a mask of sorted records that share their row_id."""
    ids = id_bytes(table.column("row_id").chunk(0))
    same = (ids[1:] == ids[:-1]).all(axis=1)
    mask = np.zeros(len(table), bool)
    mask[1:] |= same
    mask[:-1] |= same
    return mask


def hex_to_uint64(texts: pa.Array) -> np.ndarray:
    """Return texts of 16 hex characters each as numbers."""
    if not len(texts):
        return np.zeros(0, np.uint64)
    content = np.frombuffer(texts.buffers()[2], np.uint8)
    start = np.frombuffer(texts.buffers()[1], np.int32)[texts.offset]
    digits = _HEX[content[start : start + 16 * len(texts)]]
    pairs = digits[0::2] << 4 | digits[1::2]
    return pairs.view(">u8").astype(np.uint64)
