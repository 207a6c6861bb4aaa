"""The drop folder `data/incoming/<source>/`: more files of any source, part of its revision.

Unproven here: network mounts, whose modification times can lie.
"""

from pathlib import Path

import pytest

from ft_pipeline.base.errors import PipelineError
from ft_pipeline.config.sources import AnySource, FilesSource, KaggleSource, UrlSource
from ft_pipeline.sources.upstream import Fetched, fetch, read_revision, resolve_revision
from ft_pipeline_tests.sources.conftest import CSV, FILES, read_tree
from ft_pipeline_tests.sources.hosts import HANDLE, Kaggle, Web, serving

ROW = b"question,answer\nMine?,Yes\n"
KAGGLE = KaggleSource(kind="kaggle", handle=HANDLE, sample="samples/quiz.csv")
CSV_FILES = {name: content for name, content in FILES.items() if name.endswith(".csv")}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A project with a sample, and files dropped for another source."""
    root = tmp_path / "project"
    write(root / "samples/quiz.csv", CSV)
    write(root / "data/incoming/another/other.csv", ROW)
    return root


def write(file: Path, content: bytes) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(content)


def drop(root: Path, name: str, content: bytes = ROW) -> None:
    write(root / "data/incoming/quiz" / name, content)


def read(source: AnySource, root: Path, use_sample: bool = False) -> str:
    return str(read_revision("quiz", source, root, root / "store", use_sample))


def get(source: AnySource, root: Path, revision: str, use_sample: bool = False) -> Fetched:
    return fetch("quiz", source, revision, root, root / "raw", use_sample)


def test_dropped_files_join_what_was_downloaded(kaggle: Kaggle, root: Path) -> None:
    drop(root, "extra.csv")
    drop(root, "mine/more.csv", ROW * 2)
    revision = resolve_revision("quiz", KAGGLE, root, root / "store")
    assert revision == read(KAGGLE, root)
    fetched = get(KAGGLE, root, revision)
    expected = {"incoming/extra.csv": ROW, "incoming/mine/more.csv": ROW * 2}
    assert read_tree(root / "raw") == CSV_FILES | expected
    assert set(fetched.files) == set(CSV_FILES | expected)
    assert fetched.revision == revision


def test_dropped_files_join_the_sample(root: Path) -> None:
    drop(root, "extra.csv")
    get(KAGGLE, root, read(KAGGLE, root, use_sample=True), use_sample=True)
    assert read_tree(root / "raw") == {"quiz.csv": CSV, "incoming/extra.csv": ROW}


def test_dropped_files_join_a_file_of_the_web(clean_environment: Path, root: Path) -> None:
    with serving(Web({"/a.csv": CSV})) as host:
        source = UrlSource(kind="url", url=f"http://127.0.0.1:{host.port}/a.csv")
        drop(root, "a.csv")
        get(source, root, resolve_revision("quiz", source, root, root / "store"))
    assert read_tree(root / "raw") == {"a.csv": CSV, "incoming/a.csv": ROW}


def test_dropped_files_do_not_collide_with_fetched_ones(kaggle: Kaggle, root: Path) -> None:
    kaggle.files = {"incoming/a.csv": CSV, "incoming_": b"", "b.csv": CSV}
    drop(root, "a.csv")
    source = KAGGLE.model_copy(update={"files": ("*",)})
    get(source, root, resolve_revision("quiz", source, root, root / "store"))
    assert read_tree(root / "raw") == kaggle.files | {"incoming__/a.csv": ROW}


def read_all(root: Path) -> dict[str, str]:
    return {
        "download": read(KAGGLE, root),
        "sample": read(KAGGLE, root, use_sample=True),
        "folder": read(FilesSource(kind="files", path="samples"), root),
    }


@pytest.fixture
def revisions(kaggle: Kaggle, root: Path) -> dict[str, str]:
    """The revisions of a download, of a sample and of a folder where nothing was dropped."""
    resolve_revision("quiz", KAGGLE, root, root / "store")
    return read_all(root)


def test_revision_is_that_of_upstream_where_nothing_was_dropped(
    revisions: dict[str, str], root: Path
) -> None:
    assert revisions["download"] == "3"
    assert revisions["sample"].removeprefix("sha256:").isalnum()
    (root / "data/incoming/quiz").mkdir()
    assert read_all(root) == revisions


def test_revision_follows_the_dropped_files(revisions: dict[str, str], root: Path) -> None:
    seen = [revisions]
    drop(root, "a.csv")
    seen.append(read_all(root))
    drop(root, "a.csv", ROW.replace(b"Yes", b"Not"))  # as long as before
    seen.append(read_all(root))
    (root / "data/incoming/quiz/a.csv").rename(root / "data/incoming/quiz/b.csv")
    seen.append(read_all(root))
    for kind in revisions:
        assert len({revision[kind] for revision in seen}) == len(seen)
        assert all(r[kind].startswith(f"{revisions[kind]}+incoming:") for r in seen[1:])
    (root / "data/incoming/quiz/b.csv").unlink()
    assert read_all(root) == revisions


@pytest.mark.parametrize(
    "name", [".hidden.csv", ".folder/a.csv", "a.csv.part", "a.csv.tmp", "a.csv~"]
)
def test_hidden_and_unfinished_files_are_not_there(
    revisions: dict[str, str], root: Path, name: str
) -> None:
    drop(root, name)
    assert read_all(root) == revisions
    drop(root, "b.csv")
    get(KAGGLE, root, read(KAGGLE, root))
    assert read_tree(root / "raw") == CSV_FILES | {"incoming/b.csv": ROW}


@pytest.mark.parametrize("path", ["data/incoming/quiz", "data/incoming", "data/**/*.csv"])
def test_a_source_that_reads_the_drop_folder_reads_it_once(root: Path, path: str) -> None:
    drop(root, "a.csv")
    source = FilesSource(kind="files", path=path)
    get(source, root, read(source, root))
    found = read_tree(root / "raw")
    assert [name for name in found if name.endswith("a.csv")] == [
        "a.csv"
        if path.endswith("quiz")
        else "quiz/a.csv"
        if "*" not in path
        else "incoming/quiz/a.csv"
    ]


@pytest.mark.parametrize("unfinished", ["a.csv.part", "a.csv.tmp", "a.csv~"])
def test_a_folder_source_waits_for_what_is_still_being_written(root: Path, unfinished: str) -> None:
    write(root / "mine" / unfinished, ROW)
    source = FilesSource(kind="files", path="mine")
    with pytest.raises(PipelineError, match="no file found"):
        read(source, root)
    (root / "mine" / unfinished).rename(root / "mine/a.csv")
    assert read(source, root)


@pytest.mark.parametrize("changed", ["dropped", "sample", "folder", "new file"])
def test_a_file_that_changes_before_it_is_copied_is_caught(
    revisions: dict[str, str], root: Path, changed: str
) -> None:
    source: AnySource = KAGGLE
    use_sample = changed != "folder"
    if changed == "folder":
        source = FilesSource(kind="files", path="samples")
    drop(root, "a.csv")
    revision = read(source, root, use_sample)
    if changed in ("dropped", "new file"):
        drop(root, "a.csv" if changed == "dropped" else "b.csv", ROW * 3)
    else:
        write(root / "samples/quiz.csv", CSV * 2)
    with pytest.raises(PipelineError) as caught:
        get(source, root, revision, use_sample)
    where = "data/incoming/quiz" if use_sample and changed != "sample" else "samples/quiz.csv"
    for text in ("source quiz:", where, "changed during the copy", "run again"):
        assert text in str(caught.value)
    assert read_tree(root / "raw") == {}
    get(source, root, read(source, root, use_sample), use_sample)


def test_a_file_dropped_after_the_revision_was_read_waits_for_the_next(
    revisions: dict[str, str], root: Path
) -> None:
    drop(root, "a.csv")
    get(KAGGLE, root, revisions["download"])
    assert read_tree(root / "raw") == CSV_FILES


def test_a_fetched_folder_of_the_pipelines_own_name_is_refused(kaggle: Kaggle, root: Path) -> None:
    kaggle.files = {"meta/a.csv": CSV}
    with pytest.raises(PipelineError) as caught:
        get(KAGGLE, root, "3")
    assert "source quiz: meta/a.csv is in a folder `meta`" in str(caught.value)
    assert "`quiz.files`" in str(caught.value)
    assert read_tree(root / "raw") == {}
