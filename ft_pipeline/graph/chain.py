"""The chain of assets of one recipe: their names and keys, inputs and settings.

Nothing here reads a store (lookup.py does), and nothing knows Dagster.
"""

import logging
import math
import re
from collections.abc import Mapping, Sequence
from functools import cached_property
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
from ft_pipeline.graph.asset_rule import AssetRule, Kind
from ft_pipeline.graph.asset_rules import BASE_MODEL, RULES
from ft_pipeline.graph.settings_read import Declared

logger = logging.getLogger(__name__)


class Chain:
    """The assets of one recipe."""

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

    @property
    def default_chain(self) -> "Chain":
        """The chain of the default recipe, whose shared assets have plain keys."""
        return Chain(self.project, DEFAULT_RECIPE, self.default, self.default, self.sources)

    @property
    def is_default(self) -> bool:
        return self.name == DEFAULT_RECIPE

    @property
    def recipe_option(self) -> str:
        """The command-line option that selects this recipe; empty for the default."""
        return "" if self.is_default else f" --recipe {self.name}"

    @cached_property
    def _rules(self) -> dict[str, AssetRule]:
        return {name: rule for rule in RULES for name in rule.names_in(self.recipe)}

    @property
    def names(self) -> tuple[str, ...]:
        """All assets of the chain, inputs before their readers."""
        return tuple(self._rules)

    def names_of(self, kind: Kind) -> tuple[str, ...]:
        """Return the assets of a kind."""
        return tuple(name for name, rule in self._rules.items() if rule.kind == kind)

    @property
    def trained(self) -> tuple[str, ...]:
        """The trained assets."""
        return tuple(name for name, rule in self._rules.items() if rule.is_trained)

    def rule(self, name: str) -> AssetRule:
        """Return the rule of an asset. Raises PipelineError with a "did you mean"."""
        if name not in self._rules:
            raise PipelineError(
                f"no asset `{name}` in recipe {self.name}. Its assets: {', '.join(self.names)}."
                f"{suggest(name, self.names)}"
            )
        return self._rules[name]

    def inputs(self, name: str) -> tuple[str, ...]:
        """Names of the assets that an asset reads as inputs."""
        return self.rule(name).inputs(self._declared(name))

    def watched(self, name: str) -> tuple[str, ...]:
        """Names of the inputs that do not affect an asset's content."""
        return self.rule(name).watched(self._declared(name))

    def upstream(self, name: str) -> tuple[str, ...]:
        """The asset and everything it needs, in the chain's order."""
        self.rule(name)
        needed = {name}
        for candidate in reversed(self.names):
            if candidate in needed:
                needed.update(self.inputs(candidate))
        return tuple(candidate for candidate in self.names if candidate in needed)

    def asset(self, name: str) -> str:
        """Return the asset key, parts joined by `/`.

        Keys of the default recipe are plain; those of other recipes have its name as prefix. Raw
        sources and base models are shared: one asset per distinct content, plain for the default's.
        """
        rule = self.rule(name)
        if not rule.shared:
            return name if self.is_default else f"{self.name}/{name}"
        if rule.kind == "model":
            return _base_model_asset(self.model_choice(name), self.default.base_model)
        plain = self.recipe.use_samples == self.default.use_samples
        return name if plain else name + ("_sample" if self.recipe.use_samples else "_full")

    def settings(self, name: str) -> dict[str, Any]:
        """Return the declared settings that an asset reads, without upstream revisions."""
        return self.rule(name).settings(self._declared(name))

    def code_version(self, name: str) -> str:
        """Code version for Dagster: the rule's number and a hash of the settings."""
        return f"{self.rule(name).code_version}-{hash_json(self.settings(name))[:8]}"

    def key_figure(self, name: str, metadata: Mapping[str, Any]) -> str:
        """Return the figure that people look for first; "nan" for one that was not a number."""
        return self.rule(name).key_figure({k: _number(v) for k, v in metadata.items()})

    def model_choice(self, name: str) -> BaseModelChoice:
        """Return which model an asset imports: `base_model`, `teacher_model` or `student_model`."""
        choice = self._section(name)
        assert isinstance(choice, BaseModelChoice), f"{name} brings in no model"
        return choice

    def local_model(self, name: str) -> str | None:
        """Return the folder that an asset's model is imported from, if it comes from a folder."""
        choice = self._section(name)
        return choice.path if isinstance(choice, BaseModelChoice) else None

    def training(self, name: str) -> Training:
        """Return how a trained asset is trained."""
        training = self._section(name)
        assert isinstance(training, Training), f"{name} is not trained"
        return training

    def trained_from(self, name: str) -> str:
        """Return the asset that a trained one starts from."""
        start = self.rule(name).trained_from
        assert start is not None, f"{name} is not trained"
        return start

    def _section(self, name: str) -> Any:
        """Return the recipe section that configures an asset, or None."""
        found: Any = self.recipe
        for part in self.rule(name).section.split("."):
            found = getattr(found, part, None)
        return found

    def _declared(self, name: str) -> Declared:
        return Declared(self.recipe, self.sources, name)


def _number(value: Any) -> Any:
    """Undo how a manifest, which is JSON, has a figure that is not a number."""
    return math.nan if value is None else value


def _base_model_asset(choice: BaseModelChoice, default: BaseModelChoice) -> str:
    if choice == default:
        return BASE_MODEL.name
    named = choice.embedded or choice.id or choice.path or ""
    slug = re.sub(r"[^a-z0-9]+", "_", named.rsplit("/", 1)[-1].lower()).strip("_")
    return f"{BASE_MODEL.name}_{slug}_{hash_json(choice.model_dump())[:6]}"


def load_chain(project: Project, name: str, overrides: dict[str, tuple[str, ...]]) -> Chain:
    """Load one recipe as a chain. `overrides` holds `a.b=c` settings by recipe."""
    (chain,) = _load_chains(project, (name,), overrides)
    return chain


def load_other(chain: Chain, name: str) -> Chain:
    """Load another recipe of a chain's project, with FT_OVERRIDES."""
    return load_chain(chain.project, name, read_overrides())


def load_chains(
    project: Project, overrides: dict[str, tuple[str, ...]], skip_faulty: bool = False
) -> list[Chain]:
    """Load every recipe of the project, the default first.

    `skip_faulty`: leave out other recipes that have errors, with a warning in the log.
    """
    return _load_chains(project, list_recipes(project), overrides, skip_faulty)


def _load_chains(
    project: Project,
    names: Sequence[str],
    overrides: dict[str, tuple[str, ...]],
    skip_faulty: bool = False,
) -> list[Chain]:
    """Load recipes as chains; the shared sources and default recipe are read once.

    Raises PipelineError if the overrides name a recipe that does not exist.
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
            logger.warning("recipe left out: %s", error)
    found = [name for name in names if name in recipes]
    return [Chain(project, name, recipes[name], default, sources) for name in found]
