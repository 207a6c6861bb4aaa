"""The plan of a run: for each asset of a chain whether it is fresh, and why not. Builds nothing."""

from dataclasses import dataclass

from ft_pipeline.graph.chain import Chain, Known, MissingInputs
from ft_pipeline.store.artifacts import Artifact, Ingredients
from ft_pipeline.store.remote import RemoteError
from ft_pipeline.store.store import DamagedArtifact, Store


@dataclass(frozen=True)
class Step:
    """One line of a plan.

    `fresh` (here or in the remote), `stale` (it would be rebuilt), `failed`, `damaged`, or
    `unreachable` (it is not here, and the remote could not be asked).
    """

    name: str
    asset: str
    state: str
    why: tuple[str, ...]
    artifact: Artifact | None


def make_plan(chain: Chain, target: str | None = None) -> list[Step]:
    """Say for each asset (up to `target`) whether it is fresh, and why not."""
    steps: dict[str, Step] = {}
    known: Known = {}
    for name in chain.upstream(target) if target else chain.names:
        steps[name] = _make_step(chain, name, steps, known)
    return list(steps.values())


def _make_step(chain: Chain, name: str, steps: dict[str, Step], known: Known) -> Step:
    asset = chain.asset(name)
    waiting = [given for given in chain.inputs(name) if steps[given].state != "fresh"]
    if waiting:
        return Step(name, asset, "stale", tuple(f"follows {i}" for i in waiting), None)
    try:
        artifact = chain.peek(name, known)
        wanted = chain.request(name, known).ingredients
    except DamagedArtifact as error:
        return Step(name, asset, "damaged", (str(error),), None)
    except RemoteError as error:
        return Step(name, asset, "unreachable", (str(error),), None)
    except MissingInputs as error:
        return Step(name, asset, "stale", (str(error),), None)
    if artifact is None:
        return Step(name, asset, "stale", _explain(chain.store, asset, wanted), None)
    failed = artifact.failed_checks
    if failed:
        why = tuple(f"blocking check {c.name} failed: {c.message}" for c in failed)
        return Step(name, asset, "failed", why, artifact)
    why = () if chain.store.holds(artifact) else ("in the remote; pulled by the next run",)
    return Step(name, asset, "fresh", why, artifact)


def _explain(store: Store, asset: str, wanted: Ingredients) -> tuple[str, ...]:
    """Compare with the stored artifact that is nearest to what is wanted."""
    stored = store.manifests(asset)
    if not stored:
        return ("never built",)
    differences = [tuple(wanted.differences(manifest.ingredients)) for manifest in stored]
    return min(differences, key=len) or ("its manifest was removed or is not valid",)
