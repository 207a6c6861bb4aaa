"""The upstream revision of a source, and its files.

A revision is a Kaggle version, a hub commit, an ETag, or the hash of local files; dropped files
(incoming.py) are part of it. What was last resolved from the network lies in
`<store>/upstream/<source>.json`, for example

    {"source": "cot", "asked": {"kind": "huggingface", "id": "…"}, "revision": "9f1c…"}

and moves only by `refresh`, so that every machine that shares a store computes the same
fingerprints.
"""

import json
import tempfile
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ft_pipeline.base.errors import PipelineError
from ft_pipeline.base.file_hashes import hash_files
from ft_pipeline.base.hashing import (
    META,
    FileEntry,
    hash_file,
    hash_json,
)
from ft_pipeline.base.json_files import replace_json
from ft_pipeline.base.network.secrets import hide_login, hide_secrets, record_address
from ft_pipeline.config.sources import (
    AnySource,
    FilesSource,
    HuggingFaceSource,
    KaggleSource,
    UrlSource,
)
from ft_pipeline.sources import huggingface, kaggle, remote_files, url
from ft_pipeline.sources.files import copy_files, hash_tree, list_local_files, move_files
from ft_pipeline.sources.incoming import (
    add_incoming,
    changed,
    copy_incoming,
    list_incoming,
    split_revision,
)

# Declared fields that do not decide which bytes are fetched, but how they are read or described.
HOW_READ = {"identity", "format", "columns", "aliases"}
READING = {"description", "licence", "sample", "observe_every", *HOW_READ}


@dataclass(frozen=True)
class Fetched:
    """What was fetched: `files` holds sha256 and size in bytes by name in the artifact."""

    revision: str
    licence: str
    fetched_at: str  # ISO 8601, UTC
    files: dict[str, FileEntry]


def describe_request(source: AnySource) -> dict[str, Any]:
    """Return the declared fields that decide which bytes are fetched, without any login."""
    # As JSON holds it: a tuple would never equal the list that was read back from the record.
    asked = source.model_dump(mode="json", exclude=READING)
    if isinstance(source, UrlSource):
        del asked["max_bytes"]
        asked["url"] = record_address(source.url, hide_secrets(source.url))
    elif isinstance(source, FilesSource):
        asked["path"] = record_address(source.path, hide_login(source.path))
    elif isinstance(source, HuggingFaceSource):
        # Younger than the other fields: what was built without them stays valid.
        younger = ("config", "split")
        asked = {k: v for k, v in asked.items() if k not in younger or v is not None}
    return asked


def describe_reading(source: AnySource) -> dict[str, Any]:
    """Return the declared fields that decide how a source's files are read, defaults left out."""
    return source.model_dump(mode="json", include=HOW_READ, exclude_defaults=True)


def read_revision(
    name: str, source: AnySource, root: Path, store: Path, use_sample: bool
) -> str | None:
    """Return the revision to build, without the network; None where none was resolved yet.

    Raises PipelineError where a local file is missing.
    """
    own = _local_files(name, source, root, use_sample)
    if own is None:
        revision = _pinned(source) or _recorded(name, source, store)
    elif use_sample:
        revision = "sha256:" + hash_file(sample_file(name, source, root))
    else:
        stamps = store / "upstream" / f"{name}.stamp.json"
        revision = "sha256:" + hash_json(hash_files(own, stamps))
    if revision is None:
        return None
    dropped = list_incoming(name, root, (own or {}).values())
    return add_incoming(revision, dropped, store / "upstream" / f"{name}.incoming.stamp.json")


def resolve_revision(name: str, source: AnySource, root: Path, store: Path) -> str:
    """Ask upstream for the newest revision and record it. Raises PipelineError with the remedy.

    Returns what read_revision returns from now on.
    """
    if isinstance(source, HuggingFaceSource):
        _write_record(name, source, store, huggingface.resolve_commit(name, source))
    elif isinstance(source, KaggleSource):
        newest = source.version or kaggle.resolve_version(name, source)
        _write_record(name, source, store, str(newest))
    elif isinstance(source, UrlSource):
        _write_record(name, source, store, url.resolve_revision(name, source))
    elif remote_files.is_remote(source.path):
        _write_record(name, source, store, remote_files.resolve_revision(name, source))
    return str(read_revision(name, source, root, store, use_sample=False))


