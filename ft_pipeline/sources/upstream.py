"""The upstream revision of a source, and its files.

A revision is a Kaggle version, a hub commit, an ETag, or the hash of local files; dropped files
(incoming.py) are part of it. The last revision resolved from the network is recorded in
`<store>/upstream/<source>.json`, for example

    {"source": "cot", "asked": {"kind": "huggingface", "id": "…"}, "revision": "9f1c…"}

and moves only by `refresh`, so that every machine that shares a store computes the same
fingerprints. A damaged record counts as never resolved: upstream is asked again.
"""

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
from ft_pipeline.base.network.secrets import hide_login, hide_secrets, record_address
from ft_pipeline.base.records import changing, write_atomically
from ft_pipeline.base.records import read_record as read_file
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
from ft_pipeline.store.upstream_record import SHAPE, Unpushed, UpstreamRecord

# Declared fields that do not decide which bytes are fetched, but how they are read or described.
HOW_READ = {"identity", "format", "columns", "aliases"}
READING = {"description", "licence", "sample", "observe_every", *HOW_READ}


@dataclass(frozen=True)
class Fetched:
    """The result of a fetch: `files` holds sha256 and size in bytes by name in the artifact."""

    revision: str
    licence: str
    fetched_at: str  # ISO 8601, UTC
    files: dict[str, FileEntry]


def describe_request(source: AnySource) -> dict[str, Any]:
    """Return the declared fields that decide which bytes to fetch, without any login."""
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
    """Return the declared fields that decide how to read a source's files, without defaults."""
    return source.model_dump(mode="json", include=HOW_READ, exclude_defaults=True)


def read_revision(
    name: str, source: AnySource, root: Path, store: Path, use_sample: bool
) -> str | None:
    """Return the revision to build, without the network; None if none was resolved yet.

    Raises PipelineError if a local file is missing.
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


def resolve_revision(
    name: str, source: AnySource, root: Path, store: Path, unpushed: Unpushed | None = None
) -> str:
    """Look up the newest revision and record it. Raises PipelineError with the remedy.

    `unpushed` is recorded with it. Returns what read_revision returns from now on.
    """
    newest = _ask(name, source)
    if newest is not None:
        asked = describe_request(source)
        record = UpstreamRecord(source=name, asked=asked, revision=newest, unpushed=unpushed)
        with changing(_record(name, store)):
            write_atomically(_record(name, store), record.to_json())
    return str(read_revision(name, source, root, store, use_sample=False))


def read_record(name: str, source: AnySource, store: Path) -> UpstreamRecord | None:
    """Return what was last resolved for exactly this declaration, if anything."""
    record = _read(name, store)
    return record if record and record.asked == describe_request(source) else None


def adopt_record(name: str, source: AnySource, store: Path, record: UpstreamRecord) -> bool:
    """Record what another machine resolved; return False if its declaration differs."""
    if record.asked != describe_request(source):
        return False
    with changing(_record(name, store)):
        write_atomically(_record(name, store), record.pushed().to_json())
    return True


def mark_pushed(record: UpstreamRecord, store: Path) -> None:
    """Note that a record was pushed, unless another has replaced it meanwhile."""
    file = _record(record.source, store)
    with changing(file):
        if _read(record.source, store) == record:
            write_atomically(file, record.pushed().to_json())


def is_local(source: AnySource) -> bool:
    """Say whether a source consists of local files, which need no network."""
    return isinstance(source, FilesSource) and not remote_files.is_remote(source.path)


def fetch(
    name: str, source: AnySource, revision: str, root: Path, folder: Path, use_sample: bool
) -> Fetched:
    """Fetch the files of one revision, unchanged, into `folder`; a failure leaves nothing there.

    `revision` is what read_revision returned. Raises PipelineError with the remedy, also if local
    files no longer match the revision, and OSError if the disk is full.
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
    """Return the local files of a source; None if it is elsewhere."""
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
    """Copy local files; raise PipelineError if the copies do not match the revision."""
    copy_files(files, folder)
    hashes = {n: entry.sha256 for n, entry in hash_tree(folder).items()}
    found = next(iter(hashes.values())) if use_sample else hash_json(hashes)
    if f"sha256:{found}" != revision:
        shown = sorted(map(str, files.values()))
        raise changed(name, shown[0] if len(shown) == 1 else f"one of {', '.join(shown[:5])}")


def _check_names(name: str, files: dict[str, FileEntry]) -> None:
    """Raise PipelineError if a fetched file could be mistaken for one of the pipeline's own."""
    taken = [file for file in files if file.startswith(f"{META}/")]
    if taken:
        raise PipelineError(
            f"source {name}: {taken[0]} is in a folder `{META}`, which artifacts reserve for the "
            f"pipeline's own records. Exclude it with `{name}.files`, or fetch it with `kind: "
            "url`."
        )


def sample_file(name: str, source: AnySource, root: Path) -> Path:
    """Return the bundled sample of a source. Raises PipelineError if there is none."""
    if source.sample is None:
        raise PipelineError(
            f"sources.yaml: {name}: has no `sample`, but a recipe sets `use_samples: true`. "
            "Declare a sample file, or set `use_samples: false` to download the source."
        )
    file = root / source.sample
    if not file.is_file():
        raise PipelineError(
            f"sources.yaml: {name}.sample: {file} does not exist. Expected the bundled sample "
            "file; correct the path."
        )
    return file


def _pinned(source: AnySource) -> str | None:
    """Return the revision that the declaration itself pins, if any."""
    if isinstance(source, KaggleSource) and source.version is not None:
        return str(source.version)
    if isinstance(source, UrlSource) and source.sha256 is not None:
        return f"sha256:{source.sha256}"
    return None


def _recorded(name: str, source: AnySource, store: Path) -> str | None:
    """Return the revision last resolved for exactly this declaration."""
    record = read_record(name, source, store)
    return None if record is None else record.revision


def _ask(name: str, source: AnySource) -> str | None:
    """Ask upstream for its newest revision; None for local files."""
    if isinstance(source, HuggingFaceSource):
        return huggingface.resolve_commit(name, source)
    if isinstance(source, KaggleSource):
        return str(source.version or kaggle.resolve_version(name, source))
    if isinstance(source, UrlSource):
        return url.resolve_revision(name, source)
    return None if is_local(source) else remote_files.resolve_revision(name, source)


def _read(name: str, store: Path) -> UpstreamRecord | None:
    lost = f"source {name} counts as never resolved and is looked up again"
    return read_file(_record(name, store), SHAPE, lost)


def _record(name: str, store: Path) -> Path:
    return store / "upstream" / f"{name}.json"
