"""Artifacts are whole or absent, after an exception, a kill, on a full disk, in a copied store."""

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ft_pipeline.base.errors import PipelineError
from ft_pipeline.store.artifacts import Artifact, CheckResult, Ingredients
from ft_pipeline.store.store import DRAFT_MARK, REPLACED_MARK, STAMP, DamagedArtifact, Store
from ft_pipeline_tests.base.damages import list_damages, read_names

ASKED = Ingredients(code_version="1", settings={"side": "train"}, inputs={}, libraries={})
FINGERPRINT = ASKED.fingerprint
PASSED = CheckResult(name="is_full", version="1", passed=True, blocking=True, message="3 rows")
WARNED = CheckResult(name="is_nice", version="1", passed=False, blocking=False, message="no")
FAILED = CheckResult(name="is_right", version="1", passed=False, blocking=True, message="no")


def publish(
    store: Store,
    content: str = "a\n",
    meta: str = "1\n",
    asset: str = "train_set",
    asked: Ingredients = ASKED,
    file: str = "rows.txt",
    checks: tuple[CheckResult, ...] = (),
) -> Artifact:
    with store.draft(asset, asked, {}) as draft:
        (draft.path / file).write_text(content, encoding="utf-8")
        (draft.meta / "report.txt").write_text(meta, encoding="utf-8")
        return store.publish(draft, list(checks), run_id="a run")


def list_folders(store: Store, asset: str = "train_set") -> list[str]:
    return sorted(path.name for path in (store.root / asset).iterdir())


def find(store: Store) -> Artifact:
    found = store.find("train_set", FINGERPRINT)
    assert found is not None
    return found


def read_content(store: Store) -> str:
    return (find(store).path / "rows.txt").read_text(encoding="utf-8")


