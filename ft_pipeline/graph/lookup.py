"""One look at a store: what each asset of a chain would be made from, and whether it exists.

    lookup = Lookup(chain)
    lookup.state("train_set") → State(name="train_set", status="stale", request=…, artifact=None)
    lookup.pull("base_model") → Artifact(path=…)

An asset's fingerprint follows from its rule and the data versions of its inputs. A look-up
remembers what it saw; `again` starts afresh.
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
    """Inputs are missing from the store, or failed a blocking check.

    `unreadable`: what could not be read outside the store, which leaves the request unknown.
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
    """A request for one asset: what to make it from. Inputs may be only in the remote."""

    asset: str
    ingredients: Ingredients
    inputs: dict[str, Artifact]

    @property
    def fingerprint(self) -> str:
        return self.ingredients.fingerprint


@dataclass(frozen=True)
class State:
    """What a look-up found about one asset.

    `request`: what it would be made from; None if an input is not usable. `artifact`: the requested
    one; unless it is `here`, its files are only in the remote. `error`: why there is no request, or
    no usable artifact.
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
        """Return the request, or raise what prevents it."""
        if self.request is None:
            assert self.error is not None, "without a request there is a reason"
            raise self.error
        return self.request


class Lookup:
    """What the store has of a chain; each asset is looked up once.

    With `pins`, content outside the store keeps the revision that the run saw first.
    """

    def __init__(self, chain: Chain, pins: Pins | None = None, store: Store | None = None) -> None:
        self.chain = chain
        self.pins = pins
        self.store = store or open_store(chain)
        self._states: dict[str, State] = {}

    def again(self) -> "Lookup":
        """Return a fresh look-up."""
        return Lookup(self.chain, self.pins, self.store)

    def state(self, name: str) -> State:
        """Say what the store has of an asset. Never raises for problems of the asset."""
        if name not in self._states:
            self._states[name] = self._look(name)
        return self._states[name]

    def pull(self, name: str) -> Artifact:
        """Return the requested artifact, its files being in this store.

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
            gone = (
                f"{manifest.asset}: {manifest.fingerprint} is no longer in the remote. Run again."
            )
            raise MissingInputs(gone)
        self._states.pop(name)
        return found

    def find(self, name: str) -> Artifact | None:
        """Return what `pull` returns, or None if it is not built. Raises if it is broken."""
        state = self.state(name)
        if state.artifact is None and not isinstance(state.error, DamagedArtifact | RemoteError):
            return None
        return self.pull(name)

    def pull_inputs(self, name: str) -> dict[str, Artifact]:
        """Return the inputs of an asset, their files being in this store."""
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
        why = () if here else ("in the remote; the next run pulls it",)
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
        """What a request adds to the declared settings: the revision of outside content."""
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
                f"looked up. Build it with: ft-pipeline run{self.chain.recipe_option} --to {name}"
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
                problems.append(f"{state.asset} is not built for the current recipe")
        failed = list(dict.fromkeys(failed))
        asset = self.chain.asset(name)
        return MissingInputs(
            f"{asset}: its inputs are not usable: {'; '.join(failed + problems)}. "
            "Build what it needs, reusing what is up to date: dagster asset materialize --select "
            f"'+key:\"{asset}\"', or: ft-pipeline run{self.chain.recipe_option} --to {name}",
            tuple(failed),
            tuple(unreadable),
        )

    def _explain_absent(self, name: str) -> PipelineError:
        return MissingInputs(
            f"{self.chain.asset(name)}: not built for the current recipe. Build it: ft-pipeline "
            f"run{self.chain.recipe_option} --to {name}"
        )

    def _with_remedy(self, name: str, error: DamagedArtifact) -> DamagedArtifact:
        return DamagedArtifact(
            f"{error} Rebuild it: ft-pipeline run{self.chain.recipe_option} --to {name} "
            f"--force {name}"
        )


def open_store(chain: Chain) -> Store:
    """Return the store of a chain's project, with its remote."""
    project = chain.project
    return Store(project.store, Remote(project.remote) if project.remote else None)


def _name_failed(state: State) -> list[str]:
    checks = state.artifact.failed_checks if state.artifact else []
    return [f"blocking check {check.name}: {check.message}" for check in checks]