def read_record(name: str, source: AnySource, store: Path) -> dict[str, Any] | None:
    """Return what was last resolved for just this declaration, if anything was."""
    try:
        record: dict[str, Any] = json.loads(_record(name, store).read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return None
    return record if record["asked"] == describe_request(source) else None


def adopt_record(name: str, source: AnySource, store: Path, record: dict[str, Any]) -> bool:
    """Record what another machine has resolved; False where it is of another declaration."""
    revision = record.get("revision")
    if record.get("asked") != describe_request(source) or not isinstance(revision, str):
        return False
    _write_record(name, source, store, revision)
    return True


def is_local(source: AnySource) -> bool:
    """Say whether a source is files of this machine, which are looked at without a network."""
    return isinstance(source, FilesSource) and not remote_files.is_remote(source.path)


def fetch(
    name: str, source: AnySource, revision: str, root: Path, folder: Path, use_sample: bool
) -> Fetched:
    """Bring the files of one revision, unchanged, into `folder`; a failure leaves nothing there.

    `revision` is what read_revision returned. Raises PipelineError with the remedy, also where
    local files are not those of the revision any more, and OSError where the disk is full.
    """
    upstream, incoming = split_revision(revision)
    folder.mkdir(parents=True, exist_ok=True)
    # On the disk of `folder`: the files are moved, not copied once more.
    with tempfile.TemporaryDirectory(prefix=".fetch-", dir=folder) as scratch:
        own = _local_files(name, source, root, use_sample)
        if own is None:
            _download(name, source, upstream, Path(scratch))
        else:
            _copy(name, own, upstream, use_sample, Path(scratch))
        files = hash_tree(Path(scratch))
        _check_names(name, files)
        if incoming is not None:
            dropped = list_incoming(name, root, (own or {}).values())
            copy_incoming(name, dropped, incoming, files, Path(scratch))
            files = hash_tree(Path(scratch))
        move_files(files, Path(scratch), folder)
    now = datetime.now(UTC).isoformat(timespec="seconds")
    return Fetched(revision, source.licence, now, files)


def _local_files(
    name: str, source: AnySource, root: Path, use_sample: bool
) -> dict[str, Path] | None:
    """Return the files of this machine that a source consists of; None where it is elsewhere."""
    if use_sample:
        sample = sample_file(name, source, root)
        return {sample.name: sample}
    if isinstance(source, FilesSource) and is_local(source):
        return list_local_files(source.path, root)
    return None


def _download(name: str, source: AnySource, revision: str, folder: Path) -> None:
    if isinstance(source, HuggingFaceSource):
        huggingface.download(name, source, revision, folder)
    elif isinstance(source, KaggleSource):
        kaggle.download(name, source, revision, folder)
    elif isinstance(source, UrlSource):
        url.download(name, source, revision, folder)
    else:
        remote_files.download(name, source, revision, folder)


def _copy(name: str, files: dict[str, Path], revision: str, use_sample: bool, folder: Path) -> None:
    """Copy local files; raise PipelineError where the copies are not those of the revision."""
    copy_files(files, folder)
    hashes = {n: entry.sha256 for n, entry in hash_tree(folder).items()}
    found = next(iter(hashes.values())) if use_sample else hash_json(hashes)
    if f"sha256:{found}" != revision:
        shown = sorted(map(str, files.values()))
        raise changed(name, shown[0] if len(shown) == 1 else f"one of {', '.join(shown[:5])}")


def _check_names(name: str, files: dict[str, FileEntry]) -> None:
    """Raise PipelineError where a fetched file would be taken for one of the pipeline's own."""
    taken = [file for file in files if file.startswith(f"{META}/")]
    if taken:
        raise PipelineError(
            f"source {name}: {taken[0]} lies in a folder `{META}`, which in an artifact holds the "
            f"pipeline's own records. Leave it out by `{name}.files`, or fetch it by `kind: url`."
        )


def sample_file(name: str, source: AnySource, root: Path) -> Path:
    """Return the bundled sample of a source. Raises PipelineError where there is none."""
    if source.sample is None:
        raise PipelineError(
            f"sources.yaml: {name}: has no `sample`, but a recipe says `use_samples: true`. "
            "Declare a sample file, or set `use_samples: false` to download the source."
        )
    file = root / source.sample
    if not file.is_file():
        raise PipelineError(f"sources.yaml: {name}.sample: {file} does not exist.")
    return file


def _pinned(source: AnySource) -> str | None:
    """Return the revision that the declaration itself names, if it does."""
    if isinstance(source, KaggleSource) and source.version is not None:
        return str(source.version)
    if isinstance(source, UrlSource) and source.sha256 is not None:
        return f"sha256:{source.sha256}"
    return None


def _recorded(name: str, source: AnySource, store: Path) -> str | None:
    """Return the revision that was last resolved for just this declaration."""
    record = read_record(name, source, store)
    return None if record is None else str(record["revision"])


def _write_record(name: str, source: AnySource, store: Path, revision: str) -> None:
    record = {"source": name, "asked": describe_request(source), "revision": revision}
    file = _record(name, store)
    file.parent.mkdir(parents=True, exist_ok=True)
    replace_json(file, record)


def _record(name: str, store: Path) -> Path:
    return store / "upstream" / f"{name}.json"
