"""FT_REMOTE: pulled on a miss, pushed after success, whole or absent in both splits.

Real folders, and a real S3 server on loopback. Unproven here: Amazon's, Google's and Azure's own
servers.
"""

import json
import logging
import socket
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import boto3
import pytest
import requests
import s3fs
from moto.server import ThreadedMotoServer

from ft_pipeline.base.errors import PipelineError
from ft_pipeline.base.project import Project, find_project
from ft_pipeline.config.sources import AnySource, FilesSource, UrlSource
from ft_pipeline.graph.revisions import read_revision, resolve_revision
from ft_pipeline.store.artifacts import MANIFEST
from ft_pipeline.store.remote import Remote, RemoteError
from ft_pipeline.store.store import UNPUSHED, DamagedArtifact, Store
from ft_pipeline_tests.base.damages import list_damages, read_names
from ft_pipeline_tests.conftest import TinyProject
from ft_pipeline_tests.store.test_store import (
    ASKED,
    FAILED,
    FINGERPRINT,
    PASSED,
    list_folders,
    publish,
    read_content,
)

SECRET = "aws-S3CRET"
PLACE = f"train_set/{FINGERPRINT}"


class Bucket:
    """What lies behind the address of a remote, looked at without our own code."""

    def __init__(self, address: str, environment: dict[str, str]) -> None:
        self.address = address
        self.environment = environment
        self.client = boto3.client("s3") if address.startswith("s3://") else None

    def read(self) -> dict[str, bytes]:
        if self.client is None:
            root = Path(self.address)
            files = (p for p in root.rglob("*") if p.is_file())
            return {p.relative_to(root).as_posix(): p.read_bytes() for p in files}
        listed = self.client.list_objects_v2(Bucket="team").get("Contents", [])
        keys = [entry["Key"] for entry in listed]
        read = self.client.get_object
        found = {key: read(Bucket="team", Key=key)["Body"].read() for key in keys}
        return {key.removeprefix("ft/"): content for key, content in found.items()}

    def write(self, name: str, content: bytes) -> None:
        if self.client is not None:
            self.client.put_object(Bucket="team", Key=f"ft/{name}", Body=content)
        else:
            (Path(self.address) / name).write_bytes(content)

    def delete(self, name: str) -> None:
        if self.client is not None:
            self.client.delete_object(Bucket="team", Key=f"ft/{name}")
        else:
            (Path(self.address) / name).unlink()


