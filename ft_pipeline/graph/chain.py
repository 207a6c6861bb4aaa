"""The chain of assets of one recipe: what each is made of, and whether the store has it.

From an asset's rule (asset_rules.py) and the data versions of its inputs comes its fingerprint.
Nothing here knows Dagster.
"""

import logging
import re
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from copy import copy
from dataclasses import dataclass, replace
from typing import Any

from ft_pipeline.base.errors import PipelineError, suggest
from ft_pipeline.base.hashing import hash_json
from ft_pipeline.base.project import DEFAULT_RECIPE, Project
from ft_pipeline.config.recipe import (
    BaseModelChoice,
    Recipe,
    Training,
    list_recipes,
    load_recipe,
    read_overrides,
)
from ft_pipeline.config.sources import AnySource, load_sources
from ft_pipeline.graph.asset_rules import RAW, RULES, Rule
from ft_pipeline.graph.pins import Pins
from ft_pipeline.graph.revisions import read_revision
from ft_pipeline.graph.side_files import hash_local_model, hash_side_files
from ft_pipeline.sources.upstream import describe_reading, describe_request
from ft_pipeline.store.artifacts import (
    Artifact,
    Ingredients,
    library_versions,
)
from ft_pipeline.store.remote import Remote, RemoteError
from ft_pipeline.store.store import DamagedArtifact, Store

logger = logging.getLogger(__name__)


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
    """One asset, asked for: what it is to be made of.

    An input may be in the remote only; `Chain.fetch_inputs` brings its files.
    """

    asset: str
    ingredients: Ingredients
    inputs: dict[str, Artifact]


Known = dict[str, Artifact | None]  # what was looked up, by name


