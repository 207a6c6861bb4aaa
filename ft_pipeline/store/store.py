"""The local store of artifacts: `<store>/<asset key>/<fingerprint>/`, complete or absent.

An artifact is written to a temporary sibling (`Draft`), its manifest last, synced, and renamed.
Without a valid manifest it does not exist for readers.

With a remote (remote.py), missing artifacts are pulled from it, and published ones are pushed.
`.unpushed` in an artifact's folder says that it is not pushed yet, and whether it replaces
(`"new"`, `"replace"`); without that file, the remote is not asked about a local artifact.
"""

import contextlib
import json
import logging
import os
import re
import shutil
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from time import monotonic
from typing import Any, Literal

from pydantic import TypeAdapter

from ft_pipeline.base.errors import PipelineError, explain_os_error
from ft_pipeline.base.file_hashes import hash_files
from ft_pipeline.base.hashing import (
    META,
    FileEntry,
    hash_file,
)
from ft_pipeline.base.locks import hold_lock, hold_mark
from ft_pipeline.base.project import STORE_FOLDERS
from ft_pipeline.base.records import DRAFT_MARK as DRAFT_MARK
from ft_pipeline.base.records import read_record, sync, sync_tree, write_atomically
from ft_pipeline.store.artifacts import (
    FORMAT,
    MANIFEST,
    MANIFEST_SHAPE,
    Artifact,
    CheckResult,
    Ingredients,
    InputEntry,
    Key,
    Manifest,
    compute_data_version,
)
from ft_pipeline.store.remote import Remote, RemoteError

STAMP = ".stamp.json"
UNPUSHED = ".unpushed"
# In that file: only where the remote has none; also over other content of the same fingerprint.
NEW, REPLACE = "new", "replace"
UNPUSHED_SHAPE = TypeAdapter(Literal["new", "replace"])
REPLACED_MARK = ".replaced-"
RUN_MARK = "run."

logger = logging.getLogger(__name__)


class DamagedArtifact(PipelineError):
    """A stored file that does not match its manifest."""


@dataclass
class Draft:
    """An artifact in the making. Content goes to `path`, everything else to `path / "meta"`."""

    asset: str
    ingredients: Ingredients
    inputs: Mapping[str, Artifact]
    path: Path
    # Where a training that is going to be this artifact leaves what it can go on from.
    checkpoints: Path
    metadata: dict[str, Any] = field(default_factory=dict)
    resolved: dict[str, Any] = field(default_factory=dict)
    started: float = field(default_factory=monotonic)
    forced: bool = False  # by --force: nothing that an earlier try left is used

    @property
    def fingerprint(self) -> str:
        return self.ingredients.fingerprint

    @property
    def meta(self) -> Path:
        return self.path / META

    def preview(self) -> Artifact:
        """Return the draft as the artifact it will become, for the checks to read."""
        files = _list_files(self.path)
        return Artifact(path=self.path, manifest=self._manifest(files, [], run_id=""))

    def _manifest(
        self, files: dict[str, FileEntry], checks: list[CheckResult], run_id: str
    ) -> Manifest:
        return Manifest(
            asset=self.asset,
            fingerprint=self.ingredients.fingerprint,
            data_version=compute_data_version(files),
            ingredients=self.ingredients,
            inputs={
                name: InputEntry(
                    asset=a.manifest.asset,
                    fingerprint=a.manifest.fingerprint,
                    data_version=a.data_version,
                )
                for name, a in self.inputs.items()
            },
            files=files,
            checks=checks,
            metadata=self.metadata,
            resolved=self.resolved,
            created_at=datetime.now(UTC).isoformat(timespec="seconds"),
            seconds=round(monotonic() - self.started, 2),
            run_id=run_id,
        )


