"""Records of artifacts, and finding the one that a person names.

An artifact is named by its asset (`finetuned_model`, `other/train_set`), by its fingerprint or a
prefix of it (`8d2e1f`), or by a path: a folder of the store, or a copy of one elsewhere that has
its `manifest.json` or its `meta/receipt.json`.
"""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from pydantic import ValidationError

from ft_pipeline.base.errors import PipelineError
from ft_pipeline.config.recipe import list_recipes
from ft_pipeline.graph.chain import Chain, load_other
from ft_pipeline.graph.lookup import Lookup, open_store
from ft_pipeline.lineage.receipt import Link, Receipt, make_link, read_receipt
from ft_pipeline.store.artifacts import MANIFEST, Artifact, InputEntry, Key, Manifest
from ft_pipeline.store.manifest_graph import Visit, walk_behind
from ft_pipeline.store.remote import RemoteError
from ft_pipeline.store.store import DamagedArtifact, Store

SHORT_FINGERPRINT = r"(?:\w+/){0,2}[0-9a-f]{4,32}"  # or its beginning, behind its asset or alone


@dataclass(frozen=True)
class Found:
    """An artifact that a person named: its folder, and what was found there.

    `note` says why it is not the one requested, if it is not.
    """

    folder: Path
    manifest: Manifest | None
    receipt: Receipt | None
    stored: bool
    note: str = ""

    @property
    def link(self) -> Link:
        """Its record, from its manifest, otherwise from its receipt."""
        if self.manifest is not None:
            return make_link(self.manifest)
        assert self.receipt is not None, "a folder without manifest and receipt is not found"
        return self.receipt


class Records:
    """Records of what an artifact was made from: the store's manifests, otherwise a receipt."""

    def __init__(self, store: Store, receipt: Receipt | None = None) -> None:
        self._store = store
        behind = receipt.behind if receipt else []
        self._receipt = {link.key: link for link in behind}
        self._known: dict[Key, Link | None] = {}

    def find(self, given: InputEntry) -> Link | None:
        """Return an input's record; if it is not stored, that of one with equal content."""
        if given.key not in self._known:
            self._known[given.key] = self._find(given)
        return self._known[given.key]

    def walk_behind(
        self, link: Link, passes: Callable[[str], bool] = lambda name: True
    ) -> Iterator[Visit[Link]]:
        """Walk from an artifact to everything it was made from, if names pass the filter."""
        return walk_behind([(link.name, link)], self.find, passes)

    def folder(self, link: Link) -> Path | None:
        """Return the folder of an artifact in the store, or None if it is not there."""
        folder = self._store.folder(link.asset, link.fingerprint)
        return folder if (folder / MANIFEST).is_file() else None

    def _find(self, given: InputEntry) -> Link | None:
        manifest = self._store.read_manifest(given.asset, given.fingerprint)
        if manifest is None:
            equal = (
                m
                for m in self._store.manifests(given.asset)
                if m.data_version == given.data_version
            )
            manifest = next(equal, None)
        if manifest is not None:
            return make_link(manifest)
        return self._receipt.get(given.key)


def find_stored(chain: Chain, name: str) -> Artifact:
    """Return the recipe's current artifact. Raises PipelineError if it is not there."""
    return Lookup(chain).pull(name)


def find_named(chain: Chain, word: str, intact: bool = True) -> Found:
    """Return the artifact that a person named. Raises PipelineError if there is none.

    For an asset that is not built for the current recipe, return the newest stored one. Without
    `intact`, damaged artifacts are returned, too.
    """
    owner, name = _split_asset(chain, word)
    if owner is not None and not intact:
        return read_found(_find_unverified(owner, name), stored=True)
    if owner is not None:
        return _find_intact(owner, name)
    path = Path(word).expanduser()
    if path.exists():
        return _read_path(chain, path.resolve())
    if re.fullmatch(SHORT_FINGERPRINT, word):
        return _find_fingerprint(chain, word)
    if "/" in word:
        raise PipelineError(
            f"{word}: neither an asset nor a folder. Expected an artifact in "
            f"{chain.project.store}, or a copy of one with its manifest.json or meta/receipt.json."
        )
    chain.rule(word)  # raises with the known names and a near miss
    raise AssertionError("a name that the chain knows was found above")


