"""The contents of a store, folder by folder, for `gc` to judge (plan.py, forgotten.py)."""

import os
import re
import time
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from ft_pipeline.base.project import STORE_FOLDERS
from ft_pipeline.store.artifacts import MANIFEST, Key, Manifest
from ft_pipeline.store.row_cache import list_caches
from ft_pipeline.store.store import DRAFT_MARK, REPLACED_MARK, Store

GONE_MARK = ".gone-"  # of what `gc` is removing
FINGERPRINT = re.compile(r"[0-9a-f]{32}")


@dataclass(frozen=True)
class Item:
    """One folder of the store, and whether it goes."""

    kind: str  # artifact, leftover, checkpoints, log, rows
    asset: str  # for a log its task, for rows their kind
    fingerprint: str
    path: Path
    used_at: float  # seconds since 1970, of its last build or use
    bytes: int
    goes: bool
    why: str

    @property
    def key(self) -> Key:
        return self.asset, self.fingerprint

    @property
    def age_days(self) -> float:
        return max(0.0, (time.time() - self.used_at) / 86400)


def stay(item: Item, why: str) -> Item:
    """Return an item that stays, with the reason."""
    return replace(item, goes=False, why=why)


def go(item: Item, why: str) -> Item:
    """Return an item that goes, with the reason."""
    return replace(item, goes=True, why=why)


def list_artifacts(store: Store) -> list[Item]:
    """Return the folders that have a manifest, valid or not."""
    folders = (f for f in _asset_folders(store) if FINGERPRINT.fullmatch(f.name))
    return [
        _item("artifact", store, folder, folder / MANIFEST)
        for folder in folders
        if (folder / MANIFEST).is_file()
    ]


def list_leftovers(store: Store) -> list[Item]:
    """Return what killed processes left: drafts, replaced artifacts, half-removed ones."""
    marks = (DRAFT_MARK, REPLACED_MARK, GONE_MARK)
    return [
        _item("leftover", store, folder, folder)
        for folder in _asset_folders(store)
        if any(mark in folder.name for mark in marks)
        or (FINGERPRINT.fullmatch(folder.name) and not (folder / MANIFEST).exists())
    ]


def list_checkpoints(store: Store) -> list[Item]:
    """Return the folders of checkpoints, one per training."""
    root = store.root / "checkpoints"
    # With what a killed `gc` has left half removed.
    folders = sorted(
        Path(folder, name)
        for folder, names, _ in os.walk(root)
        for name in names
        if FINGERPRINT.match(name)
    )
    return [_item("checkpoints", Store(root), folder, folder) for folder in folders]


def list_logs(store: Store) -> list[Item]:
    """Return the folders of worker runs and of run pins; last used means last written."""
    named = [(f, f.name.split("-")[1]) for f in sorted(_subfolders(store.root / "runs"))]
    named += [(f, "pins") for f in sorted(_subfolders(store.root / "pins"))]
    return [
        replace(_item("log", Store(f.parent), f, _newest(f)), asset=asset) for f, asset in named
    ]


def list_rows(store: Store) -> list[Item]:
    """Return the configurations of the row cache that hold rows; last used means last locked."""
    root = store.root / "rows"
    return [_item("rows", Store(root), c.folder, c.lock_file) for c in list_caches(root)]


def read_manifests(store: Store, items: Iterable[Item]) -> dict[Key, Manifest]:
    """Return the valid manifests of artifacts."""
    found = ((i.key, store.read_manifest(*i.key)) for i in items)
    return {key: manifest for key, manifest in found if manifest is not None}


def _asset_folders(store: Store) -> list[Path]:
    """Return all folders where fingerprints are: <asset>/… and <recipe>/<asset>/…."""
    name = re.compile(r"[0-9a-f]{32}(\.(draft|replaced|gone)-[0-9a-f]{8})?")
    tops = [f for f in _subfolders(store.root) if f.name not in STORE_FOLDERS]
    found = [f for top in tops for f in _subfolders(top)]
    found += [f for folder in found if not name.fullmatch(folder.name) for f in _subfolders(folder)]
    return sorted(f for f in found if name.fullmatch(f.name))


def _subfolders(folder: Path) -> list[Path]:
    try:
        with os.scandir(folder) as entries:
            return [Path(entry.path) for entry in entries if entry.is_dir(follow_symlinks=False)]
    except (FileNotFoundError, NotADirectoryError):  # removed while it is looked at
        return []


def _item(kind: str, store: Store, folder: Path, watched: Path) -> Item:
    try:
        used_at = watched.stat().st_mtime
        size = sum(f.stat().st_size for f in folder.rglob("*") if f.is_file())
    except OSError:  # it goes while it is looked at
        used_at, size = time.time(), 0
    asset = folder.parent.relative_to(store.root).as_posix()
    return Item(kind, asset, folder.name[:32], folder, used_at, size, False, "")


def _newest(folder: Path) -> Path:
    files = [file for file in folder.iterdir() if file.is_file()]
    return max(files, key=lambda file: file.stat().st_mtime, default=folder)