@pytest.fixture
def s3(monkeypatch: pytest.MonkeyPatch) -> Iterator[Bucket]:
    """An S3 server with the bucket `team`."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    requests.post("http://{}:{}/moto-api/reset".format(*server.get_host_and_port()), timeout=10)
    environment = {
        "AWS_ENDPOINT_URL": "http://{}:{}".format(*server.get_host_and_port()),
        "AWS_ACCESS_KEY_ID": "me",
        "AWS_SECRET_ACCESS_KEY": SECRET,
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_MAX_ATTEMPTS": "1",
    }
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    s3fs.S3FileSystem.clear_instance_cache()  # it holds the port of the server before
    bucket = Bucket("s3://team/ft", environment)
    bucket.client.create_bucket(Bucket="team")  # type: ignore[union-attr]
    yield bucket
    server.stop()
    s3fs.S3FileSystem.clear_instance_cache()


@pytest.fixture(params=["folder", "s3"])
def bucket(request: pytest.FixtureRequest, tmp_path: Path) -> Bucket:
    if request.param == "folder":
        return Bucket(str(tmp_path / "remote"), {})
    return request.getfixturevalue("s3")  # type: ignore[no-any-return]


@pytest.fixture
def here(bucket: Bucket, tmp_path: Path) -> Store:
    return Store(tmp_path / "here", Remote(bucket.address))


@pytest.fixture
def there(bucket: Bucket, tmp_path: Path) -> Store:
    """The empty store of a second machine."""
    return Store(tmp_path / "there", Remote(bucket.address))


@pytest.fixture
def closed_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def find(store: Store) -> Any:
    return store.find("train_set", FINGERPRINT)


def is_marked(store: Store) -> bool:
    return (store.root / PLACE / UNPUSHED).is_file()


def test_what_was_published_is_pushed_and_pulled_equal(
    bucket: Bucket, here: Store, there: Store
) -> None:
    made = publish(here, checks=(PASSED,))
    files = {f"{PLACE}/{name}" for name in ("rows.txt", "meta/report.txt", MANIFEST)}
    assert set(bucket.read()) == files
    assert not is_marked(here)
    pulled = find(there)
    assert pulled.manifest == made.manifest
    assert read_content(there) == "a\n"
    assert list_folders(there) == [FINGERPRINT]
    assert not is_marked(there)
    assert SECRET.encode() not in b"".join(bucket.read().values())


def test_the_manifest_is_uploaded_last(here: Store, bucket: Bucket) -> None:
    """A push that ends before it leaves files that no reader sees."""
    made = publish(Store(here.root))
    (made.path / "rows.txt").rename(made.path / "gone")  # so that the push breaks off midway
    with pytest.raises(RemoteError):
        here.remote.upload(made, replace=False)  # type: ignore[union-attr]
    assert f"{PLACE}/{MANIFEST}" not in bucket.read()


def test_files_without_a_manifest_are_no_artifact(
    bucket: Bucket, here: Store, there: Store
) -> None:
    publish(here)
    bucket.delete(f"{PLACE}/{MANIFEST}")
    assert find(there) is None
    assert there.peek("train_set", FINGERPRINT) is None


@pytest.mark.parametrize("change", ["other bytes", "missing"])
def test_a_file_that_differs_is_refused_and_nothing_is_kept(
    bucket: Bucket, here: Store, there: Store, change: str
) -> None:
    made = publish(here)
    if change == "missing":
        bucket.delete(f"{PLACE}/rows.txt")
    else:
        bucket.write(f"{PLACE}/rows.txt", b"b\n")
    with pytest.raises(DamagedArtifact) as caught:
        find(there)
    # sha256 of "b\n", by `printf 'b\n' | sha256sum`
    other = "0263829989b6fd954f72baaf2fc64bc2e2f01d692d4de72986ea808f6e99813f"
    found = "no file" if change == "missing" else other
    for text in (f"{bucket.address}/{PLACE}/rows.txt", made.manifest.files["rows.txt"].sha256):
        assert text in str(caught.value)
    assert f"found {found}" in str(caught.value)
    assert list_folders(there) == []


def test_a_forced_build_replaces_what_is_damaged_there(
    bucket: Bucket, here: Store, there: Store
) -> None:
    publish(here)
    bucket.write(f"{PLACE}/rows.txt", b"b\n")
    with here.draft("train_set", ASKED, {}) as draft:
        (draft.path / "rows.txt").write_text("a\n", encoding="utf-8")
        here.publish(draft, [], run_id="forced", replace=True)
    assert find(there).manifest.run_id == "forced"


def test_a_mark_that_is_damaged_is_named_and_replaces_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Whether what the remote has was to be replaced is then unknown."""
    theirs = publish(Store(tmp_path / "there", Remote(str(tmp_path / "remote"))), "a\n")
    with Store(tmp_path / "here", Remote("/proc/ft")).draft("train_set", ASKED, {}) as draft:
        (draft.path / "rows.txt").write_text("b\n", encoding="utf-8")
        store = Store(tmp_path / "here", Remote("/proc/ft"))
        made = store.publish(draft, [], run_id="forced", replace=True)
    store = Store(tmp_path / "here", Remote(str(tmp_path / "remote")))
    remote, mark = store.remote, made.path / UNPUSHED
    assert remote is not None
    whole = mark.read_bytes()
    for content in list_damages(whole):
        caplog.clear()
        mark.write_bytes(content)
        store.push_pending(made)
        assert len(read_names(caplog, mark)) == 1
        assert remote.read_manifest("train_set", FINGERPRINT) == theirs.manifest
        mark.write_bytes(b'"new"\n')
        store.push_pending(made)
    mark.write_bytes(whole)
    store.push_pending(made)
    assert remote.read_manifest("train_set", FINGERPRINT) == made.manifest


def test_the_first_of_two_builds_stays_in_the_remote(here: Store, there: Store) -> None:
    first = publish(here, "a\n")
    publish(there, "b\n")
    assert not is_marked(there)
    assert here.remote.read_manifest("train_set", FINGERPRINT) == first.manifest  # type: ignore[union-attr]


