"""The plan of a run: whether each asset of a chain is fresh, and why not. Builds nothing."""

from dataclasses import replace

from ft_pipeline.graph.chain import Chain
from ft_pipeline.graph.lookup import Lookup, State
from ft_pipeline.store.artifacts import Ingredients
from ft_pipeline.store.store import Store


def make_plan(chain: Chain, target: str | None = None) -> list[State]:
    """Say for each asset (up to `target`) whether it is fresh, and why not."""
    lookup = Lookup(chain)
    names = chain.upstream(target) if target else chain.names
    return [_explain(lookup, lookup.state(name)) for name in names]


def _explain(lookup: Lookup, state: State) -> State:
    if state.status != "stale" or state.why or state.request is None:
        return state
    why = _find_nearest(lookup.store, state.asset, state.request.ingredients)
    return replace(state, why=why)


def _find_nearest(store: Store, asset: str, wanted: Ingredients) -> tuple[str, ...]:
    """Compare with the stored artifact that is closest to the request."""
    stored = store.manifests(asset)
    if not stored:
        return ("never built",)
    differences = [tuple(wanted.differences(manifest.ingredients)) for manifest in stored]
    return min(differences, key=len) or ("its manifest is missing or not valid",)
