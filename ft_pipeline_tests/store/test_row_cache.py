"""The row cache: shards are whole or absent, whatever happens while they are appended."""

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pyarrow as pa
import pytest

from ft_pipeline.base.arrow_files import map_table
from ft_pipeline.examples.select.near_duplicates import NearIndex
from ft_pipeline.store.row_cache import RowCache
from ft_pipeline_tests.base.damages import read_names
from ft_pipeline_tests.conftest import ROOT


def make_table(*numbers: int) -> pa.Table:
    return pa.table({"number": pa.array(numbers, pa.int64())})


def open_cache(root: Path, **configuration: object) -> RowCache:
    return RowCache.of(root, "squares", configuration or {"power": 2})


def append(cache: RowCache, *numbers: int) -> None:
    with cache.locked():
        cache.append({"rows": make_table(*numbers)})


def read_numbers(cache: RowCache) -> list[list[int]]:
    return [tables["rows"]["number"].to_pylist() for tables in cache.read()]


def test_shards_are_read_in_the_order_in_which_they_were_appended(tmp_path: Path) -> None:
    cache = open_cache(tmp_path)
    for number in range(12):
        append(cache, number, number**2)
    assert read_numbers(open_cache(tmp_path)) == [[n, n**2] for n in range(12)]


def test_a_cache_that_is_not_there_is_empty(tmp_path: Path) -> None:
    assert open_cache(tmp_path).read() == []
    assert list(tmp_path.iterdir()) == []


def test_a_shard_holds_several_tables(tmp_path: Path) -> None:
    cache = open_cache(tmp_path)
    with cache.locked():
        cache.append({"one": make_table(1), "empty": make_table()})
    (tables,) = cache.read()
    assert {name: table.num_rows for name, table in tables.items()} == {"one": 1, "empty": 0}


def test_another_kind_or_configuration_has_shards_of_its_own(tmp_path: Path) -> None:
    append(open_cache(tmp_path), 1)
    assert open_cache(tmp_path, power=3).read() == []
    assert RowCache.of(tmp_path, "cubes", {"power": 2}).read() == []


def test_the_order_of_settings_does_not_matter(tmp_path: Path) -> None:
    append(open_cache(tmp_path, a=1, b=2), 1)
    assert read_numbers(open_cache(tmp_path, b=2, a=1)) == [[1]]


def test_what_a_killed_writer_left_is_not_read_and_is_removed(tmp_path: Path) -> None:
    cache = open_cache(tmp_path)
    append(cache, 1)
    draft = cache.folder / ".draft-0123abcd"
    draft.mkdir()
    (draft / "rows.arrow").write_bytes(b"ARROW1\0\0torn")
    assert read_numbers(cache) == [[1]]
    append(cache, 2)
    assert read_numbers(cache) == [[1], [2]]
    assert not draft.exists()


APPEND = """
import sys
from pathlib import Path
import pyarrow as pa
from ft_pipeline.store.row_cache import RowCache
cache = RowCache.of(Path(sys.argv[1]), "squares", {"power": 2})
first = int(sys.argv[2])
for number in range(first, first + int(sys.argv[3])):
    with cache.locked():
        cache.append({"rows": pa.table({"number": pa.array([number], pa.int64())})})
    print(number, flush=True)
"""


def start_writer(root: Path, first: int, count: int) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-c", APPEND, str(root), str(first), str(count)],
        stdout=subprocess.PIPE,
        text=True,
    )


def test_processes_that_append_at_once_lose_nothing(tmp_path: Path) -> None:
    writers = [start_writer(tmp_path, first, 15) for first in (0, 100)]
    assert [writer.wait(60) for writer in writers] == [0, 0]
    numbers = [number for shard in read_numbers(open_cache(tmp_path)) for number in shard]
    assert sorted(numbers) == [*range(15), *range(100, 115)]


def test_a_writer_that_is_killed_leaves_whole_shards_and_a_free_lock(tmp_path: Path) -> None:
    writer = start_writer(tmp_path, 0, 100_000)
    assert writer.stdout is not None
    seen = [int(writer.stdout.readline()) for _ in range(5)]
    os.kill(writer.pid, signal.SIGKILL)
    seen += [int(line) for line in writer.stdout]
    writer.wait(60)
    cache = open_cache(tmp_path)
    numbers = [number for shard in read_numbers(cache) for number in shard]
    assert numbers == list(range(len(numbers)))
    assert len(numbers) - len(seen) in (0, 1)  # one may be appended and not yet printed
    append(cache, -1)
    assert read_numbers(cache)[-1] == [-1]
    assert not list(cache.folder.glob(".draft-*"))


def test_a_second_writer_waits_for_the_first(tmp_path: Path) -> None:
    cache, order = open_cache(tmp_path), list[str]()

    def write() -> None:
        with open_cache(tmp_path).locked():
            order.append("second")

    with cache.locked():
        second = threading.Thread(target=write)
        second.start()
        time.sleep(0.2)
        order.append("first")
    second.join(30)
    assert order == ["first", "second"]


def keep_even(tables: dict[str, pa.Table]) -> dict[str, pa.Table]:
    numbers = tables["rows"]["number"].to_pylist()
    return {"rows": make_table(*(n for n in numbers if n % 2 == 0))}


