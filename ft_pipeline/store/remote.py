"""The remote: a second storage level after the local store, at any fsspec address (`FT_REMOTE`).

    s3://team/ft/finetuned_model/8d2e…/adapter_model.safetensors
    s3://team/ft/finetuned_model/8d2e…/manifest.json     written last
    s3://team/ft/upstream/trivia.json                    the revision that was last resolved

Files without a manifest are not an artifact. FT_SOURCE_TIMEOUT limits each small request; transfers
keep their driver's time-outs. Logins are the drivers' usual ones and appear in no message.
"""

import logging
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any

from ft_pipeline.base.errors import PipelineError
from ft_pipeline.base.network.secrets import hide_secrets
from ft_pipeline.base.network.storages import explain_storage, explained
from ft_pipeline.base.network.timeouts import read_timeout
from ft_pipeline.base.records import DamagedRecord, parse_record
from ft_pipeline.store.artifacts import (
    FORMAT,
    MANIFEST,
    MANIFEST_SHAPE,
    Artifact,
    Manifest,
    compute_data_version,
)
from ft_pipeline.store.upstream_record import SHAPE, UpstreamRecord

# Folders that need no making, and objects that appear whole.
OBJECT_STORES = {"s3", "s3a", "gs", "gcs", "abfs", "abfss", "az", "adl", "oss", "hf", "memory"}
ABSENT = (FileNotFoundError, NotADirectoryError, IsADirectoryError)

logger = logging.getLogger(__name__)


class RemoteError(PipelineError):
    """A remote that could not be reached, read or written."""


class Remote:
    """Artifacts and upstream records at one address."""

    def __init__(self, address: str) -> None:
        self.address = address

    @property
    def shown(self) -> str:
        """The address without its login."""
        return hide_secrets(self.address.rstrip("/"))

    def read_manifest(self, asset: str, fingerprint: str) -> Manifest | None:
        """Return an artifact's manifest, or None if there is no usable one.

        Raises RemoteError if the remote cannot be reached.
        """
        text = self._read(_key(asset, fingerprint, MANIFEST))
        if text is None:
            return None
        try:
            manifest = parse_record(text, MANIFEST_SHAPE, MANIFEST)
        except DamagedRecord as error:
            self._ignore(asset, fingerprint, error.fault)
            return None
        if manifest.format != FORMAT:
            self._ignore(asset, fingerprint, f"format {manifest.format} is not supported")
            return None
        if problem := _find_contradiction(manifest, asset, fingerprint):
            self._ignore(asset, fingerprint, problem)
            return None
        return manifest

    def download(self, manifest: Manifest, folder: Path) -> None:
        """Download an artifact's files into `folder`, unverified; missing ones are left out.

        Raises RemoteError, or OSError if the local disk cannot be written.
        """
        for name in manifest.files:
            target = folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            with self._explained("read"):
                filesystem, root = self._connection
                source = f"{root}/{_key(manifest.asset, manifest.fingerprint, name)}"
                try:
                    filesystem.get_file(source, str(target))
                except ABSENT:
                    target.unlink(missing_ok=True)

    def upload(self, artifact: Artifact, replace: bool) -> bool:
        """Push an artifact, manifest last; return whether the remote now holds this fingerprint.

        Existing content under the same fingerprint stays, unless `replace`. An artifact with a
        failed blocking check is not pushed; but if the remote has equal content, its verdict is.
        Raises RemoteError.
        """
        manifest = artifact.manifest
        there = self.read_manifest(manifest.asset, manifest.fingerprint)
        equal = there is not None and there.files == manifest.files
        if artifact.failed_checks and not equal:
            return False
        if there is not None and not equal and not replace:
            logger.info(
                "%s: %s already holds different content for %s; keeping that",
                *(manifest.asset, self.shown, manifest.fingerprint),
            )
            return True
        record = _key(manifest.asset, manifest.fingerprint, MANIFEST)
        if there is not None and replace:
            self._remove(record)
        if there is None or replace:
            size = artifact.bytes / 1e6
            logger.info("%s: pushing to %s (%.1f MB)", manifest.asset, self.shown, size)
            self._put_files(artifact)
        if there is None or replace or there.checks != manifest.checks:
            self._write(record, (artifact.path / MANIFEST).read_bytes())
        return True

    def _put_files(self, artifact: Artifact) -> None:
        """Push an artifact's files; start over if another machine finished its push meanwhile.

        Otherwise its files could mix with these, under the manifest written next.
        """
        manifest = artifact.manifest
        seen = None
        while True:
            for name in manifest.files:
                self._put(artifact.path / name, _key(manifest.asset, manifest.fingerprint, name))
            meanwhile = self.read_manifest(manifest.asset, manifest.fingerprint)
            if meanwhile == seen:
                return
            seen = meanwhile

    def read_record(self, source: str) -> UpstreamRecord | None:
        """Return the upstream record of a source, or None if there is no usable one.

        Raises RemoteError if the remote cannot be reached.
        """
        key = f"upstream/{source}.json"
        text = self._read(key)
        if text is None:
            return None
        try:
            return parse_record(text, SHAPE, key)
        except DamagedRecord as error:
            place = f"{self.shown}/{key}"
            logger.warning("%s: %s; the record counts as absent", place, error.fault)
            return None

    def write_record(self, record: UpstreamRecord) -> None:
        """Push an upstream record. Raises RemoteError."""
        text = record.pushed().to_json()
        self._write(f"upstream/{record.source}.json", text.encode("utf-8"))

    @cached_property
    def _connection(self) -> tuple[Any, str]:
        from fsspec.core import url_to_fs

        filesystem, path = url_to_fs(self.address)
        root = str(path).rstrip("/")
        if not root:
            raise RemoteError(
                f"FT_REMOTE: {self.shown} names no bucket or folder. Set it to an address such as "
                "s3://bucket/folder, or to a folder."
            )
        if "file" in filesystem.protocol and filesystem.isfile(root):
            raise RemoteError(f"FT_REMOTE: {self.shown} is a file. Set it to a folder.")
        return filesystem, root

    @property
    def _keeps_objects(self) -> bool:
        named = self._connection[0].protocol  # one name or several
        return not OBJECT_STORES.isdisjoint([named] if isinstance(named, str) else named)

    def _read(self, key: str) -> bytes | None:
        with self._explained("read"):
            filesystem, root = self._connection
            try:
                return bytes(_in_time(filesystem, "cat_file", f"{root}/{key}"))
            except ABSENT as error:
                if _lacks_bucket(error):
                    raise
                return None

    def _write(self, key: str, content: bytes) -> None:
        """Write a small object so that readers only ever see it whole."""
        with self._explained("write"):
            filesystem, root = self._connection
            path = f"{root}/{key}"
            if self._keeps_objects:
                _in_time(filesystem, "pipe_file", path, content)
                return
            filesystem.makedirs(path.rpartition("/")[0], exist_ok=True)
            temporary = f"{path}.{uuid.uuid4().hex[:8]}"
            filesystem.pipe_file(temporary, content)
            filesystem.mv(temporary, path)

    def _put(self, file: Path, key: str) -> None:
        with self._explained("write"):
            filesystem, root = self._connection
            path = f"{root}/{key}"
            if not self._keeps_objects:
                filesystem.makedirs(path.rpartition("/")[0], exist_ok=True)
            filesystem.put_file(str(file), path)

    def _remove(self, key: str) -> None:
        with self._explained("write"):
            filesystem, root = self._connection
            filesystem.rm_file(f"{root}/{key}")

    def _ignore(self, asset: str, fingerprint: str, problem: str) -> None:
        place = f"{self.shown}/{_key(asset, fingerprint, MANIFEST)}"
        logger.warning("%s: %s; the artifact counts as absent", place, problem)

    @contextmanager
    def _explained(self, needed: str) -> Iterator[None]:
        """Turn driver errors, which may quote a login, into errors with a remedy.

        A full or read-only local disk still raises its OSError.
        """

        def explain(error: Exception) -> RemoteError:
            problem, remedy = explain_storage(self.address, error, needed)
            return RemoteError(
                f"FT_REMOTE: {self.shown} {problem}. {remedy}. To work without a remote, unset "
                "FT_REMOTE."
            )

        with explained(explain, to_disk=needed == "read"):
            yield