def sha256(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8")).hexdigest()


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def test_a_published_artifact_is_found_whole(store: Store) -> None:
    made = publish(store, checks=(PASSED,))
    assert find(store) == made
    assert made.path == store.root / "train_set" / FINGERPRINT
    assert set(made.content) == {"rows.txt"}
    assert set(made.manifest.files) == {"rows.txt", "meta/report.txt"}
    assert made.manifest.files["rows.txt"].sha256 == sha256("a\n")
    assert made.bytes == 4  # "a\n" and "1\n"
    assert made.manifest.checks == [PASSED]
    assert list_folders(store) == [FINGERPRINT]


def test_another_request_finds_nothing(store: Store) -> None:
    publish(store)
    other = ASKED.model_copy(update={"code_version": "2"})
    assert other.fingerprint != FINGERPRINT
    assert store.find("train_set", other.fingerprint) is None
    assert store.find("val_set", FINGERPRINT) is None


def test_an_input_is_recorded_with_what_it_was_made_of_and_what_it_held(store: Store) -> None:
    given = publish(store)
    with store.draft("train_tokens", ASKED, {"train_set": given}) as draft:
        made = store.publish(draft, [], run_id="a run")
    entry = made.manifest.inputs["train_set"]
    assert (entry.asset, entry.fingerprint) == ("train_set", FINGERPRINT)
    assert entry.data_version == given.data_version


def test_a_draft_that_was_not_published_is_removed(store: Store) -> None:
    with store.draft("train_set", ASKED, {}) as draft:
        (draft.path / "rows.txt").write_text("a\n", encoding="utf-8")
        assert draft.meta.is_dir()
    assert list_folders(store) == []
    assert store.find("train_set", FINGERPRINT) is None


def test_a_draft_is_removed_after_an_exception_which_goes_on(store: Store) -> None:
    with pytest.raises(ZeroDivisionError), store.draft("train_set", ASKED, {}) as draft:
        (draft.path / "rows.txt").write_text("a\n", encoding="utf-8")
        _ = 1 / 0
    assert list_folders(store) == []


def test_a_preview_is_what_is_published(store: Store) -> None:
    with store.draft("train_set", ASKED, {}) as draft:
        (draft.path / "rows.txt").write_text("a\n", encoding="utf-8")
        seen = draft.preview()
        made = store.publish(draft, [], run_id="a run")
    assert seen.data_version == made.data_version
    assert seen.manifest.files == made.manifest.files


@pytest.mark.parametrize("name", ["manifest.json", STAMP])
def test_a_content_file_cannot_take_the_name_of_the_stores_own_record(
    store: Store, name: str
) -> None:
    with pytest.raises(PipelineError, match="Rename the file at its source"):
        publish(store, file=name)
    assert list_folders(store) == []


def test_a_file_named_like_the_manifest_in_a_folder_is_content(store: Store) -> None:
    with store.draft("raw_trivia", ASKED, {}) as draft:
        (draft.path / "part").mkdir()
        (draft.path / "part" / "manifest.json").write_text("{}", encoding="utf-8")
        made = store.publish(draft, [], run_id="a run")
    assert set(made.content) == {"part/manifest.json"}


@pytest.mark.parametrize(
    ("change", "same"),
    [
        ({}, True),
        ({"meta": "2\n"}, True),
        ({"asset": "val_set"}, True),
        ({"asked": ASKED.model_copy(update={"code_version": "2"})}, True),
        ({"content": "b\n"}, False),
        ({"file": "other.txt"}, False),
    ],
)
def test_the_data_version_is_that_of_names_and_bytes_of_the_content(
    store: Store, change: dict[str, Any], same: bool
) -> None:
    before = publish(store).data_version
    assert (publish(store, **change).data_version == before) is same


@pytest.mark.parametrize(
    "text",
    [
        pytest.param(None, id="removed"),
        pytest.param("", id="empty"),
        pytest.param('{"asset": "train_', id="cut off"),
        pytest.param('{"asset": "train_set"}', id="fields missing"),
        pytest.param("[]", id="not an object"),
    ],
)
def test_without_a_valid_manifest_there_is_no_artifact(store: Store, text: str | None) -> None:
    manifest = publish(store).path / "manifest.json"
    if text is None:
        manifest.unlink()
    else:
        manifest.write_text(text, encoding="utf-8")
    assert store.find("train_set", FINGERPRINT) is None
    assert store.manifests("train_set") == []


def test_a_damaged_manifest_is_named_and_its_artifact_counts_as_absent(
    store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    made = publish(store, checks=(PASSED,))
    file = made.path / "manifest.json"
    whole = file.read_bytes()
    for content in list_damages(whole):
        file.write_bytes(content)
        assert store.find("train_set", FINGERPRINT) is None
        (named,) = read_names(caplog, file)
        assert named.endswith("; the artifact counts as absent.")
        file.write_bytes(whole)
        assert find(store) == made
    file.write_bytes(whole[:-5])
    publish(store, content="b\n")
    assert read_content(store) == "b\n"


def test_a_manifest_of_a_later_format_is_not_read(store: Store) -> None:
    file = publish(store).path / "manifest.json"
    manifest = json.loads(file.read_text(encoding="utf-8")) | {"format": 99}
    file.write_text(json.dumps(manifest), encoding="utf-8")
    assert store.find("train_set", FINGERPRINT) is None


@pytest.mark.parametrize("name", ["rows.txt", "meta/report.txt"])
@pytest.mark.parametrize("text", ["changed\n", "b\n", None])
def test_a_changed_or_removed_file_is_named_with_both_hashes(
    store: Store, name: str, text: str | None
) -> None:
    file = publish(store, asset="other/train_set").path / name
    expected = sha256(file.read_text(encoding="utf-8"))
    if text is None:
        file.unlink()
    else:  # "b\n" is as long as the original
        file.write_text(text, encoding="utf-8")
    with pytest.raises(DamagedArtifact) as caught:
        store.find("other/train_set", FINGERPRINT)
    found = "no file" if text is None else sha256(text)
    assert str(caught.value) == (
        f"{file}: damaged. Expected sha256 {expected}, found {found}. It is not used."
    )


def test_a_touched_file_is_hashed_again_and_its_stamp_renewed(store: Store) -> None:
    made = publish(store)
    os.utime(made.path / "rows.txt", ns=(1, 1_000_000_001))
    assert find(store) == made
    stamps = json.loads((made.path / STAMP).read_text(encoding="utf-8"))
    assert stamps["rows.txt"] == [2, 1_000_000_001, sha256("a\n")]


def test_a_file_of_the_size_and_time_in_its_stamp_is_not_read_again(store: Store) -> None:
    file = publish(store).path / "rows.txt"
    times = (file.stat().st_atime_ns, file.stat().st_mtime_ns)
    file.write_text("b\n", encoding="utf-8")
    os.utime(file, ns=times)
    assert store.find("train_set", FINGERPRINT) is not None
    (file.parent / STAMP).unlink()
    with pytest.raises(DamagedArtifact):
        store.find("train_set", FINGERPRINT)


def test_a_copied_store_is_valid_elsewhere(store: Store, tmp_path: Path) -> None:
    publish(store)
    copied = tmp_path / "elsewhere"
    shutil.copytree(store.root, copied, copy_function=shutil.copy)  # other times than the stamps
    assert find(Store(copied)).path == copied / "train_set" / FINGERPRINT


def test_a_rebuilt_artifact_takes_the_place_of_the_old_one(store: Store) -> None:
    publish(store, content="old\n")
    publish(store, content="new\n")
    assert read_content(store) == "new\n"
    assert list_folders(store) == [FINGERPRINT]


def test_a_rebuild_that_fails_leaves_the_old_artifact(store: Store) -> None:
    publish(store, content="old\n")
    with pytest.raises(ZeroDivisionError), store.draft("train_set", ASKED, {}):
        _ = 1 / 0
    assert read_content(store) == "old\n"
    assert list_folders(store) == [FINGERPRINT]


def leave_draft(store: Store, fingerprint: str = FINGERPRINT) -> Path:
    """Leave a draft as a killed process does."""
    folder = store.root / "train_set" / f"{fingerprint}{DRAFT_MARK}0123abcd"
    (folder / "meta").mkdir(parents=True)
    (folder / "rows.txt").write_text("half", encoding="utf-8")
    return folder


def test_what_a_process_killed_while_it_built_left_is_cleared(store: Store) -> None:
    leave_draft(store)
    assert store.find("train_set", FINGERPRINT) is None
    with store.lock("train_set", FINGERPRINT):
        assert list_folders(store) == []


def test_an_artifact_whose_replacement_was_killed_between_two_renames_is_put_back(
    store: Store,
) -> None:
    final = publish(store, content="old\n").path
    final.rename(final.with_name(f"{FINGERPRINT}{REPLACED_MARK}0123abcd"))
    leave_draft(store)
    assert store.find("train_set", FINGERPRINT) is None
    with store.lock("train_set", FINGERPRINT):
        assert read_content(store) == "old\n"
    assert list_folders(store) == [FINGERPRINT]


def test_a_replaced_artifact_that_a_kill_left_beside_the_new_one_is_cleared(store: Store) -> None:
    old = publish(store, content="old\n").path
    kept = old.rename(old.with_name(f"{FINGERPRINT}{REPLACED_MARK}0123abcd"))
    shutil.copytree(kept, store.root / "kept")
    publish(store, content="new\n")
    shutil.copytree(store.root / "kept", kept)
    with store.lock("train_set", FINGERPRINT):
        assert read_content(store) == "new\n"
    assert list_folders(store) == [FINGERPRINT]


def test_the_draft_of_another_fingerprint_is_left_alone(store: Store) -> None:
    other = leave_draft(store, "f" * 32)
    with store.lock("train_set", FINGERPRINT):
        assert other.is_dir()


CHILD = """
import logging, sys, time
from pathlib import Path
from ft_pipeline.store.artifacts import Ingredients
from ft_pipeline.store.store import Store

logging.basicConfig(stream=sys.stdout, level=logging.INFO, format="%(message)s")
store, asked = Store(Path(sys.argv[1])), Ingredients(
    code_version="1", settings={"side": "train"}, inputs={}, libraries={}
)
"""
HOLD = """
with store.lock("train_set", asked.fingerprint):
    print("held", time.monotonic(), flush=True)
    time.sleep(600)
"""
REPLACE = """
with store.lock("train_set", asked.fingerprint):
    print("held", flush=True)
    for turn in range(100_000):
        with store.draft("train_set", asked, {}) as draft:
            (draft.path / "rows.txt").write_text(f"{turn}\\n" * 100)
            store.publish(draft, [], run_id="a run")
"""


def start_child(store: Store, script: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", CHILD + script, str(store.root)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def read_line(child: subprocess.Popen[str]) -> str:
    assert child.stdout is not None
    return child.stdout.readline().strip()


def end(child: subprocess.Popen[str]) -> None:
    child.kill()
    child.communicate(timeout=30)


def test_a_second_process_waits_until_the_owner_of_the_lock_is_killed(store: Store) -> None:
    owner = start_child(store, HOLD)
    try:
        assert read_line(owner).startswith("held ")
        second = start_child(store, HOLD)
        try:
            waiting = f"waiting: another process is building train_set ({FINGERPRINT})"
            assert read_line(second) == waiting
            time.sleep(0.3)
            killed_at = time.monotonic()  # one clock for all processes of a machine
            owner.send_signal(signal.SIGKILL)
            word, held_at = read_line(second).split()
            assert word == "held"
            assert float(held_at) > killed_at
        finally:
            end(second)
    finally:
        end(owner)


def test_another_fingerprint_is_not_locked(store: Store) -> None:
    owner = start_child(store, HOLD)
    try:
        assert read_line(owner).startswith("held ")
        with store.lock("train_set", "f" * 32), store.lock("val_set", FINGERPRINT):
            pass
    finally:
        end(owner)


@pytest.mark.parametrize("seconds", [0.0, 0.02, 0.05, 0.11])
def test_a_process_killed_while_it_replaces_an_artifact_leaves_a_whole_one(
    store: Store, seconds: float
) -> None:
    publish(store, content="0\n" * 100)
    child = start_child(store, REPLACE)
    assert read_line(child) == "held"
    time.sleep(seconds)
    end(child)
    with store.lock("train_set", FINGERPRINT):
        lines = read_content(store).splitlines()
    assert len(lines) == 100
    assert len(set(lines)) == 1
    assert list_folders(store) == [FINGERPRINT]


def test_failed_checks_are_those_that_block(store: Store) -> None:
    made = publish(store, checks=(PASSED, WARNED, FAILED))
    assert made.failed_checks == [FAILED]
    assert find(store).failed_checks == [FAILED]


def test_recomputed_checks_are_stored_and_the_content_stays(store: Store) -> None:
    made = publish(store, checks=(FAILED,))
    now = FAILED.model_copy(update={"version": "2", "passed": True})
    store.replace_checks(made, [now])
    assert find(store).manifest == made.manifest.model_copy(update={"checks": [now]})


def test_manifests_come_the_newest_first(store: Store) -> None:
    for version, time_made in (("1", "2026-01-01"), ("2", "2026-01-03"), ("3", "2026-01-02")):
        asked = ASKED.model_copy(update={"code_version": version})
        file = publish(store, asked=asked).path / "manifest.json"
        manifest = json.loads(file.read_text(encoding="utf-8")) | {"created_at": time_made}
        file.write_text(json.dumps(manifest), encoding="utf-8")
    versions = [m.ingredients.code_version for m in store.manifests("train_set")]
    assert versions == ["2", "3", "1"]


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"code_version": "2"}, ["code version: 1 → 2"]),
        ({"settings": {"side": "val"}}, ["setting side: train → val"]),
        ({"settings": {}}, ["setting side: train → none"]),
        ({"inputs": {"base_model": "77e1"}}, ["content of input base_model changed"]),
        ({"libraries": {"torch": "2.14"}}, ["library torch: none → 2.14"]),
        ({}, []),
    ],
)
def test_differences_name_each_ingredient(change: dict[str, object], expected: list[str]) -> None:
    assert ASKED.model_copy(update=change).differences(ASKED) == expected


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A real file system of 2 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=2m", "none", str(folder)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("needs the right to mount a tmpfs")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def fill(folder: Path) -> None:
    """Take all the space that is left."""
    with pytest.raises(OSError, match="No space left"), (folder / "filler").open("wb") as file:
        while True:
            file.write(bytes(4096))
            file.flush()