def test_two_pushes_at_the_same_time_leave_one_of_them_whole(
    bucket: Bucket, here: Store, there: Store, tmp_path: Path
) -> None:
    """The other machine pushes all of its own between two files of this one's push."""
    ours = Store(here.root)
    artifact = publish(ours, "a\n", meta="1\n")
    remote = here.remote
    assert remote is not None
    put, calls = remote._put, []

    def put_between(*given: Any) -> None:
        put(*given)
        calls.append(given)
        if len(calls) == 1:
            publish(there, "b\n", meta="2\n")

    remote._put = put_between  # type: ignore[method-assign]
    assert remote.upload(artifact, replace=False)
    assert len(calls) == 4  # its two files, and again
    third = Store(tmp_path / "third", Remote(bucket.address))
    assert find(third).manifest.files == artifact.manifest.files
    assert read_content(third) == "a\n"


@pytest.mark.parametrize("name", ["../outside.txt", "/outside.txt", "a/../../b", ".stamp.json"])
def test_a_manifest_that_reaches_out_of_its_folder_is_not_read(
    bucket: Bucket, here: Store, there: Store, name: str
) -> None:
    publish(here, file="rows.txt")
    text = bucket.read()[f"{PLACE}/{MANIFEST}"].decode("utf-8").replace('"rows.txt"', f'"{name}"')
    bucket.write(f"{PLACE}/{MANIFEST}", text.encode("utf-8"))
    assert find(there) is None
    assert not list(there.root.parent.rglob("outside.txt"))


def test_a_peek_brings_the_manifest_alone(here: Store, there: Store) -> None:
    made = publish(here)
    seen = there.peek("train_set", FINGERPRINT)
    assert seen is not None
    assert seen.data_version == made.data_version
    assert not there.holds(seen)
    assert not (there.root / "train_set").exists()


def test_what_is_here_is_used_without_the_remote(here: Store, closed_port: int) -> None:
    publish(here)
    away = Store(here.root, Remote(f"http://127.0.0.1:{closed_port}/ft"))
    assert find(away) is not None
    away.push_pending(find(away))


def test_a_failed_artifact_stays_here_until_it_passes(bucket: Bucket, here: Store) -> None:
    made = publish(here, checks=(FAILED,))
    assert bucket.read() == {}
    here.replace_checks(made, [PASSED])
    assert f"{PLACE}/{MANIFEST}" in bucket.read()


def test_a_new_verdict_on_what_is_there_is_pushed(here: Store, there: Store) -> None:
    made = publish(here, checks=(PASSED,))
    here.replace_checks(made, [FAILED])
    assert find(there).failed_checks == [FAILED]


def test_a_failed_push_is_a_warning_and_tried_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "remote"
    folder.write_text("a file where a folder belongs", encoding="utf-8")
    store = Store(tmp_path / "store", Remote(str(folder)))
    made = publish(store)
    assert is_marked(store)
    assert read_content(store) == "a\n"
    (warning,) = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    reason = f"FT_REMOTE: {folder} is a file. Set it to a folder."
    assert warning.startswith(f"train_set: kept in the store, but not pushed. {reason}")
    folder.unlink()
    store.push_pending(made)
    assert (folder / PLACE / MANIFEST).is_file()
    assert not is_marked(store)


def test_a_folder_that_cannot_be_written_is_named_as_such(tmp_path: Path) -> None:
    """The kernel's own refusal: nothing can be created below /proc, not even by root."""
    made = publish(Store(tmp_path / "store"))
    with pytest.raises(RemoteError, match=r"/proc/ft cannot be used .* this user may write"):
        Remote("/proc/ft").upload(made, replace=False)


