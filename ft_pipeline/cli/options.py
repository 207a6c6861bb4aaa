"""What commands share: common options, and loading the recipe they name."""

import os
import shlex
from typing import Annotated

import typer

from ft_pipeline.base.errors import PipelineError, suggest
from ft_pipeline.base.project import Project, find_project
from ft_pipeline.config.recipe import list_recipes, read_overrides, split_overrides
from ft_pipeline.graph.chain import Chain, load_chain, load_chains

RecipeOption = Annotated[
    str, typer.Option("--recipe", "-r", help="Name of a recipe in recipes/, without .yaml.")
]
SetOption = Annotated[
    list[str] | None,
    typer.Option(
        "--set", "-s", help="Override a setting for this run, as in training.learning_rate=5e-4."
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def load(name: str, overrides: list[str] | None) -> Chain:
    """Load a chain with FT_OVERRIDES and `--set`; both then also apply to chains loaded later."""
    project = find_project()
    require_recipe(project, name)
    words = [shlex.quote(f"{name}:{override}") for override in overrides or ()]
    merged = " ".join([os.environ.get("FT_OVERRIDES", ""), *words]).strip()
    os.environ["FT_OVERRIDES"] = merged
    return load_chain(project, name, split_overrides(merged))


def load_all() -> list[Chain]:
    """Load the chains of all recipes with FT_OVERRIDES, the default first."""
    return load_chains(find_project(), read_overrides())


def require_recipe(project: Project, name: str) -> None:
    """Raise PipelineError if there is no such recipe."""
    known = list_recipes(project)
    if name not in known:
        raise PipelineError(
            f"no recipe `{name}` in {project.recipes}. Known: {', '.join(known)}."
            f"{suggest(name, known)}"
        )