def _key(asset: str, fingerprint: str, name: str) -> str:
    return f"{asset}/{fingerprint}/{name}"


def _find_contradiction(manifest: Manifest, asset: str, fingerprint: str) -> str | None:
    """Say how a manifest contradicts itself or its place; others may write to a remote."""
    if (manifest.asset, manifest.fingerprint) != (asset, fingerprint):
        return f"it belongs to {manifest.asset} {manifest.fingerprint}"
    if manifest.ingredients.fingerprint != fingerprint:
        return "its fingerprint does not match its ingredients"
    if manifest.data_version != compute_data_version(manifest.files):
        return "its data version does not match its files"
    wrong = [name for name in manifest.files if not _is_plain(name)]
    return f"it lists the unsafe file name {wrong[0]}" if wrong else None


def _is_plain(name: str) -> bool:
    """Say whether a name stays inside the artifact's folder and is not reserved by the store."""
    path = PurePosixPath(name)
    own = len(path.parts) == 1 and (name == MANIFEST or name.startswith("."))
    return not (path.is_absolute() or ".." in path.parts or "\\" in name or own or not path.parts)


def _lacks_bucket(error: BaseException) -> bool:
    answer = getattr(error.__cause__, "response", None)
    return isinstance(answer, dict) and answer.get("Error", {}).get("Code") == "NoSuchBucket"


def _in_time(filesystem: Any, method: str, *arguments: Any) -> Any:
    """Call a driver's method; give up after FT_SOURCE_TIMEOUT without an answer."""
    if not filesystem.async_impl:
        call: Callable[..., Any] = getattr(filesystem, method)
        return call(*arguments)
    from fsspec.asyn import sync

    return sync(
        filesystem.loop, getattr(filesystem, f"_{method}"), *arguments, timeout=read_timeout()
    )