class Store:
    """Artifacts on the local disk, with an optional remote."""

    def __init__(self, root: Path, remote: Remote | None = None) -> None:
        self.root = root
        self.remote = remote
        self.pulled: set[Key] = set()  # by this object: asset and fingerprint
        self._held: set[Key] = set()

    def folder(self, asset: str, fingerprint: str) -> Path:
        return self.root / asset / fingerprint

    def checkpoints(self, asset: str, fingerprint: str) -> Path:
        """Return the folder of a training's checkpoints, which are removed once it is published."""
        return self.root / "checkpoints" / asset / fingerprint

    def find(self, asset: str, fingerprint: str) -> Artifact | None:
        """Return the complete artifact, pulling it if it is not here, or None.

        Raises DamagedArtifact if a file does not match the manifest, RemoteError if the artifact is
        not here and the remote cannot be reached.
        """
        return self._find_here(asset, fingerprint) or self._pull(asset, fingerprint)

    def peek(self, asset: str, fingerprint: str) -> Artifact | None:
        """Return what `find` returns, but without pulling: from the remote, only the manifest."""
        found = self._find_here(asset, fingerprint)
        if found is not None or self.remote is None:
            return found
        manifest = self.remote.read_manifest(asset, fingerprint)
        if manifest is None:
            return None
        return Artifact(path=self.folder(asset, fingerprint), manifest=manifest)

    def holds(self, artifact: Artifact) -> bool:
        """Say whether the files of an artifact that `peek` returned are here."""
        return (artifact.path / MANIFEST).is_file()

    def _find_here(self, asset: str, fingerprint: str) -> Artifact | None:
        folder = self.folder(asset, fingerprint)
        while True:
            seen = _identify(folder)
            manifest = _read_manifest(folder)
            if manifest is None:
                return None
            if manifest.format != FORMAT:
                logger.warning("%s: manifest format %s is not supported", folder, manifest.format)
                return None
            artifact = Artifact(path=folder, manifest=manifest)
            try:
                _verify_intact(artifact)
            except (DamagedArtifact, FileNotFoundError):
                if _identify(folder) == seen:
                    raise
                continue  # another process removed or replaced it meanwhile
            return artifact

    def mark_used(self, artifact: Artifact) -> bool:
        """Note in its manifest's time that a run uses an artifact; return False if it is gone.

        `gc` keeps what was built or used since the oldest active run began.
        """
        try:
            os.utime(artifact.path / MANIFEST)
        except FileNotFoundError:
            return False
        except OSError:  # a store that cannot be written cannot be cleared either
            return (artifact.path / MANIFEST).exists()
        return True

    @contextmanager
    def running(self, run_id: str) -> Iterator[None]:
        """Hold a mark while a run lasts; the mark's time is when the run began."""
        with contextlib.ExitStack() as stack:
            # A store that cannot be written cannot be cleared either.
            with contextlib.suppress(OSError):
                stack.enter_context(hold_mark(self.root / "locks" / f"{RUN_MARK}{run_id}"))
            yield

    def read_manifest(self, asset: str, fingerprint: str) -> Manifest | None:
        """Return an artifact's manifest without looking at its files, or None."""
        found = _read_manifest(self.folder(asset, fingerprint))
        if found is not None or self.remote is None:
            return found
        return self.remote.read_manifest(asset, fingerprint)

    def manifests(self, asset: str) -> list[Manifest]:
        """Return the manifests of all artifacts of an asset, newest first."""
        folders = (self.root / asset).glob("*/" + MANIFEST)
        found = [m for m in (_read_manifest(file.parent) for file in folders) if m is not None]
        return sorted(found, key=lambda manifest: manifest.created_at, reverse=True)

    def list_keys(self) -> Iterator[Key]:
        """Yield asset and fingerprint of every artifact that has a manifest here."""
        for pattern in (f"*/*/{MANIFEST}", f"*/*/*/{MANIFEST}"):
            for file in sorted(self.root.glob(pattern)):
                *asset, fingerprint = file.parent.relative_to(self.root).parts
                if asset[0] not in STORE_FOLDERS and re.fullmatch("[0-9a-f]{32}", fingerprint):
                    yield "/".join(asset), fingerprint

    @contextmanager
    def draft(
        self, asset: str, ingredients: Ingredients, inputs: Mapping[str, Artifact]
    ) -> Iterator[Draft]:
        """Open a folder for a new artifact; it is removed unless published.

        Raises PipelineError with a remedy if the disk is full or cannot be written.
        """
        parent = self.root / asset
        folder = parent / f"{ingredients.fingerprint}{DRAFT_MARK}{uuid.uuid4().hex[:8]}"
        try:
            (folder / META).mkdir(parents=True)
            checkpoints = self.checkpoints(asset, ingredients.fingerprint)
            yield Draft(asset, ingredients, inputs, folder, checkpoints)
        except OSError as error:
            raise explain_os_error(error, self.root) from error
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def publish(
        self, draft: Draft, checks: list[CheckResult], run_id: str, replace: bool = False
    ) -> Artifact:
        """Turn a draft into an artifact: sync files, write the manifest, rename the folder, push.

        `replace`: also replace the remote's artifact of the same fingerprint, if its content
        differs.
        """
        manifest = draft._manifest(_list_files(draft.path), checks, run_id)
        _mark_unpushed(draft.path, REPLACE if replace and self.remote is not None else NEW)
        artifact = self._install(draft.path, manifest)
        self.push_pending(artifact)
        return artifact

    def push_pending(self, artifact: Artifact) -> None:
        """Push an artifact that is not pushed yet; a failure is a warning, to be retried later."""
        marker = artifact.path / UNPUSHED
        if self.remote is None or not marker.is_file():
            return
        lost = "the artifact is pushed, but replaces nothing in the remote"
        mark = read_record(marker, UNPUSHED_SHAPE, lost)
        try:
            pushed = self.remote.upload(artifact, replace=mark == REPLACE)
        except RemoteError as error:
            logger.warning(
                "%s: kept in the store, but not pushed. %s The next run that uses it tries again.",
                *(artifact.manifest.asset, error),
            )
            return
        if pushed:
            with contextlib.suppress(OSError):  # a read-only store compares manifests each time
                marker.unlink()

    def _pull(self, asset: str, fingerprint: str) -> Artifact | None:
        """Pull an artifact from the remote, completely or not at all; None if it has none."""
        if self.remote is None:
            return None
        manifest = self.remote.read_manifest(asset, fingerprint)
        if manifest is None:
            return None
        with self.lock(asset, fingerprint):
            found = self._find_here(asset, fingerprint)  # another process may have been faster
            if found is not None:
                return found
            megabytes = sum(entry.bytes for entry in manifest.files.values()) / 1e6
            logger.info("%s: pulling from %s (%.1f MB)", asset, self.remote.shown, megabytes)
            with self.draft(asset, manifest.ingredients, {}) as draft:
                self.remote.download(manifest, draft.path)
                self._verify_pulled(self.remote, manifest, draft.path)
                artifact = self._install(draft.path, manifest)
            self.pulled.add((asset, fingerprint))
            return artifact

    def _verify_pulled(self, remote: Remote, manifest: Manifest, folder: Path) -> None:
        try:
            _verify_intact(Artifact(path=folder, manifest=manifest))
        except DamagedArtifact as error:
            if remote.read_manifest(manifest.asset, manifest.fingerprint) != manifest:
                raise RemoteError(
                    f"{manifest.asset}: {manifest.fingerprint} was replaced in {remote.shown} "
                    "during the pull. Nothing was kept. Run again."
                ) from error
            place = f"{remote.shown}/{manifest.asset}/{manifest.fingerprint}"
            text = str(error).replace(str(folder), place)
            raise DamagedArtifact(f"{text} Nothing from the pull was kept.") from None

    def _install(self, folder: Path, manifest: Manifest) -> Artifact:
        """Install a complete folder as the artifact of its manifest."""
        sync_tree(folder)
        _write_manifest(folder, manifest)
        final = self.folder(manifest.asset, manifest.fingerprint)
        if final.exists():
            final.rename(final.with_name(f"{final.name}{REPLACED_MARK}{uuid.uuid4().hex[:8]}"))
        folder.rename(final)
        sync(final.parent)
        for replaced in final.parent.glob(f"{final.name}{REPLACED_MARK}*"):
            shutil.rmtree(replaced, ignore_errors=True)
        hash_files({name: final / name for name in manifest.files}, final / STAMP)
        self.remove_checkpoints(manifest.asset, manifest.fingerprint)
        return Artifact(path=final, manifest=manifest)

    def remove_checkpoints(self, asset: str, fingerprint: str) -> None:
        """Remove the checkpoints of a training."""
        shutil.rmtree(self.checkpoints(asset, fingerprint), ignore_errors=True)

    def replace_checks(self, artifact: Artifact, checks: list[CheckResult]) -> Artifact:
        """Store the results of checks that were recomputed because their version changed."""
        manifest = artifact.manifest.model_copy(update={"checks": checks})
        if not (artifact.path / UNPUSHED).exists():
            _mark_unpushed(artifact.path, NEW)
        _write_manifest(artifact.path, manifest)
        checked = Artifact(path=artifact.path, manifest=manifest)
        self.push_pending(checked)
        return checked

    def lock_file(self, asset: str, fingerprint: str) -> Path:
        """Return the file whose lock (flock) allows building or removing one fingerprint."""
        return self.root / "locks" / f"{asset.replace('/', '.')}.{fingerprint}.lock"

    @contextmanager
    def lock(self, asset: str, fingerprint: str) -> Iterator[None]:
        """Hold the lock for building one fingerprint; the kernel frees it when this process ends.

        The lock is reentrant, as pulls need. Leftovers of a killed process with the same
        fingerprint are cleared: drafts are removed, and a complete artifact that was about to be
        replaced is put back.
        """
        key = (asset, fingerprint)
        if key in self._held:
            yield
            return

        def say() -> None:
            logger.info("waiting: another process is building %s (%s)", asset, fingerprint)

        with contextlib.ExitStack() as stack:
            try:
                stack.enter_context(hold_lock(self.lock_file(asset, fingerprint), say))
            except OSError as error:
                raise explain_os_error(error, self.root) from error
            self._clear_leftovers(asset, fingerprint)
            self._held.add(key)
            try:
                yield
            finally:
                self._held.discard(key)

    def _clear_leftovers(self, asset: str, fingerprint: str) -> None:
        final = self.folder(asset, fingerprint)
        for replaced in final.parent.glob(f"{fingerprint}{REPLACED_MARK}*"):
            if not final.exists():
                replaced.rename(final)
        for mark in (DRAFT_MARK, REPLACED_MARK):
            for leftover in final.parent.glob(f"{fingerprint}{mark}*"):
                shutil.rmtree(leftover, ignore_errors=True)


