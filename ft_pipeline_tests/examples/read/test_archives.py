"""Packed files: read as streams, with a limit, and never outside the archive."""

import bz2
import gzip
import io
import lzma
import random
import stat
import tracemalloc
import zipfile
from pathlib import Path

import pytest

from ft_pipeline.base.errors import PipelineError
from ft_pipeline.config.sources import Format
from ft_pipeline.examples.read import archives
from ft_pipeline.examples.read.archives import list_contents, open_content
from ft_pipeline.examples.read.formats import read_blocks
from ft_pipeline_tests.examples.reading import read, read_files

CSV = b"a,b\n1,2\n"


def compress(content: bytes) -> bytes:
    """Without the time of day: two test processes must collect equal parameters."""
    return gzip.compress(content, mtime=0)


def pack(members: dict[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", method) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return file.getvalue()


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("r.csv", CSV),
        ("r.csv.gz", compress(CSV)),
        ("R.CSV.GZ", compress(CSV)),
        ("r.csv.gz", compress(CSV[:5]) + compress(CSV[5:])),
        ("r.zip", pack({"r.csv": CSV})),
        ("r.zip", pack({"folder/r.csv": CSV}, zipfile.ZIP_STORED)),
        ("r.zip", pack({"r.csv.gz": compress(CSV)})),
        ("r.zip", pack({"r.csv": CSV, "LICENSE": b"x", ".r.csv": b"x", "__MACOSX/r.csv": b"x"})),
    ],
)
def test_a_packed_file_reads_like_the_file_itself(name: str, content: bytes) -> None:
    assert read(content, name).rows == [(2, {"a": "1", "b": "2"})]


@pytest.mark.parametrize("kind", ["json", "jsonl", "parquet", "tsv"])
def test_every_format_may_be_packed(kind: str, tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"a": ["1"], "b": ["2"]}), tmp_path / "r.parquet")
    contents = {"json": b'[{"a": "1", "b": "2"}]', "jsonl": b'{"a": "1", "b": "2"}\n'}
    contents |= {"tsv": b"a\tb\n1\t2\n", "parquet": (tmp_path / "r.parquet").read_bytes()}
    for name, content in (
        (f"r.{kind}", contents[kind]),
        (f"r.{kind}.gz", compress(contents[kind])),
        ("r.zip", pack({f"r.{kind}": contents[kind]})),
    ):
        assert read(content, name).values == [{"a": "1", "b": "2"}]


def test_members_are_read_in_the_order_of_their_names_among_the_files(tmp_path: Path) -> None:
    (tmp_path / "zip").write_bytes(pack({"z.csv": b"a\n3\n", "a.csv": b"a\n2\n", "empty/": b""}))
    (tmp_path / "csv").write_bytes(b"a\n1\n")
    files = {"b.zip": tmp_path / "zip", "a.csv": tmp_path / "csv", "c.csv": tmp_path / "csv"}
    found = read_files(files, Format())
    assert [values["a"] for values in found.values] == ["1", "2", "3", "1"]
    assert list_contents("b.zip", tmp_path / "zip") == ["b.zip/a.csv", "b.zip/z.csv"]


@pytest.mark.parametrize(
    "member", ["../r.csv", "/r.csv", "a/../../r.csv", "C:/r.csv", "..\\r.csv", "\\r.csv", "."]
)
def test_a_member_outside_the_archive_is_refused(member: str) -> None:
    with pytest.raises(PipelineError, match=r"r\.zip: member .* points outside the archive"):
        read(pack({member: CSV, "r.csv": CSV}), "r.zip")


def test_a_link_in_an_archive_is_read_as_what_it_holds() -> None:
    link = zipfile.ZipInfo("r.csv")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr(link, "/etc/passwd")
    assert read(file.getvalue(), "r.zip").rows == []


def test_a_member_that_stands_twice_is_refused() -> None:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive, pytest.warns(UserWarning, match="Duplicate"):
        archive.writestr("r.csv", CSV)
        archive.writestr("r.csv", CSV)
    with pytest.raises(PipelineError, match=r"r\.zip: contains two members named 'r\.csv'"):
        read(file.getvalue(), "r.zip")


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_a_method_that_cannot_be_read_in_pieces_is_refused(method: int) -> None:
    with pytest.raises(PipelineError, match=f"compressed with method {method}; expected deflate"):
        read(pack({"r.csv": CSV}, method), "r.zip")


