"""Local files: find those that a source names, and copy them completely."""

import shutil
from collections.abc import Iterable
from fnmatch import fnmatch
from pathlib import Path
from typing import TypeVar

from ft_pipeline.base.errors import PipelineError
from ft_pipeline.base.hashing import (
    FileEntry,
    hash_file,
)

UNFINISHED = (".part", ".tmp", "~")
FoundT = TypeVar("FoundT")


def list_local_files(declared: str, root: Path) -> dict[str, Path]:
    """Return the files of a file, folder or glob pattern, by their names in the artifact.

    `declared` is absolute or relative to `root`. Raises PipelineError if nothing is found.
    """
    written = Path(declared).expanduser()
    path = root / written
    if path.is_file():
        return {path.name: path}
    base = path if path.is_dir() else root / _fixed_part(written)
    pattern = path.relative_to(base).as_posix()
    files = finished(list_folder(base, "**/*" if pattern == "." else pattern))
    if not files:
        raise PipelineError(
            f"{path}: no file found. Expected a file, a folder with files, or a glob pattern that "
            "matches files; paths in sources.yaml are relative to the project root."
        )
    return files


def list_folder(folder: Path, pattern: str = "**/*") -> dict[str, Path]:
    """Return the files below a folder by relative name, without hidden files or folders.

    Raises PipelineError if a name is not UTF-8.
    """
    found = {p.relative_to(folder): p for p in sorted(folder.glob(pattern)) if p.is_file()}
    for path in found.values():
        if not is_utf8(str(path)):
            raise PipelineError(
                f"{str(path)!r}: the file name is not UTF-8 (unpacked from an old archive?). "
                "Rename the file."
            )
    return {
        name.as_posix(): path
        for name, path in found.items()
        if not any(part.startswith(".") for part in name.parts)
    }


def is_utf8(text: str) -> bool:
    """Say whether a text can be encoded: file names may hold bytes that are not characters."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def finished(files: dict[str, FoundT]) -> dict[str, FoundT]:
    """Leave out files still being written: names ending in `.part`, `.tmp` or `~`."""
    return {name: file for name, file in files.items() if not name.endswith(UNFINISHED)}


def select_files(files: dict[str, FoundT], patterns: Iterable[str]) -> dict[str, FoundT]:
    """Return the files whose name matches a pattern, by the rules of the hub's client.

    `*` matches across folders; `data/` means all files below `data`.
    """
    globs = [f"{p}*" if p.endswith("/") else p for p in patterns]
    return {name: path for name, path in files.items() if any(fnmatch(name, g) for g in globs)}


def copy_files(files: dict[str, Path], folder: Path) -> None:
    """Copy files, unchanged, to their names below `folder`."""
    for name, path in files.items():
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)


def hash_tree(folder: Path) -> dict[str, FileEntry]:
    """Return sha256 and size of every file below a folder, by relative name."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {
        path.relative_to(folder).as_posix(): FileEntry(
            sha256=hash_file(path), bytes=path.stat().st_size
        )
        for path in files
    }


def move_files(names: Iterable[str], source: Path, target: Path) -> None:
    """Move files to the same names below another folder on the same disk."""
    for name in names:
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).replace(target / name)


def _fixed_part(pattern: Path) -> Path:
    """Return the longest leading folder of a glob pattern without a wildcard."""
    base = pattern
    while any(c in str(base) for c in "*?["):
        base = base.parent
    return base
