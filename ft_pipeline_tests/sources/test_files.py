"""Sources of kind `files`: which files a declaration names, and what is said where it names none.

Unproven here: other file systems' rules (names that differ by case alone, network mounts).
"""

from pathlib import Path

import pytest

from ft_pipeline.base.errors import PipelineError
from ft_pipeline.config.sources import FilesSource
from ft_pipeline.sources.files import list_local_files
from ft_pipeline.sources.upstream import fetch, read_revision, resolve_revision
from ft_pipeline_tests.sources.conftest import read_tree

CONTENT = {
    "data/a.csv": b"question,answer\n",
    "data/deep/b.csv": b"question,answer\nWho?,Me\n",
    "data/c.jsonl": b"{}\n",
    "data/.hidden.csv": b"",
    "data/.ipynb_checkpoints/a-checkpoint.csv": b"old\n",
}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A project's root whose own name looks like a glob pattern."""
    root = tmp_path / "project [1]"
    for name, content in CONTENT.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)
    return root


@pytest.mark.parametrize(
    ("declared", "expected"),
    [
        ("data/a.csv", {"a.csv"}),
        ("data", {"a.csv", "deep/b.csv", "c.jsonl"}),
        ("data/*.csv", {"a.csv"}),
        ("data/**/*.csv", {"a.csv", "deep/b.csv"}),
        ("*/deep", None),
        ("*/deep/*", {"data/deep/b.csv"}),
        ("data/.ipynb_checkpoints/*.csv", {"a-checkpoint.csv"}),
        ("data/../data/a.*", {"a.csv"}),
        ("data/missing.csv", None),
        ("missing/*.csv", None),
        ("data/*.parquet", None),
    ],
)
@pytest.mark.parametrize("absolute", [False, True], ids=["relative", "absolute"])
def test_what_a_declaration_names(
    root: Path, declared: str, expected: set[str] | None, absolute: bool
) -> None:
    # An absolute pattern may hold wildcards anywhere, so its folder has a plain name here.
    if absolute:
        root = root.rename(root.with_name("plain"))
        declared = str(root / declared)
    if expected is None:
        with pytest.raises(PipelineError, match="no file found") as caught:
            list_local_files(declared, root)
        assert str(root) in str(caught.value)
        assert "paths in sources.yaml are relative to the project root" in str(caught.value)
    else:
        found = list_local_files(declared, root)
        assert set(found) == expected
        assert all(path.is_file() for path in found.values())


def test_files_are_copied_whole_under_their_names(root: Path, tmp_path: Path) -> None:
    source = FilesSource(kind="files", path="data")
    revision = resolve_revision("quiz", source, root, tmp_path / "store")
    fetch("quiz", source, revision, root, tmp_path / "raw", use_sample=False)
    assert read_tree(tmp_path / "raw") == {
        name: CONTENT[f"data/{name}"] for name in ("a.csv", "deep/b.csv", "c.jsonl")
    }


@pytest.mark.parametrize("change", ["content", "name", "new file", "removed file"])
def test_revision_follows_what_the_declaration_names(
    root: Path, tmp_path: Path, change: str
) -> None:
    source, store = FilesSource(kind="files", path="data"), tmp_path / "store"
    before = read_revision("quiz", source, root, store, use_sample=False)
    assert before == read_revision("quiz", source, root, store, use_sample=False)
    file = root / "data/a.csv"
    if change == "content":
        file.write_bytes(b"question,ANSWER\n")  # as long as before
    elif change == "name":
        file.rename(root / "data/renamed.csv")
    elif change == "new file":
        (root / "data/new.csv").write_bytes(b"")
    else:
        file.unlink()
    after = read_revision("quiz", source, root, store, use_sample=False)
    assert after != before
    assert resolve_revision("quiz", source, root, store) == after


def test_revision_ignores_hidden_files(root: Path, tmp_path: Path) -> None:
    source, store = FilesSource(kind="files", path="data"), tmp_path / "store"
    before = read_revision("quiz", source, root, store, use_sample=False)
    (root / "data/.ipynb_checkpoints/a-checkpoint.csv").write_bytes(b"older\n")
    assert read_revision("quiz", source, root, store, use_sample=False) == before