def test_a_server_that_is_gone_fails_no_build_and_shows_no_login(
    s3: Bucket,
    tmp_path: Path,
    closed_port: int,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{closed_port}")
    s3fs.S3FileSystem.clear_instance_cache()
    store = Store(tmp_path / "store", Remote("s3://me:S3CRET@team/ft"))
    publish(store)
    assert is_marked(store)
    assert "could not be reached" in caplog.text
    assert "S3CRET" not in caplog.text
    with pytest.raises(RemoteError, match="could not be reached"):
        store.find("val_set", FINGERPRINT)


def test_what_was_built_without_a_remote_is_pushed_once_there_is_one(tmp_path: Path) -> None:
    made = publish(Store(tmp_path / "store"))
    store = Store(tmp_path / "store", Remote(str(tmp_path / "remote")))
    store.push_pending(made)
    assert (tmp_path / "remote" / PLACE / MANIFEST).is_file()


PULL = """
import sys
from pathlib import Path
from ft_pipeline.store.remote import Remote
from ft_pipeline.store.store import Store

store = Store(Path(sys.argv[1]), Remote(sys.argv[2]))
sys.stdin.readline()
found = store.find("train_set", sys.argv[3])
print(found.manifest.files["rows.txt"].bytes, ("train_set", sys.argv[3]) in store.pulled)
"""


def test_processes_that_pull_at_once_bring_it_once_and_whole(
    bucket: Bucket, here: Store, there: Store
) -> None:
    publish(here, "a row\n" * 500_000)
    command = [sys.executable, "-c", PULL, str(there.root), bucket.address, FINGERPRINT]
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    children = [subprocess.Popen(command, **pipes) for _ in range(3)]
    for child in children:  # all have imported what they need when the first starts
        child.stdin.write("\n")  # type: ignore[union-attr]
        child.stdin.flush()  # type: ignore[union-attr]
    said = sorted(child.communicate(timeout=60)[0].split() for child in children)
    assert said == [["3000000", "False"], ["3000000", "False"], ["3000000", "True"]]
    assert list_folders(there) == [FINGERPRINT]


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("s3:/team/ft", ["s3:…", "neither an address nor a folder", "s3://bucket/folder"]),
        ("data/artifacts", ["is the local store itself"]),
    ],
)
def test_a_malformed_address_is_refused(
    fresh_project: TinyProject,
    monkeypatch: pytest.MonkeyPatch,
    address: str,
    expected: list[str],
) -> None:
    monkeypatch.setenv("FT_PROJECT", str(fresh_project.root))
    monkeypatch.delenv("FT_STORE", raising=False)
    monkeypatch.setenv("FT_REMOTE", address)
    with pytest.raises(PipelineError) as caught:
        find_project()
    for text in ("FT_REMOTE: ", *expected):
        assert text in str(caught.value)


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("s33://team/ft", ["does not know (s33)", "Did you mean `s3`?"]),
        ("s3://", ["names no bucket or folder"]),
        ("s3://no-such-bucket/ft", ["does not exist", "Check the bucket and the path"]),
    ],
)
def test_an_address_that_leads_nowhere_is_named(
    s3: Bucket, address: str, expected: list[str]
) -> None:
    with pytest.raises(RemoteError) as caught:
        Remote(address).read_manifest("train_set", FINGERPRINT)
    for text in ("FT_REMOTE: ", *expected):
        assert text in str(caught.value)


def test_a_missing_driver_is_named_with_its_install(monkeypatch: pytest.MonkeyPatch) -> None:
    # As where it was never installed: neither imported before nor found now.
    monkeypatch.setitem(sys.modules, "s3fs", None)
    registry = sys.modules["fsspec.registry"]._registry
    monkeypatch.delitem(registry, "s3", raising=False)
    with pytest.raises(RemoteError, match=r"not installed .* pip install s3fs"):
        Remote("s3://team/ft").read_manifest("train_set", FINGERPRINT)


def test_a_silent_server_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FT_SOURCE_TIMEOUT", "1")
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        with pytest.raises(RemoteError, match="stayed silent for 1 seconds"):
            Remote("http://{}:{}/ft".format(*silent.getsockname())).read_record("trivia")


@pytest.mark.parametrize("kind", ["files", "url"])
def test_a_revision_is_taken_from_the_remote_before_upstream_is_asked(
    bucket: Bucket, tmp_path: Path, kind: str
) -> None:
    upstream = tmp_path / "upstream"
    upstream.mkdir()
    (upstream / "a.csv").write_text("question\n", encoding="utf-8")
    handler = partial(SimpleHTTPRequestHandler, directory=str(upstream))
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    Thread(target=server.serve_forever, daemon=True).start()
    source: AnySource = FilesSource(kind="files", path=f"file://{upstream}")
    if kind == "url":
        source = UrlSource(kind="url", url=f"http://127.0.0.1:{server.server_port}/a.csv")
    here = Project(tmp_path, tmp_path / "here", bucket.address)
    there = Project(tmp_path, tmp_path / "there", bucket.address)
    assert read_revision(here, "quiz", source) is None
    revision = resolve_revision(here, "quiz", source)
    assert set(bucket.read()) == {"upstream/quiz.json"}
    server.shutdown()
    server.server_close()
    (upstream / "a.csv").unlink()  # there is nothing and nobody to ask any more
    assert read_revision(there, "quiz", source) == revision
    assert (there.store / "upstream/quiz.json").is_file()
    other = FilesSource(kind="files", path=f"file://{upstream}/b.csv")
    assert read_revision(there, "quiz", other) is None