def test_an_encrypted_member_is_refused() -> None:
    content = bytearray(pack({"r.csv": CSV}))
    content[content.index(b"PK\x01\x02") + 8] |= 1  # the flag in the directory
    with pytest.raises(PipelineError, match="is encrypted"):
        read(bytes(content), "r.zip")


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("r.zip", b"PK no zip", "not a readable zip file"),
        ("r.zip", pack({"r.csv": CSV * 1000})[:-10], "not a readable zip file"),
        ("r.csv.gz", CSV, "damaged archive"),
        ("r.csv.gz", compress(CSV * 1000)[:-9], "damaged archive"),
        ("r.csv.gz", bz2.compress(CSV), "damaged archive"),
        ("r.csv.gz", lzma.compress(CSV), "damaged archive"),
        ("r.csv.gz", b"", "the file is empty"),
        ("r.csv.gz", compress(b""), "the file is empty"),
        ("r.zip", pack({"r.csv": b""}), "r.zip/r.csv: the file is empty"),
        ("r.zip", pack({}), "no file of a known format"),
        ("r.zip", pack({"r.zip": pack({"r.csv": CSV})}), "no file of a known format"),
    ],
)
def test_an_archive_that_cannot_be_read_says_why(name: str, content: bytes, expected: str) -> None:
    with pytest.raises(PipelineError) as caught:
        read(content, name)
    assert expected in str(caught.value)
    assert name in str(caught.value)


@pytest.mark.parametrize("name", ["r.csv.gz", "r.zip"])
def test_content_larger_than_declared_is_refused(name: str) -> None:
    content = CSV + b"3,4\n" * 1000
    packed = compress(content) if name.endswith(".gz") else pack({"r.csv": content})
    with pytest.raises(
        PipelineError, match=r"larger than 2000 bytes .*raise the .*`format\.max_bytes`"
    ):
        read(packed, name, max_bytes=2000)
    assert len(read(packed, name, max_bytes=5000).rows) == 1001


@pytest.mark.parametrize("kind", ["gz", "zip", "gz in zip"])
def test_a_compression_bomb_is_refused_before_it_fills_the_memory(
    kind: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(archives, "SUSPICIOUS_BYTES", 5_000_000)
    bomb = b"0" * 100_000_000
    name, packed = "r.csv.gz", compress(bomb)
    if kind != "gz":
        name, packed = "r.zip", pack({"r.csv": bomb} if kind == "zip" else {"r.csv.gz": packed})
    path = tmp_path / name
    path.write_bytes(packed)
    del bomb
    tracemalloc.start()
    try:
        with pytest.raises(PipelineError, match="compression bomb"):
            list(read_blocks("trivia", {name: path}, Format()))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 80_000_000


@pytest.mark.parametrize("name", ["r.zip", "r.csv.gz"])
@pytest.mark.parametrize("seed", range(3))
def test_a_damaged_archive_is_read_or_refused(name: str, seed: int) -> None:
    rows = "".join(f"{i},{i * i}\n" for i in range(50))
    content = ("a,b\n" + rows).encode()
    packed = pack({"r.csv": content}) if name == "r.zip" else compress(content)
    chance, refused = random.Random(seed), 0
    for _ in range(150):
        damaged = bytearray(packed)
        for _ in range(chance.randint(1, 3)):
            damaged[chance.randrange(len(damaged))] ^= 1 << chance.randrange(8)
        try:
            found = read(
                bytes(damaged[: chance.choice([len(damaged), chance.randrange(1, 400)])]), name
            )
        except PipelineError:
            refused += 1
        else:
            assert len(found.rows) + len(found.broken) == 50
    assert refused > 100  # both have a checksum over the content


def test_only_what_is_asked_for_is_unpacked(tmp_path: Path) -> None:
    path = tmp_path / "r.csv.gz"
    path.write_bytes(compress(b"a\n" * 50_000_000)[:50_000])
    with open_content("r.csv.gz", path, "r.csv.gz", 10**9) as stream:
        assert stream.read(4) == b"a\na\n"