class Chain:
    """The assets of one recipe, over one store."""

    def __init__(
        self,
        project: Project,
        name: str,
        recipe: Recipe,
        default: Recipe,
        sources: dict[str, AnySource],
    ) -> None:
        self.project = project
        self.name = name
        self.recipe = recipe
        self.default = default
        self.sources = sources
        self.store = Store(project.store, Remote(project.remote) if project.remote else None)
        self.pins: Pins | None = None

    @property
    def default_chain(self) -> "Chain":
        """The chain of the default recipe, whose assets of shared content are plain."""
        return Chain(self.project, DEFAULT_RECIPE, self.default, self.default, self.sources)

    def during(
        self, run_id: str, continued: str | None = None, done: Collection[str] = ()
    ) -> "Chain":
        """The chain as one run sees it: what it looks up outside of the store stays as it was.

        `continued` is the run whose failed steps this one repeats, if any, `done` the assets that
        it had materialized.
        """
        pins = self.project.store / "pins"
        chain = copy(self)
        chain.pins = Pins(pins / run_id)
        if continued is not None:
            chain.pins.take_over(pins / continued, done)
        return chain

    @property
    def names(self) -> tuple[str, ...]:
        """All assets of the chain, inputs before what reads them."""
        raw = (f"raw_{source}" for source in self.recipe.sources)
        return (*raw, *(name for name, rule in RULES.items() if rule.wanted(self.recipe)))

    def rule(self, name: str) -> Rule:
        """Return the rule of an asset. Raises PipelineError with a near miss."""
        if name.startswith("raw_") and name.removeprefix("raw_") in self.recipe.sources:
            return RAW
        if name not in self.names:
            raise PipelineError(
                f"no asset `{name}` in recipe {self.name}. Its assets: {', '.join(self.names)}."
                f"{suggest(name, self.names)}"
            )
        return RULES[name]

    def inputs(self, name: str) -> tuple[str, ...]:
        """Names of the assets that an asset reads."""
        raw = tuple(f"raw_{source}" for source in self.recipe.sources)
        rule = self.rule(name)
        given = (*rule.inputs, *rule.more_inputs(self.recipe))
        return tuple(i for each in given for i in (raw if each == "raw" else (each,)))

    def upstream(self, name: str) -> tuple[str, ...]:
        """The asset and all that it needs, in the chain's order."""
        self.rule(name)
        needed = {name}
        for candidate in reversed(self.names):
            if candidate in needed:
                needed.update(self.inputs(candidate))
        return tuple(candidate for candidate in self.names if candidate in needed)

    def asset(self, name: str) -> str:
        """Return the asset key, parts joined by `/`.

        The default recipe's keys are plain, other recipes' have their name as prefix. Raw sources
        and base models are shared: one asset for each distinct content, the default's plain.
        """
        if self.rule(name) is RAW:
            plain = self.recipe.use_samples == self.default.use_samples
            return name if plain else name + ("_sample" if self.recipe.use_samples else "_full")
        if name in ("base_model", "teacher_model"):
            return _base_model_asset(self.model_choice(name), self.default.base_model)
        return name if self.name == DEFAULT_RECIPE else f"{self.name}/{name}"

    def model_choice(self, name: str) -> BaseModelChoice:
        """Return which model an asset brings in: `base_model`, `teacher_model`, `student_model`."""
        distillation = self.recipe.distillation
        if name == "teacher_model" and distillation and distillation.teacher.model:
            return distillation.teacher.model
        if name == "student_model" and distillation and distillation.student.model:
            return distillation.student.model
        return self.recipe.base_model

    def training(self, name: str) -> Training:
        """Return how a trained asset is trained."""
        if name == "finetuned_model" or self.recipe.distillation is None:
            return self.recipe.training
        return self.recipe.distillation.training

    def trained_from(self, name: str) -> str:
        """Return which asset a trained one starts from."""
        return "base_model" if name == "finetuned_model" else "student_model"

    def settings(self, name: str) -> dict[str, Any]:
        """Return the declared settings that an asset reads, without upstream revisions."""
        rule = self.rule(name)
        if rule is RAW:
            source = self.sources[name.removeprefix("raw_")]
            return (
                {"sample": source.sample} if self.recipe.use_samples else describe_request(source)
            )
        settings = rule.settings(self.recipe)
        if name == "prompt_completions":
            names = self.recipe.sources
            settings["reading"] = {s: describe_reading(self.sources[s]) for s in names}
        return settings

    def code_version(self, name: str) -> str:
        """Code version for Dagster: the rule's number and the settings, so that both show."""
        return f"{self.rule(name).code_version}-{hash_json(self.settings(name))[:8]}"

    def request(self, name: str, known: Known | None = None) -> Request:
        """Look up all inputs of an asset, pulling none, and say what it would be made of.

        `known` keeps what was found, for the next asset's look. Raises MissingInputs, naming each
        missing input and the command that builds it.
        """
        known = {} if known is None else known
        inputs: dict[str, Artifact] = {}
        missing: list[str] = []
        failed: list[str] = []
        unreadable: list[str] = []
        for given in self.inputs(name):
            try:
                found = self.peek(given, known)
            except MissingInputs as error:
                failed += error.failed_checks
                unreadable += error.unreadable
                found = None
            if found is None:
                missing.append(
                    f"{self.asset(given)} is not in the store as this recipe asks for it"
                )
                continue
            inputs[given] = found
            failed += [
                f"{self.asset(given)} failed its blocking check {check.name}: {check.message}"
                for check in found.failed_checks
            ]
        if missing or failed:
            failed = list(dict.fromkeys(failed))
            raise MissingInputs(
                self._explain_missing(name, failed + missing), tuple(failed), tuple(unreadable)
            )
        rule = self.rule(name)
        watched = rule.watched(self.recipe)
        ingredients = Ingredients(
            code_version=rule.code_version,
            settings=self.settings(name) | self._revision(name),
            inputs={n: a.data_version for n, a in inputs.items() if n not in watched},
            libraries=library_versions(rule.libraries),
        )
        return Request(self.asset(name), ingredients, inputs)

    def peek(self, name: str, known: Known | None = None) -> Artifact | None:
        """Return the artifact that this recipe asks for, its files perhaps only in the remote.

        `known` keeps what was found. Raises MissingInputs, RemoteError or DamagedArtifact.
        """
        known = {} if known is None else known
        if name not in known:
            request = self.request(name, known)
            with self._remedy(name):
                known[name] = self.store.peek(request.asset, request.ingredients.fingerprint)
        return known[name]

    def find(self, name: str) -> Artifact | None:
        """Return the artifact that this recipe asks for, or None where something is missing.

        It is pulled where only the remote has it. Raises DamagedArtifact where it is damaged.
        """
        try:
            found = self.peek(name)
        except MissingInputs:
            return None
        return found and self.fetch(name, found)

    def find_here(self, name: str) -> Artifact | None:
        """Return what `find` returns, or None where that would have to be pulled first."""
        try:
            found = self.peek(name)
        except MissingInputs:
            return None
        return found if found and self.store.holds(found) else None

    def lookup(self, name: str, request: Request) -> Artifact | None:
        """Return the artifact of a request, pulled if need be; DamagedArtifact names the remedy."""
        with self._remedy(name):
            return self.store.find(request.asset, request.ingredients.fingerprint)

    def fetch(self, name: str, artifact: Artifact) -> Artifact:
        """Return an artifact with its files, which are pulled where they are not here.

        Raises MissingInputs where it has gone from the remote meanwhile.
        """
        if self.store.holds(artifact):
            return artifact
        asset, fingerprint = artifact.manifest.asset, artifact.manifest.fingerprint
        with self._remedy(name):
            found = self.store.find(asset, fingerprint)
        if found is None:
            raise MissingInputs(f"{asset}: {fingerprint} has gone from the remote. Run again.")
        return found

    def fetch_inputs(self, request: Request) -> Request:
        """Return a request with the files of all its inputs."""
        inputs = {name: self.fetch(name, artifact) for name, artifact in request.inputs.items()}
        return replace(request, inputs=inputs)

    @contextmanager
    def _remedy(self, name: str) -> Iterator[None]:
        try:
            yield
        except DamagedArtifact as error:
            raise DamagedArtifact(
                f"{error} Rebuild it: ft-pipeline run{self._recipe_option} --to {name} "
                f"--force {name}"
            ) from error

    def _revision(self, name: str) -> dict[str, Any]:
        """What is asked for beyond the declared settings: the revision of outside content."""
        if self.pins is None:
            return self._look_up(name)
        return self.pins.keep(self.asset(name), lambda: self._look_up(name))

    def _look_up(self, name: str) -> dict[str, Any]:
        if name in ("base_model", "teacher_model", "student_model"):
            path, asset = self._local_model(name), self.asset(name)
            return {"revision": hash_local_model(self.project, asset, path)} if path else {}
        if name == "prompt_completions":
            return self.hash_side_files()
        if self.rule(name) is not RAW:
            return {}
        source = name.removeprefix("raw_")
        declared, project = self.sources[source], self.project
        try:
            revision = read_revision(project, source, declared, self.recipe.use_samples)
        except RemoteError:
            raise
        except PipelineError as error:  # a plan without the files is still a plan
            raise MissingInputs(f"{self.asset(name)}: {error}", unreadable=(str(error),)) from error
        if revision is None:
            raise MissingInputs(
                f"{self.asset(name)}: the upstream revision of source {source} was never resolved. "
                f"Build it with: ft-pipeline run{self._recipe_option} --to {name}"
            )
        return {"revision": revision}

    def hash_side_files(self) -> dict[str, Any]:
        """What decides the examples beside recipe and sources: held-out and forgotten rows."""
        return hash_side_files(self.project, self.name, self.recipe)

    def _local_model(self, name: str) -> str | None:
        distillation = self.recipe.distillation
        pruned = distillation is not None and distillation.student.prune is not None
        return None if name == "student_model" and pruned else self.model_choice(name).path

    def _explain_missing(self, name: str, problems: list[str]) -> str:
        asset = self.asset(name)
        return (
            f"{asset}: its inputs are not usable: {'; '.join(problems)}. "
            "Build all that it needs, reusing what is there: dagster asset materialize --select "
            f"'+key:\"{asset}\"', or: ft-pipeline run{self._recipe_option} --to {name}"
        )

    @property
    def _recipe_option(self) -> str:
        return "" if self.name == DEFAULT_RECIPE else f" --recipe {self.name}"


