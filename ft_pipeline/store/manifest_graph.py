"""What was made from what: the one walk over artifacts, up to the sources or down to the models.

    [visit.node.asset for visit in walk_behind([model], graph.find)] →
        ["finetuned_model", "train_tokens", "train_set", "prompt_completions", "raw_trivia", …]

A node is anything that knows its inputs: a manifest, or a receipt's record of one.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar

from ft_pipeline.store.artifacts import InputEntry, Key, Manifest, name_of
from ft_pipeline.store.store import Store


class Node(Protocol):
    """An artifact in the graph."""

    @property
    def key(self) -> Key: ...

    @property
    def inputs(self) -> Mapping[str, InputEntry]: ...


NodeT = TypeVar("NodeT", bound=Node)


@dataclass(frozen=True)
class Visit(Generic[NodeT]):
    """A node that a walk reached.

    `name`: what its reader calls it; `given`: the reader's record of it. `node` is None if nothing
    is known about it. `again`: the walk was here before and goes no further.
    """

    name: str
    node: NodeT | None
    given: InputEntry | None = None
    by: "Visit[NodeT] | None" = None
    again: bool = False

    @property
    def key(self) -> Key:
        known = self.node if self.node is not None else self.given
        assert known is not None, "a visit is of a node, or of what somebody was given"
        return known.key


Following = Callable[[Visit[NodeT]], Iterable[Visit[NodeT]]]


def walk(start: Iterable[Visit[NodeT]], following: Following[NodeT]) -> Iterator[Visit[NodeT]]:
    """Yield the visits of a walk, depth first, parents before children."""
    seen: set[Key] = set()
    waiting = list(reversed(list(start)))
    while waiting:
        visit = waiting.pop()
        if visit.key in seen:
            yield Visit(visit.name, visit.node, visit.given, visit.by, again=True)
            continue
        seen.add(visit.key)
        yield visit
        waiting += reversed(list(following(visit)))


def walk_behind(
    start: Iterable[tuple[str, NodeT]],
    find: Callable[[InputEntry], NodeT | None],
    passes: Callable[[str], bool] = lambda name: True,
) -> Iterator[Visit[NodeT]]:
    """Walk from named nodes to everything they were made from, if asset names pass the filter.

    `find` returns what is known about an input. If it finds equal content under another key, the
    visit shows that other key.
    """

    def list_inputs(visit: Visit[NodeT]) -> Iterator[Visit[NodeT]]:
        for name, given in visit.node.inputs.items() if visit.node is not None else ():
            if passes(name_of(given.asset)):
                yield Visit(name, find(given), given, visit)

    return walk((Visit(n, node) for n, node in start if passes(name_of(node.key[0]))), list_inputs)


@dataclass(frozen=True)
class ManifestGraph:
    """The manifests of a store, and the readers of each content."""

    manifests: dict[Key, Manifest]
    readers: dict[tuple[str, str], list[Manifest]] = field(default_factory=dict)

    def find(self, given: InputEntry) -> Manifest | None:
        return self.manifests.get(given.key)

    def of(self, name: str) -> list[Manifest]:
        """Return the manifests of an asset in every recipe, newest first."""
        found = [m for m in self.manifests.values() if m.name == name]
        return sorted(found, key=lambda m: m.created_at, reverse=True)

    def walk_behind(self, start: Iterable[Key]) -> Iterator[Visit[Manifest]]:
        """Walk from artifacts to everything they were made from, following their manifests."""
        nodes = [self.manifests[key] for key in start if key in self.manifests]
        return walk_behind([(node.name, node) for node in nodes], self.find)

    def walk_built(
        self, start: Manifest, passes: Callable[[Manifest], bool] = lambda manifest: True
    ) -> Iterator[Visit[Manifest]]:
        """Walk from an artifact to everything built from it that `passes`.

        Content decides: a reader of an artifact with equal data version was made from the same.
        """

        def list_readers(visit: Visit[Manifest]) -> Iterator[Visit[Manifest]]:
            assert visit.node is not None, "readers are manifests"
            content = (visit.node.asset, visit.node.data_version)
            for reader in self.readers.get(content, ()):
                if passes(reader):
                    yield Visit(reader.name, reader, None, visit)

        return walk([Visit(start.name, start)], list_readers)


def build_graph(manifests: dict[Key, Manifest]) -> ManifestGraph:
    """Return the graph of some manifests."""
    graph = ManifestGraph(manifests)
    for manifest in manifests.values():
        for given in manifest.inputs.values():
            graph.readers.setdefault((given.asset, given.data_version), []).append(manifest)
    return graph


def read_graph(store: Store) -> ManifestGraph:
    """Read every manifest of a store."""
    found = ((key, store.read_manifest(*key)) for key in store.list_keys())
    return build_graph({key: manifest for key, manifest in found if manifest is not None})