def test_a_refresh_moves_the_revision_of_the_remote(tmp_path: Path) -> None:
    file = tmp_path / "a.csv"
    source = FilesSource(kind="files", path=f"file://{file}")
    remote = str(tmp_path / "remote")
    here, there = (Project(tmp_path, tmp_path / name, remote) for name in ("here", "there"))
    file.write_text("question\n", encoding="utf-8")
    first = resolve_revision(here, "quiz", source)
    file.write_text("question,answer\n", encoding="utf-8")
    second = resolve_revision(there, "quiz", source)
    assert second != first
    assert read_revision(here, "quiz", source) == first  # until this store refreshes
    assert read_revision(Project(tmp_path, tmp_path / "new", remote), "quiz", source) == second


def test_a_revision_that_could_not_be_pushed_is_tried_again(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("question\n", encoding="utf-8")
    source = FilesSource(kind="files", path=f"file://{tmp_path}/a.csv")
    remote = tmp_path / "remote"
    remote.write_text("a file where a folder belongs", encoding="utf-8")
    project = Project(tmp_path, tmp_path / "store", str(remote))
    revision = resolve_revision(project, "quiz", source)
    remote.unlink()
    assert read_revision(project, "quiz", source) == revision
    record = json.loads((remote / "upstream/quiz.json").read_text(encoding="utf-8"))
    assert record["revision"] == revision


@pytest.fixture
def clone(fresh_project: TinyProject, tmp_path: Path) -> TinyProject:
    """A second checkout, whose store is empty."""
    return fresh_project.copy_to(tmp_path / "clone")


def environment_of(bucket: Bucket) -> dict[str, str]:
    return bucket.environment | {"FT_REMOTE": bucket.address}


def read_status(project: TinyProject, **environment: str) -> dict[str, dict[str, Any]]:
    done = project.run("ft-pipeline", "status", "--json", **environment)
    assert done.returncode == 0, done.stderr
    return {step["asset"]: step for step in json.loads(done.stdout)}


def list_stored(project: TinyProject) -> set[str]:
    """The assets of which the store has an artifact."""
    return {path.parent.parent.name for path in project.store.glob(f"*/*/{MANIFEST}")}


@pytest.mark.slow
def test_a_second_clone_pulls_the_whole_chain_and_trains_nothing(
    bucket: Bucket, project: TinyProject, clone: TinyProject
) -> None:
    remote = environment_of(bucket)
    assert set(project.build(**remote).values()) == {"reused"}  # which pushes what was built before
    built = read_status(project)

    planned = read_status(clone, **remote)
    assert {step["state"] for step in planned.values()} == {"fresh"}
    assert planned["finetuned_model"]["why"] == ["in the remote; the next run pulls it"]
    done = clone.run("ft-pipeline", "run", "--dry-run", "--json", **remote)
    assert {step["action"] for step in json.loads(done.stdout)} == {"reuse"}
    assert list_stored(clone) == set()

    outcomes = clone.build(FT_NO_TRAIN="1", **remote)
    assert set(outcomes) == set(built)
    assert set(outcomes.values()) == {"reused"}
    assert not (clone.store / "runs").exists()  # no worker was started
    pulled = read_status(clone)
    for asset, step in built.items():
        assert pulled[asset]["state"] == "fresh"
        assert pulled[asset]["data_version"] == step["data_version"]
    written = [path for path in clone.root.rglob("*") if path.is_file()]
    assert not any(SECRET.encode() in path.read_bytes() for path in written)


@pytest.mark.slow
def test_the_model_alone_is_pulled_where_it_alone_is_asked_for(
    project: TinyProject, clone: TinyProject, tmp_path: Path
) -> None:
    remote = {"FT_REMOTE": str(tmp_path / "remote")}
    project.build(**remote)
    command = ("dagster", "asset", "materialize", "--select", "finetuned_model")
    done = clone.run(*command, FT_NO_TRAIN="1", **remote)
    assert done.returncode == 0, done.stderr
    assert list_stored(clone) == {"finetuned_model"}
    # Building brings the inputs, and these alone.
    change = {"metrics": {"answer_normalization": "none"}}
    clone.edit_recipe(lambda recipe: recipe["evaluation"].update(change))
    done = clone.run(*command[:-1], "evaluation", **remote)
    assert done.returncode == 0, done.stderr
    inputs = {"base_evaluation", "finetuned_evaluation"}
    assert inputs < list_stored(clone)
    assert not {"raw_trivia", "base_model", "train_tokens"} & list_stored(clone)
    assert set(project.build("--to", "evaluation").values()) == {"reused"}


@pytest.mark.slow
def test_the_remedy_for_a_damaged_remote_mends_it(
    project: TinyProject, clone: TinyProject, tmp_path: Path
) -> None:
    remote = {"FT_REMOTE": str(tmp_path / "remote")}
    project.build("--to", "raw_cot", **remote)
    (file,) = (tmp_path / "remote/raw_cot").glob("*/cot.jsonl")
    whole = file.read_bytes()
    file.write_bytes(whole[:-1])
    done = clone.run("ft-pipeline", "run", "--to", "raw_cot", "--json", **remote)
    assert done.returncode == 1
    (failure,) = json.loads(done.stdout)["failures"]
    assert failure.startswith(f"{file}: damaged. Expected sha256 ")
    assert "Nothing from the pull was kept." in failure
    remedy = ("ft-pipeline", "run", "--to", "raw_cot", "--force", "raw_cot")
    assert " ".join(remedy) in failure
    done = clone.run(*remedy, **remote)
    assert done.returncode == 0, done.stderr
    assert file.read_bytes() == whole


@pytest.mark.slow
def test_a_run_whose_pushes_fail_succeeds_and_the_next_pushes(
    project: TinyProject, tmp_path: Path
) -> None:
    folder = tmp_path / "remote"
    folder.write_text("a file where a folder belongs", encoding="utf-8")
    command = ("ft-pipeline", "run", "--to", "train_set", "--json")
    done = project.run(*command, FT_REMOTE=str(folder))
    assert done.returncode == 0
    assert "train_set: kept in the store, but not pushed. FT_REMOTE: " in done.stderr
    folder.unlink()
    assert "not pushed" not in project.run(*command, FT_REMOTE=str(folder)).stderr
    assert len(list((folder / "train_set").glob(f"*/{MANIFEST}"))) == 1


@pytest.mark.slow
def test_a_miss_that_cannot_be_asked_for_stops_the_run(
    clone: TinyProject, closed_port: int
) -> None:
    """Training for hours because the network was away for a minute would be the wrong answer."""
    remote = f"http://me:{SECRET}@127.0.0.1:{closed_port}/ft"
    done = clone.run("ft-pipeline", "run", "--to", "raw_trivia", "--json", FT_REMOTE=remote)
    assert done.returncode == 1
    (failure,) = json.loads(done.stdout)["failures"]
    assert failure.startswith(f"FT_REMOTE: http://…@127.0.0.1:{closed_port}/ft could not be reach")
    assert "unset FT_REMOTE" in failure
    assert read_status(clone, FT_REMOTE=remote)["raw_trivia"]["state"] == "unreachable"
    assert SECRET not in done.stdout + done.stderr
    doctor = clone.run("ft-pipeline", "doctor", FT_REMOTE=remote)
    assert "could not be reached" in doctor.stdout
    assert SECRET not in doctor.stdout + doctor.stderr
    assert not list(clone.store.glob("raw_trivia/*"))


@pytest.mark.slow
def test_doctor_shows_the_remote(clone: TinyProject, tmp_path: Path) -> None:
    remote = tmp_path / "remote"
    done = clone.run("ft-pipeline", "doctor", "--json", FT_REMOTE=str(remote))
    findings = {f["what"]: f for f in json.loads(done.stdout)}
    assert findings["remote"]["state"] == "ok"
    assert findings["remote"]["found"] == f"{remote} is readable"
    done = clone.run("ft-pipeline", "doctor", "--json", FT_REMOTE="s3:/team/ft")
    assert "neither an address nor a folder" in done.stdout