def _base_model_asset(choice: BaseModelChoice, default: BaseModelChoice) -> str:
    if choice == default:
        return "base_model"
    named = choice.embedded or choice.id or choice.path or ""
    slug = re.sub(r"[^a-z0-9]+", "_", named.rsplit("/", 1)[-1].lower()).strip("_")
    return f"base_model_{slug}_{hash_json(choice.model_dump())[:6]}"


def load_chain(project: Project, name: str, overrides: dict[str, tuple[str, ...]]) -> Chain:
    """Load one recipe as a chain. `overrides` holds `a.b=c` settings by recipe."""
    (chain,) = _load_chains(project, (name,), overrides)
    return chain


def load_other(chain: Chain, name: str) -> Chain:
    """Load another recipe of a chain's project, as FT_OVERRIDES has it."""
    return load_chain(chain.project, name, read_overrides())


def load_chains(
    project: Project, overrides: dict[str, tuple[str, ...]], skip_faulty: bool = False
) -> list[Chain]:
    """Load every recipe of the project, the default first.

    `skip_faulty`: others with a fault are left out, with a warning in the log.
    """
    return _load_chains(project, list_recipes(project), overrides, skip_faulty)


def _load_chains(
    project: Project,
    names: Sequence[str],
    overrides: dict[str, tuple[str, ...]],
    skip_faulty: bool = False,
) -> list[Chain]:
    """Load recipes as chains; the sources and the default recipe, which all share, are read once.

    Raises PipelineError where the overrides name a recipe that does not exist.
    """
    unknown = [name for name in overrides if name not in list_recipes(project)]
    if unknown:
        raise PipelineError(
            f"FT_OVERRIDES names the recipe {unknown[0]}, which does not exist. Known: "
            f"{', '.join(list_recipes(project))}."
        )
    sources = load_sources(project.root)
    known = tuple(sources)
    default = load_recipe(project, DEFAULT_RECIPE, known, overrides.get(DEFAULT_RECIPE, ()))
    recipes = {DEFAULT_RECIPE: default}
    for name in names:
        if name == DEFAULT_RECIPE:
            continue
        try:
            recipes[name] = load_recipe(project, name, known, overrides.get(name, ()))
        except PipelineError as error:
            if not skip_faulty:
                raise
            logger.warning("left out: %s", error)
    found = [name for name in names if name in recipes]
    return [Chain(project, name, recipes[name], default, sources) for name in found]