def test_a_full_disk_while_content_is_written_loses_nothing(small_disk: Path) -> None:
    store = Store(small_disk / "store")
    publish(store, content="old\n")
    with pytest.raises(PipelineError) as caught:
        publish(store, content="x" * 4_000_000)  # 4 MB on a disk of 2 MB
    message = str(caught.value)
    assert "no space left on the disk" in message
    assert "Free some space, or set FT_STORE to a folder on a larger disk" in message
    assert read_content(store) == "old\n"
    assert list_folders(store) == [FINGERPRINT]


def test_a_disk_that_is_full_when_the_manifest_is_written_loses_nothing(small_disk: Path) -> None:
    store = Store(small_disk / "store")
    publish(store, content="old\n")
    with (
        pytest.raises(PipelineError, match="no space left on the disk"),
        store.draft("train_set", ASKED, {}) as draft,
    ):
        (draft.path / "rows.txt").write_text("new\n", encoding="utf-8")
        fill(small_disk)
        store.publish(draft, [], run_id="a run")
    assert read_content(store) == "old\n"
    assert list_folders(store) == [FINGERPRINT]


def test_on_a_full_disk_what_is_there_can_be_read(small_disk: Path) -> None:
    store = Store(small_disk / "store")
    made = publish(store)
    (made.path / STAMP).unlink()
    fill(small_disk)
    assert find(store) == made


@pytest.mark.parametrize("stamped", [True, False])
def test_a_read_only_store_can_be_read(small_disk: Path, stamped: bool) -> None:
    store = Store(small_disk / "store")
    made = publish(store)
    if not stamped:
        (made.path / STAMP).unlink()
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    assert find(store) == made


def test_a_read_only_store_is_not_written_and_says_so(small_disk: Path) -> None:
    store = Store(small_disk / "store")
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    for opened in (store.draft("train_set", ASKED, {}), store.lock("train_set", FINGERPRINT)):
        with pytest.raises(PipelineError) as caught, opened:
            pass
        message = str(caught.value)
        assert message.startswith(str(small_disk))
        assert "cannot be written (Read-only file system)" in message
        assert "set FT_STORE to a writable folder" in message


def test_a_store_below_a_regular_file_is_empty_and_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    store = Store(tmp_path / "file" / "store")
    assert store.find("train_set", FINGERPRINT) is None
    assert store.manifests("train_set") == []
    for opened in (store.draft("train_set", ASKED, {}), store.lock("train_set", FINGERPRINT)):
        with pytest.raises(PipelineError, match=r"cannot be written \(Not a directory\)"), opened:
            pass
