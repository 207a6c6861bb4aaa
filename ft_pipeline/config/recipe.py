"""The recipe: everything a person decides about one fine-tune.

`recipes/<name>.yaml` is parsed into frozen models, one group of sections per room (sections/). Each
asset reads only its own part, so a changed field rebuilds exactly the assets that read it (see
`graph/asset_rules.py`).
"""

import os
import re
import shlex
from typing import Any

from pydantic import Field, model_validator

from ft_pipeline.base.errors import suggest
from ft_pipeline.base.project import DEFAULT_RECIPE, STORE_FOLDERS, Project
from ft_pipeline.base.settings import Section, SettingsError, apply_overrides, read_yaml, validate
from ft_pipeline.config.old_names import rename_old
from ft_pipeline.config.sections.automation import Automation
from ft_pipeline.config.sections.distillation import Distillation, Prune, Student, Teacher
from ft_pipeline.config.sections.evaluation import Evaluation, Generation, Metrics
from ft_pipeline.config.sections.examples import (
    CustomTemplate,
    ExampleInput,
    Examples,
    NearDuplicates,
    Split,
)
from ft_pipeline.config.sections.tracking import Tracking
from ft_pipeline.config.sections.training import (
    BaseModelChoice,
    Bottleneck,
    Lora,
    Tokens,
    Training,
)

__all__ = [
    "Automation",
    "BaseModelChoice",
    "Bottleneck",
    "CustomTemplate",
    "Distillation",
    "Evaluation",
    "ExampleInput",
    "Examples",
    "Generation",
    "Lora",
    "Metrics",
    "NearDuplicates",
    "Prune",
    "Recipe",
    "Split",
    "Student",
    "Teacher",
    "Tokens",
    "Tracking",
    "Training",
]


class Recipe(Section):
    """One fine-tune. `ft-pipeline recipe schema` prints this as JSON Schema."""

    description: str = Field(default="", description="What this recipe is for, in one sentence.")
    use_samples: bool = Field(
        default=False,
        description="Read each source's bundled sample instead of downloading the source.",
    )
    examples: Examples = Field(description="How rows become prompt/completion examples.")
    base_model: BaseModelChoice = Field(description="The model to fine-tune.")
    tokens: Tokens = Field(default_factory=Tokens, description="Tokenization.")
    training: Training = Field(default_factory=Training, description="Training.")
    distillation: Distillation | None = Field(
        default=None,
        description="Train a smaller model to imitate a larger one; null: no distillation.",
    )
    evaluation: Evaluation = Field(default_factory=Evaluation, description="Evaluation.")
    tracking: Tracking = Field(
        default_factory=Tracking, description="Trackers that also receive the training metrics."
    )
    automation: Automation = Field(
        default_factory=Automation, description="When the chain rebuilds automatically."
    )

    @model_validator(mode="after")
    def _student_can_be_cut(self) -> "Recipe":
        prune = self.distillation.student.prune if self.distillation else None
        if prune and prune.source == "finetuned" and self.training.method == "bottleneck":
            raise ValueError(
                "distillation.student.prune.source finetuned: bottleneck adapters cannot be "
                "merged into the weights to prune; use source base, or another training.method"
            )
        return self

    @property
    def sources(self) -> tuple[str, ...]:
        """Names of the sources that this recipe reads, in order."""
        return tuple(given.source for given in self.examples.inputs)


def parse_recipe(data: Any, origin: str, known_sources: tuple[str, ...]) -> Recipe:
    """Validate a recipe's data. Raises SettingsError, naming `origin` and the field."""
    rename_old(data, origin)
    recipe = validate(Recipe, data, origin)
    for index, name in enumerate(recipe.sources):
        if name not in known_sources:
            raise SettingsError(
                f"{origin}: examples.inputs.{index}.source: no source `{name}` in sources.yaml. "
                f"Declared: {', '.join(known_sources)}.{suggest(name, known_sources)}"
            )
    return recipe


def load_recipe(
    project: Project, name: str, known_sources: tuple[str, ...], overrides: tuple[str, ...] = ()
) -> Recipe:
    """Read `recipes/<name>.yaml`, apply `a.b=c` overrides, validate. Raises SettingsError."""
    file = project.recipe_file(name)
    if not file.is_file():
        known = list_recipes(project)
        raise SettingsError(
            f"no recipe `{name}`: {file} does not exist. Known: {', '.join(known) or 'none'}."
            f"{suggest(name, known)}"
        )
    check_recipe_name(name)
    origin = f"recipes/{name}.yaml"
    data = read_yaml(file, origin)
    apply_overrides(data, overrides, origin)
    return parse_recipe(data, origin, known_sources)


def list_recipes(project: Project) -> list[str]:
    """Return the names of all recipe files, the default first, without hidden files."""
    files = (file for file in project.recipes.glob("*.yaml") if not file.name.startswith("."))
    names = sorted(file.stem for file in files)
    return sorted(names, key=lambda name: name != DEFAULT_RECIPE)


def check_recipe_name(name: str) -> None:
    """Raise SettingsError if `name` cannot become the prefix of asset keys."""
    if not re.fullmatch(r"[a-z][a-z0-9_]*", name):
        raise SettingsError(
            f"recipe name `{name}`: the name prefixes asset keys; use lower-case letters, digits "
            "and underscores, starting with a letter."
        )
    if name in STORE_FOLDERS:
        raise SettingsError(
            f"recipe name `{name}`: the store reserves a folder of that name. Choose another."
        )


def copy_recipe(text: str, name: str, original: str) -> str:
    """Return a recipe's YAML under another name, without its automation."""
    body = re.sub(r"\A(#.*\n|\n)*", "", text + "\n")
    body = re.sub(
        r"^description:.*\n( .*\n)*", f"description: {name}\n", body, count=1, flags=re.MULTILINE
    )
    body = re.sub(r"(^#.*\n)*^automation:.*\n(( .*)?\n)*", "", body, flags=re.MULTILINE)
    return (
        "# yaml-language-server: $schema=schema.json\n#\n"
        f"# A copy of {original}.yaml. It runs only on request; a section `automation:` makes it\n"
        f"# run automatically (docs/automation.md).\n\n{body.rstrip()}\n"
    )


def read_overrides() -> dict[str, tuple[str, ...]]:
    """Return the overrides in FT_OVERRIDES, by recipe."""
    return split_overrides(os.environ.get("FT_OVERRIDES", ""))


def split_overrides(text: str, default: str = DEFAULT_RECIPE) -> dict[str, tuple[str, ...]]:
    """Split `FT_OVERRIDES` by recipe.

    Overrides are separated by white space; `other:a.b=c` names a recipe; without a name it is the
    default recipe. Quote values with spaces as in a shell.
    """
    found: dict[str, tuple[str, ...]] = {}
    try:
        words = shlex.split(text)
    except ValueError as error:
        raise SettingsError(f"FT_OVERRIDES: {error} in `{text}`.") from error
    for word in words:
        match = re.match(r"^([a-z][a-z0-9_]*):(.+)$", word)
        recipe, override = (match[1], match[2]) if match else (default, word)
        found[recipe] = (*found.get(recipe, ()), override)
    return found
