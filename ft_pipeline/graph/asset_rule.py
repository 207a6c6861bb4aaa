"""The rule of an asset, or of a family of assets (the rules are in asset_rules.py)."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, Literal

from ft_pipeline.config.recipe import Recipe
from ft_pipeline.graph.settings_read import Declared, Settings, raw_of

Kind = Literal["raw", "examples", "set", "tokens", "model", "logits", "evaluation", "comparison"]
Split = Literal["train", "val"]
Names = tuple[str, ...]


def _no_names(declared: Declared) -> Names:
    return ()


def _always(recipe: Recipe) -> bool:
    return True


@dataclass(frozen=True, kw_only=True)
class AssetRule:
    """What one asset (or a family of assets) is, and what decides its content."""

    # Its name, or the names of a family; `*` where a recipe says what there is.
    names: Names
    room: str
    kind: Kind
    code_version: str
    # Where its work begins: `module:function`, of the worker or pure code, and its definition.
    work: Names
    # The part of what was declared that it reads.
    settings: Callable[[Declared], Settings]
    # Names of the assets that it reads.
    inputs: Callable[[Declared], Names] = _no_names
    # Those of its inputs that are looked at, but have no say in the content.
    watched: Callable[[Declared], Names] = _no_names
    # Distributions whose major.minor counts.
    libraries: Names = ()
    # Whether a recipe has it.
    wanted: Callable[[Recipe], bool] = _always
    # Whose rows alone it holds; None: of every split, or of none.
    split: Split | None = None
    # One asset for each distinct content, whatever recipe asks for it.
    shared: bool = False
    # Where the recipe says how it is made: `distillation.training`.
    section: str = ""
    # What a trained model starts from.
    trained_from: str | None = None
    key_figure: Callable[[Mapping[str, Any]], str]

    @property
    def name(self) -> str:
        """The name of a single asset."""
        (name,) = self.names
        return name

    @property
    def is_trained(self) -> bool:
        return self.trained_from is not None

    @property
    def keeps_rows(self) -> bool:
        """Whether it is a model or logits, which keep what they learned from rows."""
        return self.kind in ("model", "logits")

    def names_in(self, recipe: Recipe) -> Names:
        """Return the names of its assets in a recipe."""
        if not self.wanted(recipe):
            return ()
        if self.kind == "raw":
            return tuple(raw_of(source) for source in recipe.sources)
        return self.names

    def covers(self, name: str) -> bool:
        """Whether this rule covers an asset name (without its recipe)."""
        # A shared asset of other content than the default recipe's has more behind its name.
        patterns = [*self.names, *(f"{n}_*" for n in self.names if self.shared)]
        return any(fnmatchcase(name, pattern) for pattern in patterns)
