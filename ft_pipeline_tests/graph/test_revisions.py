"""What one machine has resolved reaches the others: pushed in the end, and never an older one."""

import json
from pathlib import Path
from typing import Any

import pytest

from ft_pipeline.base.project import Project
from ft_pipeline.config.sources import FilesSource
from ft_pipeline.graph.revisions import read_revision, resolve_revision
from ft_pipeline.sources import upstream
from ft_pipeline.store.upstream_record import UpstreamRecord
from ft_pipeline_tests.base.damages import list_damages, read_names


@pytest.fixture
def source(tmp_path: Path) -> FilesSource:
    """A source behind an address, which is asked as one of a network is."""
    (tmp_path / "a.csv").write_text("question\n", encoding="utf-8")
    return FilesSource(kind="files", path=f"file://{tmp_path}/a.csv")


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return Project(tmp_path, tmp_path / "store", str(tmp_path / "remote"))


def read_json(folder: Path) -> dict[str, Any]:
    record: dict[str, Any] = json.loads((folder / "upstream/quiz.json").read_text("utf-8"))
    return record


def test_a_record_says_until_it_is_pushed_that_it_is_not(
    project: Project, source: FilesSource
) -> None:
    remote = Path(str(project.remote))
    resolve_revision(project, "quiz", source, push=False)
    assert read_json(project.store)["unpushed"] == "replace"
    assert not remote.exists()
    revision = read_revision(project, "quiz", source)
    record = read_json(project.store)
    assert record == read_json(remote)
    assert set(record) == {"source", "asked", "revision"}
    assert record["revision"] == revision


@pytest.mark.parametrize(("remote", "kept"), [(None, "theirs"), ("remote", "ours")])
def test_what_was_resolved_without_a_remote_replaces_nothing_there(
    project: Project, source: FilesSource, remote: str | None, kept: str
) -> None:
    theirs = Project(project.root, project.root / "theirs", project.remote)
    revisions = {"theirs": resolve_revision(theirs, "quiz", source)}
    (project.root / "a.csv").write_text("question,answer\n", encoding="utf-8")
    alone = Project(project.root, project.store, remote and project.remote)
    revisions["ours"] = resolve_revision(alone, "quiz", source, push=False)
    assert read_revision(project, "quiz", source) == revisions["ours"]
    assert read_json(Path(str(project.remote)))["revision"] == revisions[kept]
    assert "unpushed" not in read_json(project.store)


def test_what_is_resolved_while_another_is_pushed_stays_to_be_pushed(
    project: Project, source: FilesSource
) -> None:
    resolve_revision(project, "quiz", source, push=False)
    older = upstream.read_record("quiz", source, project.store)
    assert older is not None
    (project.root / "a.csv").write_text("question,answer\n", encoding="utf-8")
    newer = resolve_revision(project, "quiz", source, push=False)
    upstream.mark_pushed(older, project.store)  # its push has ended only now
    assert read_json(project.store)["unpushed"] == "replace"
    read_revision(project, "quiz", source)
    assert read_json(Path(str(project.remote)))["revision"] == newer


def test_a_damaged_record_is_taken_from_the_remote_again(
    project: Project, source: FilesSource, caplog: pytest.LogCaptureFixture
) -> None:
    revision = resolve_revision(project, "quiz", source)
    file = project.store / "upstream/quiz.json"
    whole = file.read_bytes()
    (project.root / "a.csv").unlink()  # there is nothing to ask any more
    file.write_bytes(whole[:50])
    assert read_revision(project, "quiz", source) == revision
    assert len(read_names(caplog, file)) == 1
    assert file.read_bytes() == whole


def test_a_damaged_record_of_the_remote_is_named_and_written_anew(
    project: Project, source: FilesSource, caplog: pytest.LogCaptureFixture
) -> None:
    resolve_revision(project, "quiz", source)
    there = Path(str(project.remote)) / "upstream/quiz.json"
    whole = there.read_bytes()
    other = Project(project.root, project.root / "other", project.remote)
    for content in list_damages(whole):
        there.write_bytes(content)
        assert read_revision(other, "quiz", source) is None
        (named,) = read_names(caplog, there)
        assert named.endswith("; the record counts as absent")
    there.write_bytes(whole[:-4])
    resolve_revision(other, "quiz", source)
    assert there.read_bytes() == whole


def test_a_record_of_a_later_version_is_read() -> None:
    record = {"source": "quiz", "asked": {}, "revision": "3", "resolved_by": "you"}
    assert UpstreamRecord.model_validate(record).revision == "3"
