"""Records come back in the order of their ids, whatever the order in which they came."""

import hashlib
import random
from pathlib import Path

import pyarrow as pa
import pytest

from ft_pipeline.examples.select import partition as order
from ft_pipeline.examples.select.partition import Parts, find_repeated, hex_to_uint64, sort_by_id


def name(number: int) -> str:
    return hashlib.sha256(str(number).encode("utf-8")).hexdigest()[:32]


def make_batch(numbers: list[int]) -> pa.RecordBatch:
    return pa.RecordBatch.from_pydict(
        {
            "row_id": pa.array([name(n) for n in numbers], pa.string()),
            "number": pa.array(numbers, pa.int64()),
            "words": pa.array([[f"w{n}"] * (n % 3) for n in numbers], pa.list_(pa.string())),
        }
    )


@pytest.mark.parametrize("expected_bytes", [0, 4_000, 200_000, 10**9])
def test_records_are_sorted_over_all_parts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, expected_bytes: int
) -> None:
    monkeypatch.setattr(order, "PART_BYTES", 2_000)
    numbers = list(range(300))
    random.Random(0).shuffle(numbers)
    parts = Parts(tmp_path / "parts", expected_bytes)
    assert parts.count == {0: 1, 4_000: 3, 200_000: 101, 10**9: 1024}[expected_bytes]
    for start in range(0, 300, 70):
        batch = make_batch([0, *numbers[start : start + 70], 0])
        parts.write(batch.slice(1, len(batch) - 2))
    parts.write(make_batch([]))
    parts.close()
    found = pa.concat_tables(parts.read(number) for number in parts.parts())
    assert found.to_pylist() == make_batch(sorted(numbers, key=name)).to_pylist()


def test_equal_ids_stay_in_the_order_in_which_they_came(tmp_path: Path) -> None:
    ids = [name(n % 3) for n in range(9)]
    batch = pa.RecordBatch.from_pydict({"row_id": ids, "place": list(range(9))})
    found = sort_by_id(pa.Table.from_batches([batch])).to_pylist()
    assert found == sorted(batch.to_pylist(), key=lambda row: (row["row_id"], row["place"]))


def test_parts_without_records_are_none(tmp_path: Path) -> None:
    parts = Parts(tmp_path / "parts", 10**9)
    parts.close()
    assert list(parts.parts()) == []


def test_repeated_ids_are_found_all() -> None:
    batch = make_batch([1, 2, 2, 3, 3, 3, 4])
    table = sort_by_id(pa.Table.from_batches([batch]))
    mask = find_repeated(table)
    assert sorted(table.filter(pa.array(mask))["number"].to_pylist()) == [2, 2, 3, 3, 3]


@pytest.mark.parametrize(
    ("text", "number"),
    [("0" * 16, 0), ("f" * 16, 2**64 - 1), ("0123456789abcdef", 0x0123456789ABCDEF)],
)
def test_hexadecimal_texts_are_read_as_numbers(text: str, number: int) -> None:
    assert hex_to_uint64(pa.array(["1" * 16, text, text]).slice(1)).tolist() == [number] * 2
