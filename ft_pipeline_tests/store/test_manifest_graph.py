"""The one walk over artifacts: up to the sources, down to the models, each once."""

from datetime import UTC, datetime, timedelta

import pytest

from ft_pipeline.store.artifacts import Ingredients, InputEntry, Key, Manifest
from ft_pipeline.store.manifest_graph import ManifestGraph, build_graph

# raw → examples → train_set → tokens → model ← base
#               ↘ val_set → evaluation ← model
MADE_OF = {
    "raw": (),
    "base": (),
    "examples": ("raw",),
    "train_set": ("examples",),
    "val_set": ("examples",),
    "tokens": ("train_set", "base"),
    "model": ("tokens", "base"),
    "evaluation": ("model", "val_set"),
}


def manifest(asset: str, inputs: tuple[str, ...], number: int = 0, content: str = "") -> Manifest:
    entries = {
        name: InputEntry(asset=name, fingerprint=f"{name}-0", data_version=f"of {name}")
        for name in inputs
    }
    return Manifest(
        asset=asset,
        fingerprint=f"{asset.rpartition('/')[2]}-{number}",
        data_version=content or f"of {asset}",
        ingredients=Ingredients(code_version="1", settings={}, inputs={}, libraries={}),
        inputs=entries,
        files={},
        checks=[],
        metadata={},
        resolved={},
        created_at=(datetime(2026, 1, 1, tzinfo=UTC) + timedelta(days=number)).isoformat(),
        seconds=1.0,
        run_id="",
    )


@pytest.fixture
def graph() -> ManifestGraph:
    found = [manifest(asset, inputs) for asset, inputs in MADE_OF.items()]
    return build_graph({each.key: each for each in found})


def key(name: str) -> Key:
    return name, f"{name}-0"


def test_the_walk_behind_reaches_all_that_a_model_was_made_of_each_once(
    graph: ManifestGraph,
) -> None:
    visits = [v for v in graph.walk_behind([key("model")]) if not v.again]
    names = [visit.name for visit in visits]
    assert names == ["model", "tokens", "train_set", "examples", "raw", "base"]
    led = {v.name: v.by.name for v in visits if v.by is not None}
    assert led["raw"] == "examples"
    assert led["base"] == "tokens"


def test_a_second_way_to_a_node_is_shown_and_goes_no_further(graph: ManifestGraph) -> None:
    again = [v for v in graph.walk_behind([key("model")]) if v.again]
    assert [(v.name, v.by.name) for v in again if v.by is not None] == [("base", "model")]


def test_several_starts_share_one_walk(graph: ManifestGraph) -> None:
    visits = [v.key for v in graph.walk_behind([key("model"), key("evaluation")]) if not v.again]
    assert len(visits) == len(set(visits)) == len(MADE_OF)


def test_what_is_lost_is_visited_as_it_was_given(graph: ManifestGraph) -> None:
    del graph.manifests[key("train_set")]
    visits = list(graph.walk_behind([key("tokens")]))
    (lost,) = (v for v in visits if v.node is None)
    assert lost.key == key("train_set")
    assert "examples" not in [v.name for v in visits]


def test_the_walk_of_what_was_built_stops_where_it_does_not_pass(graph: ManifestGraph) -> None:
    start = graph.manifests[key("examples")]
    built = [v.name for v in graph.walk_built(start, lambda m: m.name != "train_set")]
    assert built == ["examples", "val_set", "evaluation"]


def test_a_build_of_equal_content_leads_to_the_readers_of_the_other(graph: ManifestGraph) -> None:
    """The reader names the first build; the second has the same data version."""
    second = manifest("examples", ("raw",), number=1, content="of examples")
    other = build_graph({**graph.manifests, second.key: second})
    built = [v.name for v in other.walk_built(second) if not v.again]
    assert set(built) == {"examples", "train_set", "val_set", "tokens", "model", "evaluation"}


def test_manifests_of_an_asset_in_every_recipe_the_newest_first() -> None:
    found = [manifest(asset, (), n) for n, asset in enumerate(("set", "mine/set", "other"))]
    graph = build_graph({each.key: each for each in found})
    assert [each.asset for each in graph.of("set")] == ["mine/set", "set"]


def test_a_long_line_of_artifacts_needs_no_deep_stack() -> None:
    names = [f"a{n}" for n in range(5_000)]
    pairs = zip(names, [(), *((name,) for name in names)], strict=False)
    found = [manifest(name, inputs) for name, inputs in pairs]
    graph = build_graph({each.key: each for each in found})
    assert sum(1 for _ in graph.walk_behind([key(names[-1])])) == 5_000
