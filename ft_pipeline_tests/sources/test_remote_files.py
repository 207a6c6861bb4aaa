"""Sources of kind `files` behind an fsspec address: a real S3 server on loopback, and memory.

Unproven here: Amazon's, Google's and Azure's own servers, and their logins.
"""

import sys
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import fsspec
import pytest
import s3fs
from moto.server import ThreadedMotoServer

from ft_pipeline.base.errors import PipelineError
from ft_pipeline.config.sources import FilesSource
from ft_pipeline.sources.upstream import fetch, read_revision, resolve_revision
from ft_pipeline_tests.sources.conftest import CSV, RunChild, read_tree

CONTENT = {
    "data/a.csv": b"question,answer\n",
    "data/deep/b.csv": b"question,answer\nWho?,Me\n",
    "data/c.jsonl": b"{}\n",
    "data/.hidden.csv": b"",
    "data/d.csv.part": b"question",
    "data/../../up.csv": b"outside\n",
    "elsewhere.csv": b"",
}
SECRET = "aws-S3CRET"


@pytest.fixture
def s3(clean_environment: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The bucket `quiz` of an S3 server; returns boto3's client of it."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    for name, value in {
        "AWS_ENDPOINT_URL": "http://{}:{}".format(*server.get_host_and_port()),
        "AWS_ACCESS_KEY_ID": "me",
        "AWS_SECRET_ACCESS_KEY": SECRET,
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
    }.items():
        monkeypatch.setenv(name, value)
    s3fs.S3FileSystem.clear_instance_cache()  # it holds the port of the server before
    client = boto3.client("s3")
    client.create_bucket(Bucket="quiz")
    for key, content in CONTENT.items():
        client.put_object(Bucket="quiz", Key=key, Body=content)
    yield client
    server.stop()
    s3fs.S3FileSystem.clear_instance_cache()


def source_of(path: str) -> FilesSource:
    return FilesSource(kind="files", path=path)


def get(source: FilesSource, folder: Path) -> dict[str, bytes]:
    """Resolve and fetch; return what came."""
    revision = resolve_revision("quiz", source, folder, folder / "store")
    fetch("quiz", source, revision, folder, folder / "raw", use_sample=False)
    return read_tree(folder / "raw")


def check_error(error: PipelineError, *expected: str) -> None:
    for text in ("source quiz:", *expected):
        assert text in str(error)
    assert SECRET not in "".join(traceback.format_exception(error))


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("s3://quiz/data/a.csv", {"a.csv"}),
        ("s3://quiz/data", {"a.csv", "deep/b.csv", "c.jsonl"}),
        ("s3://quiz/data/", {"a.csv", "deep/b.csv", "c.jsonl"}),
        ("s3://quiz/data/*.csv", {"a.csv"}),
        ("s3://quiz/data/**/*.csv", {"a.csv", "deep/b.csv"}),
        ("s3://quiz/*/deep/*", {"data/deep/b.csv"}),
        ("s3://quiz", {"data/a.csv", "data/deep/b.csv", "data/c.jsonl", "elsewhere.csv"}),
        ("s3://quiz/data/?.jsonl", {"c.jsonl"}),
    ],
)
def test_named_files_arrive_with_equal_bytes(
    s3: Any, tmp_path: Path, path: str, expected: set[str]
) -> None:
    found = get(source_of(path), tmp_path)
    assert set(found) == expected
    assert all(content in CONTENT.values() for content in found.values())
    assert not list(tmp_path.rglob("up.csv"))


def test_revision_is_recorded_and_moves_by_a_refresh_alone(s3: Any, tmp_path: Path) -> None:
    source, store = source_of("s3://quiz/data"), tmp_path / "store"
    assert read_revision("quiz", source, tmp_path, store, use_sample=False) is None
    revision = resolve_revision("quiz", source, tmp_path, store)
    s3.put_object(Bucket="quiz", Key="data/a.csv", Body=b"question,ANSWER\n")  # as long as before
    assert read_revision("quiz", source, tmp_path, store, use_sample=False) == revision
    with pytest.raises(PipelineError) as caught:
        fetch("quiz", source, revision, tmp_path, tmp_path / "raw", use_sample=False)
    check_error(caught.value, "has changed", "ft-pipeline refresh quiz")
    assert read_tree(tmp_path / "raw") == {}
    assert resolve_revision("quiz", source, tmp_path, store) != revision
    assert get(source, tmp_path)["a.csv"] == b"question,ANSWER\n"


