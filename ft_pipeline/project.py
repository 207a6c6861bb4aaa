"""Where the project's files are: the root with `recipes/` and `sources.yaml`, and the store."""

import os
from dataclasses import dataclass
from pathlib import Path

from ft_pipeline.errors import PipelineError

DEFAULT_RECIPE = "quiz"


@dataclass(frozen=True)
class Project:
    """One checkout: its root folder and the store that its artifacts go to."""

    root: Path
    store: Path

    @property
    def recipes(self) -> Path:
        return self.root / "recipes"

    def recipe_file(self, name: str) -> Path:
        return self.recipes / f"{name}.yaml"


def find_project() -> Project:
    """Find the project: `FT_PROJECT`, else the working directory, else this checkout.

    The store is `FT_STORE`, by default `data/artifacts` below the root.
    Raises PipelineError where the folder found has no `recipes/` or no `sources.yaml`.
    """
    root = _find_root()
    for needed in ("recipes", "sources.yaml"):
        if not (root / needed).exists():
            raise PipelineError(
                f"{root}: not a project of ft_pipeline, it has no `{needed}`. "
                "Start from the root of a checkout, or set FT_PROJECT to it."
            )
    store = Path(os.environ.get("FT_STORE") or root / "data" / "artifacts").expanduser()
    return Project(root, store if store.is_absolute() else root / store)


def _find_root() -> Path:
    named = os.environ.get("FT_PROJECT")
    if named:
        return Path(named).expanduser().resolve()
    here = Path.cwd()
    if (here / "recipes").is_dir() and (here / "sources.yaml").is_file():
        return here
    return Path(__file__).resolve().parent.parent
