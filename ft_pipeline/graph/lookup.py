"""One look at a store: what each asset of a chain would be made of, and whether it is there.

    lookup = Lookup(chain)
    lookup.state("train_set") → State(name="train_set", status="stale", request=…, artifact=None)
    lookup.pull("base_model") → Artifact(path=…)

From an asset's rule and the data versions of its inputs comes its fingerprint. A look-up remembers
what it saw; `again` takes a fresh look.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from ft_pipeline.base.errors import PipelineError
from ft_pipeline.graph.chain import Chain
from ft_pipeline.graph.pins import Pins
from ft_pipeline.graph.revisions import read_revision
from ft_pipeline.graph.settings_read import source_of
from ft_pipeline.graph.side_files import hash_local_model, hash_side_files
from ft_pipeline.store.artifacts import Artifact, Ingredients, library_versions
from ft_pipeline.store.remote import Remote, RemoteError
from ft_pipeline.store.store import DamagedArtifact, Store

# `fresh` (here or in the remote), `stale` (it would be rebuilt), `failed` (a blocking check did),
# `damaged`, or `unreachable` (it is not here, and the remote could not be asked).
Status = Literal["fresh", "stale", "failed", "damaged", "unreachable"]


class MissingInputs(PipelineError):
    """Inputs that the store does not have, or has only with a failed blocking check.

    `unreadable`: what outside of the store could not be read. What is asked for is then unknown.
    """

    def __init__(
        self,
        message: str,
        failed_checks: tuple[str, ...] = (),
        unreadable: tuple[str, ...] = (),
    ) -> None:
        super().__init__(message)
        self.failed_checks = failed_checks
        self.unreadable = unreadable


@dataclass(frozen=True)
class Request:
    """One asset, asked for: what it is to be made of. An input may be in the remote only."""

    asset: str
    ingredients: Ingredients
    inputs: dict[str, Artifact]

    @property
    def fingerprint(self) -> str:
        return self.ingredients.fingerprint


@dataclass(frozen=True)
class State:
    """What a look at a store found of one asset.

    `request`: what it would be made of; None where an input is not usable. `artifact`: the one that
    was asked for; where it is not `here`, its files are in the remote only. `error`: why there is
    no request, or no artifact to use.
    """

    name: str
    asset: str
    status: Status
    why: tuple[str, ...] = ()
    request: Request | None = None
    artifact: Artifact | None = None
    here: bool = False
    error: PipelineError | None = None

    def require_request(self) -> Request:
        """Return the request. Raises what is in its way."""
        if self.request is None:
            assert self.error is not None, "without a request there is a reason"
            raise self.error
        return self.request


class Lookup:
    """What the store of a chain's project has of it, each asset looked for once.

    With `pins` what lies outside of the store is what a run has seen first.
    """

    def __init__(self, chain: Chain, pins: Pins | None = None, store: Store | None = None) -> None:
        self.chain = chain
        self.pins = pins
        self.store = store or open_store(chain)
        self._states: dict[str, State] = {}

    def again(self) -> "Lookup":
        """Return a look-up that has seen nothing yet."""
        return Lookup(self.chain, self.pins, self.store)

    def state(self, name: str) -> State:
        """Say what the store has of an asset. Raises for nothing that is wrong with it."""
        if name not in self._states:
            self._states[name] = self._look(name)
        return self._states[name]

    def pull(self, name: str) -> Artifact:
        """Return the artifact that is asked for, its files here.

        Raises MissingInputs, DamagedArtifact or RemoteError, with the remedy.
        """
        state = self.state(name)
        if state.artifact is None:
            raise state.error or self._explain_absent(name)
        if state.here:
            return state.artifact
        manifest = state.artifact.manifest
        try:
            found = self.store.find(manifest.asset, manifest.fingerprint)
        except DamagedArtifact as error:
            raise self._with_remedy(name, error) from error
        if found is None:
            gone = f"{manifest.asset}: {manifest.fingerprint} has gone from the remote. Run again."
            raise MissingInputs(gone)
        self._states.pop(name)
        return found

    def find(self, name: str) -> Artifact | None:
        """Return what `pull` returns, or None where it is not built. Raises what is broken."""
        state = self.state(name)
        if state.artifact is None and not isinstance(state.error, DamagedArtifact | RemoteError):
            return None
        return self.pull(name)

    def pull_inputs(self, name: str) -> dict[str, Artifact]:
        """Return the inputs of an asset, their files here."""
        return {given: self.pull(given) for given in self.state(name).require_request().inputs}

    def _look(self, name: str) -> State:
        asset = self.chain.asset(name)
        given = {each: self.state(each) for each in self.chain.inputs(name)}
        follows = tuple(f"follows {each}" for each, s in given.items() if s.status != "fresh")
        if follows:
            return State(name, asset, "stale", follows, error=self._explain_inputs(name, given))
        try:
            request = self._make_request(name, given)
        except RemoteError as error:
            return State(name, asset, "unreachable", (str(error),), error=error)
        except MissingInputs as error:
            return State(name, asset, "stale", (str(error),), error=error)
        return self._look_for(name, request)

    def _look_for(self, name: str, request: Request) -> State:
        asset = request.asset
        try:
            artifact = self.store.peek(asset, request.fingerprint)
        except DamagedArtifact as found:
            error = self._with_remedy(name, found)
            return State(name, asset, "damaged", (str(error),), request, error=error)
        except RemoteError as error:
            return State(name, asset, "unreachable", (str(error),), request, error=error)
        if artifact is None:
            return State(name, asset, "stale", request=request)
        here = self.store.holds(artifact)
        failed = tuple(
            f"blocking check {c.name} failed: {c.message}" for c in artifact.failed_checks
        )
        if failed:
            return State(name, asset, "failed", failed, request, artifact, here)
        why = () if here else ("in the remote; pulled by the next run",)
        return State(name, asset, "fresh", why, request, artifact, here)

    def _make_request(self, name: str, given: Mapping[str, State]) -> Request:
        rule, watched = self.chain.rule(name), self.chain.watched(name)
        inputs = {each: s.artifact for each, s in given.items() if s.artifact is not None}
        ingredients = Ingredients(
            code_version=rule.code_version,
            settings=self.chain.settings(name) | self.find_revision(name),
            inputs={n: a.data_version for n, a in inputs.items() if n not in watched},
            libraries=library_versions(rule.libraries),
        )
        return Request(self.chain.asset(name), ingredients, inputs)

    def find_revision(self, name: str) -> dict[str, Any]:
        """What is asked for beyond the declared settings: the revision of outside content."""
        if self.pins is None:
            return self._look_outside(name)
        return self.pins.keep(self.chain.asset(name), lambda: self._look_outside(name))

    def _look_outside(self, name: str) -> dict[str, Any]:
        project, kind = self.chain.project, self.chain.rule(name).kind
        if kind == "raw":
            return {"revision": self._read_revision(name)}
        if kind == "examples":
            return hash_side_files(project, self.chain.name, self.chain.recipe)
        path = self.chain.local_model(name)
        if path is None:
            return {}
        return {"revision": hash_local_model(project, self.chain.asset(name), path)}

    def _read_revision(self, name: str) -> str:
        project, source = self.chain.project, source_of(name)
        declared, sample = self.chain.sources[source], self.chain.recipe.use_samples
        try:
            revision = read_revision(project, source, declared, sample)
        except RemoteError:
            raise
        except PipelineError as error:  # a plan without the files is still a plan
            found = f"{self.chain.asset(name)}: {error}"
            raise MissingInputs(found, unreadable=(str(error),)) from error
        if revision is None:
            raise MissingInputs(
                f"{self.chain.asset(name)}: the upstream revision of source {source} was never "
                f"resolved. Build it with: ft-pipeline run{self.chain.recipe_option} --to {name}"
            )
        return revision

    def _explain_inputs(self, name: str, given: Mapping[str, State]) -> PipelineError:
        """Say why an asset cannot be built: each input that is missing, failed or broken."""
        problems: list[str] = []
        failed: list[str] = []
        unreadable: list[str] = []
        for state in given.values():
            if isinstance(state.error, DamagedArtifact | RemoteError):
                return state.error
            if isinstance(state.error, MissingInputs):
                failed += state.error.failed_checks
                unreadable += state.error.unreadable
            if state.status == "failed":
                failed += [f"{state.asset} failed its {why}" for why in _name_failed(state)]
            elif state.status != "fresh":
                problems.append(f"{state.asset} is not in the store as this recipe asks for it")
        failed = list(dict.fromkeys(failed))
        asset = self.chain.asset(name)
        return MissingInputs(
            f"{asset}: its inputs are not usable: {'; '.join(failed + problems)}. "
            "Build all that it needs, reusing what is there: dagster asset materialize --select "
            f"'+key:\"{asset}\"', or: ft-pipeline run{self.chain.recipe_option} --to {name}",
            tuple(failed),
            tuple(unreadable),
        )

    def _explain_absent(self, name: str) -> PipelineError:
        return MissingInputs(
            f"{self.chain.asset(name)}: not in the store as this recipe asks for it. Build it: "
            f"ft-pipeline run{self.chain.recipe_option} --to {name}"
        )

    def _with_remedy(self, name: str, error: DamagedArtifact) -> DamagedArtifact:
        return DamagedArtifact(
            f"{error} Rebuild it: ft-pipeline run{self.chain.recipe_option} --to {name} "
            f"--force {name}"
        )


def open_store(chain: Chain) -> Store:
    """Return the store of a chain's project, with the remote behind it."""
    project = chain.project
    return Store(project.store, Remote(project.remote) if project.remote else None)


def _name_failed(state: State) -> list[str]:
    checks = state.artifact.failed_checks if state.artifact else []
    return [f"blocking check {check.name}: {check.message}" for check in checks]