@pytest.mark.parametrize("change", ["new file", "removed file", "same content again"])
def test_revision_follows_the_files_of_the_folder(s3: Any, tmp_path: Path, change: str) -> None:
    source = source_of("s3://quiz/data")
    before = resolve_revision("quiz", source, tmp_path, tmp_path)
    if change == "new file":
        s3.put_object(Bucket="quiz", Key="data/new.csv", Body=b"")
    elif change == "removed file":
        s3.delete_object(Bucket="quiz", Key="data/c.jsonl")
    else:
        s3.put_object(Bucket="quiz", Key="data/a.csv", Body=CONTENT["data/a.csv"])
    after = resolve_revision("quiz", source, tmp_path, tmp_path)
    assert (after == before) == (change == "same content again")


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("s3://quiz/missing", ["s3://quiz/missing", "has no files", "`quiz.path`"]),
        ("s3://quiz/data/*.parquet", ["s3://quiz/data/*.parquet", "has no files"]),
        ("s3://no-such-bucket/data", ["s3://no-such-bucket/data"]),
        ("gcss://quiz/data", ["does not know (gcss)", "Did you mean `gcs`?"]),
    ],
)
def test_what_is_not_there_is_named(
    s3: Any, tmp_path: Path, path: str, expected: list[str]
) -> None:
    with pytest.raises(PipelineError) as caught:
        resolve_revision("quiz", source_of(path), tmp_path, tmp_path)
    check_error(caught.value, *expected)


def test_a_missing_login_is_named_with_the_remedy(
    s3: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    s3fs.S3FileSystem.clear_instance_cache()
    with pytest.raises(PipelineError) as caught:
        resolve_revision("quiz", source_of("s3://quiz/data"), tmp_path, tmp_path)
    check_error(caught.value, "needs a login", "AWS_ACCESS_KEY_ID")


def test_an_unreachable_storage_is_named_as_such(
    s3: Any, closed_port: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{closed_port}")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    s3fs.S3FileSystem.clear_instance_cache()
    with pytest.raises(PipelineError) as caught:
        resolve_revision("quiz", source_of("s3://quiz/data"), tmp_path, tmp_path)
    check_error(caught.value, "could not be reached", "AWS_ENDPOINT_URL")


@pytest.mark.parametrize(
    ("protocol", "package"), [("s3", "s3fs"), ("gs", "gcsfs"), ("abfs", "adlfs")]
)
def test_a_missing_driver_is_named_with_its_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, protocol: str, package: str
) -> None:
    # As where it was never installed: neither imported before nor found now.
    monkeypatch.setitem(sys.modules, package, None)
    registry = sys.modules["fsspec.registry"]._registry
    monkeypatch.delitem(registry, protocol, raising=False)
    with pytest.raises(PipelineError) as caught:
        resolve_revision("quiz", source_of(f"{protocol}://quiz/data"), tmp_path, tmp_path)
    check_error(caught.value, "not installed", f"pip install {package}")


@pytest.fixture
def memory() -> Iterator[Any]:
    """A storage with neither ETags nor modification times."""
    filesystem = fsspec.filesystem("memory")
    filesystem.pipe({f"/quiz/{name}": content for name, content in CONTENT.items()})
    yield filesystem
    filesystem.rm("/quiz", recursive=True)


def test_content_itself_is_the_revision_where_a_storage_tells_nothing(
    memory: Any, tmp_path: Path
) -> None:
    source = source_of("memory://quiz/data")
    before = resolve_revision("quiz", source, tmp_path, tmp_path / "store")
    assert set(get(source, tmp_path)) == {"a.csv", "deep/b.csv", "c.jsonl"}
    memory.pipe_file("/quiz/data/a.csv", CONTENT["data/a.csv"])
    assert resolve_revision("quiz", source, tmp_path, tmp_path / "store") == before
    memory.pipe_file("/quiz/data/a.csv", b"question,ANSWER\n")
    assert resolve_revision("quiz", source, tmp_path, tmp_path / "store") != before


def test_a_local_address_works_as_any_other(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data/a.csv").write_bytes(CONTENT["data/a.csv"])
    source = source_of(f"file://{tmp_path}/data/*.csv")
    assert get(source, tmp_path) == {"a.csv": CONTENT["data/a.csv"]}


def test_a_full_disk_is_not_blamed_on_the_storage(tmp_path: Path, run_child: RunChild) -> None:
    (tmp_path / "a.csv").write_bytes(CSV)
    source = source_of(f"file://{tmp_path}/a.csv")
    revision = resolve_revision("quiz", source, tmp_path, tmp_path / "store")
    folder = tmp_path / "raw"
    call = {"do": "fetch", "source": source.model_dump(), "revision": revision, "folder": folder}
    (answer,) = run_child({**call, "largest_file": 1000})  # a.csv has 10 kB
    assert answer["type"] == "OSError"  # the store explains it
    assert read_tree(folder) == {}


def test_login_in_an_address_is_recorded_nowhere(tmp_path: Path) -> None:
    source = source_of("sftp://me:S3CRET@127.0.0.1:1/data")
    with pytest.raises(PipelineError) as caught:
        resolve_revision("quiz", source, tmp_path, tmp_path)
    check_error(caught.value, "sftp://…@127.0.0.1:1/data")
    assert "S3CRET" not in "".join(traceback.format_exception(caught.value))
