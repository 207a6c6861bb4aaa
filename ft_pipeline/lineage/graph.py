"""Who read whom in a store: every manifest, and the way from an artifact to all made of it."""

import re
from collections.abc import Iterator
from dataclasses import dataclass

from ft_pipeline.config.recipe import STORE_FOLDERS
from ft_pipeline.graph.asset_rules import TRAINED_ASSETS
from ft_pipeline.lineage.trace import EXAMPLES_ASSET, SIDE_ASSETS
from ft_pipeline.store.artifacts import MANIFEST, Manifest
from ft_pipeline.store.store import Store

MADE_OF_ROWS = (*TRAINED_ASSETS, "teacher_logits")
UNTRACEABLE = (
    "its examples are not in this store, so it cannot be said whether it saw a forgotten row; "
    "`ft-pipeline run --to prompt_completions` brings those that the recipe asks for"
)


@dataclass(frozen=True)
class Graph:
    """The manifests of a store by asset and fingerprint, and the readers of each content."""

    manifests: dict[tuple[str, str], Manifest]
    readers: dict[tuple[str, str], list[Manifest]]

    def of(self, name: str) -> list[Manifest]:
        """Return the manifests of an asset in every recipe, the newest first."""
        found = [m for m in self.manifests.values() if m.asset.rpartition("/")[2] == name]
        return sorted(found, key=lambda m: m.created_at, reverse=True)

    def follow(self, start: Manifest, side: str | None) -> list[Manifest]:
        """Return what was built from an artifact, as far as it saw a side (None: any).

        By content: what read an artifact of equal data version was made of the same.
        """
        reached = {(start.asset, start.fingerprint): start}
        waiting = [start]
        while waiting:
            current = waiting.pop(0)
            for reader in self.readers.get((current.asset, current.data_version), ()):
                key = (reader.asset, reader.fingerprint)
                own = SIDE_ASSETS.get(reader.asset.rpartition("/")[2])
                if key not in reached and (None in (own, side) or own == side):
                    reached[key] = reader
                    waiting.append(reader)
        return list(reached.values())[1:]

    def list_untraceable(self) -> list[Manifest]:
        """Return the models and logits whose examples are not here: they were pulled alone."""
        known = {
            (reached.asset, reached.fingerprint)
            for build in self.of(EXAMPLES_ASSET)
            for reached in self.follow(build, None)
        }
        made = [manifest for name in MADE_OF_ROWS for manifest in self.of(name)]
        return [m for m in made if (m.asset, m.fingerprint) not in known]


def read_graph(store: Store) -> Graph:
    """Read every manifest of a store."""
    manifests: dict[tuple[str, str], Manifest] = {}
    readers: dict[tuple[str, str], list[Manifest]] = {}
    for asset, fingerprint in _list_artifacts(store):
        manifest = store.read_manifest(asset, fingerprint)
        if manifest is not None:
            manifests[asset, fingerprint] = manifest
            for given in manifest.inputs.values():
                readers.setdefault((given.asset, given.data_version), []).append(manifest)
    return Graph(manifests, readers)


def _list_artifacts(store: Store) -> Iterator[tuple[str, str]]:
    for pattern in (f"*/*/{MANIFEST}", f"*/*/*/{MANIFEST}"):
        for file in sorted(store.root.glob(pattern)):
            *asset, fingerprint = file.parent.relative_to(store.root).parts
            if asset[0] not in STORE_FOLDERS and re.fullmatch("[0-9a-f]{32}", fingerprint):
                yield "/".join(asset), fingerprint