def test_compacting_keeps_the_rows_that_are_asked_for(tmp_path: Path) -> None:
    cache = open_cache(tmp_path)
    for numbers in ((1, 2), (3, 5), (4, 6)):
        append(cache, *numbers)
    with cache.locked():
        cache.compact(keep_even)
    # The third is as it was; the second has no row left; of the first, a new shard behind.
    assert read_numbers(cache) == [[4, 6], [2]]
    assert [shard.name for shard, _ in cache.read_shards()] == ["000003", "000004"]


def test_compacting_removes_a_damaged_shard(tmp_path: Path) -> None:
    cache = open_cache(tmp_path)
    append(cache, 1, 2)
    append(cache, 4)
    (cache.folder / "000001" / "rows.arrow").write_bytes(b"ARROW1\0\0torn")
    with cache.locked():
        cache.compact(keep_even)
    assert [file.name for file in cache.folder.glob("[0-9]*")] == ["000002"]


COMPACT = """
import resource, sys
from pathlib import Path
from ft_pipeline_tests.store.test_row_cache import keep_even, open_cache
cache = open_cache(Path(sys.argv[1]))
with cache.locked():
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))
    cache.compact(keep_even)
"""


def test_a_compaction_that_cannot_write_loses_nothing(tmp_path: Path) -> None:
    """No file may have more than 100 bytes there, which stands for a full disk."""
    cache = open_cache(tmp_path)
    append(cache, 1, 2)
    command = [sys.executable, "-c", COMPACT, str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert "File too large" in done.stderr
    assert read_numbers(cache) == [[1, 2]]
    with cache.locked():
        cache.compact(keep_even)
    assert read_numbers(cache) == [[2]]
    assert not list(cache.folder.glob(".draft-*"))


def test_a_cache_that_is_in_use_is_not_locked_at_once(tmp_path: Path) -> None:
    cache = open_cache(tmp_path)
    with cache.locked(), open_cache(tmp_path).try_locked() as free:
        assert not free
    os.utime(cache.lock_file, (1, 1))
    with cache.try_locked() as free:
        assert free
    assert cache.lock_file.stat().st_mtime == 1  # not a use of the cache


TEXTS = [f"Who lived in house{n} of street{n} in year{n % 7}?" for n in range(60)]
TEXTS += [f"{text} Indeed so it was, {text}" for text in TEXTS[:20]]


def find_pairs(cache: Path | None, texts: list[str]) -> list[tuple[int, int]]:
    index = NearIndex(0.5, cache)
    index.add(pa.array(texts, pa.string()))
    pairs = index.find_pairs()
    return list(zip(pairs["a"].to_pylist(), pairs["b"].to_pylist(), strict=True))


@pytest.mark.parametrize("damage", ["cut", "missing", "empty"])
def test_a_damaged_shard_is_computed_again(tmp_path: Path, damage: str) -> None:
    expected = find_pairs(None, TEXTS)
    assert len(expected) >= 20
    find_pairs(tmp_path / "whole", TEXTS[:70])
    for file in sorted((tmp_path / "whole").rglob("*.arrow")):
        copy = tmp_path / file.stem
        shutil.copytree(tmp_path / "whole", copy)
        damaged = copy / file.relative_to(tmp_path / "whole")
        content = damaged.read_bytes()
        damaged.unlink()
        if damage != "missing":
            damaged.write_bytes(content[: len(content) // 2] if damage == "cut" else b"")
        assert find_pairs(copy, TEXTS) == expected


def test_a_shard_is_left_out_and_named_wherever_it_was_cut(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cache = open_cache(tmp_path)
    append(cache, 1)
    append(cache, 2)
    file = cache.folder / "000001/rows.arrow"
    whole = file.read_bytes()
    for length in range(len(whole)):
        file.write_bytes(whole[:length])
        assert read_numbers(cache) == [[2]]
        (named,) = read_names(caplog, file)
        assert "its rows will be recomputed" in named
    file.unlink()
    assert read_numbers(cache) == [[2]]  # an empty folder
    assert len(read_names(caplog, file.parent)) == 1
    append(cache, 3)
    assert read_numbers(cache) == [[2], [3]]


def test_the_time_of_the_lock_is_that_of_the_last_use(tmp_path: Path) -> None:
    cache = open_cache(tmp_path)
    append(cache, 1)
    os.utime(cache.folder / "lock", (7, 7))
    with cache.locked():
        pass
    assert time.time() - (cache.folder / "lock").stat().st_mtime < 60


FIND = """
import sys
from pathlib import Path
from ft_pipeline_tests.store.test_row_cache import TEXTS, find_pairs
print(len(find_pairs(Path(sys.argv[1]), TEXTS[int(sys.argv[2]):])))
"""


def test_builds_that_share_a_cache_at_once_compute_each_question_once(tmp_path: Path) -> None:
    builds = [
        subprocess.Popen([sys.executable, "-c", FIND, str(tmp_path), start], cwd=ROOT)
        for start in ("0", "9")
    ]
    assert [each.wait(60) for each in builds] == [0, 0]
    (folder,) = {file.parent.parent for file in tmp_path.rglob("questions.arrow")}
    stored = []
    for file in sorted(folder.rglob("questions.arrow")):
        stored += map_table(file)["key"].to_pylist()
    assert len(stored) == len(set(stored)) == len(TEXTS)
    assert find_pairs(tmp_path, TEXTS) == find_pairs(None, TEXTS)
