"""The drop folder: files that people put below `data/incoming/<source>/`, for any kind of source.

`data/incoming/trivia/mine/extra.csv` is read as another file of `trivia`; in the artifact, it is
`incoming/mine/extra.csv`. Hidden files and those still being written are ignored.

    revision "3"                              nothing was dropped
    revision "3+incoming:5d0c…"               the hash of the dropped files' names and contents
"""

from collections.abc import Iterable
from pathlib import Path

from ft_pipeline.base.errors import PipelineError
from ft_pipeline.base.file_hashes import hash_files
from ft_pipeline.base.hashing import hash_json
from ft_pipeline.sources.files import copy_files, finished, hash_tree, list_folder

FOLDER = Path("data") / "incoming"
MARK = "+incoming:"
PREFIX = "incoming"


def list_incoming(name: str, root: Path, own: Iterable[Path] = ()) -> dict[str, Path]:
    """Return a source's dropped files by relative name, without those it reads anyway."""
    folder = root / FOLDER / name
    if not folder.is_dir():
        return {}
    known = {path.resolve() for path in own}
    dropped = finished(list_folder(folder))
    return {n: path for n, path in dropped.items() if path.resolve() not in known}


def add_incoming(revision: str, files: dict[str, Path], stamp_file: Path) -> str:
    """Return the revision with the hash of dropped files, or unchanged if there are none."""
    if not files:
        return revision
    return revision + MARK + hash_json(hash_files(files, stamp_file))


def split_revision(revision: str) -> tuple[str, str | None]:
    """Return the upstream revision, and the hash of dropped files if there is one."""
    upstream, mark, incoming = revision.rpartition(MARK)
    return (upstream, incoming) if mark else (revision, None)


def copy_incoming(
    name: str, files: dict[str, Path], expected: str, taken: Iterable[str], folder: Path
) -> None:
    """Copy dropped files into a separate folder below `folder`.

    `taken` holds the names of the fetched files, which that folder must not contain. Raises
    PipelineError if the files do not have the hash `expected`.
    """
    prefix = _free_prefix(taken)
    copy_files({f"{prefix}/{n}": path for n, path in files.items()}, folder)
    check_unchanged(name, f"{FOLDER.as_posix()}/{name}", folder / prefix, expected)


def check_unchanged(name: str, where: str, copied: Path, expected: str) -> None:
    """Raise PipelineError if copied files do not have the hash `expected`."""
    if hash_json({n: entry.sha256 for n, entry in hash_tree(copied).items()}) != expected:
        raise changed(name, where)


def changed(name: str, where: str) -> PipelineError:
    """Return the error about a local file that changed since it was hashed."""
    return PipelineError(
        f"source {name}: {where} changed during the copy. Nothing was kept; run again when "
        "nothing writes there. If this error repeats, the file changed but kept its size and "
        "time: `touch` it."
    )


def _free_prefix(taken: Iterable[str]) -> str:
    tops = {name.split("/")[0] for name in taken}
    prefix = PREFIX
    while prefix in tops:
        prefix += "_"
    return prefix