def _list_files(folder: Path) -> dict[str, FileEntry]:
    for name in (MANIFEST, STAMP, UNPUSHED):
        if (folder / name).exists():
            raise PipelineError(
                f"{folder / name}: a content file has a name that the store reserves. Rename the "
                "file at its source."
            )
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    return {
        p.relative_to(folder).as_posix(): FileEntry(sha256=hash_file(p), bytes=p.stat().st_size)
        for p in files
    }


def _read_manifest(folder: Path) -> Manifest | None:
    return read_record(folder / MANIFEST, MANIFEST_SHAPE, "the artifact counts as absent")


def _write_manifest(folder: Path, manifest: Manifest) -> None:
    text = json.dumps(manifest.model_dump(mode="json"), indent=1, ensure_ascii=False)
    write_atomically(folder / MANIFEST, text + "\n")


def _mark_unpushed(folder: Path, how: str) -> None:
    write_atomically(folder / UNPUSHED, json.dumps(how) + "\n")


def _identify(folder: Path) -> tuple[int, int] | None:
    """Return what distinguishes a folder's manifest from a later one at the same place."""
    try:
        status = (folder / MANIFEST).stat()
    except OSError:
        return None
    return status.st_ino, status.st_mtime_ns


def _verify_intact(artifact: Artifact) -> None:
    """Raise DamagedArtifact if a file does not match the manifest."""
    expected = artifact.manifest.files
    files = {name: artifact.path / name for name in expected}
    found = hash_files(files, artifact.path / STAMP)
    for name, entry in expected.items():
        if found.get(name) != entry.sha256:
            raise DamagedArtifact(
                f"{artifact.path / name}: damaged. Expected sha256 {entry.sha256}, found "
                f"{found.get(name, 'no file')}. It is not used."
            )
