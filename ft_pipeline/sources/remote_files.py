"""Files at an fsspec address, such as `s3://bucket/folder/*.csv` or `gs://bucket/a.jsonl`.

The revision is a hash over each file's name and what its storage offers to distinguish contents: an
ETag or checksum, otherwise size and modification time, otherwise the hash of the content. Logins
are the drivers' usual ones (for S3: AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or ~/.aws).
"""

import hashlib
import re
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from ft_pipeline.base.errors import PipelineError
from ft_pipeline.base.hashing import hash_json
from ft_pipeline.base.network.answers import SAMPLE
from ft_pipeline.base.network.secrets import hide_login
from ft_pipeline.base.network.storages import explain_storage, explained
from ft_pipeline.config.sources import FilesSource
from ft_pipeline.sources.files import finished

# How storages name what changes with a file's content (S3, Google, Azure, WebDAV; then times).
MARKS = ("ETag", "etag", "md5Hash", "crc32c", "md5", "checksum", "generation")
TIMES = ("LastModified", "last_modified", "mtime", "updated", "modified")


def is_remote(path: str) -> bool:
    """Say whether a declared path is an fsspec address."""
    return re.match(r"[a-z][a-z0-9+.-]*://", path) is not None


def resolve_revision(name: str, source: FilesSource) -> str:
    """Return the revision of the current content. Raises PipelineError with the remedy."""
    with _explained(name, source):
        filesystem, path = _connect(source)
        return _revision(filesystem, _list(name, source, filesystem, path))


def download(name: str, source: FilesSource, revision: str, folder: Path) -> None:
    """Download the files of one revision, unchanged, into `folder`, which is scratch.

    Raises PipelineError with the remedy, also if the address now holds another revision or changes
    during the download.
    """
    with _explained(name, source):
        filesystem, path = _connect(source)
        files = _list(name, source, filesystem, path)
        if _revision(filesystem, files) != revision:
            raise _moved_on(name, source)
        for relative, info in files.items():
            target = folder / relative
            target.parent.mkdir(parents=True, exist_ok=True)
            filesystem.get_file(info["name"], str(target))
            if info.get("size") not in (None, target.stat().st_size):
                raise ConnectionError(f"{relative} is incomplete")
        if _revision(filesystem, _list(name, source, filesystem, path)) != revision:
            raise _moved_on(name, source)


def _connect(source: FilesSource) -> tuple[Any, str]:
    from fsspec.core import url_to_fs

    filesystem, path = url_to_fs(source.path)
    return filesystem, str(path).rstrip("/")


def _list(name: str, source: FilesSource, filesystem: Any, path: str) -> dict[str, dict[str, Any]]:
    """Return what the storage reports for each file, by relative name. Raises PipelineError."""
    filesystem.invalidate_cache()
    base = path
    if any(c in path for c in "*?["):
        base = re.split(r"[^/]*[*?\[]", path, maxsplit=1)[0].rstrip("/")
        found = filesystem.glob(path, detail=True)
    elif filesystem.isfile(path):
        base = path.rpartition("/")[0]
        found = {path: filesystem.info(path)}
    else:
        found = filesystem.find(path, detail=True)
    names = {key: key.removeprefix(base).strip("/") for key in found}
    files = {names[key]: info for key, info in sorted(found.items()) if info["type"] == "file"}
    listed = {n: info for n, info in finished(files).items() if _is_plain(n)}
    if not listed:
        raise PipelineError(
            f"source {name}: {hide_login(source.path)} has no files. Expected a file, a folder "
            f"with files, or a glob pattern that matches files. Change `{name}.path` in "
            f"sources.yaml. {SAMPLE}"
        )
    return listed


def _is_plain(name: str) -> bool:
    """Say whether a name leads downwards without hidden parts; `..` counts as hidden."""
    return all(part and not part.startswith(".") for part in name.split("/"))


def _revision(filesystem: Any, files: dict[str, dict[str, Any]]) -> str:
    return "files:" + hash_json({n: _mark(filesystem, info) for n, info in files.items()})


def _mark(filesystem: Any, info: dict[str, Any]) -> str:
    for key in MARKS:
        if info.get(key):
            return f"{key} {info[key]}"
    for key in TIMES:
        if info.get(key):
            return f"{info.get('size')} {info[key]}"
    with filesystem.open(info["name"], "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _moved_on(name: str, source: FilesSource) -> PipelineError:
    return PipelineError(
        f"source {name}: {hide_login(source.path)} has changed since its revision was recorded. "
        f"To build from what is there now: ft-pipeline refresh {name}"
    )


def _explained(name: str, source: FilesSource) -> AbstractContextManager[None]:
    return explained(lambda error: _explain(name, source, error))


def _explain(name: str, source: FilesSource, error: Exception) -> PipelineError:
    problem, remedy = explain_storage(source.path, error)
    if isinstance(error, FileNotFoundError):
        remedy = f"Check the bucket and path in `{name}.path` in sources.yaml"
    where = hide_login(source.path)
    return PipelineError(f"source {name}: {where} {problem}. {remedy}. {SAMPLE}")
