"""What was built from rows of a split, and what cannot be traced."""

from ft_pipeline.graph.asset_rules import EXAMPLES, find_rule
from ft_pipeline.store.artifacts import Manifest
from ft_pipeline.store.manifest_graph import ManifestGraph

UNTRACEABLE = (
    "its examples are not in this store, so it is unknown whether it saw a forgotten row; "
    "`ft-pipeline run --to prompt_completions` builds or pulls the recipe's current examples"
)


def follow(graph: ManifestGraph, start: Manifest, split: str | None) -> list[Manifest]:
    """Return what was built from an artifact and saw a split (None: any)."""

    def saw_the_split(manifest: Manifest) -> bool:
        own = split_of(manifest.name)
        return None in (own, split) or own == split

    visits = graph.walk_built(start, saw_the_split)
    return [v.node for v in visits if v.node is not None and not v.again][1:]


def split_of(name: str) -> str | None:
    """Return the only split whose rows an asset holds; None if it holds any."""
    rule = find_rule(name)
    return rule.split if rule is not None and rule.kind == "set" else None


def keeps_rows(name: str) -> bool:
    """Whether an asset is a model or logits, which keep what they learned from rows."""
    rule = find_rule(name)
    return rule is not None and rule.keeps_rows


def is_model(name: str) -> bool:
    rule = find_rule(name)
    return rule is not None and rule.kind == "model"


def list_untraceable(graph: ManifestGraph) -> list[Manifest]:
    """Return the models and logits whose examples are not here, because only they were pulled."""
    builds = graph.of(EXAMPLES.name)
    known = {reached.key for build in builds for reached in follow(graph, build, None)}
    made = [m for m in graph.manifests.values() if _is_made_of_rows(m.name)]
    found = [manifest for manifest in made if manifest.key not in known]
    return sorted(found, key=lambda manifest: manifest.created_at, reverse=True)


def _is_made_of_rows(name: str) -> bool:
    rule = find_rule(name)
    return rule is not None and (rule.is_trained or rule.kind == "logits")