def _find_intact(chain: Chain, name: str) -> Found:
    try:
        return read_found(find_stored(chain, name).path, stored=True)
    except (DamagedArtifact, RemoteError):
        raise
    except PipelineError:  # new data waits, or the recipe was edited
        store = open_store(chain)
        stored = store.manifests(chain.asset(name))
        if not stored:
            raise
    newest = store.folder(*stored[0].key)
    note = (
        f"{stored[0].asset}: not built for the current recipe; using the newest stored one, "
        f"{stored[0].fingerprint}. `ft-pipeline status` shows what changed."
    )
    return replace(read_found(newest, stored=True), note=note)


def read_found(folder: Path, stored: bool) -> Found:
    """Read an artifact's manifest and receipt. Raises PipelineError if one is not valid."""
    file = folder / MANIFEST
    manifest = None
    if file.is_file():
        try:
            manifest = Manifest.model_validate_json(file.read_bytes())
        except ValidationError as error:
            raise PipelineError(
                f"{file}: not a valid manifest: {error.errors()[0]['msg']}. It was changed or "
                "damaged; rebuild the artifact, or use another copy."
            ) from error
    return Found(folder, manifest, read_receipt(folder), stored)


class _UnverifiedStore(Store):
    """A store that returns artifacts without checking their files."""

    def peek(self, asset: str, fingerprint: str) -> Artifact | None:
        manifest = self.read_manifest(asset, fingerprint)
        if manifest is None:
            return None
        return Artifact(path=self.folder(asset, fingerprint), manifest=manifest)


def _find_unverified(chain: Chain, name: str) -> Path:
    """Return the folder of the recipe's current artifact, otherwise of the newest stored one."""
    store = _UnverifiedStore(chain.project.store)
    found = Lookup(chain, store=store).state(name).artifact
    if found is not None:
        return found.path
    stored = store.manifests(chain.asset(name))
    if not stored:
        return find_stored(chain, name).path  # raises with the remedy
    return store.folder(*stored[0].key)


def _split_asset(chain: Chain, word: str) -> tuple[Chain | None, str]:
    """Return the chain and the asset that a word names; without a chain if it names none."""
    for name in chain.names:
        if word in (name, chain.asset(name)):
            return chain, name
    recipe, slash, name = word.partition("/")
    if slash and recipe in list_recipes(chain.project):
        other = load_other(chain, recipe)
        if name in other.names:
            return other, name
    if not chain.is_default and word in (default := chain.default_chain).names:
        return default, word
    return None, word


def _read_path(chain: Chain, path: Path) -> Found:
    """Read the artifact at a path, or the one that contains it."""
    for folder in (path, *list(path.parents)[:3]):
        found = read_found(folder, stored=_is_stored(chain, folder)) if folder.is_dir() else None
        if found is not None and (found.manifest or found.receipt):
            return found
    raise PipelineError(
        f"{path}: has neither manifest.json nor meta/receipt.json, so its origin is unknown. Name "
        "an artifact in the store, or copy one with its meta/ folder."
    )


def _is_stored(chain: Chain, folder: Path) -> bool:
    return folder.is_relative_to(chain.project.store.resolve())


def _find_fingerprint(chain: Chain, word: str) -> Found:
    root = chain.project.store
    files = [f for depth in ("", "*/", "*/*/") for f in root.glob(f"{depth}{word}*/{MANIFEST}")]
    folders = [file.parent for file in files if re.fullmatch("[0-9a-f]{32}", file.parent.name)]
    if len(folders) == 1:
        return read_found(folders[0], stored=True)
    if not folders:
        raise PipelineError(
            f"{word}: no artifact in {root} has a fingerprint that starts like this. `ft-pipeline "
            "status --json` lists the recipe's fingerprints."
        )
    shown = ", ".join(folder.relative_to(root).as_posix() for folder in sorted(folders)[:8])
    raise PipelineError(
        f"{word}: {len(folders)} fingerprints start like this: {shown}. Give more characters, or "
        "the asset as well: ASSET/FINGERPRINT."
    )
